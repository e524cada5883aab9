"""One page by HTTP: bounded in size, redirects and time, TLS verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError, ConnectingCancelledError, ConnectionLost, DNSLookupError
from twisted.internet.protocol import Protocol as Receiver
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    BrowserLikePolicyForHTTPS,
    RedirectAgent,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseDone,
    ResponseFailed,
)
from twisted.web.error import InfiniteRedirection, RedirectWithNoLocation, SchemeNotSupported
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent
from zope.interface import implementer

from ciruela.model.errors import FormatError, LinkLost
from ciruela.net.discovery.lists import MAX_LIST_BYTES

CONNECT_S = 10.0
MOST_REDIRECTS = 3

_FAULTS = (
    ConnectError,
    ConnectingCancelledError,
    ConnectionLost,
    DNSLookupError,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    InfiniteRedirection,
    RedirectWithNoLocation,
    SchemeNotSupported,
    OSError,
)


@dataclass(frozen=True, slots=True)
class Page:
    """An answer with status 200: its body, and one header asked for (empty when it is not there)."""

    body: bytes
    header: str


class Fetch(Protocol):
    """What :func:`fetcher` gives."""

    def __call__(self, url: str, headers: Mapping[str, str], wanted: str = "", redirects: int = 0) -> Deferred[Page]:
        """Fires with the page and its header ``wanted``. Fails with LinkLost or FormatError; cancel to give up."""


def agent(reactor: Any) -> IAgent:
    """What makes connections for :func:`fetcher`: certificates are checked against those that this system trusts."""
    made: IAgent = Agent(reactor, BrowserLikePolicyForHTTPS(), connectTimeout=CONNECT_S)
    return made


@implementer(IAgent)
class _NeverLess:
    """Keeps a redirect from leading out of TLS."""

    def __init__(self, inner: IAgent, scheme: bytes) -> None:
        self._inner = inner
        self._scheme = scheme

    def request(self, method: bytes, uri: bytes, headers: Any = None, bodyProducer: Any = None) -> Deferred[Any]:  # noqa: N803
        if self._scheme == b"https" and not uri.startswith(b"https:"):
            raise SchemeNotSupported(b"a redirect leads from https to something else")
        found: Deferred[Any] = self._inner.request(method, uri, headers, bodyProducer)
        return found


class _Body(Receiver):
    """Gathers at most :data:`MAX_LIST_BYTES`."""

    def __init__(self) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self._abort())
        self._parts: list[bytes] = []
        self._left = MAX_LIST_BYTES

    def _abort(self) -> None:
        end = getattr(self.transport, "abortConnection", None) or getattr(self.transport, "loseConnection", None)
        if end is not None:
            end()

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """More of it."""
        self._left -= len(data)
        if self._left >= 0:
            self._parts.append(data)
        elif not self.done.called:
            self.done.errback(FormatError(f"the answer has more than {MAX_LIST_BYTES // 1024} KiB"))
            self._abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: N802
        """The end, good or bad."""
        if self.done.called:
            return
        if reason.check(ResponseDone):
            self.done.callback(b"".join(self._parts))
        else:
            self.done.errback(LinkLost("the connection was lost in the middle of the answer"))


def fetcher(inner: IAgent) -> Fetch:
    """A function that gets pages through ``inner``."""

    def fetch(url: str, headers: Mapping[str, str], wanted: str = "", redirects: int = 0) -> Deferred[Page]:
        guarded: IAgent = _NeverLess(inner, url.partition(":")[0].encode("ascii"))
        if redirects:
            guarded = RedirectAgent(guarded, redirects)
        told = Headers({name: [value] for name, value in headers.items()})
        answer: Deferred[Any] = HTTPClient(guarded).get(url, headers=told, allow_redirects=False, unbuffered=True)
        return answer.addCallbacks(_page, _lost, callbackArgs=(wanted,))

    return fetch


def _page(response: Any, wanted: str) -> Deferred[Page]:
    body = _Body()
    response.deliverBody(body)
    found = (response.headers.getRawHeaders(wanted) or [""])[0] if wanted else ""
    return body.done.addCallback(_good, response.code, found)


def _good(body: bytes, status: int, header: str) -> Page:
    if status != 200:
        raise LinkLost(f"it answers with status {status}")
    return Page(body, header)


def _lost(failure: Failure) -> Page:
    failure.trap(*_FAULTS)
    inner = getattr(failure.value, "reasons", None)
    reason = inner[0].getErrorMessage() if inner else failure.getErrorMessage()
    raise LinkLost(f"no answer: {str(reason)[:200] or type(failure.value).__name__}")
