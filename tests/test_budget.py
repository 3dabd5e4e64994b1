"""Costs of candidates: sums of predictions, and bounds that no network's own bound exceeds."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest

from dna_deploy.arch import sample
from dna_deploy.budget import Budget, block_costs
from dna_deploy.errors import NothingFits, TableError
from dna_deploy.found import architecture_at
from dna_deploy.limits import Wanted
from dna_deploy.plugins import find
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.table import Header, LatencyTable, Published, appending, create
from profilers import Measurement


@pytest.fixture
def predictor(tiny, tmp_path):
    return _board(tiny, tmp_path / "board.jsonl")


def _board(space, path):
    """A device with noise: networks are 0.9 times the sum of their ops, give or take 2 %."""
    rng = random.Random(0)
    op_ms = {op.key: 0.1 + 0.01 * number**1.5 for number, op in enumerate(space.ops)}
    networks = {arch.key: arch for arch in (sample(space, random.Random(seed)) for seed in range(40))}
    create(path, Header("board", "test", {"name": "board"}, {}))
    with appending(path) as out:
        for key, ms in op_ms.items():
            out.add(Published(key, ms, 0.03 * ms, 4))
        for key, arch in networks.items():
            out.add(Published(key, 0.9 * sum(op_ms[op.key] for op in arch.ops) * rng.gauss(1, 0.02), 0.001, 4))
    return LatencyPredictor(LatencyTable.load(path))


def _everything(space, costs):
    for choices in itertools.product(*(range(block.size) for block in space.blocks)):
        total = sum(cost[index] for cost, index in zip(costs, choices, strict=True))
        yield architecture_at(space, choices), total


def test_expected_costs_add_up_to_the_prediction(tiny, predictor):
    for arch, total in _everything(tiny, block_costs(tiny, predictor)):
        assert total == pytest.approx(predictor.network(arch.ops).ms)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_bounding_costs_are_never_below_a_networks_own_bound_and_close_to_it(tiny, predictor, confidence):
    for arch, total in _everything(tiny, block_costs(tiny, predictor, confidence)):
        bound = predictor.network(arch.ops, confidence).high_ms
        assert bound <= total * (1 + 1e-12) and total <= 1.02 * bound


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_bounding_costs_hold_where_blocks_share_ops(tmp_path, confidence):
    space = find("spaces", str(Path(__file__).with_name("shared_space.py"))).at(32, 10)
    predictor = _board(space, tmp_path / "board.jsonl")
    for arch, total in _everything(space, block_costs(space, predictor, confidence)):
        assert predictor.network(arch.ops, confidence).high_ms <= total * (1 + 1e-12)


def test_more_confidence_costs_more(tiny, predictor):
    costs = [sum(cost.sum() for cost in block_costs(tiny, predictor, sure)) for sure in (None, 0.8, 0.95, 0.99)]
    assert costs == sorted(costs) and len(set(costs)) == 4


def test_the_bound_holds_as_often_as_it_says(tiny, tmp_path):
    """New devices, each with its own noise, and networks of theirs that nobody measured: 95 % of them below their bound."""
    held = []
    for seed in range(30):
        rng = random.Random(seed)
        op_ms = {op.key: rng.uniform(0.2, 1) for op in tiny.ops}
        everything = list({arch.key: arch for arch in (sample(tiny, random.Random(n)) for n in range(60))}.values())
        rng.shuffle(everything)
        true_ms = {arch.key: sum(op_ms[op.key] for op in arch.ops) * rng.gauss(1, 0.03) for arch in everything}
        path = tmp_path / f"{seed}.jsonl"
        create(path, Header("board", "test", {"name": "board"}, {}))
        with appending(path) as out:
            for key, ms in op_ms.items():
                out.add(Published(key, ms, 0.001 * ms, 4))
            for arch in everything[:10]:
                out.add(Published(arch.key, true_ms[arch.key], 0.001, 4))
        found = LatencyPredictor(LatencyTable.load(path))
        held += [true_ms[arch.key] <= found.network(arch.ops, 0.95).high_ms for arch in everything[10:]]
    assert 0.9 <= np.mean(held) <= 1.0


def test_a_measurement_is_held_to_its_bound_of_the_confidence_asked_for(predictor):
    taken = Measurement(2.0, 1.9, 2.196, 2.0, 2.1, 100, 24)  # a standard deviation of 0.1 ms
    for confidence, held_ms in ((None, 2.0), (0.5, 2.0), (0.8413, 2.1), (0.975, 2.196), (0.9987, 2.301)):
        assert Budget(predictor, 2.0, confidence).held_ms(taken) == pytest.approx(held_ms, abs=1e-3)


def test_without_whole_networks_there_is_no_bound_to_hold(tiny, predictor, tmp_path):
    path = tmp_path / "plain.jsonl"
    rows = [line for line in predictor.table.path.read_text().splitlines() if "): " not in line]
    path.write_text("\n".join(rows) + "\n")
    plain = LatencyPredictor(LatencyTable.load(path))
    with pytest.raises(TableError, match=r"0 whole networks measured, 8 are needed.*--validate 20"):
        block_costs(tiny, plain, 0.95)
    assert json.loads(rows[0])["target"] == "board"


def test_budgets_that_only_hold_alone_are_refused_together(tiny, predictor, tmp_path):
    """A second device on which the fast ops of the first are slow."""
    path = tmp_path / "other.jsonl"
    create(path, Header("other", "test", {"name": "other"}, {}))
    with appending(path) as out:
        for op in tiny.ops:
            out.add(Published(op.key, 2.0 - predictor.op_ms(op), None, 1))
    other = LatencyPredictor(LatencyTable.load(path))
    least = [sum(cost.min() for cost in block_costs(tiny, own)) for own in (predictor, other)]

    def require(one, another):
        Wanted().problem(tiny, [Budget(predictor, one).limit(tiny), Budget(other, another).limit(tiny)]).require_feasible()

    with pytest.raises(NothingFits, match=r"--latency board=.* and --latency other=.*ms conflict, within the first the least"):
        require(1.01 * least[0], 1.001 * least[1])
    require(3 * least[0], 3 * least[1])
    with pytest.raises(NothingFits, match=r"fits --latency other=.*the least there is, each taken alone: --latency board="):
        require(3 * least[0], 0.9 * least[1])
