"""Real daemons on loopback addresses and real clients, as processes: the doubles of ``tests/real`` are none."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from twisted.trial.unittest import SynchronousTestCase

from tests.measure import environ
from tests.real.trees import differences, shape, wanted

POLL_S = 0.05
PATIENCE_S = 120.0
"""How long anything may take before the test gives up. A good run never comes near it, however slow the machine is."""

STOP_S = 5.0
"""How long a daemon may take to end after SIGTERM (the promise of the command reference), on a machine that is not overloaded."""

TAIL_LINES = 20
PORTS = range(20000, 32000)
"""Below the ports that the system gives to outgoing connections, so that nobody takes the port of a node that is down for a moment."""

BAD_LINES = re.compile(r"Unhandled|Traceback|Exception ignored|never awaited|Fatal Python error|#(?:error|critical)\]")
"""What no log of a daemon may show unless the test declares it: an error of level error or worse, or one that nobody caught."""

BAD_WORDS = re.compile(r"Unhandled|Traceback|Exception ignored|never awaited|Fatal Python error|internal error|went wrong")
"""What no program may ever say to a user."""

Configs = Mapping[str, str]
"""The directory configs of one node: KEY -> settings without ``directory``."""

APPS = "append-only: true\nnum-levels: 1\n"
CFG = "append-only: false\nnum-levels: 1\n"

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def program(name: str) -> str:
    """The console script ``name`` of the environment that runs the tests."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise AssertionError(f"{path} is missing; install the project into the environment that runs the tests")
    return str(path)


def environment(home: Path, *, measured: bool = False) -> dict[str, str]:
    """The environment of a user who has no keys and no settings; ``measured`` for coverage, or not."""
    kept = {
        name: value
        for name, value in environ(measured=measured).items()
        if not name.startswith("CIRUELA_") and name not in ("SSH_AUTH_SOCK", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    }
    return kept | {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "TERM": "dumb"}


def make_key(path: Path) -> str:
    """Write a new private key that only its owner can read. Gives the public line."""
    key = Ed25519PrivateKey.generate()
    form = serialization.PrivateFormat.OpenSSH
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    path.chmod(0o600)
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode("ascii") + " test\n"


def free_port(hosts: Sequence[str]) -> int:
    """A port that is free for TCP and UDP on all ``hosts``."""
    for port in random.SystemRandom().sample(PORTS, 200):
        held: list[socket.socket] = []
        try:
            for host in hosts:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    held.append(socket.socket(socket.AF_INET, kind))
                    held[-1].bind((host, port))
        except OSError:
            continue
        finally:
            for one in held:
                one.close()
        return port
    raise AssertionError(f"no port is free on all of {', '.join(hosts)}")


def until(condition: Callable[[], object], what: str, told: Callable[[], str] = str, poll_s: float = POLL_S) -> Any:
    """Poll until ``condition()`` is true, and give that. What does not answer yet is not true yet."""
    end_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            found = condition()
        except OSError as error:  # urllib's errors are, too
            found, problem = None, f"{type(error).__name__}: {error}"
        else:
            problem = f"{found!r:.500}"
        if found:
            return found
        if time.monotonic() > end_s:
            raise AssertionError(f"{what}: not within {PATIENCE_S:.0f} s; at last: {problem}\n{told()}")
        time.sleep(poll_s)


class RealNode:
    """One daemon with its directories, all below ``top``, unless ``data`` (images) or ``db`` is somewhere else.

    ``options`` come at the end of its command line; ``wrapper`` before it: a program that becomes the daemon, such as prlimit.
    """

    def __init__(self, number: int, top: Path, port: int, data: Path | None = None, db: Path | None = None) -> None:
        self.number = number
        self.host = f"127.0.0.{number}"
        self.port = port
        self.name = f"node{number}"
        self.machine = f"{number:032x}"
        self.top = top
        self.config = top / "config"
        self.data = data or top / "data"
        self.db = db or top / "db"
        self.wrapper: list[str] = []
        self.options: list[str] = []
        self.log = top / "log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where its pages are."""
        return f"http://{self.host}:{self.port}"

    def command(self, db: Path | None = None, config: Path | None = None) -> list[str]:
        """The command line of its daemon, or of one that differs in a directory."""
        return [
            program("twistd"),
            *("-n", "--pidfile=", "ciruela"),
            *("--config", str(config or self.config)),
            *("--db-dir", str(db or self.db)),
            *("--host", self.host),
            *("--port", str(self.port)),
            *("--override-machine-id", self.machine),
            *("--override-hostname", self.name),
            *self.options,
        ]

    def write(self, configs: Configs, public_key: str, others: Sequence[RealNode]) -> None:
        """Make its directories and write its configuration."""
        (self.config / "configs").mkdir(parents=True)
        self.data.mkdir(exist_ok=True)
        self.db.mkdir(exist_ok=True)
        for key, settings in configs.items():
            directory = self.data / key
            if "num-levels: 0" not in settings:
                directory.mkdir(exist_ok=True)
            (self.config / "configs" / f"{key}.yaml").write_text(f'directory: "{directory}"\n{settings}')
        (self.config / "master.key").write_text(public_key)
        (self.config / "peers.txt").write_text("".join(f"{other.host}\n" for other in others))
        for path in (self.config, *self.config.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)  # whatever the umask is: what others could write is refused

    def get(self, page: str) -> Any:
        """The JSON of a page. Raises OSError while there is no answer."""
        with _opener.open(self.url + page, timeout=10) as answer:
            return json.load(answer)

    def metric(self, group: str, name: str) -> int:
        """One number of ``/status/``."""
        return int(next(value for what, (_, value) in self.get("/status/")["metrics"] if what == {"group": group, "metric": name}))

    def received(self) -> int:
        """Bytes of blocks that this process got from clients and peers."""
        return self.metric("blocks", "received_bytes")

    def has(self, vpath: str) -> str | None:
        """The id of the image that is visible at ``vpath``; ``/list-dir/`` alone also tells of what is on its way."""
        if not self.path(vpath).is_dir() or vpath in self.get("/downloading/"):
            return None
        base, _, entry = vpath.rpartition("/")
        return str(self.get(f"/list-dir{base}")[entry]["image"])

    def path(self, vpath: str) -> Path:
        """The real directory of ``vpath``."""
        return self.data / vpath.lstrip("/")

    def tail(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else ["(no log)"]
        told = [line for line in lines if '"GET /' not in line]
        return "\n".join([f"-- {self.name}", *told[-TAIL_LINES:]])


class RealCluster:
    """Daemons with one throw-away key, on 127.0.0.1 and up; all are stopped when the test ends, however it ends.

    ``configs`` are those of all nodes, or one mapping for each. Nodes are counted from 0: ``down`` are those that are not started yet,
    ``groups`` those that know each other, if not all do.
    ``expect_errors`` are parts of log lines of level error that belong to the test; any other, and any traceback of a client, fails it.
    ``data`` and ``db`` are directories of nodes, by number, that are not to be made below ``top``: mounted disks.
    ``measured``: its clients count for coverage, for what no other test runs: half of a client's time. Daemons cannot: the signal that
    ends them leaves no time to save what was measured.
    """

    def __init__(
        self,
        case: SynchronousTestCase,
        count: int,
        configs: Configs | Sequence[Configs] | None = None,
        *,
        down: Sequence[int] = (),
        groups: Sequence[Sequence[int]] | None = None,
        expect_errors: Sequence[str] = (),
        data: Mapping[int, Path] | None = None,
        db: Mapping[int, Path] | None = None,
        measured: bool = False,
    ) -> None:
        self.case = case
        self._measured = measured
        self._data, self._db = data or {}, db or {}
        self._said_wrong: list[str] = []
        self.expect_errors = list(expect_errors)
        self.top = Path(case.mktemp()).absolute()
        self.top.mkdir(parents=True)
        case.addCleanup(shutil.rmtree, self.top)
        self.home = self.top / "home"
        self.home.mkdir()
        self.key = self.top / "key"
        public_key = make_key(self.key)
        hosts = [f"127.0.0.{number}" for number in range(1, count + 1)]
        self.port = free_port(hosts)
        self.nodes = [
            RealNode(number, self.top / f"node{number}", self.port, self._data.get(number - 1), self._db.get(number - 1))
            for number in range(1, count + 1)
        ]
        self._groups = [[self.nodes[number] for number in group] for group in (groups or [range(count)])]
        self._clients: list[subprocess.Popen[str]] = []
        case.addCleanup(self._end)
        if configs is None:
            configs = {"apps": APPS}
        for number, node in enumerate(self.nodes):
            mine = configs if isinstance(configs, Mapping) else configs[number]
            node.write(mine, public_key, self._others(node))
        self.start(*(number for number in range(count) if number not in down))

    # -- daemons ------------------------------------------------------------------------------------------------------------------

    def start(self, *numbers: int) -> None:
        """Start daemons, and wait until all that run serve and know each other."""
        for number in numbers:
            node = self.nodes[number]
            self.case.assertIsNone(node.process, f"{node.name} runs already")
            with open(node.log, "ab") as log:
                node.process = subprocess.Popen(
                    [*node.wrapper, *node.command()],
                    cwd=node.top,
                    env=environment(self.home),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
        running = [node for node in self.nodes if node.process is not None]
        for node in running:
            self.until(partial(self._answers, node), f"{node.name} serves")
        for node in running:
            others = {other.machine for other in self._others(node) if other in running}
            self.until(partial(self._knows, node, others), f"{node.name} knows the others")

    def _others(self, node: RealNode) -> list[RealNode]:
        return [other for group in self._groups if node in group for other in group if other is not node]

    def _answers(self, node: RealNode) -> bool:
        assert node.process is not None
        if node.process.poll() is not None:
            raise AssertionError(f"{node.name} ended with {node.process.returncode}\n{node.tail()}")
        return bool(node.get("/healthz")["status"] == "ok")

    def _knows(self, node: RealNode, machines: set[str]) -> bool:
        peers = node.get("/peers/")
        return all(peers.get(machine, {}).get("silent_s") is not None for machine in machines)

    def kill(self, number: int) -> None:
        """SIGKILL, as from the kernel when memory is short."""
        process = self._running(number)
        process.kill()
        process.wait()
        self.nodes[number].process = None

    def stop(self, number: int, patience_s: float = PATIENCE_S) -> int:
        """SIGTERM. Gives the exit code, as subprocess has it; fails when it takes longer than ``patience_s``."""
        process = self._running(number)
        process.terminate()
        try:
            code = process.wait(patience_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"node{number + 1} did not end within {patience_s:.0f} s\n{self.tails()}") from None
        self.nodes[number].process = None
        return code

    def ended(self, number: int) -> int:
        """Wait for a daemon that something else ended. Gives the exit code, as subprocess has it."""
        code = self._running(number).wait(PATIENCE_S)
        self.nodes[number].process = None
        return code

    def pid(self, number: int) -> int:
        """The process id of a daemon."""
        return self._running(number).pid

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send any signal to a daemon."""
        self._running(number).send_signal(what)

    def _running(self, number: int) -> subprocess.Popen[bytes]:
        process = self.nodes[number].process
        assert process is not None, f"node{number + 1} does not run"
        return process

    def tails(self) -> str:
        """The ends of all logs."""
        return "\n".join(node.tail() for node in self.nodes)

    def until(self, condition: Callable[[], object], what: str, poll_s: float = POLL_S) -> Any:
        """As :func:`until`, with the logs when it fails."""
        return until(condition, what, self.tails, poll_s)

    def _end(self) -> None:
        for client in self._clients:
            if client.poll() is None:
                client.kill()
            self._heard(client.args, *client.communicate())
        for node in self.nodes:
            if node.process is not None and node.process.poll() is None:
                node.process.send_signal(signal.SIGCONT)
                node.process.terminate()
        problems = []
        for node in self.nodes:
            if node.process is None:
                continue
            try:
                code = node.process.wait(30)
            except subprocess.TimeoutExpired:
                node.process.kill()
                node.process.wait()
                problems.append(f"{node.name} did not end after SIGTERM")
            else:
                if code != -signal.SIGTERM:  # twistd ends by the signal that asked it to, once everything is stopped
                    problems.append(f"{node.name} ended with {code}")
        for node in self.nodes:
            problems += self._bad_lines(node)
        problems += self._said_wrong
        if problems:
            raise AssertionError("\n".join([*problems, self.tails()]))

    def _bad_lines(self, node: RealNode) -> list[str]:
        lines = node.log.read_text(errors="replace").splitlines() if node.log.exists() else []
        bad = [line for line in lines if BAD_LINES.search(line) and not any(part in line for part in self.expect_errors)]
        return [f"{node.name}: {line}" for line in bad]

    def expect_from_now(self, *parts: str) -> None:
        """These belong to the test from here on; none of them has come so far."""
        early = [line for node in self.nodes for line in self._bad_lines(node)]
        assert not early, "\n".join([*early, self.tails()])
        self.expect_errors += parts

    def _heard(self, command: object, *texts: str | None) -> None:
        """What a client said; tracebacks are kept for the end of the test."""
        for text in texts:
            if text and BAD_WORDS.search(text):
                self._said_wrong.append(f"{command} said:\n{text}")

    # -- clients ------------------------------------------------------------------------------------------------------------------

    def _sync_command(self, args: Sequence[object], key: Path | None) -> list[str]:
        return [program("ciruela-sync"), "--port", str(self.port), "-i", str(key or self.key), *map(str, args)]

    def run(self, command: Sequence[str], timeout: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Run a program as a user without settings, to its end."""
        done = subprocess.run(
            command,
            cwd=self.home,
            env=environment(self.home, measured=self._measured),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
        )
        self._heard(command, done.stdout, done.stderr)
        return done

    def sync(self, *args: object, key: Path | None = None, timeout: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Run ``ciruela-sync`` with the key of the cluster (or ``key``) and its port."""
        return self.run(self._sync_command(args, key), timeout)

    def begin_sync(self, *args: object, key: Path | None = None) -> subprocess.Popen[str]:
        """Start ``ciruela-sync`` and do not wait for it."""
        return self.begin(self._sync_command(args, key))

    def begin(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start a client as a user without settings, and do not wait for it."""
        client = subprocess.Popen(
            command,
            cwd=self.home,
            env=environment(self.home, measured=self._measured),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        self._clients.append(client)
        return client

    def finish(self, client: subprocess.Popen[str], timeout: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Wait for a client that was begun."""
        out, err = client.communicate(timeout=timeout)
        self._heard(client.args, out, err)
        return subprocess.CompletedProcess(client.args, client.returncode, out, err)

    def expect(self, done: subprocess.CompletedProcess[str], code: int, *parts: str) -> str:
        """Check the exit code, and that all ``parts`` are in what was printed; gives that."""
        said = f"{done.stdout}\n{done.stderr}"
        missing = [part for part in parts if part not in said]
        if done.returncode != code or missing or "Traceback" in said or "internal error" in said:
            raise AssertionError(f"exit code {done.returncode}, not {code}; missing: {missing}\n{said}\n{self.tails()}")
        return said

    # -- copies -------------------------------------------------------------------------------------------------------------------

    def same(self, source: Path, vpath: str, *numbers: int) -> None:
        """Check that the nodes (all, if none is named) have exactly ``source`` at ``vpath``: types, names, content, modes, targets."""
        want = wanted(shape(source))
        for node in [self.nodes[number] for number in numbers] or self.nodes:
            wrong = differences(want, shape(node.path(vpath)))
            if wrong:
                raise AssertionError("\n".join([f"{node.name} {vpath}: {len(wrong)} differences", *wrong[:20], node.tail()]))
