"""Request multiplexer of one connection: ids, pending requests, and violations by the other side. No I/O.

Follows protocol section 3.2 and threats A24. ``T`` is whatever the owner wants back with an answer, usually a Deferred.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from ciruela.model.errors import FormatError
from ciruela.model.values import dataclass
from ciruela.proto import codec
from ciruela.proto.messages import (
    Error,
    GetBaseDir,
    GetBlocks,
    GetIndex,
    GetIndexAt,
    GetPathState,
    Notification,
    PushPull,
    Request,
    Response,
)

T = TypeVar("T")

MAX_PENDING = 64
"""Own requests without an answer; more are refused here."""

MAX_UNANSWERED = 4096
"""Requests of the other side without an answer; a reference daemon may have 11 for each image it downloads. More is a violation."""

MAX_STRAYS = 16
"""Answers to nothing and unreadable messages that are forgiven on one connection."""

LARGE = (GetIndex, GetIndexAt, GetBaseDir)
"""Requests whose answer may be as large as an index."""

_BULK = (GetBlocks, GetPathState, PushPull)


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """The other side asks; answer with :meth:`RequestMultiplexer.answer`."""

    id: int
    request: Request


@dataclass(frozen=True, slots=True)
class Answered(Generic[T]):
    """A request of ours has its answer, which may be an Error."""

    token: T
    response: Response


@dataclass(frozen=True, slots=True)
class Failed(Generic[T]):
    """A request of ours has an answer that cannot be read."""

    token: T
    reason: str


@dataclass(frozen=True, slots=True)
class NotificationReceived:
    """The other side tells something."""

    notification: Notification


@dataclass(frozen=True, slots=True)
class Nothing:
    """A message that changes nothing. ``reply`` must be sent when it is there. ``late``: it was asked for, and nobody waits any more."""

    reason: str
    reply: bytes | None = None
    late: bool = False


@dataclass(frozen=True, slots=True)
class Violation(Generic[T]):
    """The other side broke the rules: close the connection. ``token`` is the request that failed with it, if one did."""

    reason: str
    token: T | None = None


class TooMany(Exception):
    """More requests than this connection may have open; nothing was sent."""


@dataclass(frozen=True, slots=True)
class _PendingRequest(Generic[T]):
    name: str
    large: bool
    bulk: bool
    token: T | None


def read(data: bytes | bytearray) -> codec.Incoming | FormatError:
    """A message, or what is wrong with it. A long list takes a quarter of a second: call it in a thread."""
    try:
        return codec.decode(data)
    except FormatError as fault:
        return fault


class RequestMultiplexer(Generic[T]):
    """Both directions of one connection."""

    def __init__(self, most_pending: int = MAX_PENDING, most_unanswered: int = MAX_UNANSWERED, most_strays: int = MAX_STRAYS) -> None:
        self._most_pending = most_pending
        self._most_unanswered = most_unanswered
        self._most_strays = most_strays
        self._next = 1
        self._pending: dict[int, _PendingRequest[T]] = {}
        self._forgotten = 0
        self._large = self._bulk = 0
        self._unanswered: dict[int, str] = {}
        self.strays = 0

    @property
    def large_due(self) -> bool:
        """Tells whether an answer is due that may be as large as an index. A forgotten request counts until its answer came."""
        return self._large > 0  # guard: A21 F15, -> True

    @property
    def bulk_due(self) -> bool:
        """Tells whether an answer with many blocks, servers or facts is due. A forgotten request counts as above."""
        return self._bulk > 0

    @property
    def pending(self) -> int:
        """Own requests that wait for an answer."""
        return len(self._pending) - self._forgotten

    @property
    def unanswered(self) -> int:
        """Requests of the other side that wait for an answer."""
        return len(self._unanswered)

    def ask(self, request: Request, token: T) -> tuple[int, bytes]:
        """The id of a new request, and its bytes. Raises TooMany."""
        if self.pending >= self._most_pending:  # guard: A26
            raise TooMany(f"{self._most_pending} requests are waiting on this connection")
        number = self._next
        self._next += 1
        large, bulk = isinstance(request, LARGE), isinstance(request, _BULK)
        data = codec.encode_request(number, request)
        self._pending[number] = _PendingRequest(codec.request_name(request), large, bulk, token)
        self._large += large
        self._bulk += bulk
        return number, data

    def forget(self, number: int) -> None:
        """Nobody waits for the answer to ``number`` any more; it may still come. Unknown numbers are nothing."""
        entry = self._pending.get(number)
        if entry is None or entry.token is None:
            return
        self._pending[number] = _PendingRequest(entry.name, entry.large, entry.bulk, None)
        self._forgotten += 1
        if self._forgotten > 4 * self._most_pending:  # guard: A24 I6
            self._take(next(known for known, old in self._pending.items() if old.token is None))

    def _take(self, number: int) -> _PendingRequest[T] | None:
        entry = self._pending.pop(number, None)
        if entry is not None:
            self._large -= entry.large
            self._bulk -= entry.bulk
            self._forgotten -= entry.token is None
        return entry

    def answer(self, number: int, response: Response | codec.Prepared) -> tuple[bytes, bytes]:
        """The bytes that answer request ``number`` of the other side, and those that follow them and may be others' as well.

        Raises KeyError for a number that is not open, TypeError for a response that does not fit; such a request stays open.
        """
        parts = codec.encode_answer(number, self._unanswered[number], response)
        del self._unanswered[number]
        return parts

    def tell(self, notification: Notification) -> bytes:
        """The bytes of a notification."""
        return codec.encode_notification(notification)

    def end(self) -> list[T]:
        """Close both directions: the tokens of all requests that wait."""
        waiting = [entry.token for entry in self._pending.values() if entry.token is not None]
        self._pending.clear()
        self._unanswered.clear()
        self._large = self._bulk = self._forgotten = 0
        return waiting

    def take(self, data: bytes | bytearray) -> RequestReceived | Answered[T] | Failed[T] | NotificationReceived | Nothing | Violation[T]:
        """Tells what a message of the other side means, and notes it. Never raises."""
        return self.deal(read(data))

    def deal(
        self, message: codec.Incoming | FormatError
    ) -> RequestReceived | Answered[T] | Failed[T] | NotificationReceived | Nothing | Violation[T]:
        """As :meth:`take`, for a message that was read elsewhere."""
        match message:
            case codec.BadMessage():
                return self._bad(message)
            case FormatError():
                return self._stray(str(message))
            case codec.ResponseIn(number, name, response):
                return self._response(number, name, response)
            case codec.RequestIn(number, request):
                return self._request(number, request)
            case codec.NotificationIn(notification):
                return NotificationReceived(notification)
            case codec.Ignored(reason, unknown):
                return Nothing(reason) if unknown is None else self._refuse(unknown, reason, counted=False)

    def _request(self, number: int, request: Request) -> RequestReceived | Violation[T]:
        if number in self._unanswered:  # guard: A24 F18
            return Violation(f"id {number} is used twice")
        if len(self._unanswered) >= self._most_unanswered:  # guard: A26 F13
            return Violation(f"more than {self._most_unanswered} requests at once")
        self._unanswered[number] = codec.request_name(request)
        return RequestReceived(number, request)

    def _response(self, number: int, name: str, response: Response) -> Answered[T] | Nothing | Violation[T]:
        entry = self._take(number)
        if entry is None:
            # guard: A24 F18, -> Nothing('') if True else self._stray(f'an answer to {number}, which was not asked')
            return self._stray(f"an answer to {number}, which was not asked")
        if not isinstance(response, Error) and name != entry.name:  # guard: A24 F18
            return Violation(f"{entry.name} was answered as {name}", entry.token)
        return Nothing("an answer came late", late=True) if entry.token is None else Answered(entry.token, response)

    def _bad(self, fault: codec.BadMessage) -> Failed[T] | Nothing | Violation[T]:
        if fault.request_id is not None:
            return self._refuse(fault.request_id, str(fault), counted=True)
        counted = self._stray(str(fault))
        entry = None if fault.response_id is None else self._take(fault.response_id)
        if entry is None or entry.token is None:
            return counted
        if isinstance(counted, Violation):
            return Violation(counted.reason, entry.token)
        return Failed(entry.token, str(fault))

    def _refuse(self, number: int, reason: str, *, counted: bool) -> Nothing | Violation[T]:
        if number in self._unanswered:
            return Violation(f"id {number} is used twice")
        event = self._stray(reason) if counted else Nothing(reason)
        if isinstance(event, Violation):
            return event
        return Nothing(reason, codec.encode_response(number, "Error", Error(reason)))

    def _stray(self, reason: str) -> Nothing | Violation[T]:
        self.strays += 1
        if self.strays >= self._most_strays:  # guard: A24 F18
            return Violation(f"{self.strays} messages that make no sense, the last: {reason}")
        return Nothing(reason)
