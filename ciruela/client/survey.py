"""Survey of a cluster: its nodes, and what each says, asked of every node itself over its pages.

Entry points lead to nodes, and these name their peers. Which of them are one server, and which count, is decided in ``servers``. What a
page names is contacted only where ``contacts.reachable_from`` allows it (threats A29).

A page is read with one GET, a bounded body, a deadline, nothing followed, nothing unpacked (threats A29).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import quote

from twisted.internet import protocol
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from ciruela.client import schema
from ciruela.client.contacts import ClusterAddresses, Resolve, each
from ciruela.client.context import AppContext, real_names
from ciruela.client.errors import CommandError
from ciruela.client.options.common import Common
from ciruela.client.options.signing import ClusterNames
from ciruela.client.schema import At, Dir, ImageVersion, Neighbour, NodeIdentity
from ciruela.client.servers import MetServer, ServerRow, Servers, ServersTold, address_of
from ciruela.client.tracker import EXIT_NETWORK
from ciruela.interfaces import Address, InThread, NowMs
from ciruela.model.errors import CiruelaError, LinkLost, RemoteError
from ciruela.model.ids import SharedId
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath

MOST_BYTES = 16 * 1024 * 1024
"""Longest page that is read: 5,000 versions with their signatures are some 3 MiB."""

CONNECT_S = 3.0
PAGE_S = 15.0
"""Time that a page may take, all in all."""


class NoPage(RemoteError):
    """The node answered, and has no such page."""


class PageReader:
    """Reads pages of nodes. JSON is taken apart in a thread."""

    def __init__(self, reactor: Any, in_thread: InThread) -> None:
        self._reactor = reactor
        self._in_thread = in_thread
        # Not treq: it always unpacks gzip, each part that comes as a whole. 64 KiB from the network were seen to become one part of 67 MB,
        # and 129 MiB of memory, before MOST_BYTES could be looked at. Nor can what collects its body be cancelled, so that the connection
        # stays when PAGE_S are over. (An endpoint factory and a Host header would mend that it refuses IPv6 addresses.)
        self._agent = Agent(reactor, connectTimeout=CONNECT_S, pool=HTTPConnectionPool(reactor, persistent=False))

    def get(self, address: Address, page: str, patience_s: float = PAGE_S) -> Deferred[Any]:
        """The JSON of ``page`` (percent-encoded, with its slash) of the node at ``address``.

        Fails with LinkLost when nobody answers in time, NoPage for 404, RemoteError for what is no page.
        """
        url = f"http://{address}{page}".encode("ascii")
        asked: Deferred[Any] = Deferred.fromCoroutine(self._get(url))
        asked.addTimeout(patience_s, self._reactor)
        return asked.addErrback(_in_words, address)

    async def _get(self, url: bytes) -> Any:
        headers = Headers({b"User-Agent": [b"ciruela"], b"Accept": [b"application/json"]})
        response = await self._agent.request(b"GET", url, headers)
        body = await _body(response)
        if response.code == 404:
            raise NoPage("it has no such page")
        if response.code != 200:
            raise RemoteError(f"its page answers HTTP {response.code}")
        return await self._in_thread(_parsed, body)


def _parsed(body: bytes) -> Any:
    """In a thread. Raises RemoteError."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # guard: A29, -> ValueError
        raise RemoteError("its page is not JSON: is it a node of ciruela?") from None


def _body(response: IResponse) -> Deferred[bytes]:
    body = _PageBody()
    response.deliverBody(body)
    return body.done


class _PageBody(protocol.Protocol):
    """Collects a body of at most MOST_BYTES."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._bytes = 0
        self.done: Deferred[bytes] = Deferred(lambda _: self._leave())

    def _leave(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Twisted: a part of the body."""
        self._bytes += len(data)
        if self._bytes > MOST_BYTES:  # guard: A29
            self._parts.clear()
            self._leave()
            if not self.done.called:
                self.done.errback(RemoteError(f"its page is longer than {MOST_BYTES // 1024 // 1024} MiB"))
            return
        self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        """Twisted: the body is at its end, or the connection is."""
        if self.done.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(b"".join(self._parts))
        else:
            self.done.errback(LinkLost("the connection ended in the middle of a page"))


def _in_words(failure: Failure, address: Address) -> Any:
    if failure.check(RemoteError, LinkLost):
        return failure
    if failure.check(DeferredTimeout):
        raise LinkLost(f"no answer from {address} within {PAGE_S:g} s")
    if failure.check(CancelledError):
        return failure
    if failure.check(ResponseNeverReceived, ResponseFailed, ConnectionDone):
        raise LinkLost(f"{address} ended the connection without an answer")
    if failure.check(Refused):
        raise LinkLost(f"connection refused by {address}")
    if failure.check(ConnectTimeout):
        raise LinkLost(f"no answer from {address} within {CONNECT_S:g} s")
    failure.trap(ConnectError, OSError)
    raise LinkLost(f"cannot connect to {address}: {failure.getErrorMessage()}")


MOST_NODES = 1000
"""Nodes that one cluster may bring up (threats A29)."""


class Reader(Protocol):
    """Reads pages: :class:`PageReader`, or a double."""

    def get(self, address: Address, page: str, patience_s: float = PAGE_S) -> Deferred[Any]:
        """As :meth:`PageReader.get`."""


@dataclass(frozen=True, slots=True)
class SurveyedNode:
    """One node. Without ``identity`` it did not answer, and ``problem`` says why; ``address`` is where it was asked.

    ``skew_ms``: how far its clock is ahead of ours, give or take ``doubt_ms``. ``dirs``: what others say it takes, None if nobody does.
    """

    name: str
    address: Address
    machine: str | None
    identity: NodeIdentity | None
    neighbours: tuple[Neighbour, ...] = ()
    problem: str = ""
    skew_ms: int | None = None
    doubt_ms: int = 0
    dirs: tuple[str, ...] | None = None
    shared_ids: tuple[SharedId, ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterView:
    """A cluster: its nodes, those that answered first, and what is wrong with the entry points, as sentences by name."""

    nodes: tuple[SurveyedNode, ...]
    names: Mapping[str, str]

    @property
    def answering(self) -> tuple[SurveyedNode, ...]:
        """The nodes that answered."""
        return tuple(node for node in self.nodes if node.identity is not None)

    def servers(self, key: str | None = None) -> Servers:
        """The servers that may take the directory ``key``, by the word of every node that answered; without it all servers."""
        return _servers(self.answering, key)


@dataclass(frozen=True, slots=True)
class Survey:
    """Asks the nodes of one cluster."""

    reader: Reader
    resolve: Resolve
    clock: IReactorTime
    now_ms: NowMs

    # -- who is there -------------------------------------------------------------------------------------------------------------

    async def find(self, cluster: ClusterNames) -> ClusterView:
        """Every node that the entry points and the nodes themselves lead to. Raises Ends when none of them answers."""
        found = await self.look_around(cluster)
        if not found.answering:
            why = "; ".join(dict.fromkeys(found.names.values())) or "no address"
            raise CommandError(EXIT_NETWORK, f"no node of {cluster.label} answered: {why}")
        return found

    async def look_around(self, cluster: ClusterNames) -> ClusterView:
        """Finds every node that the entry points and the nodes themselves lead to, be it that none of them answers."""
        places = ClusterAddresses(cluster.names, self.resolve, self.clock)
        entries = await places.entries()
        names = places.unresolved()
        asked: dict[Address, SurveyedNode] = {}
        told: dict[Address, list[Neighbour]] = {}
        told_at: dict[str | None, set[Address]] = {}
        wave = [Neighbour(address, None, _label(entries, address), None, None) for address in places.known]
        while wave:
            met = await each(wave, self._meet)
            asked.update((seen.address, seen) for seen in met)
            known = {seen.machine for seen in asked.values() if seen.identity is not None}
            fresh: dict[Address, Neighbour] = {}
            for neighbour in (one for seen in met for one in seen.neighbours):
                told.setdefault(neighbour.address, []).append(neighbour)
                told_at.setdefault(neighbour.machine, set()).add(neighbour.address)
                met_before = neighbour.machine in known and len(told_at[neighbour.machine]) == 1
                if neighbour.address in asked or met_before or len(asked) + len(fresh) >= MOST_NODES:  # guard: A29, without 3
                    continue
                if neighbour.address not in fresh and places.allowed(neighbour.address):  # guard: A29, without 2
                    fresh[neighbour.address] = neighbour
            wave = list(fresh.values())
        nodes = _distinct(asked, told, entries)
        for name, addresses in entries.items():
            if all(asked[address].identity is None for address in addresses):
                names[name] = asked[addresses[0]].problem
        return ClusterView(tuple(sorted(nodes, key=lambda node: (node.identity is None, node.name, str(node.address)))), names)

    async def _meet(self, who: Neighbour) -> SurveyedNode:
        """Ask one node who it is, and whom it knows."""
        address = who.address
        try:
            began_s, began_ms = self.clock.seconds(), self.now_ms()
            try:
                page = await self.reader.get(address, "/api/v1/status")
            except NoPage:
                identity = schema.old_identity(await self.reader.get(address, "/status/"))
                neighbours = schema.old_neighbours(await self.reader.get(address, "/peers/"))
                return SurveyedNode(identity.hostname or who.name, address, identity.machine, identity, neighbours)
            took_ms = int((self.clock.seconds() - began_s) * 1000)
            identity = schema.identity(page)
            peers = await self.reader.get(address, "/api/v1/peers")
            neighbours, shared = schema.neighbours(peers), schema.shared_ids(peers)
        except CiruelaError as error:
            return SurveyedNode(who.name, address, who.machine, None, problem=str(error))
        skew_ms = None if identity.clock_ms is None else identity.clock_ms - began_ms - took_ms // 2
        name, doubt_ms = identity.hostname or who.name, took_ms // 2 + 1
        return SurveyedNode(name, address, identity.machine, identity, neighbours, "", skew_ms, doubt_ms, None, shared)

    async def page(self, node: SurveyedNode, page: str, patience_s: float = PAGE_S) -> Any:
        """Reads one page of a node, as :meth:`PageReader.get` does."""
        return await self.reader.get(node.address, page, patience_s)

    # -- what a node says ---------------------------------------------------------------------------------------------------------

    async def dirs(self, node: SurveyedNode) -> tuple[Dir, ...]:
        """The directories of a node. Raises CiruelaError when it does not say."""
        if node.identity is not None and node.identity.ours:
            return schema.dirs(await self.reader.get(node.address, "/api/v1/dirs"))
        return schema.old_dirs(await self.reader.get(node.address, "/configs/"))

    async def keys(self, node: SurveyedNode) -> Mapping[str, tuple[str, ...]] | None:
        """The fingerprints that may upload, by directory; None for a node that does not tell. Raises CiruelaError."""
        if node.identity is None or not node.identity.ours:
            return None
        return schema.keys(await self.reader.get(node.address, "/api/v1/keys"))

    async def versions(self, node: SurveyedNode, base: VPath) -> tuple[tuple[ImageVersion, ...], tuple[tuple[str, int], ...]] | None:
        """The images in ``base`` and the base dirs below it; None where there is no such directory. Raises CiruelaError."""
        if node.identity is not None and node.identity.ours:
            try:
                return schema.versions(await self.reader.get(node.address, f"/api/v1/dirs{quote(str(base))}"))
            except NoPage:
                return None
        level = {one.key: one.num_levels for one in await self.dirs(node)}.get(base.key)
        if level is None or base.level != max(level - 1, 0):
            return None
        if not base.level and not level:
            raise RemoteError(f"it does not tell of an image right at {base}")
        found = schema.old_versions(await self.reader.get(node.address, f"/list-dir{quote(str(base))}"), str(base))
        running = schema.old_downloads(await self.reader.get(node.address, "/downloading/"))
        return tuple(_running(one, running) for one in found), ()

    async def at(self, node: SurveyedNode, vpath: VPath) -> At:
        """Asks how ``vpath`` stands on a node. Raises CiruelaError."""
        if node.identity is not None and node.identity.ours:
            try:
                return schema.at(await self.reader.get(node.address, f"/api/v1/images{quote(str(vpath))}"))
            except NoPage:
                return At(False)
        level = {one.key: one.num_levels for one in await self.dirs(node)}.get(vpath.key)
        if level != vpath.level:
            return At(False)
        found = await self.versions(node, vpath.base)
        one = next((one for one in (found[0] if found else ()) if one.path == str(vpath)), None)
        if one is None:
            return At(True)
        return At(True, committed=one) if one.committed else At(True, pending=one)


def _running(version: ImageVersion, running: Mapping[str, tuple[str, bool]]) -> ImageVersion:
    image, stalled = running.get(version.path, (None, False))
    if image != version.image and version.committed:
        return version
    return ImageVersion(version.path, version.image, version.signed_ms, version.signers, False, stalled=stalled)


def _label(entries: Mapping[str, Sequence[Address]], address: Address) -> str:
    return next((name for name, found in entries.items() if list(found) == [address]), str(address))


def _servers(nodes: Sequence[SurveyedNode], key: str | None) -> Servers:
    found = Servers()
    for node in nodes:
        if node.identity is None:
            continue
        where = str(node.address)
        found.open(where)
        taking = [one for one in node.neighbours if key is None or one.dirs is None or key in one.dirs]
        found.tell(ServersTold(where, [one.server(hears=node.identity.ours) for one in taking], node.shared_ids))
        found.meet(MetServer(where, schema.machine_of(node.machine), node.name, None, node.identity.epoch_ms))
    return found


def _distinct(
    asked: Mapping[Address, SurveyedNode], told: Mapping[Address, list[Neighbour]], entries: Mapping[str, Sequence[Address]]
) -> list[SurveyedNode]:
    """Each server once, and each of several that share a machine id.

    An address of a name of which another address answered is no server by itself, unless a node says so.
    """
    view = _servers(list(asked.values()), None).view()
    shared = {one.machine for one in view.shared}
    nodes: dict[str, SurveyedNode] = {}
    for seen in asked.values():
        if seen.identity is not None:
            double = schema.machine_of(seen.machine) in shared
            nodes.setdefault(str(seen.address) if double else seen.identity.machine, seen)
    named: set[str] = set()
    for row in view.rows():
        named.update(row.addresses)
        if not row.spoke and len(nodes) < MOST_NODES and (silent := _silent(row, asked, told)) is not None:
            nodes.setdefault(silent.machine or str(silent.address), silent)
    for address, seen in asked.items():
        alternatives = [other for found in entries.values() if address in found for other in found]
        answered = any(asked[other].identity is not None for other in alternatives)
        if seen.identity is None and str(address) not in named and alternatives and not answered:
            nodes[str(address)] = seen
    return list(nodes.values())


def _silent(row: ServerRow, asked: Mapping[Address, SurveyedNode], told: Mapping[Address, list[Neighbour]]) -> SurveyedNode | None:
    """A server that did not answer; None when it has no address."""
    places = [address for text in row.addresses if (address := address_of(text)) is not None]
    tried = [address for address in places if address in asked]
    if not places:
        return None
    taken = [one.dirs for address in places for one in told.get(address, ()) if one.dirs is not None]
    known = tuple(sorted({key for keys in taken for key in keys})) if taken else None
    problem = "; ".join(filter(None, (asked[tried[0]].problem if tried else "it was not asked", row.silence)))
    machine = None if row.machine is None else row.machine.hex()
    return SurveyedNode(row.name, (tried or places)[0], machine, None, problem=problem, dirs=known)


def real_survey(common: Common, around: AppContext) -> Survey:
    """Real pages and names."""
    pages = PageReader(around.reactor, around.in_thread)
    return Survey(pages, real_names(common.port, around.look_up_in_thread), around.reactor, around.now_ms)
