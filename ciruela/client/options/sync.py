"""The options of ``ciruela sync``: what goes where (protocol section 7.1).

The options of ``ciruela upload``, the old name of ``ciruela sync`` (protocol section 7.1).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from enum import Enum
from typing import Any

from ciruela.client.options.common import (
    NOTHING,
    Common,
    Excluding,
    add_cache,
    add_common,
    add_excluding,
    checked,
    common_of,
    excluding_of,
    rate_bytes_s,
    vpath_of,
    whole,
)
from ciruela.client.options.signing import (
    ClusterNames,
    Keys,
    add_keys,
    add_when,
    add_where,
    check_entry_point,
    check_no_scheme,
    clusters_of,
    keys_of,
    rule_of,
)
from ciruela.client.tracker import CompletionRule
from ciruela.model.ids import ImageId, parse_image_id
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath

CONNECTIONS = 3
"""Hosts of each cluster that the client gives its data to, if not said otherwise."""

MOST_CONNECTIONS = 16


class Mode(Enum):
    """Mode of an upload: what a directory should do at its path."""

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
    """``ciruela sync``. Intervals in seconds. ``exit_code``: whether nothing to do has an exit code of its own.

    ``initial_connections``: hosts of each cluster that the client gives its data to.
    ``allow_empty``: whether a directory without files may replace what is there.
    """

    common: Common
    wishes: tuple[Wish, ...]
    clusters: tuple[ClusterNames, ...]
    keys: Keys
    rule: CompletionRule
    print_progress_s: float
    cache: bool = True
    excluding: Excluding = NOTHING
    limit_bytes_s: int | None = None
    json: bool = False
    dry_run: bool = False
    exit_code: bool = False
    allow_empty: bool = False
    initial_connections: int = CONNECTIONS


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
        vpath = vpath_of(path)
    except ValueError as error:
        raise ValueError(f"DEST {path[:200]!r}: {error}") from None
    return Wish(mode, source, vpath, old_image)


class _AddWish(argparse.Action):
    """Adds a wish to one list that all three options share, so that their order stays."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        del parser, option_string
        namespace.wishes = [*(getattr(namespace, "wishes", None) or []), values]


def _wish(mode: Mode) -> Callable[[str], Any]:
    return checked(lambda text: split_wish(mode, text))


EXIT_CODES = (
    "Exit codes: 0 done, or enough hosts have it; 1 local problem; 2 usage or keys; 3 network or deadline; 4 --require is not met, but the "
    "early rule is, or the missing hosts cannot be reached; 5 rejected; 6 conflict; 7 a hook failed after all was distributed; "
    "8 nothing to do (only with --exit-code); 130 interrupted; 141 nobody reads stdout any more; 143 terminated. "
    "Any other code is a failure."
)


def add_sync(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela sync``."""
    parser.usage = f"{parser.prog} [options] (--append | --append-weak | --replace) SRC:DEST ... ENTRY_POINT ..."
    parser.description = "Put directories on every server of a cluster."
    parser.epilog = EXIT_CODES
    what = parser.add_argument_group("what to upload (all may be repeated)")
    for mode, meta, text in (
        (Mode.APPEND, "SRC:DEST", "new path; fails where DEST has other content"),
        (Mode.APPEND_WEAK, "SRC:DEST", "the same, but other content there counts as success"),
        (Mode.REPLACE, "SRC:DEST[:OLD_ID]", "new or other content; with OLD_ID only in place of that image"),
    ):
        what.add_argument(f"--{mode.value}", action=_AddWish, type=_wish(mode), dest="wishes", metavar=meta, help=text)
    what.add_argument("-n", "--dry-run", action="store_true", help="only ask what the nodes would say; nothing can be uploaded by it")
    what.add_argument("--exit-code", action="store_true", help="exit with 8, and upload nothing, when every node has exactly this already")
    what.add_argument("--allow-empty", action="store_true", help="let --replace put a directory without any file in place of what is there")
    add_excluding(parser)
    add_where(parser)
    add_keys(parser)
    add_when(parser)
    how = parser.add_argument_group("how")
    how.add_argument(
        "--limit-rate",
        type=checked(rate_bytes_s),
        metavar="RATE",
        help="send no more than so many bytes a second, to all nodes together: 10M",
    )
    how.add_argument(
        "--initial-connections",
        type=whole(1, MOST_CONNECTIONS),
        default=CONNECTIONS,
        metavar="N",
        help=f"give the data to so many hosts of each cluster ({CONNECTIONS}); the others get it from them",
    )
    how.add_argument("--json", action="store_true", help="JSON Lines on stdout, everything for people on stderr")
    add_cache(how)
    add_common(parser)


def sync_options(parser: argparse.ArgumentParser, found: argparse.Namespace) -> SyncOptions:
    """Builds the options of ``ciruela sync``. Ends with usage for what does not go together."""
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
        excluding=excluding_of(found),
        limit_bytes_s=found.limit_rate,
        json=found.json,
        dry_run=found.dry_run,
        exit_code=found.exit_code,
        allow_empty=found.allow_empty,
        initial_connections=found.initial_connections,
    )


@dataclass(frozen=True, slots=True)
class UploadTarget:
    """``HOST:/VPATH``."""

    name: str
    vpath: VPath


@dataclass(frozen=True, slots=True)
class UploadOptions:
    """``ciruela upload``."""

    common: Common
    source: str
    mode: Mode
    targets: tuple[UploadTarget, ...]
    keys: Keys
    cache: bool


def split_target(text: str) -> UploadTarget:
    """Parses ``HOST:/VPATH``; HOST may have a port. Raises ValueError."""
    check_no_scheme(text)
    name, mark, rest = text.partition(":/")
    if not mark or not name:
        raise ValueError(f"{text[:200]!r} is not HOST:/VPATH")
    check_entry_point(name)
    return UploadTarget(name, vpath_of("/" + rest))


def add_upload(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela upload``."""
    parser.usage = f"{parser.prog} [options] -d DIR HOST:/VPATH ..."
    parser.description = "Deprecated: use ciruela sync. Put a directory on every server of some clusters."
    parser.epilog = "Exit codes: 0 done, 1 some target failed, 2 nothing was sent."
    parser.add_argument("targets", nargs="*", metavar="HOST:/VPATH", help="any node, and the virtual path there")
    parser.add_argument("-d", "--directory", required=True, metavar="DIR", help="the local directory")
    parser.add_argument("--replace", action="store_true", help="put it in place of what is there")
    parser.add_argument("-x", "--no-fail-on-conflict", action="store_true", help="other content at VPATH counts as success")
    keys = parser.add_argument_group("keys (default: as ciruela sync)")
    keys.add_argument("-i", "--identity", action="extend", nargs="+", default=[], metavar="FILE", help="private key files")
    keys.add_argument(
        "-k", "--key-from-env", action="extend", nargs="+", default=[], metavar="VAR", help="variables that hold a private key"
    )
    add_cache(parser)
    add_common(parser)


def upload_options(parser: argparse.ArgumentParser, found: argparse.Namespace) -> UploadOptions:
    """Builds the options of ``ciruela upload``.

    ``-i`` and ``-k`` take all words that follow; the reference takes targets for keys, too, here they stay targets.
    """
    words = [*found.targets, *(found.after or ())]
    for taken in (found.identity, found.key_from_env):
        words += [word for word in taken if ":/" in word]
    keys = Keys(*(tuple(word for word in taken if ":/" not in word) for taken in (found.identity, found.key_from_env)))
    try:
        targets = tuple(dict.fromkeys(map(split_target, words)))
    except ValueError as error:
        parser.error(str(error))
    if not targets:
        parser.error("no HOST:/VPATH: name at least one host, and where to put the directory there")
    if found.replace and found.no_fail_on_conflict:
        parser.error("--replace and -x do not go together: what is replaced is in no conflict")
    mode = Mode.REPLACE if found.replace else Mode.APPEND_WEAK if found.no_fail_on_conflict else Mode.APPEND
    return UploadOptions(common_of(found), found.directory, mode, targets, keys, found.cache)
