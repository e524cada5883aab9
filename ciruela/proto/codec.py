"""Messages to bytes and back (protocol section 3), and state files (section 5.1).

Written exactly as the reference writes: fields in declaration order, shortest integers. Read with the tolerance that section 3.3 asks for:
unknown fields, missing optional fields, any order, field names and virtual paths as byte strings. Everything else is a FormatError.

Answers with blocks, to bytes and back without cbor copying every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cbor2

from ciruela.model.errors import FormatError
from ciruela.model.ids import Block, Server
from ciruela.model.versions import State, Version
from ciruela.proto import bounded, reading
from ciruela.proto.messages import (
    NOT_KNOWN,
    AbortedImage,
    AppendDir,
    BaseDirData,
    BlockData,
    BlocksData,
    CheckData,
    CheckUpload,
    Error,
    GetBaseDir,
    GetBlock,
    GetBlocks,
    GetIndex,
    GetIndexAt,
    GetPathState,
    GetPieces,
    GetShare,
    HookResult,
    Hosts,
    IndexAtData,
    IndexData,
    Notification,
    PathStateData,
    PiecesData,
    PublishImage,
    PushPull,
    PushPullData,
    ReceivedImage,
    RemovedEntry,
    RemovedImage,
    RemoveDir,
    ReplaceDir,
    Request,
    Response,
    ShareData,
    UploadAck,
    WithdrawUpload,
)
from ciruela.proto.reading import Fields

DATA_FIELD = b"\xa1\x64data"
"""A map with nothing but ``data``, up to its content."""

_BLOCK = b"\x84\x02\x68GetBlock"
_BLOCKS = b"\x84\x02\x69GetBlocks"
_BYTES, _ARRAY = 0x40, 0x80


def block(number: int, answer: BlockData) -> bytes:
    """The answer to GetBlock ``number``."""
    return b"".join((_BLOCK, cbor2.dumps(number), DATA_FIELD, _head(_BYTES, len(answer.data)), answer.data))


def many(number: int, answer: BlocksData) -> bytes:
    """The answer to GetBlocks ``number``."""
    packed = [at for at, part in enumerate(answer.parts) if part.packed]
    small = cbor2.dumps({"lacks": reading.runs_of(answer.lacks), "packed": reading.runs_of(packed), "parts": []})
    pieces: list[Block] = [_BLOCKS, cbor2.dumps(number), small[:-1], _head(_ARRAY, len(answer.parts))]
    for part in answer.parts:
        pieces += (_head(_BYTES, len(part.data)), part.data)
    return b"".join(pieces)


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


def _head(major: int, length: int) -> bytes:
    if length < 24:
        return bytes((major | length,))
    if length < 0x100:
        return bytes((major | 24, length))
    if length < 0x10000:
        return bytes((major | 25,)) + length.to_bytes(2, "big")
    return bytes((major | 26,)) + length.to_bytes(4, "big") if length < 1 << 32 else bytes((major | 27,)) + length.to_bytes(8, "big")


_NOTIFICATION, _REQUEST, _RESPONSE = 0, 1, 2
_NAME_BYTES = 64
_LIST = b"\x84\x02\x6aGetBaseDir"


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


_ANSWERS: dict[str, type[Response]] = {
    "AppendDir": UploadAck,
    "ReplaceDir": UploadAck,
    "RemoveDir": UploadAck,
    "GetIndex": IndexData,
    "GetIndexAt": IndexAtData,
    "GetBlock": BlockData,
    "GetBaseDir": BaseDirData,
    "GetBlocks": BlocksData,
    "GetShare": ShareData,
    "GetPieces": PiecesData,
    "CheckUpload": CheckData,
    "GetPathState": PathStateData,
    "WithdrawUpload": UploadAck,
    "PushPull": PushPullData,
}

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


def _signatures(signatures: tuple[bytes, ...]) -> list[list[object]]:
    return [[reading.ALGORITHM, signature] for signature in signatures]


def _state_value(state: State) -> Fields:
    return {"image": state.image, "signatures": [[entry.timestamp_ms, [reading.ALGORITHM, entry.signature]] for entry in state.signatures]}


def _dirs_value(dirs: Mapping[str, State]) -> dict[str, Fields]:
    return {name: _state_value(dirs[name]) for name in sorted(dirs)}


def _removed_value(one: RemovedEntry) -> Fields:
    value: Fields = {"timestamp": one.timestamp_ms, "image": one.image, "signatures": _signatures(one.signatures)}
    return value | ({"forced": True} if one.forced else {})


def _version_value(version: Version | None) -> list[object] | None:
    return None if version is None else [version.timestamp_ms, version.image]


def _server_value(server: Server) -> Fields:
    known: Fields = {"name": server.name, "machine_id": server.machine, "addresses": list(server.addresses), "heard": server.heard_ms}
    return known if server.configured else known | {"configured": False}


def _hosts_value(hosts: Hosts) -> dict[bytes, str]:
    return {machine: hosts[machine] for machine in sorted(hosts)}


def _request_params(request: Request) -> Fields:
    match request:
        case AppendDir(path, image, timestamp_ms, signatures):
            return {"path": path, "image": image, "timestamp": timestamp_ms, "signatures": _signatures(signatures)}
        case RemoveDir(path, image, timestamp_ms, signatures, force):
            wish: Fields = {"path": path, "image": image, "timestamp": timestamp_ms, "signatures": _signatures(signatures)}
            return wish | ({"force": True} if force else {})
        case ReplaceDir(path, image, old_image, timestamp_ms, signatures):
            signed = {"timestamp": timestamp_ms, "signatures": _signatures(signatures)}
            return {"path": path, "image": image, "old_image": old_image, **signed}
        case GetIndex(image, hint, packed):
            return {"id": image, "hint": hint, **({"packed": True} if packed else {})}
        case GetBlock(block, hint_or_none):
            return {"hash": block, "hint": None if hint_or_none is None else [hint_or_none.vpath, hint_or_none.path, hint_or_none.offset]}
        case GetIndexAt(path) | GetBaseDir(path):
            return {"path": path}
        case GetBlocks(path, image, numbers, packed):
            return {"path": path, "id": image, "blocks": reading.runs_of(numbers), **({"packed": True} if packed else {})}
        case GetShare(image, missing):
            return {"id": image, "missing": missing}
        case GetPieces(path, image, wanted):
            return {"path": path, "id": image, "wanted": wanted}
        case CheckUpload(path, replace, image, old_image, timestamp_ms, signatures):
            signed = {"timestamp": timestamp_ms, "signatures": _signatures(signatures)}
            return {"path": path, "replace": replace, "image": image, "old_image": old_image, **signed}
        case GetPathState(path, servers):
            return {"path": path, **({"servers": True} if servers else {})}
        case WithdrawUpload(path, image):
            return {"path": path, "image": image}
        case PushPull(port, heard_ms, facts):
            return {"port": port, "heard": heard_ms, "facts": list(facts)}
        case _:
            raise TypeError(f"{type(request).__name__} is not a request")


def _response_params(response: Response) -> Fields:
    match response:
        case UploadAck(accepted, reason, hosts, machine, hostname, detail):
            ack: Fields = {"accepted": accepted, "reject_reason": reason, "hosts": _hosts_value(hosts)}
            if machine is not None:
                ack |= {"machine_id": machine, "hostname": hostname}
            return ack | ({"detail": detail} if detail else {})
        case IndexData(data, packed):
            return {"packed": True, "data": data} if packed else {"data": data}
        case BlockData(data):
            return {"data": data}
        case ShareData(pieces) | PiecesData(pieces):
            return {"pieces": pieces}
        case CheckData():
            checked: Fields = {
                "accepted": response.accepted,
                "reject_reason": response.reject_reason,
                "detail": response.detail,
                "there": response.there,
                "coming": response.coming,
                "free": response.free_bytes,
                "machine_id": response.machine,
                "hostname": response.hostname,
                "hosts": _hosts_value(response.hosts),
            }
            times = {"there_signed": response.there_ms, "coming_signed": response.coming_ms}
            return checked | {name: time_ms for name, time_ms in times.items() if time_ms is not None}
        case PathStateData():
            return {
                "machine_id": response.machine,
                "hostname": response.hostname,
                "epoch": response.epoch_ms,
                "taken": response.taken,
                "committed": _version_value(response.committed),
                "pending": _version_value(response.pending),
                "refused": None if response.refused is None else list(response.refused),
                "servers": [_server_value(server) for server in response.servers],
                "shared_ids": [[one.machine, list(one.addresses)] for one in response.shared_ids],
                **({"refused_orders": list(response.refused_orders)} if response.refused_orders else {}),
            }
        case PushPullData(taken, heard_ms, facts):
            return {"taken": taken, "heard": heard_ms, "facts": list(facts)}
        case IndexAtData(data_or_none, hosts):
            return {"data": data_or_none, "hosts": _hosts_value(hosts)}
        case BaseDirData(config_hash, keep_list_hash, dirs, watches, pending, removed, kept, kept_signed):
            known: Fields = {"config_hash": config_hash, "keep_list_hash": keep_list_hash, "dirs": _dirs_value(dirs)}
            if watches:
                known["watches"] = {name: list(watches[name]) for name in sorted(watches)}
            if pending:
                known["pending"] = list(pending)
            if removed:
                known["removed"] = {name: _removed_value(removed[name]) for name in sorted(removed)}
            if kept:
                known["kept"] = {name: [[one.timestamp_ms, one.image] for one in kept[name]] for name in sorted(kept)}
            if kept_signed:
                known["kept_signed"] = {name: [_state_value(one) for one in kept_signed[name]] for name in sorted(kept_signed)}
            return known
        case _:
            raise TypeError(f"{type(response).__name__} has no fields of its own")


def _notification_params(notification: Notification) -> Fields:
    match notification:
        case PublishImage(image):
            return {"id": image}
        case ReceivedImage() | AbortedImage() | RemovedImage() | HookResult():
            known: Fields = {
                "id": notification.image,
                "path": notification.path,
                "machine_id": notification.machine_id,
                "hostname": notification.hostname,
                "forwarded": notification.forwarded,
            }
            if isinstance(notification, AbortedImage):
                known["reason"] = notification.reason
            elif isinstance(notification, HookResult):
                known |= {"kind": notification.kind, "state": notification.state, "message": notification.message}
            return known


def encode_request(number: int, request: Request) -> bytes:
    """The bytes of ``request`` with id ``number``."""
    return cbor2.dumps([_REQUEST, request_name(request), number, _request_params(request)])


def encode_response(number: int, name: str, response: Response) -> bytes:
    """The bytes of the answer to request ``number``, whose name is ``name``. The text of an Error is cut to 4,096 bytes.

    Raises TypeError for a response that does not answer such a request.
    """
    if isinstance(response, Error):
        text = response.text.encode("utf-8", "replace")[: reading.MAX_TEXT_BYTES].decode("utf-8", "ignore")
        return cbor2.dumps([_RESPONSE, "Error", number, text])
    if type(response) is not _ANSWERS[name]:
        raise TypeError(f"{type(response).__name__} does not answer {name}")
    if isinstance(response, BlockData):
        return block(number, response)
    if isinstance(response, BlocksData):
        return many(number, response)
    return cbor2.dumps([_RESPONSE, name, number, _response_params(response)])


@dataclass(frozen=True, slots=True)
class Prepared:
    """The fields of a response, encoded before it is known which request they answer: of a long list, for many who ask for it."""

    name: str
    body: bytes


def prepare(name: str, response: Response) -> Prepared:
    """Encode the fields of an answer to a request ``name``. Takes 0.1 s for a list of 20,000 entries: call it in a thread."""
    if type(response) is not _ANSWERS[name]:
        raise TypeError(f"{type(response).__name__} does not answer {name}")
    return Prepared(name, cbor2.dumps(_response_params(response)))


def encode_answer(number: int, name: str, response: Response | Prepared) -> tuple[bytes, bytes]:
    """As :func:`encode_response`, in two parts: what others may be sent at the same time is not copied behind its head."""
    match response:
        case Prepared():
            if response.name != name:
                raise TypeError(f"what answers {response.name} does not answer {name}")
            return cbor2.dumps([_RESPONSE, name, number, None])[:-1], response.body
        case IndexData(data, packed) if name == "GetIndex":
            return encode_response(number, name, IndexData(b"", packed))[:-1] + bytes_head(len(data)), data
        case _:
            return encode_response(number, name, response), b""


def encode_notification(notification: Notification) -> bytes:
    """The bytes of ``notification``."""
    return cbor2.dumps([_NOTIFICATION, type(notification).__name__, _notification_params(notification)])


def encode_state(state: State) -> bytes:
    """The content of a state file."""
    return cbor2.dumps(_state_value(state))


def encode_dirs(dirs: Mapping[str, State]) -> bytes:
    """The bytes whose hash is the hash of a base dir (protocol section 4.4)."""
    return cbor2.dumps(_dirs_value(dirs))


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
    listed = name in (reading.REQUESTS if kind == _REQUEST else reading.NOTIFICATIONS)
    wanted = number if kind == _REQUEST else None
    if not listed:
        return Ignored(f"{name!r} {NOT_KNOWN}", wanted)
    try:
        budget = reading.MAX_ITEMS_BULK if name == "GetBlocks" else reading.MAX_ITEMS
        known = reading.fields_of(bounded.loads(memoryview(data)[start:], max_items=budget))
        if kind == _REQUEST:
            return RequestIn(number, reading.REQUESTS[name](known))
        return NotificationIn(reading.NOTIFICATIONS[name](known))
    except FormatError as fault:
        raise BadMessage(f"{name}: {fault}", request_id=wanted) from None


def is_list(data: bytes | bytearray) -> bool:
    """Tells whether ``data`` is an answer with the list of a base dir, the one message that takes long to decode for its length."""
    return data[:13] == _LIST


def _response(name: str, data: bytes | bytearray, start: int) -> Response:
    if name == "Error":
        return Error(reading.text(bounded.loads(memoryview(data)[start:], max_items=1), "the text of an Error", reading.MAX_TEXT_BYTES))
    if name == "GetBlocks":
        value, cut = bounded.loads_cut(memoryview(data)[start:], max_items=reading.MAX_ITEMS_BULK)
        return reading.blocks_data(reading.fields_of(value), cut)
    if name not in reading.RESPONSES:
        raise FormatError("no request has this name")
    budget, build = reading.RESPONSES[name]
    return build(reading.fields_of(bounded.loads(memoryview(data)[start:], max_items=budget)))


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
    return reading.state(bounded.loads(data, max_items=reading.MAX_ITEMS))
