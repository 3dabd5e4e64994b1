"""How every device is measured: interleaved rounds over all models, every sample kept.

A shared machine changes its speed by tens of percent within milliseconds. Timing one model to the end before the next turns
that into a difference between models; visiting all of them in every round, in another order each time, turns it into one
between visits, which `profilers.estimate` takes out.
"""

import logging
import random
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from profilers.device import Device
from profilers.estimate import Visit, leveled, summarize_all

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """An ONNX model to time: `key` is its name in tables and messages, `onnx` its bytes."""

    key: str
    onnx: bytes


@dataclass(frozen=True)
class Plan:
    """What to run: a device executes it round by round, whether here or in a runner on a phone."""

    rounds: int = 30
    runs: int = 4  # timed runs a visit, at least
    visit_ms: float = 4.0  # and as many more as fit into this time
    max_runs: int = 20
    anchors: int = 3  # models visited again and again within every round: sessions compare by them, and a phone that gets hot
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
    taken: list[Visit] = []
    last_round = 0
    source = profiler.visits(device, models, plan)
    try:
        for visit in source:
            if visit.round != last_round:
                last_round = visit.round
                if time.monotonic() - began >= stop.seconds:
                    return f"the {stop.seconds:g} s are spent"
                if last_round >= stop.min_rounds and last_round % 4 == 0 and _narrow(taken, stop.halfwidth):
                    return f"every interval is within {stop.halfwidth:.1%}"
            if min(visit.ns) <= 0:
                log.warning("the device's clock went backwards during %s; that visit is not counted", visit.key)
                continue
            taken.append(visit)
            yield visit
        return f"all {plan.rounds} rounds are done"
    finally:
        close = getattr(source, "close", None)
        if close is not None:
            close()


def _narrow(taken: Sequence[Visit], halfwidth: float) -> bool:
    return all(found.halfwidth <= halfwidth for found in summarize_all(leveled(taken)).values())
