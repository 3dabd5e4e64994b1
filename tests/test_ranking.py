"""The ranking benchmark's space is the published one, and its figures are what their names say."""

import random

import numpy as np
import pytest

from benchmarks import ranking
from benchmarks._nas_bench_macro import FILE, SPACE, searched, truth
from dna_deploy.arch import Architecture

pytestmark = pytest.mark.skipif(not FILE.exists(), reason="the published accuracies are not here")


def test_every_network_costs_what_its_publishers_say():
    space, known = SPACE.at(32, 10), truth()
    assert space.size == len(known.runs) == 6561
    for row in [0, 6560, *random.Random(0).sample(range(6561), 60)]:
        places = iter(known.choices[row])
        arch = Architecture(space, tuple(b.candidates[next(places) if b.size > 1 else 0] for b in space.blocks))
        assert (arch.macs, arch.params) == (known.flops[row], known.params[row])


def test_what_is_known_of_the_data():
    known = truth()
    assert ranking.tau(known.flops, known.accuracy) == pytest.approx(0.556, abs=5e-4)  # as published beside the data
    assert ranking.tau(known.runs[:, 0], known.runs[:, 1]) == pytest.approx(0.882, abs=2e-3)


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return [rng.normal(size=block.size) for block in searched(SPACE.at(32, 10))]


def test_a_sum_is_that_of_its_three_blocks(scores):
    row = int("01" + "210" + "112", 3)
    expected = scores[0][int("01", 3)] + scores[1][int("210", 3)] + scores[2][int("112", 3)]
    assert ranking.sums(scores)[row] == pytest.approx(expected)


def test_the_exact_pick_is_the_best_scored_network_that_fits(scores):
    picks, bests, randoms, largests = ranking.chosen(scores)
    assert np.mean(bests - picks) == pytest.approx(ranking.regret(scores))
    assert (randoms < bests).all() and (largests <= bests).all()
    assert ranking.regret(scores, 6561) < 0.05  # training them all leaves the noise of one training


def test_partial_correlation_is_that_of_what_the_cost_leaves_over(scores):
    from scipy.stats import rankdata

    known, summed = truth(), ranking.sums(scores)
    cost = rankdata(known.flops)
    left = [np.polyval(np.polyfit(cost, rankdata(values), 1), cost) - rankdata(values) for values in (-summed, known.accuracy)]
    assert ranking.partial(summed) == pytest.approx(np.corrcoef(*left)[0, 1])


def test_within_bins_the_cost_itself_says_nothing():
    known = truth()
    assert ranking.within_bins(-known.flops) < ranking.tau(known.flops, known.accuracy) / 2
    assert ranking.within_bins(-known.accuracy) == pytest.approx(1)
