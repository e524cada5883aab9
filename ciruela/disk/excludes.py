"""Exclude patterns in the syntax of gitignore: they leave files of a directory out of its index.

What is left out is left out before anything is read, so an image is what its index says, whatever the patterns were.

pathspec turns patterns into regular expressions for whole paths, which also fit what is below a directory that a pattern names. Here each
directory is decided before anything in it is looked at, as git does it, so a pattern counts only where it fits the entry itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ciruela.model.errors import ConfigError

MOST_LINES = 10_000
"""Each name of a directory is compared with each pattern; more than this is no list that somebody wrote."""

_BELOW = "ps_d"
"""pathspec's name for the slash behind a directory that a pattern fits."""


class Excludes:
    """Patterns by their lines, and where each line is from. Of several that fit, the last one decides; ``!`` takes something in again.

    Raises ConfigError for a line that is no pattern.
    """

    def __init__(self, lines: Sequence[tuple[str, str]]) -> None:
        from pathspec import GitIgnoreSpec  # here, because it takes longer to load than most directories to index

        if len(lines) > MOST_LINES:
            raise ConfigError(f"{lines[MOST_LINES][1]}: more than {MOST_LINES} patterns; name directories instead of single files")
        self._patterns: list[tuple[re.Pattern[str], bool]] = []
        for line, origin in lines:
            try:
                (pattern,) = GitIgnoreSpec.from_lines([line]).patterns
            except ValueError as error:
                raise ConfigError(f"{origin}: {line[:200]!r} is not a pattern of gitignore: {error}") from None
            if pattern.include is not None and pattern.regex is not None:
                self._patterns.insert(0, (pattern.regex, pattern.include))

    def __bool__(self) -> bool:
        """Tells whether there is any pattern."""
        return bool(self._patterns)

    def leave_out(self, path: str, *, directory: bool) -> bool:
        """Tells whether ``path``, relative to the top, is left out. Must not be asked below a directory that is left out."""
        return next((left_out for regex, left_out in self._patterns if _fits(regex, path, directory)), False)


def _fits(regex: re.Pattern[str], path: str, directory: bool) -> bool:
    for found in regex.finditer(f"{path}/" if directory else path):
        if found.groupdict().get(_BELOW) is None:
            return regex.search(path) is not None
        if found.start(_BELOW) == len(path):
            return True
    return False
