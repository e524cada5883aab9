"""One frozen class per message (protocol section 3.5).

The annotation of an attribute is its type and its :class:`~ciruela.proto.forms.Field`: how it is written, read, checked and bounded. Fields
are written in the order of the attributes. :mod:`ciruela.proto.table` has names, answers, versions, and bounds of whole messages.

Paths are the text as it was sent: whoever acts on one parses it (``model.vpath.VPath.parse``) and can answer with a reason.
"""

from dataclasses import field
from typing import Annotated, Any, NamedTuple

from ciruela.model.errors import FormatError
from ciruela.model.ids import Block, BlockHash, ImageId, MachineId, Server, SharedId
from ciruela.model.values import dataclass
from ciruela.model.versions import SigEntry, State, Version, bounded
from ciruela.proto.forms import (
    ALGORITHM,
    BLOCK,
    DATA,
    ENTRY,
    FLAG,
    HASH,
    HOSTS,
    IMAGE,
    MACHINE,
    MASK,
    MAX_BULK,
    MAX_NAME_BYTES,
    NAME,
    PIECES,
    PORT,
    RUNS,
    SIGNATURE,
    TEXT,
    UINT,
    VPATH,
    Codec,
    Data,
    Entries,
    Fixed,
    Listed,
    Row,
    Struct,
    Text,
    listed,
    nullable,
    optional,
    required,
    spare,
)

Hosts = dict[MachineId, str]
"""Other nodes that take a directory: machine id -> name to resolve."""

MOST_BULK_BYTES = 1024 * 1024
"""Blocks that one GetBlocks may ask for, in bytes: an answer must not keep others from theirs for long."""

MAX_SIGNATURES = 16
MAX_OFFERED = 1000
"""Signatures that an upload may have; only the first :data:`MAX_SIGNATURES` of them are looked at."""

MAX_KEPT_SIGNATURES = 10_000
"""Signatures of one image that a list of an earlier version may have."""

MAX_ARRIVING = 65_536
"""Entries of a base dir that can be on their way."""

MAX_WATCHERS = 1000
MAX_KEPT = 1000
MAX_FACT_BYTES = 1400
"""Longest body of gossip: a datagram cannot be longer, either."""

MOST_PUSHED = 40
"""Bodies in one PushPull: some 54 kB, so that the message stays below what a stranger may send."""

MOST_PULLED = 700
"""Bodies in one answer to it: below 1 MiB."""

REFUSED_BYTES = 32
MOST_REFUSED = 64
"""Length of the digest of a refused order, and how many of them one answer to GetPathState has."""

MOST_BROUGHT_BYTES = 56 * 1024
"""Index and blocks that come with an order: the message stays below what a stranger may send."""

MOST_ADDRESSES = 16
"""Addresses of one server, or with one machine id."""

MOST_SHARED_IDS = 100
MOST_OFFERS = 128
"""Offers, and answers to offers, in one message."""

MOST_SERVERS = 2000
"""Servers in one answer to GetPathState."""

# -- forms that several messages have -----------------------------------------------------------------------------------------

WISH_SIGNATURES = Listed(SIGNATURE, MAX_OFFERED, kept=MAX_SIGNATURES)
"""Signatures of one wish: the first ones. A client with more keys than that is not refused for it."""

VERSION = Row(Version, (("a time of signature", UINT), ("a kept image", IMAGE)), "a kept image is not a pair", "kept")


class SignedTimes(Codec[tuple[SigEntry, ...]]):
    """Signatures of a state, each with its time: in order and without doubles, the newest of too many that earlier versions kept.

    It has a loop of its own, because a list of a base dir has tens of thousands.
    """

    __slots__ = ()

    def read(self, value: Any, name: str) -> tuple[SigEntry, ...]:
        """As :meth:`Codec.read`."""
        entries = []
        for pair in listed(value, name, MAX_KEPT_SIGNATURES):
            if not isinstance(pair, list) or len(pair) != 2:
                raise FormatError("a signature entry is not a pair")
            entries.append(SigEntry(UINT.read(pair[0], "a signature's time"), SIGNATURE.read(pair[1], name)))
        return bounded(entries)

    def write(self, value: tuple[SigEntry, ...]) -> list[object]:
        """As :meth:`Codec.write`."""
        return [[one.timestamp_ms, [ALGORITHM, one.signature]] for one in value]


STATE = Struct(State, {"image": required(IMAGE), "signatures": required(SignedTimes())})
_ADDRESSES = Listed(NAME, MOST_ADDRESSES, "an address")
SERVER = Struct(
    Server,
    {
        "name": required(Text(MAX_NAME_BYTES, "the name of a server")),
        "machine": nullable(MACHINE, "machine_id"),
        "addresses": optional(_ADDRESSES, []),
        "heard_ms": nullable(UINT, "heard"),
        "configured": spare(FLAG, True),
    },
)
SHARED_ID = Row(
    SharedId,
    (("", MACHINE), ("addresses", _ADDRESSES)),
    "a shared machine id is not a pair",
    "shared_ids",
    ("machine", "addresses"),
)


def _pair(*values: Any) -> tuple[Any, ...]:
    return values


TICKET_BYTES = 16
TICKET: Codec[bytes] = Fixed(TICKET_BYTES, "a ticket")
_FACT = Data(MAX_FACT_BYTES, "a body of gossip")
_DIGEST: Codec[bytes] = Fixed(REFUSED_BYTES, "a refused order")
REFUSAL: Codec[tuple[ImageId, str]] = Row(
    _pair, (("a refused image", IMAGE), ("why it was refused", TEXT)), "what was refused is not a pair", "refused"
)

# Attributes that several messages have, with their field.
PathField = Annotated[str, required(VPATH)]
ImageField = Annotated[ImageId, required(IMAGE)]
IdField = Annotated[ImageId, required(IMAGE, "id")]
TimeField = Annotated[int, required(UINT, "timestamp")]
SignaturesField = Annotated[tuple[bytes, ...], required(WISH_SIGNATURES)]
MaskField = Annotated[bytes, required(MASK)]
SpareFlagField = Annotated[bool, spare(FLAG, False)]
ReasonField = Annotated[str | None, nullable(TEXT)]
HostsField = Annotated[Hosts, optional(HOSTS, {})]
HeardField = Annotated[int | None, nullable(UINT, "heard")]
MachineField = Annotated[MachineId, required(MACHINE, "machine_id")]
HostnameField = Annotated[str, required(NAME)]
FlagField = Annotated[bool, required(FLAG)]
PiecesField = Annotated[int, spare(PIECES, [])]


@dataclass(frozen=True, slots=True)
class ImageContent:
    """A whole small image: its index, and all its blocks in index order, one after another. Neither is verified yet."""

    index: bytes
    blocks: bytes


_BROUGHT = Data(MOST_BROUGHT_BYTES, "what comes with an order")
_CONTENT = Row(ImageContent, (("content", _BROUGHT), ("content", _BROUGHT)), "content is not a pair", attributes=("index", "blocks"))
ContentField = Annotated[ImageContent | None, spare(_CONTENT, None)]

# -- requests -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AppendDir:
    """Client to node: make this image appear at a path that has none. ``signatures`` are 64 bytes each, all made for ``timestamp_ms``.

    ``content``: the image itself, so that nobody has to ask for it; only where ``ciruela.v3`` was confirmed.
    """

    path: PathField
    image: ImageField
    timestamp_ms: TimeField
    signatures: SignaturesField
    content: ContentField = None


@dataclass(frozen=True, slots=True)
class ReplaceDir:
    """Client to node: make this image appear at a path, in place of ``old_image`` if that is given. ``content`` as in AppendDir."""

    path: PathField
    image: ImageField
    old_image: Annotated[ImageId | None, nullable(IMAGE)]
    timestamp_ms: TimeField
    signatures: SignaturesField
    content: ContentField = None


@dataclass(frozen=True, slots=True)
class GetIndex:
    """Node to client or node: the index bytes of an image. ``packed``: they may be compressed; only where ``ciruela.v2`` was confirmed."""

    image: IdField
    hint: Annotated[str | None, nullable(VPATH)]
    packed: SpareFlagField = False


@dataclass(frozen=True, slots=True)
class GetIndexAt:
    """Client to node: the index of what is committed at a path."""

    path: PathField


@dataclass(frozen=True, slots=True)
class BlockHint:
    """Location of a block: virtual path of the image, absolute path inside it, byte offset (a multiple of 32,768)."""

    vpath: str
    path: str
    offset: int


BLOCK_HINT = Row(
    BlockHint, (("hint", VPATH), ("hint", TEXT), ("hint", UINT)), "hint is not a list of three", attributes=("vpath", "path", "offset")
)


@dataclass(frozen=True, slots=True)
class GetBlock:
    """Anyone to node, node to client: one block. To a node the hint is mandatory, a client looks the hash up."""

    hash: Annotated[BlockHash, required(BLOCK)]
    hint: Annotated[BlockHint | None, nullable(BLOCK_HINT)]


@dataclass(frozen=True, slots=True)
class GetBaseDir:
    """Node to node: all states of a base dir."""

    path: PathField


@dataclass(frozen=True, slots=True)
class GetBlocks:
    """As :class:`GetBlock`, many blocks of one image by their numbers in its index, ascending. Only where ``ciruela.v2`` was confirmed.

    ``packed``: the parts of the answer may be compressed.
    """

    path: PathField
    image: IdField
    numbers: Annotated[tuple[int, ...], required(RUNS, "blocks")]
    packed: SpareFlagField = False


@dataclass(frozen=True, slots=True)
class GetShare:
    """Node to client: some of the pieces of ``missing`` that the client has not promised to another node. Only ``ciruela.v2``.

    Masks of pieces are sent as bytes (``model.bitfield.Pieces.to_bytes``).
    """

    image: IdField
    missing: MaskField


@dataclass(frozen=True, slots=True)
class OpenBulk:
    """Client to node, or node to node: may this side open a bulk connection beside this one? Only ``ciruela.v3``.

    ``gives``: it gives blocks there; otherwise it asks for them.
    """

    gives: FlagField


@dataclass(frozen=True, slots=True)
class GetPieces:
    """Node to node: tell which of the pieces ``wanted`` are there, as soon as one is, or after some seconds. Only ``ciruela.v2``."""

    path: PathField
    image: IdField
    wanted: MaskField


@dataclass(frozen=True, slots=True)
class RemoveDir:
    """Client to node: make ``image`` go from a path. ``signatures`` are made for a removal at ``timestamp_ms``. Only ``ciruela.v2``.

    ``force``: also where a protected link points to it.
    """

    path: PathField
    image: ImageField
    timestamp_ms: TimeField
    signatures: SignaturesField
    force: SpareFlagField = False


@dataclass(frozen=True, slots=True)
class CheckUpload:
    """Client to node: what would you answer to this upload? Nothing is recorded or begun. Only ``ciruela.v2``.

    ``signatures`` are made over another text than those of uploads (``keys.signed``), so that neither passes for the other. ``replace``:
    as ReplaceDir, otherwise as AppendDir.
    """

    path: PathField
    replace: FlagField
    image: ImageField
    old_image: Annotated[ImageId | None, nullable(IMAGE)]
    timestamp_ms: TimeField
    signatures: SignaturesField


@dataclass(frozen=True, slots=True)
class GetPathState:
    """Anyone to node: what is at a path there and, with ``servers``, which other servers may take it. Only ``ciruela.v2``."""

    path: PathField
    servers: SpareFlagField = False


@dataclass(frozen=True, slots=True)
class WithdrawUpload:
    """Client to node: give up the upload of ``image`` to a path that this connection asked for, unless it is committed.

    Only ``ciruela.v2``.
    """

    path: PathField
    image: ImageField


@dataclass(frozen=True, slots=True)
class PushPull:
    """Node to node: facts of gossip over a connection, in both directions (after memberlist's push/pull). Only ``ciruela.v2``.

    ``port`` is where the sender listens. ``heard_ms``: milliseconds since it heard a datagram of the receiver, None if it never did.
    ``facts`` are bodies of datagrams (``membership.packets.body``), at most :data:`MOST_PUSHED`.
    """

    port: Annotated[int, required(PORT)]
    heard_ms: HeardField
    facts: Annotated[tuple[bytes, ...], required(Listed(_FACT, MOST_PUSHED))]


NOT_KNOWN = "is not known here"
"""Suffix of the refusal of a request for something that is not here."""


def unknown_request(reason: str) -> bool:
    """Tell by the text of a refusal whether the other side is of a version that lacks the request."""
    return reason.endswith(NOT_KNOWN)


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
    | OpenBulk
)

# -- responses ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UploadAck:
    """Answer to AppendDir, ReplaceDir, RemoveDir and WithdrawUpload. ``accepted`` promises an attempt; completion is a notification.

    Only where ``ciruela.v2`` was confirmed: ``machine`` and ``hostname`` of the node that answers, and ``detail`` of a refusal, for people.
    """

    accepted: FlagField
    reject_reason: ReasonField
    hosts: HostsField = field(default_factory=dict)
    machine: Annotated[MachineId | None, spare(MACHINE, None, "machine_id")] = None
    # A name of nobody is no name.
    hostname: Annotated[str, optional(NAME, "", beside="machine_id")] = ""
    detail: Annotated[str, spare(TEXT, "")] = ""


@dataclass(frozen=True, slots=True)
class IndexData:
    """Answer to GetIndex. ``packed``: ``data`` is a frame of zstd with the index."""

    data: Annotated[bytes, required(DATA, last=True)]
    packed: SpareFlagField = False


@dataclass(frozen=True, slots=True)
class IndexAtData:
    """Answer to GetIndexAt; ``data`` is None when there is no image or it cannot be read."""

    data: Annotated[bytes | None, nullable(DATA)]
    hosts: HostsField = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BlockData:
    """Answer to GetBlock."""

    data: Annotated[bytes, required(DATA)]


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


class PlainBlocks(NamedTuple):
    """BlocksData as it is written: ``packed`` are places in ``parts``."""

    lacks: Annotated[tuple[int, ...], optional(RUNS, [])]
    packed: Annotated[tuple[int, ...], optional(RUNS, [])]
    parts: Annotated[tuple[bytes, ...], required(Listed(DATA, MAX_BULK), last=True)]  # guard: A15 A24, MAX_BULK -> 1 << 30


@dataclass(frozen=True, slots=True)
class ShareData:
    """Answer to GetShare: a mask of pieces, 0 when all that is missing was promised to others."""

    pieces: MaskField


@dataclass(frozen=True, slots=True)
class BulkTicket:
    """Answer to OpenBulk: the first message on the bulk connection, by which the node knows what it belongs to."""

    ticket: Annotated[bytes, required(TICKET)]


@dataclass(frozen=True, slots=True)
class PiecesData:
    """Answer to GetPieces: those of the wanted pieces that are here."""

    pieces: MaskField


@dataclass(frozen=True, slots=True)
class RemovedEntry:
    """That ``image`` was removed, and the signatures that said so, all of the time ``timestamp_ms``. ``forced``: as RemoveDir.force."""

    timestamp_ms: TimeField
    image: ImageField
    signatures: SignaturesField
    forced: SpareFlagField = False


@dataclass(frozen=True, slots=True)
class BaseDirData:
    """Answer to GetBaseDir: entry name -> state.

    Ours, and left out when empty: ``watches`` names who waits for an entry's arrival, ``pending`` the entries that are still on their way,
    ``removed`` what was removed there by a signed wish, ``kept`` the replaced images that are kept, the one that was replaced last first;
    ``kept_signed`` those of which the signatures are kept, too.
    """

    config_hash: Annotated[bytes, required(HASH)]
    keep_list_hash: Annotated[bytes, required(HASH)]
    dirs: Annotated[dict[str, State], required(Entries(STATE))]
    watches: Annotated[dict[str, tuple[MachineId, ...]], spare(Entries(Listed(MACHINE, MAX_WATCHERS)), {})] = field(default_factory=dict)
    pending: Annotated[tuple[str, ...], spare(Listed(ENTRY, MAX_ARRIVING, "a directory name"), [])] = ()
    removed: Annotated[dict[str, RemovedEntry], spare(Entries(Struct.of(RemovedEntry)), {})] = field(default_factory=dict)
    kept: Annotated[dict[str, tuple[Version, ...]], spare(Entries(Listed(VERSION, MAX_KEPT)), {})] = field(default_factory=dict)
    kept_signed: Annotated[dict[str, tuple[State, ...]], spare(Entries(Listed(STATE, MAX_KEPT)), {})] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckData:
    """Answer to CheckUpload: what the upload would be answered, and what is there now.

    ``detail`` is for people. ``there``: the image that is committed at the path, ``coming``: the one that is on its way there.
    ``free_bytes``: what a download may use beyond the reserve; None where that cannot be told. The node names itself, too.
    ``there_ms`` and ``coming_ms``: the times for which these two are signed.
    """

    accepted: FlagField
    reject_reason: ReasonField
    detail: Annotated[str, optional(TEXT, "")]
    there: Annotated[ImageId | None, nullable(IMAGE)]
    coming: Annotated[ImageId | None, nullable(IMAGE)]
    free_bytes: Annotated[int | None, nullable(UINT, "free")]
    machine: MachineField
    hostname: HostnameField
    hosts: HostsField = field(default_factory=dict)
    there_ms: Annotated[int | None, spare(UINT, None, "there_signed")] = None
    coming_ms: Annotated[int | None, spare(UINT, None, "coming_signed")] = None


@dataclass(frozen=True, slots=True)
class PathStateData:
    """Answer to GetPathState: what the node says of the path, and whom it knows that may take it.

    ``epoch_ms``: wall time when the node started; one machine id with two epochs is two servers. ``taken``: the node has the directory,
    with paths of this depth. ``committed`` is what really stands there, ``pending`` what is on its way. ``refused``: the image that was
    refused or given up there last, and the word for it. ``refused_orders``: digests of orders of clients that were refused for what is
    there (``uploads.rejections``): their signatures count in no other form.
    """

    machine: MachineField
    hostname: HostnameField
    epoch_ms: Annotated[int, required(UINT, "epoch")]
    taken: FlagField
    committed: Annotated[Version | None, nullable(VERSION)] = None
    pending: Annotated[Version | None, nullable(VERSION)] = None
    refused: Annotated[tuple[ImageId, str] | None, nullable(REFUSAL)] = None
    servers: Annotated[tuple[Server, ...], optional(Listed(SERVER, MOST_SERVERS), [])] = ()
    shared_ids: Annotated[tuple[SharedId, ...], optional(Listed(SHARED_ID, MOST_SHARED_IDS), [])] = ()
    refused_orders: Annotated[tuple[bytes, ...], spare(Listed(_DIGEST, MOST_REFUSED), [])] = ()


@dataclass(frozen=True, slots=True)
class PushPullData:
    """Answer to PushPull. ``taken``: the pushed facts were believed, for they came from a configured peer; the rest as in PushPull."""

    taken: FlagField
    heard_ms: HeardField
    facts: Annotated[tuple[bytes, ...], required(Listed(_FACT, MOST_PULLED))]


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
    | BulkTicket
    | Error
)

# -- notifications ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PublishImage:
    """Client to node: this connection can give the index and the blocks of an image, and wants to hear of its arrival."""

    image: IdField


@dataclass(frozen=True, slots=True)
class ReceivedImage:
    """Node to client: ``machine_id`` has the image at ``path``. ``forwarded``: the sender heard so by gossip."""

    image: IdField
    path: PathField
    machine_id: MachineField
    hostname: HostnameField
    forwarded: FlagField


@dataclass(frozen=True, slots=True)
class AbortedImage:
    """Node to client: ``machine_id`` gave the image up, for ``reason``."""

    image: IdField
    path: PathField
    machine_id: MachineField
    hostname: HostnameField
    forwarded: FlagField
    reason: Annotated[str, required(TEXT)]


@dataclass(frozen=True, slots=True)
class RemovedImage:
    """Node to client: ``image`` is not at ``path`` any more on ``machine_id``, as somebody signed. Only ``ciruela.v2``."""

    image: IdField
    path: PathField
    machine_id: MachineField
    hostname: HostnameField
    forwarded: FlagField


@dataclass(frozen=True, slots=True)
class HookResult:
    """Node to client: how a hook of ``machine_id`` stands for an image that it has. Only where ``ciruela.v2`` was confirmed.

    ``kind`` and ``state`` are words of ``model.hooks``; ``message`` says why it failed.
    """

    image: IdField
    path: PathField
    machine_id: MachineField
    hostname: HostnameField
    forwarded: FlagField
    kind: Annotated[str, required(NAME)]
    state: Annotated[str, required(NAME)]
    message: Annotated[str, required(TEXT)]


@dataclass(frozen=True, slots=True)
class PieceOffer:
    """Pieces for a transfer, and ``others`` that the taker may take in place of those of them that it does not lack. Sets as bits."""

    pieces: int
    others: int = 0


_OFFER = Row(PieceOffer, (("pieces", PIECES), ("pieces", PIECES)), "an offer is not a pair", attributes=("pieces", "others"))


@dataclass(frozen=True, slots=True)
class PieceNews:
    """Everything that one node has to say to a neighbor of the pieces of an image now (:mod:`ciruela.swarm.exchange`). Sets as bits.

    ``has``, ``takes``, ``freed``: what has changed since the last news: here now, on its way here, on its way no longer.
    ``offers``: in their order; ``answers``: one for each offer of the other, in their order: what is taken of it, which is asked for next.
    ``full``: an answer with nothing in it means that too much is on its way already. ``joins``: the first news, all of what is here;
    ``leaves``: the last ones.
    """

    has: PiecesField = 0
    takes: PiecesField = 0
    freed: PiecesField = 0
    offers: Annotated[tuple[PieceOffer, ...], spare(Listed(_OFFER, MOST_OFFERS), [])] = ()
    answers: Annotated[tuple[int, ...], spare(Listed(PIECES, MOST_OFFERS, "an answer"), [])] = ()
    full: SpareFlagField = False
    joins: SpareFlagField = False
    leaves: SpareFlagField = False


@dataclass(frozen=True, slots=True)
class ExchangePieces:
    """Between nodes, and between a client and a node: news of the pieces of ``image``. Only ``ciruela.v3``.

    ``port`` is where the sender listens; 0 is a client's, which listens nowhere.
    """

    path: PathField
    image: IdField
    port: Annotated[int, spare(UINT, 0)]
    news: Annotated[PieceNews, required(Struct.of(PieceNews))]


Notification = PublishImage | ReceivedImage | AbortedImage | RemovedImage | HookResult | ExchangePieces
