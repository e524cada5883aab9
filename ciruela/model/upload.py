"""A signed wish "this image at this path", and what can be answered to it."""

from __future__ import annotations

from enum import Enum

from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass
from ciruela.model.versions import SigEntry, State, Version
from ciruela.model.vpath import VPath


class Command(Enum):
    """Command of an upload: to take a path where nothing is, or the place of an older image."""

    APPEND = "append"
    REPLACE = "replace"


class Origin(Enum):
    """Sender of an upload request: a client's request, or a peer's base dir."""

    CLIENT = "client"
    PEER = "peer"


@dataclass(frozen=True, slots=True)
class UploadRequest:
    """One wish, as checked for form; its signatures are not verified yet."""

    command: Command
    vpath: VPath
    image: ImageId
    old_image: ImageId | None
    signatures: tuple[SigEntry, ...]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Removal:
    """One wish that ``image`` go from ``vpath``, as checked for form; ``signatures`` are all of one time and not verified yet.

    ``forced``: also where a protected link leads to it. ``asked_by``: the address of who brought it, for the log.
    """

    vpath: VPath
    image: ImageId
    timestamp_ms: int
    signatures: tuple[bytes, ...]
    origin: Origin
    forced: bool = False
    asked_by: str = ""

    @property
    def version(self) -> Version:
        """Its place in the one order of versions: after whatever was signed before."""
        return Version(self.timestamp_ms, self.image)


@dataclass(frozen=True, slots=True)
class RemovalGranted:
    """The wish to remove is granted. ``fresh``: something is to be done or recorded; else it was done before.

    ``outlived``: what is there was signed later and stays, the removal is only to be remembered.
    """

    fresh: bool
    outlived: bool = False


class RejectReason(str, Enum):
    """Refusals, by their words on the wire (protocol section 5.3; the last six are ours)."""

    NO_CONFIG = "no_config"
    CONFIG_LEVEL_MISMATCH = "config_level_mismatch"
    DIR_IS_APPEND_ONLY = "dir_is_append_only"
    SIGNATURE_MISMATCH = "signature_mismatch"
    ALREADY_EXISTS = "already_exists"
    ALREADY_UPLOADING = "already_uploading_different_version"
    REPLACE_DOESNT_MATCH = "replace_doesnt_match_index"
    STALE_TIMESTAMP = "stale_timestamp"
    TIMESTAMP_IN_FUTURE = "timestamp_in_future"
    BAD_PATH = "bad_path"
    QUOTA = "quota_exceeded"
    CONFLICT = "conflict"
    PROTECTED = "protected"
    NOT_WITHDRAWN = "not_withdrawn"


class AbortReason(str, Enum):
    """Reason why a download ended without an image, by its word on the wire (protocol section 5.5; the last ten are ours)."""

    CANT_FETCH_INDEX = "cant_fetch_index"
    CANT_CREATE_DIRECTORY = "cant_create_directory"
    HARDLINKING = "internal_error_when_hardlinking"
    NO_FILE_SOURCE = "cluster_abort_no_file_source"
    COMMIT_ERROR = "commit_error"
    NO_SPACE = "no_space"
    SUPERSEDED = "superseded"
    ALREADY_EXISTS = "already_exists"
    IMAGE_TOO_LARGE = "image_too_large"
    BAD_INDEX = "bad_index"
    BAD_SYMLINK = "bad_symlink"
    CONFLICT = "conflict"
    KEY_REMOVED = "key_removed"
    DIRECTORY_REMOVED = "directory_removed"
    CHECK_FAILED = "check_failed"


class Progress(Enum):
    """Progress of an accepted upload."""

    NEW = "new"
    IN_PROGRESS = "in progress"
    ALREADY_DONE = "already done"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The wish is granted. ``state`` is what to record; ``conflict`` tells that an append-only path changes its image."""

    progress: Progress
    state: State
    conflict: bool = False


@dataclass(frozen=True, slots=True)
class Rejection:
    """The wish is refused. ``detail`` is for logs, the wire carries the word alone."""

    reason: RejectReason
    detail: str = ""


Decision = Accepted | Rejection
