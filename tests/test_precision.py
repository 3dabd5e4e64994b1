"""fp16 and bf16 graphs compute what NumPy and torch say they should; what would overflow stays float32 and is listed."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

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
