"""Completion of shells and man pages: made of the same parsers that read the command lines."""

from __future__ import annotations

import argparse
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.main import script
from ciruela.client.options.local import Shell
from ciruela.client.options.table import COMMANDS, ciruela, ciruela_sync
from tests.measure import without
from tests.proof import shows

MAN = Path(__file__).parent.parent.parent / "docs" / "man.py"


def long_options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The long options of ``parser`` and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from long_options(command)
        yield from (name for name in action.option_strings if name.startswith("--") and action.help is not argparse.SUPPRESS)


class CompletionTests(SynchronousTestCase):
    def test_every_option(self) -> None:
        """An option that is not completed is one that is never found."""
        for shell in (Shell.BASH, Shell.ZSH, Shell.FISH):
            text = script(shell)
            bare = text.replace("\\", "")
            for name in {*long_options(ciruela()), *long_options(ciruela_sync())}:
                self.assertTrue(name in bare or f"-l {name[2:]}" in bare or f"'{name[2:]}'" in bare, f"{shell.value}: {name}")
            for name in COMMANDS:
                self.assertIn(name, text)

    def test_shells_read_it(self) -> None:
        """A script with a mistake would greet the user in each new shell."""
        for shell in (Shell.BASH, Shell.ZSH, Shell.TCSH):
            program = shutil.which(shell.value)
            if program is not None:
                done = subprocess.run([program, "-n"], input=script(shell), capture_output=True, encoding="utf-8", timeout=60)
                self.assertEqual((done.returncode, done.stderr), (0, ""), shell.value)

    def test_files(self) -> None:
        """Names of key files are what one wants to have completed most."""
        self.assertIn("_shtab_compgen_files", script(Shell.BASH))


class ManTests(SynchronousTestCase):
    @shows("W5")
    def test_without_its_library(self) -> None:
        """Who packs a release got a traceback instead of the name of what is missing."""
        with without("argparse_manpage", "argparse_manpage.manpage"):
            left = self.assertRaises(SystemExit, runpy.run_path(str(MAN))["main"], Path(self.mktemp()))
        self.assertIn("is missing: install the dev requirements", str(left.code))

    def test_every_option(self) -> None:
        """A page that lacks an option, or cannot be built, is found by the one who packs a release, too late."""
        top = Path(self.mktemp())
        runpy.run_path(str(MAN))["main"](top)
        for parser in (ciruela(), ciruela_sync()):
            text = (top / f"{parser.prog}.1").read_text(encoding="utf-8").replace("\\-", "-")
            self.assertTrue(text.startswith(".TH "))
            self.assertEqual([name for name in set(long_options(parser)) - {"--help"} if not re.search(rf"{name}\b", text)], [])
            self.assertIn("--require is not met", text)
