"""The uploads service: from an order to a recorded, running download (protocol section 5.3, house section 3 (b))."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.clockwork import Hush
from ciruela.keys.signed import signed_check_bytes
from ciruela.model.dirconfig import DirConfig
from ciruela.model.ids import ImageId
from ciruela.model.order import Abort, Accepted, Order, Progress, Reject, Rejected, Verdict
from ciruela.model.state import SigEntry, State
from ciruela.model.tuning import STANDARD
from ciruela.model.vpath import VPath
from ciruela.seams import Address, Authority, Disk, NowMs, Pending
from ciruela.tracking.ledger import Ledger
from ciruela.uploads.quotas import Quotas
from ciruela.uploads.verdict import SIGNATURE_MAX_AGE_MS, Standing, judge, precheck

T = TypeVar("T")


class Starter(Protocol):
    """What uploads asks of the downloads."""

    def start(self, pending: Pending, hints: tuple[Address, ...]) -> None:
        """Begin to fetch an accepted upload; ``hints`` are nodes that spoke of it."""

    def stop(self, vpath: VPath, reason: Abort) -> None:
        """End the download for ``vpath``, if one runs."""

    def stalled(self, vpath: VPath) -> bool:
        """Whether the download for ``vpath`` has found no source for a while."""

    def settled(self, vpath: VPath) -> Deferred[None] | None:
        """None, or what to wait for while a commit at ``vpath`` must not be interrupted."""


class Uploads:
    """Judges orders one at a time for each path, records what is accepted, and starts its download."""

    _log = Logger()

    def __init__(
        self,
        configs: Mapping[str, DirConfig],
        ledger: Ledger,
        disk: Disk,
        authority: Authority,
        downloads: Starter,
        now_ms: NowMs,
        conflicted: Callable[[VPath, ImageId, str], None],
        hush: Hush,
        max_age_ms: int = SIGNATURE_MAX_AGE_MS,
        uploads_per_key: int = STANDARD.uploads_per_key,
    ) -> None:
        """``conflicted`` is told which image at an append-only path is not the only one, or not the one that stays, and a sentence why."""
        self._configs = configs
        self._ledger = ledger
        self._disk = disk
        self._authority = authority
        self._downloads = downloads
        self._now_ms = now_ms
        self._conflicted = conflicted
        self._max_age_ms = max_age_ms
        self._hush = hush
        self.quotas = Quotas(ledger, uploads_per_key, downloads.stalled)
        self._turns: dict[VPath, DeferredLock] = {}
        self.refused: Callable[[Order, Reject], None] = lambda _order, _reason: None

    def order(self, order: Order, hints: tuple[Address, ...] = ()) -> Deferred[Verdict]:
        """Fires with the verdict once it is recorded.

        Fails with DiskError when it cannot be, or when the keys cannot be read; with Busy when the key that signed it has as many uploads
        in progress as it may have.
        """
        config = self._configs.get(order.vpath.key)
        refused = precheck(order, config)
        if refused is not None:
            return succeed(refused)
        assert config is not None
        return self.alone(order.vpath, lambda: self._examine(order, config, hints))

    def tune(self, max_age_ms: int, uploads_per_key: int) -> None:
        """These count from now on."""
        self._max_age_ms = max_age_ms
        self.quotas.tune(uploads_per_key)

    def alone(self, vpath: VPath, work: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Run ``work`` while no order for ``vpath`` is being judged."""
        turn = self._turns.setdefault(vpath, DeferredLock())

        def leave(result: T | Failure) -> T | Failure:
            turn.release()
            if not turn.locked and not turn.waiting:
                self._turns.pop(vpath, None)
            return result

        return turn.acquire().addCallback(lambda _: work()).addBoth(leave)

    def _examine(self, order: Order, config: DirConfig, hints: tuple[Address, ...]) -> Deferred[Verdict]:
        return (
            self._authority.verified(config, order.vpath, order.image, order.signatures)
            .addCallback(self._with_presence, order)
            .addCallback(lambda found: self._decide(order, config, hints, *found))
        )

    def _with_presence(self, verified: Mapping[SigEntry, str], order: Order) -> Deferred[tuple[Mapping[SigEntry, str], bool]]:
        """Whether the recorded image really stands there: an operator may have removed it by hand."""
        committed = self._ledger.committed(order.vpath)
        if not verified or committed is None or committed.image != order.image:
            return succeed((verified, True))
        return self._disk.present(order.vpath).addCallback(lambda there: (verified, there))

    def _decide(
        self, order: Order, config: DirConfig, hints: tuple[Address, ...], verified: Mapping[SigEntry, str], present: bool
    ) -> Verdict | Deferred[Verdict]:
        pending = self._ledger.pending(order.vpath)
        committed = self._ledger.committed(order.vpath)
        standing = self._standing(order.vpath)
        verdict = self._judged(order, config, standing, verified)
        match verdict:
            case Rejected(reason=Reject.CONFLICT):
                self._frozen(order, standing)
                return verdict
            case Rejected():
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
                return verdict
            case Accepted(progress=Progress.ALREADY_DONE) if present:
                return self._merge_committed(order.vpath, committed, verdict)
            case Accepted(progress=Progress.IN_PROGRESS):
                return self._merge_pending(pending, verdict)
            case Accepted():
                settled = self._downloads.settled(order.vpath)
                if settled is None:
                    self.quotas.charge(order, verified.values())
                    return self._begin(order, verdict, hints)
                return settled.addCallback(lambda _: self._decide(order, config, hints, verified, present))

    def _standing(self, vpath: VPath) -> Standing:
        """What is known of ``vpath``."""
        pending = self._ledger.pending(vpath)
        burials = self._ledger.burials(vpath.base)
        tombstone = burials.tombstones.get(vpath.entry)
        return Standing(
            self._ledger.committed(vpath),
            pending.state if pending else None,
            self._downloads.stalled(vpath),
            tombstone.version if tombstone else None,
            burials.floor_ms,
        )

    def _judged(self, order: Order, config: DirConfig, standing: Standing, verified: Mapping[SigEntry, str]) -> Verdict:
        verdict = judge(order, config, standing, tuple(verified), self._now_ms(), self._max_age_ms)
        if isinstance(verdict, Accepted) and verdict.progress is Progress.NEW:
            verdict = self.quotas.room(order, config) or verdict
        return verdict

    def check(self, order: Order) -> Deferred[Verdict]:
        """The verdict that an upload would get, for a question that is signed as one. Nothing is recorded, begun, or logged.

        Fails with DiskError when the keys cannot be read.
        """
        config = self._configs.get(order.vpath.key)
        unfit = precheck(order, config)
        if unfit is not None or config is None:
            return succeed(unfit or Rejected(Reject.NO_CONFIG))
        verified = self._authority.verified(config, order.vpath, order.image, order.signatures, signed_check_bytes)
        return verified.addCallback(lambda found: self._judged(order, config, self._standing(order.vpath), found))

    def _frozen(self, order: Order, standing: Standing) -> None:
        """Two images were appended to one path, and this node keeps its own."""
        kept = standing.pending or standing.committed
        assert kept is not None
        self._log.error(
            "conflict at append-only {vpath}: another node has {image}, here {kept} stays (on-append-conflict: freeze)",
            vpath=str(order.vpath),
            image=order.image.hex(),
            kept=kept.image.hex(),
        )
        self._conflicted(order.vpath, kept.image, f"another node has {order.image.hex()[:12]} there, and each keeps its own")

    def _merge_committed(self, vpath: VPath, committed: State | None, verdict: Accepted) -> Verdict | Deferred[Verdict]:
        if committed == verdict.state:
            return verdict
        self._ledger.commit(vpath, verdict.state)
        return self._disk.write_state(vpath, verdict.state).addCallback(lambda _: verdict)

    def _merge_pending(self, pending: Pending | None, verdict: Accepted) -> Verdict | Deferred[Verdict]:
        if pending is None or pending.state == verdict.state:
            return verdict
        merged = Pending(pending.vpath, verdict.state, pending.command)
        self._ledger.begin(merged)
        return self._disk.write_pending(merged).addCallback(lambda _: verdict)

    def _converge(self, order: Order) -> None:
        """Of two images that were appended to one path, the greater version takes the place of ours."""
        self._log.error(
            "conflict at append-only {vpath}: image {image}, newer by the order of versions, takes its place",
            vpath=str(order.vpath),
            image=order.image.hex(),
        )
        ours = self._ledger.committed(order.vpath)
        if ours is not None:
            self._conflicted(order.vpath, ours.image, f"{order.image.hex()[:12]}, newer by the order of versions, takes its place")

    def _begin(self, order: Order, verdict: Accepted, hints: tuple[Address, ...]) -> Deferred[Verdict]:
        if verdict.conflict:
            self._converge(order)
        self._downloads.stop(order.vpath, Abort.CONFLICT if verdict.conflict else Abort.SUPERSEDED)
        pending = Pending(order.vpath, verdict.state, order.command)
        self._ledger.begin(pending)

        def recorded(_: None) -> Verdict:
            if self._ledger.pending(order.vpath) is pending:
                self._downloads.start(pending, hints)
            return verdict

        def lost(failure: Failure) -> Failure:
            if self._ledger.pending(order.vpath) is pending:
                self._ledger.abort(order.vpath, self._now_ms())
            return failure

        return self._disk.write_pending(pending).addCallbacks(recorded, lost)
