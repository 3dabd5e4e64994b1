"""The exact pick under several costs, against every combination tried."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dna_deploy.several import best_within

block = st.integers(1, 4).flatmap(
    lambda n: st.tuples(
        st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), min_size=n, max_size=n),
        st.lists(st.integers(-9, 9), min_size=n, max_size=n),
    )
)


def _brute(costs, scores, budgets, excluded=()):
    """The least score of any combination that fits; None where none does."""
    fitting = []
    for choices in itertools.product(*(range(len(score)) for score in scores)):
        total = [sum(cost[index][k] for cost, index in zip(costs, choices, strict=True)) for k in range(len(budgets))]
        if choices not in excluded and all(own <= budget for own, budget in zip(total, budgets, strict=True)):
            fitting.append(sum(score[index] for score, index in zip(scores, choices, strict=True)))
    return min(fitting, default=None)


@settings(max_examples=60, deadline=None)
@given(st.lists(block, min_size=1, max_size=4), st.tuples(*[st.integers(1, 30)] * 3), st.booleans())
def test_it_is_the_optimum_of_brute_force(blocks, budgets, again):
    costs, scores = [np.array(cost) for cost, _ in blocks], [np.array(score) for _, score in blocks]
    found = best_within(costs, scores, budgets)
    excluded = {found} if again and found else set()
    if excluded:
        found = best_within(costs, scores, budgets, excluded)
    best = _brute([cost for cost, _ in blocks], [score for _, score in blocks], budgets, excluded)
    assert (found is None) == (best is None)
    if found is not None:
        assert found not in excluded
        assert sum(score[index] for score, index in zip(scores, found, strict=True)) == best
        assert np.all(sum(cost[index] for cost, index in zip(costs, found, strict=True)) <= budgets)


def test_a_second_budget_changes_the_answer():
    costs, scores = [np.array([[1, 9], [5, 1]]), np.array([[1, 1], [2, 2]])], [np.array([0, 1]), np.array([1, 0])]
    assert best_within(costs, scores, (10, 100)) == (0, 1)
    assert best_within(costs, scores, (10, 5)) == (1, 1)
    assert best_within(costs, scores, (5, 5)) is None
