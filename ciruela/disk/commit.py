"""The commit: verify, make durable, show in one step, record (protocol section 5.11, threats 6.4).

The journal is ``NAME.new.state``. What a kill after each step leaves, and how a start goes on, stands in ``docs/reference/files.rst``
and is done in ``recovery``.

Content that stood at the name of an image without a record of ours is moved to a hidden name beside it, and never deleted.

``.ciruela-aside~NAME~INODE`` says what it was. Nothing is recorded of it elsewhere, so it is found whatever else is lost, and earlier
versions, whose reserved names begin with ``.ciruela~``, leave it alone as well.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable

from twisted.logger import Logger

from ciruela.disk import retained, sidecar, states
from ciruela.disk.executor import Steps
from ciruela.disk.layout import NEW_STATE, STATE, Place, Records
from ciruela.disk.openfile import OpenFile
from ciruela.disk.removal import remove_tree
from ciruela.disk.safedir import SafeDir
from ciruela.disk.states import CommitPhase, Journal
from ciruela.disk.tree import Tree
from ciruela.disk.verify import Mismatch, Spare, as_it_should, barrier, check, complete, give, settling, what_is_wrong
from ciruela.index.tree import Index
from ciruela.interfaces import SetAside
from ciruela.model.config import STANDARD_MODES, Fsync, Modes
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.upload import AbortReason
from ciruela.model.values import dataclass
from ciruela.model.versions import RetainedVersion, State

PREFIX = ".ciruela-aside~"

_MOST_NAME_BYTES = 255 - len(PREFIX) - 22
"""Room for the name of an image: an inode has up to 20 digits."""


def name_for(place: Place, inode: int) -> str:
    """The name under which a tree that stands at ``place`` is set aside. A very long name is cut off."""
    retained = place.name.encode("utf-8", "surrogateescape")[:_MOST_NAME_BYTES].decode("utf-8", "ignore")
    return f"{PREFIX}{retained}~{inode}"


def was_ours(directory: SafeDir, place: Place) -> bool:
    """Tells whether a damaged record says that something of ours stood at ``place``. Raises OSError."""
    return any(directory.stat(states.backup_name(place.record + suffix)) is not None for suffix in (STATE, NEW_STATE))


def take(parent: SafeDir, place: Place, names: tuple[str, ...]) -> None:
    """The new image is shown: give the tree that it changed places with, at one of these names, its own. Durable. Raises OSError."""
    for name in names:
        found = parent.stat(name)
        if found is None or not stat.S_ISDIR(found.st_mode):
            continue
        aside = name_for(place, found.st_ino)
        parent.rename_new(name, aside)
        _log.error(
            "{place}: something stood there of which nothing is recorded; it is kept as {aside}: look through it, then delete it",
            place=str(place),
            aside=parent.within(aside),
        )
    parent.fsync()


def found(parent: SafeDir, sample: Place, names: Iterable[str]) -> list[SetAside]:
    """Finds those of ``names`` in ``parent``, the directory of the images of ``sample``, that were set aside. Raises OSError."""
    seen = []
    for name in names:
        if not name.startswith(PREFIX):
            continue
        status = parent.stat(name)
        retained, _, inode = name.removeprefix(PREFIX).rpartition("~")
        if status is None or not retained or not inode.isdecimal() or (not sample.vpath.entry and retained != sample.name):
            continue
        path = str(sample.vpath if not sample.vpath.entry else f"{sample.vpath.base}/{retained}")
        where = "/".join((sample.base.rstrip("/"), *sample.parents, name))
        seen.append(SetAside(path, where, status.st_ctime_ns // 1_000_000))
    return sorted(seen, key=lambda one: one.where)


_log = Logger()


@dataclass(frozen=True, slots=True)
class CommitResult:
    """By-products of a commit: the replaced images that are ``retained``, and whether something without a record was set ``aside``."""

    retained: tuple[RetainedVersion, ...]
    aside: bool


def prepare(tree: Tree, index: Index, modes: Modes, spare: Spare | None = None) -> Steps[None]:
    """Make ``tree`` look as it will be shown, but for its own mode; nothing is hashed. Raises DownloadFailed(COMMIT_ERROR), OSError.

    Files that ``spare`` speaks for look so already.
    """
    tree.forget()
    try:
        yield from complete(tree, index)
        yield from check(tree, index, settling(modes.gid), modes, hashed=False, spare=spare)
    except Mismatch as found:
        raise DownloadFailed(AbortReason.COMMIT_ERROR, str(found)) from None
    tree.forget()


def commit(
    records: Records,
    place: Place,
    tree: Tree,
    index: Index,
    state: State,
    fsync: Fsync = Fsync.COMMIT,
    *,
    again: bool = False,
    modes: Modes = STANDARD_MODES,
    spare: Spare | None = None,
) -> Steps[CommitResult]:
    """Show the staging directory ``tree`` at ``place`` and record ``state``. Everything in it gets ``modes``.

    Every file is read and hashed but those that ``spare`` speaks for.

    With ``again`` the same image is committed there already and changes places with this tree, which is whole; it may have been deleted
    meanwhile, and must not come back.

    Something may stand at ``place`` of which nothing is recorded. It is adopted if it is exactly this image; else it is set aside
    (``SetAside``) where images may be replaced or a damaged record says that it was ours; else it is left as it is.

    Afterwards the name of the staging directory may hold the old tree. Raises DownloadFailed
    (COMMIT_ERROR: the content is not what the index says; ALREADY_EXISTS: what stands at the path is left as it is; SUPERSEDED: ``again``,
    and the image is not the committed one any more) and OSError.
    """
    tree.forget()
    try:
        yield from complete(tree, index)
        yield from check(tree, index, settling(modes.gid), modes, spare=spare)  # guard: I1
    except Mismatch as found:
        raise DownloadFailed(AbortReason.COMMIT_ERROR, str(found)) from None
    give(tree.root, tree.root.status(), modes.dir_bits, modes.gid)
    try:
        yield from barrier(tree, index, fsync)  # guard: A44 F38 I2, -> (yield from ())
    except OSError:
        yield from _spoiled(place, state)  # guard: A39 A44 F29
        raise
    tree.forget()
    with place.open_parent() as parent, records.states(place.vpath, create=True) as directory:
        if again and not _recorded(directory, place, state):  # guard: A51
            raise DownloadFailed(AbortReason.SUPERSEDED, f"{place.vpath}: is not this image any more")
        sidecar.write_modes(directory, place.vpath, state.image, modes)
        before = states.read_state(directory, place.record)
        aside = False
        if _foreign(parent, directory, place):  # guard: I9
            aside = yield from _take_over(parent, directory, place, tree.root, index, state, fsync, modes)
        elif again and states.read_journal(directory, place.record) is None:
            _show_again(parent, directory, place, tree.root, state)
        else:
            _show(parent, directory, place, tree.root, state)
        if before is not None and before.image != state.image:
            sidecar.drop_modes(directory, place.vpath, before.image)
        return CommitResult(retained.images(retained.read(directory, place)) if place.keep else (), aside)


def _spoiled(place: Place, state: State) -> Steps[None]:
    """Delete the staging directory after a failed sync.

    What was not written still reads as if it were, and a later sync has nothing to write: the next attempt must not keep it (threats A39).
    """
    try:
        with place.open_parent() as parent:
            yield from remove_tree(parent, place.staging(state.image))
    except (DiskError, OSError) as error:
        _log.error("what was downloaded for {vpath} may be bad, and cannot be removed: {error}", vpath=str(place.vpath), error=error)


def _recorded(directory: SafeDir, place: Place, state: State) -> bool:
    """Tells whether the image is the committed one and no other is pending. Raises OSError."""
    committed, journal = states.read_state(directory, place.record), states.read_journal(directory, place.record)
    return committed is not None and committed.image == state.image and (journal is None or journal.state.image == state.image)


def _foreign(parent: SafeDir, directory: SafeDir, place: Place) -> bool:
    """Tells whether something with content stands at ``place`` of which we have no record. Raises DownloadFailed if it is no directory."""
    standing = parent.stat(place.name)
    if standing is None:
        return False
    if not stat.S_ISDIR(standing.st_mode):  # guard: I9
        raise DownloadFailed(AbortReason.ALREADY_EXISTS, f"{place}: stands there and is not a directory; move it away")
    if states.read_state(directory, place.record) is not None:
        return False
    with parent.open_dir(place.name) as found:
        return bool(found.names())


def _take_over(
    parent: SafeDir, directory: SafeDir, place: Place, root: SafeDir, index: Index, state: State, fsync: Fsync, modes: Modes
) -> Steps[bool]:
    """Adopt what stands at ``place`` without a record, or set it aside and show the tree ``root`` instead: then True."""
    try:
        yield from _adopt(parent, directory, place, index, state, fsync, modes)
    except Mismatch as found:
        if place.append_only and not was_ours(directory, place):  # guard: K3.1 I9
            raise DownloadFailed(
                AbortReason.ALREADY_EXISTS,
                f"{place}: is not ours and not this image ({found}); move it away or delete it, then upload again",
            ) from None
    else:
        return False
    aside = _foreign(parent, directory, place)  # others had their turn since
    _show(parent, directory, place, root, state, aside=aside)
    return aside


def _adopt(parent: SafeDir, directory: SafeDir, place: Place, index: Index, state: State, fsync: Fsync, modes: Modes) -> Steps[None]:
    """Record what stands at ``place`` as the image. Raises Mismatch when it is not exactly that; then it is as it was."""

    def look(found: OpenFile | SafeDir, status: os.stat_result, mode: int) -> None:
        if isinstance(found, OpenFile) and status.st_nlink > 1 and not as_it_should(status, mode, modes.gid):
            raise Mismatch(f"{found.where}: {what_is_wrong(status, mode, modes.gid)}, and has other names that share it")

    def repair(found: OpenFile | SafeDir, status: os.stat_result, mode: int) -> None:
        give(found, status, mode, modes.gid)

    tree = Tree(parent.open_dir(place.name))
    try:
        yield from check(tree, index, look, modes)
        yield from check(tree, index, repair, modes)
        give(tree.root, tree.root.status(), modes.dir_bits, modes.gid)
        yield from barrier(tree, index, fsync)
    finally:
        tree.close()
    _log.info("{place} had the content of {vpath} already, it is ours now", place=str(place), vpath=str(place.vpath))
    _record(directory, place, _merged(directory, place, state))


def _merged(directory: SafeDir, place: Place, state: State) -> State:
    """``state`` with the signatures that came in since the commit began, with an upload or for an image that is being repaired."""
    journal = states.read_journal(directory, place.record)
    for known in (journal.state if journal is not None else None, states.read_state(directory, place.record)):
        if known is not None and known.image == state.image:
            state = state.merged(known.signatures)
    return state


def _record(directory: SafeDir, place: Place, state: State) -> None:
    states.write_state(directory, place.record, state)
    _forget_journal(directory, place)


def _forget_journal(directory: SafeDir, place: Place) -> None:
    """Failing here costs nothing: a start drops a journal of the image that is committed."""
    try:
        states.drop_journal(directory, place.record)
    except OSError as error:
        _log.warn("the journal of {vpath} cannot be removed: {error}", vpath=str(place.vpath), error=error)


def _show(parent: SafeDir, directory: SafeDir, place: Place, root: SafeDir, state: State, *, aside: bool = False) -> None:
    """Steps 5 to 7: journal, rename, state. One thread job; a failure before the state is in place puts the old image back.

    With ``aside`` what stands there has no record, and is given its own name in the end. Until that is done the journal stays, for a start
    must not take the tree for debris.
    """
    journal = states.read_journal(directory, place.record)
    state = _merged(directory, place, state)
    command = journal.command if journal is not None else None
    root.fsync()  # guard: A44 F38
    status = root.status()
    row = retained.announce(parent, directory, place, states.read_state(directory, place.record), state.image)
    # All that may fail for want of room is written before the trees change places.
    prepared = states.prepare_file(directory, place.record + STATE, states.encode_state(state))
    # guard: A43 F36 I1
    states.write_journal(directory, place.record, Journal(state, command, CommitPhase.READY, (status.st_dev, status.st_ino), aside))
    waiting = Journal(state, command)
    try:
        undo = _swap(parent, directory, place, state, aside=aside)
    except (OSError, DownloadFailed):
        _not_ready(parent, directory, place, waiting)
        retained.withdraw(directory, place, row)
        raise
    try:
        # The order matters in a power cut: a state must never be on the disk before the exchange that it speaks of.
        parent.fsync()  # guard: A44 F38
        directory.rename(prepared, place.record + STATE)
    except OSError:
        _log.error("{vpath}: recording failed, the old content is put back", vpath=str(place.vpath))
        undo()  # guard: A39 A43 F29
        _not_ready(parent, directory, place, waiting)  # guard: A39 A43 F29
        retained.withdraw(directory, place, row)
        raise
    directory.fsync()  # guard: A44 F38 I2
    retained.keep(parent, directory, place, row, state.image)
    if aside:
        try:
            take(parent, place, (place.staging(state.image), place.aside(state.image)))
        except OSError as error:
            _log.error("{place}: what stood there without a record waits for its own name: {error}", place=str(place), error=error)
            return
    _forget_journal(directory, place)


def _show_again(parent: SafeDir, directory: SafeDir, place: Place, root: SafeDir, state: State) -> None:
    """As :func:`_show`, without a journal before and after: nothing is on its way, and whichever tree stands there is of the image.

    Only while the old tree waits aside it is left, for a start needs it to put the tree back.
    """
    try:
        _show(parent, directory, place, root, state)
    except (OSError, DownloadFailed):
        if parent.stat(place.aside(state.image)) is None:
            _forget_journal(directory, place)
        raise


def _not_ready(parent: SafeDir, directory: SafeDir, place: Place, journal: Journal) -> None:
    """After a failure, when all is as it was before, on the disk as well: a power cut must not show the new image without a journal.

    Should this fail as well, the journal still tells the truth: what it says is ready stands at its name or does not.
    """
    try:
        parent.fsync()  # guard: A39 A44 F29
        states.write_journal(directory, place.record, journal)
    except OSError as error:
        _log.warn("the journal of {vpath} cannot be rewritten: {error}", vpath=str(place.vpath), error=error)


def _swap(parent: SafeDir, directory: SafeDir, place: Place, state: State, *, aside: bool) -> Callable[[], None]:
    """Put the staging directory at its name. Returns what undoes it."""
    staging, name = place.staging(state.image), place.name
    if parent.stat(name) is None:
        try:
            parent.rename_new(staging, name)  # guard: I9, -> parent.rename(staging, name)
        except FileExistsError:
            raise DownloadFailed(AbortReason.ALREADY_EXISTS, f"{place}: appeared during the commit; move it away") from None
        return lambda: parent.rename_new(name, staging)
    if aside or states.read_state(directory, place.record) is not None:
        # guard: A43 F36 I1, -> (parent.rename(name, place.aside(state.image)), parent.rename(staging, name))
        parent.exchange(staging, name, place.aside(state.image))
        return lambda: parent.exchange(staging, name, place.aside(state.image))
    # An empty directory without a record stands there. rename(2) takes its place, and fails if somebody has filled it since.
    parent.rename(staging, name)

    def undo() -> None:
        parent.rename_new(name, staging)
        parent.make_dir(name).close()

    return undo
