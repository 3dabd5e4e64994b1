"""A Linux computer over ssh (Raspberry Pi, Jetson, another machine): the phone's runner, session and protocol."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from profilers._android import build, runtime
from profilers._android.facts import Facts
from profilers._android.link import Link, LinkLost
from profilers._android.remote import About, RemoteProfiler
from profilers._android.session import Session, Settings
from profilers.device import Device
from profilers.errors import DeviceUnavailable, UnknownDevice

# No question is ever asked in the middle of a run, and a dead connection is noticed within a minute.
OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3")
_HOPELESS = re.compile(r"could not resolve hostname|permission denied|host key verification failed", re.I)
_ADDRESS = re.compile(r"^[\w.@:%][\w.@:%-]*$")  # never begins with "-": ssh would take it for an option


class Ssh(Link):
    """The ssh and scp programs, with the user's own configuration, keys and known hosts."""

    def __init__(self, address: str, patience_s: float = 120) -> None:
        super().__init__(address, patience_s)

    def meet(self) -> None:
        """Return when the computer answers for the first time; what no waiting mends is said at once."""
        try:
            self._ask_once("true", True, 30)
        except LinkLost as lost:
            if _HOPELESS.search(str(lost)):
                raise DeviceUnavailable(
                    f"{self.name}: {lost}; make this work first, without a question: ssh {self.name}"
                ) from None
            self.wait()

    def shell_command(self, command: str) -> Sequence[str]:
        return ["ssh", *OPTIONS, "--", self.name, command]

    def send_command(self, local: Path, remote: str) -> Sequence[str]:
        return ["scp", "-q", *OPTIONS, "--", str(local), f"{self.name}:{remote}"]

    def fetch_command(self, remote: str, local: Path) -> Sequence[str]:
        return ["scp", "-q", *OPTIONS, "--", f"{self.name}:{remote}", str(local)]


@dataclass(frozen=True)
class SshProfiler(RemoteProfiler):
    """A device's `address` is what ssh is given: [USER@]HOST, or a name of ~/.ssh/config."""

    def connect(self, device: Device) -> Session:
        device.refuse("precision", "mode")
        if not device.address or not _ADDRESS.match(device.address):
            raise UnknownDevice(f"device {device.name}: no address to reach it; give --address USER@HOST")
        link = Ssh(device.address, self.patience_s)
        link.meet()
        home = link.ask('echo "$HOME"').strip()
        if not re.fullmatch(r"/[\w./-]*", home):
            raise DeviceUnavailable(f"{link.name}: its home folder {home!r} has blanks or signs; use another user")
        return Session(link, device, Settings(f"{home}/.cache/dna-deploy/device", self.limits))

    def runtime(self, device: Device, facts: Facts) -> runtime.Runtime:
        return runtime_for(device, facts.machine)

    def about(self, session: Session) -> About:
        facts = session.facts
        return {"computer": facts.board or session.link.name, "system": f"{facts.system} {facts.machine}"}

    def state(self, facts: Facts) -> About:
        return {"load": facts.load}


PROFILER = SshProfiler()


def runtime_for(device: Device, machine: str) -> runtime.Runtime:
    """arm64 computers get PyPI's library with a C library of its own; others need a file of the user's."""
    if re.search(r"\.so(\.\d+)*$", device.runtime):
        library = Path(device.runtime).expanduser()
        if not library.is_file():
            raise DeviceUnavailable(f"runtime {device.runtime}: no such file; expected a libonnxruntime.so for {machine}")
        runner = build.linux_arm64_runner() if machine == "aarch64" else build.host_runner()
        files = {"dnarun": runner, "run.sh": build.SOURCE / "run.sh", "libonnxruntime.so": library}
        return runtime.Runtime(f"given as {library.name}", files)
    if device.runtime not in ("onnxruntime", "onnxruntime-glibc"):
        raise UnknownDevice(f"runtime {device.runtime!r}: expected onnxruntime, or a libonnxruntime.so made for {machine}")
    if machine != "aarch64":
        raise DeviceUnavailable(f"its processor is {machine}; expected aarch64, or runtime = a libonnxruntime.so made for it")
    return runtime.glibc_bundle()
