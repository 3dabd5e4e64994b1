"""Which ONNX Runtime goes to a device, and the network that proves it there."""

from pathlib import Path

import numpy as np
import pytest

from profilers import DeviceUnavailable, UnknownDevice
from profilers._android import probe
from profilers._android import runtime as runtimes


def test_a_runtime_file_is_looked_at_before_it_is_used(tmp_path: Path) -> None:
    for name, content, says in [
        ("x.so", b"text", "not a 64-bit ARM library"),
        ("x.aar", b"text", "expected an onnxruntime-android AAR"),
        ("none.so", None, "no such file"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DeviceUnavailable, match=says):
            runtimes.obtain(str(tmp_path / name))
    with pytest.raises(UnknownDevice, match="expected onnxruntime, onnxruntime-glibc, or a path"):
        runtimes.obtain("tflite")


def test_the_known_answer_is_right() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    (y,) = onnxruntime.InferenceSession(probe.model(), providers=["CPUExecutionProvider"]).run(None, {"x": probe.INPUT})
    np.testing.assert_allclose(y.reshape(-1), probe.expected(), atol=probe.TOLERANCE)
    assert (probe.expected() > 0).all()  # a network of zeros would prove nothing
