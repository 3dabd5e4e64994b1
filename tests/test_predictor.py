"""From ops to networks: sums, the correction, and what is refused."""

import random

import pytest

from dna_deploy.arch import sample
from dna_deploy.errors import TableError
from dna_deploy.measure import _references, remark
from dna_deploy.plugins import find
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.table import Header, LatencyTable, Published, Session, VisitRow, appending, create, find_table


def _table(path, rows):
    create(path, Header("board", "test", {"name": "board"}, {}))
    with appending(path) as out:
        for key, ms in rows.items():
            out.add(Published(key, ms, None, 1))
    return LatencyPredictor(LatencyTable.load(path))


@pytest.fixture
def op_ms(tiny):
    return {op.key: 0.1 + 0.01 * number**1.5 for number, op in enumerate(tiny.ops)}


def test_without_networks_it_is_the_plain_sum(tiny, op_ms, tmp_path):
    predictor = _table(tmp_path / "t.jsonl", op_ms)
    arch = sample(tiny, random.Random(0))
    assert predictor.network_ms(arch.ops) == pytest.approx(sum(op_ms[op.key] for op in arch.ops))
    assert predictor.errors() is None and predictor.correction.networks == 0


def test_the_correction_recovers_overhead_scale_and_the_cost_of_weights(tiny, op_ms, tmp_path):
    networks = {arch.key: arch for arch in (sample(tiny, random.Random(seed)) for seed in range(60))}

    def truth(arch):
        return -0.05 + 0.9 * sum(op_ms[op.key] for op in arch.ops) + 0.2 * 4e-6 * arch.params

    predictor = _table(tmp_path / "t.jsonl", op_ms | {key: truth(arch) for key, arch in networks.items()})
    found = predictor.correction
    assert (found.offset_ms, found.scale, found.ms_per_mb) == pytest.approx((-0.05, 0.9, 0.2))
    assert found.networks == len(networks) == 18
    arch = sample(tiny, random.Random(99))
    assert predictor.network_ms(arch.ops) == pytest.approx(truth(arch))
    by_ops, by_macs = predictor.errors()
    assert by_ops.mape < 1e-9 and by_ops.within_5 == 1.0 and by_ops.kendall == pytest.approx(1.0)
    assert by_macs.mape > 0.001


def test_an_unknown_op_is_refused_never_free(tiny, op_ms, tmp_path):
    missing = tiny.ops[3]
    predictor = _table(tmp_path / "t.jsonl", {key: ms for key, ms in op_ms.items() if key != missing.key})
    with pytest.raises(TableError, match="no row for mbconv"):
        predictor.op_ms(missing)
    with pytest.raises(TableError, match=f"1 of {len(tiny.ops)} ops"):
        predictor.require(tiny)


def test_a_classifier_with_fewer_classes_is_bounded_and_said_to_be_estimated():
    predictor = LatencyPredictor(LatencyTable.load(find_table("pixel1")))
    space = find("spaces", "mobile").at(224, 4)
    predictor.require(space)
    classifier = space.ops[-1]
    assert predictor.op_ms(classifier) == 0.934826133  # the 1000-class row of the published table
    account = predictor.account(space.ops)
    assert account.bounded == (classifier,) and account.measured == len(space.ops) - 1 and not account.unknown
    with pytest.raises(TableError, match="published for --image-size 224"):
        predictor.require(find("spaces", "mobile").at(96, 4))


def test_pixel1_sums_by_hand():
    """The smallest network of `mobile` at 224 px: stem, first layer, one k3e3 a block, head (rows of the source)."""
    predictor = LatencyPredictor(LatencyTable.load(find_table("pixel1")))
    space = find("spaces", "mobile").at(224, 1000)
    cheapest = [min(block.candidates, key=lambda c: sum(map(predictor.op_ms, c.ops))) for block in space.blocks]
    rows = [
        4.39703793,
        4.03570968,
        5.60882051,
        2.51366438,
        1.34735252,
        1.85397163,
        1.8193141,
        3.91277301,
        6.28499579,
        0.934826133,
    ]
    assert predictor.network_ms([op for c in cheapest for op in c.ops]) == pytest.approx(sum(rows))


def test_networks_of_the_same_size_are_the_reference_for_a_measurement(tiny, tmp_path):
    arches = list({arch.key: arch for arch in (sample(tiny, random.Random(seed)) for seed in range(60))}.values())
    path = tmp_path / "t.jsonl"
    create(path, Header("board", "test", {"name": "board"}, {}))
    with appending(path) as out:
        out.add(Session("2026-01-01T00:00:00Z", 0, [tiny.ops[0].key], {}))
        out.add(VisitRow(tiny.ops[0].key, 0, [1_000]))
    assert _references(LatencyTable.load(path), 5.0) == [tiny.ops[0].key]
    with appending(path) as out:
        for place, arch in enumerate(arches):
            out.add(VisitRow(arch.key, 0, [(1 + place) * 1_000_000]))
    assert set(_references(LatencyTable.load(path), 4.1)) == {arch.key for arch in arches[1:6]}
    assert set(_references(LatencyTable.load(path), 1e9)) == {arch.key for arch in arches[-5:]}


def test_a_device_that_changed_its_speed_is_remarked_on():
    assert remark(None) is None and remark(1.0) is None and remark(0.96) is None
    assert "21% faster now" in remark(1.21) and "30% slower now" in remark(0.7) and "--again" in remark(0.7)
