"""adb's transport as a device speaks it: packets over a socket, authentication, streams of opened services."""

import base64
import contextlib
import os
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.phone.daemon import Phone

CNXN, AUTH, OPEN, OKAY, WRTE, CLSE = (
    int.from_bytes(name, "little") for name in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"WRTE", b"CLSE")
)
AUTH_TOKEN, AUTH_SIGNATURE, AUTH_KEY = 1, 2, 3
VERSION = 0x01000001  # the first that sends no checksums
MAX_DATA = 1 << 20
FEATURES = "shell_v2,cmd,stat_v2,ls_v2,fixed_push_mkdir"
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

    def accept(self) -> None:
        self.link.send(OKAY, self.local, self.remote)

    def refuse(self) -> None:
        self.closed = self.said_close = True
        self.link.send(CLSE, 0, self.remote)

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
            threading.Thread(target=self.phone.serve, args=(stream, data.rstrip(b"\0").decode()), daemon=True).start()
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
