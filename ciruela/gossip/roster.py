"""Who is who: which configured address speaks for which machine, and which directories a machine takes (threats A33, A34, A37).

Only configured addresses have state here. What a node says itself (*direct*) stands above what others say of it (*hearsay*).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache

from ciruela.gossip.packets import Header, Member
from ciruela.gossip.watches import age_in_ms
from ciruela.gossip.window import Window
from ciruela.model.ids import MachineId
from ciruela.seams import Address

MEMBER_S = 300.0
"""A machine that gave no sign of life for so long is forgotten."""

SILENT_S = 30.0
"""An address without a sign of life for so long is probed; a machine heard less long ago is alive for the alarm about doubles."""


MOST_KEYS = 64
"""Directories for which it is remembered who takes them."""

_key_set = lru_cache(maxsize=256)(frozenset[str])
"""One object for all machines that take the same directories: in most clusters these are all."""


class Refusal(Enum):
    """Why a packet was not listened to; the words are those of the counters."""

    UNKNOWN_SOURCE = "unknown_source"
    OWN = "own"
    REPLAYED = "replayed"
    SAME_MACHINE = "same_machine"


@dataclass(frozen=True, slots=True)
class Admission:
    """What the header of a packet meant. ``double``: the other address that speaks for the same machine now."""

    refusal: Refusal | None
    new: bool = False
    double: Address | None = None


@dataclass(slots=True)
class _Bound:
    """The sender at one address."""

    machine: MachineId
    epoch: int
    heard_s: float
    window: Window


@dataclass(slots=True)
class _Member:
    """One machine. ``gathered``: the parts of the newest stamp. ``keys``: those, and until all are there also the keys of the stamp before.

    There is at most one for each configured address (``Roster._at``), so nobody can fill the table with invented machines.
    """

    address: Address
    stamp: int
    born_s: float
    direct: bool
    parts: int
    hostname: str
    gathered: dict[int, tuple[str, ...]]
    keys: frozenset[str]


@dataclass(frozen=True, slots=True)
class Peer:
    """One configured address, for the status page. ``silent_s``: since the last packet from there, None when there was none."""

    address: Address
    name: str
    own: bool
    machine: MachineId | None
    hostname: str | None
    silent_s: float | None
    keys: tuple[str, ...]


class Roster:
    """The configured addresses and what is known of the machines there."""

    def __init__(self, me: MachineId, epoch: int) -> None:
        self._me = me
        self._epoch = epoch
        self._names: dict[Address, str] = {}
        self._by_text: dict[str, Address] = {}
        self._own: set[Address] = set()
        self._bound: dict[Address, _Bound] = {}
        self._members: dict[MachineId, _Member] = {}
        self._at: dict[Address, MachineId] = {}
        self._places: dict[MachineId, Address] = {}
        self._takers: dict[str, dict[MachineId, Address]] = {}

    def configured(self, names: Mapping[Address, str]) -> None:
        """The addresses that may be spoken to, each with its name as written; what is known of all others is forgotten."""
        self._takers.clear()
        self._names = dict(names)
        self._by_text = {str(address): address for address in names}
        self._own &= names.keys()
        for address in [address for address in self._bound if address not in names]:
            del self._bound[address]
        for machine, member in list(self._members.items()):
            if member.address not in names:
                self._drop_member(machine)
        self._places = {machine: address for machine, address in self._places.items() if address in names}

    def is_configured(self, address: Address) -> bool:
        """Whether packets from ``address`` are listened to at all."""
        return address in self._names

    # -- hearing --------------------------------------------------------------------------------------------------------------

    def admit(self, source: Address, header: Header, now_s: float) -> Admission:
        """Whether a packet with this header counts; binds its sender to ``source``."""
        if source not in self._names:
            return Admission(Refusal.UNKNOWN_SOURCE)
        if header.sender == self._me:
            if header.epoch != self._epoch:
                return Admission(Refusal.SAME_MACHINE, double=source)
            if source not in self._own:
                self._own.add(source)
                self._takers.clear()
            return Admission(Refusal.OWN)
        if source in self._own:
            self._own.discard(source)
            self._takers.clear()
        bound = self._bound.get(source)
        if bound is not None and (header.epoch < bound.epoch or (header.epoch == bound.epoch and header.sender != bound.machine)):
            return Admission(Refusal.REPLAYED)
        double, older = self._double(source, header, now_s)
        if older:
            return Admission(Refusal.SAME_MACHINE, double=double)
        new = bound is None or (bound.machine, bound.epoch) != (header.sender, header.epoch)
        window = self._window(source, header)
        if not window.fresh(header.seq):
            return Admission(Refusal.REPLAYED)
        if self.address_of(header.sender) != source:
            self._takers.clear()
        if bound is not None:
            self._unbind(source, bound.machine)
        self._bound[source] = _Bound(header.sender, header.epoch, now_s, window)
        self._places[header.sender] = source
        return Admission(None, new, double)

    def _window(self, source: Address, header: Header) -> Window:
        """The numbers seen of this sender in this epoch, from whichever address: a replay with another source is a replay."""
        for address in (source, self._places.get(header.sender)):
            bound = None if address is None else self._bound.get(address)
            if bound is not None and (bound.machine, bound.epoch) == (header.sender, header.epoch):
                return bound.window
        return Window()

    def _double(self, source: Address, header: Header, now_s: float) -> tuple[Address | None, bool]:
        """The other address that speaks for the sender in another epoch, if it lives; and whether that one is the newer."""
        place = self._places.get(header.sender)
        other = None if place is None or place == source else self._bound.get(place)
        if other is None or other.machine != header.sender or other.epoch == header.epoch:
            return None, False
        return place if now_s - other.heard_s < SILENT_S else None, header.epoch < other.epoch

    def _unbind(self, address: Address, machine: MachineId) -> None:
        if self._places.get(machine) == address:
            del self._places[machine]

    def member(self, item: Member, sender: MachineId, source: Address, now_s: float) -> bool:
        """Note what ``sender`` at ``source`` said of a machine. True when it is newer than what was known, and so worth passing on."""
        direct = item.machine == sender
        born_s = now_s - item.age_ms / 1000
        if item.machine == self._me or now_s - born_s >= MEMBER_S:
            return False
        known = self._members.get(item.machine)
        if known is not None and item.stamp < known.stamp and not (direct and not known.direct):
            return False
        address = source if direct else self._place_for(item, born_s)
        if address is None:
            return False
        if known is None or item.stamp != known.stamp:
            if self._at.get(address) != item.machine:
                self._takers.clear()
            self._drop_member(item.machine)
            self._drop_member(self._at.get(address))
            keys = known.keys if known is not None else frozenset()
            known = _Member(address, item.stamp, born_s, direct, item.parts, item.hostname, {}, keys)
            self._members[item.machine] = known
            self._at[address] = item.machine
        elif item.part in known.gathered or item.parts != known.parts:
            return False
        known.gathered[item.part] = item.keys
        gathered = _key_set(tuple(key for keys in known.gathered.values() for key in keys))
        keys = gathered if len(known.gathered) == known.parts else known.keys | gathered
        if keys != known.keys:
            self._takers.clear()
        known.keys = keys
        return True

    def _place_for(self, item: Member, born_s: float) -> Address | None:
        """Where hearsay puts a machine: only at a configured address for which nobody spoke more recently."""
        if item.machine in self._places:
            return self._places[item.machine]
        address = None if item.address is None else self._by_text.get(item.address)
        if address is None or address in self._own or address in self._bound:
            return None
        other = self._at.get(address)
        if other is not None and other != item.machine and self._members[other].born_s >= born_s:
            return None
        return address

    def _drop_member(self, machine: MachineId | None) -> None:
        member = None if machine is None else self._members.pop(machine, None)
        if member is not None:
            del self._at[member.address]

    def expire(self, now_s: float) -> None:
        """Forget who gave no sign of life for :data:`MEMBER_S`."""
        silent = [(address, bound.machine) for address, bound in self._bound.items() if now_s - bound.heard_s >= MEMBER_S]
        for address, machine in silent:
            del self._bound[address]
            self._unbind(address, machine)
        old = [machine for machine, one in self._members.items() if machine not in self._places and now_s - one.born_s >= MEMBER_S]
        for machine in old:
            self._drop_member(machine)
        if silent or old:
            self._takers.clear()

    # -- asking ---------------------------------------------------------------------------------------------------------------

    def address_of(self, machine: MachineId) -> Address | None:
        """Where ``machine`` is reached; always a configured address."""
        place = self._places.get(machine)
        if place is None and machine in self._members:
            hearsay = self._members[machine].address
            place = None if hearsay in self._bound else hearsay
        return None if place in self._own else place

    def hostname(self, machine: MachineId) -> str | None:
        """The host name that ``machine`` gives itself, else the configured name of its address."""
        member = self._members.get(machine)
        if member is not None and member.hostname:
            return member.hostname
        address = self.address_of(machine)
        return None if address is None else self._names[address]

    def takers(self, key: str) -> Mapping[MachineId, Address]:
        """The other machines that take ``key``, with their addresses; not to be changed. Kept until one of them moves or changes."""
        found = self._takers.get(key)
        if found is None:
            addresses = {machine: self.address_of(machine) for machine, member in self._members.items() if key in member.keys}
            found = {machine: address for machine, address in addresses.items() if address is not None}
            if len(self._takers) >= MOST_KEYS:
                self._takers.clear()
            self._takers[key] = found
        return found

    def name(self, address: Address) -> str:
        """The configured text of ``address``; KeyError when it is not configured."""
        return self._names[address]

    def item(self, machine: MachineId, part: int, now_s: float) -> Member | None:
        """One part of what is known of another machine, to be passed on; None when there is nothing or it is too old."""
        member = self._members.get(machine)
        if member is None or part not in member.gathered:
            return None
        age_ms = age_in_ms(now_s - member.born_s)
        address = self.address_of(machine)
        if age_ms >= MEMBER_S * 1000 or address is None:
            return None
        return Member(machine, str(address), member.stamp, member.hostname, part, member.parts, member.gathered[part], age_ms)

    def clocks_ms(self, now_s: float) -> list[int]:
        """What the wall clocks of other machines show now, by what they said themselves."""
        return [member.stamp + round((now_s - member.born_s) * 1000) for member in self._members.values() if member.direct]

    def _life_s(self) -> dict[Address, float]:
        """When each address last gave a sign of life, itself or through others."""
        life = {member.address: member.born_s for member in self._members.values()}
        for address, bound in self._bound.items():
            life[address] = max(bound.heard_s, life.get(address, bound.heard_s))
        return life

    def reachable(self, now_s: float) -> tuple[list[Address], list[Address]]:
        """The addresses of living machines; and the configured ones that should be probed: silent or never heard of."""
        life = self._life_s()
        known = [address for address, at_s in life.items() if now_s - at_s < MEMBER_S and address not in self._own]
        silent = [a for a in self._names if a not in self._own and now_s - life.get(a, -math.inf) >= SILENT_S]
        return known, silent

    def peers(self, now_s: float) -> list[Peer]:
        """All configured addresses, in the order of the configuration."""
        machines = {address: machine for machine in self._members if (address := self.address_of(machine)) is not None}
        machines |= {address: bound.machine for address, bound in self._bound.items()}
        return [self._peer(address, name, machines.get(address), now_s) for address, name in self._names.items()]

    def _peer(self, address: Address, name: str, machine: MachineId | None, now_s: float) -> Peer:
        blank = Peer(address, name, address in self._own, None, None, None, ())
        if machine is None:
            return replace(blank, machine=self._me) if blank.own else blank
        bound = self._bound.get(address)
        member = self._members.get(machine)
        keys = () if member is None else tuple(sorted(member.keys))
        return replace(
            blank,
            machine=machine,
            hostname=self.hostname(machine),
            silent_s=None if bound is None else max(0.0, now_s - bound.heard_s),
            keys=keys,
        )
