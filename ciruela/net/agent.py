"""ed25519 keys that a running ssh-agent holds: the values, and how one asks for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorUNIX

from ciruela.keys.public import PublicKey
from ciruela.model.errors import BadKey

LIST_TIMEOUT_S = 10.0
"""For connecting and listing; an agent answers at once unless it is stuck."""

MAX_SOCKET_PATH_BYTES = 107
"""Longest path that fits into a sockaddr_un of Linux (unix(7)); Twisted raises in the reactor for more."""


class AgentFailed(BadKey):
    """The agent cannot be reached, does not answer, or refuses."""


@dataclass(frozen=True, slots=True)
class AgentKey:
    """One key of the agent."""

    public: PublicKey
    _sign: Callable[[PublicKey, bytes], Deferred[bytes]] = field(repr=False, compare=False)

    def sign(self, data: bytes) -> Deferred[bytes]:
        """64 bytes: the signature over ``data``, checked. Fails with AgentFailed; cancelling drops the connection."""
        return self._sign(self.public, data)


@dataclass(frozen=True, slots=True)
class AgentKeys:
    """Keys that an agent holds: those that can sign an upload, and a line about each that cannot."""

    keys: tuple[AgentKey, ...]
    notes: tuple[str, ...]


def agent_keys(reactor: IReactorUNIX, socket_path: str, timeout_s: float = LIST_TIMEOUT_S) -> Deferred[AgentKeys]:
    """The keys of the agent at ``socket_path`` (the value of ``SSH_AUTH_SOCK``). ``reactor`` also has to be the clock.

    Fails with AgentFailed when the agent cannot be reached, or does not answer within ``timeout_s``.
    """
    if len(os.fsencode(socket_path)) > MAX_SOCKET_PATH_BYTES:
        return fail(AgentFailed(f"the ssh-agent at {socket_path} cannot be reached: the path is longer than that of any socket"))
    from ciruela.net.agentclient import connected  # here, because Conch takes a tenth of the start, and few uploads need it

    return connected(reactor, socket_path).keys(timeout_s)
