"""The servers that may take a directory, as this node knows them: a pure function from addresses to rows (``model.servers``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from ciruela.model.ids import MachineId
from ciruela.model.servers import Server
from ciruela.proto.messages import MOST_ADDRESSES
from ciruela.seams import Address


@dataclass(frozen=True, slots=True)
class Place:
    """One configured address. ``machine`` is None while nobody was met there. ``keys``: what it takes, None when that is not known.

    ``apart``: its machine id is shared with other servers, so that it says nothing about which addresses are one server.
    """

    address: Address
    name: str
    own: bool
    machine: MachineId | None = None
    epoch: int = 0
    hostname: str = ""
    keys: tuple[str, ...] | None = None
    heard_ms: int | None = None
    apart: bool = False

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.address.host else 4


def servers(places: Iterable[Place], key: str) -> list[Server]:
    """One row for each other server that takes ``key``, or of which that is not known.

    Addresses with one machine id and one epoch are one server. Of one name, each unmet address of one family is a server of its own; one
    of each family are taken for the same server, and so is an unmet address for a met server of that name that lacks its family.
    """
    met, unmet = _grouped(places)
    rows = [*met, *_unmet_servers(unmet, met)]
    return [_row(group) for group in rows if not any(place.own for place in group) and _may_take(group, key)]


def _may_take(group: Sequence[Place], key: str) -> bool:
    """Whether the server takes ``key``, or nobody knows what it takes."""
    told = [place.keys for place in group if place.keys is not None]
    return not told or any(key in keys for keys in told)


def _grouped(places: Iterable[Place]) -> tuple[list[list[Place]], list[Place]]:
    """The addresses of each server that was met, and the addresses at which nobody was.

    A machine that was met in several epochs is where it speaks with the one that was heard last; its older addresses are unmet.
    """
    places = list(places)
    latest: dict[MachineId, Place] = {}
    for place in places:
        if place.machine is not None and not place.apart:
            other = latest.get(place.machine)
            if other is None or (place.heard_ms is not None and (other.heard_ms is None or place.heard_ms < other.heard_ms)):
                latest[place.machine] = place
    groups: dict[object, list[Place]] = {}
    unmet: list[Place] = []
    for place in places:
        if place.own:
            groups.setdefault("own", []).append(place)
        elif place.machine is None:
            unmet.append(place)
        elif place.apart:
            groups.setdefault(place.address, []).append(place)
        elif place is latest[place.machine] or 0 != place.epoch == latest[place.machine].epoch:
            groups.setdefault(place.machine, []).append(place)
        else:
            unmet.append(Place(place.address, place.name, False, heard_ms=place.heard_ms))
    return list(groups.values()), unmet


def _unmet_servers(unmet: Sequence[Place], met: list[list[Place]]) -> list[list[Place]]:
    by_name: dict[str, list[Place]] = {}
    for place in unmet:
        by_name.setdefault(place.name, []).append(place)
    rows: list[list[Place]] = []
    for name, places in by_name.items():
        left = {family: [place for place in places if place.family == family] for family in (4, 6)}
        for family, waiting in left.items():
            lacking = [group for group in met if any(one.name == name for one in group) and all(one.family != family for one in group)]
            if len(lacking) == len(waiting) == 1:
                lacking[0].append(waiting[0])
            del waiting[: len(lacking)]
        rows += [[place for place in pair if place is not None] for pair in zip_longest(left[4], left[6])]
    return rows


def _row(group: Sequence[Place]) -> Server:
    met = next((place for place in group if place.machine is not None), group[0])
    heard_ms = min((place.heard_ms for place in group if place.heard_ms is not None), default=None)
    return Server(met.hostname or met.name, met.machine, tuple(str(place.address) for place in group[:MOST_ADDRESSES]), heard_ms)
