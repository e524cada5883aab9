"""Each guard is taken away once, and a test must fail: ``python -m tests.campaigns guards``.

``tests/guards.toml`` says where a guard stands, what stands there without it, and which tests must notice. A guard that is not found, or
whose tests stay green without it, is a failure. That they are green with all guards in place is shown by running them. Works on a copy; the
checkout is not touched.
"""

from __future__ import annotations

import compileall
import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

from twisted.scripts import trial

TOP = Path(__file__).parent.parent
LIST = Path(__file__).parent / "guards.toml"
PATIENCE_S = 30

LOADED = (
    "autobahn.twisted.websocket",
    "blake3",
    "cbor2",
    "cryptography.hazmat.primitives.serialization",
    "hypothesis",
    "hypothesis.strategies",
    "nacl.signing",
    "treq",
    "twisted.conch.ssh.agent",
    "twisted.internet.endpoints",
    "twisted.internet.testing",
    "twisted.python.rebuild",
    "twisted.test.iosim",
    "twisted.trial.reporter",
    "twisted.trial.runner",
    "twisted.web.server",
    "yaml",
)
"""What tests import and nobody here wrote."""


@dataclass(frozen=True, slots=True)
class Guard:
    """``with_`` stands in ``file`` exactly once; ``without`` takes its place; at least one of ``tests`` must fail then."""

    rows: tuple[str, ...]
    file: str
    with_: str
    without: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """For messages."""
        return f"{'/'.join(self.rows)} in {self.file}: {self.with_.strip().splitlines()[0]}"


def guards() -> list[Guard]:
    """All of the list."""
    entries = tomllib.loads(LIST.read_text(encoding="utf-8"))["guard"]
    return [Guard(tuple(one["rows"]), one["file"], one["with"], one["without"], tuple(one["tests"])) for one in entries]


def fault(guard: Guard, copy: Path) -> str | None:
    """What is wrong with a guard, tried in ``copy``; None when its tests notice that it is gone."""
    path = copy / guard.file
    source = path.read_text(encoding="utf-8")
    if source.count(guard.with_) != 1:
        return f"{guard.name}: stands there {source.count(guard.with_)} times, not once"
    without = source.replace(guard.with_, guard.without)
    try:
        compile(without, guard.file, "exec")
    except SyntaxError as error:
        return f"{guard.name}: what takes its place is not Python: {error}"
    path.write_text(without, encoding="utf-8")
    try:
        return _noticed(guard, copy)
    finally:
        path.write_text(source, encoding="utf-8")


def _noticed(guard: Guard, copy: Path) -> str | None:
    ended, printed = _tried(guard.tests, copy)
    if not ended:
        return None
    summary = re.findall(r"^(PASSED|FAILED) \((.*)\)$", printed, re.MULTILINE)
    if not summary or re.search(r"builtins\.(ImportError|ModuleNotFoundError)|does not exist\.$", printed, re.MULTILINE):
        return f"{guard.name}: its tests did not run:\n{printed[-3000:]}"
    if summary[-1][0] == "PASSED":
        return f"{guard.name}: without it {', '.join(guard.tests)} stay green"
    return None


def _tried(tests: Sequence[str], copy: Path, patience_s: float = PATIENCE_S) -> tuple[bool, str]:
    """Run tests of the copy in a child. Whether they ended in time, and what they printed."""
    output = copy / "_output"
    child = os.fork()
    if child == 0:
        _run_and_exit(tests, copy, output)
    until_s = time.monotonic() + patience_s
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > until_s:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False, ""
        time.sleep(0.01)
    return True, output.read_text(encoding="utf-8", errors="replace")


def _run_and_exit(tests: Sequence[str], copy: Path, output: Path) -> None:
    """What a child does: forget the checkout, look at the copy. What others wrote is loaded already, which is half of the time."""
    try:
        printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        os.chdir(copy)
        for name in [name for name in sys.modules if name.split(".")[0] in ("ciruela", "tests")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        sys.path[:] = [str(copy), *(path for path in sys.path if path not in ("", str(TOP)))]
        sys.dont_write_bytecode = True
        os.environ["PYTHONPATH"] = str(copy)
        sys.argv = ["trial", "--temp-directory=_trial", "--reporter=bwverbose", "--exitfirst", *tests]
        trial.run()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def copied(folder: Path) -> None:
    """Make a copy of what tests need in ``folder``, compiled so that a changed source is noticed."""
    for name in ("ciruela", "tests", "twisted", "benchmarks", "docs"):
        shutil.copytree(TOP / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "_trial*", "_build"))
    for name in ("setup.py", "README.rst", "pyproject.toml", ".importlinter"):
        shutil.copy(TOP / name, folder / name)
    for name in ("ciruela", "tests"):
        compileall.compile_dir(folder / name, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)


def run(part: int, parts: int) -> str:
    """Every ``parts``-th guard. Raises AssertionError that lists what is wrong."""
    mine = guards()[part::parts]
    for name in LOADED:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="ciruela-guards-") as folder:
        copy = Path(folder)
        copied(copy)
        faults = [found for guard in mine if (found := fault(guard, copy)) is not None]
    if faults:
        raise AssertionError("\n".join(faults))
    return f"{len(mine)} guards, each missed by a test when it is gone"
