"""Plan of a daemon: the command line and all files of the configuration, read and checked together.

The same reading is done at the start, by ``--check-config``, and for each reload; it changes nothing.

It has the identity of this node: its machine id and its host name (protocol section 7.3).

``ciruela.yaml``: the daemon's own settings, beside the files that the reference reads too (it does not look at this one).

Every option of the command line has its place here, by the same name, and gives way to the command line.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Any, TypeVar

from ciruela.daemon.authority import key_complaints
from ciruela.daemon.config import Config, load_config
from ciruela.daemon.rules import MOST_BYTES, SettingRule, Value, duration, flag, items, number, path, read_file, text, word, wrong
from ciruela.interfaces import DEFAULT_PORT, Address
from ciruela.model.config import DAY_MS, HOUR_MS, KIB, MIB, SECOND_MS, STANDARD, CommitCheck, DirConfig, Fsync, Tuning
from ciruela.model.errors import ConfigError, FormatError
from ciruela.model.ids import MACHINE_ID_BYTES, MachineId, parse_machine_id
from ciruela.model.values import dataclass
from ciruela.net.discovery.files import complaints
from ciruela.net.discovery.spec import SourceKind, SourceSpecs, Spec, check_url, parse_spec

FILE = "ciruela.yaml"

MOST_CONNECTIONS = 1_000_000
"""Largest value that ``--max-connections`` allows, too."""

MOST_THREADS = 256
MOST_PEER_SOURCES = 64
MOST_PAGE_HOSTS = 64

_PAGE_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")

NO_CANTAL = (
    "there is no cantal here (leave it out, and name the nodes in peers.txt, or a place that knows them under peers: in ciruela.yaml)"
)
"""Advice on the one setting of the reference that cannot be passed over: without its peers a node would stand alone."""

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
    "fsync": SettingRule("fsync", word(Fsync)),
    "verify-before-commit": SettingRule("verify_before_commit", word(CommitCheck)),
    "trust-ctime": SettingRule("trust_ctime", flag),
    "disk-reserve-bytes": SettingRule("disk_reserve_bytes", number(0, MOST_BYTES)),
    "disk-reserve-percent": SettingRule("disk_reserve_percent", number(0, 50)),
    "max-index-bytes": SettingRule("max_index_bytes", number(64 * KIB, STANDARD.max_index_bytes)),
    "max-connections": SettingRule("max_connections", number(1, MOST_CONNECTIONS)),
    "max-connections-per-address": SettingRule("max_connections_per_address", number(1, MOST_CONNECTIONS)),
    "requests-per-second": SettingRule("requests_per_second", number(1, 1_000_000)),
    "uploads-per-key": SettingRule("uploads_per_key", number(1, 1_000_000)),
    "scrub-bytes-per-second": SettingRule("scrub_bytes_per_second", number(0, 1_000_000 * MIB)),
    "scrub-cycle": SettingRule("scrub_cycle_ms", duration(HOUR_MS, 3660 * DAY_MS)),
    "signature-max-age": SettingRule("signature_max_age_ms", duration(60 * SECOND_MS)),
    "page-hosts": SettingRule("page_hosts", items(_page_host, "host names", "node1.example.org", MOST_PAGE_HOSTS)),
}
"""Rules of the settings that say how much the node takes on: the fields of ``Tuning``."""

OPTIONS = {
    "host": SettingRule("host", _host),
    "port": SettingRule("port", number(1, 65535)),
    "db-dir": SettingRule("db-dir", path),
    "disk-threads": SettingRule("disk-threads", number(1, MOST_THREADS)),
    "override-machine-id": SettingRule("override-machine-id", lambda value: text(value, "a machine id")),
    "override-hostname": SettingRule("override-hostname", lambda value: text(value, "a host name")),
    "metadata-threads": SettingRule("metadata-threads", number(1, MOST_BYTES)),
    "log-machine-id": SettingRule("log-machine-id", flag),
    "aggressive-index-gc": SettingRule("aggressive-index-gc", flag),
    "cantal": SettingRule("cantal", _no_cantal),
}
"""The other options of the command line, by their names there."""

PEERS = {
    "peers": SettingRule("specs", items(_spec, "places that know peers", "dns:ciruela.example.org", MOST_PEER_SOURCES)),
    "peers-interval": SettingRule("interval_s", lambda value: duration(5 * SECOND_MS, DAY_MS)(value) / 1000),
    "consul": SettingRule("consul", _url),
    "consul-token-file": SettingRule("consul_token_file", path),
}
"""Rules of the settings of places that know the other nodes."""


@dataclass(frozen=True, slots=True)
class Own:
    """Content of ``ciruela.yaml``. ``options`` has those that stand there, by their names on the command line."""

    tuning: Tuning = STANDARD
    options: Mapping[str, Any] = field(default_factory=dict)
    peers: SourceSpecs = field(default_factory=SourceSpecs)


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
    asked = {name: value for name, value in found.values.items() if name in SourceSpecs.__slots__}
    asked["specs"] = tuple(_below(spec, top) for spec in asked.get("specs", ()))
    return Own(
        Tuning(**{name: value for name, value in found.values.items() if name in Tuning.__slots__}),
        {name: value for name, value in found.values.items() if name in OPTIONS},
        SourceSpecs(**asked),
    )


def _below(spec: Spec, top: str) -> Spec:
    """A file is found from the directory of the configuration."""
    return Spec(spec.kind, spec.text, os.path.join(top, spec.where)) if spec.kind is SourceKind.FILE else spec


MACHINE_ID_FILE = Path("/etc/machine-id")
FALLBACK_NAME = "localhost"

_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?\.?", re.ASCII)
_REMEDY = "run systemd-machine-id-setup, or give 32 hexadecimal digits with --override-machine-id"


def machine_id(override: str | None, file: Path = MACHINE_ID_FILE) -> MachineId:
    """The override, else what ``file`` says: 32 hexadecimal digits, a newline after them is fine. Raises ConfigError.

    Each node of a cluster must have another one; zero, which no machine may have (machine-id(5)), is refused.
    """
    if override is None:
        source = str(file)
        try:
            text = file.read_bytes()[:1024].decode("ascii", "replace")
        except OSError as error:
            raise ConfigError(f"{source}: the machine id cannot be read: {error.strerror} ({_REMEDY})") from None
    else:
        source = "--override-machine-id"
        text = override
    try:
        found = parse_machine_id(text.removesuffix("\n"))
    except ValueError as error:
        raise ConfigError(f"{source}: {error} ({_REMEDY})") from None
    if found == bytes(MACHINE_ID_BYTES):  # guard: A33
        raise ConfigError(f"{source}: a machine id of zeros only is not valid ({_REMEDY})")
    return found


def host_name(override: str | None, system: Callable[[], str] = socket.gethostname) -> str:
    """The override, else the system's name, else ``localhost``. Raises ConfigError for what others could not resolve.

    Clients are sent to this name, so it must be one that they can look up, or an address.
    """
    if override is None:
        try:
            name = system().strip() or FALLBACK_NAME
        except OSError:
            name = FALLBACK_NAME
        source = "the host name of this system"
    else:
        name = override
        source = "--override-hostname"
    if not _NAME.fullmatch(name) and not _is_address(name):
        raise ConfigError(f'{source}: "{name[:80]}" is not a name that can be looked up (give one with --override-hostname)')
    return name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


T = TypeVar("T")

DEFAULT_CONFIG = "/etc/ciruela"
DEFAULTS: Mapping[str, Any] = {
    "db-dir": "/var/lib/ciruela",
    "host": "0.0.0.0",  # noqa: S104  the default of the reference
    "port": DEFAULT_PORT,
    "disk-threads": 8,
    "override-machine-id": None,
    "override-hostname": None,
}
"""Values that hold when neither the command line nor ``ciruela.yaml`` says anything (protocol section 7.3)."""

PEERS_FILE = "peers.txt"


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Content of the command line: ``options`` has only those that were given, by their names."""

    config_dir: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DaemonPlan:
    """All of it, checked. ``warnings`` are for the log."""

    config_dir: str
    db_dir: str
    host: str
    port: int
    disk_threads: int
    me: MachineId
    hostname: str
    tuning: Tuning
    configs: Mapping[str, DirConfig]
    peers: SourceSpecs
    warnings: tuple[str, ...]


def read_plan(given: CommandLine, now_ms: int | None = None) -> DaemonPlan:
    """Read everything. Raises ConfigError with one line for each mistake in any file; ``now_ms`` tells which keys have expired."""
    top = os.path.abspath(given.config_dir)
    if not os.path.isdir(top):
        raise ConfigError(f"{top}: there is no such config directory (make it, or name another one with --config)")
    problems: list[str] = []
    own = _or_problems(problems, Own(), load_own, top)
    options = {**DEFAULTS, **own.options, **given.options}
    me = _or_problems(problems, MachineId(bytes(16)), machine_id, options["override-machine-id"])
    hostname = _or_problems(problems, "", host_name, options["override-hostname"])
    config = _or_problems(problems, Config(top, {}, ()), load_config, top, options["db-dir"])
    if problems:
        raise ConfigError("\n".join(problems))
    tuning = own.tuning
    if "max-connections" in given.options:
        tuning = replace(tuning, max_connections=given.options["max-connections"])
    warnings = [f"{name} is not used: {why}" for name, why in IGNORED.items() if options.get(name)]
    warnings += complaints(os.path.join(top, PEERS_FILE))
    warnings += _token_doubts(own.peers)
    warnings += key_complaints(top, config.directories.values(), time.time_ns() // 1_000_000 if now_ms is None else now_ms)
    return DaemonPlan(
        top,
        options["db-dir"],
        options["host"],
        options["port"],
        options["disk-threads"],
        me,
        hostname,
        tuning,
        config.directories,
        own.peers,
        (*config.warnings, *warnings),
    )


def _token_doubts(asked: SourceSpecs) -> list[str]:
    """Warns of settings that work but are probably not meant: the daemon goes on asking, because a token may come later."""
    path = asked.consul_token_file
    if not path:
        return []
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return [f"consul-token-file: {path}: {error.strerror}"]
    return [f"consul-token-file: everybody may read {path} (run: chmod o-r)"] if mode & 0o004 else []


def _or_problems(problems: list[str], instead: T, read: Callable[..., T], *args: object) -> T:
    """Gives the result of ``read``; else its mistakes are noted, and something harmless is given, so that the rest can be checked too."""
    try:
        return read(*args)
    except ConfigError as error:
        problems.extend(str(error).split("\n"))
        return instead


def summary(plan: DaemonPlan) -> list[str]:
    """A few lines that tell people what a daemon would do."""
    lines = [
        f"node {plan.me.hex()} ({plan.hostname}) on {Address(plan.host, plan.port)}, records in {plan.db_dir}",
        *(f"/{key}: {config.directory}, num-levels {config.num_levels}" for key, config in sorted(plan.configs.items())),
    ]
    return [*lines, f"peers: {', '.join([PEERS_FILE, *(spec.text for spec in plan.peers.specs)])}"]


def restart_needed(old: DaemonPlan, new: DaemonPlan) -> list[str]:
    """Names the settings that differ between two plans and count only after a restart."""
    fields = {
        "db-dir": "db_dir",
        "host": "host",
        "port": "port",
        "disk-threads": "disk_threads",
        "override-machine-id": "me",
        "override-hostname": "hostname",
    }
    names = [name for name, field in fields.items() if getattr(old, field) != getattr(new, field)]
    fixed = {"fsync": "fsync", "max-index-bytes": "max_index_bytes"}
    return names + [name for name, field in fixed.items() if getattr(old.tuning, field) != getattr(new.tuning, field)]


def in_force(old: DaemonPlan, new: DaemonPlan) -> DaemonPlan:
    """``new`` with everything as in ``old`` that counts only after a restart: what a reload makes of the two."""
    return replace(
        new,
        db_dir=old.db_dir,
        host=old.host,
        port=old.port,
        disk_threads=old.disk_threads,
        me=old.me,
        hostname=old.hostname,
        tuning=replace(new.tuning, fsync=old.tuning.fsync, max_index_bytes=old.tuning.max_index_bytes),
    )


def moved(old: Mapping[str, DirConfig], new: Mapping[str, DirConfig]) -> list[str]:
    """Directories that are at another place than before, or have another number of levels: a running daemon cannot follow them there."""
    return [
        f"configs/{key}.yaml: {what} was changed from {before!r} to {now!r}, and that needs a restart (nothing was applied)"
        for key in sorted(old.keys() & new.keys())
        for what, before, now in (
            ("directory", old[key].directory, new[key].directory),
            ("num-levels", old[key].num_levels, new[key].num_levels),
        )
        if before != now
    ]
