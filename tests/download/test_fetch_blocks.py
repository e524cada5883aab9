"""Fetching blocks from several sources at once."""

import random

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock, LoopingCall
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download import fetch_blocks
from ciruela.download.fetch_blocks import GIVE_UP_S, LATE_S, NUDGE_S, STALLED_S, TICK_S, BlockFetch, FetchContext
from ciruela.download.plan import BlockPlan
from ciruela.download.relaycache import BlockRelayCache
from ciruela.download.sources import FIRST_BLOCKS, Candidate, Totals
from ciruela.index.digest import HashKind
from ciruela.index.tree import Directory, File, Index
from ciruela.model.bitfield import FULL
from ciruela.model.errors import DiskError, DownloadFailed, LinkLost, RemoteError
from ciruela.model.ids import ImageId
from ciruela.model.upload import AbortReason
from ciruela.proto.messages import BlockData
from tests.proof import shows

COUNT = 600
BLOCKS = [b"%d" % number for number in range(COUNT)]
INDEX = Index(
    ImageId(bytes(32)),
    HashKind.BLAKE2B,
    (Directory("/", (File("/f", False, COUNT * 32768, b"".join(HashKind.BLAKE2B.hash(data) for data in BLOCKS)),)),),
)
NUMBERS = {HashKind.BLAKE2B.hash(data): number for number, data in enumerate(BLOCKS)}


class Disk:
    """A staging directory that checks and counts."""

    def __init__(self):
        self.written = {}
        self.fault = None
        self.held = None

    def write(self, blocks):
        if self.fault is not None:
            return fail(self.fault)
        results = []
        for number, data in blocks:
            good = data == BLOCKS[number]
            results.append(good)
            if good:
                self.written[number] = data
        if self.held is not None:
            return self.held.addCallback(lambda _: results)
        return succeed(results)


class BlockFetchTests(SynchronousTestCase):
    """Every block ends up on disk, whoever gives it."""

    def setUp(self):
        self.clock = Clock()
        self.disk = Disk()
        self.candidates = []
        self.progress = 0
        self.totals = Totals()
        self.plan = BlockPlan(INDEX, (), random.Random(1))
        self.fetch = BlockFetch(
            "/app/v1",
            INDEX,
            self.plan,
            self.disk,
            lambda: self.candidates,
            self.count,
            FetchContext(self.clock, self.totals, BlockRelayCache(self.clock)),
        )

    def count(self):
        self.progress += 1

    def source(self, name, mask=FULL, seed=False, answer=None, delay=0.01, hearsay=False):
        """A source that answers after ``delay`` seconds with the right block, or with what ``answer`` makes of the block number."""
        asked = []

        def ask(request):
            number = NUMBERS[request.hash]
            self.assertEqual((request.hint.path, request.hint.offset), ("/f", number * 32768))
            asked.append(number)
            done = Deferred()
            if delay is not None:
                timer = self.clock.callLater(delay, done.callback, None)
                done.addCallback(lambda _: BlockData(BLOCKS[number]) if answer is None else answer(number))
                done.addBoth(lambda result: (timer.active() and timer.cancel(), result)[1])
            return done

        self.candidates.append(Candidate(name, name, ask, mask, seed, hearsay))
        return asked

    def run_for(self, seconds, step=0.01):
        for _ in range(round(seconds / step)):
            self.clock.advance(step)

    def finish(self, done, seconds=10.0):
        self.run_for(seconds)
        self.assertIsNone(self.successResultOf(done))
        self.assertEqual(len(self.disk.written), COUNT)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_source(self):
        """A client alone gives everything, each block once."""
        asked = self.source("client", seed=True)
        self.finish(self.fetch.run())
        self.assertEqual(sorted(asked), list(range(COUNT)))
        self.assertEqual(self.progress, 256)
        self.assertEqual(self.totals.received_bytes, sum(len(data) for data in BLOCKS))

    def test_all_at_once(self):
        """Client and peers give at the same time, and nothing is fetched twice."""
        shares = [self.source("client", seed=True), self.source("p1"), self.source("p2")]
        self.finish(self.fetch.run())
        self.assertEqual(sorted(number for share in shares for number in share), list(range(COUNT)))
        for share in shares:
            self.assertGreater(len(share), COUNT / 6)

    def test_client_gives_what_peers_lack(self):
        """While the client can be asked for what nobody else has, it is."""
        half = sum(1 << number for number in range(128))
        client = self.source("client", seed=True)
        self.source("peer", mask=half)
        done = self.fetch.run()
        self.run_for(0.05)
        self.assertTrue(client)
        self.assertTrue(all(not half >> INDEX.pieces.piece_of(number) & 1 for number in client))
        self.finish(done)

    @shows("K7.5")
    def test_paused_client(self):
        """A client that is stopped for 4 or 12 s, and goes on, would be waited for 31 or 91 s."""
        for pause_s in (4.0, 12.0):
            self.setUp()
            queue, paused = [], [False]

            def ask(request, queue=queue):
                queue.append((done := Deferred(), NUMBERS[request.hash]))
                return done

            def give(queue=queue, paused=paused):
                if queue and not paused[0]:
                    done, number = queue.pop(0)
                    if not done.called:
                        done.callback(BlockData(BLOCKS[number]))

            self.candidates = [Candidate("client", "client", ask, FULL, True, False)]
            giving = LoopingCall(give)
            giving.clock = self.clock
            giving.start(0.01)
            done = self.fetch.run()
            self.run_for(1)
            paused[0] = True
            self.run_for(pause_s)
            paused[0] = False
            self.run_for(5 + 3)
            giving.stop()
            self.finish(done, 0.1)

    @shows("W2")
    def test_too_late_in_words(self):
        """The log would say (6.48, 'Deferred')."""
        lines = []
        globalLogPublisher.addObserver(lines.append)
        self.addCleanup(globalLogPublisher.removeObserver, lines.append)
        self.source("client", seed=True, delay=None)
        done = self.fetch.run()
        self.run_for(20, 0.1)
        reasons = [line["reason"] for line in lines if "reason" in line]
        self.assertRegex(reasons[0], r"^no answer within [0-9.]+ s$")
        done.cancel()
        self.failureResultOf(done, CancelledError)

    def test_window(self):
        """A source is not flooded before it has shown what it can do."""
        asked = self.source("client", seed=True, delay=None)
        done = self.fetch.run()
        self.assertEqual(len(asked), FIRST_BLOCKS)
        done.cancel()
        self.failureResultOf(done, CancelledError)

    @shows("A7", "F5")
    def test_liar(self):
        """Wrong bytes are never written; the liar is left alone and the rest comes from the others."""
        liar = self.source("liar", answer=lambda number: BlockData(b"wrong"))
        self.source("good")
        self.finish(self.fetch.run(), seconds=20.0)
        self.assertLessEqual(len(liar), 3 * FIRST_BLOCKS)
        self.assertGreater(self.totals.bad_blocks, 0)

    @shows("A36", "F27")
    def test_lacking_peer(self):
        """A peer that claims more than it has is believed for the rest only."""
        self.source("peer", answer=lambda number: BlockData(BLOCKS[number]) if number < 300 else _raise(RemoteError("block not found")))
        self.source("client", seed=True, delay=0.2)
        self.finish(self.fetch.run(), seconds=60.0)

    def test_lost_link(self):
        """A connection that breaks costs nothing but time."""
        broken = self.source("broken", answer=lambda number: _raise(LinkLost("gone")))
        self.source("good")
        self.finish(self.fetch.run(), seconds=20.0)
        self.assertLess(len(broken), 4 * FIRST_BLOCKS)

    @shows("A58", "F52")
    def test_silent_source(self):
        """One source that never answers delays its few blocks by seconds, not the download (threats A58)."""
        self.source("silent", delay=None)
        self.source("good")
        done = self.fetch.run()
        self.run_for(1.5)
        self.assertEqual(len(self.disk.written), COUNT - FIRST_BLOCKS)
        self.run_for(LATE_S + 1)
        self.assertIsNone(self.successResultOf(done))

    @shows("A58")
    def test_silence_ends(self):
        """What a silent source owes would count as on its way for ever, and it would never be asked again."""
        asked = self.source("silent", delay=None)
        done = self.fetch.run()
        self.run_for(60, step=0.1)
        self.assertGreater(len(asked), FIRST_BLOCKS)
        done.cancel()
        self.failureResultOf(done, CancelledError)

    @shows("I6")
    def test_disk_behind(self):
        """Blocks that the disk has not taken yet would fill the memory."""
        self.disk.held = Deferred()
        self.patch(fetch_blocks, "MOST_UNWRITTEN", 100)
        asked = [self.source(f"p{number}") for number in range(10)]
        done = self.fetch.run()
        self.run_for(0.1)
        held_bytes = self.totals.received_bytes
        self.assertEqual(sum(map(len, asked)), 10 * FIRST_BLOCKS)
        self.assertGreater(held_bytes, 100)
        more = [self.source(f"more{number}") for number in range(10)]
        self.run_for(2)
        self.assertEqual((sum(map(len, more)), self.totals.received_bytes), (0, held_bytes))
        held, self.disk.held = self.disk.held, None
        held.callback(None)
        self.finish(done)

    @shows("I8")
    def alone_s(self):
        """How long the good source takes alone."""
        self.setUp()
        self.source("good", delay=0.05)
        done = self.fetch.run()
        while not done.called:
            self.run_for(0.1)
        self.successResultOf(done)
        return self.clock.seconds()

    @shows("A58", "F52")
    def test_one_good_source_of_four(self):
        """One slow, one silent and one flapping node would make everybody wait for them."""
        good_s = self.alone_s()
        self.setUp()
        self.source("slow", delay=30 / 32)
        self.source("silent", delay=None)

        def flapping(number):
            if int(self.clock.seconds() / 2) % 2:
                raise LinkLost("gone again")
            return BlockData(BLOCKS[number])

        self.source("flapping", answer=flapping)
        self.source("good", delay=0.05)
        done = self.fetch.run()
        while not done.called and self.clock.seconds() < 60:
            self.run_for(0.1)
        self.successResultOf(done)
        self.assertLessEqual(self.clock.seconds(), 1.5 * good_s + LATE_S + TICK_S)

    def test_a_fault_of_ours(self):
        """A download that nobody drives any more would hang for ever, and hold its path."""
        done = self.fetch.run()
        self.candidates = None
        self.run_for(2)
        self.failureResultOf(done, TypeError)
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @shows("A58", "F52")
    def test_slow_source(self):
        """A slow source gives little and holds nothing up."""
        slow = self.source("slow", delay=1.5)
        self.source("fast")
        self.finish(self.fetch.run(), seconds=12.0)
        self.assertLess(len(slow), COUNT / 4)

    def test_new_source(self):
        """A source that turns up later is used as soon as it is heard of."""
        done = self.fetch.run()
        self.run_for(0.1)
        self.source("client", seed=True)
        self.fetch.nudge()
        self.finish(done)

    def test_first_news_at_once(self):
        """Each hop of an upload through a large cluster would wait for a timer; a flood of news must not be a flood of work."""
        looks = []
        self.fetch = BlockFetch(
            "/app/v1",
            INDEX,
            self.plan,
            self.disk,
            lambda: looks.append(self.clock.seconds()) or self.candidates,
            self.count,
            FetchContext(self.clock, self.totals, BlockRelayCache(self.clock)),
        )
        done = self.fetch.run()
        self.run_for(0.1)
        looks.clear()
        client = self.source("client", seed=True, delay=None)
        self.fetch.nudge()
        self.clock.advance(0)
        self.assertTrue(client, "it is asked in the same moment")
        for _ in range(100):
            self.fetch.nudge()
            self.clock.advance(NUDGE_S / 10)
        self.assertIn(len(looks), range(8, 13))
        done.cancel()
        self.failureResultOf(done, CancelledError)

    def test_stalled(self):
        """Without any source it says so, and goes on when one comes back."""
        done = self.fetch.run()
        self.assertFalse(self.fetch.stalled)
        self.run_for(STALLED_S, step=0.5)
        self.assertTrue(self.fetch.stalled)
        self.source("client", seed=True)
        self.run_for(2.0)
        self.assertFalse(self.fetch.stalled)
        self.finish(done)

    @shows("A56", "F53")
    def test_gives_up(self):
        """After an hour without one good block it ends, with the reference's word."""
        self.source("liar", answer=lambda number: BlockData(b"wrong"))
        done = self.fetch.run()
        self.run_for(GIVE_UP_S, step=1.0)
        self.assertEqual(self.failureResultOf(done, DownloadFailed).value.reason, AbortReason.NO_FILE_SOURCE)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @shows("A38", "A39")
    def test_disk_error(self):
        """A disk that fails ends this download, whatever the sources do (protocol C21)."""
        self.disk.fault = DiskError("EIO")
        self.source("client", seed=True)
        done = self.fetch.run()
        self.run_for(1.0)
        self.failureResultOf(done, DiskError)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_not_before_written(self):
        """It is not done before the last block is on disk."""
        self.disk.held = Deferred()
        self.source("client", seed=True)
        done = self.fetch.run()
        self.run_for(5.0)
        self.assertNoResult(done)
        held, self.disk.held = self.disk.held, None
        held.callback(None)
        self.finish(done)

    def test_nothing_to_fetch(self):
        """An image whose files are all here is done at once."""
        plan = BlockPlan(INDEX, range(COUNT), random.Random(1))
        context = FetchContext(self.clock, self.totals, BlockRelayCache(self.clock))
        fetch = BlockFetch("/a/b", INDEX, plan, self.disk, list, self.count, context)
        self.assertIsNone(self.successResultOf(fetch.run()))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancel(self):
        """A download that is stopped leaves nothing behind."""
        self.source("client", seed=True, delay=None)
        done = self.fetch.run()
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])


def _raise(error):
    raise error
