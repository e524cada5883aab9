"""A dialogue with its two ends joined up: requests of ours are Deferreds, requests of theirs go to a counterpart.

Carries no bytes itself, so that a websocket and a memory network behave alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.clockwork import Hush
from ciruela.model.errors import SLOW_DOWN, Busy, LinkLost, RemoteError
from ciruela.proto.dialogue import Answered, Asked, Dialogue, Failed, Nothing, Told, TooMany, Violation
from ciruela.proto.messages import NEWER, Error, Notification, Request, Response, UploadAck
from ciruela.seams import Counterpart, Link

MOST_AT_WORK = 64
"""Requests of the other side that the counterpart has at a time; more wait here, and reading stops until they are taken."""

STRANGER_AT_WORK = 4
"""The same for one who has not shown a valid signature yet and is no configured peer (threats 6.3)."""


class Talk:
    """What is said on one link.

    ``send`` takes the bytes of one message. ``broken`` is told why the connection has to be closed. ``held`` is told True when requests
    begin to wait (stop reading), False when none wait any more. ``hush`` is for what is said about the messages of the other side.

    ``trusted`` becomes true with the first accepted upload, which had a valid signature. ``spoken`` tells that a request or a notification
    has come that could be understood.
    """

    _log = Logger()

    def __init__(
        self,
        link: Link,
        counterpart: Counterpart,
        send: Callable[[bytes], None],
        broken: Callable[[str], None],
        held: Callable[[bool], None],
        most_at_work: int = MOST_AT_WORK,
        *,
        trusted: bool = True,
        hush: Hush | None = None,
    ) -> None:
        self.trusted = trusted
        self.spoken = False
        self._hush = hush
        self._link = link
        self._counterpart = counterpart
        self._send = send
        self._broken = broken
        self._held = held
        self._most_at_work = most_at_work
        self._dialogue: Dialogue[Deferred[Response]] = Dialogue()
        self._waiting: deque[Asked] = deque()
        self._at_work = 0
        self._taking = False
        self._clogged = False
        self._over: str | None = None

    @property
    def large_due(self) -> bool:
        """Whether an answer as large as an index is due."""
        return self._dialogue.large_due

    @property
    def bulk_due(self) -> bool:
        """Whether an answer with many blocks is due."""
        return self._dialogue.bulk_due

    @property
    def over(self) -> bool:
        """Whether the link is gone."""
        return self._over is not None

    def ask(self, request: Request) -> Deferred[Response]:
        """As :meth:`ciruela.seams.Link.ask`."""
        if self._over is not None:
            failed: Deferred[Response] = Deferred()
            failed.errback(LinkLost(self._over))
            return failed
        if isinstance(request, NEWER) and not self._link.bulk:
            return fail(RemoteError(f"{type(request).__name__} is understood where ciruela.v2 was agreed upon"))
        done: Deferred[Response] = Deferred(lambda _: self._dialogue.forget(number))
        try:
            number, data = self._dialogue.ask(request, done)
        except TooMany as fault:
            done.errback(RemoteError(str(fault)))
            return done
        self._send(data)
        return done

    def tell(self, notification: Notification) -> None:
        """As :meth:`ciruela.seams.Link.tell`."""
        if self._over is None:
            self._send(self._dialogue.tell(notification))

    def received(self, data: bytes | bytearray) -> None:
        """Deal with one message of the other side."""
        if self._over is not None:
            return
        match self._dialogue.take(data):
            case Asked() as asked:
                self.spoken = True
                self._waiting.append(asked)
                self._work()
            case Answered(done, Error(text)):
                self._fail(done, text)
            case Answered(done, response):
                if not done.called:
                    done.callback(response)
            case Told(notification):
                self.spoken = True
                self._told(notification)
            case Failed(done, reason):
                self._fail(done, reason)
            case Nothing(reason, reply):
                if self._hush is not None:
                    source = self._link.name.rpartition(":")[0]
                    self._hush.info(self._log, "message", source, "{link}: {reason}", link=self._link.name, reason=reason)
                if reply is not None:
                    self._send(reply)
            case Violation(reason, failed):
                if failed is not None:
                    self._fail(failed, reason)
                self._broken(reason)

    def _fail(self, done: Deferred[Response], reason: str) -> None:
        if not done.called:
            done.errback(Busy(reason) if reason.startswith(SLOW_DOWN) else RemoteError(reason))

    def _told(self, notification: Notification) -> None:
        try:
            self._counterpart.notified(self._link, notification)
        except Exception:  # noqa: BLE001  a fault of ours must not cost the connection
            self._log.failure("{link}: a notification was not understood", link=self._link.name)

    # -- requests of the other side ------------------------------------------------------------------------------------------

    def clog(self, clogged: bool) -> None:
        """While clogged, no request is begun: what is ready to be sent has not been taken off our hands."""
        self._clogged = clogged
        self._work()

    def _work(self) -> None:
        if self._taking:
            return
        self._taking = True
        try:
            while self._waiting and not self._clogged and self._at_work < self._most():
                self._begin(self._waiting.popleft())
        finally:
            self._taking = False
        if self._over is None:
            self._held(bool(self._waiting))

    def _most(self) -> int:
        return self._most_at_work if self.trusted else min(STRANGER_AT_WORK, self._most_at_work)

    def _begin(self, asked: Asked) -> None:
        self._at_work += 1
        try:
            answer = self._counterpart.requested(self._link, asked.request)
        except Exception:  # noqa: BLE001  a fault of ours becomes an answer
            answer = Deferred()
            answer.errback(Failure())
        answer.addCallback(self._answered, asked).addErrback(self._refused, asked).addBoth(self._finished)

    def _answered(self, response: Response, asked: Asked) -> None:
        if isinstance(response, UploadAck) and response.accepted:
            self.trusted = True
        if self._over is None:
            self._send(self._dialogue.answer(asked.id, response))

    def _refused(self, failure: Failure, asked: Asked) -> None:
        if failure.check(RemoteError):
            text = failure.getErrorMessage()
        else:
            told, link, request = "{link}: {request} failed", self._link.name, type(asked.request).__name__
            if self._hush is None:
                self._log.failure(told, failure, link=link, request=request)
            else:
                source = (link.rpartition(":")[0], type(failure.value).__name__)
                self._hush.failure(self._log, "request", source, told, failure=failure, link=link, request=request)
            text = "internal error"
        if self._over is None:
            self._send(self._dialogue.answer(asked.id, Error(text)))

    def _finished(self, _result: object) -> None:
        self._at_work -= 1
        if self._waiting:
            self._work()

    def end(self, reason: str) -> None:
        """The link is gone: everything that waits fails with ``reason``, and the counterpart is told."""
        if self._over is not None:
            return
        self._over = reason
        self._waiting.clear()
        for done in self._dialogue.end():
            if not done.called:
                done.errback(LinkLost(reason))
        try:
            self._counterpart.lost(self._link)
        except Exception:  # noqa: BLE001  a fault of ours must not disturb the reactor
            self._log.failure("{link}: its end was not understood", link=self._link.name)
