"""Lists of base dirs, and indexes by path, for those who ask (protocol sections 3.5 and 5.10).

A long list is encoded once for all who ask for it, in a thread.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any

import cbor2
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from ciruela.interfaces import Connection, NodeContext
from ciruela.membership.cluster import Cluster
from ciruela.model.config import DirConfig
from ciruela.model.errors import RemoteError
from ciruela.model.ids import MachineId
from ciruela.model.values import dataclass
from ciruela.model.versions import RetainedVersion, State
from ciruela.model.vpath import VPath
from ciruela.proto.codec import Prepared, prepare
from ciruela.proto.messages import BaseDirData, GetBaseDir, GetIndexAt, IndexAtData, RemovedEntry, Response
from ciruela.runtime import BoundedMap
from ciruela.tracking.ledger import Ledger
from ciruela.tracking.subscriptions import Subscriptions

LONG_ENTRIES = 1000
"""With more entries a list is encoded in a thread, and kept."""

KEPT_LISTS = 4

FRESH_S = 1.0
"""A kept list also says who waits for what, which may have changed after so long though the base dir did not."""

MOST_KEPT_SIGNATURES = 20_000
"""Signatures of kept images in one answer: a fifth of the items that a base dir may have."""


@dataclass(eq=False, slots=True)
class _List:
    """A long list, made at ``made_s`` of ``revision``; until it is encoded those who asked wait."""

    revision: int
    made_s: float
    body: Prepared | None = None
    waiting: list[Deferred[Any]] = field(default_factory=list)


def config_hash(config: DirConfig) -> bytes:
    """The hash of what matters for cleanup (protocol section 4.4); for people who compare nodes, no program evaluates it."""
    return hashlib.blake2b(
        cbor2.dumps(
            {
                "num_levels": config.num_levels,
                "auto_clean": config.auto_clean,
                "keep_min_directories": config.keep_min_directories,
                "keep_max_directories": config.keep_max_directories,
                "keep_recent": config.keep_recent_ms,
            }
        ),
        digest_size=32,
    ).digest()


def kept_signed(rows: Mapping[str, Sequence[RetainedVersion]]) -> dict[str, tuple[State, ...]]:
    """The kept images of each entry with their signatures, as far as these are recorded.

    At most :data:`MOST_KEPT_SIGNATURES` in all, first those of what was replaced last at each entry: a list that is too long for its
    reader would tell nothing of anything.
    """
    found: dict[str, list[State]] = {}
    left = MOST_KEPT_SIGNATURES
    for depth in range(max(map(len, rows.values()), default=0)):
        for entry, kept in rows.items():
            one = kept[depth] if depth < len(kept) else None
            if one is not None and 0 < len(one.signatures) <= left:  # guard: S1, -> one is not None and one.signatures
                left -= len(one.signatures)
                found.setdefault(entry, []).append(State(one.image, one.signatures))
    return {entry: tuple(states) for entry, states in found.items()}


@dataclass(eq=False)
class Listings:
    """Answers GetBaseDir and GetIndexAt. The last long lists that were asked for are kept."""

    # required parameters
    context: NodeContext
    ledger: Ledger
    watches: Subscriptions
    cluster: Cluster

    # internal state
    _kept: BoundedMap[tuple[VPath, bool], _List] = field(init=False, default_factory=lambda: BoundedMap(KEPT_LISTS))

    def index_at(self, link: Connection, request: GetIndexAt) -> Deferred[Response]:
        """Fires with the index of what is committed at a path."""
        try:
            vpath = VPath.parse(request.path)
        except ValueError:
            return succeed(IndexAtData(None))
        hosts = self.cluster.hosts(vpath.key)
        committed = self.ledger.committed(vpath)
        if committed is None:
            return succeed(IndexAtData(None, hosts))

        def found(data: bytes | None) -> Response:
            # guard: K3.6
            if data is None and link.bulk:  # the reference's clients read an empty answer, which says the same as that nothing is there
                raise RemoteError(f"the index of {committed.image.hex()} at {vpath} cannot be read here")
            return IndexAtData(data, hosts)

        return self.context.disk.read_index_bytes(committed.image).addCallback(found)

    def base_dir(self, link: Connection, request: GetBaseDir) -> Deferred[Response]:
        """Fires with the list of a base dir; fails with RemoteError for what is none here."""
        try:
            base = VPath.parse(request.path)
        except ValueError as error:  # guard: F3
            return fail(RemoteError(f"bad path: {error}"))
        config = self.context.configs.get(base.key)
        if config is None:
            return fail(RemoteError("No such config"))
        if base.level != max(config.num_levels - 1, 0):  # guard: F3 I13
            return fail(RemoteError(f"{base} is no base dir: num-levels of /{base.key} is {config.num_levels}"))
        return self.answer(base, link.bulk, lambda: self._listing(config, base, link.bulk))

    def answer(self, base: VPath, bulk: bool, make: Callable[[], BaseDirData]) -> Deferred[Any]:
        """Fires with the list of ``base`` that ``make`` gives for those of version 2 (``bulk``), or for others; a long one is encoded."""
        if self.ledger.size(base) <= LONG_ENTRIES:
            return succeed(make())
        key = base, bulk
        kept = self._kept.get(key)
        if kept is None or kept.revision != self.ledger.revision(base) or self.context.clock.seconds() >= kept.made_s + FRESH_S:
            kept = _List(self.ledger.revision(base), self.context.clock.seconds())
            self._kept.put(key, kept)
            self.context.in_thread(prepare, "GetBaseDir", make()).addBoth(self._encoded, kept, key)
        if kept.body is not None:
            return succeed(kept.body)
        kept.waiting.append(waiting := Deferred[Any]())
        return waiting

    def _encoded(self, result: Prepared | Failure, made: _List, key: tuple[VPath, bool]) -> None:
        if isinstance(result, Prepared):
            made.body = result
        elif self._kept.get(key) is made:
            del self._kept[key]
        waiting, made.waiting = made.waiting, []
        for one in waiting:
            one.callback(result)

    def _listing(self, config: DirConfig, base: VPath, bulk: bool) -> BaseDirData:
        """Lists what is in ``base``; the fields that ``ciruela.v2`` added only for those who know them."""
        entries, paths = self.ledger.entries(base), self.ledger.paths(base)
        watches = {}
        for entry, vpath in paths.items():
            machines = self._watchers(vpath)
            if machines:
                watches[entry] = tuple(sorted(machines))
        pending = tuple(entry for entry in sorted(entries) if self.ledger.pending(paths[entry]) is not None)
        keep_list = hashlib.blake2b(cbor2.dumps([]), digest_size=32).digest()
        removed = {
            entry: RemovedEntry(one.version.timestamp_ms, one.version.image, one.signatures, one.forced)
            for entry, one in (self.ledger.removed(base) if bulk else {}).items()
        }
        rows = {entry: found for entry, vpath in paths.items() if bulk and (found := self.ledger.kept(vpath))}
        kept = {entry: tuple(one.version for one in found) for entry, found in rows.items()}
        return BaseDirData(config_hash(config), keep_list, entries, watches, pending, removed, kept, kept_signed(rows))

    def _watchers(self, vpath: VPath) -> frozenset[MachineId]:
        """The machines whose clients wait for ``vpath``."""
        others = self.cluster.stamped_watchers(vpath)
        return others | {self.context.me} if self.watches.watched(vpath) else others
