"""Decides which visits of a phone count: those made while it was cool, at full clock and as fast as before."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from profilers._android.facts import Thermal
from profilers.estimate import Visit


@dataclass(frozen=True)
class Reading:
    """A visit as the runner reports it."""

    number: int  # in the plan
    visit: Visit
    khz: tuple[int, int]  # clock of its core before and after; -1 where it cannot be read


@dataclass(frozen=True)
class Limits:
    """When a phone counts as spoilt, and how long it may take to recover."""

    status: int = 1  # Android's thermal status: 1 is light throttling
    clock: float = 0.95  # of the highest clock seen in this run
    drift: float | None = 0.05  # slowdown of the anchors against their first visits; None looks at heat and clock only
    skin_c: float = 1.0  # degrees above the start at which it counts as cool again
    cool_s: float = 900.0  # longest wait in one go
    repeats: int = 3  # a segment spoilt this often, by a cool phone, shows its new normal state


@dataclass
class Gate:
    """Judges segment after segment of a run; remembers what the phone was like when it was well."""

    limits: Limits
    anchors: Sequence[str]
    skin_start_c: float | None = None
    highest_khz: int = 0
    first_ms: dict[str, list[float]] = field(default_factory=dict)

    def complaint(self, thermal: Thermal, segment: Sequence[Reading]) -> str | None:
        """Why the segment does not count, in words; None where it does, and its anchors then serve as reference."""
        hot = self.heat(thermal)
        if hot:
            return hot
        clocks = [reading.khz[1] for reading in segment if reading.khz[1] > 0]
        if clocks:
            self.highest_khz = max(self.highest_khz, *clocks)
            clock = statistics.median(clocks)
            if clock < self.limits.clock * self.highest_khz:
                return f"clock at {clock / 1e6:.2f} of {self.highest_khz / 1e6:.2f} GHz"
        slowdown = self._slowdown(segment)
        if slowdown is not None and self.limits.drift is not None and slowdown > 1 + self.limits.drift:
            return f"anchors {100 * (slowdown - 1):.0f} % slower than at the start"
        self._remember(segment)
        return None

    def heat(self, thermal: Thermal) -> str | None:
        if thermal.status is not None and thermal.status >= self.limits.status:
            return f"thermal status {thermal.status}"
        return "clocks throttled by heat" if thermal.throttled else None

    def cool(self, thermal: Thermal) -> bool:
        """Whether to go on after a pause."""
        warm = thermal.skin_c is not None and self.skin_start_c is not None
        return self.heat(thermal) is None and not (warm and thermal.skin_c > self.skin_start_c + self.limits.skin_c)  # type: ignore[operator]

    def accept_as_normal(self) -> None:
        """Take the phone as it is now: it stays slower without being hot, as in another power mode."""
        self.highest_khz = 0
        self.first_ms = {}

    def _anchor_times_ms(self, segment: Sequence[Reading]) -> Mapping[str, list[float]]:
        times: dict[str, list[float]] = {}
        for reading in segment:
            if reading.visit.key in self.anchors:
                times.setdefault(reading.visit.key, []).append(min(reading.visit.ns) / 1e6)
        return times

    def _slowdown(self, segment: Sequence[Reading]) -> float | None:
        """Median over the segment's anchor visits of time now over time at first; None below three of them."""
        ratios = [
            time / statistics.median(self.first_ms[key])
            for key, times in self._anchor_times_ms(segment).items()
            if len(self.first_ms.get(key, ())) >= 3
            for time in times
        ]
        return statistics.median(ratios) if len(ratios) >= 3 else None

    def _remember(self, segment: Sequence[Reading]) -> None:
        for key, times in self._anchor_times_ms(segment).items():
            known = self.first_ms.setdefault(key, [])
            known.extend(times[: max(0, 9 - len(known))])
