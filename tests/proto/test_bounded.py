"""The bounded CBOR reader."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator

import cbor2
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.errors import FormatError
from ciruela.proto import bounded
from ciruela.proto.bounded import loads
from tests.proof import shows
from tests.proto.samples import VECTORS

QUICK = settings(derandomize=True, deadline=None, database=None, max_examples=150)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.text(max_size=30) | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5) | st.binary(max_size=5), inner, max_size=5),
    max_leaves=20,
)

BOMBS = {
    "nothing at all": "",
    "nesting": "81" * 9 + "00",
    "nested maps": "a14100" * 9 + "00",
    "a map that is said to be huge": "bbffffffffffffffff",
    "an array that is said to be huge": "9bffffffffffffffff",
    "an array one longer than what is left": "830000",
    "a text longer than what is left": "7affffffff61",
    "bytes one longer than what is left": "4261",
    "an integer cut short": "1b00000000000000",
    "indefinite array": "9f00ff",
    "indefinite map": "bf4100f6ff",
    "indefinite bytes": "5f4100ff",
    "a lone break": "ff",
    "tag": "c000",
    "bignum": "c24900000000000000000000",
    "shared reference": "d81d00",
    "half float": "f97e00",
    "double": "fb3ff0000000000000",
    "undefined": "f7",
    "a simple value": "f820",
    "reserved additional information": "1c",
    "an integer as key": "a10000",
    "a list as key": "a18000",
    "null as key": "a1f600",
    "duplicate text key": "a2616100616101",
    "duplicate key, spelled longer": "a261610078016101",
    "duplicate bytes key": "a2416100416101",
    "bad UTF-8": "61ff",
    "bad UTF-8 in a key": "a161ff00",
    "trailing byte": "0000",
    "300 empty lists": "99012c" + "80" * 300,
}


UNITS = (b"\x80", b"\xa0", b"\x81\x80", b"\xa1\x40\x00", b"\x19\xff\xff")
"""Items that take much memory for their length."""


def mutations(count: int) -> Iterator[bytes]:
    """Sample messages with a few bytes that are not theirs."""
    rng = random.Random(7)
    seeds = list(VECTORS.values())
    for _ in range(count):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            what = rng.randrange(4)
            if what == 0:
                data[at] ^= 1 << rng.randrange(8)
            elif what == 1:
                data[at] = rng.choice((0x00, 0x1B, 0x5F, 0x7F, 0x80, 0x9B, 0xA0, 0xBF, 0xC0, 0xF6, 0xF7, 0xFB, 0xFF))
            elif what == 2:
                del data[at:]
            else:
                data[at:at] = rng.randbytes(rng.randint(1, 4))
            if not data:
                break
        yield bytes(data)


@shows("A23", "F13")
class Refused(SynchronousTestCase):
    def test_bombs(self) -> None:
        """A hostile peer could otherwise stop or bloat every node with one message."""
        for name, text in BOMBS.items():
            with self.assertRaises(FormatError, msg=name):
                loads(bytes.fromhex(text), max_items=256)

    def test_offset_is_named(self) -> None:
        """Without the offset nobody can find out which program wrote a broken message."""
        fault = self.assertRaises(FormatError, loads, bytes.fromhex("8200c000"), max_items=9)
        self.assertIn("offset 2", str(fault))

    def test_lengths_are_refused_where_they_stand(self) -> None:
        """A false length must be found before anything is made ready for it, and be named."""
        for text, words in (("82001b00", "in the middle, at offset 2"), ("8200830000", "longer than what is left, at offset 2")):
            self.assertIn(words, str(self.assertRaises(FormatError, loads, bytes.fromhex(text), max_items=9)))

    def test_indefinite_in_disguise(self) -> None:
        """Two readings of one message: what looks like a length of 128 bytes here would be content there."""
        for first in (b"\x9f", b"\x5f", b"\x1f"):
            fault = self.assertRaises(FormatError, loads, first + bytes(127) + b"\xff" + bytes(255), max_items=1000)
            self.assertIn("indefinite length", str(fault))

    def test_budget_counts_every_item(self) -> None:
        """A million empty lists cost seventy times their bytes once they are built."""
        data = cbor2.dumps({"a": [1, {}], "b": None})
        self.assertEqual(loads(data, max_items=7), {"a": [1, {}], "b": None})
        self.assertRaises(FormatError, loads, data, max_items=6)

    def test_depth_is_exact(self) -> None:
        """The deepest true message must pass and nothing deeper."""
        self.assertEqual(loads(bytes.fromhex("81" * 8 + "00"), max_items=9), [[[[[[[[0]]]]]]]])
        self.assertRaises(FormatError, loads, bytes.fromhex("8180"), max_items=9, max_depth=1)

    def test_text_and_bytes_keys_are_different(self) -> None:
        """Hosts are keyed by bytes: they are no duplicates of texts."""
        self.assertEqual(loads(bytes.fromhex("a2616100416101"), max_items=9), {"a": 0, b"a": 1})

    def test_mutations_raise_nothing_else(self) -> None:
        """An exception of any other kind would end a connection, or worse, by accident."""
        refused = 0
        for data in mutations(20_000):
            try:
                loads(data, max_items=256)
            except FormatError:
                refused += 1
        self.assertGreater(refused, 10_000)


@shows("A23", "F13")
class TwoReadings(SynchronousTestCase):
    """The decoder refuses by rules of its own, and the scan by ours: they must be the same rules."""

    def same(self, data: bytes, max_items: int, max_depth: int = bounded.MAX_DEPTH) -> bool:
        strict = bounded._strict(data, max_items, max_depth)
        try:
            bounded._scan(data, max_items, max_depth, None)
            built = bounded._built(data)
        except FormatError:
            self.assertIs(strict, bounded._REFUSED, data.hex())
            return False
        self.assertEqual(repr(strict), repr(built), data.hex())
        return True

    def test_bombs(self) -> None:
        """What only one of them refuses is refused in short messages and taken in long ones, or the other way round."""
        for text in BOMBS.values():
            for around in ("", "81", "a16161"):
                self.assertFalse(self.same(bytes.fromhex(around + text), 256), around + text)

    def test_tags(self) -> None:
        """A tag of which the decoder makes a plain value would not be noticed in the value: bignums, references, self-described CBOR."""
        for text in ("c24101", "c34101", "d9d9f700", "d81c80", "82d81c80d81d00", "d901008243616161d81900", "d8236161", "a1c241610000"):
            self.assertFalse(self.same(bytes.fromhex(text), 256), text)

    def test_limits(self) -> None:
        """A limit that is off by one in one of them would make a message depend on its length."""
        for text in ("80", "a0", "8180", "81a0", "a1616180", "a16161a0", "818100", "82018100", "00", "f6", "a1416101"):
            for max_items in range(1, 6):
                for max_depth in range(1, 4):
                    self.same(bytes.fromhex(text), max_items, max_depth)
        self.assertTrue(self.same(bytes.fromhex("8180"), 2, 2))
        self.assertFalse(self.same(bytes.fromhex("8180"), 1, 2))
        self.assertFalse(self.same(bytes.fromhex("81a0"), 2, 1))

    def test_mutations(self) -> None:
        """Nobody can list all that a decoder of strangers may take."""
        accepted = sum(self.same(data, 256) for data in mutations(20_000))
        self.assertGreater(accepted, 1_000)

    def test_long_messages_are_counted_first(self) -> None:
        """A hostile peer could fill the memory of a node, and its time, with a message that is refused only when it is built."""
        for size, max_items in ((4 * 1024 * 1024, 256), (100_000, 5_000), (10_000, 256)):
            for unit in UNITS:
                self.assertLess(self.peak(unit, size, max_items), 64 * 1024)

    def test_short_messages_cost_little_before_they_are_counted(self) -> None:
        """Short messages are built first: the worst of them must not cost more than is documented."""
        for unit in UNITS:
            self.assertLess(self.peak(unit, bounded.BUILT_FIRST_BYTES, 3_000), 6_000_000)

    def peak(self, unit: bytes, size: int, max_items: int) -> int:
        """The bytes of memory that it takes to refuse an array of ``unit`` again and again, with ``size`` bytes at most."""
        count = (size - 5) // len(unit)
        data = memoryview(b"\x9a" + count.to_bytes(4, "big") + unit * count)
        tracemalloc.start()
        try:
            with self.assertRaises(FormatError):
                loads(data, max_items=max_items)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


class Accepted(SynchronousTestCase):
    @QUICK
    @given(PLAIN)
    def test_plain_values_come_back(self, value: object) -> None:
        """A message that another node wrote properly must arrive as it was."""
        data = cbor2.dumps(value)
        try:
            found = loads(data, max_items=1000)
        except FormatError as fault:
            self.assertIn("nested deeper", str(fault))
        else:
            self.assertEqual(found, value)

    def test_cut(self) -> None:
        """What is left out comes as it stands in the message, in its order, and everything else is as ever."""
        long, longer = b"l" * bounded.LONG_BYTES, b"m" * 70_000
        value = {"a": [long, b"short", "t" * 9000, longer], b"k" * 5000: 1}
        data = cbor2.dumps(value)
        found, cut = bounded.loads_cut(memoryview(data), max_items=20)
        self.assertEqual(found, {"a": [b"", b"short", "t" * 9000, b""], b"k" * 5000: 1})
        self.assertEqual([bytes(one) for one in cut], [long, longer])
        with self.assertRaises(FormatError):
            bounded.loads_cut(memoryview(data), max_items=5)
        with self.assertRaises(FormatError):
            bounded.loads_cut(memoryview(data)[:-1], max_items=20)

    def test_memoryview(self) -> None:
        """Messages are read in place, after their envelope."""
        self.assertEqual(loads(memoryview(b"xx\x82\x01\x02")[2:], max_items=3), [1, 2])

    @QUICK
    @given(st.binary(max_size=200))
    def test_noise(self, data: bytes) -> None:
        """Noise must be refused, or mean the same to everyone."""
        try:
            found = loads(data, max_items=100)
        except FormatError:
            return
        self.assertEqual(found, cbor2.loads(data))
