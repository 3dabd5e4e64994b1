"""From ratings and a table to the network: budgets hold, and nothing better was overlooked."""

import csv
import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest

from dna_deploy.budget import Budget, block_costs
from dna_deploy.cli._found import picked_answer
from dna_deploy.errors import NothingFits
from dna_deploy.found import architecture_at, largest_within, pick
from dna_deploy.limits import Wanted
from dna_deploy.plugins import find
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.ratings import Rating, save_ratings
from dna_deploy.run import Run
from dna_deploy.scores import block_scores
from dna_deploy.space import Block, SearchSpace
from dna_deploy.table import Header, LatencyTable, Published, appending, create, find_table
from profilers import Measurement


@pytest.fixture(scope="module")
def predictor():
    return LatencyPredictor(LatencyTable.load(find_table("pixel1")))


@pytest.fixture(scope="module")
def mobile():
    return find("spaces", "mobile").at(224, 10)


@pytest.fixture(scope="module")
def ratings(mobile):
    """Ratings that follow the cost, roughly: what a training gives."""
    rng = np.random.default_rng(0)
    return {
        block.name: [
            Rating(
                block.name, candidate.text, float(np.exp(rng.normal() * 0.2)) / sum(op.macs for op in candidate.ops) ** 0.5, 0.0
            )
            for candidate in block.candidates
        ]
        for block in mobile.blocks
        if block.size > 1
    }


def test_costs_are_the_predictions(mobile, predictor):
    costs = block_costs(mobile, predictor)
    rng = np.random.default_rng(1)
    for _ in range(20):
        choices = [int(rng.integers(len(cost))) for cost in costs]
        total = sum(cost[i] for cost, i in zip(costs, choices, strict=True))
        assert predictor.network_ms(architecture_at(mobile, choices).ops) == pytest.approx(total)


@pytest.mark.parametrize("budget_ms", [40.0, 60.0, 80.0])
def test_no_sampled_network_within_the_budget_scores_better(mobile, predictor, ratings, tmp_path, budget_ms):
    run = Run(tmp_path / "run")
    found = pick(run, mobile, ratings, [Budget(predictor, budget_ms)])
    assert found.picked.predicted_ms <= budget_ms
    assert predictor.network_ms(found.architecture.ops) == pytest.approx(found.picked.predicted_ms)
    costs, scores = block_costs(mobile, predictor), block_scores(mobile, ratings)
    rng = np.random.default_rng(2)
    drawn = [rng.integers(len(cost), size=20_000) for cost in costs]
    cost = sum(c[i] for c, i in zip(costs, drawn, strict=True))
    score = sum(s[i] for s, i in zip(scores, drawn, strict=True))
    assert score[cost <= budget_ms].min(initial=np.inf) >= found.picked.score


def test_swapping_any_two_blocks_does_not_improve(mobile, predictor, ratings, tmp_path):
    """Local optimality over every pair of blocks: 3.6 million alternatives, each tried."""
    found = pick(Run(tmp_path / "run"), mobile, ratings, [Budget(predictor, 60.0)])
    costs, scores = block_costs(mobile, predictor), block_scores(mobile, ratings)
    own = [block.candidates.index(c) for block, c in zip(mobile.blocks, found.architecture.candidates, strict=True)]
    total_cost = sum(c[i] for c, i in zip(costs, own, strict=True))
    total_score = sum(s[i] for s, i in zip(scores, own, strict=True))
    for a, b in itertools.combinations(range(len(costs)), 2):
        cost = np.add.outer(costs[a] - costs[a][own[a]], costs[b] - costs[b][own[b]]) + total_cost
        score = np.add.outer(scores[a] - scores[a][own[a]], scores[b] - scores[b][own[b]]) + total_score
        assert score[cost <= 60.0].min() >= total_score - 1e-9


def test_a_budget_that_nothing_fits_names_the_fastest(mobile, predictor):
    with pytest.raises(NothingFits, match=r"fits --latency pixel1=20ms; the least there is.*pixel1=32\.7"):
        Wanted().problem(mobile, [Budget(predictor, 20.0).limit(mobile)]).require_feasible()


def test_a_space_without_a_choice_has_its_one_network(mobile, predictor, tmp_path):
    first = [(block.name, block.candidates[0].ops) for block in mobile.blocks]
    fixed = SearchSpace("fixed", 224, 10, tuple(Block.fixed(name, *ops) for name, ops in first))
    run = Run(tmp_path / "run")
    save_ratings(run.ratings, [], fixed)
    found = pick(run, fixed, {}, [Budget(predictor, 80.0)], wanted=Wanted(top=3, diverse=True))
    answer = picked_answer(found, None)
    assert answer["top"] == [found.architecture.text] and answer["rivals"] == []


def test_the_rival_is_the_largest_that_fits(mobile, predictor):
    costs = block_costs(mobile, predictor)
    rival = largest_within(Wanted().problem(mobile, [Budget(predictor, 60.0).limit(mobile)]))
    rng = np.random.default_rng(3)
    for _ in range(2000):
        choices = [int(rng.integers(len(cost))) for cost in costs]
        if sum(cost[i] for cost, i in zip(costs, choices, strict=True)) <= 60.0:
            assert architecture_at(mobile, choices).macs <= rival.macs


@pytest.fixture
def board(tiny, tmp_path):
    """A device whose networks are 0.9 times the sum of their ops, give or take 2 %, and random ratings of the tiny space."""
    rng = random.Random(0)
    op_ms = {op.key: rng.uniform(0.1, 0.4) for op in tiny.ops}
    path = tmp_path / "board.jsonl"
    create(path, Header("board", "test", {"name": "board"}, {}))
    with appending(path) as out:
        for key, ms in op_ms.items():
            out.add(Published(key, ms, 0.03 * ms, 4))
        for arch in _networks(tiny):
            out.add(Published(arch.key, 0.9 * sum(op_ms[op.key] for op in arch.ops) * rng.gauss(1, 0.02), 0.001, 4))
    ratings = {
        block.name: [Rating(block.name, candidate.text, rng.uniform(0.2, 0.8), 0.0) for candidate in block.candidates]
        for block in tiny.blocks
        if block.size > 1
    }
    return LatencyPredictor(LatencyTable.load(path)), ratings


def _networks(space):
    return [architecture_at(space, choices) for choices in itertools.product(*(range(block.size) for block in space.blocks))]


def _measured(monkeypatch, rng):
    """A device at hand on which a network takes up to a tenth less or more than predicted, its bounds 1 % from that."""

    def measure(table, models, about_ms):
        ms = about_ms * rng.uniform(0.9, 1.1)
        own = SimpleNamespace(measurement=Measurement(ms, 0.99 * ms, 1.01 * ms, ms, ms, 100, 24))
        return {models[0].key: own}

    monkeypatch.setattr("dna_deploy.found.at_hand", lambda table: True)
    monkeypatch.setattr("dna_deploy.found.measure_whole", measure)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("confidence", [None, 0.95])
def test_what_was_measured_as_too_slow_is_neither_named_nor_in_the_proof(
    tiny, board, tmp_path, monkeypatch, capsys, seed, confidence
):
    predictor, ratings = board
    _measured(monkeypatch, random.Random(seed))
    costs, scores = block_costs(tiny, predictor, confidence), block_scores(tiny, ratings)
    texts = [arch.text for arch in _networks(tiny)]
    cost, score = (dict(zip(texts, map(sum, itertools.product(*part)), strict=True)) for part in (costs, scores))
    budget_ms = sorted(cost.values())[len(cost) // 2]
    run = Run(tmp_path / "run")
    found = pick(run, tiny, ratings, [Budget(predictor, budget_ms, confidence)], 4, Wanted(top=5))
    tried = {own.network: own for own in found.picked.tried}
    first = found.architecture.text
    factor = found.picked.predicted_ms / predictor.network_ms(found.architecture.ops)
    fitting = {text for text in texts if factor * cost[text] <= budget_ms and (text not in tried or tried[text].fits)}
    assert [arch.text for arch in found.top] == [first, *sorted(fitting - {first}, key=score.__getitem__)[:4]]
    assert found.picked.bound == pytest.approx(min(map(score.__getitem__, fitting | {first})))
    save_ratings(run.ratings, [row for rows in ratings.values() for row in rows], tiny)
    picked_answer(found, confidence)
    held_ms = found.picked.high_ms if confidence else found.picked.predicted_ms
    what = "95% upper bound" if confidence else "latency"
    whose = "predicted" if held_ms <= budget_ms else "measured"
    assert f"its {whose} {what} is within the budget" in capsys.readouterr().err
    assert whose == "predicted" or first in tried


def test_a_front_held_to_a_bound_says_what_is_expected_too(tiny, board, tmp_path):
    predictor, ratings = board
    by_text = {arch.text: arch for arch in _networks(tiny)}
    for confidence, columns in ((None, {"predicted_ms"}), (0.95, {"predicted_ms", "upper_ms"})):
        found = pick(Run(tmp_path / "run"), tiny, ratings, [Budget(predictor, 3.0, confidence)])
        rows = list(csv.DictReader(found.pick.front.read_text().splitlines()))
        assert set(rows[0]) == {*columns, "score", "network"} and len(rows) == len(found.front.costs)
        for row in rows:
            own = predictor.network(by_text[row["network"]].ops, confidence or 0.95)
            assert float(row["predicted_ms"]) == pytest.approx(own.ms, rel=1e-5)
            if confidence:
                assert own.high_ms * (1 - 1e-5) <= float(row["upper_ms"]) <= 1.02 * own.high_ms


def test_a_budget_that_nothing_fits_is_not_said_to_have_been_measured(tiny, board, tmp_path):
    predictor, ratings = board
    with pytest.raises(NothingFits, match=r"no network of tiny at 32 px fits --latency board=0\.001ms; raise one of them"):
        pick(Run(tmp_path / "run"), tiny, ratings, [Budget(predictor, 0.001)])
