"""Recovery at the start: interrupted commits, forgotten journals, debris (protocol section 5.15, threats 6.4)."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping, Sequence

from twisted.logger import Logger

from ciruela.disk import bases, commit, retained, sidecar, states, tombstones
from ciruela.disk.deletion import finish_interrupted, prune
from ciruela.disk.executor import ENTRY_COST, Steps
from ciruela.disk.layout import INDEX, INDEXES, NEW_STATE, SIGNATURES, STATE, BaseUnavailable, Place, Records
from ciruela.disk.removal import DOOMED, remove_tree
from ciruela.disk.safedir import RESERVED, SafeDir
from ciruela.disk.states import TEMPORARY, Journal
from ciruela.disk.trust import Vetting
from ciruela.interfaces import Held, Loaded, Pending, SetAside
from ciruela.model.config import DirConfig
from ciruela.model.hooks import Due
from ciruela.model.ids import ImageId
from ciruela.model.upload import Command
from ciruela.model.values import dataclass
from ciruela.model.versions import State, Tombstones
from ciruela.model.vpath import VPath, check_component

_log = Logger()

Left = Callable[[Place, str], None]
"""Told of a name beside the image of a place that could not be removed."""


@dataclass(frozen=True, slots=True)
class RecoveredState:
    """Result of recovery: what is held, and what was set aside, by place."""

    loaded: Loaded
    aside: Sequence[tuple[Place, list[SetAside]]]


def settle_path(
    directory: SafeDir, where: Place, parent: SafeDir | None, *, base_there: bool, vetting: Vetting | None = None
) -> Held | None:
    """Bring the records of one path and what stands at it to agree, and tell what is held; None for nothing. Raises OSError.

    ``directory`` has the state files, ``parent`` is the directory of the image (None where it does not exist), ``base_there`` is False when
    the base cannot be opened: then nothing is concluded from what is not seen (C8). ``vetting`` judges records without a checksum.
    """
    vpath, name, record = where.vpath, where.name, where.record
    journal = states.read_journal(directory, record, None if vetting is None else vetting.pending(where))
    committed = states.read_state(directory, record, None if vetting is None else vetting.at_start(where))
    if base_there and finish_interrupted(directory, parent, where):  # guard: A12 A43 F37 I10
        return None
    if journal is not None and parent is not None:  # guard: A43 F36
        _put_back(parent, where, journal)
    if journal is not None and _shown(parent, name, journal):  # guard: A43 F35 F36 I10
        _log.info("{vpath}: the interrupted commit of {image} is finished", vpath=str(vpath), image=journal.state.image.hex())
        assert parent is not None
        parent.fsync()  # guard: A43 A44 I1
        if journal.aside:  # guard: K3.1 A43 I9
            commit.take(parent, where, (where.staging(journal.state.image), where.aside(journal.state.image)))
        committed = _commit(directory, record, journal.state if committed is None else _joined(committed, journal.state))
        journal = None
    elif journal is not None and committed is not None and journal.state.image == committed.image:
        committed = _commit(directory, record, _joined(committed, journal.state))
        journal = None
    pending = None if journal is None else Pending(vpath, journal.state, journal.resolved(committed))
    if committed is not None and base_there and not _is_dir(parent, name):  # guard: I1 A45; A40 I9 F30, without 2
        _log.warn("{vpath}: the image {image} is gone from the disk, it is fetched again", vpath=str(vpath), image=committed.image.hex())
        pending = pending or Pending(vpath, committed, Command.APPEND)
        committed = None
    rows = retained.settle(parent, directory, where, committed, None if pending is None else pending.state.image) if base_there else ()
    return None if committed is None and pending is None else Held(vpath, committed, pending, retained.images(rows))


def finish_aside(directory: SafeDir, where: Place, parent: SafeDir) -> bool:
    """A commit that was to set something aside and stopped half-way is finished, or undone: what has no record must not become debris.

    Whether there was one. Raises OSError; then nobody may touch the staging directory.
    """
    journal = states.read_journal(directory, where.record)
    if journal is None or not journal.aside:
        return False
    settle_path(directory, where, parent, base_there=False)
    journal = states.read_journal(directory, where.record)
    if journal is not None:  # nothing was exchanged
        states.write_journal(directory, where.record, Journal(journal.state, journal.command))
    return True


def _joined(committed: State, new: State) -> State:
    return committed.merged(new.signatures) if committed.image == new.image else new


def _commit(directory: SafeDir, record: str, state: State) -> State:
    if states.read_state(directory, record) != state:
        states.write_state(directory, record, state)
    states.drop_journal(directory, record)
    return state


def _put_back(parent: SafeDir, where: Place, journal: Journal) -> None:
    """Finish or undo an exchange on a file system that has none: while the name is empty, the old image waits aside."""
    aside = where.aside(journal.state.image)
    if parent.stat(aside) is not None and parent.stat(where.name) is None:
        parent.rename_new(aside, where.name)
        parent.fsync()


def _shown(parent: SafeDir | None, name: str, journal: Journal) -> bool:
    """Tells whether the staging directory that the journal speaks of stands at its final name.

    Its inode tells: both names are in one directory. The number of the device says nothing, the same disk may get another at each boot.
    """
    if journal.staging is None or parent is None:
        return False
    found = parent.stat(name)
    return found is not None and found.st_ino == journal.staging[1]  # guard: A43 F35, without 2


def _is_dir(parent: SafeDir | None, name: str) -> bool:
    found = None if parent is None else parent.stat(name)
    return found is not None and stat.S_ISDIR(found.st_mode)


class _Sweep:
    """Directories of images in which debris is looked for. One may belong to several configs: it is swept once, for all of them.

    ``left`` is told of debris that cannot be removed. ``aside`` is what was found that had been set aside.
    """

    def __init__(self, left: Left) -> None:
        self.left = left
        self.aside: list[tuple[Place, list[SetAside]]] = []
        self._where: dict[tuple[int, int], Place] = {}
        self._keep: dict[tuple[int, int], set[str]] = {}
        self._spared: set[tuple[int, int]] = set()

    def add(self, parent: SafeDir, sample: Place) -> tuple[int, int]:
        status = parent.status()
        identity = (status.st_dev, status.st_ino)
        self._where[identity] = sample
        return identity

    def keep(self, identity: tuple[int, int], name: str) -> None:
        self._keep.setdefault(identity, set()).add(name)

    def spare(self, identity: tuple[int, int]) -> None:
        self._spared.add(identity)

    def run(self) -> Steps[None]:
        for identity, where in self._where.items():
            try:
                with where.open_parent() as parent:
                    names = parent.names()
                    self.aside.append((where, commit.found(parent, where, names)))
                    for name in () if identity in self._spared else names:
                        # guard: A57 F40, without 2; I9, without 1
                        if name.startswith(RESERVED) and name not in self._keep.get(identity, ()):
                            yield from _remove_debris(parent, name, where, self.left)
            except OSError as error:
                _log.error("debris cannot be looked for in {base}: {error}", base=where.base, error=error)


def _remove_debris(parent: SafeDir, name: str, where: Place, left: Left) -> Steps[None]:
    try:
        yield from remove_tree(parent, name)
    except OSError as error:
        _log.error("debris {name} cannot be removed now, it is tried again each hour: {error}", name=parent.within(name), error=error)
        left(where, name)
    else:
        _log.info("debris {name} was removed", name=parent.within(name))


def load(
    records: Records,
    configs: Mapping[str, DirConfig],
    locate: Callable[[VPath], Place],
    left: Left,
    vetting: Vetting | None = None,
    *,
    alone: bool = True,
) -> Steps[RecoveredState]:
    """Everything below configured keys, after interrupted commits were finished and debris was removed. Raises OSError, DiskError.

    ``left`` is told of debris that cannot be removed, ``vetting`` judges records without a checksum. Unless this is ``alone``, other keys
    are in use meanwhile: then half-written files, which may be theirs, are left to the next start.
    """
    held: list[Held] = []
    buried: dict[VPath, Tombstones] = {}
    due: list[Due] = []
    emptied: list[Place] = []
    sweep = _Sweep(left)
    _sync_top(records)  # guard: A44 F35 I2
    if alone:
        yield from _remove_temporary_bases(records)
        yield from _remove_temporary_hashes(records)  # guard: I11
    for config in sorted(configs.values(), key=lambda config: config.key):
        for parts, directory in _base_dirs(records, config):
            with directory:
                if alone:
                    # guard: A43 I11, STATE, tombstones.NAME -> tombstones.NAME
                    for suffix in (STATE, tombstones.NAME, retained.SUFFIX, sidecar.DUE, sidecar.MODES):
                        yield from _remove_temporary(directory, suffix)
                before = len(held)
                if config.num_levels:
                    vpaths = [VPath((*parts, name)) for name in _image_names(directory)]
                    sample = locate(VPath((*parts, "x")))
                    _vet_burials(directory, sample, vetting)
                    yield from _load_base_dir(sample, vpaths, directory, sweep, held, vetting)
                    if len(held) == before and tombstones.read(directory, sample).tombstones:
                        emptied.append(sample)
                else:
                    sample = locate(VPath((config.key,)))
                    _vet_burials(directory, sample, vetting)
                    yield from _load_single(sample, directory, held, sweep, vetting, alone=alone)
                found = tombstones.read(directory, sample)
                if found != Tombstones():
                    buried[sample.vpath.base] = found
                due += yield from sidecar.all_due(directory, sample.vpath.base)
                if {VPath((*parts, name)) for name in _image_names(directory)} <= {one.vpath for one in held[before:]}:
                    yield from sidecar.sweep_modes(directory, sample, _images(held[before:]))
    yield from sweep.run()  # guard: A43 I11
    for sample in emptied:
        yield from prune(sample)
    if alone:
        yield from _remove_temporary_indexes(records)  # guard: I11
    return RecoveredState(Loaded(held, buried, due), sweep.aside)


def _vet_burials(directory: SafeDir, sample: Place, vetting: Vetting | None) -> None:
    if vetting is not None:
        tombstones.vet(directory, sample, vetting.latest_ms)


def _images(held: list[Held]) -> set[tuple[VPath, ImageId]]:
    """The images that are committed or on their way."""
    states = [(one.vpath, one.committed) for one in held] + [(one.vpath, one.pending.state) for one in held if one.pending is not None]
    return {(vpath, state.image) for vpath, state in states if state is not None}


def _sync_top(records: Records) -> None:
    """A kill may have left directories of which the name is not durable. A power cut would take with them what is recorded there later.

    The same is done further below, wherever a start comes by.
    """
    with records.root() as root:
        root.fsync()
        for name in (SIGNATURES, INDEXES):
            if _is_dir(root, name):
                with root.open_dir(name) as top:
                    top.fsync()


def _sync_above(where: Place) -> None:
    """As :func:`_sync_top`, from the base down to the directory of the images, as far as there are any."""
    try:
        for depth in range(len(where.parents)):
            with where.open_base() as base, base.descend(where.parents[:depth]) as above:
                above.fsync()
    except FileNotFoundError:
        return
    except (BaseUnavailable, OSError) as error:
        _log.error("{vpath}: {error}; a power cut may take what is uploaded there", vpath=str(where.vpath.base), error=error)


def _base_dirs(records: Records, config: DirConfig) -> Iterator[tuple[tuple[str, ...], SafeDir]]:
    """The base dirs of a config: their components, and their directory of state files, which the caller closes."""
    above = (SIGNATURES,) if config.num_levels == 0 else (SIGNATURES, config.key)
    try:
        with records.root() as root:
            top = root.descend(above)
    except FileNotFoundError:
        return
    if config.num_levels == 0:
        yield (), top
        return
    left: list[tuple[tuple[str, ...], SafeDir]] = [((config.key,), top)]
    try:
        while left:
            parts, directory = left.pop()
            if len(parts) == config.num_levels:
                yield parts, directory
                continue
            with directory:
                directory.fsync()
                inner = [name for name in sorted(directory.names(), reverse=True) if _good_name(name) and _is_dir(directory, name)]
                left.extend(((*parts, name), directory.open_dir(name)) for name in inner)
    finally:
        for _, directory in left:
            directory.close()


def _good_name(name: str) -> bool:
    try:
        check_component(name)
    except ValueError:
        return False
    return True


def _image_names(directory: SafeDir) -> list[str]:
    """Names that have a state or a journal, in order; hidden, foreign and impossible names are skipped."""
    found = set()
    for file in directory.names():
        for suffix in (NEW_STATE, STATE):
            if file.endswith(suffix):
                found.add(file.removesuffix(suffix))
                break
    return sorted(name for name in found if _good_name(name))


def _open_parent(sample: Place) -> tuple[SafeDir | None, bool]:
    """The directory of the images, None when it is not there; and whether that tells anything (C8)."""
    try:
        return sample.open_parent(), True
    except FileNotFoundError:
        return None, True
    except (BaseUnavailable, OSError) as error:
        _log.error("{vpath}: {error}; all its states are kept as they are", vpath=str(sample.vpath.base), error=error)
        return None, False


def _load_base_dir(
    sample: Place, vpaths: list[VPath], directory: SafeDir, sweep: _Sweep, held: list[Held], vetting: Vetting | None
) -> Steps[None]:
    parent, base_there = _open_parent(sample)
    if base_there:
        _sync_above(sample)  # guard: A44 F35 I2
    if parent is None:
        for vpath in vpaths:
            yield ENTRY_COST
            _settle(directory, sample.sibling(vpath), None, base_there, held, vetting)
        return
    with parent:
        identity = sweep.add(parent, sample)
        for vpath in vpaths:
            yield ENTRY_COST
            where = sample.sibling(vpath)
            before = len(held)
            if not _settle(directory, where, parent, base_there, held, vetting):
                sweep.spare(identity)  # guard: I9 A43
            for found in held[before:]:
                if found.pending is not None:
                    sweep.keep(identity, where.staging(found.pending.state.image))
                for one in found.kept:
                    sweep.keep(identity, where.kept(one.image))


def _load_single(where: Place, directory: SafeDir, held: list[Held], sweep: _Sweep, vetting: Vetting | None, *, alone: bool) -> Steps[None]:
    """An image of level 0. Its parent is not ours, so only debris with a name that we know is removed there."""
    yield ENTRY_COST
    parent, base_there = _open_parent(where)
    before = len(held)
    settled = _settle(directory, where, parent, base_there, held, vetting)
    if parent is None:
        return
    with parent:
        names = set()
        for found in held[before:]:
            if found.committed is not None:
                names |= {where.staging(found.committed.image), where.aside(found.committed.image)}
            if found.pending is not None:
                names.discard(where.staging(found.pending.state.image))
        wanted = {where.kept(one.image) for found in held[before:] for one in found.kept}
        beside = parent.names()
        sweep.aside.append((where, commit.found(parent, where, beside)))
        for name in beside if settled else ():
            if name in names or (alone and name.startswith(DOOMED)) or (name.startswith(where.kept_prefix) and name not in wanted):
                yield from _remove_debris(parent, name, where, sweep.left)


def _settle(directory: SafeDir, where: Place, parent: SafeDir | None, base_there: bool, held: list[Held], vetting: Vetting | None) -> bool:
    """Add what is held at one path. A fault is local to that path: logged, False."""
    try:
        found = settle_path(directory, where, parent, base_there=base_there, vetting=vetting)
    except OSError as error:  # guard: A43 I8
        _log.error("{vpath}: {error}; it is left as it is until the next start", vpath=str(where.vpath), error=error)
        return False
    if found is not None:
        held.append(found)
    return True


def _remove_temporary(directory: SafeDir, suffix: str) -> Steps[None]:
    """Files that a kill left half-written; nobody else writes into the db directory, it is locked."""
    for name in directory.names():
        if name.startswith(TEMPORARY) and name.endswith(suffix):
            yield ENTRY_COST
            try:
                directory.unlink(name)
            except OSError as error:
                _log.error("{name} cannot be removed: {error}", name=directory.within(name), error=error)


def _remove_temporary_bases(records: Records) -> Steps[None]:
    try:
        with records.root() as root:
            top = root.descend((SIGNATURES,))
    except FileNotFoundError:
        return
    with top:
        yield from _remove_temporary(top, bases.NAME)


def _remove_temporary_hashes(records: Records) -> Steps[None]:
    """As the others; the record is only an advantage, so a fault costs no start."""
    try:
        with records.hashes() as directory:
            yield from _remove_temporary(directory, "")
    except FileNotFoundError:
        return
    except OSError as error:
        _log.error("the record of hashes cannot be looked at: {error}", error=error)


def _remove_temporary_indexes(records: Records) -> Steps[None]:
    try:
        with records.root() as root:
            top = root.descend((INDEXES,))
    except FileNotFoundError:
        return
    with top:
        for name in top.names():
            yield ENTRY_COST
            if _is_dir(top, name):
                with top.open_dir(name) as directory:
                    directory.fsync()
                    yield from _remove_temporary(directory, INDEX)
