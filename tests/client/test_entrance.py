"""Connections to entry points, before anything is decided."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.contacts import RunContext
from ciruela.client.entrance import PATIENCE_S, Entrance
from ciruela.interfaces import Address
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.proto.messages import GetIndex, PublishImage
from tests.client.test_sync import IMAGE
from tests.proof import shows


class Link:
    """An open connection."""

    def __init__(self, door: Any, bulk: bool) -> None:
        self.door = door
        self.bulk = bulk
        self.closed = False

    def close(self) -> None:
        self.closed = True
        self.door.lost(self)


class Guest:
    """The counterpart of a run."""

    def __init__(self) -> None:
        self.heard: list[object] = []

    def requested(self, link: object, request: object) -> Deferred[Any]:
        self.heard.append(request)
        return succeed(None)

    def answered(self, link: object, request: object, given: bool) -> None:
        """Nothing follows."""

    def notified(self, link: object, notification: object) -> None:
        self.heard.append(notification)

    def lost(self, link: object) -> None:
        self.heard.append("lost")


class Entrances(SynchronousTestCase):
    """``there``: whether a host is of version 2, None for one that refuses connections, a Deferred for one that is silent."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.names: dict[str, Sequence[str]] = {}
        self.there: dict[str, Any] = {}
        self.links: list[Link] = []
        self.tried: list[str] = []

    def resolve(self, name: str) -> Deferred[list[Address]]:
        hosts = self.names.get(name, (name,))
        return succeed([Address(host, 1) for host in hosts]) if hosts else fail(LinkLost(f"nobody knows {name}"))

    def connect(self, address: Address, door: Any) -> Deferred[Any]:
        self.tried.append(address.host)
        found = self.there[address.host]
        if isinstance(found, Deferred):
            return found
        if found is None:
            return fail(LinkLost(f"connection refused by {address.host}"))
        self.links.append(Link(door, found))
        return succeed(self.links[-1])

    def entrance(self, *names: str) -> Entrance:
        return Entrance(names, RunContext(self.clock, random.Random(1), self.connect, self.resolve), 15.0)

    def reach(self, entrance: Entrance, **more: bool) -> Deferred[None]:
        return Deferred.fromCoroutine(entrance.reach(**more))

    def open(self, entrance: Entrance) -> set[str]:
        return {address.host for address in entrance.reached}

    @shows("K6.1")
    def test_silence(self) -> None:
        """A server that is stopped would hold up each command until its deadline."""
        self.there = {"a": Deferred(), "b": True}
        entrance = self.entrance("a", "b")
        running = self.reach(entrance)
        self.clock.advance(PATIENCE_S - 0.1)
        self.assertNoResult(running)
        self.clock.advance(0.2)
        self.successResultOf(running)
        self.assertEqual(self.open(entrance), {"b"})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nobody(self) -> None:
        """A server that is just being restarted would count as gone; one that is gone would be tried for ever."""
        self.there = {"a": None}
        entrance = self.entrance("a")
        running = self.reach(entrance)
        self.clock.pump([1.0] * 5)
        self.assertNoResult(running)
        self.there["a"] = True
        self.clock.advance(1.0)
        self.successResultOf(running)
        self.assertEqual(self.open(entrance), {"a"})
        self.there["a"] = None
        gone = self.entrance("a")
        running = self.reach(gone)
        self.clock.pump([1.0] * 15)
        self.successResultOf(running)
        self.assertEqual((self.open(gone), gone.why()), (set(), "connection refused by a"))
        once = self.reach(self.entrance("a"), once=True)
        self.successResultOf(once)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_many_addresses(self) -> None:
        """A name with a hundred addresses would mean a hundred connections, or one that is down would hide the others."""
        hosts = [f"h{number}" for number in range(10)]
        self.names = {"all": hosts}
        self.there = dict.fromkeys(hosts, True)
        entrance = self.entrance("all")
        self.successResultOf(self.reach(entrance))
        self.assertEqual(len(self.links), 3)
        self.there = {**dict.fromkeys(hosts), "h7": True}
        self.tried.clear()
        entrance = self.entrance("all")
        running = self.reach(entrance)
        self.clock.pump([1.0] * 5)
        self.successResultOf(running)
        self.assertEqual(self.open(entrance), {"h7"})
        self.assertEqual(len(self.tried), len(set(self.tried)))

    def test_named_ones(self) -> None:
        """One of the servers that are named would not be asked."""
        self.there = dict.fromkeys("abcdef", True)
        entrance = self.entrance(*"abcdef")
        self.successResultOf(self.reach(entrance))
        self.assertEqual(self.open(entrance), set("abcdef"))

    def test_handed_over(self) -> None:
        """The run would connect once more, or not hear what is said on the connection that it took."""
        self.there = {"a": True, "b": True}
        entrance = self.entrance("a", "b")
        self.successResultOf(self.reach(entrance))
        first, second = self.links
        self.failureResultOf(first.door.requested(first, GetIndex(IMAGE, None)), RemoteError)
        first.door.notified(first, PublishImage(IMAGE))
        guest = Guest()
        self.assertIs(self.successResultOf(entrance.connect(Address("a", 1), guest)), first)
        first.door.requested(first, GetIndex(IMAGE, None))
        first.door.notified(first, PublishImage(IMAGE))
        self.assertEqual(guest.heard, [GetIndex(IMAGE, None), PublishImage(IMAGE)])
        self.assertIsNot(self.successResultOf(entrance.connect(Address("a", 1), guest)), first)
        entrance.close()
        self.assertEqual((first.closed, second.closed), (False, True))
        first.close()
        self.assertEqual(guest.heard[-1], "lost")

    def test_lost_meanwhile(self) -> None:
        """A server that closed the connection while the directory was indexed would count as one that cannot be asked."""
        self.there = {"a": True}
        entrance = self.entrance("a")
        self.successResultOf(self.reach(entrance))
        self.links[0].close()
        link = self.successResultOf(Deferred.fromCoroutine(entrance.open(Address("a", 1))))
        self.assertIs(link, self.links[1])

    def test_one_connection(self) -> None:
        """Eight questions to one server would make eight connections, and one that is just being made would outlive the command."""
        waiting: Deferred[Any] = Deferred()
        self.there = {"a": waiting}
        entrance = self.entrance("a")
        opening = [Deferred.fromCoroutine(entrance.open(Address("a", 1))) for _ in range(2)]
        link = Link(Guest(), True)
        waiting.callback(link)
        self.assertEqual(([self.successResultOf(one) for one in opening], self.tried), ([link, link], ["a"]))
        self.there["b"] = late = Deferred()
        opening = [Deferred.fromCoroutine(entrance.open(Address("b", 1)))]
        entrance.close()
        link = Link(Guest(), True)
        late.callback(link)
        self.failureResultOf(opening[0], LinkLost)
        self.assertTrue(link.closed)

    def test_interrupted(self) -> None:
        """Ctrl-C would be taken for a server that is silent."""
        self.there = {"a": Deferred(), "b": None}
        for names in (("a",), ("b",)):
            running = self.reach(self.entrance(*names))
            running.cancel()
            self.failureResultOf(running, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
