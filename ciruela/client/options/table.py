"""``ciruela [OPTIONS OF EVERY COMMAND] COMMAND ...`` and ``ciruela-sync``: every command, and how its line is read (protocol section 7.1).

Mistakes end the program with usage on stderr and exit code 2, as argparse does it: before a key is asked for or a directory is read.

All commands as one parser, for what is made of it: completion and man pages. Command lines are read by ``table``.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn

from ciruela._version import __version__
from ciruela.client.options import environ as variables
from ciruela.client.options.edit import EditOptions, PutFileOptions, add_edit, add_put_file, edit_options, put_file_options
from ciruela.client.options.local import (
    CompletionOptions,
    DemoOptions,
    IndexOptions,
    KeygenOptions,
    VerifyOptions,
    add_completion,
    add_demo,
    add_index,
    add_keygen,
    add_verify,
    completion_options,
    demo_options,
    index_options,
    keygen_options,
    verify_options,
)
from ciruela.client.options.reading import (
    DiffOptions,
    DoctorOptions,
    ExplainOptions,
    GetOptions,
    LsOptions,
    StatusOptions,
    add_diff,
    add_doctor,
    add_explain,
    add_get,
    add_ls,
    add_status,
    diff_options,
    doctor_options,
    explain_options,
    get_options,
    ls_options,
    status_options,
)
from ciruela.client.options.removing import RemoveOptions, RollbackOptions, add_remove, add_rollback, remove_options, rollback_options
from ciruela.client.options.sync import EXIT_CODES, SyncOptions, UploadOptions, add_sync, add_upload, sync_options, upload_options
from ciruela.client.text import clean
from ciruela.model.values import dataclass

ReadingOptions = GetOptions | LsOptions | StatusOptions | DiffOptions | DoctorOptions | ExplainOptions

Options = (
    SyncOptions
    | EditOptions
    | PutFileOptions
    | RemoveOptions
    | RollbackOptions
    | ReadingOptions
    | KeygenOptions
    | IndexOptions
    | VerifyOptions
    | UploadOptions
    | DemoOptions
    | CompletionOptions
)


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """One command: a line about it, what adds its options to a parser, and what makes its options of what the parser found.

    ``clusters``: entry points may be mixed with options, and what follows a bare ``--`` is found as ``after``.
    """

    about: str
    add: Callable[[argparse.ArgumentParser], None]
    options: Callable[[argparse.ArgumentParser, argparse.Namespace], Options]
    clusters: bool = False


COMMANDS: dict[str, CommandSpec] = {
    "sync": CommandSpec("put directories on every server of a cluster", add_sync, sync_options, clusters=True),
    "edit": CommandSpec("edit one file of a directory on every server", add_edit, edit_options, clusters=True),
    "put-file": CommandSpec("put one local file into a directory on every server", add_put_file, put_file_options, clusters=True),
    "remove": CommandSpec("remove an image from every server of a cluster", add_remove, remove_options),
    "rollback": CommandSpec("go back to an image that was replaced", add_rollback, rollback_options),
    "explain-cleanup": CommandSpec("tell which images stay, which go, and why", add_explain, explain_options),
    "get": CommandSpec("copy an image from a cluster to a local directory", add_get, get_options),
    "ls": CommandSpec("list the directories of a cluster, or the images in one", add_ls, ls_options),
    "status": CommandSpec("tell which nodes have an image, or wait until they do", add_status, status_options),
    "diff": CommandSpec("tell what is otherwise in one image than in another", add_diff, diff_options),
    "doctor": CommandSpec("check a cluster, and tell what to do", add_doctor, doctor_options),
    "keygen": CommandSpec("make a key to sign uploads with", add_keygen, keygen_options),
    "index": CommandSpec("write the index of a directory to stdout", add_index, index_options),
    "verify": CommandSpec("compare a directory with an index or an image id", add_verify, verify_options),
    "upload": CommandSpec("deprecated, use sync", add_upload, upload_options, clusters=True),
    "demo": CommandSpec("try it: a cluster on this machine, with a real upload", add_demo, demo_options),
    "completion": CommandSpec("write what a shell needs to complete command lines", add_completion, completion_options),
}
"""Every command. ``ciruela --help`` and the dispatch read this table."""

NO_VARIABLES: Mapping[str, str] = MappingProxyType({})

_TAKE_VALUE = ("--port", "--disk-threads", "--hash", "--progress")


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}} {command.about}" for name, command in COMMANDS.items()]
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


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


class Parser(argparse.ArgumentParser):
    """Parser whose mistakes are told as JSON, too, where ``wants_json``: on stdout, besides the text on stderr."""

    wants_json = False

    def error(self, message: str) -> NoReturn:
        """End with usage and exit code 2. A misspelt option gets the nearest one that there is."""
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            options = [name for action in self._actions for name in action.option_strings]
            message += _did_you_mean(unknown.split()[0].partition("=")[0], options)
        if self.wants_json and any("--json" in action.option_strings for action in self._actions):
            import json

            sys.stdout.write(json.dumps({"type": "error", "code": "usage", "exit_code": 2, "message": message}) + "\n")
            sys.stdout.flush()
        super().error(message)


def _read(command: CommandSpec, prog: str, argv: Sequence[str], environ: Mapping[str, str]) -> Options:
    """Reads the line ``argv`` of the program ``prog``, and the variables."""
    parser = Parser(prog=prog)
    cut = argv.index("--") if "--" in argv else len(argv)
    parser.wants_json = "--json" in argv[:cut] or environ.get("CIRUELA_JSON", "").strip().lower() in ("1", "true", "yes")
    command.add(parser)
    if not command.clusters:
        found = variables.read(parser, environ, lambda: parser.parse_args(list(argv)))
    else:
        found = variables.read(parser, environ, lambda: parser.parse_intermixed_args(list(argv[:cut])))
        found.after = argv[cut + 1 :] if cut < len(argv) else None
    _warn(parser, environ, getattr(found, "key_from_env", ()))
    return command.options(parser, found)


def _warn(parser: argparse.ArgumentParser, environ: Mapping[str, str], keys: Sequence[str]) -> None:
    """Tell of variables that look like ours and are not. Those of other commands are ours."""
    known = {*variables.variables(parser), *variables.SPECIAL, *keys}
    if all(name in known for name in environ if name.startswith(variables.PREFIX)):
        return
    for command in COMMANDS.values():
        other = argparse.ArgumentParser()
        command.add(other)
        known.update(variables.variables(other))
    for sentence in variables.unknown(environ, known):
        sys.stderr.write(f"ciruela: warning: {clean(sentence)}\n")


def parse(argv: Sequence[str], environ: Mapping[str, str] = NO_VARIABLES) -> Options:
    """The options of ``ciruela``; first those of the command line, then those in ``environ``.

    Raises SystemExit, as argparse does: 0 after ``--help`` and ``--version``, 2 after a mistake.
    """
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
    if name == "help":
        return parse([*argv[at + 1 :][:1], "--help"], environ)
    if name not in COMMANDS:
        _no_command(f"unknown command {name[:80]!r}{_did_you_mean(name, COMMANDS)}")
    return _read(COMMANDS[name], f"ciruela {name}", [*argv[:at], *argv[at + 1 :]], environ)


def parse_sync(argv: Sequence[str], environ: Mapping[str, str] = NO_VARIABLES) -> SyncOptions:
    """The options of ``ciruela-sync``. Raises SystemExit as :func:`parse`."""
    found = _read(COMMANDS["sync"], "ciruela-sync", argv, environ)
    assert isinstance(found, SyncOptions)
    return found


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
