"""From ratings and a table to the network: budgets hold, and nothing better was overlooked."""

import itertools

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
from dna_deploy.table import LatencyTable, find_table


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
