"""ONNX -> TensorRT engine: strongly typed, so that the graph alone says what computes in which precision.

On a machine without a GPU, TensorRT for RTX builds ahead of time for a compute capability that is named.
"""

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

from profilers._tensorrt.layers import Layer, read_layers
from profilers._tensorrt.logger import make_logger, plain
from profilers._tensorrt.package import TensorRT, load
from profilers._tensorrt.session import Gpu, find_gpu
from profilers.errors import DeviceUnavailable, ModelBroken, ModelUnsupported, UnknownDevice


@dataclass(frozen=True)
class Batches:
    """What the engine must run at, and what its kernels are chosen for."""

    smallest: int = 1
    usual: int = 1
    largest: int = 1


@dataclass(frozen=True)
class Built:
    engine: bytes
    layers: tuple[Layer, ...]  # empty where this version of the builder does not describe them
    target: str  # the GPUs it runs on, as a phrase
    capability: str | None  # such as 8.6; None: every GPU from Ampere on
    batches: Batches
    seconds: float
    timing_cache: bytes | None  # for the next build; None where the builder keeps none


def build(
    onnx: bytes,
    name: str,
    batches: Batches | None = None,
    capability: str | None = None,
    timing_cache: bytes = b"",
    progress: Callable[[float], None] = lambda share: None,
) -> Built:
    """Build for a compute capability such as "8.6"; where it is None for the GPU at hand, and without one for all there are.

    `progress` is told the share done so far, 0 to 1, from another thread. Raises ModelUnsupported where TensorRT cannot run
    a node and ModelBroken where the file is no valid graph; both name the node.
    """
    tensorrt = load()
    trt = tensorrt.api
    logger = make_logger(tensorrt)
    builder = trt.Builder(logger)
    if builder is None:
        raise DeviceUnavailable(f"{tensorrt} cannot make a builder here: {logger.reason()}")
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # from version 11 there is nothing else
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    _parse(tensorrt, logger, network, onnx, name)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the engine forgets which layer is which
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: it keeps 10 of the 23 bits of an fp32 product's factors
    target, capability = _aim(tensorrt, config, capability)
    batches = batches or Batches()
    _allow(builder, config, network, batches, name)
    if not tensorrt.for_rtx:  # there the timing cache is a no-op since 1.2
        config.set_timing_cache(config.create_timing_cache(timing_cache), ignore_mismatch=False)
    monitor = _monitor(tensorrt, progress)
    config.progress_monitor = monitor
    began = time.monotonic()
    engine = _in_thread(builder, network, config, monitor)
    if engine is None:
        raise ModelUnsupported(f"{name}: {tensorrt} cannot build it for {target}: {logger.reason()}")
    kept = None if tensorrt.for_rtx else bytes(config.get_timing_cache().serialize())
    layers = read_layers(logger.layers)
    return Built(bytes(engine), layers, target, capability, batches, time.monotonic() - began, kept)


def _in_thread(builder: Any, network: Any, config: Any, monitor: Any) -> Any:
    """Build in a thread of its own: Ctrl-C then reaches this one, and is not raised through the builder's own frames."""
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(builder.build_serialized_network, network, config)
        try:
            engine = building.result()
        except KeyboardInterrupt as interrupt:
            monitor.stopped_by = interrupt
    if monitor.stopped_by is not None:
        raise monitor.stopped_by
    return engine


def capabilities(tensorrt: TensorRT) -> list[str]:
    """The compute capabilities the builder knows by name, such as 8.6; empty where it builds for the GPU at hand only."""
    members = getattr(getattr(tensorrt.api, "ComputeCapability", None), "__members__", {})
    return [f"{name[2:-1]}.{name[-1]}" for name in members if re.fullmatch(r"SM\d+", name)]


def _gpu_served(tensorrt: TensorRT) -> Gpu | None:
    """The GPU at hand, if this TensorRT runs on it: TensorRT for RTX builds for an H100 what then cannot be loaded there."""
    here = find_gpu()
    served = here is not None and (not tensorrt.for_rtx or here.capability in capabilities(tensorrt))
    return here if served else None


def require_target(capability: str | None) -> None:
    """Refuse what cannot be built for here, before anything is built."""
    tensorrt, here = load(), find_gpu()
    known = capabilities(tensorrt)
    if not tensorrt.for_rtx:
        if here is None:
            raise DeviceUnavailable(f"{tensorrt} builds on a GPU only and there is none; TensorRT for RTX builds without one")
        if capability not in (None, here.capability):
            raise UnknownDevice(f"compute capability {capability}: {tensorrt} builds for the GPU at hand only, {here.capability}")
    elif capability is not None and capability not in known:
        raise UnknownDevice(f"compute capability {capability!r}: {tensorrt} knows {', '.join(known)}")


def _aim(tensorrt: TensorRT, config: Any, capability: str | None) -> tuple[str, str | None]:
    """Set what the engine is built for; returns it as a phrase, and the compute capability."""
    require_target(capability)
    here = _gpu_served(tensorrt)
    if here is not None and (capability is None or not tensorrt.for_rtx):
        target, found, member = f"{here.name}, compute capability {here.capability}", here.capability, "CURRENT"
    elif capability is not None:
        target, found, member = f"GPUs of compute capability {capability}", capability, f"SM{capability.replace('.', '')}"
    else:
        return "every GPU from Ampere (compute capability 8.0) on", None
    if tensorrt.for_rtx:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(tensorrt.api.ComputeCapability, member), 0)
    return target, found


def _allow(builder: Any, config: Any, network: Any, batches: Batches, name: str) -> None:
    """An optimisation profile that lets the first dimension of each input vary."""
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        first, *rest = tuple(tensor.shape)
        if -1 in rest:
            raise ModelBroken(f"{name}: input {tensor.name} has the shape {(first, *rest)}; only its first dimension may vary")
        if first == -1:
            shapes = [(batch, *rest) for batch in (batches.smallest, batches.usual, batches.largest)]
            profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)


def _parse(tensorrt: TensorRT, logger: Any, network: Any, onnx: bytes, name: str) -> None:
    parser = tensorrt.api.OnnxParser(network, logger)
    if parser.parse(onnx) and network.num_inputs > 0:
        return
    if parser.num_errors == 0:
        raise ModelBroken(f"{name}: not an ONNX model with inputs and outputs; export it again")
    error = parser.get_error(0)
    codes, code = tensorrt.api.ErrorCode, error.code()
    if code == codes.MODEL_DESERIALIZE_FAILED:
        raise ModelBroken(f"{name}: not a readable ONNX file; was it cut off? Export it again")
    where = f"{name}: node {error.node_name()!r} ({error.node_operator()})"
    reason = re.sub(r"^Assertion failed: \(?.*?\)?: ", "", plain(error.desc())).rstrip(".")
    if "UNSUPPORTED" in code.name:
        raise ModelUnsupported(f"{where}: {tensorrt} does not support it: {reason}")
    if "Plugin not found" in reason:  # an op it does not know is taken for one of a plugin's
        raise ModelUnsupported(f"{where}: {tensorrt} has no such op; write it with others and export again")
    raise ModelBroken(f"{where} is not valid: {reason}")


def _monitor(tensorrt: TensorRT, progress: Callable[[float], None]) -> Any:
    return _monitor_type(tensorrt)(progress)


@cache
def _monitor_type(tensorrt: TensorRT) -> Any:
    trt = tensorrt.api

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Hands the share done on, and stops the build at its next step once `stopped_by` is set."""

        def __init__(self, progress: Callable[[float], None]) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases, self.progress = Phases(), progress
            self.stopped_by: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases.start(phase_name, parent_phase, num_steps)

        def phase_finish(self, phase_name: str) -> None:
            self.phases.finish(phase_name)
            self.tell()

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.phases.step(phase_name, step)
            self.tell()
            return self.stopped_by is None

        def tell(self) -> None:
            try:
                self.progress(self.phases.share)
            except Exception as error:  # must not pass through the builder's own frames
                self.stopped_by = error

    return Monitor


class Phases:
    """The share done of nested phases: a phase inside another one fills the step its parent is in."""

    def __init__(self) -> None:
        self.share = 0.0
        self._open: dict[str, tuple[float, float, int]] = {}  # phase: where it begins, its width, its steps

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        begins, width = 0.0, 1.0
        if parent in self._open:
            of, whole, count = self._open[parent]
            begins, width = self.share, max(0.0, min(whole / count, of + whole - self.share))
        self._open[phase] = (begins, width, max(1, steps))

    def step(self, phase: str, step: int) -> None:
        if phase in self._open:
            begins, width, steps = self._open[phase]
            self.share = max(self.share, begins + width * min(1.0, (step + 1) / steps))

    def finish(self, phase: str) -> None:
        if phase in self._open:
            begins, width, _ = self._open.pop(phase)
            self.share = max(self.share, begins + width)
