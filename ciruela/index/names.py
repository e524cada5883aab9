"""Names, paths and targets as an index spells them: escapes and limits (protocol section 1.3, threats A1 and A3).

Text that is read must be spelled exactly as :func:`escape` spells it, so there is one index for one tree. All faults are ValueErrors
that quote at most 80 characters; ``parse`` and ``scan`` add where they happened.

The one order of directories in an index, and how much an index may list; the same for reading and for writing (protocol section 1.2).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from operator import attrgetter

from ciruela.index.tree import File, Symlink

MAX_COMPONENT_BYTES = 255
"""Longest name: NAME_MAX of Linux file systems."""

MAX_PATH_BYTES = 4096
"""Longest path inside an image, with its leading slash: PATH_MAX of Linux."""

MAX_DEPTH = 64
"""Most components of a path inside an image (threats A1)."""

MAX_TARGET_BYTES = 4095
"""Longest target of a symbolic link: PATH_MAX without the terminating NUL."""

_PLAIN = re.compile(r"[!-\[\]-~]*")
_CANONICAL = re.compile(r"(?:[!-\[\]-~]|\\x(?:[01][0-9a-f]|20|5c|7f|[89a-f][0-9a-f]))*+")
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")
_SPELLED = tuple(chr(byte) if 0x20 < byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}" for byte in range(256))


def escape(text: str) -> str:
    """``text`` as it stands in an index. Raises ValueError for text that has no UTF-8 form (lone surrogates)."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join([_SPELLED[byte] for byte in text.encode("utf-8")])


def unescape(spelled: str) -> str:
    """The text that ``spelled`` stands for.

    Raises ValueError unless ``escape`` of the result is ``spelled`` again: upper-case digits, escapes of plain characters, broken
    escapes, raw blanks and raw bytes beyond ASCII are refused, and so is what is not UTF-8.
    """
    if "\\" not in spelled and _PLAIN.fullmatch(spelled):
        return spelled
    if not _CANONICAL.fullmatch(spelled):
        raise ValueError(f"{spelled[:80]!r} is not escaped in the one allowed way")
    raw = _ESCAPE.sub(lambda match: bytes((int(match[1], 16),)), spelled.encode("ascii"))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{spelled[:80]!r} is not UTF-8") from None


def size_in_utf8(text: str) -> int:
    """Bytes of ``text``. Raises ValueError for text that has no UTF-8 form."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def check_component(name: str) -> None:
    """Raise ValueError unless ``name`` can be one entry of a directory. Control characters other than NUL are allowed."""
    if name in ("", ".", ".."):
        raise ValueError(f"{name!r} cannot be a name")
    if "/" in name or "\0" in name:
        raise ValueError(f"{name[:80]!r} contains a slash or NUL")
    size = size_in_utf8(name)
    if size > MAX_COMPONENT_BYTES:
        raise ValueError(f"{name[:80]!r}: the name has {size} bytes, at most {MAX_COMPONENT_BYTES} are allowed")


def check_target(target: str) -> None:
    """Raise ValueError unless ``target`` can be the target of a symbolic link. Where it points does not matter: it is never followed."""
    if "\0" in target:
        raise ValueError(f"the link target {target[:80]!r} contains NUL")
    size = size_in_utf8(target)
    if not 1 <= size <= MAX_TARGET_BYTES:
        raise ValueError(f"the link target has {size} bytes, 1 to {MAX_TARGET_BYTES} are allowed")


def components(path: str) -> list[str]:
    """The components of an absolute path inside an image; none for ``/``.

    Raises ValueError unless the path is absolute, every component is a name, and the limits of size and depth are kept.
    """
    if path == "/":
        return []
    if not path.startswith("/"):
        raise ValueError(f"the path {path[:80]!r} does not begin with a slash")
    if size_in_utf8(path) > MAX_PATH_BYTES:
        raise ValueError(f"the path {path[:80]!r}... has more than {MAX_PATH_BYTES} bytes")
    parts = path[1:].split("/")
    if len(parts) > MAX_DEPTH:
        raise ValueError(f"the path {path[:80]!r}... has more than {MAX_DEPTH} components")
    for part in parts:
        check_component(part)
    return parts


MAX_INDEX_BYTES = 256 * 1024 * 1024
"""Largest index: two and a half million files of one block (threats A6)."""

MAX_LISTING_BYTES = 2 * 1024 * 1024 * 1024
"""Most memory that the values of one index may ask for beside their hashes, see :data:`ENTRY_BYTES`.

A short index can name very many empty files below one very long path; its size alone does not bound what it expands to.
"""

ENTRY_BYTES = 200
"""Bytes counted for one file, link or directory beside its path: the objects that hold it."""

Entries = Sequence[File | Symlink]

_path = attrgetter("path")


class Preorder:
    """Follows the directories of an index and refuses any order but the canonical one.

    That is: the root first; below each directory its sub-directories by the bytes of their names, each followed by its own. So every
    directory is unique and comes after its parent. A sub-directory may not have the name of a file or link beside it.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._above: list[Entries] = []
        self._left = MAX_LISTING_BYTES
        self.prefix = ""
        """Prefix of the names in the current directory: ``/`` or ``/a/b/``."""
        self.room = 0
        """Bytes that a name may have in the current directory; 0 when nothing may be in it."""
        self.most = 0
        """Most entries that the current directory may have."""

    def enter(self, path: str, entries: Entries) -> None:
        """Go on to the directory ``path``, whose ``entries`` may be filled later, in order. Raises ValueError out of order."""
        parts = components(path)
        depth = len(parts)
        if self._above:
            self._leave()
            if not parts:
                raise ValueError("the directory / is listed twice")
            if parts[:-1] != self._parts[: depth - 1]:
                raise ValueError(f"the directory {path[:80]!r} does not follow its parent")
            if depth <= len(self._parts) and parts[-1] <= self._parts[depth - 1]:
                raise ValueError(f"the directory {path[:80]!r} is listed twice or out of order")
            del self._above[depth:]
            beside = self._above[-1]
            at = bisect_left(beside, path, key=_path)
            if at < len(beside) and beside[at].path == path:
                raise ValueError(f"{path[:80]!r} is both a directory and an entry of its parent")
        elif parts:
            raise ValueError("the first directory is not /")
        self._parts = parts
        self._above.append(entries)
        self.prefix = path if depth == 0 else path + "/"
        size = size_in_utf8(self.prefix)
        self.room = MAX_PATH_BYTES - size if depth < MAX_DEPTH else 0
        self._spend(ENTRY_BYTES + size)
        self.most = self._left // (ENTRY_BYTES + size)

    def listed(self, count: int) -> None:
        """The current directory has ``count`` entries that were not given to :meth:`enter`. Raises ValueError when they are too many."""
        self._spend(count * (ENTRY_BYTES + len(self.prefix)))

    def _leave(self) -> None:
        self._spend(len(self._above[-1]) * (ENTRY_BYTES + len(self.prefix)))

    def _spend(self, amount: int) -> None:
        self._left -= amount
        if self._left < 0:
            raise ValueError("too many files, links and directories in one image; split it")
