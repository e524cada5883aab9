"""What a run tells, for those who show it: people (``progress``) and programs (``report``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ciruela.model.ids import MachineId


@dataclass(frozen=True, slots=True)
class NodeNews:
    """What one node said, or what became of it.

    ``state``: ``accepted``, ``refused``, ``withdrawn``, ``done``, ``gave-up``, ``error`` or ``unreachable``.
    ``host`` is what the node calls itself, else the name or number that led to it; ``address`` is empty where that is not known.
    ``code`` is the word of a refusal, ``message`` a sentence; ``nodes_known`` other nodes that it named. Raw texts.
    """

    cluster: str
    path: str
    host: str
    machine: MachineId | None
    state: str
    code: str = ""
    message: str = ""
    nodes_known: int = 0
    address: str = ""


class Listener(Protocol):
    """Who shows what happens. All texts may hold what a server said: they are raw."""

    def node(self, news: NodeNews) -> None:
        """A node said something."""

    def problem(self, cluster: str, text: str) -> None:
        """Something went wrong, or did not go as wished."""

    def note(self, cluster: str, text: str) -> None:
        """Something worth knowing happened."""
