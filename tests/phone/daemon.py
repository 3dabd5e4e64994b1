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
import collections
import contextlib
import json
import os
import shlex
import signal
import socket
import threading
import time
from pathlib import Path

from tests.phone.services import Sync, shell
from tests.phone.transport import Link, Stream


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

    def serve(self, stream: Stream, service: str) -> None:
        """An opened stream, for as long as it lasts."""
        name, _, rest = service.partition(":")
        kind, *arguments = name.split(",")
        self.counts[kind] += 1
        try:
            if kind == "sync":
                stream.accept()
                Sync(stream, self).run()
            elif kind in ("shell", "exec"):
                stream.accept()
                shell(stream, self, rest, "v2" in arguments)
            else:
                stream.refuse()
            stream.close()
        except OSError:
            stream.close()

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

    def serve_links(self, listener: socket.socket) -> None:
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
        phone.serve_links(links)


if __name__ == "__main__":
    main()
