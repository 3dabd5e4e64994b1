"""What a network may cost, of several things at once: which networks keep to all of it, and, where none does, why not."""

import itertools
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

import numpy as np

from dna_deploy import costs
from dna_deploy.errors import NothingFits
from dna_deploy.footprint import file_bytes, footprint
from dna_deploy.milp import Optimum, Program, best
from dna_deploy.ops import Op
from dna_deploy.pick import Front, least_through, pareto_front
from dna_deploy.pins import allowed
from dna_deploy.space import SearchSpace

Array = np.ndarray[Any, np.dtype[Any]]
Choices = tuple[int, ...]
UP = Context(prec=4, rounding=ROUND_CEILING)


@dataclass(frozen=True)
class Limit:
    """The most a network may cost of one thing. Over its blocks costs add up; of a `peak` the largest counts.

    `costs[k]` are those of block k's candidates, `write` turns one into text.
    """

    flag: str
    most: float
    costs: Sequence[Array]
    write: Callable[[float], str]
    peak: bool = False

    @property
    def text(self) -> str:
        return self._said(self.most)

    def of(self, choices: Sequence[int]) -> float:
        """What the network of these candidates costs."""
        parts = [float(cost[index]) for cost, index in zip(self.costs, choices, strict=True)]
        return max(parts) if self.peak else sum(parts)

    def least(self, value: float) -> str:
        """The limit that a network of this cost keeps to, in four digits: not below the cost."""
        return self._said(rounded_up(value))

    def _said(self, value: float) -> str:
        return f"{self.flag}{'' if self.flag.endswith('=') else ' '}{self.write(value)}"


def macs(space: SearchSpace, most: float) -> Limit:
    return _of_ops(space, "--macs", most, lambda op: op.macs, in_millions)


def params(space: SearchSpace, most: float) -> Limit:
    return _of_ops(space, "--params", most, lambda op: op.params, in_millions)


def file_size(space: SearchSpace, most: float) -> Limit:
    limit = _of_ops(space, "--file-size", most, lambda op: footprint(op).file_bytes, in_megabytes)
    return replace(limit, costs=[limit.costs[0] + file_bytes((), space.num_classes), *limit.costs[1:]])


def memory(space: SearchSpace, most: float) -> Limit:
    blocks = [costs.largest(block, lambda op: footprint(op).peak_bytes) for block in space.blocks]
    return Limit("--memory", most, blocks, in_megabytes, peak=True)


def _of_ops(space: SearchSpace, flag: str, most: float, cost: Callable[[Op], float], write: Callable[[float], str]) -> Limit:
    return Limit(flag, most, [costs.sums(block, cost) for block in space.blocks], write)


def in_millions(value: float) -> str:
    return f"{value / 1e6:.12g}M"


def in_megabytes(value: float) -> str:
    return f"{value / 1e6:.12g}MB"


def in_milliseconds(value: float) -> str:
    return f"{value:.12g}ms"


def rounded_up(value: float) -> float:
    """To four digits, so that what is named as the least is enough when it is asked for."""
    return float(UP.plus(Decimal(value)))


@dataclass(frozen=True)
class Wanted:
    """What is asked of the network besides its latency; None or empty: not asked."""

    macs: float | None = None
    params: float | None = None
    file_bytes: float | None = None
    memory_bytes: float | None = None
    pins: tuple[str, ...] = ()
    bans: tuple[str, ...] = ()
    top: int = 1  # networks to name
    diverse: bool = False  # each of them differs from better ones in at least half of the searched blocks

    def problem(self, space: SearchSpace, latencies: Sequence["Limit"]) -> "Problem":
        asked = ((macs, self.macs), (params, self.params), (file_size, self.file_bytes), (memory, self.memory_bytes))
        own = [make(space, most) for make, most in asked if most is not None]
        return Problem(space, [*latencies, *own], allowed(space, self.pins, self.bans), " ".join(self._narrowed))

    def apart(self, space: SearchSpace) -> int:
        """In how many blocks networks have to differ."""
        return max(1, (sum(block.size > 1 for block in space.blocks) + 1) // 2) if self.diverse else 1

    @property
    def texts(self) -> list[str]:
        """What narrows the choice, as flags, whatever the order it was asked in."""
        millions = [("--macs", self.macs), ("--params", self.params)]
        megabytes = [("--file-size", self.file_bytes), ("--memory", self.memory_bytes)]
        return [
            *(f"{flag} {in_millions(value)}" for flag, value in millions if value is not None),
            *(f"{flag} {in_megabytes(value)}" for flag, value in megabytes if value is not None),
            *self._narrowed,
        ]

    @property
    def _narrowed(self) -> list[str]:
        return [
            *(f"--pin {text}" for text in sorted(set(self.pins))),
            *(f"--ban {text}" for text in sorted(set(self.bans))),
        ]


@dataclass(frozen=True)
class Problem:
    """A space under limits. `allowed[k]` (candidates,) is false where a candidate of block k is out of the question, for the
    pins and bans of `narrowed`.
    """

    space: SearchSpace
    limits: Sequence[Limit]
    allowed: Sequence[Array]
    narrowed: str = ""

    def front(self, scores: Sequence[Array]) -> Front:
        """Scores against the first limit's costs, of all networks that keep to the peaks; other sums are not looked at."""
        kept = self._kept()
        front = pareto_front(*(_at(kept, values) for values in (self._sums[0].costs, scores, costs.links(self.space))))
        choices = [at[front.choices[:, k]] for k, at in enumerate(kept)]
        return Front(front.costs, front.scores, np.stack(choices, axis=1))

    def best(
        self,
        scores: Sequence[Array],
        count: int = 1,
        apart: int = 1,
        better: Collection[Choices] = (),
        excluded: Collection[Choices] = (),
    ) -> list[Optimum]:
        """The best networks that keep to every limit; see `milp.best`."""
        kept = self._kept()
        sums = [np.stack(block, axis=1) for block in zip(*(limit.costs for limit in self._sums), strict=True)]
        scores, sums, links = (_at(kept, values) for values in (scores, sums, costs.links(self.space)))
        program = Program(scores, sums, links, np.array([limit.most for limit in self._sums]))
        found = best(program, count, apart, _places(kept, better), _places(kept, excluded))
        return [replace(one, choices=tuple(int(at[place]) for at, place in zip(kept, one.choices, strict=True))) for one in found]

    def require_feasible(self) -> None:
        """Refuse what no network can keep to, with the least there is of everything and which two limits conflict."""
        least = [self._least(limit) for limit in self.limits]
        narrowed = f" with {self.narrowed}" if self.narrowed else ""
        about = f"no network of {self.space.name} at {self.space.image_size} px{narrowed} fits"
        listed = ", ".join(limit.least(value) for limit, value in zip(self.limits, least, strict=True))
        alone = [limit.text for limit, value in zip(self.limits, least, strict=True) if value > limit.most]
        if alone:
            raise NothingFits(f"{about} {', '.join(alone)}; the least there is, each taken alone: {listed}")
        for one, other in itertools.combinations(self.limits, 2):
            within = self._least_within(one, other)
            if within > other.most:
                raise NothingFits(
                    f"{about}: {one.text} and {other.text} conflict, within the first the least of the other is "
                    f"{other.write(rounded_up(within))}; the least there is, each taken alone: {listed}"
                )
        if len(self.limits) > 2 and not self.best([np.zeros(len(mask)) for mask in self.allowed]):
            asked = ", ".join(limit.text for limit in self.limits)
            raise NothingFits(f"{about} all of {asked}, though any two of them; the least there is, each taken alone: {listed}")

    @property
    def one_sum(self) -> bool:
        """Whether the front alone answers: only one limit is on a sum."""
        return len(self._sums) == 1

    @property
    def _sums(self) -> list[Limit]:
        return [limit for limit in self.limits if not limit.peak]

    def _kept(self, peaks: Sequence[Limit] | None = None) -> list[Array]:
        """The candidates that are allowed and keep to the peaks: the largest is within a limit where each is."""
        masks = [np.array(mask) for mask in self.allowed]
        for limit in [limit for limit in self.limits if limit.peak] if peaks is None else peaks:
            masks = [mask & (cost <= limit.most) for mask, cost in zip(masks, limit.costs, strict=True)]
        return [np.flatnonzero(mask) for mask in masks]

    def _least(self, limit: Limit, peaks: Sequence[Limit] = ()) -> float:
        kept = self._kept(peaks)
        if not all(map(len, kept)):
            return float("inf")
        join = np.maximum if limit.peak else np.add
        return float(least_through(_at(kept, limit.costs), _at(kept, costs.links(self.space)), join)[0].min())

    def _least_within(self, one: Limit, other: Limit) -> float:
        """The least a network can cost of the other that keeps to the one."""
        if one.peak:
            return self._least(other, [one])
        if other.peak:
            peaks = np.unique(np.concatenate(list(other.costs)))
            at = bisect_left(peaks, True, key=lambda most: self._least(one, [replace(other, most=most)]) <= one.most)
            return float(peaks[at]) if at < len(peaks) else float("inf")
        kept = self._kept([])
        front = pareto_front(*(_at(kept, values) for values in (one.costs, other.costs, costs.links(self.space))))
        best_at = front.best_within(one.most)
        return float("inf") if best_at is None else float(front.scores[best_at])


def _places(kept: Sequence[Array], networks: Collection[Choices]) -> list[Choices]:
    """Where the choices of each network stand among the kept ones; -1 where one is not."""
    return [
        tuple(int(np.searchsorted(at, index)) if index in at else -1 for at, index in zip(kept, choices, strict=True))
        for choices in networks
    ]


def _at(kept: Sequence[Array], values: Sequence[Array]) -> list[Array]:
    return [value[at] for value, at in zip(values, kept, strict=True)]
