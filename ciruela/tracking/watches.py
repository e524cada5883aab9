"""Watches: which client waits for which path, and which can give which image (protocol sections 4.6 and 6.1)."""

from __future__ import annotations

from collections.abc import Collection

from ciruela.model.ids import ImageId
from ciruela.model.vpath import VPath
from ciruela.seams import Link

MAX_PER_LINK = 64
"""Images and paths that one connection may name (threats 6.3)."""


class Watches:
    """What the open client connections have said. Forgotten when a connection ends."""

    def __init__(self) -> None:
        self._images: dict[ImageId, dict[Link, None]] = {}
        self._paths: dict[VPath, dict[Link, None]] = {}
        self._of_link: dict[Link, tuple[dict[ImageId, None], dict[VPath, None]]] = {}

    def publish(self, link: Link, image: ImageId) -> bool:
        """``link`` can give ``image``. False when the connection has named too many."""
        images, _ = self._of_link.setdefault(link, ({}, {}))
        if image not in images and len(images) >= MAX_PER_LINK:
            return False
        images[image] = None
        self._images.setdefault(image, {})[link] = None
        return True

    def watch(self, link: Link, vpath: VPath) -> bool:
        """``link`` waits for news of ``vpath``. False when the connection watches too many."""
        _, paths = self._of_link.setdefault(link, ({}, {}))
        if vpath not in paths and len(paths) >= MAX_PER_LINK:
            return False
        paths[vpath] = None
        self._paths.setdefault(vpath, {})[link] = None
        return True

    def lost(self, link: Link) -> None:
        """The connection is gone, and with it all that it said."""
        images, paths = self._of_link.pop(link, ({}, {}))
        for image in images:
            self._images[image].pop(link, None)
            if not self._images[image]:
                del self._images[image]
        for vpath in paths:
            self._paths[vpath].pop(link, None)
            if not self._paths[vpath]:
                del self._paths[vpath]

    def sources(self, image: ImageId) -> list[Link]:
        """The connections that can give ``image``."""
        return list(self._images.get(image, ()))

    def interested(self, vpath: VPath, image: ImageId) -> list[Link]:
        """The connections that want to hear of ``image`` at ``vpath``: those that watch the path or published the image."""
        return list({**self._paths.get(vpath, {}), **self._images.get(image, {})})

    def watched(self, vpath: VPath) -> bool:
        """Whether a client here waits for ``vpath``."""
        return vpath in self._paths

    def paths(self) -> Collection[VPath]:
        """All paths that clients here wait for."""
        return self._paths.keys()
