"""A network in memory for whole clusters under ``task.Clock``: datagrams, requests and client links, with everything that goes wrong.

Messages pass through the real codec and dialogue, so what could not travel on a wire does not travel here.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ciruela.model.errors import LinkLost, RemoteError
from ciruela.net.outgoing import ANSWER_S, BLOCK_S
from ciruela.net.talk import Talk
from ciruela.proto.messages import GetBlock, Notification, Request, Response
from ciruela.seams import Address, Counterpart, Link

OUTSIDE = Address("192.0.2.1", 1)
"""Where clients are unless they say something else."""

MAX_DATAGRAM_BYTES = 1400


class MemoryLink:
    """One end of a connection; implements ``ciruela.seams.Link``."""

    def __init__(self, hub: Hub, here: Address, there: Address, counterpart: Counterpart) -> None:
        self._hub = hub
        self.here = here
        self.there = there
        self.other: MemoryLink | None = None
        self._talk = Talk(self, counterpart, self._send, self.close, self._hold)
        self.subprotocol = "ciruela.v1"

    @property
    def name(self) -> str:
        return str(self.there)

    @property
    def alive(self) -> bool:
        return not self._talk.over

    def ask(self, request: Request) -> Deferred[Response]:
        return self._talk.ask(request)

    def tell(self, notification: Notification) -> None:
        self._talk.tell(notification)

    def close(self, reason: str = "closed by us") -> None:
        """End both ends; the other hears of it after the latency."""
        other = self.other
        self._talk.end(f"the connection to {self.name} was {reason}")
        if other is not None and other.alive:
            self._hub.clock.callLater(self._hub.latency_s, other.broke, "closed by the other side")

    def broke(self, reason: str) -> None:
        """The network took the connection away."""
        self._talk.end(f"the connection to {self.name} was lost: {reason}")

    def _hold(self, held: bool) -> None:
        """Nothing is read in pieces here, so there is nothing to stop."""

    def _send(self, data: bytes) -> None:
        self._hub.counters["messages"] += 1
        self._hub.counters["message bytes"] += len(data)
        self._hub.clock.callLater(self._hub.latency_s, self._deliver, data)

    def _deliver(self, data: bytes) -> None:
        if self.other is not None and self.other.alive and self.alive:
            self.other._talk.received(data)


class _Wire:
    """Requests of one node; implements ``ciruela.seams.Wire``."""

    def __init__(self, hub: Hub, here: Address) -> None:
        self._hub = hub
        self._here = here
        self._open: dict[Address, MemoryLink] = {}
        self._waiting: dict[Address, list[Deferred[MemoryLink]]] = {}

    def connected(self, address: Address) -> bool:
        link = self._open.get(address)
        return link is not None and link.alive

    def ask(self, address: Address, request: Request, timeout_s: float | None = None) -> Deferred[Response]:
        if timeout_s is None:
            timeout_s = BLOCK_S if isinstance(request, GetBlock) else ANSWER_S
        if not self._hub.reachable(self._here, self._here):
            return fail(LinkLost(f"{self._here} is not running"))
        inner: list[Deferred[Response]] = []

        def forget(_: object) -> None:
            for answer in inner:
                answer.cancel()

        done: Deferred[Response] = Deferred(forget)
        timer = self._hub.clock.callLater(timeout_s, self._late, done, inner, address, timeout_s)

        def finish(result: object) -> None:
            if timer.active():
                timer.cancel()
            if not done.called:
                done.callback(result)  # type: ignore[arg-type]

        def send(link: MemoryLink) -> None:
            if done.called:
                finish(None)
                return
            inner.append(link.ask(request))
            inner[0].addBoth(finish)

        self._link(address).addCallbacks(send, finish)
        return done

    def _late(self, done: Deferred[Response], inner: list[Deferred[Response]], address: Address, timeout_s: float) -> None:
        if not done.called:
            done.errback(LinkLost(f"no answer from {address} within {timeout_s:g} s"))
        for answer in inner:
            answer.cancel()

    def _link(self, address: Address) -> Deferred[MemoryLink]:
        known = self._open.get(address)
        if known is not None and known.alive:
            return succeed(known)
        ready: Deferred[MemoryLink] = Deferred()
        waiting = self._waiting.setdefault(address, [])
        waiting.append(ready)
        if len(waiting) == 1:
            self._hub.link(_Refusing(), address, self._here).addBoth(self._linked, address)
        return ready

    def _linked(self, result: MemoryLink | Failure, address: Address) -> None:
        if isinstance(result, MemoryLink):
            self._open[address] = result
        for ready in self._waiting.pop(address):
            ready.callback(result)


class _Refusing:
    def requested(self, link: Link, request: Request) -> Deferred[Response]:
        return fail(RemoteError("requests are not answered on this connection"))

    def notified(self, link: Link, notification: Notification) -> None:
        """Nothing that is told here is of use."""

    def lost(self, link: Link) -> None:
        """The wire looks at each link before it uses it."""


class _Datagrams:
    """The gossip socket of one node; implements ``ciruela.seams.Datagrams``."""

    def __init__(self, hub: Hub, here: Address) -> None:
        self._hub = hub
        self._here = here

    def send(self, data: bytes, address: Address) -> None:
        self._hub.datagram(self._here, address, data)


class Hub:
    """The network. ``loss``, ``duplication``, ``reordering`` are probabilities for a datagram; latencies are in seconds.

    ``counters`` has: datagrams, datagram bytes, lost, delivered, messages, message bytes, links.
    """

    def __init__(self, clock: IReactorTime, rng: random.Random, latency_s: float = 0.001) -> None:
        self.clock = clock
        self.latency_s = latency_s
        self.jitter_s = 0.0
        self.loss = 0.0
        self.duplication = 0.0
        self.reordering = 0.0
        self.counters: Counter[str] = Counter()
        self._rng = rng
        self._nodes: dict[Address, tuple[Counterpart, Callable[[bytes, Address], object]]] = {}
        self._group: dict[Address, int] = {}
        self._pairs: list[tuple[MemoryLink, MemoryLink]] = []

    def node(self, address: Address, counterpart: Counterpart, on_datagram: Callable[[bytes, Address], object]) -> tuple[_Wire, _Datagrams]:
        """Start a node, or start it again after :meth:`kill`: what it asks with, and its gossip socket."""
        self._nodes[address] = (counterpart, on_datagram)
        return _Wire(self, address), _Datagrams(self, address)

    def kill(self, address: Address) -> None:
        """The node is gone at once; its connections break."""
        self._nodes.pop(address, None)
        self._break(lambda here, there: address in (here, there))

    def partition(self, groups: Iterable[Iterable[Address]]) -> None:
        """Only addresses of one group reach each other; who is in none belongs to a group of the remaining ones."""
        self._group = {address: number for number, group in enumerate(groups, start=1) for address in group}
        self._break(lambda here, there: not self._together(here, there))

    def heal(self) -> None:
        """Everybody reaches everybody again."""
        self._group = {}

    def _together(self, here: Address, there: Address) -> bool:
        return self._group.get(here, 0) == self._group.get(there, 0)

    def reachable(self, here: Address, there: Address) -> bool:
        """Whether ``there`` runs and is on the same side."""
        return there in self._nodes and self._together(here, there)

    def _break(self, cut: Callable[[Address, Address], bool]) -> None:
        broken = [pair for pair in self._pairs if cut(pair[0].here, pair[0].there)]
        self._pairs = [pair for pair in self._pairs if pair not in broken and pair[0].alive]
        for pair in broken:
            for end in pair:
                end.broke("the network is cut")

    def link(self, client_counterpart: Counterpart, address: Address, origin: Address = OUTSIDE) -> Deferred[MemoryLink]:
        """Connect to a node, as a client does; fires with the near end after two latencies, or fails with LinkLost."""
        done: Deferred[MemoryLink] = Deferred()
        self.clock.callLater(2 * self.latency_s, self._connect, done, client_counterpart, address, origin)
        return done

    def _connect(self, done: Deferred[MemoryLink], counterpart: Counterpart, address: Address, origin: Address) -> None:
        if done.called:
            return
        if not self.reachable(origin, address):
            done.errback(LinkLost(f"connection refused by {address}"))
            return
        near = MemoryLink(self, origin, address, counterpart)
        far = MemoryLink(self, address, origin, self._nodes[address][0])
        near.other, far.other = far, near
        self._pairs = [pair for pair in self._pairs if pair[0].alive]
        self._pairs.append((near, far))
        self.counters["links"] += 1
        done.callback(near)

    def datagram(self, source: Address, target: Address, data: bytes) -> None:
        """Send one; whether and when it arrives is up to the dice."""
        self.counters["datagrams"] += 1
        self.counters["datagram bytes"] += len(data)
        if len(data) > MAX_DATAGRAM_BYTES or source not in self._nodes or self._rng.random() < self.loss:
            self.counters["lost"] += 1
            return
        for _ in range(2 if self._rng.random() < self.duplication else 1):
            delay_s = self.latency_s + self.jitter_s * self._rng.random()
            if self._rng.random() < self.reordering:
                delay_s += 10 * self.latency_s
            self.clock.callLater(delay_s, self._arrive, source, target, data)

    def _arrive(self, source: Address, target: Address, data: bytes) -> None:
        if not self.reachable(source, target):
            self.counters["lost"] += 1
            return
        self.counters["delivered"] += 1
        self._nodes[target][1](data, source)
