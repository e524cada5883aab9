"""What is known of one upload on one cluster, and what follows from it: a pure verdict.

The rules are those of protocol section 6.4 without its defects (C25, C26, C33, C40, C49, C50 of section 12).

Nothing here knows a connection or a clock. ``sync`` tells the book what was asked, answered and notified, and asks for the verdict after
each event and each beat.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from ciruela.client.require import Requirement
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.order import Abort, Reject
from ciruela.proto.messages import AbortedImage, ReceivedImage, RemovedImage, UploadAck
from ciruela.seams import Address

MAX_MACHINES = 10_000
"""Machines one upload keeps track of; a server that makes up more is not believed (threats A29)."""

ERROR_RETRIES = 3
"""How often a request that was answered by ``Error`` is sent again before that counts as a refusal."""

EXIT_DONE, EXIT_LOCAL, EXIT_USAGE, EXIT_NETWORK, EXIT_PARTIAL, EXIT_REJECTED, EXIT_CONFLICT, EXIT_HOOK, EXIT_NOTHING = range(9)
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143

_SEVERITY = (EXIT_LOCAL, EXIT_REJECTED, EXIT_CONFLICT, EXIT_NETWORK, EXIT_PARTIAL, EXIT_HOOK, EXIT_DONE, EXIT_NOTHING)
"""The exit code of several uploads: the first of these that one of them has. What a person must change comes before what time may heal."""

_CONFLICTS = frozenset({Reject.ALREADY_EXISTS, Reject.ALREADY_UPLOADING, Reject.REPLACE_DOESNT_MATCH, Reject.STALE_TIMESTAMP})
_WEAK = frozenset({Reject.ALREADY_EXISTS, Reject.ALREADY_UPLOADING})
_ABORT_CONFLICTS = frozenset({Abort.SUPERSEDED, Abort.ALREADY_EXISTS, Abort.CONFLICT})

_MEANING = {
    Reject.NO_CONFIG: "no node has a directory of that name",
    Reject.CONFIG_LEVEL_MISMATCH: "the path has too many or too few components for that directory",
    Reject.DIR_IS_APPEND_ONLY: "nothing may be replaced there, use --append with a new path",
    Reject.SIGNATURE_MISMATCH: "none of your keys may upload there",
    Reject.ALREADY_EXISTS: "other content is there",
    Reject.ALREADY_UPLOADING: "other content is being uploaded there",
    Reject.REPLACE_DOESNT_MATCH: "what is there is not OLD_ID",
    Reject.STALE_TIMESTAMP: "what is there was signed later; is the clock of this host right?",
    Reject.TIMESTAMP_IN_FUTURE: "the clock of this host, or of the servers, is wrong",
    Reject.BAD_PATH: "the servers do not take such a path",
    Reject.PROTECTED: "a link that the servers protect leads to it (--force removes it all the same)",
    Reject.QUOTA: "as many images are there as the servers allow",
}
"""What the words of a refusal mean to a user."""

_WORDS = frozenset(reject.value for reject in _MEANING)


@dataclass(frozen=True, slots=True)
class Rule:
    """When an upload is finished. Times in seconds from the start of the run. ``require``: what is success, if not the early rule."""

    early_hosts: int = 3
    early_fraction: float = 0.75
    early_timeout_s: float = 30.0
    deadline_s: float = 1800.0
    require: Requirement | None = None

    def need(self, expected: int) -> int:
        """How many of ``expected`` nodes are enough after the early timeout."""
        return min(expected, max(self.early_hosts, math.ceil(expected * self.early_fraction - 1e-9)))


class Outcome(Enum):
    """How an upload to one cluster stands or ended."""

    RUNNING = "RUNNING"
    DONE = "DONE"
    EARLY = "EARLY"
    PARTIAL = "PARTIAL"
    REJECTED = "REJECTED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome, the exit code it alone would give, and a sentence why it is not DONE."""

    outcome: Outcome
    exit_code: int = EXIT_DONE
    why: str = ""


RUNNING = Verdict(Outcome.RUNNING)


@dataclass(frozen=True, slots=True)
class Reach:
    """What the connection set says about one upload.

    ``busy``: an entry point is being resolved, or a connection was just begun, so that a node nobody heard of yet may turn up.
    ``exhausted``: every address that is known refused this upload or could not be reached, and none is left to try.
    """

    busy: bool
    exhausted: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """Numbers and names for the display. ``done`` counts nodes that committed; names and reasons are as the network gave them."""

    done: int
    expected: int
    accepted: tuple[str, ...]
    missing: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]


class _Answer(Enum):
    NONE = "none"
    ACCEPTED = "accepted"
    HELD = "held"  # a weak upload: other content is there, which is as good
    NO_CONFIG = "no config"
    REFUSED = "refused"


@dataclass(slots=True)
class _Contact:
    """One address that was asked."""

    label: str
    answer: _Answer = _Answer.NONE
    outstanding: bool = False
    answered: bool = False
    reason: str = ""
    exit_code: int = EXIT_REJECTED
    errors: int = 0
    machine: MachineId | None = None
    listed: frozenset[MachineId] = field(default_factory=frozenset)


def refusal_code(reason: str | None) -> int:
    """The exit code of a refusal, by its word on the wire."""
    return EXIT_CONFLICT if reason in _CONFLICTS else EXIT_REJECTED


def meaning_of(reason: str) -> str:
    """A word of a refusal with what it means, where that is known."""
    return f"{reason}: {_MEANING[Reject(reason)]}" if reason in _WORDS else reason


def _word(reason: str) -> str:
    """The word of an abort, without the detail that may follow it."""
    return reason.partition(":")[0]


def _abort_code(word: str) -> int:
    """The exit code of an upload that a node gave up, by its word."""
    if word == Abort.CHECK_FAILED:
        return EXIT_REJECTED
    return EXIT_CONFLICT if word in _ABORT_CONFLICTS else EXIT_NETWORK


def worst(codes: Iterable[int]) -> int:
    """The exit code of several uploads: local problem, rejected, conflict, network, partial, hook, done, nothing to do, in this order."""
    present = set(codes)
    return next((code for code in _SEVERITY if code in present), EXIT_DONE)


def _possible(contacts: list[_Contact], machines: set[MachineId]) -> set[MachineId]:
    """Those of ``machines`` that at least one of ``contacts`` can be."""
    return machines - frozenset.intersection(*(contact.listed for contact in contacts)) if contacts else set()


class Book:
    """All that was said about (``path``, ``image``) on one cluster."""

    def __init__(self, path: str, image: ImageId, weak: bool = False, removes: bool = False) -> None:
        """``removes``: the image is to go, not to come."""
        self._removes = removes
        self.path = path
        self.image = image
        self.weak = weak
        self._contacts: dict[Address, _Contact] = {}
        self._names: dict[MachineId, str] = {}
        self._named_by: dict[MachineId, set[Address]] = {}
        self._done: set[MachineId] = set()
        self._held: set[MachineId] = set()
        self._aborted: dict[MachineId, str] = {}
        self._local_problem = ""
        self._conflict = ""

    # -- what happens -------------------------------------------------------------------------------------------------------------

    def asked(self, address: Address, label: str) -> None:
        """The request goes out to ``address``; what it gave up before no longer counts."""
        contact = self._contacts.setdefault(address, _Contact(label))
        contact.outstanding = True
        if contact.machine is not None:
            self._aborted.pop(contact.machine, None)

    def answered(self, address: Address, ack: UploadAck) -> None:
        """The answer to the request. A refusal after this node reported the image as committed changes nothing."""
        contact = self._contacts[address]
        contact.outstanding = False
        contact.errors = 0
        contact.answered = True
        contact.listed = frozenset(machine for machine, name in ack.hosts.items() if self._know(address, machine, name))
        if ack.accepted:
            contact.answer = _Answer.ACCEPTED
        elif contact.machine is not None and contact.machine in self._done:
            return
        elif self.weak and ack.reject_reason in _WEAK:
            contact.answer = _Answer.HELD
        elif ack.reject_reason == Reject.NO_CONFIG:
            contact.answer, contact.reason = _Answer.NO_CONFIG, Reject.NO_CONFIG.value
        else:
            contact.answer, contact.reason = _Answer.REFUSED, ack.reject_reason or "unknown"
            contact.exit_code = refusal_code(ack.reject_reason)

    def errored(self, address: Address, text: str, *, busy: bool = False) -> bool:
        """``Error``, or no answer in time. True: ask again later; False: from now on this counts as a refusal.

        One that is ``busy`` is asked until the deadline.
        """
        contact = self._contacts[address]
        contact.outstanding = False
        contact.errors += not busy
        if contact.errors <= ERROR_RETRIES:
            return True
        if contact.machine is None or contact.machine not in self._done:
            contact.answer, contact.reason, contact.exit_code = _Answer.REFUSED, text, EXIT_NETWORK
        return False

    def lost(self, address: Address) -> None:
        """The connection ended. What was accepted stays a promise; an answer will not come any more."""
        contact = self._contacts.get(address)
        if contact is not None:
            contact.outstanding = False

    def done_by(self, has: str) -> str:
        """What a node that is done has done; ``has`` may be "have"."""
        return f"{has} removed it" if self._removes else f"{has} it"

    def received(self, address: Address, note: ReceivedImage | RemovedImage) -> bool:
        """A node has an image, or has it no more. True when that is news about this upload."""
        if (
            isinstance(note, RemovedImage) is not self._removes
            or note.path != self.path
            or (note.image != self.image and not self.weak)
            or not self._know(address, note.machine_id, note.hostname)
        ):
            return False
        self._identify(address, note.machine_id, note.forwarded)
        self._aborted.pop(note.machine_id, None)
        nodes = self._done if note.image == self.image else self._held
        if note.machine_id in nodes:
            return False
        nodes.add(note.machine_id)
        return True

    def aborted(self, address: Address, note: AbortedImage) -> bool:
        """A node gave the image up, or found that it is not the only one at the path. True when that is news about this upload."""
        if self._removes or note.path != self.path or note.image != self.image or not self._know(address, note.machine_id, note.hostname):
            return False
        self._identify(address, note.machine_id, note.forwarded)
        reason = note.reason or "unknown"
        if _word(reason) == Abort.CONFLICT and not note.forwarded and not self.weak:
            self._done.discard(note.machine_id)
            self._conflict = self._conflict or reason
        if note.machine_id in self._done or note.machine_id in self._aborted:
            return False
        self._aborted[note.machine_id] = reason
        return True

    def local_problem(self, text: str) -> None:
        """The local directory can no longer be served. Fatal as long as no node has the whole image."""
        self._local_problem = self._local_problem or text

    def _know(self, address: Address, machine: MachineId, name: str) -> bool:
        if machine not in self._names and len(self._names) >= MAX_MACHINES:
            return False
        self._names.setdefault(machine, name)
        self._named_by.setdefault(machine, set()).add(address)
        return True

    def _identify(self, address: Address, machine: MachineId, forwarded: bool) -> None:
        if not forwarded and address in self._contacts:
            self._contacts[address].machine = machine

    # -- what follows -------------------------------------------------------------------------------------------------------------

    def refused(self, address: Address) -> bool:
        """Whether asking ``address`` again is pointless."""
        contact = self._contacts.get(address)
        return contact is not None and contact.answer in (_Answer.REFUSED, _Answer.NO_CONFIG)

    def done_machines(self) -> int:
        """Nodes that have exactly this image."""
        return len(self._done - self._doubtful())

    def _doubtful(self) -> frozenset[MachineId]:
        """Machines that only one of several nodes speaks of, and that never spoke themselves: a server may make them up (threats A29)."""
        if sum(contact.answered for contact in self._contacts.values()) < 2:
            return frozenset()
        own = {contact.machine for contact in self._contacts.values()}
        return frozenset(machine for machine, tellers in self._named_by.items() if len(tellers) < 2 and machine not in own)

    def _with(self, *answers: _Answer) -> list[_Contact]:
        return [contact for contact in self._contacts.values() if contact.answer in answers]

    def _count(self) -> tuple[int, int, int]:
        """Nodes that are done, that failed, and that are expected.

        Expected are all machines that somebody named, and the addresses that cannot be one of these. An address whose machine is unknown
        may be any machine that its own answer left out (a node never lists itself); one that refused cannot be one that is done.
        """
        satisfied = self._done | self._held
        free = set(self._names) - {contact.machine for contact in self._contacts.values() if contact.machine is not None}
        refused = self._with(_Answer.REFUSED)
        refusers = [contact for contact in refused if contact.machine is None]
        takers = [contact for contact in self._with(_Answer.ACCEPTED, _Answer.HELD) if contact.machine is None]
        holders = [contact for contact in takers if contact.answer is _Answer.HELD]
        named_refusers = min(len(refusers), len(_possible(refusers, free - satisfied)))
        named_takers = min(len(takers), max(0, len(_possible(takers, free)) - named_refusers))
        expected = len(self._names) + len(refusers) - named_refusers + len(takers) - named_takers
        done = len(satisfied) + max(0, len(holders) - len(_possible(holders, free & self._held)))
        failed = len(self._aborted) + len(refused) - sum(contact.machine in satisfied for contact in refused)
        return min(done, expected), failed, expected

    def standing(self) -> Standing:
        """The numbers and names of now."""
        done, _, expected = self._count()
        failed = [(self._names[machine], reason) for machine, reason in self._aborted.items()]
        failed += [
            (contact.label, contact.reason) for contact in self._with(_Answer.REFUSED) if contact.machine not in self._done | self._held
        ]
        named = {name for name, _ in failed}
        absent = set(self._names) - self._done - self._held - set(self._aborted)
        missing = sorted(name for name in (self._names[machine] for machine in absent) if name not in named)
        accepted = tuple(contact.label for contact in self._with(_Answer.ACCEPTED, _Answer.HELD))
        return Standing(done, expected, accepted, tuple(missing[: max(0, expected - done)]), tuple(failed))

    def verdict(self, rule: Rule, elapsed_s: float, reach: Reach) -> Verdict:
        """How the upload stands ``elapsed_s`` seconds after its start."""
        if self._local_problem and not self._done:
            return Verdict(Outcome.FAILED, EXIT_LOCAL, self._local_problem)
        if self._conflict:
            return Verdict(Outcome.FAILED, EXIT_CONFLICT, f"other content was uploaded to the same path elsewhere ({self._conflict})")
        busy = reach.busy or any(contact.outstanding for contact in self._contacts.values())
        accepted, held = self._with(_Answer.ACCEPTED), self._with(_Answer.HELD)
        if not accepted and not held and not self._done:
            return self._nobody(rule, elapsed_s, busy, reach)
        if accepted and not held and not busy and not self._done and all(contact.machine in self._aborted for contact in accepted):
            return Verdict(Outcome.FAILED, self._failure_code(), "all nodes that had accepted it gave it up")
        if held and not accepted and not self._done and not busy:
            return Verdict(Outcome.DONE)
        done, failed, expected = self._count()
        everywhere = done >= expected
        require = rule.require
        enough = require is None or done >= require.need(expected)
        if not busy and everywhere and enough and all(contact.machine in self._done | self._held for contact in accepted):
            return Verdict(Outcome.DONE)
        if elapsed_s < min(rule.early_timeout_s, rule.deadline_s):
            return RUNNING
        sure, real = self._sure(done, expected)
        need = rule.need(real)
        wanted = need if require is None else require.need(expected if require.whole else real)
        if sure >= wanted > 0:
            return Verdict(Outcome.DONE) if everywhere else Verdict(Outcome.EARLY, EXIT_DONE, f"{wanted} of {real} nodes were enough")
        have = f"{sure} nodes {self.done_by('have')}, {wanted} were needed"
        if real < expected:
            have += f" ({expected - real} that only one server speaks of are not counted)"
        ended = not busy and done + failed >= expected
        if not ended and elapsed_s < rule.deadline_s:
            return RUNNING
        if require is not None and sure >= need > 0:
            return Verdict(Outcome.PARTIAL, EXIT_PARTIAL, f"--require {require}: {have}")
        if ended:
            others = "no other node is known" if everywhere else "the others failed"
            return Verdict(Outcome.FAILED, self._failure_code(), f"{have}, and {others}")
        return Verdict(Outcome.FAILED, EXIT_NETWORK, f"out of time: {have}")

    def _sure(self, done: int, expected: int) -> tuple[int, int]:
        """How many of those that are done, and of those that are expected, are not only one server's word."""
        doubtful = self._doubtful()
        nameless = sum(contact.machine is None for contact in self._with(_Answer.ACCEPTED, _Answer.HELD, _Answer.REFUSED))
        sure = done - max(0, len(doubtful & (self._done | self._held)) - nameless)  # each nameless one may be one of them
        return sure, expected - max(0, len(doubtful) - nameless)

    def _nobody(self, rule: Rule, elapsed_s: float, busy: bool, reach: Reach) -> Verdict:
        """The verdict while no node has accepted."""
        refusals = self._with(_Answer.REFUSED, _Answer.NO_CONFIG)
        late = elapsed_s >= rule.deadline_s
        if refusals and (late or (reach.exhausted and not busy)):
            reasons = sorted({contact.reason for contact in refusals if contact.answer is _Answer.REFUSED} or {Reject.NO_CONFIG.value})
            said = ", ".join(map(meaning_of, reasons))
            return Verdict(Outcome.REJECTED, self._failure_code(), f"all nodes that could be reached refused: {said}")
        if late:
            return Verdict(Outcome.FAILED, EXIT_NETWORK, "out of time: no node could be reached, or none answered")
        return RUNNING

    def _failure_code(self) -> int:
        codes = {contact.exit_code for contact in self._with(_Answer.REFUSED)}
        codes |= {_abort_code(_word(reason)) for reason in self._aborted.values()}
        if not codes and self._with(_Answer.NO_CONFIG):
            return EXIT_REJECTED
        return worst(codes) or EXIT_NETWORK
