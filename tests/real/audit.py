"""Whether a daemon touches only what it may, judged by every path that it gave to the system (bench G, threats 6.2)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.real.strace import Call

AT = {
    "openat": ((0, 1),),
    "openat2": ((0, 1),),
    "newfstatat": ((0, 1),),
    "statx": ((0, 1),),
    "mkdirat": ((0, 1),),
    "mknodat": ((0, 1),),
    "unlinkat": ((0, 1),),
    "readlinkat": ((0, 1),),
    "faccessat": ((0, 1),),
    "faccessat2": ((0, 1),),
    "fchmodat": ((0, 1),),
    "fchownat": ((0, 1),),
    "utimensat": ((0, 1),),
    "symlinkat": ((1, 2),),
    "renameat": ((0, 1), (2, 3)),
    "renameat2": ((0, 1), (2, 3)),
    "linkat": ((0, 1), (2, 3)),
    "inotify_add_watch": ((-1, 1),),
}
"""Where the descriptors and paths are among the arguments of a call; descriptor -1: there is none."""

PLAIN = frozenset(
    (
        *("access", "chdir", "chmod", "chown", "creat", "execve", "getcwd", "getxattr", "lchown", "lgetxattr", "listxattr", "llistxattr"),
        *("lstat", "mkdir", "open", "readlink", "rmdir", "stat", "statfs", "truncate", "unlink", "utime", "utimes"),
    )
)
"""Calls with one path, the first argument."""

START = (
    os.path.realpath(os.path.dirname(os.__file__)),  # the standard library
    "/usr/lib",  # libraries that the dynamic linker finds, and Debian's Python
    "/lib",
    "/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/machine-id",  # the node's id, if it is not given
    "/etc/hosts",  # peers by name
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/passwd",  # twistd looks up who it is
    "/etc/group",
    "/etc/localtime",  # stamps in the log
    "/usr/share/zoneinfo",
    "/usr/share/locale",
    "/etc/mime.types",  # twisted.web, when it is imported; and where other systems have them
    "/etc/httpd",
    "/etc/apache",
    "/etc/apache2",
    "/usr/local/etc/httpd",
    "/usr/local/etc/mime.types",
    "/etc/ssl",  # OpenSSL's configuration
    "/usr/lib/ssl",
    "/usr/local/ssl",
    "/dev/urandom",
    "/dev/null",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/sys",  # how many semaphores and cores there are
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
    "/proc/stat",
)
"""What a Python process reads while it starts, and no more than that."""

WARM = (
    "/proc/self/fd",  # what is hardlinked is named by its open descriptor
    "/proc/self/statm",  # memory, for the status page
    "/proc/self/status",
    "/etc/localtime",  # the C library looks whether it has changed
    "/dev/null",
)
"""What is left of that once the daemon serves."""

_OPEN_FD = re.compile(r"(?:-?\d+|AT_FDCWD)<(.*)>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Named:
    """A path that was given to the system: ``name``, from the directory ``base`` (empty for the working directory)."""

    base: str
    name: str
    working: bool

    @property
    def path(self) -> str:
        """Where it leads, if nothing is followed."""
        return os.path.normpath(os.path.join(self.base, self.name))


def arguments(text: str) -> list[str]:
    """The arguments of a call, as strace writes them."""
    found, begin, depth, quoted, at = [], 0, 0, False, 0
    while at < len(text):
        char = text[at]
        if quoted:
            if char == "\\":
                at += 1
            elif char == '"':
                quoted = False
        elif char == '"':
            quoted = True
        elif char == "<":  # the path of a descriptor; strace writes these two brackets as octal numbers in it
            at = text.index(">", at)
        elif char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        elif char == "," and depth == 0:
            found.append(text[begin:at].strip())
            begin = at + 1
        at += 1
    return [*found, text[begin:].strip()]


def unquoted(text: str) -> str | None:
    """The text of a string argument; None for NULL."""
    if text == "NULL":
        return None
    if not (text.startswith('"') and text.endswith('"')):
        raise AssertionError(f"not a whole string: {text}")
    return text[1:-1].encode("latin-1", "surrogateescape").decode("unicode_escape").encode("latin-1").decode("utf-8", "surrogateescape")


def descriptor(text: str) -> str:
    """The path of a descriptor."""
    found = _OPEN_FD.fullmatch(text)
    if found is None:
        raise AssertionError(f"not a descriptor with its path: {text}")
    return found[1].removesuffix("(deleted)").rstrip()


def named(call: Call) -> Iterator[Named]:
    """The paths of a call. Raises AssertionError for a call that is not known here: it might name something."""
    args = arguments(call.args)
    if call.name in AT:
        for fd, path in AT[call.name]:
            name = unquoted(args[path])
            if name is not None:
                base = descriptor(args[fd]) if fd >= 0 else "/"
                yield Named(base, name, fd >= 0 and args[fd].startswith("AT_FDCWD"))
    elif call.name in PLAIN:
        if call.name != "getcwd":
            name = unquoted(args[0])
            if name is not None:
                yield Named("", name, True)
    else:
        raise AssertionError(f"what {call.name} names is not known to the audit: {call}")


def below(path: str, tops: Sequence[str]) -> bool:
    """Whether ``path`` is one of ``tops`` or below one."""
    return any(path == top or path.startswith(top.rstrip("/") + "/") for top in tops)


class Audit:
    """Judges calls. ``roots`` are the base dirs and the db directory, ``config`` the config directory, ``packages`` where code is."""

    def __init__(self, roots: Sequence[Path], config: Path, packages: Sequence[str]) -> None:
        self.roots = [str(root) for root in roots]
        self.config = str(config)
        self.start = [*START, *packages]
        self.seen = 0

    def complaint(self, call: Call, warm: bool) -> str:
        """Why a call is not allowed; nothing if it is. ``warm``: the daemon had been serving for a while."""
        for one in named(call):
            self.seen += 1
            why = self._judge(call, one, warm)
            if why:
                return f"{why}: {call.name}({call.args}) = {call.result}"
        return ""

    def _judge(self, call: Call, one: Named, warm: bool) -> str:
        if not one.name.startswith("/") and not one.working:
            return self._relative(call, one)
        path = one.path if one.base or one.name.startswith("/") else one.name
        if call.name == "linkat" and re.fullmatch(r"/proc/self/fd/\d+", path):
            return ""
        if path in self.roots:
            looked_at = call.name in ("newfstatat", "access") and not warm  # while the configuration is checked
            opened = call.name == "openat" and "O_DIRECTORY" in call.args
            return "" if looked_at or opened else "a root is touched, not opened as a directory"
        if below(path, self.roots):
            return "below a root by a path"
        if below(path, [self.config]) or below(path, WARM):
            return ""
        if warm:
            return "a path of the system"
        if call.result.startswith("-1 ENOENT") or below(path, self.start):  # the search for modules looks where none are
            return ""
        return "" if any(top.startswith(path.rstrip("/") + "/") for top in self.start) else "outside"

    def _relative(self, call: Call, one: Named) -> str:
        tops = [*self.roots, self.config]
        if not below(one.base, tops):
            return "" if one.name == "" and "AT_EMPTY_PATH" in call.args else "from a directory that is not ours"
        if one.name == "":
            return "" if "AT_EMPTY_PATH" in call.args else "an empty name"
        if "/" in one.name or one.name == "..":
            return "more than one component"
        if one.name == "." and not (call.name == "openat" and "O_DIRECTORY" in call.args):
            return "the directory itself, by a name"
        if call.name == "openat":
            if "O_NOFOLLOW" not in call.args:
                return "a symlink would be followed"
            opened = _OPEN_FD.fullmatch(call.result)
            if opened is not None and not below(opened[1], tops):
                return "led out of the roots"
        elif call.name in ("newfstatat", "statx", "fchmodat", "fchownat", "utimensat", "faccessat", "faccessat2"):
            if "AT_SYMLINK_NOFOLLOW" not in call.args:
                return "a symlink would be followed"
        elif call.name == "linkat" and "AT_SYMLINK_FOLLOW" in call.args and not call.args.split('"')[1].startswith("/proc/self/fd/"):
            return "a symlink would be followed"
        return ""
