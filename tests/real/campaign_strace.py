"""Bench X: real daemons are killed, or their calls fail, at the N-th call of the system while one upload reaches all of them.

Each daemon of a crowd meets a fault of its own, so that one upload and one restart are enough for many faults. A daemon has one thread
for files: strace counts the calls of each thread for itself, and these are then the calls of the upload, in order.
"""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.real.alone import run_alone
from tests.real.daemons import APPS, CFG, RealCluster, RealNode
from tests.real.strace import Call, Fault, Tracer, calls, forbidden
from tests.real.trees import Shape, shape, small_tree, wanted

CAMPAIGN_S = 25.0
"""So long after its daemons run a share of the campaign begins no further upload."""

AT_PUSH_S = 10.0
"""The same at a push."""

CROWD = 6

LEAST_UPLOADS = 2
"""However slow the machine is: one that replaces, and one that appends."""

REASONS = re.compile(r"Input/output error|No space left|Too many open files|Read-only file system")
"""What a client is told of a disk that fails."""

PATIENT = ("-t", "90s", "-e", "60s", "--early-fraction", "1")
"""A client that waits for all nodes, also for those that are dead for some seconds."""

RANGES = {
    "openat": 120,
    "mkdirat": 4,
    "newfstatat": 150,
    "pwrite64": 16,
    "fchmod": 22,
    "utimensat": 11,
    "fsync": 34,
    "syncfs": 1,
    "linkat": 3,
    "renameat": 4,
    "renameat2": 1,
    "unlinkat": 16,
}
"""How many calls of each kind the uploads of this bench make, or some more. A fault that is not reached does no harm."""


def picture(number: int, files: int) -> dict[str, str]:
    """The files of one version: some are the same in all, so that they are linked from an older one."""
    same = {f"same/{file}": f"never changes {file}\n" * 300 for file in range(3)}
    return same | {f"d{file % 3}/f{file}": f"version {number} of {file}\n" * 400 for file in range(files)}


def complaint(found: Shape, *allowed: Shape) -> str:
    """What ``found`` is instead of one of ``allowed``; nothing if it is."""
    if found in allowed:
        return ""
    return f"{len(found)} entries, like none of the versions: {sorted(found)[:40]}"


class Crowd:
    """Daemons on one machine, of which each meets a fault of its own while an upload reaches all of them."""

    def __init__(self, case: SynchronousTestCase, count: int, expect_errors: Sequence[str] = ()) -> None:
        self.case = case
        self.cluster = RealCluster(case, count, {"apps": APPS, "cfg": CFG}, down=range(count), expect_errors=expect_errors)
        for node in self.cluster.nodes:
            node.options = ["--disk-threads", "1"]
        self.cluster.start(*range(count))
        self.versions = itertools.count(1)
        self.kills = self.failures = 0
        self.old: tuple[Path, Shape] | None = None

    def version(self, files: int) -> tuple[Path, Shape]:
        """A new source, and what it must look like at a node."""
        number = next(self.versions)
        source = small_tree(self.cluster.top / f"version {number}", picture(number, files))
        return source, wanted(shape(source))

    def begin(self, files: int) -> None:
        """The version at /cfg/main that later ones replace."""
        self.old = self.version(files)
        self.cluster.expect(self.cluster.sync("--replace", f"{self.old[0]}:/cfg/main", "127.0.0.1"), 0, "DONE")

    def traced(self, faults: Sequence[Fault]) -> list[Tracer]:
        """Let each daemon meet its fault."""
        return [Tracer(self.cluster.pid(number), self.out(number), faults=[fault]) for number, fault in enumerate(faults)]

    def out(self, number: int) -> Path:
        """Where the calls of a daemon are written down."""
        return self.cluster.top / f"calls {number}"

    def alive(self) -> list[int]:
        """The numbers of the daemons that run."""
        return [number for number, node in enumerate(self.cluster.nodes) if node.process is not None and node.process.poll() is None]

    def settled(self, node: RealNode, vpath: str, new: Shape) -> bool:
        """Whether a daemon has the new version, and nothing beside it, or is dead."""
        assert node.process is not None
        if node.process.poll() is not None:
            return True
        return not self.debris(node, vpath) and shape(node.path(vpath)) == new

    def debris(self, node: RealNode, vpath: str) -> list[str]:
        """What a finished upload to ``vpath`` may not leave."""
        key, name = vpath.strip("/").split("/")
        beside = [path.name for path in (node.data / key).iterdir() if path.name.startswith(".")]
        records = [path.name for path in node.db.rglob("*") if path.name.startswith(".tmp.") or path.name.endswith(".new.state")]
        missing = [] if (node.db / "signatures" / key / f"{name}.state").exists() else [f"no {name}.state"]
        return beside + records + missing

    def killed(self, faults: Sequence[Fault], *, replace: bool, files: int) -> int:
        """One upload, while which each daemon may be killed by its fault, and what is there after. Gives the number of kills."""
        cluster = self.cluster
        source, new = self.version(files)
        vpath = "/cfg/main" if replace else f"/apps/v{source.name.split()[1]}"
        allowed = [new]
        if replace:
            assert self.old is not None
            allowed.append(self.old[1])
        tracers = self.traced(faults)
        client = cluster.begin_sync(*PATIENT, "--replace" if replace else "--append", f"{source}:{vpath}", *self.hosts())
        for node in cluster.nodes:
            cluster.until(lambda node=node: self.settled(node, vpath, new), f"{node.name} has it or is dead")  # type: ignore[misc]
        for tracer in tracers:
            tracer.detach()
        dead = [number for number in range(len(cluster.nodes)) if number not in self.alive()]
        for number in dead:
            self.case.assertEqual(cluster.ended(number), -9)
            where = cluster.nodes[number].path(vpath)
            if replace or where.exists():
                wrong = complaint(shape(where), *allowed)
                self.case.assertEqual(wrong, "", f"right after {faults[number]} {vpath}")
        cluster.start(*dead)
        cluster.expect(cluster.finish(client), 0, "DONE", f"{len(cluster.nodes)}/{len(cluster.nodes)} nodes")
        for number, node in enumerate(cluster.nodes):
            cluster.until(lambda node=node: not self.debris(node, vpath), f"{node.name} is tidy after {faults[number]}")  # type: ignore[misc]
            self.case.assertEqual(complaint(shape(node.path(vpath)), new), "", f"after {faults[number]} and a restart: {vpath}")
        if replace:
            self.old = source, new
        self.kills += len(dead)
        return len(dead)

    def hosts(self) -> list[str]:
        """All daemons as entry points of one cluster."""
        return ["-m", *(node.host for node in self.cluster.nodes)]

    def failed(self, faults: Sequence[Fault], *, replace: bool, files: int) -> int:
        """One upload, while which calls fail: all daemons stay, the client is told, and a second run works. Gives the number of faults."""
        cluster = self.cluster
        source, new = self.version(files)
        vpath = "/cfg/main" if replace else f"/apps/v{source.name.split()[1]}"
        order = ("--replace" if replace else "--append", f"{source}:{vpath}", *self.hosts())
        tracers = self.traced(faults)
        done = cluster.sync("-v", *PATIENT, *order)
        for tracer in tracers:
            tracer.detach()
        self.case.assertEqual(len(self.alive()), len(cluster.nodes), f"a daemon ended\n{cluster.tails()}")
        hit = 0
        for number, node in enumerate(cluster.nodes):
            made = list(calls(self.out(number)))
            injected = [at for at, call in enumerate(made) if call.injected]
            if injected:
                hit += 1
                self.judge(node, vpath, faults[number], made, injected[0], done.stderr)
            if node.path(vpath).exists():
                allowed = [new, self.old[1]] if replace and self.old is not None else [new]
                self.case.assertEqual(complaint(shape(node.path(vpath)), *allowed), "", f"after {faults[number]}: {vpath}")
        self.case.assertIn(done.returncode, (0, 3), done.stderr)
        again = cluster.sync(*PATIENT, *order)
        cluster.expect(again, 0, "DONE", f"{len(cluster.nodes)}/{len(cluster.nodes)} nodes")
        for number, node in enumerate(cluster.nodes):
            self.case.assertEqual(complaint(shape(node.path(vpath)), new), "", f"after {faults[number]} and another run: {vpath}")
        if replace:
            self.old = source, new
        self.failures += hit
        return hit

    def judge(self, node: RealNode, vpath: str, fault: Fault, made: list[Call], at: int, said: str) -> None:
        """No acknowledgement after a failed sync (F29); and whatever kept an upload from its end was told with host, path and reason."""
        acknowledged = any(f"{node.name} {vpath} has it" in line for line in said.splitlines())
        tidying = [one for one in made[:at] if one.name == "unlinkat" and ".new.state" in one.args and not one.injected]
        synced = made[at].name in ("fsync", "syncfs")
        if synced and Path(path_of(made[at])).parent == node.db:  # what the node remembers of others is no part of an upload
            return
        if acknowledged and synced and not tidying:
            self.case.assertTrue(anew(made, at, vpath), f"{node.name} acknowledged after {fault}: {made[at]}\n{said}")
        if not acknowledged:
            where = (node.name, node.host)
            told = [line for line in said.splitlines() if vpath in line and any(name in line for name in where)]
            self.case.assertTrue(any(REASONS.search(line) for line in told), f"nobody was told that {fault} failed at {node.name}:\n{said}")


def path_of(call: Call) -> str:
    """What a sync is about."""
    return call.args[call.args.index("<") + 1 : call.args.rindex(">")]


def anew(made: list[Call], at: int, vpath: str) -> bool:
    """Whether, after the sync ``made[at]`` failed, what it was about was written again and synced, and only then the image committed.

    A second sync of the same file is not enough: the system forgets what it could not write. A directory is not written by us.
    """
    path = path_of(made[at])
    folder, _, name = path.rpartition("/")
    directory = made[at].name == "syncfs" or any(
        one.name == "openat" and "O_DIRECTORY" in one.args and one.result.endswith(f"<{path}>") for one in made
    )
    state = f'"{vpath.rpartition("/")[2]}.state"'
    written = directory
    synced = False
    for one in made[at + 1 :]:
        if one.name == "openat" and f"<{folder}>" in one.args and f'"{name}"' in one.args and "O_CREAT" in one.args:
            written = True
        elif written and one.name == made[at].name and path_of(one) == path and one.result == "0":
            synced = True
        elif synced and one.name.startswith("renameat") and state in one.args and one.result == "0":
            return True
    return False


def all_kills(part: int, parts: int) -> Iterator[Fault]:
    """The share ``part`` of all kills, in an order that meets every kind of call soon."""
    points = [Fault(call, when) for call, most in RANGES.items() for when in range(1, most + 1)]
    random.Random(20240601).shuffle(points)
    return iter(points[part::parts])


def run(part: int, parts: int, *, everything: bool = False) -> str:
    """Kill daemons at as many calls as time allows. Raises AssertionError that names the fault: ``CALL:signal=SIGKILL:when=N``."""
    why = forbidden()
    if why:
        return f"strace: not run here: {why}"

    def story(case: SynchronousTestCase) -> str:
        crowd = Crowd(case, CROWD)
        crowd.begin(8)
        end_s = time.monotonic() + (CAMPAIGN_S if everything else AT_PUSH_S)
        points = all_kills(part, parts)
        uploads = 0
        while uploads < LEAST_UPLOADS or time.monotonic() < end_s:
            faults = list(itertools.islice(points, CROWD))
            if len(faults) < CROWD:
                break
            crowd.killed(faults, replace=uploads % 2 == 0, files=(8, 70)[uploads // 2 % 2])
            uploads += 1
        if not crowd.kills:
            raise AssertionError("no daemon was killed: the faults were not injected")
        return f"strace: {crowd.kills:,} real kills in {uploads} uploads, 0 violations"

    return run_alone(story)
