"""What has to hold for the decoders of CBOR: plain values, messages, gossip, state files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import cbor2
import zstandard

from ciruela.disk import states
from ciruela.membership import packets
from ciruela.membership.packets import BODY_BYTES, DATAGRAM_BYTES, NullKeyring, Unopened
from ciruela.model.errors import FormatError
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.units import escaped
from ciruela.model.upload import Command
from ciruela.model.versions import SigEntry, Version
from ciruela.model.vpath import MAX_PATH_BYTES, VPath
from ciruela.proto import bounded, codec
from ciruela.proto import forms as limits
from ciruela.proto import messages as m
from ciruela.proto.compression import pack, unpack
from ciruela.proto.messages import BlockData, BlocksData, IndexAtData, IndexData
from tests.membership.test_packets import EXAMPLES, HEADER
from tests.proto import samples
from tests.proto.samples import VECTORS

MOST_ITEMS = 256
MOST_SAID = 500
"""Longest refusal in characters: it may be logged, and it may quote 80 characters of the input."""

BOMBS: dict[str, bytes] = {
    "nesting": b"\x81" * 60 + b"\x00",
    "nested maps": b"\xa1\x41\x00" * 60 + b"\x00",
    "huge array": b"\x9b" + b"\xff" * 8,
    "huge map": b"\xbb" + b"\x7f" + b"\xff" * 7,
    "huge bytes": b"\x5b" + b"\xff" * 8,
    "huge text": b"\x7b" + b"\x00\x00\x00\x7f" + b"\xff" * 4,
    "indefinite array": b"\x9f\x00\xff",
    "indefinite map": b"\xbf\x41\x00\x00\xff",
    "indefinite bytes": b"\x5f\x41\x00\xff",
    "indefinite text": b"\x7f\x61a\xff",
    "break": b"\xff",
    "tag": b"\xc0\x60",
    "nested tags": b"\xc1" * 100 + b"\x00",
    "bignum": b"\xc2\x49" + b"\xff" * 9,
    "regular expression": b"\xd8\x23\x64(a+)",
    "shared value": b"\xd8\x1c\x81\xd8\x1d\x00",
    "string reference": b"\xd9\x01\x00\x81\xd8\x19\x00",
    "half float": b"\xf9\x7e\x00",
    "single float": b"\xfa\x7f\x80\x00\x00",
    "double": b"\xfb\x3f\xf8" + b"\x00" * 6,
    "undefined": b"\xf7",
    "simple value": b"\xf8\x20",
    "map with an integer key": b"\xa1\x00\x00",
    "map with a float key": b"\xa1\xf9\x7e\x00\x00",
    "map with a bignum key": b"\xa1\xc2\x41\x01\x00",
    "duplicate key": b"\xa2\x61a\x00\x61a\x00",
    "empty arrays": b"\x99\x4e\x20" + b"\x80" * 20_000,
    "empty maps": b"\x9a\x00\x00\x75\x30" + b"\xa0" * 30_000,
    "bad text": b"\x62\xc3\x28",
    "half a surrogate pair": b"\x63\xed\xa0\x80",
}
"""What no message may hold at any place (threats A23)."""

TOKENS = (
    *(bomb for bomb in BOMBS.values() if len(bomb) < 300),
    b"\xf6",
    b"\xf5",
    b"\x60",
    b"\x40",
    b"\x80",
    b"\xa0",
    b"\x1b" + b"\xff" * 8,
)


def refusal(fault: Exception) -> bool:
    """False, after a look at the words: short, and without a character that moves a cursor."""
    words = str(fault)
    assert len(words) <= MOST_SAID, f"a refusal of {len(words)} characters"
    assert (words.isascii() and words.isprintable()) or escaped(words, MOST_SAID) == words, (
        f"a refusal that is not safe to print: {words!r}"
    )
    return False


def extent(value: object) -> tuple[int, int]:
    """Items and depth of some decoded CBOR."""
    if isinstance(value, list):
        inner = [extent(item) for item in value]
    elif isinstance(value, dict):
        inner = [(1, 0)] * len(value) + [extent(item) for item in value.values()]
    else:
        return 1, 0
    return 1 + sum(items for items, _ in inner), 1 + max((depth for _, depth in inner), default=0)


def check_cbor(data: bytes) -> bool:
    """The bounded reader alone: nothing but FormatError, no more than was allowed, and the same again after another's encoder.

    What the strict decoder takes the scan of the headers takes too, and the other way round.
    """
    strict = bounded._strict(data, MOST_ITEMS, bounded.MAX_DEPTH)
    try:
        value = bounded.loads(data, max_items=MOST_ITEMS)
    except FormatError as fault:
        assert strict is bounded._REFUSED
        return refusal(fault)
    bounded._scan(data, MOST_ITEMS, bounded.MAX_DEPTH, None)
    assert strict == value
    items, depth = extent(value)
    assert items <= MOST_ITEMS, items
    assert depth <= bounded.MAX_DEPTH, depth
    assert bounded.loads(cbor2.dumps(value), max_items=MOST_ITEMS) == value
    return True


def _texts(value: object) -> Iterator[tuple[str, str | bytes]]:
    """Every text and byte string in a message, with the name of its field."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            inner = getattr(value, field.name)
            if isinstance(inner, str | bytes):
                yield field.name, inner
            else:
                yield from _texts(inner)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield "a key", key
            yield from _texts(inner) if not isinstance(inner, str) else [("a host", inner)]
    elif isinstance(value, tuple):
        for inner in value:
            yield from [("one of many", inner)] if isinstance(inner, str | bytes) else _texts(inner)


PACKED_SIZES = (1, 100, 1000, 32_768, 131_072)
"""Of blocks, and of pieces of them."""

_PATHS = frozenset(("path", "hint", "vpath"))


def check_message(data: bytes) -> bool:
    """A message that is read can be written, and then reads the same; no field is longer than the documented limit."""
    try:
        message = codec.decode(data)
    except FormatError as fault:
        return refusal(fault)
    known: Any
    match message:
        case codec.RequestIn(number, known):
            again = codec.encode_request(number, known)
        case codec.ResponseIn(number, name, known):
            again = codec.encode_response(number, name, known)
        case codec.NotificationIn(known):
            again = codec.encode_notification(known)
        case codec.Ignored(reason, _):
            assert len(reason) <= MOST_SAID, reason
            assert escaped(reason, MOST_SAID) == reason, reason
            return False
    if isinstance(known, BlocksData):
        assert all(type(part.data) is bytes for part in known.parts), known
        assert sum(len(part.data) for part in known.parts) <= len(data)
    elif isinstance(known, IndexData | BlockData | IndexAtData):
        assert known.data is None or type(known.data) is bytes, type(known.data)
        assert len(known.data or b"") <= len(data)
    else:
        for name, text in _texts(known):
            size = len(text.encode() if isinstance(text, str) else text)
            most = MAX_PATH_BYTES if name in _PATHS else limits.MAX_TEXT_BYTES
            assert size <= (limits.MAX_NAME_BYTES if name in ("a key", "a host") else most), (name, size)
        assert len(getattr(known, "signatures", ())) <= m.MAX_SIGNATURES
        assert len(getattr(known, "hosts", ())) <= limits.MAX_HOSTS
    assert codec.decode(again) == message, "it reads differently when it is written again"
    return True


def check_packed(data: bytes) -> bool:
    """A frame gives as many bytes as it was asked for, or nothing."""
    for size in PACKED_SIZES:
        try:
            plain = unpack(data, size)
        except FormatError as fault:
            refusal(fault)
        else:
            assert len(plain) == size, len(plain)
            return True
    return False


def packed_samples() -> tuple[bytes, ...]:
    """Frames of the sizes that are asked for, and such without a size, with too many, and with one that is wrong."""
    data = b"".join(b"%d " % number for number in range(40_000))[: PACKED_SIZES[-1]]
    good = [pack(data[:size]) or b"" for size in PACKED_SIZES[2:]]
    plain = [zstandard.ZstdCompressor().compress(data[:size]) for size in PACKED_SIZES]
    nameless = zstandard.ZstdCompressor(write_content_size=False).compress(data[:1000])
    return (*good, *plain, nameless, good[0] + good[1], zstandard.ZstdCompressor(write_checksum=True).compress(data[:1000]))


def check_envelope(data: bytes) -> bool:
    """What is opened is what was sealed, and never more than a datagram."""
    body = _KEYRING.open(data)
    if isinstance(body, Unopened):
        return False
    assert len(data) <= DATAGRAM_BYTES, len(data)
    assert _KEYRING.seal(body) == data
    return True


_KEYRING = NullKeyring()


def check_gossip(data: bytes) -> bool:
    """A body that is read can be passed on in datagrams that hold, and arrives as the same facts."""
    try:
        packet = packets.decode(data)
    except FormatError as fault:
        return refusal(fault)
    fits = []
    for item in packet.items:
        path: VPath | None = getattr(item, "vpath", getattr(item, "base", None))
        if path is not None:
            assert VPath.parse(str(path)) == path, path
        if len(packets.encode_item(item)) <= packets.ROOM_BYTES:
            fits.append(item)
        else:
            assert isinstance(item, packets.MemberFact), item
    bodies = packets.encode_packets(packet.header, fits)
    assert all(len(body) <= BODY_BYTES for body in bodies)
    again = [packets.decode(body) for body in bodies]
    assert [item for one in again for item in one.items] == fits, "it reads differently when it is passed on"
    assert [one.header.seq for one in again] == [packet.header.seq + number for number in range(len(again))]
    return True


def check_state(data: bytes) -> bool:
    """The two readings of a state file agree, and what is read is written the same again."""
    try:
        state = states.decode_state(data)
    except FormatError as fault:
        return refusal(fault)
    assert state.signatures
    assert list(state.signatures) == sorted(set(state.signatures))
    assert states.decode_state(states.encode_state(state)) == state
    return True


def check_journal(data: bytes) -> bool:
    """As for states; and the place of a staging directory is two numbers, or the start after a kill compares nonsense."""
    try:
        journal = states.decode_journal(data)
    except FormatError as fault:
        return refusal(fault)
    assert journal.command is None or isinstance(journal.command, Command)
    assert (journal.staging is not None) == (journal.phase is states.CommitPhase.READY)
    for number in journal.staging or ():
        assert type(number) is int, number
        assert 0 <= number < 1 << 64, number
    assert states.decode_journal(states.encode_journal(journal)) == journal
    assert states.decode_state(data) == journal.state
    return True


# -- samples ------------------------------------------------------------------------------------------------------------------


NEWER = (
    *(codec.encode_request(20, request) for request in samples.OWN_REQUESTS),
    *(codec.encode_response(20, name, response) for name, response in samples.OWN_RESPONSES),
    codec.encode_request(9, m.GetBlocks("/dir1/a/v1", ImageId(b"\x11" * 32), (0, 1, 2, 7, 300))),
    codec.encode_request(9, m.GetBlocks("/dir1/a/v1", ImageId(b"\x11" * 32), (5, 6), packed=True)),
    codec.encode_request(9, m.GetIndex(ImageId(b"\x11" * 32), "/dir1/a/v1", packed=True)),
    codec.encode_response(9, "GetIndex", m.IndexData(b"packed", packed=True)),
    codec.encode_request(10, m.GetShare(ImageId(b"\x11" * 32), b"\x0f" * 32)),
    codec.encode_request(11, m.GetPieces("/dir1/a/v1", ImageId(b"\x11" * 32), b"\xf0" * 64)),
    codec.encode_response(9, "GetBlocks", m.BlocksData((m.BlockPart(b"data of blocks"), m.BlockPart(b"packed", packed=True)), (7, 300))),
    codec.encode_notification(samples.HOOK_RESULT),
    codec.encode_response(9, "GetBlocks", m.BlocksData((), (0, 1, 2, 7, 300))),
    codec.encode_response(10, "GetShare", m.ShareData(b"\x03" * 32)),
    codec.encode_response(11, "GetPieces", m.PiecesData(b"\x30" * 64)),
    codec.encode_request(12, m.CheckUpload("/dir1/a/v1", True, ImageId(b"\x11" * 32), None, 1_700_000_000_000, (b"\x55" * 64,))),
    codec.encode_response(
        12,
        "CheckUpload",
        m.CheckData(
            False,
            "already_exists",
            "other content",
            ImageId(b"\x12" * 32),
            None,
            1 << 40,
            MachineId(b"\x01" * 16),
            "node1",
            {MachineId(b"\x02" * 16): "node2"},
        ),
    ),
    codec.encode_request(12, m.RemoveDir("/dir1/a/v1", ImageId(b"\x11" * 32), 1_700_000_000_123, (b"\x55" * 64,))),
    codec.encode_response(12, "RemoveDir", m.UploadAck(False, "stale_timestamp")),
    codec.encode_response(
        12,
        "GetBaseDir",
        m.BaseDirData(
            bytes(32),
            bytes(32),
            {},
            removed={"v9": m.RemovedEntry(7, ImageId(b"\x11" * 32), (b"\x55" * 64,))},
            kept={"v1": (Version(5, ImageId(b"\x11" * 32)),)},
        ),
    ),
    codec.encode_notification(m.RemovedImage(ImageId(b"\x11" * 32), "/dir1/a/v1", MachineId(b"\x22" * 16), "node2", True)),
)
"""What only ``ciruela.v2`` has."""

MANY = cbor2.dumps([[0] * 126, [None] * 127])
"""As many items as are allowed: with one more it is too much."""


def of_kind(kind: int) -> tuple[bytes, ...]:
    """The sample messages whose envelope says ``kind``, and the bombs at the places of their content."""
    return tuple(data for data in (*VECTORS.values(), *NEWER) if data[:1] in (b"\x83", b"\x84") and data[1] == kind)


def gossip_samples() -> tuple[bytes, ...]:
    """A body for each kind of fact, and one with all."""
    single = [packets.encode_packets(HEADER, [item])[0] for item in EXAMPLES]
    return (*single, *packets.encode_packets(HEADER, EXAMPLES))


def sealed(body: bytes) -> bytes:
    """The datagram that carries ``body``."""
    return _KEYRING.seal(body)


def state_samples() -> tuple[bytes, ...]:
    """One signature, and several."""
    many = samples.V1.merged(tuple(SigEntry(number, bytes([number]) * 64) for number in range(1, 9)))
    return states.encode_state(samples.V0), states.encode_state(many)


def journal_samples() -> tuple[bytes, ...]:
    """Every shape of a journal."""
    shapes: list[Callable[[Command | None], states.Journal]] = [
        lambda command: states.Journal(samples.V0, command),
        lambda command: states.Journal(samples.V1, command, states.CommitPhase.READY, (2049, 123_456_789)),
    ]
    return tuple(states.encode_journal(shape(command)) for shape in shapes for command in (*Command, None))
