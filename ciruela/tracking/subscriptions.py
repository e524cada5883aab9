"""Watches: which client waits for which path, and which can give which image (protocol sections 4.6 and 6.1).

Wishes: which client connections asked for an upload that was accepted, and which of them began it. For taking one back.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import field

from ciruela.interfaces import Connection
from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath

MOST_PER_LINK = 64
"""Uploads of one connection that can be taken back, the last ones (threats 6.3)."""

Wish = tuple[VPath, ImageId]


class Wishes:
    """The accepted orders of the open client connections. Forgotten when a connection ends."""

    def __init__(self) -> None:
        self._began: dict[Wish, Connection] = {}
        self._askers: dict[Wish, set[Connection]] = {}
        self._of_link: dict[Connection, dict[Wish, None]] = {}

    def accepted(self, link: Connection, vpath: VPath, image: ImageId, *, began: bool) -> None:
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

    def sole(self, link: Connection, vpath: VPath, image: ImageId) -> bool:
        """Tells whether ``link`` began this upload, and no other connection asked for it since."""
        wish = vpath, image
        return self._began.get(wish) is link and self._askers.get(wish) == {link}

    def withdrawn(self, link: Connection, vpath: VPath, image: ImageId) -> None:
        """``link`` does not want this upload any more."""
        if (vpath, image) in self._of_link.get(link, {}):
            self._drop(link, (vpath, image))

    def lost(self, link: Connection) -> None:
        """The connection is gone, its uploads go on."""
        for wish in list(self._of_link.get(link, ())):
            self._drop(link, wish)
        self._of_link.pop(link, None)

    def _drop(self, link: Connection, wish: Wish) -> None:
        self._of_link[link].pop(wish, None)
        if self._began.get(wish) is link:
            del self._began[wish]
        askers = self._askers[wish]
        askers.discard(link)
        if not askers:
            del self._askers[wish]


MAX_PER_LINK = 64
"""Images and paths that one connection may name (threats 6.3)."""


@dataclass(slots=True)
class _OfConnection:
    """State of one connection: the images it published, those of which an upload was accepted on it, the paths it waits for."""

    published: dict[ImageId, None] = field(default_factory=dict)
    accepted: dict[ImageId, None] = field(default_factory=dict)
    paths: dict[VPath, None] = field(default_factory=dict)


class Subscriptions:
    """Index of what the open client connections have said. Forgotten when a connection ends."""

    def __init__(self) -> None:
        self._images: dict[ImageId, dict[Connection, None]] = {}
        self._paths: dict[VPath, dict[Connection, None]] = {}
        self._of_link: dict[Connection, _OfConnection] = {}

    def publish(self, link: Connection, image: ImageId) -> bool:
        """``link`` says that it can give ``image``, which counts once an upload of it is accepted on that connection.

        Clients publish first. Anybody may know the id, and would else be asked in vain. False when the connection has named too many.
        """
        said = self._of_link.setdefault(link, _OfConnection())
        if image not in said.published and len(said.published) >= MAX_PER_LINK:  # guard: A26 I6
            return False
        said.published[image] = None
        self._join(link, image, said)
        return True

    def accept(self, link: Connection, image: ImageId) -> bool:
        """An upload of ``image`` was accepted on ``link``. Whether that makes it a source."""
        said = self._of_link.setdefault(link, _OfConnection())
        if image not in said.accepted and len(said.accepted) >= MAX_PER_LINK:
            del said.accepted[next(iter(said.accepted))]
        said.accepted[image] = None
        return self._join(link, image, said)

    def _join(self, link: Connection, image: ImageId, said: _OfConnection) -> bool:
        if image not in said.published or image not in said.accepted:  # guard: S3, without 2
            return False
        self._images.setdefault(image, {})[link] = None
        return True

    def watch(self, link: Connection, vpath: VPath) -> bool:
        """``link`` waits for news of ``vpath``. False when the connection watches too many."""
        paths = self._of_link.setdefault(link, _OfConnection()).paths
        if vpath not in paths and len(paths) >= MAX_PER_LINK:  # guard: A26 I6
            return False
        paths[vpath] = None
        self._paths.setdefault(vpath, {})[link] = None
        return True

    def lost(self, link: Connection) -> None:
        """The connection is gone, and with it all that it said."""
        said = self._of_link.pop(link, _OfConnection())
        for image in said.published:
            links = self._images.get(image, {})
            links.pop(link, None)
            if not links:  # guard: I6
                self._images.pop(image, None)
        for vpath in said.paths:
            self._paths[vpath].pop(link, None)
            if not self._paths[vpath]:
                del self._paths[vpath]

    def sources(self, image: ImageId) -> list[Connection]:
        """The connections that can give ``image``."""
        return list(self._images.get(image, ()))

    def interested(self, vpath: VPath, image: ImageId) -> list[Connection]:
        """The connections that want to hear of ``image`` at ``vpath``: those that watch the path or give the image."""
        return list({**self._paths.get(vpath, {}), **self._images.get(image, {})})

    def watched(self, vpath: VPath) -> bool:
        """Tells whether a client here waits for ``vpath``."""
        return vpath in self._paths

    def paths(self) -> Collection[VPath]:
        """All paths that clients here wait for."""
        return self._paths.keys()
