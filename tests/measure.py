"""What coverage measures: not the tests that only do much of what others do already, and would take three times as long."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

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


def environ(*, measured: bool) -> Mapping[str, str]:
    """The environment for a child, which is measured as well, or not."""
    return {name: value for name, value in os.environ.items() if measured or name != START}
