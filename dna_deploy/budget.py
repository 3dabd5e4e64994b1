"""Budgets: the latency a network may have on each device, and what every candidate of a space costs of it."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dna_deploy.costs import sums
from dna_deploy.limits import Limit, in_milliseconds
from dna_deploy.ops import Op
from dna_deploy.predictor import TWO_SIDED, LatencyPredictor, deviations, open_predictor
from dna_deploy.space import SearchSpace
from profilers import Measurement

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Wish:
    """What is asked of one device: its table, the latency a network may have, and how sure that has to be (None: expected)."""

    table: Path
    ms: float
    confidence: float | None = None
    extrapolate: bool = False  # ops outside what was measured are guessed, not refused

    def on(self, space: SearchSpace) -> "Budget":
        predictor = open_predictor(self.table, space.ops, self.extrapolate, space=space.name, image_size=space.image_size)
        return Budget(predictor, self.ms, self.confidence)


@dataclass(frozen=True)
class Budget:
    """A wish with the predictor that can tell whether a network of the space fulfils it."""

    predictor: LatencyPredictor
    ms: float
    confidence: float | None = None

    @property
    def device(self) -> str:
        return self.predictor.table.name

    def held_ms(self, measured: Measurement) -> float:
        """What of a measurement has to keep the budget: its upper bound of the confidence asked for."""
        if self.confidence is None:
            return measured.latency_ms
        return measured.latency_ms + (measured.high_ms - measured.latency_ms) * deviations(self.confidence) / TWO_SIDED

    def limit(self, space: SearchSpace, factor: float = 1.0) -> Limit:
        """On sums of predicted milliseconds, or of their upper bounds, multiplied with `factor`."""
        sure = f"--confidence {self.confidence:g} " if self.confidence else ""
        costs = [factor * cost for cost in block_costs(space, self.predictor, self.confidence)]
        return Limit(f"{sure}--latency {self.device}=", self.ms, costs, in_milliseconds)


def block_costs(space: SearchSpace, predictor: LatencyPredictor, confidence: float | None = None) -> list[Array]:
    """Predicted milliseconds of every candidate of every block; the fixed part of the correction is in the first.

    With `confidence` they add up to no less than the network's upper bound, which itself does not add up: it has the root of
    the ops' summed variances V in it. For any s, z root(V) <= z^2 V / 2s + s/2, tight where s = z root(V): s is taken from
    the mean candidates. V does not add up either where blocks share an op, whose error they then share: of an op that stands
    in B blocks, c_b times in each, (sum c_b)^2 <= B sum c_b^2.
    """
    correction = predictor.correction
    op_ms = {op: correction.op_ms(op, predictor.op_ms(op)) for op in space.ops}
    costs = [sums(block, op_ms.__getitem__) for block in space.blocks]
    costs[0] = costs[0] + correction.offset_ms
    if confidence is None:
        return costs
    z = deviations(confidence)
    standing = Counter(op for block in space.blocks for op in block.ops)

    def width(ops: tuple[Op, ...]) -> float:
        return z**2 * sum(standing[op] * predictor.variance([op] * count) for op, count in Counter(ops).items())

    widths = [np.array([width(candidate.ops) for candidate in block.candidates]) for block in space.blocks]
    s = sum(float(width.mean()) for width in widths) ** 0.5
    margin = predictor.margin(confidence)
    costs = [(1 + margin) * cost + (width / (2 * s) if s else 0.0) for cost, width in zip(costs, widths, strict=True)]
    costs[0] = costs[0] + s / 2
    return costs
