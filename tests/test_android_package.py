"""Packing a plan into one file, and raw tensors for and from the runner."""

import tarfile
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from profilers import Model, ModelRejected, Plan
from profilers._android.package import pack
from profilers._android.tensors import split_outputs
from tests.phone import models


def test_weights_are_shared_and_keep_their_size(tmp_path: Path) -> None:
    ops = [models.conv(channels, 7, 3) for channels in (32, 48, 64)] + [models.quantized(32)]
    own = sum(len(model.onnx) for model in ops)
    pack(tmp_path / "jobs.tar", ops, Plan(rounds=2), batch=2)
    with tarfile.open(tmp_path / "jobs.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "models").iterdir()}
    assert sum(size for name, size in sizes.items() if name.endswith(".onnx")) < own / 20
    for place, model in enumerate(ops):
        before, after = onnx.load_model_from_string(model.onnx), onnx.load(tmp_path / "models" / f"{place}.onnx")
        assert after.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
        for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True):
            x, y = numpy_helper.to_array(old), numpy_helper.to_array(new)
            assert x.shape == y.shape and x.dtype == y.dtype
            if x.ndim < 2 or x.nbytes < 1024:
                np.testing.assert_array_equal(x, y)  # scales, biases and shapes steer the computation
            elif x.dtype == np.float32:
                assert 0.8 < y.std() / x.std() < 1.25


def test_whole_networks_keep_their_weights(tmp_path: Path) -> None:
    big = onnx.load_model_from_string(models.conv(32).onnx)
    relu = big.graph.node[1]
    for number in range(70):
        relu.output[0] = f"t{number}"
        relu = big.graph.node.add()
        relu.CopyFrom(onnx.helper.make_node("Relu", [f"t{number}"], ["y"]))
    pack(tmp_path / "jobs.tar", [Model("net", big.SerializeToString())], Plan(rounds=1), batch=1)
    with tarfile.open(tmp_path / "jobs.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    kept = numpy_helper.to_array(onnx.load(tmp_path / "models" / "0.onnx").graph.initializer[0])
    np.testing.assert_array_equal(kept, numpy_helper.to_array(big.graph.initializer[0]))


def test_equal_plans_make_equal_archives(tmp_path: Path) -> None:
    ops = [models.conv(8), models.conv(16)]
    for name in ("a", "b"):
        pack(tmp_path / name, ops, Plan(rounds=3), batch=1)
        time.sleep(0.01)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(ModelRejected, match="same key"):
        pack(tmp_path / "c", [ops[0], ops[0]], Plan(), batch=1)
    with pytest.raises(ModelRejected, match="bad: not an ONNX model"):
        pack(tmp_path / "c", [Model("bad", b"\xff\xff\xff")], Plan(), batch=1)


def test_outputs_are_split_batch_by_batch() -> None:
    data = np.arange(6, dtype="<f4").tobytes() + np.array([7], "<i8").tobytes()
    data += np.arange(6, 12, dtype="<f4").tobytes() + np.array([8], "<i8").tobytes()
    first, second = split_outputs(data, {"batches": 2, "outputs": [{"type": 1, "shape": [2, 3]}, {"type": 7, "shape": [1]}]})
    np.testing.assert_array_equal(first, np.arange(12, dtype=np.float32).reshape(4, 3))
    np.testing.assert_array_equal(second, [7, 8])
