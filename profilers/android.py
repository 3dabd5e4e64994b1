"""An Android phone over adb, through ONNX Runtime's own Android build and our runner (profilers/_android)."""

from dataclasses import dataclass

from profilers._android import adb, runtime
from profilers._android.facts import Facts
from profilers._android.remote import About, RemoteProfiler
from profilers._android.session import Session, Settings
from profilers.device import Device
from profilers.errors import DeviceUnavailable, UnknownDevice

BASE = "/data/local/tmp/dna_deploy"  # where adb's shell may write and run programs, on every phone
MODES = (None, "fixed")


@dataclass(frozen=True)
class AndroidProfiler(RemoteProfiler):
    """A device's `address` is its serial or model."""

    def connect(self, device: Device) -> Session:
        device.refuse("precision")
        if device.mode not in MODES:
            raise UnknownDevice(
                f"device {device.name}: mode {device.mode!r}; expected fixed (Android's fixed-performance mode) or none"
            )
        settings = Settings(BASE, self.limits, stay_on=True, fixed_clocks=device.mode == "fixed")
        return Session(adb.connect(device.address, self.patience_s), device, settings)

    def runtime(self, device: Device, facts: Facts) -> runtime.Runtime:
        abi = facts.properties.get("ro.product.cpu.abi") or "unknown"
        if abi != "arm64-v8a":
            raise DeviceUnavailable(f"{facts.model}: its programs are {abi}; expected arm64-v8a")
        return runtime.obtain(device.runtime)

    def about(self, session: Session) -> About:
        said = session.facts.properties.get
        return {
            "phone": session.facts.model,
            "codename": said("ro.product.device"),
            "build": said("ro.build.fingerprint"),
            "android": said("ro.build.version.release"),
            "processor": " ".join(filter(None, (said("ro.soc.manufacturer"), said("ro.soc.model")))),
            "mode": "fixed performance" if session.settings.fixed_clocks else "normal",
        }

    def state(self, facts: Facts) -> About:
        return {
            "load": facts.load,
            "battery_percent": facts.battery,
            "power_saver": int(facts.power_saver),
            "thermal_status": facts.thermal.status,
            "skin_c": facts.thermal.skin_c,
            "screen_on": None if facts.awake is None else int(facts.awake),
        }


PROFILER = AndroidProfiler()
