"""The second way to hear: bodies of gossip over connections, in both directions (after memberlist's push/pull).

Each half minute with a random peer; at once, and then every few seconds, with peers that one side does not hear by UDP; and with news for
those. What is exchanged is written, read and admitted as datagrams are; only who speaks is certain.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.interfaces import Address, Connector
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.model.values import dataclass
from ciruela.proto.messages import PushPull, PushPullData, Response, unknown_request
from ciruela.runtime import Backoff, within

RANDOM_S = 30.0
"""Interval of exchanges with a random peer, as in memberlist: whatever datagrams lost, everybody has it some time later."""

AGAIN_S = 5.0
"""Interval of exchanges with a peer that is not heard by UDP, or does not hear us."""

NEWS_S = 1.0
"""Least time between two exchanges with one peer: news of that time goes together."""

MOST_UNDER_WAY = 8
MOST_FIRST = 8
"""Peers that a starting node speaks to at once; they tell of all others."""

ANSWER_S = 10.0
UNABLE_S = 600.0
"""A peer that does not know push and pull (an older version) is left alone for so long, or until it starts anew."""

BACKOFF_STEP_S = 2.0


@dataclass(slots=True)
class _ExchangeState:
    """One address. ``deaf``: it said that it does not hear our datagrams."""

    since_s: float = float("-inf")
    wanted: bool = False
    deaf: bool = False
    deaf_since_s: float = 0.0
    unable_until_s: float = float("-inf")
    under_way: Deferred[None] | None = None


class Exchanges:
    """Schedule of exchanges over connections. ``speak`` makes the request for an address, ``heard`` takes in the answer to it."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        rng: random.Random,
        wire: Connector,
        speak: Callable[[Address], PushPull],
        heard: Callable[[Address, PushPullData], None],
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._wire = wire
        self._speak = speak
        self._heard = heard
        self._at: dict[Address, _ExchangeState] = {}
        self._backoff: Backoff[Address] = Backoff(clock, BACKOFF_STEP_S)
        self._flying = 0
        self._stopped = self._starting = False
        self.done = self.failed = 0

    def configured(self, addresses: Collection[Address]) -> list[Address]:
        """These are the others now; those that are new. An exchange with one that is gone is given up."""
        there = dict.fromkeys(addresses)
        new = [address for address in there if address not in self._at]
        for address in [address for address in self._at if address not in there]:
            standing = self._at.pop(address)
            if standing.under_way is not None:
                standing.under_way.cancel()
        self._at.update((address, _ExchangeState()) for address in new)
        return new

    def begin(self, addresses: Collection[Address]) -> None:
        """Speak to these at once; to a few of them, if they are many."""
        chosen = list(addresses)
        for address in self._rng.sample(chosen, min(MOST_FIRST, len(chosen))):
            self.want(address)

    def at_random(self) -> None:
        """Speak to one of them."""
        able = [address for address in self._at if self._able(address)]
        if able:
            self.want(self._rng.choice(able))

    def want(self, address: Address) -> None:
        """There is something to exchange with ``address``: at once, unless that was done just now."""
        standing = self._at.get(address)
        if standing is not None and not self._stopped:
            standing.wanted = True
            self._try(address, standing)

    def beat(self, needing: Collection[Address]) -> None:
        """Once a second: what waits, and the peers that need it (not heard by UDP, or deaf) when it was not done lately."""
        now_s = self._clock.seconds()
        for address in needing:
            due = self._at.get(address)
            if due is not None and now_s - due.since_s >= AGAIN_S:
                due.wanted = True
        self._go_on()

    def deaf(self) -> list[Address]:
        """The peers that said that they do not hear our datagrams."""
        return [address for address, standing in self._at.items() if standing.deaf]

    def told(self, address: Address, *, deaf: bool) -> bool:
        """Notes whether ``address`` hears our datagrams, by its own word. True when that changed."""
        standing = self._at.get(address)
        if standing is None or standing.deaf == deaf:
            return False
        standing.deaf = deaf
        standing.deaf_since_s = self._clock.seconds()
        return True

    def deaf_for_s(self, address: Address) -> float:
        """For how long ``address`` has been saying that it does not hear our datagrams; 0 when it does not say so."""
        standing = self._at.get(address)
        return 0.0 if standing is None or not standing.deaf else self._clock.seconds() - standing.deaf_since_s

    def answered(self, address: Address) -> None:
        """``address`` makes an exchange itself; the answer has everything that there is to say."""
        standing = self._at.get(address)
        if standing is not None:
            standing.wanted = False
            standing.since_s = self._clock.seconds()

    def alive(self, address: Address, *, anew: bool = False) -> None:
        """A sign of life from there: it is worth another try. ``anew``: it may know now what it did not know before."""
        standing = self._at.get(address)
        if standing is not None and anew:
            standing.unable_until_s = float("-inf")
        self._backoff.succeeded(address)
        self._wire.alive(address)

    def stop(self) -> None:
        """End."""
        self._stopped = True
        for standing in tuple(self._at.values()):
            if standing.under_way is not None:
                standing.under_way.cancel()

    # -- one exchange -----------------------------------------------------------------------------------------------------------------

    def _able(self, address: Address) -> bool:
        return self._clock.seconds() >= self._at[address].unable_until_s and not self._backoff.blocked(address)

    def _try(self, address: Address, standing: _ExchangeState) -> None:
        now_s = self._clock.seconds()
        if standing.under_way is not None or now_s - standing.since_s < NEWS_S or self._flying >= MOST_UNDER_WAY or not self._able(address):
            return
        standing.wanted = False
        standing.since_s = now_s
        self._flying += 1
        answer = within(self._wire.ask(address, self._speak(address)), ANSWER_S, self._clock)
        done = standing.under_way = answer.addCallbacks(
            self._answered, self._unanswered, callbackArgs=(address,), errbackArgs=(address, standing)
        )
        done.addErrback(self._failed, address).addBoth(self._landed, standing)

    def _answered(self, response: Response, address: Address) -> None:
        if isinstance(response, PushPullData):
            self.done += 1
            self._backoff.succeeded(address)
            self._heard(address, response)

    def _unanswered(self, failure: Failure, address: Address, standing: _ExchangeState) -> None:
        if failure.check(CancelledError):
            return
        failure.trap(LinkLost, RemoteError)
        self.failed += 1
        if failure.check(RemoteError) and (not self._wire.bulk(address) or unknown_request(failure.getErrorMessage())):
            standing.unable_until_s = self._clock.seconds() + UNABLE_S
            standing.deaf = False
        else:
            self._backoff.failed(address)

    def _failed(self, failure: Failure, address: Address) -> None:
        self._log.failure("facts from {address} could not be dealt with", failure, address=str(address))

    def _landed(self, _: object, standing: _ExchangeState) -> None:
        standing.under_way = None
        self._flying -= 1
        self._go_on()

    def _go_on(self) -> None:
        """Start what waits. A failure that comes at once must not lead here again, or many would end the stack."""
        if self._starting or self._stopped:
            return
        self._starting = True
        try:
            for address, standing in tuple(self._at.items()):
                if standing.wanted and self._flying < MOST_UNDER_WAY:
                    self._try(address, standing)
        finally:
            self._starting = False
