"""State machines of a download and of a repair (protocol section 5.4): the step that an image is at, and what may follow.

index -> staging -> what is here already -> blocks from sources -> the operator's check -> verify, make durable, show

A state owns a :class:`Step`: the Deferred chain that is under way, and what is open. So an end reaches exactly what there is to end. Each
chain ends by telling its machine, with all that the next step needs. What it tells while another input is dealt with waits for that one, so
no step is entered before the one before it is left.

Status pages and gossip read the step itself, not the machine: that costs an attribute, and is right even in the middle of a transition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from automat import TypeMachine, TypeMachineBuilder
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure

from ciruela.download.fetch_blocks import BlockFetch
from ciruela.download.fetch_index import IndexFetch
from ciruela.download.plan import BlockPlan
from ciruela.index.tree import Index
from ciruela.interfaces import Staging
from ciruela.model.bitfield import FULL
from ciruela.model.upload import AbortReason
from ciruela.model.versions import State

if TYPE_CHECKING:
    from automat._typed import TypedDataState, TypedState  # what a builder gives; the names are not exported


class DownloadPhase(Enum):
    """Words for how far a download is, as status pages have them."""

    INDEX = "index"
    STAGING = "staging"
    BLOCKS = "blocks"
    CHECK = "check"
    COMMIT = "commit"


@dataclass(frozen=True, slots=True)
class StagedImage:
    """An image with its index and its open staging directory."""

    index: Index
    directory: Staging


# -- the steps ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """A step of a transfer, as readers see it. This one has not begun."""

    phase: ClassVar[DownloadPhase] = DownloadPhase.INDEX

    @property
    def block_count(self) -> int | None:
        """The number of blocks in all; None without the index."""
        return None

    @property
    def mask(self) -> int | None:
        """The bitfield of the slices that are here; None without a plan."""
        return None

    @property
    def pieces(self) -> int | None:
        """The bitfield of the pieces that are here; None without a plan."""
        return None

    @property
    def missing(self) -> int | None:
        """The number of blocks to fetch; None without a plan."""
        return None

    @property
    def stalled(self) -> bool:
        """True when nothing good came lately."""
        return False

    def waits_since(self, then_s: float) -> bool:  # noqa: ARG002  others look at it
        """True when this step waits for others, or for a check, and got nothing from them after ``then_s``."""
        return False

    def nudge(self) -> None:
        """Looks at the sources again: there is news of one."""


@dataclass(frozen=True, slots=True, eq=False)
class ActiveStep(Step):
    """A step that is under way. ``chain`` tells the machine how it ends; cancelling it reaches the request or the job in flight."""

    fault: ClassVar[AbortReason]
    """The word for clients, where a failure brings none."""

    chain: Deferred[None]

    def close(self) -> None:
        """Closes what is open; what is on disk stays."""

    def discard(self) -> Deferred[None]:
        """Removes what was put together from the disk."""
        return succeed(None)

    def settle(self) -> None:
        """Tells those who waited for the end of this step."""


@dataclass(frozen=True, slots=True, eq=False)
class FetchingIndex(ActiveStep):
    """Looks for the index in memory, on the disk, and at others."""

    fault: ClassVar = AbortReason.CANT_FETCH_INDEX

    fetch: IndexFetch
    began_s: float

    def waits_since(self, then_s: float) -> bool:
        """True when it began by then: an index comes whole or not at all."""
        return self.began_s <= then_s

    def nudge(self) -> None:
        """Passes the news on."""
        self.fetch.nudge()


@dataclass(frozen=True, slots=True, eq=False)
class OpeningStaging(ActiveStep):
    """Creates the staging directory, or opens that of an earlier run."""

    phase: ClassVar = DownloadPhase.STAGING
    fault: ClassVar = AbortReason.CANT_CREATE_DIRECTORY

    index: Index

    @property
    def block_count(self) -> int:
        """The number of blocks in all."""
        return self.index.block_count


@dataclass(frozen=True, slots=True, eq=False)
class StagedStep(ActiveStep):
    """A step with an open staging directory."""

    image: StagedImage

    @property
    def block_count(self) -> int:
        """The number of blocks in all."""
        return self.image.index.block_count

    def close(self) -> None:
        """Closes the directory."""
        self.image.directory.close()

    def discard(self) -> Deferred[None]:
        """Removes the directory."""
        return self.image.directory.discard()


@dataclass(frozen=True, slots=True, eq=False)
class FillingStaging(StagedStep):
    """Takes what an earlier run and other images have, and plans the rest."""

    phase: ClassVar = DownloadPhase.STAGING
    fault: ClassVar = AbortReason.HARDLINKING


@dataclass(frozen=True, slots=True, eq=False)
class PlannedStep(StagedStep):
    """A step of which it is known how many blocks were missing."""

    fault: ClassVar = AbortReason.COMMIT_ERROR

    plan: BlockPlan

    @property
    def mask(self) -> int:
        """Everything: no block is missing any more."""
        return FULL

    @property
    def pieces(self) -> int:
        """The pieces that are here."""
        return self.plan.mask

    @property
    def missing(self) -> int:
        """The number of blocks that are not here."""
        return self.plan.missing


@dataclass(frozen=True, slots=True, eq=False)
class FetchingBlocks(PlannedStep):
    """Gets the missing blocks from sources."""

    phase: ClassVar = DownloadPhase.BLOCKS

    fetch: BlockFetch

    @property
    def mask(self) -> int:
        """The slices that are here."""
        return self.plan.pieces.slices(self.plan.mask)

    @property
    def stalled(self) -> bool:
        """True when nothing good came lately."""
        return self.fetch.stalled

    def waits_since(self, then_s: float) -> bool:
        """True when the last good block came by then."""
        return self.fetch.last_good_s <= then_s

    def nudge(self) -> None:
        """Passes the news on."""
        self.fetch.nudge()


@dataclass(frozen=True, slots=True, eq=False)
class CheckingImage(PlannedStep):
    """Waits for the operator's check of the whole image."""

    phase: ClassVar = DownloadPhase.CHECK

    began_s: float

    def waits_since(self, then_s: float) -> bool:
        """True when the check began by then: one that hangs gives way as well."""
        return self.began_s <= then_s


@dataclass(frozen=True, slots=True, eq=False)
class Committing(PlannedStep):
    """Verifies everything, makes it durable and shows it. ``waiting`` fire when that has ended, and all that follows from it."""

    phase: ClassVar = DownloadPhase.COMMIT

    waiting: list[Deferred[None]] = field(default_factory=list)

    def settle(self) -> None:
        """Tells those who must not interrupt a commit."""
        for waiting in self.waiting:
            waiting.callback(None)


# -- what the machine asks for, and is told --------------------------------------------------------------------------------------------


class Steps(Protocol):
    """The work of one transfer, as its machine asks for it. What gives a Deferred may raise as well; the last four must not fail."""

    began_s: float
    step: Step

    def index_fetch(self) -> IndexFetch:
        """Makes the fetch of the index, which begins later, if at all."""

    def find_index(self, fetch: IndexFetch) -> Deferred[Index]:
        """Gets the index from memory, the disk, or others; it is checked, and the map of its blocks ready."""

    def open_staging(self, index: Index) -> Deferred[Staging]:
        """Opens the staging directory."""

    def fill(self, image: StagedImage) -> Deferred[BlockPlan]:
        """Takes what is here already, and plans what is not."""

    def block_fetch(self, image: StagedImage, plan: BlockPlan) -> BlockFetch:
        """Makes the fetch of the blocks."""

    def fetch_blocks(self, fetch: BlockFetch) -> Deferred[None]:
        """Gets the blocks."""

    def commit(self, image: StagedImage) -> Deferred[State]:
        """Shows the image."""

    def arrived(self, step: Committing, state: State) -> Deferred[None]:
        """Ends it well."""

    def failed(self, step: ActiveStep, failure: Failure) -> Deferred[None]:
        """Ends it, because ``step`` failed."""

    def stopped(self, step: ActiveStep, reason: AbortReason) -> Deferred[None]:
        """Ends it, because it is not wanted any more."""


class CheckedSteps(Steps, Protocol):
    """The work of a transfer that may be looked at before it is shown."""

    def now_s(self) -> float:
        """Tells the time on the clock of the transfers."""

    def admit(self, image: StagedImage) -> Deferred[None]:
        """Asks the operator's check."""


class TransferEvents(Protocol):
    """The inputs of both machines."""

    def begin(self) -> None:
        """Takes the first step."""

    def index_found(self, index: Index) -> None:
        """The index is here, and checked."""

    def staging_opened(self, image: StagedImage) -> None:
        """The staging directory is open."""

    def planned(self, image: StagedImage, plan: BlockPlan) -> None:
        """Staging has what is here already."""

    def fetched(self, image: StagedImage, plan: BlockPlan) -> None:
        """No block is missing."""

    def admitted(self, image: StagedImage, plan: BlockPlan) -> None:
        """The check has nothing against it."""

    def committed(self, state: State) -> None:
        """The image is visible and durable."""

    def failed(self, failure: Failure) -> None:
        """The step under way failed."""

    def stop(self, reason: AbortReason) -> None:
        """Cancels the step under way and gives up."""

    def let_go(self) -> None:
        """Cancels the step under way and says nothing; what is on disk stays for the next start."""


# -- entering a step: its chain, one link a line -----------------------------------------------------------------------------------------

A = TypeVar("A", bound=ActiveStep)
T = TypeVar("T")
S = TypeVar("S", bound=Steps)
S_contra = TypeVar("S_contra", bound=Steps, contravariant=True)


def _chain(events: TransferEvents, work: Callable[[], Deferred[T]], tell: Callable[[T], None]) -> Deferred[None]:
    """Makes the chain of a step, to be started when the step is entered. Whatever ``work`` raises is a failure of the step."""
    chain: Deferred[None] = Deferred()
    chain.addCallback(lambda _: work()).addCallback(tell).addErrback(events.failed)
    return chain


def _entered(steps: Steps, step: A) -> A:
    """Starts the chain of ``step``, once readers can see the step."""
    steps.step = step
    step.chain.callback(None)
    return step


def _fetch_index(events: TransferEvents, steps: Steps) -> FetchingIndex:
    fetch = steps.index_fetch()
    chain = _chain(events, lambda: steps.find_index(fetch), events.index_found)
    return _entered(steps, FetchingIndex(chain, fetch, steps.began_s))


def _open_staging(events: TransferEvents, steps: Steps, index: Index) -> OpeningStaging:
    def opened(directory: Staging) -> None:
        events.staging_opened(StagedImage(index, directory))

    return _entered(steps, OpeningStaging(_chain(events, lambda: steps.open_staging(index), opened), index))


def _fill_staging(events: TransferEvents, steps: Steps, image: StagedImage) -> FillingStaging:
    chain = _chain(events, lambda: steps.fill(image), lambda plan: events.planned(image, plan))
    return _entered(steps, FillingStaging(chain, image))


def _fetch_blocks(events: TransferEvents, steps: Steps, image: StagedImage, plan: BlockPlan) -> FetchingBlocks:
    fetch = steps.block_fetch(image, plan)
    chain = _chain(events, lambda: steps.fetch_blocks(fetch), lambda _: events.fetched(image, plan))
    return _entered(steps, FetchingBlocks(chain, image, plan, fetch))


def _check(events: TransferEvents, steps: CheckedSteps, image: StagedImage, plan: BlockPlan) -> CheckingImage:
    chain = _chain(events, lambda: steps.admit(image), lambda _: events.admitted(image, plan))
    return _entered(steps, CheckingImage(chain, image, plan, steps.now_s()))


def _commit(events: TransferEvents, steps: Steps, image: StagedImage, plan: BlockPlan) -> Committing:
    chain = _chain(events, lambda: steps.commit(image), events.committed)
    return _entered(steps, Committing(chain, image, plan))


class _Check(Protocol[S_contra]):
    """Enters the step before the commit."""

    def __call__(self, events: TransferEvents, steps: S_contra, image: StagedImage, plan: BlockPlan) -> CheckingImage: ...


# -- ends --------------------------------------------------------------------------------------------------------------------------------


def _arrived(_events: TransferEvents, steps: Steps, step: Committing, state: State) -> None:
    steps.arrived(step, state).addBoth(lambda _: step.settle())


def _failed(_events: TransferEvents, steps: Steps, step: ActiveStep, failure: Failure) -> None:
    if failure.check(CancelledError):
        # not by this machine, which would not be in this state any more: the daemon is ending, and says nothing
        step.close()
        step.settle()
        return
    steps.failed(step, failure).addBoth(lambda _: step.settle())


def _stopped(_events: TransferEvents, steps: Steps, step: ActiveStep, reason: AbortReason) -> None:
    step.chain.cancel()
    steps.stopped(step, reason).addBoth(lambda _: step.settle())


def _let_go(_events: TransferEvents, _steps: Steps, step: ActiveStep) -> None:
    step.chain.cancel()
    step.settle()
    step.close()


def _opened_too_late(_events: TransferEvents, _steps: Steps, image: StagedImage) -> None:
    """Closes a directory that was opened while the end was waiting for its turn."""
    image.directory.close()


# -- the machines ------------------------------------------------------------------------------------------------------------------------


def _built(
    builder: TypeMachineBuilder[TransferEvents, S],
    check: _Check[S] | None,
) -> TypeMachine[TransferEvents, S]:
    """Builds the steps that both machines have, and that of ``check``, if there is one, before the commit."""
    ready = builder.state("ready")
    fetching_index = builder.state("fetching index", _fetch_index)
    opening_staging = builder.state("opening staging", _open_staging)
    filling_staging = builder.state("filling staging", _fill_staging)
    fetching_blocks = builder.state("fetching blocks", _fetch_blocks)
    committing = builder.state("committing", _commit)
    done, failed, suspended = (builder.state(name) for name in ("done", "failed", "suspended"))

    ready.upon(TransferEvents.begin).to(fetching_index).returns(None)
    fetching_index.upon(TransferEvents.index_found).to(opening_staging).returns(None)
    opening_staging.upon(TransferEvents.staging_opened).to(filling_staging).returns(None)
    filling_staging.upon(TransferEvents.planned).to(fetching_blocks).returns(None)
    active: list[TypedDataState[TransferEvents, S, Any, ...]] = [
        fetching_index,
        opening_staging,
        filling_staging,
        fetching_blocks,
        committing,
    ]
    if check is None:
        fetching_blocks.upon(TransferEvents.fetched).to(committing).returns(None)
    else:
        checking = builder.state("checking", check)
        active.append(checking)
        fetching_blocks.upon(TransferEvents.fetched).to(checking).returns(None)
        checking.upon(TransferEvents.admitted).to(committing).returns(None)
    committing.upon(TransferEvents.committed).to(done)(_arrived)

    for state in active:
        state.upon(TransferEvents.failed).to(failed)(_failed)
        state.upon(TransferEvents.stop).to(failed)(_stopped)
        state.upon(TransferEvents.let_go).to(suspended)(_let_go)
    for end in (done, failed, suspended):
        _ignore_what_is_late(end)
    return builder.build()


def _ignore_what_is_late(end: TypedState[TransferEvents, S]) -> None:
    """A chain that is cancelled fails, and what it told before may still wait for its turn."""
    late: list[Callable[..., None]] = [
        TransferEvents.index_found,
        TransferEvents.planned,
        TransferEvents.fetched,
        TransferEvents.admitted,
        TransferEvents.committed,
        TransferEvents.failed,
        TransferEvents.stop,
        TransferEvents.let_go,
    ]
    for event in late:
        end.upon(event).loop().returns(None)
    end.upon(TransferEvents.staging_opened).loop()(_opened_too_late)


DownloadMachine = _built(TypeMachineBuilder(TransferEvents, CheckedSteps), _check)  # type: ignore[type-abstract]  # only its type counts
RepairMachine = _built(TypeMachineBuilder(TransferEvents, Steps), None)  # type: ignore[type-abstract]
