"""Takes each guard out of the program once; a test must fail then: ``python -m tests.campaigns guards [--all]``.

Guards are markers in the source (:mod:`tests.markers`). The mutant is made of the syntax tree and takes the place of the loaded function in
a forked child; the checkout is not touched. The tests to try are those that ran the line, by coverage's contexts: of the tests that mirror
the package, then, for what they do not miss, of those that show one of the guard's rows, and at last of all. Without ``--all`` only guards
of packages that changed, or whose tests did.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path

import coverage
from twisted.trial import reporter, runner, unittest

from tests.evidence import marks
from tests.markers import TOP, Guard, extent, guards, subject, without
from tests.measure import UnmeasuredTestCase

TESTS = Path(__file__).parent
PATIENCE_S = 60
"""For one test: a mutant may turn for ever. Which is noticed."""
BUDGET_S = 120
"""Processor time for all tests of one guard."""
AT_ONCE = os.cpu_count() or 1
NOTICED, GREEN, BROKEN = 10, 11, 12
"""How a child exits."""


def _function(body: Sequence[ast.stmt], line: int, outer: str = "") -> str | None:
    """The qualified name of the outermost function around the line. None: it runs when the module is imported."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body[0].lineno <= line <= (
            node.end_lineno or 0
        ):
            name = f"{outer}{node.name}"
            return _function(node.body, line, f"{name}.") if isinstance(node, ast.ClassDef) else name
    return None


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _in_place(name: str, path: str, module: types.CodeType) -> bool:
    """Give a loaded function, and those made in it, the code of ``module``. False when there is none, or it closes over something else."""
    new = {(code.co_qualname, code.co_firstlineno): code for code in _codes(module)}
    found = [one for one in gc.get_objects() if isinstance(one, types.FunctionType) and one.__code__.co_filename == path]
    found = [one for one in found if one.__code__.co_qualname == name or one.__code__.co_qualname.startswith(f"{name}.<locals>.")]
    try:
        for one in found:
            one.__code__ = new[one.__code__.co_qualname, one.__code__.co_firstlineno]
    except (KeyError, ValueError):
        return False
    return bool(found)


class _Instead(SourceFileLoader):
    """Imports one module from a code object, and leaves the others to whoever comes next."""

    def __init__(self, name: str, path: str, code: types.CodeType) -> None:
        super().__init__(name, path)
        self._code = code

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> types.CodeType:
        return self._code


def _anew(file: str, code: types.CodeType, names: Iterable[str]) -> Iterator[unittest.SynchronousTestCase]:
    """Import the program once more, with ``code`` for one module, and these tests one by one."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("ciruela", "tests")]:
        del sys.modules[name]
    module = ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")
    sys.meta_path.insert(0, _Instead(module, str(TOP / file), code))
    return (test for name in names for test in loaded([name]))


def _cases(suite: Iterable[object]) -> Iterator[unittest.SynchronousTestCase]:
    for one in suite:
        if isinstance(one, unittest.SynchronousTestCase):
            yield one
        elif isinstance(one, Iterable):
            yield from _cases(one)
        else:
            raise AssertionError(f"cannot be loaded: {one}")


def loaded(names: Iterable[str]) -> list[unittest.SynchronousTestCase]:
    """The tests of packages, modules, classes, or single ones."""
    found = _cases([runner.TestLoader().loadByName(name, recurse=True) for name in sorted(names)])
    return list({case.id(): case for case in found}.values())


def shown(test: unittest.SynchronousTestCase) -> set[str]:
    """The rows that a test, or its class, is evidence for."""
    return {*getattr(test, "shows", ()), *getattr(getattr(test, test._testMethodName), "shows", ())}


def _forked(work: Callable[[], int], folder: Path) -> int:
    """Start a child that does the work in a folder of its own and exits with what that returns. Its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = BROKEN
    try:
        folder.mkdir()
        os.chdir(folder)
        printed = os.open("printed", os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = work()
    except BaseException:  # noqa: BLE001 - a child that goes on as its parent would be worse
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _try(guard: Guard, tree: ast.Module, tests: Iterable[unittest.SynchronousTestCase]) -> int:
    """What a child does: NOTICED or GREEN."""
    path = str(TOP / guard.file)
    code = compile(tree, path, "exec", dont_inherit=True)  # of the rules of this module, such as annotations as text
    name = _function(ast.parse(Path(path).read_text(encoding="utf-8")).body, guard.line)
    if name is None or not _in_place(name, path, code):
        tests = _anew(guard.file, code, [test.id() for test in tests])
    result = reporter.TestResult()
    for test in tests:
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
        test.run(result)
        if not result.wasSuccessful():
            return NOTICED
        if time.process_time() > BUDGET_S:
            break
    return GREEN


class Runs:
    """Which tests ran which lines, and how long each took."""

    def __init__(self, tests: Sequence[unittest.SynchronousTestCase], folder: Path) -> None:
        """Run them all, measured. One that fails with all guards in place does not count."""
        self.tests = {test.id(): test for test in tests}
        self.took_s: dict[str, float] = {}
        self._lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        shares = [folder / f"map{share}" for share in range(AT_ONCE)]
        children = [_forked(functools.partial(self._measure, tests[at::AT_ONCE]), share) for at, share in enumerate(shares)]
        ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        for share, code in zip(shares, ended, strict=True):
            if code != GREEN:
                raise AssertionError(f"the tests could not be measured:\n{(share / 'printed').read_text(errors='replace')[-3000:]}")
            self.took_s |= json.loads((share / "took").read_text())
            data = coverage.CoverageData(str(share / "coverage"))
            data.read()
            for file in data.measured_files():
                for line, names in data.contexts_by_lineno(file).items():
                    self._lines[str(Path(file).relative_to(TOP))][line].update(self.took_s.keys() & names)

    @staticmethod
    def _measure(tests: Sequence[unittest.SynchronousTestCase]) -> int:
        os.environ["COVERAGE_CORE"] = "ctrace"
        measured = coverage.Coverage(data_file="coverage", config_file=False, source=[str(TOP / "ciruela")], messages=False)
        measured.start()
        took_s = {}
        for test in tests:
            began_s = time.process_time()
            measured.switch_context(test.id())
            test.run(result := reporter.TestResult())
            if result.wasSuccessful() and result.successes:
                took_s[test.id()] = time.process_time() - began_s
        measured.stop()
        measured.save()
        Path("took").write_text(json.dumps(took_s))
        return GREEN

    def of(self, guard: Guard, tree: ast.Module) -> list[unittest.SynchronousTestCase]:
        """The tests that ran the guard, quick ones first, and sooner those that show one of its rows or stand beside its module.

        Coverage does not see what a test's child runs, or an unmeasured test: so all beside the module, and unmeasured ones of its rows.
        """
        lines = self._lines[guard.file]
        node = subject(tree, guard.line)
        if node is None or _function(tree.body, guard.line) is None:
            names = set().union(*lines.values())
        else:
            (first, _), (last, _) = extent(node)
            names = set().union(*(lines[line] for line in range(first, last + 1)))
        showing = {one for one in self.took_s if not shown(self.tests[one]).isdisjoint(guard.rows)}
        beside = f".test_{Path(guard.file).stem}."
        names |= {one for one in showing if isinstance(self.tests[one], UnmeasuredTestCase)} | {one for one in self.took_s if beside in one}
        cost = {one: self.took_s[one] * (1 if one in showing else 4) * (1 if beside in one else 4) for one in names}
        return [self.tests[name] for name in sorted(names, key=cost.__getitem__)]


def tried(chosen: Sequence[Guard], runs: Runs, folder: Path) -> dict[Guard, str]:
    """Try guards. What is wrong with those that no test misses."""
    wrong: dict[Guard, str] = {}
    running: dict[int, tuple[Guard, Path]] = {}
    ready = list(reversed(chosen))
    while ready or running:
        if ready and len(running) < AT_ONCE:
            guard = ready.pop()
            source = (TOP / guard.file).read_text(encoding="utf-8")
            if not (tests := runs.of(guard, ast.parse(source))):
                wrong[guard] = "no test runs it"
                continue
            place = folder / f"try{len(chosen) - len(ready)}"
            running[_forked(functools.partial(_try, guard, without(guard, source), tests), place)] = guard, place
            continue
        child, status = os.wait()
        guard, place = running.pop(child)
        match os.waitstatus_to_exitcode(status):
            case code if code == GREEN:
                wrong[guard] = "without it all tests that run it stay green"
            case code if code not in (NOTICED, -signal.SIGALRM):  # its alarm has noticed that it goes on for ever
                wrong[guard] = f"its tests did not run:\n{(place / 'printed').read_text(errors='replace')[-3000:]}"
        shutil.rmtree(place, ignore_errors=True)
    return wrong


def mirrors(file: str) -> str:
    """The tests of a file of the program, or beside a file of the tests: a package or a module."""
    name = Path(file).parts[1].removesuffix(".py")
    return next((f"tests.{one}" for one in (name, f"test_{name}") if (TESTS / one).is_dir() or (TESTS / f"{one}.py").exists()), "")


def changed() -> list[str] | None:
    """Which files differ from where the branch left ``main``, or else from the commit before. None where there is no git."""
    git = ("git", "--no-optional-locks")
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        for before in ("merge-base", "HEAD", "main"), ("rev-parse", "HEAD~1"):
            base = subprocess.check_output([*git, *before], cwd=TOP, text=True).strip()
            if differs := subprocess.check_output([*git, "diff", "--name-only", base, "--", "ciruela", "tests"], cwd=TOP, text=True):
                return differs.split()
        return []
    return None


def _of_rows(rows: set[str], packages: Iterable[str]) -> list[unittest.SynchronousTestCase]:
    """The tests of ``packages`` that are evidence for one of ``rows``."""
    evidence = marks()
    modules = {module[0] for row in rows for test in evidence[row] if (module := re.match(r".*?\.test_\w+", test))}
    below = tuple(f"{name}." for name in packages)
    return [test for test in loaded(name for name in modules if name.startswith(below)) if shown(test) & rows]


def faults(chosen: Sequence[Guard]) -> list[str]:
    """Try guards with the tests that mirror their packages, then with those that show their rows, then with all. What is wrong."""
    wrong: dict[Guard, str] = dict.fromkeys(chosen, "")
    near = {name for guard in chosen if (name := mirrors(guard.file))}
    packages = {f"tests.{path.parent.name}" for path in TESTS.glob("*/test_*.py")} - {"tests.real", "tests.sim", "tests.fuzz"}
    stages = (
        lambda: loaded(near),
        lambda: _of_rows({row for guard in wrong for row in guard.rows}, packages),
        lambda: loaded(packages - near),
    )
    with tempfile.TemporaryDirectory(prefix="ciruela-guards-") as folder:
        for stage in stages:
            if wrong:
                place = Path(tempfile.mkdtemp(dir=folder))
                wrong = tried(list(wrong), Runs(stage(), place), place)
    return [f"{guard.name}: {fault}" for guard, fault in wrong.items()]


def run(part: int, parts: int, *, everything: bool = False) -> str:
    """Every ``parts``-th guard of what changed, or of the program. Raises AssertionError that lists what is wrong."""
    differs = None if everything else changed()
    near = None if differs is None else {mirrors(file) for file in differs}
    mine = [guard for guard in guards() if near is None or mirrors(guard.file) in near][part::parts]
    if found := faults(mine):
        raise AssertionError("\n".join(found))
    return f"{len(mine)} guards, each missed by a test when it is gone"
