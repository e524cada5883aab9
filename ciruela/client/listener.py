"""Listener of a run, for those who show it: to people (``progress``) and programs (``report``).

``HookAccount`` is what was told of the hooks that servers run when an image has come, and what follows for an upload. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, replace
from typing import Protocol

from ciruela.client.tracker import EXIT_DONE, EXIT_HOOK, EXIT_NETWORK, MAX_MACHINES, RUNNING, UploadOutcome, UploadProgress, Verdict
from ciruela.model.hooks import AFTER, HookKind, HookState
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.values import dataclass
from ciruela.proto.messages import HookResult

_KINDS = {kind.value: kind for kind in AFTER}
_STATES = {state.value: state for state in HookState}
_ENDED = frozenset({UploadOutcome.DONE, UploadOutcome.EARLY})

MOST_NAMED = 5
"""Failures and names in one line."""


@dataclass(frozen=True, slots=True)
class HookStanding:
    """Hooks of one upload to one cluster. Names and reasons are as the network gave them: raw."""

    ok: int = 0
    pending: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()


NO_HOOKS = HookStanding()


@dataclass(eq=False, slots=True)
class HookAccount:
    """Record of what was said of the hooks for ``image`` at ``path``.

    ``runs``: hooks run for what is waited for. None does for a removal: what is told then is of the upload before it.
    """

    path: str
    image: ImageId
    runs: bool = True
    _names: dict[MachineId, str] = field(init=False, default_factory=dict)
    _states: dict[tuple[MachineId, HookKind], tuple[HookState, str]] = field(init=False, default_factory=dict)

    def heard(self, note: HookResult) -> bool:
        """Take in what a node said. True when that is news about this upload; what has ended is not pending again."""
        kind, state = _KINDS.get(note.kind), _STATES.get(note.state)
        # guard: K5.5, without 1
        if not self.runs or note.path != self.path or note.image != self.image or kind is None or state is None:
            return False
        if note.machine_id not in self._names and len(self._names) >= MAX_MACHINES:  # guard: A29
            return False
        self._names.setdefault(note.machine_id, note.hostname)
        before = self._states.get((note.machine_id, kind))
        if before is not None and (before[0] is state or state is HookState.PENDING):
            return False
        self._states[note.machine_id, kind] = (state, note.message)
        return True

    def standing(self) -> HookStanding:
        """The numbers and names of now."""
        pending = {self._names[machine]: None for (machine, _), (state, _) in self._states.items() if state is HookState.PENDING}
        failed = [
            (self._names[machine], f"{kind.value} {message or 'failed'}")
            for (machine, kind), (state, message) in self._states.items()
            if state is HookState.FAILED
        ]
        ok = sum(state is HookState.OK for state, _ in self._states.values())
        return HookStanding(ok, tuple(sorted(pending)), tuple(sorted(failed)))

    def verdict(self, found: Verdict, elapsed_s: float, deadline_s: float) -> Verdict:
        """The verdict on an upload whose images would give ``found``: it is not over while hooks run, nor well when one failed."""
        if found.outcome not in _ENDED:
            return found
        standing = self.standing()
        if standing.pending and elapsed_s < deadline_s:
            return RUNNING
        if found.exit_code != EXIT_DONE:
            return found
        if standing.failed:
            return replace(found, exit_code=EXIT_HOOK)
        if standing.pending:
            return replace(found, exit_code=EXIT_NETWORK, why="out of time: hooks have not ended")
        return found


def hooks_part(standing: HookStanding) -> str:
    """Gives the hooks part of a line that stays on the screen, raw; empty when there are none."""
    parts = []
    if standing.ok:
        parts.append(f"{standing.ok} ok")
    if standing.pending:
        parts.append(f"waiting for {_some(standing.pending)}")
    if standing.failed:
        parts.append(f"{len(standing.failed)} failed: {_some(f'{name} {what}' for name, what in standing.failed)}")
    return f"hooks {', '.join(parts)}" if parts else ""


def _some(texts: Iterable[str]) -> str:
    found = list(texts)
    shown = "; ".join(found[:MOST_NAMED])
    return shown if len(found) <= MOST_NAMED else f"{shown} and {len(found) - MOST_NAMED} more"


@dataclass(frozen=True, slots=True)
class NodeNews:
    """One thing that a node said, or that became of it.

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
    """Listener that shows what happens. All texts may hold what a server said: they are raw."""

    def node(self, news: NodeNews) -> None:
        """A node said something."""

    def problem(self, cluster: str, text: str) -> None:
        """Something went wrong, or did not go as wished."""

    def note(self, cluster: str, text: str) -> None:
        """Something worth knowing happened."""


@dataclass(frozen=True, slots=True)
class UploadRow:
    """One upload to one cluster, as it stands now. ``sent_bytes`` really went out; ``elapsed_s`` stops when it is over.

    ``given`` and ``given_bytes`` are those of :class:`ciruela.client.source.Shares`.
    """

    cluster: str
    path: str
    image: ImageId
    verdict: Verdict
    standing: UploadProgress
    sent_bytes: int
    total_bytes: int
    elapsed_s: float
    hooks: HookStanding = NO_HOOKS
    given: float | None = None
    given_bytes: int | None = None

    @property
    def reused_bytes(self) -> int | None:
        """Bytes of the image that did not have to be given, because nodes had them; None where that is unknown, or will change."""
        whole = self.verdict.outcome in (UploadOutcome.DONE, UploadOutcome.EARLY)
        return self.total_bytes - self.given_bytes if whole and self.given_bytes is not None else None
