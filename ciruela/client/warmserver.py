"""The process that waits for work (``CIRUELA_WARM``, see ``warm``): it loads everything once, and forks for each command.

It never reads what a command is given: the fork does. So no key, no argument and no variable of a user is ever in its memory.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import resource
import selectors
import signal
import socket
import stat
import sys
from contextlib import suppress
from typing import Any, Never

from ciruela.client import start
from ciruela.client.warm import (
    DESCRIPTORS,
    GO_ON,
    LIMITS,
    MOST_ORDER_BYTES,
    PASSED_ON,
    REPLY,
    open_directory,
    seconds_wanted,
    socket_name,
    user_of,
)

PROGRAMS = ("main", "main_sync")
ORDER_S = 5.0
"""Time in which a command that has connected has to say what it wants."""

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Wait for work at the socket of this name, until there is none for so many seconds."""
    name, idle_s = sys.argv[1], seconds_wanted(sys.argv[2])
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # what was open where this was started, a pipe maybe, whose reader waits for its end
    os.umask(0o077)
    directory = open_directory()
    if name != socket_name():  # started otherwise than what asks
        return
    start.load()
    from twisted.internet import default  # noqa: F401  all but the reactor itself: each fork has its own

    if len(os.listdir("/proc/self/task")) > 1:  # a fork would lack the others
        return
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    place = f"/proc/self/fd/{directory}/{name}"
    listener.bind(f"{place}.{os.getpid()}")
    os.chmod(f"{place}.{os.getpid()}", 0o600)
    os.rename(f"{place}.{os.getpid()}", place)  # over one that nobody serves any more
    mine = os.stat(place).st_ino
    listener.listen(64)
    try:
        _ForkServer(listener).serve(idle_s)
    finally:
        with suppress(FileNotFoundError):
            if os.stat(place).st_ino == mine:
                os.unlink(place)


class _Fork:
    """A command at work in a fork. ``running``: a descriptor that can be read when it has ended."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.running = os.pidfd_open(pid)

    def send(self, number: int) -> None:
        """Send it a signal."""
        signal.pidfd_send_signal(self.running, number)

    def ended(self) -> int:
        """Gives its end, as ``Popen.returncode``."""
        os.close(self.running)
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


class _ForkServer:
    """Takes orders, one fork for each. One thread, no reactor: both would be shared by all that is forked."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._events = selectors.DefaultSelector()
        self._events.register(listener, selectors.EVENT_READ, self._accept)
        self._at_work = 0

    def serve(self, idle_s: float) -> None:
        """Serve until nothing happens for ``idle_s`` seconds and nobody is at work."""
        while True:
            ready = self._events.select(None if self._at_work else idle_s)
            if not ready and not self._at_work:
                return
            for key, _ in ready:
                key.data()

    def _accept(self) -> None:
        link, _ = self._listener.accept()
        if user_of(link) != os.geteuid():  # guard: A48
            link.close()
            return
        link.settimeout(ORDER_S)
        descriptors = array.array("i")
        try:
            data, found, _, _ = link.recvmsg(1, socket.CMSG_SPACE(DESCRIPTORS * descriptors.itemsize))
        except OSError:
            link.close()
            return
        for level, kind, content in found:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        link.settimeout(None)
        if data == b"\0" and len(descriptors) == DESCRIPTORS:
            self._fork(link, descriptors.tolist())
        else:
            link.close()
        for number in descriptors:
            os.close(number)

    def _fork(self, link: socket.socket, descriptors: list[int]) -> None:
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            _work(descriptors, server)
        fork = _Fork(pid)
        self._at_work += 1
        self._events.register(link, selectors.EVENT_READ, lambda: self._heard(link, fork))
        self._events.register(fork.running, selectors.EVENT_READ, lambda: self._ended(link, fork))

    def _heard(self, link: socket.socket, fork: _Fork) -> None:
        """A signal for the fork; the end of the command that asked ends it as well."""
        try:
            data = link.recv(1)
        except OSError:
            data = b""
        if data:
            fork.send(data[0] if data[0] in (*PASSED_ON, signal.SIGSTOP) else signal.SIGTERM)
        else:
            self._events.unregister(link)
            fork.send(signal.SIGKILL)

    def _ended(self, link: socket.socket, fork: _Fork) -> None:
        self._at_work -= 1
        self._events.unregister(fork.running)
        if link in self._events.get_map():
            self._events.unregister(link)
        try:
            link.send(REPLY.pack(fork.ended()))
        except OSError:
            return  # it did not wait for that
        finally:
            link.close()


def _work(descriptors: list[int], server: int) -> Never:
    """Become the process that was asked for, and end as it does. What goes wrong before lets the command run where it was called."""
    code = GO_ON
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() == server:
            program, has_terminal = _become(descriptors)
            code = start.run(program, _leave if has_terminal else _no_terminal)
    finally:
        start.end(code)


def _become(descriptors: list[int]) -> tuple[str, bool]:
    """Take over what the process had. Gives the program, and whether it has a terminal."""
    text, here, *standard = descriptors
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
    os.fchdir(here)
    size = os.fstat(text).st_size
    if not stat.S_ISREG(os.fstat(text).st_mode) or size > MOST_ORDER_BYTES:
        raise ValueError("no order")
    order: dict[str, Any] = json.loads(os.pread(text, size, 0))
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.setpgid(0, 0)
    os.umask(order["umask"])
    for number, (soft, hard) in enumerate(order["limits"][:LIMITS]):
        if resource.getrlimit(number) != (soft, hard):
            resource.setrlimit(number, (soft, hard))
    for number in order["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, order["blocked"])
    os.environ.clear()
    os.environ.update(order["environ"])
    sys.argv = order["argv"]
    program = order["program"]
    if program not in PROGRAMS:
        raise ValueError("no such program")
    return program, order["terminal"]


def _leave() -> Any:
    """Gives what asks for a passphrase: the terminal is that of another session, so the command has to run there."""

    def ask(_prompt: str) -> Never:
        os._exit(GO_ON)

    return ask


def _no_terminal() -> None:
    """There is none."""
