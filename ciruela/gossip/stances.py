"""What each machine said it does with an image at a path: fetches it, has it, dropped it. Hints for the choice of sources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ciruela.gossip.packets import Complete, Deleted, Download, Removed
from ciruela.gossip.quota import Quota
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.vpath import VPath
from ciruela.seams import Address

STANCE_S = 300.0
"""A stance that was not repeated for so long is forgotten."""

IMAGES_PER_PATH = 4
"""Images of which one machine may speak at one path."""

Stance = Download | Complete | Deleted | Removed


@dataclass(frozen=True, slots=True)
class Said:
    """A stance and when it was taken: ``order`` is the sender's epoch and sequence number."""

    stance: Stance
    order: tuple[int, int]


class Stances:
    """The stances of all machines: ``PER_OWNER`` pairs of path and machine from one address, for machine ids can be invented."""

    def __init__(self) -> None:
        self._paths: dict[VPath, dict[MachineId, dict[ImageId, Said]]] = {}
        self._quota: Quota[Address, tuple[MachineId, VPath]] = Quota()

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
        if isinstance(stance, Complete | Removed):
            for image in [i for i, said in images.items() if isinstance(said.stance, Complete) and said.order <= order]:
                del images[image]
        images.pop(stance.image, None)
        if len(images) >= IMAGES_PER_PATH:
            del images[next(iter(images))]
        images[stance.image] = Said(stance, order)
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
        """Who said what of ``image`` at ``vpath``."""
        for machine, images in self._paths.get(vpath, {}).items():
            said = images.get(image)
            if said is not None:
                yield machine, said.stance

    def completed(self, vpath: VPath) -> list[tuple[MachineId, Complete]]:
        """Who said to have what at ``vpath``."""
        return [
            (machine, said.stance)
            for machine, images in self._paths.get(vpath, {}).items()
            for said in images.values()
            if isinstance(said.stance, Complete)
        ]

    def removed(self, vpath: VPath) -> list[tuple[MachineId, Removed]]:
        """Who said that what was removed from ``vpath``."""
        return [
            (machine, said.stance)
            for machine, images in self._paths.get(vpath, {}).items()
            for said in images.values()
            if isinstance(said.stance, Removed)
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
