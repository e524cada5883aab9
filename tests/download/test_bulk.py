"""Many blocks in one answer: from a node that has them, and to one that wants them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download import fetch_blocks
from ciruela.download.availability import HELD_S
from ciruela.download.fetch_blocks import NUDGE_S, OUT_OF_TURN_S, STARVING_S, TURNS_S, BlockFetch, FetchContext
from ciruela.download.plan import MOST_AT_ONCE, BlockPlan
from ciruela.download.relaycache import BlockRelayCache
from ciruela.download.serving import BlockService, Catalog
from ciruela.download.sources import GRACE_S, MOST_BATCH_BYTES, MOST_WINDOW, Candidate, Totals
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.emit import emit
from ciruela.index.parse import parse
from ciruela.index.tree import Directory, File, Index
from ciruela.interfaces import Pending
from ciruela.model.bitfield import FULL
from ciruela.model.errors import Busy, RemoteError
from ciruela.model.upload import Command
from ciruela.model.versions import SigEntry, State
from ciruela.model.vpath import VPath
from ciruela.proto import compression
from ciruela.proto.compression import part, unpack
from ciruela.proto.messages import (
    MOST_BULK_BYTES,
    BlockPart,
    BlocksData,
    GetBlocks,
    GetPieces,
    GetShare,
    PiecesData,
    Request,
    Response,
    ShareData,
)
from ciruela.tracking.ledger import Ledger
from tests.proof import shows

V1 = VPath.parse("/app/v1")
ME = b"this node"
HALF = sum(1 << number for number in range(0, 256, 2))
KIND = HashKind.BLAKE3
COUNT = 300
BLOCKS = [(b"%d" % number).ljust(BLOCK_BYTES) for number in range(COUNT)]
SMALL = [b"small %d" % number for number in range(40)]
FILES = (
    File("/large", False, COUNT * BLOCK_BYTES, b"".join(map(KIND.hash, BLOCKS))),
    *(File(f"/small{number:02}", False, len(data), KIND.hash(data)) for number, data in enumerate(SMALL)),
)
INDEX = parse(*reversed(emit(KIND, [Directory("/", FILES)])))
ALL = [*BLOCKS, *SMALL]
PIECES = INDEX.pieces


def plain(*numbers: int) -> tuple[BlockPart, ...]:
    """The parts of an answer with these blocks."""
    return tuple(BlockPart(b"".join(ALL[number] for number in group)) for group in PIECES.groups(numbers))


class Disk:
    """Has an index, and the blocks that are not in ``gone``."""

    def __init__(self) -> None:
        self.gone: set[int] = set()
        self.index: Index | None = INDEX
        self.reads: list[tuple[int, ...]] = []
        self.at_work = False

    def read_index(self, image: object) -> Deferred[Index | None]:
        return succeed(self.index)

    def read_blocks(self, vpath: VPath, index: Index, numbers: tuple[int, ...]) -> list[bytes | None]:
        self.reads.append(tuple(numbers))
        return [None if number in self.gone else ALL[number] for number in numbers]


class ServingTests(SynchronousTestCase):
    """What a node gives."""

    def setUp(self) -> None:
        self.disk, self.ledger = Disk(), Ledger(Clock())
        self.damaged: list[VPath] = []
        catalog = Catalog(self.disk)  # type: ignore[arg-type]
        self.passing = BlockRelayCache(Clock())
        self.jobs = 0

        def in_thread(job: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
            self.jobs += 1
            self.disk.at_work = True
            result = job(*args, **kwargs)
            self.disk.at_work = False
            return succeed(result)

        self.service = BlockService(
            self.ledger,
            self.disk,  # type: ignore[arg-type]
            catalog,
            self.passing,
            in_thread,
            lambda vpath, _: self.damaged.append(vpath),
        )
        self.state = State(INDEX.image, (SigEntry(5, bytes(64)),))

    def ask(self, *numbers: int, path: str = "/app/v1", packed: bool = False) -> Deferred[BlocksData]:
        return self.service.give_many(GetBlocks(path, INDEX.image, numbers, packed))

    def refused(self, *numbers: int, path: str = "/app/v1") -> str:
        return str(self.failureResultOf(self.ask(*numbers, path=path), RemoteError).value)

    def test_committed(self) -> None:
        """What stands here would have to be asked for block by block."""
        self.ledger.commit(V1, self.state)
        data = self.successResultOf(self.ask(1, 2, 301))
        self.assertEqual(data, BlocksData(plain(1, 2, 301)))
        sent_bytes = 2 * BLOCK_BYTES + len(ALL[301])
        self.assertEqual((self.service.sent_blocks, self.service.sent_bytes, self.service.served()), (3, sent_bytes, {V1}))
        self.assertEqual(self.damaged, [])

    @shows("A10", "F51")
    def test_some_are_gone(self) -> None:
        """A block that is damaged here would be given, or keep the others from being given; or nobody would repair it."""
        self.ledger.commit(V1, self.state)
        self.disk.gone = {2, 3}
        self.assertEqual(self.successResultOf(self.ask(1, 2, 3, 4)), BlocksData(plain(1, 4), (2, 3)))
        self.assertEqual(self.damaged, [V1])

    def test_on_its_way(self) -> None:
        """A node would not share what it has got so far; what it has not got is no damage."""
        self.ledger.begin(Pending(V1, self.state, Command.APPEND))
        self.disk.gone = {1}
        self.assertEqual(self.successResultOf(self.ask(0, 1)), BlocksData(plain(0), (1,)))
        self.assertEqual(self.damaged, [])

    @shows("A2", "A34", "F3", "I6")
    def test_refusals(self) -> None:
        """Anybody could read what no index names, or make a node gather more than an answer may hold."""
        self.assertIn("image not found", self.refused(0))
        self.ledger.commit(V1, self.state)
        self.assertIn("image not found", self.refused(0, path="/app/v2"))
        self.assertIn("not a virtual path", self.refused(0, path="/app/../v1"))
        self.assertIn("no block 340", self.refused(0, COUNT + len(SMALL)))
        most = MOST_BULK_BYTES // BLOCK_BYTES
        self.assertIn("at once", self.refused(*range(most + 1)))
        self.assertEqual(self.successResultOf(self.ask(*range(most))), BlocksData(plain(*range(most))))

    @shows("A45")
    def test_no_index(self) -> None:
        """A node whose index is damaged would answer nothing, and nobody would mend it."""
        self.ledger.commit(V1, self.state)
        self.disk.index = None
        self.assertIn("index", self.refused(0))
        self.assertEqual(self.damaged, [V1])

    def test_packed(self) -> None:
        """Blocks would travel in their full length; or compressing would hold up all connections of the node."""

        def packed_in_thread(data: bytes, may_pack: bool) -> BlockPart:
            self.assertTrue(self.disk.at_work)
            return part(data, may_pack)

        self.patch(compression, "part", packed_in_thread)
        self.ledger.commit(V1, self.state)
        answer = self.successResultOf(self.ask(1, 2, 300, 301, packed=True))
        groups = PIECES.groups((1, 2, 300, 301))
        sizes = [sum(len(ALL[number]) for number in group) for group in groups]
        self.assertEqual([one.packed for one in answer.parts], [size > 1000 for size in sizes])
        data = [unpack(one.data, size) if one.packed else one.data for one, size in zip(answer.parts, sizes, strict=True)]
        self.assertEqual(data, [one.data for one in plain(1, 2, 300, 301)])
        self.assertEqual((self.service.sent_blocks, self.service.sent_bytes), (4, sum(len(one.data) for one in answer.parts)))
        self.assertEqual((len(self.disk.reads), self.jobs), (1, 1))

    def test_passed_on(self) -> None:
        """What has just come would be read from the disk, hashed and compressed once more for each node that wants it."""
        self.ledger.begin(Pending(V1, self.state, Command.APPEND))
        first, second, third = (tuple(PIECES.blocks(piece)) for piece in (10, 11, 12))
        kept, compressed = BlockPart(b"as it came"), BlockPart(b"compressed as it came", packed=True)
        self.passing.put(INDEX.image, first, kept)
        self.passing.put(INDEX.image, third, compressed)
        self.assertEqual(self.successResultOf(self.ask(*first)), BlocksData((kept,)))
        self.assertEqual((self.disk.reads, self.jobs), ([], 0))
        self.assertEqual((self.service.sent_blocks, self.service.sent_bytes), (len(first), len(kept.data)))
        answer = self.successResultOf(self.ask(*first, *second, *third))
        self.assertEqual(answer, BlocksData((kept, *plain(*second), *plain(*third))))
        self.assertEqual(self.disk.reads, [(*second, *third)])
        answer = self.successResultOf(self.ask(*first, *second, *third, packed=True))
        self.assertEqual(answer, BlocksData((kept, part(plain(*second)[0].data, may_pack=True), compressed)))
        self.assertEqual(self.disk.reads[1:], [second])

    @shows("A36")
    def test_passed_on_and_lacking(self) -> None:
        """What is missing would be taken for damage of what is there; or parts would come under the numbers of others."""
        self.ledger.begin(Pending(V1, self.state, Command.APPEND))
        first, second, third = (tuple(PIECES.blocks(piece)) for piece in (10, 11, 12))
        kept = BlockPart(b"as it came")
        self.passing.put(INDEX.image, second, kept)
        self.disk.gone = set(first)
        answer = self.successResultOf(self.ask(*first, *second, *third))
        self.assertEqual(answer, BlocksData((kept, *plain(*third)), first))
        self.assertEqual(self.service.sent_blocks, len(second) + len(third))


Answer = Callable[[GetBlocks], Response | Exception]


class FetchTests(SynchronousTestCase):
    """What a node asks for."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.written: dict[int, bytes] = {}
        self.candidates: list[Candidate] = []
        self.totals = Totals()
        self.shares: list[int] = []
        self.share: Callable[[int], Deferred[Response]] = lambda missing: succeed(share_of(missing))
        self.news: dict[str, list[tuple[int, Deferred[Response]]]] = {}
        self.passing = BlockRelayCache(Clock())
        self.plan = BlockPlan(INDEX, (), random.Random(1))
        self.fetch = BlockFetch(
            "/app/v1",
            INDEX,
            self.plan,
            self,  # type: ignore[arg-type]
            lambda: self.candidates,
            lambda: None,
            FetchContext(self.clock, self.totals, self.passing, ME),
        )

    def write(self, blocks: list[tuple[int, bytes]]) -> Deferred[list[bool]]:
        good = [data == ALL[number] for number, data in blocks]
        self.written.update((number, data) for (number, data), well in zip(blocks, good, strict=True) if well)
        return succeed(good)

    def source(
        self, name: str, answer: Answer | None = None, delay_s: float = 0.01, *, seed: bool = False, mask: int = FULL
    ) -> list[tuple[int, ...]]:
        asked: list[tuple[int, ...]] = []

        def ask(request: Request) -> Deferred[Response]:
            if isinstance(request, GetShare):
                self.shares.append(PIECES.from_bytes(request.missing))
                return self.share(self.shares[-1])
            if isinstance(request, GetPieces):
                self.assertEqual((request.path, request.image), ("/app/v1", INDEX.image))
                news: Deferred[Response] = Deferred()
                self.news.setdefault(name, []).append((PIECES.from_bytes(request.wanted), news))
                return news
            assert isinstance(request, GetBlocks)
            self.assertEqual((request.path, request.image), ("/app/v1", INDEX.image))
            asked.append(request.numbers)
            done: Deferred[Response] = Deferred()
            timer = self.clock.callLater(delay_s, done.callback, None)

            def given(_: object) -> Response | Deferred[Response]:
                result = (answer or whole)(request)
                return fail(result) if isinstance(result, Exception) else result

            def over(result: Response) -> Response:
                if timer.active():
                    timer.cancel()
                return result

            return done.addCallback(given).addBoth(over)

        machine = None if seed else name.encode()
        self.candidates.append(Candidate(name, name, ask, mask, seed, bulk=True, machine=machine))
        return asked

    def quiet(self) -> None:
        """Nothing goes on when what is still asked of others is answered."""
        for asked in self.news.values():
            for _, news in asked:
                if not news.called:
                    news.callback(PiecesData(bytes(PIECES.count // 8)))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def finish(self, seconds: float = 10.0) -> None:
        done = self.fetch.run()
        self.clock.pump([0.01] * round(seconds / 0.01))
        self.successResultOf(done)
        self.assertEqual(self.written, dict(enumerate(ALL)))
        self.quiet()

    def test_few_answers(self) -> None:
        """Each block would cost a message of its own."""
        asked = self.source("client", seed=True)
        self.finish()
        self.assertEqual(sorted(number for numbers in asked for number in numbers), list(range(len(ALL))))
        self.assertLess(len(asked), 100)
        for numbers in asked:
            self.assertLessEqual(self.plan.bytes_of(numbers), MOST_BATCH_BYTES)
            self.assertEqual(list(numbers), sorted(numbers))
        self.assertEqual(self.totals.received_bytes, sum(map(len, ALL)))

    @shows("K8.4")
    def test_tiny_files(self) -> None:
        """Of 200,000 tiny files tens of thousands would be asked for, and come in, within one turn of the reactor: 0.7 to 1.6 s."""
        files = tuple(File(f"/f{number:05}", False, 6, KIND.hash(b"%06d" % number)) for number in range(20_000))
        index = Index(INDEX.image, KIND, (Directory("/", files),))
        plan, asked = BlockPlan(index, (), random.Random(1)), []

        def ask(request: Request) -> Deferred[Response]:
            if isinstance(request, GetShare):
                return succeed(ShareData(request.missing))
            assert isinstance(request, GetBlocks)
            asked.append(len(request.numbers))
            return Deferred()

        self.candidates = [Candidate("client", "client", ask, FULL, True, bulk=True)]
        context = FetchContext(self.clock, self.totals, self.passing, ME)
        fetch = BlockFetch("/app/v1", index, plan, self, lambda: self.candidates, lambda: None, context)
        done = fetch.run()
        self.clock.pump([0.01] * 10)
        (client,) = fetch._sources.active()
        client.window, client.rate, client.quickest_s = MOST_WINDOW, 1e9, 0.01  # it was fast until now
        fetch.nudge()
        self.clock.pump([0.01] * 10)
        self.assertLessEqual(max(asked), MOST_AT_ONCE)
        self.assertTrue(MOST_AT_ONCE < sum(asked) <= 9 * MOST_AT_ONCE, sum(asked))
        self.assertEqual(plan.unasked(plan.pieces.full), 6 * (20_000 - sum(asked)))
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.assertEqual(plan.unasked(plan.pieces.full), 6 * 20_000)

    def test_several_sources(self) -> None:
        """What one gives would be asked from another as well."""
        shares = [self.source(name) for name in "abc"]
        self.finish()
        self.assertEqual(sorted(number for share in shares for numbers in share for number in numbers), list(range(len(ALL))))

    def pieces(self, asked: list[tuple[int, ...]]) -> int:
        """The pieces that were asked for, as a mask."""
        return sum(1 << piece for piece in {PIECES.piece_of(number) for numbers in asked for number in numbers})

    def test_share(self) -> None:
        """A client would give everything to each of its nodes."""
        self.share = lambda missing: succeed(share_of(missing & HALF))
        client = self.source("client", delay_s=0.05, seed=True)
        peer = self.source("peer", mask=FULL & ~HALF)
        self.finish()
        whole_slices = self.pieces(client[: len(client) * 3 // 4])
        self.assertEqual(whole_slices & ~HALF, 0)
        self.assertEqual(sum(map(len, client)) + sum(map(len, peer)), len(ALL))
        self.assertGreater(len(self.shares), 1)
        self.assertEqual(self.shares[1] & HALF, 0)

    @shows("K7.8")
    def test_client_comes_back(self) -> None:
        """After an upload that was broken off every node would ask the client for all that it lacks: 2.4 GiB for 1.9."""
        self.share = lambda missing: succeed(share_of(missing & HALF))
        done = self.fetch.run()
        self.clock.pump([0.1] * 100)
        client = self.source("client", delay_s=0.01, seed=True)
        self.clock.pump([0.01] * 100)
        self.assertGreater(len(client), 2)
        self.clock.pump([0.01] * 30)
        self.assertEqual(self.pieces(client) & ~HALF & self.shares[0], 0)
        done.cancel()
        self.failureResultOf(done, CancelledError)

    @shows("K7.8")
    def test_client_is_busy(self) -> None:
        """A client that sends no faster than it was told to would be asked for what others fetch from it."""
        self.share = lambda missing: succeed(share_of(missing & HALF))
        client = self.source("client", answer=lambda request: Busy("slow down"), seed=True)
        done = self.fetch.run()
        self.clock.pump([0.01] * 500)
        self.assertGreater(len(client), 3)
        self.assertEqual(self.pieces(client) & ~HALF, 0)
        done.cancel()
        self.failureResultOf(done, CancelledError)

    @shows("A56", "A58", "F52")
    def test_share_of_the_dead(self) -> None:
        """What a client promised to a node that died would never come, or as slowly as if nobody had it."""
        self.share = lambda missing: succeed(share_of(missing & HALF))
        self.source("client", seed=True)
        self.finish(STARVING_S + 3.0)

    def test_client_that_does_not_share_out(self) -> None:
        """A client of another make could not upload."""
        self.share = lambda missing: fail(RemoteError("what?"))
        self.source("client", seed=True)
        self.finish(2.0)
        self.assertEqual(len(self.shares), 1)

    @shows("A58", "F52")
    def test_client_that_is_silent_about_shares(self) -> None:
        """One that does not answer would hold the image up, though others have it."""
        self.share = lambda missing: Deferred()
        self.source("client", seed=True)
        self.source("peer")
        self.finish(OUT_OF_TURN_S + 3.0)

    @shows("A58", "F52")
    def test_only_client_is_silent_about_shares(self) -> None:
        """Where nobody else has the image, it would never come."""
        self.share = lambda missing: Deferred()
        self.source("client", seed=True)
        self.finish(GRACE_S + 10.0)

    def test_turns(self) -> None:
        """All would take a new slice from the one node that has it; or a node whose turn never comes would wait for ever."""
        self.source("client", delay_s=1e6, seed=True)
        for name in ("a", "b", "c", "d", "e", "f"):
            self.source(name, mask=0)
        holder = self.source("holder")
        done = self.fetch.run()
        self.clock.pump([0.01] * 100)
        first = self.pieces(holder)
        peers = tuple(sorted(name.encode() for name in ("a", "b", "c", "d", "e", "f", "holder")))
        allowed = fetch_blocks.near(PIECES.count, ME, peers, frozenset({ME}))[b"holder"]
        self.assertEqual(first & ~allowed, 0)
        self.assertGreater(first.bit_count(), 20)
        self.assertLess(first.bit_count(), 130)
        self.clock.pump([0.01] * round(100 * OUT_OF_TURN_S + 300))
        self.successResultOf(done)

    def test_news(self) -> None:
        """What a relay has got would be known here only by gossip, tenths of a second later."""
        holder = self.source("holder", mask=0)
        self.source("other", mask=0)
        done = self.fetch.run()
        self.clock.advance(TURNS_S)
        near = fetch_blocks.near(PIECES.count, ME, (b"holder", b"other"), frozenset())[b"holder"]
        ((wanted, news),) = self.news["holder"]
        self.assertEqual(wanted & ~near, 0)
        self.assertEqual(near & ~(wanted | self.plan.mask), 0)
        self.assertEqual(holder, [])
        come = wanted & -wanted
        self.clock.advance(0.3)
        news.callback(PiecesData(PIECES.to_bytes(come)))
        self.clock.advance(NUDGE_S)
        self.assertEqual(self.pieces(holder), come)
        self.clock.pump([0.01] * 4)
        self.assertEqual(self.news["holder"][1][0], wanted & ~come, "what has come is of no interest any more")
        self.clock.advance(HELD_S - 1)
        self.assertEqual(len(self.news["holder"]), 2, "one question at a time")
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.quiet()

    def test_no_news_from_clients(self) -> None:
        """A client would be asked what it has, which is everything, and have to refuse."""
        self.source("client", seed=True)
        self.finish()
        self.assertEqual(self.news, {})

    def test_passes_on(self) -> None:
        """What came would be read and compressed again for the next node; or what is wrong here would be passed on."""

        def packed(request: GetBlocks) -> Response:
            self.assertTrue(request.packed)
            return BlocksData(tuple(part(one.data, may_pack=True) for one in plain(*request.numbers)))

        def bent(request: GetBlocks) -> Response:
            first, *others = plain(*request.numbers)
            return BlocksData((BlockPart(bytes([first.data[0] ^ 1]) + first.data[1:]), *others))

        asked = self.source("client", packed, seed=True)
        liar = self.source("liar", bent)
        self.finish(5.0)
        self.assertGreater(self.totals.bad_blocks, 0)
        known = 0
        for numbers in asked:
            for group in PIECES.groups(numbers):
                one = self.passing.get(INDEX.image, group, packed=True)
                assert one is not None
                data = b"".join(ALL[number] for number in group)
                self.assertEqual(unpack(one.data, len(data)) if one.packed else one.data, data)
                known += one.packed
        self.assertGreater(known, 50)
        for numbers in liar:
            for group in PIECES.groups(numbers):
                one = self.passing.get(INDEX.image, group, packed=False)
                self.assertIn(None if one is None else one.data, (None, b"".join(ALL[number] for number in group)))

    @shows("A24")
    def test_wrong_share(self) -> None:
        """A client that answers with the mask of another image, or with something else, would hold the image up."""
        for wrong in (ShareData(bytes(64)), PiecesData(b"\xff" * 32)):
            self.setUp()
            self.share = lambda missing, wrong=wrong: succeed(wrong)  # type: ignore[misc]
            self.source("client", seed=True)
            self.finish(2.0)
            self.assertEqual(len(self.shares), 1)

    @shows("A36", "F27")
    def test_lacking(self) -> None:
        """A peer that lacks some of what it claims would cost the rest of its answer, or be asked for it for ever."""

        def some(request: GetBlocks) -> Response:
            lacks = tuple(number for number in request.numbers if number % 3 == 0)
            return BlocksData(plain(*(number for number in request.numbers if number % 3)), lacks)

        asked = self.source("peer", some)
        self.source("client", delay_s=0.5, seed=True)
        self.finish(30.0)
        self.assertLess(sum(map(len, asked)), 3 * len(ALL))

    @shows("A7", "F5")
    def test_liar(self) -> None:
        """One wrong block in an answer would spoil the others, or come to the disk."""

        def wrong(request: GetBlocks) -> Response:
            first, *others = plain(*request.numbers)
            return BlocksData((BlockPart(bytes([first.data[0] ^ 1]) + first.data[1:]), *others))

        self.source("liar", wrong)
        self.source("good", delay_s=0.2)
        self.finish(30.0)
        self.assertGreaterEqual(self.totals.bad_blocks, 1)

    @shows("A7", "A24")
    def test_wrong_size(self) -> None:
        """An answer that is shorter or longer than what was asked for would put bytes where they do not belong."""
        wrong: tuple[Answer, ...] = (
            lambda request: BlocksData(plain(*request.numbers)[:-1]),
            lambda request: BlocksData((*plain(*request.numbers), BlockPart(b"more"))),
            lambda request: BlocksData(tuple(BlockPart(one.data[:-1]) for one in plain(*request.numbers))),
            lambda request: BlocksData(tuple(BlockPart(one.data + b"x") for one in plain(*request.numbers))),
            lambda request: BlocksData(tuple(BlockPart(one.data, packed=True) for one in plain(*request.numbers))),
        )
        for answer in wrong:
            self.setUp()
            self.source("wrong", answer)
            self.source("good", delay_s=0.2)
            self.finish(30.0)
            self.assertGreater(self.totals.bad_blocks, 0)


def whole(request: GetBlocks) -> BlocksData:
    return BlocksData(plain(*request.numbers))


def share_of(pieces: int) -> ShareData:
    return ShareData(PIECES.to_bytes(pieces))
