"""Who waits for what, and who can give it."""

from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.ids import ImageId
from ciruela.model.vpath import VPath
from ciruela.tracking.subscriptions import MAX_PER_LINK, Subscriptions
from tests.proof import shows

A, B = (ImageId(bytes([number]) * 32) for number in (1, 2))
V1, V2 = VPath.parse("/app/v1"), VPath.parse("/app/v2")


class WatchesTests(SynchronousTestCase):
    """A client hears of what it uploaded, and of nothing else."""

    def setUp(self):
        self.watches = Subscriptions()
        self.one, self.other = object(), object()

    def test_interested(self):
        """Those who give the image and those who watch the path are told, each once."""
        self.watches.publish(self.one, A)
        self.watches.accept(self.one, A)
        self.watches.watch(self.one, V1)
        self.watches.watch(self.other, V1)
        self.assertCountEqual(self.watches.interested(V1, A), [self.one, self.other])
        self.assertEqual(self.watches.interested(V2, A), [self.one])
        self.assertEqual(self.watches.interested(V2, B), [])
        self.assertEqual(self.watches.sources(A), [self.one])
        self.assertTrue(self.watches.watched(V1))
        self.assertEqual(list(self.watches.paths()), [V1])

    @shows("S3")
    def test_word_of_a_stranger(self):
        """Anybody could say that he has an image, and the node would ask him, and wait, instead of the one who uploads it."""
        self.watches.publish(self.other, A)
        self.watches.accept(self.other, B)
        self.assertEqual((self.watches.sources(A), self.watches.interested(V1, A)), ([], []))
        self.watches.publish(self.one, A)
        self.assertTrue(self.watches.accept(self.one, A))
        self.assertEqual(self.watches.sources(A), [self.one])
        self.watches.publish(self.other, B)
        self.assertEqual(self.watches.sources(B), [self.other], "the order of the two does not matter")

    @shows("I6")
    def test_lost(self):
        """A closed connection is forgotten everywhere."""
        for link in (self.one, self.other):
            self.watches.publish(link, A)
            self.watches.accept(link, A)
            self.watches.watch(link, V1)
        self.watches.lost(self.one)
        self.assertEqual(self.watches.interested(V1, A), [self.other])
        self.watches.lost(self.other)
        self.watches.lost(self.other)
        self.assertEqual((self.watches.sources(A), list(self.watches.paths())), ([], []))
        self.assertEqual((self.watches._images, self.watches._paths, self.watches._of_link), ({}, {}, {}))

    @shows("A26", "I6")
    def test_limits(self):
        """One connection cannot fill the memory; repeating what it said is free."""
        for number in range(MAX_PER_LINK):
            self.assertTrue(self.watches.publish(self.one, ImageId(bytes([number]) * 32)))
            self.assertTrue(self.watches.watch(self.one, VPath.parse(f"/app/v{number}")))
        self.assertFalse(self.watches.publish(self.one, ImageId(b"x" * 32)))
        self.assertFalse(self.watches.watch(self.one, VPath.parse("/app/more")))
        self.assertTrue(self.watches.publish(self.one, ImageId(bytes([0]) * 32)))
        self.assertTrue(self.watches.watch(self.one, VPath.parse("/app/v0")))
        self.assertTrue(self.watches.publish(self.other, ImageId(b"x" * 32)))
        for number in range(2 * MAX_PER_LINK):
            self.watches.accept(self.one, ImageId(bytes([number]) * 32))
        self.assertEqual(len(self.watches._of_link[self.one].accepted), MAX_PER_LINK)
