"""A run of the runner on a device: started once, followed over a link that may break, judged, repaired and ended."""

import json
import logging
import math
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from profilers._android.facts import Thermal, read_thermal, sections
from profilers._android.gate import Gate, Reading
from profilers._android.link import CommandFailed
from profilers._android.package import Package
from profilers.errors import DeviceUnavailable, ModelRejected
from profilers.estimate import Visit
from profilers.protocol import Plan

if TYPE_CHECKING:
    from profilers._android.session import Session

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


class Job:
    """`folder` on the device holds the unpacked package, and what the runner writes beside it."""

    def __init__(self, session: "Session", package: Package, plan: Plan, keys: Sequence[str], folder: str) -> None:
        self.session, self.link = session, session.link
        self.package, self.plan, self.keys, self.folder = package, plan, keys, folder
        self.results = f"{folder}/results.jsonl"

    def _start_command(self, start: int) -> str:
        """Safe to say twice: a run that is under way is left alone, and its lock guards what remains."""
        session, plan = self.session, self.plan
        memory_mb = session.facts.memory_mb // 4 if session.facts.memory_mb else 512
        runner = session.runner(
            *(*session.how, "--plan", "plan.txt", "--out", self.results),
            *("--from", str(start), "--runs", str(plan.runs), "--visit-ms", str(plan.visit_ms)),
            *("--max-runs", str(plan.max_runs), "--keep-mb", str(memory_mb)),
        )
        changes = f"{int(session.settings.stay_on)} {int(session.settings.fixed_clocks)}"
        hold = session.runner("--lock", session.lock, "--out", self.results, "--hold")
        measure = f"{hold} sh {session.folder}/run.sh measure {session.settings.base} {self.folder} {changes} {runner}"
        return (
            f'case "$({session.holder})" in *" {self.results}") ;; '
            f'"") cd {self.folder} && rm -f exit && (nohup setsid {measure} >>log 2>&1 </dev/null &) ;; *) exit 6 ;; esac'
        )

    def _start(self, start: int) -> None:
        try:
            self.link.ask(self._start_command(start))
        except CommandFailed as failed:
            if failed.code != 6:
                raise DeviceUnavailable(f"{self.link.name}: the run could not be started: {failed}") from failed
            raise DeviceUnavailable(
                f"{self.link.name}: another measurement is running there and would spoil this one; wait for its end, or end it: "
                f"{shlex.join(self.link.shell_command(self.session.stopping))}"
            ) from failed

    def _poll(self, offset: int, wait_s: float) -> "Poll":
        """What is new since the byte `offset`; waits on the device, which knows first when the run has ended."""
        naps = min(20, math.ceil(wait_s / 0.25))  # few enough to leave the cores alone
        nap = f"sleep {wait_s / max(1, naps):.2g}"
        text = self.link.ask(
            f"n=0; while [ $n -lt {naps} ] && [ ! -f {self.folder}/exit ]; do {nap} || sleep 1; "
            f'n=$((n+1)); done; echo "== holder"; {self.session.holder}; echo "== exit"; cat {self.folder}/exit 2>/dev/null; '
            f'echo "== log"; [ -f {self.folder}/exit ] && tail -n 3 {self.folder}/log; echo; '
            f'echo "== thermal"; dumpsys thermalservice 2>/dev/null; echo; '
            f'echo "== results"; tail -c +{offset + 1} {self.results} 2>/dev/null | head -c {POLL_BYTES}',
            check=False,
            timeout_s=wait_s * 3 + 60,
        )
        parts = sections(text)
        code = parts.get("exit", "").strip()
        whole, _, _ = parts.get("results", "").rpartition("\n")  # the line being written now is read next time
        return Poll(
            alive=self.results in parts.get("holder", ""),
            exit=int(code) if code else None,
            log=parts.get("log", "").strip(),
            thermal=read_thermal(parts.get("thermal", "")),
            lines=whole.split("\n") if whole else [],
            bytes=len(whole.encode()) + 1 if whole else 0,
        )

    def visits(self) -> Iterator[Visit]:
        """Every visit exactly once, a segment at a time as it has proved sound."""
        facts = self.session.facts
        gate = Gate(self.session.settings.limits, self.plan.anchor_keys(self.keys), facts.thermal.skin_c)
        if gate.heat(facts.thermal):
            self._cool_down(gate)
        total = len(self.package.visits)
        accepted = offset = spoilt = 0
        began = time.monotonic()
        self._start(0)
        starts = 1  # since the last visit that came
        while accepted < total:
            # a part of the time spent: a long run is asked rarely, so the number of questions hardly grows with its length
            wait_s = min(max(0.2 * (time.monotonic() - began), 0.5), self.session.settings.longest_poll_s)
            poll = self._poll(offset, wait_s)
            offset += poll.bytes
            segment = self._read(poll.lines, accepted)
            complaint = gate.complaint(poll.thermal, segment)
            if complaint and spoilt >= self.session.settings.limits.repeats and not gate.heat(poll.thermal):
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
                offset = self._stop(offset)
                self._cool_down(gate)
                self._start(accepted)
                continue
            for reading in segment:
                accepted = reading.number + 1  # first: the caller may stop here
                yield reading.visit
            if segment:
                spoilt, starts = 0, 1
                self._report(accepted, total, began)
            elif accepted < total and not poll.alive:
                starts = self._restart(poll, accepted, starts)

    def _stop(self, offset: int) -> int:
        """End the runner and pass over what it wrote since; the byte where the next one will begin."""
        self.link.ask(self.session.stopping, check=False)
        while True:
            passed = self._poll(offset, 0).bytes
            if not passed:
                return offset
            offset += passed

    def _restart(self, poll: "Poll", accepted: int, starts: int) -> int:
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
        self._start(accepted)
        return starts + 1

    def _read(self, lines: Sequence[str], accepted: int) -> list[Reading]:
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
            key, round_number = self.package.visits[number]
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

    def end(self) -> None:
        """Stop our run, if it is still there, wait until it has put back what it changed, and take its files away."""
        stop = f'case "$({self.session.holder})" in *" {self.folder}/"*) {self.session.stopping} ;; esac'
        self.link.tidy(f"{stop}; rm -rf {self.folder} {self.folder}.*")


@dataclass(frozen=True)
class Poll:
    """What the device answered about a run."""

    alive: bool
    exit: int | None  # of the runner, once it has ended
    log: str
    thermal: Thermal
    lines: Sequence[str]
    bytes: int  # that `lines` took in the file
