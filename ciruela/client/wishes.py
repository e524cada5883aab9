"""The options of ``ciruela sync``: what goes where, with which keys, and when it is finished (protocol section 7.1)."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ciruela.client.book import Rule
from ciruela.client.common import Common, add_cache, add_common, checked, common_of, duration_s, fraction, positive_duration_s, whole
from ciruela.model.errors import FormatError
from ciruela.model.ids import ImageId, parse_image_id
from ciruela.model.vpath import VPath
from ciruela.net.resolve import split_name
from ciruela.seams import DEFAULT_PORT


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
class ClusterNames:
    """The entry points of one cluster, and what it is called on the screen."""

    names: tuple[str, ...]

    @property
    def label(self) -> str:
        """The only name, or the first with the number of the others."""
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]}+{len(self.names) - 1}"


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """``ciruela sync``. Intervals in seconds."""

    common: Common
    wishes: tuple[Wish, ...]
    clusters: tuple[ClusterNames, ...]
    identities: tuple[str, ...]
    env_keys: tuple[str, ...]
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


def split_clusters(before: Sequence[str], after: Sequence[str] | None, multiple: bool) -> tuple[ClusterNames, ...]:
    """The clusters that the entry points name: one each, or, with ``multiple``, one per group between ``--``.

    ``after`` is what follows the first bare ``--`` of the command line, None when there is none. Raises ValueError.
    """
    names = [*before, *(after or ())]
    for name in names:
        if name == "--" and multiple:
            continue
        if name == "--":
            raise ValueError("-- between entry points separates clusters only with -m")
        if name.startswith("-"):
            raise ValueError(f"{name!r} stands after --, where only entry points may follow; put options first")
        check_entry_point(name)
    if not multiple:
        return tuple(ClusterNames((name,)) for name in dict.fromkeys(names))
    groups: list[list[str]] = [list(before)]
    if after is not None:
        groups.append([])
        for name in after:
            if name == "--":
                groups.append([])
            else:
                groups[-1].append(name)
    return tuple(ClusterNames(tuple(dict.fromkeys(group))) for group in groups if group)


def check_entry_point(name: str) -> None:
    """Raise ValueError unless ``name`` can be a host, ``host:port``, or ``[IPv6]:port``. It is resolved later."""
    try:
        split_name(name, DEFAULT_PORT)
    except FormatError as error:
        raise ValueError(str(error)) from None


class _AddWish(argparse.Action):
    """Adds a wish to one list that all three options share, so that their order stays."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        del parser, option_string
        namespace.wishes = [*(namespace.wishes or []), values]


def _wish(mode: Mode) -> Callable[[str], Any]:
    return checked(lambda text: split_wish(mode, text))


def _sync_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [options] (--append | --append-weak | --replace) SRC:DEST ... ENTRY_POINT ...",
        description="Put directories on every server of a cluster.",
        epilog="Exit codes: 0 done, 1 local problem, 2 usage or keys, 3 not enough hosts, 5 rejected, 6 conflict, 130 interrupted.",
    )
    what = parser.add_argument_group("what to upload (all may be repeated)")
    for mode, meta, text in (
        (Mode.APPEND, "SRC:DEST", "new path; fails where DEST has other content"),
        (Mode.APPEND_WEAK, "SRC:DEST", "the same, but other content there counts as success"),
        (Mode.REPLACE, "SRC:DEST[:OLD_ID]", "new or other content; with OLD_ID only in place of that image"),
    ):
        what.add_argument(f"--{mode.value}", action=_AddWish, type=_wish(mode), dest="wishes", metavar=meta, help=text)
    where = parser.add_argument_group("where to")
    where.add_argument(
        "entry_points", nargs="*", metavar="ENTRY_POINT", help="host, host:port or [IPv6]:port of any node; each is a cluster"
    )
    where.add_argument(
        "-m", "--multiple", action="store_true", help="all names are one cluster; a bare -- between names separates clusters"
    )
    keys = parser.add_argument_group("keys (default: $CIRUELA_KEY, ssh keys in ~/.ssh and ~/.ciruela, ssh-agent)")
    keys.add_argument("-i", "--identity", action="append", default=[], metavar="FILE", help="private key file (may be repeated)")
    keys.add_argument("-k", "--key-from-env", action="append", default=[], metavar="VAR", help="variable that holds a private key")
    when = parser.add_argument_group("when it is finished")
    rule = Rule()
    when.add_argument(
        "-e",
        "--early-timeout",
        type=checked(duration_s),
        default=rule.early_timeout_s,
        metavar="DURATION",
        help="after this time (30s), enough hosts are enough",
    )
    when.add_argument(
        "--early-fraction",
        type=checked(fraction),
        default=rule.early_fraction,
        metavar="F",
        help="enough is this part of the hosts (0.75)",
    )
    when.add_argument(
        "--early-hosts", type=whole(1, 1_000_000), default=rule.early_hosts, metavar="N", help="and at least so many hosts (3)"
    )
    when.add_argument(
        "-t",
        "--deadline",
        type=checked(positive_duration_s),
        default=rule.deadline_s,
        metavar="DURATION",
        help="give up after this time (30min)",
    )
    parser.add_argument(
        "--print-progress", type=checked(positive_duration_s), default=30.0, metavar="DURATION", help="interval of progress lines (30s)"
    )
    add_cache(parser)
    add_common(parser)
    return parser


def parse_sync_options(prog: str, argv: Sequence[str]) -> SyncOptions:
    """The options of the program called ``prog``. Raises SystemExit, as argparse does."""
    parser = _sync_parser(prog)
    cut = argv.index("--") if "--" in argv else None
    found = parser.parse_intermixed_args(list(argv if cut is None else argv[:cut]))
    if not found.wishes:
        parser.error("nothing to upload: give --append, --append-weak or --replace SRC:DEST")
    try:
        clusters = split_clusters(found.entry_points, None if cut is None else argv[cut + 1 :], found.multiple)
    except ValueError as error:
        parser.error(str(error))
    if not clusters:
        parser.error("no ENTRY_POINT: name at least one host of the cluster")
    twice = [wish.vpath for number, wish in enumerate(found.wishes) if wish.vpath in {other.vpath for other in found.wishes[:number]}]
    if twice:
        parser.error(f"two directories for one path: {twice[0]}")
    return SyncOptions(
        common=common_of(found),
        wishes=tuple(found.wishes),
        clusters=clusters,
        identities=tuple(found.identity),
        env_keys=tuple(found.key_from_env),
        rule=Rule(
            early_hosts=found.early_hosts,
            early_fraction=found.early_fraction,
            early_timeout_s=found.early_timeout,
            deadline_s=found.deadline,
        ),
        print_progress_s=found.print_progress,
        cache=found.cache,
    )
