"""The exported file on a device: the figures are those of its answers, and other answers are a failed check."""

import dataclasses
import random

import numpy as np
import pytest

from dna_deploy.arch import sample
from dna_deploy.data import Images, Preprocessing, open_source
from dna_deploy.errors import RequestError
from dna_deploy.exporters.onnx import load
from dna_deploy.graph import onnx_of
from dna_deploy.on_device import require_device, run_on_device
from dna_deploy.run import Picked
from dna_deploy.verify import Limits, Verification, failures
from profilers import UnknownDevice

PICKED = Picked("nowhere", "none.jsonl", 5.0, 1.0, 0.0, 1, 1, "")


@pytest.fixture
def run(tiny, workdir):
    """A function that runs a network on this machine's profiler; `change` alters what is computed here."""
    arch = sample(tiny, random.Random(0))
    path = workdir / "model.onnx"
    path.write_bytes(onnx_of(arch.ops))
    images = Images(open_source("digits", None), range(40), 32)

    def start(change=lambda logits: logits):
        here = load(path)
        preprocessing = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
        return run_on_device("cpu", path, lambda x: change(here(x)), arch, PICKED, images, preprocessing, Limits())

    return start


def test_the_same_file_computes_the_same(run):
    found = run()
    assert found.comparison.ok and found.comparison.images == 40 and found.comparison.top1_agreement == 1.0
    assert found.comparison.accuracy_before == found.comparison.accuracy_after
    assert found.device == "cpu" and "onnxruntime" in found.environment["runtime"]
    assert found.measured_ms > 0 and found.predicted_ms is None and found.speed is None  # no table of it here


def test_other_answers_are_a_failed_check(run):
    there = run(lambda logits: logits + np.eye(10, dtype=np.float32)[3] * 100)  # class 3 wins everywhere here
    share = there.comparison.accuracy_before  # of images that are a 3
    assert not there.comparison.ok and 0 < share < 0.2
    assert there.comparison.largest_difference == pytest.approx(100, rel=0.01)
    verification = Verification("model.onnx", "", Limits(), [], 1.0, None, None, None, None, "cpu")
    assert verification.ok and failures(verification) == []
    failed = dataclasses.replace(verification, on_device=there)
    (line,) = failures(failed)
    assert not failed.ok and line.startswith("on cpu, against the same file run here: top-1 agreement ")


def test_what_cannot_be_run_there_is_refused_before_anything_is_exported():
    require_device("cpu", ".onnx")
    with pytest.raises(RequestError, match=r"--device pixel: \.engine files cannot be run there"):
        require_device("pixel", ".engine")
    with pytest.raises(UnknownDevice, match="'pixel1' is no device we can measure"):
        require_device("pixel1", ".onnx")
