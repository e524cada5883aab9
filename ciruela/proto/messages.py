"""One frozen class per message (protocol section 3.5). Field order is the order on the wire.

Paths are the text as it was sent: whoever acts on one parses it (``model.vpath.VPath.parse``) and can answer with a reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ciruela.model.ids import Block, BlockHash, ImageId, MachineId, Server, SharedId
from ciruela.model.versions import State, Version

Hosts = dict[MachineId, str]
"""Other nodes that take a directory: machine id -> name to resolve."""

MOST_BULK_BYTES = 1024 * 1024
"""Blocks that one GetBlocks may ask for, in bytes: an answer must not keep others from theirs for long."""

# -- requests -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AppendDir:
    """Client to node: make this image appear at a path that has none. ``signatures`` are 64 bytes each, all made for ``timestamp_ms``."""

    path: str
    image: ImageId
    timestamp_ms: int
    signatures: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ReplaceDir:
    """Client to node: make this image appear at a path, in place of ``old_image`` if that is given."""

    path: str
    image: ImageId
    old_image: ImageId | None
    timestamp_ms: int
    signatures: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class GetIndex:
    """Node to client or node: the index bytes of an image. ``packed``: they may be compressed; only where ``ciruela.v2`` was confirmed."""

    image: ImageId
    hint: str | None
    packed: bool = False


@dataclass(frozen=True, slots=True)
class GetIndexAt:
    """Client to node: the index of what is committed at a path."""

    path: str


@dataclass(frozen=True, slots=True)
class BlockHint:
    """Location of a block: virtual path of the image, absolute path inside it, byte offset (a multiple of 32,768)."""

    vpath: str
    path: str
    offset: int


@dataclass(frozen=True, slots=True)
class GetBlock:
    """Anyone to node, node to client: one block. To a node the hint is mandatory, a client looks the hash up."""

    hash: BlockHash
    hint: BlockHint | None


@dataclass(frozen=True, slots=True)
class GetBaseDir:
    """Node to node: all states of a base dir."""

    path: str


@dataclass(frozen=True, slots=True)
class GetBlocks:
    """As :class:`GetBlock`, many blocks of one image by their numbers in its index, ascending. Only where ``ciruela.v2`` was confirmed.

    ``packed``: the parts of the answer may be compressed.
    """

    path: str
    image: ImageId
    numbers: tuple[int, ...]
    packed: bool = False


@dataclass(frozen=True, slots=True)
class GetShare:
    """Node to client: some of the pieces of ``missing`` that the client has not promised to another node. Only ``ciruela.v2``.

    Masks of pieces are sent as bytes (``model.bitfield.Pieces.to_bytes``).
    """

    image: ImageId
    missing: bytes


@dataclass(frozen=True, slots=True)
class GetPieces:
    """Node to node: tell which of the pieces ``wanted`` are there, as soon as one is, or after some seconds. Only ``ciruela.v2``."""

    path: str
    image: ImageId
    wanted: bytes


@dataclass(frozen=True, slots=True)
class RemoveDir:
    """Client to node: make ``image`` go from a path. ``signatures`` are made for a removal at ``timestamp_ms``. Only ``ciruela.v2``.

    ``force``: also where a protected link points to it.
    """

    path: str
    image: ImageId
    timestamp_ms: int
    signatures: tuple[bytes, ...]
    force: bool = False


@dataclass(frozen=True, slots=True)
class CheckUpload:
    """Client to node: what would you answer to this upload? Nothing is recorded or begun. Only ``ciruela.v2``.

    ``signatures`` are made over another text than those of uploads (``keys.signed``), so that neither passes for the other. ``replace``:
    as ReplaceDir, otherwise as AppendDir.
    """

    path: str
    replace: bool
    image: ImageId
    old_image: ImageId | None
    timestamp_ms: int
    signatures: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class GetPathState:
    """Anyone to node: what is at a path there and, with ``servers``, which other servers may take it. Only ``ciruela.v2``."""

    path: str
    servers: bool = False


@dataclass(frozen=True, slots=True)
class WithdrawUpload:
    """Client to node: give up the upload of ``image`` to a path that this connection asked for, unless it is committed.

    Only ``ciruela.v2``.
    """

    path: str
    image: ImageId


@dataclass(frozen=True, slots=True)
class PushPull:
    """Node to node: facts of gossip over a connection, in both directions (after memberlist's push/pull). Only ``ciruela.v2``.

    ``port`` is where the sender listens. ``heard_ms``: milliseconds since it heard a datagram of the receiver, None if it never did.
    ``facts`` are bodies of datagrams (``membership.packets.body``), at most :data:`MOST_PUSHED`.
    """

    port: int
    heard_ms: int | None
    facts: tuple[bytes, ...]


MOST_PUSHED = 40
"""Bodies in one PushPull: some 54 kB, so that the message stays below what a stranger may send."""

MOST_PULLED = 700
"""Bodies in one answer to it: below 1 MiB."""

REFUSED_BYTES = 32
MOST_REFUSED = 64
"""Length of the digest of a refused order, and how many of them one answer to GetPathState has."""

NOT_KNOWN = "is not known here"
"""Suffix of the refusal of a request for something that is not here."""


def unknown_request(reason: str) -> bool:
    """Tell by the text of a refusal whether the other side is of a version that lacks the request."""
    return reason.endswith(NOT_KNOWN)


MOST_ADDRESSES = 16
"""Addresses of one server, or with one machine id."""

MOST_SHARED_IDS = 100
MOST_SERVERS = 2000
"""Servers in one answer to GetPathState."""

Request = (
    AppendDir
    | ReplaceDir
    | GetIndex
    | GetIndexAt
    | GetBlock
    | GetBaseDir
    | GetBlocks
    | GetShare
    | GetPieces
    | RemoveDir
    | CheckUpload
    | GetPathState
    | WithdrawUpload
    | PushPull
)

NEWER = (GetBlocks, GetShare, GetPieces, RemoveDir, CheckUpload, GetPathState, WithdrawUpload, PushPull)
"""Requests that only ``ciruela.v2`` has."""

# -- responses ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UploadAck:
    """Answer to AppendDir, ReplaceDir, RemoveDir and WithdrawUpload. ``accepted`` promises an attempt; completion is a notification.

    Only where ``ciruela.v2`` was confirmed: ``machine`` and ``hostname`` of the node that answers, and ``detail`` of a refusal, for people.
    """

    accepted: bool
    reject_reason: str | None
    hosts: Hosts = field(default_factory=dict)
    machine: MachineId | None = None
    hostname: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class IndexData:
    """Answer to GetIndex. ``packed``: ``data`` is a frame of zstd with the index."""

    data: bytes
    packed: bool = False


@dataclass(frozen=True, slots=True)
class IndexAtData:
    """Answer to GetIndexAt; ``data`` is None when there is no image or it cannot be read."""

    data: bytes | None
    hosts: Hosts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BlockData:
    """Answer to GetBlock."""

    data: bytes


@dataclass(frozen=True, slots=True)
class BlockPart:
    """Blocks of one piece, one after another. ``packed``: ``data`` is a frame of zstd with them (:mod:`ciruela.proto.compression`)."""

    data: Block
    packed: bool = False


@dataclass(frozen=True, slots=True)
class BlocksData:
    """Answer to GetBlocks: for each piece (``model.bitfield``) those of its blocks that are here, and the numbers of those that are not.

    A piece of which nothing is here has no part.
    """

    parts: tuple[BlockPart, ...]
    lacks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ShareData:
    """Answer to GetShare: a mask of pieces, 0 when all that is missing was promised to others."""

    pieces: bytes


@dataclass(frozen=True, slots=True)
class PiecesData:
    """Answer to GetPieces: those of the wanted pieces that are here."""

    pieces: bytes


@dataclass(frozen=True, slots=True)
class RemovedEntry:
    """That ``image`` was removed, and the signatures that said so, all of the time ``timestamp_ms``. ``forced``: as RemoveDir.force."""

    timestamp_ms: int
    image: ImageId
    signatures: tuple[bytes, ...]
    forced: bool = False


@dataclass(frozen=True, slots=True)
class BaseDirData:
    """Answer to GetBaseDir: entry name -> state.

    Ours, and left out when empty: ``watches`` names who waits for an entry's arrival, ``pending`` the entries that are still on their way,
    ``removed`` what was removed there by a signed wish, ``kept`` the replaced images that are kept, the one that was replaced last first;
    ``kept_signed`` those of which the signatures are kept, too.
    """

    config_hash: bytes
    keep_list_hash: bytes
    dirs: dict[str, State]
    watches: dict[str, tuple[MachineId, ...]] = field(default_factory=dict)
    pending: tuple[str, ...] = ()
    removed: dict[str, RemovedEntry] = field(default_factory=dict)
    kept: dict[str, tuple[Version, ...]] = field(default_factory=dict)
    kept_signed: dict[str, tuple[State, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckData:
    """Answer to CheckUpload: what the upload would be answered, and what is there now.

    ``detail`` is for people. ``there``: the image that is committed at the path, ``coming``: the one that is on its way there.
    ``free_bytes``: what a download may use beyond the reserve; None where that cannot be told. The node names itself, too.
    ``there_ms`` and ``coming_ms``: the times for which these two are signed.
    """

    accepted: bool
    reject_reason: str | None
    detail: str
    there: ImageId | None
    coming: ImageId | None
    free_bytes: int | None
    machine: MachineId
    hostname: str
    hosts: Hosts = field(default_factory=dict)
    there_ms: int | None = None
    coming_ms: int | None = None


@dataclass(frozen=True, slots=True)
class PathStateData:
    """Answer to GetPathState: what the node says of the path, and whom it knows that may take it.

    ``epoch_ms``: wall time when the node started; one machine id with two epochs is two servers. ``taken``: the node has the directory,
    with paths of this depth. ``committed`` is what really stands there, ``pending`` what is on its way. ``refused``: the image that was
    refused or given up there last, and the word for it. ``refused_orders``: digests of orders of clients that were refused for what is
    there (``uploads.rejections``): their signatures count in no other form.
    """

    machine: MachineId
    hostname: str
    epoch_ms: int
    taken: bool
    committed: Version | None = None
    pending: Version | None = None
    refused: tuple[ImageId, str] | None = None
    servers: tuple[Server, ...] = ()
    shared_ids: tuple[SharedId, ...] = ()
    refused_orders: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class PushPullData:
    """Answer to PushPull. ``taken``: the pushed facts were believed, for they came from a configured peer; the rest as in PushPull."""

    taken: bool
    heard_ms: int | None
    facts: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Error:
    """Answer to a request that failed; the text is for people."""

    text: str


Response = (
    UploadAck
    | IndexData
    | IndexAtData
    | BlockData
    | BlocksData
    | ShareData
    | PiecesData
    | BaseDirData
    | CheckData
    | PathStateData
    | PushPullData
    | Error
)

# -- notifications ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PublishImage:
    """Client to node: this connection can give the index and the blocks of an image, and wants to hear of its arrival."""

    image: ImageId


@dataclass(frozen=True, slots=True)
class ReceivedImage:
    """Node to client: ``machine_id`` has the image at ``path``. ``forwarded``: the sender heard so by gossip."""

    image: ImageId
    path: str
    machine_id: MachineId
    hostname: str
    forwarded: bool


@dataclass(frozen=True, slots=True)
class AbortedImage:
    """Node to client: ``machine_id`` gave the image up, for ``reason``."""

    image: ImageId
    path: str
    machine_id: MachineId
    hostname: str
    forwarded: bool
    reason: str


@dataclass(frozen=True, slots=True)
class RemovedImage:
    """Node to client: ``image`` is not at ``path`` any more on ``machine_id``, as somebody signed. Only ``ciruela.v2``."""

    image: ImageId
    path: str
    machine_id: MachineId
    hostname: str
    forwarded: bool


@dataclass(frozen=True, slots=True)
class HookResult:
    """Node to client: how a hook of ``machine_id`` stands for an image that it has. Only where ``ciruela.v2`` was confirmed.

    ``kind`` and ``state`` are words of ``model.hooks``; ``message`` says why it failed.
    """

    image: ImageId
    path: str
    machine_id: MachineId
    hostname: str
    forwarded: bool
    kind: str
    state: str
    message: str


Notification = PublishImage | ReceivedImage | AbortedImage | RemovedImage | HookResult
