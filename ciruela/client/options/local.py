"""The options of the commands that look at local files only: ``ciruela index`` and ``ciruela verify``.

The options of ``ciruela completion``.

The options of ``ciruela demo``.

The options of ``ciruela keygen``.
"""

from __future__ import annotations

import argparse
import re
from enum import Enum

from ciruela.client.options.common import (
    NOTHING,
    Common,
    Excluding,
    add_cache,
    add_common,
    add_excluding,
    common_of,
    excluding_of,
    whole,
    words,
)
from ciruela.model.ids import ImageId, parse_image_id
from ciruela.model.values import dataclass


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
    """Builds the options of ``ciruela keygen``."""
    if found.comment is not None and (not found.comment.isprintable() or len(found.comment) > 200):
        parser.error("--comment must be at most 200 printable characters")
    if found.file is not None and (not found.file or found.file.endswith("/")):
        parser.error("FILE must be the name of a file")
    return KeygenOptions(common_of(found), found.file, found.passphrase, found.comment)


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
    """Builds the options of ``ciruela demo``."""
    return DemoOptions(common_of(found), found.directory, found.once, found.nodes)


class Shell(Enum):
    """A shell whose completion can be written."""

    BASH = "bash"
    ZSH = "zsh"
    TCSH = "tcsh"
    FISH = "fish"


@dataclass(frozen=True, slots=True)
class CompletionOptions:
    """``ciruela completion``."""

    common: Common
    shell: Shell


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela completion``."""
    parser.description = "Write to stdout what SHELL needs to complete the command lines of ciruela and ciruela-sync."
    parser.epilog = "Exit codes: 0 done, 2 usage."
    parser.add_argument("shell", type=words(Shell), metavar="SHELL", help=", ".join(shell.value for shell in Shell))
    add_common(parser)


def completion_options(_: argparse.ArgumentParser, found: argparse.Namespace) -> CompletionOptions:
    """Builds the options of ``ciruela completion``."""
    return CompletionOptions(common_of(found), found.shell)


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """``ciruela index``."""

    common: Common
    directory: str
    cache: bool = True
    excluding: Excluding = NOTHING


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """``ciruela verify``. At most one of ``image`` and ``index_file`` is given."""

    common: Common
    directory: str
    image: ImageId | None
    index_file: str | None


def add_index(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela index``."""
    parser.description = "Write the index of a directory (DIRSIGNATURE.v1) to stdout, and nothing else there."
    parser.epilog = "Exit codes: 0 done, 1 something cannot be read, 2 usage."
    parser.add_argument("directory", metavar="DIR", help="the local directory")
    add_excluding(parser)
    add_cache(parser)
    add_common(parser)


def index_options(_: argparse.ArgumentParser, found: argparse.Namespace) -> IndexOptions:
    """Builds the options of ``ciruela index``."""
    return IndexOptions(common_of(found), found.directory, found.cache, excluding_of(found))


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela verify``."""
    parser.description = (
        "Tell whether a directory is exactly an image, and what differs; without an image, tell the image id of the directory."
    )
    parser.epilog = "Exit codes: 0 the same, 1 different or unreadable, 2 usage."
    parser.add_argument("directory", metavar="DIR", help="the local directory, which is read whole")
    parser.add_argument("image", nargs="?", metavar="INDEX|IMAGE_ID", help="index file (.ds1) or pipe, or 64 hexadecimal digits")
    add_common(parser)


def verify_options(_: argparse.ArgumentParser, found: argparse.Namespace) -> VerifyOptions:
    """Builds the options of ``ciruela verify``."""
    if found.image is not None and re.fullmatch(r"[0-9a-fA-F]{64}", found.image):
        return VerifyOptions(common_of(found), found.directory, parse_image_id(found.image), None)
    return VerifyOptions(common_of(found), found.directory, None, found.image)
