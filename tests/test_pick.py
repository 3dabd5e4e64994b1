"""The exact search against brute force."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dna_deploy.pick import pareto_front


def _brute_front(costs, scores):
    """Every combination; a point stays if nothing is as cheap and better, or cheaper and as good."""
    points = {(sum(c), sum(s)) for c, s in zip(itertools.product(*costs), itertools.product(*scores), strict=True)}
    return sorted((c, s) for c, s in points if not any(o != (c, s) and o[0] <= c and o[1] <= s for o in points))


small = st.integers(1, 5).flatmap(
    lambda n: st.tuples(st.lists(st.integers(0, 9), min_size=n, max_size=n), st.lists(st.integers(-9, 9), min_size=n, max_size=n))
)


@settings(max_examples=300, deadline=None)
@given(st.lists(small, min_size=1, max_size=4))
def test_front_is_that_of_brute_force(blocks):
    costs, scores = [c for c, _ in blocks], [s for _, s in blocks]
    front = pareto_front([np.array(c) for c in costs], [np.array(s) for s in scores])
    assert list(zip(front.costs.tolist(), front.scores.tolist(), strict=True)) == _brute_front(costs, scores)
    for cost, score, choice in zip(front.costs, front.scores, front.choices, strict=True):
        assert sum(c[i] for c, i in zip(costs, choice, strict=True)) == cost
        assert sum(s[i] for s, i in zip(scores, choice, strict=True)) == score


@settings(max_examples=100, deadline=None)
@given(st.lists(small, min_size=1, max_size=4), st.integers(-1, 40))
def test_best_within_a_budget_is_the_optimum(blocks, budget):
    costs, scores = [c for c, _ in blocks], [s for _, s in blocks]
    front = pareto_front([np.array(c) for c in costs], [np.array(s) for s in scores])
    combinations = zip(itertools.product(*costs), itertools.product(*scores), strict=True)
    fitting = [sum(s) for c, s in combinations if sum(c) <= budget]
    best = front.best_within(budget)
    assert (best is None) == (not fitting)
    if best is not None:
        assert front.scores[best] == min(fitting)


def test_by_hand():
    front = pareto_front([np.array([1, 2, 3]), np.array([1, 5])], [np.array([3, 1, 2]), np.array([4, 0])])
    assert front.costs.tolist() == [2, 3, 6, 7]
    assert front.scores.tolist() == [7, 5, 3, 1]
    assert front.choices.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
