"""Durations as people write them: ``30s``, ``1h 30min``, ``2 days`` (protocol section 7.1), and numbers of things.

Text from elsewhere, made harmless before a person sees it (threats A27).
"""

from __future__ import annotations

import difflib
import re
import unicodedata

MOST_LOGGED_BYTES = 200
"""Longest text from the wire in one field of a log line."""

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories of characters that move the cursor, hide or reorder what is printed, or end a line."""


_MORE = "…"


def _escape(char: str) -> str:
    if unicodedata.category(char) not in _UNSEEN:  # guard: A27 F20, -> True
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
    if size <= MOST_LOGGED_BYTES:  # guard: A27 F20, -> True
        return "".join(parts)
    while size > MOST_LOGGED_BYTES - len(_MORE.encode("utf-8")):
        size -= len(parts.pop().encode("utf-8"))
    return "".join(parts) + _MORE


_SECOND_NS = 1_000_000_000
_NS_PER_MS = 1_000_000

_UNITS_NS: dict[str, int] = {
    name: size
    for names, size in (
        ("ns nsec nanos", 1),
        ("us usec", 1_000),
        ("ms msec millis", _NS_PER_MS),
        ("s sec secs second seconds", _SECOND_NS),
        ("m min mins minute minutes", 60 * _SECOND_NS),
        ("h hr hrs hour hours", 3_600 * _SECOND_NS),
        ("d day days", 86_400 * _SECOND_NS),
        ("w week weeks", 7 * 86_400 * _SECOND_NS),
        ("M month months", 2_630_016 * _SECOND_NS),
        ("y year years", 31_557_600 * _SECOND_NS),
    )
    for name in names.split()
}

_SHOWN_MS = (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1))

LONGEST_MS = 2**63 - 1
"""Longest duration that is understood; beyond it lies a typing error."""

_MOST_CHARACTERS = 256
_PART = re.compile(r"([0-9]+)\s*([A-Za-z]*)\s*")
_BROKEN = re.compile(r"([0-9]{1,9}\.[0-9]{1,9})\s*([A-Za-z]*)")


def _wrong(text: str, hint: str) -> ValueError:
    return ValueError(f'"{text[:80]}" is not a duration ({hint})')


def parse_duration_ms(text: str) -> int:
    """Milliseconds of a sum of whole numbers with units, such as ``1h 30min``; a part of a millisecond counts as a whole one.

    Raises ValueError, with a proposal, for anything else; a number without a unit is an error, because nobody can tell what it meant.
    """
    rest = text.strip()
    if not rest or len(rest) > _MOST_CHARACTERS:
        raise _wrong(text, 'try "30s" or "2 days"')
    total_ns = 0
    position = 0
    while position < len(rest):
        part = _PART.match(rest, position)
        broken = _BROKEN.match(rest, position)
        if broken is not None and broken[2] in _UNITS_NS:
            whole_ms = round(float(broken[1]) * _UNITS_NS[broken[2]] / _NS_PER_MS)
            better = f"{rest[:position]}{format_duration(whole_ms)}{rest[broken.end() :]}"
            raise _wrong(text, f'numbers are whole: try "{better}"')
        if part is None or broken is not None:
            raise _wrong(text, 'write whole numbers with units, as in "1h 30min"')
        number, unit = part.groups()
        if not unit:
            raise _wrong(text, f'a unit is missing: try "{rest[: part.end(1)]}s{rest[part.end(1) :]}"')
        if unit not in _UNITS_NS:
            near = sorted(difflib.get_close_matches(unit, _UNITS_NS), key=len)
            known = (
                f'try "{rest[: part.start(2)]}{near[-1]}{rest[part.end(2) :]}"'
                if near
                else "units are ms, s, min, h, d, w, M (months) and y"
            )
            raise _wrong(text, known)
        total_ns += int(number) * _UNITS_NS[unit]
        position = part.end()
    total_ms = -(-total_ns // _NS_PER_MS)
    if total_ms > LONGEST_MS:
        raise _wrong(text, "it is longer than 290 million years")
    return total_ms


def format_duration(milliseconds: int) -> str:
    """The duration as text that :func:`parse_duration_ms` reads back: ``1h 30min``. Raises ValueError below zero."""
    if milliseconds < 0:
        raise ValueError("a duration cannot be negative")
    parts = []
    rest = milliseconds
    for unit, size in _SHOWN_MS:
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0s"


def count(number: int, word: str, plural: str | None = None) -> str:
    """``1 file``, ``11,306 files``."""
    return f"{number:,} {word if number == 1 else plural or word + 's'}"
