"""Soft state: what each machine said it does with an image at a path (fetches it, has it, dropped it). Hints for the choice of sources.

Memory with a bound for each who fills it: whoever says too much loses what it said first, not what others said (threats A34).

Ends of hooks on other nodes, by their own word, for clients that begin to wait later.

Subscriptions on other nodes: hearsay with an age, so that it dies everywhere at the same time (protocol section 4.6).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import Generic, TypeVar

from ciruela.interfaces import Address
from ciruela.membership.packets import Complete, Deleted, DownloadFact, Hooked, RemovedFact, WatchFact
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath

O = TypeVar("O", bound=Hashable)  # noqa: E741  owner
V = TypeVar("V")

PER_OWNER = 4096
"""Entries that one peer may fill in one table."""


class SoftState(Generic[O, V]):
    """Facts about paths that were heard of machines, one value for each pair, until they were not heard again for ``lasts_s``.

    A pair belongs to the owner that spoke of it last, and counts for its quota of ``most``: the one that it spoke of longest ago gives way.
    """

    def __init__(self, lasts_s: float, most: int = PER_OWNER) -> None:
        self._lasts_s = lasts_s
        self._most = most
        self._paths: dict[VPath, dict[MachineId, V]] = {}
        self._owned: dict[O, dict[tuple[VPath, MachineId], float]] = {}
        self._owners: dict[tuple[VPath, MachineId], O] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def at(self, vpath: VPath) -> Mapping[MachineId, V]:
        """The values at a path."""
        return self._paths.get(vpath, {})

    def note(self, owner: O, vpath: VPath, machine: MachineId, value: V, now_s: float) -> None:
        """``owner`` spoke of a pair at ``now_s``, which is now its newest."""
        key = vpath, machine
        if self._owners.get(key, owner) != owner:
            self.forget(vpath, machine)
        keys = self._owned.get(owner, {})
        if keys.pop(key, None) is None and len(keys) >= self._most:  # guard: A34 F25
            self.forget(*next(iter(keys)))
        self._owned.setdefault(owner, keys)[key] = now_s
        self._owners[key] = owner
        self._paths.setdefault(vpath, {})[machine] = value

    def forget(self, vpath: VPath, machine: MachineId) -> None:
        """Nothing is known of the pair any more."""
        owner = self._owners.pop((vpath, machine))
        self._owned[owner].pop((vpath, machine))
        if not self._owned[owner]:
            del self._owned[owner]
        machines = self._paths[vpath]
        del machines[machine]
        if not machines:
            del self._paths[vpath]

    def all(self) -> Iterator[tuple[VPath, MachineId, V]]:
        """Everything that is known."""
        return ((vpath, machine, value) for vpath, machines in self._paths.items() for machine, value in machines.items())

    def expire(self, now_s: float) -> None:
        """Forget what is too old."""
        for keys in list(self._owned.values()):
            while keys and keys[key := next(iter(keys))] < now_s - self._lasts_s:
                self.forget(*key)


STANCE_S = 300.0
"""A stance that was not repeated for so long is forgotten."""

IMAGES_PER_PATH = 4
"""Images of which one machine may speak at one path."""

Stance = DownloadFact | Complete | Deleted | RemovedFact
S = TypeVar("S", bound=Stance)


@dataclass(frozen=True, slots=True)
class HeardStance:
    """A stance and when it was taken: ``order`` is the sender's epoch and sequence number."""

    stance: Stance
    order: tuple[int, int]


class HeardStances(SoftState[Address, dict[ImageId, HeardStance]]):
    """The stances of all machines: ``PER_OWNER`` pairs of path and machine from one address, for machine ids can be invented."""

    def __init__(self) -> None:
        super().__init__(STANCE_S)

    def heard(self, machine: MachineId, source: Address, stance: Stance, order: tuple[int, int], now_s: float) -> bool:
        """Note a stance of ``machine``, which speaks from ``source``.

        True when it is not what was known already; a packet that was overtaken by a newer one changes nothing.
        """
        images = self._paths.get(stance.vpath, {}).get(machine, {})
        known = images.get(stance.image)
        if known is not None and order < known.order:  # guard: A31
            return False
        self.note(source, stance.vpath, machine, images, now_s)  # guard: S8, source -> Address(machine.hex(), 1)
        if isinstance(stance, Complete | RemovedFact):
            for image in [i for i, said in images.items() if isinstance(said.stance, Complete) and said.order <= order]:
                del images[image]
        images.pop(stance.image, None)
        if len(images) >= IMAGES_PER_PATH:  # guard: A34 F25
            del images[next(iter(images))]
        images[stance.image] = HeardStance(stance, order)
        return known is None or known.stance != stance

    def restarted(self, machine: MachineId) -> None:
        """Forget what ``machine`` said: it speaks with an older epoch than before, and what it says now would count as overtaken."""
        for vpath in [vpath for vpath, machines in self._paths.items() if machine in machines]:
            self.forget(vpath, machine)

    def of(self, vpath: VPath, image: ImageId) -> Iterator[tuple[MachineId, Stance]]:
        """Iterates over what each machine said of ``image`` at ``vpath``."""
        return ((machine, said.stance) for machine, images in self.at(vpath).items() if (said := images.get(image)) is not None)

    def of_kind(self, vpath: VPath, kind: type[S]) -> list[tuple[MachineId, S]]:
        """Lists the stances of one kind that machines took at ``vpath``."""
        stances = ((machine, said.stance) for machine, images in self.at(vpath).items() for said in images.values())
        return [(machine, stance) for machine, stance in stances if isinstance(stance, kind)]


RESULT_S = 300.0
"""A result that was not repeated for so long is forgotten."""

MOST_KINDS = 8
"""Kinds of hooks that one machine may speak of at one path; today there are two."""


class HeardResults(SoftState[Address, dict[int, Hooked]]):
    """The results of all machines: ``PER_OWNER`` pairs of path and machine from one address, for machine ids can be invented."""

    def __init__(self) -> None:
        super().__init__(RESULT_S)

    def heard(self, machine: MachineId, source: Address, hooked: Hooked, now_s: float) -> bool:
        """Note a result of ``machine``, which speaks from ``source``.

        True when it is not what was known already; one of an older version changes nothing.
        """
        kinds = self._paths.get(hooked.vpath, {}).get(machine, {})
        known = kinds.get(hooked.kind)
        # guard: A34, (known is None and len(kinds) >= MOST_KINDS) or ->
        if (known is None and len(kinds) >= MOST_KINDS) or (known is not None and hooked.timestamp_ms < known.timestamp_ms):
            return False
        self.note(source, hooked.vpath, machine, kinds, now_s)
        kinds[hooked.kind] = hooked
        return known != hooked

    def of(self, vpath: VPath) -> list[tuple[MachineId, Hooked]]:
        """Lists what each machine said of hooks at ``vpath``."""
        return [(machine, hooked) for machine, kinds in self.at(vpath).items() for hooked in kinds.values()]


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


class HeardWatches(SoftState[Address | None, Heard]):
    """The watches of other nodes, at most ``PER_OWNER`` from each peer that tells of them."""

    def __init__(self) -> None:
        super().__init__(WATCH_S)

    def heard(self, item: WatchFact, teller: Address, now_s: float) -> bool:
        """Note what ``teller`` said. True when it is newer than what was known, and not over yet."""
        if item.age_ms >= WATCH_S * 1000:  # guard: A34
            return False
        machines = self.at(item.vpath)
        known = machines.get(item.machine)
        if known is None and len(machines) >= MOST_WATCHERS:  # guard: S6
            return False
        if known is not None and item.stamp <= known.stamp:  # guard: A31
            return False
        self.note(teller, item.vpath, item.machine, Heard(item.stamp, now_s - item.age_ms / 1000), now_s)
        return True

    def add(self, vpath: VPath, machines: Collection[MachineId], now_s: float) -> None:
        """Machines that a base dir named. They count for :data:`WATCH_S` and are never passed on; a known watch is not prolonged."""
        for machine in machines:
            known = self.at(vpath)
            if machine not in known and len(known) < MOST_WATCHERS:  # guard: S6, without 2
                self.note(None, vpath, machine, Heard(UNSTAMPED, now_s), now_s)

    def waits(self, vpath: VPath, machine: MachineId, now_s: float) -> bool:
        """Tells whether clients of ``machine`` wait for ``vpath``."""
        heard = self.at(vpath).get(machine)
        return heard is not None and now_s - heard.born_s < WATCH_S

    def of(self, vpath: VPath, now_s: float) -> frozenset[MachineId]:
        """The machines with clients that wait for ``vpath``."""
        return frozenset(machine for machine, heard in self.at(vpath).items() if now_s - heard.born_s < WATCH_S)

    def stamped(self, vpath: VPath, now_s: float) -> frozenset[MachineId]:
        """Those of :meth:`of` that were learned from datagrams, and so may be told to others."""
        return frozenset(machine for machine in self.of(vpath, now_s) if self.at(vpath)[machine].stamp != UNSTAMPED)

    def item(self, vpath: VPath, machine: MachineId, now_s: float) -> WatchFact | None:
        """Gives the fact to pass on, with its age; None when it is over or must not be passed on."""
        heard = self.at(vpath).get(machine)
        if heard is None or heard.stamp == UNSTAMPED:
            return None
        age_ms = age_in_ms(now_s - heard.born_s)
        return WatchFact(vpath, machine, heard.stamp, age_ms) if age_ms < WATCH_S * 1000 else None
