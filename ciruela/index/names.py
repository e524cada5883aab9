"""Names, paths and targets as an index spells them: escapes and limits (protocol section 1.3, threats A1 and A3).

Text that is read must be spelled exactly as :func:`escape` spells it, so there is one index for one tree. All faults are ValueErrors
that quote at most 80 characters; ``parse`` and ``scan`` add where they happened.
"""

from __future__ import annotations

import re

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
