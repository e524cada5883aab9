"""``--json``: the same as the display, for programs. JSON Lines on stdout; the last line is always ``summary`` or ``error``.

The fields are documented in ``docs/reference/commands.rst`` and only ever grow. Texts of servers stand in ASCII with control characters
escaped, so no terminal is harmed by them either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall

from ciruela.client.listener import NodeNews, UploadRow
from ciruela.client.options.sync import Wish
from ciruela.client.progress import Clusters, Display
from ciruela.client.tracker import (
    EXIT_CONFLICT,
    EXIT_DONE,
    EXIT_HOOK,
    EXIT_INTERRUPTED,
    EXIT_LOCAL,
    EXIT_NETWORK,
    EXIT_NOTHING,
    EXIT_PARTIAL,
    EXIT_REJECTED,
    EXIT_TERMINATED,
    EXIT_USAGE,
    UploadOutcome,
)
from ciruela.disk.scan import Scan
from ciruela.model.units import escaped

MAX_TEXT = 1000
"""Longest text from elsewhere in one field."""

CODES = {
    EXIT_DONE: "done",
    EXIT_LOCAL: "local",
    EXIT_USAGE: "usage",
    EXIT_NETWORK: "network",
    EXIT_PARTIAL: "partial",
    EXIT_REJECTED: "rejected",
    EXIT_CONFLICT: "conflict",
    EXIT_HOOK: "hook",
    EXIT_NOTHING: "nothing-to-do",
    129: "closed",
    EXIT_INTERRUPTED: "interrupted",
    EXIT_TERMINATED: "terminated",
}
"""The stable word for each exit code."""


def code_of(exit_code: int) -> str:
    """The stable word for an exit code."""
    return CODES.get(exit_code, "failed")


def _text(text: str) -> str:
    return escaped(text, MAX_TEXT)  # guard: A22, -> text


def _failed(found: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"host": _text(host), "code": _text(reason.partition(":")[0]), "message": _text(reason)} for host, reason in found]


def upload_fields(row: UploadRow) -> dict[str, object]:
    """One upload to one cluster, as in ``summary`` and ``error``."""
    standing = row.standing
    return {
        "cluster": row.cluster,
        "path": row.path,
        "image": row.image.hex(),
        "outcome": row.verdict.outcome.value.lower(),
        "exit_code": row.verdict.exit_code,
        "code": code_of(row.verdict.exit_code) if row.verdict.outcome is not UploadOutcome.RUNNING else "running",
        "message": _text(row.verdict.why),
        "done": standing.done,
        "expected": standing.expected,
        "accepted": [_text(host) for host in standing.accepted],
        "missing": [_text(host) for host in standing.missing],
        "failed": _failed(standing.failed),
        "absent": [
            {
                "host": _text(server.name),
                "machine_id": None if server.machine is None else server.machine.hex(),
                "addresses": [_text(address) for address in server.addresses],
                "heard_s": None if server.heard_ms is None else round(server.heard_ms / 1000, 1),
            }
            for server in standing.absent
        ],
        "shared_ids": [{"machine_id": one.machine.hex(), "addresses": list(map(_text, one.addresses))} for one in standing.shared],
        "hooks": {
            "ok": row.hooks.ok,
            "pending": [_text(host) for host in row.hooks.pending],
            "failed": [{"host": _text(host), "message": _text(why)} for host, why in row.hooks.failed],
        },
        "sent_bytes": row.sent_bytes,
        "total_bytes": row.total_bytes,
        "reused_bytes": row.reused_bytes,
        "seconds": round(row.elapsed_s, 3),
    }


class Report:
    """Writes the lines of one command to ``out``."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._clusters: Clusters | None = None
        self._loop: LoopingCall | None = None
        self._ended = False

    def write(self, kind: str, **fields: object) -> None:
        """One line."""
        self._out.write(json.dumps({"type": kind, **fields}) + "\n")
        self._out.flush()

    def indexed(self, wish: Wish, found: Scan) -> None:
        """A directory was indexed."""
        self.write(
            "index",
            path=str(wish.vpath),
            source=_text(wish.source),
            image=found.image.hex(),
            dirs=found.dirs,
            files=found.files,
            links=found.symlinks,
            bytes=found.bytes,
            excluded=found.excluded,
            seconds=round(found.seconds, 3),
        )

    def node(self, news: NodeNews) -> None:
        """A node said something."""
        fields: dict[str, object] = {"cluster": news.cluster, "path": news.path, "host": _text(news.host)}
        fields["address"] = _text(news.address)
        fields["machine_id"] = None if news.machine is None else news.machine.hex()
        if news.state == "accepted":
            self.write("accepted", **fields, nodes_known=news.nodes_known)
            return
        self.write("node", **fields, state=news.state, code=_text(news.code), message=_text(news.message))

    def watch(self, clusters: Clusters, clock: IReactorTime, every_s: float) -> None:
        """Write lines of progress until :meth:`rest`."""
        self._clusters = clusters
        self._loop = LoopingCall(self._progress, clusters)
        self._loop.clock = clock
        self._loop.start(every_s, now=False)

    def rest(self) -> None:
        """No more lines of progress."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()

    def _progress(self, clusters: Clusters) -> None:
        for row in clusters.rows():
            if row.verdict.outcome is UploadOutcome.RUNNING:
                standing = row.standing
                self.write(
                    "progress",
                    cluster=row.cluster,
                    path=row.path,
                    done=standing.done,
                    expected=standing.expected,
                    sent_bytes=row.sent_bytes,
                    total_bytes=row.total_bytes,
                    given=None if row.given is None else round(row.given, 4),
                    seconds=round(row.elapsed_s, 3),
                )

    def summary(self, exit_code: int, rows: Sequence[UploadRow]) -> None:
        """The last line of a run that came to its end, well or not."""
        outcomes = {row.verdict.outcome for row in rows if row.verdict.exit_code == exit_code}
        worst = next((one for one in (*_BAD, UploadOutcome.EARLY) if one in outcomes), UploadOutcome.DONE)
        self.end(exit_code, worst.value.lower(), [upload_fields(row) for row in rows])

    def end(self, exit_code: int, outcome: str, uploads: Sequence[dict[str, object]]) -> None:
        """The last line, with what there is to say of each upload to each cluster."""
        self._ended = True
        self.write("summary", outcome=outcome, exit_code=exit_code, code=code_of(exit_code), uploads=uploads)

    def error(self, exit_code: int, message: str) -> None:
        """The last line of a run that did not; how uploads that had begun stood then. Nothing when the last line is written already."""
        if not self._ended:
            self._ended = True
            uploads = {"uploads": [upload_fields(row) for row in self._clusters.rows()]} if self._clusters is not None else {}
            self.write("error", code=code_of(exit_code), exit_code=exit_code, message=_text(message), **uploads)


class Reporting:
    """The display and the report as one listener."""

    def __init__(self, display: Display, report: Report) -> None:
        self._report = report
        self.problem = display.problem
        self.note = display.note

    def node(self, news: NodeNews) -> None:
        """A node said something."""
        self._report.node(news)


_BAD = (UploadOutcome.FAILED, UploadOutcome.REJECTED, UploadOutcome.PARTIAL)
