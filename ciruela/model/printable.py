"""Text from elsewhere, made harmless before a person sees it (threats A27)."""

from __future__ import annotations

import unicodedata

MOST_LOGGED_BYTES = 200
"""Longest text from the wire in one field of a log line."""

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories of characters that move the cursor, hide or reorder what is printed, or end a line."""


_MORE = "…"


def _escape(char: str) -> str:
    if unicodedata.category(char) not in _UNSEEN:
        return char
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escaped(text: str, most: int) -> str:
    """The first ``most`` characters of ``text``, on one line, with escapes for what is not simply seen; ``…`` stands for the rest."""
    return "".join(map(_escape, text[:most])) + (_MORE if len(text) > most else "")


def logged(text: object) -> str:
    """The text of ``text`` for a field of a log line: escaped, at most :data:`MOST_LOGGED_BYTES` bytes of UTF-8."""
    parts = [_escape(char) for char in str(text)[: MOST_LOGGED_BYTES + 1]]
    size = sum(len(part.encode("utf-8")) for part in parts)
    if size <= MOST_LOGGED_BYTES:
        return "".join(parts)
    while size > MOST_LOGGED_BYTES - len(_MORE.encode("utf-8")):
        size -= len(parts.pop().encode("utf-8"))
    return "".join(parts) + _MORE
