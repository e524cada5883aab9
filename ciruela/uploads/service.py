"""The uploads service: from an upload request to a recorded, running download (protocol section 5.3).

The makers of the signatures are looked up: all that are valid, where ``Authority.verified`` gives the newest of each key.

Limits bound what one key, and one directory, may have here at a time (threats 6.12). Counts only; what is pending is asked of the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, replace
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred, DeferredLock, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.interfaces import Address, Authority, NodeContext, Pending
from ciruela.keys.signed import signed_check_bytes
from ciruela.model.config import DirConfig, OnConflict
from ciruela.model.errors import SLOW_DOWN, Busy
from ciruela.model.ids import ImageId
from ciruela.model.upload import AbortReason, Accepted, Command, Decision, Origin, Progress, Rejection, RejectReason, UploadRequest
from ciruela.model.values import dataclass
from ciruela.model.versions import MOST_SIGNATURES, SigEntry, State, Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import ImageContent
from ciruela.runtime import RateLimitedLog
from ciruela.tracking.ledger import Ledger
from ciruela.uploads.decision import NOWHERE, Elsewhere, PathState, judge, no_config, precheck
from ciruela.uploads.neighbours import Neighbours
from ciruela.uploads.rejections import FOR_CONTENT, RefusedOrders, in_other_form


class Quotas:
    """Looks only at what clients ask for: what peers bring was granted by another node, and the nodes have to agree in the end.

    ``stalled`` tells whether the download for a path has found no source for a while; those do not count, or a client that has gone would
    lock its key out.
    """

    def __init__(self, ledger: Ledger, uploads_per_key: int, stalled: Callable[[VPath], bool]) -> None:
        self._ledger = ledger
        self._uploads_per_key = uploads_per_key
        self._stalled = stalled
        self._makers: dict[VPath, str] = {}
        self.slowed = 0

    def tune(self, uploads_per_key: int) -> None:
        """A key may have so many from now on."""
        self._uploads_per_key = uploads_per_key

    def room(self, order: UploadRequest, config: DirConfig) -> Rejection | None:
        """The refusal when ``order`` would make one more path than the directory may have."""
        if order.origin is Origin.PEER or config.max_images is None or self._ledger.knows(order.vpath):
            return None
        count = self._ledger.count(config.key)
        if count < config.max_images:  # guard: A5 F7, -> True
            return None
        return Rejection(RejectReason.QUOTA, f"/{config.key} has {count} images, max-images is {config.max_images}")

    def charge(self, order: UploadRequest, makers: Iterable[str]) -> None:
        """Note that ``order`` begins, for the first of the keys that signed it and has room. Raises Busy when none has."""
        if order.origin is Origin.PEER:
            self._makers.pop(order.vpath, None)
            return
        counts: dict[str, int] = {}
        for vpath, maker in list(self._makers.items()):
            if self._ledger.pending(vpath) is None:
                del self._makers[vpath]
            elif vpath != order.vpath and not self._stalled(vpath):  # guard: A56, without 2
                counts[maker] = counts.get(maker, 0) + 1
        for maker in makers:
            if counts.get(maker, 0) < self._uploads_per_key:  # guard: A26 I6, -> True
                self._makers[order.vpath] = maker
                return
        self.slowed += 1
        raise Busy(f"{SLOW_DOWN}: {self._uploads_per_key} uploads of this key are in progress on this node")


async def makers(
    authority: Authority, config: DirConfig, vpath: VPath, image: ImageId, entries: Iterable[SigEntry]
) -> Mapping[SigEntry, str]:
    """Those of ``entries``, at most :data:`~ciruela.model.versions.MOST_SIGNATURES`, that keys of ``config`` made, with their fingerprints.

    Fails with DiskError when the keys cannot be read.
    """
    found: dict[SigEntry, str] = {}
    rest = sorted(set(entries))[-MOST_SIGNATURES:]
    while rest:
        more = await authority.verified(config, vpath, image, rest)
        found.update(more)
        left = [entry for entry in rest if entry not in more]
        if len(left) == len(rest):
            break
        rest = left  # guard: K2.1 K3.6, -> []
    return dict(sorted(found.items()))


T = TypeVar("T")

_FINAL = frozenset({RejectReason.SIGNATURE_MISMATCH, RejectReason.TIMESTAMP_IN_FUTURE, RejectReason.QUOTA})
"""Refusals that nothing which others have could turn into another answer."""


class Starter(Protocol):
    """Port to the downloads, for uploads."""

    def start(self, pending: Pending, hints: tuple[Address, ...], content: ImageContent | None) -> None:
        """Begin to fetch an accepted upload; ``hints`` are nodes that spoke of it, ``content`` came with the order."""

    def stop(self, vpath: VPath, reason: AbortReason) -> None:
        """End the download for ``vpath``, if one runs."""

    def stalled(self, vpath: VPath) -> bool:
        """Tells whether the download for ``vpath`` has found no source for a while."""

    def settled(self, vpath: VPath) -> Deferred[None] | None:
        """None, or what to wait for while a commit at ``vpath`` must not be interrupted."""


@dataclass(eq=False)
class Uploads:
    """Judges orders one at a time for each path, records what is accepted, and starts its download.

    ``conflicted`` is told which image at an append-only path is not the only one, or not the one that stays, and a sentence why;
    ``refused`` of every other order that is refused.
    ``neighbours`` are asked before an order of a client is judged; without them this node is alone.
    """

    _log = Logger()

    # required parameters
    context: NodeContext
    ledger: Ledger
    downloads: Starter
    conflicted: Callable[[VPath, ImageId, str], None]
    refused: Callable[[UploadRequest, RejectReason], None] = lambda _order, _reason: None
    neighbours: Neighbours | None = None

    # internal state
    quotas: Quotas = field(init=False)
    forms: RefusedOrders = field(init=False, default_factory=RefusedOrders)
    _max_age_ms: int = field(init=False)
    _hush: RateLimitedLog = field(init=False)
    _turns: dict[VPath, DeferredLock] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        tuning = self.context.tuning
        self.quotas = Quotas(self.ledger, tuning.uploads_per_key, self.downloads.stalled)
        self._max_age_ms = tuning.signature_max_age_ms
        self._hush = RateLimitedLog(self.context.clock, 40)

    def order(self, order: UploadRequest, hints: tuple[Address, ...] = (), content: ImageContent | None = None) -> Deferred[Decision]:
        """Fires with the verdict once it is recorded. ``hints`` and ``content`` as in :meth:`Starter.start`.

        Fails with DiskError when it cannot be, or when the keys cannot be read; with Busy when the key that signed it has as many uploads
        in progress as it may have.
        """
        config = self.context.configs.get(order.vpath.key)
        if config is None:  # guard: A17
            return succeed(no_config(order.vpath, self.context.configs))
        refused = precheck(order, config)
        if refused is not None:  # guard: A18 F13
            return self._unfit(order, config, refused)

        def start(pending: Pending) -> None:
            self.downloads.start(pending, hints, content)

        return self.alone(order.vpath, lambda: Deferred.fromCoroutine(self._examine(order, config, start)))

    def _unfit(self, order: UploadRequest, config: DirConfig, refused: Rejection) -> Deferred[Decision]:
        """Fires with ``refused``; a replace that an append-only directory refused must not be sent again as an append, either."""
        if refused.reason is not RejectReason.DIR_IS_APPEND_ONLY:
            return succeed(refused)

        def note(verified: Mapping[SigEntry, str]) -> Decision:
            self.forms.note(order, verified, self._max_age_ms)  # guard: S2
            return refused

        return self.context.authority.verified(config, order.vpath, order.image, order.signatures).addCallback(note)

    def tune(self, max_age_ms: int, uploads_per_key: int) -> None:
        """These count from now on."""
        self._max_age_ms = max_age_ms
        self.quotas.tune(uploads_per_key)

    def alone(self, vpath: VPath, work: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Run ``work`` while no order for ``vpath`` is being judged."""
        turn = self._turns.setdefault(vpath, DeferredLock())

        def leave(result: T | Failure) -> T | Failure:
            turn.release()  # who waits may come and go meanwhile, and somebody else begin another turn
            if not turn.locked and not turn.waiting and self._turns.get(vpath) is turn:  # guard: I4 I5, without 3
                del self._turns[vpath]
            return result

        # guard: A52, turn.acquire() -> succeed(turn.acquire() and None); I4, .addBoth(leave) -> ).addBoth(leave
        return turn.acquire().addCallback(lambda _: maybeDeferred(work).addBoth(leave))

    async def _examine(self, order: UploadRequest, config: DirConfig, start: Callable[[Pending], None]) -> Decision:
        verified = await self._verified(order, config)
        elsewhere = await self._elsewhere(order, config, verified)
        known = await self._makers(order, config, verified)
        present = await self._present(order, verified)
        verdict = self._decide(order, config, start, verified, elsewhere, known, present)
        while isinstance(verdict, Deferred):
            verdict = await verdict
        return verdict

    async def _verified(self, order: UploadRequest, config: DirConfig) -> Mapping[SigEntry, str]:
        """The signatures of ``order`` that count; of a peer's in an append-only directory also older ones of each key: its claim."""
        if order.origin is Origin.PEER and config.append_only:
            return await makers(self.context.authority, config, order.vpath, order.image, order.signatures)
        return await self.context.authority.verified(config, order.vpath, order.image, order.signatures)

    async def _elsewhere(self, order: UploadRequest, config: DirConfig, verified: Mapping[SigEntry, str]) -> Elsewhere:
        """Asks what others have at the path, where it can change what a client is answered. So strangers make nobody ask."""
        if self.neighbours is None or order.origin is Origin.PEER:
            return NOWHERE
        match self._judged(order, config, self._standing(order.vpath), verified):
            case Rejection(reason=reason) if order.command is Command.APPEND or reason in _FINAL:  # guard: A18 K2.1, without 2
                return NOWHERE
        return await self.neighbours.ask(order.vpath)  # guard: K2.1 K2.3, -> NOWHERE

    async def _makers(self, order: UploadRequest, config: DirConfig, verified: Mapping[SigEntry, str]) -> Mapping[SigEntry, str]:
        """``verified``, with the keys of the signatures that this node has for the same image already, when new ones join them."""
        for state in (self.ledger.latest(order.vpath), self.ledger.committed(order.vpath)):
            if state is not None and state.image == order.image and not verified.keys() <= set(state.signatures):
                others = set(state.signatures).difference(verified)
                return {**verified, **await makers(self.context.authority, config, order.vpath, order.image, others)}
        return verified

    async def _present(self, order: UploadRequest, verified: Mapping[SigEntry, str]) -> bool:
        """Tells whether the recorded image really stands there: an operator may have removed it by hand."""
        committed = self.ledger.committed(order.vpath)
        if not verified or committed is None or committed.image != order.image:
            return True
        return await self.context.disk.present(order.vpath)

    def _decide(
        self,
        order: UploadRequest,
        config: DirConfig,
        start: Callable[[Pending], None],
        verified: Mapping[SigEntry, str],
        elsewhere: Elsewhere,
        known: Mapping[SigEntry, str],
        present: bool,
    ) -> Decision | Deferred[Decision]:
        pending = self.ledger.pending(order.vpath)
        committed = self.ledger.committed(order.vpath)
        standing = self._standing(order.vpath, elsewhere)
        verdict = self._judged(order, config, standing, verified)
        match verdict:
            case Rejection():
                self._tell_refused(order, config, standing, verdict, verified)
                return verdict
        verdict = replace(verdict, state=verdict.state.compact(known, claim=config.append_only))  # guard: K3.6 I6
        match verdict.progress:
            case Progress.ALREADY_DONE if present:
                return self._merge_committed(order.vpath, committed, verdict)
            case Progress.IN_PROGRESS:
                return self._merge_pending(pending, verdict)
        settled = self.downloads.settled(order.vpath)  # guard: A43 A52, -> None
        if settled is None:
            self.quotas.charge(order, verified.values())  # guard: A26
            return self._begin(order, config, verdict, start)
        return settled.addCallback(lambda _: self._decide(order, config, start, verified, elsewhere, known, present))

    def _tell_refused(
        self, order: UploadRequest, config: DirConfig, standing: PathState, verdict: Rejection, verified: Mapping[SigEntry, str]
    ) -> None:
        """Log a refusal, and tell whom it concerns."""
        if order.origin is Origin.CLIENT and verdict.reason in FOR_CONTENT:
            self.forms.note(order, verified, self._max_age_ms)
        if verdict.reason is RejectReason.CONFLICT:
            if config.on_append_conflict is OnConflict.FREEZE:
                self._frozen(order, standing)  # guard: A51
                return
            self.conflicted(order.vpath, order.image, verdict.detail)
        self.refused(order, verdict.reason)
        self._hush.info(
            self._log,
            verdict.reason.value,
            order.vpath,
            "{command} of {image} at {vpath} by a {origin} refused: {reason} {detail}",
            command=order.command.value,
            image=order.image.hex(),
            vpath=str(order.vpath),
            origin=order.origin.value,
            reason=verdict.reason.value,
            detail=verdict.detail,
        )

    def _standing(self, vpath: VPath, elsewhere: Elsewhere = NOWHERE) -> PathState:
        """Collects what is known of ``vpath``, for a decision."""
        pending = self.ledger.pending(vpath)
        burials = self.ledger.burials(vpath.base)
        tombstone = burials.tombstones.get(vpath.entry)
        return PathState(
            self.ledger.committed(vpath),
            pending.state if pending else None,
            self.downloads.stalled(vpath),
            tombstone.version if tombstone else None,  # guard: A12 F9, -> None
            burials.floor_ms,
            tombstone.version if tombstone and tombstone.signatures else None,
            elsewhere,
        )

    def _judged(self, order: UploadRequest, config: DirConfig, standing: PathState, verified: Mapping[SigEntry, str]) -> Decision:
        verdict = judge(order, config, standing, tuple(verified), self.context.now_ms(), self._max_age_ms)
        if order.origin is Origin.CLIENT and isinstance(verdict, Accepted) and not self._holds(order, verified):
            # guard: S2, , *standing.elsewhere.refused ->
            refused = {*self.forms.at(order.vpath, self.context.now_ms()), *standing.elsewhere.refused}
            if in_other_form(order, verified, refused):  # guard: S2
                return Rejection(
                    RejectReason.SIGNATURE_MISMATCH, "this signature was used for another order, which was refused: sign it anew"
                )
        if isinstance(verdict, Accepted) and verdict.progress is Progress.NEW:
            verdict = self.quotas.room(order, config) or verdict  # guard: A5 F7
        return verdict

    def _holds(self, order: UploadRequest, verified: Mapping[SigEntry, str]) -> bool:
        """Tells whether ``order`` was granted here before: the image is here, or on its way, by these very signatures."""
        states = self.ledger.latest(order.vpath), self.ledger.committed(order.vpath)
        return any(one is not None and one.image == order.image and verified.keys() <= set(one.signatures) for one in states)

    def check(self, order: UploadRequest) -> Deferred[Decision]:
        """The verdict that an upload would get, for a question that is signed as one. Nothing is recorded, begun, or logged.

        Fails with DiskError when the keys cannot be read.
        """
        config = self.context.configs.get(order.vpath.key)
        if config is None:
            return succeed(no_config(order.vpath, self.context.configs))
        unfit = precheck(order, config)
        if unfit is not None:
            return succeed(unfit)

        async def work() -> Decision:
            # guard: A11 I4, order.signatures, signed_check_bytes -> order.signatures
            verified = await self.context.authority.verified(config, order.vpath, order.image, order.signatures, signed_check_bytes)
            elsewhere = await self._elsewhere(order, config, verified)
            return self._judged(order, config, self._standing(order.vpath, elsewhere), verified)

        return Deferred.fromCoroutine(work())

    def withdraw(self, vpath: VPath, image: ImageId) -> Deferred[bool]:
        """Give up the upload of ``image`` that is on its way to ``vpath``. Fires with whether there was one.

        Fails with DiskError when the journal stays: then it is on its way again after the next start.
        """

        async def work() -> bool:
            while (settled := self.downloads.settled(vpath)) is not None:
                await settled
            pending = self.ledger.pending(vpath)
            if pending is None or pending.state.image != image:
                return False
            self.downloads.stop(vpath, AbortReason.SUPERSEDED)
            self.ledger.abort(vpath, self.context.now_ms())
            await self.context.disk.drop_pending(vpath)
            self._log.info("{image} for {vpath} was withdrawn by its client", image=image.hex(), vpath=str(vpath))
            return True

        return self.alone(vpath, lambda: Deferred.fromCoroutine(work()))

    async def outlived(self, vpath: VPath, removed: Version) -> None:
        """A removal that what is there outlived has become known: signatures up to ``removed`` are no claim any more.

        To be called in :meth:`alone`. Raises DiskError.
        """
        committed, pending = self.ledger.committed(vpath), self.ledger.pending(vpath)
        if committed is not None and removed < committed.version and committed.since(removed) != committed:
            self.ledger.commit(vpath, committed.since(removed))
            await self.context.disk.write_state(vpath, committed.since(removed))
        if pending is not None and removed < pending.state.version and pending.state.since(removed) != pending.state:
            later = replace(pending, state=pending.state.since(removed))
            self.ledger.begin(later)
            await self.context.disk.write_pending(later)

    def _frozen(self, order: UploadRequest, standing: PathState) -> None:
        """Two images were appended to one path, and this node keeps its own."""
        kept = standing.pending or standing.committed
        assert kept is not None
        self._log.error(
            "conflict at append-only {vpath}: another node has {image}, here {kept} stays (on-append-conflict: freeze)",
            vpath=str(order.vpath),
            image=order.image.hex(),
            kept=kept.image.hex(),
        )
        self.conflicted(order.vpath, kept.image, f"another node has {order.image.hex()[:12]} there, and each keeps its own")

    def _merge_committed(self, vpath: VPath, committed: State | None, verdict: Accepted) -> Decision | Deferred[Decision]:
        if committed == verdict.state:  # guard: A15 F11
            return verdict
        self.ledger.commit(vpath, verdict.state)
        return self.context.disk.write_state(vpath, verdict.state).addCallback(lambda _: verdict)

    def _merge_pending(self, pending: Pending | None, verdict: Accepted) -> Decision | Deferred[Decision]:
        if pending is None or pending.state == verdict.state:  # guard: A15 F11, without 2
            return verdict
        merged = Pending(pending.vpath, verdict.state, pending.command)
        self.ledger.begin(merged)
        return self.context.disk.write_pending(merged).addCallback(lambda _: verdict)

    def _converge(self, order: UploadRequest) -> None:
        """Of two images that were appended to one path, the one that was first takes the place of ours."""
        self._log.error(
            "conflict at append-only {vpath}: image {image}, which was appended first, takes its place",
            vpath=str(order.vpath),
            image=order.image.hex(),
        )
        ours = self.ledger.committed(order.vpath)
        if ours is not None and ours.image != order.image:
            self.conflicted(order.vpath, ours.image, f"{order.image.hex()[:12]} was appended first, and takes its place")

    def _begin(self, order: UploadRequest, config: DirConfig, verdict: Accepted, start: Callable[[Pending], None]) -> Deferred[Decision]:
        if verdict.conflict:  # guard: A51
            self._converge(order)
        self.downloads.stop(order.vpath, AbortReason.CONFLICT if verdict.conflict else AbortReason.SUPERSEDED)
        before = self.ledger.pending(order.vpath)
        if before is not None and config.append_only and before.state.version < verdict.state.version:
            # a peer that still waits for it, with an older claim, does not bring it back
            self.ledger.abort(order.vpath, self.context.now_ms())
        pending = Pending(order.vpath, verdict.state, order.command)
        self.ledger.begin(pending)

        def recorded(_: None) -> Decision:
            if self.ledger.pending(order.vpath) is pending:
                start(pending)
            return verdict

        def lost(failure: Failure) -> Failure:
            if self.ledger.pending(order.vpath) is pending:  # guard: A39 F29
                self.ledger.abort(order.vpath, self.context.now_ms())
            return failure

        return self.context.disk.write_pending(pending).addCallbacks(recorded, lost)
