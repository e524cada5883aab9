"""The decision tables, row by row."""

from itertools import product

from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.dirconfig import DirConfig, OnConflict
from ciruela.model.ids import ImageId
from ciruela.model.order import Accepted, Command, Order, Origin, Progress, Reject, Rejected
from ciruela.model.state import SigEntry, State, Version
from ciruela.model.vpath import VPath
from ciruela.uploads.verdict import FUTURE_LIMIT_MS, SIGNATURE_MAX_AGE_MS, Standing, judge, precheck
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
    return Order(command, VPath.parse(path), image, old, (entry(),), origin)


def verdict(wish, committed=None, pending=None, stamp=NOW, config=OPEN, stalled=False, now=NOW, buried=None, floor=0):
    return judge(wish, config, Standing(committed, pending, stalled, buried, floor), (entry(stamp),), now)


class PrecheckTests(SynchronousTestCase):
    """Rows 1 to 3: refused before a signature is looked at."""

    def test_no_config(self):
        """A client is sent elsewhere when the directory is not configured here."""
        self.assertEqual(precheck(order(), None).reason, Reject.NO_CONFIG)

    @shows("A17")
    def test_level(self):
        """An image can only be put where images belong."""
        for path in ("/app", "/app/a/b"):
            self.assertEqual(precheck(order(path=path), OPEN).reason, Reject.CONFIG_LEVEL_MISMATCH)

    def test_level_zero(self):
        """With num-levels 0 the directory itself is the image."""
        whole = DirConfig("app", "/srv/app", append_only=False, num_levels=0)
        self.assertIsNone(precheck(order(path="/app"), whole))
        self.assertEqual(precheck(order(path="/app/v1"), whole).reason, Reject.CONFIG_LEVEL_MISMATCH)

    @shows("I9")
    def test_append_only(self):
        """What is append-only is never replaced by a client."""
        self.assertEqual(precheck(order(Command.REPLACE), APPEND_ONLY).reason, Reject.DIR_IS_APPEND_ONLY)
        self.assertIsNone(precheck(order(Command.APPEND), APPEND_ONLY))

    def test_good(self):
        """What is right so far goes on to the signatures."""
        self.assertIsNone(precheck(order(Command.REPLACE), OPEN))


class ClientTests(SynchronousTestCase):
    """Rows 5 to 10, as a client meets them."""

    @shows("I4", "F8")
    def test_no_valid_signature(self):
        """Nothing changes without a key that is configured here."""
        found = judge(order(), OPEN, Standing(None, None, False), (), NOW)
        self.assertEqual(found.reason, Reject.SIGNATURE_MISMATCH)

    @shows("A13", "F10")
    def test_future(self):
        """A clock that runs ahead cannot pin a version for ever."""
        late = NOW + FUTURE_LIMIT_MS
        self.assertIsInstance(verdict(order(), stamp=late), Accepted)
        self.assertEqual(verdict(order(), stamp=late + 1).reason, Reject.TIMESTAMP_IN_FUTURE)

    @shows("A12", "F9")
    def test_too_old(self):
        """A request that somebody recorded last week would do its work again."""
        oldest = NOW - SIGNATURE_MAX_AGE_MS
        for command, there in ((Command.APPEND, None), (Command.REPLACE, state(B, oldest - 9)), (Command.REPLACE, None)):
            self.assertIsInstance(verdict(order(command), committed=there, stamp=oldest), Accepted)
            found = verdict(order(command), committed=there, stamp=oldest - 1)
            self.assertEqual(found.reason, Reject.STALE_TIMESTAMP)
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
            self.assertTrue(good or found.reason is Reject.STALE_TIMESTAMP)

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
            self.assertEqual(verdict(order(), committed=state(B), stamp=stamp).reason, Reject.ALREADY_EXISTS)

    def test_replace(self):
        """A newer replace is a new download."""
        found = verdict(order(Command.REPLACE), committed=state(B, NOW - 1))
        self.assertEqual(found, Accepted(Progress.NEW, state(A)))

    @shows("A52")
    def test_replace_old_image(self):
        """Compare-and-swap: only what the client saw is replaced."""
        there = state(B, NOW - 1)
        self.assertIsInstance(verdict(order(Command.REPLACE, old=B), committed=there), Accepted)
        self.assertEqual(verdict(order(Command.REPLACE, old=C), committed=there).reason, Reject.REPLACE_DOESNT_MATCH)

    @shows("A52", "I10")
    def test_replace_stale(self):
        """A recorded request of an older version cannot roll the cluster back; of two with one time the greater id wins."""
        self.assertEqual(verdict(order(Command.REPLACE), committed=state(B, NOW + 1)).reason, Reject.STALE_TIMESTAMP)
        self.assertEqual(verdict(order(Command.REPLACE, image=A), committed=state(B, NOW)).reason, Reject.STALE_TIMESTAMP)
        self.assertIsInstance(verdict(order(Command.REPLACE, image=C), committed=state(B, NOW)), Accepted)

    def test_nothing_there(self):
        """A first upload is accepted by either command, with or without an old image (row 8)."""
        for command, old in product(Command, (None, B)):
            self.assertEqual(verdict(order(command, old=old)), Accepted(Progress.NEW, state(A)))

    def test_in_progress(self):
        """A client that reconnects joins the running download."""
        for command in Command:
            found = verdict(order(command), pending=state(A, NOW - 5, fill=8))
            self.assertEqual(found, Accepted(Progress.IN_PROGRESS, state(A, NOW - 5, fill=8).merged((entry(),))))

    @shows("A52")
    def test_other_in_progress(self):
        """Two uploads of one path do not run into each other."""
        self.assertEqual(verdict(order(), pending=state(B)).reason, Reject.ALREADY_UPLOADING)
        self.assertEqual(verdict(order(Command.REPLACE), pending=state(B)).reason, Reject.ALREADY_UPLOADING)
        self.assertEqual(verdict(order(Command.REPLACE, old=B), pending=state(B)).reason, Reject.ALREADY_UPLOADING)
        self.assertEqual(verdict(order(Command.REPLACE, old=C), pending=state(B)).reason, Reject.REPLACE_DOESNT_MATCH)

    def test_same_as_committed_while_other_in_progress(self):
        """What is being replaced is not "already done"."""
        found = verdict(order(Command.REPLACE), committed=state(A, NOW - 2), pending=state(B, NOW - 1))
        self.assertEqual(found.reason, Reject.ALREADY_UPLOADING)

    def test_stalled_gives_way(self):
        """An upload whose client vanished does not block its path."""
        self.assertEqual(verdict(order(), pending=state(B, NOW - 1), stalled=True), Accepted(Progress.NEW, state(A)))
        self.assertEqual(verdict(order(), pending=state(B, NOW + 1), stalled=True).reason, Reject.ALREADY_UPLOADING)
        found = verdict(order(), committed=state(C, NOW - 2), pending=state(B, NOW - 1), stalled=True)
        self.assertEqual(found.reason, Reject.ALREADY_EXISTS)
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
            self.assertEqual(verdict(wish, **standing).reason, Reject.STALE_TIMESTAMP)

    def test_append_only_conflict(self):
        """Two appends of one path on two sides of a partition end as one winner everywhere, and the log can tell."""
        wish = order(Command.REPLACE, origin=Origin.PEER)
        self.assertIsNone(precheck(wish, APPEND_ONLY))
        found = verdict(wish, committed=state(B, NOW - 1), config=APPEND_ONLY)
        self.assertEqual(found, Accepted(Progress.NEW, state(A), conflict=True))
        self.assertFalse(verdict(wish, config=APPEND_ONLY).conflict)
        self.assertFalse(verdict(wish, committed=state(B, NOW - 1)).conflict)

    @shows("A51", "F46")
    def test_frozen_conflict(self):
        """An operator who wants to look first would find that one of the two images is gone."""
        wish = order(Command.REPLACE, origin=Origin.PEER)
        for standing in ({"committed": state(B, NOW - 1)}, {"pending": state(B, NOW - 1)}):
            self.assertEqual(verdict(wish, config=FROZEN, **standing).reason, Reject.CONFLICT)
        self.assertEqual(verdict(wish, committed=state(B, NOW + 1), config=FROZEN).reason, Reject.CONFLICT)
        self.assertIsInstance(verdict(wish, config=FROZEN), Accepted)

    @shows("A54", "F48", "F50", "I10")
    def test_deleted(self):
        """A node that was away would spread again what the others deleted."""
        wish = order(origin=Origin.PEER)
        self.assertEqual(verdict(wish, buried=Version(NOW, A)).reason, Reject.STALE_TIMESTAMP)
        self.assertIsInstance(verdict(wish, stamp=NOW + 1, buried=Version(NOW, A)), Accepted)
        self.assertEqual(verdict(wish, floor=NOW).reason, Reject.STALE_TIMESTAMP)
        self.assertIsInstance(verdict(wish, floor=NOW - 1), Accepted)

    def test_floor_only_where_nothing_is_known(self):
        """A version newer than what is there, or than what was deleted there, is news, whatever was forgotten of other paths."""
        wish = order(origin=Origin.PEER)
        self.assertIsInstance(verdict(wish, committed=state(B, NOW - 1), floor=NOW + 5), Accepted)
        self.assertIsInstance(verdict(wish, buried=Version(NOW - 1, B), floor=NOW + 5), Accepted)

    def test_old_signatures(self):
        """What was signed years ago is still wanted by a node that joins."""
        self.assertIsInstance(verdict(order(origin=Origin.PEER), stamp=1), Accepted)

    @shows("A14", "A51", "A53", "F46")
    def test_any_two_agree(self):
        """Of two versions exactly one wins against the other, whichever node hears it first."""
        stamps = (NOW - 1, NOW)
        for (image_a, stamp_a), (image_b, stamp_b) in product(product((A, B), stamps), repeat=2):
            if image_a == image_b:
                continue
            forth = judge(
                order(image=image_a, origin=Origin.PEER), OPEN, Standing(state(image_b, stamp_b), None, False), (entry(stamp_a),), NOW
            )
            back = judge(
                order(image=image_b, origin=Origin.PEER), OPEN, Standing(state(image_a, stamp_a), None, False), (entry(stamp_b),), NOW
            )
            self.assertEqual({type(forth), type(back)}, {Accepted, Rejected})
