"""What the other tests here rely on: that a daemon or a client which goes wrong fails the test, whatever the test looks at."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.alone import run_alone
from tests.real.daemons import RealCluster

GOOD = "2026-01-01T00:00:00+0000 [ciruela.daemon.node.Node#info] images that are here: 1, on their way: 0\n"


@shows("I8")
class WatchTests(SynchronousTestCase):
    """The end of each test looks at what was said."""

    def log(self, line: str, expect_errors: Sequence[str] = ()) -> str:
        """A test in which a daemon logged ``line``."""

        def story(case: SynchronousTestCase) -> str:
            cluster = RealCluster(case, 1, down=[0], expect_errors=expect_errors)
            cluster.nodes[0].log.write_text(GOOD + line + "\n" + GOOD)
            return "passed"

        return run_alone(story)

    def test_log(self) -> None:
        """An error that nobody caught would only stand in a log that nobody reads."""
        for line in (
            "2026-01-01T00:00:00+0000 [-] Unhandled Error",
            "2026-01-01T00:00:00+0000 [twisted.internet.defer#critical] Unhandled error in Deferred:",
            "\tTraceback (most recent call last):",
            "2026-01-01T00:00:00+0000 [ciruela.disk.commit#error] recording failed",
            "2026-01-01T00:00:00+0000 [stderr#error] Exception ignored in: <coroutine object>",
            "x.py:1: RuntimeWarning: coroutine 'f' was never awaited",
        ):
            with self.assertRaises(AssertionError) as caught:
                self.log(line)
            self.assertIn(f"node1: {line}", str(caught.exception))
        self.assertEqual(self.log("2026-01-01T00:00:00+0000 [ciruela.net.connection#warn] slow"), "passed")
        self.assertEqual(self.log("2026-01-01T00:00:00+0000 [x#error] recording failed", ["recording failed"]), "passed")

    def test_expected_too_early(self) -> None:
        """What one story brings about would excuse the same error in the story before it, on the same cluster."""
        line = "2026-01-01T00:00:00+0000 [x#error] recording failed"

        def told(before: bool) -> str:
            def story(case: SynchronousTestCase) -> str:
                cluster = RealCluster(case, 1, down=[0])
                cluster.nodes[0].log.write_text(line if before else GOOD)
                cluster.expect_from_now("recording failed")
                cluster.nodes[0].log.write_text(GOOD + line)
                return "passed"

            return run_alone(story)

        self.assertEqual(told(before=False), "passed")
        with self.assertRaisesRegex(AssertionError, "node1: .*recording failed"):
            told(before=True)

    def test_client(self) -> None:
        """A user would see a traceback, and the test only that the exit code is right."""
        broken = [sys.executable, "-c", "raise ValueError(1)"]

        def finished(case: SynchronousTestCase) -> str:
            cluster = RealCluster(case, 1, down=[0])
            return f"exit code {cluster.run(broken).returncode}"

        with self.assertRaisesRegex(AssertionError, "ValueError: 1"):
            run_alone(finished)

        def quiet(case: SynchronousTestCase) -> str:
            cluster = RealCluster(case, 1, down=[0])
            return f"exit code {cluster.run([sys.executable, '-c', 'print(1)']).returncode}"

        self.assertEqual(run_alone(quiet), "exit code 0")
