"""One measuring session on a phone or another device behind a link: put everything there, run, follow, repair, tidy up."""

import json
import logging
import math
import shlex
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from profilers._android import probe
from profilers._android.facts import QUESTION, Facts, Thermal, read_facts, read_thermal, sections
from profilers._android.gate import Gate, Limits, Reading
from profilers._android.link import CommandFailed, Link
from profilers._android.package import Package, pack, parse
from profilers._android.runtime import Runtime, page_alignment
from profilers.device import Device
from profilers.errors import DeviceUnavailable, ModelRejected
from profilers.protocol import Model, Plan, Visit

log = logging.getLogger(__name__)

POLL_BYTES = 8 << 20  # most that one answer brings, so that a lost one costs little
STARTS = 5  # of the runner without a visit in between
SPOILT = 20  # segments in a row
FATAL = {
    2: "the runner did not understand its call (a bug in this version)",
    3: "the runner refused its input",
    4: "the runtime does not start there",
    5: "a file could not be written there; make room on the device and try again",
    7: "the cores asked for are not given to us; choose others with --cores",
}
# ONNX's element types as numpy's
TYPES = {1: "f4", 2: "u1", 3: "i1", 4: "u2", 5: "i2", 6: "i4", 7: "i8", 9: "?", 10: "f2", 11: "f8", 12: "u4", 13: "u8"}


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
        self.facts: Facts = read_facts(link.ask(QUESTION, check=False))
        self.mask = self.facts.mask(device.cores)
        self.runtime: Runtime | None = None
        self.version = ""  # of the runtime, as it says itself on the device

    def warn(self) -> None:
        """Say what will spoil the numbers, before it does."""
        for concern in self.facts.concerns():
            log.warning("%s: %s", self.link.name, concern)

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
        base, folder = self.settings.base, self._folder
        # settings noted as changed while nobody measures: the phone was switched off in the middle of a run
        restore = f"sh {folder}/run.sh restore {base}"
        tidy = f"if [ -f {base}/saved ] && ! {self._holder} >/dev/null; then {restore}; fi"
        present = self.link.ask(f"mkdir -p {base}; if [ -e {folder} ]; then echo present; {tidy}; fi").strip()
        if present != "present":
            with tempfile.TemporaryDirectory() as scratch:
                tar = Path(scratch) / "runtime.tar"
                runtime.pack(tar, {"probe.onnx": probe.model(), "probe.bin": probe.INPUT.tobytes()})
                log.info("%s: copying the runtime (%.0f MB)", self.link.name, tar.stat().st_size / 1e6)
                self._unpack(tar, folder)
        self._prove()

    @property
    def _folder(self) -> str:
        assert self.runtime is not None, "install() comes first"
        return f"{self.settings.base}/rt-{self.runtime.digest[:12]}"

    def _unpack(self, tar: Path, folder: str) -> None:
        """The contents of an archive as a folder, which has its name only when it is complete."""
        self.link.send(tar, f"{folder}.tar")
        self.link.ask(
            f"[ -e {folder} ] || {{ rm -rf {folder}.new && mkdir {folder}.new && cd {folder}.new && tar xf {folder}.tar && "
            f"mv {folder}.new {folder}; }} && rm -f {folder}.tar",
            timeout_s=300,
        )

    def _runner(self, *arguments: str) -> str:
        """The command line of the runner on the device."""
        assert self.runtime is not None
        return shlex.join([*self.runtime.runner(self._folder), *arguments])

    @property
    def _lock(self) -> str:
        return f"{self.settings.base}/lock"

    def _how(self) -> list[str]:
        """What decides how the runtime computes."""
        cores = [] if self.mask is None else ["--cpus", f"{self.mask:x}"]
        return [
            "--lib",
            f"{self._folder}/libonnxruntime.so",
            "--threads",
            str(self.device.threads),
            "--provider",
            self.device.provider,
            *cores,
        ]

    def _prove(self) -> None:
        """Compare the device's answer to a small known network with the one worked out by hand."""
        try:
            answer, data = self._evaluate(f"{self._folder}/probe.onnx", f"{self._folder}/probe.bin", None)
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

    # ---- computing ----

    def run(self, model: Model, inputs: Mapping[str, object]) -> list[object]:
        """The model's outputs; a model of a fixed batch gets as many batches as the inputs hold."""
        graph = parse(model).graph
        constants = {tensor.name for tensor in graph.initializer}
        values = [value for value in graph.input if value.name not in constants]
        batches, dims = _batches(model.key, values, inputs)
        folder = f"{self.settings.base}/run-{uuid.uuid4().hex[:12]}"
        self.link.ask(f"mkdir -p {folder}")
        try:
            with tempfile.TemporaryDirectory() as scratch:
                for name, content in (("model.onnx", model.onnx), ("in.bin", batches)):
                    (Path(scratch) / name).write_bytes(content)
                    self.link.send(Path(scratch) / name, f"{folder}/{name}")
            answer, data = self._evaluate(f"{folder}/model.onnx", f"{folder}/in.bin", dims)
        except CommandFailed as failed:
            raise ModelRejected(f"{model.key}: {self.link.name} could not run it: {failed}") from failed
        finally:
            self.link.ask(f"rm -rf {folder}")
        return split_outputs(data, answer)

    def _evaluate(self, model: str, inputs: str, dims: str | None) -> tuple[dict[str, Any], bytes]:
        output = f"{self.settings.base}/out-{uuid.uuid4().hex[:12]}.bin"
        arguments = [
            *self._how(),
            "--eval",
            model,
            "--in",
            inputs,
            "--out",
            output,
            *(["--dims", dims] if dims else []),
        ]
        try:
            said = self.link.ask(self._runner(*arguments), timeout_s=600)
            with tempfile.TemporaryDirectory() as scratch:
                local = Path(scratch) / "out.bin"
                self.link.fetch(output, local)
                return json.loads(said.strip().splitlines()[-1]), local.read_bytes()
        finally:
            self.link.ask(f"rm -f {output}", check=False)

    # ---- measuring ----

    def visits(self, models: Sequence[Model], plan: Plan) -> Iterator[Visit]:
        """The plan's visits in its order, each exactly once, a segment at a time as it has proved sound."""
        with tempfile.TemporaryDirectory() as scratch:
            package = pack(Path(scratch) / "jobs.tar", models, plan, self.device.batch)
            run = f"{self.settings.base}/job-{uuid.uuid4().hex[:12]}"
            log.info("%s: copying %d models (%.1f MB)", self.link.name, len(models), package.tar.stat().st_size / 1e6)
            self._unpack(package.tar, run)
        try:
            yield from self._follow(run, package, plan, [model.key for model in models])
        finally:
            self._end(run)

    def _start_command(self, run: str, plan: Plan, start: int) -> str:
        """Safe to say twice: a run that is under way is left alone, and the runner's own lock guards what remains."""
        memory_mb = self.facts.memory_mb // 4 if self.facts.memory_mb else 512
        runner = self._runner(
            *(*self._how(), "--plan", "plan.txt", "--out", f"{run}/results.jsonl", "--lock", self._lock),
            *("--from", str(start), "--runs", str(plan.runs), "--visit-ms", str(plan.visit_ms)),
            *("--max-runs", str(plan.max_runs), "--keep-mb", str(memory_mb)),
        )
        changes = f"{int(self.settings.stay_on)} {int(self.settings.fixed_clocks)}"
        measure = f"sh {self._folder}/run.sh measure {self.settings.base} {run} {changes} {runner}"
        return (
            f'case "$({self._holder})" in *" {run}/results.jsonl") ;; '
            f'"") cd {run} && rm -f exit && (nohup setsid {measure} >/dev/null 2>&1 </dev/null &) ;; *) exit 6 ;; esac'
        )

    @property
    def _holder(self) -> str:
        """The command that prints who measures on the device: "PID RESULTS", or nothing."""
        return self._runner("--lock", self._lock, "--holder")

    def _start(self, run: str, plan: Plan, start: int) -> None:
        try:
            self.link.ask(self._start_command(run, plan, start))
        except CommandFailed as failed:
            if failed.code != 6:
                raise DeviceUnavailable(f"{self.link.name}: the run could not be started: {failed}") from failed
            raise DeviceUnavailable(
                f"{self.link.name}: another measurement is running there and would spoil this one; wait for its end, or end it "
                f"on the device: {self._runner('--lock', self._lock, '--stop')}"
            ) from failed

    def _poll(self, run: str, offset: int, wait_s: float) -> "Poll":
        """What is new since the byte `offset`; waits on the device, which knows first when the run has ended."""
        text = self.link.ask(
            f"n=0; while [ $n -lt {math.ceil(wait_s)} ] && [ ! -f {run}/exit ]; do sleep 1; n=$((n+1)); done; "
            f'echo "== holder"; {self._holder}; echo "== exit"; cat {run}/exit 2>/dev/null; '
            f'echo "== log"; tail -n 3 {run}/log 2>/dev/null; echo; echo "== thermal"; dumpsys thermalservice 2>/dev/null; echo; '
            f'echo "== results"; tail -c +{offset + 1} {run}/results.jsonl 2>/dev/null | head -c {POLL_BYTES}',
            check=False,
            timeout_s=wait_s * 3 + 60,
        )
        parts = sections(text)
        code = parts.get("exit", "").strip()
        whole, _, _ = parts.get("results", "").rpartition("\n")  # the line being written now is read next time
        return Poll(
            alive=f"{run}/results.jsonl" in parts.get("holder", ""),
            exit=int(code) if code else None,
            log=parts.get("log", "").strip(),
            thermal=read_thermal(parts.get("thermal", "")),
            lines=whole.split("\n") if whole else [],
            bytes=len(whole.encode()) + 1 if whole else 0,
        )

    def _follow(self, run: str, package: Package, plan: Plan, keys: Sequence[str]) -> Iterator[Visit]:
        gate = Gate(self.settings.limits, plan.anchor_keys(keys), self.facts.thermal.skin_c)
        if gate.heat(self.facts.thermal):
            self._cool_down(gate)
        total = len(package.visits)
        accepted = offset = spoilt = 0
        began = time.monotonic()
        self._start(run, plan, 0)
        starts = 1  # since the last visit that came
        while accepted < total:
            # a part of the time spent: a long run is asked rarely, so the number of questions hardly grows with its length
            wait_s = min(max(0.2 * (time.monotonic() - began), 1.0), self.settings.longest_poll_s)
            poll = self._poll(run, offset, wait_s)
            offset += poll.bytes
            segment = self._read(poll.lines, package, accepted)
            complaint = gate.complaint(poll.thermal, segment)
            if complaint and spoilt >= self.settings.limits.repeats and not gate.heat(poll.thermal):
                log.warning("%s: %s, again and again while it is cool: taken as its normal state", self.link.name, complaint)
                gate.accept_as_normal()
                complaint = gate.complaint(poll.thermal, segment)
            if complaint:
                spoilt += 1
                if spoilt > SPOILT:
                    raise DeviceUnavailable(
                        f"{self.link.name}: {complaint}, {spoilt} times in a row; let it cool, without its case, and run again"
                    )
                log.warning("%s: %s; %d visits are made again", self.link.name, complaint, len(segment))
                offset = self._stop(run, offset)
                self._cool_down(gate)
                self._start(run, plan, accepted)
                continue
            for reading in segment:
                accepted = reading.number + 1  # first: the caller may stop here
                yield reading.visit
            if segment:
                spoilt, starts = 0, 1
                self._report(accepted, total, began)
            elif accepted < total and not poll.alive:
                starts = self._restart(run, plan, poll, accepted, starts)

    def _stop(self, run: str, offset: int) -> int:
        """End the runner and pass over what it wrote since; the byte where the next one will begin."""
        self.link.ask(self._runner("--lock", self._lock, "--stop"), check=False)
        while True:
            passed = self._poll(run, offset, 0).bytes
            if not passed:
                return offset
            offset += passed

    def _restart(self, run: str, plan: Plan, poll: "Poll", accepted: int, starts: int) -> int:
        """The runner is gone before its work was done."""
        if poll.exit in FATAL:
            raise DeviceUnavailable(
                f"{self.link.name}: {FATAL[poll.exit]}: {poll.log.splitlines()[-1] if poll.log else 'no message'}"
            )
        if starts > STARTS:
            raise DeviceUnavailable(
                f"{self.link.name}: the runner ends again and again (exit {poll.exit}): {poll.log[-200:] or 'no message'}"
            )
        if poll.exit is not None or starts > 2:
            log.warning("%s: the runner is gone (exit %s); it goes on at visit %d", self.link.name, poll.exit, accepted)
        self._start(run, plan, accepted)
        return starts + 1

    def _read(self, lines: Sequence[str], package: Package, accepted: int) -> list[Reading]:
        """The visits of new lines, in the plan's order: a restarted runner may repeat some, which do not count twice."""
        readings: list[Reading] = []
        for line in lines:
            row = json.loads(line)
            if "visit" not in row:
                if "start" in row:
                    readings = [reading for reading in readings if reading.number < row["start"]]
                continue
            number, expected = row["visit"], accepted + len(readings)
            if number != expected:
                if number < expected:
                    continue
                raise DeviceUnavailable(
                    f"{self.link.name}: visit {expected} is missing from the results (found {number}); run again"
                )
            key, round_number = package.visits[number]
            if row["key"] != key or row["round"] != round_number:
                raise DeviceUnavailable(f"{self.link.name}: visit {number} is of {row['key']!r}, expected {key!r}; run again")
            if "error" in row:
                raise ModelRejected(f"{key}: {self.link.name}: {row['error'][:200]}")
            readings.append(Reading(number, Visit(key, round_number, tuple(row["ns"])), (row["khz"][0], row["khz"][1])))
        return readings

    def _cool_down(self, gate: Gate) -> None:
        """Wait until the device is well; a thermal sensor may be minutes late, so the anchors have the last word."""
        end = time.monotonic() + gate.limits.cool_s
        while True:
            thermal: Thermal = read_thermal(self.link.ask("dumpsys thermalservice 2>/dev/null; true"))
            if gate.cool(thermal):
                return
            if time.monotonic() > end:
                raise DeviceUnavailable(
                    f"{self.link.name}: still too warm after {gate.limits.cool_s / 60:.0f} minutes (status {thermal.status}, "
                    f"skin {thermal.skin_c} C); put it in a cooler place without its case and run again"
                )
            log.info("%s: cooling down (status %s, skin %s C)", self.link.name, thermal.status, thermal.skin_c)
            time.sleep(min(5.0, gate.limits.cool_s / 10))

    def _report(self, accepted: int, total: int, began: float) -> None:
        spent = time.monotonic() - began
        left = spent / accepted * (total - accepted)
        log.info("%s: %d of %d visits, %.0f s left", self.link.name, accepted, total, left)

    def _end(self, run: str) -> None:
        """Stop our run, if it is still there, and take its files away; what it changed it puts back itself."""
        stop = self._runner("--lock", self._lock, "--stop")
        self.link.ask(f'case "$({self._holder})" in *" {run}/"*) {stop} ;; esac; rm -rf {run} {run}.*', check=False)


@dataclass(frozen=True)
class Poll:
    """What the device answered about a run."""

    alive: bool
    exit: int | None  # of the runner, once it has ended
    log: str
    thermal: Thermal
    lines: Sequence[str]
    bytes: int  # that `lines` took in the file


def _batches(key: str, values: Sequence[Any], inputs: Mapping[str, object]) -> tuple[bytes, str]:
    """The inputs as the runner reads them: of each batch, every tensor in the model's order; and their dimensions."""
    arrays: list[np.ndarray] = []
    shapes: list[tuple[int, ...]] = []
    for value in values:
        if value.name not in inputs:
            raise ModelRejected(f"{key}: no input {value.name!r}; given: {', '.join(inputs) or 'none'}")
        tensor_type = value.type.tensor_type
        array = np.ascontiguousarray(inputs[value.name])
        if tensor_type.elem_type not in TYPES or array.dtype != np.dtype(TYPES[tensor_type.elem_type]):
            raise ModelRejected(f"{key}: input {value.name!r} is {array.dtype}; expected ONNX type {tensor_type.elem_type}")
        fixed = [size.dim_value if size.WhichOneof("value") == "dim_value" else None for size in tensor_type.shape.dim]
        batch = fixed[0] if fixed and fixed[0] else array.shape[0]
        if (
            array.ndim != len(fixed)
            or array.shape[0] % batch
            or any(f not in (None, s) for f, s in zip(fixed[1:], array.shape[1:], strict=True))
        ):
            raise ModelRejected(f"{key}: input {value.name!r} has shape {array.shape}; expected {fixed} (batches of {batch})")
        arrays.append(array)
        shapes.append((batch, *array.shape[1:]))
    counts = {len(array) // shape[0] for array, shape in zip(arrays, shapes, strict=True)}
    if len(counts) != 1:
        raise ModelRejected(f"{key}: the inputs hold different numbers of batches: {sorted(counts)}")
    pieces = [
        array[number * shape[0] : (number + 1) * shape[0]].tobytes()
        for number in range(counts.pop())
        for array, shape in zip(arrays, shapes, strict=True)
    ]
    return b"".join(pieces), ",".join("x".join(map(str, shape)) for shape in shapes)


def split_outputs(data: bytes, answer: Mapping[str, Any]) -> list[object]:
    """The arrays that the runner wrote one after another, batches joined along their first axis."""
    kinds = [(np.dtype(TYPES[output["type"]]).newbyteorder("<"), tuple(output["shape"])) for output in answer["outputs"]]
    parts: list[list[np.ndarray]] = [[] for _ in kinds]
    at = 0
    for _ in range(answer["batches"]):
        for place, (dtype, shape) in enumerate(kinds):
            count = math.prod(shape)
            parts[place].append(np.frombuffer(data, dtype, count, at).reshape(shape))
            at += count * dtype.itemsize
    return [pieces[0] if len(pieces) == 1 else np.concatenate(pieces) for pieces in parts]
