"""Who waits for what on other nodes: hearsay with an age, so that it dies everywhere at the same time (protocol section 4.6)."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from ciruela.gossip.packets import Watch
from ciruela.gossip.stances import Quota
from ciruela.model.ids import MachineId
from ciruela.model.vpath import VPath
from ciruela.seams import Address

WATCH_S = 60.0
"""A watch that was not renewed for so long has ended."""

MOST_WATCHERS = 1000
"""Machines whose clients may wait for one path; of more, the last ones are told by ordinary gossip alone."""

UNSTAMPED = -1
"""Stamp of a watch that came with a base dir instead of a datagram: any stamp is newer."""


def age_in_ms(seconds: float) -> int:
    """An age for a datagram, rounded up: on its way from node to node a fact may seem older than it is, never younger."""
    return max(0, math.ceil(seconds * 1000))


@dataclass(frozen=True, slots=True)
class Heard:
    """One watch. ``born_s``: when its stamp was made, on this node's clock."""

    stamp: int
    born_s: float
    teller: Address | None


class HeardWatches:
    """The watches of other nodes, at most ``PER_OWNER`` from each peer that tells of them."""

    def __init__(self) -> None:
        self._paths: dict[VPath, dict[MachineId, Heard]] = {}
        self._quota: Quota[Address | None, tuple[VPath, MachineId]] = Quota()

    def __len__(self) -> int:
        return len(self._quota)

    def heard(self, item: Watch, teller: Address, now_s: float) -> bool:
        """Note what ``teller`` said. True when it is newer than what was known, and not over yet."""
        if item.age_ms >= WATCH_S * 1000:
            return False
        machines = self._paths.get(item.vpath, {})
        known = machines.get(item.machine)
        if known is None and len(machines) >= MOST_WATCHERS:
            return False
        if known is not None and item.stamp <= known.stamp:
            return False
        self._note(item.vpath, item.machine, Heard(item.stamp, now_s - item.age_ms / 1000, teller), now_s)
        return True

    def add(self, vpath: VPath, machines: Collection[MachineId], now_s: float) -> None:
        """Machines that a base dir named. They count for :data:`WATCH_S` and are never passed on; a known watch is not prolonged."""
        for machine in machines:
            known = self._paths.get(vpath, {})
            if machine not in known and len(known) < MOST_WATCHERS:
                self._note(vpath, machine, Heard(UNSTAMPED, now_s, None), now_s)

    def _note(self, vpath: VPath, machine: MachineId, heard: Heard, now_s: float) -> None:
        gone = self._quota.touch(heard.teller, (vpath, machine), now_s)
        if gone is not None:
            self._forget(*gone)
        self._paths.setdefault(vpath, {})[machine] = heard

    def _forget(self, vpath: VPath, machine: MachineId) -> None:
        machines = self._paths[vpath]
        del machines[machine]
        if not machines:
            del self._paths[vpath]

    def waits(self, vpath: VPath, machine: MachineId, now_s: float) -> bool:
        """Whether clients of ``machine`` wait for ``vpath``."""
        heard = self._paths.get(vpath, {}).get(machine)
        return heard is not None and now_s - heard.born_s < WATCH_S

    def of(self, vpath: VPath, now_s: float) -> frozenset[MachineId]:
        """The machines with clients that wait for ``vpath``."""
        return frozenset(machine for machine, heard in self._paths.get(vpath, {}).items() if now_s - heard.born_s < WATCH_S)

    def stamped(self, vpath: VPath, now_s: float) -> frozenset[MachineId]:
        """Those of :meth:`of` that were learned from datagrams, and so may be told to others."""
        return frozenset(machine for machine in self.of(vpath, now_s) if self._paths[vpath][machine].stamp != UNSTAMPED)

    def item(self, vpath: VPath, machine: MachineId, now_s: float) -> Watch | None:
        """What to pass on, with its age; None when it is over or must not be passed on."""
        heard = self._paths.get(vpath, {}).get(machine)
        if heard is None or heard.stamp == UNSTAMPED:
            return None
        age_ms = age_in_ms(now_s - heard.born_s)
        return Watch(vpath, machine, heard.stamp, age_ms) if age_ms < WATCH_S * 1000 else None

    def all(self) -> Iterator[tuple[VPath, MachineId]]:
        """Everything that is known."""
        for vpath, machines in self._paths.items():
            for machine in machines:
                yield vpath, machine

    def expire(self, now_s: float) -> None:
        """Forget what is over."""
        for _, key in self._quota.expired(now_s - WATCH_S):
            self._forget(*key)
