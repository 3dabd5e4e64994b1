"""Which ONNX Runtime goes to a device, and the network that proves it there."""

import dataclasses
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from profilers import Device, DeviceUnavailable, UnknownDevice
from profilers._android import probe
from profilers._android import runtime as runtimes
from profilers._android.session import Session, Settings
from tests.phone.local import LocalLink


def library(*alignments: int) -> bytes:
    """The head of an arm64 library: a segment that is no code, and a loaded one of each alignment."""
    kinds = [(4, 8), *((1, alignment) for alignment in alignments)]
    segments = b"".join(struct.pack("<IIQQQQQQ", kind, 5, 0, 0, 0, 100, 100, align) for kind, align in kinds)
    place = struct.pack("<HHIQQQIHHHHHH", 3, runtimes.ELF_ARM64, 1, 0, 64, 0, 0, 64, 56, len(kinds), 64, 0, 0)
    return b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + place + segments


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


def test_a_library_of_the_users_own_is_taken_out_of_its_aar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes.build, "CACHE", tmp_path / "cache")
    with zipfile.ZipFile(tmp_path / "mine.aar", "w") as archive:
        archive.writestr("jni/arm64-v8a/libonnxruntime.so", library(16384))
    try:
        found = runtimes.obtain(str(tmp_path / "mine.aar"))
    except DeviceUnavailable as unavailable:
        pytest.skip(str(unavailable))
    assert found.files["libonnxruntime.so"].read_bytes() == library(16384) and "given as mine.aar" in found.label
    assert found.runner("/there") == ["/there/dnarun"]


def test_a_library_for_small_pages_is_refused_where_pages_are_large(tmp_path: Path) -> None:
    (tmp_path / "old.so").write_bytes(library(65536, 4096))
    assert runtimes.page_alignment(tmp_path / "old.so") == 4096
    session = Session(LocalLink(tmp_path), Device("here", "test"), Settings(str(tmp_path / "base")))
    session.facts = dataclasses.replace(session.facts, page_bytes=16384)
    with pytest.raises(DeviceUnavailable, match=r"local has pages of 16 KiB .* use onnxruntime 1\.20 or later"):
        session.install(runtimes.Runtime("old", {"libonnxruntime.so": tmp_path / "old.so"}))
    assert not (tmp_path / "base").exists()  # before anything is copied


def test_the_known_answer_is_right() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    (y,) = onnxruntime.InferenceSession(probe.model(), providers=["CPUExecutionProvider"]).run(None, {"x": probe.INPUT})
    np.testing.assert_allclose(y.reshape(-1), probe.expected(), atol=probe.TOLERANCE)
    assert (probe.expected() > 0).all()  # a network of zeros would prove nothing
