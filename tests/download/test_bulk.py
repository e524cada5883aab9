"""Many blocks in one answer: from a node that has them, and to one that wants them."""

from __future__ import annotations

import random
from collections.abc import Callable

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download import exchange
from ciruela.download.fetch_blocks import OUT_OF_TURN_S, STARVING_S, BlockFetch
from ciruela.download.plan import Plan
from ciruela.download.serving import BlockService, Catalog
from ciruela.download.sources import BULK_BLOCKS, Candidate, Totals
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.emit import emit
from ciruela.index.merge import BlockMap
from ciruela.index.parse import parse
from ciruela.index.tree import Directory, File, Index
from ciruela.model.errors import RemoteError
from ciruela.model.mask import FULL, slice_of
from ciruela.model.order import Command
from ciruela.model.state import SigEntry, State
from ciruela.model.vpath import VPath
from ciruela.proto.messages import MOST_BULK_BYTES, BlocksData, GetBlocks, GetShare, Request, Response, ShareData
from ciruela.seams import Pending
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


class Disk:
    """Has an index, and the blocks that are not in ``gone``."""

    def __init__(self) -> None:
        self.gone: set[int] = set()
        self.index: Index | None = INDEX

    def read_index(self, image: object) -> Deferred[Index | None]:
        return succeed(self.index)

    def read_blocks(self, vpath: VPath, index: Index, numbers: tuple[int, ...]) -> Deferred[list[bytes | None]]:
        return succeed([None if number in self.gone else ALL[number] for number in numbers])


class ServingTests(SynchronousTestCase):
    """What a node gives."""

    def setUp(self) -> None:
        self.disk, self.ledger = Disk(), Ledger(Clock())
        self.damaged: list[VPath] = []
        catalog = Catalog(self.disk)  # type: ignore[arg-type]
        self.service = BlockService(self.ledger, self.disk, catalog, lambda vpath, _: self.damaged.append(vpath))  # type: ignore[arg-type]
        self.state = State(INDEX.image, (SigEntry(5, bytes(64)),))

    def ask(self, *numbers: int, path: str = "/app/v1") -> Deferred[BlocksData]:
        return self.service.give_many(GetBlocks(path, INDEX.image, numbers))

    def refused(self, *numbers: int, path: str = "/app/v1") -> str:
        return str(self.failureResultOf(self.ask(*numbers, path=path), RemoteError).value)

    def test_committed(self) -> None:
        """What stands here would have to be asked for block by block."""
        self.ledger.commit(V1, self.state)
        data = self.successResultOf(self.ask(1, 2, 301))
        self.assertEqual(data, BlocksData(ALL[1] + ALL[2] + ALL[301]))
        self.assertEqual((self.service.sent_blocks, self.service.sent_bytes, self.service.served()), (3, len(data.data), {V1}))
        self.assertEqual(self.damaged, [])

    @shows("A10", "F51")
    def test_some_are_gone(self) -> None:
        """A block that is damaged here would be given, or keep the others from being given; or nobody would repair it."""
        self.ledger.commit(V1, self.state)
        self.disk.gone = {2, 3}
        self.assertEqual(self.successResultOf(self.ask(1, 2, 3, 4)), BlocksData(ALL[1] + ALL[4], (2, 3)))
        self.assertEqual(self.damaged, [V1])

    def test_on_its_way(self) -> None:
        """A node would not share what it has got so far; what it has not got is no damage."""
        self.ledger.begin(Pending(V1, self.state, Command.APPEND))
        self.disk.gone = {1}
        self.assertEqual(self.successResultOf(self.ask(0, 1)), BlocksData(ALL[0], (1,)))
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
        self.assertEqual(len(self.successResultOf(self.ask(*range(most))).data), MOST_BULK_BYTES)

    @shows("A45")
    def test_no_index(self) -> None:
        """A node whose index is damaged would answer nothing, and nobody would mend it."""
        self.ledger.commit(V1, self.state)
        self.disk.index = None
        self.assertIn("index", self.refused(0))
        self.assertEqual(self.damaged, [V1])


Answer = Callable[[GetBlocks], Response | Exception]


class FetchTests(SynchronousTestCase):
    """What a node asks for."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.written: dict[int, bytes] = {}
        self.candidates: list[Candidate] = []
        self.totals = Totals()
        self.shares: list[int] = []
        self.share: Callable[[int], Deferred[Response]] = lambda missing: succeed(ShareData(missing))
        self.fetch = BlockFetch(
            "/app/v1",
            INDEX,
            BlockMap(INDEX),
            Plan(INDEX, (), random.Random(1)),
            self,  # type: ignore[arg-type]
            lambda: self.candidates,
            lambda: None,
            self.totals,
            self.clock,
            random.Random(1),
            ME,
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
                self.shares.append(request.missing)
                return self.share(request.missing)
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

    def finish(self, seconds: float = 10.0) -> None:
        done = self.fetch.run()
        self.clock.pump([0.01] * round(seconds / 0.01))
        self.successResultOf(done)
        self.assertEqual(self.written, dict(enumerate(ALL)))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_few_answers(self) -> None:
        """Each block would cost a message of its own."""
        asked = self.source("client", seed=True)
        self.finish()
        self.assertEqual(sorted(number for numbers in asked for number in numbers), list(range(len(ALL))))
        self.assertLess(len(asked), 300)
        for numbers in asked:
            self.assertLessEqual(len(numbers), BULK_BLOCKS)
            self.assertEqual(list(numbers), sorted(numbers))
        self.assertEqual(self.totals.received_bytes, sum(map(len, ALL)))

    def test_several_sources(self) -> None:
        """What one gives would be asked from another as well."""
        shares = [self.source(name) for name in "abc"]
        self.finish()
        self.assertEqual(sorted(number for share in shares for numbers in share for number in numbers), list(range(len(ALL))))

    def parts(self, asked: list[tuple[int, ...]]) -> int:
        """The slices that were asked for, as a mask."""
        return sum(1 << part for part in {slice_of(number, len(ALL)) for numbers in asked for number in numbers})

    def test_share(self) -> None:
        """A client would give everything to each of its nodes."""
        self.share = lambda missing: succeed(ShareData(missing & HALF))
        client = self.source("client", delay_s=0.05, seed=True)
        peer = self.source("peer", mask=FULL & ~HALF)
        self.finish()
        whole_slices = self.parts(client[: len(client) * 3 // 4])
        self.assertEqual(whole_slices & ~HALF, 0)
        self.assertEqual(sum(map(len, client)) + sum(map(len, peer)), len(ALL))
        self.assertGreater(len(self.shares), 1)
        self.assertEqual(self.shares[1] & HALF, 0)

    @shows("A56", "A58", "F52")
    def test_share_of_the_dead(self) -> None:
        """What a client promised to a node that died would never come, or as slowly as if nobody had it."""
        self.share = lambda missing: succeed(ShareData(missing & HALF))
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

    def test_turns(self) -> None:
        """All would take a new slice from the one node that has it; or a node whose turn never comes would wait for ever."""
        self.source("client", delay_s=1e6, seed=True)
        for name in ("a", "b", "c", "d", "e", "f"):
            self.source(name, mask=0)
        holder = self.source("holder")
        done = self.fetch.run()
        self.clock.pump([0.01] * 100)
        first = self.parts(holder)
        mine = exchange.neighbors
        peers = tuple(sorted(name.encode() for name in ("a", "b", "c", "d", "e", "f", "holder")))
        allowed = sum(1 << part for part in range(256) if b"holder" in mine(part, ME, peers, frozenset({ME})))
        self.assertEqual(first & ~allowed, 0)
        self.assertGreater(first.bit_count(), 20)
        self.assertLess(first.bit_count(), 130)
        self.clock.pump([0.01] * round(100 * OUT_OF_TURN_S + 300))
        self.successResultOf(done)

    @shows("A36", "F27")
    def test_lacking(self) -> None:
        """A peer that lacks some of what it claims would cost the rest of its answer, or be asked for it for ever."""

        def some(request: GetBlocks) -> Response:
            lacks = tuple(number for number in request.numbers if number % 3 == 0)
            return BlocksData(b"".join(ALL[number] for number in request.numbers if number % 3), lacks)

        asked = self.source("peer", some)
        self.source("client", delay_s=0.5, seed=True)
        self.finish(30.0)
        self.assertLess(sum(map(len, asked)), 3 * len(ALL))

    @shows("A7", "F5")
    def test_liar(self) -> None:
        """One wrong block in an answer would spoil the others, or come to the disk."""

        def wrong(request: GetBlocks) -> Response:
            data = bytearray(b"".join(ALL[number] for number in request.numbers))
            data[0] ^= 1
            return BlocksData(bytes(data))

        self.source("liar", wrong)
        self.source("good", delay_s=0.2)
        self.finish(30.0)
        self.assertGreaterEqual(self.totals.bad_blocks, 1)

    @shows("A7", "A24")
    def test_wrong_size(self) -> None:
        """An answer that is shorter or longer than what was asked for would put bytes where they do not belong."""
        wrong: tuple[Answer, ...] = (
            lambda request: BlocksData(whole(request).data[:-1]),
            lambda request: BlocksData(whole(request).data + b"x"),
        )
        for answer in wrong:
            self.setUp()
            self.source("wrong", answer)
            self.source("good", delay_s=0.2)
            self.finish(30.0)
            self.assertGreater(self.totals.bad_blocks, 0)


def whole(request: GetBlocks) -> BlocksData:
    return BlocksData(b"".join(ALL[number] for number in request.numbers))
