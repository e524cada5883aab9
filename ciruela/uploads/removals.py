"""The removals service: from a signed wish to a tombstone with signatures, and an image that is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from ciruela.clockwork import Hush
from ciruela.keys.signed import removal_bytes
from ciruela.model.dirconfig import DirConfig
from ciruela.model.ids import ImageId
from ciruela.model.order import Abort, Rejected, Removal, Removed
from ciruela.model.state import Burials, SigEntry, Tombstone
from ciruela.model.vpath import VPath
from ciruela.seams import Authority, Disk, NowMs
from ciruela.tracking.ledger import Ledger
from ciruela.uploads.removal import RemovalVerdict, judge_removal
from ciruela.uploads.service import Starter, Uploads
from ciruela.uploads.verdict import SIGNATURE_MAX_AGE_MS, Standing, no_config, wrong_level


class Removals:
    """Judges removals, one at a time with the uploads of each path, and carries them out."""

    _log = Logger()

    def __init__(
        self,
        configs: Mapping[str, DirConfig],
        ledger: Ledger,
        disk: Disk,
        authority: Authority,
        uploads: Uploads,
        downloads: Starter,
        now_ms: NowMs,
        removed: Callable[[VPath, ImageId], None],
        hush: Hush,
        max_age_ms: int = SIGNATURE_MAX_AGE_MS,
    ) -> None:
        """``removed`` is told of each removal that is recorded here, and of one that a client asks for again."""
        self._configs = configs
        self._ledger = ledger
        self._disk = disk
        self._authority = authority
        self._uploads = uploads
        self._downloads = downloads
        self._now_ms = now_ms
        self._removed = removed
        self._hush = hush
        self._max_age_ms = max_age_ms
        self.removed = 0

    def remove(self, removal: Removal) -> Deferred[RemovalVerdict]:
        """Fires with the verdict, once the image is not visible any more. Fails with DiskError when it cannot be removed."""
        config = self._configs.get(removal.vpath.key)
        if config is None:
            return succeed(no_config(removal.vpath, self._configs))
        if removal.vpath.level != config.num_levels:
            return succeed(wrong_level(removal.vpath, config.num_levels))
        return self._uploads.alone(removal.vpath, lambda: self._examine(removal, config))

    def _examine(self, removal: Removal, config: DirConfig) -> Deferred[RemovalVerdict]:
        entries = [SigEntry(removal.timestamp_ms, signature) for signature in removal.signatures]
        verified = self._authority.verified(config, removal.vpath, removal.image, entries, removal_bytes)
        return verified.addCallback(lambda found: self._decide(removal, tuple(found), config.append_only))

    def _decide(self, removal: Removal, verified: tuple[SigEntry, ...], append_only: bool) -> RemovalVerdict | Deferred[RemovalVerdict]:
        vpath = removal.vpath
        pending, burials = self._ledger.pending(vpath), self._ledger.burials(vpath.base)
        tombstone = burials.tombstones.get(vpath.entry)
        standing = Standing(
            self._ledger.committed(vpath),
            pending.state if pending else None,
            stalled=False,
            buried=tombstone.version if tombstone else None,
            floor_ms=burials.floor_ms,
        )
        verdict = judge_removal(removal, standing, verified, self._now_ms(), self._max_age_ms, append_only)
        match verdict:
            case Rejected():
                self._hush.info(
                    self._log,
                    verdict.reason.value,
                    vpath,
                    "removal of {image} from {vpath} by a {origin} refused: {reason} {detail}",
                    image=removal.image.hex(),
                    vpath=str(vpath),
                    origin=removal.origin.value,
                    reason=verdict.reason.value,
                    detail=verdict.detail,
                )
                return verdict
            case Removed(fresh=False):
                return verdict
            case Removed(outlived=True):
                return self._remember(removal, verified).addCallback(lambda _: verdict)
        settled = self._downloads.settled(vpath)
        if settled is not None:
            return settled.addCallback(lambda _: self._decide(removal, verified, append_only))
        return self._carry_out(removal, verified).addCallback(lambda _: verdict)

    def _remember(self, removal: Removal, verified: tuple[SigEntry, ...]) -> Deferred[None]:
        """What is there was signed later. Signatures from before the removal are no claim to the path any more."""
        vpath = removal.vpath

        async def work() -> None:
            tombstone = Tombstone(removal.version, self._now_ms(), tuple(entry.signature for entry in verified))
            self._ledger.fold(vpath.base, await self._disk.remember(vpath, tombstone))
            await self._uploads.outlived(vpath, removal.version)

        return Deferred.fromCoroutine(work())

    def _carry_out(self, removal: Removal, verified: tuple[SigEntry, ...]) -> Deferred[None]:
        """Give up what is on its way, then bury what is there. Nobody judges anything for the path meanwhile."""
        vpath = removal.vpath
        self._downloads.stop(vpath, Abort.SUPERSEDED)
        tombstone = Tombstone(removal.version, self._now_ms(), tuple(entry.signature for entry in verified))
        waiting: Deferred[None] = succeed(None)
        if self._ledger.pending(vpath) is not None:
            self._ledger.abort(vpath, self._now_ms())
            waiting = self._disk.drop_pending(vpath)

        def gone(burials: Burials) -> None:
            self._ledger.bury(vpath, burials)
            self.removed += 1
            self._log.info("{image} was removed from {vpath}, as somebody signed", image=removal.image.hex(), vpath=str(vpath))
            self._removed(vpath, removal.image)

        return waiting.addCallback(lambda _: self._disk.remove(vpath, tombstone)).addCallback(gone)
