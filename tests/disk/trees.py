"""Trees as dictionaries, their indexes, and a Store over a temporary directory whose threads run in place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred

from ciruela.disk.store import Store
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.emit import emit
from ciruela.index.parse import parse
from ciruela.index.tree import Directory, File, Index, Symlink
from ciruela.model.config import DirConfig
from ciruela.model.versions import SigEntry, State
from ciruela.model.vpath import VPath

P = ParamSpec("P")
T = TypeVar("T")

Content = bytes | str | None
"""A file; a symlink's target; an empty directory. A path that ends in ``*`` is an executable file."""

Spec = dict[str, Content]

SMALL: Spec = {
    "/README": b"hello\n",
    "/run.sh*": b"#!/bin/sh\necho hi\n",
    "/zero": b"",
    "/zero-run*": b"",
    "/dangling": "no such target",
    "/a/big.bin": bytes(range(256)) * 400,
    "/a/link": "../README",
    "/a/b/back\\slash\n": b"x",
    "/a-b/sp ace": b"y",
    "/a-b/üml": b"z",
    "/empty": None,
    "/deep/er/empty": None,
}

CHANGED: Spec = {**SMALL, "/README": b"hello again\n", "/a/big.bin": bytes(range(256)) * 300 + b"tail", "/new/twice": b"x", "/a/b": None}
del CHANGED["/a/b/back\\slash\n"]


def in_place(f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
    """A thread pool that does everything at once."""
    return maybeDeferred(f, *args, **kwargs)


def index_bytes(spec: Spec, kind: HashKind = HashKind.BLAKE2B) -> tuple[Index, bytes]:
    """The index of a tree, parsed and as bytes."""
    directories: dict[tuple[str, ...], list[File | Symlink]] = {(): []}
    for path, content in spec.items():
        executable = path.endswith("*")
        path = path.removesuffix("*")
        parts = tuple(path[1:].split("/"))
        above = parts if content is None else parts[:-1]
        for depth in range(len(above) + 1):
            directories.setdefault(above[:depth], [])
        if isinstance(content, str):
            directories[above].append(Symlink(path, content))
        elif content is not None:
            cut = range(0, len(content), BLOCK_BYTES)
            hashes = b"".join(kind.hash(content[at : at + BLOCK_BYTES]) for at in cut)
            directories[above].append(File(path, executable, len(content), hashes))
    listed = [
        Directory("/" + "/".join(parts), tuple(sorted(entries, key=lambda entry: entry.path.encode())))
        for parts, entries in sorted(directories.items(), key=lambda item: [part.encode() for part in item[0]])
    ]
    image, data = emit(kind, listed)
    return parse(data, image), data


def blocks_of(spec: Spec, index: Index) -> list[tuple[int, bytes]]:
    """All blocks of a tree with their numbers."""
    contents = {path.removesuffix("*"): content for path, content in spec.items() if isinstance(content, bytes)}
    blocks = index.blocks
    found = []
    for number in range(index.block_count):
        file, block = blocks.by_number(number)
        found.append((number, contents[file.path][block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]))
    return found


def state_of(index: Index, time: int = 1_700_000_000_123) -> State:
    """A state with one signature made at ``time``."""
    return State(index.image, (SigEntry(time, bytes([time % 251]) * 64),))


def flat(spec: Spec) -> dict[str, bytes]:
    """What ``MemDisk.files`` tells of a tree."""
    found: dict[str, bytes] = {"/": b""}
    for path, content in spec.items():
        path = path.removesuffix("*")
        above = path
        while above := above.rpartition("/")[0]:
            found[above] = b""
        found[path] = content.encode() if isinstance(content, str) else content or b""
    return found


def on_disk(root: Path) -> dict[str, bytes]:
    """What stands below ``root``, as :func:`flat` tells it."""
    found: dict[str, bytes] = {"/": b""}
    for above, directories, files in os.walk(os.fsencode(root)):
        for name in directories + files:
            path = os.path.join(above, name)
            key = path[len(os.fsencode(root)) :].decode()
            if os.path.islink(path):
                found[key] = os.readlink(path)
            elif os.path.isdir(path):
                found[key] = b""
            else:
                found[key] = Path(os.fsdecode(path)).read_bytes()
    return found


def plant(root: Path, spec: Spec) -> None:
    """Make a tree by hand."""
    root.mkdir(parents=True, exist_ok=True)
    for path, content in spec.items():
        target = root / path.removesuffix("*")[1:]
        if content is None:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            target.symlink_to(content)
        else:
            target.write_bytes(content)
            target.chmod(0o755 if path.endswith("*") else 0o644)


class Node:
    """A db directory and base directories below ``root``, and the Store over them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.db = root / "db"
        self.srv = root / "srv"
        self.db.mkdir(parents=True)
        self.srv.mkdir()
        (root / "single").mkdir()
        self.configs = {
            "app": DirConfig("app", str(self.srv), append_only=False, num_levels=2),
            "one": DirConfig("one", str(root / "single" / "site"), append_only=False, num_levels=0),
        }
        self.store = self.restarted()

    def restarted(self) -> Store:
        """A Store as a new process would make it."""
        return Store(str(self.db), self.configs, in_place)

    def image(self, vpath: VPath) -> Path:
        """The real path of an image."""
        return self.srv.joinpath(*vpath.parts[1:]) if vpath.level else self.root / "single" / "site"

    def debris(self) -> list[str]:
        """Reserved and temporary names anywhere."""
        found = []
        for _, directories, files in os.walk(self.root):
            found += [name for name in directories + files if name.startswith((".ciruela~", ".tmp.")) or name.endswith(".new.state")]
        return found
