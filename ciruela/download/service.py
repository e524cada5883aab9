"""The downloads: one Deferred chain for each image on its way, from the index to the commit (protocol section 5.4).

index -> staging -> what an earlier run left -> files and blocks of siblings -> blocks from sources -> verify, make durable, show

Candidates for one image are clients that published it, peers that said they hold some of it, and where there is doubt likely ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.download.fetch_blocks import BlockFetch
from ciruela.download.fetch_index import IndexFetch
from ciruela.download.plan import BlockPlan
from ciruela.download.relaycache import BlockRelayCache
from ciruela.download.running import Download, DownloadListener, DownloadPhase, Gate, OpenGate, Siblings, reason_of
from ciruela.download.serving import LARGE_BLOCKS, Catalog
from ciruela.download.sources import MOST_WINDOW, Candidate, Totals
from ciruela.index import tree
from ciruela.index.merge import BlockMap
from ciruela.index.tree import Index
from ciruela.interfaces import Address, Connection, Connector, Disk, InThread, NowMs, Pending, Reused, Staging
from ciruela.model.bitfield import FULL
from ciruela.model.config import STANDARD, DirConfig
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.upload import AbortReason, Command
from ciruela.model.versions import State
from ciruela.model.vpath import VPath
from ciruela.proto.compression import unpack_index
from ciruela.runtime import in_place
from ciruela.tracking.ledger import Ledger
from ciruela.tracking.subscriptions import Subscriptions

MOST_PEERS = 16
"""Peers that blocks of one image are exchanged with at a time."""


class BlockHolder(Protocol):
    """A peer that said it has an image, or the slices of ``mask``."""

    @property
    def address(self) -> Address:
        """Address at which the node listens."""

    @property
    def machine(self) -> MachineId:
        """Id of the node."""

    @property
    def source(self) -> bool:
        """Tells whether a client gives to it."""

    @property
    def mask(self) -> int:
        """The slices that it has."""

    @property
    def has_index(self) -> bool:
        """Tells whether it has the index."""


class DownloadGossip(Protocol):
    """Port to gossip, for downloads."""

    def holders(self, vpath: VPath, image: ImageId) -> Sequence[BlockHolder]:
        """The peers that said so themselves."""

    def taking(self, key: str) -> Sequence[Address]:
        """The peers that have the directory config ``key``."""


class Wanting(Protocol):
    """Image on its way, and what is known of it. ``hints`` are nodes that spoke of it, ``peers`` those that were asked last."""

    vpath: VPath
    image: ImageId
    hints: set[Address]
    peers: list[Address]


class PeerSelection:
    """Chooses the candidates for every download of a node."""

    def __init__(self, watches: Subscriptions, wire: Connector, rumors: DownloadGossip, rng: random.Random) -> None:
        self._watches = watches
        self._wire = wire
        self._rumors = rumors
        self._rng = rng

    def candidates(self, wanting: Wanting, others: Sequence[Wanting], *, index: bool) -> list[Candidate]:
        """Lists sources of blocks of ``wanting``, or its ``index``. ``others`` are all downloads: they share the connections of clients."""
        found = [self._seed(link, others) for link in self._watches.sources(wanting.image)]
        holders = {holder.address: holder for holder in self._rumors.holders(wanting.vpath, wanting.image) if holder.has_index or not index}
        useful = list(holders)
        neighbors = [holders[address] for address in self._neighbors(wanting, useful)]
        found.extend(self._peer(one.address, one.mask, hearsay=False, machine=one.machine, served=one.source) for one in neighbors)
        guesses = [address for address in wanting.hints if address not in holders]
        if not found and not guesses:
            guesses = [address for address in self._rumors.taking(wanting.vpath.key) if address not in holders]
        if len(found) < MOST_PEERS:
            found.extend(self._peer(address, FULL, hearsay=True) for address in self._rng.sample(guesses, min(3, len(guesses))))
        return found

    def _seed(self, link: Connection, others: Sequence[Wanting]) -> Candidate:
        """A client; the downloads that it can give to share its connection."""
        sharing = sum(1 for one in others if link in self._watches.sources(one.image))
        most = max(1, MOST_WINDOW // max(1, sharing))
        return Candidate(
            link,
            link.name,
            link.ask,
            FULL,
            seed=True,
            most=most,
            bulk=link.bulk,
            incoming=lambda: link.incoming,
            close=link.close,
        )

    def _peer(self, address: Address, mask: int, *, hearsay: bool, machine: bytes | None = None, served: bool = False) -> Candidate:
        return Candidate(
            address,
            str(address),
            lambda request: self._wire.ask(address, request),
            mask,
            seed=False,
            hearsay=hearsay,
            bulk=self._wire.bulk(address),
            most=MOST_WINDOW // 2,
            machine=machine,
            served=served,
            incoming=lambda: self._wire.incoming(address),
        )

    def _neighbors(self, wanting: Wanting, useful: list[Address]) -> list[Address]:
        """Up to MOST_PEERS of those that have the image or fetch it; who was asked before stays."""
        staying = [address for address in wanting.peers if address in useful]
        fresh = [address for address in useful if address not in staying]
        self._rng.shuffle(fresh)
        wanting.peers = (staying + fresh)[:MOST_PEERS]
        return wanting.peers


P = ParamSpec("P")
T = TypeVar("T")

LEAST_UNPACKED = 16 * 1024 * 1024
"""An index of so many bytes is looked at, though only smaller ones may be taken: whoever sends it hears that it is too large."""

SUPERSEDABLE_S = 120.0
"""A download that got nothing for so long gives way to a newer upload; the reference gives up after as much (protocol section 5.9)."""


class Downloads:
    """All downloads of this node, one for each path."""

    _log = Logger()

    def __init__(
        self,
        configs: Mapping[str, DirConfig],
        ledger: Ledger,
        watches: Subscriptions,
        disk: Disk,
        wire: Connector,
        rumors: DownloadGossip,
        outcome: DownloadListener,
        catalog: Catalog,
        clock: IReactorTime,
        rng: random.Random,
        now_ms: NowMs,
        in_thread: InThread = in_place,
        me: bytes = b"",
        max_index_bytes: int = STANDARD.max_index_bytes,
        gate: Gate | None = None,
    ) -> None:
        self._configs = configs
        self._ledger = ledger
        self._disk = disk
        self._in_thread = in_thread
        self._suppliers = PeerSelection(watches, wire, rumors, rng)
        self._find_siblings = Siblings(configs, ledger, catalog)
        self._outcome = outcome
        self._gate: Gate = gate or OpenGate()
        self._catalog = catalog
        self._clock = clock
        self._rng = rng
        self._now_ms = now_ms
        self._me = me
        self._most_unpacked = max(max_index_bytes, LEAST_UNPACKED)
        self._running: dict[VPath, Download] = {}
        self._mending: list[Deferred[Index]] = []
        self.totals = Totals()
        self.passing = BlockRelayCache(clock)

    def start(self, pending: Pending, hints: tuple[Address, ...] = ()) -> None:
        """Begin to fetch what is pending; ``hints`` are nodes that spoke of it."""
        download = Download(pending.vpath, pending.state.image, pending.command, set(hints), self._clock.seconds())
        self._log.info("fetching {image} for {vpath}", image=download.image.hex(), vpath=str(download.vpath))
        self._run(download)

    def heal(self, vpath: VPath) -> Deferred[None] | None:
        """Fetch the image that is committed at ``vpath`` again: what is whole there is linked, the rest comes from others (threats 6.11).

        It stays visible until the two trees change places, and for good when that fails. No record is kept and nobody is told: for others
        the image is here, and a restart forgets the attempt. Any upload that is accepted takes its place. Fires when the image is whole,
        fails with what kept it from that. None when nothing is committed there, or something is on its way.
        """
        committed = self._ledger.committed(vpath)
        if committed is None or vpath in self._running or self._ledger.pending(vpath) is not None:
            return None
        healed: Deferred[None] = Deferred()
        self._run(Download(vpath, committed.image, Command.REPLACE, set(), self._clock.seconds(), healed=healed))
        return healed

    def mend_index(self, vpath: VPath, image: ImageId) -> Deferred[Index]:
        """Put the index of an image that is committed here on the disk again, from others. As ``IndexFetch.run``."""
        fetch = self._index_fetch(Download(vpath, image, Command.REPLACE, set(), self._clock.seconds()), on_disk=False).run()
        self._mending.append(fetch)

        def ended(result: Index | Failure) -> Index | Failure:
            self._mending.remove(fetch)
            return result

        return fetch.addBoth(ended)

    def _run(self, download: Download) -> None:
        self._running[download.vpath] = download
        self._progressed(download)
        download.chain = (
            self._index(download)
            .addCallback(self._map, download)
            .addCallback(self._stage, download)
            .addCallback(self._keep, download)
            .addCallback(self._siblings, download)
            .addCallback(self._reuse, download)
            .addCallback(self._fits, download)
            .addCallback(self._plan, download)
            .addCallback(self._fetch, download)
            .addCallback(self._admit, download)
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

    def stop(self, vpath: VPath, reason: AbortReason) -> None:
        """End the download for ``vpath``, if one runs; its staging directory is removed."""
        download = self._running.pop(vpath, None)
        if download is not None and download.chain is not None:
            download.stop_reason = reason
            download.chain.cancel()

    def abort(self, vpath: VPath, reason: AbortReason) -> None:
        """Give the download for ``vpath`` up, if one runs, as if it had failed: whoever waits is told, the path is free again."""
        download = self._running.get(vpath)
        if download is not None and download.chain is not None and download.healed is None:
            download.stop_reason = reason
            download.chain.cancel()

    def leave(self, key: str) -> None:
        """End all downloads below ``key``, which is configured no more; what is on disk stays, in case it comes back."""
        for vpath in [vpath for vpath in self._running if vpath.key == key]:
            download = self._running.pop(vpath)
            download.let_go()
            if download.healed is None:
                self._outcome.gave_up(vpath, download.image, AbortReason.DIRECTORY_REMOVED, "")
            else:
                download.healed.errback(DownloadFailed(AbortReason.DIRECTORY_REMOVED))

    def settled(self, vpath: VPath) -> Deferred[None] | None:
        """None unless the download for ``vpath`` is being committed, which must not be interrupted: then fires when that has ended."""
        download = self._running.get(vpath)
        if download is None or download.phase is not DownloadPhase.COMMIT:
            return None
        download.waiting.append(waiting := Deferred[None]())
        return waiting

    def stop_all(self) -> None:
        """End everything without a word: the daemon stops, what is on disk stays for the next start."""
        self.passing.stop()
        for fetch in list(self._mending):
            fetch.cancel()
        running, self._running = self._running, {}
        for download in running.values():
            download.let_go()

    def stalled(self, vpath: VPath, since_s: float = SUPERSEDABLE_S) -> bool:
        """Tells whether the download for ``vpath`` got nothing for ``since_s``."""
        download = self._running.get(vpath)
        return download is not None and download.waits_since(self._clock.seconds() - since_s)

    def running(self) -> list[Download]:
        """The downloads of uploads under way."""
        return [one for one in self._running.values() if one.healed is None]

    def healing(self) -> list[VPath]:
        """The paths of committed images that are being mended."""
        return [one.vpath for one in self._running.values() if one.healed is not None]

    def get(self, vpath: VPath) -> Download | None:
        """The download for ``vpath``."""
        return self._running.get(vpath)

    # -- the links of the chain ---------------------------------------------------------------------------------------------------

    def _index(self, download: Download) -> Deferred[Index]:
        def found(entry: tuple[Index, BlockMap] | None) -> Index | Deferred[Index]:
            if entry is not None:
                return entry[0]
            download.index_fetch = self._index_fetch(download, on_disk=True)
            return download.index_fetch.run()

        return self._catalog.get(download.image).addCallback(found)

    def _index_fetch(self, download: Download, *, on_disk: bool) -> IndexFetch:
        """``on_disk``: an index in memory will do, its file is not known to be lost."""

        def kept() -> Index | None:
            entry = self._catalog.kept(download.image) if on_disk else None
            return entry[0] if entry else None

        return IndexFetch(
            download.image,
            str(download.vpath),
            lambda: self._candidates(download, index=True),
            self._disk.write_index,
            self._clock,
            self._rng,
            lambda packed: self._in_thread(unpack_index, packed, self._most_unpacked),
            kept,
        )

    def _candidates(self, download: Download, *, index: bool) -> list[Candidate]:
        return self._suppliers.candidates(download, list(self._running.values()), index=index)

    def _progressed(self, download: Download) -> None:
        if download.healed is not None:
            return
        try:
            self._outcome.progressed(download.vpath)
        except Exception:  # noqa: BLE001  who listens must not keep an image from arriving
            self._log.failure("nobody was told how far the download for {vpath} is", vpath=str(download.vpath))

    def _large(self, index: Index, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Call ``f``, which goes over all of ``index``: in a thread when that would hold up the reactor."""
        if index.block_count < LARGE_BLOCKS:
            return in_place(f, *args, **kwargs)
        return self._in_thread(f, *args, **kwargs)

    def _map(self, index: Index, download: Download) -> Deferred[tuple[Index, BlockMap]]:
        if download.healed is None:
            checked = self._large(index, tree.check, index, self._configs[download.vpath.key])
            return checked.addCallback(lambda _: self._catalog.add(index))
        return self._catalog.add(index)

    def _stage(self, entry: tuple[Index, BlockMap], download: Download) -> Deferred[Staging]:
        index, _ = download.index, download.blocks = entry
        download.index_fetch = None
        download.phase = DownloadPhase.STAGING
        return self._disk.stage(download.vpath, index)

    def _keep(self, staging: Staging, download: Download) -> Deferred[frozenset[int]]:
        download.staging = staging
        return staging.keep()

    def _siblings(self, kept: frozenset[int], download: Download) -> Deferred[tuple[frozenset[int], list[tuple[VPath, Index]]]]:
        return self._find_siblings.find(download).addCallback(lambda siblings: (kept, siblings))

    def _reuse(
        self, found: tuple[frozenset[int], list[tuple[VPath, Index]]], download: Download
    ) -> Deferred[tuple[frozenset[int], Reused]]:
        kept, siblings = found
        if download.staging is None or not siblings:
            return succeed((kept, Reused(frozenset(), 0, 0)))
        return download.staging.reuse(siblings).addCallback(lambda reused: (kept, reused))

    def _fits(self, here: tuple[frozenset[int], Reused], download: Download) -> Deferred[tuple[frozenset[int], Reused]]:
        """Writing nothing fails when there is no room for what is missing: so that is told before the first block is asked for."""
        assert download.staging is not None
        return download.staging.write(()).addCallback(lambda _: here)

    def _plan(self, here: tuple[frozenset[int], Reused], download: Download) -> Deferred[BlockPlan]:
        kept, reused = here
        index = download.index
        assert index is not None
        self.totals.reused_files += reused.files
        self.totals.reused_bytes += reused.bytes

        def planned(plan: BlockPlan) -> BlockPlan:
            self._log.info(
                "{vpath}: {total} blocks, {kept} kept, {reused} in {files} files reused, {missing} to fetch",
                vpath=str(download.vpath),
                total=index.block_count,
                kept=len(kept),
                reused=len(reused.blocks),
                files=reused.files,
                missing=plan.missing,
            )
            return plan

        rng = random.Random(self._rng.getrandbits(64))  # noqa: S311  the order of blocks, nothing secret
        return self._large(index, lambda: BlockPlan(index, kept | reused.blocks, rng)).addCallback(planned)

    def _fetch(self, plan: BlockPlan, download: Download) -> Deferred[None]:
        assert download.index is not None
        assert download.blocks is not None
        assert download.staging is not None
        download.plan = plan
        download.phase = DownloadPhase.BLOCKS
        self._progressed(download)
        download.block_fetch = BlockFetch(
            str(download.vpath),
            download.index,
            download.blocks,
            plan,
            download.staging,
            lambda: self._candidates(download, index=False),
            lambda: self._progressed(download),
            self.totals,
            self._clock,
            self.passing,
            self._me,
        )
        return download.block_fetch.run()

    def _admit(self, _: None, download: Download) -> Deferred[None]:
        """Lets the gate look at a whole image before it is shown; an image under repair was shown before."""
        pending = self._ledger.pending(download.vpath)
        if download.healed is not None or pending is None or not self._gate.gated(download.vpath):
            return succeed(None)
        assert download.staging is not None
        download.phase = DownloadPhase.CHECK
        self._progressed(download)
        return self._gate.admit(download.vpath, pending.state, download.staging)

    def _commit(self, _: None, download: Download) -> Deferred[State]:
        assert download.staging is not None
        download.phase = DownloadPhase.COMMIT
        self._progressed(download)
        if download.healed is not None:
            committed = self._ledger.committed(download.vpath)
            if committed is None or committed.image != download.image:
                raise DownloadFailed(AbortReason.SUPERSEDED, "the image is not wanted any more")
            return download.staging.restore(committed).addCallback(lambda _: committed)
        pending = self._ledger.pending(download.vpath)
        if pending is None:
            raise DownloadFailed(AbortReason.SUPERSEDED, "the upload is not wanted any more")
        state = pending.state
        kept = download.staging.commit(state).addCallback(lambda versions: self._ledger.keep(download.vpath, versions))
        return kept.addCallback(lambda _: state)

    def _arrived(self, state: State, download: Download) -> Deferred[None] | None:
        del self._running[download.vpath]
        if download.staging is not None:
            download.staging.close()
        if download.healed is not None:
            download.healed.callback(None)
            return None
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
        if download.healed is not None:
            return self._not_healed(failure, download)
        reason, detail = reason_of(failure, download)
        self._log.error(
            "{image} for {vpath} given up: {reason} {detail}",
            image=download.image.hex(),
            vpath=str(download.vpath),
            reason=reason.value,
            detail=detail,
        )
        self.totals.failed += 1
        try:
            self._outcome.gave_up(download.vpath, download.image, reason, detail)
        except Exception:  # noqa: BLE001  who listens must not keep the path from being free again
            self._log.failure("nobody was told that the download for {vpath} ended", vpath=str(download.vpath))
        if self._running.get(download.vpath) is download:
            del self._running[download.vpath]
            self._ledger.abort(download.vpath, self._now_ms())
            if download.staging is not None:
                download.staging.close()  # what is removed while it is open takes space, and descriptors, until the daemon ends
            return self._disk.drop_pending(download.vpath)
        return None if download.staging is None else download.staging.discard()

    def _not_healed(self, failure: Failure, download: Download) -> Deferred[None]:
        """The damaged copy stays as it is. Whoever stopped this may be about to put the same image together, in the same directory."""
        if self._running.get(download.vpath) is download:
            del self._running[download.vpath]
        if download.stop_reason is not None:
            failure = Failure(DownloadFailed(download.stop_reason))

        def leave(_: None) -> Deferred[None] | None:
            pending = self._ledger.pending(download.vpath)
            if download.staging is None:
                return None
            if pending is None or pending.state.image != download.image:
                return download.staging.discard()
            download.staging.close()
            return None

        left = deferLater(self._clock, 0, leave, None).addErrback(self._not_left, download)
        return left.addCallback(lambda _: failure)

    def _not_left(self, failure: Failure, download: Download) -> None:
        """Logs a staging that cannot be removed: the next start, or the next download of the same image, removes it."""
        if failure.check(DiskError):
            self._log.error("{vpath}: cannot be removed: {why}", vpath=str(download.vpath), why=failure.getErrorMessage())
        else:
            self._log.failure("the end of the download for {vpath} failed", failure, vpath=str(download.vpath))

    def _broken(self, failure: Failure, download: Download) -> None:
        if download.healed is not None:
            download.healed.errback(failure)
        else:
            self._not_left(failure, download)

    def _settle(self, _: None, download: Download) -> None:
        for waiting in download.waiting:
            waiting.callback(None)
