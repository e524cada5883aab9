"""Asks the entry points of one cluster what they would answer, before a single order is sent: what one refuses goes to none.

From the answers follow the kind of hash that the cluster gets (:mod:`hashes`), the time that an order is signed for, and whether other
content is really other: an image of another hash with the same files is the same content.

``ciruela sync --dry-run`` and ``--exit-code``: every server is asked, and what would become of the upload is shown.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from twisted.internet.defer import Deferred, FirstError, gatherResults

from ciruela.client.check import MOST_NAMED, CheckReply, Forecast, Fresh, PreflightSurvey, Says, difference, forecast, refusal_of
from ciruela.client.clusters import ClusterUploads, Met, Settled
from ciruela.client.contacts import RunContext
from ciruela.client.context import AppContext
from ciruela.client.entrance import Entrance, together
from ciruela.client.listener import Listener, NodeNews, UploadRow
from ciruela.client.options.signing import ClusterNames
from ciruela.client.options.sync import CONNECTIONS, Mode, SyncOptions, Wish
from ciruela.client.orders import Intent, Signer, UploadCheck, kind_for
from ciruela.client.progress import FINAL_NAMES, Display
from ciruela.client.report import Report, code_of
from ciruela.client.scanning import Scans
from ciruela.client.source import BlockProvider
from ciruela.client.sync import ClusterRun, EntryPoints
from ciruela.client.text import clean, count, interval, size
from ciruela.client.tracker import (
    EXIT_NETWORK,
    EXIT_NOTHING,
    EXIT_PARTIAL,
    RUNNING,
    CompletionRule,
    UploadOutcome,
    UploadProgress,
    Verdict,
    worst,
)
from ciruela.client.uploadrun import Upload
from ciruela.disk.scan import Scan
from ciruela.index.digest import HashKind
from ciruela.index.tree import Index
from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass
from ciruela.uploads.decision import FUTURE_LIMIT_MS

CLOCK_MARGIN_MS = 10_000
"""Margin for the clocks of servers, when an order is signed for the latest time that they take."""

Reindex = Callable[[int, HashKind], Awaitable[Index]]
"""Gives the index of what an intent, by its number, would bring with another kind of hash."""


@dataclass(frozen=True, slots=True)
class IntentRuling:
    """Ruling on one intent, on one cluster.

    ``refusal``: why it is sent to no server, empty when it may be sent. ``only``: labels of the servers that it is sent to, none for any:
    those that have other content, which a weak append takes for as good.
    """

    intent: Intent
    replies: tuple[CheckReply, ...]
    refusal: str = ""
    only: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """The exit code of an upload that is refused so."""
        return worst(one.exit_code for one in self.replies if one.says is Says.REFUSES)


class Preflight:
    """The entry points of one cluster, and what they say to what is meant for it. ``close`` ends the connections that no run took."""

    def __init__(
        self,
        cluster: ClusterNames,
        wishes: Sequence[Wish],
        rule: CompletionRule,
        world: RunContext,
        signer: Signer,
        around: AppContext,
        connections: int = CONNECTIONS,
    ) -> None:
        """``connections``: how many of the addresses of one name are asked, and how many servers an upload is given to."""
        self.cluster = cluster
        self.wishes = tuple(wishes)
        self.clock = world.clock
        self.rulings: list[IntentRuling] = []
        self.survey = PreflightSurvey(cluster, (), rule, world)
        self.entrance = Entrance(cluster.names, world, min(rule.connect_timeout_s, rule.deadline_s), connections)
        self._connections = connections
        self.rule = rule
        self._world = world
        self._signer = signer
        self._now_ms = around.now_ms
        self._in_thread = around.in_thread

    @property
    def kind(self) -> HashKind:
        """The kind of hash that every server that was reached understands."""
        return kind_for(self.entrance.reached.values())

    @property
    def reached(self) -> bool:
        """Tells whether a server answers."""
        return bool(self.entrance.reached)

    def close(self) -> None:
        """End the connections that nobody took."""
        self.entrance.close()

    # -- asking -------------------------------------------------------------------------------------------------------------------

    async def ask(self, scans: Scans, kind: HashKind, timestamp_ms: int) -> None:
        """Ask what would become of the wishes, indexed with ``kind``. Raises what indexing and signing raise."""
        intents = [Intent.of(wish, await scans.of(wish.source, kind), timestamp_ms) for wish in self.wishes]

        async def reindex(number: int, other: HashKind) -> Index:
            found = await scans.of(self.wishes[number].source, other)
            index: Index = await self._in_thread(lambda: found.index)
            return index

        await self.decide(intents, reindex)

    async def decide(self, intents: Sequence[Intent], reindex: Reindex | None = None) -> None:
        """Ask, and set :attr:`rulings`. Without ``reindex`` the hash of what is meant cannot be changed. Raises what signing raises."""
        asked = list(intents)
        survey = await self._asked(asked)
        timed = [self._timed(intent, replies) for intent, replies in zip(asked, survey.replies, strict=True)]
        if timed != asked:
            asked, survey = timed, await self._asked(timed)
        same, differences = list(asked), [""] * len(asked)
        for number, intent in enumerate(asked):
            if reindex is not None and refusal_of(survey.replies[number]):
                same[number], differences[number] = await self._compared(number, intent, survey, reindex)
        if same != asked:
            asked, survey = same, await self._asked(same)
        self.survey = survey
        self.rulings = [self._ruling(*one) for one in zip(asked, survey.replies, differences, strict=True)]

    async def _asked(self, intents: Sequence[Intent]) -> PreflightSurvey:
        checks = [await self._signer.check(intent) for intent in intents]
        survey = PreflightSurvey(self.cluster, checks, self.rule, self._world, self.entrance)
        await survey.ask_reached()
        return survey

    def _timed(self, intent: Intent, replies: Sequence[CheckReply]) -> Intent:
        """A replace is signed for a moment after what is there, if a clock that is ahead of this one signed that, but not by too much."""
        latest = _latest(replies)
        if intent.mode is not Mode.REPLACE or latest is None or latest.signed_ms is None:
            return intent
        fits = intent.timestamp_ms <= latest.signed_ms < self._now_ms() + FUTURE_LIMIT_MS - CLOCK_MARGIN_MS
        return replace(intent, timestamp_ms=latest.signed_ms + 1) if fits else intent  # guard: K7.7, -> intent

    async def _compared(self, number: int, intent: Intent, survey: PreflightSurvey, reindex: Reindex) -> tuple[Intent, str]:
        """The intent with the hash of what is there, if that has the same content, or how far it differs, for people."""
        if all(one.there is None and one.coming is None for one in survey.replies[number]):
            await survey.ask_all()  # they refuse on the word of others, who can show what they have
        compared: set[ImageId] = {intent.image}
        how = ""
        for one in survey.replies[number]:
            for image in (one.coming, one.there):
                if image is None or image in compared:
                    continue
                index = await survey.index_of(one, number, image, self._in_thread)
                if index is None:
                    continue
                compared.add(image)
                ours = await reindex(number, index.kind)
                if ours.image == image:  # guard: K6.1
                    return replace(intent, image=image), ""
                how = how or await self._in_thread(difference, ours, index)
        return intent, how

    def _ruling(self, intent: Intent, replies: Sequence[CheckReply], how: str) -> IntentRuling:
        holders = [one.address for one in replies if one.says in (Says.HAS, Says.HOLDS) and one.address is not None]
        if any(one.says is Says.HOLDS for one in replies):  # guard: K2.1
            return IntentRuling(intent, tuple(replies), only=tuple(self.entrance.label(address) for address in holders))
        refusal = refusal_of(replies)
        if refusal and how:
            refusal = f"{refusal} ({how})"
        return IntentRuling(intent, tuple(replies), f"{refusal}{self._clock_words(replies)}" if refusal else "")

    def _clock_words(self, replies: Sequence[CheckReply]) -> str:
        """Say whose clock is ahead, where what is there is signed for a time that no order of this host reaches."""
        latest = _latest(replies)
        ahead_ms = 0 if latest is None or latest.signed_ms is None else latest.signed_ms - self._now_ms()
        if latest is None or ahead_ms < FUTURE_LIMIT_MS - CLOCK_MARGIN_MS:
            return ""
        ahead = interval(ahead_ms / 1000)
        return f"; what {latest.host} has is signed for {ahead} ahead of the clock of this host ({socket.gethostname()}), which is behind"

    # -- what follows -------------------------------------------------------------------------------------------------------------

    async def runs(self, source: BlockProvider, listener: Listener) -> list[ClusterUploads]:
        """Sign what may be sent, and make the runs that send it. Raises what signing raises."""
        world = replace(self._world, connect=self.entrance.connect, resolve=self.entrance.resolve)
        free: list[Upload] = []
        runs: list[ClusterUploads] = []
        label, rule = self.cluster.label, self.rule
        for ruling in self.rulings:
            if ruling.refusal:  # guard: K2.1 K2.2 K2.3
                runs.append(Settled([self._refused(ruling, listener)]))
            elif ruling.only:
                upload = await self._signer.upload(ruling.intent)
                runs.append(ClusterRun(EntryPoints(label, ruling.only, len(ruling.only)), [upload], rule, world, source, listener))
            else:
                free.append(await self._signer.upload(ruling.intent))
        if free:
            runs.insert(0, ClusterRun(EntryPoints(label, self.cluster.names, self._connections), free, rule, world, source, listener))
        return runs

    def _refused(self, ruling: IntentRuling, listener: Listener) -> UploadRow:
        failed = []
        details: dict[str, list[str]] = {}
        for one in ruling.replies:
            if one.says is Says.REFUSES:
                where, path = "" if one.address is None else str(one.address), ruling.intent.path
                failed.append((one.host, one.code))
                listener.node(NodeNews(self.cluster.label, path, one.host, one.machine, "refused", one.code, one.message, address=where))
                if one.message:
                    details.setdefault(f"{path} {one.code}: {one.message}", []).append(one.host)
        for text, hosts in details.items():
            listener.problem(self.cluster.label, f"{', '.join(hosts[:MOST_NAMED])} {text}")
        expected = sum(one.says is not Says.NO_CONFIG for one in ruling.replies)
        done = sum(one.says is Says.HAS for one in ruling.replies)
        verdict = Verdict(UploadOutcome.REJECTED, ruling.exit_code, f"{ruling.refusal}; nothing was sent")
        standing, intent = UploadProgress(done, expected, (), (), tuple(failed)), ruling.intent
        return UploadRow(self.cluster.label, intent.path, intent.image, verdict, standing, 0, intent.total_bytes, 0.0)


class Late:
    """A cluster of which nobody has answered yet: it is tried until the connect timeout, and then it is asked and sent to like others."""

    def __init__(
        self, preflight: Preflight, images: Sequence[Scan], begin: Callable[[], Awaitable[Sequence[ClusterUploads]]], listener: Listener
    ) -> None:
        """``images`` are what is meant for it; ``begin`` makes the runs once it answers."""
        self._preflight = preflight
        self._begin = begin
        self._listener = listener
        self._intents = [Intent.of(wish, found, 0) for wish, found in zip(preflight.wishes, images, strict=True)]
        self._verdict = RUNNING
        self._began_s = self._ended_s = preflight.clock.seconds()
        self._runs: Sequence[ClusterUploads] | None = None
        self._going: Deferred[None] | None = None
        self.met: Met = lambda _run, _machine, _name: None

    def start(self) -> Deferred[None]:
        """Begin. Fires when every upload has a verdict; cancel to give up."""
        self._going = Deferred.fromCoroutine(self._story())
        return self._going

    async def _story(self) -> None:
        one, entrance = self._preflight, self._preflight.entrance
        for host, why in entrance.problems.items():
            for intent in self._intents:
                self._listener.node(NodeNews(one.cluster.label, intent.path, host, None, "unreachable", "unreachable", why))
        self._listener.problem(one.cluster.label, f"{entrance.why()}; trying again")
        await entrance.reach()
        self._ended_s = one.clock.seconds()
        if not one.reached:
            late = "out of time: " if entrance.timeout_s >= one.rule.deadline_s else ""
            waited = interval(self._ended_s - self._began_s)
            self._verdict = Verdict(UploadOutcome.FAILED, EXIT_NETWORK, f"{late}no node was reached within {waited}: {entrance.why()}")
            return
        self._runs = await self._begin()
        for run in self._runs:
            run.met = self.met
        try:
            await gatherResults([run.start() for run in self._runs], consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()

    def stop(self) -> None:
        """Give up what is under way."""
        for run in self._runs or ():
            run.stop()
        if self._going is not None and not self._going.called:
            self._going.cancel()

    def source_changed(self, image: ImageId, text: str) -> None:
        """Tell the runs that a directory changed."""
        for run in self._runs or ():
            run.source_changed(image, text)

    def rows(self) -> list[UploadRow]:
        """Gives the state of every upload now."""
        if self._runs is not None:
            return [row for run in self._runs for row in run.rows()]
        now_s = self._preflight.clock.seconds() if self._verdict is RUNNING else self._ended_s
        label, nobody = self._preflight.cluster.label, UploadProgress(0, 0, (), (), ())
        return [
            UploadRow(label, intent.path, intent.image, self._verdict, nobody, 0, intent.total_bytes, now_s - self._began_s)
            for intent in self._intents
        ]

    def whole_nodes(self) -> int | None:
        """As :meth:`ClusterRun.whole_nodes`; none while nobody was reached."""
        if self._runs is None:
            return 0 if self._verdict is RUNNING else None
        return min((nodes for run in self._runs if (nodes := run.whole_nodes()) is not None), default=None)


def _latest(replies: Sequence[CheckReply]) -> CheckReply | None:
    """The server with the other content at the path that is signed for the latest time."""
    others = [one for one in replies if one.signed_ms is not None and one.says is not Says.HAS]
    return max(others, key=lambda one: one.signed_ms or 0, default=None)


_SHOWN = {
    Says.TAKES: "would take it",
    Says.HAS: "has it",
    Says.HOLDS: "has other content, which is as good",
    Says.NO_CONFIG: "has no such directory",
    Says.REFUSES: "would refuse",
    Says.FAILS: "would fail",
    Says.UNREACHABLE: "cannot be asked",
    Says.CANNOT_TELL: "cannot tell without uploading",
}


def _headline(survey: PreflightSurvey, check: UploadCheck, found: Forecast, new: Fresh | None, scan: Scan) -> str:
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


def _node_line(one: CheckReply, image: ImageId) -> str:
    parts = [f"  {clean(one.host, 80)}  {_SHOWN[one.says]}"]
    if one.code and one.says in (Says.REFUSES, Says.FAILS):
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


def _fields(survey: PreflightSurvey, check: UploadCheck, found: Forecast, new: Fresh | None, scan: Scan) -> dict[str, object]:
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


def _report_node(report: Report, survey: PreflightSurvey, check: UploadCheck, one: CheckReply) -> None:
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


async def survey_all(preflights: Sequence[Preflight], display: Display) -> None:
    """Ask all other nodes of all clusters that were asked, too."""
    surveys = [one.survey for one in preflights if one.rulings]
    display.show(lambda: f"Asking: {count(sum(one.answered for one in surveys), 'node')} answered")
    try:
        await together([one.ask_all() for one in surveys])
    finally:
        display.hide()


def nothing_to_do(preflights: Sequence[Preflight], rule: CompletionRule) -> bool:
    """Tells whether every node of every cluster has exactly what would be uploaded."""
    return all(one.rulings and all(fate_of(one.survey, number, rule).nothing for number in range(len(one.rulings))) for one in preflights)


def fate_of(survey: PreflightSurvey, number: int, rule: CompletionRule) -> Forecast:
    """The verdict on one upload; never a good one while servers share a machine id, nor that all have it while some may not be known."""
    found = forecast(survey.replies[number], rule)
    if found.nothing and (untold := survey.untold()):
        found = replace(found, nothing=False, why=untold)
    complaint = survey.complaint(number)
    return replace(found, exit_code=EXIT_PARTIAL, why=complaint, nothing=False) if complaint and not found.exit_code else found


async def show_forecast(preflights: Sequence[Preflight], scans: Scans, options: SyncOptions, around: AppContext, display: Display) -> int:
    """Show what would become of every upload, by what was answered. Gives the exit code that the upload would likely have."""
    report = around.report
    found: list[Forecast] = []
    uploads: list[dict[str, object]] = []
    for preflight in preflights:
        survey = preflight.survey
        for number, (ruling, check) in enumerate(zip(preflight.rulings, survey.checks, strict=True)):
            scan = scans.with_image(ruling.intent.image)
            fate, new = fate_of(survey, number, options.rule), None
            if not fate.nothing:
                new = await survey.compare(number, await around.in_thread(_index_of, scan), around.in_thread)
                fate = fate_of(survey, number, options.rule)  # some may have no room for it
            if ruling.refusal:
                fate = replace(fate, exit_code=ruling.exit_code, why=f"{ruling.refusal}; nothing would be sent")
            replies = survey.replies[number]
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
