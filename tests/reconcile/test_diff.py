"""Which entries of a peer are wanted."""

from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.ids import ImageId
from ciruela.model.upload import Command, Origin
from ciruela.model.versions import SigEntry, State, Tombstone, Tombstones, Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import RemovedEntry
from ciruela.reconcile.diff import removals_in, wanted
from tests.proof import shows

A, B, C = (ImageId(bytes([number]) * 32) for number in (1, 2, 3))
BASE = VPath.parse("/app")


def state(image, *stamps):
    return State(image, tuple(SigEntry(stamp, bytes(64)) for stamp in stamps))


class WantedTests(SynchronousTestCase):
    """A node that was away takes what is newer, and only that."""

    def names(self, ours, theirs):
        return [order.vpath.entry for order in wanted(BASE, ours, theirs, Tombstones())]

    @shows("A54", "F48", "I10")
    def test_not_what_was_deleted(self):
        """A peer that was away for a week would bring back everything that was cleaned meanwhile."""
        burials = Tombstones(15, {"v2": Tombstone(Version(20, B), 99), "v4": Tombstone(Version(40, A), 99)})
        theirs = {"v1": state(A, 15), "v2": state(B, 20), "v3": state(C, 16), "v4": state(B, 40)}
        self.assertEqual([order.vpath.entry for order in wanted(BASE, {}, theirs, burials)], ["v4", "v3"])
        self.assertEqual([order.vpath.entry for order in wanted(BASE, {"v1": state(B, 3)}, theirs, burials)], ["v4", "v3", "v1"])

    @shows("A54", "F49")
    def test_newest_first(self):
        """What matters now comes before last week's."""
        theirs = {"v1": state(A, 10), "v3": state(C, 30), "v2": state(B, 20)}
        self.assertEqual(self.names({}, theirs), ["v3", "v2", "v1"])

    def test_not_what_we_have(self):
        """Equal or older is left alone."""
        ours = {"v1": state(A, 10), "v2": state(B, 20)}
        self.assertEqual(self.names(ours, {"v1": state(A, 10), "v2": state(C, 19)}), [])

    def test_one_order(self):
        """Of one signing time the greater image id is newer; a newer signature of the same image is newer too."""
        self.assertEqual(self.names({"v": state(A, 10)}, {"v": state(B, 10)}), ["v"])
        self.assertEqual(self.names({"v": state(B, 10)}, {"v": state(A, 10)}), [])
        self.assertEqual(self.names({"v": state(A, 10)}, {"v": state(A, 10, 11)}), ["v"])

    def test_orders(self):
        """All signatures go along: one of them may be of a key that this node knows."""
        [new] = wanted(BASE, {}, {"v": state(A, 1, 2)}, Tombstones())
        self.assertEqual((new.command, new.origin, new.signatures), (Command.APPEND, Origin.PEER, state(A, 1, 2).signatures))
        [other] = wanted(BASE, {"v": state(B, 1)}, {"v": state(A, 2)}, Tombstones())
        self.assertEqual((other.command, other.old_image), (Command.REPLACE, None))

    def test_bad_entries(self):
        """A peer's list may hold anything; names that escape and unsigned entries are left out."""
        theirs = {
            "..": state(A, 1),
            "a/b": state(A, 1),
            ".hidden": state(A, 1),
            "x.new": state(A, 1),
            "unsigned": state(A),
            "\0": state(A, 1),
        }
        self.assertEqual(self.names({}, theirs), [])

    def test_level_zero(self):
        """A directory that is itself the image reconciles under the empty name."""
        whole = VPath.parse("/site")
        [order] = wanted(whole, {}, {"": state(A, 1)}, Tombstones())
        self.assertEqual(order.vpath, whole)


class AppendOnlyTests(SynchronousTestCase):
    """Where the first of two images stays."""

    def wanted(self, mine, theirs, removed=None):
        tombstones = {} if removed is None else {"v": Tombstone(removed, 99, (bytes(64),))}
        return bool(wanted(BASE, {"v": mine}, {"v": theirs}, Tombstones(0, tombstones), append_only=True))

    @shows("K2.1")
    def test_wanted(self):
        """An older claim would not travel, nor would anybody be told of the later of two images."""
        for theirs in (state(B, 5), state(B, 20), state(A, 5, 10), state(A, 10, 11)):
            self.assertTrue(self.wanted(state(A, 10), theirs), theirs)
        self.assertFalse(self.wanted(state(A, 10), state(A, 10)))
        self.assertFalse(self.wanted(state(A, 5, 10), state(A, 10)))

    @shows("K2.1")
    def test_removed(self):
        """What a removal covers would be asked for again and again."""
        gone = Version(7, A)
        for theirs in (state(B, 5), state(A, 5, 10)):
            self.assertFalse(self.wanted(state(A, 10), theirs, gone))
        self.assertTrue(self.wanted(state(A, 10), state(A, 8, 10), gone))
        self.assertTrue(self.wanted(state(A, 10), state(B, 5, 8), gone))

    @shows("K2.1")
    def test_outlived_removals(self):
        """A node that has what came after a removal, and not the removal, would differ for ever; or one that was forgotten would return."""
        theirs = {"v": RemovedEntry(7, A, (bytes(64),))}

        def found(burials=None, append_only=True, mine=10):
            return len(removals_in(BASE, {"v": state(B, mine)}, theirs, burials or Tombstones(), append_only))

        known = Tombstones(0, {"v": Tombstone(Version(7, A), 99, (bytes(64),))})
        self.assertEqual((found(), found(append_only=False)), (1, 0))
        self.assertEqual((found(known), found(Tombstones(7))), (0, 0))
        self.assertEqual((found(mine=5), found(known, mine=5), found(mine=5, append_only=False)), (1, 1, 1))
