"""Members: the machine behind each configured address, and the directories that it takes (threats A33, A34, A37).

Only configured addresses have state here. What a node says itself (*direct*) stands above what others say of it (*hearsay*), and what it
says over a connection (*connected*), which cannot be forged by a datagram, above what came in datagrams.

A replay window of the sequence numbers of each sender refuses replays and doubles (threats A31).

Memory of each configured address: who was met there last, and what that one takes. It lasts while the address is configured.

What is merely not heard must not shrink a count of servers: so this memory has no time limit and survives restarts
(:meth:`MemberCache.rows`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import field, replace
from enum import Enum
from functools import lru_cache

from ciruela.interfaces import Address
from ciruela.membership.packets import MAX_PARTS, Header, MemberFact
from ciruela.membership.servers import ConfiguredPlace, SharedIds
from ciruela.membership.softstate import age_in_ms
from ciruela.model.ids import MachineId, machine_id
from ciruela.model.values import dataclass

MOST_ROWS = 20_000
"""Addresses of the last run that are taken in."""

MOST_KEYS_KEPT = 4096
"""Directories of one peer that are remembered."""

UNUSED_MS = 30 * 24 * 3600 * 1000
"""Time after which the memory of an address is dropped that no list names and that was not heard: 30 days."""

_UNKNOWN, _HEARD, _SURE = "?", "=", "!"


@dataclass(frozen=True, slots=True)
class KnownAddress:
    """One address. ``machine`` is None when nobody is known there, ``epoch`` 0 when only others told of the machine.

    ``keys``: the directories that it takes, None while it has not told all of them. ``sure``: it told them over a connection, which nobody
    else can forge; from then on datagrams add to them and take none away. ``heard_ms``: wall time of its last sign of life.
    """

    machine: MachineId | None
    epoch: int = 0
    hostname: str = ""
    keys: tuple[str, ...] | None = None
    sure: bool = False
    heard_ms: int = 0


class MemberCache:
    """Memory of all configured addresses."""

    def __init__(self) -> None:
        self._known: dict[Address, KnownAddress] = {}
        self._recalled: dict[str, KnownAddress] = {}

    def get(self, address: Address) -> KnownAddress | None:
        """Gives what is known of ``address``."""
        return self._known.get(address)

    def configured(self, addresses: Collection[Address]) -> None:
        """These are configured now: forget all others, and take over what the last run knew of new ones."""
        for address in [address for address in self._known if address not in addresses]:
            del self._known[address]
        for address in addresses:
            recalled = self._recalled.pop(str(address), None) if self._recalled else None
            if recalled is not None:
                self._known.setdefault(address, recalled)

    # -- hearing ----------------------------------------------------------------------------------------------------------------------

    def met(self, address: Address, machine: MachineId, epoch: int, heard_ms: int, *, connected: bool) -> None:
        """``machine`` gave a sign of life at ``address``. ``epoch`` is 0 when others told so."""
        old = self._known.get(address)
        if old is None:
            self._known[address] = KnownAddress(machine, epoch, heard_ms=heard_ms)
        elif old.machine == machine:
            if epoch and old.epoch and epoch != old.epoch:
                self._carry(machine, old.epoch, epoch)
            self._known[address] = replace(old, epoch=epoch or old.epoch, heard_ms=max(heard_ms, old.heard_ms))
        elif connected or not old.sure:
            self._known[address] = KnownAddress(machine, epoch, heard_ms=heard_ms)
        else:
            self._known[address] = replace(old, machine=machine, epoch=epoch, hostname="", heard_ms=heard_ms)

    def _carry(self, machine: MachineId, before: int, epoch: int) -> None:
        """Addresses that were one process before its restart are one after it, until one of them says something else."""
        for address, known in self._known.items():
            if known.machine == machine and known.epoch == before:
                self._known[address] = replace(known, epoch=epoch)

    def told(self, address: Address, hostname: str, keys: Collection[str] | None, *, connected: bool) -> None:
        """The machine at ``address`` has this name and takes ``keys``; None while it has not told all of them."""
        known = self._known[address]
        if keys is None:
            self._known[address] = replace(known, hostname=hostname)
            return
        if known.sure and not connected:  # guard: K1.1
            keys = {*(known.keys or ()), *keys}
        self._known[address] = replace(known, hostname=hostname, keys=tuple(sorted(keys)), sure=known.sure or connected)

    def vacate(self, address: Address) -> None:
        """Nobody knows any more who is at ``address``: it counts as a server that was never met."""
        if address in self._known:
            self._known[address] = KnownAddress(None, heard_ms=self._known[address].heard_ms)

    # -- over restarts ----------------------------------------------------------------------------------------------------------------

    def recall(self, rows: Mapping[str, Sequence[str]]) -> None:
        """Take in what the last run knew, by the texts of the addresses. A row that cannot be understood counts as absent."""
        for text, row in list(rows.items())[:MOST_ROWS]:
            known = _read(row)
            if known is not None:
                self._recalled[text] = known

    def rows(self, now_ms: int) -> dict[str, list[str]]:
        """Encodes what is known as texts, for :meth:`recall`: machine id, epoch, host name, wall time, a mark, and the directories."""
        kept = {text: known for text, known in self._recalled.items() if now_ms - known.heard_ms < UNUSED_MS}
        return {text: _row(known) for text, known in (kept | {str(address): known for address, known in self._known.items()}).items()}


def _row(known: KnownAddress) -> list[str]:
    mark = _UNKNOWN if known.keys is None else _SURE if known.sure else _HEARD
    machine = "" if known.machine is None else known.machine.hex()
    return [machine, str(known.epoch), known.hostname, str(known.heard_ms), mark, *(known.keys or ())[:MOST_KEYS_KEPT]]


def _read(row: Sequence[str]) -> KnownAddress | None:
    if len(row) < 5 or len(row) > 5 + MOST_KEYS_KEPT or row[4] not in (_UNKNOWN, _HEARD, _SURE):
        return None
    machine, epoch, hostname, heard_ms, mark = row[:5]
    numbers = all(text.isascii() and text.isdigit() and len(text) < 20 for text in (epoch, heard_ms))
    if len(machine) not in (0, 32) or not hostname.isprintable() or not numbers:
        return None
    try:
        identity = machine_id(bytes.fromhex(machine)) if machine else None
    except ValueError:
        return None
    keys = None if mark == _UNKNOWN else tuple(sorted(set(row[5:])))
    return KnownAddress(identity, int(epoch), hostname[:255], keys, mark == _SURE, int(heard_ms))


WINDOW = 1024
"""Numbers that a datagram may be late: a second of news at full speed."""


class ReplayWindow:
    """The last :data:`WINDOW` sequence numbers of one sender in one epoch."""

    __slots__ = ("_bits", "_newest")

    def __init__(self) -> None:
        self._newest = -1
        self._bits = 0

    def forged(self, seq: int) -> bool:
        """Tells whether ``seq``, which is certainly a number of now, is so far behind that a forged number must have come before it."""
        return self._newest - seq >= WINDOW

    def fresh(self, seq: int) -> bool:
        """Tells whether ``seq`` is seen for the first time; notes it. A number too old to tell is not fresh."""
        ahead = seq - self._newest
        if ahead > 0:
            self._bits = 1 if ahead >= WINDOW else ((self._bits << ahead) | 1) & ((1 << WINDOW) - 1)
            self._newest = seq
            return True
        # guard: A31, without 1; A31 F22, without 2
        if -ahead >= WINDOW or self._bits >> -ahead & 1:  # in this order: as a bit, a forged number far behind fills the memory
            return False
        self._bits |= 1 << -ahead
        return True


MEMBER_S = 300.0
"""A machine that gave no sign of life for so long is forgotten."""

SILENT_S = 30.0
"""An address without a sign of life for so long is probed; a machine heard less long ago is alive for the alarm about doubles."""

UNHEARD_S = 5.0
"""A configured address that was not heard by datagram for so long is spoken to over a connection.

With more than five addresses it is one second for each: two healthy nodes hear each other each ``n / 6`` seconds on average.
"""

AHEAD_MS = 5 * 60 * 1000
"""Epochs and stamps that are further ahead of the own wall clock are not believed from datagrams: they would outlive the truth."""

MOST_KEYS = 64
"""Directories for which it is remembered who takes them."""

_key_set = lru_cache(maxsize=256)(frozenset[str])
"""One object for all machines that take the same directories: in most clusters these are all."""


class PacketRefusal(Enum):
    """Reason why a packet was not listened to; the words are those of the counters."""

    UNKNOWN_SOURCE = "unknown_source"
    OWN = "own"
    REPLAYED = "replayed"
    SAME_MACHINE = "same_machine"
    AHEAD = "ahead"


@dataclass(frozen=True, slots=True)
class Admission:
    """Outcome of reading the header of a packet. ``double``: the other address that speaks for the same machine now.

    ``doubtful``: addresses where only a connection can tell who is there. ``earlier``: its epoch or number is older
    than the known one, but counts.
    """

    refusal: PacketRefusal | None
    new: bool = False
    double: Address | None = None
    doubtful: tuple[Address, ...] = ()
    earlier: bool = False


@dataclass(slots=True)
class _Bound:
    """The sender at one address. ``heard_s``: its last sign of life; ``udp_s``: the last datagram, None when there was none.

    ``connected``: it told its epoch over a connection. Datagrams with other epochs up to ``barred`` are not believed then: it had one that
    was later than the present one. ``skew_ms``: how far its clock is ahead of ours, as it told over a connection.
    """

    machine: MachineId
    epoch: int
    heard_s: float
    window: ReplayWindow
    udp_s: float | None = None
    connected: bool = False
    barred: int = 0
    skew_ms: int = field(init=False, default=0)


@dataclass(slots=True)
class _MemberRecord:
    """One machine. ``gathered``: the parts of the newest stamp. ``keys``: those, and until all are there also the keys of the stamp before.

    There is at most one for each configured address (``Members._at``), so nobody can fill the table with invented machines.
    """

    address: Address
    stamp: int
    born_s: float
    direct: bool
    parts: int
    hostname: str
    keys: frozenset[str]
    gathered: dict[int, tuple[str, ...]] = field(init=False, default_factory=dict)


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One configured address, for the status page. ``silent_s``: since its last sign of life, None when there was none since the start.

    ``udp_s``: the same for datagrams alone. ``reached``: "udp" or "tcp", None when it is not. ``known``: what is remembered of it.
    """

    address: Address
    name: str
    own: bool
    machine: MachineId | None
    hostname: str | None
    silent_s: float | None
    keys: tuple[str, ...]
    udp_s: float | None = None
    reached: str | None = None
    known: KnownAddress | None = None


class Members:
    """The configured addresses and what is known of the machines there."""

    def __init__(self, me: MachineId, epoch: int) -> None:
        self._me = me
        self._epoch = epoch
        self._names: dict[Address, str] = {}
        self._by_text: dict[str, Address] = {}
        self._own: set[Address] = set()
        self._bound: dict[Address, _Bound] = {}
        self._members: dict[MachineId, _MemberRecord] = {}
        self._at: dict[Address, MachineId] = {}
        self._places: dict[MachineId, Address] = {}
        self._takers: dict[str, dict[MachineId, Address]] = {}
        self._since: dict[Address, float] = {}
        self.memory = MemberCache()
        self.shared = SharedIds(me)

    def configured(self, names: Mapping[Address, str], now_s: float) -> None:
        """The addresses that may be spoken to, each with its name as written; what is known of all others is forgotten."""
        self._takers.clear()
        self._since = {address: self._since.get(address, now_s) for address in names}
        self.memory.configured(names.keys())
        self.shared.configured(names.keys())
        self._names = dict(names)
        self._by_text = {str(address): address for address in names}
        self._own &= names.keys()
        for address in [address for address in self._bound if address not in names]:
            del self._bound[address]
        for machine, member in list(self._members.items()):
            if member.address not in names:  # guard: A32 A37
                self._drop_member(machine)
        self._places = {machine: address for machine, address in self._places.items() if address in names}

    def remember(self) -> None:
        """Take over what was recalled of configured addresses."""
        self.memory.configured(self._names.keys())

    def is_configured(self, address: Address) -> bool:
        """Tells whether packets from ``address`` are listened to at all."""
        return address in self._names

    # -- hearing --------------------------------------------------------------------------------------------------------------

    def admit(self, source: Address, header: Header, now_s: float, now_ms: int, *, connected: bool = False) -> Admission:
        """Judges whether a packet with this header counts; binds its sender to ``source``.

        ``connected``: it came over a connection with the node that listens at ``source``.
        """
        if source not in self._names:  # guard: A30 A32 I12 F23
            return Admission(PacketRefusal.UNKNOWN_SOURCE)
        # One forged datagram with an epoch of the future would make every true one after it look old.
        if not connected and header.epoch > self.latest_ms(source, now_ms):  # guard: S4
            return Admission(PacketRefusal.AHEAD, doubtful=(source,))
        if header.sender == self._me:
            # Our machine id with another start: the disk of this server was cloned. With the same one we hear ourselves.
            if header.epoch != self._epoch:  # guard: A33 F24
                self.shared.note(self._me, {source: now_s})
                return Admission(PacketRefusal.SAME_MACHINE, double=source, doubtful=() if connected else (source,))
            self.shared.spoke(source, self._me, now_s)
            if source not in self._own:
                self._own.add(source)
                self._takers.clear()
            return Admission(PacketRefusal.OWN)
        if source in self._own:
            self._own.discard(source)
            self._takers.clear()
        bound = self._bound.get(source)
        if bound is not None and not connected and self._stale(bound, header):  # guard: A31 F22
            return Admission(PacketRefusal.REPLAYED, doubtful=(source,))
        window = self._window(source, header)
        behind = connected and window.forged(header.seq)  # guard: S4, -> False
        # A connection cannot be forged, so what put the window that far ahead was: it begins anew, or all true datagrams were replays.
        if behind:
            window = ReplayWindow()
        if not window.fresh(header.seq) and not connected:  # guard: A31 F22
            return Admission(PacketRefusal.REPLAYED)
        double, older = self._double(source, header, now_s, connected=connected)
        doubtful = () if double is None else tuple(address for address in (source, double) if not connected or address != source)
        if older is not None:  # guard: A33 F24
            if double is not None:
                self.shared.note(header.sender, {source: now_s, double: self._bound[double].heard_s})  # guard: K1.5
                self.memory.met(source, header.sender, header.epoch, now_ms, connected=connected)
            return Admission(PacketRefusal.SAME_MACHINE, double=double, doubtful=doubtful)
        self.shared.spoke(source, header.sender, now_s)
        new = bound is None or (bound.machine, bound.epoch) != (header.sender, header.epoch)
        earlier = behind or (bound is not None and bound.machine == header.sender and header.epoch < bound.epoch)
        if self.address_of(header.sender) != source:  # guard: F24
            self._takers.clear()
        if bound is not None:
            self._unbind(source, bound.machine)
        self._bound[source] = self._rebound(bound, header, window, now_s, connected=connected)
        self._places[header.sender] = source
        self.memory.met(source, header.sender, header.epoch, now_ms, connected=connected)
        return Admission(None, new, double, doubtful, earlier)

    @staticmethod
    def _stale(bound: _Bound, header: Header) -> bool:
        """Tells whether a datagram is of an earlier start than the one that is known, as far as that can be told without a connection."""
        if header.epoch == bound.epoch:
            return header.sender != bound.machine
        return header.epoch < bound.epoch or header.epoch <= bound.barred

    @staticmethod
    def _rebound(bound: _Bound | None, header: Header, window: ReplayWindow, now_s: float, *, connected: bool) -> _Bound:
        """The binding of an address after one more packet."""
        udp_s = now_s if not connected else None if bound is None else bound.udp_s
        if bound is None or (bound.machine, bound.epoch) != (header.sender, header.epoch):
            barred = 0 if bound is None else max(bound.barred, bound.epoch if connected else 0)
            return _Bound(header.sender, header.epoch, now_s, window, udp_s, connected, barred if barred > header.epoch else 0)
        return replace(bound, heard_s=now_s, window=window, udp_s=udp_s, connected=bound.connected or connected)

    def latest_ms(self, source: Address, now_ms: int) -> int:
        """The latest time of a clock that datagrams from ``source`` may tell."""
        bound = self._bound.get(source)
        return now_ms + AHEAD_MS + (0 if bound is None else max(0, bound.skew_ms))  # guard: S4, -> now_ms + AHEAD_MS

    def _window(self, source: Address, header: Header) -> ReplayWindow:
        """The numbers seen of this sender in this epoch, from whichever address: a replay with another source is a replay."""
        for address in (source, self._places.get(header.sender)):  # guard: A31 F22, -> (source,)
            bound = None if address is None else self._bound.get(address)
            if bound is not None and (bound.machine, bound.epoch) == (header.sender, header.epoch):
                return bound.window
        return ReplayWindow()

    def _double(self, source: Address, header: Header, now_s: float, *, connected: bool) -> tuple[Address | None, Address | None]:
        """The other address that speaks for the sender in another epoch, if it lives; and that address if it is the newer one.

        An epoch that was told over a connection ends one that only datagrams told: a datagram can be forged.
        """
        place = self._places.get(header.sender)
        other = None if place is None or place == source else self._bound.get(place)
        if place is None or other is None or other.machine != header.sender or other.epoch == header.epoch:
            return None, None
        bound = self._bound.get(source)
        proved = connected or (bound is not None and bound.connected and (bound.machine, bound.epoch) == (header.sender, header.epoch))
        alive = now_s - other.heard_s < SILENT_S  # guard: A33, -> False
        if header.epoch < other.epoch and proved and not other.connected:
            if alive:
                self.shared.note(header.sender, {source: now_s, place: other.heard_s})
            self._takers.clear()
            del self._bound[place]
            self._unbind(place, header.sender)
            return place if alive else None, None
        return place if alive else None, place if header.epoch < other.epoch else None

    def _unbind(self, address: Address, machine: MachineId) -> None:
        if self._places.get(machine) == address:
            del self._places[machine]

    def member(self, item: MemberFact, sender: MachineId, source: Address, now_s: float, now_ms: int, *, connected: bool = False) -> bool:
        """Note what ``sender`` at ``source`` said of a machine. True when it is newer than what was known, and so worth passing on."""
        direct = item.machine == sender
        proved = connected and direct
        born_s = now_s - item.age_ms / 1000
        if proved:
            self._bound[source].skew_ms = item.stamp + item.age_ms - now_ms
        if item.machine == self._me or now_s - born_s >= MEMBER_S:  # guard: A31 A34, without 2; A37 F24, without 1
            return False
        known = self._members.get(item.machine)
        if known is not None and item.stamp < known.stamp and not proved and not (direct and not known.direct):
            return False
        address = source if direct else self._place_for(item, born_s)
        if address is None:
            return False
        if known is None or item.stamp != known.stamp:
            if self._at.get(address) != item.machine:  # guard: F24
                self._takers.clear()
            self._drop_member(item.machine)
            self._drop_member(self._at.get(address))
            keys = known.keys if known is not None else frozenset()
            known = _MemberRecord(address, item.stamp, born_s, direct, item.parts, item.hostname, keys)
            self._members[item.machine] = known
            self._at[address] = item.machine
        elif item.part in known.gathered or item.parts != known.parts:
            if proved and len(known.gathered) == known.parts:
                self.memory.told(source, item.hostname, known.keys, connected=True)
            return False
        known.gathered[item.part] = item.keys
        gathered = _key_set(tuple(key for keys in known.gathered.values() for key in keys))
        keys = gathered if len(known.gathered) == known.parts else known.keys | gathered
        if keys != known.keys:  # guard: F24
            self._takers.clear()
        known.keys = keys
        if not direct:
            self.memory.met(address, item.machine, 0, now_ms - item.age_ms, connected=False)
        whole = len(known.gathered) == known.parts < MAX_PARTS
        self.memory.told(address, item.hostname, keys if whole else None, connected=proved)
        return True

    def _place_for(self, item: MemberFact, born_s: float) -> Address | None:
        """Gives the address at which hearsay puts a machine: only at a configured address for which nobody spoke more recently."""
        if item.machine in self._places:
            return self._places[item.machine]
        # guard: A32 A37 I12, (item.address) -> (item.address) or Address(item.address.rpartition(":")[0], 1)
        address = None if item.address is None else self._by_text.get(item.address)
        if address is None or address in self._own or address in self._bound:  # guard: A37 F24, -> address is None
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
        # guard: A34 F25, now_s - bound.heard_s >= MEMBER_S -> False
        silent = [(address, bound.machine) for address, bound in self._bound.items() if now_s - bound.heard_s >= MEMBER_S]
        for address, machine in silent:
            del self._bound[address]
            self._unbind(address, machine)
        old = [machine for machine, one in self._members.items() if machine not in self._places and now_s - one.born_s >= MEMBER_S]
        for machine in old:
            self._drop_member(machine)
        if silent or old:  # guard: F24
            self._takers.clear()
        for address in self.shared.expire(now_s):
            if address not in self._bound:
                self.memory.vacate(address)

    # -- asking ---------------------------------------------------------------------------------------------------------------

    def address_of(self, machine: MachineId) -> Address | None:
        """Gives the address at which ``machine`` is reached; always a configured address."""
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
            if len(self._takers) >= MOST_KEYS:  # guard: A34
                self._takers.clear()
            self._takers[key] = found
        return found

    def name(self, address: Address) -> str:
        """The configured text of ``address``; KeyError when it is not configured."""
        return self._names[address]

    def item(self, machine: MachineId, part: int, now_s: float) -> MemberFact | None:
        """One part of what is known of another machine, to be passed on; None when there is nothing or it is too old."""
        member = self._members.get(machine)
        if member is None or part not in member.gathered:
            return None
        age_ms = age_in_ms(now_s - member.born_s)
        address = self.address_of(machine)
        if age_ms >= MEMBER_S * 1000 or address is None:
            return None
        return MemberFact(machine, str(address), member.stamp, member.hostname, part, member.parts, member.gathered[part], age_ms)

    def clocks_ms(self, now_s: float) -> list[int]:
        """Gives the times of the wall clocks of other machines now, by their own word, in milliseconds."""
        return [member.stamp + round((now_s - member.born_s) * 1000) for member in self._members.values() if member.direct]

    def _life_s(self) -> dict[Address, float]:
        """Gives the time at which each address last gave a sign of life, itself or through others."""
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

    def udp_s(self, address: Address, now_s: float) -> float | None:
        """Seconds since the last datagram from ``address``; None when there was none."""
        bound = self._bound.get(address)
        return None if bound is None or bound.udp_s is None else max(0.0, now_s - bound.udp_s)

    @property
    def unheard_s(self) -> float:
        """Seconds after which an address counts as not heard by datagram."""
        return max(UNHEARD_S, float(len(self._names)))

    def unheard_for_s(self, address: Address, now_s: float) -> float:
        """For how many seconds no datagram came from ``address``; since it is configured, when none ever did."""
        udp_s = self.udp_s(address, now_s)
        return now_s - self._since.get(address, now_s) if udp_s is None else udp_s

    def unheard(self, now_s: float) -> list[Address]:
        """The other addresses from which no datagram came for :attr:`unheard_s`."""
        return [one for one in self._names if one not in self._own and self.unheard_for_s(one, now_s) >= self.unheard_s]

    def others(self) -> list[Address]:
        """The configured addresses that are not known to be our own."""
        return [address for address in self._names if address not in self._own]

    def is_own(self, address: Address) -> bool:
        """Tells whether we hear ourselves at ``address``."""
        return address in self._own

    def own(self) -> list[Address]:
        """The configured addresses at which we hear ourselves."""
        return [address for address in self._names if address in self._own]

    def machine_at(self, address: Address) -> MachineId | None:
        """The machine that speaks from ``address``."""
        bound = self._bound.get(address)
        return None if bound is None else bound.machine

    def known_machine(self, machine: MachineId) -> bool:
        """Tells whether ``machine`` was met at a configured address."""
        return machine in self._places or machine in self._members

    def places(self, now_s: float, now_ms: int) -> list[ConfiguredPlace]:
        """All configured addresses with what is known and remembered, for the rows of servers."""
        found = []
        for address, name in self._names.items():
            known = self.memory.get(address)
            if address in self._own or known is None or known.machine == self._me:  # guard: K1.1, without 3
                found.append(ConfiguredPlace(address, name, address in self._own))
                continue
            bound = self._bound.get(address)
            heard_ms = round((now_s - bound.heard_s) * 1000) if bound is not None else max(0, now_ms - known.heard_ms)
            apart = known.machine is not None and known.machine in self.shared
            found.append(
                ConfiguredPlace(
                    address,
                    name,
                    False,
                    known.machine,
                    known.epoch,
                    known.hostname,
                    known.keys,
                    max(0, heard_ms) if known.heard_ms else None,
                    apart,
                )
            )
        return found

    def peers(self, now_s: float) -> list[PeerStatus]:
        """All configured addresses, in the order of the configuration."""
        machines = {address: machine for machine in self._members if (address := self.address_of(machine)) is not None}
        machines |= {address: bound.machine for address, bound in self._bound.items()}
        return [self._peer(address, name, machines.get(address), now_s) for address, name in self._names.items()]

    def _peer(self, address: Address, name: str, machine: MachineId | None, now_s: float) -> PeerStatus:
        blank = PeerStatus(address, name, address in self._own, None, None, None, (), known=self.memory.get(address))
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
            udp_s=self.udp_s(address, now_s),
            reached=self._reached(address, now_s),
        )

    def _reached(self, address: Address, now_s: float) -> str | None:
        bound = self._bound.get(address)
        if bound is None or now_s - bound.heard_s >= 2 * SILENT_S:
            return None
        return "udp" if bound.udp_s is not None and now_s - bound.udp_s < max(SILENT_S, self.unheard_s) else "tcp"
