"""Which files of a directory are left out of its index: patterns in the syntax of gitignore.

What is left out is left out before anything is read, so an image is what its index says, whatever the patterns were.
"""

from __future__ import annotations

from collections.abc import Sequence

from pathspec import GitIgnoreSpec

from ciruela.model.errors import ConfigError

MOST_LINES = 10_000
"""Each name of a directory is compared with each pattern; more than this is no list that somebody wrote."""


class Excludes:
    """Patterns by their lines, and where each line is from. Of several that fit, the last one decides; ``!`` takes something in again.

    Raises ConfigError for a line that is no pattern.
    """

    def __init__(self, lines: Sequence[tuple[str, str]]) -> None:
        if len(lines) > MOST_LINES:
            raise ConfigError(f"{lines[MOST_LINES][1]}: more than {MOST_LINES} patterns; name directories instead of single files")
        for line, origin in lines:
            try:
                GitIgnoreSpec.from_lines([line])
            except ValueError as error:
                raise ConfigError(f"{origin}: {line[:200]!r} is not a pattern of gitignore: {error}") from None
        self._spec = GitIgnoreSpec.from_lines([line for line, _ in lines])

    def __bool__(self) -> bool:
        """Whether there is any pattern at all."""
        return any(pattern.include is not None for pattern in self._spec.patterns)

    def leave_out(self, path: str, *, directory: bool) -> bool:
        """Whether ``path``, relative to the top of the directory, is left out; what is below a directory that is left out is not asked."""
        return self._spec.match_file(f"{path}/" if directory else path)
