"""A parsed index as values: directories, files with their block hashes, symlinks.

A check tells whether a directory of this node may take an image: size, number of files, symbolic links (threats A3, A5, A8 and 6.12). Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.model.bitfield import Pieces
from ciruela.model.config import DirConfig, Symlinks
from ciruela.model.errors import DownloadFailed
from ciruela.model.ids import HASH_BYTES, BlockHash, ImageId
from ciruela.model.upload import AbortReason


@dataclass(frozen=True, slots=True)
class File:
    """A regular file. ``path`` is absolute inside the image (``/sub/name``), ``hashes`` the block hashes one after the other."""

    path: str
    executable: bool
    size: int
    hashes: bytes

    @property
    def block_count(self) -> int:
        """Number of blocks; 0 for an empty file."""
        return len(self.hashes) // HASH_BYTES

    def block_hash(self, number: int) -> BlockHash:
        """The hash of block ``number`` of this file."""
        return BlockHash(self.hashes[number * HASH_BYTES : (number + 1) * HASH_BYTES])

    def bytes_of(self, first: int, count: int) -> int:
        """Bytes in ``count`` blocks of this file, from block ``first`` on."""
        return min(count * BLOCK_BYTES, self.size - first * BLOCK_BYTES)

    def block_size(self, number: int) -> int:
        """Bytes in block ``number`` of this file."""
        return min(BLOCK_BYTES, self.size - number * BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Symlink:
    """A symbolic link. ``target`` is exactly what readlink gave; it is never followed."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory with its files and symlinks in order of their names' bytes. ``path`` is ``/`` or ``/a/b``."""

    path: str
    entries: tuple[File | Symlink, ...]


@dataclass(frozen=True)
class Index:
    """A whole image, verified against ``image`` when it was parsed. Directories come in pre-order, the root first."""

    image: ImageId
    kind: HashKind
    directories: tuple[Directory, ...]

    def entries(self) -> Iterator[File | Symlink]:
        """All files and symlinks in index order."""
        for directory in self.directories:
            yield from directory.entries

    @cached_property
    def files(self) -> tuple[File, ...]:
        """All files in index order."""
        return tuple(entry for entry in self.entries() if isinstance(entry, File))

    @cached_property
    def symlinks(self) -> tuple[Symlink, ...]:
        """All symlinks in index order."""
        return tuple(entry for entry in self.entries() if isinstance(entry, Symlink))

    @cached_property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @cached_property
    def block_count(self) -> int:
        """Number of blocks of all files. Blocks are numbered in index order, from 0."""
        return sum(file.block_count for file in self.files)

    @cached_property
    def pieces(self) -> Pieces:
        """Division of the image into the pieces that nodes exchange."""
        return Pieces.of_image(self.block_count, self.total_bytes)


def check(index: Index, config: DirConfig) -> None:
    """Raise DownloadFailed, with the numbers or the link, unless ``config`` allows the image. Equal blocks count each time."""
    most_bytes, most_files = config.max_image_bytes, config.max_image_files
    if most_bytes is not None and index.total_bytes > most_bytes:
        raise DownloadFailed(AbortReason.IMAGE_TOO_LARGE, f"it has {index.total_bytes} bytes, max-image-bytes is {most_bytes} here")
    count = len(index.files) + len(index.symlinks) + len(index.directories) - 1
    if most_files is not None and count > most_files:
        raise DownloadFailed(
            AbortReason.IMAGE_TOO_LARGE, f"it has {count} files, links and directories, max-image-files is {most_files} here"
        )
    if config.symlinks is Symlinks.NONE and index.symlinks:
        raise _refused(index.symlinks[0], "symlinks is none here")
    if config.symlinks is Symlinks.INSIDE:
        directories = {directory.path for directory in index.directories}
        for link in index.symlinks:
            if not stays_inside(link, directories):
                raise _refused(link, "it may lead out of the image, symlinks is inside here")


def _refused(link: Symlink, why: str) -> DownloadFailed:
    return DownloadFailed(AbortReason.BAD_SYMLINK, f"{link.path[:200]!r} -> {link.target[:200]!r}: {why}")


def stays_inside(link: Symlink, directories: set[str]) -> bool:
    """Tells whether following ``link``, and whatever links of the same kind it meets, ends inside the image.

    ``..`` leads up from a directory of the image only: behind a name that may be a link nobody knows where "up" is.
    """
    if link.target.startswith("/"):
        return False
    here = link.path.rpartition("/")[0]
    for part in link.target.split("/"):
        if part in ("", "."):
            continue
        if part != "..":
            here = f"{here}/{part}"
        elif here == "" or here not in directories:
            return False
        else:
            here = here.rpartition("/")[0]
    return True
