"""The runner as it is built for an Android phone, by each compiler that can."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from profilers import DeviceUnavailable
from profilers._android import build
from profilers._android.runtime import page_alignment

BINUTILS = "aarch64-linux-gnu-"


@pytest.fixture(params=["gcc", "zig"])
def runner(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if shutil.which(f"{BINUTILS}readelf") is None:
        pytest.skip("no aarch64-linux-gnu-readelf to look into it (apt install binutils-aarch64-linux-gnu)")
    if request.param == "gcc" and shutil.which(f"{BINUTILS}gcc") is None:
        pytest.skip("no aarch64-linux-gnu-gcc here (apt install gcc-aarch64-linux-gnu)")
    if request.param == "zig":
        if importlib.util.find_spec("ziglang") is None:
            pytest.skip("no zig here (pip install ziglang: 400 MB)")
        monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    monkeypatch.setattr(build, "CACHE", tmp_path)
    built = build.android_runner()
    monkeypatch.undo()
    return built


def look(tool: str, *arguments: str | Path) -> str:
    return subprocess.run([BINUTILS + tool, *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def test_it_is_a_program_for_any_phone(runner: Path) -> None:
    head = look("readelf", "-hlW", runner)
    assert "DYN (Position-Independent Executable file)" in head and "AArch64" in head
    assert "[Requesting program interpreter: /system/bin/linker64]" in head
    assert page_alignment(runner) >= 16384  # phones with 16 KiB pages start it too
    needed = re.findall(r"NEEDED.*\[(.*)\]", look("readelf", "-dW", runner))
    assert set(needed) == {"libc.so", "libdl.so", "liblog.so"}  # every phone has them
    assert runner.stat().st_size < 20_000


def test_it_asks_for_nothing_but_what_its_header_declares(runner: Path) -> None:
    declared = set(re.findall(r"\b(\w+)\(", (build.SOURCE / "bionic.h").read_text())) | {"stdout", "stderr"}
    symbols = re.findall(r"\bUND (\w+)", look("readelf", "--dyn-syms", "-W", runner))
    assert symbols and set(symbols) <= declared


def test_it_leaves_the_register_of_the_shadow_stack_alone(runner: Path) -> None:
    code = look("objdump", "-d", "--no-show-raw-insn", runner)
    assert "ret" in code and not re.search(r"\b[wx]18\b", code)


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(build, "_zig", lambda: None)
    for target in (build.android_runner, build.linux_arm64_runner, build.host_runner):
        with pytest.raises(DeviceUnavailable, match=r"no compiler for it was found \(looked for .*pip install ziglang"):
            target()


def test_what_the_compiler_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "aarch64-linux-gnu-gcc"
    compiler.write_text("#!/bin/sh\necho 'x.c:1: fatal error: no such header' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(build, "CACHE", tmp_path)
    with pytest.raises(DeviceUnavailable, match=r"could not build the runner: .*no such header"):
        build.android_runner()
    assert not list(tmp_path.glob("runner/*"))
