"""A cluster of real nodes over a memory network, memory disks and a fake clock: the same code as in the daemon, repeatable to the byte."""

from __future__ import annotations

import random
from collections.abc import Mapping

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed

from ciruela.cleanup.service import Safeguards
from ciruela.client.source import Shares
from ciruela.daemon.node import Node
from ciruela.hooks.service import Outside
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.emit import emit
from ciruela.index.tree import Directory, File
from ciruela.interfaces import Address, NodeContext
from ciruela.keys.signed import removal_bytes, signed_bytes
from ciruela.model.bitfield import Pieces
from ciruela.model.config import DirConfig
from ciruela.model.errors import RemoteError
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.vpath import VPath
from ciruela.proto.messages import (
    AbortedImage,
    AppendDir,
    BlockData,
    BlockPart,
    BlocksData,
    ExchangePieces,
    GetBlock,
    GetBlocks,
    GetIndex,
    GetShare,
    HookResult,
    IndexData,
    PublishImage,
    ReceivedImage,
    RemovedImage,
    RemoveDir,
    ReplaceDir,
    ShareData,
    UploadAck,
)
from ciruela.runtime import in_place
from ciruela.swarm.exchange import LOOK_S, PieceExchange
from tests.doubles.clock import HeapClock
from tests.doubles.memdisk import MemDisk
from tests.doubles.memnet import OUTSIDE, Hub

START_MS = 1_700_000_000_000
PORT = 24783
KEY = SigningKey(bytes(range(32)))
APP = DirConfig("app", "/srv/app", append_only=False, num_levels=1)
LOGS = DirConfig("logs", "/srv/logs", append_only=True, num_levels=1)


class OneKey:
    """An authority that knows one key."""

    def verified(self, config, vpath, image, entries, statement=signed_bytes):
        good = []
        for entry in entries:
            try:
                KEY.verify_key.verify(statement(str(vpath), image, entry.timestamp_ms), entry.signature)
            except BadSignatureError:
                continue
            good.append(entry)
        return succeed(dict.fromkeys(good, "the key"))


class Image:
    """A tree made of random blocks: its id, its index, and its blocks by hash."""

    def __init__(self, seed: int, sizes: Mapping[str, int]) -> None:
        rng = random.Random(seed)
        self.blocks: dict[bytes, bytes] = {}
        entries = []
        for name, size in sorted(sizes.items(), key=lambda item: item[0].encode()):
            hashes = []
            for start in range(0, size, BLOCK_BYTES):
                data = rng.randbytes(min(BLOCK_BYTES, size - start))
                hashes.append(HashKind.BLAKE2B.hash(data))
                self.blocks[hashes[-1]] = data
            entries.append(File(f"/{name}", False, size, b"".join(hashes)))
        self.id, self.data = emit(HashKind.BLAKE2B, [Directory("/", tuple(entries))])
        self.order = [entry.block_hash(number) for entry in entries for number in range(entry.block_count)]
        self.size = sum(sizes.values())
        self.pieces = Pieces.of_image(len(self.order), self.size)


class Client:
    """A client with an image: publishes, asks, serves, and notes what it hears. It may have ``more`` images for the same connections."""

    def __init__(self, cluster: Cluster, image: Image, *more: Image) -> None:
        self.cluster = cluster
        self.image = image
        self.more = more
        self.links = []
        self.answers: list[tuple[Address, object]] = []
        self.received: set[tuple[ImageId, str, MachineId]] = set()
        self.removed: set[tuple[ImageId, str, MachineId]] = set()
        self.aborted: list[AbortedImage] = []
        self.hooked: list[HookResult] = []
        self.given: list[bytes] = []
        self.serving = True
        self.outside = False
        self.shares = {one.id: Shares(one.pieces, one.size) for one in (image, *more)}
        self.exchanges = {}
        self._looks = False

    def upload(self, path: str, targets, stamp: int | None = None, replace: bool = False, old: ImageId | None = None, content=None) -> None:
        """Connect to the targets, from the first one's side of a partition or from ``outside``, and ask for the upload.

        ``content`` comes with the order.
        """
        stamp = self.cluster.now_ms() if stamp is None else stamp
        signature = KEY.sign(signed_bytes(path, self.image.id, stamp)).signature
        if replace:
            requests = [ReplaceDir(path, self.image.id, old, stamp, (signature,), content)]
        else:
            requests = [AppendDir(path, self.image.id, stamp, (signature,), content)]
        for number, image in enumerate(self.more):
            signature = KEY.sign(signed_bytes(f"{path}-{number}", image.id, stamp)).signature
            requests.append(AppendDir(f"{path}-{number}", image.id, stamp, (signature,)))
        for address in targets:

            def connected(link, address=address):
                self.links.append(link)
                if not self._looks:
                    self._looks = True
                    self._look()
                for request in requests:
                    link.tell(PublishImage(request.image))
                    link.ask(request).addBoth(lambda answer: self.answers.append((address, answer)))

            self.cluster.hub.link(self, address, OUTSIDE if self.outside else targets[0]).addCallback(connected)

    def remove(self, path: str, targets, stamp: int | None = None) -> RemoveDir:
        """Connect to the targets and ask that the image go. Gives what was asked, for whoever wants to say it again."""
        stamp = self.cluster.now_ms() if stamp is None else stamp
        request = RemoveDir(path, self.image.id, stamp, (KEY.sign(removal_bytes(path, self.image.id, stamp)).signature,))
        self.ask(request, targets)
        return request

    def ask(self, request, targets) -> None:
        """Connect to the targets and send a request to each."""
        for address in targets:

            def connected(link, address=address):
                self.links.append(link)
                link.ask(request).addBoth(lambda answer: self.answers.append((address, answer)))

            self.cluster.hub.link(self, address, OUTSIDE if self.outside else targets[0]).addCallback(connected)

    def leave(self) -> None:
        links, self.links = self.links, []
        for link in links:
            link.close()

    def machines(self, path: str) -> set[MachineId]:
        return {machine for image, where, machine in self.received if image == self.image.id and where == path}

    def requested(self, link, request) -> Deferred:
        if not self.serving:
            return Deferred()
        for image in (self.image, *self.more):
            match request:
                case GetShare(image=image.id) if image.id in self.shares:
                    return maybeDeferred(self.shares[image.id].take, link, request.missing).addCallback(ShareData)
                case GetIndex(image=image.id):
                    return succeed(IndexData(image.data))
                case GetBlock() if request.hash in image.blocks:
                    self.given.append(request.hash)
                    return succeed(BlockData(image.blocks[request.hash]))
                case GetBlocks(image=image.id):
                    self.given.extend(image.order[number] for number in request.numbers)
                    groups = image.pieces.groups(request.numbers)
                    return succeed(
                        BlocksData(tuple(BlockPart(b"".join(image.blocks[image.order[one]] for one in group)) for group in groups))
                    )
        return fail(RemoteError("not here"))

    def answered(self, link, request, given) -> None:
        exchange = self.exchanges.get((getattr(request, "image", None), getattr(request, "path", None)))
        if isinstance(request, GetBlocks) and exchange is not None and link in exchange.neighbors:
            image = next(image for image in (self.image, *self.more) if image.id == request.image)

            def sent() -> None:
                exchange.sent(link, image.pieces.of_blocks(request.numbers), self.cluster.clock.seconds(), given=given)
                self._offer((request.image, request.path))

            link.when_sent(sent)

    def _exchanged(self, link, note) -> None:
        image = next((image for image in (self.image, *self.more) if image.id == note.image), None)
        if image is None or not self.serving:
            return
        place = note.image, note.path
        if place not in self.exchanges:
            rng = random.Random(self.cluster.rng.getrandbits(64))
            self.exchanges[place] = PieceExchange(image.pieces.count, image.pieces.full, rng, client=True, beside=len(self.exchanges))
        exchange = self.exchanges[place]
        if link not in exchange.neighbors:
            exchange.join(link)
        exchange.heard(link, note.news, self.cluster.clock.seconds())
        self._offer(place)

    def _offer(self, place) -> None:
        for link, news in self.exchanges[place].messages(self.cluster.clock.seconds()):
            link.tell(ExchangePieces(place[1], place[0], 0, news))

    def _look(self) -> None:
        for place, exchange in self.exchanges.items():
            exchange.look(self.cluster.clock.seconds(), len(self.exchanges) - 1)
            self._offer(place)
        if self.links:
            self.cluster.clock.callLater(LOOK_S, self._look)
        else:
            self._looks = False

    def notified(self, link, notification) -> None:
        match notification:
            case ExchangePieces():
                self._exchanged(link, notification)
            case ReceivedImage():
                self.received.add((notification.image, notification.path, notification.machine_id))
            case RemovedImage():
                self.removed.add((notification.image, notification.path, notification.machine_id))
            case AbortedImage():
                self.aborted.append(notification)
            case HookResult():
                self.hooked.append(notification)

    def lost(self, link) -> None:
        if link in self.links:
            self.links.remove(link)
        for shares in self.shares.values():
            shares.left(link)
        for place, exchange in self.exchanges.items():
            exchange.leave(link, self.cluster.clock.seconds())
            self._offer(place)


class Cluster:
    """``count`` nodes at 10.0.0.1 .. that know each other. ``configs`` may differ by number: a function of it, or one mapping for all."""

    def __init__(self, count: int, seed: int = 1, configs=None, latency_s: float = 0.002, udp: bool = True) -> None:
        self.clock = HeapClock()
        self.rng = random.Random(seed)
        self.hub = Hub(self.clock, self.rng, latency_s)
        if not udp:
            self.hub.close_udp(None, None)
        self._configs = configs or {"app": APP, "logs": LOGS}
        self.disks: dict[int, MemDisk] = {}
        self.nodes: dict[int, Node] = {}
        self._known = {self.address(number): f"n{number}" for number in range(1, count + 1)}
        for number in range(1, count + 1):
            self.start(number)

    def now_ms(self) -> int:
        return START_MS + round(self.clock.seconds() * 1000)

    @staticmethod
    def address(number: int) -> Address:
        return Address(f"10.0.{number // 250}.{number % 250}", PORT)

    @staticmethod
    def machine(number: int) -> MachineId:
        return MachineId(number.to_bytes(16, "big"))

    def addresses(self, *numbers: int) -> list[Address]:
        return [self.address(number) for number in numbers]

    def configs(self, number: int) -> dict[str, DirConfig]:
        return self._configs(number) if callable(self._configs) else self._configs

    def safeguards(self, number: int) -> Safeguards | None:
        """With what a node looks before it cleans up; by default no node ever does."""
        return None

    def outside(self, number: int) -> Outside | None:
        """What runs its hooks; by default nothing does."""
        return None

    def start(self, number: int, wiped: bool = False) -> Node:
        """Start a node, or start it again with the disk it had."""
        if number not in self.disks or wiped:
            self.disks[number] = MemDisk(self.configs(number))
        address = self.address(number)
        if address not in self._known:
            self._known[address] = f"n{number}"
            for node in self.nodes.values():
                node.gossip.configured(dict(self._known))
        late = _Late()
        wire, datagrams = self.hub.node(address, late, lambda data, source: late.node.gossip.received(data, source))
        context = NodeContext(
            me=self.machine(number),
            hostname=f"n{number}",
            epoch=self.now_ms(),
            configs=self.configs(number),
            disk=self.disks[number],
            wire=wire,
            datagrams=datagrams,
            authority=OneKey(),
            clock=self.clock,
            rng=random.Random(self.rng.getrandbits(64)),
            now_ms=self.now_ms,
            in_thread=in_place,
        )
        late.node = self.nodes[number] = Node(context, self.safeguards(number), self.outside(number))
        late.node.start()
        late.node.gossip.configured(dict(self._known))
        late.node.acquaintance.listed()
        return late.node

    def kill(self, number: int) -> None:
        """Pull the plug: what is not on the disk is gone."""
        self.hub.kill(self.address(number))
        self.nodes.pop(number).stop()
        self.disks[number].crash()

    def run(self, seconds: float, until=None) -> float:
        """Advance the clock from event to event; ends early when ``until()`` is true. Returns the seconds that passed."""
        began = self.clock.seconds()
        end = began + seconds
        while self.clock.seconds() < end:
            if until is not None and until():
                break
            following = self.clock.next_s()
            self.clock.advance(max(0.0, min(end if following is None else following, end) - self.clock.seconds()))
        return self.clock.seconds() - began

    def holders(self, path: str, image: Image) -> set[int]:
        """The nodes on which ``image`` is committed at ``path``."""
        vpath = VPath.parse(path)
        found = set()
        for number, node in self.nodes.items():
            state = node.ledger.committed(vpath)
            if state is not None and state.image == image.id:
                found.add(number)
        return found

    def agree(self) -> bool:
        """Whether all running nodes say the same of all base dirs, and nothing is on its way."""
        views = {tuple(sorted((str(base), value) for base, value in node.ledger.base_hashes().items())) for node in self.nodes.values()}
        return len(views) <= 1 and not any(node.ledger.pendings() for node in self.nodes.values())


class _Late:
    """The counterpart of a node that is just being made."""

    node: Node

    def requested(self, link, request):
        return self.node.counterpart.requested(link, request)

    def answered(self, link, request, given):
        self.node.counterpart.answered(link, request, given)

    def notified(self, link, notification):
        return self.node.counterpart.notified(link, notification)

    def lost(self, link):
        self.node.counterpart.lost(link)


def accepted(client: Client) -> bool:
    """Whether every answer so far accepted the upload."""
    return bool(client.answers) and all(isinstance(answer, UploadAck) and answer.accepted for _, answer in client.answers)
