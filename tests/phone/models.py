"""Small ONNX models for tests of the phone path, without torch."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from profilers import Model


def conv(channels: int, size: int = 7, kernel: int = 3, batch: int | str = "N", depthwise: bool = False) -> Model:
    """A convolution and its activation; outputs are of the order of 1."""
    rng = np.random.default_rng(channels * 100 + kernel)
    group = channels if depthwise else 1
    shape = (channels, channels // group, kernel, kernel)
    weights = (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) * 4)).astype(np.float32)
    bias = rng.standard_normal(channels).astype(np.float32) / 4
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[kernel, kernel], pads=[kernel // 2] * 4, group=group),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    key = f"conv c{channels} r{size} k{kernel}{' dw' if depthwise else ''}"
    return build(
        key, nodes, {"x": [batch, channels, size, size]}, {"y": [batch, channels, size, size]}, {"w": weights, "b": bias}
    )


def two_in_two_out() -> Model:
    """Two inputs of different types, two outputs of different shapes."""
    nodes = [
        helper.make_node("Gather", ["table", "i"], ["g"], axis=0),
        helper.make_node("Add", ["x", "g"], ["sum"]),
        helper.make_node("ReduceMax", ["sum"], ["top"], axes=[1], keepdims=0),
    ]
    table = {"table": np.arange(20, dtype=np.float32).reshape(5, 4) / 8}
    inputs = {"x": [2, 4], "i": ([2], TensorProto.INT64)}
    return build("two in, two out", nodes, inputs, {"sum": [2, 4], "top": [2]}, table)


def quantized(channels: int = 8) -> Model:
    """An int8 convolution between float ends, as quantized networks are exported (QDQ)."""
    rng = np.random.default_rng(3)
    # 7 bits: x86 processors without VNNI add pairs of products in 16 bits, which full weights overflow and ARM never does
    weights = rng.integers(-63, 64, (channels, channels, 3, 3)).astype(np.int8)
    constants = {
        "w": weights,
        "ws": np.full(channels, 0.004, np.float32),
        "wz": np.zeros(channels, np.int8),
        "s": np.float32(0.05),
        "z": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["c"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]),
    ]
    return build("int8", nodes, {"x": ["N", channels, 7, 7]}, {"y": ["N", channels, 7, 7]}, constants)


def refused() -> Model:
    """A model that no runtime has the operator for."""
    node = helper.make_node("NoSuchOperator", ["x"], ["y"], domain="nowhere")
    return build("refused", [node], {"x": [1, 3]}, {"y": [1, 3]}, {}, domains=["nowhere"])


def build(
    key: str,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, object],
    outputs: dict[str, list[int | str]],
    constants: dict[str, np.ndarray | np.generic],
    domains: list[str] | None = None,
) -> Model:
    def value(name: str, shape: object) -> onnx.ValueInfoProto:
        dims, kind = shape if isinstance(shape, tuple) else (shape, TensorProto.FLOAT)
        return helper.make_tensor_value_info(name, kind, dims)

    graph = helper.make_graph(
        nodes,
        "g",
        [value(name, shape) for name, shape in inputs.items()],
        [value(name, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains or ())]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 8
    return Model(key, model.SerializeToString())
