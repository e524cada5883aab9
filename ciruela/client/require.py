"""Rule of ``--require``: how many nodes must have an image before that counts as success (users want it to be able to fail)."""

from __future__ import annotations

import math
import re

from ciruela.model.values import dataclass


@dataclass(frozen=True, slots=True)
class Requirement:
    """At least ``nodes`` of them, at least ``percent`` of those expected, or, with ``whole``, each that is expected."""

    whole: bool = False
    nodes: int = 0
    percent: int = 0

    def need(self, expected: int) -> int:
        """Computes how many of ``expected`` nodes must have it; may be more than there are."""
        if self.whole:
            return max(1, expected)
        return max(1, self.nodes, math.ceil(expected * self.percent / 100))

    def met(self, done: int, expected: int) -> bool:
        """Tells whether ``done`` of ``expected`` nodes are enough."""
        return done >= self.need(expected)

    def __str__(self) -> str:
        if self.whole:
            return "all"
        return f"{self.percent}%" if self.percent else str(self.nodes)


ALL = Requirement(whole=True)
"""Each node that is expected, and at least one."""


def parse_requirement(text: str) -> Requirement:
    """The requirement that ``all``, ``N`` or ``N%`` spells. Raises ValueError."""
    if text == "all":
        return Requirement(whole=True)
    found = re.fullmatch(r"([0-9]{1,7})(%?)", text)
    if found is not None:
        number = int(found[1])
        if found[2] and 1 <= number <= 100:
            return Requirement(percent=number)
        if not found[2] and 1 <= number <= 1_000_000:
            return Requirement(nodes=number)
    raise ValueError(f"{text[:40]!r} is not all, a number of nodes from 1 on, or a percentage from 1% to 100%")
