"""What the daemon tells of a reactor that is stuck."""

from __future__ import annotations

import sys
import threading
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ciruela.daemon import service as module
from ciruela.daemon.service import BEAT_S, Watchdog, where_is
from tests.proof import shows


def stuck_here() -> Any:
    """A frame with a name of its own."""
    return sys._getframe()


class WatchdogTests(SynchronousTestCase):
    """An operator whose uploads hang must be able to see that it is the reactor, and where."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.now_s = 100.0
        self.lines: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.note)
        self.addCleanup(globalLogPublisher.removeObserver, self.note)
        self.dog = Watchdog(self.clock, lambda: self.now_s)
        self.patch(module, "LOOK_S", 3600.0)  # this test looks itself
        self.dog.start()
        self.addCleanup(self.dog.stop)

    def note(self, event: dict[str, Any]) -> None:
        if str(event.get("log_namespace")).startswith(module.__name__):
            self.lines.append(event)

    def beat(self, took_s: float, look: bool = False) -> None:
        """The time until the next beat; in the middle the other thread may look."""
        self.now_s += took_s
        if look:
            self.dog.look()
        self.clock.advance(BEAT_S)

    @shows("I8")
    def test_good(self) -> None:
        """Being a little late is no stall."""
        for _ in range(10):
            self.beat(BEAT_S + 0.2, look=True)
        self.assertEqual((self.dog.stalls, self.dog.longest_ms, self.lines), (0, 0, []))

    @shows("I8", "F42")
    def test_stall(self) -> None:
        """The stall is counted and told with the place; the longest is kept."""
        frame = stuck_here()
        self.patch(sys, "_current_frames", lambda: {threading.get_ident(): frame})
        self.beat(BEAT_S + 1.5, look=True)
        self.beat(BEAT_S)
        self.assertEqual((self.dog.stalls, self.dog.longest_ms), (1, 1500))
        (line,) = self.lines
        self.assertEqual(line["late_ms"], 1500)
        self.assertIn("tests.daemon.test_watchdog", line["where"])
        self.assertIn("stuck_here", line["where"])

    @shows("A27")
    def test_many(self) -> None:
        """A machine that is overloaded gets one line a minute, and counts that count."""
        for _ in range(100):
            self.beat(BEAT_S + 0.3)
        self.assertEqual((self.dog.stalls, len(self.lines)), (100, 1))
        self.assertIn("left before it could be looked at", self.lines[0]["where"])

    def test_old_place(self) -> None:
        """The place of an earlier stall is not taken for that of a later one."""
        frame = stuck_here()
        self.patch(sys, "_current_frames", lambda: {threading.get_ident(): frame})
        self.beat(BEAT_S + 1.0, look=True)
        self.clock.advance(60.0)
        self.now_s += 60.0
        self.dog._beat_s = self.now_s
        self.beat(BEAT_S + 1.0)
        self.assertIn("left before it could be looked at", self.lines[-1]["where"])

    def test_depth(self) -> None:
        """A deep stack makes a short line."""

        def deeper(left: int) -> str:
            return deeper(left - 1) if left else where_is(sys._getframe())

        self.assertEqual(deeper(100).count(" < "), module.MOST_FRAMES - 1)


class ThreadTests(SynchronousTestCase):
    """The real thread, with real time."""

    @shows("I8")
    def test_sees_what_is_stuck(self) -> None:
        """While this thread is busy the other one notes where."""
        self.patch(module, "LOOK_S", 0.001)
        now_s = [0.0]
        dog = Watchdog(Clock(), lambda: now_s[0])
        dog.start()
        now_s[0] = 1.0
        try:
            waited = threading.Event()
            for _ in range(1000):
                if dog._stuck[1]:
                    break
                waited.wait(0.005)
            self.assertIn("test_sees_what_is_stuck", dog._stuck[1])
        finally:
            dog.stop()
        self.assertFalse(any(thread.name == "watchdog" for thread in threading.enumerate()))
