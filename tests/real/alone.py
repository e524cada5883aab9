"""Runs a story that needs a test case, for its cleanups and temporary directories, outside of trial: a campaign's share."""

from __future__ import annotations

import shutil
import tempfile
import unittest
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

Story = Callable[[SynchronousTestCase], str]


class _Alone(SynchronousTestCase):
    """One story. Its temporary directories are not in the working directory."""

    story: Story

    def mktemp(self) -> str:
        """As trial's, elsewhere; removed at the end."""
        top = tempfile.mkdtemp(prefix="ciruela-campaign-")
        self.addCleanup(shutil.rmtree, top)
        return str(Path(top, "temp"))

    def test_story(self) -> None:
        """Tell it."""
        self.told = type(self).story(self)


def run_alone(story: Story) -> str:
    """Run ``story`` and its cleanups. Gives what it returned; raises AssertionError with all that went wrong."""
    case_class = type("Alone", (_Alone,), {"story": staticmethod(story)})
    case = case_class("test_story")
    result = unittest.TestResult()
    case.run(result)
    problems = [str(text) for _, text in (*result.failures, *result.errors)]
    if problems:
        raise AssertionError("\n".join(problems))
    told: str = case.told
    return told
