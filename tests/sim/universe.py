"""A whole cluster on one clock: hosts with disks, keys and clocks of their own, the network between them, and what the outside knows.

Everything follows from the seed and the moves; two runs with the same ones are the same to the last byte.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey
from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed

from ciruela.client.tracker import UploadOutcome
from ciruela.daemon.node import Node
from ciruela.interfaces import Address, Connection, NodeContext
from ciruela.keys.signed import Statement, removal_bytes, signed_bytes
from ciruela.model.config import DirConfig, OnConflict
from ciruela.model.errors import RemoteError
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.versions import SigEntry, State, Tombstone, Tombstones, Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import AppendDir, ReceivedImage, RemoveDir, ReplaceDir
from ciruela.runtime import in_place
from tests.doubles.clock import HeapClock, Timers
from tests.doubles.memnet import Hub
from tests.doubles.simos import SimOS
from tests.doubles.simos_volume import Volume
from tests.sim.ear import Ear
from tests.sim.people import Liar, Lie, Picture, Syncer, Uploader, Wish, signed
from tests.sim.shelf import Shelf

P = ParamSpec("P")
T = TypeVar("T")

START_MS = 1_700_000_000_000
PORT = 24783
KEYS = (SigningKey(bytes([1]) * 32), SigningKey(bytes([2]) * 32))
"""The keys that upload: the first is configured everywhere and always, the second comes and goes."""

STRANGER = SigningKey(bytes([9]) * 32)
APPEND_ONLY = "logs"
"""The one directory that is append-only."""

TWIN_S = 10.0
"""So soon after the start of a clone clients know that two servers share a machine id: a few rounds of gossip, and a question of theirs."""

GHOST = Address("10.0.9.9", PORT)
"""A configured peer that never comes, in some universes."""

PATHS = ("/app/a", "/app/b", "/app/c", "/app/d", "/app/e", "/logs/x", "/logs/y", "/logs/z", "/top", "/deep/d/e")
PICTURES = tuple(Picture(number) for number in range(9))


class Violation(AssertionError):
    """An invariant does not hold."""


class Host:
    """One machine: its disk, its clock, its keys, and the process on it. ``state`` is "up", "paused", "down" or "liar".

    What the outside knows of it: ``high``, the state that ranks highest of all that were ever committed at each path and not deleted;
    ``buried``, the greatest version that was deleted there by a rule; ``removed``, the same by a signed wish; ``images``, all that ever
    stood there; ``blessed``, the signatures that its keys made when they were shown. A wipe begins all of them anew; a lost record and a
    restored snapshot what they concern. ``lost_s``: when anything of its memory was lost last.
    """

    def __init__(self, universe: Universe, number: int, configs: dict[str, DirConfig]) -> None:
        self.universe = universe
        self.number = number
        self.address = Address(f"10.0.0.{number}", PORT)
        self.machine = MachineId(number.to_bytes(16, "big"))
        self.keys = set(KEYS)
        self.skew_ms = 0
        self.state = "down"
        self.shelf = Shelf(universe.sim, number, configs)
        self.liar: Liar | None = None
        self.rng = random.Random(universe.rng.getrandbits(64))
        self.lives = 0
        self.wiped_s = self.lost_s = -1.0
        self.began_s = 0.0
        self.snapshot: Snapshot | None = None
        self.node: Node
        self.timers: Timers
        self._forget()

    def _forget(self) -> None:
        self.high: dict[VPath, State] = {}
        self.buried: dict[VPath, Version] = {}
        self.removed: dict[VPath, Version] = {}
        self.images: dict[VPath, set[ImageId]] = {}
        self.doomed: dict[VPath, Version] = {}
        self.blessed: set[tuple[VPath, ImageId, SigEntry]] = set()

    @property
    def ready(self) -> bool:
        """Whether a process runs here that has read its disk."""
        return self.state in ("up", "paused") and self.node.ready

    def now_ms(self) -> int:
        """The clock of this machine."""
        return self.universe.now_ms() + self.skew_ms

    # -- life -----------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon, on whatever the disk has."""
        if self.state == "liar":
            assert self.liar is not None
            self.liar.stop()
            self.universe.hub.vanish(self.address, told=True)
            self.state = "down"
        if self.state != "down":
            return
        self.lives += 1
        self.universe.speakers.setdefault(self.machine, set()).add(self)
        self.began_s = self.universe.clock.seconds()
        self.timers = Timers(self.universe.clock)
        late = _Late()
        wire, datagrams = self.universe.hub.node(
            self.address, late, lambda data, source: late.node.gossip.received(data, source), self.timers
        )
        node = late.node = self.node = Node(
            NodeContext(
                me=self.machine,
                hostname=f"n{self.number}",
                epoch=max(1, self.now_ms()),
                configs=self.shelf.configs,
                disk=self.shelf.open(partial(self._in_thread, self.timers)),
                wire=wire,
                datagrams=datagrams,
                authority=self,
                clock=self.timers,
                rng=random.Random(self.rng.getrandbits(64)),
                now_ms=self.now_ms,
                in_thread=in_place,
            )
        )
        self._watch(node)
        self.state = "up"
        starting = node.start()
        starting.addErrback(lambda failure: self.universe.violated("I11", f"n{self.number} does not start: {failure.getErrorMessage()}"))
        node.gossip.configured(self.universe.known)
        node.acquaintance.listed()

    def kill(self) -> None:
        """SIGKILL: the kernel closes its connections and keeps what it wrote."""
        if self._gone(told=True):
            self.shelf.kill()

    def power_cut(self) -> None:
        """The machine loses power; nobody is told."""
        if self._gone(told=False):
            self.shelf.power_cut(self.rng)

    def wipe(self) -> None:
        """The machine is replaced by one with an empty disk."""
        self._gone(told=False)
        self.shelf.wipe()
        self.wiped_s = self.lost_s = self.universe.clock.seconds()
        self.snapshot = None
        self._forget()

    def lose_memory(self, how: str) -> str:
        """Something of what the daemon remembers is lost while it is down: a ``record``, a ``bit`` of one, or the whole ``db``."""
        self.kill()
        if self.state != "down":
            return "nothing"
        self.lost_s = self.universe.clock.seconds()
        self.high.clear()
        self.buried.clear()
        self.removed.clear()
        match how:
            case "record":
                return self.shelf.lose_record(self.rng)
            case "bit":
                return self.shelf.flip_record(self.rng)
        self.shelf.lose_db()
        return "all of it"

    def back_up(self) -> None:
        """Somebody takes a snapshot of its disk."""
        if self.state in ("up", "paused", "down"):
            images = {vpath: set(known) for vpath, known in self.images.items()}
            self.snapshot = Snapshot(self.shelf.snapshot(), images, set(self.blessed))

    def roll_back(self) -> bool:
        """Somebody restores the snapshot, if there is one."""
        self.kill()
        if self.snapshot is None or self.state != "down":
            return False
        self.shelf.restore(self.snapshot.volume)
        self.lost_s = self.universe.clock.seconds()
        self._forget()
        self.images = {vpath: set(known) for vpath, known in self.snapshot.images.items()}
        self.blessed = set(self.snapshot.blessed)
        return True

    def own_id(self) -> None:
        """The machine gets an id of its own again, which takes a restart."""
        own = MachineId(self.number.to_bytes(16, "big"))
        if self.machine != own:
            self.resume()
            self.kill()
            self.machine = own

    def _gone(self, *, told: bool) -> bool:
        if self.state not in ("up", "paused"):
            return False
        self.timers.dead = True
        self.universe.graves.append(self.node)
        self.universe.hub.vanish(self.address, told=told)
        self.state = "down"
        return True

    def pause(self) -> None:
        """SIGSTOP."""
        if self.state == "up":
            self.state = "paused"
            self.timers.paused = True
            self.universe.hub.pause(self.address)

    def resume(self) -> None:
        """SIGCONT."""
        if self.state == "paused":
            self.state = "up"
            self.timers.resume()
            self.universe.hub.resume(self.address)

    def lie(self) -> None:
        """Somebody else takes the address over while the daemon is down."""
        self.kill()
        if self.state == "down":
            self.liar = Liar(self.universe, self, random.Random(self.rng.getrandbits(64)))
            self.state = "liar"

    def _in_thread(self, process: Timers, f: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        if process.dead:
            self.universe.violated("I8", f"a process of n{self.number} that is gone went on")
        if not self.universe.hop_s:
            return maybeDeferred(f, *args, **kwargs)
        done: Deferred[T] = Deferred()
        process.callLater(self.rng.random() * self.universe.hop_s, lambda: maybeDeferred(f, *args, **kwargs).chainDeferred(done))
        return done

    # -- interfaces.Authority ------------------------------------------------------------------------------------------------------

    def verified(
        self, config: DirConfig, vpath: VPath, image: ImageId, entries: Sequence[SigEntry], statement: Statement = signed_bytes
    ) -> Deferred[dict[SigEntry, str]]:
        """Those that a key made which this host has now."""
        good = {
            entry: str(at)
            for entry in entries
            for at, key in enumerate(KEYS)
            if key in self.keys and _made(key, statement(str(vpath), image, entry.timestamp_ms), entry)
        }
        if statement is signed_bytes:
            self.blessed.update((vpath, image, entry) for entry in good)
        return succeed(good)

    # -- what the outside notes -----------------------------------------------------------------------------------------------

    def _watch(self, node: Node) -> None:
        """Note each change of the ledger at once: a version that came and went between two checks counts, too."""
        commit, bury = node.ledger.commit, node.ledger.bury

        def committed(vpath: VPath, state: State) -> None:
            self._committed(vpath, state)
            commit(vpath, state)

        def buried(vpath: VPath, burials: Tombstones) -> None:
            gone, tombstone = self.high.pop(vpath, None), burials.tombstones.get(vpath.entry)
            graves = self.removed if tombstone is not None and tombstone.signatures else self.buried
            if tombstone is not None and (gone is not None or tombstone.signatures):
                graves[vpath] = max(tombstone.version, graves.get(vpath, tombstone.version))
            bury(vpath, burials)

        node.ledger.commit = committed  # type: ignore[method-assign]
        node.ledger.bury = buried  # type: ignore[method-assign]

    def _committed(self, vpath: VPath, state: State) -> None:
        high, version = self.high.get(vpath), state.version
        if high is not None and rank(vpath, state) < rank(vpath, high):
            self.universe.violated("I10", f"n{self.number} {vpath}: {_shown(version)} was committed after {_shown(high.version)}")
        for grave in (self.buried.get(vpath), self.removed.get(vpath)):
            if grave is not None and version <= grave:
                self.universe.violated("I10", f"n{self.number} {vpath}: {_shown(version)} was committed after {_shown(grave)} was deleted")
        self.high[vpath] = state
        self.universe.first_s.setdefault((vpath, state.image), self.universe.clock.seconds())
        self.images.setdefault(vpath, set()).add(version.image)

    def delete(self, vpath: VPath) -> bool:
        """Delete by rule what is committed there; False when nothing is, or an upload is on its way."""
        if self.state != "up" or not self.node.ready:
            return False
        node = self.node
        state = node.ledger.committed(vpath)
        if state is None or node.ledger.pending(vpath) is not None:
            return False
        self.universe.deletions += 1
        self.doomed[vpath] = state.version
        done = node.context.disk.remove(vpath, Tombstone(state.version, self.now_ms()))
        done.addCallback(lambda burials: node.ledger.bury(vpath, burials))
        done.addErrback(lambda failure: None)
        return True


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The disk of a host at some time, and what the outside knew then."""

    volume: Volume
    images: dict[VPath, set[ImageId]]
    blessed: set[tuple[VPath, ImageId, SigEntry]]


def rank(vpath: VPath, state: State) -> tuple[int, bytes]:
    """Which of two states stays at a path: the one that ranks higher, the earlier claim in append-only directories."""
    if vpath.key != APPEND_ONLY:
        return state.version.timestamp_ms, bytes(state.image)
    oldest_ms = min((entry.timestamp_ms for entry in state.signatures), default=0)
    return -oldest_ms, bytes(255 - byte for byte in state.image)


def _made(key: SigningKey, statement: bytes, entry: SigEntry) -> bool:
    try:
        key.verify_key.verify(statement, entry.signature)
    except (BadSignatureError, ValueError):
        return False
    return True


def _shown(version: Version) -> str:
    return f"{version.image.hex()[:8]}@{version.timestamp_ms - START_MS}"


def _had(host: Host, vpath: VPath, image: ImageId) -> bool:
    return image in host.images.get(vpath, ()) and any(vpath in known for known in (host.high, host.buried, host.removed))


def _is_gone(host: Host, vpath: VPath, wish: RemoveDir) -> bool:
    if vpath.key not in host.shelf.configs or host.shelf.tree(vpath) is None:
        return True
    high = host.high.get(vpath)
    return high is not None and high.version > Version(wish.timestamp_ms, wish.image)


def _names(hosts: Set[Host]) -> str:
    return " or ".join(f"n{number}" for number in sorted(host.number for host in hosts))


class _Late:
    """The counterpart of a node that is just being made; as the daemon does, it takes no requests until the disk is read."""

    node: Node

    def requested(self, link: Connection, request: object) -> Deferred[object]:
        if not self.node.ready:
            return fail(RemoteError("the node is starting, try again in a moment"))
        return self.node.counterpart.requested(link, request)  # type: ignore[arg-type, return-value]

    def answered(self, link: object, request: object, given: bool) -> None:
        """Nothing follows."""

    def notified(self, link: Connection, notification: object) -> None:
        self.node.counterpart.notified(link, notification)  # type: ignore[arg-type]

    def lost(self, link: Connection) -> None:
        self.node.counterpart.lost(link)


class Universe:
    """Everything. To be used as a context: inside of it the file system of the process is the simulated one."""

    start_ms = START_MS

    def __init__(self, seed: int, size: int | None = None) -> None:
        rng = self.rng = random.Random(f"universe {seed}")
        self.seed = seed
        self.clock = HeapClock()
        self.hub = Hub(self.clock, random.Random(rng.getrandbits(64)), rng.choice((0.0005, 0.002, 0.02)))
        self.hub.jitter_s = rng.choice((0.0, 0.0, 0.01))
        self.hub.loss = rng.choice((0.0, 0.0, 0.05, 0.2))
        self.hub.duplication = rng.choice((0.0, 0.0, 0.1))
        self.hub.reordering = rng.choice((0.0, 0.0, 0.1))
        self.hop_s = rng.choice((0.0, 0.0005, 0.005))
        self.sim = SimOS()
        self.ear = Ear()
        self.violations: list[tuple[str, str]] = []
        self.graves: list[Node] = []
        self.clients: list[Uploader | Syncer] = []
        self.captured: list[Wish] = []
        self.pictures = {picture.id: picture for picture in PICTURES}
        self.deletions = 0
        self.story: list[str] = []
        self.freezes = rng.random() < 0.1
        self.vpaths = [VPath.parse(path) for path in PATHS]
        count = size or rng.choices((5, 6, 7, 8, 10, 12, 20), (60, 20, 10, 5, 3, 1, 1))[0]
        self.hosts = {number: Host(self, number, self._configs(number)) for number in range(1, count + 1)}
        self.known = {host.address: f"n{number}" for number, host in self.hosts.items()}
        self.ghost = rng.random() < 0.1
        if self.ghost:
            self.known[GHOST] = "ghost"
        self.acked: dict[VPath, tuple[ImageId, float]] = {}
        self.first_s: dict[tuple[VPath, ImageId], float] = {}
        self.speakers: dict[MachineId, set[Host]] = {}
        self._installed = self.sim.installed()

    def _configs(self, number: int) -> dict[str, DirConfig]:
        """The directories of a host: the first two take all, each other one most of them."""
        conflict = OnConflict.FREEZE if self.freezes else OnConflict.CONVERGE
        every = {
            "app": DirConfig("app", "", append_only=False, num_levels=1),
            "logs": DirConfig("logs", "", append_only=True, num_levels=1, on_append_conflict=conflict),
            "top": DirConfig("top", "", append_only=False, num_levels=0),
            "deep": DirConfig("deep", "", append_only=False, num_levels=2),
        }
        return {key: config for key, config in every.items() if number <= 2 or self.rng.random() < 0.8}

    def __enter__(self) -> Universe:
        self._installed.__enter__()
        self.ear.open()
        for host in self.hosts.values():
            host.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for host in self.hosts.values():
            host._gone(told=True)
        self.clients.clear()
        self.graves.clear()
        self.ear.close()
        self._installed.__exit__(None, None, None)

    # -- time -----------------------------------------------------------------------------------------------------------------

    def now_ms(self) -> int:
        """True wall time."""
        return START_MS + round(self.clock.seconds() * 1000)

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> float:
        """Let time pass, until ``until()``, asked five times a second. Returns the seconds that passed."""
        began_s = self.clock.seconds()
        end_s = began_s + seconds
        while self.clock.seconds() < end_s:
            if until is not None and until():
                break
            step_s = end_s - self.clock.seconds()
            self.clock.advance(step_s if until is None else min(step_s, 0.2))
        return self.clock.seconds() - began_s

    # -- what moves need ------------------------------------------------------------------------------------------------------

    def everybody(self) -> list[Host]:
        """All hosts."""
        return list(self.hosts.values())

    def ready(self) -> list[Host]:
        """The hosts whose daemon runs and has read its disk."""
        return [host for host in self.hosts.values() if host.ready]

    def resolve(self, name: str) -> Deferred[list[Address]]:
        """Names as the client sees them."""
        return succeed([address for address, known in self.known.items() if known == name])

    def wish(self, path: str, picture: Picture, key: SigningKey, *, replace: bool, stamp: int, old: ImageId | None = None) -> Wish:
        """A signed wish, which anybody may have seen."""
        wish: Wish = ReplaceDir(path, picture.id, old, stamp, ()) if replace else AppendDir(path, picture.id, stamp, ())
        wish = signed(key, wish)
        self.captured.append(wish)
        return wish

    def removal(self, path: str, image: ImageId, stamp: int) -> RemoveDir:
        """A signed wish that an image go."""
        signature = KEYS[0].sign(removal_bytes(path, image, stamp)).signature
        return RemoveDir(path, image, stamp, (signature,))

    def come(self, client: Uploader | Syncer) -> None:
        """A client appears."""
        self.clients.append(client)
        client.come()

    def lies(self, rng: random.Random) -> Iterator[Lie]:
        """Things that may be lied about: real paths and images, with times near the real ones."""
        for _ in range(rng.randrange(1, 5)):
            vpath = rng.choice(self.vpaths)
            yield Lie(vpath, rng.choice(list(self.pictures)), self.now_ms() + rng.choice((-1000, 0, 1000, 86_400_000)))

    # -- what is noted --------------------------------------------------------------------------------------------------------

    def violated(self, row: str, text: str) -> None:
        """Note that an invariant does not hold."""
        self.violations.append((row, f"{self.clock.seconds():.3f} s: {text}"))

    def told(self, note: ReceivedImage) -> None:
        """A client heard that a machine has an image: a host that speaks, or spoke, with its id must have had it."""
        hosts = self.speakers.get(note.machine_id, set())
        if not hosts or (note.forwarded and any(host.lost_s >= 0 for host in hosts)):
            return
        vpath = VPath.parse(note.path)
        if not any(note.image in host.images.get(vpath, ()) for host in hosts):
            self.violated("I2", f"a client heard that {_names(hosts)} has {note.image.hex()[:8]} at {vpath}, where it never was")

    def ended(self, syncer: Syncer) -> None:
        """The real client has a verdict: what it says must be so, on the disks."""
        assert syncer.row is not None
        if syncer.row.verdict.exit_code != 0:
            return
        vpath = VPath.parse(syncer.wish.path)
        if not syncer.done:
            self.violated("I7", f"a client ended well for {vpath} without a single machine")
        for machine in syncer.done:
            hosts = self.speakers.get(machine, set())
            if not hosts or any(host.lost_s >= syncer.began_s for host in hosts):
                continue
            if isinstance(syncer.wish, RemoveDir):
                self._removed(hosts, vpath, syncer.wish)
            elif not any(_had(host, vpath, syncer.wish.image) for host in hosts):
                self.violated("I7", f"a client ended well for {vpath}, but {_names(hosts)} does not have {syncer.wish.image.hex()[:8]}")
        if syncer.row.verdict.outcome is UploadOutcome.DONE:
            self._done_everywhere(syncer, vpath)

    def _removed(self, hosts: Set[Host], vpath: VPath, wish: RemoveDir) -> None:
        """Where a removal was reported nothing is visible, unless something newer came, or the host has no such directory."""
        if not any(_is_gone(host, vpath, wish) for host in hosts):
            self.violated("K3.2", f"a client heard that {vpath} is removed on {_names(hosts)}, and it is visible there")

    def _done_everywhere(self, syncer: Syncer, vpath: VPath) -> None:
        """DONE is said of every configured server that takes the directory, whether anybody heard it or not."""
        if self.ghost:
            self.violated("K1.1", f"a client said DONE for {vpath} while a configured peer was never met")
        if isinstance(syncer.wish, RemoveDir):
            return
        for host in self.everybody():
            if vpath.key not in host.shelf.configs or host.lost_s >= syncer.began_s or self._mistaken(host):
                continue
            if host.liar is not None and host.liar.me in syncer.done:  # it was asked over a connection, and is believed for itself alone
                continue
            if syncer.wish.image not in host.images.get(vpath, ()):
                self.violated("K1.1", f"a client said DONE for {vpath}, but n{host.number} ({host.state}) does not have it")
        if vpath.key == APPEND_ONLY:
            self.acked.setdefault(vpath, (syncer.wish.image, self.clock.seconds()))

    def _mistaken(self, host: Host) -> bool:
        """Whether it shares its machine id with a host that began just now: nobody can tell yet whether that is a clone, or has moved."""
        now_s = self.clock.seconds()
        return any(
            host in hosts and any(one is not host and now_s - one.began_s < TWIN_S for one in hosts) for hosts in self.speakers.values()
        )
