"""State files: what is committed at a path, and the journal of what is about to be (protocol section 5.1, threats 6.4).

A file is one CBOR map, as the reference writes and reads it, with one field more, ``ciruela``, which the reference ignores: the checksum of
the file, and in ``NAME.new.state`` the command, the phase of the commit, device and inode of the staging directory that is about
to be shown, and whether what stood at the name is to be set aside (``aside``).

The checksum of a record: a bit that flipped on the disk must not become a fact (threats A45, finding K3).

A record is one CBOR map. Its last field is ``ciruela``, a map of our own whose last entry is ``sum``: 16 bytes of BLAKE2b over all bytes of
the file before them. The reference and earlier versions of this program ignore the field, and their records have no checksum.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from enum import Enum
from hashlib import blake2b
from typing import TypeVar

import cbor2
from twisted.logger import Logger

from ciruela.disk.layout import NEW_STATE, STATE
from ciruela.disk.safedir import SafeDir
from ciruela.model.errors import FormatError
from ciruela.model.ids import image_id
from ciruela.model.units import logged
from ciruela.model.upload import Command
from ciruela.model.values import dataclass
from ciruela.model.versions import SIGNATURE_BYTES, SigEntry, State
from ciruela.proto.bounded import loads

FIELD = "ciruela"
SUM = "sum"
SUM_BYTES = 16


def sealed(fields: Mapping[str, object], own: Mapping[str, object] | None = None) -> bytes:
    """The bytes of a record with ``fields``, ``own`` in the field of ours, and its checksum."""
    data = cbor2.dumps({**fields, FIELD: {**(own or {}), SUM: bytes(SUM_BYTES)}})
    return data[:-SUM_BYTES] + _sum(data)


def is_sealed(fields: object, data: bytes) -> bool:
    """Tells whether the record ``fields``, decoded from ``data``, has a checksum. Raises FormatError when that is wrong."""
    own = fields.get(FIELD) if isinstance(fields, dict) else None
    if own is None:
        return False
    if not isinstance(own, dict):
        raise FormatError(f"the field {FIELD} is not a map")
    if SUM not in own:
        return False
    if own[SUM] != _sum(data) or not data.endswith(own[SUM]):  # guard: K3.3 K3.4 A45
        raise FormatError("its checksum is wrong: it was changed, or the disk lost a bit")
    return True


def _sum(data: bytes) -> bytes:
    return blake2b(memoryview(data)[:-SUM_BYTES], digest_size=SUM_BYTES).digest()


_log = Logger()

MAX_STATE_BYTES = 1024 * 1024
"""Largest state file that is read: some 10,000 signatures, for earlier versions kept one for each upload. Our own limit."""

MAX_ITEMS = 64 * 1024
"""Most CBOR items in a state file: a signature takes five and 80 bytes, so any file of lawful size fits. Our own limit."""

SIGNATURE_TYPE = "ssh-ed25519"

RECORD_MODE = 0o640  # guard: S14, -> 420
"""Permission bits of what is in the db directory: signatures and names are for the daemon's user and group alone."""

TEMPORARY = ".tmp."
"""Prefix of the names of half-written files (protocol section 5.1)."""

NOT_A_FILE = frozenset({errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.ENXIO})
"""Errnos of opening a name at which something else than a regular file stands."""

T = TypeVar("T")

Judge = Callable[[State], State]
"""Judges a state that has no checksum. Gives what is believed of it; raises FormatError when that is nothing."""


class CommitPhase(Enum):
    """Phase of a commit: still being put together, or whole, durable and about to be shown."""

    DOWNLOAD = "download"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Journal:
    """The content of ``NAME.new.state``. ``staging`` is device and inode of the staging directory in phase READY, else None.

    ``command`` is None when the reference wrote the file, which does not record it. ``aside``, in phase READY: what stands at the name has
    no record; it changes places with the staging directory and is then set aside.
    """

    state: State
    command: Command | None
    phase: CommitPhase = CommitPhase.DOWNLOAD
    staging: tuple[int, int] | None = None
    aside: bool = False

    def resolved(self, committed: State | None) -> Command:
        """The command; where it is not recorded: replace if something is committed, else append."""
        return self.command or (Command.APPEND if committed is None else Command.REPLACE)


def is_identity(device: int, inode: int) -> bool:
    """Tells whether two decoded values can be a device and an inode: in Python True is a number as well."""
    return not isinstance(device, bool) and not isinstance(inode, bool) and device >= 0 and inode >= 0


def _fields(state: State) -> dict[str, object]:
    return {
        "image": state.image,
        "signatures": [[entry.timestamp_ms, [SIGNATURE_TYPE, entry.signature]] for entry in state.signatures],
    }


def encode_state(state: State) -> bytes:
    """The bytes of ``NAME.state``: what the reference writes, and a checksum."""
    return sealed(_fields(state))


def encode_journal(journal: Journal) -> bytes:
    """The bytes of ``NAME.new.state``."""
    own: dict[str, object] = {"phase": journal.phase.value}
    if journal.command is not None:
        own["command"] = journal.command.value
    if journal.staging is not None:
        own["staging"] = list(journal.staging)
    if journal.aside:
        own["aside"] = True
    return sealed(_fields(journal.state), own)


def _load(data: bytes) -> tuple[Mapping[object, object], bool]:
    """The fields of a record, and whether it has a checksum, which is right then. Raises FormatError."""
    if len(data) > MAX_STATE_BYTES:  # guard: A45 F39
        raise FormatError(f"a state of more than {MAX_STATE_BYTES} bytes")
    fields = loads(data, max_items=MAX_ITEMS, max_depth=8)
    if not isinstance(fields, dict):
        raise FormatError("not a map")
    return fields, is_sealed(fields, data)


def _signature(entry: object) -> SigEntry:
    match entry:
        case [int(time), [str(kind), bytes(signature)]] if (
            # guard: A45 F39, -> kind == SIGNATURE_TYPE and len(signature) == SIGNATURE_BYTES
            not isinstance(time, bool) and 0 <= time < 1 << 64 and kind == SIGNATURE_TYPE and len(signature) == SIGNATURE_BYTES
        ):
            return SigEntry(time, signature)
    raise FormatError("a signature that is not [milliseconds, [ssh-ed25519, 64 bytes]]")


def _state(fields: Mapping[object, object]) -> State:
    try:
        image = image_id(fields.get("image"))
    except ValueError as error:
        raise FormatError(str(error)) from None
    entries = fields.get("signatures")
    if not isinstance(entries, list) or not entries:  # guard: A45 F39, without 2
        raise FormatError("no signatures")
    return State(image, ()).merged(tuple(_signature(entry) for entry in entries))


def decode_state(data: bytes, judge: Judge | None = None) -> State:
    """The state in ``data``; ``judge`` has the last word on one without a checksum.

    Raises FormatError; a state without signatures is not one, nor is one with a wrong checksum.
    """
    fields, sure = _load(data)
    state = _state(fields)
    return state if sure or judge is None else judge(state)


def decode_journal(data: bytes, judge: Judge | None = None) -> Journal:
    """The journal in ``data``, as :func:`decode_state`; without our own field as the reference means it. Raises FormatError."""
    fields, sure = _load(data)
    state = _state(fields)
    if not sure and judge is not None:
        state = judge(state)
    own = fields.get(FIELD)
    if own is None:  # guard: A59
        return Journal(state, None)
    assert isinstance(own, dict)  # _load looked
    try:
        command = Command(own["command"]) if "command" in own else None
        phase = CommitPhase(own.get("phase"))
    except ValueError as error:
        raise FormatError(f"the field ciruela: {logged(error)}") from None
    match own.get("staging"):
        case [int(device), int(inode)] if phase is CommitPhase.READY and is_identity(device, inode):
            return Journal(state, command, phase, (device, inode), own.get("aside") is True)
        case None if phase is CommitPhase.DOWNLOAD:
            return Journal(state, command)
    raise FormatError("the field ciruela: phase and staging do not fit")


# -- files --------------------------------------------------------------------------------------------------------------------


def temporary_name(name: str) -> str:
    """The name under which ``name`` is written first; short enough for file systems whenever ``name`` is."""
    plain = TEMPORARY + name
    if len(plain.encode("utf-8", "surrogateescape")) <= 255:
        return plain
    suffix = name[name.rindex(".") :]
    return f"{TEMPORARY}{blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=16).hexdigest()}{suffix}"


def prepare_file(directory: SafeDir, name: str, data: bytes) -> str:
    """Write ``data`` durably under a temporary name of ``name`` and return that. Raises OSError, then nothing is left."""
    temporary = temporary_name(name)
    if directory.stat(temporary) is not None:  # guard: A43
        directory.unlink(temporary)
    try:
        with directory.create(temporary, RECORD_MODE) as file:
            file.chmod(RECORD_MODE)
            file.write_at(data, 0)
            file.fsync()  # guard: A44 F38
    except OSError:
        if directory.stat(temporary) is not None:
            directory.unlink(temporary)
        raise
    return temporary


def write_file(directory: SafeDir, name: str, data: bytes) -> None:
    """Put ``data`` at ``name``, durably and in one step. Raises OSError."""
    directory.rename(prepare_file(directory, name, data), name)
    directory.fsync()  # guard: A44 F38


def backup_name(name: str) -> str:
    """The name under which a bad file ``name`` is kept."""
    return f".{name}.backup"


def quarantine(directory: SafeDir, name: str, reason: object) -> None:
    """Rename what cannot be read to ``.NAME.backup``; it is kept for ever and ignored. Logged, as is that it cannot be renamed."""
    backup = backup_name(name)
    try:
        directory.rename(name, backup)
    except OSError as error:
        _log.error("{file} is bad ({reason}) and cannot be set aside: {error}", file=directory.within(name), reason=reason, error=error)
        return
    _log.error("{file} is bad ({reason}), it is kept as {backup}", file=directory.within(name), reason=reason, backup=backup)


def read_record(directory: SafeDir, name: str, decode: Callable[[bytes], T], most_bytes: int = MAX_STATE_BYTES) -> T | None:
    """The content of the file ``name``; None when it is not there, or not understood, which is then set aside. Raises OSError."""
    found = directory.stat(name)
    if found is None:
        return None
    try:
        with directory.open_read(name) as file:
            data = file.read_at(most_bytes + 1, 0)
        return decode(data)
    except FormatError as error:
        quarantine(directory, name, error)  # guard: A45 F39, -> directory.unlink(name)
    except OSError as error:
        if error.errno not in NOT_A_FILE:  # guard: A45 F39, -> True
            raise
        quarantine(directory, name, "not a regular file")
    return None


def read_state(directory: SafeDir, name: str, judge: Judge | None = None) -> State | None:
    """Reads the committed state ``name``; None when there is none, or none that is readable: that one is set aside. Raises OSError."""
    return read_record(directory, name + STATE, lambda data: decode_state(data, judge))


def read_journal(directory: SafeDir, name: str, judge: Judge | None = None) -> Journal | None:
    """Reads the commit journal ``name``; None when there is none, or none that is readable: that one is set aside. Raises OSError."""
    return read_record(directory, name + NEW_STATE, lambda data: decode_journal(data, judge))


def write_state(directory: SafeDir, name: str, state: State) -> None:
    """Record ``state`` as committed, durably. Raises OSError."""
    write_file(directory, name + STATE, encode_state(state))


def write_journal(directory: SafeDir, name: str, journal: Journal) -> None:
    """Record ``journal``, durably. Raises OSError."""
    write_file(directory, name + NEW_STATE, encode_journal(journal))


def drop_state(directory: SafeDir, name: str) -> None:
    """Forget what is committed, durably. Raises OSError."""
    if directory.stat(name + STATE) is not None:
        directory.unlink(name + STATE)
        directory.fsync()


def drop_journal(directory: SafeDir, name: str) -> None:
    """Forget what is pending, durably. Raises OSError."""
    if directory.stat(name + NEW_STATE) is not None:
        directory.unlink(name + NEW_STATE)
        directory.fsync()
