"""Directories go to real daemons, and arrive as they were."""

from __future__ import annotations

import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.orders import OURS
from ciruela.index.digest import HashKind
from ciruela.index.parse import parse
from ciruela.model.ids import parse_image_id
from tests.real.daemons import APPS, CFG, PATIENCE_S, RealCluster, environment, program
from tests.real.trees import noise_file, odd_tree, real_tree, shape, small_tree

MIB = 1024 * 1024


def fresh(case: SynchronousTestCase) -> Path:
    """A new directory."""
    top = Path(case.mktemp()).absolute()
    top.mkdir(parents=True)
    return top


class SpreadTests(SynchronousTestCase):
    """What users do every day."""

    def test_everything_a_directory_can_hold(self) -> None:
        """A file would be missing, different, not executable or under another name on some server."""
        source = fresh(self)
        odd_tree(source)
        real_tree(source / "real", 5000)
        noise_file(source / "large", 1, 256 * MIB)
        cluster = RealCluster(self, 3)
        done = cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1", timeout=300)
        cluster.expect(done, 0, "127.0.0.1 /apps/v1  DONE", "3/3 nodes")
        self.assertGreater(sum(kind == "file" for kind, _, _ in shape(source).values()), 5000)
        cluster.same(source, "/apps/v1")
        for node in cluster.nodes:
            self.assertEqual([path.name for path in (node.data / "apps").iterdir()], ["v1"], "something is left over beside the image")

    def test_second_version(self) -> None:
        """A release of a few changed files would cost the traffic and the disk space of a whole one, or change the old one."""
        first, second = fresh(self), fresh(self)
        for source in (first, second):
            real_tree(source / "real", 300)
            noise_file(source / "large", 1, 16 * MIB)
            noise_file(source / "changing", 2, MIB)
        with open(second / "changing", "r+b") as file:
            file.seek(MIB // 2)
            file.write(b"new bytes in the middle")
        small_tree(second, {"added": "new", "real/added too": "new as well"})
        scripts = [path for path in sorted((second / "real").rglob("*.py")) if 1000 < path.stat().st_size < 32_000]
        scripts[0].unlink()
        scripts[1].chmod(0o755)
        changed = {path.relative_to(second) for path in (second / "changing", second / "added", second / "real/added too", scripts[1])}

        cluster = RealCluster(self, 3)
        cluster.expect(cluster.sync("--append", f"{first}:/apps/v1", "127.0.0.1"), 0, "DONE", "3/3 nodes")
        before = [node.received() for node in cluster.nodes]
        cluster.expect(cluster.sync("--append", f"{second}:/apps/v2", "127.0.0.2"), 0, "DONE", "3/3 nodes")
        cluster.same(first, "/apps/v1")
        cluster.same(second, "/apps/v2")
        enough = sum((second / path).stat().st_size for path in changed)
        for node, already in zip(cluster.nodes, before, strict=True):
            self.assertGreater(already, 17 * MIB)
            self.assertLessEqual(node.received() - already, enough, f"{node.name} fetched what it had")
            old, new = node.path("/apps/v1"), node.path("/apps/v2")
            for path in new.rglob("*"):
                below = path.relative_to(new)
                if path.is_file() and not path.is_symlink() and path.stat().st_size and below not in changed:
                    self.assertEqual(path.stat().st_ino, (old / below).stat().st_ino, f"{node.name}: {below} takes space twice")

    def test_entry_point_without_the_directory(self) -> None:
        """A user would have to know which servers take a directory, instead of naming any one."""
        source = small_tree(fresh(self), {"a": "1", "b/c": "2"})
        cluster = RealCluster(self, 5, [{"cfg": CFG}, *[{"apps": APPS}] * 4])
        cluster.until(
            lambda: len(cluster.nodes[0].get("/cluster/dirs/").get("/apps", [])) == 4, "the entry point knows who takes the directory"
        )
        done = cluster.sync("-v", "--append", f"{source}:/apps/v1", "127.0.0.1")
        cluster.expect(done, 0, "127.0.0.1 /apps/v1 no_config", "DONE", "4/4 nodes")
        cluster.same(source, "/apps/v1", 1, 2, 3, 4)
        self.assertEqual(list(cluster.nodes[0].data.rglob("v1")), [])

    def test_several_directories_and_clusters(self) -> None:
        """One command for a whole release would leave out a directory, or a cluster."""
        app = small_tree(fresh(self), {"app.py": "print()"})
        settings = small_tree(fresh(self), {"settings.ini": "[a]"})
        cluster = RealCluster(self, 3, {"apps": APPS, "cfg": CFG}, groups=[(0, 1), (2,)])
        done = cluster.sync(
            *("--append", f"{app}:/apps/v1", "--replace", f"{settings}:/cfg/main", "-m", "127.0.0.1", "127.0.0.2", "--", "127.0.0.3")
        )
        said = cluster.expect(done, 0)
        self.assertEqual(len([line for line in said.splitlines() if " DONE " in line and "2/2 nodes" in line]), 2, said)
        self.assertEqual(len([line for line in said.splitlines() if " DONE " in line and "1/1 nodes" in line]), 2, said)
        cluster.same(app, "/apps/v1")
        cluster.same(settings, "/cfg/main")

    def test_level_zero_and_every_hash(self) -> None:
        """A directory that is an image itself could not be replaced, or an index of another hash would not be taken."""
        first, second = small_tree(fresh(self), {"index.html": "1", "img/x": "2"}), small_tree(fresh(self), {"index.html": "one"})
        cluster = RealCluster(self, 2, {"www": "append-only: false\nnum-levels: 0\n", "apps": APPS})
        for source in (first, second):
            cluster.expect(cluster.sync("--replace", f"{source}:/www", "127.0.0.1"), 0, "DONE", "2/2 nodes")
            cluster.same(source, "/www")
        for number, kind in enumerate(HashKind):
            done = cluster.sync("--hash", kind.value, "--append", f"{first}:/apps/v{number}", "127.0.0.2")
            cluster.expect(done, 0, "DONE", "2/2 nodes")
            cluster.same(first, f"/apps/v{number}")
        ids = {cluster.nodes[0].has(f"/apps/v{number}") for number in range(len(HashKind))}
        self.assertEqual(len(ids), len(HashKind))
        for node in cluster.nodes:
            heads = {path.read_bytes().split(b" ")[1].decode().split("\n")[0] for path in node.db.rglob("*.ds1")}
            self.assertEqual(heads, {kind.value for kind in HashKind})

    def test_index_command(self) -> None:
        """A pipe that reads the index would get something that is no index, or another one than the servers get."""
        source = fresh(self)
        odd_tree(source)
        cluster = RealCluster(self, 1)
        cluster.expect(cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1"), 0, "DONE", "1/1 nodes")
        done = subprocess.run([program("ciruela"), "index", source], capture_output=True, env=environment(cluster.home), timeout=PATIENCE_S)
        self.assertEqual(done.returncode, 0, done.stderr)
        (stored,) = cluster.nodes[0].db.rglob("*.ds1")
        self.assertEqual(done.stdout, stored.read_bytes())
        self.assertEqual(stored.stem, cluster.nodes[0].has("/apps/v1"))
        self.assertIn(b"Indexed", done.stderr)
        self.assertEqual(parse(stored.read_bytes(), parse_image_id(stored.stem)).kind, OURS)
