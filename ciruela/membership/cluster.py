"""Memory of all that other nodes said: packets go in, effects come out, questions are answered. No I/O.

Every answer that names an address names a configured one (threats A32, A37).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

from ciruela.interfaces import Address, NowMs
from ciruela.membership.members import Members, PacketRefusal, PeerStatus
from ciruela.membership.packets import (
    Ack,
    BaseHash,
    Complete,
    Deleted,
    DownloadFact,
    Hooked,
    Item,
    MemberFact,
    Packet,
    RemovedFact,
    WatchFact,
)
from ciruela.membership.servers import Stranger, Strangers, servers
from ciruela.membership.softstate import HeardResults, HeardStances, HeardWatches, Stance
from ciruela.model.bitfield import FULL
from ciruela.model.ids import ImageId, MachineId, Server, SharedId
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath

# -- effects: what hearing a packet asks of this node -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PacketRefused:
    """The packet was not listened to."""

    reason: PacketRefusal


@dataclass(frozen=True, slots=True)
class Dropped:
    """One item of a packet was not listened to."""

    reason: PacketRefusal


@dataclass(frozen=True, slots=True)
class Doubtful:
    """Only a connection can tell who is at ``address``."""

    address: Address


@dataclass(frozen=True, slots=True)
class Double:
    """Two nodes speak with one machine id: an operator has to act. ``other`` may be ``address`` when the id is our own."""

    machine: MachineId
    address: Address
    other: Address


@dataclass(frozen=True, slots=True)
class NewPeer:
    """A machine spoke for the first time, or for the first time since it started anew."""

    address: Address
    machine: MachineId


@dataclass(frozen=True, slots=True)
class BaseHeard:
    """The node at ``address`` has ``hash`` for ``base``; whoever has another should compare."""

    base: VPath
    hash: bytes
    address: Address


@dataclass(frozen=True, slots=True)
class Completed:
    """``machine`` says that it has ``image`` at ``vpath``. ``news``: it was not known yet. ``proved``: said over a connection."""

    vpath: VPath
    image: ImageId
    machine: MachineId
    hostname: str
    address: Address
    news: bool
    due: int = 0
    proved: bool = False


@dataclass(frozen=True, slots=True)
class HookHeard:
    """A hook of ``machine`` has ended; it was not known yet."""

    hooked: Hooked
    machine: MachineId
    hostname: str


@dataclass(frozen=True, slots=True)
class RemovedHeard:
    """``machine`` says that it has removed an image, as somebody signed. ``news`` and ``proved`` as above."""

    item: RemovedFact
    machine: MachineId
    hostname: str
    address: Address
    news: bool
    proved: bool = False


@dataclass(frozen=True, slots=True)
class Acked:
    """``machine`` need not be told again that this node has ``image`` at ``vpath``."""

    vpath: VPath
    image: ImageId
    machine: MachineId


@dataclass(frozen=True, slots=True)
class DownloadHeard:
    """``machine`` fetches ``image`` for ``vpath``; ``news``: it said so for the first time, or got further."""

    vpath: VPath
    image: ImageId
    machine: MachineId
    news: bool


@dataclass(frozen=True, slots=True)
class WatchHeard:
    """A client of ``machine`` waits for ``vpath``: new, or renewed."""

    vpath: VPath
    machine: MachineId


@dataclass(frozen=True, slots=True)
class MemberHeard:
    """Something newer is known of ``machine``."""

    machine: MachineId
    part: int


Effect = (
    PacketRefused
    | Dropped
    | Doubtful
    | Double
    | NewPeer
    | BaseHeard
    | Completed
    | RemovedHeard
    | Acked
    | DownloadHeard
    | WatchHeard
    | MemberHeard
    | HookHeard
)


class MembershipListener(Protocol):
    """Listener that acts on what was heard. Called on the reactor; must not block."""

    def differs(self, base: VPath, base_hash: bytes, address: Address) -> None:
        """The node at ``address`` has another hash for ``base``, whose key is configured here. Said again and again while it is so."""

    def completed(self, vpath: VPath, image: ImageId, machine: MachineId, hostname: str) -> None:
        """``machine`` has ``image`` at ``vpath``, for which a client here waits: it was asked. May be said more than once."""

    def hooks_due(self, vpath: VPath, image: ImageId, machine: MachineId, hostname: str, bits: int) -> None:
        """``machine`` has hooks for ``image`` (``packets.Complete``). Said before :meth:`completed`."""

    def hooked(self, hooked: Hooked, machine: MachineId, hostname: str) -> None:
        """A hook of ``machine`` has ended, for which a client here waits. May be said more than once."""

    def progressed(self, vpath: VPath) -> None:
        """Some machine has more of an image at ``vpath`` than it had."""

    def removal_heard(self, item: RemovedFact, address: Address) -> None:
        """The node at ``address`` says that it has removed an image, and can show who signed that."""

    def gone(self, item: RemovedFact, machine: MachineId, hostname: str) -> None:
        """``machine`` has removed an image, for which a client here waits: it was asked. May be said more than once."""


@dataclass(frozen=True, slots=True)
class ImageHolder:
    """Node that can give parts of an image, by its own word. ``mask`` is ``model.bitfield.FULL`` for a node that has completed it.

    ``source``: the machine has a client connected that has everything. ``stalled``: the machine itself gets no further.
    """

    address: Address
    machine: MachineId
    mask: int
    has_index: bool
    source: bool
    stalled: bool


class Cluster:
    """The memory of one node. ``me`` and ``epoch`` are its own: a packet with these is an echo, its address our own.

    ``here`` is the text of the address at which this node listens, for whoever has to be told of it.
    """

    def __init__(self, me: MachineId, epoch: int, now_ms: NowMs, here: str = "") -> None:
        self._me = me
        self._now_ms = now_ms
        self._here = here
        self._strangers = Strangers()
        self._now_s = 0.0
        self.roster = Members(me, epoch)
        self._stances = HeardStances()
        self._watches = HeardWatches()
        self._results = HeardResults()

    def configured(self, names: Mapping[Address, str], now_s: float | None = None) -> None:
        """The addresses that may be listened and spoken to, each with its name as written by the operator."""
        self.roster.configured(names, self._now_s if now_s is None else now_s)

    def heard(self, source: Address, packet: Packet, now_s: float, *, connected: bool = False) -> list[Effect]:
        """Take in a packet that came from ``source`` at ``now_s`` (seconds of the node's clock, never going back).

        ``connected``: over a connection with the node that listens at ``source``; else in a datagram, which anybody may have sent.
        """
        self._now_s = now_s
        now_ms = self._now_ms()
        header = packet.header
        admission = self.roster.admit(source, header, now_s, now_ms, connected=connected)
        effects: list[Effect] = [Doubtful(address) for address in admission.doubtful]
        if admission.double is not None:  # guard: A33 F24
            effects.append(Double(header.sender, source, admission.double))
        if admission.refusal is not None:  # guard: A30
            return [*effects, PacketRefused(admission.refusal)]
        if admission.new:
            effects.append(NewPeer(source, header.sender))
        if admission.earlier:
            self._stances.restarted(header.sender)
        order = (header.epoch, header.seq)
        latest_ms = self.roster.latest_ms(source, now_ms)
        # guard: S4, item.stamp <= latest_ms -> True
        items = [item for item in packet.items if connected or not isinstance(item, MemberFact | WatchFact) or item.stamp <= latest_ms]
        effects += [Dropped(PacketRefusal.AHEAD)] * (len(packet.items) - len(items))
        effects += [
            MemberHeard(item.machine, item.part)
            for item in items
            if isinstance(item, MemberFact) and self.roster.member(item, header.sender, source, now_s, now_ms, connected=connected)
        ]
        effects += [effect for item in items if (effect := self._take(item, source, header.sender, order, proved=connected))]
        return effects

    def stranger(self, source: Address, packets: Collection[Packet], now_s: float) -> Stranger | None:
        """Note what somebody told over a connection who says that he listens at ``source``, which is not configured."""
        return self._strangers.spoke(source, packets, now_s)

    def _take(self, item: Item, source: Address, sender: MachineId, order: tuple[int, int], *, proved: bool) -> Effect | None:
        match item:
            case BaseHash():
                return BaseHeard(item.base, item.hash, source)
            case Complete():
                news = self._stances.heard(sender, source, item, order, self._now_s)
                return Completed(item.vpath, item.image, sender, self.hostname(sender), source, news, item.due, proved)
            case DownloadFact():
                return DownloadHeard(item.vpath, item.image, sender, self._stances.heard(sender, source, item, order, self._now_s))
            case RemovedFact():
                news = self._stances.heard(sender, source, item, order, self._now_s)
                return RemovedHeard(item, sender, self.hostname(sender), source, news, proved)
            case Deleted():
                self._stances.heard(sender, source, item, order, self._now_s)
            case WatchFact() if self._may_wait(item.machine) and self._watches.heard(item, source, self._now_s):
                return WatchHeard(item.vpath, item.machine)
            case Hooked() if self._results.heard(sender, source, item, self._now_s):
                return HookHeard(item, sender, self.hostname(sender))
            case Ack():
                return Acked(item.vpath, item.image, sender)
        return None

    def _may_wait(self, machine: MachineId) -> bool:
        """Tells whether others may say that ``machine`` waits: invented machines would fill the memory, and each one be looked after."""
        return machine != self._me and self.roster.known_machine(machine)  # guard: S6, without 2

    def expire(self, now_s: float) -> None:
        """Forget what is too old. To be called every few seconds; the time also counts for the questions below."""
        self._now_s = now_s
        self.roster.expire(now_s)
        self._stances.expire(now_s)
        self._watches.expire(now_s)
        self._results.expire(now_s)
        self._strangers.expire(now_s)

    def recall(self, rows: Mapping[str, Sequence[str]]) -> None:
        """Take in what :meth:`remembered` of the last run said of configured addresses."""
        self.roster.memory.recall(rows)
        self.roster.remember()

    def remembered(self) -> dict[str, list[str]]:
        """Gives what is known of each configured address, to be kept over a restart; see :meth:`MemberCache.rows`."""
        return self.roster.memory.rows(self._now_ms())

    # -- questions ------------------------------------------------------------------------------------------------------------

    def hosts(self, key: str) -> dict[MachineId, str]:
        """The other nodes that take directory ``key``, by the names under which the operator configured them."""
        return {machine: self.roster.name(address) for machine, address in self.roster.takers(key).items()}

    def servers(self, key: str) -> list[Server]:
        """The other servers that take directory ``key``, or of which it is not known whether they do.

        All that are configured, heard or not; then those that speak to this node although they are not, unless their machine is known.
        """
        places = self.roster.places(self._now_s, self._now_ms())
        met = {place.machine for place in places} | {self._me}
        return servers(places, key) + [row for row in self._strangers.rows(key, self._now_s) if row.machine not in met]

    def shared_ids(self) -> list[SharedId]:
        """The machine ids with which several servers speak."""
        return self.roster.shared.all([str(address) for address in self.roster.own()] or [self._here])

    def strangers(self) -> list[tuple[Address, Stranger]]:
        """Servers that speak to this node although no list of peers names them, for the status page."""
        return self._strangers.all()

    def taking(self, key: str) -> list[Address]:
        """The addresses of the other nodes that take directory ``key``."""
        return list(self.roster.takers(key).values())

    def holders(self, vpath: VPath, image: ImageId) -> list[ImageHolder]:
        """The other nodes that have, or are getting, ``image`` at ``vpath``."""
        found = []
        for machine, stance in self._stances.of(vpath, image):
            address = self.roster.address_of(machine)
            if address is None:
                continue
            match stance:
                case Complete():
                    found.append(ImageHolder(address, machine, FULL, True, False, False))
                case DownloadFact():
                    found.append(ImageHolder(address, machine, stance.mask or 0, stance.mask is not None, stance.source, stance.stalled))
        return found

    def fetching(self, vpath: VPath, image: ImageId) -> list[Address]:
        """The other nodes that said that they are getting ``image`` for ``vpath``, and not yet that they have it."""
        addresses = [
            self.roster.address_of(machine) for machine, stance in self._stances.of(vpath, image) if isinstance(stance, DownloadFact)
        ]
        return [address for address in addresses if address is not None]

    def aborted_at(self, vpath: VPath, image: ImageId) -> set[MachineId]:
        """The machines that themselves said that they removed ``image`` from ``vpath`` or gave it up."""
        return {machine for machine, stance in self._stances.of(vpath, image) if isinstance(stance, Deleted)}

    def completed(self, vpath: VPath) -> list[Completed]:
        """Lists the images that are known to be complete at ``vpath`` on other nodes."""
        found = []
        for machine, complete in self._stances.of_kind(vpath, Complete):
            address = self.roster.address_of(machine)
            if address is not None:
                found.append(Completed(vpath, complete.image, machine, self.hostname(machine), address, False, complete.due))
        return found

    def removed(self, vpath: VPath) -> list[RemovedHeard]:
        """Lists the removals from ``vpath`` that are known of other nodes."""
        found = []
        for machine, item in self._stances.of_kind(vpath, RemovedFact):
            address = self.roster.address_of(machine)
            if address is not None:
                found.append(RemovedHeard(item, machine, self.hostname(machine), address, False))
        return found

    def hooks(self, vpath: VPath) -> list[HookHeard]:
        """Lists the hooks that are known to have ended on other nodes, for images at ``vpath``."""
        return [HookHeard(hooked, machine, self.hostname(machine)) for machine, hooked in self._results.of(vpath)]

    def watchers(self, vpath: VPath) -> frozenset[MachineId]:
        """The other machines whose clients wait for ``vpath``."""
        return self._watches.of(vpath, self._now_s)

    def waits(self, vpath: VPath, machine: MachineId) -> bool:
        """Tells whether ``machine`` is one of :meth:`watchers`; one look-up, however many there are."""
        return self._watches.waits(vpath, machine, self._now_s)

    def stamped_watchers(self, vpath: VPath) -> frozenset[MachineId]:
        """Those of :meth:`watchers` that datagrams told of: what an answer to GetBaseDir may name.

        What was itself learned by GetBaseDir must not travel that way again, or two nodes would keep a dead watch alive between them.
        """
        return self._watches.stamped(vpath, self._now_s)

    def add_watchers(self, vpath: VPath, machines: Collection[MachineId]) -> None:
        """Machines whose clients wait for ``vpath``, as an answer to GetBaseDir named them."""
        self._watches.add(vpath, [machine for machine in machines if machine != self._me], self._now_s)

    def watch_item(self, vpath: VPath, machine: MachineId) -> WatchFact | None:
        """Gives the fact to pass on of one watch, see :meth:`HeardWatches.item`."""
        return self._watches.item(vpath, machine, self._now_s)

    def hostname(self, machine: MachineId) -> str:
        """The host name of a machine, else the configured name of its address, else its id in hexadecimal digits."""
        return self.roster.hostname(machine) or machine.hex()

    def address_of(self, machine: MachineId) -> Address | None:
        """Gives the address at which ``machine`` is reached; None when that is not known."""
        return self.roster.address_of(machine)

    def stances(self) -> Iterator[tuple[MachineId, Stance]]:
        """Iterates over what each machine said it does, for the status page."""
        return ((machine, said.stance) for _, machine, images in self._stances.all() for said in images.values())

    def watches(self) -> Iterator[tuple[VPath, MachineId]]:
        """Iterates over the paths for which clients of other machines wait, with these machines, for the status page."""
        return ((vpath, machine) for vpath, machine, _ in self._watches.all())

    def clocks_ms(self) -> list[int]:
        """Gives the times of the wall clocks of other nodes now, by their own word, in milliseconds."""
        return self.roster.clocks_ms(self._now_s)

    def peers(self) -> list[PeerStatus]:
        """All configured addresses and who is there, for the status page."""
        return self.roster.peers(self._now_s)
