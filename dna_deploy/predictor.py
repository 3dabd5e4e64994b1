"""Latency of a network from a table: the sum of its measured ops, corrected by whole networks measured beside them."""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dna_deploy.arch import Architecture
from dna_deploy.errors import TableError
from dna_deploy.ops import Op, parse
from dna_deploy.plugins import knows
from dna_deploy.space import SearchSpace
from dna_deploy.table import LatencyTable

Array = np.ndarray[Any, np.dtype[Any]]
FOLDS = 4  # of the validation networks: fitted on three parts, judged on the fourth, in turn
FEWEST = 8  # validation networks a correction is fitted from


@dataclass(frozen=True)
class Errors:
    """How far predictions lay from measurements of networks that had no part in the fit."""

    n: int
    mape: float  # mean absolute error, relative to the measured latency
    within_5: float  # share of networks
    within_10: float
    spearman: float
    kendall: float
    repeatability: float  # median halfwidth of the measurements' own confidence intervals, relative

    @property
    def text(self) -> str:
        return (
            f"{self.n} unseen networks: mean error {self.mape:.1%}, within 5 % {self.within_5:.0%}, within 10 % "
            f"{self.within_10:.0%}, Spearman {self.spearman:.3f}; the measurement itself repeats within {self.repeatability:.1%}"
        )


@dataclass(frozen=True)
class Correction:
    """network_ms = offset_ms + sum over ops of (scale * op_ms + ms_per_mb * its weights in MB).

    An op timed alone pays for starting a session each time (the offset, negative) and finds its weights in the cache; in a
    network it pays once and has to fetch them. On 50 networks of `mobile` at 96 px on a 2-core AMD EPYC, fitted on 20 of them:
    mean error 1.3 % on the rest, against 2.0 % without the weights and 2.8 % with the scale alone.
    """

    offset_ms: float
    scale: float
    ms_per_mb: float
    networks: int  # it was fitted from; 0: the plain sum

    def op_ms(self, op: Op, alone_ms: float) -> float:
        """What an op adds to a network, given its time alone."""
        return self.scale * alone_ms + self.ms_per_mb * _megabytes(op)


@dataclass(frozen=True)
class LatencyPredictor:
    table: LatencyTable

    @cached_property
    def correction(self) -> Correction:
        """Fitted from the whole networks in the table; the plain sum where there are too few."""
        if len(self._networks) < FEWEST:
            return Correction(0.0, 1.0, 0.0, 0)
        offset, scale, ms_per_mb = _fit(self._sums, self._measured)
        return Correction(offset, scale, ms_per_mb, len(self._networks))

    def errors(self) -> tuple[Errors, Errors] | None:
        """On held-out networks: of the corrected sums, and of a line on multiply-adds beside them; None without networks."""
        if len(self._networks) < FEWEST:
            return None
        macs = np.array([[1.0, network.macs] for network in self._networks])
        widths = sorted(self.table.measurements[network.key].halfwidth for network in self._networks)
        repeatability = widths[len(widths) // 2]
        return _held_out(self._sums, self._measured, repeatability), _held_out(macs, self._measured, repeatability)

    @cached_property
    def _sums(self) -> Array:
        """(networks, 3): one, the sum of its ops alone, its weights in MB; what the correction is fitted on."""
        return np.array(
            [[1.0, sum(map(self.op_ms, network.ops)), sum(map(_megabytes, network.ops))] for network in self._networks]
        )

    @cached_property
    def _measured(self) -> Array:
        return np.array([self.table.measurements[network.key].latency_ms for network in self._networks])

    @cached_property
    def _networks(self) -> list[Architecture]:
        """The whole networks in the table, of the spaces we know."""
        keys = [key for key in self.table.measurements if Architecture.is_key(key)]
        known = {key.partition("(")[0] for key in keys if knows("spaces", key.partition("(")[0])}
        return [Architecture.parse(key) for key in keys if key.partition("(")[0] in known]

    @cached_property
    def _ops(self) -> dict[Op, float]:
        """The measured milliseconds of every op in the table."""
        return {parse(key): found.latency_ms for key, found in self.table.measurements.items() if not Architecture.is_key(key)}

    def op_ms(self, op: Op) -> float:
        """Measured milliseconds of one op; an op the table does not know is refused, never free."""
        if op in self._ops:
            return self._ops[op]
        estimate = self._bound(op)
        if estimate is None:
            raise TableError(
                f"{self.table.path}: no row for {op.key}; measure it: dna-profile --device {self.table.header.target}"
            )
        return estimate

    def network_ms(self, ops: Iterable[Op]) -> float:
        return self.correction.offset_ms + sum(self.correction.op_ms(op, self.op_ms(op)) for op in ops)

    def estimated(self, ops: Iterable[Op]) -> list[Op]:
        """Those of `ops` that are not in the table but bounded from above by a row of it."""
        return [op for op in ops if op not in self._ops and self._bound(op) is not None]

    def require(self, space: SearchSpace) -> None:
        """Refuse a table that does not price every op of the space, before anything is trained."""
        missing = [op for op in space.ops if op not in self._ops and self._bound(op) is None]
        if not missing:
            return
        target = self.table.header.target
        advice = f"dna-profile --device {target} --space {space.name} --image-size {space.image_size}"
        sizes = {op.hw for op in self._ops if op.cin == 3}
        if self.table.published:
            advice = "it is published and cannot be extended here; measure a device of your own with dna-profile"
            if sizes:
                advice = f"it was published for --image-size {', '.join(map(str, sorted(sizes)))}; {advice}"
        raise TableError(
            f"{self.table.path}: {len(missing)} of {len(space.ops)} ops of {space.name} at {space.image_size} px are not "
            f"in it, such as {missing[0].key}; {advice}"
        )

    def _bound(self, op: Op) -> float | None:
        """The cheapest measured op that is the same but for more output channels: a classifier with more classes."""
        if op.kind != "classifier":
            return None
        wider = [ms for other, ms in self._ops.items() if dataclasses.replace(other, cout=op.cout) == op and other.cout > op.cout]
        return min(wider, default=None)


def _megabytes(op: Op) -> float:
    return 4e-6 * op.params


def _fit(columns: Array, measured: Array) -> Array:
    """The weights of the columns (n, k) with the least squared *relative* error."""
    return np.linalg.lstsq(columns / measured[:, None], np.ones(len(measured)), rcond=None)[0]


def _held_out(columns: Array, measured: Array, repeatability: float) -> Errors:
    from scipy.stats import kendalltau, spearmanr

    predicted = np.empty(len(measured))
    for fold in range(FOLDS):
        out = np.arange(len(measured)) % FOLDS == fold
        predicted[out] = columns[out] @ _fit(columns[~out], measured[~out])
    relative = np.abs(predicted / measured - 1)
    ranks = [float(spearmanr(predicted, measured).statistic), float(kendalltau(predicted, measured).statistic)]
    spearman, kendall = (0.0 if math.isnan(rank) else rank for rank in ranks)
    return Errors(
        n=len(measured),
        mape=float(relative.mean()),
        within_5=float((relative <= 0.05).mean()),
        within_10=float((relative <= 0.10).mean()),
        spearman=spearman,
        kendall=kendall,
        repeatability=repeatability,
    )
