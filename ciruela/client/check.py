"""Asks servers what they would answer to an upload, before one is sent or in place of one. What is sent here cannot upload anything.

The forecast of an upload, of the answers of all nodes of a cluster, is a pure decision with the exit code of the upload.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import Enum

from ciruela.client.contacts import ClosableLink, OnlyAsks, RunContext
from ciruela.client.crawl import MissingServer, ServerCrawl, answer_of
from ciruela.client.entrance import AnswerWindow, Entrance, together
from ciruela.client.options.signing import ClusterNames
from ciruela.client.orders import UploadCheck
from ciruela.client.text import count, size
from ciruela.client.tracker import (
    EXIT_CONFLICT,
    EXIT_DONE,
    EXIT_NETWORK,
    EXIT_PARTIAL,
    EXIT_REJECTED,
    WEAK,
    CompletionRule,
    meaning_of,
    refusal_code,
    worst,
)
from ciruela.index.merge import same_files
from ciruela.index.parse import parse
from ciruela.index.tree import Index
from ciruela.interfaces import Address, InThread
from ciruela.model.errors import CiruelaError, FormatError, RemoteError
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.upload import AbortReason, RejectReason
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath
from ciruela.proto.messages import (
    BaseDirData,
    CheckData,
    GetBaseDir,
    GetIndex,
    GetIndexAt,
    IndexAtData,
    IndexData,
    unknown_request,
)

MOST_NAMED = 3
"""Nodes that are named in one sentence."""


class Says(Enum):
    """Answer of a node to the question of a dry run."""

    TAKES = "takes"
    HAS = "has"
    HOLDS = "holds-other"
    NO_CONFIG = "no-config"
    REFUSES = "refuses"
    FAILS = "fails"
    UNREACHABLE = "unreachable"
    CANNOT_TELL = "cannot-tell"


@dataclass(frozen=True, slots=True)
class CheckReply:
    """Reply of one node about one upload, or the lack of it. ``host`` and ``message`` are raw.

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
        """Tells whether the node refuses for what is at the path already."""
        return self.says is Says.REFUSES and refusal_code(self.code) == EXIT_CONFLICT

    @property
    def exit_code(self) -> int:
        """The exit code of an upload that ends as this node says."""
        return EXIT_NETWORK if self.says is Says.FAILS else refusal_code(self.code)

    def short_of(self, needed_bytes: int) -> CheckReply:
        """The same node, if it has less room than ``needed_bytes``: it would begin, and give up."""
        if self.says is not Says.TAKES or self.free_bytes is None or self.free_bytes >= needed_bytes:  # guard: K5.1, -> True
            return self
        return replace(
            self, says=Says.FAILS, code=AbortReason.NO_SPACE.value, message=f"needs {size(needed_bytes)}, {size(self.free_bytes)} are free"
        )


def reply(host: str, image: ImageId, weak: bool, data: CheckData, address: Address | None = None) -> CheckReply:
    """The answer of a node, understood."""
    reason = data.reject_reason or ""
    if data.accepted:
        says = Says.HAS if data.there == image and data.coming is None else Says.TAKES
    elif reason == RejectReason.NO_CONFIG:
        says = Says.NO_CONFIG
    elif weak and reason in WEAK:
        says = Says.HOLDS
    else:
        says, reason = Says.REFUSES, reason or "unknown"
    signed_ms = max((time_ms for time_ms in (data.there_ms, data.coming_ms) if time_ms is not None), default=None)
    return CheckReply(host, says, reason, data.detail, data.machine, data.there, data.coming, data.free_bytes, signed_ms, address)


def refusal_of(replies: Sequence[CheckReply]) -> str:
    """Says why an upload must not be sent to any server: some refuse it for what they have. Empty when none does."""
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
    """Share of an image that no node has yet, as far as was looked up: ``files`` and ``bytes``; ``compared`` with so many images there."""

    files: int
    bytes: int
    compared: int


def fresh(wanted: Index, there: Sequence[Index]) -> Fresh:
    """Counts the files and bytes of ``wanted`` that are in none of ``there``, block by block. Those of another hash cannot be compared."""
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
    """Summarizes how far two indexes of one hash kind differ: ``3 of 120 files differ``."""
    ours, theirs = ({entry.path: entry for entry in index.entries()} for index in (wanted, there))
    paths = ours.keys() | theirs.keys()
    changed = sum(ours.get(path) != theirs.get(path) for path in paths)
    if changed:
        return f"{changed:,} of {count(len(paths), 'file')} {'differs' if changed == 1 else 'differ'}"
    return "only the directories differ"


@dataclass(frozen=True, slots=True)
class Forecast:
    """Forecast of one upload. ``nothing``: every node has exactly this image already."""

    exit_code: int
    why: str
    takers: int
    expected: int
    nothing: bool = False


def forecast(replies: Iterable[CheckReply], rule: CompletionRule) -> Forecast:
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


def _nobody(asked: Sequence[CheckReply], refusers: Sequence[CheckReply]) -> tuple[int, str]:
    if refusers:
        reasons = ", ".join(meaning_of(reason) for reason in sorted({one.code for one in refusers}))
        would = "fail" if all(one.says is Says.FAILS for one in refusers) else "refuse"
        return worst(one.exit_code for one in refusers), f"all nodes that could be asked would {would}: {reasons}"
    if any(one.says is Says.CANNOT_TELL for one in asked):
        return EXIT_NETWORK, "these servers cannot tell without uploading"
    if any(one.says is Says.NO_CONFIG for one in asked):
        return EXIT_REJECTED, f"all nodes that could be asked would refuse: {meaning_of(RejectReason.NO_CONFIG.value)}"
    return EXIT_NETWORK, "no node could be asked"


COMPARED = 3
"""Images beside the path that a new one is compared with, the newest ones: nodes take files from their siblings, and versions are alike."""


class PreflightSurvey:
    """Asks the nodes of one cluster: those that are named, and, for a dry run, then those that they name."""

    def __init__(
        self,
        cluster: ClusterNames,
        checks: Sequence[UploadCheck],
        rule: CompletionRule,
        world: RunContext,
        entrance: Entrance | None = None,
    ) -> None:
        """``entrance`` has the connections to those that are named; whoever gives it closes it."""
        self.cluster = cluster
        self.checks = checks
        self.entrance = entrance or Entrance(cluster.names, world, rule.deadline_s)
        self._world = world
        self._replies: list[list[CheckReply]] = [[] for _ in checks]
        paths = [check.request.path for check in checks]
        self._crawl = ServerCrawl(self.entrance, world, paths, rule.deadline_s, self._visit, self._unreachable)
        self._whole = False
        self._promised: dict[tuple[MachineId | None, str], int] = {}

    @property
    def replies(self) -> list[list[CheckReply]]:
        """For each check what the nodes said, those that could be asked first."""
        return [sorted(found, key=lambda one: (one.says is Says.UNREACHABLE, one.host)) for found in self._replies]

    @property
    def answered(self) -> int:
        """Number of nodes that have answered."""
        return len(self._crawl.machines)

    async def ask_reached(self) -> None:
        """Ask the entry points that were reached. Who has not answered some time after the first one is left out."""
        patience = AnswerWindow(self._world.clock)
        askable = [address for address, bulk in self.entrance.reached.items() if bulk]
        await patience.wait([self._patiently(address, patience) for address in askable])

    async def _patiently(self, address: Address, patience: AnswerWindow) -> None:
        before = self.answered
        await self._crawl.at_entry(address)
        if self.answered > before:
            patience.answered()

    async def ask_all(self) -> None:
        """Ask them all, but those that have answered already: who is named, and who the answers name. Cancel to stop."""
        answered = {one.address for replies in self._replies for one in replies if one.address is not None}
        await together([self._crawl.told_at_entry(address) for address in self.entrance.reached if address in answered])
        self._whole = True
        await self._crawl.run()

    async def _visit(self, link: ClosableLink, address: Address, label: str) -> None:
        await self._ask(link, address, label)
        if self._whole:
            await self._crawl.told(link, address)

    def untold(self) -> str:
        """A sentence about a node that answered, and did not tell which other servers it knows; empty when all of them did."""
        where, why = next(iter(self._crawl.untold.items()), ("", ""))
        return f"{where} did not say which other servers there are: {why}" if where else ""

    def complaint(self, number: int) -> str:
        """Names a fault of the servers themselves: several of them share a machine id, so that nobody can tell who has what."""
        return self._crawl.servers[number].view().complaint()

    async def _ask(self, link: ClosableLink, address: Address, label: str) -> None:
        """Ask one node everything. What it said counts when all is said, and once, however many addresses it has."""
        said: list[CheckReply] = []
        for check in self.checks:
            try:
                answer = await answer_of(link, check.request, self._world)
            except RemoteError as error:
                says = Says.UNREACHABLE if link.bulk and not unknown_request(str(error)) else Says.CANNOT_TELL
                said.append(CheckReply(label, says, "error" if link.bulk else "old-server", str(error)))
                continue
            except CiruelaError as error:
                said += [CheckReply(label, Says.UNREACHABLE, "unreachable", str(error))] * (len(self.checks) - len(said))
                break
            if not isinstance(answer, CheckData):
                said.append(CheckReply(label, Says.CANNOT_TELL, "error", f"unexpected {type(answer).__name__}"))
                continue
            self._crawl.hosts.update(answer.hosts)
            host = label if label in (answer.hostname, address.host) else f"{answer.hostname} ({label})"
            said.append(reply(host, check.request.image, check.weak, answer, address))
        machines = {one.machine for one in said if one.machine is not None}
        if machines & self._crawl.machines:
            return
        if not machines:
            self._crawl.book(address)  # else it counts again as one that others know
        self._crawl.machines |= machines
        for found, one in zip(self._replies, said, strict=True):
            found.append(one)

    def _unreachable(self, one: MissingServer) -> None:
        for found in self._replies:
            found.append(CheckReply(one.name, Says.UNREACHABLE, "unreachable", one.why))

    # -- what is there already ----------------------------------------------------------------------------------------------------

    async def compare(self, number: int, wanted: Index, in_thread: InThread) -> Fresh | None:
        """Counts what of the image of a check is new to a node that would take it; None when no node would, or it does not tell.

        Nodes that could not hold the whole image are compared each on its own. Those that have no room for what is new to them, after what
        the checks before this one bring to the same directory, would fail.
        """
        replies = self._replies[number]
        takers = [one for one in replies if one.says is Says.TAKES and one.address is not None]
        first = await self._fresh_at(takers[0], number, wanted, in_thread) if takers else None
        for one in takers:
            room = one.machine, VPath.parse(self.checks[number].request.path).key
            before = self._promised.get(room, 0)
            new = first
            if one is not takers[0] and one.short_of(before + wanted.total_bytes) is not one:
                new = await self._fresh_at(one, number, wanted, in_thread)
            self._promised[room] = before + (wanted.total_bytes if new is None else new.bytes)
            replies[replies.index(one)] = one.short_of(self._promised[room])
        return first

    async def _fresh_at(self, one: CheckReply, number: int, wanted: Index, in_thread: InThread) -> Fresh | None:
        vpath = VPath.parse(self.checks[number].request.path)
        try:
            link = await self._link_to(one)
        except CiruelaError:
            return None
        try:
            there = await self._indexes(link, vpath, in_thread)
        except (CiruelaError, ValueError):
            return None
        finally:
            if one.address not in self.entrance.addresses:
                link.close()
        return await in_thread(fresh, wanted, there)

    async def index_of(self, one: CheckReply, number: int, image: ImageId, in_thread: InThread) -> Index | None:
        """The index of an image that a node has at the path of a check, or gets there; None when it cannot be had."""
        path = self.checks[number].request.path
        try:
            link = await self._link_to(one)
        except CiruelaError:
            return None
        try:
            answer = await answer_of(link, GetIndexAt(path) if image == one.there else GetIndex(image, path), self._world)
        except CiruelaError:
            return None
        finally:
            if one.address not in self.entrance.addresses:
                link.close()
        data = answer.data if isinstance(answer, IndexAtData | IndexData) else None
        return None if data is None else await in_thread(_parsed, data, image)

    async def _link_to(self, one: CheckReply) -> ClosableLink:
        assert one.address is not None
        if one.address in self.entrance.addresses:
            return await self.entrance.open(one.address)
        link: ClosableLink = await self._world.connect(one.address, OnlyAsks())
        return link

    async def _indexes(self, link: ClosableLink, vpath: VPath, in_thread: InThread) -> list[Index]:
        """The indexes of what is at the path, and of its newest siblings."""
        listed = await answer_of(link, GetBaseDir(str(vpath.base)), self._world)
        if not isinstance(listed, BaseDirData):
            return []
        newest = sorted(listed.dirs, key=lambda name: (name != vpath.entry, -listed.dirs[name].version.timestamp_ms))
        indexes = []
        for name in newest[: COMPARED + (vpath.entry in listed.dirs)]:
            answer = await answer_of(link, GetIndexAt(str(vpath.base.image_at(name))), self._world)
            if isinstance(answer, IndexAtData) and answer.data is not None:
                found = await in_thread(_parsed, answer.data, listed.dirs[name].image)
                if found is not None:
                    indexes.append(found)
        return indexes


def _parsed(data: bytes, image: ImageId) -> Index | None:
    try:
        return parse(data, image)
    except FormatError:
        return None
