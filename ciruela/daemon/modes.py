"""Whether somebody else could change the configuration or the keys (threats A48; the rule that sshd calls StrictModes)."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path


def check_modes(config_dir: str) -> list[str]:
    """A line ``PATH: what is wrong (what to do)`` for each file and directory of the configuration that others could change.

    Trusted are root, the user of this process, and the owner of ``config_dir``. What does not exist is fine here.
    """
    top = Path(config_dir)
    try:
        trusted = frozenset({0, os.geteuid(), top.stat().st_uid})
    except OSError as error:
        return [f"{top}: {error.strerror} (make the directory, or name another one with --config)"]
    paths = [top, top / "master.key", top / "peers.txt", top / "ciruela.yaml", top / "keys", top / "configs"]
    problems: list[str] = []
    for folder, suffix in ((top / "keys", ".key"), (top / "configs", ".yaml")):
        try:
            paths += sorted(path for path in folder.iterdir() if path.name.endswith(suffix) and not path.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            problems.append(f"{folder}: it cannot be read: {error.strerror}")
    for path in paths:
        try:
            found = [path.lstat(), path.stat()]
        except FileNotFoundError:
            continue
        except OSError as error:
            problems.append(f"{path}: it cannot be examined: {error.strerror}")
            continue
        reasons = (loose(status, trusted, private_group) for status in found)
        problems += [f"{path}: {reason}" for reason in dict.fromkeys(filter(None, reasons))]
    return problems


def key_files(config_dir: str) -> list[Path]:
    """``master.key``, ``keys``, and all key files in there; each may be missing."""
    top = Path(config_dir)
    try:
        found = sorted(path for path in (top / "keys").iterdir() if path.name.endswith(".key") and not path.name.startswith("."))
    except OSError:
        found = []
    return [top / "master.key", top / "keys", *found]


def loose(status: os.stat_result, trusted: frozenset[int], is_private: Callable[[int], bool]) -> str | None:
    """Why what ``status`` describes cannot be trusted, or None. ``is_private`` tells whether a group has one member only."""
    if status.st_uid not in trusted:
        return f"it belongs to user {status.st_uid}, who could change it (run: chown root)"
    if stat.S_ISLNK(status.st_mode):
        return None
    if status.st_mode & stat.S_IWOTH:
        return "everybody may write to it (run: chmod o-w)"
    if status.st_mode & stat.S_IWGRP and not is_private(status.st_gid):
        return f"all of group {status.st_gid} may write to it (run: chmod g-w)"
    return None


def private_group(gid: int) -> bool:
    """Whether ``gid`` is root's group, or the group that a user has alone: same name, no further member."""
    if gid == 0:
        return True
    try:
        group = grp.getgrgid(gid)
        owner = pwd.getpwnam(group.gr_name)
    except KeyError:
        return False
    return owner.pw_gid == gid and set(group.gr_mem) <= {group.gr_name}
