"""``twistd ciruela``: its options, and the service they describe."""

from __future__ import annotations

import os
import random
import socket
import sys
import time
from dataclasses import replace

from twisted.application.service import IService
from twisted.python import usage

from ciruela import __version__
from ciruela.daemon.config import load_config
from ciruela.daemon.identity import host_name, machine_id
from ciruela.daemon.service import Daemon, Settings
from ciruela.daemon.settings import MOST_CONNECTIONS, load_tuning
from ciruela.disk.lock import lock
from ciruela.model.errors import CiruelaError, ConfigError, DiskError
from ciruela.seams import DEFAULT_PORT, Address

EXIT_CONFIG = 1
EXIT_DB = 4


def _whole(low: int, high: int) -> object:
    def check(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return number

    check.coerceDoc = f"Must be a whole number from {low} to {high}."  # type: ignore[attr-defined]
    return check


class Options(usage.Options):
    """The command line of ``twistd ciruela`` (protocol section 7.3)."""

    synopsis = "[options]"
    longdesc = "A node of a ciruela cluster: takes signed uploads, fetches them from clients and peers, shows them in one step."
    optParameters = [  # noqa: RUF012  the name and the form are Twisted's
        ["config", "c", "/etc/ciruela", "Directory with configs/, keys/, master.key and peers.txt."],
        ["db-dir", None, "/var/lib/ciruela", "Directory for states and indexes; it must exist."],
        ["host", None, "0.0.0.0", "Numeric address to listen on, TCP and UDP."],  # noqa: S104  the default of the reference
        ["port", None, DEFAULT_PORT, "Port, TCP and UDP; the default port of all peers.", _whole(1, 65535)],
        ["max-connections", None, None, "Connections at a time, 1000 unless ciruela.yaml says otherwise.", _whole(1, MOST_CONNECTIONS)],
        ["disk-threads", None, 8, "Threads for files and hashes.", _whole(1, 256)],
        ["override-machine-id", None, None, "32 hexadecimal digits instead of /etc/machine-id."],
        ["override-hostname", None, None, "Name for notifications and status instead of the system's."],
    ]

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"ciruela {__version__}")  # noqa: T201  what --version is for
        sys.exit(0)


def settings(options: Options) -> Settings:
    """Check everything that can be checked before the daemon starts. Raises ConfigError or DiskError."""
    config_dir = os.path.abspath(options["config"])
    if not os.path.isdir(config_dir):
        raise ConfigError(f"{config_dir}: there is no such config directory (make it, or name another one with --config)")
    me = machine_id(options["override-machine-id"])
    hostname = host_name(options["override-hostname"])
    config = load_config(config_dir, options["db-dir"])
    tuning = load_tuning(config_dir)
    if options["max-connections"] is not None:
        tuning = replace(tuning, max_connections=options["max-connections"])
    for warning in config.warnings:
        print(f"ciruela: {warning}", file=sys.stderr)  # noqa: T201  twistd's log is not open yet
    return Settings(
        config_dir=config_dir,
        db_dir=options["db-dir"],
        host=options["host"],
        port=options["port"],
        tuning=tuning,
        disk_threads=options["disk-threads"],
        me=me,
        hostname=hostname,
        configs=config.directories,
        lock=lock(options["db-dir"]),
    )


def check_port(checked: Settings) -> None:
    """Raise ConfigError, and let go of the lock, unless the address can be listened on: now, while twistd has the operator's terminal."""
    host, port = checked.host, checked.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(family, kind) as one:
                if kind == socket.SOCK_STREAM:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Twisted does: closed connections linger
                one.bind((host, port))
    except (OSError, ValueError) as error:  # ValueError: text that is no host name at all
        checked.lock.close()
        raise ConfigError(
            f"cannot listen on {Address(host, port)}: {getattr(error, 'strerror', None) or error} "
            "(is another daemon running? stop it, or choose another --host or --port)"
        ) from None


def makeService(options: Options) -> IService:  # noqa: N802  the name that twistd looks for
    """The daemon. Exits with 1 for a mistake in the configuration or a taken port, with 4 when the db directory cannot be used."""
    from twisted.internet import reactor  # the one place where the daemon gets it

    try:
        checked = settings(options)
        check_port(checked)
    except CiruelaError as error:
        print(f"ciruela: {error}", file=sys.stderr)  # noqa: T201  this is the one place where the operator looks
        sys.exit(EXIT_DB if isinstance(error, DiskError) else EXIT_CONFIG)
    # Twisted's own clock is the wall clock: set back by an hour, it would stop gossip, timeouts and retries for an hour (threats A42).
    reactor.seconds = time.monotonic  # type: ignore[attr-defined, method-assign, unused-ignore]
    seed = random.SystemRandom().getrandbits(64)
    return Daemon(reactor, checked, lambda: time.time_ns() // 1_000_000, seed)
