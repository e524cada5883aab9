"""The small part of YAML that configuration files may use, with line numbers (threats A47).

PyYAML splits the text into events; everything is built from those, iteratively. There are no aliases, no anchors, no tags and no guessed
types: a scalar is text, and whoever knows the key decides what it means.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import yaml

MAX_BYTES = 256 * 1024
MAX_DEPTH = 8


class Mistake(Exception):
    """What is wrong with the text, and the line, counted from 1."""

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
        """Whether this is YAML's way to write nothing."""
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
    if len(data) > MAX_BYTES:
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
        if isinstance(event, yaml.AliasEvent):
            raise Mistake(
                line, f'"*{event.anchor}" is an alias, which is not allowed here (write the value out; quote a text that begins with *)'
            )
        if isinstance(event, yaml.DocumentStartEvent) and root.values:
            raise Mistake(line, "a second document begins here (a file holds one)")
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            open_parts.pop()
            waiting.pop()
        if not isinstance(event, yaml.ScalarEvent | yaml.MappingStartEvent | yaml.SequenceStartEvent):
            continue
        if event.anchor is not None:
            raise Mistake(line, f'"&{event.anchor}" is an anchor, which is not allowed (quote a text that begins with &)')
        if event.tag is not None:
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
            if len(open_parts) > MAX_DEPTH + 1:
                raise Mistake(line, f"this is nested more than {MAX_DEPTH} deep")
    return root.values[0] if root.values else Scalar("", 1, plain=True)


def _key(table: Table, value: Value) -> Scalar:
    if not isinstance(value, Scalar):
        raise Mistake(value.line, "a list or a mapping cannot be a key")
    if value.text in table.entries:
        raise Mistake(value.line, f"{value.text[:80]}: this key stands in line {table.entries[value.text][0]} already (remove one)")
    return value
