"""One page by HTTP: bounded in size, redirects and time, TLS verified.

Lists of nodes as others give them: JSON, or one per line. Read whole or not at all: half a list would hide half of the cluster.

``http://`` and ``https://``: a page that lists the nodes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
from ciruela.net.resolve import join_name, split_name

MAX_LIST_BYTES = 1024 * 1024
MOST_NAMES = 10_000
"""Nodes that one place may name. Our own limit; a cluster of this program is smaller."""


def json_value(data: bytes) -> object:
    """Parses the JSON text ``data``. Raises FormatError."""
    try:
        found: object = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the answer is not JSON: {str(error)[:80]}") from None
    return found


def read_list(data: bytes) -> list[str]:
    """The names in a page: a JSON list of texts, or one name per line with ``#`` before comments. Raises FormatError."""
    if data.lstrip()[:1] in (b"[", b"{"):
        found = json_value(data)
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise FormatError('the answer is not a list of names (it should be like ["app1.example.org", "10.0.0.3:24783"])')
        return checked(found)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FormatError("there are bytes in the answer that are not UTF-8") from None
    lines = (line.strip() for line in text.splitlines())
    return checked([line for line in lines if line and not line.startswith("#")])


def checked(names: Sequence[str]) -> list[str]:
    """``names`` if each can be the name of a node, in lower case. Raises FormatError with the first that cannot."""
    if len(names) > MOST_NAMES:
        raise FormatError(f"there are {len(names)} names in the answer, {MOST_NAMES} are the most")
    return [join_name(*split_name(name, 0)) for name in names]


def consul_nodes(data: bytes, default_port: int) -> list[str]:
    """The instances in an answer of ``/v1/health/service/NAME``, ``ADDRESS:PORT`` each. Raises FormatError.

    The address of the service counts, that of its node where there is none; a service without a port is at ``default_port``.
    """
    found = json_value(data)
    if not isinstance(found, list):
        raise FormatError("the answer is not a list of instances")
    if len(found) > MOST_NAMES:
        raise FormatError(f"there are {len(found)} instances, {MOST_NAMES} are the most")
    names = []
    for entry in found:
        match entry:
            case {"Service": {"Address": str(address), "Port": int(port)}} if address and not isinstance(port, bool):
                names.append(_at(address, port or default_port))
            case {"Node": {"Address": str(address)}, "Service": {"Port": int(port)}} if not isinstance(port, bool):
                names.append(_at(address, port or default_port))
            case _:
                raise FormatError("an instance has no Node.Address, or no Service.Port")
    return names


def _at(host: str, port: int) -> str:
    if not 0 < port < 65536:
        raise FormatError(f"{port} is not a port")
    return join_name(split_name(host, 0)[0], port)


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
    """Function that fetches one page, as :func:`fetcher` gives it."""

    def __call__(self, url: str, headers: Mapping[str, str], wanted: str = "", redirects: int = 0) -> Deferred[Page]:
        """Fires with the page and its header ``wanted``. Fails with LinkLost or FormatError; cancel to give up."""


def agent(reactor: Any) -> IAgent:
    """Makes the agent for the connections of :func:`fetcher`: certificates are checked against those that this system trusts."""
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


class _ListBody(Receiver):
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
    body = _ListBody()
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


def http(url: str, fetch: Fetch) -> Callable[[], Deferred[Sequence[str]]]:
    """Makes the question to a page that lists nodes; :func:`read_list` reads it."""

    def ask() -> Deferred[Sequence[str]]:
        page = fetch(url, {"Accept": "application/json, text/plain;q=0.9"}, redirects=MOST_REDIRECTS)
        return page.addCallback(lambda found: read_list(found.body))

    return ask
