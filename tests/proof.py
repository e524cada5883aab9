"""Marks that say what a test is evidence for: rows of ``docs/explanation/threats.rst``.

``A12`` an attack or bad input, ``F9`` a fault, ``G10`` a goal, ``I4`` an invariant. ``docs`` generates a table from the marks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def shows(*rows: str) -> Callable[[T], T]:
    """Mark a test method, or a class of them, as evidence for ``rows``. Returns it as it was, with ``shows`` set."""

    def mark(test: T) -> T:
        test.shows = rows  # type: ignore[attr-defined]
        return test

    return mark
