"""Where nodes run: counted, and a provider that is not there is said."""

import pytest
from onnx import TensorProto, helper

from dna_deploy.errors import CheckFailed, MachineError
from dna_deploy.placement import Placement, placement
from dna_deploy.session import provider_named
from dna_deploy.verify import Limits, Link, failures


@pytest.fixture
def model(tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("input", "output")]
    nodes = [helper.make_node("Relu", ["input"], ["y"], "first"), helper.make_node("Exp", ["y"], ["output"], "second")]
    graph = helper.make_graph(nodes, "two", values[:1], values[1:])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString())
    return path


def test_every_node_is_placed(model):
    found = placement(model, "CPUExecutionProvider")
    assert found == Placement("CPUExecutionProvider", {"CPUExecutionProvider": 2}, [])


def test_a_fallback_is_a_failure_that_names_the_nodes(model):
    found = placement(model, "AzureExecutionProvider")  # is in every build and runs no ordinary node
    assert found.nodes == {"CPUExecutionProvider": 2}
    assert found.elsewhere == ["first (Relu) on CPUExecutionProvider", "second (Exp) on CPUExecutionProvider"]
    link = Link("onnx", "torch", "fp32", None, None, [], Limits(), [], found)
    assert not link.ok and "2 of 2 nodes do not run on AzureExecutionProvider: first (Relu)" in failures(link)[0]


def test_a_provider_that_is_not_installed_is_said():
    assert provider_named("azure") == "AzureExecutionProvider"
    with pytest.raises(MachineError, match=r"--provider toaster: not in this ONNX Runtime, which has .*cpu"):
        provider_named("toaster")


def test_what_onnx_runtime_refuses_is_one_line(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not onnx")
    with pytest.raises(CheckFailed, match="ONNX Runtime refuses it") as refused:
        placement(tmp_path / "model.onnx", "CPUExecutionProvider")
    assert "\n" not in str(refused.value)
