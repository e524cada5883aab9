"""Commands of the operator as processes; with real ones: ``tests/real/test_hooks.py``."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

from twisted.internet.error import ProcessDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ciruela.daemon.processes import Processes
from ciruela.interfaces import Ended

PID = 2**22 + 7
"""More than Linux gives to any process."""


class Hasty(Clock):
    """A reactor whose processes have ended before ``spawnProcess`` returns, as one can when the machine is busy."""

    def spawnProcess(self, protocol: Any, *_: object, **__: object) -> SimpleNamespace:
        transport = SimpleNamespace(pid=PID, closeStdin=lambda: None, loseConnection=lambda: None)
        protocol.makeConnection(transport)
        transport.pid = None
        protocol.processExited(Failure(ProcessDone(0)))
        protocol.processEnded(Failure(ProcessDone(0)))
        return transport


class HastyTests(SynchronousTestCase):
    def test_ended_at_once(self) -> None:
        """The daemon would kill its own process group, and whatever else is in it."""
        killed: list[tuple[int, int]] = []
        self.patch(os, "killpg", lambda group, number: killed.append((group, number)))
        done = Processes(Hasty()).run(["/bin/true"], {}, 1.0)
        self.assertEqual(self.successResultOf(done), Ended(0, None, ""))
        self.assertEqual(killed, [(PID, signal.SIGKILL)])
