"""The programs as they begin: what they load."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.main import script
from ciruela.client.options.local import Shell
from ciruela.client.tracker import EXIT_NETWORK
from tests.keys.samples import sample
from tests.real.daemons import environment

BEGIN = """
import gc, json, sys
from ciruela.client import start
sys.argv = ["ciruela-sync", *{arguments!r}]
code = start.run({name!r})
heavy = {heavy!r}
loaded = [name for name, module in sys.modules.items() if module is not None and any(f"{{name}}.".startswith(f"{{one}}.") for one in heavy)]
print(json.dumps([code, gc.isenabled(), gc.get_freeze_count() > 10_000, loaded]))
"""


HEAVY = (
    "OpenSSL",  # TLS, which no command speaks
    "service_identity",
    "twisted.internet.ssl",
    "twisted.conch",  # an agent, where there is one
    "cryptography.hazmat.primitives.serialization",  # keys with a passphrase
    "bcrypt",
    "importlib.metadata",
    "pathspec",  # patterns of what is left out
    "pycparser",  # Autobahn's way to its native code
    "rich",  # a terminal
    "shtab",  # ciruela completion
    "treq",
    "twisted.web",
    "yaml",
    "ciruela.client.demo",
    "ciruela.client.survey",
    "ciruela.daemon",
    "ciruela.net.agentclient",
)
"""Modules that a plain upload does without: each takes a hundredth to an eighth of its start."""


class StartTests(SynchronousTestCase):
    """Every upload of a small configuration pays for the start."""

    def begun(self, name: str, *arguments: str) -> tuple[str, list[object]]:
        """What the program prints, and how the process was afterwards."""
        home = Path(self.mktemp())
        home.mkdir(parents=True)
        command = [sys.executable, "-c", BEGIN.format(name=name, heavy=HEAVY, arguments=arguments)]
        done = subprocess.run(command, env=environment(home.absolute()), capture_output=True, text=True, timeout=60, check=True)
        *_, found = done.stdout.splitlines()
        return done.stdout + done.stderr, json.loads(found)

    def test_only_what_it_needs(self) -> None:
        """The demo, its web client and what a daemon needs would double the wait."""
        for name in ("main_sync", "main"):
            printed, found = self.begun(name, "--version")
            self.assertTrue(printed.startswith("ciruela "), printed)
            self.assertEqual(found, [0, True, True, []])

    def test_upload(self) -> None:
        """What is loaded late, when a key is read, a directory indexed and a connection made, would be paid for as well."""
        top = Path(self.mktemp()).absolute()
        top.mkdir(parents=True)
        (top / "key").write_text(sample("plain"))
        (top / "key").chmod(0o600)
        (top / "service.conf").write_text("port = 80\n")
        more = ("--connect-timeout", "100ms", "--port", "9")
        printed, found = self.begun("main_sync", "-i", str(top / "key"), *more, "--append", f"{top}:/app/v1", "127.0.0.1")
        self.assertIn("no node was reached", printed)
        self.assertEqual(found, [EXIT_NETWORK, True, True, []])

    def test_end(self) -> None:
        """What was printed would be cut off, or what was to be done at the end of the process left undone."""
        program = """
import atexit, sys
from ciruela.client import start
atexit.register(lambda: sys.stderr.write("at the end"))
sys.argv = ["ciruela", "completion", "bash"]
start.ciruela()
sys.stdout.write("not ended")
"""
        home = Path(self.mktemp())
        home.mkdir(parents=True)
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment(home.absolute()), capture_output=True, text=True, timeout=60, check=True)
        self.assertEqual(done.stdout, script(Shell.BASH))
        self.assertEqual(done.stderr, "at the end")
