"""Ends of the reading commands: an exit code of their own with a sentence, and results as lines or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import IO

from ciruela.client.text import clean
from ciruela.model.errors import CiruelaError

MAX_LINE = 20_000
"""Longest line that is printed: the longest path of an image, most of it escaped."""


class CommandError(CiruelaError):
    """The command cannot do what was asked; ``code`` is its exit code, the message says why and what to do."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def write_line(out: IO[str], line: str) -> None:
    """One result for people."""
    out.write(f"{clean(line, MAX_LINE)}\n")


def write_json(out: IO[str], value: Mapping[str, object]) -> None:
    """One result for programs: ASCII alone, so that nothing in it can act on a terminal."""
    out.write(f"{json.dumps(value, ensure_ascii=True)}\n")


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the cells of ``rows`` one below the other; what came from elsewhere is made harmless first."""
    cells = [[clean(cell, MAX_LINE) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))] if cells else []
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
