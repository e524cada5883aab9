"""Giving blocks: only what a verified index names, only what matches."""

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download.relaycache import BlockRelayCache
from ciruela.download.serving import KEPT_INDEXES, BlockService, Catalog
from ciruela.index.digest import HashKind
from ciruela.index.emit import emit
from ciruela.index.parse import parse
from ciruela.index.tree import Directory, File
from ciruela.interfaces import Pending
from ciruela.model.errors import DiskError, RemoteError
from ciruela.model.upload import Command
from ciruela.model.versions import SigEntry, State
from ciruela.model.vpath import VPath
from ciruela.proto.messages import BlockData, BlockHint, GetBlock
from ciruela.tracking.ledger import Ledger
from tests.proof import shows

V1 = VPath.parse("/app/v1")


def image(seed):
    data = [bytes([seed, number]) for number in range(3)]
    hashes = b"".join(HashKind.BLAKE2B.hash(one) for one in data)
    entries = (File("/f", False, 3 * 32768, hashes), File("/g", False, 2, HashKind.BLAKE2B.hash(data[0])))
    image_id, text = emit(HashKind.BLAKE2B, [Directory("/", entries)])
    return parse(text, image_id), data


class Disk:
    """A disk that gives what it is told to."""

    def __init__(self):
        self.indexes = {}
        self.blocks = {}
        self.reads = []
        self.loads = []
        self.load_answer = None

    def read_index(self, image_id):
        self.loads.append(image_id)
        return succeed(self.indexes.get(image_id)) if self.load_answer is None else self.load_answer

    def read_blocks(self, vpath, index, numbers):
        self.reads.append((vpath, index.image, list(numbers)))
        return [self.blocks.get((index.image, number)) for number in numbers]


class BlockServiceTests(SynchronousTestCase):
    """Peers and clients get blocks of what is here and of what is on its way, and nothing else."""

    def setUp(self):
        self.disk, self.ledger = Disk(), Ledger(Clock())
        self.catalog = Catalog(self.disk)
        self.service = BlockService(self.ledger, self.disk, self.catalog, BlockRelayCache(Clock()))
        self.index, self.data = image(1)
        self.state = State(self.index.image, (SigEntry(5, bytes(64)),))

    def hold(self, index, data):
        self.disk.indexes[index.image] = index
        for number, block in enumerate([*data, data[0]]):
            self.disk.blocks[index.image, number] = block

    def ask(self, data, path="/f", offset=0, vpath="/app/v1"):
        return self.service.give(GetBlock(HashKind.BLAKE2B.block(data), BlockHint(vpath, path, offset)))

    def test_committed(self):
        """A block of a visible image, found by its place."""
        self.hold(self.index, self.data)
        self.ledger.commit(V1, self.state)
        self.assertEqual(self.successResultOf(self.ask(self.data[2], offset=65536)), BlockData(self.data[2]))
        self.assertEqual(self.disk.reads, [(V1, self.index.image, [2])])
        self.assertEqual((self.service.sent_blocks, self.service.sent_bytes), (1, 2))

    def test_what_is_no_damage(self):
        """What a committed image should have and cannot give is damage; what an upload has not got yet is none."""
        told = []
        service = BlockService(
            self.ledger, self.disk, self.catalog, BlockRelayCache(Clock()), damaged=lambda vpath, image: told.append((vpath, image))
        )
        request = GetBlock(HashKind.BLAKE2B.block(self.data[1]), BlockHint("/app/v1", "/f", 32768))
        self.disk.indexes[self.index.image] = self.index
        self.ledger.begin(Pending(V1, self.state, Command.APPEND))
        self.failureResultOf(service.give(request), RemoteError)
        self.assertEqual(told, [])
        self.ledger.commit(V1, self.state)
        self.ledger.begin(Pending(V1, self.state, Command.APPEND))
        self.failureResultOf(service.give(request), RemoteError)
        self.assertEqual(told, [], "its directory was gone, and it is fetched again already")
        self.ledger.abort(V1, 0)
        self.failureResultOf(service.give(request), RemoteError)
        self.assertEqual(told, [(V1, self.index.image)])
        self.failureResultOf(service.give(GetBlock(HashKind.BLAKE2B.block(b"unknown"), request.hint)), RemoteError)
        self.assertEqual(len(told), 1, "anybody could call an image damaged")
        del self.disk.indexes[self.index.image]
        self.catalog._kept.clear()
        self.failureResultOf(service.give(request), RemoteError)
        self.assertEqual(len(told), 2)
        self.hold(self.index, self.data)
        self.assertEqual(self.successResultOf(service.give(request)), BlockData(self.data[1]))
        self.assertEqual(len(told), 2)

    def test_by_hash(self):
        """A hint that is off the mark does no harm: the hash decides."""
        self.hold(self.index, self.data)
        self.ledger.commit(V1, self.state)
        for path, offset in (("/f", 1), ("/f", 0), ("/nothing", 0), ("/../../etc/passwd", 0), ("", 0)):
            self.assertEqual(self.successResultOf(self.ask(self.data[1], path, offset)), BlockData(self.data[1]))

    def test_pending(self):
        """Blocks of an image that is still coming are given; of one that it replaces too (protocol C44)."""
        other, other_data = image(2)
        self.hold(self.index, self.data)
        self.hold(other, other_data)
        self.ledger.commit(V1, self.state)
        self.ledger.begin(Pending(V1, State(other.image, (SigEntry(9, bytes(64)),)), Command.REPLACE))
        self.assertEqual(self.successResultOf(self.ask(other_data[1], offset=32768)), BlockData(other_data[1]))
        self.assertEqual(self.successResultOf(self.ask(self.data[1], offset=32768)), BlockData(self.data[1]))

    def test_not_here(self):
        """What is not here, or does not match, is refused."""
        self.failureResultOf(self.ask(self.data[0]), RemoteError)
        self.ledger.commit(V1, self.state)
        self.failureResultOf(self.ask(self.data[0]), RemoteError)
        self.disk.indexes[self.index.image] = self.index
        self.catalog = Catalog(self.disk)
        self.failureResultOf(self.ask(self.data[0]), RemoteError)
        self.failureResultOf(self.ask(b"no block of this image"), RemoteError)

    @shows("F3")
    def test_bad_requests(self):
        """A request without a place, or with one that is no virtual path, is refused before any disk access."""
        self.hold(self.index, self.data)
        self.ledger.commit(V1, self.state)
        self.failureResultOf(self.service.give(GetBlock(HashKind.BLAKE2B.block(self.data[0]), None)), RemoteError)
        for vpath in ("/app/../app/v1", "app/v1", "/", "", "/app//v1"):
            self.failureResultOf(self.ask(self.data[0], vpath=vpath), RemoteError)
        self.assertEqual((self.disk.reads, self.disk.loads), ([], []))

    def test_index_unreadable(self):
        """A disk fault is passed on as a fault."""
        self.ledger.commit(V1, self.state)
        self.disk.load_answer = fail(DiskError("EIO"))
        self.failureResultOf(self.ask(self.data[0]), DiskError)

    @shows("I6")
    def test_readers_are_bounded(self):
        """Serving a thousand images does not fill the memory with what is read of them."""
        self.hold(self.index, self.data)
        for number in range(KEPT_INDEXES + 5):
            vpath = VPath.parse(f"/app/n{number}")
            self.ledger.commit(vpath, self.state)
            self.assertEqual(self.successResultOf(self.ask(self.data[0], vpath=str(vpath))).data, self.data[0])
        self.assertEqual(len(self.service._servers), KEPT_INDEXES)

    @shows("A10")
    def test_damage_is_told(self):
        """A block that has rotted, or an index that is gone, would be found by nobody until the last good copy has rotted too."""
        told = []
        service = BlockService(self.ledger, self.disk, self.catalog, BlockRelayCache(Clock()), damaged=lambda *where: told.append(where))
        ask = GetBlock(HashKind.BLAKE2B.block(self.data[1]), BlockHint("/app/v1", "/f", 32768))
        self.ledger.commit(V1, self.state)
        self.failureResultOf(service.give(ask), RemoteError)
        self.hold(self.index, self.data)
        self.successResultOf(service.give(ask))
        self.disk.blocks[self.index.image, 1] = None
        self.failureResultOf(service.give(ask), RemoteError)
        self.assertEqual(told, [(V1, self.index.image)] * 2)

    def test_read_together(self):
        """Requests that come while the disk is busy are read in one job."""
        self.hold(self.index, self.data)
        self.ledger.commit(V1, self.state)
        held, jobs = Deferred(), []

        def in_thread(f, *args):
            jobs.append(f)
            return held.addCallback(lambda _: f(*args)) if len(jobs) == 1 else succeed(f(*args))

        self.service = BlockService(self.ledger, self.disk, self.catalog, BlockRelayCache(Clock()), in_thread)
        answers = [self.ask(self.data[0])]
        answers += [self.ask(self.data[number], offset=number * 32768) for number in (1, 2)]
        held.callback(None)
        self.assertEqual([self.successResultOf(answer).data for answer in answers], self.data)
        self.assertEqual([numbers for _, _, numbers in self.disk.reads], [[0], [1, 2]])


class CatalogTests(SynchronousTestCase):
    """Indexes in use are loaded once and not kept for ever."""

    def test_loaded_once(self):
        """Many requests for one image load its index once."""
        disk = Disk()
        catalog = Catalog(disk)
        index, _ = image(1)
        disk.load_answer = Deferred()
        waiting = [catalog.get(index.image), catalog.get(index.image)]
        disk.load_answer.callback(index)
        self.assertEqual([self.successResultOf(one) for one in waiting], [index, index])
        self.successResultOf(catalog.get(index.image))
        self.assertEqual(disk.loads, [index.image])

    def test_absent(self):
        """An index that is not there is looked for again next time."""
        disk = Disk()
        catalog = Catalog(disk)
        self.assertIsNone(self.successResultOf(catalog.get(image(1)[0].image)))
        disk.indexes[image(1)[0].image] = image(1)[0]
        self.assertIsNotNone(self.successResultOf(catalog.get(image(1)[0].image)))

    def test_bounded(self):
        """Serving a thousand images does not fill the memory with their indexes."""
        catalog = Catalog(Disk())
        images = [image(number)[0] for number in range(KEPT_INDEXES + 1)]
        for one in images:
            catalog.add(one)
        self.assertIsNone(catalog.kept(images[0].image))
        self.assertIsNotNone(catalog.kept(images[1].image))
