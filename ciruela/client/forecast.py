"""What would become of an upload, by what all nodes of a cluster said to the question: a pure verdict with the exit code of the upload."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from ciruela.client.book import (
    EXIT_CONFLICT,
    EXIT_DONE,
    EXIT_NETWORK,
    EXIT_PARTIAL,
    EXIT_REJECTED,
    WEAK,
    Rule,
    meaning_of,
    refusal_code,
    worst,
)
from ciruela.client.text import count, size
from ciruela.index.merge import same_files
from ciruela.index.tree import Index
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.order import Abort, Reject
from ciruela.proto.messages import CheckData
from ciruela.seams import Address

MOST_NAMED = 3
"""Nodes that are named in one sentence."""


class Says(Enum):
    """What a node says to the question."""

    TAKES = "takes"
    HAS = "has"
    HOLDS = "holds-other"
    NO_CONFIG = "no-config"
    REFUSES = "refuses"
    FAILS = "fails"
    UNREACHABLE = "unreachable"
    CANNOT_TELL = "cannot-tell"


@dataclass(frozen=True, slots=True)
class Reply:
    """What one node said about one upload, or that it did not. ``host`` and ``message`` are raw.

    ``signed_ms``: the latest time that what is there, or on its way there, is signed for.
    """

    host: str
    says: Says
    code: str = ""
    message: str = ""
    machine: MachineId | None = None
    there: ImageId | None = None
    coming: ImageId | None = None
    free_bytes: int | None = None
    signed_ms: int | None = None
    address: Address | None = None

    @property
    def conflicts(self) -> bool:
        """Whether the node refuses for what is at the path already."""
        return self.says is Says.REFUSES and refusal_code(self.code) == EXIT_CONFLICT

    @property
    def exit_code(self) -> int:
        """The exit code of an upload that ends as this node says."""
        return EXIT_NETWORK if self.says is Says.FAILS else refusal_code(self.code)

    def short_of(self, needed_bytes: int) -> Reply:
        """The same node, if it has less room than ``needed_bytes``: it would begin, and give up."""
        if self.says is not Says.TAKES or self.free_bytes is None or self.free_bytes >= needed_bytes:
            return self
        return replace(
            self, says=Says.FAILS, code=Abort.NO_SPACE.value, message=f"needs {size(needed_bytes)}, {size(self.free_bytes)} are free"
        )


def reply(host: str, image: ImageId, weak: bool, data: CheckData, address: Address | None = None) -> Reply:
    """The answer of a node, understood."""
    reason = data.reject_reason or ""
    if data.accepted:
        says = Says.HAS if data.there == image and data.coming is None else Says.TAKES
    elif reason == Reject.NO_CONFIG:
        says = Says.NO_CONFIG
    elif weak and reason in WEAK:
        says = Says.HOLDS
    else:
        says, reason = Says.REFUSES, reason or "unknown"
    signed_ms = max((time_ms for time_ms in (data.there_ms, data.coming_ms) if time_ms is not None), default=None)
    return Reply(host, says, reason, data.detail, data.machine, data.there, data.coming, data.free_bytes, signed_ms, address)


def refusal_of(replies: Sequence[Reply]) -> str:
    """Why an upload must not be sent to any server: some refuse it for what they have. Empty when none does."""
    refusers = [one for one in replies if one.conflicts]
    if not refusers:
        return ""
    relevant = [one for one in replies if one.says not in (Says.NO_CONFIG, Says.UNREACHABLE)]
    names = [one.host for one in refusers[:MOST_NAMED]]
    more = f" and {len(refusers) - len(names)} more" if len(refusers) > len(names) else ""
    who = "all nodes that could be asked refused" if len(refusers) == len(relevant) else f"{', '.join(names)}{more} refused"
    return f"{who}: {', '.join(meaning_of(reason) for reason in sorted({one.code for one in refusers}))}"


@dataclass(frozen=True, slots=True)
class Fresh:
    """What of an image no node has yet, as far as that was looked up: ``files`` and ``bytes``; ``compared`` with so many images there."""

    files: int
    bytes: int
    compared: int


def fresh(wanted: Index, there: Sequence[Index]) -> Fresh:
    """What of ``wanted`` is not in any of ``there``, block by block. Those of another hash cannot be compared."""
    alike = [index for index in there if index.kind is wanted.kind]
    here = {file.block_hash(number) for index in alike for file in index.files for number in range(file.block_count)}
    found = [same_files(wanted, index) for index in alike]
    files = total = 0
    for at, file in enumerate(wanted.files):
        if not file.size or any(same[at] is not None for same in found):
            continue
        files += 1
        total += sum(file.block_size(number) for number in range(file.block_count) if file.block_hash(number) not in here)
    return Fresh(files, total, len(alike))


def difference(wanted: Index, there: Index) -> str:
    """How far two indexes of one hash kind differ, at a glance: ``3 of 120 files differ``."""
    ours, theirs = ({entry.path: entry for entry in index.entries()} for index in (wanted, there))
    paths = ours.keys() | theirs.keys()
    changed = sum(ours.get(path) != theirs.get(path) for path in paths)
    if changed:
        return f"{changed:,} of {count(len(paths), 'file')} {'differs' if changed == 1 else 'differ'}"
    return "only the directories differ"


@dataclass(frozen=True, slots=True)
class Forecast:
    """What would become of the upload. ``nothing``: every node has exactly this image already."""

    exit_code: int
    why: str
    takers: int
    expected: int
    nothing: bool = False


def forecast(replies: Iterable[Reply], rule: Rule) -> Forecast:
    """The verdict on one upload to one cluster. Expected are all nodes but those that say that they have no such directory."""
    asked = list(replies)
    relevant = [one for one in asked if one.says is not Says.NO_CONFIG]
    takers = [one for one in relevant if one.says in (Says.TAKES, Says.HAS, Says.HOLDS)]
    refusers = [one for one in relevant if one.says in (Says.REFUSES, Says.FAILS)]
    done, expected = len(takers), len(relevant)
    if not done:
        return Forecast(*_nobody(asked, refusers), 0, expected)
    if conflict := refusal_of(relevant):
        return Forecast(worst(one.exit_code for one in refusers), f"{conflict}; nothing would be sent", done, expected)
    need = rule.need(expected)
    wanted = expected if rule.require is None else rule.require.need(expected)
    if done >= wanted and done >= expected:
        return Forecast(EXIT_DONE, "", done, expected, nothing=all(one.says is Says.HAS for one in relevant))
    if done >= (need if rule.require is None else wanted):
        return Forecast(EXIT_DONE, f"enough nodes would take it, {expected - done} would not", done, expected)
    if rule.require is not None and done >= need:
        return Forecast(EXIT_PARTIAL, f"--require {rule.require} would not be met", done, expected)
    code = worst(one.exit_code for one in refusers) if refusers else EXIT_NETWORK
    return Forecast(code, f"{count(max(wanted if rule.require else 0, need), 'node')} would be needed", done, expected)


def _nobody(asked: Sequence[Reply], refusers: Sequence[Reply]) -> tuple[int, str]:
    if refusers:
        reasons = ", ".join(meaning_of(reason) for reason in sorted({one.code for one in refusers}))
        would = "fail" if all(one.says is Says.FAILS for one in refusers) else "refuse"
        return worst(one.exit_code for one in refusers), f"all nodes that could be asked would {would}: {reasons}"
    if any(one.says is Says.CANNOT_TELL for one in asked):
        return EXIT_NETWORK, "these servers cannot tell without uploading"
    if any(one.says is Says.NO_CONFIG for one in asked):
        return EXIT_REJECTED, f"all nodes that could be asked would refuse: {meaning_of(Reject.NO_CONFIG.value)}"
    return EXIT_NETWORK, "no node could be asked"
