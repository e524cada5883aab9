"""The options of the commands that look at local files only: ``ciruela index`` and ``ciruela verify``."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from ciruela.client.options.common import Common, add_cache, add_common, common_of
from ciruela.client.options.excluding import NOTHING, Excluding, add_excluding, excluding_of
from ciruela.model.ids import ImageId, parse_image_id


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
    """What ``ciruela index`` was told."""
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
    """What ``ciruela verify`` was told."""
    if found.image is not None and re.fullmatch(r"[0-9a-fA-F]{64}", found.image):
        return VerifyOptions(common_of(found), found.directory, parse_image_id(found.image), None)
    return VerifyOptions(common_of(found), found.directory, None, found.image)
