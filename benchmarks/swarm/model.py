"""Machines with links of limited speed, and one image on its way from a client to all of them: with the policy that the daemons run.

The policy is :mod:`ciruela.swarm`; here are clock, links, delays and faults. A machine sends through one uplink and receives through one
downlink, one transfer after the other; what it says waits behind the bytes that the queue of the link holds, and takes the latency.
The processor and the disk cost nothing; there are no packet headers, no index and no commit: what is left is who gives what to whom.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ciruela.index.digest import BLOCK_BYTES
from ciruela.model.bitfield import Pieces
from ciruela.proto.messages import PieceNews
from ciruela.swarm import neighbors
from ciruela.swarm.exchange import LOOK_S, NEWS_S, PieceExchange

FAULTS = ("silent", "liar", "die", "slow", "views", "late", "entry", "client")

CLIENT = -1
"""Number of the client; the nodes count from zero."""

SERVED = 3
"""The client is connected to the first three nodes."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One simulated upload. Times in seconds, sizes in bytes, rates in bytes a second.

    ``queue``: bytes of the uplink's queue that small messages wait behind, at most. ``news_s``:
    a neighbor hears what is new so late at most. ``socket``: bytes that count as sent when the system has taken them. ``jitter_s``: mean of
    what each message is late besides.

    ``fault``: ``silent`` 5 % accept everything and give nothing, ``liar`` 5 % give wrong bytes, ``die`` 5 % end without a word, ``slow``
    10 % have a tenth of the rate, ``views`` 5 % of the others are unknown to each and some hear of the image late, ``late`` 10 % join at
    half time, ``entry`` a node that the client serves dies, ``client`` the client leaves when the nodes have everything between them.
    """

    nodes: int
    size: int
    rate: float
    latency_s: float = 0.001
    news_s: float = NEWS_S
    queue: int = 64 * 1024
    socket: int = 0
    jitter_s: float = 0.0
    fault: str = ""
    seed: int = 1


@dataclass(slots=True, eq=False)
class Machine:
    """A node, or the client."""

    number: int
    rate: float
    exchange: PieceExchange[int]
    up_free_s: float = 0.0
    down_free_s: float = 0.0
    heard_s: dict[int, float] = field(default_factory=dict)
    sent: float = 0.0
    messages: int = 0
    alive: bool = True
    gives: str = "right"
    started: bool = True
    done_s: float | None = None
    freed: int = 0
    twice: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Times as ratios to the bound, bytes as ratios to the image. ``slow`` is the worst node on a slow link, the others are not on one.

    ``messages``: small ones a second and node, each way. ``twice``: pieces that came again; ``freed``: pieces that were late.
    """

    worst: float
    median: float
    p99: float
    slow: float
    client: float
    busiest: float
    connections: int
    messages: float
    twice: int
    freed: int


class Simulation:
    """One upload, event by event. The same setting gives the same outcome everywhere."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.rng = random.Random(setting.seed)
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        blocks = -(-setting.size // BLOCK_BYTES)
        self.pieces = min(blocks, Pieces.of_image(blocks, setting.size).count)
        self.piece = setting.size / self.pieces
        self.nodes = [self._machine(number, 0) for number in range(setting.nodes)]
        self.client = self._machine(CLIENT, (1 << self.pieces) - 1)
        self._left = setting.nodes
        self._everywhere = 0
        self._faults()
        self._connect()

    def _machine(self, number: int, have: int) -> Machine:
        rng = random.Random(self.rng.getrandbits(64))
        return Machine(number, self.setting.rate, PieceExchange(self.pieces, have, rng, client=number == CLIENT))

    def _at(self, delay_s: float, call: Callable[..., None], *args: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now_s + delay_s, self._count, call, args))

    # -- faults and connections ---------------------------------------------------------------------------------------------------

    def _faults(self) -> None:
        setting, others, time_s = self.setting, self.nodes[SERVED:], self.setting.size / self.setting.rate
        if setting.fault == "slow":
            for one in self.rng.sample(others, round(setting.nodes * 0.1)):
                one.rate = setting.rate / 10
        elif setting.fault == "die":
            for one in self.rng.sample(others, max(1, round(setting.nodes * 0.05))):
                self._at(self.rng.random() * time_s, self._die, one)
        elif setting.fault in ("silent", "liar"):
            for one in self.rng.sample(others, max(1, round(setting.nodes * 0.05))):
                one.gives = setting.fault
        elif setting.fault == "late":
            for one in self.rng.sample(others, round(setting.nodes * 0.1)):
                one.started = False
                self._at(0.5 * time_s, self._start, one)
        elif setting.fault == "views":
            for one in others:
                one.started = False
                self._at(0.05 + 0.25 * self.rng.random(), self._start, one)
        elif setting.fault == "entry":
            self._at(0.4 * time_s, self._die, self.nodes[0])

    def _connect(self) -> None:
        """Neighbors as the nodes find them: each asks those that are near, until it has enough; who has the most refuses."""
        setting = self.setting
        unknown = 0.05 if setting.fault == "views" else 0.0
        ids = [self.rng.randbytes(16) for _ in self.nodes]
        numbers = {machine: number for number, machine in enumerate(ids)}
        near: list[set[int]] = [set() for _ in ids]
        for number, machine in enumerate(ids):
            known = [other for other in ids if other != machine and self.rng.random() >= unknown]
            most = neighbors.wanted(len(known))
            for other in neighbors.in_order(b"image", machine, known):
                if len(near[number]) >= most:
                    break
                if len(near[numbers[other]]) < neighbors.MOST:
                    near[number].add(numbers[other])
                    near[numbers[other]].add(number)
        self._near = near
        for one in self.nodes[:SERVED]:
            near[one.number].add(CLIENT)
        for one in self.nodes:
            if one.started:
                self._join(one)
        self._at(0, self._flush, self.client)

    def _of(self, number: int) -> Machine:
        return self.client if number == CLIENT else self.nodes[number]

    def _join(self, one: Machine) -> None:
        for number in sorted(self._near[one.number]):
            other = self._of(number)
            if other.started and number not in one.exchange.neighbors:
                one.exchange.join(number, takes_part=number != CLIENT)
                other.exchange.join(one.number)
                self._at(0, self._flush, other)
        self._at(self.rng.random() * LOOK_S, self._look, one)
        self._at(self.rng.random() * self.setting.news_s, self._news, one)
        self._at(0, self._flush, one)

    def _start(self, one: Machine) -> None:
        one.started = True
        self._join(one)

    def _die(self, one: Machine) -> None:
        """Without a word: its connections are found broken a second later."""
        one.alive = False
        if one is not self.client and one.done_s is None:
            self._left -= 1
        self._at(1.0, self._lost, one)

    def _lost(self, one: Machine) -> None:
        for number in one.exchange.neighbors:
            other = self._of(number)
            other.exchange.leave(one.number, self.now_s)
            self._flush(other)

    # -- links --------------------------------------------------------------------------------------------------------------------

    def _late_s(self) -> float:
        setting = self.setting
        return setting.latency_s + (self.rng.expovariate(1 / setting.jitter_s) if setting.jitter_s else 0.0)

    def _flush(self, one: Machine, news_before_s: float = -math.inf) -> None:
        if not one.alive or not one.started:
            return
        for number, message in one.exchange.messages(self.now_s, news_before_s):
            one.messages += 1
            waits_s = min(self.setting.queue / one.rate, max(0.0, one.up_free_s - self.now_s))
            # A connection keeps the order of what is said over it.
            comes_s = max(one.heard_s.get(number, 0.0), self.now_s + waits_s + self._late_s())
            one.heard_s[number] = comes_s
            self._at(comes_s - self.now_s, self._hears, one, self._of(number), message)

    def _hears(self, giver: Machine, one: Machine, message: PieceNews) -> None:
        if not one.alive:
            return
        pieces = one.exchange.heard(giver.number, message, self.now_s)
        if pieces:
            self._send(one, giver, pieces)
        self._flush(one)

    def _send(self, giver: Machine, taker: Machine, pieces: int) -> None:
        if giver.gives == "silent":
            return
        number = pieces.bit_count()
        size = number * self.piece
        giver.up_free_s = max(self.now_s, giver.up_free_s) + size / giver.rate
        giver.sent += size
        leaves_s = giver.up_free_s - self.now_s
        self._at(max(0.0, leaves_s - self.setting.socket / giver.rate), self._sent, giver, taker.number, pieces)
        self._at(leaves_s + self._late_s(), self._comes, giver, taker, pieces, number)

    def _sent(self, giver: Machine, taker: int, pieces: int) -> None:
        if giver.alive:
            giver.exchange.sent(taker, pieces, self.now_s)
            self._flush(giver)

    def _comes(self, giver: Machine, taker: Machine, pieces: int, number: int) -> None:
        if giver.alive and taker.alive:
            taker.down_free_s = max(self.now_s, taker.down_free_s + number * self.piece / taker.rate)
            self._at(taker.down_free_s - self.now_s, self._arrives, giver, taker, pieces, number)

    def _arrives(self, giver: Machine, one: Machine, pieces: int, number: int) -> None:
        if not one.alive:
            return
        exchange = one.exchange
        if giver.gives == "liar":
            exchange.failed(giver.number, pieces, self.now_s)
            self._flush(one)
            return
        one.twice += number - (pieces & ~exchange.have).bit_count()
        exchange.arrived(giver.number, pieces, self.now_s)
        if exchange.have == exchange.everything and one.done_s is None:
            one.done_s = self.now_s
            self._left -= 1
        if self.setting.fault == "client" and self.client.alive:
            self._everywhere |= pieces
            if self._everywhere == exchange.everything:
                self._die(self.client)
        self._flush(one)

    # -- periodic -----------------------------------------------------------------------------------------------------------------

    def _look(self, one: Machine) -> None:
        if one.alive:
            one.freed += one.exchange.look(self.now_s).bit_count()
            self._flush(one)
            self._at(LOOK_S, self._look, one)

    def _news(self, one: Machine) -> None:
        if one.alive:
            self._flush(one, self.now_s - self.setting.news_s)
            self._at(self.setting.news_s / 2, self._news, one)

    def _next(self) -> None:
        self.now_s, _, call, args = heapq.heappop(self._events)
        call(*args)

    def drain(self, seconds: float) -> None:
        """Goes on for so long after everybody has everything."""
        until_s = self.now_s + seconds
        while self._events and self.now_s < until_s:
            self._next()

    def run(self, most: float = 40.0) -> Outcome:
        """Runs until all that live have everything, or ``most`` times the bound."""
        setting = self.setting
        bound_s = max(setting.size / setting.rate, setting.nodes * setting.size / (setting.rate * (setting.nodes + 1)))
        self._at(0, self._look, self.client)
        while self._events and self._left and self.now_s < most * bound_s + 60:
            self._next()
        alive = [one for one in self.nodes if one.alive]
        fast = sorted((one.done_s or math.inf) / bound_s for one in alive if one.rate == setting.rate)
        slow = [(one.done_s or math.inf) / bound_s for one in alive if one.rate < setting.rate]
        return Outcome(
            worst=fast[-1],
            median=statistics.median(fast),
            p99=fast[math.ceil(0.99 * len(fast)) - 1],
            slow=max(slow, default=0.0),
            client=self.client.sent / setting.size,
            busiest=max(one.sent for one in alive) / setting.size,
            connections=max(len(one) for one in self._near),
            messages=statistics.mean(one.messages for one in alive) / self.now_s,
            twice=sum(one.twice for one in alive),
            freed=sum(one.freed for one in alive),
        )
