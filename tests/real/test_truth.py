"""What a user is told when things go wrong: the exit code of the reference, one line with host, path and reason, never a traceback (F54).

What is refused, and mistakes of the user, are in ``test_refusals``.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.ids import ImageId, MachineId
from ciruela.proto.messages import AppendDir, BlockHint, GetBaseDir, GetBlock, GetIndex, ReceivedImage, UploadAck
from tests.proof import shows
from tests.real.daemons import APPS, RealCluster, RealNode, make_key
from tests.real.liar import Liar, Talk
from tests.real.trees import noise_file, small_tree

MIB = 1024 * 1024
PATH = "/apps/v1"
OTHER_IMAGE = ImageId(b"other" + bytes(27))
FILES = 300
"""More than the client has open at a time: what is open can be read to its end, whatever becomes of its name."""

LIAR = MachineId(b"liar" + bytes(12))
NO_BASE = ("given up: cant_create_directory", "apps: No such file or directory")
"""What the log of a node says whose base dir is missing."""

MADE_UP = 200
"""Machines that a lying server speaks of: many more than there are."""


def invented(number: int) -> MachineId:
    """A machine that does not exist."""
    return MachineId(b"made up " + number.to_bytes(8, "big"))


class Truth(SynchronousTestCase):
    """Sources, and uploads in their middle."""

    def small(self) -> Path:
        """A directory that is uploaded in no time."""
        return small_tree(Path(self.mktemp()).absolute(), {"file": "content"})

    def large(self, seed: int) -> Path:
        """A directory that takes a moment."""
        top = small_tree(Path(self.mktemp()).absolute(), {"first": "first"})
        for number in range(FILES):
            noise_file(top / f"large{number}", seed * 1000 + number, 48 * MIB // FILES)
        return top

    def line(self, said: str, *parts: str) -> str:
        """The one line that has all ``parts``."""
        found = [line for line in said.splitlines() if all(part in line for part in parts)]
        self.assertTrue(found, f"no line has {parts}:\n{said}")
        return found[0]

    def in_its_middle(self, cluster: RealCluster, client: subprocess.Popen[str], node: RealNode, vpath: str) -> None:
        """Hold the node, once it has a part of the image."""

        def written() -> bool:
            if client.poll() is not None:
                raise AssertionError(cluster.finish(client))
            return sum(path.stat().st_blocks for path in (node.data / "apps").glob(".ciruela~*/large*")) * 512 >= MIB

        cluster.until(written, f"{node.name} fetches", poll_s=0.002)
        node_number = cluster.nodes.index(node)
        cluster.signal(node_number, signal.SIGSTOP)
        self.assertFalse(node.path(vpath).exists(), "too late")


class OwnSideTests(Truth):
    """What happens where the client runs."""

    @shows("F54", "I7")
    def test_interrupted(self) -> None:
        """Who interrupts an upload would not know whether the servers go on with it, and a script not that it was interrupted."""
        cluster = RealCluster(self, 1)
        (node,) = cluster.nodes
        for number, (what, code) in enumerate(((signal.SIGINT, 130), (signal.SIGTERM, 143)), 1):
            vpath = f"/apps/v{number}"
            client = cluster.begin_sync("--append", f"{self.large(number)}:{vpath}", "127.0.0.1")
            self.in_its_middle(cluster, client, node, vpath)
            client.send_signal(what)
            said = cluster.expect(cluster.finish(client), code)
            self.line(said, "127.0.0.1", vpath, "accepted by node1, but no node is known to have all of it; run the same command again")
            cluster.signal(0, signal.SIGCONT)
            cluster.until(lambda vpath=vpath: vpath in node.get("/downloading/"), "the node still wants it")  # type: ignore[misc]
            cluster.until(lambda: node.get("/healthz")["status"] == "ok", "the node is well")
            self.forget(node)

    def forget(self, node: RealNode) -> None:
        """What the next case looks at must be its own."""
        for path in (node.data / "apps").glob(".ciruela~*/large*"):
            path.unlink()

    @shows("F54", "I7")
    def test_source_changes(self) -> None:
        """An upload whose files change under it would hang, or end in a traceback, or be reported as done."""
        cluster = RealCluster(self, 1)
        (node,) = cluster.nodes

        def overwritten(path: Path) -> None:
            noise_file(path, 99, path.stat().st_size)

        def shrunk(path: Path) -> None:
            os.truncate(path, 1000)

        for number, change in enumerate((overwritten, shrunk, Path.unlink), 1):
            vpath, source = f"/apps/v{number}", self.large(number)
            client = cluster.begin_sync("--append", f"{source}:{vpath}", "127.0.0.1")
            self.in_its_middle(cluster, client, node, vpath)
            for path in source.glob("large*"):
                change(path)
            cluster.signal(0, signal.SIGCONT)
            said = cluster.expect(cluster.finish(client), 1, f"{vpath}  FAILED")
            self.line(said, f"{source}/large", "changed or vanished since it was indexed; run the command again")
            self.assertFalse(node.path(vpath).exists(), "a mixture is visible")
            self.forget(node)


class NodesTests(Truth):
    """Some nodes do what they should, others do not."""

    @shows("F54", "F30", "I7")
    def test_some_cannot(self) -> None:
        """A release that is missing on some servers would pass for one that is everywhere, or nobody would know where and why."""
        faults = [*NO_BASE, "signed by no key that is configured here"]
        cluster = RealCluster(self, 3, down=range(3), expect_errors=faults)
        _, strict, bare = cluster.nodes
        (strict.config / "master.key").write_text(make_key(cluster.top / "another key"))
        (bare.data / "apps").rmdir()
        cluster.start(0, 1, 2)
        order = ("-t", "20s", "-e", "1s", "--early-fraction", "1")
        for number, entries in enumerate((["127.0.0.1"], ["-m", "127.0.0.1", "127.0.0.2", "127.0.0.3"]), 1):
            source, vpath = self.small(), f"/apps/v{number}"
            done = cluster.sync(*order, "--append", f"{source}:{vpath}", *entries)
            said = cluster.expect(done, 5, f"{vpath}  FAILED", "1/3 nodes")
            self.line(said, "127.0.0.2", vpath, "signature_mismatch")
            self.line(said, "node3", vpath, "cant_create_directory: ", "No such file or directory (is the disk mounted?")
            cluster.same(source, vpath, 0)
            self.assertFalse(strict.path(vpath).exists() or bare.path(vpath).exists())

    @shows("F54", "I7")
    def test_silent_server(self) -> None:
        """A server that hangs would hold a deployment up for ever, or past the time that it was given."""
        cluster = RealCluster(self, 1)
        cluster.signal(0, signal.SIGSTOP)
        done = cluster.sync("-t", "4s", "--append", f"{self.small()}:{PATH}", "127.0.0.1", timeout=15)
        said = cluster.expect(done, 3, f"{PATH}  FAILED", "out of time")
        self.line(said, "no answer from 127.0.0.1", "trying again")


class LiarTests(Truth):
    """Servers that do not tell the truth."""

    def told(self, said: Callable[[Talk, AppendDir], None], *options: str) -> tuple[Liar, subprocess.CompletedProcess[str], RealCluster]:
        """One run of the client against a liar only."""
        cluster = RealCluster(self, 1, down=[0])
        liar = Liar(self, "127.0.0.1", cluster.port, said)
        done = cluster.sync(*options, "--append", f"{self.small()}:{PATH}", "127.0.0.1")
        return liar, done, cluster

    @shows("F54", "A29", "I7")
    def test_hangs_up(self) -> None:
        """A server that ends each connection would be asked without a pause, or end the client."""
        liar, done, cluster = self.told(lambda talk, _: talk.hang_up(), "-t", "4s")
        cluster.expect(done, 3, f"{PATH}  FAILED", "out of time")
        self.assertIn(liar.orders, range(2, 6), "it is asked again, and not without end")

    @shows("F54", "A29", "I7")
    def test_other_image_and_path(self) -> None:
        """News of another version, or of another directory, would be taken for the arrival of this one."""

        def said(talk: Talk, order: AppendDir) -> None:
            talk.answer(UploadAck(True, None, {}))
            talk.tell(ReceivedImage(OTHER_IMAGE, order.path, LIAR, "liar", False))
            talk.tell(ReceivedImage(order.image, "/apps/other", LIAR, "liar", False))

        _, done, cluster = self.told(said, "-t", "3s", "-e", "1s")
        cluster.expect(done, 3, f"{PATH}  FAILED  ", "0/1 nodes", "out of time: 0 nodes have it")

    @shows("F54", "A29", "A24", "I7", "I8")
    def test_nonsense(self) -> None:
        """A broken server would end the client with a traceback, or get files that were never published."""
        served: list[int] = []

        def said(talk: Talk, order: AppendDir) -> None:
            talk.ask(GetIndex(OTHER_IMAGE, None))
            talk.ask(GetBaseDir("/apps"))
            talk.ask(GetBlock(b"x" * 32, BlockHint(PATH, "/../../etc/passwd", 0)))  # type: ignore[arg-type]
            talk.ask(AppendDir("/apps/yours", order.image, order.timestamp_ms, order.signatures))
            served.append(talk.number)
            talk.raw(b"\xff\xff not CBOR")

        _, done, cluster = self.told(said, "-t", "3s")
        cluster.expect(done, 3, f"{PATH}  FAILED", "out of time")
        self.assertTrue(served)

    @shows("F54", "A29", "I7")
    def test_made_up_machines(self) -> None:
        """One lying server would turn a release that half of the others did not take into a success: it speaks of servers that are none."""

        def said(talk: Talk, order: AppendDir) -> None:
            talk.answer(UploadAck(True, None, {invented(number): f"made-up-{number}" for number in range(MADE_UP)}))
            talk.tell(ReceivedImage(order.image, order.path, LIAR, "liar", False))
            for number in range(MADE_UP):
                talk.tell(ReceivedImage(order.image, order.path, invented(number), f"made-up-{number}", True))

        cluster = RealCluster(self, 3, {"apps": APPS}, down=[0, 1, 2], groups=[[0, 1]], expect_errors=NO_BASE)
        (cluster.nodes[1].data / "apps").rmdir()
        cluster.start(0, 1)
        Liar(self, "127.0.0.3", cluster.port, said)
        done = cluster.sync("-t", "5s", "-e", "1s", "-m", "--append", f"{self.small()}:{PATH}", "127.0.0.1", "127.0.0.2", "127.0.0.3")
        said_to_user = cluster.expect(done, 3, f"{PATH}  FAILED")
        self.line(said_to_user, "node2", PATH, "cant_create_directory: ")
