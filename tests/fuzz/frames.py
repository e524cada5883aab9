"""A plain reading of RFC 6455, by which the real one is judged: what one side must do with a stream of bytes."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field

_CODES = frozenset((*range(1000, 1004), *range(1007, 1014)))


@dataclass(slots=True)
class Outcome:
    """What must come of a stream: binary messages, the payloads of pongs, how many texts, and the code of the close frame, if one."""

    messages: list[bytes] = field(default_factory=list)
    pongs: list[bytes] = field(default_factory=list)
    texts: int = 0
    code: int | None = None


class _Fault(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def outcome(data: bytes, masked: bool, limit: int) -> Outcome:
    """What a side must do with ``data``, whose frames are ``masked`` if it is the server, with messages of at most ``limit`` bytes."""
    found = Outcome()
    try:
        _read(data, masked, limit, found)
    except _Fault as fault:
        found.code = fault.code
    return found


def _read(data: bytes, masked: bool, limit: int, found: Outcome) -> None:
    at = 0
    message: bytearray | None = None
    counted = 0
    text: codecs.IncrementalDecoder | None = None
    while len(data) - at >= 2:
        final, reserved, opcode = data[at] & 0x80, data[at] & 0x70, data[at] & 15
        size = data[at + 1] & 127
        if reserved or bool(data[at + 1] & 0x80) != masked or 2 < opcode < 8 or opcode > 10:
            raise _Fault(1002)
        if opcode >= 8:
            if not final or size > 125 or (opcode == 8 and size == 1):
                raise _Fault(1002)
        elif (opcode == 0) != (message is not None):
            raise _Fault(1002)
        width = {126: 2, 127: 8}.get(size, 0)
        begin = at + 2 + width + (4 if masked else 0)
        if begin > len(data):
            return
        if width:
            size = int.from_bytes(data[at + 2 : at + 2 + width], "big")
            if size < (126 if width == 2 else 65536) or size >= 1 << 63:
                raise _Fault(1002)
        if opcode < 8:
            if message is None:
                message, counted = bytearray(), 0
                text = codecs.getincrementaldecoder("utf-8")() if opcode == 1 else None
            counted += max(size, 1)
            if counted > limit:
                raise _Fault(1009)
        payload = data[begin : begin + size]
        if masked:
            payload = _unmasked(payload, data[begin - 4 : begin])
        whole = len(payload) == size
        at = begin + size
        if opcode < 8:
            assert message is not None
            if text is None:
                message += payload
            else:
                try:
                    text.decode(payload, bool(whole and final))
                except UnicodeDecodeError:
                    raise _Fault(1007) from None
        if not whole:
            return
        if opcode == 9:
            found.pongs.append(payload)
        elif opcode == 8:
            raise _Fault(_answer(payload))
        elif opcode < 8 and final:
            assert message is not None
            if text is None:
                found.messages.append(bytes(message))
            else:
                found.texts += 1
            message = text = None


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def _answer(payload: bytes) -> int:
    """The code with which a close frame is answered."""
    if payload:
        code = int.from_bytes(payload[:2], "big")
        if not (code in _CODES or 3000 <= code < 5000):
            return 1002
        try:
            payload[2:].decode("utf-8")
        except UnicodeDecodeError:
            return 1007
    return 1000
