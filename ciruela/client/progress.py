"""What the user sees: a live block on a terminal, plain lines elsewhere, and the lines that stay.

Progress and problems go to stderr, results to stdout. Every text from outside passes :func:`ciruela.client.text.clean`, and is printed
as plain text, so nothing that a server says can be taken for markup or for control of the terminal.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Literal, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from ciruela.client.book import Outcome
from ciruela.client.options import Progress
from ciruela.client.sync import Row
from ciruela.client.text import clean, interval, size, stamp
from ciruela.seams import NowMs

REFRESH_S = 0.25
"""How often the live block is drawn: often enough to look alive, seldom enough to cost nothing."""

SHOWN_NAMES = 3
"""Names of nodes on a live line; the lines that stay have all that fit into :data:`FINAL_NAMES`."""

FINAL_NAMES = 20

WIDE = 110
"""Columns from which on a terminal has room for long bars."""

_COLUMNS: tuple[Literal["left", "right"], ...] = ("left", "left", "left", "right", "left")
"""Cluster, path, bar, nodes, bytes; what is going on comes after them."""

_STYLES = {Outcome.DONE: "green", Outcome.EARLY: "yellow", Outcome.REJECTED: "red", Outcome.FAILED: "red", Outcome.RUNNING: "cyan"}


class Clusters(Protocol):
    """What is shown: ``sync.SyncRun``, or a double."""

    def rows(self) -> list[Row]:
        """Every upload to every cluster."""

    def whole_nodes(self) -> int:
        """Nodes of each cluster that have everything, at least."""


def wants_live(how: Progress, stream: IO[str], environ: Mapping[str, str]) -> bool:
    """Whether the block is drawn: when asked for, or on a terminal that can move its cursor and has not said ``NO_COLOR``."""
    if how is Progress.AUTO:
        return stream.isatty() and environ.get("TERM", "") != "dumb" and not environ.get("NO_COLOR")
    return how is Progress.TTY


def make_console(stream: IO[str], live: bool, environ: Mapping[str, str] = os.environ) -> Console:
    """A rich console on ``stream`` that writes plain text unless ``live``."""
    return Console(
        file=stream,
        force_terminal=live,
        no_color=not live or bool(environ.get("NO_COLOR")),
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=True,
        _environ=dict(environ),
    )


def names(found: Sequence[str], most: int) -> str:
    """Some names, and how many more there are."""
    shown = ", ".join(clean(name, 80) for name in found[:most])
    return shown if len(found) <= most else f"{shown} and {len(found) - most} more"


def failures(found: Sequence[tuple[str, str]], most: int) -> str:
    """``host reason`` of some, and how many more there are."""
    return names([f"{host} {reason}" for host, reason in found], most)


def result_line(row: Row, widths: tuple[int, int] = (0, 0)) -> str:
    """The line that stays for one upload to one cluster."""
    standing = row.standing
    parts = [
        f"{clean(row.cluster, 80):<{widths[0]}} {clean(row.path):<{widths[1]}}",
        f"{row.verdict.outcome.value:<8}",
        f"{standing.done}/{standing.expected} nodes",
        interval(row.elapsed_s),
        f"sent {size(row.sent_bytes)}",
    ]
    if standing.failed:
        parts.append(f"failed: {failures(standing.failed, FINAL_NAMES)}")
    if standing.missing:
        parts.append(f"missing: {names(standing.missing, FINAL_NAMES)}")
    if row.verdict.why and row.verdict.outcome is not Outcome.EARLY:
        parts.append(f"({clean(row.verdict.why)})")
    return "  ".join(parts)


def result_lines(rows: Sequence[Row]) -> list[str]:
    """The lines that stay, in columns."""
    widths = (max((len(clean(row.cluster, 80)) for row in rows), default=0), max((len(clean(row.path)) for row in rows), default=0))
    return [result_line(row, widths).rstrip() for row in rows]


def promise_lines(rows: Sequence[Row]) -> list[str]:
    """What an interrupted run leaves behind: what nodes have, and whether they can go on without this client."""
    lines = []
    for row in rows:
        standing = row.standing
        if standing.done:
            what = f"{standing.done}/{standing.expected} nodes have it; the others go on without this client"
        elif standing.accepted:
            what = (
                f"accepted by {names(standing.accepted, FINAL_NAMES)}, but no node is known to have all of it; run the same command again"
            )
        else:
            what = "accepted by nobody; nothing was changed"
        lines.append(f"{clean(row.cluster, 80)} {clean(row.path)}  {what}")
    return lines


def progress_line(row: Row, now_ms: int) -> str:
    """One line of ``key=value`` for a log."""
    return (
        f"{stamp(now_ms)} progress cluster={clean(row.cluster, 80)} path={clean(row.path)} "
        f"done={row.standing.done} want={row.standing.expected} sent_bytes={row.sent_bytes}"
    )


def safe_line(nodes: int) -> str:
    """The sentence that says that the client is not needed any more."""
    return f"safe to disconnect: yes - every block is on {nodes} or more {'node' if nodes == 1 else 'nodes'} of each cluster"


class Display:
    """Shows one run. Also its listener: problems stay above the live block.

    ``out`` takes results, ``err`` everything else. ``verbosity`` 0 shows problems and results only, 2 also what single nodes say.
    """

    def __init__(
        self, clock: IReactorTime, now_ms: NowMs, out: Console, err: Console, live: bool, lines_every_s: float | None, verbosity: int
    ) -> None:
        self._clock = clock
        self._now_ms = now_ms
        self._out = out
        self._err = err
        self._live_wanted = live and verbosity > 0
        self._lines_every_s = lines_every_s if verbosity > 0 else None
        self._verbosity = verbosity
        self._live: Live | None = None
        self._loop: LoopingCall | None = None
        self._clusters: Clusters | None = None
        self._told_safe = False
        self.problems = 0

    # -- what happens -------------------------------------------------------------------------------------------------------------

    def problem(self, cluster: str, text: str) -> None:
        """Print a problem; it stays."""
        self.problems += 1
        self._err.print(Text(f" ! {clean(cluster, 80)} {clean(text)}" if cluster else f" ! {clean(text)}", style="red"))

    def note(self, cluster: str, text: str) -> None:
        """Print what a node said, for those who want to know."""
        if self._verbosity > 1:
            self._err.print(Text(f"   {clean(cluster, 80)} {clean(text)}"))

    def say(self, text: str) -> None:
        """Print a line about what is being done."""
        if self._verbosity > 0:
            self._err.print(Text(clean(text)))

    def result(self, text: str) -> None:
        """Print a line that was asked for, whatever the verbosity."""
        self._out.print(Text(clean(text, 2000)))

    # -- indexing -----------------------------------------------------------------------------------------------------------------

    def show(self, text: Callable[[], str]) -> None:
        """Show a line that changes while something goes on; :meth:`hide` takes it away. Only on a terminal."""
        self.hide()
        if self._live_wanted:
            self._begin(lambda: Text(clean(text()), no_wrap=True, overflow="ellipsis"))

    # -- the run ------------------------------------------------------------------------------------------------------------------

    def watch(self, clusters: Clusters) -> None:
        """Show a run until :meth:`hide`."""
        self.hide()
        self._clusters = clusters
        if self._live_wanted:
            self._begin(lambda: self._block(clusters))
        elif self._lines_every_s is not None:
            self._loop = LoopingCall(self._print_lines, clusters)
            self._loop.clock = self._clock
            self._loop.start(self._lines_every_s, now=False)

    def _begin(self, render: Callable[[], Text | Group]) -> None:
        self._live = Live(get_renderable=render, console=self._err, auto_refresh=False, transient=True, redirect_stdout=False)
        self._live.start(refresh=True)
        self._loop = LoopingCall(self._live.refresh)
        self._loop.clock = self._clock
        self._loop.start(REFRESH_S, now=False)

    def hide(self) -> None:
        """Take away the block or end the lines; what was printed above stays."""
        if self._loop is not None:
            if self._loop.running:
                self._loop.stop()
            self._loop = None
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print_lines(self, clusters: Clusters) -> None:
        now_ms = self._now_ms()
        for row in clusters.rows():
            if row.verdict.outcome is Outcome.RUNNING:
                self._err.print(Text(progress_line(row, now_ms)))
        nodes = clusters.whole_nodes()
        if nodes and not self._told_safe:
            self._told_safe = True
            self._err.print(Text(safe_line(nodes)))

    def _block(self, clusters: Clusters) -> Group:
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
        wide = self._err.width >= WIDE
        if row.verdict.outcome is not Outcome.RUNNING:
            state = f"{row.verdict.outcome.value} in {interval(row.elapsed_s)}"
        elif not standing.accepted:
            state = f"{interval(row.elapsed_s)}  asking"
        elif standing.done and len(standing.missing) <= SHOWN_NAMES and standing.missing:
            state = f"{interval(row.elapsed_s)}  waiting: {names(standing.missing, SHOWN_NAMES)}"
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

    # -- the end ------------------------------------------------------------------------------------------------------------------

    def finish(self, rows: Sequence[Row]) -> None:
        """Take away the block and print the lines that stay."""
        self.hide()
        for line in result_lines(rows):
            self._out.print(Text(line))

    def interrupted(self, rows: Sequence[Row]) -> None:
        """Take away the block and print what has been promised."""
        self.hide()
        for line in promise_lines(rows):
            self._err.print(Text(line))
