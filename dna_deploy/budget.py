"""Budgets: the latency a network may have on each device, and what every candidate of a space costs of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dna_deploy.errors import NothingFits
from dna_deploy.predictor import LatencyPredictor, deviations, open_predictor
from dna_deploy.several import best_within
from dna_deploy.space import SearchSpace

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Wish:
    """What is asked of one device: its table, the latency a network may have, and how sure that has to be (None: expected)."""

    table: Path
    ms: float
    confidence: float | None = None

    def on(self, space: SearchSpace) -> "Budget":
        return Budget(open_predictor(self.table, space.ops), self.ms, self.confidence)


@dataclass(frozen=True)
class Budget:
    """A wish with the predictor that can tell whether a network of the space fulfils it."""

    predictor: LatencyPredictor
    ms: float
    confidence: float | None = None

    @property
    def device(self) -> str:
        return self.predictor.table.header.target


def block_costs(space: SearchSpace, predictor: LatencyPredictor, confidence: float | None = None) -> list[Array]:
    """Predicted milliseconds of every candidate of every block; the fixed part of the correction is in the first.

    With `confidence` they add up to no less than the network's upper bound, which itself does not add up: it has the root of
    the ops' summed variances V in it. For any s, z root(V) <= z^2 V / 2s + s/2, tight where s = z root(V): s is taken from
    the mean candidates.
    """
    correction = predictor.correction
    op_ms = {op: correction.op_ms(op, predictor.op_ms(op)) for op in space.ops}
    costs = [np.array([sum(op_ms[op] for op in candidate.ops) for candidate in block.candidates]) for block in space.blocks]
    costs[0] = costs[0] + correction.offset_ms
    if confidence is None:
        return costs
    z = deviations(confidence)
    widths = [np.array([z**2 * predictor.variance(candidate.ops) for candidate in block.candidates]) for block in space.blocks]
    s = sum(float(width.mean()) for width in widths) ** 0.5
    margin = predictor.margin(confidence)
    costs = [(1 + margin) * cost + (width / (2 * s) if s else 0.0) for cost, width in zip(costs, widths, strict=True)]
    costs[0] = costs[0] + s / 2
    return costs


def require_feasible(space: SearchSpace, budgets: Sequence[Budget]) -> None:
    """Before anything is trained: is there a network within the budgets at all?"""
    costs = [block_costs(space, budget.predictor, budget.confidence) for budget in budgets]
    for budget, own in zip(budgets, costs, strict=True):
        least = sum(float(cost.min()) for cost in own)
        if least > budget.ms:
            sure = f" at {budget.confidence:.0%} confidence" if budget.confidence else ""
            raise NothingFits(
                f"no network of {space.name} at {space.image_size} px fits {budget.ms:g} ms on {budget.device}{sure}; "
                f"the fastest takes {least:.3g} ms: raise --latency, or lower --image-size"
            )
    if len(budgets) > 1:
        free = [np.zeros(block.size) for block in space.blocks]
        if best_within(together(costs), free, [budget.ms for budget in budgets]) is None:
            asked = ", ".join(f"{budget.device}={budget.ms:g}ms" for budget in budgets)
            raise NothingFits(
                f"no network of {space.name} at {space.image_size} px fits all of {asked}, though each alone can be"
            )


def together(costs: Sequence[Sequence[Array]]) -> list[Array]:
    """For each block (candidates, budgets) from the blocks' costs of each budget."""
    return [np.stack(block, axis=1) for block in zip(*costs, strict=True)]
