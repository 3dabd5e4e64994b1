"""Run the exported file on the device it is for: does it compute there what it computes here, and how long does it take?"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dna_deploy.arch import Architecture
from dna_deploy.data import Images, Preprocessing
from dna_deploy.errors import RequestError, TableError
from dna_deploy.measure import device_of, measure_whole
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.progress import say
from dna_deploy.run import Picked
from dna_deploy.table import LatencyTable, tables
from dna_deploy.verify import Limits, OnDevice, judge
from profilers import Measurement, Model, Plan, Stop, find_device, find_profiler, measure, summarize

Array = np.ndarray[Any, np.dtype[Any]]
AT_ONCE_BYTES = 512 << 20  # of images copied there in one go and run by one process: 850 of 224 px
HERE = 8  # images a batch on this machine


def require_device(name: str, suffix: str) -> None:
    """Refuse a device that no file of this format can be run on, before anything is exported."""
    find_device(name)
    if suffix != ".onnx":
        raise RequestError(f"--device {name}: {suffix} files cannot be run there; only .onnx files can: use --format onnx")


def run_on_device(
    name: str,
    path: Path,
    exported: Callable[[Array], Array],
    arch: Architecture,
    picked: Picked,
    images: Images,
    preprocessing: Preprocessing,
    limits: Limits,
) -> OnDevice:
    """Run the ONNX file at `path` on the device over all images; `exported` runs the same file here.

    The number of copies and of processes on the device does not grow with the images, but for every 512 MB of them.
    """
    file = Path(picked.table) if picked.device == name else tables().get(name)
    table = LatencyTable.load(file) if file else None
    device = (device_of(table) if table else None) or find_device(name)
    profiler, model = find_profiler(device), Model("exported", path.read_bytes())
    environment = profiler.environment(device)
    say(f"running {len(images)} test images on {device.name}")
    here, there = [], []
    at_once = max(1, AT_ONCE_BYTES // preprocessing(images.batch([0])).numpy().nbytes)
    for start in range(0, len(images), at_once):
        pixels = preprocessing(images.batch(list(range(start, min(start + at_once, len(images)))))).contiguous().numpy()
        here += [exported(pixels[at : at + HERE]) for at in range(0, len(pixels), HERE)]
        there += profiler.run(replace(device, batch=1), model, {"input": pixels})
    comparison = judge(np.concatenate(here), np.concatenate(there), images.labels.numpy(), 1, limits)  # type: ignore[arg-type]
    predicted_ms = _predicted(table, arch) if table else None
    found = OnDevice(device.name, environment, comparison, predicted_ms, None, None, None, None)
    if table is not None:
        whole = measure_whole(table, [model], predicted_ms or picked.predicted_ms)
        return found if whole is None else _timed(found, whole[model.key].measurement, whole[model.key].speed)
    visits = measure(profiler, device, [model], Plan(rounds=24, anchors=0), Stop(seconds=20))
    return _timed(found, summarize(visits), None)


def _timed(found: OnDevice, measured: Measurement, speed: float | None) -> OnDevice:
    low_ms, high_ms = measured.interval_ms
    return replace(found, measured_ms=measured.latency_ms, measured_low_ms=low_ms, measured_high_ms=high_ms, speed=speed)


def _predicted(table: LatencyTable, arch: Architecture) -> float | None:
    try:
        return LatencyPredictor(table).network_ms(arch.ops)
    except TableError:  # of another space or image size
        return None
