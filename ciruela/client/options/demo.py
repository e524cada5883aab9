"""The options of ``ciruela demo``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from ciruela.client.options.common import Common, add_common, common_of, whole

MAX_NODES = 20


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """``ciruela demo``; ``directory`` None means one that is at hand."""

    common: Common
    directory: str | None
    once: bool
    nodes: int


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela demo``."""
    parser.description = "Start a small cluster on loopback addresses, sync a directory to it, verify every copy, leave nothing behind."
    parser.add_argument("directory", nargs="?", metavar="DIR", help="what to sync (default: installed Python packages)")
    parser.add_argument("--once", action="store_true", help="end after the verification; exit code 0 only if all copies are right")
    parser.add_argument("--nodes", type=whole(1, MAX_NODES), default=3, metavar="N", help="number of daemons (default 3)")
    add_common(parser)


def demo_options(_: argparse.ArgumentParser, found: argparse.Namespace) -> DemoOptions:
    """What ``ciruela demo`` was told."""
    return DemoOptions(common_of(found), found.directory, found.once, found.nodes)
