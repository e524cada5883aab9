"""How much one key and one directory may have."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Pending
from ciruela.model.config import DirConfig
from ciruela.model.errors import SLOW_DOWN, Busy
from ciruela.model.ids import ImageId
from ciruela.model.upload import Command, Origin, RejectReason, UploadRequest
from ciruela.model.versions import SigEntry, State
from ciruela.model.vpath import VPath
from ciruela.tracking.ledger import Ledger
from ciruela.uploads.service import Quotas
from tests.proof import shows

IMAGE = ImageId(bytes(32))
STATE = State(IMAGE, (SigEntry(1, bytes(64)),))
CONFIG = DirConfig("app", "/srv/app", append_only=False, num_levels=2)


def order(path: str, origin: Origin = Origin.CLIENT) -> UploadRequest:
    return UploadRequest(Command.APPEND, VPath.parse(path), IMAGE, None, STATE.signatures, origin)


class QuotasTests(SynchronousTestCase):
    """What a directory or a key has too much of is refused; everybody else goes on."""

    def setUp(self) -> None:
        self.ledger = Ledger(Clock())
        self.stalled: set[VPath] = set()
        self.quotas = Quotas(self.ledger, 2, self.stalled.__contains__)

    def begin(self, path: str, *makers: str, origin: Origin = Origin.CLIENT) -> None:
        """As the service does: charge, then note."""
        self.quotas.charge(order(path, origin), makers)
        self.ledger.begin(Pending(VPath.parse(path), STATE, Command.APPEND))

    def test_images(self) -> None:
        """One path more than allowed is refused with the numbers, in whichever base dir; a known path may get a new image."""
        config = replace(CONFIG, max_images=2)
        self.ledger.commit(VPath.parse("/app/a/v1"), STATE)
        self.assertIsNone(self.quotas.room(order("/app/b/v1"), config))
        self.begin("/app/b/v1", "ann")
        refused = self.quotas.room(order("/app/c/v1"), config)
        assert refused is not None
        self.assertEqual((refused.reason, refused.detail), (RejectReason.QUOTA, "/app has 2 images, max-images is 2"))
        self.assertIsNone(self.quotas.room(order("/app/a/v1"), config))
        self.assertIsNone(self.quotas.room(order("/app/c/v1"), CONFIG))
        self.assertIsNone(self.quotas.room(order("/app/c/v1", Origin.PEER), config))
        self.ledger.abort(VPath.parse("/app/b/v1"), 0)
        self.assertIsNone(self.quotas.room(order("/app/c/v1"), config))

    @shows("I6")
    def test_uploads(self) -> None:
        """A third upload of a key waits until one of the two has ended; other keys need not."""
        self.begin("/app/a/1", "ann")
        self.begin("/app/a/2", "ann")
        fault = self.assertRaises(Busy, self.begin, "/app/a/3", "ann")
        self.assertEqual(str(fault), f"{SLOW_DOWN}: 2 uploads of this key are in progress on this node")
        self.assertEqual(self.quotas.slowed, 1)
        self.assertIsNone(self.ledger.pending(VPath.parse("/app/a/3")))
        self.begin("/app/a/4", "bob")
        self.ledger.commit(VPath.parse("/app/a/1"), STATE)
        self.begin("/app/a/3", "ann")

    def test_any_of_its_keys(self) -> None:
        """Who signs with several keys is only refused when none has room."""
        self.begin("/app/a/1", "ann")
        self.begin("/app/a/2", "ann")
        for number in (3, 4):
            self.begin(f"/app/a/{number}", "ann", "bob")
        self.assertRaises(Busy, self.begin, "/app/a/5", "ann", "bob")

    def test_stalled(self) -> None:
        """A client that has gone does not lock its key out for the hour that its downloads may wait."""
        self.begin("/app/a/1", "ann")
        self.begin("/app/a/2", "ann")
        self.stalled.add(VPath.parse("/app/a/1"))
        self.begin("/app/a/3", "ann")
        self.assertRaises(Busy, self.begin, "/app/a/4", "ann")

    def test_again(self) -> None:
        """Replacing what is on its way takes no place of its own."""
        self.begin("/app/a/1", "ann")
        self.begin("/app/a/2", "ann")
        self.begin("/app/a/2", "ann")

    def test_peers(self) -> None:
        """What another node has granted is neither counted nor refused, or the nodes would never agree."""
        for number in range(5):
            self.begin(f"/app/a/{number}", "ann", origin=Origin.PEER)
        self.begin("/app/a/8", "ann")
        self.begin("/app/a/9", "ann")
        self.begin("/app/a/8", "ann", origin=Origin.PEER)
        self.begin("/app/a/10", "ann")
