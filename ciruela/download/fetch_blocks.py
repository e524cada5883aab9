"""Fetching the blocks of one image from clients and peers at once (protocol section 5.9, house section 3 (c)).

Each source pulls: whenever it has room for another request it gets the next block that the plan has for it. So a fast source gives much, a
slow one little, and nothing waits for the slowest.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.clockwork import Batch, Hush
from ciruela.download.plan import Plan
from ciruela.download.sources import Candidate, Source, Sources, Totals
from ciruela.index.digest import BLOCK_BYTES
from ciruela.index.merge import BlockMap
from ciruela.index.tree import Index
from ciruela.model.errors import DiskError, DownloadFailed, RemoteError
from ciruela.model.mask import FULL, slice_of
from ciruela.model.order import Abort
from ciruela.proto.messages import BlockData, BlockHint, GetBlock, Response
from ciruela.seams import Staging

T = TypeVar("T")

LATE_S = 3.0
"""With nothing else left to ask for, a block owed for so long is asked for elsewhere too."""

STALLED_S = 10.0
"""No good block for so long while something is missing: the download says of itself that it is stalled."""

GIVE_UP_S = 3600.0
"""No good block for so long: the download is given up (threats A56)."""

TICK_S = 1.0
WRITES_PER_JOB = 64
MOST_UNWRITTEN = 256
"""Blocks that were received and are not written yet; with more, nothing new is asked for."""


class BlockFetch:
    """Runs until every block of the plan is on disk."""

    _log = Logger()

    def __init__(
        self,
        vpath: str,
        index: Index,
        blocks: BlockMap,
        plan: Plan,
        staging: Staging,
        candidates: Callable[[], list[Candidate]],
        progressed: Callable[[], None],
        totals: Totals,
        clock: IReactorTime,
        rng: random.Random,
    ) -> None:
        self._vpath = vpath
        self._index = index
        self._blocks = blocks
        self._plan = plan
        self._candidates = candidates
        self._progressed = progressed
        self._totals = totals
        self._clock = clock
        self._rng = rng
        self._sources = Sources()
        self._writes: Batch[tuple[int, bytes], bool] = Batch(staging.write, WRITES_PER_JOB)
        self._asked: set[Deferred[Response]] = set()
        self._writing = 0
        self._tick: IDelayedCall | None = None
        self._pumping = False
        self._ended = False
        self._hush = Hush(clock, 10)
        self._done: Deferred[None] = Deferred(self._cancelled)
        self.last_good_s = clock.seconds()

    def run(self) -> Deferred[None]:
        """Fires when nothing is missing; fails with DiskError, or DownloadFailed after GIVE_UP_S without a good block. Cancellable."""
        self._beat()
        return self._done

    @property
    def stalled(self) -> bool:
        """Whether nothing good has come for STALLED_S."""
        return not self._plan.done and self._clock.seconds() - self.last_good_s >= STALLED_S

    def nudge(self) -> None:
        """There is news of a source."""
        if not self._ended:
            self._sources.update(self._candidates(), self._clock.seconds())
            self._pump()

    def _beat(self) -> None:
        try:
            self._step()
        except Exception:  # noqa: BLE001  a download that nobody drives would hang for ever
            self._broken(Failure())

    def _broken(self, failure: Failure) -> None:
        self._log.failure("fetching {image} failed", failure, image=self._index.image.hex())
        if not self._ended:
            self._end(failure)

    def _step(self) -> None:
        self._tick = None
        if not self._plan.done and self._clock.seconds() - self.last_good_s >= GIVE_UP_S:
            self._end(Failure(DownloadFailed(Abort.NO_FILE_SOURCE, f"no block came for {GIVE_UP_S:.0f} s")))
            return
        self._sources.update(self._candidates(), self._clock.seconds())
        self._pump()
        if not self._ended:
            self._tick = self._clock.callLater(TICK_S, self._beat)

    def _pump(self) -> None:
        if self._pumping or self._ended:
            return
        self._pumping = True
        try:
            again = True
            while again and not self._plan.done:
                again = self._ask_around()
        finally:
            self._pumping = False
        if self._plan.done and not self._writing and not self._ended:
            self._end(None)

    def _ask_around(self) -> bool:
        """One request to each source that has room. Whether anything was asked."""
        now_s = self._clock.seconds()
        claimed = self._sources.claimed_by_peers()
        asked = False
        for source in self._sources.active():
            if self._ended or len(self._writes) >= MOST_UNWRITTEN:
                return False
            if not source.ready(now_s):
                continue
            preferred = FULL & ~claimed if source.candidate.seed else FULL
            number = self._plan.choose(source.candidate.key, source.mask, preferred, source.current, now_s, LATE_S)
            if number is not None:
                source.current = slice_of(number, self._index.block_count)
                self._ask(source, number)
                asked = True
        return asked

    def _ask(self, source: Source, number: int) -> None:
        file, block = self._blocks.by_number(number)
        request = GetBlock(file.block_hash(block), BlockHint(self._vpath, file.path, block * BLOCK_BYTES))
        deadline_s = source.deadline_s()
        source.in_flight += 1
        began_s = self._clock.seconds()
        asked = source.candidate.ask(request)
        self._asked.add(asked)
        (
            asked.addTimeout(deadline_s, self._clock)
            .addCallback(self._write, number)
            .addCallback(self._written, source, number, began_s)
            .addErrback(self._failed, source, number)
            .addBoth(self._answered, asked, source)
            .addErrback(self._broken)
        )

    def _write(self, response: Response, number: int) -> Deferred[bool]:
        if not isinstance(response, BlockData):
            raise RemoteError("the answer to GetBlock is something else")
        self._totals.received_bytes += len(response.data)
        self._writing += 1
        return self._writes.submit((number, response.data)).addBoth(self._rested)

    def _rested(self, result: T) -> T:
        self._writing -= 1
        return result

    def _written(self, good: bool, source: Source, number: int, began_s: float) -> None:
        now_s = self._clock.seconds()
        if not good:
            self._hush.warn(
                self._log,
                "wrong bytes",
                source.candidate.name,
                "{source} gave wrong bytes for a block of {image}",
                source=source.candidate.name,
                image=self._index.image.hex(),
            )
            self._totals.bad_blocks += 1
            source.lied(now_s)
            self._plan.failed(number, source.candidate.key)
            return
        source.gave(now_s - began_s)
        self.last_good_s = now_s
        if self._plan.arrived(number):
            self._progressed()

    def _failed(self, failure: Failure, source: Source, number: int) -> None:
        self._plan.failed(number, source.candidate.key)
        if self._ended:
            return
        if failure.check(DiskError, DownloadFailed):
            self._end(failure)
            return
        now_s = self._clock.seconds()
        if failure.check(RemoteError):
            source.lacked(slice_of(number, self._index.block_count), now_s)
        else:
            source.failed(now_s)
        self._hush.info(
            self._log,
            "no block",
            source.candidate.name,
            "{source} did not give a block of {image}: {reason}",
            source=source.candidate.name,
            image=self._index.image.hex(),
            reason=failure.getErrorMessage(),
        )

    def _answered(self, _: None, asked: Deferred[Response], source: Source) -> None:
        self._asked.discard(asked)
        source.in_flight -= 1
        self._pump()

    def _end(self, failure: Failure | None) -> None:
        self._ended = True
        self._let_go()
        if failure is None:
            self._done.callback(None)
        else:
            self._done.errback(failure)

    def _cancelled(self, _: Deferred[None]) -> None:
        self._ended = True
        self._let_go()

    def _let_go(self) -> None:
        if self._tick is not None and self._tick.active():
            self._tick.cancel()
        for chain in list(self._asked):
            chain.cancel()
