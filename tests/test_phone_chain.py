"""The chain on the emulated phone: its ops are profiled, a network is measured whole, an exported file is run there."""

import random
from functools import partial
from pathlib import Path

import pytest

from dna_deploy.arch import sample
from dna_deploy.budget import Budget
from dna_deploy.data import Images, Preprocessing
from dna_deploy.exporters._exporter import Contract
from dna_deploy.exporters.onnx import load
from dna_deploy.found import pick
from dna_deploy.graph import onnx_of
from dna_deploy.measure import measure_whole
from dna_deploy.on_device import run_on_device
from dna_deploy.original import Original, inputs_of
from dna_deploy.predictor import LatencyPredictor
from dna_deploy.profile import profile
from dna_deploy.ratings import Rating
from dna_deploy.run import Picked, Run
from dna_deploy.sources import open_source
from dna_deploy.table import LatencyTable, VisitRow, appending
from dna_deploy.verify import LIMITS, Step
from profilers import Device, DeviceUnavailable, Model, Plan, Stop, android, by_key, find_device
from profilers._android import gate, runtime
from profilers._android.session import Session
from tests.phone import emulated

pytestmark = pytest.mark.phone


@pytest.fixture
def pixel(phone: emulated.EmulatedPhone, monkeypatch: pytest.MonkeyPatch) -> tuple[Device, android.AndroidProfiler]:
    """The phone as the user names it, and its profiler, which does not judge an emulator's times."""
    try:
        runtime.obtain("onnxruntime")
    except DeviceUnavailable as unavailable:
        pytest.skip(str(unavailable))
    profiler = android.AndroidProfiler(patience_s=30, limits=gate.Limits(drift=None, clock=0))
    monkeypatch.setattr(android, "PROFILER", profiler)
    monkeypatch.setenv("ANDROID_SERIAL", phone.serial)
    return find_device("pixel", cores=f"{1 << emulated.usable_cores()[0]:x}"), profiler


def steady(table: LatencyTable, path: Path) -> LatencyTable:
    """The table with its times made equal in ten rounds: no emulator's times are fit to predict by."""
    with appending(path, table.header) as out:
        out.add(table.sessions[0])
        for number in range(10):
            for key, visits in by_key(table.visits).items():
                out.add(VisitRow(key, number, [min(visits[0].ns)]))
    return LatencyTable.load(path)


def test_the_chain_on_a_phone(phone, pixel, tiny, workdir: Path) -> None:  # type: ignore[no-untyped-def]
    device, profiler = pixel
    opened: list[Session] = []
    connect = type(profiler).connect

    def counted(self, device):  # type: ignore[no-untyped-def]
        opened.append(connect(self, device))
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(profiler), "connect", counted)

        # what dna-profile does
        path = workdir / "latency_tables" / "pixel.jsonl"
        path.parent.mkdir()
        short = Plan(rounds=1, runs=1, visit_ms=0, max_runs=1)
        done = profile(device, tiny, path, validate=1, plan=short, stop=Stop(seconds=600))
        assert set(done.table.measurements) == {op.key for op in tiny.ops} | {
            visit.key for visit in done.table.visits if "): " in visit.key
        }
        assert done.table.header.environment["phone"] == "Pixel 6" and done.table.header.device["kind"] == "android"
        assert done.table.sessions[0].conditions["battery_percent"] == 87

        # what dna-search --measure-top does, after a training that found all candidates alike
        ratings = {
            block.name: [Rating(block.name, candidate.text, 1.0, 0.0) for candidate in block.candidates]
            for block in tiny.blocks
            if block.size > 1
        }
        pushes = int(str(phone.request("counts")["sync"]))
        known = LatencyPredictor(steady(done.table, workdir / "steady.jsonl"))
        patch.setattr("dna_deploy.found.measure_whole", partial(measure_whole, seconds=0.1))
        chosen = pick(Run(workdir / "run"), tiny, ratings, [Budget(known, 1e6)], measure_top=1)
        tried = chosen.picked.tried
        assert tried and all(ms is not None and ms > 0 for one in tried for ms in one.measured_ms)
        assert int(str(phone.request("counts")["sync"])) == pushes + len(tried)
        arch = chosen.architecture
        content = onnx_of(arch.ops)

        # what dna-export --device pixel does
        file = workdir / "model.onnx"
        file.write_bytes(content)
        picked = Picked("pixel", str(path), 500.0, 1.0, 0.0, 1, 1, "")
        calls = []
        for many in (2, 12):
            preprocessing = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
            test = inputs_of(Images(open_source("digits", None), range(many), 32), preprocessing, "images")
            contract = Contract(32, preprocessing.mean, preprocessing.std, tuple("0123456789"))
            original = Original("net", arch.module(), contract, test, test, workdir, picked, arch)
            step = Step("onnx", "fp32", load(file), file)
            here = step.run(test.at(range(many)))
            before = opened[0].link.calls
            with pytest.MonkeyPatch.context() as untimed:
                untimed.setattr("dna_deploy.on_device.measure_whole", lambda *_: None)
                link, latency = run_on_device("pixel", step, here, original, LIMITS["fp32"])
            calls.append(opened[0].link.calls - before)
            (found,) = link.comparisons
            assert link.ok and found.images == many and found.largest_difference <= 1e-5 and latency is None
        assert calls[0] == calls[1]
        assert link.step == "on pixel"
    assert len(opened) == 1  # one session from the first question to the last


@pytest.mark.usefixtures("pixel")
def test_without_the_phone_what_was_found_stands(tiny, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    path = workdir / "pixel.jsonl"
    header = (
        '{"target": "pixel", "about": "", "device": {"name": "pixel", "kind": "android", "address": "nobody"}, "environment": {}}'
    )
    path.write_text(header.replace("{}}", '{}, "source": null, "licence": null, "schema": "dna-deploy/latency-table/2"}') + "\n")
    arch = sample(tiny, random.Random(0))
    assert measure_whole(LatencyTable.load(path), [Model("found", onnx_of(arch.ops))], about_ms=1.0) is None
    assert "no phone 'nobody'" in capsys.readouterr().err
