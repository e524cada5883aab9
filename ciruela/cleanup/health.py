"""Safety of deleting now: everything that a decision rests on must be known to be right (threats 6.10). Pure.

``Outlook`` tells people why each image of a base dir stays or goes, and when at the earliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from ciruela.cleanup.rules import RetentionRule, Ruling, most_deletions
from ciruela.interfaces import Identity, KeepList
from ciruela.model.config import DirConfig
from ciruela.model.values import dataclass

QUIET_S = 600.0
"""Nothing is deleted for so long after a start, or after a time in which this process did not run (threats A54)."""

STEP_MS = 60_000
"""So far the wall clock may move away from the steady one (threats 6.10); a greater distance is a clock that somebody set."""

SKEW_MS = 5 * 60_000
"""So far the wall clock may be from what the other nodes say, and behind what this node recorded itself (threats 6.10)."""


class Cause(Enum):
    """Reason why nothing is deleted; the values are the words of the status page."""

    STARTING = "starting"
    PEERS = "peers"
    CLOCK = "clock"
    CONFIG = "config"
    DIRECTORY = "directory"
    KEEP_LIST = "keep_list"
    PROTECT = "protect"

    @property
    def passes(self) -> bool:
        """Tells whether it usually ends by itself, so that nobody need be alarmed."""
        return self in (Cause.STARTING, Cause.PEERS)


@dataclass(frozen=True, slots=True)
class Blocked:
    """One reason to delete nothing. ``detail`` is for the log, it may name files of this host."""

    cause: Cause
    detail: str


@dataclass(frozen=True, slots=True)
class Moment:
    """The wall clock, in milliseconds since 1970, and at the same time a clock that nobody can set, in seconds since whenever."""

    wall_ms: int
    steady_s: float


@dataclass(frozen=True, slots=True)
class NodeSight:
    """Observations that concern all directories.

    ``began``: the start of this process; ``awake_s``: since when, by the steady clock, it has run without a pause. ``recorded_ms``: the
    latest time that is recorded here. ``clocks_ms``: what the clocks of other nodes show now, as far as they are known. ``peers`` other
    nodes are configured, ``heard`` of them were heard since ``awake_s``.
    """

    began: Moment
    awake_s: float
    now: Moment
    recorded_ms: int
    clocks_ms: Sequence[int]
    peers: int
    heard: int


@dataclass(frozen=True, slots=True)
class DirSight:
    """Observations that concern one directory; a text in place of a value says why that could not be had.

    ``config`` and ``identity`` are those of the start, ``config_now`` and ``identity_now`` those of this moment.
    """

    config: DirConfig
    config_now: DirConfig | str
    identity: Identity | str
    identity_now: Identity | str
    keep_list: KeepList | str
    protected: KeepList | str = frozenset()


def node_faults(sight: NodeSight) -> list[Blocked]:
    """Reasons to delete nothing anywhere."""
    found = []
    awake_s = sight.now.steady_s - sight.awake_s
    if awake_s < QUIET_S:  # guard: A54 F50 I9
        found.append(Blocked(Cause.STARTING, f"the first {QUIET_S:.0f} s after a start or a pause are not over"))
    if 2 * sight.heard <= sight.peers and sight.peers:  # guard: A54 F50 I9
        found.append(Blocked(Cause.PEERS, f"{sight.heard} of {sight.peers} other nodes were heard, more than half are needed"))
    return found + clock_faults(sight)  # guard: A42 I9, -> found


def clock_faults(sight: NodeSight) -> list[Blocked]:
    """Reasons to doubt the wall clock."""
    found = []
    now_ms = sight.now.wall_ms
    moved_ms = now_ms - sight.began.wall_ms - round((sight.now.steady_s - sight.began.steady_s) * 1000)
    if abs(moved_ms) > STEP_MS:  # guard: A42 F44 I9; A42 F44 I9, -> moved_ms > STEP_MS
        found.append(Blocked(Cause.CLOCK, f"the clock was set by {moved_ms / 1000:.0f} s since the start; restart when it is right"))
    if now_ms < sight.recorded_ms - SKEW_MS:  # guard: A42 F44 I9
        behind_s = (sight.recorded_ms - now_ms) / 1000
        found.append(Blocked(Cause.CLOCK, f"the clock is {behind_s:.0f} s behind what is recorded here; set it"))
    near = sum(abs(clock_ms - now_ms) <= SKEW_MS for clock_ms in sight.clocks_ms)
    if sight.clocks_ms and 2 * near <= len(sight.clocks_ms):  # guard: A42 F44 I9
        off_s = _median(sight.clocks_ms) / 1000 - now_ms / 1000
        told = f"the clocks of the other nodes are {off_s:+.0f} s from this one; compare them"
        found.append(Blocked(Cause.CLOCK, told))
    return found


def dir_faults(sight: DirSight) -> list[Blocked]:
    """Reasons to delete nothing in one directory."""
    found = []
    if isinstance(sight.config_now, str):
        found.append(Blocked(Cause.CONFIG, sight.config_now))
    elif sight.config_now != sight.config:  # guard: A47 I9
        found.append(Blocked(Cause.CONFIG, f"configs/{sight.config.key}.yaml has changed; reload or restart to let it count"))
    if isinstance(sight.identity, str):
        found.append(Blocked(Cause.DIRECTORY, f"at the start: {sight.identity}; restart when it is back"))
    elif isinstance(sight.identity_now, str):
        found.append(Blocked(Cause.DIRECTORY, sight.identity_now))  # guard: A40 F30 I9
    elif sight.identity_now != sight.identity:  # guard: A40 F30 I9
        found.append(Blocked(Cause.DIRECTORY, f"{sight.config.directory} is another directory than at the start; restart if that is right"))
    if isinstance(sight.keep_list, str):  # guard: A46 F57 I9
        found.append(Blocked(Cause.KEEP_LIST, sight.keep_list))
    if isinstance(sight.protected, str):  # guard: A46 F57
        found.append(Blocked(Cause.PROTECT, sight.protected))
    return found


def _median(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]


@dataclass(frozen=True, slots=True)
class Outlook:
    """A ruling, and before which wall time (milliseconds) the image is not deleted; None while its rule holds."""

    ruling: Ruling
    not_before_ms: int | None


@dataclass(frozen=True, slots=True)
class Explained:
    """One base dir as cleanup sees it. ``next_ms``: its next cycle, None when it is not cleaned. The outlooks are the newest first."""

    config: DirConfig
    blocked: tuple[Blocked, ...]
    next_ms: int | None
    outlooks: tuple[Outlook, ...]


def outlooks(rulings: Sequence[Ruling], config: DirConfig, next_ms: int, cycle_ms: int) -> tuple[Outlook, ...]:
    """Predicts for each image when it goes at the earliest, if the next cycle is at ``next_ms`` and they are ``cycle_ms`` apart.

    What is dropped goes the oldest first, a few in each cycle. What is recent stays until it is not.
    """
    most = most_deletions(len(rulings))
    dropped = [ruling.entry for ruling in reversed(rulings) if not ruling.keeps]
    turn = {entry: next_ms + number // most * cycle_ms for number, entry in enumerate(dropped)}
    return tuple(Outlook(ruling, turn.get(ruling.entry, _old_ms(ruling, config, next_ms))) for ruling in rulings)


def _old_ms(ruling: Ruling, config: DirConfig, next_ms: int) -> int | None:
    return max(next_ms, ruling.version.timestamp_ms + config.keep_recent_ms) if ruling.rule is RetentionRule.RECENT else None
