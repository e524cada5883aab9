"""Markers of guards are about this program, and a guard that nobody would miss is found out."""

from __future__ import annotations

import ast
import contextlib
import io
import subprocess
import sys
import textwrap

from twisted.trial.unittest import SynchronousTestCase

from tests import campaigns
from tests.evidence import rows
from tests.guards import mirrors
from tests.markers import TOP, BadMarker, Guard, guards, marked, without
from tests.proof import shows

TRY = """
import dataclasses, tempfile
from pathlib import Path
from tests.guards import Runs, loaded, tried
from tests.markers import Guard, guards
lines = Path("ciruela/index/names.py").read_text().splitlines()
at = next(at for at, line in enumerate(lines, 1) if line.strip().startswith("if not _CANONICAL"))
constant = next(at for at, line in enumerate(lines, 1) if line.startswith("MAX_COMPONENT_BYTES"))
good = Guard(("A4",), "ciruela/index/names.py", at)
as_before = dataclasses.replace(good, change="-> bool(not _CANONICAL.fullmatch(spelled))")
for_ever = dataclasses.replace(good, change='-> all(iter(lambda: True, 0))')
at_import = dataclasses.replace(good, line=constant, change="-> 1 << 30")
broken = dataclasses.replace(good, line=constant, change="-> nowhere")
elsewhere = next(guard for guard in guards() if guard.file.startswith("ciruela/web/"))
import tests.guards
with tempfile.TemporaryDirectory() as folder:
    runs = Runs(loaded(["tests.index.test_names"]), Path(folder))
    wrong = tried([good, as_before, at_import, broken, elsewhere], runs, Path(folder))
    tests.guards.PATIENCE_S = 2  # only where it has to end: on a busy machine a sound test may take longer
    wrong |= tried([for_ever], runs, Path(folder))
for guard in good, as_before, for_ever, at_import, broken, elsewhere:
    print(wrong.get(guard, "noticed").splitlines()[0])
"""

EXAMPLES = {
    "if a and not b:  # guard: A1": "if False:",
    "if a and not b:  # guard: A1, -> True": "if True:",
    "if a and not b:  # guard: A1, without 1": "if not b:",
    "if a and (b or c):  # guard: A1, without 2": "if a and c:",
    "if a < b:  # guard: A1, < -> <=": "if a <= b:",
    "while a:  # guard: A1": "while False:",
    "for a in b:  # guard: A1": "for a in ():",
    "with a:  # guard: A1": "pass",
    "return a  # guard: A1": "pass",
    "return a  # guard: A1, -> None": "return None",
    "a = b or c  # guard: A1, without 2": "a = b",
    "f(a, b=c)  # guard: A1": "pass",
    "f(a, b=c)  # guard: A1, , b=c ->": "f(a)",
    "raise A  # guard: A1": "pass",
    "f(\n    a,\n    b=c,  # guard: A1\n)": "f(a)",
    "f(\n    a,  # guard: A1, -> 1\n    b=c,\n)": "f(1, b=c)",
    "if (\n    a\n    # guard: A1\n    and b\n    and c\n):": "if a and c:",
    "a = {\n    b: c,  # guard: A1\n    d: e,\n}": "a = {d: e}",
    "a = [\n    b\n    for b in c\n    if b  # guard: A1, -> True\n]": "a = [b for b in c if True]",
    "try: ...\nexcept A:  # guard: A1": "try: ...\nexcept ():",
    "match a:\n    case B():  # guard: A1": "match a:\n    case B() if False:",
    "# guard: A1\na.b()": "pass",
}
"""A function's body, and what it is without its guard."""


def _function(body: str) -> str:
    """``body`` in a function; what only begins a block gets one."""
    if body.splitlines()[-1].partition("#")[0].rstrip().endswith(":"):
        body += "\n        ..."
    return "def function():\n" + textwrap.indent(body, "    ") + "\n"


class MarkerTests(SynchronousTestCase):
    """What a marker says, and what the code is without the guard."""

    def test_changes(self) -> None:
        """Each form of the grammar."""
        for body, expected in EXAMPLES.items():
            source = _function(body)
            (guard,) = marked("x.py", source)
            self.assertEqual(ast.unparse(without(guard, source)), ast.unparse(ast.parse(_function(expected))), body)

    def test_several(self) -> None:
        """Entries of one line, and of lines above it, are guards of their own."""
        source = "# guard: A1 K2.1; I3, -> b; c\n# guard: F1\n# why\na = b  # guard: A2, b -> c; S1\n"
        found = [(guard.rows, guard.line, guard.change) for guard in marked("x.py", source)]
        self.assertEqual(
            sorted(found),
            [(("A1", "K2.1"), 4, ""), (("A2",), 4, "b -> c"), (("F1",), 4, ""), (("I3",), 4, "-> b; c"), (("S1",), 4, "")],
        )
        self.assertEqual(list(marked("x.py", 'a = "# guard: A1"\n')), [])

    def test_mistakes(self) -> None:
        """A marker that would guard nothing is an error, not a comment."""
        for marker in ("guard", "guard A1", "guard:A1", "guard: a1", "guard: A1, true", "guard: A1; ", "guard: A1 , -> b"):
            self.assertRaises(BadMarker, list, marked("x.py", f"a = b  # {marker}\n"))
        for line, change, why in (
            (2, "", "nothing begins"),
            (1, "-> b", "changes nothing"),
            (1, "without 1", "there are 0 operands"),
            (1, "c -> d", "0 times, not once"),
            (1, "-> )", "unmatched"),
        ):
            error = self.assertRaises(BadMarker, without, Guard(("A1",), "x.py", line, change), "a = b\n")
            self.assertIn(why, str(error))


@shows("G10")
class GuardTests(SynchronousTestCase):
    """The markers of the program, which ``python -m tests.campaigns guards --all`` works through."""

    def test_each_can_be_taken_away(self) -> None:
        """A marker that says nothing of what begins on its line would be found only by the next run of all guards."""
        wrong = []
        for guard in guards():
            try:
                without(guard, (TOP / guard.file).read_text(encoding="utf-8"))
            except BadMarker as error:
                wrong.append(str(error))
        self.assertEqual(wrong, [])

    def test_none_twice(self) -> None:
        """Two entries that take the same away count as one."""
        found = [(guard.file, guard.line, guard.change) for guard in guards()]
        self.assertEqual([one for one in set(found) if found.count(one) > 1], [])

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
        done = subprocess.run([sys.executable, "-c", TRY], cwd=TOP, capture_output=True, text=True, timeout=600, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        good, as_before, for_ever, at_import, broken, elsewhere = done.stdout.splitlines()
        self.assertEqual((good, for_ever, at_import), ("noticed",) * 3)
        self.assertIn("stay green", as_before)
        self.assertIn("did not run", broken)
        self.assertIn("no test runs it", elsewhere)

    def test_whose_tests(self) -> None:
        """The guards of a package would not be tried when its tests change."""
        for file, expected in {
            "ciruela/disk/store.py": "tests.disk",
            "tests/disk/test_store.py": "tests.disk",
            "ciruela/runtime.py": "tests.test_runtime",
            "tests/test_runtime.py": "tests.test_runtime",
            "ciruela/_version.py": "",
        }.items():
            self.assertEqual(mirrors(file), expected)
        self.assertEqual({guard.file for guard in guards() if not mirrors(guard.file)}, set())

    def test_option(self) -> None:
        """``--all`` would be taken for the name of a campaign."""
        seen: list[tuple[object, ...]] = []

        def share(*given: object) -> tuple[bool, str, float]:
            seen.append(given)
            return True, "", 0.0

        self.patch(campaigns, "_share", share)
        with contextlib.redirect_stdout(io.StringIO()):
            self.assertEqual(campaigns.main(["guards", "--all"]), 0)
            self.assertEqual(campaigns.main(["guards"]), 0)
        self.assertEqual(seen, [("guards", 0, ["--all"]), ("guards", 0, [])])

    def test_other_seeds(self) -> None:
        """Whoever wants seeds that nobody had yet would get the same ones again, or ask for them where there are none."""
        seen: set[tuple[str, ...]] = set()

        def share(name: str, _part: int, options: list[str]) -> tuple[bool, str, float]:
            seen.add((name, *options))
            return True, "", 0.0

        self.patch(campaigns, "_share", share)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            self.assertEqual(campaigns.main(["simulator", "fuzz", "--from=500"]), 0)
            for bad in (["--from=500"], ["sweep", "--from=500"], ["fuzz", "guards", "--from=500"], ["fuzz", "--from=x"]):
                self.assertEqual(campaigns.main(bad), 2)
        self.assertEqual(seen, {("simulator", "--from=500"), ("fuzz", "--from=500")})


UNGUARDED = {
    "A55": "nodes finish from each other: not one check, but what downloads do",
}
"""Rows without a single place that could be taken away."""
