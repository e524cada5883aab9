"""States: versions, claims, and signatures that stay few."""

from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.ids import ImageId
from ciruela.model.versions import MOST_SIGNATURES, SigEntry, State, Version
from tests.proof import shows

A = ImageId(bytes(32))


def entries(*stamps, fill=7):
    return tuple(SigEntry(stamp, bytes([fill]) * 64) for stamp in stamps)


class StateTests(SynchronousTestCase):
    """What is recorded of an image."""

    def test_claim(self):
        """The first upload would be forgotten by the next one of the same image; or count although that was removed."""
        state = State(A, entries(10, 20, 30))
        self.assertEqual((state.claim(), state.version), (Version(10, A), Version(30, A)))
        self.assertEqual(state.claim(Version(19, A)), Version(20, A))
        self.assertEqual(state.claim(Version(20, A)), Version(30, A))
        self.assertEqual(state.claim(Version(99, A)), Version(10, A))
        self.assertEqual(State(A, ()).claim(), Version(0, A))
        self.assertEqual(state.since(Version(20, A)).signatures, entries(30))
        self.assertEqual(state.since(None), state)

    @shows("K3.6", "I6")
    def test_bounded(self):
        """A state that takes one signature from each upload would break the listing of its directory for others."""
        state = State(A, entries(1))
        for stamp in range(2, 801):
            state = state.merged(entries(stamp))
        self.assertEqual([one.timestamp_ms for one in state.signatures], [1, *range(802 - MOST_SIGNATURES, 801)])
        self.assertEqual(len(state.signatures), MOST_SIGNATURES)

    @shows("K3.6")
    def test_newest_of_each_key(self):
        """The key of a nightly job would push out the signatures of all others."""
        nightly, ops = entries(1, 3, 5), entries(2, fill=8)
        state = State(A, ()).merged((*nightly, *ops))
        makers = dict.fromkeys(nightly, "nightly") | dict.fromkeys(ops, "ops")
        self.assertEqual(state.compact(makers, claim=False).signatures, (*ops, nightly[2]))
        self.assertEqual(state.compact(makers, claim=True).signatures, (nightly[0], *ops, nightly[2]))
        self.assertEqual(state.compact({}, claim=False), state)
