"""The ops in an ONNX file that someone else wrote: what can be priced by a table, and what is none of our ops.

Convolutions and matrix products are read in order and grouped (1x1, depthwise, 1x1 is an MBConv). The graph of those ops is
then written and its nodes are held against the file's: whatever the file has beyond them is named, never taken for free.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dna_deploy.errors import RequestError
from dna_deploy.graph import onnx_of
from dna_deploy.ops import Op
from dna_deploy.ops._op import strided
from dna_deploy.ops.classifier import Classifier
from dna_deploy.ops.conv import Conv
from dna_deploy.ops.dsconv import DepthwiseSeparable
from dna_deploy.ops.mbconv import MBConv

if TYPE_CHECKING:
    import onnx

_VIEWS = {"Flatten", "Reshape", "Identity", "Dropout", "Constant", "Squeeze", "Unsqueeze", "Shape"}  # nothing is moved
_COPIES = {"Cast", "Concat", "Gather"}  # free where they work out a shape or the scores, not where they copy features
_ACTS = {"Clip": "relu6", "Relu": "relu", "HardSwish": "hard_swish", "Sigmoid": "silu", "Mul": "silu"}


@dataclass(frozen=True)
class Layers:
    ops: tuple[Op, ...]
    others: tuple[str, ...]  # what the file does beside them, such as "3 Softmax"
    image_size: int  # it takes: its own where the file says one


@dataclass(frozen=True)
class _Layer:
    """One convolution or matrix product."""

    kind: str
    hw: int  # of its input; 1 behind a pooling
    cin: int
    cout: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    act: str = "none"
    gate: str = ""  # what its output is multiplied into something through


def fixed(model: "onnx.ModelProto", image_size: int) -> "onnx.ModelProto":
    """The model with batch 1, and with sides of `image_size` where it leaves them open; the one given is changed."""
    import onnx

    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        names = ", ".join(value.name for value in inputs) or "none"
        raise RequestError(f"its inputs are {names}; expected one of (batch, channels, height, width)")
    dims = inputs[0].type.tensor_type.shape.dim
    if dims[1].dim_value < 1:
        raise RequestError(f"its input {inputs[0].name} leaves its channels open; export it again with their number, such as 3")
    for place, size in ((0, 1), (2, image_size), (3, image_size)):
        if dims[place].dim_value < 1 or place == 0:
            dims[place].dim_value = size
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def layers_of(model: "onnx.ModelProto") -> Layers:
    """The ops of a model whose sides are `fixed`."""
    ops = tuple(_grouped(_layers(model)))
    ours: Counter[str] = Counter()
    if ops:
        import onnx

        for op in ops:
            ours += _kinds(onnx.load_from_string(onnx_of([op])), {})
    beyond = _kinds(model, _sizes(model)) - ours
    others = tuple(f"{count} {kind}" for kind, count in sorted(beyond.items()))
    weights = {weight.name for weight in model.graph.initializer}
    (taken,) = (value for value in model.graph.input if value.name not in weights)
    return Layers(ops, others, taken.type.tensor_type.shape.dim[2].dim_value)


def _sizes(model: "onnx.ModelProto") -> dict[str, list[int]]:
    """The shapes of the tensors that are computed or given, where they are known."""
    described = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    typed = [value for value in described if value.type.tensor_type.HasField("shape")]
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in typed}


def _kinds(model: "onnx.ModelProto", sizes: dict[str, list[int]]) -> "Counter[str]":
    """How many nodes there are of each kind that takes time."""
    return Counter(_kind(node, sizes) for node in model.graph.node if not _free(node, sizes))


def _kind(node: Any, sizes: dict[str, list[int]]) -> str:
    if _pools(node, sizes):
        return "GlobalAveragePool"
    return "Gemm" if node.op_type == "MatMul" else str(node.op_type)


def _pools(node: Any, sizes: dict[str, list[int]]) -> bool:
    """Whether it makes one pixel of each channel."""
    if node.op_type == "ReduceMean":
        before, after = (sizes.get(name, []) for name in (node.input[0], node.output[0]))
        return math.prod(before[:2]) == math.prod(after)
    return node.op_type == "GlobalAveragePool"


def _free(node: Any, sizes: dict[str, list[int]]) -> bool:
    """Of a tensor whose shape nobody knows it is taken that it is large."""
    if node.op_type in _COPIES:
        return all(name in sizes and len(sizes[name]) < 3 for name in node.output)
    return node.op_type in _VIEWS


def _layers(model: "onnx.ModelProto") -> list[_Layer]:
    import onnx

    graph = model.graph
    sizes, weights = _sizes(model), _weights(model)
    readers: dict[str, list[Any]] = {}
    makers = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
        for name in node.output:
            makers[name] = node
    found = []
    for node in graph.node:
        settings = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        shape = sizes.get(node.input[0], []) if node.input else []
        weight = weights.get(node.input[1], []) if len(node.input) > 1 else []
        followed = readers.get(node.output[0], [])
        kinds = [reader.op_type for reader in followed]
        act = next(
            (_ACTS[kind] for kind in kinds if kind in ("Clip", "Relu", "HardSwish")),
            "silu" if {"Sigmoid", "Mul"} <= set(kinds) else "none",
        )
        gate = kinds[0] if kinds in (["Sigmoid"], ["HardSigmoid"]) else ""
        if node.op_type == "Conv" and len(weight) == 4 and len(shape) == 4 and shape[2] == shape[3] and weight[2] == weight[3]:
            stride, dilation = settings.get("strides", [1, 1]), settings.get("dilations", [1, 1])
            pads, groups = settings.get("pads", [0] * 4), settings.get("group", 1)
            if (len(stride), len(pads)) != (2, 4) or min(stride) < 1:
                continue  # no valid node: the runtime will say so
            padded = {shape[2] + pads[axis] + pads[axis + 2] - weight[2] for axis in (0, 1)}  # TensorFlow's is on one side only
            sides = {extent // stride[0] + 1 for extent in padded}
            if sides != {strided(shape[2], stride[0])} or set(dilation) != {1} or stride[0] != stride[1]:
                continue  # none of our ops: it will stand among the others
            found.append(_Layer("conv", shape[2], shape[1], weight[0], weight[2], stride[0], groups, act, gate))
        elif node.op_type in ("Gemm", "MatMul") and len(weight) == 2 and _vector(shape) and not settings.get("transA"):
            cout = weight[0] if settings.get("transB") else weight[1]
            cin = weight[1] if settings.get("transB") else weight[0]
            found.append(_Layer("linear", _pooled_from(node, makers, sizes), cin, cout))
    return found


def _weights(model: "onnx.ModelProto") -> dict[str, list[int]]:
    """The shapes of the weights in float32, also of those that older exporters wrote as nodes, or share through such."""
    import onnx

    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    found[node.output[0]] = attribute.t
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return {name: list(tensor.dims) for name, tensor in found.items() if tensor.data_type == onnx.TensorProto.FLOAT}


def _vector(shape: list[int]) -> bool:
    """Whether a linear layer's input is one row, as behind a pooling; many are another operation by their latency."""
    return len(shape) > 1 and set(shape[:-1]) == {1}


def _pooled_from(node: Any, makers: dict[str, Any], sizes: dict[str, list[int]]) -> int:
    """The side of the image that was pooled into the input of a linear layer, perhaps with layers of one pixel between (the
    head of MobileNetV3); 1 where none was."""
    while node is not None and node.input:
        if _pools(node, sizes):
            shape = sizes.get(node.input[0], [])
            return shape[2] if len(shape) == 4 else 1
        node = makers.get(node.input[0])
        if node is not None and max(sizes.get(node.output[0], [])[2:], default=1) > 1:
            return 1
    return 1


def _grouped(layers: list[_Layer]) -> list[Op]:
    ops: list[Op] = []
    at = 0
    while at < len(layers):
        first, *rest = layers[at : at + 5]
        if first.kind == "linear":
            ops.append(Classifier(first.hw, first.cin, first.cout))
            at += 1
        elif (found := _mbconv(first, rest)) is not None:
            ops.append(found[0])
            at += found[1]
        elif _depthwise(first) and first.act != "none" and rest and _pointwise(rest[0]) and rest[0].cin == first.cout:
            ops.append(DepthwiseSeparable(first.hw, first.cin, rest[0].cout, first.kernel, first.stride, first.act))
            at += 2
        else:
            if first.groups == 1 and first.act != "none":
                ops.append(Conv(first.hw, first.cin, first.cout, first.kernel, first.stride, first.act))
            at += 1
    return ops


def _mbconv(first: _Layer, rest: list[_Layer]) -> tuple[Op, int] | None:
    """The MBConv that begins with `first`, and how many layers it takes."""
    if not _pointwise(first) or first.act == "none" or first.cout % first.cin or len(rest) < 2 or not _depthwise(rest[0]):
        return None
    deep, *behind = rest
    expand, se, gate = first.cout // first.cin, 0.0, "sigmoid"
    if len(behind) >= 3 and behind[0].hw == 1 and behind[1].gate and behind[1].cout == first.cout:
        se = round(behind[0].cout / first.cin, 3)
        gate = "hard_sigmoid" if behind[1].gate == "HardSigmoid" else "sigmoid"
        behind = behind[2:]
    last = behind[0]
    if deep.cin != first.cout or not _pointwise(last) or last.cin != first.cout or last.act != "none":
        return None
    op = MBConv(first.hw, first.cin, last.cout, deep.kernel, expand, deep.stride, first.act, se, gate)
    return op, 5 if se else 3


def _pointwise(layer: _Layer) -> bool:
    return layer.kind == "conv" and (layer.kernel, layer.stride, layer.groups) == (1, 1, 1)


def _depthwise(layer: _Layer) -> bool:
    return layer.kind == "conv" and layer.groups == layer.cin == layer.cout
