"""Deleting a committed image: the mirror image of a commit (threats 6.4).

The tombstone is written first and is the journal: a start that finds one for what is committed finishes the deletion. What a kill after
each step leaves stands in ``docs/reference/files.rst``.
"""

from __future__ import annotations

import os
import stat

from twisted.logger import Logger

from ciruela.disk import retained, sidecar, states, tombstones
from ciruela.disk.executor import ENTRY_COST, Steps
from ciruela.disk.layout import Place, Records
from ciruela.disk.openfile import OpenFile
from ciruela.disk.removal import rename_away
from ciruela.disk.safedir import SafeDir
from ciruela.disk.tree import Tree
from ciruela.disk.verify import Mismatch, check
from ciruela.index.tree import Index
from ciruela.model.errors import DiskError, OtherContent
from ciruela.model.versions import State, Tombstone, Tombstones

_log = Logger()


def delete(records: Records, place: Place, tombstone: Tombstone, index: Index | None = None) -> Steps[tuple[Tombstones, str | None]]:
    """Steps 1 to 3: tombstone, rename away, state.

    Gives what is remembered of the base dir now, and the name under which the tree waits to be deleted, None when there was none.
    A signed one is for every image that is not newer, and is remembered also where none is. Where something stands of which nothing is
    recorded, it goes if it is the image of ``index``.
    Raises DiskError when something else than ``tombstone.version`` is committed or an upload is on its way, OtherContent when something
    else stands there, OSError; then nothing changed.
    """
    yield ENTRY_COST
    with records.states(place.vpath, create=bool(tombstone.signatures)) as directory:
        committed = states.read_state(directory, place.record)
        if states.read_journal(directory, place.record) is not None:
            raise DiskError(f"{place.vpath}: an upload is on its way there, nothing is deleted")  # guard: I9
        if committed is None and tombstone.signatures:
            return (yield from _delete_unrecorded(directory, place, tombstone, index))
        if committed is None or not _is_for(tombstone, committed):  # guard: I9 A51, without 2
            raise DiskError(f"{place.vpath}: is not {tombstone.version.image.hex()} any more, it is not deleted")
        with place.open_parent() as parent:
            before = tombstones.read(directory, place).tombstones.get(place.vpath.entry)
            now = tombstones.add(directory, place, tombstone)  # guard: A12 A43 F37, -> None
            try:
                return now, (yield from finish(directory, parent, place))
            except OSError:
                # Only while nothing has changed: from the rename on, a start needs the tombstone to finish the deletion.
                if states.read_state(directory, place.record) is not None and parent.stat(place.name) is not None:
                    tombstones.take_back(directory, place, before)  # guard: I9 A39 F37
                raise


def _delete_unrecorded(directory: SafeDir, place: Place, tombstone: Tombstone, index: Index | None) -> Steps[tuple[Tombstones, str | None]]:
    """Rename away what stands there, then write the tombstone: a kill in between leaves nothing that is visible and called removed."""
    try:
        parent = place.open_parent()
    except FileNotFoundError:
        return tombstones.add(directory, place, tombstone), None
    with parent:
        found = parent.stat(place.name)
        if found is None:
            return tombstones.add(directory, place, tombstone), None
        yield from _compare(parent, place, tombstone, index)  # guard: K3.2 I7 I9
        before = tombstones.read(directory, place).tombstones.get(place.vpath.entry)
        doomed = yield from rename_away(parent, place.name, found.st_ino)
        try:
            parent.fsync()
            return tombstones.add(directory, place, tombstone), doomed
        except OSError:
            tombstones.take_back(directory, place, before)  # it may stand there although its sync failed
            parent.rename_new(doomed, place.name)
            raise


def _compare(parent: SafeDir, place: Place, tombstone: Tombstone, index: Index | None) -> Steps[None]:
    """Raise OtherContent unless the directory at ``place`` is the image of ``index``, whatever its modes are."""

    def anything(_found: OpenFile | SafeDir, _status: os.stat_result, _mode: int) -> None:
        """Modes do not make it another image."""

    image = tombstone.version.image.hex()
    try:
        tree = Tree(parent.open_dir(place.name))
    except NotADirectoryError:
        raise OtherContent(f"{place}: other content is there, no directory; nothing is recorded of it") from None
    try:
        if index is None:
            raise OtherContent(f"{place}: content is there of which nothing is recorded, and nobody has the index of {image}")
        yield from check(tree, index, anything)
    except Mismatch as different:
        raise OtherContent(f"{place}: other content is there, of which nothing is recorded ({different})") from None
    finally:
        tree.close()


def _is_for(tombstone: Tombstone, committed: State) -> bool:
    return committed.version <= tombstone.version if tombstone.signatures else committed.image == tombstone.version.image


def finish(directory: SafeDir, parent: SafeDir, place: Place) -> Steps[str | None]:
    """Steps 2 and 3 of a deletion whose tombstone is written."""
    found = parent.stat(place.name)
    doomed = None
    if found is not None and stat.S_ISDIR(found.st_mode):
        doomed = yield from rename_away(parent, place.name, found.st_ino)
    parent.fsync()  # also of what was renamed before a kill
    retained.write(directory, place, ())
    # The state goes last: as long as it is there, a start goes on with the deletion.
    committed = states.read_state(directory, place.record)
    states.drop_state(directory, place.record)  # guard: A43 F37 I11
    if committed is not None:
        sidecar.drop_modes(directory, place.vpath, committed.image)
    return doomed


def finish_interrupted(directory: SafeDir, parent: SafeDir | None, place: Place) -> bool:
    """Finish the deletion that a kill interrupted, if there was one. Without ``parent`` (nothing is there) only the record is left.

    Whether there was one. The tree stays under its reserved name, as debris for the sweep. Raises OSError.
    """
    tombstone = tombstones.read(directory, place).tombstones.get(place.vpath.entry)
    committed = states.read_state(directory, place.record) if tombstone is not None else None
    if tombstone is None or committed is None or committed.version > tombstone.version:  # guard: I9 I10, without 3
        return False
    if states.read_journal(directory, place.record) is not None:
        return False
    _log.info("{vpath}: the interrupted deletion of {image} is finished", vpath=str(place.vpath), image=committed.image.hex())
    if parent is None:
        retained.write(directory, place, ())
        states.drop_state(directory, place.record)
    else:
        for _ in finish(directory, parent, place):
            pass
    return True


def prune(place: Place) -> Steps[None]:
    """Remove the directories above ``place`` that are empty now, up to the base, which stays."""
    for depth in range(len(place.parents), 0, -1):
        yield ENTRY_COST
        try:
            with place.open_base() as base, base.descend(place.parents[: depth - 1]) as above:
                above.rmdir(place.parents[depth - 1])
        except OSError:
            return  # it has something in it, or is gone
