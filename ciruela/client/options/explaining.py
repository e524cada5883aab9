"""The options of ``ciruela explain-cleanup``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from ciruela.client.options.common import Common, add_common, common_of
from ciruela.client.options.removing import Target, add_target


@dataclass(frozen=True, slots=True)
class ExplainOptions:
    """``ciruela explain-cleanup``."""

    common: Common
    target: Target
    json: bool


def add_explain(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela explain-cleanup``."""
    parser.description = "Tell for each image of a directory which rule of automatic cleanup keeps or drops it on each node, and when."
    parser.epilog = "Exit codes: 0 told, 2 usage, 3 a node did not answer, 5 no node has such a directory."
    add_target(parser)
    parser.add_argument("--json", action="store_true", help="what each node says, as one JSON object")
    add_common(parser)


def explain_options(_: argparse.ArgumentParser, found: argparse.Namespace) -> ExplainOptions:
    """What ``ciruela explain-cleanup`` was told."""
    return ExplainOptions(common_of(found), found.target, found.json)
