"""Which addresses of a cluster are tried, and when."""

from __future__ import annotations

import random

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.contacts import MAX_CANDIDATES, Contacts, reachable_from
from ciruela.interfaces import Address
from ciruela.model.errors import LinkLost
from tests.proof import shows


def address(text: str) -> Address:
    return Address(text, 24783)


class ContactsCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.known: dict[str, list[Address]] = {"entry": [address("10.0.0.1")]}
        self.asked: list[str] = []
        self.problems: list[str] = []
        self.contacts = Contacts(["entry"], self.clock, random.Random(1), self.resolve, lambda: None, self.problems.append)

    def resolve(self, name: str) -> Deferred[list[Address]]:
        self.asked.append(name)
        if name not in self.known:
            return fail(LinkLost("nobody knows it"))
        return succeed(self.known[name])

    def picked(self, slots: int = 9) -> list[str]:
        return sorted(str(one.host) for one in self.contacts.pick(slots, lambda _: False))

    def test_candidates_first(self) -> None:
        """Nodes that take the directory are tried before nodes of which nothing is known."""
        self.known["entry"] = [address(f"10.0.0.{number}") for number in range(1, 10)]
        self.known["n20"] = [address("10.0.0.20")]
        self.contacts.look_up(3)
        self.contacts.heard(["n20", "n20", "entry"])
        self.contacts.look_up(3)
        self.assertEqual(self.picked(1), ["10.0.0.20"])
        self.assertEqual(len(self.picked(3)), 3)
        self.assertEqual(self.asked, ["entry", "n20"])

    def test_few_at_a_time(self) -> None:
        """No more names are resolved than connections are missing."""
        self.contacts.look_up(3)
        self.contacts.heard([f"n{number}" for number in range(100)])
        self.contacts.look_up(2)
        self.assertEqual(len(self.asked), 3)

    @shows("A60")
    def test_failures_cost_time(self) -> None:
        """A name that fails, or has no address, is asked again after a second, then after two."""
        for broken in (lambda: self.known.pop("entry"), lambda: self.known.__setitem__("entry", [])):
            self.setUp()
            broken()
            self.contacts.look_up(1)
            self.contacts.look_up(1)
            self.assertEqual(len(self.asked), 1)
            self.clock.advance(1)
            self.contacts.look_up(1)
            self.assertEqual(len(self.asked), 2)
            self.clock.advance(1)
            self.contacts.look_up(1)
            self.assertEqual(len(self.asked), 2)
            self.assertEqual(len(set(self.problems)), 1)

    @shows("A29", "F24", "F54", "I6")
    def test_too_many_names(self) -> None:
        """A server that names a hundred thousand hosts must not fill the memory of the client (A29)."""
        self.contacts.heard(f"n{number}" for number in range(MAX_CANDIDATES + 50))
        self.contacts.look_up(10 * MAX_CANDIDATES)
        self.assertEqual(len(self.asked), MAX_CANDIDATES + 1)

    @shows("A27", "A29")
    def test_names_of_no_host(self) -> None:
        """A server could steer the terminal with a name, or have an empty one looked up."""
        self.contacts.heard(["", "n\x1b[2J", "n\n20", "\u202en20", "entry"])
        self.contacts.look_up(9)
        self.assertEqual(self.asked, ["entry"])

    def test_exhausted(self) -> None:
        """Only when every name was tried, and every address refused or was not reached, there is nothing left."""
        first, second = address("10.0.0.1"), address("10.0.0.20")
        self.known["n20"] = [second]
        self.assertFalse(self.contacts.exhausted(lambda _: True))
        self.contacts.look_up(3)
        self.assertTrue(self.contacts.exhausted(lambda _: True))
        self.contacts.heard(["n20"])
        self.assertFalse(self.contacts.exhausted(lambda _: True))
        self.contacts.look_up(3)
        self.assertFalse(self.contacts.exhausted(lambda one: one == first))
        self.contacts.failed(second)
        self.assertTrue(self.contacts.exhausted(lambda one: one == first))
        self.contacts.connected(second)
        self.assertFalse(self.contacts.exhausted(lambda one: one == first))

    def test_pause(self) -> None:
        """An address that failed n times in a row is left alone for n seconds, whether it can be connected to or not."""
        self.contacts.look_up(3)
        for pause in (1, 2, 3):
            self.contacts.connected(address("10.0.0.1"))
            self.contacts.failed(address("10.0.0.1"))
            self.clock.advance(pause - 0.1)
            self.assertEqual(self.picked(), [])
            self.clock.advance(0.2)
            self.assertEqual(self.picked(), ["10.0.0.1"])
        self.contacts.succeeded(address("10.0.0.1"))
        self.contacts.failed(address("10.0.0.1"))
        self.clock.advance(1.1)
        self.assertEqual(self.picked(), ["10.0.0.1"])

    def test_labels(self) -> None:
        """An address is called by the name that led to it, unless that name has several."""
        self.known["many"] = [address("10.0.0.7"), address("10.0.0.8")]
        self.contacts = Contacts(["entry", "many"], self.clock, random.Random(1), self.resolve, lambda: None, self.problems.append)
        self.contacts.look_up(3)
        self.assertEqual(self.contacts.label(address("10.0.0.1")), "entry")
        self.assertEqual(self.contacts.label(address("10.0.0.7")), "10.0.0.7:24783")

    def test_stop(self) -> None:
        """After the end no name is resolved any more, and an answer that is late changes nothing."""
        waiting: Deferred[list[Address]] = Deferred()
        changed: list[int] = []
        contacts = Contacts(["x"], self.clock, random.Random(1), lambda _: waiting, lambda: changed.append(1), self.problems.append)
        contacts.look_up(1)
        contacts.stop()
        contacts.look_up(1)
        self.assertEqual((self.problems, changed), ([], []))

    @shows("A29", "A37", "F24")
    def test_reachable(self) -> None:
        """Which addresses a server may send the client to."""
        public, local = [address("10.0.0.1")], [address("127.0.0.1")]
        for entries, host, good in (
            (public, "10.0.0.2", True),
            (public, "2001:db8::1", True),
            (public, "127.0.0.2", False),
            (public, "::1", False),
            (local, "127.0.0.2", True),
            (local, "169.254.169.254", False),
            (local, "fe80::1%eth0", False),
            (local, "0.0.0.0", False),
            (local, "224.0.0.1", False),
        ):
            self.assertEqual(reachable_from(entries, address(host)), good, host)
