"""The options of ``ciruela explain-cleanup``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from ciruela.client.options.common import Common, add_common, checked, common_of
from ciruela.client.options.reading import split_target
from ciruela.client.options.signing import ClusterNames
from ciruela.model.vpath import VPath


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
    """What ``ciruela explain-cleanup`` was told. Ends with usage without a path."""
    if found.target.vpath is None:
        parser.error(f"{found.target} is not CLUSTER:/PATH: name the directory whose images are cleaned up")
    return ExplainOptions(common_of(found), found.target.cluster, found.target.vpath, found.json)
