"""Markers of guards in the source, and what the source is without each.

A marker stands at the end of its line, or alone on the line above when there is no room::

    if depth > MAX_DEPTH:  # guard: A12
    if here and not stale:  # guard: I7 K2.1, without 2; I9, -> True
    self._sync_above(sample)  # guard: F29

``# guard: ROW...[, CHANGE][; ROW...[, CHANGE]]``: rows of ``tests/rows.toml``, and how the code is without the guard. A change is about
what begins on the line: a statement, a clause (``elif``, ``except``, ``case``), else an operand, an argument or an element of the lines
around.

==============  ======================================================================================================================
(none)          a condition is False, a ``for`` has nothing to go through, an ``except`` catches nothing; anything else is left out
``without N``   the N-th operand of the line's ``and`` and ``or`` is left out, counted from left to right where they begin
``-> NEW``      NEW is the condition, or the value that is returned, assigned, gone through, handed over
``OLD -> NEW``  the text NEW, which may be empty, stands where OLD stood, which is there once; for what has no shorter form
==============  ======================================================================================================================
"""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOP = Path(__file__).parent.parent

_ROW = r"[A-Z]\d+(?:\.\d+)?"
_ENTRY = re.compile(rf"({_ROW}(?: {_ROW})*)(?:, (without \d+|.* ?-> ?.*))?")


class BadMarker(ValueError):
    """A marker that does not say what to do without the guard."""


@dataclass(frozen=True, slots=True)
class Guard:
    """One entry of a marker. ``line``: where the code begins that it is about. ``change``: as in the docstring of the module."""

    rows: tuple[str, ...]
    file: str
    line: int
    change: str = ""

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.file}:{self.line}: {' '.join(self.rows)}{', ' if self.change else ''}{self.change}"


def marked(file: str, source: str) -> Iterator[Guard]:
    """Find the guards of one file. Raises BadMarker."""
    waiting: list[tuple[tuple[str, ...], str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and re.match(r"#\s*guard\b", token.string):
            entries = [_ENTRY.fullmatch(entry) for entry in re.split(rf"; (?={_ROW})", token.string.removeprefix("# guard: "))]
            read = [(tuple(entry[1].split()), entry[2] or "") for entry in entries if entry is not None]
            if len(read) < len(entries):
                raise BadMarker(f"{file}:{token.start[0]}: not a marker: {token.string}")
            if not token.line[: token.start[1]].strip():
                waiting += read
                continue
            yield from (Guard(rows, file, token.start[0], change) for rows, change in read)
        elif waiting and token.string.strip() and token.type != tokenize.COMMENT:
            yield from (Guard(rows, file, token.start[0], change) for rows, change in waiting)
            waiting = []


@functools.cache
def guards(top: Path = TOP) -> tuple[Guard, ...]:
    """All of the program, file by file."""
    paths = sorted((top / "ciruela").rglob("*.py"))
    return tuple(guard for path in paths for guard in marked(str(path.relative_to(top)), path.read_text(encoding="utf-8")))


def subject(tree: ast.Module, line: int) -> ast.AST | None:
    """The outermost node that begins on the line; ``match_case``, which has no place of its own, begins with its pattern."""
    for node in ast.walk(tree):
        if getattr(node.pattern if isinstance(node, ast.match_case) else node, "lineno", 0) == line:
            return node
    return None


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """The expressions of a statement, without the statements in it."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield child
            yield from _own(child)


def extent(node: ast.AST) -> tuple[tuple[int, int], tuple[int, int]]:
    """(line, byte in it) where a simple statement, the head of a compound one, or an expression begins and where it ends."""
    within: list[Any] = [one for one in (node, *_own(node)) if hasattr(one, "lineno") and not isinstance(getattr(one, "body", None), list)]
    first: Any = node if hasattr(node, "lineno") else within[0]
    return (first.lineno, first.col_offset), max(((one.end_lineno, one.end_col_offset) for one in within), default=(first.lineno, 0))


class _Swap(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST | None) -> None:
        self._old, self._new = old, new

    def visit(self, node: ast.AST) -> ast.AST | None:
        return self._new if node is self._old else self.generic_visit(node)


def _omit(tree: ast.Module, node: ast.AST) -> None:
    """Leave out an operand, an argument, an element, a condition of a comprehension."""
    for parent in ast.walk(tree):
        if node not in ast.iter_child_nodes(parent):
            continue
        match parent:
            case ast.BoolOp(values=[one, other]):
                _Swap(parent, other if one is node else one).visit(tree)
            case ast.Dict(keys=keys, values=values) if node in keys:
                del values[keys.index(node)], keys[keys.index(node)]
            case (
                ast.BoolOp(values=each)
                | ast.comprehension(ifs=each)
                | ast.List(elts=each)
                | ast.Tuple(elts=each)
                | ast.Set(elts=each)
                | ast.Call(args=each)
            ) if node in each:
                each.remove(node)
            case ast.Call(keywords=each) if node in each:
                each.remove(node)
            case _:
                raise BadMarker("it cannot be left out of what it stands in")
        return


def _without_operand(tree: ast.Module, node: ast.AST, number: int) -> None:
    each = [one for part in (node, *_own(node)) if isinstance(part, ast.BoolOp) for one in part.values if not isinstance(one, ast.BoolOp)]
    each.sort(key=lambda one: (one.lineno, one.col_offset))
    if not 1 <= number <= len(each):
        raise BadMarker(f"there are {len(each)} operands")
    _omit(tree, each[number - 1])


def _with_value(tree: ast.Module, node: ast.AST, new: ast.expr) -> None:
    _put(new, node)
    fields = ("test", "iter", "exc", "value") if isinstance(node, ast.stmt | ast.keyword) else ("guard", "type")
    field = next((name for name in fields if hasattr(node, name)), None)
    if field is not None:
        setattr(node, field, new)
    elif isinstance(node, ast.expr):
        _Swap(node, new).visit(tree)
    else:
        raise BadMarker("it has no value")


def _with_text(source: str, node: ast.AST, old: str, new: str) -> ast.Module:
    lines = source.encode().splitlines(keepends=True)
    (first, begin), (last, end) = extent(node)
    at, until = (sum(map(len, lines[: line - 1])) + column for line, column in ((first, begin), (last, end)))
    whole = b"".join(lines)
    if whole.count(old.encode(), at, until) != 1:
        raise BadMarker(f"{old!r} stands there {whole.count(old.encode(), at, until)} times, not once")
    return ast.parse(whole[:at] + whole[at:until].replace(old.encode(), new.encode()) + whole[until:])


def _put(new: ast.AST, node: ast.AST) -> ast.AST:
    """``new``, which has no place in the source yet, stands where ``node`` does."""
    at = node.pattern if isinstance(node, ast.match_case) else node
    return ast.fix_missing_locations(ast.copy_location(new, at))


def _around(tree: ast.Module, line: int) -> str:
    """The statement of the module, or of a class, that has the line. Much less to compare than the module is."""
    part: ast.stmt | ast.Module = tree
    while isinstance(part, ast.Module | ast.ClassDef):
        inner = next((one for one in part.body if one.lineno <= line <= (one.end_lineno or 0)), None)
        if inner is None:
            break
        part = inner
    return ast.dump(part)


def without(guard: Guard, source: str) -> ast.Module:
    """The module as it is without the guard. Raises BadMarker."""
    tree = ast.parse(source)
    node = subject(tree, guard.line)
    before = _around(tree, guard.line)
    old, arrow, new = (part.strip() for part in guard.change.partition("->"))
    try:
        match node:
            case None:
                raise BadMarker("nothing begins on this line")
            case _ if arrow and old:
                tree = _with_text(source, node, old, new)
            case _ if arrow:
                _with_value(tree, node, ast.parse(new, mode="eval").body)
            case _ if guard.change:
                _without_operand(tree, node, int(guard.change.removeprefix("without ")))
            case ast.If() | ast.While() | ast.match_case():
                _with_value(tree, node, ast.Constant(False))
            case ast.For() | ast.AsyncFor() | ast.ExceptHandler():
                _with_value(tree, node, ast.Tuple([], ast.Load()))
            case ast.stmt():
                _Swap(node, _put(ast.Pass(), node)).visit(tree)
            case _:
                _omit(tree, node)
        if _around(tree, guard.line) == before:
            raise BadMarker("the change changes nothing")
        compile(tree, guard.file, "exec")
    except (BadMarker, SyntaxError) as error:
        raise BadMarker(f"{guard.name}: {error}") from None
    return tree
