"""How far a tensor may be off because of a precision's rounding alone: measured on the graph, not assumed."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_deploy.reference import Pair
from dna_deploy.subgraph import cut, entering, onnxruntime_run, types_of

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, np.dtype[Any]]

# One rounding error relative to the value, and by how many times what was measured a tensor may be off: of 35 planted fp32
# faults all 26 that do harm are above it (benchmarks/faults.py).
ROUNDING = {"fp32": 2.0**-23, "fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 0.0}
TIMES = {"fp32": 16.0, "fp16": 8.0, "bf16": 8.0, "int8": 6.0}
INT8_STEPS = 255  # of a tensor's range; a weight has its own range for each output channel


def rounding(
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
    entering_as = {
        names[pair.suspect] for pair in boundary
    }  # a tensor that is only handed on, as by Q/DQ, is rounded and no more
    outputs = list(dict.fromkeys(names[pair.suspect] for pair in marks if names[pair.suspect] in computed - entering_as))
    shaken: dict[str, Array] = {}
    if outputs:
        given = {
            names[pair.suspect]: _disturbed(right[pair.reference], precision, rng)
            for pair in (*boundary, *marks)
            if names[pair.suspect] not in fixed
        }
        types = types_of(graph)
        model = cut(graph, given, outputs, types)
        for part in model.graph.initializer:
            if len(part.dims) > 1 and part.data_type == 1:
                part.CopyFrom(numpy_helper.from_array(_disturbed(numpy_helper.to_array(part), precision, rng, True), part.name))
        shaken = onnxruntime_run(model, entering(given, types), optimize=False)
    noise = {}
    for pair in marks:
        value = straight[pair.suspect]
        if precision == "int8":
            noise[pair.suspect] = _by_channel(_disturbed(value, precision, rng, names[pair.suspect] in fixed) - plain(value))
        else:  # expected, not drawn: one value alone in its channel may draw next to nothing
            noise[pair.suspect] = ROUNDING[precision] / math.sqrt(3) * _by_channel(plain(value))
        if (moved := shaken.get(names[pair.suspect])) is not None:
            noise[pair.suspect] = np.hypot(noise[pair.suspect], _by_channel(plain(moved) - plain(value)))
    return noise


def off(right: Array, found: Array, noise: Array, whole: bool = False) -> Array:
    """By channel: the difference over what rounding gives; infinite where it is not a number or of another shape.

    `whole`: one figure for all channels, of a tensor with one range for all: clipping a few large values for the sake of
    all others costs the channel they are in.
    """
    if right.shape != found.shape:
        return np.array([math.inf])
    with np.errstate(invalid="ignore", over="ignore"):
        difference = _by_channel(plain(found) - plain(right))
    if whole:
        difference, noise = (np.sqrt(np.mean(np.square(values), keepdims=True)) for values in (difference, noise))
    alive = noise[noise > 0]  # behind an activation most channels may be zero, and say nothing of those that barely are not
    floor = np.maximum(noise, np.median(alive) / 2 if alive.size else 0.0) + 1e-30
    return np.where(np.isfinite(difference), difference / floor, math.inf)


def _disturbed(value: Array, precision: str, rng: np.random.Generator, weight: bool = False) -> Array:
    """The value as this precision would hold it, with the rounding drawn at random; whole numbers stay."""
    if value.dtype.kind != "f":
        return value
    value = plain(value)
    error = rng.uniform(-1, 1, value.shape)
    if precision != "int8":
        return (value * (1 + ROUNDING[precision] * error)).astype(np.float32)
    axes = tuple(range(1, value.ndim)) if weight else None
    step = (value.max(axes, keepdims=True) - value.min(axes, keepdims=True)) / INT8_STEPS
    return (value + error / 2 * step).astype(np.float32)


def _by_channel(values: Array) -> Array:
    """Root mean square of each channel: axis 1 of images and rows, the last axis of token sequences."""
    if values.ndim < 2:
        return np.sqrt(np.mean(np.square(values.astype(np.float64)), keepdims=True)).reshape(-1)
    last = np.moveaxis(values, 2 if values.ndim == 3 else 1, -1)
    found: Array = np.sqrt(np.mean(np.square(last.reshape(-1, last.shape[-1]).astype(np.float64)), axis=0))
    return found


def plain(values: Array) -> Array:
    return values.astype(np.float32, copy=False)
