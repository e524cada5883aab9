"""Reading a page: what comes is bounded, and what goes wrong is told in words."""

from __future__ import annotations

import gzip
import random
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers

from ciruela.client.survey import MOST_BYTES, PAGE_S, NoPage, PageReader
from ciruela.interfaces import Address
from ciruela.model.errors import CiruelaError, LinkLost, RemoteError
from tests.client.test_commands import at_once
from tests.proof import shows

HERE = Address("::1", 24783)


class Response:
    """An answer whose body comes as it is told."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.headers = Headers()
        self.body: Any = None

    def deliverBody(self, body: Any) -> None:
        self.body = body
        body.makeConnection(StringTransport())

    def end(self, *parts: bytes, why: Exception | None = None) -> None:
        for part in parts:
            self.body.dataReceived(part)
        self.body.connectionLost(Failure(why or ResponseDone()))


class PagesTests(SynchronousTestCase):
    """A page is JSON, soon, and not too long; or there is a sentence why not."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.pages = PageReader(self.clock, at_once)
        self.requested: list[bytes] = []
        self.headers: Headers | None = None
        self.answer: Deferred[Any] = Deferred()
        self.pages._agent = self  # type: ignore[assignment]
        self.random = random.Random(1)

    def request(self, method: bytes, url: bytes, headers: Headers) -> Deferred[Any]:
        self.requested.append(url)
        self.headers = headers
        return self.answer

    def get(self, code: int = 200) -> tuple[Deferred[Any], Response]:
        waiting = self.pages.get(HERE, "/api/v1/status")
        response = Response(code)
        self.answer.callback(response)
        return waiting, response

    def fails(self, waiting: Deferred[Any], kind: type[CiruelaError]) -> str:
        return self.failureResultOf(waiting, kind).getErrorMessage()

    def test_good(self) -> None:
        """A page would not be read, or asked for at another place."""
        waiting, response = self.get()
        response.end(b'{"a":', b" 1}")
        self.assertEqual(self.successResultOf(waiting), {"a": 1})
        self.assertEqual(self.requested, [b"http://[::1]:24783/api/v1/status"])

    def test_codes(self) -> None:
        """A page that is not there would look like a broken one."""
        waiting, response = self.get(404)
        response.end(b"{}")
        self.fails(waiting, NoPage)
        self.answer = Deferred()
        waiting, response = self.get(302)
        response.end(b"{}")
        self.assertIn("HTTP 302", self.fails(waiting, RemoteError))

    @shows("A29")
    def test_too_long(self) -> None:
        """A server could fill the memory of a client."""
        waiting, response = self.get()
        part = bytes(MOST_BYTES // 4)
        for _ in range(5):
            response.body.dataReceived(part)
        self.assertIn("longer than 16 MiB", self.fails(waiting, RemoteError))
        self.assertTrue(response.body.transport.disconnecting)
        response.end(part)
        self.assertEqual(response.body._parts, [])

    @shows("A29")
    def test_nothing_is_unpacked(self) -> None:
        """A megabyte of a hostile server would become a gigabyte before anybody counts."""
        waiting, response = self.get()
        assert self.headers is not None
        self.assertFalse(self.headers.hasHeader(b"Accept-Encoding"))
        response.headers.setRawHeaders(b"Content-Encoding", [b"gzip"])
        response.end(gzip.compress(b'{"a": 1}'))
        self.assertIn("not JSON", self.fails(waiting, RemoteError))

    @shows("A29")
    def test_not_json(self) -> None:
        """Another server, or a bomb of brackets, would end in a traceback."""
        for body in (b"<html>", b"\xff", b"[" * 200_000, b""):
            self.answer = Deferred()
            waiting, response = self.get()
            response.end(body)
            self.assertIn("is it a node of ciruela?", self.fails(waiting, RemoteError))

    def test_late(self) -> None:
        """A node that hangs would hang the client."""
        waiting, response = self.get()
        self.clock.advance(PAGE_S)
        self.assertIn("no answer from [::1]:24783 within 15 s", self.fails(waiting, LinkLost))
        self.assertTrue(response.body.transport.disconnecting)
        self.answer = Deferred()
        waiting = self.pages.get(HERE, "/")
        self.clock.advance(PAGE_S)
        self.fails(waiting, LinkLost)

    def test_lost(self) -> None:
        """Half a page would be taken for a whole one."""
        waiting, response = self.get()
        response.end(b"{}", why=ConnectionLost())
        self.assertIn("in the middle of a page", self.fails(waiting, LinkLost))

    def test_no_connection(self) -> None:
        """What the system says would be shown to users as it is."""
        for error, words in (
            (Refused(), "connection refused by [::1]:24783"),
            (OSError(113, "No route"), "cannot connect to"),
        ):
            self.answer = Deferred()
            waiting = self.pages.get(HERE, "/")
            self.answer.errback(error)
            self.assertIn(words, self.fails(waiting, LinkLost))

    def test_cancelled(self) -> None:
        """Ctrl-C would look like a network problem."""
        waiting = self.pages.get(HERE, "/")
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
