"""The device's end of adb for tests: a debug daemon that the real adb client talks to over a loopback port.

It speaks the transport with authentication and the services shell (v1 and v2), exec and sync; commands really run, by
the program given with --shell. What can go wrong with a phone is asked for on a second port, one JSON line a request:

    {"do": "drop"}                       the link breaks now
    {"do": "drop_after", "bytes": N}     ... after N more bytes from the host
    {"do": "refuse", "seconds": S}       no link can be made for a while
    {"do": "lose_answer", "to": TEXT}    the next command that contains TEXT runs, but its answer never arrives
    {"do": "full", "on": true}           no space left for files
    {"do": "allow"}                      the user taps "Allow USB debugging"
    {"do": "kill", "name": TEXT}         kill -9 for every program of that name
    {"do": "reboot"}                     kill -9 for everything, and the link breaks
    {"do": "counts"}                     how often each service was opened since the start

Not spoken: wireless pairing (TLS), compression, port forwarding; adb falls back without them.
"""

import argparse
import base64
import collections
import contextlib
import json
import os
import shlex
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
from pathlib import Path

CNXN, AUTH, OPEN, OKAY, WRTE, CLSE = (
    int.from_bytes(name, "little") for name in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"WRTE", b"CLSE")
)
AUTH_TOKEN, AUTH_SIGNATURE, AUTH_KEY = 1, 2, 3
VERSION = 0x01000001  # the first that sends no checksums
MAX_DATA = 1 << 20
FEATURES = "shell_v2,cmd,stat_v2,ls_v2,fixed_push_mkdir"
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)  # packets of shell v2
SHA1_PREFIX = bytes.fromhex("3021300906052b0e03021a05000414")  # of PKCS #1 v1.5 signatures


def signed(public_key: str, token: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of adb's RSA-2048 key, given as adbkey.pub has it, over the 20 bytes of the token."""
    raw = base64.b64decode(public_key.split()[0])
    modulus = int.from_bytes(raw[8 : 8 + 256], "little")
    exponent = int.from_bytes(raw[8 + 512 : 8 + 516], "little")
    wanted = b"\x00\x01" + b"\xff" * 218 + b"\x00" + SHA1_PREFIX + token
    return pow(int.from_bytes(signature, "big"), exponent, modulus) == int.from_bytes(wanted, "big")


class Stream:
    """One opened service: at most one packet on its way to the host, as adbd does without delayed acks."""

    def __init__(self, link: "Link", local: int, remote: int) -> None:
        self.link, self.local, self.remote = link, local, remote
        self.inbox = bytearray()
        self.changed = threading.Condition()
        self.acknowledged, self.closed, self.said_close = True, False, False

    def write(self, data: bytes) -> None:
        for at in range(0, len(data), self.link.max_data):
            with self.changed:
                self.changed.wait_for(lambda: self.acknowledged or self.closed)
                if self.closed:
                    raise BrokenPipeError
                self.acknowledged = False
            self.link.send(WRTE, self.local, self.remote, data[at : at + self.link.max_data])

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes, or fewer where the stream ends."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.inbox) >= count or self.closed)
            data = bytes(self.inbox[:count])
            del self.inbox[:count]
            return data

    def read_some(self) -> bytes:
        with self.changed:
            self.changed.wait_for(lambda: self.inbox or self.closed)
            data = bytes(self.inbox)
            self.inbox.clear()
            return data

    def packet(self, command: int, data: bytes) -> None:
        with self.changed:
            if command == OKAY:
                self.acknowledged = True
            elif command == WRTE:
                self.inbox += data
            else:
                self.closed = True
            self.changed.notify_all()

    def close(self, tell: bool = True) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
            tell, self.said_close = tell and not self.said_close, True
        if tell:
            self.link.send(CLSE, self.local, self.remote)


class Link(threading.Thread):
    """One connection of an adb server."""

    def __init__(self, sock: socket.socket, phone: "Phone") -> None:
        super().__init__(daemon=True)
        self.sock, self.phone = sock, phone
        self.max_data = 4096
        self.sending = threading.Lock()
        self.streams: dict[int, Stream] = {}
        self.shells: set[subprocess.Popen[bytes]] = set()
        self.last_local = 0
        self.dead = False

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        checksum = sum(data) & 0xFFFFFFFF if command in (AUTH, CNXN) else 0  # looked at until versions are agreed on
        head = struct.pack("<6I", command, first, second, len(data), checksum, command ^ 0xFFFFFFFF)
        try:
            with self.sending:
                self.sock.sendall(head + data)
        except OSError:
            self.drop()

    def receive(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            if not piece:
                raise ConnectionError("the host hung up")
            data += piece
            self.phone.spend(len(piece), self)
        return bytes(data)

    def receive_packet(self) -> tuple[int, int, int, bytes]:
        command, first, second, length, _, magic = struct.unpack("<6I", self.receive(24))
        if magic != command ^ 0xFFFFFFFF or length > MAX_DATA:
            raise ConnectionError("no packet of adb")
        return command, first, second, self.receive(length)

    def drop(self) -> None:
        if self.dead:
            return
        self.dead = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        for stream in list(self.streams.values()):
            stream.close(tell=False)
        for shell in list(self.shells):  # what adbd does to the shells of a lost link
            with contextlib.suppress(OSError):
                os.kill(shell.pid, signal.SIGHUP)

    def run(self) -> None:
        try:
            self.greet()
            while True:
                self.dispatch(*self.receive_packet())
        except (OSError, ConnectionError):
            self.drop()
        finally:
            self.phone.links.discard(self)

    def greet(self) -> None:
        command, _, max_data, _ = self.receive_packet()
        if command != CNXN:
            raise ConnectionError("the host did not introduce itself")
        self.max_data = min(max_data, MAX_DATA)
        if self.phone.key_file is not None:
            self.authenticate(self.phone.key_file)
        properties = "".join(f"{name}={value};" for name, value in self.phone.properties.items())
        self.send(CNXN, VERSION, MAX_DATA, f"device::{properties}features={FEATURES}".encode())

    def authenticate(self, key_file: Path) -> None:
        token = os.urandom(20)
        self.send(AUTH, AUTH_TOKEN, 0, token)
        while True:
            command, kind, _, data = self.receive_packet()
            if command != AUTH:
                raise ConnectionError("the host does not authenticate itself")
            if kind == AUTH_SIGNATURE:
                known = key_file.read_text().splitlines() if key_file.exists() else []
                if any(signed(key, token, data) for key in known):
                    return
                self.send(AUTH, AUTH_TOKEN, 0, token)
            elif kind == AUTH_KEY:  # the phone shows its dialogue and waits
                while not self.phone.allowed.wait(0.1):
                    if self.dead:
                        raise ConnectionError("gone before the user allowed it")
                with key_file.open("ab") as file:
                    file.write(data.rstrip(b"\0") + b"\n")
                return

    def dispatch(self, command: int, first: int, second: int, data: bytes) -> None:
        if command == OPEN:
            # never given twice: a late packet for a closed service must not reach another one
            self.last_local += 1
            stream = self.streams[self.last_local] = Stream(self, self.last_local, first)
            threading.Thread(target=self.serve, args=(stream, data.rstrip(b"\0").decode()), daemon=True).start()
            return
        known = self.streams.get(second)
        if known is None:
            if command != CLSE:
                self.send(CLSE, 0, first)
            return
        known.packet(command, data)
        if command == WRTE:
            self.send(OKAY, known.local, known.remote)
        if command == CLSE:
            self.streams.pop(second, None)
            known.close()

    def serve(self, stream: Stream, service: str) -> None:
        name, _, rest = service.partition(":")
        kind, *arguments = name.split(",")
        self.phone.counts[kind] += 1
        try:
            if kind not in ("sync", "shell", "exec"):
                self.send(CLSE, 0, stream.remote)
                stream.close(tell=False)
                return
            self.send(OKAY, stream.local, stream.remote)
            if kind == "sync":
                Sync(stream, self.phone).run()
            else:
                self.shell(stream, rest, "v2" in arguments)
            stream.close()
        except OSError:
            stream.close()

    def shell(self, stream: Stream, command: str, v2: bool) -> None:
        lose = self.phone.loses_answer_to(command)
        process = subprocess.Popen(
            [*self.phone.shell, command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if v2 else subprocess.STDOUT,
            start_new_session=True,
        )
        self.shells.add(process)

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
            if process.poll() is None:  # the client went away
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
        self.shells.discard(process)
        if lose:
            self.drop()
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


class Phone:
    """What the links share, and what can go wrong."""

    def __init__(self, root: Path, shell: list[str], key_file: Path | None, properties: dict[str, str]) -> None:
        self.root, self.shell, self.key_file, self.properties = root, shell, key_file, properties
        self.links: set[Link] = set()
        self.allowed = threading.Event()
        self.counts: collections.Counter[str] = collections.Counter()
        self.full = False
        self.bytes_left: int | None = None
        self.refuse_until = 0.0
        self.lost_answer: str | None = None

    def spend(self, count: int, link: Link) -> None:
        if self.bytes_left is not None:
            self.bytes_left -= count
            if self.bytes_left <= 0:
                self.bytes_left = None
                link.drop()

    def loses_answer_to(self, command: str) -> bool:
        if self.lost_answer is None or self.lost_answer not in command:
            return False
        self.lost_answer = None
        return True

    def drop(self) -> None:
        for link in list(self.links):
            link.drop()

    def kill(self, name: str | None) -> int:
        """Ends programs of this name, or all but ourselves and the first process (which stands for init)."""
        killed = 0
        for folder in (self.root / "proc").glob("[0-9]*"):
            pid = int(folder.name)
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                # under the emulator the program is one of its own arguments
                if pid not in (1, os.getpid()) and (name is None or any(Path(w.decode()).name == name for w in words[:3])):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        return killed

    def request(self, message: dict[str, object]) -> dict[str, object]:
        what, answer = message["do"], {"ok": True}
        if what == "drop":
            self.drop()
        elif what == "drop_after":
            self.bytes_left = int(str(message["bytes"]))
        elif what == "refuse":
            self.refuse_until = time.monotonic() + float(str(message["seconds"]))
        elif what == "lose_answer":
            self.lost_answer = str(message["to"])
        elif what == "full":
            self.full = bool(message["on"])
        elif what == "allow":
            self.allowed.set()
        elif what == "kill":
            return {"ok": True, "killed": self.kill(str(message["name"]))}
        elif what == "reboot":
            self.kill(None)
            self.drop()
        elif what == "counts":
            return {"ok": True, "links": len(self.links), **self.counts}
        else:
            return {"ok": False, "unknown": what}
        return dict(answer)

    def serve_requests(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rw") as file:
                for line in file:
                    file.write(json.dumps(self.request(json.loads(line))) + "\n")
                    file.flush()

    def serve(self, listener: socket.socket) -> None:
        while True:
            sock, _ = listener.accept()
            if time.monotonic() < self.refuse_until:
                sock.close()
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = Link(sock, self)
            self.links.add(link)
            link.start()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="the phone's files")
    parser.add_argument("--shell", default="sh -c", help="what runs a command, given as its last argument")
    parser.add_argument("--keys", type=Path, help="ask for authentication; the file keeps the keys allowed")
    parser.add_argument("--property", action="append", default=[], help="NAME=VALUE, said when a host connects")
    arguments = parser.parse_args()
    properties = dict(text.split("=", 1) for text in arguments.property)
    phone = Phone(arguments.root, shlex.split(arguments.shell), arguments.keys, properties)
    with socket.create_server(("127.0.0.1", 0)) as links, socket.create_server(("127.0.0.1", 0)) as requests:
        threading.Thread(target=phone.serve_requests, args=(requests,), daemon=True).start()
        print(json.dumps({"port": links.getsockname()[1], "control": requests.getsockname()[1]}), flush=True)
        phone.serve(links)


if __name__ == "__main__":
    main()
