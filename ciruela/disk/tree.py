"""An open tree: directories by their path inside an image, with a bounded number of descriptors.

A tree keeps what it opened in the hope that it is needed again: :data:`LEAST_DIRS` directories and :data:`LEAST_FILES` files in any case,
more as far as the budget of the process goes (``openfile.Handles``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ciruela.disk.openfile import KEPT, Handles, Opened, OpenFile
from ciruela.disk.safedir import SafeDir

DIRS = 32
"""Directories that a tree keeps open. Depth first, a real tree of packages rarely needs more at a time; our own choice."""

FILES = 64
"""Files that a tree keeps open while blocks arrive in any order; our own choice, far below the usual 1,024 descriptors."""

LEAST_DIRS = 2
"""The directory that is in use, and the one above it."""

LEAST_FILES = 1

H = TypeVar("H", bound=Opened)


class _OpenDirectories(dict[str, H]):
    """LRU cache of open directories, the one used last at the end; beyond ``least`` each is taken from ``budget``."""

    def __init__(self, least: int, most: int, budget: Handles) -> None:
        super().__init__()
        self._least = least
        self._most = most
        self._budget = budget
        self._taken = 0

    def used(self, path: str) -> H | None:
        """The one at ``path``, which is in use now."""
        found = self.pop(path, None)
        if found is not None:
            self[path] = found
        return found

    def add(self, path: str, opened: H) -> None:
        """Keep one more, and close those that were used longest ago when it is too many."""
        self[path] = opened
        while len(self) > self._least + self._taken:
            if len(self) <= self._most and self._budget.take():
                self._taken += 1
            else:
                self.pop(next(iter(self))).close()
        self._settle()

    def drop(self, path: str) -> None:
        """Close the one at ``path`` if it is open."""
        found = self.pop(path, None)
        if found is not None:
            found.close()
            self._settle()

    def close(self) -> None:
        """Close all."""
        while self:
            self.popitem()[1].close()
        self._settle()

    def _settle(self) -> None:
        """Give back what is not needed of the budget."""
        over = self._taken - max(0, len(self) - self._least)
        if over > 0:
            self._taken -= over
            self._budget.give_back(over)


def split(path: str) -> tuple[str, str]:
    """The directory and the name of a path inside an image: ``/a/b`` is ``("/a", "b")``, ``/a`` is ``("/", "a")``."""
    above, _, name = path.rpartition("/")
    return above or "/", name


def name_start(directory: str) -> int:
    """Gives the offset of the name in the paths of entries of ``directory``."""
    return 1 if directory == "/" else len(directory) + 1


class Tree:
    """A directory and what was opened below it. Not for two threads at once. It owns ``root`` and closes it."""

    def __init__(self, root: SafeDir, dirs: int = DIRS, files: int = FILES, budget: Handles = KEPT) -> None:
        self.root = root
        self._dirs: _OpenDirectories[SafeDir] = _OpenDirectories(LEAST_DIRS, dirs, budget)
        self._files: _OpenDirectories[OpenFile] = _OpenDirectories(LEAST_FILES, files, budget)

    def close(self) -> None:
        """Close everything."""
        self.forget()
        self.root.close()

    def forget(self) -> None:
        """Close everything but the root."""
        self._files.close()
        self._dirs.close()

    def directory(self, path: str, *, create: bool = False) -> SafeDir:
        """The directory at ``path``, open until the next call; ``create`` makes it and those above it. Raises OSError."""
        if path == "/":
            return self.root
        found = self._dirs.used(path)
        if found is not None:
            return found
        missing = [path]
        above = split(path)[0]
        while above != "/" and above not in self._dirs:
            missing.append(above)
            above = split(above)[0]
        here = self.root if above == "/" else self._dirs.used(above)
        assert here is not None
        for step in reversed(missing):
            here = self._below(here, split(step)[1], create=create)
            self._dirs.add(step, here)
        return here

    @staticmethod
    def _below(here: SafeDir, name: str, *, create: bool) -> SafeDir:
        try:
            return here.open_dir(name)
        except FileNotFoundError:
            if not create:
                raise
        try:
            return here.make_dir(name)
        except FileExistsError:
            return here.open_dir(name)

    def file(self, path: str, opener: Callable[[SafeDir, str], OpenFile], *, create: bool = False) -> OpenFile:
        """The open file at ``path``, opened by ``opener(directory, name)`` if need be; open until the next call.

        ``create`` makes the directories above it.
        """
        found = self._files.used(path)
        if found is not None:
            return found
        above, name = split(path)
        opened = opener(self.directory(above, create=create), name)
        self._files.add(path, opened)
        return opened

    def close_file(self, path: str) -> None:
        """Close the file at ``path`` if it is open."""
        self._files.drop(path)
