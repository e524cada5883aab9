"""Writing an index: the one spelling of a tree (protocol sections 1.1 to 1.4)."""

from __future__ import annotations

from collections.abc import Sequence

from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.names import check_component, check_target, escape, size_in_utf8
from ciruela.index.order import MAX_INDEX_BYTES, Preorder
from ciruela.index.parse import FOOTER_BYTES, HEADERS
from ciruela.index.tree import Directory, File, Symlink
from ciruela.model.errors import BadIndex
from ciruela.model.ids import HASH_BYTES, ImageId, image_id


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
            self._order.listed(count)
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
        hasher = self._kind.new()
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
        check_component(name)
        if not entry.path.startswith(order.prefix):
            raise ValueError(f"{entry.path[:80]!r} is not in it")
        if name <= last:
            raise ValueError(f"the entry {name[:80]!r} is listed twice or out of order")
        if size_in_utf8(name) > order.room:
            raise ValueError(f"the path of {name[:80]!r} is too long or too deep")
        last = name
        match entry:
            case File():
                _check_content(entry)
                lines.append(file_line(escape(name), entry.executable, entry.size, entry.hashes))
            case Symlink():
                check_target(entry.target)
                lines.append(link_line(escape(name), entry.target))
    lines.append("")
    return "\n".join(lines).encode("ascii")


def _check_content(file: File) -> None:
    if file.size < 0 or len(file.hashes) != HASH_BYTES * -(-file.size // BLOCK_BYTES):
        raise ValueError(f"{file.path[:80]!r} has {file.size} bytes and {len(file.hashes)} bytes of hashes")
