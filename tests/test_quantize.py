"""int8 is symmetric and per channel, and gives back to float exactly the layers that do harm."""

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dna_deploy.exporters.onnx import SCOPES, load
from dna_deploy.quantize import fewest, layers, lost, quantize, quantize_within
from dna_deploy.ranges import observe
from dna_deploy.verify import Inputs

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((64, 3, 2, 2)).astype(np.float32)
FIRST = RNG.standard_normal((8, 12)).astype(np.float32)
SECOND = RNG.standard_normal((3, 8)).astype(np.float32)


def network(second=SECOND, weight="w2.weight"):
    """Flatten, Gemm `first`, Relu, Gemm `second`: (N, 3, 2, 2) -> (N, 3)"""
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "w1", "b1"], ["hidden"], name="first", transB=1),
        helper.make_node("Relu", ["hidden"], ["active"], name="relu"),
        helper.make_node("Gemm", ["active", weight, "b2"], ["output"], name="second", transB=1),
    ]
    bias = np.zeros(8, np.float32)
    bias[0] = -100.0  # the first hidden unit never fires
    weights = {"w1": FIRST, "b1": bias, weight: second, "b2": np.zeros(3, np.float32)}
    stored = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    shapes = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 3, 2, 2]),
        helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 3]),
    ]
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def inputs(labels=None):
    return Inputs("64 images", 64, lambda places: IMAGES[list(places)], labels)


def quantized(model, in_float=frozenset(), symmetric=False):
    return quantize(model, observe(model, inputs()), in_float, symmetric)


def stored(model):
    return {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_are_symmetric_with_a_scale_a_channel(symmetric):
    model = quantized(network(), symmetric=symmetric)
    onnx.checker.check_model(model, full_check=True)
    tensors = stored(model)
    for name, weight in (("w1", FIRST), ("w2.weight", SECOND)):
        codes, scale = tensors[f"{name}_quantized"], tensors[f"{name}_scale"]
        np.testing.assert_allclose(scale, np.abs(weight).max(axis=1) / 127, rtol=0.01)
        np.testing.assert_allclose(codes * scale[:, None], weight, atol=0.51 * scale.max())
        assert codes.dtype == np.int8 and not tensors[f"{name}_zero_point"].any()
    activations = {
        name: value for name, value in tensors.items() if name.endswith("zero_point") and not name.startswith(("w", "b"))
    }
    if symmetric:
        assert activations and all(value.dtype == np.int8 and value == 0 for value in activations.values())
    else:
        assert activations["active_zero_point"].dtype == np.uint8 and activations["active_zero_point"] == 0


def test_a_layer_left_in_float_keeps_its_weights():
    model = quantized(network(), frozenset({"second"}))
    np.testing.assert_array_equal(stored(model)["w2.weight"], SECOND)
    assert "w1_quantized" in stored(model) and "w1" not in stored(model)
    untouched = quantized(network(), frozenset(layers(network())))
    assert not [node for node in untouched.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_sum_is_quantized_between_quantized_layers_only(symmetric):
    """(N, 3, 2, 2) -> two layers, their sum -> (N, 8): with one of them in float the sum has nothing to gain from int8."""
    model = network()
    del model.graph.node[3:]
    model.graph.node.append(helper.make_node("Gemm", ["flat", "w3"], ["other"], name="other", transB=1))
    model.graph.node.append(helper.make_node("Add", ["active", "other"], ["output"], name="sum"))
    model.graph.initializer.append(numpy_helper.from_array(FIRST[::-1].copy(), "w3"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8

    def rounded(in_float):
        nodes = quantized(model, frozenset(in_float), symmetric).graph.node
        makers = {name: node.op_type for node in nodes for name in node.output}
        return makers[next(node for node in nodes if node.name == "sum").input[1]] == "DequantizeLinear"

    assert rounded([]) and not rounded(["other"]) and not rounded(["first", "other"])


@pytest.mark.parametrize(("weight", "module"), [("w2.weight", "w2"), ("val_15", "head.p")])
def test_the_harmful_layer_goes_back_to_float_alone_and_is_named(tmp_path, weight, module):
    harmful = SECOND.copy()
    harmful[:, 0] = 1e4  # on the unit that never fires: no use in float, and no step left for the others in int8
    model, path, target = network(harmful, weight), tmp_path / "m.onnx", tmp_path / "q.onnx"
    model.graph.node[-1].metadata_props.add(key=SCOPES, value="['', 'head', 'head.p', 'linear_1']")
    path.write_bytes(model.SerializeToString())
    labels = load(path)(IMAGES).argmax(1)
    held_out = inputs(labels)
    assert quantize_within(path, target, observe(model, held_out), held_out, 0.05, False, load) == (module,)
    assert (load(target)(IMAGES).argmax(1) == labels).mean() >= 0.95
    assert quantize_within(path, target, observe(model, held_out), held_out, 1.0, False, load) == ()
    assert (load(target)(IMAGES).argmax(1) == labels).mean() < 0.8


def test_weights_of_7_bits_are_tried_before_layers_go_back_to_float(tmp_path):
    """What a processor without VNNI does: wherever weights use all of their 8 bits, products saturate."""
    model, path, target = network(), tmp_path / "m.onnx", tmp_path / "q.onnx"
    path.write_bytes(model.SerializeToString())
    held_out = inputs(load(path)(IMAGES).argmax(1))

    def saturating(file):
        codes = [values for name, values in stored(onnx.load(file)).items() if name in ("w1_quantized", "w2.weight_quantized")]
        full = any(np.abs(values.astype(int)).max() > 64 for values in codes)
        return (lambda images: np.zeros((len(images), 3), np.float32)) if full else load(file)

    assert quantize_within(path, target, observe(model, held_out), held_out, 0.05, False, saturating) == ()
    assert np.abs(stored(onnx.load(target))["w1_quantized"].astype(int)).max() == 64


def test_what_is_gained_does_not_make_up_for_what_is_lost():
    before = np.array([[2.0, 1], [2, 1], [2, 1], [2, 1]])
    after = np.array([[2.0, 1], [1, 2], [1, 2], [1, 2]])
    assert lost(before, after, Inputs("four", 4, IMAGES.__getitem__, np.array([0, 0, 0, 1]))) == pytest.approx(0.5)
    assert lost(before, after, Inputs("four", 4, IMAGES.__getitem__, None)) == pytest.approx(0.75)
    assert lost(before, np.full((4, 2), np.nan), Inputs("four", 4, IMAGES.__getitem__, None)) == 1.0


def test_one_logit_is_judged_by_its_sign():
    before = np.array([[2.0], [-1], [0.5], [-3]])
    after = np.array([[2.0], [1], [0.5], [-3]])  # the second image changed its class
    four = Inputs("four", 4, IMAGES.__getitem__, None)
    assert lost(before, before, four) == 0.0 and 0.25 <= lost(before, after, four) < 0.4
    right, gained = Inputs("four", 4, IMAGES.__getitem__, np.array([1, 0, 0, 0])), before * [[1], [1], [-1], [1]]
    assert lost(before, gained, four) >= 0.25 > 0.01 > lost(before, gained, right)  # the third was wrong before: nothing to lose


def test_a_network_of_one_logit_is_quantized(tmp_path):
    model = network(SECOND[:1])
    model.graph.initializer[3].CopyFrom(numpy_helper.from_array(np.zeros(1, np.float32), "b2"))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    path, target = tmp_path / "m.onnx", tmp_path / "q.onnx"
    path.write_bytes(model.SerializeToString())
    held_out = inputs((load(path)(IMAGES)[:, 0] > 0).astype(int))
    assert quantize_within(path, target, observe(model, held_out), held_out, 0.1, False, load) == ()
    assert ((load(target)(IMAGES)[:, 0] > 0) == held_out.labels).mean() >= 0.9


def test_what_is_lost_of_few_images_is_near_what_is_lost_of_many():
    """A count of 100 images scatters by more than half of what it is; the margins of the same images tell it."""
    rng = np.random.default_rng(0)
    before = rng.standard_normal((20_000, 5)) * 2
    after = before + rng.normal(0, 0.1, before.shape)
    truth = (before.argmax(1) != after.argmax(1)).mean()

    def of(some):
        return lost(before[some], after[some], Inputs("some", len(before[some]), IMAGES.__getitem__, None))

    assert of(slice(None)) == pytest.approx(truth, rel=0.1)
    hundreds = [slice(start, start + 100) for start in range(0, 20_000, 100)]
    lucky = [some for some in hundreds if (before[some].argmax(1) == after[some].argmax(1)).all()]
    assert len(lucky) >= 10 and np.mean([of(some) for some in lucky]) > truth / 3


@pytest.mark.parametrize("most", [1, 2, 7, 50])
def test_the_fewest_are_found_in_few_tries(most):
    for needed in range(1, most + 1):
        tries = []

        def fits(many, needed=needed, tries=tries):
            tries.append(many)
            return many >= needed

        assert fewest(fits, most) == needed
        assert len(tries) <= 2 * math.log2(most) + 2
