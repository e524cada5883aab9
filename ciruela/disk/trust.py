"""Trust in a record without a checksum: one of the reference, or of an earlier version of this program (finding K3.3).

Its signatures are verified with the keys that are configured now. One that a key made is believed. Keys may have been taken out of the
configuration since, so a record that no key of today made is kept as well, unless something speaks against it: a time ahead of the clock,
or a committed image of which no index is stored here, as a flipped bit makes of any image.

Targets of the symlinks of this host that the operator named in ``protect``: the image behind one of them is not cleaned up.

As with keep lists, whatever is wrong with one of them could mean that an image in use is not known to be. So it is all of them or an error.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from twisted.internet.defer import Deferred, succeed

from ciruela.disk import states
from ciruela.disk.layout import Place, Records, index_name
from ciruela.disk.safedir import SafeDir, led_to
from ciruela.disk.states import Judge
from ciruela.interfaces import InThread, KeepList, NowMs
from ciruela.model.config import DirConfig
from ciruela.model.errors import DiskError, FormatError
from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass
from ciruela.model.versions import SigEntry, State
from ciruela.model.vpath import VPath, leads_to


def targets(paths: Sequence[str], directory: str) -> Mapping[tuple[str, ...], str]:
    """Follows the symlinks ``paths``: gives each target inside ``directory``, by components below it, with its link; none from elsewhere.

    A short one stands for everything below it. Raises DiskError for a path that leads nowhere or cannot be followed.
    """
    found: dict[tuple[str, ...], str] = {}
    try:
        top = led_to(directory)
    except OSError as error:
        raise DiskError(f"{directory}: {error.strerror or error}") from error
    for path in paths:
        try:
            target = led_to(path)
        except OSError as error:
            raise DiskError(f"the protected link {path}: {error.strerror or error} (it must lead to a directory that is there)") from error
        inside = target == top or target.startswith(top.rstrip(os.sep) + os.sep)
        if inside:
            found.setdefault(tuple(part for part in target[len(top) :].split(os.sep) if part), path)
    return found


def protected(paths: Sequence[str], directory: str) -> KeepList:
    """Gives the targets that :func:`targets` finds, without the links. Raises DiskError."""
    return frozenset(targets(paths, directory))


class HostLinks:
    """Implements ``interfaces.ProtectedLinks``. Following one may take for ever (a network file system), as reading a keep list may."""

    def __init__(self, in_thread: InThread) -> None:
        self._in_thread = in_thread

    def follow(self, config: DirConfig) -> Deferred[KeepList]:
        """As ``interfaces.ProtectedLinks.follow``."""
        if not config.protect:
            return succeed(frozenset())
        return self._in_thread(protected, config.protect, config.directory)

    def leading(self, config: DirConfig, vpath: VPath) -> Deferred[str | None]:
        """As ``interfaces.ProtectedLinks.leading``."""

        def which(found: Mapping[tuple[str, ...], str]) -> str | None:
            return next((path for parts, path in found.items() if leads_to(parts, vpath.parts[1:])), None)

        return self._in_thread(targets, config.protect, config.directory).addCallback(which)


AHEAD_MS = 5 * 60 * 1000
"""A record that says a later time than the clock and this was never accepted here: whoever signs may be so much ahead."""

SANE_MS = 1_577_836_800_000
"""The year 2020. A clock that shows an earlier time was never set since the machine was switched on, and proves nothing."""

MOST_AT_START = 10_000
"""Records without a checksum that a start verifies, some 60 us each; the others are looked at while the node runs."""

Signed = Callable[[VPath, ImageId, Sequence[SigEntry]], frozenset[SigEntry]]
"""Those of the entries that a key made which is configured now for the path. Called in threads."""


@dataclass(frozen=True, slots=True)
class RecordTrust:
    """By what records are judged: the wall clock, and the keys."""

    now_ms: NowMs
    signed: Signed

    @property
    def latest_ms(self) -> int:
        """The latest time that a record may say; none is too late for a clock that was never set."""
        now_ms = self.now_ms()
        return now_ms + AHEAD_MS if now_ms >= SANE_MS else 1 << 64  # guard: K3.3, -> now_ms + AHEAD_MS


class Vetting:
    """Judges the records of one daemon that have no checksum. Used from several threads.

    ``waiting`` are the paths with a committed image of which the record has none yet: :meth:`prove` gives it one.
    """

    def __init__(self, records: Records, trust: RecordTrust) -> None:
        self._records = records
        self._trust = trust
        self._verified = 0
        self.waiting: deque[VPath] = deque()

    @property
    def latest_ms(self) -> int:
        """As ``RecordTrust.latest_ms``."""
        return self._trust.latest_ms

    def at_start(self, place: Place) -> Judge:
        """Judges the committed state of ``place`` for a start, which does not verify more than :data:`MOST_AT_START` signatures."""

        def judge(state: State) -> State:
            self.waiting.append(place.vpath)
            if self._verified >= MOST_AT_START:
                return state
            self._verified += len(state.signatures)
            return self._judged(place, state, committed=True)

        return judge

    def pending(self, place: Place) -> Judge:
        """Judges a journal: its index may be still to come."""
        return lambda state: self._judged(place, state, committed=False)

    def prove(self, directory: SafeDir, place: Place) -> bool:
        """Judge the committed state at ``place`` if it has no checksum, and write it with one. False: it was set aside. Raises OSError."""
        found: list[State] = []

        def judge(state: State) -> State:
            found.append(self._judged(place, state, committed=True))
            return found[0]

        standing = states.read_state(directory, place.record, judge)
        if found:
            states.write_state(directory, place.record, found[0])
        return standing is not None

    def _judged(self, place: Place, state: State, *, committed: bool) -> State:
        made = self._trust.signed(place.vpath, state.image, state.signatures)
        good = tuple(entry for entry in state.signatures if entry in made or entry.timestamp_ms <= self.latest_ms)
        if not good:  # guard: K3.3
            raise FormatError(f"it says a time ahead of the clock, {state.version.timestamp_ms} ms, and no key made its signatures")
        if committed and not made and not self._has_index(state.image):  # guard: K3.4
            raise FormatError("no key that is configured made its signatures, and no index of its image is stored")
        return State(state.image, good)

    def _has_index(self, image: ImageId) -> bool:
        try:
            with self._records.indexes(image) as directory:
                return directory.stat(index_name(image)) is not None
        except FileNotFoundError:
            return False
