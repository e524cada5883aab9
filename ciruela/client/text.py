"""Text for people: what came from the network is made harmless, numbers are made short."""

from __future__ import annotations

from datetime import UTC, datetime
from textwrap import wrap

from ciruela.model.ids import ImageId
from ciruela.model.units import count as count
from ciruela.model.units import escaped

MAX_TEXT = 300
"""Longest text from elsewhere that is printed; a server must not fill the screen."""

SHORT_ID = 12

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """``text`` without anything that could move the cursor, hide or reorder what is printed: such characters are shown as escapes."""
    return escaped(text, limit)  # guard: A27, -> text[:limit]


def clean_lines(text: str, limit: int) -> str:
    """As :func:`clean`, line by line: for texts that this program or its own daemons wrote."""
    return "\n".join(clean(line) for line in text[:limit].splitlines())


def folded(text: str, width: int) -> str:
    """``text`` in lines of ``width`` columns, all but the first indented. Words are not broken: a path can still be copied."""
    return "\n".join(wrap(text, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False))


def short_id(image: ImageId) -> str:
    """The digits of an image id that a person compares: no two images at hand have them in common."""
    return image.hex()[:SHORT_ID]


def size(count: int) -> str:
    """A number of bytes with a unit: ``4.1 GiB``."""
    value = float(count)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
        value /= 1024
    raise AssertionError("unreachable: the last unit always returns")


def interval(seconds: float) -> str:
    """An interval as minutes and seconds, ``1:02``, or with hours, ``1:02:03``."""
    whole = max(0, int(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


def stamp(now_ms: int) -> str:
    """A wall time as ``2026-11-22T07:30:01Z``."""
    return datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
