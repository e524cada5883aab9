"""Answers of a node on a connection, and how often it gives them (protocol sections 3.5, 5.3, 5.10 and 6.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from enum import Enum

from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.daemon.changes import ChangeRequests
from ciruela.daemon.listings import Listings
from ciruela.daemon.pathstate import PathStates
from ciruela.download.availability import AvailabilityRequests
from ciruela.download.exchange import PieceExchanges
from ciruela.download.serving import BlockService, UploadSlots
from ciruela.interfaces import BlockGiving, Connection, NodeContext
from ciruela.model.errors import SLOW_DOWN, Busy, DiskError, RemoteError
from ciruela.model.upload import Command
from ciruela.model.values import dataclass
from ciruela.proto.messages import (
    AppendDir,
    CheckUpload,
    ExchangePieces,
    GetBaseDir,
    GetBlock,
    GetBlocks,
    GetIndex,
    GetIndexAt,
    GetPathState,
    GetPieces,
    GetShare,
    Notification,
    OpenBulk,
    PublishImage,
    PushPull,
    PushPullData,
    RemoveDir,
    ReplaceDir,
    Request,
    Response,
    WithdrawUpload,
)
from ciruela.runtime import RateLimitedLog, RepeatLimiter, TokenBucket
from ciruela.tracking.subscriptions import MAX_PER_LINK

READS = 10
"""Indexes and lists that a connection may ask for, for each upload: a node that has just joined asks for all it finds."""

SAME_INDEX = 16
SAME_INDEX_S = 1.0
"""A connection gets the same index so many times at once, for as many paths with one image, and once more after so long."""

_UNLIMITED = (GetBlock, GetBlocks, GetPieces)
"""Requests that come many times while an image is on its way."""


class _Rate(Enum):
    """Kind of request that is counted apart on each connection.

    Wishes with signatures cost more than reading: up to 16 are checked. A client asks what becomes of each order before it sends that, so
    that questions must not use up what there is for orders.
    """

    ORDER = "order"
    QUESTION = "question"
    READ = "read"

    @classmethod
    def of(cls, request: Request) -> _Rate:
        match request:
            case AppendDir() | ReplaceDir() | RemoveDir():
                return cls.ORDER
            case CheckUpload():
                return cls.QUESTION  # guard: A5, -> cls.READ
            case _:
                return cls.READ


@dataclass(frozen=True, slots=True)
class Serving:
    """Services of a node that give an image to others: blocks, news of what is here, offers."""

    blocks: BlockService
    awaited: AvailabilityRequests
    exchanges: PieceExchanges


@dataclass(eq=False)
class Requests:
    """The counterpart of every connection that was made to this node: limits the rate of its requests, and passes each on.

    ``tuning.requests_per_second``: uploads that one connection may ask for; see :data:`READS`.
    """

    _log = Logger()

    # required parameters
    context: NodeContext
    changes: ChangeRequests
    listings: Listings
    path_states: PathStates
    serving: Serving
    pushed: Callable[[str, PushPull], PushPullData]

    # internal state
    slowed: int = field(init=False, default=0)
    _buckets: dict[tuple[Connection, _Rate], TokenBucket] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        clock = self.context.clock
        self._hush = RateLimitedLog(clock, 40)
        self._rate = self.context.tuning.requests_per_second
        self._slots = UploadSlots(clock)
        self._repeats = RepeatLimiter(clock, SAME_INDEX_S)

    def tune(self, requests_per_second: int) -> None:
        """A connection may ask for so many from now on; all begin with a full bucket."""
        if requests_per_second != self._rate:
            self._rate = requests_per_second
            self._buckets.clear()

    def requested(self, link: Connection, request: Request) -> Deferred[Response]:
        """Answer a request; see ``interfaces.RequestHandler``. Fails with Busy when this connection asks too fast."""
        self.changes.clients.connected(link)
        if not isinstance(request, _UNLIMITED) and not self._bucket(link, _Rate.of(request)).take():
            self.slowed += 1
            return fail(Busy(SLOW_DOWN))  # guard: A18 F13
        return self._dispatch(link, request).addErrback(self._disk_failed, link, request)

    def _disk_failed(self, failure: Failure, link: Connection, request: Request) -> Failure:
        """A disk that fails is no fault of the program: the other side hears what is wrong, one line of the log says the same."""
        if not failure.check(DiskError):  # guard: F28 F29 I7, -> True
            return failure
        text = failure.getErrorMessage()
        self._hush.error(
            self._log,
            "disk",
            link.name.rpartition(":")[0],
            "{request} of {link}: {reason}",
            request=type(request).__name__,
            link=link.name,
            reason=text,
        )
        return Failure(RemoteError(text))

    def _dispatch(self, link: Connection, request: Request) -> Deferred[Response]:
        match request:
            case GetBlock():
                return self.serving.blocks.give(request)
            case GetBlocks():
                return self._blocks_for(link, request)
            case GetPieces():
                return self.serving.awaited.give(request, link).addCallback(_as_response)
            case GetShare():
                return fail(RemoteError("only clients share an image out"))
            case OpenBulk():
                return fail(RemoteError("the connection answers that itself"))
            case AppendDir():
                return self.changes.upload(link, request, Command.APPEND, None)
            case ReplaceDir():
                return self.changes.upload(link, request, Command.REPLACE, request)
            case RemoveDir():
                return self.changes.remove(link, request)
            case CheckUpload():
                return self.changes.check(request)
            case GetIndex():
                again = self._repeats.refused(link, request.image, SAME_INDEX)
                return again or self.serving.blocks.give_index(request)  # guard: K6.2, without 1
            case GetIndexAt():
                return self.listings.index_at(link, request)
            case GetBaseDir():
                return self.listings.base_dir(link, request)
            case GetPathState():
                return self.path_states.answer(request).addCallback(_as_response)
            case WithdrawUpload():
                return self.changes.withdraw(link, request)
            case PushPull():
                return maybeDeferred(self.pushed, link.host, request).addCallback(_as_response)

    def _blocks_for(self, link: Connection, request: GetBlocks) -> Deferred[Response]:
        try:
            self._slots.enter(link)
        except Busy as busy:
            return fail(busy)
        return self.serving.blocks.give_many(request)

    def giving(self, link: Connection, request: GetBlocks) -> Deferred[BlockGiving]:
        """As :meth:`requested`, over a bulk connection."""
        self._slots.enter(link)
        return self.serving.blocks.giving(request)

    def notified(self, link: Connection, notification: Notification) -> bool | None:
        """Note that a client says it can give an image; what nodes send to clients is not meant for a node."""
        if isinstance(notification, PublishImage):
            self.changes.clients.publish(link, notification.image)
        elif isinstance(notification, ExchangePieces):
            return self.serving.exchanges.heard(link, notification)
        return None

    def answered(self, link: Connection, request: Request, given: bool) -> None:
        """Note that blocks were given to a neighbor."""
        if isinstance(request, GetBlocks):
            self.serving.exchanges.answered(link, request, given)

    def lost(self, link: Connection) -> None:
        """Forget what the connection said."""
        self.changes.clients.lost(link)
        self.serving.exchanges.lost(link)
        self._slots.left(link)
        for what in _Rate:  # guard: I6
            self._buckets.pop((link, what), None)
        self._repeats.left(link)

    def _bucket(self, link: Connection, what: _Rate) -> TokenBucket:
        bucket = self._buckets.get((link, what))
        if bucket is None:
            rate = self._rate * (READS if what is _Rate.READ else 1)
            bucket = self._buckets[link, what] = TokenBucket(self.context.clock, rate, max(MAX_PER_LINK, 2 * rate))
        return bucket


def _as_response(response: Response) -> Response:
    return response
