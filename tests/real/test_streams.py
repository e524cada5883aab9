"""The programs with standard streams that are closed, full, or without a reader."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.daemons import RealCluster, program
from tests.real.trees import small_tree


class StreamTests(SynchronousTestCase):
    """Own trouble is not told as the job's, and a closed stream is none at all."""

    def setUp(self) -> None:
        self.source = small_tree(Path(self.mktemp()).absolute(), {"file": "x"})

    def shell(self, rest: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of ``ciruela index SOURCE`` followed by ``rest`` of a shell line."""
        line = f'"$0" index --no-cache "$1" {rest}'
        command = ["sh", "-c", line, program("ciruela"), str(self.source)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout, done.stderr

    @shows("K8.1")
    def test_closed(self) -> None:
        """A cron job that closes a stream would do nothing, or report an internal error for what was done."""
        for rest in ("2>&-", "<&-", "<&- 2>&-"):
            code, out, err = self.shell(rest)
            self.assertEqual((code, out.partition(" ")[0]), (0, "DIRSIGNATURE.v1"), err)
        code, out, err = self.shell(">&-")
        self.assertEqual((code, out, err.count("\n")), (0, "", 1))

    @shows("K8.1")
    def test_daemon(self) -> None:
        """The first connection would get the number of stderr, and be sent what is meant for people."""
        cluster = RealCluster(self, 1, down=[0])
        cluster.nodes[0].wrapper = ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-']
        cluster.start(0)
        held = [os.readlink(f"/proc/{cluster.pid(0)}/fd/{number}") for number in range(3)]
        self.assertEqual(held, [os.devnull] * 3)

    @shows("K8.2")
    def test_full_and_unread(self) -> None:
        """A full disk of the log would read like a full server, and a pager that is left like an error."""
        code, _, err = self.shell(">/dev/full")
        self.assertEqual((code, err.splitlines()[-1]), (1, "ciruela: standard output: no space left on device"))
        read, write = os.pipe()
        os.close(read)
        with open(write, "wb") as unread:
            command = [program("ciruela"), "index", "-q", str(self.source)]
            done = subprocess.run(command, stdout=unread, stderr=subprocess.PIPE, timeout=60, check=False)
        self.assertEqual((done.returncode, done.stderr), (141, b""))
