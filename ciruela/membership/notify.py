"""Completions that somebody waits for: said to each watcher until it acknowledges, or its watch ends.

To whom: a few at random, so that every fact reaches everybody in a number of steps that grows with the logarithm of the cluster.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Collection
from dataclasses import replace

from ciruela.interfaces import Address
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath
from ciruela.runtime import BoundedMap

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


class ProbeRotation:
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


def beat_targets(rng: random.Random, probes: ProbeRotation, known: Collection[Address], silent: Collection[Address]) -> list[Address]:
    """Chooses who hears from this node in one beat: known peers, then silent addresses in their place if peers are too few, and probes."""
    chosen = choose(rng, known, ())
    rest = [address for address in silent if address not in chosen]
    return chosen + probes.choose(rest, FAN_OUT - len(chosen) + PROBES)


FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0
"""A completion is repeated after 1, 2, 4, 8, 16, then each 30 seconds."""

MOST_TELLINGS = 16384
"""Watchers and paths that are remembered; beyond it the oldest is forgotten, and told only by ordinary gossip."""

DATAGRAMS = 3
"""After so many datagrams without an answer a completion goes over a connection, too."""

ANSWER_S = 5.0
"""A node that fetches what is complete here is told so at most this often."""


@dataclass(frozen=True, slots=True)
class PendingNotice:
    """One completion for one watcher. ``acked``: heard; it stays so that a renewed watch is not told again."""

    image: ImageId
    next_s: float
    delay_s: float
    acked: bool = False
    tries: int = 0


class ReliableNotifier:
    """Retransmitter of notices that machines have to acknowledge."""

    def __init__(self, limit: int = MOST_TELLINGS) -> None:
        self._tellings: BoundedMap[tuple[VPath, MachineId], PendingNotice] = BoundedMap(limit)

    def __len__(self) -> int:
        return len(self._tellings)

    def begin(self, vpath: VPath, machine: MachineId, image: ImageId, now_s: float) -> bool:
        """``machine`` waits for ``vpath``, where ``image`` is complete. True when it has not been told of that yet."""
        key = (vpath, machine)
        known = self._tellings.get(key)
        if known is not None and known.image == image:
            return False
        self._tellings.put(key, PendingNotice(image, now_s, FIRST_DELAY_S))
        return True

    def acked(self, vpath: VPath, machine: MachineId, image: ImageId) -> None:
        """``machine`` knows; an acknowledgment of another image says nothing."""
        known = self._tellings.get((vpath, machine))
        if known is not None and known.image == image:
            self._tellings[vpath, machine] = replace(known, acked=True)

    def open(self, machine: MachineId) -> list[tuple[VPath, ImageId]]:
        """Lists the notices that ``machine`` has not acknowledged."""
        return [(key[0], telling.image) for key, telling in self._tellings.items() if key[1] == machine and not telling.acked]

    def started_anew(self, machine: MachineId) -> None:
        """``machine`` restarted: what it acknowledged before, its new clients have not heard."""
        for key in [key for key in self._tellings if key[1] == machine]:
            del self._tellings[key]

    def due(self, now_s: float, waits: Callable[[VPath, MachineId], bool]) -> list[tuple[VPath, MachineId]]:
        """Lists the notices to send now. Forgets those for which ``waits`` says that the watch is over."""
        for key in [key for key in self._tellings if not waits(*key)]:
            del self._tellings[key]
        return [key for key, telling in self._tellings.items() if not telling.acked and telling.next_s <= now_s]

    def told(self, vpath: VPath, machine: MachineId, now_s: float) -> bool:
        """It was said at ``now_s``; the next time comes after twice the delay. True when it was said by :data:`DATAGRAMS` in vain."""
        known = self._tellings[vpath, machine]
        delay_s = min(2 * known.delay_s, LONGEST_DELAY_S)
        self._tellings[vpath, machine] = replace(known, next_s=now_s + known.delay_s, delay_s=delay_s, tries=known.tries + 1)
        return known.tries >= DATAGRAMS


class HookRetransmitter:
    """Retransmitter of the ends of hooks at a path: a few times, for nobody acknowledges that, and again when there is news."""

    def __init__(self, limit: int = MOST_TELLINGS) -> None:
        self._next: BoundedMap[tuple[VPath, MachineId], tuple[float, float]] = BoundedMap(limit)

    def begin(self, vpath: VPath, machine: MachineId, now_s: float, *, news: bool) -> bool:
        """``machine`` waits for ``vpath``, where hooks have ended. True when it is to be told now."""
        key = (vpath, machine)
        if not news and key in self._next:
            return False
        self._next.put(key, (now_s, FIRST_DELAY_S))
        return True

    def due(self, now_s: float, waits: Callable[[VPath, MachineId], bool]) -> list[tuple[VPath, MachineId]]:
        """Lists whom to tell now; the next time comes after twice the delay, until that is too long. Forgets watches that are over."""
        for key in [key for key in self._next if not waits(*key)]:
            del self._next[key]
        found = [key for key, (next_s, delay_s) in self._next.items() if next_s <= now_s and delay_s <= LONGEST_DELAY_S]
        for key in found:
            delay_s = self._next[key][1]
            self._next[key] = (now_s + delay_s, 2 * delay_s)
        return found


class AnswerCache:
    """Memory of the downloading nodes that were told lately that an image is complete here."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._said: dict[tuple[MachineId, VPath, ImageId], float] = {}

    def due(self, machine: MachineId, vpath: VPath, image: ImageId, now_s: float) -> bool:
        """Tells whether to answer ``machine`` now, and notes it as done. False also when too much was answered lately."""
        key = (machine, vpath, image)
        if key in self._said or len(self._said) >= self._limit:  # guard: A34 F25, without 2
            return False
        self._said[key] = now_s
        return True

    def expire(self, now_s: float) -> None:
        """Forget answers older than :data:`ANSWER_S`."""
        while self._said:
            key = next(iter(self._said))
            if now_s - self._said[key] < ANSWER_S:
                break
            del self._said[key]
