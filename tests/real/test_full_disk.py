"""Bench T: disks that are too small, run full, become read-only, or are not there, below running daemons."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.daemons import APPS, CFG, RealCluster, RealNode
from tests.real.mounts import Mounts, forbidden, may_mount, needs
from tests.real.trees import noise, noise_file, small_tree

KIB = 1024
MIB = 1024 * KIB
BLOCK = 32 * KIB

APPEARS_S = 30.0
"""A base that was missing is used again within this time (threats F30)."""


class Room(SynchronousTestCase):
    """Directories to upload, and what must be so after each failure."""

    def fresh(self) -> Path:
        """A new directory."""
        top = Path(self.mktemp()).absolute()
        top.mkdir(parents=True)
        return top

    def many(self, seed: int, files: int, size: int) -> Path:
        """A directory of ``files`` files that have nothing in common."""
        top = self.fresh()
        data = noise(seed, files * size)
        for number in range(files):
            (top / f"file{number}").write_bytes(data[number * size : (number + 1) * size])
        return top

    def debris(self, node: RealNode) -> list[str]:
        """What an upload that failed may not leave."""
        hidden = [str(path) for key in ("apps", "cfg") for path in (node.data / key).glob(".*")]
        records = [str(path) for path in node.db.rglob("*") if path.name.startswith(".tmp.") or path.name.endswith(".new.state")]
        return hidden + records

    def tidy(self, cluster: RealCluster, node: RealNode) -> None:
        """Wait until nothing is left of what failed."""
        cluster.until(lambda: not self.debris(node), f"{node.name} has removed {self.debris(node)}")

    def freeze_within(self, cluster: RealCluster, client: subprocess.Popen[str], node: RealNode, least: int) -> None:
        """Stop the client once ``least`` bytes are in the staging directory, and before all are."""

        def written() -> bool:
            found = [path.stat().st_blocks * 512 for path in (node.data / "apps").glob(".ciruela~*/*")]
            return sum(found) >= least

        cluster.until(written, f"{node.name} fetches", poll_s=0.002)
        client.send_signal(signal.SIGSTOP)
        cluster.until(lambda: int(node.get("/downloading/")["/apps/v1"]["missing_blocks"]) > 0, "the download is in its middle")


class SpaceTests(Room):
    """Too little room for an image."""

    @needs(forbidden)
    @shows("F7", "F28", "F34", "A38", "I7")
    def test_sizes(self) -> None:
        """A disk that is a little too small would be filled to its last byte for nothing, and nobody told how much is missing."""
        mounts = Mounts(self)
        data = mounts.tmpfs("data", 256, inodes=1000)
        cluster = RealCluster(self, 1, {"apps": APPS}, data={0: data}, expect_errors=["given up: no_space"])
        (node,) = cluster.nodes
        told: list[tuple[int, int]] = []
        outcomes = []
        for number, size_kib in enumerate((256, 1000, 1040, 1280)):
            mounts.remount(data, f"size={size_kib}k")
            source = self.many(number, 32, 32 * KIB)
            before = node.received()
            done = cluster.sync("-t", "60s", "--append", f"{source}:/apps/v{number}", "127.0.0.1")
            outcomes.append(done.returncode)
            if done.returncode == 0:
                cluster.same(source, f"/apps/v{number}")
                break
            said = cluster.expect(done, 3, "FAILED", "node1 no_space", f"node1 /apps/v{number} no_space: ")
            numbers = re.search(r"needs (\d+) bytes, (\d+) bytes free", said)
            if numbers:
                told.append((int(numbers[1]), int(numbers[2])))
                self.assertEqual(node.received(), before, f"{size_kib} KiB: {said}: blocks were fetched although they cannot fit")
            self.tidy(cluster, node)
            self.assertFalse(node.path(f"/apps/v{number}").exists())
        self.assertEqual(outcomes[-1], 0, outcomes)
        self.assertGreaterEqual(len(told), 3, "the numbers were not told before the first block")
        for needed, free in told:
            self.assertEqual(needed, MIB)
            self.assertLess(free, needed)
        self.assertEqual([free for _, free in told], sorted(free for _, free in told))

        source = self.many(98, 32, 32 * KIB)  # an image is there whose files could be linked: only then it is known what is missing
        before = node.received()
        done = cluster.sync("--append", f"{source}:/apps/second", "127.0.0.1")
        cluster.expect(done, 3, "node1 /apps/second no_space: needs 1048576 bytes")
        self.assertEqual(node.received(), before, "blocks were fetched although they cannot fit")
        self.tidy(cluster, node)

        mounts.remount(data, "size=64m,nr_inodes=64")  # the bytes would fit, the files do not
        source = self.many(99, 200, KIB)
        cluster.expect(
            cluster.sync("--append", f"{source}:/apps/inodes", "127.0.0.1"), 3, "node1 /apps/inodes no_space: ", "No space left on device"
        )
        self.tidy(cluster, node)
        mounts.remount(data, "nr_inodes=1000")
        cluster.expect(cluster.sync("--append", f"{source}:/apps/inodes", "127.0.0.1"), 0, "DONE")
        cluster.same(source, "/apps/inodes")

    @needs(forbidden)
    @shows("F28", "F31", "A38", "I1", "I7", "I8")
    def test_full_and_read_only_in_the_middle(self) -> None:
        """A log file that grows, or an error of the disk, would take the daemon with it, or leave half an image that nobody finishes."""
        mounts = Mounts(self)
        data = mounts.tmpfs("data", 128 * KIB)
        faults = ["given up: no_space", "given up: commit_error", "Read-only file system"]
        cluster = RealCluster(self, 1, {"apps": APPS}, data={0: data}, expect_errors=faults)
        (node,) = cluster.nodes
        old = small_tree(self.fresh(), {"old": "old"})
        cluster.expect(cluster.sync("--append", f"{old}:/apps/v0", "127.0.0.1"), 0, "DONE")
        source = self.fresh()
        for number in range(6):
            noise_file(source / f"large{number}", number, 8 * MIB)
        order = ("--append", f"{source}:/apps/v1", "127.0.0.1")
        self.assertEqual(self.opened(cluster), [])

        client = cluster.begin_sync(*order)
        self.freeze_within(cluster, client, node, 2 * MIB)
        filler = data / "filler"
        with open(filler, "wb", buffering=0) as file, self.assertRaises(OSError):
            while True:
                file.write(bytes(MIB))
        client.send_signal(signal.SIGCONT)
        cluster.expect(cluster.finish(client), 3, "FAILED", "node1 /apps/v1 no_space: ", "No space left on device")
        self.tidy(cluster, node)
        cluster.until(lambda: not self.opened(cluster), "nothing of the removed directory is kept open")
        filler.unlink()
        cluster.same(old, "/apps/v0")

        small = self.many(7, 600, 32 * KIB)  # files of one block are closed as soon as they are written: then a mount can change
        order = ("--append", f"{small}:/apps/v1", "127.0.0.1")
        client = cluster.begin_sync(*order)
        self.freeze_within(cluster, client, node, MIB)
        cluster.until(lambda: self.read_only(mounts, data), "no file is open any more")
        client.send_signal(signal.SIGCONT)
        cluster.expect(cluster.finish(client), 3, "FAILED", "node1 /apps/v1 ", "Read-only file system")
        self.assertEqual(node.get("/healthz")["status"], "ok")
        self.assertFalse(node.path("/apps/v1").exists())
        mounts.remount(data, "rw")
        cluster.expect(cluster.sync(*order), 0, "DONE")
        cluster.same(small, "/apps/v1")
        cluster.same(old, "/apps/v0")
        self.tidy(cluster, node)

    def opened(self, cluster: RealCluster) -> list[str]:
        """What the daemon has open in its staging directories, removed ones too."""
        found = (os.readlink(path) for path in Path(f"/proc/{cluster.pid(0)}/fd").iterdir() if path.is_symlink())
        return [path for path in found if ".ciruela~" in path]

    def read_only(self, mounts: Mounts, where: Path) -> bool:
        """Try to make a mount read-only."""
        try:
            mounts.remount(where, "ro")
        except AssertionError:
            return False
        return True

    @needs(forbidden)
    @shows("F28", "I1", "I2", "I7", "I8")
    def test_db_directory_full(self) -> None:
        """A full disk under the db directory would make a node forget what it has, or speak of what it has not."""
        mounts = Mounts(self)
        db = mounts.tmpfs("db", 256)
        cluster = RealCluster(self, 1, {"cfg": CFG}, db={0: db}, expect_errors=["No space left on device"])
        (node,) = cluster.nodes
        old, new = small_tree(self.fresh(), {"version": "old"}), small_tree(self.fresh(), {"version": "new"})
        cluster.expect(cluster.sync("--replace", f"{old}:/cfg/main", "127.0.0.1"), 0, "DONE")
        state = db / "signatures" / "cfg" / "main.state"
        before = state.read_bytes()
        filler = db / "filler"
        with open(filler, "wb", buffering=0) as file, self.assertRaises(OSError):
            while True:
                file.write(bytes(4096))
        done = cluster.sync("-t", "3s", "--replace", f"{new}:/cfg/main", "127.0.0.1")
        cluster.expect(done, 3, "127.0.0.1 /cfg/main", "No space left on device")
        self.assertEqual(node.get("/healthz")["status"], "ok")
        self.assertEqual(state.read_bytes(), before)
        self.assertEqual(sorted(path.name for path in state.parent.iterdir()), ["main.state"])
        cluster.same(old, "/cfg/main")
        cluster.kill(0)
        cluster.start(0)
        self.assertEqual(node.get("/list-dir/cfg")["main"]["image"], node.has("/cfg/main"))
        cluster.same(old, "/cfg/main")
        filler.unlink()
        cluster.expect(cluster.sync("--replace", f"{new}:/cfg/main", "127.0.0.1"), 0, "DONE")
        cluster.same(new, "/cfg/main")


class MissingTests(Room):
    """A disk that is mounted late, or taken away."""

    @needs(forbidden)
    @shows("F30", "A40", "I7", "I9")
    def test_base_comes_and_goes(self) -> None:
        """One disk that is missing would stop all directories, or its mount point would be filled instead; and it would need a restart."""
        mounts = Mounts(self)
        disk = mounts.tmpfs("disk", 8 * KIB)
        faults = ["apps: ", "cant_create_directory"]
        data = mounts.top / "data"
        cluster = RealCluster(self, 2, {"apps": APPS, "cfg": CFG}, down=[0, 1], data={1: data}, expect_errors=faults)
        point = cluster.nodes[1].data / "apps"
        point.rmdir()
        cluster.start(0, 1)
        first, second, third = (small_tree(self.fresh(), {"version": str(number)}) for number in range(3))
        cluster.expect(cluster.sync("--replace", f"{first}:/cfg/main", "127.0.0.1"), 0, "DONE", "2/2 nodes")
        done = cluster.sync("-e", "1s", "--early-fraction", "1", "--append", f"{first}:/apps/v1", "127.0.0.1")
        cluster.expect(done, 3, "1/2 nodes", "node2 /apps/v1 cant_create_directory: ", "No such file or directory (is the disk mounted?")
        cluster.same(first, "/apps/v1", 0)

        point.mkdir()
        mounts.cover(point, disk)
        began_s = time.monotonic()
        for number, source in ((1, first), (2, second)):
            cluster.expect(cluster.sync("--append", f"{source}:/apps/v{number}", "127.0.0.1"), 0, "DONE", "2/2 nodes")
            cluster.same(source, f"/apps/v{number}")
        self.assertLess(time.monotonic() - began_s, APPEARS_S)

        mounts.unmount(point)  # the mount point below it is empty
        done = cluster.sync("-e", "1s", "--early-fraction", "1", "--append", f"{third}:/apps/v3", "127.0.0.1")
        cluster.expect(done, 3, "1/2 nodes", "node2 /apps/v3 cant_create_directory: ", "another directory than before")
        self.assertEqual(os.listdir(point), [])
        cluster.expect(cluster.sync("--replace", f"{third}:/cfg/main", "127.0.0.1"), 0, "DONE", "2/2 nodes")
        mounts.cover(point, disk)
        began_s = time.monotonic()
        cluster.expect(cluster.sync("--append", f"{third}:/apps/v3", "127.0.0.1"), 0, "DONE", "2/2 nodes")
        self.assertLess(time.monotonic() - began_s, APPEARS_S)
        for number, source in enumerate((first, second, third), 1):
            cluster.same(source, f"/apps/v{number}")


class PreconditionTests(SynchronousTestCase):
    """What keeps these tests from running, and what does not."""

    def test_may_mount(self) -> None:
        """A mistake in these tests would look like a machine on which they are impossible, and they would never run again."""
        self.assertEqual(may_mount(0, lambda: 0), "")
        self.assertIn("only root", may_mount(1000, lambda: 0))
        self.assertIn("CAP_SYS_ADMIN", may_mount(0, lambda: 1))
        with self.assertRaises(OSError):
            may_mount(0, lambda: 22)

    def test_needs(self) -> None:
        """A test that cannot run would be skipped without a word, or one that can would not run."""
        ran = []

        @needs(lambda: "")
        def possible(case: SynchronousTestCase) -> None:
            ran.append("possible")

        @needs(lambda: "no disk")
        def impossible(case: SynchronousTestCase) -> None:
            ran.append("impossible")

        possible(self)
        impossible(self)
        self.assertEqual(ran, ["possible"])
