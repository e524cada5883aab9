"""Why each image of a base dir stays or goes, and when at the earliest: for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ciruela.cleanup.health import Blocked
from ciruela.cleanup.rules import Rule, Ruling, most_deletions
from ciruela.model.dirconfig import DirConfig


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
    """What can be said of each image at its earliest, when the next cycle is at ``next_ms`` and they are ``cycle_ms`` apart.

    What is dropped goes the oldest first, a few in each cycle. What is recent stays until it is not.
    """
    most = most_deletions(len(rulings))
    dropped = [ruling.entry for ruling in reversed(rulings) if not ruling.keeps]
    turn = {entry: next_ms + number // most * cycle_ms for number, entry in enumerate(dropped)}
    return tuple(Outlook(ruling, turn.get(ruling.entry, _old_ms(ruling, config, next_ms))) for ruling in rulings)


def _old_ms(ruling: Ruling, config: DirConfig, next_ms: int) -> int | None:
    return max(next_ms, ruling.version.timestamp_ms + config.keep_recent_ms) if ruling.rule is Rule.RECENT else None
