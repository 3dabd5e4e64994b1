"""The exact search: one candidate a block, the best total score at every total cost.

Scores and costs add up over blocks, so this is a multiple-choice knapsack. Each block is reduced to its Pareto front and
the fronts are merged one after another, dropping after each merge what is dominated: no network outside the result can
be on the whole space's front, so the result is the front, not an approximation of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Front:
    """The Pareto front of a space, by rising cost and falling score (lower is better in both).

    `choices[i, k]` is the candidate of block k in point i.
    """

    costs: Array
    scores: Array
    choices: Array

    def best_within(self, budget: float) -> int | None:
        """The point with the best score among those that cost at most `budget`; None where nothing fits."""
        fitting = int(np.searchsorted(self.costs, budget, side="right"))
        return fitting - 1 if fitting else None


def pareto_front(costs: Sequence[Array], scores: Sequence[Array]) -> Front:
    """The front over all combinations of one candidate a block; `costs[k]` and `scores[k]` are block k's candidates'."""
    fronts = [_reduced(np.asarray(cost, float), np.asarray(score, float)) for cost, score in zip(costs, scores, strict=True)]
    order = sorted(range(len(fronts)), key=lambda k: len(fronts[k]))  # small fronts first keeps the merges small
    kept = fronts[order[0]]
    total_cost, total_score = np.asarray(costs[order[0]], float)[kept], np.asarray(scores[order[0]], float)[kept]
    history: list[tuple[Array, Array]] = []
    for k in order[1:]:
        own = fronts[k]
        total_cost, total_score, before, chosen = _merge(
            total_cost, total_score, np.asarray(costs[k], float)[own], np.asarray(scores[k], float)[own]
        )
        history.append((before, own[chosen]))
    choices = np.empty((len(total_cost), len(fronts)), dtype=np.int64)
    at = np.arange(len(total_cost))
    for k, (before, chosen) in zip(reversed(order[1:]), reversed(history), strict=True):
        choices[:, k] = chosen[at]
        at = before[at]
    choices[:, order[0]] = kept[at]
    return Front(total_cost, total_score, choices)


def _reduced(costs: Array, scores: Array) -> Array:
    """Indices of the non-dominated points by rising cost; of equal points the first."""
    order = np.lexsort((scores, costs))
    best = np.minimum.accumulate(scores[order])
    keep = np.ones(len(order), dtype=bool)
    keep[1:] = scores[order][1:] < best[:-1]
    return order[keep]


def _merge(cost: Array, score: Array, own_cost: Array, own_score: Array) -> tuple[Array, Array, Array, Array]:
    """The front of all sums of two fronts, with the index into each that a point came from."""
    sum_cost, sum_score = np.add.outer(cost, own_cost).ravel(), np.add.outer(score, own_score).ravel()
    kept = _reduced(sum_cost, sum_score)
    before, chosen = np.divmod(kept, len(own_cost))
    return sum_cost[kept], sum_score[kept], before, chosen
