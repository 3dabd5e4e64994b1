"""Measure whole networks on a device at the speed its latency table was taken at."""

import statistics

from dna_deploy.arch import Architecture
from dna_deploy.graph import onnx_of
from dna_deploy.ops import Op, parse
from dna_deploy.progress import bar
from dna_deploy.table import LatencyTable
from profilers import Device, Measurement, Model, Plan, Stop, Visit, find_profiler, measure, scaled, summarize


def measure_whole(
    device: Device, table: LatencyTable, models: list[Model], seconds: float = 20.0
) -> tuple[dict[str, Measurement], float]:
    """Measure whole networks at the table's speed: its anchors are measured beside them, and say how fast the device is now.

    Returns the measurements by key, and that speed (1.1: the device is 10 % faster now than in the table's sessions).
    """
    anchors = table.sessions[0].anchors if table.sessions else []
    beside = [Model(key, onnx_of(ops_of(key))) for key in anchors]
    plan, stop = Plan(rounds=24, anchors=0), Stop(seconds=seconds)
    taken: dict[str, list[Visit]] = {}
    with bar("measuring", plan.rounds * (len(models) + len(beside))) as advance:
        for visit in measure(find_profiler(device), device, [*models, *beside], plan, stop):
            taken.setdefault(visit.key, []).append(visit)
            advance(1)
    speeds = [table.measurements[key].latency_ms / summarize(taken[key]).latency_ms for key in anchors]
    speed = statistics.median(speeds) if speeds else 1.0
    return {model.key: scaled(summarize(taken[model.key]), speed) for model in models}, speed


def ops_of(key: str) -> tuple[Op, ...]:
    """The ops a row of a table stands for: one, or all of a network's."""
    return Architecture.parse(key).ops if Architecture.is_key(key) else (parse(key),)
