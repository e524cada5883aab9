"""What a node answers on a connection, and what it notes (protocol sections 3.5, 5.3, 5.10 and 6.1).

Lists of base dirs for those who ask: a long one is encoded once for all of them, in a thread.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeVar

import cbor2
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.daemon.pathstate import PathStates
from ciruela.download.availability import AvailabilityRequests
from ciruela.download.serving import BlockService, UploadSlots
from ciruela.interfaces import Connection, Disk, InThread
from ciruela.model.config import STANDARD, DirConfig
from ciruela.model.errors import SLOW_DOWN, Busy, DiskError, RemoteError
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.upload import (
    Accepted,
    Command,
    Decision,
    Origin,
    Progress,
    Rejection,
    RejectReason,
    Removal,
    RemovalGranted,
    UploadRequest,
)
from ciruela.model.versions import RetainedVersion, SigEntry, State
from ciruela.model.vpath import VPath
from ciruela.proto.codec import Prepared, prepare
from ciruela.proto.messages import (
    AppendDir,
    BaseDirData,
    CheckData,
    CheckUpload,
    GetBaseDir,
    GetBlock,
    GetBlocks,
    GetIndex,
    GetIndexAt,
    GetPathState,
    GetPieces,
    GetShare,
    Hosts,
    IndexAtData,
    Notification,
    PublishImage,
    PushPull,
    PushPullData,
    RemovedEntry,
    RemoveDir,
    ReplaceDir,
    Request,
    Response,
    UploadAck,
    WithdrawUpload,
)
from ciruela.runtime import RateLimitedLog, RepeatLimiter, TokenBucket, in_place
from ciruela.tracking.ledger import Ledger
from ciruela.tracking.subscriptions import MAX_PER_LINK, Subscriptions, Wishes
from ciruela.uploads.removals import Removals
from ciruela.uploads.service import Uploads

LONG_ENTRIES = 1000
"""With more entries a list is encoded in a thread, and kept."""

KEPT_LISTS = 4

FRESH_S = 1.0
"""A kept list also says who waits for what, which may have changed after so long though the base dir did not."""


@dataclass(eq=False, slots=True)
class _List:
    """A long list, made at ``made_s`` of ``revision``; until it is encoded those who asked wait."""

    revision: int
    made_s: float
    body: Prepared | None = None
    waiting: list[Deferred[Any]] = field(default_factory=list)


class Listings:
    """The last long lists that were asked for."""

    def __init__(self, ledger: Ledger, clock: IReactorTime, in_thread: InThread = in_place) -> None:
        self._ledger = ledger
        self._clock = clock
        self._in_thread = in_thread
        self._kept: OrderedDict[tuple[VPath, bool], _List] = OrderedDict()

    def answer(self, base: VPath, bulk: bool, make: Callable[[], BaseDirData]) -> Deferred[Any]:
        """Fires with the list of ``base`` that ``make`` gives for those of version 2 (``bulk``), or for others; a long one is encoded."""
        if self._ledger.size(base) <= LONG_ENTRIES:
            return succeed(make())
        key = base, bulk
        kept = self._kept.get(key)
        if kept is None or kept.revision != self._ledger.revision(base) or self._clock.seconds() >= kept.made_s + FRESH_S:
            kept = self._kept[key] = _List(self._ledger.revision(base), self._clock.seconds())
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT_LISTS:
                self._kept.popitem(last=False)
            self._in_thread(prepare, "GetBaseDir", make()).addBoth(self._encoded, kept, key)
        if kept.body is not None:
            return succeed(kept.body)
        kept.waiting.append(waiting := Deferred[Any]())
        return waiting

    def _encoded(self, result: Prepared | Failure, made: _List, key: tuple[VPath, bool]) -> None:
        if isinstance(result, Prepared):
            made.body = result
        elif self._kept.get(key) is made:
            del self._kept[key]
        waiting, made.waiting = made.waiting, []
        for one in waiting:
            one.callback(result)


READS = 10
"""Indexes and lists that a connection may ask for, for each upload: a node that has just joined asks for all it finds."""

SAME_INDEX = 16
SAME_INDEX_S = 1.0
"""A connection gets the same index so many times at once, for as many paths with one image, and once more after so long."""

MAX_DETAIL = 1000
"""Characters of what is told about a refusal: below the limit of the wire in any script."""

MOST_KEPT_SIGNATURES = 20_000
"""Signatures of kept images in one answer: a fifth of the items that a base dir may have."""

_UNLIMITED = (GetBlock, GetBlocks, GetPieces)
"""What is asked for many times while an image is on its way."""


class _Rate(Enum):
    """What is counted apart on each connection.

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
                return cls.QUESTION
            case _:
                return cls.READ


T = TypeVar("T")

Watchers = Callable[[VPath], frozenset[MachineId]]

_OTHER_IMAGE = frozenset({RejectReason.ALREADY_EXISTS, RejectReason.ALREADY_UPLOADING, RejectReason.REPLACE_DOESNT_MATCH})
"""Signed wishes refused for what is there. The reference's client ends, well or not, once it heard what all nodes have at that path."""


def config_hash(config: DirConfig) -> bytes:
    """The hash of what matters for cleanup (protocol section 4.4); for people who compare nodes, no program evaluates it."""
    return hashlib.blake2b(
        cbor2.dumps(
            {
                "num_levels": config.num_levels,
                "auto_clean": config.auto_clean,
                "keep_min_directories": config.keep_min_directories,
                "keep_max_directories": config.keep_max_directories,
                "keep_recent": config.keep_recent_ms,
            }
        ),
        digest_size=32,
    ).digest()


def kept_signed(rows: Mapping[str, Sequence[RetainedVersion]]) -> dict[str, tuple[State, ...]]:
    """The kept images of each entry with their signatures, as far as these are recorded.

    At most :data:`MOST_KEPT_SIGNATURES` in all, first those of what was replaced last at each entry: a list that is too long for its
    reader would tell nothing of anything.
    """
    found: dict[str, list[State]] = {}
    left = MOST_KEPT_SIGNATURES
    for depth in range(max(map(len, rows.values()), default=0)):
        for entry, kept in rows.items():
            one = kept[depth] if depth < len(kept) else None
            if one is not None and 0 < len(one.signatures) <= left:
                left -= len(one.signatures)
                found.setdefault(entry, []).append(State(one.image, one.signatures))
    return {entry: tuple(states) for entry, states in found.items()}


class Requests:
    """The counterpart of every connection that was made to this node."""

    _log = Logger()

    def __init__(
        self,
        configs: Mapping[str, DirConfig],
        ledger: Ledger,
        watches: Subscriptions,
        disk: Disk,
        uploads: Uploads,
        removals: Removals,
        blocks: BlockService,
        awaited: AvailabilityRequests,
        path_states: PathStates,
        there: Callable[[VPath], Deferred[bool]],
        hosts: Callable[[str], Hosts],
        acquainted: Callable[[], Deferred[None]],
        watchers: Watchers,
        done: Callable[[VPath, State], None],
        gone: Callable[[VPath, ImageId], None],
        watched: Callable[[VPath], None],
        pushed: Callable[[str, PushPull], PushPullData],
        published: Callable[[ImageId], None],
        clock: IReactorTime,
        me: MachineId,
        hostname: str,
        requests_per_second: int = STANDARD.requests_per_second,
        in_thread: InThread = in_place,
    ) -> None:
        """``there`` looks at the disk for a committed image (``scrub.presence``).

        ``requests_per_second``: uploads that one connection may ask for; see :data:`READS`.
        """
        self._configs = configs
        self._ledger = ledger
        self._watches = watches
        self._disk = disk
        self._uploads = uploads
        self._removals = removals
        self._gone = gone
        self._blocks = blocks
        self._awaited = awaited
        self._path_states = path_states
        self._there = there
        self._hosts = hosts
        self._acquainted = acquainted
        self._watchers = watchers
        self._done = done
        self._watched = watched
        self._pushed = pushed
        self._published = published
        self._clock = clock
        self._me = me
        self._hostname = hostname
        self._hush = RateLimitedLog(clock, 40)
        self._rate = requests_per_second
        self._buckets: dict[tuple[Connection, _Rate], TokenBucket] = {}
        self._slots = UploadSlots(clock)
        self._wishes = Wishes()
        self._links: set[Connection] = set()
        self._listings = Listings(ledger, clock, in_thread)
        self._repeats = RepeatLimiter(clock, SAME_INDEX_S)
        self.slowed = 0
        self.published_refused = 0

    def tune(self, requests_per_second: int) -> None:
        """A connection may ask for so many from now on; all begin with a full bucket."""
        if requests_per_second != self._rate:
            self._rate = requests_per_second
            self._buckets.clear()

    def requested(self, link: Connection, request: Request) -> Deferred[Response]:
        """Answer a request; see ``interfaces.RequestHandler``. Fails with Busy when this connection asks too fast."""
        self._links.add(link)
        if not isinstance(request, _UNLIMITED) and not self._bucket(link, _Rate.of(request)).take():
            self.slowed += 1
            return fail(Busy(SLOW_DOWN))
        return self._dispatch(link, request).addErrback(self._disk_failed, link, request)

    def _disk_failed(self, failure: Failure, link: Connection, request: Request) -> Failure:
        """A disk that fails is no fault of the program: the other side hears what is wrong, one line of the log says the same."""
        if not failure.check(DiskError):
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
                return self._blocks.give(request).addCallback(_as_response)
            case GetBlocks():
                return self._blocks_for(link, request)
            case GetPieces():
                return self._awaited.give(request, link).addCallback(_as_response)
            case GetShare():
                return fail(RemoteError("only clients share an image out"))
            case AppendDir():
                return self._upload(link, request, Command.APPEND, None)
            case ReplaceDir():
                return self._upload(link, request, Command.REPLACE, request)
            case RemoveDir():
                return self._remove(link, request)
            case CheckUpload():
                return self._check(request)
            case GetIndex():
                again = self._repeats.refused(link, request.image, SAME_INDEX)
                return again or self._blocks.give_index(request).addCallback(_as_response)
            case GetIndexAt():
                return self._index_at(link, request)
            case GetBaseDir():
                return self._base_dir(link, request)
            case GetPathState():
                return self._path_states.answer(request).addCallback(_as_response)
            case WithdrawUpload():
                return self._withdraw(link, request)
            case PushPull():
                return maybeDeferred(self._pushed, link.host, request).addCallback(_as_response)

    def _blocks_for(self, link: Connection, request: GetBlocks) -> Deferred[Response]:
        try:
            self._slots.enter(link)
        except Busy as busy:
            return fail(busy)
        return self._blocks.give_many(request).addCallback(_as_response)

    def notified(self, link: Connection, notification: Notification) -> None:
        """Note that a client says it can give an image; what nodes send to clients is not meant for a node."""
        if not isinstance(notification, PublishImage):
            return
        if not self._watches.publish(link, notification.image):
            self.published_refused += 1
        elif link in self._watches.sources(notification.image):
            self._published(notification.image)

    def lost(self, link: Connection) -> None:
        """Forget what the connection said."""
        self._links.discard(link)
        self._watches.lost(link)
        self._slots.left(link)
        self._wishes.lost(link)
        for what in _Rate:
            self._buckets.pop((link, what), None)
        self._repeats.left(link)

    def _bucket(self, link: Connection, what: _Rate) -> TokenBucket:
        bucket = self._buckets.get((link, what))
        if bucket is None:
            rate = self._rate * (READS if what is _Rate.READ else 1)
            bucket = self._buckets[link, what] = TokenBucket(self._clock, rate, max(MAX_PER_LINK, 2 * rate))
        return bucket

    def _upload(
        self, link: Connection, request: AppendDir | ReplaceDir, command: Command, replace: ReplaceDir | None
    ) -> Deferred[Response]:
        try:
            vpath = VPath.parse(request.path)
        except ValueError as error:
            detail = str(error)[:MAX_DETAIL] if link.bulk else ""
            return succeed(self._signed(UploadAck(False, RejectReason.BAD_PATH.value, detail=detail), link))
        entries = tuple(SigEntry(request.timestamp_ms, signature) for signature in request.signatures)
        old_image = None if replace is None else replace.old_image
        order = UploadRequest(command, vpath, request.image, old_image, entries, Origin.CLIENT)
        return self._uploads.order(order).addCallback(self._judged, link, order).addCallback(self._signed, link)

    def _signed(self, ack: UploadAck, link: Connection) -> Response:
        """The answer with the name of this node, for those who understand that."""
        return replace(ack, machine=self._me, hostname=self._hostname) if link.bulk else ack

    def _check(self, request: CheckUpload) -> Deferred[Response]:
        """What the upload would be answered. The connection is not remembered as one that waits for anything."""
        try:
            vpath = VPath.parse(request.path)
        except ValueError as error:
            refused = CheckData(False, RejectReason.BAD_PATH.value, str(error)[:MAX_DETAIL], None, None, None, self._me, self._hostname)
            return succeed(refused)
        entries = tuple(SigEntry(request.timestamp_ms, signature) for signature in request.signatures)
        command = Command.REPLACE if request.replace else Command.APPEND
        old_image = request.old_image if request.replace else None
        order = UploadRequest(command, vpath, request.image, old_image, entries, Origin.CLIENT)
        looked = self._there(vpath).addErrback(lambda failure: failure.trap(DiskError))  # then the records say what they can
        return looked.addCallback(lambda _: self._uploads.check(order)).addCallback(self._checked, vpath)

    def _checked(self, verdict: Decision, vpath: VPath) -> Deferred[Response]:
        """The answer; the record of what does not stand on the disk is gone by now."""
        if vpath.key not in self._configs:
            return self._acquainted().addCallback(lambda _: self._check_data(verdict, vpath, None))
        free = self._acquainted().addCallback(lambda _: self._disk.free(vpath.key).addErrback(self._untold, None))
        return free.addCallback(lambda free_bytes: self._check_data(verdict, vpath, free_bytes))

    def _check_data(self, verdict: Decision, vpath: VPath, free_bytes: int | None) -> Response:
        reason, detail = (verdict.reason.value, verdict.detail) if isinstance(verdict, Rejection) else (None, "")
        committed = self._ledger.committed(vpath) if vpath.key in self._configs else None
        pending = self._ledger.pending(vpath)
        return CheckData(
            reason is None,
            reason,
            detail[:MAX_DETAIL],
            None if committed is None else committed.image,
            None if pending is None else pending.state.image,
            free_bytes,
            self._me,
            self._hostname,
            self._hosts(vpath.key),
            None if committed is None else committed.version.timestamp_ms,
            None if pending is None else pending.state.version.timestamp_ms,
        )

    def _untold(self, failure: Failure, unknown: T) -> T:
        """How much room there is cannot be told: the base is not mounted, say. The verdict can."""
        failure.trap(DiskError)
        return unknown

    def _judged(self, verdict: Decision, link: Connection, order: UploadRequest) -> Deferred[UploadAck]:
        vpath, reason, detail = order.vpath, None, ""
        match verdict:
            case Rejection():
                reason = verdict.reason.value
                detail = verdict.detail[:MAX_DETAIL] if link.bulk else ""
                if verdict.reason in _OTHER_IMAGE:
                    self._watch(link, vpath)
            case Accepted():
                self._watch(link, vpath)
                if link in self._links:  # else nobody would forget it again
                    self._wishes.accepted(link, vpath, order.image, began=verdict.progress is Progress.NEW)
                    if self._watches.accept(link, order.image):
                        self._published(order.image)
                committed = self._ledger.committed(vpath)
                if verdict.progress is Progress.ALREADY_DONE and committed is not None and self._ledger.pending(vpath) is None:
                    self._done(vpath, committed)
        return self._acquainted().addCallback(lambda _: UploadAck(reason is None, reason, self._hosts(vpath.key), detail=detail))

    def _withdraw(self, link: Connection, request: WithdrawUpload) -> Deferred[Response]:
        """Only what this connection alone asked for, and what is not committed yet: it is no way to remove anything of others."""
        try:
            vpath = VPath.parse(request.path)
        except ValueError as error:
            return succeed(self._signed(UploadAck(False, RejectReason.BAD_PATH.value, detail=str(error)[:MAX_DETAIL]), link))
        if not self._wishes.sole(link, vpath, request.image):
            return succeed(self._not_withdrawn(link, "this connection did not begin that upload, or others asked for it, too"))

        def withdrawn(there_was: bool) -> Response:
            self._wishes.withdrawn(link, vpath, request.image)
            if not there_was:
                return self._not_withdrawn(link, "it is not on its way any more: it is there, or was given up")
            return self._signed(UploadAck(True, None), link)

        return self._uploads.withdraw(vpath, request.image).addCallback(withdrawn)

    def _not_withdrawn(self, link: Connection, detail: str) -> Response:
        return self._signed(UploadAck(False, RejectReason.NOT_WITHDRAWN.value, detail=detail), link)

    def _remove(self, link: Connection, request: RemoveDir) -> Deferred[Response]:
        try:
            vpath = VPath.parse(request.path)
        except ValueError:
            return succeed(UploadAck(False, RejectReason.BAD_PATH.value))
        removal = Removal(
            vpath, request.image, request.timestamp_ms, request.signatures, Origin.CLIENT, forced=request.force, asked_by=link.name
        )

        def judged(verdict: RemovalGranted | Rejection) -> Deferred[UploadAck]:
            reason = verdict.reason if isinstance(verdict, Rejection) else None
            if reason is None or reason in _OTHER_IMAGE:
                self._watch(link, vpath)
            if reason is None:
                self._gone(vpath, request.image)
            word = None if reason is None else reason.value
            detail = verdict.detail[:MAX_DETAIL] if isinstance(verdict, Rejection) and link.bulk else ""
            return self._acquainted().addCallback(lambda _: UploadAck(reason is None, word, self._hosts(vpath.key), detail=detail))

        return self._removals.remove(removal).addCallback(judged).addCallback(self._signed, link)

    def _watch(self, link: Connection, vpath: VPath) -> None:
        """Note that ``link`` waits for ``vpath``, unless it went while its order was judged: nobody would forget that again."""
        if link in self._links:
            self._watches.watch(link, vpath)
            self._watched(vpath)

    def _index_at(self, link: Connection, request: GetIndexAt) -> Deferred[Response]:
        try:
            vpath = VPath.parse(request.path)
        except ValueError:
            return succeed(IndexAtData(None))
        hosts = self._hosts(vpath.key)
        committed = self._ledger.committed(vpath)
        if committed is None:
            return succeed(IndexAtData(None, hosts))

        def found(data: bytes | None) -> Response:
            if data is None and link.bulk:  # the reference's clients read an empty answer, which says the same as that nothing is there
                raise RemoteError(f"the index of {committed.image.hex()} at {vpath} cannot be read here")
            return IndexAtData(data, hosts)

        return self._disk.read_index_bytes(committed.image).addCallback(found)

    def _base_dir(self, link: Connection, request: GetBaseDir) -> Deferred[Response]:
        try:
            base = VPath.parse(request.path)
        except ValueError as error:
            return fail(RemoteError(f"bad path: {error}"))
        config = self._configs.get(base.key)
        if config is None:
            return fail(RemoteError("No such config"))
        if base.level != max(config.num_levels - 1, 0):
            return fail(RemoteError(f"{base} is no base dir: num-levels of /{base.key} is {config.num_levels}"))
        return self._listings.answer(base, link.bulk, lambda: self._listing(config, base, link.bulk))

    def _listing(self, config: DirConfig, base: VPath, bulk: bool) -> BaseDirData:
        """What is in ``base``; of ours, what ``ciruela.v2`` added, only for those who know it."""
        entries, paths = self._ledger.entries(base), self._ledger.paths(base)
        watches = {}
        for entry, vpath in paths.items():
            machines = self._watchers(vpath)
            if machines:
                watches[entry] = tuple(sorted(machines))
        pending = tuple(entry for entry in sorted(entries) if self._ledger.pending(paths[entry]) is not None)
        keep_list = hashlib.blake2b(cbor2.dumps([]), digest_size=32).digest()
        removed = {
            entry: RemovedEntry(one.version.timestamp_ms, one.version.image, one.signatures, one.forced)
            for entry, one in (self._ledger.removed(base) if bulk else {}).items()
        }
        rows = {entry: found for entry, vpath in paths.items() if bulk and (found := self._ledger.kept(vpath))}
        kept = {entry: tuple(one.version for one in found) for entry, found in rows.items()}
        return BaseDirData(config_hash(config), keep_list, entries, watches, pending, removed, kept, kept_signed(rows))


def _as_response(response: Response) -> Response:
    return response
