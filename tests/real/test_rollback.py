"""``ciruela rollback`` with real daemons."""

from __future__ import annotations

import json
from pathlib import Path

from ciruela.keys.public import parse_public
from tests.proof import shows
from tests.real.daemons import RealCluster, make_key
from tests.real.test_removal import Commands

CFG = "append-only: false\nnum-levels: 1\nkeep-replaced: 1\n"


class RollbackTests(Commands):
    """A release that should not have been."""

    def test_rollback(self) -> None:
        """An operator would need the old files, at the moment when all is broken."""
        first, second = self.tree(app="good", same="same" * 100_000), self.tree(app="bad", same="same" * 100_000)
        cluster = RealCluster(self, 3, {"cfg": CFG})
        cluster.expect(self.ciruela(cluster, "rollback", "--yes", "127.0.0.1:/cfg/main"), 5, "nothing is there")
        cluster.expect(cluster.sync("--replace", f"{first}:/cfg/main", "127.0.0.1"), 0, "3/3 nodes")
        old = cluster.nodes[0].has("/cfg/main")
        cluster.expect(self.ciruela(cluster, "rollback", "--yes", "127.0.0.1:/cfg/main"), 5, "keeps a replaced image")
        cluster.expect(cluster.sync("--replace", f"{second}:/cfg/main", "127.0.0.1"), 0, "3/3 nodes")
        new = cluster.nodes[0].has("/cfg/main")
        listed = self.ciruela(cluster, "rollback", "--list", "127.0.0.1:/cfg/main")
        cluster.expect(listed, 0, f"Now at /cfg/main: {new}, signed 20", "kept by 3 of 3 nodes that were asked")
        self.assertTrue(listed.stdout.startswith(f"{old}  signed 20"), listed.stdout)
        for path in first.iterdir():
            path.unlink()
        first.rmdir()
        before = [node.received() for node in cluster.nodes]
        done = self.ciruela(cluster, "rollback", "--yes", "127.0.0.2:/cfg/main")
        cluster.expect(done, 0, f"Going back to: {old}", "127.0.0.2 /cfg/main  DONE", "3/3 nodes", "sent 0 B")
        for node, already in zip(cluster.nodes, before, strict=True):
            self.assertEqual(node.has("/cfg/main"), old)
            self.assertEqual((node.path("/cfg/main") / "app").read_text(), "good")
            self.assertEqual(node.received(), already, "it was fetched although it was there")
        cluster.expect(self.ciruela(cluster, "rollback", "-y", "127.0.0.1:/cfg/main", new), 0, "DONE", "3/3 nodes")
        cluster.same(second, "/cfg/main")
        done = self.ciruela(cluster, "remove", "--yes", "127.0.0.1:/cfg/main")
        cluster.expect(done, 0, "DONE", "3/3 nodes")
        for node in cluster.nodes:
            cluster.until(lambda node=node: not list((node.data / "cfg").iterdir()), f"{node.name} keeps nothing")  # type: ignore[misc]

    @shows("S1")
    def test_refused(self) -> None:
        """A mistake would take the cluster to another image than was meant."""
        first, second = self.tree(a="1"), self.tree(a="2")
        cluster = RealCluster(self, 2, {"cfg": CFG})
        for source in (first, second):
            cluster.expect(cluster.sync("--replace", f"{source}:/cfg/main", "127.0.0.1"), 0, "2/2 nodes")
        new = cluster.nodes[0].has("/cfg/main")
        stranger = cluster.top / "stranger"
        make_key(stranger)
        cluster.expect(self.ciruela(cluster, "rollback", "127.0.0.1:/cfg/main"), 2, "give --yes")
        done = self.ciruela(cluster, "rollback", "-y", "127.0.0.1:/cfg/main", key=stranger)
        mine = self.fingerprint(cluster)
        cluster.expect(done, 5, "is not verified, so nothing was signed", "1 signature, none of them by a trusted key", "--trusted-keys")
        done = self.ciruela(cluster, "rollback", "-y", "--unverified", "127.0.0.1:/cfg/main", key=stranger)
        cluster.expect(done, 5, "NOT VERIFIED", "signature_mismatch")
        done = self.ciruela(cluster, "remove", "-y", "127.0.0.1:/cfg/main", key=stranger)
        cluster.expect(done, 5, "is not verified", f"The servers say that {mine} signed it")
        cluster.expect(self.ciruela(cluster, "remove", "-y", "127.0.0.1:/cfg"), 5, "images of /cfg are at /cfg/NAME")
        cluster.expect(self.ciruela(cluster, "remove", "-y", "127.0.0.1:/cfg/a/b"), 5, "has too many components")
        cluster.expect(self.ciruela(cluster, "rollback", "-y", "127.0.0.1:/cfg/main", new), 5, "is there already")
        done = self.ciruela(cluster, "rollback", "-y", "127.0.0.1:/cfg/main", "0" * 64)
        cluster.expect(done, 5, "none of the nodes that were asked keeps 000", "can be gone back to: ")
        cluster.expect(self.ciruela(cluster, "rollback", "-y", "127.0.0.1:/cfg/main", "xyz"), 2, "an image id is 64 hexadecimal digits")
        cluster.expect(self.ciruela(cluster, "rollback", "-y", "127.0.0.1:/nope/main"), 3, "No such config")
        cluster.same(second, "/cfg/main")
        self._several_people(cluster, second)

    def fingerprint(self, cluster: RealCluster) -> str:
        """That of the key of the cluster."""
        return parse_public((cluster.nodes[0].config / "master.key").read_text()).fingerprint()

    def _several_people(self, cluster: RealCluster, source: Path) -> None:
        """Those who share a cluster could not change each other's releases, or would sign whatever a server shows."""
        mine, colleague = (cluster.nodes[0].config / "master.key").read_text(), cluster.top / "colleague"
        public = make_key(colleague)
        for node in cluster.nodes:
            (node.config / "master.key").write_text(mine + public)
        trusted = cluster.top / "trusted"
        trusted.write_text(mine)
        (source / "a").write_text("3")
        put = ("put-file", "-d", "/cfg/main", "-f", "/a", "-s", source / "a", "127.0.0.1")
        cluster.expect(self.ciruela(cluster, *put, key=colleague), 5, "is not verified")
        done = self.ciruela(cluster, *put, "--trusted-keys", trusted, key=colleague)
        cluster.expect(done, 0, f"verified by {self.fingerprint(cluster)}", "2/2 nodes")
        cluster.same(source, "/cfg/main")
        # What the colleague signed is not to be changed by me, but what I signed I may go back to.
        cluster.expect(self.ciruela(cluster, *put), 5, "is not verified")
        done = self.ciruela(cluster, "rollback", "-y", "--json", "127.0.0.2:/cfg/main")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        *_, last = map(json.loads, done.stdout.splitlines())
        self.assertEqual((last["type"], last["outcome"], last["uploads"][0]["path"]), ("summary", "done", "/cfg/main"))
        pinned = cluster.home / ".config" / "ciruela" / "trusted_keys"
        pinned.parent.mkdir(parents=True)
        pinned.write_text(public)
        done = self.ciruela(cluster, "rollback", "-y", "127.0.0.1:/cfg/main")
        cluster.expect(done, 0, f"verified by {parse_public(public).fingerprint()}", "2/2 nodes")
        cluster.same(source, "/cfg/main")
        where = ("-d", "/cfg/main", "-f", "/a", "--editor", "sh -c 'echo 4 > $0'", "127.0.0.1")
        cluster.expect(self.ciruela(cluster, "edit", *where), 0, f"verified by {self.fingerprint(cluster)}", "2/2 nodes")
        done = self.ciruela(cluster, "remove", "-y", "--json", "127.0.0.1:/cfg/main")
        self.assertEqual((done.returncode, json.loads(done.stdout.splitlines()[-1])["outcome"]), (0, "done"), done.stderr)
