"""Looking at the wire: a TCP proxy that writes down what passes, and a bare websocket. Recorded sessions become test vectors."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from benchmarks.children import CheckFailed

Side = Literal["client", "server"]


@dataclass(slots=True)
class Session:
    """One connection: what came from which side, when (seconds since it began)."""

    began_s: float = field(default_factory=time.monotonic)
    events: list[tuple[float, Side, bytes]] = field(default_factory=list)
    ended_s: float | None = None

    def lasted_s(self) -> float:
        """How long the connection was up."""
        return (time.monotonic() if self.ended_s is None else self.ended_s) - self.began_s

    def data(self, side: Side) -> bytes:
        """Everything that one side sent."""
        return b"".join(data for _, who, data in self.events if who == side)

    def write(self, path: Path, about: str) -> None:
        """As JSON: a sentence, and the pieces in order, in hex."""
        pieces = [{"at_ms": round(at_s * 1000), "from": who, "hex": data.hex()} for at_s, who, data in self.events]
        path.write_text(json.dumps({"about": about, "pieces": pieces}, indent=1) + "\n")


class Wiretap:
    """Listens at one address and passes connections on to another. With ``keep`` false only times are remembered."""

    def __init__(self, listen: tuple[str, int], target: tuple[str, int], keep: bool = True) -> None:
        self._listener = socket.create_server(listen)
        self._target = target
        self._keep = keep
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self.sessions: list[Session] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for each in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):  # it was closed before
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            session = Session()
            with self._lock:
                self.sessions.append(session)
                self._sockets += [near, far]
            threading.Thread(target=self._pump, args=(session, "client", near, far), daemon=True).start()
            threading.Thread(target=self._pump, args=(session, "server", far, near), daemon=True).start()

    def _pump(self, session: Session, side: Side, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                with self._lock:
                    session.events.append((time.monotonic() - session.began_s, side, data if self._keep else b""))
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # a reset ends the session as a goodbye does
        with self._lock:
            session.ended_s = session.ended_s or time.monotonic()


class BareLink:
    """A bare websocket to a daemon, after the handshake."""

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port), timeout=5)
        key = base64.b64encode(os.urandom(16)).decode("ascii")
        self._socket.sendall(
            f"GET / HTTP/1.1\r\nHost: ciruela\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {key}\r\n"
            "Sec-WebSocket-Version: 13\r\n\r\n".encode("ascii")
        )
        head = b""
        while b"\r\n\r\n" not in head:
            data = self._socket.recv(4096)
            if not data:
                raise CheckFailed(f"closed in the handshake: {head!r}")
            head += data
        self.head = head.split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send raw bytes."""
        self._socket.sendall(data)

    def wait(self, start: bytes, patience_s: float) -> float | None:
        """Seconds until bytes that start so, or None."""
        began_s = time.monotonic()
        self._socket.settimeout(patience_s)
        try:
            data = self._socket.recv(4096)
        except TimeoutError:
            return None
        if not data.startswith(start):
            raise CheckFailed(f"unexpected bytes {data!r}")
        return time.monotonic() - began_s

    def wait_end(self, patience_s: float) -> float | None:
        """Seconds until the connection is closed, or None."""
        began_s = time.monotonic()
        self._socket.settimeout(patience_s)
        try:
            while self._socket.recv(4096):
                pass
        except TimeoutError:
            return None
        except ConnectionError:
            pass  # a reset is an end
        return time.monotonic() - began_s


def control_frames(session: Session) -> str:
    """How many pings and pongs passed. Frames are walked through, not guessed."""
    found = []
    sides: tuple[Side, ...] = ("client", "server")
    for side in sides:
        data = session.data(side).partition(b"\r\n\r\n")[2]
        pings = pongs = at = 0
        while at + 2 <= len(data):
            opcode, masked, size = data[at] & 15, data[at + 1] & 0x80, data[at + 1] & 127
            width = {126: 2, 127: 8}.get(size, 0)
            if width:
                size = int.from_bytes(data[at + 2 : at + 2 + width], "big")
            at += 2 + width + (4 if masked else 0) + size
            pings, pongs = pings + (opcode == 9), pongs + (opcode == 10)
        found.append(f"{side} {pings} pings {pongs} pongs")
    return ", ".join(found)
