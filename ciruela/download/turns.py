"""Whose turn it is to give which piece to this node: the relays of :mod:`ciruela.download.turns`, and what is late there.

Who takes which piece from whom, among nodes that fetch the same image at the same time. A pure function over values.

A piece that has just arrived at one node is wanted by all others at once. If all of them took it from there, that node would send
everything and the others nothing. So each piece has a relay, which every node computes alike: the relay takes the piece from whoever has it
first, all others take it from the relay. There are as many pieces for each relay as make all nodes send the same.
"""

from __future__ import annotations

import functools
import math
import operator
from bisect import bisect
from collections import deque
from collections.abc import Sequence
from itertools import accumulate

from ciruela.download.sources import Source

STEP = 0.6180339887498949
"""The golden section: its multiples, without what stands before the point, fall evenly into every interval."""


def weights(served: int, others: int) -> tuple[float, float]:
    """For which share of the pieces each of ``served`` nodes, to which a client gives, is the relay, and each of the ``others``.

    With N nodes of which k are served, a relay sends a piece to all but itself and the one it has it from: N - 2, or N - 1 if that is the
    client. Who is served passes 1/k of all pieces on to their relays besides. The shares are those with which everybody sends as much.
    """
    nodes = served + others
    if not served or not others or nodes < 3:
        return 1 / nodes, 1 / nodes
    each = (nodes - 1) / nodes
    other = min(each / (nodes - 2), 1 / others)
    return (1 - others * other) / served, other


def near(count: int, me: bytes, others: tuple[bytes, ...], served: frozenset[bytes]) -> dict[bytes, int]:
    """For each of the machines ``others`` the mask of those of ``count`` pieces that come from there to ``me``.

    ``others`` are all that have, or fetch, the image; ``served`` are those that a client gives to.
    """
    machines = sorted((*others, me))
    clients = sum(1 for machine in machines if machine in served)
    share, other = weights(clients, len(machines) - clients)
    ends = list(accumulate(share if machine in served else other for machine in machines))
    found = [bytearray(count // 8) for _ in machines]
    for number in range(count):
        relay = min(bisect(ends, number * STEP % 1.0), len(machines) - 1)
        found[relay][number >> 3] |= 1 << (number & 7)
    masks = {machine: int.from_bytes(bits, "little") for machine, bits in zip(machines, found, strict=True)}
    mine = masks.pop(me)
    return {machine: mask | mine for machine, mask in masks.items()}


TURNS_S = 0.01
"""So often at most it is found out anew whose turn it is."""

OUT_OF_TURN_S = 3.0
"""A piece that some peer has for so long is taken from it, whoever else waits for it."""


class Turns:
    """The turns of one download of the node ``me``, of an image of ``count`` pieces."""

    def __init__(self, me: bytes, count: int) -> None:
        self._me = me
        self._count = count
        self._looked_s = -math.inf
        self._near: dict[bytes, int] = {}
        self._known: tuple[tuple[bytes, ...], frozenset[bytes]] | None = None
        self._seen = 0
        self._times: deque[tuple[float, int]] = deque()
        self._late = 0

    def look(self, sources: Sequence[Source], wanted: int, now_s: float) -> None:
        """Take note of what the ``sources`` have by now, of the pieces ``wanted``."""
        if now_s < self._looked_s + TURNS_S:
            return
        self._looked_s = now_s
        peers = {one.candidate.machine: one for one in sources if one.candidate.machine is not None}
        served = {machine for machine, one in peers.items() if one.candidate.served}
        if any(one.candidate.seed for one in sources):
            served.add(self._me)
        known = tuple(sorted(peers)), frozenset(served)
        if known != self._known:
            self._known = known
            self._near = near(self._count, self._me, *known)
        there = wanted & functools.reduce(operator.or_, (one.mask for one in peers.values()), 0)
        fresh = there & ~self._seen
        if fresh:
            self._seen |= fresh
            self._times.append((now_s, fresh))
        while self._times and now_s - self._times[0][0] >= OUT_OF_TURN_S:
            self._late |= self._times.popleft()[1]

    def near(self, machine: bytes) -> int:
        """The pieces that come from this peer when it is the first of those around this node to have them."""
        return self._near.get(machine, 0)

    def of(self, machine: bytes) -> int:
        """The pieces that this peer may be asked for."""
        return self._near.get(machine, 0) | self._late
