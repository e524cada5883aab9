"""The scrub service: one image at a time, slowly; what is suspect comes first, and what is damaged is fetched again.

A token bucket bounds how much may be read now.
"""

from __future__ import annotations

from dataclasses import field
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.index.tree import Index
from ciruela.interfaces import Examination, Findings, NodeContext
from ciruela.model.config import Tuning
from ciruela.model.errors import CiruelaError, DiskError, DownloadFailed
from ciruela.model.ids import ImageId
from ciruela.model.upload import AbortReason
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath
from ciruela.runtime import Backoff, PeriodicTask, TokenBucket
from ciruela.tracking.ledger import Ledger

BURST_S = 4.0
"""Most seconds' worth of reading that may be made up for after a pause."""

TICK_S = 1.0

FIRST_S = 600.0
"""The first cycle begins so long after the start: a node that comes up has better things to do."""

NEW_S = 60.0
"""A new image is read so long after its commit, or later: its disk has written it by then, and whoever waited for it is served."""

MOST_NEW = 1000
"""New images that wait to be read; the cycle comes to the others."""

SUSPECT_BYTES = 64 * 1024 * 1024
"""Bytes of a suspect image that one tick reads, whatever the rate."""

MOST_SUSPECTS = 1000

MOST_MENDING = 3
"""Images that are mended at a time; uploads come first."""

MOST_TOLD = 3
"""Damages that are named in a line of the log."""

AGAIN_S = 60.0
LONGEST_AGAIN_S = 3600.0
"""After the n-th failure to mend an image the next attempt is made n minutes later, an hour at most."""


CLEARED_S = 600.0
LONGEST_CLEARED_S = 6 * 3600.0
"""Time for which an image that was suspect and turned out whole is not suspect again; it grows each time: a read that fails for want of
descriptors must not keep the disk busy and the log full."""


def reading(bytes_s: int, clock: IReactorTime) -> TokenBucket:
    """The bytes that may be read: ``bytes_s`` a second on average, with 0 none at all."""
    return TokenBucket(clock, bytes_s, BURST_S * bytes_s, empty=True)


class Mender(Protocol):
    """Port to the downloads, for scrub."""

    def repair(self, vpath: VPath) -> Deferred[None] | None:
        """Put the committed image at ``vpath`` together again; None when that cannot begin now."""

    def repair_index(self, vpath: VPath, image: ImageId) -> Deferred[Index]:
        """Get the index of a committed image again, and store it."""

    def stalled(self, vpath: VPath) -> bool:
        """Tells whether nobody has given anything for ``vpath`` for a while."""

    def stop(self, vpath: VPath, reason: AbortReason) -> None:
        """End what is under way for ``vpath``."""


@dataclass(slots=True)
class Ill:
    """An image that is damaged. ``count`` damages, ``sample`` names some; ``index``: that is what is missing.

    ``mending`` while it is being fetched again; ``failure``: why the last attempt was none. ``doubtful``: an upload came between, perhaps
    of the same image, so it is looked through again before anything else.
    """

    image: ImageId
    since_ms: int
    count: int
    sample: tuple[str, ...]
    index: bool = False
    mending: bool = field(init=False, default=False)
    failure: str = field(init=False, default="")
    doubtful: bool = field(init=False, default=False)


@dataclass(eq=False)
class Scrub:
    """Looks through all images once in a cycle, and through a new one soon.

    ``ill`` are the damaged ones; the counts are since the start.
    """

    _log = Logger()

    # required parameters
    context: NodeContext
    ledger: Ledger
    mender: Mender

    # internal state
    ill: dict[VPath, Ill] = field(init=False, default_factory=dict)
    bytes: int = field(init=False, default=0)
    looked: int = field(init=False, default=0)
    damaged: int = field(init=False, default=0)
    healed: int = field(init=False, default=0)
    failed: int = field(init=False, default=0)
    cycle_total: int = field(init=False, default=0)
    last_full_ms: int | None = field(init=False, default=None)
    _suspects: dict[VPath, None] = field(init=False, default_factory=dict)
    _new: dict[VPath, float] = field(init=False, default_factory=dict)
    _order: list[VPath] = field(init=False, default_factory=list)
    _cycling: bool = field(init=False, default=False)
    _at: VPath | None = field(init=False, default=None)
    _suspect: bool = field(init=False, default=False)
    _is_new: bool = field(init=False, default=False)
    _examination: Examination | None = field(init=False, default=None)
    _work: Deferred[None] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        clock, tuning = self.context.clock, self.context.tuning
        self._tuning = tuning
        self._pace = reading(tuning.scrub_bytes_per_second, clock)
        self._beat = PeriodicTask(clock, self.context.rng, TICK_S, self._tick, "the scrub")
        self._cycle_s = clock.seconds() + FIRST_S
        self._retries: Backoff[VPath] = Backoff(clock, AGAIN_S, LONGEST_AGAIN_S)
        self._cleared: Backoff[VPath] = Backoff(clock, CLEARED_S, LONGEST_CLEARED_S)

    def start(self) -> None:
        """Begin."""
        self._cycle_s = self.context.clock.seconds() + FIRST_S
        self._beat.start()

    def tune(self, tuning: Tuning) -> None:
        """Read at this pace from now on; a longer or shorter cycle counts from the next one on."""
        if tuning.scrub_bytes_per_second != self._tuning.scrub_bytes_per_second:
            self._pace = reading(tuning.scrub_bytes_per_second, self.context.clock)
        self._tuning = tuning

    def stop(self) -> None:
        """End; what is being read is let go of."""
        self._beat.stop()
        if self._work is not None:
            self._work.cancel()
        self._let_go()

    def suspect(self, vpath: VPath, image: ImageId) -> None:
        """Something of the image that is committed at ``vpath`` could not be read, or was wrong: look at it soon."""
        ill = self.ill.get(vpath)
        if vpath in self._suspects or (self._suspect and vpath == self._at) or (ill is not None and ill.image == image):
            return
        if self._cleared.blocked(vpath):
            return
        if len(self._suspects) < MOST_SUSPECTS:
            self._suspects[vpath] = None
            self._log.error("{vpath}: a block of {image} is missing or wrong, it is looked through", vpath=str(vpath), image=image.hex())

    def arrived(self, vpath: VPath) -> None:
        """A new image was committed at ``vpath``: read it soon, for the commit did not read what it had just written from the disk."""
        self._new.pop(vpath, None)
        if len(self._new) < MOST_NEW:  # guard: I6, -> True
            self._new[vpath] = self.context.clock.seconds() + NEW_S

    @property
    def left(self) -> int:
        """Images that this cycle has not looked through yet."""
        return len(self._order) + (self._at is not None and not self._suspect and not self._is_new)

    @property
    def at(self) -> VPath | None:
        """The image that is being looked through."""
        return self._at

    # -- a tick -------------------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._mend()
        if self._work is not None:
            return
        if self._at is not None and self._suspects and not self._suspect:
            if self._is_new:
                self.arrived(self._at)
            else:
                self._order.append(self._at)
            self._let_go()
        if self._at is None:
            self._next()
        if self._at is None:
            return
        budget = SUSPECT_BYTES if self._suspect else int(self._pace.left)
        if budget <= 0:
            return
        work = self._look(self._at, budget).addErrback(self._unknown, self._at)
        if not work.called:
            self._work = work
            work.addBoth(self._rest)

    def _rest(self, _: object) -> None:
        self._work = None

    def _next(self) -> None:
        """Chooses the next image: a suspect one, else a new one, else one of the cycle that is due."""
        self._is_new = False
        if self._cycling and not self._order:
            self._cycling = False
            self.last_full_ms = self.context.now_ms()
        if self._suspects:
            self._at = next(iter(self._suspects))
            del self._suspects[self._at]
            self._suspect = True
            return
        now_s = self.context.clock.seconds()
        first = next(iter(self._new), None)
        if first is not None and now_s >= self._new[first] and self._tuning.scrub_bytes_per_second:
            del self._new[first]
            self._at, self._suspect, self._is_new = first, False, True
            return
        if not self._order and self._tuning.scrub_bytes_per_second and now_s >= self._cycle_s:
            self._begin_cycle(now_s)
        if self._order:
            self._at = self._order.pop()
            self._suspect = False

    def _begin_cycle(self, now_s: float) -> None:
        """All images that are here, in random order: a node that is often restarted gets to all of them in time."""
        self._cycling = True
        self._cycle_s = now_s + self._tuning.scrub_cycle_ms / 1000
        self._order = sorted(vpath for base in self.ledger.base_hashes() for vpath, _ in self.ledger.committed_in(base))
        self.context.rng.shuffle(self._order)
        self.cycle_total = len(self._order)

    # -- looking --------------------------------------------------------------------------------------------------------------------

    def _look(self, vpath: VPath, budget: int) -> Deferred[None]:
        if self._examination is not None:
            return self._go_on(vpath, self._examination, budget)
        committed = self.ledger.committed(vpath)
        if committed is None or self.ledger.pending(vpath) is not None:
            self._at = None
            return succeed(None)
        index = self.context.disk.read_index(committed.image).addErrback(self._no_index)
        return index.addCallback(self._with_index, vpath, committed.image, budget)

    def _no_index(self, failure: Failure) -> None:
        """One that cannot be read is as bad as one that is not there."""
        failure.trap(DiskError)

    def _with_index(self, index: Index | None, vpath: VPath, image: ImageId, budget: int) -> Deferred[None] | None:
        if index is None:
            self._at = None
            self._found(vpath, Ill(image, self.context.now_ms(), 1, ("its index is missing or bad",), index=True))
            return None
        self._examination = self.context.disk.examine(vpath, index)
        return self._go_on(vpath, self._examination, budget)

    def _go_on(self, vpath: VPath, examination: Examination, budget: int) -> Deferred[None]:
        before = examination.cost

        def looked(findings: Findings | None) -> None:
            self.bytes += examination.cost - before
            # What is suspect is read at once, so it does not use up what the cycle may read.
            if not self._suspect:
                self._pace.spend(examination.cost - before)
            if findings is not None:
                suspect = self._suspect
                self._let_go()
                self._conclude(vpath, findings, suspect=suspect)

        return examination.go_on(budget).addCallback(looked)

    def _let_go(self) -> None:
        self._at = None
        if self._examination is not None:
            self._examination.close()
            self._examination = None

    def _unknown(self, failure: Failure, vpath: VPath) -> None:
        """Nobody can tell how the image is, as when its disk is not mounted: it comes up again with the next cycle."""
        self._let_go()
        if failure.check(CancelledError):
            return
        if failure.check(CiruelaError):
            self._log.warn("{vpath} cannot be looked through: {reason}", vpath=str(vpath), reason=failure.getErrorMessage())
        else:
            self._log.failure("looking through {vpath} failed", failure, vpath=str(vpath))

    def _conclude(self, vpath: VPath, findings: Findings, *, suspect: bool) -> None:
        committed = self.ledger.committed(vpath)
        if not findings.current or committed is None:
            return
        self.looked += 1
        if not findings.count:
            # A false alarm: the next one about this image has to wait, longer each time.
            if suspect:
                self._cleared.failed(vpath)
            ill = self.ill.get(vpath)
            if ill is not None and not ill.mending:
                del self.ill[vpath]
                self._retries.succeeded(vpath)
            return
        sample = tuple(f"{one.path} {one.what}" for one in findings.damages[:MOST_TOLD])
        self._found(vpath, Ill(committed.image, self.context.now_ms(), findings.count, sample))

    def _found(self, vpath: VPath, ill: Ill) -> None:
        """Tell the log, unless it is known: what is being mended, or waits for its next attempt, is told once."""
        known = self.ill.get(vpath)
        if known is not None and known.image == ill.image and (known.mending or known.sample == ill.sample):
            return
        self.ill[vpath] = ill
        self.damaged += 1
        self._log.error(
            "{vpath} is damaged, it is mended from other nodes: {count} damages, {sample}",
            vpath=str(vpath),
            count=ill.count,
            sample=", ".join(repr(one) for one in ill.sample),
        )

    # -- mending --------------------------------------------------------------------------------------------------------------------

    def _mend(self) -> None:
        """Begin to mend what is not being mended; what is not here any more is forgotten."""
        for vpath, ill in list(self.ill.items()):
            committed = self.ledger.committed(vpath)
            if committed is None or committed.image != ill.image:
                del self.ill[vpath]
                self._retries.succeeded(vpath)
            elif ill.mending and not ill.index and self.mender.stalled(vpath):
                self.mender.stop(vpath, AbortReason.NO_FILE_SOURCE)
        for vpath, ill in list(self.ill.items()):
            if sum(one.mending for one in self.ill.values()) >= MOST_MENDING:
                return
            if ill.doubtful and self.ledger.pending(vpath) is None:
                ill.doubtful = False
                self._suspects[vpath] = None
            looking = vpath in self._suspects or vpath == self._at
            if not (ill.mending or ill.doubtful or looking or self._retries.blocked(vpath)):
                self._begin_mending(vpath, ill)

    def _begin_mending(self, vpath: VPath, ill: Ill) -> None:
        """Begins to repair an image, unless an upload is on its way there: it may take the place of what is damaged."""
        mending: Deferred[object] | None
        mending = self.mender.repair_index(vpath, ill.image) if ill.index else self.mender.repair(vpath)  # type: ignore[assignment]
        if mending is None:
            return
        ill.mending = True
        mending.addCallbacks(self._mended, self._not_mended, callbackArgs=(vpath, ill), errbackArgs=(vpath, ill))
        mending.addErrback(self._broken, vpath)

    def _mended(self, _: object, vpath: VPath, ill: Ill) -> None:
        self._retries.succeeded(vpath)
        if self.ill.get(vpath) is ill:
            del self.ill[vpath]
        if ill.index:
            self._suspects[vpath] = None
            return
        self.healed += 1
        self._log.info("{vpath} is whole again", vpath=str(vpath))

    def _not_mended(self, failure: Failure, vpath: VPath, ill: Ill) -> None:
        ill.mending = False
        if failure.check(CancelledError):
            return
        if isinstance(failure.value, DownloadFailed) and failure.value.reason in (AbortReason.SUPERSEDED, AbortReason.CONFLICT):
            ill.doubtful = True
            return
        self.failed += 1
        self._retries.failed(vpath)
        if not failure.check(CiruelaError):
            self._log.failure("mending {vpath} failed", failure, vpath=str(vpath))
        reason = failure.getErrorMessage() or type(failure.value).__name__
        if reason != ill.failure:
            self._log.error("{vpath} could not be mended, what is left of it stays: {reason}", vpath=str(vpath), reason=reason)
        ill.failure = reason

    def _broken(self, failure: Failure, vpath: VPath) -> None:
        self._log.failure("the end of mending {vpath} failed", failure, vpath=str(vpath))
