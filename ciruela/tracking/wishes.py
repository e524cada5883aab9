"""Wishes: which client connections asked for an upload that was accepted, and which of them began it. For taking one back."""

from __future__ import annotations

from ciruela.model.ids import ImageId
from ciruela.model.vpath import VPath
from ciruela.seams import Link

MOST_PER_LINK = 64
"""Uploads of one connection that can be taken back, the last ones (threats 6.3)."""

Wish = tuple[VPath, ImageId]


class Wishes:
    """The accepted orders of the open client connections. Forgotten when a connection ends."""

    def __init__(self) -> None:
        self._began: dict[Wish, Link] = {}
        self._askers: dict[Wish, set[Link]] = {}
        self._of_link: dict[Link, dict[Wish, None]] = {}

    def accepted(self, link: Link, vpath: VPath, image: ImageId, *, began: bool) -> None:
        """An order of ``link`` was accepted; ``began``: the upload was not on its way before."""
        wish = vpath, image
        wishes = self._of_link.setdefault(link, {})
        wishes.pop(wish, None)
        wishes[wish] = None
        self._askers.setdefault(wish, set()).add(link)
        if began:
            self._began[wish] = link
        while len(wishes) > MOST_PER_LINK:
            self._drop(link, next(iter(wishes)))

    def sole(self, link: Link, vpath: VPath, image: ImageId) -> bool:
        """Whether ``link`` began this upload, and no other connection asked for it since."""
        wish = vpath, image
        return self._began.get(wish) is link and self._askers.get(wish) == {link}

    def withdrawn(self, link: Link, vpath: VPath, image: ImageId) -> None:
        """``link`` does not want this upload any more."""
        if (vpath, image) in self._of_link.get(link, {}):
            self._drop(link, (vpath, image))

    def lost(self, link: Link) -> None:
        """The connection is gone, its uploads go on."""
        for wish in list(self._of_link.get(link, ())):
            self._drop(link, wish)
        self._of_link.pop(link, None)

    def _drop(self, link: Link, wish: Wish) -> None:
        self._of_link[link].pop(wish, None)
        if self._began.get(wish) is link:
            del self._began[wish]
        askers = self._askers[wish]
        askers.discard(link)
        if not askers:
            del self._askers[wish]
