"""Repair: a committed image that is damaged, or its index, is fetched again (threats 6.11)."""

from __future__ import annotations

from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from ciruela.download.machine import ActiveStep, Committing, RepairMachine, StagedImage
from ciruela.download.steps import Transfer
from ciruela.index.tree import Index
from ciruela.interfaces import Address
from ciruela.model.errors import DownloadFailed
from ciruela.model.ids import ImageId
from ciruela.model.upload import AbortReason
from ciruela.model.versions import State
from ciruela.model.vpath import VPath


@dataclass(eq=False)
class Repair(Transfer):
    """A committed image that is put together again beside itself. ``ended`` fires when it is whole, fails with what kept it from that.

    Nobody is told, and nothing is recorded: for others the image is here.
    """

    ended: Deferred[None] = field(default_factory=Deferred, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.events = RepairMachine(self)

    def progressed(self) -> None:
        """Tells nobody."""

    def mapped(self, index: Index) -> Deferred[Index]:
        """Makes the map of its blocks; no limit counts for what is here already."""
        return self.context.catalog.add(index)

    def siblings(self) -> Deferred[list[tuple[VPath, Index]]]:
        """Finds the damaged image itself, and others."""
        return self.context.siblings.copies(self.vpath)

    def commit(self, image: StagedImage) -> Deferred[State]:
        """Has the two trees change places."""
        committed = self.context.ledger.committed(self.vpath)
        if committed is None or committed.image != self.image:
            raise DownloadFailed(AbortReason.SUPERSEDED, "the image is not wanted any more")
        return image.directory.restore(committed).addCallback(lambda _: committed)

    def arrived(self, step: Committing, state: State) -> Deferred[None]:  # noqa: ARG002  it is recorded already
        """Tells whoever asked for it."""
        del self.context.running[self.vpath]
        step.close()
        self.ended.callback(None)
        return succeed(None)

    def failed(self, step: ActiveStep, failure: Failure) -> Deferred[None]:
        """Leaves the damaged copy as it is."""
        self.off()
        left = deferLater(self.context.node.clock, 0, self._leave, step).addErrback(self.not_left)
        return left.addCallback(lambda _: self.ended.errback(failure))

    def stopped(self, step: ActiveStep, reason: AbortReason) -> Deferred[None]:
        """Leaves the damaged copy as it is."""
        return self.failed(step, Failure(DownloadFailed(reason)))

    def _leave(self, step: ActiveStep) -> Deferred[None]:
        """Removes what was put together, unless whoever stopped this is putting the same image together in the same directory by now."""
        pending = self.context.ledger.pending(self.vpath)
        if pending is None or pending.state.image != self.image:
            return step.discard()
        step.close()
        return succeed(None)

    def left_out(self) -> None:
        """Tells whoever asked for it."""
        self.ended.errback(DownloadFailed(AbortReason.DIRECTORY_REMOVED))


@dataclass(slots=True)
class LostIndex:
    """The index of a committed image, which its disk has lost. ``hints`` and ``peers`` as a transfer has them."""

    vpath: VPath
    image: ImageId
    hints: set[Address] = field(default_factory=set)
    peers: list[Address] = field(default_factory=list)
