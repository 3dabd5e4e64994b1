"""A whole session by sh: this machine as the device, with pip's own ONNX Runtime and no emulator."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from profilers import Device, DeviceUnavailable, Model, ModelRejected, Plan, UnknownDevice
from profilers._android import probe
from profilers._android.gate import Limits
from profilers._android.session import Session, Settings
from tests.phone import models
from tests.phone.local import LocalLink, runtime
from tests.phone.texts import COOL, HOT

ONE = f"{1 << min(os.sched_getaffinity(0)):x}" if hasattr(os, "sched_getaffinity") else None
CALM = Limits(drift=None, clock=0)  # times of a busy machine spoil nothing


def ops() -> list[Model]:
    return [models.conv(channels, 7, kernel) for channels in (4, 8, 12, 16, 20) for kernel in (1, 3, 5)]


def expected(plan: Plan, made: list[Model]) -> list[tuple[str, int]]:
    keys = [model.key for model in made]
    return [(key, number) for number in range(plan.rounds) for key in plan.order(keys, number)]


@pytest.fixture
def open_session(tmp_path: Path) -> Iterator[Callable[..., Session]]:
    """A function that opens a session on this machine, after `dumpsys` and others were given their answers."""
    try:
        installed = runtime()
    except DeviceUnavailable as unavailable:
        pytest.skip(str(unavailable))

    def start(
        limits: Limits = CALM, faults: float = 0.0, stay_on: bool = False, fixed_clocks: bool = False, **device: object
    ) -> Session:
        link = LocalLink(tmp_path, faults)
        if not (tmp_path / "bin" / "dumpsys").exists():
            link.says("dumpsys", COOL)
        settings = Settings(str(tmp_path / "base"), limits, stay_on, fixed_clocks, longest_poll_s=1)
        session = Session(link, Device("here", "test", **device), settings)  # type: ignore[arg-type]
        session.install(installed)
        return session

    yield start
    assert list((tmp_path / "base").glob("job-*")) == [] == list((tmp_path / "base").glob("out-*"))  # nothing is left behind


def test_a_session_brings_every_visit_in_order(open_session: Callable[..., Session]) -> None:
    session = open_session()
    plan = Plan(rounds=4, runs=2, visit_ms=0, max_runs=2)
    visits = list(session.visits(ops(), plan))
    assert [(visit.key, visit.round) for visit in visits] == expected(plan, ops())
    assert all(len(visit.ns) == 2 for visit in visits)
    assert session.version


def test_the_number_of_calls_does_not_grow_with_the_ops(open_session: Callable[..., Session]) -> None:
    session = open_session()
    calls = []
    for many in (2, 15):
        before = session.link.calls
        list(session.visits(ops()[:many], Plan(rounds=2, runs=1, visit_ms=0)))
        calls.append(session.link.calls - before)
    assert calls[1] <= calls[0] + 3 and calls[0] < 14  # a slow machine may be asked once or twice more


@pytest.mark.parametrize("seed", range(3))
def test_lost_commands_and_answers_lose_nothing(open_session: Callable[..., Session], seed: int) -> None:
    session = open_session()
    plan = Plan(rounds=6, runs=20, visit_ms=0)
    link = session.link
    assert isinstance(link, LocalLink)
    link.rng.seed(seed)
    link.faults = 0.4
    visits = list(session.visits(ops(), plan))
    link.faults = 0.0
    assert [(visit.key, visit.round) for visit in visits] == expected(plan, ops())
    assert link.lost > 0


def runner_pid(session: Session) -> int | None:
    answer = session.link.ask(session.holder, check=False).split()
    return int(answer[0]) if answer else None


def test_a_killed_runner_goes_on(open_session: Callable[..., Session]) -> None:
    session = open_session()
    plan = Plan(rounds=30, runs=2000, visit_ms=0, max_runs=2000)
    visits, killed = [], 0
    for visit in session.visits(ops()[:3], plan):
        visits.append((visit.key, visit.round))
        pid = runner_pid(session) if len(visits) == 1 or (len(visits) >= 30 and killed < 2) else None
        if pid:
            with suppress(ProcessLookupError):  # it may have ended by itself since it was asked
                os.kill(pid, signal.SIGKILL)
                killed += 1
    assert killed and visits == expected(plan, ops()[:3])


def test_a_hot_phone_is_waited_for(open_session: Callable[..., Session], tmp_path: Path) -> None:
    link = LocalLink(tmp_path)
    link.says("dumpsys", COOL)
    session = open_session(Limits(drift=None, clock=0, cool_s=20))
    plan = Plan(rounds=6, runs=1000, visit_ms=0, max_runs=1000)
    visits = session.visits(ops()[:6], plan)
    seen = [next(visits)]
    (tmp_path / "dumpsys.txt").write_text(HOT)
    cooled = threading.Timer(1.5, lambda: (tmp_path / "dumpsys.txt").write_text(COOL))
    cooled.start()
    seen += list(visits)
    cooled.join()
    assert [(visit.key, visit.round) for visit in seen] == expected(plan, ops()[:6])


def test_a_phone_that_stays_hot_is_given_up(open_session: Callable[..., Session], tmp_path: Path) -> None:
    LocalLink(tmp_path).says("dumpsys", HOT)
    session = open_session(Limits(cool_s=0.2))
    with pytest.raises(DeviceUnavailable, match="still too warm"):
        list(session.visits(ops()[:2], Plan(rounds=2, runs=1)))


def test_closing_the_iterator_stops_the_device(open_session: Callable[..., Session]) -> None:
    session = open_session()
    visits = session.visits(ops()[:3], Plan(rounds=200, runs=4000, visit_ms=0))
    next(visits)
    visits.close()
    assert runner_pid(session) is None


def test_another_run_on_the_device_is_not_disturbed(open_session: Callable[..., Session]) -> None:
    first, second = open_session(), open_session()
    plan = Plan(rounds=60, runs=4000, visit_ms=0, max_runs=4000)
    visits = first.visits(ops()[:3], plan)
    seen = [next(visits)]
    with pytest.raises(DeviceUnavailable, match=r"another measurement is running .* --stop"):
        list(second.visits(ops()[:1], Plan(rounds=1, runs=1)))
    seen += [next(visits) for _ in range(20)]
    visits.close()
    assert [(visit.key, visit.round) for visit in seen] == expected(plan, ops()[:3])[:21]


def test_a_model_the_runtime_refuses_is_named(open_session: Callable[..., Session]) -> None:
    with pytest.raises(ModelRejected, match=r"^refused: local: .*NoSuchOperator"):
        list(open_session().visits([models.conv(4), models.refused()], Plan(rounds=1, runs=1)))


def test_cores_not_given_are_refused(open_session: Callable[..., Session], tmp_path: Path) -> None:
    with pytest.raises(DeviceUnavailable, match="no such cores; expected a hexadecimal mask"):
        open_session(cores="8000000000000000")


def test_more_threads_than_cores_are_refused(open_session: Callable[..., Session]) -> None:
    with pytest.raises(UnknownDevice, match=r"device here: 2 threads on 1 core \(\w+\) .* as many --cores, a mask"):
        open_session(cores=ONE, threads=2)
    assert open_session(threads=2).mask is None  # the system chooses


def test_pinned_sessions_work(open_session: Callable[..., Session]) -> None:
    plan = Plan(rounds=1, runs=1, visit_ms=0)
    assert len(list(open_session(cores=ONE).visits(ops()[:2], plan))) == 2


def test_a_phone_without_fixed_performance_is_refused(open_session: Callable[..., Session], tmp_path: Path) -> None:
    LocalLink(tmp_path).says("cmd", "")
    open_session(fixed_clocks=True)
    switch = "cmd power set-fixed-performance-mode-enabled"
    tried = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("cmd")]
    assert tried == [f"{switch} true", f"{switch} false"]
    (tmp_path / "bin" / "cmd").write_text("#!/bin/sh\necho Failed to set FIXED_PERFORMANCE mode >&2\nexit 255\n")
    with pytest.raises(DeviceUnavailable, match=r"refuses .* \(Failed to set FIXED_PERFORMANCE mode \(exit 255\)\); leave out"):
        open_session(fixed_clocks=True)


def test_what_was_changed_is_put_back(open_session: Callable[..., Session], tmp_path: Path) -> None:
    LocalLink(tmp_path).says("settings", "3\n")  # what the user had
    session = open_session(stay_on=True)
    list(session.visits(ops()[:2], Plan(rounds=2, runs=1, visit_ms=0)))
    changes = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("settings put")]
    name = "settings put global stay_on_while_plugged_in"
    assert changes == [f"{name} 7", f"{name} 3"]
    assert not (tmp_path / "base" / "saved").exists()


def test_slow_settings_are_put_back_before_they_are_changed_again(
    open_session: Callable[..., Session], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    LocalLink(tmp_path).says("settings", "3\n")
    slow = tmp_path / "bin" / "settings"
    kept, changes = tmp_path / "settings.txt", tmp_path / "changes"
    slow.write_text(f"#!/bin/sh\nsleep .5\n[ $1 = get ] && exec cat {kept}\necho $4 | tee -a {changes} >{kept}\n")
    session = open_session(Limits(drift=None, clock=0, cool_s=20), stay_on=True)
    session.settings = replace(session.settings, longest_poll_s=0.1)  # asked often, it is hot before all is done
    visits = session.visits(ops()[:3], Plan(rounds=20, runs=2000, visit_ms=0, max_runs=2000))
    next(visits)
    (tmp_path / "dumpsys.txt").write_text(HOT)  # the runner is stopped, and started again as soon as it is cool

    def cool_as_soon_as_it_is_waited_for() -> None:
        end = time.monotonic() + 60
        while "cooling down" not in caplog.text and time.monotonic() < end:
            time.sleep(0.02)
        (tmp_path / "dumpsys.txt").write_text(COOL)

    cooled = threading.Thread(target=cool_as_soon_as_it_is_waited_for)
    cooled.start()
    list(visits)
    cooled.join()
    list(session.visits(ops()[:1], Plan(rounds=1, runs=1, visit_ms=0)))
    assert changes.read_text().split() == ["7", "3"] * 3
    assert not (tmp_path / "base" / "saved").exists()


def test_a_run_that_goes_on_after_a_reboot_has_its_clocks_again(open_session: Callable[..., Session], tmp_path: Path) -> None:
    link = LocalLink(tmp_path)
    link.says("settings", "3\n")
    link.says("cmd", "")
    base = Path(open_session().settings.base)
    (base / "saved").write_text("stay_on 3\nfixed true\n")  # the first part of the run was cut off
    link.ask(f"sh {runtime().files['run.sh']} measure {base} {base} 1 1 true")
    changes = [line for line in (tmp_path / "log").read_text().splitlines() if "get" not in line and "dumpsys" not in line]
    fixed, stay = "cmd power set-fixed-performance-mode-enabled", "settings put global stay_on_while_plugged_in"
    assert changes == [f"{stay} 7", f"{fixed} true", f"{stay} 3", f"{fixed} false"]  # changed again; put back as before all of it
    (base / "exit").unlink()


def test_what_a_reboot_left_changed_is_put_back_by_the_next_session(open_session: Callable[..., Session], tmp_path: Path) -> None:
    LocalLink(tmp_path).says("settings", "3\n")
    open_session()
    (tmp_path / "base" / "saved").write_text("stay_on 5\n")
    open_session()
    assert "settings put global stay_on_while_plugged_in 5" in (tmp_path / "log").read_text()
    assert not (tmp_path / "base" / "saved").exists()


def test_a_wrong_answer_of_the_probe_stops_everything(
    open_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = probe.expected() + np.float32(0.01)
    monkeypatch.setattr(probe, "expected", lambda: wrong)
    with pytest.raises(DeviceUnavailable, match=r"computes wrongly \(off by 0\.01"):
        open_session()


def test_a_provider_that_runs_nothing_is_refused(open_session: Callable[..., Session]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no provider that takes no convolution")
    with pytest.raises(DeviceUnavailable, match=r"provider AZURE does not answer there.*; use --provider cpu"):
        open_session(provider="AZURE")
    with pytest.raises(DeviceUnavailable, match=r"the test computation failed: .*\(dnarun: .*Unknown provider"):
        open_session(provider="NoSuch")


def test_outputs_are_those_of_the_host(open_session: Callable[..., Session]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session, model = open_session(), models.conv(8, batch=2)
    x = np.random.default_rng(0).standard_normal((6, 8, 7, 7), dtype=np.float32)
    (y,) = session.run(model, {"x": x})
    (wanted,) = onnxruntime.InferenceSession(models.conv(8).onnx, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_allclose(y, wanted, atol=1e-6)
    for inputs, says in [
        ({}, "no input 'x'"),
        ({"x": x.astype(np.float64)}, "input 'x' is float64"),
        ({"x": x[:5]}, r"shape \(5, 8, 7, 7\); expected \[2, 8, 7, 7\]"),
        ({"x": x[:, :4]}, "expected"),
    ]:
        with pytest.raises(ModelRejected, match=says):
            session.run(model, inputs)
    with pytest.raises(ModelRejected, match="refused: local could not run it"):
        session.run(models.refused(), {"x": np.zeros((1, 3), np.float32)})


def test_a_full_device_is_said_at_once(open_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    session = open_session()
    monkeypatch.setattr(
        LocalLink,
        "send_command",
        lambda self, local, remote: ["sh", "-c", "echo 'write failed: No space left on device' >&2; exit 1"],
    )
    with pytest.raises(DeviceUnavailable, match="No space left on device; make room"):
        list(session.visits(ops()[:1], Plan(rounds=1)))
    monkeypatch.undo()


def test_a_device_that_is_full_only_when_unpacking_says_so(open_session: Callable[..., Session], tmp_path: Path) -> None:
    session, tar = open_session(), tmp_path / "bin" / "tar"
    tar.write_text("#!/bin/sh\necho 'tar: write error: No space left on device' >&2\nexit 1\n")
    tar.chmod(0o755)
    with pytest.raises(DeviceUnavailable, match=r"local: unpacking jobs\.tar: tar: .*No space left on device.*; make room"):
        list(session.visits(ops()[:1], Plan(rounds=1)))
    assert not list((tmp_path / "base").glob("*.tar*"))


def test_a_copy_cut_short_is_copied_again(open_session: Callable[..., Session], monkeypatch: pytest.MonkeyPatch) -> None:
    session, copies = open_session(), []

    def short_at_first(self: LocalLink, local: Path, remote: str) -> list[str]:
        copies.append(remote)
        return ["cp", str(local), remote] if len(copies) > 1 else ["sh", "-c", f"head -c 100 {local} >{remote}"]

    monkeypatch.setattr(LocalLink, "send_command", short_at_first)  # adb, too, reports success for these
    assert len(list(session.visits(ops()[:1], Plan(rounds=1, runs=1)))) == 1
    assert len(copies) == 2


def test_nobody_tidies_up_on_a_device_that_was_given_up(open_session: Callable[..., Session]) -> None:
    session = open_session()
    link = session.link
    assert isinstance(link, LocalLink)
    link.patience_s = 0.1
    visits = session.visits(ops()[:2], Plan(rounds=200, runs=2000, visit_ms=0))
    next(visits)
    link.faults = 1.0
    with pytest.raises(DeviceUnavailable, match="gave up"):
        list(visits)
    lost, link.faults = link.lost, 0.0
    assert link.gone and link.lost == lost  # no further try
    link.wait()
    assert not link.gone
    link.ask(session.stopping)
    link.ask(f"rm -rf {session.settings.base}/job-*")


def test_what_a_dead_host_left_is_taken_away(open_session: Callable[..., Session], tmp_path: Path) -> None:
    base = Path(open_session().settings.base)
    for name, days in (("job-old", 3), ("run-new", 0)):
        (base / name).mkdir()
        os.utime(base / name, (time.time() - days * 86400,) * 2)
    runtimes_there = list(base.glob("rt-*"))
    for folder in runtimes_there:
        os.utime(folder, (0, 0))
    open_session()
    assert not (base / "job-old").exists() and (base / "run-new").exists() and list(base.glob("rt-*")) == runtimes_there
