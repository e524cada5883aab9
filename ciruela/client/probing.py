"""Short connections to servers that a run has no connection to: whether they can be reached, and what they say of the paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, fail
from twisted.internet.defer import TimeoutError as AnswerTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.model.errors import CiruelaError, RemoteError
from ciruela.proto.messages import GetPathState, Notification, PathStateData, Request, Response
from ciruela.seams import Address, Counterpart, Link

PROBE_S = 5.0
"""A server that does not let itself be connected to for so long, or does not answer for so long, cannot be reached."""

AGAIN_S = 10.0
"""One address is probed at most so often."""

AT_ONCE = 8
"""Probes at the same time."""

MOST_PROBED = 2000
"""Addresses that one run probes (threats A29)."""


class OnlyAsks:
    """The counterpart of a connection on which only questions are asked."""

    def requested(self, link: Link, request: Request) -> Deferred[Response]:  # noqa: ARG002
        """Refuse: nothing is served."""
        return fail(RemoteError("this client only asks"))

    def notified(self, link: Link, notification: Notification) -> None:
        """Nothing that is told here is of use."""

    def lost(self, link: Link) -> None:
        """A question fails with it."""


class Probes:
    """``said`` gets what a server answers for one path, ``changed`` is called after each probe. ``unreached`` failed the last time."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        connect: Callable[[Address, Counterpart], Deferred[Any]],
        paths: Callable[[], Sequence[str]],
        said: Callable[[Address, str, PathStateData], None],
        changed: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._connect = connect
        self._paths = paths
        self._said = said
        self._changed = changed
        self._asked_s: dict[Address, float] = {}
        self._under_way: dict[Address, Deferred[None]] = {}
        self._turns = DeferredSemaphore(AT_ONCE)
        self._stopped = False
        self.unreached: frozenset[str] = frozenset()
        self.reached: set[Address] = set()

    def probe(self, addresses: Iterable[Address]) -> None:
        """Begin with those that were not probed lately."""
        now_s = self._clock.seconds()
        for address in addresses:
            last_s = self._asked_s.get(address)
            if self._stopped or address in self._under_way or (last_s is not None and now_s < last_s + AGAIN_S):
                continue
            if last_s is None and len(self._asked_s) >= MOST_PROBED:
                continue
            self._asked_s[address] = now_s
            going = self._under_way[address] = self._turns.run(self._begin, address)
            going.addBoth(self._over, address)

    def untried(self, address: Address) -> bool:
        """Whether the first probe of ``address`` has not ended yet."""
        return address in self._under_way if address in self._asked_s else len(self._asked_s) < MOST_PROBED

    def failed(self, address: Address) -> None:
        """A connection to ``address`` was not made."""
        self.unreached |= {str(address)}

    def connected(self, address: Address) -> None:
        """A connection to ``address`` was made."""
        self.reached.add(address)
        self.unreached -= {str(address)}

    def stop(self) -> None:
        """End what is under way."""
        self._stopped = True
        for going in list(self._under_way.values()):
            going.cancel()

    def _begin(self, address: Address) -> Deferred[None]:
        return Deferred.fromCoroutine(self._probe(address))

    async def _probe(self, address: Address) -> None:
        counterpart = OnlyAsks()
        try:
            link = await self._connect(address, counterpart).addTimeout(PROBE_S, self._clock)
        except (CiruelaError, AnswerTimeout):
            self.failed(address)
            return
        self.connected(address)
        try:
            for path in self._paths() if link.bulk else ():
                answer = await link.ask(GetPathState(path, servers=True)).addTimeout(PROBE_S, self._clock)
                if isinstance(answer, PathStateData):
                    self._said(address, path, answer)
        except RemoteError:
            return  # an older node of ours: it is there, and does not tell
        except (CiruelaError, AnswerTimeout):
            self.failed(address)
        finally:
            link.close()

    def _over(self, result: Failure | None, address: Address) -> None:
        self._under_way.pop(address, None)
        if isinstance(result, Failure) and not result.check(CancelledError):
            self._log.failure("the probe of {address} went wrong", result, address=str(address))
        if not self._stopped:
            self._changed()
