"""Options of the commands that sign something for a cluster and wait until its nodes have it.

They include the keys of other people that a command trusts, and whether it goes on where these prove nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ciruela.client.options.common import checked, duration_s, fraction, positive_duration_s, whole
from ciruela.client.require import parse_requirement
from ciruela.client.tracker import CompletionRule
from ciruela.interfaces import DEFAULT_PORT
from ciruela.model.errors import FormatError
from ciruela.model.values import dataclass
from ciruela.net.resolve import refuse_scheme, split_name


@dataclass(frozen=True, slots=True)
class Trusting:
    """``files`` hold trusted keys besides the usual one; ``unverified``: sign also what no trusted key signed before."""

    files: tuple[str, ...] = ()
    unverified: bool = False


NOBODY_ELSE = Trusting()
"""Only the user's own keys, and those of the usual file."""


def add_trust(parser: argparse.ArgumentParser, *, signs: bool) -> None:
    """Let ``parser`` take trusted keys and, where the command ``signs`` what a server shows, that this need not be proved."""
    trust = parser.add_argument_group("whose signatures are believed (yours, and those of ~/.config/ciruela/trusted_keys)")
    trust.add_argument(
        "--trusted-keys",
        action="append",
        default=[],
        metavar="FILE",
        help="public keys that are trusted as well, as in authorized_keys (may be repeated)",
    )
    if signs:
        trust.add_argument(
            "--unverified", action="store_true", help="go on although no trusted key signed what the server shows: you vouch for it"
        )


def trusting_of(found: argparse.Namespace) -> Trusting:
    """Builds :class:`Trusting` from the parsed command line."""
    return Trusting(tuple(found.trusted_keys), getattr(found, "unverified", False))


@dataclass(frozen=True, slots=True)
class ClusterNames:
    """The entry points of one cluster, and what it is called on the screen."""

    names: tuple[str, ...]

    @property
    def label(self) -> str:
        """The only name, or the first with the number of the others."""
        return self.names[0] if len(self.names) == 1 else f"{self.names[0]}+{len(self.names) - 1}"


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


def check_no_scheme(text: str) -> None:
    """Raise ValueError for what begins like the address of a page, as that of a status page does."""
    try:
        refuse_scheme(text)
    except FormatError as error:
        raise ValueError(str(error)) from None


def check_entry_point(name: str) -> None:
    """Raise ValueError unless ``name`` can be a host, ``host:port``, or ``[IPv6]:port``. It is resolved later."""
    try:
        split_name(name, DEFAULT_PORT)
    except FormatError as error:
        raise ValueError(str(error)) from None


def add_where(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` take entry points."""
    where = parser.add_argument_group("where to")
    where.add_argument(
        "entry_points", nargs="*", metavar="ENTRY_POINT", help="host, host:port or [IPv6]:port of any node; each is a cluster"
    )
    where.add_argument(
        "-m", "--multiple", action="store_true", help="all names are one cluster; a bare -- between names separates clusters"
    )


def clusters_of(parser: argparse.ArgumentParser, found: argparse.Namespace) -> tuple[ClusterNames, ...]:
    """The clusters that were named, at least one; ``found.after`` is what follows the first bare ``--``. Ends with usage without."""
    try:
        clusters = split_clusters(found.entry_points, found.after, found.multiple)
    except ValueError as error:
        parser.error(str(error))
    if not clusters:
        parser.error("no ENTRY_POINT: name at least one host of the cluster")
    return clusters


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys that sign: files, and names of variables that hold a key; neither means those at hand."""

    files: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` take keys."""
    keys = parser.add_argument_group("keys (default: $CIRUELA_KEY, ssh keys in ~/.ssh and ~/.ciruela, ssh-agent)")
    keys.add_argument("-i", "--identity", action="append", default=[], metavar="FILE", help="private key file (may be repeated)")
    keys.add_argument("-k", "--key-from-env", action="append", default=[], metavar="VAR", help="variable that holds a private key")


def keys_of(found: argparse.Namespace) -> Keys:
    """Builds :class:`Keys` from the parsed command line."""
    return Keys(tuple(found.identity), tuple(found.key_from_env))


def add_when(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` take when it is finished, and how often it tells how it goes."""
    when = parser.add_argument_group("when it is finished")
    rule = CompletionRule()
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
        "--require",
        type=checked(parse_requirement),
        metavar="all|N|N%",
        help="succeed only if so many nodes have it; 4 is the exit code when merely the early hosts are enough",
    )
    when.add_argument(
        "--connect-timeout",
        type=checked(positive_duration_s),
        default=rule.connect_timeout_s,
        metavar="DURATION",
        help="give up after this time (15s) while no host of a cluster was ever reached",
    )
    when.add_argument(
        "-t",
        "--deadline",
        type=checked(positive_duration_s),
        default=rule.deadline_s,
        metavar="DURATION",
        help="give up after this time (30min)",
    )
    when.add_argument(
        "--print-progress", type=checked(positive_duration_s), default=30.0, metavar="DURATION", help="interval of progress lines (30s)"
    )


def rule_of(found: argparse.Namespace) -> CompletionRule:
    """Builds :class:`CompletionRule` from the parsed command line."""
    return CompletionRule(
        early_hosts=found.early_hosts,
        early_fraction=found.early_fraction,
        early_timeout_s=found.early_timeout,
        deadline_s=found.deadline,
        require=found.require,
        connect_timeout_s=found.connect_timeout,
    )
