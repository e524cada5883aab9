"""What stands in a message, read: one reader for each name on the wire (protocol sections 3.3 and 3.5). All raise FormatError."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ciruela.model.errors import FormatError
from ciruela.model.ids import HASH_BYTES, BlockHash, ImageId, MachineId
from ciruela.model.servers import Server, SharedId
from ciruela.model.state import State, Version
from ciruela.model.vpath import MAX_COMPONENT_BYTES
from ciruela.proto import fields
from ciruela.proto.fields import Fields
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
    IndexAtData,
    IndexData,
    Notification,
    Part,
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

T = TypeVar("T")

MAX_PENDING = 65_536
"""Entries of a base dir that can be on their way."""

MAX_WATCHERS = 1000
MAX_KEPT = 1000
MAX_ITEMS = 256
MAX_ITEMS_WITH_HOSTS = 2 * fields.MAX_HOSTS + MAX_ITEMS
MAX_ITEMS_BASE_DIR = 16 * 65_536
MAX_FACT_BYTES = 1400
"""Longest body of gossip: a datagram cannot be longer, either."""

MAX_ITEMS_PATH_STATE = (12 + MOST_ADDRESSES) * MOST_SERVERS + (3 + MOST_ADDRESSES) * MOST_SHARED_IDS + MAX_ITEMS
MAX_ITEMS_PUSH_PULL = MOST_PULLED + MAX_ITEMS
MAX_ITEMS_BULK = 5 * fields.MAX_BULK + 16


def _block_hint(value: object) -> BlockHint | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 3:
        raise FormatError("hint is not a list of three")
    return BlockHint(fields.path(value[0], "hint"), fields.text(value[1], "hint", fields.MAX_TEXT_BYTES), fields.uint(value[2], "hint"))


def _index_hint(value: object) -> str | None:
    return None if value is None else fields.path(value, "hint")


def _append_dir(f: Fields) -> AppendDir:
    return AppendDir(
        fields.path(fields.required(f, "path")),
        fields.image_id(fields.required(f, "image"), "image"),
        fields.uint(fields.required(f, "timestamp"), "timestamp"),
        fields.signatures(f),
    )


def _replace_dir(f: Fields) -> ReplaceDir:
    old = f.get("old_image")
    old_image = None if old is None else fields.image_id(old, "old_image")
    wish = _append_dir(f)
    return ReplaceDir(wish.path, wish.image, old_image, wish.timestamp_ms, wish.signatures)


def _remove_dir(f: Fields) -> RemoveDir:
    wish = _append_dir(f)
    return RemoveDir(wish.path, wish.image, wish.timestamp_ms, wish.signatures, fields.flag(f.get("force", False), "force"))


def _removed_entry(value: object) -> RemovedEntry:
    f = fields.fields_of(value)
    return RemovedEntry(
        fields.uint(fields.required(f, "timestamp"), "timestamp"),
        fields.image_id(fields.required(f, "image"), "image"),
        fields.signatures(f),
        fields.flag(f.get("forced", False), "forced"),
    )


def _version(value: object) -> Version:
    row = fields.listed(value, "kept", 2)
    if len(row) != 2:
        raise FormatError("a kept image is not a pair")
    return Version(fields.uint(row[0], "a time of signature"), fields.image_id(row[1], "a kept image"))


def _check_upload(f: Fields) -> CheckUpload:
    wish = _replace_dir(f)
    replace = fields.flag(fields.required(f, "replace"), "replace")
    return CheckUpload(wish.path, replace, wish.image, wish.old_image, wish.timestamp_ms, wish.signatures)


def _check_data(f: Fields) -> CheckData:
    ack = _ack(f)
    there, coming = ((None if f.get(name) is None else fields.image_id(f[name], name)) for name in ("there", "coming"))
    return CheckData(
        ack.accepted,
        ack.reject_reason,
        fields.text(f.get("detail", ""), "detail", fields.MAX_TEXT_BYTES),
        there,
        coming,
        None if f.get("free") is None else fields.uint(f["free"], "free"),
        fields.machine_id(fields.required(f, "machine_id")),
        fields.text(fields.required(f, "hostname"), "hostname", fields.MAX_NAME_BYTES),
        ack.hosts,
        _time(f, "there_signed"),
        _time(f, "coming_signed"),
    )


def _time(f: Fields, name: str) -> int | None:
    return None if f.get(name) is None else fields.uint(f[name], name)


def _version_or_none(f: Fields, name: str) -> Version | None:
    return None if f.get(name) is None else _version(f[name])


def _facts(f: Fields, most: int) -> tuple[bytes, ...]:
    facts = tuple(fields.plain_data(fact) for fact in fields.listed(fields.required(f, "facts"), "facts", most))
    if any(len(fact) > MAX_FACT_BYTES for fact in facts):
        raise FormatError(f"a body of gossip is longer than {MAX_FACT_BYTES} bytes")
    return facts


def _push_pull(f: Fields) -> PushPull:
    port = fields.uint(fields.required(f, "port"), "port")
    if not 0 < port < 65536:
        raise FormatError(f"port {port} is none")
    return PushPull(port, _time(f, "heard"), _facts(f, MOST_PUSHED))


def _push_pull_data(f: Fields) -> PushPullData:
    return PushPullData(fields.flag(fields.required(f, "taken"), "taken"), _time(f, "heard"), _facts(f, MOST_PULLED))


def _addresses(value: object) -> tuple[str, ...]:
    return tuple(fields.text(one, "an address", fields.MAX_NAME_BYTES) for one in fields.listed(value, "addresses", MOST_ADDRESSES))


def _server(value: object) -> Server:
    f = fields.fields_of(value)
    machine = f.get("machine_id")
    return Server(
        fields.text(fields.required(f, "name"), "the name of a server", fields.MAX_NAME_BYTES),
        None if machine is None else fields.machine_id(machine),
        _addresses(f.get("addresses", [])),
        _time(f, "heard"),
        fields.flag(f.get("configured", True), "configured"),
    )


def _shared_id(value: object) -> SharedId:
    row = fields.listed(value, "shared_ids", 2)
    if len(row) != 2:
        raise FormatError("a shared machine id is not a pair")
    return SharedId(fields.machine_id(row[0]), _addresses(row[1]))


def _refused(value: object) -> tuple[ImageId, str] | None:
    if value is None:
        return None
    row = fields.listed(value, "refused", 2)
    if len(row) != 2:
        raise FormatError("what was refused is not a pair")
    return fields.image_id(row[0], "a refused image"), fields.text(row[1], "why it was refused", fields.MAX_TEXT_BYTES)


def _path_state_data(f: Fields) -> PathStateData:
    return PathStateData(
        fields.machine_id(fields.required(f, "machine_id")),
        fields.text(fields.required(f, "hostname"), "hostname", fields.MAX_NAME_BYTES),
        fields.uint(fields.required(f, "epoch"), "epoch"),
        fields.flag(fields.required(f, "taken"), "taken"),
        _version_or_none(f, "committed"),
        _version_or_none(f, "pending"),
        _refused(f.get("refused")),
        tuple(map(_server, fields.listed(f.get("servers", []), "servers", MOST_SERVERS))),
        tuple(map(_shared_id, fields.listed(f.get("shared_ids", []), "shared_ids", MOST_SHARED_IDS))),
        tuple(
            fields.fixed(one, "a refused order", REFUSED_BYTES)
            for one in fields.listed(f.get("refused_orders", []), "refused_orders", MOST_REFUSED)
        ),
    )


def _ack(f: Fields) -> UploadAck:
    reason = f.get("reject_reason")
    text = None if reason is None else fields.text(reason, "reject_reason", fields.MAX_TEXT_BYTES)
    machine = f.get("machine_id")
    hostname = fields.text(f.get("hostname", ""), "hostname", fields.MAX_NAME_BYTES)
    return UploadAck(
        fields.flag(fields.required(f, "accepted"), "accepted"),
        text,
        fields.hosts(f),
        None if machine is None else fields.machine_id(machine),
        "" if machine is None else hostname,  # a name of nobody is no name
        fields.text(f.get("detail", ""), "detail", fields.MAX_TEXT_BYTES),
    )


def _index_at_data(f: Fields) -> IndexAtData:
    data = f.get("data")
    return IndexAtData(None if data is None else fields.plain_data(data), fields.hosts(f))


def _entries(value: object, name: str, read: Callable[[object], T]) -> dict[str, T]:
    """A map by entry name. An entry that is not well made costs that entry: the others are as good as without it."""
    if not isinstance(value, dict):
        raise FormatError(f"{name} is not a map")
    found: dict[str, T] = {}
    for key, one in value.items():
        try:
            entry, content = fields.text(key, "a directory name", MAX_COMPONENT_BYTES), read(one)
        except FormatError:
            continue
        found[entry] = content
    return found


def _machines(value: object) -> tuple[MachineId, ...]:
    return tuple(map(fields.machine_id, fields.listed(value, "watches", MAX_WATCHERS)))


def _kept(value: object) -> tuple[Version, ...]:
    return tuple(map(_version, fields.listed(value, "kept", MAX_KEPT)))


def _kept_signed(value: object) -> tuple[State, ...]:
    return tuple(map(fields.state, fields.listed(value, "kept_signed", MAX_KEPT)))


def _base_dir_data(f: Fields) -> BaseDirData:
    return BaseDirData(
        fields.fixed(fields.required(f, "config_hash"), "config_hash", HASH_BYTES),
        fields.fixed(fields.required(f, "keep_list_hash"), "keep_list_hash", HASH_BYTES),
        _entries(fields.required(f, "dirs"), "dirs", fields.state),
        _entries(f.get("watches", {}), "watches", _machines),
        tuple(
            fields.text(name, "a directory name", MAX_COMPONENT_BYTES)
            for name in fields.listed(f.get("pending", []), "pending", MAX_PENDING)
        ),
        _entries(f.get("removed", {}), "removed", _removed_entry),
        _entries(f.get("kept", {}), "kept", _kept),
        _entries(f.get("kept_signed", {}), "kept_signed", _kept_signed),
    )


def blocks_data(f: Fields, cut: list[memoryview]) -> BlocksData:
    """``cut``: the long ones of the parts, which are empty in ``f``."""
    packed = set(fields.numbers(f.get("packed", []), "packed"))
    parts = fields.listed(fields.required(f, "parts"), "parts", fields.MAX_BULK)
    longer = iter(cut)
    found: list[Part] = []
    for at, part in enumerate(parts):
        data = fields.plain_data(part) or next(longer, None)
        if data is None:
            raise FormatError("a part is empty")
        found.append(Part(data, at in packed))
    if next(longer, None) is not None:
        raise FormatError("long bytes outside of the parts")
    return BlocksData(tuple(found), fields.numbers(f.get("lacks", []), "lacks"))


def _received(f: Fields) -> ReceivedImage:
    return ReceivedImage(
        fields.image_id(fields.required(f, "id"), "id"),
        fields.path(fields.required(f, "path")),
        fields.machine_id(fields.required(f, "machine_id")),
        fields.text(fields.required(f, "hostname"), "hostname", fields.MAX_NAME_BYTES),
        fields.flag(fields.required(f, "forwarded"), "forwarded"),
    )


def _removed(f: Fields) -> RemovedImage:
    known = _received(f)
    return RemovedImage(known.image, known.path, known.machine_id, known.hostname, known.forwarded)


def _aborted(f: Fields) -> AbortedImage:
    known = _received(f)
    reason = fields.text(fields.required(f, "reason"), "reason", fields.MAX_TEXT_BYTES)
    return AbortedImage(known.image, known.path, known.machine_id, known.hostname, known.forwarded, reason)


def _hook_result(f: Fields) -> HookResult:
    known = _received(f)
    kind = fields.text(fields.required(f, "kind"), "kind", fields.MAX_NAME_BYTES)
    state = fields.text(fields.required(f, "state"), "state", fields.MAX_NAME_BYTES)
    message = fields.text(fields.required(f, "message"), "message", fields.MAX_TEXT_BYTES)
    return HookResult(known.image, known.path, known.machine_id, known.hostname, known.forwarded, kind, state, message)


REQUESTS: dict[str, Callable[[Fields], Request]] = {
    "AppendDir": _append_dir,
    "ReplaceDir": _replace_dir,
    "RemoveDir": _remove_dir,
    "GetIndex": lambda f: GetIndex(fields.image_id(fields.required(f, "id"), "id"), _index_hint(f.get("hint")), fields.packed(f)),
    "GetIndexAt": lambda f: GetIndexAt(fields.path(fields.required(f, "path"))),
    "GetBlock": lambda f: GetBlock(BlockHash(fields.fixed(fields.required(f, "hash"), "hash", HASH_BYTES)), _block_hint(f.get("hint"))),
    "GetBaseDir": lambda f: GetBaseDir(fields.path(fields.required(f, "path"))),
    "GetBlocks": lambda f: GetBlocks(
        fields.path(fields.required(f, "path")),
        fields.image_id(fields.required(f, "id"), "id"),
        fields.numbers(fields.required(f, "blocks"), "blocks"),
        fields.packed(f),
    ),
    "CheckUpload": _check_upload,
    "GetShare": lambda f: GetShare(fields.image_id(fields.required(f, "id"), "id"), fields.pieces(f, "missing")),
    "GetPieces": lambda f: GetPieces(
        fields.path(fields.required(f, "path")), fields.image_id(fields.required(f, "id"), "id"), fields.pieces(f, "wanted")
    ),
    "GetPathState": lambda f: GetPathState(fields.path(fields.required(f, "path")), fields.flag(f.get("servers", False), "servers")),
    "WithdrawUpload": lambda f: WithdrawUpload(
        fields.path(fields.required(f, "path")), fields.image_id(fields.required(f, "image"), "image")
    ),
    "PushPull": _push_pull,
}

RESPONSES: dict[str, tuple[int, Callable[[Fields], Response]]] = {
    "AppendDir": (MAX_ITEMS_WITH_HOSTS, _ack),
    "ReplaceDir": (MAX_ITEMS_WITH_HOSTS, _ack),
    "RemoveDir": (MAX_ITEMS_WITH_HOSTS, _ack),
    "GetIndex": (MAX_ITEMS, lambda f: IndexData(fields.data(f), fields.packed(f))),
    "GetIndexAt": (MAX_ITEMS_WITH_HOSTS, _index_at_data),
    "GetBlock": (MAX_ITEMS, lambda f: BlockData(fields.data(f))),
    "GetBaseDir": (MAX_ITEMS_BASE_DIR, _base_dir_data),
    "CheckUpload": (MAX_ITEMS_WITH_HOSTS, _check_data),
    "GetShare": (MAX_ITEMS, lambda f: ShareData(fields.pieces(f, "pieces"))),
    "GetPieces": (MAX_ITEMS, lambda f: PiecesData(fields.pieces(f, "pieces"))),
    "GetPathState": (MAX_ITEMS_PATH_STATE, _path_state_data),
    "WithdrawUpload": (MAX_ITEMS, _ack),
    "PushPull": (MAX_ITEMS_PUSH_PULL, _push_pull_data),
}

NOTIFICATIONS: dict[str, Callable[[Fields], Notification]] = {
    "PublishImage": lambda f: PublishImage(fields.image_id(fields.required(f, "id"), "id")),
    "ReceivedImage": _received,
    "AbortedImage": _aborted,
    "RemovedImage": _removed,
    "HookResult": _hook_result,
}
