"""The entry points of one cluster: connected to before anything is decided, and handed over to the run that uploads.

Silence decides nothing here. Who answers late is not waited for, and who does not answer is neither of the reference nor of us.
"""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from dataclasses import field
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredLock, FirstError, gatherResults, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import deferLater

from ciruela.client.contacts import ClosableLink, ClusterAddresses, OnlyAsks, RunContext
from ciruela.client.options.sync import CONNECTIONS
from ciruela.interfaces import Address, BlockGiving, Connection, RequestHandler
from ciruela.model.errors import CiruelaError, LinkLost
from ciruela.model.values import dataclass
from ciruela.proto.messages import GetBlocks, Notification, Request, Response

PATIENCE_S = 2.0
"""Time for which the others are waited for once one has answered."""

RETRY_S = 1.0
"""Pause before entry points that could not be reached are tried again."""


async def together(stories: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all at the same time. Raises what the first of them raises, as it is, or CancelledError; then the others end, too."""
    jobs: list[Deferred[None]] = [Deferred.fromCoroutine(one) for one in stories]
    try:
        await gatherResults(jobs, consumeErrors=True)
    except FirstError as error:
        for job in jobs:
            job.cancel()
        error.subFailure.raiseException()


class AnswerWindow:
    """Waits for several stories, but no longer than :data:`PATIENCE_S` after the first answer, and in no case longer than ``most_s``."""

    def __init__(self, clock: IReactorTime, most_s: float | None = None) -> None:
        self._clock = clock
        self._over = self._ended = False
        self._jobs: list[Deferred[None]] = []
        self._timer: IDelayedCall | None = None
        if most_s is not None:
            self._within(most_s)

    def answered(self) -> None:
        """The first answer is here: the others have only so long."""
        self._within(PATIENCE_S)

    def _within(self, seconds: float) -> None:
        if self._over:
            return
        if self._timer is None:
            self._timer = self._clock.callLater(seconds, self._end)
        elif self._timer.active() and self._timer.getTime() > self._clock.seconds() + seconds:
            self._timer.reset(seconds)

    async def wait(self, stories: Sequence[Coroutine[Any, Any, None]]) -> None:
        """Run all. Raises what the first of them raises. What is not done in time is cancelled without a word."""
        self._jobs = [Deferred.fromCoroutine(self._excused(one)) for one in stories]
        try:
            await gatherResults(self._jobs, consumeErrors=True)
        except FirstError as error:
            self._end()
            error.subFailure.raiseException()
        finally:
            self._over = True
            if self._timer is not None and self._timer.active():
                self._timer.cancel()

    async def _excused(self, story: Coroutine[Any, Any, None]) -> None:
        try:
            await story
        except CancelledError:
            if not self._ended:
                raise

    def _end(self) -> None:
        self._ended = True
        for job in self._jobs:
            job.cancel()


@dataclass(eq=False, slots=True)
class EntryConnection:
    """Request handler of a connection on which nothing is served until it is handed over to a ``guest``."""

    guest: RequestHandler = field(default_factory=OnlyAsks)
    open: bool = True

    def requested(self, link: Connection, request: Request) -> Deferred[Response]:
        """Ask the guest."""
        return self.guest.requested(link, request)

    def giving(self, link: Connection, request: GetBlocks) -> Deferred[BlockGiving]:
        """Ask the guest."""
        return self.guest.giving(link, request)

    def notified(self, link: Connection, notification: Notification) -> bool | None:
        """Tell the guest."""
        return self.guest.notified(link, notification)

    def answered(self, link: Connection, request: Request, given: bool) -> None:
        """Tell the guest."""
        self.guest.answered(link, request, given)

    def lost(self, link: Connection) -> None:
        """The connection ended."""
        self.open = False
        self.guest.lost(link)


class Entrance:
    """Connections to the entry points of one cluster: to every address that is named, and to some of a name that has many.

    ``addresses`` are all that the names have, with what they are called. ``reached`` are those that answered, with whether they are of
    ``ciruela.v2``; a connection may be lost since. ``problems`` says of names and addresses why they were not reached.
    """

    def __init__(self, names: Sequence[str], world: RunContext, timeout_s: float, most: int = CONNECTIONS) -> None:
        """``timeout_s``: how long the first answer is waited for; ``most``: addresses of one name that are tried at a time."""
        self.places = ClusterAddresses(names, world.resolve, world.clock)
        self.names = self.places.names
        self.addresses = self.places.known
        self.reached: dict[Address, bool] = {}
        self.problems = self.places.problems
        self._world = world
        self.timeout_s = timeout_s
        self._most = most
        self._failed: set[Address] = set()
        self._closed = False
        self._turns: dict[Address, DeferredLock] = {}
        self._doors: dict[Address, tuple[EntryConnection, ClosableLink]] = {}

    # -- reaching -----------------------------------------------------------------------------------------------------------------

    async def reach(self, *, once: bool = False) -> None:
        """Connect until somebody answers: see :attr:`reached`. Gives up after ``timeout_s``, or with ``once`` after one attempt."""
        clock = self._world.clock
        until_s = clock.seconds() + self.timeout_s
        while True:
            patience = AnswerWindow(clock, until_s - clock.seconds())
            await patience.wait([self._named(name, patience) for name in self.names])
            if self.reached or once or clock.seconds() + RETRY_S >= until_s:
                return
            await deferLater(clock, RETRY_S)

    async def _named(self, name: str, patience: AnswerWindow) -> None:
        addresses = await self.places.of(name)
        fresh = [address for address in addresses if address not in self._failed]
        pool = fresh or addresses
        chosen = self._world.rng.sample(pool, min(self._most, len(pool)))
        await together([self._knock(address, patience) for address in chosen])

    async def _knock(self, address: Address, patience: AnswerWindow) -> None:
        try:
            await self.open(address)
        except CiruelaError:
            return
        patience.answered()

    async def open(self, address: Address) -> ClosableLink:
        """The one connection to a server, made anew if need be. Raises CiruelaError when it cannot be made."""
        turn = self._turns.setdefault(address, DeferredLock())
        await turn.acquire()
        try:
            return await self._opened(address)
        finally:
            turn.release()

    async def _opened(self, address: Address) -> ClosableLink:
        door, link = self._doors.get(address, (None, None))
        if door is not None and link is not None and door.open:
            return link
        door = EntryConnection()
        label = self.label(address)
        try:
            made: ClosableLink = await self._world.connect(address, door)
        except CiruelaError as error:
            self._failed.add(address)
            self.problems[label] = str(error)
            raise
        if self._closed:
            made.close()
            raise LinkLost("the command is over")
        self._failed.discard(address)
        self.problems.pop(label, None)
        self._doors[address] = door, made
        self.reached[address] = made.bulk
        return made

    def label(self, address: Address) -> str:
        """Gives the label of an entry point: by its name if that has one address, else by its number."""
        return self.places.label(address)

    def why(self) -> str:
        """The reasons why nobody was reached, for people."""
        texts = [text if name in text else f"{name}: {text}" for name, text in self.problems.items()]
        return "; ".join(dict.fromkeys(texts)) or "nobody answered"

    # -- handing over -------------------------------------------------------------------------------------------------------------

    def connect(self, address: Address, counterpart: RequestHandler) -> Deferred[ClosableLink]:
        """As ``RunContext.connect``: gives away the connection that is open, else makes one."""
        door, link = self._doors.pop(address, (None, None))
        if door is None or link is None or not door.open:
            return self._world.connect(address, counterpart)
        door.guest = counterpart
        return succeed(link)

    def resolve(self, name: str) -> Deferred[list[Address]]:
        """As ``RunContext.resolve``, also for what :meth:`label` gives."""
        for address, label in self.addresses.items():
            if label == name:
                return succeed([address])
        return self._world.resolve(name)

    def close(self) -> None:
        """End the connections that nobody took."""
        self._closed = True
        doors, self._doors = self._doors, {}
        for door, link in doors.values():
            if door.open:
                link.close()
