"""The servers that may take one path, and what each says: one row for each server, of which every count is made.

Nodes tell of each other (:class:`ServersTold`), and the client meets some of them (:class:`MetServer`). Rows of all tellers are one row
where the machine id is the same; a row without one is the server that is met, or that another teller names, at the same address. A server
counts until its own answer is that it does not take the directory, however long nobody has heard it. Pure: no connection, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace

from ciruela.client.text import interval
from ciruela.interfaces import Address
from ciruela.model.ids import MachineId, Server, SharedId
from ciruela.model.values import dataclass

SILENT_MS = 30_000
PAIR_MS = 3_500
"""A server that no node has heard for so long is silent; in large clusters for so long times the number of servers, divided by that of the
nodes that tell: each speaks to four others in a second, at random, so by chance that happens once in a million times."""

MOST_LOOSE = 10_000
"""Servers without a machine id that are kept apart; tellers may make them up (threats A29)."""

SHARED_REMEDY = "give each server a machine id of its own (/etc/machine-id, or --override-machine-id) and restart its daemon"


def address_of(text: str) -> Address | None:
    """The address that ``host:port`` or ``[IPv6]:port`` spells; None for what is none."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        return None
    try:
        return Address.of(host.removeprefix("[").removesuffix("]"), int(port))
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class MetServer:
    """A server that the client spoke to at ``address``. ``machine`` is None while it has not named itself, as the reference's do late.

    ``taken``: whether it takes the path, None while it has not said. ``epoch_ms``: wall time of its start, where it tells.
    """

    address: str
    machine: MachineId | None
    name: str = ""
    taken: bool | None = None
    epoch_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ServersTold:
    """Facts that the node at the address ``teller`` told of others."""

    teller: str
    servers: Sequence[Server]
    shared_ids: Sequence[SharedId] = ()


@dataclass(slots=True)
class ServerRow:
    """One server. ``tellers`` name it, ``vouchers`` are those of them that name its machine id.

    ``denied`` are the tellers that mean the server whose own answer was that it does not take the directory. ``heard_ms`` is the least of
    what connected tellers say, ``listened`` whether there are any; unheard for longer than ``patience_ms`` it is silent. ``spoke``: the
    client met it.
    """

    name: str
    machine: MachineId | None
    addresses: dict[str, None] = field(init=False, default_factory=dict)
    tellers: set[str] = field(init=False, default_factory=set)
    vouchers: set[str] = field(init=False, default_factory=set)
    denied: set[str] = field(init=False, default_factory=set)
    listened: bool = field(init=False, default=False)
    heard_ms: int | None = None
    configured: bool = field(init=False, default=False)
    spoke: bool = field(init=False, default=False)
    patience_ms: float = field(init=False, default=SILENT_MS)

    @property
    def hearsay(self) -> bool:
        """Tells whether one teller alone speaks of it. A server may make such rows up (threats A29)."""
        return not self.spoke and len(self.tellers) < 2

    @property
    def unvouched(self) -> bool:
        """Tells whether one teller alone, or none, says which machine it is: what is reported for that machine proves little."""
        return not self.spoke and len(self.vouchers) < 2

    @property
    def unproved(self) -> bool:
        """Tells whether some tellers know only where it is, and one alone says which machine is there."""
        return self.unvouched and self.tellers != self.vouchers

    @property
    def silent(self) -> bool:
        """Tells whether no node has heard it lately."""
        return self.heard_ms is None or self.heard_ms > self.patience_ms

    @property
    def silence(self) -> str:
        """For how long nobody heard it, in words; empty when somebody did lately, or nobody is there who could."""
        if not self.silent or not self.listened:
            return ""
        return "never heard" if self.heard_ms is None else f"not heard for {interval(self.heard_ms / 1000)}"

    def told(self) -> str:
        """Its name, and for how long nobody heard it, if so. Raw."""
        return f"{self.name} ({self.silence})" if self.silence else self.name

    def take(self, server: Server, teller: str, *, vouched: bool, fresh: bool) -> None:
        """Add what one teller says. ``fresh``: it is connected, so that what it hears counts."""
        self.tellers.add(teller)
        if vouched:
            self.vouchers.add(teller)
        self.addresses.update(dict.fromkeys(server.addresses))
        self.configured = self.configured or server.configured
        self.listened = self.listened or fresh
        if fresh and server.heard_ms is not None:
            self.heard_ms = server.heard_ms if self.heard_ms is None else min(self.heard_ms, server.heard_ms)


@dataclass(frozen=True, slots=True)
class View:
    """The rows. ``machines`` and ``loose`` (those without a machine id) are expected; ``strangers`` are to be asked by the client.

    A stranger speaks to a node without being in its configuration; it counts once it answers the client. ``bound`` are machines of which
    some tellers know only the address.
    """

    machines: Mapping[MachineId, ServerRow]
    loose: Sequence[ServerRow]
    strangers: Sequence[ServerRow]
    shared: Sequence[SharedId]
    bound: Sequence[ServerRow]

    def rows(self) -> Iterator[ServerRow]:
        """All that are expected."""
        yield from self.machines.values()
        yield from self.loose

    @property
    def doubles(self) -> int:
        """Servers that cannot be told from another one, because they share its machine id."""
        return sum(len(one.addresses) - 1 for one in self.shared)

    def complaint(self) -> str:
        """A sentence about machine ids that several servers share; empty where there are none."""
        return "; ".join(shared_text(one) for one in self.shared)


def shared_text(one: SharedId) -> str:
    """Says which addresses share a machine id, and what to do."""
    return f"{' and '.join(one.addresses)} have one machine id ({one.machine.hex()[:12]}...): {SHARED_REMEDY}"


class Servers:
    """Servers of one cluster for one path, of what was told. :meth:`view` is made anew only after something was told or met."""

    def __init__(self) -> None:
        self._tellings: dict[str, ServersTold] = {}
        self._met: dict[str, MetServer] = {}
        self._open: set[str] = set()
        self._spoken: dict[MachineId, tuple[str, set[str]]] = {}
        self._seen_shared: dict[MachineId, SharedId] = {}
        self._machines: dict[MachineId, ServerRow] = {}
        self._view: View | None = None
        self.merges = 0

    # -- what is told -------------------------------------------------------------------------------------------------------------

    @property
    def tellers(self) -> int:
        """Nodes that told of others, be it that there are none."""
        return len(self._tellings)

    def tells(self, teller: str) -> ServersTold | None:
        """Gives what the node at this address said last."""
        return self._tellings.get(teller)

    def tell(self, telling: ServersTold) -> None:
        """A node tells of others; what it said before no longer counts."""
        self._tellings[telling.teller] = telling
        self._view = None

    def open(self, address: str) -> None:
        """A connection to ``address`` is open: what the node there hears counts."""
        if address not in self._open:
            self._open.add(address)
            self._view = None

    def lost(self, address: str) -> None:
        """It ended."""
        if address in self._open:
            self._open.discard(address)
            self._view = None

    def meet(self, met: MetServer) -> None:
        """A server answers at an address. Two that name one machine id at the same time, with two starts, are two servers."""
        known = self._met.get(met.address)
        if known == met:
            return
        if known is not None and known.machine in (None, met.machine):
            met = MetServer(
                met.address,
                met.machine,
                met.name or known.name,
                known.taken if met.taken is None else met.taken,
                known.epoch_ms if met.epoch_ms is None else met.epoch_ms,
            )
            if met == known:
                return
        self._met[met.address] = met
        self._view = None
        if met.machine is None or met.epoch_ms is None:
            return
        others = [
            one.address
            for one in self._met.values()
            # guard: K1.5 I7, -> False
            if one.machine == met.machine and one.epoch_ms not in (None, met.epoch_ms) and one.address in self._open - {met.address}
        ]
        if others:
            self._seen_shared[met.machine] = SharedId(met.machine, tuple(sorted({met.address, *others})))

    def speak(self, via: str, machine: MachineId, name: str) -> bool:
        """The node at ``via`` reports something of a machine, maybe of itself. True when nobody there named that machine before."""
        _, tellers = self._spoken.setdefault(machine, (name, set()))
        if via in tellers:
            return False
        tellers.add(via)
        if self._view is not None:
            _spoken_of(self._machines, machine, name, (via,))
        return True

    # -- what follows -------------------------------------------------------------------------------------------------------------

    def view(self) -> View:
        """One row for each server."""
        if self._view is None:
            self._view = self._merged()
        return self._view

    def _merged(self) -> View:
        self.merges += 1
        met_at = {one.address: one.machine for one in self._met.values() if one.machine is not None}
        nameless = {one.address for one in self._met.values() if one.machine is None}
        denials = {one.address: one.machine for one in self._met.values() if one.taken is False}
        nameless_denials = {address for address, machine in denials.items() if machine is None}
        tellings = self._without_moved(met_at)
        told_at: dict[str, MachineId] = {}
        for telling in tellings:
            for server in telling.servers:
                if server.machine is not None:
                    for address in server.addresses:
                        told_at.setdefault(address, server.machine)
        machines: dict[MachineId, ServerRow] = {}
        loose: list[ServerRow] = []
        loose_at: dict[str, ServerRow] = {}
        for telling in tellings:
            fresh = telling.teller in self._open
            for server in telling.servers:
                if any(address in nameless_denials for address in server.addresses):
                    continue
                machine = self._who(server, met_at, told_at)
                if machine is not None:
                    row = machines.get(machine) or machines.setdefault(machine, ServerRow(server.name, machine))
                else:
                    if any(address in nameless for address in server.addresses):
                        continue
                    found = next((loose_at[address] for address in server.addresses if address in loose_at), None)
                    if found is None:
                        if len(loose) >= MOST_LOOSE:  # guard: A29
                            continue
                        found = ServerRow(server.name, None)
                        loose.append(found)
                    row = found
                    loose_at.update(dict.fromkeys(server.addresses, row))
                row.take(server, telling.teller, vouched=server.machine is not None and server.machine == machine, fresh=fresh)
                if machine is not None and (not server.addresses or any(denials.get(one) == machine for one in server.addresses)):
                    row.denied.add(telling.teller)
        for machine, (name, tellers) in self._spoken.items():
            _spoken_of(machines, machine, name, tellers)
        self._add_met(machines)
        strangers = [
            row for row in (*machines.values(), *loose) if not row.configured and not row.spoke and row.machine not in self._spoken
        ]
        apart = set(map(id, strangers))
        self._machines = {machine: row for machine, row in machines.items() if id(row) not in apart}
        patience_ms = max(SILENT_MS, PAIR_MS * (len(machines) + len(loose)) / max(1, len(self._open)))
        for row in (*machines.values(), *loose):
            row.patience_ms = patience_ms
        bound = tuple(row for row in self._machines.values() if row.unproved)
        return View(self._machines, tuple(row for row in loose if id(row) not in apart), tuple(strangers), self._shared(), bound)

    def _without_moved(self, met_at: Mapping[str, MachineId]) -> list[ServersTold]:
        """Gives what is told, without the machine ids that nodes remember at other addresses than those where the client met them.

        Who is at such an address now nobody knows; a node's own id at another address is always such a memory.
        """
        named = {address for telling in self._tellings.values() for server in telling.servers for address in server.addresses}
        places: dict[MachineId, set[str]] = {}
        for address, machine in met_at.items():
            if address in named:
                places.setdefault(machine, set()).add(address)
        shared = {one.machine for one in self._shared()}

        def moved(server: Server, teller: str) -> bool:
            machine = server.machine
            if machine is None or machine in shared or not server.addresses:
                return False
            # guard: K1.1 K1.5, -> False
            return met_at.get(teller) == machine or (machine in places and places[machine].isdisjoint(server.addresses))

        return [
            replace(one, servers=[replace(row, machine=None) if moved(row, one.teller) else row for row in one.servers])
            for one in self._tellings.values()
        ]

    def _add_met(self, machines: dict[MachineId, ServerRow]) -> None:
        """Those that the client met, without those that say that they do not take the directory.

        Such a word counts for the servers at the address that gave it: else one server could talk another one away by its machine id.
        """
        takes = {met.machine for met in self._met.values() if met.taken is not False}
        for met in self._met.values():
            if met.machine is None:
                continue
            row = machines.get(met.machine) or machines.setdefault(met.machine, ServerRow(met.name, met.machine))
            if met.machine not in takes and met.machine not in self._spoken and row.denied >= row.tellers:  # guard: A29 I7, without 3
                continue
            row.addresses[met.address] = None
            row.spoke = row.configured = True
            if met.address in self._open:
                row.heard_ms = 0
        for met in self._met.values():
            if met.machine is not None and met.machine not in takes and met.machine in machines and not machines[met.machine].spoke:
                machines.pop(met.machine)

    @staticmethod
    def _who(server: Server, met_at: Mapping[str, MachineId], told_at: Mapping[str, MachineId]) -> MachineId | None:
        """The machine of a row. What the client met at all its addresses stands above the word of others: a host may be set up anew."""
        here = [met_at[address] for address in server.addresses if address in met_at]
        if server.machine is None:
            return here[0] if here else next((told_at[address] for address in server.addresses if address in told_at), None)
        if here and len(here) == len(server.addresses) and server.machine not in here:
            return here[0]
        return server.machine

    def _shared(self) -> tuple[SharedId, ...]:
        found = dict(self._seen_shared)
        for telling in self._tellings.values():
            for one in telling.shared_ids:
                known = found.get(one.machine)
                addresses = one.addresses if known is None else (*known.addresses, *one.addresses)
                if len(set(addresses)) > 1:
                    found[one.machine] = SharedId(one.machine, tuple(sorted(set(addresses))))
        return tuple(found.values())


def _spoken_of(machines: dict[MachineId, ServerRow], machine: MachineId, name: str, tellers: Iterable[str]) -> None:
    row = machines.get(machine)
    if row is None:
        row = machines[machine] = ServerRow(name, machine, heard_ms=0)
    row.configured = True
    row.tellers.update(tellers)
    row.vouchers.update(tellers)
