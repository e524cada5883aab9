"""Clients of a simulated cluster, honest ones and others, and peers that lie."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nacl.signing import SigningKey
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.python.failure import Failure

from ciruela.client.contacts import RunContext
from ciruela.client.listener import NodeNews, UploadRow
from ciruela.client.source import ImageSource, SharedImage
from ciruela.client.sync import ClusterRun, EntryPoints
from ciruela.client.tracker import CompletionRule
from ciruela.client.uploadrun import Upload
from ciruela.index.digest import BLOCK_BYTES
from ciruela.interfaces import Address, Connection
from ciruela.keys.signed import signed_bytes
from ciruela.membership.packets import (
    BaseHash,
    Complete,
    Deleted,
    DownloadFact,
    Header,
    Item,
    MemberFact,
    NullKeyring,
    WatchFact,
    encode_packets,
)
from ciruela.model.bitfield import FULL
from ciruela.model.errors import RemoteError
from ciruela.model.ids import Block, BlockHash, ImageId, MachineId
from ciruela.model.versions import SIGNATURE_BYTES, SigEntry, State, Version
from ciruela.model.vpath import VPath
from ciruela.proto.compression import part
from ciruela.proto.messages import (
    AppendDir,
    BaseDirData,
    BlockData,
    BlockPart,
    BlocksData,
    GetBaseDir,
    GetBlock,
    GetBlocks,
    GetIndex,
    GetPathState,
    GetPieces,
    IndexData,
    Notification,
    PathStateData,
    PiecesData,
    PublishImage,
    PushPull,
    PushPullData,
    ReceivedImage,
    RemoveDir,
    ReplaceDir,
    Request,
    Response,
    UploadAck,
)
from tests.disk.trees import Spec, flat, index_bytes
from tests.doubles.memnet import MemoryLink

if TYPE_CHECKING:
    from tests.sim.universe import Host, Universe

Wish = AppendDir | ReplaceDir


class Picture:
    """An image: its index, its blocks by hash, and what stands on a disk that has it. Those of one family share files."""

    def __init__(self, number: int) -> None:
        rng = random.Random(number)
        family = random.Random(number // 3)
        common: Spec = {"/common": family.randbytes(9000), "/run.sh*": family.randbytes(100)}
        own: Spec = {
            "/own": rng.randbytes(rng.choice((1, 700, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES))),
            "/empty": b"",
            "/dir/deep": rng.randbytes(rng.choice((10, 40_000))),
            "/link": "dir/deep",
        }
        spec = {**common, **own}
        self.index, self.data = index_bytes(spec)
        self.id = self.index.image
        self.tree = flat(spec)
        self.blocks: dict[BlockHash, bytes] = {}
        for content in spec.values():
            if isinstance(content, bytes):
                for start in range(0, len(content), BLOCK_BYTES):
                    block = content[start : start + BLOCK_BYTES]
                    self.blocks[self.index.kind.hash(block)] = block


def signed(key: SigningKey, wish: Wish) -> Wish:
    """The wish with the signature of ``key`` alone."""
    signature = key.sign(signed_bytes(wish.path, wish.image, wish.timestamp_ms)).signature
    if isinstance(wish, AppendDir):
        return AppendDir(wish.path, wish.image, wish.timestamp_ms, (signature,))
    return ReplaceDir(wish.path, wish.image, wish.old_image, wish.timestamp_ms, (signature,))


class Uploader:
    """A client of a few lines: asks at ``targets``, gives what it is asked for after ``delay_s``, and notes what it hears."""

    def __init__(self, universe: Universe, wish: Wish, targets: Sequence[Address], gives: bool = True, delay_s: float = 0.0) -> None:
        self.universe = universe
        self.wish = wish
        self.targets = targets
        self.gives = gives
        self.delay_s = delay_s
        self.links: list[MemoryLink] = []
        self.answers: list[UploadAck] = []
        self.received: set[MachineId] = set()
        self._here = False

    def come(self) -> None:
        """Connect to all targets and ask."""
        self._here = True
        for address in self.targets:
            connecting = self.universe.hub.link(self, address)
            connecting.addCallbacks(self._connected, lambda _: None)

    def leave(self) -> None:
        """Close everything."""
        self._here = False
        links, self.links = self.links, []
        for link in links:
            link.close()

    def _connected(self, link: MemoryLink) -> None:
        if not self._here:
            link.close()
            return
        self.links.append(link)
        if self.gives:
            link.tell(PublishImage(self.wish.image))
        link.ask(self.wish).addCallbacks(self._answered, lambda _: None)

    def _answered(self, answer: Response) -> None:
        if isinstance(answer, UploadAck):
            self.answers.append(answer)

    def requested(self, link: Connection, request: Request) -> Deferred[Response]:
        answer = self._answer(request)
        if not self.delay_s:
            return answer
        later: Deferred[Response] = Deferred()
        self.universe.clock.callLater(self.delay_s, lambda: answer.chainDeferred(later))
        return later

    def _answer(self, request: Request) -> Deferred[Response]:
        picture = self.universe.pictures.get(self.wish.image)
        if self.gives and picture is not None:
            match request:
                case GetIndex(image=picture.id):
                    return succeed(IndexData(picture.data))
                case GetBlock() if request.hash in picture.blocks:
                    return succeed(BlockData(picture.blocks[request.hash]))
                case GetBlocks(image=picture.id):
                    groups = picture.index.pieces.groups(request.numbers)
                    data = [b"".join(picture.blocks[picture.index.blocks.hash_of(number)] for number in group) for group in groups]
                    return succeed(BlocksData(tuple(part(one, request.packed) for one in data)))
        return fail(RemoteError("not here"))

    def answered(self, link: object, request: object, given: bool) -> None:
        """Nothing follows."""

    def notified(self, link: Connection, notification: Notification) -> None:
        if isinstance(notification, ReceivedImage):
            self.received.add(notification.machine_id)
            self.universe.told(notification)

    def lost(self, link: Connection) -> None:
        if link in self.links:
            self.links.remove(link)


class _Tree:
    """The directory of a picture, as the client reads it."""

    changed: Collection[str] = ()

    def __init__(self, picture: Picture) -> None:
        self._picture = picture

    def blocks(self, numbers: Sequence[int]) -> list[Block | None]:
        return [self._picture.blocks.get(self._picture.index.blocks.hash_of(number)) for number in numbers]


class _Unheard:
    """A listener for whom nothing is shown."""

    def problem(self, cluster: str, text: str) -> None:
        """Not shown."""

    def note(self, cluster: str, text: str) -> None:
        """Not shown."""

    def node(self, news: NodeNews) -> None:
        """Not shown."""


class Syncer:
    """``ciruela sync`` itself, with one upload: the real run and book."""

    def __init__(self, universe: Universe, wish: Wish | RemoveDir, picture: Picture, entry: Sequence[str]) -> None:
        self.universe = universe
        self.wish = wish
        self.began_s = universe.clock.seconds()
        self.row: UploadRow | None = None
        world = RunContext(
            universe.clock,
            random.Random(universe.rng.getrandbits(64)),
            lambda address, counterpart: universe.hub.link(counterpart, address),
            universe.resolve,
        )
        offers = [] if isinstance(wish, RemoveDir) else [SharedImage(picture.index, picture.data, _Tree(picture), "./dist")]
        source = ImageSource(offers, lambda f, *args, **kw: succeed(f(*args, **kw)), lambda image, text: None)
        upload = Upload(wish, False, picture.index.total_bytes)
        self.run = ClusterRun(EntryPoints("sim", entry), [upload], CompletionRule(deadline_s=300.0), world, source, _Unheard())

    def come(self) -> None:
        """Begin."""
        self.run.start().addCallback(self._over).addErrback(self._stopped)

    def leave(self) -> None:
        """Ctrl-C."""
        self.run.stop()

    def _over(self, _: None) -> None:
        self.row = self.run.rows()[0]
        self.universe.ended(self)

    @staticmethod
    def _stopped(failure: Failure) -> None:
        failure.trap(CancelledError)

    @property
    def done(self) -> set[MachineId]:
        """The machines that the book counts as done."""
        return set(self.run._runs[0].book._done)


@dataclass(frozen=True, slots=True)
class Lie:
    """What a liar may be asked about."""

    vpath: VPath
    image: ImageId
    timestamp_ms: int


class Liar:
    """A peer at the address of a host that is down: speaks gossip under an id of its own, answers with what is wrong."""

    def __init__(self, universe: Universe, host: Host, rng: random.Random) -> None:
        self._universe = universe
        self._host = host
        self._rng = rng
        self.me = MachineId(rng.randbytes(16))
        self._epoch = universe.start_ms
        self._seq = 0
        self.over = False
        _, self._socket = universe.hub.node(host.address, self, lambda data, source: None)
        self._beat()

    def stop(self) -> None:
        """The liar goes away."""
        self.over = True

    def _beat(self) -> None:
        if self.over:
            return
        for host in self._rng.sample(self._universe.everybody(), min(4, len(self._universe.hosts))):
            for data in self.datagrams():
                self._socket.send(data, host.address)
        self._universe.clock.callLater(0.7, self._beat)

    def datagrams(self) -> list[bytes]:
        """False facts, and noise."""
        rng = self._rng
        items: list[Item] = [MemberFact(self.me, None, self._epoch, "liar", 0, 1, ("app", "logs", "top"))]
        for lie in self._universe.lies(rng):
            items.append(  # noqa: PERF401  it reads better
                rng.choice(
                    (
                        DownloadFact(lie.vpath, lie.image, FULL, rng.random() < 0.5, rng.random() < 0.5),
                        DownloadFact(lie.vpath, lie.image, rng.randrange(FULL + 1), False, True),
                        Complete(lie.vpath, lie.image, lie.timestamp_ms),
                        Deleted(lie.vpath, lie.image, lie.timestamp_ms + 10_000),
                        BaseHash(lie.vpath.base, rng.randbytes(32)),
                        WatchFact(lie.vpath, self.me, lie.timestamp_ms),
                    )
                )
            )
        bodies = encode_packets(Header(self.me, self._epoch, self._seq), items)
        self._seq += len(bodies)
        sealed = [NullKeyring().seal(body) for body in bodies]
        noise = bytearray(rng.choice(sealed))
        noise[rng.randrange(len(noise))] ^= 1 << rng.randrange(8)
        return [*sealed, bytes(noise), rng.randbytes(rng.randrange(1, 200))]

    def requested(self, link: Connection, request: Request) -> Deferred[Response]:
        rng = self._rng
        roll = rng.random()
        if roll < 0.1:
            return Deferred()
        if roll < 0.2:
            return fail(RemoteError("a lie"))
        match request:
            case GetBlocks():
                lacks = tuple(number for number in request.numbers if rng.random() < 0.3)
                many = rng.randrange(4)
                parts = [BlockPart(rng.randbytes(rng.choice((0, 10, 100, BLOCK_BYTES))), rng.random() < 0.3) for _ in range(many)]
                return succeed(BlocksData(tuple(parts), lacks))
            case GetPieces(wanted=wanted):
                return succeed(PiecesData(rng.choice((wanted, rng.randbytes(len(wanted)), bytes(len(wanted)), b"\xff" * 64))))
            case GetBlock():
                return succeed(BlockData(rng.randbytes(rng.choice((0, 10, 100, BLOCK_BYTES)))))
            case GetIndex():
                other = rng.choice(list(self._universe.pictures.values()))
                return succeed(IndexData(rng.choice((other.data, b"", other.data[:-7], rng.randbytes(200)))))
            case GetBaseDir():
                return succeed(self._base_dir())
            case GetPathState():
                return succeed(self._path_state())
            case PushPull():
                known_ms = rng.choice((None, 0, 1_000_000))
                return succeed(PushPullData(rng.random() < 0.5, known_ms, tuple(rng.randbytes(rng.randrange(100)) for _ in range(3))))
        return succeed(UploadAck(True, None, {}))

    def _path_state(self) -> PathStateData:
        rng = self._rng
        committed = [Version(lie.timestamp_ms, lie.image) for lie in self._universe.lies(rng)]
        return PathStateData(self.me, "liar", self._epoch, rng.random() < 0.8, rng.choice((None, committed[0])))

    def _base_dir(self) -> BaseDirData:
        rng = self._rng
        dirs = {}
        for lie in self._universe.lies(rng):
            signatures = (SigEntry(lie.timestamp_ms, rng.randbytes(SIGNATURE_BYTES)),)
            wishes = self._universe.captured
            if wishes and rng.random() < 0.5:
                wish = rng.choice(wishes)
                signatures = (SigEntry(wish.timestamp_ms + rng.choice((0, 1)), wish.signatures[0]),)
            dirs[rng.choice((lie.vpath.entry, "..", "new", "x" * 300))] = State(lie.image, signatures)
        return BaseDirData(rng.randbytes(32), rng.randbytes(32), dirs, {}, ())

    def answered(self, link: object, request: object, given: bool) -> None:
        """Nothing follows."""

    def notified(self, link: Connection, notification: Notification) -> None:
        """Not interested."""

    def lost(self, link: Connection) -> None:
        """Not interested."""


class Forger:
    """Somebody who can send datagrams from the address of a configured peer, and knows its machine id (threats A30)."""

    def __init__(self, universe: Universe, rng: random.Random) -> None:
        self._universe = universe
        self._rng = rng

    def forge(self, victim: Host, targets: Sequence[Host]) -> None:
        """Send a few of them to each target, in the name of ``victim``."""
        rng, universe = self._rng, self._universe
        far_ms = (1 << 63) - 1
        for target in targets:
            now_ms = universe.now_ms()
            epoch = rng.choice((now_ms, now_ms + 600_000, far_ms))
            items: list[Item] = [MemberFact(victim.machine, None, rng.choice((now_ms, far_ms)), "forged", 0, 1, ("app", "logs"))]
            for lie in universe.lies(rng):
                items.append(Complete(lie.vpath, lie.image, lie.timestamp_ms))
                items.append(WatchFact(lie.vpath, MachineId(rng.randbytes(16)), far_ms))
            stranger = rng.choice((victim.machine, MachineId(rng.randbytes(16))))
            for body in encode_packets(Header(stranger, epoch, rng.choice((0, 1 << 40, far_ms - 10))), items):
                universe.hub.forge(victim.address, target.address, NullKeyring().seal(body))
