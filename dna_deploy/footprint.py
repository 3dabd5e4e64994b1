"""What a network takes on a device besides time: the bytes of its weights, and of its activations at the worst moment.

Both are read from the ONNX graph that is deployed, fp32 and one image. Between two ops of a network only one tensor is
alive, so its worst moment is that of its worst op.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from dna_deploy.graph import onnx_of
from dna_deploy.ops import Op

if TYPE_CHECKING:
    import onnx

IN_PLACE = {"Add", "Clip", "Flatten", "HardSigmoid", "HardSwish", "Identity", "Mul", "Relu", "Reshape", "Sigmoid", "Squeeze"}

# What the exporter writes besides, at most, where the blocks and ops are named as ours are: for each node its name, the
# modules it came from and its output's shape, for each weight its name and shape; once what the input and the classes are.
NODE_BYTES, WEIGHT_BYTES, FILE_BYTES = 200, 120, 1000
CLASS_BYTES = 32  # of a class's name, which is not known when a network is picked


@dataclass(frozen=True)
class Footprint:
    file_bytes: int  # what it adds to the exported file, at most
    peak_bytes: int  # of activations alive at once, without weights and a runtime's own buffers


@lru_cache(maxsize=4096)
def footprint(op: Op) -> Footprint:
    import onnx

    model = onnx.load_from_string(onnx_of([op]))
    nodes, weights = model.graph.node, {weight.name: weight for weight in model.graph.initializer}
    named = NODE_BYTES * len(nodes) + WEIGHT_BYTES * sum(name in weights for node in nodes for name in node.input)
    return Footprint(sum(part.ByteSize() for part in (*nodes, *weights.values())) + named, peak_activations(model))


def file_bytes(ops: Iterable[Op], num_classes: int) -> int:
    """Of the ONNX file of a network, no less than it will have where a class's name takes 32 bytes on average or fewer."""
    return FILE_BYTES + CLASS_BYTES * num_classes + sum(footprint(op).file_bytes for op in ops)


def peak_activations(model: "onnx.ModelProto") -> int:
    """The most bytes of activations alive at once when the nodes run in their order, one image.

    A tensor lives from the node that writes it to the last that reads it. Element-wise nodes write over an input that is
    read for the last time, as the planners of ONNX Runtime and TFLite do; nothing is fused.
    """
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    weights = {weight.name for weight in graph.initializer}
    sizes = {info.name: _bytes(info) for info in (*graph.input, *graph.value_info, *graph.output)}
    last = {name: at for at, node in enumerate(graph.node) for name in node.input if name not in weights}
    ends = {info.name for info in graph.output}
    alive = {info.name for info in graph.input if info.name not in weights}
    peak = sum(sizes[name] for name in alive)
    for at, node in enumerate(graph.node):
        dying = {name for name in node.input if name in alive and last[name] == at and name not in ends}
        written = sum(sizes[name] for name in node.output)
        over = node.op_type in IN_PLACE and any(sizes[name] == written for name in dying)
        peak = max(peak, sum(sizes[name] for name in alive) + (0 if over else written))
        alive = (alive - dying) | set(node.output)
    return peak


def _bytes(info: "onnx.ValueInfoProto") -> int:
    """Of one image: a dimension without a number is the batch."""
    size = 4
    for dim in info.type.tensor_type.shape.dim:
        size *= dim.dim_value or 1
    return size
