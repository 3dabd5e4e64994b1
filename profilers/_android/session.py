"""A session on a phone or another device behind a link: the runtime put there and proven, then models run and measured."""

import json
import logging
import math
import shlex
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from profilers._android import probe
from profilers._android.facts import QUESTION, Facts, read_facts
from profilers._android.gate import Limits
from profilers._android.job import FATAL, Job
from profilers._android.link import CommandFailed, Link
from profilers._android.package import pack, parse
from profilers._android.runtime import Runtime, page_alignment
from profilers._android.tensors import batches, split_outputs
from profilers.device import Device
from profilers.errors import DeviceUnavailable, ModelRejected
from profilers.estimate import Visit
from profilers.protocol import Model, Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """How a kind of device is treated."""

    base: str  # the folder on the device that is ours
    limits: Limits = field(default_factory=Limits)
    stay_on: bool = False  # keep the screen on while measuring
    fixed_clocks: bool = False  # Android's fixed-performance mode: clocks it can hold, below its best
    longest_poll_s: float = 20.0


class Session:
    def __init__(self, link: Link, device: Device, settings: Settings) -> None:
        self.link, self.device, self.settings = link, device, settings
        self.look()
        self.mask = self.facts.mask(device.cores)
        if self.mask is not None:
            clusters = ", ".join(map(str, self.facts.clusters))
            device.require_cores(self.mask.bit_count(), f", a mask out of {clusters}" if clusters else "")
        self.runtime: Runtime | None = None
        self.version = ""  # of the runtime, as it says itself on the device

    def look(self) -> None:
        """Ask the device about itself, as it is now."""
        self.facts: Facts = read_facts(self.link.ask(QUESTION, check=False))

    def warn(self) -> None:
        """Say what will spoil the numbers, before it does."""
        for concern in self.facts.concerns():
            log.warning("%s: %s", self.link.name, concern)

    # ---- how the runner is called there ----

    @property
    def folder(self) -> str:
        """Of the runtime, named after what is in it."""
        assert self.runtime is not None, "install() comes first"
        return f"{self.settings.base}/rt-{self.runtime.digest[:12]}"

    @property
    def lock(self) -> str:
        return f"{self.settings.base}/lock"

    def runner(self, *arguments: str) -> str:
        """The command line of the runner."""
        assert self.runtime is not None
        return shlex.join([*self.runtime.runner(self.folder), *arguments])

    @property
    def how(self) -> Sequence[str]:
        """What decides how the runtime computes."""
        cores = [] if self.mask is None else ["--cpus", f"{self.mask:x}"]
        library, threads = f"{self.folder}/libonnxruntime.so", str(self.device.threads)
        return ["--lib", library, "--threads", threads, "--provider", self.device.provider, *cores]

    @property
    def holder(self) -> str:
        """The command that prints who measures on the device: "PID RESULTS", or nothing."""
        return self.runner("--lock", self.lock, "--holder")

    @property
    def stopping(self) -> str:
        """The command that ends whoever measures on the device."""
        return self.runner("--lock", self.lock, "--stop")

    # ---- what is put there ----

    def install(self, runtime: Runtime) -> None:
        """The runtime under its hash, once for a device; then a known computation, before any number is believed."""
        pages = self.facts.page_bytes or 4096
        if pages > 4096 and page_alignment(runtime.files["libonnxruntime.so"]) < pages:
            raise DeviceUnavailable(
                f"{self.link.name} has pages of {pages // 1024} KiB and this runtime is made for smaller ones; "
                "use onnxruntime 1.20 or later"
            )
        self.runtime = runtime
        base, folder = self.settings.base, self.folder
        # What a host left that died: settings noted as changed while nobody measures, files that nobody came back for.
        restore = f"[ -f {base}/saved ] && sh {folder}/run.sh restore {base}"
        old = f"find {base} -mindepth 1 -maxdepth 1 -mtime +1 ! -name 'rt-*' ! -name lock -exec rm -rf {{}} +"
        tidy = f"if ! {self.holder}; then {restore}; {old}; fi >/dev/null 2>&1"
        present = self.link.ask(f"mkdir -p {base}; if [ -e {folder} ]; then echo present; {tidy}; fi", check=False).strip()
        if present != "present":
            with tempfile.TemporaryDirectory() as scratch:
                tar = Path(scratch) / "runtime.tar"
                runtime.pack(tar, {"probe.onnx": probe.model(), "probe.bin": probe.INPUT.tobytes()})
                log.info("%s: copying the runtime (%.0f MB)", self.link.name, tar.stat().st_size / 1e6)
                self._unpack(tar, folder)
        self._prove()

    def _unpack(self, tar: Path, folder: str) -> None:
        """The contents of an archive as a folder, which has its name only when it is complete."""
        self.link.send(tar, f"{folder}.tar")
        unpack = (
            f"rm -rf {folder}.new && mkdir {folder}.new && cd {folder}.new && tar xf {folder}.tar && mv {folder}.new {folder}"
        )
        try:
            self.link.ask(f"[ -e {folder} ] || {{ {unpack}; }} && rm -f {folder}.tar", timeout_s=300)
        except CommandFailed as failed:
            raise DeviceUnavailable(f"{self.link.name}: unpacking {tar.name}: {failed}; make room on the device") from failed

    def _prove(self) -> None:
        """Compare the device's answer to a small known network with the one worked out by hand."""
        try:
            answer, data = self._evaluate(f"{self.folder}/probe.onnx", f"{self.folder}/probe.bin", None)
        except CommandFailed as failed:
            hint = FATAL.get(failed.code, "the runtime crashed there")
            raise DeviceUnavailable(f"{self.link.name}: the test computation failed: {hint} ({failed})") from failed
        worst = float(np.max(np.abs(np.frombuffer(data, "<f4") - probe.expected()))) if len(data) == 12 else math.inf
        if not worst <= probe.TOLERANCE:
            raise DeviceUnavailable(
                f"{self.link.name}: the runtime computes wrongly (off by {worst:.3g} on a known network); "
                f"no number of it is used; try provider cpu or another runtime"
            )
        self.version = answer["runtime"]
        self._prove_provider()
        if self.settings.fixed_clocks:
            self._prove_fixed_clocks()

    def _prove_fixed_clocks(self) -> None:
        """A phone without that mode says so only when it is switched on, which run.sh does without looking back."""
        switch = "cmd power set-fixed-performance-mode-enabled"
        try:  # not while somebody measures, perhaps in that mode; and to its end, whatever becomes of the link
            self.link.ask(f"trap '' HUP; {self.holder} || {{ {switch} true && {switch} false; }}")
        except CommandFailed as failed:
            raise DeviceUnavailable(
                f"{self.link.name}: it refuses Android's fixed-performance mode ({failed}); leave out --mode"
            ) from failed

    def _prove_provider(self) -> None:
        """A provider that takes no node leaves all of them to the processor without a word, as NNAPI does without a driver."""
        if self.device.provider == "cpu":
            return
        with tempfile.TemporaryDirectory() as scratch, self._scratch() as folder:
            which = ("--profile", f"{self.folder}/probe.onnx", "--out", f"{folder}/profile", "--runs", "1")
            said = self.link.ask(self.runner(*self.how, *which), timeout_s=600)
            profile = Path(scratch) / "profile.json"
            self.link.fetch(said.strip().splitlines()[-1], profile)
            events = json.loads(profile.read_text(encoding="utf-8"))
        if all(event["args"].get("provider") in (None, "CPUExecutionProvider") for event in events if event.get("cat") == "Node"):
            raise DeviceUnavailable(
                f"{self.link.name}: provider {self.device.provider} does not answer there: it left every node of the test "
                "network to the processor; use --provider cpu or xnnpack"
            )

    # ---- computing ----

    def run(self, model: Model, inputs: Mapping[str, object]) -> list[object]:
        """The model's outputs for any number of batches of `device.batch`: one copy there, one run of the runner."""
        graph = parse(model).graph
        constants = {tensor.name for tensor in graph.initializer}
        values = [value for value in graph.input if value.name not in constants]
        given = batches(model.key, values, inputs, self.device.batch)
        with tempfile.TemporaryDirectory() as scratch, self._scratch() as folder:
            content = Path(scratch) / "in.bin"
            with content.open("wb") as file:
                for array in given:
                    array.tofile(file)
            self._put(Path(scratch), model.onnx, f"{folder}/model.onnx")
            self.link.send(content, f"{folder}/in.bin")
            with self._answers_for(model):
                answer, data = self._evaluate(f"{folder}/model.onnx", f"{folder}/in.bin", given.dims)
        return split_outputs(data, answer)

    @contextmanager
    def _scratch(self) -> Iterator[str]:
        """A folder on the device for as long as it is needed."""
        folder = f"{self.settings.base}/run-{uuid.uuid4().hex[:12]}"
        self.link.ask(f"mkdir -p {folder}", check=False)  # where that fails, the copy into it says why
        try:
            yield folder
        finally:
            self.link.tidy(f"rm -rf {folder}")

    def _put(self, scratch: Path, content: bytes, remote: str) -> None:
        local = scratch / Path(remote).name
        local.write_bytes(content)
        self.link.send(local, remote)

    @contextmanager
    def _answers_for(self, model: Model) -> Iterator[None]:
        try:
            yield
        except CommandFailed as failed:
            raise ModelRejected(f"{model.key}: {self.link.name} could not run it: {failed}") from failed

    def _evaluate(self, model: str, inputs: str, dims: str | None) -> tuple[dict[str, Any], bytes]:
        output = f"{self.settings.base}/out-{uuid.uuid4().hex[:12]}.bin"
        which = ("--eval", model, "--in", inputs, "--out", output, *(("--dims", dims) if dims else ()))
        try:
            said = self.link.ask(self.runner(*self.how, *which), timeout_s=600)
            with tempfile.TemporaryDirectory() as scratch:
                local = Path(scratch) / "out.bin"
                self.link.fetch(output, local)
                return json.loads(said.strip().splitlines()[-1]), local.read_bytes()
        finally:
            self.link.tidy(f"rm -f {output}")

    # ---- measuring ----

    def visits(self, models: Sequence[Model], plan: Plan) -> Iterator[Visit]:
        """The plan's visits in its order, each exactly once."""
        with tempfile.TemporaryDirectory() as scratch:
            package = pack(Path(scratch) / "jobs.tar", models, plan, self.device.batch)
            folder = f"{self.settings.base}/job-{uuid.uuid4().hex[:12]}"
            job = Job(self, package, plan, [model.key for model in models], folder)
            log.info("%s: copying %d models (%.1f MB)", self.link.name, len(models), package.tar.stat().st_size / 1e6)
            try:
                self._unpack(package.tar, folder)
                yield from job.visits()
            finally:
                job.end()
