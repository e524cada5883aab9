"""Reading the pages of a node: one GET, a bounded body, a deadline, nothing followed, nothing unpacked (threats A29)."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool, ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from ciruela.model.errors import LinkLost, RemoteError
from ciruela.seams import Address, InThread

MOST_BYTES = 16 * 1024 * 1024
"""Longest page that is read: 5,000 versions with their signatures are some 3 MiB."""

CONNECT_S = 3.0
PAGE_S = 15.0
"""How long a page may take, all in all."""


class NoPage(RemoteError):
    """The node answered, and has no such page."""


class Pages:
    """Reads pages of nodes. JSON is taken apart in a thread."""

    def __init__(self, reactor: Any, in_thread: InThread) -> None:
        self._reactor = reactor
        self._in_thread = in_thread
        self._agent = Agent(reactor, connectTimeout=CONNECT_S, pool=HTTPConnectionPool(reactor, persistent=False))

    def get(self, address: Address, page: str, patience_s: float = PAGE_S) -> Deferred[Any]:
        """The JSON of ``page`` (percent-encoded, with its slash) of the node at ``address``.

        Fails with LinkLost when nobody answers in time, NoPage for 404, RemoteError for what is no page.
        """
        url = f"http://{address}{page}".encode("ascii")
        asked: Deferred[Any] = Deferred.fromCoroutine(self._get(url))
        asked.addTimeout(patience_s, self._reactor)
        return asked.addErrback(_in_words, address)

    async def _get(self, url: bytes) -> Any:
        headers = Headers({b"User-Agent": [b"ciruela"], b"Accept": [b"application/json"]})
        response = await self._agent.request(b"GET", url, headers)
        body = await _body(response)
        if response.code == 404:
            raise NoPage("it has no such page")
        if response.code != 200:
            raise RemoteError(f"its page answers HTTP {response.code}")
        return await self._in_thread(_parsed, body)


def _parsed(body: bytes) -> Any:
    """In a thread. Raises RemoteError."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RemoteError("its page is not JSON: is it a node of ciruela?") from None


def _body(response: IResponse) -> Deferred[bytes]:
    body = _Body()
    response.deliverBody(body)
    return body.done


class _Body(Protocol):
    """Collects a body of at most MOST_BYTES."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._bytes = 0
        self.done: Deferred[bytes] = Deferred(lambda _: self._leave())

    def _leave(self) -> None:
        transport: Any = self.transport
        if transport is not None:
            transport.loseConnection()

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Twisted: a part of the body."""
        self._bytes += len(data)
        if self._bytes > MOST_BYTES:
            self._parts.clear()
            self._leave()
            if not self.done.called:
                self.done.errback(RemoteError(f"its page is longer than {MOST_BYTES // 1024 // 1024} MiB"))
            return
        self._parts.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        """Twisted: the body is at its end, or the connection is."""
        if self.done.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(b"".join(self._parts))
        else:
            self.done.errback(LinkLost("the connection ended in the middle of a page"))


def _in_words(failure: Failure, address: Address) -> Any:
    if failure.check(RemoteError, LinkLost):
        return failure
    if failure.check(DeferredTimeout):
        raise LinkLost(f"no answer from {address} within {PAGE_S:g} s")
    if failure.check(CancelledError):
        return failure
    if failure.check(ResponseNeverReceived, ResponseFailed, ConnectionDone):
        raise LinkLost(f"{address} ended the connection without an answer")
    if failure.check(Refused):
        raise LinkLost(f"connection refused by {address}")
    if failure.check(ConnectTimeout):
        raise LinkLost(f"no answer from {address} within {CONNECT_S:g} s")
    failure.trap(ConnectError, OSError)
    raise LinkLost(f"cannot connect to {address}: {failure.getErrorMessage()}")
