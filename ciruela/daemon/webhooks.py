"""Web addresses of the operator: one call each, certificates verified, redirects not followed, answers not read."""

from __future__ import annotations

from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.error import ConnectError, DNSLookupError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS
from twisted.web.http_headers import Headers

from ciruela import __version__
from ciruela.model.errors import HookFailed

_HEADERS = Headers({"Content-Type": ["application/json"], "User-Agent": [f"ciruela/{__version__}"]})


class _Unread(Protocol):
    """The code is all that counts."""

    def connectionMade(self) -> None:  # noqa: N802  the name is Twisted's
        """Hang up."""
        assert self.transport is not None
        self.transport.loseConnection()


class Webhooks:
    """Implements ``seams.Caller``. ``policy`` says whose certificates are good: those that this host trusts."""

    def __init__(self, reactor: Any, policy: object | None = None) -> None:
        self._clock: IReactorTime = reactor
        self._client = HTTPClient(Agent(reactor, contextFactory=policy or BrowserLikePolicyForHTTPS()))

    def post(self, url: str, body: bytes, timeout_s: float) -> Deferred[int]:
        """As ``seams.Caller.post``."""
        sent: Deferred[Any] = self._client.request("POST", url, data=body, headers=_HEADERS, allow_redirects=False, unbuffered=True)
        return sent.addTimeout(timeout_s, self._clock).addCallbacks(_code, _failed)


def _code(response: Any) -> int:
    response.original.deliverBody(_Unread())
    return int(response.code)


def _failed(failure: Failure) -> Failure:
    """Why there was no answer, in words that do not have the address in them."""
    if failure.check(CancelledError):
        return failure
    error: Any = failure.value
    while reasons := getattr(error, "reasons", None):
        error = reasons[0].value
    match error:
        case TookTooLong():
            why = "there was no answer in time"
        case DNSLookupError():
            why = "the name of the host is not known"
        case ConnectError():
            why = f"no connection: {error.osError or type(error).__name__}"
        case _:
            module = type(error).__module__
            certificate = module.startswith(("OpenSSL", "service_identity"))
            why = "the certificate is not trusted, or TLS failed" if certificate else f"no answer: {type(error).__name__}"
    return Failure(HookFailed(why))
