"""A user's own ONNX file: opened from anywhere, with the weights beside it, and what is none answered in one line."""

import random

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dna_deploy.arch import sample
from dna_deploy.errors import RequestError
from dna_deploy.graph import onnx_of
from dna_deploy.own_model import judge
from dna_deploy.table import Header, Published, appending, create
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


def test_networks_that_are_much_larger_do_not_correct_it(tiny, workdir):
    """They take 0.3 ms less than their ops alone, of which the smallest takes 0.1 ms."""
    op_ms = {op.key: 0.1 * number for number, op in enumerate(tiny.ops, 1)}
    networks = {arch.key: arch for arch in (sample(tiny, random.Random(seed)) for seed in range(40))}
    create(workdir / "board.jsonl", Header("board", "", {"name": "board"}, {}))
    with appending(workdir / "board.jsonl") as out:
        for key, ms in op_ms.items():
            out.add(Published(key, ms, 0.001, 1))
        for key, arch in networks.items():
            out.add(Published(key, sum(op_ms[op.key] for op in arch.ops) - 0.3, 0.001, 1))
    arch = next(iter(networks.values()))
    for ops, expected_ms, count in (
        (arch.ops, sum(op_ms[op.key] for op in arch.ops) - 0.3, len(networks)),
        (tiny.ops[:1], 0.1, 0),
    ):
        (workdir / "m.onnx").write_bytes(onnx_of(ops))
        found = judge(workdir / "m.onnx", 32, workdir / "board.jsonl", None, 1, 0.9)
        assert found.predicted.ms == pytest.approx(expected_ms) and found.networks == count
        assert found.predicted.low_ms <= found.predicted.ms <= found.predicted.high_ms and found.measured is None


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
