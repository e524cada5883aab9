"""``ciruela.yaml``: the daemon's own settings, beside the files that the reference reads too (it does not look at this one).

A setting that has an option on the command line gives way to it.
"""

from __future__ import annotations

import os

from ciruela.daemon.rules import MOST_BYTES, Rule, duration, number, read_file, word
from ciruela.model.errors import ConfigError
from ciruela.model.tuning import DAY_MS, HOUR_MS, KIB, MIB, SECOND_MS, STANDARD, Fsync, Tuning

FILE = "ciruela.yaml"

MOST_CONNECTIONS = 1_000_000
"""What ``--max-connections`` allows, too."""

RULES = {
    "fsync": Rule("fsync", word(Fsync)),
    "disk-reserve-bytes": Rule("disk_reserve_bytes", number(0, MOST_BYTES)),
    "disk-reserve-percent": Rule("disk_reserve_percent", number(0, 50)),
    "max-index-bytes": Rule("max_index_bytes", number(64 * KIB, STANDARD.max_index_bytes)),
    "max-connections": Rule("max_connections", number(1, MOST_CONNECTIONS)),
    "max-connections-per-address": Rule("max_connections_per_address", number(1, MOST_CONNECTIONS)),
    "requests-per-second": Rule("requests_per_second", number(1, 1_000_000)),
    "uploads-per-key": Rule("uploads_per_key", number(1, 1_000_000)),
    "scrub-bytes-per-second": Rule("scrub_bytes_per_second", number(0, 1_000_000 * MIB)),
    "scrub-cycle": Rule("scrub_cycle_ms", duration(HOUR_MS, 3660 * DAY_MS)),
    "signature-max-age": Rule("signature_max_age_ms", duration(60 * SECOND_MS)),
}


def load_tuning(config_dir: str) -> Tuning:
    """Read ``ciruela.yaml`` below ``config_dir``; without one everything is standard.

    Raises ConfigError with one line for each mistake, as ``config.load_config`` does. Who may write to the file is looked at there.
    """
    path = os.path.join(os.path.abspath(config_dir), FILE)
    if not os.path.lexists(path):
        return STANDARD
    problems: list[str] = []
    found = read_file(path, RULES, "fsync: commit", problems)
    if found is None:
        raise ConfigError("\n".join(problems))
    return Tuning(**found.values)
