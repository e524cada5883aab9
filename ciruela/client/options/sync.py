"""The options of ``ciruela sync``: what goes where (protocol section 7.1)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ciruela.client.book import Rule
from ciruela.client.options.common import Common, add_cache, add_common, checked, common_of
from ciruela.client.options.signing import ClusterNames, Keys, add_keys, add_when, add_where, clusters_of, keys_of, rule_of
from ciruela.model.ids import ImageId, parse_image_id
from ciruela.model.vpath import VPath


class Mode(Enum):
    """What a directory should do at its path."""

    APPEND = "append"
    APPEND_WEAK = "append-weak"
    REPLACE = "replace"


@dataclass(frozen=True, slots=True)
class Wish:
    """One ``--append``, ``--append-weak`` or ``--replace``: a local directory and where it goes."""

    mode: Mode
    source: str
    vpath: VPath
    old_image: ImageId | None = None


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """``ciruela sync``. Intervals in seconds."""

    common: Common
    wishes: tuple[Wish, ...]
    clusters: tuple[ClusterNames, ...]
    keys: Keys
    rule: Rule
    print_progress_s: float
    cache: bool = True


def split_wish(mode: Mode, text: str) -> Wish:
    """The wish that ``SRC:DEST`` (``SRC:DEST[:OLD_ID]`` for a replace) spells. Raises ValueError with what is wrong.

    DEST begins at the last ``:/``, so SRC may hold colons. In a replace, what follows the last colon of DEST is OLD_ID; it may be empty,
    for a DEST that has a colon itself.
    """
    source, mark, rest = text.rpartition(":/")
    if not mark or not source:
        raise ValueError(f"{text[:200]!r} is not SRC:DEST, where SRC is a local directory and DEST begins with a slash")
    path = "/" + rest
    old_image = None
    if mode is Mode.REPLACE and ":" in rest:
        path, _, old = path.rpartition(":")
        if old:
            try:
                old_image = parse_image_id(old)
            except ValueError:
                raise ValueError(
                    f"OLD_ID must be 64 hexadecimal digits, not {old[:80]!r} (a DEST that has a colon itself ends with one more)"
                ) from None
    elif re.search(r":[0-9a-fA-F]{64}\Z", rest):
        raise ValueError(f"only --replace takes an OLD_ID, --{mode.value} does not")
    try:
        vpath = VPath.parse(path)
    except ValueError as error:
        raise ValueError(f"DEST {path[:200]!r}: {error}") from None
    return Wish(mode, source, vpath, old_image)


class _AddWish(argparse.Action):
    """Adds a wish to one list that all three options share, so that their order stays."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        del parser, option_string
        namespace.wishes = [*(namespace.wishes or []), values]


def _wish(mode: Mode) -> Callable[[str], Any]:
    return checked(lambda text: split_wish(mode, text))


def add_sync(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela sync``."""
    parser.usage = f"{parser.prog} [options] (--append | --append-weak | --replace) SRC:DEST ... ENTRY_POINT ..."
    parser.description = "Put directories on every server of a cluster."
    parser.epilog = "Exit codes: 0 done, 1 local problem, 2 usage or keys, 3 not enough hosts, 5 rejected, 6 conflict, 130 interrupted."
    what = parser.add_argument_group("what to upload (all may be repeated)")
    for mode, meta, text in (
        (Mode.APPEND, "SRC:DEST", "new path; fails where DEST has other content"),
        (Mode.APPEND_WEAK, "SRC:DEST", "the same, but other content there counts as success"),
        (Mode.REPLACE, "SRC:DEST[:OLD_ID]", "new or other content; with OLD_ID only in place of that image"),
    ):
        what.add_argument(f"--{mode.value}", action=_AddWish, type=_wish(mode), dest="wishes", metavar=meta, help=text)
    add_where(parser)
    add_keys(parser)
    add_when(parser)
    add_cache(parser)
    add_common(parser)


def sync_options(parser: argparse.ArgumentParser, found: argparse.Namespace) -> SyncOptions:
    """What ``ciruela sync`` was told. Ends with usage for what does not go together."""
    if not found.wishes:
        parser.error("nothing to upload: give --append, --append-weak or --replace SRC:DEST")
    clusters = clusters_of(parser, found)
    twice = [wish.vpath for number, wish in enumerate(found.wishes) if wish.vpath in {other.vpath for other in found.wishes[:number]}]
    if twice:
        parser.error(f"two directories for one path: {twice[0]}")
    return SyncOptions(
        common=common_of(found),
        wishes=tuple(found.wishes),
        clusters=clusters,
        keys=keys_of(found),
        rule=rule_of(found),
        print_progress_s=found.print_progress,
        cache=found.cache,
    )
