"""Processes of a benchmark: started here, stopped by their process id whatever happens, and their processor time."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TICKS = os.sysconf("SC_CLK_TCK")
TERM_S = 10.0
START_S = 90.0
PACKAGES = str(Path(__file__).resolve().parent.parent)


class CheckFailed(Exception):
    """Something is not as it has to be; the message says what was seen."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that ran to its end."""

    code: int
    out: str
    wall_s: float
    cpu_s: float


@dataclass(slots=True)
class Child:
    """A process that runs in the background; its output goes to ``log``."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def cpu_s(self) -> float:
        """Processor time so far, of the process and of the children that it has waited for."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return sum(map(int, fields[11:15])) / TICKS

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """End it, by force after :data:`TERM_S`."""
        if self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(TERM_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Children:
    """All background processes of a run. Leaving the context stops them, also after Ctrl-C or SIGTERM."""

    def __init__(self) -> None:
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave daemons behind
        try:
            for child in self._children:
                if child.process.poll() is None:
                    child.process.send_signal(signal.SIGCONT)
                    child.process.terminate()
            for child in self._children:
                child.stop()
        finally:
            signal.signal(signal.SIGINT, before)

    def start(self, name: str, command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None) -> Child:
        """Start a process in the background."""
        with open(log, "ab") as out, open(os.devnull, "rb") as nothing:
            process = subprocess.Popen(command, stdin=nothing, stdout=out, stderr=out, env=environ, start_new_session=True)
        child = Child(name, process, log)
        self._children.append(child)
        return child


def _interrupt(_number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def run_together(commands: Sequence[Sequence[str]], environ: Mapping[str, str] | None = None, timeout_s: float = 900.0) -> list[Finished]:
    """Run commands at the same time; each gets its wall time from the common start, and the processor time of its process tree."""
    began_s = time.perf_counter()
    running: list[tuple[subprocess.Popen[bytes], Any, list[bytes]]] = []
    finished = []
    try:
        for command in commands:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ, start_new_session=True
            )
            parts: list[bytes] = []
            reader = threading.Thread(target=_read, args=(process, parts), daemon=True)
            reader.start()
            running.append((process, reader, parts))
        for process, reader, parts in running:
            timer = threading.Timer(max(1.0, timeout_s - (time.perf_counter() - began_s)), _kill, (process.pid,))
            timer.start()
            try:
                _, status, usage = os.wait4(process.pid, 0)
            finally:
                timer.cancel()
            wall_s = time.perf_counter() - began_s
            process.returncode = os.waitstatus_to_exitcode(status)
            reader.join(5)
            finished.append(Finished(process.returncode, b"".join(parts).decode(errors="replace"), wall_s, usage.ru_utime + usage.ru_stime))
    finally:
        for process, _, _ in running:
            if process.returncode is None:
                _kill(process.pid)
                process.wait()
    return finished


def run(command: Sequence[str], environ: Mapping[str, str] | None = None, timeout_s: float = 900.0) -> Finished:
    """Run one command to its end."""
    return run_together([command], environ, timeout_s)[0]


def _read(process: subprocess.Popen[bytes], parts: list[bytes]) -> None:
    assert process.stdout is not None
    while data := process.stdout.read1(65536):  # type: ignore[attr-defined]
        parts.append(data)
    process.stdout.close()


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def free_port(hosts: Sequence[str]) -> int:
    """A port that is free on all ``hosts``, TCP and UDP."""
    for _ in range(100):
        held: list[socket.socket] = []
        port = 0
        try:
            for host in hosts:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    held.append(socket.socket(socket.AF_INET, kind))
                    held[-1].bind((host, port))
                    port = held[-1].getsockname()[1]
        except OSError:
            continue
        finally:
            for one in held:
                one.close()
        return port
    raise CheckFailed(f"no port is free on all of {', '.join(hosts)}")


def page(host: str, port: int, path: str) -> Any:
    """A JSON page of a daemon. Raises OSError or ValueError."""
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=5) as answer:
        return json.loads(answer.read())


def until(what: str, good: Callable[[], bool], child: Child | None = None, patience_s: float = START_S) -> None:
    """Ask until it is so. Raises CheckFailed with the log of ``child``."""
    end_s = time.monotonic() + patience_s
    problem = "not yet"
    while time.monotonic() < end_s:
        try:
            if good():
                return
        except (OSError, ValueError, urllib.error.URLError) as error:
            problem = str(error)
        if child is not None and child.process.poll() is not None:
            raise CheckFailed(f"{child.name} ended with {child.process.returncode}:\n{child.tail()}")
        time.sleep(0.1)
    raise CheckFailed(f"{what}: {problem} after {patience_s:.0f} s" + (f"\n{child.tail()}" if child is not None else ""))


def environment(**more: str) -> dict[str, str]:
    """Environment for our programs: this checkout first, no keys of the user, no byte code left behind, nothing known of earlier runs."""
    kept = {name: value for name, value in os.environ.items() if name not in ("CIRUELA_KEY", "SSH_AUTH_SOCK")}
    path = os.pathsep.join(filter(None, (PACKAGES, os.environ.get("PYTHONPATH", ""))))
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    own = {"PYTHONPYCACHEPREFIX": str(_scratch() / "bytecode"), "XDG_CACHE_HOME": tempfile.mkdtemp(dir=_scratch())}
    return {**kept, **own, "PYTHONPATH": path, **more}


@cache
def _scratch() -> Path:
    """A directory that is gone when this program ends."""
    made = Path(tempfile.mkdtemp(prefix="ciruela-benchmark-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


SYNC = (
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'ciruela-sync'; from ciruela.client.start import ciruela_sync; sys.exit(ciruela_sync())",
)
FOREGROUND = ("--nodaemon", "--pidfile=")
TWISTD = (sys.executable, "-c", "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()", *FOREGROUND)
