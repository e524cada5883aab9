"""``ciruela status``: what each node of a cluster says of an image, and waiting until enough of them have it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from ciruela.client.contacts import each
from ciruela.client.context import AppContext, make_display
from ciruela.client.errors import CommandError, columns, write_json, write_line
from ciruela.client.ls import SHORT_ID
from ciruela.client.options.reading import StatusOptions
from ciruela.client.progress import Display, names
from ciruela.client.schema import At, Hook, ImageVersion, NodeIdentity, machine_of
from ciruela.client.servers import MetServer, Servers
from ciruela.client.survey import ClusterView, Survey, SurveyedNode, real_survey
from ciruela.client.text import interval, stamp
from ciruela.client.tracker import EXIT_DONE, EXIT_HOOK, EXIT_NETWORK, EXIT_REJECTED
from ciruela.model.errors import CiruelaError, FormatError
from ciruela.model.hooks import HookState
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath

LOOK_S = 1.0
"""With ``--wait`` every node is asked so often: one small page each."""

SURVEY_S = 15.0
"""With ``--wait`` new nodes, and those that did not answer, are looked for so often."""

MOST_UNSEEN = 3
"""Directories that cannot be looked at, of one node, that are named."""


class Stand(Enum):
    """State of an image on one node."""

    COMMITTED = "committed"
    DOWNLOADING = "downloading"
    STALLED = "stalled"
    REJECTED = "rejected"
    GAVE_UP = "gave up"
    OTHER = "other image"
    MISSING = "missing"
    UNKNOWN = "unknown"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node. ``done`` is from 0 to 1; ``age_s``: how long it has been so, as far as that is known. ``hooks`` of the image."""

    node: SurveyedNode
    stand: Stand
    image: str | None = None
    done: float | None = None
    age_s: float | None = None
    signed_ms: int | None = None
    reason: str = ""
    hooks: tuple[Hook, ...] = ()

    @property
    def failed_hooks(self) -> tuple[Hook, ...]:
        """The hooks that failed."""
        return tuple(hook for hook in self.hooks if hook.state == HookState.FAILED.value)

    @property
    def pending_hooks(self) -> bool:
        """Tells whether a hook has not ended."""
        return any(hook.state == HookState.PENDING.value for hook in self.hooks)


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """Answer of a node: ``at``, or ``problem`` why there is no answer."""

    node: SurveyedNode
    at: At | None
    problem: str = ""


def chosen(said: Sequence[NodeAnswer]) -> ImageVersion | None:
    """The image that was signed last, on whichever node; None when there is none at all."""
    versions = [one for entry in said if entry.at is not None for one in (entry.at.committed, entry.at.pending) if one is not None]
    return max(versions, key=lambda one: (one.signed_ms, one.image), default=None)


def judged(said: NodeAnswer, image: str) -> NodeRow | None:
    """Tells how a node stands to ``image``; None when it does not take the directory."""
    at, node = said.at, said.node
    if at is None:
        return NodeRow(node, Stand.UNREACHABLE if node.identity is None else Stand.UNKNOWN, reason=said.problem)
    if not at.taken:
        return None
    if at.pending is not None and at.pending.image == image:
        stand = Stand.STALLED if at.pending.stalled else Stand.DOWNLOADING
        return NodeRow(
            node, stand, image, at.pending.done, at.pending.age_s, at.pending.signed_ms, "nothing comes" if at.pending.stalled else ""
        )
    if at.committed is not None and at.committed.image == image:
        return NodeRow(node, Stand.COMMITTED, image, 1.0, None, at.committed.signed_ms, hooks=at.hooks)
    if at.refused is not None and at.refused.image == image:
        return NodeRow(
            node, Stand.REJECTED if at.refused.rejected else Stand.GAVE_UP, image, None, at.refused.age_s, None, at.refused.reason
        )
    if at.committed is not None:
        return NodeRow(node, Stand.OTHER, at.committed.image, None, None, at.committed.signed_ms, f"has {at.committed.image[:SHORT_ID]}")
    return NodeRow(node, Stand.MISSING)


async def status(options: StatusOptions, around: AppContext, survey: Survey | None = None) -> int:
    """``ciruela status``. Gives the exit code; raises Ends."""
    asking = survey or real_survey(options.common, around)
    display = make_display(options.common, around, options.print_progress_s)
    display.show(lambda: f"Asking the nodes of {options.target.cluster.label}")
    try:
        found = await asking.find(options.target.cluster)
        for name, problem in found.names.items():
            display.problem(name, problem)
        if options.target.vpath is None:
            display.hide()
            return _nodes(options, found, around)
        return await _StatusWatch(options, options.target.vpath, asking, around, display).run(found)
    finally:
        display.hide()


# -- nodes --------------------------------------------------------------------------------------------------------------------


def _nodes(options: StatusOptions, found: ClusterView, around: AppContext) -> int:
    """Shows whether each node is there."""
    rows = [("NODE", "ADDRESS", "STATE", "VERSION", "IMAGES", "DOWNLOADS")]
    well = 0
    for node in found.nodes:
        who = node.identity
        state = "unreachable" if who is None else _state_of(who)
        well += state == "up"
        if options.json:
            write_json(
                around.stdout,
                {
                    "type": "node",
                    "host": node.name,
                    "address": str(node.address),
                    "machine_id": node.machine,
                    "state": state,
                    "version": who.version if who else None,
                    "images": who.images if who else None,
                    "downloads": who.downloads if who else None,
                    "uptime_s": who.uptime_s if who else None,
                    "set_aside": len(who.disk.set_aside) if who else None,
                    "unseen": list(who.disk.unseen) if who else None,
                    "reason": node.problem,
                },
            )
        rows.append((node.name, str(node.address), state, *_numbers(node)))
    code = EXIT_DONE if options.require.met(well, len(found.nodes)) else EXIT_NETWORK
    if options.json:
        write_json(around.stdout, {"type": "summary", "well": well, "nodes": len(found.nodes), "exit_code": code})
        return code
    for line in columns(rows):
        write_line(around.stdout, line)
    write_line(around.stdout, f"{well}/{len(found.nodes)} nodes are up")
    return code


def _state_of(who: NodeIdentity) -> str:
    """Gives the word for the state of a node that answers."""
    return "starting" if not who.ready else "damaged" if who.damaged else "unseen" if who.disk.unseen else "up"


def _numbers(node: SurveyedNode) -> tuple[str, str, str]:
    who = node.identity
    if who is None:
        return node.problem, "", ""
    images = "?" if who.images is None else str(who.images)
    told = [f"{who.damaged} damaged"] if who.damaged else []
    told += [f"{len(who.disk.set_aside)} set aside"] if who.disk.set_aside else []
    told += [f"{names([f'/{key}' for key in who.disk.unseen], MOST_UNSEEN)} cannot be looked at"] if who.disk.unseen else []
    images += f" ({', '.join(told)})" if told else ""
    return who.version, images, "?" if who.downloads is None else str(who.downloads)


# -- an image -----------------------------------------------------------------------------------------------------------------


class _StatusWatch:
    """One image, looked at once or until enough nodes have it."""

    def __init__(self, options: StatusOptions, vpath: VPath, asking: Survey, around: AppContext, display: Display) -> None:
        self._options = options
        self._vpath = vpath
        self._asking = asking
        self._around = around
        self._display = display
        self._image = None if options.image is None else options.image.hex()
        self._rows: list[NodeRow] = []
        self._servers = Servers()
        self._view = self._servers.view()
        self._began_s = around.reactor.seconds()

    async def run(self, found: ClusterView) -> int:
        clock = self._around.reactor
        surveyed_s = told_s = self._began_s
        self._servers = found.servers(self._vpath.key)
        if self._options.wait:
            self._display.show(self._line)
        while True:
            await self._look(found)
            now_s = clock.seconds()
            left_s = self._began_s + self._options.deadline_s - now_s
            if not self._options.wait or self._met() or left_s <= 0:
                return self._end(late=self._options.wait and not self._met())
            if now_s - told_s >= self._options.print_progress_s:
                told_s = now_s
                self._tell()
            await _sleep(self._around, min(LOOK_S, left_s))
            if clock.seconds() - surveyed_s >= SURVEY_S:
                surveyed_s = clock.seconds()
                found = await self._again(found)
                self._servers = found.servers(self._vpath.key)

    async def _again(self, found: ClusterView) -> ClusterView:
        """Finds who is there now. That nobody answers for a moment does not end the wait."""
        try:
            return await self._asking.find(self._options.target.cluster)
        except CommandError:
            return found

    async def _look(self, found: ClusterView) -> None:
        said = await each(found.nodes, self._ask)
        taking = [one for one in said if one.at is not None and one.at.taken]
        if not taking and not any(one.at is None for one in said):
            if self._options.wait and self._rows:
                return
            raise CommandError(
                EXIT_REJECTED, f"no node of {self._options.target.cluster.label} takes {self._vpath} (ciruela ls tells what there is)"
            )
        image = self._image
        if image is None:
            newest = chosen(said)
            image = newest.image if newest is not None else ""
            if self._options.wait and newest is not None:
                self._image = image
        servers = self._servers
        for one in said:
            if one.at is not None and one.node.identity is not None:
                where, epoch_ms = str(one.node.address), one.node.identity.epoch_ms
                servers.meet(MetServer(where, machine_of(one.node.machine), one.node.name, one.at.taken, epoch_ms))
        self._view = servers.view()
        self._rows = [row for one in said if self._counts(one.node) and (row := judged(one, image)) is not None]

    def _counts(self, node: SurveyedNode) -> bool:
        """Tells whether a node is one of those that an upload expects: by its machine, or by its address where nobody knows that.

        An entry point that does not answer, and of which no node speaks, counts, too.
        """
        machine = machine_of(node.machine)
        if machine is not None:
            return machine in self._view.machines
        return node.machine is not None or node.dirs is None or self._vpath.key in node.dirs

    async def _ask(self, node: SurveyedNode) -> NodeAnswer:
        if node.identity is None:
            return NodeAnswer(node, None, node.problem)
        if not node.identity.ready:
            return NodeAnswer(node, None, "it is starting")
        try:
            return NodeAnswer(node, await self._asking.at(node, self._vpath))
        except FormatError as error:
            return NodeAnswer(node, None, str(error))
        except CiruelaError as error:
            return NodeAnswer(SurveyedNode(node.name, node.address, node.machine, None, dirs=node.dirs), None, str(error))

    def _done(self) -> int:
        return sum(row.stand is Stand.COMMITTED for row in self._rows)

    def _met(self) -> bool:
        """Tells whether enough nodes have it. Several that share a machine id cannot be told from each other, so that it never is."""
        enough = self._options.require.met(self._done(), len(self._rows)) and not self._view.shared
        return enough and not (self._options.wait and any(row.pending_hooks for row in self._rows))

    def _line(self) -> str:
        waited = interval(self._around.reactor.seconds() - self._began_s)
        others = [f"{row.node.name} {_state(row)}" for row in self._rows if row.stand is not Stand.COMMITTED]
        return f"{self._options.target}  {self._done()}/{len(self._rows)} nodes  {waited}  {', '.join(others[:3])}"

    def _tell(self) -> None:
        """A line for a log."""
        label, when = self._options.target.cluster.label, stamp(self._around.now_ms())
        self._display.log_line(f"{when} progress cluster={label} path={self._vpath} done={self._done()} want={len(self._rows)}")

    def _end(self, *, late: bool) -> int:
        self._display.hide()
        options, rows = self._options, self._rows
        image = self._image or next((row.image for row in rows if row.stand is Stand.COMMITTED), None)
        image = image or next((row.image for row in rows if row.image is not None), None)
        failed = any(row.failed_hooks for row in rows)
        code = EXIT_NETWORK if not self._met() else EXIT_HOOK if failed else EXIT_DONE
        if complaint := self._view.complaint():
            self._display.problem(options.target.cluster.label, complaint)
        if options.json:
            for row in rows:
                write_json(self._around.stdout, self._as_json(row))
            outcome = "done" if code != EXIT_NETWORK else "deadline" if late else "incomplete"
            total: dict[str, object] = {"type": "summary", "outcome": outcome, "path": str(self._vpath), "image": image}
            total |= {"committed": self._done(), "expected": len(rows), "exit_code": code}
            shared = [{"machine_id": one.machine.hex(), "addresses": list(one.addresses)} for one in self._view.shared]
            write_json(self._around.stdout, {**total, "shared_ids": shared})
            return code
        shown = [(row.node.name, _state(row), _since(row), _hooks(row), row.reason) for row in rows]
        for line in columns([("NODE", "STATE", "SINCE", "HOOKS", "WHY"), *shown]):
            write_line(self._around.stdout, line)
        what = f"image {image}" if image else "no image"
        write_line(self._around.stdout, f"{options.target}  {self._done()}/{len(rows)} nodes  {what}")
        if late:
            self._display.problem("", f"not on enough nodes after {interval(options.deadline_s)}; the nodes go on by themselves")
        return code

    def _as_json(self, row: NodeRow) -> dict[str, object]:
        return {
            "type": "node",
            "cluster": self._options.target.cluster.label,
            "host": row.node.name,
            "address": str(row.node.address),
            "machine_id": row.node.machine,
            "path": str(self._vpath),
            "image": row.image,
            "state": row.stand.value,
            "done": row.done,
            "signed_ms": row.signed_ms,
            "age_s": row.age_s,
            "reason": row.reason,
            "hooks": [{"kind": hook.kind, "state": hook.state, "message": hook.message} for hook in row.hooks],
        }


async def _sleep(around: AppContext, seconds: float) -> None:
    waiting: Deferred[None] = deferLater(around.reactor, seconds)
    await waiting


def _state(row: NodeRow) -> str:
    if row.done is not None and row.stand in (Stand.DOWNLOADING, Stand.STALLED):
        return f"{row.stand.value} {int(row.done * 100)}%"
    return row.stand.value


def _hooks(row: NodeRow) -> str:
    """Describes the hooks of a node: what failed, else what is awaited, else that all went well."""
    if row.failed_hooks:
        return "; ".join(hook.failure for hook in row.failed_hooks)
    if row.pending_hooks:
        return "pending"
    return "ok" if row.hooks else ""


def _since(row: NodeRow) -> str:
    """Says how long a node has been in its state; of an image that is there, when it was signed."""
    if row.age_s is not None:
        return interval(row.age_s)
    if row.signed_ms is not None and row.stand in (Stand.COMMITTED, Stand.OTHER):
        try:
            return f"signed {stamp(row.signed_ms)}"
        except (OverflowError, ValueError, OSError):
            return "?"
    return ""
