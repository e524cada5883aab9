"""Who gets which answer: random conversations against a second set of books (threats A24, F18).

An input is a list of moves, one byte each with a byte that says more. Messages are read with the codec, which has targets of its own;
here the question is what a message does to what waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import cbor2
from twisted.internet.defer import CancelledError, Deferred, fail, succeed

from ciruela.model.errors import FormatError, LinkLost, RemoteError
from ciruela.net.session import Session
from ciruela.proto import codec
from ciruela.proto import messages as m
from ciruela.proto.multiplexer import RequestMultiplexer
from tests.fuzz.connections import Log
from tests.proto import samples
from tests.proto.samples import VECTORS

ASK, HEAR, CANCEL, ANSWER, CLOG, TELL, END = range(7)
_MOVES = (ASK, ASK, ASK, HEAR, HEAR, HEAR, HEAR, HEAR, CANCEL, ANSWER, CLOG, TELL, HEAR, ASK, HEAR, END)
MOST_MOVES = 9
MOST_PENDING = 4
MOST_STRAYS = 4
"""Smaller than in earnest, so that few moves come up against them."""

IDS = (1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 2**63, 2**64 - 1)


@cache
def _questions() -> tuple[m.Request, ...]:
    return tuple(request for _, request in samples.REQUESTS.values())


@cache
def _messages() -> tuple[tuple[bytes, ...], ...]:
    """For each sample message its bytes with each of :data:`IDS`, some with content that cannot be read."""
    found: list[tuple[bytes, ...]] = []
    for data in VECTORS.values():
        if data[:1] == b"\x84":
            kind, name, _, content = cbor2.loads(data)
            found.append(tuple(cbor2.dumps([kind, name, number, content]) for number in IDS))
    for kind, name, content in ((1, "GetNews", {}), (2, "GetNews", {}), (2, "GetIndex", {}), (1, "GetIndex", {"id": 1}), (2, "Error", 5)):
        found.append(tuple(cbor2.dumps([kind, name, number, content]) for number in IDS))
    found += [(VECTORS["PublishImage"],), (VECTORS["ReceivedImage"],), (b"garbage",), (cbor2.dumps([0, "News", {}]),)]
    return tuple(found)


@lru_cache(maxsize=4096)
def _read(data: bytes) -> codec.Incoming | FormatError:
    """What the codec makes of a message; the same few hundred come again and again."""
    try:
        return codec.decode(data)
    except FormatError as fault:
        return fault


class _Asked:
    """A request of ours and what became of it."""

    def __init__(self, request: m.Request, waiting: Deferred[m.Response]) -> None:
        self.name = codec.request_name(request)
        self.waiting = waiting
        self.results: list[object] = []
        self.expected: list[object] = []
        waiting.addBoth(self.results.append)


class _Conversation:
    """A talk of ours, the counterpart behind it, and the books."""

    name = "test"
    bulk, exchanges = True, False

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.broken: list[str] = []
        self.ends = 0
        self.told: list[m.Notification] = []
        self.log = Log()
        self.talk = Session(self, self, most_at_work=2)
        self.talk._dialogue = RequestMultiplexer(most_pending=MOST_PENDING, most_strays=MOST_STRAYS)
        self.talk._log = self.log  # type: ignore[assignment]
        self.asked: list[_Asked] = []
        self.open: dict[int, _Asked] = {}
        self.theirs: dict[int, str] = {}
        self.at_work: list[Deferred[m.Response]] = []
        self.fits: list[m.Response] = []
        self.strays = 0
        self.over = False
        self.expect_told = 0
        self.expect_broken = False

    # what the talk knows of us: a Link and a Counterpart

    def send_message(self, *parts: bytes, urgent: bool = False) -> None:
        self.sent.append(b"".join(parts))

    def break_off(self, reason: str) -> None:
        self.broken.append(reason)

    def hold(self, waits: bool) -> None:
        pass

    def noise(self, told: bool) -> None:
        pass

    def ticket(self, gives: bool) -> m.BulkTicket:
        raise RemoteError("no bulk connections here")

    def ask(self, request: m.Request) -> Deferred[m.Response]:
        raise AssertionError("nobody asks through the link here")

    def tell(self, notification: m.Notification) -> None:
        raise AssertionError("nobody tells through the link here")

    def requested(self, _link: Any, request: m.Request) -> Deferred[m.Response]:
        match request:
            case m.GetBlock():
                return succeed(m.BlockData(b"b"))
            case m.GetIndexAt():
                return fail(RemoteError("not here"))
            case _:
                waiting: Deferred[m.Response] = Deferred()
                self.at_work.append(waiting)
                self.fits.append(_FITS[type(request)])
                return waiting

    def answered(self, _link: object, request: object, given: bool) -> None:
        """Nothing follows."""

    def notified(self, _link: Any, notification: m.Notification) -> None:
        self.told.append(notification)

    def lost(self, _link: Any) -> None:
        self.ends += 1

    # moves

    def question(self, which: int) -> None:
        request = _questions()[which % len(_questions())]
        before = len(self.sent)
        one = _Asked(request, self.talk.ask(request))
        if self.over:
            one.expected.append(LinkLost)
        elif sum(not other.expected for other in self.open.values()) >= MOST_PENDING:
            one.expected.append(RemoteError)
        else:
            assert len(self.sent) == before + 1
            message = _read(self.sent[-1])
            assert isinstance(message, codec.RequestIn)
            assert message.request == request
            assert message.id not in self.open, "a number is used twice"
            self.open[message.id] = one
        self.asked.append(one)

    def hear(self, data: bytes) -> None:
        if not self.over:
            self._book(data)
        self.talk.received(data)
        if self.broken and not self.over:
            assert self.expect_broken, self.broken
            self.end()

    def _book(self, data: bytes) -> None:
        """What ``data`` must bring about."""
        match _read(data):
            case codec.BadMessage() as fault:
                self._book_bad(fault)
            case FormatError():
                self._stray()
            case codec.ResponseIn(number, name, response):
                one = self.open.pop(number, None)
                if one is None:
                    self._stray()
                elif name not in (one.name, "Error"):
                    self.expect_broken = True
                    if not one.expected:
                        one.expected.append(RemoteError)
                elif not one.expected:
                    one.expected.append(RemoteError if isinstance(response, m.Error) else response)
            case codec.RequestIn(number, request):
                if number in self.theirs:
                    self.expect_broken = True
                else:
                    self.theirs[number] = codec.request_name(request)
            case codec.NotificationIn():
                self.expect_told += 1
            case codec.Ignored(_, number):
                if number is not None and number in self.theirs:
                    self.expect_broken = True

    def _book_bad(self, fault: codec.BadMessage) -> None:
        if fault.request_id is not None:
            if fault.request_id in self.theirs:
                self.expect_broken = True
            else:
                self._stray()
            return
        self._stray()
        one = None if fault.response_id is None else self.open.pop(fault.response_id, None)
        if one is not None and not one.expected:
            one.expected.append(RemoteError)

    def _stray(self) -> None:
        self.strays += 1
        self.expect_broken = self.expect_broken or self.strays >= MOST_STRAYS

    def cancel(self, which: int) -> None:
        if not self.asked:
            return
        one = self.asked[which % len(self.asked)]
        if not one.results:
            one.expected.append(CancelledError)
        one.waiting.cancel()

    def answer(self, which: int) -> None:
        if self.at_work:
            at = which % len(self.at_work)
            waiting, response = self.at_work.pop(at), self.fits.pop(at)
            if which & 0x80:
                waiting.errback(RemoteError("no\x1b[2J"))
            else:
                waiting.callback(response)

    def end(self) -> None:
        self.talk.end("over")
        if not self.over:
            for one in self.open.values():
                if not one.expected:
                    one.expected.append(LinkLost)
        self.over = True

    def note_answers(self) -> None:
        """What we have answered may be asked again."""
        for data in self.sent:
            message = _read(data)
            if isinstance(message, codec.ResponseIn):
                self.theirs.pop(message.id, None)
        self.sent.clear()

    def settle(self) -> None:
        """Compare with the books."""
        for one in self.asked:
            assert len(one.results) == len(one.expected) <= 1, f"{one.name}: {one.results}, expected {one.expected}"
            for got, wanted in zip(one.results, one.expected, strict=True):
                if isinstance(wanted, type):
                    assert getattr(got, "type", None) is wanted, f"{one.name}: {got}, expected {wanted.__name__}"
                else:
                    assert got == wanted, f"{one.name} got the answer to something else: {got}"
        assert bool(self.broken) == self.expect_broken, (self.broken, self.expect_broken)
        assert len(self.told) == self.expect_told
        assert self.log.faults == [], self.log.faults[0]


_FITS: dict[type[m.Request], m.Response] = {
    m.AppendDir: m.UploadAck(True, None),
    m.ReplaceDir: m.UploadAck(False, "no"),
    m.RemoveDir: m.UploadAck(True, None),
    m.GetIndex: m.IndexData(b"i"),
    m.GetBaseDir: m.BaseDirData(bytes(32), bytes(32), {}),
}


def _moves(data: bytes) -> Iterator[tuple[int, int, int]]:
    at = 0
    for _ in range(MOST_MOVES):
        if at + 2 > len(data):
            return
        yield _MOVES[data[at] & 15], data[at] >> 4, data[at + 1]
        at += 2


def check_talk(data: bytes) -> bool:
    """Every request of ours ends exactly once and with its own answer; every request of theirs is answered at most once."""
    talk = _Conversation()
    messages = _messages()
    for move, number, which in _moves(data):
        if move == ASK:
            talk.question(which)
        elif move == HEAR:
            choice = messages[which % len(messages)]
            talk.hear(choice[number % len(choice)])
        elif move == CANCEL:
            talk.cancel(which)
        elif move == ANSWER:
            talk.answer(which)
        elif move == CLOG:
            talk.talk.clog(bool(which & 1))
        elif move == TELL:
            talk.talk.tell(samples.NOTIFICATIONS["PublishImage"])
        elif which < 32:
            talk.end()
        if talk.sent:
            talk.note_answers()
    talk.end()
    while talk.at_work:
        talk.answer(0)
    talk.settle()
    assert all(one.results for one in talk.asked), "somebody waits for ever"
    return not talk.broken


def talk_samples() -> tuple[bytes, ...]:
    """Ask and hear the answer; hear questions; cancel; the same number twice."""
    names = [data for data in VECTORS.values() if data[:1] == b"\x84"]
    answers = [at for at, data in enumerate(names) if data[1] == 2]
    questions = [at for at, data in enumerate(names) if data[1] == 1]
    ask = [bytes((0, which)) for which in range(9)]
    hear = [bytes((3 | number << 4, which)) for number, which in enumerate(answers[:8])]
    heard = [bytes((3 | number << 4, which)) for number, which in enumerate(questions)]
    return (
        b"".join(one + two for one, two in zip(ask, hear, strict=False)),
        b"".join(ask) + b"".join(reversed(hear)),
        b"".join(heard) + bytes((9, 0)) * 9,
        b"".join(ask) + bytes((8, 0)) * 5 + b"".join(hear) + bytes((15, 0)),
        bytes((10, 1)) + b"".join(heard) + bytes((10, 0)) + heard[0] * 2,
        b"".join(hear) * 2,
    )


def cut_moves(data: bytes) -> list[tuple[int, int]]:
    """Single moves."""
    return [(at, at + 2) for at in range(0, len(data) - 1, 2)]
