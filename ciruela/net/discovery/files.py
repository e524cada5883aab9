"""A file that lists the other nodes, ``peers.txt`` or another (protocol section 9.3, without its defect C23: it is looked at again)."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.interfaces import InThread
from ciruela.model.errors import FormatError
from ciruela.net.discovery.source import Names
from ciruela.net.resolve import split_name
from ciruela.runtime import PeriodicTask

LOOK_S = 5.0
"""Interval at which the file is looked at."""

MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ListLine:
    """One usable line: the text as it stands there, for people."""

    number: int
    text: str


def parse(text: str, source: str) -> tuple[list[ListLine], list[str]]:
    """The usable lines of a peers file, without doubles, and a complaint ``FILE:LINE: ...`` for each of the others."""
    lines: dict[tuple[str, int], ListLine] = {}
    complaints = []
    for number, raw in enumerate(text.splitlines(), start=1):
        name = raw.strip()
        if not name or name.startswith("#"):
            continue
        try:
            lines.setdefault(split_name(name, 0), ListLine(number, name))
        except FormatError as fault:
            complaints.append(f"{source}:{number}: {fault}")
    return list(lines.values()), complaints


def complaints(path: str) -> list[str]:
    """Lists the mistakes in the file at ``path``; a file that is not there is fine. The other lines count all the same."""
    try:
        _, content = _read(Path(path), None)
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"{path}: it cannot be read: {error.strerror}"]
    return [f"{one}; the line is skipped" for one in parse((content or b"").decode("utf-8", "replace"), path)[1]]


class PeersFile:
    """Implements ``source.PeerSource``: the lines of a file. ``without`` is what its absence means, for the log."""

    _log = Logger(namespace="ciruela.net.peers")

    def __init__(
        self,
        path: str | Path,
        clock: IReactorTime,
        rng: random.Random,
        in_thread: InThread,
        without: str = "this node stands alone",
    ) -> None:
        self.text = f"file:{path}"
        self.identity: Hashable = self.text
        self._path = Path(path)
        self._in_thread = in_thread
        self._without = without
        self._stamp: tuple[int, int] | None = None
        self._missing_told = False
        self._doubtful = True
        self._failure = ""
        self._lines: dict[str, ListLine] | None = None
        self._running = False
        self._changed: Callable[[], object] = int
        self._beat = PeriodicTask(clock, rng, LOOK_S, self._look, "reading the list of peers")

    @property
    def names(self) -> Names | None:
        """As ``PeerSource.names``."""
        return None if self._lines is None else tuple(self._lines)

    @property
    def failure(self) -> str:
        """As ``PeerSource.failure``. A file that is not there is none."""
        return self._failure

    @property
    def doubtful(self) -> bool:
        """As ``PeerSource.doubtful``."""
        return self._doubtful

    def remember(self, names: Sequence[str]) -> None:
        """A file speaks for itself."""

    def label(self, name: str) -> str:
        """As ``PeerSource.label``: ``FILE:LINE``."""
        line = (self._lines or {}).get(name)
        return str(self._path) if line is None else f"{self._path}:{line.number}"

    def start(self, changed: Callable[[], object]) -> Deferred[None]:
        """As ``PeerSource.start``."""
        self._running = True
        self._changed = changed
        self._beat.start()
        return self._look()

    def stop(self) -> None:
        """As ``PeerSource.stop``."""
        self._running = False
        self._beat.stop()

    def _look(self) -> Deferred[None]:
        read: Deferred[tuple[tuple[int, int], bytes | None]] = self._in_thread(_read, self._path, self._stamp)
        return read.addCallbacks(self._take, self._unreadable)

    def _take(self, found: tuple[tuple[int, int], bytes | None]) -> None:
        self._stamp, content = found
        self._missing_told = self._doubtful = False
        self._failure = ""
        if content is None or not self._running:
            return
        lines, wrong = parse(content.decode("utf-8", "replace"), str(self._path))
        for complaint in wrong:
            self._log.warn("{complaint}; the line is skipped", complaint=complaint)
        self._lines = {line.text: line for line in lines}
        self._changed()

    def _unreadable(self, failure: Failure) -> None:
        failure.trap(OSError)
        missing = isinstance(failure.value, FileNotFoundError)
        self._doubtful = not missing
        reason = getattr(failure.value, "strerror", None) or failure.getErrorMessage()
        self._failure = "" if missing else str(reason)
        if missing and self._lines is None:
            self._lines = {}
        if not self._missing_told:
            self._missing_told = True
            kept = "the peers of before are kept" if self._lines else self._without
            self._log.warn("{path}: {reason}; {kept}", path=str(self._path), reason=reason, kept=kept)


def _read(path: Path, stamp: tuple[int, int] | None) -> tuple[tuple[int, int], bytes | None]:
    """Stamp and content of the file; no content when the stamp is still the same. Raises OSError."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        found = (status.st_mtime_ns, status.st_size)
        return found, None if found == stamp else file.read(MAX_FILE_BYTES)
