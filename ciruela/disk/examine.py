"""Looking through a committed image for damage: the scrub's eyes (threats 6.11).

``verify.check`` stops at the first thing that is wrong, for then a commit is off. Here everything is told, because an image that is damaged
in one place is to be mended there, and an operator wants to know how far it goes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from twisted.internet.defer import Deferred

from ciruela.disk.executor import ENTRY_COST, SerialExecutor, Steps
from ciruela.disk.safedir import SafeDir
from ciruela.disk.syscalls import checked
from ciruela.disk.tree import Tree, split
from ciruela.disk.verify import as_it_should, good_blocks, names_by_directory, what_is_wrong
from ciruela.index.digest import HashKind
from ciruela.index.tree import Directory, File, Index, Symlink
from ciruela.interfaces import Damage, Findings
from ciruela.model.config import STANDARD_MODES, Modes
from ciruela.model.vpath import VPath

MOST_DAMAGES = 100
"""Damages that are told one by one; a lost disk would fill the memory."""

_NOBODY_KNOWS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})
"""Errors that say something of this process or host and nothing of the image."""

_OTHER_TYPE = frozenset({errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EISDIR})
"""Errnos of opening a name at which something of another type stands."""

Note = Callable[[str, str], None]
"""Called with a path inside the image and what is wrong there."""


def examine(tree: Tree, index: Index, note: Note, modes: Modes = STANDARD_MODES) -> Steps[None]:
    """Compare the whole tree with ``index``: names, types, permission bits, link targets, every block.

    What cannot be read is damage, too: nobody else can read it either (threats A39). Raises OSError for what tells nothing of the tree.
    """
    below = names_by_directory(index)
    device = tree.root.status().st_dev
    lost: set[str] = set()
    for directory in index.directories:
        yield ENTRY_COST
        if directory.path != "/" and split(directory.path)[0] in lost:
            lost.add(directory.path)
            continue
        here = _open(tree, directory.path, device, note, modes)
        names = None if here is None else _names(here, directory.path, note)
        if here is None or names is None:
            lost.add(directory.path)
            continue
        expected = {split(entry.path)[1] for entry in directory.entries}.union(below[directory.path])
        for name in sorted(names - expected):
            yield ENTRY_COST
            note(f"{directory.path.rstrip('/')}/{name}", "is not in the index")  # guard: A10 F51
        yield from _entries(here, directory, names, index.kind, device, note, modes)


def _reason(error: OSError) -> str:
    """Describes the damage that ``error`` shows. Raises it again when it says nothing of the image."""
    if error.errno in _NOBODY_KNOWS:
        raise error
    if error.errno == errno.ENOENT:
        return "is missing"
    return f"cannot be read: {error.strerror}"


def _open(tree: Tree, path: str, device: int, note: Note, modes: Modes) -> SafeDir | None:
    try:
        here = tree.directory(path)
        status = here.status()
    except OSError as error:
        note(path, "is not a directory" if error.errno in _OTHER_TYPE else _reason(error))
        return None
    if status.st_dev != device:
        note(path, "another file system is mounted here")
        return None
    if path != "/" and not as_it_should(status, modes.dir_bits, modes.gid):  # guard: A10
        note(path, what_is_wrong(status, modes.dir_bits, modes.gid))
    return here


def _names(here: SafeDir, path: str, note: Note) -> set[str] | None:
    try:
        return set(here.names())
    except OSError as error:
        note(path, _reason(error))
        return None


def _entries(here: SafeDir, directory: Directory, names: set[str], kind: HashKind, device: int, note: Note, modes: Modes) -> Steps[None]:
    for entry in directory.entries:
        yield ENTRY_COST
        name = split(entry.path)[1]
        if name not in names:
            note(entry.path, "is missing")  # guard: A10 F51
            continue
        try:
            match entry:
                case File():
                    yield from _file(here, name, entry, kind, device, note, modes)
                case Symlink():
                    _link(here, name, entry, note)
        except OSError as error:
            kind_of_entry = "a regular file" if isinstance(entry, File) else "a symbolic link"
            note(entry.path, f"is not {kind_of_entry}" if error.errno in _OTHER_TYPE else _reason(error))


def _file(here: SafeDir, name: str, wanted: File, kind: HashKind, device: int, note: Note, modes: Modes) -> Steps[None]:
    with here.open_read(name) as opened:
        status = opened.stat()
        if status.st_dev != device:
            note(wanted.path, "another file system is mounted here")
            return
        mode = modes.of_file(wanted.executable)
        if not as_it_should(status, mode, modes.gid):  # guard: A10 A9
            note(wanted.path, what_is_wrong(status, mode, modes.gid))
        if status.st_size != wanted.size:  # guard: A10 F51
            note(wanted.path, f"has {status.st_size} bytes, not {wanted.size}")
            return
        good = yield from good_blocks(opened, wanted, kind, from_disk=True)  # guard: A10 F51, True -> False
        if len(good) != wanted.block_count:  # guard: A10 F51
            note(wanted.path, f"{wanted.block_count - len(good)} of {wanted.block_count} blocks are wrong")


def _link(here: SafeDir, name: str, wanted: Symlink, note: Note) -> None:
    if here.readlink(name) != wanted.target:  # guard: A10
        note(wanted.path, "leads elsewhere")


class TreeExamination:
    """Implements ``interfaces.Examination``. It works on the lane of its path, one slice for each call.

    ``open_tree`` opens the image, None where nothing stands; ``current`` says in the end whether what was opened is still the image;
    ``modes`` says which it was given, ``damaged`` is called before damage is told. All are called in threads.
    """

    def __init__(
        self,
        vpath: VPath,
        index: Index,
        lane: SerialExecutor,
        open_tree: Callable[[], Tree | None],
        current: Callable[[Tree | None], bool],
        modes: Callable[[], Modes] = Modes,
        damaged: Callable[[], None] = lambda: None,
    ) -> None:
        self._vpath = vpath
        self._index = index
        self._lane = lane
        self._open_tree = open_tree
        self._current = current
        self._modes = modes
        self._damaged = damaged
        self._tree: Tree | None = None
        self._steps: Steps[None] | None = None
        self._damages: list[Damage] = []
        self._count = 0
        self.cost = 0

    def go_on(self, most_bytes: int) -> Deferred[Findings | None]:
        """As ``interfaces.Examination.go_on``."""
        return self._lane.do(checked, self._vpath, self._slice, most_bytes)

    def close(self) -> None:
        """As ``interfaces.Examination.close``; descriptors in use by a thread are closed after it."""
        self._lane.do(self._let_go)

    def _slice(self, most_bytes: int) -> Findings | None:
        if self._steps is None:
            self._steps = self._all()
        end = self.cost + most_bytes
        try:
            for cost in self._steps:
                self.cost += cost
                if self.cost >= end:
                    return None
            current = self._current(self._tree)
        except BaseException:
            self._begin_anew()
            raise
        self._let_go()
        if self._count:
            self._damaged()  # guard: A10 A50
        return Findings(tuple(self._damages), self._count, current)

    def _begin_anew(self) -> None:
        """Forgets the findings of a run that stopped half-way: going on must not make a clean end of it."""
        self._let_go()
        self._steps = None
        self._damages.clear()
        self._count = 0

    def _all(self) -> Steps[None]:
        yield ENTRY_COST
        self._tree = self._open_tree()
        if self._tree is None:
            self._note("/", "is missing")
        else:
            yield from examine(self._tree, self._index, self._note, self._modes())

    def _note(self, path: str, what: str) -> None:
        self._count += 1
        if len(self._damages) < MOST_DAMAGES:  # guard: I6, -> True
            self._damages.append(Damage(path, what))

    def _let_go(self) -> None:
        if self._steps is not None:
            self._steps.close()
        if self._tree is not None:
            self._tree.close()
            self._tree = None
