"""Connections to nodes: one of them, and a pool that makes, shares and closes them (protocol section 2.4)."""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from automat import TypeMachine, TypeMachineBuilder
from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.interfaces import Address, BlockGiving, Connection, InThread, RequestHandler
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.net.connection import ClientLink, client_links
from ciruela.net.limits import LIMITS, Budgets, Limits
from ciruela.proto.messages import BlocksData, GetBlock, GetBlocks, Notification, Request, Response
from ciruela.proto.multiplexer import LARGE, MAX_PENDING
from ciruela.runtime import Backoff, BoundedMap, in_place

T = TypeVar("T")

CLIENT_HOST = "ciruela"
NODE_HOST = "ciruela_internal"
"""Host header that clients and nodes send (protocol section 2.1)."""

CONNECT_S = 3.0
IDLE_S = 10.0
ANSWER_S = 30.0
BLOCK_S = 5.0 + 32.0 / 50.0
"""A block of 32 KiB at 50 KiB/s, and 5 s for the other side to find it."""

MOST_QUEUED = 256
MOST_REMEMBERED = 4096
"""Addresses of which it is remembered that ``ciruela.v2`` was agreed upon there."""


def connect(
    reactor: Any,
    address: Address,
    counterpart: RequestHandler,
    host_header: str,
    timeout_s: float = CONNECT_S,
    limits: Limits = LIMITS,
    from_host: str = "",
    budgets: Budgets | None = None,
    in_thread: InThread = in_place,
    *,
    beside: bool = False,
) -> Deferred[ClientLink]:
    """A link to the node at ``address``, open. ``timeout_s`` is for TCP and handshake together.

    ``beside``: it is to become a bulk connection.

    ``from_host``: numeric address of this host from which the connection leaves, where that can be; by default the system chooses.
    Fails with LinkLost, in words for people. Cancelling gives up, and fails with CancelledError.
    """
    endpoint_class = TCP6ClientEndpoint if ":" in address.host else TCP4ClientEndpoint
    bound = (from_host, 0) if from_host and can_leave_from(from_host, address.host) else None
    # The endpoint's own timeout comes later than ours, which is for the handshake as well: there is one message for both.
    endpoint = endpoint_class(reactor, address.host, address.port, timeout=timeout_s + 1, bindAddress=bound)
    again = (
        None
        if beside
        else partial(connect, reactor, address, _Beside(), host_header, timeout_s, limits, from_host, budgets, in_thread, beside=True)
    )
    factory = client_links(counterpart, reactor, host_header, limits, budgets, in_thread, again)
    connected = cast("Deferred[ClientLink]", endpoint.connect(factory))
    opened = connected.addCallback(lambda link: link.opened)
    opened.addTimeout(timeout_s, reactor, onTimeoutCancel=_timed_out)
    return opened.addErrback(_in_words, address, timeout_s)


def can_leave_from(from_host: str, host: str) -> bool:
    """Tells whether a connection to ``host`` may leave from ``from_host``: no wildcard, one family, both loopback addresses or neither."""
    here, there = ipaddress.ip_address(from_host.partition("%")[0]), ipaddress.ip_address(host.partition("%")[0])
    return not here.is_unspecified and here.version == there.version and here.is_loopback == there.is_loopback


def _timed_out(result: object, timeout_s: float) -> object:
    if isinstance(result, Failure):
        raise DeferredTimeout(timeout_s, "Deferred")
    return result


def _in_words(failure: Failure, address: Address, timeout_s: float) -> ClientLink:
    if failure.check(CancelledError, LinkLost):
        failure.raiseException()
    if failure.check(ConnectingCancelledError):  # the endpoint's word for it, while TCP is connecting
        raise CancelledError
    if failure.check(Refused):
        raise LinkLost(f"connection refused by {address}")
    if failure.check(DeferredTimeout, ConnectTimeout):
        raise LinkLost(f"no answer from {address} within {timeout_s:g} s")
    failure.trap(ConnectError, OSError)
    raise LinkLost(f"cannot connect to {address}: {failure.getErrorMessage()}")


class _Refusing:
    """Request handler of the pool's connections: accepted and made connections are never shared, so nobody asks here."""

    def __init__(self, events: ConnectionEvents) -> None:
        self._events = events

    def requested(self, link: Connection, request: Request) -> Deferred[Response]:  # noqa: ARG002
        return fail(RemoteError("requests are not answered on this connection"))  # guard: A24, -> Deferred()

    def giving(self, link: Connection, request: GetBlocks) -> Deferred[BlockGiving]:  # noqa: ARG002
        return fail(RemoteError("no blocks are given on this connection"))

    def notified(self, link: Connection, notification: Notification) -> None:
        """Nothing that is told here is of use."""

    def answered(self, link: Connection, request: Request, given: bool) -> None:
        """Nothing is answered here but errors."""

    def lost(self, link: Connection) -> None:  # noqa: ARG002
        self._events.lost()


class _Beside:
    """Request handler of a connection that becomes a bulk connection: nothing reaches it."""

    def requested(self, link: Connection, request: Request) -> Deferred[Response]:  # noqa: ARG002
        return fail(RemoteError("nothing is asked here"))

    def giving(self, link: Connection, request: GetBlocks) -> Deferred[BlockGiving]:  # noqa: ARG002
        return fail(RemoteError("nothing is given here"))

    def notified(self, link: Connection, notification: Notification) -> None:
        """Nothing is told here."""

    def answered(self, link: Connection, request: Request, given: bool) -> None:
        """Nothing is answered here."""

    def lost(self, link: Connection) -> None:
        """Nobody waits for it."""


# -- the states of the connection to one address ---------------------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Connecting:
    """A connection is being made. ``attempt`` tells the machine how that ends."""

    attempt: Deferred[ClientLink]

    def end(self) -> None:
        """Gives up."""
        self.attempt.cancel()


@dataclass(eq=False, slots=True)
class Connected:
    """The connection is open. ``flying`` requests wait for their answers; with none, the timer ``idle`` runs.

    ``lost_again``: a request was lost here that had been lost once before.
    """

    link: ClientLink
    flying: int = field(init=False, default=0)
    idle: IDelayedCall | None = field(init=False, default=None)
    lost_again: bool = field(init=False, default=False)

    def stop_idle(self) -> None:
        """Stops the timer."""
        if self.idle is not None:
            self.idle.cancel()
            self.idle = None

    def end(self) -> None:
        """Closes it; its requests fail."""
        self.stop_idle()
        self.link.close()


class ConnectionEvents(Protocol):
    """The inputs of the machine: one for each step of a connection, none for each request."""

    def wanted(self) -> None:
        """A request waits."""

    def connected(self, link: ClientLink) -> None:
        """The connection is open."""

    def unconnected(self, failure: Failure) -> None:
        """The attempt failed."""

    def lost(self) -> None:
        """The open connection ended."""

    def stop(self) -> None:
        """Ends everything."""


@dataclass(eq=False, slots=True)
class _PendingCall:
    """One request of a caller, over all its attempts. ``on``: the connection on which it waits for its answer."""

    request: Request
    timeout_s: float
    done: Deferred[Response] = field(init=False)
    on: Connected | None = field(init=False, default=None)
    answer: Deferred[Response] | None = field(init=False, default=None)
    timer: IDelayedCall | None = field(init=False, default=None)
    again: bool = field(init=False, default=False)

    def land(self) -> None:
        """Takes it off its connection."""
        if self.on is not None:
            self.on.flying -= 1
        if self.timer is not None:
            self.timer.cancel()
        self.on = self.answer = self.timer = None


class _AddressRequests:
    """The requests for one address, and the ``state`` of the connection to it, for readers: None while there is none."""

    def __init__(self, pool: Pool, address: Address) -> None:
        self.pool = pool
        self.address = address
        self.state: Connecting | Connected | None = None
        self.events = ConnectionMachine(self)
        self.closed: Deferred[None] = Deferred()
        self._sockets = 0
        self._queue: deque[_PendingCall] = deque()
        self._told: list[Notification] = []

    @property
    def link(self) -> ClientLink | None:
        """The open connection, if there is one."""
        return self.state.link if isinstance(self.state, Connected) else None

    @property
    def resting(self) -> bool:
        """True when nothing waits and no connection is made, open, or closing."""
        return not (self._sockets or self._queue or isinstance(self.state, Connecting))

    def submit(self, request: Request, timeout_s: float) -> Deferred[Response]:
        """As :meth:`Pool.ask`."""
        if self.state is None and self.pool.backoff.blocked(self.address):  # guard: A58 F52
            return fail(LinkLost(f"{self.address} failed a moment ago and is left alone for now"))
        if len(self._queue) >= MOST_QUEUED:  # guard: A26 I6
            return fail(LinkLost(f"{MOST_QUEUED} requests wait for {self.address} already"))
        job = _PendingCall(request, timeout_s)
        job.done = Deferred(lambda _: self._forget(job))
        self._queue.append(job)
        self.go_on()
        return job.done

    def tell(self, notification: Notification) -> None:
        """As :meth:`Pool.tell`."""
        state = self.state
        if isinstance(state, Connected):
            if state.link.exchanges:
                state.link.tell(notification)
                state.stop_idle()
                self.go_on()
        elif len(self._told) < MOST_QUEUED and not self.pool.backoff.blocked(self.address):  # guard: A26 I6, without 1
            self._told.append(notification)
            if state is None:
                self.events.wanted()

    def fetch(self, request: GetBlocks, land: Callable[[BlocksData], T]) -> Deferred[T] | None:
        """As :meth:`Pool.fetch`. A connection with something under way beside it is not idle."""
        state = self.state
        done = state.link.fetch(request, land) if isinstance(state, Connected) else None
        if done is None or not isinstance(state, Connected):
            return None
        state.flying += 1
        state.stop_idle()

        def fetched(result: T) -> T:
            state.flying -= 1
            self.go_on()
            return result

        return done.addBoth(fetched)

    def go_on(self) -> None:
        """Sends what waits, as much as may be under way at once, or asks for a connection."""
        state = self.state
        if isinstance(state, Connected):
            while self._queue and state.flying < MAX_PENDING and state.link.alive:
                self._send(self._queue.popleft(), state)
            if self._queue or state.flying:
                state.stop_idle()
            elif state.idle is None:
                state.idle = self.pool.reactor.callLater(IDLE_S, self._leave, state)
        elif self._queue and state is None:
            self.events.wanted()

    def _leave(self, state: Connected) -> None:
        state.idle = None
        state.link.close("closed because it was idle")

    def broken(self, failure: Failure) -> None:
        """A fault of ours: what waits must not wait for ever."""
        self.pool.complain(self.address, failure)
        self.fail_queue(f"the connection to {self.address} was not taken in")

    def opened(self, link: ClientLink) -> None:
        """Takes in a new connection. It counts until TCP is gone, too, which is later than its loss."""
        self._sockets += 1
        link.gone.addCallback(self._gone).addErrback(lambda failure: self.pool.complain(self.address, failure))
        self.pool.backoff.succeeded(self.address)
        self.pool.spoke(self.address, link)
        told, self._told = self._told, []
        for notification in told:
            self.tell(notification)
        self.go_on()

    def _gone(self, _: object) -> None:
        self._sockets -= 1
        self.pool.rest(self)

    def _send(self, job: _PendingCall, state: Connected) -> None:
        state.flying += 1
        job.on = state
        job.timer = self.pool.reactor.callLater(job.timeout_s, self._too_late, job)  # guard: A58 F52
        job.answer = state.link.ask(job.request)
        job.answer.addCallbacks(self._answered, self._failed, callbackArgs=(job,), errbackArgs=(job,)).addErrback(self.broken)

    def _answered(self, response: Response, job: _PendingCall) -> None:
        job.land()
        job.done.callback(response)
        self.go_on()

    def _failed(self, failure: Failure, job: _PendingCall) -> None:
        """All requests only read: one that lost its connection waits for a fresh one, once."""
        state, lost = job.on, failure.check(LinkLost) is not None
        job.land()
        if failure.check(CancelledError):
            return
        if lost and not job.again and state is self.state:
            job.again = True
            self._queue.append(job)
            return
        if state is not None:
            state.lost_again = lost
        job.done.errback(failure)
        self.go_on()

    def _too_late(self, job: _PendingCall) -> None:
        job.timer = None
        self._give_up(job)
        job.done.errback(LinkLost(f"no answer from {self.address} within {job.timeout_s:g} s"))
        self.go_on()

    def _forget(self, job: _PendingCall) -> None:
        if job.on is not None:
            self._give_up(job)
            self.go_on()
        elif job in self._queue:
            self._queue.remove(job)

    def _give_up(self, job: _PendingCall) -> None:
        """Nobody waits for the answer any more. A large one that would still come must not be let in: its connection ends."""
        answer, state = job.answer, job.on
        job.land()
        if answer is not None:
            answer.cancel()
        if state is not None and isinstance(job.request, LARGE):  # guard: S10
            state.link.close("closed because an index or a list that it was asked for is not wanted any more")

    def fail_queue(self, reason: str) -> None:
        """Fails all that waits."""
        self._told.clear()
        while self._queue:
            self._queue.popleft().done.errback(LinkLost(reason))


def _connect(events: ConnectionEvents, line: _AddressRequests) -> Connecting:
    attempt = line.pool.connect(line.address, _Refusing(events))
    line.state = state = Connecting(attempt)
    attempt.addCallbacks(events.connected, events.unconnected).addErrback(line.broken)
    return state


def _open(_events: ConnectionEvents, line: _AddressRequests, link: ClientLink) -> Connected:
    line.state = state = Connected(link)
    return state


def _connected(_events: ConnectionEvents, line: _AddressRequests, _state: Connecting, link: ClientLink) -> None:
    line.opened(link)


def _unconnected(_events: ConnectionEvents, line: _AddressRequests, _state: Connecting, failure: Failure) -> None:
    line.state = None
    line.pool.backoff.failed(line.address)
    line.fail_queue(failure.getErrorMessage() if failure.check(LinkLost) else f"the attempt to reach {line.address} was given up")
    line.pool.rest(line)


def _lost(_events: ConnectionEvents, line: _AddressRequests, state: Connected) -> None:
    line.state = None
    state.stop_idle()
    if state.lost_again:
        line.pool.backoff.failed(line.address)
        line.fail_queue(f"the connection to {line.address} was lost twice in a row")
    line.go_on()


def _stop(_events: ConnectionEvents, line: _AddressRequests, _state: object = None) -> None:
    state, line.state = line.state, None
    line.fail_queue("this node is stopping")
    if state is not None:
        state.end()
    line.pool.rest(line)


def _connection_machine() -> TypeMachine[ConnectionEvents, _AddressRequests]:
    builder = TypeMachineBuilder(ConnectionEvents, _AddressRequests)
    unconnected = builder.state("unconnected")
    connecting = builder.state("connecting", _connect)
    connected = builder.state("connected", _open)
    stopped = builder.state("stopped")

    unconnected.upon(ConnectionEvents.wanted).to(connecting).returns(None)
    connecting.upon(ConnectionEvents.connected).to(connected)(_connected)
    connecting.upon(ConnectionEvents.unconnected).to(unconnected)(_unconnected)
    connected.upon(ConnectionEvents.lost).to(unconnected)(_lost)
    unconnected.upon(ConnectionEvents.stop).to(stopped)(_stop)
    for state in (connecting, connected):
        state.upon(ConnectionEvents.stop).to(stopped)(_stop)
        state.upon(ConnectionEvents.wanted).loop().returns(None)  # told twice in one turn

    late: list[Callable[..., None]] = [ConnectionEvents.wanted, ConnectionEvents.unconnected, ConnectionEvents.lost, ConnectionEvents.stop]
    for event in late:
        stopped.upon(event).loop().returns(None)
    return builder.build()


ConnectionMachine = _connection_machine()


class Pool:
    """Implements :class:`ciruela.interfaces.Connector`: at most one connection to an address, made on demand, closed when idle.

    The n-th failure in a row blocks an address for n seconds. A request that lost its connection is sent once more, on a fresh one.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        limits: Limits = LIMITS,
        host_header: str = NODE_HOST,
        from_host: str = "",
        budgets: Budgets | None = None,
        in_thread: InThread = in_place,
    ) -> None:
        """``from_host``: as in :func:`connect`, so that peers know a node by the address at which it listens."""
        self.reactor = reactor
        self.connect = partial(
            connect, reactor, host_header=host_header, limits=limits, from_host=from_host, budgets=budgets or Budgets(), in_thread=in_thread
        )
        self.stopped = False
        self.backoff: Backoff[Address] = Backoff(reactor)
        self._lines: dict[Address, _AddressRequests] = {}
        self._spoken: BoundedMap[Address, tuple[bool, bool]] = BoundedMap(MOST_REMEMBERED)

    def ask(self, address: Address, request: Request, timeout_s: float | None = None) -> Deferred[Response]:
        """As :meth:`ciruela.interfaces.Connector.ask`. ``timeout_s`` runs from the sending; by default 30 s, for a block 5.6 s."""
        if self.stopped:
            return fail(LinkLost("this node is stopping"))
        line = self._line(address)
        if timeout_s is None:
            timeout_s = BLOCK_S if isinstance(request, GetBlock) else ANSWER_S
        answer = line.submit(request, timeout_s)
        self.rest(line)
        return answer

    def _line(self, address: Address) -> _AddressRequests:
        line = self._lines.get(address)
        if line is None:
            line = self._lines[address] = _AddressRequests(self, address)
        return line

    def connected(self, address: Address) -> bool:
        """As :meth:`ciruela.interfaces.Connector.connected`."""
        line = self._lines.get(address)
        return line is not None and line.link is not None

    def incoming(self, address: Address) -> int:
        """As :meth:`ciruela.interfaces.Connector.incoming`."""
        line = self._lines.get(address)
        return 0 if line is None or line.link is None else line.link.incoming

    def bulk(self, address: Address) -> bool:
        """As :meth:`ciruela.interfaces.Connector.bulk`."""
        return self._spoken.get(address, (False, False))[0]

    def exchanges(self, address: Address) -> bool | None:
        """As :meth:`ciruela.interfaces.Connector.exchanges`."""
        spoken = self._spoken.get(address)
        return None if spoken is None else spoken[1]

    def widen(self, address: Address) -> None:
        """As :meth:`ciruela.interfaces.Connector.widen`."""
        line = self._lines.get(address)
        if line is not None and line.link is not None:
            line.link.widen(gives=False)

    def fetch(self, address: Address, request: GetBlocks, land: Callable[[BlocksData], T]) -> Deferred[T] | None:
        """As :meth:`ciruela.interfaces.Connector.fetch`."""
        line = self._lines.get(address)
        return None if line is None else line.fetch(request, land)

    def tell(self, address: Address, notification: Notification) -> None:
        """As :meth:`ciruela.interfaces.Connector.tell`. Nothing, either, where it cannot be sent: who has to know hears of silence."""
        if not self.stopped:
            line = self._line(address)
            line.tell(notification)
            self.rest(line)

    def alive(self, address: Address) -> None:
        """As :meth:`ciruela.interfaces.Connector.alive`."""
        self.backoff.succeeded(address)

    def spoke(self, address: Address, link: Connection) -> None:
        """A connection to ``address`` is open: what was agreed upon there is remembered."""
        self._spoken.put(address, (link.bulk, link.exchanges))

    def complain(self, address: Address, failure: Failure) -> None:
        """A fault of ours with one connection."""
        self._log.failure("requests to {address} were not dealt with", failure, address=str(address))

    def rest(self, line: _AddressRequests) -> None:
        """Forget a line that has nothing left."""
        if line.resting:
            if self._lines.get(line.address) is line:
                del self._lines[line.address]
            if not line.closed.called:
                line.closed.callback(None)

    def stop(self) -> Deferred[None]:
        """Close everything; requests that wait fail with LinkLost. Fires when all connections are gone."""
        self.stopped = True
        lines = list(self._lines.values())
        gone = DeferredList([line.closed for line in lines])
        for line in lines:
            line.events.stop()
        return gone.addCallback(lambda _: None)
