"""Measure ONNX models on devices. Knows nothing of search and imports nothing from dna_deploy."""

import importlib
from pathlib import Path

from profilers.device import Device, find_device, registry
from profilers.errors import DeviceUnavailable, ModelBroken, ModelRejected, ModelUnsupported, ProfilerError, UnknownDevice
from profilers.protocol import (
    Measurement,
    Model,
    Plan,
    Profiler,
    Stop,
    Visit,
    drift_of_sessions,
    measure,
    repeatability,
    scaled,
    settled,
    summarize,
)

__all__ = [
    "Device",
    "DeviceUnavailable",
    "Measurement",
    "Model",
    "ModelBroken",
    "ModelRejected",
    "ModelUnsupported",
    "Plan",
    "Profiler",
    "ProfilerError",
    "Stop",
    "UnknownDevice",
    "Visit",
    "drift_of_sessions",
    "find_device",
    "find_profiler",
    "measure",
    "registry",
    "repeatability",
    "scaled",
    "settled",
    "summarize",
]

_PARTS = ("device", "errors", "protocol")  # of the package itself; every other file is a kind of device


def find_profiler(device: Device) -> Profiler:
    """The profiler of the device's kind: PROFILER in profilers/<kind>.py."""
    kinds = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if not file.stem.startswith("_"))
    kinds = [kind for kind in kinds if kind not in _PARTS]
    if device.kind not in kinds:
        raise UnknownDevice(f"device {device.name}: no kind {device.kind!r}; expected one of {', '.join(kinds)}")
    profiler: Profiler = importlib.import_module(f"profilers.{device.kind}").PROFILER
    return profiler
