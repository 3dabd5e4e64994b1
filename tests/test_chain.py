"""The chain of an export: every step is a file of its own, and where one is wrong the message says which layer."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from dna_deploy import chain
from dna_deploy.bundle import Manifest
from dna_deploy.chain import graphs, steps
from dna_deploy.errors import CheckFailed, RequestError
from dna_deploy.export import export
from dna_deploy.exporters import onnx as portable
from dna_deploy.exporters._exporter import Contract, Options
from dna_deploy.files import alone, read_json
from dna_deploy.original import Original
from dna_deploy.plugins import find
from dna_deploy.run import Picked
from dna_deploy.verify import LIMITS, Inputs, Verification

CONTRACT = Contract(16, (0.5,) * 3, (0.5,) * 3, ("a", "b", "c"))
EXPORTER = """
import onnx
from onnx import numpy_helper

from dna_deploy.exporters import onnx as portable
from dna_deploy.exporters._exporter import Exporter
from dna_deploy.subgraph import onnxruntime_run

def doubled(model):
    "A runtime that takes the weights of the second convolution twice."
    for part in model.graph.initializer:
        if part.name == "3.weight":
            part.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(part) * 2, part.name))
    return model

def write(source, contract, path, options):
    path.write_bytes(source.read_bytes())

def load(path):
    model = doubled(onnx.load(path))
    return lambda images: onnxruntime_run(model, {"input": images})["output"]

def run_graph(model, inputs):
    return onnxruntime_run(doubled(onnx.load_from_string(model.SerializeToString())), inputs)

EXPORTER = Exporter("odd", ".odd", ("fp32",), "onnx", write, load, run_graph=RUN_GRAPH)
"""


@pytest.fixture
def original(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    ).eval()
    nn.init.uniform_(network[1].running_var, 0.5, 2.0)
    images = np.random.default_rng(0).standard_normal((12, 3, 16, 16), dtype=np.float32)
    inputs = Inputs("12 random images", 12, lambda places: images[list(places)], None)
    return Original("a network", network, CONTRACT, inputs, inputs, tmp_path / "export", None)


def ops(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def test_simplifying_is_a_step_of_its_own(original):
    found = {}
    for step in graphs(original, find("exporters", "onnx"), Options("fp16")):
        found[step.name] = (step.path.name, ops(step.path))
    assert list(found) == ["onnx", "simplified", "fp16"]
    assert "BatchNormalization" in found["onnx"][1] and "BatchNormalization" not in found["simplified"][1]
    assert sorted(file.name for file in original.folder.iterdir()) == ["model-fp16.onnx", "model.onnx"]
    whole = original.folder / "whole.onnx"
    portable.write(original.network, CONTRACT, whole, Options())
    assert whole.read_bytes() == (original.folder / "model.onnx").read_bytes()


def test_the_graph_in_fp32_is_not_the_file_it_is_compared_with_whatever_that_is_called(original, tmp_path):
    within = replace(original, folder=tmp_path / "work")
    done = list(graphs(within, find("exporters", "onnx"), Options("int8", max_drop=1.0), within.folder / "model.onnx"))
    assert [(step.name, "QuantizeLinear" in ops(step.path)) for step in done[1:]] == [("simplified", False), ("int8", True)]
    assert done[-1].path.name == "model.onnx"


def test_a_file_that_was_not_run_is_named_where_it_is(original, tmp_path):
    lines = EXPORTER.replace("RUN_GRAPH", "None").replace(
        "def load(path):", "from dna_deploy.errors import CannotRun\n\ndef load(path):\n    raise CannotRun(f'{path}: not here')"
    )
    (tmp_path / "odd.py").write_text(lines)
    done = export(original, str(tmp_path / "odd.py"), Options())
    told = f"{original.folder / 'model.odd'}: not here"
    assert done.path.is_file() and done.verification.not_run == told and not done.verification.verified
    assert read_json(original.folder / "model.odd.verification.json", Verification).not_run == told


def test_a_format_made_from_the_module_is_one_step(original):
    found = list(steps(original, find("exporters", "torch"), Options(), original.folder / "model.pt2"))
    assert [step.name for step in found] == ["torch"]


def test_a_run_without_its_latency_table_is_exported_all_the_same(original, capsys):
    picked = Picked("pixel", "no_such_table.jsonl", 2.0, 1.9, -3.0, 1, 1, None)
    done = export(replace(original, picked=picked), "onnx", Options())
    assert done.verification.verified and done.verification.latency.device == "this process"
    assert "no_such_table.jsonl" in capsys.readouterr().err


def test_int8_without_labelled_images_says_what_decides(original, capsys):
    labelled = replace(original.held_out, labels=np.zeros(12, int))
    for held_out, told in ((original.held_out, 1), (labelled, 0)):
        done = graphs(replace(original, held_out=held_out), find("exporters", "onnx"), Options("int8"))
        original.folder.mkdir(exist_ok=True)
        assert [step.precision for step in done] == ["fp32", "fp32", "int8"]
        assert capsys.readouterr().err.count("int8 without --data") == told


def test_a_network_that_answers_with_no_number_is_refused(original):
    original.network[3].weight.data[0, 0] = float("nan")
    with pytest.raises(RequestError, match=r"a network: answers 12 of 12 random images with NaN or infinity before anything"):
        export(original, "onnx", Options())
    assert not original.folder.exists()


@pytest.fixture
def fault(monkeypatch):
    """Simplifying changes a bias."""
    write = portable.write_simplified

    def wrong(source, contract, path, options):
        write(source, contract, path, options)
        model = onnx.load(path)
        bias = next(part for part in model.graph.initializer if part.name.endswith("bias") and part.dims == [8])
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + 1, bias.name))
        path.write_bytes(model.SerializeToString())

    monkeypatch.setattr(chain.portable, "write_simplified", wrong)


def test_a_fault_of_simplifying_is_found_there_and_the_layer_is_named(original, fault):
    with pytest.raises(
        CheckFailed, match=r"model\.onnx: step simplified .*first wrong at tensor \S+ \(Conv, module 3, weights 3\.weight\)"
    ):
        export(original, "onnx", Options())
    assert (original.folder / "model.onnx.unverified" / "model.exported.onnx").is_file()  # stays to look at


def test_what_an_earlier_export_left_is_touched_by_what_passes_only(original, tmp_path):
    def files():
        return {file.name: file.read_bytes() for file in original.folder.iterdir() if file.is_file()}

    export(original, "onnx", Options("fp16"))
    before = files()
    strict = {key: replace(limit, largest_difference=1e-12) for key, limit in LIMITS.items()}
    with pytest.raises(CheckFailed, match=r"export/model-fp16\.onnx\.unverified/model\.exported\.onnx: step onnx is not"):
        export(original, "onnx", Options("fp16"), strict)
    failed = original.folder / "model-fp16.onnx.unverified"
    left = read_json(failed / "model-fp16.onnx.verification.json", Verification)
    assert left.sha256 is None and not left.nothing_failed and files() == before
    done = export(original, "onnx", Options("fp16", opset=20), output=tmp_path / "else[1]" / "x.onnx")
    assert files() == before and done.path.is_file()
    assert {file.name for file in done.path.parent.iterdir()} == {"x.onnx", "x.onnx.verification.json", "x.onnx.logits.npz"}
    export(original, "onnx", Options("fp16"))
    assert not failed.exists()


def test_the_onnx_file_of_a_bundle_is_verified_whatever_was_exported(original):
    done = export(original, "torch", Options())
    found = read_json(original.folder / "model.onnx.verification.json", Verification)
    assert done.no_bundle is None and [link.step for link in found.links] == ["onnx", "simplified", "simplified"]
    listed = read_json(original.folder / "manifest.json", Manifest).models["model.pt2"].files
    assert {"model.onnx", "model.onnx.verification.json", "model.onnx.logits.npz"} < {*listed}


def test_without_an_onnx_file_that_is_the_network_there_is_no_bundle(original, fault):
    done = export(original, "torch", Options())
    assert done.verification.verified and not (original.folder / "manifest.json").exists()
    assert "model.onnx.unverified/model.onnx: step simplified is not the network it was made from" in done.no_bundle


def test_a_provider_that_leaves_a_node_to_another_fails(original):
    with pytest.raises(CheckFailed, match=r"(\d+) of \1 nodes do not run on AzureExecutionProvider: .* on CPUExecutionProvider"):
        export(original, "onnx", Options(), provider="azure")
    with pytest.raises(RequestError, match="--provider cpu: of ONNX Runtime on this machine, for --format onnx"):
        export(original, "torch", Options(), provider="cpu")


def test_two_exports_of_one_network_at_once_are_refused(original):
    with alone(original.folder, "dna-export"), pytest.raises(RequestError, match="export: another dna-export is writing here"):
        export(original, "onnx", Options())


def test_a_fault_of_another_runtime_is_searched_by_that_runtime(original, tmp_path):
    (tmp_path / "odd.py").write_text(EXPORTER.replace("RUN_GRAPH", "run_graph"))
    with pytest.raises(CheckFailed, match=r"step odd .*first wrong at tensor \S+ \(Conv, module 3, weights 3\.weight\)"):
        export(original, str(tmp_path / "odd.py"), Options())


def test_where_no_runtime_can_be_asked_that_is_said(original, tmp_path):
    (tmp_path / "odd.py").write_text(EXPORTER.replace("RUN_GRAPH", "None"))
    with pytest.raises(CheckFailed, match=r"no tensor is named: what is computed inside a \.odd file cannot be read"):
        export(original, str(tmp_path / "odd.py"), Options())


def test_openvino_runs_parts_of_a_graph(original):
    pytest.importorskip("openvino")
    from dna_deploy.exporters.openvino import run_graph
    from dna_deploy.subgraph import marked, onnxruntime_run

    *_, last = graphs(original, find("exporters", "onnx"), Options())
    model = onnx.load(last.path)
    within = marked(model, [model.graph.node[0].output[0], model.graph.node[2].output[0]])
    inputs = {"input": original.test.at(range(4))}
    right, found = onnxruntime_run(within, inputs), run_graph(within, inputs)
    assert len(right) == 3 and right.keys() == found.keys()
    for name, value in right.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)
