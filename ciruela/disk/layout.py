"""Layout of the disk (protocol section 5.1); no other module knows it.

::

    DB/.lock                                  held while a daemon runs
    DB/signatures/KEY/c1/../NAME.state        committed
    DB/signatures/KEY/c1/../NAME.new.state    accepted, in progress: the commit journal
    DB/signatures/KEY/c1/../.tombstones       what was deleted there (``tombstones``)
    DB/signatures/KEY/c1/../.NAME.kept        replaced images that are kept (``retained``)
    DB/signatures/.KEY.base                   which directory the base was (``bases``)
    DB/indexes/XX/HEX.ds1                     an index by its image id
    DB/hashes/DEVICE                          what files of images have in them, by inode (``hashrecord``)
    DIRECTORY/c1/../NAME                      an image
    DIRECTORY/c1/../.ciruela~HEX              its staging directory
    DIRECTORY/c1/../.ciruela~kHEX-HEX         an image that it replaced, and that is kept
    DIRECTORY/c1/../.ciruela-aside~NAME~INODE what stood at NAME without a record (``commit``)

With ``num-levels: 0`` the configured directory is the image: its state is ``DB/signatures/KEY.state``, and its staging directory stands
beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from hashlib import blake2b

from ciruela.disk.safedir import RESERVED, SafeDir
from ciruela.model.config import DirConfig
from ciruela.model.errors import DiskError
from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath

SIGNATURES = "signatures"
INDEXES = "indexes"
HASHES = "hashes"
STATE = ".state"
NEW_STATE = ".new.state"
INDEX = ".ds1"

RECORDS_MODE = 0o750  # guard: S14, -> 493
"""Permission bits of the directories in the db directory."""


class BaseUnavailable(DiskError):
    """The directory that a config names is missing or cannot be opened: a disk that is not mounted, as likely as not (C8)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Address of one image on disk: ``name`` in the directory ``parents`` below the directory ``base`` of this host.

    ``durable`` is for what is opened there, see ``SafeDir``. ``guard`` is asked about the base whenever it was opened, ``inner`` about the
    directory of the images where that is another one, see ``bases``.
    ``keep``: so many replaced images are kept. ``append_only``: what is there may be the only copy of something, and stays.
    """

    vpath: VPath
    base: str
    parents: tuple[str, ...]
    name: str
    durable: bool = True
    guard: Callable[[Place, SafeDir], None] | None = field(default=None, compare=False, repr=False)
    inner: Callable[[Place, SafeDir], None] | None = field(default=None, compare=False, repr=False)
    keep: int = 0
    append_only: bool = True

    def __str__(self) -> str:
        return "/".join((self.base.rstrip("/"), *self.parents, self.name))

    @property
    def record(self) -> str:
        """Prefix of the names of its state files; at level 0 the key, whatever the directory is called."""
        return self.vpath.name

    def sibling(self, vpath: VPath) -> Place:
        """The place of another image of the same base dir."""
        return replace(self, vpath=vpath, name=vpath.name)

    def open_base(self) -> SafeDir:
        """The base, which is never created. Raises BaseUnavailable."""
        try:
            base = SafeDir.at(self.base, self.durable)
        except OSError as error:
            raise BaseUnavailable(f"{self.base}: {error.strerror} (is the disk mounted? it is not created)") from error
        try:
            if self.guard is not None:  # guard: A40 F30
                self.guard(self, base)
        except OSError as error:
            base.close()
            raise BaseUnavailable(f"{self.base}: it cannot be told whether it is the right directory: {error.strerror}") from error
        except BaseException:
            base.close()
            raise
        return base

    def open_parent(self, *, create: bool = False) -> SafeDir:
        """The directory in which the image stands; ``create`` makes what is missing below the base. Raises BaseUnavailable, OSError."""
        with self.open_base() as base:
            parent = base.descend(self.parents, create=create)
        try:
            if self.inner is not None and self.parents:  # guard: K3.5 A40
                self.inner(self, parent)
        except BaseException:
            parent.close()
            raise
        return parent

    def parent_if_any(self) -> SafeDir | None:
        """As :meth:`open_parent`; None when there is no such directory."""
        try:
            return self.open_parent()
        except (BaseUnavailable, FileNotFoundError):
            return None

    def staging(self, image: ImageId) -> str:
        """The name of the staging directory of ``image``, the same at each run."""
        return RESERVED + blake2b(str(self.vpath).encode() + image, digest_size=16).hexdigest()

    @property
    def kept_prefix(self) -> str:
        """Prefix of the names of the retained versions of this path."""
        return f"{RESERVED}k{blake2b(str(self.vpath).encode(), digest_size=16).hexdigest()}-"

    def kept(self, image: ImageId) -> str:
        """The name of the tree of ``image`` when it was replaced here, and is kept."""
        return self.kept_prefix + blake2b(image, digest_size=16).hexdigest()

    def aside(self, image: ImageId) -> str:
        """Name at which the old image waits for a moment on file systems that cannot exchange."""
        return f"{self.staging(image)}.old"


def place(configs: Mapping[str, DirConfig], vpath: VPath) -> Place:
    """Gives the place of the image at ``vpath``. Raises DiskError when no config takes it."""
    config = configs.get(vpath.key)
    if config is None:  # guard: A17
        raise DiskError(f"{vpath}: no directory is configured for {vpath.key!r}")
    if vpath.level != config.num_levels:  # guard: A17 I3
        raise DiskError(f"{vpath}: has {vpath.level} levels, configured are {config.num_levels}")
    if vpath.level:
        parents, name = vpath.parts[1:-1], vpath.name
        return Place(vpath, config.directory, parents, name, keep=config.keep_replaced, append_only=config.append_only)
    directory = config.directory.rstrip("/")
    above, _, name = directory.rpartition("/")
    if not name:
        raise DiskError(f"{vpath}: the root directory cannot be an image")
    return Place(vpath, above or "/", (), name, keep=config.keep_replaced, append_only=config.append_only)


class Records:
    """The db directory: where states and indexes are."""

    def __init__(self, db_dir: str, durable: bool = True) -> None:
        self._db_dir = db_dir
        self._durable = durable

    def root(self) -> SafeDir:
        """The db directory, which must exist. Directories that are made below it are for the daemon's user and group alone."""
        return SafeDir.at(self._db_dir, self._durable)

    def states(self, vpath: VPath, *, create: bool = False) -> SafeDir:
        """The directory with the state files of ``vpath``; their names begin with ``Place.record``. Raises OSError."""
        with self.root() as root:
            return root.descend((SIGNATURES, *vpath.parts[:-1]), create=create, mode=RECORDS_MODE)

    def indexes(self, image: ImageId, *, create: bool = False) -> SafeDir:
        """The directory with the index of ``image``."""
        with self.root() as root:
            return root.descend((INDEXES, image.hex()[:2]), create=create, mode=RECORDS_MODE)

    def hashes(self, *, create: bool = False) -> SafeDir:
        """The directory with what files of images have in them, by device and inode. Nothing in it has to last."""
        with SafeDir.at(self._db_dir, durable=False) as root:
            return root.descend((HASHES,), create=create, mode=RECORDS_MODE)


def index_name(image: ImageId) -> str:
    """The file name of the index of ``image``."""
    return image.hex() + INDEX
