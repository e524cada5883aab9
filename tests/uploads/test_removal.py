"""The verdict on a removal, row by row."""

from __future__ import annotations

from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.ids import ImageId
from ciruela.model.upload import Origin, Rejection, RejectReason, Removal, RemovalGranted
from ciruela.model.versions import SigEntry, State, Tombstone, Tombstones, Version
from ciruela.model.vpath import VPath
from ciruela.uploads.decision import FUTURE_LIMIT_MS, SIGNATURE_MAX_AGE_MS, Elsewhere, PathState, judge_removal
from tests.proof import shows

NOW_MS = 1_800_000_000_000
A, B = ImageId(b"a" * 32), ImageId(b"b" * 32)
CLIENT = Removal(VPath.parse("/app/v1"), A, NOW_MS, (b"s" * 64,), Origin.CLIENT)
PEER = replace(CLIENT, origin=Origin.PEER)
NOTHING = PathState(None, None, stalled=False)


def state(image: ImageId, timestamp_ms: int) -> State:
    return State(image, (SigEntry(timestamp_ms, bytes(64)),))


class VerdictTests(SynchronousTestCase):
    """``judge_removal``."""

    def judge(self, removal: Removal, standing: PathState = NOTHING, *, verified: bool = True) -> RejectReason | bool:
        """The word of a refusal, else whether there is something to do."""
        entries = (SigEntry(removal.timestamp_ms, removal.signatures[0]),) if verified else ()
        verdict = judge_removal(removal, standing, entries, NOW_MS)
        return verdict.reason if isinstance(verdict, Rejection) else verdict.fresh

    @shows("A11", "F8", "I4")
    def test_who(self) -> None:
        """Anybody could remove anything."""
        standing = replace(NOTHING, committed=state(A, NOW_MS - 1))
        for removal in (CLIENT, PEER):
            self.assertIs(self.judge(removal, standing, verified=False), RejectReason.SIGNATURE_MISMATCH)
            self.assertIs(self.judge(removal, standing), True)

    @shows("A12", "A13", "F9", "I10")
    def test_when(self) -> None:
        """A removal that somebody recorded would work for ever; one from the future would keep a path empty for as long."""
        for removal in (CLIENT, PEER):
            ahead = replace(removal, timestamp_ms=NOW_MS + FUTURE_LIMIT_MS + 1)
            self.assertIs(self.judge(ahead), RejectReason.TIMESTAMP_IN_FUTURE)
            newer = replace(NOTHING, committed=state(A, NOW_MS + 1))
            self.assertIs(self.judge(removal, newer), RejectReason.STALE_TIMESTAMP)
            self.assertIs(self.judge(removal, replace(NOTHING, pending=state(A, NOW_MS + 1))), RejectReason.STALE_TIMESTAMP)
        old = replace(CLIENT, timestamp_ms=NOW_MS - SIGNATURE_MAX_AGE_MS - 1)
        self.assertIs(self.judge(old), RejectReason.STALE_TIMESTAMP)
        self.assertIs(self.judge(replace(old, origin=Origin.PEER)), True)

    @shows("K2.1")
    def test_outlived(self) -> None:
        """In an append-only directory a removal that is not remembered would let what was removed claim the path."""
        entries = (SigEntry(NOW_MS, bytes(64)),)
        for standing in (replace(NOTHING, committed=state(B, NOW_MS + 1)), replace(NOTHING, pending=state(A, NOW_MS + 1))):
            found = judge_removal(PEER, standing, entries, NOW_MS, append_only=True)
            self.assertEqual(found, RemovalGranted(fresh=True, outlived=True))
            found = judge_removal(PEER, replace(standing, buried=PEER.version), entries, NOW_MS, append_only=True)
            self.assertEqual(found, RemovalGranted(fresh=False, outlived=True))
            self.assertIsInstance(judge_removal(CLIENT, standing, entries, NOW_MS, append_only=True), Rejection)

    def test_what(self) -> None:
        """A client would remove another image than it was shown; or a peer's removal would leave an older one that it does not know."""
        other, coming = replace(NOTHING, committed=state(B, NOW_MS - 9)), replace(NOTHING, pending=state(B, NOW_MS - 9))
        self.assertIs(self.judge(CLIENT, other), RejectReason.REPLACE_DOESNT_MATCH)
        self.assertIs(self.judge(CLIENT, coming), RejectReason.ALREADY_UPLOADING)
        self.assertIs(self.judge(PEER, other), True)
        self.assertIs(self.judge(PEER, coming), True)

    @shows("K2.2")
    def test_what_others_have(self) -> None:
        """A node that is empty or behind would take a removal that the others refuse, and it would hold for them."""

        def there(*versions: Version, coming: tuple[Version, ...] = ()) -> Elsewhere:
            return Elsewhere(frozenset(versions), frozenset(coming))

        older, newer, same = Version(NOW_MS - 9, B), Version(NOW_MS - 1, B), Version(NOW_MS - 5, A)
        for mine in (None, state(A, NOW_MS - 5)):
            standing = replace(NOTHING, committed=mine)
            self.assertIs(self.judge(CLIENT, replace(standing, elsewhere=there(newer))), RejectReason.REPLACE_DOESNT_MATCH)
            self.assertIs(self.judge(CLIENT, replace(standing, elsewhere=there(same, newer))), RejectReason.REPLACE_DOESNT_MATCH)
            self.assertIs(self.judge(CLIENT, replace(standing, elsewhere=there(same, older))), True)
            self.assertIs(self.judge(CLIENT, replace(standing, elsewhere=there(coming=(newer,)))), RejectReason.ALREADY_UPLOADING)
            self.assertIs(self.judge(CLIENT, replace(standing, elsewhere=there(same, coming=(older,)))), True)
            self.assertIs(self.judge(PEER, replace(standing, elsewhere=there(newer))), True)

    @shows("K5.5", "I9")
    def test_protected(self) -> None:
        """What a link of the operator leads to would go all the same; or ``--force`` would not help; or the reason would be another one."""
        standing = replace(NOTHING, committed=state(A, NOW_MS - 1))

        def judge(removal: Removal, verified: int = 1, standing: PathState = standing) -> RejectReason | bool:
            entries = (SigEntry(removal.timestamp_ms, removal.signatures[0]),) * verified
            verdict = judge_removal(removal, standing, entries, NOW_MS, protecting="a link")
            return verdict.reason if isinstance(verdict, Rejection) else verdict.fresh

        before = replace(NOTHING, buried=CLIENT.version)

        for removal in (CLIENT, PEER):
            self.assertIs(judge(removal), RejectReason.PROTECTED)
            self.assertIs(judge(removal, 0), RejectReason.SIGNATURE_MISMATCH)
            self.assertIs(judge(replace(removal, forced=True)), True)
            self.assertIs(judge(removal, standing=before), RejectReason.PROTECTED)
            self.assertIs(judge(replace(removal, forced=True), standing=before), False)
        self.assertIs(judge(PEER, standing=replace(NOTHING, floor_ms=NOW_MS)), RejectReason.PROTECTED)
        self.assertIs(judge(replace(CLIENT, image=B)), RejectReason.REPLACE_DOESNT_MATCH)

    def test_again(self) -> None:
        """A removal that is done would be done again with each comparison of two nodes."""
        buried = replace(NOTHING, buried=CLIENT.version)
        for removal in (CLIENT, PEER):
            self.assertIs(self.judge(removal, NOTHING), True)
            self.assertIs(self.judge(removal, buried), False)
            self.assertIs(self.judge(removal, replace(NOTHING, buried=Version(NOW_MS - 1, A))), True)
        folded = replace(NOTHING, floor_ms=NOW_MS)
        self.assertIs(self.judge(PEER, folded), False)
        self.assertIs(self.judge(PEER, replace(folded, committed=state(A, NOW_MS - 1))), True)


class TombstoneTests(SynchronousTestCase):
    """What is remembered."""

    def test_signatures(self) -> None:
        """A node that knows only one of two keys would never be shown a signature of that one."""
        version = Version(5, A)
        first, second = (Tombstone(version, 9, (text * 64,)) for text in (b"1", b"2"))
        both = Tombstones().with_one("v1", first).with_one("v1", second)
        self.assertEqual(both.tombstones["v1"].signatures, (b"1" * 64, b"2" * 64))
        cleaned = both.with_one("v1", Tombstone(Version(4, A), 11))
        self.assertEqual(cleaned.tombstones["v1"].signatures, (b"1" * 64, b"2" * 64))
        many = both
        for number in range(40):
            many = many.with_one("v1", Tombstone(version, 9, (bytes([number]) * 64,)))
        self.assertEqual(len(many.tombstones["v1"].signatures), 16)
