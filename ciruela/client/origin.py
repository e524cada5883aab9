"""Reading images of a cluster: connections to its nodes, and the index of what is committed at a path (protocol section 6.6)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from ciruela.client.contacts import ClusterAddresses, Resolve, each
from ciruela.client.context import AppContext, real_names
from ciruela.client.crawl import MOST_ANSWERS, ServerSearch, spare
from ciruela.client.errors import CommandError
from ciruela.client.options.common import Common
from ciruela.client.options.reading import ReadTarget
from ciruela.client.tracker import EXIT_NETWORK, EXIT_REJECTED
from ciruela.client.trust import Proof, TrustedKeys, signed_state
from ciruela.download.sources import Candidate
from ciruela.index.parse import image_id_of, parse
from ciruela.index.tree import Index
from ciruela.interfaces import Address, InThread
from ciruela.model.bitfield import FULL
from ciruela.model.errors import CiruelaError, RemoteError
from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass
from ciruela.net.outgoing import CLIENT_HOST, Pool
from ciruela.proto.messages import BaseDirData, GetBaseDir, GetIndex, GetIndexAt, IndexAtData, Request, Response

INDEX_S = 600.0
"""Time that the answer with an index may take: 100 MiB over a slow line. A node that is gone is noticed by its silence long before."""

MOST_SOURCES = 16
"""Nodes of which blocks are taken at the same time: more would not be faster, and each gives less to others meanwhile."""

NO_IMAGE = ImageId(bytes(32))
"""An image that nobody has: asking for its index tells who is there."""

MOST_TRIED = 64
"""Nodes that are asked for the index, one after the other."""


class NodeRequests(Protocol):
    """Requests to nodes: ``net.outgoing.Pool``, or a double."""

    def ask(self, address: Address, request: Request, timeout_s: float | None = None) -> Deferred[Response]:
        """As ``net.outgoing.Pool.ask``."""

    def bulk(self, address: Address) -> bool:
        """As ``interfaces.Connector.bulk``."""

    def stop(self) -> Deferred[None]:
        """Close all connections."""


@dataclass(frozen=True, slots=True)
class ReadContext:
    """Context of reading: its ports."""

    nodes: NodeRequests
    resolve: Resolve
    clock: IReactorTime
    rng: random.Random
    in_thread: InThread


def real_reach(common: Common, around: AppContext) -> ReadContext:
    """Real connections and names."""
    names = real_names(common.port, around.look_up_in_thread)
    return ReadContext(Pool(around.reactor, host_header=CLIENT_HOST), names, around.reactor, around.rng, around.in_thread)


def read_index(data: bytes) -> Index:
    """The index in ``data``. In a thread. Raises BadIndex."""
    return parse(data, image_id_of(data))


class ImageOrigin:
    """One cluster, as images are read from it. ``note`` is told with a sentence what did not work at a node."""

    def __init__(self, target: ReadTarget, reach: ReadContext, note: Callable[[str, str], None]) -> None:
        self._target = target
        self._reach = reach
        self._note = note
        self._places = ClusterAddresses(target.cluster.names, reach.resolve, reach.clock)
        self._known: dict[Address, str] = {}
        self._holder: Address | None = None

    @property
    def nodes(self) -> int:
        """Number of nodes that may be asked for blocks."""
        return min(len(self._known), MOST_SOURCES)

    async def index(self) -> Index:
        """The index of the image at the path of the target, from the first node that has one.

        Raises Ends: when no node answers, when none has an image there, and when those that answer have none and others do not say.
        """
        vpath = self._target.vpath
        assert vpath is not None
        await self._places.entries()
        unresolved = self._places.unresolved()
        for name, problem in unresolved.items():
            self._note(name, problem)
        if not self._places.known:
            raise CommandError(EXIT_NETWORK, "; ".join(unresolved.values()))
        answered = 0
        found: list[Index] = []
        failed: set[Address] = set()
        problems: list[str] = []

        async def look(address: Address, _label: str) -> Iterable[str]:
            nonlocal answered
            hosts: Iterable[str] = ()
            try:
                answer = await self._ask(address, GetIndexAt(str(vpath)), INDEX_S)
                if not isinstance(answer, IndexAtData):
                    raise RemoteError("the answer to GetIndexAt is something else")
                answered += 1
                hosts = answer.hosts.values()
                if answer.data is not None:
                    found.append(await self._reach.in_thread(read_index, answer.data))
                    self._holder = address
            except CiruelaError as error:
                problems.append(str(error))
                self._note(str(address), str(error))
                failed.add(address)
            return hosts

        search = ServerSearch(self._places, self._reach.rng, look, self._note, MOST_TRIED)
        await search.run(lambda: len(found), 1)
        self._known = {address: name for address, name in search.led.items() if address not in failed}
        if self._holder is not None:
            self._known.setdefault(self._holder, str(self._holder))
            return found[0]
        tried = len(search.asked)
        if answered and problems:  # guard: K3.6
            said = "; ".join(dict.fromkeys(problems))
            raise CommandError(
                EXIT_NETWORK,
                f"{answered} of {tried} nodes that were asked have no image at {self._target}; others did not say: {said}",
            )
        if answered:
            raise CommandError(
                EXIT_REJECTED,
                f"there is no image at {self._target}: {answered} of {tried} nodes that were asked answered, none has one",
            )
        raise CommandError(EXIT_NETWORK, f"no node of {self._target.cluster.label} answered: {'; '.join(dict.fromkeys(problems))}")

    async def proof(self, image: ImageId, trust: TrustedKeys) -> Proof | None:
        """That a trusted key signed ``image`` for the path of the target; None where no node shows such a signature."""
        vpath = self._target.vpath
        assert vpath is not None
        if not trust.keys:
            return None
        others = [address for address in self._known if address != self._holder]
        for address in [*([] if self._holder is None else [self._holder]), *others][:MOST_ANSWERS]:
            try:
                answer = await self._ask(address, GetBaseDir(str(vpath.base)))
            except CiruelaError as error:
                self._note(str(address), str(error))
                continue
            if isinstance(answer, BaseDirData):
                state = signed_state([answer], vpath.entry, image)
                proof: Proof | None = await self._reach.in_thread(trust.proof, vpath, state)
                if proof is not None:
                    return proof
        return None

    async def current(self) -> set[ImageId]:
        """Asks some of the nodes for the images that they have at the path now; empty when nobody answers."""
        vpath = self._target.vpath

        async def ask(address: Address) -> ImageId | None:
            try:
                answer = await self._ask(address, GetIndexAt(str(vpath)))
            except CiruelaError:
                return None
            return await self._reach.in_thread(image_id_of, answer.data) if isinstance(answer, IndexAtData) and answer.data else None

        return {image for image in await each(list(self._known)[:MOST_ANSWERS], ask) if image is not None}

    def candidates(self) -> list[Candidate]:
        """The nodes to take blocks from. That one lacks the image, or does not answer, shows when it is asked."""
        nodes = self._reach.nodes
        return [
            Candidate(address, name, partial(self._ask, address), FULL, seed=False, bulk=nodes.bulk(address))
            for address, name in list(self._known.items())[:MOST_SOURCES]
        ]

    def _ask(self, address: Address, request: Request, timeout_s: float | None = None) -> Deferred[Response]:
        """Ask a node about the path, once it is known that it does not die of that, see :func:`crawl.spare`."""
        vpath, nodes = self._target.vpath, self._reach.nodes
        if vpath is None or vpath.level or nodes.bulk(address):
            return nodes.ask(address, request, timeout_s)
        greeted = nodes.ask(address, GetIndex(NO_IMAGE, None))
        greeted.addErrback(lambda failure: failure.trap(RemoteError))
        return greeted.addCallback(lambda _: self._greeted(address, request, timeout_s))

    def _greeted(self, address: Address, request: Request, timeout_s: float | None) -> Deferred[Response]:
        assert self._target.vpath is not None
        spare(self._reach.nodes.bulk(address), self._target.vpath, str(address))
        return self._reach.nodes.ask(address, request, timeout_s)
