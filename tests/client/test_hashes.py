"""Which hash a client indexes with."""

from __future__ import annotations

import random

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.hashes import EVERYBODYS, OURS, PATIENCE_S, hash_for
from ciruela.client.sync import World
from ciruela.model.errors import LinkLost
from ciruela.seams import Address


class Link:
    """An open connection."""

    def __init__(self, bulk: bool) -> None:
        self.bulk = bulk
        self.closed = False

    def close(self) -> None:
        self.closed = True


class HashTests(SynchronousTestCase):
    """What is at the entry points decides. ``there``: what is there by name, None for what refuses connections."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.links: list[Link] = []
        self.there: dict[str, bool | None] = {}
        self.silent = False

    def resolve(self, name: str) -> Deferred[list[Address]]:
        return succeed([Address(name, 1)]) if name in self.there else fail(LinkLost(f"{name} has no addresses"))

    def connect(self, address: Address, _counterpart: object) -> Deferred[Link]:
        if self.silent:
            return Deferred()
        bulk = self.there[address.host]
        if bulk is None:
            return fail(LinkLost("refused"))
        self.links.append(Link(bulk))
        return succeed(self.links[-1])

    def chosen(self, *clusters: list[str]) -> Deferred[object]:
        world = World(self.clock, random.Random(1), self.connect, self.resolve)  # type: ignore[arg-type]
        return Deferred.fromCoroutine(hash_for(clusters, world))

    def test_ours(self) -> None:
        """A cluster of ours would be given the slow hash."""
        self.there = {"down": None, "ours": True, "other": True}
        self.assertIs(self.successResultOf(self.chosen(["unknown", "down", "ours"], ["other"])), OURS)
        self.assertTrue(all(link.closed for link in self.links))
        self.assertEqual(len(self.links), 2)

    def test_reference(self) -> None:
        """A server of the reference would be given a hash that it does not know."""
        self.there = {"ours": True, "theirs": False}
        self.assertIs(self.successResultOf(self.chosen(["ours"], ["theirs"])), EVERYBODYS)
        self.assertTrue(all(link.closed for link in self.links))

    def test_nobody(self) -> None:
        """A cluster that is down for a moment may be the reference's."""
        self.there = {"ours": True, "down": None}
        self.assertIs(self.successResultOf(self.chosen(["ours"], ["down", "unknown"])), EVERYBODYS)

    def test_silence(self) -> None:
        """A server that does not answer would keep the command waiting."""
        self.there = {"ours": True}
        self.silent = True
        chosen = self.chosen(["ours"])
        self.assertNoResult(chosen)
        self.clock.advance(PATIENCE_S)
        self.assertIs(self.successResultOf(chosen), EVERYBODYS)
        self.assertEqual(self.clock.getDelayedCalls(), [])
