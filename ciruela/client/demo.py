"""``ciruela demo``: a cluster on this machine, a real upload, a real verification, and nothing left behind.

Real daemons on loopback addresses, with throw-away keys: the cluster of ``ciruela demo``.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import treq.client
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from twisted.internet.defer import CancelledError, Deferred, gatherResults, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool

import ciruela
import twisted
from ciruela.client import commands
from ciruela.client.context import AppContext, make_display
from ciruela.client.listener import UploadRow
from ciruela.client.options.local import DemoOptions
from ciruela.client.options.signing import ClusterNames, Keys
from ciruela.client.options.sync import Mode, SyncOptions, Wish
from ciruela.client.orders import OURS, check_directory
from ciruela.client.progress import Display
from ciruela.client.text import count, short_id
from ciruela.client.tracker import EXIT_DONE, EXIT_NETWORK, CompletionRule
from ciruela.disk.scan import scan
from ciruela.interfaces import DEFAULT_PORT
from ciruela.model.errors import CiruelaError
from ciruela.model.ids import ImageId
from ciruela.model.vpath import VPath

STARTUP_S = 60.0
"""Time that a daemon may take to answer; importing alone takes seconds on a small machine."""

TERM_S = 5.0
"""Time that a daemon may take to stop before it is killed."""

ASK_EVERY_S = 0.2
TAIL_LINES = 15


class NodeFailed(CiruelaError):
    """A daemon of the demo did not come up, or ended. The message has the end of its log."""


class FreePort:
    """A port that is free on all ``hosts``, TCP and UDP: ``preferred`` if possible. Raises NodeFailed.

    Until it is released no other demo takes it, although its daemons do not listen yet: a name in Linux's abstract socket namespace, which
    leaves no file behind and ends with the process, says that it is taken.
    """

    def __init__(self, hosts: Sequence[str], preferred: int = DEFAULT_PORT) -> None:
        self._claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self.number = _free_port(hosts, preferred, self._claim)
        except NodeFailed:
            self._claim.close()
            raise

    def release(self) -> None:
        """Others may have it."""
        self._claim.close()


def _free_port(hosts: Sequence[str], preferred: int, claim: socket.socket) -> int:
    for port in (preferred, *[0] * 50):
        held: list[socket.socket] = []
        try:
            for host in hosts:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    held.append(socket.socket(socket.AF_INET, kind))
                    if kind == socket.SOCK_STREAM:
                        held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the daemon does: closed connections linger
                    held[-1].bind((host, port))
                    port = held[-1].getsockname()[1]
            if sys.platform == "linux":
                claim.bind(f"\0ciruela-demo-{port}")
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise NodeFailed(f"{host} is not an address of this machine (on macOS: sudo ifconfig lo0 alias {host})") from None
            continue
        finally:
            for one in held:
                one.close()
        return port
    raise NodeFailed(f"no port is free on all of {', '.join(hosts)}")


def make_keys(private: Path) -> str:
    """Write a new private key, readable by its owner only. Gives the public line for the servers."""
    key = Ed25519PrivateKey.generate()
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    with open(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(text)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{public.decode('ascii')} demo"


class _Process(ProcessProtocol):
    """One daemon. ``ended`` fires with a sentence when the process is gone."""

    def __init__(self) -> None:
        self.ended: Deferred[str] = Deferred()

    def processEnded(self, reason: Failure) -> None:  # noqa: N802  Twisted's name
        """Twisted: the process is gone."""
        self.ended.callback(reason.getErrorMessage())


class DemoNode:
    """One daemon with its directories, all below ``top``."""

    def __init__(self, number: int, top: Path, port: int) -> None:
        self.number = number
        self.host = f"127.0.0.{number}"
        self.name = f"node{number}"
        self.port = port
        self.top = top / self.name
        self.data = self.top / "data"
        self.log = self.top / "log"
        self._process: _Process | None = None
        self._transport: Any = None
        self.gone = ""

    @property
    def url(self) -> str:
        """URL of its pages."""
        return f"http://{self.host}:{self.port}"

    def write(self, public_key: str, others: Sequence[DemoNode]) -> None:
        """Make its directories and its configuration: one append-only directory, ``/demo/NAME``."""
        for directory in (self.data, self.top / "db", self.top / "config" / "configs"):
            directory.mkdir(parents=True, mode=0o755)
        config = self.top / "config"
        (config / "configs" / "demo.yaml").write_text(f'directory: "{self.data}"\nappend-only: true\nnum-levels: 1\n', encoding="utf-8")
        (config / "master.key").write_text(public_key + "\n", encoding="utf-8")
        (config / "peers.txt").write_text("".join(f"{node.host}\n" for node in others), encoding="utf-8")

    def command(self) -> list[str]:
        """The command line of the daemon."""
        return [
            sys.executable,
            "-c",
            "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()",
            "--nodaemon",
            "--pidfile=",
            "ciruela",
            *("--config", str(self.top / "config")),
            *("--db-dir", str(self.top / "db")),
            *("--host", self.host),
            *("--port", str(self.port)),
            *("--override-machine-id", f"{self.number:032x}"),
            *("--override-hostname", self.name),
        ]

    def start(self, reactor: IReactorProcess, environ: Mapping[str, str], ended: Callable[[DemoNode], None]) -> None:
        """Start the process; its output goes to :attr:`log`."""
        packages = str(Path(ciruela.__file__).parent.parent)
        environment = {
            **environ,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (packages, environ.get("PYTHONPATH", "")))),
        }
        self._process = _Process()
        with open(self.log, "ab") as log, open(os.devnull, "rb") as nothing:
            self._transport = reactor.spawnProcess(
                self._process,
                sys.executable,
                self.command(),
                env=environment,
                path=str(self.top),
                childFDs={0: nothing.fileno(), 1: log.fileno(), 2: log.fileno()},
            )
        self._process.ended.addCallback(self._ended, ended)

    def _ended(self, why: str, tell: Callable[[DemoNode], None]) -> str:
        self.gone = why
        tell(self)
        return why

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return None if self._transport is None or self.gone else self._transport.pid

    def stop(self, clock: IReactorTime) -> Deferred[None]:
        """End the process, by force after :data:`TERM_S`. Fires when it is gone."""
        if self._process is None or self.gone:
            return succeed(None)
        gone: Deferred[None] = Deferred()
        force = clock.callLater(TERM_S, self._signal, signal.SIGKILL)

        def over(why: str) -> str:
            if force.active():
                force.cancel()
            gone.callback(None)
            return why

        self._process.ended.addCallback(over)
        self._signal(signal.SIGTERM)
        return gone

    def _signal(self, number: signal.Signals) -> None:
        try:
            self._transport.signalProcess(number)
        except ProcessExitedAlready:
            self.gone = self.gone or "exited"

    def tail(self) -> str:
        """The last lines of its log."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            return f"(no log: {error.strerror})"
        return "\n".join(lines[-TAIL_LINES:])


class DemoCluster:
    """A cluster of ``count`` daemons below ``top``, on port ``preferred`` if it is free."""

    def __init__(
        self,
        reactor: Any,
        environ: Mapping[str, str],
        top: Path,
        count: int,
        ended: Callable[[DemoNode], None],
        preferred: int = DEFAULT_PORT,
    ) -> None:
        self._reactor = reactor
        self._environ = environ
        self._top = top
        self._ended = ended
        self._stopping = False
        self.key = top / "key"
        hosts = [f"127.0.0.{number}" for number in range(1, count + 1)]
        self._port = FreePort(hosts, preferred)
        self.port = self._port.number
        self.nodes = [DemoNode(number, top, self.port) for number in range(1, count + 1)]
        self._pages = treq.client.HTTPClient(Agent(reactor, connectTimeout=2, pool=HTTPConnectionPool(reactor, persistent=False)))

    def write(self) -> None:
        """Write keys and configurations. Blocking."""
        public_key = make_keys(self.key)
        for node in self.nodes:
            node.write(public_key, [other for other in self.nodes if other is not node])

    async def start(self) -> None:
        """Start all daemons. Fires when each answers and knows that all others take the directory; raises NodeFailed."""
        for node in self.nodes:
            node.start(self._reactor, self._environ, self._told)
        for node in self.nodes:
            await self._until(node, "/healthz", lambda _: True, "did not answer")
        for node in self.nodes:
            await self._until(node, "/cluster/dirs/", lambda taking: len(taking.get("/demo", ())) == len(self.nodes) - 1, "found no peers")

    def _told(self, node: DemoNode) -> None:
        if not self._stopping:
            self._ended(node)

    async def _until(self, node: DemoNode, page: str, good: Callable[[Any], bool], what: str) -> None:
        """Ask for ``page`` until it has what is wanted."""
        end_s = self._reactor.seconds() + STARTUP_S
        while True:
            if node.gone:
                raise NodeFailed(f"{node.name} ended ({node.gone}). The end of its log:\n{node.tail()}")
            try:
                answer = await self._pages.get(node.url + page, timeout=5)
                if good(await answer.json()) and answer.code == 200:
                    return
            except CancelledError:
                raise
            except Exception as error:  # noqa: BLE001  whatever keeps a starting daemon from answering is told when the time is over
                problem = str(error) or type(error).__name__
            else:
                problem = f"HTTP {answer.code}"
            if self._reactor.seconds() > end_s:
                raise NodeFailed(f"{node.name} {what} within {STARTUP_S:.0f} s ({problem}). The end of its log:\n{node.tail()}")
            await deferLater(self._reactor, ASK_EVERY_S)

    def stop(self) -> Deferred[None]:
        """End all daemons. Fires when all are gone."""
        self._stopping = True
        return gatherResults([node.stop(self._reactor) for node in self.nodes]).addCallback(lambda _: self._port.release())


FIRST = VPath(("demo", "v1"))
SECOND = VPath(("demo", "v2"))

MOST_FILES = 20_000
MOST_BYTES = 256 * 1024 * 1024
"""Limits for the directory that is chosen when none is named: a demo should take seconds, and its copies should fit anywhere."""

DEADLINE_S = 900.0

LINE = 76
"""Columns of a line that is to be pasted, the backslash at its end included, where its words allow that."""


def default_directory(nodes: int) -> str:
    """A real directory of some thousand files: the installed packages, or only Twisted's when these are too much. Blocking."""
    package = Path(twisted.__file__).parent
    files = total = 0
    for folder, _, names in os.walk(package.parent):
        files += len(names)
        total += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
        if files > MOST_FILES or total > MOST_BYTES:
            return str(package)
    fits = total * (nodes + 1) < shutil.disk_usage(tempfile.gettempdir()).free
    return str(package.parent if fits else package)


def script(name: str = "ciruela-sync") -> str:
    """Gives the word that starts the script from a shell: by its bare name if that finds the one which was installed with this program."""
    ours = os.path.join(os.path.dirname(sys.executable), name)
    return ours if os.path.exists(ours) and shutil.which(name) != ours else name


def next_line(directory: str, key: Path, port: int) -> str:
    """Gives the line to type next, in another terminal."""
    words = [script(), "-i", str(key), "--append", f"{os.path.abspath(directory)}:{SECOND}"]
    if port != DEFAULT_PORT:
        words += ["--port", str(port)]
    return shlex.join([*words, "127.0.0.1"])


def folded(command: str) -> list[str]:
    """The lines of a command that can be pasted as they are. Words are not broken, so a long path makes a long line."""
    lines = [" "]
    for word in map(shlex.quote, shlex.split(command)):
        if len(lines[-1]) + len(word) >= LINE and lines[-1].strip():
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}"
    return lines


async def demo(options: DemoOptions, around: AppContext) -> int:
    """Run it. Gives 0 when all copies are right; otherwise the exit code of the upload, or 3 when a copy differs.

    Whatever happens, also when it is cancelled, the daemons are stopped and the temporary directory is removed.
    """
    display = make_display(options.common, around, None)
    if options.directory is not None:
        check_directory(options.directory)
    directory = options.directory if options.directory is not None else await around.in_thread(default_directory, options.nodes)
    sys.dont_write_bytecode = True  # the directory may be the packages that this very program imports
    top = Path(tempfile.mkdtemp(prefix="ciruela-demo-"))
    nodes: DemoCluster | None = None
    try:
        nodes = DemoCluster(around.reactor, around.environ, top, options.nodes, lambda node: _ended(display, node), options.common.port)
        return await _story(options, around, display, nodes, directory)
    finally:
        display.say("Stopping the nodes and removing everything")
        if nodes is not None:
            await nodes.stop()
        await around.in_thread(shutil.rmtree, top)


def _ended(display: Display, node: DemoNode) -> None:
    display.problem(node.name, f"ended: {node.gone}; its log is {node.log}")


async def _story(options: DemoOptions, around: AppContext, display: Display, nodes: DemoCluster, directory: str) -> int:
    await around.in_thread(nodes.write)
    display.say(f"Starting {count(len(nodes.nodes), 'node')}: {', '.join(node.host for node in nodes.nodes)}, port {nodes.port}")
    await nodes.start()
    rows: list[UploadRow] = []
    upload = SyncOptions(
        common=replace(options.common, port=nodes.port),
        wishes=(Wish(Mode.APPEND, directory, FIRST),),
        clusters=(ClusterNames((nodes.nodes[0].host,)),),
        keys=Keys((str(nodes.key),)),
        rule=CompletionRule(early_hosts=len(nodes.nodes), early_fraction=1.0, deadline_s=DEADLINE_S),
        print_progress_s=5.0,
        cache=False,  # a demo leaves nothing behind
    )
    code = await commands.sync(upload, around, ended=rows.extend)
    if code != EXIT_DONE:
        for node in nodes.nodes:
            display.problem(node.name, f"the end of {node.log}:")
            for line in node.tail().splitlines():
                display.problem(node.name, line)
        return code
    if not await _verified(around, options, display, nodes, rows[0].image):
        return EXIT_NETWORK
    if options.once:
        return EXIT_DONE
    display.result("")
    display.result(f"Status        {nodes.nodes[0].url}/status/")
    display.result(f"Copies        {nodes.nodes[0].top.parent}/node*/data/{FIRST.name}")
    display.result("Try next, in another terminal:")
    for line in folded(next_line(directory, nodes.key, nodes.port)):
        display.result(line)
    display.result("Ctrl-C ends the nodes and removes everything.")
    try:
        await Deferred[None]()
    except CancelledError:
        return EXIT_DONE
    return EXIT_DONE


async def _verified(around: AppContext, options: DemoOptions, display: Display, nodes: DemoCluster, image: ImageId) -> bool:
    """Index every copy anew and compare it with what was uploaded."""
    good = True
    for node in nodes.nodes:
        copy = node.data / FIRST.name
        try:
            found = await scan(str(copy), options.common.hash or OURS, around.in_thread, lambda _: None)
        except CiruelaError as error:
            good = False
            display.problem(node.name, f"{copy} cannot be verified: {error}")
            continue
        same = found.image == image
        good = good and same
        text = f"{node.name} {node.host}  {FIRST}  {count(found.files, 'file')} read again, id {short_id(found.image)}"
        if same:
            display.result(f"{text}  identical")
        else:
            display.problem(node.name, f"{text}  DIFFERS from {short_id(image)}")
    return good
