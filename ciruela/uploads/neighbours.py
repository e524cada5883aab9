"""Query of other nodes, for what they have at a path, before a client's request is judged.

A node that is empty, lags behind or has lost a record must not take what the others refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import field

from twisted.internet.defer import CancelledError, Deferred, DeferredList, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.interfaces import Address, NodeContext
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath
from ciruela.proto.messages import GetPathState, PathStateData, Response
from ciruela.uploads.decision import NOWHERE, Elsewhere

MOST_ASKED = 5
"""Nodes that are asked at a time: what one of them lacks another has."""

ANSWER_S = 1.0
"""So long an order waits for their answers, at most."""

KEPT_S = 1.0
"""So long an answer is good for: a question (CheckUpload) and the order after it share it."""

MUTE_S = 300.0
"""An address that did not answer in time is asked after all others for so long, and not at all as long as nothing is heard from there."""


@dataclass(frozen=True, slots=True)
class Nearby:
    """The addresses of nodes that take a directory: those heard lately, and those of which nothing was heard that may take it."""

    heard: Sequence[Address]
    silent: Sequence[Address] = ()


@dataclass(slots=True)
class _Question:
    """One path: who waits for the answer, and once it is there, what it is and until when it is good."""

    waiting: list[Deferred[Elsewhere]] = field(default_factory=list)
    answer: Elsewhere | None = None
    until_s: float = 0.0


@dataclass(eq=False)
class Neighbours:
    """Asks up to :data:`MOST_ASKED` random nodes at once. Who cannot be reached, or does not understand the question, says nothing.

    ``nearby`` gives the addresses for a key, ``stalled`` the machines on which an upload gets no further.
    ``acquainted`` fires when the peers are known.
    """

    _log = Logger()

    # required parameters
    context: NodeContext
    nearby: Callable[[str], Nearby]
    stalled: Callable[[VPath, ImageId], Collection[MachineId]]
    acquainted: Callable[[], Deferred[None]]

    # internal state
    _questions: dict[VPath, _Question] = field(init=False, default_factory=dict)
    _mute: dict[Address, float] = field(init=False, default_factory=dict)

    def ask(self, vpath: VPath) -> Deferred[Elsewhere]:
        """Fires with what they have, within a second of the acquaintance. Never fails."""
        now_s = self.context.clock.seconds()
        for old in [one for one, question in self._questions.items() if question.answer is not None and question.until_s <= now_s]:
            del self._questions[old]
        question = self._questions.get(vpath)
        if question is not None and question.answer is not None:
            return succeed(question.answer)
        waiting: Deferred[Elsewhere] = Deferred()
        if question is not None:
            question.waiting.append(waiting)
            return waiting
        question = self._questions[vpath] = _Question([waiting])
        self.acquainted().addCallback(lambda _: self._gather(vpath)).addErrback(self._broken).addCallback(self._answered, question)
        return waiting

    def _answered(self, answer: Elsewhere, question: _Question) -> None:
        question.answer, question.until_s = answer, self.context.clock.seconds() + KEPT_S
        waiting, question.waiting = question.waiting, []
        for one in waiting:
            one.callback(answer)

    def _broken(self, failure: Failure) -> Elsewhere:
        self._log.failure("other nodes could not be asked; the order is judged by what is here", failure)
        return NOWHERE

    def _chosen(self, key: str) -> list[Address]:
        now_s = self.context.clock.seconds()
        self._mute = {address: until_s for address, until_s in self._mute.items() if until_s > now_s}
        nearby = self.nearby(key)
        heard, silent = list(nearby.heard), [address for address in nearby.silent if address not in self._mute]
        self.context.rng.shuffle(heard)
        self.context.rng.shuffle(silent)
        return [*sorted(heard, key=lambda address: address in self._mute), *silent][:MOST_ASKED]  # guard: K2.1, [:MOST_ASKED] ->

    def _gather(self, vpath: VPath) -> Deferred[Elsewhere]:
        asked = {address: self.context.wire.ask(address, GetPathState(str(vpath))) for address in self._chosen(vpath.key)}
        if not asked:
            return succeed(NOWHERE)
        timer = self.context.clock.callLater(ANSWER_S, self._give_up, asked)  # guard: K2.1, ANSWER_S -> 1e9
        answers = [answer.addErrback(self._unanswered, address) for address, answer in asked.items()]
        return DeferredList(answers).addCallback(self._together, vpath, timer)

    def _give_up(self, asked: dict[Address, Deferred[Response | None]]) -> None:
        until_s = self.context.clock.seconds() + MUTE_S
        for address, answer in asked.items():
            if not answer.called:
                self._mute[address] = until_s
                answer.cancel()

    def _unanswered(self, failure: Failure, address: Address) -> None:
        if not failure.check(RemoteError, LinkLost, CancelledError):
            self._log.failure("asking {address} failed", failure, address=str(address))

    def _together(self, answers: list[tuple[bool, Response | None]], vpath: VPath, timer: IDelayedCall) -> Elsewhere:
        if timer.active():
            timer.cancel()
        told = [answer for _, answer in answers if isinstance(answer, PathStateData) and answer.taken]
        pending = {one.pending for one in told if one.pending is not None and one.machine not in self.stalled(vpath, one.pending.image)}
        return Elsewhere(
            frozenset(one.committed for one in told if one.committed is not None),
            frozenset(pending),
            frozenset(digest for one in told for digest in one.refused_orders),
        )
