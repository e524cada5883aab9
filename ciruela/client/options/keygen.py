"""The options of ``ciruela keygen``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from ciruela.client.options.common import Common, add_common, common_of


@dataclass(frozen=True, slots=True)
class KeygenOptions:
    """``ciruela keygen``; ``file`` None means the place where other commands look."""

    common: Common
    file: str | None
    passphrase: bool = True
    comment: str | None = None


def add_keygen(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela keygen``."""
    parser.description = (
        "Make an ed25519 key to sign uploads with: FILE, readable by you alone, and FILE.pub for the servers. Nothing is overwritten."
    )
    parser.epilog = "Exit codes: 0 done, 1 the files cannot be written or exist, 2 usage or no passphrase."
    parser.add_argument("file", nargs="?", metavar="FILE", help="where to (default ~/.ciruela/id_ed25519)")
    parser.add_argument(
        "--no-passphrase", dest="passphrase", action="store_false", help="do not ask for a passphrase: for machines, not for people"
    )
    parser.add_argument("--comment", metavar="TEXT", help="what to call the key in FILE.pub (default USER@HOST)")
    add_common(parser)


def keygen_options(parser: argparse.ArgumentParser, found: argparse.Namespace) -> KeygenOptions:
    """What ``ciruela keygen`` was told."""
    if found.comment is not None and (not found.comment.isprintable() or len(found.comment) > 200):
        parser.error("--comment must be at most 200 printable characters")
    if found.file is not None and (not found.file or found.file.endswith("/")):
        parser.error("FILE must be the name of a file")
    return KeygenOptions(common_of(found), found.file, found.passphrase, found.comment)
