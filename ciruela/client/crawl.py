"""Finds the servers of a cluster over their connections: all of them, each visited once, or some that have an image.

Entry points lead to servers, and these name others. Names are resolved in ``contacts``, entry points reached in ``entrance``; which of the
servers that are told of are one, and which count, is decided in ``servers``.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import field

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore
from twisted.internet.task import deferLater

from ciruela.client.contacts import AT_ONCE, MAX_CANDIDATES, ClosableLink, ClusterAddresses, OnlyAsks, RunContext, each, nameable
from ciruela.client.entrance import Entrance, together
from ciruela.client.servers import MetServer, ServerRow, Servers, ServersTold, address_of
from ciruela.client.uploadrun import ANSWER_TIMEOUT_S
from ciruela.interfaces import Address
from ciruela.model.errors import Busy, CiruelaError, NoImages, RemoteError
from ciruela.model.ids import MachineId
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath
from ciruela.proto.messages import GetPathState, PathStateData, Request, Response
from ciruela.proto.table import deadly, no_images_at
from ciruela.runtime import within

BUSY_S = 0.25
BUSY_TRIES = 60
"""A server that is asked too fast is asked again so often, so many seconds later."""


def spare(bulk: bool, vpath: VPath, name: str = "it") -> None:
    """Raises NoImages for a server of the first implementation and a path with one component: it dies of it (protocol section 11)."""
    if not bulk and not vpath.level:  # guard: I8
        raise NoImages(no_images_at(vpath, name))


async def answer_of(
    link: ClosableLink,
    request: Request,
    world: RunContext,
    timeout_s: float = ANSWER_TIMEOUT_S,
    busy_s: float = BUSY_S,
    busy_tries: int = BUSY_TRIES,
) -> Response:
    """Asks one server, again while it is asked too fast; not at all where it would die of the question, see :func:`spare`.

    Raises CiruelaError: NoAnswer where ``timeout_s`` pass without an answer.
    """
    if (path := deadly(request)) is not None:
        spare(link.bulk, VPath.parse(path))
    for _ in range(busy_tries):
        try:
            return await within(link.ask(request), timeout_s, world.clock)
        except Busy:
            await deferLater(world.clock, busy_s)
    raise Busy("it serves too many others")


MOST_ANSWERS = 3
"""Servers whose word on a path is heard: as many as an upload connects to. They may differ while something is on its way."""

MOST_ASKED = 30
"""Servers that are asked, and names that are tried, for an image at a path, when those that answer have none."""

Look = Callable[[Address, str], Awaitable[Iterable[str]]]
"""Asks the server at an address, by its label, what it has. Gives the names of others. Raises nothing but what ends a search."""


@dataclass(eq=False, slots=True)
class ServerSearch:
    """Asks servers of one cluster until enough of them have something: entry points in random order, then those that answers name.

    ``places`` has the entry points, resolved. ``lost`` is told which name leads nowhere, and why. At most ``most`` are asked, and as many
    names tried. ``asked`` are the addresses that were asked, ``led`` those to which names led, with the names.
    """

    places: ClusterAddresses
    rng: random.Random
    look: Look
    lost: Callable[[str, str], None]
    most: int = MOST_ASKED
    asked: set[Address] = field(init=False, default_factory=set)
    led: dict[Address, str] = field(init=False, default_factory=dict)
    _untried: dict[str, None] = field(init=False, default_factory=dict)
    _tried: set[str] = field(init=False, default_factory=set)
    _waiting: list[Address] = field(init=False, default_factory=list)

    async def run(self, found: Callable[[], int], want: int, names_at_once: int | None = None) -> None:
        """Asks as many side by side as are missing from ``found`` to ``want``, until none is, or nobody is left.

        Names are resolved as they come. With ``names_at_once`` so many are, when nobody else is left; once something was found no more than
        are missing, and if these lead nowhere, that is all.
        """
        self._waiting = self.rng.sample(list(self.places.known), len(self.places.known))
        while (missing := want - found()) > 0 and len(self.asked) < self.most:
            if not self._waiting:
                named = await self._follow(missing if found() else names_at_once)
                if not named or (found() and not self._waiting):
                    return
                continue
            now, self._waiting = self._waiting[:missing], self._waiting[missing:]
            self.asked.update(now)
            for names in await each(now, self._ask):
                self._untried.update(dict.fromkeys(name for name in names if nameable(name) and name not in self._tried))
            if names_at_once is None:
                await self._follow(None)

    def _ask(self, address: Address) -> Awaitable[Iterable[str]]:
        return self.look(address, self.places.known.get(address) or self.led[address])

    async def _follow(self, most: int | None) -> int:
        """Resolve some of the names that were not tried yet: their servers are asked next. Gives how many names that are."""
        left = self.most - len(self._tried)
        names = self.rng.sample(list(self._untried), min(left if most is None else most, left, len(self._untried)))
        self._tried.update(names)
        self._untried = {name: None for name in self._untried if name not in self._tried}
        for name, usable in zip(names, await each(names, self._led_to), strict=True):
            for address in usable[:1]:
                self.led.setdefault(address, name)
                if address not in self.asked and address not in self._waiting:
                    self._waiting.append(address)
        return len(names)

    async def _led_to(self, name: str) -> list[Address]:
        try:
            return await self.places.led_to(name)
        except CiruelaError as error:
            self.lost(name, str(error))
            return []


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
                if machine not in self.machines and name not in self._names and nameable(name)
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
