"""Does a score say more than the cost? Multiply-adds and parameters alone are hard to beat, so they stand beside every rating."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dna_deploy.space import SearchSpace

Array = np.ndarray[Any, np.dtype[Any]]

BIN = 8  # candidates of about equal cost that are compared with each other


@dataclass(frozen=True)
class Rivalry:
    """Kendall's tau, over the candidates of one block, between "the score likes it" and "it is large".

    Near 1 the score ranks like the cost it is compared with, and choosing by that cost would have done. `at_equal_cost`
    is the tau with multiply-adds among candidates of about equal cost, where only what the score itself knows is left. `spread`
    is the share of the score's standard deviation that is left there.
    """

    block: str
    candidates: int
    macs: float
    params: float
    at_equal_cost: float | None  # None where too few candidates cost the same
    spread: float | None


def rivalry(space: SearchSpace, scores: Sequence[Array], costs: Sequence[Array]) -> list[Rivalry]:
    """For each block that has a choice; `scores[k]` (lower is better) and `costs[k]` are those of block k's candidates."""
    found = []
    for block, score, cost in zip(space.blocks, scores, costs, strict=True):
        if block.size == 1:
            continue
        macs = np.array([sum(op.macs for op in candidate.ops) for candidate in block.candidates], float)
        params = np.array([sum(op.params for op in candidate.ops) for candidate in block.candidates], float)
        bins = np.array_split(np.argsort(cost, kind="stable"), max(1, block.size // BIN))
        taus = [kendall(-score[near], macs[near]) for near in bins if len(bins) > 1 and np.ptp(macs[near]) > 0]
        left = [score[near].var() for near in bins]
        found.append(
            Rivalry(
                block=block.name,
                candidates=block.size,
                macs=kendall(-score, macs),
                params=kendall(-score, params),
                at_equal_cost=float(np.mean(taus)) if taus else None,
                spread=float(np.sqrt(np.mean(left) / score.var())) if taus and score.var() > 0 else None,
            )
        )
    return found


def kendall(a: Any, b: Any) -> float:
    """Kendall's tau; 0 where one of them does not vary."""
    from scipy.stats import kendalltau

    return float(kendalltau(a, b)[0]) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0
