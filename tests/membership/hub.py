"""A network of datagrams in memory, and nodes that do nothing but gossip and copy what others have.

Everything runs on one fake clock and one seeded ``random.Random``: the same seed gives the same run to the last byte.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import blake2b

from twisted.internet.defer import Deferred

from ciruela.interfaces import Address
from ciruela.membership.cluster import Cluster
from ciruela.membership.packets import DownloadFact, Hooked, RemovedFact
from ciruela.membership.service import Gossip
from ciruela.model.errors import LinkLost
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.versions import Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import GetPathState, PathStateData, PushPull, Request, Response
from tests.doubles.clock import HeapClock
from tests.doubles.context import node_context

START_MS = 1_700_000_000_000
PORT = 24783


class Hub:
    """Delivers datagrams after a random delay, unless they are lost, or a partition lies between, or they are of a pair in ``closed``."""

    def __init__(self, clock: HeapClock, rng: random.Random, loss: float = 0.0, doubles: float = 0.0) -> None:
        self.clock = clock
        self.rng = rng
        self.loss = loss
        self.doubles = doubles
        self.inboxes: dict[Address, Callable[[bytes, Address], None]] = {}
        self.islands: dict[Address, int] = {}
        self.closed: set[tuple[Address, Address]] = set()
        self.count = 0
        self.bytes = 0
        self.longest = 0
        self.log = blake2b()
        self.unknown: list[Address] = []

    def socket(self, address: Address) -> Socket:
        """The sending end at ``address``."""
        return Socket(self, address)

    def deliver(self, data: bytes, source: Address, target: Address) -> None:
        """One datagram on its way."""
        self.count += 1
        self.bytes += len(data)
        self.longest = max(self.longest, len(data))
        self.log.update(data)
        if target not in self.inboxes:
            self.unknown.append(target)
            return
        lost = self.islands.get(source, 0) != self.islands.get(target, 0) or (source, target) in self.closed
        if lost or self.rng.random() < self.loss:
            return
        for _ in range(2 if self.rng.random() < self.doubles else 1):
            self.clock.callLater(self.rng.uniform(0.0005, 0.02), self._arrive, data, source, target)

    def _arrive(self, data: bytes, source: Address, target: Address) -> None:
        inbox = self.inboxes.get(target)
        if inbox is not None:
            inbox(data, source)


class Socket:
    """``interfaces.Datagrams`` over a hub."""

    def __init__(self, hub: Hub, address: Address) -> None:
        self.hub = hub
        self.address = address

    def send(self, data: bytes, address: Address) -> None:
        """Send one datagram."""
        self.hub.deliver(data, self.address, address)


class Wire:
    """``interfaces.Connector`` from one node to the others of its world; counts what is asked."""

    def __init__(self, world: World, address: Address) -> None:
        self.world = world
        self.address = address

    def ask(self, address: Address, request: Request) -> Deferred[Response]:
        """The answer of the node there, after a moment."""
        self.world.asked.append((self.address, address, type(request)))
        done: Deferred[Response] = Deferred(lambda _: None)
        self.world.clock.callLater(self.world.rng.uniform(0.02, 0.04), self._answer, done, address, request)
        return done

    def _answer(self, done: Deferred[Response], address: Address, request: Request) -> None:
        hub, node = self.world.hub, self.world.by_address.get(address)
        if done.called:
            return
        if node is None or address not in hub.inboxes or hub.islands.get(address, 0) != hub.islands.get(self.address, 0):
            done.errback(LinkLost(f"no answer from {address}"))
        elif isinstance(request, PushPull):
            done.callback(node.gossip.pushed(self.address.host, request))
        elif isinstance(request, GetPathState):
            there = node.images.get(VPath.parse(request.path))
            done.callback(PathStateData(node.machine, f"node{node.number}", 0, taken=True, committed=there))

    def connected(self, address: Address) -> bool:
        return False

    def bulk(self, address: Address) -> bool:
        return True

    def alive(self, address: Address) -> None:
        """Nothing is left alone here."""


def image_of(number: int) -> ImageId:
    """A made-up image id."""
    return ImageId(blake2b(b"image %d" % number, digest_size=32).digest())


def address_of(number: int) -> Address:
    """Where node ``number`` of a simulated cluster is."""
    return Address(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", PORT)


class Node:
    """A node whose directories are dicts. It copies what a peer with another hash has, after a moment, and counts what it was told."""

    def __init__(self, world: World, number: int, keys: Sequence[str]) -> None:
        self.world = world
        self.number = number
        self.address = address_of(number)
        self.machine = MachineId(b"%016d" % number)
        self.key_list = list(keys)
        self.images: dict[VPath, Version] = {}
        self.waiting: set[VPath] = set()
        self.fetching: list[DownloadFact] = []
        self.removed: list[tuple[VPath, ImageId, int]] = []
        self.removals: dict[VPath, Version] = {}
        self.departures: dict[tuple[VPath, ImageId, MachineId], int] = {}
        self.arrivals: dict[tuple[VPath, ImageId, MachineId], int] = {}
        self.progress: dict[VPath, int] = {}
        self.copying: set[VPath] = set()
        self.boot()

    def boot(self) -> None:
        """Start the gossip of this node, or start it anew."""
        world = self.world
        rng = random.Random(world.rng.getrandbits(64))
        socket = world.hub.socket(self.address)
        wire, here = Wire(world, self.address), Address("0.0.0.0", PORT)
        context = node_context(
            me=self.machine,
            hostname=f"node{self.number}",
            epoch=world.now_ms(),
            datagrams=socket,
            wire=wire,
            clock=world.clock,
            rng=rng,
            now_ms=world.now_ms,
            here=here,
        )
        self.gossip = Gossip(context, Cluster(context.me, context.epoch, context.now_ms, str(here)), self, self)
        world.hub.inboxes[self.address] = self.gossip.received

    def shut(self) -> None:
        """Stop, as a killed process does: nothing is said."""
        self.gossip.stop()
        self.world.hub.inboxes.pop(self.address, None)

    # -- Facts

    def keys(self) -> Sequence[str]:
        return self.key_list

    def base_hashes(self) -> Mapping[VPath, bytes]:
        bases: dict[VPath, list[tuple[VPath, Version]]] = {}
        for vpath, version in sorted(self.images.items()):
            bases.setdefault(vpath.base, []).append((vpath, version))
        return {base: blake2b(repr(entries).encode(), digest_size=32).digest() for base, entries in bases.items()}

    def downloads(self) -> Sequence[DownloadFact]:
        return self.fetching

    def watching(self) -> Collection[VPath]:
        return self.waiting

    def committed(self, vpath: VPath) -> Version | None:
        return self.images.get(vpath)

    def due_bits(self, vpath: VPath) -> int:
        return 0

    def hooks(self) -> Sequence[Hooked]:
        return []

    def deleted(self) -> Sequence[tuple[VPath, ImageId, int]]:
        return self.removed

    def removal(self, vpath: VPath) -> Version | None:
        return self.removals.get(vpath)

    # -- Ears

    def differs(self, base: VPath, base_hash: bytes, address: Address) -> None:
        if base not in self.copying:
            self.copying.add(base)
            self.world.clock.callLater(0.05, self.copy, base, address)

    def hooks_due(self, vpath: VPath, image: ImageId, machine: MachineId, hostname: str, bits: int) -> None:
        pass

    def hooked(self, hooked: Hooked, machine: MachineId, hostname: str) -> None:
        pass

    def completed(self, vpath: VPath, image: ImageId, machine: MachineId, hostname: str) -> None:
        key = (vpath, image, machine)
        self.arrivals[key] = self.arrivals.get(key, 0) + 1

    def removal_heard(self, item: RemovedFact, address: Address) -> None:
        pass

    def gone(self, item: RemovedFact, machine: MachineId, hostname: str) -> None:
        key = (item.vpath, item.image, machine)
        self.departures[key] = self.departures.get(key, 0) + 1

    def progressed(self, vpath: VPath) -> None:
        self.progress[vpath] = self.progress.get(vpath, 0) + 1

    # -- what a node does

    def copy(self, base: VPath, address: Address) -> None:
        """Take over what the peer has and is newer."""
        self.copying.discard(base)
        peer = self.world.by_address[address]
        if address not in self.world.hub.inboxes or self.world.hub.islands.get(address, 0) != self.world.hub.islands.get(self.address, 0):
            return
        for vpath, version in peer.images.items():
            if vpath.base == base and (vpath not in self.images or self.images[vpath] < version):
                self.gossip.cluster.add_watchers(vpath, peer.gossip.cluster.stamped_watchers(vpath))
                self.commit(vpath, version)

    def commit(self, vpath: VPath, version: Version) -> None:
        """An image is there."""
        self.images[vpath] = version
        self.gossip.news_base(vpath.base)
        self.gossip.news_complete(vpath)

    def wait(self, vpath: VPath) -> None:
        """A client begins to wait."""
        self.waiting.add(vpath)
        self.gossip.news_watch(vpath)


class World:
    """A cluster of ``size`` nodes that all take ``keys``, configured with each other's addresses, started within one second."""

    def __init__(self, size: int, seed: int = 1, loss: float = 0.0, doubles: float = 0.0, keys: Sequence[str] = ("app",)) -> None:
        self.clock = HeapClock()
        self.rng = random.Random(seed)
        self.hub = Hub(self.clock, self.rng, loss, doubles)
        self.asked: list[tuple[Address, Address, type[Request]]] = []
        self.nodes = [Node(self, number, keys) for number in range(1, size + 1)]
        self.by_address = {node.address: node for node in self.nodes}
        self.names = {node.address: f"node{node.number}.example" for node in self.nodes}
        for node in self.nodes:
            node.gossip.configured(self.names)

    def now_ms(self) -> int:
        """Wall time."""
        return START_MS + int(self.clock.seconds() * 1000)

    def start(self) -> None:
        """All nodes begin."""
        for node in self.nodes:
            node.gossip.start()

    def restart(self, node: Node) -> None:
        """A node that was shut comes back without any memory of its peers."""
        node.boot()
        node.gossip.configured(self.names)
        node.gossip.start()

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)

    def run_until(self, true: Callable[[], bool], most_s: float) -> float:
        """Let time pass until ``true()``; the seconds that it took. AssertionError after ``most_s``."""
        begin = self.clock.seconds()
        while not true():
            if self.clock.seconds() - begin >= most_s:
                raise AssertionError(f"not so after {most_s} s")
            self.run(0.25)
        return self.clock.seconds() - begin

    def all_members(self) -> bool:
        """Whether each node knows that each other one takes the first key."""
        size = len(self.nodes) - 1
        return all(len(node.gossip.cluster.hosts(node.key_list[0])) == size for node in self.nodes)

    def close(self) -> None:
        """Stop all nodes."""
        for node in self.nodes:
            node.gossip.stop()
