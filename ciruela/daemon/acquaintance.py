"""Knowing who else is there, before anybody is told.

A node that has just started does not know who else takes a directory, and a client that asks it would believe that nobody does.

So the answers to uploads, which name the other nodes, wait until the configured peers have been heard of, for a few seconds at most.
The order of a client waits as well: the peers are asked before it is judged.
"""

from __future__ import annotations

from dataclasses import field

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ciruela.membership.cluster import Cluster
from ciruela.model.values import dataclass

MOST_S = 3.0
"""After this the answers go out with what is known: a peer that is down must not hold them up. Gossip beats each second."""

WARM_UP_LOOK_S = 0.1


@dataclass(eq=False)
class WarmUpBarrier:
    """Fires when the peers are known, which ``cluster`` tells."""

    _log = Logger()

    # required parameters
    clock: IReactorTime
    cluster: Cluster

    # internal state
    _until_s: float = field(init=False)
    _listed: bool = field(init=False, default=False)
    _waiting: list[Deferred[None]] = field(init=False, default_factory=list)
    _looking: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._until_s = self.clock.seconds() + MOST_S

    def begin(self) -> None:
        """The node starts now."""
        self._until_s = self.clock.seconds() + MOST_S

    def listed(self) -> None:
        """The list of peers was read and its names looked up."""
        self._listed = True

    def wait(self) -> Deferred[None]:
        """Fires at once when everybody was heard of, else when they are, or when the time is over."""
        if self._over():
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        if not self._looking:
            self._looking = True
            self.clock.callLater(WARM_UP_LOOK_S, self._look)
        return waiting

    def _over(self) -> bool:
        if self.clock.seconds() >= self._until_s:
            return True
        return self._listed and all(peer.own or peer.keys for peer in self.cluster.peers())

    def _look(self) -> None:
        try:
            over = self._over()
        except Exception:  # noqa: BLE001  clients wait for this; it ends, whatever goes wrong
            self._log.failure("who else is there cannot be told; answers go out without it")
            over = True
        if not over:
            self.clock.callLater(WARM_UP_LOOK_S, self._look)
            return
        self._looking = False
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)
