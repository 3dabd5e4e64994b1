"""Ops: keys, costs held against torch's own counter, and the ONNX written by hand against torch's exporter."""

import re

import numpy as np
import onnx
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dna_deploy.errors import RequestError
from dna_deploy.graph import onnx_of
from dna_deploy.ops import parse
from dna_deploy.ops.classifier import Classifier
from dna_deploy.ops.conv import Conv
from dna_deploy.ops.dsconv import DepthwiseSeparable
from dna_deploy.ops.mbconv import MBConv
from dna_deploy.ops.pool import Pool
from dna_deploy.plugins import names

OPS = [
    Conv(33, 3, 8, kernel=3, stride=2),
    Conv(7, 16, 24, kernel=1),
    DepthwiseSeparable(16, 8, 8, kernel=3),
    DepthwiseSeparable(17, 8, 12, kernel=5, stride=2, act="relu"),
    MBConv(14, 8, 8, kernel=5, expand=6),
    MBConv(15, 8, 12, kernel=7, expand=3, stride=2, act="silu"),
    MBConv(14, 8, 8, kernel=3, expand=6, act="silu", se=0.25),
    MBConv(14, 10, 12, kernel=5, expand=4, stride=2, act="hard_swish", se=0.8, gate="hard_sigmoid"),
    DepthwiseSeparable(16, 8, 8, kernel=3, act="hard_swish"),
    Pool(7, 12, 12),
    Classifier(5, 16, 10),
]


def test_every_op_file_is_tried():
    assert {op.kind for op in OPS} == set(names("ops"))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.key)
def test_key_reads_back(op):
    assert parse(op.key) == op


def test_key_is_readable():
    assert MBConv(56, 24, 40, kernel=5, expand=3, stride=2).key == "mbconv(hw=56, cin=24, cout=40, kernel=5, expand=3, stride=2)"
    assert Conv(7, 320, 1280, kernel=1).key == "conv(hw=7, cin=320, cout=1280, kernel=1)"


@pytest.mark.parametrize(
    "text",
    [
        "conv",
        "conv(hw=1)",
        "conv(hw=a, cin=3, cout=4, kernel=1)",
        "warp(hw=1)",
        "conv(hw=1, nope=2)",
        "conv(hw=1, cin=3, cout=4, kernel=1, stride=1)",  # an op of another spelling
        "conv(cin=3, hw=1, cout=4, kernel=1)",
    ],
)
def test_a_key_that_is_none_is_refused(text):
    with pytest.raises(RequestError, match=r"conv|key"):
        parse(text)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.key)
def test_costs_and_shapes_are_those_of_the_module(op):
    module = op.module().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        y = module(torch.zeros(1, *op.in_shape))
    assert y.shape[1:] == op.out_shape
    assert counter.get_total_flops() == 2 * op.macs
    assert sum(weight.numel() for weight in module.parameters()) == op.params


def test_costs_by_hand():
    op = MBConv(4, 2, 3, kernel=3, expand=6, stride=2)  # 12 expanded channels, 4x4 in, 2x2 out
    assert op.macs == 4 * 4 * 2 * 12 + 2 * 2 * 12 * 9 + 2 * 2 * 12 * 3
    assert op.params == 2 * 12 + 12 * 9 + 12 * 3 + 2 * (12 + 12 + 3)
    squeezing = MBConv(4, 8, 3, kernel=3, expand=6, stride=2, se=0.25)  # 48 expanded channels squeezed to 2, with biases
    assert squeezing.macs - MBConv(4, 8, 3, kernel=3, expand=6, stride=2).macs == 48 * 2 + 2 * 48
    assert squeezing.params - MBConv(4, 8, 3, kernel=3, expand=6, stride=2).params == 48 * 2 + 2 + 2 * 48 + 48


def test_efficientnets_own_block_is_this_op():
    """Third block of EfficientNet-B0 at 224 px: timm's parameters and multiply-adds, layer by layer."""
    import timm

    block = timm.create_model("efficientnet_b0").blocks[1][1]
    op = MBConv(56, 24, 24, kernel=3, expand=6, act="silu", se=0.25)
    shapes = [tuple(weight.shape) for weight in block.parameters()]
    assert sorted(shapes) == sorted(tuple(weight.shape) for weight in op.module().parameters())
    assert sum(weight.numel() for weight in block.parameters()) == op.params


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.key)
def test_written_graph_computes_what_the_module_does(op):
    """The module with the written graph's weights, BatchNorm neutral, gives the graph's output."""
    import onnxruntime

    model = onnx.load_from_string(onnx_of([op]))
    drawn = {weight.name: onnx.numpy_helper.to_array(weight) for weight in model.graph.initializer}
    weights = [torch.tensor(drawn[name]) for node in model.graph.node for name in node.input if re.fullmatch(r"w\d+", name)]
    module = op.module().eval()
    for norm in (part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)):
        norm.eps = 0.0  # statistics are 0 and 1: only the bias is left of it
    places = [place for place in module.parameters() if not _is_scale(module, place)]
    assert [place.shape for place in places] == [weight.shape for weight in weights]
    with torch.no_grad():
        for place, weight in zip(places, weights, strict=True):
            place.copy_(weight)
    x = np.random.default_rng(1).standard_normal((2, *op.in_shape), dtype=np.float32)
    (ours,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": x})
    with torch.no_grad():
        np.testing.assert_allclose(ours, module(torch.tensor(x)).numpy(), rtol=1e-4, atol=1e-5)


def _is_scale(module, place):
    return any(place is part.weight for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.key)
def test_written_graph_is_what_the_exporter_writes(op, recwarn):
    ours = onnx.load_from_string(onnx_of([op]))
    onnx.checker.check_model(ours, full_check=True)
    example = (torch.zeros(2, *op.in_shape),)
    exported = torch.onnx.export(op.module().eval(), example, dynamo=True, opset_version=18, verbose=False)
    recwarn.clear()
    assert _kinds(ours) == _kinds(exported.model_proto)
    assert _convolutions(ours) == _convolutions(exported.model_proto)


def _kinds(model):
    same = {"ReduceMean": "GlobalAveragePool", "Flatten": None, "Reshape": None, "Identity": None, "Dropout": None}
    kinds = [same.get(node.op_type, node.op_type) for node in model.graph.node]
    return sorted(kind for kind in kinds if kind)


def _convolutions(model):
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type == "Conv":
            settings = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            found.append((shapes[node.input[1]], settings["group"], tuple(settings["strides"]), tuple(settings["pads"])))
    return found


@pytest.mark.parametrize("op", [op for op in OPS if op.kind in ("mbconv", "conv")], ids=lambda op: op.key)
def test_a_map_over_channels_folds_in_exactly_or_not_at_all(op):
    torch.manual_seed(0)
    module = op.module().eval()
    x = torch.randn(2, *op.in_shape)
    weight, bias = torch.randn(op.cin, op.cin), torch.randn(op.cin)
    expected = module(torch.einsum("oc,nchw->nohw", weight, x) + bias.view(1, -1, 1, 1))
    before = module(x)
    if op.absorb(module, weight, bias):
        np.testing.assert_allclose(module(x).detach(), expected.detach(), rtol=1e-3, atol=1e-4)
    else:
        assert torch.equal(module(x), before)
        assert op.in_shape == op.out_shape or op.kernel > 1
