"""Reading other people's ONNX files: our own networks come back as they are, and what is none of our ops is named."""

import random

import onnx
import pytest
from onnx import TensorProto, helper

from dna_deploy.arch import sample
from dna_deploy.errors import RequestError
from dna_deploy.graph import onnx_of
from dna_deploy.layers import fixed, layers_of
from dna_deploy.ops.classifier import Classifier
from dna_deploy.ops.conv import Conv
from dna_deploy.ops.mbconv import MBConv
from dna_deploy.plugins import find

SQUEEZING = [
    Conv(32, 3, 16, kernel=3, stride=2, act="silu"),
    MBConv(16, 16, 24, kernel=5, expand=4, stride=2, act="silu", se=0.25),
    MBConv(8, 24, 24, kernel=3, expand=6, act="hard_swish", se=1.5, gate="hard_sigmoid"),
    Classifier(8, 24, 10),
]


@pytest.mark.parametrize("seed", range(4))
def test_a_network_of_ours_reads_back(seed):
    arch = sample(find("spaces", "mobile").at(64, 10), random.Random(seed))
    found = layers_of(fixed(onnx.load_from_string(onnx_of(arch.ops)), 64))
    assert found.ops == arch.ops and not found.others


def test_squeeze_and_excitation_reads_back():
    found = layers_of(fixed(onnx.load_from_string(onnx_of(SQUEEZING)), 32))
    assert list(found.ops) == SQUEEZING and not found.others


def test_what_the_exporter_writes_of_a_timm_network_reads_back(recwarn):
    """MobileNetV2 by timm, whose blocks are known: t, c, n, s of its paper (Sandler et al., 2018, table 2)."""
    import timm
    import torch

    model = timm.create_model("mobilenetv2_050", num_classes=10).eval()
    program = torch.onnx.export(model, (torch.zeros(1, 3, 64, 64),), dynamo=True, opset_version=18, verbose=False)
    recwarn.clear()
    found = layers_of(fixed(program.model_proto, 64))
    kinds = [op.kind for op in found.ops]
    assert kinds == ["conv", "dsconv", *["mbconv"] * 16, "conv", "classifier"] and not found.others
    assert [op.stride for op in found.ops if op.kind == "mbconv"] == [2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1]
    assert sum(op.params for op in found.ops) == sum(weight.numel() for weight in model.parameters())


def test_what_is_none_of_our_ops_is_named():
    model = onnx.load_from_string(onnx_of([Conv(8, 3, 4, kernel=3)]))
    model.graph.node[-1].output[0] = "before"
    model.graph.node.append(helper.make_node("Softmax", ["before"], ["output"], axis=1))
    found = layers_of(fixed(model, 8))
    assert found.ops == (Conv(8, 3, 4, kernel=3),) and found.others == ("1 Softmax",)


def test_a_convolution_of_another_make_is_not_taken_for_ours():
    model = onnx.load_from_string(onnx_of([Conv(8, 3, 4, kernel=3)]))
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "dilations":
            attribute.ints[:] = [2, 2]
    assert "1 Conv" in layers_of(fixed(model, 8)).others


def test_open_sides_are_closed_and_other_inputs_refused():
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    dims = fixed(model, 96).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [1, 3, 96, 96]
    graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    with pytest.raises(RequestError, match="x, z; expected one"):
        fixed(helper.make_model(graph), 96)
    with pytest.raises(RequestError, match="its inputs are none"):
        fixed(onnx.ModelProto(), 96)
