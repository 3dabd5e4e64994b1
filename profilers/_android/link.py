"""A link to a device that may break at any moment: commands with a proof of their end, files under their hash."""

import hashlib
import logging
import re
import secrets
import shlex
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from profilers.errors import DeviceUnavailable

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

_HOPELESS = re.compile(r"no space left|read-only file system|permission denied|operation not permitted|quota exceeded", re.I)


class LinkLost(Exception):
    """The device did not answer; what was asked may or may not have happened there."""


class CommandFailed(Exception):
    """The device answered, and the command had failed."""

    def __init__(self, command: str, code: int, said: str) -> None:
        lines = said.strip().splitlines() or ["no message"]
        own = [line for line in lines if line.startswith("dnarun:")]  # the runtime, too, may have something to say
        super().__init__(f"{(own or lines)[-1][:300]} (exit {code})")
        self.command, self.code = command, code


class Link(ABC):
    """What adb and ssh have in common. Every command given to it must be safe to say twice: an answer can be lost.

    `calls` counts the programs started on the host, which is what a slow cable is slow at.
    """

    def __init__(self, name: str, patience_s: float) -> None:
        self.name, self.patience_s, self.calls = name, patience_s, 0
        self.gone = False  # given up

    # what a kind of link provides

    @abstractmethod
    def shell_command(self, command: str) -> Sequence[str]:
        """The program and arguments that run `command` on the device."""

    @abstractmethod
    def send_command(self, local: Path, remote: str) -> Sequence[str]:
        """Those that copy a file there."""

    @abstractmethod
    def fetch_command(self, remote: str, local: Path) -> Sequence[str]:
        """Those that copy a file back."""

    def reconnect(self) -> str | None:
        """Try to come back; what stands in the way, in words for the user, or None."""
        return None

    # what is built on it

    def ask(self, command: str, check: bool = True, timeout_s: float = 60) -> str:
        """What a command prints on the device, asked again over a lost link. Raises CommandFailed."""
        return self._insist(lambda: self._ask_once(command, check, timeout_s))

    def tidy(self, command: str) -> None:
        """Ask for what cleans up, unless nobody is there any more: whoever gave up has waited long enough."""
        if not self.gone:
            self.ask(command, check=False)

    def send(self, local: Path, remote: str) -> None:
        """Copy a file; it gets its name only when it is there to the last byte, so a name that exists is never sent again.

        adb reports "1 file pushed" for a copy that the cable cut short, so the device computes the hash itself.
        """
        digest = hashlib.sha256(local.read_bytes()).hexdigest()
        part, final = shlex.quote(remote + ".part"), shlex.quote(remote)
        whole = f'[ "$(sha256sum < {part} | cut -d" " -f1)" = {digest} ] && mv {part} {final}'

        def once() -> None:
            self._copy(self.send_command(local, remote + ".part"), f"copying {local.name}")
            try:
                self._ask_once(f"[ -e {final} ] || {{ {whole}; }}", True, 300)
            except CommandFailed:
                raise LinkLost(f"{local.name} did not arrive whole") from None

        self._insist(once)

    def fetch(self, remote: str, local: Path) -> None:
        """Copy a file from the device."""
        self._insist(lambda: self._copy(self.fetch_command(remote, local), f"fetching {remote}"))

    def _insist(self, action: Callable[[], Answer]) -> Answer:
        for _ in range(8):
            try:
                return action()
            except LinkLost as lost:
                log.warning("%s: link lost (%s); waiting for it", self.name, lost)
                self.wait()
        raise DeviceUnavailable(f"{self.name}: the link breaks again and again; try another cable or port")

    def wait(self) -> None:
        """Return when the device answers; DeviceUnavailable when it does not in `patience_s`."""
        end, told = time.monotonic() + self.patience_s, None
        while True:
            obstacle = self.reconnect()
            if obstacle is None:
                try:
                    self._ask_once("true", True, 15)
                    self.gone = False
                    return
                except LinkLost as lost:
                    obstacle = f"no answer ({lost})"
            if obstacle != told:
                log.warning("%s: %s", self.name, obstacle)
                told = obstacle
            if time.monotonic() > end:
                self.gone = True
                raise DeviceUnavailable(f"{self.name}: {obstacle}; gave up after {self.patience_s:.0f} s")
            time.sleep(0.5)

    def _ask_once(self, command: str, check: bool, timeout_s: float) -> str:
        # The last line proves that the command came to its end, whatever a broken link makes the exit code look like.
        proof = secrets.token_hex(6)
        done = self._start(self.shell_command(f'(\n{command}\n)\ncode=$?; echo; echo "{proof}:$code"'), timeout_s)
        text = done.stdout.decode("utf-8", "replace").replace("\r\n", "\n")
        body, found, code = text.rpartition(f"\n{proof}:")
        errors = done.stderr.decode("utf-8", "replace").strip()
        if not found:
            raise LinkLost((errors or text.strip() or "no answer").splitlines()[-1][:160])
        if check and int(code) != 0:
            raise CommandFailed(command, int(code), f"{body.strip()}\n{errors}")
        return body

    def _copy(self, command: Sequence[str], what: str) -> None:
        done = self._start(command, 600)
        if done.returncode:
            said = (done.stderr + done.stdout).decode("utf-8", "replace").strip()
            hopeless = [line for line in said.splitlines() if _HOPELESS.search(line)]
            if hopeless:  # adb may print "1 file pushed" below it
                raise DeviceUnavailable(f"{self.name}: {what}: {hopeless[0][:200]}; make room on the device and try again")
            lines = [line for line in said.splitlines() if "error" in line] or said.splitlines() or ["no answer"]
            raise LinkLost(lines[-1][:160])

    def _start(self, command: Sequence[str], timeout_s: float) -> "subprocess.CompletedProcess[bytes]":
        self.calls += 1
        try:
            return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise LinkLost(f"no answer in {timeout_s:.0f} s") from None
        except OSError as error:
            raise DeviceUnavailable(f"{command[0]} cannot be started: {error.strerror}") from error
