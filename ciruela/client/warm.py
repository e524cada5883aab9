"""Warm start (``CIRUELA_WARM``): a process that has everything loaded runs an upload in a fork of itself, as if it had been started here.

The command's side. It knows whom it talks to: the socket and its directory are this user's alone, the kernel names the user at the other
end, and the socket's name stands for everything that a process inherits and a fork of another one would not: program, interpreter, groups,
capabilities, namespaces, control group, locale. Whatever else belongs to the command goes over the socket: its arguments and environment,
directory, limits, masks, ignored signals, and the three standard descriptors themselves. Signals are passed on, the exit code comes back.

In any doubt nobody is asked, and the command runs here. Little is imported: that is the time that a warm start takes.
"""

from __future__ import annotations

import array
import hashlib
import json
import os
import resource
import signal
import socket
import stat
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

VARIABLE = "CIRUELA_WARM"
MOST_S = 24 * 3600
"""Longest time that a process without work may wait for more."""

GO_ON = 125
"""Exit code of a fork that can do nothing of what is wanted without the terminal: the command runs as if it had not been asked."""

REPLY = struct.Struct("=i")
"""The end of the fork, as ``Popen.returncode``."""

DESCRIPTORS = 5
"""Descriptors that come with an order: of its text, of the current directory, and 0, 1 and 2."""

MOST_ORDER_BYTES = 16 * 1024 * 1024
"""Arguments and environment of a process are shorter than this on Linux, unless it is built otherwise."""

LIMITS = 16
"""Kinds of limits of a process on Linux (getrlimit(2))."""

CONNECT_S = 1.0
PASSED_ON = (
    *(signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGWINCH, signal.SIGCONT),
)
_INHERITED = ("PYTHON", "LC_", "LANG", "LD_", "GLIBC_", "MALLOC_")
"""Beginnings of variables that count when a process begins."""

_STATUS = (
    "Uid",
    "Gid",
    "Groups",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Cpus_allowed",
    "Mems_allowed",
)


class Unavailable(Exception):
    """Reason why a command runs here."""


class NobodyWaits(Unavailable):
    """No process waits for work: the next command finds one, if this one begins it."""


def seconds_wanted(text: str) -> int:
    """The value of the variable. Raises ValueError for what is no number of seconds from 1 to :data:`MOST_S`."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= MOST_S):
        raise ValueError(f"{VARIABLE} is not a number of seconds from 1 to {MOST_S}")
    return int(text)


def inherited() -> dict[str, str]:
    """The variables that count when a process begins, which the server gets; it gets no others, which may hold a key."""
    return {name: value for name, value in os.environ.items() if name.startswith(_INHERITED) or name in ("TZ", "XDG_RUNTIME_DIR")}


def open_directory() -> int:
    """A descriptor of the directory for sockets. Raises Unavailable unless it is this user's alone."""
    path = os.environ.get("XDG_RUNTIME_DIR", "")
    if not path.startswith("/"):
        raise Unavailable("XDG_RUNTIME_DIR is not set")
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from None
    found = os.fstat(directory)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:  # guard: A48
        os.close(directory)
        raise Unavailable(f"{path} is not this user's alone")
    return directory


def socket_name() -> str:
    """Name of the socket for processes that begin as this one did."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    version = os.stat(os.path.join(package, "_version.py"))
    parts: list[object] = [package, version.st_dev, version.st_ino, version.st_mtime_ns, sys.version, sys.executable, sys.prefix, sys.flags]
    parts += [sorted(inherited().items()), os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), os.getresuid(), os.getresgid()]
    with open("/proc/self/status", encoding="utf-8", errors="replace") as status:
        parts += [line for line in status if line.partition(":")[0] in _STATUS]
    parts += [os.readlink(f"/proc/self/ns/{name}") for name in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")]
    parts.append(os.stat("/").st_ino)
    for name in ("cgroup", "attr/current", "oom_score_adj"):
        try:
            with open(f"/proc/self/{name}", "rb") as file:
                parts.append(file.read())
        except OSError:  # a kernel without it, which is so for all
            parts.append(None)
    return f"ciruela-warm-{hashlib.blake2b(repr(parts).encode('utf-8', 'surrogateescape'), digest_size=16).hexdigest()}"


def user_of(link: socket.socket) -> int:
    """The user at the other end, as the kernel says."""
    _, user, _ = struct.unpack("=iII", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(user)


def elsewhere(program: str) -> int:
    """Has ``program`` run by a fork of the process that waits for that. Gives the exit code.

    Raises Unavailable, and then nothing was done.
    """
    if os.getuid() != os.geteuid() or os.getgid() != os.getegid():  # guard: A48
        raise Unavailable("this process runs for another user")
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # guard: K8.1
            raise Unavailable(f"descriptor {number} is closed") from None  # what is opened next would get its number, and be sent
    directory = open_directory()
    try:
        link = _connected(directory, socket_name())
    finally:
        os.close(directory)
    with link:
        try:
            _order(link, program)
        except OSError as error:
            raise Unavailable(f"nobody takes the order: {error}") from None
        _pass_signals_on(link)
        reply = link.recv(REPLY.size)
    if len(reply) != REPLY.size:
        sys.stderr.write("ciruela: the process that this command ran in has gone\n")
        return 1
    code: int = REPLY.unpack(reply)[0]
    if code == GO_ON:
        raise Unavailable("a passphrase has to be typed")
    if code < 0:  # as it ended
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code if code >= 0 else 128 - code


def _connected(directory: int, name: str) -> socket.socket:
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        raise NobodyWaits("nobody waits for work") from None
    # guard: A48
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o600:
        raise Unavailable(f"{name} is not this user's alone")
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        link.settimeout(CONNECT_S)
        link.connect(f"/proc/self/fd/{directory}/{name}")
        if user_of(link) != os.geteuid():  # guard: A48
            raise Unavailable("another user waits for work there")
        link.settimeout(None)
    except OSError as error:
        link.close()
        raise NobodyWaits(f"nobody waits for work: {error}") from None
    except Unavailable:
        link.close()
        raise
    return link


def _order(link: socket.socket, program: str) -> None:
    """Send everything of this process that its work depends on."""
    mask = os.umask(0o077)
    os.umask(mask)
    order = {
        "program": program,
        "argv": sys.argv,
        "environ": dict(os.environ),
        "umask": mask,
        "limits": [resource.getrlimit(number) for number in range(LIMITS)],
        "ignored": [number for number in (*PASSED_ON, signal.SIGTSTP) if signal.getsignal(number) is signal.SIG_IGN],
        "blocked": list(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "terminal": _has_terminal(),
    }
    text = os.memfd_create("order")
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with open(text, "wb", closefd=False) as file:
            file.write(json.dumps(order).encode("ascii"))
        link.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [text, here, 0, 1, 2]))])
    finally:
        os.close(here)
        os.close(text)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _pass_signals_on(link: socket.socket) -> None:
    def send(number: int, _frame: FrameType | None) -> None:
        try:
            link.send(bytes([signal.SIGSTOP if number == signal.SIGTSTP else number]))
        except OSError:
            return  # it has ended, and says so
        if number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)

    for number in (*PASSED_ON, signal.SIGTSTP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, send)


def begin(idle_s: int) -> None:
    """Start a process that waits for work, and ends after ``idle_s`` seconds without any. Whether it does is seen by the next command."""
    code = "from ciruela.client.warmserver import main; main()"
    with open(os.devnull, "r+b") as nothing:
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", f"import os; os.chdir('/'); {code}", socket_name(), str(idle_s)],
            inherited(),
            file_actions=[(os.POSIX_SPAWN_DUP2, nothing.fileno(), number) for number in range(3)],
            setsid=True,
            setsigmask=[],
            setsigdef=[*PASSED_ON, signal.SIGTSTP, signal.SIGCHLD],
        )
