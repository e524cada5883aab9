"""A TCP proxy that writes down what passes: the raw bytes of real sessions become test vectors."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

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
