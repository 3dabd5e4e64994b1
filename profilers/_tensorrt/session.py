"""Run an engine on the GPU at hand. Memory, streams and graphs are PyTorch's; TensorRT is given addresses.

No engine has run here yet: the GPU that was at hand, an H100, is none that TensorRT for RTX runs on, and NVIDIA's own TensorRT
was not to be had. Written against the interface, with tests marked `gpu`.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from profilers._tensorrt.logger import make_logger
from profilers._tensorrt.package import load
from profilers.errors import DeviceUnavailable

if TYPE_CHECKING:
    import torch

    Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: str  # such as 8.6


def find_gpu() -> Gpu | None:
    """The GPU that TensorRT and PyTorch use, the first one they see."""
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(0)
    return Gpu(torch.cuda.get_device_name(0), f"{major}.{minor}")


def gpu() -> Gpu:
    """The same, but an error where there is none."""
    found = find_gpu()
    if found is None:
        import torch

        lacks = "PyTorch sees no GPU" if torch.version.cuda else "this PyTorch is built without CUDA"
        raise DeviceUnavailable(f"{lacks}; expected an NVIDIA GPU with its driver (nvidia-smi shows it)")
    return found


class Session:
    """A deserialised engine. An engine may run code of its own as it is loaded: give it bytes you trust."""

    def __init__(self, engine: bytes) -> None:
        import torch

        gpu()
        tensorrt = load()
        self._trt = tensorrt.api
        self._logger = make_logger(tensorrt)
        self._runtime = self._trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            raise DeviceUnavailable(f"{tensorrt} cannot load the engine: {self._logger.reason()}")
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = {name: self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT for name in names}
        self.inputs = tuple(name for name in names if is_input[name])
        self.outputs = tuple(name for name in names if not is_input[name])

    def shape(self, name: str, batch: int) -> tuple[int, ...]:
        """Of an input at that batch size."""
        return tuple(batch if size == -1 else size for size in self._engine.get_tensor_shape(name))

    def run(self, inputs: "Mapping[str, Array]") -> "dict[str, Array]":
        import torch

        with torch.cuda.stream(self._stream):
            memory = self._bind({name: torch.from_numpy(np.ascontiguousarray(inputs[name])).cuda() for name in self.inputs})
            self._enqueue()
            return {name: memory[name].cpu().numpy() for name in self.outputs}

    def enqueued(self, batch: int) -> "Timed":
        """One run on fixed inputs, its kernels launched one after the other."""
        self._fixed(batch)
        return Timed(self._stream, self._enqueue)

    def captured(self, batch: int) -> "Timed":
        """The same run as one CUDA graph: what launching costs is gone."""
        import torch

        memory = self._fixed(batch)
        with torch.cuda.stream(self._stream):
            self._enqueue()  # what is allocated on the first run must not be captured
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            self._enqueue()
        return Timed(self._stream, graph.replay, (self, memory))

    def layer_ms(self, batch: int, runs: int = 20) -> dict[str, float]:
        """The median time of each layer, by its name. The profiler makes layers wait for each other: never time a run with it."""
        import torch

        times: dict[str, list[float]] = {}
        trt = self._trt

        class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.setdefault(layer_name, []).append(ms)

        self._fixed(batch)
        self._context.profiler = profiler = Profiler()  # the name keeps it alive
        try:
            for _ in range(runs):
                with torch.cuda.stream(self._stream):
                    self._enqueue()
                self._stream.synchronize()
        finally:
            self._context.profiler = None
            del profiler
        return {name: statistics.median(taken) for name, taken in times.items()}

    def inspect(self) -> str:
        """The engine inspector's JSON."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def _fixed(self, batch: int) -> "dict[str, torch.Tensor]":
        import torch

        rng = np.random.default_rng(0)
        shapes = {name: self.shape(name, batch) for name in self.inputs}
        with torch.cuda.stream(self._stream):
            filled = {name: torch.from_numpy(rng.standard_normal(shape, np.float32)).cuda() for name, shape in shapes.items()}
            memory = self._bind(filled)
        self._stream.synchronize()
        return memory

    def _bind(self, inputs: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        """Tell the context where its tensors are; they live until it is told of others."""
        import torch

        memory = dict(inputs)
        for name, tensor in inputs.items():
            if tensor.dtype != torch.float32 or not self._context.set_input_shape(name, tuple(tensor.shape)):
                expected = self._engine.get_tensor_profile_shape(name, 0)
                raise DeviceUnavailable(f"input {name}: {tensor.dtype} {tuple(tensor.shape)}; expected float32 from {expected}")
        for name in self.outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            memory[name] = torch.empty(shape, dtype=torch.float32, device="cuda")
        for name, tensor in memory.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._memory = memory
        return memory

    def _enqueue(self) -> None:
        import torch

        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise DeviceUnavailable("TensorRT could not run the engine; does the GPU have memory left?")


@dataclass(frozen=True)
class Timed:
    """Something to run again and again on a stream, timed by the GPU's own clock."""

    stream: "torch.cuda.Stream"
    run: Callable[[], None]
    keeps: object = None  # what the run uses, where it does not hold on to it itself: a graph has only addresses

    def ns(self) -> int:
        """One run, from its first kernel to its last, without copies from or to the host."""
        import torch

        with torch.cuda.stream(self.stream):
            began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            began.record()
            self.run()
            ended.record()
        ended.synchronize()
        return round(began.elapsed_time(ended) * 1e6)
