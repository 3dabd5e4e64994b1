"""What an adb client can ask a device for: commands and files."""

import contextlib
import os
import signal
import stat
import struct
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from tests.phone.transport import Stream

if TYPE_CHECKING:
    from tests.phone.daemon import Phone

STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)  # packets of shell v2


def shell(stream: Stream, phone: "Phone", command: str, v2: bool) -> None:
    """Run a command; with `v2` its output, errors and exit code are told apart."""
    lose = phone.loses_answer_to(command)
    process = subprocess.Popen(
        [*phone.shell, command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if v2 else subprocess.STDOUT,
        start_new_session=True,
    )

    def pump(descriptor: int, packet: int) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(descriptor, 1 << 16):
                if not lose:
                    stream.write(struct.pack("<BI", packet, len(data)) + data if v2 else data)

    def feed() -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            while True:
                if v2:
                    head = stream.read(5)
                    if len(head) < 5:
                        break
                    packet, length = struct.unpack("<BI", head)
                    data = stream.read(length)
                    if packet == CLOSE_STDIN:
                        process.stdin.close()
                    if packet != STDIN:
                        continue
                elif not (data := stream.read_some()):
                    break
                process.stdin.write(data)
                process.stdin.flush()
        if process.poll() is None:  # the client or the link went away: what adbd does then
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGHUP)

    assert process.stdout is not None
    pumps = [threading.Thread(target=pump, args=(process.stdout.fileno(), STDOUT), daemon=True)]
    if process.stderr is not None:
        pumps.append(threading.Thread(target=pump, args=(process.stderr.fileno(), STDERR), daemon=True))
    threading.Thread(target=feed, daemon=True).start()
    for thread in pumps:
        thread.start()
    for thread in pumps:
        thread.join()
    code = process.wait()
    if lose:
        stream.link.drop()
    elif v2:
        stream.write(struct.pack("<BIB", EXIT, 1, (code if code >= 0 else 128 - code) & 0xFF))


class Sync:
    """The file service."""

    def __init__(self, stream: Stream, phone: "Phone") -> None:
        self.stream, self.phone = stream, phone

    def run(self) -> None:
        services = {
            b"STAT": self.stat,
            b"LST2": self.lstat2,
            b"STA2": self.stat2,
            b"SEND": self.receive,
            b"RECV": self.give,
        }
        while len(head := self.stream.read(8)) == 8 and head[:4] != b"QUIT":
            path = self.stream.read(int.from_bytes(head[4:], "little")).decode()
            if head[:4] in services:
                services[head[:4]](path)
            else:
                self.fail(f"unknown request {head[:4]!r}")

    def fail(self, message: str) -> None:
        self.stream.write(b"FAIL" + struct.pack("<I", len(message)) + message.encode())

    def real(self, path: str) -> Path:
        return self.phone.root / path.lstrip("/")

    def stat(self, path: str) -> None:
        try:
            info = self.real(path).lstat()
            self.stream.write(b"STAT" + struct.pack("<III", info.st_mode, info.st_size & 0xFFFFFFFF, int(info.st_mtime)))
        except OSError:
            self.stream.write(b"STAT" + bytes(12))

    def stat2(self, path: str, follow: bool = True, name: bytes = b"STA2") -> None:
        try:
            info = self.real(path).stat() if follow else self.real(path).lstat()
            ids = (0, info.st_dev, info.st_ino, info.st_mode, info.st_nlink, 2000, 2000, info.st_size)
            self.stream.write(
                name + struct.pack("<IQQIIIIQqqq", *ids, *(int(t) for t in (info.st_atime, info.st_mtime, info.st_ctime)))
            )
        except OSError as error:
            self.stream.write(name + struct.pack("<IQQIIIIQqqq", error.errno or 5, *[0] * 10))

    def lstat2(self, path: str) -> None:
        self.stat2(path, follow=False, name=b"LST2")

    def receive(self, specification: str) -> None:
        path, _, mode = specification.rpartition(",")
        file, trouble, modified = None, None, 0
        try:
            self.real(path).parent.mkdir(parents=True, exist_ok=True)
            file = self.real(path).open("wb")
        except OSError as error:
            trouble = f"couldn't create file: {error.strerror}"
        with contextlib.ExitStack() as stack:
            if file:
                stack.enter_context(file)
            while True:
                head = self.stream.read(8)
                if head[:4] == b"DONE":
                    modified = int.from_bytes(head[4:], "little")
                    break
                data = self.stream.read(int.from_bytes(head[4:], "little")) if head[:4] == b"DATA" else b""
                if not data:
                    return  # the link broke: what came so far stays, as on a phone
                if self.phone.full:
                    trouble = trouble or "write failed: No space left on device"
                if file and not trouble:
                    file.write(data)
        if trouble:
            self.fail(trouble)
            return
        os.chmod(self.real(path), stat.S_IMODE(int(mode)) & 0o770 | 0o600)
        os.utime(self.real(path), (modified, modified))
        self.stream.write(b"OKAY" + bytes(4))

    def give(self, path: str) -> None:
        try:
            with self.real(path).open("rb") as file:
                while data := file.read(1 << 16):
                    self.stream.write(b"DATA" + struct.pack("<I", len(data)) + data)
        except OSError as error:
            self.fail(f"open failed: {error.strerror}")
            return
        self.stream.write(b"DONE" + bytes(4))
