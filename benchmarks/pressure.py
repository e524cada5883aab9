"""What weighs on a daemon while it works: idle websockets, connections that dribble, forged datagrams, one connection after the other."""

from __future__ import annotations

import base64
import os
import socket
import threading
import time
from types import TracebackType
from typing import Self

from ciruela.model.ids import image_id
from ciruela.proto.codec import encode_notification
from ciruela.proto.messages import PublishImage

PING = b"\x89\x80\0\0\0\0"
MASK = bytes(4)


def handshake(host: str, port: int) -> bytes:
    """The head of a websocket request as our client sends it."""
    key = base64.b64encode(os.urandom(16)).decode("ascii")
    lines = (
        "GET / HTTP/1.1",
        f"Host: {host}:{port}",
        "Connection: upgrade",
        "Upgrade: websocket",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: ciruela.v1",
    )
    return "\r\n".join((*lines, "", "")).encode("ascii")


class Pressure:
    """A thread that keeps something up until the context is left."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.count = 0

    def __enter__(self) -> Self:
        self.begin()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(10)
        self.end()

    def begin(self) -> None:
        """Before the thread."""

    def end(self) -> None:
        """After it."""

    def _run(self) -> None:
        while not self._ended.is_set():
            self.beat()

    def wait(self, seconds: float) -> None:
        """Sleep, but not beyond the end."""
        self._ended.wait(seconds)

    def beat(self) -> None:
        """What is done again and again."""


class IdleWebsockets(Pressure):
    """Open websockets that said one thing and then ping every five seconds."""

    def __init__(self, host: str, port: int, most: int) -> None:
        super().__init__()
        self._where = (host, port)
        self._most = most
        self._open: list[socket.socket] = []

    def begin(self) -> None:
        """Open them all; raises OSError when one is refused."""
        told = encode_notification(PublishImage(image_id(os.urandom(32))))
        message = bytes((0x82, 0x80 | len(told))) + MASK + told
        for _ in range(self._most):
            one = socket.create_connection(self._where, timeout=10)
            self._open.append(one)
            one.sendall(handshake(*self._where))
            answer = one.recv(4096)
            if b" 101 " not in answer:
                raise OSError(f"no websocket: {answer[:80]!r}")
            one.sendall(message)
        self.count = len(self._open)

    def beat(self) -> None:
        """Say that we live."""
        for one in self._open:
            one.sendall(PING)
        self.wait(5.0)

    def end(self) -> None:
        """Close them; ``count`` are those that were still open."""
        self.count = 0
        for one in self._open:
            one.setblocking(False)
            try:
                while one.recv(65536):
                    continue
            except BlockingIOError:
                self.count += 1
            except OSError:
                continue
            finally:
                one.close()


class Slowloris(Pressure):
    """Connections that send a byte of a request every second; those that are closed are opened again."""

    def __init__(self, host: str, port: int, most: int) -> None:
        super().__init__()
        self._where = (host, port)
        self._open: list[tuple[socket.socket, int] | None] = [None] * most
        self._head = handshake(host, port)

    def beat(self) -> None:
        """A byte for each."""
        for at, one in enumerate(self._open):
            try:
                if one is None:
                    fresh = socket.create_connection(self._where, timeout=5)
                    fresh.setblocking(False)
                    self._open[at] = one = (fresh, 0)
                    self.count += 1
                peer, sent = one
                peer.send(self._head[sent : sent + 1])
                self._open[at] = (peer, sent + 1)
            except OSError:
                if one is not None:
                    one[0].close()
                self._open[at] = None
        self.wait(1.0)

    def end(self) -> None:
        """Close what is open."""
        for one in self._open:
            if one is not None:
                one[0].close()


class Connects(Pressure):
    """New connections, so many a second, each closed at once."""

    def __init__(self, host: str, port: int, rate: int) -> None:
        super().__init__()
        self._where = (host, port)
        self._pause_s = 1 / rate

    def beat(self) -> None:
        """One of them."""
        try:
            socket.create_connection(self._where, timeout=5).close()
            self.count += 1
        except OSError:
            pass
        self.wait(self._pause_s)


class Forged(Pressure):
    """Datagrams that look like gossip and come from an address that is not configured; ``rate`` a second at most."""

    def __init__(self, host: str, port: int, rate: int) -> None:
        super().__init__()
        self._where = (host, port)
        self._rate = rate
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.99", 0))
        self._data = b"CG\x01" + os.urandom(1197)

    def beat(self) -> None:
        """A hundredth of a second's worth."""
        began_s = time.monotonic()
        for _ in range(self._rate // 100):
            try:
                self._socket.sendto(self._data, self._where)
                self.count += 1
            except OSError:
                continue
        self.wait(max(0.0, 0.01 - (time.monotonic() - began_s)))

    def end(self) -> None:
        """Close the socket."""
        self._socket.close()
