"""One pass over a directory for its index: the walk, the files, the faults. ``scan`` hands its parts to threads.

Directories are opened relative to their parents and nothing is followed (threats 6.2), so what is read lies below the root.

Counts what an image cannot keep and a directory has: setuid bits, hard links between files, extended attributes.

None of it fits into an index (protocol section 1), so it is dropped; whoever relies on it should learn that before a server runs without.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import reduce
from operator import itemgetter, or_

from ciruela.disk.bulk import list_names, read_small, stats
from ciruela.disk.excludes import Excludes
from ciruela.disk.hashcache import (
    CachedDirectory,
    DirKey,
    HashCache,
    LocalDevices,
    OneCache,
    by_name,
    join_names,
    key_of,
    keys_of,
    rested_key,
    split_names,
)
from ciruela.disk.openfile import TICK_NS, OpenFile
from ciruela.disk.safedir import SafeDir
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.emit import Writer, file_line, link_line
from ciruela.index.names import MAX_COMPONENT_BYTES, MAX_DEPTH, MAX_PATH_BYTES, check_target, escape
from ciruela.model.errors import BadIndex, DiskError
from ciruela.model.ids import ImageId
from ciruela.model.units import count
from ciruela.model.values import dataclass

MOST_LINKED = 200_000
"""Files with several names that are remembered; beyond, further names of new ones are not counted."""

ATTRIBUTES_OF = 1000
"""Extended attributes are looked for in so many files, and in all that are executable: there are the capabilities, and to ask costs."""

_BITS = stat.S_ISUID | stat.S_ISGID
_LABELS = frozenset({"security.selinux", "security.SMACK64", "security.ima", "security.evm"})
"""Attributes that the system itself gives to each file of a host."""

_mode, _links = itemgetter(stat.ST_MODE), itemgetter(stat.ST_NLINK)


class Unkept:
    """Properties that no image keeps (setuid bits, hard links, attributes), as met so far in one tree. Used by one thread at a time."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}
        self._linked: set[tuple[int, int]] = set()
        self._asked = 0

    def file(self, status: os.stat_result, path: str) -> None:
        """A regular file, at ``path`` inside the image."""
        if status.st_mode & _BITS:
            self._met("setuid or setgid bits", path)
        if status.st_nlink > 1:
            key = status.st_dev, status.st_ino
            if key in self._linked:
                self._met("hard links", path)
            elif len(self._linked) < MOST_LINKED:
                self._linked.add(key)

    def opened(self, fd: int, status: os.stat_result, path: str) -> None:
        """As :meth:`file`, of one that is open. Raises OSError."""
        self.file(status, path)
        if not status.st_mode & stat.S_IXUSR:
            self._asked += 1
            if self._asked > ATTRIBUTES_OF:
                return
        if not _LABELS.issuperset(os.listxattr(fd)):
            self._met("extended attributes", path)

    def files(self, prefix: str, names: Iterable[str], found: Sequence[os.stat_result]) -> None:
        """All files and links of one directory; quick where there is nothing to count."""
        if found and (max(map(_links, found)) > 1 or reduce(or_, map(_mode, found)) & _BITS):
            for name, status in zip(names, found, strict=True):
                if stat.S_ISREG(status.st_mode):
                    self.file(status, prefix + name)

    def _met(self, what: str, path: str) -> None:
        number, first = self._found.get(what, (0, path))
        self._found[what] = number + 1, first

    def told(self) -> tuple[str, ...]:
        """A part of a sentence for each kind: ``hard links (14 files, as /a/b)``."""
        return tuple(f"{what} ({count(number, 'file')}, as {first})" for what, (number, first) in sorted(self._found.items()))


LARGE_BYTES = 1024 * 1024
"""Files above this are hashed in pieces."""

PIECE_BYTES = 16 * 1024 * 1024
"""Bytes of large files that one job in a thread hashes: some 25 ms with BLAKE2b. A multiple of the block size."""

SLICE_S = 0.2
"""Time for which one job walks and hashes small files before it reports."""

BACKLOG_FILES = 16
"""The walk waits while so many large files are open."""

MOST_EXCLUDED = 1000
"""Paths that patterns left out and that are remembered, for people to read."""

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
        """Tells whether all pieces are hashed."""
        return len(self.hashed) == len(self.offsets)

    def line(self) -> str:
        """The file's line in the index, with all its hashes."""
        hashes = b"".join([self.hashed[offset] for offset in self.offsets])
        return file_line(escape(self.path.rpartition("/")[2]), _executable(self.before), self.before.st_size, hashes)


Piece = tuple[Large, int]
"""A large file and the offset at which the piece begins."""


@dataclass(slots=True)
class _Frame:
    """A directory on the way from the root to where the walk is; ``below`` are sub-directories still to come, the next one last."""

    directory: SafeDir
    prefix: str
    below: list[str]


class _ReadDirectory:
    """One directory that is read: its lines in order of the names, and what there is to keep about its files and links."""

    __slots__ = ("below", "bytes", "files", "keys", "lines", "names")

    def __init__(self, names: list[str], below: list[str]) -> None:
        self.names = names
        self.below = below
        self.lines: list[str | Large] = []
        self.keys: dict[str, bytes] = {}
        self.files = 0
        self.bytes = 0

    def known(self) -> CachedDirectory:
        """The result, when all large files are hashed. Special files have no name in it, so their directory never counts as unchanged."""
        lines = [line.line() if isinstance(line, Large) else line for line in self.lines]
        lines.append("")
        below = set(self.below)
        names = [name for name in self.names if name in self.keys or name in below]
        keys = b"".join([self.keys[name] for name in names if name not in below])
        return CachedDirectory(join_names(names), join_names(self.below), keys, "\n".join(lines).encode("ascii"), self.files, self.bytes)


@dataclass(frozen=True, slots=True)
class _WalkedDirectory:
    """A directory of the index: where it is, what identifies it (None: nothing of it may be kept), and what is in it."""

    path: str
    key: DirKey | None
    content: CachedDirectory | _ReadDirectory


class Walk:
    """The walk: iterative, by directory fds, nothing followed. Runs in one thread at a time."""

    def __init__(
        self,
        root: str,
        kind: HashKind,
        now_s: Callable[[], float],
        caches: HashCache | None = None,
        excludes: Excludes | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """``seen`` gets the keys of files of several blocks that stood still when the walk began: while one has its key, it is the same."""
        self._root = root
        self._kind = kind
        self._hasher = kind.hasher
        self._now_s = now_s
        self._caches = caches
        self._excludes = excludes or None
        self._cache: OneCache | None = None
        self._at = ""
        self._work = self._steps()
        self._places: list[_WalkedDirectory] = []
        self._rested_ns = 0
        self._local = LocalDevices()
        self._still_ns = 0  # 0: what is in the directory at hand cannot be told by its times
        self._stands_still_ns = wall_ns() - TICK_NS
        self.stopped = False
        self.ended = False
        self.warnings: list[str] = []
        self.unkept = Unkept()
        self.excluded = 0
        self.excluded_paths: list[str] = []
        self.seen: dict[str, bytes] = {}
        self.dirs = 0
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
        """Builds the error that tells the user about a system call that failed."""
        if not path:
            return DiskError(f"cannot open the directory {self._root}: {os.strerror(error.errno or 0)}; name a directory that you may read")
        if error.errno in _MOVED:
            return self.changed(path)
        advice = "make it readable for the user who syncs, or take it out of the directory"
        if error.errno not in (errno.EACCES, errno.EPERM):
            advice = "see the system log, then sync again"
        return DiskError(f"cannot read {self.where(path)}: {os.strerror(error.errno or 0)}; {advice}")

    def changed(self, path: str) -> DiskError:
        """Builds the error that tells the user about a file that changes while it is read."""
        return DiskError(f"{self.where(path)} changed while it was read; sync again when nothing writes to the directory")

    def _steps(self) -> Generator[Large | None, None, None]:
        stack: list[_Frame] = []
        try:
            stack.append(_Frame(SafeDir.at(self._root), "/", []))
            if self._caches is not None:
                self._cache = self._caches.begin(stack[0].directory, self._kind)
                self._rested_ns = self._cache.rested_ns
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
        self._at = frame.prefix[:-1] or "/"
        self.dirs += 1
        key, known = self._known(frame.directory)
        if known is not None and self._unchanged(frame, depth, known):
            self._places.append(_WalkedDirectory(self._at, key, known))
            self.files += known.files
            self.symlinks += known.count - known.files
            self.bytes += known.bytes
            yield None
            return sorted(split_names(known.below), reverse=True)
        entries, leave_out = self._kept(frame, frame.directory.entries())
        self._excluded(leave_out)
        names = self._names(entries, frame.prefix, depth)
        below = [name for name, entry in zip(names, entries, strict=True) if entry.is_dir(follow_symlinks=False)]
        listed = _ReadDirectory(names, below)
        self._places.append(_WalkedDirectory(self._at, key, listed))
        old = by_name(known) if known is not None else {}
        for name, entry in sorted(zip(names, entries, strict=True), key=itemgetter(0)):
            if not entry.is_dir(follow_symlinks=False):
                self._at = frame.prefix + name
                yield self._take(frame.directory, name, entry, listed, old.get(name))
        return sorted(below, reverse=True)

    def _known(self, directory: SafeDir) -> tuple[DirKey | None, CachedDirectory | None]:
        """Gives the key of the directory, None unless the cache may keep it, and its cached content."""
        status = directory.status()
        local = self._local.has(directory, status.st_dev)
        self._still_ns = self._stands_still_ns if local else 0  # guard: F54, local -> True
        if self._cache is None or not local:  # guard: I7, without 2
            return None, None
        key = status.st_dev, status.st_ino
        return key, self._cache.known.get(key)

    def _unchanged(self, frame: _Frame, depth: int, known: CachedDirectory) -> bool:
        """Tells whether all that is in the directory is as it was. False also when it moved so deep that a name may no longer fit."""
        if depth > MAX_DEPTH or len(frame.prefix.encode()) + MAX_COMPONENT_BYTES > MAX_PATH_BYTES:  # guard: A1
            return False
        directory = frame.directory
        leave_out: list[str] = []
        if self._excludes is None:
            names = list_names(directory)
        else:
            entries, leave_out = self._kept(frame, directory.entries())
            names = [entry.name for entry in entries]  # guard: F52, -> list_names(directory)
        if os.fsencode("\0".join(names)) != known.names:
            return False
        if known.below:
            below = set(os.fsdecode(known.below).split("\0"))
            if not all(stat.S_ISDIR(found.st_mode) for found in stats(directory, below)):  # guard: I7
                return False
            names = [name for name in names if name not in below]
        found = list(stats(directory, names))
        if keys_of(found) != known.keys:
            return False
        for name, status in zip(names, found, strict=True):
            if status.st_size > BLOCK_BYTES:
                self._saw(frame.prefix + name, status)
        self.unkept.files(frame.prefix, names, found)  # guard: W4, self.unkept.files(frame.prefix, names, found) -> del found
        self._excluded(leave_out)
        return True

    def _kept(self, frame: _Frame, entries: list[os.DirEntry[str]]) -> tuple[list[os.DirEntry[str]], list[str]]:
        """Those of ``entries`` that no pattern leaves out, and the paths of the others."""
        if self._excludes is None:
            return entries, []
        kept, leave_out = [], []
        for entry in entries:
            path, directory = frame.prefix[1:] + entry.name, entry.is_dir(follow_symlinks=False)
            if self._excludes.leave_out(path, directory=directory):
                leave_out.append(f"{path}/" if directory else path)
            else:
                kept.append(entry)
        return kept, leave_out

    def _excluded(self, paths: list[str]) -> None:
        self.excluded += len(paths)
        self.excluded_paths += sorted(paths)[: MOST_EXCLUDED - len(self.excluded_paths)]

    def _names(self, entries: list[os.DirEntry[str]], prefix: str, depth: int) -> list[str]:
        """The names in one directory, in the order of the system. Raises DiskError for one that does not fit into an index."""
        raw = os.fsencode("\0".join([entry.name for entry in entries]))
        if not raw:
            return []
        pieces = raw.split(b"\0")
        try:
            names = raw.decode("utf-8").split("\0")
        except UnicodeDecodeError as error:
            bad = pieces[raw.count(b"\0", 0, error.start)]
            where = self.where(prefix + bad.decode("utf-8", "backslashreplace"))
            raise DiskError(f"the name {where} is not UTF-8 and does not fit into an index; rename it") from None
        room = min(MAX_COMPONENT_BYTES, MAX_PATH_BYTES - len(prefix.encode())) if depth <= MAX_DEPTH else 0
        if max(map(len, pieces)) > room:  # guard: A1
            name = max(names, key=lambda name: len(name.encode()))
            limits = (
                f"at most {MAX_DEPTH} levels, {MAX_COMPONENT_BYTES} bytes in a name and {MAX_PATH_BYTES} bytes in all fit into an index"
            )
            raise DiskError(f"{self.where(prefix + name)[:200]}... is too deep or too long: {limits}; move it up or out, or rename it")
        if len(set(names)) < len(names):  # guard: A2
            raise self.changed(self._at)
        return names

    def _take(
        self, directory: SafeDir, name: str, entry: os.DirEntry[str], listed: _ReadDirectory, old: tuple[bytes, str] | None
    ) -> Large | None:
        """Take in one file or link; ``old`` is its key and line at an earlier time. Gives a file that is to be hashed in pieces."""
        is_link = entry.is_symlink()
        if not is_link and not entry.is_file(follow_symlinks=False):
            self.warnings.append(f"left out {self.where(self._at)}: {_what(entry.stat(follow_symlinks=False).st_mode)}")
            return None
        if old is not None:
            (found,) = stats(directory, (entry.name,))
            if key_of(found) == old[0]:
                listed.keys[name], line = old
                if not is_link:
                    self.unkept.file(found, self._at)
                    self._saw(self._at, found)
                self._took(listed, line, None if is_link else found.st_size)
                return None
        if is_link:
            (found,) = stats(directory, (entry.name,))
            listed.keys[name] = rested_key(found, self._rested_ns)
            self._took(listed, self._link(directory, name), None)
            return None
        data, found, after = read_small(directory, entry, LARGE_BYTES, self._opened)
        listed.keys[name] = rested_key(found, self._rested_ns)
        self._saw(self._at, found)
        if isinstance(data, OpenFile):
            large = Large(data, self._at, found)
            listed.lines.append(large)
            listed.files += 1
            listed.bytes += found.st_size
            return large
        size = len(data)
        if size != found.st_size or not _same(found, after):
            raise self.changed(self._at)
        hashes = self._hasher(data).digest() if 0 < size <= BLOCK_BYTES else self._block_hashes(data)
        self._took(listed, file_line(escape(name), _executable(found), size, hashes), size)
        return None

    def _saw(self, path: str, found: os.stat_result) -> None:
        """Note a file that can be told to be the same later on; one of a single block is hashed as soon as it is looked at."""
        if found.st_size > BLOCK_BYTES and found.st_ctime_ns < self._still_ns and stat.S_ISREG(found.st_mode):  # guard: F54, without 2
            self.seen[path] = key_of(found)

    def _opened(self, fd: int, status: os.stat_result) -> None:
        try:
            self.unkept.opened(fd, status, self._at)
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM, errno.EACCES):
                raise

    def _took(self, listed: _ReadDirectory, line: str, size: int | None) -> None:
        """Add a line to a directory; ``size`` of a file, None for a link."""
        listed.lines.append(line)
        if size is None:
            self.symlinks += 1
        else:
            listed.files += 1
            listed.bytes += size
            self.files += 1
            self.bytes += size

    def _link(self, directory: SafeDir, name: str) -> str:
        target = directory.readlink(name)
        try:
            target.encode("utf-8")
            check_target(target)
        except ValueError:
            raise DiskError(f"the symbolic link {self.where(self._at)} has a target that is not UTF-8 or too long; make it anew") from None
        return link_line(escape(name), target)

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
                hashes.append(self._block_hashes(data))
                offset += wanted
            after = large.file.stat()
        except OSError as error:
            raise self.fault(large.path, error) from error
        if not _same(large.before, after):
            raise self.changed(large.path)
        return b"".join(hashes)

    def build(self) -> tuple[ImageId, bytes]:
        """The finished index: its id and its bytes. The cache gets what is now known. Raises DiskError for an index that is too large."""
        writer = Writer(self._kind)
        seen: dict[DirKey, CachedDirectory] = {}
        try:
            for place in self._places:
                known = place.content if isinstance(place.content, CachedDirectory) else place.content.known()
                writer.add_lines(place.path, known.count, known.lines)
                if place.key is not None:
                    seen[place.key] = known
            image, data = writer.finish()
        except BadIndex as error:
            raise DiskError(f"{self._root} does not fit into one index: {error}") from error
        if self._cache is not None:
            self._cache.save(seen)
        return image, data

    def _block_hashes(self, data: bytes) -> bytes:
        view, hasher = memoryview(data), self._hasher
        return b"".join([hasher(view[at : at + BLOCK_BYTES]).digest() for at in range(0, len(data), BLOCK_BYTES)])


def piece_size(piece: Piece) -> int:
    """Bytes of a piece."""
    large, offset = piece
    return min(PIECE_BYTES, large.before.st_size - offset)


def _executable(status: os.stat_result) -> bool:
    return bool(status.st_mode & stat.S_IXUSR)


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    return before.st_size == after.st_size and before.st_mtime_ns == after.st_mtime_ns


def _what(mode: int) -> str:
    if stat.S_ISSOCK(mode):
        return "a socket"
    if stat.S_ISFIFO(mode):
        return "a fifo"
    return "a device"
