"""Sets of pieces, and the choice of neighbors: what all nodes have to compute alike."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from ciruela.model import bitfield as masks
from ciruela.swarm import exchange, neighbors


class MaskTests(SynchronousTestCase):
    """Pieces as bits."""

    def test_lowest(self) -> None:
        """A client gives in the order of the index."""
        self.assertEqual(masks.lowest(0b101101, 3), 0b1101)
        self.assertEqual((masks.lowest(0b100, 5), masks.lowest(0, 5), masks.lowest(7, 0)), (0b100, 0, 0))
        self.assertEqual(list(masks.bits(0b100101)), [0, 2, 5])

    def test_chosen(self) -> None:
        """Random pieces of those asked for, never others, and each of them at some time."""
        rng = random.Random(3)
        found = [exchange.chosen(0b10110, 2, 5, rng) for _ in range(200)]
        self.assertTrue(all(one.bit_count() == 2 and one & ~0b10110 == 0 for one in found))
        self.assertEqual(set(found), {0b110, 0b10010, 0b10100})
        self.assertEqual(exchange.chosen(0b11, 5, 5, rng), 0b11)


class NeighborTests(SynchronousTestCase):
    """Who asks whom."""

    def setUp(self) -> None:
        rng = random.Random(1)
        self.machines = [rng.randbytes(16) for _ in range(1000)]

    def test_alike(self) -> None:
        """Whoever is near is near both ways, or nodes would ask those that have others in mind; each image has its own order."""
        one, other, *_ = self.machines
        self.assertEqual(neighbors.distance(b"i", one, other), neighbors.distance(b"i", other, one))
        self.assertNotEqual(neighbors.distance(b"i", one, other), neighbors.distance(b"j", one, other))
        order = neighbors.in_order(b"i", one, self.machines[:50])
        self.assertEqual(sorted(order), sorted(self.machines[1:50]))

    def test_few(self) -> None:
        """A small cluster has everybody as neighbor, a large one never more than MOST."""
        self.assertEqual([neighbors.wanted(count) for count in (0, 5, 12, 13, 1000)], [0, 5, 12, 8, 8])

    def test_connected(self) -> None:
        """1,000 nodes that each miss 5 % of the others are one net: or a part of the cluster would wait for ever."""
        rng = random.Random(7)
        near: dict[bytes, set[bytes]] = {machine: set() for machine in self.machines}
        for machine in self.machines:
            known = [other for other in self.machines if rng.random() > 0.05]
            for other in neighbors.in_order(b"i", machine, known):
                if len(near[machine]) >= neighbors.ASKED:
                    break
                if len(near[other]) < neighbors.MOST:
                    near[machine].add(other)
                    near[other].add(machine)
        self.assertLessEqual(max(map(len, near.values())), neighbors.MOST)
        reached, edge = {self.machines[0]}, [self.machines[0]]
        while edge:
            for other in near[edge.pop()] - reached:
                reached.add(other)
                edge.append(other)
        self.assertEqual(len(reached), 1000)
