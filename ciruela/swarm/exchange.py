"""Exchange of the pieces of one image with neighbors: offers, answers, and news of what is here (the user's design: "gives to each other").

A giver with room on its uplink offers pieces to the one of two random neighbors that has less, and first those that it gave least often
itself. The taker takes what it lacks, and tells its neighbors. Nobody has a role, and no two nodes have to agree about anything: each
decides by its own counters. That those given least go first is the heart: so a node that alone has new pieces spreads different ones.

A client gives by the same rules, with three differences: it offers pieces in their order, each only as long as none of those that it is
connected to has it, takes it, or was offered it; and it is never told to wait.

No I/O, no clock, no connection: what happens is told with the time (seconds), and :meth:`Exchange.messages` gives what there is to say.
"""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import field
from typing import Generic, TypeVar

from ciruela.model.bitfield import bits, lowest
from ciruela.model.values import dataclass
from ciruela.proto.messages import PieceNews, PieceOffer

K = TypeVar("K")
"""Name of a neighbor."""

OUT = 4
CLIENT_OUT = 6
"""Pieces under way from a giver, besides what its uplink gives while a question is answered twice."""

IN = 10
"""Pieces accepted and not here, besides the same."""

LEAST_SHARE = 2
"""Least share of an image beside others that are exchanged at the same time."""

MOST_MORE = 128
"""Pieces that a window has beyond these, at most: what a neighbor who says nothing can hold up."""

CHOICES = 3
"""Pieces in an offer of one, counted with those that may be taken in its place."""

BUNDLE_S = 0.01
"""A transfer is as many pieces as the uplink gives in so long: fewer messages where links are fast."""

BUNDLES = 256
"""An image is at least so many transfers."""

DRIFT = 1.02
WEIGHT = 0.1
"""Weight of the last value in a moving mean."""

LOOKED_AT = 24
"""Transfers that a rate is computed from."""

LATE_LEAST_S = 0.3
LATER = 4.0
"""A piece is late after LATER times what pieces take here lately, and LATE_LEAST_S."""

QUIET_S = 1.0
QUIET_PIECES = 8
GENEROUS_S = 5.0
"""A client offers whatever somebody lacks for GENEROUS_S, when nothing was taken of it for QUIET_S, and as long as its link needs for
QUIET_PIECES, and nobody got anything from others either."""

LOOK_S = 0.1
"""So often :meth:`PieceExchange.look` is called."""

NEWS_S = 0.4
"""A neighbor to whom nothing else is said hears what is new at least so often. News go with every offer and answer, so these are few."""

UNPAID_S = 10.0
"""Time after which what a neighbor took, and what has not left, counts as under way no longer."""

DISTRUST_S = 1.0
MOST_DISTRUST_S = 60.0
"""Nothing is taken of a neighbor that failed for DISTRUST_S, and twice as long each time in a row, up to MOST_DISTRUST_S."""

LEVELS = 3
"""Counts of how often a piece was given: never, once, more often."""


def chosen(mask: int, most: int, count: int, rng: random.Random) -> int:
    """Gives ``most`` pieces of ``mask``, each the next one from a random place among ``count``, as a mask."""
    found = 0
    while mask and most > 0:
        turn = int(rng.random() * count)
        high = mask >> turn << turn or mask
        low = high & -high
        found |= low
        mask ^= low
        most -= 1
    return found


@dataclass(slots=True, eq=False)
class Neighbor(Generic[K]):
    """A neighbor. Masks of pieces.

    ``known``: what it has or takes; ``has``: what it said it has. ``said``, ``said_takes``: what it was told that is here, or on its way.
    ``offered``: all pieces of the offers under way, ``offers``: these, each with its time. ``owed``: what it took and was not sent,
    ``owed_s``: when that changed last; ``early``: what it was sent before its answer to the offer, which came another way, was heard.
    ``under_way``: number of pieces offered and not answered, or owed.
    ``resting``: it took nothing of an offer, and has not said anything since. ``failures``, in a row: it was late, or gave wrong bytes;
    nothing is taken from it until ``distrusted_until_s``.
    """

    key: K
    takes_part: bool
    known: int = field(init=False, default=0)
    has: int = field(init=False, default=0)
    heard: bool = field(init=False, default=False)
    said: int = field(init=False, default=0)
    said_takes: int = field(init=False, default=0)
    offered: int = field(init=False, default=0)
    offers: deque[tuple[float, PieceOffer]] = field(init=False, default_factory=deque)
    new_offers: list[PieceOffer] = field(init=False, default_factory=list)
    answers: list[int] = field(init=False, default_factory=list)
    full: bool = field(init=False, default=False)
    owed: int = field(init=False, default=0)
    owed_s: float = field(init=False, default=-math.inf)
    early: int = field(init=False, default=0)
    under_way: int = field(init=False, default=0)
    resting: bool = field(init=False, default=False)
    failures: int = field(init=False, default=0)
    distrusted_until_s: float = field(init=False, default=-math.inf)
    spoken_s: float = field(init=False, default=-math.inf)


@dataclass(slots=True)
class TransferRate:
    """Times of the last transfers, for how many a second there are."""

    times: deque[float] = field(default_factory=lambda: deque(maxlen=LOOKED_AT))

    def more(self, now_s: float, delay_s: float) -> int:
        """Computes how many pieces go by while a question is answered twice."""
        times = self.times
        took_s = now_s - times[0] if len(times) > 4 else 0.0
        return min(MOST_MORE, math.ceil(2 * delay_s * len(times) / took_s)) if took_s > 0 else 0

    def each_s(self) -> float:
        """Computes the seconds from one piece to the next."""
        times = self.times
        return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0

    def bundle(self, most: int) -> int:
        """Computes how many pieces go by in BUNDLE_S, ``most`` at most."""
        times = self.times
        took_s = times[-1] - times[0] if len(times) > 4 else 0.0
        return max(1, min(most, int(BUNDLE_S * (len(times) - 1) / took_s))) if took_s > 0 else 1


class PieceExchange(Generic[K]):
    """State of one image of ``count`` pieces, at one node or client. ``have``: the pieces that are here.

    ``coming``: the pieces on their way, each with who gives it, and since when (seconds). ``elsewhere``: pieces that come in another way,
    and are not to be taken; whoever knows sets it.
    """

    def __init__(self, count: int, have: int, rng: random.Random, *, client: bool = False, beside: int = 0) -> None:
        """``beside``: number of other images that are exchanged over the same links, with which this one shares them."""
        self.count = count
        self.everything = (1 << count) - 1
        self.have = have
        self.neighbors: dict[K, Neighbor[K]] = {}
        self.coming: dict[int, tuple[K, float]] = {}
        self.coming_mask = 0
        self.elsewhere = 0
        self.out = 0
        self._client = client
        self._beside = beside
        self._rng = rng
        self._given = [have] + [0] * (LEVELS - 1)
        self._order: list[Neighbor[K]] = []
        self._delay_s = 1.0
        self._wait_s = LATE_LEAST_S
        self._sent = TransferRate()
        self._came = TransferRate()
        self._taken_s = 0.0
        self._generous_until_s = -math.inf
        self._most_bundled = max(1, count // BUNDLES)
        self._to_say: dict[K, Neighbor[K]] = {}

    # -- neighbors ----------------------------------------------------------------------------------------------------------------

    def join(self, key: K, *, takes_part: bool = True) -> None:
        """Adds a neighbor, of which nothing is known. ``takes_part``: it may be offered something; a client may not."""
        self.neighbors[key] = neighbor = Neighbor(key, takes_part)
        self._order.append(neighbor)
        self._to_say[key] = neighbor

    def leave(self, key: K, now_s: float) -> None:
        """Removes a neighbor: what it owes may come from somebody else."""
        neighbor = self.neighbors.pop(key, None)
        if neighbor is None:
            return
        self._forget(neighbor)
        self._offer(now_s)

    def _forget(self, neighbor: Neighbor[K]) -> None:
        self._order.remove(neighbor)
        self._to_say.pop(neighbor.key, None)
        self.out -= neighbor.under_way
        for piece in [piece for piece, (giver, _) in self.coming.items() if giver == neighbor.key]:
            self._free(piece)

    # -- what happens -------------------------------------------------------------------------------------------------------------

    def heard(self, key: K, message: PieceNews, now_s: float) -> int:
        """Takes in what a neighbor says. Gives what it takes of what it was offered, as a mask: these pieces have to be sent to it."""
        neighbor = self.neighbors.get(key)
        if neighbor is None:
            return 0
        if message.joins and neighbor.heard:
            neighbor = self._begin_anew(neighbor)
        if not neighbor.heard or message.has & ~neighbor.has:
            # While something comes to a neighbor, from whomever, nothing has to be given to it a second time.
            neighbor.heard, self._taken_s = True, now_s
        neighbor.has |= message.has
        neighbor.known = (neighbor.known | message.has | message.takes) & ~message.freed
        neighbor.resting = False
        to_send = 0
        for taken in message.answers:
            if not neighbor.offers:  # guard: A24
                break
            since_s, offer = neighbor.offers.popleft()
            self._delay_s = min(now_s - since_s, self._delay_s * DRIFT)
            neighbor.offered &= ~(offer.pieces | offer.others)
            neighbor.early &= neighbor.offered | taken
            taken &= (offer.pieces | offer.others) & ~neighbor.owed  # guard: A24, (offer.pieces | offer.others) & -> self.have &
            number = taken.bit_count()
            neighbor.under_way += number - offer.pieces.bit_count()
            self.out += number - offer.pieces.bit_count()
            if number:
                neighbor.known |= taken
                neighbor.owed |= taken
                self._pay(neighbor, neighbor.early & taken)
                neighbor.owed_s = self._taken_s = now_s
                to_send |= taken
            else:
                neighbor.resting = True
        for offer in message.offers:
            self._offered(neighbor, offer, now_s)
        self._offer(now_s)
        return to_send

    def _begin_anew(self, neighbor: Neighbor[K]) -> Neighbor[K]:
        """The neighbor has lost its memory, or what was told on the way: nothing that was said counts any more."""
        self._forget(neighbor)
        self.join(neighbor.key, takes_part=neighbor.takes_part)
        return self.neighbors[neighbor.key]

    def _offered(self, neighbor: Neighbor[K], offer: PieceOffer, now_s: float) -> None:
        here = self.have | self.coming_mask | self.elsewhere
        taken = offer.pieces & ~here
        more = offer.others & ~here
        if taken or more:
            if now_s < neighbor.distrusted_until_s:  # guard: A7 F5 A58
                taken = 0
            elif neighbor.takes_part and len(self.coming) >= self._limit(now_s):  # guard: I6
                neighbor.full = True
                taken = 0
            else:
                lacks = offer.pieces.bit_count() - taken.bit_count()
                if lacks and more:
                    taken |= lowest(more, lacks)
                for piece in bits(taken):
                    self.coming[piece] = neighbor.key, now_s
                self.coming_mask |= taken
        neighbor.answers.append(taken)
        self._to_say[neighbor.key] = neighbor

    def sent(self, key: K, pieces: int, now_s: float, *, given: bool = True) -> None:
        """Pieces (a mask) for a neighbor have left for the network; without ``given`` they could not be given now, and nothing more can."""
        neighbor = self.neighbors.get(key)
        self._sent.times.extend([now_s] * pieces.bit_count())
        if neighbor is not None:
            neighbor.owed_s = self._taken_s = now_s
            neighbor.resting = neighbor.resting or not given
            neighbor.early |= pieces & neighbor.offered & ~neighbor.owed
            self._pay(neighbor, pieces)
        self._offer(now_s)

    def _pay(self, neighbor: Neighbor[K], pieces: int) -> None:
        number = (neighbor.owed & pieces).bit_count()
        neighbor.owed &= ~pieces
        neighbor.early &= ~pieces | neighbor.offered
        neighbor.under_way -= number
        self.out -= number

    def arrived(self, key: K, pieces: int, now_s: float) -> None:
        """Pieces (a mask) are here, verified. The neighbor gave them."""
        neighbor = self.neighbors.get(key)
        if neighbor is not None:
            neighbor.failures = 0
        fresh = pieces & ~self.have
        for piece in bits(pieces):
            waited = self.coming.pop(piece, None)
            if waited is not None:
                self._wait_s += WEIGHT * (now_s - waited[1] - self._wait_s)
                self._came.times.append(now_s)
        self.coming_mask &= ~pieces
        self.have |= fresh
        self._given[0] |= fresh
        self._offer(now_s)

    def coming_from(self, key: K) -> int:
        """Lists the pieces that a neighbor is to give, as a mask."""
        pieces = 0
        for piece, (giver, _) in self.coming.items():
            pieces |= (giver == key) << piece
        return pieces

    def idle(self) -> bool:
        """Tells whether no neighbor lacks anything, and nothing is on its way."""
        return not self.out and all(neighbor.known == self.everything or not neighbor.takes_part for neighbor in self._order)

    def failed(self, key: K, pieces: int, now_s: float, *, busy: bool = False) -> None:
        """Nothing came of these pieces (a mask), or wrong bytes: they may come from others, and nothing from this one for a while.

        ``busy``: the neighbor said that it cannot give them now, which is no failure.
        """
        for piece in bits(pieces & self.coming_mask):
            if self.coming[piece][0] == key:
                self._free(piece)
        if not busy:
            self._distrust(key, now_s)
        self._offer(now_s)

    def _distrust(self, key: K, now_s: float) -> None:
        neighbor = self.neighbors.get(key)
        if neighbor is not None:
            neighbor.failures += 1
            neighbor.distrusted_until_s = now_s + min(MOST_DISTRUST_S, DISTRUST_S * 2 ** (neighbor.failures - 1))

    def look(self, now_s: float, beside: int = 0) -> int:
        """Frees what is late, and gives it as a mask. A second copy is then taken from whoever offers it; the first one to come counts.

        ``beside``: number of other images that are exchanged over the same links now.
        """
        self._beside = beside
        late_s = max(LATE_LEAST_S, LATER * self._wait_s)
        freed = 0
        late = [(piece, giver, since_s) for piece, (giver, since_s) in self.coming.items() if now_s > since_s + late_s]
        for piece, _, since_s in late:
            # What came too late for the mean has to raise it, or everything would be late on a link that became slow.
            self._wait_s += WEIGHT * (now_s - since_s - self._wait_s)
            self._free(piece)
            freed |= 1 << piece
        for giver in dict.fromkeys(giver for _, giver, _ in late):
            self._distrust(giver, now_s)
        for neighbor in self._order:
            neighbor.resting = False
            # Who takes a piece and then does not ask for it may not keep the uplink from others.
            if neighbor.owed and now_s > neighbor.owed_s + UNPAID_S:  # guard: A58
                self._pay(neighbor, neighbor.owed)
        self._offer(now_s)
        return freed

    def _free(self, piece: int) -> None:
        del self.coming[piece]
        self.coming_mask &= ~(1 << piece)

    # -- offers -------------------------------------------------------------------------------------------------------------------

    def window(self, now_s: float) -> int:
        """Computes how many pieces may be under way from here."""
        most = self._share(CLIENT_OUT if self._client else OUT)
        return most * self._sent.bundle(self._most_bundled) + self._sent.more(now_s, self._delay_s)

    def _share(self, most: int) -> int:
        """Computes how much of ``most`` this image may use beside the others."""
        return max(LEAST_SHARE, most // (1 + self._beside))

    def _limit(self, now_s: float) -> int:
        """Computes how many pieces may be on their way here."""
        return self._share(IN) * self._came.bundle(self._most_bundled) + 2 * self._came.more(now_s, self._delay_s)

    def _offer(self, now_s: float) -> None:
        """Offers, while there is room for more on the uplink."""
        if not self._order or not (self.have or self._client):
            return
        window = self.window(now_s)
        if self.out >= window:
            return
        bundle = self._sent.bundle(self._most_bundled)
        most_each = max(2 * bundle, window // 2)
        while self.out < window:
            found = self._link(most_each, now_s) if self._client else self._neighbor(most_each)
            if found is None:
                return
            neighbor, wanted = found
            offer = self._choose(wanted, bundle)
            most = offer.pieces.bit_count()
            self._count(offer.pieces)
            neighbor.offered |= offer.pieces | offer.others
            neighbor.offers.append((now_s, offer))
            neighbor.new_offers.append(offer)
            neighbor.under_way += most
            self.out += most
            self._to_say[neighbor.key] = neighbor

    def _neighbor(self, most: int) -> tuple[Neighbor[K], int] | None:
        """Chooses whom to offer something to, and all that is worth offering: of two random neighbors the one that has less."""
        order = self._order
        turn = int(self._rng.random() * len(order))
        first: tuple[Neighbor[K], int] | None = None
        for neighbor in order[turn:] + order[:turn]:
            if not self._has_room(neighbor, most):
                continue
            wanted = self.have & ~(neighbor.known | neighbor.offered)
            if not wanted:
                continue
            if first is not None:
                return first if first[0].known.bit_count() <= neighbor.known.bit_count() else (neighbor, wanted)
            first = neighbor, wanted
        return first

    def _link(self, most: int, now_s: float) -> tuple[Neighbor[K], int] | None:
        """As :meth:`_neighbor`, for a client: the link with the least under way, and what none of the links has, takes or was offered.

        When that is nothing, and nothing was taken for QUIET_S, for a while all that this link lacks: who has it may not be able to give
        it, and a client that relays can get what it does not have itself.
        """
        there = 0
        for neighbor in self._order:
            there |= neighbor.known | neighbor.offered
        if not self.out and now_s > self._taken_s + max(QUIET_S, QUIET_PIECES * self._sent.each_s()):
            self._generous_until_s = now_s + GENEROUS_S
        generous = now_s < self._generous_until_s
        for neighbor in sorted(self._order, key=lambda neighbor: neighbor.under_way):
            if self._has_room(neighbor, most):
                wanted = self.have & ~there or (generous and self.everything & ~(neighbor.known | neighbor.offered))
                if wanted:
                    return neighbor, wanted
        return None

    @staticmethod
    def _has_room(neighbor: Neighbor[K], most: int) -> bool:
        """Tells whether a neighbor may be offered something, while ``most`` pieces may be under way to one."""
        return neighbor.takes_part and neighbor.heard and not neighbor.resting and neighbor.under_way < most

    def _choose(self, wanted: int, bundle: int) -> PieceOffer:
        """Chooses the pieces to offer: those given least, of these random ones; of a client the first."""
        if self._client:
            return PieceOffer(lowest(wanted, bundle))
        pieces = others = 0
        lacks, left = bundle, CHOICES - 1
        for mask in self._given:
            useful = mask & wanted
            if lacks and useful:
                more = chosen(useful, lacks, self.count, self._rng)
                lacks -= more.bit_count()
                pieces |= more
                useful ^= more
            if not lacks and useful:
                more = chosen(useful, left, self.count, self._rng)
                left -= more.bit_count()
                others |= more
                if not left:
                    break
        return PieceOffer(pieces, others)

    def _count(self, pieces: int) -> None:
        """Counts ``pieces`` as given once more."""
        given = self._given
        for level in range(LEVELS - 2, -1, -1):
            moved = given[level] & pieces
            given[level] ^= moved
            given[level + 1] |= moved

    # -- what there is to say -----------------------------------------------------------------------------------------------------

    def messages(self, now_s: float, news_before_s: float = -math.inf) -> list[tuple[K, PieceNews]]:
        """Gives what is to be said now: offers and answers, with all news; and news alone to who heard nothing since ``news_before_s``."""
        said = []
        if news_before_s > -math.inf:
            takes = self._takes()
            for neighbor in self._order:
                if neighbor.spoken_s <= news_before_s and (neighbor.said != self.have or neighbor.said_takes != takes):
                    self._to_say.setdefault(neighbor.key, neighbor)
        if not self._to_say:
            return []
        for key, neighbor in self._to_say.items():
            said.append((key, self._message(neighbor)))
            neighbor.spoken_s = now_s
        self._to_say.clear()
        return said

    def _takes(self) -> int:
        return (self.coming_mask | self.elsewhere) & ~self.have

    def _message(self, neighbor: Neighbor[K]) -> PieceNews:
        now = self._takes()
        has = self.have & ~neighbor.said
        takes = now & ~neighbor.said_takes
        freed = neighbor.said_takes & ~(now | self.have)
        neighbor.said, neighbor.said_takes = self.have, now
        offers, answers = tuple(neighbor.new_offers), tuple(neighbor.answers)
        message = PieceNews(has, takes, freed, offers, answers, neighbor.full, joins=neighbor.spoken_s == -math.inf)
        neighbor.new_offers.clear()
        neighbor.answers.clear()
        neighbor.full = False
        return message
