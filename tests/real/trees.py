"""Real directories to upload, and what a copy of one must look like."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import stat
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

MOST_BYTES = 256 * 1024
"""Larger files of the sources are left out: the number of files is what matters there."""

CHUNK = 8 * 1024 * 1024

Shape = dict[str, tuple[str, int, str]]
"""By path: kind, mode, and the hash of the content or the target of the symlink."""


def noise(seed: int, size: int) -> bytes:
    """``size`` bytes that no compression and no deduplication makes smaller, always the same for a seed."""
    return random.Random(seed).randbytes(size)


def noise_file(path: Path, seed: int, size: int) -> None:
    """Write a file of :func:`noise`, in pieces."""
    with open(path, "wb") as file:
        for number, at in enumerate(range(0, size, CHUNK)):
            file.write(noise(seed * 1_000_003 + number, min(CHUNK, size - at)))


def small_tree(top: Path, content: Mapping[str, str]) -> Path:
    """A directory with the files of ``content``."""
    for name, text in content.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return top


def _installed() -> Iterator[tuple[Path, Path]]:
    """Files and symlinks of the standard library and of the installed packages, with their paths below these places, in order."""
    for name in ("stdlib", "purelib"):
        top = Path(sysconfig.get_path(name))
        for folder, folders, files in os.walk(top):
            folders[:] = sorted(one for one in folders if name == "purelib" or one not in ("site-packages", "dist-packages"))
            for file in sorted(files):
                path = Path(folder, file)
                try:
                    str(path).encode("utf-8")
                    status = path.lstat()
                except (UnicodeEncodeError, FileNotFoundError):
                    continue
                if stat.S_ISLNK(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_size <= MOST_BYTES):
                    yield path, Path(name) / path.relative_to(top)


def real_tree(top: Path, files: int) -> None:
    """Copy ``files`` files that people wrote, in their real directories; again under another name when there are not enough."""
    left = files
    for turn in itertools.count():
        for source, below in _installed():
            target = top / f"copy {turn}" / below
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                if source.is_symlink():
                    target.symlink_to(os.readlink(source))
                    continue
                shutil.copyfile(source, target)
                target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)
            except FileNotFoundError:  # another process removed a temporary file of its own
                continue
            left -= 1
            if left == 0:
                return


ODD_NAMES = (
    "with spaces  and more ",
    " space in front",
    "single'quote",
    'double"quote',
    "new\nline",
    "tab\tand\rreturn",
    "back\\slash",
    "\\x41",
    "-dash",
    ".hidden",
    "...",
    "~",
    "*?[x]$HOME;`ls`|&#",
    "ciruela-ягода-梅-🍒",
    "e\u0301 and \u00e9",
    "del\x7f and \x01",
    "x" * 255,
)


def odd_tree(top: Path) -> None:
    """Everything that a file system allows and that programs get wrong."""
    for number, name in enumerate(ODD_NAMES):
        folder = top / "names" / f"{number}" / name
        folder.mkdir(parents=True)
        (folder / name).write_bytes(name.encode("utf-8"))
        (folder / "link").symlink_to(name)
    empty = top / "empty"
    (empty / "directory" / "in a directory").mkdir(parents=True)
    (empty / "file").touch()
    (empty / "another file").touch()
    links = top / "links"
    links.mkdir()
    for name, target in {
        "to a file": "../empty/file",
        "to a directory": "../empty",
        "to nothing": "no such file",
        "absolute": "/etc/hostname",
        "to itself": "to itself",
        "with\nnewline": "a target with\na newline and 'quotes\"",
        "far up": "../../../../../../../../etc/passwd",
    }.items():
        (links / name).symlink_to(target)
    modes = top / "modes"
    modes.mkdir()
    for mode in (0o644, 0o600, 0o400, 0o666, 0o755, 0o700, 0o777, 0o744, 0o645):
        path = modes / f"{mode:o}"
        path.write_text(f"#!/bin/sh\necho {mode:o}\n")
        path.chmod(mode)
    sizes = top / "sizes"
    sizes.mkdir()
    for size in (1, 32767, 32768, 32769, 65536, 100_000):
        noise_file(sizes / str(size), size, size)
    deep = top.joinpath(*(f"level {number}" for number in range(30)))
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("here")


def _hash(path: str) -> str:
    seen = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while piece := file.read(CHUNK):
            seen.update(piece)
    return seen.hexdigest()


def shape(top: Path) -> Shape:
    """What there really is below ``top``."""
    found: Shape = {}

    def walk(folder: str, below: str) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = f"{below}/{entry.name}"
                mode = stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode)
                if entry.is_symlink():
                    found[path] = ("symlink", 0, os.readlink(entry.path))
                elif entry.is_dir():
                    found[path] = ("directory", mode, "")
                    walk(entry.path, path)
                elif entry.is_file():
                    found[path] = ("file", mode, _hash(entry.path))
                else:
                    found[path] = ("something else", mode, "")

    walk(os.fspath(top), "")
    return found


def wanted(source: Shape) -> Shape:
    """What a copy of ``source`` must be: the only thing that is kept of modes is whether the owner may execute a file."""
    modes = {"directory": lambda _: 0o755, "file": lambda mode: 0o755 if mode & 0o100 else 0o644, "symlink": lambda _: 0}
    return {path: (kind, modes[kind](mode), content) for path, (kind, mode, content) in source.items()}


def differences(want: Shape, have: Shape) -> list[str]:
    """What ``have`` should be and is not, in words."""
    found = [f"{path!r} is missing" for path in want.keys() - have.keys()]
    found += [f"{path!r} should not be there" for path in have.keys() - want.keys()]
    found += [f"{path!r} is {have[path]}, not {want[path]}" for path in want.keys() & have.keys() if want[path] != have[path]]
    return sorted(found)
