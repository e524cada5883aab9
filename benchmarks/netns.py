"""Machines on one machine: network namespaces on a bridge, each with a link of limited speed. Needs root and iproute2.

Nothing of this touches the network of the machine itself: the bridge has a namespace of its own, and there is no route out.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from benchmarks.children import CheckFailed

A = TypeVar("A")

NET = "10.77.0."
CLIENT = 200
"""Last number of the client's address; those of the nodes are 1, 2, and so on."""

BURST = "128kb"
LATENCY = "50ms"
"""How much a link takes at once, and how long what comes too fast waits before it is dropped."""

CLONE_NEWNET = 0x40000000
NAMESPACES = Path("/run/netns")
GROUPS = (
    (Path("/sys/fs/cgroup/cpuacct"), "cpuacct.usage"),
    (Path("/sys/fs/cgroup"), "cpu.stat"),
    (Path("/sys/fs/cgroup/unified"), "cpu.stat"),
)
"""Where control groups may be (version 1, 2, both), and their file with the processor time."""


def why_not() -> str:
    """Why no network can be made here; empty when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root: run this with sudo"
    missing = [tool for tool in ("ip", "tc", "nsenter") if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (iproute2, util-linux)"
    if not any((root / "cgroup.procs").exists() for root, _ in GROUPS):
        return "control groups, which count processor time, are not below /sys/fs/cgroup"
    return ""


def _do(*command: str, wrong: bool = True) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if wrong and done.returncode:
        raise CheckFailed(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}")
    return done.stdout


class Host:
    """One machine: a namespace, an address, a directory, and a control group for all its processes."""

    def __init__(self, name: str, number: int, namespace: str, top: Path, group: Path, usage: str) -> None:
        self.name = name
        self.number = number
        self.namespace = namespace
        self.address = f"{NET}{number}"
        self.top = top
        self.group = group
        self._usage = group / usage
        (top / "data").mkdir(parents=True)
        group.mkdir()

    @property
    def data(self) -> Path:
        """Where what it gets is put."""
        return self.top / "data"

    def inside(self, command: Sequence[str]) -> list[str]:
        """The command that runs ``command`` on this machine; it keeps its process id."""
        enter = 'group=$0; space=$1; shift; echo $$ > "$group" && exec nsenter --net="$space" -- "$@"'
        return ["/bin/sh", "-c", enter, str(self.group / "cgroup.procs"), str(NAMESPACES / self.namespace), *command]

    def within(self, function: Callable[[], A]) -> A:
        """Call ``function`` in a thread whose sockets are on this machine; its processor time is not counted."""
        result: list[A] = []
        problem: list[BaseException] = []

        def enter() -> None:
            try:
                with open(NAMESPACES / self.namespace, "rb") as space:
                    if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), "setns")
                result.append(function())
            except BaseException as error:  # noqa: BLE001  it is raised again, by the thread that asked
                problem.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if problem:
            raise problem[0]
        return result[0]

    def cpu_s(self) -> float:
        """Processor time of all its processes so far, also of those that have ended."""
        text = self._usage.read_text()
        if self._usage.name == "cpuacct.usage":
            return int(text) / 1e9
        return int(dict(line.split() for line in text.splitlines())["usage_usec"]) / 1e6

    def _processes(self) -> list[int]:
        return [int(pid) for pid in (self.group / "cgroup.procs").read_text().split()]

    def end(self) -> None:
        """End all processes of this machine, by their ids."""
        for number, patience_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0)):
            until_s = time.monotonic() + patience_s
            for pid in self._processes():
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
            while self._processes() and time.monotonic() < until_s:
                time.sleep(0.02)
        until_s = time.monotonic() + 2.0
        while self.group.exists() and time.monotonic() < until_s:
            try:
                self.group.rmdir()
            except OSError:  # an ended process is still in it for a moment
                time.sleep(0.02)


class Network:
    """``count`` nodes and a client on a bridge. Leaving the context ends all their processes and removes everything."""

    def __init__(self, count: int, top: Path) -> None:
        self._prefix = f"cb{os.getpid()}-"
        self._count = count
        self._top = top
        root, self._usage = next((root, usage) for root, usage in GROUPS if (root / "cgroup.procs").exists())
        self._group = root / f"ciruela-bench-{os.getpid()}"
        self.nodes: list[Host] = []
        self._switch = f"{self._prefix}switch"

    @property
    def hosts(self) -> list[Host]:
        """The nodes and the client."""
        return [*self.nodes, self.client]

    def __enter__(self) -> Self:
        self._spaces: list[str] = []
        self._made: list[Host] = []
        try:
            self._group.mkdir()
            self._space(self._switch)
            _do("ip", "-n", self._switch, "link", "add", "bridge", "type", "bridge")
            _do("ip", "-n", self._switch, "link", "set", "bridge", "up")
            self.nodes = [self._host(f"node{number}", number) for number in range(1, self._count + 1)]
            self.client = self._host("client", CLIENT)
        except BaseException:
            self._remove()
            raise
        return self

    def _space(self, name: str) -> None:
        _do("ip", "netns", "add", name)
        self._spaces.append(name)

    def _host(self, name: str, number: int) -> Host:
        space = f"{self._prefix}{name}"
        self._space(space)
        _do("ip", "-n", self._switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", space)
        _do("ip", "-n", self._switch, "link", "set", name, "master", "bridge", "up")
        _do("ip", "-n", space, "addr", "add", f"{NET}{number}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _do("ip", "-n", space, "link", "set", device, "up")
        self._made.append(Host(name, number, space, self._top / name, self._group / name, self._usage))
        return self._made[-1]

    def limit(self, mbit: float) -> None:
        """From now on each link carries so much in each direction."""
        for host in self.hosts:
            for space, device in ((host.namespace, "eth0"), (self._switch, host.name)):
                shape = ["root", "tbf", "rate", f"{round(mbit * 1000)}kbit", "burst", BURST, "latency", LATENCY]
                _do("tc", "-n", space, "qdisc", "replace", "dev", device, *shape)

    def sent_bytes(self) -> dict[str, int]:
        """What each host has put on the wire so far, with all headers, as the bridge counts it."""
        links = json.loads(_do("ip", "-n", self._switch, "-s", "-j", "link"))
        names = {host.name for host in self.hosts}
        return {link["ifname"]: link["stats64"]["rx"]["bytes"] for link in links if link["ifname"] in names}

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()

    def _remove(self) -> None:
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for host in self._made:
                host.end()
            for space in self._spaces:
                _do("ip", "netns", "del", space, wrong=False)
            if self._group.exists():
                self._group.rmdir()
        finally:
            for number, action in before.items():
                signal.signal(number, action)
