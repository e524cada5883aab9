"""What others wrote, as it comes into the log and onto the screen."""

from __future__ import annotations

import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.units import MOST_LOGGED_BYTES, escaped, logged
from tests.proof import shows


class LoggedTests(SynchronousTestCase):
    """A stranger must not write lines of the log himself, nor fill it, nor move the cursor of who reads it."""

    @shows("A27", "F20")
    def test_controls(self) -> None:
        """C0, C1, line ends of every kind, and what reorders a line are shown as what they are."""
        self.assertEqual(logged("a\x1b[2Jb\nc\r\x7f\x9b1m"), "a\\x1b[2Jb\\x0ac\\x0d\\x7f\\x9b1m")
        self.assertEqual(logged("x\u202ey\u2028z\ud800"), "x\\u202ey\\u2028z\\ud800")
        self.assertEqual(logged("grün 日本"), "grün 日本")

    @shows("A27")
    def test_length(self) -> None:
        """200 bytes, whatever they are made of."""
        self.assertEqual(logged("x" * 200), "x" * 200)
        self.assertEqual(logged("x" * 201), "x" * 197 + "…")
        self.assertEqual(logged("\0" * 10_000), "\\x00" * 49 + "…")
        self.assertEqual(len(logged("日" * 10_000).encode()), 198 + 0)

    @shows("A27")
    @settings(derandomize=True, deadline=None, database=None, max_examples=200)
    @given(st.text(st.characters(), max_size=400))
    def test_any(self, text: str) -> None:
        """No text gets through that could be more than a part of one line."""
        shown = logged(text)
        self.assertLessEqual(len(shown.encode("utf-8")), MOST_LOGGED_BYTES)
        self.assertTrue(all(unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in shown))

    def test_screen(self) -> None:
        """On the screen the limit counts characters of what came."""
        self.assertEqual(escaped("a\tb", 2), "a\\x09…")
        self.assertEqual(escaped("ab", 2), "ab")
