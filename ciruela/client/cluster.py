"""The public way to ask every server of a cluster: one row for each, with its answer, or why there is none.

Servers are found, and asked, over their connections (``crawl``) or by their pages (``survey``).
"""

from __future__ import annotations

import random
import re
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.threads import deferToThreadPool

from ciruela.client.contacts import ClosableLink, RunContext, each
from ciruela.client.context import over_reactor, real_names
from ciruela.client.crawl import MissingServer, ServerCrawl, answer_of
from ciruela.client.entrance import Entrance
from ciruela.client.options.signing import ClusterNames
from ciruela.client.schema import machine_of
from ciruela.client.survey import PageReader, Reader, Survey, SurveyedNode
from ciruela.interfaces import DEFAULT_PORT, Address
from ciruela.model.errors import CiruelaError, RemoteError
from ciruela.model.ids import MachineId
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath
from ciruela.proto.messages import PathStateData, Request, Response

QUERY_S = 60.0
"""Servers that have no turn by then are not asked any more."""

T = TypeVar("T")

Question = Callable[[ClosableLink, PathStateData | None, str], Awaitable[T]]
"""Asks one server, which told what is at the path, or did not, and why not. Raises CiruelaError."""


@dataclass(frozen=True, slots=True)
class ServerAnswer(Generic[T]):
    """One server of a cluster with its answer; where there is none, ``answer`` is None, and ``problem`` says why.

    ``name`` is what the server calls itself, or what others call it; ``address`` is ``host:port``, empty where nobody knows it. ``machine``
    is its machine id, None where nobody knows it.
    """

    name: str
    address: str
    machine: MachineId | None
    answer: T | None
    problem: str = ""


def _in_thread(reactor: Any) -> Callable[..., Deferred[Any]]:
    return partial(deferToThreadPool, reactor, reactor.getThreadPool())


class ClusterClient:
    """Asks every server of one cluster; an asynchronous context manager, whose end closes the connections.

    ``names`` are entry points: ``host``, ``host:port`` or ``[IPv6]:port``. Each query finds all servers to which they lead, and
    asks them: 16 at a time, each over one connection; those to the entry points stay open. A query never fails because of a server: it
    gives one :class:`ServerAnswer` for each, in the order of their names, and one for each name that leads nowhere. Queries of one client
    have their turns one after the other.

    ``complaint``, after a query, is a sentence about servers that share a machine id, so that they cannot be told apart; else empty.
    """

    def __init__(
        self,
        reactor: Any,
        *names: str,
        port: int = DEFAULT_PORT,
        timeout_s: float = QUERY_S,
        network: RunContext | None = None,
        pages: Reader | None = None,
    ) -> None:
        """``port`` is that of names without one; a query takes little longer than ``timeout_s``.

        ``network`` and ``pages`` are for tests: they take the place of real connections, names and pages.
        """
        if not names:
            raise ValueError("a cluster needs at least one entry point")
        self._cluster = ClusterNames(names)
        rng = random.Random()  # noqa: S311  it chooses whom to ask, and guards nothing
        self._world = network or over_reactor(reactor, rng, real_names(port, _in_thread(reactor)))
        self._timeout_s = timeout_s
        self._entrance = Entrance(names, self._world, timeout_s)
        self._pages = pages or PageReader(reactor, _in_thread(reactor))
        self._turn = DeferredLock()
        self.complaint = ""

    async def __aenter__(self) -> ClusterClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the connections."""
        self._entrance.close()

    # -- queries --------------------------------------------------------------------------------------------------------------------

    async def servers(self, path: str) -> list[ServerAnswer[bool]]:
        """Asks whether images at ``path`` may be on a server: its directory and its number of levels fit.

        A server that nobody can ask is there as well, unless it is known not to take the directory. Raises ValueError for a bad path.
        """
        rows = await self._path_states(path)
        return [
            ServerAnswer(row.name, row.address, row.machine, None if row.answer is None else row.answer.taken, row.problem) for row in rows
        ]

    async def path_states(self, path: str) -> list[ServerAnswer[PathStateData]]:
        """Asks which image is at ``path``, which is on its way, and which was refused last.

        Servers that do not take the path are left out. Raises ValueError for a bad path.
        """
        return [row for row in await self._path_states(path) if row.answer is None or row.answer.taken]

    async def ask(self, request: Request, path: str | None = None) -> list[ServerAnswer[Response]]:
        """Asks anything. ``path`` leads to the servers; without it the path in ``request`` does.

        Raises ValueError where there is none. A server of the first implementation dies of the index of a path with one component
        (protocol section 11): it is not asked.
        """
        where = getattr(request, "path", None) if path is None else path
        if where is None:
            raise ValueError(f"{type(request).__name__} has no path: say which path leads to the servers")

        async def question(link: ClosableLink, _told: PathStateData | None, _untold: str) -> Response:
            return await answer_of(link, request, self._world)

        return await self._everywhere(where, question)

    async def pages(self, page: str) -> list[ServerAnswer[Any]]:
        """Reads a page of JSON, ``/api/v1/status`` for one, of each server. They are found by their pages, not over connections.

        Raises ValueError for what is no path of a page, percent-encoded.
        """
        if not re.fullmatch(r"/[!-~]*", page):
            raise ValueError(f"{page[:80]!r} is not the path of a page: it begins with a slash, and is percent-encoded")
        return await self._turn.run(lambda: Deferred.fromCoroutine(self._pages_of_all(page)))

    async def _pages_of_all(self, page: str) -> list[ServerAnswer[Any]]:
        survey = Survey(self._pages, self._world.resolve, self._world.clock, lambda: int(self._world.clock.seconds() * 1000))
        found = await survey.look_around(self._cluster)

        async def read(node: SurveyedNode) -> ServerAnswer[Any]:
            answer, problem = None, node.problem
            if node.identity is not None:
                try:
                    answer = await survey.page(node, page)
                except CiruelaError as error:
                    problem = str(error)
            return ServerAnswer(node.name, str(node.address), machine_of(node.machine), answer, problem)

        self.complaint = found.servers().view().complaint()
        told = {node.problem for node in found.nodes}
        lost: list[ServerAnswer[Any]] = [
            ServerAnswer(name, "", None, None, problem) for name, problem in found.names.items() if problem not in told
        ]
        return sorted([*await each(found.nodes, read), *lost], key=lambda row: (row.name, row.address))

    async def _path_states(self, path: str) -> list[ServerAnswer[PathStateData]]:
        async def question(_link: ClosableLink, told: PathStateData | None, untold: str) -> PathStateData:
            if told is None:
                raise RemoteError(untold)
            return told

        return await self._everywhere(path, question)

    async def _everywhere(self, path: str, question: Question[T]) -> list[ServerAnswer[T]]:
        """Ask each server a ``question``."""
        VPath.parse(path)
        return await self._turn.run(lambda: Deferred.fromCoroutine(self._visit_all(path, question)))

    async def _visit_all(self, path: str, question: Question[T]) -> list[ServerAnswer[T]]:
        rows: list[ServerAnswer[T]] = []

        async def visit(link: ClosableLink, address: Address, label: str) -> None:
            told = next(iter(await crawl.told(link, address)), None)
            if told is not None and told.machine in crawl.machines:
                return  # at another of its addresses
            machine, name = (None, label) if told is None else (told.machine, told.hostname or label)
            if machine is None:
                crawl.book(address)
            else:
                crawl.machines.add(machine)
            untold = crawl.untold.get(str(address), "it does not tell, as older servers do not")
            try:
                rows.append(ServerAnswer(name, str(address), machine, await question(link, told, untold)))
            except CiruelaError as error:
                rows.append(ServerAnswer(name, str(address), machine, None, str(error)))

        def missing(one: MissingServer) -> None:
            rows.append(ServerAnswer(one.name, (one.addresses or ("",))[0], one.machine, None, one.why))

        crawl = ServerCrawl(self._entrance, self._world, (path,), self._timeout_s, visit, missing)
        await crawl.run()
        self.complaint = crawl.servers[0].view().complaint()
        return sorted(rows, key=lambda row: (row.name, row.address))
