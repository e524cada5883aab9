# ruff: noqa: N802, N803  half of the names here are Twisted's and Autobahn's
"""A websocket that carries ``ciruela.v1``, in both roles (protocol section 2).

What the reference needs and Autobahn does not do by itself: a ping each second that waits for no pong, any received byte counts as life,
no fragments, no compression, TCP closed soon after a close frame. What hostile peers need: a limit of size that is only raised while an
index is due, and a limit on what is queued for one who does not read (threats A19-A25).
"""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import txaio
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol, WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionRequest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.interfaces import Address, InThread, RequestHandler
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.net import frames
from ciruela.net.bulk import SUBPROTOCOL as BULK
from ciruela.net.bulk import Broken, BulkBeside, BulkEnd, Tickets
from ciruela.net.limits import (
    AHEAD_BYTES,
    BULK_BYTES,
    FRAMES_A_TURN,
    LIMITS,
    NOISE_A_SECOND,
    NOISE_AT_ONCE,
    ORDINARY_BYTES,
    STRANGER_BYTES,
    STRANGER_QUEUE_BYTES,
    Budgets,
    IdleTimeout,
    IsPeer,
    Limits,
    nobody,
)
from ciruela.net.sendqueue import SendQueue
from ciruela.net.session import Session
from ciruela.net.strict import Quiet, Strict
from ciruela.proto.messages import BulkTicket, Notification, Request, Response
from ciruela.runtime import RateLimitedLog, TokenBucket, in_place

T = TypeVar("T")

txaio.use_twisted()

SUBPROTOCOLS = ("ciruela.v3", "ciruela.v2", "ciruela.v1")
"""Subprotocols that are spoken, best first. A reference peer neither sends nor answers one; that is version 1."""

_VERSIONS: dict[str | None, int] = {name: len(SUBPROTOCOLS) - at for at, name in enumerate(SUBPROTOCOLS)}

PING_S = 1.0
"""A reference daemon drops who is silent for 5 s (protocol section 2.3)."""

PING = b"ciruela"
WAKE_BYTES = 256 * 1024
"""With so much still to come of a message, the kernel wakes us for no less."""

TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
UNSENT_BYTES = 128 * 1024
"""The kernel keeps so many bytes that the network has not taken: what is urgent waits behind them, and more says nothing of the link."""

MAX_HEAD_BYTES = 16 * 1024


_masks = frames.Masks()


class _Websocket(BulkBeside, Strict):
    """Base of both roles of a websocket; stands before an Autobahn protocol class in the order of bases."""

    log: Any = Quiet()
    _log = Logger(namespace="ciruela.net.connection")
    factory: Any
    transport: Any
    pings: bool
    current_frame: object
    inside_message: bool

    name = "a connection"
    host = ""
    bulk = exchanges = False
    subprotocol: str | None = None
    ignored_texts = 0

    _inbound: frames.Inbound | None = None
    _wakes_at = 1
    _left_in_turn = FRAMES_A_TURN
    _next_turn: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Twisted: the TCP connection stands."""
        self._clock: IReactorTime = self.factory.clock
        self._limits: Limits = self.factory.limits
        peer = self.transport.getPeer()
        if hasattr(peer, "port"):
            address = Address.of(peer.host, peer.port)
            self.name, self.host = str(address), address.host
        else:
            self.name = str(peer)
        self._budgets: Budgets = self.factory.budgets
        self._talk = Session(
            self,
            self.factory.counterpart,
            trusted=self.trusted(),
            hush=self.factory.hush,
            answers=self._budgets.answers,
            in_thread=self.factory.in_thread,
        )
        self._quiet = TokenBucket(self._clock, NOISE_A_SECOND, NOISE_AT_ONCE)
        self._queued = (False, 0)
        self._granted = self._sent = 0
        self._waits = False
        self._why: str | None = None
        handle = self.transport.getHandle() if hasattr(self.transport, "getHandle") else None
        self._socket = handle if isinstance(handle, socket.socket) else None
        if self._socket is not None and self._socket.family in (socket.AF_INET, socket.AF_INET6):
            self._socket.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        self._opened = self._held = self._gone = False
        self.gone: Deferred[None] = Deferred()
        self._outbox = SendQueue(self.transport, self._clock, self._limits.stall_s, self._outbox_changed, self._stalled)
        self._pulse_s = PING_S if self.pings else self._limits.silence_s / 5
        self._patience = IdleTimeout(self._limits, self._pulse_s)
        self._pulse = LoopingCall(self._beat)
        self._pulse.clock = self._clock
        self._deadline: IDelayedCall | None = self._clock.callLater(self._limits.handshake_s, self._late)
        super().connectionMade()  # type: ignore[misc]

    def _late(self) -> None:
        self._deadline = None
        self._drop(f"no websocket handshake within {self._limits.handshake_s:g} s")

    def onOpen(self) -> None:
        """Autobahn: the handshake is done."""
        self._cancel_deadline()
        if self.subprotocol == BULK:
            self.beside()
            return
        self._opened = True
        version = _VERSIONS.get(self.subprotocol, 1)
        self.bulk, self.exchanges = version >= 2, version >= 3
        self._set_limit()
        self.transport.registerProducer(self._outbox, True)
        self._pulse.start(self._pulse_s, now=False).addErrback(self._no_pulse)

    def _no_pulse(self, failure: Failure) -> None:
        """A connection that nobody watches must not stay."""
        self._log.failure("{link}: the pulse failed", failure, link=self.name)
        self._drop("its pulse failed")

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    @property
    def known(self) -> bool:
        """Tells whether a configured peer is there, or somebody who has shown a valid signature."""
        return self._talk.known

    @property
    def incoming(self) -> int:
        """As :meth:`ciruela.interfaces.Connection.incoming`."""
        beside = 0 if self.taking is None else self.taking.incoming
        return beside + (self.part_bytes if self._inbound is None else self._inbound.got)

    @property
    def alive(self) -> bool:
        """Tells whether requests can be sent. ``gone`` fires later, when TCP is gone too."""
        return self._opened and not self._talk.over

    # -- the Link ------------------------------------------------------------------------------------------------------------

    def ask(self, request: Request) -> Deferred[Response]:
        """As :meth:`ciruela.interfaces.Connection.ask`."""
        answer = self._talk.ask(request)
        self._set_limit()
        return answer

    def tell(self, notification: Notification) -> None:
        """As :meth:`ciruela.interfaces.Connection.tell`."""
        self._talk.tell(notification)

    def when_sent(self, call: Callable[[], None]) -> None:
        """Calls ``call`` when the system has taken all that was sent so far; never when the connection ends before."""
        self._outbox.when_sent(call)

    def close(self, reason: str = "closed by us") -> None:
        """Say goodbye and close TCP, after a second at the latest."""
        if self._gone:
            return
        if not self._opened:
            self._drop(reason)
            return
        self._why = self._why or reason
        self.end_bulk(reason)
        self._talk.end(f"the connection to {self.name} was {self._why}")
        self.sendClose(1000)  # type: ignore[attr-defined]
        self._abort_soon()

    def _abort_soon(self) -> None:
        if self._deadline is None and not self._gone:
            self._deadline = self._clock.callLater(self._limits.close_s, self._overdue)  # guard: A19

    def _overdue(self) -> None:
        self._deadline = None
        self._drop("the other side did not close its end")

    def trusted(self) -> bool:
        """For the roles: whether the other side may send and ask much from the start."""
        return True

    def overfull(self) -> None:
        """As :meth:`ciruela.net.limits.PartialHolder.overfull`."""
        self.break_off("it takes too long with a large message, and those of all connections together are too large")

    def noise(self, told: bool) -> None:
        """Something came that changes nothing. A node tells its clients much, a client a node next to nothing."""
        if not (told and not self.factory.isServer) and not self._quiet.take():  # guard: S11
            self.break_off("it sends more that means nothing than anybody has to read")

    def break_off(self, reason: str) -> None:
        """Close the connection for what the other side did, and say so in the log."""
        self.factory.hush.warn(
            self._log, "closing", self.name.rpartition(":")[0], "closing {link}: {reason}", link=self.name, reason=reason
        )
        self._drop(reason)

    def _drop(self, reason: str) -> None:
        if self._gone:
            return
        self._why = self._why or reason
        if self.state != self.STATE_CLOSED:  # type: ignore[attr-defined]
            self.dropConnection(abort=True)  # type: ignore[attr-defined]
        else:
            self.transport.abortConnection()

    # -- what comes in -------------------------------------------------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Twisted: bytes came."""
        self._patience.heard(len(data))
        if self.failedByMe:
            return
        if self._inbound is not None:
            data = data[self._inbound.take(data) :]
            self._collect(self._inbound)
            if not data or self.failedByMe:
                return
        if self._next_turn is not None:
            self.data += data
            return
        self._left_in_turn = FRAMES_A_TURN
        self._read(data)

    def _read(self, data: bytes) -> None:
        try:
            self._dataReceived(data)  # type: ignore[attr-defined]
        # guard: A22
        except Exception:  # noqa: BLE001  Autobahn raises on some broken handshakes; whatever it is, it ends this connection alone
            source = self.name.rpartition(":")[0]
            self.factory.hush.failure(self._log, "frame", source, "{link}: a frame or a handshake was not understood", link=self.name)
            self._drop("it does not speak websocket")
            return
        if not self._opened and len(self.data) > MAX_HEAD_BYTES:  # guard: A19
            self._drop("it does not speak websocket")
        elif self.incoming > ORDINARY_BYTES and not self._gone:
            self._budgets.partials.hold(self, self.incoming)  # guard: S10

    def _go_on(self) -> None:
        """The other connections had their turn."""
        self._next_turn = None
        if self.failedByMe or self._gone:
            return
        self._left_in_turn = FRAMES_A_TURN
        self._read(b"")
        self._set_held()

    def processData(self) -> bool:
        """Autobahn: look at what has come. A message in one frame is taken past it if it is here, or if one with many blocks is due.

        After so many steps the rest waits, and nothing more is read, until all other connections had their turn.
        """
        if not self._left_in_turn:  # guard: S11
            if self._next_turn is None:
                self._next_turn = self._clock.callLater(0, self._go_on)
                self._set_held()
            return False
        self._left_in_turn -= 1
        if self.current_frame is None and not self.inside_message and self.state == self.STATE_OPEN:  # type: ignore[attr-defined]
            head = frames.head_of(self.data, masked=self.factory.isServer)
            if head is not None and head.length <= self.maxMessagePayloadSize:
                end = head.start + head.length
                if end <= len(self.data):
                    message, self.data = self.data[head.start : end], self.data[end:]
                    self._message(frames.masked(message, head.mask))
                    return len(self.data) > 0
                # Memory is made before the bytes are here: for a long message only when it was asked for (threats A21).
                # guard: A21 F15, -> True; S10, -> self._talk.bulk_due or head.length <= AHEAD_BYTES
                if head.length <= (BULK_BYTES if self._talk.bulk_due else AHEAD_BYTES):
                    self._inbound = frames.Inbound(head)
                    self._inbound.take(self.data, head.start)
                    self.data = b""
                    self._collect(self._inbound)
                    return False
        return bool(super().processData())  # type: ignore[misc]

    def _collect(self, inbound: frames.Inbound) -> None:
        """Take what the kernel has of a message; deal with it when it is whole."""
        if inbound.rest and self._socket is not None:
            self._patience.heard(inbound.fill(self._socket))
        self._wake_at(min(WAKE_BYTES, inbound.rest) or 1)
        if not inbound.rest:
            self._inbound = None
            self._message(inbound.message())

    def _wake_at(self, size: int) -> None:
        """Let the kernel wake us when it has so many bytes. The pulse ends that, so that whoever is slow is still heard."""
        if size != self._wakes_at and self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            self._wakes_at = size

    def onMessageEnd(self) -> None:
        """Autobahn: a message is whole."""
        parts, self.message_data = self.message_data, None
        if not self.message_is_binary:  # guard: I8
            self.part_bytes = 0
            if not (self.failedByMe or self._talk.over):
                self.ignored_texts += 1
                self.noise(False)
            return
        self._message(parts[0] if len(parts) == 1 else b"".join(parts))

    def onPing(self, payload: bytes) -> None:
        """Autobahn: a ping came."""
        self.noise(False)
        super().onPing(payload)  # type: ignore[misc]

    def onPong(self, payload: bytes) -> None:  # noqa: ARG002  the name is Autobahn's
        """Autobahn: a pong came, which is never waited for."""
        self.noise(False)

    def _message(self, message: bytes | bytearray) -> None:
        self.part_bytes = 0
        self._budgets.partials.release(self)
        if self.failedByMe or self._talk.over:
            return
        self._patience.whole()
        self._talk.received(message)
        self._set_limit()

    def _set_limit(self) -> None:
        most = ORDINARY_BYTES if self._talk.trusted else STRANGER_BYTES  # guard: A21 F15, -> ORDINARY_BYTES
        if self._talk.large_due:  # guard: A21 F15, -> True
            most = self._limits.large_bytes
        elif self._talk.bulk_due:  # guard: A21, -> True
            most = BULK_BYTES
        self.maxFramePayloadSize = self.maxMessagePayloadSize = most

    def _most_queued(self) -> int:
        return self._limits.queue_bytes if self._talk.trusted else min(STRANGER_QUEUE_BYTES, self._limits.queue_bytes)

    def failed(self, why: str, said: bool) -> None:
        """As :meth:`ciruela.net.strict.Strict.failed`."""
        self._why = self._why or why
        if not said:
            self._drop(why)
            return
        self._talk.end(f"the connection to {self.name} was lost: {self._why}")
        self._set_held()  # what comes is not looked at, but the end of it is
        if not self._outbox.bytes:
            self.transport.loseWriteConnection()
        self._abort_soon()

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> bool | None:
        """Autobahn: the other side says goodbye; what it sends after that is not for us."""
        result: bool | None = super().onCloseFrame(code, reasonRaw)  # type: ignore[misc]
        self._why = self._why or "closed by the other side"
        self._talk.end(f"the connection to {self.name} was lost: {self._why}")
        self._abort_soon()
        return result

    def _coming(self) -> int:
        """The length of the message that is on its way, as far as it is known; 0 for none."""
        if self._inbound is not None:
            return self._inbound.length
        if self.current_frame is not None or self.inside_message:
            return max(1, self.part_bytes, int(getattr(self, "message_data_total_length", 0)))
        return len(self.data)

    def _beat(self) -> None:
        if self._talk.known or self._talk.granted != self._granted:
            self._patience.useful()
        self._patience.sent(self._outbox.sent_bytes - self._sent)
        self._granted, self._sent = self._talk.granted, self._outbox.sent_bytes
        why = self._patience.beat(
            held=self._held,
            coming_bytes=self._coming(),
            silent_so_far=not (self._talk.spoken or self._talk.trusted),
            large_due=self._talk.large_due,
        )
        if why is not None:
            self._drop(why)
            return
        self._wake_at(1)
        if self.pings:
            self.sendPing(PING)  # type: ignore[attr-defined]

    # -- what goes out -------------------------------------------------------------------------------------------------------

    def send_message(self, data: bytes, shared: bytes = b"", *, urgent: bool = False) -> None:
        """Send ``data``, and behind it what others may be sent as well, as one message. What is masked is this link's alone.

        ``urgent``: before messages that wait.
        """
        if self._held:
            self._patience.heard(0)
        if self.state == self.STATE_OPEN:  # type: ignore[attr-defined]
            mask = b"" if self.factory.isServer else _masks.next()
            if mask and shared:
                data, shared = data + shared, b""
            head = frames.head_for(len(data) + len(shared), mask)
            parts = (head, data, shared) if shared else (head, data)
            self._outbox.put(*parts, mask=mask, urgent=urgent)

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:  # noqa: ARG002
        """Autobahn: bytes for the transport."""
        self._outbox.put(data)

    def _outbox_changed(self) -> None:
        self._count_queued(self._outbox.bytes)
        self._talk.clog(self._outbox.bytes > self._most_queued())  # guard: A25 F19, -> self._talk.clog(False)

    def _count_queued(self, now_bytes: int) -> None:
        """Tell all links together what waits for this one, as one that is known by now or not."""
        known, before_bytes = self._queued
        self._queued = self._talk.trusted, now_bytes
        if known == self._talk.trusted:
            self._budgets.answers.queued(known, now_bytes - before_bytes)
        else:
            self._budgets.answers.queued(known, -before_bytes)
            self._budgets.answers.queued(self._talk.trusted, now_bytes)

    def _stalled(self) -> None:
        self._drop(f"it read nothing for {self._limits.stall_s:g} s")

    def hold(self, waits: bool) -> None:
        """Requests wait, or none does any more."""
        self._waits = waits
        self._set_held()

    def _set_held(self) -> None:
        """Read, unless requests wait, too much is queued, or the others have their turn; after a violation, to hear of the end."""
        held = self._waits or self._next_turn is not None or self._outbox.bytes > self._most_queued()
        held = held and not self.failedByMe
        if held == self._held or self._gone:
            return
        self._held = held
        if held:
            self.transport.pauseProducing()  # guard: A25
        else:
            self.transport.resumeProducing()

    # -- the end -------------------------------------------------------------------------------------------------------------

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Twisted: the TCP connection is gone."""
        self._gone = True
        self.end_bulk("the connection beside it is gone")
        self._socket = None
        self._cancel_deadline()
        if self._pulse.running:
            self._pulse.stop()
        self._outbox.end()
        self._count_queued(0)
        self._budgets.partials.release(self)
        if self._next_turn is not None:
            self._next_turn.cancel()
            self._next_turn = None
        super().connectionLost(reason)  # type: ignore[misc]
        why = self._why or "closed by the other side"
        if self._opened:
            self._talk.end(f"the connection to {self.name} was lost: {why}")
        self.ended(why)
        self.gone.callback(None)

    def ended(self, why: str) -> None:
        """For the roles: everything is cleaned up; ``why`` is for people."""

    def beside(self) -> None:
        """For the roles: this is to become a bulk connection."""


class ServerLink(_Websocket, WebSocketServerProtocol):  # type: ignore[misc]
    """The accepting end."""

    pings = False
    _bulk: BulkEnd | None = None

    def trusted(self) -> bool:
        """Tells whether a configured peer connects: it signs nothing, and has many requests under way."""
        return bool(self.factory.is_peer(getattr(self.transport.getPeer(), "host", "")))

    def onConnect(self, request: ConnectionRequest) -> str | None:
        """Autobahn: the handshake is in order, and the port has let it in; choose the subprotocol."""
        spoken = SUBPROTOCOLS if self.factory.tickets is None else (BULK, *SUBPROTOCOLS)
        self.subprotocol = next((one for one in spoken if one in request.protocols), None)
        return self.subprotocol

    @property
    def known(self) -> bool:
        """Tells whether a configured peer is there, or somebody who has shown a valid signature, here or beside."""
        return self._bulk is not None or super().known

    def ticket(self, gives: bool) -> BulkTicket:
        """As :meth:`ciruela.net.session.MessageLink.ticket`."""
        if not self._talk.trusted:  # guard: A20 A29
            raise RemoteError("bulk connections are for nodes, and for who has shown a valid signature")
        if self.factory.tickets is None or (self.taking if gives else self.giving) is not None:  # guard: A20, without 2
            raise RemoteError("there is no bulk connection more beside this one")
        return self.factory.tickets.issue(self, gives=gives)  # type: ignore[no-any-return]

    def widen(self, *, gives: bool) -> None:
        """As :meth:`ciruela.interfaces.Connection.widen`: nothing, for the other side made this connection."""

    def beside(self) -> None:
        """Waits for the ticket."""
        self._deadline = self._clock.callLater(self._limits.handshake_s, self._late)  # guard: A19 F16

    def _message(self, message: bytes | bytearray) -> None:
        if self.subprotocol != BULK:
            super()._message(message)
            return
        self._cancel_deadline()
        try:
            if self.data or self._bulk is not None:
                raise Broken("it did not wait for the answer to its ticket")
            self._bulk = self.factory.tickets.redeem(bytes(message), self.transport, self._drop)
        except Broken as broken:
            self.break_off(str(broken))
            return
        if self._bulk is None:
            self.break_off("its ticket was not given here, or is used up")
        else:
            self._bulk.start()


class ClientLink(_Websocket, WebSocketClientProtocol):  # type: ignore[misc]
    """The connecting end. ``opened`` fires with the link, or fails with LinkLost."""

    pings = True
    opened: Deferred[ClientLink]
    _widened = False

    def connectionMade(self) -> None:
        """Twisted: the TCP connection stands."""
        self.opened = Deferred(lambda _: self._drop("given up"))
        super().connectionMade()

    def startHandshake(self) -> None:
        """Autobahn: send the request. Its own has a Host with a port, where the reference's names none."""
        self.websocket_key = base64.b64encode(os.urandom(16))
        host = self.factory.host_header
        lines = (
            "GET / HTTP/1.1",
            f"Host: {host}",
            f"Origin: http://{host}/",
            "User-Agent: ciruela",
            "Connection: upgrade",
            "Upgrade: websocket",
            f"Sec-WebSocket-Key: {self.websocket_key.decode('ascii')}",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Protocol: {', '.join(self.factory.protocols)}",
        )
        self.http_request_data = "\r\n".join((*lines, "", "")).encode("ascii")
        self.sendData(self.http_request_data)

    def failHandshake(self, reason: str) -> None:
        """Autobahn: the answer is not a websocket."""
        words = str(getattr(self, "http_status_line", "")).split()
        refused = len(words) > 1 and words[0].startswith("HTTP/") and words[1] != "101"
        self._why = f"no websocket there: HTTP {words[1][:10]}" if refused else f"no websocket there: {reason[:200]}"
        super().failHandshake(reason)

    def onOpen(self) -> None:
        """Autobahn: the handshake is done."""
        self.subprotocol = getattr(self, "websocket_protocol_in_use", None)
        super().onOpen()
        self.opened.callback(self)

    def widen(self, *, gives: bool) -> None:
        """As :meth:`ciruela.interfaces.Connection.widen`. Tried once: without it, blocks come over this connection."""
        if self._widened or not self.exchanges or self.factory.again is None or self.factory.in_reactor is None:
            return
        self._widened = True
        self.open_bulk(self.factory.again, gives=gives)

    def ended(self, why: str) -> None:
        """Everything is cleaned up."""
        if not self.opened.called:
            self.opened.errback(LinkLost(f"cannot connect to {self.name}: {why}"))


def server_links(
    counterpart: RequestHandler,
    clock: IReactorTime,
    limits: Limits = LIMITS,
    is_peer: IsPeer = nobody,
    hush: RateLimitedLog | None = None,
    budgets: Budgets | None = None,
) -> WebSocketServerFactory:
    """A factory of accepted links. ``is_peer`` tells whether a configured peer has a numeric address."""
    factory: Any = WebSocketServerFactory(protocols=list(SUBPROTOCOLS), server="ciruela", reactor=clock)
    factory.protocol = ServerLink
    factory.setProtocolOptions(webStatus=False, allowNullOrigin=False)
    factory.is_peer = is_peer
    factory.tickets = Tickets(clock) if hasattr(clock, "callFromThread") else None
    _configure(factory, counterpart, clock, limits, budgets, in_place, hush)
    return factory  # type: ignore[no-any-return]


def client_links(
    counterpart: RequestHandler,
    clock: IReactorTime,
    host_header: str,
    limits: Limits = LIMITS,
    budgets: Budgets | None = None,
    in_thread: InThread = in_place,
    again: Callable[[], Deferred[ClientLink]] | None = None,
) -> WebSocketClientFactory:
    """A factory of links that connect, with ``host_header`` as Host.

    ``again`` connects to the same place for a bulk connection; without it this is to become one.
    """
    spoken = (BULK,) if again is None else SUBPROTOCOLS
    factory: Any = WebSocketClientFactory(protocols=list(spoken), useragent="ciruela", reactor=clock)
    factory.again = again
    factory.protocol = ClientLink
    factory.noisy = False
    factory.host_header = host_header
    factory.setProtocolOptions(serverConnectionDropTimeout=0)
    _configure(factory, counterpart, clock, limits, budgets, in_thread)
    return factory  # type: ignore[no-any-return]


def _configure(
    factory: Any,
    counterpart: RequestHandler,
    clock: IReactorTime,
    limits: Limits,
    budgets: Budgets | None,
    in_thread: InThread,
    hush: RateLimitedLog | None = None,
) -> None:
    factory.hush = hush or RateLimitedLog(clock)
    factory.budgets = budgets or Budgets()
    factory.in_thread = in_thread
    factory.in_reactor = getattr(clock, "callFromThread", None)
    factory.log = Quiet()
    factory.counterpart = counterpart
    factory.clock = clock
    factory.limits = limits
    factory.setProtocolOptions(
        maxFramePayloadSize=ORDINARY_BYTES,
        maxMessagePayloadSize=ORDINARY_BYTES,
        autoFragmentSize=0,
        failByDrop=True,
        openHandshakeTimeout=0,  # the timers of a link are its own: Autobahn's run on a global reactor
        closeHandshakeTimeout=0,
        autoPingInterval=0,
        tcpNoDelay=True,
    )
