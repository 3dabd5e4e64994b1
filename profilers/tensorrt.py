"""The NVIDIA GPU at hand, through TensorRT: each model as an engine of its own, run as a CUDA graph.

What needs a GPU has not measured yet: the one that was at hand, an H100, is none that TensorRT for RTX runs on. Its tests are
marked `gpu`.
"""

import logging
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence

from profilers._tensorrt.build import Batches, Built, build
from profilers._tensorrt.package import load
from profilers._tensorrt.probes import can_run
from profilers._tensorrt.session import Session, Timed, gpu
from profilers.device import Device
from profilers.errors import DeviceUnavailable
from profilers.estimate import Visit
from profilers.protocol import Model, Plan

log = logging.getLogger(__name__)

MODES = {None: "CUDA graph", "enqueue": "enqueued"}  # by the device's mode: how a run is launched
SMI = ("driver_version", "temperature.gpu", "clocks.sm", "power.draw", "utilization.gpu")


class TensorRTProfiler:
    def environment(self, device: Device) -> dict[str, str | int | float | None]:
        _require(device)
        tensorrt, here = load(), gpu()
        return {
            "processor": here.name,
            "compute_capability": here.capability,
            "driver": smi().get("driver_version"),
            "runtime": str(tensorrt),
            "provider": device.provider,
            "options": f"strongly typed, TF32 off, {MODES[device.mode]}, GPU time without copies",
            "batch": device.batch,
            "precision": device.precision,
        }

    def conditions(self, device: Device) -> dict[str, str | int | float | None]:
        found = smi()
        return {
            "load": _number(found.get("utilization.gpu")),
            "temperature_c": _number(found.get("temperature.gpu")),
            "clock_mhz": _number(found.get("clocks.sm")),
            "power_w": _number(found.get("power.draw")),
        }

    def visits(self, device: Device, models: Sequence[Model], plan: Plan) -> Iterator[Visit]:
        _require(device)
        runs: dict[str, Timed] = {}
        timing_cache = b""
        for model in models:
            built = _build(device, model, timing_cache)
            timing_cache = built.timing_cache or b""
            session = Session(built.engine)
            runs[model.key] = session.enqueued(device.batch) if device.mode == "enqueue" else session.captured(device.batch)
            log.info("built %d of %d: %s", len(runs), len(models), model.key)
        for round in range(plan.rounds):
            for key in plan.order(list(runs), round):
                yield Visit(key, round, sample(runs[key], plan))

    def run(self, device: Device, model: Model, inputs: Mapping[str, object]) -> list[object]:
        _require(device)
        session = Session(_build(device, model).engine)
        outputs = session.run(inputs)  # type: ignore[arg-type]
        return [outputs[name] for name in session.outputs]


PROFILER = TensorRTProfiler()


def sample(timed: Timed, plan: Plan) -> tuple[int, ...]:
    """One visit: a run that is not kept, then as many as the plan asks for."""
    timed.ns()
    samples: list[int] = []
    end = time.perf_counter() + plan.visit_ms / 1e3
    while len(samples) < plan.runs or (time.perf_counter() < end and len(samples) < plan.max_runs):
        samples.append(timed.ns())
    return tuple(samples)


def _require(device: Device) -> None:
    """Refuse what is not measured here, and a GPU that cannot be used."""
    device.refuse("threads", "cores", "address")
    asked = (device.provider, device.runtime, device.precision)
    if asked != ("gpu", "tensorrt", "fp32") or device.mode not in MODES:
        raise DeviceUnavailable(
            f"device {device.name}: {device.runtime} {device.provider} {device.precision}, mode {device.mode}, cannot be "
            "measured here; expected tensorrt gpu fp32, mode enqueue or none"
        )
    if not (answer := can_run()):
        raise DeviceUnavailable(f"device {device.name}: {answer.why}")


def _build(device: Device, model: Model, timing_cache: bytes = b"") -> Built:
    batches = Batches(device.batch, device.batch, device.batch)
    return build(model.onnx, model.key, batches, timing_cache=timing_cache)


def smi() -> dict[str, str]:
    """What the driver says of the first GPU; empty where it cannot be asked."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(SMI, (part.strip() for part in told.strip().split(",")), strict=False))


def _number(text: str | None) -> float | None:
    """None also for what this GPU does not tell: [N/A]."""
    try:
        return float(text or "")
    except ValueError:
        return None
