"""The options of ``ciruela completion``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from enum import Enum

from ciruela.client.options.common import Common, add_common, common_of, words


class Shell(Enum):
    """A shell whose completion can be written."""

    BASH = "bash"
    ZSH = "zsh"
    TCSH = "tcsh"
    FISH = "fish"


@dataclass(frozen=True, slots=True)
class CompletionOptions:
    """``ciruela completion``."""

    common: Common
    shell: Shell


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Let ``parser`` read ``ciruela completion``."""
    parser.description = "Write to stdout what SHELL needs to complete the command lines of ciruela and ciruela-sync."
    parser.epilog = "Exit codes: 0 done, 2 usage."
    parser.add_argument("shell", type=words(Shell), metavar="SHELL", help=", ".join(shell.value for shell in Shell))
    add_common(parser)


def completion_options(_: argparse.ArgumentParser, found: argparse.Namespace) -> CompletionOptions:
    """What ``ciruela completion`` was told."""
    return CompletionOptions(common_of(found), found.shell)
