"""Sidecar metadata of single images, beside their state files: the hooks that are due, and modes that are not the usual ones.

Each note is a file of its own, one CBOR map with a checksum (``states``). Its name begins with a dot and is a hash of path and image: the
reference does not look at it, and a note of one image says nothing of the next.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b

from ciruela.disk.executor import ENTRY_COST, Steps
from ciruela.disk.layout import Place
from ciruela.disk.safedir import SafeDir
from ciruela.disk.states import TEMPORARY, is_sealed, read_record, sealed, write_file
from ciruela.model.config import STANDARD_MODES, Modes
from ciruela.model.errors import FormatError
from ciruela.model.hooks import AFTER, Due
from ciruela.model.ids import ImageId, image_id
from ciruela.model.vpath import VPath
from ciruela.proto.bounded import loads

DUE = ".due"
MODES = ".modes"

MAX_BYTES = 8 * 1024
"""Largest note that is read: a path of 1,024 bytes and some numbers. Our own limit."""

_MOST_BITS = 0o777
_MOST_ID = 1 << 32
_MAX_MS = 1 << 64


def file_name(vpath: VPath, image: ImageId, suffix: str) -> str:
    """The name of a note."""
    return f".{blake2b(str(vpath).encode() + image, digest_size=16).hexdigest()}{suffix}"


def _is_number(value: object, below: int) -> bool:
    return type(value) is int and 0 <= value < below


def _load(data: bytes) -> dict[object, object]:
    if len(data) > MAX_BYTES:
        raise FormatError(f"a note of more than {MAX_BYTES} bytes")
    fields = loads(data, max_items=64, max_depth=3)
    if not isinstance(fields, dict):
        raise FormatError("not a map")
    is_sealed(fields, data)
    return fields


def _remove(directory: SafeDir, name: str) -> None:
    if directory.stat(name) is not None:
        directory.unlink(name)
        directory.fsync()


# -- hooks --------------------------------------------------------------------------------------------------------------------


def encode_due(due: Due) -> bytes:
    """The bytes of the note that says which hooks are due."""
    fields: dict[str, object] = {"path": str(due.vpath), "image": due.image, "old": due.old_image, "signed": due.signed_ms}
    return sealed(fields | {"key": due.key, "left": [kind.value for kind in due.kinds]})


def decode_due(data: bytes) -> Due:
    """The hooks that are due by such a note. Raises FormatError. Kinds that are not known here are left out."""
    match fields := _load(data):
        case {"path": str(path), "image": bytes(image), "signed": int(signed_ms), "key": str(key), "left": list(left)}:
            old = fields.get("old")
            if not _is_number(signed_ms, _MAX_MS):
                raise FormatError("a time that is none")
            try:
                vpath, old_image = VPath.parse(path), None if old is None else image_id(old)
                return Due(vpath, image_id(image), old_image, signed_ms, key, tuple(kind for kind in AFTER if kind.value in left))
            except ValueError as error:
                raise FormatError(str(error)) from None
    raise FormatError("not a map of path, image, old, signed, key and left")


def write_due(directory: SafeDir, due: Due) -> None:
    """Note which hooks are due, durably. Raises OSError."""
    write_file(directory, file_name(due.vpath, due.image, DUE), encode_due(due))


def drop_due(directory: SafeDir, vpath: VPath, image: ImageId) -> None:
    """Forget the hooks of an image, durably. Raises OSError."""
    _remove(directory, file_name(vpath, image, DUE))


def all_due(directory: SafeDir, base: VPath) -> Steps[list[Due]]:
    """The hooks that are due for images of ``base``; at level 0 other keys have theirs in the same directory. Raises OSError."""
    found: list[Due] = []
    for name in directory.names():
        if not name.startswith(".") or name.startswith(TEMPORARY) or not name.endswith(DUE):
            continue
        yield ENTRY_COST
        due = read_record(directory, name, decode_due, MAX_BYTES)
        if due is not None and due.vpath.base == base and name == file_name(due.vpath, due.image, DUE):
            found.append(due)
    return found


# -- modes --------------------------------------------------------------------------------------------------------------------


def encode_modes(modes: Modes) -> bytes:
    """The bytes of the note that says which modes an image has."""
    return sealed({"dir": modes.dir_bits, "file": modes.file_bits, "group": modes.gid})


def decode_modes(data: bytes) -> Modes:
    """The modes that such a note says. Raises FormatError."""
    match _load(data):
        case {"dir": int(directory), "file": int(file), "group": (int() | None) as gid} if (
            _is_number(directory, _MOST_BITS + 1) and _is_number(file, _MOST_BITS + 1) and (gid is None or _is_number(gid, _MOST_ID))
        ):
            return Modes(directory, file, gid)
    raise FormatError("not a map of dir, file and group")


def read_modes(directory: SafeDir, vpath: VPath, image: ImageId) -> Modes:
    """The modes that an image was given when it was committed. Raises OSError."""
    return read_record(directory, file_name(vpath, image, MODES), decode_modes, MAX_BYTES) or STANDARD_MODES


def write_modes(directory: SafeDir, vpath: VPath, image: ImageId, modes: Modes) -> None:
    """Note the modes of an image, durably, before it is shown; the usual ones need no note. Raises OSError."""
    if modes != STANDARD_MODES:
        write_file(directory, file_name(vpath, image, MODES), encode_modes(modes))
    else:
        drop_modes(directory, vpath, image)


def drop_modes(directory: SafeDir, vpath: VPath, image: ImageId) -> None:
    """Forget the modes of an image, durably. Raises OSError."""
    _remove(directory, file_name(vpath, image, MODES))


def sweep_modes(directory: SafeDir, place: Place, kept: Collection[tuple[VPath, ImageId]]) -> Steps[None]:
    """Remove the modes of images that are not among ``kept`` any more; only where all of them are of one base dir. Raises OSError."""
    if not place.vpath.entry:
        return
    names = {file_name(vpath, image, MODES) for vpath, image in kept}
    for name in directory.names():
        if name.startswith(".") and not name.startswith(TEMPORARY) and name.endswith(MODES) and name not in names:
            yield ENTRY_COST
            directory.unlink(name)
