"""The downloads of a node, one for each path: begun, stopped, and told what is new.

:mod:`ciruela.download.machine` has the steps of each (protocol section 5.4), :mod:`ciruela.download.steps` the work of each step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.download.exchange import PieceExchanges
from ciruela.download.machine import Committing
from ciruela.download.peers import PeerSelection
from ciruela.download.relaycache import BlockRelayCache
from ciruela.download.repair import LostIndex, Repair
from ciruela.download.serving import Catalog
from ciruela.download.sources import Totals
from ciruela.download.steps import Download, DownloadContext, DownloadListener, Gate, OpenGate, Siblings, Transfer
from ciruela.index.tree import Index
from ciruela.interfaces import Address, NodeContext, Pending
from ciruela.model.ids import ImageId
from ciruela.model.upload import AbortReason
from ciruela.model.vpath import VPath
from ciruela.proto.messages import ImageContent
from ciruela.tracking.ledger import Ledger

SUPERSEDABLE_S = 120.0
"""A download that got nothing for so long gives way to a newer upload; the reference gives up after as much (protocol section 5.9)."""


@dataclass(eq=False)
class Downloads:
    """All downloads of this node, one for each path."""

    _log = Logger()

    # Required parameters
    context: NodeContext
    ledger: Ledger
    peers: PeerSelection
    outcome: DownloadListener
    catalog: Catalog
    exchanges: PieceExchanges
    gate: Gate = field(default_factory=OpenGate)

    # Internal state
    totals: Totals = field(init=False, default_factory=Totals)
    passing: BlockRelayCache = field(init=False)
    _running: dict[VPath, Transfer] = field(init=False, default_factory=dict)
    _lost_indexes: list[Deferred[Index]] = field(init=False, default_factory=list)
    _shared: DownloadContext = field(init=False)

    def __post_init__(self) -> None:
        context = self.context
        self.passing = BlockRelayCache(context.clock)
        self._shared = DownloadContext(
            context,
            self.ledger,
            self.peers,
            Siblings(context.configs, self.ledger, self.catalog),
            self.outcome,
            self.gate,
            self.catalog,
            self.totals,
            self.passing,
            self._running,
            self.exchanges,
        )

    def start(self, pending: Pending, hints: tuple[Address, ...] = (), content: ImageContent | None = None) -> None:
        """Begin to fetch what is pending; ``hints`` are nodes that spoke of it, ``content`` came with its order."""
        download = Download(self._shared, pending.vpath, pending.state.image, set(hints), content)
        self._log.info("fetching {image} for {vpath}", image=download.image.hex(), vpath=str(download.vpath))
        self._running[download.vpath] = download
        download.events.begin()

    def repair(self, vpath: VPath) -> Deferred[None] | None:
        """Fetch the image that is committed at ``vpath`` again: what is whole there is linked, the rest comes from others (threats 6.11).

        It stays visible until the two trees change places, and for good when that fails. No record is kept and nobody is told: for others
        the image is here, and a restart forgets the attempt. Any upload that is accepted takes its place. Fires when the image is whole,
        fails with what kept it from that. None when nothing is committed there, or something is on its way.
        """
        committed = self.ledger.committed(vpath)
        if committed is None or vpath in self._running or self.ledger.pending(vpath) is not None:
            return None
        repair = Repair(self._shared, vpath, committed.image)
        self._running[vpath] = repair
        repair.events.begin()
        return repair.ended

    def repair_index(self, vpath: VPath, image: ImageId) -> Deferred[Index]:
        """Put the index of an image that is committed here on the disk again, from others. As ``IndexFetch.run``."""
        fetch = self._shared.index_fetch(LostIndex(vpath, image), on_disk=False).run()
        self._lost_indexes.append(fetch)

        def ended(result: Index | Failure) -> Index | Failure:
            self._lost_indexes.remove(fetch)
            return result

        return fetch.addBoth(ended)

    def hint(self, vpath: VPath, image: ImageId, address: Address) -> None:
        """A node spoke of an image that is on its way here."""
        download = self._running.get(vpath)
        if download is not None and download.image == image:
            download.hints.add(address)
            self.nudge(vpath)

    def nudge(self, vpath: VPath) -> None:
        """There is news of sources for ``vpath``."""
        download = self._running.get(vpath)
        if download is not None:
            download.step.nudge()

    def nudge_image(self, image: ImageId) -> None:
        """A client can give ``image``."""
        for download in list(self._running.values()):
            if download.image == image:
                self.nudge(download.vpath)

    def stop(self, vpath: VPath, reason: AbortReason) -> None:
        """End the download for ``vpath``, if one runs; its staging directory is removed."""
        download = self._running.pop(vpath, None)
        if download is not None:
            download.events.stop(reason)

    def abort(self, vpath: VPath, reason: AbortReason) -> None:
        """Give the download for ``vpath`` up, if one runs, as if it had failed: whoever waits is told, the path is free again."""
        download = self._running.get(vpath)
        if isinstance(download, Download):
            download.events.stop(reason)

    def leave(self, key: str) -> None:
        """End all downloads below ``key``, which is configured no more; what is on disk stays, in case it comes back."""
        for vpath in [vpath for vpath in self._running if vpath.key == key]:
            download = self._running.pop(vpath)
            download.events.let_go()
            download.left_out()

    def settled(self, vpath: VPath) -> Deferred[None] | None:
        """None unless the download for ``vpath`` is being committed, which must not be interrupted: then fires when that has ended."""
        download = self._running.get(vpath)
        if download is None or not isinstance(download.step, Committing):
            return None
        download.step.waiting.append(waiting := Deferred[None]())
        return waiting

    def stop_all(self) -> None:
        """End everything without a word: the daemon stops, what is on disk stays for the next start."""
        self.passing.stop()
        for fetch in list(self._lost_indexes):
            fetch.cancel()
        running = list(self._running.values())
        self._running.clear()
        for download in running:
            download.events.let_go()

    def stalled(self, vpath: VPath, since_s: float = SUPERSEDABLE_S) -> bool:
        """Tells whether the download for ``vpath`` got nothing for ``since_s``."""
        download = self._running.get(vpath)
        return download is not None and download.step.waits_since(self.context.clock.seconds() - since_s)

    def running(self) -> list[Download]:
        """The downloads of uploads under way."""
        return [one for one in self._running.values() if isinstance(one, Download)]

    def repairing(self) -> list[VPath]:
        """The paths of committed images that are being repaired."""
        return [one.vpath for one in self._running.values() if isinstance(one, Repair)]

    def get(self, vpath: VPath) -> Transfer | None:
        """The download or the repair for ``vpath``."""
        return self._running.get(vpath)
