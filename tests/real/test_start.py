"""The programs as they begin: what they load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.real.daemons import environment

BEGIN = """
import gc, json, sys
from ciruela.client import start
sys.argv = ["ciruela-sync", "--version"]
code = start.{name}()
loaded = [name for name in sys.modules if name.split(".")[0] in ("treq", "yaml") or name in ("ciruela.client.demo", "ciruela.daemon")]
print(json.dumps([code, gc.isenabled(), gc.get_freeze_count() > 10_000, loaded]))
"""


class StartTests(SynchronousTestCase):
    """Every upload of a small configuration pays for the start."""

    def begun(self, name: str) -> tuple[str, list[object]]:
        """What the program prints, and how the process was afterwards."""
        home = Path(self.mktemp())
        home.mkdir(parents=True)
        command = [sys.executable, "-c", BEGIN.format(name=name)]
        done = subprocess.run(command, env=environment(home.absolute()), capture_output=True, text=True, timeout=60, check=True)
        printed, found = done.stdout.splitlines()
        return printed, json.loads(found)

    def test_only_what_it_needs(self) -> None:
        """The demo, its web client and what a daemon needs would double the wait."""
        for name in ("ciruela_sync", "ciruela"):
            printed, found = self.begun(name)
            self.assertTrue(printed.startswith("ciruela "), printed)
            self.assertEqual(found, [0, True, True, []])
