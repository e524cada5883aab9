"""The downloads: one Deferred chain for each image on its way, from the index to the commit (protocol section 5.4).

index -> staging -> what an earlier run left -> hardlinks from siblings -> blocks -> verify, make durable, show
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred, gatherResults, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.download.fetch_blocks import BlockFetch
from ciruela.download.fetch_index import IndexFetch
from ciruela.download.plan import Plan
from ciruela.download.serving import Catalog
from ciruela.download.sources import MOST_WINDOW, Candidate, Totals
from ciruela.index.merge import BlockMap
from ciruela.index.tree import Index
from ciruela.model.dirconfig import DirConfig
from ciruela.model.errors import DownloadFailed
from ciruela.model.ids import ImageId
from ciruela.model.mask import FULL
from ciruela.model.order import Abort, Command
from ciruela.model.state import State
from ciruela.model.vpath import VPath
from ciruela.seams import Address, Disk, Link, NowMs, Pending, Reused, Staging, Wire
from ciruela.tracking.ledger import Ledger
from ciruela.tracking.watches import Watches

MOST_SIBLINGS = 37
"""Sibling images looked through for files to hardlink (protocol section 5.8)."""

MOST_PEERS = 6
"""Peers that blocks of one image are asked from at a time."""

SUPERSEDABLE_S = 120.0
"""A download that got nothing for so long gives way to a newer upload; the reference gives up after as much (protocol section 5.9)."""


class Phase(Enum):
    """How far a download is."""

    INDEX = "index"
    STAGING = "staging"
    BLOCKS = "blocks"
    COMMIT = "commit"


class Holder(Protocol):
    """A peer that said it has an image, or the slices of ``mask``."""

    @property
    def address(self) -> Address:
        """Where it listens."""

    @property
    def mask(self) -> int:
        """The slices that it has."""

    @property
    def has_index(self) -> bool:
        """Whether it has the index."""


class Rumors(Protocol):
    """What downloads ask of gossip."""

    def holders(self, vpath: VPath, image: ImageId) -> Sequence[Holder]:
        """The peers that said so themselves."""

    def taking(self, key: str) -> Sequence[Address]:
        """The peers that have the directory config ``key``."""


class Outcome(Protocol):
    """Who hears how downloads go."""

    def progressed(self, vpath: VPath) -> None:
        """There is more to tell about the download at ``vpath``."""

    def arrived(self, vpath: VPath, state: State) -> None:
        """The image is visible, durable and recorded."""

    def gave_up(self, vpath: VPath, image: ImageId, reason: Abort, detail: str) -> None:
        """The download ended without an image."""


@dataclass
class Download:
    """One image on its way."""

    vpath: VPath
    image: ImageId
    command: Command
    hints: set[Address]
    began_s: float
    phase: Phase = Phase.INDEX
    index: Index | None = None
    blocks: BlockMap | None = None
    plan: Plan | None = None
    staging: Staging | None = None
    index_fetch: IndexFetch | None = None
    block_fetch: BlockFetch | None = None
    chain: Deferred[None] | None = None
    peers: list[Address] = field(default_factory=list)
    stop_reason: Abort | None = None
    waiting: list[Deferred[None]] = field(default_factory=list)

    @property
    def mask(self) -> int | None:
        """The slices that are here; None without the index."""
        if self.phase is Phase.COMMIT:
            return FULL
        return None if self.plan is None else self.plan.mask

    @property
    def stalled(self) -> bool:
        """Whether nothing good came lately."""
        return self.block_fetch is not None and self.block_fetch.stalled


class Downloads:
    """All downloads of this node, one for each path."""

    _log = Logger()

    def __init__(
        self,
        configs: Mapping[str, DirConfig],
        ledger: Ledger,
        watches: Watches,
        disk: Disk,
        wire: Wire,
        rumors: Rumors,
        outcome: Outcome,
        catalog: Catalog,
        clock: IReactorTime,
        rng: random.Random,
        now_ms: NowMs,
    ) -> None:
        self._configs = configs
        self._ledger = ledger
        self._watches = watches
        self._disk = disk
        self._wire = wire
        self._rumors = rumors
        self._outcome = outcome
        self._catalog = catalog
        self._clock = clock
        self._rng = rng
        self._now_ms = now_ms
        self._running: dict[VPath, Download] = {}
        self.totals = Totals()

    def start(self, pending: Pending, hints: tuple[Address, ...] = ()) -> None:
        """Begin to fetch what is pending; ``hints`` are nodes that spoke of it."""
        download = Download(pending.vpath, pending.state.image, pending.command, set(hints), self._clock.seconds())
        self._running[pending.vpath] = download
        self._log.info("fetching {image} for {vpath}", image=download.image.hex(), vpath=str(download.vpath))
        self._outcome.progressed(download.vpath)
        download.chain = (
            self._index(download)
            .addCallback(self._stage, download)
            .addCallback(self._keep, download)
            .addCallback(self._siblings, download)
            .addCallback(self._reuse, download)
            .addCallback(self._fetch, download)
            .addCallback(self._commit, download)
            .addCallbacks(self._arrived, self._ended, callbackArgs=(download,), errbackArgs=(download,))
            .addErrback(self._broken, download)
            .addBoth(self._settle, download)
        )

    def hint(self, vpath: VPath, image: ImageId, address: Address) -> None:
        """A node spoke of an image that is on its way here."""
        download = self._running.get(vpath)
        if download is not None and download.image == image:
            download.hints.add(address)
            self.nudge(vpath)

    def nudge(self, vpath: VPath) -> None:
        """There is news of sources for ``vpath``."""
        download = self._running.get(vpath)
        if download is None:
            return
        if download.block_fetch is not None:
            download.block_fetch.nudge()
        elif download.index_fetch is not None:
            download.index_fetch.nudge()

    def nudge_image(self, image: ImageId) -> None:
        """A client can give ``image``."""
        for download in list(self._running.values()):
            if download.image == image:
                self.nudge(download.vpath)

    def stop(self, vpath: VPath, reason: Abort) -> None:
        """End the download for ``vpath``, if one runs; its staging directory is removed."""
        download = self._running.pop(vpath, None)
        if download is not None and download.chain is not None:
            download.stop_reason = reason
            download.chain.cancel()

    def settled(self, vpath: VPath) -> Deferred[None] | None:
        """None unless the download for ``vpath`` is being committed, which must not be interrupted: then fires when that has ended."""
        download = self._running.get(vpath)
        if download is None or download.phase is not Phase.COMMIT:
            return None
        waiting: Deferred[None] = Deferred()
        download.waiting.append(waiting)
        return waiting

    def stop_all(self) -> None:
        """End everything without a word: the daemon stops, what is on disk stays for the next start."""
        running, self._running = self._running, {}
        for download in running.values():
            if download.chain is not None:
                download.chain.cancel()
            if download.staging is not None:
                download.staging.close()

    def stalled(self, vpath: VPath) -> bool:
        """Whether the download for ``vpath`` got nothing for SUPERSEDABLE_S."""
        download = self._running.get(vpath)
        if download is None:
            return False
        if download.block_fetch is not None:
            return download.phase is Phase.BLOCKS and self._clock.seconds() - download.block_fetch.last_good_s >= SUPERSEDABLE_S
        return download.phase is Phase.INDEX and self._clock.seconds() - download.began_s >= SUPERSEDABLE_S

    def running(self) -> list[Download]:
        """The downloads under way."""
        return list(self._running.values())

    def get(self, vpath: VPath) -> Download | None:
        """The download for ``vpath``."""
        return self._running.get(vpath)

    # -- the links of the chain ---------------------------------------------------------------------------------------------------

    def _index(self, download: Download) -> Deferred[Index]:
        def found(entry: tuple[Index, BlockMap] | None) -> Index | Deferred[Index]:
            if entry is not None:
                return entry[0]
            download.index_fetch = IndexFetch(
                download.image,
                str(download.vpath),
                lambda: self._candidates(download, index=True),
                self._disk.write_index,
                self._clock,
                self._rng,
            )
            return download.index_fetch.run()

        return self._catalog.get(download.image).addCallback(found)

    def _stage(self, index: Index, download: Download) -> Deferred[Staging]:
        download.index, download.blocks = self._catalog.add(index)
        download.index_fetch = None
        download.phase = Phase.STAGING
        return self._disk.stage(download.vpath, index)

    def _keep(self, staging: Staging, download: Download) -> Deferred[frozenset[int]]:
        download.staging = staging
        return staging.keep()

    def _siblings(self, kept: frozenset[int], download: Download) -> Deferred[tuple[frozenset[int], list[tuple[VPath, Index]]]]:
        states = sorted(self._ledger.committed_in(download.vpath.base), key=lambda one: one[1].version, reverse=True)
        chosen: dict[ImageId, VPath] = {}
        for vpath, state in sorted(states, key=lambda one: one[0] != download.vpath):
            if len(chosen) < MOST_SIBLINGS:
                chosen.setdefault(state.image, vpath)

        def with_indexes(entries: list[tuple[Index, BlockMap] | None]) -> tuple[frozenset[int], list[tuple[VPath, Index]]]:
            return kept, [(vpath, entry[0]) for vpath, entry in zip(chosen.values(), entries, strict=True) if entry is not None]

        loading = [self._catalog.get(image).addErrback(self._no_sibling, image) for image in chosen]
        return gatherResults(loading).addCallback(with_indexes)

    def _no_sibling(self, failure: Failure, image: ImageId) -> None:
        self._log.warn("the index of {image} cannot be read: {reason}", image=image.hex(), reason=failure.getErrorMessage())

    def _reuse(
        self, found: tuple[frozenset[int], list[tuple[VPath, Index]]], download: Download
    ) -> Deferred[tuple[frozenset[int], Reused]]:
        kept, siblings = found
        if download.staging is None or not siblings:
            return succeed((kept, Reused(frozenset(), 0, 0)))
        return download.staging.reuse(siblings).addCallback(lambda reused: (kept, reused))

    def _fetch(self, here: tuple[frozenset[int], Reused], download: Download) -> Deferred[None]:
        kept, reused = here
        assert download.index is not None
        assert download.blocks is not None
        assert download.staging is not None
        self.totals.reused_files += reused.files
        self.totals.reused_bytes += reused.bytes
        download.plan = Plan(download.index, kept | reused.blocks, self._rng)
        self._log.info(
            "{vpath}: {total} blocks, {kept} kept, {reused} in {files} files reused, {missing} to fetch",
            vpath=str(download.vpath),
            total=download.index.block_count,
            kept=len(kept),
            reused=len(reused.blocks),
            files=reused.files,
            missing=download.plan.missing,
        )
        download.phase = Phase.BLOCKS
        self._outcome.progressed(download.vpath)
        download.block_fetch = BlockFetch(
            str(download.vpath),
            download.index,
            download.blocks,
            download.plan,
            download.staging,
            lambda: self._candidates(download, index=False),
            lambda: self._outcome.progressed(download.vpath),
            self.totals,
            self._clock,
            self._rng,
        )
        return download.block_fetch.run()

    def _commit(self, _: None, download: Download) -> Deferred[State]:
        assert download.staging is not None
        download.phase = Phase.COMMIT
        self._outcome.progressed(download.vpath)
        pending = self._ledger.pending(download.vpath)
        if pending is None:
            raise DownloadFailed(Abort.SUPERSEDED, "the upload is not wanted any more")
        state = pending.state
        return download.staging.commit(state).addCallback(lambda _: state)

    def _arrived(self, state: State, download: Download) -> Deferred[None] | None:
        del self._running[download.vpath]
        if download.staging is not None:
            download.staging.close()
        pending = self._ledger.pending(download.vpath)
        late = pending.state if pending is not None and pending.state.image == state.image else state
        self._ledger.commit(download.vpath, late)
        self._log.info(
            "{image} is at {vpath} after {seconds:.1f} s",
            image=download.image.hex(),
            vpath=str(download.vpath),
            seconds=self._clock.seconds() - download.began_s,
        )
        self.totals.committed += 1
        self.totals.committed_bytes += download.index.total_bytes if download.index else 0
        self._outcome.arrived(download.vpath, late)
        # signatures that came while the commit was under way are not in the state file yet
        return None if late == state else self._disk.write_state(download.vpath, late)

    def _ended(self, failure: Failure, download: Download) -> Deferred[None] | None:
        if failure.check(CancelledError) and download.stop_reason is None:
            return None
        reason, detail = self._reason(failure, download)
        self._log.error(
            "{image} for {vpath} given up: {reason} {detail}",
            image=download.image.hex(),
            vpath=str(download.vpath),
            reason=reason.value,
            detail=detail,
        )
        self.totals.failed += 1
        self._outcome.gave_up(download.vpath, download.image, reason, detail)
        if self._running.get(download.vpath) is download:
            del self._running[download.vpath]
            self._ledger.abort(download.vpath, self._now_ms())
            return self._disk.drop_pending(download.vpath)
        return None if download.staging is None else download.staging.discard()

    def _reason(self, failure: Failure, download: Download) -> tuple[Abort, str]:
        if download.stop_reason is not None:
            return download.stop_reason, ""
        if isinstance(failure.value, DownloadFailed):
            return failure.value.reason, failure.value.detail
        match download.phase:
            case Phase.INDEX:
                reason = Abort.CANT_FETCH_INDEX
            case Phase.STAGING if download.staging is None:
                reason = Abort.CANT_CREATE_DIRECTORY
            case Phase.STAGING:
                reason = Abort.HARDLINKING
            case Phase.BLOCKS | Phase.COMMIT:
                reason = Abort.COMMIT_ERROR
        return reason, failure.getErrorMessage()

    def _broken(self, failure: Failure, download: Download) -> None:
        self._log.failure("the end of the download for {vpath} failed", failure, vpath=str(download.vpath))

    def _settle(self, _: None, download: Download) -> None:
        for waiting in download.waiting:
            waiting.callback(None)

    # -- who can give -------------------------------------------------------------------------------------------------------------

    def _candidates(self, download: Download, *, index: bool) -> list[Candidate]:
        """Clients that published the image, peers that said they hold some of it, and where there is doubt peers that are likely to."""
        found = [self._seed(link) for link in self._watches.sources(download.image)]
        holders = {
            holder.address: holder for holder in self._rumors.holders(download.vpath, download.image) if holder.has_index or not index
        }
        missing = 0 if download.plan is None else FULL & ~download.plan.mask
        useful = [address for address, holder in holders.items() if index or holder.mask & missing]
        found.extend(self._peer(address, holders[address].mask, hearsay=False) for address in self._neighbors(download, useful))
        guesses = [address for address in download.hints if address not in holders]
        if not found and not guesses:
            guesses = [address for address in self._rumors.taking(download.vpath.key) if address not in holders]
        if len(found) < MOST_PEERS:
            found.extend(self._peer(address, FULL, hearsay=True) for address in self._rng.sample(guesses, min(3, len(guesses))))
        return found

    def _seed(self, link: Link) -> Candidate:
        """A client; the downloads that it can give to share its connection."""
        sharing = sum(1 for one in self._running.values() if link in self._watches.sources(one.image))
        return Candidate(link, link.name, link.ask, FULL, seed=True, most=max(1, MOST_WINDOW // max(1, sharing)))

    def _peer(self, address: Address, mask: int, *, hearsay: bool) -> Candidate:
        return Candidate(address, str(address), lambda request: self._wire.ask(address, request), mask, seed=False, hearsay=hearsay)

    def _neighbors(self, download: Download, useful: list[Address]) -> list[Address]:
        """Up to MOST_PEERS of those that have what is missing; who was asked before stays."""
        staying = [address for address in download.peers if address in useful]
        fresh = [address for address in useful if address not in staying]
        self._rng.shuffle(fresh)
        download.peers = (staying + fresh)[:MOST_PEERS]
        return download.peers
