"""What the reports have in common: the bound, medians with their spread, and tables of reStructuredText."""

from __future__ import annotations

import math
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

MIB = 1024 * 1024


def bound_s(size_bytes: float, nodes: int, rate: float) -> float:
    """No program can be faster, with links of ``rate`` bytes a second each way, unless it compresses.

    The client sends everything once, each node gets everything, and all together send as many copies as there are nodes.
    """
    return max(size_bytes / rate, nodes * size_bytes / (rate + nodes * rate))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median; of several values, also the smallest and the largest."""
    middle = f"{statistics.median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f} .. {max(values):,.{digits}f})"


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of ``values`` that at least so many percent of them do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def list_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A list-table; ValueError for a row that is not as long as the head."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in (head, *rows):
        if len(row) != len(head):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(head)} columns: {row}")
        lines.extend(f"   {' ' if at else '*'} - {cell}".rstrip() for at, cell in enumerate(row))
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Where it was measured."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return f"{os.cpu_count()} processors, Python {sys.version.split()[0]}, load at the end {load}"


def keep(text: str, output: Path | None) -> None:
    """Print a report and write it to ``output``, too."""
    print(text, flush=True)
    if output is not None:
        output.write_text(text)


def tell(text: str) -> None:
    """Show how far it is."""
    print(text, file=sys.stderr, flush=True)
