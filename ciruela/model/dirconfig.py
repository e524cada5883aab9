"""How one directory of this node is configured (protocol section 9.1)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ciruela.model.hooks import CommandHook, Webhook


class OnConflict(Enum):
    """What an append-only directory does when two nodes have taken different images for one path (threats 6.5)."""

    CONVERGE = "converge"
    FREEZE = "freeze"


class Symlinks(Enum):
    """Which symbolic links an image may have (threats A3)."""

    ANY = "any"
    INSIDE = "inside"
    NONE = "none"


class Reuse(Enum):
    """How what stands in other images of a base dir becomes part of a new one (threats A50)."""

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
        return self.file_bits | (self.file_bits & 0o444) >> 2 if executable else self.file_bits


STANDARD_MODES = Modes()
"""What images have unless a config says otherwise (protocol section 1.2)."""


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
