"""Soft state: what each machine said it does with an image at a path (fetches it, has it, dropped it). Hints for the choice of sources.

Memory with a bound for each who fills it: whoever says too much loses what it said first, not what others said (threats A34).

Ends of hooks on other nodes, by their own word, for clients that begin to wait later.

Subscriptions on other nodes: hearsay with an age, so that it dies everywhere at the same time (protocol section 4.6).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from ciruela.interfaces import Address
from ciruela.membership.packets import Complete, Deleted, DownloadFact, Hooked, RemovedFact, WatchFact
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.vpath import VPath

O = TypeVar("O", bound=Hashable)  # noqa: E741  owner
K = TypeVar("K", bound=Hashable)

PER_OWNER = 4096
"""Entries that one peer may fill in one table."""


class PeerQuota(Generic[O, K]):
    """Quota of keys for each owner, oldest first. It holds no values: it says what to forget.

    A key belongs to whoever spoke of it last.
    """

    def __init__(self, limit: int = PER_OWNER) -> None:
        self._limit = limit
        self._owned: dict[O, dict[K, float]] = {}
        self._owners: dict[K, O] = {}

    def touch(self, owner: O, key: K, now_s: float) -> K | None:
        """``owner`` spoke of ``key`` at ``now_s``; it is now its newest. Returns the key that gives way, if one must."""
        if self._owners.get(key, owner) != owner:
            self.drop(key)
        keys = self._owned.setdefault(owner, {})
        gone = None
        if keys.pop(key, None) is None and len(keys) >= self._limit:
            gone = next(iter(keys))
            del keys[gone]
            del self._owners[gone]
        keys[key] = now_s
        self._owners[key] = owner
        return gone

    def drop(self, key: K) -> None:
        """``key`` belongs to nobody any more."""
        if key in self._owners:
            owner = self._owners.pop(key)
            del self._owned[owner][key]
            if not self._owned[owner]:
                del self._owned[owner]

    def expired(self, before_s: float) -> list[tuple[O, K]]:
        """Remove and return all that was not touched since ``before_s``."""
        found: list[tuple[O, K]] = []
        for owner in list(self._owned):
            keys = self._owned[owner]
            while keys:
                key = next(iter(keys))
                if keys[key] >= before_s:
                    break
                del keys[key]
                del self._owners[key]
                found.append((owner, key))
            if not keys:
                del self._owned[owner]
        return found

    def __len__(self) -> int:
        return len(self._owners)


STANCE_S = 300.0
"""A stance that was not repeated for so long is forgotten."""

IMAGES_PER_PATH = 4
"""Images of which one machine may speak at one path."""

Stance = DownloadFact | Complete | Deleted | RemovedFact


@dataclass(frozen=True, slots=True)
class SoftState:
    """A stance and when it was taken: ``order`` is the sender's epoch and sequence number."""

    stance: Stance
    order: tuple[int, int]


class SoftStates:
    """The stances of all machines: ``PER_OWNER`` pairs of path and machine from one address, for machine ids can be invented."""

    def __init__(self) -> None:
        self._paths: dict[VPath, dict[MachineId, dict[ImageId, SoftState]]] = {}
        self._quota: PeerQuota[Address, tuple[MachineId, VPath]] = PeerQuota()

    def __len__(self) -> int:
        return len(self._quota)

    def heard(self, machine: MachineId, source: Address, stance: Stance, order: tuple[int, int], now_s: float) -> bool:
        """Note a stance of ``machine``, which speaks from ``source``.

        True when it is not what was known already; a packet that was overtaken by a newer one changes nothing.
        """
        known = self._paths.get(stance.vpath, {}).get(machine, {}).get(stance.image)
        if known is not None and order < known.order:
            return False
        gone = self._quota.touch(source, (machine, stance.vpath), now_s)
        if gone is not None:
            self._forget(*gone)
        images = self._paths.setdefault(stance.vpath, {}).setdefault(machine, {})
        if isinstance(stance, Complete | RemovedFact):
            for image in [i for i, said in images.items() if isinstance(said.stance, Complete) and said.order <= order]:
                del images[image]
        images.pop(stance.image, None)
        if len(images) >= IMAGES_PER_PATH:
            del images[next(iter(images))]
        images[stance.image] = SoftState(stance, order)
        return known is None or known.stance != stance

    def restarted(self, machine: MachineId) -> None:
        """Forget what ``machine`` said: it speaks with an older epoch than before, and what it says now would count as overtaken."""
        for vpath in [vpath for vpath, machines in self._paths.items() if machine in machines]:
            self._quota.drop((machine, vpath))
            self._forget(machine, vpath)

    def _forget(self, machine: MachineId, vpath: VPath) -> None:
        machines = self._paths[vpath]
        del machines[machine]
        if not machines:
            del self._paths[vpath]

    def of(self, vpath: VPath, image: ImageId) -> Iterator[tuple[MachineId, Stance]]:
        """Iterates over what each machine said of ``image`` at ``vpath``."""
        for machine, images in self._paths.get(vpath, {}).items():
            said = images.get(image)
            if said is not None:
                yield machine, said.stance

    def completed(self, vpath: VPath) -> list[tuple[MachineId, Complete]]:
        """Lists the images that machines said to have at ``vpath``."""
        return [
            (machine, said.stance)
            for machine, images in self._paths.get(vpath, {}).items()
            for said in images.values()
            if isinstance(said.stance, Complete)
        ]

    def removed(self, vpath: VPath) -> list[tuple[MachineId, RemovedFact]]:
        """Lists the removals from ``vpath`` that machines spoke of."""
        return [
            (machine, said.stance)
            for machine, images in self._paths.get(vpath, {}).items()
            for said in images.values()
            if isinstance(said.stance, RemovedFact)
        ]

    def all(self) -> Iterator[tuple[MachineId, Stance]]:
        """Everything that is known."""
        for machines in self._paths.values():
            for machine, images in machines.items():
                for said in images.values():
                    yield machine, said.stance

    def expire(self, now_s: float) -> None:
        """Forget what is too old."""
        for _, key in self._quota.expired(now_s - STANCE_S):
            self._forget(*key)


RESULT_S = 300.0
"""A result that was not repeated for so long is forgotten."""

MOST_KINDS = 8
"""Kinds of hooks that one machine may speak of at one path; today there are two."""


class HeardResults:
    """The results of all machines: ``PER_OWNER`` pairs of path and machine from one address, for machine ids can be invented."""

    def __init__(self) -> None:
        self._paths: dict[VPath, dict[MachineId, dict[int, Hooked]]] = {}
        self._quota: PeerQuota[Address, tuple[MachineId, VPath]] = PeerQuota()

    def __len__(self) -> int:
        return len(self._quota)

    def heard(self, machine: MachineId, source: Address, hooked: Hooked, now_s: float) -> bool:
        """Note a result of ``machine``, which speaks from ``source``.

        True when it is not what was known already; one of an older version changes nothing.
        """
        kinds = self._paths.get(hooked.vpath, {}).get(machine, {})
        known = kinds.get(hooked.kind)
        if (known is None and len(kinds) >= MOST_KINDS) or (known is not None and hooked.timestamp_ms < known.timestamp_ms):
            return False
        gone = self._quota.touch(source, (machine, hooked.vpath), now_s)
        if gone is not None:
            self._forget(*gone)
        self._paths.setdefault(hooked.vpath, {}).setdefault(machine, {})[hooked.kind] = hooked
        return known != hooked

    def _forget(self, machine: MachineId, vpath: VPath) -> None:
        machines = self._paths[vpath]
        del machines[machine]
        if not machines:
            del self._paths[vpath]

    def of(self, vpath: VPath) -> list[tuple[MachineId, Hooked]]:
        """Lists what each machine said of hooks at ``vpath``."""
        return [(machine, hooked) for machine, kinds in self._paths.get(vpath, {}).items() for hooked in kinds.values()]

    def expire(self, now_s: float) -> None:
        """Forget what is too old."""
        for _, key in self._quota.expired(now_s - RESULT_S):
            self._forget(*key)


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
        self._quota: PeerQuota[Address | None, tuple[VPath, MachineId]] = PeerQuota()

    def __len__(self) -> int:
        return len(self._quota)

    def heard(self, item: WatchFact, teller: Address, now_s: float) -> bool:
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
        """Tells whether clients of ``machine`` wait for ``vpath``."""
        heard = self._paths.get(vpath, {}).get(machine)
        return heard is not None and now_s - heard.born_s < WATCH_S

    def of(self, vpath: VPath, now_s: float) -> frozenset[MachineId]:
        """The machines with clients that wait for ``vpath``."""
        return frozenset(machine for machine, heard in self._paths.get(vpath, {}).items() if now_s - heard.born_s < WATCH_S)

    def stamped(self, vpath: VPath, now_s: float) -> frozenset[MachineId]:
        """Those of :meth:`of` that were learned from datagrams, and so may be told to others."""
        return frozenset(machine for machine in self.of(vpath, now_s) if self._paths[vpath][machine].stamp != UNSTAMPED)

    def item(self, vpath: VPath, machine: MachineId, now_s: float) -> WatchFact | None:
        """Gives the fact to pass on, with its age; None when it is over or must not be passed on."""
        heard = self._paths.get(vpath, {}).get(machine)
        if heard is None or heard.stamp == UNSTAMPED:
            return None
        age_ms = age_in_ms(now_s - heard.born_s)
        return WatchFact(vpath, machine, heard.stamp, age_ms) if age_ms < WATCH_S * 1000 else None

    def all(self) -> Iterator[tuple[VPath, MachineId]]:
        """Everything that is known."""
        for vpath, machines in self._paths.items():
            for machine in machines:
                yield vpath, machine

    def expire(self, now_s: float) -> None:
        """Forget what is over."""
        for _, key in self._quota.expired(now_s - WATCH_S):
            self._forget(*key)
