"""All signatures that count."""

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.config import DirConfig
from ciruela.model.ids import ImageId
from ciruela.model.versions import MOST_SIGNATURES, SigEntry
from ciruela.model.vpath import VPath
from ciruela.uploads.service import makers
from tests.proof import shows

CONFIG = DirConfig("log", "/srv/log", append_only=True, num_levels=1)


class Newest:
    """As the daemon's authority: the newest valid signature of each key. The first byte names the key, 0 is none."""

    def __init__(self):
        self.asked = 0

    def verified(self, config, vpath, image, entries, statement=None):
        self.asked += 1
        newest = {entry.signature[0]: entry for entry in sorted(entries) if entry.signature[0]}
        return succeed({entry: f"key {key}" for key, entry in newest.items()})


class MakersTests(SynchronousTestCase):
    """``makers``."""

    @shows("K2.1", "K3.6")
    def test_all(self):
        """The claim of an image that was uploaded again is an older signature of the same key: it would be lost, or believed unproven."""
        entries = [SigEntry(stamp, bytes([key]) * 64) for stamp, key in ((1, 0), (2, 1), (3, 1), (4, 2), (5, 1))]
        authority = Newest()
        found = Deferred.fromCoroutine(makers(authority, CONFIG, VPath.parse("/log/x"), ImageId(bytes(32)), entries))
        expected = {entry: f"key {entry.signature[0]}" for entry in entries[1:]}
        self.assertEqual(self.successResultOf(found), expected)

    def test_bounded(self):
        """A peer's list of bad signatures would cost as many rounds."""
        entries = [SigEntry(stamp, bytes(64)) for stamp in range(1000)]
        authority = Newest()
        found = Deferred.fromCoroutine(makers(authority, CONFIG, VPath.parse("/log/x"), ImageId(bytes(32)), entries))
        self.assertEqual((self.successResultOf(found), authority.asked), ({}, 1))
        entries = [SigEntry(stamp, bytes([1]) * 64) for stamp in range(1000)]
        found = Deferred.fromCoroutine(makers(authority, CONFIG, VPath.parse("/log/x"), ImageId(bytes(32)), entries))
        self.assertEqual(len(self.successResultOf(found)), MOST_SIGNATURES)
