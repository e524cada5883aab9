"""The options of ``ciruela remove`` and ``ciruela rollback``: an image at a path of a cluster."""

from __future__ import annotations

import argparse

from ciruela.client.options.common import Common, add_common, checked, common_of, vpath_of
from ciruela.client.options.reading import add_json
from ciruela.client.options.signing import (
    ClusterNames,
    Keys,
    Trusting,
    add_keys,
    add_trust,
    add_when,
    check_entry_point,
    check_no_scheme,
    keys_of,
    rule_of,
    trusting_of,
)
from ciruela.client.tracker import CompletionRule
from ciruela.model.ids import ImageId, parse_image_id
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath


@dataclass(frozen=True, slots=True)
class PathTarget:
    """A path of a cluster, which is named by one entry point."""

    entry_point: str
    vpath: VPath

    @property
    def cluster(self) -> ClusterNames:
        """The cluster as commands name it that take several entry points."""
        return ClusterNames((self.entry_point,))


@dataclass(frozen=True, slots=True)
class ChangeOptions:
    """Options of both commands. ``sure``: nobody need be asked."""

    common: Common
    target: PathTarget
    image: ImageId | None
    keys: Keys
    rule: CompletionRule
    print_progress_s: float
    sure: bool
    trusting: Trusting
    json: bool


@dataclass(frozen=True, slots=True)
class RemoveOptions(ChangeOptions):
    """``ciruela remove``. Without an ``image`` the one that is there; ``force``: also what is protected."""

    force: bool


@dataclass(frozen=True, slots=True)
class RollbackOptions(ChangeOptions):
    """``ciruela rollback``. Without an ``image`` the one that was replaced last."""

    listing: bool


def split_target(text: str) -> PathTarget:
    """Parses ``CLUSTER:/PATH``. Raises ValueError."""
    check_no_scheme(text)
    name, mark, rest = text.partition(":/")
    if not mark or not name:
        raise ValueError(f"{text[:200]!r} is not CLUSTER:/PATH, where CLUSTER is host, host:port or [IPv6]:port of any node")
    check_entry_point(name)
    try:
        return PathTarget(name, vpath_of("/" + rest))
    except ValueError as error:
        raise ValueError(f"PATH {'/' + rest[:200]!r}: {error}") from None


def image_of(text: str) -> ImageId:
    """An image id. Raises ValueError."""
    try:
        return parse_image_id(text)
    except ValueError:
        raise ValueError(f"an image id is 64 hexadecimal digits, not {text[:80]!r}") from None


def add_target(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` take a path of a cluster."""
    parser.add_argument("target", metavar="CLUSTER:/PATH", type=checked(split_target), help="entry point of a cluster, and a path there")


def add_sure(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` take that nobody need be asked."""
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask (needed without a terminal)")


def _add_rest(parser: argparse.ArgumentParser) -> None:
    add_sure(parser)
    add_json(parser)
    add_keys(parser)
    add_trust(parser, signs=True)
    add_when(parser)
    add_common(parser)


_Change = tuple[Common, PathTarget, ImageId | None, Keys, CompletionRule, float, bool, Trusting, bool]


def _change_of(found: argparse.Namespace) -> _Change:
    keys, rule, trusting = keys_of(found), rule_of(found), trusting_of(found)
    return common_of(found), found.target, found.image, keys, rule, found.print_progress, found.yes, trusting, found.json


def add_remove(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela remove``."""
    parser.description = (
        "Remove an image from every server of a cluster. Signed like an upload; what is uploaded there later is not touched."
    )
    parser.epilog = (
        "Exit codes: 0 gone, 1 local problem, 2 usage or keys, 3 not enough hosts, 5 rejected or not verified, 6 other content is there."
    )
    add_target(parser)
    parser.add_argument("--image", type=checked(image_of), metavar="ID", help="remove this image only (default: the one that is there)")
    parser.add_argument("--force", action="store_true", help="also where a protected link of a server leads to it")
    _add_rest(parser)


def remove_options(_: argparse.ArgumentParser, found: argparse.Namespace) -> RemoveOptions:
    """Builds the options of ``ciruela remove``."""
    return RemoveOptions(*_change_of(found), force=found.force)


def add_rollback(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela rollback``."""
    parser.description = "Go back to an image that was replaced and that the servers still have (keep-replaced). Nothing is uploaded."
    parser.epilog = (
        "Exit codes: 0 done, 1 local problem, 2 usage or keys, 3 not enough hosts, 5 rejected, not kept or not verified, 6 conflict."
    )
    add_target(parser)
    parser.add_argument("image", nargs="?", type=checked(image_of), metavar="IMAGE", help="image id (default: the one replaced last)")
    parser.add_argument("-l", "--list", action="store_true", help="only list what can be gone back to")
    _add_rest(parser)


def rollback_options(_: argparse.ArgumentParser, found: argparse.Namespace) -> RollbackOptions:
    """Builds the options of ``ciruela rollback``."""
    return RollbackOptions(*_change_of(found), listing=found.list)
