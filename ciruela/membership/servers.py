"""The servers that may take a directory, as this node knows them: a pure function from addresses to rows (``model.ids.Server``).

Machine ids with which several servers speak, as after the disk of one was cloned (threats A33).

Servers that speak to this node over a connection although no list of peers here names them: shown and counted, never believed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import zip_longest

from ciruela.interfaces import Address
from ciruela.membership.packets import MAX_PARTS, MemberFact, Packet
from ciruela.model.ids import MachineId, Server, SharedId
from ciruela.model.values import dataclass
from ciruela.proto.messages import MOST_ADDRESSES
from ciruela.runtime import BoundedMap

MOST_STRANGERS = 64
STRANGER_S = 300.0
"""A stranger that did not speak for so long is forgotten."""


@dataclass(frozen=True, slots=True)
class Stranger:
    """One of them, as it told of itself: nobody has proved anything. ``keys`` is None when it did not tell all."""

    machine: MachineId
    hostname: str
    keys: frozenset[str] | None
    at_s: float


class Strangers:
    """The last :data:`MOST_STRANGERS`, by where they say that they listen."""

    def __init__(self) -> None:
        self._at: BoundedMap[Address, Stranger] = BoundedMap(MOST_STRANGERS)

    def spoke(self, source: Address, packets: Iterable[Packet], now_s: float) -> Stranger | None:
        """Note what came from ``source``. None when it told nothing."""
        packets = list(packets)
        if not packets:
            return None
        machine = packets[-1].header.sender
        own = [item for packet in packets for item in packet.items if isinstance(item, MemberFact) and item.machine == machine]
        parts = {item.part: item.keys for item in own}
        whole = bool(own) and len(parts) == own[-1].parts < MAX_PARTS
        keys = frozenset(key for part in parts.values() for key in part) if whole else None
        found = Stranger(machine, own[-1].hostname if own else "", keys, now_s)
        self._at.put(source, found)
        return found

    def expire(self, now_s: float) -> None:
        """Forget who has been silent."""
        self._at.expire(lambda one: now_s - one.at_s >= STRANGER_S)

    def all(self) -> list[tuple[Address, Stranger]]:
        """Each with its address."""
        return list(self._at.items())

    def rows(self, key: str, now_s: float) -> list[Server]:
        """One row for each that takes ``key``, or did not tell what it takes."""
        return [
            Server(one.hostname or source.host, one.machine, (str(source),), max(0, round((now_s - one.at_s) * 1000)), configured=False)
            for source, one in self._at.items()
            if one.keys is None or key in one.keys
        ]


SHARED_S = 600.0
"""An address that was silent for so long shares its machine id no more: it counts as a server that nobody has met."""


class SharedIds:
    """Addresses that speak with one machine id, in different epochs, and when each was heard last.

    It ends when one of them speaks with another id, is configured no more, or was silent for :data:`SHARED_S`.
    """

    def __init__(self, me: MachineId) -> None:
        self._me = me
        self._heard: dict[MachineId, dict[Address, float]] = {}

    def note(self, machine: MachineId, heard: dict[Address, float]) -> None:
        """``machine`` is the id of the servers at these addresses, and of this node when it is its own; with when each was heard last."""
        self._heard.setdefault(machine, {}).update(heard)

    def spoke(self, address: Address, machine: MachineId, now_s: float) -> None:
        """A server at ``address`` speaks with ``machine`` now."""
        for other, heard in list(self._heard.items()):
            if address not in heard:
                continue
            if other == machine:
                heard[address] = now_s
            else:
                self._drop(other, {address})

    def configured(self, addresses: Collection[Address]) -> None:
        """Only these are configured."""
        for machine, heard in list(self._heard.items()):
            self._drop(machine, {address for address in heard if address not in addresses})

    def expire(self, now_s: float) -> list[Address]:
        """End what is over; the addresses that were silent for too long."""
        gone: list[Address] = []
        for machine, heard in list(self._heard.items()):
            silent = {address for address, at_s in heard.items() if now_s - at_s >= SHARED_S}
            self._drop(machine, silent)
            gone += silent
        return gone

    def _drop(self, machine: MachineId, addresses: Collection[Address]) -> None:
        heard = self._heard[machine]
        for address in addresses:
            del heard[address]
        if len(heard) < (1 if machine == self._me else 2):
            del self._heard[machine]

    def __contains__(self, machine: MachineId) -> bool:
        return machine in self._heard

    def all(self, own: Collection[str]) -> list[SharedId]:
        """Each shared id with its addresses, in order. ``own`` are the texts of the addresses of this node."""
        return [
            SharedId(machine, tuple(sorted({*(own if machine == self._me else ()), *map(str, heard)})))
            for machine, heard in self._heard.items()
        ]


@dataclass(frozen=True, slots=True)
class ConfiguredPlace:
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


def servers(places: Iterable[ConfiguredPlace], key: str) -> list[Server]:
    """One row for each other server that takes ``key``, or of which that is not known.

    Addresses with one machine id and one epoch are one server. Of one name, each unmet address of one family is a server of its own; one
    of each family are taken for the same server, and so is an unmet address for a met server of that name that lacks its family.
    """
    met, unmet = _grouped(places)
    rows = [*met, *_unmet_servers(unmet, met)]
    return [_row(group) for group in rows if not any(place.own for place in group) and _may_take(group, key)]


def _may_take(group: Sequence[ConfiguredPlace], key: str) -> bool:
    """Tells whether the server takes ``key``, or nobody knows what it takes."""
    told = [place.keys for place in group if place.keys is not None]
    return not told or any(key in keys for keys in told)  # guard: K1.1, without 1


def _grouped(places: Iterable[ConfiguredPlace]) -> tuple[list[list[ConfiguredPlace]], list[ConfiguredPlace]]:
    """The addresses of each server that was met, and the addresses at which nobody was.

    A machine that was met in several epochs is where it speaks with the one that was heard last; its older addresses are unmet.
    """
    places = list(places)
    latest: dict[MachineId, ConfiguredPlace] = {}
    for place in places:
        if place.machine is not None and not place.apart:
            other = latest.get(place.machine)
            if other is None or (place.heard_ms is not None and (other.heard_ms is None or place.heard_ms < other.heard_ms)):
                latest[place.machine] = place
    groups: dict[object, list[ConfiguredPlace]] = {}
    unmet: list[ConfiguredPlace] = []
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
            unmet.append(ConfiguredPlace(place.address, place.name, False, heard_ms=place.heard_ms))
    return list(groups.values()), unmet


def _unmet_servers(unmet: Sequence[ConfiguredPlace], met: list[list[ConfiguredPlace]]) -> list[list[ConfiguredPlace]]:
    by_name: dict[str, list[ConfiguredPlace]] = {}
    for place in unmet:
        by_name.setdefault(place.name, []).append(place)
    rows: list[list[ConfiguredPlace]] = []
    for name, places in by_name.items():
        left = {family: [place for place in places if place.family == family] for family in (4, 6)}
        for family, waiting in left.items():
            lacking = [group for group in met if any(one.name == name for one in group) and all(one.family != family for one in group)]
            if len(lacking) == len(waiting) == 1:
                lacking[0].append(waiting[0])
            del waiting[: len(lacking)]
        rows += [[place for place in pair if place is not None] for pair in zip_longest(left[4], left[6])]
    return rows


def _row(group: Sequence[ConfiguredPlace]) -> Server:
    met = next((place for place in group if place.machine is not None), group[0])
    heard_ms = min((place.heard_ms for place in group if place.heard_ms is not None), default=None)
    return Server(met.hostname or met.name, met.machine, tuple(str(place.address) for place in group[:MOST_ADDRESSES]), heard_ms)
