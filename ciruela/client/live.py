"""The live block on a terminal, drawn with rich. A module of its own, because loading rich takes a while that a small upload notices."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ciruela.client.listener import UploadRow
from ciruela.client.progress import Clusters, Throughput, bar_part, live_parts, safe_line
from ciruela.client.text import clean, folded
from ciruela.client.tracker import UploadOutcome
from ciruela.model.values import dataclass

_STYLES = {
    UploadOutcome.DONE: "green",
    UploadOutcome.EARLY: "yellow",
    UploadOutcome.PARTIAL: "yellow",
    UploadOutcome.REJECTED: "red",
    UploadOutcome.FAILED: "red",
    UploadOutcome.RUNNING: "cyan",
}


GAP = "  "
"""Between what is told beside the bar."""

BARS = (24, 10, 0)
"""Widths of the bar that are tried, the best first."""

LEAST_BEGINNING = 16
"""Columns in which the beginning of a list of names tells something."""

ENOUGH = 32
"""Columns for cluster and path together, beyond which the rest of what there is to tell is of more use."""


def shortened(text: str, width: int) -> str:
    """``text`` in ``width`` columns. What tells names of hosts apart is their beginning, and of paths their end: the rest is cut off."""
    if len(text) <= width or width <= 0:
        return text[: max(0, width)]
    return f"…{text[len(text) - width + 1 :]}" if text.startswith("/") else f"{text[: width - 1]}…"


def fitting(parts: Sequence[str], width: int) -> str:
    """As many of ``parts`` as fit into ``width`` columns, from the first on; of the next one its beginning, where that tells something."""
    told = parts[0]
    for part in parts[1:]:
        if len(told) + len(GAP) + len(part) > width:
            if " " in part and width - len(told) - len(GAP) >= LEAST_BEGINNING:
                told += GAP + part
            break
        told += GAP + part
    return told if len(told) <= width else f"{told[: width - 1]}…"


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns for the cluster, the path, the bar and what is told beside it. A ``path`` or ``bar`` of 0 has no room."""

    cluster: int
    path: int
    bar: int
    told: int

    @property
    def columns(self) -> int:
        """Number of columns."""
        return 2 + bool(self.path) + bool(self.bar)

    @classmethod
    def of(cls, width: int, clusters: Sequence[str], paths: Sequence[str], told: Sequence[Sequence[str]]) -> Layout:
        """Share out a line of ``width`` columns: how far it is and how long it takes is never cut off, names are before that."""
        want_cluster = max(map(len, clusters), default=0)
        want_path = max(map(len, paths), default=0)
        must = max((len(GAP.join(parts[:2])) for parts in told), default=0)
        everything = max((len(GAP.join(parts)) for parts in told), default=0)
        for bar in BARS:
            room = width - 3 - (bar + 1 if bar else 0)  # a space before the line, and one after each column
            if room - must >= min(want_cluster + want_path, ENOUGH):
                break
        named = max(0, min(want_cluster + want_path, room - must, max(room - everything, ENOUGH)))
        cluster = min(want_cluster, max(named // 2, named - want_path))
        path = min(want_path, named - cluster)
        return cls(cluster, path, bar, max(1, room - cluster - path))


class TerminalBlock:
    """As ``progress.Block``, on ``stream``."""

    def __init__(self, stream: IO[str], environ: Mapping[str, str] = os.environ) -> None:
        self._console = Console(
            file=stream,
            force_terminal=True,
            no_color=bool(environ.get("NO_COLOR")),
            markup=False,
            highlight=False,
            emoji=False,
            soft_wrap=True,
            _environ=dict(environ),
        )
        self._live: Live | None = None
        self._throughput = Throughput()

    @property
    def width(self) -> int:
        """Columns of the terminal."""
        return self._console.width

    def show_line(self, text: Callable[[], str]) -> None:
        """Show one line."""
        self._begin(lambda: Text(text(), no_wrap=True, overflow="ellipsis"))

    def show_rows(self, clusters: Clusters) -> None:
        """Show a run."""
        self._begin(lambda: self._rows(clusters))

    def _begin(self, render: Callable[[], Text | Group]) -> None:
        self._live = Live(get_renderable=render, console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
        self._live.start(refresh=True)

    def refresh(self) -> None:
        """Draw it anew."""
        if self._live is not None:
            self._live.refresh()

    def hide(self) -> None:
        """Take away what is shown."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def print(self, text: str, style: str) -> None:
        """Print a line that stays; one that is too long goes on in the next, indented, and no word is broken."""
        self._console.print(Text(folded(text, self.width), style=style))

    def _rows(self, clusters: Clusters) -> Group:
        rows = clusters.rows()
        told = [live_parts(row, self._throughput.rate_bytes_s(row)) for row in rows]
        layout = Layout.of(self._console.width, [clean(row.cluster, 40) for row in rows], [clean(row.path, 80) for row in rows], told)
        table = Table.grid(padding=(0, 1), expand=False)
        for _ in range(layout.columns):
            table.add_column(no_wrap=True)
        for row, parts in zip(rows, told, strict=True):
            table.add_row(*self._cells(row, parts, layout))
        shown: list[Table | Text] = [table]
        nodes = clusters.whole_nodes()
        if nodes:
            shown.append(Text(f" {safe_line(nodes)}", no_wrap=True, overflow="ellipsis"))
        return Group(*shown)

    def _cells(self, row: UploadRow, parts: Sequence[str], layout: Layout) -> list[Text | ProgressBar]:
        style = _STYLES[row.verdict.outcome]
        cells: list[Text | ProgressBar] = [Text(" " + shortened(clean(row.cluster, 40), layout.cluster))]
        if layout.path:
            cells.append(Text(shortened(clean(row.path, 80), layout.path)))
        if layout.bar:
            cells.append(ProgressBar(total=1.0, completed=bar_part(row), width=layout.bar, complete_style=style, finished_style=style))
        return [*cells, Text(fitting(parts, layout.told), style=style)]
