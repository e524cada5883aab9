"""One pass over a directory for its index: the walk, the files, the faults. ``scan`` hands its parts to threads.

Directories are opened relative to their parents and nothing is followed (threats 6.2), so what is read lies below the root.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator
from dataclasses import dataclass

from ciruela.disk.safedir import OpenFile, SafeDir
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.emit import emit
from ciruela.index.names import MAX_DEPTH, MAX_PATH_BYTES, check_target
from ciruela.index.tree import Directory, File, Index, Symlink
from ciruela.model.errors import BadIndex, DiskError

LARGE_BYTES = 1024 * 1024
"""Files above this are hashed in pieces."""

PIECE_BYTES = 16 * 1024 * 1024
"""What one job in a thread hashes of large files: some 25 ms with BLAKE2b. A multiple of the block size."""

SLICE_S = 0.2
"""How long one job walks and hashes small files before it reports."""

BACKLOG_FILES = 16
"""The walk waits while so many large files are open."""

_READ_BYTES = 8 * BLOCK_BYTES
_MOVED = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ESTALE, errno.ENXIO, errno.EINVAL})


class Stopped(Exception):
    """The scan was cancelled, or failed in the other thread."""


class Large:
    """A file that is hashed in pieces; it stays open from the walk to its last piece."""

    def __init__(self, file: OpenFile, path: str, before: os.stat_result) -> None:
        self.file = file
        self.path = path
        self.before = before
        self.offsets = range(0, before.st_size, PIECE_BYTES)
        self.hashed: dict[int, bytes] = {}

    @property
    def whole(self) -> bool:
        """Whether all pieces are hashed."""
        return len(self.hashed) == len(self.offsets)

    def result(self) -> File:
        """The file with all its hashes."""
        hashes = b"".join([self.hashed[offset] for offset in self.offsets])
        return File(self.path, _executable(self.before), self.before.st_size, hashes)


Piece = tuple[Large, int]
"""A large file and the offset at which the piece begins."""


@dataclass(slots=True)
class _Frame:
    """A directory on the way from the root to where the walk is; ``below`` are sub-directories still to come, the next one last."""

    directory: SafeDir
    prefix: str
    below: list[str]


class Walk:
    """The walk: iterative, by directory fds, nothing followed. Runs in one thread at a time."""

    def __init__(self, root: str, kind: HashKind, now_s: Callable[[], float]) -> None:
        self._root = root
        self._kind = kind
        self._now_s = now_s
        self._at = ""
        self._work = self._steps()
        self.stopped = False
        self.ended = False
        self.listing: list[tuple[str, list[File | Symlink | Large]]] = []
        self.warnings: list[str] = []
        self.files = 0
        self.symlinks = 0
        self.bytes = 0

    def close(self) -> None:
        """Let go of the open directories."""
        self._work.close()

    def where(self, path: str) -> str:
        """``path`` inside the directory as the user would name it; safe to print."""
        full = self._root.rstrip("/") + path
        return full if full.isprintable() else repr(full)

    def slice(self) -> list[Large]:
        """Go on for a while; gives the large files that came up. Raises DiskError."""
        found: list[Large] = []
        until = self._now_s() + SLICE_S
        try:
            for large in self._work:
                if large is not None:
                    found.append(large)
                    if len(found) == BACKLOG_FILES:
                        break
                if self.stopped:
                    raise Stopped
                if self._now_s() >= until:
                    break
            else:
                self.ended = True
        except BaseException as error:
            for large in found:
                large.file.close()
            if isinstance(error, OSError):
                raise self.fault(self._at, error) from error
            raise
        return found

    def fault(self, path: str, error: OSError) -> DiskError:
        """What to tell the user about a system call that failed."""
        if not path:
            return DiskError(f"cannot open the directory {self._root}: {os.strerror(error.errno or 0)}; name a directory that you may read")
        if error.errno in _MOVED:
            return self.changed(path)
        advice = "make it readable for the user who syncs, or take it out of the directory"
        if error.errno not in (errno.EACCES, errno.EPERM):
            advice = "see the system log, then sync again"
        return DiskError(f"cannot read {self.where(path)}: {os.strerror(error.errno or 0)}; {advice}")

    def changed(self, path: str) -> DiskError:
        """What to tell the user about a file that does not hold still."""
        return DiskError(f"{self.where(path)} changed while it was read; sync again when nothing writes to the directory")

    def _steps(self) -> Generator[Large | None, None, None]:
        stack: list[_Frame] = []
        try:
            stack.append(_Frame(SafeDir.at(self._root), "/", []))
            stack[-1].below = yield from self._list(stack[-1], len(stack))
            while stack:
                frame = stack[-1]
                if frame.below:
                    name = frame.below.pop()
                    self._at = frame.prefix + name
                    stack.append(_Frame(frame.directory.open_dir(name), f"{frame.prefix}{name}/", []))
                    stack[-1].below = yield from self._list(stack[-1], len(stack))
                else:
                    stack.pop().directory.close()
        finally:
            for frame in stack:
                frame.directory.close()

    def _list(self, frame: _Frame, depth: int) -> Generator[Large | None, None, list[str]]:
        """Take in what is in one directory, ``depth`` components below the root for what is in it; gives the sub-directories."""
        directory, prefix = frame.directory, frame.prefix
        self._at = prefix[:-1] or "/"
        entries: list[File | Symlink | Large] = []
        self.listing.append((self._at, entries))
        named = sorted(((self._name(prefix, entry), entry) for entry in directory.entries()), key=lambda pair: pair[0])
        room = MAX_PATH_BYTES - len(prefix.encode())
        below: list[str] = []
        for name, entry in named:
            self._at = path = prefix + name
            if depth > MAX_DEPTH or len(name.encode()) > room:
                limits = f"at most {MAX_DEPTH} levels and {MAX_PATH_BYTES} bytes fit into an index"
                raise DiskError(f"{self.where(path)[:200]}... is too deep: {limits}; move it up or out")
            if entry.is_symlink():
                entries.append(self._link(directory, name, path))
                self.symlinks += 1
            elif entry.is_dir(follow_symlinks=False):
                below.append(name)
            elif entry.is_file(follow_symlinks=False):
                file = self._file(directory, name, path)
                entries.append(file)
                if isinstance(file, Large):
                    yield file
                    continue
                self.files += 1
            else:
                self.warnings.append(f"left out {self.where(path)}: {_what(entry.stat(follow_symlinks=False).st_mode)}")
            yield None
        below.reverse()
        return below

    def _name(self, prefix: str, entry: os.DirEntry[str]) -> str:
        raw = os.fsencode(entry.name)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            where = self.where(prefix + raw.decode("utf-8", "backslashreplace"))
            raise DiskError(f"the name {where} is not UTF-8 and does not fit into an index; rename it") from None

    def _link(self, directory: SafeDir, name: str, path: str) -> Symlink:
        target = directory.readlink(name)
        try:
            target.encode("utf-8")
            check_target(target)
        except ValueError:
            raise DiskError(f"the symbolic link {self.where(path)} has a target that is not UTF-8 or too long; make it anew") from None
        return Symlink(path, target)

    def _file(self, directory: SafeDir, name: str, path: str) -> File | Large:
        file = directory.open_read(name)
        keep = False
        try:
            before = file.stat()
            size = before.st_size
            if size > LARGE_BYTES:
                keep = True
                return Large(file, path, before)
            data = file.read_at(size, 0) if size else b""
            if len(data) != size or not _same(before, file.stat()):
                raise self.changed(path)
        finally:
            if not keep:
                file.close()
        self.bytes += size
        return File(path, _executable(before), size, _block_hashes(self._kind, data))

    def hash_pieces(self, pieces: list[Piece]) -> list[bytes]:
        """The block hashes of each piece. Raises DiskError."""
        return [self._hash_piece(*piece) for piece in pieces]

    def _hash_piece(self, large: Large, offset: int) -> bytes:
        end = min(offset + PIECE_BYTES, large.before.st_size)
        hashes = []
        try:
            while offset < end:
                if self.stopped:
                    raise Stopped
                wanted = min(_READ_BYTES, end - offset)
                data = large.file.read_at(wanted, offset)
                if len(data) != wanted:
                    raise self.changed(large.path)
                hashes.append(_block_hashes(self._kind, data))
                offset += wanted
            after = large.file.stat()
        except OSError as error:
            raise self.fault(large.path, error) from error
        if not _same(large.before, after):
            raise self.changed(large.path)
        return b"".join(hashes)

    def build(self) -> tuple[Index, bytes]:
        """The finished index. Raises DiskError for one that is too large."""
        directories = tuple(
            Directory(path, tuple([entry.result() if isinstance(entry, Large) else entry for entry in entries]))
            for path, entries in self.listing
        )
        try:
            image, data = emit(self._kind, directories)
        except BadIndex as error:
            raise DiskError(f"{self._root} does not fit into one index: {error}") from error
        return Index(image, self._kind, directories), data


def piece_size(piece: Piece) -> int:
    """Bytes of a piece."""
    large, offset = piece
    return min(PIECE_BYTES, large.before.st_size - offset)


def _executable(status: os.stat_result) -> bool:
    return bool(status.st_mode & stat.S_IXUSR)


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_size, before.st_mtime_ns, before.st_ino) == (after.st_size, after.st_mtime_ns, after.st_ino)


def _block_hashes(kind: HashKind, data: bytes) -> bytes:
    if len(data) <= BLOCK_BYTES:
        return kind.hash(data) if data else b""
    view = memoryview(data)
    return b"".join([kind.hash(view[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)])


def _what(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return "a socket"
    if stat.S_ISFIFO(mode):
        return "a fifo"
    return "a device"
