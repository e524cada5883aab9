"""The removals service: from a signed wish to a tombstone with signatures, and an image that is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Protocol

from twisted.internet import defer
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from ciruela.index.tree import Index
from ciruela.interfaces import NodeContext
from ciruela.keys.signed import removal_bytes
from ciruela.model.config import DirConfig, OnConflict
from ciruela.model.errors import CiruelaError, DiskError, OtherContent
from ciruela.model.ids import ImageId
from ciruela.model.upload import AbortReason, Origin, Rejection, RejectReason, Removal
from ciruela.model.values import dataclass
from ciruela.model.versions import SigEntry, Tombstone
from ciruela.model.vpath import VPath
from ciruela.runtime import RateLimitedLog
from ciruela.tracking.ledger import Ledger
from ciruela.uploads.decision import (
    NOWHERE,
    Elsewhere,
    PathState,
    RemovalVerdict,
    judge_removal,
    no_config,
    wrong_level,
)
from ciruela.uploads.service import Starter, Uploads

INDEX_S = 10.0
"""So long other nodes are asked for the index of an image that is to go, where nothing is recorded of what stands there."""

GUARD_S = 10.0
"""So long it may take to follow the protected links: one may lead to a network file system that hangs."""

Guard = Callable[[DirConfig, VPath], Deferred[str | None]]
"""The link of the operator that leads to what is at a path, None for none. Fails with DiskError when nobody can tell."""


def _unguarded(_config: DirConfig, _vpath: VPath) -> Deferred[str | None]:
    return succeed(None)


class RemovalDownloads(Starter, Protocol):
    """Port to the downloads, for removals."""

    def repair_index(self, vpath: VPath, image: ImageId) -> Deferred[Index]:
        """Get the index of an image from other nodes, and store it."""


@dataclass(eq=False)
class Removals:
    """Judges removals, one at a time with the uploads of each path, and carries them out.

    ``told`` hears of each removal that is recorded here, ``kept_out`` of each that is refused.
    The neighbours of ``uploads`` are asked before a removal of a client is judged; without them this node is alone.
    """

    _log = Logger()

    # required parameters
    context: NodeContext
    ledger: Ledger
    uploads: Uploads
    downloads: RemovalDownloads
    told: Callable[[VPath, ImageId], None]
    guard: Guard = _unguarded
    kept_out: Callable[[Removal, RejectReason], None] = lambda _removal, _reason: None

    # internal state
    removed: int = field(init=False, default=0)
    _max_age_ms: int = field(init=False)
    _hush: RateLimitedLog = field(init=False)

    def __post_init__(self) -> None:
        self._max_age_ms = self.context.tuning.signature_max_age_ms
        self._hush = RateLimitedLog(self.context.clock, 40)

    def remove(self, removal: Removal) -> Deferred[RemovalVerdict]:
        """Fires with the verdict, once the image is not visible any more. Fails with DiskError when it cannot be removed."""
        config = self.context.configs.get(removal.vpath.key)
        if config is None:
            return succeed(no_config(removal.vpath, self.context.configs))
        if removal.vpath.level != config.num_levels:
            return succeed(wrong_level(removal.vpath, config.num_levels))
        return self.uploads.alone(removal.vpath, lambda: self._examine(removal, config))

    def _examine(self, removal: Removal, config: DirConfig) -> Deferred[RemovalVerdict]:
        return Deferred.fromCoroutine(self._judged(removal, config))

    async def _judged(self, removal: Removal, config: DirConfig) -> RemovalVerdict:
        entries = [SigEntry(removal.timestamp_ms, signature) for signature in removal.signatures]
        verified = await self.context.authority.verified(config, removal.vpath, removal.image, entries, removal_bytes)
        elsewhere = await self._elsewhere(removal, config) if verified else NOWHERE  # guard: K2.2, -> NOWHERE
        index: Index | None = None
        looked = False
        while True:
            unrecorded = bool(verified) and await self._stands_unrecorded(removal.vpath)
            protecting = await self._protecting(removal, config, unrecorded) if verified else None
            standing = self._standing(removal.vpath, elsewhere)
            now_ms = self.context.now_ms()
            verdict = judge_removal(removal, standing, tuple(verified), now_ms, self._max_age_ms, config.append_only, protecting)
            settled = self.downloads.settled(removal.vpath)
            if isinstance(verdict, Rejection):
                self._tell_refused(removal, verdict)
                return verdict
            if not verdict.fresh and not unrecorded:  # guard: K3.2 I7, without 2
                return verdict
            if verdict.outlived:
                await self._remember(removal, tuple(verified))
                return verdict
            if settled is not None:
                await settled
            elif unrecorded and not looked:  # which may take a while: all is looked at again
                index, looked = await self._index(removal), True  # guard: K5.5 I9, True -> True; break
            else:
                break
        try:
            await self._carry_out(removal, verified, index)
        except OtherContent as other:
            verdict = Rejection(RejectReason.REPLACE_DOESNT_MATCH, str(other))
            self._tell_refused(removal, verdict)
        return verdict

    async def _elsewhere(self, removal: Removal, config: DirConfig) -> Elsewhere:
        """Asks what others have at the path: a client's removal will hold for them as well. Asks nobody where each keeps its own."""
        if self.uploads.neighbours is None or removal.origin is Origin.PEER:
            return NOWHERE
        if config.append_only and config.on_append_conflict is OnConflict.FREEZE:
            return NOWHERE
        return await self.uploads.neighbours.ask(removal.vpath)

    def _standing(self, vpath: VPath, elsewhere: Elsewhere) -> PathState:
        pending, burials = self.ledger.pending(vpath), self.ledger.burials(vpath.base)
        tombstone = burials.tombstones.get(vpath.entry)
        return PathState(
            self.ledger.committed(vpath),
            pending.state if pending else None,
            stalled=False,
            buried=tombstone.version if tombstone else None,
            floor_ms=burials.floor_ms,
            elsewhere=elsewhere,
        )

    async def _stands_unrecorded(self, vpath: VPath) -> bool:
        """Tells whether something stands there of which this node has no record: it may have lost it."""
        return self.ledger.committed(vpath) is None and await self.context.disk.present(vpath)

    async def _protecting(self, removal: Removal, config: DirConfig, unrecorded: bool) -> str | None:
        """Says why what stands there has to stay: a link leads to it, or may; None when it need not."""
        if removal.forced or (self.ledger.committed(removal.vpath) is None and not unrecorded):
            return None
        try:
            link = await self.guard(config, removal.vpath).addTimeout(GUARD_S, self.context.clock)
        except DiskError as error:
            return f"nobody can tell whether a protected link leads to it: {error}"
        except defer.TimeoutError:
            return f"nobody can tell whether a protected link leads to it: no answer within {GUARD_S:.0f} s"
        return None if link is None else f"the protected link {link} leads to it; let it lead elsewhere first, or force the removal"

    def _tell_refused(self, removal: Removal, verdict: Rejection) -> None:
        self.kept_out(removal, verdict.reason)
        self._hush.info(
            self._log,
            verdict.reason.value,
            removal.vpath,
            "removal of {image} from {vpath} by the {origin} {asker} refused: {reason} {detail}",
            image=removal.image.hex(),
            vpath=str(removal.vpath),
            origin=removal.origin.value,
            asker=removal.asked_by,
            reason=verdict.reason.value,
            detail=verdict.detail,
        )

    async def _remember(self, removal: Removal, verified: tuple[SigEntry, ...]) -> None:
        """Records a removal that a later upload outlived. Signatures from before it are no claim to the path any more."""
        vpath = removal.vpath
        tombstone = Tombstone(removal.version, self.context.now_ms(), tuple(entry.signature for entry in verified), removal.forced)
        self.ledger.fold(vpath.base, await self.context.disk.remember(vpath, tombstone))
        await self.uploads.outlived(vpath, removal.version)

    async def _carry_out(self, removal: Removal, verified: Mapping[SigEntry, str], index: Index | None) -> None:
        """Give up what is on its way, then bury what is there. Nobody judges anything for the path meanwhile.

        ``index`` is that of the image, where nothing is recorded of what stands there and somebody has it.
        """
        vpath = removal.vpath
        self.downloads.stop(vpath, AbortReason.SUPERSEDED)
        signatures = tuple(entry.signature for entry in verified)
        tombstone = Tombstone(removal.version, self.context.now_ms(), signatures, removal.forced)
        if self.ledger.pending(vpath) is not None:
            self.ledger.abort(vpath, self.context.now_ms())
        # guard: I5 I9
        await self.context.disk.drop_pending(vpath)  # also a journal that could not be deleted when its upload was given up
        self.ledger.bury(vpath, await self.context.disk.remove(vpath, tombstone, index))
        self.removed += 1
        self._log.info(
            "{image} was removed from {vpath}, as signed by {keys}, asked by the {origin} {asker}{forced}",
            image=removal.image.hex(),
            vpath=str(vpath),
            keys=", ".join(sorted(set(verified.values()))),
            origin=removal.origin.value,
            asker=removal.asked_by,
            forced=", forced" if removal.forced else "",
        )
        self.told(vpath, removal.image)

    async def _index(self, removal: Removal) -> Index | None:
        """The index of the image that is to go, from here or from other nodes; None when nobody has it."""
        known = await self.context.disk.read_index(removal.image)
        if known is not None:
            return known
        try:
            return await self.downloads.repair_index(removal.vpath, removal.image).addTimeout(INDEX_S, self.context.clock)
        except (CiruelaError, defer.TimeoutError) as error:
            self._log.info("no node gives the index of {image}: {error}", image=removal.image.hex(), error=error)
            return None
