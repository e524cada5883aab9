"""``ciruela sync --dry-run``: asks every node what it would answer to an upload. What is sent and signed here cannot upload anything."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore, FirstError, gatherResults
from twisted.internet.defer import TimeoutError as AnswerTimeout

from ciruela.client.book import EXIT_NOTHING, Rule, worst
from ciruela.client.contacts import MAX_CANDIDATES, reachable_from
from ciruela.client.forecast import Forecast, Fresh, Reply, Says, forecast, fresh, reply
from ciruela.client.hashes import Silent, hash_for
from ciruela.client.options.signing import ClusterNames
from ciruela.client.options.sync import SyncOptions
from ciruela.client.orders import Check, check_sources, scan_all, sign_checks
from ciruela.client.progress import FINAL_NAMES, Display
from ciruela.client.report import Report, code_of
from ciruela.client.scanning import hash_caches, scan_directory
from ciruela.client.surroundings import Surroundings, identities_of, make_display, real_world
from ciruela.client.sync import ANSWER_TIMEOUT_S, ClosableLink, World
from ciruela.client.text import clean, count, size
from ciruela.disk.scan import Scan
from ciruela.index.parse import parse
from ciruela.index.tree import Index
from ciruela.model.errors import CiruelaError, FormatError, RemoteError
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.vpath import VPath
from ciruela.proto.messages import BaseDirData, CheckData, GetBaseDir, GetIndexAt, IndexAtData, Request, Response
from ciruela.seams import Address, InThread

AT_ONCE = 16
"""Nodes that are asked at the same time."""

RESOLVE_TIMEOUT_S = 30.0
"""A name server that takes longer is as good as none."""

COMPARED = 3
"""Images beside the path that a new one is compared with, the newest ones: nodes take files from their siblings, and versions are alike."""

_SHOWN = {
    Says.TAKES: "would take it",
    Says.HAS: "has it",
    Says.HOLDS: "has other content, which is as good",
    Says.NO_CONFIG: "has no such directory",
    Says.REFUSES: "would refuse",
    Says.UNREACHABLE: "cannot be asked",
    Says.CANNOT_TELL: "cannot tell without uploading",
}


@dataclass
class _Asked:
    """What is known of one cluster: replies for each check, in their order."""

    replies: list[list[Reply]]
    addresses: set[Address] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    machines: set[MachineId] = field(default_factory=set)
    hosts: dict[MachineId, str] = field(default_factory=dict)
    takers: list[dict[str, Address]] = field(default_factory=list)


async def _together(stories: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all at the same time. Raises what the first of them raises, as it is, or CancelledError; then the others end, too."""
    jobs: list[Deferred[None]] = [Deferred.fromCoroutine(one) for one in stories]
    try:
        await gatherResults(jobs, consumeErrors=True)
    except FirstError as error:
        for job in jobs:
            job.cancel()
        error.subFailure.raiseException()


class Survey:
    """Asks all nodes of one cluster: those that are named, and then those that they name."""

    def __init__(self, cluster: ClusterNames, checks: Sequence[Check], rule: Rule, world: World) -> None:
        self.cluster = cluster
        self.checks = checks
        self._world = world
        self._slots = DeferredSemaphore(AT_ONCE)
        self._until_s = world.clock.seconds() + rule.deadline_s
        self._found = _Asked([[] for _ in checks], takers=[{} for _ in checks])
        self._entries: list[Address] = []

    @property
    def replies(self) -> list[list[Reply]]:
        """For each check what the nodes said, those that could be asked first."""
        return [sorted(found, key=lambda one: (one.says is Says.UNREACHABLE, one.host)) for found in self._found.replies]

    @property
    def answered(self) -> int:
        """How many nodes have answered."""
        return len(self._found.machines)

    async def ask_all(self) -> None:
        """Ask them all. Cancel to stop."""
        await _together([self._named(name) for name in self.cluster.names])
        while True:
            found = self._found
            unheard = [name for machine, name in found.hosts.items() if machine not in found.machines and name not in found.names]
            unheard = list(dict.fromkeys(unheard))[: MAX_CANDIDATES - len(found.names)]
            if not unheard:
                return
            await _together([self._heard(name) for name in unheard])

    async def _resolved(self, name: str) -> list[Address]:
        self._found.names.add(name)
        try:
            addresses: list[Address] = await self._world.resolve(name).addTimeout(RESOLVE_TIMEOUT_S, self._world.clock)
        except (CiruelaError, AnswerTimeout) as error:
            self._unreachable(name, str(error) if isinstance(error, CiruelaError) else "the name cannot be resolved in time")
            return []
        return addresses

    async def _named(self, name: str) -> None:
        addresses = list(dict.fromkeys(await self._resolved(name)))
        self._entries += addresses
        await _together([self._at(address, name if len(addresses) == 1 else str(address)) for address in addresses])

    async def _heard(self, name: str) -> None:
        if not name or not name.isprintable():
            self._found.names.add(name)
            return
        usable = [one for one in await self._resolved(name) if reachable_from(self._entries, one)]
        if usable:
            await self._at(usable[0], name)

    async def _at(self, address: Address, label: str) -> None:
        if address in self._found.addresses:
            return
        self._found.addresses.add(address)
        await self._slots.acquire()
        try:
            if self._world.clock.seconds() >= self._until_s:
                self._unreachable(label, "out of time")
                return
            try:
                link: ClosableLink = await self._world.connect(address, Silent())
            except CiruelaError as error:
                self._unreachable(label, str(error))
                return
            try:
                await self._ask(link, address, label)
            finally:
                link.close()
        finally:
            self._slots.release()

    async def _ask(self, link: ClosableLink, address: Address, label: str) -> None:
        for number, check in enumerate(self.checks):
            try:
                answer = await self._answer(link, check.request)
            except RemoteError as error:
                says = Says.UNREACHABLE if link.bulk and "not known" not in str(error) else Says.CANNOT_TELL
                self._found.replies[number].append(Reply(label, says, "error" if link.bulk else "old-server", str(error)))
                continue
            except CiruelaError as error:
                self._found.replies[number].append(Reply(label, Says.UNREACHABLE, "unreachable", str(error)))
                continue
            if not isinstance(answer, CheckData):
                self._found.replies[number].append(Reply(label, Says.CANNOT_TELL, "error", f"unexpected {type(answer).__name__}"))
                continue
            if number == 0:
                if answer.machine in self._found.machines:
                    return
                self._found.machines.add(answer.machine)
            self._found.hosts.update(answer.hosts)
            host = label if label in (answer.hostname, address.host) else f"{answer.hostname} ({label})"
            one = reply(host, check.request.image, check.weak, answer)
            self._found.replies[number].append(one)
            if one.says is Says.TAKES:
                self._found.takers[number][host] = address

    async def _answer(self, link: ClosableLink, request: Request) -> Response:
        try:
            answer: Response = await link.ask(request).addTimeout(ANSWER_TIMEOUT_S, self._world.clock)
        except AnswerTimeout:
            raise CiruelaError(f"no answer within {ANSWER_TIMEOUT_S:.0f} s") from None
        return answer

    def _unreachable(self, host: str, text: str) -> None:
        for found in self._found.replies:
            found.append(Reply(host, Says.UNREACHABLE, "unreachable", text))

    # -- what is there already ----------------------------------------------------------------------------------------------------

    async def compare(self, number: int, wanted: Index, in_thread: InThread) -> Fresh | None:
        """What of the image of a check is new to a node that would take it; None when no node would, or it does not tell."""
        addresses = list(self._found.takers[number].values())
        if not addresses:
            return None
        vpath = VPath.parse(self.checks[number].request.path)
        try:
            link: ClosableLink = await self._world.connect(addresses[0], Silent())
        except CiruelaError:
            return None
        try:
            there = await self._indexes(link, vpath, in_thread)
        except (CiruelaError, ValueError):
            return None
        finally:
            link.close()
        return await in_thread(fresh, wanted, there)

    async def _indexes(self, link: ClosableLink, vpath: VPath, in_thread: InThread) -> list[Index]:
        """The indexes of what is at the path, and of its newest siblings."""
        listed = await self._answer(link, GetBaseDir(str(vpath.base)))
        if not isinstance(listed, BaseDirData):
            return []
        newest = sorted(listed.dirs, key=lambda name: (name != vpath.entry, -listed.dirs[name].version.timestamp_ms))
        indexes = []
        for name in newest[: COMPARED + (vpath.entry in listed.dirs)]:
            answer = await self._answer(link, GetIndexAt(str(vpath.base.image_at(name))))
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


# -- what is shown ----------------------------------------------------------------------------------------------------------------


def _headline(survey: Survey, check: Check, found: Forecast, new: Fresh | None, scan: Scan) -> str:
    word = "WOULD FAIL" if found.exit_code else "WOULD BE DONE" if found.takers == found.expected else "WOULD BE EARLY"
    parts = [
        f"{clean(survey.cluster.label, 80)} {clean(check.request.path)}",
        "NOTHING TO DO" if found.nothing else word,
        f"{found.takers}/{found.expected} nodes",
        f"id {check.request.image.hex()[:16]}",
    ]
    if not found.nothing and found.takers:
        if new is not None and new.compared:
            parts.append(f"new: {new.files:,} of {count(scan.files, 'file')}, {size(new.bytes)} of {size(scan.bytes)}")
        else:
            parts.append(f"new: {count(scan.files, 'file')}, {size(scan.bytes)}")
    if found.why:
        parts.append(f"({clean(found.why)})")
    return "  ".join(parts)


def _node_line(one: Reply, image: ImageId) -> str:
    parts = [f"  {clean(one.host, 80)}  {_SHOWN[one.says]}"]
    if one.code and one.says is Says.REFUSES:
        parts.append(clean(one.code))
    if one.message:
        parts.append(clean(one.message))
    if one.there is not None and one.there != image:
        parts.append(f"there: {one.there.hex()[:16]}")
    if one.coming is not None:
        parts.append(f"on its way: {one.coming.hex()[:16]}")
    if one.free_bytes is not None and one.says is Says.TAKES:
        parts.append(f"{size(one.free_bytes)} free")
    return "  ".join(parts)


def _fields(survey: Survey, check: Check, found: Forecast, new: Fresh | None, scan: Scan) -> dict[str, object]:
    return {
        "cluster": survey.cluster.label,
        "path": check.request.path,
        "image": check.request.image.hex(),
        "exit_code": found.exit_code,
        "code": "nothing-to-do" if found.nothing else code_of(found.exit_code),
        "message": found.why,
        "takers": found.takers,
        "expected": found.expected,
        "files": scan.files,
        "bytes": scan.bytes,
        "new_files": None if new is None else new.files,
        "new_bytes": None if new is None else new.bytes,
    }


def _report_node(report: Report, survey: Survey, check: Check, one: Reply) -> None:
    report.write(
        "node",
        cluster=survey.cluster.label,
        path=check.request.path,
        host=clean(one.host, 300),
        machine_id=None if one.machine is None else one.machine.hex(),
        state=one.says.value,
        code=clean(one.code),
        message=clean(one.message),
        there=None if one.there is None else one.there.hex(),
        coming=None if one.coming is None else one.coming.hex(),
        free_bytes=one.free_bytes,
    )


# -- the stories ------------------------------------------------------------------------------------------------------------------


async def survey_all(options: SyncOptions, checks: Sequence[Check], world: World, display: Display) -> list[Survey]:
    """Ask all nodes of all clusters."""
    surveys = [Survey(names, checks, options.rule, world) for names in options.clusters]
    display.show(lambda: f"Asking: {count(sum(one.answered for one in surveys), 'node')} answered")
    try:
        await _together([one.ask_all() for one in surveys])
    finally:
        display.hide()
    return surveys


def nothing_to_do(surveys: Sequence[Survey], rule: Rule) -> bool:
    """Whether every node of every cluster has exactly what would be uploaded."""
    return all(forecast(replies, rule).nothing for one in surveys for replies in one.replies)


async def dry_run(options: SyncOptions, around: Surroundings, world: World | None = None) -> int:
    """``ciruela sync --dry-run``. Gives the exit code that the upload would likely have. Raises what keeps it from asking anything."""
    check_sources(options.wishes)
    display = make_display(options.common, around, None)
    identities = await identities_of(options.keys, around, display)
    net = world or real_world(options.common, around)
    kind = options.common.hash or await hash_for([names.names for names in options.clusters], net)
    caches = hash_caches(options.cache, around)
    scans = await scan_all(
        options.wishes,
        lambda name: Deferred.fromCoroutine(scan_directory(name, kind, display, around.in_thread, caches, options.excluding)),
    )
    checks = await sign_checks(options.wishes, scans, identities, around.now_ms())
    report = around.report
    if report is not None:
        for wish in options.wishes:
            report.indexed(wish, scans[wish.source])
    surveys = await survey_all(options, checks, net, display)
    found: list[Forecast] = []
    uploads: list[dict[str, object]] = []
    for survey in surveys:
        for number, (wish, check, replies) in enumerate(zip(options.wishes, checks, survey.replies, strict=True)):
            scan = scans[wish.source]
            fate = forecast(replies, options.rule)
            new = None if fate.nothing else await survey.compare(number, await around.in_thread(_index_of, scan), around.in_thread)
            found.append(fate)
            uploads.append(_fields(survey, check, fate, new, scan))
            display.answer(_headline(survey, check, fate, new, scan))
            told = [one for one in replies if one.says is not Says.HAS][:FINAL_NAMES]
            for one in replies if options.common.verbosity > 1 else told:
                display.answer(_node_line(one, check.request.image))
            if report is not None:
                for one in replies:
                    _report_node(report, survey, check, one)
    code = worst(one.exit_code for one in found)
    if options.exit_code and not code and all(one.nothing for one in found):
        code = EXIT_NOTHING
    display.say("Nothing was uploaded: this was a dry run")
    if report is not None:
        report.end(code, "dry-run", uploads)
    return code


def _index_of(found: Scan) -> Index:
    """In a thread: the first use parses."""
    return found.index
