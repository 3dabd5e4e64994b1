"""Sessions: what ONNX Runtime refuses, and what kills it, is one line."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from dna_deploy.errors import CheckFailed
from dna_deploy.session import open_session, require_survived


def graph(op="Relu"):
    """(batch, 5, 4) float32 -> fp16, transposed, multiplied -> (5, batch, 2)"""
    nodes = [
        helper.make_node("Cast", ["input"], ["narrow"], "cast", to=TensorProto.FLOAT16),
        helper.make_node(op, ["narrow"], ["active"], "active"),
        helper.make_node("Transpose", ["active"], ["turned"], "turn", perm=[1, 0, 2]),
        helper.make_node("MatMul", ["turned", "w"], ["output"], "multiply"),
    ]
    weight = numpy_helper.from_array(np.ones((4, 2), np.float16), "w")
    shapes = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 5, 4]),
        helper.make_tensor_value_info("output", TensorProto.FLOAT16, [5, "batch", 2]),
    ]
    made = helper.make_graph(nodes, "g", shapes[:1], shapes[1:], [weight])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def test_a_file_is_opened_from_its_path_or_its_bytes(tmp_path):
    relu = helper.make_graph(
        [helper.make_node("Relu", ["input"], ["output"])],
        "g",
        *([helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3])] for name in ("input", "output")),
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(relu, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString())
    x = np.array([[-1, 0, 2]], np.float32)
    for model in (path, path.read_bytes()):
        np.testing.assert_array_equal(open_session(model, optimize=False).run(None, {"input": x})[0], [[0, 0, 2]])
    require_survived(path)


def test_what_the_runtime_refuses_is_one_line(tmp_path):
    for content, says in (
        (b"not onnx", "model.onnx: ONNX Runtime refuses it: "),
        (graph("Shrug"), r"operators: active \(Shrug\)"),
    ):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(CheckFailed, match=says) as refused:
            open_session(tmp_path / "model.onnx")
        assert "\n" not in str(refused.value)
        require_survived(tmp_path / "model.onnx")  # refused, but nothing died of it


@pytest.mark.skipif(os.name == "nt", reason="no signals")
def test_what_kills_the_runtime_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "onnxruntime.py").write_text(f"import os\nos.kill(os.getpid(), {int(signal.SIGSEGV)})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(CheckFailed, match=r"model\.onnx: opening it kills ONNX Runtime [0-9.]+ \(SIGSEGV\)"):
        require_survived(tmp_path / "model.onnx")


def test_python_in_the_current_folder_is_not_run(tmp_path, monkeypatch):
    """A bundle may bring more files than its manifest lists."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # a "." in it is the user's own wish
    for name in ("numpy", "onnxruntime", "signal"):
        (tmp_path / f"{name}.py").write_text("open('it_ran', 'w')")
    (tmp_path / "model.onnx").write_bytes(b"not onnx")
    require_survived(tmp_path / "model.onnx")
    assert not (tmp_path / "it_ran").exists()


def test_a_graph_that_kills_this_very_runtime_is_found(tmp_path):
    """microsoft/onnxruntime#28392"""
    path = tmp_path / "model.onnx"
    path.write_bytes(graph())
    alone = "import sys, onnxruntime\nonnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])"
    if subprocess.run([sys.executable, "-c", alone, path], capture_output=True).returncode >= 0:
        pytest.skip("this ONNX Runtime, on this processor, opens it")
    with pytest.raises(CheckFailed, match="opening it kills ONNX Runtime"):
        require_survived(path)
