"""Measure whole networks on a device at the speed its latency table was taken at."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dna_deploy.arch import Architecture
from dna_deploy.graph import onnx_of
from dna_deploy.ops import Op, parse
from dna_deploy.plugins import knows
from dna_deploy.progress import bar, say
from dna_deploy.table import LatencyTable
from profilers import (
    Device,
    DeviceUnavailable,
    Measurement,
    Model,
    Plan,
    Stop,
    Visit,
    find_profiler,
    measure,
    registry,
    scaled,
    summarize,
)

REFERENCES = 5  # networks of the table measured beside others


@dataclass(frozen=True)
class AtTableSpeed:
    """A whole network's measurement, scaled to the speed the device had in the table's sessions."""

    measurement: Measurement
    speed: float  # of the device now; 1.1: 10 % faster than then


def device_of(table: LatencyTable) -> Device | None:
    """The device a table was measured on, where it can be measured from here; None for published tables."""
    if table.published or table.header.target not in registry():
        return None
    return Device(**table.header.device)  # type: ignore[arg-type]


def measure_whole(
    table: LatencyTable, models: Sequence[Model], about_ms: float, seconds: float = 20.0
) -> dict[str, AtTableSpeed] | None:
    """Measure whole networks of about `about_ms`, by key; None where the device is not at hand.

    The machine may be faster or slower than when the table was taken. Networks of the table, as large as those to be
    measured, are measured beside them and say by how much: single ops would not, they slow down by more than networks do.
    """
    device = device_of(table)
    if device is None:
        return None
    references = _references(table, about_ms)
    beside = [Model(key, onnx_of(ops_of(key))) for key in references]
    plan, stop = Plan(rounds=24, anchors=0), Stop(seconds=seconds)
    taken: dict[str, list[Visit]] = {}
    try:
        with bar(f"measuring on {device.name}", plan.rounds * (len(models) + len(beside))) as advance:
            for visit in measure(find_profiler(device), device, [*models, *beside], plan, stop):
                taken.setdefault(visit.key, []).append(visit)
                advance(1)
    except DeviceUnavailable as absent:  # a phone that is not attached: what was found without it stands
        say(str(absent))
        return None
    speeds = [table.measurements[key].latency_ms / summarize(taken[key]).latency_ms for key in references]
    speed = statistics.median(speeds) if speeds else 1.0
    return {model.key: AtTableSpeed(scaled(summarize(taken[model.key]), speed), speed) for model in models}


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
    networks = [key for key in table.visits if Architecture.is_key(key)]
    known = [key for key in networks if knows("spaces", key.partition("(")[0])]
    near = sorted(known, key=lambda key: abs(table.measurements[key].latency_ms - about_ms))[:REFERENCES]
    return near or (table.sessions[0].anchors if table.sessions else [])


def ops_of(key: str) -> tuple[Op, ...]:
    """The ops a row of a table stands for: one, or all of a network's."""
    return Architecture.parse(key).ops if Architecture.is_key(key) else (parse(key),)
