"""Upload tracker: what is known of one upload on one cluster, and the pure verdict that follows.

The rules are those of protocol section 6.4 without its defects (C25, C26, C33, C40, C49, C50 of section 12).

Nothing here knows a connection or a clock. ``sync`` tells the tracker what was asked, answered and notified, and asks for the verdict after
each event and each beat.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import field
from enum import Enum

from ciruela.client.require import Requirement
from ciruela.client.servers import MetServer, ServerRow, Servers, ServersTold, View
from ciruela.client.text import count, interval
from ciruela.interfaces import Address
from ciruela.model.ids import ImageId, MachineId, Server, SharedId
from ciruela.model.upload import AbortReason, RejectReason
from ciruela.model.values import dataclass
from ciruela.proto.messages import AbortedImage, PathStateData, ReceivedImage, RemovedImage, UploadAck

MAX_MACHINES = 10_000
"""Machines one upload keeps track of; a server that makes up more is not believed (threats A29)."""

MOST_NAMED = 5
"""Servers that one sentence names."""

ERROR_RETRIES = 3
"""Repetitions of a request that was answered by ``Error`` before that counts as a refusal."""

EXIT_DONE, EXIT_LOCAL, EXIT_USAGE, EXIT_NETWORK, EXIT_PARTIAL, EXIT_REJECTED, EXIT_CONFLICT, EXIT_HOOK, EXIT_NOTHING = range(9)
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143

_SEVERITY = (EXIT_LOCAL, EXIT_REJECTED, EXIT_CONFLICT, EXIT_NETWORK, EXIT_PARTIAL, EXIT_HOOK, EXIT_DONE, EXIT_NOTHING)
"""The exit code of several uploads: the first of these that one of them has. What a person must change comes before what time may heal."""

_CONFLICTS = frozenset(
    {RejectReason.ALREADY_EXISTS, RejectReason.ALREADY_UPLOADING, RejectReason.REPLACE_DOESNT_MATCH, RejectReason.STALE_TIMESTAMP}
)
WEAK = frozenset({RejectReason.ALREADY_EXISTS, RejectReason.ALREADY_UPLOADING})
"""Reasons that refuse an upload and are as good as success for a weak one."""

_ABORT_CONFLICTS = frozenset({AbortReason.SUPERSEDED, AbortReason.ALREADY_EXISTS, AbortReason.CONFLICT})

_MEANING = {
    RejectReason.NO_CONFIG: "no node has a directory of that name",
    RejectReason.CONFIG_LEVEL_MISMATCH: "the path has too many or too few components for that directory",
    RejectReason.DIR_IS_APPEND_ONLY: "nothing may be replaced there, use --append with a new path",
    RejectReason.SIGNATURE_MISMATCH: "none of your keys may upload there",
    RejectReason.ALREADY_EXISTS: "other content is there",
    RejectReason.ALREADY_UPLOADING: "other content is being uploaded there",
    RejectReason.REPLACE_DOESNT_MATCH: "what is there is not OLD_ID",
    RejectReason.STALE_TIMESTAMP: "what is there was signed later; is the clock of this host right?",
    RejectReason.TIMESTAMP_IN_FUTURE: "the clock of this host, or of the servers, is wrong",
    RejectReason.BAD_PATH: "the servers do not take such a path",
    RejectReason.PROTECTED: "a link that the servers protect leads to it (--force removes it all the same)",
    RejectReason.QUOTA: "as many images are there as the servers allow",
}
"""Meanings of the words of a refusal, for a user."""

_WORDS = frozenset(reject.value for reject in _MEANING)


@dataclass(frozen=True, slots=True)
class CompletionRule:
    """Rule for when an upload is finished. Times in seconds from the start of the run. ``require``: what is success, if not the early rule.

    ``connect_timeout_s``: how long a first node of the cluster is tried.
    """

    early_hosts: int = 3
    early_fraction: float = 0.75
    early_timeout_s: float = 30.0
    deadline_s: float = 1800.0
    require: Requirement | None = None
    connect_timeout_s: float = 15.0

    def need(self, expected: int) -> int:
        """Computes how many of ``expected`` nodes are enough after the early timeout."""
        return min(expected, max(self.early_hosts, math.ceil(expected * self.early_fraction - 1e-9)))


class UploadOutcome(Enum):
    """State or end of an upload to one cluster."""

    RUNNING = "RUNNING"
    DONE = "DONE"
    EARLY = "EARLY"
    PARTIAL = "PARTIAL"
    REJECTED = "REJECTED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Verdict:
    """An outcome, the exit code it alone would give, and a sentence why it is not DONE."""

    outcome: UploadOutcome
    exit_code: int = EXIT_DONE
    why: str = ""


RUNNING = Verdict(UploadOutcome.RUNNING)


@dataclass(frozen=True, slots=True)
class ConnectionReach:
    """Reach of the connection set, for one upload.

    ``busy``: an entry point is being resolved, or a connection was just begun, so that a node nobody heard of yet may turn up.
    ``exhausted``: every address that is known refused this upload or could not be reached, and none is left to try. ``reached``: there
    was a connection at some time; ``trouble`` why there was none. ``unreached``: addresses to which the last attempt to connect failed.
    """

    busy: bool
    exhausted: bool
    reached: bool = True
    trouble: str = ""
    unreached: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class UploadProgress:
    """Numbers and names for the display. ``done`` counts nodes that committed; names and reasons are as the network gave them.

    ``absent`` are the rows of those that are ``missing``, as far as they can be told apart; ``shared`` the machine ids of several servers.
    """

    done: int
    expected: int
    accepted: tuple[str, ...]
    missing: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    absent: tuple[ServerRow, ...] = ()
    shared: tuple[SharedId, ...] = ()

    @property
    def waited_for(self) -> tuple[str, ...]:
        """The names of those that are missing, each with how long nobody has heard it."""
        told = {row.name: row.told() for row in self.absent}
        return tuple(told.get(name, name) for name in self.missing)


MOST_TELLERS = 16
"""So many nodes that are not connected are listened to when they tell of others: each costs a pass over all servers."""


class _Reply(Enum):
    NONE = "none"
    ACCEPTED = "accepted"
    HELD = "held"  # a weak upload: other content is there, which is as good
    NO_CONFIG = "no config"
    REFUSED = "refused"


@dataclass(slots=True)
class _Contact:
    """One address that was asked."""

    label: str
    answer: _Reply = field(init=False, default=_Reply.NONE)
    outstanding: bool = field(init=False, default=False)
    connected: bool = field(init=False, default=False)
    reason: str = field(init=False, default="")
    exit_code: int = field(init=False, default=EXIT_REJECTED)
    errors: int = field(init=False, default=0)
    machine: MachineId | None = field(init=False, default=None)
    listed: frozenset[MachineId] = field(init=False, default_factory=frozenset)
    asked_for_servers: bool = field(init=False, default=False)
    told_rows: bool = field(init=False, default=False)


def refusal_code(reason: str | None) -> int:
    """The exit code of a refusal, by its word on the wire."""
    return EXIT_CONFLICT if reason in _CONFLICTS else EXIT_REJECTED


def meaning_of(reason: str) -> str:
    """A word of a refusal with what it means, where that is known."""
    return f"{reason}: {_MEANING[RejectReason(reason)]}" if reason in _WORDS else reason


def _word(reason: str) -> str:
    """The word of an abort, without the detail that may follow it."""
    return reason.partition(":")[0]


def _abort_code(word: str) -> int:
    """The exit code of an upload that a node gave up, by its word."""
    if word == AbortReason.CHECK_FAILED:
        return EXIT_REJECTED
    return EXIT_CONFLICT if word in _ABORT_CONFLICTS else EXIT_NETWORK


def worst(codes: Iterable[int]) -> int:
    """The exit code of several uploads: local problem, rejected, conflict, network, partial, hook, done, nothing to do, in this order."""
    present = set(codes)
    return next((code for code in _SEVERITY if code in present), EXIT_DONE)


def _possible(contacts: list[_Contact], machines: set[MachineId]) -> set[MachineId]:
    """Those of ``machines`` that at least one of ``contacts`` can be."""
    return machines - frozenset.intersection(*(contact.listed for contact in contacts)) if contacts else set()


class UploadTracker:
    """All that was said about (``path``, ``image``) on one cluster. ``revision`` grows with everything that may change a verdict."""

    def __init__(self, path: str, image: ImageId, weak: bool = False, removes: bool = False) -> None:
        """``removes``: the image is to go, not to come."""
        self._removes = removes
        self.path = path
        self.image = image
        self.weak = weak
        self.revision = 0
        self._contacts: dict[Address, _Contact] = {}
        self._servers = Servers()
        self._names: dict[MachineId, str] = {}
        self._done: set[MachineId] = set()
        self._held: set[MachineId] = set()
        self._own: set[MachineId] = set()
        self._aborted: dict[MachineId, str] = {}
        self._local_problem = ""
        self._conflict = ""

    # -- what happens -------------------------------------------------------------------------------------------------------------

    def asked(self, address: Address, label: str, *, servers: bool = False) -> None:
        """The request goes out to ``address``; what it gave up before no longer counts. ``servers``: it is asked for others, too."""
        contact = self._contacts.setdefault(address, _Contact(label))
        contact.outstanding = contact.connected = True
        contact.asked_for_servers = contact.asked_for_servers or servers
        self._servers.open(str(address))
        if contact.machine is not None:
            self._aborted.pop(contact.machine, None)

    def answered(self, address: Address, ack: UploadAck) -> None:
        """The answer to the request. A refusal after this node reported the image as committed changes nothing."""
        contact = self._contacts[address]
        contact.outstanding = False
        contact.errors = 0
        self.revision += 1
        hosts = {machine: name for machine, name in ack.hosts.items() if self._name(machine, name)}
        contact.listed = frozenset(hosts)
        if not contact.told_rows:
            self._servers.tell(ServersTold(str(address), [Server(name, machine, (), 0) for machine, name in hosts.items()]))
        if ack.machine is not None and self._name(ack.machine, ack.hostname):
            contact.machine = ack.machine
            contact.label = ack.hostname or contact.label
        self._servers.meet(MetServer(str(address), contact.machine, contact.label, ack.reject_reason != RejectReason.NO_CONFIG))
        if ack.accepted:
            contact.answer = _Reply.ACCEPTED
        elif contact.machine is not None and contact.machine in self._done:
            return
        elif self.weak and ack.reject_reason in WEAK:
            contact.answer = _Reply.HELD
            if contact.machine is not None:
                self._held.add(contact.machine)
        elif ack.reject_reason == RejectReason.NO_CONFIG:
            contact.answer, contact.reason = _Reply.NO_CONFIG, RejectReason.NO_CONFIG.value
        else:
            contact.answer, contact.reason = _Reply.REFUSED, ack.reject_reason or "unknown"
            contact.exit_code = refusal_code(ack.reject_reason)

    def said(self, address: Address, data: PathStateData) -> None:
        """Takes in what the node at ``address`` says of the path, and of the servers that it knows."""
        if not self._name(data.machine, data.hostname):
            return
        self.revision += 1
        self._servers.meet(MetServer(str(address), data.machine, data.hostname, data.taken, data.epoch_ms))
        contact = self._contacts.get(address)
        known: list[Server] = []
        if contact is not None or self._servers.tells(str(address)) is not None or self._servers.tellers < MOST_TELLERS:
            known = [one for one in data.servers if one.machine is None or self._name(one.machine, one.name)]
        self._servers.tell(ServersTold(str(address), known, data.shared_ids))
        if contact is not None:
            contact.machine, contact.told_rows, contact.asked_for_servers = data.machine, True, False
        if self._removes:
            return
        if data.committed is not None and data.committed.image == self.image:
            self._done.add(data.machine)
            self._own.add(data.machine)
            self._aborted.pop(data.machine, None)
        elif contact is None and data.pending is not None and data.pending.image == self.image:
            self._aborted.pop(data.machine, None)
        elif contact is None and data.refused is not None and data.refused[0] == self.image and data.machine not in self._done:
            self._aborted[data.machine] = data.refused[1]

    def said_nothing(self, address: Address) -> None:
        """The node at ``address`` does not tell which servers it knows."""
        self._contacts[address].asked_for_servers = False

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
            contact.answer, contact.reason, contact.exit_code = _Reply.REFUSED, text, EXIT_NETWORK
            self._servers.meet(MetServer(str(address), contact.machine, contact.label, True))
        return False

    def withdrew(self, address: Address) -> None:
        """The node at ``address`` gave up again what it had accepted: others refuse it for what they have."""
        contact = self._contacts[address]
        contact.answer, contact.reason, contact.exit_code = _Reply.REFUSED, "withdrawn", EXIT_CONFLICT

    def lost(self, address: Address) -> None:
        """The connection ended. What was accepted stays a promise; an answer will not come any more."""
        self._servers.lost(str(address))
        contact = self._contacts.get(address)
        if contact is not None:
            contact.outstanding = contact.asked_for_servers = contact.connected = False

    def done_by(self, has: str) -> str:
        """Describes the success of one node, in words; ``has`` may be "have"."""
        return f"{has} removed it" if self._removes else f"{has} it"

    def received(self, address: Address, note: ReceivedImage | RemovedImage) -> bool:
        """A node has an image, or has it no more. True when that is news about this upload."""
        if (
            isinstance(note, RemovedImage) is not self._removes
            or note.path != self.path  # guard: A29 F54 I7
            or (note.image != self.image and not self.weak)  # guard: A29 F54 I7
            or not self._know(address, note.machine_id, note.hostname)
        ):
            return False
        self._identify(address, note.machine_id, note.hostname, note.forwarded)
        if not note.forwarded and note.machine_id not in self._own:
            self._own.add(note.machine_id)
            self.revision += 1
        if self._aborted.pop(note.machine_id, None) is not None:
            self.revision += 1
        nodes = self._done if note.image == self.image else self._held
        if note.machine_id in nodes:
            return False
        nodes.add(note.machine_id)
        self.revision += 1
        return True

    def aborted(self, address: Address, note: AbortedImage) -> bool:
        """A node gave the image up, or found that it is not the only one at the path. True when that is news about this upload."""
        # guard: A29 F54 I7, -> self._removes or not self._know(address, note.machine_id, note.hostname)
        if self._removes or note.path != self.path or note.image != self.image or not self._know(address, note.machine_id, note.hostname):
            return False
        self._identify(address, note.machine_id, note.hostname, note.forwarded)
        reason = note.reason or "unknown"
        # guard: A51, -> _word(reason) == AbortReason.CONFLICT
        if _word(reason) == AbortReason.CONFLICT and not note.forwarded and not self.weak:
            self._done.discard(note.machine_id)
            self._conflict = self._conflict or reason
            self.revision += 1
        if note.machine_id in self._done or note.machine_id in self._aborted:
            return False
        self._aborted[note.machine_id] = reason
        self.revision += 1
        return True

    def local_problem(self, text: str) -> None:
        """The local directory can no longer be served. Fatal as long as no node has the whole image."""
        self._local_problem = self._local_problem or text

    def _name(self, machine: MachineId, name: str) -> bool:
        """Keep the name of a machine; False when there are too many."""
        if machine not in self._names and len(self._names) >= MAX_MACHINES:  # guard: A29 F54 I6
            return False
        self._names.setdefault(machine, name)
        return True

    def _know(self, address: Address, machine: MachineId, name: str) -> bool:
        if not self._name(machine, name):
            return False
        self.revision += self._servers.speak(str(address), machine, name)
        return True

    def _identify(self, address: Address, machine: MachineId, name: str, forwarded: bool) -> None:
        contact = self._contacts.get(address)
        if not forwarded and contact is not None and contact.machine != machine:
            contact.machine = machine
            self._servers.meet(MetServer(str(address), machine, name, True))
            self.revision += 1

    # -- what follows -------------------------------------------------------------------------------------------------------------

    @property
    def view(self) -> View:
        """The servers that are known for the path."""
        return self._servers.view()

    def refused(self, address: Address) -> bool:
        """Tells whether asking ``address`` again is pointless."""
        contact = self._contacts.get(address)
        return contact is not None and contact.answer in (_Reply.REFUSED, _Reply.NO_CONFIG)

    def has(self, address: Address) -> bool:
        """Tells whether the node at ``address`` has said that it has this image."""
        return self._contacts[address].machine in self._own & self._done

    def done_machines(self) -> int:
        """Nodes that have exactly this image."""
        return len(self._done) - len(self._unvouched(self._done))

    def missing(self) -> list[ServerRow]:
        """The servers that are expected and have said neither that they have it nor that they never will."""
        over = self._satisfied() | self._failed_machines()
        return [row for row in self.view.rows() if row.machine is None or row.machine not in over]

    def _failed_machines(self) -> set[MachineId]:
        refused = {contact.machine for contact in self._with(_Reply.REFUSED) if contact.machine is not None}
        return (refused | self._aborted.keys()) - self._done - self._held

    def _satisfied(self) -> set[MachineId]:
        """The machines that have it, or other content that is as good.

        Not those at the address of a known server that one node alone calls by that name: it may have made the machine up (threats A29).
        """
        return (self._done | self._held) - {row.machine for row in self._unproved()}  # guard: A29 I7, -> self._done | self._held

    def _unproved(self) -> list[ServerRow]:
        return [row for row in self.view.bound if row.unproved] if self._servers.tellers > 1 else []

    def _unvouched(self, machines: Iterable[MachineId]) -> list[ServerRow]:
        """Those of ``machines`` that only one of several nodes speaks of, and that never spoke themselves: made up, maybe (threats A29)."""
        if self._servers.tellers < 2:
            return []
        known = self.view.machines
        return [known[machine] for machine in machines if machine in known and known[machine].unvouched]

    def _kept(self, contact: _Contact) -> bool:
        """Tells whether a node has what it accepted: by its own word, or, once its connection is gone, by that of the others.

        A node that was restarted is often not connected again, because three others are; it then counts as any server does.
        """
        # guard: K7.2, -> contact.machine in self._own | self._held
        return contact.machine in self._own | self._held or (not contact.connected and contact.machine in self._satisfied())

    def _with(self, *answers: _Reply) -> list[_Contact]:
        return [contact for contact in self._contacts.values() if contact.answer in answers]

    def _count(self) -> tuple[int, int, int]:
        """Servers that are done, that failed, and that are expected.

        Expected are all rows, and the addresses that cannot be one of these. An address whose machine is unknown may be any machine that
        its own answer left out (a node never lists itself); one that refused cannot be one that is done.
        """
        named = self.view.machines.keys()
        satisfied = self._satisfied() & named
        free = named - {contact.machine for contact in self._contacts.values() if contact.machine is not None}
        refusers = [contact for contact in self._with(_Reply.REFUSED) if contact.machine is None]
        takers = [contact for contact in self._with(_Reply.ACCEPTED, _Reply.HELD) if contact.machine is None]
        holders = [contact for contact in takers if contact.answer is _Reply.HELD]
        named_refusers = min(len(refusers), len(_possible(refusers, free - satisfied)))
        named_takers = min(len(takers), max(0, len(_possible(takers, free)) - named_refusers))
        # guard: K1.1 I7, len(self.view.loose) + ->
        expected = len(named) + len(self.view.loose) + len(refusers) - named_refusers + len(takers) - named_takers
        done = len(satisfied) + max(0, len(holders) - len(_possible(holders, free & self._held)))
        return min(done, expected), len(self._failed_machines()) + len(refusers), expected

    def standing(self) -> UploadProgress:
        """The numbers and names of now."""
        view = self.view
        done, _, expected = self._count()
        expected += view.doubles
        failed = [(self._names[machine], reason) for machine, reason in self._aborted.items()]
        failed += [
            (contact.label, contact.reason)
            for contact in self._with(_Reply.REFUSED)
            if contact.machine is None or contact.machine not in self._done | self._held | self._aborted.keys()
        ]
        named = {name for name, _ in failed}
        absent = sorted((row for row in self.missing() if row.name not in named), key=lambda row: row.name)[: max(0, expected - done)]
        accepted = tuple(contact.label for contact in self._with(_Reply.ACCEPTED, _Reply.HELD))
        missing = tuple(row.name for row in absent)
        return UploadProgress(done, expected, accepted, missing, tuple(dict.fromkeys(failed)), tuple(absent), tuple(view.shared))

    def verdict(self, rule: CompletionRule, elapsed_s: float, reach: ConnectionReach) -> Verdict:
        """Judges the upload ``elapsed_s`` seconds after its start. Never well while servers share a machine id."""
        found = self._judged(rule, elapsed_s, reach)
        complaint = self.view.complaint() if found.outcome in (UploadOutcome.DONE, UploadOutcome.EARLY) else ""
        return Verdict(UploadOutcome.PARTIAL, EXIT_PARTIAL, complaint) if complaint else found  # guard: K1.5 I7, -> found

    def _judged(self, rule: CompletionRule, elapsed_s: float, reach: ConnectionReach) -> Verdict:
        if self._local_problem and not self._done:  # guard: I7
            return Verdict(UploadOutcome.FAILED, EXIT_LOCAL, self._local_problem)
        if self._conflict:  # guard: I7 A51 F46
            return Verdict(UploadOutcome.FAILED, EXIT_CONFLICT, f"other content was uploaded to the same path elsewhere ({self._conflict})")
        # guard: K1.1 I7, without 4
        busy = reach.busy or any(contact.outstanding or contact.asked_for_servers for contact in self._contacts.values())
        accepted, held = self._with(_Reply.ACCEPTED), self._with(_Reply.HELD)
        if not accepted and not held and not self._done:
            return self._nobody(rule, elapsed_s, busy, reach)
        if accepted and not held and not busy and not self._done and all(contact.machine in self._aborted for contact in accepted):
            return Verdict(UploadOutcome.FAILED, self._failure_code(), "all nodes that had accepted it gave it up")
        if held and not accepted and not self._done and not busy:
            return self._nothing_to_come(rule)
        done, failed, expected = self._count()
        everywhere = done >= expected
        require = rule.require
        enough = require is None or done >= require.need(expected)  # guard: I7, -> True
        # guard: I7 F54, without 4; I7 F54, without 1
        if not busy and everywhere and enough and all(self._kept(contact) for contact in accepted):
            return Verdict(UploadOutcome.DONE)
        if elapsed_s < min(rule.early_timeout_s, rule.deadline_s):  # guard: I7 F54
            return RUNNING
        sure, real = self._sure(done, expected)
        need = rule.need(real)
        wanted = need if require is None else require.need(expected if require.whole else real)
        if sure >= wanted > 0:
            return (
                Verdict(UploadOutcome.DONE)
                if everywhere
                else Verdict(UploadOutcome.EARLY, EXIT_DONE, f"{wanted} of {count(real, 'node')} {'was' if wanted == 1 else 'were'} enough")
            )
        have = f"{count(sure, 'node')} {self.done_by('has' if sure == 1 else 'have')}, {wanted} {'was' if wanted == 1 else 'were'} needed"
        if real < expected:
            have += f" ({expected - real} that only one server speaks of are not counted)"
        gone = self._gone(reach) if sure else []
        ended = not busy and done + failed + len(gone) >= expected
        if not ended and elapsed_s < rule.deadline_s:  # guard: I7 F54
            return RUNNING
        if gone:
            have += f"; {count(len(gone), 'other')} cannot be reached"
        if require is not None and sure >= need > 0:
            return Verdict(UploadOutcome.PARTIAL, EXIT_PARTIAL, f"--require {require}: {have}")
        if ended and gone and not failed:
            return Verdict(UploadOutcome.PARTIAL, EXIT_PARTIAL, have)
        if ended:
            others = "no other node is known" if everywhere else "the others failed"
            return Verdict(UploadOutcome.FAILED, self._failure_code(), f"{have}, and {others}")
        return Verdict(UploadOutcome.FAILED, EXIT_NETWORK, f"out of time: {have}")

    def hindrance(self, rule: CompletionRule, reach: ConnectionReach) -> str:
        """Says why the rule cannot be met now: too many servers cannot be reached. Empty while it can, or while that is not known."""
        gone = self._gone(reach)
        if not gone or not self._with(_Reply.ACCEPTED):
            return ""
        done, failed, expected = self._count()
        _, real = self._sure(done, expected)
        require = rule.require
        wanted = rule.need(real) if require is None else require.need(expected if require.whole else real)
        if expected - failed - len(gone) >= wanted:
            return ""
        until = interval(min(rule.early_timeout_s, rule.deadline_s))
        return (
            f"{_some(row.told() for row in gone)} cannot be reached, and {wanted} of {expected} nodes are needed: waiting until {until} "
            f"(--early-timeout), then for as long as there is a sign of life, at most until {interval(rule.deadline_s)} (--deadline)"
        )

    def _gone(self, reach: ConnectionReach) -> list[ServerRow]:
        """The missing servers that no node hears, and that the client cannot connect to either."""
        if not reach.unreached:
            return []
        # guard: K7.2 I7, without 1
        return [row for row in self.missing() if row.silent and row.addresses and reach.unreached.issuperset(row.addresses)]

    def _nothing_to_come(self, rule: CompletionRule) -> Verdict:
        """The verdict where all that was asked have other content, which is as good: nothing will be reported by anybody."""
        silent = [row for row in self.missing() if row.silent]
        if not silent:
            return Verdict(UploadOutcome.DONE)
        text = f"nobody hears {_some(row.told() for row in silent)}"
        if rule.require is None:
            return Verdict(UploadOutcome.EARLY, EXIT_DONE, text)
        return Verdict(UploadOutcome.PARTIAL, EXIT_PARTIAL, f"--require {rule.require}: {text}")

    def _sure(self, done: int, expected: int) -> tuple[int, int]:
        """Counts those that are done, and those that are expected, that are not only one server's word."""
        if self._servers.tellers < 2:
            return done, expected
        nameless = sum(contact.machine is None for contact in self._with(_Reply.ACCEPTED, _Reply.HELD, _Reply.REFUSED))
        doubtful = len(self._unvouched(self._satisfied()))
        # guard: A29 F54 I7, -> done
        sure = done - max(0, doubtful - nameless)  # each nameless one may be one of them
        return sure, expected - max(0, sum(row.hearsay for row in self.view.rows()) - nameless)

    def _nobody(self, rule: CompletionRule, elapsed_s: float, busy: bool, reach: ConnectionReach) -> Verdict:
        """The verdict while no node has accepted."""
        refusals = self._with(_Reply.REFUSED, _Reply.NO_CONFIG)
        late = elapsed_s >= rule.deadline_s
        if refusals and (late or (reach.exhausted and not busy)):
            reasons = sorted({contact.reason for contact in refusals if contact.answer is _Reply.REFUSED} or {RejectReason.NO_CONFIG.value})
            said = ", ".join(map(meaning_of, reasons))
            return Verdict(UploadOutcome.REJECTED, self._failure_code(), f"all nodes that could be reached refused: {said}")
        if not reach.reached and elapsed_s >= min(rule.connect_timeout_s, rule.deadline_s):
            waited = f"no node was reached within {interval(elapsed_s)}"
            return Verdict(UploadOutcome.FAILED, EXIT_NETWORK, f"{waited}: {reach.trouble}" if reach.trouble else waited)
        if late:
            return Verdict(UploadOutcome.FAILED, EXIT_NETWORK, "out of time: no node could be reached, or none answered")
        return RUNNING

    def _failure_code(self) -> int:
        codes = {contact.exit_code for contact in self._with(_Reply.REFUSED)}
        codes |= {_abort_code(_word(reason)) for reason in self._aborted.values()}
        if not codes and self._with(_Reply.NO_CONFIG):
            return EXIT_REJECTED
        return worst(codes) or EXIT_NETWORK


def _some(texts: Iterable[str]) -> str:
    found = list(texts)
    shown = ", ".join(found[:MOST_NAMED])
    return shown if len(found) <= MOST_NAMED else f"{shown} and {len(found) - MOST_NAMED} more"
