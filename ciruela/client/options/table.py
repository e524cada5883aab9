"""``ciruela [OPTIONS OF EVERY COMMAND] COMMAND ...`` and ``ciruela-sync``: every command, and how its line is read (protocol section 7.1).

Mistakes end the program with usage on stderr and exit code 2, as argparse does it: before a key is asked for or a directory is read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from ciruela._version import __version__
from ciruela.client.options.demo import DemoOptions, add_demo, demo_options
from ciruela.client.options.keygen import KeygenOptions, add_keygen, keygen_options
from ciruela.client.options.local import IndexOptions, VerifyOptions, add_index, add_verify, index_options, verify_options
from ciruela.client.options.reading import (
    DiffOptions,
    DoctorOptions,
    GetOptions,
    LsOptions,
    StatusOptions,
    add_diff,
    add_doctor,
    add_get,
    add_ls,
    add_status,
    diff_options,
    doctor_options,
    get_options,
    ls_options,
    status_options,
)
from ciruela.client.options.sync import SyncOptions, add_sync, sync_options

ReadingOptions = GetOptions | LsOptions | StatusOptions | DiffOptions | DoctorOptions
Options = SyncOptions | IndexOptions | VerifyOptions | DemoOptions | KeygenOptions | ReadingOptions


@dataclass(frozen=True, slots=True)
class Command:
    """One command: a line about it, what adds its options to a parser, and what makes its options of what the parser found.

    ``clusters``: entry points may be mixed with options, and what follows a bare ``--`` is found as ``after``.
    """

    about: str
    add: Callable[[argparse.ArgumentParser], None]
    options: Callable[[argparse.ArgumentParser, argparse.Namespace], Options]
    clusters: bool = False


COMMANDS: dict[str, Command] = {
    "sync": Command("put directories on every server of a cluster", add_sync, sync_options, clusters=True),
    "get": Command("copy an image from a cluster to a local directory", add_get, get_options),
    "ls": Command("list the directories of a cluster, or the images in one", add_ls, ls_options),
    "status": Command("tell which nodes have an image, or wait until they do", add_status, status_options),
    "diff": Command("tell what is otherwise in one image than in another", add_diff, diff_options),
    "doctor": Command("check a cluster, and tell what to do", add_doctor, doctor_options),
    "keygen": Command("make a key to sign uploads with", add_keygen, keygen_options),
    "index": Command("write the index of a directory to stdout", add_index, index_options),
    "verify": Command("compare a directory with an index or an image id", add_verify, verify_options),
    "demo": Command("try it: a cluster on this machine, with a real upload", add_demo, demo_options),
}
"""Every command. ``ciruela --help`` and the dispatch read this table."""

_TAKE_VALUE = ("--port", "--disk-threads", "--hash", "--progress")


def _usage() -> str:
    lines = [f"  {name:<8} {command.about}" for name, command in COMMANDS.items()]
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


def _read(command: Command, prog: str, argv: Sequence[str]) -> Options:
    """What the line ``argv`` of the program ``prog`` says."""
    parser = argparse.ArgumentParser(prog=prog)
    command.add(parser)
    if not command.clusters:
        return command.options(parser, parser.parse_args(list(argv)))
    cut = argv.index("--") if "--" in argv else None
    found = parser.parse_intermixed_args(list(argv if cut is None else argv[:cut]))
    found.after = None if cut is None else argv[cut + 1 :]
    return command.options(parser, found)


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
    return _read(COMMANDS[name], f"ciruela {name}", [*argv[:at], *argv[at + 1 :]])


def parse_sync(argv: Sequence[str]) -> SyncOptions:
    """The options of ``ciruela-sync``. Raises SystemExit as :func:`parse`."""
    found = _read(COMMANDS["sync"], "ciruela-sync", argv)
    assert isinstance(found, SyncOptions)
    return found
