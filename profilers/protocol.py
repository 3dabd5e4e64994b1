"""How every device is measured: interleaved rounds over all models, every sample kept, statistics that repeat.

A shared machine changes its speed by tens of percent within seconds. Timing one model to the end before the next
turns that into a difference between models; visiting all of them in every round turns it into a difference between
rounds, which the estimate then looks through: the lower quartile of each visit, and the median of those over rounds.
"""

import dataclasses
import logging
import math
import random
import statistics
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from profilers.device import Device

log = logging.getLogger(__name__)

WARM = 1.05  # slowness of a leading round beyond which it still warms up
LIMIT = 1.25  # a round's slowness beyond which it is rejected instead of corrected
FEWEST = 6  # rounds that give a median an interval


@dataclass(frozen=True)
class Model:
    """An ONNX model to time: `key` is its name in tables and messages, `onnx` its bytes."""

    key: str
    onnx: bytes


@dataclass(frozen=True)
class Visit:
    """One model, run a few times in a row within one round."""

    key: str
    round: int
    ns: tuple[int, ...]  # nanoseconds of each run, in the order they were taken


@dataclass(frozen=True)
class Plan:
    """What to run: a device executes it round by round, whether here or in a runner on a phone."""

    rounds: int = 30
    runs: int = 4  # timed runs a visit, at least
    visit_ms: float = 4.0  # and as many more as fit into this time
    max_runs: int = 20
    anchors: int = 3  # models visited again and again within every round, to see the machine drift
    same_anchors: tuple[str, ...] = ()  # which ones, to compare sessions by; spread over the models where none are named
    anchor_every: int = 12  # visits between two anchors
    seed: int = 0

    def anchor_keys(self, keys: Sequence[str]) -> tuple[str, ...]:
        """The same few models in every round: those named, or some spread evenly over the order given."""
        if self.same_anchors:
            return self.same_anchors
        count = min(self.anchors, len(keys))
        return tuple(keys[(2 * i + 1) * len(keys) // (2 * count)] for i in range(count))

    def order(self, keys: Sequence[str], round: int) -> list[str]:
        """The visits of one round: every model once in a random order, and the anchors in between."""
        rng = random.Random(f"{self.seed}/{round}")
        shuffled = rng.sample(list(keys), len(keys))
        anchors = self.anchor_keys(keys)
        order: list[str] = []
        for place, key in enumerate(shuffled):
            if anchors and len(keys) > self.anchor_every and place % self.anchor_every == 0:
                order.append(anchors[place // self.anchor_every % len(anchors)])
            order.append(key)
        return order


class Profiler(Protocol):
    """What each file of `profilers/` offers as PROFILER."""

    def environment(self, device: Device) -> dict[str, str | int | float | None]:
        """What decides the numbers: processor, runtime and version, options, threads. Refuses an absent device."""

    def conditions(self, device: Device) -> dict[str, str | int | float | None]:
        """What may differ from session to session and is noted with each: load, temperature, battery."""

    def visits(self, device: Device, models: Sequence[Model], plan: Plan) -> Iterator[Visit]:
        """Run the plan; closing the iterator stops the device. Raises ModelRejected for a model it cannot run."""

    def run(self, device: Device, model: Model, inputs: Mapping[str, object]) -> list[object]:
        """The model's outputs (arrays) for these inputs (arrays of one or more batches of `device.batch`)."""


@dataclass(frozen=True)
class Measurement:
    """What the visits of one model say. All times in milliseconds of a single run."""

    latency_ms: float  # the estimate: median over rounds of the lower quartile of each visit
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


def summarize(visits: Iterable[Visit], drift: Mapping[int, float] | None = None) -> Measurement:
    """The measurement of one model from its visits; `drift` holds the slowness of each round (1.0: as usual)."""
    quiet: dict[int, list[float]] = {}
    runs: list[float] = []
    for visit in visits:
        slowness = drift.get(visit.round, 1.0) if drift else 1.0
        quiet.setdefault(visit.round, []).append(_quiet(visit.ns) / 1e6 / slowness)
        runs.extend(ns / 1e6 for ns in visit.ns)
    if not runs:
        raise ValueError("a measurement needs at least one run")
    levels = sorted(statistics.median(values) for values in quiet.values())
    low, high = _median_interval(levels)
    runs.sort()
    return Measurement(
        latency_ms=statistics.median(levels),
        low_ms=low,
        high_ms=high,
        median_ms=statistics.median(runs),
        p90_ms=runs[min(len(runs) - 1, math.ceil(0.9 * len(runs)) - 1)],
        n=len(runs),
        rounds=len(levels),
    )


def _quiet(ns: Sequence[int]) -> float:
    """The lower quartile of a visit's runs: below interruptions, and not deeper for the visits with more runs."""
    ordered = sorted(ns)
    return float(ordered[(len(ordered) - 1) // 4])


def scaled(measurement: Measurement, factor: float) -> Measurement:
    """The measurement as it would read on a device `factor` times as slow."""
    times = ("latency_ms", "low_ms", "high_ms", "median_ms", "p90_ms")
    return dataclasses.replace(measurement, **{name: factor * getattr(measurement, name) for name in times})


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


def drift_of_sessions(visits: Iterable[Visit], anchors: Sequence[str], first_rounds: Sequence[int]) -> list[dict[int, float]]:
    """How slow the machine was in each round of each session (which begin with these rounds), by the anchors' times there.

    1.0 is a speed it really ran at: the median of the first session's settled rounds, so that no later session moves what was
    measured before it. Sessions of fewer than FEWEST rounds, which were killed early, share this with those behind them.
    """
    levels: dict[int, dict[str, float]] = {}
    for visit in visits:
        if visit.key in anchors:
            seen = levels.setdefault(visit.round, {})
            seen[visit.key] = min(_quiet(visit.ns), seen.get(visit.key, math.inf))
    starts = sorted({0, *first_rounds})
    spans = zip(starts, [*starts[1:], math.inf], strict=True)
    sessions = [[round for round in sorted(levels) if start <= round < end] for start, end in spans]
    first: list[int] = []  # the rounds of the first session, and of the next ones where it was killed early
    count = 0  # of these sessions
    while len(first) < FEWEST and count < len(sessions):
        first += sessions[count]
        count += 1
    ran = {key for round in first for key in levels[round]}
    # an anchor that ran only while the machine was slow would call that usual
    whole = [round for round in first if len(levels[round]) == len(ran)] or first
    usual = {key: statistics.median(levels[round][key] for round in whole if key in levels[round]) for key in ran}
    found: list[dict[int, float]] = [{} for _ in sessions]
    for drift, session in zip(found, sessions, strict=True):
        for round in session:
            if ratios := [ms / usual[key] for key, ms in levels[round].items() if key in usual]:
                drift[round] = statistics.median(ratios)
    speeds = [drift[round] for drift in found[:count] for round in settled(drift)]
    own = statistics.median_low(speeds) if speeds else 1.0
    return [{round: slowness / own for round, slowness in drift.items()} for drift in found]


def settled(session: Mapping[int, float]) -> set[int]:
    """The rounds of one session that count, of the slowness of each: behind its warm-up, and not slowed down by something else.

    The warm-up is found, not assumed: the leading rounds, at most half of them, whose anchors ran more than WARM slower than in
    the middle round of the second half. The device's own speed is the fastest that lasted, for a third of the others: a round
    more than LIMIT slower is rejected, since models do not all slow down alike; a smaller drift is divided out. Where this
    leaves too few for an interval the FEWEST fastest rounds count.
    """
    rounds = sorted(session)
    half = len(rounds) // 2
    later = statistics.median(session[round] for round in rounds[half:]) if rounds else 1.0
    lead = next((place for place in range(half) if session[rounds[place]] <= WARM * later), half)
    fastest = sorted(rounds[lead:], key=session.__getitem__)
    kept = {round for round in fastest if session[round] <= LIMIT * session[fastest[(len(fastest) - 1) // 3]]}
    return kept if len(kept) >= FEWEST else set(sorted(rounds, key=session.__getitem__)[:FEWEST])


def repeatability(visits: Mapping[str, Sequence[Visit]], drift: Mapping[int, float] | None = None) -> float:
    """How far two halves of the rounds disagree: median over the models of the relative difference, even against odd rounds."""
    differences = []
    for taken in visits.values():
        halves = [[visit for visit in taken if visit.round % 2 == half] for half in (0, 1)]
        if all(halves):
            even, odd = (summarize(half, drift).latency_ms for half in halves)
            differences.append(abs(even - odd) / ((even + odd) / 2))
    return statistics.median(differences) if differences else math.inf


@dataclass(frozen=True)
class Stop:
    """When to stop measuring: every interval narrow enough, the time spent, or the plan at its end."""

    halfwidth: float = 0.02
    seconds: float = 60.0
    min_rounds: int = 8


def measure(profiler: Profiler, device: Device, models: Sequence[Model], plan: Plan, stop: Stop) -> Generator[Visit, None, str]:
    """The visits of a session, handed on as they are taken, until `stop` says enough; always whole rounds. Returns why it ended.

    The caller keeps every visit (a table appends it to its file) and summarizes when the iterator ends.
    """
    began = time.monotonic()
    taken: dict[str, list[Visit]] = {model.key: [] for model in models}
    last_round = 0
    source = profiler.visits(device, models, plan)
    try:
        for visit in source:
            if visit.round != last_round:
                last_round = visit.round
                if time.monotonic() - began >= stop.seconds:
                    return f"the {stop.seconds:.0f} s are spent"
                if last_round >= stop.min_rounds and last_round % 4 == 0 and _narrow(taken, stop.halfwidth):
                    return f"every interval is within {stop.halfwidth:.1%}"
            if min(visit.ns) <= 0:
                log.warning("the device's clock went backwards during %s; that visit is not counted", visit.key)
                continue
            taken[visit.key].append(visit)
            yield visit
        return f"all {plan.rounds} rounds are done"
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()


def _narrow(taken: Mapping[str, Sequence[Visit]], halfwidth: float) -> bool:
    return all(summarize(visits).halfwidth <= halfwidth for visits in taken.values())
