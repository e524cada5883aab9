"""The daemon: a node over real files, sockets and the reactor, as a Twisted service.

It also raises the number of files and sockets that this process may have open (threats A41).

Watches the reactor: how long it was away from its duties, and what kept it (threats I8, 6.13).

Everything here runs on one thread. A stall of a quarter of a second is a fault of the program, or of a machine that is overloaded; a
client of the reference gives up after five seconds without a byte (protocol section 2.3).
"""

from __future__ import annotations

import random
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Thread
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IListeningPort, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from ciruela.cleanup.service import Safeguards
from ciruela.daemon.api import NodeApi
from ciruela.daemon.authority import KeyFiles, Signers
from ciruela.daemon.config import load_config
from ciruela.daemon.keywatch import KeyWatch
from ciruela.daemon.node import Node
from ciruela.daemon.plan import PEERS_FILE, DaemonPlan
from ciruela.daemon.processes import Processes, Webhooks
from ciruela.daemon.reload import LiveConfigs, Reloads, Sighup
from ciruela.daemon.requests import Requests
from ciruela.daemon.status import NodeStatus, config_status, sources_status
from ciruela.disk import openfile, version
from ciruela.disk.keeplist import KeepListFiles
from ciruela.disk.openfile import OpenFile
from ciruela.disk.peercache import PeerCache
from ciruela.disk.store import Store
from ciruela.disk.trust import HostLinks, RecordTrust
from ciruela.hooks.service import Outside
from ciruela.interfaces import Address, BlockGiving, Connection, NodeContext, NowMs, numeric_host
from ciruela.model.config import DirConfig, Fsync, Tuning
from ciruela.model.errors import RemoteError
from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass
from ciruela.model.versions import SigEntry
from ciruela.model.vpath import VPath
from ciruela.net import limits
from ciruela.net.datagrams import DatagramPort
from ciruela.net.discovery.source import PeerSource
from ciruela.net.discovery.spec import Means, sources
from ciruela.net.limits import Budgets, limits_for
from ciruela.net.outgoing import Pool
from ciruela.net.peers import PeerList
from ciruela.net.resolve import resolver
from ciruela.net.server import Port, PortLimits, site
from ciruela.proto.messages import GetBlocks, Notification, Request, Response
from ciruela.runtime import RateLimitedLog
from ciruela.web.pages import Json, Pages

BEAT_S = 0.25
STALL_S = 0.25
"""Being later than this counts (threats I8)."""

LOOK_S = 0.1
"""Interval at which the other thread looks whether the reactor is stuck."""

MOST_FRAMES = 8
"""Innermost calls that are told."""


class Watchdog:
    """Beats on the reactor, and looks from a thread of its own at what the reactor does while no beat comes.

    ``stalls`` counts, ``longest_ms`` is the longest; each is logged with the place, at most once a minute.
    """

    _log = Logger()

    def __init__(self, clock: IReactorTime, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._hush = RateLimitedLog(clock)
        self._beat_s = 0.0
        self._stuck: tuple[float | None, str] = (None, "")
        self._reactor_thread = 0
        self._call: IDelayedCall | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self.stalls = 0
        self.longest_ms = 0

    def start(self) -> None:
        """Begin, on the thread of the reactor."""
        self._reactor_thread = threading.get_ident()
        self._beat_s = self._monotonic()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._look_on, name="watchdog", daemon=True)
        self._thread.start()
        self._call = self._clock.callLater(BEAT_S, self._beat)

    def stop(self) -> None:
        """End, and wait for the thread."""
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _beat(self) -> None:
        self._call = self._clock.callLater(BEAT_S, self._beat)
        now_s = self._monotonic()
        before_s, self._beat_s = self._beat_s, now_s
        late_s = now_s - before_s - BEAT_S
        if late_s <= STALL_S:  # guard: I8 F42, -> True
            return
        self.stalls += 1
        late_ms = round(late_s * 1000)
        self.longest_ms = max(self.longest_ms, late_ms)
        since_s, where = self._stuck
        if since_s != before_s:
            where = "a place that was left before it could be looked at"
        text = "nothing else could be done for {late_ms} ms, because of: {where}"
        self._hush.warn(self._log, "stall", "", text, late_ms=late_ms, where=where)

    # -- on the other thread -----------------------------------------------------------------------------------------------------------

    def _look_on(self) -> None:
        while not self._stopping.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        """Note where the reactor's thread is, if its beat is overdue; once for each stall."""
        beat_s = self._beat_s
        if self._monotonic() - beat_s <= BEAT_S + STALL_S or self._stuck[0] == beat_s:
            return
        frame = sys._current_frames().get(self._reactor_thread)
        if frame is not None:
            self._stuck = (beat_s, where_is(frame))


def where_is(frame: FrameType | None) -> str:
    """The innermost calls, the innermost first."""
    calls: list[str] = []
    while frame is not None and len(calls) < MOST_FRAMES:
        calls.append(f"{frame.f_globals.get('__name__', '?')}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(calls)


WANTED = 65_536
"""As many as the limit is raised to, where that is allowed without asking anybody."""


def most_descriptors() -> int:
    """The limit, after it was raised as far as this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return WANTED if soft == resource.RLIM_INFINITY else soft


def share_out(limit: int) -> int:
    """Let the disk keep open what is its due of ``limit`` descriptors. Returns how many images may be put together at a time."""
    openfile.KEPT.resize(openfile.kept_of(limit))
    return openfile.trees_of(limit)


P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """Start-up values of a daemon. ``lock`` holds the db directory for this process; ``again`` reads and checks the whole plan anew."""

    plan: DaemonPlan
    lock: OpenFile
    again: Callable[[], DaemonPlan]


class _StillStarting:
    """Request handler until the disk is read: requests are refused, so that nothing is judged by an empty memory."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def _requests(self) -> Requests:
        return self._node.counterpart

    def requested(self, link: Connection, request: Request) -> Deferred[Response]:
        if not self._node.ready:
            return fail(RemoteError(self._node.broken or "the node is starting, try again in a moment"))
        return self._requests.requested(link, request)

    def giving(self, link: Connection, request: GetBlocks) -> Deferred[BlockGiving]:
        return self._requests.giving(link, request)

    def notified(self, link: Connection, notification: Notification) -> bool | None:
        return self._requests.notified(link, notification)

    def answered(self, link: Connection, request: Request, given: bool) -> None:
        self._requests.answered(link, request, given)

    def lost(self, link: Connection) -> None:
        self._requests.lost(link)


class Daemon(Service):
    """One node of a cluster. Listens as soon as it starts, answers ``/healthz`` with 200 and takes uploads once its disk is read."""

    _log = Logger()
    name = "ciruela"

    def __init__(self, reactor: Any, settings: Settings, now_ms: NowMs, seed: int) -> None:
        self._reactor = reactor
        self._settings = settings
        plan = settings.plan
        self._configs = LiveConfigs(plan.configs)
        rng = random.Random(seed)  # noqa: S311  choices of peers and blocks, nothing secret
        self._threads = ThreadPool(1, plan.disk_threads, "disk")
        self._authority = KeyFiles(plan.config_dir, self._in_thread, now_ms)
        trust = RecordTrust(now_ms, self._made)
        self._store = Store(plan.db_dir, self._configs, self._in_thread, plan.tuning, trust, share_out(most_descriptors()))
        self._link_limits = limits_for(plan.tuning.max_index_bytes)
        self._budgets = Budgets()
        self._pool = Pool(reactor, limits=self._link_limits, from_host=plan.host, budgets=self._budgets, in_thread=self._in_thread)
        self._watchdog = Watchdog(reactor)
        self._port: Port | None = None
        self._lists = ThreadPool(0, 2, "lists")
        self._lists.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]
        self._datagrams = DatagramPort(lambda data, source: self.node.gossip.received(data, source), reactor)
        self.node = Node(
            NodeContext(
                me=plan.me,
                hostname=plan.hostname,
                epoch=now_ms(),
                configs=self._configs,
                disk=self._store,
                wire=self._pool,
                datagrams=self._datagrams,
                authority=self._authority,
                clock=reactor,
                rng=rng,
                now_ms=now_ms,
                tuning=plan.tuning,
                in_thread=self._in_thread,
                here=Address.of(plan.host, plan.port),
            ),
            Safeguards(
                time.monotonic,
                KeepListFiles(self._in_list_thread),
                self._configured,
                lambda: self._peers.unresolved,
                HostLinks(self._in_list_thread),
            ),
            Outside(Processes(reactor), Webhooks(reactor)),
        )
        self._means = Means(reactor, reactor, rng, self._in_thread, resolver(self._in_thread), plan.port)
        self._peers = PeerList(
            self._sources(plan),
            self._means,
            self.node.gossip.configured,
            PeerCache(plan.db_dir, self._in_thread),
            self.node.gossip.cluster,
        )
        self._keys = KeyWatch(self.node, plan.config_dir, self._in_thread, reactor, rng)
        self._reloads = Reloads(plan, lambda: self._in_thread(settings.again), self.node, self._configs, self._keys, self._apply)
        self._hangup = Sighup(reactor, self._reloads.ask)
        self._ports: list[IListeningPort] = []

    def _in_thread(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return deferToThreadPool(self._reactor, self._threads, function, *args, **kwargs)

    def _made(self, vpath: VPath, image: ImageId, entries: Sequence[SigEntry]) -> frozenset[SigEntry]:
        """Those of the entries that a key made which is configured now for the path; in a thread."""
        return self._authority.made(self._configs.get(vpath.key), vpath, image, entries)

    def _in_list_thread(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """In a thread that may hang for ever, on a dead network file system: it holds up neither the disk nor the end of the process."""
        return deferToThreadPool(self._reactor, self._lists, function, *args, **kwargs)

    @staticmethod
    def _names(plan: DaemonPlan) -> frozenset[str]:
        """The names under which pages of this node may be asked for."""
        own = plan.hostname.lower()
        return frozenset((own, own.partition(".")[0], *plan.tuning.page_hosts))

    def _sources(self, plan: DaemonPlan) -> list[PeerSource]:
        return sources(plan.peers, f"{plan.config_dir}/{PEERS_FILE}", self._means)

    def _configured(self) -> Deferred[Mapping[str, DirConfig]]:
        """The directory configs as they stand in their files now."""
        plan = self._settings.plan
        return self._in_thread(lambda: load_config(plan.config_dir, plan.db_dir).directories)

    def _apply(self, plan: DaemonPlan) -> None:
        """Applies a reload outside of the node."""
        self._store.tune(plan.tuning)
        if self._port is not None:
            self._port.limits = self._port_limits(plan.tuning)
            self._page_hosts = self._names(plan)
        self._peers.replace(self._sources(plan)).addErrback(self._no_peers)

    def startService(self) -> None:
        """Listen, then read the disk and begin. Raises CannotListenError when the port was taken since ``tap`` looked."""
        super().startService()
        limits.keep()
        plan = self._settings.plan
        makers = Signers(self._authority.makers, self._reactor)
        api = NodeApi(self.node, makers, self._store.room, lambda: config_status(self._reloads))
        pages = Pages(NodeStatus(self.node, self._extra_metrics, self._told), api)
        self._page_hosts = self._names(plan)
        self._port = site(
            _StillStarting(self.node),
            pages,
            self._reactor,
            self._link_limits,
            self._port_limits(plan.tuning),
            self._is_peer,
            lambda: self._page_hosts,
            self._budgets,
        )
        self._ports = [
            self._reactor.listenTCP(plan.port, self._port, backlog=511, interface=plan.host),
            self._reactor.listenUDP(plan.port, self._datagrams, interface=plan.host, maxPacketSize=65536),
        ]
        self._threads.start()
        self._lists.start()
        self._watchdog.start()
        self._hangup.start()
        self._keys.start()
        if plan.tuning.fsync is Fsync.NONE:
            self._log.warn("fsync is none: images that were reported as received, and what is known of them, may be lost in a power cut")
        self._log.info(
            "ciruela node {machine} ({hostname}) listens on {address}, directories: {keys}",
            machine=plan.me.hex(),
            hostname=plan.hostname,
            address=str(Address(plan.host, plan.port)),
            keys=", ".join(sorted(plan.configs)) or "none",
        )
        marked = self._in_thread(version.mark, plan.db_dir).addErrback(self._not_marked)
        marked.addCallback(lambda _: self.node.start()).addErrback(self._not_started)
        self._peers.start().addCallbacks(lambda _: self.node.acquaintance.listed(), self._no_peers)

    def _is_peer(self, host: str) -> bool:
        try:
            numeric = numeric_host(host)
        except ValueError:
            return False
        return any(address.host == numeric for address in self._peers.peers)

    def _port_limits(self, tuning: Tuning) -> PortLimits:
        """Half of the descriptors at most are for connections: a download that cannot open a file is lost, a connection comes again."""
        descriptors = most_descriptors()
        most = min(tuning.max_connections, descriptors // 2)
        if most < tuning.max_connections:
            self._log.warn(
                "{most} connections at a time instead of {wanted}: this process may have {descriptors} files open (raise LimitNOFILE)",
                most=most,
                wanted=tuning.max_connections,
                descriptors=descriptors,
            )
        return PortLimits(connections=most, per_address=tuning.max_connections_per_address)

    def _no_peers(self, failure: Failure) -> None:
        self._log.failure("the list of peers could not be read", failure)

    def _not_marked(self, failure: Failure) -> None:
        """A full disk is no reason not to serve what is there; the next start tries again."""
        failure.trap(OSError)
        self._log.warn("the format of the db directory could not be noted: {reason}", reason=failure.getErrorMessage())

    def _not_started(self, failure: Failure) -> None:
        """The process stays, so that ``/healthz`` can tell what is wrong; it takes no uploads and gossips nothing."""
        directory = self._settings.plan.db_dir
        self.node.broken = f"the db directory {directory} could not be read: {failure.getErrorMessage()}"
        self._log.failure("the db directory {directory} could not be read; mend it and start again", failure, directory=directory)

    def _extra_metrics(self) -> list[tuple[str, str, str, int]]:
        return [
            ("disk", "threads_busy", "level", len(self._threads.working)),
            ("disk", "threads_idle", "level", len(self._threads.waiters)),
            ("reactor", "stalls", "counter", self._watchdog.stalls),
            ("reactor", "longest_stall_ms", "level", self._watchdog.longest_ms),
            ("config", "reloads", "counter", self._reloads.done),
            ("config", "reloads_refused", "counter", self._reloads.refused),
            ("config", "uploads_aborted_by_keys", "counter", self._keys.aborted),
            ("peers", "sources_failing", "level", sum(source.doubtful for source in self._peers.sources)),
            ("connections", "open", "level", self._port.open if self._port else 0),
            ("connections", "bulk", "level", self._port.bulk if self._port else 0),
            ("connections", "refused", "counter", self._port.refused if self._port else 0),
            ("gossip", "datagrams_unsent", "counter", self._datagrams.unsent),
            ("connections", "evicted", "counter", self._port.evicted if self._port else 0),
        ]

    def _told(self) -> dict[str, Json]:
        """Gives the configuration part of the status page."""
        return {"config": config_status(self._reloads), "peer_sources": sources_status(self._peers.sources)}

    async def _stop(self) -> None:
        self._hangup.stop()
        self._reloads.stop()
        self._keys.stop()
        self._watchdog.stop()
        self._peers.stop()
        self.node.stop()
        for port in self._ports:
            await _maybe(port.stopListening())
        await self._pool.stop()
        self._threads.stop()
        self._store.close()
        self._settings.lock.close()

    def stopService(self) -> Deferred[None]:
        """Stop gossip and downloads, close the connections, let the disk finish what it is doing."""
        super().stopService()
        return Deferred.fromCoroutine(self._stop())


async def _maybe(result: Deferred[object] | object) -> None:
    if isinstance(result, Deferred):
        await result
