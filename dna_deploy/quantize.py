"""int8 lives in the ONNX graph as Q/DQ: symmetric weights, a scale a channel, ranges from held-out images.

Where the quantized network loses more accuracy than is allowed, the layers that do the most harm go back to float, as few of
them as make it fit. What is decided here is decided on held-out images; the test set is never looked at.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dna_deploy.exporters.onnx import save, scopes
from dna_deploy.progress import bar, say
from dna_deploy.ranges import Histogram
from dna_deploy.verify import Inputs, Step, by_class, outputs

if TYPE_CHECKING:
    import onnx

    from dna_deploy.exporters._exporter import Run

Array = np.ndarray[Any, np.dtype[Any]]
WEIGHTED = ("Conv", "Gemm", "MatMul")  # with constant weights: the layers that are quantized, or go back to float
BETWEEN = ("Add", "Clip", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool")  # stay in int8 between two such layers
RANKED_ON = 32  # images that tell how much harm one layer does


def layers(model: "onnx.ModelProto") -> list[str]:
    """The names of the nodes that can be quantized, in the order of the network."""
    weights = {weight.name for weight in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type in WEIGHTED and node.input[1] in weights]


def quantize(
    model: "onnx.ModelProto", seen: Mapping[str, Histogram], in_float: Set[str], symmetric: bool, weight_bits: int = 8
) -> "onnx.ModelProto":
    """The model with Q/DQ around all layers but those `in_float`; weights of 8 bits, or of 7.

    `symmetric`: activations are int8 around zero as well, the only form TensorRT takes, and Q/DQ stand at the inputs of the
    layers only. Otherwise activations are uint8 with a zero point: a range that begins at zero has twice the steps, and
    runtimes on CPUs fold the ReLU before it into the layer.
    """
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    chosen = [name for name in layers(model) if name not in in_float]
    between = ("Add",) if symmetric else BETWEEN
    chosen += [node.name for node in _between(model, chosen) if node.op_type in between]
    ranges = {name: _range(histogram, symmetric) for name, histogram in seen.items()}
    settings: dict[str, Any] = {"ActivationSymmetric": symmetric, "WeightSymmetric": True}
    if symmetric:
        settings["QuantizeBias"] = False  # TensorRT's DequantizeLinear takes no int32, which biases would be
        settings["OpTypesToExcludeOutputQuantization"] = [*WEIGHTED, "Add"]
    quantizer = QDQQuantizer(
        model=onnx.shape_inference.infer_shapes(model),
        per_channel=True,
        reduce_range=weight_bits == 7,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=chosen or ["no node at all"],  # an empty list would mean every node
        nodes_to_exclude=[],
        op_types_to_quantize=[*WEIGHTED, *between],
        extra_options=settings,
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()  # it leaves some Q/DQ behind the nodes that read them, which ONNX forbids
    quantized: onnx.ModelProto = quantizer.model.model
    del quantized.graph.value_info[:]
    return quantized


def _between(model: "onnx.ModelProto", chosen: Collection[str]) -> "Iterator[onnx.NodeProto]":
    """The nodes that only pass on what the `chosen` layers compute; behind a layer in float they would round for nothing."""
    carried: set[str] = set()
    for node in model.graph.node:
        inputs = node.input if node.op_type == "Add" else node.input[:1]
        passes_on = node.op_type in BETWEEN and carried.issuperset(inputs)
        if passes_on:
            yield node
        if passes_on or node.name in chosen:
            carried.update(node.output)


def _range(histogram: Histogram, symmetric: bool) -> Any:
    from onnxruntime.quantization.calibrate import TensorData

    one_sided = not symmetric and -histogram.lowest < 0.1 * histogram.largest
    top = histogram.clip(levels=255 if one_sided else 127) or 1.0  # a tensor that was always zero needs some range
    bottom = -top if symmetric else max(histogram.lowest, -top)
    return TensorData(lowest=np.float32(bottom), highest=np.float32(top))


def quantize_within(
    graph: Path,
    target: Path,
    seen: Mapping[str, Histogram],
    held_out: Inputs,
    max_drop: float,
    symmetric: bool,
    load: "Callable[[Path], Run]",
) -> tuple[str, ...]:
    """Write `graph` quantized to `target`; at most `max_drop` (0.005: half a point) of the held-out images are lost.

    Returns the modules whose layers went back to float, the most harmful first. Where nobody knows the right answers, every
    image whose winning class changes counts as lost.
    """
    import onnx

    model = onnx.load(graph)
    reference = outputs(Step("fp32", "fp32", load(graph)), held_out, 8)

    def drop(in_float: Sequence[str], weight_bits: int) -> float:
        save(quantize(model, seen, frozenset(in_float), symmetric, weight_bits), target)
        logits = outputs(Step("int8", "int8", load(target)), held_out, 8)
        return lost(reference, logits, held_out)

    whole, bits = drop([], 8), 8
    say(f"int8: {whole:.2%} lost on {held_out.about}, {max_drop:.2%} allowed")
    if whole <= max_drop:
        return ()
    if not symmetric:  # without VNNI, pairs of products of 8 bits saturate; of 7 they do not
        seven = drop([], 7)
        say(f"int8 with weights of 7 bits: {seven:.2%} lost")
        if seven <= max_drop:
            return ()
        bits = 7 if seven < whole else 8
    order = by_harm(model, seen, held_out, reference, symmetric, bits, target, load)
    count = fewest(lambda many: drop(order[:many], bits) <= max_drop, len(order))
    final = drop(order[:count], bits)
    modules = {node.name: _module(node) for node in model.graph.node if node.name in order[:count]}
    back = tuple(modules[name] for name in order[:count])
    say(f"int8: {count} of {len(order)} layers back in float, {final:.2%} lost: {', '.join(back)}")
    return back


def _module(node: "onnx.NodeProto") -> str:
    """The module that a layer is, by its weight; by the exporter's note where that was folded and has a number for a name."""
    weight, within = node.input[1], scopes(node)
    return within[-2] if len(within) > 1 and not weight.endswith(".weight") else weight.removesuffix(".weight")


def lost(reference: Array, logits: Array, held_out: Inputs) -> float:
    """The share of images that were right and are wrong now: counted, or as their margins let expect, whichever is more.

    Images that became right do not make up for them, and a count alone is luck: of a few hundred images one or two decide, and
    the first of many quantized networks that passes is the lucky one. One that lost none of 295 held-out images lost a point
    of accuracy on 656 others (benchmarks/faults.py). So an image whose winner led by some margin is expected to be lost as often
    as a normal deviation, of the size that all leads show, is beyond it.
    """
    from scipy.stats import norm

    if not np.isfinite(logits).all():
        return 1.0
    reference, logits = by_class(reference), by_class(logits)
    answers = reference.argmax(1) if held_out.labels is None else held_out.labels
    right = reference.argmax(1) == answers
    counted = float((right & (logits.argmax(1) != answers)).mean())
    first_two = np.argsort(reference, axis=1)[:, :-3:-1]
    before, after = (-np.diff(np.take_along_axis(side, first_two, axis=1), axis=1).ravel() for side in (reference, logits))
    usual = max(float(np.sqrt(np.mean(np.square(after - before)))), 1e-30)
    return max(counted, float((right * norm.sf(before / usual)).mean()))


def by_harm(
    model: "onnx.ModelProto",
    seen: Mapping[str, Histogram],
    held_out: Inputs,
    reference: Array,
    symmetric: bool,
    weight_bits: int,
    scratch: Path,
    load: "Callable[[Path], Run]",
) -> list[str]:
    """The layers, those first whose quantization alone moves the logits most."""
    names = layers(model)
    count = min(RANKED_ON, held_out.count)
    images, expected = held_out.at(range(count)), reference[:count]
    harm = {}
    with bar("int8: the harm of each layer", len(names)) as advance:
        for name in names:
            save(quantize(model, seen, frozenset(names) - {name}, symmetric, weight_bits), scratch)
            run = load(scratch)
            found = np.concatenate([run(images[start : start + 8]) for start in range(0, count, 8)])
            harm[name] = float(((found - expected) ** 2).mean())
            advance(1)
    return sorted(names, key=lambda name: -harm[name])


def fewest(fits: Callable[[int], bool], most: int) -> int:
    """The smallest number from 1 to `most` that fits, if more always fit better: doubling, then halving the gap."""
    high = 1
    while high < most and not fits(high):
        high *= 2
    low, high = high // 2, min(high, most)  # low does not fit, high does
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
