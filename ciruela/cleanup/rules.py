"""The keep rules: which images of a base dir stay, and which rule says so (protocol section 5.13). Pure.

Rows that differ from the reference:

- the age of an image is that of its newest signature, as everywhere else here; the reference takes the oldest, by mistake (section 12, C3);
- the newest image stays whatever the other rules say;
- what is in use stays, and one cycle removes at most :func:`most_deletions`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum

from ciruela.model.config import DirConfig
from ciruela.model.values import dataclass
from ciruela.model.versions import Version

LEAST_CAP = 2
"""So many images one cycle may remove from any base dir (threats 6.10)."""

CAP_DIVISOR = 5
"""And else one part in so many: 20 % (threats 6.10)."""


class RetentionRule(Enum):
    """Retention rule that keeps an image, or drops it; the values are for people."""

    FEW = "no more than keep-min-directories are here"
    RECENT = "signed within keep-recent"
    PROTECTED = "a protected link leads to it"
    LISTED = "on the keep list"
    MINIMUM = "one of the newest keep-min-directories"
    NEWEST = "the newest"
    IN_USE = "in use"
    OLD = "older than keep-recent"
    SURPLUS = "beyond keep-max-directories"

    @property
    def keeps(self) -> bool:
        """Tells whether an image under this rule stays."""
        return self not in (RetentionRule.OLD, RetentionRule.SURPLUS)


@dataclass(frozen=True, slots=True)
class Ruling:
    """Fate of one image, and the rule that decides it."""

    entry: str
    version: Version
    rule: RetentionRule

    @property
    def keeps(self) -> bool:
        """Tells whether the image stays."""
        return self.rule.keeps


def rulings(
    entries: Mapping[str, Version],
    config: DirConfig,
    listed: Collection[str],
    in_use: Collection[str],
    now_ms: int,
    protected: Collection[str] = (),
) -> list[Ruling]:
    """A ruling for each of ``entries``, the committed images of one base dir by name; the newest first.

    ``listed``, ``in_use`` and ``protected`` are names, too. A time of signature is milliseconds since 1970, of an image without signatures
    0.
    """
    newest_first = sorted(entries, key=lambda entry: (entries[entry], entry), reverse=True)
    if len(entries) <= config.keep_min_directories:
        return [Ruling(entry, entries[entry], RetentionRule.FEW) for entry in newest_first]
    found: dict[str, RetentionRule] = {}
    recent = 0
    for entry in newest_first:
        if entries[entry].timestamp_ms < now_ms - config.keep_recent_ms:  # guard: I9, -> True
            found[entry] = RetentionRule.OLD
        else:
            recent += 1
            found[entry] = RetentionRule.RECENT if recent <= config.keep_max_directories else RetentionRule.SURPLUS
        if not found[entry].keeps and entry in protected:
            found[entry] = RetentionRule.PROTECTED
        if not found[entry].keeps and entry in listed:  # guard: A46 I9
            found[entry] = RetentionRule.LISTED
    lacking = config.keep_min_directories - sum(rule.keeps for rule in found.values())
    dropped = [entry for entry in newest_first if not found[entry].keeps]
    for entry in dropped[: max(0, lacking)]:  # guard: I9
        found[entry] = RetentionRule.MINIMUM
    if not found[newest_first[0]].keeps:  # guard: I9
        found[newest_first[0]] = RetentionRule.NEWEST
    for entry in dropped:
        if not found[entry].keeps and entry in in_use:  # guard: F58 I9
            found[entry] = RetentionRule.IN_USE
    return [Ruling(entry, entries[entry], found[entry]) for entry in newest_first]


def most_deletions(count: int) -> int:
    """Gives how many of ``count`` images of a base dir one cycle may remove: a fifth, but two in any case (threats 6.10)."""
    return max(LEAST_CAP, count // CAP_DIVISOR)  # guard: I9, -> count
