"""Measure ONNX models on devices. Knows nothing of search and imports nothing from dna_deploy."""

import importlib
from pathlib import Path

from profilers.device import Device, find_device, registry
from profilers.errors import DeviceUnavailable, ModelBroken, ModelRejected, ModelUnsupported, ProfilerError, UnknownDevice
from profilers.estimate import (
    Measurement,
    Visit,
    by_key,
    leveled,
    leveled_sessions,
    own_speed,
    repeatability,
    scaled,
    summarize,
    summarize_all,
)
from profilers.protocol import Model, Plan, Profiler, Stop, measure

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
    "by_key",
    "find_device",
    "find_profiler",
    "leveled",
    "leveled_sessions",
    "measure",
    "own_speed",
    "registry",
    "repeatability",
    "scaled",
    "summarize",
    "summarize_all",
]

_PARTS = ("device", "errors", "estimate", "protocol")  # of the package itself; every other file is a kind of device


def find_profiler(device: Device) -> Profiler:
    """The profiler of the device's kind: PROFILER in profilers/<kind>.py."""
    kinds = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if not file.stem.startswith("_"))
    kinds = [kind for kind in kinds if kind not in _PARTS]
    if device.kind not in kinds:
        raise UnknownDevice(f"device {device.name}: no kind {device.kind!r}; expected one of {', '.join(kinds)}")
    profiler: Profiler = importlib.import_module(f"profilers.{device.kind}").PROFILER
    return profiler
