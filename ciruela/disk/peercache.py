"""``DB/.peers``: who the other nodes were when that was last known, so that a start needs no name server (threats A60).

One JSON object, ``{"sources": {place: [name]}, "addresses": {name: [address]}, "known": {address: [text]}, "sum": checksum}``. It is no
record of anything: whatever is wrong with it, it counts as empty, and the next list takes its place. ``known`` says who was met at each
address. ``sum``, the last member, is BLAKE2b of all bytes of the file before its value. Earlier versions neither write nor read these two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ciruela.disk.layout import Records
from ciruela.disk.states import write_file
from ciruela.interfaces import InThread

NAME = ".peers"
MAX_BYTES = 4 * 1024 * 1024
MOST_LISTS = 20_000

SUM = "sum"
SUM_BYTES = 16
_END = b'"}'
"""Bytes of the file after the checksum."""

Lists = Mapping[str, Mapping[str, Sequence[str]]]


def decode(data: bytes) -> dict[str, dict[str, list[str]]]:
    """The lists in ``data``. Raises ValueError."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES} bytes")
    try:
        found = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    lists = {what: _lists(found, what) for what in ("sources", "addresses")}
    if SUM in found:
        size = len(data) - 2 * SUM_BYTES - len(_END)
        if size < 0 or data[size:] != _sum(data[:size]) + _END:
            raise ValueError("its checksum is wrong: it was changed, or the disk lost a bit")
    try:
        return lists | {"known": _lists(found, "known")}
    except ValueError:
        return lists


def encode(lists: Lists) -> bytes:
    """The bytes of a file."""
    head = json.dumps({**lists, SUM: ""}, separators=(",", ":")).encode("utf-8").removesuffix(_END)
    return head + _sum(head) + _END


def _sum(data: bytes) -> bytes:
    return blake2b(data, digest_size=SUM_BYTES).hexdigest().encode("ascii")


def _lists(found: object, what: str) -> dict[str, list[str]]:
    lists = found.get(what) if isinstance(found, dict) else None
    if not isinstance(lists, dict) or len(lists) > MOST_LISTS:
        raise ValueError(f"there is no object {what!r}, or it has more than {MOST_LISTS} entries")
    for value in lists.values():
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"{what!r} has something that is not a list of texts")
    return lists


class PeerCache:
    """The file below ``db_dir``. Its work is done by ``in_thread``."""

    _log = Logger()

    def __init__(self, db_dir: str, in_thread: InThread) -> None:
        self._records = Records(db_dir)
        self._in_thread = in_thread

    def read(self) -> Deferred[Lists]:
        """The lists that were written last; nothing when there are none, or they cannot be read."""
        return self._in_thread(self._read).addErrback(self._unreadable)

    def _read(self) -> Lists:
        with self._records.root() as root:
            try:
                file = root.open_read(NAME)
            except FileNotFoundError:
                return {}
            with file:
                return decode(file.read_at(MAX_BYTES + 1, 0))

    def _unreadable(self, failure: Failure) -> Lists:
        failure.trap(OSError, ValueError)
        self._log.warn("the peers of the last run cannot be read, they are asked for: {reason}", reason=failure.getErrorMessage())
        return {}

    def write(self, lists: Lists) -> Deferred[None]:
        """Keep ``lists``; a failure is logged."""
        return self._in_thread(self._write, lists).addErrback(self._not_written)

    def _write(self, lists: Lists) -> None:
        data = encode(lists)
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes of peers")
        with self._records.root() as root:
            write_file(root, NAME, data)

    def _not_written(self, failure: Failure) -> None:
        failure.trap(OSError, ValueError)
        self._log.warn("the list of peers cannot be kept for the next start: {reason}", reason=failure.getErrorMessage())
