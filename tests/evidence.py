"""Which tests show what: the rows of ``tests/rows.toml`` and the marks of :mod:`tests.proof`, read from the source of the tests.

``docs/explanation/threats.rst`` is made of this when the documentation is built.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
ROWS = TESTS / "rows.toml"


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to withstand. ``later``: what is missing before it holds in full, or how else than by a test it is known."""

    name: str
    what: str
    later: str = ""


def rows() -> list[Row]:
    """All rows, in the order of the file."""
    found = []
    for letter, numbers in tomllib.loads(ROWS.read_text(encoding="utf-8")).items():
        for number, entry in numbers.items():
            found.append(Row(letter + number, **({"what": entry} if isinstance(entry, str) else entry)))
    return found


def _marked(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    names: list[str] = []
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "shows":
            names += [
                argument.value for argument in decorator.args if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
            ]
    return names


def _in_module(path: Path) -> Iterator[tuple[str, str]]:
    """(row, dotted name of the test or class) for each mark in a file."""
    module = ".".join(("tests", *path.relative_to(TESTS).with_suffix("").parts))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for row in _marked(node):
                yield row, f"{module}.{node.name}"
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    for row in _marked(inner):
                        yield row, f"{module}.{node.name}.{inner.name}"


def marks() -> dict[str, list[str]]:
    """The tests that are marked for each row."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for row, test in _in_module(path):
            found.setdefault(row, []).append(test)
    return {row: sorted(set(tests)) for row, tests in found.items()}


def table() -> list[str]:
    """The lines of a reStructuredText list-table."""
    shown = marks()
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: 6 40 54", "", "   * - Row", "     - What", "     - Shown by"]
    for row in rows():
        tests = shown.get(row.name, [])
        lines += [f"   * - {row.name}", f"     - {row.what}"]
        parts = [f"``{test.removeprefix('tests.')}``" for test in tests]
        if row.later:
            parts.append(f"*note:* {row.later}")
        lines += [f"     {'-' if at == 0 else ' '} | {part}" for at, part in enumerate(parts or ["nothing yet"])]
    return lines
