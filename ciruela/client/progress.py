"""Progress display: a live block on a terminal, plain lines elsewhere, and the lines that stay.

Progress and problems go to stderr, results to stdout. Every text from outside passes :func:`ciruela.client.text.clean`, and is printed
as plain text, so nothing that a server says can be taken for markup or for control of the terminal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from ciruela.client.listener import NodeNews, UploadRow, hooks_part
from ciruela.client.options.common import ProgressStyle
from ciruela.client.text import clean, folded, interval, size, stamp
from ciruela.client.tracker import UploadOutcome
from ciruela.interfaces import NowMs

REFRESH_S = 0.25
"""Interval at which the live block is drawn: often enough to look alive, seldom enough to cost nothing."""

LEAST_GIVEN = 0.02
"""From here on the time that is left can be told at all."""

RATE_WINDOW_S = 5.0
LEAST_RATE_S = 1.0
"""The rate is that of the last seconds, and none is told before the first one has passed."""

LIVE_NAMES = 3
"""Names of nodes on a live line; the lines that stay have more."""

FINAL_NAMES = 20
"""Names of nodes on a line that stays."""


class Clusters(Protocol):
    """Source of what is shown: ``clusters.SyncRun``, or a double."""

    def rows(self) -> list[UploadRow]:
        """Every upload to every cluster."""

    def whole_nodes(self) -> int:
        """Nodes of each cluster that have everything, at least."""


def wants_live(how: ProgressStyle, stream: IO[str], environ: Mapping[str, str]) -> bool:
    """Tells whether the block is drawn: when asked for, or on a terminal that can move its cursor and has not said ``NO_COLOR``."""
    if how is ProgressStyle.AUTO:
        return stream.isatty() and environ.get("TERM", "") != "dumb" and not environ.get("NO_COLOR")
    return how is ProgressStyle.TTY


def names(found: Sequence[str], most: int) -> str:
    """Some names, and how many more there are."""
    shown = ", ".join(clean(name, 80) for name in found[:most])
    return shown if len(found) <= most else f"{shown} and {len(found) - most} more"


def failures(found: Sequence[tuple[str, str]], most: int) -> str:
    """``host reason`` of some, and how many more there are. A reason that several gave is told once."""
    hosts: dict[str, list[str]] = {}
    for host, reason in found:
        hosts.setdefault(reason, []).append(host)
    return "; ".join(f"{names(having, most)} {clean(reason)}" for reason, having in hosts.items())


def result_line(row: UploadRow, widths: tuple[int, int] = (0, 0)) -> str:
    """The line that stays for one upload to one cluster."""
    standing = row.standing
    parts = [
        f"{clean(row.cluster, 80):<{widths[0]}} {clean(row.path):<{widths[1]}}",
        f"{row.verdict.outcome.value:<8}",
        f"{standing.done}/{standing.expected} nodes",
        interval(row.elapsed_s),
        sent_part(row),
    ]
    if standing.failed:
        parts.append(f"failed: {failures(standing.failed, FINAL_NAMES)}")
    if standing.missing:
        parts.append(f"missing: {names(standing.waited_for, FINAL_NAMES)}")
    if said := hooks_part(row.hooks):
        parts.append(clean(said, 1000))
    if row.verdict.why and row.verdict.outcome is not UploadOutcome.EARLY:
        parts.append(f"({clean(row.verdict.why)})")
    return "  ".join(parts)


def sent_part(row: UploadRow) -> str:
    """``sent 1.2 MiB, reused 66.8 MiB of 68.0 MiB``; what was sent may be compressed, so the two need not add up."""
    sent = f"sent {size(row.sent_bytes)}"
    return f"{sent}, reused {size(row.reused_bytes)} of {size(row.total_bytes)}" if row.reused_bytes else sent


def result_lines(rows: Sequence[UploadRow]) -> list[str]:
    """The lines that stay, in columns."""
    widths = (max((len(clean(row.cluster, 80)) for row in rows), default=0), max((len(clean(row.path)) for row in rows), default=0))
    return [result_line(row, widths).rstrip() for row in rows]


def promise_lines(rows: Sequence[UploadRow]) -> list[str]:
    """Builds the lines on what an interrupted run leaves behind: what nodes have, and whether they can go on without this client."""
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


class Throughput:
    """Bytes a second that went out lately, for each upload. Reads no clock: rows bring their time."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], deque[tuple[float, int]]] = {}

    def rate_bytes_s(self, row: UploadRow) -> float | None:
        """Over the last :data:`RATE_WINDOW_S`; None in the first second. To be asked each time that a row is shown."""
        seen = self._seen.setdefault((row.cluster, row.path), deque())
        seen.append((row.elapsed_s, row.sent_bytes))
        while len(seen) > 2 and seen[1][0] <= row.elapsed_s - RATE_WINDOW_S:
            seen.popleft()
        since_s, before = seen[0]
        return (row.sent_bytes - before) / (row.elapsed_s - since_s) if row.elapsed_s - since_s >= LEAST_RATE_S else None


def bar_part(row: UploadRow) -> float:
    """Length of the bar, 0.0 to 1.0: what was given of what nodes lack; once that is all, or unknown, the nodes that are done."""
    if row.verdict.outcome is UploadOutcome.RUNNING and row.given is not None and row.given < 1:
        return row.given
    return row.standing.done / row.standing.expected if row.standing.expected else 0.0


def live_parts(row: UploadRow, rate_bytes_s: float | None) -> list[str]:
    """Gives the parts of a live line beside its bar, the most important first: who has no room for all leaves out the last."""
    standing = row.standing
    nodes = f"{standing.done}/{standing.expected} nodes" if standing.expected else "nobody yet"
    sent = f"sent {size(row.sent_bytes)}"
    passed = interval(row.elapsed_s)
    if row.verdict.outcome is not UploadOutcome.RUNNING:
        return [f"{row.verdict.outcome.value} in {passed}", nodes, sent_part(row)]
    if not standing.accepted:
        return [f"asking {passed}", nodes]
    if row.given is not None and row.given < 1:
        left = [f"{time_left(row)} left"] if row.given >= LEAST_GIVEN else []
        rate = [] if rate_bytes_s is None else [f"{size(int(rate_bytes_s))}/s"]
        return [f"{int(100 * row.given)}% given", *left, *rate, nodes, sent]
    parts = [nodes, passed]
    if row.hooks.pending and not standing.missing:
        return [*parts, f"hooks: {names(row.hooks.pending, LIVE_NAMES)}", sent]
    if standing.done and standing.missing:
        return [*parts, f"waiting: {names(standing.missing, LIVE_NAMES)}", sent]
    if row.given is not None:
        return [*parts, "all given, the nodes finish it", sent]
    return [*parts, sent, f"to {names(standing.accepted, LIVE_NAMES)}"]


def time_left(row: UploadRow) -> str:
    """The time until all is given, if it goes on as it went so far. Only where :data:`LEAST_GIVEN` is."""
    assert row.given
    return interval(row.elapsed_s * (1 - row.given) / row.given)


def progress_line(row: UploadRow, now_ms: int) -> str:
    """One line of ``key=value`` for a log."""
    return (
        f"{stamp(now_ms)} progress cluster={clean(row.cluster, 80)} path={clean(row.path)} "
        f"done={row.standing.done} want={row.standing.expected} sent_bytes={row.sent_bytes}"
        f"{f' given={row.given:.2f}' if row.given is not None else ''}"
        f"{f' hooks_pending={len(row.hooks.pending)}' if row.hooks.pending else ''}"
    )


def safe_line(nodes: int) -> str:
    """The sentence that says that the client is not needed any more."""
    return f"safe to disconnect: yes - every block is on {nodes} or more {'node' if nodes == 1 else 'nodes'} of each cluster"


class Block(Protocol):
    """Lines of a terminal that are drawn again and again, below those that stay: ``live.TerminalBlock``."""

    @property
    def width(self) -> int:
        """Columns of the terminal."""

    def show_line(self, text: Callable[[], str]) -> None:
        """Show one line."""

    def show_rows(self, clusters: Clusters) -> None:
        """Show a run."""

    def refresh(self) -> None:
        """Draw it anew."""

    def hide(self) -> None:
        """Take away what is shown."""

    def print(self, text: str, style: str) -> None:
        """Print a line that stays; ``style`` is a colour, or empty."""


def _write(stream: IO[str], line: str) -> None:
    stream.write(f"{line}\n")
    stream.flush()


class Display:
    """Shows one run. Also its listener: problems stay above the live block.

    ``out`` takes results, ``err`` everything else, or ``block`` where there is one. ``verbosity`` 0 shows problems and results only, 2 also
    what single nodes say.
    """

    def __init__(
        self,
        clock: IReactorTime,
        now_ms: NowMs,
        out: IO[str],
        err: IO[str],
        block: Block | None,
        lines_every_s: float | None,
        verbosity: int,
    ) -> None:
        self._clock = clock
        self._now_ms = now_ms
        self._out = out
        self._err = err
        self._block = block if verbosity > 0 else None
        self._lines_every_s = lines_every_s if verbosity > 0 else None
        self._verbosity = verbosity
        self._loop: LoopingCall | None = None
        self._clusters: Clusters | None = None
        self._told_safe = False
        self.problems = 0

    @property
    def verbose(self) -> bool:
        """Tells whether the user wants to know more."""
        return self._verbosity > 1

    # -- what happens -------------------------------------------------------------------------------------------------------------

    def problem(self, cluster: str, text: str) -> None:
        """Print a problem; it stays."""
        self.problems += 1
        self._tell(f" ! {clean(cluster, 80)} {clean(text)}" if cluster else f" ! {clean(text)}", "red")

    def note(self, cluster: str, text: str) -> None:
        """Print what a node said, for those who want to know."""
        if self.verbose:
            self._tell(f"   {clean(cluster, 80)} {clean(text)}")

    def node(self, news: NodeNews) -> None:
        """Shows nothing: what nodes say is for programs; people get notes and problems."""

    def say(self, text: str) -> None:
        """Print a line about what is being done."""
        if self._verbosity > 0:
            self._tell(clean(text))

    def log_line(self, text: str) -> None:
        """Print a line for a log, where lines are wanted instead of a live block."""
        if self._lines_every_s is not None:
            self._tell(clean(text, 2000))

    def result(self, text: str) -> None:
        """Print a line that was asked for, whatever the verbosity."""
        self._write_result(clean(text, 2000))

    def _write_result(self, line: str) -> None:
        """A line for programs too, unless both streams are a terminal: people want to see where it begins."""
        block = self._block
        _write(self._out, folded(line, block.width) if block is not None and self._out.isatty() else line)

    def answer(self, text: str) -> None:
        """Print a line that was asked for; what it holds is clean already."""
        _write(self._out, text)

    # -- indexing -----------------------------------------------------------------------------------------------------------------

    def show(self, text: Callable[[], str]) -> None:
        """Show a line that changes while something goes on; :meth:`hide` takes it away. Only on a terminal."""
        self.hide()
        if self._block is not None:
            self._block.show_line(lambda: clean(text()))
            self._draw(self._block)

    # -- the run ------------------------------------------------------------------------------------------------------------------

    def watch(self, clusters: Clusters) -> None:
        """Show a run until :meth:`hide`."""
        self.hide()
        self._clusters = clusters
        if self._block is not None:
            self._block.show_rows(clusters)
            self._draw(self._block)
        elif self._lines_every_s is not None:
            self._loop = LoopingCall(self._print_lines, clusters)
            self._loop.clock = self._clock
            self._loop.start(self._lines_every_s, now=False)

    def _draw(self, block: Block) -> None:
        self._loop = LoopingCall(block.refresh)
        self._loop.clock = self._clock
        self._loop.start(REFRESH_S, now=False)

    def _tell(self, text: str, style: str = "") -> None:
        if self._block is not None:
            self._block.print(text, style)
        else:
            _write(self._err, text)

    def hide(self) -> None:
        """Take away the block or end the lines; what was printed above stays."""
        if self._loop is not None:
            if self._loop.running:
                self._loop.stop()
            self._loop = None
        if self._block is not None:
            self._block.hide()

    def _print_lines(self, clusters: Clusters) -> None:
        now_ms = self._now_ms()
        for row in clusters.rows():
            if row.verdict.outcome is UploadOutcome.RUNNING:
                self._tell(progress_line(row, now_ms))
        nodes = clusters.whole_nodes()
        if nodes and not self._told_safe:
            self._told_safe = True
            self._tell(safe_line(nodes))

    # -- the end ------------------------------------------------------------------------------------------------------------------

    def finish(self, rows: Sequence[UploadRow]) -> None:
        """Take away the block and print the lines that stay."""
        self.hide()
        for line in result_lines(rows):
            self._write_result(line)
        if any(row.verdict.outcome is UploadOutcome.EARLY for row in rows):
            self.say("EARLY: enough nodes are done, the others go on without this client; --require all waits for all of them")

    def interrupted(self, rows: Sequence[UploadRow]) -> None:
        """Take away the block and print what has been promised."""
        self.hide()
        for line in promise_lines(rows):
            self._tell(line)
