"""Directory configs of this node (protocol section 9.1), and its ``Tuning``.

The tuning is the checked content of ``ciruela.yaml``: how much a node takes on, and what it does for durability.
"""

from __future__ import annotations

from enum import Enum

from ciruela.model.hooks import CommandHook, Webhook
from ciruela.model.values import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
SECOND_MS = 1000
HOUR_MS = 3600 * SECOND_MS
DAY_MS = 24 * HOUR_MS


class Fsync(Enum):
    """Durability of an image before it counts as received: the files that are synced to the disk (threats 6.4)."""

    COMMIT = "commit"
    PER_FILE = "per-file"
    NONE = "none"


class CommitCheck(Enum):
    """Way in which a commit makes sure that the files of an image are what was written: by what the system says of them, or by reading."""

    METADATA = "metadata"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Tuning:
    """The settings of one daemon that are not about one directory. Bytes, milliseconds, or plain counts.

    ``fsync``: ``COMMIT`` makes a whole image durable in the cheapest way, ``PER_FILE`` syncs each of its files and directories however
    many they are, ``NONE`` syncs neither images nor records.
    ``page_hosts`` are names, in lower case, under which the status pages may be asked for besides the node's own.
    ``requests_per_second`` and ``uploads_per_key`` are the most that one connection and one key may ask for.
    """

    fsync: Fsync = Fsync.COMMIT
    verify_before_commit: CommitCheck = CommitCheck.METADATA
    trust_ctime: bool = True
    disk_reserve_bytes: int = GIB
    disk_reserve_percent: int = 3
    max_index_bytes: int = 256 * MIB
    max_connections: int = 1000
    max_connections_per_address: int = 128
    requests_per_second: int = 20
    uploads_per_key: int = 8
    scrub_bytes_per_second: int = 10 * MIB
    scrub_cycle_ms: int = 7 * DAY_MS
    signature_max_age_ms: int = DAY_MS
    page_hosts: tuple[str, ...] = ()

    def reserve_bytes(self, size_bytes: int) -> int:
        """Free space that a download leaves on a file system of ``size_bytes`` (threats A38): the smaller of the two settings."""
        return min(self.disk_reserve_bytes, size_bytes * self.disk_reserve_percent // 100)


STANDARD = Tuning()
"""Tuning of a node without a configuration file."""


class OnConflict(Enum):
    """Policy of an append-only directory when two nodes have taken different images for one path (threats 6.5)."""

    CONVERGE = "converge"
    FREEZE = "freeze"


class Symlinks(Enum):
    """Policy on the symbolic links that an image may have (threats A3)."""

    ANY = "any"
    INSIDE = "inside"
    NONE = "none"


class Reuse(Enum):
    """Way in which files of other images of a base dir become part of a new one (threats A50)."""

    HARDLINK = "hardlink"
    REFLINK = "reflink"
    COPY = "copy"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Modes:
    """The permission bits of what is in an image, and the group (a number of this host) to which it belongs; None: whatever it is.

    An executable file has an x wherever ``file_bits`` has an r.
    """

    dir_bits: int = 0o755
    file_bits: int = 0o644
    gid: int | None = None

    def of_file(self, executable: bool) -> int:
        """The permission bits of a file."""
        return self.file_bits | (self.file_bits & 0o444) >> 2 if executable else self.file_bits  # guard: A9, -> 509 if executable else 438


STANDARD_MODES = Modes()
"""Modes of images unless a config says otherwise (protocol section 1.2)."""


@dataclass(frozen=True, slots=True)
class DirConfig:
    """The content of ``configs/KEY.yaml``, checked. ``directory`` and ``protect`` are absolute paths of this host.

    A quota that is None does not count.
    """

    key: str
    directory: str
    append_only: bool
    num_levels: int
    upload_keys: tuple[str, ...] = ()
    download_keys: tuple[str, ...] = ()
    auto_clean: bool = False
    keep_list_file: str | None = None
    keep_min_directories: int = 2
    keep_max_directories: int = 100
    keep_recent_ms: int = 2 * 24 * 3600 * 1000
    on_append_conflict: OnConflict = OnConflict.CONVERGE
    max_image_bytes: int | None = None
    max_image_files: int | None = None
    max_images: int | None = None
    symlinks: Symlinks = Symlinks.ANY
    reuse: Reuse = Reuse.HARDLINK
    keep_replaced: int = 0
    modes: Modes = STANDARD_MODES
    check_before_commit: CommandHook | None = None
    on_commit: CommandHook | None = None
    webhook: Webhook | None = None
    protect: tuple[str, ...] = ()
