"""Ids, pending requests, and what breaks the rules."""

from __future__ import annotations

import cbor2
from twisted.trial.unittest import SynchronousTestCase

from ciruela.proto import codec
from ciruela.proto import messages as m
from ciruela.proto.multiplexer import (
    Answered,
    Failed,
    Nothing,
    NotificationReceived,
    RequestMultiplexer,
    RequestReceived,
    TooMany,
    Violation,
)
from tests.proof import shows
from tests.proto import samples as s

ASK = m.GetBaseDir("/a")
BLOCK = m.GetBlock(s.BLOCK, None)


def answer(number: int) -> bytes:
    return codec.encode_response(number, "GetBlock", m.BlockData(b"x"))


class Asking(SynchronousTestCase):
    def test_answers_find_their_requests(self) -> None:
        """Answers in another order must not be mixed up: blocks would be written for other blocks."""
        talk: RequestMultiplexer[str] = RequestMultiplexer()
        first, data = talk.ask(BLOCK, "one")
        second, _ = talk.ask(BLOCK, "two")
        self.assertEqual((first, second), (1, 2))
        self.assertEqual(data, codec.encode_request(1, BLOCK))
        self.assertEqual(talk.take(answer(2)), Answered("two", m.BlockData(b"x")))
        self.assertEqual(talk.take(answer(1)), Answered("one", m.BlockData(b"x")))
        self.assertEqual(talk.pending, 0)

    def test_error_answers(self) -> None:
        """An Error answers any request."""
        talk: RequestMultiplexer[str] = RequestMultiplexer()
        talk.ask(ASK, "one")
        self.assertEqual(talk.take(codec.encode_response(1, "GetBaseDir", m.Error("no"))), Answered("one", m.Error("no")))

    @shows("A26")
    def test_too_many(self) -> None:
        """A caller that forgets to wait would fill the memory of both sides."""
        talk: RequestMultiplexer[int] = RequestMultiplexer(most_pending=2)
        talk.ask(ASK, 1)
        number, _ = talk.ask(ASK, 2)
        self.assertRaises(TooMany, talk.ask, ASK, 3)
        talk.forget(number)
        talk.ask(ASK, 3)

    @shows("F18")
    def test_late_answers_are_no_strays(self) -> None:
        """A slow but honest peer would be thrown out after sixteen timeouts."""
        talk: RequestMultiplexer[int] = RequestMultiplexer()
        for _ in range(40):
            number, _ = talk.ask(BLOCK, 1)
            talk.forget(number)
            self.assertEqual(talk.take(answer(number)), Nothing("an answer came late", late=True))
        self.assertEqual(talk.strays, 0)

    @shows("A24", "I6")
    def test_forgotten_requests_are_bounded(self) -> None:
        """A peer that never answers would make the table grow for ever."""
        talk: RequestMultiplexer[int] = RequestMultiplexer(most_pending=2)
        for _ in range(100):
            number, _ = talk.ask(ASK, 1)
            talk.forget(number)
        self.assertEqual(len(talk._pending), 8)
        self.assertEqual(talk.pending, 0)

    def test_large_answers_are_expected_until_they_came(self) -> None:
        """The connection would be dropped in the middle of the index that we asked for."""
        talk: RequestMultiplexer[int] = RequestMultiplexer()
        self.assertFalse(talk.large_due)
        number, _ = talk.ask(m.GetIndex(s.image(1), None), 1)
        talk.ask(BLOCK, 2)
        talk.forget(number)
        self.assertTrue(talk.large_due)
        talk.take(codec.encode_response(number, "GetIndex", m.IndexData(b"")))
        self.assertFalse(talk.large_due)

    def test_bulk_answers_are_expected_until_they_came(self) -> None:
        """The same for many blocks; a connection on which none are due takes no such message."""
        talk: RequestMultiplexer[int] = RequestMultiplexer()
        number, _ = talk.ask(m.GetBlocks("/a/b", s.image(1), (1,)), 1)
        self.assertEqual((talk.bulk_due, talk.large_due), (True, False))
        talk.take(codec.encode_response(number, "GetBlocks", m.BlocksData(())))
        self.assertFalse(talk.bulk_due)

    def test_end(self) -> None:
        """Requests that nobody fails hang for ever."""
        talk: RequestMultiplexer[int] = RequestMultiplexer()
        talk.ask(ASK, 1)
        number, _ = talk.ask(ASK, 2)
        talk.ask(ASK, 3)
        talk.forget(number)
        self.assertEqual(talk.end(), [1, 3])
        self.assertFalse(talk.large_due)


@shows("A24", "F18")
class Rules(SynchronousTestCase):
    def test_strays(self) -> None:
        """A peer that answers what was not asked is forgiven fifteen times."""
        talk: RequestMultiplexer[int] = RequestMultiplexer()
        for _ in range(15):
            self.assertIsInstance(talk.take(answer(77)), Nothing)
        self.assertIsInstance(talk.take(answer(77)), Violation)

    def test_unreadable_messages_count(self) -> None:
        """Garbage costs time to look at."""
        talk: RequestMultiplexer[int] = RequestMultiplexer(most_strays=2)
        self.assertIsInstance(talk.take(b"garbage"), Nothing)
        self.assertIsInstance(talk.take(b"garbage"), Violation)

    def test_wrong_kind_of_answer(self) -> None:
        """An index in place of a block must reach nobody."""
        talk: RequestMultiplexer[str] = RequestMultiplexer()
        talk.ask(ASK, "one")
        self.assertEqual(talk.take(answer(1)), Violation("GetBaseDir was answered as GetBlock", "one"))
        self.assertEqual(talk.pending, 0)

    def test_unreadable_answer_fails_its_request(self) -> None:
        """The request would hang until its timeout."""
        talk: RequestMultiplexer[str] = RequestMultiplexer()
        talk.ask(BLOCK, "one")
        event = talk.take(cbor2.dumps([2, "GetBlock", 1, {}]))
        assert isinstance(event, Failed)
        self.assertEqual(event.token, "one")
        self.assertEqual(talk.strays, 1)

    def test_unreadable_answer_too_often(self) -> None:
        """The last straw still fails the request it belongs to."""
        talk: RequestMultiplexer[str] = RequestMultiplexer(most_strays=1)
        talk.ask(BLOCK, "one")
        event = talk.take(cbor2.dumps([2, "GetBlock", 1, {}]))
        assert isinstance(event, Violation)
        self.assertEqual(event.token, "one")

    def test_duplicate_id(self) -> None:
        """Two requests of one id: one answer would go to the wrong one."""
        talk: RequestMultiplexer[int] = RequestMultiplexer()
        data = codec.encode_request(5, ASK)
        self.assertEqual(talk.take(data), RequestReceived(5, ASK))
        self.assertEqual(talk.take(data), Violation("id 5 is used twice"))
        self.assertIsInstance(talk.take(cbor2.dumps([1, "GetNews", 5, {}])), Violation)

    def test_id_may_be_used_again(self) -> None:
        """Ids need to be unique among open requests only."""
        talk: RequestMultiplexer[int] = RequestMultiplexer()
        data = codec.encode_request(5, BLOCK)
        talk.take(data)
        self.assertEqual(talk.answer(5, m.BlockData(b"x")), (answer(5), b""))
        self.assertEqual(talk.take(data), RequestReceived(5, BLOCK))
        self.assertRaises(KeyError, talk.answer, 6, m.BlockData(b"x"))

    def test_wrong_answer_of_ours_leaves_the_request_open(self) -> None:
        """The asker can still be told that something went wrong."""
        talk: RequestMultiplexer[int] = RequestMultiplexer()
        talk.take(codec.encode_request(5, BLOCK))
        self.assertRaises(TypeError, talk.answer, 5, m.IndexData(b""))
        talk.answer(5, m.Error("internal error"))
        self.assertEqual(talk.unanswered, 0)

    @shows("A26")
    def test_too_many_requests_of_theirs(self) -> None:
        """A table without a bound is memory for the asking."""
        talk: RequestMultiplexer[int] = RequestMultiplexer(most_unanswered=2)
        talk.take(codec.encode_request(1, ASK))
        talk.take(codec.encode_request(2, ASK))
        self.assertIsInstance(talk.take(codec.encode_request(3, ASK)), Violation)

    def test_unknown_request_is_refused_in_words(self) -> None:
        """A newer program would wait for its timeout instead of falling back at once."""
        talk: RequestMultiplexer[int] = RequestMultiplexer(most_strays=2)
        for number in range(5):
            event = talk.take(cbor2.dumps([1, "GetNews", number, {}]))
            assert isinstance(event, Nothing) and event.reply is not None
            self.assertEqual(codec.decode(event.reply), codec.ResponseIn(number, "Error", m.Error("'GetNews' is not known here")))

    def test_bad_request_is_refused_and_counted(self) -> None:
        """The sender is told what is wrong, but not for ever."""
        talk: RequestMultiplexer[int] = RequestMultiplexer(most_strays=2)
        data = cbor2.dumps([1, "GetBaseDir", 4, {}])
        event = talk.take(data)
        assert isinstance(event, Nothing) and event.reply is not None
        self.assertIn(b"path", event.reply)
        self.assertIsInstance(talk.take(data), Violation)

    def test_notifications(self) -> None:
        """Known ones are passed on, unknown ones are not held against anybody."""
        talk: RequestMultiplexer[int] = RequestMultiplexer(most_strays=1)
        note = s.NOTIFICATIONS["ReceivedImage"]
        self.assertEqual(talk.take(talk.tell(note)), NotificationReceived(note))
        self.assertIsInstance(talk.take(cbor2.dumps([0, "News", {}])), Nothing)
