"""Every exporter writes a network and runs what it wrote; ONNX files are clean."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dna_deploy.arch import sample
from dna_deploy.errors import CheckFailed, MachineError, RequestError
from dna_deploy.exporters._exporter import PRECISIONS, Contract, Options
from dna_deploy.exporters.onnx import check, clean
from dna_deploy.graph import OPSET
from dna_deploy.plugins import find, names

CONTRACT = Contract(32, (0.5, 0.4, 0.3), (0.5, 0.6, 0.7), tuple("abcdefghij"))


@pytest.fixture
def network(tiny):
    torch.manual_seed(0)
    network = sample(tiny, random.Random(0)).module()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.running_mean)
    return network.eval()


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


@pytest.fixture
def exported(network, tmp_path):
    path = tmp_path / "model.onnx"
    find("exporters", "onnx").write(network, CONTRACT, path, Options())
    return path


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
