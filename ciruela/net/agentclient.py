"""The agent protocol of OpenSSH (PROTOCOL.agent) over the UNIX socket of an ssh-agent, by Conch.

Only who has an agent imports this: Conch takes a tenth of the start.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import NoReturn, TypeVar

from twisted.conch.error import ConchError
from twisted.conch.ssh.agent import SSHAgentClient
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.interfaces import IReactorTime, IReactorUNIX, IStreamClientEndpoint
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from ciruela.keys.public import KEY_TYPE, PublicKey, blob_type, describe_type, parse_blob, take_string, verify, visible
from ciruela.model.errors import BadKey
from ciruela.net.agent import LIST_TIMEOUT_S, AgentFailed, AgentKey, AgentKeys

SIGN_TIMEOUT_S = 120.0
"""For one signature; a person may have to confirm it (``ssh-add -c``)."""

MAX_ANSWER_BYTES = 256 * 1024
"""Longest answer that is read, the limit of OpenSSH's own agent."""

MAX_SOCKET_PATH_BYTES = 107
"""Longest path that fits into a sockaddr_un of Linux (unix(7)); Twisted raises in the reactor for more."""

_MALFORMED = (struct.error, IndexError, TypeError, ValueError)
"""Exceptions of Conch when an answer is shorter than it says or of another kind."""

T = TypeVar("T")


class _Client(SSHAgentClient):
    """Conch's client, which alone would wait for ever when the connection ends and buffer without a limit."""

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        if len(self.buf) + len(data) > MAX_ANSWER_BYTES + 4:
            self._give_up()
            return
        try:
            super().dataReceived(data)
        except _MALFORMED:
            self._give_up()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002, N802
        self._fail("closed the connection without an answer")

    def _give_up(self) -> None:
        self._fail("sent something that is not an answer")
        if self.transport is not None:
            self.transport.loseConnection()

    def _fail(self, what: str) -> None:
        waiting, self.deferreds = self.deferreds, []
        for done in waiting:
            done.errback(AgentFailed(what))


def agent_keys(reactor: IReactorUNIX, socket_path: str, timeout_s: float = LIST_TIMEOUT_S) -> Deferred[AgentKeys]:
    """The keys of the agent at ``socket_path`` (the value of ``SSH_AUTH_SOCK``). ``reactor`` also has to be the clock.

    Fails with AgentFailed when the agent cannot be reached, or does not answer within ``timeout_s``.
    """
    if len(os.fsencode(socket_path)) > MAX_SOCKET_PATH_BYTES:
        return fail(AgentFailed(f"the ssh-agent at {socket_path} cannot be reached: the path is longer than that of any socket"))
    return _Agent(UNIXClientEndpoint(reactor, socket_path), IReactorTime(reactor), socket_path).keys(timeout_s)


class _Agent:
    """Asks one question per connection, so that a broken answer spoils nothing but itself."""

    def __init__(self, endpoint: IStreamClientEndpoint, clock: IReactorTime, name: str) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._name = name

    def keys(self, timeout_s: float) -> Deferred[AgentKeys]:
        return self._ask(lambda client: client.requestIdentities().addCallback(self._sort), timeout_s)

    def sign(self, public: PublicKey, data: bytes) -> Deferred[bytes]:
        return self._ask(lambda client: client.signData(public.blob, data).addCallback(_signature, public, data), SIGN_TIMEOUT_S)

    def _ask(self, question: Callable[[_Client], Deferred[T]], timeout_s: float) -> Deferred[T]:
        asked: Deferred[T] = connectProtocol(self._endpoint, _Client()).addCallback(_ask_and_close, question)
        asked.addTimeout(timeout_s, self._clock, _expired)
        return asked.addErrback(self._explain, timeout_s)

    def _explain(self, failure: Failure, timeout_s: float) -> NoReturn:
        failure.trap(TimedOut, ConnectError, ConchError, OSError, BadKey, *_MALFORMED)
        error = failure.value
        if isinstance(error, TimedOut):
            reason = f"did not answer in {timeout_s:.0f} seconds"
        elif isinstance(error, ConchError):
            reason = "refused (is it locked, or was the use of the key not confirmed?)"
        elif isinstance(error, AgentFailed):
            reason = str(error)
        elif isinstance(error, ConnectError | OSError):
            reason = f"cannot be reached: {error}"
        else:
            reason = f"sent an answer that cannot be read: {error}"
        raise AgentFailed(f"the ssh-agent at {self._name} {reason}") from None

    def _sort(self, found: list[tuple[bytes, bytes]]) -> AgentKeys:
        keys = []
        notes = []
        for blob, raw_comment in found:
            comment = visible(raw_comment.decode("utf-8", "replace"))
            kind = blob_type(blob)
            if kind == KEY_TYPE:
                keys.append(AgentKey(parse_blob(blob, comment), self.sign))
            else:
                notes.append(f"ssh-agent: {comment}: it is {describe_type(kind)}, only {KEY_TYPE} keys are used")
        return AgentKeys(tuple(keys), tuple(notes))


def _expired(result: object, timeout_s: float) -> NoReturn:
    """Also when the time ran out while connecting, which is cancelled with an error of its own."""
    if isinstance(result, Failure):
        result.trap(CancelledError, ConnectingCancelledError)
    raise TimedOut(timeout_s)


def _ask_and_close(client: _Client, question: Callable[[_Client], Deferred[T]]) -> Deferred[T]:
    def close(result: T | Failure) -> T | Failure:
        if client.transport is not None:
            client.transport.loseConnection()
        return result

    answered: Deferred[T] = question(client).addBoth(close)
    return answered


def _signature(answer: bytes, public: PublicKey, data: bytes) -> bytes:
    _, position = take_string(answer, 0)
    signature, _ = take_string(answer, position)
    if not verify(public, data, signature):
        raise AgentFailed(f"gave a wrong signature for the key {public.fingerprint()}")
    return signature
