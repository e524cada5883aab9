"""The table of threats is complete, and says nothing that no test shows."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.evidence import ROWS, marks, rows
from tests.proof import shows


@shows("G7")
class EvidenceTests(SynchronousTestCase):
    """What ``docs/explanation/threats.rst`` prints."""

    def test_each_row_is_shown(self) -> None:
        """A promise that no test keeps would stand in the documentation."""
        shown = marks()
        self.assertEqual([row.name for row in rows() if row.name not in shown and not row.later], [])

    def test_each_mark_is_a_row(self) -> None:
        """A misspelled mark would be evidence for nothing."""
        names = {row.name for row in rows()}
        self.assertEqual({row: tests for row, tests in marks().items() if row not in names}, {})

    def test_all_numbers(self) -> None:
        """A row that is left out would not be missed."""
        names = [row.name for row in rows()]
        counts = {"I": 13, "A": 60, "F": 60, "G": 16}
        plain = [name for name in names if name[0] in counts]
        self.assertEqual(plain, [f"{letter}{number}" for letter, most in counts.items() for number in range(1, most + 1)])
        kinds = {"K1": 7, "K2": 3, "K3": 6, "K5": 6, "K6": 3, "K7": 8, "K8": 4}
        self.assertEqual({kind: sum(name.startswith(f"{kind}.") for name in names) for kind in kinds}, kinds)
        for letter, most in {"S": 14, "W": 6}.items():
            self.assertEqual([name for name in names if name[0] == letter], [f"{letter}{number}" for number in range(1, most + 1)])
        self.assertTrue(Path(ROWS).read_text(encoding="utf-8").isascii())
