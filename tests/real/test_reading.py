"""What reads a cluster, against real daemons: ``get``, ``ls``, ``status``, ``diff``, ``doctor``, ``keygen``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.daemons import APPS, CFG, PATIENCE_S, RealCluster, environment, make_key, program
from tests.real.test_spread import fresh
from tests.real.trees import differences, noise_file, odd_tree, shape, small_tree, wanted

MIB = 1024 * 1024
EXAMPLE = Path(__file__).parents[2] / "docs/reference/which_image.py"
"""Tells which image is at a path, as the page on the library shows it."""


def reading(cluster: RealCluster, *args: object) -> subprocess.CompletedProcess[str]:
    """Run ``ciruela`` with the port of the cluster, to its end."""
    return cluster.run([program("ciruela"), *map(str, args[:1]), "--port", str(cluster.port), *map(str, args[1:])])


def objects(done: subprocess.CompletedProcess[str]) -> list[dict[str, object]]:
    """The JSON Lines of stdout."""
    return [json.loads(line) for line in done.stdout.splitlines()]


class ReadingTests(SynchronousTestCase):
    """Two versions on three nodes. Starting them takes longest, so a test tells several stories, one after the other."""

    def setUp(self) -> None:
        self.first, self.second = fresh(self), fresh(self)
        odd_tree(self.first)
        for source in (self.first, self.second):
            noise_file(source / "large", 1, 4 * MIB)
        small_tree(self.second, {"added": "new", "sub/more": "1"})
        self.cluster = RealCluster(self, 3, {"apps": APPS, "cfg": CFG})
        self.expect = self.cluster.expect
        for number, source in enumerate((self.first, self.second), 1):
            self.expect(self.cluster.sync("--append", f"{source}:/apps/v{number}", "127.0.0.1"), 0, "3/3 nodes")
        self.images = [self.cluster.nodes[0].has(f"/apps/v{number}") for number in (1, 2)]

    def read(self, *args: object) -> subprocess.CompletedProcess[str]:
        return reading(self.cluster, *args)

    def same(self, source: Path, copy: Path) -> None:
        self.assertEqual(differences(wanted(shape(source)), shape(copy)), [])
        self.assertEqual([one.name for one in copy.parent.iterdir() if one.name.startswith(".ciruela")], [])

    @shows("A7")
    def test_get(self) -> None:
        """What is got would not be what the nodes have, whatever stands in the way."""
        self._get_refused()
        self._get()
        self._get_goes_on()
        self._verify()
        self._get_from_a_damaged_node()

    def test_tell(self) -> None:
        """What is told of a cluster would not be so: with all nodes up, with one down, while it comes, and when the nodes disagree."""
        self._diff()
        self._ls()
        self._library()
        self._status()
        self._doctor()
        self.cluster.stop(2)
        self._one_is_down()
        self._library("connection refused by ")
        self._status_waits()
        self._doctor_finds_what_differs()

    def _get(self) -> None:
        """A copy would be wrong, half there, or take the place of something."""
        home = self.cluster.home
        self.expect(self.read("get", "127.0.0.1:/apps/v1", "copy"), 0, "copy  ", "received")
        self.same(self.first, home / "copy")
        self.expect(self.read("get", "127.0.0.2:/apps/v1", "copy"), 0, "is this image already")
        self.expect(self.read("get", "127.0.0.2:/apps/v2", "copy"), 1, "copy exists and is another directory", "--replace")
        self.same(self.first, home / "copy")
        self.expect(self.read("get", "127.0.0.2:/apps/v2", "copy", "--replace"), 0, "reused 4.0 MiB")
        self.same(self.second, home / "copy")
        inode = (home / "copy" / "large").stat()
        done = self.read("get", "127.0.0.1,127.0.0.3:/apps/v1", "linked", "--reuse", "copy", "--link", "--image", self.images[0])
        self.expect(done, 0, "reused 4.0 MiB")
        self.same(self.first, home / "linked")
        self.assertEqual((home / "linked" / "large").stat().st_ino, inode.st_ino)
        self.assertEqual((home / "copy" / "large").stat().st_mtime_ns, inode.st_mtime_ns)

    def _get_refused(self) -> None:
        """A mistake would end in a traceback, or in an exit code that a script takes for something else."""
        home = self.cluster.home
        (home / "file").write_text("x")
        for args, code, said in (
            (("127.0.0.1:/apps/v9", "x"), 5, "there is no image at 127.0.0.1:/apps/v9"),
            (("127.0.0.1:/nothing/v9", "x"), 5, "there is no image"),
            (("127.0.0.9:/apps/v1", "x"), 3, "connection refused"),
            (("no-such-name.invalid:/apps/v1", "x"), 3, "cannot be resolved"),
            (("127.0.0.1:/apps/v1", "x", "--image", "ab" * 32), 6, f"is the image {self.images[0]}, not abab"),
            (("127.0.0.1:/apps/v1", "file"), 1, "is something that is no directory"),
            (("127.0.0.1:/apps/v1", "none/x"), 1, "none cannot be read: No such file"),
            (("127.0.0.1:/apps/v1", ".."), 1, "cannot be the name of a new directory"),
            (("127.0.0.1:/apps/v1", "x", "--reuse", "none"), 1, "none cannot be read"),
            (("127.0.0.1:/apps/v1", "x", "--link"), 2, "--link needs --reuse"),
            (("127.0.0.1", "x"), 2, "names no image"),
            (("127.0.0.1:/apps/../x", "x"), 2, "cannot be a component"),
            (("a b:/apps/v1", "x"), 2, "is not a host name"),
        ):
            self.expect(self.read("get", *args), code, said)
        self.assertEqual(sorted(one.name for one in home.iterdir() if one.name != ".cache"), ["file"])

    def _get_goes_on(self) -> None:
        """Whoever is interrupted would begin at nothing, or find half a directory."""
        big = fresh(self)
        noise_file(big / "a", 2, 32 * MIB)
        noise_file(big / "b", 3, 32 * MIB)
        self.expect(self.cluster.sync("--append", f"{big}:/apps/big", "127.0.0.1"), 0, "3/3 nodes")
        home = self.cluster.home
        command = [program("ciruela"), "get", "--port", str(self.cluster.port), "127.0.0.1:/apps/big", "big"]
        client = subprocess.Popen(
            command, cwd=home, env=environment(home), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.addCleanup(client.kill)

        def some() -> bool:
            return client.poll() is not None or any(one.stat().st_blocks for one in home.glob(".ciruela~*/a"))

        self.cluster.until(some, "something was written", poll_s=0.001)
        client.send_signal(signal.SIGINT)
        out, err = client.communicate(timeout=PATIENCE_S)
        self.assertNotIn("Traceback", out + err)
        if client.returncode == 130:
            self.assertIn("run the same command to go on", err)
            self.assertFalse((home / "big").exists())
            self.expect(self.read("get", "127.0.0.1:/apps/big", "big"), 0, "from an earlier run")
        self.same(big, home / "big")

    def _verify(self) -> None:
        """Who looks after a server could not tell whether what stands there is what was uploaded."""
        for node in self.cluster.nodes:
            path = node.path("/apps/v1")
            (index,) = node.db.rglob(f"{self.images[0]}.ds1")
            self.expect(self.read("verify", path, self.images[0]), 0, f"{path} is the image {self.images[0]}")
            self.expect(self.read("verify", path, index), 0, f"is the image {self.images[0]}")
        self.assertEqual(self.read("verify", path).stdout, f"{self.images[0]}\n")
        said = self.expect(self.read("verify", node.path("/apps/v2"), index), 1, "extra    /added", "extra    /sub")
        self.assertIn(f"is not the image {self.images[0]}", said)
        self.expect(self.read("verify", path, self.images[1]), 1, f"other    {self.images[0]} blake3/256")
        self.expect(self.read("verify", path, "ab"), 1, "ab cannot be read", "name an index file")
        self.expect(self.read("verify", path, node.log), 1, "is no index")
        self.expect(self.read("verify", "nothing"), 1, "nothing cannot be read")
        self.expect(self.read("verify"), 2, "usage:")

    def _get_from_a_damaged_node(self) -> None:
        """What rotted on one node would be in the copy, or one bad node would end the copy."""
        path = self.cluster.nodes[0].path("/apps/v1/large")
        self.cluster.expect_from_now("damage", "wrong", "is not as its index says")
        data = bytearray(path.read_bytes())
        data[MIB] ^= 1
        path.write_bytes(data)
        self.expect(self.read("verify", path.parent, self.images[0]), 1, "is not the image")
        self.expect(self.read("get", "127.0.0.1:/apps/v1", "sound"), 0, "sound  ")
        self.same(self.first, self.cluster.home / "sound")

    def _library(self, third: str = "") -> None:
        """The example of the page on the library would not work, or would hide a server that is down."""
        entry = f"127.0.0.1:{self.cluster.port}"
        done = self.cluster.run([sys.executable, str(EXAMPLE), entry, "/apps/v2"])
        said = self.expect(done, 0)
        rows = dict(line.split(": ", 1) for line in done.stdout.splitlines())
        self.assertEqual(list(rows), ["node1", "node2", "node3"])
        self.assertEqual([rows["node1"], rows["node2"]], [self.images[1]] * 2)
        self.assertTrue(rows["node3"].startswith(third or str(self.images[1])), said)

    def _ls(self) -> None:
        """A user could not see what there is, who signed it, or where it is missing."""
        said = self.expect(self.read("ls", "127.0.0.2"), 0, "/apps", "append-only", "/cfg", "replaceable", "3/3")
        self.assertNotIn("!", said)
        said = self.expect(self.read("ls", "127.0.0.2:/apps"), 0, "/apps/v1", "/apps/v2", self.images[0][:12], "SHA256:", "3/3")
        self.assertEqual(len(said.strip().splitlines()), 3)
        done = self.read("ls", "--json", "127.0.0.2:/apps/v2")
        (version, summary) = objects(done)
        self.assertEqual((version["path"], version["image"], version["lacking"]), ("/apps/v2", self.images[1], []))
        self.assertEqual((version["nodes"], summary["exit_code"]), (["node1", "node2", "node3"], 0))
        self.assertTrue(str(version["signers"][0]).startswith("SHA256:"))  # type: ignore[index]
        self.expect(self.read("ls", "127.0.0.1:/cfg"), 0, "/cfg is empty")
        self.expect(self.read("ls", "127.0.0.1:/other"), 5, "no node of 127.0.0.1 has a directory /other", "/apps, /cfg")
        self.expect(self.read("ls", "127.0.0.1:/apps/v9"), 5, "neither a directory nor an image /apps/v9")
        self.expect(self.read("ls", "127.0.0.9:/apps"), 3, "no node of 127.0.0.9 answered")

    def _status(self) -> None:
        """Nobody could tell whether a release is everywhere."""
        self.expect(self.read("status", "127.0.0.1"), 0, "3/3 nodes are up", "node2")
        self.expect(self.read("status", "127.0.0.1:/apps/v1"), 0, "committed", "3/3 nodes", self.images[0])
        self.expect(self.read("status", "127.0.0.1:/apps/v1", "--image", "ab" * 32), 3, "other image", "0/3 nodes")
        self.expect(self.read("status", "127.0.0.1:/apps/v9"), 3, "missing", "0/3 nodes")
        self.expect(self.read("status", "127.0.0.1:/other/v9"), 5, "no node of 127.0.0.1 takes /other/v9")
        self.expect(self.read("status", "127.0.0.1", "--wait"), 2, "--wait and --image need a path")
        self.expect(self.read("status", "127.0.0.1:/apps/v1", "--require", "0"), 2, "is not all, a number of nodes")
        self.expect(self.read("status", "127.0.0.1:/apps/v9", "--wait", "-t", "2s"), 3, "not on enough nodes after 0:02")

    def _one_is_down(self) -> None:
        """A script would take a part for the whole."""
        self.expect(self.read("ls", "-v", "127.0.0.1:/apps"), 0, "2/3, not on node3", "connection refused", self.images[0])
        self.expect(self.read("status", "127.0.0.1"), 3, "2/3 nodes are up", "unreachable")
        done = self.read("status", "--json", "127.0.0.1:/apps/v1")
        nodes, summary = objects(done)[:-1], objects(done)[-1]
        self.assertEqual([one["state"] for one in nodes], ["committed", "committed", "unreachable"])
        self.assertEqual((done.returncode, summary["outcome"], summary["committed"], summary["expected"]), (3, "incomplete", 2, 3))
        self.expect(self.read("status", "127.0.0.1:/apps/v1", "--require", "2"), 0, "2/3 nodes")
        self.expect(self.read("status", "127.0.0.1:/apps/v1", "--require", "60%"), 0, "2/3 nodes")

    def _status_waits(self) -> None:
        """A deployment would go on before the last server has it."""
        third = small_tree(fresh(self), {"x": "3"})
        self.expect(
            self.cluster.sync("--append", f"{third}:/apps/v3", "127.0.0.1", "-e", "0s", "--early-hosts", "2", "--early-fraction", "0"), 0
        )
        command = [program("ciruela"), "status", "--wait", "--port", str(self.cluster.port), "127.0.0.1:/apps/v3"]
        client = subprocess.Popen(command, cwd=self.cluster.home, env=environment(self.cluster.home), stdout=subprocess.PIPE, text=True)
        self.addCleanup(client.kill)
        self.cluster.start(2)
        out, _ = client.communicate(timeout=PATIENCE_S)
        self.assertEqual(client.returncode, 0, out)
        self.assertIn("3/3 nodes", out)

    def _diff(self) -> None:
        """A release would go out with a change that nobody saw."""
        left = small_tree(self.cluster.home / "left", {"a": "1", "gone": "x", "sub/f": "same"})
        right = small_tree(self.cluster.home / "right", {"a": "12", "sub/f": "same", "sub/n": "new"})
        (right / "sub/f").chmod(0o755)
        os.symlink("a", right / "link")
        said = self.expect(self.read("diff", "left", "right"), 1, "~ /a  1 B, now 2 B", "- /gone  1 B", "+ /link  -> a", "m /sub/f")
        self.assertIn("2 added, 1 removed, 1 changed, 1 mode", said)
        self.expect(self.read("diff", "left", "left"), 0, "the same image")
        index = subprocess.run([program("ciruela"), "index", left], capture_output=True, env=environment(self.cluster.home)).stdout
        (self.cluster.home / "left.ds1").write_bytes(index)
        self.expect(self.read("diff", "left.ds1", "left"), 0)
        self.expect(self.read("diff", self.first, "127.0.0.1:/apps/v1"), 0, "the same image")
        done = self.read("diff", "--json", "127.0.0.1:/apps/v1", "127.0.0.2:/apps/v2")
        summary = objects(done)[-1]
        self.assertEqual((done.returncode, summary["left"], summary["right"], summary["new_bytes"]), (1, *self.images, 4))
        self.assertIn({"type": "added", "path": "/added", "before_bytes": None, "after_bytes": 3}, objects(done))
        self.expect(self.read("diff", "left", "none"), 2, "none cannot be read")
        self.expect(self.read("diff", "left", "127.0.0.1:/apps/v9"), 2, "there is no image at")
        self.expect(self.read("diff", "left", "127.0.0.9:/apps/v1"), 2, "connection refused")
        self.expect(self.read("diff", "left", "right/a"), 2, "is no index")
        self.expect(self.read("diff", "left"), 2, "usage:")

    def _doctor(self) -> None:
        """What is wrong with a cluster would be found by an upload that fails."""
        key = str(self.cluster.key)
        self.expect(self.read("doctor", "127.0.0.1", "-i", key), 0, "ok", "every node hears every other", "you may upload with SHA256:")
        other = self.cluster.top / "other"
        make_key(other)
        self.expect(self.read("doctor", "127.0.0.1", "-i", other), 0, "none of your keys may upload there", "->")
        self.expect(self.read("doctor", "127.0.0.1", "-i", "none"), 2, "none: it cannot be read")
        self.expect(self.read("doctor", "127.0.0.9"), 3, "no node of 127.0.0.9 answered")
        self.expect(self.read("doctor", "127.0.0.1:/apps"), 2, "a path has no place here")
        done = self.read("doctor", "--json", "127.0.0.1,no-such-name.invalid", "-i", key)
        self.assertEqual(done.returncode, 1)
        self.assertIn(("fail", "name"), [(one.get("level"), one.get("check")) for one in objects(done)])

    def _doctor_finds_what_differs(self) -> None:
        """An upload would fail on one node only, and nobody would know why."""
        key = str(self.cluster.key)
        node = self.cluster.nodes[1]
        self.cluster.stop(1)
        path = node.config / "configs" / "cfg.yaml"
        path.write_text(path.read_text().replace("append-only: false", "append-only: true"))
        (node.config / "master.key").write_text(make_key(self.cluster.top / "third"))
        (node.config / "master.key").chmod(0o644)
        self.cluster.start(1)
        self.expect(self.read("doctor", "127.0.0.1", "-i", key), 1, "append-only differs", "FAIL", "and others do not")
        self.cluster.stop(1)
        self.expect(self.read("doctor", "127.0.0.1", "-i", key), 1, "FAIL  tcp", "node2", "connection refused")


class KeygenTests(SynchronousTestCase):
    """A key is made once, and nobody else can read it."""

    def run_it(self, home: Path, *args: str) -> subprocess.CompletedProcess[str]:
        command = [program("ciruela"), "keygen", *args]
        return subprocess.run(
            command, cwd=home, env=environment(home), stdin=subprocess.DEVNULL, capture_output=True, text=True, start_new_session=True
        )

    def test_keygen(self) -> None:
        """A key would be readable by others, or take the place of one in use; or servers and ssh would not understand it."""
        home = fresh(self)
        done = self.run_it(home, "--no-passphrase", "--comment", "ops")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("master.key", done.stderr)
        key = home / ".ciruela" / "id_ed25519"
        self.assertEqual(key.stat().st_mode & 0o777, 0o600)
        public = key.with_name("id_ed25519.pub").read_text()
        self.assertTrue(re.fullmatch(r"ssh-ed25519 [A-Za-z0-9+/=]+ ops\n", public), public)
        self.assertEqual(done.stdout, public)
        before = key.read_bytes()
        done = self.run_it(home, "--no-passphrase")
        self.assertEqual((done.returncode, key.read_bytes()), (1, before))
        self.assertIn("exists and is not overwritten", done.stderr)
        (home / "b.pub").write_text("x")
        self.assertEqual(self.run_it(home, "--no-passphrase", "b").returncode, 1)
        self.assertFalse((home / "b").exists())
        done = self.run_it(home, "c")
        self.assertEqual(done.returncode, 2)
        self.assertIn("no terminal to ask for a passphrase", done.stderr)
        done = self.run_it(home, "--no-passphrase", "none/c")
        self.assertEqual(done.returncode, 0)
        self.assertEqual((home / "none").stat().st_mode & 0o777, 0o700)
        self.assertEqual(self.run_it(home, "--no-passphrase", "x/").returncode, 2)

    def test_key_signs(self) -> None:
        """A new key would not do what it is made for."""
        home = fresh(self)
        self.assertEqual(self.run_it(home, "--no-passphrase", "k").returncode, 0)
        cluster = RealCluster(self, 3, down=(0, 1, 2))
        for node in cluster.nodes:
            (node.config / "master.key").write_text((home / "k.pub").read_text())
        cluster.start(0, 1, 2)
        source = small_tree(fresh(self), {"a": "1"})
        cluster.expect(cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1", key=home / "k"), 0, "3/3 nodes")
