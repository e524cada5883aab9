"""Readers of messages: one for each name on the wire (protocol sections 3.3 and 3.5). All raise FormatError.

The functions that read one field raise it unless the value has exactly the form it should have.

The limits are those of threats 6.3; protocol section 3.4 has the types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ciruela.model.bitfield import MASK_BYTES, MOST_CUTS
from ciruela.model.errors import FormatError
from ciruela.model.ids import HASH_BYTES, MACHINE_ID_BYTES, BlockHash, ImageId, MachineId, Server, SharedId
from ciruela.model.versions import SIGNATURE_BYTES, SigEntry, State, Version, bounded
from ciruela.model.vpath import MAX_COMPONENT_BYTES, MAX_PATH_BYTES
from ciruela.proto.messages import (
    MOST_ADDRESSES,
    MOST_PULLED,
    MOST_PUSHED,
    MOST_REFUSED,
    MOST_SERVERS,
    MOST_SHARED_IDS,
    REFUSED_BYTES,
    AbortedImage,
    AppendDir,
    BaseDirData,
    BlockData,
    BlockHint,
    BlockPart,
    BlocksData,
    CheckData,
    CheckUpload,
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

MAX_HOSTS = 1000
MAX_BULK = 1024
"""Blocks that one GetBlocks may ask for."""

MAX_NAME_BYTES = 255
MAX_SIGNATURES = 16
MAX_OFFERED = 1000
"""Signatures that an upload may have; only the first :data:`MAX_SIGNATURES` of them are looked at."""

MAX_KEPT_SIGNATURES = 10_000
"""Signatures of one image that a list of an earlier version may have."""

MAX_TEXT_BYTES = 4096
ALGORITHM = "ssh-ed25519"

_MAX_UINT = (1 << 64) - 1

Fields = dict[str, Any]

_MISSING = object()


def fields_of(value: object) -> Fields:
    """The fields of a map by name; names may have come as byte strings."""
    if not isinstance(value, dict):
        raise FormatError("the fields are not a map")
    if all(isinstance(key, str) for key in value):
        return value
    fields: Fields = {}
    for key, content in value.items():
        name = key if isinstance(key, str) else key.decode("latin-1")
        if name in fields:
            raise FormatError("a field appears twice")
        fields[name] = content
    return fields


def required(fields: Fields, name: str) -> object:
    """The content of field ``name``."""
    value = fields.get(name, _MISSING)
    if value is _MISSING:
        raise FormatError(f"field {name} is missing")
    return value


def text(value: object, name: str, limit: int) -> str:
    """``value`` as a text of at most ``limit`` bytes."""
    if not isinstance(value, str):
        raise FormatError(f"{name} is not a text")
    if len(value) > limit or len(value.encode("utf-8")) > limit:
        raise FormatError(f"{name} is longer than {limit} bytes")
    return value


def path(value: object, name: str = "path") -> str:
    """``value`` as the text of a virtual path, which may have come as a byte string."""
    if isinstance(value, bytes):
        if len(value) > MAX_PATH_BYTES:
            raise FormatError(f"{name} is longer than {MAX_PATH_BYTES} bytes")
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{name} is not UTF-8") from None
    return text(value, name, MAX_PATH_BYTES)


def fixed(value: object, name: str, length: int) -> bytes:
    """``value`` as exactly ``length`` bytes."""
    if not isinstance(value, bytes) or len(value) != length:
        raise FormatError(f"{name} is not {length} bytes")
    return value


def image_id(value: object, name: str) -> ImageId:
    """``value`` as an image id."""
    return ImageId(fixed(value, name, HASH_BYTES))


def machine_id(value: object) -> MachineId:
    """``value`` as a machine id."""
    return MachineId(fixed(value, "a machine id", MACHINE_ID_BYTES))


def plain_data(value: object) -> bytes:
    """``value`` as bytes."""
    if not isinstance(value, bytes):
        raise FormatError("data is not bytes")
    return value


def data(fields: Fields) -> bytes:
    """The field ``data``."""
    return plain_data(required(fields, "data"))


def uint(value: object, name: str) -> int:
    """``value`` as an unsigned integer of 64 bits."""
    if type(value) is not int or not 0 <= value <= _MAX_UINT:
        raise FormatError(f"{name} is not an unsigned integer of 64 bits")
    return value


def flag(value: object, name: str) -> bool:
    """``value`` as a boolean."""
    if not isinstance(value, bool):
        raise FormatError(f"{name} is neither true nor false")
    return value


def packed(fields: Fields) -> bool:
    """The field ``packed``, which may be missing."""
    return flag(fields.get("packed", False), "packed")


def signature(value: object) -> bytes:
    """The 64 bytes of a signature."""
    if not isinstance(value, list) or len(value) != 2 or value[0] != ALGORITHM:
        raise FormatError(f"a signature is not of the form [{ALGORITHM}, bytes]")
    return fixed(value[1], "a signature", SIGNATURE_BYTES)


def listed(value: object, name: str, limit: int) -> list[object]:
    """``value`` as a list of at most ``limit``."""
    if not isinstance(value, list) or len(value) > limit:
        raise FormatError(f"{name} is not a list of at most {limit}")
    return value


def runs_of(ascending: Sequence[int]) -> list[int]:
    """Ascending numbers as runs: first, count, first, count..."""
    runs: list[int] = []
    for number in ascending:
        if runs and number == runs[-2] + runs[-1]:
            runs[-1] += 1
        else:
            runs += (number, 1)
    return runs


def numbers(value: object, name: str) -> tuple[int, ...]:
    """``value`` as block numbers, written as runs; ascending, at most MAX_BULK of them."""
    runs = listed(value, name, 2 * MAX_BULK)
    if len(runs) % 2:
        raise FormatError(f"{name} has a run without a count")
    found: list[int] = []
    for first, count in zip(runs[::2], runs[1::2], strict=True):
        begin, length = uint(first, name), uint(count, name)
        if length == 0 or len(found) + length > MAX_BULK or (found and begin <= found[-1]):
            raise FormatError(f"{name} is not ascending, or has an empty run, or more than {MAX_BULK} numbers")
        found.extend(range(begin, begin + length))
    return tuple(found)


def pieces(fields: Fields, name: str) -> bytes:
    """A mask of pieces."""
    mask = plain_data(required(fields, name))
    if not mask or len(mask) % MASK_BYTES or len(mask) > MASK_BYTES * MOST_CUTS:
        raise FormatError(f"{name} is not a mask of pieces")
    return mask


def signatures(fields: Fields) -> tuple[bytes, ...]:
    """The field ``signatures`` of an upload: the first :data:`MAX_SIGNATURES`. A client with more keys than that is not refused for it."""
    offered = listed(required(fields, "signatures"), "signatures", MAX_OFFERED)
    return tuple(signature(value) for value in offered[:MAX_SIGNATURES])


def hosts(fields: Fields) -> Hosts:
    """The field ``hosts``, which may be missing."""
    known = fields.get("hosts", {})
    if not isinstance(known, dict) or len(known) > MAX_HOSTS:
        raise FormatError(f"hosts is not a map of at most {MAX_HOSTS}")
    return {machine_id(machine): text(name, "a host name", MAX_NAME_BYTES) for machine, name in known.items()}


def state(value: object) -> State:
    """``value`` as a state, its signatures in order and without doubles, the newest of too many: earlier versions kept all there were."""
    fields = fields_of(value)
    entries = set()
    for pair in listed(required(fields, "signatures"), "signatures", MAX_KEPT_SIGNATURES):
        if not isinstance(pair, list) or len(pair) != 2:
            raise FormatError("a signature entry is not a pair")
        entries.add(SigEntry(uint(pair[0], "a signature's time"), signature(pair[1])))
    return State(image_id(required(fields, "image"), "image"), bounded(entries))


T = TypeVar("T")

MAX_PENDING = 65_536
"""Entries of a base dir that can be on their way."""

MAX_WATCHERS = 1000
MAX_KEPT = 1000
MAX_ITEMS = 256
MAX_ITEMS_WITH_HOSTS = 2 * MAX_HOSTS + MAX_ITEMS
MAX_ITEMS_BASE_DIR = 16 * 65_536
MAX_FACT_BYTES = 1400
"""Longest body of gossip: a datagram cannot be longer, either."""

MAX_ITEMS_PATH_STATE = (12 + MOST_ADDRESSES) * MOST_SERVERS + (3 + MOST_ADDRESSES) * MOST_SHARED_IDS + MAX_ITEMS
MAX_ITEMS_PUSH_PULL = MOST_PULLED + MAX_ITEMS
MAX_ITEMS_BULK = 5 * MAX_BULK + 16


def _block_hint(value: object) -> BlockHint | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 3:
        raise FormatError("hint is not a list of three")
    return BlockHint(path(value[0], "hint"), text(value[1], "hint", MAX_TEXT_BYTES), uint(value[2], "hint"))


def _index_hint(value: object) -> str | None:
    return None if value is None else path(value, "hint")


def _append_dir(f: Fields) -> AppendDir:
    return AppendDir(
        path(required(f, "path")),
        image_id(required(f, "image"), "image"),
        uint(required(f, "timestamp"), "timestamp"),
        signatures(f),
    )


def _replace_dir(f: Fields) -> ReplaceDir:
    old = f.get("old_image")
    old_image = None if old is None else image_id(old, "old_image")
    wish = _append_dir(f)
    return ReplaceDir(wish.path, wish.image, old_image, wish.timestamp_ms, wish.signatures)


def _remove_dir(f: Fields) -> RemoveDir:
    wish = _append_dir(f)
    return RemoveDir(wish.path, wish.image, wish.timestamp_ms, wish.signatures, flag(f.get("force", False), "force"))


def _removed_entry(value: object) -> RemovedEntry:
    f = fields_of(value)
    return RemovedEntry(
        uint(required(f, "timestamp"), "timestamp"),
        image_id(required(f, "image"), "image"),
        signatures(f),
        flag(f.get("forced", False), "forced"),
    )


def _version(value: object) -> Version:
    row = listed(value, "kept", 2)
    if len(row) != 2:
        raise FormatError("a kept image is not a pair")
    return Version(uint(row[0], "a time of signature"), image_id(row[1], "a kept image"))


def _check_upload(f: Fields) -> CheckUpload:
    wish = _replace_dir(f)
    replace = flag(required(f, "replace"), "replace")
    return CheckUpload(wish.path, replace, wish.image, wish.old_image, wish.timestamp_ms, wish.signatures)


def _check_data(f: Fields) -> CheckData:
    ack = _ack(f)
    there, coming = ((None if f.get(name) is None else image_id(f[name], name)) for name in ("there", "coming"))
    return CheckData(
        ack.accepted,
        ack.reject_reason,
        text(f.get("detail", ""), "detail", MAX_TEXT_BYTES),
        there,
        coming,
        None if f.get("free") is None else uint(f["free"], "free"),
        machine_id(required(f, "machine_id")),
        text(required(f, "hostname"), "hostname", MAX_NAME_BYTES),
        ack.hosts,
        _time(f, "there_signed"),
        _time(f, "coming_signed"),
    )


def _time(f: Fields, name: str) -> int | None:
    return None if f.get(name) is None else uint(f[name], name)


def _version_or_none(f: Fields, name: str) -> Version | None:
    return None if f.get(name) is None else _version(f[name])


def _facts(f: Fields, most: int) -> tuple[bytes, ...]:
    facts = tuple(plain_data(fact) for fact in listed(required(f, "facts"), "facts", most))
    if any(len(fact) > MAX_FACT_BYTES for fact in facts):
        raise FormatError(f"a body of gossip is longer than {MAX_FACT_BYTES} bytes")
    return facts


def _push_pull(f: Fields) -> PushPull:
    port = uint(required(f, "port"), "port")
    if not 0 < port < 65536:
        raise FormatError(f"port {port} is none")
    return PushPull(port, _time(f, "heard"), _facts(f, MOST_PUSHED))


def _push_pull_data(f: Fields) -> PushPullData:
    return PushPullData(flag(required(f, "taken"), "taken"), _time(f, "heard"), _facts(f, MOST_PULLED))


def _addresses(value: object) -> tuple[str, ...]:
    return tuple(text(one, "an address", MAX_NAME_BYTES) for one in listed(value, "addresses", MOST_ADDRESSES))


def _server(value: object) -> Server:
    f = fields_of(value)
    machine = f.get("machine_id")
    return Server(
        text(required(f, "name"), "the name of a server", MAX_NAME_BYTES),
        None if machine is None else machine_id(machine),
        _addresses(f.get("addresses", [])),
        _time(f, "heard"),
        flag(f.get("configured", True), "configured"),
    )


def _shared_id(value: object) -> SharedId:
    row = listed(value, "shared_ids", 2)
    if len(row) != 2:
        raise FormatError("a shared machine id is not a pair")
    return SharedId(machine_id(row[0]), _addresses(row[1]))


def _refused(value: object) -> tuple[ImageId, str] | None:
    if value is None:
        return None
    row = listed(value, "refused", 2)
    if len(row) != 2:
        raise FormatError("what was refused is not a pair")
    return image_id(row[0], "a refused image"), text(row[1], "why it was refused", MAX_TEXT_BYTES)


def _path_state_data(f: Fields) -> PathStateData:
    return PathStateData(
        machine_id(required(f, "machine_id")),
        text(required(f, "hostname"), "hostname", MAX_NAME_BYTES),
        uint(required(f, "epoch"), "epoch"),
        flag(required(f, "taken"), "taken"),
        _version_or_none(f, "committed"),
        _version_or_none(f, "pending"),
        _refused(f.get("refused")),
        tuple(map(_server, listed(f.get("servers", []), "servers", MOST_SERVERS))),
        tuple(map(_shared_id, listed(f.get("shared_ids", []), "shared_ids", MOST_SHARED_IDS))),
        tuple(fixed(one, "a refused order", REFUSED_BYTES) for one in listed(f.get("refused_orders", []), "refused_orders", MOST_REFUSED)),
    )


def _ack(f: Fields) -> UploadAck:
    reason = f.get("reject_reason")
    word = None if reason is None else text(reason, "reject_reason", MAX_TEXT_BYTES)
    machine = f.get("machine_id")
    hostname = text(f.get("hostname", ""), "hostname", MAX_NAME_BYTES)
    return UploadAck(
        flag(required(f, "accepted"), "accepted"),
        word,
        hosts(f),
        None if machine is None else machine_id(machine),
        "" if machine is None else hostname,  # a name of nobody is no name
        text(f.get("detail", ""), "detail", MAX_TEXT_BYTES),
    )


def _index_at_data(f: Fields) -> IndexAtData:
    data = f.get("data")
    return IndexAtData(None if data is None else plain_data(data), hosts(f))


def _entries(value: object, name: str, read: Callable[[object], T]) -> dict[str, T]:
    """A map by entry name. An entry that is not well made costs that entry: the others are as good as without it."""
    if not isinstance(value, dict):
        raise FormatError(f"{name} is not a map")
    found: dict[str, T] = {}
    for key, one in value.items():
        try:
            entry, content = text(key, "a directory name", MAX_COMPONENT_BYTES), read(one)
        except FormatError:
            continue
        found[entry] = content
    return found


def _machines(value: object) -> tuple[MachineId, ...]:
    return tuple(map(machine_id, listed(value, "watches", MAX_WATCHERS)))


def _kept(value: object) -> tuple[Version, ...]:
    return tuple(map(_version, listed(value, "kept", MAX_KEPT)))


def _kept_signed(value: object) -> tuple[State, ...]:
    return tuple(map(state, listed(value, "kept_signed", MAX_KEPT)))


def _base_dir_data(f: Fields) -> BaseDirData:
    return BaseDirData(
        fixed(required(f, "config_hash"), "config_hash", HASH_BYTES),
        fixed(required(f, "keep_list_hash"), "keep_list_hash", HASH_BYTES),
        _entries(required(f, "dirs"), "dirs", state),
        _entries(f.get("watches", {}), "watches", _machines),
        tuple(text(name, "a directory name", MAX_COMPONENT_BYTES) for name in listed(f.get("pending", []), "pending", MAX_PENDING)),
        _entries(f.get("removed", {}), "removed", _removed_entry),
        _entries(f.get("kept", {}), "kept", _kept),
        _entries(f.get("kept_signed", {}), "kept_signed", _kept_signed),
    )


def blocks_data(f: Fields, cut: list[memoryview]) -> BlocksData:
    """``cut``: the long ones of the parts, which are empty in ``f``."""
    packed = set(numbers(f.get("packed", []), "packed"))
    parts = listed(required(f, "parts"), "parts", MAX_BULK)
    longer = iter(cut)
    found: list[BlockPart] = []
    for at, part in enumerate(parts):
        data = plain_data(part) or next(longer, None)
        if data is None:
            raise FormatError("a part is empty")
        found.append(BlockPart(data, at in packed))
    if next(longer, None) is not None:
        raise FormatError("long bytes outside of the parts")
    return BlocksData(tuple(found), numbers(f.get("lacks", []), "lacks"))


def _received(f: Fields) -> ReceivedImage:
    return ReceivedImage(
        image_id(required(f, "id"), "id"),
        path(required(f, "path")),
        machine_id(required(f, "machine_id")),
        text(required(f, "hostname"), "hostname", MAX_NAME_BYTES),
        flag(required(f, "forwarded"), "forwarded"),
    )


def _removed(f: Fields) -> RemovedImage:
    known = _received(f)
    return RemovedImage(known.image, known.path, known.machine_id, known.hostname, known.forwarded)


def _aborted(f: Fields) -> AbortedImage:
    known = _received(f)
    reason = text(required(f, "reason"), "reason", MAX_TEXT_BYTES)
    return AbortedImage(known.image, known.path, known.machine_id, known.hostname, known.forwarded, reason)


def _hook_result(f: Fields) -> HookResult:
    known = _received(f)
    kind = text(required(f, "kind"), "kind", MAX_NAME_BYTES)
    state = text(required(f, "state"), "state", MAX_NAME_BYTES)
    message = text(required(f, "message"), "message", MAX_TEXT_BYTES)
    return HookResult(known.image, known.path, known.machine_id, known.hostname, known.forwarded, kind, state, message)


REQUESTS: dict[str, Callable[[Fields], Request]] = {
    "AppendDir": _append_dir,
    "ReplaceDir": _replace_dir,
    "RemoveDir": _remove_dir,
    "GetIndex": lambda f: GetIndex(image_id(required(f, "id"), "id"), _index_hint(f.get("hint")), packed(f)),
    "GetIndexAt": lambda f: GetIndexAt(path(required(f, "path"))),
    "GetBlock": lambda f: GetBlock(BlockHash(fixed(required(f, "hash"), "hash", HASH_BYTES)), _block_hint(f.get("hint"))),
    "GetBaseDir": lambda f: GetBaseDir(path(required(f, "path"))),
    "GetBlocks": lambda f: GetBlocks(
        path(required(f, "path")),
        image_id(required(f, "id"), "id"),
        numbers(required(f, "blocks"), "blocks"),
        packed(f),
    ),
    "CheckUpload": _check_upload,
    "GetShare": lambda f: GetShare(image_id(required(f, "id"), "id"), pieces(f, "missing")),
    "GetPieces": lambda f: GetPieces(path(required(f, "path")), image_id(required(f, "id"), "id"), pieces(f, "wanted")),
    "GetPathState": lambda f: GetPathState(path(required(f, "path")), flag(f.get("servers", False), "servers")),
    "WithdrawUpload": lambda f: WithdrawUpload(path(required(f, "path")), image_id(required(f, "image"), "image")),
    "PushPull": _push_pull,
}

RESPONSES: dict[str, tuple[int, Callable[[Fields], Response]]] = {
    "AppendDir": (MAX_ITEMS_WITH_HOSTS, _ack),
    "ReplaceDir": (MAX_ITEMS_WITH_HOSTS, _ack),
    "RemoveDir": (MAX_ITEMS_WITH_HOSTS, _ack),
    "GetIndex": (MAX_ITEMS, lambda f: IndexData(data(f), packed(f))),
    "GetIndexAt": (MAX_ITEMS_WITH_HOSTS, _index_at_data),
    "GetBlock": (MAX_ITEMS, lambda f: BlockData(data(f))),
    "GetBaseDir": (MAX_ITEMS_BASE_DIR, _base_dir_data),
    "CheckUpload": (MAX_ITEMS_WITH_HOSTS, _check_data),
    "GetShare": (MAX_ITEMS, lambda f: ShareData(pieces(f, "pieces"))),
    "GetPieces": (MAX_ITEMS, lambda f: PiecesData(pieces(f, "pieces"))),
    "GetPathState": (MAX_ITEMS_PATH_STATE, _path_state_data),
    "WithdrawUpload": (MAX_ITEMS, _ack),
    "PushPull": (MAX_ITEMS_PUSH_PULL, _push_pull_data),
}

NOTIFICATIONS: dict[str, Callable[[Fields], Notification]] = {
    "PublishImage": lambda f: PublishImage(image_id(required(f, "id"), "id")),
    "ReceivedImage": _received,
    "AbortedImage": _aborted,
    "RemovedImage": _removed,
    "HookResult": _hook_result,
}
