"""The patterns of what is left out of a directory: ``.ciruelaignore`` in it, files that the user named, the command line; in this order."""

from __future__ import annotations

from ciruela.client.options.excluding import Excluding
from ciruela.client.orders import LocalProblem
from ciruela.disk.excludes import Excludes
from ciruela.disk.safedir import SafeDir

IGNORE_FILE = ".ciruelaignore"

MAX_BYTES = 1024 * 1024
"""Longest file of patterns; more is no file that somebody wrote for this."""


def excludes_for(source: str, wanted: Excluding) -> Excludes | None:
    """What is left out of the directory ``source``; None for nothing. Blocking: call it in a thread.

    Raises LocalProblem for a file that cannot be read and ConfigError for a line that is no pattern.
    """
    lines: list[tuple[str, str]] = []
    if wanted.ignore_file:
        shown = f"{source.rstrip('/')}/{IGNORE_FILE}"
        lines += _lines(_of_directory(source, shown), shown)
    for name in wanted.files:
        lines += _lines(_named(name), name)
    lines += [(pattern, "--exclude") for pattern in wanted.patterns]
    return (Excludes(lines) or None) if lines else None


def _of_directory(source: str, shown: str) -> bytes:
    """The ignore file of a directory, empty when there is none. It is part of the directory, so a symlink is not followed."""
    try:
        with SafeDir.at(source) as top:
            if top.stat(IGNORE_FILE) is None:
                return b""
            with top.open_read(IGNORE_FILE) as file:
                return file.read_at(MAX_BYTES + 1, 0)
    except OSError as error:
        raise LocalProblem(f"{shown} cannot be read: {error.strerror or error}; mend it, or use --no-ignore-file") from None


def _named(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise LocalProblem(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _lines(data: bytes, name: str) -> list[tuple[str, str]]:
    if len(data) > MAX_BYTES:
        raise LocalProblem(f"{name} is larger than {MAX_BYTES // 1024} KiB, and cannot be a list of patterns")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise LocalProblem(f"{name} is not a text in UTF-8") from None
    return [(line, f"{name}:{number}") for number, line in enumerate(text.splitlines(), 1) if line.strip()]
