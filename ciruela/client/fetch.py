"""Reading from a cluster: the index of what is at a path, and blocks of it, each verified (protocol section 6.6 without C30 and C31).

Up to three nodes are asked what they have. A node that has nothing at the path names others, and these are asked then.

Gives the nodes an image of which this client has only one file: that file from the disk, everything else from the cluster.

A node that has the image before takes all but the new file from there, and one that lacks it takes it from the others. What they
cannot have so they ask of the client, and it asks the cluster: the blocks are verified, and pass through.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from ciruela.client.contacts import ClosableLink, ClusterAddresses, RunContext
from ciruela.client.crawl import MOST_ANSWERS, ServerSearch, answer_of
from ciruela.client.editor import LocalFile
from ciruela.client.entrance import Entrance
from ciruela.client.orders import Conflict
from ciruela.client.source import Shares
from ciruela.client.trust import signed_state
from ciruela.download import relaycache
from ciruela.index.digest import BLOCK_BYTES
from ciruela.index.parse import image_id_of, parse
from ciruela.index.tree import BlockMap, File, Index
from ciruela.interfaces import Address, BlockGiving, InThread
from ciruela.model.errors import CiruelaError, FormatError, LinkLost, NoAnswer, RemoteError
from ciruela.model.ids import BlockHash, ImageId
from ciruela.model.values import dataclass
from ciruela.model.versions import State
from ciruela.model.vpath import VPath
from ciruela.proto.compression import index, part
from ciruela.proto.messages import (
    MOST_BULK_BYTES,
    BaseDirData,
    BlockData,
    BlockHint,
    BlocksData,
    CheckData,
    CheckUpload,
    GetBaseDir,
    GetBlock,
    GetBlocks,
    GetIndex,
    GetIndexAt,
    ImageContent,
    IndexAtData,
    Request,
    Response,
)
from ciruela.runtime import Backoff

T = TypeVar("T")

ANSWER_S = 60.0
"""An index of a hundred megabytes takes a while on a slow line."""

NAMES_AT_ONCE = 10
"""Names of other nodes that are resolved together, while nobody was found who has something at the path."""

RESOLVE_S = 5.0
"""Time to resolve the name of a node that another node gave: there are others."""

BUSY_S = 0.5
BUSY_TRIES = 20
"""A node that serves enough others is asked again so often, so many seconds later."""

SINGLE_AT_ONCE = 8
"""Blocks that are asked for at a time where they come one by one."""


class NothingThere(CiruelaError):
    """No node that was asked has an image at the path, or a file in it."""


@dataclass(frozen=True, slots=True)
class ImagePlace:
    """An image at a path."""

    path: str
    index: Index

    @property
    def blocks(self) -> BlockMap:
        """Map of the blocks of the image."""
        return self.index.blocks


@dataclass(frozen=True)
class PathContent:
    """Content of a path on the nodes of a cluster; ``data`` are the bytes of the index."""

    place: ImagePlace
    data: bytes

    @property
    def image(self) -> ImageId:
        """Id of the image."""
        return self.place.index.image


class Reading:
    """Reads what some nodes of one cluster have, over connections that stay open."""

    def __init__(
        self, label: str, names: Sequence[str], world: RunContext, in_thread: InThread, problem: Callable[[str, str], None]
    ) -> None:
        """``problem`` is told what did not go well, with ``label``."""
        self.label = label
        self._names = tuple(names)
        self._world = world
        self.in_thread = in_thread
        self.clock = world.clock
        self._problem = problem
        self._called: dict[Address, str] = {}
        self._entrance = Entrance(names, world, ANSWER_S)
        self._holders: list[Address] = []
        self._liars: set[Address] = set()
        self._told: set[str] = set()
        self._rests: Backoff[Address] = Backoff(world.clock)

    def close(self) -> None:
        """End all connections."""
        self._entrance.close()

    async def _link(self, address: Address) -> ClosableLink:
        try:
            link = await self._entrance.open(address)
        except CiruelaError:
            self._rests.failed(address)
            raise
        self._rests.succeeded(address)
        return link

    async def _ask(self, address: Address, request: Request) -> Response:
        """The answer of a node. Raises CiruelaError, in words that name the node."""
        link = await self._link(address)
        name = self._called[address]
        try:
            return await answer_of(link, request, self._world, ANSWER_S, BUSY_S, BUSY_TRIES)
        except LinkLost as error:
            if isinstance(error, NoAnswer):
                link.close()
            raise LinkLost(f"{name}: {error}") from None
        except RemoteError as error:
            raise RemoteError(f"{name}: {error}") from None

    # -- what is there --------------------------------------------------------------------------------------------------------------

    async def look(self, path: str) -> PathContent:
        """Finds out what is at ``path`` on the nodes of this cluster.

        Raises NothingThere; Conflict when two nodes have different images there; LinkLost or RemoteError when no node answers.
        """
        self._holders = []
        found: dict[Address, bytes] = {}
        empty: list[str] = []
        places = ClusterAddresses(self._names, self._world.resolve, self._world.clock, RESOLVE_S)
        await places.entries()
        problems = list(places.unresolved().values())

        async def look(address: Address, label: str) -> Iterable[str]:
            self._called.setdefault(address, label)
            try:
                answer = await self._one(address, GetIndexAt(path), IndexAtData)
            except CiruelaError as error:
                problems.append(str(error))
                return ()
            if answer.data is None:
                empty.append(self._called[address])
            else:
                found[address] = answer.data
            return answer.hosts.values()

        search = ServerSearch(places, self._world.rng, look, lambda _name, _why: None)
        await search.run(lambda: len(found), MOST_ANSWERS, NAMES_AT_ONCE)
        self._called = {**places.known, **search.led, **self._called}
        if found:
            for problem in [one for one in problems if one not in self._told]:
                self._told.add(problem)
                self._problem(self.label, problem)
            return await self._agreed(path, found)
        if empty and problems:  # guard: K3.6
            asked_of = ", ".join(empty[:MOST_ANSWERS])
            raise RemoteError(
                f"{self.label} {path}: no image is on {asked_of}, but others did not say: {'; '.join(problems[:MOST_ANSWERS])}"
            )
        if empty:
            raise NothingThere(f"{self.label} {path}: no image is there (asked {', '.join(empty[:MOST_ANSWERS])})")
        raise LinkLost(f"{self.label}: no node answers: {'; '.join(problems) or 'it has no address'}")

    async def _all(self, asked: Sequence[Deferred[T]]) -> list[T | Failure]:
        """Waits for the results of all of ``asked``, or why there are none. Only CiruelaErrors are taken for an answer."""
        results: list[tuple[bool, Any]] = await DeferredList(list(asked), consumeErrors=True)
        for good, result in results:
            if not good and not result.check(CiruelaError):
                result.raiseException()
        return [result for _, result in results]

    def _one(self, address: Address, request: Request, kind: type[T]) -> Deferred[T]:
        """The answer of a node, which has to be of this kind."""

        async def ask() -> T:
            answer = await self._ask(address, request)
            if not isinstance(answer, kind):
                raise RemoteError(f"{self._called[address]}: unexpected {type(answer).__name__}")
            return answer

        return Deferred.fromCoroutine(ask())

    async def signed(self, seen: PathContent) -> tuple[State, list[str]]:
        """The image that was seen, with the signatures that the nodes which have it show for its path, and why some of them show none.

        No signature is verified.
        """
        vpath = VPath.parse(seen.place.path)
        request = GetBaseDir(str(vpath.base))
        given = await self._all([self._one(address, request, BaseDirData) for address in self._holders])
        problems = [one.getErrorMessage() for one in given if isinstance(one, Failure)]
        return signed_state([one for one in given if isinstance(one, BaseDirData)], vpath.entry, seen.image), problems

    async def judged(self, request: CheckUpload) -> list[CheckData]:
        """Asks nodes that have the image what they would answer to an upload; those that do not understand the question are left out."""
        able = [address for address in self._holders if self._entrance.reached.get(address)]
        given = await self._all([self._one(address, request, CheckData) for address in able])
        return [one for one in given if isinstance(one, CheckData)]

    async def _agreed(self, path: str, found: dict[Address, bytes]) -> PathContent:
        """The one image that all have; one that is not an index counts as a fault of its node."""
        images: dict[ImageId, list[Address]] = {}
        problem = ""
        for address, data in found.items():
            try:
                images.setdefault(await self.in_thread(image_id_of, data), []).append(address)
            except FormatError as error:
                problem = f"{self._called[address]} has no good index of {path}: {error}"
                self._problem(self.label, problem)
        if not images:
            raise RemoteError(problem)
        if len(images) > 1:  # guard: F54
            each = ", ".join(f"{self._called[addresses[0]]} has {image.hex()[:16]}" for image, addresses in images.items())
            raise Conflict(f"{self.label} {path}: not all nodes have the same image ({each}); wait until an upload is done, and try again")
        [(image, self._holders)] = images.items()
        data = found[self._holders[0]]
        index = await self.in_thread(parse, data, image)
        return PathContent(ImagePlace(path, index), data)

    # -- blocks ---------------------------------------------------------------------------------------------------------------------

    async def blocks(
        self,
        place: ImagePlace,
        numbers: Sequence[int],
        got: Callable[[int], None] | None = None,
        problem: Callable[[str], None] | None = None,
    ) -> dict[int, bytes]:
        """Those of the blocks ``numbers`` of an image that some node gave, each verified. ``got`` is told bytes as they come.

        ``problem`` is told why a node did not give what it was asked for.
        """
        found: dict[int, bytes] = {}
        order = list(self._holders)
        self._world.rng.shuffle(order)
        for address in [*order, *(one for one in self._called if one not in order)]:
            missing = [number for number in sorted(set(numbers)) if number not in found]
            if not missing:
                break
            if address in self._liars or self._rests.blocked(address):
                continue
            try:
                await self._blocks_of(address, place, missing, found, got)
            except CiruelaError as error:
                if problem is not None:
                    problem(str(error))
        return found

    async def _blocks_of(
        self, address: Address, place: ImagePlace, numbers: Sequence[int], found: dict[int, bytes], got: Callable[[int], None] | None
    ) -> None:
        for batch in _batches(numbers):
            before = len(found)
            await self._batch_of(address, place, batch, found)
            if got is not None:
                got(sum(place.blocks.bytes_of((number,)) for number in batch if number in found))
            if len(found) == before:
                raise RemoteError(f"{self._called[address]} does not have these blocks any more")

    async def _batch_of(self, address: Address, place: ImagePlace, numbers: list[int], found: dict[int, bytes]) -> None:
        """Up to a full answer from one node: in one request where that is understood, else some at a time."""
        bulk = (await self._link(address)).bulk
        request = GetBlocks(place.path, place.index.image, tuple(numbers), packed=True) if bulk else self._single(place, numbers[0])
        first = await self._lacking(self._ask(address, request))
        await self._take(address, place, numbers if bulk else numbers[:1], first, found)
        rest = [] if bulk else numbers[1:]
        while rest:
            some, rest = rest[:SINGLE_AT_ONCE], rest[SINGLE_AT_ONCE:]
            asked = [self._lacking(self._ask(address, self._single(place, number))) for number in some]
            given = await self._all([Deferred.fromCoroutine(one) for one in asked])
            for number, one in zip(some, given, strict=True):
                if isinstance(one, Failure):
                    one.raiseException()
                await self._take(address, place, [number], one, found)

    async def _lacking(self, asked: Coroutine[Any, Any, Response]) -> Response:
        """An answer with an error is one without blocks: the node lacks them."""
        try:
            return await asked
        except RemoteError:
            return BlocksData(())

    def _single(self, place: ImagePlace, number: int) -> GetBlock:
        file, block = place.blocks.by_number(number)
        return GetBlock(file.block_hash(block), BlockHint(place.path, file.path, block * BLOCK_BYTES))

    async def _take(self, address: Address, place: ImagePlace, numbers: Sequence[int], answer: Response, found: dict[int, bytes]) -> None:
        """Take over what ``answer`` gives, if it is what the index says."""
        if answer == BlocksData(()):
            return

        def checked() -> tuple[dict[int, bytes], bool]:
            good: dict[int, bytes] = {}
            wrong = False
            for number, data in relaycache.read(answer, numbers, place.index.pieces, place.blocks.size_of).blocks:
                if place.index.kind.hash(data) == place.blocks.hash_of(number):  # guard: A7, -> True
                    good[number] = bytes(data)
                else:
                    wrong = True
            return good, wrong

        good, wrong = await self.in_thread(checked)
        found.update(good)
        if wrong:
            self._liars.add(address)
            self._problem(self.label, f"{self._called[address]} gave wrong bytes for a block of {place.path}; it is not asked again")
            raise RemoteError(f"{self._called[address]} gave wrong bytes")


def _batches(numbers: Sequence[int]) -> Iterable[list[int]]:
    """``numbers`` in parts that fit into one answer each."""
    most = MOST_BULK_BYTES // BLOCK_BYTES
    for at in range(0, len(numbers), most):
        yield list(numbers[at : at + most])


TRIES = 3
TRY_AGAIN_S = 1.0
"""A block that no node gives now one may give soon: the reference's nodes give nothing of an image that is being replaced."""

PLACES_TRIED = 16
"""A block that stands at many places is looked for at this many."""


class Relay:
    """The image ``new``, made of what was ``seen`` by putting ``file`` into it, for the nodes of one cluster."""

    def __init__(
        self,
        seen: PathContent,
        new: Index,
        data: bytes,
        file: File,
        local: LocalFile,
        reading: Reading,
        changed: Callable[[ImageId, str], None],
    ) -> None:
        """``data`` are the bytes of the index. ``changed`` is told when ``local`` is not any more what it was."""
        self._old = seen.place
        self._new = ImagePlace(seen.place.path, new)
        self._data = data
        self._file = file
        self._local = local
        self._reading = reading
        self._changed = changed
        self._own = _numbers_of(self._new.blocks, file.path)
        self._before = _numbers_of(self._old.blocks, file.path)
        self.passed_bytes = 0
        """Bytes that came from the cluster, to be given to another node."""

    def shares(self) -> dict[ImageId, Shares]:
        """The pieces with blocks of the new file are shared out; for the others the nodes should ask each other first."""
        new = self._new.index
        own = sum(1 << piece for piece in {new.pieces.piece_of(number) for number in self._own})
        return {new.image: Shares(new.pieces, new.total_bytes, own)}

    def content(self, image: ImageId) -> ImageContent | None:  # noqa: ARG002  the protocol's
        """Nothing: the nodes have most of it."""
        return None

    def answer(self, request: Request, published: Collection[ImageId], sent: Callable[[ImageId, int], None]) -> Deferred[Response]:
        """As ``BlockProvider.answer``."""
        return Deferred.fromCoroutine(self._answer(request, published, sent))

    @property
    def wide(self) -> bool:
        """As ``BlockProvider.wide``: most blocks come from other nodes first, and from the reactor then."""
        return False

    def giving(self, request: GetBlocks, published: Collection[ImageId], sent: Callable[[ImageId, int], None]) -> BlockGiving:  # noqa: ARG002
        """As ``BlockProvider.giving``."""
        raise RemoteError("this client gives no blocks over bulk connections")

    async def _answer(self, request: Request, published: Collection[ImageId], sent: Callable[[ImageId, int], None]) -> Response:
        image = self._new.index.image
        match request:
            case GetIndex(image=asked) if asked == image and image in published:
                found = await self._reading.in_thread(index, self._data, request.packed)
                sent(image, len(found.data))
                return found
            case GetBlock(hash=wanted) if image in published:  # guard: I13, if image in published ->
                data = await self._block(wanted)
                sent(image, len(data))
                return BlockData(data)
            case GetBlocks(image=asked, numbers=numbers) if asked == image and image in published:
                answer = await self._blocks(numbers, request.packed)
                if answer.parts:
                    sent(image, sum(len(one.data) for one in answer.parts))
                return answer
            case GetIndex() | GetBlock() | GetBlocks():
                raise RemoteError("this client has not published that image")
        raise RemoteError(f"a client does not answer {type(request).__name__}")

    async def _blocks(self, numbers: Sequence[int], packed: bool) -> BlocksData:
        blocks = self._new.blocks
        if not numbers or numbers[-1] >= len(blocks) or blocks.bytes_of(numbers) > MOST_BULK_BYTES:
            raise RemoteError("that image does not have these blocks, or they are too much for one answer")
        found = await self._read(numbers)

        def join() -> BlocksData:
            parts = []
            for group in self._new.index.pieces.groups(numbers):
                here = [found[number] for number in group if number in found]
                if here:
                    parts.append(part(b"".join(here), packed))
            return BlocksData(tuple(parts), tuple(number for number in numbers if number not in found))

        return await self._reading.in_thread(join)

    async def _block(self, wanted: BlockHash) -> bytes:
        places = await self._reading.in_thread(lambda: list(self._new.blocks.numbers(wanted)[:PLACES_TRIED]))
        own = [number for number in places if number in self._own]
        if not places:
            raise RemoteError("this client does not have that block")
        number = (own or places)[0]
        for again in range(TRIES):
            if again:
                await deferLater(self._reading.clock, TRY_AGAIN_S)
            found = await self._read([number])
            if number in found:
                return found[number]
            if own:
                break
        raise RemoteError("this client does not have that block, and nobody gives it now")

    async def _read(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """Those of the blocks ``numbers`` of the new image that can be had, each verified."""
        own = [number - self._own.start for number in numbers if number in self._own]
        found: dict[int, bytes] = {}
        if own:
            here = await self._reading.in_thread(self._local.blocks, self._new.index.kind, self._file, own)
            found = {self._own.start + number: data for number, data in here.items()}
            if len(here) < len(own):
                self._changed(self._new.index.image, f"{self._local.name} changed since it was read; run the command again")
        others = {self._as_before(number): number for number in numbers if number not in self._own}
        if others:
            given = await self._reading.blocks(self._old, sorted(others))
            found.update((others[number], data) for number, data in given.items())
            missing = [number for number in others.values() if number not in found]
            if missing:  # of a node that replaced its image meanwhile
                found.update(await self._reading.blocks(self._new, missing))
            self.passed_bytes += sum(len(found[number]) for number in others.values() if number in found)
        return found

    def _as_before(self, number: int) -> int:
        """The number that a block which is not of the new file had in the image before."""
        return number if number < self._own.start else number - len(self._own) + len(self._before)


def _numbers_of(blocks: BlockMap, path: str) -> range:
    """The numbers of the blocks of the file at ``path``; empty, and of no meaning, where there is none."""
    for number, file in enumerate(blocks.files):
        if file.path == path:
            return blocks.numbers_of(number)
    return range(0)
