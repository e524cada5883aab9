"""Limits coverage: tests that only do much of what others do already would take three times as long. Times tests, where asked to."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

START = "COVERAGE_PROCESS_START"


class UnmeasuredTestCase(SynchronousTestCase):
    """Its tests do not count for coverage. Nothing is different where nothing is measured."""

    def setUp(self) -> None:
        super().setUp()
        coverage = sys.modules.get("coverage")
        running = coverage.Coverage.current() if coverage is not None else None
        if running is not None:
            running.stop()
            self.addCleanup(running.start)


@contextmanager
def without(*names: str) -> Iterator[None]:
    """These modules cannot be imported meanwhile. What is imported meanwhile stays, or its classes would be there twice from then on."""
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(before)


def environ(*, measured: bool) -> Mapping[str, str]:
    """The environment for a child, which is measured as well, or not."""
    return {name: value for name, value in os.environ.items() if measured or name != START}


def time_tests(path: str) -> None:
    """Append a line ``SECONDS PROCESSOR_SECONDS NAME`` to ``path`` after each test of this process; several may share the file.

    Processor time is that of the test and of the children that ended with it: on a busy machine the better measure.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    run = SynchronousTestCase.run

    def timed(self: Any, result: Any) -> None:
        began_s, busy_s = time.monotonic(), sum(os.times()[:4])
        run(self, result)
        os.write(file, f"{time.monotonic() - began_s:.2f} {sum(os.times()[:4]) - busy_s:.2f} {self.id()}\n".encode())

    SynchronousTestCase.run = timed  # type: ignore[method-assign]
