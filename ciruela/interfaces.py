"""Ports: what the services ask of the world, as protocols. ``daemon`` hands the world's objects to work; tests hand doubles.

All methods that take time return Deferreds and fire on the reactor. Faults are ``model.errors``: ``DiskError`` from :class:`Disk` and
:class:`Staging`, ``RemoteError`` and ``LinkLost`` from :class:`Connection` and :class:`Connector`.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import ParamSpec, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from ciruela.index.tree import Index
from ciruela.keys.signed import Statement, signed_bytes
from ciruela.model.bitfield import BlockSet
from ciruela.model.config import STANDARD, DirConfig, Tuning
from ciruela.model.hooks import Due
from ciruela.model.ids import Block, ImageId, MachineId
from ciruela.model.upload import Command
from ciruela.model.values import dataclass
from ciruela.model.versions import RetainedVersion, SigEntry, State, Tombstone, Tombstones
from ciruela.model.vpath import VPath
from ciruela.proto.messages import BlocksData, GetBlocks, Notification, Request, Response

P = ParamSpec("P")
T = TypeVar("T")


class InThread(Protocol):
    """Runs a function in a thread and fires on the reactor: ``deferToThreadPool`` with its first arguments bound, or in place in tests."""

    def __call__(self, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """Fires with what ``f`` returned, or fails with what it raised."""


NowMs = Callable[[], int]
"""Wall time in milliseconds since 1970, UTC; only for stamps, never for intervals."""


DEFAULT_PORT = 24783
"""The reference's port, TCP and UDP (protocol section 10)."""


def numeric_host(text: str) -> str:
    """The one spelling of a numeric address: IPv4 for an IPv4-mapped IPv6 address, else as ``ipaddress`` writes it; a zone stays.

    Raises ValueError for what is no address.
    """
    plain, percent, zone = text.partition("%")
    address = ipaddress.ip_address(plain)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address) + percent + zone


@dataclass(frozen=True, slots=True)
class Address:
    """Address at which a node listens, TCP and UDP alike. ``host`` is a numeric IPv4 or IPv6 address, spelled as :func:`numeric_host` does.

    Whatever comes from a socket, a name or a file becomes one by :meth:`of`, so that one place has one address.
    """

    host: str
    port: int

    @classmethod
    def of(cls, host: str, port: int) -> Address:
        """The address with that host in its one spelling. Raises ValueError."""
        return cls(numeric_host(host), port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


ANYWHERE = Address("0.0.0.0", DEFAULT_PORT)  # noqa: S104  nothing is bound to it


class Connection(Protocol):
    """One open connection to a client or a node."""

    @property
    def name(self) -> str:
        """``host:port`` of the other side, for logs and status."""

    @property
    def host(self) -> str:
        """The numeric address of the other side, as ``numeric_host`` spells it; empty where there is none."""

    @property
    def bulk(self) -> bool:
        """Tells whether ``ciruela.v2`` was agreed upon, so that the other side understands GetBlocks."""

    @property
    def exchanges(self) -> bool:
        """Tells whether ``ciruela.v3`` was agreed upon, so that the other side understands ExchangePieces."""

    @property
    def incoming(self) -> int:
        """Bytes that are here of the message that is on its way."""

    def close(self, reason: str = "closed by us") -> None:
        """End the connection; ``reason`` is for people."""

    def ask(self, request: Request) -> Deferred[Response]:
        """Send a request. Fires with the response (never ``Error``); fails with RemoteError or LinkLost. Cancel to forget it."""

    def tell(self, notification: Notification) -> None:
        """Send a notification; silently nothing when the connection is gone."""

    def when_sent(self, call: Callable[[], None]) -> None:
        """Calls ``call`` when the system has taken all that was sent so far; never when the connection ends before."""

    def widen(self, *, gives: bool) -> None:
        """Opens a bulk connection beside this one, which this side made, if the other side agrees: to give blocks, or to take them."""

    def fetch(self, request: GetBlocks, land: Callable[[BlocksData], T]) -> Deferred[T] | None:
        """As :meth:`ask`, over the bulk connection: fires with what ``land`` made of the answer, in a thread. None where there is none."""


@dataclass(frozen=True, slots=True)
class BlockGiving:
    """Blocks that may be given. ``make`` gives them, in a thread if it ``reads``; ``made`` is told on the reactor of what was sent then."""

    make: Callable[[], BlocksData]
    made: Callable[[BlocksData], object]
    reads: bool


class RequestHandler(Protocol):
    """Server side of a connection: answers the requests that come in."""

    def requested(self, link: Connection, request: Request) -> Deferred[Response]:
        """Answer a request.

        A failure becomes an ``Error`` response: a RemoteError's text is sent, any other fault is logged and sent as "internal error".
        """

    def giving(self, link: Connection, request: GetBlocks) -> Deferred[BlockGiving]:
        """As :meth:`requested`, for a request that came over the bulk connection beside ``link``."""

    def notified(self, link: Connection, notification: Notification) -> bool | None:
        """Take note of a notification. True for one of those that may come often, where it is of use."""

    def answered(self, link: Connection, request: Request, given: bool) -> None:
        """Take note that the answer to ``request`` was sent, or with ``given`` false that it was refused."""

    def lost(self, link: Connection) -> None:
        """The link is gone; nothing more will come from it."""


class Connector(Protocol):
    """Requests to other nodes. Connections are made on demand, shared, and closed when idle."""

    def ask(self, address: Address, request: Request) -> Deferred[Response]:
        """As :meth:`Connection.ask`, to the node at ``address``."""

    def tell(self, address: Address, notification: Notification) -> None:
        """As :meth:`Connection.tell`, to the node at ``address``; nothing where that is of a version that does not know it."""

    def widen(self, address: Address) -> None:
        """As :meth:`Connection.widen`, to take from the node at ``address``; nothing where no connection is open."""

    def fetch(self, address: Address, request: GetBlocks, land: Callable[[BlocksData], T]) -> Deferred[T] | None:
        """As :meth:`Connection.fetch`, from the node at ``address``."""

    def connected(self, address: Address) -> bool:
        """Tells whether a connection to ``address`` is open now."""

    def incoming(self, address: Address) -> int:
        """As :meth:`Connection.incoming`, of the connection to ``address``; 0 where none is open."""

    def bulk(self, address: Address) -> bool:
        """Tells whether the last connection to ``address``, open or not, agreed upon ``ciruela.v2``; False before the first."""

    def exchanges(self, address: Address) -> bool | None:
        """Tells whether the last connection to ``address`` agreed upon ``ciruela.v3``; None before the first."""

    def alive(self, address: Address) -> None:
        """Take note of a sign of life from ``address``: failures of the past are no reason to leave it alone any more."""


class Datagrams(Protocol):
    """The gossip socket."""

    def send(self, data: bytes, address: Address) -> None:
        """Send one datagram; it may be lost."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An accepted upload that is not committed yet: the content of ``NAME.new.state``."""

    vpath: VPath
    state: State
    command: Command


@dataclass(frozen=True, slots=True)
class Held:
    """Record on disk of one path: committed, pending, or both; and which replaced images are kept, the last one first."""

    vpath: VPath
    committed: State | None
    pending: Pending | None
    kept: tuple[RetainedVersion, ...] = ()


@dataclass(frozen=True, slots=True)
class SetAside:
    """A directory that stood at the virtual ``path`` without a record when an image came.

    ``where`` is it now on this host; ``since_ms`` in wall time.
    """

    path: str
    where: str
    since_ms: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """Records on disk of all paths, the tombstones by base dir, and the hooks that have not run well yet."""

    held: Sequence[Held]
    burials: Mapping[VPath, Tombstones]
    due: Sequence[Due] = ()


KeepList = frozenset[tuple[str, ...]]
"""Images that the operator wants to stay, by the components of their paths below the configured directory."""


class KeepLists(Protocol):
    """The keep lists of this node (protocol section 5.13)."""

    def read(self, config: DirConfig) -> Deferred[KeepList]:
        """The whole list of a directory, empty when none is configured.

        Fails with DiskError when there is any doubt about it. Reads anew each time, and may never fire.
        """


class ProtectedLinks(Protocol):
    """The symlinks of this host whose targets must stay (``protect``)."""

    def follow(self, config: DirConfig) -> Deferred[KeepList]:
        """Gives what they lead to inside the directory of ``config``; a short path stands for all that is below it.

        Fails with DiskError when there is any doubt about one of them. Looks anew each time, and may never fire.
        """

    def leading(self, config: DirConfig, vpath: VPath) -> Deferred[str | None]:
        """The link that leads to the image at ``vpath``, into it or to what it is in; None for none. Fails as :meth:`follow`."""


Identity = tuple[int, int]
"""Device and inode of a directory: another one has another."""


@dataclass(frozen=True, slots=True)
class Reused:
    """Result of reuse: blocks (numbers in index order) that need not be fetched, files that are whole by that, and bytes."""

    blocks: Set[int]
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class NamesFound:
    """Result of a look at the names of images: those without a directory, and keys of which nobody can tell, with the reason."""

    gone: tuple[VPath, ...]
    unseen: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Damage:
    """Something in a committed image that is not as its index says: where, as a path inside the image, and what."""

    path: str
    what: str


@dataclass(frozen=True, slots=True)
class Findings:
    """Result of looking through an image: some of the damages, and how many there are in all.

    ``current`` is False when something else took the place of the image meanwhile: then the rest says nothing.
    """

    damages: tuple[Damage, ...]
    count: int
    current: bool


class Examination(Protocol):
    """One look through a committed image, in pieces."""

    @property
    def cost(self) -> int:
        """Measure of progress: bytes read, and for each name what it costs to look at."""

    def go_on(self, most_bytes: int) -> Deferred[Findings | None]:
        """Look at about ``most_bytes`` more. Fires with None while there is more, with what was found in the end.

        Fails with DiskError when nobody can tell, as when the disk is not mounted.
        """

    def close(self) -> None:
        """Let go of what is open; needed however it ended."""


class Staging(Protocol):
    """The hidden directory beside the destination in which one image is put together."""

    def keep(self) -> Deferred[BlockSet]:
        """Hash what an earlier run left here; fires with the numbers of the blocks that are whole. Everything else is dropped.

        The set grows with what is reused and written.
        """

    def reuse(self, siblings: Sequence[tuple[VPath, Index]]) -> Deferred[Reused]:
        """Take what stands in ``siblings``, as ``reuse`` of the directory says: whole files, then blocks. Each is hashed.

        A sibling is committed, or replaced and kept, at its path.

        What cannot be had, or is wrong, is simply not reused.
        """

    def write(self, blocks: Sequence[tuple[int, Block]]) -> Deferred[list[bool]]:
        """Check each (block number, data) against its hash and write it wherever the image has that hash.

        Fires with one bool each: False where the hash is wrong (nothing was written).
        """

    def write_here(self, blocks: Sequence[tuple[int, Block]]) -> list[bool]:
        """As :meth:`write`, in the thread that calls. Raises DownloadFailed, and DiskError also where this was closed."""

    def prepare(self) -> Deferred[str]:
        """Create what needs no data and set modes, so that only the commit is left. Fires with the path of the directory on this host.

        Every block was hashed before it was written; the commit looks at all of it again.
        """

    def commit(self, state: State) -> Deferred[tuple[RetainedVersion, ...]]:
        """Verify everything, make it durable, show it in one step, record ``state``. Fails with DownloadFailed or DiskError.

        Fires with the replaced images that are kept at the path now, the one that was replaced last first.
        """

    def restore(self, state: State) -> Deferred[None]:
        """As :meth:`commit`, for the very image that is committed there already and is damaged: the two trees change places.

        Fails with DownloadFailed(SUPERSEDED) when it is not the committed image any more; nothing is shown then.
        """

    def close(self) -> None:
        """Let go of file descriptors; what is on disk stays for the next run."""

    def discard(self) -> Deferred[None]:
        """Remove it from the disk."""


class Disk(Protocol):
    """States, indexes and images of this node."""

    def load(self) -> Deferred[Loaded]:
        """Everything below configured keys; finishes or undoes commits and deletions that a crash interrupted, and removes debris."""

    def load_added(self, configs: Mapping[str, DirConfig]) -> Deferred[Loaded]:
        """As :meth:`load`, for directories that are configured from now on while others are in use. ``configs`` are only the new ones."""

    def forget(self, vpaths: Collection[VPath]) -> None:
        """Let go of what is open at paths whose directory is not configured any more; nothing on the disk changes."""

    def write_pending(self, pending: Pending) -> Deferred[None]:
        """Record an accepted upload, durably."""

    def drop_pending(self, vpath: VPath) -> Deferred[None]:
        """Forget an accepted upload and remove its staging directory."""

    def write_state(self, vpath: VPath, state: State) -> Deferred[None]:
        """Rewrite the state of a committed image (merged signatures), durably."""

    def write_due(self, due: Due) -> Deferred[None]:
        """Record hooks that are due, durably: before the commit of their image, so that no kill can lose them."""

    def drop_due(self, vpath: VPath, image: ImageId) -> Deferred[None]:
        """Forget the hooks of an image."""

    def where(self, vpath: VPath) -> str:
        """The path on this host of the image at ``vpath``. Raises DiskError when no config takes it."""

    def remove(self, vpath: VPath, tombstone: Tombstone, index: Index | None = None) -> Deferred[Tombstones]:
        """Delete the committed image of ``tombstone.version`` at ``vpath`` and remember that, durably, in this order.

        With signatures any image that is not newer is deleted, and it is remembered also where none is committed. Where a directory stands
        of which nothing is recorded, it goes if it is the image of ``index``; fails with OtherContent if it is not, or that is unknown.

        Fires with all that is remembered of the base dir when the image is not visible any more; its files are deleted in the background.
        After a failure the image stays, and so does its record.
        """

    def remember(self, vpath: VPath, tombstone: Tombstone) -> Deferred[Tombstones]:
        """Remember a signed removal at ``vpath``, durably, which what is there outlived: nothing is deleted. Fires as :meth:`remove`."""

    def fold_burials(self, vpath: VPath, before_ms: int) -> Deferred[Tombstones]:
        """Fold the tombstones set before ``before_ms`` in the base dir of ``vpath`` into its floor, durably; fires with what is left."""

    def identity(self, key: str) -> Deferred[Identity]:
        """Gives the identity of the directory configured for ``key``, as it is now. Fails with DiskError when it cannot be opened."""

    def collect_indexes(self, keep: Collection[ImageId]) -> Deferred[int]:
        """Delete the stored indexes of all images that are not in ``keep`` and that no state or journal on the disk names.

        Fires with how many. When a state cannot be read nothing is deleted and it fails with DiskError.
        """

    def read_index(self, image: ImageId) -> Deferred[Index | None]:
        """The stored index, verified; None when it is absent or bad."""

    def read_index_bytes(self, image: ImageId) -> Deferred[bytes | None]:
        """The bytes of the stored index, verified against ``image``; None when absent or bad."""

    def write_index(self, image: ImageId, data: bytes) -> Deferred[Index]:
        """Verify, parse and store an index, durably. Fails with BadIndex without storing anything."""

    def stage(self, vpath: VPath, index: Index) -> Deferred[Staging]:
        """Open or create the staging directory of ``index`` for ``vpath``. Fails with DownloadFailed(CANT_CREATE_DIRECTORY or NO_SPACE)."""

    def present(self, vpath: VPath) -> Deferred[bool]:
        """Tells whether a directory stands at ``vpath``."""

    def look(self, vpaths: Sequence[VPath]) -> Deferred[NamesFound]:
        """Look at the names of images, those of one base dir one after the other. One that is being committed may seem to be gone."""

    def prove(self, most: int) -> Deferred[Sequence[VPath]]:
        """Verify up to ``most`` records that have no checksum yet, and give them one; fires with the paths whose record is not believed."""

    def recorded(self, vpath: VPath) -> Deferred[bool]:
        """Tells whether an image is recorded as committed at ``vpath``, after all that was asked for before. Fails with DiskError."""

    def set_aside(self) -> Sequence[SetAside]:
        """Lists what stood at names of images without a record and was moved aside, as it was known last."""

    def tidy(self, *, delete: bool) -> Deferred[int]:
        """Look what is still set aside; with ``delete`` try again to delete what could not be deleted. Fires with how much that is."""

    def free(self, key: str) -> Deferred[int]:
        """Bytes that downloads to the directory of ``key`` may still use. Fails with DiskError when it cannot be opened."""

    def examine(self, vpath: VPath, index: Index) -> Examination:
        """Compare the image committed at ``vpath``, which is that of ``index``, with its index. Nothing is read before it goes on."""

    def read_blocks(self, vpath: VPath, index: Index, numbers: Sequence[int]) -> list[Block | None]:
        """Read blocks of a committed, kept or staged image, by number; None where it is not here or its hash is wrong.

        Blocking: for threads. Raises DiskError.
        """


class Authority(Protocol):
    """The keys that may upload."""

    def verified(
        self, config: DirConfig, vpath: VPath, image: ImageId, entries: Sequence[SigEntry], statement: Statement = signed_bytes
    ) -> Deferred[Mapping[SigEntry, str]]:
        """Those of ``entries`` that a key configured for ``config`` made, one per key, in order, each with the fingerprint of its key.

        ``statement`` is what they were made over. Which keys there are is looked up each time.
        """


@dataclass(frozen=True, slots=True)
class Ended:
    """End of a command: its exit code or the number of the signal that killed it, and the last line of what it wrote, raw.

    ``late``: it took too long and was killed for that.
    """

    code: int | None
    signal: int | None
    line: str
    late: bool = False


class Runner(Protocol):
    """Runs commands of the operator."""

    def run(self, command: Sequence[str], environment: Mapping[str, str], timeout_s: float) -> Deferred[Ended]:
        """Run ``command`` with ``environment`` and nothing else of this process. Fires when it has ended, and all that it started.

        Fails with HookFailed when it cannot be started. Cancel to kill it.
        """


class Caller(Protocol):
    """Calls web addresses of the operator."""

    def post(self, url: str, body: bytes, timeout_s: float) -> Deferred[int]:
        """Send ``body``, which is JSON. Fires with the status code; a redirect is not followed.

        Fails with HookFailed, in words without the address, when there is no answer or the certificate is not good. Cancel to give up.
        """


@dataclass(frozen=True, slots=True)
class NodeContext:
    """The world of one node: its identity, its configuration, and everything that would make a run impossible to repeat.

    ``epoch`` is the wall time of its start in milliseconds. ``here`` is where it listens, maybe a wildcard.
    ``configs`` and ``authority`` answer by what is configured now; ``tuning`` is what the node started with.
    """

    me: MachineId
    hostname: str
    epoch: int
    configs: Mapping[str, DirConfig]
    disk: Disk
    wire: Connector
    datagrams: Datagrams
    authority: Authority
    clock: IReactorTime
    rng: random.Random
    now_ms: NowMs
    in_thread: InThread
    tuning: Tuning = STANDARD
    here: Address = ANYWHERE
