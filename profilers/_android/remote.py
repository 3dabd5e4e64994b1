"""What a phone over adb and a computer over ssh have in common: one session a device, kept for the process."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from profilers._android.facts import Facts
from profilers._android.gate import Limits
from profilers._android.runtime import Runtime
from profilers._android.session import Session
from profilers.device import Device
from profilers.estimate import Visit
from profilers.protocol import Model, Plan

About = dict[str, str | int | float | None]


@dataclass(frozen=True)
class RemoteProfiler(ABC):
    """`patience_s`: how long a lost device is waited for."""

    patience_s: float = 120.0
    limits: Limits = field(default_factory=Limits)
    _sessions: dict[Device, Session] = field(default_factory=dict, init=False, repr=False, compare=False)

    # what a kind of device provides

    @abstractmethod
    def connect(self, device: Device) -> Session:
        """A session that has asked the device about itself and no more. Refuses an absent device."""

    @abstractmethod
    def runtime(self, device: Device, facts: Facts) -> Runtime:
        """The runtime that runs there. Refuses a device it does not run on."""

    @abstractmethod
    def about(self, session: Session) -> About:
        """What the device is, as far as it decides the numbers."""

    @abstractmethod
    def state(self, facts: Facts) -> About:
        """What may differ from session to session."""

    # what is built on it

    def environment(self, device: Device) -> About:
        session = self.open(device)
        facts = session.facts
        return {
            **self.about(session),
            "clusters": ", ".join(map(str, facts.clusters)),
            "cores": device.cores if session.mask is None else f"{device.cores} (mask {session.mask:x})",
            "governor": ", ".join(sorted({cluster.governor for cluster in facts.clusters})),
            "runtime": f"onnxruntime {session.version}",
            "runtime_source": session.runtime.label if session.runtime else None,
            "provider": device.provider,
            "options": "sequential, inter_op 1, all graph optimizations, spinning off, outputs reused",
            "threads": device.threads,
            "batch": device.batch,
            "precision": device.precision,
        }

    def conditions(self, device: Device) -> About:
        session = self.open(device)
        session.look()
        return self.state(session.facts)

    def visits(self, device: Device, models: Sequence[Model], plan: Plan) -> Iterator[Visit]:
        session = self.open(device)
        session.look()  # it may have been opened hours ago
        session.warn()
        yield from session.visits(models, plan)

    def run(self, device: Device, model: Model, inputs: Mapping[str, object]) -> list[object]:
        return self.open(device).run(model, inputs)

    def open(self, device: Device) -> Session:
        """The session on the device, its runtime in place and proven."""
        if device not in self._sessions:
            session = self.connect(device)
            session.install(self.runtime(device, session.facts))
            self._sessions[device] = session
        return self._sessions[device]
