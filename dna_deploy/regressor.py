"""Latency of everything from a few measurements, other devices' tables and analytic costs, with an interval.

A Gaussian process in closed form. Its mean lies in the span of the same items' latencies on other devices, of
their costs (MACs, bytes) and of their features; a radial kernel takes what is left. Three are fitted: `log`, to log
latency, with one weight for what the other devices share and one for where they differ; `alike`, with a weight for
each device, for a target that is nearly one or two of them; and `sum`, the same for latency relative to a rough guess,
where the times of ops add up. A device that is weighed by itself brings its own noise along, so what the features and
the other devices say of it takes its place, or half of it. Beside the three stands the bare cost line. All are
averaged by how well each predicts the measurements left out one at a time: where another device misleads, the line
takes over. The weight of each kernel maximises the marginal likelihood under a prior that the public tables of about
50 devices suggested (`PRIOR`).

Not covered: anything that is not among the items given. The fit is transductive and takes a second or less,
so a new item is predicted by fitting again with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dna_deploy.errors import RequestError

Array = NDArray[np.float64]

# Log of the variance each part explains, as a share of the variance of the sources' log latencies, and how far
# it strays: medians over the devices of nb201, fbnet and ofa_mbv3, each fitted as a target of the others. "alike" is
# one source alone, which is mostly nothing and now and then nearly everything: hence the wide spread.
PRIOR = {"shared": -0.5, "sources": -1.3, "costs": -4.0, "features": -4.6, "radial": -4.5, "alike": -6.0}
PRIOR_SPREAD = {name: 3.0 if name == "alike" else 1.8 for name in (*PRIOR, "noise")}
NOISE = -7.6  # log variance of one reading's relative error: 2 %, whatever the range of the items
OFFSET = 100.0  # prior variance of the constant, in the same share: as good as free
EVIDENCE = 0.25  # how much of the log density of the left-out measurements decides between the models
MOST_OFF = 1000.0  # that a bound may lie from the expected latency, and this from all measurements, as a factor
TAIL = 4.0  # degrees of freedom of the Student noise: one throttled reading must not bend the whole fit


@dataclass(frozen=True, eq=False)
class Items:
    """What can be measured or predicted, one row each: networks of a space, blocks, or ops.

    features: (n, d), any real numbers: one-hots, counts, log shapes. Scaled here.
    sources_ms: (n, s), latency of the same items on s other devices, NaN where that device lacks the item; or None.
    costs: (n, c), positive analytic costs such as MACs and bytes moved; or None.
    """

    features: ArrayLike
    sources_ms: ArrayLike | None = None
    costs: ArrayLike | None = None

    def __post_init__(self) -> None:
        features = _matrix("features", self.features)
        count = len(features)
        sources = np.empty((count, 0)) if self.sources_ms is None else _matrix("sources_ms", self.sources_ms, count)
        costs = np.empty((count, 0)) if self.costs is None else _matrix("costs", self.costs, count)
        _refuse("features", features, ~np.isfinite(features), "a finite number")
        _refuse("sources_ms", sources, ~(np.isnan(sources) | ((sources > 0) & np.isfinite(sources))), "ms > 0, or NaN")
        _refuse("costs", costs, ~((costs > 0) & np.isfinite(costs)), "a finite number > 0")
        for name, value in (("features", features), ("sources_ms", sources), ("costs", costs)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def _scaled_features(self) -> Array:
        return _standard(self.features)

    @cached_property
    def _sources(self) -> Array:
        """(n, s) ms with the gaps filled; a source with too few items to fill the rest from is left out."""
        known = ~np.isnan(self.sources_ms)
        kept = self.sources_ms[:, known.sum(0) >= min(len(self), 50)]
        kept = kept[:, np.nanstd(np.log(kept), axis=0) > 1e-9]  # one that is the same for all items says nothing
        gaps = np.isnan(kept).any(0)
        if not gaps.any():
            return kept
        whole = kept[:, ~gaps]
        design = np.c_[_standard(np.c_[self.features, _relative(self.costs), _relative(whole)]), np.ones(len(self))]
        columns = [_fill(design, column) if gap else column for column, gap in zip(kept.T, gaps, strict=True)]
        return np.stack(columns, 1)

    @cached_property
    def _spread(self) -> float | None:
        """Variance of log latency over the items, mean over the sources: the unit of every kernel weight."""
        return float(np.log(self._sources).var(0).mean()) if self._sources.shape[1] else None

    @cached_property
    def _log_parts(self) -> dict[str, Array]:
        """Inputs of the kernels for log latency, each about one standard deviation in size."""
        parts = _source_parts(np.log(self._sources)) | {"features": self._scaled_features}
        return parts | ({"costs": _standard(np.log(self.costs))} if self.costs.shape[1] else {})

    @cached_property
    def _smooth(self) -> Array:
        """(n, s) log ms of every source as the features, the costs and the other sources tell it: without its own noise."""
        logs = np.log(self._sources)
        scaled = _unit(logs)
        design = np.c_[_unit(self.features), _unit(np.log(self.costs)), scaled]
        gram, products = design.T @ design + np.eye(design.shape[1]), design.T @ scaled
        smooth = np.empty_like(logs)
        for source in range(logs.shape[1]):
            others = np.delete(np.arange(len(gram)), len(gram) - logs.shape[1] + source)
            smooth[:, source] = design[:, others] @ np.linalg.solve(gram[np.ix_(others, others)], products[others, source])
        return smooth * logs.std(0) + logs.mean(0)

    @cached_property
    def _alike_parts(self) -> dict[str, Array]:
        """Every source by itself, smoothed half-way as far as the others know it, so that it can have a weight of its own."""
        logs = np.log(self._sources)
        share = np.minimum(self._smooth.var(0) / logs.var(0), 1.0) / 2
        parts = {name: part for name, part in self._log_parts.items() if name in ("features", "costs")}
        return _one_by_one(_unit((1 - share) * logs + share * self._smooth)) | parts

    @cached_property
    def _sum_parts(self) -> dict[str, Array]:
        """The same for latency in ms: here the source latencies and costs enter as they add up."""
        parts = _one_by_one(np.exp(self._smooth) / self._sources.std(0)) | {"features": self._scaled_features}
        return parts | ({"costs": _relative(self.costs)} if self.costs.shape[1] else {})

    @cached_property
    def _radial(self) -> Array:
        """Where items lie for the radial kernel, scaled to its unit length."""
        leading = self._log_parts.get("sources", np.empty((len(self), 0)))[:, :2]
        space = np.c_[self._scaled_features, self._log_parts.get("shared", leading[:, :0]), leading]
        return space / max(np.sqrt(space.var(0).sum()), 1e-9)


@dataclass(frozen=True)
class Prediction:
    """For every item, in ms: the expected latency, and bounds each of which holds with the confidence asked for."""

    mean_ms: Array
    low_ms: Array
    high_ms: Array
    extrapolated: NDArray[np.bool_]  # a feature or cost lies outside what was measured: treat as unknown


@dataclass(frozen=True)
class Regressor:
    """A fitted device. `weights` is the share of each model: log, sum, alike, costs. Never stored: fit it again."""

    log_mean: Array = field(repr=False)
    log_std: Array = field(repr=False)
    extrapolated: NDArray[np.bool_] = field(repr=False)
    weights: dict[str, float]
    loo_error: float  # mean relative error over the measurements, each predicted from the others
    calibration: float  # factor on log_std that makes the left-out measurements as surprising as they should be
    freedom: float  # degrees of freedom of the bounds' Student distribution: a third of the measurements covers best

    def predict(self, confidence: float = 0.95) -> Prediction:
        from scipy.stats import t

        if not 0.5 <= confidence < 1:
            raise RequestError(f"confidence {confidence}: expected 0.5 <= confidence < 1, such as 0.95")
        # far outside what was measured a process knows nothing: more than a factor of MOST_OFF either way says no more
        reach = np.minimum(t.ppf(confidence, self.freedom) * self.calibration * self.log_std, np.log(MOST_OFF))
        mean = np.exp(self.log_mean)
        return Prediction(mean, mean * np.exp(-reach), mean * np.exp(reach), self.extrapolated)


def choose(items: Items, count: int, among: Sequence[int] | None = None) -> NDArray[np.intp]:
    """Which `count` rows to measure; uses no measurement of the target. Deterministic.

    Greedy: each next row takes most from the expected variance over all items under the prior kernels (I-optimal).
    Largest variance first (D-optimal) picks freaks at the edges: on held-out devices of nb201, fbnet and ofa_mbv3
    its error was 5 to 15 % larger, and in the sources' space alone no smaller than a random choice's. Without the kernel
    of each source by itself it was the same from 20 networks and 2 % larger from 10. The radial kernel stands for what the
    sources do not span, so it counts the more the fewer there are: without it the error on blocks that two devices know
    was 8 % larger, and with its whole weight 6 % larger on networks that 25 know.
    """
    allowed = np.arange(len(items)) if among is None else np.unique(np.asarray(among, int))
    if not 1 <= count <= len(allowed):
        raise RequestError(f"choose: {count} items asked for, expected 1 to {len(allowed)} (the items there are)")
    beyond = np.sqrt(3 / (1 + items._sources.shape[1])) * _radial_part(items._radial)
    kernels = items._log_parts | items._alike_parts | {"radial": beyond}
    parts = [np.exp(PRIOR[name.split()[0]] / 2) * part for name, part in kernels.items()]
    space = np.column_stack([np.ones(len(items)), *parts])
    prior = np.r_[OFFSET, np.ones(space.shape[1] - 1)]
    candidates = space[allowed]
    reach = candidates * prior  # covariance of each candidate with every weight
    spill = reach @ (space.T @ space / len(space))
    variance = (reach * candidates).sum(1) + np.exp(NOISE) / (items._spread or 0.1)
    chosen: list[int] = []
    for _ in range(count):
        gain = (spill * reach).sum(1) / variance
        gain[chosen] = -1
        best = int(gain.argmax())
        chosen.append(best)
        taken = candidates @ reach[best] / variance[best]
        reach, spill = reach - np.outer(taken, reach[best]), spill - np.outer(taken, spill[best])
        variance = variance - taken**2 * variance[best]
    return allowed[chosen]


def fit(items: Items, rows: Sequence[int], latency_ms: ArrayLike) -> Regressor:
    """Fit a device from `latency_ms` (m,) measured on the items `rows` (m,). The more items are given, the better
    the sources are summed up; 15,000 items and 20 to 100 measurements take about a second."""
    rows, latency = np.asarray(rows), np.asarray(latency_ms, float)
    if rows.ndim != 1 or rows.shape != latency.shape or len(rows) < 3:
        raise RequestError(f"fit: {rows.shape} rows and {latency.shape} latencies, expected as many of each and at least 3")
    if rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= len(items):
        raise RequestError(f"fit: rows must be indices 0..{len(items) - 1}, found {rows.min()}..{rows.max()}")
    _refuse("latency_ms", latency[:, None], ~((latency > 0) & np.isfinite(latency))[:, None], "ms > 0")

    log_latency = np.log(latency)
    spread = items._spread or max(float(log_latency.var()), 1e-4)
    guess = _rough_guess(items, rows, log_latency)
    one = np.ones((len(items), 1))
    costs = {name: part for name, part in items._log_parts.items() if name == "costs"}
    # a constant overhead in ms is a share of latency that falls as latency grows: hence 1/guess as an input
    relative = {name: part / guess[:, None] for name, part in ({"shared": one} | items._sum_parts).items()}
    scale = float(np.exp(log_latency.mean()))
    sums = _Process.fit(relative, items._radial, rows, latency / scale / guess[rows], spread)
    zero = np.zeros(len(items))
    models = {
        "log": (_Process.fit(items._log_parts, items._radial, rows, log_latency, spread), zero, False),
        "sum": (sums, np.log(scale * guess), True),
    }
    if items._sources.shape[1]:
        models["alike"] = (_Process.fit(items._alike_parts, items._radial, rows, log_latency, spread), zero, False)
    if costs:
        models["costs"] = (_Process.fit(costs, None, rows, log_latency, spread), zero, False)
    left_out, densities, means, variances = [], [], [], []
    for process, offset, is_ratio in models.values():
        loo_mean, loo_variance = process.leave_one_out()
        # the Jacobian of latency / guess makes the densities comparable: all are of log latency
        jacobian = np.log(process.target) if is_ratio else 0.0
        surprise = (process.target - loo_mean) ** 2 / loo_variance
        # Student density with the tail of the noise: one outlier must not decide between models
        densities.append((-0.5 * np.log(loo_variance) - (TAIL + 1) / 2 * np.log1p(surprise / TAIL) + jacobian).sum())
        mean, variance = process.predict()
        if is_ratio:
            loo_mean, loo_variance = _log_of_ratio(loo_mean, loo_variance)
            mean, variance = _log_of_ratio(mean, variance)
        left_out.append((loo_mean + offset[rows], loo_variance))
        means.append(mean + offset)
        variances.append(variance)
    # of few noisy readings nearly any line looks as good as the rest: without evidence, trust the transfer
    prior = np.log([0.1 if name == "costs" else 0.3 for name in models])
    share = _shares(prior + EVIDENCE * np.array(densities))
    mean, variance = _mixture(share, np.array(means), np.array(variances))
    loo_mean, loo_variance = _mixture(share, *(np.array(part) for part in zip(*left_out, strict=True)))
    surprise = np.minimum((log_latency - loo_mean) ** 2 / loo_variance, 9.0)
    far = np.log(MOST_OFF)
    return Regressor(
        log_mean=np.clip(mean, log_latency.min() - far, log_latency.max() + far),
        log_std=np.sqrt(variance),
        extrapolated=_outside(items.features, rows) | _outside(items.costs, rows),
        weights=dict(zip(models, share.round(4).tolist(), strict=True)),
        loo_error=float(np.abs(np.expm1(loo_mean - log_latency)).mean()),
        calibration=max(1.0, float(np.sqrt((surprise.sum() + 10) / (len(rows) + 10)))),
        freedom=len(rows) / 3,
    )


@dataclass(frozen=True)
class _Process:
    """A Gaussian process over all items, conditioned on some: target (m,), cross (n, m), prior variance (n,)."""

    target: Array
    centre: float
    cross: Array
    variance: Array
    inverse: Array  # of the covariance of the measurements, with their noise
    noise: float

    @classmethod
    def fit(cls, parts: dict[str, Array], radial: Array | None, rows: NDArray[np.intp], target: Array, spread: float) -> _Process:
        from scipy.optimize import minimize

        names = [name.split()[0] for name in parts] + ["radial"] * (radial is not None)
        grams = [part[rows] @ part[rows].T for part in parts.values()]
        if radial is not None:
            near = _nearness(radial, rows)
            grams.append(near[rows])
        count = len(rows)
        centre = float(np.median(target))
        residual = target - centre
        mean = np.array([*(PRIOR[name] + np.log(spread) for name in names), NOISE])
        strays = np.array([PRIOR_SPREAD[name] for name in (*names, "noise")])
        gram = np.stack([*grams, np.eye(count)])
        offset = OFFSET * spread

        def objective(theta: Array) -> tuple[float, Array]:
            weight = np.exp(theta)
            covariance = np.tensordot(weight, gram, 1) + offset + 1e-9 * spread * np.eye(count)
            inverse = np.linalg.inv(covariance)
            alpha = inverse @ residual
            far = (theta - mean) / strays
            value = 0.5 * (residual @ alpha + np.linalg.slogdet(covariance)[1] + far @ far)
            slope = np.tensordot(gram, inverse - np.outer(alpha, alpha), 2) * weight / 2 + far / strays
            return value, slope

        # a line search that strays past this meets a covariance that is singular in floating point
        bounds = list(zip(mean - 4 * strays, mean + 4 * strays, strict=True))
        theta, stretch = mean, np.ones(count)
        for _ in range(3):  # expectation-maximisation for Student noise: each reading gets its own noise
            gram[-1] = np.diag(stretch)
            theta = minimize(objective, theta, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 60}).x
            weight = np.exp(theta)
            covariance = np.tensordot(weight, gram, 1) + offset + 1e-9 * spread * np.eye(count)
            inverse = np.linalg.inv(covariance)
            own = weight[-1] * stretch
            error = own * (inverse @ residual)
            doubt = own - own**2 * np.diag(inverse)
            stretch = (TAIL + (error**2 + doubt) / weight[-1]) / (TAIL + 1)
        space = np.column_stack([np.sqrt(w) * part for w, part in zip(weight, parts.values(), strict=False)])
        cross, variance = offset + space @ space[rows].T, offset + (space**2).sum(1)
        if radial is not None:
            cross, variance = cross + weight[-2] * near, variance + weight[-2]
        return cls(target, centre, cross, variance, inverse, float(weight[-1]))

    def predict(self) -> tuple[Array, Array]:
        reach = self.cross @ self.inverse
        mean = self.centre + reach @ (self.target - self.centre)
        return mean, np.maximum(self.variance - (reach * self.cross).sum(1), 0) + self.noise

    def leave_one_out(self) -> tuple[Array, Array]:
        """Mean and variance of each measurement given the others (Rasmussen and Williams, eq. 5.12)."""
        precision = np.diag(self.inverse)
        return self.target - self.inverse @ (self.target - self.centre) / precision, 1 / precision


def _nearness(radial: Array, rows: NDArray[np.intp]) -> Array:
    """(n, m) radial kernel between all items and those of `rows`."""
    near = radial[rows]
    apart = (radial**2).sum(1)[:, None] + (near**2).sum(1) - 2 * radial @ near.T
    return np.exp(-np.maximum(apart, 0))


def _radial_part(radial: Array, count: int = 150) -> Array:
    """(n, count) columns whose products are nearly the radial kernel: Nystrom's approximation, from rows evenly apart."""
    rows = np.unique(np.linspace(0, len(radial) - 1, count).astype(int))
    near = _nearness(radial, rows)
    size, turn = np.linalg.eigh(near[rows])
    return near @ (turn / np.sqrt(np.maximum(size, 1e-6)))


def _rough_guess(items: Items, rows: NDArray[np.intp], log_latency: Array) -> Array:
    """(n,) latency by a line in the main source and the costs, as a factor on the measurements' mean."""
    inputs = [items._log_parts[name] for name in ("shared", "costs") if name in items._log_parts]
    space = np.concatenate(inputs or [np.zeros((len(items), 1))], 1)
    space = space - space[rows].mean(0)
    centred = log_latency - log_latency.mean()
    slope = np.linalg.solve(space[rows].T @ space[rows] + 0.3 * np.eye(space.shape[1]), space[rows].T @ centred)
    return np.exp(np.clip(space @ slope, centred.min() - 0.3, centred.max() + 0.3))


def _shares(log_weights: Array) -> Array:
    weights: Array = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def _mixture(share: Array, means: Array, variances: Array) -> tuple[Array, Array]:
    """Mean and variance of normals mixed by `share` (k,); means and variances are (k, n)."""
    mean = share @ means
    return mean, share @ (variances + (means - mean) ** 2)


def _log_of_ratio(mean: Array, variance: Array) -> tuple[Array, Array]:
    """A normal ratio as a log-normal one, to first order; a ratio near or below zero is one the model cannot mean."""
    mean = np.maximum(mean, 0.05)
    return np.log(mean), variance / mean**2


def _source_parts(sources: Array) -> dict[str, Array]:
    """What the sources share (first principal component) and where they differ (the others), on one scale."""
    if not sources.shape[1]:
        return {}
    u, size, _ = np.linalg.svd(sources - sources.mean(0), full_matrices=False)
    scores = u * (size / max(u[:, 0].std() * size[0], 1e-12))
    return {"shared": scores[:, :1]} | ({"sources": scores[:, 1:]} if scores.shape[1] > 1 else {})


def _fill(design: Array, column: Array) -> Array:
    """A source's missing latencies by ridge regression on the others, relative error."""
    known = ~np.isnan(column)
    middle = np.median(column[known])
    weight = (middle / np.maximum(column[known], 0.2 * middle))[:, None]
    left = design[known] * weight
    penalty = 0.3 * np.eye(design.shape[1])
    slope = np.linalg.solve(left.T @ left + penalty, left.T @ (column[known] * weight[:, 0]))
    return np.where(known, column, np.clip(design @ slope, column[known].min() / 2, column[known].max() * 2))


def _one_by_one(columns: Array) -> dict[str, Array]:
    return {f"alike {number}": column[:, None] for number, column in enumerate(columns.T)}


def _unit(values: Array) -> Array:
    """Columns that vary, centred, each of unit variance."""
    varies = values[:, values.std(0) > 1e-9]
    return (varies - varies.mean(0)) / varies.std(0)


def _standard(values: Array) -> Array:
    """Columns that vary, centred, each of unit variance over sqrt(number of columns)."""
    scaled = _unit(values)
    return scaled / np.sqrt(max(scaled.shape[1], 1))


def _relative(values: Array) -> Array:
    return values / values.mean(0)


def _outside(values: Array, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Rows with a value beyond all measured ones by more than 1 % of their range."""
    low, high = values[rows].min(0), values[rows].max(0)
    slack = 0.01 * (high - low) + 1e-9 * np.abs(high)
    return ((values < low - slack) | (values > high + slack)).any(1)


def _matrix(name: str, values: ArrayLike, count: int | None = None) -> Array:
    matrix = np.asarray(values, float)
    if matrix.ndim != 2 or not len(matrix) or count not in (None, len(matrix)):
        raise RequestError(f"{name}: shape {matrix.shape}, expected ({count or 'n'}, columns), one row an item")
    return matrix


def _refuse(name: str, values: Array, wrong: NDArray[np.bool_], expected: str) -> None:
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise RequestError(f"{name}: row {row}, column {column} is {values[row, column]}, expected {expected}")
