"""One request to a real daemon, without a client of ours in between."""

from __future__ import annotations

import socket

from ciruela.proto import codec
from ciruela.proto import messages as m
from tests.net.bench import frame
from tests.real.daemons import RealNode

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: ciruela\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def ask(node: RealNode, request: m.Request) -> m.Response | None:
    """The answer to one request on a connection of its own; None if the node ended that instead."""
    with socket.create_connection((node.host, node.port), timeout=20) as one, one.makefile("rb") as reading:
        one.sendall(HANDSHAKE)
        while reading.readline() not in (b"\r\n", b""):
            pass
        one.sendall(frame(codec.encode_request(1, request), masked=True))
        while head := reading.read(2):
            size = head[1] & 127
            if size >= 126:
                size = int.from_bytes(reading.read(2 if size == 126 else 8), "big")
            data = reading.read(size)
            if head[0] & 15 != 2:
                continue
            answer = codec.decode(data)
            if isinstance(answer, codec.ResponseIn):
                return answer.response
    return None
