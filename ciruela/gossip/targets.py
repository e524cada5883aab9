"""To whom: a few at random, so that every fact reaches everybody in a number of steps that grows with the logarithm of the cluster."""

from __future__ import annotations

import heapq
import random
from collections.abc import Collection

from ciruela.seams import Address

FAN_OUT = 4
"""Nodes that hear from this one in each beat, and of each news: with 20 % loss still three."""

PROBES = 2
"""Silent addresses that each beat tries besides, in turn."""


def choose(rng: random.Random, preferred: Collection[Address], others: Collection[Address], count: int = FAN_OUT) -> list[Address]:
    """At most ``count`` different addresses at random; ``others`` are taken only when ``preferred`` are too few."""
    first = list(dict.fromkeys(preferred))
    chosen = rng.sample(first, min(count, len(first)))
    if len(chosen) < count:
        rest = [address for address in dict.fromkeys(others) if address not in chosen]
        chosen += rng.sample(rest, min(count - len(chosen), len(rest)))
    return chosen


class Probes:
    """Takes turns among silent addresses, in an order that differs from node to node."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._turn = 1.0
        self._last: dict[Address, float] = {}

    def choose(self, silent: Collection[Address], count: int) -> list[Address]:
        """The ``count`` silent addresses whose last turn is longest ago."""
        self._last = {address: self._last[address] if address in self._last else self._rng.random() for address in silent}
        chosen = heapq.nsmallest(count, silent, key=self._last.__getitem__)
        for address in chosen:
            self._turn += 1
            self._last[address] = self._turn
        return chosen


def beat_targets(rng: random.Random, probes: Probes, known: Collection[Address], silent: Collection[Address]) -> list[Address]:
    """Who hears from this node in one beat: known peers, then silent addresses in their place where peers are too few, and probes."""
    chosen = choose(rng, known, ())
    rest = [address for address in silent if address not in chosen]
    return chosen + probes.choose(rest, FAN_OUT - len(chosen) + PROBES)
