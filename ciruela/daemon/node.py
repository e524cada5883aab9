"""One node: the services wired to each other, over whatever context is handed in.

The daemon hands in files, sockets and the reactor (``service``); tests hand in a memory network and a fake clock, and run the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger

from ciruela.cleanup.service import LOOK_S, Cleanup, Safeguards
from ciruela.daemon.acquaintance import WarmUpBarrier
from ciruela.daemon.changes import ChangeRequests
from ciruela.daemon.clients import Clients
from ciruela.daemon.listings import Listings
from ciruela.daemon.pathstate import PathStates, Refusals
from ciruela.daemon.requests import Requests, Serving
from ciruela.download.availability import AvailabilityRequests
from ciruela.download.exchange import PieceExchanges
from ciruela.download.fetch_blocks import STALLED_S
from ciruela.download.peers import PeerSelection
from ciruela.download.service import Downloads
from ciruela.download.serving import BlockService, Catalog
from ciruela.hooks.service import Hooks, Outside
from ciruela.index.tree import Index
from ciruela.interfaces import Address, Loaded, NodeContext
from ciruela.membership.cluster import Cluster
from ciruela.membership.members import SILENT_S
from ciruela.membership.packets import DownloadFact, Hooked, RemovedFact
from ciruela.membership.service import Gossip
from ciruela.model.bitfield import Pieces
from ciruela.model.config import DirConfig, Tuning
from ciruela.model.hooks import AFTER, HookReport, HookState
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.upload import AbortReason, Origin, RejectReason, Removal, UploadRequest
from ciruela.model.values import dataclass
from ciruela.model.versions import State, Version
from ciruela.model.vpath import VPath
from ciruela.reconcile.service import Reconciler
from ciruela.scrub.presence import Presence
from ciruela.scrub.service import Scrub
from ciruela.tracking.ledger import Ledger
from ciruela.tracking.subscriptions import Subscriptions
from ciruela.uploads.neighbours import Nearby, Neighbours
from ciruela.uploads.removals import Removals
from ciruela.uploads.service import Uploads

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NodeActivity:
    """The activity that cleanup must not disturb, of this node and of its peers (``cleanup.service.CleanupContext``)."""

    cluster: Cluster
    transfers: Downloads
    blocks: BlockService
    catalog: Catalog
    uploads: Uploads

    def peers(self) -> Mapping[str, bool]:
        """The other configured nodes by name, each with whether it was heard since the last look; one name may have several addresses."""
        found: dict[str, bool] = {}
        own = set()
        for peer in self.cluster.peers():
            if peer.own:
                own.add(peer.name)
            # guard: A54 I9, LOOK_S -> 1e9
            found[peer.name] = found.get(peer.name, False) or (peer.silent_s is not None and peer.silent_s < LOOK_S)
        return {name: heard for name, heard in found.items() if name not in own}

    def clocks_ms(self) -> Sequence[int]:
        """Gives the times of the clocks of other nodes now, by their own word, in wall ms."""
        return self.cluster.clocks_ms()

    def served(self) -> Collection[VPath]:
        """The paths of which blocks were given since the last call."""
        return self.blocks.served()

    def wanted(self, base: VPath) -> Collection[VPath]:
        """The paths in ``base`` whose images other nodes are fetching, or this one is repairing."""
        fetched = {item.vpath for _, item in self.cluster.stances() if isinstance(item, DownloadFact)}
        return {vpath for vpath in fetched.union(self.transfers.repairing()) if vpath.base == base}

    def downloads(self) -> int:
        """Counts the downloads that are running."""
        return len(self.transfers.running())

    def given_up(self) -> int:
        """Counts the downloads that were given up since the start."""
        return self.transfers.totals.failed

    def indexes(self) -> Collection[ImageId]:
        """The images whose indexes are in use, besides those in the ledger."""
        return self.catalog.images()

    def alone(self, vpath: VPath, work: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Run ``work`` while no order for ``vpath`` is being judged."""
        return self.uploads.alone(vpath, work)


HOOKS_TOLD_MS = 300_000
"""So long it is told by gossip what became of a hook; as long as others remember it."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """The state of a node in the facts of gossip (``membership.broadcast.LocalState``)."""

    context: NodeContext
    ledger: Ledger
    watches: Subscriptions
    transfers: Downloads
    node_hooks: Hooks

    def keys(self) -> Sequence[str]:
        """The directory configs of this node."""
        return sorted(self.context.configs)

    def base_hashes(self) -> Mapping[VPath, bytes]:
        """Gives the hashes that this node tells of its base dirs."""
        return self.ledger.base_hashes()

    def downloads(self) -> Sequence[DownloadFact]:
        """Gives the downloads that are running here, and how far they are."""
        return [
            DownloadFact(one.vpath, one.image, one.step.mask, source=bool(self.watches.sources(one.image)), stalled=one.step.stalled)
            for one in self.transfers.running()
        ]

    def watching(self) -> Collection[VPath]:
        """The paths that clients here wait for."""
        return self.watches.paths()

    def committed(self, vpath: VPath) -> Version | None:
        """The version that is visible at ``vpath``."""
        state = self.ledger.committed(vpath)
        return None if state is None else state.version

    def removal(self, vpath: VPath) -> Version | None:
        """The version that was removed from ``vpath`` by a signed wish."""
        return self.ledger.removal(vpath)

    def hooks(self) -> Sequence[Hooked]:
        """Gives the hooks that ended here lately."""
        found = []
        for vpath, one in self.node_hooks.ended(self.context.now_ms() - HOOKS_TOLD_MS):
            version = self.committed(vpath)
            if version is not None and version.image == one.image:
                number, ok = AFTER.index(one.kind) + 1, one.state is HookState.OK
                found.append(Hooked(vpath, one.image, version.timestamp_ms, number, ok, one.message))
        return found

    def due_bits(self, vpath: VPath) -> int:
        """The hooks of what is committed at ``vpath`` that are due, or have just ended."""
        version = self.committed(vpath)
        since_ms = self.context.now_ms() - HOOKS_TOLD_MS
        reports = () if version is None else self.node_hooks.of(vpath, version.image)
        return sum(1 << AFTER.index(one.kind) for one in reports if one.state is HookState.PENDING or one.at_ms > since_ms)

    def deleted(self) -> Sequence[tuple[VPath, ImageId, int]]:
        """Gives the uploads that were given up here lately: path, image, time of the signature."""
        return [(one.vpath, one.image, one.timestamp_ms) for one in self.ledger.abandoned()]


@dataclass(frozen=True, slots=True)
class NodeListener:
    """Passes what is heard by gossip to the clients, and to what has to act (``membership.cluster.MembershipListener``).

    Nothing is asked of peers before the node is ``ready``.
    """

    clients: Clients
    downloads: Downloads
    reconciler: Reconciler
    ready: Callable[[], bool]

    def differs(self, base: VPath, base_hash: bytes, address: Address) -> None:
        """A peer has something else in ``base``."""
        if self.ready():
            self.reconciler.differs(base, base_hash, address)

    def completed(self, vpath: VPath, image: ImageId, machine: MachineId, hostname: str) -> None:
        """A peer has the image: tell the clients that wait for it."""
        self.clients.received_by(machine, hostname, vpath, image)

    def hooks_due(self, vpath: VPath, image: ImageId, machine: MachineId, hostname: str, bits: int) -> None:
        """A peer has the image, and hooks to run."""
        self.clients.hooks_due_on(machine, hostname, vpath, image, bits)

    def hooked(self, hooked: Hooked, machine: MachineId, hostname: str) -> None:
        """A hook of a peer has ended."""
        self.clients.hooked_on(machine, hostname, hooked)

    def progressed(self, vpath: VPath) -> None:
        """A peer has more to give."""
        self.downloads.nudge(vpath)

    def gone(self, item: RemovedFact, machine: MachineId, hostname: str) -> None:
        """A peer has removed something: tell the clients that wait for it."""
        self.clients.gone_from(machine, hostname, item.vpath, item.image)

    def removal_heard(self, item: RemovedFact, address: Address) -> None:
        """A peer says that something was removed: have the signatures shown."""
        if self.ready():
            self.reconciler.removed(item.vpath, Version(item.timestamp_ms, item.image), address)


class Node:
    """A node. ``counterpart`` answers connections, ``gossip.received`` takes datagrams, ``gossip.configured`` the peers' addresses.

    ``ready`` is set once the disk is read; ``broken`` says why that will not happen.
    """

    _log = Logger()

    def __init__(self, context: NodeContext, safeguards: Safeguards | None = None, outside: Outside | None = None) -> None:
        """Without ``safeguards`` nothing is ever cleaned up, without ``outside`` no hook is ever run."""
        self.context = context
        self.ready = False
        self.broken = ""
        self._links = None if safeguards is None else safeguards.links
        # what is known
        self.ledger = Ledger(context.clock, context.configs)
        self.watches = Subscriptions()
        self.refusals = Refusals(context.clock)
        self.catalog = Catalog(context.disk, context.in_thread)
        self.cluster = Cluster(context.me, context.epoch, context.now_ms, str(context.here))
        self.acquaintance = WarmUpBarrier(context.clock, self.cluster)
        # what changes it
        self.hooks = Hooks(context, self.ledger, outside, self._hooked)
        self.exchanges = PieceExchanges(context, self.cluster.roster.is_configured, self._complete)
        peers = PeerSelection(self.watches, context.wire, self.cluster, context.rng)
        self.downloads = Downloads(context, self.ledger, peers, self, self.catalog, self.exchanges, self.hooks)
        neighbours = Neighbours(context, self._nearby, self._stalled_on, self.acquaintance.wait)
        self.uploads = Uploads(context, self.ledger, self.downloads, self._conflicted, self._rejected, neighbours)
        self.removals = Removals(context, self.ledger, self.uploads, self.downloads, self._removed, self._protecting, self._stays)
        self.reconciler = self._reconciler()
        self.scrub = Scrub(context, self.ledger, self.downloads)
        self.presence = Presence(context, self.ledger, self.downloads, self.uploads.alone)
        # who hears of it
        self.clients = Clients(context, self.watches, self.hooks, self._watched, self.downloads.nudge_image)
        state = NodeState(context, self.ledger, self.watches, self.downloads, self.hooks)
        listener = NodeListener(self.clients, self.downloads, self.reconciler, lambda: self.ready)
        self.gossip = Gossip(context, self.cluster, state, listener)
        passing = self.downloads.passing
        self.blocks = BlockService(self.ledger, context.disk, self.catalog, passing, context.in_thread, self.scrub.suspect)
        self.awaited = AvailabilityRequests(self._pieces, context.clock)
        self.path_states = self._path_states()
        self.counterpart = self._requests()
        self.cleanup: Cleanup | None = None
        if safeguards is not None:
            activity = NodeActivity(self.cluster, self.downloads, self.blocks, self.catalog, self.uploads)
            self.cleanup = Cleanup(context, self.ledger, safeguards, activity)

    def _reconciler(self) -> Reconciler:
        return Reconciler(
            self.context,
            self.ledger,
            self.uploads,
            self.removals,
            self.downloads.hint,
            self.cluster.add_watchers,
            lambda vpath: self.downloads.stalled(vpath, STALLED_S),
        )

    def _path_states(self) -> PathStates:
        return PathStates(
            self.context,
            self.ledger,
            self.refusals,
            self.cluster,
            self.presence.there,
            lambda vpath: self.uploads.forms.at(vpath, self.context.now_ms()),
            self.acquaintance.wait,
        )

    def _requests(self) -> Requests:
        context = self.context
        changes = ChangeRequests(context, self.ledger, self.uploads, self.removals, self.clients, self.acquaintance, self.presence.there)
        listings = Listings(context, self.ledger, self.watches, self.cluster)
        serving = Serving(self.blocks, self.awaited, self.exchanges)
        return Requests(context, changes, listings, self.path_states, serving, self.gossip.pushed)

    def _complete(self, vpath: VPath, image: ImageId) -> Deferred[Pieces | None]:
        """Gives the cut of an image that is committed at ``vpath``."""
        committed = self.ledger.committed(vpath)
        if committed is None or committed.image != image:
            return succeed(None)

        def cut(index: Index | None) -> Pieces | None:
            return None if index is None else index.pieces

        return self.catalog.get(image).addCallback(cut)

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
            self.exchanges.start()
            self.scrub.start()
            self.presence.start()
            if self.cleanup is not None:
                self.cleanup.start()
            self.ready = True

        return self.context.disk.load().addCallback(loaded)

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
        self.context.disk.forget(self.ledger.forget(key))

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
        self.awaited.stop()  # guard: I8
        self.exchanges.stop()

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
        self.clients.received(vpath, state)
        self.gossip.news_complete(vpath)
        self.reconciler.ended(vpath, well=True)
        self.scrub.arrived(vpath)

    def gave_up(self, vpath: VPath, image: ImageId, reason: AbortReason, detail: str) -> None:
        """A download ended without an image: tell the clients."""
        self.hooks.gave_up(vpath, image)
        word = f"{reason.value}: {detail}" if detail else reason.value
        self.refusals.note(vpath, image, word if reason is AbortReason.NO_SPACE else reason.value, rejected=False)  # others may name files
        self.clients.gave_up(vpath, image, word)
        # guard: A58, -> self.awaited.progressed(vpath)
        self.context.clock.callLater(0, self.awaited.progressed, vpath)  # it is pending until this returns
        self.gossip.news_download(vpath)
        self.reconciler.ended(vpath, well=False)

    def _protecting(self, config: DirConfig, vpath: VPath) -> Deferred[str | None]:
        """The link of the operator that leads to what is at ``vpath``, None for none. Fails with DiskError when nobody can tell."""
        return succeed(None) if self._links is None or not config.protect else self._links.leading(config, vpath)

    def _stays(self, removal: Removal, reason: RejectReason) -> None:
        """Notes why an image that peers removed stays here: whoever asks for the path hears it."""
        if removal.origin is Origin.PEER and reason in (RejectReason.PROTECTED, RejectReason.REPLACE_DOESNT_MATCH):
            self.refusals.note(removal.vpath, removal.image, reason.value, rejected=True)

    def _removed(self, vpath: VPath, image: ImageId) -> None:
        """An image was removed here: tell the clients and the peers."""
        self.clients.gone(vpath, image)
        self.gossip.news_complete(vpath)

    def _pieces(self, vpath: VPath, image: ImageId) -> int | None:
        """The mask of what is here of ``image``, -1 for everything; None when it is neither here nor on its way."""
        committed, pending = self.ledger.committed(vpath), self.ledger.pending(vpath)
        if committed is not None and committed.image == image:
            return -1
        if pending is None or pending.state.image != image:  # guard: A2 F3, without 2
            return None
        download = self.downloads.get(vpath)
        return download.step.pieces or 0 if download is not None and download.image == image else 0

    def _hooked(self, vpath: VPath, report: HookReport) -> None:
        """A hook has ended: tell the clients. That one is due is told with the image."""
        if report.state is not HookState.PENDING:
            self.clients.hooked(vpath, report)
            self.gossip.news_hook(vpath)

    def _conflicted(self, vpath: VPath, image: ImageId, detail: str) -> None:
        """An append-only path has two images in the cluster: tell the clients that brought this one."""
        self.clients.conflicted(vpath, image, detail)

    def _watched(self, vpath: VPath) -> None:
        """A client began to wait for ``vpath``."""
        self.gossip.news_watch(vpath)

    def _nearby(self, key: str) -> Nearby:
        """The other nodes to ask about a path of ``key``."""
        peers = [peer for peer in self.cluster.peers() if not peer.own and (not peer.keys or key in peer.keys)]
        heard = [peer.address for peer in peers if peer.keys and peer.silent_s is not None and peer.silent_s < SILENT_S]
        return Nearby(heard, [peer.address for peer in peers if peer.address not in heard])

    def _stalled_on(self, vpath: VPath, image: ImageId) -> set[MachineId]:
        """The other nodes on which this upload gets no further."""
        return {holder.machine for holder in self.cluster.holders(vpath, image) if holder.stalled}

    def _rejected(self, order: UploadRequest, reason: RejectReason) -> None:
        """Notes the refusal of an upload that peers have. A client's is not noted: anybody may ask for anything."""
        if order.origin is Origin.PEER:  # guard: I6, -> True
            self.refusals.note(order.vpath, order.image, reason.value, rejected=True)
