"""Reads as much of CDDL (RFC 8610) as ``docs/reference/messages.cddl`` uses, and says in the same terms what forms of values are.

Types are plain values without names: ("bytes", 32, 32), ("text", 0, 255), ("uint", 0, 65535), ("is", "GetBlock"), ("array", items) and
("map", items), and a frozenset of types for a choice. An item is (least, most, key, type): a field's key is its name, an entry's is a type.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ciruela.model.bitfield import MASK_BYTES, MOST_CUTS
from ciruela.proto import forms
from ciruela.proto.messages import MAX_KEPT_SIGNATURES, SignedTimes

TOKEN = re.compile(r'\s*("[^"]*"|\d+\.\.\d+|\d*\*\d*|\d+|=>|\.size|[\w-]+|[][{}()=/,:?])')
PLAIN: dict[str, Any] = {
    "uint": ("uint", 0, forms.MAX_UINT),
    "bytes": ("bytes", 0, None),
    "text": ("text", 0, None),
    "bool": ("bool",),
    "null": ("null",),
    "any": ("any",),
}
EXTRA = (0, None, PLAIN["text"], PLAIN["any"])
"""Fields that are not known."""


def choice(*types: Any) -> Any:
    """One of several types; the order says nothing."""
    flat = [one for kind in types for one in (kind if isinstance(kind, frozenset) else (kind,))]
    return flat[0] if len(flat) == 1 else frozenset(flat)


class Reader:
    """Rules by name. Whatever is asked for is resolved; ``used`` are the rules that were needed."""

    def __init__(self, text: str) -> None:
        # pycddl does not know bounds for the entries of a map: they stand in a comment.
        text = re.sub(r"\* (.*; at most (\d+))", r"0*\2 \1", text)
        lines = [line.split(";")[0] for line in text.splitlines()]
        tokens = TOKEN.findall("\n".join(lines))
        assert "".join(tokens) == re.sub(r"\s", "", "".join(lines)), "something was not read"
        begins = [at for at, token in enumerate(tokens[1:]) if token == "="]
        self.rules = {tokens[at]: tokens[at + 2 : end] for at, end in zip(begins, [*begins[1:], len(tokens)], strict=True)}
        self.used: set[str] = set()

    def rule(self, name: str) -> Any:
        """The type that a rule gives."""
        self.used.add(name)
        tokens = list(self.rules[name])
        found = self._type(tokens)
        assert not tokens, (name, tokens)
        return found

    def _type(self, tokens: list[str]) -> Any:
        types = [self._one(tokens)]
        while tokens and tokens[0] == "/":
            tokens.pop(0)
            types.append(self._one(tokens))
        return choice(*types)

    def _one(self, tokens: list[str]) -> Any:
        token = tokens.pop(0)
        if token == "(":
            found = self._type(tokens)
            assert tokens.pop(0) == ")"
            return found
        if token in "[{":
            return ("array" if token == "[" else "map", tuple(self._items(tokens, "]" if token == "[" else "}")))
        if token[0] == '"':
            return ("is", token[1:-1])
        if ".." in token:
            return ("uint", *map(int, token.split("..")))
        if token.isdigit():
            return ("is", int(token))
        found = PLAIN[token] if token in PLAIN else self.rule(token)
        if tokens and tokens[0] == ".size":
            tokens.pop(0)
            if tokens[0] == "(":
                least, most = map(int, tokens[1].split(".."))
                del tokens[:3]
            else:
                least = most = int(tokens.pop(0))
            return (found[0], least, most)
        return found

    def _items(self, tokens: list[str], end: str) -> Iterator[tuple[int, int | None, Any, Any]]:
        while tokens[0] != end:
            yield from self._item(tokens)
            if tokens[0] == ",":
                tokens.pop(0)
        tokens.pop(0)

    def _item(self, tokens: list[str]) -> Iterator[tuple[int, int | None, Any, Any]]:
        least, most = 1, 1
        if tokens[0] == "?" or "*" in tokens[0]:
            low, _, high = tokens.pop(0).replace("?", "0*1").partition("*")
            least, most = int(low or 0), int(high) if high else None  # type: ignore[assignment]
        group = self.rules.get(tokens[0], [""])
        if group[0] == "(" and ("=>" in group or ":" in group):
            self.used.add(tokens.pop(0))
            inner = list(self._items([*group[1:-1], ")"], ")"))
            yield from inner if (least, most) == (1, 1) else [(least, most, *one[2:]) for one in inner]
        elif tokens[1] == ":":
            name = tokens.pop(0).strip('"')
            tokens.pop(0)
            yield least, most, name, self._type(tokens)
        else:
            found = self._type(tokens)
            if tokens and tokens[0] == "=>":
                tokens.pop(0)
                yield least, most, found, self._type(tokens)
            else:
                yield least, most, None, found


def told(form: forms.Codec[Any]) -> Any:
    """The type of the values of ``form``."""
    match form:
        case forms.Text():
            return ("text", 0, form.most)
        case forms.Fixed():
            return ("bytes", form.length, form.length)
        case forms.Data():
            return ("bytes", 0, form.most)
        case forms.Uint():
            return PLAIN["uint"]
        case forms.PortNumber():
            return ("uint", 1, 65535)
        case forms.Flag():
            return PLAIN["bool"]
        case forms.Signature():
            return ("array", ((1, 1, None, ("is", forms.ALGORITHM)), (1, 1, None, ("bytes", 64, 64))))
        case SignedTimes():
            entry = ("array", ((1, 1, None, PLAIN["uint"]), (1, 1, None, told(forms.SIGNATURE))))
            return ("array", ((0, MAX_KEPT_SIGNATURES, None, entry),))
        case forms.Mask():
            return choice(*(("bytes", MASK_BYTES * cuts, MASK_BYTES * cuts) for cuts in range(1, MOST_CUTS + 1)))
        case forms.PieceSet():
            number = ("uint", 0, 8 * MASK_BYTES * MOST_CUTS - 1)
            return choice(("bytes", 0, MASK_BYTES * MOST_CUTS), ("array", ((0, forms.FEW_PIECES, None, number),)))
        case forms.Runs():
            return ("array", ((0, 2 * forms.MAX_BULK, None, PLAIN["uint"]),))
        case forms.Listed():
            return ("array", ((0, form.most, None, told(form.of)),))
        case forms.Row():
            return ("array", tuple((1, 1, None, told(part)) for _, part in form.parts))
        case forms.HostNames():
            return ("map", ((0, forms.MAX_HOSTS, told(forms.MACHINE), told(forms.NAME)),))
        case forms.Entries():
            # Below such a map pycddl knows neither bounds of keys nor unknown fields: comments tell of both.
            return ("map", ((0, None, PLAIN["text"], _closed(told(form.of))),))
        case forms.Struct():
            return ("map", (*map(_field, sorted(form.fields.values(), key=lambda one: one.last)), EXTRA))
    raise AssertionError(f"no type in CDDL for {form}")


def _closed(kind: Any) -> Any:
    """The type without fields that are not known."""
    if kind[0] not in ("array", "map"):
        return kind
    return kind[0], tuple((*item[:3], _closed(item[3])) for item in kind[1] if item != EXTRA)


def _field(field: forms.Field) -> tuple[int, int, str, Any]:
    kind = told(field.codec)
    return 0 if field.optional else 1, 1, field.name, choice(kind, PLAIN["null"]) if field.absent is None else kind
