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
from enum import Enum
from typing import Any, NoReturn

from ciruela._version import __version__
from ciruela.client.book import Rule
from ciruela.index.digest import HashKind
from ciruela.model.errors import FormatError
from ciruela.model.ids import ImageId, parse_image_id
from ciruela.model.units import parse_duration_ms
from ciruela.model.vpath import VPath
from ciruela.net.resolve import split_name
from ciruela.seams import DEFAULT_PORT

MAX_DEMO_NODES = 20


class Mode(Enum):
    """What a directory should do at its path."""

    APPEND = "append"
    APPEND_WEAK = "append-weak"
    REPLACE = "replace"


class Progress(Enum):
    """How progress is shown."""

    AUTO = "auto"
    TTY = "tty"
    PLAIN = "plain"
    NONE = "none"


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
class Common:
    """The options every command takes."""

    port: int
    disk_threads: int
    hash: HashKind
    verbosity: int
    progress: Progress


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


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """``ciruela index``."""

    common: Common
    directory: str


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """``ciruela demo``; ``directory`` None means one that is at hand."""

    common: Common
    directory: str | None
    once: bool
    nodes: int


Options = SyncOptions | IndexOptions | DemoOptions


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


def _checked(check: Callable[[str], Any]) -> Callable[[str], Any]:
    """``check`` with its ValueErrors as argparse shows them: with their text."""

    def convert(text: str) -> Any:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _seconds(text: str) -> float:
    return parse_duration_ms(text) / 1000


def _positive_seconds(text: str) -> float:
    seconds = _seconds(text)
    if seconds <= 0:
        raise ValueError(f"{text!r} must be longer than nothing")
    return seconds


def _fraction(text: str) -> float:
    value = float(text) if re.fullmatch(r"[0-9.]+", text) and text.count(".") <= 1 and text != "." else -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is not a number from 0 to 1")
    return value


def _whole(low: int, high: int) -> Callable[[str], Any]:
    def check(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"{text[:40]!r} is not a whole number from {low} to {high}")
        return int(text)

    return _checked(check)


def _words(enum: type[Enum]) -> Callable[[str], Any]:
    def check(text: str) -> Enum:
        try:
            return enum(text)
        except ValueError:
            raise ValueError(f"{text[:40]!r} is not one of {', '.join(str(word.value) for word in enum)}") from None

    return _checked(check)


def _add_common(parser: argparse.ArgumentParser) -> None:
    common = parser.add_argument_group("options of every command (before or after it)")
    common.add_argument(
        "--port", type=_whole(1, 65535), default=DEFAULT_PORT, metavar="N", help=f"port of the daemons (default {DEFAULT_PORT})"
    )
    common.add_argument(
        "--disk-threads", type=_whole(1, 64), default=4, metavar="N", help="threads that read and hash local files (default 4)"
    )
    common.add_argument(
        "--hash",
        type=_words(HashKind),
        default=HashKind.BLAKE2B,
        metavar="KIND",
        help=f"hash of the index: {', '.join(kind.value for kind in HashKind)} (default {HashKind.BLAKE2B.value})",
    )
    common.add_argument(
        "--progress",
        type=_words(Progress),
        default=Progress.AUTO,
        metavar="HOW",
        help="auto, tty (live block), plain (lines) or none; auto is tty on a terminal",
    )
    volume = common.add_mutually_exclusive_group()
    volume.add_argument("-q", "--quiet", action="store_true", help="only problems and results")
    volume.add_argument("-v", "--verbose", action="store_true", help="more about every node")
    common.add_argument("--version", action="version", version=f"ciruela {__version__}")


def _common(found: argparse.Namespace) -> Common:
    return Common(
        port=found.port,
        disk_threads=found.disk_threads,
        hash=found.hash,
        verbosity=1 + bool(found.verbose) - bool(found.quiet),
        progress=found.progress,
    )


def _wish(mode: Mode) -> Callable[[str], Any]:
    return _checked(lambda text: split_wish(mode, text))


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
        type=_checked(_seconds),
        default=rule.early_timeout_s,
        metavar="DURATION",
        help="after this time (30s), enough hosts are enough",
    )
    when.add_argument(
        "--early-fraction",
        type=_checked(_fraction),
        default=rule.early_fraction,
        metavar="F",
        help="enough is this part of the hosts (0.75)",
    )
    when.add_argument(
        "--early-hosts", type=_whole(1, 1_000_000), default=rule.early_hosts, metavar="N", help="and at least so many hosts (3)"
    )
    when.add_argument(
        "-t",
        "--deadline",
        type=_checked(_positive_seconds),
        default=rule.deadline_s,
        metavar="DURATION",
        help="give up after this time (30min)",
    )
    parser.add_argument(
        "--print-progress", type=_checked(_positive_seconds), default=30.0, metavar="DURATION", help="interval of progress lines (30s)"
    )
    _add_common(parser)
    return parser


def _parse_sync(prog: str, argv: Sequence[str]) -> SyncOptions:
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
        common=_common(found),
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
    )


def _parse_index(prog: str, argv: Sequence[str]) -> IndexOptions:
    parser = argparse.ArgumentParser(
        prog=prog, description="Write the index of a directory (DIRSIGNATURE.v1) to stdout, and nothing else there."
    )
    parser.add_argument("directory", metavar="DIR")
    _add_common(parser)
    found = parser.parse_args(list(argv))
    return IndexOptions(_common(found), found.directory)


def _parse_demo(prog: str, argv: Sequence[str]) -> DemoOptions:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Start a small cluster on loopback addresses, sync a directory to it, verify every copy, leave nothing behind.",
    )
    parser.add_argument("directory", nargs="?", metavar="DIR", help="what to sync (default: installed Python packages)")
    parser.add_argument("--once", action="store_true", help="end after the verification; exit code 0 only if all copies are right")
    parser.add_argument("--nodes", type=_whole(1, MAX_DEMO_NODES), default=3, metavar="N", help="number of daemons (default 3)")
    _add_common(parser)
    found = parser.parse_args(list(argv))
    return DemoOptions(_common(found), found.directory, found.once, found.nodes)


COMMANDS: dict[str, tuple[str, Callable[[str, Sequence[str]], Options]]] = {
    "sync": ("put directories on every server of a cluster", _parse_sync),
    "index": ("write the index of a directory to stdout", _parse_index),
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
    return _parse_sync("ciruela-sync", argv)
