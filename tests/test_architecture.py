"""Rules that no linter knows: who may import the reactor or chance, how long a module is, what a package says of itself.

The layers themselves are contracts of import-linter (``.importlinter``).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

TOP = Path(__file__).parent.parent
PACKAGE = TOP / "ciruela"
MODULES = sorted(PACKAGE.rglob("*.py"))

MAX_LINES = 700
APPLICATIONS = {"daemon", "client"}
SERVICES = {"membership", "uploads", "download", "reconcile", "scrub", "cleanup", "hooks", "tracking", "runtime", "interfaces"}
FORMATS = {"index", "keys", "proto"}

TWISTED_FOR_SERVICES = {
    "twisted.application.service",
    "twisted.internet.defer",
    "twisted.internet.interfaces",
    "twisted.internet.task",
    "twisted.logger",
    "twisted.python.failure",
}
"""What work may use of Twisted: Deferreds, the clock's interface, periodic calls, services, logging. No transport, no thread, no file."""

PLAIN = {
    "__future__",
    "abc",
    "bisect",
    "collections",
    "dataclasses",
    "difflib",
    "enum",
    "fractions",
    "functools",
    "heapq",
    "itertools",
    "math",
    "operator",
    "re",
    "string",
    "typing",
    "unicodedata",
}
"""Modules of the standard library that neither act nor ask: what the words may be made of."""

PURE = PLAIN | {
    "array",
    "base64",
    "bcrypt",
    "binascii",
    "blake3",
    "cbor2",
    "codecs",
    "cryptography",
    "hashlib",
    "hmac",
    "io.BytesIO",
    "nacl",
    "struct",
    "threading.local",
    "zstandard",
}
"""What formats may use: bytes in, values out."""

VAGUE = re.compile(r"manager|(?<!Request)handler|helper|utils?\b", re.IGNORECASE)

QUESTION = re.compile(r"\s*(what|who|whom|whose|whether|how|where|which|why|when)\b", re.IGNORECASE)
"""Openings of a docstring that leave out its verb: "What a node has" tells nobody what the function does."""


def name_of(path: Path) -> str:
    """``index/tree.py`` below the package, for messages."""
    return path.relative_to(PACKAGE).as_posix()


def package_of(path: Path) -> str:
    """The folder or module directly below the package that ``path`` belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    """Full names of the modules that ``path`` imports, anywhere in it; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def docstrings_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring of ``path``: of the module, of classes and functions, and the strings below constants."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def within(name: str, allowed: set[str]) -> bool:
    """Whether ``name`` is one of ``allowed`` or below it."""
    return any(name == one or name.startswith(one + ".") for one in allowed)


class ImportTests(SynchronousTestCase):
    """What a module may know."""

    def test_reactor_is_handed_in(self) -> None:
        """Code that imports the reactor cannot run under a fake clock: the simulated clusters would silently test something else."""
        importers = {name_of(path) for path in MODULES if any(within(name, {"twisted.internet.reactor"}) for name in imports_of(path))}
        self.assertEqual(importers - {"daemon/tap.py", "client/main.py"}, set())

    def test_words_are_made_of_plain_values(self) -> None:
        """Everything imports the words; what they import, everything depends on."""
        found = [
            (name_of(path), name)
            for path in MODULES
            if package_of(path) == "model"
            for name in imports_of(path)
            if not within(name, PLAIN | {"ciruela.model"})
        ]
        self.assertEqual(found, [])

    def test_formats_are_pure(self) -> None:
        """A parser that reads a clock or a file gives another result tomorrow."""
        found = [
            (name_of(path), name)
            for path in MODULES
            if package_of(path) in FORMATS
            for name in imports_of(path)
            if not within(name, PURE | {"ciruela.model", f"ciruela.{package_of(path)}"})
        ]
        self.assertEqual(found, [])

    def test_work_uses_no_transport(self) -> None:
        """A decision that opens its own socket, file or thread cannot be simulated with a thousand nodes."""
        found = [
            (name_of(path), name)
            for path in MODULES
            if package_of(path) in SERVICES
            for name in imports_of(path)
            if name.startswith("twisted.") and not within(name, TWISTED_FOR_SERVICES)
        ]
        self.assertEqual(found, [])

    def test_chance_is_handed_in(self) -> None:
        """A call of the global generator makes a failing simulation impossible to repeat; only ``random.Random`` itself may be named."""
        found = []
        for path in MODULES:
            if package_of(path) in APPLICATIONS:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random"
                if named and node.attr != "Random":
                    found.append(f"{name_of(path)}:{node.lineno}: random.{node.attr}")
            found += [f"{name_of(path)}: {name}" for name in imports_of(path) if re.fullmatch(r"random\.(?!Random\b).*", name)]
        self.assertEqual(found, [])

    def test_only_the_world_opens_files(self) -> None:
        """The builtin ``open`` needs no import, so no linter of imports sees it."""
        found = [
            f"{name_of(path)}:{node.lineno}"
            for path in MODULES
            if package_of(path) in SERVICES | FORMATS | {"model"}
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("open", "print", "input", "__import__")
        ]
        self.assertEqual(found, [])


class ShapeTests(SynchronousTestCase):
    """What a newcomer meets."""

    def test_modules_are_short(self) -> None:
        """A long module hides two ideas in one name."""
        sizes = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
        self.assertEqual({name: size for name, size in sizes.items() if size > MAX_LINES}, {})

    def test_packages_list_their_modules(self) -> None:
        """The docstring of a package is its table of contents: a module that it does not name is found by nobody."""
        missing = []
        for init in PACKAGE.glob("*/**/__init__.py"):
            text = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
            missing += [name_of(path) for path in init.parent.glob("*.py") if path != init and f"``{path.stem}``" not in text]
        self.assertEqual(sorted(missing), [])

    def test_the_map_lists_its_packages(self) -> None:
        """The docstring of ``ciruela`` is the map of the packages, and so is the page on architecture."""
        packages = {package_of(path) for path in MODULES} - {"__init__", "__main__", "_version"}
        doc = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))) or ""
        page = (TOP / "docs" / "explanation" / "architecture.rst").read_text(encoding="utf-8")
        self.assertEqual(sorted(package for package in packages if f"``{package}``" not in doc), [])
        self.assertEqual(sorted(package for package in packages if f"``{package}``" not in page), [])

    def test_the_linter_knows_every_package(self) -> None:
        """The contract on layers names each package; one that is in none of the lists may import anything."""
        contracts = (TOP / ".importlinter").read_text(encoding="utf-8")
        layers = set(re.findall(r"\w+", contracts.split("layers =")[1].split("[importlinter", 1)[0]))
        packages = {package_of(path) for path in MODULES} - {"__init__", "__main__", "_version"}
        self.assertEqual(packages - layers, set())

    def test_names_say_something(self) -> None:
        """A module or class called a manager could be anything."""
        found = [name_of(path) for path in MODULES if VAGUE.search(path.stem)]
        for path in MODULES:
            found += [
                f"{name_of(path)}:{node.lineno}: {node.name}"
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and VAGUE.search(node.name)
            ]
        self.assertEqual(found, [])

    def test_docstrings_begin_with_a_verb_or_a_noun(self) -> None:
        """A docstring that begins as a question is understood only by who has read the body."""
        read = [(f"{name_of(path)}:{line}", text) for path in MODULES for line, text in docstrings_of(path)]
        self.assertGreater(len(read), 1000)
        self.assertEqual([f"{place}: {text[:60]!r}" for place, text in read if QUESTION.match(text)], [])

    def test_nobody_forgets_modules(self) -> None:
        """What a test imports while ``sys.modules`` is to be put back is imported again later: its classes are there twice from then on."""
        pattern = re.compile(r"patch\.dict\(\s*['\"]?sys\.modules")
        found = [path.name for path in (TOP / "tests").rglob("*.py") if pattern.search(path.read_text(encoding="utf-8"))]
        self.assertEqual(found, [])

    def test_nothing_is_left_open(self) -> None:
        """A note to finish something later is a promise that nobody keeps track of."""
        marks = re.compile(r"\b(T[O]DO|F[I]XME|X[X]X)\b|N[o]tImplementedError")
        found = [
            f"{path.relative_to(TOP)}:{number}"
            for folder in (PACKAGE, TOP / "tests", TOP / "twisted")
            for path in folder.rglob("*.py")
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
            if marks.search(line)
        ]
        self.assertEqual(found, [])
