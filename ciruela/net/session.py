"""Session on one connection: requests of ours are Deferreds, requests of theirs go to a request handler.

Carries no bytes itself, so that a websocket and a memory network behave alike.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.interfaces import Connection, InThread, RequestHandler
from ciruela.model.errors import SLOW_DOWN, Busy, FormatError, LinkLost, NoImages, RemoteError
from ciruela.model.upload import RejectReason
from ciruela.net.limits import AnswerBudget
from ciruela.proto import codec
from ciruela.proto.messages import (
    AppendDir,
    BulkTicket,
    Error,
    ExchangePieces,
    GetBlocks,
    Notification,
    OpenBulk,
    RemoveDir,
    ReplaceDir,
    Request,
    Response,
    UploadAck,
)
from ciruela.proto.multiplexer import (
    LARGE,
    Answered,
    Failed,
    Nothing,
    NotificationReceived,
    RequestMultiplexer,
    RequestReceived,
    TooMany,
    Violation,
    read,
)
from ciruela.proto.table import NEWER, deadly, no_images_at
from ciruela.runtime import RateLimitedLog, in_place

MOST_AT_WORK = 64
"""Requests of the other side that the request handler has at a time; more wait here, and reading stops until they are taken."""

_SIGNED = (AppendDir, ReplaceDir, RemoveDir)
"""Wishes that are accepted with a valid signature only."""

_HEAVY = (*LARGE, GetBlocks)
"""Requests of those who are not known whose answers are made only while there is room for them; blocks are given to others at any time."""

T = TypeVar("T")

STRANGER_AT_WORK = 4
"""The same for one who has not shown a valid signature yet and is no configured peer (threats 6.3)."""


LONG_LIST_BYTES = 128 * 1024
"""A list that is longer, of some 1,000 images, is decoded in a thread."""

_SIGNED_WELL = frozenset({RejectReason.ALREADY_EXISTS.value, RejectReason.ALREADY_UPLOADING.value, RejectReason.REPLACE_DOESNT_MATCH.value})
"""Refusals for what is there, of a wish with a valid signature; who sent it may wait for what becomes of the path."""


class MessageLink(Connection, Protocol):
    """A link as its session sees it: carries single messages, and acts on how the session goes."""

    def send_message(self, head: bytes, shared: bytes = b"", /, *, urgent: bool = False) -> None:
        """Send one message, in one part or two; ``urgent``: before answers that wait."""

    def break_off(self, reason: str, /) -> None:
        """Close the connection for what the other side did."""

    def hold(self, waits: bool, /) -> None:
        """Requests begin to wait (stop reading), or none wait any more."""

    def ticket(self, gives: bool, /) -> BulkTicket:
        """Allows a bulk connection, on which the other side ``gives`` or takes. Raises RemoteError."""

    def noise(self, told: bool, /) -> None:
        """A message changed nothing. ``told``: it was a notification that is known, which means something to a client, little to a node."""


class Session:
    """Session on one connection: decodes, limits and answers what the other side sends.

    ``hush`` is for what is said about the messages of the other side. ``answers``: the budget for large answers that links share.

    ``trusted`` becomes true with the first accepted upload, which had a valid signature; ``known`` also with one that was refused for
    what is there. ``granted`` counts the requests that were. ``spoken`` tells that a request or a notification has come that could be
    understood.
    """

    _log = Logger()

    def __init__(
        self,
        link: MessageLink,
        counterpart: RequestHandler,
        most_at_work: int = MOST_AT_WORK,
        *,
        trusted: bool = True,
        hush: RateLimitedLog | None = None,
        answers: AnswerBudget | None = None,
        in_thread: InThread = in_place,
    ) -> None:
        self.trusted = self.known = trusted
        self.spoken = False
        self.granted = 0
        self._answers = answers or AnswerBudget()
        self._in_thread = in_thread
        self._large_at_work = False
        self._hush = hush
        self._link = link
        self._counterpart = counterpart
        self._most_at_work = most_at_work
        self._dialogue: RequestMultiplexer[Deferred[Response]] = RequestMultiplexer()
        self._waiting: deque[RequestReceived] = deque()
        self._at_work = 0
        self._taking = False
        self._clogged = False
        self._over: str | None = None

    @property
    def large_due(self) -> bool:
        """Tells whether an answer as large as an index is due."""
        return self._dialogue.large_due

    @property
    def bulk_due(self) -> bool:
        """Tells whether an answer with many blocks is due."""
        return self._dialogue.bulk_due

    @property
    def over(self) -> bool:
        """Tells whether the link is gone."""
        return self._over is not None

    def ask(self, request: Request) -> Deferred[Response]:
        """As :meth:`ciruela.interfaces.Connection.ask`."""
        if self._over is not None:
            failed: Deferred[Response] = Deferred()
            failed.errback(LinkLost(self._over))
            return failed
        version = NEWER.get(type(request), 1)
        if version > 1 + self._link.bulk + self._link.exchanges:  # guard: A24
            return fail(RemoteError(f"{type(request).__name__} is understood where ciruela.v{version} was agreed upon"))
        if not self._link.bulk and (path := deadly(request)) is not None:  # guard: I8
            return fail(NoImages(no_images_at(path)))
        done: Deferred[Response] = Deferred(lambda _: self._dialogue.forget(number))
        try:
            number, data = self._dialogue.ask(request, done)
        except TooMany as fault:
            done.errback(RemoteError(str(fault)))
            return done
        self._link.send_message(data, urgent=True)
        return done

    def tell(self, notification: Notification) -> None:
        """As :meth:`ciruela.interfaces.Connection.tell`."""
        if self._over is None:
            self._link.send_message(self._dialogue.tell(notification), urgent=isinstance(notification, ExchangePieces))

    def received(self, data: bytes | bytearray) -> None:
        """Deal with one message of the other side."""
        if self._over is not None:
            return
        if len(data) >= LONG_LIST_BYTES and codec.is_list(data):
            self._in_thread(read, data).addCallback(self._deal).addErrback(self._not_read)
        else:
            self._deal(read(data))

    def _not_read(self, failure: Failure) -> None:
        """A fault of ours: whoever waits for the list must not wait for ever."""
        self._log.failure("{link}: a list was not read", failure, link=self._link.name)
        self._link.break_off("a list that it sent was not read")

    def _deal(self, message: codec.Incoming | FormatError) -> None:
        if self._over is not None:
            return
        match self._dialogue.deal(message):
            case RequestReceived() as asked:
                self.spoken = True
                self._waiting.append(asked)
                self._work()
            case Answered(done, Error(text)):
                self._fail(done, text)
            case Answered(done, response):
                if not done.called:
                    done.callback(response)
            case NotificationReceived(notification):
                self.spoken = True
                if isinstance(notification, ExchangePieces):
                    if not self._told(notification):  # guard: S11
                        self._link.noise(True)
                    return
                self._link.noise(True)
                if self._over is None:
                    self._told(notification)
            case Failed(done, reason):
                self._fail(done, reason)
            case Nothing(reason, reply, late):
                if not late:
                    self._link.noise(False)
                if self._hush is not None:
                    source = self._link.name.rpartition(":")[0]
                    self._hush.info(self._log, "message", source, "{link}: {reason}", link=self._link.name, reason=reason)
                if reply is not None and self._over is None:
                    self._link.send_message(reply)
            case Violation(reason, failed):
                if failed is not None:
                    self._fail(failed, reason)
                self._link.break_off(reason)  # guard: A24 F18

    def _fail(self, done: Deferred[Response], reason: str) -> None:
        if not done.called:
            done.errback(Busy(reason) if reason.startswith(SLOW_DOWN) else RemoteError(reason))

    def _told(self, notification: Notification) -> bool:
        """Passes it on. Tells whether it is of use."""
        try:
            return self._counterpart.notified(self._link, notification) is True
        # guard: A24 F18 I8
        except Exception:  # noqa: BLE001  a fault of ours must not cost the connection
            self._log.failure("{link}: a notification was not understood", link=self._link.name)
        return False

    # -- requests of the other side ------------------------------------------------------------------------------------------

    def clog(self, clogged: bool) -> None:
        """While clogged, no request is begun: what is ready to be sent has not been taken off our hands."""
        self._clogged = clogged
        self._work()

    def _work(self) -> None:
        # An answer that is ready at once comes back here while it is begun: one loop takes all, or each would deepen the stack.
        if self._taking:
            return
        self._taking = True
        try:
            # guard: A25 A26 F19, without 2; A26, without 3
            while self._waiting and not self._clogged and self._at_work < self._most() and self._has_room(self._waiting[0].request):
                self._begin(self._waiting.popleft())
        finally:
            self._taking = False
        if self._over is None:
            self._link.hold(bool(self._waiting))

    def _most(self) -> int:
        return self._most_at_work if self.trusted else min(STRANGER_AT_WORK, self._most_at_work)

    def _has_room(self, request: Request) -> bool:
        """Tells whether the answer to ``request`` may be made now: one index or list at a time here, and of all links not too much."""
        if not isinstance(request, LARGE if self.trusted else _HEAVY):
            return True
        large = isinstance(request, LARGE)
        # guard: S7, (large and self._large_at_work) or ->
        if (large and self._large_at_work) or not self._answers.begin(self.trusted, self._work):
            return False
        self._large_at_work = self._large_at_work or large
        return True

    def _made(self, result: T, request: Request, trusted: bool) -> T:
        if isinstance(request, LARGE if trusted else _HEAVY):
            self._large_at_work = self._large_at_work and not isinstance(request, LARGE)
            self._answers.made(trusted)
        return result

    def _begin(self, asked: RequestReceived) -> None:
        self._at_work += 1
        # Remembered, because the answer may change it: the budget gets back what was taken for this side.
        trusted = self.trusted
        try:
            answer = self._answer(asked.request)
        # guard: I8
        except Exception:  # noqa: BLE001  a fault of ours becomes an answer
            answer = Deferred()
            answer.errback(Failure())
        answer.addCallback(self._answered, asked).addErrback(self._refused, asked).addBoth(self._made, asked.request, trusted)
        answer.addBoth(self._finished)

    def _answer(self, request: Request) -> Deferred[Response]:
        if isinstance(request, OpenBulk):
            return maybeDeferred(self._link.ticket, request.gives)
        return self._counterpart.requested(self._link, request)

    def _answered(self, response: Response | codec.Prepared, asked: RequestReceived) -> None:
        if not isinstance(response, UploadAck):
            self.granted += 1
        elif response.accepted and isinstance(asked.request, _SIGNED):
            self.trusted = self.known = True
        elif response.reject_reason in _SIGNED_WELL:
            self.known = True
        if self._over is None:
            head, shared = self._dialogue.answer(asked.id, response)
            self._link.send_message(head, shared) if shared else self._link.send_message(head)
            self._tell_answered(asked.request, True)

    def _refused(self, failure: Failure, asked: RequestReceived) -> None:
        if failure.check(RemoteError):
            text = failure.getErrorMessage()
        else:
            told, link, request = "{link}: {request} failed", self._link.name, type(asked.request).__name__
            if self._hush is None:
                self._log.failure(told, failure, link=link, request=request)
            else:
                source = (link.rpartition(":")[0], type(failure.value).__name__)
                self._hush.failure(self._log, "request", source, told, failure=failure, link=link, request=request)
            text = "internal error"  # guard: A24, -> failure.getErrorMessage()
        if self._over is None:
            self._link.send_message(self._dialogue.answer(asked.id, Error(text))[0])
            self._tell_answered(asked.request, False)

    def _tell_answered(self, request: Request, given: bool) -> None:
        try:
            self._counterpart.answered(self._link, request, given)
        # guard: I8
        except Exception:  # noqa: BLE001  a fault of ours must not cost the connection
            self._log.failure("{link}: that a request was answered was not understood", link=self._link.name)

    def _finished(self, _result: object) -> None:
        self._at_work -= 1
        if self._waiting:
            self._work()

    def end(self, reason: str) -> None:
        """The link is gone: everything that waits fails with ``reason``, and the request handler is told."""
        if self._over is not None:
            return
        self._over = reason
        self._waiting.clear()
        self._answers.forget(self._work)
        for done in self._dialogue.end():
            if not done.called:
                done.errback(LinkLost(reason))
        try:
            self._counterpart.lost(self._link)
        except Exception:  # noqa: BLE001  a fault of ours must not disturb the reactor
            self._log.failure("{link}: its end was not understood", link=self._link.name)
