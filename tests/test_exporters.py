"""Every exporter writes a network and runs what it wrote; ONNX files are clean."""

import json
import random
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from dna_deploy.arch import sample
from dna_deploy.errors import CheckFailed, MachineError, RequestError
from dna_deploy.exporters._exporter import PRECISIONS, Contract, Options
from dna_deploy.exporters.onnx import check, clean
from dna_deploy.graph import OPSET
from dna_deploy.plugins import find, names
from tests.conftest import TINY

CONTRACT = Contract(32, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7), tuple("abcdefghij"))


def _scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it deprecated; users have such files all the same
        return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)))


def _network():
    torch.manual_seed(0)
    network = sample(find("spaces", TINY).at(32, 10), random.Random(0)).module()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.running_mean)
    return network.eval()


@pytest.fixture
def network():
    return _network()


@pytest.mark.parametrize("name", names("exporters"))
def test_what_is_exported_runs_and_agrees(network, tmp_path, name):
    exporter = find("exporters", name)
    assert exporter.name == name and set(exporter.precisions) <= set(PRECISIONS) and exporter.precisions[0] == "fp32"
    path = tmp_path / f"model{exporter.suffix}"
    source, options = network, Options(largest_batch=5)
    if exporter.made_from == "onnx":
        source = tmp_path / "source.onnx"
        find("exporters", "onnx").write(network, CONTRACT, source, options)
    try:
        exporter.write(source, CONTRACT, path, options)
        run = exporter.load(path)
    except MachineError as missing:  # a package, or a device to run on
        pytest.skip(str(missing))
    for batch in (1, 2, 3, 5):
        x = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            np.testing.assert_allclose(run(x.numpy()), network(x).numpy(), atol=1e-4)
    assert all(path.with_suffix(suffix).is_file() for suffix in exporter.beside)


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_as_many_images_at_once_as_were_asked_for(tmp_path, name):
    path, network = tmp_path / "model", nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, 10)).eval()
    find("exporters", name).write(network, CONTRACT, path, Options(largest_batch=5000))
    assert find("exporters", name).load(path)(np.zeros((5000, 3, 32, 32), np.float32)).shape == (5000, 10)


@pytest.mark.parametrize("name", [name for name in names("exporters") if find("exporters", name).suffix != ".onnx"])
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path, name):
    exporter = find("exporters", name)
    path = tmp_path / f"model{exporter.suffix}"
    path.write_bytes(b"something else")
    with pytest.raises((RequestError, MachineError, CheckFailed)) as answer:
        exporter.load(path)
    assert "\n" not in str(answer.value)


FULL = """
import resource, sys
from pathlib import Path
from torch import nn
from dna_deploy.errors import MachineError
from dna_deploy.exporters._exporter import Contract, Options
from dna_deploy.plugins import find
network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 100))
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # a larger file fails as on a full disk
try:
    contract = Contract(16, (0.5,) * 3, (0.5,) * 3, ("a",) * 100)
    find("exporters", sys.argv[1]).write(network, contract, Path(sys.argv[2]), Options())
except MachineError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_a_full_disk_is_one_line(tmp_path, name):
    """In a process of its own: it may not survive a writer of another library."""
    asked = [sys.executable, "-c", FULL, name, str(tmp_path / "model")]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert done.returncode == 0 and "the disk is full" in done.stdout, done.stderr[-500:]
    assert not list(tmp_path.iterdir())


def test_an_unknown_op_is_answered_with_the_nodes_name(exported):
    model = onnx.load(exported)
    model.graph.node.append(onnx.helper.make_node("Shrug", [model.graph.node[0].output[0]], ["shrugged"], name="shrug7"))
    exported.write_bytes(model.SerializeToString())
    with pytest.raises(CheckFailed, match=r"shrug7 \(Shrug\)"):
        find("exporters", "onnx").load(exported)


@pytest.fixture(scope="module")
def exported_once(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    find("exporters", "onnx").write(_network(), CONTRACT, path, Options())
    return path


@pytest.fixture
def exported(exported_once, tmp_path):
    return Path(shutil.copy(exported_once, tmp_path))


def test_the_onnx_file_is_clean(exported):
    model = onnx.load(exported)
    assert [entry.version for entry in model.opset_import] == [OPSET]
    assert not {"BatchNormalization", "Dropout"} & {node.op_type for node in model.graph.node}
    content = exported.read_bytes()
    for word in (str(Path.home()), sys.prefix, "stack_trace", "site-packages", __file__):
        assert word.encode() not in content
    scopes = {entry.value for node in model.graph.node for entry in node.metadata_props}
    assert any("b1.0" in scope for scope in scopes)  # which module a node came from stays known
    assert len(list(exported.parent.iterdir())) == 1


def test_the_onnx_file_carries_its_contract(exported):
    entries = {entry.key: json.loads(entry.value) for entry in onnx.load(exported).metadata_props}
    assert entries["dna_deploy.labels"] == list("abcdefghij")
    described = entries["dna_deploy.input"]
    assert described["mean"] == [0.5, 0.4, 0.3] and described["std"] == [0.5, 0.6, 0.7]
    assert described["shape"] == ["batch", 3, 32, 32] and described["colour"] == "RGB"


def test_exporting_twice_gives_the_same_bytes(network, exported, tmp_path):
    again = tmp_path / "again.onnx"
    find("exporters", "onnx").write(network, CONTRACT, again, Options())
    assert again.read_bytes() == exported.read_bytes()


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 10)

    def forward(self, x):
        x = x.mean((2, 3))
        if x.sum() > 0:
            x = 2 * x
        return self.fc(x)


class Looping(Branching):
    def forward(self, x):
        return self.fc(torch.stack([x[place].mean((1, 2)) for place in range(int(x.shape[0]))]))


@pytest.mark.parametrize("name", ["onnx", "torch"])
@pytest.mark.parametrize(
    ("network", "says"),
    [
        (Branching(), rf"at {re.escape(__file__)}, line \d+: Could not guard on data-dependent expression"),
        (Looping(), "of 2 images only|your code specialized it to be a constant \\(2\\)"),
        (_scripted(), "Exporting a ScriptModule is not supported"),
    ],
    ids=["branches on values", "for one batch size", "ScriptModule"],
)
def test_a_network_that_cannot_be_captured_is_answered_in_one_line(tmp_path, capfd, name, network, says):
    with pytest.raises(RequestError, match=says) as answer:
        find("exporters", name).write(network.eval(), CONTRACT, tmp_path / "model", Options())
    assert "\n" not in str(answer.value) and capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())


def test_the_network_is_left_as_it_was(network, tmp_path):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    find("exporters", "onnx").write(network.train(), CONTRACT, tmp_path / "m.onnx", Options())
    assert network.training and all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_what_must_not_be_exported_is_refused(exported):
    good = onnx.load(exported)

    trained = onnx.ModelProto.FromString(good.SerializeToString())
    trained.graph.node.append(onnx.helper.make_node("Dropout", [good.graph.node[0].output[0]], ["dropped"], name="drop1"))
    with pytest.raises(CheckFailed, match="drop1"):
        check(trained, exported, OPSET)

    older = onnx.ModelProto.FromString(good.SerializeToString())
    older.opset_import[0].version = OPSET + 1
    with pytest.raises(CheckFailed, match=f"opset {OPSET + 1}, asked for {OPSET}"):
        check(older, exported, OPSET)

    telling = onnx.ModelProto.FromString(good.SerializeToString())
    telling.graph.node[0].doc_string = f"{Path.cwd()}/network.py, line 3"
    with pytest.raises(CheckFailed, match="names the folder"):
        check(telling, exported, OPSET)
    clean(telling)
    check(telling, exported, OPSET)


def test_a_label_may_look_like_a_folder(exported, monkeypatch):
    monkeypatch.setattr(Path, "cwd", lambda: Path("/root"))
    model = onnx.load(exported)
    labels = next(entry for entry in model.metadata_props if entry.key == "dna_deploy.labels")
    labels.value = '["ginger/root", "carrot"]'
    check(model, exported, OPSET)
    assert labels.value == '["ginger/root", "carrot"]'
    model.metadata_props.add(key="other", value="ginger/root")
    with pytest.raises(CheckFailed, match="names the folder /root of this machine"):
        check(model, exported, OPSET)


def test_a_folder_is_not_found_among_the_values_of_weights(exported, monkeypatch):
    model = onnx.load(exported)
    monkeypatch.setattr(Path, "cwd", lambda: Path("/w"))
    check(model, exported, OPSET)
    weights = np.frombuffer(b"/w" * 64, np.float32)  # as 32 MB of random bytes hold it hundreds of times
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "weights"))
    check(model, exported, OPSET)
    model.graph.node[0].doc_string = "/w/network.py"
    with pytest.raises(CheckFailed, match="names the folder /w of this machine"):
        check(model, exported, OPSET)
