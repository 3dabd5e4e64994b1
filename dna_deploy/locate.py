"""Which tensor of a converted network is the first wrong one? A search by segments, each tested on inputs that are right.

Holding the tensors of two graphs against each other from the image on would blame what a fault is carried to, and rounding that
adds up over a hundred layers hides a small fault. So the suspect is cut at up to 64 tensors, the *reference's* values are put in
at every cut, and each segment answers for itself only. The first segment that is off by more than rounding is cut again
until one tensor is left. What rounding may do there is measured, not assumed: the reference's own segment is run
unoptimized on inputs and weights disturbed as the precision would disturb them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_deploy.exporters.onnx import scopes
from dna_deploy.reference import Pair, Reference
from dna_deploy.rounding import TIMES, channel_axis, off, plain, rounding
from dna_deploy.subgraph import cut, entering, marked, onnxruntime_run, segment, shapes_of, types_of

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[["onnx.ModelProto", Mapping[str, Array]], dict[str, Array]]  # all outputs of a graph by name

MARKS = 64  # extra outputs at a time: what bounds the memory


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


def locate(
    reference: Reference,
    suspect: "onnx.ModelProto",
    inputs: Mapping[str, Array],
    precision: str = "fp32",
    run: Run = onnxruntime_run,
) -> Search:
    """The first tensor of `suspect`, in topological order, that is off by more than rounding of `precision`.

    `run` runs the suspect's graphs: another runtime's for a fault of that runtime. A few real images are enough as `inputs`.
    Of int8 the graph is judged, run as it is written: without VNNI ONNX Runtime's int8 kernels saturate in many layers, which is
    the runtime's doing and would hide a scale that is wrong. How far they move the output is `marks_change`.
    """
    trial = _Trial(reference, suspect, inputs, precision, run)
    pairs = searched = trial.pairs
    if reference.graph is not None and (other := _other_shape(reference.graph, suspect, pairs)) is not None:
        return Search(_describe(suspect, other), len(pairs), 0, 0, 0.0, False)
    boundary = [Pair(name, name) for name in inputs]
    runs, most, worst = 0, 0, None
    changed, fused_only = 0.0, False
    while True:
        entered = {pair.reference for pair in boundary} - set(inputs)
        marks = _spread(searched, MARKS - len(entered))
        judged = trial.judge(boundary, marks)
        runs, most = runs + 3, max(most, len(entered | {pair.reference for pair in marks}), len(marks))
        if searched is pairs:
            changed, fused_only = trial.marking(judged)
            runs += 2
        wrong = [one for one in judged if not one.times <= TIMES[precision]]
        if fused_only or not (wrong or worst):
            break
        # where the parts of a wrong segment are each within their rounding, the one that is furthest off made it wrong
        worst = wrong[0] if wrong else max(judged, key=lambda one: one.times)
        inside, edge = segment(suspect, worst.pair.suspect, {pair.suspect for pair in (*boundary, *marks)})
        searched = [pair for pair in pairs if pair.suspect in inside or pair == worst.pair]
        boundary = [pair for pair in (*boundary, *marks) if pair.suspect in edge]
        if len(searched) == 1 or not wrong:
            break
    found = None if worst is None or fused_only else _describe(suspect, worst)
    return Search(found, len(pairs), runs, most, changed, fused_only)


@dataclass(frozen=True, eq=False)
class _Judged:
    """A tensor of the suspect that was computed from right values, beside the reference's."""

    pair: Pair
    right: Array
    found: Array
    noise: Array  # by channel: what rounding gives
    axis: int | None = None  # where the channels are, if it is a weight with a scale each
    times: float = math.inf  # what rounding gives, in the channel that is furthest off


class _Trial:
    """Runs parts of the suspect on what the reference computes, and says how far each tensor is off."""

    def __init__(
        self, reference: Reference, suspect: "onnx.ModelProto", inputs: Mapping[str, Array], precision: str, run: Run
    ) -> None:
        self.reference, self.suspect, self.inputs, self.precision, self.run = reference, suspect, inputs, precision, run
        self.run_part = partial(run, optimize=False) if precision == "int8" and run is onnxruntime_run else run
        self.pairs = reference.pairs(suspect)
        self.types = types_of(suspect)
        fixed = {part.name: part for part in suspect.graph.initializer}
        dequantized = [node for node in suspect.graph.node if node.op_type == "DequantizeLinear"]
        self.clipped = {node.output[0] for node in dequantized if node.input[0] not in fixed}
        scaled = [node for node in dequantized if node.input[0] in fixed and fixed[node.input[1]].dims]
        weights = {node.output[0]: _axis(node) for node in scaled}
        self.axes = {pair.reference: weights[pair.suspect] for pair in self.pairs if pair.suspect in weights}

    def judge(self, boundary: Sequence[Pair], marks: Sequence[Pair]) -> list[_Judged]:
        """Each mark, computed from the marks and the boundary before it; in three runs."""
        wanted = list(dict.fromkeys(pair.reference for pair in (*boundary, *marks)))
        right = {name: self.inputs[name] for name in wanted if name in self.inputs}
        right |= self.reference.values([name for name in wanted if name not in self.inputs], self.inputs)
        given = {pair.suspect: right[pair.reference] for pair in (*boundary, *marks)}
        part = cut(self.suspect, given, [pair.suspect for pair in marks], self.types)
        found = self.run_part(part, entering(given, self.types))
        graph = self.reference.graph
        own = found if graph is None else None
        noise = rounding(graph or self.suspect, marks, boundary, right, self.precision, self.axes, own)
        judged = []
        for pair in marks:
            name, axis = pair.suspect, self.axes.get(pair.reference)
            times = off(given[name], found[name], noise[name], axis, whole=name in self.clipped).max()
            judged.append(_Judged(pair, given[name], found[name], noise[name], axis, float(times)))
        return judged

    def marking(self, judged: Sequence[_Judged]) -> tuple[float, bool]:
        """By how much marking tensors moves the outputs, and whether that alone makes a wrong one right; in two runs."""
        alone = self.run(self.suspect, self.inputs)
        beside = self.run_part(marked(self.suspect, [one.pair.suspect for one in judged]), self.inputs)
        outputs = [value.name for value in self.suspect.graph.output]
        change = max(float(np.abs(plain(alone[name]) - plain(beside[name])).max()) for name in outputs)
        limit = TIMES[self.precision]
        return change, any(
            off(one.right, beside[one.pair.suspect], one.noise).max() <= limit
            and off(one.right, alone[one.pair.suspect], one.noise).max() > 10 * limit
            for one in judged
            if one.pair.suspect in outputs
        )


def _spread(pairs: Sequence[Pair], room: int) -> list[Pair]:
    """At most `room` of them at even distances, the last one always."""
    if len(pairs) <= room:
        return list(pairs)
    return [pairs[math.ceil((place + 1) * len(pairs) / room) - 1] for place in range(room)]


def _other_shape(reference: "onnx.ModelProto", suspect: "onnx.ModelProto", pairs: Sequence[Pair]) -> _Judged | None:
    """The first tensor whose shape alone is wrong: no value of the reference could be put in there."""
    right, found = shapes_of(reference), shapes_of(suspect)
    for pair in pairs:
        shapes = right.get(pair.reference, ()), found.get(pair.suspect, ())
        if all(shapes) and 0 not in (*shapes[0], *shapes[1]) and shapes[0] != shapes[1]:
            return _Judged(pair, np.zeros(shapes[0]), np.zeros(shapes[1]), np.zeros(1))
    return None


def _axis(node: "onnx.NodeProto") -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)


def _describe(model: "onnx.ModelProto", judged: _Judged) -> BadTensor:
    right, found, noise = judged.right, judged.found, judged.noise
    makers = {name: node for node in model.graph.node for name in node.output}
    tensor = judged.pair.suspect
    node = makers[tensor]
    fixed = {value.name for value in model.graph.initializer}
    weights = [name for name in node.input if name in fixed and "." in name]
    at, within = node, scopes(node)
    while not within and at.input and at.input[0] in makers:  # what a step put in belongs to what it was put behind
        at = makers[at.input[0]]
        within = scopes(at)
    own = [name.rpartition(".")[0] for name in weights if name.endswith(".weight")]
    module = own[0] if own else within[-2] if len(within) > 1 else ""
    if right.shape != found.shape:
        nothing = Side(math.nan, math.nan, math.nan, math.nan)
        return BadTensor(tensor, node.name, node.op_type, module, weights, 0, math.inf, 0.0, nothing, nothing)
    above = off(right, found, noise, judged.axis)
    channel = int(above.argmax())
    axis = channel_axis(right) if judged.axis is None else judged.axis
    here = (plain(right), plain(found)) if right.ndim < 2 else tuple(plain(side).take(channel, axis) for side in (right, found))
    gap = np.abs(here[1] - here[0])
    worst = np.unravel_index(int(np.where(np.isfinite(gap), gap, np.inf).argmax()), gap.shape)
    sides = [Side(float(part.mean()), float(part.min()), float(part.max()), float(part[worst])) for part in here]
    difference = float(np.sqrt(np.mean(np.square(gap.astype(np.float64)))))
    return BadTensor(
        tensor,
        node.name,
        node.op_type,
        module,
        weights,
        channel,
        difference,
        float(noise[channel]) if len(noise) > channel else 0.0,
        *sides,
    )
