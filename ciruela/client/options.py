"""The command line: ``ciruela [GLOBAL OPTIONS] COMMAND ...`` and ``ciruela-sync`` (protocol section 7.1).

Everything is checked for form here, so that a mistake in the command line is told before a key is asked for or a directory is read.
Nothing here reads a file. Mistakes end the program with usage on stderr and exit code 2, as argparse does it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from ciruela._version import __version__
from ciruela.client.common import Common, Progress, add_cache, add_common, common_of, whole
from ciruela.client.wishes import ClusterNames, Mode, SyncOptions, Wish, check_entry_point, parse_sync_options, split_clusters, split_wish
from ciruela.model.ids import ImageId, parse_image_id

__all__ = [
    "ClusterNames",
    "Common",
    "DemoOptions",
    "IndexOptions",
    "Mode",
    "Options",
    "Progress",
    "SyncOptions",
    "VerifyOptions",
    "Wish",
    "check_entry_point",
    "parse",
    "parse_sync",
    "split_clusters",
    "split_wish",
]

MAX_DEMO_NODES = 20


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """``ciruela index``."""

    common: Common
    directory: str
    cache: bool = True


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """``ciruela verify``. At most one of ``image`` and ``index_file`` is given."""

    common: Common
    directory: str
    image: ImageId | None
    index_file: str | None


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """``ciruela demo``; ``directory`` None means one that is at hand."""

    common: Common
    directory: str | None
    once: bool
    nodes: int


Options = SyncOptions | IndexOptions | VerifyOptions | DemoOptions


def _parse_index(prog: str, argv: Sequence[str]) -> IndexOptions:
    parser = argparse.ArgumentParser(
        prog=prog, description="Write the index of a directory (DIRSIGNATURE.v1) to stdout, and nothing else there."
    )
    parser.add_argument("directory", metavar="DIR")
    add_cache(parser)
    add_common(parser)
    found = parser.parse_args(list(argv))
    return IndexOptions(common_of(found), found.directory, found.cache)


def _parse_verify(prog: str, argv: Sequence[str]) -> VerifyOptions:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Tell whether a directory is exactly an image, and what differs; without an image, tell the image id of the directory.",
        epilog="Exit codes: 0 the same, 1 different or unreadable, 2 usage.",
    )
    parser.add_argument("directory", metavar="DIR")
    parser.add_argument("image", nargs="?", metavar="INDEX|IMAGE_ID", help="index file (.ds1), or 64 hexadecimal digits")
    add_common(parser)
    found = parser.parse_args(list(argv))
    if found.image is not None and re.fullmatch(r"[0-9a-fA-F]{64}", found.image):
        return VerifyOptions(common_of(found), found.directory, parse_image_id(found.image), None)
    return VerifyOptions(common_of(found), found.directory, None, found.image)


def _parse_demo(prog: str, argv: Sequence[str]) -> DemoOptions:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Start a small cluster on loopback addresses, sync a directory to it, verify every copy, leave nothing behind.",
    )
    parser.add_argument("directory", nargs="?", metavar="DIR", help="what to sync (default: installed Python packages)")
    parser.add_argument("--once", action="store_true", help="end after the verification; exit code 0 only if all copies are right")
    parser.add_argument("--nodes", type=whole(1, MAX_DEMO_NODES), default=3, metavar="N", help="number of daemons (default 3)")
    add_common(parser)
    found = parser.parse_args(list(argv))
    return DemoOptions(common_of(found), found.directory, found.once, found.nodes)


COMMANDS: dict[str, tuple[str, Callable[[str, Sequence[str]], Options]]] = {
    "sync": ("put directories on every server of a cluster", parse_sync_options),
    "index": ("write the index of a directory to stdout", _parse_index),
    "verify": ("compare a directory with an index or an image id", _parse_verify),
    "demo": ("try it: a cluster on this machine, with a real upload", _parse_demo),
}
"""Every command: a line about it, and what parses its options. ``ciruela --help`` and the dispatch read this table."""

_TAKE_VALUE = ("--port", "--disk-threads", "--hash", "--progress")


def _usage() -> str:
    lines = [f"  {name:<8} {about}" for name, (about, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ciruela [options] COMMAND ...",
            "",
            "commands:",
            *lines,
            "",
            "'ciruela COMMAND --help' tells the options of a command.",
            "",
        ]
    )


def _no_command(problem: str) -> NoReturn:
    sys.stderr.write(f"{_usage()}\nciruela: error: {problem}\n")
    raise SystemExit(2)


def parse(argv: Sequence[str]) -> Options:
    """The options of ``ciruela``. Raises SystemExit, as argparse does: 0 after ``--help`` and ``--version``, 2 after a mistake."""
    at = 0
    while at < len(argv) and argv[at].startswith("-"):
        word = argv[at]
        if word in ("-h", "--help"):
            sys.stdout.write(_usage())
            raise SystemExit(0)
        if word == "--version":
            sys.stdout.write(f"ciruela {__version__}\n")
            raise SystemExit(0)
        at += 2 if word in _TAKE_VALUE else 1
    if at >= len(argv):
        _no_command("no command given")
    name = argv[at]
    if name not in COMMANDS:
        _no_command(f"unknown command {name[:80]!r}")
    return COMMANDS[name][1](f"ciruela {name}", [*argv[:at], *argv[at + 1 :]])


def parse_sync(argv: Sequence[str]) -> SyncOptions:
    """The options of ``ciruela-sync``. Raises SystemExit as :func:`parse`."""
    return parse_sync_options("ciruela-sync", argv)
