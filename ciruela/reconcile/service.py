"""The reconciliation service: ask the peer that differs, diff, and feed the orders through the same uploads as a client's."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import field, replace
from itertools import islice
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.interfaces import Address, NodeContext
from ciruela.model.errors import CiruelaError, LinkLost, RemoteError
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.units import logged
from ciruela.model.upload import Accepted, Decision, Progress, Rejection, RejectReason, Removal, RemovalGranted, UploadRequest
from ciruela.model.values import dataclass
from ciruela.model.versions import State, Tombstones, Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import BaseDirData, GetBaseDir, Response
from ciruela.reconcile.diff import better, removal_in, removals_in, wanted
from ciruela.runtime import BoundedMap, RateLimitedLog
from ciruela.tracking.ledger import GIVEN_UP_MEMORY_S, Ledger, base_dir_hash

MOST_DOWNLOADS = 20
MOST_PER_BASE = 3
"""Downloads that reconciliation runs at a time, in all and in one base dir (protocol section 10). Those that get nothing do not count."""

MOST_IDLE = 256
"""Downloads that get nothing and wait for a source, at most, before no more are begun."""

MOST_BACKLOG = 10_000
"""Entries of one base dir that wait for their turn; the oldest of more are left to a later question."""

KNOWN_S = 300.0
"""A hash that brought nothing new is not asked about again for so long (protocol section 10)."""

REFUSED_S = 20.0
"""The same when an entry failed here lately, or was refused for what an operator may put right: a key, a clock, a quota."""

MOST_KNOWN = 10_000
MOST_BASES = 64
"""Base dirs asked about at a time; more are heard of again with the next gossip."""


_MAY_PASS = frozenset({RejectReason.SIGNATURE_MISMATCH, RejectReason.TIMESTAMP_IN_FUTURE, RejectReason.QUOTA, RejectReason.PROTECTED})


class Orders(Protocol):
    """Sink of upload requests: the uploads."""

    def order(self, order: UploadRequest, hints: tuple[Address, ...]) -> Deferred[Decision]:
        """Judge it, record it, start its download."""


class RemovalSink(Protocol):
    """Sink of removals: the uploads."""

    def remove(self, removal: Removal) -> Deferred[RemovalGranted | Rejection]:
        """Verify its signatures, judge it, carry it out."""


@dataclass(eq=False)
class Reconciler:
    """Takes over what peers have newer, the newest first, a few at a time.

    ``hint`` and ``watchers`` are told which nodes spoke of an image, and which wait for a path.
    ``idle`` tells whether the download for a path gets nothing at present.
    """

    _log = Logger()

    # required parameters
    context: NodeContext
    ledger: Ledger
    uploads: Orders
    removals: RemovalSink
    hint: Callable[[VPath, ImageId, Address], None]
    watchers: Callable[[VPath, tuple[MachineId, ...]], None]
    idle: Callable[[VPath], bool]

    # internal state
    _asking: dict[VPath, Deferred[Response]] = field(init=False, default_factory=dict)
    _again: dict[VPath, tuple[bytes, Address]] = field(init=False, default_factory=dict)
    _known: BoundedMap[tuple[VPath, bytes], float] = field(init=False, default_factory=lambda: BoundedMap(MOST_KNOWN))
    _backlog: dict[VPath, deque[tuple[UploadRequest, Address]]] = field(init=False, default_factory=dict)
    _running: dict[VPath, ImageId] = field(init=False, default_factory=dict)
    _removing: set[VPath] = field(init=False, default_factory=set)
    _judging: set[VPath] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._hush = RateLimitedLog(self.context.clock, 20)

    def differs(self, base: VPath, hash_: bytes, address: Address) -> None:
        """A peer announced this hash of ``base``."""
        config = self.context.configs.get(base.key)
        if config is None or base.level != max(config.num_levels - 1, 0):  # guard: A34 A36
            return
        if base in self._backlog:
            self._pump()
        if hash_ == self.ledger.base_hash(base) or self._is_known(base, hash_):  # guard: A58, without 2
            return
        # The list that is on its way may be older than this news: the last news is compared after it.
        if base in self._asking:
            self._again[base] = (hash_, address)
            return
        self._ask(base, address, hash_)

    def removed(self, vpath: VPath, version: Version, address: Address) -> None:
        """A peer says that ``version`` was removed from ``vpath``: it may show the signatures."""
        base, config = vpath.base, self.context.configs.get(vpath.key)
        told = hashlib.blake2b(str(vpath).encode() + version.image + version.timestamp_ms.to_bytes(8, "big"), digest_size=32).digest()
        if config is None or vpath.level != config.num_levels or base in self._asking or self._is_known(base, told):
            return
        tombstone, latest = self.ledger.burials(base).tombstones.get(vpath.entry), self.ledger.latest(vpath)
        if (tombstone is not None and tombstone.version >= version) or (latest is not None and latest.version > version):
            return
        self._know(base, told, REFUSED_S)
        self._ask(base, address)

    def _ask(self, base: VPath, address: Address, announced: bytes = b"") -> None:
        if len(self._asking) >= MOST_BASES:  # guard: A34 I6
            return
        asked = self.context.wire.ask(address, GetBaseDir(str(base)))
        self._asking[base] = asked
        asked.addCallback(self._compare, base, address, announced).addErrback(self._unanswered, base, address).addBoth(
            self._answered, base
        ).addErrback(self._broken)

    def ended(self, vpath: VPath, *, well: bool) -> None:
        """The download for ``vpath`` has ended."""
        self._running.pop(vpath, None)
        if not well:
            self._forget(vpath.base)
        self._pump()

    def stop(self) -> None:
        """Forget everything that is under way."""
        self._backlog.clear()
        self._again.clear()
        for asked in list(self._asking.values()):
            asked.cancel()

    def backlog(self) -> int:
        """Entries that are wanted and wait for their turn."""
        return sum(len(queue) for queue in self._backlog.values())

    def _is_known(self, base: VPath, hash_: bytes) -> bool:
        until_s = self._known.get((base, hash_))
        return until_s is not None and self.context.clock.seconds() < until_s

    def _given_up(self, order: UploadRequest, unfinished: Collection[str]) -> bool:
        """Tells whether this upload failed here lately, or long ago and the peer has not got it either."""
        within_s = GIVEN_UP_MEMORY_S if order.vpath.entry in unfinished else None
        return self.ledger.recently_aborted(order.vpath, _version(order), within_s)

    def _compare(self, response: Response, base: VPath, address: Address, announced: bytes = b"") -> None:
        if not isinstance(response, BaseDirData):
            raise RemoteError("the answer to GetBaseDir is something else")
        for entry, machines in response.watches.items():
            try:
                self.watchers(base.image_at(entry), machines)
            except ValueError:
                continue
        ours = self.ledger.entries(base)
        for entry in ours.keys() & response.dirs.keys():
            if ours[entry].image == response.dirs[entry].image:
                self.hint(base.image_at(entry), ours[entry].image, address)
        unfinished = frozenset(response.pending)
        config = self.context.configs.get(base.key)
        if config is None:  # a reload took it away while the peer thought about its answer
            return
        burials, append_only = self.ledger.burials(base), config.append_only
        found = wanted(base, ours, response.dirs, burials, append_only)
        # guard: A56 F53, -> deque(((order, address) for order in found))
        queue = deque((order, address) for order in found if not self._given_up(order, unfinished))
        # An upload that failed here lately is left out for now, so that this list must be looked at again soon.
        known_s = KNOWN_S if len(queue) == len(found) else REFUSED_S
        there = {entry: Version(one.timestamp_ms, one.image) for entry, one in response.removed.items()}
        if announced:  # an earlier version hashes otherwise, or its list has changed since: the same news is not asked about each second
            self._know(base, announced, REFUSED_S)
        self._know(base, base_dir_hash(response.dirs, there, append_only), known_s)
        removals = removals_in(base, ours, response.removed, burials, append_only)
        self._remove(base, [replace(removal, asked_by=str(address)) for removal in removals])
        if queue:
            self._backlog[base] = _merged(queue, self._backlog.get(base, ()), burials, append_only)  # guard: F48 I5, -> queue
        self._pump()

    def _know(self, base: VPath, hash_: bytes, known_s: float) -> None:
        self._known.put((base, hash_), self.context.clock.seconds() + known_s)

    def _remove(self, base: VPath, removals: Sequence[Removal]) -> None:
        """Carry out what was removed there, one after the other; the signatures are verified here."""
        if not removals:
            return
        if base in self._removing:
            self._soon_again(base)  # guard: I5 I9
            return
        self._removing.add(base)

        async def work() -> None:
            for removal in islice(removals, MOST_BACKLOG):
                try:
                    verdict = await self.removals.remove(removal)
                # guard: I5 I9
                except CiruelaError as error:  # of one image; the others go all the same
                    what, why = str(removal.vpath), str(error)
                    text = "what was removed from {vpath} elsewhere stays here, it is tried again: {why}"
                    self._hush.error(self._log, "not removed", base, text, vpath=what, why=why)
                    self._soon_again(base)
                    continue
                if isinstance(verdict, Rejection) and verdict.reason in _MAY_PASS:
                    self._soon_again(base)

        def ended(result: Failure | None) -> None:
            self._removing.discard(base)
            if result is not None:
                self._log.error("what was removed from {base} elsewhere stays here: {why}", base=str(base), why=result.getErrorMessage())
                self._forget(base)

        Deferred.fromCoroutine(work()).addBoth(ended).addErrback(self._broken)

    def _unanswered(self, failure: Failure, base: VPath, address: Address) -> None:
        if failure.check(CancelledError):
            return
        if failure.check(RemoteError, LinkLost):
            reason = logged(failure.getErrorMessage())
            self._log.info("{address} did not list {base}: {reason}", address=str(address), base=str(base), reason=reason)
        else:
            self._log.failure("reconciling {base} with {address} failed", failure, base=str(base), address=str(address))

    def _answered(self, _: None, base: VPath) -> None:
        self._asking.pop(base, None)
        again = self._again.pop(base, None)
        if again is not None:
            self.differs(base, *again)

    def _soon_again(self, base: VPath) -> None:
        """Something about ``base`` was refused that may be right in a moment."""
        until_s = self.context.clock.seconds() + REFUSED_S
        self._known.update({known: min(self._known[known], until_s) for known in self._known if known[0] == base})

    def _forget(self, base: VPath) -> None:
        """Forgets what was learned about ``base``, for it led to no image: it is compared again when it is next heard of."""
        for known in [known for known in self._known if known[0] == base]:
            del self._known[known]

    def _pump(self) -> None:
        for base in list(self._backlog):
            queue = self._backlog.get(base, deque())
            held = []
            while queue and self._room(base):
                order, address = queue.popleft()
                if order.vpath in self._judging:
                    held.append((order, address))
                else:
                    self._give(order, address)
            queue.extendleft(reversed(held))
            if queue:
                self._backlog[base] = queue
            else:
                self._backlog.pop(base, None)

    def _room(self, base: VPath) -> bool:
        """Tells whether one more may begin. Uploads that nobody can give any more must not make others wait for the hour that they last."""
        idle = [vpath for vpath in self._running if self.idle(vpath)]
        busy = {*self._running, *self._judging}.difference(idle)  # guard: A56 F53 I5, .difference(idle) ->
        most = len(busy) < MOST_DOWNLOADS and len(idle) < MOST_IDLE  # guard: A54 F49, without 1; A56 I6, without 2
        return most and sum(1 for vpath in busy if vpath.base == base) < MOST_PER_BASE  # guard: A54 F49, without 2

    def _give(self, order: UploadRequest, address: Address) -> None:
        self._judging.add(order.vpath)
        self.uploads.order(order, (address,)).addCallback(self._judged, order, address).addErrback(self._not_judged, order).addBoth(
            lambda _: self._leave(order.vpath)
        ).addErrback(self._broken)

    def _broken(self, failure: Failure) -> None:
        self._log.failure("going on with what is wanted failed; it is tried again with the next news", failure)

    def _judged(self, verdict: Decision, order: UploadRequest, address: Address) -> None:
        match verdict:
            case Rejection(reason=reason) if reason in _MAY_PASS:  # guard: F10 F44 I5, -> reason is None
                self._soon_again(order.vpath.base)
            case Rejection(reason=RejectReason.CONFLICT) if self.ledger.pending(order.vpath) is not None:  # which may come to nothing
                self._soon_again(order.vpath.base)
            # guard: F10 I5
            case Accepted(state=state) if state.version < _version(order):  # its latest signature is by a key that is not known here
                self._soon_again(order.vpath.base)
        match verdict:
            case Accepted(progress=Progress.NEW):
                if self.ledger.pending(order.vpath) is not None:  # else it has ended already
                    self._running[order.vpath] = order.image
            case Accepted(progress=Progress.IN_PROGRESS):
                self.hint(order.vpath, order.image, address)
            case Rejection(reason=RejectReason.SIGNATURE_MISMATCH):
                self._hush.error(
                    self._log,
                    "unsigned",
                    (address, order.vpath.base),
                    "{address} has {image} at {vpath}, signed by no key that is configured here: compare the keys of the nodes",
                    address=str(address),
                    image=order.image.hex(),
                    vpath=str(order.vpath),
                )

    def _not_judged(self, failure: Failure, order: UploadRequest) -> None:
        self._log.error("{vpath} cannot be taken over: {reason}", vpath=str(order.vpath), reason=failure.getErrorMessage())
        self._forget(order.vpath.base)

    def _leave(self, vpath: VPath) -> None:
        self._judging.discard(vpath)
        self._pump()


Waiting = tuple[UploadRequest, Address]


def _merged(fresh: Iterable[Waiting], before: Iterable[Waiting], burials: Tombstones, append_only: bool) -> deque[Waiting]:
    """Merges the wanted states of two peers, the newest first; at each path the one that wins."""
    best: dict[VPath, Waiting] = {}
    for order, address in (*fresh, *before):
        other = best.get(order.vpath)
        if other is None:
            best[order.vpath] = (order, address)
            continue
        winner = better(order, other[0], removal_in(burials, order.vpath.entry), append_only)
        ours = _version(order) > _version(other[0]) if order.image == other[0].image else winner is order
        best[order.vpath] = (winner, address if ours else other[1])
    return deque(sorted(best.values(), key=lambda one: _version(one[0]), reverse=True)[:MOST_BACKLOG])  # guard: A34 I6, [:MOST_BACKLOG] ->


def _version(order: UploadRequest) -> Version:
    return State(order.image, order.signatures).version
