"""What TensorRT can do here: that it can be imported, can build and can run are three different things, so each is tried."""

from dataclasses import dataclass
from functools import cache

from profilers._tensorrt.build import build
from profilers._tensorrt.package import first_line, load
from profilers._tensorrt.session import Session, gpu
from profilers.errors import DeviceUnavailable, ProfilerError


@dataclass(frozen=True)
class Answer:
    """Of a probe: yes or no, and a sentence that says which and why."""

    yes: bool
    why: str

    def __bool__(self) -> bool:
        return self.yes


def importable() -> Answer:
    try:
        return Answer(True, f"{load()} can be imported")
    except DeviceUnavailable as error:
        return Answer(False, str(error))


def can_build(capability: str | None = None) -> Answer:
    """By building an engine of one layer for that compute capability; for any GPU it can name where that is None."""
    if not (found := importable()):
        return found
    try:
        built = build(_one_layer(), "a network of one layer", capability=capability)
    except ProfilerError as error:
        return Answer(False, f"{load()} cannot build here: {first_line(error)}")
    return Answer(True, f"{load()} can build here, for {built.target}")


@cache
def can_run() -> Answer:
    """By building an engine of one layer for the GPU at hand and running it."""
    import numpy as np

    if not (found := importable()):
        return found
    try:
        name = gpu().name
        x = np.arange(-3, 3, dtype=np.float32).reshape(1, 6)
        y = Session(build(_one_layer(), "a network of one layer").engine).run({"input": x})["output"]
    except ProfilerError as error:
        return Answer(False, f"{load()} cannot run here: {first_line(error)}")
    if not np.array_equal(y, np.maximum(x, 0)):
        return Answer(False, f"{load()} runs on {name} but computes max(x, 0) wrongly")
    return Answer(True, f"{load()} can run here, on {name}")


def _one_layer() -> bytes:
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 6]) for name in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Relu", ["input"], ["output"], name="relu")], "probe", ends[:1], ends[1:])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString())
