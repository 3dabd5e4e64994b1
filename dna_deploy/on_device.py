"""Run the exported file on the device it is for: does it compute there what it computes here, and how long does it take?"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dna_deploy.errors import RequestError, TableError
from dna_deploy.measure import Latency, device_of, measure_whole
from dna_deploy.ops import Op
from dna_deploy.original import Original
from dna_deploy.predictor import open_predictor
from dna_deploy.progress import say
from dna_deploy.table import LatencyTable, tables
from dna_deploy.verify import Limits, Link, Step, judge
from profilers import Measurement, Model, Plan, Stop, find_device, find_profiler, measure, summarize

Array = np.ndarray[Any, np.dtype[Any]]
AT_ONCE_BYTES = 512 << 20  # of images copied there in one go and run by one process: 850 of 224 px


def require_device(name: str, suffix: str) -> None:
    """Refuse a device that no file of this format can be run on, before anything is exported."""
    find_device(name)
    if suffix != ".onnx":
        raise RequestError(f"--device {name}: {suffix} files cannot be run there; only .onnx files can: use --format onnx")


def run_on_device(name: str, file: Step, here: Array, original: Original, limits: Limits) -> tuple[Link, Latency | None]:
    """Run the ONNX file of a step on the device over all test images; `here` is what the same file answers on this machine.

    The number of copies and of processes on the device does not grow with the images, but for every 512 MB of them.
    """
    assert file.path is not None
    picked, test = original.picked, original.test
    known = Path(picked.table) if picked is not None and picked.device == name else tables().get(name)
    table = LatencyTable.load(known) if known else None
    device = (device_of(table) if table else None) or find_device(name)
    profiler, model = find_profiler(device), Model("exported", file.path.read_bytes())
    environment = profiler.environment(device)
    say(f"running {test.count} images on {device.name}")
    there: list[Any] = []
    at_once = max(1, AT_ONCE_BYTES // test.at([0]).nbytes)
    for start in range(0, test.count, at_once):
        pixels = test.at(range(start, min(start + at_once, test.count)))
        there += profiler.run(replace(device, batch=1), model, {"input": pixels})
    comparison = judge(here, np.concatenate(there), test.labels, 1, limits)
    link = Link(f"on {device.name}", file.name, file.precision, None, None, [], limits, [comparison])
    if table is None:
        taken = summarize(measure(profiler, device, [model], Plan(rounds=24, anchors=0), Stop(seconds=20)))
        return link, _latency(name, taken, None, None, environment)
    predicted_ms = _predicted(table, original.ops)
    whole = measure_whole(table, [model], predicted_ms or 1e9)
    if whole is None:
        return link, None
    return link, _latency(name, whole[model.key].measurement, whole[model.key].speed, predicted_ms, environment)


def _latency(name: str, taken: Measurement, speed: float | None, predicted_ms: float | None, environment: Any) -> Latency:
    low_ms, high_ms = taken.interval_ms
    return Latency(name, predicted_ms, taken.latency_ms, low_ms, high_ms, None, speed, environment)


def _predicted(table: LatencyTable, ops: Sequence[Op]) -> float | None:
    try:
        return open_predictor(table.path, ops).network_ms(ops) if ops else None
    except TableError:  # of another space or image size
        return None
