"""The run of ``ciruela sync`` on one cluster: one connection set, shared by all uploads (protocol sections 6.2 and 6.3).

Everything that would make a run unrepeatable is handed in as :class:`RunContext`, so that the same code runs over memory links in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.defer import TimeoutError as AnswerTimeout
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.client.contacts import ClosableLink, Contacts, RunContext, ServerProbes
from ciruela.client.listener import Listener, NodeNews, UploadRow
from ciruela.client.offers import PieceOffers
from ciruela.client.options.sync import CONNECTIONS
from ciruela.client.servers import ServerRow as ServerRow
from ciruela.client.servers import shared_text
from ciruela.client.source import BlockProvider
from ciruela.client.text import count
from ciruela.client.tracker import (
    EXIT_CONFLICT,
    RUNNING,
    CompletionRule,
    ConnectionReach,
    UploadOutcome,
    Verdict,
    meaning_of,
)
from ciruela.client.uploadrun import ANSWER_TIMEOUT_S, NodeRequest, RunEnd, Upload, UploadRun
from ciruela.interfaces import Address, BlockGiving, Connection
from ciruela.model.errors import Busy, LinkLost, RemoteError
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.upload import RejectReason
from ciruela.model.values import dataclass
from ciruela.proto.messages import (
    AbortedImage,
    BlocksData,
    ExchangePieces,
    GetBlock,
    GetBlocks,
    GetIndex,
    GetPathState,
    GetShare,
    HookResult,
    ImageContent,
    Notification,
    PathStateData,
    PublishImage,
    ReceivedImage,
    RemovedImage,
    Request,
    Response,
    ShareData,
    UploadAck,
    WithdrawUpload,
)
from ciruela.proto.table import deadly, no_images_at
from ciruela.runtime import Alarm, PeriodicTask, RepeatLimiter

SERVERS_S = 3.0
"""Interval at which each connected node is asked for the servers that it knows: what it learns later counts, too."""

ROWS_S = 100
"""In large clusters more seldom: at most so many servers a second are told on each connection."""

MOST_TROUBLES = 3
"""Reasons that are named when no node was ever reached."""

BEAT_S = 1.0
"""Interval at which nodes are asked and tried again. No verdict waits for it: see :meth:`ClusterRun._look_again`."""

SAME_INDEX = 3
SAME_INDEX_S = 10.0
"""A node gets the same index so many times at once, besides once for each path, and once more after so long: a daemon of the reference
that cannot read it asks again as fast as it is answered."""

CONNECT_PATIENCE_S = 1.0
"""Time for which a connection that is being made holds up the verdict "done": a node that was not heard of may be behind it."""


"""An image, and the path where it is to be."""


@dataclass(frozen=True, slots=True)
class EntryPoints:
    """The ``names`` that lead to a cluster, what it is called on the screen, and how much of it is asked.

    ``connections``: accepting connections that each upload keeps; the client gives its data to at most so many nodes.
    """

    label: str
    names: Sequence[str]
    connections: int = CONNECTIONS


class _OpenConnection:
    """One open connection."""

    def __init__(self, address: Address, link: ClosableLink) -> None:
        self.address = address
        self.link = link
        self.published: dict[ImageId, None] = {}


class ClusterRun:
    """All uploads to one cluster over one set of connections. Also the request handler of these connections."""

    _log = Logger()

    def __init__(
        self,
        entry: EntryPoints,
        uploads: Sequence[Upload],
        rule: CompletionRule,
        world: RunContext,
        source: BlockProvider,
        listener: Listener,
    ) -> None:
        self._most_connections = entry.connections
        self.label = entry.label
        self._rule = rule
        self._world = world
        self._source = source
        self._listener = listener
        self._runs = [UploadRun(upload, world.clock) for upload in uploads]
        self._contacts = Contacts(entry.names, world.clock, world.rng, world.resolve, self._step, self._no_name)
        self._probes = ServerProbes(world.clock, world.connect, self._paths, self._probed, self._step)
        self._troubles: dict[str, None] = {}
        self.met: Callable[[ClusterRun, MachineId, str], None] = lambda _run, _machine, _name: None
        self._peers: dict[Address, _OpenConnection] = {}
        self._by_link: dict[int, _OpenConnection] = {}
        self._repeats = RepeatLimiter(world.clock, SAME_INDEX_S)
        self._shares = source.shares()
        self._offers = PieceOffers(world.clock, world.rng, self._shares, entry.label, wide=source.wide)
        self._connecting: dict[Address, tuple[float, Deferred[ClosableLink]]] = {}
        self._answers: set[Deferred[Response]] = set()
        self._beat = PeriodicTask(world.clock, world.rng, BEAT_S, self._look_around, f"judging the uploads to {entry.label}")
        self._told: set[str] = set()
        self._began_s = world.clock.seconds()
        self._alarm = Alarm(world.clock, self._step, f"judging the uploads to {entry.label}")
        self._stepping = self._again = self._over = False
        self._finished: Deferred[None] = Deferred(lambda _: self.stop())

    # -- life ---------------------------------------------------------------------------------------------------------------------

    def start(self) -> Deferred[None]:
        """Begin. Fires when every upload has a verdict; cancel to give up."""
        self._began_s = self._world.clock.seconds()
        self._beat.start()
        self._offers.start()
        self._step()
        return self._finished

    def stop(self) -> None:
        """Close all connections and forget what is under way."""
        if self._over:
            return
        self._over = True
        self._beat.stop()
        self._offers.stop()
        self._alarm.set(None)
        self._contacts.stop()
        self._probes.stop()
        for _, waiting in list(self._connecting.values()):
            waiting.cancel()
        for request in [request for run in self._runs for request in run.requests.values() if request.due]:
            request.events.let_go()
        for answer in list(self._answers):
            answer.cancel()
        for peer in list(self._peers.values()):
            peer.link.close()

    def rows(self) -> list[UploadRow]:
        """Gives the state of every upload now."""
        now_s = self._world.clock.seconds()
        return [
            UploadRow(
                self.label,
                run.book.path,
                run.book.image,
                run.verdict,
                run.standing,
                run.sent_bytes,
                run.upload.total_bytes,
                (run.end.at_s if run.end else now_s) - self._began_s,
                run.hooks.standing(),
                self._shares[run.book.image].given if run.book.image in self._shares else None,
                self._shares[run.book.image].given_bytes if run.book.image in self._shares and not run.uncounted else None,
            )
            for run in self._runs
        ]

    def whole_nodes(self) -> int | None:
        """The smallest number of nodes that have one of the running uploads as a whole; None when nothing runs."""
        return min((run.book.done_machines() for run in self._running()), default=None)

    def source_changed(self, image: ImageId, text: str) -> None:
        """A directory can no longer be served as it was indexed."""
        hit = [run for run in self._runs if run.book.image == image and not run.end]
        for run in hit:
            run.book.local_problem(text)
        if hit:
            self.problem(text)
            self._step()

    def problem(self, text: str) -> None:
        """Show a problem, once."""
        if text not in self._told and not self._over:
            self._told.add(text)
            self._listener.problem(self.label, text)

    def _tell_all(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.problem(text)

    # -- deciding -----------------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Ask, connect, judge: after each event, each beat and each alarm. Events that come in meanwhile are dealt with in one more round.

        New connections are begun before the verdict, because one that was just begun may bring a node that counts.
        """
        if self._stepping:
            self._again = True
            return
        self._stepping = self._again = True
        try:
            while self._again and not self._over:
                self._again = False
                self._reach_out()
                self._judge()
        finally:
            self._stepping = False

    def _judge(self) -> None:
        now_s = self._world.clock.seconds()
        for run in self._running():
            reach = self._reach(run, now_s)
            if run.taken_back:
                verdict = RUNNING if run.outstanding else Verdict(UploadOutcome.REJECTED, EXIT_CONFLICT, run.taken_back)
            else:
                verdict = run.book.verdict(self._rule, now_s - self._began_s, reach)
                verdict = run.hooks.verdict(verdict, now_s - self._began_s, self._rule.deadline_s)
            if verdict.outcome is not UploadOutcome.RUNNING:
                run.end = RunEnd(verdict, run.book.standing(), now_s)
                self._tell_all(run.untold_refusals())
            elif not run.hindered and reach.unreached and (why := run.book.hindrance(self._rule, reach)):
                run.hindered = True
                self.problem(f"{run.book.path} {why}")
        if not self._running():
            self.stop()
            if not self._finished.called:
                self._finished.callback(None)
        else:
            self._look_again(now_s)

    def _look_again(self, now_s: float) -> None:
        """Set the alarm for the next moment at which time alone may change a verdict."""
        limits_s = (self._rule.connect_timeout_s, self._rule.early_timeout_s, self._rule.deadline_s)
        moments_s = [self._began_s + limit_s for limit_s in limits_s]
        moments_s += [since_s + CONNECT_PATIENCE_S for since_s, _ in self._connecting.values()]
        self._alarm.set(min((moment_s for moment_s in moments_s if moment_s > now_s), default=None))

    def _reach(self, run: UploadRun, now_s: float) -> ConnectionReach:
        young = any(now_s < since_s + CONNECT_PATIENCE_S for since_s, _ in self._connecting.values())
        asking = any(self._probes.untried(address) for row in run.book.view.strangers for address in self._addresses(row))
        return ConnectionReach(
            busy=self._contacts.resolving or young or asking,
            exhausted=self._contacts.exhausted(run.book.refused),
            reached=bool(self._probes.reached),
            trouble="; ".join(list(self._troubles)[-MOST_TROUBLES:]),
            unreached=self._probes.unreached,
        )

    def _running(self) -> list[UploadRun]:
        return [run for run in self._runs if not run.end]

    def _reach_out(self) -> None:
        running = self._running()
        for run in running:
            if run.taken_back:
                self._take_back(run)
        for peer in list(self._peers.values()):
            if all(run.book.refused(peer.address) for run in running):
                peer.link.close()
        running = [run for run in running if not run.taken_back]
        for run in running:
            for address, request in list(run.requests.items()):
                if not (request.state or run.book.refused(address) or run.pause.blocked(address)):
                    self._ask(request)
        for run in running:  # all were asked before a connection is made, which may be there at once: orders go out in their order
            usable = sum(not run.book.refused(address) for address in (*self._peers, *self._connecting))
            missing = self._most_connections - usable
            if missing > 0:
                self._contacts.look_up(missing)
                for address in self._contacts.pick(missing, lambda known, run=run: self._skip(run, known)):  # type: ignore[misc]
                    self._connect(address)

    def _skip(self, run: UploadRun, address: Address) -> bool:
        return address in self._peers or address in self._connecting or run.book.refused(address)

    # -- connections --------------------------------------------------------------------------------------------------------------

    def _connect(self, address: Address) -> None:
        waiting = maybeDeferred(self._world.connect, address, self)
        self._connecting[address] = (self._world.clock.seconds(), waiting)
        waiting.addCallbacks(self._connected, self._unconnected, callbackArgs=(address,), errbackArgs=(address,))
        waiting.addErrback(
            lambda failure: self._log.failure("a new connection to {address} was not taken in", failure, address=str(address))
        )

    def _connected(self, link: ClosableLink, address: Address) -> None:
        self._connecting.pop(address, None)
        peer = _OpenConnection(address, link)
        self._peers[address] = peer
        self._by_link[id(link)] = peer
        for run in self._running():
            run.requests[address] = NodeRequest(run, address, link, self._world.clock)
        self._contacts.connected(address)
        self._probes.connected(address)
        self._step()

    def _unconnected(self, failure: Failure, address: Address) -> None:
        self._connecting.pop(address, None)
        if failure.check(CancelledError) and self._over:
            return
        self._contacts.failed(address)
        self._probes.failed(address)
        what = failure.getErrorMessage() or type(failure.value).__name__
        label = self._contacts.label(address)
        for run in self._running():
            self._tell(run, label, "unreachable", code="unreachable", message=what, address=address)
        trouble = what if label in what else f"{label}: {what}"
        self._troubles[trouble] = None
        self.problem(f"{trouble}; trying again")
        self._step()

    def _no_name(self, text: str) -> None:
        """A name did not lead to an address."""
        self._troubles[text.removesuffix("; trying again")] = None
        self.problem(text)

    def _where(self, address: Address) -> str:
        label = self._contacts.label(address)
        return label if label in (str(address), address.host) else f"{label} ({address})"

    def lost(self, link: Connection) -> None:
        """A connection ended; it is replaced by the usual rules."""
        peer = self._by_link.pop(id(link), None)
        self._repeats.left(id(link))
        if peer is None:
            return
        del self._peers[peer.address]
        for shares in self._shares.values():
            shares.left(peer)
        self._offers.lost(peer.link)
        for run in self._runs:
            if (request := run.requests.pop(peer.address, None)) is not None:
                request.events.let_go()
            run.book.lost(peer.address)
        self._contacts.failed(peer.address)
        if not self._over:
            if any(not run.book.refused(peer.address) for run in self._running()):
                self._listener.note(self.label, f"the connection to {self._where(peer.address)} ended")
            self._step()

    # -- requests -----------------------------------------------------------------------------------------------------------------

    def _ask(self, request: NodeRequest) -> None:
        run, address, link = request.run, request.address, request.link
        run.book.asked(address, self._contacts.label(address), servers=link.bulk)
        if not link.bulk and deadly(run.upload.request) is not None:  # guard: I8
            self._answered(UploadAck(False, RejectReason.CONFIG_LEVEL_MISMATCH.value, detail=no_images_at(run.book.path)), request)
            return
        if self._shares:
            self._peers[address].published[run.book.image] = None
            link.tell(PublishImage(run.book.image))
        message = run.upload.message(self._brought(request))
        request.events.ask(message, self._answered, self._unanswered)
        if link.bulk:
            self._ask_servers(request)

    def _brought(self, request: NodeRequest) -> ImageContent | None:
        """A small image itself, for a node that knows what to do with it."""
        image = request.run.book.image
        return self._source.content(image) if request.link.exchanges else None  # guard: K6.2, -> self._source.content(image)

    def _answered(self, response: Response, request: NodeRequest) -> None:
        run, address = request.run, request.address
        if not isinstance(response, UploadAck):
            self._refused_to_say(request, f"unexpected {type(response).__name__}")
            return
        request.events.answered()
        self._contacts.succeeded(address)
        run.pause.succeeded(address)
        run.book.answered(address, response)
        content = self._brought(request)
        if content is not None and response.accepted and not run.book.has(address):
            self._shares[run.book.image].gave(range(self._shares[run.book.image].pieces.block_count))
            self._sent(run.book.image, len(content.index) + len(content.blocks))
        self._contacts.heard(response.hosts.values())
        if response.machine is not None:
            self.met(self, response.machine, response.hostname)
        host = response.hostname or self._contacts.label(address)
        reason = response.reject_reason or "refused without a reason"
        state = "accepted" if response.accepted else "refused"
        if response.accepted:
            run.promised.add(address)
        self._tell(
            run,
            host,
            state,
            response.machine,
            code=response.reject_reason or "",
            message=response.detail,
            known=len(response.hosts),
            address=address,
        )
        where = self._where(address)
        if response.accepted:
            self._listener.note(self.label, f"{where} {run.book.path} accepted; it knows {count(len(response.hosts), 'more node')}")
        elif run.book.refused(address) and response.reject_reason != "no_config":
            run.refusals.setdefault(f"{reason}: {response.detail}" if response.detail else reason, []).append(where)
        else:
            self._listener.note(self.label, f"{where} {run.book.path} {reason}")
        if request.link.bulk and not run.taken_back and run.upload.takes_back(response.reject_reason):  # guard: K2.1 K2.2
            run.taken_back = f"{where} refused: {meaning_of(response.reject_reason or '')}"
        self._step()

    def _take_back(self, run: UploadRun) -> None:
        """Tell all that accepted it to give it up: it must not stand beside what one of them has already."""
        for address, request in list(run.requests.items()):
            if address in run.promised and request.link.bulk and not request.due:  # guard: K2.1, without 3
                run.promised.discard(address)
                request.events.take_back(WithdrawUpload(run.book.path, run.book.image), self._withdrawn, self._not_withdrawn)

    def _withdrawn(self, response: Response, request: NodeRequest) -> None:
        request.events.answered()
        run, where = request.run, self._where(request.address)
        if isinstance(response, UploadAck) and response.accepted:
            run.book.withdrew(request.address)
            self._tell(run, where, "withdrawn")
            self._listener.note(self.label, f"{where} {run.book.path} gave it up again")
        else:
            detail = response.detail if isinstance(response, UploadAck) else f"unexpected {type(response).__name__}"
            self.problem(" ".join(filter(None, (where, run.book.path, "does not give it up again:", detail or "it is there"))))
        self._step()

    def _not_withdrawn(self, failure: Failure, request: NodeRequest) -> None:
        if not failure.check(CancelledError):
            request.events.answered()
            text = f"no answer within {ANSWER_TIMEOUT_S:.0f} s" if failure.check(AnswerTimeout) else failure.getErrorMessage()
            self.problem(f"{self._where(request.address)} {request.run.book.path} does not give it up again: {text}")
            self._step()

    # -- who else is there --------------------------------------------------------------------------------------------------------

    def _paths(self) -> list[str]:
        return list(dict.fromkeys(run.book.path for run in self._running()))

    def _addresses(self, row: ServerRow) -> list[Address]:
        """Gives the addresses at which a server may be asked."""
        return [address for text in row.addresses if (address := self._contacts.allowed(text)) is not None]

    def _look_around(self) -> None:
        """Each beat: ask connected nodes for the servers that they know by now, and those servers that nobody hears."""
        now_s = self._world.clock.seconds()
        for run in self._running():
            self._tell_all(run.untold_refusals())
            every_s = max(SERVERS_S, len(run.book.view.machines) / ROWS_S)
            for request in list(run.requests.values()):
                if now_s >= request.servers_asked_s + every_s:
                    self._ask_servers(request)
        self._probe()
        self._step()

    def _probe(self) -> None:
        """Ask those servers themselves that nobody hears or vouches for, and after the early timeout all that are missing."""
        late = self._world.clock.seconds() - self._began_s >= self._rule.early_timeout_s
        connected = {str(address) for address in self._peers}
        for run in self._running():
            missing = [row for row in run.book.missing() if late or row.silent or row.unproved]
            for row in (*run.book.view.strangers, *missing):
                if connected.isdisjoint(row.addresses):
                    self._probes.probe(self._addresses(row))

    def _ask_servers(self, request: NodeRequest) -> None:
        request.servers_asked_s = float("inf")
        answer = request.link.ask(GetPathState(request.run.book.path, servers=True))
        self._answers.add(answer)
        answer.addBoth(self._forget, answer)
        answer.addTimeout(ANSWER_TIMEOUT_S, self._world.clock)
        answer.addCallbacks(self._told_servers, self._told_no_servers, callbackArgs=(request,), errbackArgs=(request,))
        answer.addErrback(lambda failure: self._log.failure("what {peer} said was not booked", failure, peer=str(request.address)))

    def _forget(self, result: Response | Failure, answer: Deferred[Response]) -> Response | Failure:
        self._answers.discard(answer)
        return result

    def _told_servers(self, response: Response, request: NodeRequest) -> None:
        request.servers_asked_s = self._world.clock.seconds()
        if isinstance(response, PathStateData):
            self._said(request.run, request.address, response)
        else:
            request.run.book.said_nothing(request.address)
        self._probe()
        self._step()

    def _told_no_servers(self, failure: Failure, request: NodeRequest) -> None:
        """It is lost, or an older node of ours that knows no such question."""
        if failure.check(CancelledError, LinkLost):
            return
        if not failure.check(Busy):  # guard: K1.1, -> True
            request.run.book.said_nothing(request.address)
        if failure.check(Busy) or not failure.check(RemoteError):
            request.servers_asked_s = self._world.clock.seconds()
        self._step()

    def _probed(self, address: Address, path: str, data: PathStateData) -> None:
        for run in self._running():
            if run.book.path == path:
                self._said(run, address, data)
        self._contacts.served([str(address)] if data.taken else [])
        self._probe()

    def _said(self, run: UploadRun, address: Address, data: PathStateData) -> None:
        run.book.said(address, data)
        self.met(self, data.machine, data.hostname)
        for server in data.servers:
            if server.machine is not None and server.configured:
                self.met(self, server.machine, server.name)
        view = run.book.view
        self._contacts.served(text for row in view.rows() if not row.silent for text in row.addresses)  # guard: K1.1 I7
        self._tell_all(map(shared_text, view.shared))

    def _unanswered(self, failure: Failure, request: NodeRequest) -> None:
        if failure.check(CancelledError, LinkLost):
            return
        if failure.check(AnswerTimeout):
            self._refused_to_say(request, f"no answer within {ANSWER_TIMEOUT_S:.0f} s")
        else:
            text = failure.getErrorMessage() or type(failure.value).__name__
            self._refused_to_say(request, text, busy=failure.check(Busy) is not None)

    def _refused_to_say(self, request: NodeRequest, text: str, *, busy: bool = False) -> None:
        """``Error``, or no answer: ask again, later each time, and in the end take it for a refusal (C33)."""
        run, address = request.run, request.address
        again = run.book.errored(address, text, busy=busy)
        self._tell(run, self._contacts.label(address), "error", code="busy" if busy else "error", message=text, address=address)
        if again:
            run.pause.failed(address)
            request.events.put_off()
        else:
            request.events.answered()
        self.problem(f"{self._where(address)} {run.book.path} {text}{'; trying again' if again else ''}")
        self._step()

    def _tell(
        self,
        run: UploadRun,
        host: str,
        state: str,
        machine: MachineId | None = None,
        code: str = "",
        message: str = "",
        known: int = 0,
        address: Address | None = None,
    ) -> None:
        where = "" if address is None else str(address)
        if not where and machine is not None and machine in run.book.view.machines:
            where = next(iter(run.book.view.machines[machine].addresses), "")
        self._listener.node(NodeNews(self.label, run.book.path, host, machine, state, code, message, known, where))

    # -- what the nodes ask and tell ----------------------------------------------------------------------------------------------

    def requested(self, link: Connection, request: Request) -> Deferred[Response]:
        """Serve an index or blocks to a node that we published it to, or a share of them."""
        peer = self._by_link.get(id(link))
        published = peer.published if peer is not None else {}
        if isinstance(request, GetIndex):
            paths = sum(run.book.image == request.image for run in self._runs)
            again = self._repeats.refused(id(link), request.image, SAME_INDEX + paths)  # guard: K6.2, -> None
            if again is not None:
                return again
        if isinstance(request, GetShare) and request.image in published:
            return maybeDeferred(self._shares[request.image].take, peer, request.missing).addCallback(ShareData)
        if isinstance(request, GetBlock):
            for run in self._runs:
                run.uncounted = True  # a block by its hash may stand at many places, and be asked for again
        answer = self._source.answer(request, published, self._sent)
        if isinstance(request, GetBlocks) and request.image in published:
            answer.addCallback(self._gave, request)
        return answer

    def giving(self, link: Connection, request: GetBlocks) -> Deferred[BlockGiving]:
        """As :meth:`requested`, over a bulk connection."""
        peer = self._by_link.get(id(link))
        giving = self._source.giving(request, peer.published if peer is not None else {}, self._sent)

        def made(blocks: BlocksData) -> None:
            giving.made(blocks)
            self._shares[request.image].gave(request.numbers)

        return succeed(BlockGiving(giving.make, made, giving.reads))

    def _gave(self, response: Response, request: GetBlocks) -> Response:
        self._shares[request.image].gave(request.numbers)
        return response

    def _sent(self, image: ImageId, size: int) -> None:
        for run in sorted(self._runs, key=lambda run: run.end is not None):
            if run.book.image == image:
                run.sent_bytes += size
                return

    def answered(self, link: Connection, request: Request, given: bool) -> None:
        """Note that blocks were given, so that more may be offered."""
        peer = self._by_link.get(id(link))
        if peer is not None and isinstance(request, GetBlocks) and request.image in peer.published:
            self._offers.answered(peer.link, request, given)

    def notified(self, link: Connection, notification: Notification) -> None:
        """Book the arrival of an image, or that a node gave it up."""
        peer = self._by_link.get(id(link))
        if peer is None:
            return
        if isinstance(notification, ExchangePieces):
            known = any((run.book.image, run.book.path) == (notification.image, notification.path) for run in self._runs)
            if known and notification.image in peer.published:
                self._offers.heard(peer.link, notification)
            return
        for run in self._running():
            before = run.book.revision
            hooked = False
            match notification:
                case ReceivedImage() | RemovedImage() if run.book.received(peer.address, notification):
                    self._tell(run, notification.hostname, "done", notification.machine_id)
                    self._listener.note(self.label, f"{notification.hostname} {run.book.path} {run.book.done_by('has')}")
                case AbortedImage() if run.book.aborted(peer.address, notification):
                    word, _, detail = notification.reason.partition(":")
                    self._tell(run, notification.hostname, "gave-up", notification.machine_id, word, detail.strip())
                    self.problem(f"{notification.hostname} {run.book.path} {notification.reason}")
                case HookResult():
                    hooked = run.hooks.heard(notification)
                case _:
                    pass
            if hooked or run.book.revision != before:
                self._step()
