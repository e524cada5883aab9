"""Commands of the operator as processes: nothing of this one goes to them but what they are told, and nothing of them stays.

Web addresses of the operator: one call each, certificates verified, redirects not followed, answers not read.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.error import ConnectError, DNSLookupError, ProcessTerminated
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import ProcessProtocol, Protocol
from twisted.python.failure import Failure
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS
from twisted.web.http_headers import Headers

from ciruela._version import __version__
from ciruela.interfaces import Ended
from ciruela.model.errors import HookFailed

_HEADERS = Headers({"Content-Type": ["application/json"], "User-Agent": [f"ciruela/{__version__}"]})


class _Unread(Protocol):
    """The code is all that counts."""

    def connectionMade(self) -> None:  # noqa: N802  the name is Twisted's
        """Hang up."""
        assert self.transport is not None
        self.transport.loseConnection()


class Webhooks:
    """Implements ``interfaces.Caller``. ``policy`` says whose certificates are good: those that this host trusts."""

    def __init__(self, reactor: Any, policy: object | None = None) -> None:
        self._clock: IReactorTime = reactor
        self._client = HTTPClient(Agent(reactor, contextFactory=policy or BrowserLikePolicyForHTTPS()))

    def post(self, url: str, body: bytes, timeout_s: float) -> Deferred[int]:
        """As ``interfaces.Caller.post``."""
        sent: Deferred[Any] = maybeDeferred(
            self._client.request, "POST", url, data=body, headers=_HEADERS, allow_redirects=False, unbuffered=True
        )
        return sent.addTimeout(timeout_s, self._clock).addCallbacks(_code, _failed)


def _code(response: Any) -> int:
    response.original.deliverBody(_Unread())
    return int(response.code)


def _failed(failure: Failure) -> Failure:
    """Says why there was no answer, in words that do not have the address in them."""
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


TAIL_BYTES = 4096
"""So much of the end of what a command writes is kept; the last line of it is told."""

GRACE_S = 1.0
"""Time for which the output of a process that has ended may stay open: something that left its group holds it."""

_START = """\
import os, signal, sys
for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(ignored, signal.SIG_DFL)
os.setsid()
try:
    os.execve(sys.argv[1], sys.argv[1:], os.environ)
except OSError as error:
    sys.stderr.write(f"cannot be started: {error.strerror}\\n")
    os._exit(126)
"""
"""Source of the process that becomes the command: a session and process group of its own, so that all of it can be killed at once."""


class _Output(ProcessProtocol):
    """One run."""

    def __init__(self, reactor: Any, timeout_s: float) -> None:
        self._reactor = reactor
        self._timeout_s = timeout_s
        self._tail = b""
        self._late = False
        self._pid: int | None = None
        self._calls: list[IDelayedCall] = []
        self.done: Deferred[Ended] = Deferred(lambda _: self._kill())

    def connectionMade(self) -> None:  # noqa: N802  the name is Twisted's
        """It runs: there is nothing to read for it. It may have ended before ``spawnProcess`` returns."""
        assert self.transport is not None
        self._pid = self.transport.pid  # guard: A48, -> 0
        self.transport.closeStdin()
        self._calls.append(self._reactor.callLater(self._timeout_s, self._too_late))

    def outReceived(self, data: bytes) -> None:  # noqa: N802  the name is Twisted's
        """Keep the end."""
        self._tail = (self._tail + data)[-TAIL_BYTES:]

    errReceived = outReceived  # noqa: N815  the name is Twisted's

    def _too_late(self) -> None:
        self._late = True
        self._kill()

    def _kill(self) -> None:
        """Kill the process and all that belongs to it."""
        assert self.transport is not None
        if self.transport.pid is not None:
            self._kill_group()
            with suppress(OSError):  # it has ended
                os.kill(self.transport.pid, signal.SIGKILL)

    def _kill_group(self) -> None:
        assert self._pid, "group 0 would be that of the daemon itself"
        with suppress(OSError):  # nothing is left, or it has no group yet
            os.killpg(self._pid, signal.SIGKILL)

    def processExited(self, reason: Failure) -> None:  # noqa: ARG002, N802  the name is Twisted's
        """Kills what the command started and left; whoever left the group must not keep us waiting either."""
        assert self.transport is not None
        self._kill_group()
        self._calls.append(self._reactor.callLater(GRACE_S, self.transport.loseConnection))

    def processEnded(self, reason: Failure) -> None:  # noqa: N802  the name is Twisted's
        """All is over."""
        for call in self._calls:
            if call.active():
                call.cancel()
        ended = reason.value if isinstance(reason.value, ProcessTerminated) else None
        lines = [line.strip() for line in self._tail.decode("utf-8", "replace").splitlines()]
        line = next((line for line in reversed(lines) if line), "")
        code, number = (0, None) if ended is None else (ended.exitCode, ended.signal)
        if not self.done.called:
            self.done.callback(Ended(code, number, line, self._late))


class Processes:
    """Implements ``interfaces.Runner``."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def run(self, command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Deferred[Ended]:
        """As ``interfaces.Runner.run``."""
        output = _Output(self._reactor, timeout_s)
        python = sys.executable
        try:
            self._reactor.spawnProcess(
                output,
                python,
                [python, "-I", "-S", "-c", _START, *command],
                env=dict(environment),
                path="/",
                childFDs={0: "w", 1: "r", 2: "r"},
            )
        except OSError as error:
            return fail(HookFailed(f"cannot be started: {error.strerror}"))
        return output.done
