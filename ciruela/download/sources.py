"""Sources of the blocks of one image, and how each behaves.

A source that gives wrong bytes, errors or nothing costs only itself: it is left alone for a time that grows, and its share goes to
the others (threats A7, A58; protocol C20).

Compressed answers are asked for unless a source is so fast that compressing might be what holds it up. Values only.

Nobody is asked how fast a link is. What counts is how fast blocks come: above FAST_BYTES_S both ways are tried in turn, and the better one
is kept for a while. What does not become smaller is sent as it is anyway (:mod:`ciruela.proto.compression`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred

from ciruela.index.digest import BLOCK_BYTES
from ciruela.model.bitfield import Pieces
from ciruela.proto.messages import MOST_BULK_BYTES, BlocksData, GetBlocks, Request, Response

FAST_BYTES_S = 96 * 1024 * 1024
"""Below that a link, or the disk behind it, is what blocks wait for."""

TRIAL_BYTES = 8 * 1024 * 1024
"""A way is judged by so many bytes of blocks."""

KEPT_TRIALS = 8
"""The better way is kept for so many trials."""


class CompressionChoice:
    """Rates at which one source gave, compressed and not, and the choice that follows."""

    def __init__(self) -> None:
        self.wanted = True
        self._rates: dict[bool, float] = {}
        self._since_s: float | None = None
        self._bytes = 0
        self._kept = 0

    def gave(self, size: int, now_s: float) -> None:
        """``size`` bytes of blocks, unpacked, came at ``now_s`` (seconds)."""
        if self._since_s is None:
            self._since_s = now_s
            return
        self._bytes += size
        if self._bytes < TRIAL_BYTES:
            return
        took_s = now_s - self._since_s
        self._rates[self.wanted] = self._bytes / took_s if took_s > 0 else float("inf")
        self._since_s = None
        self._bytes = 0
        self._decide()

    def paused(self) -> None:
        """Nothing is asked of the source any more: a wait that follows says nothing about its speed."""
        self._since_s = None
        self._bytes = 0

    def _decide(self) -> None:
        if self._rates[self.wanted] < FAST_BYTES_S:
            self.wanted = True
            self._rates.clear()
            self._kept = 0
        elif len(self._rates) < 2:
            self.wanted = not self.wanted
        elif self._kept < KEPT_TRIALS:
            self.wanted = self._rates[True] >= self._rates[False]
            self._kept += 1
        else:
            self._kept = 0
            del self._rates[not self.wanted]
            self.wanted = not self.wanted


Ask = Callable[[Request], Deferred[Response]]
Fetch = Callable[[GetBlocks, Callable[[BlocksData], Any]], Deferred[Any] | None]

MOST_WINDOW = 4 * 1024 * 1024
"""Bytes in flight per source: where loopback and LAN throughput flattens. Half as much where single blocks are asked for."""

BATCHES = 2
"""Answers in flight per source, at least: one is on its way while the next is made ready."""

AHEAD_S = 0.05
"""Bytes in flight, at most: what a source gives in the time that its quickest answer took, and AHEAD_S.

More would only wait in the queue of its link, and what it has to say of its pieces would wait behind it.
"""

FIRST_WINDOW = 256 * 1024
FIRST_BLOCKS = 8
"""In the beginning: so many bytes; of who gives single blocks only, so many blocks."""

BATCH_BYTES = 256 * 1024
MOST_BATCH_BYTES = MOST_BULK_BYTES
BATCH_S = 0.05
"""Bytes of one answer: what a source gives in BATCH_S, within these limits. Nobody waits long for it, and it costs little by itself."""

SLOW_S = 2.0
"""An answer that takes longer shrinks the source's window: what is in flight should not queue up."""

GRACE_S = 5.0
LEAST_RATE = 50 * 1024
"""Deadline of a request: GRACE_S plus what is in flight at LEAST_RATE bytes a second (threats A58)."""

LATE_S = 3.0
SLOWER = 10.0
"""A source that takes ten times as long as the others usually do, and LATE_S, is not waited for."""

RATE_WEIGHT = 0.2
"""Weight of the last answer in the rate of a source."""

BUSY_S = 0.5
"""A source that is busy with others is left alone for so long."""

DENIED_S = 10.0
"""Time for which a peer is taken to lack what it claims to have: its disk may have been slow, its claim early."""

BAD_BLOCK_S = 30.0
LONGEST_BAD_S = 600.0
MOST_BAD_BLOCKS = 3
"""After a block with a wrong hash: not asked for 30 s, doubling to 10 min; after three, not at all for this image."""


@dataclass(slots=True)
class Totals:
    """Counts over all downloads since the start, for status."""

    received_bytes: int = 0
    bad_blocks: int = 0
    reused_files: int = 0
    reused_bytes: int = 0
    committed: int = 0
    committed_bytes: int = 0
    failed: int = 0


def _nothing_comes() -> int:
    """Nothing is known of what is on its way."""
    return 0


def _not_widened() -> None:
    """There is nothing to be made wider."""


def _not_fetched(_request: GetBlocks, _land: Callable[[BlocksData], Any]) -> None:
    """There is no bulk connection."""


def _left_open(_reason: str) -> None:
    """The pool of connections ends those to nodes by itself."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A source as it is known now. ``mask``: the slices it claims. ``seed``: a client, which has everything but should give it once.

    ``hearsay``: nobody said that this node has the image, it is only likely. ``most``: bytes that may be in flight, at most; less than
    MOST_WINDOW where several downloads share a connection. ``bulk``: it understands GetBlocks. ``machine``: which node it is, if that is
    known; ``served``: a client gives to it. ``incoming``: the bytes that are here of the message that is on its way from there. ``close``
    ends the connection of a client that does not give what it was asked for. ``exchanges``: pieces are offered by it, and not asked for.
    ``widen`` opens a bulk connection, ``fetch`` asks over it, as those of ``interfaces.Connection``.
    """

    key: object
    name: str
    ask: Ask
    mask: int
    seed: bool
    hearsay: bool = False
    most: int = MOST_WINDOW
    bulk: bool = False
    machine: bytes | None = None
    served: bool = False
    incoming: Callable[[], int] = _nothing_comes
    close: Callable[[str], None] = _left_open
    exchanges: bool = False
    widen: Callable[[], None] = _not_widened
    fetch: Fetch = _not_fetched


@dataclass
class PeerCandidate:
    """A candidate with its record. Masks are of pieces; ``window`` and ``in_flight`` are bytes.

    ``failures``: in a row, the last one at ``failed_s``. ``rate``: bytes a second it gave lately, 0 while that is not known;
    ``quickest_s``: what its quickest answer took. ``claimed``: what it said it has, by gossip or in answer to GetPieces. Of a client that
    shares out: ``share``, the pieces that it promised to this node; ``sharing`` while it is asked for more; ``shared_out`` once it has
    promised everything, here or elsewhere. ``awaited``: whether a GetPieces is under way; ``await_from_s``: not before. ``since_s``:
    when it became a candidate.
    """

    candidate: Candidate
    claimed: int
    window: int
    since_s: float
    packing: CompressionChoice = field(init=False, default_factory=CompressionChoice)
    batch: int = field(init=False, default=BATCH_BYTES)
    rate: float = field(init=False, default=0.0)
    quickest_s: float = field(init=False, default=math.inf)
    in_flight: int = field(init=False, default=0)
    current: int | None = field(init=False, default=None)
    failures: int = field(init=False, default=0)
    bad_blocks: int = field(init=False, default=0)
    rest_until_s: float = field(init=False, default=0.0)
    failed_s: float = field(init=False, default=-math.inf)
    blocks: int = field(init=False, default=0)
    denied: int = field(init=False, default=0)
    denied_until_s: float = field(init=False, default=0.0)
    share: int = field(init=False, default=0)
    sharing: bool = field(init=False, default=False)
    shared_out: bool = field(init=False, default=False)
    awaited: bool = field(init=False, default=False)
    await_from_s: float = field(init=False, default=0.0)

    @property
    def mask(self) -> int:
        """The pieces worth asking for."""
        return self.claimed & ~self.denied

    def room(self, now_s: float) -> int:
        """Computes how many bytes may be asked for now: one block, or as many as make an answer where that is understood."""
        if now_s < self.rest_until_s or self.bad_blocks >= MOST_BAD_BLOCKS:  # guard: A7 F5, without 2
            return 0
        free = min(self.window, self.candidate.most, self._most()) - self.in_flight
        if not self.candidate.bulk:
            return BLOCK_BYTES if free > 0 else 0
        return min(free, self.batch) if free >= self.batch or not self.in_flight else 0

    def _most(self) -> int:
        if not self.candidate.bulk:
            return MOST_WINDOW // 2
        return max(BATCHES * self.batch, int(self.rate * (self.quickest_s + AHEAD_S)) if self.rate else 0)

    def deadline_s(self, size: int, usual_rate: float) -> float:
        """Seconds to wait for an answer with so many bytes, with all that is in flight before it.

        ``usual_rate``: what the other sources give (bytes/s), 0 when that is not known.
        """
        due = self.in_flight + size
        longest_s = GRACE_S + due / LEAST_RATE
        return min(longest_s, LATE_S + SLOWER * due / usual_rate) if usual_rate else longest_s

    def told(self, pieces: int) -> None:
        """It has these."""
        self.denied &= ~(pieces & ~self.claimed)  # guard: A36 F27, -> ~pieces
        self.claimed |= pieces

    def gave(self, took_s: float, blocks: int, size: int) -> None:
        """Good blocks of ``size`` bytes came in one answer, ``took_s`` seconds after they were asked for; they are in flight still.

        Who gives again after a silence need not rest any longer for it.
        """
        if self.failures and not self.bad_blocks:
            self.rest_until_s = 0.0
        self.failures = 0
        self.blocks += blocks
        if took_s > SLOW_S:
            # Slow answers mean that more is in flight than the source can give; the floor keeps two blocks going.
            self.window = max(2 * BLOCK_BYTES, self.window - size)  # guard: A58 F52
        else:
            self.window = max(self.window, min(MOST_WINDOW, self.window + size))
        if took_s > 0:
            self.quickest_s = min(self.quickest_s, took_s)
            self.rate += ((self.in_flight / took_s) - self.rate) * (RATE_WEIGHT if self.rate else 1.0)
            # guard: I6, -> max(BATCH_BYTES, int(self.in_flight / took_s * BATCH_S))
            self.batch = max(BATCH_BYTES, min(MOST_BATCH_BYTES, int(self.in_flight / took_s * BATCH_S)))

    def lacked(self, pieces: int, now_s: float, asked_s: float = math.inf) -> None:
        """It answered that it cannot give a block of each of ``pieces``, of which it was asked at ``asked_s``.

        A peer is not asked for these for DENIED_S, or until it claims something else. A client, or a peer that was only guessed to
        have the image, rests as after any failure.
        """
        if self.candidate.seed or self.candidate.hearsay:
            self.failed(now_s, asked_s)
            return
        self.denied |= pieces  # guard: A36 F27
        self.denied_until_s = now_s + DENIED_S

    def failed(self, now_s: float, asked_s: float = math.inf) -> None:
        """It gave nothing: the n-th failure in a row rests it for n seconds.

        What was asked, at ``asked_s``, before it failed last was lost in the same silence, which is one failure.
        """
        if asked_s <= self.failed_s:  # guard: K7.5
            return
        self.failures += 1
        self.failed_s = now_s
        self.window = max(BLOCK_BYTES, self.window // 2)
        self.rest_until_s = max(self.rest_until_s, now_s + min(self.failures, 30))  # guard: A58

    def busy(self, now_s: float) -> None:
        """It serves enough others. That is no failure: it is asked again soon."""
        self.rest_until_s = max(self.rest_until_s, now_s + BUSY_S)

    def lied(self, now_s: float) -> None:
        """It gave bytes that are not the block."""
        self.bad_blocks += 1
        self.rest_until_s = now_s + min(BAD_BLOCK_S * 2 ** (self.bad_blocks - 1), LONGEST_BAD_S)  # guard: A7 F5


class Sources:
    """The sources of one download, kept by key while candidates come and go."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces
        self._known: dict[object, PeerCandidate] = {}
        self._active: list[PeerCandidate] = []

    def update(self, candidates: list[Candidate], now_s: float) -> None:
        """Take over who can give what now. A source that claims more than before is believed again, any other after DENIED_S."""
        active = []
        for candidate in candidates:
            claimed = self._pieces.of_slices(candidate.mask)
            source = self._known.get(candidate.key)
            if source is None:
                window = FIRST_WINDOW if candidate.bulk else FIRST_BLOCKS * BLOCK_BYTES
                source = self._known[candidate.key] = PeerCandidate(candidate, claimed, window, now_s)
            elif candidate.mask != source.candidate.mask or now_s >= source.denied_until_s:
                source.denied = 0
            if source.candidate.hearsay and not candidate.hearsay:
                source.claimed = 0  # what was only guessed does not count any more
            source.candidate = candidate
            source.claimed |= claimed
            active.append(source)
        self._active = active
        current = {candidate.key for candidate in candidates}
        # guard: A7 F5, without 3
        for key in [key for key, source in self._known.items() if key not in current and not source.in_flight and not source.bad_blocks]:
            del self._known[key]

    def of(self, candidate: Candidate, now_s: float) -> PeerCandidate:
        """The source of a candidate that offered something, whether or not anybody else has spoken of it."""
        source = self._known.get(candidate.key)
        if source is None:
            source = self._known[candidate.key] = PeerCandidate(candidate, 0, FIRST_WINDOW, now_s)
        source.candidate = candidate
        return source

    def active(self) -> list[PeerCandidate]:
        """Those that can be asked, by what is known now."""
        return self._active

    def usual_rate(self, source: PeerCandidate) -> float:
        """The median of what the others give, in bytes a second; 0 while none of them has given anything."""
        rates = sorted(other.rate for other in self._active if other is not source and other.rate)
        return rates[len(rates) // 2] if rates else 0.0

    def claimed_by_peers(self) -> int:
        """The union of the pieces that peers claim and did not deny."""
        union = 0
        for source in self._active:
            if not source.candidate.seed and not source.candidate.hearsay:  # guard: A36 F27, without 2
                union |= source.mask
        return union
