"""What a dry run foretells."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.check import CheckReply, Says, difference, forecast, fresh, refusal_of, reply
from ciruela.client.require import parse_requirement
from ciruela.client.tracker import EXIT_CONFLICT, EXIT_DONE, EXIT_NETWORK, EXIT_PARTIAL, EXIT_REJECTED, CompletionRule
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.tree import Directory, File, Index
from ciruela.model.ids import ImageId, MachineId
from ciruela.proto.messages import CheckData
from tests.proof import shows

IMAGE, OTHER = ImageId(b"\x11" * 32), ImageId(b"\x22" * 32)
ME = MachineId(bytes(16))
REFUSED = CheckReply("n", Says.REFUSES, "signature_mismatch")
TAKEN = CheckReply("n", Says.TAKES)
DOWN = CheckReply("n", Says.UNREACHABLE)


def code(*replies: CheckReply, require: str | None = None) -> int:
    return forecast(replies, CompletionRule(require=None if require is None else parse_requirement(require))).exit_code


class Forecasts(SynchronousTestCase):
    def test_codes(self) -> None:
        """A script that asks first would be told something else than the upload then ends with."""
        conflict = CheckReply("n", Says.REFUSES, "already_exists")
        lacks = CheckReply("n", Says.NO_CONFIG, "no_config")
        old = CheckReply("n", Says.CANNOT_TELL)
        for replies, expected in (
            ([], EXIT_NETWORK),
            ([DOWN], EXIT_NETWORK),
            ([DOWN, REFUSED], EXIT_REJECTED),
            ([conflict, conflict], EXIT_CONFLICT),
            ([conflict, REFUSED], EXIT_REJECTED),
            ([lacks, DOWN], EXIT_REJECTED),
            ([lacks, old], EXIT_NETWORK),
            ([lacks, TAKEN], EXIT_DONE),
            ([TAKEN] * 3 + [DOWN], EXIT_DONE),
            ([TAKEN] * 2 + [DOWN] * 2, EXIT_NETWORK),
            ([TAKEN] * 2 + [conflict] * 2, EXIT_CONFLICT),
            ([TAKEN] * 3 + [old] * 1, EXIT_DONE),
            ([TAKEN, CheckReply("n", Says.HAS), CheckReply("n", Says.HOLDS)], EXIT_DONE),
        ):
            self.assertEqual(code(*replies), expected, replies)

    @shows("K2.1", "I7")
    def test_one_refuses_for_what_it_has(self) -> None:
        """A dry run would promise an upload that is sent to nobody."""
        conflict = CheckReply("n9", Says.REFUSES, "already_exists")
        found = forecast([TAKEN] * 9 + [conflict], CompletionRule())
        self.assertEqual((found.exit_code, found.takers, found.expected), (EXIT_CONFLICT, 9, 10))
        self.assertEqual(found.why, "n9 refused: already_exists: other content is there; nothing would be sent")
        self.assertEqual(code(*[TAKEN] * 9, REFUSED), EXIT_DONE)
        self.assertEqual(refusal_of([TAKEN, REFUSED, DOWN]), "")
        many = refusal_of([TAKEN, *(CheckReply(f"n{number}", Says.REFUSES, "stale_timestamp") for number in range(5))])
        self.assertTrue(many.startswith("n0, n1, n2 and 2 more refused: stale_timestamp"), many)

    @shows("K5.1")
    def test_room(self) -> None:
        """A node without room for an image would be said to take it."""
        node = CheckReply("n", Says.TAKES, free_bytes=900)
        self.assertIs(node.short_of(900), node)
        short = node.short_of(1001)
        self.assertEqual((short.says, short.code, short.message), (Says.FAILS, "no_space", "needs 1.0 KiB, 900 B are free"))
        self.assertEqual((code(short), code(TAKEN, TAKEN, short)), (EXIT_NETWORK, EXIT_NETWORK))
        self.assertEqual(forecast([short], CompletionRule()).why, "all nodes that could be asked would fail: no_space")
        for other in (CheckReply("n", Says.HAS, free_bytes=1), CheckReply("n", Says.TAKES)):
            self.assertIs(other.short_of(2), other)

    @shows("K6.1")
    def test_difference(self) -> None:
        """The user would not see whether he has the wrong directory or one changed line."""

        def index(**files: int) -> Index:
            entries = tuple(File(f"/{name}", False, 1, bytes([content]) * 32) for name, content in files.items())
            return Index(IMAGE, HashKind.BLAKE3, (Directory("/", entries),))

        for ours, theirs, text in (
            (index(a=1, b=2, c=3), index(a=1, b=2, c=4), "1 of 3 files differs"),
            (index(a=1, b=2), index(b=2, c=3), "2 of 3 files differ"),
            (index(a=1), index(a=1), "only the directories differ"),
        ):
            self.assertEqual(difference(ours, theirs), text)

    def test_required(self) -> None:
        """``--require`` would be checked only after everything was uploaded."""
        for count, require, expected in ((3, "all", EXIT_PARTIAL), (4, "all", EXIT_DONE), (3, "75%", EXIT_DONE), (3, "76%", EXIT_PARTIAL)):
            self.assertEqual(code(*[TAKEN] * count, *[DOWN] * (4 - count), require=require), expected, require)
        self.assertEqual(code(TAKEN, DOWN, DOWN, DOWN, require="1"), EXIT_DONE)
        self.assertEqual(code(*[TAKEN] * 4, require="5"), EXIT_PARTIAL)
        self.assertEqual(code(TAKEN, DOWN, DOWN, DOWN, require="all"), EXIT_NETWORK)

    def test_nothing(self) -> None:
        """That there is nothing to do must mean every node: one that is down may lack it."""
        has = CheckReply("n", Says.HAS)
        for replies, expected in (
            ([has, has], True),
            ([has, TAKEN], False),
            ([has, DOWN], False),
            ([DOWN], False),
            ([has, has, has, DOWN], False),
        ):
            self.assertIs(forecast(replies, CompletionRule()).nothing, expected)

    def test_reply(self) -> None:
        """An image that is still on its way is not there yet."""
        for data, weak, expected in (
            (CheckData(True, None, "", IMAGE, None, None, ME, "n"), False, Says.HAS),
            (CheckData(True, None, "", IMAGE, OTHER, None, ME, "n"), False, Says.TAKES),
            (CheckData(True, None, "", None, IMAGE, None, ME, "n"), False, Says.TAKES),
            (CheckData(False, "no_config", "", None, None, None, ME, "n"), False, Says.NO_CONFIG),
            (CheckData(False, "already_exists", "", OTHER, None, None, ME, "n"), False, Says.REFUSES),
            (CheckData(False, "already_exists", "", OTHER, None, None, ME, "n"), True, Says.HOLDS),
            (CheckData(False, "signature_mismatch", "", OTHER, None, None, ME, "n"), True, Says.REFUSES),
            (CheckData(False, None, "", OTHER, None, None, ME, "n"), False, Says.REFUSES),
        ):
            self.assertIs(reply("n", IMAGE, weak, data).says, expected)

    def test_fresh(self) -> None:
        """The bytes that really have to travel are told: a changed file of which most blocks are there is not all new."""

        def index(*files: File, kind: HashKind = HashKind.BLAKE3) -> Index:
            return Index(IMAGE, kind, (Directory("/", files),))

        big = File("/big", False, BLOCK_BYTES + 5, b"a" * 32 + b"b" * 32)
        grown = File("/big", False, BLOCK_BYTES + 7, b"a" * 32 + b"c" * 32)
        moved = File("/moved", False, 9, b"d" * 32)
        empty = File("/empty", False, 0, b"")
        wanted = index(grown, empty, moved)
        self.assertEqual(fresh(wanted, []).files, 2)
        found = fresh(wanted, [index(big), index(File("/old", False, 9, b"d" * 32))])
        self.assertEqual((found.files, found.bytes, found.compared), (1, 7, 2))
        other = fresh(wanted, [index(grown, kind=HashKind.BLAKE2B)])
        self.assertEqual((other.files, other.bytes, other.compared), (2, BLOCK_BYTES + 7 + 9, 0))
