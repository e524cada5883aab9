"""How much a node takes on, and what it does for durability: the content of ``ciruela.yaml``, checked."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
SECOND_MS = 1000
HOUR_MS = 3600 * SECOND_MS
DAY_MS = 24 * HOUR_MS


class Fsync(Enum):
    """What is synced to the disk before an image counts as received (threats 6.4)."""

    COMMIT = "commit"
    PER_FILE = "per-file"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Tuning:
    """The settings of one daemon that are not about one directory. Bytes, milliseconds, or plain counts.

    ``fsync``: ``COMMIT`` makes a whole image durable in the cheapest way, ``PER_FILE`` syncs each of its files and directories however
    many they are, ``NONE`` syncs neither images nor records.
    ``page_hosts`` are names, in lower case, under which the status pages may be asked for besides the node's own.
    ``requests_per_second`` and ``uploads_per_key`` are the most that one connection and one key may ask for.
    """

    fsync: Fsync = Fsync.COMMIT
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
"""What holds without a file."""
