"""Which tensor of a converted network is the first wrong one? A search by segments, each tested on inputs that are right.

Holding the tensors of two graphs against each other from the image on would blame what a fault is carried to, and rounding that
adds up over a hundred layers hides a small fault. So the suspect is cut at up to 64 tensors, the *reference's* values are put in
at every cut, and each segment answers for itself only. The first segment that is off by more than rounding is cut again
until one tensor is left. What rounding may do there is measured, not assumed: the reference's own segment is run
unoptimized on inputs and weights disturbed as the precision would disturb them.

Not covered: graphs with control flow, and models above 2 GB.
"""

import ast
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dna_deploy.exporters.onnx import SCOPES

if TYPE_CHECKING:
    import onnx
    from torch import nn

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[["onnx.ModelProto", Mapping[str, Array]], dict[str, Array]]  # all outputs of a graph by name

MARKS = 64  # extra outputs at a time: what bounds the memory
GIVEN = "::given"  # ending of the name under which the reference's value of a tensor enters the suspect
HANDED_ON = ("Cast", "Identity", "QuantizeLinear", "DequantizeLinear")  # the same tensor in another type

# One rounding error relative to the value, and by how many times what was measured a tensor may be off: of 35 planted fp32
# faults all 25 that do harm are above it (benchmarks/faults.py).
ROUNDING = {"fp32": 2.0**-23, "fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 0.0}
TIMES = {"fp32": 16.0, "fp16": 8.0, "bf16": 8.0, "int8": 6.0}
INT8_STEPS = 255  # of a tensor's range; a weight has its own range for each output channel


@dataclass(frozen=True)
class Pair:
    """A tensor of the suspect, and what it is called in the reference."""

    suspect: str
    reference: str


@dataclass(frozen=True)
class Side:
    """The worst channel of the bad tensor in one of the two networks, and its value where they differ most."""

    mean: float
    smallest: float
    largest: float
    at_worst: float


@dataclass(frozen=True)
class BadTensor:
    """A tensor that is wrong although everything it is computed from is right."""

    tensor: str
    node: str  # that computes it
    op: str
    module: str  # of the network; "" where the exporter left no name
    weights: list[str]  # the node's own
    channel: int
    difference: float  # root mean square in that channel
    rounding: float  # what rounding of this precision gives there
    reference: Side
    suspect: Side

    @property
    def text(self) -> str:
        """One line for a person: where, what, and the numbers on both sides."""
        where = f"module {self.module}" if self.module else f"node {self.node}"
        weights = f", weights {self.weights[0]}" if self.weights else ""
        return (
            f"first wrong at tensor {self.tensor} ({self.op}, {where}{weights}): channel {self.channel} is off by "
            f"{self.difference:.2g} where rounding gives {self.rounding:.2g}; reference {self.reference.at_worst:.6g}, "
            f"found {self.suspect.at_worst:.6g}"
        )


@dataclass(frozen=True)
class Search:
    """What a search found and what it cost. `marks_change` is by how much marking tensors alone moved the output."""

    found: BadTensor | None
    tensors: int  # that could be compared
    runs: int
    most_marks: int  # extra outputs at a time
    marks_change: float
    fused_only: bool  # the difference is there only while nothing is marked: the runtime's fusion makes it

    @property
    def text(self) -> str:
        if self.fused_only:
            said = "the difference vanishes once tensors are marked: the runtime's own fusion makes it, not a tensor of the graph"
        elif self.found is None:
            said = f"none of {self.tensors} tensors is off by more than rounding: small errors add up, or the fault does no harm"
        else:
            said = self.found.text
        if self.marks_change and not self.fused_only:
            said += f" (marking tensors moved the output by {self.marks_change:.1g})"
        return said


class Reference(Protocol):
    """The trusted side: which tensors of a suspect it knows, their values, and a graph to measure rounding on."""

    def pairs(self, suspect: "onnx.ModelProto") -> list[Pair]:
        """In the suspect's topological order, its outputs included."""

    def values(self, names: Sequence[str], inputs: Mapping[str, Array]) -> dict[str, Array]: ...

    @property
    def graph(self) -> "onnx.ModelProto | None": ...


@dataclass(frozen=True)
class Graph:
    """A trusted ONNX graph: the step before."""

    model: "onnx.ModelProto"

    @property
    def graph(self) -> "onnx.ModelProto":
        return self.model

    def pairs(self, suspect: "onnx.ModelProto") -> list[Pair]:
        """By name where the step kept names; else graphs are aligned by their sequence of (op, shape)."""
        # a bias in int32 has steps as fine as the sums it is added to: it is judged with the layer that adds it
        biases = {part.name for part in self.model.graph.initializer if len(part.dims) < 2}
        known = _names(self.model) - biases
        by_name = _by_name(suspect, known)
        outputs = [name for node in suspect.graph.node for name in node.output]
        if 2 * len(by_name) >= len(outputs):
            return by_name
        ours, theirs = _signatures(self.model), _signatures(suspect)
        aligned = difflib.SequenceMatcher(None, [key for _, key in theirs], [key for _, key in ours], autojunk=False)
        found = {
            theirs[block.a + i][0]: ours[block.b + i][0] for block in aligned.get_matching_blocks() for i in range(block.size)
        }
        found |= {pair.suspect: pair.reference for pair in by_name}
        found |= {a.name: b.name for a, b in zip(suspect.graph.output, self.model.graph.output, strict=True)}
        return [Pair(name, found[name]) for name in outputs if name in found]

    def values(self, names: Sequence[str], inputs: Mapping[str, Array]) -> dict[str, Array]:
        from onnx import numpy_helper

        fixed = {part.name: numpy_helper.to_array(part) for part in self.model.graph.initializer if part.name in names}
        fixed |= {name: value for name, value in inputs.items() if name in names}
        computed = [name for name in names if name not in fixed]
        return fixed | (onnxruntime_run(_marked(self.model, computed), inputs) if computed else {})


@dataclass(frozen=True)
class Module:
    """A trusted torch network: a tensor is known where the exporter says which module's output it is."""

    network: "nn.Module"

    @property
    def graph(self) -> None:
        return None

    def pairs(self, suspect: "onnx.ModelProto") -> list[Pair]:
        last: dict[str, str] = {}  # module -> the last tensor computed inside it
        for node in suspect.graph.node:
            for scope in _scopes(node)[:-1]:
                last[scope] = node.output[0]
        known = dict(self.network.named_modules())
        shortest: dict[str, str] = {}  # a module and its last child end with the same tensor: one name will do
        for module, tensor in last.items():
            if module in known and module:
                shortest[tensor] = module
        shortest[suspect.graph.output[0].name] = ""
        return [Pair(name, shortest[name]) for node in suspect.graph.node for name in node.output if name in shortest]

    def values(self, names: Sequence[str], inputs: Mapping[str, Array]) -> dict[str, Array]:
        import torch

        found: dict[str, Array] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: "nn.Module", given: Any, output: torch.Tensor) -> None:
                found[name] = output.detach().numpy().copy()  # the next layer may work in place

            return hook

        hooks = [module.register_forward_hook(keep(name)) for name, module in self.network.named_modules() if name in names]
        try:
            with torch.no_grad():
                self.network.eval()(*(torch.from_numpy(np.ascontiguousarray(value)) for value in inputs.values()))
        finally:
            for hook in hooks:
                hook.remove()
        return found


def onnxruntime_run(model: "onnx.ModelProto", inputs: Mapping[str, Array], optimize: bool = True) -> dict[str, Array]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    fed = {name: value for name, value in inputs.items() if name in wanted}
    return dict(zip(names, session.run(names, fed), strict=True))


def locate(
    reference: Reference,
    suspect: "onnx.ModelProto",
    inputs: Mapping[str, Array],
    precision: str = "fp32",
    run: Run = onnxruntime_run,
) -> Search:
    """The first tensor of `suspect`, in topological order, that is off by more than rounding of `precision`.

    `run` runs the suspect's graphs: another runtime's for a fault of that runtime. A few real images are enough as `inputs`.
    """
    pairs = reference.pairs(suspect)
    noisy = reference.graph or suspect
    outputs = [value.name for value in suspect.graph.output]
    types = _types(suspect)
    runs, most, boundary, searched = 0, 0, [Pair(name, name) for name in inputs], pairs
    changed, fused_only = 0.0, False
    bad: tuple[Pair, Array, Array, Array] | None = None
    if reference.graph is not None and (other := _other_shape(reference.graph, suspect, pairs)) is not None:
        return Search(_describe(suspect, *other), len(pairs), 0, 0, 0.0, False)
    while True:
        room = MARKS - len({pair.reference for pair in boundary} - set(inputs))
        marks = _spread(searched, room)
        wanted = list(dict.fromkeys(pair.reference for pair in (*boundary, *marks)))
        right = {name: inputs[name] for name in wanted if name in inputs}
        right |= reference.values([name for name in wanted if name not in inputs], inputs)
        given = {pair.suspect: right[pair.reference] for pair in (*boundary, *marks)}
        found = run(_cut(suspect, given, [pair.suspect for pair in marks], types), _entering(given, types))
        noise = _rounding(noisy, marks, boundary, right, precision, found if reference.graph is None else None)
        runs, most = runs + 3, max(most, len(set(wanted) - set(inputs)), len(marks))
        if searched is pairs:  # marks alone must not change what is looked for
            plain, beside = run(suspect, inputs), run(_marked(suspect, [pair.suspect for pair in marks]), inputs)
            runs += 2
            last = {pair.suspect: right[pair.reference] for pair in marks}
            changed = max(float(np.abs(_plain(plain[name]) - _plain(beside[name])).max()) for name in outputs)
            fused_only = any(
                name in last
                and _off(last[name], beside[name], noise[name]).max() <= TIMES[precision]
                and _off(last[name], plain[name], noise[name]).max() > 10 * TIMES[precision]
                for name in outputs
            )
        wrong = [
            pair
            for pair in marks
            if not _off(given[pair.suspect], found[pair.suspect], noise[pair.suspect]).max() <= TIMES[precision]
        ]
        if not wrong or fused_only:
            break
        first = wrong[0]
        bad = first, given[first.suspect], found[first.suspect], noise[first.suspect]
        inside, edge = _segment(suspect, first.suspect, set(given))
        searched = [pair for pair in pairs if pair.suspect in inside or pair == first]
        boundary = [pair for pair in (*boundary, *marks) if pair.suspect in edge]
        if len(searched) == 1:
            break
    located = None if bad is None or fused_only else _describe(suspect, *bad)
    return Search(located, len(pairs), runs, most, changed, fused_only)


def _rounding(
    graph: "onnx.ModelProto",
    marks: Sequence[Pair],
    boundary: Sequence[Pair],
    right: Mapping[str, Array],
    precision: str,
    own: Mapping[str, Array] | None,
) -> dict[str, Array]:
    """By the suspect's name of each mark: the root mean square, a channel, of what rounding does to it.

    `own`: where the reference is no graph, the graph is the suspect itself and these are its values of the marks.
    """
    from onnx import numpy_helper

    rng = np.random.default_rng(0)
    names = {pair.suspect: pair.reference if own is None else pair.suspect for pair in (*boundary, *marks)}
    straight = {pair.suspect: right[pair.reference] if own is None else own[pair.suspect] for pair in marks}
    fixed = {part.name for part in graph.graph.initializer}
    computed = {name for node in graph.graph.node for name in node.output}
    outputs = [name for name in dict.fromkeys(names[pair.suspect] for pair in marks) if name in computed]
    shaken: dict[str, Array] = {}
    if outputs:
        given = {
            names[pair.suspect]: _disturbed(right[pair.reference], precision, rng)
            for pair in (*boundary, *marks)
            if names[pair.suspect] not in fixed
        }
        types = _types(graph)
        model = _cut(graph, given, outputs, types)
        for part in model.graph.initializer:
            if len(part.dims) > 1 and part.data_type == 1:
                part.CopyFrom(numpy_helper.from_array(_disturbed(numpy_helper.to_array(part), precision, rng, True), part.name))
        shaken = onnxruntime_run(model, _entering(given, types), optimize=False)
    noise = {}
    for pair in marks:
        value = straight[pair.suspect]
        noise[pair.suspect] = _by_channel(_disturbed(value, precision, rng, names[pair.suspect] in fixed) - _plain(value))
        if (moved := shaken.get(names[pair.suspect])) is not None:
            noise[pair.suspect] = np.hypot(noise[pair.suspect], _by_channel(_plain(moved) - _plain(value)))
    return noise


def _disturbed(value: Array, precision: str, rng: np.random.Generator, weight: bool = False) -> Array:
    """The value as this precision would hold it, with the rounding drawn at random; whole numbers stay."""
    if value.dtype.kind != "f":
        return value
    value = _plain(value)
    error = rng.uniform(-1, 1, value.shape)
    if precision != "int8":
        return (value * (1 + ROUNDING[precision] * error)).astype(np.float32)
    axes = tuple(range(1, value.ndim)) if weight else None
    step = (value.max(axes, keepdims=True) - value.min(axes, keepdims=True)) / INT8_STEPS
    return (value + error / 2 * step).astype(np.float32)


def _off(right: Array, found: Array, noise: Array) -> Array:
    """By channel: the difference over what rounding gives; infinite where it is not a number or of another shape."""
    if right.shape != found.shape:
        return np.array([math.inf])
    with np.errstate(invalid="ignore", over="ignore"):
        difference = _by_channel(_plain(found) - _plain(right))
    floor = np.maximum(noise, np.median(noise) / 2) + 1e-30
    return np.where(np.isfinite(difference), difference / floor, math.inf)


def _by_channel(values: Array) -> Array:
    """Root mean square of each channel: axis 1 of images and rows, the last axis of token sequences."""
    if values.ndim < 2:
        return np.sqrt(np.mean(np.square(values.astype(np.float64)), keepdims=True)).reshape(-1)
    last = np.moveaxis(values, 2 if values.ndim == 3 else 1, -1)
    found: Array = np.sqrt(np.mean(np.square(last.reshape(-1, last.shape[-1]).astype(np.float64)), axis=0))
    return found


def _plain(values: Array) -> Array:
    return values.astype(np.float32, copy=False)


def _spread(pairs: Sequence[Pair], room: int) -> list[Pair]:
    """At most `room` of them at even distances, the last one always."""
    if len(pairs) <= room:
        return list(pairs)
    return [pairs[math.ceil((place + 1) * len(pairs) / room) - 1] for place in range(room)]


def _cut(
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
    entering = [name for name in read if name.endswith(GIVEN)]
    entering += [value.name for value in model.graph.input if value.name in read and value.name not in fixed]
    for name in entering:
        part.graph.input.append(helper.make_tensor_value_info(name, types[name.removesuffix(GIVEN)], None))
    for name in outputs:
        part.graph.output.append(helper.make_tensor_value_info(name, types[name], None))
    return part


def _marked(model: "onnx.ModelProto", names: Sequence[str]) -> "onnx.ModelProto":
    """The whole model with these tensors as outputs beside its own."""
    import onnx
    from onnx import helper

    types = _types(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    own = {value.name for value in model.graph.output}
    copy.graph.output.extend(helper.make_tensor_value_info(name, types[name], None) for name in names if name not in own)
    return copy


def _entering(given: Mapping[str, Array], types: Mapping[str, int]) -> dict[str, Array]:
    """The values a cut graph takes, in the types it takes them."""
    from onnx import helper

    return {
        name + GIVEN: value.astype(helper.tensor_dtype_to_np_dtype(types[name]), copy=False)
        for name, value in given.items()
        if name in types
    }


def _segment(model: "onnx.ModelProto", tensor: str, given: set[str]) -> tuple[set[str], set[str]]:
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


def _types(model: "onnx.ModelProto") -> dict[str, int]:
    """The element type of every tensor, as the number ONNX gives it."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    described = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in described}
    return types | {value.name: value.data_type for value in graph.initializer}


def _names(model: "onnx.ModelProto") -> set[str]:
    graph = model.graph
    computed = {name for node in graph.node for name in node.output}
    return computed | {value.name for value in (*graph.input, *graph.initializer)}


def _by_name(suspect: "onnx.ModelProto", known: set[str]) -> list[Pair]:
    """What a Cast or a pair of QuantizeLinear and DequantizeLinear hands on is the tensor they took."""
    before: dict[str, str] = {}
    found = []
    for node in suspect.graph.node:
        if node.op_type in HANDED_ON:
            before[node.output[0]] = node.input[0]
        for name in node.output if node.op_type != "QuantizeLinear" else ():
            at: str | None = name
            while at and at not in known:
                at = before.get(at) or (at.removesuffix("_quantized") if at.endswith("_quantized") else None)
            if at and name:
                found.append(Pair(name, at))
    return found


def _signatures(model: "onnx.ModelProto") -> list[tuple[str, tuple[Any, ...]]]:
    """Every computed tensor with its op and shape."""
    shapes = _shapes(model)
    return [(name, (node.op_type, shapes.get(name))) for node in model.graph.node for name in node.output if name]


def _shapes(model: "onnx.ModelProto") -> dict[str, tuple[int, ...]]:
    """Of every tensor where it is known, without the batch: that is the same in both graphs."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    described = (*graph.value_info, *graph.output)
    return {value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)[1:] for value in described}


def _other_shape(
    reference: "onnx.ModelProto", suspect: "onnx.ModelProto", pairs: Sequence[Pair]
) -> tuple[Pair, Array, Array, Array] | None:
    """The first tensor whose shape alone is wrong: no value of the reference could be put in there."""
    right, found = _shapes(reference), _shapes(suspect)
    for pair in pairs:
        shapes = right.get(pair.reference, ()), found.get(pair.suspect, ())
        if all(shapes) and 0 not in (*shapes[0], *shapes[1]) and shapes[0] != shapes[1]:
            return pair, np.zeros(shapes[0]), np.zeros(shapes[1]), np.zeros(1)
    return None


def _scopes(node: "onnx.NodeProto") -> list[str]:
    """The modules a node lies in, outermost first, and its own name last; as the exporter noted them."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            try:
                return [str(part) for part in ast.literal_eval(entry.value)]
            except (ValueError, SyntaxError):
                return []
    return []


def _describe(model: "onnx.ModelProto", pair: Pair, right: Array, found: Array, noise: Array) -> BadTensor:
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers[pair.suspect]
    fixed = {value.name for value in model.graph.initializer}
    weights = [name for name in node.input if name in fixed and "." in name]
    at, scopes = node, _scopes(node)
    while not scopes and at.input and at.input[0] in makers:  # what a step put in belongs to what it was put behind
        at = makers[at.input[0]]
        scopes = _scopes(at)
    own = [name.rpartition(".")[0] for name in weights if name.endswith(".weight")]
    module = own[0] if own else scopes[-2] if len(scopes) > 1 else ""
    if right.shape != found.shape:
        nothing = Side(math.nan, math.nan, math.nan, math.nan)
        return BadTensor(pair.suspect, node.name, node.op_type, module, weights, 0, math.inf, 0.0, nothing, nothing)
    off = _off(right, found, noise)
    channel = int(off.argmax())
    axis = (2 if right.ndim == 3 else 1) if right.ndim > 1 else 0
    here = (
        (_plain(right), _plain(found)) if right.ndim < 2 else tuple(_plain(side).take(channel, axis) for side in (right, found))
    )
    gap = np.abs(here[1] - here[0])
    worst = np.unravel_index(int(np.where(np.isfinite(gap), gap, np.inf).argmax()), gap.shape)
    sides = [Side(float(part.mean()), float(part.min()), float(part.max()), float(part[worst])) for part in here]
    difference = float(np.sqrt(np.mean(np.square(gap.astype(np.float64)))))
    return BadTensor(
        pair.suspect,
        node.name,
        node.op_type,
        module,
        weights,
        channel,
        difference,
        float(noise[channel]) if len(noise) > channel else 0.0,
        *sides,
    )
