"""``ciruela.yaml``: the daemon's own settings, beside the files that the reference reads too (it does not look at this one).

Every option of the command line has its place here, by the same name, and gives way to the command line.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ciruela.daemon.rules import MOST_BYTES, Rule, duration, flag, items, number, path, read_file, text, word, wrong
from ciruela.daemon.yamltext import Value
from ciruela.model.errors import ConfigError, FormatError
from ciruela.model.tuning import DAY_MS, HOUR_MS, KIB, MIB, SECOND_MS, STANDARD, Fsync, Tuning
from ciruela.net.discovery.spec import Asked, Kind, Spec, check_url, parse_spec

FILE = "ciruela.yaml"

MOST_CONNECTIONS = 1_000_000
"""What ``--max-connections`` allows, too."""

MOST_THREADS = 256
MOST_PEER_SOURCES = 64
MOST_PAGE_HOSTS = 64

_PAGE_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")

NO_CANTAL = (
    "there is no cantal here (leave it out, and name the nodes in peers.txt, or a place that knows them under peers: in ciruela.yaml)"
)
"""What to answer to the one setting of the reference that cannot be passed over: without its peers a node would stand alone."""

IGNORED = {
    "metadata-threads": "all file work is done by --disk-threads",
    "log-machine-id": "the machine id is in the log of every start",
    "aggressive-index-gc": "indexes that nobody needs are collected once a day, or sooner when there are many",
}
"""Settings of the reference that mean nothing here: why. They are taken, with a warning, so that its unit files go on to work."""


def _host(value: Value) -> str:
    given = text(value, "an address")
    try:
        return str(ipaddress.ip_address(given))
    except ValueError:
        raise wrong(given, "a numeric address of this host", "10.0.0.1") from None


def _no_cantal(_: Value) -> str:
    raise ValueError(NO_CANTAL)


def _url(value: Value) -> str:
    try:
        return check_url(text(value, "a URL")).rstrip("/")
    except FormatError as error:
        raise ValueError(str(error)) from None


def _spec(value: Value) -> Spec:
    try:
        return parse_spec(text(value, "a place that knows peers"))
    except FormatError as error:
        raise ValueError(str(error)) from None


def _page_host(value: Value) -> str:
    given = text(value, "a host name").lower().removesuffix(".")
    if len(given) > 253 or not _PAGE_HOST.fullmatch(given):
        raise wrong(given, "a host name, without a port (numeric addresses need not be named)", "node1.example.org")
    return given


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
    "page-hosts": Rule("page_hosts", items(_page_host, "host names", "node1.example.org", MOST_PAGE_HOSTS)),
}
"""How much the node takes on: the fields of ``Tuning``."""

OPTIONS = {
    "host": Rule("host", _host),
    "port": Rule("port", number(1, 65535)),
    "db-dir": Rule("db-dir", path),
    "disk-threads": Rule("disk-threads", number(1, MOST_THREADS)),
    "override-machine-id": Rule("override-machine-id", lambda value: text(value, "a machine id")),
    "override-hostname": Rule("override-hostname", lambda value: text(value, "a host name")),
    "metadata-threads": Rule("metadata-threads", number(1, MOST_BYTES)),
    "log-machine-id": Rule("log-machine-id", flag),
    "aggressive-index-gc": Rule("aggressive-index-gc", flag),
    "cantal": Rule("cantal", _no_cantal),
}
"""The other options of the command line, by their names there."""

PEERS = {
    "peers": Rule("specs", items(_spec, "places that know peers", "dns:ciruela.example.org", MOST_PEER_SOURCES)),
    "peers-interval": Rule("interval_s", lambda value: duration(5 * SECOND_MS, DAY_MS)(value) / 1000),
    "consul": Rule("consul", _url),
    "consul-token-file": Rule("consul_token_file", path),
}
"""Where the other nodes are known."""


@dataclass(frozen=True, slots=True)
class Own:
    """What the file says. ``options`` has those that stand there, by their names on the command line."""

    tuning: Tuning = STANDARD
    options: Mapping[str, Any] = field(default_factory=dict)
    peers: Asked = field(default_factory=Asked)


def load_own(config_dir: str) -> Own:
    """Read ``ciruela.yaml`` below ``config_dir``; without one everything is standard.

    Raises ConfigError with one line for each mistake, as ``config.load_config`` does. Who may write to the file is looked at there.
    """
    top = os.path.abspath(config_dir)
    file = os.path.join(top, FILE)
    if not os.path.lexists(file):
        return Own()
    problems: list[str] = []
    found = read_file(file, RULES | OPTIONS | PEERS, "fsync: commit", problems)
    if found is None:
        raise ConfigError("\n".join(problems))
    asked = {name: value for name, value in found.values.items() if name in Asked.__slots__}
    asked["specs"] = tuple(_below(spec, top) for spec in asked.get("specs", ()))
    return Own(
        Tuning(**{name: value for name, value in found.values.items() if name in Tuning.__slots__}),
        {name: value for name, value in found.values.items() if name in OPTIONS},
        Asked(**asked),
    )


def _below(spec: Spec, top: str) -> Spec:
    """A file is found from the directory of the configuration."""
    return Spec(spec.kind, spec.text, os.path.join(top, spec.where)) if spec.kind is Kind.FILE else spec
