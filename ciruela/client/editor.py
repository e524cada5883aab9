"""The user's editor on a private copy of a file. The terminal is the editor's while it runs, and so is Ctrl-C.

One file of the user, of any size: hashed in blocks, and given to the nodes from the disk.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from ciruela.client.orders import LocalProblem
from ciruela.disk.openfile import OpenFile
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.tree import File
from ciruela.interfaces import InThread

HASHED_AT_ONCE = 8 * 1024 * 1024
"""Bytes that one job in a thread reads and hashes: between two of them it can be interrupted, and tells how far it is."""


class LocalFile:
    """A file that is open. It is read by position, so several threads may do it at once."""

    def __init__(self, name: str) -> None:
        """Blocking. Raises LocalProblem, with what to do, for what cannot be read or is no regular file."""
        self.name = name
        try:
            self._file = OpenFile(os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), name)
            status = self._file.stat()
            if stat.S_ISDIR(status.st_mode):
                self.close()
                raise LocalProblem(f"{name} is a directory; name a file, or put a whole directory with ciruela sync --replace")
            if not stat.S_ISREG(status.st_mode):
                self.close()
                raise OSError(errno.EINVAL, "it is not a regular file")
        except (OSError, ValueError) as error:
            raise LocalProblem(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
        self.size = status.st_size
        self.executable = bool(status.st_mode & stat.S_IXUSR)
        self._hashes: dict[HashKind, bytes] = {}

    def close(self) -> None:
        """Let go of it."""
        self._file.close()

    async def hashes(self, kind: HashKind, in_thread: InThread, progressed: Callable[[int], None]) -> bytes:
        """The hashes of all blocks, one after the other. ``progressed`` is told how many bytes are hashed.

        Raises LocalProblem when it cannot be read, or has not the size any more that it had when it was opened.
        """
        if kind not in self._hashes:
            parts: list[bytes] = []
            for offset in range(0, self.size, HASHED_AT_ONCE):
                parts.append(await in_thread(self._hash, kind, offset))
                progressed(min(offset + HASHED_AT_ONCE, self.size))
            if await in_thread(self._read, 1, self.size):
                raise self._changed()
            self._hashes[kind] = b"".join(parts)
        return self._hashes[kind]

    def _hash(self, kind: HashKind, offset: int) -> bytes:
        data = memoryview(self._read(min(HASHED_AT_ONCE, self.size - offset), offset))
        if len(data) < min(HASHED_AT_ONCE, self.size - offset):
            raise self._changed()
        return b"".join(kind.hash(data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES))

    def _read(self, size: int, offset: int) -> bytes:
        try:
            return self._file.read_at(size, offset)
        except OSError as error:
            raise LocalProblem(f"{self.name} cannot be read: {error.strerror}") from None

    def _changed(self) -> LocalProblem:
        return LocalProblem(f"{self.name} changed while it was read; run the command again")

    def blocks(self, kind: HashKind, file: File, numbers: Sequence[int]) -> dict[int, bytes]:
        """Those of its blocks ``numbers`` that are still what ``file``, in an index, says. Blocking."""
        found: dict[int, bytes] = {}
        for number in numbers:
            try:
                data = self._file.read_at(file.block_size(number), number * BLOCK_BYTES)
            except OSError:
                continue
            if kind.hash(data) == file.block_hash(number):
                found[number] = data
        return found


VARIABLES = ("CIRUELA_EDITOR", "VISUAL", "EDITOR")
"""Variables that name an editor, the first one that is not empty."""

USUAL = ("vim", "vi", "nano", "editor")
"""Editors that are tried when nothing names one."""

_OURS = (signal.SIGINT, signal.SIGQUIT)

RunEditor = Callable[[Any, Sequence[str], str], Deferred[int]]
"""Runs an editor, given by its words, on the file of that name; fires with its exit code, negative for a signal."""


def choose(named: str | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The words of the editor to run, the first as an absolute path: ``named``, else of a variable, else one of the usual ones.

    Raises LocalProblem when it cannot be found.
    """
    candidates = [("--editor", named), *((f"${name}", environ.get(name)) for name in VARIABLES)]
    for origin, text in candidates:
        if not text or not text.strip():
            continue
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise LocalProblem(f"the editor {text!r} of {origin} cannot be read: {error}") from None
        program = shutil.which(words[0], path=environ.get("PATH")) if words and words[0] else None
        if program is None:
            raise LocalProblem(f"the editor {text!r} of {origin} is not there; name another one with --editor")
        return (program, *words[1:])
    for name in USUAL:
        program = shutil.which(name, path=environ.get("PATH"))
        if program is not None:
            return (program,)
    raise LocalProblem(f"there is no editor ({', '.join(USUAL)}); name one with --editor or $EDITOR")


@contextmanager
def terminal_given_away() -> Iterator[None]:
    """Ctrl-C and its like reach the whole group of processes: meanwhile they are the editor's alone.

    The handlers do nothing, instead of ignoring the signals: what is ignored, the editor would inherit.
    """
    before = {number: signal.getsignal(number) for number in _OURS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


class _EditorExit(ProcessProtocol):
    def __init__(self, ended: Deferred[int]) -> None:
        self._ended = ended

    def processEnded(self, reason: Failure) -> None:  # noqa: N802  the name is Twisted's
        """Tell how it ended."""
        if not self._ended.called:
            number = getattr(reason.value, "signal", None)
            self._ended.callback(-number if number else getattr(reason.value, "exitCode", None) or 0)


def run(reactor: Any, words: Sequence[str], name: str) -> Deferred[int]:
    """Implements :data:`RunEditor`. No shell comes near it; cancelling asks the editor to hang up."""
    process: list[Any] = []

    def hang_up(_: object) -> None:
        with suppress(ProcessExitedAlready):
            process[0].signalProcess("HUP")

    ended: Deferred[int] = Deferred(hang_up)
    process.append(reactor.spawnProcess(_EditorExit(ended), words[0], [*words, name], env=None, childFDs={0: 0, 1: 1, 2: 2}))
    return ended


class Draft:
    """The text that is edited, in a directory that only the user can enter. Its name ends as that of the file, for editors that care.

    All methods block, for moments. They raise LocalProblem.
    """

    def __init__(self, name: str, text: bytes | None) -> None:
        """``text`` is None for a file that is not there yet."""
        self._directory = ""
        try:
            self._directory = tempfile.mkdtemp(prefix="ciruela-edit-")
            self.path = os.path.join(self._directory, name)
            if text is not None:
                with open(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    file.write(text)
        except OSError as error:
            self.remove()
            raise LocalProblem(f"no copy can be made in {tempfile.gettempdir()}: {error.strerror} (choose a place with $TMPDIR)") from None
        self._before = text

    def exists(self) -> bool:
        """Tells whether there is a file."""
        return os.path.lexists(self.path)

    def changed(self) -> bool:
        """Tells whether it is not what it was at first. Raises LocalProblem."""
        try:
            with open(self.path, "rb") as file:
                return self._before is None or file.read(len(self._before) + 1) != self._before
        except FileNotFoundError:
            return self._before is not None
        except OSError as error:
            raise LocalProblem(f"{self.path} cannot be read: {error.strerror}") from None

    def remove(self) -> None:
        """Remove it with its directory, and what the editor left there."""
        if self._directory:
            shutil.rmtree(self._directory, ignore_errors=True)
