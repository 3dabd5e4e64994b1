"""The bundle as it is written: complete, always the same bytes, and nothing in it that does not belong."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dna_deploy.bundle import prefix_graph, write_bundle, write_zip
from dna_deploy.contents import check, opened
from dna_deploy.errors import RequestError
from dna_deploy.exporters._exporter import Contract, Options
from dna_deploy.files import read_arrays, write_arrays
from dna_deploy.plugins import find
from tests.conftest import CONTRACT, asked, changed

NET = "from torch import nn\nMODEL = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(196, 3))\n"


def test_a_bundle_holds_what_it_says_and_checks_out(made):
    names = {file.name for file in made.iterdir()}
    assert names == {
        "manifest.json", "model.onnx", "preprocess.onnx", "preprocessing.json", "labels.json", "golden.npz",
        "model.onnx.verification.json", "model.onnx.logits.npz", "LICENCES.md", "example.py",
    }  # fmt: skip
    with opened(made) as contents:
        assert set(contents.manifest.files) == names - {"manifest.json"} and contents.labels == list("abcdefghij")
        (golden,), left = check(contents)
        assert not left and golden.ok and golden.file == "model.onnx" and golden.largest_difference == 0
        assert contents.golden["images"].shape == (8, 32, 32, 3) and contents.golden["images"].dtype == np.uint8
        assert contents.accuracy("model.onnx").accuracy_before == pytest.approx(11 / 12)
        assert contents.accuracy("model.onnx").drop == 0
    told = json.loads((made / "preprocessing.json").read_text())
    assert told["shorter_side"] == 32 and told["interpolation"] == "bicubic" and told["crop"] == "centre"
    assert "Apache-2.0" in (made / "LICENCES.md").read_text()


def test_the_prefix_is_the_preprocessing(tmp_path):
    from dna_deploy.data import Preprocessing

    onnxruntime = pytest.importorskip("onnxruntime")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(prefix_graph(CONTRACT))
    found = session.run(None, {"image": pixels})[0]
    expected = Preprocessing(CONTRACT.mean, CONTRACT.std)(torch.from_numpy(pixels).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_a_zip_is_the_same_bundle_and_always_the_same_bytes(made, tmp_path):
    write_zip(made, tmp_path / "one.zip")
    write_zip(made, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "folder.zip", "w") as archive:  # as file managers make it
        for file in made.iterdir():
            archive.write(file, f"export/{file.name}")
            archive.writestr(f"__MACOSX/export/._{file.name}", "")
    for name in ("one.zip", "folder.zip"):
        with opened(tmp_path / name) as contents:
            assert check(contents)[0][0].ok


def test_a_bundle_whose_manifest_forgot_a_file_is_written_anew(bundle):
    """Its own manifest is read when another model is exported into the folder."""
    shutil.copy(bundle / "model.onnx", bundle / "other.onnx")

    def change(manifest):
        manifest["models"]["other.onnx"] = manifest["models"]["model.onnx"]

    changed(bundle, change)
    golden = read_arrays(bundle / "golden.npz")
    write_arrays(bundle / "golden.npz", {**golden, "other.onnx": golden["model.onnx"]})
    images = find("exporters", "onnx").load(bundle / "preprocess.onnx")(golden["images"])
    exporter, licences = find("exporters", "onnx"), {"teacher": "Apache-2.0"}
    made = write_bundle(bundle, "tiny", CONTRACT, [bundle / "model.onnx"], exporter, Options(), images, {}, licences)
    assert set(made.models) == {"model.onnx"} and "other.onnx" not in made.files


def test_an_export_of_another_network_leaves_out_what_is_there_of_the_first(workdir):
    """A model of other weights, and its passing verification, would be shipped under the new network's name."""
    (workdir / "net.v2.py").write_text(NET)
    flags = ("--model", "net.v2.py", "--image-size", "16", "--zip")

    def shipped():
        with opened(workdir / "exports" / "net.v2.zip") as contents:
            golden, left = check(contents)
            assert (
                not left and all(part.ok for part in golden) and set(contents.manifest.models) == {part.file for part in golden}
            )
            return set(contents.manifest.files)

    def of(model):
        return {f"{model}{ending}" for ending in ("", ".verification.json", ".logits.npz")}

    assert asked(*flags, "--precision", "fp16")[0] == 0
    own = {"labels.json", "preprocessing.json", "preprocess.onnx", "golden.npz", "LICENCES.md", "example.py"}
    assert shipped() == own | {"model.onnx"} | of("model-fp16.onnx")
    (workdir / "exports" / "net.v2" / "notes.txt").write_text("mine")
    assert asked(*flags)[0] == 0
    assert shipped() == own | of("model.onnx") | of("model-fp16.onnx")  # of the same network: kept, with what belongs to it
    (workdir / "net.v2.py").write_text(NET.replace("MODEL", "import torch\ntorch.manual_seed(1)\nMODEL"))
    code, said = asked(*flags)
    assert code == 0 and "model-fp16.onnx left out of the bundle: made from another network" in said
    assert shipped() == own | of("model.onnx")


def test_labels_must_fit_when_it_is_written(made, tmp_path):
    model = shutil.copy(made / "model.onnx", tmp_path / "model.onnx")
    few = Contract(32, (0.5,) * 3, (0.5,) * 3, ("a", "b"))
    images = np.zeros((2, 3, 32, 32), np.float32)
    with pytest.raises(RequestError, match="10 classes, 2 labels"):
        write_bundle(tmp_path, "x", few, [Path(model)], find("exporters", "onnx"), Options(), images, {}, {})


def test_a_graph_with_preprocessing_inside_takes_photographs(made):
    """The optional prefix can be merged with the network into one graph."""
    network = onnx.load(made / "model.onnx")
    prefix = onnx.load(made / "preprocess.onnx")
    prefix.ir_version = network.ir_version
    whole = onnx.compose.merge_models(prefix, network, io_map=[(prefix.graph.output[0].name, "input")])
    del whole.opset_import[1:]  # onnx.compose lists the same one twice
    with opened(made) as contents:
        golden = contents.golden
    session = pytest.importorskip("onnxruntime").InferenceSession(whole.SerializeToString())
    found = session.run(["output"], {"image": golden["images"]})[0]
    np.testing.assert_allclose(found, golden["model.onnx"], atol=1e-5)


def test_labels_that_have_changed_since_leave_out_what_was_exported_with_the_others(workdir):
    (workdir / "net.py").write_text(NET)
    (workdir / "names.txt").write_text("one\ntwo\nthree\n")
    flags = ("--model", "net.py", "--image-size", "16")
    assert asked(*flags)[0] == 0 and asked(*flags, "--precision", "fp16")[0] == 0
    folder = workdir / "exports" / "net"
    code, said = asked(*flags, "--precision", "bf16", "--labels", "names.txt")
    assert code == 0 and "model-fp16.onnx left out of the bundle: made from another network or with other labels" in said
    with opened(folder) as contents:
        assert set(contents.manifest.models) == {"model.onnx", "model-bf16.onnx"} and contents.labels == ["one", "two", "three"]
    assert not (folder / "model.onnx.verification.json").exists()  # of the file with the labels before
