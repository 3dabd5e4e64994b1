"""Run the exported file on the device it is for: does it compute there what it computes here, and how long does it take?"""

from pathlib import Path
from typing import Any

import numpy as np

from dna_deploy.arch import Architecture
from dna_deploy.errors import RequestError, TableError
from dna_deploy.measure import Latency, device_of, measure_on, measure_whole
from dna_deploy.original import Original
from dna_deploy.predictor import open_predictor
from dna_deploy.progress import say
from dna_deploy.table import LatencyTable, tables
from dna_deploy.verify import Limits, Link, Step, judge
from profilers import Model, find_device, find_profiler

Array = np.ndarray[Any, np.dtype[Any]]
AT_ONCE_BYTES = 512 << 20  # of images copied there in one go and run by one process: 850 of 224 px


def require_device(name: str, suffix: str) -> None:
    """Refuse a device that no file of this format can be run on, before anything is exported."""
    find_device(name)
    if suffix != ".onnx":
        raise RequestError(f"--device {name}: {suffix} files cannot be run there; only .onnx files can: use --format onnx")


def run_on_device(
    name: str, file: Step, here: Array, original: Original, limits: Limits, fp32: Path | None = None
) -> tuple[Link, Latency | None]:
    """Run the ONNX file of a step on the device over all test images; `here` is what the same file answers on this machine.

    It is timed beside the `fp32` file that it was made from, where there is one. The number of copies and of processes on the
    device does not grow with the images, but for every 512 MB of them.
    """
    assert file.path is not None
    picked, test = original.picked, original.test
    table = LatencyTable.load(Path(picked.table)) if picked is not None and Path(picked.table).is_file() else None
    if table is None or table.header.target != name:
        table = LatencyTable.load(tables()[name]) if name in tables() else None
    device = (device_of(table) if table else None) or find_device(name)
    profiler, model = find_profiler(device), Model("exported", file.path.read_bytes())
    models = [model, *([Model("fp32", fp32.read_bytes())] if fp32 else [])]
    environment = profiler.environment(device)
    say(f"running {test.count} images on {device.name}")
    there: list[Any] = []
    at_once = max(1, AT_ONCE_BYTES // test.at([0]).nbytes)
    for start in range(0, test.count, at_once):
        pixels = test.at(range(start, min(start + at_once, test.count)))
        there += profiler.run(device, model, {"input": pixels})
    comparison = judge(here, np.concatenate(there), test.labels, 1, limits)
    link = Link(f"on {device.name}", file.name, file.precision, None, None, [], limits, [comparison])
    speed, predicted_ms = None, None
    if table is None:
        taken = measure_on(device, models)
    else:
        predicted_ms = _predicted(table, original.architecture) if original.architecture else None
        whole = measure_whole(table, models, predicted_ms or 1e9)
        if whole is None:
            return link, None
        taken, speed = {key: found.measurement for key, found in whole.items()}, whole[model.key].speed
    exported = taken[model.key]
    low_ms, high_ms = exported.interval_ms
    fp32_ms = taken["fp32"].latency_ms if fp32 else None
    return link, Latency(name, predicted_ms, exported.latency_ms, low_ms, high_ms, fp32_ms, speed, environment)


def _predicted(table: LatencyTable, arch: Architecture) -> float | None:
    space = arch.space
    try:
        return open_predictor(table.path, arch.ops, space=space.name, image_size=space.image_size).network_ms(arch.ops)
    except TableError:  # of another space or image size
        return None
