"""Connections to nodes: one of them, and a pool that makes, shares and closes them (protocol section 2.4)."""

from __future__ import annotations

import ipaddress
from collections import deque
from dataclasses import dataclass, field
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, DeferredList, fail
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.interfaces import Address, Connection, InThread, RequestHandler
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.net.connection import ClientLink, client_links
from ciruela.net.limits import LIMITS, Budgets, Limits
from ciruela.proto.messages import GetBlock, Notification, Request, Response
from ciruela.proto.multiplexer import LARGE, MAX_PENDING
from ciruela.runtime import Backoff, in_place

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
) -> Deferred[ClientLink]:
    """A link to the node at ``address``, open. ``timeout_s`` is for TCP and handshake together.

    ``from_host``: numeric address of this host from which the connection leaves, where that can be; by default the system chooses.
    Fails with LinkLost, in words for people. Cancelling gives up, and fails with CancelledError.
    """
    endpoint_class = TCP6ClientEndpoint if ":" in address.host else TCP4ClientEndpoint
    bound = (from_host, 0) if from_host and can_leave_from(from_host, address.host) else None
    # The endpoint's own timeout comes later than ours, which is for the handshake as well: there is one message for both.
    endpoint = endpoint_class(reactor, address.host, address.port, timeout=timeout_s + 1, bindAddress=bound)
    factory = client_links(counterpart, reactor, host_header, limits, budgets, in_thread)
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

    def __init__(self, line: _AddressState) -> None:
        self._line = line

    def requested(self, link: Connection, request: Request) -> Deferred[Response]:  # noqa: ARG002
        return fail(RemoteError("requests are not answered on this connection"))

    def notified(self, link: Connection, notification: Notification) -> None:
        """Nothing that is told here is of use."""

    def lost(self, link: Connection) -> None:
        self._line.lost(link)


@dataclass(eq=False, slots=True)
class _PendingCall:
    """One request of a caller, over all its attempts."""

    request: Request
    timeout_s: float
    done: Deferred[Response] = field(init=False)
    answer: Deferred[Response] | None = None
    timer: IDelayedCall | None = None
    again: bool = False

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class _AddressState:
    """Everything for one address: at rest (no link, no attempt), connecting (an attempt), or open (a link)."""

    def __init__(self, pool: Pool, address: Address) -> None:
        self._pool = pool
        self.address = address
        self._attempt: Deferred[ClientLink] | None = None
        self._standing = 0
        self._struck = False
        self._idle: IDelayedCall | None = None
        self._queue: deque[_PendingCall] = deque()
        self._flying: set[_PendingCall] = set()
        self.link: ClientLink | None = None
        self.closed: Deferred[None] = Deferred()

    @property
    def resting(self) -> bool:
        return self._standing == 0 and self._attempt is None and not self._queue and not self._flying

    def submit(self, request: Request, timeout_s: float) -> Deferred[Response]:
        if self.link is None and self._attempt is None and self._pool.backoff.blocked(self.address):
            return fail(LinkLost(f"{self.address} failed a moment ago and is left alone for now"))
        if len(self._queue) >= MOST_QUEUED:
            return fail(LinkLost(f"{MOST_QUEUED} requests wait for {self.address} already"))
        job = _PendingCall(request, timeout_s)
        job.done = Deferred(lambda _: self._forget(job))
        self._queue.append(job)
        self._go_on()
        return job.done

    def _go_on(self) -> None:
        link = self.link
        if link is not None:
            while self._queue and len(self._flying) < self._pool.most_flying and link.alive:
                self._send(self._queue.popleft(), link)
            self._set_idle()
        elif self._queue and self._attempt is None:
            self._connect()

    # -- the connection ------------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        pool = self._pool
        attempt = self._attempt = connect(
            pool.reactor,
            self.address,
            _Refusing(self),
            pool.host_header,
            pool.connect_s,
            pool.limits,
            pool.from_host,
            pool.budgets,
            pool.in_thread,
        )
        attempt.addCallbacks(self._connected, self._unconnected).addErrback(self._broken)

    def _broken(self, failure: Failure) -> None:
        """A fault of ours: what waits must not wait for ever."""
        self._pool.complain(self.address, failure)
        self._fail_queue(f"the connection to {self.address} was not taken in")

    def _connected(self, link: ClientLink) -> None:
        self._attempt = None
        self._standing += 1
        link.gone.addCallback(self._gone).addErrback(lambda failure: self._pool.complain(self.address, failure))
        self._pool.backoff.succeeded(self.address)
        self._pool.spoke(self.address, link.bulk)
        self.link = link
        self._go_on()

    def _unconnected(self, failure: Failure) -> None:
        self._attempt = None
        self._pool.backoff.failed(self.address)
        reason = failure.getErrorMessage() if failure.check(LinkLost) else f"the attempt to reach {self.address} was given up"
        self._fail_queue(reason)
        self._pool.rest(self)

    def lost(self, link: Connection) -> None:
        """The link is gone. What was under way and had its first try waits for a fresh connection: all requests only read."""
        if link is not self.link:
            return
        self.link = None
        self._set_idle()
        if self._struck:
            self._struck = False
            self._pool.backoff.failed(self.address)
            self._fail_queue(f"the connection to {self.address} was lost twice in a row")
        self._go_on()

    def _gone(self, _: object) -> None:
        self._standing -= 1
        self._pool.rest(self)

    def _set_idle(self) -> None:
        busy = self.link is None or self._queue or self._flying
        if busy and self._idle is not None:
            self._idle.cancel()
            self._idle = None
        elif not busy and self._idle is None:
            self._idle = self._pool.reactor.callLater(self._pool.idle_s, self._leave)

    def _leave(self) -> None:
        self._idle = None
        if self.link is not None:
            self.link.close("closed because it was idle")

    def close(self) -> None:
        """End everything; ``closed`` fires when nothing is left."""
        self._fail_queue("this node is stopping")
        if self._attempt is not None:
            self._attempt.cancel()
        if self.link is not None:
            self.link.close()
        self._pool.rest(self)

    # -- requests ------------------------------------------------------------------------------------------------------------

    def _send(self, job: _PendingCall, link: ClientLink) -> None:
        self._flying.add(job)
        job.timer = self._pool.reactor.callLater(job.timeout_s, self._too_late, job)
        job.answer = link.ask(job.request)
        job.answer.addCallbacks(self._answered, self._failed, callbackArgs=(job,), errbackArgs=(job,)).addErrback(self._broken)

    def _landed(self, job: _PendingCall) -> None:
        self._flying.discard(job)
        job.stop_timer()
        job.answer = None

    def _answered(self, response: Response, job: _PendingCall) -> None:
        self._landed(job)
        job.done.callback(response)
        self._go_on()

    def _failed(self, failure: Failure, job: _PendingCall) -> None:
        again = failure.check(LinkLost) is not None and not job.again and not self._pool.stopped
        self._landed(job)
        if failure.check(CancelledError):
            return
        if again:
            job.again = True
            self._queue.append(job)
            return
        self._struck = failure.check(LinkLost) is not None
        job.done.errback(failure)
        self._go_on()

    def _too_late(self, job: _PendingCall) -> None:
        job.timer = None
        self._give_up(job)
        job.done.errback(LinkLost(f"no answer from {self.address} within {job.timeout_s:g} s"))
        self._go_on()

    def _forget(self, job: _PendingCall) -> None:
        if job in self._flying:
            self._give_up(job)
            self._go_on()
        elif job in self._queue:
            self._queue.remove(job)

    def _give_up(self, job: _PendingCall) -> None:
        """Nobody waits for the answer any more. A large one that would still come must not be let in: its connection ends."""
        answer = job.answer
        self._landed(job)
        if answer is not None:
            answer.cancel()
        if self.link is not None and isinstance(job.request, LARGE):
            self.link.close("closed because an index or a list that it was asked for is not wanted any more")

    def _fail_queue(self, reason: str) -> None:
        while self._queue:
            self._queue.popleft().done.errback(LinkLost(reason))


class Pool:
    """Implements :class:`ciruela.interfaces.Connector`: at most one connection to an address, made on demand, closed when idle.

    The n-th failure in a row blocks an address for n seconds. A request that lost its connection is sent once more, on a fresh one.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        connect_s: float = CONNECT_S,
        idle_s: float = IDLE_S,
        most_flying: int = MAX_PENDING,
        limits: Limits = LIMITS,
        host_header: str = NODE_HOST,
        from_host: str = "",
        budgets: Budgets | None = None,
        in_thread: InThread = in_place,
    ) -> None:
        """``from_host``: as in :func:`connect`, so that peers know a node by the address at which it listens."""
        self.reactor = reactor
        self.from_host = from_host
        self.budgets = budgets or Budgets()
        self.in_thread = in_thread
        self.host_header = host_header
        self.connect_s = connect_s
        self.idle_s = idle_s
        self.most_flying = most_flying
        self.limits = limits
        self.stopped = False
        self.backoff: Backoff[Address] = Backoff(reactor)
        self._lines: dict[Address, _AddressState] = {}
        self._bulk: dict[Address, None] = {}

    def ask(self, address: Address, request: Request, timeout_s: float | None = None) -> Deferred[Response]:
        """As :meth:`ciruela.interfaces.Connector.ask`. ``timeout_s`` runs from the sending; by default 30 s, for a block 5.6 s."""
        if self.stopped:
            return fail(LinkLost("this node is stopping"))
        line = self._lines.get(address)
        if line is None:
            line = self._lines[address] = _AddressState(self, address)
        if timeout_s is None:
            timeout_s = BLOCK_S if isinstance(request, GetBlock) else ANSWER_S
        answer = line.submit(request, timeout_s)
        self.rest(line)
        return answer

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
        return address in self._bulk

    def alive(self, address: Address) -> None:
        """As :meth:`ciruela.interfaces.Connector.alive`."""
        self.backoff.succeeded(address)

    def spoke(self, address: Address, bulk: bool) -> None:
        """A connection to ``address`` is open; ``bulk`` tells what was agreed upon."""
        self._bulk.pop(address, None)
        if bulk:
            self._bulk[address] = None
            if len(self._bulk) > MOST_REMEMBERED:
                del self._bulk[next(iter(self._bulk))]

    def complain(self, address: Address, failure: Failure) -> None:
        """A fault of ours with one connection."""
        self._log.failure("requests to {address} were not dealt with", failure, address=str(address))

    def rest(self, line: _AddressState) -> None:
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
            line.close()
        return gone.addCallback(lambda _: None)
