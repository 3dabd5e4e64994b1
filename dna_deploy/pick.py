"""The exact search under one budget: one candidate a block, the best total score at every total cost.

Scores and costs add up over blocks, so this is a multiple-choice knapsack. Each block is reduced to its Pareto front and
the fronts are merged, dropping after each merge what is dominated: no network outside the result can be on the whole
space's front, so the result is the front, not an approximation of it.

Where the cells of a block differ in width, only candidates of equal width meet: a block then has one front for each pair
of widths it connects, and merging two blocks is a product of two matrices whose elements are fronts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
AT_ONCE = 2_000_000  # sums held in memory while merging


@dataclass(frozen=True)
class Front:
    """The Pareto front of a space, or of some blocks of it, by rising cost and falling score (lower is better in both).

    `choices[i, k]` is the candidate of block k in point i.
    """

    costs: Array
    scores: Array
    choices: Array

    def best_within(self, budget: float) -> int | None:
        """The point with the best score among those that cost at most `budget`; None where nothing fits."""
        fitting = int(np.searchsorted(self.costs, budget, side="right"))
        return fitting - 1 if fitting else None


Fronts = dict[tuple[int, int], Front]  # by the widths a part of the network takes in and puts out


def pareto_front(costs: Sequence[Array], scores: Sequence[Array], links: Sequence[Array] | None = None) -> Front:
    """The front over all combinations of one candidate a block; `costs[k]` and `scores[k]` are block k's candidates'.

    `links[k]` (candidates, 2) holds the width each takes in and puts out; without it every candidate meets every other. An
    empty front means that no combination has matching widths.
    """
    if links is None:
        links = [np.zeros((len(cost), 2), int) for cost in costs]
    parts = [_by_link(*block) for block in zip(costs, scores, links, strict=True)]
    while len(parts) > 1:  # the neighbours with the fewest sums first, which keeps the merges small
        at = min(range(len(parts) - 1), key=lambda k: _sums(parts[k], parts[k + 1]))
        parts[at : at + 2] = [_merged(parts[at], parts[at + 1])]
    if not parts[0]:
        return Front(np.empty(0), np.empty(0), np.empty((0, len(costs)), int))
    return _union(list(parts[0].values()))


def _by_link(costs: Array, scores: Array, links: Array) -> Fronts:
    found = {}
    costs, scores = np.asarray(costs, float), np.asarray(scores, float)
    for into, out in sorted(set(zip(*links.T.tolist(), strict=True))):
        here = np.flatnonzero((links[:, 0] == into) & (links[:, 1] == out))
        found[into, out] = _reduced(costs[here], scores[here], here[:, None])
    return found


def _sums(first: Fronts, second: Fronts) -> int:
    """How many sums merging the two takes."""
    return sum(len(a.costs) * len(b.costs) for (_, out), a in first.items() for (into, _), b in second.items() if out == into)


def _merged(first: Fronts, second: Fronts) -> Fronts:
    found: dict[tuple[int, int], list[Front]] = {}
    for (into, out), a in first.items():
        for (met, end), b in second.items():
            if out == met:
                found.setdefault((into, end), []).append(_joined(a, b))
    return {link: _union(fronts) for link, fronts in found.items()}


def _joined(a: Front, b: Front) -> Front:
    """The front of all sums of a point of `a` and one of `b`, some rows of them at a time."""
    rows = max(1, AT_ONCE // len(b.costs))
    found = []
    for start in range(0, len(a.costs), rows):
        costs = np.add.outer(a.costs[start : start + rows], b.costs).ravel()
        scores = np.add.outer(a.scores[start : start + rows], b.scores).ravel()
        kept = _candidates(costs, scores)
        kept = kept[_order(costs[kept], scores[kept])]
        before, after = np.divmod(kept, len(b.costs))
        found.append(Front(costs[kept], scores[kept], np.hstack([a.choices[start + before], b.choices[after]])))
    return _union(found)


def _union(fronts: Sequence[Front]) -> Front:
    if len(fronts) == 1:
        return fronts[0]
    parts = [[front.costs for front in fronts], [front.scores for front in fronts], [front.choices for front in fronts]]
    return _reduced(*map(np.concatenate, parts))


def _reduced(costs: Array, scores: Array, choices: Array) -> Front:
    kept = _order(costs, scores)
    return Front(costs[kept], scores[kept], choices[kept])


def _order(costs: Array, scores: Array) -> Array:
    """Indices of the non-dominated points by rising cost; of equal points the first."""
    order = np.lexsort((scores, costs))
    best = np.minimum.accumulate(scores[order])
    keep = np.ones(len(order), dtype=bool)
    keep[1:] = scores[order][1:] < best[:-1]
    return order[keep]


def _candidates(costs: Array, scores: Array) -> Array:
    """Indices of what may be on the front, found without sorting: nothing in a cheaper slice of costs is as good."""
    slices = 4096
    if len(costs) <= 4 * slices:
        return np.arange(len(costs))
    low, high = costs.min(), costs.max()
    own = ((costs - low) * ((slices - 1) / max(high - low, 1e-300))).astype(np.int32)
    best = np.full(slices, np.inf)
    np.minimum.at(best, own, scores)
    below = np.concatenate([[np.inf], np.minimum.accumulate(best)[:-1]])
    return np.flatnonzero(scores < below[own])


def least_through(values: Sequence[Array], links: Sequence[Array], join: np.ufunc = np.add) -> list[Array]:
    """For every candidate the least total of all networks it is part of; infinite where its width meets nothing.

    With `np.maximum` the total is the largest value of the network, for values from zero up.
    """
    before = [np.zeros(len(values[0]))]
    for k in range(len(values) - 1):
        before.append(_met(links[k][:, 1], join(before[k], values[k]), links[k + 1][:, 0]))
    behind = [np.zeros(len(values[-1]))]
    for k in range(len(values) - 1, 0, -1):
        behind.insert(0, _met(links[k][:, 0], join(behind[0], values[k]), links[k - 1][:, 1]))
    return [join(join(a, value), b) for a, value, b in zip(before, values, behind, strict=True)]


def _met(widths: Array, totals: Array, wanted: Array) -> Array:
    """The least of the totals at each wanted width."""
    known, places = np.unique(wanted, return_inverse=True)
    return np.array([totals[widths == width].min(initial=np.inf) for width in known])[places]
