"""The trees along which slices spread."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download.exchange import neighbors
from ciruela.model.mask import SLICES

MACHINES = [bytes([number]) * 16 for number in range(40)]


def edges(number: int, machines: list[bytes], served: frozenset[bytes]) -> set[tuple[bytes, bytes]]:
    """Pairs (who takes, from whom)."""
    return {
        (me, other) for me in machines for other in neighbors(number, me, tuple(one for one in machines if one != me), served)
    }  # fmt: skip


class TreeTests(SynchronousTestCase):
    """All nodes know the same others."""

    @given(st.integers(0, SLICES - 1), st.integers(1, 40), st.integers(0, 4))
    @settings(derandomize=True, deadline=None, database=None, max_examples=100)
    def test_tree(self, number: int, count: int, clients: int) -> None:
        """A slice would not come to everybody, or one node would have to give it to many."""
        machines = MACHINES[:count]
        found = edges(number, machines, frozenset(machines[:clients]))
        self.assertEqual(found, {(other, me) for me, other in found})
        self.assertEqual(len(found), 2 * (count - 1))
        reached, fresh = {machines[0]}, {machines[0]}
        while fresh:
            fresh = {me for me, other in found if other in fresh} - reached
            reached |= fresh
        self.assertEqual(reached, set(machines))
        self.assertLessEqual(max([sum(1 for me, _ in found if me == machine) for machine in machines]), 3)

    def test_balance(self) -> None:
        """Those that a client gives to would have to pass on far more than the others."""
        for count in (3, 8, 16):
            machines, clients = MACHINES[:count], MACHINES[:3]
            gives = dict.fromkeys(machines, 0.0)
            for number in range(SLICES):
                root = clients[number % 3]
                degree = dict.fromkeys(machines, 0)
                for me, _ in edges(number, machines, frozenset(clients)):
                    degree[me] += 1
                for machine in machines:
                    gives[machine] += degree[machine] - (machine != root)
            self.assertLess(max(gives.values()), 1.25 * SLICES)
