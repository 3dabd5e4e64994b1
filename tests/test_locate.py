"""The first wrong tensor: every kind of fault is named where it was planted, and what is right is left alone."""

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from dna_deploy.exporters._exporter import Contract, Options
from dna_deploy.locate import MARKS, locate
from dna_deploy.plugins import find
from dna_deploy.precision import lower
from dna_deploy.quantize import quantize
from dna_deploy.ranges import observe
from dna_deploy.reference import Graph, Module
from dna_deploy.subgraph import GIVEN, cut, entering, onnxruntime_run, types_of
from dna_deploy.verify import Inputs, Limits, judge

CONTRACT = Contract(16, (0.5,) * 3, (0.5,) * 3, ("a", "b", "c"))


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width, 1), nn.Sigmoid())

    def forward(self, x):
        y = self.two(self.one(x))
        return torch.relu(x + y * self.gate(y))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    blocks = [Residual(8) for _ in range(12)]
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean)
    return network.eval()


@pytest.fixture(scope="module")
def clean(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("locate") / "model.onnx"
    find("exporters", "onnx").write(network, CONTRACT, path, Options())
    return onnx.load(path)


IMAGES = {"input": np.random.default_rng(0).standard_normal((4, 3, 16, 16), dtype=np.float32)}


def copy(model):
    return onnx.ModelProto.FromString(model.SerializeToString())


def node_of(model, weight):
    return next(node for node in model.graph.node if weight in node.input)


def weight_of(model, module):
    return next(part for part in model.graph.initializer if part.name == f"{module}.weight")


def change(model, module, how):
    """Change a weight of a copy; returns the copy and the tensor that is the first to differ."""
    model = copy(model)
    weight = weight_of(model, module)
    values = numpy_helper.to_array(weight).copy()
    how(values)
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    return model, node_of(model, weight.name).output[0]


def one_percent(values):
    values.reshape(-1)[np.abs(values).argmax()] *= 1.01


def test_a_clean_export_has_no_wrong_tensor(clean, network):
    for reference in (Graph(clean), Module(network)):
        found = locate(reference, clean, IMAGES)
        assert found.found is None and not found.fused_only and "none of" in found.text
        assert found.tensors > 12 and found.marks_change < 1e-4


@pytest.mark.parametrize("module", ["0", "3.one.0", "7.two.0", "9.gate.1", "12.two.0", "15"])
def test_one_weight_off_by_a_hundredth_is_named_exactly(clean, module):
    broken, truth = change(clean, module, one_percent)
    found = locate(Graph(clean), broken, IMAGES)
    assert found.found.tensor == truth and found.found.module == module
    assert found.runs <= 2 * math.log2(found.tensors) + 3 and found.most_marks <= MARKS and found.tensors > MARKS
    assert found.found.difference > 16 * found.found.rounding
    assert found.found.reference.at_worst != found.found.suspect.at_worst
    assert f"module {module}" in found.text and truth in found.text


def test_against_torch_the_module_is_named(clean, network):
    broken, _ = change(clean, "7.two.0", one_percent)
    found = locate(Module(network), broken, IMAGES)
    assert found.found.module == "7.two.0"  # the tensor is the BatchNorm's, folded into this convolution


def test_a_missing_activation_is_seen_at_the_first_that_reads_it(clean):
    broken = copy(clean)
    relu = [node for node in broken.graph.node if node.op_type == "Relu"][6]
    readers = [node for node in broken.graph.node if relu.output[0] in node.input]
    for node in readers:
        for place, name in enumerate(node.input):
            if name == relu.output[0]:
                node.input[place] = relu.input[0]
    broken.graph.node.remove(relu)
    assert locate(Graph(clean), broken, IMAGES).found.tensor == readers[0].output[0]


def test_what_is_not_a_number_and_what_changed_its_shape_is_named(clean):
    def spoil(values):
        values.reshape(-1)[0] = np.nan

    broken, truth = change(clean, "5.one.0", spoil)
    assert locate(Graph(clean), broken, IMAGES).found.tensor == truth

    broken = copy(clean)
    first = node_of(broken, "0.weight")
    next(entry for entry in first.attribute if entry.name == "pads").ints[:] = [2, 2, 2, 2]
    del broken.graph.value_info[:]
    found = locate(Graph(clean), broken, IMAGES).found
    assert found.tensor == first.output[0] and math.isinf(found.difference)


def test_graphs_with_other_names_are_aligned(clean):
    broken, truth = change(clean, "4.one.0", one_percent)
    for node in broken.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if any(name in other.output for other in clean.graph.node) and name != "output":
                    names[place] = f"renamed_{name}"
    assert locate(Graph(clean), broken, IMAGES).found.tensor == f"renamed_{truth}"


def test_a_harmless_bit_is_harmless(clean, network):
    def last_bit(values):
        values.reshape(-1).view(np.uint32)[5] ^= 1

    broken, _ = change(clean, "7.two.0", last_bit)
    assert locate(Graph(clean), broken, IMAGES).found is None
    right, found = (onnxruntime_run(model, IMAGES)["output"] for model in (clean, broken))
    assert judge(right, found, None, 4, Limits()).ok


def test_a_fault_of_the_runtimes_fusion_is_told_from_a_fault_of_the_graph(clean):
    def run(model, inputs):
        """A runtime that is wrong only where nobody looks inside."""
        found = onnxruntime_run(model, inputs)
        return {name: value * 1.1 for name, value in found.items()} if len(found) == 1 else found

    found = locate(Graph(clean), clean, IMAGES, run=run)
    assert found.fused_only and found.found is None and "fusion" in found.text


def test_another_runtime_is_searched_with_its_own_runs(clean):
    def run(model, inputs):
        """A runtime that takes every third convolution of kernel 1 for one with twice its weights."""
        model = copy(model)
        for part in model.graph.initializer:
            if part.name == "9.gate.1.weight":
                part.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(part) * 2, part.name))
        return onnxruntime_run(model, inputs)

    assert locate(Graph(clean), clean, IMAGES, run=run).found.module == "9.gate.1"


def test_fp16_by_casts_is_clean_and_its_faults_are_named(clean):
    half = copy(clean)
    for part in half.graph.initializer:
        if part.data_type == 1:
            part.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(part).astype(np.float16), part.name))
    half.graph.node.insert(0, helper.make_node("Cast", ["input"], ["input_fp16"], "into", to=10))
    half.graph.node.append(helper.make_node("Cast", ["output_fp16"], ["output"], "back", to=1))
    for node in half.graph.node[1:-1]:
        node.input[:] = ["input_fp16" if name == "input" else name for name in node.input]
        node.output[:] = ["output_fp16" if name == "output" else name for name in node.output]
    del half.graph.value_info[:]
    assert locate(Graph(clean), half, IMAGES, "fp16").found is None

    def tenth(values):
        values[2] *= 1.1

    broken, truth = change(half, "7.two.0", tenth)
    assert locate(Graph(clean), broken, IMAGES, "fp16").found.tensor == truth


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_number_enters_a_part_as_an_array_of_its_size(runtime):
    """OpenVINO takes no NumPy scalars, and no convolution of tensors whose sizes it is not told."""
    values = {name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("a", "b", "sum", "twice")}
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Add", ["sum", "sum"], ["twice"])]
    graph = helper.make_graph(nodes, "sums", [values["a"], values["b"]], [values["sum"], values["twice"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    given = {"sum": np.float32(3)}
    part = cut(model, given, ["twice"], types_of(model))
    fed = entering(given, types_of(model))
    assert fed["sum" + GIVEN].shape == () and isinstance(fed["sum" + GIVEN], np.ndarray)
    run = onnxruntime_run if runtime == "onnxruntime" else find("exporters", runtime).run_graph
    assert run(part, fed)["twice"] == 6


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("module", ["2.two.0", "7.two.0"])
def test_bf16_is_clean_and_a_fault_is_named_though_python_has_no_such_tensors(clean, module, runtime):
    run = onnxruntime_run if runtime == "onnxruntime" else find("exporters", runtime).run_graph
    lowered, _ = lower(clean, "bf16", {})
    assert locate(Graph(clean), lowered, IMAGES, "bf16", run).found is None
    broken = copy(lowered)
    part = next(part for part in broken.graph.initializer if part.name.startswith(f"{module}.weight"))
    assert part.data_type == onnx.TensorProto.BFLOAT16
    values = numpy_helper.to_array(part).copy()
    values[2] *= -1
    part.CopyFrom(numpy_helper.from_array(values, part.name))
    cast = node_of(broken, part.name)
    truth = node_of(broken, cast.output[0]).output[0]
    found = locate(Graph(clean), broken, IMAGES, "bf16", run).found
    assert (
        found.tensor.removesuffix("_wide") == truth.removesuffix("_wide") and found.channel == 2
    )  # before or after it is rounded


@pytest.mark.parametrize("weight_bits", [8, 7])
def test_int8_is_clean_and_a_wrong_scale_or_zero_point_is_named(clean, weight_bits):
    images = np.random.default_rng(1).standard_normal((32, 3, 16, 16), dtype=np.float32)
    held_out = Inputs("32 images", 32, lambda places: images[list(places)], None)
    int8 = quantize(clean, observe(clean, held_out), frozenset(), symmetric=False, weight_bits=weight_bits)
    assert locate(Graph(clean), int8, IMAGES, "int8").found is None

    def dequantized(model, weight):
        layer = next(
            node for node in model.graph.node if len(node.input) > 1 and node.input[1] == f"{weight}_DequantizeLinear_Output"
        )
        return next(node for node in model.graph.node if node.output[0] == layer.input[0])

    for place, wrong in ((1, lambda scale: scale * np.float32(2)), (2, lambda zero: zero + np.uint8(16))):
        broken = copy(int8)
        node = dequantized(broken, "7.two.0.weight")
        part = next(part for part in broken.graph.initializer if part.name == node.input[place])
        broken.graph.initializer.append(numpy_helper.from_array(wrong(numpy_helper.to_array(part)), "wrong"))
        node.input[place] = "wrong"
        assert locate(Graph(clean), broken, IMAGES, "int8").found.tensor == node.output[0]


@pytest.mark.parametrize("seed", range(5))
def test_int8_weights_of_few_rows_are_clean_and_one_wrong_scale_of_a_row_is_named(seed):
    """A classifier: each of its scales belongs to a row, of which there are fewer than columns."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "fc.weight"], ["output"], name="classifier", transB=1),
    ]
    weights = [numpy_helper.from_array(rng.standard_normal((4, 768)).astype(np.float32), "fc.weight")]
    ends = [
        helper.make_tensor_value_info("input", 1, ["batch", 3, 16, 16]),
        helper.make_tensor_value_info("output", 1, ["batch", 4]),
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    held_out = Inputs("4 images", 4, lambda places: IMAGES["input"][list(places)], None)
    int8 = quantize(model, observe(model, held_out), frozenset(), symmetric=False, weight_bits=7)
    assert locate(Graph(model), int8, IMAGES, "int8").found is None
    scale = next(part for part in int8.graph.initializer if part.name == "fc.weight_scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.array([1, 1, 1.5, 1], np.float32), scale.name))
    found = locate(Graph(model), int8, IMAGES, "int8").found
    assert found.tensor == "fc.weight_DequantizeLinear_Output" and found.channel == 2
