"""Inputs that are bad in a known way, at every place where they can stand."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType

import cbor2
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk import keeplist
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.parse import image_id_of, parse
from ciruela.model.errors import BadIndex, FormatError
from ciruela.proto import codec
from ciruela.proto.messages import BaseDirData
from tests.fuzz import bombs, connections, records, texts, wire
from tests.fuzz.frames import outcome
from tests.fuzz.mutate import cut_cbor
from tests.index.examples import footer_of, sealed
from tests.measure import UnmeasuredTestCase
from tests.net.bench import frame
from tests.proof import shows
from tests.proto.samples import VECTORS

QUICK = settings(derandomize=True, deadline=None, database=None, max_examples=80)
MOST_CALLS = 2_000
"""The largest bomb of a stranger, 64 KiB, is refused after so many calls (F13): 5 ms at the most. Any other takes a few for each byte."""

MESSAGES = {name: data for name, data in VECTORS.items() if data[:1] in (b"\x83", b"\x84")}
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64 - 1) | st.text(max_size=12) | st.binary(max_size=70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.binary(max_size=20), inner, max_size=4),
    max_leaves=8,
)


def calls_of(work: Callable[[], object]) -> int:
    """How many calls of functions, of Python and of C, ``work`` makes: a measure of its time that is the same on every machine."""
    count = 0

    def called(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    gc.disable()  # what is collected was made by other tests
    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


@shows("A23", "F13", "I8")
class BombTests(UnmeasuredTestCase):
    """Threats A23: every bomb at every field of every message, and of every other record in CBOR."""

    def places(self, data: bytes) -> list[bytes]:
        """``data`` with each bomb in the place of each item of it."""
        return [data[:begin] + bomb + data[end:] for begin, end in cut_cbor(data) for bomb in wire.BOMBS.values()]

    def test_messages(self) -> None:
        """One message would stop or bloat a node."""
        for name, data in MESSAGES.items():
            self.assertGreater(len(cut_cbor(data)), 4, name)
            for bad in self.places(data):
                calls = calls_of(lambda bad=bad, data=data: self.refused(bad, data))
                self.assertLess(calls, MOST_CALLS + 5 * len(bad), name)

    def refused(self, bad: bytes, data: bytes) -> None:
        """The message is refused; or the entry of a base dir with the bomb in it is left out of what ``data`` has."""
        try:
            found, good = codec.decode(bad), codec.decode(data)
        except FormatError:
            return
        assert isinstance(found, codec.ResponseIn)
        assert isinstance(good, codec.ResponseIn)
        assert isinstance(found.response, BaseDirData)
        assert isinstance(good.response, BaseDirData)
        entries = [
            sum(map(len, (one.dirs, one.watches, one.removed, one.kept, one.kept_signed))) for one in (found.response, good.response)
        ]
        self.assertLess(entries[0], entries[1])

    def test_unknown_fields(self) -> None:
        """Fields that are not known are passed over, not left unread: a bomb may not hide in one."""
        for name in ("GetBaseDir", "AppendDirAck-ok", "PublishImage"):
            *envelope, content = cbor2.loads(VECTORS[name])
            good = cbor2.dumps([*envelope, {**content, "zz": "HERE"}])
            codec.decode(good)
            for bomb in wire.BOMBS.values():
                self.assertRaises(FormatError, codec.decode, good.replace(b"\x64HERE", bomb))

    def test_work(self) -> None:
        """A message of a stranger would keep a node busy: 64 KiB of empty lists, and of keys."""
        lists = b"\x84\x01\x69AppendDir\x01\x99\xff\xf0" + b"\x80" * 0xFFF0
        keys = b"\x84\x01\x69AppendDir\x01\xb9\x40\x00" + b"".join(b"\x62%c%c\x00" % (at >> 7 & 127, at & 127) for at in range(0x4000))
        for data in (lists, keys):
            self.assertLess(calls_of(lambda data=data: self.assertRaises(FormatError, codec.decode, data)), MOST_CALLS)

    @shows("A30", "A34")
    def test_datagrams(self) -> None:
        """The same for whoever can send a datagram."""
        for data in wire.gossip_samples():
            for bad in self.places(data):
                self.assertFalse(wire.check_gossip(bad))

    @shows("A45")
    def test_files(self) -> None:
        """The same for what lies on the disk."""
        for check, data in (
            *((wire.check_state, data) for data in wire.state_samples()),
            *((wire.check_journal, data) for data in wire.journal_samples()),
            *((records.check_tombstones, data) for data in records.tombstone_samples()),
            *((records.check_kept, data) for data in records.kept_samples()),
            *((records.check_base, data) for data in records.base_samples()),
        ):
            for bad in self.places(data):
                self.assertFalse(check(bad))

    @QUICK
    @given(st.sampled_from(sorted(MESSAGES)), st.data())
    def test_other_content(self, name: str, data: st.DataObject) -> None:
        """A field that holds something sound of another kind must be refused, or be read as it was meant."""
        message = MESSAGES[name]
        begin, end = data.draw(st.sampled_from(cut_cbor(message)))
        wire.check_message(message[:begin] + cbor2.dumps(data.draw(PLAIN)) + message[end:])


class IndexTests(SynchronousTestCase):
    @shows("A4", "F4", "I1")
    def test_one_flip_for_each_byte(self) -> None:
        """A source that changes one byte of an index changes what is installed, or stops the thread that reads it."""
        lines = [b"  file%02d f %d " % (at, BLOCK_BYTES + 1) + b"%064x %064x" % (at, at + 1) for at in range(28)]
        data, image = sealed(b"/\n" + b"\n".join(lines) + b"\n", HashKind.SHA512_256)
        self.assertGreater(len(data), 4096)
        self.assertEqual(parse(data, image).block_count, 56)
        for at in range(len(data)):
            bad = bytearray(data)
            bad[at] ^= 1 << at % 8
            self.assertRaises(BadIndex, parse, bytes(bad), image)

    @shows("A4", "A5", "F6")
    def test_promises(self) -> None:
        """A few bytes that promise ten gigabytes would make the reader wait, or make room, for them."""
        for name, data in bombs.small_bombs().items():
            with self.assertRaises(BadIndex, msg=name):
                image_id_of(data)
                parse(data, footer_of(data))

    @shows("A1", "A9", "F1")
    def test_hostile_lines(self) -> None:
        """A path that leads out of the image would be written to."""
        for line in texts.HOSTILE_LINES:
            if line != b"  a s /etc/passwd\n" and line != b"  a s ../../..\n":  # a target is never followed
                self.assertFalse(texts.check_index_lines(b"/\n" + line), line)
                self.assertFalse(texts.check_index_lines(b"/\n  0 f 0\n" + line + b"/z\n"), line)


class KeepListTests(SynchronousTestCase):
    @shows("A46", "F57", "I9")
    def test_invisible_characters(self) -> None:
        """A name with a character that nobody sees names another image, and the one that is meant would be deleted."""
        for text in ("a/b\n\ufeffa/c\n", "a/b\u00a0\n", "\u3000a/b\n", "a/b\x0b\n", "a/b\u2028\n", "a/\ufeffb\n"):
            self.assertRaises(FormatError, keeplist.parse, text.encode(), 2)
        self.assertEqual(keeplist.parse("\ufeff \ta/b \t\r\na/c d\r\n".encode(), 2), {("a", "b"), ("a", "c d")})


class JudgeTests(SynchronousTestCase):
    """The second reading of frames: a judge that sees nothing would acquit everybody."""

    def test_outcomes(self) -> None:
        """One of each."""
        two = frame(b"a", 2, first=0) + frame(b"", 9) + frame(b"b", 0)
        found = outcome(two + frame(b"t", 1) + frame(b"\x03\xe8", 8) + frame(b"late"), False, 100)
        self.assertEqual((found.messages, found.pongs, found.texts, found.code), ([b"ab"], [b""], 1, 1000))
        for data, code in (
            (frame(b"x", masked=True), 1002),
            (frame(b"x" * 101), 1009),
            (frame(b"\xff", 1), 1007),
            (frame(b"\x03", 8), 1002),
            (frame(b"\x03\xed", 8), 1002),
            (frame(b"\x03\xe8\xff", 8), 1007),
            (frame(b"x", 0), 1002),
            (frame(b"x", 11), 1002),
            (b"\x82\x7e\x00\x05", 1002),
            (frame(b"x" * 50)[:20], None),
        ):
            self.assertEqual(outcome(data, False, 100).code, code, data)

    def test_difference(self) -> None:
        """A link that does something else than the judge says must be noticed."""
        self.assertTrue(connections.check_server_link(b"\0" + frame(b"x", masked=True)))
        self.patch(connections, "outcome", lambda data, masked, limit: outcome(data, not masked, limit))
        self.assertRaises(AssertionError, connections.check_server_link, b"\0" + frame(b"x", masked=True))
