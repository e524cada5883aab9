"""The live block on a terminal, drawn with rich. A module of its own, because loading rich takes a while that a small upload notices."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import IO, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ciruela.client.book import Outcome
from ciruela.client.progress import Clusters, given_part, names, safe_line
from ciruela.client.sync import Row
from ciruela.client.text import clean, interval, size

SHOWN_NAMES = 3
"""Names of nodes on a live line; the lines that stay have more."""

WIDE = 110
"""Columns from which on a terminal has room for long bars."""

_COLUMNS: tuple[Literal["left", "right"], ...] = ("left", "left", "left", "right", "left")
"""Cluster, path, bar, nodes, bytes; what is going on comes after them."""

_STYLES = {
    Outcome.DONE: "green",
    Outcome.EARLY: "yellow",
    Outcome.PARTIAL: "yellow",
    Outcome.REJECTED: "red",
    Outcome.FAILED: "red",
    Outcome.RUNNING: "cyan",
}


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
        """Print a line that stays."""
        self._console.print(Text(text, style=style))

    def _rows(self, clusters: Clusters) -> Group:
        table = Table.grid(padding=(0, 1), expand=False)
        for justify in _COLUMNS:
            table.add_column(no_wrap=True, overflow="ellipsis", justify=justify)
        table.add_column(overflow="ellipsis")  # the one that gives way when the terminal is narrow
        for row in clusters.rows():
            table.add_row(*self._cells(row))
        parts: list[Table | Text] = [table]
        nodes = clusters.whole_nodes()
        if nodes:
            parts.append(Text(f" {safe_line(nodes)}", no_wrap=True, overflow="ellipsis"))
        return Group(*parts)

    def _cells(self, row: Row) -> tuple[Text, Text, ProgressBar, Text, Text, Text]:
        standing = row.standing
        style = _STYLES[row.verdict.outcome]
        wide = self._console.width >= WIDE
        if row.verdict.outcome is not Outcome.RUNNING:
            state = f"{row.verdict.outcome.value} in {interval(row.elapsed_s)}"
        elif not standing.accepted:
            state = f"{interval(row.elapsed_s)}  asking"
        elif standing.done and len(standing.missing) <= SHOWN_NAMES and standing.missing:
            state = f"{interval(row.elapsed_s)}  waiting: {names(standing.missing, SHOWN_NAMES)}"
        elif row.hooks.pending and not standing.missing:
            state = f"{interval(row.elapsed_s)}  hooks: {names(row.hooks.pending, SHOWN_NAMES)}"
        elif given := given_part(row):
            state = f"{interval(row.elapsed_s)}  {given}"
        elif row.given is not None:
            state = f"{interval(row.elapsed_s)}  all given, the nodes finish it"
        else:
            state = f"{interval(row.elapsed_s)}  sent to: {names(standing.accepted, SHOWN_NAMES)}"
        known = f"{standing.done}/{standing.expected} nodes" if standing.expected else "nobody yet"
        return (
            Text(f" {clean(row.cluster, 40)}"),
            Text(clean(row.path, 60)),
            ProgressBar(
                total=max(1, standing.expected),
                completed=standing.done,
                width=24 if wide else 10,
                complete_style=style,
                finished_style=style,
            ),
            Text(known),
            Text(f"sent {size(row.sent_bytes)}{f' (image {size(row.total_bytes)})' if wide else ''}"),
            Text(state, style=style, no_wrap=True, overflow="ellipsis"),
        )
