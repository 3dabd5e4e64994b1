"""A user's own ONNX file: opened from anywhere, with the weights beside it, and what is none answered in one line."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dna_deploy.errors import RequestError
from dna_deploy.own_model import judge
from profilers import find_device


@pytest.fixture
def beside(workdir):
    """A convolution whose weights lie in a file beside it, in another folder than the one worked in."""
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    x, y = helper.make_tensor_value_info("x", 1, ["n", 3, 16, 16]), helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "g", [x], [y], [numpy_helper.from_array(weights, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (workdir / "models").mkdir()
    file = workdir / "models" / "m.onnx"
    onnx.save(model, file, save_as_external_data=True, size_threshold=0, location="m.weights")
    return file


def judged(file):
    return judge(file, 16, None, find_device("cpu"), seconds=0.2, confidence=0.9)


def test_weights_beside_the_file_are_found_from_any_folder(beside):
    found = judged(beside)
    assert found.measured.latency_ms > 0 and found.layers.others == ("1 Conv",)  # not padded: none of our ops


def test_what_is_no_model_is_answered_in_one_line(beside):
    folder = beside.parent
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "noise.onnx").write_bytes(b"\xffnope")
    (folder / "m.weights").rename(folder / "moved")
    for name, says in [
        ("absent.onnx", "no such file"),
        ("empty.onnx", "its inputs are none; expected one"),
        ("noise.onnx", "cannot be parsed"),
        (".", "cannot be parsed"),
        ("m.onnx", r"its weights cannot be read \(.*m\.weights"),
    ]:
        with pytest.raises(RequestError, match=says) as answer:
            judged(folder / name)
        assert "\n" not in str(answer.value) and str(folder / name) in str(answer.value)
