"""Writing an index: the one spelling of a tree (protocol sections 1.1 to 1.4)."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

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
    out = BytesIO()
    out.write(HEADERS[kind])
    hasher = kind.new()
    order = Preorder()
    for directory in directories:
        try:
            chunk = _chunk(directory, order)
        except ValueError as error:
            raise BadIndex(f"directory {directory.path[:80]!r}: {error}") from None
        hasher.update(chunk)
        out.write(chunk)
        if out.tell() + FOOTER_BYTES > MAX_INDEX_BYTES:
            raise BadIndex(f"the index has more than {MAX_INDEX_BYTES} bytes; split the directory into several images")
    if not directories:
        raise BadIndex("an index lists at least the directory /")
    digest = hasher.digest()
    out.write(f"{digest.hex()}\n".encode())
    return image_id(digest), out.getvalue()


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
                lines.append(f"  {escape(name)} {_content(entry)}")
            case Symlink():
                check_target(entry.target)
                lines.append(f"  {escape(name)} s {escape(entry.target)}")
    lines.append("")
    return "\n".join(lines).encode("ascii")


def _content(file: File) -> str:
    if file.size < 0 or len(file.hashes) != HASH_BYTES * -(-file.size // BLOCK_BYTES):
        raise ValueError(f"{file.path[:80]!r} has {file.size} bytes and {len(file.hashes)} bytes of hashes")
    letter = "x" if file.executable else "f"
    if not file.hashes:
        return f"{letter} 0"
    return f"{letter} {file.size} {file.hashes.hex(' ', HASH_BYTES)}"
