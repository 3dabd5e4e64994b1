"""The link to an Android device: the real adb program, which knows USB, keys and every system's drivers."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from profilers._android.link import Link
from profilers.errors import DeviceUnavailable

_TO_DO = {
    "unauthorized": "tap Allow on its screen",
    "authorizing": "tap Allow on its screen",
    "offline": "unplug it and plug it in again",
    "no permissions": "install the udev rules (apt install android-sdk-platform-tools-common) and plug it in again",
    "recovery": "start it normally",
    "sideload": "start it normally",
    "bootloader": "start it normally",
}


@dataclass(frozen=True)
class Attached:
    """A line of `adb devices -l`."""

    serial: str
    state: str  # "device" when it can be used
    model: str = ""

    def __str__(self) -> str:
        name = f"{self.serial} ({self.model})" if self.model else self.serial
        if self.state == "device":
            return name
        if self.state == "offline" and over_network(self.serial):
            return f"{name} offline: switch wireless debugging off and on again"
        return f"{name} {self.state}: {_TO_DO.get(self.state, 'wait or plug it in again')}"


def over_network(serial: str) -> bool:
    """Whether a serial is HOST:PORT rather than a phone on a cable."""
    return ":" in serial


class Adb(Link):
    def __init__(self, program: str, serial: str, patience_s: float = 120) -> None:
        super().__init__(serial, patience_s)
        self.program, self.serial = program, serial

    def shell_command(self, command: str) -> Sequence[str]:
        return [self.program, "-s", self.serial, "shell", command]

    def send_command(self, local: Path, remote: str) -> Sequence[str]:
        return [self.program, "-s", self.serial, "push", str(local), remote]

    def fetch_command(self, remote: str, local: Path) -> Sequence[str]:
        return [self.program, "-s", self.serial, "pull", remote, str(local)]

    def reconnect(self) -> str | None:
        said = ""
        if over_network(self.serial):  # adb forgets such a device when its link breaks
            done = self._start([self.program, "connect", self.serial], 30)
            said = (done.stdout + done.stderr).decode("utf-8", "replace").strip()
        listed = self._start([self.program, "devices", "-l"], 30).stdout.decode("utf-8", "replace")
        mine = [device for device in parse_devices(listed) if device.serial == self.serial]
        if not mine:
            return f"not reachable ({said.splitlines()[-1][:120]})" if said else "not attached any more"
        return None if mine[0].state == "device" else str(mine[0])


def parse_devices(text: str) -> list[Attached]:
    """`adb devices -l`, whose states may hold blanks and advice."""
    devices = []
    for line in text.splitlines():
        found = re.match(r"(\S+)\s+(no permissions|\w+)\b(.*)", line)
        if found and not line.startswith(("List of", "*", "adb")):
            model = re.search(r"\bmodel:(\S+)", found[3])
            devices.append(Attached(found[1], found[2], model[1].replace("_", " ") if model else ""))
    return devices


def programs(environment: Mapping[str, str] = os.environ) -> Iterator[str]:
    """Every adb there is: $ADB, the PATH, the Android SDK, PyPI's adbutils."""
    name = "adb.exe" if os.name == "nt" else "adb"
    if environment.get("ADB"):
        yield environment["ADB"]
    found = shutil.which("adb", path=environment.get("PATH"))
    if found:
        yield found
    for variable in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        program = Path(environment.get(variable, "")) / "platform-tools" / name
        if environment.get(variable) and program.is_file():
            yield str(program)
    try:
        import adbutils
    except ImportError:
        return
    yield str(adbutils.adb_path())


def connect(wanted: str | None, patience_s: float = 120, environment: Mapping[str, str] = os.environ) -> Adb:
    """The device of that serial or model; the only one where none is asked for. Refuses in one line that says it all."""
    advice = "without a phone, search with a published table, pixel1 or pixel6: dna-search --device pixel1"
    program = next(programs(environment), None)
    if program is None:
        raise DeviceUnavailable(
            "no phone: adb was not found ($ADB, PATH, $ANDROID_HOME/platform-tools, PyPI adbutils); "
            f"pip install adbutils, switch USB debugging on and plug the phone in; {advice}"
        )
    wanted = wanted or environment.get("ANDROID_SERIAL") or None
    devices = _list(program)
    answer = ""
    if wanted and over_network(wanted) and wanted not in [device.serial for device in devices]:
        answer = _call([program, "connect", wanted]).strip()
        devices = _list(program)
    matching = [device for device in devices if not wanted or wanted in (device.serial, device.model)]
    usable = [device for device in matching if device.state == "device"]
    if len(usable) == 1:
        return Adb(program, usable[0].serial, patience_s)
    if len(usable) > 1:
        raise DeviceUnavailable(f"{len(usable)} phones: {', '.join(map(str, usable))}; choose one with --address SERIAL")
    if len(matching) == 1 and matching[0].state in ("unauthorized", "authorizing", "offline"):
        adb = Adb(program, matching[0].serial, patience_s)
        adb.wait()  # says what to do, and goes on once it is done
        return adb
    seen = ", ".join(map(str, devices)) or "no device"
    asked = f" {wanted!r}" if wanted else ""
    to_do = "plug the phone in with USB debugging on and tap Allow"
    if answer:
        seen = f"{seen} ({answer.splitlines()[-1][:120]})"
        to_do = "switch wireless debugging on and give the address and port it shows; pair once: adb pair"
    raise DeviceUnavailable(f"no phone{asked}: adb ({program}) sees {seen}; {to_do}; {advice}")


def _list(program: str) -> list[Attached]:
    return parse_devices(_call([program, "devices", "-l"]))


def _call(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    except OSError as error:
        raise DeviceUnavailable(
            f"adb ({command[0]}) cannot be started: {error.strerror}; set $ADB to one that runs here, or unset it"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise DeviceUnavailable(f"{command[0]} does not work here ({error}); try: {command[0]} kill-server") from error
    said, errors = (stream.decode("utf-8", "replace").strip() for stream in (done.stdout, done.stderr))
    if done.returncode and not said:
        reason = (errors or f"exit {done.returncode}").splitlines()[-1]
        raise DeviceUnavailable(f"{command[0]} does not work here ({reason[:160]}); try: {command[0]} kill-server")
    return said
