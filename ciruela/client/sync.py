"""The run of ``ciruela sync`` on one cluster: one connection set, shared by all uploads (protocol sections 6.2 and 6.3).

Everything that would make a run unrepeatable is handed in as :class:`World`, so that the same code runs over memory links in tests.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.defer import TimeoutError as AnswerTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.client.book import RUNNING, Book, Outcome, Reach, Rule, Standing, Verdict
from ciruela.client.contacts import Contacts, Resolve
from ciruela.client.hooks import NO_HOOKS, HookAccount, HookStanding
from ciruela.client.listener import Listener, NodeNews
from ciruela.client.source import Giver
from ciruela.clockwork import Backoff, Beat, Repeats
from ciruela.model.errors import Busy, LinkLost
from ciruela.model.ids import ImageId, MachineId
from ciruela.proto.messages import (
    AbortedImage,
    AppendDir,
    GetIndex,
    GetShare,
    HookResult,
    Notification,
    PublishImage,
    ReceivedImage,
    RemovedImage,
    RemoveDir,
    ReplaceDir,
    Request,
    Response,
    ShareData,
    UploadAck,
)
from ciruela.seams import Address, Counterpart, Link

CONNECTIONS = 3
"""Accepting connections that each upload keeps: the client gives its data to at most so many nodes."""

BEAT_S = 1.0
"""How often everything is judged anew when nothing happens."""

ANSWER_TIMEOUT_S = 30.0
"""An answer to a request needs a signature check and a few small files; a node that takes longer is asked again."""

SAME_INDEX = 3
SAME_INDEX_S = 10.0
"""A node gets the same index so many times at once, besides once for each path, and once more after so long: a daemon of the reference
that cannot read it asks again as fast as it is answered."""

CONNECT_PATIENCE_S = 1.0
"""How long a connection that is being made holds up the verdict "done": a node that was not heard of may be behind it."""


class ClosableLink(Link, Protocol):
    """A link of ours, which we may end."""

    def close(self, reason: str = "closed by us") -> None:
        """Close the connection."""


Connect = Callable[[Address, Counterpart], Deferred[Any]]
"""Connects to an address; fires with a :class:`ClosableLink`."""


@dataclass(frozen=True, slots=True)
class World:
    """What the run needs from outside."""

    clock: IReactorTime
    rng: random.Random
    connect: Connect
    resolve: Resolve


@dataclass(frozen=True, slots=True)
class Upload:
    """One signed wish, ready to be sent. ``total_bytes`` of all files of the image."""

    request: AppendDir | ReplaceDir | RemoveDir
    weak: bool
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """One upload to one cluster, as it stands now. ``sent_bytes`` really went out; ``elapsed_s`` stops when it is over.

    ``given`` is :attr:`ciruela.client.shares.Shares.given`.
    """

    cluster: str
    path: str
    image: ImageId
    verdict: Verdict
    standing: Standing
    sent_bytes: int
    total_bytes: int
    elapsed_s: float
    hooks: HookStanding = NO_HOOKS
    given: float | None = None


class _Run:
    """One upload on one cluster."""

    def __init__(self, upload: Upload, clock: IReactorTime) -> None:
        self.upload = upload
        self.book = Book(upload.request.path, upload.request.image, upload.weak, isinstance(upload.request, RemoveDir))
        self.hooks = HookAccount(upload.request.path, upload.request.image)
        self.asked: set[Address] = set()
        self.pause: Backoff[Address] = Backoff(clock)
        self.sent_bytes = 0
        self.verdict = RUNNING
        self.ended_s = 0.0


class _Peer:
    """One open connection."""

    def __init__(self, address: Address, link: ClosableLink) -> None:
        self.address = address
        self.link = link
        self.published: dict[ImageId, None] = {}


class ClusterRun:
    """All uploads to one cluster over one set of connections. Also the counterpart of these connections."""

    _log = Logger()

    def __init__(
        self,
        label: str,
        names: Sequence[str],
        uploads: Sequence[Upload],
        rule: Rule,
        world: World,
        source: Giver,
        listener: Listener,
        connections: int = CONNECTIONS,
    ) -> None:
        self._most_connections = connections
        self.label = label
        self._rule = rule
        self._world = world
        self._source = source
        self._listener = listener
        self._runs = [_Run(upload, world.clock) for upload in uploads]
        self._contacts = Contacts(names, world.clock, world.rng, world.resolve, self._step, self._problem)
        self._peers: dict[Address, _Peer] = {}
        self._by_link: dict[int, _Peer] = {}
        self._repeats = Repeats(world.clock, SAME_INDEX_S)
        self._shares = source.shares()
        self._connecting: dict[Address, tuple[float, Deferred[ClosableLink]]] = {}
        self._answers: set[Deferred[Response]] = set()
        self._beat = Beat(world.clock, world.rng, BEAT_S, self._step, f"judging the uploads to {label}")
        self._told: set[str] = set()
        self._began_s = world.clock.seconds()
        self._stepping = self._again = self._over = False
        self._finished: Deferred[None] = Deferred(lambda _: self.stop())

    # -- life ---------------------------------------------------------------------------------------------------------------------

    def start(self) -> Deferred[None]:
        """Begin. Fires when every upload has a verdict; cancel to give up."""
        self._began_s = self._world.clock.seconds()
        self._beat.start()
        self._step()
        return self._finished

    def stop(self) -> None:
        """Close all connections and forget what is under way."""
        if self._over:
            return
        self._over = True
        self._beat.stop()
        self._contacts.stop()
        for _, waiting in list(self._connecting.values()):
            waiting.cancel()
        for answer in list(self._answers):
            answer.cancel()
        for peer in list(self._peers.values()):
            peer.link.close()

    def rows(self) -> list[Row]:
        """How every upload stands now."""
        now_s = self._world.clock.seconds()
        return [
            Row(
                self.label,
                run.book.path,
                run.book.image,
                run.verdict,
                run.book.standing(),
                run.sent_bytes,
                run.upload.total_bytes,
                (now_s if run.verdict is RUNNING else run.ended_s) - self._began_s,
                run.hooks.standing(),
                self._shares[run.book.image].given if run.book.image in self._shares else None,
            )
            for run in self._runs
        ]

    def whole_nodes(self) -> int | None:
        """The smallest number of nodes that have one of the running uploads as a whole; None when nothing runs."""
        return min((run.book.done_machines() for run in self._running()), default=None)

    def source_changed(self, image: ImageId, text: str) -> None:
        """A directory can no longer be served as it was indexed."""
        hit = [run for run in self._runs if run.book.image == image and run.verdict is RUNNING]
        for run in hit:
            run.book.local_problem(text)
        if hit:
            self._problem(text)
            self._step()

    def _problem(self, text: str) -> None:
        """Show a problem, once."""
        if text not in self._told and not self._over:
            self._told.add(text)
            self._listener.problem(self.label, text)

    # -- deciding -----------------------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Ask, connect, judge: after each event and each beat. Events that come in meanwhile are dealt with in one more round.

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
        young = any(now_s < since_s + CONNECT_PATIENCE_S for since_s, _ in self._connecting.values())
        for run in self._running():
            exhausted = self._contacts.exhausted(run.book.refused)
            verdict = run.book.verdict(self._rule, now_s - self._began_s, Reach(self._contacts.resolving or young, exhausted))
            verdict = run.hooks.verdict(verdict, now_s - self._began_s, self._rule.deadline_s)
            if verdict.outcome is not Outcome.RUNNING:
                run.verdict, run.ended_s = verdict, now_s
        if not self._running():
            self.stop()
            if not self._finished.called:
                self._finished.callback(None)

    def _running(self) -> list[_Run]:
        return [run for run in self._runs if run.verdict is RUNNING]

    def _reach_out(self) -> None:
        running = self._running()
        for peer in list(self._peers.values()):
            if all(run.book.refused(peer.address) for run in running):
                peer.link.close()
        for run in running:
            for peer in list(self._peers.values()):
                address = peer.address
                if address not in run.asked and not run.book.refused(address) and not run.pause.blocked(address):
                    self._ask(run, peer)
            usable = sum(not run.book.refused(address) for address in (*self._peers, *self._connecting))
            missing = self._most_connections - usable
            if missing > 0:
                self._contacts.look_up(missing)
                for address in self._contacts.pick(missing, lambda known, run=run: self._skip(run, known)):  # type: ignore[misc]
                    self._connect(address)

    def _skip(self, run: _Run, address: Address) -> bool:
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
        peer = _Peer(address, link)
        self._peers[address] = peer
        self._by_link[id(link)] = peer
        self._contacts.connected(address)
        self._step()

    def _unconnected(self, failure: Failure, address: Address) -> None:
        self._connecting.pop(address, None)
        if failure.check(CancelledError) and self._over:
            return
        self._contacts.failed(address)
        what = failure.getErrorMessage() or type(failure.value).__name__
        label = self._contacts.label(address)
        for run in self._running():
            self._tell(run, label, "unreachable", code="unreachable", message=what)
        self._problem(f"{what if label in what else f'{label}: {what}'}; trying again")
        self._step()

    def _where(self, address: Address) -> str:
        label = self._contacts.label(address)
        return label if label in (str(address), address.host) else f"{label} ({address})"

    def lost(self, link: Link) -> None:
        """A connection ended; it is replaced by the usual rules."""
        peer = self._by_link.pop(id(link), None)
        self._repeats.left(id(link))
        if peer is None:
            return
        del self._peers[peer.address]
        for shares in self._shares.values():
            shares.left(peer)
        for run in self._runs:
            run.asked.discard(peer.address)
            run.book.lost(peer.address)
        self._contacts.failed(peer.address)
        if not self._over:
            if any(not run.book.refused(peer.address) for run in self._running()):
                self._listener.note(self.label, f"the connection to {self._where(peer.address)} ended")
            self._step()

    # -- requests -----------------------------------------------------------------------------------------------------------------

    def _ask(self, run: _Run, peer: _Peer) -> None:
        request = run.upload.request
        run.asked.add(peer.address)
        run.book.asked(peer.address, self._contacts.label(peer.address))
        if self._shares:
            peer.published[request.image] = None
            peer.link.tell(PublishImage(request.image))
        answer = peer.link.ask(request)
        self._answers.add(answer)
        answer.addBoth(self._settled, answer)
        answer.addTimeout(ANSWER_TIMEOUT_S, self._world.clock)
        answer.addCallbacks(self._answered, self._unanswered, callbackArgs=(run, peer), errbackArgs=(run, peer))
        answer.addErrback(lambda failure: self._log.failure("an answer of {peer} was not booked", failure, peer=str(peer.address)))

    def _settled(self, result: Response | Failure, answer: Deferred[Response]) -> Response | Failure:
        self._answers.discard(answer)
        return result

    def _answered(self, response: Response, run: _Run, peer: _Peer) -> None:
        if not isinstance(response, UploadAck):
            self._refused_to_say(run, peer, f"unexpected {type(response).__name__}")
            return
        self._contacts.succeeded(peer.address)
        run.pause.succeeded(peer.address)
        run.book.answered(peer.address, response)
        self._contacts.heard(response.hosts.values())
        where = self._where(peer.address)
        state = "accepted" if response.accepted else "refused"
        self._tell(run, where, state, code=response.reject_reason or "", known=len(response.hosts))
        if response.accepted:
            self._listener.note(self.label, f"{where} {run.book.path} accepted; it knows {len(response.hosts)} more nodes")
        elif run.book.refused(peer.address) and response.reject_reason != "no_config":
            self._problem(f"{where} {run.book.path} {response.reject_reason or 'refused without a reason'}")
        else:
            self._listener.note(self.label, f"{where} {run.book.path} {response.reject_reason or 'refused without a reason'}")
        self._step()

    def _unanswered(self, failure: Failure, run: _Run, peer: _Peer) -> None:
        if failure.check(CancelledError, LinkLost):
            return
        if failure.check(AnswerTimeout):
            self._refused_to_say(run, peer, f"no answer within {ANSWER_TIMEOUT_S:.0f} s")
        else:
            text = failure.getErrorMessage() or type(failure.value).__name__
            self._refused_to_say(run, peer, text, busy=failure.check(Busy) is not None)

    def _refused_to_say(self, run: _Run, peer: _Peer, text: str, *, busy: bool = False) -> None:
        """``Error``, or no answer: ask again, later each time, and in the end take it for a refusal (C33)."""
        again = run.book.errored(peer.address, text, busy=busy)
        self._tell(run, self._where(peer.address), "error", code="busy" if busy else "error", message=text)
        if again:
            run.asked.discard(peer.address)
            run.pause.failed(peer.address)
        self._problem(f"{self._where(peer.address)} {run.book.path} {text}{'; trying again' if again else ''}")
        self._step()

    def _tell(
        self, run: _Run, host: str, state: str, machine: MachineId | None = None, code: str = "", message: str = "", known: int = 0
    ) -> None:
        self._listener.node(NodeNews(self.label, run.book.path, host, machine, state, code, message, known))

    # -- what the nodes ask and tell ----------------------------------------------------------------------------------------------

    def requested(self, link: Link, request: Request) -> Deferred[Response]:
        """Serve an index or blocks to a node that we published it to, or a share of them."""
        peer = self._by_link.get(id(link))
        published = peer.published if peer is not None else {}
        if isinstance(request, GetIndex):
            paths = sum(run.book.image == request.image for run in self._runs)
            again = self._repeats.refused(id(link), request.image, SAME_INDEX + paths)
            if again is not None:
                return again
        if isinstance(request, GetShare) and request.image in published:
            return maybeDeferred(self._shares[request.image].take, peer, request.missing).addCallback(ShareData)
        return self._source.answer(request, published, self._sent)

    def _sent(self, image: ImageId, size: int) -> None:
        for run in sorted(self._runs, key=lambda run: run.verdict is not RUNNING):
            if run.book.image == image:
                run.sent_bytes += size
                return

    def notified(self, link: Link, notification: Notification) -> None:
        """Book the arrival of an image, or that a node gave it up."""
        peer = self._by_link.get(id(link))
        if peer is None:
            return
        for run in self._running():
            match notification:
                case ReceivedImage() | RemovedImage() if run.book.received(peer.address, notification):
                    self._tell(run, notification.hostname, "done", notification.machine_id)
                    self._listener.note(self.label, f"{notification.hostname} {run.book.path} {run.book.done_by('has')}")
                    self._step()
                case AbortedImage() if run.book.aborted(peer.address, notification):
                    word, _, detail = notification.reason.partition(":")
                    self._tell(run, notification.hostname, "gave-up", notification.machine_id, word, detail.strip())
                    self._problem(f"{notification.hostname} {run.book.path} {notification.reason}")
                    self._step()
                case HookResult() if run.hooks.heard(notification):
                    self._step()
                case _:
                    pass
