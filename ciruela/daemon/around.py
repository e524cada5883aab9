"""What cleanup sees of the node it belongs to (``cleanup.around.Surroundings``)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from twisted.internet.defer import Deferred

from ciruela.cleanup.service import LOOK_S
from ciruela.gossip.packets import Download
from ciruela.model.ids import ImageId
from ciruela.model.vpath import VPath

if TYPE_CHECKING:
    from ciruela.daemon.node import Node

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
        """The paths in ``base`` whose images other nodes are fetching, or this one is mending."""
        fetched = {item.vpath for _, item in self._node.gossip.cluster.stances() if isinstance(item, Download)}
        return {vpath for vpath in fetched.union(self._node.downloads.healing()) if vpath.base == base}

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
