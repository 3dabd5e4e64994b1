"""TensorRT builds real engines without a GPU; what runs them is marked `gpu`."""

import os
import random
import stat
import sys
from functools import cache

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dna_deploy.arch import sample
from dna_deploy.graph import onnx_of
from dna_deploy.plugins import find
from profilers import (
    Device,
    DeviceUnavailable,
    Model,
    ModelBroken,
    ModelUnsupported,
    Plan,
    UnknownDevice,
    find_profiler,
    summarize,
)
from profilers._tensorrt import package, probes
from profilers._tensorrt.build import Batches, Phases, build
from profilers._tensorrt.layers import precisions, read_layers
from profilers._tensorrt.session import Gpu, find_gpu
from tests.conftest import TINY

GPU = Device("gpu", "tensorrt", runtime="tensorrt", provider="gpu")
TENSORRT = find_profiler(GPU)

needs_package = pytest.mark.skipif(not (found := probes.importable()), reason=found.why)
RUNS = find_gpu() is not None and bool(probes.can_run())
needs_gpu = pytest.mark.skipif(not RUNS, reason="no NVIDIA GPU here that TensorRT runs on")
without_gpu = pytest.mark.skipif(find_gpu() is not None, reason="a GPU is here, so it can run")


@cache
def student(space, size):
    """A network drawn from the space, in fp32."""
    return onnx_of(sample(find("spaces", space).at(size, 10), random.Random(0)).ops)


def half(content):
    """The model computing in fp16 between two Casts."""
    model = onnx.load_from_string(content)
    graph = model.graph
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = {"input": "input16", "output": "output16"}.get(name, name)
    graph.node.insert(0, helper.make_node("Cast", ["input"], ["input16"], name="to16", to=TensorProto.FLOAT16))
    graph.node.append(helper.make_node("Cast", ["output16"], ["output"], name="to32", to=TensorProto.FLOAT))
    return model.SerializeToString()


def quantized(content, folder):
    """The model with int8 weights and activations, by ONNX Runtime's own tool."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            shape = [dim.dim_value for dim in onnx.load_from_string(content).graph.input[0].type.tensor_type.shape.dim][1:]
            self.rest = [{"input": np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)}]

        def get_next(self):
            return self.rest.pop() if self.rest else None

    source, target = folder / "fp32.onnx", folder / "int8.onnx"
    source.write_bytes(content)
    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
    return target.read_bytes()


def convert(content, precision, folder):
    return {"fp32": lambda: content, "fp16": lambda: half(content), "int8": lambda: quantized(content, folder)}[precision]()


def broken(change):
    model = onnx.load_from_string(student(TINY, 32))
    for i, node in enumerate(model.graph.node):
        node.name = f"{node.op_type.lower()}{i}"
    change(model.graph)
    return model.SerializeToString()


def attribute(node, name):
    return next(entry for entry in node.attribute if entry.name == name)


@needs_package
def test_importing_building_and_running_are_three_answers():
    assert "can be imported" in probes.importable().why
    assert probes.can_build("8.6") and "compute capability 8.6" in probes.can_build("8.6").why
    assert "9.9" in probes.can_build("9.9").why and not probes.can_build("9.9")
    assert bool(probes.can_run()) == RUNS
    for answer in (probes.importable(), probes.can_build("8.6"), probes.can_run()):
        assert answer.why.startswith("TensorRT") and "\n" not in answer.why


def test_a_missing_package_is_answered_with_the_install_line(monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DeviceUnavailable, match=r"pip install") as caught:
        package.load.__wrapped__()
    assert "\n" not in str(caught.value) and caught.value.exit_code == 3


@needs_package
@pytest.mark.parametrize(("space", "size"), [(TINY, 32), ("mobile", 96)], ids=["tiny", "mobile"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_students_are_built_and_really_compute_in_the_precision_of_their_graph(space, size, precision, tmp_path):
    content = convert(student(space, size), precision, tmp_path)
    shares = []
    built = build(content, "student", Batches(1, 1, 8), "8.6", progress=shares.append)
    nodes = onnx.load_from_string(student(space, size)).graph.node
    weighted = sum(node.op_type in ("Conv", "Gemm") for node in nodes)
    assert precisions(built.layers) == {precision: weighted}
    assert built.capability == "8.6" and built.target == "GPUs of compute capability 8.6"
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0) and len(set(shares)) > 20
    assert built.layers[-1].outputs[0].name == "output" and built.layers[-1].outputs[0].shape == (-1, 10)
    assert {layer.precision for layer in built.layers if any(part.name == "input" for part in layer.inputs)} == {"fp32"}
    assert len(built.engine) > 100_000


@needs_package
def test_padding_is_not_taken_for_weights(tmp_path):
    built = build(quantized(student(TINY, 32), tmp_path), "student", Batches(1, 1, 1), "8.6")  # padded by constants of its shape
    assert list(precisions(built.layers)) == ["int8"]


@needs_package
def test_the_same_graph_gives_the_same_engine():
    first, second = (build(student(TINY, 32), "student", capability="8.6") for _ in range(2))
    assert first.engine == second.engine and first.layers == second.layers


@needs_package
@without_gpu
def test_without_a_gpu_and_a_capability_it_builds_for_all():
    built = build(student(TINY, 32), "student")
    assert built.capability is None and "every GPU from Ampere" in built.target


@needs_package
@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda graph: setattr(graph.node[3], "op_type", "Frob"), ModelUnsupported, r"node 'clip3' \(Frob\): .* no such op"),
        (lambda graph: graph.node[4].input.__setitem__(0, "nowhere"), ModelBroken, r"node 'conv4' \(Conv\) is not valid"),
        (lambda graph: setattr(attribute(graph.node[2], "group"), "i", 7), ModelBroken, r"node 'conv2' \(Conv\) is not valid"),
        (lambda graph: graph.input[0].type.tensor_type.shape.dim[2].ClearField("dim_value"), ModelBroken, "only its first"),
    ],
    ids=["unknown op", "missing tensor", "wrong groups", "free height"],
)
def test_a_broken_graph_is_answered_with_the_name_of_the_node(change, error, says):
    with pytest.raises(error, match=says) as caught:
        build(broken(change), "m.onnx", capability="8.6")
    assert str(caught.value).startswith("m.onnx: ") and "\n" not in str(caught.value)
    assert caught.value.exit_code == (1 if error is ModelUnsupported else 2)


@needs_package
@pytest.mark.parametrize("content", [b"", b"not a model at all", student(TINY, 32)[:5000]], ids=["empty", "text", "cut off"])
def test_what_is_no_model_is_refused(content):
    with pytest.raises(ModelBroken, match=r"[eE]xport it again"):
        build(content, "m.onnx", capability="8.6")


@needs_package
def test_an_unknown_capability_says_which_there_are():
    with pytest.raises(UnknownDevice, match=r"'9.9'.*8.6, 8.9") as caught:
        build(student(TINY, 32), "m.onnx", capability="9.9")
    assert caught.value.exit_code == 2


@needs_package
def test_what_the_bar_raises_stops_the_build():
    def stop(share):
        if share > 0.1:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        build(student(TINY, 32), "student", capability="8.6", progress=stop)


def test_nested_phases_fill_the_step_of_their_parent():
    phases = Phases()
    phases.start("whole", None, 2)
    phases.step("whole", 0)
    assert phases.share == 0.5
    phases.start("part", "whole", 5)
    phases.step("part", 0)
    assert phases.share == pytest.approx(0.6)
    phases.finish("part")
    assert phases.share == 1.0
    phases.start("late", "whole", 3)  # in a step that counted as done
    phases.step("late", 0)
    phases.finish("whole")
    assert phases.share == 1.0


def test_layers_are_read_from_the_builders_words():
    text = (
        "Layers:\n"
        "Name: shapes, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: \n"
        "Name: conv_0, LayerType: correlation, "
        "Inputs: [ { Name: x, Dimensions: [-1,3,8,8], Strides: [192,1,24,3], Datatype: Half, Format: (NHWC) Channel major }], "
        "Constants: [ { Name: w, Dimensions: [4,3,1,1], Strides: [3,1,3,3], Datatype: Half, Format: (NHWC) Channel major }, "
        "{ Name: s, Dimensions: [], Strides: [], Datatype: Float, Format: (Linear) Row major linear format }], "
        "Outputs: [ { Name: y, Dimensions: [-1,4,8,8], Strides: [256,1,32,4], Datatype: Half, Format: (NHWC) Channel major }], "
        "TacticName: t1, StreamId: 0, Metadata: [ONNX Layer: conv][ONNX Layer: relu]"
    )
    shapes, conv = read_layers(text)
    assert shapes.name == "shapes" and shapes.precision is None
    assert (conv.name, conv.kind, conv.precision, conv.tactic) == ("conv_0", "correlation", "fp16", "t1")
    assert conv.nodes == ("conv", "relu") and conv.outputs[0].shape == (-1, 4, 8, 8)
    assert [(part.name, part.shape, part.type) for part in conv.constants] == [("w", (4, 3, 1, 1), "fp16"), ("s", (), "fp32")]
    assert precisions((shapes, conv)) == {"fp16": 1}


@without_gpu
def test_without_a_gpu_profiling_says_what_is_missing():
    for refused in (TENSORRT.environment, lambda device: next(TENSORRT.visits(device, [], Plan()))):
        with pytest.raises(DeviceUnavailable, match=r"device gpu: TensorRT") as caught:
            refused(GPU)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("other", [{"provider": "cpu"}, {"precision": "int8"}, {"mode": "fixed"}])
def test_what_cannot_be_measured_is_refused_not_ignored(other):
    device = Device(**{"name": "gpu", "kind": "tensorrt", "runtime": "tensorrt", "provider": "gpu", **other})
    with pytest.raises(DeviceUnavailable, match="cannot be measured here"):
        TENSORRT.environment(device)


def test_what_the_driver_says_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert set(TENSORRT.conditions(GPU).values()) == {None}  # no nvidia-smi
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '580.65.06, 41, 1980, [N/A], 3'\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.defpath}")
    assert TENSORRT.conditions(GPU) == {"load": 3.0, "temperature_c": 41.0, "clock_mhz": 1980.0, "power_w": None}


@needs_package
def test_a_gpu_that_tensorrt_for_rtx_does_not_serve_is_not_built_for(monkeypatch):
    if not package.load().for_rtx:
        pytest.skip("NVIDIA's own TensorRT builds for the GPU at hand")
    monkeypatch.setattr("profilers._tensorrt.build.find_gpu", lambda: Gpu("NVIDIA H100 80GB HBM3", "9.0"))
    built = build(student(TINY, 32), "student")
    assert (built.target, built.capability) == ("every GPU from Ampere (compute capability 8.0) on", None)


@pytest.mark.gpu
@needs_package
@needs_gpu
class TestOnAGpu:
    """Never run yet but to the refusal of an H100, which TensorRT for RTX does not serve."""

    @pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
    def test_an_engine_computes_what_onnx_runtime_computes(self, precision, tmp_path):
        import onnxruntime

        from profilers._tensorrt.session import Session

        content = convert(student(TINY, 32), precision, tmp_path)
        session = Session(build(content, "student", Batches(1, 1, 4)).engine)
        x = np.random.default_rng(0).standard_normal((3, 3, 32, 32), dtype=np.float32)
        (expected,) = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"input": x})
        tolerance = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.1}[precision] * expected.std()
        np.testing.assert_allclose(session.run({"input": x})["output"], expected, atol=tolerance)

    def test_visits_follow_the_plan_both_ways(self):
        models = [Model("tiny", student(TINY, 32)), Model("mobile", student("mobile", 96))]
        plan = Plan(rounds=7, runs=3, visit_ms=0.0)
        for mode in (None, "enqueue"):
            device = Device("gpu", "tensorrt", runtime="tensorrt", provider="gpu", mode=mode)
            visits = list(TENSORRT.visits(device, models, plan))
            expected = [(r, key) for r in range(7) for key in plan.order(["tiny", "mobile"], r)]
            assert [(visit.round, visit.key) for visit in visits] == expected
            assert all(len(visit.ns) == 3 and min(visit.ns) > 0 for visit in visits)
            tiny, mobile = (summarize(v for v in visits if v.key == key) for key in ("tiny", "mobile"))
            assert mobile.latency_ms > tiny.latency_ms

    def test_every_layer_is_timed_and_named(self):
        from profilers._tensorrt.session import Session

        built = build(student(TINY, 32), "student")
        times = Session(built.engine).layer_ms(1)
        assert times and all(ms >= 0 for ms in times.values())
        assert set(times) & {layer.name for layer in built.layers}
