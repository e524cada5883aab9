"""The ledger: which image is at each path, which is on its way, and the hash of each base dir.

It is the only copy in memory of what the state files say; whoever changes a state file changes the ledger in the same reactor turn, so a
verdict needs no lock and no disk access.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from types import MappingProxyType

import cbor2
from twisted.internet.interfaces import IReactorTime

from ciruela.interfaces import Loaded, Pending
from ciruela.model.config import DirConfig
from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass
from ciruela.model.versions import RetainedVersion, State, Tombstone, Tombstones, Version
from ciruela.model.vpath import VPath
from ciruela.runtime import BoundedMap

ABORT_MEMORY_S = 120.0
"""An upload that was given up is told of for so long (protocol section 10, recently deleted)."""

FIRST_PAUSE_S = 20.0
LONGEST_PAUSE_S = 640.0
"""So long it is not taken again from a peer that has it; twice as long after each failure that follows such a pause."""

GIVEN_UP_MEMORY_S = 2 * 3600.0
"""For so long it is not taken again from a peer that has not got it either. Longer than a download without sources lasts, or two nodes
would tell each other for ever of an upload that nobody can give any more."""

MAX_ABORTS = 4096


NO_BURIALS = Tombstones()


@dataclass(frozen=True, slots=True)
class Abandoned:
    """An upload that this node gave up."""

    vpath: VPath
    image: ImageId
    timestamp_ms: int


NOTHING_REMOVED: Mapping[str, Version] = MappingProxyType({})
NO_CONFIGS: Mapping[str, DirConfig] = MappingProxyType({})


class BaseDirRows:
    """The rows under the hash of a base dir, each encoded once: a change of one entry costs no encoding of the others.

    The hash is BLAKE2b-256 over the CBOR array of ``[name, timestamp, image]``, sorted by the name's UTF-8 bytes.

    Signature lists are left out, unlike the reference's (protocol section 4.4): nodes that hold the same versions agree. In an
    ``append_only`` directory the time of the claim follows where it is not that of the version, which is so for an image that was uploaded
    again. What was removed by a signed wish follows in rows that end with ``true``: nodes that do not know of it differ, and ask.
    """

    def __init__(self, append_only: bool) -> None:
        self.append_only = append_only
        self._entries: dict[str, bytes] = {}
        self._removed: dict[str, bytes] = {}

    def put(self, name: str, state: State | None, removed: Version | None) -> None:
        """``name`` holds ``state`` now, and ``removed`` was removed from it; None for nothing."""
        if state is None:
            _put(self._entries, name, None)
        else:
            stamp_ms, claim_ms = state.version.timestamp_ms, state.claim(removed).timestamp_ms
            claimed = [claim_ms] if self.append_only and claim_ms != stamp_ms else []  # guard: K2.1 I5, -> []
            _put(self._entries, name, [name, stamp_ms, bytes(state.image), *claimed])
        _put(self._removed, name, None if removed is None else [name, removed.timestamp_ms, bytes(removed.image), True])

    def hash(self) -> bytes:
        """The hash of what is there now."""
        # The head of an array is that of the number in another major type (RFC 8949, 3.1).
        head = bytearray(cbor2.dumps(len(self._entries) + len(self._removed)))
        head[0] |= 0x80
        rows = (map(table.__getitem__, sorted(table)) for table in (self._entries, self._removed))
        return hashlib.blake2b(b"".join((head, *chain.from_iterable(rows))), digest_size=32).digest()

    def __bool__(self) -> bool:
        return bool(self._entries or self._removed)


def _put(table: dict[str, bytes], name: str, row: list[object] | None) -> None:
    if row is None:
        table.pop(name, None)
    else:
        table[name] = cbor2.dumps(row)


def base_dir_hash(entries: Mapping[str, State], removed: Mapping[str, Version] = NOTHING_REMOVED, append_only: bool = False) -> bytes:
    """The hash that nodes compare, see :class:`BaseDirRows`."""
    rows = BaseDirRows(append_only)
    for name in {**entries, **removed}:
        rows.put(name, entries.get(name), removed.get(name))
    return rows.hash()


class Ledger:
    """Committed and pending states by path. ``changed`` is called with the base dir after each change that its hash can show."""

    def __init__(self, clock: IReactorTime, configs: Mapping[str, DirConfig] = NO_CONFIGS) -> None:
        self.changed: Callable[[VPath], None] = lambda _base: None
        self._configs = configs
        self._clock = clock
        self._bases: dict[VPath, dict[str, VPath]] = {}
        self._committed: dict[VPath, State] = {}
        self._pending: dict[VPath, Pending] = {}
        self._kept: dict[VPath, tuple[RetainedVersion, ...]] = {}
        self._rows: dict[VPath, BaseDirRows] = {}
        self._hashes: dict[VPath, bytes] = {}
        self._view = MappingProxyType(self._hashes)
        self._stale: dict[VPath, set[str]] = {}
        self._aborts: BoundedMap[tuple[VPath, ImageId], tuple[float, int, Version]] = BoundedMap(MAX_ABORTS)
        self._failures: BoundedMap[tuple[VPath, ImageId], tuple[float, float]] = BoundedMap(MAX_ABORTS)
        self._burials: dict[VPath, Tombstones] = {}
        self._revisions: Counter[VPath] = Counter()

    def fill(self, loaded: Loaded) -> None:
        """Take in what the disk remembers, without telling ``changed``."""
        for base, burials in loaded.burials.items():
            self._bury(base, burials)
            self._revisions[base] += 1
        for one in loaded.held:
            if one.committed is not None:
                self._committed[one.vpath] = one.committed
            if one.pending is not None:
                self._pending[one.vpath] = one.pending
            self.keep(one.vpath, one.kept)
            self._note(one.vpath)

    def forget(self, key: str) -> list[VPath]:
        """The directory config ``key`` is gone: nothing below it counts any more. Gives the paths at which something was."""
        gone = [vpath for base, names in self._bases.items() if base.key == key for vpath in names.values()]
        for base in [base for base in self._burials if base.key == key]:
            self._bury(base, NO_BURIALS)  # guard: F44 I5
            del self._burials[base]
            self._revisions[base] += 1  # guard: F44 I5
        for vpath in [vpath for vpath in self._kept if vpath.key == key]:
            del self._kept[vpath]
        for vpath in gone:
            self._committed.pop(vpath, None)
            self._pending.pop(vpath, None)
            self._touch(vpath)
        for table in (self._aborts, self._failures):
            for entry in [entry for entry in table if entry[0].key == key]:
                del table[entry]
        return gone

    def committed(self, vpath: VPath) -> State | None:
        """Gives the state that is visible at ``vpath``."""
        return self._committed.get(vpath)

    def pending(self, vpath: VPath) -> Pending | None:
        """Gives the upload that is on its way to ``vpath``."""
        return self._pending.get(vpath)

    def latest(self, vpath: VPath) -> State | None:
        """The pending state, else the committed one: what this node says of the path."""
        pending = self._pending.get(vpath)
        return pending.state if pending is not None else self._committed.get(vpath)

    def kept(self, vpath: VPath) -> tuple[RetainedVersion, ...]:
        """The images that were replaced at ``vpath`` and are kept, the one that was replaced last first."""
        return self._kept.get(vpath, ())

    def keep(self, vpath: VPath, kept: tuple[RetainedVersion, ...]) -> None:
        """This is what is kept at ``vpath`` now."""
        self._revisions[vpath.base] += 1
        if kept:
            self._kept[vpath] = kept
        else:
            self._kept.pop(vpath, None)

    def kept_images(self) -> set[ImageId]:
        """All images that are kept."""
        return {one.image for kept in self._kept.values() for one in kept}

    def begin(self, pending: Pending) -> None:
        """An upload was accepted, or its signatures grew."""
        self._pending[pending.vpath] = pending
        self._aborts.pop((pending.vpath, pending.state.image), None)
        self._touch(pending.vpath)

    def commit(self, vpath: VPath, state: State) -> None:
        """``state`` is visible now, or its signatures grew. Ends what was pending with the same image."""
        self._committed[vpath] = state
        self._failures.pop((vpath, state.image), None)
        pending = self._pending.get(vpath)
        if pending is not None and pending.state.image == state.image:  # guard: A51 A52, without 2
            del self._pending[vpath]
        self._touch(vpath)

    def abort(self, vpath: VPath, timestamp_ms: int) -> None:
        """Gives up what was pending at ``vpath``."""
        pending = self._pending.pop(vpath, None)
        if pending is None:
            return
        key = vpath, pending.state.image
        now_s = self._clock.seconds()
        failed_s, pause_s = self._failures.get(key, (now_s, FIRST_PAUSE_S))
        # guard: A54 F30, -> True
        if now_s - failed_s >= pause_s:  # else a client would not wait
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)  # guard: A39 A54 F30
        self._failures.put(key, (now_s, pause_s))
        self._aborts.put(key, (now_s, timestamp_ms, pending.state.version))  # guard: A56 F53
        self._touch(vpath)

    def vanish(self, vpath: VPath, pending: Pending | None) -> None:
        """Forgets what was committed at ``vpath`` and vanished. ``pending`` is to bring it back; None where its record is gone as well."""
        self._committed.pop(vpath, None)
        if pending is not None:
            self._pending[vpath] = pending
        self._touch(vpath)

    def bury(self, vpath: VPath, burials: Tombstones) -> None:
        """The image at ``vpath`` is deleted; ``burials`` is what is remembered of its base dir now. What is on its way there stays."""
        self._committed.pop(vpath, None)
        self._kept.pop(vpath, None)
        self._remember(vpath.base, burials)
        self._touch(vpath)

    def _remember(self, base: VPath, burials: Tombstones) -> None:
        """Unless it is known what was there later: news of two deletions may come in the other order."""
        if burials.serial >= self.burials(base).serial:  # guard: I9, -> True
            self._bury(base, burials)

    def _bury(self, base: VPath, burials: Tombstones) -> None:
        before, after = self.burials(base).tombstones, burials.tombstones
        self._burials[base] = burials
        self._stale.setdefault(base, set()).update(name for name in before.keys() | after.keys() if before.get(name) is not after.get(name))

    def removed(self, base: VPath) -> dict[str, Tombstone]:
        """Gives the signed removals in ``base`` that nothing newer replaced, by entry name.

        In an append-only directory it is told as well where something newer is: a node that missed the removal would claim the path.
        """
        tombstones = self.burials(base).tombstones
        return {entry: one for entry, one in tombstones.items() if self._told(base, entry, one)}

    def _told(self, base: VPath, entry: str, tombstone: Tombstone) -> bool:
        """Tells whether ``tombstone`` is one of :meth:`removed`."""
        if not tombstone.signatures:
            return False
        vpath = self._bases.get(base, {}).get(entry)
        state = None if vpath is None else self.latest(vpath)
        return state is None or state.version <= tombstone.version or self._append_only(base)  # guard: K2.1, without 3

    def _append_only(self, base: VPath) -> bool:
        config = self._configs.get(base.key)
        return config is not None and config.append_only

    def removal(self, vpath: VPath) -> Version | None:
        """The version that was removed from ``vpath`` by a signed wish, when nothing is there since."""
        tombstone = self.burials(vpath.base).tombstones.get(vpath.entry)
        return tombstone.version if tombstone is not None and tombstone.signatures and not self.knows(vpath) else None

    def burials(self, base: VPath) -> Tombstones:
        """Gives the tombstones of ``base``."""
        return self._burials.get(base, NO_BURIALS)

    def fold(self, base: VPath, burials: Tombstones) -> None:
        """Replaces the tombstones of ``base`` while nothing there changes: it outlived a removal, or tombstones became a floor."""
        self._remember(base, burials)
        self._revisions[base] += 1

    def buried_bases(self) -> list[VPath]:
        """The base dirs in which something was deleted."""
        return list(self._burials)

    def recently_aborted(self, vpath: VPath, version: Version, within_s: float | None = None) -> bool:
        """Tells whether this upload was given up less than ``within_s`` ago: at most GIVEN_UP_MEMORY_S, by default the pause that it makes.

        One that was signed again since is another upload: somebody wants it to be tried again.
        """
        entry = self._aborts.get((vpath, version.image))
        if entry is None:
            return False
        age_s = self._clock.seconds() - entry[0]
        if age_s >= GIVEN_UP_MEMORY_S:
            del self._aborts[(vpath, version.image)]
        if within_s is None:
            within_s = self._failures.get((vpath, version.image), (0.0, FIRST_PAUSE_S))[1]
        return age_s < within_s and version <= entry[2]  # guard: A38 F7, without 2

    def abandoned(self) -> list[Abandoned]:
        """The uploads given up lately."""
        return [
            Abandoned(vpath, image, stamp)
            for (vpath, image), (_, stamp, version) in list(self._aborts.items())
            if self.recently_aborted(vpath, version, ABORT_MEMORY_S)
        ]

    def entries(self, base: VPath) -> dict[str, State]:
        """Gives what this node says of a base dir: entry name -> state."""
        found = {}
        for entry, vpath in self._bases.get(base, {}).items():
            state = self.latest(vpath)
            if state is not None:
                found[entry] = state
        return found

    def committed_in(self, base: VPath) -> Iterator[tuple[VPath, State]]:
        """The visible images of a base dir."""
        for vpath in self._bases.get(base, {}).values():
            state = self._committed.get(vpath)
            if state is not None:
                yield vpath, state

    def base_hash(self, base: VPath) -> bytes | None:
        """The hash of a base dir, None when nothing is in it or was removed from it by a signed wish."""
        return self.base_hashes().get(base)

    def base_hashes(self) -> Mapping[VPath, bytes]:
        """The hashes of all base dirs that hold something, or did; a live view, only what changed is computed anew."""
        while self._stale:
            base, names = self._stale.popitem()
            rows = self._renewed(base, names)
            if rows:
                self._rows[base], self._hashes[base] = rows, rows.hash()
            else:
                self._rows.pop(base, None)
                self._hashes.pop(base, None)
        return self._view

    def _renewed(self, base: VPath, names: Iterable[str]) -> BaseDirRows:
        """The rows of ``base`` after changes of the entries ``names``."""
        paths, tombstones, append_only = self._bases.get(base, {}), self.burials(base).tombstones, self._append_only(base)
        rows = self._rows.get(base)
        if rows is None or rows.append_only != append_only:
            rows, names = BaseDirRows(append_only), sorted(paths.keys() | tombstones.keys())
        for name in names:
            tombstone = tombstones.get(name)
            removed = tombstone.version if tombstone is not None and self._told(base, name, tombstone) else None
            rows.put(name, self.latest(paths[name]) if name in paths else None, removed)
        return rows

    def revision(self, base: VPath) -> int:
        """A number that grows whenever anything about ``base`` changes here, whether its hash shows it or not."""
        return self._revisions[base]

    def size(self, base: VPath) -> int:
        """Counts the entries that this node knows in ``base``."""
        return len(self._bases.get(base, ()))

    def paths(self, base: VPath) -> Mapping[str, VPath]:
        """The paths in ``base`` at which something is, or on its way, by entry; a live view."""
        return MappingProxyType(self._bases.get(base, {}))

    def knows(self, vpath: VPath) -> bool:
        """Tells whether something is at ``vpath``, or on its way there."""
        return vpath in self._committed or vpath in self._pending

    def count(self, key: str) -> int:
        """Paths below the directory config ``key`` at which something is, or on its way."""
        return sum(len(names) for base, names in self._bases.items() if base.key == key)

    def pendings(self) -> list[Pending]:
        """All uploads on their way."""
        return list(self._pending.values())

    def __len__(self) -> int:
        return len(self._committed)

    def _note(self, vpath: VPath) -> None:
        base = vpath.base
        self._revisions[base] += 1
        names = self._bases.setdefault(base, {})
        if self.knows(vpath):
            names[vpath.entry] = vpath
        else:
            names.pop(vpath.entry, None)
            if not names:
                del self._bases[base]
        self._stale.setdefault(base, set()).add(vpath.entry)

    def _touch(self, vpath: VPath) -> None:
        self._note(vpath)
        self.changed(vpath.base)
