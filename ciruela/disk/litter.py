"""Debris that could not be deleted: remembered, and tried again from time to time."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from twisted.logger import Logger

from ciruela.disk.lane import ENTRY_COST, Steps
from ciruela.disk.layout import BaseUnavailable, Place
from ciruela.disk.removal import DOOMED, remove_tree
from ciruela.disk.safedir import SafeDir

_log = Logger()


class Litter:
    """Names in directories of images, by where these are. Used from several threads."""

    def __init__(self, in_use: Callable[[Place, str], bool]) -> None:
        """``in_use`` says whether a download works at a name now."""
        self._in_use = in_use
        self._lock = Lock()
        self._left: dict[tuple[str, tuple[str, ...]], tuple[Place, set[str]]] = {}

    def __len__(self) -> int:
        with self._lock:
            return sum(len(names) for _, names in self._left.values())

    def left(self, place: Place, name: str) -> None:
        """The tree ``name`` beside the image of ``place`` could not be deleted."""
        with self._lock:
            self._left.setdefault((place.base, place.parents), (place, set()))[1].add(name)

    def again(self) -> Steps[None]:
        """Try again to delete all of it; what is left of a tree may have another reserved name by now."""
        with self._lock:
            left, self._left = self._left, {}
        for place, names in left.values():
            try:
                parent = place.open_parent()
            except FileNotFoundError:
                continue
            except (BaseUnavailable, OSError):
                for name in names:
                    self.left(place, name)
                continue
            with parent:
                try:
                    yield from self._remove(parent, place, names)
                except OSError as error:
                    _log.debug("debris beside {place} cannot be looked at: {error}", place=str(place), error=error)
                    for name in names:
                        self.left(place, name)

    def _remove(self, parent: SafeDir, place: Place, names: set[str]) -> Steps[None]:
        for name in parent.names():
            if name not in names and not name.startswith(DOOMED):
                continue
            yield ENTRY_COST
            if self._in_use(place, name):
                continue
            try:
                yield from remove_tree(parent, name)
            except OSError as error:
                _log.debug("debris {name} can still not be removed: {error}", name=parent.within(name), error=error)
                self.left(place, name)
            else:
                _log.info("debris {name} was removed", name=parent.within(name))
