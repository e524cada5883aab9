"""The options of the commands that read a cluster and change nothing there: ``get``, ``ls``, ``status``, ``diff`` and ``doctor``.

The options of ``ciruela explain-cleanup``.
"""

from __future__ import annotations

import argparse

from ciruela.client.options.common import Common, add_cache, add_common, checked, common_of, positive_duration_s
from ciruela.client.options.signing import (
    NOBODY_ELSE,
    ClusterNames,
    Keys,
    Trusting,
    add_keys,
    add_trust,
    check_entry_point,
    check_no_scheme,
    keys_of,
    trusting_of,
)
from ciruela.client.require import ALL, Requirement, parse_requirement
from ciruela.model.ids import ImageId, parse_image_id
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath


@dataclass(frozen=True, slots=True)
class ReadTarget:
    """``CLUSTER[:/PATH]``: a cluster by one or more entry points, and a virtual path there if one was given."""

    cluster: ClusterNames
    vpath: VPath | None

    def __str__(self) -> str:
        return self.cluster.label if self.vpath is None else f"{self.cluster.label}:{self.vpath}"


def split_target(text: str) -> ReadTarget:
    """The target that ``text`` spells. Raises ValueError with what is wrong.

    PATH begins at the last ``:/``. The names of a cluster are separated by commas.
    """
    check_no_scheme(text)
    names, mark, rest = text.rpartition(":/")
    if not mark:
        names, rest = text, ""
    found = tuple(dict.fromkeys(names.split(",")))
    for name in found:
        if not name:
            raise ValueError(f"{text[:200]!r} names no host: write HOST:/PATH or HOST,HOST:/PATH")
        check_entry_point(name)
    rest = rest.rstrip("/")
    return ReadTarget(ClusterNames(found), VPath.parse(f"/{rest}") if rest else None)


def _image_target(text: str) -> ReadTarget:
    found = split_target(text)
    if found.vpath is None:
        raise ValueError(f"{text[:200]!r} names no image: write CLUSTER:/PATH")
    return found


def _cluster(text: str) -> ClusterNames:
    found = split_target(text)
    if found.vpath is not None:
        raise ValueError(f"{text[:200]!r}: a path has no place here, name the cluster alone")
    return found.cluster


def _image(text: str) -> ImageId:
    try:
        return parse_image_id(text)
    except ValueError:
        raise ValueError(f"an image id has 64 hexadecimal digits, not {text[:80]!r}") from None


def add_json(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` take ``--json``."""
    parser.add_argument("--json", action="store_true", help="results as JSON Lines on stdout, the last one a summary")


def add_print_progress(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` take how often a command without a terminal tells how it goes."""
    parser.add_argument(
        "--print-progress", type=checked(positive_duration_s), default=30.0, metavar="DURATION", help="interval of progress lines (30s)"
    )


# -- get ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GetOptions:
    """``ciruela get``. Intervals in seconds."""

    common: Common
    target: ReadTarget
    destination: str
    image: ImageId | None
    reuse: tuple[str, ...]
    link: bool
    replace: bool
    patience_s: float
    print_progress_s: float
    cache: bool = True
    trusting: Trusting = NOBODY_ELSE


def add_get(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela get``."""
    parser.description = (
        "Copy an image from a cluster to a new local directory, verified. What an interrupted run got is not fetched again by the next."
    )
    parser.epilog = "Exit codes: 0 done, 1 local problem, 2 usage, 3 network, 5 no such image, 6 another image is there, 130 interrupted."
    parser.add_argument(
        "target", type=checked(_image_target), metavar="CLUSTER:/PATH", help="several names of one cluster: HOST,HOST:/PATH"
    )
    parser.add_argument("destination", metavar="DEST", help="a directory that does not exist yet; it appears when it is whole")
    parser.add_argument("--image", type=checked(_image), metavar="IMAGE_ID", help="end with 6 unless the image there is this one")
    parser.add_argument(
        "--reuse", action="append", default=[], metavar="DIR", help="take what is the same from this directory (may be repeated)"
    )
    parser.add_argument(
        "--link", action="store_true", help="hard-link whole files from --reuse instead of copying them: do not write to either afterwards"
    )
    parser.add_argument("--replace", action="store_true", help="take the place of DEST if it exists, in one step; DEST is reused")
    parser.add_argument(
        "-t",
        "--patience",
        type=checked(positive_duration_s),
        default=60.0,
        metavar="DURATION",
        help="give up when nothing came for so long (1min)",
    )
    add_print_progress(parser)
    add_cache(parser)
    add_trust(parser, signs=False)
    add_common(parser)


def get_options(parser: argparse.ArgumentParser, found: argparse.Namespace) -> GetOptions:
    """Builds the options of ``ciruela get``."""
    if not found.destination.strip("/"):
        parser.error("DEST must be the name of a directory")
    if found.link and not (found.reuse or found.replace):
        parser.error("--link needs --reuse DIR: there is nothing to link from")
    return GetOptions(
        common=common_of(found),
        target=found.target,
        destination=found.destination,
        image=found.image,
        reuse=tuple(found.reuse),
        link=found.link,
        replace=found.replace,
        patience_s=found.patience,
        print_progress_s=found.print_progress,
        cache=found.cache,
        trusting=trusting_of(found),
    )


# -- ls -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LsOptions:
    """``ciruela ls``."""

    common: Common
    target: ReadTarget
    json: bool = False
    trusting: Trusting = NOBODY_ELSE


def add_ls(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela ls``."""
    parser.description = (
        "List the directories of a cluster, or the images in one: when they were signed, by whom, and on how many nodes they are."
    )
    parser.epilog = "Exit codes: 0 listed, 2 usage, 3 no node answered, 5 no node has that directory."
    parser.add_argument(
        "target",
        type=checked(split_target),
        metavar="CLUSTER[:/PATH]",
        help="a cluster by any of its nodes, and a directory of images there",
    )
    add_json(parser)
    add_trust(parser, signs=False)
    add_common(parser)


def ls_options(_: argparse.ArgumentParser, found: argparse.Namespace) -> LsOptions:
    """Builds the options of ``ciruela ls``."""
    return LsOptions(common_of(found), found.target, found.json, trusting_of(found))


# -- status -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StatusOptions:
    """``ciruela status``. Intervals in seconds."""

    common: Common
    target: ReadTarget
    image: ImageId | None = None
    wait: bool = False
    require: Requirement = ALL
    deadline_s: float = 1800.0
    print_progress_s: float = 30.0
    json: bool = False


def add_status(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela status``."""
    parser.description = (
        "Tell of each node of a cluster whether it has an image, how far it is, or why not; without a path, whether it is there."
    )
    parser.epilog = (
        "Exit codes: 0 enough nodes have it, 2 usage, 3 they have not (yet), or no node answered, 5 no node takes that path, "
        "7 they have it, and a hook failed."
    )
    parser.add_argument(
        "target", type=checked(split_target), metavar="CLUSTER[:/PATH]", help="a cluster by any of its nodes, and an image there"
    )
    parser.add_argument("--image", type=checked(_image), metavar="IMAGE_ID", help="the image to look for (default: the one signed last)")
    parser.add_argument("--wait", action="store_true", help="wait until enough nodes have it")
    parser.add_argument(
        "--require", type=checked(parse_requirement), default=ALL, metavar="all|N|N%", help="how many nodes are enough (default all)"
    )
    parser.add_argument(
        "-t", "--deadline", type=checked(positive_duration_s), default=1800.0, metavar="DURATION", help="wait no longer than this (30min)"
    )
    add_print_progress(parser)
    add_json(parser)
    add_common(parser)


def status_options(parser: argparse.ArgumentParser, found: argparse.Namespace) -> StatusOptions:
    """Builds the options of ``ciruela status``."""
    if found.target.vpath is None and (found.wait or found.image):
        parser.error("--wait and --image need a path: write CLUSTER:/PATH")
    return StatusOptions(
        common_of(found), found.target, found.image, found.wait, found.require, found.deadline, found.print_progress, found.json
    )


# -- diff ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DiffOptions:
    """``ciruela diff``. A side is a target in a cluster, or a local directory or index file."""

    common: Common
    left: ReadTarget | str
    right: ReadTarget | str
    json: bool = False
    cache: bool = True
    trusting: Trusting = NOBODY_ELSE


def _side(text: str) -> ReadTarget | str:
    """A local path unless it has ``:/`` in it and begins neither with a slash nor with a dot."""
    if ":/" not in text or text.startswith(("/", ".")):
        return text
    return _image_target(text)


def add_diff(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela diff``."""
    parser.description = "Tell what is otherwise in one image than in another: added (+), removed (-) and changed (~), with sizes."
    parser.epilog = "Exit codes, as diff has them: 0 the same, 1 different, 2 trouble. A local name with ':/' in it is written ./NAME."
    for name, which in (("left", "what was"), ("right", "what is now")):
        parser.add_argument(
            name, type=checked(_side), metavar="DIR|INDEX|CLUSTER:/PATH", help=f"{which}: a local directory, an index file, or an image"
        )
    add_json(parser)
    add_cache(parser)
    add_trust(parser, signs=False)
    add_common(parser)


def diff_options(_: argparse.ArgumentParser, found: argparse.Namespace) -> DiffOptions:
    """Builds the options of ``ciruela diff``."""
    return DiffOptions(common_of(found), found.left, found.right, found.json, found.cache, trusting_of(found))


# -- doctor -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """``ciruela doctor``."""

    common: Common
    cluster: ClusterNames
    keys: Keys
    json: bool = False


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela doctor``."""
    parser.description = (
        "Check a cluster: names, connections, datagrams between the nodes, clocks, keys, free space, and what nodes disagree in."
    )
    parser.epilog = "Exit codes: 0 all is well (notes may remain), 1 a check failed, 2 usage or keys, 3 no node answered."
    parser.add_argument("cluster", type=checked(_cluster), metavar="CLUSTER", help="the cluster by any of its nodes: HOST or HOST,HOST")
    add_keys(parser)
    add_json(parser)
    add_common(parser)


def doctor_options(_: argparse.ArgumentParser, found: argparse.Namespace) -> DoctorOptions:
    """Builds the options of ``ciruela doctor``."""
    return DoctorOptions(common_of(found), found.cluster, keys_of(found), found.json)


@dataclass(frozen=True, slots=True)
class ExplainOptions:
    """``ciruela explain-cleanup``."""

    common: Common
    cluster: ClusterNames
    base: VPath
    json: bool


def add_explain(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela explain-cleanup``."""
    parser.description = "Tell for each image of a directory which rule of automatic cleanup keeps or drops it on each node, and when."
    parser.epilog = "Exit codes: 0 told, 2 usage, 3 a node did not answer, 5 no node has such a directory."
    parser.add_argument("target", type=checked(split_target), metavar="CLUSTER:/PATH", help="a directory that is cleaned up, as HOST:/KEY")
    parser.add_argument("--json", action="store_true", help="what each node says, as one JSON object")
    add_common(parser)


def explain_options(parser: argparse.ArgumentParser, found: argparse.Namespace) -> ExplainOptions:
    """Builds the options of ``ciruela explain-cleanup``. Ends with usage without a path."""
    if found.target.vpath is None:
        parser.error(f"{found.target} is not CLUSTER:/PATH: name the directory whose images are cleaned up")
    return ExplainOptions(common_of(found), found.target.cluster, found.target.vpath, found.json)
