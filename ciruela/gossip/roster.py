"""Who is who: which configured address speaks for which machine, and which directories a machine takes (threats A33, A34, A37).

Only configured addresses have state here. What a node says itself (*direct*) stands above what others say of it (*hearsay*).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from ciruela.gossip.packets import Header, Member
from ciruela.gossip.watches import age_in_ms
from ciruela.gossip.window import Window
from ciruela.model.ids import MachineId
from ciruela.seams import Address

MEMBER_S = 300.0
"""A machine that gave no sign of life for so long is forgotten."""

SILENT_S = 30.0
"""An address without a sign of life for so long is probed; a machine heard less long ago is alive for the alarm about doubles."""


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
    window: Window = field(default_factory=Window)


@dataclass(slots=True)
class _Member:
    """One machine. ``keys`` is what counts; ``gathered`` are the parts of the newest stamp while some are still missing."""

    address: Address
    stamp: int
    born_s: float
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
        self._places: dict[MachineId, Address] = {}

    def configured(self, names: Mapping[Address, str]) -> None:
        """The addresses that may be spoken to, each with its name as written; what is known of all others is forgotten."""
        self._names = dict(names)
        self._by_text = {str(address): address for address in names}
        self._own &= names.keys()
        for address in [address for address in self._bound if address not in names]:
            del self._bound[address]
        self._members = {machine: member for machine, member in self._members.items() if member.address in names}
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
            self._own.add(source)
            return Admission(Refusal.OWN)
        self._own.discard(source)
        bound = self._bound.get(source)
        if bound is not None and (header.epoch < bound.epoch or (header.epoch == bound.epoch and header.sender != bound.machine)):
            return Admission(Refusal.REPLAYED)
        double, older = self._double(source, header, now_s)
        if older:
            return Admission(Refusal.SAME_MACHINE, double=double)
        new = bound is None or (bound.machine, bound.epoch) != (header.sender, header.epoch)
        if bound is None or new:
            if bound is not None:
                self._unbind(source, bound.machine)
            bound = self._bound[source] = _Bound(header.sender, header.epoch, now_s)
        if not bound.window.fresh(header.seq):
            return Admission(Refusal.REPLAYED)
        bound.heard_s = now_s
        self._places[header.sender] = source
        return Admission(None, new, double)

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
        if item.machine == self._me or item.age_ms >= MEMBER_S * 1000:
            return False
        if item.machine == sender:
            address: Address | None = source
        else:
            address = None if item.address is None else self._by_text.get(item.address)
            if address is None or address in self._own or self._taken(address, item.machine):
                return False
        assert address is not None
        known = self._members.get(item.machine)
        if known is not None and item.machine != sender and item.machine in self._places:
            address = self._places[item.machine]
        if known is not None and item.stamp < known.stamp:
            return False
        if known is None or item.stamp > known.stamp:
            born_s = now_s - item.age_ms / 1000
            keys = known.keys if known is not None else frozenset()
            self._members[item.machine] = known = _Member(address, item.stamp, born_s, item.parts, item.hostname, {}, keys)
        elif item.part in known.gathered or item.parts != known.parts:
            return False
        known.gathered[item.part] = item.keys
        gathered = frozenset(key for keys in known.gathered.values() for key in keys)
        known.keys = gathered if len(known.gathered) == known.parts else known.keys | gathered
        return True

    def _taken(self, address: Address, machine: MachineId) -> bool:
        """Whether ``address`` is known, from its own packets, to be another machine's."""
        bound = self._bound.get(address)
        return bound is not None and bound.machine != machine

    def expire(self, now_s: float) -> None:
        """Forget who gave no sign of life for :data:`MEMBER_S`."""
        for address, bound in list(self._bound.items()):
            if now_s - bound.heard_s >= MEMBER_S:
                del self._bound[address]
                self._unbind(address, bound.machine)
        for machine, member in list(self._members.items()):
            if machine not in self._places and now_s - member.born_s >= MEMBER_S:
                del self._members[machine]

    # -- asking ---------------------------------------------------------------------------------------------------------------

    def address_of(self, machine: MachineId) -> Address | None:
        """Where ``machine`` is reached; always a configured address."""
        place = self._places.get(machine)
        if place is None and machine in self._members:
            place = self._members[machine].address
        return place if place in self._names and place not in self._own else None

    def hostname(self, machine: MachineId) -> str | None:
        """The host name that ``machine`` gives itself, else the configured name of its address."""
        member = self._members.get(machine)
        if member is not None and member.hostname:
            return member.hostname
        address = self.address_of(machine)
        return None if address is None else self._names[address]

    def takers(self, key: str) -> dict[MachineId, Address]:
        """The other machines that take ``key``, with their addresses."""
        found = {}
        for machine, member in self._members.items():
            if key in member.keys and (address := self.address_of(machine)) is not None:
                found[machine] = address
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

    def _life_s(self) -> dict[Address, float]:
        """When each address last gave a sign of life, itself or through others."""
        life = {member.address: member.born_s for member in self._members.values()}
        for address, bound in self._bound.items():
            life[address] = max(bound.heard_s, life.get(address, bound.heard_s))
        return life

    def reachable(self, now_s: float) -> tuple[list[Address], list[Address]]:
        """The addresses of living machines; and the configured ones that should be probed: silent or never heard of."""
        life = self._life_s()
        known = [address for address, at_s in life.items() if now_s - at_s < MEMBER_S and address in self._names and address not in self._own]
        silent = [a for a in self._names if a not in self._own and now_s - life.get(a, -SILENT_S) >= SILENT_S]
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
