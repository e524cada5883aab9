"""The decision tables, row by row."""

from itertools import product

from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.config import DirConfig, OnConflict
from ciruela.model.ids import ImageId
from ciruela.model.upload import Accepted, Command, Origin, Progress, Rejection, RejectReason, UploadRequest
from ciruela.model.versions import SigEntry, State, Version
from ciruela.model.vpath import VPath
from ciruela.uploads.decision import FUTURE_LIMIT_MS, SIGNATURE_MAX_AGE_MS, Elsewhere, PathState, judge, no_config, precheck
from tests.proof import shows

A, B, C = (ImageId(bytes([number]) * 32) for number in (1, 2, 3))
NOW = 1_700_000_000_000
OPEN = DirConfig("app", "/srv/app", append_only=False, num_levels=1)
APPEND_ONLY = DirConfig("app", "/srv/app", append_only=True, num_levels=1)
FROZEN = DirConfig("app", "/srv/app", append_only=True, num_levels=1, on_append_conflict=OnConflict.FREEZE)


def entry(stamp=NOW, fill=7):
    return SigEntry(stamp, bytes([fill]) * 64)


def state(image, stamp=NOW, fill=7):
    return State(image, (entry(stamp, fill),))


def order(command=Command.APPEND, image=A, old=None, origin=Origin.CLIENT, path="/app/v1"):
    return UploadRequest(command, VPath.parse(path), image, old, (entry(),), origin)


def verdict(wish, committed=None, pending=None, stamp=NOW, config=OPEN, stalled=False, now=NOW, buried=None, floor=0):
    return judge(wish, config, PathState(committed, pending, stalled, buried, floor), (entry(stamp),), now)


class PrecheckTests(SynchronousTestCase):
    """Rows 1 to 3: refused before a signature is looked at."""

    @shows("W2")
    def test_no_config(self):
        """A typing error in the name of a directory would be told without the names that there are."""
        found = no_config(VPath.parse("/ap/v1"), ["logs", "app"])
        self.assertEqual((found.reason, found.detail), (RejectReason.NO_CONFIG, "/ap is not configured here, but /app, /logs"))
        self.assertEqual(no_config(VPath.parse("/ap/v1"), []).detail, "/ap is not configured here, but nothing")
        many = no_config(VPath.parse("/ap/v1"), [f"d{number}" for number in range(12)]).detail
        self.assertTrue(many.endswith("/d7 and 2 more"), many)

    @shows("A17", "W2")
    def test_level(self):
        """An image can only be put where images belong, and the refusal says which way the path is wrong."""
        for path, detail in (
            ("/app", "/app has no components below /app, 1 is needed: too few"),
            ("/app/a/b", "/app/a/b has 2 components below /app, 1 is needed: too many"),
        ):
            found = precheck(order(path=path), OPEN)
            self.assertEqual((found.reason, found.detail), (RejectReason.CONFIG_LEVEL_MISMATCH, detail))

    def test_level_zero(self):
        """With num-levels 0 the directory itself is the image."""
        whole = DirConfig("app", "/srv/app", append_only=False, num_levels=0)
        self.assertIsNone(precheck(order(path="/app"), whole))
        self.assertEqual(precheck(order(path="/app/v1"), whole).reason, RejectReason.CONFIG_LEVEL_MISMATCH)

    @shows("I9")
    def test_append_only(self):
        """What is append-only is never replaced by a client."""
        self.assertEqual(precheck(order(Command.REPLACE), APPEND_ONLY).reason, RejectReason.DIR_IS_APPEND_ONLY)
        self.assertIsNone(precheck(order(Command.APPEND), APPEND_ONLY))

    def test_good(self):
        """What is right so far goes on to the signatures."""
        self.assertIsNone(precheck(order(Command.REPLACE), OPEN))


class ClientTests(SynchronousTestCase):
    """Rows 5 to 10, as a client meets them."""

    @shows("I4", "F8")
    def test_no_valid_signature(self):
        """Nothing changes without a key that is configured here."""
        found = judge(order(), OPEN, PathState(None, None, False), (), NOW)
        self.assertEqual(found.reason, RejectReason.SIGNATURE_MISMATCH)

    @shows("A13", "F10")
    def test_future(self):
        """A clock that runs ahead cannot pin a version for ever."""
        late = NOW + FUTURE_LIMIT_MS
        self.assertIsInstance(verdict(order(), stamp=late), Accepted)
        self.assertEqual(verdict(order(), stamp=late + 1).reason, RejectReason.TIMESTAMP_IN_FUTURE)

    @shows("A12", "F9")
    def test_too_old(self):
        """A request that somebody recorded last week would do its work again."""
        oldest = NOW - SIGNATURE_MAX_AGE_MS
        for command, there in ((Command.APPEND, None), (Command.REPLACE, state(B, oldest - 9)), (Command.REPLACE, None)):
            self.assertIsInstance(verdict(order(command), committed=there, stamp=oldest), Accepted)
            found = verdict(order(command), committed=there, stamp=oldest - 1)
            self.assertEqual(found.reason, RejectReason.STALE_TIMESTAMP)
            self.assertIn(f"the clock here says {NOW} ms", found.detail)

    @shows("A12", "F9", "I10")
    def test_deleted(self):
        """A recorded request would bring back what was deleted."""
        buried = Version(NOW, B)
        for command, image, stamp, good in (
            (Command.APPEND, B, NOW, False),
            (Command.APPEND, A, NOW, False),
            (Command.REPLACE, C, NOW - 1, False),
            (Command.APPEND, C, NOW, True),
            (Command.APPEND, B, NOW + 1, True),
        ):
            found = verdict(order(command, image), stamp=stamp, buried=buried)
            self.assertEqual(isinstance(found, Accepted), good)
            self.assertTrue(good or found.reason is RejectReason.STALE_TIMESTAMP)

    def test_floor_is_for_peers(self):
        """What a client signs now is taken, however late the node's floor is."""
        self.assertIsInstance(verdict(order(), floor=NOW + 5), Accepted)

    def test_already_done(self):
        """The same image again is no work, its signature is kept, even if it is the older one."""
        for command, stamp in product(Command, (NOW - 1, NOW, NOW + 1)):
            there = state(A, NOW, fill=9)
            found = verdict(order(command), committed=there, stamp=stamp)
            self.assertEqual(found.progress, Progress.ALREADY_DONE)
            self.assertEqual(found.state, there.merged((entry(stamp),)))

    def test_append_over_other(self):
        """An append never takes the place of something else."""
        for stamp in (NOW - 1, NOW + 1):
            self.assertEqual(verdict(order(), committed=state(B), stamp=stamp).reason, RejectReason.ALREADY_EXISTS)

    def test_replace(self):
        """A newer replace is a new download."""
        found = verdict(order(Command.REPLACE), committed=state(B, NOW - 1))
        self.assertEqual(found, Accepted(Progress.NEW, state(A)))

    @shows("A52")
    def test_replace_old_image(self):
        """Compare-and-swap: only what the client saw is replaced."""
        there = state(B, NOW - 1)
        self.assertIsInstance(verdict(order(Command.REPLACE, old=B), committed=there), Accepted)
        self.assertEqual(verdict(order(Command.REPLACE, old=C), committed=there).reason, RejectReason.REPLACE_DOESNT_MATCH)

    @shows("A52", "I10")
    def test_replace_stale(self):
        """A recorded request of an older version cannot roll the cluster back; of two with one time the greater id wins."""
        self.assertEqual(verdict(order(Command.REPLACE), committed=state(B, NOW + 1)).reason, RejectReason.STALE_TIMESTAMP)
        self.assertEqual(verdict(order(Command.REPLACE, image=A), committed=state(B, NOW)).reason, RejectReason.STALE_TIMESTAMP)
        self.assertIsInstance(verdict(order(Command.REPLACE, image=C), committed=state(B, NOW)), Accepted)

    @shows("K7.7", "W2")
    def test_whose_clock(self):
        """A host whose clock is right would be asked whether it is, for as long as another one's is fast."""
        fast = verdict(order(Command.REPLACE), committed=state(B, NOW + 240_000)).detail
        self.assertEqual(fast, "what is there was signed 4 min later, 4 min ahead of the clock here: that signer's is fast")
        slow = verdict(order(Command.REPLACE), committed=state(B, NOW - 1), stamp=NOW - 9001).detail
        self.assertEqual(slow, "what is there was signed 9.0 s later, is the clock of the new signer slow?")

    @shows("W2")
    def test_deleted_later(self):
        """Where nothing is, "what is there was signed later" would send people to look for it."""
        found = verdict(order(), buried=Version(NOW + 5000, B))
        self.assertEqual((found.reason, found.detail), (RejectReason.STALE_TIMESTAMP, "what was deleted here was signed 5.0 s later"))

    def test_nothing_there(self):
        """A first upload is accepted by either command; not one in place of an image that is not there (row 8)."""
        for command in Command:
            self.assertEqual(verdict(order(command)), Accepted(Progress.NEW, state(A)))
        self.assertEqual(verdict(order(Command.REPLACE, old=B)).reason, RejectReason.REPLACE_DOESNT_MATCH)

    def test_in_progress(self):
        """A client that reconnects joins the running download."""
        for command in Command:
            found = verdict(order(command), pending=state(A, NOW - 5, fill=8))
            self.assertEqual(found, Accepted(Progress.IN_PROGRESS, state(A, NOW - 5, fill=8).merged((entry(),))))

    @shows("A52")
    def test_other_in_progress(self):
        """Two uploads of one path do not run into each other."""
        self.assertEqual(verdict(order(), pending=state(B)).reason, RejectReason.ALREADY_UPLOADING)
        self.assertEqual(verdict(order(Command.REPLACE), pending=state(B)).reason, RejectReason.ALREADY_UPLOADING)
        self.assertEqual(verdict(order(Command.REPLACE, old=B), pending=state(B)).reason, RejectReason.ALREADY_UPLOADING)
        self.assertEqual(verdict(order(Command.REPLACE, old=C), pending=state(B)).reason, RejectReason.REPLACE_DOESNT_MATCH)

    def test_same_as_committed_while_other_in_progress(self):
        """What is being replaced is not "already done"."""
        found = verdict(order(Command.REPLACE), committed=state(A, NOW - 2), pending=state(B, NOW - 1))
        self.assertEqual(found.reason, RejectReason.ALREADY_UPLOADING)

    def test_stalled_gives_way(self):
        """An upload whose client vanished does not block its path."""
        self.assertEqual(verdict(order(), pending=state(B, NOW - 1), stalled=True), Accepted(Progress.NEW, state(A)))
        self.assertEqual(verdict(order(), pending=state(B, NOW + 1), stalled=True).reason, RejectReason.ALREADY_UPLOADING)
        found = verdict(order(), committed=state(C, NOW - 2), pending=state(B, NOW - 1), stalled=True)
        self.assertEqual(found.reason, RejectReason.ALREADY_EXISTS)
        found = verdict(order(Command.REPLACE, old=C), committed=state(C, NOW - 2), pending=state(B, NOW - 1), stalled=True)
        self.assertIsInstance(found, Accepted)


class PeerTests(SynchronousTestCase):
    """What a peer has is judged by the order of versions alone."""

    def test_newer(self):
        """A node that was down takes over what is newer, whatever it has."""
        wish = order(Command.REPLACE, origin=Origin.PEER)
        self.assertEqual(verdict(wish, committed=state(B, NOW - 1)), Accepted(Progress.NEW, state(A)))
        self.assertEqual(verdict(wish, pending=state(B, NOW - 1)), Accepted(Progress.NEW, state(A)))

    @shows("I10")
    def test_not_newer(self):
        """Nothing goes backwards."""
        wish = order(Command.REPLACE, origin=Origin.PEER)
        for standing in (
            {"committed": state(B, NOW)},
            {"pending": state(B, NOW)},
            {"committed": state(C, NOW - 9), "pending": state(B, NOW)},
        ):
            self.assertEqual(verdict(wish, **standing).reason, RejectReason.STALE_TIMESTAMP)

    def test_append_only_conflict(self):
        """Two appends of one path on two sides of a partition end as one winner everywhere, and the log can tell."""
        wish = order(Command.REPLACE, origin=Origin.PEER)
        self.assertIsNone(precheck(wish, APPEND_ONLY))
        found = verdict(wish, committed=state(B, NOW + 1), config=APPEND_ONLY)
        self.assertEqual(found, Accepted(Progress.NEW, state(A), conflict=True))
        self.assertEqual(verdict(wish, committed=state(B, NOW - 1), config=APPEND_ONLY).reason, RejectReason.CONFLICT)
        self.assertFalse(verdict(wish, config=APPEND_ONLY).conflict)
        self.assertFalse(verdict(wish, committed=state(B, NOW - 1)).conflict)

    @shows("A51", "F46")
    def test_frozen_conflict(self):
        """An operator who wants to look first would find that one of the two images is gone."""
        wish = order(Command.REPLACE, origin=Origin.PEER)
        for standing in ({"committed": state(B, NOW - 1)}, {"pending": state(B, NOW - 1)}):
            self.assertEqual(verdict(wish, config=FROZEN, **standing).reason, RejectReason.CONFLICT)
        self.assertEqual(verdict(wish, committed=state(B, NOW + 1), config=FROZEN).reason, RejectReason.CONFLICT)
        self.assertIsInstance(verdict(wish, config=FROZEN), Accepted)

    @shows("A54", "F48", "F50", "I10")
    def test_deleted(self):
        """A node that was away would spread again what the others deleted."""
        wish = order(origin=Origin.PEER)
        self.assertEqual(verdict(wish, buried=Version(NOW, A)).reason, RejectReason.STALE_TIMESTAMP)
        self.assertIsInstance(verdict(wish, stamp=NOW + 1, buried=Version(NOW, A)), Accepted)
        self.assertEqual(verdict(wish, floor=NOW).reason, RejectReason.STALE_TIMESTAMP)
        self.assertIsInstance(verdict(wish, floor=NOW - 1), Accepted)

    def test_floor_only_where_nothing_is_known(self):
        """A version newer than what is there, or than what was deleted there, is news, whatever was forgotten of other paths."""
        wish = order(origin=Origin.PEER)
        self.assertIsInstance(verdict(wish, committed=state(B, NOW - 1), floor=NOW + 5), Accepted)
        self.assertIsInstance(verdict(wish, buried=Version(NOW - 1, B), floor=NOW + 5), Accepted)

    @shows("S14")
    def test_old_signatures(self):
        """What was signed years ago is still wanted by a node that joins; only what was deleted, or forgotten, sets it a limit."""
        for config in (OPEN, APPEND_ONLY):
            self.assertIsInstance(verdict(order(origin=Origin.PEER), stamp=1, config=config), Accepted)
            self.assertEqual(verdict(order(origin=Origin.PEER), stamp=1, floor=1, config=config).reason, RejectReason.STALE_TIMESTAMP)
            self.assertEqual(
                verdict(order(origin=Origin.PEER), stamp=1, buried=Version(1, A), config=config).reason, RejectReason.STALE_TIMESTAMP
            )

    @shows("A14", "A51", "A53", "F46")
    def test_any_two_agree(self):
        """Of two versions exactly one wins against the other, whichever node hears it first."""
        stamps = (NOW - 1, NOW)
        for config, ((image_a, stamp_a), (image_b, stamp_b)) in product((OPEN, APPEND_ONLY), product(product((A, B), stamps), repeat=2)):
            if image_a == image_b:
                continue
            here, there = PathState(state(image_b, stamp_b), None, False), PathState(state(image_a, stamp_a), None, False)
            forth = judge(order(image=image_a, origin=Origin.PEER), config, here, (entry(stamp_a),), NOW)
            back = judge(order(image=image_b, origin=Origin.PEER), config, there, (entry(stamp_b),), NOW)
            self.assertEqual({type(forth), type(back)}, {Accepted, Rejection})

    @shows("K2.1")
    def test_claim_not_lost_by_a_later_signature(self):
        """An image that is uploaded again would lose its place to one that came between."""
        wish = order(Command.REPLACE, image=B, origin=Origin.PEER)
        again = State(A, (entry(NOW - 9), entry(NOW)))
        self.assertEqual(verdict(wish, stamp=NOW - 5, committed=again, config=APPEND_ONLY).reason, RejectReason.CONFLICT)
        found = judge(order(origin=Origin.PEER), APPEND_ONLY, PathState(state(B, NOW - 5), None, False), again.signatures, NOW)
        self.assertEqual(found, Accepted(Progress.NEW, again, conflict=True))

    @shows("K2.1")
    def test_claim_ends_with_removal(self):
        """What was removed would come back in place of what was uploaded since, by the claim of its first upload."""
        again = State(A, (entry(NOW - 9), entry(NOW)))
        gone = Version(NOW - 7, A)
        standing = PathState(state(B, NOW - 5), None, False, buried=gone, removed=gone)
        self.assertEqual(judge(order(origin=Origin.PEER), APPEND_ONLY, standing, again.signatures, NOW).reason, RejectReason.CONFLICT)
        standing = PathState(again, None, False, buried=gone, removed=gone)
        wish = order(image=B, origin=Origin.PEER)
        found = judge(wish, APPEND_ONLY, standing, (entry(NOW - 5),), NOW)
        self.assertEqual(found, Accepted(Progress.NEW, state(B, NOW - 5), conflict=True))
        nothing = PathState(None, None, False, buried=gone, removed=gone)
        found = judge(order(origin=Origin.PEER), APPEND_ONLY, nothing, again.signatures, NOW)
        self.assertEqual(found, Accepted(Progress.NEW, state(A)))

    @shows("K2.1")
    def test_claim_before_the_floor(self):
        """What was removed and forgotten long ago must not displace what is there."""
        found = verdict(order(origin=Origin.PEER), stamp=NOW - 9, committed=state(B), floor=NOW - 9, config=APPEND_ONLY)
        self.assertEqual(found.reason, RejectReason.CONFLICT)
        found = verdict(order(origin=Origin.PEER), stamp=NOW - 8, committed=state(B), floor=NOW - 9, config=APPEND_ONLY)
        self.assertTrue(found.conflict)

    def test_stalled_has_no_claim(self):
        """An append whose client vanished would keep the path of the others for an hour."""
        wish = order(origin=Origin.PEER)
        self.assertTrue(verdict(wish, pending=state(B, NOW - 9), stalled=True, config=APPEND_ONLY).conflict)
        self.assertEqual(verdict(wish, pending=state(B, NOW - 9), config=APPEND_ONLY).reason, RejectReason.CONFLICT)


def there(*committed, pending=()):
    """What others have: pairs of image and time."""
    versions = [frozenset(Version(stamp, image) for image, stamp in some) for some in (committed, pending)]
    return Elsewhere(*versions)


class ElsewhereTests(SynchronousTestCase):
    """What others have counts for a client's order as if it were here."""

    def reason(self, wish, elsewhere, committed=None, pending=None, config=OPEN, stamp=NOW, stalled=False):
        found = judge(wish, config, PathState(committed, pending, stalled, elsewhere=elsewhere), (entry(stamp),), NOW)
        return found.progress if isinstance(found, Accepted) else found.reason

    @shows("K2.1", "K2.3")
    def test_append(self):
        """A node that lost its record, or is new, would take what all others refuse."""
        for config in (OPEN, APPEND_ONLY):
            self.assertEqual(self.reason(order(), there((B, NOW - 9)), config=config), RejectReason.ALREADY_EXISTS)
            self.assertEqual(self.reason(order(), there(pending=[(B, NOW - 9)]), config=config), RejectReason.ALREADY_UPLOADING)
            self.assertEqual(self.reason(order(), there((A, NOW - 9)), config=config), Progress.NEW)
            self.assertEqual(self.reason(order(), there(pending=[(A, NOW - 9)]), config=config), Progress.NEW)
            mixed = there((A, NOW - 1), (C, NOW - 2))
            self.assertEqual(self.reason(order(), mixed, committed=state(B, NOW - 9), config=config), RejectReason.ALREADY_EXISTS)

    @shows("K2.2")
    def test_old_image(self):
        """A replace of what was never there would win everywhere by the one node that does not know better."""
        newer = there((B, NOW - 1))
        self.assertEqual(self.reason(order(Command.REPLACE, old=C), newer), RejectReason.REPLACE_DOESNT_MATCH)
        self.assertEqual(self.reason(order(Command.REPLACE, old=C), newer, committed=state(C, NOW - 9)), RejectReason.REPLACE_DOESNT_MATCH)
        self.assertEqual(self.reason(order(Command.REPLACE, old=B), newer, committed=state(C, NOW - 9)), Progress.NEW)
        self.assertEqual(self.reason(order(Command.REPLACE, old=B), newer), Progress.NEW)
        self.assertEqual(self.reason(order(Command.REPLACE), there((B, NOW + 1))), RejectReason.STALE_TIMESTAMP)

    @shows("K2.2")
    def test_same_image_behind(self):
        """The old version, on a node that missed the new one, would be called done by a fresh signature and win everywhere."""
        newer = there((B, NOW - 1))
        for standing in ({"committed": state(A, NOW - 9)}, {"pending": state(A, NOW - 9)}):
            self.assertEqual(self.reason(order(), newer, **standing), RejectReason.ALREADY_EXISTS)
            self.assertEqual(self.reason(order(Command.REPLACE, old=C), newer, **standing), RejectReason.REPLACE_DOESNT_MATCH)
            self.assertNotIsInstance(self.reason(order(Command.REPLACE, old=B), newer, **standing), RejectReason)
            self.assertEqual(self.reason(order(), newer, config=APPEND_ONLY, **standing), RejectReason.ALREADY_EXISTS)
            self.assertNotIsInstance(self.reason(order(), newer, config=FROZEN, **standing), RejectReason)

    def test_taken_elsewhere_already(self):
        """An order that the other nodes have carried out would be refused by the slowest one."""
        mine = there((A, NOW))
        self.assertEqual(self.reason(order(Command.REPLACE, old=B), mine, committed=state(B, NOW - 9)), Progress.NEW)
        self.assertEqual(self.reason(order(Command.REPLACE, old=B), mine), Progress.NEW)

    def test_late_download_elsewhere(self):
        """A node that still fetches what is there already would keep the next version off."""
        slow = there((B, NOW - 1), pending=[(B, NOW - 1), (C, NOW - 2)])
        self.assertEqual(self.reason(order(Command.REPLACE, old=B), slow, committed=state(B, NOW - 1)), Progress.NEW)

    def test_stalled_everywhere(self):
        """An upload whose client vanished would block its path through the other nodes that wait for it as well."""
        dead = there(pending=[(B, NOW - 9)])
        self.assertEqual(self.reason(order(), dead, pending=state(B, NOW - 9), stalled=True), Progress.NEW)
