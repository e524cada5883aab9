"""How hooks, modes and groups of a directory are read from its config, and whether they can be used on this host.

What a hook runs comes from the operator's own files alone, so nobody else may be able to change the program either.
"""

from __future__ import annotations

import grp
import os
import re
import shutil
import stat
from collections.abc import Mapping
from urllib.parse import urlsplit

from ciruela.daemon.modes import loose, private_group
from ciruela.daemon.rules import Mistakes, Rule, duration, number, settings_of, text, wrong
from ciruela.daemon.yamltext import Items, Scalar, Table, Value
from ciruela.model.dirconfig import DirConfig
from ciruela.model.hooks import CommandHook, Webhook
from ciruela.model.tuning import DAY_MS, HOUR_MS, SECOND_MS

MOST_ARGUMENTS = 64
"""Arguments of a command, the program included. Our own limit."""

MOST_RETRIES = 1000
LONGEST_URL = 2048
"""Longest web address: beyond it servers begin to refuse."""

FRESH_BITS = 0o600
"""The mode of files that are still being written (``disk.content``): a file of an image must not look like one."""

_BITS = re.compile(r"0?o?([0-7]{3,4})")
_MOST_ID = (1 << 32) - 2


def _arguments(value: Value) -> tuple[str, ...]:
    """A program by its absolute path, and its arguments."""
    if not isinstance(value, Items):
        raise ValueError("a command is a list: a program and its arguments, no shell reads it (try [/usr/local/bin/announce, now])")
    found = tuple(text(item, "an argument") for item in value.values)
    if not 1 <= len(found) <= MOST_ARGUMENTS:
        raise ValueError(f"a command has 1 to {MOST_ARGUMENTS} parts, this one has {len(found)} (try [/usr/local/bin/announce])")
    if any("\0" in part for part in found):
        raise ValueError("an argument contains NUL (remove it)")
    if not found[0].startswith("/"):
        there = shutil.which(found[0])
        advice = there if there is not None and os.path.isabs(there) else "to write out where the program is"
        raise wrong(found[0], "the absolute path of a program", advice)
    return found


_TIMES = {
    "timeout": Rule("timeout_ms", duration(100, DAY_MS)),
    "retries": Rule("retries", number(0, MOST_RETRIES)),
    "backoff": Rule("backoff_ms", duration(0, HOUR_MS)),
}
_COMMAND = Rule("command", _arguments, "[/usr/local/bin/announce]")


def _read_table(value: Table, rules: Mapping[str, Rule]) -> Mapping[str, object]:
    found, mistakes = settings_of(value, rules)
    if mistakes:
        raise Mistakes(mistakes)
    return found.values


def check_hook(value: Value) -> CommandHook | None:
    """``check-before-commit``: what is run before an image is shown, once."""
    if isinstance(value, Scalar) and value.is_null:
        return None
    if isinstance(value, Items):
        return CommandHook(_arguments(value))
    if isinstance(value, Scalar):
        raise wrong(value.text, "a hook", "{command: [/usr/local/bin/check], timeout: 30s}")
    return CommandHook(**_read_table(value, {"command": _COMMAND, "timeout": _TIMES["timeout"]}))  # type: ignore[arg-type]


def command_hook(value: Value) -> CommandHook | None:
    """``on-commit``: what is run when an image is visible."""
    standard = {"retries": 3, "backoff_ms": 3 * SECOND_MS}
    if isinstance(value, Scalar) and value.is_null:
        return None
    if isinstance(value, Items):
        return CommandHook(_arguments(value), **standard)
    if isinstance(value, Scalar):
        raise wrong(value.text, "a hook", "{command: [/usr/local/bin/announce], timeout: 30s, retries: 3, backoff: 3s}")
    return CommandHook(**(standard | dict(_read_table(value, {"command": _COMMAND, **_TIMES}))))  # type: ignore[arg-type]


def _url(value: Value) -> str:
    given = text(value, "a web address")
    example = "https://deploy.example.org/hook" if "://" in given or "/" not in given else f"https://{given[:80]}"
    try:
        parts = urlsplit(given)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    else:
        if parts.username is not None or parts.password is not None:
            raise ValueError("a web address with a user or a password is not allowed (put the secret into the path)")
    if not good or not given.isascii() or not given.isprintable() or " " in given or "#" in given or len(given) > LONGEST_URL:
        raise wrong(given, "a web address", example)
    return given


def webhook(value: Value) -> Webhook | None:
    """``webhook``: which web address is told when an image is visible."""
    if isinstance(value, Scalar) and value.is_null:
        return None
    if isinstance(value, Items):
        raise ValueError("a list is not a web address (try {url: https://deploy.example.org/hook, timeout: 10s})")
    if isinstance(value, Scalar):
        return Webhook(_url(value))
    rules = {"url": Rule("url", _url, "https://deploy.example.org/hook"), **_TIMES}
    return Webhook(**_read_table(value, rules))  # type: ignore[arg-type]


def _bits(value: Value, what: str, example: str) -> int:
    given = text(value, what)
    parts = _BITS.fullmatch(given)
    if parts is None:
        raise wrong(given, f"{what} in octal digits", f'"{example}"')
    bits = int(parts[1], 8)
    if bits & ~0o777:
        raise ValueError(f'"{given}" has setuid, setgid or sticky bits, which images never have (try "{bits & 0o775:04o}")')
    if bits & 0o002:
        raise ValueError(f'"{given}" lets everybody write (try "{bits & 0o775:04o}")')
    return bits


def dir_bits(value: Value) -> int:
    """``dir-mode``: its owner has to be able to do everything."""
    bits = _bits(value, "the mode of directories", "0750")
    if bits & 0o700 != 0o700:
        raise ValueError(f'"{bits:04o}" does not let this program into its own directories (try "{bits | 0o700:04o}")')
    if bits & ((bits & 0o444) >> 2) != (bits & 0o444) >> 2:
        raise ValueError(f'"{bits:04o}" shows names in a directory to some who cannot enter it (try "{bits | (bits & 0o444) >> 2:04o}")')
    return bits


def file_bits(value: Value) -> int:
    """``file-mode``: of files that are not executable."""
    bits = _bits(value, "the mode of files", "0640")
    if bits & 0o111:
        raise ValueError(f'"{bits:04o}" makes every file executable; those that are get an x for each r (try "{bits & ~0o111:04o}")')
    if not bits & 0o400:
        raise ValueError(f'"{bits:04o}" does not let this program read its own files (try "{bits | 0o400:04o}")')
    if bits == FRESH_BITS:
        raise ValueError(f'"{bits:04o}" is the mode of files that are still being written (try "0400" or "0640")')
    return bits


def group(value: Value) -> int | None:
    """``group``: by name or number; this process has to be a member, or root, to give files to it."""
    if isinstance(value, Scalar) and value.is_null:
        return None
    given = text(value, "a group")
    try:
        gid = int(given) if given.isascii() and given.isdigit() and len(given) < 11 else grp.getgrnam(given).gr_gid
    except (KeyError, ValueError):
        raise ValueError(f'"{given[:80]}" is not a group of this host (try: getent group)') from None
    if gid > _MOST_ID:
        raise ValueError(f'"{given}" is not the number of a group')
    if os.geteuid() != 0 and gid not in {os.getegid(), *os.getgroups()}:
        raise ValueError(f'this process is not in group "{given[:80]}" and cannot give files to it (add its user to the group)')
    return gid


# -- programs -----------------------------------------------------------------------------------------------------------------


def unusable_programs(config: DirConfig) -> list[tuple[str, str]]:
    """For each hook whose program cannot be run, or could be changed by others: the name of the setting, and what is wrong."""
    hooks = (("check-before-commit", config.check_before_commit), ("on-commit", config.on_commit))
    problems = []
    for name, hook in hooks:
        reason = None if hook is None else _unusable(hook.command[0])
        if reason is not None:
            problems.append((name, reason))
    return problems


def _unusable(program: str) -> str | None:
    try:
        status = os.stat(program)
    except OSError as error:
        return f'"{program}": {error.strerror} (name a program that exists)'
    if not stat.S_ISREG(status.st_mode):
        return f'"{program}" is not a file (name a program)'
    if not os.access(program, os.X_OK):
        return f'"{program}" cannot be executed by this process (run: chmod +x)'
    real = os.path.realpath(program)
    trusted = frozenset({0, os.geteuid()})
    for path in dict.fromkeys((program, os.path.dirname(program), real, os.path.dirname(real))):
        reason = loose(os.lstat(path), trusted, private_group)
        if reason is not None:
            return f'"{program}" could be changed by others: {path}: {reason}'
    return None
