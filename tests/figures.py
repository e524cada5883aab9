"""Figures of the structure: ``python -m tests.figures [-v]``; ``-v`` names what each counts.

The contributing page quotes them. They are counted from the syntax trees of ``ciruela/``, nothing is imported.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parent.parent
SMALL_LINES = 60


@dataclass(frozen=True, slots=True)
class Module:
    """A source file: its dotted name, its lines of text, its tree."""

    name: str
    lines: int
    tree: ast.Module
    package: bool

    def imports(self, names: frozenset[str]) -> Iterator[str]:
        """The modules of ``names`` that it imports, also for the type checker only."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name in names)
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    if whole in names:
                        yield whole
                    elif node.module in names:
                        yield node.module

    def import_lines(self) -> int:
        """Lines that import statements take."""
        found = [node for node in ast.walk(self.tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        return sum((node.end_lineno or node.lineno) - node.lineno + 1 for node in found)


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that is counted. Lists are sorted; ``cycles`` are groups of modules that import each other."""

    modules: int
    lines: int
    import_lines: int
    doubles: Sequence[str]
    cycles: Sequence[Sequence[str]]
    single: Sequence[str]
    machines: Sequence[str]
    wide: Sequence[str]

    def text(self, verbose: bool) -> str:
        """One line for each figure."""
        rows: list[tuple[str, str, Sequence[str]]] = [
            ("modules", f"{self.modules}", ()),
            ("lines", f"{self.lines:,}", ()),
            ("import lines", f"{100 * self.import_lines / self.lines:.1f} %", ()),
            ("class names with two meanings", f"{len(self.doubles)}", self.doubles),
            ("import cycles", f"{len(self.cycles)}", [", ".join(cycle) for cycle in self.cycles]),
            (f"modules under {SMALL_LINES} lines with a single importer", f"{len(self.single)}", self.single),
            ("Automat machines", f"{len(self.machines)}", self.machines),
            ("constructors above 7 parameters", f"{len(self.wide)}", self.wide),
        ]
        return "\n".join("\n".join([f"{what}: {number}", *(f"    {one}" for one in named if verbose)]) for what, number, named in rows)


def modules() -> list[Module]:
    """All source files of the package."""
    found = []
    for path in sorted((TOP / "ciruela").rglob("*.py")):
        parts = path.relative_to(TOP).with_suffix("").parts
        package = parts[-1] == "__init__"
        text = path.read_text(encoding="utf-8")
        found.append(Module(".".join(parts[:-1] if package else parts), len(text.splitlines()), ast.parse(text), package))
    return found


def figures() -> Figures:
    """Count."""
    every = modules()
    names = frozenset(module.name for module in every)
    edges = {module.name: set(module.imports(names)) - {module.name} for module in every}
    importers: dict[str, set[str]] = defaultdict(set)
    for name, targets in edges.items():
        for target in targets:
            importers[target] |= {name} - {"ciruela.__main__"}
    classes: dict[str, set[str]] = defaultdict(set)
    for module in every:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                classes[node.name.lstrip("_")].add(module.name)
    return Figures(
        len(every),
        sum(module.lines for module in every),
        sum(module.import_lines() for module in every),
        sorted(f"{name}: {', '.join(sorted(where))}" for name, where in classes.items() if len(where) > 1),
        _cycles(edges),
        sorted(module.name for module in every if module.lines < SMALL_LINES and not module.package and len(importers[module.name]) == 1),
        sorted(f"{module.name}.{name}" for module in every for name in _machines(module.tree)),
        sorted(f"{module.name}.{name}" for module in every for name in _wide(module.tree)),
    )


def _machines(tree: ast.Module) -> Iterator[str]:
    """Names that a TypeMachineBuilder is bound to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and "TypeMachineBuilder" in ast.unparse(node.func):
            yield ast.unparse(node)[:60]


def _wide(tree: ast.Module) -> Iterator[str]:
    """Classes whose constructor takes more than seven parameters besides ``self``: written by hand, or made for a dataclass that acts.

    Frozen dataclasses are values, and may have as many fields as there is to say.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and (number := _parameters(node)) > 7:
            yield f"{node.name} ({number})"


def _parameters(node: ast.ClassDef) -> int:
    """Parameters of the constructor that stands in the class or is made by ``@dataclass``; 0 for others and for values."""
    for inner in node.body:
        if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
            return len(inner.args.posonlyargs) + len(inner.args.args) + len(inner.args.kwonlyargs) - 1
    made = [one for one in map(ast.unparse, node.decorator_list) if one.partition("(")[0] == "dataclass"]
    if not made or "frozen=True" in made[0]:
        return 0
    fields = [inner for inner in node.body if isinstance(inner, ast.AnnAssign) and "ClassVar" not in ast.unparse(inner.annotation)]
    return sum(1 for one in fields if one.value is None or "init=False" not in ast.unparse(one.value))


def _cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in edges[name]:
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in edges:
        if name not in index:
            visit(name)
    return sorted(found)


def main(arguments: Sequence[str]) -> int:
    """Print the figures."""
    sys.stdout.write(figures().text("-v" in arguments) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
