"""The programs that bring a tree to all nodes, each behind the same four steps: prepare, publish, done, copy."""

# ruff: noqa: D102  the steps of a system are described once, in System
from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from benchmarks.children import SYNC, CheckFailed, Child, Children, Finished, environment, page, run, run_together
from benchmarks.netns import NET, Host, Network
from benchmarks.nodes import Node, write_key
from benchmarks.torrent import UNPACK
from benchmarks.workloads import Workload

PORT = 24783
START_S = 120.0
PIPE = ("bash", "-o", "pipefail", "-ec")
Tree = tuple[Host, Path]


class System(ABC):
    """One way. ``title`` for the report, ``tools``: the programs it needs, ``modes``: it carries execute bits."""

    title: ClassVar[str]
    tools: ClassVar[tuple[str, ...]] = ()
    packs: ClassVar[bool] = False
    modes: ClassVar[bool] = True
    limit: ClassVar[str] = ""

    def __init__(self, network: Network, children: Children, workload: Workload) -> None:
        self.network = network
        self.children = children
        self.workload = workload
        self.started: list[Child] = []

    @classmethod
    def missing(cls) -> list[str]:
        """What it needs and is not installed."""
        return [tool for tool in cls.tools if shutil.which(tool) is None]

    @abstractmethod
    def prepare(self) -> None:
        """Start what runs on the nodes; bring the old version there. Not measured, and the links have no limit yet."""

    @abstractmethod
    def publish(self) -> None:
        """All that the sender does."""

    def done(self, host: Host) -> bool:
        """Whether ``host`` has it."""
        return self.copy(host).exists()

    def copy(self, host: Host) -> Path:
        """Where ``host`` has it."""
        return host.data / "tree"

    def start(self, host: Host, command: Sequence[str]) -> None:
        """Start something that runs on."""
        child = self.children.start(f"{command[0]} on {host.name}", host.inside(command), host.top / "log", environment())
        self.started.append(child)

    def client(self, *command: str) -> Finished:
        """Run something on the client's machine. Raises CheckFailed when it fails."""
        return _good(run(self.network.client.inside(command), environment(), timeout_s=3000))

    def until(self, what: str, good: Callable[[], bool]) -> None:
        """Wait, while preparing."""
        end_s = time.monotonic() + START_S
        while not good():
            for child in self.started:
                if child.process.poll() is not None:
                    raise CheckFailed(f"{child.name} ended with {child.process.returncode}:\n{child.tail()}")
            if time.monotonic() > end_s:
                logs = "\n".join(f"{child.name}:\n{child.tail(5)}" for child in self.started)
                raise CheckFailed(f"{self.title}: {what}; after {START_S:.0f} s not yet\n{logs}")
            time.sleep(0.1)

    def give_old(self) -> None:
        """Put the old version on every node."""
        if self.workload.old is not None:
            for host in self.network.nodes:
                _good(run(["cp", "-a", str(self.workload.old), str(host.data / "old")]))


def _good(done: Finished) -> Finished:
    if done.code:
        raise CheckFailed(f"a command ended with {done.code}:\n{done.out[-2000:]}")
    return done


class Ciruela(System):
    """This project."""

    title = "ciruela"
    where = "v1"

    def prepare(self) -> None:
        client = self.network.client
        public = write_key(client.top / "key", os.urandom(32))
        config = {"bench": "append-only: true\nnum-levels: 2\n"}
        hosts = self.network.nodes
        nodes = [Node(host.number, host.top, PORT, host.address, network=NET) for host in hosts]
        for node, host in zip(nodes, hosts, strict=True):
            host.data.rmdir()
            node.write(public, {f"{other.number:032x}": other.host for other in nodes if other is not node}, config)
            self.start(host, node.command())
        self.until("the nodes do not know each other", lambda: client.within(self._ready))
        if self.workload.old is not None:
            self.upload(self.workload.old, "old")
            self.until("the old version is not everywhere", lambda: all((host.data / "bench/app/old").exists() for host in hosts))

    def _ready(self) -> bool:
        others = len(self.network.nodes) - 1
        try:
            return all(len(page(host.address, PORT, "/peers/")) >= others for host in self.network.nodes)
        except (OSError, ValueError):
            return False

    def upload(self, tree: Path, name: str) -> Finished:
        """As a user would, to at most three of the nodes."""
        targets = [host.address for host in self.network.nodes[:3]]
        key = str(self.network.client.top / "key")
        return self.client(*SYNC, "-m", "-i", key, "--early-timeout", "50min", "--append", f"{tree}:/bench/app/{name}", *targets)

    def publish(self) -> None:
        self.upload(self.workload.tree, self.where)

    def copy(self, host: Host) -> Path:
        return host.data / "bench/app" / self.where


class Rsync(System):
    """The client pushes to a daemon on each node, all at once."""

    title = "rsync to each, at once"
    tools = ("rsync",)
    options: ClassVar[tuple[str, ...]] = ()
    where = "tree"

    def prepare(self) -> None:
        self.finished: set[str] = set()
        self.give_old()
        for host in self.network.nodes:
            config = host.top / "rsyncd.conf"
            config.write_text(f"use chroot = no\nuid = root\ngid = root\n[data]\npath = {host.data}\nread only = no\n")
            self.start(host, ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--address={host.address}"])
        client = self.network.client
        for host in self.network.nodes:
            self.until("rsync does not answer", lambda host=host: run(client.inside(["rsync", f"rsync://{host.address}/"])).code == 0)  # type: ignore[misc]

    def push(self, pairs: Iterable[tuple[Tree, Host]]) -> None:
        """From each first one to each second one, at once."""
        link = ["--link-dest=../old"] if self.workload.old is not None else []
        known = list(pairs)
        commands = [
            giver.inside(["rsync", "-a", *self.options, *link, f"{tree}/", f"rsync://{host.address}/data/{self.where}/"])
            for (giver, tree), host in known
        ]
        for done, (_, host) in zip(run_together(commands, timeout_s=3000), known, strict=True):
            _good(done)
            self.finished.add(host.name)

    def publish(self) -> None:
        here = (self.network.client, self.workload.tree)
        self.push([(here, host) for host in self.network.nodes])

    def done(self, host: Host) -> bool:
        return host.name in self.finished

    def copy(self, host: Host) -> Path:
        return host.data / self.where


class RsyncTree(Rsync):
    """Who has it passes it on: in each round twice as many give."""

    title = "rsync as a tree"

    def publish(self) -> None:
        have: list[Tree] = [(self.network.client, self.workload.tree)]
        want = list(self.network.nodes)
        while want:
            pairs = list(zip(have, want, strict=False))
            self.push(pairs)
            want = want[len(pairs) :]
            have += [(host, self.copy(host)) for _, host in pairs]


class RsyncZ(Rsync):
    """Compressed."""

    title = "rsync -z to each, at once"
    options = ("-z", "--compress-choice=zstd")
    packs = True


class RsyncTreeZ(RsyncTree):
    """Compressed."""

    title = "rsync -z as a tree"
    options = ("-z", "--compress-choice=zstd")
    packs = True


def _pack(system: System) -> Path:
    """Make one tar.zst of the tree, on the client."""
    packed = system.network.client.data / "tree.tar.zst"
    system.client(*PIPE, 'tar -C "$1" -cf - . | zstd -3 -qc -T0 > "$2"', "pack", str(system.workload.tree), str(packed))
    return packed


class Aria2(System):
    """A swarm of aria2, with a tracker that knows everybody."""

    title = "aria2 swarm"
    tools = ("aria2c",)
    modes = False
    packed: ClassVar[bool] = False

    def prepare(self) -> None:
        client = self.network.client
        me = [sys.executable, "-m", "benchmarks.torrent"]
        peers = ",".join(host.address for host in self.network.hosts)
        self.start(client, [*me, "tracker", "--address", client.address, "--peers", peers])
        for host in self.network.hosts:
            place = host.data if host is not client or self.packed else self.workload.tree.parent
            hook = host.top / "hook"
            unpack = f"set -- {host.data}/tree.tar.zst {host.data}/unpacked\n{UNPACK}" if self.packed and host is not client else ""
            hook.write_text(f"#!/bin/bash\nset -e -o pipefail\n{unpack}\ntouch {host.top}/finished\n")
            hook.chmod(0o755)
            self.start(host, ["aria2c", *self._options(), f"--dir={place}", f"--on-bt-download-complete={hook}"])
        self.until("aria2 does not answer", lambda: all(self._answers(host) for host in self.network.hosts))

    def _options(self) -> list[str]:
        return [
            *("--enable-rpc", "--rpc-listen-all", "--no-conf", "--enable-dht=false", "--enable-dht6=false", "--file-allocation=none"),
            *("--seed-ratio=0.0", "--seed-time=600", "--bt-max-peers=0", "--bt-tracker-interval=1", "--listen-port=6881"),
            *("--bt-request-peer-speed-limit=1000M", "--check-integrity=true", "--bt-hash-check-seed=true", "--disk-cache=64M"),
            *("--max-concurrent-downloads=50", "--summary-interval=0"),
        ]

    def _rpc(self, host: Host, method: str, *values: object) -> bytes:
        question = json.dumps({"jsonrpc": "2.0", "id": "1", "method": method, "params": values}).encode()

        def ask() -> bytes:
            with urllib.request.urlopen(f"http://{host.address}:6800/jsonrpc", question, timeout=20) as answer:
                return bytes(answer.read())

        return self.network.client.within(ask)

    def _answers(self, host: Host) -> bool:
        try:
            return b"version" in self._rpc(host, "aria2.getVersion")
        except (OSError, urllib.error.URLError):
            return False

    def publish(self) -> None:
        client = self.network.client
        source = _pack(self) if self.packed else self.workload.tree
        made = client.top / "torrent"
        make = f'exec "$0" -m benchmarks.torrent make --address {client.address} --place "$1" > "$2"'
        self.client("sh", "-c", make, sys.executable, str(source), str(made))
        data = base64.b64encode(made.read_bytes()).decode()
        for host in self.network.hosts[-1:] + self.network.hosts[:-1]:
            self._rpc(host, "aria2.addTorrent", data)

    def done(self, host: Host) -> bool:
        return (host.top / "finished").exists()

    def copy(self, host: Host) -> Path:
        return host.data / ("unpacked" if self.packed else "tree")


class Aria2Packed(Aria2):
    """Of one packed file, which the nodes unpack."""

    title = "aria2 swarm of one tar.zst"
    tools = ("aria2c", "tar", "zstd")
    modes = True
    packed = True
    packs = True


class Libtorrent(System):
    """A swarm of libtorrent; everybody knows everybody."""

    title = "libtorrent swarm"
    modes = False
    packed: ClassVar[bool] = False

    @classmethod
    def missing(cls) -> list[str]:
        return [*super().missing(), *([] if importlib.util.find_spec("libtorrent") else ["libtorrent for Python"])]

    def prepare(self) -> None:
        peers = [host.address for host in self.network.nodes]
        me = [sys.executable, "-m", "benchmarks.torrent", "node", *(["--packed"] if self.packed else [])]
        for host in self.network.nodes:
            others = ",".join(peer for peer in peers if peer != host.address)
            self.start(host, [*me, "--address", host.address, "--place", str(host.data), "--peers", others or host.address])
        self.until("libtorrent does not listen", lambda: all(_listens(host) for host in self.network.nodes))

    def publish(self) -> None:
        client = self.network.client
        source = _pack(self) if self.packed else self.workload.tree
        peers = ",".join(host.address for host in self.network.nodes)
        me = [sys.executable, "-m", "benchmarks.torrent", "seed"]
        self.start(client, [*me, "--address", client.address, "--place", str(source), "--peers", peers])


def _listens(host: Host) -> bool:
    """Whether something waits at port 6900 there; asked without connecting."""
    return ":1AF4 00000000:0000 0A" in host.within(lambda: Path("/proc/thread-self/net/tcp").read_text())


class LibtorrentPacked(Libtorrent):
    """Of one packed file, which the nodes unpack."""

    title = "libtorrent swarm of one tar.zst"
    tools = ("tar", "zstd")
    modes = True
    packed = True
    packs = True


class Chain(System):
    """``tar | tee`` from node to node: nothing is checked, and one slow or broken node is everybody's."""

    title = "tar | tee chain (a bound: no node may fail)"
    tools = ("tar", "socat", "bash")
    pack: ClassVar[str] = ""
    unpack: ClassVar[str] = ""

    def prepare(self) -> None:
        behind: Host | None = None
        for host in reversed(self.network.nodes):
            further = f"tee >(socat -u -b 262144 - TCP:{behind.address}:7000,retry=50,interval=0.05) |" if behind else ""
            listen = "socat -u -b 262144 TCP-LISTEN:7000,reuseaddr -"
            finish = 'tar -x -C "$1.part" -f - && mv -T "$1.part" "$1"; wait'
            self.start(host, [*PIPE, f'mkdir "$1.part"; {listen} | {further} {self.unpack} {finish}', "chain", str(self.copy(host))])
            behind = host
        time.sleep(1)

    def publish(self) -> None:
        first = self.network.nodes[0].address
        send = f'tar -C "$1" -cf - . | {self.pack} socat -u -b 262144 - TCP:{first}:7000'
        self.client(*PIPE, send, "chain", str(self.workload.tree))


class ChainZ(Chain):
    """Compressed."""

    title = "the same chain, zstd"
    tools = ("tar", "socat", "bash", "zstd")
    packs = True
    pack = "zstd -3 -qc |"
    unpack = "zstd -dcq |"


SYSTEMS: dict[str, type[System]] = {
    "ciruela": Ciruela,
    "rsync": Rsync,
    "rsync-z": RsyncZ,
    "rsync-tree": RsyncTree,
    "rsync-tree-z": RsyncTreeZ,
    "aria2": Aria2,
    "aria2-tarz": Aria2Packed,
    "libtorrent": Libtorrent,
    "libtorrent-tarz": LibtorrentPacked,
    "chain": Chain,
    "chain-z": ChainZ,
}


def in_thread(function: Callable[[], None]) -> tuple[threading.Thread, list[BaseException]]:
    """Run ``function`` beside; the list gets what it raises."""
    problems: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001  whoever waits for the thread looks at it
            problems.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    return thread, problems
