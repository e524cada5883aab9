"""Whose turn it is to give which piece to this node: the relays of :mod:`ciruela.download.exchange`, and what is late there."""

from __future__ import annotations

import functools
import math
import operator
from collections import deque
from collections.abc import Sequence

from ciruela.download import exchange
from ciruela.download.sources import Source

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
            self._near = exchange.near(self._count, self._me, *known)
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
