"""A device to measure on, and the registry of those we know by name."""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profilers.errors import UnknownDevice

USER_REGISTRY = Path("devices.toml")  # in the folder the command runs in; adds to and overrides the shipped ones


@dataclass(frozen=True)
class Device:
    """Where and how a network will run. `kind` names the file in `profilers/` that measures it."""

    name: str
    kind: str
    runtime: str = "onnxruntime"
    provider: str = "cpu"
    precision: str = "fp32"
    batch: int = 1  # kept in every table; the only one there is
    threads: int = 1
    cores: str | None = None  # "0", "0-3", or a cluster name where the kind has clusters; None leaves it to the system
    address: str | None = None  # serial, host or index where the kind has several devices
    mode: str | None = None  # "fixed" asks an Android phone for clocks it can hold; "enqueue" a GPU to run without CUDA graphs

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UnknownDevice(f"device {self.name}: threads = {self.threads}; expected at least 1")
        if self.batch != 1:
            raise UnknownDevice(f"device {self.name}: batch = {self.batch}; every latency is that of one image: leave it out")

    def refuse(self, *settings: str) -> None:
        """Settings that change nothing on this kind of device: what was measured would bear the name of what was asked."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in settings and value != field.default:
                raise UnknownDevice(
                    f"device {self.name}: {field.name} = {value!r} changes nothing on a device of kind {self.kind}; leave it "
                    "out, or choose another device"
                )

    def require_cores(self, count: int, choice: str = "") -> None:
        """Refuse more threads than the `count` cores they have; `choice` says which others the device has."""
        if self.threads > count:
            kept = f" ({self.cores})" if self.cores else ""
            more = f", or as many --cores{choice}" if self.cores else ""
            raise UnknownDevice(
                f"device {self.name}: {self.threads} threads on {count} core{'s' if count > 1 else ''}{kept} would wait for each "
                f"other; give --threads {count}{more}"
            )


def registry() -> dict[str, Device]:
    """Every device we can measure, by name: those shipped, then the user's own from ./devices.toml."""
    return {
        **_read(Path(__file__).with_name("devices.toml")),
        **(_read(USER_REGISTRY) if USER_REGISTRY.is_file() else {}),
    }


def find_device(name: str, **overrides: Any) -> Device:
    """The device of that name; `overrides` that are not None replace its settings."""
    devices = registry()
    if name not in devices:
        raise UnknownDevice(f"{name!r} is no device we can measure; known: {', '.join(devices)} (add yours to {USER_REGISTRY})")
    return dataclasses.replace(devices[name], **{key: value for key, value in overrides.items() if value is not None})


def _read(path: Path) -> dict[str, Device]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        entries: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnknownDevice(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UnknownDevice(f"{path}: not TOML ({error})") from None
    known = {field.name: field for field in dataclasses.fields(Device)}
    devices = {}
    for name, values in entries.items():
        if not isinstance(values, dict) or "kind" not in values:
            raise UnknownDevice(f'{path}: [{name}] has no kind; expected for example kind = "host"')
        for key, value in values.items():
            expected = int if key in ("batch", "threads") else str
            if key not in known or key == "name":
                raise UnknownDevice(f"{path}: [{name}] has an unknown setting {key!r}; known: {', '.join(list(known)[1:])}")
            if not isinstance(value, expected) or isinstance(value, bool):
                raise UnknownDevice(f"{path}: [{name}] {key} = {value!r}; expected {expected.__name__}")
        devices[name] = Device(name=name, **values)
    return devices
