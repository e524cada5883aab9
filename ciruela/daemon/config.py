"""The configuration directory of a node: which directories it takes (protocol section 9.1).

Everything is read once, at start; any mistake in any file ends the start, and all mistakes are told at once.

Hooks, modes and groups of a directory are read from its config, and checked for use on this host.

A hook runs what stands in the operator's own files alone, so nobody else may be able to change the program either.
"""

from __future__ import annotations

import grp
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from ciruela.daemon.rules import (
    MOST_BYTES,
    Items,
    Mistakes,
    Scalar,
    SettingRule,
    Table,
    Value,
    check_modes,
    duration,
    flag,
    loose,
    number,
    optional,
    path,
    private_group,
    read_file,
    settings_of,
    text,
    word,
    wrong,
)
from ciruela.model.config import DAY_MS, HOUR_MS, SECOND_MS, DirConfig, Modes, OnConflict, Reuse, Symlinks
from ciruela.model.errors import ConfigError
from ciruela.model.hooks import CommandHook, Webhook
from ciruela.model.values import dataclass
from ciruela.model.vpath import MAX_LEVELS, check_component

MOST_ARGUMENTS = 64
"""Arguments of a command, the program included. Our own limit."""

MOST_RETRIES = 1000
LONGEST_URL = 2048
"""Longest web address: beyond it servers begin to refuse."""

FRESH_BITS = 0o600
"""The mode of files that are still being written (``disk.reuse``): a file of an image must not look like one."""

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
    "timeout": SettingRule("timeout_ms", duration(100, DAY_MS)),
    "retries": SettingRule("retries", number(0, MOST_RETRIES)),
    "backoff": SettingRule("backoff_ms", duration(0, HOUR_MS)),
}
_COMMAND = SettingRule("command", _arguments, "[/usr/local/bin/announce]")


def _read_table(value: Table, rules: Mapping[str, SettingRule]) -> Mapping[str, object]:
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
        if ":" in (parts.hostname or ""):  # the library that calls it understands no such address
            raise ValueError("an IPv6 address in a web address is not supported (name the host)")
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
    rules = {"url": SettingRule("url", _url, "https://deploy.example.org/hook"), **_TIMES}
    return Webhook(**_read_table(value, rules))  # type: ignore[arg-type]


def _bits(value: Value, what: str, example: str) -> int:
    given = text(value, what)
    parts = _BITS.fullmatch(given)
    if parts is None:
        raise wrong(given, f"{what} in octal digits", f'"{example}"')
    bits = int(parts[1], 8)
    if bits & ~0o777:  # guard: A9
        raise ValueError(f'"{given}" has setuid, setgid or sticky bits, which images never have (try "{bits & 0o775:04o}")')
    if bits & 0o002:  # guard: A9
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
    # guard: A48, -> dict.fromkeys((program, real))
    for place in dict.fromkeys((program, os.path.dirname(program), real, os.path.dirname(real))):
        reason = loose(os.lstat(place), trusted, private_group)
        if reason is not None:  # guard: A48
            return f'"{program}" could be changed by others: {place}: {reason}'
    return None


_SUFFIX = ".yaml"
_MOST_DIRECTORIES = 1_000_000_000

MOST_KEPT = 1000
"""Replaced images that may be kept at one path."""


@dataclass(frozen=True, slots=True)
class Config:
    """Content of the configuration directory. ``directories`` is by KEY; ``warnings`` are for the log."""

    config_dir: str
    directories: dict[str, DirConfig]
    warnings: tuple[str, ...]


def load_config(config_dir: str, db_dir: str | None = None) -> Config:
    """Read ``configs/*.yaml`` below ``config_dir`` and check them, alone and together, and who may write to them.

    With ``db_dir`` also that no directory lies where this program keeps its own files. Raises ConfigError with one line for each mistake:
    ``FILE:LINE: KEY: "value" is not ... (try ...)``.
    """
    top = os.path.abspath(config_dir)
    problems = check_modes(top)
    warnings: list[str] = []
    found: list[_ParsedConfig] = []
    if os.path.isdir(top):
        for path, key in _files(os.path.join(top, "configs"), warnings, problems):
            parsed = _read(path, key, problems)
            if parsed is not None:
                found.append(parsed)
    # guard: I3, problems += _overlaps( -> _overlaps(
    problems += _overlaps(found, {"the configuration": top} | ({"the database directory": os.path.abspath(db_dir)} if db_dir else {}))
    if problems:
        raise ConfigError("\n".join(problems))
    for one in found:
        warnings += _doubts(one, top)
    return Config(top, {one.config.key: one.config for one in found}, tuple(warnings))


@dataclass(frozen=True, slots=True)
class _ParsedConfig:
    """One good file. ``lines`` tells where each setting stands, by its field; ``real`` is its directory without symlinks."""

    path: str
    lines: Mapping[str, int]
    real: str
    config: DirConfig

    def at(self, *settings: str) -> str:
        """``FILE:LINE`` of the first of ``settings`` that stands in the file, else of ``directory``, which always does."""
        known = (self.lines[setting] for setting in settings if setting in self.lines)
        return f"{self.path}:{next(known, self.lines['directory'])}"


def _files(folder: str, warnings: list[str], problems: list[str]) -> Iterator[tuple[str, str]]:
    """Path and KEY of each file that counts, in order of names."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        warnings.append(f"{folder}: there is no such directory, so this node takes no uploads")
        return
    except OSError as error:
        problems.append(f"{folder}: it cannot be read: {error.strerror}")
        return
    for name in names:
        path = os.path.join(folder, name)
        if name.startswith((".", "#")) or name.endswith(("~", ".bak")):
            continue
        if not name.endswith(_SUFFIX):
            warnings.append(f"{path}: it is not read, because its name does not end with {_SUFFIX}")
            continue
        if os.path.isdir(path):
            warnings.append(f"{path}: it is not read, because it is a directory")
            continue
        key = name.removesuffix(_SUFFIX)
        try:
            check_component(key)
        except ValueError as error:
            problems.append(f"{path}: the name cannot be the first part of a virtual path: {error} (rename the file)")
            continue
        yield path, key
    if not any(name.endswith(_SUFFIX) for name in names):
        warnings.append(f"{folder}: there is no {_SUFFIX} file, so this node takes no uploads")


def _read(path: str, key: str, problems: list[str]) -> _ParsedConfig | None:
    """One file; what is wrong with it goes to ``problems``."""
    found = read_file(path, _RULES, f"directory: /var/lib/{key}", problems)
    if found is None:
        return None
    values = dict(found.values)
    modes = {name: values.pop(name) for name in ("dir_bits", "file_bits", "gid") if name in values}
    folder = os.path.dirname(path)
    values["protect"] = tuple(os.path.join(folder, link) for link in values.get("protect", ()))
    config = DirConfig(key=key, modes=Modes(**modes), **values)
    for setting, reason in unusable_programs(config):
        problems.append(f"{path}:{found.lines[setting.replace('-', '_')]}: {setting}: {reason}")
    if config.num_levels == 0 and os.path.ismount(config.directory):  # guard: W2
        problems.append(
            f"{path}:{found.lines['num_levels']}: num-levels: 0 cannot work here: {config.directory} is a mount point, and an image takes "
            "the place of the whole directory in one step (name a directory below it, or use num-levels: 1)"
        )
    # guard: I3 A40, -> _ParsedConfig(path, found.lines, config.directory, config)
    return _ParsedConfig(path, found.lines, os.path.realpath(config.directory), config)


def _key_names(value: Value) -> tuple[str, ...]:
    """Names of files in ``keys``, without their suffix; nothing at all is an empty list."""
    if isinstance(value, Scalar):
        if value.is_null:
            return ()
        raise wrong(value.text, "a list", f"[{value.text[:40]}]")
    if isinstance(value, Table):
        raise ValueError("a mapping is not a list (try [name1, name2])")
    names = []
    for item in value.values:
        name = text(item, "the name of a key file")
        try:
            check_component(name)
        except ValueError as error:
            raise ValueError(
                f'"{name[:80]}" is not the name of a key file: {error} (try the name of a file in keys, without .key)'
            ) from None
        names.append(name)
    return tuple(dict.fromkeys(names))


def _links(value: Value) -> tuple[str, ...]:
    """Paths of symlinks of this host, one or a list; relative ones are relative to the file that names them."""
    if isinstance(value, Scalar):
        if value.is_null:
            return ()
        raise wrong(value.text, "a list", f"[{value.text[:40]}]")
    if isinstance(value, Table):
        raise ValueError("a mapping is not a list (try [/srv/current])")
    links = []
    for item in value.values:
        path(item)
        links.append(text(item, "a path"))
    return tuple(dict.fromkeys(links))


_RULES = {
    "directory": SettingRule("directory", path, "/var/lib/images"),
    "append-only": SettingRule("append_only", flag, "true"),
    "num-levels": SettingRule("num_levels", number(0, MAX_LEVELS), "1"),
    "upload-keys": SettingRule("upload_keys", _key_names),
    "download-keys": SettingRule("download_keys", _key_names),
    "auto-clean": SettingRule("auto_clean", flag),
    "keep-list-file": SettingRule("keep_list_file", optional(path)),
    "keep-min-directories": SettingRule("keep_min_directories", number(1, _MOST_DIRECTORIES)),
    "keep-max-directories": SettingRule("keep_max_directories", number(1, _MOST_DIRECTORIES)),
    "keep-recent": SettingRule("keep_recent_ms", duration()),
    "protect": SettingRule("protect", _links),
    "on-append-conflict": SettingRule("on_append_conflict", word(OnConflict)),
    "max-image-bytes": SettingRule("max_image_bytes", optional(number(1, MOST_BYTES))),
    "max-image-files": SettingRule("max_image_files", optional(number(1, MOST_BYTES))),
    "max-images": SettingRule("max_images", optional(number(1, MOST_BYTES))),
    "symlinks": SettingRule("symlinks", word(Symlinks)),
    "reuse": SettingRule("reuse", word(Reuse)),
    "keep-replaced": SettingRule("keep_replaced", number(0, MOST_KEPT)),
    "dir-mode": SettingRule("dir_bits", dir_bits),
    "file-mode": SettingRule("file_bits", file_bits),
    "group": SettingRule("gid", group),
    "check-before-commit": SettingRule("check_before_commit", check_hook),
    "on-commit": SettingRule("on_commit", command_hook),
    "webhook": SettingRule("webhook", webhook),
}


# -- all together ---------------------------------------------------------------------------------------------------------------


def _overlaps(found: list[_ParsedConfig], reserved: dict[str, str]) -> list[str]:
    """Directories that lie in one another, or among this program's own files: one upload could then change what another one signed."""
    problems: list[str] = []
    owners: dict[str, str] = {os.path.realpath(path): what for what, path in reserved.items()}
    taken = set(owners)
    for one in found:
        if one.real in owners:
            problems.append(_mixed(one, "is the same as", owners[one.real]))
        else:
            owners[one.real] = f"the directory of {one.at()}"
    for one in found:
        problems += [_mixed(one, "lies inside", owners[above]) for above in _above(one.real) if above in owners]
        problems += [_mixed(one, "contains", owners[inner]) for inner in sorted(taken) if one.real in _above(inner)]
    return problems


def _above(path: str) -> Iterator[str]:
    while path != (parent := os.path.dirname(path)):
        yield parent
        path = parent


def _mixed(one: _ParsedConfig, how: str, other: str) -> str:
    return f'{one.at()}: directory: "{one.config.directory}" {how} {other} (give each a place of its own)'


def _doubts(one: _ParsedConfig, top: str) -> Iterator[str]:
    """Yields a warning for each setting that works but is probably not meant."""
    config = one.config
    place = os.path.dirname(config.directory) if config.num_levels == 0 else config.directory
    if not os.path.isdir(place):
        yield f'{one.at()}: directory: "{place}" does not exist, uploads fail until it does'
    elif not os.access(place, os.W_OK | os.X_OK):
        yield f'{one.at()}: directory: this user cannot write to "{place}", uploads fail until that is so'
    if config.num_levels == 0 and config.append_only:
        yield f"{one.at('num_levels')}: with num-levels 0 and append-only true, {config.directory} can be uploaded only once"
    if config.protect and not config.auto_clean:
        yield f"{one.at('protect')}: without auto-clean nothing is removed, so protect protects nothing"
    if config.keep_replaced and config.append_only:
        yield f"{one.at('keep_replaced')}: with append-only true nothing is replaced, so keep-replaced keeps nothing"
    if config.keep_min_directories > config.keep_max_directories:
        where = one.at("keep_min_directories", "keep_max_directories")
        yield f"{where}: keep-min-directories is above keep-max-directories; the minimum wins"
    keys = one.at("upload_keys")
    for name in config.upload_keys:
        path = os.path.join(top, "keys", f"{name}.key")
        if not os.path.lexists(path):
            advice = f" (write upload-keys: [{name.removesuffix('.key')}])" if name.endswith(".key") else ""
            yield f"{keys}: upload-keys: there is no file {path}{advice}"
        elif os.path.islink(path):
            yield f"{keys}: upload-keys: {path} is a symlink, which is not followed"
    if not config.upload_keys and not os.path.lexists(os.path.join(top, "master.key")):
        yield f"{keys}: nobody can upload here: there are no upload-keys and no {os.path.join(top, 'master.key')}"
