"""Bulk connections: requests for blocks, and the blocks, over a socket that a thread owns; beside a connection for all else.

Whoever made that connection may open one: a client to give, a node to take. Autobahn does its handshake on the reactor, with all limits of
the port. Its first message is a ticket that the other side gave over the connection beside it. From then on the socket belongs to a thread
at each end, and carries nothing but whole binary frames: GetBlocks one way, its answers the other, as they are everywhere. What a block
costs on the way through a reactor (its turns, its callbacks, the way to a thread for each job and back) is left out by that.

One thread receives, checks and writes what the other reads and sends. The reactor asks, authorises and counts.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.interfaces import BlockGiving, Connection, RequestHandler
from ciruela.model.errors import SLOW_DOWN, Busy, CiruelaError, FormatError, LinkLost, RemoteError
from ciruela.model.ids import Block
from ciruela.net import frames
from ciruela.net.limits import BULK_BYTES
from ciruela.proto import codec
from ciruela.proto.messages import TICKET_BYTES, BlocksData, BulkTicket, Error, GetBlocks, OpenBulk, Request, Response

T = TypeVar("T")

SUBPROTOCOL = "ciruela.bulk"

MOST_CHANNELS = 64
"""Bulk connections of a process, each with a thread."""

MOST_ASKED = 1024
"""Requests under way on one."""

ASK_BYTES = 64 * 1024
"""Largest request."""

READY = b"ready"
"""First message of the side that was connected to: the thread there has the socket."""

TICKET_S = 10.0
"""A ticket is good for so long."""

SLICE_BYTES = 256 * 1024
"""So much is received at a time, so that it can be seen from outside that something comes."""

PART_S = 15.0
PART_BYTES_S = 1024
"""A message that has begun has to come within PART_S, and as long as its bytes take at PART_BYTES_S."""

STALL_S = 60.0
"""Time that the other side may read nothing for, while something is sent to it."""

STACK_BYTES = 512 * 1024
"""Stack of the thread: nothing in it goes deep, and some systems count what is only set aside."""

InReactor = Callable[..., object]
"""Calls a function with arguments in the reactor, from a thread: ``reactor.callFromThread``."""


class Broken(Exception):
    """The connection cannot go on: it ended, or the other side does what it may not. The text says why."""


# -- frames on a blocking socket ---------------------------------------------------------------------------------------------------------


def _exactly(source: socket.socket, into: memoryview, until_s: float | None, came: Callable[[int], None]) -> None:
    """Fills ``into``. With ``until_s`` (monotonic seconds) not later; without it the first byte may take any time. Raises Broken."""
    got = 0
    while got < len(into):
        try:
            size = source.recv_into(into[got : got + SLICE_BYTES], 0, socket.MSG_WAITALL)
        except BlockingIOError:  # SO_RCVTIMEO
            size = -1
        except OSError as error:
            raise Broken(error.strerror or str(error)) from None
        if not size:
            raise Broken("closed by the other side")
        if size > 0:
            got += size
            came(size)
            until_s = until_s or time.monotonic() + PART_S
        if until_s is not None and got < len(into) and time.monotonic() > until_s:  # guard: A19 F16
            raise Broken("its message came too slowly")


def receive(source: socket.socket, most: int, came: Callable[[int], None], *, masked: bool) -> bytearray:
    """Receives one message of at most ``most`` bytes, ``masked`` or not. ``came`` is told of bytes as they come. Raises Broken."""
    head = bytearray(2)
    view = memoryview(head)
    _exactly(source, view, None, came)
    until_s = time.monotonic() + PART_S
    length = head[1] & 0x7F
    more = {126: 2, 127: 8}.get(length, 0) + (frames.MASK_BYTES if masked else 0)
    rest = bytearray(more)
    _exactly(source, memoryview(rest), until_s, came)
    found = frames.head_of(bytes(head + rest), masked)
    if found is None:  # guard: A22 A24
        raise Broken("closed by the other side" if head[0] == frames.CLOSE else "it sent something else than a whole binary message")
    if found.length > most:  # guard: A21
        raise Broken(f"its message has {found.length} bytes, {most} may come")
    message = bytearray(found.length)
    _exactly(source, memoryview(message), until_s + found.length / PART_BYTES_S, came)
    if masked:
        frames.apply_mask(message, found.mask)
    return message


def framed(pieces: Sequence[Block], *, masked: bool) -> list[Block]:
    """Makes one binary message of ``pieces``, which are not copied unless they are ``masked``."""
    if not masked:
        return [frames.head_for(sum(map(len, pieces)), b""), *pieces]
    mask = os.urandom(frames.MASK_BYTES)
    hidden = bytearray().join(pieces)
    frames.apply_mask(hidden, mask)
    return [frames.head_for(len(hidden), mask), memoryview(hidden)]


def send(target: socket.socket, pieces: Sequence[Block]) -> None:
    """Sends all of ``pieces``. Raises Broken when the other side reads nothing for STALL_S."""
    left = deque(memoryview(piece) for piece in pieces if len(piece))
    while left:
        try:
            size = target.sendmsg(list(left)[:512])
        except BlockingIOError:  # SO_SNDTIMEO
            raise Broken(f"it read nothing for {STALL_S:g} s") from None
        except OSError as error:
            raise Broken(error.strerror or str(error)) from None
        while size and size >= len(left[0]):
            size -= len(left.popleft())
        if size:
            left[0] = left[0][size:]


# -- the two ends ------------------------------------------------------------------------------------------------------------------------


class BulkEnd(ABC):
    """End of a bulk connection: a thread that owns ``sock``, which must be blocking. ``masks``: this side masks what it sends.

    ``ended`` is called in the reactor, once, with the reason.
    """

    _log = Logger()

    def __init__(self, sock: socket.socket, name: str, in_reactor: InReactor, ended: Callable[[str], object], *, masks: bool) -> None:
        self.name = name
        self.incoming = 0
        self.reason: str | None = None
        self.ready = not masks
        self._socket = sock
        self._in_reactor = in_reactor
        self._on_end = ended
        self._masks = masks
        self._ticket: bytes | None = None
        self._thread = threading.Thread(target=self._run, name=f"bulk {name}", daemon=True)

    def start(self, ticket: bytes | None = None) -> None:
        """Lets the thread begin. With ``ticket`` the other side gave that, and has to be shown it; without it was shown to this side."""
        if ticket is None:
            self._send_at_once(READY)
        self._ticket = ticket
        before = threading.stack_size(STACK_BYTES)
        try:
            self._thread.start()
        except RuntimeError as error:  # the system allows no more threads
            self._over(f"no thread for it: {error}")
        finally:
            threading.stack_size(before)

    def end(self, reason: str) -> None:
        """Ends it, from the reactor. The thread sees that at once, unless it writes to a disk."""
        if self.reason is None:
            self.reason = reason
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                self._log.debug("{name} was gone: {error}", name=self.name, error=error)

    def _came(self, size: int) -> None:
        self.incoming += size

    def _receive(self, most: int) -> bytearray:
        message = receive(self._socket, most, self._came, masked=not self._masks)
        self.incoming = 0
        return message

    def _send_at_once(self, message: bytes) -> None:
        """Sends something short from the reactor, which cannot wait. The socket is never full of that unless the other side is broken."""
        data = b"".join(framed([message], masked=self._masks))
        try:
            size = self._socket.send(data, socket.MSG_DONTWAIT)
        except OSError:
            size = 0
        if size < len(data):
            self.end("it does not read what it is asked")

    def _run(self) -> None:
        reason = "closed"
        try:
            if self._ticket is not None:
                send(self._socket, framed([self._ticket], masked=self._masks))
                if self._receive(len(READY)) != READY:  # guard: A24
                    raise Broken("it did not take the ticket")
                self._in_reactor(self._ready)
            while True:
                self._step()
        except Broken as broken:
            reason = str(broken)
        except FormatError as fault:
            reason = f"it sent something that cannot be read: {fault}"
        # guard: I8
        except Exception:  # noqa: BLE001  a fault of ours ends this connection alone
            self._log.failure("bulk connection with {name}", name=self.name)
            reason = "a fault of this program"
        finally:
            self._in_reactor(self._over, reason)

    def _ready(self) -> None:
        """In the reactor: the other side took the ticket."""
        self.ready = True

    @abstractmethod
    def _step(self) -> None:
        """Receives one message, and does what it asks for; in the thread."""

    def _over(self, reason: str) -> None:
        """In the reactor: the thread has ended."""
        self.reason = self.reason or reason
        self._socket.close()
        self._left()
        self._on_end(self.reason)

    @abstractmethod
    def _left(self) -> None:
        """Lets go of what waits; in the reactor."""


@dataclass(eq=False, slots=True)
class _BulkRequest(Generic[T]):
    """A request under way. ``land`` is called with the answer, in the thread; ``done`` fires with what it gives, in the reactor."""

    land: Callable[[BlocksData], T]
    done: Deferred[T]


class BulkTaker(BulkEnd):
    """The end that asks for blocks, once it is ``ready``."""

    def __init__(self, sock: socket.socket, name: str, in_reactor: InReactor, ended: Callable[[str], object], *, masks: bool) -> None:
        super().__init__(sock, name, in_reactor, ended, masks=masks)
        self._waiting: dict[int, _BulkRequest[Any]] = {}
        self._landed: deque[tuple[_BulkRequest[Any], object]] = deque()
        self._told = False
        self._next = 0

    def fetch(self, request: GetBlocks, land: Callable[[BlocksData], T]) -> Deferred[T]:
        """Asks for blocks. Fires with what ``land`` gives; fails with what it raises, RemoteError, or LinkLost. Cancel to forget it."""
        if self.reason is not None:
            return fail(LinkLost(f"the bulk connection to {self.name} was lost: {self.reason}"))
        if len(self._waiting) >= MOST_ASKED:  # guard: A26 I6
            return fail(RemoteError(f"{MOST_ASKED} requests are under way at {self.name}"))
        number = self._next
        self._next += 1
        done: Deferred[T] = Deferred()
        self._waiting[number] = _BulkRequest(land, done)
        self._send_at_once(codec.encode_request(number, request))
        return done

    def _step(self) -> None:
        answer = codec.decode(self._receive(BULK_BYTES))
        if not isinstance(answer, codec.ResponseIn) or answer.id not in self._waiting:  # guard: A24
            raise Broken("it sent something that is no answer")
        waiting = self._waiting.pop(answer.id)
        if waiting.done.called:  # cancelled
            return
        result: object
        match answer.response:
            case BlocksData():
                try:
                    result = waiting.land(answer.response)
                # guard: I8
                except Exception:  # noqa: BLE001  whoever asked has to deal with it, like with any other
                    result = Failure()
            case Error(text):
                result = Failure(Busy(text) if text.startswith(SLOW_DOWN) else RemoteError(text))
            case _:
                raise Broken("it sent something that is no answer")  # guard: A24
        self._landed.append((waiting, result))
        # A busy reactor has one turn for many of them.
        if not self._told:
            self._told = True
            self._in_reactor(self._drain)

    def _drain(self) -> None:
        self._told = False
        while self._landed:
            waiting, result = self._landed.popleft()
            if not waiting.done.called:
                waiting.done.callback(result)

    def _left(self) -> None:
        self._drain()
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            if not one.done.called:
                one.done.errback(LinkLost(f"the bulk connection to {self.name} was lost: {self.reason}"))


class BulkGiver(BulkEnd):
    """The end that gives blocks: ``handler`` says which may be given over ``link``, beside which this is."""

    def __init__(
        self,
        sock: socket.socket,
        link: Connection,
        handler: RequestHandler,
        in_reactor: InReactor,
        ended: Callable[[str], object],
        *,
        masks: bool,
    ) -> None:
        super().__init__(sock, link.name, in_reactor, ended, masks=masks)
        self._link = link
        self._handler = handler
        self._answers: SimpleQueue[BlockGiving | Error | None] = SimpleQueue()

    def end(self, reason: str) -> None:
        """As :meth:`BulkEnd.end`."""
        super().end(reason)
        self._answers.put(None)

    def _step(self) -> None:
        asked = codec.decode(self._receive(ASK_BYTES))
        if not isinstance(asked, codec.RequestIn) or not isinstance(asked.request, GetBlocks):  # guard: A24 A29 I13
            raise Broken("it asked for something else than blocks")
        request = asked.request
        self._in_reactor(self._ask, request)
        giving = self._answers.get()
        if giving is None:
            raise Broken("closed by us")
        blocks: BlocksData | None = None
        answer: list[Block]
        if isinstance(giving, Error):
            answer = [codec.encode_response(asked.id, "GetBlocks", giving)]
        else:
            try:
                blocks = giving.make()
                answer = codec.many_pieces(asked.id, blocks)
            # guard: I8
            except Exception:  # noqa: BLE001  the reactor says it in the log
                self._in_reactor(self._failed, Failure())
                answer = [codec.encode_response(asked.id, "GetBlocks", Error("these blocks cannot be read"))]
        send(self._socket, framed(answer, masked=self._masks))
        self._in_reactor(self._sent, request, giving, blocks)

    def _left(self) -> None:
        """Nothing waits here."""

    def _ask(self, request: GetBlocks) -> None:
        """In the reactor: asks the request handler."""
        maybeDeferred(self._handler.giving, self._link, request).addCallbacks(self._answers.put, self._refused).addErrback(self._failed)

    def _refused(self, failure: Failure) -> None:
        if failure.check(CiruelaError) is None:
            self._failed(failure)
            self._answers.put(Error("internal error"))  # guard: A24
        else:
            self._answers.put(Error(failure.getErrorMessage()))

    def _failed(self, failure: Failure) -> None:
        self._log.failure("blocks could not be given to {name}", failure, name=self.name)

    def _sent(self, request: GetBlocks, giving: BlockGiving | Error, blocks: BlocksData | None) -> None:
        """In the reactor: the answer has left."""
        if blocks is not None and not isinstance(giving, Error):
            giving.made(blocks)
        self._handler.answered(self._link, request, blocks is not None)


# -- how a socket gets here --------------------------------------------------------------------------------------------------------------


def take(transport: Any) -> socket.socket:
    """Takes the socket of a Twisted transport, which does nothing with it any more and closes it when it is aborted. Raises Broken."""
    transport.stopReading()
    transport.stopWriting()
    handle = transport.getHandle() if hasattr(transport, "getHandle") else None
    if not isinstance(handle, socket.socket) or transport.dataBuffer or transport._tempDataBuffer:
        raise Broken("this connection is no plain TCP connection, or something was sent already")
    own = handle.dup()
    own.setblocking(True)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(PART_S), 0))
    own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(STALL_S), 0))
    return own


class BulkHost(Protocol):
    """Connection beside which a bulk connection may be."""

    @property
    def alive(self) -> bool:
        """Tells whether it is open."""

    def attach(self, sock: socket.socket, ended: Callable[[str], object], *, gives: bool) -> BulkEnd:
        """Begins with a socket; the other side ``gives``, or takes. ``ended`` as in :class:`BulkEnd`."""


@dataclass(eq=False, slots=True)
class _Issued:
    """A ticket that was given to the other side of ``link``."""

    link: BulkHost
    gives: bool
    expiry: IDelayedCall


class Tickets:
    """The tickets that a process gave, and the number of bulk connections that are ``open`` by them."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._issued: dict[bytes, _Issued] = {}
        self.open = 0

    def issue(self, link: BulkHost, *, gives: bool) -> BulkTicket:
        """Makes a ticket for one bulk connection beside ``link``. Raises RemoteError when there are too many."""
        if len(self._issued) + self.open >= MOST_CHANNELS:  # guard: A20 F17 I6
            raise RemoteError(f"{SLOW_DOWN}: {MOST_CHANNELS} bulk connections are open")
        ticket = os.urandom(TICKET_BYTES)
        self._issued[ticket] = _Issued(link, gives, self._clock.callLater(TICKET_S, self._issued.pop, ticket, None))
        return BulkTicket(ticket)

    def redeem(self, ticket: bytes, transport: Any, ended: Callable[[str], object]) -> BulkEnd | None:
        """Begins the bulk connection that ``ticket`` stands for, over ``transport``; None for no ticket of ours. Raises Broken."""
        issued = self._issued.pop(ticket, None)  # guard: A24, pop -> get
        if issued is None or not issued.link.alive:  # guard: A24 A29
            return None
        issued.expiry.cancel()

        def over(reason: str) -> None:
            self.open -= 1
            ended(reason)

        end = issued.link.attach(take(transport), over, gives=issued.gives)
        self.open += 1
        return end


class BulkBeside(ABC):
    """Base of a connection beside which there may be bulk connections: one to take blocks, one to give them."""

    log_bulk = Logger(namespace="ciruela.net.bulk")
    factory: Any
    name: str
    taking: BulkTaker | None = None
    giving: BulkGiver | None = None

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Tells whether requests can be sent."""

    @abstractmethod
    def ask(self, request: Request) -> Deferred[Response]:
        """As :meth:`ciruela.interfaces.Connection.ask`."""

    def fetch(self, request: GetBlocks, land: Callable[[BlocksData], T]) -> Deferred[T] | None:
        """As :meth:`ciruela.interfaces.Connection.fetch`."""
        return self.taking.fetch(request, land) if self.taking is not None and self.taking.ready else None

    def ticket(self, gives: bool) -> BulkTicket:  # noqa: ARG002
        """As :meth:`ciruela.net.session.MessageLink.ticket`."""
        raise RemoteError("bulk connections are made by who made this one")

    @abstractmethod
    def widen(self, *, gives: bool) -> None:
        """As :meth:`ciruela.interfaces.Connection.widen`."""

    def attach(self, sock: socket.socket, ended: Callable[[str], object], *, gives: bool, masks: bool = False) -> BulkEnd:
        """As :meth:`ciruela.net.bulk.BulkHost.attach`. ``masks``: this side connected."""
        in_reactor = self.factory.in_reactor
        if gives:
            self.taking = BulkTaker(sock, self.name, in_reactor, partial(self._no_bulk, ended), masks=masks)
            return self.taking
        self.giving = BulkGiver(
            sock, cast(Connection, self), self.factory.counterpart, in_reactor, partial(self._no_bulk, ended), masks=masks
        )
        return self.giving

    def _no_bulk(self, ended: Callable[[str], object], reason: str) -> None:
        """A bulk connection beside this one has ended; this one goes on, and has the blocks again."""
        if self.taking is not None and self.taking.reason is not None:
            self.taking = None
        if self.giving is not None and self.giving.reason is not None:
            self.giving = None
        if self.alive:
            self.log_bulk.debug("the bulk connection with {link} ended: {reason}", link=self.name, reason=reason)
        ended(reason)

    def end_bulk(self, reason: str) -> None:
        """Ends them: this connection is gone."""
        for end in (self.taking, self.giving):
            if end is not None:
                end.end(reason)

    def open_bulk(self, connect: Callable[[], Deferred[Any]], *, gives: bool) -> None:
        """Opens one to the other side, over what ``connect`` makes, on which this side ``gives`` or takes."""
        self.ask(OpenBulk(gives)).addCallback(self._connect_bulk, connect, gives).addErrback(self._not_opened)

    def _connect_bulk(self, answer: Response, connect: Callable[[], Deferred[Any]], gives: bool) -> Deferred[None]:
        if not isinstance(answer, BulkTicket):
            raise RemoteError("the answer to OpenBulk is something else")
        return connect().addCallback(self._begin_bulk, answer.ticket, gives)

    def _begin_bulk(self, other: Any, ticket: bytes, gives: bool) -> None:
        if not self.alive:
            other.close("the connection beside it is gone")
            return
        try:
            own = take(other.transport)
        except Broken as broken:
            other.close(str(broken))
            raise LinkLost(str(broken)) from None
        self.attach(own, other.close, gives=not gives, masks=True).start(ticket)

    def _not_opened(self, failure: Failure) -> None:
        if failure.check(RemoteError, LinkLost, CancelledError) is None:
            self.log_bulk.failure("no bulk connection to {link}", failure, link=self.name)
        else:
            self.log_bulk.debug("no bulk connection to {link}: {reason}", link=self.name, reason=failure.getErrorMessage())
