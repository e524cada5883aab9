"""Tombstones on disk, one file for each base dir, beside its state files (threats 6.5).

The file is one CBOR map, ``{"floor": milliseconds, "tombstones": {name: [signed_ms, image, buried_ms]}}``, where something was removed by a
signed wish also ``"signatures": {name: [64 bytes, ..]}`` and ``"forced": [name, ..]``, which an earlier version does not look at, and a
checksum (``states``). Its name begins with a dot, so the reference does not read it. A tombstone is also the journal of its deletion: a
start that finds one for what is still committed goes on.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from threading import Lock

from ciruela.disk.layout import Place
from ciruela.disk.safedir import SafeDir
from ciruela.disk.states import is_sealed, quarantine, read_record, sealed, write_file
from ciruela.model.errors import FormatError
from ciruela.model.ids import image_id
from ciruela.model.versions import MOST_SIGNATURES, SIGNATURE_BYTES, Tombstone, Tombstones, Version
from ciruela.proto.bounded import loads

NAME = ".tombstones"

MOST_TOMBSTONES = 10_000
"""In one base dir; older ones are folded into the floor. Our own limit: a file of some 3 MB at worst."""

MAX_BYTES = 16 * 1024 * 1024
"""Room for the longest names and :data:`~ciruela.model.versions.MOST_SIGNATURES` for each tombstone."""

_MAX_ITEMS = 16 + (8 + MOST_SIGNATURES) * MOST_TOMBSTONES
_MAX_MS = 1 << 64

AHEAD_MS = 10 * 60 * 1000
"""A version that is buried was signed at most so long after, by two clocks that may each be five minutes off."""

_turn = Lock()
"""Images of one base dir are deleted in several threads, and share a file."""

_serials = count(1)
"""Numbers what was in the files, in the order in which it was there."""


def file_name(place: Place) -> str:
    """The name of the file with the tombstones of the base dir of ``place``; at level 0 one for each key."""
    return f".{place.vpath.key}{NAME}" if not place.vpath.entry else NAME


def encode(burials: Tombstones) -> bytes:
    """The bytes of a file."""
    rows = {
        entry: [tombstone.version.timestamp_ms, tombstone.version.image, tombstone.buried_ms]
        for entry, tombstone in sorted(burials.tombstones.items())
    }
    signed = {entry: list(tombstone.signatures) for entry, tombstone in sorted(burials.tombstones.items()) if tombstone.signatures}
    forced = sorted(entry for entry, tombstone in burials.tombstones.items() if tombstone.forced)
    fields: dict[str, object] = {"floor": burials.floor_ms, "tombstones": rows}
    return sealed(fields | ({"signatures": signed} if signed else {}) | ({"forced": forced} if forced else {}))


def decode(data: bytes) -> Tombstones:
    """The content of a file. Raises FormatError."""
    return _decoded(data)[0]


def _decoded(data: bytes) -> tuple[Tombstones, bool]:
    """The content of a file, and whether it has a checksum. Without one (an earlier version) what cannot be is left out: a flipped bit."""
    if len(data) > MAX_BYTES:
        raise FormatError(f"more than {MAX_BYTES} bytes of tombstones")
    match fields := loads(data, max_items=_MAX_ITEMS, max_depth=3):
        case {"floor": int(floor_ms), "tombstones": dict(rows), **others} if _is_time(floor_ms):
            sure = is_sealed(fields, data)
            signed, forced = others.get("signatures", {}), others.get("forced", [])
            if isinstance(signed, dict) and isinstance(forced, list):
                found = dict(_tombstone(entry, row, signed.get(entry, []), entry in forced) for entry, row in rows.items())
                return Tombstones(floor_ms, found if sure else {entry: one for entry, one in found.items() if _can_be(one)}), sure
    raise FormatError("not a map of floor, tombstones and signatures")


def _can_be(tombstone: Tombstone) -> bool:
    return tombstone.version.timestamp_ms <= tombstone.buried_ms + AHEAD_MS


def _is_time(value: int) -> bool:
    return not isinstance(value, bool) and 0 <= value < _MAX_MS


def _tombstone(entry: object, row: object, signed: object, forced: bool) -> tuple[str, Tombstone]:
    if not isinstance(signed, list) or not all(isinstance(one, bytes) and len(one) == SIGNATURE_BYTES for one in signed):
        raise FormatError("signatures of a tombstone that are not a list of 64 bytes each")
    match entry, row:
        case str(name), [int(signed_ms), bytes(image), int(buried_ms)] if _is_time(signed_ms) and _is_time(buried_ms):
            try:
                return name, Tombstone(Version(signed_ms, image_id(image)), buried_ms, tuple(signed), forced)
            except ValueError as error:
                raise FormatError(str(error)) from None
    raise FormatError("a tombstone that is not name: [milliseconds, image, milliseconds]")


def read(directory: SafeDir, place: Place) -> Tombstones:
    """Reads the tombstones of the base dir of ``place``; none when there is no file or it cannot be understood. Raises OSError."""
    return read_record(directory, file_name(place), decode, MAX_BYTES) or Tombstones()


def vet(directory: SafeDir, place: Place, latest_ms: int) -> None:
    """Set a file without a checksum right whose floor is after ``latest_ms``: it would refuse everything for ever. Raises OSError.

    The old file is kept as a bad one is. What was deleted lately is still remembered, by the tombstones.
    """
    with _turn:
        name = file_name(place)
        found = read_record(directory, name, _decoded, MAX_BYTES)
        if found is None or found[1] or found[0].floor_ms <= latest_ms:
            return
        quarantine(directory, name, f"its floor is {found[0].floor_ms} ms, far ahead of the clock")
        write_file(directory, name, encode(Tombstones(0, found[0].tombstones)))


def add(directory: SafeDir, place: Place, tombstone: Tombstone) -> Tombstones:
    """Remember one more deletion, durably; returns all of the base dir. Raises OSError."""
    with _turn:
        burials = read(directory, place).with_one(place.vpath.entry, tombstone).folded(0, MOST_TOMBSTONES)
        write_file(directory, file_name(place), encode(burials))
        return replace(burials, serial=next(_serials))


def take_back(directory: SafeDir, place: Place, before: Tombstone | None) -> None:
    """Undo an :func:`add` where ``before`` was what stood there. Raises OSError."""
    with _turn:
        now = read(directory, place)
        burials = now.without(place.vpath.entry)
        burials = burials if before is None else burials.with_one(place.vpath.entry, before)
        if burials != now:
            write_file(directory, file_name(place), encode(burials))


def fold(directory: SafeDir, place: Place, before_ms: int) -> Tombstones:
    """Fold the tombstones set before ``before_ms`` into the floor, durably; returns what is left. Raises OSError."""
    with _turn:
        burials = read(directory, place)
        folded = burials.folded(before_ms, MOST_TOMBSTONES)
        if folded is not burials:
            write_file(directory, file_name(place), encode(folded))
        return replace(folded, serial=next(_serials))
