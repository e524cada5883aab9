"""Uploads of a small configuration to three idle nodes, one after the other: this checkout, others beside it, and a loop of rsync.

``python -m benchmarks.tiny --help``; README.rst says what the columns mean.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.children import FOREGROUND, PACKAGES, CheckFailed, Child, Children, environment, free_port, run, until
from benchmarks.nodes import Node, fingerprint, make_nodes, write_key
from benchmarks.tables import keep, list_table, machine, percentile, tell

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
SIZE_BYTES = 3000
PAUSE_S = 0.3
"""Time for news to settle before the next upload."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One upload: seconds of the command, processor seconds of the client and of all that serves."""

    wall_s: float
    client_s: float
    nodes_s: float


@dataclass(slots=True)
class Way:
    """One way to bring the tree to the nodes. ``send`` gets the number of the turn; ``copies`` tells where that turn's copies are."""

    name: str
    daemons: list[Child]
    send: Callable[[int], tuple[float, float]]
    copies: Callable[[int], list[Path]]
    runs: list[Measured] = field(default_factory=list)


def ciruela(top: Path, checkout: Path, name: str, tree: Path, children: Children, more: dict[str, str]) -> Way:
    """Client and nodes of one checkout, run by its own environment if it has one."""
    own = checkout / ".venv" / "bin" / "python"
    python = str(own) if own.exists() else sys.executable
    environ = environment(PYTHONPATH=str(checkout), PYTHONSAFEPATH="1")  # else the directory of this run would come first
    key = top / f"{name} key"
    nodes = make_nodes(top / name, free_port(HOSTS), write_key(key, os.urandom(32)), {"bench": "append-only: true\nnum-levels: 1\n"})
    for node in nodes:
        _start(node, python, environ, children)
    for node in nodes:
        node.ready(len(nodes) - 1)
    program = "import sys; sys.argv[0] = 'ciruela-sync'; from ciruela.client.start import ciruela_sync; sys.exit(ciruela_sync())"
    client = [python, "-c", program, "-m", "-i", str(key), "--port", str(nodes[0].port)]

    def send(turn: int) -> tuple[float, float]:
        done = run([*client, "--append", f"{tree}:/bench/turn{turn}", *HOSTS], {**environ, **more}, 60)
        if done.code:
            raise CheckFailed(f"{name}: ciruela-sync ended with {done.code}: {done.out}")
        return done.wall_s, done.cpu_s

    return Way(name, [node.child for node in nodes if node.child], send, lambda turn: [one.data / "bench" / f"turn{turn}" for one in nodes])


def _start(node: Node, python: str, environ: dict[str, str], children: Children) -> None:
    twistd = (python, "-c", "import sys; sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()", *FOREGROUND)
    node.child = children.start(f"ciruela {node.name}", node.command(twistd), node.top / "log", environ)


def end_warm(runtime: Path) -> None:
    """End what waits for work."""
    for place in runtime.glob("ciruela-warm-*"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            link.connect(str(place))
            pid, _, _ = struct.unpack("=iII", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        os.kill(pid, signal.SIGTERM)


def rsync(top: Path, tree: Path, children: Children) -> Way:
    """One push after the other to an rsync daemon for each node."""
    daemons, ports, data = [], [], []
    ids = "uid = root\ngid = root\n" if os.getuid() == 0 else ""
    for number, host in enumerate(HOSTS):
        folder = top / f"rsync{number}"
        (folder / "data").mkdir(parents=True)
        (folder / "conf").write_text(f"address = {host}\nuse chroot = no\n{ids}[data]\npath = {folder / 'data'}\nread only = no\n")
        port = free_port([host])
        command = ["rsync", "--daemon", "--no-detach", f"--config={folder / 'conf'}", f"--port={port}"]
        child = children.start("rsync", command, folder / "log")
        until("rsync does not answer", lambda host=host, port=port: run(["rsync", f"rsync://{host}:{port}/"]).code == 0, child)  # type: ignore[misc]
        daemons.append(child)
        ports.append(port)
        data.append(folder / "data")

    def send(turn: int) -> tuple[float, float]:
        began_s = time.perf_counter()
        cpu_s = 0.0
        for host, port in zip(HOSTS, ports, strict=True):
            done = run(["rsync", "-a", f"{tree}/", f"rsync://{host}:{port}/data/turn{turn}/"])
            if done.code:
                raise CheckFailed(f"rsync ended with {done.code}: {done.out}")
            cpu_s += done.cpu_s
        return time.perf_counter() - began_s, cpu_s

    return Way("rsync, a loop of three", daemons, send, lambda turn: [folder / f"turn{turn}" for folder in data])


def measure(ways: list[Way], tree: Path, turns: int) -> None:
    """All ways in each turn, with a tree of its own, after one turn that is not counted."""
    rng = random.Random(1)
    for turn in range(turns + 1):
        (tree / "service.conf").write_bytes(rng.randbytes(SIZE_BYTES))
        wanted = fingerprint(tree)
        for way in ways:
            time.sleep(PAUSE_S)
            before_s = sum(child.cpu_s() for child in way.daemons)
            wall_s, client_s = way.send(turn)
            for copy in way.copies(turn):
                if fingerprint(copy) != wanted:
                    raise CheckFailed(f"{copy} is not what was sent")
            time.sleep(PAUSE_S)  # news that follows, and children of rsync, are processor time of this upload
            if turn:
                way.runs.append(Measured(wall_s, client_s, sum(child.cpu_s() for child in way.daemons) - before_s))
        tell(
            f"{'warm-up' if not turn else f'turn {turn} of {turns}'}: "
            + ", ".join(f"{way.runs[-1].wall_s:.3f}" for way in ways if way.runs)
        )


# What waits for work, and its forks, are not in the processor seconds of a warm client.
HEAD = ("Way", "Median, s", "95 of 100, s", "Longest, s", "Of the first way's median", "Processor s: client", "Processor s: nodes")


def table(ways: list[Way]) -> str:
    """The report of all ways."""
    first_s = statistics.median(one.wall_s for one in ways[0].runs)
    rows = []
    for way in ways:
        times = [one.wall_s for one in way.runs]
        rows.append(
            [
                way.name,
                f"{statistics.median(times):.3f}",
                f"{percentile(times, 95):.3f}",
                f"{max(times):.3f}",
                f"{statistics.median(times) / first_s:.2f}",
                f"{statistics.mean(one.client_s for one in way.runs):.3f}",
                f"{statistics.mean(one.nodes_s for one in way.runs):.3f}",
            ]
        )
    return list_table(HEAD, rows)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tiny", description="A small configuration, again and again.")
    parser.add_argument("--turns", type=int, default=20, help="uploads of each way (20)")
    parser.add_argument("--beside", action="append", default=[], metavar="NAME=CHECKOUT", help="another checkout, first; may be repeated")
    parser.add_argument("--output", type=Path, help="write the report to this file, too")
    return parser.parse_args()


def main() -> int:
    """Run the benchmark."""
    options = arguments()
    ram = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    try:
        with tempfile.TemporaryDirectory(prefix="ciruela-tiny-", dir=ram) as folder, Children() as children:
            top = Path(folder)
            top.chmod(0o755)
            tree = top / "tree"
            tree.mkdir()
            ways = []
            for one in (*options.beside, f"this checkout={PACKAGES}"):
                name, _, checkout = one.rpartition("=")
                ways.append(ciruela(top, Path(checkout), name, tree, children, {}))
            runtime = top / "run"
            runtime.mkdir(mode=0o700)
            warm = {"XDG_RUNTIME_DIR": str(runtime), "CIRUELA_WARM": "60"}
            ways.append(ciruela(top, Path(PACKAGES), "this checkout, warm", tree, children, warm))
            if shutil.which("rsync"):
                ways.append(rsync(top, tree, children))
            try:
                measure(ways, tree, max(1, options.turns))
            finally:
                end_warm(runtime)
    except CheckFailed as failed:
        tell(str(failed))
        return 1
    except KeyboardInterrupt:
        tell("interrupted; everything is stopped")
        return 130
    how = f"{SIZE_BYTES:,} bytes to {len(HOSTS)} nodes on loopback, {options.turns} uploads of each way, in turn"
    keep(f"{how}; data on {'tmpfs' if ram else 'disk'}; {machine()}.\n\n{table(ways)}", options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
