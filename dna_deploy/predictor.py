"""Latency of a network from a table: the sum of its measured ops, corrected by whole networks measured beside them."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from dna_deploy.arch import Architecture
from dna_deploy.errors import TableError
from dna_deploy.ops import Op, parse
from dna_deploy.plugins import knows
from dna_deploy.space import SearchSpace
from dna_deploy.table import LatencyTable

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
    """network_ms = offset_ms + scale * sum of op ms: what running ops together adds to and takes from running them alone."""

    offset_ms: float
    scale: float
    networks: int  # it was fitted from; 0: the plain sum


@dataclass(frozen=True)
class LatencyPredictor:
    table: LatencyTable

    @cached_property
    def correction(self) -> Correction:
        """Fitted from the whole networks in the table; the plain sum where there are too few."""
        if len(self._networks) < FEWEST:
            return Correction(0.0, 1.0, 0)
        offset, scale = _line(self._sums, self._measured)
        return Correction(offset, scale, len(self._networks))

    def errors(self) -> tuple[Errors, Errors] | None:
        """On held-out networks: of the corrected sums, and of a line on multiply-adds beside them; None without networks."""
        if len(self._networks) < FEWEST:
            return None
        macs = [float(network.macs) for network in self._networks]
        widths = sorted(self.table.measurements[network.key].halfwidth for network in self._networks)
        repeatability = widths[len(widths) // 2]
        return _held_out(self._sums, self._measured, repeatability), _held_out(macs, self._measured, repeatability)

    @cached_property
    def _sums(self) -> list[float]:
        return [sum(self.op_ms(op) for op in network.ops) for network in self._networks]

    @cached_property
    def _measured(self) -> list[float]:
        return [self.table.measurements[network.key].latency_ms for network in self._networks]

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
        return self.correction.offset_ms + self.correction.scale * sum(self.op_ms(op) for op in ops)

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


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Offset and slope with the least squared *relative* error, the offset never negative."""
    import numpy as np

    weights = 1 / np.asarray(y)
    design = np.stack([weights, np.asarray(x) * weights], axis=1)
    (offset, scale), *_ = np.linalg.lstsq(design, np.ones(len(weights)), rcond=None)
    if offset < 0:
        return 0.0, float(design[:, 1].sum() / (design[:, 1] ** 2).sum())
    return float(offset), float(scale)


def _held_out(x: Sequence[float], y: Sequence[float], repeatability: float) -> Errors:
    import numpy as np
    from scipy.stats import kendalltau, spearmanr

    xs, ys = np.asarray(x), np.asarray(y)
    predicted = np.empty(len(ys))
    for fold in range(FOLDS):
        out = np.arange(len(ys)) % FOLDS == fold
        offset, scale = _line(xs[~out], ys[~out])
        predicted[out] = offset + scale * xs[out]
    relative = np.abs(predicted / ys - 1)
    ranks = [float(spearmanr(predicted, ys).statistic), float(kendalltau(predicted, ys).statistic)]
    spearman, kendall = (0.0 if math.isnan(rank) else rank for rank in ranks)
    return Errors(
        n=len(ys),
        mape=float(relative.mean()),
        within_5=float((relative <= 0.05).mean()),
        within_10=float((relative <= 0.10).mean()),
        spearman=spearman,
        kendall=kendall,
        repeatability=repeatability,
    )
