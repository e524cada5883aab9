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

from ciruela.interfaces import Address, Connection, RequestHandler
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.net.outgoing import ANSWER_S, BLOCK_S, CONNECT_S
from ciruela.net.session import Session
from ciruela.proto.messages import BlocksData, BulkTicket, GetBlock, GetBlocks, Notification, Request, Response

OUTSIDE = Address("192.0.2.1", 1)
"""Where clients are unless they say something else."""

MAX_DATAGRAM_BYTES = 1400

SOCKET_BUFFER = 200
"""Datagrams and messages that wait for a stopped process; more datagrams are lost."""

QUEUE_BYTES = 64 * 1024
"""The queue of a link: what is urgent passes all that waits before it."""

SILENCE_S = 15.0
"""After so long without an answer a real link takes its connection for broken."""


class MemoryLink:
    """One end of a connection; implements ``ciruela.interfaces.Connection``. ``clock`` is that of the process here."""

    def __init__(self, hub: Hub, here: Address, there: Address, counterpart: RequestHandler, clock: IReactorTime) -> None:
        self._hub = hub
        self._clock = clock
        self.here = here
        self.there = there
        self.other: MemoryLink | None = None
        self._under_way = 0
        self._talk = Session(self, counterpart)

    @property
    def name(self) -> str:
        return str(self.there)

    @property
    def host(self) -> str:
        return self.there.host

    @property
    def bulk(self) -> bool:
        return not self._hub.old & {self.here, self.there}

    @property
    def exchanges(self) -> bool:
        return self.bulk and not self._hub.second & {self.here, self.there}

    def when_sent(self, call: Callable[[], None]) -> None:
        """When the link of this address has carried all that was sent over it so far."""
        self._clock.callLater(self._hub.busy_s(self.here), self._hub.reach, self.here, self._was_sent, call)

    def _was_sent(self, call: Callable[[], None]) -> None:
        if self.alive:
            call()

    def widen(self, *, gives: bool) -> None:
        """No bulk connections here: a thread owns their sockets."""

    def fetch(self, request: GetBlocks, land: Callable[[BlocksData], object]) -> None:
        """As :meth:`widen`."""

    def ticket(self, gives: bool) -> BulkTicket:
        raise RemoteError("no bulk connections here")

    @property
    def incoming(self) -> int:
        """Something grows while a message is under way: how much of it is here is not simulated."""
        return 1 + int(self._hub.clock.seconds()) if self._under_way else 0

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
        if other is not None and other.alive and not self._hub.silent(self.here, self.there):
            other.breaks("closed by the other side", self._hub.latency_s)

    def send_raw(self, data: bytes) -> None:
        """Send one message that no dialogue made."""
        self.send_message(data)

    def broke(self, reason: str) -> None:
        """The network took the connection away."""
        self._talk.end(f"the connection to {self.name} was lost: {reason}")

    def breaks(self, reason: str, delay_s: float) -> None:
        """The network takes the connection away; the process here finds out later, unless it is gone by then."""
        self._clock.callLater(delay_s, self._hub.reach, self.here, self.broke, reason)

    def break_off(self, reason: str) -> None:
        self.close(reason)

    def noise(self, told: bool) -> None:
        """Nobody is counted here."""

    def hold(self, waits: bool) -> None:
        """Nothing is read in pieces here, so there is nothing to stop."""

    def send_message(self, head: bytes, shared: bytes = b"", *, urgent: bool = False) -> None:
        data = head + shared
        self._hub.counters["messages"] += 1
        self._hub.counters["message bytes"] += len(data)
        if self._hub.silent(self.here, self.there):
            for end in (self, self.other):
                if end is not None:
                    end.breaks("the other side is silent", SILENCE_S)
            return
        if self.other is not None:
            self.other._under_way += 1
        self._hub.carry(self.here, self.there, len(data), lambda: self._hub.reach(self.there, self._deliver, data), urgent=urgent)

    def _deliver(self, data: bytes) -> None:
        if self.other is not None:
            self.other._under_way -= 1
        if self.other is not None and self.other.alive and self.alive and not self._hub.silent(self.here, self.there):
            self.other._talk.received(data)


class _Wire:
    """Requests of one node; implements ``ciruela.interfaces.Connector``."""

    def __init__(self, hub: Hub, here: Address, clock: IReactorTime) -> None:
        self._hub = hub
        self._here = here
        self._clock = clock
        self._open: dict[Address, MemoryLink] = {}
        self._waiting: dict[Address, list[Deferred[MemoryLink]]] = {}

    def widen(self, address: Address) -> None:
        """As that of a link."""

    def fetch(self, address: Address, request: GetBlocks, land: Callable[[BlocksData], object]) -> None:
        """As that of a link."""

    def incoming(self, address: Address) -> int:
        link = self._open.get(address)
        return 0 if link is None else link.incoming

    def connected(self, address: Address) -> bool:
        link = self._open.get(address)
        return link is not None and link.alive

    def bulk(self, address: Address) -> bool:
        return address in self._open and self._open[address].bulk

    def exchanges(self, address: Address) -> bool | None:
        return self._open[address].exchanges if address in self._open else None

    def tell(self, address: Address, notification: Notification) -> None:
        def send(link: MemoryLink) -> None:
            if link.exchanges:
                link.tell(notification)

        if self._hub.reachable(self._here, self._here):
            self._hub.spoken_to.add(address)
            self._link(address).addCallbacks(send, lambda _: None)

    def alive(self, address: Address) -> None:
        """Nothing is left alone here."""

    def ask(self, address: Address, request: Request, timeout_s: float | None = None) -> Deferred[Response]:
        if timeout_s is None:
            timeout_s = BLOCK_S if isinstance(request, GetBlock) else ANSWER_S
        if not self._hub.reachable(self._here, self._here):
            return fail(LinkLost(f"{self._here} is not running"))
        self._hub.spoken_to.add(address)
        inner: list[Deferred[Response]] = []

        def forget(_: object) -> None:
            for answer in inner:
                answer.cancel()

        done: Deferred[Response] = Deferred(forget)
        timer = self._clock.callLater(timeout_s, self._late, done, inner, address, timeout_s)

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
            self._hub.link(_Refusing(), address, self._here, self._clock).addBoth(self._linked, address)
        return ready

    def _linked(self, result: MemoryLink | Failure, address: Address) -> None:
        if isinstance(result, MemoryLink):
            self._open[address] = result
        for ready in self._waiting.pop(address):
            ready.callback(result)


class _Refusing:
    def requested(self, link: Connection, request: Request) -> Deferred[Response]:
        return fail(RemoteError("requests are not answered on this connection"))

    def notified(self, link: Connection, notification: Notification) -> None:
        """Nothing that is told here is of use."""

    def answered(self, link: Connection, request: Request, given: bool) -> None:
        """Nothing is answered here."""

    def lost(self, link: Connection) -> None:
        """The wire looks at each link before it uses it."""


class _Datagrams:
    """The gossip socket of one node; implements ``ciruela.interfaces.Datagrams``."""

    def __init__(self, hub: Hub, here: Address) -> None:
        self._hub = hub
        self._here = here

    def send(self, data: bytes, address: Address) -> None:
        self._hub.datagram(self._here, address, data)


class Hub:
    """The network. ``loss``, ``duplication``, ``reordering`` are probabilities for a datagram; latencies are in seconds.

    ``counters`` has: datagrams, datagram bytes, lost, delivered, messages, message bytes, links. ``spoken_to`` are the addresses that
    nodes sent to or wanted a connection to. ``rates`` limit what an address sends, and what it gets, on all its connections together, in
    bytes a second; ``carried`` is what each has sent. ``old`` are the addresses that only speak ``ciruela.v1``, ``second``
    those that speak ``ciruela.v2`` as well, and no more.
    """

    def __init__(self, clock: IReactorTime, rng: random.Random, latency_s: float = 0.001) -> None:
        self.clock = clock
        self.latency_s = latency_s
        self.jitter_s = 0.0
        self.loss = 0.0
        self.duplication = 0.0
        self.reordering = 0.0
        self.counters: Counter[str] = Counter()
        self.spoken_to: set[Address] = set()
        self.rates: dict[Address, float] = {}
        self.carried: Counter[Address] = Counter()
        self._free_s: dict[tuple[Address, bool], float] = {}
        self.old: set[Address] = set()
        self.second: set[Address] = set()
        self._silences: set[tuple[Address, Address]] = set()
        self._closed: set[tuple[Address | None, Address | None]] = set()
        self._severed: set[frozenset[Address]] = set()
        self._paused: dict[Address, list[tuple[Callable[..., object], tuple[object, ...]]]] = {}
        self._rng = rng
        self._nodes: dict[Address, tuple[RequestHandler, Callable[[bytes, Address], object], IReactorTime]] = {}
        self._group: dict[Address, int] = {}
        self._pairs: list[tuple[MemoryLink, MemoryLink]] = []
        self._many = 64

    def node(
        self,
        address: Address,
        counterpart: RequestHandler,
        on_datagram: Callable[[bytes, Address], object],
        clock: IReactorTime | None = None,
    ) -> tuple[_Wire, _Datagrams]:
        """Start a node, or start it again after :meth:`kill`: what it asks with, and its gossip socket. ``clock``: its process's."""
        clock = clock or self.clock
        self._nodes[address] = (counterpart, on_datagram, clock)
        return _Wire(self, address, clock), _Datagrams(self, address)

    def kill(self, address: Address) -> None:
        """The node is gone at once; its connections break."""
        self._nodes.pop(address, None)
        self._break(lambda here, there: address in (here, there))

    def partition(self, groups: Iterable[Iterable[Address]]) -> None:
        """Only addresses of one group reach each other; who is in none belongs to a group of the remaining ones."""
        self._group = {address: number for number, group in enumerate(groups, start=1) for address in group}
        self._break(lambda here, there: not self._together(here, there))

    def heal(self) -> None:
        """Everybody reaches everybody again, at full speed."""
        self._group = {}
        self._severed = set()
        self._silences = set()
        self._closed = set()
        self.rates = {}

    def sever(self, pairs: Iterable[tuple[Address, Address]]) -> None:
        """The two of each pair do not reach each other; their connections break. For rings and bridges."""
        self._severed = {frozenset(pair) for pair in pairs}
        self._break(lambda here, there: not self._together(here, there))

    def silence(self, here: Address, there: Address) -> None:
        """Half-open: nothing that ``here`` sends reaches ``there`` any more, and nobody is told."""
        self._silences.add((here, there))

    def close_udp(self, here: Address | None, there: Address | None) -> None:
        """A firewall drops the datagrams from ``here`` to ``there``, and nothing else; None stands for everybody."""
        self._closed.add((here, there))

    def open_udp(self) -> None:
        """The firewall is gone."""
        self._closed = set()

    def _dropped(self, here: Address, there: Address) -> bool:
        return bool(self._closed) and not self._closed.isdisjoint(((here, there), (here, None), (None, there), (None, None)))

    def silent(self, here: Address, there: Address) -> bool:
        """Whether what ``here`` sends to ``there`` vanishes."""
        return bool(self._silences) and (here, there) in self._silences

    def busy_s(self, here: Address) -> float:
        """Seconds until the link of ``here`` has carried what it was given."""
        return max(0.0, self._free_s.get((here, True), 0.0) - self.clock.seconds()) if self.rates else 0.0

    def carry(self, here: Address, there: Address, size: int, delivered: Callable[[], object], *, urgent: bool = False) -> None:
        """A message waits for its turn at the sender's link, then at the receiver's; an urgent one behind what the link's queue holds."""
        self.carried[here] += size
        if not self.rates:
            self.clock.callLater(self.latency_s, delivered)
            return
        sent_s = self._through((here, True), size, 0.0)
        if urgent and here in self.rates:
            sent_s = min(sent_s, (QUEUE_BYTES + size) / self.rates[here])
        length_s = size / self.rates[here] if here in self.rates else 0.0
        self.clock.callLater(sent_s, self._sent, there, size, length_s, delivered)

    def _sent(self, there: Address, size: int, length_s: float, delivered: Callable[[], object]) -> None:
        """It was under way for ``length_s`` already, and so were others that share the receiver's link."""
        self.clock.callLater(self._through((there, False), size, length_s) + self.latency_s, delivered)

    def _through(self, link: tuple[Address, bool], size: int, begun_s: float) -> float:
        """Seconds from now until a message is through a link that carries one after the other."""
        rate = self.rates.get(link[0])
        if rate is None:
            return 0.0
        now_s = self.clock.seconds()
        free_s = self._free_s[link] = max(now_s, max(now_s - begun_s, self._free_s.get(link, 0.0)) + size / rate)
        return free_s - now_s

    def pause(self, address: Address) -> None:
        """The process there is stopped: what comes for it waits in the kernel. Its timers are the business of ``clock.Timers``."""
        self._paused.setdefault(address, [])

    def resume(self, address: Address) -> None:
        """It goes on, with what has come meanwhile, in order."""
        for call, args in self._paused.pop(address, ()):
            self.clock.callLater(0, self.reach, address, call, *args)

    def reach(self, address: Address, call: Callable[..., object], *args: object) -> None:
        """Do something with the process at ``address``, when it is not stopped."""
        if address in self._paused:
            self._paused[address].append((call, args))
        else:
            call(*args)

    def snap(self, choose: Callable[[int], int]) -> bool:
        """Break one open connection in the middle of whatever it does; ``choose`` gets how many there are. Whether there was one."""
        self._pairs = [pair for pair in self._pairs if pair[0].alive and pair[1].alive]
        if not self._pairs:
            return False
        for end in self._pairs[choose(len(self._pairs))]:
            self.reach(end.here, end.broke, "reset")
        return True

    def vanish(self, address: Address, *, told: bool) -> None:
        """The process there is gone and does nothing more, not even hear of it. ``told``: its kernel resets its connections.

        Else (a power cut) the other ends find out after SILENCE_S.
        """
        self._nodes.pop(address, None)
        self._paused.pop(address, None)
        gone = [pair for pair in self._pairs if address in (pair[0].here, pair[1].here)]
        self._pairs = [pair for pair in self._pairs if pair not in gone]
        for pair in gone:
            for end in pair:
                if end.here == address:
                    end.other = None
                elif end.alive:
                    end.other = None
                    end.breaks("the other side is gone", self.latency_s if told else SILENCE_S)

    def _together(self, here: Address, there: Address) -> bool:
        if self._severed and frozenset((here, there)) in self._severed:
            return False
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

    def link(
        self, client_counterpart: RequestHandler, address: Address, origin: Address = OUTSIDE, clock: IReactorTime | None = None
    ) -> Deferred[MemoryLink]:
        """Connect to a node, as a client does; fires with the near end after two latencies, or fails with LinkLost."""
        clock = clock or self.clock
        done: Deferred[MemoryLink] = Deferred()
        clock.callLater(2 * self.latency_s, self._connect, done, client_counterpart, address, origin, clock)
        return done

    def _connect(
        self, done: Deferred[MemoryLink], counterpart: RequestHandler, address: Address, origin: Address, clock: IReactorTime
    ) -> None:
        if done.called:
            return
        if self.silent(origin, address) or self.silent(address, origin) or address in self._paused:
            clock.callLater(CONNECT_S, self._not_connected, done, address)
            return
        if not self.reachable(origin, address):
            done.errback(LinkLost(f"connection refused by {address}"))
            return
        served, _, there = self._nodes[address]
        near = MemoryLink(self, origin, address, counterpart, clock)
        far = MemoryLink(self, address, origin, served, there)
        near.other, far.other = far, near
        if len(self._pairs) >= self._many:
            self._pairs = [pair for pair in self._pairs if pair[0].alive]
            self._many = max(64, 2 * len(self._pairs))
        self._pairs.append((near, far))
        self.counters["links"] += 1
        done.callback(near)

    def _not_connected(self, done: Deferred[MemoryLink], address: Address) -> None:
        if not done.called:
            done.errback(LinkLost(f"no answer from {address} within {CONNECT_S:g} s"))

    def datagram(self, source: Address, target: Address, data: bytes) -> None:
        """Send one; whether and when it arrives is up to the dice."""
        self.counters["datagrams"] += 1
        self.spoken_to.add(target)
        self.counters["datagram bytes"] += len(data)
        if len(data) > MAX_DATAGRAM_BYTES or source not in self._nodes or self._rng.random() < self.loss:
            self.counters["lost"] += 1
            return
        for _ in range(2 if self._rng.random() < self.duplication else 1):
            delay_s = self.latency_s + self.jitter_s * self._rng.random()
            if self._rng.random() < self.reordering:
                delay_s += 10 * self.latency_s
            self.clock.callLater(delay_s, self._arrive, source, target, data)

    def forge(self, source: Address, target: Address, data: bytes) -> None:
        """Somebody else sends a datagram with ``source`` as its sender."""
        self.clock.callLater(self.latency_s, self._arrive, source, target, data, True)

    def _arrive(self, source: Address, target: Address, data: bytes, forged: bool = False) -> None:
        lost = not self.reachable(source, target) or self.silent(source, target) or self._dropped(source, target)
        if lost and not (forged and target in self._nodes):
            self.counters["lost"] += 1
            return
        if target in self._paused:
            if len(self._paused[target]) >= SOCKET_BUFFER:
                self.counters["lost"] += 1
            else:
                self.reach(target, self._arrive, source, target, data, forged)
            return
        self.counters["delivered"] += 1
        self._nodes[target][1](data, source)
