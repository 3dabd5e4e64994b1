"""Builds the runner (dnarun.c) for the machine that will run it, once for each version of its source."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from profilers.errors import DeviceUnavailable

SOURCE = Path(__file__).parent
CACHE = Path.home() / ".cache" / "dna-deploy"

# All the time measured is spent in the runtime; in C nothing is ever unwound.
SMALL = ("-Os", "-s", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables")

_CROSS_GCC = "aarch64-linux-gnu-gcc"
_NO_COMPILER = (
    "the runner for this device has to be compiled once and no compiler for it was found (looked for {looked}); "
    "install Debian's gcc-aarch64-linux-gnu or run: pip install ziglang"
)


def android_runner() -> Path:
    """The runner for any arm64 Android phone (API 24 and later), built without an NDK.

    It is linked against libraries that hold names only, made here from bionic.h; the phone has the real ones.
    """
    gcc, zig = shutil.which(_CROSS_GCC), _zig()
    if gcc:
        # x18 holds Android's shadow call stack; outlined atomics live in a library that phones do not have
        compiler = [gcc, "-ffreestanding", "-ffixed-x18", "-mno-outline-atomics", "-Wl,--hash-style=both"]
    elif zig:
        compiler = [*zig, "-target", "aarch64-linux-android", "-mcpu=generic", "-nostdinc"]
    else:
        raise DeviceUnavailable(_NO_COMPILER.format(looked=f"{_CROSS_GCC}, ziglang"))
    return _cached("android", compiler, _build_android)


def linux_arm64_runner() -> Path:
    """The runner for Linux on arm64 with glibc: a Raspberry Pi, a Jetson, or a phone with the glibc bundle."""
    gcc, zig = shutil.which(_CROSS_GCC), _zig()
    if gcc:
        compiler = [gcc]
    elif zig:
        compiler = [*zig, "-target", "aarch64-linux-gnu.2.28"]
    else:
        raise DeviceUnavailable(_NO_COMPILER.format(looked=f"{_CROSS_GCC}, ziglang"))
    return _cached("linux-arm64", compiler, _build_linux)


def host_runner() -> Path:
    """The runner for this machine: what the tests and an ssh target of the same architecture use."""
    gcc, zig = shutil.which("cc") or shutil.which("gcc"), _zig()
    compiler = [gcc] if gcc else zig
    if not compiler:
        raise DeviceUnavailable(_NO_COMPILER.format(looked="cc, gcc, ziglang"))
    return _cached("host", compiler, _build_linux)


def _zig() -> list[str] | None:
    """PyPI's ziglang is a C compiler for every target in one wheel."""
    try:
        import ziglang
    except ImportError:
        return None
    return [sys.executable, "-m", ziglang.__name__, "cc"]


def _cached(target: str, compiler: list[str], build: Callable[[list[str], Path, Path], None]) -> Path:
    digest = hashlib.sha256(" ".join(compiler).encode())
    for name in ("dnarun.c", "bionic.h", "start.c", "build.py"):
        digest.update((SOURCE / name).read_bytes())
    runner = CACHE / "runner" / f"dnarun-{target}-{digest.hexdigest()[:12]}"
    if not runner.exists():
        runner.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=runner.parent) as folder:
            built = Path(folder) / "dnarun"
            build(compiler, Path(folder), built)
            os.replace(built, runner)  # whole or not there at all, also when two builds meet
    return runner


def _build_linux(compiler: list[str], folder: Path, runner: Path) -> None:
    _compile(folder, [*compiler, *SMALL, "-fPIE", "-pie", "-o", runner, SOURCE / "dnarun.c", "-ldl"])


def _build_android(compiler: list[str], folder: Path, runner: Path) -> None:
    declared = set(re.findall(r"\b(\w+)\(", (SOURCE / "bionic.h").read_text()))
    loader = {"dlopen", "dlsym", "dlerror"}
    libc = declared - loader - {"__attribute__", "void", "int"}  # what precedes a "(" without being a function's name
    functions = {"libc": libc, "libdl": loader, "liblog": {"__android_log_write"}}
    stubs = []
    for library, names in functions.items():
        source, stub = folder / f"{library}.c", folder / f"{library}.so"
        streams = "void *stdout, *stderr;\n" if library == "libc" else ""
        source.write_text("".join(f"void {name}(void) {{}}\n" for name in sorted(names)) + streams)
        names_only = ["-w", "-fno-builtin", "-nostdlib", "-shared", "-fPIC", f"-Wl,-soname,{stub.name}"]
        _compile(folder, [*compiler, *names_only, "-o", stub, source])
        stubs.append(stub)
    flags = [*SMALL, "-fPIE", "-pie", "-nostdlib", "-fno-stack-protector", "-DDNA_BIONIC", f"-I{SOURCE}"]
    # 16 KiB pages came with Android 15; a program aligned to them starts on older phones as well
    links = ["-Wl,-dynamic-linker,/system/bin/linker64", "-Wl,-z,max-page-size=16384", "-Wl,--no-as-needed"]
    _compile(folder, [*compiler, *flags, *links, "-o", runner, SOURCE / "dnarun.c", SOURCE / "start.c", *stubs])


def _compile(folder: Path, command: Sequence[str | Path]) -> None:
    """In `folder`: `python -m` would run a ziglang.py of the current one."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=folder)
    if done.returncode:
        lines = (done.stderr.strip() or "no message").splitlines()
        reason = next((line for line in lines if "error" in line), lines[0])
        raise DeviceUnavailable(f"{command[0]} could not build the runner: {reason[:200]}")
