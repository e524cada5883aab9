"""Contacts of one cluster: the addresses that are known, and which to try next (protocol section 6.2).

Entry points are the names of the command line; candidates are names that nodes gave as ``hosts``, and addresses that they gave as those of
servers. A name or address that failed n times in a row is left alone for n seconds.

Short connections to servers that a run has no connection to: whether they can be reached, and what they say of the paths.

All names are resolved by :class:`ClusterAddresses`: those of the entry points, and those to which servers lead. A query that is asked once
needs no more; a run, which tries again and waits for nothing, has :class:`Contacts` of them.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, FirstError, fail, gatherResults, maybeDeferred
from twisted.internet.defer import TimeoutError as AnswerTimeout
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.client.servers import address_of
from ciruela.interfaces import Address, BlockGiving, Connection, RequestHandler
from ciruela.model.errors import CiruelaError, LinkLost, RemoteError
from ciruela.model.values import dataclass
from ciruela.proto.messages import GetBlocks, GetPathState, Notification, PathStateData, Request, Response
from ciruela.runtime import Backoff

PROBE_S = 5.0
"""A server that does not let itself be connected to for so long, or does not answer for so long, cannot be reached."""

AGAIN_S = 10.0
"""One address is probed at most so often."""

PROBES_AT_ONCE = 8
"""Probes at the same time."""

AT_ONCE = 16
"""Servers that a query asks, and names that it resolves, at the same time: enough to hide the slow ones, too few to trouble anybody."""

RESOLVE_TIMEOUT_S = 30.0
"""A name server that takes longer is as good as none."""

MOST_PROBED = 2000
"""Addresses that one run probes (threats A29)."""


Resolve = Callable[[str], Deferred[list[Address]]]
"""All addresses of a host, ``host:port`` or ``[IPv6]:port``."""


class ClosableLink(Connection, Protocol):
    """A link of ours, which we may end."""

    def close(self, reason: str = "closed by us") -> None:
        """Close the connection."""


Connect = Callable[[Address, RequestHandler], Deferred[Any]]
"""Connects to an address; fires with a :class:`ClosableLink`."""


@dataclass(frozen=True, slots=True)
class RunContext:
    """Context of a run: its ports."""

    clock: IReactorTime
    rng: random.Random
    connect: Connect
    resolve: Resolve


class OnlyAsks:
    """Request handler of a connection on which only questions are asked."""

    def requested(self, link: Connection, request: Request) -> Deferred[Response]:  # noqa: ARG002
        """Refuse: nothing is served."""
        return fail(RemoteError("this client only asks"))

    def giving(self, link: Connection, request: GetBlocks) -> Deferred[BlockGiving]:  # noqa: ARG002
        """Refuse: nothing is served."""
        return fail(RemoteError("this client only asks"))

    def notified(self, link: Connection, notification: Notification) -> None:
        """Nothing that is told here is of use."""

    def answered(self, link: Connection, request: Request, given: bool) -> None:
        """Nothing is answered."""

    def lost(self, link: Connection) -> None:
        """A question fails with it."""


class ServerProbes:
    """``said`` gets what a server answers for one path, ``changed`` is called after each probe. ``unreached`` failed the last time."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        connect: Callable[[Address, RequestHandler], Deferred[Any]],
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
        self._turns = DeferredSemaphore(PROBES_AT_ONCE)
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
        """Tells whether the first probe of ``address`` has not ended yet."""
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


MAX_CANDIDATES = 1000
"""Names from ``hosts`` that one cluster may bring up (threats A29)."""


def nameable(text: str) -> bool:
    """Tells whether a name that a server gave may be resolved, and shown."""
    return bool(text) and text.isprintable()  # guard: A27 A29, without 2


def reachable_from(entries: Iterable[Address], address: Address) -> bool:
    """Tells whether a candidate may be contacted: a server must not make us call this host's own networks (threats A29).

    Link-local, multicast and unspecified addresses never; loopback only when an entry point is loopback too.
    """
    ip = ipaddress.ip_address(address.host.partition("%")[0])
    if ip.is_link_local or ip.is_multicast or ip.is_unspecified:  # guard: A29 A37 F24 F54
        return False
    # guard: A29 F24 F54, -> True
    return not ip.is_loopback or any(ipaddress.ip_address(entry.host.partition("%")[0]).is_loopback for entry in entries)


T = TypeVar("T")
N = TypeVar("N")


async def each(items: Sequence[N], ask: Callable[[N], Awaitable[T]]) -> list[T]:
    """Asks for each of ``items``, some at a time. Gives the answers, in their order; raises what the first raises that fails."""
    turns = DeferredSemaphore(AT_ONCE)

    async def one(item: N) -> T:
        return await ask(item)

    def begin(item: N) -> Deferred[T]:
        return Deferred.fromCoroutine(one(item))

    try:
        return await gatherResults([turns.run(begin, item) for item in items], consumeErrors=True)
    except FirstError as error:
        error.subFailure.raiseException()


class ClusterAddresses:
    """Resolves the entry points of one cluster, and the names and addresses that its servers give of each other.

    ``known`` are the addresses of the entry points, with what each is called: the name if that has one address, else the address.
    ``problems`` says of entry points why they have none; ``resolved`` are those that have some, and stay so.
    """

    def __init__(self, names: Sequence[str], resolve: Resolve, clock: IReactorTime, patience_s: float = RESOLVE_TIMEOUT_S) -> None:
        """``patience_s``: time that one name may take."""
        self.names = tuple(names)
        self._patience_s = patience_s
        self.known: dict[Address, str] = {}
        self.problems: dict[str, str] = {}
        self._resolve = resolve
        self._clock = clock
        self.resolved: dict[str, tuple[Address, ...]] = {}

    async def of(self, name: str) -> list[Address]:
        """Resolves an entry point. Gives no address, and notes a problem, where it has none that can be known."""
        try:
            return await self.entry(name)
        except CiruelaError as error:
            self.problems[name] = str(error)
            return []

    async def entry(self, name: str) -> list[Address]:
        """Resolves an entry point. Raises CiruelaError where it has no address that can be known."""
        if name not in self.resolved:
            self.resolved[name] = tuple(dict.fromkeys(await self._look_up(name)))
            self.problems.pop(name, None)
            self._call_them()
        return list(self.resolved[name])

    def _call_them(self) -> None:
        """Name all addresses anew, so that what they are called, and their order, is that of the names, whichever was resolved first."""
        self.known.clear()
        for name in self.names:
            addresses = self.resolved.get(name, ())
            for address in addresses:
                self.known.setdefault(address, name if len(addresses) == 1 else str(address))

    async def entries(self) -> Mapping[str, list[Address]]:
        """Resolves all entry points, some at a time. Gives those that have addresses."""
        given = await each(self.names, self.of)
        return {name: found for name, found in zip(self.names, given, strict=True) if found}

    def unresolved(self) -> dict[str, str]:
        """Gives the entry points that have no address, each with why, in their order."""
        return {name: self.problems[name] for name in self.names if name in self.problems and name not in self.resolved}

    async def led_to(self, name: str) -> list[Address]:
        """Resolves a name that a server gave. Gives the addresses that may be contacted; raises CiruelaError."""
        # guard: A29 F24, -> await self._look_up(name); A29, if self.allowed(address) ->
        return [address for address in await self._look_up(name) if self.allowed(address)]

    def allowed(self, address: Address) -> bool:
        """Tells whether an address to which a server leads may be contacted (threats A29)."""
        return reachable_from(self.known, address)

    def label(self, address: Address) -> str:
        """The name of an entry point if that has one address, else the address."""
        return self.known.get(address, str(address))

    async def _look_up(self, name: str) -> list[Address]:
        try:
            found: list[Address] = await maybeDeferred(self._resolve, name).addTimeout(self._patience_s, self._clock)
        except AnswerTimeout:
            raise LinkLost(f"the name {name} was not resolved within {self._patience_s:.0f} s") from None
        if not found:
            raise LinkLost(f"the name {name} has no addresses")
        return found


class Contacts:
    """The addresses of one cluster. ``changed`` is called whenever there may be something new to try, ``problem`` with a sentence."""

    def __init__(
        self,
        names: Sequence[str],
        clock: IReactorTime,
        rng: random.Random,
        resolve: Resolve,
        changed: Callable[[], None],
        problem: Callable[[str], None],
    ) -> None:
        self._names = tuple(names)
        self._rng = rng
        self._places = ClusterAddresses(names, resolve, clock)
        self._changed = changed
        self._problem = problem
        self._candidates: dict[str, Address | None] = {}
        self._tried: set[str] = set()
        self._under_way: dict[str, Deferred[list[Address]]] = {}
        self._unreached: set[Address] = set()
        self._blocked_names: Backoff[str] = Backoff(clock)
        self._blocked: Backoff[Address] = Backoff(clock)
        self._stopped = False

    # -- names --------------------------------------------------------------------------------------------------------------------

    def look_up(self, slots: int) -> None:
        """Begin to resolve entry points that have no address yet, and up to ``slots`` candidates."""
        for name in self._names:
            if name not in self._places.resolved:
                self._begin(name)
        open_names = [name for name, address in self._candidates.items() if address is None and self._may_begin(name)]
        for name in self._rng.sample(open_names, max(0, min(slots - len(self._under_way), len(open_names)))):
            self._begin(name)

    def heard(self, hosts: Iterable[str]) -> None:
        """Names from the ``hosts`` of an answer."""
        for name in hosts:
            if len(self._candidates) >= MAX_CANDIDATES:  # guard: A29 F24 F54
                return
            if nameable(name) and name not in self._names:
                self._candidates.setdefault(name, None)

    def allowed(self, text: str) -> Address | None:
        """The address that a node gave as ``text``; None where it is none, or none that may be contacted."""
        address = address_of(text)
        return address if address is not None and self._places.allowed(address) else None  # guard: A29, -> address

    def served(self, texts: Iterable[str]) -> None:
        """Addresses of servers that take the directory, as nodes gave them."""
        for text in texts:
            known = text in self._candidates or len(self._candidates) >= MAX_CANDIDATES
            if not known and (address := self.allowed(text)) is not None:
                self._candidates[text] = address
                self._tried.add(text)

    def _may_begin(self, name: str) -> bool:
        return not self._stopped and name not in self._under_way and not self._blocked_names.blocked(name)

    def _begin(self, name: str) -> None:
        if not self._may_begin(name):
            return
        waiting = self._under_way[name] = Deferred.fromCoroutine(self._look_up(name))
        waiting.addCallbacks(self._resolved, self._unresolved, callbackArgs=(name,), errbackArgs=(name,))

    async def _look_up(self, name: str) -> list[Address]:
        return await (self._places.entry(name) if name in self._names else self._places.led_to(name))

    def _resolved(self, addresses: list[Address], name: str) -> None:
        self._under_way.pop(name, None)
        self._tried.add(name)
        if not addresses:
            self._blocked_names.failed(name)
        else:
            self._blocked_names.succeeded(name)
            if name not in self._names:
                self._candidates[name] = self._rng.choice(addresses)
        self._changed()

    def _unresolved(self, failure: Failure, name: str) -> None:
        self._under_way.pop(name, None)
        if failure.check(CancelledError):
            return
        self._tried.add(name)
        self._blocked_names.failed(name)
        self._problem(f"{name}: {failure.getErrorMessage()}; trying again")
        self._changed()

    # -- addresses ----------------------------------------------------------------------------------------------------------------

    def pick(self, slots: int, skip: Callable[[Address], bool]) -> list[Address]:
        """Up to ``slots`` addresses to connect to now: random candidates first, then random addresses of the entry points."""
        chosen: list[Address] = []
        candidates = {address for address in self._candidates.values() if address is not None}
        for group in (candidates, self._places.known.keys() - candidates):
            usable = sorted((address for address in group if not skip(address) and not self._blocked.blocked(address)), key=str)
            chosen += self._rng.sample(usable, min(slots - len(chosen), len(usable)))
        return chosen

    def failed(self, address: Address) -> None:
        """A connection to ``address`` was not made, or ended."""
        self._blocked.failed(address)
        self._unreached.add(address)

    def connected(self, address: Address) -> None:
        """A connection to ``address`` was made. Only an answer ends the pauses: a server may hang up right away."""
        self._unreached.discard(address)

    def succeeded(self, address: Address) -> None:
        """``address`` answered a request."""
        self._blocked.succeeded(address)

    def label(self, address: Address) -> str:
        """Gives the label of ``address`` on the screen: the name that led to it alone, or its number."""
        for name, candidate in self._candidates.items():
            if candidate == address and name != str(address):
                return name
        return self._places.label(address)

    @property
    def resolving(self) -> bool:
        """Tells whether the resolution of an entry point has not ended yet, with or without success."""
        return not self._tried.issuperset(self._names)

    def exhausted(self, refused: Callable[[Address], bool]) -> bool:
        """Tells whether every name was tried, and every address refused or could not be reached."""
        if not self._tried.issuperset((*self._names, *self._candidates)):
            return False
        known = (*self._places.known, *(address for address in self._candidates.values() if address is not None))
        return all(refused(address) or address in self._unreached for address in known)

    def stop(self) -> None:
        """Forget what is being resolved."""
        self._stopped = True
        for waiting in list(self._under_way.values()):
            waiting.cancel()
