"""ed25519 keys that a running ssh-agent holds, as values; ``agentclient`` asks for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred

from ciruela.keys.public import PublicKey
from ciruela.model.errors import BadKey

LIST_TIMEOUT_S = 10.0
"""For connecting and listing; an agent answers at once unless it is stuck."""


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
