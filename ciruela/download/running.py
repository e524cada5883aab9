"""One image on its way: what is known of it while its chain runs.

Siblings are the committed images of the same base dir that a new one may have something in common with (protocol section 5.8).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.download.fetch_blocks import BlockFetch
from ciruela.download.fetch_index import IndexFetch
from ciruela.download.plan import BlockPlan
from ciruela.download.serving import Catalog
from ciruela.index.merge import BlockMap
from ciruela.index.tree import Index
from ciruela.interfaces import Address, Staging
from ciruela.model.bitfield import FULL
from ciruela.model.config import DirConfig, Reuse
from ciruela.model.errors import DownloadFailed
from ciruela.model.ids import ImageId
from ciruela.model.upload import AbortReason, Command
from ciruela.model.versions import State
from ciruela.model.vpath import VPath
from ciruela.tracking.ledger import Ledger


class DownloadPhase(Enum):
    """Phase of a download."""

    INDEX = "index"
    STAGING = "staging"
    BLOCKS = "blocks"
    CHECK = "check"
    COMMIT = "commit"


@dataclass
class Download:
    """One image on its way. ``healed`` is set when it is the committed one that is fetched again: fires when that is over."""

    vpath: VPath
    image: ImageId
    command: Command
    hints: set[Address]
    began_s: float
    phase: DownloadPhase = DownloadPhase.INDEX
    index: Index | None = None
    blocks: BlockMap | None = None
    plan: BlockPlan | None = None
    staging: Staging | None = None
    index_fetch: IndexFetch | None = None
    block_fetch: BlockFetch | None = None
    chain: Deferred[None] | None = None
    peers: list[Address] = field(default_factory=list)
    stop_reason: AbortReason | None = None
    waiting: list[Deferred[None]] = field(default_factory=list)
    healed: Deferred[None] | None = None

    @property
    def mask(self) -> int | None:
        """The slices that are here; None without the index."""
        if self.phase in (DownloadPhase.CHECK, DownloadPhase.COMMIT):
            return FULL
        return None if self.plan is None else self.plan.pieces.slices(self.plan.mask)

    @property
    def pieces(self) -> int | None:
        """The pieces that are here; None as long as they are not known."""
        return None if self.plan is None else self.plan.mask

    def waits_since(self, then_s: float) -> bool:
        """Tells whether it waits for others, or for a check, and got nothing from them after ``then_s``."""
        if self.block_fetch is not None:
            return self.phase in (DownloadPhase.BLOCKS, DownloadPhase.CHECK) and self.block_fetch.last_good_s <= then_s
        return self.phase is DownloadPhase.INDEX and self.began_s <= then_s

    def let_go(self) -> None:
        """End what is under way, and close what is open; what is on disk stays."""
        if self.chain is not None:
            self.chain.cancel()
        if self.staging is not None:
            self.staging.close()

    @property
    def stalled(self) -> bool:
        """Tells whether nothing good came lately."""
        return self.block_fetch is not None and self.block_fetch.stalled


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


def reason_of(failure: Failure, download: Download) -> tuple[AbortReason, str]:
    """Tells why ``download`` ended with ``failure``: the word for clients, and a detail."""
    if download.stop_reason is not None:
        return download.stop_reason, ""
    if isinstance(failure.value, DownloadFailed):
        return failure.value.reason, failure.value.detail
    match download.phase:
        case DownloadPhase.INDEX:
            reason = AbortReason.CANT_FETCH_INDEX
        case DownloadPhase.STAGING if download.staging is None:
            reason = AbortReason.CANT_CREATE_DIRECTORY
        case DownloadPhase.STAGING:
            reason = AbortReason.HARDLINKING
        case DownloadPhase.BLOCKS | DownloadPhase.CHECK | DownloadPhase.COMMIT:
            reason = AbortReason.COMMIT_ERROR
    return reason, failure.getErrorMessage()


MOST_SIBLINGS = 37
"""Sibling images that are looked through (protocol section 5.8)."""


class Siblings:
    """Finds them, with their indexes."""

    _log = Logger()

    def __init__(self, configs: Mapping[str, DirConfig], ledger: Ledger, catalog: Catalog) -> None:
        self._configs = configs
        self._ledger = ledger
        self._catalog = catalog

    def find(self, download: Download) -> Deferred[list[tuple[VPath, Index]]]:
        """The very image, if it was replaced here and kept; what stands at the path itself, then the newest, then what else is kept there.

        Each image once, without those whose index cannot be had.

        Nothing where the directory is configured to reuse nothing.
        """
        if self._configs[download.vpath.key].reuse is Reuse.NONE:
            return succeed([])
        states = sorted(self._ledger.committed_in(download.vpath.base), key=lambda one: one[1].version, reverse=True)
        chosen: dict[ImageId | VPath, tuple[VPath, ImageId]] = {}
        kept = [] if download.healed is not None else [(download.vpath, version.image) for version in self._ledger.kept(download.vpath)]
        committed = [(vpath, state.image) for vpath, state in sorted(states, key=lambda one: one[0] != download.vpath)]
        for vpath, image in (*(one for one in kept if one[1] == download.image), *committed, *kept):
            if len(chosen) < MOST_SIBLINGS:
                # what is damaged at one path may be whole in another copy of the same image
                chosen.setdefault(image if download.healed is None else vpath, (vpath, image))

        def with_indexes(entries: list[tuple[Index, BlockMap] | None]) -> list[tuple[VPath, Index]]:
            return [(vpath, entry[0]) for (vpath, _), entry in zip(chosen.values(), entries, strict=True) if entry is not None]

        loading = [self._catalog.get(image).addErrback(self._no_sibling, image) for _, image in chosen.values()]
        return gatherResults(loading).addCallback(with_indexes)

    def _no_sibling(self, failure: Failure, image: ImageId) -> None:
        self._log.warn("the index of {image} cannot be read: {reason}", image=image.hex(), reason=failure.getErrorMessage())
