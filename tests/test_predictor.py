"""From ops to networks: sums, the correction, and what is refused."""

import random
import re

import pytest

from dna_deploy.arch import sample
from dna_deploy.errors import TableError
from dna_deploy.measure import _references, remark
from dna_deploy.plugins import find
from dna_deploy.predictor import LatencyPredictor, open_predictor
from dna_deploy.table import Header, LatencyTable, Published, Session, VisitRow, appending, create, find_table
from dna_deploy.transfer import describe, worth_measuring


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


def test_only_networks_of_the_space_and_size_asked_for_correct_and_judge(tiny_path, tmp_path):
    """Exact at 32 px, far off at 16 px, and too few at 24 px."""
    spaces = {size: find("spaces", tiny_path).at(size, 10) for size in (32, 16, 24)}
    op_ms = {op.key: 0.1 + 1e-7 * op.macs for space in spaces.values() for op in space.ops}
    networks, rng = {}, random.Random(0)
    for size, count, noise in ((32, 12, 0.0), (16, 12, 0.2), (24, 7, 0.0)):
        drawn = dict.fromkeys(sample(spaces[size], random.Random(seed)) for seed in range(60))
        for arch in list(drawn)[:count]:
            networks[arch.key] = 0.9 * sum(op_ms[op.key] for op in arch.ops) * rng.uniform(1 - noise, 1 + noise)
    networks["tiny(32, 10): only: conv3 ds3 | d3: k9e9 | d1: k3e1 | only: conv1 fc #01234567"] = (
        1.0  # before the space was edited
    )
    _table(tmp_path / "t.jsonl", op_ms | networks)
    exact, noisy, few = (
        open_predictor(tmp_path / "t.jsonl", space.ops, space="tiny", image_size=size) for size, space in spaces.items()
    )
    assert exact.correction.networks == noisy.correction.networks == 12 and exact.stale == 1 and noisy.stale == 0
    assert exact.errors()[0].mape < 1e-9 and exact.margin(0.95) < 1e-9
    assert noisy.errors()[0].mape > 0.05 and noisy.margin(0.95) > 0.1
    ops = sample(spaces[24], random.Random(0)).ops
    assert few.errors() is None and few.network_ms(ops) == pytest.approx(sum(map(few.op_ms, ops)))
    with pytest.raises(
        TableError, match=r"7 whole networks of tiny at 24 px measured, 8 are needed .* --space tiny --image-size 24"
    ):
        few.margin(0.95)


def test_an_unknown_op_is_refused_never_free(tiny, op_ms, tmp_path):
    missing = tiny.ops[3]
    predictor = _table(tmp_path / "t.jsonl", {key: ms for key, ms in op_ms.items() if key != missing.key})
    with pytest.raises(TableError, match="no row for mbconv"):
        predictor.op_ms(missing)
    with pytest.raises(TableError, match=f"1 of {len(tiny.ops)} ops"):
        predictor.require(tiny)


@pytest.fixture(scope="module")
def mobile():
    return find("spaces", "mobile").at(96, 4)


def _true_ms(op):
    return 0.02 + 2e-8 * op.macs + 2e-7 * op.bytes_moved * (1.2 if getattr(op, "kernel", 3) > 3 else 1.0)


@pytest.mark.parametrize("key", ["rubbish", "conv(hw=2)", "conv(hw=2, cin=3, cout=4, kernel=1, act=relu6)"])
def test_a_row_that_is_no_op_is_named_with_its_table(tiny, op_ms, tmp_path, key):
    predictor = _table(tmp_path / "t.jsonl", op_ms | {key: 1.0})
    with pytest.raises(TableError, match=rf"t\.jsonl: '{re.escape(key)}'"):
        predictor.require(tiny)


def test_ops_that_were_not_measured_are_predicted_with_an_interval_and_an_account(mobile, tmp_path):
    kept = worth_measuring(describe(mobile.ops), 35)
    rows = {mobile.ops[row].key: _true_ms(mobile.ops[row]) for row in kept}
    plain = _table(tmp_path / "t.jsonl", rows)
    with pytest.raises(TableError, match=r"35 of 70 ops"):
        plain.require(mobile)
    predictor = open_predictor(tmp_path / "t.jsonl", mobile.ops)
    predictor.require(mobile)
    account = predictor.account(mobile.ops)
    assert (account.measured, len(account.predicted), account.unknown, account.known) == (35, 35, (), 35)
    assert "35 of 70 ops from the table" in account.text and "35 predicted from 35 measured ones" in account.text
    errors = [abs(predictor.op_ms(op) / _true_ms(op) - 1) for op in account.predicted]
    assert sum(errors) / len(errors) < 0.05
    assert all(predictor.op_ms(op) == _true_ms(op) for op in mobile.ops if op not in account.predicted)
    arch = sample(mobile, random.Random(0))
    found = predictor.network(arch.ops)
    assert found.low_ms < sum(map(_true_ms, arch.ops)) < found.high_ms
    assert found.ms == pytest.approx(predictor.network_ms(arch.ops))


def test_an_op_outside_what_was_measured_is_refused_not_guessed(mobile, tmp_path):
    _table(tmp_path / "t.jsonl", {op.key: _true_ms(op) for op in mobile.ops})
    larger = find("spaces", "mobile").at(224, 4)
    predictor = open_predictor(tmp_path / "t.jsonl", larger.ops)
    unknown = predictor.account(larger.ops).unknown
    assert larger.ops[0] in unknown  # 224 pixels a side; at most 96 were measured
    with pytest.raises(TableError, match=r"no row for conv\(hw=224"):
        predictor.op_ms(larger.ops[0])
    with pytest.raises(TableError, match="nor within what it measured"):
        predictor.require(larger)


def test_an_op_outside_what_was_measured_is_guessed_where_that_is_asked_for_and_marked(mobile, tmp_path):
    """A quarter more pixels than were ever measured: near the truth, in no table, and without bounds."""
    _table(tmp_path / "t.jsonl", {op.key: _true_ms(op) for op in mobile.ops})
    larger = find("spaces", "mobile").at(128, 4)
    predictor = open_predictor(tmp_path / "t.jsonl", larger.ops, extrapolate=True)
    predictor.require(larger)
    account = predictor.account(larger.ops)
    assert not account.unknown and larger.ops[0] in account.extrapolated and set(account.extrapolated) <= set(account.predicted)
    assert "guessed outside what was measured, such as conv(hw=128" in account.text
    assert predictor.op_ms(larger.ops[0]) == pytest.approx(_true_ms(larger.ops[0]), rel=0.3)
    found = predictor.network([larger.ops[0]])
    assert (found.low_ms, found.high_ms) == (0.0, float("inf")) and found.ms == predictor.op_ms(larger.ops[0])


def test_too_few_measured_ops_predict_nothing(mobile, tmp_path):
    _table(tmp_path / "t.jsonl", {op.key: _true_ms(op) for op in mobile.ops[:9]})
    assert len(open_predictor(tmp_path / "t.jsonl", mobile.ops).account(mobile.ops).unknown) == len(mobile.ops) - 9


def test_a_table_of_another_device_with_the_same_ops_helps(mobile, workdir):
    """A device 3.1 times as slow, op by op with 20 % noise that no shape explains: only the other table knows it."""
    rng = random.Random(0)
    odd = {op.key: _true_ms(op) * rng.uniform(0.6, 1.4) for op in mobile.ops}
    kept = [mobile.ops[row] for row in worth_measuring(describe(mobile.ops), 20)]
    path = workdir / "latency_tables" / "slow.jsonl"
    _table(path, {op.key: 3.1 * odd[op.key] for op in kept})

    def error():
        predictor = open_predictor(path, mobile.ops)
        account = predictor.account(mobile.ops)
        return sum(abs(predictor.op_ms(op) / 3.1 / odd[op.key] - 1) for op in account.predicted) / len(account.predicted), account

    alone, _ = error()
    _table(workdir / "latency_tables" / "fast.jsonl", odd)
    helped, account = error()
    assert helped < 0.05 < 0.1 < alone and "fast" in account.sources and "the tables of " in account.text

    _table(workdir / "latency_tables" / "newer.jsonl", odd | {"fusedmb(hw=56, cin=24, cout=24)": 1.0})
    again, account = error()  # a table with an op of another version is no reference, and spoils nothing
    assert again == helped and "newer" not in account.sources


def test_an_op_known_only_roughly_is_marked(tiny, op_ms, tmp_path):
    path = tmp_path / "t.jsonl"
    create(path, Header("board", "test", {"name": "board"}, {}))
    with appending(path) as out:
        for number, (key, ms) in enumerate(op_ms.items()):
            out.add(Published(key, ms, (0.2 if number == 2 else 0.01) * ms, 1))
    predictor = LatencyPredictor(LatencyTable.load(path))
    account = predictor.account(tiny.ops)
    assert account.wide == (tiny.ops[2],) and "no better than within 10%" in account.text
    found, ms = predictor.network([tiny.ops[2]]), op_ms[tiny.ops[2].key]
    assert (found.low_ms, found.high_ms) == pytest.approx(((1 - 1.96 * 0.2) * ms, (1 + 1.96 * 0.2) * ms), rel=1e-3)  # 95 %


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
        for round in range(6):
            out.add(VisitRow(tiny.ops[0].key, round, [1_000]))
        out.add(VisitRow(arches[0].key, 0, [5_000_000]))  # read once is not measured
    assert _references(LatencyTable.load(path), 5.0) == [tiny.ops[0].key]
    with appending(path) as out:
        for place, arch in enumerate(arches):
            for round in range(6):
                out.add(VisitRow(arch.key, round, [(1 + place) * 1_000_000]))
    assert set(_references(LatencyTable.load(path), 4.1)) == {arch.key for arch in arches[1:6]}
    assert set(_references(LatencyTable.load(path), 1e9)) == {arch.key for arch in arches[-5:]}


def test_a_device_that_changed_its_speed_is_remarked_on():
    assert remark(None) is None and remark(1.0) is None and remark(0.96) is None
    assert "21% faster now" in remark(1.21) and "30% slower now" in remark(0.7) and "--again" in remark(0.7)
