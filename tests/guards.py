"""Each guard is taken away once, and a test must fail: ``python -m tests.campaigns guards``.

``tests/guards.toml`` says where a guard stands, what stands there without it, and which tests must notice. A guard that is not found, or
whose tests stay green without it, is a failure. Works on a copy; the checkout is not touched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).parent.parent
LIST = Path(__file__).parent / "guards.toml"
PATIENCE_S = 120


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
    path.write_text(source.replace(guard.with_, guard.without), encoding="utf-8")
    try:
        return _noticed(guard, copy)
    finally:
        path.write_text(source, encoding="utf-8")


def _noticed(guard: Guard, copy: Path) -> str | None:
    compiled = subprocess.run([sys.executable, "-m", "py_compile", guard.file], cwd=copy, capture_output=True, text=True, check=False)
    if compiled.returncode:
        return f"{guard.name}: what takes its place is not Python: {compiled.stderr.strip().splitlines()[-1]}"
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "twisted.trial", "--temp-directory=_trial", "--reporter=bwverbose", *guard.tests]
    try:
        ran = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        return None
    summary = re.findall(r"^(PASSED|FAILED) \((.*)\)$", ran.stdout, re.MULTILINE)
    if not summary or re.search(r"builtins\.(ImportError|ModuleNotFoundError)|does not exist\.$", ran.stdout, re.MULTILINE):
        return f"{guard.name}: its tests did not run:\n{ran.stdout[-2000:]}{ran.stderr[-1000:]}"
    if summary[-1][0] == "PASSED":
        return f"{guard.name}: without it {', '.join(guard.tests)} stay green"
    return None


def run(part: int, parts: int) -> str:
    """Every ``parts``-th guard. Raises AssertionError that lists what is wrong."""
    mine = guards()[part::parts]
    with tempfile.TemporaryDirectory(prefix="ciruela-guards-") as folder:
        copy = Path(folder)
        for name in ("ciruela", "tests", "twisted", "benchmarks", "docs"):
            shutil.copytree(TOP / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "_trial*", "_build"))
        for name in ("setup.py", "README.rst", "pyproject.toml", ".importlinter"):
            shutil.copy(TOP / name, copy / name)
        faults = [found for guard in mine if (found := fault(guard, copy)) is not None]
    if faults:
        raise AssertionError("\n".join(faults))
    return f"{len(mine)} guards, each missed by a test when it is gone"
