"""fp16 and bf16 graphs compute what NumPy and torch say they should; what would overflow stays float32 and is listed."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dna_deploy.errors import RequestError
from dna_deploy.exporters.onnx import load
from dna_deploy.precision import lower
from dna_deploy.ranges import observe
from dna_deploy.verify import Inputs

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((8, 3, 4, 4)).astype(np.float32)
WEIGHT = RNG.standard_normal((3, 1, 1)).astype(np.float32)
BIAS = RNG.standard_normal((3, 1, 1)).astype(np.float32)


def model_of(*nodes, **weights):
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3, 4, 4]) for name in ("input", "output")]
    stored = [numpy_helper.from_array(np.asarray(values, np.float32), name) for name, values in weights.items()]
    graph = helper.make_graph(list(nodes), "g", shapes[:1], shapes[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def node(kind, inputs, output):
    return helper.make_node(kind, inputs, [output], name=f"{kind}_{output}")


def lowered(model, precision, tmp_path):
    seen = observe(model, Inputs("eight", 8, lambda places: IMAGES[list(places)], None))
    found, kept = lower(model, precision, seen)
    (tmp_path / "m.onnx").write_bytes(found.SerializeToString())
    return found, kept, load(tmp_path / "m.onnx")(IMAGES)


SCALED = (node("Mul", ["input", "w"], "scaled"), node("Add", ["scaled", "b"], "output"))


def test_fp16_is_what_numpy_computes_in_float16(tmp_path):
    found, kept, output = lowered(model_of(*SCALED, w=WEIGHT, b=BIAS), "fp16", tmp_path)
    expected = IMAGES.astype(np.float16) * WEIGHT.astype(np.float16) + BIAS.astype(np.float16)
    assert kept == () and output.dtype == np.float32
    np.testing.assert_allclose(output, expected.astype(np.float32), atol=4e-3)  # a runtime may keep more digits in between
    for weight, values in zip(found.graph.initializer, (WEIGHT, BIAS), strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(weight), values.astype(np.float16), strict=True)


def test_bf16_is_what_torch_computes_in_bfloat16(tmp_path):
    found, kept, output = lowered(model_of(*SCALED, w=WEIGHT, b=BIAS), "bf16", tmp_path)
    x, w, b = (torch.from_numpy(values).bfloat16() for values in (IMAGES, WEIGHT, BIAS))
    assert kept == () and output.dtype == np.float32
    np.testing.assert_array_equal(output, (x * w + b).float().numpy())
    assert {weight.data_type for weight in found.graph.initializer} == {TensorProto.BFLOAT16}


def test_what_would_overflow_stays_float32_and_is_listed(tmp_path):
    nodes = (node("Mul", ["input", "big"], "huge"), node("Mul", ["huge", "small"], "back"), node("Add", ["back", "b"], "output"))
    _, kept, output = lowered(model_of(*nodes, big=60000.0, small=1 / 60000, b=BIAS), "fp16", tmp_path)
    largest = np.abs(IMAGES).max() * 60000
    assert [line.partition(":")[0] for line in kept] == ["Mul_huge", "Mul_back"]
    assert f"huge reaches {largest:.3g}" in kept[1]
    np.testing.assert_allclose(output, IMAGES + BIAS, atol=4e-3)


def test_a_constant_that_would_become_zero_stays(tmp_path):
    nodes = (
        node("Mul", ["input", "zero"], "nothing"),
        node("Add", ["nothing", "epsilon"], "divisor"),
        node("Div", ["epsilon", "divisor"], "output"),
    )
    _, kept, output = lowered(model_of(*nodes, zero=0.0, epsilon=1e-9), "fp16", tmp_path)
    assert any("epsilon is 1e-09 and would become zero" in line for line in kept)
    np.testing.assert_array_equal(output, np.ones_like(IMAGES))


def test_an_operator_that_takes_float32_only_stays_and_is_listed(tmp_path):
    """IsInf and Celu of opset 18 are defined for float32; scales of Resize always are."""
    nodes = (
        node("IsInf", ["input"], "infinite"),
        node("Where", ["infinite", "zero", "input"], "finite"),
        node("Celu", ["finite"], "bent"),
        node("Resize", ["bent", "", "scales"], "output"),
    )
    bent = np.maximum(IMAGES, 0) + np.minimum(0, np.exp(IMAGES) - 1)
    for precision, largest in (("fp16", 4e-3), ("bf16", 0.05)):
        _, kept, output = lowered(model_of(*nodes, zero=0.0, scales=[1.0] * 4), precision, tmp_path)
        listed = ("IsInf_infinite: IsInf", "Celu_bent: Celu", "Resize_output: Resize")
        assert kept == tuple(f"{name} takes float32 only" for name in listed)
        np.testing.assert_allclose(output, bent, atol=largest)


def test_what_an_attribute_types_is_still_float32(tmp_path):
    """A Cast to float32, and noise like a tensor: with an input in fp16 they would be of another type than they are described."""
    nodes = (
        node("Greater", ["input", "zero"], "positive"),
        helper.make_node("Cast", ["positive"], ["mask"], name="c", to=TensorProto.FLOAT),
        helper.make_node("RandomUniformLike", ["input"], ["noise"], name="r", low=0.0, high=1e-6, dtype=TensorProto.FLOAT),
        node("Mul", ["input", "mask"], "kept"),
        node("Add", ["kept", "noise"], "output"),
    )
    for precision, largest in (("fp16", 4e-3), ("bf16", 0.05)):
        _, kept, output = lowered(model_of(*nodes, zero=0.0), precision, tmp_path)
        assert kept == ()
        np.testing.assert_allclose(output, np.maximum(IMAGES, 0), atol=largest)


def test_an_operator_that_is_not_of_onnx_stays_float32():
    own = helper.make_node("Shrug", ["input"], ["shrugged"], name="s", domain="mine")
    model = model_of(own, node("Mul", ["shrugged", "w"], "output"), w=WEIGHT)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    _, kept = lower(model, "fp16", {})
    assert kept == ("s: Shrug is not an operator of ONNX",)


def test_a_graph_that_onnx_does_not_accept_is_one_line():
    model = model_of(node("Concat", ["input", "input"], "output"))  # an axis is required
    with pytest.raises(RequestError, match=r"--precision fp16 cannot be given to this network \(.*axis.*\); choose") as answer:
        lower(model, "fp16", {})
    assert "\n" not in str(answer.value)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_model_given_is_left_alone_and_the_new_one_half_as_large(tmp_path, precision):
    weight = RNG.standard_normal((3, 3, 25, 25)).astype(np.float32)
    model = model_of(helper.make_node("Conv", ["input", "w"], ["output"], name="c", pads=[12] * 4), w=weight)
    before = model.SerializeToString()
    found, _, output = lowered(model, precision, tmp_path)
    assert model.SerializeToString() == before
    assert found.ByteSize() < 0.55 * model.ByteSize()
    expected = torch.nn.functional.conv2d(torch.from_numpy(IMAGES), torch.from_numpy(weight), padding=12).numpy()
    np.testing.assert_allclose(output, expected, atol={"fp16": 0.03, "bf16": 0.25}[precision])
    onnx.checker.check_model(found, full_check=True)
