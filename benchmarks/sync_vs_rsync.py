"""``ciruela-sync`` to three nodes beside ``rsync`` to three daemons: the same trees, in turn, on one machine.

Run it from the checkout: ``python -m benchmarks.sync_vs_rsync --help``. README.rst says how to read the table.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.children import SYNC, CheckFailed, Child, Children, Finished, environment, free_port, run, run_together, until
from benchmarks.nodes import Node, fingerprint, make_nodes, write_key

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
UNITS = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one way: seconds until all nodes had it, bytes that left the client, processor seconds of both sides."""

    wall_s: float
    sent_bytes: float
    cpu_s: float


@dataclass(slots=True)
class Workload:
    """A tree and how it gets a new version for each run. ``base``: the tree that all nodes have before, if any."""

    name: str
    tree: Path
    touch: Callable[[int], None]
    base: Path | None = None
    results: dict[str, list[Measured]] = field(default_factory=dict)


class Arena:
    """Three nodes of ciruela and three rsync daemons, all running, and their data."""

    def __init__(self, top: Path, children: Children) -> None:
        self.top = top
        self.key = top / "key"
        config = "append-only: true\nnum-levels: 2\n"
        self.nodes = make_nodes(top / "ciruela", free_port(HOSTS), write_key(self.key, os.urandom(32)), {"bench": config})
        for node in self.nodes:
            node.start(children)
        self.rsync_port = free_port(HOSTS)
        self.rsyncs = [self._rsync(number, children) for number in (1, 2, 3)]
        for node in self.nodes:
            node.ready(len(self.nodes) - 1)
        for host in HOSTS:
            until(f"rsync at {host}", lambda host=host: run(["rsync", f"rsync://{host}:{self.rsync_port}/"]).code == 0)  # type: ignore[misc]

    def _rsync(self, number: int, children: Children) -> Child:
        top = self.top / "rsync" / f"node{number}"
        (top / "data").mkdir(parents=True)
        config = top / "rsyncd.conf"
        ids = f"uid = {os.getuid()}\ngid = {os.getgid()}\n" if os.getuid() == 0 else ""
        config.write_text(f"address = 127.0.0.{number}\nuse chroot = no\n{ids}[data]\npath = {top / 'data'}\nread only = no\n")
        command = ["rsync", "--daemon", "--no-detach", f"--config={config}", f"--port={self.rsync_port}"]
        return children.start(f"rsync {number}", command, top / "log")

    def ciruela(self, tree: Path, base: str, name: str) -> Measured:
        """Upload to ``/bench/BASE/NAME``."""
        before_s = _cpu(self._daemons(self.nodes))
        command = [*SYNC, "-m", "-i", str(self.key), "--port", str(self.nodes[0].port), "--early-timeout", "15min"]
        done = run([*command, "--append", f"{tree}:/bench/{base}/{name}", *HOSTS], environment())
        found = re.search(r"DONE +3/3 nodes .*sent ([0-9.,]+) (\w+)", done.out)
        if done.code or found is None:
            raise CheckFailed(f"ciruela-sync ended with {done.code}:\n{done.out}")
        server_s = _cpu(self._daemons(self.nodes)) - before_s
        return Measured(done.wall_s, float(found[1].replace(",", "")) * UNITS[found[2]], done.cpu_s + server_s)

    @staticmethod
    def _daemons(nodes: Sequence[Node]) -> list[Child]:
        return [node.child for node in nodes if node.child is not None]

    def rsync(self, tree: Path, base: str, name: str, link: bool, parallel: bool) -> Measured:
        """Copy to ``BASE/NAME`` of each rsync daemon; with ``link`` beside ``BASE/base``, with hard links to it."""
        before_s = _cpu(self.rsyncs)
        for number in (1, 2, 3):
            (self.top / "rsync" / f"node{number}" / "data" / base).mkdir(exist_ok=True)
        options = ["-a", "--stats", *(["--link-dest=../base"] if link else [])]
        commands = [["rsync", *options, f"{tree}/", f"rsync://{host}:{self.rsync_port}/data/{base}/{name}/"] for host in HOSTS]
        if parallel:
            done = run_together(commands)
            wall_s = max(each.wall_s for each in done)
        else:
            done = [run(command) for command in commands]
            wall_s = sum(each.wall_s for each in done)
        time.sleep(0.1)  # the daemons collect their children, whose processor time counts
        return Measured(wall_s, sum(map(_rsync_sent, done)), sum(each.cpu_s for each in done) + _cpu(self.rsyncs) - before_s)

    def copies(self, way: str, base: str, name: str) -> list[Path]:
        """Where the three copies are."""
        if way == "ciruela":
            return [node.data / "bench" / base / name for node in self.nodes]
        return [self.top / "rsync" / f"node{number}" / "data" / base / name for number in (1, 2, 3)]


def _cpu(children: Sequence[Child]) -> float:
    return sum(child.cpu_s() for child in children)


def _rsync_sent(done: Finished) -> int:
    found = re.search(r"Total bytes sent: ([0-9,]+)", done.out)
    if done.code or found is None:
        raise CheckFailed(f"rsync ended with {done.code}:\n{done.out}")
    return int(found[1].replace(",", ""))


# -- workloads -----------------------------------------------------------------------------------------------------------------------


def _marker(tree: Path) -> Callable[[int], None]:
    """Each run has one file of its own, so that no node has this very image already."""

    def touch(turn: int) -> None:
        (tree / "turn.txt").write_text(f"turn {turn}\n")

    return touch


def one_file(top: Path, scale: float) -> Workload:
    """One file of random bytes."""
    tree = top / "one-file"
    tree.mkdir()
    size = int(256 * MIB * scale)
    rng = random.Random(1)
    with open(tree / "random.bin", "wb") as file:
        for at in range(0, size, MIB):
            file.write(rng.randbytes(min(MIB, size - at)))
    return Workload(f"one random file, {size / MIB:.0f} MiB", tree, _marker(tree))


def _copy_packages(tree: Path, most_bytes: float) -> tuple[int, int]:
    """Installed packages, in the order of their names, up to a size. Gives files and bytes."""
    source = Path(sysconfig.get_paths()["purelib"])
    files = total = 0
    tree.mkdir()
    for package in sorted(source.iterdir()):
        inside = [path for path in package.rglob("*") if path.is_file()] if package.is_dir() else [package]
        size = sum(path.stat().st_size for path in inside)
        if total + size > most_bytes or package.name == "__pycache__":
            continue
        if package.is_dir():
            shutil.copytree(package, tree / package.name, symlinks=True)
        else:
            shutil.copy2(package, tree / package.name)
        files, total = files + len(inside), total + size
    return files, total


def application(top: Path, scale: float) -> Workload:
    """The packages of this Python."""
    tree = top / "application"
    files, size = _copy_packages(tree, 240 * MIB * scale)
    return Workload(f"application tree, {files:,} files, {size / MIB:.0f} MiB", tree, _marker(tree))


def next_version(top: Path, scale: float) -> Workload:
    """The same with 2 % of the files changed, other ones in each run; all nodes have the version before."""
    base, tree = top / "version-base", top / "version-next"
    files, _ = _copy_packages(base, 240 * MIB * scale)
    shutil.copytree(base, tree, symlinks=True)
    changed = sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())[::50]

    def touch(turn: int) -> None:
        for path in changed:
            original = base / path.relative_to(tree)
            path.write_bytes(original.read_bytes() + f"# changed in turn {turn}\n".encode())

    return Workload(f"its next version, {len(changed):,} of {files:,} files changed", tree, touch, base)


def small_files(top: Path, scale: float) -> Workload:
    """Many small files."""
    tree = top / "small-files"
    count = int(20_000 * scale)
    rng = random.Random(2)
    for number in range(count):
        folder = tree / f"{number // 200:03d}"
        if number % 200 == 0:
            folder.mkdir(parents=True)
        (folder / f"{number:05d}").write_bytes(rng.randbytes(4096))
    return Workload(f"{count:,} files of 4 KiB", tree, _marker(tree))


def configuration(top: Path, _scale: float) -> Workload:
    """A small configuration."""
    tree = top / "configuration"
    tree.mkdir()
    rng = random.Random(3)
    for number in range(20):
        (tree / f"{number:02d}.conf").write_text("".join(f"option-{line} = {rng.random()}\n" for line in range(60)))
    return Workload("configuration of 20 files", tree, _marker(tree))


WORKLOADS: dict[str, Callable[[Path, float], Workload]] = {
    "file": one_file,
    "application": application,
    "version": next_version,
    "small": small_files,
    "config": configuration,
}
WAYS = ("ciruela", "rsync, one by one", "rsync, all three at once")


# -- the run -------------------------------------------------------------------------------------------------------------------------


def measure(arena: Arena, key: str, workload: Workload, runs: int, tell: Callable[[str], None]) -> None:
    """All runs of one workload: a warm-up of each way, then the ways in turn."""
    link = workload.base is not None
    if workload.base is not None:
        arena.ciruela(workload.base, f"{key}-base", "base")
        for way in WAYS[1:]:
            arena.rsync(workload.base, f"{key}-{WAYS.index(way)}", "base", False, True)
    for turn in range(runs + 1):
        workload.touch(turn)
        wanted = fingerprint(workload.tree)
        for number, way in enumerate(WAYS):
            if way == "ciruela":
                base, name = (f"{key}-base", f"v{turn}") if link else (f"{key}-{turn}", "v")
                measured = arena.ciruela(workload.tree, base, name)
            else:
                base, name = f"{key}-{number}", f"v{turn}"
                measured = arena.rsync(workload.tree, base, name, link, number == 2)
            for copy in arena.copies(way, base, name):
                if fingerprint(copy) != wanted:
                    raise CheckFailed(f"{way}: {copy} is not what was sent")
                if way != "ciruela":
                    shutil.rmtree(copy)
            if turn:
                workload.results.setdefault(way, []).append(measured)
            tell(f"{workload.name}: {'run ' + str(turn) if turn else 'warm-up'}: {way}: {measured.wall_s:.2f} s")


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} .. {max(values):.{digits}f})"


def table(workloads: Sequence[Workload]) -> str:
    """The results as a list-table of reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", ""]

    def row(*cells: str) -> None:
        lines.extend(f"   {'*' if not at else ' '} - {cell}" for at, cell in enumerate(cells))

    row(
        "Workload",
        "Way",
        "Seconds until all three have it",
        "ciruela takes, times this",
        "Sent by the client, MiB",
        "Processor seconds, both sides",
    )
    for workload in workloads:
        ours = statistics.median(each.wall_s for each in workload.results["ciruela"])
        for way, results in workload.results.items():
            row(
                workload.name if way == "ciruela" else "",
                way,
                _spread([each.wall_s for each in results], 2),
                f"{ours / statistics.median(each.wall_s for each in results):.2f}" if way != "ciruela" else "",
                f"{statistics.median(each.sent_bytes for each in results) / MIB:.2f}",
                _spread([each.cpu_s for each in results], 2),
            )
    return "\n".join(lines) + "\n"


def report(workloads: Sequence[Workload], how: str, start_s: float) -> str:
    """What was measured, where, and the table."""
    rsync = run(["rsync", "--version"]).out.split()[2]
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{how}; {os.cpu_count()} processors, load at the end {load}; Python {sys.version.split()[0]}, rsync {rsync}; "
        f"starting ciruela-sync alone takes {start_s:.2f} s.\nMedian (smallest .. largest).\n\n{table(workloads)}"
    )


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sync_vs_rsync", description="ciruela-sync to three nodes beside rsync.")
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each way, after one warm-up (5)")
    parser.add_argument("--only", action="append", choices=list(WORKLOADS), help="only this workload; may be repeated")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the large workloads, as a part of the whole (1.0)")
    parser.add_argument("--quick", action="store_true", help="one run, a sixteenth of the size: to see that it works, not how fast")
    parser.add_argument("--output", type=Path, help="write the table to this file, too")
    options = parser.parse_args()
    runs, scale = (1, 1 / 16) if options.quick else (max(1, options.runs), options.scale)
    if shutil.which("rsync") is None:
        parser.error("rsync is not installed")
    ram = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # ext4 slows down when trees come and go: see README.rst

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    workloads: list[Workload] = []
    text = ""
    try:
        with tempfile.TemporaryDirectory(prefix="ciruela-bench-", dir=ram) as folder, Children() as children:
            top = Path(folder)
            top.chmod(0o755)
            (top / "trees").mkdir()
            arena = Arena(top, children)
            starts = [run([*SYNC, "--version"], environment()).wall_s for _ in range(3)]
            for key in options.only or WORKLOADS:
                workload = WORKLOADS[key](top / "trees", scale)
                workloads.append(workload)
                measure(arena, key, workload, runs, tell)
                text = report(workloads, f"{runs} runs, scale {scale:g}, data on {'tmpfs' if ram else 'disk'}", statistics.median(starts))
                if options.output is not None:
                    options.output.write_text(text)
    except CheckFailed as failed:
        tell(str(failed))
        return 1
    except KeyboardInterrupt:
        tell("interrupted; everything is stopped")
        return 130
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
