"""bf16 in two forms: nodes in float32 between Casts that round, which run everywhere, and nodes typed bf16.

ONNX Runtime on a CPU has no bf16 convolution, nor has ONNX before opset 22. TensorRT and OpenVINO take one; from the form with
Casts TensorRT leaves some layers in fp32, and OpenVINO carries the Casts out.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

WIDE = "_wide"  # ending of what a node computes in float32, before a Cast rounds it to bf16


def typed_bf16(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The same computation with those nodes typed bf16 and the Casts around them gone; every tensor is rounded where it was."""
    import onnx

    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    casts = [(node, next(entry.i for entry in node.attribute)) for node in model.graph.node if node.op_type == "Cast"]
    rounded = {node.output[0] for node, kind in casts if kind == onnx.TensorProto.BFLOAT16}
    rounded |= {weight.name for weight in model.graph.initializer if weight.data_type == onnx.TensorProto.BFLOAT16}
    widened = {node.output[0]: node.input[0] for node, kind in casts if node.input[0] in rounded}
    narrowed = {node.input[0]: node.output[0] for node, _ in casts if node.output[0] in rounded}
    for node in typed.graph.node:
        if node.op_type != "Cast" and node.output[0].endswith(WIDE):
            node.input[:] = [widened.get(name, name) for name in node.input]
            node.output[:] = [narrowed.get(name, name) for name in node.output]
    typed_by = {name for node in typed.graph.node if node.op_type != "Cast" for name in node.output}
    nodes = [node for node in typed.graph.node if node.op_type != "Cast" or node.output[0] not in typed_by]
    read = {name for node in nodes for name in node.input} | {value.name for value in typed.graph.output}
    left = [node for node in nodes if not read.isdisjoint(node.output)]
    del typed.graph.node[:], typed.graph.value_info[:]
    typed.graph.node.extend(left)
    return typed
