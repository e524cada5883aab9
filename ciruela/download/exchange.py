"""Exchange of pieces with the nodes around this one, and with clients: what :mod:`ciruela.swarm.exchange` decides is said and heard here.

One exchange for each image at each path of which somebody near, or this node, lacks something. Between nodes each side speaks over the
connection that it made; what a client and a node say goes over the client's.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.interfaces import Address, Connection, NodeContext
from ciruela.model.bitfield import Pieces
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.vpath import VPath
from ciruela.proto.messages import ExchangePieces, GetBlocks, PieceNews
from ciruela.runtime import BoundedMap, PeriodicTask
from ciruela.swarm import neighbors
from ciruela.swarm.exchange import LOOK_S, NEWS_S, PieceExchange

Key = Address | Connection
"""Neighbor: a node by its address, a client by its connection."""

REFUSED_S = 5.0
"""A node that has neighbors enough is asked again so much later."""

SILENT_S = 5.0
"""A neighbor from which nothing was heard for so long is none."""

MOST_REFUSED = 1000
MOST_WAITING = 64
"""First news that wait for an index to be read."""


class Taker(Protocol):
    """Port to the download that fetches the pieces."""

    def take(self, key: Key, pieces: int) -> None:
        """Fetches ``pieces`` (a set) from a neighbor: it offered them, and heard that they are taken."""

    def release(self, pieces: int) -> None:
        """Lets others give ``pieces``, too: they are late."""

    def wanted(self) -> int:
        """The pieces of which something is neither here nor asked for."""


class ImageExchange:
    """The exchange of one image at one path. ``policy`` decides, ``taker`` is the download if it is not complete here."""

    _log = Logger()

    def __init__(self, node: PieceExchanges, vpath: VPath, image: ImageId, pieces: Pieces, have: int) -> None:
        """``have``: the pieces that are here, a set."""
        context = node.context
        rng = random.Random(context.rng.getrandbits(64))  # noqa: S311  choices of peers, nothing secret
        self.policy: PieceExchange[Key] = PieceExchange(pieces.count, have, rng, beside=node.busy)
        self.pieces = pieces
        self.taker: Taker | None = None
        self._node = node
        self._clock = context.clock
        self._vpath, self._image = vpath, image
        self._refused: BoundedMap[Address, float] = BoundedMap(MOST_REFUSED)
        self._joined_s: dict[Key, float] = {}
        self._flushes: IDelayedCall | None = None

    # -- neighbors ----------------------------------------------------------------------------------------------------------------

    def _nodes(self) -> int:
        return sum(1 for key in self.policy.neighbors if isinstance(key, Address))

    def meet(self, nodes: dict[MachineId, Address], clients: Iterable[Connection]) -> None:
        """Takes note of who has the image or fetches it: the nearest become neighbors, and all clients that publish it."""
        for link in clients:
            if link not in self.policy.neighbors:
                self._join(link)
        now_s = self._clock.seconds()
        missing = neighbors.wanted(len(nodes)) - self._nodes()
        for machine in neighbors.in_order(self._image, self._node.context.me, nodes):
            if missing <= 0:
                break
            address = nodes[MachineId(machine)]
            if address not in self.policy.neighbors and now_s >= self._refused.get(address, 0.0):
                self._join(address)
                missing -= 1
        self.soon()

    def _join(self, key: Key) -> None:
        self.policy.join(key, takes_part=isinstance(key, Address))
        self._joined_s[key] = self._clock.seconds()

    def heard(self, key: Key, news: PieceNews) -> bool:
        """A neighbor said something, or somebody wants to be one. Tells whether it is of use."""
        now_s = self._clock.seconds()
        if news.leaves:
            if isinstance(key, Address):
                self._refused.put(key, now_s + REFUSED_S)
            self.leave(key)
            return False
        if key not in self.policy.neighbors:
            if not isinstance(key, Address) or self._nodes() >= neighbors.MOST:  # guard: I6, without 2; A24, without 1
                self._node.say(key, self._vpath, self._image, PieceNews(leaves=True))
                return False
            self._join(key)
        self._joined_s.pop(key, None)
        self._elsewhere()
        self.policy.heard(key, news, now_s)
        self.soon()
        return bool(news.has or news.takes or news.freed or news.offers or news.answers)

    def leave(self, key: Key) -> None:
        """A neighbor is gone: what it owes may come from others."""
        self._joined_s.pop(key, None)
        if self.taker is not None:
            self.taker.release(self.policy.coming_from(key))
        self.policy.leave(key, self._clock.seconds())
        self.soon()

    # -- pieces -------------------------------------------------------------------------------------------------------------------

    def _elsewhere(self) -> None:
        if self.taker is not None:
            policy = self.policy
            policy.elsewhere = policy.everything & ~(policy.have | policy.coming_mask | self.taker.wanted())

    def arrived(self, key: object, pieces: int) -> None:
        """Pieces (a set) are whole here; ``key`` gave them."""
        self.policy.arrived(key, pieces, self._clock.seconds())  # type: ignore[arg-type]
        self.soon()

    def failed(self, key: object, pieces: int, *, busy: bool = False) -> None:
        """Nothing came of these pieces, or wrong bytes; or who was asked is ``busy``."""
        self.policy.failed(key, pieces, self._clock.seconds(), busy=busy)  # type: ignore[arg-type]
        self.soon()

    def sent(self, key: Key, numbers: Iterable[int], given: bool) -> None:
        """The answer with these blocks was sent to a neighbor, or they were refused."""
        self.policy.sent(key, self.pieces.of_blocks(numbers), self._clock.seconds(), given=given)
        self.soon()

    # -- what is said -------------------------------------------------------------------------------------------------------------

    def soon(self) -> None:
        """Says what there is to say in the next turn: what comes in one turn of the reactor is answered in one message to each."""
        if self._flushes is None:
            self._flushes = self._clock.callLater(0, self._next_turn)

    def _next_turn(self) -> None:
        self._flushes = None
        self.flush()

    def stop(self) -> None:
        """Says nothing more."""
        if self._flushes is not None:
            self._flushes.cancel()
            self._flushes = None

    def flush(self, news_before_s: float = float("-inf")) -> None:
        """Says what there is to say, and fetches what was taken."""
        self.stop()
        for key, news in self.policy.messages(self._clock.seconds(), news_before_s):
            self._node.say(key, self._vpath, self._image, news)
            taken = 0
            for answer in news.answers:
                taken |= answer
            if taken and self.taker is not None:
                self.taker.take(key, taken)

    def look(self) -> bool:
        """Sees to what is late, and says what is new. Tells whether it is needed any more."""
        now_s = self._clock.seconds()
        for key in [key for key, joined_s in self._joined_s.items() if now_s > joined_s + SILENT_S]:
            # It cannot be reached, or is of an earlier version.
            if isinstance(key, Address):
                self._refused.put(key, now_s + REFUSED_S)
            self.leave(key)  # guard: A58
        self._elsewhere()
        late = self.policy.look(now_s, self._node.busy - 1)
        if late and self.taker is not None:
            self.taker.release(late)  # guard: A58 F52
        self.flush(now_s - NEWS_S)
        return self.taker is not None or not self.policy.idle()


@dataclass(eq=False)
class PieceExchanges:
    """The exchanges of a node. ``complete`` gives the cut of an image that is whole at a path; None where it is not."""

    _log = Logger()

    # Required parameters
    context: NodeContext
    known: Callable[[Address], bool]
    complete: Callable[[VPath, ImageId], Deferred[Pieces | None]]

    # Internal state
    _running: dict[tuple[VPath, ImageId], ImageExchange] = field(init=False, default_factory=dict)
    _waiting: dict[tuple[VPath, ImageId], list[tuple[Key, PieceNews]]] = field(init=False, default_factory=dict)
    _keys: dict[Connection, Key] = field(init=False, default_factory=dict)
    _looks: PeriodicTask = field(init=False)

    def __post_init__(self) -> None:
        context = self.context
        self._looks = PeriodicTask(context.clock, context.rng, LOOK_S, self._look, "the exchange of pieces")

    def start(self) -> None:
        """Begins to look after what is exchanged."""
        self._looks.start()

    @property
    def busy(self) -> int:
        """Number of exchanges."""
        return len(self._running)

    def _look(self) -> None:
        for key, exchange in list(self._running.items()):
            if not exchange.look():
                exchange.stop()
                self._running.pop(key, None)

    def begin(self, vpath: VPath, image: ImageId, pieces: Pieces, have: int, taker: Taker) -> ImageExchange:
        """Begins the exchange of what a download fetches."""
        exchange = self._running[vpath, image] = ImageExchange(self, vpath, image, pieces, have)
        exchange.taker = taker
        return exchange

    def end(self, vpath: VPath, image: ImageId) -> None:
        """Ends one: nothing is given from here any more."""
        exchange = self._running.pop((vpath, image), None)
        if exchange is not None:
            exchange.stop()
            for key in exchange.policy.neighbors:
                self.say(key, vpath, image, PieceNews(leaves=True))

    def heard(self, link: Connection, note: ExchangePieces) -> bool:
        """Somebody said something over a connection that was made to this node. Tells whether it is of use."""
        key: Key = link
        if note.port:
            key = Address.of(link.host, note.port)
            if not self.known(key):  # guard: A30 A32
                return False
        try:
            vpath = VPath.parse(note.path)
        except ValueError:
            return False
        self._keys[link] = key
        exchange = self._running.get((vpath, note.image))
        if exchange is not None:
            return exchange.heard(key, note.news)
        if not note.news.leaves:
            waiting = self._waiting.setdefault((vpath, note.image), [])
            waiting.append((key, note.news))
            if len(waiting) == 1:
                self.complete(vpath, note.image).addCallback(self._found, vpath, note.image).addErrback(self._not_found, vpath, note.image)
            del waiting[MOST_WAITING:]  # guard: I6
        return False

    def _found(self, pieces: Pieces | None, vpath: VPath, image: ImageId) -> None:
        waiting = self._waiting.pop((vpath, image))
        exchange = self._running.get((vpath, image))
        if exchange is None:
            if pieces is None:
                for key, _ in waiting:
                    self.say(key, vpath, image, PieceNews(leaves=True))
                return
            exchange = self._running[vpath, image] = ImageExchange(self, vpath, image, pieces, pieces.full)
        for key, news in waiting:
            exchange.heard(key, news)

    def _not_found(self, failure: Failure, vpath: VPath, image: ImageId) -> None:
        self._waiting.pop((vpath, image), None)
        self._log.failure("{image} at {vpath} is not exchanged", failure, image=image.hex(), vpath=str(vpath))

    def answered(self, link: Connection, request: GetBlocks, given: bool) -> None:
        """The answer to a request for blocks was sent, or refused."""
        key = self._keys.get(link)
        try:
            exchange = self._running.get((VPath.parse(request.path), request.image))
        except ValueError:
            return
        if key is not None and exchange is not None and key in exchange.policy.neighbors:
            link.when_sent(lambda: exchange.sent(key, request.numbers, given))

    def lost(self, link: Connection) -> None:
        """A connection ended, and with it what was said over it."""
        key = self._keys.pop(link, None)
        if key is not None and key not in self._keys.values():
            for exchange in list(self._running.values()):
                exchange.leave(key)

    def say(self, key: Key, vpath: VPath, image: ImageId, news: PieceNews) -> None:
        """Says something to a neighbor."""
        note = ExchangePieces(str(vpath), image, self.context.here.port, news)
        if isinstance(key, Address):
            self.context.wire.tell(key, note)
        else:
            key.tell(note)

    def stop(self) -> None:
        """Ends all."""
        self._looks.stop()
        for exchange in self._running.values():
            exchange.stop()
        self._running.clear()
