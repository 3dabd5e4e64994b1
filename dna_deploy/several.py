"""The exact pick under several costs at once: one binary variable a candidate, solved by HiGHS."""

import itertools
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def best_within(
    costs: Sequence[Array], scores: Sequence[Array], budgets: Sequence[float], excluded: Collection[tuple[int, ...]] = ()
) -> tuple[int, ...] | None:
    """One candidate a block so that every summed cost is within its budget and the summed score is least; None: nothing fits.

    `costs[k]` is (candidates, budgets) of block k, `scores[k]` (candidates,). `excluded` are choices not to be made again.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import block_diag

    ends = np.cumsum([0, *map(len, scores)])
    one_each = block_diag([np.ones((1, len(score))) for score in scores])
    sums = np.concatenate([np.asarray(cost, float) for cost in costs]).T / np.asarray(budgets, float)[:, None]
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(sums, ub=1.0)]
    cuts = set(excluded)
    while True:
        for choices in cuts:
            row = np.zeros(ends[-1])
            row[[start + index for start, index in zip(ends, choices, strict=False)]] = 1
            constraints.append(LinearConstraint(row, ub=len(choices) - 1))
        found = milp(
            np.concatenate([np.asarray(score, float) for score in scores]),
            integrality=np.ones(ends[-1]),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            return None
        chosen = tuple(int(found.x[start:end].argmax()) for start, end in itertools.pairwise(ends))
        total = sum(np.asarray(cost, float)[index] for cost, index in zip(costs, chosen, strict=True))
        if np.all(total <= np.asarray(budgets) * (1 + 1e-12)):
            return chosen
        cuts = {chosen}  # over by less than the solver's tolerance, but over
