"""Latency of a network from a table: the sum of its ops, corrected by whole networks measured beside them.

An op in the table is read from it. One that is not is predicted from those that are and from other devices' tables. Where
it lies outside what was measured it is refused, or marked as the guess it is where that was asked for. Every answer has an
interval and an account of where it comes from.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from dna_deploy.arch import Architecture
from dna_deploy.errors import RequestError, TableError
from dna_deploy.ops import Op, parse
from dna_deploy.progress import say
from dna_deploy.space import SearchSpace
from dna_deploy.table import LatencyTable, has_interval, tables
from dna_deploy.transfer import FEWEST as FEWEST_OPS
from dna_deploy.transfer import Transferred, held_out, transfer
from profilers import Measurement

Array = np.ndarray[Any, np.dtype[Any]]
FOLDS = 4  # of the validation networks: fitted on three parts, judged on the fourth, in turn
FEWEST = 8  # validation networks a correction is fitted from
WIDE = 0.10  # relative halfwidth of an op's interval beyond which it is marked wherever it is used
TWO_SIDED = 1.96  # halfwidth of a 95 % interval in standard deviations
INTERVAL = 0.975  # confidence of each of two bounds between which 95 % lie


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
class Predicted:
    """A latency nobody measured: expected, and two bounds each of which holds with the confidence asked for; 0 and infinity
    where nothing bounds it."""

    ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class Account:
    """Where the latencies of some ops come from."""

    measured: int  # read from the table
    wide: tuple[Op, ...]  # of these, known no better than within WIDE
    bounded: tuple[Op, ...]  # taken as the same op with more classes
    predicted: tuple[Op, ...]  # by the regressor
    extrapolated: tuple[Op, ...]  # of these, outside what was measured: nothing says how far off they may be
    unknown: tuple[Op, ...]  # outside what was measured, or too little was: refused
    known: int  # ops of the device the regressor learned from
    sources: tuple[str, ...]  # other tables that helped it

    @property
    def text(self) -> str:
        total = self.measured + len(self.bounded) + len(self.predicted) + len(self.unknown)
        parts = [f"{self.measured} of {total} ops from the table"]
        if self.wide:
            parts.append(f"{len(self.wide)} of these known no better than within {WIDE:.0%}, such as {self.wide[0].key}")
        if self.bounded:
            parts.append(f"{len(self.bounded)} bounded by a row with more classes")
        if self.predicted:
            others = f" and the tables of {', '.join(self.sources)}" if self.sources else ""
            parts.append(f"{len(self.predicted)} predicted from {self.known} measured ones{others}")
        if self.extrapolated:
            parts.append(
                f"{len(self.extrapolated)} of these guessed outside what was measured, such as {self.extrapolated[0].key}"
            )
        if self.unknown:
            parts.append(f"{len(self.unknown)} unknown, such as {self.unknown[0].key}")
        return ", ".join(parts)


@dataclass(frozen=True)
class LatencyPredictor:
    """`also` are ops it will be asked for beyond those in the table: they are predicted, with the tables in `sources`.
    With `extrapolate` also those outside what was measured.

    Only whole networks of `space` and `image_size` (None: of any) correct and judge it: on four tables of several sizes the
    correction of another size was off by 7 to 24 %, the plain sum by 5 to 14 %, their own by 1 to 5 %. None do where it is not
    `corrected`.
    """

    table: LatencyTable
    sources: tuple[LatencyTable, ...] = ()
    also: tuple[Op, ...] = ()
    extrapolate: bool = False
    space: str | None = None
    image_size: int | None = None
    corrected: bool = True

    @cached_property
    def correction(self) -> Correction:
        """Fitted from the whole networks in the table; the plain sum where there are too few."""
        if len(self._networks) < FEWEST:
            return Correction(0.0, 1.0, 0.0, 0)
        offset, scale, ms_per_mb = map(float, _fit(self._sums, self._measured))
        return Correction(offset, scale, ms_per_mb, len(self._networks))

    def errors(self) -> tuple[Errors, Errors] | None:
        """On held-out networks: of the corrected sums, and of a line on multiply-adds beside them; None without networks."""
        if len(self._networks) < FEWEST:
            return None
        macs = np.array([[1.0, network.macs] for network in self._networks])
        predicted, by_macs = _held_out(self._sums, self._measured), _held_out(macs, self._measured)
        widths = sorted(self.table.measurements[network.key].halfwidth for network in self._networks)
        repeatability = widths[len(widths) // 2]
        return _errors(predicted, self._measured, repeatability), _errors(by_macs, self._measured, repeatability)

    def op_error(self) -> float | None:
        """Mean relative error of ops in the table, each predicted from the others; None where there are too few."""
        return held_out({op: found.latency_ms for op, found in self._known.items()})

    def margin(self, confidence: float) -> float:
        """How far above its prediction a network may lie, relative, by the networks that had no part in the fit.

        A Student prediction bound of the held-out residuals. What the ops' own intervals add is not in it.
        """
        from scipy.stats import t

        if self.unjudged is not None:
            measure = f"measure some ({self._measure} --validate 20), or "
            raise TableError(
                f"{self.table.path}: {self.unjudged}; {'' if self.table.published else measure}leave out --confidence"
            )
        residuals = self._measured / _held_out(self._sums, self._measured) - 1
        n = len(residuals)
        reach = t.ppf(confidence, n - 1) * residuals.std(ddof=1) * math.sqrt(1 + 1 / n)
        return float(max(0.0, residuals.mean() + reach))

    @property
    def unjudged(self) -> str | None:
        """Why nothing says how far its predictions lie from networks; None where enough were measured."""
        if len(self._networks) >= FEWEST:
            return None
        whose = f" of {self.space}" if self.space else ""
        size = f" at {self.image_size} px" if self.image_size else ""
        return (
            f"{len(self._networks)} whole networks{whose}{size} measured, {FEWEST} are needed to know how far a sum of ops may "
            "lie from a network"
        )

    def network(self, ops: Sequence[Op], confidence: float = INTERVAL) -> Predicted:
        """A network's latency. Without whole networks in the table the bounds hold for the sum of the ops only."""
        ms = self.network_ms(ops)
        if self.account(ops).extrapolated:
            return Predicted(ms, 0.0, math.inf)  # the guesses share their mistakes, and nothing says how large these are
        margin = self.margin(confidence) if self.unjudged is None else 0.0
        reach = deviations(confidence) * math.sqrt(self.variance(ops))
        return Predicted(ms, max(0.0, ms * (1 - margin) - reach), ms * (1 + margin) + reach)

    def reaches(self, ops: Iterable[Op]) -> bool:
        """Whether the correction was fitted from networks about as large: that of larger ones may turn a small one negative."""
        alone, sums = sum(map(self.op_ms, ops)), self._sums[:, 1] if self._networks else np.zeros(1)
        return bool(sums.min() / 1.5 <= alone <= 1.5 * sums.max())

    def variance(self, ops: Iterable[Op]) -> float:
        """Of what these ops add to a network, in ms^2: their own errors are independent, an op's with itself is not."""
        counts = Counter(ops)
        return sum((count * self.correction.scale * self._price(op)[1]) ** 2 for op, count in counts.items())

    def account(self, ops: Iterable[Op]) -> Account:
        wanted = dict.fromkeys(ops)
        known = [op for op in wanted if op in self._known]
        bounded = [op for op in wanted if op not in self._known and self._bound(op) is not None]
        predicted = [op for op in wanted if op not in bounded and op in self.transferred]
        guessed = [op for op in predicted if self.transferred[op].extrapolated]
        unknown = [op for op in wanted if op not in self._known and op not in bounded and op not in predicted]
        sources = tuple(source.name for source in self.sources) if predicted else ()
        wide = tuple(op for op in known if self._known[op].halfwidth > WIDE)
        return Account(
            len(known), wide, tuple(bounded), tuple(predicted), tuple(guessed), tuple(unknown), len(self._known), sources
        )

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
        """The whole networks of `_parsed` all of whose ops have a price."""
        return [network for network in self._parsed if all(self._has_price(op) for op in network.ops)]

    @cached_property
    def _parsed(self) -> list[Architecture]:
        """The whole networks asked for, as far as their space is known here and still has them."""
        found = [Architecture.parse(key) for key in self._keys if Architecture.is_known(key)]
        return [arch for arch in found if self.image_size in (None, arch.space.image_size)]

    @property
    def stale(self) -> int:
        """Networks in the table that the space, edited since, no longer has."""
        return sum(not Architecture.is_known(key) for key in self._keys) if self.space else 0

    @cached_property
    def _keys(self) -> list[str]:
        prefix = f"{self.space}({self.image_size}, " if self.space else ""
        networks = {key: value for key, value in self.table.measurements.items() if Architecture.is_key(key)}
        return [key for key, value in networks.items() if self.corrected and key.startswith(prefix) and has_interval(value)]

    @cached_property
    def _known(self) -> dict[Op, Measurement]:
        """Every op in the table that was published, or measured in enough rounds to know an interval."""
        return known_ops(self.table)

    @cached_property
    def transferred(self) -> dict[Op, Transferred]:
        """Every op asked for that is not in the table and may be predicted; fitted once."""
        wanted = dict.fromkeys([*self.also, *(op for network in self._parsed for op in network.ops)])
        missing = [op for op in wanted if op not in self._known and self._bound(op) is None]
        if not missing or len(self._known) < FEWEST_OPS:
            return {}
        known = {op: found.latency_ms for op, found in self._known.items()}
        sources = [{op: found.latency_ms for op, found in known_ops(source).items()} for source in self.sources]
        found = transfer(known, missing, sources)
        return {op: guess for op, guess in found.items() if self.extrapolate or not guess.extrapolated}

    @property
    def known(self) -> int:
        """Ops of the device the regressor learns from."""
        return len(self._known)

    def _has_price(self, op: Op) -> bool:
        return op in self._known or op in self.transferred or self._bound(op) is not None

    def _price(self, op: Op) -> tuple[float, float]:
        """Milliseconds of one op alone and their standard deviation; an op nothing is known of is refused, never free."""
        if op in self._known:
            found = self._known[op]
            return found.latency_ms, found.halfwidth * found.latency_ms / TWO_SIDED
        if (bound := self._bound(op)) is not None:
            return bound, 0.0
        if op in self.transferred:
            return self.transferred[op].ms, self.transferred[op].sd_ms
        raise TableError(f"{self.table.path}: no row for {op.key}; measure it: {self._measure}")

    def op_ms(self, op: Op) -> float:
        """Milliseconds of one op alone."""
        return self._price(op)[0]

    def network_ms(self, ops: Iterable[Op]) -> float:
        return self.correction.offset_ms + sum(self.correction.op_ms(op, self.op_ms(op)) for op in ops)

    def require(self, space: SearchSpace) -> None:
        """Refuse a table that does not price every op of the space, before anything is trained."""
        missing = [op for op in space.ops if not self._has_price(op)]
        if not missing:
            return
        guess = "" if len(self._known) < FEWEST_OPS or self.extrapolate else ", or take a guess: --extrapolate"
        advice = self._measure
        sizes = {op.hw for op in self._known if op.cin == 3}
        if self.table.published:
            advice = "it is published and cannot be extended here; measure a device of your own with dna-profile"
            if sizes:
                advice = f"it was published for --image-size {', '.join(map(str, sorted(sizes)))}; {advice}"
        raise TableError(
            f"{self.table.path}: {len(missing)} of {len(space.ops)} ops of {space.name} at {space.image_size} px are not "
            f"in it nor within what it measured, such as {missing[0].key}; {advice}{guess}"
        )

    @property
    def _measure(self) -> str:
        """The command that adds to this table what is asked for."""
        target = self.table.header.target
        table = f" --table {self.table.path}" if self.table.name != target else ""
        space = f" --space {self.space}" if self.space else ""
        size = f" --image-size {self.image_size}" if self.image_size else ""
        return f"dna-profile --device {target}{table}{space}{size}"

    def _bound(self, op: Op) -> float | None:
        """The cheapest measured op that is the same but for more output channels: a classifier with more classes."""
        if op.kind != "classifier":
            return None
        wider = [other for other in self._known if dataclasses.replace(other, cout=op.cout) == op and other.cout > op.cout]
        return min((self._known[other].latency_ms for other in wider), default=None)


def deviations(confidence: float) -> float:
    """How many standard deviations above its mean a normal value lies with less than this confidence."""
    return NormalDist().inv_cdf(confidence)


def _megabytes(op: Op) -> float:
    return 4e-6 * op.params


def _fit(columns: Array, measured: Array) -> Array:
    """The weights of the columns (n, k) with the least squared *relative* error."""
    return np.linalg.lstsq(columns / measured[:, None], np.ones(len(measured)), rcond=None)[0]


def _held_out(columns: Array, measured: Array) -> Array:
    """Each network predicted without itself and the others of its part."""
    predicted = np.empty(len(measured))
    for fold in range(FOLDS):
        out = np.arange(len(measured)) % FOLDS == fold
        predicted[out] = columns[out] @ _fit(columns[~out], measured[~out])
    return predicted


def _errors(predicted: Array, measured: Array, repeatability: float) -> Errors:
    from scipy.stats import kendalltau, spearmanr

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


def known_ops(table: LatencyTable) -> dict[Op, Measurement]:
    """The ops of a table that were published, or measured in enough rounds to know an interval."""
    found = {key: value for key, value in table.measurements.items() if not Architecture.is_key(key)}
    try:
        return {parse(key): value for key, value in found.items() if has_interval(value)}
    except RequestError as error:
        raise TableError(f"{table.path}: {error}") from None


def open_predictor(
    path: Path, ops: Sequence[Op], extrapolate: bool = False, *, space: str | None = None, image_size: int | None = None
) -> LatencyPredictor:
    """The predictor of the table at `path` for these ops; other tables are read only where it lacks some of them."""
    table = LatencyTable.load(path)
    plain = LatencyPredictor(table, space=space, image_size=image_size)
    if not plain.account(ops).unknown:
        return plain
    return LatencyPredictor(table, references(table, ops), tuple(ops), extrapolate, space, image_size)


def references(table: LatencyTable, ops: Sequence[Op]) -> tuple[LatencyTable, ...]:
    """The tables of other devices that hold enough of these ops, and of those in `table`, to learn from."""
    wanted = {op.key for op in ops} | {key for key in table.measurements if not Architecture.is_key(key)}
    found = []
    for name, path in tables().items():
        if name == table.header.target or path.resolve() == table.path.resolve():
            continue
        try:
            other = LatencyTable.load(path)
            known_ops(other)  # those of a newer version may hold ops that are unknown here
        except TableError as error:
            say(f"left out as a reference: {error}")
            continue
        if len(wanted & set(other.measurements)) >= min(50, len(wanted)):
            found.append(other)
    return tuple(found)
