"""The phone path from end to end: real adb, our daemon, an arm64 userland, the bytes a Pixel gets. No time is asserted."""

import contextlib
import copy
import dataclasses
import json
import os
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from profilers import Device, DeviceUnavailable, Model, Plan, find_device
from profilers._android import adb, probe, runtime
from profilers._android.gate import Limits
from profilers._android.session import Session, Settings
from profilers.android import BASE, AndroidProfiler
from tests.phone import emulated, models

pytestmark = pytest.mark.phone

LIMITS = Limits(drift=None, clock=0, cool_s=20)  # an emulator's times mean nothing
PLAN = Plan(rounds=2, runs=2, visit_ms=0, max_runs=2, anchor_every=4)
LONG = dataclasses.replace(PLAN, rounds=5, runs=10, max_runs=10)


@pytest.fixture(scope="module")
def device(phone: emulated.EmulatedPhone) -> Device:
    mine = sum(1 << core for core in emulated.usable_cores())
    return find_device("pixel", address=phone.serial, cores=f"{mine:x}")


@pytest.fixture(scope="module")
def android() -> runtime.Runtime:
    try:
        return runtime.obtain("onnxruntime")
    except DeviceUnavailable as unavailable:
        pytest.skip(str(unavailable))


@pytest.fixture(scope="module")
def session(device: Device, android: runtime.Runtime) -> Session:
    opened = Session(adb.connect(device.address), device, Settings(BASE, LIMITS, stay_on=True, longest_poll_s=1))
    opened.install(android)
    return opened


def opened(session: Session, **device: object) -> Session:
    """Another session, on the runtime that is there."""
    other = copy.copy(session)
    other.device = dataclasses.replace(session.device, **device)  # type: ignore[arg-type]
    return other


def ops() -> list[Model]:
    return [models.conv(channels, 7, kernel) for channels in (8, 16, 24) for kernel in (1, 3, 5)]


FEW = ops()[:5]


def check(visits: list, plan: Plan = PLAN, made: list[Model] | None = None) -> None:
    """Every visit of the plan, exactly once, in its order."""
    keys = [model.key for model in made or ops()]
    expected = [(key, number) for number in range(plan.rounds) for key in plan.order(keys, number)]
    assert [(visit.key, visit.round) for visit in visits] == expected
    assert all(len(visit.ns) == plan.runs and min(visit.ns) > 0 for visit in visits)


def results(phone: emulated.EmulatedPhone) -> list[dict]:
    """What the runner on the phone has written so far."""
    (path,) = (phone.root / BASE.lstrip("/")).glob("job-*/results.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


# ---- the way it is used ----


def test_a_phone_is_measured(phone: emulated.EmulatedPhone, device: Device, session: Session) -> None:
    profiler = AndroidProfiler(patience_s=30, limits=LIMITS)
    environment = profiler.environment(device)
    assert environment["phone"] == "Pixel 6" and environment["processor"] == "Google Tensor"
    assert environment["build"] == emulated.PROPERTIES["ro.build.fingerprint"]
    assert environment["clusters"] == "f (4 x 1.80 GHz), 30 (2 x 2.25 GHz), c0 (2 x 2.80 GHz)"
    assert environment["runtime"] in ("onnxruntime 1.29.0", "onnxruntime 1.32.0") and environment["provider"] == "cpu"
    assert all(isinstance(value, str | int | float | None) for value in environment.values())
    conditions = profiler.conditions(device)
    assert conditions["battery_percent"] == 87 and conditions["skin_c"] == 31.2 and conditions["screen_on"] == 1
    assert profiler.environment(device) == environment  # what changes from day to day is no part of it
    check(list(profiler.visits(device, ops(), PLAN)))
    left = {path.name for path in (phone.root / BASE.lstrip("/")).iterdir()}
    assert left == {"lock", session.folder.rpartition("/")[2]}


def test_one_push_one_runner_and_no_call_for_an_op(phone: emulated.EmulatedPhone, session: Session) -> None:
    pushes, calls = [], []
    for many in (2, 9):
        before, called = phone.request("counts")["sync"], session.link.calls
        visits = session.visits(ops()[:many], PLAN)
        seen = [next(visits)]
        assert [row["start"] for row in results(phone) if "start" in row] == [0]
        seen += list(visits)
        check(seen, made=ops()[:many])
        pushes.append(int(str(phone.request("counts")["sync"])) - int(str(before)))
        calls.append(session.link.calls - called)
    assert pushes == [1, 1]
    assert calls[1] <= calls[0] + 8  # nine ops take longer under the emulator: it is asked a few times more


@pytest.mark.parametrize("provider", ["cpu", "xnnpack"])
def test_the_phone_computes_what_the_host_computes(session: Session, android: runtime.Runtime, provider: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if provider == "xnnpack":
        if android.loader:
            pytest.skip("the Linux library has no XNNPACK; ONNX Runtime for Android could not be had")
        session = opened(session, provider=provider)
        session.install(android)
    x = np.random.default_rng(0).standard_normal((4, 8, 7, 7), dtype=np.float32)
    for model, worst in ((models.conv(8, batch=2), 1e-6), (models.quantized(), 0.051)):  # int8: one step of its scale
        (y,) = session.run(model, {"x": x})
        free = models.conv(8) if model.key.startswith("conv") else model
        (expected,) = onnxruntime.InferenceSession(free.onnx, providers=["CPUExecutionProvider"]).run(None, {"x": x})
        np.testing.assert_allclose(y, expected, atol=worst, rtol=0)
        agree = (np.asarray(y).reshape(4, -1).argmax(1) == expected.reshape(4, -1).argmax(1)).mean()
        assert agree >= 0.75


def test_nnapi_that_runs_nothing_is_refused(session: Session, android: runtime.Runtime) -> None:
    if android.loader:
        pytest.skip("the Linux library has no NNAPI; ONNX Runtime for Android could not be had")
    with pytest.raises(DeviceUnavailable, match=r"provider nnapi does not answer there.*; use --provider cpu or xnnpack"):
        opened(session, provider="nnapi").install(android)


def place_runtime(phone: emulated.EmulatedPhone, session: Session) -> None:
    """Put there what another session would have put: the emulator takes 10 s for the hash of 32 MB."""
    assert session.runtime is not None
    folder = phone.root / session.folder.lstrip("/")
    session.runtime.pack(folder.with_suffix(".tar"), {"probe.onnx": probe.model(), "probe.bin": probe.INPUT.tobytes()})
    with tarfile.open(folder.with_suffix(".tar")) as archive:
        archive.extractall(folder, filter="data")
    folder.with_suffix(".tar").unlink()
    for program in ("dnarun", *([session.runtime.loader] if session.runtime.loader else [])):
        (folder / program).chmod(0o755)


def test_the_library_for_linux_is_a_way_out(phone: emulated.EmulatedPhone, device: Device) -> None:
    try:
        bundle = runtime.glibc_bundle()
    except DeviceUnavailable as unavailable:
        pytest.skip(str(unavailable))
    session = Session(adb.connect(device.address), device, Settings(BASE, LIMITS))
    session.runtime = bundle
    place_runtime(phone, session)
    session.install(bundle)  # computes the known network
    assert session.version == runtime.PYPI_VERSION
    check(list(session.visits(ops()[:2], PLAN)), made=ops()[:2])


def test_settings_of_the_user_come_back(phone: emulated.EmulatedPhone, session: Session) -> None:
    setting = phone.state / "settings_global_stay_on_while_plugged_in"
    setting.write_text("2\n")
    session = opened(session)
    session.settings = dataclasses.replace(session.settings, fixed_clocks=True)
    visits = session.visits(ops()[:2], PLAN)
    seen = [next(visits)]
    assert (phone.state / "fixed_performance").exists()
    seen += list(visits)
    check(seen, made=ops()[:2])
    assert not (phone.root / BASE.lstrip("/") / "saved").exists()
    assert setting.read_text() == "2\n" and (phone.state / "fixed_performance").read_text() == "false\n"


# ---- what goes wrong ----


def test_a_link_cut_in_the_middle_of_a_push(phone: emulated.EmulatedPhone, session: Session) -> None:
    phone.request("drop_after", bytes=60_000)  # of some 300,000
    check(list(session.visits(ops(), PLAN)))


def test_a_link_dropped_twice_in_a_run(phone: emulated.EmulatedPhone, session: Session) -> None:
    seen = []
    for visit in session.visits(FEW, LONG):
        seen.append(visit)
        if len(seen) in (1, 30):
            phone.request("refuse", seconds=2)
            phone.request("drop")
    check(seen, LONG, FEW)


def test_a_lost_answer_to_the_start_makes_no_second_runner(phone: emulated.EmulatedPhone, session: Session) -> None:
    phone.request("lose_answer", to="run.sh measure")
    visits = session.visits(FEW, LONG)
    seen = [next(visits)]
    assert [row["start"] for row in results(phone) if "start" in row] == [0]
    seen += list(visits)
    check(seen, LONG, FEW)


@pytest.mark.parametrize("fault", ["killed in the middle of a line", "reboot"])
def test_a_runner_that_ends_too_early_goes_on(phone: emulated.EmulatedPhone, session: Session, fault: str) -> None:
    seen = []
    for visit in session.visits(FEW, LONG):
        seen.append(visit)
        if len(seen) == 1 and fault == "reboot":
            phone.request("reboot")
        elif len(seen) == 1:
            phone.request("kill", name="dnarun")
            time.sleep(0.3)
            (path,) = (phone.root / BASE.lstrip("/")).glob("job-*/results.jsonl")
            with path.open("a") as file:
                file.write('{"visit":7,"key":"conv c8')
    check(seen, LONG, FEW)


def test_a_full_phone_is_said_at_once(phone: emulated.EmulatedPhone, session: Session) -> None:
    phone.request("full", on=True)
    try:
        with pytest.raises(DeviceUnavailable, match=r"No space left on device.*make room"):
            list(session.visits(FEW, PLAN))
    finally:
        phone.request("full", on=False)
    check(list(session.visits(ops()[:2], PLAN)), made=ops()[:2])


def test_a_phone_that_gets_hot_is_let_cool(
    phone: emulated.EmulatedPhone, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    def heat_as_soon_as_it_runs() -> None:
        while not list((phone.root / BASE.lstrip("/")).glob("job-*/results.jsonl")) or len(results(phone)) < 2:
            time.sleep(0.02)
        phone.heat(3, skin=44.0)
        end = time.monotonic() + 60
        while "thermal status 3" not in caplog.text and time.monotonic() < end:
            time.sleep(0.1)
        phone.heat(0)

    heated = threading.Thread(target=heat_as_soon_as_it_runs)
    heated.start()
    try:
        check(list(session.visits(FEW, LONG)), LONG, FEW)
    finally:
        heated.join()
    assert "thermal status 3" in caplog.text


def test_another_run_on_the_phone_is_not_disturbed_and_ends_when_it_is_closed(session: Session) -> None:
    visits = session.visits(FEW, dataclasses.replace(LONG, rounds=200))
    seen = [next(visits)]
    with pytest.raises(
        DeviceUnavailable, match=r"another measurement is running .*; wait for its end, or end it: \S*adb -s .* --stop'$"
    ):
        list(opened(session).visits(ops()[:1], PLAN))
    seen += [next(visits) for _ in range(40)]
    keys = [model.key for model in FEW]
    assert [(v.key, v.round) for v in seen] == [(k, r) for r in range(200) for k in LONG.order(keys, r)][:41]
    assert session.link.ask(session.holder, check=False).strip()
    visits.close()
    assert not session.link.ask(session.holder, check=False).strip()


def test_cores_the_phone_does_not_give_are_refused(device: Device, android: runtime.Runtime) -> None:
    if len(os.sched_getaffinity(0)) >= 8:
        pytest.skip("this machine has all the cores of the emulated phone")
    session = Session(adb.connect(device.address), dataclasses.replace(device, cores="ff"), Settings(BASE, LIMITS))
    with pytest.raises(DeviceUnavailable, match="the cores asked for are not given to us"):
        session.install(android)


def test_of_two_phones_one_must_be_chosen(phone: emulated.EmulatedPhone, session: Session, tmp_path: Path) -> None:
    with emulated.bystander(tmp_path) as second:
        with contextlib.suppress(DeviceUnavailable):
            adb.connect(second.serial, patience_s=1)
        with pytest.raises(DeviceUnavailable, match=r"2 phones: .*choose one with --address SERIAL"):
            adb.connect(None, patience_s=1)
        assert adb.connect("Pixel 6").serial == phone.serial
        assert adb.connect(second.serial).serial == second.serial


@pytest.mark.usefixtures("phone")  # adb's server
def test_an_unknown_host_waits_for_the_users_consent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with emulated.phone(tmp_path, keys=tmp_path / "keys") as locked:
        with pytest.raises(DeviceUnavailable, match=r"unauthorized: tap Allow|no answer|no phone|not attached"):
            adb.connect(locked.serial, patience_s=2)
        threading.Timer(2, locked.request, args=("allow",)).start()
        link = adb.connect(locked.serial, patience_s=60)
        assert link.ask("getprop ro.product.model").strip() == "Pixel 6"
        assert "tap Allow" in caplog.text
