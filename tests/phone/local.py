"""This machine as the device behind a link: the whole session without adb and without an emulator."""

import random
from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from profilers._android import build
from profilers._android.link import Link, LinkLost
from profilers._android.runtime import Runtime
from profilers.errors import DeviceUnavailable


class LocalLink(Link):
    """Commands run by sh, files copied by cp. `faults` is the probability that a command or its answer gets lost."""

    def __init__(self, folder: Path, faults: float = 0.0, seed: int = 0) -> None:
        super().__init__("local", patience_s=10)
        self.folder, self.faults, self.rng = folder, faults, random.Random(seed)
        self.lost = 0
        (folder / "bin").mkdir(parents=True, exist_ok=True)

    def says(self, program: str, text: str) -> None:
        """Let a program of Android be there and print a text."""
        path = self.folder / "bin" / program
        (self.folder / f"{program}.txt").write_text(text)
        path.write_text(f'#!/bin/sh\necho "{program} $*" >>{self.folder}/log\ncat {self.folder}/{program}.txt\n')
        path.chmod(0o755)

    def shell_command(self, command: str) -> Sequence[str]:
        return ["env", f"PATH={self.folder}/bin:/usr/local/bin:/usr/bin:/bin", "sh", "-c", command]

    def send_command(self, local: Path, remote: str) -> Sequence[str]:
        return ["cp", str(local), remote]

    def fetch_command(self, remote: str, local: Path) -> Sequence[str]:
        return ["cp", remote, str(local)]

    def _start(self, command, timeout_s):  # type: ignore[no-untyped-def]
        fate = self.rng.random()
        if fate < self.faults / 2:
            self.lost += 1
            raise LinkLost("lost before it arrived")
        done = super()._start(command, timeout_s)
        if fate < self.faults:
            self.lost += 1
            raise LinkLost("the answer was lost")
        return done


def runtime() -> Runtime:
    """pip's own library and the runner for this machine. Raises DeviceUnavailable where either is not to be had."""
    libraries = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not libraries:
        raise DeviceUnavailable("pip's onnxruntime has no libonnxruntime.so on this system")
    files = {"dnarun": build.host_runner(), "run.sh": build.SOURCE / "run.sh", "libonnxruntime.so": libraries[0]}
    return Runtime("pip's onnxruntime", files)
