"""Whole clusters that only gossip, in memory, on one clock and one seed: everybody learns everything, whatever is lost."""

from __future__ import annotations

from ciruela.interfaces import Address
from ciruela.membership.packets import DATAGRAM_BYTES, DownloadFact
from ciruela.model.bitfield import FULL
from ciruela.model.versions import Version
from ciruela.model.vpath import VPath
from tests.measure import UnmeasuredTestCase
from tests.membership.hub import START_MS, World, address_of, image_of
from tests.proof import shows

PATH = VPath.parse("/app/web/v1")
FIRST = Version(START_MS, image_of(1))


class ConvergenceCase(UnmeasuredTestCase):
    """What all runs share."""

    def world(self, size: int, **options: float) -> World:
        """A cluster that is stopped, and checked for its manners, when the test ends."""
        world = World(size, **options)  # type: ignore[arg-type]
        self.addCleanup(self._check, world)
        world.start()
        return world

    def _check(self, world: World) -> None:
        world.close()
        self.assertLessEqual(world.hub.longest, DATAGRAM_BYTES)
        self.assertEqual([address for address in world.hub.unknown if address not in world.names], [])
        self.assertEqual({node.gossip.counts.refused["failed"] + node.gossip.counts.refused["malformed"] for node in world.nodes}, {0})

    def spread(self, world: World, members_s: float, spread_s: float) -> None:
        """One node, with a client that waits, gets an image: everybody gets it, and the client hears of everybody."""
        world.run_until(world.all_members, members_s)
        first = world.nodes[0]
        first.wait(PATH)
        first.commit(PATH, FIRST)
        world.run_until(lambda: all(PATH in node.images for node in world.nodes), spread_s)
        world.run_until(lambda: all(first.machine in node.gossip.cluster.watchers(PATH) for node in world.nodes[1:]), spread_s)
        world.run_until(lambda: len(first.arrivals) == len(world.nodes) - 1, spread_s)
        self.assertEqual({key[:2] for key in first.arrivals}, {(PATH, FIRST.image)})
        self.assertEqual(set(first.arrivals.values()), {1})


class SpreadTests(ConvergenceCase):
    """From one node to all, with one datagram in five lost."""

    def test_3(self) -> None:
        """The smallest cluster worth having."""
        self.spread(self.world(3, loss=0.2), 10, 10)

    def test_20(self) -> None:
        """A usual one."""
        self.spread(self.world(20, loss=0.2, doubles=0.1), 15, 15)

    def test_100(self) -> None:
        """A big one: an append reaches everybody within 20 s (threats G5)."""
        self.spread(self.world(100, loss=0.2), 25, 20)

    def test_idle_traffic(self) -> None:
        """A quiet cluster stays far below 20 kB a second for each node (threats G2)."""
        world = self.world(20)
        world.run(20)
        count, sent = world.hub.count, world.hub.bytes
        world.run(10)
        self.assertLessEqual((world.hub.count - count) / 10 / 20, 6)
        self.assertLessEqual((world.hub.bytes - sent) / 10 / 20, 8000)

    def test_deterministic(self) -> None:
        """A failure in a simulated cluster can be looked at again only if each run is the same."""

        def digest(seed: int) -> str:
            world = World(8, seed=seed, loss=0.2, doubles=0.1)
            world.start()
            world.run(2)
            world.nodes[0].wait(PATH)
            world.nodes[0].commit(PATH, FIRST)
            world.run(3)
            world.close()
            return world.hub.log.hexdigest()

        self.assertEqual(digest(1), digest(1))
        self.assertNotEqual(digest(1), digest(2))


class TroubleTests(ConvergenceCase):
    """Partitions, restarts, late joiners."""

    @shows("I5", "A53")
    def test_partition_heals(self) -> None:
        """Both halves go on alone; once they meet, the newer version wins everywhere within 30 s (threats G5)."""
        world = self.world(10, loss=0.2)
        world.run_until(world.all_members, 20)
        left, right = world.nodes[:5], world.nodes[5:]
        world.hub.islands = {node.address: 1 for node in right}
        newer = Version(START_MS + 1, image_of(2))
        left[0].wait(PATH)
        left[0].commit(PATH, FIRST)
        right[0].commit(PATH, newer)
        world.run_until(lambda: all(PATH in node.images for node in world.nodes), 20)
        self.assertEqual({node.images[PATH] for node in left}, {FIRST})
        world.run(200)
        self.assertEqual(len(left[0].gossip.cluster.hosts("app")), 9)
        world.run(120)
        self.assertEqual(len(left[0].gossip.cluster.hosts("app")), 4)
        world.hub.islands = {}
        world.run_until(lambda: all(node.images[PATH] == newer for node in world.nodes), 30)
        world.run_until(world.all_members, 30)
        world.run_until(lambda: len({machine for _, image, machine in left[0].arrivals if image == newer.image}) == 9, 30)

    def test_watch_ends_everywhere(self) -> None:
        """A client that left is forgotten by all within 60 s, although all told each other of it."""
        world = self.world(10, loss=0.2)
        world.run_until(world.all_members, 20)
        first = world.nodes[0]
        first.wait(PATH)
        world.run_until(lambda: all(first.machine in node.gossip.cluster.watchers(PATH) for node in world.nodes[1:]), 15)
        world.run(90)
        self.assertTrue(all(first.machine in node.gossip.cluster.watchers(PATH) for node in world.nodes[1:]))
        first.waiting.clear()
        world.run(62)
        self.assertFalse(any(node.gossip.cluster.watchers(PATH) for node in world.nodes))

    def test_dead_member_is_forgotten_everywhere(self) -> None:
        """A node that is gone leaves the lists of all others for good, although they all told each other of it."""
        world = self.world(5)
        world.run_until(world.all_members, 10)
        dead = world.nodes[-1]
        dead.shut()
        world.run(305)
        for node in world.nodes[:-1]:
            self.assertEqual(len(node.gossip.cluster.hosts("app")), 3)
            self.assertIsNone(node.gossip.cluster.address_of(dead.machine))
        world.restart(dead)
        world.run_until(world.all_members, 10)

    @shows("A54", "I5")
    def test_late_joiner(self) -> None:
        """A node that comes later, or again, knows everybody and has everything soon."""
        world = self.world(20, loss=0.2)
        late = world.nodes[-1]
        late.shut()
        first = world.nodes[0]
        first.wait(PATH)
        first.commit(PATH, FIRST)
        world.run(30)
        self.assertNotIn(PATH, late.images)
        world.restart(late)
        world.run_until(lambda: PATH in late.images and world.all_members(), 20)
        world.run_until(lambda: (PATH, FIRST.image, late.machine) in first.arrivals, 20)

    def test_downloader_finds_sources(self) -> None:
        """Who fetches an image learns from gossip who has it and how far others are."""
        world = self.world(20, loss=0.2)
        world.run_until(world.all_members, 20)
        for node in world.nodes[:5]:
            node.images[PATH] = FIRST
        for number, node in enumerate(world.nodes[5:15]):
            node.copying.add(PATH.base)
            node.fetching = [DownloadFact(PATH, FIRST.image, 1 << number, False, False)]
            node.gossip.news_download(PATH)
        asker = world.nodes[14]

        def masks() -> dict[Address, int]:
            return {holder.address: holder.mask for holder in asker.gossip.cluster.holders(PATH, FIRST.image)}

        expected = {address_of(number): FULL for number in range(1, 6)} | {address_of(6 + number): 1 << number for number in range(9)}
        world.run_until(lambda: expected.items() <= masks().items(), 60)
