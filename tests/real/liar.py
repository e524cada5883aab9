"""A server that says what a test wants a client to hear, over real sockets: lies, nonsense, or nothing."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import struct
import threading
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from ciruela.proto import codec
from ciruela.proto.messages import AppendDir, Notification, Request, Response
from tests.net.bench import frame

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455, section 1.3."""

PING, PONG, CLOSE = 9, 10, 8

Said = Callable[["Talk", AppendDir], None]


class Talk:
    """One connection of a client."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._asked = 0
        self.number = 0

    def serve(self, said: Said) -> None:
        """Shake hands; answer pings; call ``said`` for each order. Raises OSError at the end of the connection."""
        head = b""
        while b"\r\n\r\n" not in head:
            head += self._some(4096)
        key = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")).split(b":", 1)[1].strip()
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest())
        self._connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: "
            + accept
            + b"\r\n\r\n"
        )
        while True:
            opcode, payload = self._frame()
            if opcode == PING:
                self._connection.sendall(frame(payload, opcode=PONG))
            elif opcode == CLOSE:
                return
            elif opcode == 2:
                message = codec.decode(payload)
                if isinstance(message, codec.RequestIn) and isinstance(message.request, AppendDir):
                    self.number = message.id
                    said(self, message.request)

    def answer(self, response: Response) -> None:
        """Answer the order."""
        self.raw(codec.encode_response(self.number, "AppendDir", response))

    def tell(self, notification: Notification) -> None:
        """Say something unasked."""
        self.raw(codec.encode_notification(notification))

    def ask(self, request: Request) -> None:
        """Ask the client."""
        self._asked += 1
        self.raw(codec.encode_request(self._asked, request))

    def raw(self, message: bytes) -> None:
        """Send any bytes as one message."""
        self._connection.sendall(frame(message))

    def hang_up(self) -> None:
        """End the connection, without a word."""
        self._connection.shutdown(socket.SHUT_RDWR)

    def _some(self, most: int) -> bytes:
        data = self._connection.recv(most)
        if not data:
            raise ConnectionResetError
        return data

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self._some(size - len(data))
        return data

    def _frame(self) -> tuple[int, bytes]:
        first, second = self._exactly(2)
        size = second & 127
        if size == 126:
            (size,) = struct.unpack("!H", self._exactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", self._exactly(8))
        mask = self._exactly(4)
        data = self._exactly(size)
        return first & 15, bytes(byte ^ mask[at & 3] for at, byte in enumerate(data))


class Liar:
    """Listens at ``host`` and ``port`` until the test ends, and lets ``said`` talk to each client that sends an order."""

    def __init__(self, case: SynchronousTestCase, host: str, port: int, said: Said) -> None:
        self._said = said
        self.orders = 0
        self._listening = socket.create_server((host, port))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._run, daemon=True).start()
        case.addCleanup(self.close)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listening.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            Talk(connection).serve(self._hear)

    def _hear(self, talk: Talk, order: AppendDir) -> None:
        self.orders += 1
        self._said(talk, order)

    def close(self) -> None:
        """Stop listening, and end all connections."""
        for one in (self._listening, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
