"""Parts of an ONNX graph, cut out and run: any tensor can be an output, and any can enter from outside.

Not covered: graphs with control flow, and models above 2 GB.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_deploy.session import open_session

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, np.dtype[Any]]
GIVEN = "::given"  # ending of the name under which a tensor enters from outside
BF16 = "::bf16"  # and of that of a bf16 tensor whose own name is a float32 one's: Python can neither give nor take bf16


def onnxruntime_run(model: "onnx.ModelProto", inputs: Mapping[str, Array], optimize: bool = True) -> dict[str, Array]:
    session = open_session(model.SerializeToString(), optimize=optimize)
    wanted = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    fed = {name: value for name, value in inputs.items() if name in wanted}
    return dict(zip(names, session.run(names, fed), strict=True))


def cut(
    model: "onnx.ModelProto", given: Mapping[str, Array], outputs: Sequence[str], types: Mapping[str, int]
) -> "onnx.ModelProto":
    """The part of the model that computes `outputs`, every tensor of `given` entering from outside wherever it is read."""
    import onnx
    from onnx import helper

    makers = {name: node for node in model.graph.node for name in node.output}
    needed, waiting = set(), [name for name in outputs if name in makers]
    while waiting:
        name = waiting.pop()
        if id(makers[name]) not in needed:
            needed.add(id(makers[name]))
            waiting += [read for read in makers[name].input if read in makers and read not in given]
    part = onnx.ModelProto()
    part.ir_version = model.ir_version
    part.opset_import.extend(model.opset_import)
    part.graph.name = "segment"
    read: dict[str, None] = {}
    for node in model.graph.node:
        if id(node) in needed:
            copy = part.graph.node.add()
            copy.CopyFrom(node)
            for place, name in enumerate(copy.input):
                if name in given:
                    copy.input[place] = name + GIVEN
                read[copy.input[place]] = None
    fixed = {value.name for value in model.graph.initializer}
    part.graph.initializer.extend(value for value in model.graph.initializer if value.name in read)
    for name in read:
        if name.endswith(GIVEN):
            entering = name.removesuffix(GIVEN)
            sizes = np.shape(given[entering])  # OpenVINO wants them of what enters a convolution
            part.graph.input.append(helper.make_tensor_value_info(name, types[entering], sizes))
    part.graph.input.extend(value for value in model.graph.input if value.name in read and value.name not in fixed)
    for name in outputs:
        part.graph.output.append(helper.make_tensor_value_info(name, types[name], None))
    _widen(part)
    return part


def _widen(model: "onnx.ModelProto") -> None:
    """Let the bf16 tensors that enter or leave the graph do so as float32, under their names."""
    import onnx
    from onnx import helper

    types, graph = onnx.TensorProto, model.graph
    for values, enters in ((graph.input, True), (graph.output, False)):
        for value in values:
            if value.type.tensor_type.elem_type != types.BFLOAT16:
                continue
            value.type.tensor_type.elem_type = types.FLOAT
            narrow = value.name + BF16
            for node in graph.node:
                for names in (node.input, node.output):
                    names[:] = [narrow if name == value.name else name for name in names]
            ends = ([value.name], [narrow]) if enters else ([narrow], [value.name])
            graph.node.insert(
                0 if enters else len(graph.node), helper.make_node("Cast", *ends, to=types.BFLOAT16 if enters else types.FLOAT)
            )


def marked(model: "onnx.ModelProto", names: Sequence[str]) -> "onnx.ModelProto":
    """The whole model with these tensors as outputs beside its own."""
    import onnx
    from onnx import helper

    types = types_of(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    own = {value.name for value in model.graph.output}
    copy.graph.output.extend(helper.make_tensor_value_info(name, types[name], None) for name in names if name not in own)
    _widen(copy)
    return copy


def entering(given: Mapping[str, Array], types: Mapping[str, int]) -> dict[str, Array]:
    """The values a cut graph takes, in the types it takes them."""
    import onnx
    from onnx import helper

    taken = {
        name: onnx.TensorProto.FLOAT if types[name] == onnx.TensorProto.BFLOAT16 else types[name]
        for name in given
        if name in types
    }
    return {name + GIVEN: np.asarray(given[name], helper.tensor_dtype_to_np_dtype(kind)) for name, kind in taken.items()}


def segment(model: "onnx.ModelProto", tensor: str, given: set[str]) -> tuple[set[str], set[str]]:
    """The tensors between the cuts and `tensor`, and the cuts it is computed from."""
    makers = {name: node for node in model.graph.node for name in node.output}
    inside, edge, waiting = set(), set(), list(makers[tensor].input)
    while waiting:
        name = waiting.pop()
        if name in given:
            edge.add(name)
        elif name in makers and name not in inside:
            inside.add(name)
            waiting += makers[name].input
    return inside, edge


def types_of(model: "onnx.ModelProto") -> dict[str, int]:
    """The element type of every tensor, as the number ONNX gives it."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    described = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in described}
    return types | {value.name: value.data_type for value in graph.initializer}


def shapes_of(model: "onnx.ModelProto") -> dict[str, tuple[int, ...]]:
    """Of every tensor where it is known, without the batch: that is the same in both graphs."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    described = (*graph.value_info, *graph.output)
    return {value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)[1:] for value in described}


def names_of(model: "onnx.ModelProto") -> set[str]:
    graph = model.graph
    computed = {name for node in graph.node for name in node.output}
    return computed | {value.name for value in (*graph.input, *graph.initializer)}
