"""What a daemon is told to do: the command line and all files of the configuration, read and checked together.

The same reading is done at the start, by ``--check-config``, and for each reload; it changes nothing.

Who this node is: its machine id and its host name (protocol section 7.3).
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ciruela.daemon.authority import key_complaints
from ciruela.daemon.config import Config, load_config
from ciruela.daemon.settings import IGNORED, Own, load_own
from ciruela.model.dirconfig import DirConfig
from ciruela.model.errors import ConfigError
from ciruela.model.ids import MACHINE_ID_BYTES, MachineId, parse_machine_id
from ciruela.model.tuning import Tuning
from ciruela.net.discovery.files import complaints
from ciruela.net.discovery.spec import Asked
from ciruela.seams import DEFAULT_PORT, Address

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
    if found == bytes(MACHINE_ID_BYTES):
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
"""What holds when neither the command line nor ``ciruela.yaml`` says anything (protocol section 7.3)."""

PEERS_FILE = "peers.txt"


@dataclass(frozen=True, slots=True)
class Given:
    """What the command line says: ``options`` has only those that were given, by their names."""

    config_dir: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
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
    peers: Asked
    warnings: tuple[str, ...]


def read_plan(given: Given, now_ms: int | None = None) -> Plan:
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
    return Plan(
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


def _token_doubts(asked: Asked) -> list[str]:
    """What works but is probably not meant: the daemon goes on asking, because a token may come later."""
    path = asked.consul_token_file
    if not path:
        return []
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return [f"consul-token-file: {path}: {error.strerror}"]
    return [f"consul-token-file: everybody may read {path} (run: chmod o-r)"] if mode & 0o004 else []


def _or_problems(problems: list[str], instead: T, read: Callable[..., T], *args: object) -> T:
    """What ``read`` gives; else its mistakes are noted, and something harmless is given, so that the rest can be checked too."""
    try:
        return read(*args)
    except ConfigError as error:
        problems.extend(str(error).split("\n"))
        return instead


def summary(plan: Plan) -> list[str]:
    """A few lines that tell people what a daemon would do."""
    lines = [
        f"node {plan.me.hex()} ({plan.hostname}) on {Address(plan.host, plan.port)}, records in {plan.db_dir}",
        *(f"/{key}: {config.directory}, num-levels {config.num_levels}" for key, config in sorted(plan.configs.items())),
    ]
    return [*lines, f"peers: {', '.join([PEERS_FILE, *(spec.text for spec in plan.peers.specs)])}"]


def restart_needed(old: Plan, new: Plan) -> list[str]:
    """What differs between two plans and counts only after a restart, by the names of the settings."""
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


def in_force(old: Plan, new: Plan) -> Plan:
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
