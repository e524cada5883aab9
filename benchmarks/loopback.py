"""One node and no limit of the link: this project beside an rsync daemon and beside a bare socket, in one run.

``python -m benchmarks.loopback --help``; README.rst says what the columns mean.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.children import SYNC, CheckFailed, Children, Finished, environment, free_port, run, until
from benchmarks.nodes import fingerprint, make_nodes, write_key
from benchmarks.systems import in_thread
from benchmarks.tables import MIB, keep, list_table, machine, spread, tell

HOST = "127.0.0.1"
LOOK_S = 0.01
OLD_CLIENT = (
    sys.executable,
    "-c",
    """import sys
sys.argv[0] = "ciruela-sync"
from ciruela.net import connection
connection.SUBPROTOCOLS = ("none", "ciruela.v1")
from ciruela.client.main import main_sync
sys.exit(main_sync())""",
)
"""Our client, offering the first version of the protocol and one that nobody knows in the place of the second."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run. ``copy_s``: the part of it in which the node received and wrote, where that can be seen from outside."""

    whole_s: float
    copy_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """A tree to be sent. ``turn.txt`` in it differs in each run."""

    title: str
    tree: Path
    size_bytes: int
    files: int


def large(top: Path, scale: float) -> Work:
    """One file of random bytes."""
    tree, size = top / "large", round(512 * scale)
    tree.mkdir()
    rng = random.Random(1)
    with open(tree / "large.bin", "wb") as file:
        for _ in range(size):
            file.write(rng.randbytes(MIB))
    return Work(f"one file of {size} MiB", tree, size * MIB, 1)


def small(top: Path, scale: float) -> Work:
    """Many files of one page."""
    tree, count = top / "small", round(20_000 * scale)
    rng = random.Random(2)
    for number in range(count):
        folder = tree / f"{number // 200:03}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05}").write_bytes(rng.randbytes(4096))
    return Work(f"{count:,} files of 4 KiB", tree, count * 4096, count)


class Bench:
    """One node, one rsync daemon, and the ways."""

    def __init__(self, top: Path, children: Children) -> None:
        self.top = top
        self.key = top / "key"
        config = "append-only: true\nnum-levels: 2\n"
        [self.node] = make_nodes(top / "ciruela", free_port([HOST]), write_key(self.key, os.urandom(32)), {"bench": config}, (1,))
        self.node.start(children)
        self.node.ready(0)
        self.port = free_port([HOST])
        (top / "rsync").mkdir()
        settings = top / "rsyncd.conf"
        ids = "uid = root\ngid = root\n" if os.getuid() == 0 else ""
        settings.write_text(f"address = {HOST}\nuse chroot = no\n{ids}[data]\npath = {top / 'rsync'}\nread only = no\n")
        daemon = ["rsync", "--daemon", "--no-detach", f"--config={settings}", f"--port={self.port}"]
        self.rsyncd = children.start("rsync", daemon, top / "rsync.log")
        until("rsync does not answer", lambda: run(["rsync", f"rsync://{HOST}:{self.port}/"]).code == 0, self.rsyncd)
        self.turn = 0

    def ciruela(self, work: Work, client: Sequence[str] = SYNC, kind: str = "blake3") -> Measured:
        """Our client and our daemon."""
        assert self.node.child is not None
        base = self.node.data / "bench" / f"turn{self.turn}"
        command = [*client, "-m", "-i", str(self.key), "--port", str(self.node.port), "--hash", f"{kind}/256", "-e", "3000s"]
        before_s = self.node.child.cpu_s()
        done: list[Finished] = []
        wish = f"{work.tree}:/bench/turn{self.turn}/v"
        thread, problems = in_thread(lambda: done.append(run([*command, "--append", wish, HOST], environment(), 3000)))
        began_s = ended_s = 0.0
        while thread.is_alive():
            names = os.listdir(base) if base.exists() else []
            if names and not began_s:
                began_s = time.perf_counter()
            if "v" in names and not ended_s:
                ended_s = time.perf_counter()
            time.sleep(LOOK_S)
        if problems or done[0].code:
            raise CheckFailed(f"ciruela-sync: {problems or done[0].out}")
        measured = Measured(done[0].wall_s, ended_s - began_s, done[0].cpu_s + self.node.child.cpu_s() - before_s)
        self.check(base / "v", work)
        return measured

    def rsync(self, work: Work) -> Measured:
        """A push to the rsync daemon."""
        target = f"turn{self.turn}"
        before_s = self.rsyncd.cpu_s()
        done = run(["rsync", "-a", f"{work.tree}/", f"rsync://{HOST}:{self.port}/data/{target}/"])
        if done.code:
            raise CheckFailed(f"rsync ended with {done.code}: {done.out}")
        time.sleep(0.1)  # the daemon collects its child, whose processor time counts
        measured = Measured(done.wall_s, done.wall_s, done.cpu_s + self.rsyncd.cpu_s() - before_s)
        self.check(self.top / "rsync" / target, work)
        return measured

    def raw(self, work: Work, kind: str) -> Measured:
        """A bare socket, for one file."""
        [source] = (path for path in work.tree.iterdir() if path.name != "turn.txt")
        target = self.top / "raw"
        done = run([sys.executable, "-m", "benchmarks.rawcopy", "--hash", kind, str(source), str(target)], environment())
        if done.code:
            raise CheckFailed(f"rawcopy ended with {done.code}: {done.out}")
        seconds, cpu_s = map(float, done.out.split())
        with open(source, "rb") as one, open(target, "rb") as other:
            while data := one.read(MIB):
                if data != other.read(MIB):
                    raise CheckFailed(f"{target} is not what was sent")
        target.unlink()
        return Measured(seconds, seconds, cpu_s)

    @staticmethod
    def check(copy: Path, work: Work) -> None:
        """Compare a copy with its source and remove it."""
        if fingerprint(copy) != fingerprint(work.tree):
            raise CheckFailed(f"{copy} is not what was sent")
        shutil.rmtree(copy)


WAYS: dict[str, Callable[[Bench, Work], Measured]] = {
    "rsync daemon": lambda bench, work: bench.rsync(work),
    "ciruela, BLAKE3": lambda bench, work: bench.ciruela(work),
    "ciruela, BLAKE2b": lambda bench, work: bench.ciruela(work, kind="blake2b"),
    "ciruela.v1 client, BLAKE2b": lambda bench, work: bench.ciruela(work, OLD_CLIENT, "blake2b"),
    "bare socket, no hash": lambda bench, work: bench.raw(work, "none"),
    "bare socket, BLAKE3": lambda bench, work: bench.raw(work, "blake3"),
    "bare socket, BLAKE2b": lambda bench, work: bench.raw(work, "blake2b"),
}
HEAD = (
    "Way",
    "Seconds, whole command",
    "Seconds, receiving",
    "MB/s, receiving",
    "Of rsync's",
    "Whole command, of rsync's",
    "Processor s per GB",
)


def measure(bench: Bench, work: Work, runs: int) -> dict[str, list[Measured]]:
    """All ways in turn, after one round that is not counted."""
    ways = {name: way for name, way in WAYS.items() if work.files == 1 or not name.startswith("bare")}
    results: dict[str, list[Measured]] = {name: [] for name in ways}
    for turn in range(runs + 1):
        for name, way in ways.items():
            bench.turn += 1
            (work.tree / "turn.txt").write_text(f"turn {bench.turn}\n")
            measured = way(bench, work)
            if turn:
                results[name].append(measured)
            tell(f"{work.title}: {f'run {turn} of {runs}' if turn else 'warm-up'}: {name}: {measured.whole_s:.2f} s")
    return results


def section(work: Work, results: dict[str, list[Measured]], start_s: float) -> str:
    """The table of one workload."""
    theirs = [statistics.median(getattr(one, name) for one in results["rsync daemon"]) for name in ("whole_s", "copy_s")]
    rows = []
    for name, runs in results.items():
        whole_s, copy_s = (statistics.median(getattr(one, what) for one in runs) for what in ("whole_s", "copy_s"))
        rows.append(
            [
                name,
                spread([one.whole_s for one in runs]),
                spread([one.copy_s for one in runs]),
                f"{work.size_bytes / copy_s / 1e6:,.0f}",
                f"{theirs[1] / copy_s:.2f}",
                f"{theirs[0] / whole_s:.2f}" if not name.startswith("bare") else "",
                spread([one.cpu_s / work.size_bytes * 1e9 for one in runs], 1),
            ]
        )
    return f"**{work.title}, one node, loopback**; the start of ``ciruela-sync`` alone takes {start_s:.2f} s.\n\n{list_table(HEAD, rows)}"


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loopback", description="One node without a limit of the link.")
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each way (5)")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the trees, as a part of the whole (1.0)")
    parser.add_argument("--quick", action="store_true", help="one run, a sixteenth of the size: to see that it works")
    parser.add_argument("--output", type=Path, help="write the report to this file, too")
    options = parser.parse_args()
    runs, scale = (1, 1 / 16) if options.quick else (max(1, options.runs), options.scale)
    if shutil.which("rsync") is None:
        parser.error("rsync is not installed")
    ram = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    try:
        with tempfile.TemporaryDirectory(prefix="ciruela-loopback-", dir=ram) as folder, Children() as children:
            top = Path(folder)
            top.chmod(0o755)
            (top / "trees").mkdir()
            bench = Bench(top, children)
            start_s = statistics.median(run([*SYNC, "--version"], environment()).wall_s for _ in range(3))
            sections = []
            for make in (large, small):
                work = make(top / "trees", scale)
                sections.append(section(work, measure(bench, work, runs), start_s))
                shutil.rmtree(work.tree)
    except CheckFailed as failed:
        tell(str(failed))
        return 1
    except KeyboardInterrupt:
        tell("interrupted; everything is stopped")
        return 130
    how = f"{runs} runs of each way in turn, after a warm-up; median (smallest .. largest); scale {scale:g}"
    keep(f"{how}, data on {'tmpfs' if ram else 'disk'}; {machine()}.\n\n" + "\n".join(sections), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
