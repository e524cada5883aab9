"""What is left out of a directory that is indexed: patterns, files of patterns."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Excluding:
    """Patterns in the syntax of gitignore, from ``files`` and from the command line; ``ignore_file``: also from ``.ciruelaignore``."""

    files: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    ignore_file: bool = True


NOTHING = Excluding()
"""Only what ``.ciruelaignore`` says."""


def add_excluding(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` take what is left out."""
    group = parser.add_argument_group("what is left out (syntax of gitignore; the last pattern that fits decides)")
    group.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="leave out what fits (may be repeated)")
    group.add_argument("--exclude-from", action="append", default=[], metavar="FILE", help="a file with patterns (may be repeated)")
    group.add_argument(
        "--no-ignore-file",
        dest="ignore_file",
        action="store_false",
        help="do not read .ciruelaignore at the top of a directory",
    )


def excluding_of(found: argparse.Namespace) -> Excluding:
    """What was found of it."""
    return Excluding(tuple(found.exclude_from), tuple(found.exclude), found.ignore_file)
