"""A bundle as it is read: it runs on numpy and onnxruntime alone, and whatever was done to it since is noticed in one line."""

import io
import json
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from dna_deploy import plugins
from dna_deploy.bundle import Manifest, write_bundle, write_zip
from dna_deploy.contents import Contents, check, measured_ms, opened
from dna_deploy.errors import CheckFailed, DnaError, RequestError
from dna_deploy.exporters._exporter import Options
from dna_deploy.files import read_arrays, read_json, sha256, write_arrays, write_json
from dna_deploy.plugins import find
from dna_deploy.verify import save_logits
from tests.conftest import CONTRACT, asked, changed

NET = "from torch import nn\nMODEL = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(196, 3))\n"
REFUSED = ("torch", "timm", "onnx", "dna_deploy", "profilers", "scipy")


def again(bundle, name):
    """Let the manifest agree with a file that was changed: what a careful forger does."""
    manifest = read_json(bundle / "manifest.json", Manifest)
    plain = json.loads((bundle / "manifest.json").read_text())
    plain["files"][name] = {"sha256": sha256(bundle / name), "bytes": (bundle / name).stat().st_size}
    write_json(bundle / "manifest.json", plain)
    assert name in manifest.files


def test_it_verifies_with_numpy_and_onnxruntime_alone(bundle):
    code = (
        "import runpy, sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {REFUSED!r}: raise ImportError(f'{{name}} is refused here')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "runpy.run_path(sys.argv[1], run_name='__main__')\n"
    )
    asked = [sys.executable, "-c", code, str(bundle / "example.py")]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=bundle.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("golden image") == 8 and "largest difference" in done.stdout
    assert len((bundle / "example.py").read_text().splitlines()) <= 25

    (bundle / "labels.json").write_text("[]")
    done = subprocess.run(asked, capture_output=True, text=True, cwd=bundle.parent)
    assert done.returncode == 1 and done.stderr.strip() == "labels.json: not the file that was shipped"


def test_a_changed_or_missing_file_is_named(bundle):
    content = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckFailed, match=r"model\.onnx: its SHA-256"), opened(bundle):
        pass
    (bundle / "model.onnx").write_bytes(content[:1000])
    with pytest.raises(CheckFailed, match=r"model\.onnx: 1000 bytes, shipped with"), opened(bundle):
        pass
    (bundle / "model.onnx").unlink()
    with pytest.raises(CheckFailed, match=r"model\.onnx is missing"), opened(bundle):
        pass


def test_a_zip_that_cannot_be_unpacked_is_named(made, tmp_path):
    write_zip(made, tmp_path / "whole.zip")
    whole = (tmp_path / "whole.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "whole.zip") as archive:
        data = archive.getinfo("model.onnx").header_offset + 30 + len("model.onnx")
    locked = bytearray(whole)
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        locked[locked.index(mark) + flags] |= 1
    for content, says in (
        (whole[:3000], "not a whole zip .*copy it again"),
        (whole[:data] + b"\xff" * 4 + whole[data + 4 :], "not a whole zip .*copy it again"),  # no deflate stream begins so
        (locked, r"cannot be unpacked here \(.*encrypted.*; unpack it yourself"),
    ):
        (tmp_path / "bad.zip").write_bytes(content)
        with pytest.raises(RequestError, match=rf"bad\.zip: {says}"), opened(tmp_path / "bad.zip"):
            pass


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/evil", "a/../../evil", "..\\evil", "C:\\evil"])
def test_a_zip_that_leads_outside_is_not_unpacked(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(RequestError, match="leads outside the bundle"), opened(tmp_path / "bad.zip"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["bad.zip"]


@pytest.mark.parametrize("format", ["evil.py", "../bundle/evil.py", "_bf16", "unheard-of"])
def test_a_format_that_is_not_installed_is_refused_and_nothing_is_run(bundle, monkeypatch, format):
    monkeypatch.chdir(bundle)
    (bundle / "evil.py").write_text("open('it_ran', 'w')\nEXPORTER = None\n")
    changed(bundle, lambda manifest: manifest["models"]["model.onnx"].update(format=format))
    code, said = asked("--verify", bundle)
    assert code == 2 and f"model.onnx is of the format {format!r}, none of" in said and "Traceback" not in said
    assert not (bundle / "it_ran").exists()


def test_a_file_that_can_hold_code_is_loaded_with_the_users_word_only(bundle):
    class Evil:
        def __reduce__(self):
            return open, (str(bundle / "it_ran"), "w")

    buffer = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(1),)), buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(bundle / "model.onnx", "w") as written:
        for entry in archive.namelist():
            evil = entry.endswith("sample_inputs/model.pt")
            written.writestr(entry, pickle.dumps(Evil()) if evil else archive.read(entry))
    changed(bundle, lambda manifest: manifest["models"]["model.onnx"].update(format="torch"))
    again(bundle, "model.onnx")
    with pytest.raises(RequestError, match="loading a torch file runs what code is in it; add --trust"):
        check(Contents(bundle, read_json(bundle / "manifest.json", Manifest), []))
    assert not (bundle / "it_ran").exists()


def test_a_link_that_leads_outside_is_not_followed(bundle, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_text("abc")
    (bundle / "inner").symlink_to(tmp_path / "secret")
    listed = {"sha256": sha256(tmp_path / "secret" / "key.txt"), "bytes": 3}
    changed(bundle, lambda manifest: manifest["files"].update({"inner/key.txt": listed}))
    with pytest.raises(RequestError, match=r"'inner/key\.txt', which leads outside the bundle"), opened(bundle):
        pass


def test_weights_outside_the_bundle_are_not_read(bundle):
    model = onnx.load(bundle / "model.onnx")
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../secret.bin")
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    again(bundle, "model.onnx")
    with pytest.raises(RequestError, match=r"lies in '\.\./\.\./secret\.bin', outside the bundle"), opened(bundle):
        pass


def in_a_constant(tensor):
    return onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)


def in_a_branch(tensor):
    output = onnx.helper.make_tensor_value_info("inner", tensor.data_type, None)
    branch = onnx.helper.make_graph([onnx.helper.make_node("Identity", [tensor.name], ["inner"])], "b", [], [output], [tensor])
    return onnx.helper.make_node("If", ["condition"], ["either"], then_branch=branch, else_branch=branch)


@pytest.mark.parametrize("place", ["a constant", "a graph in a node", "a function"])
def test_weights_outside_the_bundle_are_not_read_wherever_they_are_named(bundle, place):
    """A file that lies in the bundle, but that the manifest does not list, is covered by no hash."""
    model = onnx.load(bundle / "model.onnx")
    weight = onnx.TensorProto(name="far", data_type=onnx.TensorProto.FLOAT, dims=[1])
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="unlisted.bin")
    (bundle / "unlisted.bin").write_bytes(b"\0\0\0\0")
    if place == "a function":
        opsets = [onnx.helper.make_opsetid("", 18)]
        model.functions.append(onnx.helper.make_function("own", "f", [], ["far"], [in_a_constant(weight)], opsets))
    else:
        model.graph.node.insert(0, in_a_constant(weight) if place == "a constant" else in_a_branch(weight))
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    again(bundle, "model.onnx")
    with pytest.raises(RequestError, match=r"weight far lies in 'unlisted\.bin', outside the bundle"), opened(bundle):
        pass


def test_a_model_is_named_as_its_format_is_and_all_its_files_are_listed(bundle):
    """Weights in an .onnx file under another name, or those that OpenVINO reads beside its .xml, are covered by a hash too."""
    shutil.copy(bundle / "model.onnx", bundle / "model.weights")
    (bundle / "model.xml").write_text("<net/>")
    whole = read_json(bundle / "manifest.json", Manifest)

    def add(name, format):
        def change(manifest):
            manifest["models"][name] = {**manifest["models"]["model.onnx"], "format": format}
            manifest["files"][name] = {"sha256": sha256(bundle / name), "bytes": (bundle / name).stat().st_size}

        changed(bundle, change)

    add("model.weights", "onnx")
    with pytest.raises(CheckFailed, match=r"model\.weights is of the format onnx, whose files end in \.onnx"), opened(bundle):
        pass
    write_json(bundle / "manifest.json", whole)
    add("model.xml", "openvino")
    with pytest.raises(CheckFailed, match=r"the manifest does not list model\.bin"), opened(bundle):
        pass
    write_json(bundle / "manifest.json", whole)
    changed(bundle, lambda manifest: manifest.update(newest="labels.json"))
    with pytest.raises(CheckFailed, match=r"calls labels\.json the newest model, which is none of its models"), opened(bundle):
        pass


def test_in_a_zip_the_bundle_at_the_root_is_the_one_that_is_checked(made, tmp_path):
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for file in made.iterdir():
            archive.write(file, f"inner/{file.name}")
            archive.writestr(file.name, "other" if file.name == "model.onnx" else file.read_bytes())
    with pytest.raises(CheckFailed, match=r"two\.zip/model\.onnx: 5 bytes, shipped with"), opened(tmp_path / "two.zip"):
        pass


def test_a_failed_check_in_a_zip_names_the_zip(made, tmp_path):
    bundle = shutil.copytree(made, tmp_path / "bundle")
    tampered(bundle, "preprocess.onnx", takes_floats)
    write_zip(bundle, tmp_path / "b.zip")
    with pytest.raises(CheckFailed, match=rf"^{tmp_path}/b\.zip/preprocess\.onnx: "), opened(tmp_path / "b.zip") as contents:
        check(contents)


def tampered(bundle, name, change):
    """An ONNX file of the bundle, changed, and the manifest with it."""
    model = onnx.load(bundle / name)
    change(model)
    (bundle / name).write_bytes(model.SerializeToString())
    again(bundle, name)


def takes_floats(model):
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def takes_two_inputs(model):
    model.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, ["batch", 10]))
    model.graph.node.append(onnx.helper.make_node("Add", ["output", "more"], ["sum"]))
    model.graph.output[0].name = "sum"


def takes_one_image(model):
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def states_no_shape(model):
    model.graph.output[0].type.tensor_type.ClearField("shape")


def states_a_number(model):
    del model.graph.output[0].type.tensor_type.shape.dim[:]


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("preprocess.onnx", takes_floats, r"preprocess\.onnx: the onnx runtime refuses it: .*expected: \(tensor\(float\)\)"),
        ("model.onnx", takes_two_inputs, r"model\.onnx: the onnx runtime refuses it: Required inputs \(\['more'\]\) are missing"),
        ("model.onnx", takes_one_image, r"model\.onnx: the onnx runtime refuses it: .*Got invalid dimensions"),
        ("model.onnx", states_no_shape, r"model\.onnx: its output has no shape; expected \(batch, classes\)"),
        ("model.onnx", states_a_number, r"model\.onnx: its output has no shape; expected \(batch, classes\)"),
    ],
)
def test_a_graph_that_does_not_take_the_golden_images_is_one_line(bundle, name, change, says):
    tampered(bundle, name, change)
    with pytest.raises(CheckFailed, match=says) as failed, opened(bundle) as contents:
        check(contents)
    assert "\n" not in str(failed.value)


@pytest.mark.parametrize(
    "values", [np.zeros((8, 10)).astype(str), np.zeros((8, 10), int), np.zeros((8, 9)), np.zeros(8), np.zeros((0, 10))]
)
def test_golden_answers_that_are_none_are_one_line(bundle, values):
    write_arrays(bundle / "golden.npz", {**read_arrays(bundle / "golden.npz"), "model.onnx": values})
    again(bundle, "golden.npz")
    with pytest.raises(CheckFailed, match=r"golden\.npz: model\.onnx is not one number for each"), opened(bundle) as contents:
        check(contents)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda found: found.update(sha256="0" * 64), "is of another file than model.onnx"),
        (lambda found: found.update(sha256=None), "is of another file than model.onnx"),
        (lambda found: found["links"][0]["comparisons"][0].update(ok=False), "does not say that model.onnx passed"),
        (lambda found: found["links"][0].update(comparisons=[]), "does not say that model.onnx passed"),
        (lambda found: found.update(links=[]), "does not say that model.onnx passed"),
        (lambda found: found.update(not_run="no GPU here"), "does not say that model.onnx passed"),
    ],
    ids=["another file", "no file", "failed", "nothing compared", "no steps", "not run"],
)
def test_a_verification_that_did_not_pass_or_is_of_another_file_fails(bundle, change, says):
    name = "model.onnx.verification.json"
    found = json.loads((bundle / name).read_text())
    change(found)
    write_json(bundle / name, found)
    again(bundle, name)
    for flags in ((), ("--max-difference", "1")):
        code, said = asked("--verify", bundle, *flags)
        assert code == 1 and f"{name}: {says}" in said and "Traceback" not in said


def test_an_unknown_op_is_named(bundle):
    model = onnx.load(bundle / "model.onnx")
    model.graph.node[3].op_type = "Warp"
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    again(bundle, "model.onnx")
    with pytest.raises(DnaError, match="Warp") as refused, opened(bundle) as contents:
        check(contents)
    assert "\n" not in str(refused.value)


def test_labels_of_another_network_are_refused(bundle):
    (bundle / "labels.json").write_text('["a", "b"]')
    again(bundle, "labels.json")
    with pytest.raises(CheckFailed, match="2 labels for 10 classes"), opened(bundle):
        pass


def test_other_weights_fail_the_golden_images(bundle):
    model = onnx.load(bundle / "model.onnx")
    for part in model.graph.initializer:
        if len(part.dims) == 4:
            part.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(part) * 1.1, part.name))
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    again(bundle, "model.onnx")
    with opened(bundle) as contents:
        (golden,), _ = check(contents)
    assert not golden.ok and golden.largest_difference > golden.tolerance


def test_golden_images_are_run_in_batches_that_the_model_takes(bundle):
    """Some formats are written for no more images at once than was asked for."""
    images = np.random.default_rng(0).uniform(-0.5, 0.9, (8, 3, 32, 32)).astype(np.float32)
    one = onnx.load(bundle / "model.onnx")
    one.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    made = [bundle / "model.onnx", bundle / "one.onnx"]
    made[1].write_bytes(one.SerializeToString())
    for ending in (".verification.json", ".logits.npz"):
        shutil.copy(bundle / f"model.onnx{ending}", bundle / f"one.onnx{ending}")
    write_bundle(bundle, "tiny", CONTRACT, made, find("exporters", "onnx"), Options(largest_batch=1), images, {}, {})
    with opened(bundle) as contents:
        golden, left = check(contents)
        assert not left and [(part.file, part.ok) for part in golden] == [("model.onnx", True), ("one.onnx", True)]


@pytest.mark.parametrize(
    ("name", "array", "values", "says"),
    [
        ("golden.npz", "images", np.zeros((8, 32, 32, 3), np.float32), "images are not bytes of the network's input size"),
        ("golden.npz", "images", np.zeros((8, 32, 31, 3), np.uint8), "images are not bytes of the network's input size"),
        ("golden.npz", "images", np.zeros((0, 32, 32, 3), np.uint8), "images are not bytes of the network's input size"),
        ("model.onnx.logits.npz", "labels", np.zeros(12).astype(str), "labels and logits are not of the same images"),
        ("model.onnx.logits.npz", "logits/onnx", np.zeros((12, 10), int), "labels and logits are not of the same images"),
        ("model.onnx.logits.npz", "labels", np.zeros(3, int), "labels and logits are not of the same images"),
        ("model.onnx.logits.npz", "logits/torch", np.zeros(12), "labels and logits are not of the same images"),
    ],
)
def test_arrays_that_do_not_fit_are_one_line(bundle, name, array, values, says):
    write_arrays(bundle / name, {**read_arrays(bundle / name), array: values})
    again(bundle, name)
    code, said = asked("--verify", bundle)
    assert code == 1 and says in said and "Traceback" not in said


def test_what_is_no_bundle_is_said(tmp_path, bundle):
    with pytest.raises(RequestError, match="no such bundle"), opened(tmp_path / "nowhere"):
        pass
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=r"no manifest\.json"), opened(tmp_path / "empty"):
        pass
    (bundle / "manifest.json").write_text((bundle / "manifest.json").read_text()[:200])
    with pytest.raises(RequestError, match=r"manifest\.json: not JSON"), opened(bundle):
        pass


def test_a_device_runs_it_too(made):
    with opened(made) as contents:
        (golden,), left = check(contents, device="cpu")
        assert golden.ok and not left and measured_ms(contents, "cpu")[0] > 0


def test_the_command_is_a_gate(made, bundle, tmp_path):
    code, said = asked("--verify", made, "--max-drop", "0.5%", "--max-latency", "10s", "--device", "cpu")
    answer = json.loads(said.splitlines()[-1])
    assert code == 0 and answer["verified"] and answer["accuracy_drop"] == 0 and answer["measured_ms"] > 0
    code, said = asked("--verify", made, "--max-latency", "0.1us")
    assert code == 1 and "ms measured on cpu, --max-latency" in said
    assert asked("--verify", tmp_path / "nowhere")[0] == 2
    (bundle / "labels.json").unlink()
    code, said = asked("--verify", bundle)
    assert code == 1 and "labels.json is missing" in said


def test_a_loss_of_accuracy_beyond_the_limit_is_exit_1(bundle):
    name = "model.onnx.logits.npz"
    labels = np.arange(10)
    right = np.eye(10, dtype=np.float32)
    save_logits(bundle / name, labels, {"torch": right, "onnx": np.roll(right, 1, axis=1)})
    again(bundle, name)
    code, said = asked("--verify", bundle, "--max-drop", "0.5%")
    assert code == 1 and "lost 100.00% of accuracy, --max-drop 0.50%" in said and "Traceback" not in said
    assert asked("--verify", bundle)[0] == 0  # without the flag it is only said


def test_other_limits_are_applied_to_what_was_found_when_it_was_exported(made):
    assert asked("--verify", made, "--max-difference", "2e-5")[0] == 0  # the step is off by 1e-5
    code, said = asked("--verify", made, "--max-difference", "5e-6")
    assert code == 1 and "model.onnx: step onnx differs by 1e-05 of the spread on images, --max-difference 5e-06" in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--verify", "B", "--zip", "--model", "x"), "--model, --zip: not with --verify, which goes with --device, --max-diff"),
        (("--verify", "B", "--rebuild", "B"), "--rebuild: not with --verify"),
        (("--verify", "B", "--format", "openvino"), "--format: not with --verify"),
        (("--rebuild", "B", "--max-drop", "1%"), "--max-drop: not with --rebuild, which goes with --trust only"),
        (("--verify", "B", "--max-difference", "nan"), "'--max-difference': 'nan' is no difference; expected"),
        (("--verify", "B", "--max-difference", "-1"), "'--max-difference': '-1' is no difference; expected"),
        (
            ("--model", "net.py", "--max-difference", "inf"),
            "'--max-difference': 'inf' is no difference; expected",
        ),
        (("--verify", "B", "--max-drop", "nan"), "'--max-drop': 'nan' is no share"),
        (("--verify", "B", "--max-latency", "nan"), "'--max-latency': 'nan' has no unit"),
        (("--trust",), "--trust: for --verify and --rebuild only"),
        (("--compute-capability", "banana"), "--compute-capability: for --format tensorrt, not onnx"),
        (("--model", "net.py", "--data-root", "x"), "--data-root: says where the files of --data lie; give --data"),
        (("--model", "net.py", "--image-size", "16", "--max-drop", "1%"), "--max-drop: the accuracy of net is not known"),
        (("--model", "net.py", "--opset", "17"), "--opset 17: expected one of 18 to "),
        (("--model", "net.py", "--opset", "99"), "--opset 99: expected one of 18 to "),
        (
            ("--model", "net.py", "--image-size", "16", "--format", "openvino", "--output", "y.bin"),
            "--output y.bin: a file of openvino ends in .xml",
        ),
    ],
)
def test_what_would_not_be_heard_is_refused(workdir, flags, says):
    (workdir / "net.py").write_text(NET)
    code, said = asked(*flags)
    assert code == 2 and says in said and "Traceback" not in said


def test_a_format_of_the_users_own_is_verified_with_its_file(workdir):
    (workdir / "net.py").write_text(NET)
    (workdir / "mine.py").write_text(
        "from dna_deploy.exporters._exporter import Exporter\nfrom dna_deploy.exporters.onnx import load\n"
        "def write(source, contract, path, options):\n    path.write_bytes(source.read_bytes())\n"
        "EXPORTER = Exporter('mine', '.mine', ('fp32',), 'onnx', write, load)\n"
    )
    code, said = asked("--model", "net.py", "--image-size", "16", "--format", "mine.py")
    assert code == 0 and "check it anywhere with dna-export --verify exports/net --format FILE.py" in said
    plugins._own.clear()  # as in another process
    code, said = asked("--verify", "exports/net")
    assert code == 2 and "model.mine is of the format 'mine', none of " in said and "add --format FILE.py" in said
    code, said = asked("--verify", "exports/net", "--format", "mine.py", "--max-latency", "10s")
    assert code == 0 and "model.mine on this machine: " in said
    assert asked("--rebuild", "exports/net", "--format", "mine.py", "--trust")[0] == 0
