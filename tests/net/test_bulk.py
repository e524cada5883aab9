"""Bulk connections without threads: what each end does with the bytes of the other, whatever they are."""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import BlockGiving
from ciruela.model.errors import SLOW_DOWN, Busy, LinkLost, RemoteError
from ciruela.model.ids import ImageId
from ciruela.net import bulk
from ciruela.net.bulk import READY, Broken, BulkGiver, BulkTaker, Tickets, framed, receive, send
from ciruela.proto import codec
from ciruela.proto.messages import BlockData, BlockPart, BlocksData, Error, GetBlocks, GetIndex, PublishImage
from tests.net.bench import frame, frames
from tests.proof import shows

IMAGE = ImageId(b"i" * 32)
ASK = GetBlocks("/apps/v1", IMAGE, (1, 2, 5))
ANSWER = BlocksData((BlockPart(b"a" * 70_000), BlockPart(b"b" * 10)), (5,))


class Wire:
    """A socket whose other side has said ``said``; comes in ``steps`` of bytes. What is sent is in ``sent``."""

    def __init__(self, said: bytes = b"", steps: Sequence[int] = (), *, room: int = 1 << 30) -> None:
        self.said = said
        self.steps = deque(steps)
        self.sent = b""
        self.room = room
        self.calls: list[str] = []
        self.before: Callable[[], object] = lambda: None

    def recv_into(self, into: memoryview, _size: int = 0, _flags: int = 0) -> int:
        self.before()
        most = self.steps.popleft() if self.steps else len(into)
        if most < 0:
            raise BlockingIOError(errno.EAGAIN, "nothing came")
        found = self.said[: min(most, len(into))]
        into[: len(found)] = found
        self.said = self.said[len(found) :]
        return len(found)

    def sendmsg(self, pieces: Sequence[Any]) -> int:
        data = b"".join(pieces)[: min(self.room, 50_000)]
        if not data:
            raise BlockingIOError(errno.EAGAIN, "no room")
        self.room -= len(data)
        self.sent += data
        return len(data)

    def send(self, data: bytes, _flags: int = 0) -> int:
        if not self.room:
            raise BlockingIOError(errno.EAGAIN, "no room")
        return self.sendmsg([data])

    def shutdown(self, _how: int) -> None:
        self.calls.append("shutdown")

    def close(self) -> None:
        self.calls.append("close")


def wire(*args: Any, **kwargs: Any) -> Any:
    """As :class:`Wire`, in the place of a socket."""
    return Wire(*args, **kwargs)


def got(data: bytes, most: int = 1000, *, masked: bool = False, steps: Sequence[int] = ()) -> bytes:
    return bytes(receive(wire(data, steps), most, lambda size: None, masked=masked))


class ReceiveTests(SynchronousTestCase):
    """Frames on a blocking socket."""

    @shows("A22", "F14")
    def test_whole(self) -> None:
        """A message that comes in pieces of any size would be torn, or one behind it would be lost."""
        for masked in (False, True):
            for size in (0, 1, 125, 126, 1000, 65_535, 65_536, 100_000):
                payload = bytes(at * 7 & 255 for at in range(size))
                data = frame(payload, masked=masked)
                for steps in ((), (1,) * 20, (1, 1, 3, 2, -1, 5, -1)):
                    came: list[int] = []
                    source = wire(data + b"rest", steps)
                    self.assertEqual(receive(source, 100_000, came.append, masked=masked), payload)
                    self.assertEqual((source.said, sum(came)), (b"rest", len(data)))

    @shows("A22", "F14")
    def test_other_frames(self) -> None:
        """Texts, fragments, pings, reserved bits, a mask where none is due, none where one is, a length that is not the shortest."""
        good = frame(b"x" * 200)
        for data, masked in (
            (frame(b"text", 1), False),
            (frame(b"part", first=0), False),
            (frame(b"rest", 0), False),
            (frame(b"ping", 9), False),
            (frame(b"pong", 10), False),
            (frame(b"bits", first=0xC0), False),
            (frame(b"mask", masked=True), False),
            (frame(b"none"), True),
            (b"\x82\x7e\0\x05" + b"x" * 5, False),
            (b"\x82\x7f" + bytes(6) + b"\xff\xff" + b"x" * 65_535, False),
        ):
            self.assertIn("something else", str(self.assertRaises(Broken, got, data, 1 << 20, masked=masked)))
        self.assertIn("closed", str(self.assertRaises(Broken, got, frame(b"\3\xe8", 8))))
        for end in range(len(good)):
            self.assertIn("closed", str(self.assertRaises(Broken, got, good[:end])))

    @shows("A21", "F15")
    def test_too_long(self) -> None:
        """Memory would be made for whatever length somebody claims."""
        self.assertEqual(len(got(frame(b"x" * 1000))), 1000)
        for length in (1001, 1 << 40, (1 << 63) - 1):
            head = b"\x82\x7e" + length.to_bytes(2, "big") if length < 65_536 else b"\x82\x7f" + length.to_bytes(8, "big")
            self.assertIn("may come", str(self.assertRaises(Broken, got, head)))

    @shows("A19", "F16")
    def test_slow(self) -> None:
        """Somebody who sends a byte now and then would keep a thread and the memory of a message for ever; one who waits may."""
        now = [0.0]
        self.patch(bulk.time, "monotonic", lambda: now[0])

        def later(step: float) -> Callable[[], None]:
            return lambda: now.__setitem__(0, now[0] + step)

        idle = wire(frame(b"x" * 50), [-1] * 100)
        idle.before = later(15.0)
        self.assertEqual(len(receive(idle, 1000, lambda size: None, masked=False)), 50)
        slow = wire(frame(b"x" * 1000), [2, 2] + [1] * 1000)
        slow.before = later(1.0)
        self.assertIn("slowly", str(self.assertRaises(Broken, receive, slow, 1000, lambda size: None, masked=False)))
        self.assertGreater(len(slow.said), 900)
        in_head = wire(frame(b"x" * 1000), [1] + [-1] * 10)
        in_head.before = later(15.0)
        self.assertIn("slowly", str(self.assertRaises(Broken, receive, in_head, 1000, lambda size: None, masked=False)))

    def test_error(self) -> None:
        """A connection that was reset ends like any other."""
        source = wire()
        source.before = lambda: (_ for _ in ()).throw(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
        self.assertIn("reset", str(self.assertRaises(Broken, receive, source, 10, lambda size: None, masked=False)))


class SendTests(SynchronousTestCase):
    """What is sent is what the other side receives."""

    def test_all(self) -> None:
        """A socket that takes a part would lose the rest."""
        pieces = [b"head", memoryview(b"m" * 120_000), b"", b"t" * 3]
        for masked in (False, True):
            target = wire()
            send(target, framed(pieces, masked=masked))
            self.assertEqual(got(target.sent, 200_000, masked=masked), b"".join(pieces))
        self.assertNotEqual(*(framed([b"x" * 100], masked=True)[1] for _ in range(2)))

    def test_many_pieces(self) -> None:
        """More pieces than the system takes in one call."""
        target = wire()
        send(target, framed([bytes([at & 255]) for at in range(3000)], masked=False))
        self.assertEqual(got(target.sent, 5000), bytes(at & 255 for at in range(3000)))

    @shows("A25", "F19")
    def test_not_read(self) -> None:
        """Who never reads would keep a thread for ever."""
        self.assertIn("read nothing", str(self.assertRaises(Broken, send, wire(room=10), [b"x" * 11])))

    def test_error(self) -> None:
        """A connection that was reset ends like any other."""
        target = wire()
        target.sendmsg = lambda pieces: (_ for _ in ()).throw(BrokenPipeError(errno.EPIPE, "Broken pipe"))
        self.assertIn("pipe", str(self.assertRaises(Broken, send, target, [b"x"])))


def at_once(f: Callable[..., object], *args: Any) -> None:
    """In place of ``callFromThread``."""
    f(*args)


class TakerTests(SynchronousTestCase):
    """The end that asks."""

    def setUp(self) -> None:
        self.ended: list[str] = []
        self.wire = wire()
        self.taker = BulkTaker(self.wire, "10.0.0.1:1", at_once, self.ended.append, masks=False)

    def answer(self, *answers: bytes) -> None:
        """The other side says this, and goes."""
        self.wire.said = b"".join(frame(one, masked=True) for one in answers)
        self.taker._ticket = None
        self.taker._run()

    def fetch(self, land: Callable[[BlocksData], Any] = lambda answer: answer) -> Deferred[Any]:
        return self.taker.fetch(ASK, land)

    def test_fetch(self) -> None:
        """What is asked for comes back, as it was made of the answer, whichever answer comes first."""
        first, second = self.fetch(lambda answer: ("first", answer)), self.fetch(lambda answer: ("second", answer))
        self.assertEqual([payload for _, _, payload in frames(self.wire.sent)], [codec.encode_request(at, ASK) for at in (0, 1)])
        self.answer(*(codec.encode_response(at, "GetBlocks", ANSWER) for at in (1, 0)))
        self.assertEqual((self.successResultOf(first), self.successResultOf(second)), (("first", ANSWER), ("second", ANSWER)))
        self.assertEqual((self.ended, self.wire.calls), (["closed by the other side"], ["close"]))

    def test_refused(self) -> None:
        """A refusal fails the one request, and says whether to come back."""
        refused, busy = self.fetch(), self.fetch()
        self.answer(
            codec.encode_response(0, "GetBlocks", Error("image not found")), codec.encode_response(1, "GetBlocks", Error(SLOW_DOWN))
        )
        self.assertEqual(str(self.failureResultOf(refused, RemoteError).value), "image not found")
        self.failureResultOf(busy, Busy)

    def test_landing_fails(self) -> None:
        """A full disk is told to whoever asked, and the next answer is dealt with."""
        bad, good = self.fetch(lambda answer: 1 // 0), self.fetch()
        self.answer(*(codec.encode_response(at, "GetBlocks", ANSWER) for at in (0, 1)))
        self.failureResultOf(bad, ZeroDivisionError)
        self.assertEqual(self.successResultOf(good), ANSWER)

    def test_cancelled(self) -> None:
        """What nobody waits for any more would be written, or end the connection."""
        landed: list[BlocksData] = []
        first, second = self.fetch(landed.append), self.fetch()
        first.addErrback(lambda failure: None).cancel()
        self.answer(*(codec.encode_response(at, "GetBlocks", ANSWER) for at in (0, 1)))
        self.assertEqual((landed, self.successResultOf(second)), ([], ANSWER))

    @shows("A24", "F18")
    def test_lies(self) -> None:
        """Answers to nothing, answers twice, other messages and bytes that are none end the connection, and what waits fails."""
        good = codec.encode_response(0, "GetBlocks", ANSWER)
        for answers in (
            [codec.encode_response(7, "GetBlocks", ANSWER)],
            [good, good],
            [codec.encode_response(0, "GetBlock", BlockData(b"x"))],
            [codec.encode_request(0, ASK)],
            [codec.encode_notification(PublishImage(IMAGE))],
            [b"no message"],
            [good[:-1]],
        ):
            self.setUp()
            first, waiting = self.fetch(), self.fetch()
            self.answer(*answers, codec.encode_response(1, "GetBlocks", ANSWER))
            self.assertEqual(len(self.ended), 1)
            self.assertNotEqual(self.ended, ["closed by the other side"])
            self.failureResultOf(waiting, LinkLost)
            first.addErrback(lambda failure: None)
            self.failureResultOf(self.fetch(), LinkLost)

    def test_fault_of_ours(self) -> None:
        """A fault in one connection would leave its thread dead, and who waits for it waiting for ever."""
        waiting = self.fetch()
        self.patch(bulk.codec, "decode", lambda _message: {}["no such thing"])  # type: ignore[index]
        self.answer(codec.encode_request(0, ASK))
        self.failureResultOf(waiting, LinkLost)
        self.assertEqual((self.ended, len(self.flushLoggedErrors(KeyError))), (["a fault of this program"], 1))

    @shows("A26")
    def test_bounded(self) -> None:
        """What waits would grow without end beside a node that does not answer."""
        waiting = [self.fetch() for _ in range(bulk.MOST_ASKED)]
        self.failureResultOf(self.fetch(), RemoteError)
        self.taker.end("enough")
        self.answer()
        for one in waiting:
            self.failureResultOf(one, LinkLost)

    @shows("A25", "F19")
    def test_does_not_read(self) -> None:
        """The reactor would wait for somebody who does not read what he is asked."""
        self.wire.room = 20
        waiting = self.fetch()
        self.assertEqual((self.taker.reason, self.wire.calls), ("it does not read what it is asked", ["shutdown"]))
        self.answer()
        self.assertIn("does not read", str(self.failureResultOf(waiting, LinkLost).value))

    def test_ready(self) -> None:
        """Nothing is asked before the other side has taken the ticket; one that says something else is no node of ours."""
        for said, ready in ((READY, True), (b"steady", False)):
            self.wire = wire(frame(said))
            taker = BulkTaker(self.wire, "10.0.0.1:1", at_once, self.ended.append, masks=True)
            self.assertFalse(taker.ready)
            taker._ticket = b"t" * 16
            taker._run()
            self.assertEqual((taker.ready, frames(self.wire.sent)[0][2]), (ready, b"t" * 16))


class Handler:
    """Gives ANSWER, or fails with ``fault``."""

    def __init__(self) -> None:
        self.asked: list[GetBlocks] = []
        self.made: list[BlocksData] = []
        self.told: list[tuple[object, bool]] = []
        self.fault: Exception | None = None
        self.make: Callable[[], BlocksData] = lambda: ANSWER

    def giving(self, _link: object, request: GetBlocks) -> Deferred[BlockGiving]:
        self.asked.append(request)
        return succeed(BlockGiving(self.make, self.made.append, True)) if self.fault is None else fail(self.fault)

    def answered(self, _link: object, request: object, given: bool) -> None:
        self.told.append((request, given))


class GiverTests(SynchronousTestCase):
    """The end that gives."""

    def setUp(self) -> None:
        self.handler = Handler()
        self.ended: list[str] = []

    def asked(self, *asks: bytes) -> list[Any]:
        """The other side asks, and goes. Gives what it was answered."""
        self.wire = wire(b"".join(frame(one) for one in asks))
        link: Any = type("Link", (), {"name": "10.0.0.2:2"})()
        giver = BulkGiver(self.wire, link, self.handler, at_once, self.ended.append, masks=True)  # type: ignore[arg-type]
        giver._ticket = None
        giver._run()
        return [codec.decode(payload) for _, _, payload in frames(self.wire.sent)]

    def test_gives(self) -> None:
        """What is asked for is given, in the order of the asking; who allowed it hears of it when it has left."""
        asks = [GetBlocks("/apps/v1", IMAGE, (number,)) for number in range(3)]
        answers = self.asked(*(codec.encode_request(9 - number, one) for number, one in enumerate(asks)))
        self.assertEqual([(one.id, one.response) for one in answers], [(9, ANSWER), (8, ANSWER), (7, ANSWER)])
        self.assertEqual((self.handler.asked, self.handler.made), (asks, [ANSWER] * 3))
        self.assertEqual(self.handler.told, [(one, True) for one in asks])

    @shows("A29")
    def test_refused(self) -> None:
        """What may not be given is refused in words; a fault of ours is not explained to strangers."""
        no = RemoteError("image not found")
        for fault, said in ((no, "image not found"), (Busy(SLOW_DOWN), SLOW_DOWN), (KeyError("x"), "internal error")):
            self.setUp()
            self.handler.fault = fault
            (answer,) = self.asked(codec.encode_request(0, ASK))
            self.assertEqual((answer.response, self.handler.told, self.handler.made), (Error(said), [(ASK, False)], []))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_cannot_be_read(self) -> None:
        """A disk that fails costs one request."""

        def fails() -> BlocksData:
            raise OSError(errno.EIO, "Input/output error")

        self.handler.make = fails
        first, second = self.asked(codec.encode_request(0, ASK), codec.encode_request(1, ASK))
        self.assertEqual((first.response, second.id), (Error("these blocks cannot be read"), 1))
        self.assertEqual(self.handler.told, [(ASK, False)] * 2)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 2)

    @shows("A24", "A29")
    def test_other_requests(self) -> None:
        """Only blocks are asked for here: everything else would go around the limits of the connection beside."""
        for ask in (
            codec.encode_request(0, GetIndex(IMAGE, None)),
            codec.encode_response(0, "GetBlocks", ANSWER),
            codec.encode_notification(PublishImage(IMAGE)),
            b"",
            b"x" * (bulk.ASK_BYTES + 1),
        ):
            self.ended.clear()
            self.assertEqual(self.asked(ask, codec.encode_request(1, ASK)), [])
            self.assertEqual((len(self.ended), self.handler.asked), (1, []))

    def test_ended_while_it_waits(self) -> None:
        """The thread would wait for ever for an answer that nobody makes any more."""
        waiting: Deferred[BlockGiving] = Deferred()
        link: Any = type("Link", (), {"name": "10.0.0.2:2"})()
        giver = BulkGiver(wire(frame(codec.encode_request(0, ASK))), link, self.handler, at_once, self.ended.append, masks=True)  # type: ignore[arg-type]
        self.handler.giving = lambda _link, _request: (giver.end("over"), waiting)[1]  # type: ignore[method-assign]
        giver._ticket = None
        giver._run()
        self.assertEqual(self.ended, ["over"])


class Host:
    """A connection beside which there may be a bulk connection."""

    def __init__(self) -> None:
        self.alive = True
        self.attached: list[bool] = []

    def attach(self, _sock: socket.socket, ended: Callable[[str], object], *, gives: bool) -> Any:
        self.attached.append(gives)
        self.ended = ended
        return object()


class Transport:
    """A transport of Twisted, as far as its socket is taken."""

    dataBuffer = b""
    _tempDataBuffer: Sequence[bytes] = ()

    def __init__(self) -> None:
        self.handle = socket.socketpair()[0]
        self.calls: list[str] = []

    def stopReading(self) -> None:
        self.calls.append("stopReading")

    def stopWriting(self) -> None:
        self.calls.append("stopWriting")

    def getHandle(self) -> socket.socket:
        return self.handle


class TicketTests(SynchronousTestCase):
    """Who may have a thread."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.tickets = Tickets(self.clock)
        self.ended: list[str] = []

    def redeem(self, ticket: bytes) -> Any:
        transport = Transport()
        self.addCleanup(transport.handle.close)
        return self.tickets.redeem(ticket, transport, self.ended.append)

    @shows("A24", "A29")
    def test_once(self) -> None:
        """A ticket is good for one connection, beside the one that it was given over, as long as that lives, for some seconds."""
        host = Host()
        for gives in (True, False):
            ticket = self.tickets.issue(host, gives=gives).ticket
            self.assertIsNone(self.redeem(b"x" * 16))
            self.assertIsNotNone(self.redeem(ticket))
            self.assertIsNone(self.redeem(ticket))
        self.assertEqual(host.attached, [True, False])
        late = self.tickets.issue(host, gives=True).ticket
        self.clock.advance(bulk.TICKET_S)
        self.assertIsNone(self.redeem(late))
        gone = self.tickets.issue(host, gives=True).ticket
        host.alive = False
        self.assertIsNone(self.redeem(gone))
        self.assertEqual(len(host.attached), 2)

    @shows("A20", "F17")
    def test_bounded(self) -> None:
        """Each has a thread: somebody who asks again and again would have all there are."""
        host = Host()
        issued = [self.tickets.issue(host, gives=True).ticket for _ in range(bulk.MOST_CHANNELS)]
        self.assertRaises(RemoteError, self.tickets.issue, host, gives=True)
        for ticket in issued:
            self.redeem(ticket)
        self.assertRaises(RemoteError, self.tickets.issue, host, gives=True)
        host.ended("gone")
        self.assertEqual(self.ended, ["gone"])
        self.tickets.issue(host, gives=True)
        self.clock.advance(bulk.TICKET_S)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_take(self) -> None:
        """What the reactor has not sent yet would be lost, and a connection that is no socket cannot be taken."""
        transport = Transport()
        self.addCleanup(transport.handle.close)
        own = bulk.take(transport)
        self.addCleanup(own.close)
        self.assertEqual((transport.calls, own.getblocking()), (["stopReading", "stopWriting"], True))
        self.assertNotEqual(own.fileno(), transport.handle.fileno())
        transport.dataBuffer = b"left"
        self.assertRaises(Broken, bulk.take, transport)
        transport.dataBuffer, transport.getHandle = b"", lambda: object()  # type: ignore[method-assign, assignment, return-value]
        self.assertRaises(Broken, bulk.take, transport)
