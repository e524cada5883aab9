"""One node: the services wired to each other, over whatever world is handed in.

The daemon hands in files, sockets and the reactor (``service``); tests hand in a memory network and a fake clock, and run the same code.

Knowing who else is there, before anybody is told.

A node that has just started does not know who else takes a directory, and a client that asks it would believe that nobody does.

So the answers to uploads, which name the other nodes, wait until the configured peers have been heard of, for a few seconds at most.
The order of a client waits as well: the peers are asked before it is judged.

What cleanup sees of the node it belongs to (``cleanup.around.Surroundings``).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ciruela.cleanup.service import LOOK_S, Cleanup, Safeguards
from ciruela.daemon.pathstate import PathStates, Refusals
from ciruela.daemon.requests import Requests
from ciruela.download.availability import AvailabilityRequests
from ciruela.download.fetch_blocks import STALLED_S
from ciruela.download.service import Downloads
from ciruela.download.serving import BlockService, Catalog
from ciruela.hooks.service import Hooks, Outside
from ciruela.interfaces import Address, Authority, Connection, Connector, Datagrams, Disk, InThread, Loaded, NowMs
from ciruela.membership.members import SILENT_S, PeerStatus
from ciruela.membership.packets import DownloadFact, Hooked, RemovedFact
from ciruela.membership.service import ANYWHERE, Gossip
from ciruela.model.config import STANDARD, DirConfig, Tuning
from ciruela.model.hooks import AFTER, HookReport, HookState
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.upload import AbortReason, Origin, RejectReason, Removal, UploadRequest
from ciruela.model.versions import State, Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import AbortedImage, HookResult, PathStateData, ReceivedImage, RemovedImage
from ciruela.reconcile.service import Reconciler
from ciruela.runtime import RateLimitedLog, in_place
from ciruela.scrub.presence import Presence
from ciruela.scrub.service import Scrub
from ciruela.tracking.ledger import Ledger
from ciruela.tracking.subscriptions import Subscriptions
from ciruela.uploads.neighbours import Nearby, Neighbours
from ciruela.uploads.removals import Removals
from ciruela.uploads.service import Uploads

T = TypeVar("T")


class Around:
    """A node, for cleanup."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def peers(self) -> Mapping[str, bool]:
        """The other configured nodes by name, each with whether it was heard since the last look; one name may have several addresses."""
        found: dict[str, bool] = {}
        own = set()
        for peer in self._node.gossip.cluster.peers():
            if peer.own:
                own.add(peer.name)
            found[peer.name] = found.get(peer.name, False) or (peer.silent_s is not None and peer.silent_s < LOOK_S)
        return {name: heard for name, heard in found.items() if name not in own}

    def clocks_ms(self) -> Sequence[int]:
        """What the clocks of other nodes show now, by their own word."""
        return self._node.gossip.cluster.clocks_ms()

    def served(self) -> Collection[VPath]:
        """The paths of which blocks were given since the last call."""
        return self._node.blocks.served()

    def wanted(self, base: VPath) -> Collection[VPath]:
        """The paths in ``base`` whose images other nodes are fetching, or this one is repairing."""
        fetched = {item.vpath for _, item in self._node.gossip.cluster.stances() if isinstance(item, DownloadFact)}
        return {vpath for vpath in fetched.union(self._node.downloads.repairing()) if vpath.base == base}

    def downloads(self) -> int:
        """How many downloads are running."""
        return len(self._node.downloads.running())

    def given_up(self) -> int:
        """How many downloads were given up since the start."""
        return self._node.downloads.totals.failed

    def indexes(self) -> Collection[ImageId]:
        """The images whose indexes are in use, besides those in the ledger."""
        return self._node.catalog.images()

    def alone(self, vpath: VPath, work: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Run ``work`` while no order for ``vpath`` is being judged."""
        return self._node.uploads.alone(vpath, work)


MOST_S = 3.0
"""After this the answers go out with what is known: a peer that is down must not hold them up. Gossip beats each second."""

WARM_UP_LOOK_S = 0.1


class WarmUpBarrier:
    """Fires when the peers are known."""

    _log = Logger()

    def __init__(self, clock: IReactorTime, peers: Callable[[], Sequence[PeerStatus]]) -> None:
        self._clock = clock
        self._peers = peers
        self._until_s = clock.seconds() + MOST_S
        self._listed = False
        self._waiting: list[Deferred[None]] = []
        self._looking = False

    def begin(self) -> None:
        """The node starts now."""
        self._until_s = self._clock.seconds() + MOST_S

    def listed(self) -> None:
        """The list of peers was read and its names looked up."""
        self._listed = True

    def wait(self) -> Deferred[None]:
        """Fires at once when everybody was heard of, else when they are, or when the time is over."""
        if self._over():
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        if not self._looking:
            self._looking = True
            self._clock.callLater(WARM_UP_LOOK_S, self._look)
        return waiting

    def _over(self) -> bool:
        if self._clock.seconds() >= self._until_s:
            return True
        return self._listed and all(peer.own or peer.keys for peer in self._peers())

    def _look(self) -> None:
        try:
            over = self._over()
        except Exception:  # noqa: BLE001  clients wait for this; it ends, whatever goes wrong
            self._log.failure("who else is there cannot be told; answers go out without it")
            over = True
        if not over:
            self._clock.callLater(WARM_UP_LOOK_S, self._look)
            return
        self._looking = False
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)


HOOKS_TOLD_MS = 300_000
"""So long it is told by gossip what became of a hook; as long as others remember it."""


@dataclass(frozen=True, slots=True)
class NodeContext:
    """What a node needs from outside. ``epoch`` is the wall time of its start in milliseconds.

    ``here`` is where it listens, maybe a wildcard.
    Without ``safeguards`` nothing is ever cleaned up, without ``outside`` no hook is ever run.
    """

    me: MachineId
    hostname: str
    epoch: int
    configs: Mapping[str, DirConfig]
    disk: Disk
    wire: Connector
    datagrams: Datagrams
    authority: Authority
    clock: IReactorTime
    rng: random.Random
    now_ms: NowMs
    tuning: Tuning = STANDARD
    safeguards: Safeguards | None = None
    in_thread: InThread = in_place
    outside: Outside | None = None
    here: Address = ANYWHERE


class NodeState:
    """What a node tells of itself by gossip (``membership.broadcast.LocalState``)."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def keys(self) -> Sequence[str]:
        """The directory configs of this node."""
        return sorted(self._node.world.configs)

    def base_hashes(self) -> Mapping[VPath, bytes]:
        """What this node says of its base dirs."""
        return self._node.ledger.base_hashes()

    def downloads(self) -> Sequence[DownloadFact]:
        """What is on its way here, and how far."""
        node = self._node
        return [
            DownloadFact(one.vpath, one.image, one.step.mask, source=bool(node.watches.sources(one.image)), stalled=one.step.stalled)
            for one in node.downloads.running()
        ]

    def watching(self) -> Collection[VPath]:
        """The paths that clients here wait for."""
        return self._node.watches.paths()

    def committed(self, vpath: VPath) -> Version | None:
        """The version that is visible at ``vpath``."""
        state = self._node.ledger.committed(vpath)
        return None if state is None else state.version

    def removal(self, vpath: VPath) -> Version | None:
        """The version that was removed from ``vpath`` by a signed wish."""
        return self._node.ledger.removal(vpath)

    def hooks(self) -> Sequence[Hooked]:
        """What became of hooks here lately."""
        found = []
        for vpath, one in self._node.hooks.ended(self._node.world.now_ms() - HOOKS_TOLD_MS):
            version = self.committed(vpath)
            if version is not None and version.image == one.image:
                number, ok = AFTER.index(one.kind) + 1, one.state is HookState.OK
                found.append(Hooked(vpath, one.image, version.timestamp_ms, number, ok, one.message))
        return found

    def due_bits(self, vpath: VPath) -> int:
        """The hooks of what is committed at ``vpath`` that are due, or have just ended."""
        version = self.committed(vpath)
        since_ms = self._node.world.now_ms() - HOOKS_TOLD_MS
        reports = () if version is None else self._node.hooks.of(vpath, version.image)
        return sum(1 << AFTER.index(one.kind) for one in reports if one.state is HookState.PENDING or one.at_ms > since_ms)

    def deleted(self) -> Sequence[tuple[VPath, ImageId, int]]:
        """What was given up here lately."""
        return [(one.vpath, one.image, one.timestamp_ms) for one in self._node.ledger.abandoned()]


class NodeListener:
    """What a node does with what it hears by gossip (``membership.service.MembershipListener``)."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def differs(self, base: VPath, base_hash: bytes, address: Address) -> None:
        """A peer has something else in ``base``."""
        if self._node.ready:
            self._node.reconciler.differs(base, base_hash, address)

    def completed(self, vpath: VPath, image: ImageId, machine: MachineId, hostname: str) -> None:
        """A peer has the image: tell the clients that wait for it."""
        for link in self._node.watches.interested(vpath, image):
            link.tell(ReceivedImage(image, str(vpath), machine, hostname, True))

    def hooks_due(self, vpath: VPath, image: ImageId, machine: MachineId, hostname: str, bits: int) -> None:
        """A peer has the image, and hooks to run."""
        for number, kind in enumerate(AFTER):
            if bits >> number & 1:
                self._tell(HookResult(image, str(vpath), machine, hostname, True, kind.value, HookState.PENDING.value, ""), vpath)

    def hooked(self, hooked: Hooked, machine: MachineId, hostname: str) -> None:
        """A hook of a peer has ended."""
        if hooked.kind <= len(AFTER):
            kind, state = AFTER[hooked.kind - 1].value, HookState.OK if hooked.ok else HookState.FAILED
            where = str(hooked.vpath)
            self._tell(HookResult(hooked.image, where, machine, hostname, True, kind, state.value, hooked.message), hooked.vpath)

    def _tell(self, result: HookResult, vpath: VPath) -> None:
        for link in self._node.watches.interested(vpath, result.image):
            if link.bulk:
                link.tell(result)

    def progressed(self, vpath: VPath) -> None:
        """A peer has more to give."""
        self._node.downloads.nudge(vpath)

    def gone(self, item: RemovedFact, machine: MachineId, hostname: str) -> None:
        """A peer has removed something: tell the clients that wait for it."""
        self._node.tell_removed(RemovedImage(item.image, str(item.vpath), machine, hostname, True), item.vpath)

    def removal_heard(self, item: RemovedFact, address: Address) -> None:
        """A peer says that something was removed: have the signatures shown."""
        if self._node.ready:
            self._node.reconciler.removed(item.vpath, Version(item.timestamp_ms, item.image), address)


class Node:
    """A node. ``counterpart`` answers connections, ``gossip.received`` takes datagrams, ``gossip.configured`` the peers' addresses.

    ``ready`` is set once the disk is read; ``broken`` says why that will not happen.
    """

    _log = Logger()

    def __init__(self, world: NodeContext) -> None:
        self.world = world
        self.ledger = Ledger(world.clock, world.configs)
        self.watches = Subscriptions()
        self.catalog = Catalog(world.disk, world.in_thread)
        self.gossip = Gossip(
            world.clock,
            world.rng,
            world.me,
            world.hostname,
            world.epoch,
            world.datagrams,
            facts=NodeState(self),
            ears=NodeListener(self),
            now_ms=world.now_ms,
            wire=world.wire,
            here=world.here,
        )
        self.hooks = Hooks(world.configs, self.ledger, world.disk, world.authority, world.outside, self._hooked, world.clock, world.now_ms)
        self.downloads = Downloads(
            world.configs,
            self.ledger,
            self.watches,
            world.disk,
            world.wire,
            self.gossip.cluster,
            self,
            self.catalog,
            world.clock,
            world.rng,
            world.now_ms,
            world.in_thread,
            world.me,
            world.tuning.max_index_bytes,
            self.hooks,
        )
        self.acquaintance = WarmUpBarrier(world.clock, self.gossip.cluster.peers)
        neighbours = Neighbours(world.wire, self._nearby, self._stalled_on, self.acquaintance.wait, world.clock, world.rng)
        self.uploads = Uploads(
            world.configs,
            self.ledger,
            world.disk,
            world.authority,
            self.downloads,
            world.now_ms,
            self._conflicted,
            RateLimitedLog(world.clock, 40),
            world.tuning.signature_max_age_ms,
            world.tuning.uploads_per_key,
            neighbours,
        )
        self.removals = Removals(
            world.configs,
            self.ledger,
            world.disk,
            world.authority,
            self.uploads,
            self.downloads,
            world.clock,
            world.now_ms,
            self._removed,
            RateLimitedLog(world.clock, 40),
            world.tuning.signature_max_age_ms,
            guard=self._protecting,
            kept_out=self._stays,
            neighbours=neighbours,
        )
        self.refusals = Refusals(world.clock)
        self.uploads.refused = self._rejected
        self.reconciler = Reconciler(
            world.configs,
            self.ledger,
            world.wire,
            self.uploads,
            self.downloads.hint,
            self.gossip.cluster.add_watchers,
            world.clock,
            lambda vpath: self.downloads.stalled(vpath, STALLED_S),
            self.removals,
        )
        self.scrub = Scrub(self.ledger, world.disk, self.downloads, world.tuning, world.clock, world.rng, world.now_ms)
        self.presence = Presence(self.ledger, world.disk, self.downloads, self.uploads.alone, world.clock, world.rng)
        passing = self.downloads.passing
        self.blocks = BlockService(self.ledger, world.disk, self.catalog, passing, world.in_thread, self.scrub.suspect)
        self.awaited = AvailabilityRequests(self._pieces, world.clock)
        self.path_states = PathStates(
            world.configs,
            self.ledger,
            self.presence.there,
            self.refusals,
            self.gossip.cluster.servers,
            self.gossip.cluster.shared_ids,
            PathStateData(world.me, world.hostname, world.epoch, taken=False),
            lambda vpath: self.uploads.forms.at(vpath, world.now_ms()),
        )
        self.cleanup: Cleanup | None = None
        if world.safeguards is not None:
            self.cleanup = Cleanup(
                world.configs, self.ledger, world.disk, world.safeguards, Around(self), world.clock, world.rng, world.now_ms
            )
        self.counterpart = Requests(
            world.configs,
            self.ledger,
            self.watches,
            world.disk,
            self.uploads,
            self.removals,
            self.blocks,
            self.awaited,
            self.path_states,
            self.presence.there,
            hosts=self.gossip.cluster.hosts,
            acquainted=self.acquaintance.wait,
            watchers=self._watchers,
            done=self._tell_received,
            gone=self._tell_gone,
            watched=self.gossip.news_watch,
            pushed=self.gossip.pushed,
            published=self.downloads.nudge_image,
            clock=world.clock,
            me=world.me,
            hostname=world.hostname,
            requests_per_second=world.tuning.requests_per_second,
            in_thread=world.in_thread,
        )
        self.ready = False
        self.broken = ""

    def start(self) -> Deferred[None]:
        """Read what the disk remembers, go on with what was interrupted, begin to gossip."""

        def loaded(found: Loaded) -> None:
            self.ledger.fill(found)
            self._log.info(
                "images that are here: {images}, on their way: {pending}", images=len(self.ledger), pending=len(self.ledger.pendings())
            )
            self.ledger.changed = self.gossip.news_base
            self.hooks.resume(found.due)
            for pending in self.ledger.pendings():
                self.downloads.start(pending)
            self.gossip.start()
            self.acquaintance.begin()
            self.scrub.start()
            self.presence.start()
            if self.cleanup is not None:
                self.cleanup.start()
            self.ready = True

        return self.world.disk.load().addCallback(loaded)

    # -- what a reload changes (daemon.reload) --------------------------------------------------------------------------------------

    def tune(self, tuning: Tuning) -> None:
        """These limits count from now on."""
        self.uploads.tune(tuning.signature_max_age_ms, tuning.uploads_per_key)
        self.counterpart.tune(tuning.requests_per_second)
        self.scrub.tune(tuning)

    def take_on(self, loaded: Loaded) -> None:
        """More directories are configured, and this is what is in them: go on with what was interrupted there."""
        self.ledger.fill(loaded)
        for base in sorted({one.vpath.base for one in loaded.held}):
            self.gossip.news_base(base)
        self.hooks.resume(loaded.due)
        for one in loaded.held:
            if one.pending is not None:
                self.downloads.start(one.pending)

    def leave(self, key: str) -> None:
        """A directory is configured no more: nothing below it counts here, and nothing of it is deleted."""
        self.downloads.leave(key)
        self.hooks.leave(key)
        self.world.disk.forget(self.ledger.forget(key))

    def stop(self) -> None:
        """End everything; what is on disk stays for the next start."""
        self.ready = False
        if self.cleanup is not None:
            self.cleanup.stop()
        self.scrub.stop()
        self.presence.stop()
        self.gossip.stop()
        self.reconciler.stop()
        self.downloads.stop_all()
        self.hooks.stop()
        self.awaited.stop()

    # -- what downloads tell (download.steps.DownloadListener) -----------------------------------------------------------------------

    def progressed(self, vpath: VPath) -> None:
        """Pass on how far a download is."""
        self.awaited.progressed(vpath)
        self.gossip.news_download(vpath)

    def arrived(self, vpath: VPath, state: State) -> None:
        """An image is visible and durable here: tell the clients and the peers."""
        self.refusals.forget(vpath)
        self.awaited.progressed(vpath)
        self.hooks.arrived(vpath, state.image)
        self._tell_received(vpath, state)
        self.gossip.news_complete(vpath)
        self.reconciler.ended(vpath, well=True)

    def gave_up(self, vpath: VPath, image: ImageId, reason: AbortReason, detail: str) -> None:
        """A download ended without an image: tell the clients."""
        self.hooks.gave_up(vpath, image)
        word = f"{reason.value}: {detail}" if detail else reason.value
        self.refusals.note(vpath, image, word if reason is AbortReason.NO_SPACE else reason.value, rejected=False)  # others may name files
        for link in self.watches.interested(vpath, image):
            link.tell(AbortedImage(image, str(vpath), self.world.me, self.world.hostname, False, word))
        self.world.clock.callLater(0, self.awaited.progressed, vpath)  # it is pending until this returns
        self.gossip.news_download(vpath)
        self.reconciler.ended(vpath, well=False)

    def _protecting(self, config: DirConfig, vpath: VPath) -> Deferred[str | None]:
        """The link of the operator that leads to what is at ``vpath``, None for none. Fails with DiskError when nobody can tell."""
        links = None if self.world.safeguards is None else self.world.safeguards.links
        return succeed(None) if links is None or not config.protect else links.leading(config, vpath)

    def _stays(self, removal: Removal, reason: RejectReason) -> None:
        """What peers removed stays here: whoever asks for the path hears why."""
        if removal.origin is Origin.PEER and reason in (RejectReason.PROTECTED, RejectReason.REPLACE_DOESNT_MATCH):
            self.refusals.note(removal.vpath, removal.image, reason.value, rejected=True)

    def _removed(self, vpath: VPath, image: ImageId) -> None:
        """An image was removed here: tell the clients and the peers."""
        self._tell_gone(vpath, image)
        self.gossip.news_complete(vpath)

    def _tell_gone(self, vpath: VPath, image: ImageId) -> None:
        self.tell_removed(RemovedImage(image, str(vpath), self.world.me, self.world.hostname, False), vpath)

    def tell_removed(self, note: RemovedImage, vpath: VPath) -> None:
        """Tell the clients that wait for ``vpath`` and know what such a notification means."""
        for link in self.watches.interested(vpath, note.image):
            if link.bulk:
                link.tell(note)

    def _pieces(self, vpath: VPath, image: ImageId) -> int | None:
        """The mask of what is here of ``image``, -1 for everything; None when it is neither here nor on its way."""
        committed, pending = self.ledger.committed(vpath), self.ledger.pending(vpath)
        if committed is not None and committed.image == image:
            return -1
        if pending is None or pending.state.image != image:
            return None
        download = self.downloads.get(vpath)
        return download.step.pieces or 0 if download is not None and download.image == image else 0

    def _conflicted(self, vpath: VPath, image: ImageId, detail: str) -> None:
        """An append-only path has two images in the cluster: tell the clients that brought this one, and not those that watch the path."""
        word = f"{AbortReason.CONFLICT.value}: {detail}"
        for link in self.watches.sources(image):
            link.tell(AbortedImage(image, str(vpath), self.world.me, self.world.hostname, False, word))

    def _hooked(self, vpath: VPath, report: HookReport) -> None:
        """A hook has ended: tell the clients. That one is due is told with the image."""
        if report.state is not HookState.PENDING:
            for link in self.watches.interested(vpath, report.image):
                self._tell_hook(link, vpath, report)
            self.gossip.news_hook(vpath)

    def _tell_hook(self, link: Connection, vpath: VPath, report: HookReport) -> None:
        me, hostname = self.world.me, self.world.hostname
        if link.bulk:
            link.tell(HookResult(report.image, str(vpath), me, hostname, False, report.kind.value, report.state.value, report.message))

    def _nearby(self, key: str) -> Nearby:
        """The other nodes to ask about a path of ``key``."""
        peers = [peer for peer in self.gossip.cluster.peers() if not peer.own and (not peer.keys or key in peer.keys)]
        heard = [peer.address for peer in peers if peer.keys and peer.silent_s is not None and peer.silent_s < SILENT_S]
        return Nearby(heard, [peer.address for peer in peers if peer.address not in heard])

    def _stalled_on(self, vpath: VPath, image: ImageId) -> set[MachineId]:
        """The other nodes on which this upload gets no further."""
        return {holder.machine for holder in self.gossip.cluster.holders(vpath, image) if holder.stalled}

    def _rejected(self, order: UploadRequest, reason: RejectReason) -> None:
        """What peers have is refused here. What clients bring is not noted: anybody may ask for anything."""
        if order.origin is Origin.PEER:
            self.refusals.note(order.vpath, order.image, reason.value, rejected=True)

    def _tell_received(self, vpath: VPath, state: State) -> None:
        """Which hooks are due comes first: who waits for them must not leave when the image is there."""
        for link in self.watches.interested(vpath, state.image):
            for report in self.hooks.of(vpath, state.image):
                self._tell_hook(link, vpath, report)
        for link in self.watches.interested(vpath, state.image):
            link.tell(ReceivedImage(state.image, str(vpath), self.world.me, self.world.hostname, False))

    def _watchers(self, vpath: VPath) -> frozenset[MachineId]:
        others = self.gossip.cluster.stamped_watchers(vpath)
        return others | {self.world.me} if self.watches.watched(vpath) else others
