"""The list of guards is about this program, and a guard that nobody would miss is found out."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.evidence import rows
from tests.guards import TOP, guards
from tests.proof import shows

TRY = """
import dataclasses, sys, tempfile
from pathlib import Path
from tests.guards import copied, fault, guards
good = next(guard for guard in guards() if guard.file == "ciruela/index/names.py")
with tempfile.TemporaryDirectory() as folder:
    copied(Path(folder))
    print(fault(good, Path(folder)))
    print(fault(dataclasses.replace(good, without=good.with_ + "  # as before"), Path(folder)))
    print(fault(dataclasses.replace(good, with_="this stands nowhere"), Path(folder)))
    print(fault(dataclasses.replace(good, tests=("tests.index.test_names.NoSuch",)), Path(folder)).splitlines()[0])
    print(fault(dataclasses.replace(good, without=")"), Path(folder)))
    print((Path(folder) / good.file).read_text() == Path(good.file).read_text())
"""


def _names(path: Path) -> set[str]:
    """The dotted names that can stand in the list: the module, its classes, their methods, also inherited ones of classes above."""
    module = ".".join(path.relative_to(TOP).with_suffix("").parts)
    found = {module}
    methods: dict[str, set[str]] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            own = {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)}
            methods[node.name] = own.union(*(methods.get(base.id, set()) for base in node.bases if isinstance(base, ast.Name)))
            found |= {f"{module}.{node.name}"} | {f"{module}.{node.name}.{name}" for name in methods[node.name]}
    return found


@shows("G10")
class GuardTests(SynchronousTestCase):
    """``tests/guards.toml``, which ``python -m tests.campaigns guards`` works through."""

    def test_each_is_there(self) -> None:
        """A guard that was rewritten would not be tried any more, and nobody would know."""
        wrong = []
        for guard in guards():
            source = (TOP / guard.file).read_text(encoding="utf-8")
            if source.count(guard.with_) != 1:
                wrong.append(f"{guard.name}: stands there {source.count(guard.with_)} times")
                continue
            ast.parse(source.replace(guard.with_, guard.without))
        self.assertEqual(wrong, [])

    def test_each_test_is_there(self) -> None:
        """A test that was renamed would be missed only by the next run of all guards."""
        known: dict[Path, set[str]] = {}
        wrong = []
        for guard in guards():
            for name in guard.tests:
                parts = name.split(".")
                path = next(
                    (found for at in range(len(parts), 0, -1) if (found := TOP.joinpath(*parts[:at]).with_suffix(".py")).exists()), None
                )
                if path is None or name not in known.setdefault(path, _names(path)):
                    wrong.append(name)
        self.assertEqual(wrong, [])

    def test_each_attack_has_one(self) -> None:
        """Against an attack of the table nothing would be tried."""
        guarded = {row for guard in guards() for row in guard.rows}
        names = {row.name for row in rows()}
        self.assertEqual(guarded - names, set())
        self.assertEqual(
            [row.name for row in rows() if row.name.startswith("A") and row.name not in guarded and row.name not in UNGUARDED], []
        )

    def test_found_out(self) -> None:
        """A run that says that all is well whatever it finds would be worse than none."""
        done = subprocess.run([sys.executable, "-c", TRY], cwd=TOP, capture_output=True, text=True, timeout=120, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        noticed, unnoticed, moved, untested, broken, restored = done.stdout.splitlines()
        self.assertEqual((noticed, restored), ("None", "True"))
        self.assertIn("stay green", unnoticed)
        self.assertIn("stands there 0 times, not once", moved)
        self.assertIn("its tests did not run", untested)
        self.assertIn("is not Python", broken)


UNGUARDED = {
    "A55": "nodes finish from each other: not one check, but what downloads do",
}
"""Rows without a single place that could be taken away."""
