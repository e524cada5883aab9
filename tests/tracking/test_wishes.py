"""Who may take an upload back."""

from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.ids import ImageId
from ciruela.model.vpath import VPath
from ciruela.tracking.subscriptions import MOST_PER_LINK, Wishes

A, B = (ImageId(bytes([number]) * 32) for number in (1, 2))
V1, V2 = VPath.parse("/app/v1"), VPath.parse("/app/v2")


class WishesTests(SynchronousTestCase):
    """Only who began an upload and is alone with it."""

    def setUp(self):
        self.wishes = Wishes()
        self.one, self.two = object(), object()

    def test_sole(self):
        """Anybody could end what another client wants."""
        self.wishes.accepted(self.one, V1, A, began=True)
        self.assertTrue(self.wishes.sole(self.one, V1, A))
        for link, vpath, image in ((self.two, V1, A), (self.one, V2, A), (self.one, V1, B)):
            self.assertFalse(self.wishes.sole(link, vpath, image))
        self.wishes.accepted(self.two, V1, A, began=False)
        self.assertFalse(self.wishes.sole(self.one, V1, A))
        self.assertFalse(self.wishes.sole(self.two, V1, A))
        self.wishes.lost(self.two)
        self.assertTrue(self.wishes.sole(self.one, V1, A))
        self.wishes.withdrawn(self.one, V1, A)
        self.assertFalse(self.wishes.sole(self.one, V1, A))

    def test_nothing_stays(self):
        """Each connection would leave something behind for ever."""
        for number in range(2 * MOST_PER_LINK):
            self.wishes.accepted(self.one, VPath.parse(f"/app/v{number}"), A, began=True)
        self.assertFalse(self.wishes.sole(self.one, VPath.parse("/app/v0"), A))
        self.assertEqual(len(self.wishes._began), MOST_PER_LINK)
        self.wishes.lost(self.one)
        self.wishes.lost(self.two)
        self.wishes.withdrawn(self.two, V1, A)
        self.assertEqual((self.wishes._began, self.wishes._askers, self.wishes._of_link), ({}, {}, {}))
