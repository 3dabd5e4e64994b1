"""The exported file on a device: the figures are those of its answers, and other answers are a failed check."""

import random

import numpy as np
import pytest

from dna_deploy.arch import sample
from dna_deploy.data import Images, Preprocessing
from dna_deploy.errors import RequestError
from dna_deploy.exporters._exporter import Contract
from dna_deploy.exporters.onnx import load
from dna_deploy.graph import onnx_of
from dna_deploy.on_device import require_device, run_on_device
from dna_deploy.original import Original, inputs_of
from dna_deploy.sources import open_source
from dna_deploy.verify import LIMITS, Step, Verification, failures
from profilers import UnknownDevice

HALF = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def run(tiny, workdir, monkeypatch):
    """A function that runs a network on this machine's profiler; `change` alters what is computed here."""
    monkeypatch.setattr("dna_deploy.table.SHIPPED", workdir)  # a checkout may hold a table of this machine
    arch = sample(tiny, random.Random(0))
    path = workdir / "model.onnx"
    path.write_bytes(onnx_of(arch.ops))
    test = inputs_of(Images(open_source("digits", None), range(40), 32), HALF, "40 images")
    contract = Contract(32, HALF.mean, HALF.std, tuple("0123456789"))
    original = Original("net", arch.module(), contract, test, test, workdir, None, arch)

    def start(change=lambda logits: logits, fp32=None):
        file = Step("onnx", "fp32", load(path), path)
        return run_on_device("cpu", file, change(file.run(test.at(range(40)))), original, LIMITS["fp32"], fp32 and path)

    return start


def test_the_same_file_computes_the_same(run):
    link, latency = run()
    (found,) = link.comparisons
    assert link.ok and found.images == 40 and found.batch == 1 and found.top1_agreement == 1.0
    assert found.accuracy_before == found.accuracy_after
    assert latency.device == "cpu" and "onnxruntime" in latency.environment["runtime"]
    assert latency.measured_ms > 0 and latency.predicted_ms is None and latency.speed is None  # no table of it here
    assert latency.fp32_ms is None and run(fp32=True)[1].fp32_ms > 0


def test_other_answers_are_a_failed_check(run):
    link, _ = run(lambda logits: logits + np.eye(10, dtype=np.float32)[3] * 100)  # class 3 wins everywhere here
    (found,) = link.comparisons
    assert not link.ok and 0 < found.accuracy_before < 0.2  # the share of images that are a 3
    assert found.largest_difference * found.spread == pytest.approx(100, rel=0.01)
    verification = Verification("model.onnx", "", "40 images", [], None)
    assert verification.nothing_failed
    assert not Verification("model.onnx", "", "40 images", [], None, on_device=link).nothing_failed
    assert len(failures(link)) == 1 and "top-1 agreement" in failures(link)[0]


def test_what_cannot_be_run_there_is_refused_before_anything_is_exported():
    require_device("cpu", ".onnx")
    with pytest.raises(RequestError, match=r"--device pixel: \.engine files cannot be run there"):
        require_device("pixel", ".engine")
    with pytest.raises(UnknownDevice, match="'pixel1' is no device we can measure"):
        require_device("pixel1", ".onnx")
