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

# The largest rounding error relative to the value, and by how many times what was measured a tensor may be off: of 35 planted
# fp32 faults all that do harm are above it (benchmarks/faults.py).
ROUNDING = {"fp32": 2.0**-23, "fp16": 2.0**-11, "bf16": 2.0**-8}
TIMES = {"fp32": 16.0, "fp16": 8.0, "bf16": 8.0, "int8": 6.0}
STEPS = 255  # int8: of a tensor's range
WEIGHT_STEPS = 64  # int8: from zero to the largest weight of a channel, in 7 bits: the coarser of the two that are written


def rounding(
    graph: "onnx.ModelProto",
    marks: Sequence[Pair],
    boundary: Sequence[Pair],
    right: Mapping[str, Array],
    precision: str,
    axes: Mapping[str, int],
    own: Mapping[str, Array] | None,
) -> dict[str, Array]:
    """By the suspect's name of each mark: the root mean square, a channel, of what rounding does to it.

    `axes`: where weights with a scale a channel have their channels. `own`: where the reference is no graph, the graph is the
    suspect itself and these are its values of the marks.
    """
    from onnx import numpy_helper

    rng = np.random.default_rng(0)
    names = {pair.suspect: pair.reference if own is None else pair.suspect for pair in (*boundary, *marks)}
    straight = {pair.suspect: right[pair.reference] if own is None else own[pair.suspect] for pair in marks}
    fixed = {part.name for part in graph.graph.initializer}
    computed = {name for node in graph.graph.node for name in node.output}
    handed_on = {names[pair.suspect] for pair in boundary}  # as by Q/DQ: such a tensor is rounded and no more
    outputs = list(dict.fromkeys(names[pair.suspect] for pair in marks if names[pair.suspect] in computed - handed_on))
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
                weight = _disturbed(numpy_helper.to_array(part), precision, rng, axes.get(part.name, 0))
                part.CopyFrom(numpy_helper.from_array(weight, part.name))
        shaken = onnxruntime_run(model, entering(given, types), optimize=False)
    noise = {}
    for pair in marks:
        value, axis = straight[pair.suspect], axes.get(names[pair.suspect])
        # expected, not drawn: one value alone in its channel may draw next to nothing
        noise[pair.suspect] = _by_channel(_largest_error(plain(value), precision, axis), axis) / math.sqrt(3)
        if (moved := shaken.get(names[pair.suspect])) is not None:
            noise[pair.suspect] = np.hypot(noise[pair.suspect], _by_channel(plain(moved) - plain(value), axis))
    return noise


def off(right: Array, found: Array, noise: Array, axis: int | None = None, whole: bool = False) -> Array:
    """By channel: the difference over what rounding gives; infinite where it is not a number or of another shape.

    `axis`: where the channels are, if not where an activation has them. `whole`: one figure for all channels, of a tensor with
    one range for all: clipping a few large values for the sake of all others costs the channel they are in.
    """
    if right.shape != found.shape:
        return np.array([math.inf])
    with np.errstate(invalid="ignore", over="ignore"):
        difference = _by_channel(plain(found) - plain(right), axis)
    if whole:
        difference, noise = (np.sqrt(np.mean(np.square(values), keepdims=True)) for values in (difference, noise))
    alive = noise[noise > 0]  # behind an activation most channels may be zero, and say nothing of those that barely are not
    floor = np.maximum(noise, np.median(alive) / 2 if alive.size else 0.0) + 1e-30
    return np.where(np.isfinite(difference), difference / floor, math.inf)


def _disturbed(value: Array, precision: str, rng: np.random.Generator, axis: int | None = None) -> Array:
    """The value as this precision would hold it, with the rounding drawn at random; whole numbers stay."""
    if value.dtype.kind != "f":
        return value
    value = plain(value)
    return (value + rng.uniform(-1, 1, value.shape) * _largest_error(value, precision, axis)).astype(np.float32)


def _largest_error(value: Array, precision: str, axis: int | None) -> Array:
    """What rounding may add to or take from each number of a tensor; of a weight with its channels at `axis`, int8 is finer."""
    if precision != "int8":
        return np.abs(value) * ROUNDING[precision]
    if axis is None:
        step = (value.max() - value.min()) / STEPS
    else:
        others = tuple(place for place in range(value.ndim) if place != axis)
        step = np.abs(value).max(others, keepdims=True) / WEIGHT_STEPS
    return np.broadcast_to(step / 2, value.shape)


def channel_axis(values: Array) -> int:
    """1 for images and rows, the last one for token sequences."""
    return 2 if values.ndim == 3 else 1


def _by_channel(values: Array, axis: int | None = None) -> Array:
    """Root mean square of each channel."""
    if values.ndim < 2:
        return np.sqrt(np.mean(np.square(values.astype(np.float64)), keepdims=True)).reshape(-1)
    last = np.moveaxis(values, channel_axis(values) if axis is None else axis, -1)
    found: Array = np.sqrt(np.mean(np.square(last.reshape(-1, last.shape[-1]).astype(np.float64)), axis=0))
    return found


def plain(values: Array) -> Array:
    return values.astype(np.float32, copy=False)
