"""States, indexes and images of this node on real file systems: implements ``interfaces.Disk``."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import TypeVar
from weakref import WeakValueDictionary

from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.disk import collection, commit, recovery, retained, sidecar, states, tombstones
from ciruela.disk.bases import Bases
from ciruela.disk.collection import Marks, collect
from ciruela.disk.deletion import delete, prune
from ciruela.disk.examine import TreeExamination
from ciruela.disk.executor import ENTRY_COST, SerialExecutor, Steps
from ciruela.disk.hashrecord import HashRecord
from ciruela.disk.layout import NEW_STATE, STATE, BaseUnavailable, Place, Records, place
from ciruela.disk.reader import Readers
from ciruela.disk.recovery import finish_aside, settle_path
from ciruela.disk.removal import DelayedDeletions, remove_tree
from ciruela.disk.reuse import Content
from ciruela.disk.safedir import SafeDir
from ciruela.disk.staging import StagingDir, StagingRules, no_space, open_staging, room
from ciruela.disk.states import CommitPhase, Journal
from ciruela.disk.syscalls import checked, checked_steps, downloading_steps
from ciruela.disk.tree import Tree
from ciruela.disk.trust import RecordTrust, Vetting
from ciruela.index.tree import Index
from ciruela.interfaces import Examination, Identity, InThread, Loaded, NamesFound, Pending, SetAside, Staging
from ciruela.model.config import STANDARD, STANDARD_MODES, DirConfig, Fsync, Modes, Reuse, Tuning
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.hooks import Due
from ciruela.model.ids import Block, ImageId
from ciruela.model.upload import AbortReason
from ciruela.model.versions import State, Tombstone, Tombstones
from ciruela.model.vpath import VPath

T = TypeVar("T")

MOST_TREES = 8192
"""Images that are put together at a time, where nothing says that there are few descriptors."""


class Store:
    """The files of one daemon.

    ``db_dir`` must exist and be locked (``disk.version``). ``configs`` may change while the store is in use. All file work goes through
    ``in_thread``; what concerns one virtual path happens in the order in which it was asked for. ``trust`` judges records without a
    checksum, all are believed without it. At most ``trees`` images are put together at a time, the next one waits.
    """

    _log = Logger()

    def __init__(
        self,
        db_dir: str,
        configs: Mapping[str, DirConfig],
        in_thread: InThread,
        tuning: Tuning = STANDARD,
        trust: RecordTrust | None = None,
        trees: int = MOST_TREES,
    ) -> None:
        self._tuning = tuning
        self._records = Records(db_dir, tuning.fsync is not Fsync.NONE)
        self._configs = configs
        self._in_thread = in_thread
        self._lanes: WeakValueDictionary[VPath, SerialExecutor] = WeakValueDictionary()
        self._index_lanes: WeakValueDictionary[ImageId, SerialExecutor] = WeakValueDictionary()
        self._readers = Readers()
        self._marks = Marks()
        self._bases = Bases(self._records)
        self._vetting = None if trust is None else Vetting(self._records, trust)
        self._trees = DeferredSemaphore(trees)
        self._staged: Counter[tuple[str, tuple[str, ...], str]] = Counter()
        self._hashes = HashRecord(self._records)
        self._litter = DelayedDeletions(lambda place, name: self._staged[place.base, place.parents, name] > 0, self._hashes)
        self._aside: dict[tuple[str, tuple[str, ...]], tuple[Place, list[SetAside]]] = {}

    def close(self) -> None:
        """Close descriptors that are kept for serving blocks, and keep what is known of files."""
        self._readers.close()
        self._hashes.save(now=True)

    def place(self, vpath: VPath) -> Place:
        """Finds the place at which the image at ``vpath`` stands, or is to stand. Raises DiskError when no config takes it."""
        return self._located(place(self._configs, vpath))

    def _located(self, where: Place) -> Place:
        return replace(where, durable=self._tuning.fsync is not Fsync.NONE, guard=self._bases.check, inner=self._bases.check_inner)

    def _lane(self, vpath: VPath) -> SerialExecutor:
        lane = self._lanes.get(vpath)
        if lane is None:
            lane = self._lanes[vpath] = SerialExecutor(self._in_thread, str(vpath))
        return lane

    # -- states ----------------------------------------------------------------------------------------------------------------

    def load(self) -> Deferred[Loaded]:
        """As ``interfaces.Disk.load``; only before anything else is asked. A fault of one path is logged and that path left out."""
        return self._load(recovery.load(self._records, self._configs, self.place, self._litter.left, self._vetting))

    def _load(self, work: Steps[recovery.RecoveredState]) -> Deferred[Loaded]:
        def loaded(found: recovery.RecoveredState) -> Loaded:
            self._aside.update({(place.base, place.parents): (place, asides) for place, asides in found.aside})
            return found.loaded

        return SerialExecutor(self._in_thread, "loading").steps(checked_steps("loading", work)).addCallback(loaded)

    def load_added(self, configs: Mapping[str, DirConfig]) -> Deferred[Loaded]:
        """As ``interfaces.Disk.load_added``."""
        located = lambda vpath: self._located(place(configs, vpath))  # noqa: E731
        return self._load(recovery.load(self._records, configs, located, self._litter.left, self._vetting, alone=False))

    def forget(self, vpaths: Collection[VPath]) -> None:
        """As ``interfaces.Disk.forget``."""
        for vpath in vpaths:
            self._readers.forget(vpath)

    def tune(self, tuning: Tuning) -> None:
        """Let this count from now on, but for ``fsync`` and ``max_index_bytes``, which stay as they were at the start."""
        self._tuning = replace(tuning, fsync=self._tuning.fsync, max_index_bytes=self._tuning.max_index_bytes)

    def write_pending(self, pending: Pending) -> Deferred[None]:
        """As ``interfaces.Disk.write_pending``. The staging directory of another image that was pending here is removed."""
        self._marks.want(pending.state.image)
        lane = self._lane(pending.vpath)
        return lane.steps(checked_steps(pending.vpath, self._write_pending(pending, lane)))

    def _write_pending(self, pending: Pending, lane: SerialExecutor) -> Steps[None]:
        lane.records += 1
        place = self.place(pending.vpath)
        with self._records.states(pending.vpath, create=True) as directory:
            before = states.read_journal(directory, place.record)
            if before is not None and before.aside:
                with place.open_parent() as parent:
                    finish_aside(directory, place, parent)
                    self._note_aside(parent, place)  # guard: K3.1 I9
                before = states.read_journal(directory, place.record)
            if before is not None and before.state.image != pending.state.image:
                yield from self._forget(place, directory, lane)
                before = None
            journal = Journal(pending.state, pending.command)
            if before is not None:  # guard: A43 A52
                journal = Journal(pending.state, pending.command, before.phase, before.staging)
            states.write_journal(directory, place.record, journal)
        yield ENTRY_COST

    def drop_pending(self, vpath: VPath) -> Deferred[None]:
        """As ``interfaces.Disk.drop_pending``. A commit that was interrupted after its image was shown is finished instead."""
        lane = self._lane(vpath)
        return lane.steps(checked_steps(vpath, self._drop_pending(vpath, lane)))

    def _drop_pending(self, vpath: VPath, lane: SerialExecutor) -> Steps[None]:
        place = self.place(vpath)
        try:
            directory = self._records.states(vpath)
        except FileNotFoundError:
            return
        with directory:
            yield from self._forget(place, directory, lane)
        self._readers.forget(vpath)

    def _forget(self, place: Place, directory: SafeDir, lane: SerialExecutor) -> Steps[None]:
        """Remove journal and staging directory; first the latter, so that a kill in between leaves no debris without a name.

        Another upload may be recorded between two slices: then the journal is its journal, and what is staged from then on is its own.
        """
        records = lane.records
        parent = place.parent_if_any()
        try:
            journal = states.read_journal(directory, place.record)
            if journal is not None and journal.phase is CommitPhase.READY and parent is not None:
                settle_path(directory, place, parent, base_there=False)  # guard: A43
                journal = states.read_journal(directory, place.record)
            for state in (journal.state if journal is not None else None, states.read_state(directory, place.record)):
                if parent is not None and state is not None and lane.records == records:
                    yield from self._remove_staging(parent, place, place.staging(state.image))
            if lane.records == records:  # guard: A43, -> True
                if parent is not None and not place.vpath.entry:  # a start knows the debris of level 0 by the journal alone
                    parent.fsync()
                states.drop_journal(directory, place.record)
        finally:
            if parent is not None:
                parent.close()

    def _remove_staging(self, parent: SafeDir, place: Place, name: str) -> Steps[None]:
        """Removes a staging directory; a failure is tried again later, and does not keep an upload from being forgotten."""
        try:
            yield from remove_tree(parent, name)
        except OSError as error:
            self._log.error("{name} cannot be removed now: {error}", name=parent.within(name), error=error)
            self._litter.left(place, name)

    def write_state(self, vpath: VPath, state: State) -> Deferred[None]:
        """As ``interfaces.Disk.write_state``."""

        def write() -> None:
            record = self.place(vpath).record
            with self._records.states(vpath, create=True) as directory:
                states.write_state(directory, record, state)

        return self._lane(vpath).do(checked, vpath, write)

    # -- hooks -----------------------------------------------------------------------------------------------------------------

    def write_due(self, due: Due) -> Deferred[None]:
        """As ``interfaces.Disk.write_due``."""

        def write() -> None:
            with self._records.states(due.vpath, create=True) as directory:
                sidecar.write_due(directory, due)

        return self._lane(due.vpath).do(checked, due.vpath, write)

    def drop_due(self, vpath: VPath, image: ImageId) -> Deferred[None]:
        """As ``interfaces.Disk.drop_due``."""

        def drop() -> None:
            try:
                directory = self._records.states(vpath)
            except FileNotFoundError:
                return
            with directory:
                sidecar.drop_due(directory, vpath, image)

        return self._lane(vpath).do(checked, vpath, drop)

    def where(self, vpath: VPath) -> str:
        """As ``interfaces.Disk.where``."""
        return str(self.place(vpath))

    # -- deleting --------------------------------------------------------------------------------------------------------------

    def remove(self, vpath: VPath, tombstone: Tombstone, index: Index | None = None) -> Deferred[Tombstones]:
        """As ``interfaces.Disk.remove``."""
        place = self.place(vpath)

        def hidden(found: tuple[Tombstones, str | None]) -> Tombstones:
            self._readers.forget(vpath)  # guard: F58 I1
            now, doomed = found
            if doomed is not None:
                self._discard_later(place, doomed)
            self._discard_kept(place)
            self._lane(vpath).steps(checked_steps(vpath, prune(place))).addErrback(self._not_removed, place)
            return now

        return self._lane(vpath).steps(checked_steps(vpath, delete(self._records, place, tombstone, index))).addCallback(hidden)

    def remember(self, vpath: VPath, tombstone: Tombstone) -> Deferred[Tombstones]:
        """As ``interfaces.Disk.remember``."""
        place = self.place(vpath)

        def add() -> Tombstones:
            with self._records.states(vpath, create=True) as directory:
                return tombstones.add(directory, place, tombstone)

        return self._in_thread(checked, vpath.base, add)

    def fold_burials(self, vpath: VPath, before_ms: int) -> Deferred[Tombstones]:
        """As ``interfaces.Disk.fold_burials``."""
        place = self.place(vpath)

        def fold() -> Tombstones:
            with self._records.states(vpath, create=True) as directory:
                return tombstones.fold(directory, place, before_ms)

        return self._in_thread(checked, vpath.base, fold)

    def identity(self, key: str) -> Deferred[Identity]:
        """As ``interfaces.Disk.identity``; at level 0 of the directory above, in which the image is exchanged."""

        def look() -> Identity:
            with self._base(key) as base:
                found = base.status()
            return found.st_dev, found.st_ino

        return self._in_thread(checked, f"/{key}", look)

    def room(self, key: str) -> Deferred[tuple[int, int, int]]:
        """Of the file system of the directory of ``key``: bytes free, its size, and what a download leaves free. Fails with DiskError."""

        def look() -> tuple[int, int, int]:
            with self._base(key) as base:
                free, size = base.free_bytes()
            return free, size, self._tuning.reserve_bytes(size)

        return self._in_thread(checked, key, look)

    def free(self, key: str) -> Deferred[int]:
        """As ``interfaces.Disk.free``."""
        return self.room(key).addCallback(lambda found: max(0, found[0] - found[2]))

    def _base(self, key: str) -> SafeDir:
        config = self._configs.get(key)
        if config is None:
            raise DiskError(f"no directory is configured for {key!r}")
        return self.place(VPath((key, *("x" for _ in range(config.num_levels))))).open_base()

    def collect_indexes(self, keep: Collection[ImageId]) -> Deferred[int]:
        """As ``interfaces.Disk.collect_indexes``. An upload that is accepted meanwhile keeps its index."""
        self._marks.begin()

        def ended(result: T) -> T:
            self._marks.end()
            return result

        work = checked_steps("index collection", collect(self._records, frozenset(keep), self._marks))
        return SerialExecutor(self._in_thread, "index collection").steps(work).addBoth(ended)

    # -- indexes ---------------------------------------------------------------------------------------------------------------

    def read_index(self, image: ImageId) -> Deferred[Index | None]:
        """As ``interfaces.Disk.read_index``."""
        return self._in_thread(checked, f"index {image.hex()}", collection.load, self._records, image)

    def read_index_bytes(self, image: ImageId) -> Deferred[bytes | None]:
        """As ``interfaces.Disk.read_index_bytes``; hashed, not parsed."""
        return self._in_thread(checked, f"index {image.hex()}", collection.load_bytes, self._records, image)

    def write_index(self, image: ImageId, data: bytes) -> Deferred[Index]:
        """As ``interfaces.Disk.write_index``. The same index for several paths at once is written by one after the other."""
        lane = self._index_lanes.get(image)
        if lane is None:
            lane = self._index_lanes[image] = SerialExecutor(self._in_thread, f"index {image.hex()}")
        return lane.do(checked, f"index {image.hex()}", collection.store, self._records, image, data, self._tuning.max_index_bytes)

    # -- images ----------------------------------------------------------------------------------------------------------------

    def stage(self, vpath: VPath, index: Index) -> Deferred[Staging]:
        """As ``interfaces.Disk.stage``. Whether it fits is judged here only if nothing could be linked, else with the first write."""
        return self._trees.acquire().addCallback(lambda _: self._stage_now(vpath, index))  # guard: K8.3, -> self._stage_now(vpath, index)

    def _stage_now(self, vpath: VPath, index: Index) -> Deferred[Staging]:
        lane = self._lane(vpath)
        try:
            place = self.place(vpath)
        except DiskError:
            self._trees.release()
            raise
        self._staged[place.base, place.parents, place.staging(index.image)] += 1

        def not_staged(failure: Failure) -> Failure:
            self.staging_closed(place, index.image)
            return failure

        work = downloading_steps(vpath, self._stage_twice(place, index, lane))
        return lane.steps(work).addErrback(not_staged)

    def _stage_twice(self, place: Place, index: Index, lane: SerialExecutor) -> Steps[Staging]:
        """A directory that was just made may be gone again: it was empty, and an image was deleted from it."""
        try:
            return (yield from self._stage(place, index, lane))
        except FileNotFoundError:
            return (yield from self._stage(place, index, lane))

    def _stage(self, place: Place, index: Index, lane: SerialExecutor) -> Steps[Staging]:
        vpath = place.vpath
        config = self._configs[vpath.key]
        reuse = config.reuse
        repaired = self._committed_image(place) == index.image
        modes = self._modes_of(place, index.image) if repaired else config.modes  # other settings are for new images only
        yield ENTRY_COST
        try:
            parent = place.open_parent(create=True)
        except BaseUnavailable as error:  # guard: A40 F30
            raise DownloadFailed(AbortReason.CANT_CREATE_DIRECTORY, str(error)) from error
        except NotADirectoryError as error:
            raise DownloadFailed(AbortReason.CANT_CREATE_DIRECTORY, f"{place}: {error.filename} is not a directory") from error
        with parent:
            name = place.staging(index.image)
            free = room(parent, self._tuning)
            shares = reuse in (Reuse.HARDLINK, Reuse.REFLINK)
            if parent.stat(name) is None and index.total_bytes > free and not (shares and self._has_images(vpath)):  # guard: A38 F7
                raise no_space(index.total_bytes, free)
            self._readers.forget(vpath)
            with suppress(FileNotFoundError), self._records.states(vpath) as directory:
                # or what is set aside, and has no name of its own yet, would be staged and deleted
                if finish_aside(directory, place, parent):  # guard: K3.1 A43 I9
                    self._note_aside(parent, place)
            root = open_staging(parent, name)
        tuning = self._tuning
        # A copy that is damaged has the ctime of the good one, so it is read before anything of it is used again.
        trusting = tuning.trust_ctime and tuning.fsync is not Fsync.NONE and not repaired  # guard: A10 A50, without 3; A44 I1, without 2
        rules = StagingRules(tuning, reuse, modes, self._hashes if trusting else None)
        return StagingDir(self, self._records, place, Content(index, Tree(root), modes), lane, rules)

    def staging_closed(self, place: Place, image: ImageId) -> None:
        """As ``staging.StagingHost.staging_closed``: another image may be put together."""
        self._staged[place.base, place.parents, place.staging(image)] -= 1
        self._trees.release()

    def _modes_of(self, place: Place, image: ImageId) -> Modes:
        """The modes that a committed image was given."""
        try:
            with self._records.states(place.vpath) as directory:
                return sidecar.read_modes(directory, place.vpath, image)
        except FileNotFoundError:
            return STANDARD_MODES

    def _has_images(self, vpath: VPath) -> bool:
        """Tells whether an image is committed in the same base dir, whose files might be linked. A journal is no image."""
        try:
            with self._records.states(vpath) as directory:
                names = [name.removesuffix(STATE) for name in directory.names() if name.endswith(STATE) and not name.endswith(NEW_STATE)]
                return any(states.read_state(directory, name) for name in names)
        except FileNotFoundError:
            return False

    def staging_shown(self, place: Place, image: ImageId, aside: bool) -> None:
        """As ``staging.StagingHost.staging_shown``: forget what is open there, delete the old tree, see what was set aside."""
        self._readers.forget(place.vpath)
        if aside:
            self._lane(place.vpath).do(checked, place.vpath, self._finish_aside, place).addErrback(self._not_named, place)
        else:
            self._discard_later(place, place.staging(image))
        self._discard_kept(place)

    def _finish_aside(self, place: Place) -> None:
        """Gives what stood there without a record its own name, unless it has it; it is never debris."""
        with place.open_parent() as parent, self._records.states(place.vpath) as directory:
            finish_aside(directory, place, parent)
            self._note_aside(parent, place)

    def _note_aside(self, parent: SafeDir, place: Place) -> None:
        """Look which trees are set aside beside the image of ``place``."""
        self._aside[place.base, place.parents] = place, commit.found(parent, place, parent.names())

    def set_aside(self) -> Sequence[SetAside]:
        """As ``interfaces.Disk.set_aside``."""
        return [one for _, asides in list(self._aside.values()) for one in asides]

    def tidy(self, *, delete: bool) -> Deferred[int]:
        """As ``interfaces.Disk.tidy``."""

        def again() -> Steps[int]:
            if delete:
                yield from self._litter.again()
            for at, (where, asides) in list(self._aside.items()):
                if asides:
                    yield ENTRY_COST * len(asides)
                    try:
                        with where.open_parent() as parent:
                            self._note_aside(parent, where)
                    except FileNotFoundError:
                        self._aside[at] = where, []
                    except (BaseUnavailable, OSError) as error:
                        self._log.debug("what is set aside at {place} cannot be looked at: {error}", place=str(where), error=error)
            return len(self._litter)

        return SerialExecutor(self._in_thread, "tidying").steps(checked_steps("tidying", again()))

    def _discard_kept(self, place: Place) -> None:
        """Delete replaced images that are not kept any more."""
        if not place.keep:
            return

        def remove() -> Steps[None]:
            try:
                directory = self._records.states(place.vpath)
            except FileNotFoundError:
                return
            with directory, place.open_parent() as parent:
                yield from retained.discard(directory, parent, place, self._hashes)

        self._lane(place.vpath).steps(checked_steps(place.vpath, remove())).addErrback(self._not_removed, place)

    def _discard_later(self, place: Place, name: str) -> None:
        """Delete a tree that nobody sees any more."""

        def remove() -> Steps[None]:
            with place.open_parent() as parent:
                yield from remove_tree(parent, name, self._hashes)
            self._hashes.save()

        def failed(failure: Failure) -> Failure:
            self._litter.left(place, name)
            return failure

        work = self._lane(place.vpath).steps(checked_steps(place.vpath, remove()))
        work.addErrback(failed).addErrback(self._not_removed, place, ", it is tried again each hour")

    def _not_removed(self, failure: Failure, place: Place, then: str = "") -> None:
        self._log.error(
            "the old content of {vpath} cannot be removed now{then}: {error}", vpath=str(place.vpath), then=then, error=failure.value
        )

    def _not_named(self, failure: Failure, place: Place) -> None:
        self._log.error(
            "{vpath}: what stood there without a record gets no name of its own now: {error}", vpath=str(place.vpath), error=failure.value
        )

    def present(self, vpath: VPath) -> Deferred[bool]:
        """As ``interfaces.Disk.present``. Fails with DiskError when the base cannot be opened: then nobody can tell."""

        def look() -> bool:
            place = self.place(vpath)
            try:
                parent = place.open_parent()
            except FileNotFoundError:
                return False
            with parent:
                found = parent.stat(place.name)
            return found is not None and stat.S_ISDIR(found.st_mode)

        return self._in_thread(checked, vpath, look)

    def look(self, vpaths: Sequence[VPath]) -> Deferred[NamesFound]:
        """As ``interfaces.Disk.look``."""

        def all_of_them() -> NamesFound:
            gone: list[VPath] = []
            unseen: dict[str, str] = {}
            for base, images in groupby(vpaths, attrgetter("base")):
                try:
                    gone += self._gone(list(images))
                except (DiskError, OSError) as error:
                    unseen[base.key] = str(error)
            return NamesFound(tuple(gone), unseen)

        return self._in_thread(all_of_them)

    def _gone(self, images: Sequence[VPath]) -> list[VPath]:
        """Those of the images of one base dir at whose names no directory stands. Raises DiskError, OSError."""
        sample = self.place(images[0])
        try:
            parent = sample.open_parent()
        except FileNotFoundError:
            return list(images)
        with parent:
            found = [(vpath, parent.stat(sample.sibling(vpath).name if vpath.level else sample.name)) for vpath in images]
        return [vpath for vpath, status in found if status is None or not stat.S_ISDIR(status.st_mode)]

    def prove(self, most: int) -> Deferred[Sequence[VPath]]:
        """As ``interfaces.Disk.prove``."""
        vetting = self._vetting
        if vetting is None or not vetting.waiting:
            return succeed(())

        def judge(vpath: VPath) -> bool:
            with self._records.states(vpath) as directory:
                return vetting.prove(directory, self.place(vpath))

        def put_off(failure: Failure, vpath: VPath) -> bool:
            failure.trap(DiskError)
            self._log.warn("{vpath}: its record gets no checksum now: {error}", vpath=str(vpath), error=failure.value)
            return True

        due = [vetting.waiting.popleft() for _ in range(min(most, len(vetting.waiting)))]
        # On the lane of each: a commit between the reading and the writing of a record would be undone.
        # guard: K3.3, self._lane(vpath).do -> self._in_thread
        proved = [self._lane(vpath).do(checked, vpath, judge, vpath).addErrback(put_off, vpath) for vpath in due]
        return gatherResults(proved).addCallback(lambda good: [vpath for vpath, retained in zip(due, good, strict=True) if not retained])

    def recorded(self, vpath: VPath) -> Deferred[bool]:
        """As ``interfaces.Disk.recorded``."""
        return self._lane(vpath).do(checked, vpath, lambda: self._committed_image(self.place(vpath)) is not None)

    def examine(self, vpath: VPath, index: Index) -> Examination:
        """As ``interfaces.Disk.examine``."""

        def open_tree() -> Tree | None:
            place = self.place(vpath)
            try:
                with place.open_parent() as parent:
                    return Tree(parent.open_dir(place.name))
            except (FileNotFoundError, NotADirectoryError):
                return None

        def current(tree: Tree | None) -> bool:
            place = self.place(vpath)
            if self._committed_image(place) != index.image:
                return False  # guard: A10, -> True
            try:
                with place.open_parent() as parent:
                    standing = parent.stat(place.name)
            except FileNotFoundError:
                standing = None
            if tree is None or standing is None:
                return tree is None and (standing is None or not stat.S_ISDIR(standing.st_mode))
            opened = tree.root.status()
            return (opened.st_dev, opened.st_ino) == (standing.st_dev, standing.st_ino)

        modes = lambda: self._modes_of(self.place(vpath), index.image)  # noqa: E731
        return TreeExamination(vpath, index, self._lane(vpath), open_tree, current, modes, self._hashes.void)

    def read_blocks(self, vpath: VPath, index: Index, numbers: Sequence[int]) -> list[Block | None]:
        """As ``interfaces.Disk.read_blocks``. An image that is not committed is read from its staging directory."""

        def read() -> list[Block | None]:
            place = self.place(vpath)
            try:
                return self._readers.read(place, index, numbers, lambda: self._open_image(place, index.image))
            except (BaseUnavailable, FileNotFoundError, NotADirectoryError):
                return [None] * len(numbers)

        return checked(vpath, read)

    def _open_image(self, place: Place, image: ImageId) -> SafeDir:
        with place.open_parent() as parent:
            if self._committed_image(place) == image and parent.stat(place.name) is not None:  # guard: I1 A10, without 1
                return parent.open_dir(place.name)
            if parent.stat(place.kept(image)) is not None:
                return parent.open_dir(place.kept(image))
            return parent.open_dir(place.staging(image))

    def _committed_image(self, place: Place) -> ImageId | None:
        try:
            with self._records.states(place.vpath) as directory:
                committed = states.read_state(directory, place.record)
        except FileNotFoundError:
            return None
        return None if committed is None else committed.image
