"""An Android phone over adb, through ONNX Runtime's own Android build and our runner (profilers/_android)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from profilers._android import adb, runtime
from profilers._android.gate import Limits
from profilers._android.session import Session, Settings
from profilers.device import Device
from profilers.errors import DeviceUnavailable
from profilers.protocol import Model, Plan, Visit

BASE = "/data/local/tmp/dna_deploy"  # where adb's shell may write and run programs, on every phone
MODES = (None, "fixed")


@dataclass(frozen=True)
class AndroidProfiler:
    """`patience_s`: how long a lost phone is waited for. A device's `address` is its serial or model."""

    patience_s: float = 120.0
    limits: Limits = field(default_factory=Limits)

    def environment(self, device: Device) -> dict[str, str | int | float | None]:
        session = self.open(device)
        facts = session.facts
        return {
            "phone": facts.model,
            "codename": facts.properties.get("ro.product.device"),
            "build": facts.properties.get("ro.build.fingerprint"),
            "android": facts.properties.get("ro.build.version.release"),
            "processor": " ".join(
                filter(None, (facts.properties.get("ro.soc.manufacturer"), facts.properties.get("ro.soc.model")))
            ),
            "clusters": ", ".join(map(str, facts.clusters)),
            "cores": device.cores if session.mask is None else f"{device.cores} (mask {session.mask:x})",
            "governor": ", ".join(sorted({cluster.governor for cluster in facts.clusters})),
            "mode": "fixed performance" if session.settings.fixed_clocks else "normal",
            "runtime": f"onnxruntime {session.version}",
            "runtime_source": session.runtime.label if session.runtime else None,
            "provider": device.provider,
            "options": "sequential, inter_op 1, all graph optimizations, spinning off, outputs reused",
            "threads": device.threads,
            "batch": device.batch,
            "precision": device.precision,
        }

    def conditions(self, device: Device) -> dict[str, str | int | float | None]:
        facts = self._facts(device).facts
        return {
            "load": facts.load,
            "battery_percent": facts.battery,
            "power_saver": int(facts.power_saver),
            "thermal_status": facts.thermal.status,
            "skin_c": facts.thermal.skin_c,
            "screen_on": None if facts.awake is None else int(facts.awake),
        }

    def visits(self, device: Device, models: Sequence[Model], plan: Plan) -> Iterator[Visit]:
        yield from self.open(device).visits(models, plan)

    def run(self, device: Device, model: Model, inputs: Mapping[str, object]) -> list[object]:
        return self.open(device).run(model, inputs)

    def open(self, device: Device) -> Session:
        """A session on the phone, its runtime in place and proven."""
        session = self._facts(device)
        abi = session.facts.properties.get("ro.product.cpu.abi") or "unknown"
        if abi != "arm64-v8a":
            raise DeviceUnavailable(f"{session.link.name}: its programs are {abi}; expected arm64-v8a")
        session.warn()
        session.install(runtime.obtain(device.runtime))
        return session

    def _facts(self, device: Device) -> Session:
        """A session that has asked the phone about itself and no more."""
        if device.mode not in MODES:
            raise DeviceUnavailable(
                f"device {device.name}: mode {device.mode!r}; expected fixed (Android's fixed-performance mode) or none"
            )
        settings = Settings(BASE, self.limits, stay_on=True, fixed_clocks=device.mode == "fixed")
        return Session(adb.connect(device.address, self.patience_s), device, settings)


PROFILER = AndroidProfiler()
