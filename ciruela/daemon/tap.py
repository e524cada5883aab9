"""``twistd ciruela``: its options, and the service they describe."""

from __future__ import annotations

import errno
import os
import random
import socket
import sys
import time

from twisted.application.service import IService
from twisted.python import usage

from ciruela._version import __version__
from ciruela.daemon.plan import (
    DEFAULT_CONFIG,
    DEFAULTS,
    IGNORED,
    MOST_CONNECTIONS,
    MOST_THREADS,
    NO_CANTAL,
    CommandLine,
    DaemonPlan,
    read_plan,
    summary,
)
from ciruela.daemon.service import Daemon, Settings
from ciruela.disk import version
from ciruela.disk.openfile import OpenFile
from ciruela.disk.streams import Standard, hold_streams
from ciruela.disk.version import is_held, lock
from ciruela.interfaces import Address
from ciruela.model.errors import CiruelaError, ConfigError, DiskError
from ciruela.model.values import dataclass

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
    """The command line of ``twistd ciruela`` (protocol section 7.3). What is not given is None: then ``ciruela.yaml`` decides."""

    synopsis = "Usage: ciruela-server [options]\n       twistd [options of twistd] ciruela [options]"
    longdesc = "A node of a ciruela cluster: takes signed uploads, fetches them from clients and peers, shows them in one step."
    optParameters = [  # noqa: RUF012  the name and the form are Twisted's
        ["config", "c", None, "Directory with configs/, keys/, master.key and peers.txt [/etc/ciruela]."],
        ["config-base-dir", None, None, "Another name for --config."],
        ["db-dir", None, None, "Directory for states and indexes; it must exist [/var/lib/ciruela]."],
        ["host", None, None, "Numeric address to listen on, TCP and UDP [0.0.0.0]."],
        ["port", None, None, "Port, TCP and UDP; the default port of all peers [24783]", _whole(1, 65535)],
        ["max-connections", None, None, "Connections at a time, 1000 unless ciruela.yaml says otherwise", _whole(1, MOST_CONNECTIONS)],
        ["disk-threads", None, None, "Threads for files and hashes [8]", _whole(1, MOST_THREADS)],
        ["override-machine-id", None, None, "32 hexadecimal digits instead of /etc/machine-id."],
        ["override-hostname", None, None, "Name for notifications and status instead of the system's."],
        ["metadata-threads", None, None, "Not used; taken for the sake of older unit files", _whole(1, 1_000_000)],
    ]
    optFlags = [  # noqa: RUF012
        ["check-config", None, "Read and check the whole configuration, say what is wrong with it, and end."],
        ["cantal", None, "Refused: there is no cantal here."],
        ["log-machine-id", None, "Not used; taken for the sake of older unit files."],
        ["aggressive-index-gc", None, "Not used; taken for the sake of older unit files."],
    ]

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"ciruela {__version__}")  # noqa: T201  what --version is for
        sys.exit(0)

    def postOptions(self) -> None:  # noqa: N802  the name is Twisted's
        """Refuse what cannot be passed over. The first of our code that twistd calls: no socket may get the number of a closed stream."""
        hold_streams()
        if self["cantal"]:
            raise usage.UsageError(f"--cantal: {NO_CANTAL}")
        if self["config"] is not None and self["config-base-dir"] not in (None, self["config"]):
            raise usage.UsageError("--config and --config-base-dir name two directories (give one of them)")

    def getSynopsis(self) -> str:  # noqa: N802  the name is Twisted's
        """Both ways to call it, whichever was used."""
        return self.synopsis

    def given(self) -> CommandLine:
        """Gives the options of the command line."""
        names = (*DEFAULTS, "max-connections", *IGNORED)
        options = {name: self[name] for name in names if self[name] is not None and self[name] != 0}
        return CommandLine(os.path.abspath(self["config"] or self["config-base-dir"] or DEFAULT_CONFIG), options)


@dataclass(frozen=True, slots=True)
class Checked:
    """Result of the checks before a start. ``lock`` holds the db directory; it is None for a look beside a daemon that may be running.

    ``taken``: what a daemon that runs here holds now: its db directory, its address.
    """

    plan: DaemonPlan
    lock: OpenFile | None
    taken: tuple[str, ...] = ()


def check_start(given: CommandLine, *, beside: bool) -> Checked:
    """Check everything that can be checked before a daemon starts: files, db directory, address. Raises ConfigError or DiskError.

    ``beside``: as ``--check-config`` looks. Nothing is changed, no lock is taken, and what a running daemon holds is no mistake.
    """
    plan = read_plan(given)
    version.check(plan.db_dir)
    if not beside:
        held = lock(plan.db_dir)
        try:
            listen_on(plan, beside=False)
        except ConfigError:
            held.close()
            raise
        return Checked(plan, held)
    if not os.access(plan.db_dir, os.R_OK | os.W_OK | os.X_OK):  # guard: K5.2
        raise DiskError(f"the db directory {plan.db_dir} cannot be used: this user cannot write to it (it must exist and be writable)")
    running = is_held(plan.db_dir)  # guard: K5.2, -> True
    taken = [f"the db directory {plan.db_dir}"] if running else []
    if not listen_on(plan, beside=running):
        taken.append(f"{Address(plan.host, plan.port)}")
    return Checked(plan, None, tuple(taken))


_CANNOT_LISTEN = {
    errno.EADDRINUSE: "is another daemon running? stop it, or choose another --host or --port",
    errno.EADDRNOTAVAIL: "it is not an address of this machine: ip address lists those that are, 0.0.0.0 stands for all of them",
    errno.EACCES: "ports below 1024 are for root, or for a unit with AmbientCapabilities=CAP_NET_BIND_SERVICE",
}


def listen_on(plan: DaemonPlan, *, beside: bool) -> bool:
    """Try the address, TCP and UDP, now that the operator still has the terminal. Raises ConfigError unless it can be listened on.

    ``beside`` a daemon that runs, gives False where it is in use.
    """
    host, port = plan.host, plan.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(family, kind) as one:
                if kind == socket.SOCK_STREAM:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Twisted does: closed connections linger
                one.bind((host, port))
    except (OSError, ValueError) as error:  # ValueError: text that is no host name at all
        number = getattr(error, "errno", None)
        if beside and number == errno.EADDRINUSE:  # guard: K5.2
            return False
        reason = getattr(error, "strerror", None) or error
        advice = _CANNOT_LISTEN.get(number or 0, "give --host a numeric address of this machine, or choose another --port")
        raise ConfigError(f"cannot listen on {Address(host, port)}: {reason} ({advice})") from None
    return True


def settings(options: Options) -> Settings:
    """Check everything that can be checked before the daemon starts. Raises ConfigError or DiskError."""
    given = options.given()
    checked = check_start(given, beside=False)
    assert checked.lock is not None
    for warning in checked.plan.warnings:
        print(f"ciruela: {warning}", file=sys.stderr)  # noqa: T201  twistd's log is not open yet
    return Settings(checked.plan, checked.lock, lambda: read_plan(given))


def check_config(options: Options) -> int:
    """Check what a start checks, and tell the result. Gives the exit code that the start would have. Nothing is changed."""
    checked = check_start(options.given(), beside=True)
    for warning in checked.plan.warnings:
        print(f"ciruela: warning: {warning}", file=sys.stderr)  # noqa: T201
    print("OK")  # noqa: T201  the result
    print("\n".join(summary(checked.plan)))  # noqa: T201
    if checked.taken:
        print(f"in use by the daemon that runs here now: {', '.join(checked.taken)}")  # noqa: T201
    return 0


def makeService(options: Options) -> IService:  # noqa: N802  the name that twistd looks for
    """The daemon; with ``--check-config`` only a look at what it would start with.

    Exits with 1 for a mistake in the configuration or a taken port, with 4 when the db directory cannot be used.
    """
    from twisted.internet import reactor  # the one place where the daemon gets it

    try:
        if options["check-config"]:
            standard = Standard()
            sys.exit(standard.exit_code(check_config(options)))
        checked = settings(options)
    except CiruelaError as error:
        for line in str(error).split("\n"):
            print(f"ciruela: {line}", file=sys.stderr)  # noqa: T201  this is the one place where the operator looks
        sys.exit(EXIT_DB if isinstance(error, DiskError) else EXIT_CONFIG)
    # Twisted's own clock is the wall clock: set back by an hour, it would stop gossip, timeouts and retries for an hour (threats A42).
    # guard: A42 F44, reactor.seconds = time.monotonic -> time.monotonic
    reactor.seconds = time.monotonic  # type: ignore[attr-defined, method-assign, unused-ignore]
    seed = random.SystemRandom().getrandbits(64)
    return Daemon(reactor, checked, lambda: time.time_ns() // 1_000_000, seed)
