"""``ciruela completion``: scripts for shells, made by shtab of the same parsers that read the command lines."""

from __future__ import annotations

import argparse

import shtab

from ciruela.client.context import AppContext
from ciruela.client.options.local import CompletionOptions, Shell
from ciruela.client.options.table import ciruela, ciruela_sync

_FILES, _DIRECTORIES = ("FILE", "INDEX|IMAGE_ID"), ("DIR",)
"""Metavars of values for which a file or a directory is completed."""


def script(shell: Shell) -> str:
    """The text that a shell of this kind reads, for both programs."""
    parsers = (ciruela(), ciruela_sync())
    for parser in parsers:
        _name_files(parser)
    return "\n".join(shtab.complete(parser, shell=shell.value) for parser in parsers)


def _name_files(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _name_files(command)
        elif action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in _DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]


async def completion(options: CompletionOptions, around: AppContext) -> int:
    """``ciruela completion``: the script to stdout."""
    around.stdout.write(script(options.shell))
    around.stdout.flush()
    return 0
