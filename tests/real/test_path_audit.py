"""Bench G: every path that a running daemon gives to the system, written down by strace; and somebody who moves directories below it."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import sysconfig
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk.syscalls import EXCHANGE, renameat2
from ciruela.index.digest import HashKind
from ciruela.model.ids import ImageId
from ciruela.proto import codec
from ciruela.proto import messages as m
from tests.net.bench import frame, frames
from tests.proof import shows
from tests.real.daemons import APPS, CFG, RealCluster, RealNode
from tests.real.mounts import needs
from tests.real.strace import Call, Tracer, calls, forbidden
from tests.real.trees import shape, small_tree

DEEP = "append-only: false\nnum-levels: 2\n"
RACE_S = 2.5
"""How long directories are exchanged with symlinks while uploads arrive."""

PATH_CALLS = "%file"
"""Every call that takes a path."""

_TEXT = r'"((?:[^"\\]|\\.)*)"'
_OPENED = r"(?:AT_FDCWD|\d+)<([^>]*)>(?:\(deleted\))?"
_PATHS = re.compile(rf"(?:(?P<fd>AT_FDCWD|\d+)<(?P<where>[^>]*)>(?:\(deleted\))?, )?(?P<text>{_TEXT})")
_RESULT = re.compile(rf"\d+<(?P<path>[^>]*)>")

INTERPRETER = (sys.prefix, sys.base_prefix, *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
"""Modules that are imported when they are first needed."""

OUTSIDE: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Named:
    """One path of one call. ``where`` is the directory that ``name`` is relative to; ``by_fd``: an open one, not the working directory."""

    call: Call
    by_fd: bool
    where: str
    name: str

    @property
    def path(self) -> str:
        """Without looking at any symlink."""
        return os.path.normpath(os.path.join(self.where, self.name))

    @property
    def single(self) -> bool:
        """Whether it is one component, or the open directory itself, below an open directory."""
        return self.by_fd and "/" not in self.name and self.name != ".."


def plain(text: str) -> str:
    """A string as strace writes it, without its escapes."""
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape").encode("latin-1", "replace").decode("utf-8", "replace")


def named(call: Call) -> Iterator[Named]:
    """The paths in one call. The target of a symlink is content: nothing is looked up."""
    found = list(_PATHS.finditer(call.args))
    if call.name in ("execve", "execveat"):
        found = found[:1]
    elif call.name in ("symlink", "symlinkat"):
        found = found[1:]
    elif call.name in ("readlink", "readlinkat", "getcwd"):
        found = found[:1]  # the other is the answer
    for one in found:
        if call.name == "getcwd":
            return
        by_fd = one["fd"] not in (None, "AT_FDCWD")
        yield Named(call, by_fd, plain(one["where"] or ""), plain(one["text"][1:-1]))


def below(path: str, tops: Sequence[str]) -> bool:
    """Whether ``path`` is one of ``tops`` or in one."""
    return any(path == top or path.startswith(f"{top}/") for top in tops)


class Audit:
    """What a daemon may name: ``tops`` are its base dirs and its db directory, ``config`` its configuration."""

    def __init__(self, tops: Sequence[str], config: str, outside: Sequence[str]) -> None:
        self.tops = tops
        self.config = config
        self.outside = outside
        self.seen = 0

    def complaints(self, out: Path) -> list[str]:
        """What it named and may not have."""
        found = []
        for call in calls(out):
            for one in named(call):
                why = self.complaint(one)
                if why:
                    found.append(f"{why}: {call.name}({call.args}) = {call.result}")
        return found

    def complaint(self, one: Named) -> str:
        """Why ``one`` is not allowed; nothing if it is."""
        path = one.path
        if below(path, self.tops):
            self.seen += 1
            if path in self.tops and os.path.isabs(one.name):
                return ""
            if not one.single:
                return "not a single component in an open directory"
            result = _RESULT.match(one.call.result)
            if result is not None and "O_TMPFILE" not in one.call.args and plain(result["path"]) != path:
                return "a symlink was followed"
            return ""
        if below(path, (self.config,)):
            return ""
        if below(path, INTERPRETER) or below(path, tuple(OUTSIDE)):
            return ""
        return "outside"
