"""Real system calls of a running daemon: failed, cut short by SIGKILL, or written down, by strace."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.real.daemons import PATIENCE_S, POLL_S

FILE_CALLS = "openat,mkdirat,unlinkat,?renameat,renameat2,linkat,symlinkat,readlinkat,newfstatat,pwrite64,fchmod,utimensat,fsync,syncfs"
"""Everything that a daemon changes on disk. Only calls that are traced can be failed."""

KILL = "signal=SIGKILL"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to the ``when``-th ``call`` of each thread that was traced, counted from 1; with ``lasting`` also to all later ones."""

    call: str
    when: int
    effect: str = KILL
    lasting: bool = False

    def __str__(self) -> str:
        return f"{self.call}:{self.effect}:when={self.when}{'+' if self.lasting else ''}"


@cache
def forbidden() -> str:
    """Why this process cannot trace another one, or nothing."""
    if shutil.which("strace") is None:
        raise AssertionError("strace is missing; install it")
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            tracer = Tracer(other.pid, os.devnull, "openat")
        except AssertionError as error:
            return may_trace(os.geteuid(), str(error))
        else:
            tracer.detach()
            return ""
        finally:
            other.kill()


def may_trace(user: int, said: str) -> str:
    """Why ``user`` cannot trace, from what strace said. Only what is forbidden is a reason, else AssertionError."""
    if "Operation not permitted" in said or "Permission denied" in said:
        return f"{'this root' if user == 0 else 'this user'} may not trace other processes ({said.strip()})"
    raise AssertionError(said)


class Tracer:
    """strace at a running process and all its threads. What they call is written to the file ``out``, paths of descriptors included.

    The counters of faults begin when it is attached.
    """

    def __init__(self, pid: int, out: Path | str, calls: str = FILE_CALLS, faults: Sequence[Fault] = ()) -> None:
        command = ["strace", "-f", "-y", "-ttt", "-s", "4096", "-o", str(out), "-e", f"trace={calls}"]
        for fault in faults:
            command += ["-e", f"inject={fault}"]
        self.process = subprocess.Popen([*command, "-p", str(pid)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert self.process.stderr is not None
        said = b""
        while b" attached" not in said:  # strace says so once all threads are stopped and go on again
            more = os.read(self.process.stderr.fileno(), 4096)
            if not more:
                self.process.wait()
                self.process.stderr.close()
                raise AssertionError(f"strace did not begin: {said.decode()}")
            said += more

    def detach(self) -> None:
        """Let the process go on alone, if it still runs, and complete the file."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()


# -- what was written down --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Call:
    """One system call. ``args`` as strace writes them; ``result`` what follows the equals sign."""

    pid: int
    at_s: float
    name: str
    args: str
    result: str

    @property
    def injected(self) -> bool:
        """Whether it was failed by us."""
        return "(INJECTED)" in self.result


_LINE = re.compile(r"(?P<pid>\d+) +(?P<at>\d+\.\d+) (?P<rest>.*)")
_WHOLE = re.compile(r"(?P<name>\w+)\((?P<args>.*)\) += (?P<result>.*)", re.DOTALL)
_RESUMED = re.compile(r"<\.\.\. (?P<name>\w+) resumed> ?(?P<rest>.*)")
_UNFINISHED = " <unfinished ...>"
_DETACHED = " <detached ...>"


def calls(out: Path) -> Iterator[Call]:
    """The calls in a file of strace, in the order in which they ended.

    A call is left out if its end was not seen: its process was killed, or strace was ended before it.
    """
    begun: dict[int, str] = {}
    for line in out.read_text(errors="surrogateescape").splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            raise AssertionError(f"{out}: not understood: {line}")
        pid, rest = int(found["pid"]), found["rest"]
        if rest.startswith(("+++", "---")):
            continue
        if rest.endswith(_DETACHED):
            begun.pop(pid, None)
            continue
        if rest.endswith(_UNFINISHED):
            begun[pid] = rest.removesuffix(_UNFINISHED)
            continue
        resumed = _RESUMED.fullmatch(rest)
        if resumed is not None:
            rest = begun.pop(pid) + resumed["rest"]
        whole = _WHOLE.fullmatch(rest)
        if whole is None:
            raise AssertionError(f"{out}: not understood: {rest}")
        yield Call(pid, float(found["at"]), whole["name"], whole["args"], whole["result"])


def whole(out: Path) -> None:
    """Wait until strace, which follows a process that has ended, has written everything."""
    end_s = time.monotonic() + PATIENCE_S
    while not re.search(r"\+\+\+ (?:exited|killed)", (out.read_text(errors="replace").splitlines() or [""])[-1]):
        if time.monotonic() > end_s:
            raise AssertionError(f"{out} is not complete")
        time.sleep(POLL_S)
