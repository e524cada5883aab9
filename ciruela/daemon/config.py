"""The configuration directory of a node: which directories it takes (protocol section 9.1).

Everything is read once, at start; any mistake in any file ends the start, and all mistakes are told at once.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ciruela.daemon.modes import check_modes
from ciruela.daemon.yamltext import MAX_BYTES, Mistake, Scalar, Table, Value, read_yaml
from ciruela.model.dirconfig import DirConfig
from ciruela.model.errors import ConfigError
from ciruela.model.units import parse_duration_ms
from ciruela.model.vpath import MAX_LEVELS, check_component

_SUFFIX = ".yaml"
_MOST_DIRECTORIES = 1_000_000_000

_NUMBER = re.compile(
    r"(?:0x(?P<hex>[0-9A-Fa-f][0-9A-Fa-f_]*)|0o(?P<oct>[0-7][0-7_]*)|0b(?P<bin>[01][01_]*)|(?P<dec>-?[0-9][0-9_]*))(?P<unit>k|M|G|ki|Mi|Gi)?"
)
_BASES = {"hex": 16, "oct": 8, "bin": 2, "dec": 10}
_SIZES = {None: 1, "k": 1000, "M": 1000**2, "G": 1000**3, "ki": 1024, "Mi": 1024**2, "Gi": 1024**3}


@dataclass(frozen=True, slots=True)
class Config:
    """What the configuration directory says. ``directories`` is by KEY; ``warnings`` are for the log."""

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
    found: list[_Found] = []
    if os.path.isdir(top):
        for path, key in _files(os.path.join(top, "configs"), warnings, problems):
            parsed = _read(path, key, problems)
            if parsed is not None:
                found.append(parsed)
    problems += _overlaps(found, {"the configuration": top} | ({"the database directory": os.path.abspath(db_dir)} if db_dir else {}))
    if problems:
        raise ConfigError("\n".join(problems))
    for one in found:
        warnings += _doubts(one, top)
    return Config(top, {one.config.key: one.config for one in found}, tuple(warnings))


@dataclass(frozen=True, slots=True)
class _Found:
    """One good file. ``line`` is where its ``directory`` stands, ``real`` is that directory without symlinks."""

    path: str
    line: int
    real: str
    config: DirConfig


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


def _read(path: str, key: str, problems: list[str]) -> _Found | None:
    """One file; what is wrong with it goes to ``problems``."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(0, "it is not a regular file")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        problems.append(f"{path}: it cannot be read: {error.strerror}")
        return None
    try:
        document = read_yaml(data)
    except Mistake as mistake:
        problems.append(f"{path}:{mistake.line}: {mistake.reason}")
        return None
    if isinstance(document, Scalar) and document.is_null:
        document = Table(1)
    if not isinstance(document, Table):
        problems.append(f'{path}:{document.line}: the file must be a list of settings (try "directory: /var/lib/{key}")')
        return None
    values, lines, mistakes = _settings(document)
    if mistakes:
        problems += [f"{path}:{mistake.line}: {mistake.reason}" for mistake in mistakes]
        return None
    config = DirConfig(key=key, **values)
    return _Found(path, lines["directory"], os.path.realpath(config.directory), config)


def _settings(table: Table) -> tuple[dict[str, Any], dict[str, int], list[Mistake]]:
    """Values by the names of DirConfig, their lines, and everything that is wrong."""
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    mistakes: list[Mistake] = []
    for written, (line, value) in table.entries.items():
        if written.startswith("_"):
            continue
        name = written.replace("_", "-")
        rule = _RULES.get(name)
        if rule is None:
            mistakes.append(Mistake(line, f'"{written[:80]}" is not a setting ({_nearest(name)})'))
            continue
        if rule.attribute in lines:
            mistakes.append(Mistake(line, f"{written}: this key stands in line {lines[rule.attribute]} already (remove one)"))
            continue
        lines[rule.attribute] = line
        try:
            values[rule.attribute] = rule.read(value)
        except ValueError as error:
            mistakes.append(Mistake(value.line, f"{written}: {error}"))
    for name, rule in _RULES.items():
        if rule.required and rule.attribute not in lines:
            mistakes.append(Mistake(table.line, f'{name}: this setting is required (try "{name}: {rule.example}")'))
    return values, lines, mistakes


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, _RULES, n=1)
    return f'try "{near[0]}"' if near else "remove it, or begin its name with _ to have it ignored"


# -- one value ------------------------------------------------------------------------------------------------------------------


def _text(value: Value, what: str) -> str:
    if not isinstance(value, Scalar):
        raise ValueError(f"a list or a mapping is not {what}")
    if value.is_null:
        raise ValueError(f"there is no value, {what} is needed (or remove the line)")
    return value.text


def _wrong(text: str, what: str, advice: str) -> ValueError:
    return ValueError(f'"{text[:80]}" is not {what} (try {advice})')


def _flag(value: Value) -> bool:
    text = _text(value, "true or false")
    if text not in ("true", "false"):
        guess = "true" if text.lower() in ("yes", "on", "y", "1", "true") else "false"
        raise _wrong(text, "true or false", guess)
    return text == "true"


def _number(least: int, most: int) -> Callable[[Value], int]:
    def read(value: Value) -> int:
        text = _text(value, "a whole number")
        parts = _NUMBER.fullmatch(text)
        if parts is None or len(text) > 40:
            raise _wrong(text, "a whole number", str(max(least, 2)))
        base = str(parts.lastgroup if parts.lastgroup != "unit" else next(name for name in _BASES if parts[name]))
        number = int(parts[base].replace("_", ""), _BASES[base]) * _SIZES[parts["unit"]]
        if not least <= number <= most:
            raise ValueError(f'"{text}" is not in the range from {least} to {most}')
        return number

    return read


def _path(value: Value) -> str:
    text = _text(value, "a path")
    if text == "" or any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise _wrong(text, "a path", '"/var/lib/images"')
    if text.startswith("~"):
        raise _wrong(text, "a path that this program expands", "to write the home directory out")
    return os.path.abspath(text)


def _optional_path(value: Value) -> str | None:
    return None if isinstance(value, Scalar) and value.is_null else _path(value)


def _key_names(value: Value) -> tuple[str, ...]:
    """Names of files in ``keys``, without their suffix; nothing at all is an empty list."""
    if isinstance(value, Scalar):
        if value.is_null:
            return ()
        raise _wrong(value.text, "a list", f"[{value.text[:40]}]")
    if isinstance(value, Table):
        raise ValueError("a mapping is not a list (try [name1, name2])")
    names = []
    for item in value.values:
        name = _text(item, "the name of a key file")
        try:
            check_component(name)
        except ValueError as error:
            raise ValueError(
                f'"{name[:80]}" is not the name of a key file: {error} (try the name of a file in keys, without .key)'
            ) from None
        names.append(name)
    return tuple(dict.fromkeys(names))


def _duration(value: Value) -> int:
    return parse_duration_ms(_text(value, "a duration"))


@dataclass(frozen=True, slots=True)
class _Rule:
    """How one setting is read, and the field of DirConfig it goes to."""

    attribute: str
    read: Callable[[Value], object]
    example: str = ""

    @property
    def required(self) -> bool:
        return bool(self.example)


_RULES = {
    "directory": _Rule("directory", _path, "/var/lib/images"),
    "append-only": _Rule("append_only", _flag, "true"),
    "num-levels": _Rule("num_levels", _number(0, MAX_LEVELS), "1"),
    "upload-keys": _Rule("upload_keys", _key_names),
    "download-keys": _Rule("download_keys", _key_names),
    "auto-clean": _Rule("auto_clean", _flag),
    "keep-list-file": _Rule("keep_list_file", _optional_path),
    "keep-min-directories": _Rule("keep_min_directories", _number(1, _MOST_DIRECTORIES)),
    "keep-max-directories": _Rule("keep_max_directories", _number(1, _MOST_DIRECTORIES)),
    "keep-recent": _Rule("keep_recent_ms", _duration),
}


# -- all together ---------------------------------------------------------------------------------------------------------------


def _overlaps(found: list[_Found], reserved: dict[str, str]) -> list[str]:
    """Directories that lie in one another, or among this program's own files: one upload could then change what another one signed."""
    problems: list[str] = []
    owners: dict[str, str] = {os.path.realpath(path): what for what, path in reserved.items()}
    taken = set(owners)
    for one in found:
        if one.real in owners:
            problems.append(_mixed(one, "is the same as", owners[one.real]))
        else:
            owners[one.real] = f"the directory of {one.path}:{one.line}"
    for one in found:
        problems += [_mixed(one, "lies inside", owners[above]) for above in _above(one.real) if above in owners]
        problems += [_mixed(one, "contains", owners[inner]) for inner in sorted(taken) if one.real in _above(inner)]
    return problems


def _above(path: str) -> Iterator[str]:
    while path != (parent := os.path.dirname(path)):
        yield parent
        path = parent


def _mixed(one: _Found, how: str, other: str) -> str:
    return f'{one.path}:{one.line}: directory: "{one.config.directory}" {how} {other} (give each a place of its own)'


def _doubts(one: _Found, top: str) -> Iterator[str]:
    """What works but is probably not meant."""
    config = one.config
    where = f"{one.path}:{one.line}"
    if not os.path.isdir(os.path.dirname(config.directory) if config.num_levels == 0 else config.directory):
        yield f'{where}: directory: "{config.directory}" does not exist, uploads fail until it does'
    if config.num_levels == 0 and config.append_only:
        yield f"{where}: with num-levels 0 and append-only true, {config.directory} can be uploaded only once"
    if config.keep_min_directories > config.keep_max_directories:
        yield f"{where}: keep-min-directories is above keep-max-directories; the minimum wins"
    for name in config.upload_keys:
        path = os.path.join(top, "keys", f"{name}.key")
        if not os.path.lexists(path):
            advice = f" (write upload-keys: [{name.removesuffix('.key')}])" if name.endswith(".key") else ""
            yield f"{where}: upload-keys: there is no file {path}{advice}"
        elif os.path.islink(path):
            yield f"{where}: upload-keys: {path} is a symlink, which is not followed"
    if not config.upload_keys and not os.path.lexists(os.path.join(top, "master.key")):
        yield f"{where}: nobody can upload here: there are no upload-keys and no {os.path.join(top, 'master.key')}"
