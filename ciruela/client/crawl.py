"""Finds the servers of a cluster over their connections, and visits each once: those that are named, and those to which they lead.

Names are resolved in ``contacts``, entry points reached in ``entrance``; which of the servers that are told of are one, and which count, is
decided in ``servers``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.task import deferLater

from ciruela.client.contacts import AT_ONCE, MAX_CANDIDATES, OnlyAsks
from ciruela.client.entrance import Entrance, together
from ciruela.client.servers import MetServer, ServerRow, Servers, ServersTold, address_of
from ciruela.client.sync import ClosableLink, RunContext
from ciruela.client.uploadrun import ANSWER_TIMEOUT_S
from ciruela.interfaces import Address
from ciruela.model.errors import Busy, CiruelaError, RemoteError
from ciruela.model.ids import MachineId
from ciruela.proto.messages import GetPathState, PathStateData, Request, Response
from ciruela.runtime import within

BUSY_S = 0.25
BUSY_TRIES = 60
"""A server that is asked too fast is asked again so often, so many seconds later."""


async def answer_of(
    link: ClosableLink,
    request: Request,
    world: RunContext,
    timeout_s: float = ANSWER_TIMEOUT_S,
    busy_s: float = BUSY_S,
    busy_tries: int = BUSY_TRIES,
) -> Response:
    """Asks one server, again while it is asked too fast. Raises CiruelaError: NoAnswer where ``timeout_s`` pass without an answer."""
    for _ in range(busy_tries):
        try:
            return await within(link.ask(request), timeout_s, world.clock)
        except Busy:
            await deferLater(world.clock, busy_s)
    raise Busy("it serves too many others")


@dataclass(frozen=True, slots=True)
class MissingServer:
    """Names one server, or entry point, that could not be asked, with why. ``machine`` and ``addresses`` as far as others tell them."""

    name: str
    why: str
    machine: MachineId | None = None
    addresses: tuple[str, ...] = ()


Visit = Callable[[ClosableLink, Address, str], Awaitable[None]]
"""Asks one server: over its connection, at its address, by its label."""


class ServerCrawl:
    """Visits each server of one cluster once: those that are named, and those to which they lead.

    A visit adds to ``machines`` the server that answered, and to ``hosts`` the names that it gave of others; :meth:`told` asks it for more.
    ``servers`` has, for each of ``paths``, what was told. ``untold``: addresses of servers that answered, and then did not tell which
    others they know, with why. ``missing`` gets each server once that could not be asked.
    """

    def __init__(
        self,
        entrance: Entrance,
        world: RunContext,
        paths: Sequence[str],
        timeout_s: float,
        visit: Visit,
        missing: Callable[[MissingServer], None],
    ) -> None:
        self.machines: set[MachineId] = set()
        self.hosts: dict[MachineId, str] = {}
        self.untold: dict[str, str] = {}
        self.servers = [Servers() for _ in paths]
        self._entrance = entrance
        self._world = world
        self._paths = tuple(paths)
        self._visit = visit
        self._missing = missing
        self._slots = DeferredSemaphore(AT_ONCE)
        self._until_s = world.clock.seconds() + timeout_s
        self._addresses: set[Address] = set()
        self._names: set[str] = set()
        self._missed: dict[MachineId, MissingServer] = {}
        self._lost: dict[str, str] = {}
        self._booked: set[str] = set()

    async def run(self) -> None:
        """Visit all that were not visited yet. Cancel to stop."""
        await together([self._named(name) for name in self._entrance.names])
        while True:
            names = {
                name: machine
                for machine, name in self.hosts.items()
                if machine not in self.machines and name not in self._names and name and name.isprintable()
            }
            rows = [row for row in self._rows(strangers=True) if row.machine not in self.machines and not self._tried(row)]
            room = MAX_CANDIDATES - len(self._names) - len(self._addresses)
            if not (names or rows) or room <= 0:
                break
            await together([self._heard(name, machine) for name, machine in list(names.items())[:room]])
            await together([self._at_row(row) for row in rows[:room]])
        self._book_missing()

    # -- the entry points -----------------------------------------------------------------------------------------------------------

    async def at_entry(self, address: Address) -> None:
        """Visit an entry point; its connection stays open."""
        label = self._entrance.label(address)
        if why := await self._at(address, label, lambda: Deferred.fromCoroutine(self._entrance.open(address))):
            self._missing(MissingServer(label, why, None, (str(address),)))
            self.book(address)

    def book(self, address: Address) -> None:
        """Counts the server at an address as asked, although it did not say which machine it is."""
        self._booked.add(str(address))

    async def _named(self, name: str) -> None:
        self._names.add(name)
        addresses = await self._entrance.places.of(name)
        if not addresses:
            self._missing(MissingServer(name, self._entrance.problems[name]))
        await together([self.at_entry(address) for address in addresses])

    # -- the others -----------------------------------------------------------------------------------------------------------------

    async def told(self, link: ClosableLink, address: Address) -> list[PathStateData]:
        """Asks what a server says of each path, and which others it knows. An older one does not tell: then names have to do."""
        if not link.bulk:
            return []
        where = str(address)
        found: list[PathStateData] = []
        for path, servers in zip(self._paths, self.servers, strict=True):
            try:
                answer = await answer_of(link, GetPathState(path, servers=True), self._world)
            except CiruelaError as error:
                if isinstance(error, Busy) or not isinstance(error, RemoteError):
                    self.untold[where] = str(error)
                break
            if isinstance(answer, PathStateData):
                servers.open(where)
                servers.tell(ServersTold(where, answer.servers, answer.shared_ids))
                servers.meet(MetServer(where, answer.machine, answer.hostname, answer.taken, answer.epoch_ms))
                found.append(answer)
        return found

    async def told_at_entry(self, address: Address) -> None:
        """Asks an entry point that was visited which other servers it knows."""
        try:
            await self.told(await self._entrance.open(address), address)
        except CiruelaError as error:
            self.untold[str(address)] = str(error)

    def _rows(self, *, strangers: bool = False) -> list[ServerRow]:
        """The servers that were told of, each once, with ``strangers`` also those that are only expected once they answer."""
        rows: dict[object, ServerRow] = {}
        for servers in self.servers:
            view = servers.view()
            for row in (*view.rows(), *(view.strangers if strangers else ())):
                rows.setdefault(row.machine or tuple(row.addresses), row)
        return list(rows.values())

    async def _at(self, address: Address, label: str, opened: Callable[[], Deferred[ClosableLink]], *, close: bool = False) -> str:
        """Visit the server at an address, once. Gives why it cannot be asked, if so."""
        if address in self._addresses:
            return ""
        self._addresses.add(address)
        await self._slots.acquire()
        try:
            if self._world.clock.seconds() >= self._until_s:
                return "out of time"
            try:
                link = await opened()
            except CiruelaError as error:
                return str(error)
            try:
                await self._visit(link, address, label)
            finally:
                if close:
                    link.close()
        except CancelledError:
            self._addresses.discard(address)
            raise
        finally:
            self._slots.release()
        return ""

    async def _elsewhere(self, address: Address, label: str) -> str:
        return await self._at(address, label, lambda: self._world.connect(address, OnlyAsks()), close=True)

    async def _heard(self, name: str, machine: MachineId) -> None:
        """Visit another server by the name that an answer gave it."""
        self._names.add(name)
        try:
            usable = await self._entrance.places.led_to(name)
        except CiruelaError as error:
            self._missed[machine] = MissingServer(name, str(error), machine)
            return
        if usable and (why := await self._elsewhere(usable[0], name)):
            self._missed[machine] = MissingServer(name, why, machine, (str(usable[0]),))

    def _usable(self, row: ServerRow) -> list[Address]:
        known = [address for text in row.addresses if (address := address_of(text)) is not None]
        return [address for address in known if self._entrance.places.allowed(address)]  # guard: A29, -> known

    def _tried(self, row: ServerRow) -> bool:
        return all(address in self._addresses for address in self._usable(row))

    async def _at_row(self, row: ServerRow) -> None:
        """Visit a server at the addresses by which others know it, until it answers."""
        for address in self._usable(row):
            if row.machine in self.machines:
                return
            if address not in self._addresses and (why := await self._elsewhere(address, row.name)):
                self._lost[str(address)] = why

    def _book_missing(self) -> None:
        """Those that did not answer anywhere are expected all the same."""
        for machine, one in self._missed.items():
            if machine not in self.machines:
                self._missing(one)
        for row in self._rows():
            if row.machine not in (*self.machines, *self._missed) and self._booked.isdisjoint(row.addresses):
                whys = [self._lost[text] for text in row.addresses if text in self._lost]
                self._missing(MissingServer(row.name, (whys or [row.told()])[0], row.machine, tuple(row.addresses)))
