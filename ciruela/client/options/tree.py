"""All commands as one parser, for what is made of it: completion and man pages. Command lines are read by ``table``."""

from __future__ import annotations

import argparse

from ciruela.client.options.sync import EXIT_CODES
from ciruela.client.options.table import COMMANDS


def ciruela() -> argparse.ArgumentParser:
    """``ciruela`` with all its commands."""
    parser = argparse.ArgumentParser(
        prog="ciruela",
        usage="ciruela [options] COMMAND ...",
        description="Puts a whole directory on every server of a cluster: signed, verified, atomic.",
        epilog=EXIT_CODES,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add(commands.add_parser(name, help=command.about, prog=f"ciruela {name}"))
    return parser


def ciruela_sync() -> argparse.ArgumentParser:
    """``ciruela-sync``."""
    parser = argparse.ArgumentParser(prog="ciruela-sync")
    COMMANDS["sync"].add(parser)
    return parser
