"""Presence of the recorded images: the names of all committed ones are looked at once a minute (finding K3.5).

An image that somebody removed by hand stops counting as committed and is fetched again, as a start does it. Where a directory cannot be
opened, or is another one than before, nobody can tell, and nothing is concluded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.interfaces import Address, NamesFound, NodeContext, Pending
from ciruela.model.errors import DiskError
from ciruela.model.upload import AbortReason, Command
from ciruela.model.values import dataclass
from ciruela.model.versions import State
from ciruela.model.vpath import VPath
from ciruela.runtime import PeriodicTask
from ciruela.tracking.ledger import Ledger

T = TypeVar("T")

TICK_S = 3.0
ROUND_TICKS = 20
"""All images have their turn in so many ticks: a minute."""

MOST_AT_ONCE = 2000
"""Names that are looked at in one thread job, some 5 ms."""

PROVED_A_TICK = 10
"""Records without a checksum that are verified and written again in a tick, each durably: 10,000 in less than an hour."""

TIDY_TICKS = 60 * ROUND_TICKS
"""Ticks between two attempts to delete what could not be deleted: an hour."""


class PresenceDownloads(Protocol):
    """Port to the downloads, for the presence check."""

    def start(self, pending: Pending, hints: tuple[Address, ...] = ()) -> None:
        """Begin to fetch what is pending."""

    def stop(self, vpath: VPath, reason: AbortReason) -> None:
        """End what is under way for ``vpath``."""

    def settled(self, vpath: VPath) -> Deferred[None] | None:
        """None, or what to wait for while a commit at ``vpath`` is under way."""


class Alone(Protocol):
    """Takes turns with the orders for a path."""

    def __call__(self, vpath: VPath, work: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Run ``work`` while no order for ``vpath`` is being judged."""


@dataclass(eq=False)
class Presence:
    """Looks at the names of images. ``unseen`` tells why nobody can tell of a directory (key); ``lost`` counts images since the start."""

    _log = Logger()

    # required parameters
    context: NodeContext
    ledger: Ledger
    fetcher: PresenceDownloads
    alone: Alone

    # internal state
    unseen: Mapping[str, str] = field(init=False, default_factory=dict)
    lost: int = field(init=False, default=0)
    litter: int = field(init=False, default=0)
    _round: Iterator[VPath] = field(init=False, default_factory=lambda: iter(()))
    _batch: int = field(init=False, default=0)
    _ticks: int = field(init=False, default=0)
    _unproved: dict[VPath, None] = field(init=False, default_factory=dict)
    _unseen_now: dict[str, str] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._beat = PeriodicTask(self.context.clock, self.context.rng, TICK_S, self._tick, "the look at what is there")

    def start(self) -> None:
        """Begin; the ledger is filled."""
        self._beat.start()

    def stop(self) -> None:
        """End."""
        self._beat.stop()

    # -- the round -----------------------------------------------------------------------------------------------------------------

    def _tick(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._work())

    async def _work(self) -> None:
        if self._ticks % ROUND_TICKS == 0:
            self._begin_round()
            await self._tidy(delete=self._ticks % TIDY_TICKS == 0)
        self._ticks += 1
        left = self._batch
        while left > 0 and (vpaths := list(islice(self._round, min(left, MOST_AT_ONCE)))):
            left -= len(vpaths)
            await self._compare(await self.context.disk.look(vpaths))
        self._unproved.update(dict.fromkeys(await self.context.disk.prove(PROVED_A_TICK)))
        for vpath in list(self._unproved):
            try:
                await self.alone(vpath, partial(self._unrecorded, vpath))
            except DiskError as error:
                self._log.warn("{vpath}: nobody can tell whether it is recorded: {reason}", vpath=str(vpath), reason=error)
            else:
                del self._unproved[vpath]

    async def _tidy(self, *, delete: bool) -> None:
        try:
            self.litter = await self.context.disk.tidy(delete=delete)
        except DiskError as error:
            self._log.warn("what is set aside, or could not be deleted, cannot be looked at: {reason}", reason=error)

    def _begin_round(self) -> None:
        """The last round has ended: what was seen in it counts."""
        for key in self._unseen_now.keys() - self.unseen.keys():
            reason = self._unseen_now[key]
            self._log.error("/{key}: {reason}; nobody can tell whether its images are there, they stay recorded", key=key, reason=reason)
        for key in self.unseen.keys() - self._unseen_now.keys():
            self._log.info("/{key}: the directory can be looked at again", key=key)
        self.unseen, self._unseen_now = self._unseen_now, {}
        self._round = self._images()
        self._batch = -(-len(self.ledger) // ROUND_TICKS)

    def _images(self) -> Iterator[VPath]:
        """All committed images, those of one base dir one after the other."""
        for base in list(self.ledger.base_hashes()):
            yield from [vpath for vpath, _ in self.ledger.committed_in(base)]

    async def _compare(self, sight: NamesFound) -> None:
        self._unseen_now.update(sight.unseen)
        for vpath in sight.gone:
            try:
                await self.there(vpath)
            except DiskError as error:
                self._log.warn("{vpath}: {reason}", vpath=str(vpath), reason=error)

    # -- one image -----------------------------------------------------------------------------------------------------------------

    def there(self, vpath: VPath) -> Deferred[bool]:
        """Tells whether an image is committed at ``vpath`` and its directory stands there, by a look at the disk now.

        One that is missing is fetched again from now on. Fails with DiskError when nobody can tell.
        """
        if self.ledger.committed(vpath) is None:
            return succeed(False)
        return self.context.disk.present(vpath).addCallback(self._seen, vpath)

    def _seen(self, there: bool, vpath: VPath) -> bool | Deferred[bool]:
        return True if there else self.alone(vpath, lambda: self._look_again(vpath))

    def _look_again(self, vpath: VPath) -> Deferred[bool]:
        """While nobody else decides anything for the path; on some file systems a commit shows nothing for a moment."""
        settled = self.fetcher.settled(vpath)
        if settled is not None:
            return settled.addCallback(lambda _: self._look_again(vpath))
        committed = self.ledger.committed(vpath)
        if committed is None:
            return succeed(False)
        return self.context.disk.present(vpath).addCallback(self._conclude, vpath, committed)

    def _conclude(self, there: bool, vpath: VPath, committed: State) -> bool | Deferred[bool]:
        if there or self.ledger.committed(vpath) is not committed or self.fetcher.settled(vpath) is not None:
            return there
        self.lost += 1
        if self.ledger.pending(vpath) is not None:
            self._log.error("{vpath}: the image {image} is gone from the disk", vpath=str(vpath), image=committed.image.hex())
            self.ledger.vanish(vpath, None)
            return False
        self._log.error(
            "{vpath}: the image {image} is gone from the disk, it is fetched again", vpath=str(vpath), image=committed.image.hex()
        )
        self.fetcher.stop(vpath, AbortReason.SUPERSEDED)  # it may have been about to be mended
        pending = Pending(vpath, committed, Command.APPEND)
        self.ledger.vanish(vpath, pending)  # guard: K3.5 I7
        written = self.context.disk.write_pending(pending)
        return written.addCallbacks(self._fetch, self._not_written, callbackArgs=(pending,), errbackArgs=(vpath,))

    def _fetch(self, _: None, pending: Pending) -> bool:
        if self.ledger.pending(pending.vpath) is pending:
            self.fetcher.start(pending)
        return False

    def _not_written(self, failure: Failure, vpath: VPath) -> bool:
        """It is not on its way then; other nodes tell of it, or the next start finds it missing."""
        failure.trap(DiskError)
        self._log.error("{vpath} cannot be fetched again: {reason}", vpath=str(vpath), reason=failure.getErrorMessage())
        self.ledger.abort(vpath, 0)
        return False

    def _unrecorded(self, vpath: VPath) -> Deferred[None]:
        """The record of an image was set aside: the image counts no more, and comes back from other nodes.

        Unless an image was committed meanwhile: it has a record again.
        """
        settled = self.fetcher.settled(vpath)
        if settled is not None:
            return settled.addCallback(lambda _: self._unrecorded(vpath))
        committed = self.ledger.committed(vpath)
        if committed is None:
            return succeed(None)
        return self.context.disk.recorded(vpath).addCallback(self._forget, vpath, committed)

    def _forget(self, recorded: bool, vpath: VPath, committed: State) -> Deferred[None] | None:
        if recorded:  # guard: K3.3 I7
            return None
        if self.ledger.committed(vpath) is not committed or self.fetcher.settled(vpath) is not None:  # guard: K3.3 I7
            return self._unrecorded(vpath)
        self.ledger.vanish(vpath, None)
        return None
