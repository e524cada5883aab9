"""The work of a download, step by step: the Deferred chains that :mod:`ciruela.download.machine` starts and cancels.

Siblings are the committed images of the same base dir that a new one may have something in common with (protocol section 5.8).
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.download.exchange import ImageExchange, Key, PieceExchanges, Taker
from ciruela.download.fetch_blocks import BlockFetch, ExchangePort, FetchContext
from ciruela.download.fetch_index import IndexFetch
from ciruela.download.machine import (
    ActiveStep,
    Committing,
    DownloadMachine,
    StagedImage,
    Step,
    TransferEvents,
)
from ciruela.download.peers import PeerSelection, Wanting
from ciruela.download.plan import BlockPlan
from ciruela.download.relaycache import BlockRelayCache
from ciruela.download.serving import LARGE_BLOCKS, Catalog
from ciruela.download.sources import Candidate, Totals
from ciruela.index import tree
from ciruela.index.tree import Index
from ciruela.interfaces import Address, NodeContext, Reused, Staging
from ciruela.model.bitfield import BlockSet
from ciruela.model.config import DirConfig, Reuse
from ciruela.model.errors import BadIndex, DiskError, DownloadFailed
from ciruela.model.ids import ImageId
from ciruela.model.upload import AbortReason
from ciruela.model.versions import State
from ciruela.model.vpath import VPath
from ciruela.proto.compression import unpack_index
from ciruela.proto.messages import GetIndex, ImageContent
from ciruela.runtime import in_place
from ciruela.tracking.ledger import Ledger

P = ParamSpec("P")
T = TypeVar("T")


class DownloadListener(Protocol):
    """Listener to the progress of downloads."""

    def progressed(self, vpath: VPath) -> None:
        """There is more to tell about the download at ``vpath``."""

    def arrived(self, vpath: VPath, state: State) -> None:
        """The image is visible, durable and recorded."""

    def gave_up(self, vpath: VPath, image: ImageId, reason: AbortReason, detail: str) -> None:
        """The download ended without an image."""


class Gate(Protocol):
    """Gate through which an image that is whole passes before it is committed."""

    def gated(self, vpath: VPath) -> bool:
        """Tells whether anybody wants to look."""

    def admit(self, vpath: VPath, state: State, staging: Staging) -> Deferred[None]:
        """Fires when the image may be committed, fails with DownloadFailed when it must not. May be cancelled."""


class OpenGate:
    """Nobody looks."""

    def gated(self, vpath: VPath) -> bool:  # noqa: ARG002  the protocol's
        """Nobody does."""
        return False

    def admit(self, vpath: VPath, state: State, staging: Staging) -> Deferred[None]:  # noqa: ARG002  the protocol's
        """At once."""
        return succeed(None)


MOST_SIBLINGS = 37
"""Sibling images that are looked through (protocol section 5.8)."""


class Siblings:
    """Finds images with their indexes: not those whose index cannot be had, and none where the directory is configured to reuse nothing."""

    _log = Logger()

    def __init__(self, configs: Mapping[str, DirConfig], ledger: Ledger, catalog: Catalog) -> None:
        self._configs = configs
        self._ledger = ledger
        self._catalog = catalog

    def beside(self, vpath: VPath, image: ImageId) -> Deferred[list[tuple[VPath, Index]]]:
        """Finds ``image`` itself, if it was replaced here and kept; what stands at the path, the newest, what else is kept. Each once."""
        kept = [(vpath, version.image) for version in self._ledger.kept(vpath)]
        chosen: dict[ImageId, VPath] = {}
        for path, one in chain((one for one in kept if one[1] == image), self._committed(vpath), kept):
            chosen.setdefault(one, path)
            if len(chosen) == MOST_SIBLINGS:
                break
        return self._loaded(vpath, ((path, one) for one, path in chosen.items()))

    def copies(self, vpath: VPath) -> Deferred[list[tuple[VPath, Index]]]:
        """Finds what stands at the path, then the newest, also the same image twice: a damaged copy may be whole elsewhere."""
        return self._loaded(vpath, self._committed(vpath))

    def _committed(self, vpath: VPath) -> Iterator[tuple[VPath, ImageId]]:
        here = self._ledger.committed(vpath)
        if here is not None:
            yield vpath, here.image
        for path, state in sorted(self._ledger.committed_in(vpath.base), key=lambda one: one[1].version, reverse=True):
            if path != vpath:
                yield path, state.image

    def _loaded(self, vpath: VPath, images: Iterable[tuple[VPath, ImageId]]) -> Deferred[list[tuple[VPath, Index]]]:
        if self._configs[vpath.key].reuse is Reuse.NONE:  # guard: A50
            return succeed([])
        chosen = list(islice(images, MOST_SIBLINGS))

        def with_indexes(indexes: list[Index | None]) -> list[tuple[VPath, Index]]:
            return [(path, index) for (path, _), index in zip(chosen, indexes, strict=True) if index is not None]

        loading = [self._catalog.get(image).addErrback(self._no_sibling, image) for _, image in chosen]
        return gatherResults(loading).addCallback(with_indexes)

    def _no_sibling(self, failure: Failure, image: ImageId) -> None:
        self._log.warn("the index of {image} cannot be read: {reason}", image=image.hex(), reason=failure.getErrorMessage())


LEAST_UNPACKED = 16 * 1024 * 1024
"""An index of so many bytes is looked at, though only smaller ones may be taken: whoever sends it hears that it is too large."""


@dataclass(frozen=True, slots=True, eq=False)
class DownloadContext:
    """Everything that all transfers of a node work with; ``running`` are those under way, one for each path."""

    node: NodeContext
    ledger: Ledger
    peers: PeerSelection
    siblings: Siblings
    outcome: DownloadListener
    gate: Gate
    catalog: Catalog
    totals: Totals
    passing: BlockRelayCache
    running: dict[VPath, Transfer]
    exchanges: PieceExchanges

    def candidates(self, wanting: Wanting, *, index: bool) -> list[Candidate]:
        """Selects who may give blocks of ``wanting``, or its ``index``."""
        return self.peers.candidates(wanting, list(self.running.values()), index=index)

    def index_fetch(self, wanting: Wanting, *, on_disk: bool) -> IndexFetch:
        """Makes the fetch of an index. ``on_disk``: one in memory will do, its file is not known to be lost."""

        def kept() -> Index | None:
            return self.catalog.kept(wanting.image) if on_disk else None  # guard: K3.2, -> self.catalog.kept(wanting.image)

        most_unpacked = max(self.node.tuning.max_index_bytes, LEAST_UNPACKED)
        return IndexFetch(
            GetIndex(wanting.image, str(wanting.vpath)),
            lambda: self.candidates(wanting, index=True),
            self.node.disk.write_index,
            self.node.clock,
            self.node.rng,
            lambda packed: self.node.in_thread(unpack_index, packed, most_unpacked),
            kept,
        )

    def large(self, index: Index, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Calls ``f``, which goes over all of ``index``: in a thread when that would hold up the reactor."""
        if index.block_count < LARGE_BLOCKS:
            return in_place(f, *args, **kwargs)
        return self.node.in_thread(f, *args, **kwargs)


@dataclass(eq=False)
class Transfer(ABC):
    """One image on its way into its staging directory. ``hints`` are nodes that spoke of it, ``peers`` those that were asked last.

    ``events`` go to its machine; ``step``, which is for readers, says how far it is.
    """

    _log = Logger()

    # Required parameters
    context: DownloadContext
    vpath: VPath
    image: ImageId
    hints: set[Address] = field(default_factory=set)

    # Internal state
    peers: list[Address] = field(default_factory=list, init=False)
    began_s: float = field(init=False)
    step: Step = field(default_factory=Step, init=False)
    events: TransferEvents = field(init=False)

    def __post_init__(self) -> None:
        self.began_s = self.context.node.clock.seconds()

    # -- in which a download and a repair differ --

    @abstractmethod
    def progressed(self) -> None:
        """Tells others how far it is."""

    @abstractmethod
    def mapped(self, index: Index) -> Deferred[Index]:
        """Checks the index, and makes the map of its blocks."""

    @abstractmethod
    def siblings(self) -> Deferred[list[tuple[VPath, Index]]]:
        """Finds what is here and may have something in common with the image."""

    @abstractmethod
    def left_out(self) -> None:
        """Tells that its directory is configured no more, once it was let go."""

    # -- the steps --

    def index_fetch(self) -> IndexFetch:
        """Makes the fetch of the index, which begins later, if at all."""
        return self.context.index_fetch(self, on_disk=True)

    def find_index(self, fetch: IndexFetch) -> Deferred[Index]:
        """Gets the index from memory, the disk, or others, and its map."""
        self.progressed()

        def found(index: Index | None) -> Deferred[Index]:
            return fetch.run() if index is None else succeed(index)

        return self.context.catalog.get(self.image).addCallback(found).addCallback(self.mapped)

    def open_staging(self, index: Index) -> Deferred[Staging]:
        """Opens the staging directory."""
        return self.context.node.disk.stage(self.vpath, index)

    def fill(self, image: StagedImage) -> Deferred[BlockPlan]:
        """Takes what is here already, and plans what is not."""
        return (
            image.directory.keep()
            .addCallback(self._with_siblings)
            .addCallback(self._reuse, image)
            .addCallback(self._fits, image)
            .addCallback(self._plan, image)
        )

    def _with_siblings(self, here: BlockSet) -> Deferred[tuple[BlockSet, int, list[tuple[VPath, Index]]]]:
        kept = len(here)
        return self.siblings().addCallback(lambda siblings: (here, kept, siblings))

    def _reuse(self, found: tuple[BlockSet, int, list[tuple[VPath, Index]]], image: StagedImage) -> Deferred[tuple[BlockSet, int, Reused]]:
        here, kept, siblings = found
        if not siblings:
            return succeed((here, kept, Reused(frozenset(), 0, 0)))
        return image.directory.reuse(siblings).addCallback(lambda reused: (here, kept, reused))

    def _fits(self, found: tuple[BlockSet, int, Reused], image: StagedImage) -> Deferred[tuple[BlockSet, int, Reused]]:
        """Writing nothing fails when there is no room for what is missing: so that is told before the first block is asked for."""
        return image.directory.write(()).addCallback(lambda _: found)

    def _plan(self, found: tuple[BlockSet, int, Reused], image: StagedImage) -> Deferred[BlockPlan]:
        here, kept, reused = found
        index = image.index
        self.context.totals.reused_files += reused.files
        self.context.totals.reused_bytes += reused.bytes

        def planned(plan: BlockPlan) -> BlockPlan:
            self._log.info(
                "{vpath}: {total} blocks, {kept} kept, {reused} in {files} files reused, {missing} to fetch",
                vpath=str(self.vpath),
                total=index.block_count,
                kept=kept,
                reused=len(reused.blocks),
                files=reused.files,
                missing=plan.missing,
            )
            return plan

        rng = random.Random(self.context.node.rng.getrandbits(64))  # noqa: S311  the order of blocks, nothing secret
        return self.context.large(index, lambda: BlockPlan(index, here, rng)).addCallback(planned)

    def block_fetch(self, image: StagedImage, plan: BlockPlan) -> BlockFetch:
        """Makes the fetch of the blocks."""
        context = self.context
        return BlockFetch(
            str(self.vpath),
            image.index,
            plan,
            image.directory,
            lambda: context.candidates(self, index=False),
            self.progressed,
            FetchContext(context.node.clock, context.totals, context.passing, context.node.me, self.exchange(plan)),
        )

    def exchange(self, plan: BlockPlan) -> ExchangePort | None:  # noqa: ARG002  a download's
        """Finds where pieces of the image are offered."""
        return None

    def fetch_blocks(self, fetch: BlockFetch) -> Deferred[None]:
        """Gets the blocks."""
        self.progressed()
        return fetch.run()

    # -- the end --

    def off(self) -> bool:
        """Takes it off the list of what is under way. False when something else has its path."""
        if self.context.running.get(self.vpath) is not self:
            return False
        del self.context.running[self.vpath]
        return True

    def not_left(self, failure: Failure) -> None:
        """Logs why something stays: what cannot be removed now is removed by the next start, or the next download of the same image."""
        if failure.check(DiskError):
            self._log.error("{vpath}: cannot be removed: {why}", vpath=str(self.vpath), why=failure.getErrorMessage())
        else:
            self._log.failure("the end of the download for {vpath} failed", failure, vpath=str(self.vpath))


@dataclass(frozen=True, slots=True, eq=False)
class _DownloadExchange:
    """The exchanges of the node, for one download."""

    download: Transfer
    plan: BlockPlan

    def begin(self, taker: Taker, /) -> ImageExchange:
        """As :meth:`ciruela.download.fetch_blocks.ExchangePort.begin`."""
        download, plan = self.download, self.plan
        return download.context.exchanges.begin(download.vpath, download.image, plan.pieces, plan.mask, taker)

    def end(self) -> None:
        """As :meth:`ciruela.download.fetch_blocks.ExchangePort.end`."""
        self.download.context.exchanges.end(self.download.vpath, self.download.image)

    def candidate(self, key: Key, /) -> Candidate:
        """As :meth:`ciruela.download.fetch_blocks.ExchangePort.candidate`."""
        return self.download.context.peers.neighbor(key, list(self.download.context.running.values()))


def _cut(index: Index, data: bytes) -> Iterator[tuple[int, bytes]]:
    """Cuts all blocks of an image apart, with their numbers."""
    at = number = 0
    for file in index.files:
        for block in range(file.block_count):
            size = file.block_size(block)
            yield number, data[at : at + size]
            at, number = at + size, number + 1


@dataclass(eq=False)
class Download(Transfer):
    """The image of an accepted upload on its way, recorded on the disk and told to others.

    ``content`` came with the order, from whoever signed it. It is verified as if it had been asked for; what is wrong is asked for.
    """

    content: ImageContent | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.events = DownloadMachine(self)

    def exchange(self, plan: BlockPlan) -> ExchangePort | None:
        """Finds where pieces of the image are offered."""
        return _DownloadExchange(self, plan)

    def now_s(self) -> float:
        """Tells the time on the clock of the transfers."""
        return self.context.node.clock.seconds()

    def progressed(self) -> None:
        """Tells clients and peers how far it is."""
        try:
            self.context.outcome.progressed(self.vpath)
        except Exception:  # noqa: BLE001  who listens must not keep an image from arriving
            self._log.failure("nobody was told how far the download for {vpath} is", vpath=str(self.vpath))

    def mapped(self, index: Index) -> Deferred[Index]:
        """Checks the index against the limits of its directory, and makes the map of its blocks."""
        context = self.context
        checked = context.large(index, tree.check, index, context.node.configs[self.vpath.key])  # guard: A5 A8 F7 A3, -> succeed(None)
        return checked.addCallback(lambda _: context.catalog.add(index))

    def siblings(self) -> Deferred[list[tuple[VPath, Index]]]:
        """Finds images that may have something in common with this one."""
        return self.context.siblings.beside(self.vpath, self.image)

    def find_index(self, fetch: IndexFetch) -> Deferred[Index]:
        """Takes the index that came with the order, or gets it as :meth:`Transfer.find_index`."""
        if self.content is None:
            return super().find_index(fetch)
        self.progressed()
        stored = self.context.node.disk.write_index(self.image, self.content.index)
        return stored.addCallbacks(self.mapped, self._another_index, errbackArgs=(fetch,))

    def _another_index(self, failure: Failure, fetch: IndexFetch) -> Deferred[Index]:
        failure.trap(BadIndex)
        self.content = None
        self._log.warn("{vpath}: the index that came with the order is not that of the image", vpath=str(self.vpath))
        return super().find_index(fetch)

    def _fits(self, found: tuple[BlockSet, int, Reused], image: StagedImage) -> Deferred[tuple[BlockSet, int, Reused]]:
        """Writes the blocks that came with the order, and are not here. What is wrong in them is missing, and fetched."""
        content, self.content = self.content, None
        if content is None or len(content.blocks) != image.index.total_bytes:
            return super()._fits(found, image)
        here, index = found[0], image.index
        missing = [(number, data) for number, data in _cut(index, content.blocks) if number not in here]

        def written(_: list[bool]) -> tuple[BlockSet, int, Reused]:
            self.context.totals.received_bytes += sum(len(data) for _, data in missing)
            if len(here) < index.block_count:
                self._log.warn("{vpath}: blocks that came with the order are wrong", vpath=str(self.vpath))
            return found

        return image.directory.write(missing).addCallback(written)

    def admit(self, image: StagedImage) -> Deferred[None]:
        """Asks the operator's check, if there is one: what is whole may be looked at before it is shown."""
        pending = self.context.ledger.pending(self.vpath)
        if pending is None or not self.context.gate.gated(self.vpath):
            return succeed(None)
        self.progressed()
        return self.context.gate.admit(self.vpath, pending.state, image.directory)

    def commit(self, image: StagedImage) -> Deferred[State]:
        """Shows the image."""
        self.progressed()
        pending = self.context.ledger.pending(self.vpath)
        if pending is None:
            raise DownloadFailed(AbortReason.SUPERSEDED, "the upload is not wanted any more")
        state = pending.state
        kept = image.directory.commit(state).addCallback(lambda versions: self.context.ledger.keep(self.vpath, versions))
        return kept.addCallback(lambda _: state)

    def arrived(self, step: Committing, state: State) -> Deferred[None]:
        """Records that the image is here, and tells everybody."""
        return succeed(state).addCallback(self._record, step).addErrback(self.not_left)

    def _record(self, state: State, step: Committing) -> Deferred[None]:
        context = self.context
        del context.running[self.vpath]
        step.close()
        pending = context.ledger.pending(self.vpath)
        late = pending.state if pending is not None and pending.state.image == state.image else state
        context.ledger.commit(self.vpath, late)
        self._log.info(
            "{image} is at {vpath} after {seconds:.1f} s",
            image=self.image.hex(),
            vpath=str(self.vpath),
            seconds=context.node.clock.seconds() - self.began_s,
        )
        context.totals.committed += 1
        context.totals.committed_bytes += step.image.index.total_bytes
        context.outcome.arrived(self.vpath, late)
        # signatures that came while the commit was under way are not in the state file yet
        return succeed(None) if late == state else context.node.disk.write_state(self.vpath, late)

    def failed(self, step: ActiveStep, failure: Failure) -> Deferred[None]:
        """Gives the upload up, with the word for clients that ``failure`` or ``step`` has."""
        if isinstance(failure.value, DownloadFailed):
            return self._gave_up(step, failure.value.reason, failure.value.detail)
        return self._gave_up(step, step.fault, failure.getErrorMessage())

    def stopped(self, step: ActiveStep, reason: AbortReason) -> Deferred[None]:
        """Gives the upload up."""
        return self._gave_up(step, reason, "")

    def _gave_up(self, step: ActiveStep, reason: AbortReason, detail: str) -> Deferred[None]:
        self._log.error(
            "{image} for {vpath} given up: {reason} {detail}",
            image=self.image.hex(),
            vpath=str(self.vpath),
            reason=reason.value,
            detail=detail,
        )
        self.context.totals.failed += 1
        try:
            self.context.outcome.gave_up(self.vpath, self.image, reason, detail)
        except Exception:  # noqa: BLE001  who listens must not keep the path from being free again
            self._log.failure("nobody was told that the download for {vpath} ended", vpath=str(self.vpath))
        return succeed(step).addCallback(self._clear).addErrback(self.not_left)

    def _clear(self, step: ActiveStep) -> Deferred[None]:
        """Removes the record of the upload, unless it is that of another one by now, and what was put together."""
        if not self.off():
            return step.discard()
        self.context.ledger.abort(self.vpath, self.context.node.now_ms())
        step.close()  # what is removed while it is open takes space, and descriptors, until the daemon ends
        return self.context.node.disk.drop_pending(self.vpath)

    def left_out(self) -> None:
        """Tells that the upload is given up."""
        self.context.outcome.gave_up(self.vpath, self.image, AbortReason.DIRECTORY_REMOVED, "")
