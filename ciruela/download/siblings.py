"""Which committed images of the same base dir a new one may have something in common with (protocol section 5.8)."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.download.running import Download
from ciruela.download.serving import Catalog
from ciruela.index.merge import BlockMap
from ciruela.index.tree import Index
from ciruela.model.dirconfig import DirConfig, Reuse
from ciruela.model.ids import ImageId
from ciruela.model.vpath import VPath
from ciruela.tracking.ledger import Ledger

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
