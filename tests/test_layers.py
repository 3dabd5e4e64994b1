"""Reading other people's ONNX files: our own networks come back as they are, and what is none of our ops is named."""

import random

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

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


class Drawn:
    """An ONNX graph of one input x of `shape`, node by node; 32 px in a file that leaves its sides open."""

    def __init__(self, *shape):
        self.given, self.nodes, self.weights = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape]), [], []

    def weight(self, *shape, dtype="float32"):
        self.weights.append(numpy_helper.from_array(np.ones(shape, dtype), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def whole(self, *values):
        self.weights.append(numpy_helper.from_array(np.array(values, "int64"), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def node(self, kind, *inputs, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [f"t{len(self.nodes)}"], **attributes))
        return self.nodes[-1].output[0]

    def conv(self, x, cin, cout, kernel=1, groups=1, weight=None, **other):
        sides = {"kernel_shape": [kernel] * 2, "strides": [1, 1], "pads": [kernel // 2] * 4} | other
        return self.node("Conv", x, weight or self.weight(cout, cin // groups, kernel, kernel), group=groups, **sides)

    def relu(self, x):
        return self.node("Relu", x)

    def classifier(self, x, cin, cout=10):
        return self.node("Gemm", self.node("Flatten", self.node("GlobalAveragePool", x)), self.weight(cout, cin), transB=1)

    def layers(self, output):
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "g", [self.given], [result], self.weights)
        return layers_of(fixed(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), 32))


def _stem(graph):
    return graph.relu(graph.conv("x", 3, 8, 3))


STEM = Conv(32, 3, 8, kernel=3, act="relu")


@pytest.mark.parametrize("kind", ["Concat", "Gather", "Cast"])
def test_what_copies_features_is_not_free(kind):
    graph = Drawn(3, 32, 32)
    x = _stem(graph)
    if kind == "Concat":
        y, wide = graph.node("Concat", x, x, axis=1), 16
    elif kind == "Gather":
        y, wide = graph.node("Gather", x, graph.whole(*[0] * 64), axis=1), 64
    else:
        y, wide = graph.node("Cast", x, to=TensorProto.FLOAT), 8
    found = graph.layers(graph.classifier(y, wide))
    assert found.others == (f"1 {kind}",) and found.ops == (STEM, Classifier(32, wide, 10))


def test_shapes_and_scores_are_free_to_work_out():
    """As older exporters flatten: the shape is read, put together and given to Reshape."""
    graph = Drawn(3, 32, 32)
    pooled = graph.node("GlobalAveragePool", _stem(graph))
    batch = graph.node("Gather", graph.node("Shape", pooled), graph.whole(0), axis=0)
    flat = graph.node("Reshape", pooled, graph.node("Concat", batch, graph.whole(-1), axis=0))
    scores = graph.node("Cast", graph.node("Gemm", flat, graph.weight(8, 10)), to=TensorProto.FLOAT)
    found = graph.layers(scores)
    assert found.ops == (STEM, Classifier(32, 8, 10)) and not found.others


def test_a_product_with_many_rows_is_no_classifier():
    graph = Drawn(16, 32, 32)
    found = graph.layers(graph.node("Gemm", graph.node("Reshape", "x", graph.whole(64, 256)), graph.weight(256, 256)))
    assert not found.ops and found.others == ("1 Gemm",)
    graph = Drawn(16, 32, 32)
    found = graph.layers(graph.node("MatMul", graph.node("Reshape", "x", graph.whole(1, 64, 256)), graph.weight(256, 256)))
    assert not found.ops and found.others == ("1 Gemm",)


def test_layers_in_fp16_are_not_those_of_a_table_in_fp32():
    graph = Drawn(3, 32, 32)
    x = graph.node("Cast", "x", to=TensorProto.FLOAT16)
    y = graph.relu(graph.conv(x, 3, 8, 3, weight=graph.weight(8, 3, 3, 3, dtype="float16")))
    found = graph.layers(graph.node("Cast", y, to=TensorProto.FLOAT))
    assert not found.ops and found.others == ("2 Cast", "1 Conv", "1 Relu")


def test_depthwise_and_pointwise_without_an_activation_between_are_none_of_ours():
    graph = Drawn(3, 32, 32)
    x = graph.conv(_stem(graph), 8, 8, 3, groups=8)
    found = graph.layers(graph.classifier(graph.relu(graph.conv(x, 8, 16)), 16))
    assert found.others == ("1 Conv",) and found.ops == (STEM, Conv(32, 8, 16, 1, act="relu"), Classifier(32, 16, 10))


@pytest.mark.parametrize("wrong", [{"strides": [0, 0]}, {"strides": [2]}, {"pads": [1, 1]}])
def test_attributes_that_are_none_are_left_to_the_runtime(wrong):
    graph = Drawn(3, 32, 32)
    assert graph.layers(graph.relu(graph.conv("x", 3, 8, 3, **wrong))).others == ("1 Conv", "1 Relu")


def test_open_channels_are_refused():
    with pytest.raises(RequestError, match="x leaves its channels open"):
        graph = Drawn("c", 32, 32)
        graph.layers(graph.relu(graph.conv("x", 3, 8, 3)))


@pytest.mark.parametrize("kind", ["Constant", "Identity"])
def test_weights_are_found_behind_nodes(kind):
    graph = Drawn(3, 32, 32)
    if kind == "Constant":
        weight = graph.node("Constant", value=numpy_helper.from_array(np.ones((8, 3, 3, 3), "float32")))
    else:
        weight = graph.node("Identity", graph.weight(8, 3, 3, 3))
    found = graph.layers(graph.classifier(graph.relu(graph.conv("x", 3, 8, 3, weight=weight)), 8))
    assert found.ops == (STEM, Classifier(32, 8, 10)) and not found.others


def test_a_pooling_before_the_last_convolution_is_priced_at_its_size():
    graph = Drawn(3, 32, 32)
    x = graph.relu(graph.conv(graph.node("GlobalAveragePool", _stem(graph)), 8, 16))
    found = graph.layers(graph.node("Gemm", graph.node("Flatten", x), graph.weight(16, 10)))
    assert found.ops == (STEM, Conv(1, 8, 16, 1, act="relu"), Classifier(32, 16, 10)) and not found.others


def test_a_mean_over_channels_is_no_pooling():
    graph = Drawn(3, 32, 32)
    x = graph.node("ReduceMean", _stem(graph), graph.whole(1), keepdims=1)
    assert graph.layers(graph.node("Flatten", x)).others == ("1 ReduceMean",)
