"""Rules for the settings of a YAML file: one for each, and all mistakes at once, each with its line and what to do.

The small part of YAML that configuration files may use, with line numbers (threats A47).

PyYAML splits the text into events; everything is built from those, iteratively. There are no aliases, no anchors, no tags and no guessed
types: a scalar is text, and whoever knows the key decides what it means.

Files that somebody else could change are found as well (threats A48; the rule that sshd calls StrictModes).
"""

from __future__ import annotations

import difflib
import grp
import os
import pwd
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ciruela.model.units import LONGEST_MS, format_duration, parse_duration_ms
from ciruela.model.values import dataclass


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
            found = [path.lstat(), path.stat()]  # guard: A48, -> [path.lstat()]
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
    """Says why the file of ``status`` cannot be trusted, or None. ``is_private`` tells whether a group has one member only."""
    if status.st_uid not in trusted:  # guard: A48 F60
        return f"it belongs to user {status.st_uid}, who could change it (run: chown root)"
    if stat.S_ISLNK(status.st_mode):
        return None
    if status.st_mode & stat.S_IWOTH:  # guard: A48 F60
        return "everybody may write to it (run: chmod o-w)"
    if status.st_mode & stat.S_IWGRP and not is_private(status.st_gid):  # guard: A48 F60
        return f"all of group {status.st_gid} may write to it (run: chmod g-w)"
    return None


def private_group(gid: int) -> bool:
    """Tells whether ``gid`` is root's group, or the group that a user has alone: same name, no further member."""
    if gid == 0:
        return True
    try:
        group = grp.getgrgid(gid)
        owner = pwd.getpwnam(group.gr_name)
    except KeyError:
        return False
    return owner.pw_gid == gid and set(group.gr_mem) <= {group.gr_name}  # guard: A48, without 2


MAX_BYTES = 256 * 1024
MAX_DEPTH = 8


class Mistake(Exception):
    """Mistake in the text, with its line, counted from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Scalar:
    """A word, a quoted text or nothing at all; ``plain`` when it is not quoted."""

    text: str
    line: int
    plain: bool

    @property
    def is_null(self) -> bool:
        """Tells whether this is YAML's way to write nothing."""
        return self.plain and self.text in ("", "~", "null")


@dataclass(slots=True)
class Items:
    """A list."""

    line: int
    values: list[Value] = field(default_factory=list)


@dataclass(slots=True)
class Table:
    """A mapping: key -> line of the key, and value. No key comes twice."""

    line: int
    entries: dict[str, tuple[int, Value]] = field(default_factory=dict)


Value = Scalar | Items | Table


def read_yaml(data: bytes) -> Value:
    """The one document in ``data``; an empty one is a null scalar. Raises Mistake for the first thing that is wrong."""
    if len(data) > MAX_BYTES:  # guard: A47 F60
        raise Mistake(1, f"the file is larger than {MAX_BYTES // 1024} KiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Mistake(data.count(b"\n", 0, error.start) + 1, "there are bytes that are not UTF-8") from None
    try:
        return _build(text)
    except yaml.reader.ReaderError as error:
        raise Mistake(text.count("\n", 0, error.position) + 1, "there is a control character (remove it)") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = 1 if mark is None else mark.line + 1
        raise Mistake(line, f"this is not YAML: {error.problem or error.context}") from None


def _build(text: str) -> Value:
    root = Items(1)
    open_parts: list[Items | Table] = [root]
    waiting: list[Scalar | None] = [None]  # for each open part, the key whose value comes next
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = 1 if event.start_mark is None else event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):  # guard: A47 F60
            raise Mistake(
                line, f'"*{event.anchor}" is an alias, which is not allowed here (write the value out; quote a text that begins with *)'
            )
        if isinstance(event, yaml.DocumentStartEvent) and root.values:  # guard: A47
            raise Mistake(line, "a second document begins here (a file holds one)")
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            open_parts.pop()
            waiting.pop()
        if not isinstance(event, yaml.ScalarEvent | yaml.MappingStartEvent | yaml.SequenceStartEvent):
            continue
        if event.anchor is not None:  # guard: A47 F60
            raise Mistake(line, f'"&{event.anchor}" is an anchor, which is not allowed (quote a text that begins with &)')
        if event.tag is not None:  # guard: A47 F60
            raise Mistake(line, "a tag is not allowed here (quote a text that begins with !)")
        value: Value
        if isinstance(event, yaml.ScalarEvent):
            value = Scalar(event.value, line, plain=event.style in (None, ""))
        else:
            value = Items(line) if isinstance(event, yaml.SequenceStartEvent) else Table(line)
        part = open_parts[-1]
        if isinstance(part, Items):
            part.values.append(value)
        elif (key := waiting[-1]) is None:
            waiting[-1] = _key(part, value)
            continue
        else:
            part.entries[key.text] = (key.line, value)
            waiting[-1] = None
        if not isinstance(value, Scalar):
            open_parts.append(value)
            waiting.append(None)
            if len(open_parts) > MAX_DEPTH + 1:  # guard: A47 F60
                raise Mistake(line, f"this is nested more than {MAX_DEPTH} deep")
    return root.values[0] if root.values else Scalar("", 1, plain=True)


def _key(table: Table, value: Value) -> Scalar:
    if not isinstance(value, Scalar):
        raise Mistake(value.line, "a list or a mapping cannot be a key")
    if value.text in table.entries:  # guard: A47 F60
        raise Mistake(value.line, f"{value.text[:80]}: this key stands in line {table.entries[value.text][0]} already (remove one)")
    return value


E = TypeVar("E", bound=Enum)
T = TypeVar("T")

MOST_BYTES = 1 << 62
"""Largest number of anything; beyond it lies a typing error."""

_NUMBER = re.compile(
    r"(?:0x(?P<hex>[0-9A-Fa-f][0-9A-Fa-f_]*)|0o(?P<oct>[0-7][0-7_]*)|0b(?P<bin>[01][01_]*)|(?P<dec>-?[0-9][0-9_]*))(?P<unit>k|M|G|ki|Mi|Gi)?"
)
_BASES = {"hex": 16, "oct": 8, "bin": 2, "dec": 10}
_SIZES = {None: 1, "k": 1000, "M": 1000**2, "G": 1000**3, "ki": 1024, "Mi": 1024**2, "Gi": 1024**3}


@dataclass(frozen=True, slots=True)
class SettingRule:
    """Rule of one setting: its reader, and the field it goes to. One with an ``example`` is required."""

    attribute: str
    read: Callable[[Value], object]
    example: str = ""


class WrongItem(ValueError):
    """Mistake in one item of a list, with its line."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


@dataclass(frozen=True, slots=True)
class ParsedSettings:
    """Settings that a file gives: values, and the lines where they stand, by the names of the fields."""

    values: dict[str, Any]
    lines: dict[str, int]


def read_file(path: str, rules: Mapping[str, SettingRule], example: str, problems: list[str]) -> ParsedSettings | None:
    """The settings in the file at ``path``, by ``rules``.

    None when anything is wrong; then ``problems`` gets a line ``FILE:LINE: SETTING: what is wrong (what to do)`` for each mistake.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # guard: A47 F60
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
        problems.append(f'{path}:{document.line}: the file must be a list of settings (try "{example}")')
        return None
    found, mistakes = settings_of(document, rules)
    problems += [f"{path}:{mistake.line}: {mistake.reason}" for mistake in mistakes]
    return None if mistakes else found


class Mistakes(ValueError):
    """Mistakes inside a table that is the value of a setting; each has its own line."""

    def __init__(self, found: list[Mistake]) -> None:
        super().__init__("; ".join(one.reason for one in found))
        self.found = found


def settings_of(table: Table, rules: Mapping[str, SettingRule]) -> tuple[ParsedSettings, list[Mistake]]:
    """Reads the settings of ``table``: those that are good, and every mistake."""
    found = ParsedSettings({}, {})
    mistakes: list[Mistake] = []
    for written, (line, value) in table.entries.items():
        if written.startswith("_"):
            continue
        name = written.replace("_", "-")
        rule = rules.get(name)
        if rule is None:
            mistakes.append(Mistake(line, f'"{written[:80]}" is not a setting ({_nearest(name, rules)})'))  # guard: A47 F60
            continue
        if rule.attribute in found.lines:  # guard: A47 F60
            mistakes.append(Mistake(line, f"{written}: this key stands in line {found.lines[rule.attribute]} already (remove one)"))
            continue
        found.lines[rule.attribute] = line
        try:
            found.values[rule.attribute] = rule.read(value)
        except Mistakes as error:
            mistakes += [Mistake(one.line, f"{written}: {one.reason}") for one in error.found]
        except ValueError as error:
            mistakes.append(Mistake(error.line if isinstance(error, WrongItem) else value.line, f"{written}: {error}"))
    for name, rule in rules.items():
        if rule.example and rule.attribute not in found.lines:
            mistakes.append(Mistake(table.line, f'{name}: this setting is required (try "{name}: {rule.example}")'))
    return found, mistakes


def _nearest(name: str, rules: Mapping[str, SettingRule]) -> str:
    near = difflib.get_close_matches(name, rules, n=1)
    return f'try "{near[0]}"' if near else "remove it, or begin its name with _ to have it ignored"


# -- one value: each raises ValueError with what is wrong and what to try ------------------------------------------------------------


def text(value: Value, what: str) -> str:
    """A single value."""
    if not isinstance(value, Scalar):
        raise ValueError(f"a list or a mapping is not {what}")
    if value.is_null:
        raise ValueError(f"there is no value, {what} is needed (or remove the line)")
    return value.text


def wrong(given: str, what: str, advice: str) -> ValueError:
    """Builds the error to raise for a value of another kind."""
    return ValueError(f'"{given[:80]}" is not {what} (try {advice})')


def flag(value: Value) -> bool:
    """True or false, and no other words."""
    given = text(value, "true or false")
    if given not in ("true", "false"):
        guess = "true" if given.lower() in ("yes", "on", "y", "1", "true") else "false"
        raise wrong(given, "true or false", guess)
    return given == "true"


def word(kind: type[E]) -> Callable[[Value], E]:
    """One of the words of an Enum."""
    words = [str(one.value) for one in kind]
    what = f"{', '.join(words[:-1])} or {words[-1]}"

    def read(value: Value) -> E:
        given = text(value, what)
        if given not in words:
            near = difflib.get_close_matches(given, words, n=1) or words
            raise wrong(given, what, near[0])
        return kind(given)

    return read


def number(least: int, most: int) -> Callable[[Value], int]:
    """A whole number in a range, perhaps with a unit."""

    def read(value: Value) -> int:
        given = text(value, "a whole number")
        parts = _NUMBER.fullmatch(given)
        if parts is None or len(given) > 40:
            begins = re.match(r"[0-9]{1,19}", given)
            meant = int(begins[0]) if begins is not None and least <= int(begins[0]) <= most else max(least, 2)
            raise wrong(given, "a whole number", str(meant))
        base = str(parts.lastgroup if parts.lastgroup != "unit" else next(name for name in _BASES if parts[name]))
        found = int(parts[base].replace("_", ""), _BASES[base]) * _SIZES[parts["unit"]]
        if not least <= found <= most:  # guard: A47
            raise ValueError(f'"{given}" is not in the range from {least} to {most}')
        return found

    return read


def duration(least_ms: int = 0, most_ms: int = LONGEST_MS) -> Callable[[Value], int]:
    """A duration in a range, in milliseconds."""

    def read(value: Value) -> int:
        given = text(value, "a duration")
        found = parse_duration_ms(given)
        if not least_ms <= found <= most_ms:
            raise ValueError(f'"{given}" is not in the range from {format_duration(least_ms)} to {format_duration(most_ms)}')
        return found

    return read


def path(value: Value) -> str:
    """A path of this host, made absolute."""
    given = text(value, "a path")
    if given == "" or any(ord(char) < 32 or ord(char) == 127 for char in given):
        raise wrong(given, "a path", '"/var/lib/images"')
    if given.startswith("~"):
        raise wrong(given, "a path that this program expands", "to write the home directory out")
    return os.path.abspath(given)


def optional(read: Callable[[Value], T]) -> Callable[[Value], T | None]:
    """The same, or nothing."""
    return lambda value: None if isinstance(value, Scalar) and value.is_null else read(value)


def items(read: Callable[[Value], T], what: str, example: str, most: int) -> Callable[[Value], tuple[T, ...]]:
    """A list of up to ``most`` such values, each once; nothing at all is an empty list."""

    def read_all(value: Value) -> tuple[T, ...]:
        if isinstance(value, Scalar) and value.is_null:
            return ()
        if not isinstance(value, Items):
            raise ValueError(f"this must be a list of {what} (try [{example}])")
        if len(value.values) > most:
            raise ValueError(f"there are {len(value.values)} items, {most} are the most")
        found: dict[T, None] = {}
        for item in value.values:
            try:
                found[read(item)] = None
            except ValueError as error:
                raise WrongItem(item.line, str(error)) from None
        return tuple(found)

    return read_all
