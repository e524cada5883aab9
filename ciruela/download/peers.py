"""Peer selection: the candidates that one image may be asked of.

Clients that published it, peers that said they hold some of it, and where there is doubt likely ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from ciruela.download.sources import MOST_WINDOW, Candidate
from ciruela.interfaces import Address, Connection, Connector
from ciruela.model.bitfield import FULL
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.vpath import VPath
from ciruela.tracking.subscriptions import Subscriptions

MOST_PEERS = 16
"""Peers that blocks of one image are exchanged with at a time."""


class BlockHolder(Protocol):
    """A peer that said it has an image, or the slices of ``mask``."""

    @property
    def address(self) -> Address:
        """Address at which the node listens."""

    @property
    def machine(self) -> MachineId:
        """Id of the node."""

    @property
    def source(self) -> bool:
        """Tells whether a client gives to it."""

    @property
    def mask(self) -> int:
        """The slices that it has."""

    @property
    def has_index(self) -> bool:
        """Tells whether it has the index."""


class DownloadGossip(Protocol):
    """Port to gossip, for downloads."""

    def holders(self, vpath: VPath, image: ImageId) -> Sequence[BlockHolder]:
        """The peers that said so themselves."""

    def taking(self, key: str) -> Sequence[Address]:
        """The peers that have the directory config ``key``."""


class Wanting(Protocol):
    """Image on its way, and what is known of it. ``hints`` are nodes that spoke of it, ``peers`` those that were asked last."""

    vpath: VPath
    image: ImageId
    hints: set[Address]
    peers: list[Address]


class PeerSelection:
    """Chooses the candidates for every download of a node."""

    def __init__(self, watches: Subscriptions, wire: Connector, rumors: DownloadGossip, rng: random.Random) -> None:
        self._watches = watches
        self._wire = wire
        self._rumors = rumors
        self._rng = rng

    def candidates(self, wanting: Wanting, others: Sequence[Wanting], *, index: bool) -> list[Candidate]:
        """Lists sources of blocks of ``wanting``, or its ``index``. ``others`` are all downloads: they share the connections of clients."""
        found = [self._seed(link, others) for link in self._watches.sources(wanting.image)]
        holders = {holder.address: holder for holder in self._rumors.holders(wanting.vpath, wanting.image) if holder.has_index or not index}
        useful = list(holders)
        neighbors = [holders[address] for address in self._neighbors(wanting, useful)]
        found.extend(self._peer(one.address, one.mask, hearsay=False, machine=one.machine, served=one.source) for one in neighbors)
        guesses = [address for address in wanting.hints if address not in holders]
        if not found and not guesses:
            guesses = [address for address in self._rumors.taking(wanting.vpath.key) if address not in holders]
        if len(found) < MOST_PEERS:
            found.extend(self._peer(address, FULL, hearsay=True) for address in self._rng.sample(guesses, min(3, len(guesses))))
        return found

    def _seed(self, link: Connection, others: Sequence[Wanting]) -> Candidate:
        """A client; the downloads that it can give to share its connection."""
        sharing = sum(1 for one in others if link in self._watches.sources(one.image))
        most = max(1, MOST_WINDOW // max(1, sharing))
        return Candidate(
            link,
            link.name,
            link.ask,
            FULL,
            seed=True,
            most=most,
            bulk=link.bulk,
            incoming=lambda: link.incoming,
            close=link.close,
            exchanges=link.exchanges,
            fetch=link.fetch,
        )

    def neighbor(self, key: Address | Connection, others: Sequence[Wanting]) -> Candidate:
        """The candidate for a neighbor that offers pieces."""
        if not isinstance(key, Address):
            return self._seed(key, others)
        return replace(self._peer(key, 0, hearsay=False), bulk=True, exchanges=True)

    def _peer(self, address: Address, mask: int, *, hearsay: bool, machine: bytes | None = None, served: bool = False) -> Candidate:
        return Candidate(
            address,
            str(address),
            lambda request: self._wire.ask(address, request),
            mask,
            seed=False,
            hearsay=hearsay,
            bulk=self._wire.bulk(address),
            most=MOST_WINDOW // 2,
            machine=machine,
            served=served,
            incoming=lambda: self._wire.incoming(address),
            exchanges=not hearsay and self._wire.exchanges(address) is not False,
            widen=lambda: self._wire.widen(address),
            fetch=lambda request, land: self._wire.fetch(address, request, land),
        )

    def _neighbors(self, wanting: Wanting, useful: list[Address]) -> list[Address]:
        """Up to MOST_PEERS of those that have the image or fetch it; who was asked before stays."""
        staying = [address for address in wanting.peers if address in useful]
        fresh = [address for address in useful if address not in staying]
        self._rng.shuffle(fresh)
        wanting.peers = (staying + fresh)[:MOST_PEERS]
        return wanting.peers
