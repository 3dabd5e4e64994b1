"""The TensorRT exporter: engine, manifest and layers; what was tampered with or belongs elsewhere is not loaded."""

import hashlib
import json
import platform
import random
import shutil
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from dna_deploy.arch import sample
from dna_deploy.cli.export import main
from dna_deploy.errors import CannotRun, CheckFailed, MachineError, RequestError
from dna_deploy.export import export
from dna_deploy.exporters._exporter import Contract, Options
from dna_deploy.exporters.tensorrt import EXPORTER, TIMING_CACHE, Manifest, load, manifest_of, trusted, write
from dna_deploy.files import read_json, write_json
from dna_deploy.graph import onnx_of
from dna_deploy.original import Original
from dna_deploy.plugins import find
from dna_deploy.precision import lower
from dna_deploy.verify import Inputs, Verification
from profilers import DeviceUnavailable, ModelUnsupported, UnknownDevice
from profilers._tensorrt import package, probes
from profilers._tensorrt.session import find_gpu
from tests.conftest import TINY

CONTRACT = Contract(32, (0.5,) * 3, (0.5,) * 3, tuple("abcdefghij"))
AHEAD = Options(largest_batch=4, compute_capability="8.6")

needs_package = pytest.mark.skipif(not (found := probes.importable()), reason=found.why)
without_gpu = pytest.mark.skipif(find_gpu() is not None, reason="a GPU is here")


def student():
    return sample(find("spaces", TINY).at(32, 10), random.Random(0))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the ONNX file of a network and the engine built from it."""
    folder = tmp_path_factory.mktemp("engine")
    model = onnx.load_from_string(onnx_of(student().ops))
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type.lower()}{number}"
    onnx.save(model, folder / "model.onnx")
    write(folder / "model.onnx", CONTRACT, folder / "model.engine", AHEAD)
    return folder


@pytest.fixture
def copied(made, tmp_path):
    shutil.copytree(made, tmp_path / "engine")
    return tmp_path / "engine" / "model.engine"


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@needs_package
def test_the_manifest_says_what_was_built_from_what_and_for_whom(made):
    found = Manifest.of(made / "model.engine")
    assert found.engine_sha256 == digest(made / "model.engine") and found.onnx_sha256 == digest(made / "model.onnx")
    assert found.layers_sha256 == digest(made / found.layers)
    assert found.builder == str(package.load()) and found.system == f"{platform.system()} {platform.machine()}"
    assert found.compute_capability == "8.6" and "compute capability 8.6" in found.portability
    assert found.batches == {"input": [1, 1, 4]} and found.precision == "fp32"
    nodes = onnx.load(made / "model.onnx").graph.node
    assert found.computes_in == {"fp32": sum(node.op_type in ("Conv", "Gemm") for node in nodes)}
    assert (found.gpu is None) == (find_gpu() is None)
    assert ("cannot run here" in found.running) == (not probes.can_run())


@needs_package
def test_the_layers_name_the_nodes_they_were_made_of(made):
    layers = json.loads((made / "model.engine.layers.json").read_text())
    fused = {node for layer in layers for node in layer["nodes"]}
    convolutions = {node.name for node in onnx.load(made / "model.onnx").graph.node if node.op_type == "Conv"}
    assert convolutions and convolutions <= fused
    assert all(layer["precision"] in ("fp32", None) for layer in layers)


@needs_package
def test_timings_are_kept_where_the_builder_takes_any(made):
    kept = Manifest.of(made / "model.engine").timing_cache
    if package.load().for_rtx:  # its timing cache does nothing since 1.2, so none is written and the manifest says so
        assert kept.endswith("keeps none") and not TIMING_CACHE.exists()
        return
    before = TIMING_CACHE.read_bytes()
    write(made / "model.onnx", CONTRACT, made / "again.engine", AHEAD)
    assert before and TIMING_CACHE.read_bytes()[: len(before)] == before


@needs_package
@pytest.mark.parametrize("place", [0, 1000, -1])
def test_an_engine_with_one_other_byte_is_not_loaded(copied, place):
    content = bytearray(copied.read_bytes())
    content[place] ^= 1
    copied.write_bytes(content)
    with pytest.raises(CheckFailed, match="was not loaded") as caught:
        load(copied)
    assert digest(copied)[:12] in str(caught.value) and caught.value.exit_code == 1


@needs_package
def test_a_truncated_engine_or_one_without_manifest_is_not_loaded(copied):
    trusted(copied)
    copied.write_bytes(copied.read_bytes()[:-100])
    with pytest.raises(CheckFailed, match="was not loaded"):
        load(copied)
    manifest_of(copied).write_text("{")
    with pytest.raises(RequestError, match="not JSON"):
        load(copied)
    manifest_of(copied).unlink()
    with pytest.raises(RequestError, match=r"no manifest model\.engine\.json"):
        load(copied)


@needs_package
def test_an_engine_of_another_version_is_not_loaded(copied):
    write_json(manifest_of(copied), replace(Manifest.of(copied), builder="TensorRT 9.9"))
    with pytest.raises(CannotRun, match=r"built by TensorRT 9\.9, here is TensorRT"):
        load(copied)


@needs_package
@without_gpu
def test_without_a_gpu_loading_says_why_it_cannot_run(made):
    with pytest.raises(CannotRun, match="cannot run here") as caught:
        load(made / "model.engine")
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)


@needs_package
def test_a_precision_the_graph_does_not_have_is_a_failed_export(made, tmp_path):
    with pytest.raises(CheckFailed, match="fp16 was asked for, but the engine computes in fp32 only"):
        write(made / "model.onnx", CONTRACT, tmp_path / "model.engine", replace(AHEAD, precision="fp16"))
    assert not list(tmp_path.iterdir())


@needs_package
def test_bf16_is_computed_in_bf16_by_every_layer(made, tmp_path):
    lowered, _ = lower(onnx.load(made / "model.onnx"), "bf16", {})
    onnx.save(lowered, tmp_path / "model-bf16.onnx")
    write(tmp_path / "model-bf16.onnx", CONTRACT, tmp_path / "model.engine", replace(AHEAD, precision="bf16"))
    nodes = onnx.load(made / "model.onnx").graph.node
    weighted = sum(node.op_type in ("Conv", "Gemm") for node in nodes)
    assert Manifest.of(tmp_path / "model.engine").computes_in == {"bf16": weighted}


@needs_package
def test_what_tensorrt_cannot_run_is_named_and_leaves_nothing(made, tmp_path):
    model = onnx.load(made / "model.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Clip")
    node.op_type = "Frob"
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ModelUnsupported, match=rf"odd.onnx: node '{node.name}' \(Frob\)"):
        write(tmp_path / "odd.onnx", CONTRACT, tmp_path / "model.engine", AHEAD)
    assert [file.name for file in tmp_path.iterdir()] == ["odd.onnx"]


def test_a_missing_package_is_answered_with_the_install_line(monkeypatch, tmp_path):
    for name in ("tensorrt", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(probes, "load", package.load.__wrapped__)
    with pytest.raises(MachineError, match="pip install"):
        write(tmp_path / "model.onnx", CONTRACT, tmp_path / "model.engine", AHEAD)


@needs_package
def test_a_builder_that_does_not_build_is_refused_before_anything_is_run(monkeypatch):
    def broken(*asked, **flags):
        raise DeviceUnavailable("no builder: the driver is too old")

    monkeypatch.setattr(probes, "build", broken)
    with pytest.raises(MachineError, match="cannot build here: no builder: the driver is too old"):
        EXPORTER.check(AHEAD)


@needs_package
def test_what_cannot_be_built_for_is_refused_before_anything_is_run(tmp_path):
    def never(places):
        raise AssertionError("run all the same")

    inputs = Inputs("images", 6, never, None)
    original = Original("a network", torch.nn.Identity(), CONTRACT, inputs, inputs, tmp_path, None)
    with pytest.raises(UnknownDevice, match=r"'9\.9'.*8\.6"):
        export(original, EXPORTER.name, replace(AHEAD, compute_capability="9.9"))


@needs_package
@without_gpu
def test_an_export_that_was_not_run_is_never_called_verified(tmp_path):
    torch.manual_seed(0)
    network = student().module().eval()
    rng = np.random.default_rng(0)
    images = rng.standard_normal((6, 3, 32, 32), dtype=np.float32)
    inputs = Inputs("6 random images", 6, lambda places: images[list(places)], None)
    original = Original("a network", network, CONTRACT, inputs, inputs, tmp_path, None)
    done = export(original, EXPORTER.name, AHEAD)
    found = read_json(tmp_path / "model.engine.verification.json", Verification)
    assert done.path == tmp_path / "model.engine" and done.path.is_file()
    assert found == done.verification and found.sha256 == digest(done.path)
    assert not found.verified and "cannot run here" in found.not_run and found.latency is None
    assert [(link.step, link.against) for link in found.links] == [("onnx", "torch"), ("simplified", "onnx")]
    assert found.nothing_failed


@needs_package
@without_gpu
def test_what_was_not_run_is_no_bundle_and_no_zip(workdir):
    (workdir / "net.py").write_text(
        "from torch import nn\nMODEL = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(900, 3))\n"
    )
    flags = ["--model", "net.py", "--image-size", "32", "--format", "tensorrt", "--compute-capability", "8.6", "--zip"]
    done = CliRunner().invoke(main, flags)
    assert done.exit_code == 3 and "WRITTEN BUT NOT RUN" in done.output
    last = done.output.splitlines()[-1]
    assert last.startswith("error: --zip: exports/net/model.engine was written, but exports/net is no bundle: ")
    assert "cannot run here" in last and (workdir / "exports" / "net" / "model.engine").is_file()
    assert not list(workdir.rglob("*.zip")) and not list(workdir.rglob("manifest.json"))
