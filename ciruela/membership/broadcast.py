"""Content of the next datagram: the own facts and the hearsay worth passing on, within a byte budget.

Facts wait in a transmit-limited queue, as in memberlist: those that changed last and were said least come first.

A fact is *hot* until it was said often enough to have reached everybody with high probability; then it is *cold* and takes its turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from enum import Enum, IntEnum, auto
from typing import Any, Generic, Protocol, TypeVar

from ciruela.interfaces import NowMs
from ciruela.membership.cluster import Cluster
from ciruela.membership.packets import (
    MAX_PARTS,
    ROOM_BYTES,
    BaseHash,
    Complete,
    Deleted,
    DownloadFact,
    Hooked,
    Item,
    MemberFact,
    RemovedFact,
    WatchFact,
    encode_item,
    split,
)
from ciruela.membership.softstate import age_in_ms
from ciruela.model.hooks import AFTER
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.versions import Version
from ciruela.model.vpath import VPath
from ciruela.runtime import BoundedMap

K = TypeVar("K", bound=Hashable)

HEAT = 3
MOST_HEAT = 48


def heat_for(nodes: int) -> int:
    """Retransmit limit of a hot fact, for each node: ``3 * log2(nodes + 2)`` times.

    A rumor that every node passes on k times misses a node with probability ``e**-k``; the logarithm pays for loss and growth.
    """
    return min(MOST_HEAT, math.ceil(HEAT * math.log2(nodes + 2)))


class TransmitQueue(Generic[K]):
    """The facts of one kind, by key. ``fading``: a fact that is no longer hot is dropped instead of taking turns."""

    def __init__(self, limit: int = 16384, fading: bool = False) -> None:
        self._limit = limit
        self._fading = fading
        self._said: dict[K, int] = {}
        self._hot: dict[int, dict[K, None]] = {}
        self._cold: dict[K, None] = {}

    def __len__(self) -> int:
        return len(self._said)

    def __iter__(self) -> Iterator[K]:
        return iter(tuple(self._said))

    def __contains__(self, key: K) -> bool:
        return key in self._said

    def put(self, key: K) -> None:
        """``key`` is new or has changed: it is as hot as can be. Beyond the limit the oldest of the coldest is dropped."""
        self.drop(key)
        if len(self._said) >= self._limit:
            self.drop(next(iter(self._cold or self._hot[max(self._hot)])))
        self._add(key, 0)

    def drop(self, key: K) -> None:
        """``key`` is no fact any more."""
        count = self._said.pop(key, None)
        if count == MOST_HEAT:
            del self._cold[key]
        elif count is not None:
            del self._hot[count][key]
            if not self._hot[count]:
                del self._hot[count]

    def _add(self, key: K, count: int) -> None:
        self._said[key] = count
        level = self._cold if count == MOST_HEAT else self._hot.setdefault(count, {})
        level[key] = None

    def said(self, key: K, heat: int) -> None:
        """``key`` was said once more; with ``heat`` times it is cold."""
        count = self._said.get(key)
        if count is None:
            return
        self.drop(key)
        count = count + 1 if count + 1 < heat else MOST_HEAT
        if count < MOST_HEAT or not self._fading:
            self._add(key, count)

    @property
    def any_hot(self) -> bool:
        """Tells whether a key is hot."""
        return bool(self._hot)

    def hot(self) -> Iterator[K]:
        """Keys that are hot, least said first, then longest waiting."""
        for count in sorted(self._hot):
            yield from tuple(self._hot.get(count, ()))

    def cold(self) -> Iterator[K]:
        """Keys that take their turn, longest waiting first."""
        yield from tuple(self._cold)


WATCH_RENEW_S = 10.0
"""A watch gets a new stamp this often: five chances to arrive before it ends elsewhere."""

MEMBER_RENEW_S = 60.0
"""The own membership gets a new stamp this often, or when the directories change."""

HOT_SHARE = 0.8
"""Part of a beat's datagram that news may take while older facts wait: a flood of news cannot silence the rest."""

PART_BYTES = 600
"""Bytes of directory names in one member item."""

BEAT_DATAGRAMS = 2
"""Datagrams to one address in one beat while one cannot take all news. An idle node needs one, as long as it knows few others."""

HOOK_KINDS = range(1, len(AFTER) + 1)
"""The numbers of the hooks that are told of."""

RECENT_S = 300.0
MOST_RECENT = 1024
"""Completions and removals that are told over a connection: so many, of the last five minutes."""

MOST_HEARSAY = 64
"""Watches and members of others in one exchange; all of them when ``whole``, as with a peer that has just been met."""

MOST_DATAGRAMS = 4
"""Datagrams to one address in one turn; what does not fit stays hot and comes with the next beats."""


class LocalState(Protocol):
    """Source of what this node can say of itself. Asked at each beat and each news, so answers must be cheap."""

    def keys(self) -> Sequence[str]:
        """The directories (keys) that are configured here."""

    def base_hashes(self) -> Mapping[VPath, bytes]:
        """The hash of each base dir here, 32 bytes."""

    def downloads(self) -> Sequence[DownloadFact]:
        """Gives the downloads that are running."""

    def watching(self) -> Collection[VPath]:
        """The paths that clients of this node wait for."""

    def committed(self, vpath: VPath) -> Version | None:
        """Gives the version that is committed at ``vpath``."""

    def removal(self, vpath: VPath) -> Version | None:
        """Gives the version that was removed from ``vpath`` by a signed wish, when nothing is there since."""

    def due_bits(self, vpath: VPath) -> int:
        """The hooks that are due, or have ended lately, for what is committed at ``vpath``: see ``Complete``."""

    def hooks(self) -> Sequence[Hooked]:
        """The hooks that ended in the last minutes."""

    def deleted(self) -> Sequence[tuple[VPath, ImageId, int]]:
        """Path, image and time (ms) of what was removed, or given up, in the last minutes."""


class FactKind(IntEnum):
    """The kinds of facts; each has a share of every datagram."""

    COMPLETE = auto()
    DELETED = auto()
    BASE = auto()
    DOWNLOAD = auto()
    WATCH = auto()
    MEMBER = auto()
    HOOK = auto()


Fact = tuple[FactKind, Hashable]
"""A fact by its kind and key: a path, (path, image) for DELETED, (path, machine) for WATCH, (machine, part) for MEMBER,
(path, kind) for HOOK."""


class Filling(Enum):
    """Kind of facts that may fill up a datagram after those for which it was made."""

    NOTHING = auto()
    NEWS = auto()
    ALL = auto()


def member_parts(machine: MachineId, stamp: int, hostname: str, keys: Sequence[str]) -> list[MemberFact]:
    """The items that say which directories a machine takes; keys beyond ``MAX_PARTS`` items are left out."""
    groups: list[list[str]] = [[]]
    left = PART_BYTES
    for key in keys:
        # The head of a CBOR text of this length has at most three bytes (RFC 8949, 3).
        size = len(key.encode()) + 3
        if size > left:
            groups.append([])
            left = PART_BYTES
        groups[-1].append(key)
        left -= size
    groups = groups[:MAX_PARTS]
    return [MemberFact(machine, None, stamp, hostname, number, len(groups), tuple(group)) for number, group in enumerate(groups)]


class Composer:
    """Chooses what to say. ``oversized`` is told of an item that fits into no datagram; it is not said."""

    def __init__(
        self, me: MachineId, hostname: str, facts: LocalState, cluster: Cluster, now_ms: NowMs, oversized: Callable[[Item], None]
    ) -> None:
        self._me = me
        self._hostname = hostname
        self._facts = facts
        self._cluster = cluster
        self._now_ms = now_ms
        self._oversized = oversized
        self._now_s = 0.0
        self._heat = heat_for(0)
        self._rumors: dict[FactKind, TransmitQueue[Any]] = {
            kind: TransmitQueue(fading=kind in (FactKind.COMPLETE, FactKind.DELETED)) for kind in FactKind
        }
        self._own: dict[FactKind, dict[Any, Item]] = {kind: {} for kind in FactKind}
        self._stamp = 0
        self._keys: tuple[str, ...] | None = None
        self._parts: list[MemberFact] = []
        self._member_s = 0.0
        self._watch_stamp = 0
        self._watch_s: float | None = None
        self._turn = 0
        self._waiting: dict[FactKind, Hashable] = {}
        self._rendered: dict[Fact, bytes | None] = {}
        self._recent: BoundedMap[VPath, float] = BoundedMap(MOST_RECENT)
        self._cursor = self._hearsay_cursor = 0

    # -- what there is to say -------------------------------------------------------------------------------------------------

    def refresh(self, now_s: float, nodes: int) -> None:
        """Read the own facts again at ``now_s`` in a cluster of ``nodes``; what is new or has changed becomes hot."""
        self._now_s = now_s
        self._rendered.clear()
        self._heat = heat_for(nodes)
        facts = self._facts
        self._renew_member(tuple(sorted(facts.keys())))
        self._sync(FactKind.BASE, {base: BaseHash(base, value) for base, value in facts.base_hashes().items()})
        self._sync(FactKind.DOWNLOAD, {download.vpath: download for download in facts.downloads()})
        self._sync(FactKind.DELETED, {(vpath, image): Deleted(vpath, image, at_ms) for vpath, image, at_ms in facts.deleted()})
        self._sync(FactKind.HOOK, {(hooked.vpath, hooked.kind): hooked for hooked in facts.hooks()})
        if self._watch_s is None or now_s - self._watch_s >= WATCH_RENEW_S:
            self._watch_stamp, self._watch_s = self._next_stamp(), now_s
        self._sync(FactKind.WATCH, {(vpath, self._me): WatchFact(vpath, self._me, self._watch_stamp) for vpath in facts.watching()})

    def _next_stamp(self) -> int:
        self._stamp = max(self._stamp + 1, self._now_ms())
        return self._stamp

    def _renew_member(self, keys: tuple[str, ...]) -> None:
        if keys == self._keys and self._now_s - self._member_s < MEMBER_RENEW_S:
            return
        self._keys = keys
        self._member_s = self._now_s
        self._parts = member_parts(self._me, self._next_stamp(), self._hostname, keys)
        self._sync(FactKind.MEMBER, {(self._me, part.part): part for part in self._parts})

    @property
    def complete_list(self) -> bool:
        """Tells whether all own directories fit into the member items."""
        return sum(len(part.keys) for part in self._parts) == len(self._keys or ())

    def _sync(self, kind: FactKind, items: dict[Any, Item]) -> None:
        known = self._own[kind]
        for key, item in items.items():
            if known.get(key) != item:
                self._rumors[kind].put(key)
        self._own[kind] = items

    def put(self, fact: Fact) -> None:
        """``fact`` is news: it becomes hot."""
        kind, key = fact
        self._rumors[kind].put(key)
        self._rendered.pop(fact, None)
        if kind is FactKind.COMPLETE and isinstance(key, VPath):
            self._recent.put(key, self._now_s)

    def render(self, fact: Fact) -> Item | None:
        """The item that says ``fact`` now; None when it is no fact any more."""
        kind, key = fact
        own = self._own[kind].get(key)
        match own, key:
            case WatchFact(), _:
                return WatchFact(own.vpath, own.machine, own.stamp, age_in_ms(self._now_s - (self._watch_s or 0.0)))
            case MemberFact(), _:
                age_ms = age_in_ms(self._now_s - self._member_s)
                return MemberFact(own.machine, None, own.stamp, own.hostname, own.part, own.parts, own.keys, age_ms)
            case None, VPath() if kind is FactKind.COMPLETE:
                return self.completion(key)
            case None, (VPath() as vpath, bytes() as machine) if kind is FactKind.WATCH:
                return self._cluster.watch_item(vpath, MachineId(machine))
            case None, (bytes() as machine, int() as part) if kind is FactKind.MEMBER:
                return self._cluster.roster.item(MachineId(machine), part, self._now_s)
        return own

    def completion(self, vpath: VPath) -> Complete | RemovedFact | None:
        """The item that says what is committed here at ``vpath``, or was removed from it."""
        version = self._facts.committed(vpath)
        if version is not None:
            return Complete(vpath, version.image, version.timestamp_ms, self._facts.due_bits(vpath))
        version = self._facts.removal(vpath)
        return None if version is None else RemovedFact(vpath, version.image, version.timestamp_ms)

    def results(self, vpath: VPath) -> list[Hooked]:
        """The items that say what became of hooks here at ``vpath``."""
        known = self._own[FactKind.HOOK]
        return [known[vpath, number] for number in HOOK_KINDS if (vpath, number) in known]  # type: ignore[misc]

    # -- over a connection ----------------------------------------------------------------------------------------------------

    def exchange(self, extra: Sequence[Item], most: int, *, whole: bool = False) -> list[list[bytes]]:
        """Encoded items, a list for each of at most ``most`` bodies: the own membership, ``extra``, all own facts, and hearsay.

        When there is more than that, the next exchange begins where this one ended.
        """
        first = [data for fact in self._membership() if (data := self._data(fact))]
        first += [data for item in extra if (data := self._encode(item))]
        groups = split(first)[:most] or [[]]
        rest = self._all(whole=whole)
        begin = self._cursor % max(1, len(rest))
        left = ROOM_BYTES - sum(map(len, groups[-1]))
        for number, fact in enumerate(rest[begin:] + rest[:begin]):
            data = self._data(fact)
            if data is None:
                continue
            if len(data) > left:
                if len(groups) >= most:
                    self._cursor = begin + number
                    break
                groups.append([])
                left = ROOM_BYTES
            groups[-1].append(data)
            left -= len(data)
        return groups

    def _membership(self) -> list[Fact]:
        return [(FactKind.MEMBER, (self._me, part.part)) for part in self._parts]

    def _all(self, *, whole: bool) -> list[Fact]:
        """All facts but the own membership, those of the moment first; of hearsay a part, which goes round, unless ``whole``."""
        self._recent.expire(lambda since_s: self._now_s - since_s >= RECENT_S)
        own = (FactKind.DOWNLOAD, FactKind.WATCH, FactKind.HOOK, FactKind.DELETED, FactKind.BASE)
        facts: list[Fact] = [(FactKind.COMPLETE, vpath) for vpath in reversed(self._recent)]
        facts += [(kind, key) for kind in own for key in self._own[kind]]
        hearsay: list[Fact] = [
            (kind, key) for kind in (FactKind.WATCH, FactKind.MEMBER) for key in self._rumors[kind] if key not in self._own[kind]
        ]
        if not whole and len(hearsay) > MOST_HEARSAY:
            begin = self._hearsay_cursor % len(hearsay)
            self._hearsay_cursor = begin + MOST_HEARSAY
            hearsay = (hearsay[begin:] + hearsay[:begin])[:MOST_HEARSAY]
        return facts + hearsay

    # -- datagrams ------------------------------------------------------------------------------------------------------------

    def beat(self, extra: Sequence[Item]) -> list[list[bytes]]:
        """Encoded items for one target of a beat: ``extra``, one part of the own membership, and whatever else fits.

        A fact for which the last datagrams had no room begins one, so that long paths are not passed over for ever.
        """
        if self._waiting:
            longest_waiting = next(iter(self._waiting))
            return self.datagrams([(longest_waiting, self._waiting.pop(longest_waiting))], extra, Filling.ALL)
        self._turn += 1
        return self.datagrams([(FactKind.MEMBER, (self._me, self._turn % max(1, len(self._parts))))], extra, Filling.ALL)

    def datagrams(self, facts: Sequence[Fact], extra: Sequence[Item], filling: Filling) -> list[list[bytes]]:
        """Encoded items, a list for each datagram (at most :data:`MOST_DATAGRAMS`), that say ``extra`` and ``facts``.

        The last one is filled up; a beat adds one while there is more news. Each fact that is said counts as said once more.
        """
        encoded = [data for item in extra if (data := self._encode(item))]
        said: dict[Fact, None] = {}
        for fact in facts:
            data = self._data(fact)
            if data:
                encoded.append(data)
                said[fact] = None
        groups = split(encoded)[:MOST_DATAGRAMS] or [[]]
        if filling is not Filling.NOTHING:
            self._fill(groups[-1], said, filling)
        if filling is Filling.ALL and len(groups) < BEAT_DATAGRAMS:
            groups.append([])
            self._fill(groups[-1], said, Filling.NEWS)
        for kind, key in said:
            self._rumors[kind].said(key, self._heat)
        return [group for group in groups if group]

    def _data(self, fact: Fact) -> bytes | None:
        """The bytes that say ``fact``, made once for all datagrams of a beat."""
        if fact not in self._rendered:
            item = self.render(fact)
            self._rendered[fact] = None if item is None else self._encode(item)
        return self._rendered[fact]

    def _encode(self, item: Item) -> bytes | None:
        data = encode_item(item)
        if len(data) > ROOM_BYTES:
            self._oversized(item)
            return None
        return data

    def _fill(self, group: list[bytes], said: dict[Fact, None], filling: Filling) -> None:
        used = sum(map(len, group))
        hot = {kind: rumors.hot() for kind, rumors in self._rumors.items() if rumors.any_hot}
        share = HOT_SHARE if filling is Filling.ALL else 1.0
        used = self._take_turns(hot, group, said, used, int(ROOM_BYTES * share))
        if filling is Filling.ALL:
            cold = {kind: rumors.cold() for kind, rumors in self._rumors.items()}
            used = self._take_turns(cold, group, said, used, ROOM_BYTES)
            rest = {kind: rumors.hot() for kind, rumors in self._rumors.items() if rumors.any_hot}
            self._take_turns(rest, group, said, used, ROOM_BYTES)

    def _take_turns(
        self, queues: Mapping[FactKind, Iterator[Hashable]], group: list[bytes], said: dict[Fact, None], used: int, room: int
    ) -> int:
        """Add one fact of each kind in turn until nothing fits; a kind whose next fact does not fit waits for the next datagram."""
        active = dict(queues)
        while active and used < room:
            for kind, keys in tuple(active.items()):
                for key in keys:
                    if (kind, key) not in said:
                        break
                else:
                    del active[kind]
                    continue
                data = self._data((kind, key))
                if data is None:
                    self._rumors[kind].drop(key)
                elif used + len(data) > room:
                    if room == ROOM_BYTES:
                        self._waiting.setdefault(kind, key)
                    del active[kind]
                else:
                    group.append(data)
                    said[kind, key] = None
                    used += len(data)
        return used
