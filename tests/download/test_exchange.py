"""Who takes which piece from whom, among nodes that fetch the same image."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download.fetch_blocks import near, weights
from ciruela.model.bitfield import MOST_PIECES, SLICES

MACHINES = [random.Random(number).randbytes(16) for number in range(40)]


def relays(count: int, machines: list[bytes], served: frozenset[bytes]) -> dict[bytes, int]:
    """For each node the pieces that it relays, as it knows that itself: what it takes from all others alike."""
    found = {}
    for me in machines:
        given = near(count, me, tuple(one for one in machines if one != me), served)
        mine = (1 << count) - 1
        for mask in given.values():
            mine &= mask
        found[me] = mine
    return found


def loads(count: int, machines: list[bytes], served: frozenset[bytes]) -> dict[bytes, float]:
    """How many pieces each node sends, as parts of an image, when a client gives each piece to one of the ``served`` nodes in turn."""
    sends = dict.fromkeys(machines, 0)
    found = relays(count, machines, served)
    entries = sorted(served)
    for piece in range(count):
        origin = entries[piece % len(entries)]
        (relay,) = (machine for machine, mask in found.items() if mask >> piece & 1)
        sends[origin] += relay != origin
        sends[relay] += len(machines) - (1 if relay == origin else 2)
    return {machine: pieces / count for machine, pieces in sends.items()}


class RelayTests(SynchronousTestCase):
    """All nodes know the same others."""

    @given(st.sets(st.sampled_from(MACHINES), min_size=3), st.integers(0, 4), st.integers(1, 8), st.data())
    @settings(derandomize=True, deadline=None, database=None, max_examples=40)
    def test_one_relay(self, chosen: set[bytes], clients: int, cuts: int, data: st.DataObject) -> None:
        """A piece would come to nobody, from several, or in a circle."""
        machines, count = sorted(chosen), SLICES * cuts
        served = frozenset(data.draw(st.permutations(machines))[:clients])
        found = relays(count, machines, served)
        together = 0
        for mask in found.values():
            self.assertEqual(together & mask, 0)
            together |= mask
        self.assertEqual(together, (1 << count) - 1)
        for me in machines:
            others = data.draw(st.permutations([one for one in machines if one != me]))
            given_to_me = near(count, me, tuple(others), served)
            self.assertEqual(given_to_me, {other: found[other] | found[me] for other in others})

    def test_two(self) -> None:
        """Of two nodes each takes what it lacks from the other."""
        one, other = MACHINES[:2]
        count = SLICES
        for served in (frozenset[bytes](), frozenset({one}), frozenset({one, other})):
            self.assertEqual(near(count, other, (one,), served), {one: (1 << count) - 1})

    def test_alone(self) -> None:
        """A node without peers has none to take from."""
        self.assertEqual(near(SLICES, MACHINES[0], (), frozenset({MACHINES[0]})), {})

    def test_even_in_every_stretch(self) -> None:
        """What comes from the client one after another would all go through one node."""
        machines = MACHINES[:8]
        found = relays(MOST_PIECES, machines, frozenset(machines[:3]))
        for begin in range(0, MOST_PIECES - 64, 50):
            stretch = ((1 << 64) - 1) << begin
            for machine in machines[3:]:
                self.assertIn((found[machine] & stretch).bit_count(), range(7, 12))

    def test_balance(self) -> None:
        """One node would send more than all others, and all would wait for it."""
        cases = ((3, 3, 2048, 0.02), (8, 3, 2048, 0.02), (16, 3, 2048, 0.03), (16, 3, 256, 0.12), (40, 3, 2048, 0.12))
        for nodes, clients, count, slack in cases:
            machines = MACHINES[:nodes]
            found = loads(count, machines, frozenset(machines[:clients]))
            equal = (nodes - 1) / nodes
            for machine, load in found.items():
                self.assertLess(abs(load - equal), slack, (nodes, machines.index(machine), load))

    @given(st.sets(st.sampled_from(MACHINES[:12]), min_size=3), st.data())
    @settings(derandomize=True, deadline=None, database=None, max_examples=40)
    def test_any_subset(self, chosen: set[bytes], data: st.DataObject) -> None:
        """Other machine ids, or another number of nodes that a client gives to, would make one node send far more than its part."""
        machines = sorted(chosen)
        served = frozenset(data.draw(st.sets(st.sampled_from(machines), min_size=1)))
        found = loads(1024, machines, served)
        least = max((len(machines) - 1) / len(machines), 1 / len(served))
        self.assertLess(max(found.values()), least + 0.06)

    @given(st.integers(0, 40), st.integers(0, 40))
    @settings(derandomize=True, deadline=None, database=None, max_examples=100)
    def test_weights(self, served: int, others: int) -> None:
        """Pieces would have no relay, or a node would be one for less than none."""
        if served + others:
            share, other = weights(served, others)
            self.assertAlmostEqual(share * served + other * others, 1.0)
            self.assertGreaterEqual(min(share, other), -1e-9)
