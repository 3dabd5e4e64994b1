"""Ops nobody measured on a device, from those that were: what the regressor is told of an op, and which ops teach it most."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dna_deploy.ops import Op
from dna_deploy.regressor import Items, choose, fit

FEWEST = 10  # measured ops the others are predicted from
MOST = 120  # more measured ops make the fit slow and hardly better

Known = Mapping[Op, float]  # milliseconds


@dataclass(frozen=True)
class Transferred:
    """An op's latency as predicted, in ms: 1.96 `sd_ms` are half its 95 % interval, Student's where few ops were measured."""

    ms: float
    sd_ms: float
    extrapolated: bool  # it lies outside what was measured


def describe(ops: Sequence[Op], sources: Sequence[Known] = ()) -> Items:
    """The ops as the regressor sees them: shapes, settings and kind, their costs, and their times on other devices."""
    described = [_features(op) for op in ops]
    columns = sorted({name for features in described for name in features})
    features = [[features.get(name, 0.0) for name in columns] for features in described]
    costs = [[max(op.macs, op.bytes_moved // 4), op.bytes_moved] for op in ops]  # pooling, too, touches every element once
    known = [[source.get(op, math.nan) for source in sources] for op in ops] if sources else None
    return Items(features, known, costs)


def _features(op: Op) -> dict[str, float]:
    found = {f"kind={op.kind}": 1.0}
    for field in dataclasses.fields(op):
        value = getattr(op, field.name)
        if isinstance(value, str):
            found[f"{field.name}={value}"] = 1.0
        else:
            found[field.name] = math.log1p(value)
    return found


def worth_measuring(items: Items, count: int, among: Sequence[int] | None = None) -> list[int]:
    """`count` rows to measure, without any measurement of the device: those at the ends of every feature and cost, so that
    nothing lies outside what was measured, then those that teach most about the others."""
    allowed = list(range(len(items))) if among is None else list(among)
    chosen = _ends(np.c_[items.features, items.costs], allowed)
    for row in choose(items, min(count, len(allowed)), allowed):
        if len(chosen) < count and row not in chosen:
            chosen.append(int(row))
    return chosen[:count]


def _ends(values: NDArray[np.float64], allowed: Sequence[int]) -> list[int]:
    """Few rows that hold the smallest and the largest value of every column among those allowed."""
    own = values[list(allowed)]
    ends = np.c_[np.isclose(own, own.min(0)), np.isclose(own, own.max(0))]
    missing = np.ones(ends.shape[1], bool)
    chosen: list[int] = []
    while missing.any():
        best = int((ends & missing).sum(1).argmax())
        chosen.append(allowed[best])
        missing &= ~ends[best]
    return chosen


def transfer(known: Known, ops: Sequence[Op], sources: Sequence[Known] = ()) -> dict[Op, Transferred]:
    """Predict `ops` of a device from what is `known` of it and of other devices."""
    everything = list(dict.fromkeys([*known, *ops]))
    items = describe(everything, sources)
    measured = range(len(known))
    rows = worth_measuring(items, MOST, measured) if len(known) > MOST else list(measured)
    prediction = fit(items, rows, [known[everything[row]] for row in rows]).predict(0.975)
    place = {op: row for row, op in enumerate(everything)}
    return {
        op: Transferred(
            float(prediction.mean_ms[row]),
            float(prediction.mean_ms[row] * np.log(prediction.high_ms[row] / prediction.mean_ms[row]) / 1.96),
            bool(prediction.extrapolated[row]),
        )
        for op, row in ((op, place[op]) for op in ops)
    }


def held_out(known: Known, sources: Sequence[Known] = (), folds: int = 4) -> float | None:
    """Mean relative error of measured ops, each predicted from the other parts; None where there are too few.

    Of a large table every n-th op only: it is shown wherever tables are listed, and must not take long."""
    ops = list(known)[:: -(-len(known) // MOST) or 1]
    if len(ops) < 2 * FEWEST:
        return None
    errors = []
    for fold in range(folds):
        out = ops[fold::folds]
        rest = {op: known[op] for op in ops if op not in set(out)}
        guesses = transfer(rest, out, sources).items()
        errors += [abs(guess.ms / known[op] - 1) for op, guess in guesses if not guess.extrapolated]
    return float(np.mean(errors)) if errors else None
