"""Results as lines and as JSON."""

from __future__ import annotations

import io
import json

from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.errors import CommandError, columns, write_json, write_line
from ciruela.client.main import exit_for
from ciruela.client.text import clean
from tests.proof import shows


class EndsTests(SynchronousTestCase):
    """What a command prints can be read by people and programs, and by no terminal as an order."""

    @shows("A27")
    def test_json(self) -> None:
        """A name that a server made up could turn the text of a terminal around."""
        out = io.StringIO()
        write_json(out, {"path": "/a\x1b[2J\u202e\u2028x"})
        self.assertTrue(out.getvalue().isascii())
        self.assertEqual(json.loads(out.getvalue()), {"path": "/a\x1b[2J\u202e\u2028x"})
        self.assertEqual(len(out.getvalue().splitlines()), 1)

    @shows("A27")
    def test_lines(self) -> None:
        """One name would be two lines, or move the others."""
        out = io.StringIO()
        write_line(out, "a\nb")
        self.assertEqual(out.getvalue(), f"{clean('a' + chr(10) + 'b')}\n")
        self.assertEqual(columns([("a", "b"), ("long", "c")]), ["a     b", "long  c"])
        self.assertEqual(columns([]), [])
        (line,) = columns([("a\x1b\n", "b")])
        self.assertTrue(line.isprintable())

    def test_code(self) -> None:
        """A script would be told of another trouble than there was."""
        self.assertEqual(exit_for(Failure(CommandError(6, "another image")), False), (6, "another image"))
