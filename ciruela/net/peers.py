"""The other nodes: the union of what all places say that know them, with addresses (threats A60).

What was known last is remembered on the disk, so that a node that starts while a name server is down still finds the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.interfaces import Address
from ciruela.model.errors import FormatError
from ciruela.net.discovery.source import PeerSource
from ciruela.net.discovery.spec import Means
from ciruela.net.resolve import split_name
from ciruela.runtime import PeriodicTask

LOOK_S = 5.0
"""Interval of looks for names that are due."""

AGAIN_S = 60.0
"""Interval at which a name is resolved again; up to a quarter more or less, so that nodes do not all ask at once (threats A60)."""

AFTER_FAILURE_S = 10.0

Peers = Mapping[Address, str]

Remembered = Mapping[str, Mapping[str, Sequence[str]]]
"""``sources``: what each place said, by its text; ``addresses``: those of each name; ``known``: who was met there (``MetPeers``)."""

KEEP_S = 300.0
"""Interval of writing down when each peer was heard last; other changes are written at once."""


class PeerListCache(Protocol):
    """Store of the last good lists."""

    def read(self) -> Deferred[Remembered]:
        """Reads what was written last; empty when there is nothing, or it cannot be read."""

    def write(self, remembered: Remembered) -> Deferred[None]:
        """Keep this for the next start. A failure is logged there."""


class MetPeers(Protocol):
    """Whoever knows who was met at the addresses of peers: the gossip of this node. Rows are texts, by the texts of addresses."""

    def recall(self, rows: Mapping[str, Sequence[str]]) -> None:
        """Take in the rows of the last run."""

    def remembered(self) -> Mapping[str, Sequence[str]]:
        """The rows of now. The fourth text of a row changes all the time: when the peer was heard last."""


class NoMemory:
    """Remembers nothing."""

    def read(self) -> Deferred[Remembered]:
        """Nothing."""
        return succeed({})

    def write(self, remembered: Remembered) -> Deferred[None]:  # noqa: ARG002
        """Nothing."""
        return succeed(None)


class PeerList:
    """The peers as they are known now. ``on_change`` gets :attr:`peers` whenever it has become different."""

    _log = Logger()

    def __init__(
        self,
        sources: Sequence[PeerSource],
        means: Means,
        on_change: Callable[[Peers], object],
        memory: PeerListCache | None = None,
        met: MetPeers | None = None,
    ) -> None:
        self._sources = list(sources)
        clock = means.clock
        self._means = means
        self._on_change = on_change
        self._memory = memory or NoMemory()
        self._met = met
        self._rows: Mapping[str, Sequence[str]] = {}
        self._rows_s = clock.seconds()
        self._recalled = False
        self._lines: dict[str, PeerSource] = {}
        self._known: dict[str, list[Address]] = {}
        self._cached: dict[str, list[Address]] = {}
        self._due: dict[str, float] = {}
        self._told: dict[str, str] = {}
        self._asking: set[str] = set()
        self._waiting: list[Deferred[None]] = []
        self._running = False
        self._written: Remembered = {}
        self._writing = False
        self._beat = PeriodicTask(clock, means.rng, LOOK_S, self._refresh, "looking up the names of peers")
        self._peers: dict[Address, str] = {}

    @property
    def unresolved(self) -> int:
        """Counts the nodes that there may be besides those with a known address: cleanup takes them for silent ones.

        One for each name without an address, and one for each place that may know more than it says now. A place that never said anything
        may know as many nodes as all others together, and one more.
        """
        nameless = sum(not self._known.get(text) for text in self._lines)
        blind = any(source.doubtful and source.names is None for source in self._sources)
        return nameless + sum(source.doubtful for source in self._sources) + (len(self._lines) if blind else 0)

    @property
    def peers(self) -> Peers:
        """Address to the name as it was written. A name with several addresses appears several times."""
        return self._peers

    @property
    def sources(self) -> Sequence[PeerSource]:
        """The places, for the status page."""
        return self._sources

    def start(self) -> Deferred[None]:
        """Ask all places and look the names up; fires when all have answered, well or badly. Goes on until :meth:`stop`."""
        self._running = True
        self._beat.start()
        recalled = self._memory.read().addCallback(self._recall).addErrback(self._not_recalled)
        return recalled.addCallback(lambda _: self._begin(self._sources))

    def stop(self) -> None:
        """End."""
        self._running = False
        self._beat.stop()
        for source in self._sources:
            source.stop()

    def replace(self, sources: Sequence[PeerSource]) -> Deferred[None]:
        """Ask these places from now on; those that are the same as before go on with what they know. Fires as :meth:`start`."""
        old = {source.identity: source for source in self._sources}
        new = {source.identity: source for source in sources}
        self._sources = [old.get(identity, source) for identity, source in new.items()]
        for identity in old.keys() - new.keys():
            old[identity].stop()
        if not self._running:
            return succeed(None)
        self._changed()
        return self._begin([source for identity, source in new.items() if identity not in old])

    def _begin(self, sources: Sequence[PeerSource]) -> Deferred[None]:
        if not self._running:
            return succeed(None)
        return gatherResults([source.start(self._changed) for source in sources]).addCallback(lambda _: self._looked_up())

    def _looked_up(self) -> Deferred[None]:
        """Fires when no name is being looked up."""
        if not self._asking:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def _recall(self, remembered: Remembered) -> None:
        self._recalled = True
        if self._met is not None:
            self._met.recall(remembered.get("known", {}))
            self._rows = self._met.remembered()
        said, addresses = remembered.get("sources", {}), remembered.get("addresses", {})
        self._written = remembered
        for source in self._sources:
            source.remember([name for name in said.get(source.text, ()) if _usable(name)])
        for name, texts in addresses.items():
            found = [address for text in texts if (address := _address(text, self._means.default_port)) is not None]
            if found and _usable(name):
                self._cached[name] = found
        self._changed()

    def _not_recalled(self, failure: Failure) -> None:
        self._log.failure("the peers of the last run were not taken in", failure)

    def _changed(self) -> None:
        """A place says something else than before."""
        if not self._running:
            return
        lines: dict[str, PeerSource] = {}
        for source in self._sources:
            for name in source.names or ():
                lines.setdefault(name, source)
        self._lines = lines
        for gone in self._known.keys() - lines.keys():
            del self._known[gone]
        for name in lines:
            if name in self._cached:
                self._known.setdefault(name, self._cached.pop(name))
        self._due = {text: self._due.get(text, 0.0) for text in lines}
        self._publish()
        self._refresh()

    def _refresh(self) -> None:
        now = self._means.clock.seconds()
        for text, due in list(self._due.items()):
            if due <= now and text not in self._asking and self._running:
                self._ask(text)
        if self._met is not None and self._recalled:
            self._look_at(self._met.remembered(), now)

    def _look_at(self, rows: Mapping[str, Sequence[str]], now_s: float) -> None:
        """Write down who was met, when that has changed; and now and then when."""
        if now_s - self._rows_s < KEEP_S and _timeless(rows) == _timeless(self._rows):
            return
        self._rows, self._rows_s = rows, now_s
        self._keep()

    def _ask(self, text: str) -> None:
        self._asking.add(text)
        (
            maybeDeferred(self._means.resolve, text, self._means.default_port)
            .addCallbacks(self._resolved, self._unresolved, callbackArgs=(text,), errbackArgs=(text,))
            .addErrback(self._not_taken, text)
            .addCallback(self._answered)
        )

    def _answered(self, _: object) -> None:
        if not self._asking:
            waiting, self._waiting = self._waiting, []
            for one in waiting:
                one.callback(None)

    def _not_taken(self, failure: Failure, text: str) -> None:
        self._log.failure("the addresses of {peer} were not taken in", failure, peer=text)

    def _resolved(self, addresses: list[Address], text: str) -> None:
        self._asked(text, AGAIN_S)
        self._told.pop(text, None)
        if text in self._lines and self._running:
            self._known[text] = addresses
            self._publish()

    def _unresolved(self, failure: Failure, text: str) -> None:
        self._asked(text, AFTER_FAILURE_S)
        reason = failure.getErrorMessage()
        source = self._lines.get(text)
        if source is not None and self._told.get(text) != reason:
            self._told[text] = reason
            kept = "; its last addresses are kept" if text in self._known else ""
            self._log.warn("{where}: {reason}{kept}", where=source.label(text), reason=reason, kept=kept)

    def _asked(self, text: str, again_s: float) -> None:
        self._asking.discard(text)
        if text in self._due:
            self._due[text] = self._means.clock.seconds() + again_s * self._means.rng.uniform(0.75, 1.25)

    def _publish(self) -> None:
        peers: dict[Address, str] = {}
        for text in self._lines:
            for address in self._known.get(text, ()):
                peers.setdefault(address, text)
        self._keep()
        if peers != self._peers:
            self._peers = peers
            self._on_change(peers)

    # -- what is remembered -----------------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Write down what is known, one write after the other, unless that would lose what nobody has confirmed or replaced yet."""
        said = {source.text: list(source.names) for source in self._sources if source.names and not source.doubtful}
        before = self._written.get("sources", {})
        kept = {source.text: before[source.text] for source in self._sources if source.text in before}
        addresses = {name: [str(address) for address in found] for name, found in self._known.items()}
        waiting = {name: [str(address) for address in found] for name, found in self._cached.items()}
        now: Remembered = {"sources": kept | said, "addresses": (waiting if self._blind() else {}) | addresses, "known": self._rows}
        if self._writing or now == self._written or not self._running:
            return
        self._writing = True
        self._written = now
        self._memory.write(now).addBoth(self._kept)

    def _blind(self) -> bool:
        return any(source.names is None for source in self._sources)

    def _kept(self, _: object) -> None:
        self._writing = False
        self._keep()


def _address(text: str, default_port: int) -> Address | None:
    """The address that ``text`` stands for; None when it stands for none."""
    try:
        return Address.of(*split_name(text, default_port))
    except (FormatError, ValueError):
        return None


def _usable(name: str) -> bool:
    try:
        split_name(name, 1)
    except FormatError:
        return False
    return True


def _timeless(rows: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Rows without the time at which each peer was heard last."""
    return {text: [*row[:3], *row[4:]] for text, row in rows.items()}
