"""Time to index a directory, with and without the hash cache, beside ``b2sum`` and ``casync digest`` on the same files.

Run it from the checkout: ``python -m benchmarks.index --help``. README.rst says how to read the table.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from benchmarks.children import CheckFailed, run
from ciruela.disk.hashcache import REST_NS, HashCache
from ciruela.disk.scan import Scan, scan
from ciruela.index.digest import HashKind

MIB = 1024 * 1024
KINDS = {"BLAKE3": HashKind.BLAKE3, "BLAKE2b": HashKind.BLAKE2B}
DROP = Path("/proc/sys/vm/drop_caches")

B2SUM = "find . -type f -print0 | xargs -0 b2sum > /dev/null"
B2SUM_TWO = "find . -type f -print0 | xargs -0 -P 2 -n 500 b2sum > /dev/null"
CASYNC = "casync digest . > /dev/null"

GOALS = {
    ("mixed", "BLAKE3, every file read"): 0.3,
    ("mixed", "BLAKE2b, every file read"): 0.6,
    ("small", "BLAKE3, every file read"): 0.8,
    ("small", "BLAKE2b, every file read"): 1.0,
    ("mixed", "BLAKE3, nothing changed"): 0.1,
    ("mixed", "BLAKE2b, nothing changed"): 0.1,
    ("small", "BLAKE3, nothing changed"): 0.1,
    ("small", "BLAKE2b, nothing changed"): 0.1,
}
"""What ciruela is to reach, as a part of the time of one ``b2sum``."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: seconds, and processor seconds."""

    wall_s: float
    cpu_s: float


@dataclass(slots=True)
class Workload:
    """A tree, and what was measured on it."""

    key: str
    name: str
    tree: Path
    results: dict[str, list[Measured]] = field(default_factory=dict)


# -- workloads -----------------------------------------------------------------------------------------------------------------------


def mixed(top: Path, scale: float) -> Workload:
    """Files from 256 bytes to 32 MiB, their sizes spread evenly on a scale of powers of two, up to 1 GiB in all."""
    tree = top / "mixed"
    rng = random.Random(1)
    left, number = int(1024 * MIB * scale), 0
    while left > 0:
        size = min(left, int(2 ** rng.uniform(8, 25)))
        folder = tree / f"{number // 50:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05d}.bin").write_bytes(rng.randbytes(size))
        left, number = left - size, number + 1
    return Workload("mixed", f"{number:,} files of mixed sizes, {1024 * scale:.0f} MiB", tree)


def small(top: Path, scale: float) -> Workload:
    """50,000 files of 256 bytes to 8 KiB, 500 in a directory."""
    tree = top / "small"
    rng = random.Random(2)
    count, total = int(50_000 * scale), 0
    for number in range(count):
        folder = tree / f"{number // 500:03d}"
        if number % 500 == 0:
            folder.mkdir(parents=True)
        size = rng.randrange(256, 8192)
        (folder / f"{number:05d}.txt").write_bytes(rng.randbytes(size))
        total += size
    return Workload("small", f"{count:,} small files, {total / MIB:.0f} MiB", tree)


WORKLOADS: dict[str, Callable[[Path, float], Workload]] = {"mixed": mixed, "small": small}


# -- the ways ------------------------------------------------------------------------------------------------------------------------


def command(text: str, tree: Path) -> Measured:
    """One of the other programs."""
    before_s = _children_s()
    began_s = time.perf_counter()
    code = subprocess.run(["sh", "-c", text], cwd=tree, check=False).returncode
    wall_s = time.perf_counter() - began_s
    if code:
        raise CheckFailed(f"{text!r} ended with {code}")
    return Measured(wall_s, _children_s() - before_s)


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Ours:
    """The scan of ciruela, in the threads that the client has, with caches of its own."""

    def __init__(self, top: Path) -> None:
        self.home = top / "caches"
        pool = ThreadPool(minthreads=0, maxthreads=4)
        pool.start()
        self.stop = pool.stop
        self._in_thread = partial(deferToThreadPool, reactor, pool)

    def forget(self) -> None:
        """Let the next scan be the first."""
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir()

    async def index(self, tree: Path, kind: HashKind, cached: bool) -> tuple[Measured, Scan]:
        """One scan, to the bytes of the index."""
        caches = HashCache(str(self.home), time.time_ns) if cached else None
        used_s = time.process_time()
        began_s = time.perf_counter()
        found = await scan(str(tree), kind, self._in_thread, lambda _: None, caches=caches)
        return Measured(time.perf_counter() - began_s, time.process_time() - used_s), found


def drop_caches() -> None:
    """Make the system forget what it has read. Raises CheckFailed where that is not permitted."""
    os.sync()
    try:
        DROP.write_text("3\n")
    except OSError as error:
        raise CheckFailed(f"--cold: {DROP} cannot be written ({error.strerror}); run it as root, outside of a container") from None


async def measure(ours: Ours, workload: Workload, runs: int, cold: bool, tell: Callable[[str], None]) -> None:
    """All ways in turn, after a warm-up that is not counted."""
    others = {"b2sum": B2SUM, "b2sum, two processes": B2SUM_TWO}
    if shutil.which("casync"):
        others["casync digest"] = CASYNC
    time.sleep(2 * REST_NS / 1e9)  # what was just written is not kept in a cache
    for turn in range(runs + 1):

        def note(way: str, measured: Measured, turn: int = turn) -> None:
            if turn:
                workload.results.setdefault(way, []).append(measured)
            tell(f"{workload.name}: {'run ' + str(turn) if turn else 'warm-up'}: {way}: {measured.wall_s:.3f} s")

        for way, text in others.items():
            if cold:
                drop_caches()
            note(way, command(text, workload.tree))
        for name, kind in KINDS.items():
            ours.forget()
            seen = set()
            for way, cached in (("every file read", False), ("first run, writes the cache", True), ("nothing changed", True)):
                if cold:
                    drop_caches()
                measured, found = await ours.index(workload.tree, kind, cached)
                note(f"{name}, {way}", measured)
                seen.add(found.data)
            if len(seen) != 1:
                raise CheckFailed(f"{workload.name}: the index with a cache is not the one without")


# -- the report ----------------------------------------------------------------------------------------------------------------------


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} .. {max(values):.{digits}f})"


def table(workloads: Sequence[Workload]) -> str:
    """The results as a list-table of reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", ""]

    def row(*cells: str) -> None:
        lines.extend(f"   {'*' if not at else ' '} - {cell}" for at, cell in enumerate(cells))

    row("Workload", "Way", "Seconds", "Of b2sum", "Goal", "Processor seconds")
    for workload in workloads:
        base = statistics.median(each.wall_s for each in workload.results["b2sum"])
        for way, results in workload.results.items():
            ratio = statistics.median(each.wall_s for each in results) / base
            goal = GOALS.get((workload.key, way))
            row(
                workload.name if way == "b2sum" else "",
                way,
                _spread([each.wall_s for each in results], 3),
                f"{ratio:.3f}",
                "" if goal is None else f"{goal:g}",
                _spread([each.cpu_s for each in results], 3),
            )
    return "\n".join(lines) + "\n"


def report(workloads: Sequence[Workload], how: str) -> str:
    """What was measured, where, and the table."""
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    b2sum = run(["b2sum", "--version"]).out.split("\n")[0]
    casync = "" if shutil.which("casync") else "; casync is not installed, so it was not measured"
    return (
        f"{how}; {os.cpu_count()} processors, load at the end {load}; Python {sys.version.split()[0]}, {b2sum}{casync}.\n"
        f"Median (smallest .. largest).\n\n{table(workloads)}"
    )


async def _all(options: argparse.Namespace, top: Path, how: str, tell: Callable[[str], None]) -> str:
    ours = Ours(top)
    workloads: list[Workload] = []
    text = ""
    try:
        for key in options.only or WORKLOADS:
            workload = WORKLOADS[key](top, options.scale)
            workloads.append(workload)
            await measure(ours, workload, options.runs, options.cold, tell)
            text = report(workloads, how)
            if options.output is not None:
                options.output.write_text(text)
    finally:
        ours.stop()
    return text


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.index", description="Time to index a directory, beside b2sum and casync.")
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each way, after one warm-up (5)")
    parser.add_argument("--only", action="append", choices=list(WORKLOADS), help="only this workload; may be repeated")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the workloads, as a part of the whole (1.0)")
    parser.add_argument("--quick", action="store_true", help="one run, a sixteenth of the size: to see that it works, not how fast")
    parser.add_argument("--directory", type=Path, help="where the trees are made (default: /dev/shm where it can be written)")
    parser.add_argument("--cold", action="store_true", help="make the system forget the files before each run; needs root and a disk")
    parser.add_argument("--output", type=Path, help="write the table to this file, too")
    options = parser.parse_args()
    if options.quick:
        options.runs, options.scale = 1, 1 / 16
    options.runs = max(1, options.runs)
    if shutil.which("b2sum") is None:
        parser.error("b2sum is not installed")
    ram = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    where = options.directory or ram
    if options.cold and where == ram:
        parser.error("--cold has no effect on files in memory: name a directory on a disk with --directory")

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    answers: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="ciruela-bench-", dir=where) as folder:
        place = "tmpfs" if where == ram and ram else str(where or "the disk of /tmp")
        how = f"{options.runs} runs, scale {options.scale:g}, files on {place}, {'not ' if options.cold else ''}in the memory of the system"

        def begin() -> None:
            story = Deferred.fromCoroutine(_all(options, Path(folder), how, tell))
            story.addBoth(answers.append).addBoth(lambda _: reactor.stop())  # type: ignore[attr-defined]

        reactor.callWhenRunning(begin)  # type: ignore[attr-defined]
        reactor.run()  # type: ignore[attr-defined]
    (answer,) = answers
    if isinstance(answer, Failure):
        if answer.check(CheckFailed) is None:
            answer.printTraceback()
        tell(answer.getErrorMessage())
        return 1
    print(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
