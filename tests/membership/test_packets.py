from __future__ import annotations

import random
from pathlib import Path

import cbor2
import pycddl
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.membership.packets import (
    BODY_BYTES,
    DATAGRAM_BYTES,
    MAX_PARTS,
    MAX_UINT,
    ROOM_BYTES,
    Ack,
    BaseHash,
    Complete,
    Deleted,
    DownloadFact,
    Header,
    Hooked,
    Item,
    MemberFact,
    NullKeyring,
    Packet,
    RemovedFact,
    Unopened,
    WatchFact,
    body,
    decode,
    encode_item,
    encode_packets,
    split,
)
from ciruela.model.bitfield import FULL
from ciruela.model.errors import FormatError
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.vpath import VPath
from tests.proof import shows

CDDL = Path(__file__).parents[2] / "docs" / "reference" / "gossip.cddl"

ME = MachineId(b"m" * 16)
OTHER = MachineId(b"o" * 16)
IMAGE = ImageId(b"i" * 32)
PATH = VPath.parse("/app/web/v1")
HEADER = Header(ME, 1_700_000_000_000, 7)
LONG_PATH = VPath.parse("/" + "/".join(["x" * 255, "y" * 255, "z" * 255, "w" * 255]))

EXAMPLES: tuple[Item, ...] = (
    BaseHash(PATH.base, b"h" * 32),
    DownloadFact(PATH, IMAGE, None, True, False),
    DownloadFact(PATH, IMAGE, FULL - 1, False, True),
    Complete(PATH, IMAGE, 123),
    WatchFact(PATH, OTHER, 5, 999),
    MemberFact(OTHER, None, 9, "host", 0, 1, ("app", "other"), 0),
    MemberFact(OTHER, "[::1]:24783", 9, "", 63, 64, (), 1),
    Deleted(PATH, IMAGE, 5),
    Ack(PATH, IMAGE),
    Complete(PATH, IMAGE, 123, 3),
    Hooked(PATH, IMAGE, 123, 1, False, "exited with 1: ü"),
    RemovedFact(PATH, IMAGE, 7),
)

uints = st.integers(0, MAX_UINT)
images = st.binary(min_size=32, max_size=32).map(ImageId)
machines = st.binary(min_size=16, max_size=16).map(MachineId)
names = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp")), min_size=1, max_size=63).filter(
    lambda name: not name.startswith(".") and not name.endswith(".new") and "/" not in name
)
vpaths = st.lists(names, min_size=1, max_size=4).map(lambda parts: VPath(tuple(parts)))
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=255)


@st.composite
def members(draw: st.DrawFn) -> MemberFact:
    parts = draw(st.integers(1, MAX_PARTS))
    keys = tuple(draw(st.lists(names.filter(lambda name: len(name.encode()) <= 100), max_size=5)))
    address = draw(st.none() | texts)
    return MemberFact(draw(machines), address, draw(uints), draw(texts), draw(st.integers(0, parts - 1)), parts, keys, draw(uints))


items = st.one_of(
    st.builds(BaseHash, vpaths, images),
    st.builds(DownloadFact, vpaths, images, st.none() | st.integers(0, FULL), st.booleans(), st.booleans()),
    st.builds(Complete, vpaths, images, uints, uints),
    st.builds(Hooked, vpaths, images, uints, st.integers(1, 63), st.booleans(), texts.map(lambda text: text[:200])),
    st.builds(WatchFact, vpaths, machines, uints, uints),
    members(),
    st.builds(Deleted, vpaths, images, uints),
    st.builds(Ack, vpaths, images),
)
modest = settings(max_examples=60, derandomize=True, deadline=None, database=None)


def packed(*fields: object, head: tuple[object, ...] = (ME, 1, 2)) -> bytes:
    """A body with one item of these fields."""
    return cbor2.dumps([*head, [list(fields)]])


class WritingTests(SynchronousTestCase):
    """Facts arrive as they were meant, in datagrams that the network does not cut."""

    @shows("A35", "F26")
    @modest
    @given(st.builds(Header, machines, st.integers(0, MAX_UINT), st.integers(0, MAX_UINT - 100)), st.lists(items, max_size=40))
    def test_round_trip_within_the_limit(self, header: Header, said: list[Item]) -> None:
        """A fact that changes on its way, or a datagram that IP has to cut, would leave nodes behind for ever."""
        bodies = encode_packets(header, said)
        heard: list[Item] = []
        for number, data in enumerate(bodies):
            self.assertLessEqual(len(data), BODY_BYTES)
            self.assertLessEqual(len(NullKeyring().seal(data)), DATAGRAM_BYTES - 40)
            packet = decode(data)
            self.assertEqual(packet.header, Header(header.sender, header.epoch, header.seq + number))
            heard += packet.items
        self.assertEqual(heard, said)

    @shows("A35")
    def test_longest_items_fit(self) -> None:
        """A path that uploads accept but gossip cannot carry would never reach the other nodes (threats A35)."""
        longest: list[Item] = [
            DownloadFact(LONG_PATH, IMAGE, FULL, True, True),
            Complete(LONG_PATH, IMAGE, MAX_UINT, MAX_UINT),
            Hooked(LONG_PATH, IMAGE, MAX_UINT, 63, True, "m" * 200),
            WatchFact(LONG_PATH, ME, MAX_UINT, MAX_UINT),
            MemberFact(ME, "a" * 255, MAX_UINT, "h" * 255, 63, 64, ("k" * 255, "l" * 255), MAX_UINT),
        ]
        for item in longest:
            self.assertEqual([packet.items for packet in map(decode, encode_packets(HEADER, [item]))], [(item,)])

    def test_item_beyond_the_limit_is_refused(self) -> None:
        """An item that cannot be sent must not vanish without a word."""
        keys = tuple(f"{number:0200d}" for number in range(8))
        with self.assertRaises(ValueError):
            encode_packets(HEADER, [MemberFact(ME, None, 1, "h", 0, 1, keys)])

    def test_split_leaves_out_only_the_oversized(self) -> None:
        """One bad item must not take the others with it."""
        self.assertEqual(split([b"a" * 5, b"b" * 11, b"c" * 5, b"d"], 10), [[b"a" * 5, b"c" * 5], [b"d"]])

    def test_many_items_need_a_long_array(self) -> None:
        """Array heads of one, two and three bytes are all read back."""
        for count in (0, 23, 24, 255, 256):
            data = body(HEADER, [cbor2.dumps([99])] * count)
            self.assertEqual(len(cbor2.loads(data)[3]), count)

    def test_description_matches(self) -> None:
        """Who writes another implementation after gossip.cddl must understand what we send."""
        schema = pycddl.Schema(CDDL.read_text(encoding="utf-8"))
        for item in EXAMPLES:
            schema.validate_cbor(encode_packets(HEADER, [item])[0])
        with self.assertRaises(pycddl.ValidationError):
            schema.validate_cbor(packed(1, "/app/web", b"short"))


class ReadingTests(SynchronousTestCase):
    """What does not follow the format is refused whole, with one kind of error."""

    def test_unknown_types_and_more_fields_are_skipped(self) -> None:
        """Otherwise a cluster could not be updated node by node."""
        data = cbor2.dumps([ME, 1, 2, [[100, "new"], [200], [7, "/a/b", IMAGE, "more"], [1, "/a", b"h" * 32]], "more"])
        self.assertEqual(decode(data), Packet(Header(ME, 1, 2), (Ack(VPath.parse("/a/b"), IMAGE), BaseHash(VPath.parse("/a"), b"h" * 32))))

    @shows("A23", "F13")
    def test_malformed(self) -> None:
        """Each of these in a table of facts would be a time bomb (threats U14)."""
        corpus = [
            b"",
            b"\xff",
            b"\x84",
            cbor2.dumps({}),
            cbor2.dumps([]),
            cbor2.dumps([ME, 1, 2]),
            cbor2.dumps([ME, 1, 2, {}]),
            cbor2.dumps([ME, 1, 2, [5]]),
            cbor2.dumps([ME, 1, 2, [[]]]),
            cbor2.dumps([ME, 1, 2, []]) + b"\x00",
            cbor2.dumps([ME[:15], 1, 2, []]),
            cbor2.dumps(["m" * 16, 1, 2, []]),
            cbor2.dumps([ME, -1, 2, []]),
            cbor2.dumps([ME, True, 2, []]),
            cbor2.dumps([ME, 1, 2**63, []]),
            cbor2.dumps([ME, 1, 2**64 - 1, []]),
            cbor2.dumps([ME, 1, 2.0, []]),
            packed("1", "/a", b"h" * 32),
            packed(-1, "/a", b"h" * 32),
            packed(1),
            packed(1, "/a"),
            packed(1, "/a", b"h" * 31),
            packed(1, b"/a", b"h" * 32),
            packed(1, "a", b"h" * 32),
            packed(1, "/", b"h" * 32),
            packed(1, "/a/../b", b"h" * 32),
            packed(1, "/a/\x1b[2J", b"h" * 32),
            packed(1, "/a/v.new", b"h" * 32),
            packed(1, "/" + "a" * 1024, b"h" * 32),
            packed(2, "/a/b", IMAGE, b"m" * 31, 0),
            packed(2, "/a/b", IMAGE, 0, 0),
            packed(2, "/a/b", IMAGE, None, -1),
            packed(2, "/a/b", IMAGE, None),
            packed(3, "/a/b", IMAGE[:31], 0),
            packed(3, "/a/b", IMAGE, "0"),
            packed(3, "/a/b", IMAGE, 0, -1),
            packed(9, "/a/b", IMAGE, 0, 0, 1, ""),
            packed(9, "/a/b", IMAGE, 0, 64, 1, ""),
            packed(9, "/a/b", IMAGE, 0, 1, 2, ""),
            packed(9, "/a/b", IMAGE, 0, 1, True, ""),
            packed(9, "/a/b", IMAGE, 0, 1, 1, "ü" * 101),
            packed(9, "/a/b", IMAGE, 0, 1, 1, "\x1b[2J"),
            packed(9, "/a/b", IMAGE, 0, 1, 1),
            packed(4, "/a/b", b"m" * 17, 1, 1),
            packed(4, "/a/b", ME, 1, None),
            packed(5, ME, None, 1, "h", 0, 1, "keys", 0),
            packed(5, ME, None, 1, "h", 0, 1, [1], 0),
            packed(5, ME, None, 1, "h", 0, 1, ["a/b"], 0),
            packed(5, ME, None, 1, "h", 0, 1, [""], 0),
            packed(5, ME, None, 1, "h", 1, 1, [], 0),
            packed(5, ME, None, 1, "h", 0, 0, [], 0),
            packed(5, ME, None, 1, "h", 0, MAX_PARTS + 1, [], 0),
            packed(5, ME, None, 1, "h\x1b]0;x", 0, 1, [], 0),
            packed(5, ME, None, 1, "h" * 256, 0, 1, [], 0),
            packed(5, ME, None, 1, "ü" * 128, 0, 1, [], 0),
            packed(5, ME, b"1.2.3.4:5", 1, "h", 0, 1, [], 0),
            packed(5, ME, None, 1, None, 0, 1, [], 0),
            packed(6, "/a/b", IMAGE),
            packed(7, "/a/b", 7),
            packed(7, "/a/b", cbor2.CBORTag(1, 5)),
            b"\x84" + b"\x9f" * 50,
            b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
            b"\x84\x50" + ME + b"\x01\x02" + b"\x81" * 40 + b"\x00",
            b"\x00" * (DATAGRAM_BYTES + 1),
        ]
        for data in corpus:
            with self.assertRaises(FormatError, msg=data[:60].hex()):
                decode(data)

    @shows("A23", "F13", "I8")
    def test_mutations(self) -> None:
        """Any other exception would reach the reactor once for each hostile datagram."""
        rng = random.Random(4)
        originals = encode_packets(HEADER, EXAMPLES)
        refused = 0
        for _ in range(4000):
            data = bytearray(rng.choice(originals))
            for _ in range(rng.randrange(1, 4)):
                match rng.randrange(3):
                    case 0:
                        data[rng.randrange(len(data))] = rng.randrange(256)
                    case 1:
                        del data[rng.randrange(len(data)) :]
                        data += b"\x00"
                    case 2:
                        at = rng.randrange(len(data))
                        data[at:at] = rng.randbytes(rng.randrange(1, 9))
            try:
                packet = decode(bytes(data))
            except FormatError:
                refused += 1
            else:
                self.assertLessEqual(sum(len(encode_item(item)) for item in packet.items), 2 * DATAGRAM_BYTES)
        self.assertGreater(refused, 1000)

    @shows("I8")
    @modest
    @given(st.binary(max_size=200))
    def test_noise(self, data: bytes) -> None:
        """Noise is refused, or read as something that can be written again."""
        try:
            packet = decode(data)
        except FormatError:
            return
        for item in packet.items:
            encode_item(item)


class EnvelopeTests(SynchronousTestCase):
    """What stands around a body."""

    def test_open_what_was_sealed(self) -> None:
        """Without it no node would understand another."""
        sealed = NullKeyring().seal(b"body")
        self.assertEqual(sealed, b"CG\x01\x00\x00\x00\x00body")
        self.assertEqual(NullKeyring().open(sealed), b"body")

    def test_room_for_nonce_and_tag(self) -> None:
        """An authenticated envelope must not need smaller bodies, or a rolling update would cut datagrams."""
        self.assertEqual(BODY_BYTES, DATAGRAM_BYTES - 7 - 24 - 16)
        self.assertLess(ROOM_BYTES, BODY_BYTES)

    def test_refusals(self) -> None:
        """An operator must see why a node is not heard: another version, a key that is missing here, or noise."""
        null = NullKeyring()
        self.assertIs(null.open(b""), Unopened.MALFORMED)
        self.assertIs(null.open(b"CG\x01\x00\x00\x00\x00"), Unopened.MALFORMED)
        self.assertIs(null.open(b"XX\x01\x00\x00\x00\x00body"), Unopened.MALFORMED)
        self.assertIs(null.open(b"CG\x01\x00\x00\x00\x00" + b"b" * DATAGRAM_BYTES), Unopened.MALFORMED)
        self.assertIs(null.open(b"CG\x02\x00\x00\x00\x00body"), Unopened.OTHER_VERSION)
        self.assertIs(null.open(b"CG\x01\x00\x00\x00\x01body"), Unopened.UNKNOWN_KEY)
