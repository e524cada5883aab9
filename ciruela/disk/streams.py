"""Standard streams of a process: always open, and never a fault that something else is blamed for.

A process may be started with descriptor 0, 1 or 2 closed (``2>&-``): the next socket or file gets that number, and whatever is meant for
people is written into it. And a write to stdout may fail in the middle of anything, in a callback too, where an exception would be taken
for a fault of the peer. So each write ends in :class:`_Descriptor`, which notes the failure, tells of it once, and raises nothing.
"""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO, cast

STDIN, STDOUT, STDERR = range(3)

EXIT_PIPE = 128 + signal.SIGPIPE
"""Exit code when the reader of stdout is gone: a shell shows it for a program that SIGPIPE ended."""

EXIT_OUTPUT = 1
"""Exit code when stdout cannot be written for another reason."""


def hold_descriptors() -> None:
    """Open ``/dev/null`` as each of the descriptors 0, 1 and 2 that is closed. Call it before anything is opened that stays open."""
    for number in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            # guard: K8.1, -> os.close(opened)
            os.dup2(opened, number)  # also makes it inheritable when it is the same
            if opened != number:
                os.close(opened)
            os.set_inheritable(number, True)


def hold_streams() -> None:
    """As :func:`hold_descriptors`, and give ``sys`` the streams that Python leaves out for a closed descriptor."""
    hold_descriptors()
    if sys.stdin is None:
        sys.stdin = open(STDIN, closefd=False)  # noqa: SIM115  for the life of the process
    for name, number in (("stdout", STDOUT), ("stderr", STDERR)):
        if getattr(sys, name) is None:
            setattr(sys, name, _text(_Descriptor(number, lambda _: None), None))


class _Descriptor(io.FileIO):
    """Raw end of a stream. A write that fails is told to ``failed``, once; all that follows goes nowhere."""

    def __init__(self, number: int, failed: Callable[[OSError], None]) -> None:
        super().__init__(number, "wb", closefd=False)
        self._failed = failed
        self.silent = False

    def write(self, data: Any, /) -> int:
        """Write some of ``data``. Gives how many bytes were taken; waits where somebody else made the descriptor non-blocking."""
        while not self.silent:
            try:
                written = cast("int | None", super().write(data))
            except OSError as error:  # guard: K8.2
                self.silent = True
                self._failed(error)
                break
            if written is not None:
                return written
            select.select([], [self], [])
        return memoryview(data).nbytes


def _text(raw: _Descriptor, like: TextIO | None) -> TextIO:
    """A text stream over ``raw`` with the encoding and buffering of ``like``."""
    if not isinstance(like, io.TextIOWrapper):
        return io.TextIOWrapper(io.BufferedWriter(raw), errors="backslashreplace", line_buffering=True)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=like.encoding,
        errors=like.errors,
        line_buffering=like.line_buffering,
        write_through=like.write_through,
    )


class Standard:
    """stdout and stderr of this process, in ``sys`` from now on.

    ``broken`` is called once when stdout cannot be written any more, from wherever that was found: what is going on may stop.
    A stderr that cannot be written changes nothing: there is nobody left to tell.
    """

    def __init__(self) -> None:
        hold_streams()
        self.broken: Callable[[], None] = lambda: None
        self.failure: OSError | None = None
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._err = _Descriptor(STDERR, lambda _: None)
        sys.stdout = _text(_Descriptor(STDOUT, self._failed), sys.stdout)
        sys.stderr = _text(self._err, sys.stderr)

    def _failed(self, error: OSError) -> None:
        self.failure = error
        if error.errno == errno.EPIPE:
            self._err.silent = True  # a program that SIGPIPE ends says nothing either
        self.broken()

    def exit_code(self, code: int) -> int:
        """Write what is still buffered. Gives ``code``; if stdout failed :data:`EXIT_PIPE`, or :data:`EXIT_OUTPUT` and a line on stderr."""
        sys.stdout.flush()
        if self.failure is None:
            return code
        if self.failure.errno == errno.EPIPE:
            return EXIT_PIPE  # guard: K8.2, -> code
        reason = os.strerror(self.failure.errno or errno.EIO)
        sys.stderr.write(f"ciruela: standard output: {reason[0].lower()}{reason[1:]}\n")
        return EXIT_OUTPUT
