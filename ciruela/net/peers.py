"""``peers.txt``: the other nodes (protocol section 9.3, without its defect C23: the file and its names are looked at again)."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.clockwork import Beat
from ciruela.model.errors import FormatError
from ciruela.net.resolve import Resolve, split_name
from ciruela.seams import Address, InThread

LOOK_S = 5.0
"""How often the file is looked at."""

AGAIN_S = 60.0
"""How often a name is resolved again; up to a quarter more or less, so that nodes do not all ask at once (threats A60)."""

AFTER_FAILURE_S = 10.0
MAX_FILE_BYTES = 1024 * 1024

Peers = Mapping[Address, str]


@dataclass(frozen=True, slots=True)
class Line:
    """One usable line: the text as it stands there, for people."""

    number: int
    text: str


def parse(text: str, source: str) -> tuple[list[Line], list[str]]:
    """The usable lines of a peers file, without doubles, and a complaint ``FILE:LINE: ...`` for each of the others."""
    lines: dict[tuple[str, int], Line] = {}
    complaints = []
    for number, raw in enumerate(text.splitlines(), start=1):
        name = raw.strip()
        if not name or name.startswith("#"):
            continue
        try:
            lines.setdefault(split_name(name, 0), Line(number, name))
        except FormatError as fault:
            complaints.append(f"{source}:{number}: {fault}")
    return list(lines.values()), complaints


class PeerList:
    """The peers as they are known now. ``on_change`` gets :attr:`peers` whenever it has become different."""

    _log = Logger()

    def __init__(
        self,
        path: str | Path,
        default_port: int,
        resolve: Resolve,
        clock: IReactorTime,
        rng: random.Random,
        in_thread: InThread,
        on_change: Callable[[Peers], object],
    ) -> None:
        self._path = Path(path)
        self._default_port = default_port
        self._resolve = resolve
        self._clock = clock
        self._rng = rng
        self._in_thread = in_thread
        self._on_change = on_change
        self._stamp: tuple[int, int] | None = None
        self._missing_told = False
        self._doubtful = True
        self._lines: dict[str, Line] = {}
        self._known: dict[str, list[Address]] = {}
        self._due: dict[str, float] = {}
        self._told: dict[str, str] = {}
        self._asking: set[str] = set()
        self._running = False
        self._beat = Beat(clock, rng, LOOK_S, self._look, "reading the list of peers")
        self._peers: dict[Address, str] = {}

    @property
    def unresolved(self) -> int:
        """How many lines of the list have no known address; one more as long as nobody can tell what is in the list."""
        return sum(not self._known.get(text) for text in self._lines) + self._doubtful

    @property
    def peers(self) -> Peers:
        """Address to the text in the file. A name with several addresses appears several times."""
        return self._peers

    def start(self) -> Deferred[None]:
        """Read the file and look its names up; fires when all have answered, well or badly. Goes on until :meth:`stop`."""
        self._running = True
        self._beat.start()
        return self._look()

    def stop(self) -> None:
        """End."""
        self._running = False
        self._beat.stop()

    def _look(self) -> Deferred[None]:
        read: Deferred[tuple[tuple[int, int], bytes | None]] = self._in_thread(_read, self._path, self._stamp)
        return read.addCallbacks(self._take, self._unreadable).addCallback(self._refresh)

    def _take(self, found: tuple[tuple[int, int], bytes | None]) -> None:
        self._stamp, content = found
        self._missing_told = self._doubtful = False
        if content is None or not self._running:
            return
        lines, complaints = parse(content.decode("utf-8", "replace"), str(self._path))
        for complaint in complaints:
            self._log.warn("{complaint}; the line is skipped", complaint=complaint)
        self._lines = {line.text: line for line in lines}
        for gone in self._known.keys() - self._lines.keys():
            del self._known[gone]
        self._due = {text: self._due.get(text, 0.0) for text in self._lines}
        self._publish()

    def _unreadable(self, failure: Failure) -> None:
        failure.trap(OSError)
        self._doubtful = not isinstance(failure.value, FileNotFoundError)
        if not self._missing_told:
            self._missing_told = True
            reason = getattr(failure.value, "strerror", None) or failure.getErrorMessage()
            kept = "the peers of before are kept" if self._lines else "this node stands alone"
            self._log.warn("{path}: {reason}; {kept}", path=str(self._path), reason=reason, kept=kept)

    def _refresh(self, _: object) -> Deferred[None]:
        now = self._clock.seconds()
        asked = [self._ask(text) for text, due in self._due.items() if due <= now and text not in self._asking and self._running]
        done: Deferred[None] = Deferred()
        left = len(asked)

        def one(_: object) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                done.callback(None)

        for answer in asked:
            answer.addBoth(one)
        if not asked:
            done.callback(None)
        return done

    def _ask(self, text: str) -> Deferred[None]:
        self._asking.add(text)
        return (
            maybeDeferred(self._resolve, text, self._default_port)
            .addCallbacks(self._resolved, self._unresolved, callbackArgs=(text,), errbackArgs=(text,))
            .addErrback(self._not_taken, text)
        )

    def _not_taken(self, failure: Failure, text: str) -> None:
        self._log.failure("the addresses of {peer} were not taken in", failure, peer=text)

    def _resolved(self, addresses: list[Address], text: str) -> None:
        self._asked(text, AGAIN_S)
        self._told.pop(text, None)
        if text in self._lines and self._running:
            self._known[text] = addresses
            self._publish()

    def _unresolved(self, failure: Failure, text: str) -> None:
        self._asked(text, AFTER_FAILURE_S)
        reason = failure.getErrorMessage()
        line = self._lines.get(text)
        if line is not None and self._told.get(text) != reason:
            self._told[text] = reason
            kept = "; its last addresses are kept" if text in self._known else ""
            self._log.warn("{path}:{line}: {reason}{kept}", path=str(self._path), line=line.number, reason=reason, kept=kept)

    def _asked(self, text: str, again_s: float) -> None:
        self._asking.discard(text)
        if text in self._due:
            self._due[text] = self._clock.seconds() + again_s * self._rng.uniform(0.75, 1.25)

    def _publish(self) -> None:
        peers: dict[Address, str] = {}
        for text in self._lines:
            for address in self._known.get(text, ()):
                peers.setdefault(address, text)
        if peers != self._peers:
            self._peers = peers
            self._on_change(peers)


def _read(path: Path, stamp: tuple[int, int] | None) -> tuple[tuple[int, int], bytes | None]:
    """Stamp and content of the file; no content when the stamp is still the same. Raises OSError."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        found = (status.st_mtime_ns, status.st_size)
        return found, None if found == stamp else file.read(MAX_FILE_BYTES)
