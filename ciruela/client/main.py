"""The programs ``ciruela`` and ``ciruela-sync``: the process around a command.

The only module of the client that knows the reactor. It ends with one clear line and an exit code, never with a traceback, whatever the
user's files, keys and servers do.

``ciruela completion``: scripts for shells, made by shtab of the same parsers that read the command lines.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from types import FrameType
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogBeginner
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from ciruela.client import commands
from ciruela.client.context import AppContext
from ciruela.client.errors import CommandError
from ciruela.client.identities import AskPassphrase, terminal
from ciruela.client.options.edit import EditOptions, PutFileOptions
from ciruela.client.options.local import CompletionOptions, DemoOptions, IndexOptions, KeygenOptions, Shell, VerifyOptions
from ciruela.client.options.reading import DiffOptions, DoctorOptions, ExplainOptions, GetOptions, LsOptions, StatusOptions
from ciruela.client.options.removing import RemoveOptions, RollbackOptions
from ciruela.client.options.sync import SyncOptions, UploadOptions
from ciruela.client.options.table import Options, ciruela, ciruela_sync, parse, parse_sync
from ciruela.client.orders import Conflict, LocalProblem
from ciruela.client.report import Report
from ciruela.client.text import clean, clean_lines
from ciruela.client.tracker import EXIT_CONFLICT, EXIT_LOCAL, EXIT_NETWORK, EXIT_USAGE
from ciruela.disk.streams import Standard
from ciruela.model.errors import BadKey, CiruelaError, ConfigError, DiskError, FormatError, LinkLost, RemoteError
from ciruela.net import limits

_FILES, _DIRECTORIES = ("FILE", "INDEX|IMAGE_ID"), ("DIR",)
"""Metavars of values for which a file or a directory is completed."""


def script(shell: Shell) -> str:
    """The text that a shell of this kind reads, for both programs."""
    import shtab  # here, because nothing else needs it

    parsers = (ciruela(), ciruela_sync())
    for parser in parsers:
        _name_files(parser, shtab.FILE, shtab.DIRECTORY)
    return "\n".join(shtab.complete(parser, shell=shell.value) for parser in parsers)


def _name_files(parser: argparse.ArgumentParser, files: object, directories: object) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _name_files(command, files, directories)
        elif action.metavar in _FILES:
            action.complete = files  # type: ignore[attr-defined]
        elif action.metavar in _DIRECTORIES:
            action.complete = directories  # type: ignore[attr-defined]


async def completion(options: CompletionOptions, around: AppContext) -> int:
    """``ciruela completion``: the script to stdout."""
    around.stdout.write(script(options.shell))
    around.stdout.flush()
    return 0


Terminal = Callable[[], AskPassphrase | None] | None

LOOK_UP_THREADS = 4
"""Names that are resolved at the same time."""

_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (LocalProblem, EXIT_LOCAL),
    (Conflict, EXIT_CONFLICT),
    (BadKey, EXIT_USAGE),
    (ConfigError, EXIT_USAGE),
    (DiskError, EXIT_LOCAL),
    (FormatError, EXIT_LOCAL),
    (RemoteError, EXIT_NETWORK),
    (LinkLost, EXIT_NETWORK),
    (CiruelaError, EXIT_LOCAL),
    (OSError, EXIT_LOCAL),
)


def exit_for(failure: Failure, verbose: bool) -> tuple[int, str]:
    """The exit code of a failure, and what to print: one line, unless the program itself is at fault and the user wants to know more."""
    if isinstance(failure.value, CommandError):
        return failure.value.code, clean_lines(str(failure.value), 10_000)
    for kind, code in _CODES:
        if failure.check(kind):
            return code, clean_lines(failure.getErrorMessage(), 10_000) or type(failure.value).__name__
    line = f"internal error: {type(failure.value).__name__}: {clean(failure.getErrorMessage())}"
    return EXIT_LOCAL, f"{line}\n{failure.getTraceback()}" if verbose else f"{line} (-v tells more; please report it)"


class _Life:
    """One command on the reactor, from its start to its exit code, with its signals.

    The first signal asks the command to end in order; after ``patience`` more it ends at once.
    """

    def __init__(
        self, reactor: Any, command: Callable[[], Coroutine[Any, Any, int]], verbose: bool, patience: int, report: Report | None = None
    ) -> None:
        self._reactor = reactor
        self._command = command
        self._verbose = verbose
        self._report = report
        self._story: Deferred[None] | None = None
        self._patience = patience
        self._signal = 0
        self._abandoned = False
        self.code = EXIT_LOCAL

    def run(self) -> int:
        """Run the reactor until the command is over. Gives the exit code."""
        limits.keep()
        self._reactor.callWhenRunning(self._begin)
        self._reactor.run()
        return self.code

    def _begin(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and background jobs of a shell
                signal.signal(number, self._signalled)
        story = self._story = Deferred.fromCoroutine(self._command()).addCallbacks(self._ended, self._failed)
        story.addBoth(lambda _: self._reactor.stop())

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
        if self._signal:
            self._patience -= 1
            if self._patience < 0:
                os._exit(128 + number)
            return
        self._signal = number
        self._reactor.callFromThread(self._cancel)

    def abandon(self) -> None:
        """End the command in order, and without a word: stdout cannot be written any more. Called from within any callback."""
        self._abandoned = True
        self._reactor.callFromThread(self._cancel)

    def _cancel(self) -> None:
        if self._story is not None:
            self._story.cancel()

    def _ended(self, code: int) -> None:
        self.code = code

    def _failed(self, failure: Failure) -> None:
        if self._signal and failure.check(CancelledError):
            self.code = 128 + self._signal
            self._tell(f"ended by {signal.Signals(self._signal).name}")
            return
        if self._abandoned and failure.check(CancelledError):  # guard: K8.2
            return
        self.code, text = exit_for(failure, self._verbose)
        sys.stderr.write(f"ciruela: {text}\n")
        self._tell(text)

    def _tell(self, text: str) -> None:
        if self._report is not None:
            self._report.error(self.code, text)


def _observer(verbose: bool) -> Any:
    """Errors of the log as lines; with ``verbose`` warnings and tracebacks too.

    stderr is looked up late: a live block may stand before it.
    """
    floor = LogLevel.warn if verbose else LogLevel.error

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_level", LogLevel.info) < floor:
            return
        sys.stderr.write(f" ! {clean(formatEvent(event), 2000)}\n")
        failure = event.get("log_failure")
        if failure is not None:
            sys.stderr.write(
                failure.getTraceback() if verbose else f" ! {type(failure.value).__name__}: {clean(failure.getErrorMessage())}\n"
            )

    return observe


def _pool(reactor: Any, threads: int, name: str) -> Callable[..., Deferred[Any]]:
    """Runs functions in up to ``threads`` threads that nobody waits for at the end: a name server that hangs must not hang Ctrl-C."""
    pool = ThreadPool(minthreads=0, maxthreads=threads, name=name)
    pool.threadFactory = partial(threading.Thread, daemon=True)  # type: ignore[assignment]
    pool.start()
    return partial(deferToThreadPool, reactor, pool)


def _command(options: Options, around: AppContext) -> Callable[[], Coroutine[Any, Any, int]]:
    """Chooses what to run. Commands other than ``sync`` and ``index`` load what they alone need: every small upload would pay for it."""
    match options:
        case SyncOptions():
            return lambda: commands.sync(options, around)
        case IndexOptions():
            return lambda: commands.index(options, around)
        case VerifyOptions():
            from ciruela.client.verify import verify

            return lambda: verify(options, around)
        case GetOptions():
            from ciruela.client.get import get

            return lambda: get(options, around)
        case LsOptions():
            from ciruela.client.ls import ls

            return lambda: ls(options, around)
        case StatusOptions():
            from ciruela.client.status import status

            return lambda: status(options, around)
        case DiffOptions():
            from ciruela.client.diff import diff

            return lambda: diff(options, around)
        case DoctorOptions():
            from ciruela.client.doctor import doctor

            return lambda: doctor(options, around)
        case KeygenOptions():
            from ciruela.client.keygen import keygen

            return lambda: keygen(options, around)
        case RemoveOptions():
            from ciruela.client.removing import remove

            return lambda: remove(options, around)
        case RollbackOptions():
            from ciruela.client.rollback import rollback

            return lambda: rollback(options, around)
        case ExplainOptions():
            from ciruela.client.explain import explain

            return lambda: explain(options, around)
        case DemoOptions():
            from ciruela.client.demo import demo

            return lambda: demo(options, around)
        case EditOptions():
            from ciruela.client.edit import edit

            return lambda: edit(options, around)
        case PutFileOptions():
            from ciruela.client.edit import put_file

            return lambda: put_file(options, around)
        case UploadOptions():
            from ciruela.client.commands import upload

            return lambda: upload(options, around)
        case CompletionOptions():
            return lambda: completion(options, around)


def _terminal_settings() -> list[Any] | None:
    """The settings of the terminal, to put back: who is interrupted while typing a passphrase wants to see what he types next."""
    try:
        return termios.tcgetattr(sys.stdin.fileno())
    except (OSError, ValueError, AttributeError, termios.error):
        return None


def _run(options: Options, standard: Standard | None, its: Terminal) -> int:
    from twisted.internet import reactor  # noqa: TID251  loaded late: parsing the command line needs no reactor

    verbose = options.common.verbosity > 1
    globalLogBeginner.beginLoggingTo([_observer(verbose)], redirectStandardIO=False)
    settings = _terminal_settings()
    report = Report(sys.stdout) if getattr(options, "json", False) else None
    around = AppContext(
        reactor=reactor,
        now_ms=lambda: int(time.time() * 1000),
        rng=random.Random(),  # noqa: S311  it chooses whom to ask, and guards nothing
        environ=os.environ,
        stdout=sys.stdout,
        stderr=sys.stderr,
        in_thread=_pool(reactor, options.common.disk_threads, "disk"),
        look_up_in_thread=_pool(reactor, LOOK_UP_THREADS, "names"),
        report=report,
        terminal=its or terminal,
    )
    life = _Life(reactor, _command(options, around), verbose, 2 if isinstance(options, DemoOptions) else 0, report)
    if standard is not None:
        standard.broken = life.abandon
    try:
        return life.run()
    finally:
        if standard is not None:
            standard.broken = lambda: None
        if settings is not None and _terminal_settings() != settings:
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, settings)


def main(argv: Sequence[str] | None = None, standard: Standard | None = None, terminal: Terminal = None) -> int:
    """``ciruela``: gives the exit code; raises SystemExit for mistakes in the command line.

    A stdout that cannot be written any more ends the command, where ``standard`` tells of it. ``terminal`` is that of the command, where
    it is not that of this process.
    """
    return _run(parse(sys.argv[1:] if argv is None else argv, os.environ), standard, terminal)


def main_sync(argv: Sequence[str] | None = None, standard: Standard | None = None, terminal: Terminal = None) -> int:
    """``ciruela-sync``: as ``ciruela sync``."""
    return _run(parse_sync(sys.argv[1:] if argv is None else argv, os.environ), standard, terminal)
