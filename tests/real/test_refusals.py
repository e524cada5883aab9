"""What real daemons and clients refuse, the reason they give, and the exit code that a script sees."""

from __future__ import annotations

import sys
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.daemons import APPS, CFG, RealCluster, make_key, program
from tests.real.trees import small_tree

AN_HOUR_AGO = """
import sys, time
now = time.time
time.time = lambda: now() - 3600
from ciruela.client.main import main_sync
sys.exit(main_sync())
"""


class RefusalTests(SynchronousTestCase):
    """Each refusal leaves everything as it was, and says why."""

    def source(self, text: str) -> Path:
        """A new directory with one file."""
        return small_tree(Path(self.mktemp()).absolute(), {"file": text})

    @shows("A11", "A17", "I4", "I7")
    def test_who_and_where(self) -> None:
        """Somebody without a key could change servers, or a mistyped path would not be told from success."""
        cluster = RealCluster(self, 2, {"apps": APPS})
        source = self.source("x")
        stranger = cluster.top / "stranger"
        make_key(stranger)
        unknown = cluster.begin_sync("--append", f"{source}:/apps/v1", "127.0.0.1", key=stranger)
        nowhere = cluster.begin_sync("--append", f"{source}:/other/v1", "127.0.0.1")
        deep = cluster.begin_sync("--append", f"{source}:/apps/shop/v1", "127.0.0.1")
        replace = cluster.begin_sync("--replace", f"{source}:/apps/v1", "127.0.0.1")
        cluster.expect(cluster.finish(unknown), 5, "/apps/v1  REJECTED", "0/2 nodes", "signature_mismatch")
        cluster.expect(cluster.finish(nowhere), 5, "/other/v1  REJECTED", "no_config")
        cluster.expect(cluster.finish(deep), 5, "/apps/shop/v1  REJECTED", "config_level_mismatch")
        cluster.expect(cluster.finish(replace), 5, "/apps/v1  REJECTED", "dir_is_append_only")
        for node in cluster.nodes:
            self.assertEqual(list((node.data / "apps").iterdir()), [])
        done = cluster.sync("--append", f"{source}:/apps/v1", "--append", f"{source}:/other/v1", "127.0.0.1")
        cluster.expect(done, 5, "/apps/v1   DONE", "/other/v1  REJECTED", "no_config")
        for node in cluster.nodes:
            self.assertEqual([path.name for path in (node.data / "apps").iterdir()], ["v1"])
        cluster.same(source, "/apps/v1")

    def test_other_content(self) -> None:
        """A version that was published could change silently, or a script could not tell "somebody was first" from a failure."""
        cluster = RealCluster(self, 1, {"apps": APPS})
        first, other = self.source("first"), self.source("other")
        cluster.expect(cluster.sync("--append", f"{first}:/apps/v1", "127.0.0.1"), 0, "DONE", "1/1 nodes")
        cluster.expect(cluster.sync("--append", f"{other}:/apps/v1", "127.0.0.1"), 6, "/apps/v1  REJECTED", "already_exists")
        cluster.expect(cluster.sync("--append-weak", f"{other}:/apps/v1", "127.0.0.1"), 0, "/apps/v1  DONE", "1/1 nodes")
        cluster.expect(cluster.sync("--append", f"{first}:/apps/v1", "127.0.0.1"), 0, "/apps/v1  DONE", "sent 0 B")
        cluster.same(first, "/apps/v1")

    def test_replace(self) -> None:
        """An old request, sent again or late, would undo a newer one; or a release would replace what its author never saw."""
        cluster = RealCluster(self, 1, {"cfg": CFG})
        node = cluster.nodes[0]
        one, two, three, old = (self.source(text) for text in ("one", "two", "three", "old"))
        cluster.expect(cluster.sync("--replace", f"{one}:/cfg/main", "127.0.0.1"), 0, "DONE", "1/1 nodes")
        first = node.has("/cfg/main")
        cluster.expect(cluster.sync("--replace", f"{two}:/cfg/main:{first}", "127.0.0.1"), 0, "DONE", "1/1 nodes")
        cluster.same(two, "/cfg/main")
        done = cluster.sync("--replace", f"{three}:/cfg/main:{first}", "127.0.0.1")
        cluster.expect(done, 6, "/cfg/main  REJECTED", "replace_doesnt_match")
        late = cluster.run(
            [
                *(sys.executable, "-c", AN_HOUR_AGO, "--port", str(cluster.port), "-i", str(cluster.key)),
                *("--replace", f"{old}:/cfg/main", "127.0.0.1"),
            ]
        )
        cluster.expect(late, 6, "/cfg/main  REJECTED", "stale_timestamp")
        cluster.same(two, "/cfg/main")
        cluster.expect(cluster.sync("--replace", f"{three}:/cfg/main", "127.0.0.1"), 0, "DONE", "1/1 nodes")
        cluster.same(three, "/cfg/main")

    @shows("F54", "I7")
    def test_own_mistakes(self) -> None:
        """A mistake on the user's side would look like one of the servers, or end in a traceback."""
        cluster = RealCluster(self, 1)
        source = self.source("x")
        order = ("--append", f"{source}:/apps/v1", "127.0.0.1")

        bad = cluster.top / "bad"
        bad.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nnonsense\n-----END OPENSSH PRIVATE KEY-----\n")
        unnamed = self.source("y")
        (unnamed / "\udcff").write_text("")
        for client, code, text in [
            (
                cluster.begin_sync("--append", f"{source}/nowhere:/apps/v1", "127.0.0.1"),
                1,
                "nowhere cannot be read: No such file or directory",
            ),
            (cluster.begin_sync("--append", f"{source}/file:/apps/v1", "127.0.0.1"), 1, "is not a directory"),
            (cluster.begin_sync("--append", f"{unnamed}:/apps/v1", "127.0.0.1"), 1, "UTF-8"),
            (cluster.begin_sync(*order, key=bad), 2, f"{bad}: "),
            (cluster.begin_sync(*order, key=cluster.top / "no key"), 2, "no key: it cannot be read: No such file or directory"),
            (cluster.begin_sync("--append", f"{source}:apps/v1", "127.0.0.1"), 2, "is not SRC:DEST"),
            (cluster.begin_sync("--append", f"{source}:/apps/v1"), 2, "no ENTRY_POINT"),
        ]:
            cluster.expect(cluster.finish(client), code, text)
        keyless = cluster.run([program("ciruela-sync"), "--port", str(cluster.port), *order])
        cluster.expect(keyless, 2, "no key was found")
        self.assertEqual(cluster.nodes[0].get("/list-dir/apps"), {})

        cluster.stop(0)
        done = cluster.sync("-t", "2s", *order)
        cluster.expect(done, 3, "/apps/v1  FAILED", "connection refused by 127.0.0.1", "out of time")
