"""Measuring over ssh, with this machine behind an ssh and an scp that only look like it."""

import platform
from pathlib import Path

import numpy as np
import pytest

from profilers import Device, DeviceUnavailable, Plan, UnknownDevice
from profilers._android.gate import Limits
from profilers.ssh import OPTIONS, Ssh, SshProfiler
from tests.phone import models
from tests.phone.local import runtime

SSH = '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nshift 2\nHOME={home} exec sh -c "$1"\n'
SCP = '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\nexec cp "${2#*:}" "${3#*:}"\n'


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    try:
        installed = runtime()
    except DeviceUnavailable as unavailable:
        pytest.skip(str(unavailable))
    library = tmp_path / "libonnxruntime.so"  # its name tells what it is
    library.symlink_to(installed.files["libonnxruntime.so"])
    (tmp_path / "bin").mkdir()
    for name, text in (("ssh", SSH.replace("{home}", str(tmp_path))), ("scp", SCP)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/local/bin:/usr/bin:/bin")
    return Device("board", "ssh", address="pi@board.local", runtime=str(library))


@pytest.mark.skipif(platform.machine() == "aarch64", reason="the runner of this machine is that of the board")
def test_a_computer_is_measured(device: Device) -> None:
    profiler = SshProfiler(patience_s=5, limits=Limits(drift=None, clock=0))
    environment = profiler.environment(device)
    assert str(environment["runtime"]).startswith("onnxruntime ") and str(environment["system"]).endswith(platform.machine())
    assert isinstance(profiler.conditions(device)["load"], float | None)
    ops = [models.conv(4), models.conv(8)]
    plan = Plan(rounds=3, runs=2, visit_ms=0)
    visits = list(profiler.visits(device, ops, plan))
    expected = [(key, number) for number in range(3) for key in plan.order([op.key for op in ops], number)]
    assert [(visit.key, visit.round) for visit in visits] == expected
    assert profiler.open(device) is profiler.open(device)
    (y,) = profiler.run(device, models.conv(4), {"x": np.zeros((3, 4, 7, 7), np.float32)})
    assert np.asarray(y).shape == (3, 4, 7, 7)


@pytest.mark.parametrize("address", [None, "", "-oProxyCommand=evil", "a b", "host;true", "$(true)"])
def test_an_address_is_no_option_and_no_command(address: str | None) -> None:
    with pytest.raises(UnknownDevice, match="give --address USER@HOST"):
        SshProfiler().open(Device("board", "ssh", address=address))


def test_what_is_started() -> None:
    link = Ssh("pi@board")
    assert link.shell_command("true") == ["ssh", *OPTIONS, "--", "pi@board", "true"]
    assert link.send_command(Path("/a b"), "/c")[-2:] == ["/a b", "pi@board:/c"]


@pytest.mark.parametrize(
    ("answer", "patience_s", "says"),
    [
        ("ssh: connect to host board port 22: No route to host", 0.1, r"no answer \(ssh: .*No route to host\); gave up"),
        (
            "ssh: Could not resolve hostname board: Name or service not known",
            5,
            r"ssh: Could not .* known; make .*: ssh pi@board$",
        ),
        ("pi@board: Permission denied (publickey).", 5, r"Permission denied .*; make this work first, without a question: ssh"),
    ],
)
def test_a_computer_that_does_not_answer_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, patience_s: float, says: str
) -> None:
    (tmp_path / "ssh").write_text(f"#!/bin/sh\necho '{answer}' >&2\nexit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(DeviceUnavailable, match=f"^pi@board: .*{says}"):
        SshProfiler(patience_s=patience_s).open(Device("board", "ssh", address="pi@board"))


def test_the_library_must_fit_the_machine(tmp_path: Path) -> None:
    from profilers.ssh import runtime_for

    with pytest.raises(DeviceUnavailable, match="expected aarch64, or runtime = "):
        runtime_for(Device("board", "ssh"), "x86_64")
    with pytest.raises(DeviceUnavailable, match="no such file"):
        runtime_for(Device("board", "ssh", runtime=str(tmp_path / "x.so")), "x86_64")
    for other in ("tensorrt", "onnxruntime-1.18", "mine.aar"):
        with pytest.raises(UnknownDevice, match=f"runtime '{other}': expected onnxruntime, or a libonnxruntime.so"):
            runtime_for(Device("board", "ssh", runtime=other), "aarch64")
    (tmp_path / "libonnxruntime.so.1.20.0").write_bytes(b"")  # as a release names it
    found = runtime_for(Device("board", "ssh", runtime=str(tmp_path / "libonnxruntime.so.1.20.0")), "x86_64")
    assert found.files["libonnxruntime.so"] == tmp_path / "libonnxruntime.so.1.20.0" and "given" in found.label
