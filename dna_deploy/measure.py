"""Measure whole networks on a device at the speed its latency table was taken at."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dna_deploy.arch import Architecture
from dna_deploy.files import parse as parse_fields
from dna_deploy.graph import onnx_of
from dna_deploy.ops import Op, parse
from dna_deploy.progress import bar, say
from dna_deploy.table import LatencyTable, anchors_of, has_interval
from profilers import (
    Device,
    DeviceUnavailable,
    Measurement,
    Model,
    Plan,
    Stop,
    Visit,
    by_key,
    find_profiler,
    leveled,
    measure,
    registry,
    scaled,
    summarize_all,
)
from profilers.host import sample

REFERENCES = 5  # networks of the table measured beside others


@dataclass(frozen=True)
class AtTableSpeed:
    """A whole network's measurement, scaled to the speed the device had in the table's sessions."""

    measurement: Measurement
    speed: float  # of the device now; 1.1: 10 % faster than then


@dataclass(frozen=True)
class Latency:
    """What is known of an exported file's speed on a device; all times of one image, at the table's speed where there is one."""

    device: str  # a device of the tables, or "this process": the file as `load` runs it, with its runtime's own defaults
    predicted_ms: float | None  # from the table, before the network was trained
    measured_ms: float
    low_ms: float | None  # None: too few rounds for an interval
    high_ms: float | None
    fp32_ms: float | None  # the same network in fp32, measured in the same rounds; None where the file is fp32 itself
    speed: float | None  # of the device then, relative to the table's sessions
    environment: dict[str, str | int | float | None] | None = None  # of a device that was asked for; else the table's


def device_of(table: LatencyTable) -> Device | None:
    """The device a table was measured on, where it can be measured from here; None for published tables."""
    if table.published or table.header.target not in registry():
        return None
    return parse_fields(Device, table.header.device, f"{table.path}, line 1: device")


def measure_whole(
    table: LatencyTable, models: Sequence[Model], about_ms: float, seconds: float = 20.0
) -> dict[str, AtTableSpeed] | None:
    """Measure whole networks of about `about_ms`, by key; None where the device is not at hand.

    The machine may be faster or slower than when the table was taken. Networks of the table, as large as those to be
    measured, are measured beside them and say by how much: single ops would not, they slow down by more than networks do.
    """
    device = at_hand(table)
    if device is None:
        return None
    references = _references(table, about_ms)
    asked = {model.key for model in models}  # a candidate of the search may be one of the table's networks
    beside = [Model(key, onnx_of(ops_of(key))) for key in references if key not in asked]
    try:
        taken = measure_on(device, [*models, *beside], seconds)
    except DeviceUnavailable as absent:  # gone since
        say(str(absent))
        return None
    speeds = [table.measurements[key].latency_ms / taken[key].latency_ms for key in references]
    speed = statistics.median(speeds) if speeds else 1.0
    return {model.key: AtTableSpeed(scaled(taken[model.key], speed), speed) for model in models}


def at_hand(table: LatencyTable) -> Device | None:
    """The device a table was measured on, where it is here and still what it was then; says why not."""
    device = device_of(table)
    if device is None:
        return None
    try:
        other = table.differs(find_profiler(device).environment(device))
    except DeviceUnavailable as absent:  # a phone that is not attached: what was found without it stands
        say(str(absent))
        return None
    if other:
        say(f"not measured: {table.path} was {other}; give it a table of its own: dna-profile --table FILE")
    return None if other else device


def measure_on(device: Device, models: Sequence[Model], seconds: float = 20.0) -> dict[str, Measurement]:
    """Measure models on a device as fast as it is now, by key."""
    plan, taken = Plan(rounds=24, anchors=0), list[Visit]()
    with bar(f"measuring on {device.name}", plan.rounds * len(models)) as advance:
        for visit in measure(find_profiler(device), device, models, plan, Stop(seconds=seconds)):
            taken.append(visit)
            advance(1)
    return summarize_all(leveled(taken))


def measure_runs(runs: Mapping[str, Callable[[], object]], seconds: float = 20.0) -> dict[str, Measurement]:
    """Time functions of this process beside each other, in interleaved rounds like everything else."""
    plan, taken = Plan(rounds=24, anchors=0), list[Visit]()
    end = time.monotonic() + seconds
    with bar("measuring in this process", plan.rounds * len(runs)) as advance:
        for round in range(plan.rounds):
            for key in plan.order(list(runs), round):
                taken.append(Visit(key, round, sample(runs[key], plan)))
                advance(1)
            if time.monotonic() > end:
                break
    return summarize_all(leveled(taken))


def remark(speed: float | None) -> str | None:
    """What to tell a person where the device is not what it was when the table was taken."""
    if speed is None or abs(speed - 1) <= 0.05:
        return None
    way = "faster" if speed > 1 else "slower"
    return (
        f"the device is {abs(speed - 1):.0%} {way} now than when its table was taken; measured times are given at the table's "
        "speed, but such a table is worth taking again when nothing else runs: dna-profile --again"
    )


def _references(table: LatencyTable, about_ms: float) -> list[str]:
    """The table's whole networks nearest to `about_ms`; its anchors where it has no networks."""
    sure = [key for key in by_key(table.visits) if has_interval(table.measurements[key])]
    networks = [key for key in sure if Architecture.is_key(key) and buildable(key)]
    near = sorted(networks, key=lambda key: abs(table.measurements[key].latency_ms - about_ms))[:REFERENCES]
    return near or [key for key in anchors_of(table.sessions) if key in sure and buildable(key)]


def buildable(key: str) -> bool:
    """Whether `ops_of` knows a row's ops: always of an op, of a network where its space is known here and still has it."""
    return not Architecture.is_key(key) or Architecture.is_known(key)


def ops_of(key: str) -> tuple[Op, ...]:
    """The ops a row of a table stands for: one, or all of a network's."""
    return Architecture.parse(key).ops if Architecture.is_key(key) else (parse(key),)
