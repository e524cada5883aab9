"""Writing an index: the one spelling of a tree (protocol sections 1.1 to 1.4).

One file put into an index: what ``ciruela edit`` and ``ciruela put-file`` do to an image. Pure.

Everything else of the image stays as it is: other files, links, and directories, empty ones too.
"""

from __future__ import annotations

from collections.abc import Sequence

from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.names import MAX_INDEX_BYTES, Preorder, check_component, check_target, components, escape, size_in_utf8
from ciruela.index.parse import FOOTER_BYTES, HEADERS
from ciruela.index.tree import Directory, File, Index, Symlink
from ciruela.model.errors import BadIndex
from ciruela.model.ids import HASH_BYTES, ImageId, image_id


class NoPlace(ValueError):
    """A file cannot be at that path; says what is there instead."""


def find(index: Index, path: str) -> File | None:
    """The file at ``path``, None when nothing is there.

    Raises NoPlace where a file cannot be: something else stands there, or something that is no directory on the way to it.
    """
    parts = components(path)
    if not parts:
        raise NoPlace("/ is a directory; name a file")
    entries = {entry.path: entry for entry in index.entries()}
    above = ""
    for part in parts[:-1]:
        above = f"{above}/{part}"
        match entries.get(above):
            case File():
                raise NoPlace(f"{above} is a file, so nothing can be below it")
            case Symlink(target=target):
                raise NoPlace(f"{above} is a symbolic link to {target}; name the file by its real path")
    match entries.get(path):
        case File() as file:
            return file
        case Symlink(target=target):
            raise NoPlace(f"{path} is a symbolic link to {target}; name the file itself")
    if any(directory.path == path for directory in index.directories):  # guard: A1
        raise NoPlace(f"{path} is a directory; name a file")
    return None


def put(index: Index, file: File) -> tuple[Directory, ...]:
    """The directories of ``index`` with ``file`` in place of what is at its path, or as a new file, in directories that are made for it.

    They come in the order of an index. Raises NoPlace as :func:`find`.
    """
    find(index, file.path)
    entries: dict[str, tuple[File | Symlink, ...]] = {directory.path: directory.entries for directory in index.directories}
    above = "/"
    for part in components(file.path)[:-1]:
        above = f"{above.rstrip('/')}/{part}"
        entries.setdefault(above, ())
    beside = [entry for entry in entries[above] if entry.path != file.path]
    entries[above] = tuple(sorted([*beside, file], key=lambda entry: entry.path))
    return tuple(Directory(path, entries[path]) for path in sorted(entries, key=components))


def emit(kind: HashKind, directories: Sequence[Directory]) -> tuple[ImageId, bytes]:
    """The image id and the bytes of the index that lists ``directories``, which come as in ``Index.directories``.

    Nothing is sorted or mended: raises BadIndex, with the path, for whatever ``parse`` would refuse, so what is written can be read.
    """
    writer = Writer(kind)
    for directory in directories:
        writer.add(directory)
    return writer.finish()


class Writer:
    """An index on its way, directory by directory, in the order of ``Index.directories``. Raises BadIndex, with the path."""

    def __init__(self, kind: HashKind) -> None:
        self._kind = kind
        self._order = Preorder()
        self._parts = [HEADERS[kind]]
        self._size = len(HEADERS[kind]) + FOOTER_BYTES

    def add(self, directory: Directory) -> None:
        """Write a directory from its values."""
        try:
            chunk = _chunk(directory, self._order)
        except ValueError as error:
            raise BadIndex(f"directory {directory.path[:80]!r}: {error}") from None
        self._put(chunk)

    def add_lines(self, path: str, count: int, lines: bytes) -> None:
        """Write the directory ``path`` from ``count`` lines of :func:`file_line` and :func:`link_line`, in order of the names.

        For a walk of many entries, which knows that the lines are in order, and the names fit. Only the order of the directories and
        the sizes are checked here.
        """
        try:
            self._order.enter(path, ())
            self._order.listed(count)  # guard: A5
        except ValueError as error:
            raise BadIndex(f"directory {path[:80]!r}: {error}") from None
        self._put(f"{escape(path)}\n".encode("ascii"))
        self._put(lines)

    def _put(self, chunk: bytes) -> None:
        self._size += len(chunk)
        if self._size > MAX_INDEX_BYTES:
            raise BadIndex(f"the index has more than {MAX_INDEX_BYTES} bytes; split the directory into several images")
        self._parts.append(chunk)

    def finish(self) -> tuple[ImageId, bytes]:
        """The image id and the bytes of the index."""
        if len(self._parts) == 1:
            raise BadIndex("an index lists at least the directory /")
        hasher = self._kind.hasher()
        for chunk in self._parts[1:]:
            hasher.update(chunk)
        digest = hasher.digest()
        self._parts.append(f"{digest.hex()}\n".encode())
        return image_id(digest), b"".join(self._parts)


def file_line(spelled: str, executable: bool, size: int, hashes: bytes) -> str:
    """The line of a file without its newline. Its name is ``spelled`` as ``escape`` does; ``hashes`` of all blocks, one after the other."""
    letter = "x" if executable else "f"
    if not hashes:
        return f"  {spelled} {letter} 0"
    return f"  {spelled} {letter} {size} {hashes.hex(' ', HASH_BYTES)}"


def link_line(spelled: str, target: str) -> str:
    """The line of a symbolic link without its newline. Its name is ``spelled``, but not its target."""
    return f"  {spelled} s {escape(target)}"


def _chunk(directory: Directory, order: Preorder) -> bytes:
    order.enter(directory.path, directory.entries)
    if len(directory.entries) > order.most:
        raise ValueError("too many files, links and directories in one image; split it")
    lines = [escape(directory.path)]
    last = ""
    for entry in directory.entries:
        name = entry.path[len(order.prefix) :]
        check_component(name)  # guard: A1
        if not entry.path.startswith(order.prefix):
            raise ValueError(f"{entry.path[:80]!r} is not in it")
        if name <= last:  # guard: A2
            raise ValueError(f"the entry {name[:80]!r} is listed twice or out of order")
        if size_in_utf8(name) > order.room:  # guard: A1
            raise ValueError(f"the path of {name[:80]!r} is too long or too deep")
        last = name
        match entry:
            case File():
                _check_content(entry)
                lines.append(file_line(escape(name), entry.executable, entry.size, entry.hashes))
            case Symlink():
                check_target(entry.target)  # guard: A3
                lines.append(link_line(escape(name), entry.target))
    lines.append("")
    return "\n".join(lines).encode("ascii")


def _check_content(file: File) -> None:
    if file.size < 0 or len(file.hashes) != HASH_BYTES * -(-file.size // BLOCK_BYTES):  # guard: A5
        raise ValueError(f"{file.path[:80]!r} has {file.size} bytes and {len(file.hashes)} bytes of hashes")
