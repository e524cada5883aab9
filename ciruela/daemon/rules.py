"""How the settings of a YAML file are read: one rule for each, and all mistakes at once, each with its line and what to do."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from ciruela.daemon.yamltext import MAX_BYTES, Items, Mistake, Scalar, Table, Value, read_yaml
from ciruela.model.units import LONGEST_MS, format_duration, parse_duration_ms

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
class Rule:
    """How one setting is read, and the field it goes to. One with an ``example`` is required."""

    attribute: str
    read: Callable[[Value], object]
    example: str = ""


class WrongItem(ValueError):
    """What is wrong with one item of a list, and the line where it stands."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


@dataclass(frozen=True, slots=True)
class Found:
    """What a file says: values, and the lines where they stand, by the names of the fields."""

    values: dict[str, Any]
    lines: dict[str, int]


def read_file(path: str, rules: Mapping[str, Rule], example: str, problems: list[str]) -> Found | None:
    """The settings in the file at ``path``, by ``rules``.

    None when anything is wrong; then ``problems`` gets a line ``FILE:LINE: SETTING: what is wrong (what to do)`` for each mistake.
    """
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
        problems.append(f'{path}:{document.line}: the file must be a list of settings (try "{example}")')
        return None
    found, mistakes = settings_of(document, rules)
    problems += [f"{path}:{mistake.line}: {mistake.reason}" for mistake in mistakes]
    return None if mistakes else found


class Mistakes(ValueError):
    """What is wrong inside a table that is the value of a setting; each mistake has its own line."""

    def __init__(self, found: list[Mistake]) -> None:
        super().__init__("; ".join(one.reason for one in found))
        self.found = found


def settings_of(table: Table, rules: Mapping[str, Rule]) -> tuple[Found, list[Mistake]]:
    """What is good, and everything that is wrong."""
    found = Found({}, {})
    mistakes: list[Mistake] = []
    for written, (line, value) in table.entries.items():
        if written.startswith("_"):
            continue
        name = written.replace("_", "-")
        rule = rules.get(name)
        if rule is None:
            mistakes.append(Mistake(line, f'"{written[:80]}" is not a setting ({_nearest(name, rules)})'))
            continue
        if rule.attribute in found.lines:
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


def _nearest(name: str, rules: Mapping[str, Rule]) -> str:
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
    """What to raise for a value of another kind."""
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
        if not least <= found <= most:
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
