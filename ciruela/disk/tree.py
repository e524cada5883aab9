"""An open tree: directories by their path inside an image, with a bounded number of descriptors."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from ciruela.disk.openfile import OpenFile
from ciruela.disk.safedir import SafeDir

DIRS = 32
"""Directories that a tree keeps open. Depth first, a real tree of packages rarely needs more at a time; our own choice."""

FILES = 64
"""Files that a tree keeps open while blocks arrive in any order; our own choice, far below the usual 1,024 descriptors."""


def split(path: str) -> tuple[str, str]:
    """The directory and the name of a path inside an image: ``/a/b`` is ``("/a", "b")``, ``/a`` is ``("/", "a")``."""
    above, _, name = path.rpartition("/")
    return above or "/", name


def name_start(directory: str) -> int:
    """Where the name begins in the paths of what stands in ``directory``."""
    return 1 if directory == "/" else len(directory) + 1


class Tree:
    """A directory and what was opened below it. Not for two threads at once. It owns ``root`` and closes it."""

    def __init__(self, root: SafeDir, dirs: int = DIRS, files: int = FILES) -> None:
        self.root = root
        self._most_dirs = dirs
        self._most_files = files
        self._dirs: OrderedDict[str, SafeDir] = OrderedDict()
        self._files: OrderedDict[str, OpenFile] = OrderedDict()

    def close(self) -> None:
        """Close everything."""
        self.forget()
        self.root.close()

    def forget(self) -> None:
        """Close everything but the root."""
        while self._files:
            self._files.popitem()[1].close()
        while self._dirs:
            self._dirs.popitem()[1].close()

    def directory(self, path: str, *, create: bool = False) -> SafeDir:
        """The directory at ``path``, open until the next call; ``create`` makes it and those above it. Raises OSError."""
        if path == "/":
            return self.root
        found = self._dirs.get(path)
        if found is not None:
            self._dirs.move_to_end(path)
            return found
        missing = [path]
        above = split(path)[0]
        while above != "/" and above not in self._dirs:
            missing.append(above)
            above = split(above)[0]
        here = self.root if above == "/" else self._dirs[above]
        for step in reversed(missing):
            here = self._below(here, split(step)[1], create=create)
            self._dirs[step] = here
        while len(self._dirs) > self._most_dirs:
            self._dirs.popitem(last=False)[1].close()
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
        found = self._files.get(path)
        if found is not None:
            self._files.move_to_end(path)
            return found
        above, name = split(path)
        opened = opener(self.directory(above, create=create), name)
        self._files[path] = opened
        if len(self._files) > self._most_files:
            self._files.popitem(last=False)[1].close()
        return opened

    def close_file(self, path: str) -> None:
        """Close the file at ``path`` if it is open."""
        found = self._files.pop(path, None)
        if found is not None:
            found.close()
