"""What visits say of a model's latency on a device that changes its speed while they are taken.

A shared machine runs half as fast from one moment to the next, for milliseconds or for minutes. Whatever it is, visits taken one
after the other share it: how slow the device was during a visit is what the visits of other models around it say, each against
its own usual time, which in turn is the median over the rounds of its visits with that slowness divided out. A few turns of the
two settle both. `python -m benchmarks.estimator` holds this against other estimates.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

NEAR = 3  # visits before and behind one that tell how slow the device was meanwhile
TURNS = 16  # of estimating slowness and usual times from each other
SETTLED = 1.15  # slower than its fastest fifth by more than this, the device was slowed down by something else
REJECTED = 2.0  # slowness beyond which a visit does not count where others do: models do not all slow down alike
FEWEST = 6  # rounds that give a median an interval


@dataclass(frozen=True)
class Visit:
    """One model, run a few times in a row within one round."""

    key: str
    round: int
    ns: tuple[int, ...]  # nanoseconds of each run, in the order they were taken
    slowness: float = 1.0  # of the device meanwhile, as `leveled` finds it; nan where nothing tells


@dataclass(frozen=True)
class Measurement:
    """What the visits of one model say. All times in milliseconds of a single run."""

    latency_ms: float  # median over rounds of the lower quartile of each visit, each over the slowness of the device
    low_ms: float  # and its 95 % confidence interval, from the order statistics of the rounds
    high_ms: float
    median_ms: float  # of all runs
    p90_ms: float  # of all runs
    n: int  # runs
    rounds: int

    @property
    def halfwidth(self) -> float:
        """Half the confidence interval, relative to the estimate; infinite where rounds are too few to know."""
        return (self.high_ms - self.low_ms) / 2 / self.latency_ms

    @property
    def interval_ms(self) -> tuple[float, float] | tuple[None, None]:
        """low_ms and high_ms, for files that have no word for infinity."""
        return (self.low_ms, self.high_ms) if math.isfinite(self.high_ms) else (None, None)


def summarize(visits: Iterable[Visit]) -> Measurement:
    """The measurement of one model from its visits, at slowness 1.0 of the device."""
    every = list(visits)
    if not every:
        raise ValueError("a measurement needs at least one run")
    told = [visit for visit in every if not math.isnan(visit.slowness)] or [replace(visit, slowness=1.0) for visit in every]
    calm = [visit for visit in told if visit.slowness <= REJECTED]
    quiet: dict[int, list[float]] = {}
    for visit in calm if len({visit.round for visit in calm}) >= FEWEST else told:
        quiet.setdefault(visit.round, []).append(_quiet(visit.ns) / 1e6 / visit.slowness)
    levels = sorted(statistics.median(values) for values in quiet.values())
    low, high = _median_interval(levels)
    runs = sorted(ns / 1e6 for visit in every for ns in visit.ns)
    return Measurement(
        latency_ms=statistics.median(levels),
        low_ms=low,
        high_ms=high,
        median_ms=statistics.median(runs),
        p90_ms=runs[min(len(runs) - 1, math.ceil(0.9 * len(runs)) - 1)],
        n=len(runs),
        rounds=len(levels),
    )


def summarize_all(visits: Iterable[Visit]) -> dict[str, Measurement]:
    """The measurement of each model, by key."""
    return {key: summarize(taken) for key, taken in by_key(visits).items()}


def by_key(visits: Iterable[Visit]) -> dict[str, list[Visit]]:
    found: dict[str, list[Visit]] = {}
    for visit in visits:
        found.setdefault(visit.key, []).append(visit)
    return found


def _quiet(ns: Sequence[int]) -> float:
    """The lower quartile of a visit's runs: below interruptions, and not deeper for the visits with more runs."""
    ordered = sorted(ns)
    return float(ordered[(len(ordered) - 1) // 4])


def scaled(measurement: Measurement, factor: float) -> Measurement:
    """The measurement as it would read on a device `factor` times as slow."""
    times = ("latency_ms", "low_ms", "high_ms", "median_ms", "p90_ms")
    return replace(measurement, **{name: factor * getattr(measurement, name) for name in times})


def _median_interval(ordered: Sequence[float]) -> tuple[float, float]:
    """A distribution-free 95 % interval of the median (binomial order statistics); 0 to inf below FEWEST values."""
    n = len(ordered)
    if n < FEWEST:
        return 0.0, math.inf
    rank = 0
    tail = 0.5**n
    while tail + math.comb(n, rank + 1) * 0.5**n <= 0.025:
        rank += 1
        tail += math.comb(n, rank) * 0.5**n
    return ordered[rank], ordered[n - 1 - rank]


def leveled(visits: Sequence[Visit]) -> list[Visit]:
    """The visits of one session, in the order they were taken, each with how slow the device was; 1.0 is its own speed."""
    if not visits:
        return []
    slowness = _slowness(visits)
    own = own_speed(slowness)
    return [Visit(visit.key, visit.round, visit.ns, slow / own) for visit, slow in zip(visits, slowness, strict=True)]


def leveled_sessions(sessions: Sequence[Sequence[Visit]]) -> list[Visit]:
    """The visits of several sessions, where 1.0 is the device's own speed in the first one: nothing measured later moves that.

    The first is the first that was not killed early, before FEWEST rounds. The others are brought to it by the models that both
    measured, its anchors at least; in a session without any of them nothing tells how slow the device was: nan.
    """
    each = [leveled(session) for session in sessions if session]
    if not each:
        return []
    rounds = [len({visit.round for visit in visits}) for visits in each]
    first = next((place for place, count in enumerate(rounds) if count >= FEWEST), rounds.index(max(rounds)))
    usual = summarize_all(each[first])
    found: list[Visit] = []
    for place, visits in enumerate(each):
        if place != first:
            both = summarize_all(visit for visit in visits if visit.key in usual)
            ratios = [measured.latency_ms / usual[key].latency_ms for key, measured in both.items()]
            apart = statistics.median(ratios) if ratios else math.nan
            visits = [replace(visit, slowness=visit.slowness * apart) for visit in visits]
        found += visits
    return found


def own_speed(slowness: Sequence[float]) -> float:
    """The slowness of a device that nothing slows down: the median, without what is far slower than its fastest fifth.

    A machine that runs at two speeds, 1.4 apart, for a third of the time at the fast one, was so brought to the same within 1 %
    in two sessions; its fastest third as the measure would have put them 31 % apart.
    """
    ordered = sorted(slowness)
    fastest = ordered[(len(ordered) - 1) // 5]
    return statistics.median_low(slow for slow in ordered if slow <= SETTLED * fastest)


def repeatability(visits: Iterable[Visit]) -> float:
    """How far two halves of the rounds disagree: median over the models of the relative difference, even against odd rounds."""
    differences = []
    for taken in by_key(visits).values():
        halves = [[visit for visit in taken if visit.round % 2 == half] for half in (0, 1)]
        if all(halves):
            even, odd = (summarize(half).latency_ms for half in halves)
            differences.append(abs(even - odd) / ((even + odd) / 2))
    return statistics.median(differences) if differences else math.inf


def _slowness(visits: Sequence[Visit]) -> list[float]:
    """How slow the device was during each visit, up to a common factor."""
    import numpy as np

    names = {key: number for number, key in enumerate(dict.fromkeys(visit.key for visit in visits))}
    model = np.array([names[visit.key] for visit in visits])
    taken = np.log([_quiet(visit.ns) for visit in visits])
    counts = np.bincount(model)
    begins = np.cumsum(counts) - counts  # of each model's visits, in the order of the models
    lower, upper = begins + (counts - 1) // 2, begins + counts // 2
    near = np.arange(len(visits))[:, None] + [step for step in range(-NEAR, NEAR + 1) if step]
    inside = (near >= 0) & (near < len(visits))
    near = near.clip(0, len(visits) - 1)
    other = inside & (model[near] != model[:, None])
    alone = ~other.any(axis=1)  # only one model is measured: nothing tells
    other[alone, 0] = True
    slow = np.zeros(len(visits))
    for _ in range(TURNS):
        steady = taken - slow
        ranked = steady[np.lexsort((steady, model))]
        usual = (ranked[lower] + ranked[upper]) / 2  # the median of each model's visits
        beside = np.where(other, (taken - usual[model])[near], np.nan)
        # half-way: two models alone tell each other's slowness, and would only swap what is wrong with their usual times
        slow = (slow + np.where(alone, 0.0, np.nanmedian(beside, axis=1))) / 2
    return [float(value) for value in np.exp(slow)]
