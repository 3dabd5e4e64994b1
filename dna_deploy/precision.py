"""fp16 and bf16 live in the ONNX graph: weights in the narrow type, Casts where it begins and ends, float32 outside.

A node stays in float32 where a tensor it touches was seen with values the narrow type cannot hold, where a weight would become
zero, or where its operator takes float32 only. fp16 nodes are typed fp16. No runtime on a CPU computes in bf16, so a bf16 node is
written as what the hardware does: a float32 node between Casts, every tensor and weight rounded to bf16. Such a file runs
everywhere and is half as large.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_deploy.errors import RequestError, first_line
from dna_deploy.exporters._bf16 import WIDE
from dna_deploy.ranges import Histogram

if TYPE_CHECKING:
    import onnx

FP16_LARGEST = 65504.0
HEADROOM = 4.0  # other images may have values larger than those that were seen by this much


def lower(model: "onnx.ModelProto", precision: str, seen: Mapping[str, Histogram]) -> "tuple[onnx.ModelProto, tuple[str, ...]]":
    """The model in `fp16` or `bf16`, and the nodes that stay in float32, each with the reason."""
    import onnx

    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    graph = _Lowering(lowered, precision)
    kept: list[str] = []
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise RequestError(
                f"node {node.name} ({node.op_type}) has a graph inside; --precision {precision} cannot be given to it"
            )
        if reason := graph.too_large(node, seen):
            kept.append(f"{node.name}: {reason}")
        graph.add(node, narrow=reason is None)
    graph.finish()
    try:
        onnx.checker.check_model(lowered, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RequestError(
            f"--precision {precision} cannot be given to this network ({first_line(error)}); choose another"
        ) from error
    return lowered, tuple(kept)


class _Lowering:
    """Rewrites the nodes of `model` one by one; every tensor has one type in the new graph, and Casts are shared."""

    def __init__(self, model: "onnx.ModelProto", precision: str) -> None:
        import onnx

        types = onnx.TensorProto
        self.fp16 = precision == "fp16"
        self.narrow_type, self.wide_type = (types.FLOAT16 if self.fp16 else types.BFLOAT16), types.FLOAT
        self.suffix = f"_{precision}"
        self.graph = model.graph
        self.opsets = {_plain(entry.domain): entry.version for entry in model.opset_import}
        inferred = onnx.shape_inference.infer_shapes(model).graph
        described = (*inferred.value_info, *inferred.input, *inferred.output)
        self.floats = {value.name for value in described if value.type.tensor_type.elem_type == types.FLOAT}
        self.weights = {weight.name: weight for weight in self.graph.initializer if weight.data_type == types.FLOAT}
        self.narrow: set[str] = set()  # tensors that are narrow under their own name
        self.nodes: list[Any] = []
        self.made: dict[tuple[str, bool], str] = {}  # (tensor, narrow) -> its name in that type

    def too_large(self, node: "onnx.NodeProto", seen: Mapping[str, Histogram]) -> str | None:
        """Why a node with float tensors must stay in float32; None where it need not."""
        schema = self._schema(node)
        if schema is None:
            return f"{node.op_type} is not an operator of ONNX"
        for place, name in enumerate(node.input):  # float16 stands for bf16 too, which older operator sets do not know yet
            if self._is_float(name) and "tensor(float16)" not in _formal(schema.inputs, place).types:
                return f"{node.op_type} takes float32 only"
        for name in (*node.input, *node.output):
            if name in self.weights:
                values = np.abs(self._values(name))
                largest = float(values.max(initial=0.0))
                vanishes = self.fp16 and largest > 0 and float(np.float16(largest)) == 0
                if vanishes:
                    return f"{name} is {largest:.2g} and would become zero"
                limit = FP16_LARGEST
            elif name in seen:
                largest, limit = seen[name].largest, FP16_LARGEST / HEADROOM
            else:
                continue
            if self.fp16 and largest > limit:
                return f"{name} reaches {largest:.3g}, the limit is {limit:.5g}"
        return None

    def add(self, node: "onnx.NodeProto", narrow: bool) -> None:
        import onnx

        written = onnx.NodeProto()
        written.CopyFrom(node)
        typed = narrow and any(map(self._is_float, (*node.input, *node.output)))
        as_stated = typed and self._states_its_type(node)
        in_fp16 = typed and self.fp16 and not as_stated
        for place, name in enumerate(node.input):
            if self._is_float(name):
                written.input[place] = self._as(name, narrow=in_fp16, rounded=typed)
        after: list[Any] = []
        for place, name in enumerate(node.output):
            if not typed or name not in self.floats:
                continue
            if in_fp16:
                self.narrow.add(name)
            elif not as_stated:  # computed in float32, then rounded: name is what is stored, in the narrow type
                written.output[place] = name + WIDE
                after.append(self._cast(name + WIDE, name, self.narrow_type))
                self.narrow.add(name)
        self.nodes += [written, *after]

    def finish(self) -> None:
        """Give the graph's outputs their float32 back, and drop weights that nobody uses in their old type."""
        for output in self.graph.output:
            if output.name in self.narrow:
                inner = f"{output.name}{self.suffix}"
                for node in self.nodes:
                    for names in (node.input, node.output):
                        for place, name in enumerate(names):
                            if name == output.name:
                                names[place] = inner
                self.nodes.append(self._cast(inner, output.name, self.wide_type))
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        left = [weight for weight in self.graph.initializer if weight.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(left)

    def _is_float(self, name: str) -> bool:
        return name in self.floats or name in self.weights

    def _states_its_type(self, node: "onnx.NodeProto") -> bool:
        """Whether it computes float32 because an attribute says so, as Constant and Cast, and not because its inputs are."""
        schema = self._schema(node)
        given = {formal.type_str for formal in schema.inputs}
        made = [_formal(schema.outputs, place) for place, name in enumerate(node.output) if name]
        return any("tensor(float)" in "".join(formal.types) and formal.type_str not in given for formal in made)

    def _schema(self, node: "onnx.NodeProto") -> Any:
        """The definition of its operator; None where ONNX has none."""
        from onnx import defs

        domain = _plain(node.domain)
        version = self.opsets.get(domain, 0)
        return defs.get_schema(node.op_type, version, domain) if defs.has(node.op_type, version, domain) else None

    def _as(self, name: str, narrow: bool, rounded: bool) -> str:
        """The name under which a tensor can be read: narrow, or in float32, there `rounded` to the narrow type or as it is."""
        if narrow:
            return name if name in self.narrow else self._stored(name)
        if name in self.narrow:
            return self._once((name, False), f"{name}_float32", lambda new: self._add_cast(name, new, self.wide_type))
        if not rounded:
            return name
        stored = self._stored(name)
        return self._once((name, False), f"{name}_rounded", lambda new: self._add_cast(stored, new, self.wide_type))

    def _stored(self, name: str) -> str:
        """A float32 tensor in the narrow type: weights are converted here, others by a Cast."""
        if name in self.weights:
            return self._once((name, True), f"{name}{self.suffix}", lambda new: self._store(name, new))
        return self._once((name, True), f"{name}{self.suffix}", lambda new: self._add_cast(name, new, self.narrow_type))

    def _once(self, key: tuple[str, bool], new: str, make: Callable[[str], None]) -> str:
        if key not in self.made:
            self.made[key] = new
            make(new)
        return self.made[key]

    def _store(self, name: str, new: str) -> None:
        from onnx import helper

        values = self._values(name)
        stored = helper.make_tensor(new, self.narrow_type, values.shape, _bits(values, self.fp16), raw=True)
        self.graph.initializer.append(stored)

    def _values(self, name: str) -> "np.ndarray[Any, Any]":
        from onnx import numpy_helper

        return numpy_helper.to_array(self.weights[name])

    def _add_cast(self, source: str, target: str, kind: int) -> None:
        self.nodes.append(self._cast(source, target, kind))

    def _cast(self, source: str, target: str, kind: int) -> "onnx.NodeProto":
        from onnx import helper

        return helper.make_node("Cast", [source], [target], name=f"cast_{source}_to_{target}", to=kind)


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _formal(formals: Sequence[Any], place: int) -> Any:
    """How the definition describes this input or output; the last one may stand for any number."""
    return formals[min(place, len(formals) - 1)]


def _bits(values: "np.ndarray[Any, Any]", fp16: bool) -> bytes:
    """The narrow numbers nearest to these, ties to even, in their memory layout."""
    if fp16:
        return values.astype("<f2").tobytes()
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
