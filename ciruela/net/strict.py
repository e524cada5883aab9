# ruff: noqa: N802, N815  half of the names here are Autobahn's
"""Strict receiving side of RFC 6455 and threats A21 and A22, beyond what Autobahn does by itself.

Autobahn finds what is wrong, and either cuts TCP without a word or goes on reading. Here the other side is told with a close frame, and
nothing that it sends after that is looked at (RFC 6455 7.1.7).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from twisted.logger import Logger

PROTOCOL_ERROR, INVALID_PAYLOAD, TOO_BIG = 1002, 1007, 1009

SMALL_BYTES = 1024
"""Smaller pieces of a message are put together as they come, so that a million of them costs no more memory than their bytes."""

MAX_REASON_BYTES = 123
"""Longest reason in a close frame (RFC 6455 5.5)."""


class Quiet:
    """Stands in for Autobahn's logger, which is asked on every call; only faults of the program come through."""

    _log = Logger(namespace="ciruela.net.connection")

    def error(self, message: str, **fields: object) -> None:
        """Pass on."""
        self._log.error(message, **fields)

    def _nothing(self, *_args: object, **_fields: object) -> None:
        """Say nothing."""

    failure = critical = warn = info = debug = trace = _nothing


class Strict:
    """Stands before an Autobahn protocol class in the order of bases."""

    state: int
    data: bytes
    failedByMe: bool
    message_data: Any
    message_is_binary: bool

    part_bytes = 0
    """Bytes that have come of the message that is not whole."""

    @abstractmethod
    def failed(self, why: str, said: bool) -> None:
        """For the heir: the other side broke a rule, ``why`` is for people. End TCP: soon when it was told (``said``), else now."""

    def onMessageFrameBegin(self, length: int) -> None:
        """Autobahn: a part of a message begins. An empty one counts as a byte, or they could go on for ever."""
        super().onMessageFrameBegin(max(length, 1))  # type: ignore[misc]

    def onMessageFrameData(self, payload: bytes) -> None:
        """Autobahn: bytes of a message. Texts are not kept."""
        if self.failedByMe or not self.message_is_binary:
            return
        self.part_bytes += len(payload)
        parts = self.message_data
        if not parts or len(payload) >= SMALL_BYTES:
            parts.append(payload)
        elif isinstance(parts[-1], bytearray):
            parts[-1] += payload
        else:
            parts.append(bytearray(payload))

    def _max_message_size_exceeded(self, msg_size: int, max_msg_size: int, _reason: str) -> None:
        sizes = f"{msg_size} bytes at once, at most {max_msg_size} are allowed"
        self._fail(TOO_BIG, sizes, f"it sent {sizes}")

    def _protocol_violation(self, reason: str) -> bool:
        self._fail(PROTOCOL_ERROR, reason, f"it broke the websocket protocol: {reason[:200]}")
        return True

    def _invalid_payload(self, reason: str) -> bool:
        self._fail(INVALID_PAYLOAD, reason, f"it broke the websocket protocol: {reason[:200]}")
        return True

    def _fail(self, code: int, reason: str, why: str) -> None:
        self.failedByMe = True
        self.data = b""
        said = self.state == self.STATE_OPEN  # type: ignore[attr-defined]
        if said:
            self.sendCloseFrame(code, reason.encode()[:MAX_REASON_BYTES])  # type: ignore[attr-defined]
        self.failed(why, said)
