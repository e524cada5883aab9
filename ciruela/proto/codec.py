"""Messages to bytes and back (protocol section 3), and state files (section 5.1).

Written exactly as the reference writes: fields in declaration order, shortest integers. Read with the tolerance that section 3.3 asks for:
unknown fields, missing optional fields, any order, field names and virtual paths as byte strings. Everything else is a FormatError.

Answers with blocks, to bytes and back without cbor copying every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import cbor2

from ciruela.model.errors import FormatError
from ciruela.model.ids import Block
from ciruela.model.values import dataclass
from ciruela.model.versions import State
from ciruela.proto.bounded import loads, loads_cut
from ciruela.proto.forms import MAX_TEXT_BYTES, TEXT, Entries
from ciruela.proto.messages import (
    NOT_KNOWN,
    STATE,
    BlockData,
    BlockPart,
    BlocksData,
    Error,
    ExchangePieces,
    IndexData,
    Notification,
    PlainBlocks,
    Request,
    Response,
)
from ciruela.proto.table import EXCHANGES, FORMS, MAX_ITEMS, MAX_ITEMS_NEWS, NOTIFICATIONS

_NOTIFICATION, _REQUEST, _RESPONSE = 0, 1, 2
_UINT, _BYTES, _ARRAY = 0x00, 0x40, 0x80
_NAME_BYTES = 64


def _head(major: int, length: int) -> bytes:
    if length < 24:
        return bytes((major | length,))
    if length < 0x100:
        return bytes((major | 24, length))
    if length < 0x10000:
        return bytes((major | 25,)) + length.to_bytes(2, "big")
    return bytes((major | 26,)) + length.to_bytes(4, "big") if length < 1 << 32 else bytes((major | 27,)) + length.to_bytes(8, "big")


def _begun(kind: int, name: str) -> bytes:
    """Bytes of a message up to its id, or, for a notification, up to its fields."""
    return bytes((_ARRAY | (3 if kind == _NOTIFICATION else 4), kind)) + cbor2.dumps(name)


# What the loops below need of the table, by what they are given.
_ANSWERS = {row.request.__name__: row.answer for row in EXCHANGES}
_STARTS = {name: _begun(_RESPONSE, name) for name in (*_ANSWERS, Error.__name__)}
_ASKED = {row.request: (_begun(_REQUEST, row.request.__name__), FORMS[row.request].write) for row in EXCHANGES}
_TOLD = {told: (_begun(_NOTIFICATION, told.__name__), FORMS[told].write) for told in NOTIFICATIONS}
_REQUEST_READERS = {row.request.__name__: (row.most_asked, FORMS[row.request].read) for row in EXCHANGES}
_RESPONSE_READERS = {row.request.__name__: (row.most, FORMS[row.answer].read) for row in EXCHANGES}
_NOTIFICATION_READERS = {
    told.__name__: (MAX_ITEMS_NEWS if told is ExchangePieces else MAX_ITEMS, FORMS[told].read) for told in NOTIFICATIONS
}

DATA_FIELD = b"\xa1\x64data"
"""A map with nothing but ``data``, up to its content."""


def block(number: int, answer: BlockData) -> bytes:
    """The answer to GetBlock ``number``."""
    return b"".join((_STARTS["GetBlock"], _head(_UINT, number), DATA_FIELD, _head(_BYTES, len(answer.data)), answer.data))


def many(number: int, answer: BlocksData) -> bytes:
    """The answer to GetBlocks ``number``."""
    return b"".join(many_pieces(number, answer))


def many_pieces(number: int, answer: BlocksData) -> list[Block]:
    """As :func:`many`, in pieces that follow each other: the blocks are not copied."""
    packed = tuple([at for at, part in enumerate(answer.parts) if part.packed])
    small = cbor2.dumps(FORMS[BlocksData].write(PlainBlocks(answer.lacks, packed, ())))
    pieces: list[Block] = [_STARTS["GetBlocks"], _head(_UINT, number), small[:-1], _head(_ARRAY, len(answer.parts))]
    for part in answer.parts:
        pieces += (_head(_BYTES, len(part.data)), part.data)
    return pieces


def only_data(data: bytes | bytearray, at: int) -> bytes | None:
    """The byte string that begins at ``at`` and ends with the message, without another look at each item; None for other forms."""
    if at >= len(data):
        return None
    head = data[at]
    at += 1
    if 0x58 <= head <= 0x5B:
        width = 1 << (head - 0x58)
        length = int.from_bytes(data[at : at + width], "big")
        at += width
    else:
        length = head & 31
        if head >> 5 != 2 or length > 23:
            return None
    return bytes(data[at:]) if length == len(data) - at else None


def bytes_head(length: int) -> bytes:
    """Encodes the head that stands before a byte string of ``length`` bytes."""
    return _head(_BYTES, length)


@dataclass(frozen=True, slots=True)
class RequestIn:
    """A request came in."""

    id: int
    request: Request


@dataclass(frozen=True, slots=True)
class ResponseIn:
    """A response came in. ``name`` is the name of the request it claims to answer, or ``Error``."""

    id: int
    name: str
    response: Response


@dataclass(frozen=True, slots=True)
class NotificationIn:
    """A notification came in."""

    notification: Notification


@dataclass(frozen=True, slots=True)
class Ignored:
    """A message with a name that is not known here. ``id`` is set when it is a request, so that it can be refused."""

    reason: str
    id: int | None = None


Incoming = RequestIn | ResponseIn | NotificationIn | Ignored


class BadMessage(FormatError):
    """A message whose envelope is readable and whose content is not.

    ``request_id`` is set for a bad request (it deserves an Error), ``response_id`` for a bad response (what waits for it fails).
    """

    def __init__(self, text: str, request_id: int | None = None, response_id: int | None = None) -> None:
        super().__init__(text)
        self.request_id = request_id
        self.response_id = response_id


def request_name(request: Request) -> str:
    """The name of ``request`` on the wire."""
    return type(request).__name__


# -- writing ------------------------------------------------------------------------------------------------------------------


def encode_request(number: int, request: Request) -> bytes:
    """The bytes of ``request`` with id ``number``."""
    if type(request) not in _ASKED:
        raise TypeError(f"{type(request).__name__} is not a request")
    start, write = _ASKED[type(request)]
    return b"".join((start, _head(_UINT, number), cbor2.dumps(write(request))))


def encode_response(number: int, name: str, response: Response) -> bytes:
    """The bytes of the answer to request ``number``, whose name is ``name``. The text of an Error is cut to 4,096 bytes.

    Raises TypeError for a response that does not answer such a request.
    """
    if isinstance(response, Error):
        text = response.text.encode("utf-8", "replace")[:MAX_TEXT_BYTES].decode("utf-8", "ignore")
        return b"".join((_STARTS["Error"], _head(_UINT, number), cbor2.dumps(text)))
    if isinstance(response, BlockData) and name == "GetBlock":
        return block(number, response)
    if isinstance(response, BlocksData) and name == "GetBlocks":
        return many(number, response)
    if type(response) is not _ANSWERS[name]:
        raise TypeError(f"{type(response).__name__} does not answer {name}")
    return cbor2.dumps([_RESPONSE, name, number, FORMS[type(response)].write(response)])


@dataclass(frozen=True, slots=True)
class Prepared:
    """The fields of a response, encoded before it is known which request they answer: of a long list, for many who ask for it."""

    name: str
    body: bytes


def prepare(name: str, response: Response) -> Prepared:
    """Encode the fields of an answer to a request ``name``. Takes 0.1 s for a list of 20,000 entries: call it in a thread."""
    if type(response) is not _ANSWERS[name]:
        raise TypeError(f"{type(response).__name__} does not answer {name}")
    return Prepared(name, cbor2.dumps(FORMS[type(response)].write(response)))


def encode_answer(number: int, name: str, response: Response | Prepared) -> tuple[bytes, bytes]:
    """As :func:`encode_response`, in two parts: what others may be sent at the same time is not copied behind its head."""
    match response:
        case Prepared():
            if response.name != name:
                raise TypeError(f"what answers {response.name} does not answer {name}")
            return _STARTS[name] + _head(_UINT, number), response.body
        case IndexData(data, packed) if name == "GetIndex":
            return encode_response(number, name, IndexData(b"", packed))[:-1] + bytes_head(len(data)), data
        case _:
            return encode_response(number, name, response), b""


def encode_notification(notification: Notification) -> bytes:
    """The bytes of ``notification``."""
    start, write = _TOLD[type(notification)]
    return start + cbor2.dumps(write(notification))


def encode_state(state: State) -> bytes:
    """The content of a state file."""
    return cbor2.dumps(STATE.write(state))


def encode_dirs(dirs: Mapping[str, State]) -> bytes:
    """The bytes whose hash is the hash of a base dir (protocol section 4.4)."""
    return cbor2.dumps(Entries(STATE).write(dirs))


# -- reading ------------------------------------------------------------------------------------------------------------------


def decode(data: bytes | bytearray) -> Incoming:
    """The message in ``data``. Raises FormatError; BadMessage when it is known which request suffers."""
    kind, name, number, start = _envelope(data)
    if kind == _RESPONSE:
        if data[start : start + 6] == DATA_FIELD and name in ("GetBlock", "GetIndex"):
            plain = only_data(data, start + 6)
            if plain is not None:
                return ResponseIn(number, name, BlockData(plain) if name == "GetBlock" else IndexData(plain))
        try:
            return ResponseIn(number, name, _response(name, data, start))
        except FormatError as fault:
            raise BadMessage(f"answer to {name!r}: {fault}", response_id=number) from None
    wanted, readers = (number, _REQUEST_READERS) if kind == _REQUEST else (None, _NOTIFICATION_READERS)
    row = readers.get(name)
    if row is None:
        return Ignored(f"{name!r} {NOT_KNOWN}", wanted)
    most, read = row
    try:
        content = read(loads(memoryview(data)[start:], max_items=most))
    except FormatError as fault:
        raise BadMessage(f"{name}: {fault}", request_id=wanted) from None
    return NotificationIn(content) if wanted is None else RequestIn(number, content)


def is_list(data: bytes | bytearray) -> bool:
    """Tells whether ``data`` is an answer with the list of a base dir, the one message that takes long to decode for its length."""
    return data.startswith(_STARTS["GetBaseDir"])


def _response(name: str, data: bytes | bytearray, start: int) -> Response:
    content = memoryview(data)[start:]
    if name == "Error":
        return Error(TEXT.read(loads(content, max_items=1), "the text of an Error"))
    if name not in _RESPONSE_READERS:
        raise FormatError("no request has this name")
    most, read = _RESPONSE_READERS[name]
    if name == "GetBlocks":
        value, cut = loads_cut(content, max_items=most)
        return _blocks(read(value), cut)
    return read(loads(content, max_items=most))  # type: ignore[no-any-return]


def _blocks(plain: PlainBlocks, cut: list[memoryview]) -> BlocksData:
    """``cut``: the long ones of the parts, which are empty in ``plain``."""
    packed = set(plain.packed)
    longer = iter(cut)
    try:
        parts = tuple([BlockPart(part or next(longer), at in packed) for at, part in enumerate(plain.parts)])
    except StopIteration:
        raise FormatError("a part is empty") from None
    if next(longer, None) is not None:
        raise FormatError("long bytes outside of the parts")
    return BlocksData(parts, plain.lacks)


def _envelope(data: bytes | bytearray) -> tuple[int, str, int, int]:
    """Kind, name, id (0 for a notification) of a message, and where its content begins."""
    try:
        kind = data[1]
        if data[0] != (0x83 if kind == _NOTIFICATION else 0x84) or kind > _RESPONSE:
            raise FormatError("not a message: bad envelope at offset 0")
        size, at = data[2] - 0x60, 3
        if size == 24:
            size, at = data[3], 4
        if not 0 <= size <= _NAME_BYTES or at + size > len(data):
            raise FormatError("not a message: bad name at offset 2")
        name = data[at : at + size].decode("utf-8")
        at += size
        if kind == _NOTIFICATION:
            return kind, name, 0, at
        head = data[at]
        at += 1
        if head < 24:
            return kind, name, head, at
        width = 1 << (head - 24)
        if head > 27 or at + width > len(data):
            raise FormatError(f"not a message: bad id at offset {at - 1}")
        return kind, name, int.from_bytes(data[at : at + width], "big"), at + width
    except IndexError:
        raise FormatError(f"a message of {len(data)} bytes ends in its envelope") from None
    except UnicodeDecodeError:
        raise FormatError("not a message: its name is not UTF-8") from None


def decode_state(data: bytes) -> State:
    """The content of a state file. Raises FormatError."""
    return STATE.read(loads(data, max_items=MAX_ITEMS))
