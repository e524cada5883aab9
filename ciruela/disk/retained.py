"""Replaced images that are kept, so that somebody can go back to them: hidden trees beside the image, and one record for each path.

``.NAME.kept`` is one CBOR map, ``{"kept": [[signed_ms, image, inode], ..], "signatures": [[number, signed_ms, signature], ..]}``, the image
that was replaced last first; ``number`` says to which row of the first list a signature belongs. It is written before
the trees change places, and the old tree gets its own name afterwards; the inode tells a start which tree was meant. What a kill leaves
stands in ``docs/reference/files.rst``. A tree that no record names is debris, and a row without a tree is dropped.

The record has a checksum (``states``). One where it is wrong is kept as a bad file is, but the trees that it names are not given up for a
bit: a row of it counts as far as a tree bears it out, and its time as far as a signature has it, which proves itself to whoever wants it.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import replace

import cbor2
from twisted.logger import Logger

from ciruela.disk.executor import ENTRY_COST, Steps
from ciruela.disk.hashrecord import HashRecord
from ciruela.disk.layout import Place
from ciruela.disk.removal import remove_tree
from ciruela.disk.safedir import SafeDir
from ciruela.disk.states import TEMPORARY, backup_name, is_identity, is_sealed, read_record, sealed, write_file
from ciruela.model.errors import FormatError
from ciruela.model.ids import ImageId, image_id
from ciruela.model.values import dataclass
from ciruela.model.versions import MOST_SIGNATURES, SIGNATURE_BYTES, RetainedVersion, SigEntry, State, Version
from ciruela.proto.bounded import loads

_log = Logger()

SUFFIX = ".kept"

MOST = 1000
"""Images that may be kept at one path (``keep-replaced``). Our own limit."""

MAX_BYTES = 64 * 1024
_ROW_ITEMS = 4
_MAX_ITEMS = 8 + _ROW_ITEMS * MOST
_FRAME_BYTES, _FRAME_ITEMS = 64, 12
"""The maps and lists around the rows, and the checksum, at most."""


@dataclass(frozen=True, slots=True)
class RetainedRow:
    """One image that is kept: its version, the inode of its tree, and its signatures where the record has them."""

    version: Version
    inode: int
    signatures: tuple[SigEntry, ...] = ()

    @property
    def kept(self) -> RetainedVersion:
        """The row without its place on this disk."""
        return RetainedVersion(self.version, self.signatures)


def file_name(place: Place) -> str:
    """The name of the record."""
    return f".{place.record}{SUFFIX}"


def is_record(name: str) -> bool:
    """Tells whether ``name``, a file in the db directory, is such a record."""
    return name.startswith(".") and name.endswith(SUFFIX) and not name.startswith(TEMPORARY)


def encode(rows: Sequence[RetainedRow]) -> bytes:
    """The bytes of a record. Of very many rows only the first have their signatures in it: earlier versions read no larger record."""
    plain = [[row.version.timestamp_ms, row.version.image, row.inode] for row in rows]
    left_bytes = MAX_BYTES - len(cbor2.dumps(plain)) - _FRAME_BYTES
    left_items = _MAX_ITEMS - _ROW_ITEMS * len(rows) - _FRAME_ITEMS
    signatures: list[list[object]] = []
    for number, row in enumerate(rows):
        entries: list[list[object]] = [[number, entry.timestamp_ms, entry.signature] for entry in row.signatures]
        left_bytes -= len(cbor2.dumps(entries))
        left_items -= _ROW_ITEMS * len(entries)
        if left_bytes < 0 or left_items < 0:
            break
        signatures += entries
    return sealed({"kept": plain, "signatures": signatures} if signatures else {"kept": plain})


def decode(data: bytes) -> tuple[RetainedRow, ...]:
    """The content of a record. One of an earlier version has no checksum. Raises FormatError, also for a wrong checksum."""
    fields, rows = _decoded(data)
    is_sealed(fields, data)  # guard: K3.3
    return rows


def salvaged(data: bytes) -> tuple[RetainedRow, ...]:
    """Decodes what it can of a record with a wrong checksum: the time of a row is that of one of its signatures. Raises FormatError."""
    _, rows = _decoded(data)
    return tuple(_as_signed(row) for row in rows)


def _as_signed(row: RetainedRow) -> RetainedRow:
    signed_ms = [entry.timestamp_ms for entry in row.signatures]
    if not signed_ms or row.version.timestamp_ms in signed_ms:
        return row
    return replace(row, version=Version(signed_ms[-1], row.version.image))


def _decoded(data: bytes) -> tuple[object, tuple[RetainedRow, ...]]:
    """The fields of a record, and its rows."""
    if len(data) > MAX_BYTES:
        raise FormatError(f"more than {MAX_BYTES} bytes of kept images")
    fields = loads(data, max_items=_MAX_ITEMS, max_depth=3)
    match fields:
        case {"kept": list(rows), **others}:
            signed = _signatures(others.get("signatures"))
            return fields, tuple(_row(row, signed.get(number, ())) for number, row in enumerate(rows))
    raise FormatError("not a map of kept images")


def _signatures(entries: object) -> dict[int, tuple[SigEntry, ...]]:
    """The signatures by the number of their row. A bad entry is dropped, never a row: it only proves nothing then."""
    found: dict[int, set[SigEntry]] = {}
    for entry in entries if isinstance(entries, list) else ():
        match entry:
            case [int(number), int(signed_ms), bytes(signature)] if is_identity(number, signed_ms) and len(signature) == SIGNATURE_BYTES:
                found.setdefault(number, set()).add(SigEntry(signed_ms, signature))
    return {number: tuple(sorted(signed)[-MOST_SIGNATURES:]) for number, signed in found.items()}


def _row(value: object, signatures: tuple[SigEntry, ...]) -> RetainedRow:
    match value:
        case [int(signed_ms), bytes(image), int(inode)] if is_identity(signed_ms, inode):
            try:
                return RetainedRow(Version(signed_ms, image_id(image)), inode, signatures)
            except ValueError as error:
                raise FormatError(str(error)) from None
    raise FormatError("a kept image that is not [milliseconds, image, inode]")


def read(directory: SafeDir, place: Place) -> tuple[RetainedRow, ...]:
    """Reads the record; gives no rows when there is none or it cannot be understood. Raises OSError."""
    damaged: list[tuple[bytes, FormatError]] = []

    def understood(data: bytes) -> tuple[RetainedRow, ...]:
        try:
            return decode(data)
        except FormatError as error:
            rows = salvaged(data)
            damaged.append((data, error))
            return rows

    rows = read_record(directory, file_name(place), understood, MAX_BYTES) or ()
    for data, reason in damaged:
        backup = backup_name(file_name(place))
        write_file(directory, backup, data)
        _log.error(
            "{vpath}: the record of what is kept is bad ({reason}), a copy is kept as {backup}; what trees and signatures bear out counts",
            vpath=str(place.vpath),
            reason=reason,
            backup=backup,
        )
        write(directory, place, rows)
    return rows


def write(directory: SafeDir, place: Place, rows: Sequence[RetainedRow]) -> None:
    """Let the record say ``rows``, durably; without any there is none. Raises OSError."""
    if rows:
        write_file(directory, file_name(place), encode(rows))
    elif directory.stat(file_name(place)) is not None:
        directory.unlink(file_name(place))
        directory.fsync()


def images(rows: Sequence[RetainedRow]) -> tuple[RetainedVersion, ...]:
    """The images of ``rows``."""
    return tuple(row.kept for row in rows)


# -- at a commit ----------------------------------------------------------------------------------------------------------------------


def announce(parent: SafeDir, directory: SafeDir, place: Place, old: State | None, new: ImageId) -> RetainedRow | None:
    """Before the trees change places: record that the old one is to be kept, if it is. Raises OSError."""
    if not place.keep or old is None or old.image == new:
        return None
    standing = parent.stat(place.name)
    if standing is None or not stat.S_ISDIR(standing.st_mode):
        return None
    kept = RetainedVersion.of(old)
    row = RetainedRow(kept.version, standing.st_ino, kept.signatures)
    write(directory, place, (row, *(one for one in read(directory, place) if one.version.image != old.image)))
    return row


def withdraw(directory: SafeDir, place: Place, row: RetainedRow | None) -> None:
    """The trees have not changed places after all. Failing costs nothing: a start drops a row without a tree."""
    if row is not None:
        _rewrite(directory, place, [one for one in _read_anyway(directory, place) if (one.version, one.inode) != (row.version, row.inode)])


def keep(parent: SafeDir, directory: SafeDir, place: Place, row: RetainedRow | None, new: ImageId) -> None:
    """The new image is shown and recorded: give the old tree its own name, and forget what is one too many.

    Nothing here may undo the commit: what cannot be kept is not kept.
    """
    if row is not None:
        try:
            _take(parent, place, row, place.staging(new))
        except OSError as error:
            _log.error("{vpath}: the replaced image cannot be kept: {error}", vpath=str(place.vpath), error=error)
    if place.keep:
        try:
            _rewrite(directory, place, _standing(parent, place, _read_anyway(directory, place), new))
        except OSError as error:
            _log.error("{vpath}: what is kept cannot be looked at: {error}", vpath=str(place.vpath), error=error)


def _take(parent: SafeDir, place: Place, row: RetainedRow, name: str) -> None:
    parent.rename_new(name, place.kept(row.version.image))
    parent.fsync()


def _standing(parent: SafeDir, place: Place, rows: Sequence[RetainedRow], current: ImageId | None) -> list[RetainedRow]:
    """Those of ``rows`` whose trees are there, but for the current image and what is one too many."""
    good = [row for row in rows if row.version.image != current and _is_there(parent, place.kept(row.version.image), row)]
    return good[: place.keep]


def _is_there(parent: SafeDir, name: str, row: RetainedRow) -> bool:
    found = parent.stat(name)
    return found is not None and stat.S_ISDIR(found.st_mode) and found.st_ino == row.inode


def _read_anyway(directory: SafeDir, place: Place) -> tuple[RetainedRow, ...]:
    try:
        return read(directory, place)
    except OSError as error:
        _log.error("{vpath}: the record of what is kept cannot be read: {error}", vpath=str(place.vpath), error=error)
        return ()


def _rewrite(directory: SafeDir, place: Place, rows: Sequence[RetainedRow]) -> None:
    if tuple(rows) == _read_anyway(directory, place):
        return
    try:
        write(directory, place, rows)
    except OSError as error:
        _log.error("{vpath}: what is kept cannot be recorded: {error}", vpath=str(place.vpath), error=error)


# -- later ----------------------------------------------------------------------------------------------------------------------------


def settle(
    parent: SafeDir | None, directory: SafeDir, place: Place, committed: State | None, pending: ImageId | None
) -> tuple[RetainedRow, ...]:
    """Brings the record to what is really there, at a start, after a tree that a kill left under another name got its own.

    Raises OSError.
    """
    rows = read(directory, place)
    if not rows:
        return ()
    current = None if committed is None else committed.image
    if parent is not None:
        for row in rows:
            for image in {current, pending} - {None}:
                assert image is not None
                for name in (place.staging(image), place.aside(image)):
                    # The inode tells whose tree it is: a kill may have left it at any name that the exchange uses.
                    if not _is_there(parent, place.kept(row.version.image), row) and _is_there(parent, name, row):  # guard: A43
                        _take(parent, place, row, name)
    good = [] if parent is None else _standing(parent, place, rows, current)
    if tuple(good) != rows:
        write(directory, place, good)
    return tuple(good)


def discard(directory: SafeDir | None, parent: SafeDir, place: Place, known: HashRecord | None = None) -> Steps[None]:
    """Delete the trees that were kept at ``place`` and that the record does not name any more. Raises OSError.

    ``known`` as in ``removal.remove_tree``.
    """
    wanted = {place.kept(row.version.image) for row in (() if directory is None else read(directory, place))}
    for name in parent.names():
        yield ENTRY_COST
        if name.startswith(place.kept_prefix) and name not in wanted:
            yield from remove_tree(parent, name, known)
