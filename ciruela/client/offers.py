"""Offers of a client: the pieces that it offers to the nodes of one cluster, by the rules of :mod:`ciruela.swarm.exchange`."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ciruela.client.source import Shares
from ciruela.download.fetch_blocks import WIDE_BYTES
from ciruela.interfaces import Connection
from ciruela.model.ids import ImageId
from ciruela.proto.messages import ExchangePieces, GetBlocks
from ciruela.runtime import PeriodicTask
from ciruela.swarm.exchange import LOOK_S, PieceExchange

Place = tuple[ImageId, str]
"""Image and path."""


class PieceOffers:
    """The exchanges of all uploads to one cluster, each with the nodes that are connected. ``shares``: what this client has.

    ``wide``: blocks of what is large may go over bulk connections.
    """

    def __init__(self, clock: IReactorTime, rng: random.Random, shares: Mapping[ImageId, Shares], label: str, *, wide: bool) -> None:
        """``label``: name of the cluster, for the log."""
        self._clock = clock
        self._rng = rng
        self._shares = shares
        self._wide = wide
        self._exchanges: dict[Place, PieceExchange[Connection]] = {}
        self._looks = PeriodicTask(clock, rng, LOOK_S, self._look, f"offering to {label}")
        self._says: IDelayedCall | None = None
        self._stopped = False

    def start(self) -> None:
        """Begins to look after what is offered."""
        self._looks.start()

    def stop(self) -> None:
        """Ends all."""
        self._stopped = True
        self._looks.stop()
        if self._says is not None:
            self._says.cancel()
            self._says = None

    def heard(self, link: Connection, note: ExchangePieces) -> None:
        """A node says what it has, or what it takes of an offer."""
        place, shares = (note.image, note.path), self._shares[note.image]
        exchange = self._exchanges.get(place)
        if exchange is None:
            exchange = self._exchanges[place] = PieceExchange(
                shares.pieces.count, shares.own, self._rng, client=True, beside=len(self._exchanges)
            )
        now_s = self._clock.seconds()
        if note.news.leaves:
            exchange.leave(link, now_s)
        else:
            if link not in exchange.neighbors:
                exchange.join(link)
                shares.lacked(exchange.everything & ~note.news.has)
                if self._wide and shares.total_bytes > WIDE_BYTES:
                    link.widen(gives=True)
            exchange.heard(link, note.news, now_s)
        self._soon()

    def answered(self, link: Connection, request: GetBlocks, given: bool) -> None:
        """Blocks were given to a node, or refused: when they have left, more may be offered."""
        place, shares = (request.image, request.path), self._shares[request.image]
        pieces = shares.pieces.of_blocks(request.numbers)
        if given:
            shares.promised(pieces)
        exchange = self._exchanges.get(place)
        if exchange is not None and link in exchange.neighbors:
            link.when_sent(partial(self._sent, exchange, link, pieces, given))

    def _sent(self, exchange: PieceExchange[Connection], link: Connection, pieces: int, given: bool) -> None:
        exchange.sent(link, pieces, self._clock.seconds(), given=given)
        self._soon()

    def lost(self, link: Connection) -> None:
        """A connection ended: what was on its way over it may go to others."""
        for exchange in self._exchanges.values():
            exchange.leave(link, self._clock.seconds())
        self._soon()

    def _look(self) -> None:
        now_s = self._clock.seconds()
        busy = sum(not exchange.idle() for exchange in self._exchanges.values())
        for exchange in self._exchanges.values():
            exchange.look(now_s, max(0, busy - 1))
        self._soon()

    def _soon(self) -> None:
        """Says what there is to say in the next turn: what comes in one turn of the reactor is answered in one message to each."""
        if self._says is None and not self._stopped:
            self._says = self._clock.callLater(0, self._say)

    def _say(self) -> None:
        self._says = None
        for (image, path), exchange in self._exchanges.items():
            for link, news in exchange.messages(self._clock.seconds()):
                link.tell(ExchangePieces(path, image, 0, news))
