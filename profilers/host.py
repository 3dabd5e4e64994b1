"""This machine, through ONNX Runtime's CPU provider."""

import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from profilers.device import Device
from profilers.errors import DeviceUnavailable, ModelRejected, UnknownDevice
from profilers.estimate import Visit
from profilers.protocol import Model, Plan

log = logging.getLogger(__name__)

SESSION_OPTIONS = {
    "session.intra_op.allow_spinning": "0",  # spinning threads steal the core from each other on a shared machine
    "session.inter_op.allow_spinning": "0",
}
MOST_CORES = 65_536  # that anyone names
HELD_BYTES = 1_000_000_000  # of models whose sessions stay open; the sessions of others are opened for each visit


class HostProfiler:
    def environment(self, device: Device) -> dict[str, str | int | float | None]:
        _require(device)
        return {
            "processor": _processor(),
            "processors": os.cpu_count() or 1,
            "cores": device.cores or _confined(),
            "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            "system": f"{platform.system()} {platform.machine()}",
            "runtime": f"onnxruntime {_onnxruntime().__version__}",
            "provider": "CPUExecutionProvider",
            "options": "sequential, inter_op 1, all graph optimizations, spinning off, IOBinding",
            "threads": device.threads,
            "batch": device.batch,
            "precision": device.precision,
        }

    def conditions(self, device: Device) -> dict[str, str | int | float | None]:
        temperature = _read("/sys/class/thermal/thermal_zone0/temp")
        return {
            "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
            "temperature_c": int(temperature) / 1000 if temperature else None,
        }

    def visits(self, device: Device, models: Sequence[Model], plan: Plan) -> Iterator[Visit]:
        busy = _busy()
        if busy is not None and busy > 0.3:
            log.warning(
                "other work keeps %.1f of %d processors busy: times taken now come out too long; wait until it is quiet",
                busy,
                os.cpu_count() or 1,
            )
        with _pinned(device.cores):
            by_key, held, size = {model.key: model for model in models}, {}, 0
            for key, model in by_key.items():
                run = _ready(device, model)
                size += len(model.onnx)
                if size <= HELD_BYTES:
                    held[key] = run
            for round in range(plan.rounds):
                for key in plan.order(list(by_key), round):
                    yield Visit(key, round, sample(held.get(key) or _ready(device, by_key[key]), plan))

    def run(self, device: Device, model: Model, inputs: Mapping[str, object]) -> list[object]:
        import numpy as np

        session = _session(device, model)
        sizes = {value.name: value.shape[0] for value in session.get_inputs()}
        steps = {name: size if isinstance(size, int) else device.batch for name, size in sizes.items()}
        given = {name: np.asarray(inputs[name]) for name in sizes}
        for name, array in given.items():
            if len(array) % steps[name]:
                raise ModelRejected(f"{model.key}: {len(array)} of input {name!r}; expected batches of {steps[name]}")
        count = max(len(array) // steps[name] for name, array in given.items())
        with _pinned(device.cores), _refused(model.key):
            parts = [
                session.run(None, {name: array[at * steps[name] : (at + 1) * steps[name]] for name, array in given.items()})
                for at in range(count)
            ]
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]


PROFILER = HostProfiler()


def _ready(device: Device, model: Model) -> Any:
    """A session that has run once: its first run allocates and is no sample."""
    run = _bound(_session(device, model), model.key, device.batch)
    with _refused(model.key):
        run()
    return run


def sample(run: Callable[[], object], plan: Plan) -> tuple[int, ...]:
    """One visit: nanoseconds of each run."""
    clock = time.perf_counter_ns
    run()  # brings code and weights back into the caches after the other models
    samples: list[int] = []
    end = clock() + int(plan.visit_ms * 1e6)
    while len(samples) < plan.runs or (clock() < end and len(samples) < plan.max_runs):
        began = clock()
        run()
        samples.append(clock() - began)
    return tuple(samples)


def _require(device: Device) -> None:
    """Refuse what would be run on the CPU in fp32 all the same, and called something else."""
    device.refuse("address", "mode")
    asked = (device.runtime, device.provider, device.precision)
    if asked != ("onnxruntime", "cpu", "fp32"):
        raise DeviceUnavailable(f"device {device.name}: {' '.join(asked)} cannot be measured here; expected onnxruntime cpu fp32")
    with _pinned(device.cores):  # cores that are not there are refused before a session begins
        pass
    device.require_cores(len(_core_list(device.cores)) if device.cores else os.cpu_count() or 1)


def _session(device: Device, model: Model) -> Any:
    _require(device)
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = device.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    for key, value in SESSION_OPTIONS.items():
        options.add_session_config_entry(key, value)
    with _refused(model.key):
        return onnxruntime.InferenceSession(model.onnx, options, providers=["CPUExecutionProvider"])


@contextmanager
def _refused(key: str) -> Iterator[None]:
    """Opening a model, or its first run: shapes that do not fit, and memory that does not suffice, are found then only."""
    try:
        yield
    except Exception as error:  # onnxruntime raises a dozen types without a common base
        reason = str(error).strip().splitlines()[0][:200]
        raise ModelRejected(f"{key}: ONNX Runtime refused the model: {reason}") from error


def _bound(session: Any, key: str, batch: int) -> Any:
    """A function that runs the session once on fixed inputs and outputs, so that no copying is timed."""
    import numpy as np

    rng = np.random.default_rng(0)
    binding = session.io_binding()
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else batch for size in value.shape]
        if value.type != "tensor(float)":
            raise ModelRejected(f"{key}: input {value.name} is {value.type}; only float inputs can be timed")
        binding.bind_cpu_input(value.name, rng.standard_normal(shape, dtype=np.float32))
    for value in session.get_outputs():
        binding.bind_output(value.name)
    run = session.run_with_iobinding
    return lambda: run(binding)


@contextmanager
def _pinned(cores: str | None) -> Iterator[None]:
    if cores is None:
        yield
        return
    if not hasattr(os, "sched_setaffinity"):
        raise DeviceUnavailable("cores can be chosen on Linux only; leave --cores out")
    before = os.sched_getaffinity(0)
    wanted = _core_list(cores)
    if not wanted <= before:
        raise DeviceUnavailable(f"cores {cores} are not all usable here; usable: {sorted(before)}")
    os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _confined() -> str | None:
    """The cores this process is kept to from outside, as --cores would name them; None where it may use all."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    usable = os.sched_getaffinity(0)
    return None if len(usable) == os.cpu_count() else ",".join(map(str, sorted(usable)))


def _core_list(text: str) -> set[int]:
    cores: set[int] = set()
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            span = range(int(first), int(last or first) + 1)
            if not span or span[-1] > MOST_CORES:
                raise ValueError("ends before it begins, or nowhere")
            cores.update(span)
    except ValueError:
        raise UnknownDevice(f"cores {text!r}: expected numbers such as 0, 0-3 or 0,2") from None
    return cores


def _busy(seconds: float = 0.3) -> float | None:
    """How many processors others keep busy just now, while this process sleeps; None where the system does not say.

    The load average would not do: it counts what this very command has computed in the minute before.
    """

    def spent() -> tuple[int, int] | None:
        first = (_read("/proc/stat") or "").partition("\n")[0].split()
        if first[:1] != ["cpu"] or len(first) < 6:
            return None
        ticks = [int(part) for part in first[1:9]]
        return sum(ticks), ticks[3] + ticks[4]  # all of them, and those idle or waiting for a disk

    before = spent()
    time.sleep(seconds)
    after = spent()
    if before is None or after is None or after[0] == before[0]:
        return None
    return (1 - (after[1] - before[1]) / (after[0] - before[0])) * (os.cpu_count() or 1)


def _read(path: str) -> str | None:
    """What the system says of itself there, where it says anything."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _processor() -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _onnxruntime() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else importing it leaves an identifier in the user's home
    try:
        import onnxruntime
    except ImportError:
        raise DeviceUnavailable("ONNX Runtime is not installed: pip install onnxruntime") from None
    return onnxruntime
