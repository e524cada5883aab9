"""Getting an index from whoever has it."""

import random

import zstandard
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download.fetch_index import ANSWER_S, GIVE_UP_S, SILENT_S, IndexFetch
from ciruela.download.sources import Candidate
from ciruela.index.digest import HashKind
from ciruela.index.parse import parse
from ciruela.model.bitfield import FULL
from ciruela.model.errors import BadIndex, DiskError, DownloadFailed, LinkLost, RemoteError
from ciruela.model.ids import ImageId
from ciruela.model.upload import AbortReason
from ciruela.proto.compression import unpack_index
from ciruela.proto.messages import BlockData, GetIndex, IndexData
from tests.proof import shows

IMAGE = ImageId(b"i" * 32)


class IndexFetchTests(SynchronousTestCase):
    """The index comes from the first source that gives bytes which hash to the id."""

    def setUp(self):
        self.clock = Clock()
        self.asked = []
        self.closed = []
        self.stored = []
        self.candidates = []
        self.store_result = None
        self.fetch = IndexFetch(GetIndex(IMAGE, "/app/v1"), lambda: self.candidates, self.store, self.clock, random.Random(1), self.unpack)

    def store(self, image, data):
        self.stored.append((image, data))
        if self.store_result is not None:
            return fail(self.store_result)
        return succeed("the index") if data == b"good" else fail(BadIndex("not canonical"))

    def unpack(self, packed):
        return succeed(unpack_index(packed, 1000))

    def candidate(self, name, *answers, seed=False, hearsay=False, bulk=False, incoming=lambda: 0):
        answers = list(answers)

        def ask(request):
            self.asked.append((name, request))
            answer = answers.pop(0) if answers else Deferred()
            return fail(answer) if isinstance(answer, Exception) else answer

        closed = lambda reason: self.closed.append((name, reason))  # noqa: E731
        return Candidate(name, name, ask, FULL, seed, hearsay, bulk=bulk, incoming=incoming, close=closed)

    def names(self):
        return [name for name, _ in self.asked]

    def test_good(self):
        """One source, one request, with the path as the hint that the reference sends too."""
        self.candidates = [self.candidate("a", succeed(IndexData(b"good")))]
        self.assertEqual(self.successResultOf(self.fetch.run()), "the index")
        self.assertEqual(self.asked, [("a", GetIndex(IMAGE, "/app/v1"))])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_packed(self):
        """Who understands it is asked for a compressed index; who gives a bent one costs only itself."""
        data = b"good"
        packed = zstandard.ZstdCompressor().compress(data)
        bent = self.candidate("a", succeed(IndexData(packed[:-1], packed=True)), seed=True, bulk=True)
        self.candidates = [bent, self.candidate("b", succeed(IndexData(packed, packed=True)), bulk=True)]
        done = self.fetch.run()
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(done), "the index")
        self.assertEqual(self.asked, [("a", GetIndex(IMAGE, "/app/v1", packed=True)), ("b", GetIndex(IMAGE, "/app/v1", packed=True))])
        self.assertEqual(self.stored, [(IMAGE, data)])

    def test_order(self):
        """Clients, which surely have it, before peers that said so, before guesses."""
        gone = [LinkLost("gone")] * 3
        self.candidates = [
            self.candidate("guess", gone[0], hearsay=True),
            self.candidate("peer", gone[1]),
            self.candidate("client", gone[2], seed=True),
        ]
        done = self.fetch.run()
        self.clock.pump([0, 0, 0])
        self.assertEqual(self.names(), ["client", "peer", "guess"])
        self.assertNoResult(done)
        done.cancel()
        self.failureResultOf(done, CancelledError)

    @shows("A4", "F4")
    def test_bad_source(self):
        """A forged index is not kept; the next source is asked, the forger not again at once (protocol S3, threats A4)."""
        self.candidates = [
            self.candidate("forger", succeed(IndexData(b"forged")), succeed(IndexData(b"forged")), seed=True),
            self.candidate("good", succeed(IndexData(b"good"))),
        ]
        done = self.fetch.run()
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(done), "the index")
        self.assertEqual(self.names(), ["forger", "good"])

    @shows("F18")
    def test_odd_answer(self):
        """An answer of another kind is a failure of that source only."""
        self.candidates = [
            self.candidate("odd", succeed(BlockData(b"good")), seed=True),
            self.candidate("good", succeed(IndexData(b"good"))),
        ]
        done = self.fetch.run()
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(done), "the index")

    @shows("A58", "S3")
    def test_silent_source(self):
        """A source that never answers would hold up an upload for a minute: after 2 s another is asked as well, after 20 s it is left."""
        silent = Deferred()
        self.candidates = [self.candidate("silent", silent, seed=True)]
        done = self.fetch.run()
        self.clock.pump([1.0] * int(SILENT_S - 1))
        self.assertEqual((self.names(), silent.called), (["silent"], False))
        self.clock.advance(1)
        self.assertTrue(silent.called)
        self.assertEqual(self.closed, [("silent", "closed because it gave nothing of an answer within 20 s")])
        done.cancel()
        self.failureResultOf(done, CancelledError)

    @shows("S3")
    def test_twenty_silent_sources(self):
        """Twenty that publish an image and answer nothing would keep it from the one who has it, past the client's patience."""
        self.candidates = [self.candidate(f"silent{number}", seed=True) for number in range(20)]
        self.candidates.append(self.candidate("good", succeed(IndexData(b"good")), seed=True))
        done = self.fetch.run()
        self.clock.pump([1.0] * 45)
        self.assertEqual(self.successResultOf(done), "the index")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @shows("S3")
    def test_bytes_flow(self):
        """An index that takes long on its way would be asked of somebody else, and come twice; it has a minute, and no longer."""
        here = [0]
        slow = Deferred()
        self.candidates = [self.candidate("slow", slow, seed=True, incoming=lambda: here[0]), self.candidate("other")]
        done = self.fetch.run()
        for _ in range(int(ANSWER_S) - 1):
            here[0] += 100
            self.clock.advance(1)
        self.assertEqual(self.names(), ["slow"])
        here[0] += 100
        self.clock.advance(1)
        self.assertTrue(slow.called)
        self.assertEqual(self.closed[0][1], "closed because it gave no whole answer within 60 s")
        self.clock.advance(0)
        self.assertEqual(self.names(), ["slow", "other"])
        done.cancel()
        self.failureResultOf(done, CancelledError)

    @shows("S3")
    def test_late_answer_counts(self):
        """A client that was stopped for a moment would have to begin again, and one of two answers be kept twice."""
        late, other = Deferred(), Deferred()
        self.candidates = [self.candidate("late", late, seed=True), self.candidate("other", other)]
        done = self.fetch.run()
        self.clock.pump([1.0] * 4)
        self.assertEqual(self.names(), ["late", "other"])
        late.callback(IndexData(b"good"))
        self.assertEqual(self.successResultOf(done), "the index")
        self.assertTrue(other.called)
        self.assertEqual((self.closed, self.clock.getDelayedCalls()), ([], []), "nobody is sent away for being slower")

    @shows("K7.3")
    def test_never_to_be_accepted(self):
        """An index with a name that is not UTF-8 would be asked of everybody for 90 s, and nobody would hear why."""
        data = b"DIRSIGNATURE.v1 blake2b/256 block_size=32768\n" + (body := b"/\n  \\xff f 0\n")
        footer = HashKind.BLAKE2B.hash(body)
        data += footer.hex().encode() + b"\n"
        store = lambda image, data: maybeDeferred(parse, data, image)  # noqa: E731
        self.fetch = IndexFetch(
            GetIndex(ImageId(footer), "/app/v1"), lambda: self.candidates, store, self.clock, random.Random(1), self.unpack
        )
        self.candidates = [
            self.candidate("forger", succeed(IndexData(data[:-3] + b"0\n\n")), seed=True),
            self.candidate("client", succeed(IndexData(data)), seed=True),
        ]
        done = self.fetch.run()
        self.clock.pump([0, 0])
        failure = self.failureResultOf(done, DownloadFailed).value
        self.assertEqual(failure.reason, AbortReason.BAD_INDEX)
        self.assertIn("line 3", failure.detail)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_waits_for_a_source(self):
        """Nobody has it yet: it is asked for as soon as somebody does."""
        done = self.fetch.run()
        self.clock.advance(5)
        self.assertNoResult(done)
        self.candidates = [self.candidate("a", succeed(IndexData(b"good")))]
        self.fetch.nudge()
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(done), "the index")

    @shows("A56")
    def test_gives_up(self):
        """After 90 s without any source the upload is given up, with the reference's word."""
        done = self.fetch.run()
        self.clock.pump([1.0] * int(GIVE_UP_S))
        failure = self.failureResultOf(done, DownloadFailed)
        self.assertEqual(failure.value.reason, AbortReason.CANT_FETCH_INDEX)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_failing_source_is_not_hammered(self):
        """The n-th failure of a source leaves it alone for n seconds (protocol section 5.7)."""
        self.candidates = [self.candidate("a", *[RemoteError("index not found")] * 50)]
        done = self.fetch.run()
        self.clock.pump([1.0] * 30)
        self.assertLess(len(self.asked), 10)
        self.assertGreater(len(self.asked), 3)
        done.cancel()
        self.failureResultOf(done, CancelledError)

    def test_disk_error(self):
        """A disk that cannot store it is no fault of the sources."""
        self.store_result = DiskError("no space")
        self.candidates = [self.candidate("a", succeed(IndexData(b"good")))]
        self.failureResultOf(self.fetch.run(), DiskError)

    def test_cancel(self):
        """A download that is stopped leaves no request and no timer behind."""
        pending = Deferred()
        self.candidates = [self.candidate("a", pending)]
        done = self.fetch.run()
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.assertTrue(pending.called)
        self.assertEqual(self.clock.getDelayedCalls(), [])
