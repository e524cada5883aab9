"""The options of every command, and how their values are read.

Also the options of what is left out of a directory that is indexed: patterns, files of patterns.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from enum import Enum
from typing import Any

from ciruela._version import __version__
from ciruela.index.digest import HashKind
from ciruela.interfaces import DEFAULT_PORT
from ciruela.model.units import parse_duration_ms
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath


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
    """Builds :class:`Excluding` from the parsed command line."""
    return Excluding(tuple(found.exclude_from), tuple(found.exclude), found.ignore_file)


LEAST_RATE_BYTES_S = 1000
"""The least rate that makes sense: below it the answers of one connection alone would take minutes, and it is likely a forgotten unit."""


class ProgressStyle(Enum):
    """Style in which progress is shown."""

    AUTO = "auto"
    TTY = "tty"
    PLAIN = "plain"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Common:
    """The options every command takes."""

    port: int
    disk_threads: int
    hash: HashKind | None
    verbosity: int
    progress: ProgressStyle


def checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """``check`` with its ValueErrors as argparse shows them: with their text."""

    def convert(text: str) -> Any:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def duration_s(text: str) -> float:
    """Seconds of a duration such as ``1h 30min``. Raises ValueError."""
    return parse_duration_ms(text) / 1000


def positive_duration_s(text: str) -> float:
    """As :func:`duration_s`, longer than nothing."""
    found = duration_s(text)
    if found <= 0:
        raise ValueError(f"{text!r} must be longer than nothing")
    return found


def vpath_of(text: str) -> VPath:
    """The virtual path that ``text`` spells; slashes at its end, as a shell completes them, are not part of it. Raises ValueError."""
    if not text.strip("/"):
        raise ValueError("there is no name after the slash (write /KEY/NAME)")
    return VPath.parse(text.rstrip("/"))


def fraction(text: str) -> float:
    """A number from 0 to 1. Raises ValueError."""
    value = float(text) if re.fullmatch(r"[0-9.]+", text) and text.count(".") <= 1 and text != "." else -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is not a number from 0 to 1")
    return value


_RATE_UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def rate_bytes_s(text: str) -> int:
    """Bytes a second of a rate such as ``10M``, ``512Ki`` or ``1.5MB/s``, at least 1,000. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([kKMG]i?|)B?(?:/s)?", text.strip())
    if found is None or found[2] not in _RATE_UNITS:
        raise ValueError(f"{text[:40]!r} is not a rate: bytes a second with k, M, G, Ki, Mi or Gi, such as 10M")
    value = int(float(found[1]) * _RATE_UNITS[found[2]])
    if value < LEAST_RATE_BYTES_S:
        raise ValueError(f"{text[:40]!r} is less than {LEAST_RATE_BYTES_S} bytes a second; is a unit missing, as in {text.strip()[:10]}M?")
    return value


def whole(low: int, high: int) -> Callable[[str], Any]:
    """Makes the reader of a whole number from ``low`` to ``high``, for argparse."""

    def check(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"{text[:40]!r} is not a whole number from {low} to {high}")
        return int(text)

    return checked(check)


def words(enum: type[Enum]) -> Callable[[str], Any]:
    """Makes the reader of one of the values of ``enum``, for argparse."""

    def check(text: str) -> Enum:
        try:
            return enum(text)
        except ValueError:
            raise ValueError(f"{text[:40]!r} is not one of {', '.join(str(word.value) for word in enum)}") from None

    return checked(check)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` take the options of every command."""
    common = parser.add_argument_group("options of every command (before or after it)")
    common.add_argument(
        "--port", type=whole(1, 65535), default=DEFAULT_PORT, metavar="N", help=f"port of the daemons (default {DEFAULT_PORT})"
    )
    common.add_argument(
        "--disk-threads", type=whole(1, 64), default=4, metavar="N", help="threads that read and hash local files (default 4)"
    )
    common.add_argument(
        "--hash",
        type=words(HashKind),
        metavar="KIND",
        help=f"hash of the index: {', '.join(kind.value for kind in HashKind)} "
        f"(default {HashKind.BLAKE3.value}, and {HashKind.BLAKE2B.value} for servers that may know no other)",
    )
    common.add_argument(
        "--progress",
        type=words(ProgressStyle),
        default=ProgressStyle.AUTO,
        metavar="HOW",
        help="auto, tty (live block), plain (lines) or none; auto is tty on a terminal",
    )
    volume = common.add_mutually_exclusive_group()
    volume.add_argument("-q", "--quiet", action="store_true", help="only problems and results")
    volume.add_argument("-v", "--verbose", action="store_true", help="more about every node")
    common.add_argument("--version", action="version", version=f"ciruela {__version__}")


def add_cache(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Let ``parser`` take the option of the commands that index directories again and again."""
    parser.add_argument(
        "--no-cache", dest="cache", action="store_false", help="read all files, also those that did not change since they were indexed"
    )


def common_of(found: argparse.Namespace) -> Common:
    """Builds :class:`Common` from the parsed command line."""
    return Common(
        port=found.port,
        disk_threads=found.disk_threads,
        hash=found.hash,
        verbosity=1 + bool(found.verbose) - bool(found.quiet),
        progress=found.progress,
    )
