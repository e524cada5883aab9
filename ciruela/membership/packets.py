"""The facts that gossip carries, as values, and the bytes of a body (``docs/reference/gossip.cddl``).

A body is the CBOR array ``[sender, epoch, seq, items]``. Each item stands for itself: an array that begins with the number of its type.
Numbers are only ever added. A reader skips types that it does not know and ignores what follows the fields that it knows.

The envelope stands around the body of a datagram: magic, version, key id (``docs/reference/gossip.rst``, "Envelope").

Only the null keyring exists: key id zero, body in the clear. A keyring that encrypts will be another :class:`Envelope`; the room for its
nonce and tag is already kept free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any, Protocol

import cbor2

from ciruela.model.bitfield import MASK_BYTES
from ciruela.model.errors import FormatError
from ciruela.model.ids import ImageId, MachineId, image_id, machine_id
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath, check_component
from ciruela.proto.bounded import loads

DATAGRAM_BYTES = 1400
"""Largest datagram: fits into one Ethernet frame with IPv6 and a tunnel around it, so IP never fragments (threats A35)."""

MAGIC = b"CG"
VERSION = 1
NO_KEY = bytes(4)
HEADER_BYTES = len(MAGIC) + 1 + len(NO_KEY)

SEAL_BYTES = 40
"""Kept free for an authenticated envelope: a nonce of 24 bytes and a tag of 16."""

BODY_BYTES = DATAGRAM_BYTES - HEADER_BYTES - SEAL_BYTES
"""Largest body: 1,353 bytes."""


class Unopened(Enum):
    """Reason why a datagram was not opened; the words are those of the counters."""

    MALFORMED = "malformed"
    OTHER_VERSION = "other_version"
    UNKNOWN_KEY = "unknown_key"


class Envelope(Protocol):
    """Seals bodies and opens datagrams."""

    def seal(self, body: bytes) -> bytes:
        """The datagram that carries ``body``, at most :data:`DATAGRAM_BYTES` long for a body within :data:`BODY_BYTES`."""

    def open(self, data: bytes) -> bytes | Unopened:
        """The body of a datagram, or why it cannot be had. Never raises."""


class NullKeyring:
    """The envelope of a cluster without gossip keys: anybody who can send from a configured address is believed."""

    def seal(self, body: bytes) -> bytes:
        """As :meth:`Envelope.seal`."""
        return MAGIC + bytes((VERSION,)) + NO_KEY + body

    def open(self, data: bytes) -> bytes | Unopened:
        """As :meth:`Envelope.open`."""
        if not HEADER_BYTES < len(data) <= DATAGRAM_BYTES or not data.startswith(MAGIC):  # guard: A30, without 1
            return Unopened.MALFORMED
        if data[len(MAGIC)] != VERSION:  # guard: A30
            return Unopened.OTHER_VERSION
        if data[len(MAGIC) + 1 : HEADER_BYTES] != NO_KEY:  # guard: A30
            return Unopened.UNKNOWN_KEY
        return data[HEADER_BYTES:]


MAX_UINT = 2**63 - 1
MAX_TEXT_BYTES = 255
"""Longest host name (RFC 1035 allows 253) and longest text of an address."""

MAX_MESSAGE_BYTES = 200
"""Longest message about a hook: a path of 1,024 bytes must fit into the same datagram."""

MAX_HOOK_KIND = 63
"""Largest number of a kind of hook; as many as ``Complete.due`` has bits."""

MAX_PARTS = 64
"""Most parts of one member's list of directories: some 70 kB of names."""

HASH_BYTES = 32
SOURCE_FLAG = 1
STALLED_FLAG = 2


@dataclass(frozen=True, slots=True)
class BaseHash:
    """The sender's hash of the states below ``base``."""

    base: VPath
    hash: bytes


@dataclass(frozen=True, slots=True)
class DownloadFact:
    """The sender is fetching ``image`` for ``vpath``. ``mask`` (``model.bitfield``) is None until it has the index.

    ``source``: a client that can give the image is connected to the sender. ``stalled``: nothing came in lately.
    """

    vpath: VPath
    image: ImageId
    mask: int | None
    source: bool
    stalled: bool


@dataclass(frozen=True, slots=True)
class Complete:
    """The sender has committed ``image`` at ``vpath``; ``timestamp_ms`` is the version's.

    ``due`` has bit *i* set when the hook with number *i* + 1 is due for it, or has ended lately: a :class:`Hooked` follows, or followed.
    """

    vpath: VPath
    image: ImageId
    timestamp_ms: int
    due: int = 0


@dataclass(frozen=True, slots=True)
class WatchFact:
    """A client of ``machine`` waits for ``vpath``. Passed on by everybody; the greatest ``stamp`` counts.

    ``age_ms``: milliseconds since ``machine`` made the stamp, as far as the sender knows.
    """

    vpath: VPath
    machine: MachineId
    stamp: int
    age_ms: int = 0


@dataclass(frozen=True, slots=True)
class MemberFact:
    """Part ``part`` of ``parts`` of the directories (keys) that ``machine`` takes. Passed on; the greatest ``stamp`` counts.

    ``address`` is the text of a ``interfaces.Address``; None when the sender speaks of itself.
    """

    machine: MachineId
    address: str | None
    stamp: int
    hostname: str
    part: int
    parts: int
    keys: tuple[str, ...]
    age_ms: int = 0


@dataclass(frozen=True, slots=True)
class Deleted:
    """The sender removed ``image`` from ``vpath``, or gave up fetching it, at ``timestamp_ms``."""

    vpath: VPath
    image: ImageId
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Ack:
    """The sender has told those who wait that the receiver has ``image`` at ``vpath``, or removed it (:attr:`RemovedFact.token`)."""

    vpath: VPath
    image: ImageId


@dataclass(frozen=True, slots=True)
class RemovedFact:
    """``image`` was removed from ``vpath`` by a wish that was signed for ``timestamp_ms``; the sender can show the signatures."""

    vpath: VPath
    image: ImageId
    timestamp_ms: int

    @property
    def token(self) -> ImageId:
        """Token that an :class:`Ack` of this has in place of an image: one of the image itself may still be on its way."""
        return ImageId(hashlib.blake2b(encode_item(self), digest_size=HASH_BYTES).digest())


@dataclass(frozen=True, slots=True)
class Hooked:
    """A hook of the sender has ended for ``image`` at ``vpath``, well or for good. ``kind``: 1 ``on-commit``, 2 ``webhook``."""

    vpath: VPath
    image: ImageId
    timestamp_ms: int
    kind: int
    ok: bool
    message: str


Item = BaseHash | DownloadFact | Complete | WatchFact | MemberFact | Deleted | Ack | RemovedFact | Hooked


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a packet. ``epoch``: wall time in milliseconds when the sender started; ``seq`` grows with each datagram of an epoch."""

    sender: MachineId
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class Packet:
    """A body, read."""

    header: Header
    items: tuple[Item, ...]


# -- writing ------------------------------------------------------------------------------------------------------------------


def encode_item(item: Item) -> bytes:
    """The bytes of one item."""
    fields: list[Any]
    match item:
        case BaseHash():
            fields = [1, str(item.base), item.hash]
        case DownloadFact():
            mask = None if item.mask is None else item.mask.to_bytes(MASK_BYTES, "little")
            flags = SOURCE_FLAG * item.source | STALLED_FLAG * item.stalled
            fields = [2, str(item.vpath), item.image, mask, flags]
        case Complete():
            fields = [3, str(item.vpath), item.image, item.timestamp_ms, *([item.due] if item.due else [])]
        case WatchFact():
            fields = [4, str(item.vpath), item.machine, item.stamp, item.age_ms]
        case MemberFact():
            fields = [5, item.machine, item.address, item.stamp, item.hostname, item.part, item.parts, item.keys, item.age_ms]
        case Deleted():
            fields = [6, str(item.vpath), item.image, item.timestamp_ms]
        case Ack():
            fields = [7, str(item.vpath), item.image]
        case RemovedFact():
            fields = [8, str(item.vpath), item.image, item.timestamp_ms]
        case Hooked():
            fields = [9, str(item.vpath), item.image, item.timestamp_ms, item.kind, int(item.ok), _shortened(item.message)]
    return cbor2.dumps(fields)


def _shortened(message: str) -> str:
    """At most :data:`MAX_MESSAGE_BYTES` bytes of a message."""
    return message.encode("utf-8", "replace")[:MAX_MESSAGE_BYTES].decode("utf-8", "ignore")


def _array_head(count: int) -> bytes:
    if count < 24:
        return bytes((0x80 | count,))
    if count < 256:
        return bytes((0x98, count))
    return b"\x99" + count.to_bytes(2, "big")


def body(header: Header, encoded: Sequence[bytes]) -> bytes:
    """The body with items that are already encoded."""
    head = b"\x84" + cbor2.dumps(header.sender) + cbor2.dumps(header.epoch) + cbor2.dumps(header.seq)
    return head + _array_head(len(encoded)) + b"".join(encoded)


HEAD_BYTES = 1 + 17 + 9 + 9 + 3
"""Most bytes of a body before its first item."""

ROOM_BYTES = BODY_BYTES - HEAD_BYTES
"""Bytes that the items of one datagram may take: 1,314. An item with a path of 1,024 bytes needs less than 1,100."""


def split(encoded: Iterable[bytes], room_bytes: int = ROOM_BYTES) -> list[list[bytes]]:
    """Items in groups, in order, that take at most ``room_bytes`` each. An item that is longer than that is left out."""
    groups: list[list[bytes]] = []
    left = 0
    for item in encoded:
        if len(item) > room_bytes:
            continue
        if not groups or len(item) > left:  # guard: A35 F26, without 2
            groups.append([])
            left = room_bytes
        groups[-1].append(item)
        left -= len(item)
    return groups


def encode_packets(header: Header, items: Iterable[Item]) -> list[bytes]:
    """Bodies of at most ``BODY_BYTES`` that carry ``items`` in order; the first has ``header.seq``, each further one the next number.

    Raises ValueError for an item that does not fit into one datagram; none that follows the limits of ``model`` is so long.
    """
    encoded = [encode_item(item) for item in items]
    longest = max(map(len, encoded), default=0)
    if longest > ROOM_BYTES:  # guard: A35
        raise ValueError(f"a gossip item has {longest} bytes, at most {ROOM_BYTES} fit into a datagram")
    return [body(Header(header.sender, header.epoch, header.seq + number), group) for number, group in enumerate(split(encoded))]


# -- reading ------------------------------------------------------------------------------------------------------------------


def _uint(value: object, what: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_UINT:  # guard: A13, without 2
        raise FormatError(f"gossip: {what} must be an integer between 0 and {MAX_UINT}")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT_BYTES or len(value.encode("utf-8", "replace")) > MAX_TEXT_BYTES:
        raise FormatError(f"gossip: {what} must be text of at most {MAX_TEXT_BYTES} bytes")
    if not value.isprintable():  # guard: A27
        raise FormatError(f"gossip: {what} contains characters that cannot be printed")
    return value


_parse_vpath = lru_cache(maxsize=4096)(VPath.parse)
_check_key = lru_cache(maxsize=4096)(check_component)


def _vpath(value: object) -> VPath:
    if not isinstance(value, str):
        raise FormatError("gossip: a path must be text")
    try:
        return _parse_vpath(value)
    except ValueError as error:
        raise FormatError(f"gossip: bad path: {str(error)[:80]}") from None


def _bytes(value: object, length: int, what: str) -> bytes:
    if not isinstance(value, bytes) or len(value) != length:
        raise FormatError(f"gossip: {what} must be {length} bytes")
    return value


def _image(value: object) -> ImageId:
    return image_id(_bytes(value, HASH_BYTES, "an image id"))


def _machine(value: object) -> MachineId:
    return machine_id(_bytes(value, 16, "a machine id"))


def _base_hash(fields: Sequence[object]) -> BaseHash:
    base, value = fields[:2]
    return BaseHash(_vpath(base), _bytes(value, HASH_BYTES, "a base dir hash"))


def _download(fields: Sequence[object]) -> DownloadFact:
    vpath, image, mask, flags = fields[:4]
    bits = None if mask is None else int.from_bytes(_bytes(mask, MASK_BYTES, "a mask"), "little")
    flag_bits = _uint(flags, "flags")
    return DownloadFact(_vpath(vpath), _image(image), bits, bool(flag_bits & SOURCE_FLAG), bool(flag_bits & STALLED_FLAG))


def _complete(fields: Sequence[object]) -> Complete:
    vpath, image, timestamp_ms = fields[:3]
    due = _uint(fields[3], "due hooks") if len(fields) > 3 else 0
    return Complete(_vpath(vpath), _image(image), _uint(timestamp_ms, "a timestamp"), due)


def _watch(fields: Sequence[object]) -> WatchFact:
    vpath, machine, stamp, age_ms = fields[:4]
    return WatchFact(_vpath(vpath), _machine(machine), _uint(stamp, "a stamp"), _uint(age_ms, "an age"))


def _member(fields: Sequence[object]) -> MemberFact:
    machine, address, stamp, hostname, part, parts, keys, age_ms = fields[:8]
    if not isinstance(keys, list):
        raise FormatError("gossip: the directories of a member must be an array")
    for key in keys:
        if not isinstance(key, str):
            raise FormatError("gossip: the name of a directory must be text")
        try:
            _check_key(key)
        except ValueError as error:
            raise FormatError(f"gossip: bad directory: {str(error)[:80]}") from None
    number, count = _uint(part, "a part"), _uint(parts, "parts")
    if not number < count <= MAX_PARTS:  # guard: A34
        raise FormatError(f"gossip: part {number} of {count}; a member has 1 to {MAX_PARTS} parts, counted from 0")
    return MemberFact(
        _machine(machine),
        None if address is None else _text(address, "an address"),
        _uint(stamp, "a stamp"),
        _text(hostname, "a host name"),
        number,
        count,
        tuple(keys),
        _uint(age_ms, "an age"),
    )


def _deleted(fields: Sequence[object]) -> Deleted:
    vpath, image, timestamp_ms = fields[:3]
    return Deleted(_vpath(vpath), _image(image), _uint(timestamp_ms, "a timestamp"))


def _ack(fields: Sequence[object]) -> Ack:
    vpath, image = fields[:2]
    return Ack(_vpath(vpath), _image(image))


def _removed(fields: Sequence[object]) -> RemovedFact:
    vpath, image, timestamp_ms = fields[:3]
    return RemovedFact(_vpath(vpath), _image(image), _uint(timestamp_ms, "a timestamp"))


def _hooked(fields: Sequence[object]) -> Hooked:
    vpath, image, timestamp_ms, kind, ok, message = fields[:6]
    number, well = _uint(kind, "a kind of hook"), _uint(ok, "the end of a hook")
    if not 1 <= number <= MAX_HOOK_KIND or well > 1:
        raise FormatError(f"gossip: hook {number} ended with {well}; hooks have numbers from 1 to {MAX_HOOK_KIND} and end with 0 or 1")
    said = _text(message, "a message")
    if len(said.encode("utf-8", "replace")) > MAX_MESSAGE_BYTES:
        raise FormatError(f"gossip: a message about a hook has more than {MAX_MESSAGE_BYTES} bytes")
    return Hooked(_vpath(vpath), _image(image), _uint(timestamp_ms, "a timestamp"), number, bool(well), said)


_READERS: dict[int, tuple[int, Callable[[Sequence[object]], Item]]] = {
    1: (2, _base_hash),
    2: (4, _download),
    3: (3, _complete),
    4: (4, _watch),
    5: (8, _member),
    6: (3, _deleted),
    7: (2, _ack),
    8: (3, _removed),
    9: (6, _hooked),
}
"""Count of the fields after each type number, and the function that reads them. APPEND ONLY: a number never changes its meaning."""


def _item(value: object) -> Item | None:
    if not isinstance(value, list) or not value:
        raise FormatError("gossip: an item must be an array with a type number")
    known = _READERS.get(_uint(value[0], "a type number"))
    if known is None:
        return None
    fields, read = known
    if len(value) - 1 < fields:  # guard: A23
        raise FormatError(f"gossip: an item of type {value[0]} has {len(value) - 1} fields, at least {fields} are needed")
    return read(value[1:])


def decode(data: bytes) -> Packet:
    """A body, checked whole. Raises FormatError, and nothing else, for bytes that do not follow the format."""
    if len(data) > DATAGRAM_BYTES:
        raise FormatError(f"gossip: a body of {len(data)} bytes, at most {DATAGRAM_BYTES} are allowed")
    value = loads(data, max_items=DATAGRAM_BYTES)
    if not isinstance(value, list) or len(value) < 4 or not isinstance(value[3], list):
        raise FormatError("gossip: a body must be an array of sender, epoch, sequence number and items")
    header = Header(_machine(value[0]), _uint(value[1], "an epoch"), _uint(value[2], "a sequence number"))
    read = map(_item, value[3])
    return Packet(header, tuple(item for item in read if item is not None))
