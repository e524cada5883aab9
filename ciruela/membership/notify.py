"""To whom news is said, and what is said again.

To a few at random, so that every fact reaches everybody in a number of steps that grows with the logarithm of the cluster. A changed base
dir hash is said again at once, for that is how nodes hear of an upload. Completions that somebody waits for are said to each watcher until
it acknowledges, or its watch ends.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import field, replace

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ciruela.interfaces import Address
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath
from ciruela.runtime import BoundedMap, later

FAN_OUT = 4
"""Nodes that hear from this one in each beat, and of each step of a download: with 20 % loss still three."""


def fan_out(nodes: int) -> int:
    """Nodes that hear of other news at once, of ``nodes`` that are known: ``(ln(nodes + 1) + 5) / 2``, and at least :data:`FAN_OUT`.

    A base dir hash is said when an upload begins here and when it is complete. A rumor that every node passes on k times misses a node
    with probability ``e**-k``: then one upload in 150 misses one at all, if no datagram is lost (``e**-5``).
    """
    return max(FAN_OUT, math.ceil((math.log(nodes + 1) + 5) / 2))


PROBES = 2
"""Silent addresses that each beat tries besides, in turn."""


def choose(rng: random.Random, preferred: Sequence[Address], others: Collection[Address], count: int = FAN_OUT) -> list[Address]:
    """At most ``count`` different addresses at random; ``others`` are taken only when ``preferred`` are too few."""
    chosen = list(dict.fromkeys(rng.sample(preferred, min(count, len(preferred)))))
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
    chosen = choose(rng, list(known), ())
    rest = [address for address in silent if address not in chosen]
    return chosen + probes.choose(rest, FAN_OUT - len(chosen) + PROBES)


REPEAT_S = 0.05
REPEATS = 2
REPEAT_FAN_OUT = 2
"""A changed base dir hash is said again after 50 and 100 ms, to two others each time: a lost datagram must not cost a beat."""

LEAST_WAIT_S = 0.001
MOST_REPEATED = 4096
"""Base dirs whose last change is remembered; beyond it the oldest is forgotten, and said again only by the beats."""


@dataclass(slots=True)
class _HashChange:
    """The ``hash`` of a base dir since it changed last. ``left``: how often it is said again. ``agreeing``: who said it meanwhile."""

    hash: bytes
    left: int = REPEATS
    agreeing: set[Address] = field(default_factory=set)


class HashRepeater:
    """Retransmitter of base dir hashes that have changed here. What is due at one time is said together.

    ``say`` gets base dirs of which the hash is to be said again, and for each the addresses from which it was heard.
    """

    def __init__(self, clock: IReactorTime, say: Callable[[Mapping[VPath, Set[Address]]], None]) -> None:
        self._clock = clock
        self._say = say
        self._changes: BoundedMap[VPath, _HashChange] = BoundedMap(MOST_REPEATED)
        self._queue: deque[tuple[float, VPath]] = deque()
        self._call: IDelayedCall | None = None

    def changed(self, base: VPath, hash_: bytes) -> None:
        """``base`` has ``hash_`` now. Nothing is said again when that is not new."""
        known = self._changes.get(base)
        if known is not None and known.hash == hash_:  # guard: A26 F13
            return
        self._changes.put(base, _HashChange(hash_))
        if known is None or not known.left:
            self._queue.append((self._clock.seconds() + REPEAT_S, base))
            self._wait()

    def heard(self, base: VPath, hash_: bytes, address: Address) -> None:
        """The node at ``address`` said ``hash_`` of ``base``: it is not told again."""
        known = self._changes.get(base)
        if known is not None and known.left and known.hash == hash_:  # guard: A34 F25, without 2
            known.agreeing.add(address)

    def stop(self) -> None:
        """Say nothing any more."""
        self._queue.clear()
        if self._call is not None:
            self._call.cancel()
            self._call = None

    def _wait(self) -> None:
        if self._call is None and self._queue:
            delay_s = max(self._queue[0][0] - self._clock.seconds(), LEAST_WAIT_S)
            self._call = later(self._clock, delay_s, "gossip of base dirs again", self._due)

    def _due(self) -> None:
        self._call = None
        now_s = self._clock.seconds()
        said: dict[VPath, Set[Address]] = {}
        while self._queue and self._queue[0][0] <= now_s:
            _, base = self._queue.popleft()
            known = self._changes.get(base)
            if known is None or not known.left:
                continue
            said[base] = known.agreeing
            known.left -= 1
            if known.left:
                self._queue.append((now_s + REPEAT_S, base))
            else:
                known.agreeing = set()
        self._wait()
        if said:
            self._say(said)


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
