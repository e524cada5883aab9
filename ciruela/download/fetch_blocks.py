"""Fetching the blocks of one image from clients and peers at once (protocol section 5.9).

Each source pulls: whenever it has room for another request it gets the next block that the plan has for it. So a fast source gives much, a
slow one little, and nothing waits for the slowest.

:class:`PieceAssignment` keeps the sources that are to give each piece to this node, and what is late there.

Piece assignment says who takes which piece from whom, among nodes that fetch the same image at the same time. Pure.

A piece that has just arrived at one node is wanted by all others at once. If all of them took it from there, that node would send
everything and the others nothing. So each piece has a relay, which every node computes alike: the relay takes the piece from whoever has it
first, all others take it from the relay. There are as many pieces for each relay as make all nodes send the same.
"""

from __future__ import annotations

import functools
import math
import operator
from bisect import bisect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.download import relaycache
from ciruela.download.availability import AvailabilitySubscription
from ciruela.download.exchange import ImageExchange, Key, Taker
from ciruela.download.plan import BlockPlan
from ciruela.download.relaycache import BlockAnswer, BlockRelayCache
from ciruela.download.sources import GRACE_S, LATE_S, MOST_WINDOW, Candidate, PeerCandidate, Sources, Totals
from ciruela.index.digest import BLOCK_BYTES
from ciruela.index.tree import Index
from ciruela.interfaces import Address
from ciruela.model.errors import Busy, DiskError, DownloadFailed, RemoteError
from ciruela.model.ids import Block, MachineId
from ciruela.model.upload import AbortReason
from ciruela.proto.forms import MAX_BULK
from ciruela.proto.messages import MOST_BULK_BYTES, BlockHint, BlocksData, GetBlock, GetBlocks, GetShare, Request, Response, ShareData
from ciruela.runtime import Batcher, RateLimitedLog, within

STEP = 0.6180339887498949
"""The golden section: its multiples, without what stands before the point, fall evenly into every interval."""


def weights(served: int, others: int) -> tuple[float, float]:
    """For which share of the pieces each of ``served`` nodes, to which a client gives, is the relay, and each of the ``others``.

    With N nodes of which k are served, a relay sends a piece to all but itself and the one it has it from: N - 2, or N - 1 if that is the
    client. Who is served passes 1/k of all pieces on to their relays besides. The shares are those with which everybody sends as much.
    """
    nodes = served + others
    if not served or not others or nodes < 3:
        return 1 / nodes, 1 / nodes
    each = (nodes - 1) / nodes
    other = min(each / (nodes - 2), 1 / others)
    return (1 - others * other) / served, other


def near(count: int, me: bytes, others: tuple[bytes, ...], served: frozenset[bytes]) -> dict[bytes, int]:
    """For each of the machines ``others`` the mask of those of ``count`` pieces that come from there to ``me``.

    ``others`` are all that have, or fetch, the image; ``served`` are those that a client gives to.
    """
    machines = sorted((*others, me))
    clients = sum(1 for machine in machines if machine in served)
    share, other = weights(clients, len(machines) - clients)
    ends = list(accumulate(share if machine in served else other for machine in machines))
    found = [bytearray(count // 8) for _ in machines]
    for number in range(count):
        relay = min(bisect(ends, number * STEP % 1.0), len(machines) - 1)
        found[relay][number >> 3] |= 1 << (number & 7)
    masks = {machine: int.from_bytes(bits, "little") for machine, bits in zip(machines, found, strict=True)}
    mine = masks.pop(me)
    return {machine: mask | mine for machine, mask in masks.items()}


TURNS_S = 0.01
"""So often at most it is found out anew whose turn it is."""

OUT_OF_TURN_S = 3.0
"""A piece that some peer has for so long is taken from it, whoever else waits for it."""


class PieceAssignment:
    """The turns of one download of the node ``me``, of an image of ``count`` pieces."""

    def __init__(self, me: bytes, count: int) -> None:
        self._me = me
        self._count = count
        self._looked_s = -math.inf
        self._near: dict[bytes, int] = {}
        self._known: tuple[tuple[bytes, ...], frozenset[bytes]] | None = None
        self._seen = 0
        self._times: deque[tuple[float, int]] = deque()
        self._late = 0

    def look(self, sources: Sequence[PeerCandidate], wanted: int, now_s: float) -> None:
        """Take note of what the ``sources`` have by now, of the pieces ``wanted``."""
        if now_s < self._looked_s + TURNS_S:
            return
        self._looked_s = now_s
        peers = {one.candidate.machine: one for one in sources if one.candidate.machine is not None}
        served = {machine for machine, one in peers.items() if one.candidate.served}
        if any(one.candidate.seed for one in sources):
            served.add(self._me)
        known = tuple(sorted(peers)), frozenset(served)
        if known != self._known:
            self._known = known
            self._near = near(self._count, self._me, *known)
        there = wanted & functools.reduce(operator.or_, (one.mask for one in peers.values()), 0)
        fresh = there & ~self._seen
        if fresh:
            self._seen |= fresh
            self._times.append((now_s, fresh))
        while self._times and now_s - self._times[0][0] >= OUT_OF_TURN_S:
            self._late |= self._times.popleft()[1]  # guard: A58 F52, self._late |= self._times.popleft()[1] -> self._times.popleft()

    def near(self, machine: bytes) -> int:
        """The pieces that come from this peer when it is the first of those around this node to have them."""
        return self._near.get(machine, 0)

    def of(self, machine: bytes) -> int:
        """The pieces that this peer may be asked for."""
        return self._near.get(machine, 0) | self._late


T = TypeVar("T")

STALLED_S = 10.0
"""No good block for so long while something is missing: the download says of itself that it is stalled."""

GIVE_UP_S = 3600.0
"""No good block for so long: the download is given up (threats A56)."""

WIDE_BYTES = 4 * 1024 * 1024
"""With more bytes missing, a bulk connection to a neighbor is worth its handshake."""

SHARED_ABOVE = 64
"""Blocks: so few (2 MiB) a node may ask a client for without asking which of them are its share."""

NUDGE_S = 0.01
"""News of who can give something is acted on at once, and further news at most so often: all that came meanwhile together."""

STARVING_S = 0.5
FED_S = 5.0
"""Nothing came for so long from anybody, since a client is there, and nothing is due: it is asked for what it promised to others, too.

For so long. A client that has just come must not be asked by every node for the same: what is missing was not promised to anybody yet.
"""

TICK_S = 1.0
WRITES_PER_JOB = 32
"""Answers that one job writes: single blocks, or as many in each as make an answer."""

BLOCKS_PER_JOB = 2048
"""Blocks in one job: what became of them is dealt with in one turn of the reactor, which takes some microseconds for each."""

LEAST_BYTES = 1024
"""A block counts as so many bytes in flight at least: thousands of tiny ones would be under way at once, and come in at once."""

MOST_UNWRITTEN = 8 * 1024 * 1024
"""Bytes that were received and are not written yet; with more, nothing new is asked for."""


class ExchangePort(Protocol):
    """Port to the exchanges of this node, for one download."""

    def begin(self, taker: Taker, /) -> ImageExchange:
        """Begins the exchange of the pieces that ``taker`` fetches."""

    def end(self) -> None:
        """Ends it: what is here will not be whole."""

    def candidate(self, key: Key, /) -> Candidate:
        """The candidate for a neighbor."""


class Sink(Protocol):
    """Sink of blocks: the part of ``interfaces.Staging`` that is needed here."""

    def write(self, blocks: Sequence[tuple[int, Block]]) -> Deferred[list[bool]]:
        """As ``interfaces.Staging.write``."""

    def write_here(self, blocks: Sequence[tuple[int, Block]]) -> list[bool]:
        """As ``interfaces.Staging.write_here``."""


@dataclass(frozen=True, slots=True, eq=False)
class FetchContext:
    """Everything that the fetches of one process share. ``passing`` gets what came, for others.

    ``me``: the id of this node, for the order in which nodes take pieces from each other; empty at a client.
    ``exchanges``: where pieces are offered by those that understand that.
    """

    clock: IReactorTime
    totals: Totals
    passing: BlockRelayCache
    me: bytes = b""
    exchanges: ExchangePort | None = None


class BlockFetch:
    """Runs until every block of the plan is on disk."""

    _log = Logger()

    def __init__(
        self,
        vpath: str,
        index: Index,
        plan: BlockPlan,
        staging: Sink,
        candidates: Callable[[], list[Candidate]],
        progressed: Callable[[], None],
        context: FetchContext,
    ) -> None:
        """``candidates`` tells who may give blocks now; ``progressed`` is called for what came."""
        clock = context.clock
        self._vpath = vpath
        self._index = index
        self._plan = plan
        self._candidates = candidates
        self._progressed = progressed
        self._totals = context.totals
        self._clock = clock
        self._passing = context.passing
        self._exchanges = context.exchanges
        self._exchange: ImageExchange | None = None
        self._takes_offers = self._wide = False
        self._turns = PieceAssignment(context.me, plan.pieces.count)
        self._lookout = AvailabilitySubscription(vpath, index.image, plan.pieces, clock, self._soon)
        self._sources = Sources(plan.pieces)
        self._staging = staging
        self._writes: Batcher[list[tuple[int, Block]], list[tuple[int, bool]]] = Batcher(
            self._write_all, WRITES_PER_JOB, len, BLOCKS_PER_JOB
        )
        self._asked: set[Deferred[Response]] = set()
        self._writing = 0
        self._looks_for_late = False
        self._nudged: IDelayedCall | None = None
        self._candidates_changed = False
        self._nudged_s = self._starving_until_s = self._busy_s = -math.inf
        self._tick: IDelayedCall | None = None
        self._pumping = False
        self._ended = False
        self._hush = RateLimitedLog(clock, 10)
        self._done: Deferred[None] = Deferred(self._cancelled)
        self.last_good_s = clock.seconds()

    def run(self) -> Deferred[None]:
        """Fires when nothing is missing; fails with DiskError, or DownloadFailed after GIVE_UP_S without a good block. Cancellable."""
        if self._exchanges is not None:
            self._exchange = self._exchanges.begin(self)
            # Of so little everything is asked for at once, for offers would cost a round more; what is here is offered to others.
            self._takes_offers = self._plan.missing > SHARED_ABOVE
            self._wide = self._plan.unasked(self._plan.wanted) > WIDE_BYTES
        self._beat()
        return self._done

    @property
    def stalled(self) -> bool:
        """Tells whether nothing good has come for STALLED_S."""
        return not self._plan.done and self._clock.seconds() - self.last_good_s >= STALLED_S

    def nudge(self) -> None:
        """There is news of who can give something."""
        self._candidates_changed = True
        self._soon()

    def _soon(self) -> None:
        if not self._ended and self._nudged is None:
            self._nudged = self._clock.callLater(max(0.0, self._nudged_s + NUDGE_S - self._clock.seconds()), self._take_news)

    def _take_news(self) -> None:
        self._nudged = None
        self._nudged_s = self._clock.seconds()
        if self._candidates_changed:
            self._candidates_changed = False
            self._update()
        self._pump()
        if not self._ended:
            self._look_out()

    def _beat(self) -> None:
        try:
            self._step()
        # guard: I8
        except Exception:  # noqa: BLE001  a download that nobody drives would hang for ever
            self._broken(Failure())

    def _broken(self, failure: Failure) -> None:
        self._log.failure("fetching {image} failed", failure, image=self._index.image.hex())
        if not self._ended:
            self._end(failure)

    def _step(self) -> None:
        self._tick = None
        if not self._plan.done and self._clock.seconds() - self.last_good_s >= GIVE_UP_S:  # guard: A56 F53
            self._end(Failure(DownloadFailed(AbortReason.NO_FILE_SOURCE, f"no block came for {GIVE_UP_S:.0f} s")))
            return
        self._update()
        self._looks_for_late = True
        self._pump()
        self._looks_for_late = False
        if not self._ended:
            self._look_out()
            self._tick = self._clock.callLater(TICK_S, self._beat)

    def _update(self) -> None:
        self._sources.update(self._candidates(), self._clock.seconds())
        if self._exchange is not None and self._takes_offers:
            offering = [source.candidate for source in self._sources.active() if source.candidate.exchanges]
            nodes = {MachineId(one.machine): one.key for one in offering if one.machine is not None and isinstance(one.key, Address)}
            self._exchange.meet(nodes, [one.key for one in offering if one.seed])  # type: ignore[misc]

    # -- pieces that are offered --------------------------------------------------------------------------------------------------

    def wanted(self) -> int:
        """As :meth:`ciruela.download.exchange.Taker.wanted`."""
        return self._plan.wanted if self._takes_offers else 0

    def release(self, pieces: int) -> None:
        """As :meth:`ciruela.download.exchange.Taker.release`."""
        self._plan.release(pieces)

    def take(self, key: Key, pieces: int) -> None:
        """As :meth:`ciruela.download.exchange.Taker.take`."""
        if self._ended or self._exchanges is None:
            return
        now_s = self._clock.seconds()
        source = self._sources.of(self._exchanges.candidate(key), now_s)
        numbers = self._plan.claim(pieces, source.candidate.key, now_s)
        if self._wide:
            source.candidate.widen()
        chunk: list[int] = []
        size = 0
        for number in numbers:
            more = self._plan.size_of(number)
            if chunk and (size + more > MOST_BULK_BYTES or len(chunk) >= MAX_BULK):
                self._ask(source, chunk)
                chunk, size = [], 0
            chunk.append(number)
            size += more
        if chunk:
            self._ask(source, chunk)

    def _pump(self) -> None:
        if self._pumping or self._ended:
            return
        self._pumping = True
        try:
            again = True
            while again and not self._plan.done:
                again = self._ask_around()
        finally:
            self._pumping = False
        if self._plan.done and not self._writing and not self._ended:
            self._end(None)

    def _ask_around(self) -> bool:
        """One request to each source that has room. Whether there is room for more in one that was asked."""
        now_s = self._clock.seconds()
        everything = self._plan.pieces.full
        claimed = self._sources.claimed_by_peers()
        self._turns.look(self._sources.active(), self._plan.wanted, now_s)
        more = False
        for source in self._sources.active():
            if self._ended or self._writing >= MOST_UNWRITTEN:  # guard: I6
                return False
            if source.candidate.exchanges and self._takes_offers:
                continue
            room = source.room(now_s)
            numbers = self._choose(source, room, everything & ~claimed if source.candidate.seed else everything, now_s) if room else []
            if numbers:
                self._ask(source, numbers)
                more = more or source.room(now_s) > 0
            elif not source.in_flight:
                source.packing.paused()
        return more

    def _choose(self, source: PeerCandidate, room: int, preferred: int, now_s: float) -> list[int]:
        """Blocks of up to ``room`` bytes, or with nothing else left one that another source has owed for LATE_S."""
        late_s = LATE_S if self._looks_for_late else math.inf
        most_bytes = room if source.candidate.bulk else 1
        reach = self._reach(source, now_s)
        key, at_random = source.candidate.key, source.candidate.seed and not source.candidate.bulk
        numbers = self._plan.choose(key, reach, preferred, source.current, now_s, late_s, most_bytes, at_random=at_random)
        if numbers:
            source.current = self._plan.pieces.piece_of(numbers[0])
        return numbers

    def _reach(self, source: PeerCandidate, now_s: float) -> int:
        """The pieces that ``source`` is asked for.

        A client is asked for what it promised to this node: what it promised to others comes from them. Should nothing come any more, it is
        asked for everything for a while.
        """
        if self._plan.missing <= SHARED_ABOVE:
            return source.mask
        if source.candidate.machine is not None:
            return source.mask & self._turns.of(source.candidate.machine)
        if not (source.candidate.seed and source.candidate.bulk):
            return source.mask
        # guard: K7.8, self._busy_s, source.since_s -> self._busy_s
        if not self._asked and now_s - max(self.last_good_s, self._busy_s, source.since_s) >= STARVING_S:
            self._starving_until_s = now_s + FED_S  # guard: A56 A58 F52
        if now_s < self._starving_until_s:
            return source.mask
        if not source.sharing and not source.shared_out and self._plan.unasked(source.share) < MOST_WINDOW:
            self._ask_share(source)
        return source.mask & source.share

    def _look_out(self) -> None:
        """Ask the nodes around this one what they have by now."""
        missing = ~self._plan.mask
        peers = [
            (one, one.candidate.machine)
            for one in self._sources.active()
            if one.candidate.machine is not None and not (one.candidate.exchanges and self._takes_offers)
        ]
        self._lookout.look((one, self._turns.near(machine) & missing) for one, machine in peers)

    def _ask_share(self, source: PeerCandidate) -> None:
        source.sharing = True
        pieces = self._plan.pieces
        missing = pieces.full & ~(self._plan.mask | source.share | self._sources.claimed_by_peers())
        began_s = self._clock.seconds()
        asked = source.candidate.ask(GetShare(self._index.image, pieces.to_bytes(missing)))
        self._asked.add(asked)
        # guard: A58 F52, within(asked, GRACE_S, self._clock) -> asked
        (
            within(asked, GRACE_S, self._clock)
            .addCallback(self._shared, source)
            .addErrback(self._not_shared, source, began_s)
            .addBoth(self._answered, asked, source, 0)
            .addErrback(self._broken)
        )

    def _shared(self, response: Response, source: PeerCandidate) -> None:
        if not isinstance(response, ShareData):  # guard: A24
            raise RemoteError("the answer to GetShare is something else")
        try:
            share = self._plan.pieces.from_bytes(response.pieces)
        except ValueError as error:
            raise RemoteError(str(error)) from None
        source.sharing = False
        source.share |= share
        source.shared_out = not share

    def _not_shared(self, failure: Failure, source: PeerCandidate, began_s: float) -> None:
        """A client that does not share out is asked for everything."""
        source.sharing = False
        if failure.check(RemoteError):
            source.share, source.shared_out = self._plan.pieces.full, True
        elif not self._ended:
            source.failed(self._clock.seconds(), began_s)
            self._tell_nothing(source, failure.getErrorMessage())

    def _ask(self, source: PeerCandidate, numbers: list[int]) -> None:
        numbers.sort()
        # guard: K8.4, -> self._plan.bytes_of(numbers) if source.candidate.bulk else BLOCK_BYTES
        size = max(self._plan.bytes_of(numbers), len(numbers) * LEAST_BYTES) if source.candidate.bulk else BLOCK_BYTES
        deadline_s = source.deadline_s(size, self._sources.usual_rate(source))
        source.in_flight += size
        began_s = self._clock.seconds()
        request = self._request(source, numbers)
        asked: Deferred[Any] | None = None
        if isinstance(request, GetBlocks):
            asked = source.candidate.fetch(request, functools.partial(self._land, numbers))
        take: Callable[..., Any] = self._write if asked is None else self._landed
        if asked is None:
            asked = source.candidate.ask(request)
        self._asked.add(asked)
        # guard: A58 F52, within(asked, deadline_s, self._clock) -> asked
        (
            within(asked, deadline_s, self._clock)
            .addCallback(take, source, numbers, began_s)
            .addCallback(self._written, source, began_s)
            .addErrback(self._failed, source, numbers, began_s)
            .addBoth(self._answered, asked, source, size)
            .addErrback(self._broken)
        )

    def _request(self, source: PeerCandidate, numbers: list[int]) -> Request:
        if source.candidate.bulk:
            return GetBlocks(self._vpath, self._index.image, tuple(numbers), packed=source.packing.wanted)
        (number,) = numbers
        file, block = self._index.blocks.by_number(number)
        return GetBlock(file.block_hash(block), BlockHint(self._vpath, file.path, block * BLOCK_BYTES))

    def _write(
        self, response: Response, source: PeerCandidate, numbers: list[int], began_s: float
    ) -> Deferred[tuple[list[tuple[int, bool]], BlockAnswer]]:
        answer = relaycache.read(response, numbers, self._plan.pieces, self._plan.size_of)
        size = self._came(answer, source, numbers, began_s)
        self._writing += size
        writing: Deferred[list[tuple[int, bool]]] = self._writes.submit(answer.blocks)
        writing.addBoth(self._rested, size)
        return writing.addCallback(lambda written: (written, answer))

    def _came(self, answer: BlockAnswer, source: PeerCandidate, numbers: list[int], began_s: float) -> int:
        """Counts the bytes of an answer, and takes note of what it lacks."""
        size = sum(len(data) for _, data in answer.blocks)
        self._totals.received_bytes += size
        source.packing.gave(size, self._clock.seconds())
        if len(answer.blocks) < len(numbers):
            here = {number for number, _ in answer.blocks}
            self._lacking(source, [number for number in numbers if number not in here], "it does not have it", began_s)
        return size

    def _land(self, numbers: list[int], response: BlocksData) -> tuple[list[tuple[int, bool]], BlockAnswer]:
        """Checks and writes an answer, in the thread that received it."""
        answer = relaycache.read(response, numbers, self._plan.pieces, self._plan.size_of)
        good = self._staging.write_here(answer.blocks)
        return [(number, right) for (number, _), right in zip(answer.blocks, good, strict=True)], answer

    def _landed(
        self, done: tuple[list[tuple[int, bool]], BlockAnswer], source: PeerCandidate, numbers: list[int], began_s: float
    ) -> tuple[list[tuple[int, bool]], BlockAnswer]:
        self._came(done[1], source, numbers, began_s)
        return done

    def _write_all(self, groups: list[list[tuple[int, Block]]]) -> Deferred[list[list[tuple[int, bool]]]]:
        """One job for what came in several answers."""

        def parted(results: list[bool]) -> list[list[tuple[int, bool]]]:
            left = iter(results)
            return [[(number, next(left)) for number, _ in group] for group in groups]

        return self._staging.write([block for group in groups for block in group]).addCallback(parted)

    def _rested(self, result: T, size: int) -> T:
        self._writing -= size
        return result

    def _written(self, done: tuple[list[tuple[int, bool]], BlockAnswer], source: PeerCandidate, began_s: float) -> None:
        now_s = self._clock.seconds()
        written, answer = done
        bad = [number for number, good in written if not good]
        if not bad:  # guard: A7, -> True
            for group, part in answer.parts:
                self._passing.put(self._index.image, group, part)
        if len(bad) < len(written):
            good_numbers = [number for number, good in written if good]
            source.gave(now_s - began_s, len(good_numbers), self._plan.bytes_of(good_numbers))
            self.last_good_s = now_s
        before = self._plan.mask
        completed = [number for number, good in written if good and self._plan.arrived(number)]
        if self._exchange is not None:
            self._exchange.arrived(source.candidate.key, self._plan.mask & ~before)
        if bad:
            self._hush.warn(
                self._log,
                "wrong bytes",
                source.candidate.name,
                "{source} gave wrong bytes for a block of {image}",
                source=source.candidate.name,
                image=self._index.image.hex(),
            )
            self._totals.bad_blocks += len(bad)
            source.lied(now_s)  # guard: A7 F5
            for number in bad:
                self._plan.failed(number, source.candidate.key)
            if self._exchange is not None:
                self._exchange.failed(source.candidate.key, self._plan.pieces.of_blocks(bad))
        if completed:
            self._progressed()

    def _failed(self, failure: Failure, source: PeerCandidate, numbers: list[int], began_s: float) -> None:
        for number in numbers:
            self._plan.failed(number, source.candidate.key)
        if self._ended:
            return
        if failure.check(DiskError, DownloadFailed):  # guard: A38 A39 F28 F29
            self._end(failure)
            return
        if self._exchange is not None:
            self._exchange.failed(source.candidate.key, self._plan.pieces.of_blocks(numbers), busy=failure.check(Busy) is not None)
        if failure.check(Busy):
            source.busy(self._clock.seconds())
            self._busy_s = source.rest_until_s
        elif failure.check(RemoteError):
            self._lacking(source, numbers, failure.getErrorMessage(), began_s)
        else:
            source.failed(self._clock.seconds(), began_s)  # guard: A58
            self._tell_nothing(source, failure.getErrorMessage())  # guard: A58

    def _lacking(self, source: PeerCandidate, numbers: list[int], reason: str, began_s: float) -> None:
        for number in numbers:
            self._plan.failed(number, source.candidate.key)
        parts = {self._plan.pieces.piece_of(number) for number in numbers}
        if self._exchange is not None:
            self._exchange.failed(source.candidate.key, self._plan.pieces.of_blocks(numbers))
        source.lacked(sum(1 << part for part in parts), self._clock.seconds(), began_s)
        self._tell_nothing(source, reason)

    def _tell_nothing(self, source: PeerCandidate, reason: str) -> None:
        self._hush.info(
            self._log,
            "no block",
            source.candidate.name,
            "{source} did not give a block of {image}: {reason}",
            source=source.candidate.name,
            image=self._index.image.hex(),
            reason=reason,
        )

    def _answered(self, _: None, asked: Deferred[Response], source: PeerCandidate, size: int) -> None:
        self._asked.discard(asked)
        source.in_flight -= size
        self._pump()

    def _end(self, failure: Failure | None) -> None:
        self._ended = True
        self._let_go()
        if failure is None:
            self._done.callback(None)
        else:
            self._done.errback(failure)

    def _cancelled(self, _: Deferred[None]) -> None:
        self._ended = True
        self._let_go()

    def _let_go(self) -> None:
        self._lookout.stop()
        if self._exchange is not None and self._exchanges is not None:
            self._exchange.taker = None
            if not self._plan.done:
                self._exchanges.end()
        for call in (self._tick, self._nudged):
            if call is not None and call.active():
                call.cancel()
        for chain in list(self._asked):
            chain.cancel()
