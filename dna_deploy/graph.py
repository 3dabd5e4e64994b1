"""Write ops and whole networks as ONNX without torch: what is timed before anything is trained.

An export through torch costs a second a model, and a profile needs hundreds. These graphs have the nodes the ONNX
exporter writes for the same modules (a test compares the two), BatchNorm folded, with random weights: latency does not
depend on their values.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dna_deploy.ops import Op

if TYPE_CHECKING:
    import onnx

OPSET = 18  # of everything we write: old enough for the runtimes on phones and in TensorRT, new enough for torch


class Graph:
    """An ONNX graph being written: each method adds nodes and returns the name of their output."""

    def __init__(self, in_shape: tuple[int, int, int]) -> None:
        import numpy as np

        self.input = "input"
        self._in_shape = in_shape
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._rng = np.random.default_rng(0)

    def conv(self, x: str, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        """A convolution padded by half its kernel, with bias."""
        fan_in = cin // groups * kernel * kernel
        weight = self._weight((cout, cin // groups, kernel, kernel), scale=(2 / fan_in) ** 0.5)
        settings = {
            "group": groups,
            "kernel_shape": [kernel, kernel],
            "pads": [kernel // 2] * 4,
            "strides": [stride, stride],
            "dilations": [1, 1],
        }
        return self._node("Conv", [x, weight, self._weight((cout,))], **settings)

    def act(self, x: str, name: str) -> str:
        if name == "relu":
            return self._node("Relu", [x])
        if name == "relu6":
            return self._node("Clip", [x, self._scalar("zero", 0.0), self._scalar("six", 6.0)])
        if name == "silu":
            return self.mul(x, self.act(x, "sigmoid"))
        if name == "sigmoid":
            return self._node("Sigmoid", [x])
        if name == "hard_swish":
            return self._node("HardSwish", [x])
        if name == "hard_sigmoid":
            return self._node("HardSigmoid", [x], alpha=1 / 6, beta=0.5)
        raise AssertionError(f"no activation {name!r}")

    def add(self, x: str, y: str) -> str:
        return self._node("Add", [x, y])

    def mul(self, x: str, y: str) -> str:
        return self._node("Mul", [x, y])

    def mean(self, x: str) -> str:
        """(N, C, H, W) -> (N, C, 1, 1), in the node the exporter writes for squeeze-and-excitation."""
        return self._node("ReduceMean", [x, self._axes()], keepdims=1)

    def pool(self, x: str) -> str:
        """(N, C, H, W) -> (N, C)"""
        return self._node("Flatten", [self._node("GlobalAveragePool", [x])], axis=1)

    def linear(self, x: str, cin: int, cout: int) -> str:
        weight = self._weight((cout, cin), scale=cin**-0.5)
        return self._node("Gemm", [x, weight, self._weight((cout,))], transB=1)

    def model(self, output: str, out_shape: tuple[int, ...]) -> "onnx.ModelProto":
        """The finished model, `input` (batch, C, H, W) -> `output` (batch, *out_shape), float32."""
        from onnx import TensorProto, helper

        self._nodes[-1].output[0] = "output"
        assert output == f"t{len(self._nodes)}"
        described = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
            for name, shape in (("input", self._in_shape), ("output", out_shape))
        ]
        graph = helper.make_graph(self._nodes, "network", described[:1], described[1:], self._weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)

    def _node(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        from onnx import helper

        output = f"t{len(self._nodes) + 1}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _weight(self, shape: tuple[int, ...], scale: float = 0.1) -> str:
        from onnx import numpy_helper

        name = f"w{len(self._weights) + 1}"
        values = self._rng.standard_normal(shape, dtype="float32") * scale
        self._weights.append(numpy_helper.from_array(values.astype("float32"), name))
        return name

    def _scalar(self, name: str, value: float) -> str:
        from onnx import TensorProto, helper

        return self._once(helper.make_tensor(name, TensorProto.FLOAT, [], [value]))

    def _axes(self) -> str:
        from onnx import TensorProto, helper

        return self._once(helper.make_tensor("sides", TensorProto.INT64, [2], [2, 3]))

    def _once(self, constant: Any) -> str:
        if not any(weight.name == constant.name for weight in self._weights):
            self._weights.append(constant)
        return str(constant.name)


def onnx_of(ops: Sequence[Op]) -> bytes:
    """The ONNX model of these ops in a row: one op to time it, all of a network's to time the network."""
    graph = Graph(ops[0].in_shape)
    x = graph.input
    for op in ops:
        x = op.write(graph, x)
    return bytes(graph.model(x, ops[-1].out_shape).SerializeToString())
