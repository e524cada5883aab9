"""The daemon: a node over real files, sockets and the reactor, as a Twisted service."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any, ParamSpec, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IListeningPort
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from ciruela.cleanup.around import Safeguards
from ciruela.daemon.api import NodeApi
from ciruela.daemon.authority import KeyFiles
from ciruela.daemon.config import load_config
from ciruela.daemon.descriptors import most_descriptors
from ciruela.daemon.node import Node, World
from ciruela.daemon.requests import Requests
from ciruela.daemon.signers import Signers
from ciruela.daemon.status import NodeStatus
from ciruela.daemon.watchdog import Watchdog
from ciruela.disk.keeplist import KeepListFiles
from ciruela.disk.openfile import OpenFile
from ciruela.disk.store import Store
from ciruela.model.dirconfig import DirConfig
from ciruela.model.errors import RemoteError
from ciruela.model.ids import MachineId
from ciruela.model.tuning import Fsync, Tuning
from ciruela.net import memory
from ciruela.net.datagrams import DatagramPort
from ciruela.net.limits import limits_for
from ciruela.net.outgoing import Pool
from ciruela.net.peers import PeerList
from ciruela.net.resolve import resolver
from ciruela.net.server import Port, PortLimits, site
from ciruela.proto.messages import Notification, Request, Response
from ciruela.seams import Address, Link, NowMs
from ciruela.web.pages import Pages

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line and the config directory say, checked. ``lock`` holds the db directory for this process."""

    config_dir: str
    db_dir: str
    host: str
    port: int
    tuning: Tuning
    disk_threads: int
    me: MachineId
    hostname: str
    configs: dict[str, DirConfig]
    lock: OpenFile


class _Awaited:
    """The counterpart until the disk is read: requests are refused, so that nothing is judged by an empty memory."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def _requests(self) -> Requests:
        return self._node.counterpart

    def requested(self, link: Link, request: Request) -> Deferred[Response]:
        if not self._node.ready:
            return fail(RemoteError(self._node.broken or "the node is starting, try again in a moment"))
        return self._requests.requested(link, request)

    def notified(self, link: Link, notification: Notification) -> None:
        self._requests.notified(link, notification)

    def lost(self, link: Link) -> None:
        self._requests.lost(link)


class Daemon(Service):
    """One node of a cluster. Listens as soon as it starts, answers ``/healthz`` with 200 and takes uploads once its disk is read."""

    _log = Logger()
    name = "ciruela"

    def __init__(self, reactor: Any, settings: Settings, now_ms: NowMs, seed: int) -> None:
        self._reactor = reactor
        self._settings = settings
        rng = random.Random(seed)  # noqa: S311  choices of peers and blocks, nothing secret
        self._threads = ThreadPool(1, settings.disk_threads, "disk")
        self._store = Store(settings.db_dir, settings.configs, self._in_thread, settings.tuning)
        self._link_limits = limits_for(settings.tuning.max_index_bytes)
        self._pool = Pool(reactor, limits=self._link_limits)
        self._watchdog = Watchdog(reactor)
        self._port: Port | None = None
        self._lists = ThreadPool(0, 2, "lists")
        self._lists.threadFactory = partial(Thread, daemon=True)  # type: ignore[assignment]
        self._keys = KeyFiles(settings.config_dir, self._in_thread, now_ms)
        self._datagrams = DatagramPort(lambda data, source: self.node.gossip.received(data, source))
        self.node = Node(
            World(
                me=settings.me,
                hostname=settings.hostname,
                epoch=now_ms(),
                configs=settings.configs,
                disk=self._store,
                wire=self._pool,
                datagrams=self._datagrams,
                authority=self._keys,
                clock=reactor,
                rng=rng,
                now_ms=now_ms,
                tuning=settings.tuning,
                in_thread=self._in_thread,
                safeguards=Safeguards(
                    time.monotonic, KeepListFiles(self._in_list_thread), self._configured, lambda: self._peers.unresolved
                ),
            )
        )
        self._peers = PeerList(
            f"{settings.config_dir}/peers.txt",
            settings.port,
            resolver(self._in_thread),
            reactor,
            rng,
            self._in_thread,
            self.node.gossip.configured,
        )
        self._ports: list[IListeningPort] = []

    def _in_thread(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        return deferToThreadPool(self._reactor, self._threads, function, *args, **kwargs)

    def _in_list_thread(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """In a thread that may hang for ever, on a dead network file system: it holds up neither the disk nor the end of the process."""
        return deferToThreadPool(self._reactor, self._lists, function, *args, **kwargs)

    def _configured(self) -> Deferred[Mapping[str, DirConfig]]:
        """The directory configs as they stand in their files now."""
        settings = self._settings
        return self._in_thread(lambda: load_config(settings.config_dir, settings.db_dir).directories)

    def startService(self) -> None:
        """Listen, then read the disk and begin. Raises CannotListenError when the port was taken since ``tap`` looked."""
        super().startService()
        memory.keep()
        settings = self._settings
        api = NodeApi(self.node, Signers(self._keys.makers, self._reactor), self._store.room)
        pages = Pages(NodeStatus(self.node, self._extra_metrics), api)
        self._port = site(_Awaited(self.node), pages, self._reactor, self._link_limits, self._port_limits(), self._is_peer)
        self._ports = [
            self._reactor.listenTCP(settings.port, self._port, backlog=511, interface=settings.host),
            self._reactor.listenUDP(settings.port, self._datagrams, interface=settings.host, maxPacketSize=65536),
        ]
        self._threads.start()
        self._lists.start()
        self._watchdog.start()
        if settings.tuning.fsync is Fsync.NONE:
            self._log.warn("fsync is none: images that were reported as received, and what is known of them, may be lost in a power cut")
        self._log.info(
            "ciruela node {machine} ({hostname}) listens on {address}, directories: {keys}",
            machine=settings.me.hex(),
            hostname=settings.hostname,
            address=str(Address(settings.host, settings.port)),
            keys=", ".join(sorted(settings.configs)) or "none",
        )
        self.node.start().addErrback(self._not_started)
        self._peers.start().addCallbacks(lambda _: self.node.acquaintance.listed(), self._no_peers)

    def _is_peer(self, host: str) -> bool:
        return any(address.host == host for address in self._peers.peers)

    def _port_limits(self) -> PortLimits:
        """Half of the descriptors at most are for connections: a download that cannot open a file is lost, a connection comes again."""
        tuning = self._settings.tuning
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

    def _not_started(self, failure: Failure) -> None:
        """The process stays, so that ``/healthz`` can tell what is wrong; it takes no uploads and gossips nothing."""
        directory = self._settings.db_dir
        self.node.broken = f"the db directory {directory} could not be read: {failure.getErrorMessage()}"
        self._log.failure("the db directory {directory} could not be read; mend it and start again", failure, directory=directory)

    def _extra_metrics(self) -> list[tuple[str, str, str, int]]:
        return [
            ("disk", "threads_busy", "level", len(self._threads.working)),
            ("disk", "threads_idle", "level", len(self._threads.waiters)),
            ("reactor", "stalls", "counter", self._watchdog.stalls),
            ("reactor", "longest_stall_ms", "level", self._watchdog.longest_ms),
            ("connections", "open", "level", self._port.open if self._port else 0),
            ("connections", "refused", "counter", self._port.refused if self._port else 0),
        ]

    async def _stop(self) -> None:
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
