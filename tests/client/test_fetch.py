"""Reading from a cluster, against nodes that are wrong in all ways."""

from __future__ import annotations

import random
from collections.abc import Sequence

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.contacts import RunContext
from ciruela.client.crawl import MOST_ANSWERS, MOST_ASKED
from ciruela.client.fetch import ANSWER_S, BUSY_S, ImagePlace, NothingThere, PathContent, Reading
from ciruela.client.orders import Conflict
from ciruela.index.parse import parse
from ciruela.interfaces import Address, Connection, RequestHandler
from ciruela.model.errors import SLOW_DOWN, Busy, LinkLost, RemoteError
from ciruela.proto.messages import (
    BlockData,
    BlockPart,
    BlocksData,
    GetBlock,
    GetBlocks,
    GetIndexAt,
    IndexAtData,
    Notification,
    Request,
    Response,
)
from tests.client.nodes import address, machine
from tests.client.test_commands import at_once
from tests.doubles.memnet import Hub, MemoryLink
from tests.proof import shows
from tests.scenarios.cluster import Image

PATH = "/app/site"
IMAGE = Image(1, {"big": 100_000, "empty": 0, "small": 10})
OTHER = Image(2, {"big": 100_000})


class Holder:
    """Node ``number`` with an image, or nothing; ``wrong``: the bytes that it gives are not right; ``silent``: it never answers."""

    def __init__(self, hub: Hub, number: int, image: Image | None = IMAGE, peers: Sequence[str] = ()) -> None:
        self.image = image
        self.peers = peers
        self.wrong = False
        self.silent = False
        self.busy = 0
        self.lacks: set[bytes] = set()
        self.requests: list[Request] = []
        self.links: list[Connection] = []
        hub.node(address(number), self, lambda data, source: None)

    def requested(self, link: Connection, request: Request) -> Deferred[Response]:
        self.requests.append(request)
        if link not in self.links:
            self.links.append(link)
        if self.silent:
            return Deferred()
        if self.busy:
            self.busy -= 1
            return fail(Busy(SLOW_DOWN))
        image = self.image
        if isinstance(request, GetIndexAt):
            return succeed(IndexAtData(image and image.data, {machine(40 + at): name for at, name in enumerate(self.peers)}))
        if image is None:
            return fail(RemoteError("image not found"))
        if isinstance(request, GetBlock):
            assert request.hint is not None
            return succeed(BlockData(self.block(request.hash))) if request.hash not in self.lacks else fail(RemoteError("block not found"))
        assert isinstance(request, GetBlocks)
        here = [number for number in request.numbers if image.order[number] not in self.lacks]
        groups = image.pieces.groups(here)
        parts = tuple(BlockPart(b"".join(self.block(image.order[number]) for number in group)) for group in groups)
        return succeed(BlocksData(parts, tuple(number for number in request.numbers if number not in here)))

    def block(self, wanted: bytes) -> bytes:
        assert self.image is not None
        data = self.image.blocks[wanted]
        return bytes(len(data)) if self.wrong else data

    def answered(self, link: object, request: object, given: bool) -> None:
        """Nothing follows."""

    def notified(self, link: Connection, notification: Notification) -> None:
        """Nothing is told here."""

    def lost(self, link: Connection) -> None:
        if link in self.links:
            self.links.remove(link)


class ReadingCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.hub = Hub(self.clock, random.Random(1))
        self.problems: list[str] = []
        self.resolved: list[str] = []
        self.connected: set[Address] = set()

    def reading(self, *names: str) -> Reading:
        def resolve(name: str) -> Deferred[list[Address]]:
            self.resolved.append(name)
            if name.startswith("never"):
                return Deferred()
            if name.startswith("n"):
                return succeed([address(int(name[1:]))])
            return succeed([Address(name, 24783)])

        def connect(where: Address, counterpart: RequestHandler) -> Deferred[MemoryLink]:
            self.connected.add(where)
            return self.hub.link(counterpart, where)

        world = RunContext(self.clock, random.Random(3), connect, resolve)
        reading = Reading("c", names, world, at_once, lambda _, text: self.problems.append(text))
        self.addCleanup(reading.close)
        return reading

    def ends(self, running: Deferred[object]) -> Deferred[object]:
        for _ in range(600):
            self.clock.advance(0.01)
        return running

    def look(self, reading: Reading, path: str = PATH) -> PathContent:
        found = self.successResultOf(self.ends(Deferred.fromCoroutine(reading.look(path))))
        assert isinstance(found, PathContent)
        return found

    def refused(self, reading: Reading, kind: type[Exception]) -> str:
        return self.failureResultOf(self.ends(Deferred.fromCoroutine(reading.look(PATH))), kind).getErrorMessage()


class Look(ReadingCase):
    def test_found(self) -> None:
        """Nobody could read what is there."""
        Holder(self.hub, 1)
        seen = self.look(self.reading("n1"))
        self.assertEqual((seen.image, seen.data), (IMAGE.id, IMAGE.data))

    def test_led_on(self) -> None:
        """An entry point that lacks the image would end the command, although its neighbors have it (C31)."""
        Holder(self.hub, 1, None, ["n2", "n3", "never"])
        Holder(self.hub, 3)
        self.assertEqual(self.look(self.reading("n1")).image, IMAGE.id)

    def test_many_names(self) -> None:
        """A server that makes up names would keep the user waiting for each of them."""
        Holder(self.hub, 1, None, [f"never{number}" for number in range(200)])
        running = Deferred.fromCoroutine(self.reading("n1").look(PATH))
        for _ in range(5):
            self.ends(running)
        self.failureResultOf(running, NothingThere)
        self.assertLessEqual(len(self.resolved), 1 + MOST_ASKED)
        Holder(self.hub, 1, IMAGE, [f"never{number}" for number in range(200)])
        self.resolved.clear()
        self.look(self.reading("n1"))
        self.assertEqual(len(self.resolved), MOST_ANSWERS)

    @shows("A29")
    def test_led_astray(self) -> None:
        """A server would make this host talk to services in its own networks."""
        Holder(self.hub, 1, None, ["127.0.0.1", "169.254.1.1", "n\n1"])
        self.assertIn("no image is there (asked n1)", self.refused(self.reading("n1"), NothingThere))
        self.assertEqual(self.connected, {address(1)})
        self.assertNotIn("n\n1", self.resolved)

    def test_dead_ends(self) -> None:
        """A cluster of which one node is down, and one has nothing, could not be read."""
        Holder(self.hub, 2)
        Holder(self.hub, 3, None)
        self.assertEqual(self.look(self.reading("n1", "n2", "n3")).image, IMAGE.id)
        self.assertIn("no node answers", self.refused(self.reading("n1"), LinkLost))

    def test_no_index(self) -> None:
        """Bytes that are no index would be taken for one."""
        bad = Image(3, {"x": 10})
        bad.data = bad.data[:-2] + b"0\n"
        Holder(self.hub, 1, bad)
        self.assertIn("has no good index", self.refused(self.reading("n1"), RemoteError))
        Holder(self.hub, 2)
        self.assertEqual(self.look(self.reading("n1", "n2")).image, IMAGE.id)
        self.assertIn("n1 has no good index", self.problems[-1])

    def test_two_images(self) -> None:
        """In the middle of an upload, the image that is on its way out would be edited, and come back."""
        Holder(self.hub, 1)
        Holder(self.hub, 2, OTHER)
        text = self.refused(self.reading("n1", "n2"), Conflict)
        self.assertIn(f"n1 has {IMAGE.id.hex()[:16]}", text)
        self.assertIn(f"n2 has {OTHER.id.hex()[:16]}", text)

    def test_silence(self) -> None:
        """A node that never answers would hold up the command for ever (C30)."""
        Holder(self.hub, 1).silent = True
        running = Deferred.fromCoroutine(self.reading("n1").look(PATH))
        self.ends(running)
        self.assertNoResult(running)
        self.clock.advance(ANSWER_S)
        self.assertIn("no answer within", self.failureResultOf(self.ends(running), LinkLost).getErrorMessage())

    def test_cancelled(self) -> None:
        """Ctrl-C would wait for a node that does not answer, and leave a connection."""
        node = Holder(self.hub, 1)
        node.silent = True
        reading = self.reading("n1")
        running = Deferred.fromCoroutine(reading.look(PATH))
        self.ends(running)
        running.cancel()
        self.failureResultOf(running, CancelledError)
        reading.close()
        self.clock.advance(1)
        self.assertEqual((node.links, self.clock.getDelayedCalls()), ([], []))


class Blocks(ReadingCase):
    def setUp(self) -> None:
        super().setUp()
        index = parse(IMAGE.data, IMAGE.id)
        self.place = ImagePlace(PATH, index)

    def blocks(self, reading: Reading, numbers: Sequence[int] = range(5), said: list[str] | None = None) -> dict[int, bytes]:
        self.look(reading)
        problems = said if said is not None else []
        found = self.successResultOf(self.ends(Deferred.fromCoroutine(reading.blocks(self.place, numbers, problem=problems.append))))
        assert isinstance(found, dict)
        for number, data in found.items():
            self.assertEqual(data, IMAGE.blocks[IMAGE.order[number]])
        return found

    def test_bulk_and_single(self) -> None:
        """Blocks would come from servers of one kind only."""
        for old in (set(), {address(1)}):
            self.hub.old = old
            node = Holder(self.hub, 1)
            self.assertEqual(len(self.blocks(self.reading("n1"))), 5)
            self.assertEqual({type(one) for one in node.requests[1:]}, {GetBlock if old else GetBlocks})

    @shows("A7")
    def test_wrong_bytes(self) -> None:
        """A server could change the text that is edited and signed (S20)."""
        for old in (set(), {address(1), address(2)}):
            self.hub.old = old
            Holder(self.hub, 1).wrong = True
            said: list[str] = []
            self.assertEqual(self.blocks(self.reading("n1"), said=said), {})
            self.assertIn("n1 gave wrong bytes", said[0])
            Holder(self.hub, 2)
            self.assertEqual(len(self.blocks(self.reading("n1", "n2"))), 5)

    def test_from_several(self) -> None:
        """Blocks that are spread over two nodes would not be had."""
        for old in (set(), {address(1), address(2)}):
            self.hub.old = old
            Holder(self.hub, 1).lacks = {IMAGE.order[0], IMAGE.order[1]}
            Holder(self.hub, 2).lacks = {IMAGE.order[2], IMAGE.order[4]}
            self.assertEqual(set(self.blocks(self.reading("n1", "n2"))), set(range(5)))

    def test_nobody_has_it(self) -> None:
        """A block that no node has would be asked for again and again."""
        for old in (set(), {address(1)}):
            self.hub.old = old
            node = Holder(self.hub, 1)
            node.lacks = set(IMAGE.order)
            said: list[str] = []
            self.assertEqual(self.blocks(self.reading("n1"), said=said), {})
            self.assertEqual(said, ["n1 does not have these blocks any more"])
            node.image = None
        Holder(self.hub, 1).lacks = {IMAGE.order[0]}
        self.assertEqual(set(self.blocks(self.reading("n1"))), {1, 2, 3, 4})

    @shows("I8")
    def test_old_servers_live(self) -> None:
        """A server of the reference would die of a question about a path with one component, be it for the index or for a block."""
        self.hub.old = {address(2)}
        new, old = Holder(self.hub, 1), Holder(self.hub, 2)
        reading = self.reading("n1", "n2")
        place = self.look(reading, "/www").place
        self.assertEqual(self.problems, ["n2: it is a server of the first implementation, which has no images at /www"])
        new.image = None
        self.assertEqual(self.successResultOf(self.ends(Deferred.fromCoroutine(reading.blocks(place, [0])))), {})
        self.assertEqual(old.requests, [])

    def test_busy(self) -> None:
        """A node that serves others would be given up."""
        node = Holder(self.hub, 1)
        reading = self.reading("n1")
        self.look(reading)
        node.busy = 3
        running = Deferred.fromCoroutine(reading.blocks(self.place, [0]))
        for _ in range(5):
            self.clock.advance(BUSY_S)
            self.ends(running)
        self.assertEqual(len(self.successResultOf(running)), 1)

    def test_connection_lost(self) -> None:
        """A connection that ended while the user edited would end the upload."""
        node = Holder(self.hub, 1)
        reading = self.reading("n1")
        self.look(reading)
        for link in list(node.links):
            link.close()  # type: ignore[attr-defined]
        self.ends(Deferred())
        self.assertEqual(len(self.blocks(reading)), 5)
