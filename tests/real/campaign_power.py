"""Bench P: the power goes while a real daemon works on a real ext4, and what was acknowledged must be there afterwards.

The daemon's disk is an ext4 in a file, which stands on another one. A cut freezes the outer one for some milliseconds, so that the file
is copied as it was at one moment, and without any sync of the disk in it: what the daemon and the kernel had not written yet is lost. A
mount of the copy replays its journal, as after a real cut, and its device has another number, as it may after a reboot. Unlike a real disk
this one loses nothing that reached it.
"""

from __future__ import annotations

import random
import re
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk.store import Store
from ciruela.interfaces import Loaded
from ciruela.model.config import DirConfig
from ciruela.model.vpath import VPath
from tests.disk.trees import in_place
from tests.real.alone import run_alone
from tests.real.daemons import APPS, CFG, RealCluster
from tests.real.mounts import Mounts, copy_sparse, loops_forbidden
from tests.real.trees import Shape, noise, shape, wanted

CAMPAIGN_S = 45.0
"""After that a share of the campaign makes no further cut."""

AT_ONCE = 7
"""Uploads of one run of the client; a key may have 8 at a time."""

OUTER_MIB, DISK_MIB = 320, 192
MAIN = "/cfg/main"
CONFIGS = {"apps": APPS, "cfg": CFG}


@dataclass(frozen=True)
class Cut:
    """A disk as the power left it: ``image`` is its file, ``acknowledged`` what the client had been told by then (path, version)."""

    image: Path
    acknowledged: frozenset[tuple[str, int]]


class PowerBench:
    """One daemon on a disk that can be cut from power at any moment, and a client that uploads without end."""

    def __init__(self, case: SynchronousTestCase, settings: str = "fsync: commit\n") -> None:
        """``settings`` is the daemon's ``ciruela.yaml``."""
        self.case = case
        self.mounts = Mounts(case)
        top = self.mounts.top
        self.outer = self.mounts.ext4(self.mounts.make_ext4(top / "outer image", OUTER_MIB), "outer", "noatime")
        self.image = self.mounts.make_ext4(self.outer / "disk image", DISK_MIB)
        self.disk = self.mounts.ext4(self.image, "disk")
        for name in ("data", "db", "data/apps", "data/cfg"):
            (self.disk / name).mkdir()
        subprocess.run(["sync", "-f", str(self.disk)], check=True)  # these were made long ago
        self.cluster = RealCluster(case, 1, CONFIGS, down=[0], data={0: self.disk / "data"}, db={0: self.disk / "db"})
        (self.cluster.nodes[0].config / "ciruela.yaml").write_text(settings)
        self.cluster.start(0)
        self.versions = 0
        self.cuts = 0
        self.shapes: dict[tuple[str, int], Shape] = {}
        self.acknowledged: set[tuple[str, int]] = set()
        self.images: dict[str, int] = {}
        self._current: dict[str, int] = {}

    def source(self, vpath: str) -> Path:
        """A new version of a directory: some with so few files that each is synced, some with more than that."""
        self.versions += 1
        top = self.cluster.top / f"version {self.versions}"
        top.mkdir()
        files, size = ((5, 40_000), (80, 700), (2, 300_000))[self.versions % 3]
        data = noise(self.versions, files * size)
        for number in range(files):
            (top / f"file{number}").write_bytes(data[number * size : (number + 1) * size])
        (top / "link").symlink_to("file0")
        self.shapes[vpath, self.versions] = wanted(shape(top))
        self._current[vpath] = self.versions
        return top

    def upload(self) -> subprocess.Popen[str]:
        """Begin some uploads in one run of the client; a thread notes what it is told."""
        order: list[object] = ["--replace", f"{self.source(MAIN)}:{MAIN}"]
        for _ in range(AT_ONCE - 1):
            vpath = f"/apps/v{self.versions + 1}"
            order += ["--append", f"{self.source(vpath)}:{vpath}"]
        client = self.cluster.begin_sync("-v", *order, "127.0.0.1")
        threading.Thread(target=self._listen, args=(client, dict(self._current)), daemon=True).start()
        return client

    def _listen(self, client: subprocess.Popen[str], versions: dict[str, int]) -> None:
        assert client.stderr is not None
        for line in client.stderr:
            words = line.split()
            indexed = re.match(r"Indexed .*/version (\d+): .* id (\w{64})$", line)
            if indexed is not None:
                self.images[indexed[2]] = int(indexed[1])
            elif words[-3:-2] and words[-2:] == ["has", "it"]:
                self.acknowledged.add((words[-3], versions[words[-3]]))

    def cut(self) -> Cut:
        """The disk as it is now, without what was not written yet."""
        self.cuts += 1
        known = frozenset(self.acknowledged)
        target = self.mounts.top / f"cut {self.cuts}"
        with self.mounts.frozen(self.outer):
            copy_sparse(self.image, target)
        return Cut(target, known)

    def mounted(self, cut: Cut) -> Path:
        """Mount what a cut left; the journal of the file system is replayed."""
        return self.mounts.ext4(cut.image, cut.image.name.replace(" ", ""))

    def newest(self, cut: Cut) -> int:
        """The newest version that was acknowledged at the path that is replaced, 0 for none."""
        return max((version for vpath, version in cut.acknowledged if vpath == MAIN), default=0)

    def visible(self, cut: Cut, data: Path) -> None:
        """What is visible must be whole, and what was acknowledged visible: before anything is recovered, and after."""
        for key in CONFIGS:
            for path in (data / key).iterdir():
                vpath = f"/{key}/{path.name}"
                if path.name.startswith("."):
                    continue
                found = shape(path)
                version = next((number for (name, number), one in self.shapes.items() if name == vpath and one == found), None)
                self.case.assertIsNotNone(version, f"{vpath} is like no version of it: {sorted(found)[:20]}")
                if vpath == MAIN:
                    self.case.assertGreaterEqual(version or 0, self.newest(cut), "an older version than the acknowledged one")
        for vpath, version in cut.acknowledged:
            self.case.assertTrue((data / vpath[1:]).is_dir(), f"{vpath}, version {version}, was acknowledged and is gone")

    def recovered(self, cut: Cut, top: Path) -> None:
        """Start the store of the daemon on what a cut left, in this process, and check what it says and shows."""
        configs = {
            key: DirConfig(key, str(top / "data" / key), append_only="append-only: true" in text, num_levels=1)
            for key, text in CONFIGS.items()
        }
        store = Store(str(top / "db"), configs, in_place)
        try:
            loaded: Loaded = self.case.successResultOf(store.load())
            committed = {str(held.vpath): held.committed for held in loaded.held if held.committed is not None}
            for vpath, version in cut.acknowledged:
                self.case.assertIn(vpath, committed, f"version {version} was acknowledged, and no state tells of it")
            for vpath, state in committed.items():
                index = self.successful(store.read_index(state.image))
                self.case.assertIsNotNone(index, f"{vpath}: its index is gone")
                recorded = self.shapes[vpath, self.images[state.image.hex()]]
                self.case.assertEqual(shape(top / "data" / vpath[1:]), recorded, f"{vpath} is not the recorded image")
                self.case.assertTrue(self.successful(store.present(VPath.parse(vpath))))
            standing = {f"/{key}/{path.name}" for key in CONFIGS for path in (top / "data" / key).iterdir() if path.name[0] != "."}
            self.case.assertEqual(standing, set(committed), "what is visible is not what is recorded")
        finally:
            store.close()

    def successful(self, result: Deferred[object]) -> object:
        """What a call gave."""
        return self.case.successResultOf(result)

    def check(self, cut: Cut) -> None:
        """Everything that must hold after a cut, without a daemon; the copy is removed."""
        top = self.mounted(cut)
        self.visible(cut, top / "data")
        self.recovered(cut, top)
        self.mounts.unmount(top)
        cut.image.unlink()


def run(part: int, parts: int, *, everything: bool = True) -> str:
    """Cut the power as often as time allows, at moments that never come again; ``everything`` is what it always does.

    Raises AssertionError that says what was lost.
    """
    why = loops_forbidden()
    if why:
        return f"power: not run here: {why}"

    def story(case: SynchronousTestCase) -> str:
        rng = random.Random(part * 1000 + parts)
        bench = PowerBench(case)
        end_s = time.monotonic() + CAMPAIGN_S
        runs = 0
        while time.monotonic() < end_s and runs < 25:
            client = bench.upload()
            runs += 1
            while client.poll() is None and time.monotonic() < end_s:
                time.sleep(rng.expovariate(20))
                bench.check(bench.cut())
            code = client.wait(60)
            if code != 0:
                raise AssertionError(f"the client ended with {code}\n{bench.cluster.tails()}")
            bench.check(bench.cut())
        if not bench.acknowledged:
            raise AssertionError("nothing was acknowledged")
        return f"power: {bench.cuts:,} cuts of real disks in {bench.versions:,} uploads, {len(bench.acknowledged):,} acknowledged, 0 lost"

    return run_alone(story)
