"""A node that is flooded with connections, or has few descriptors, and what its clients notice of it: nothing."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.daemons import APPS, CFG, RealCluster, RealNode
from tests.real.trees import noise_file, small_tree

MIB = 1024 * 1024
FLOOD = 200

SPACE_BYTES = 1024 * MIB
"""Address space of a daemon (threats G15)."""

MEMORY_BYTES = 512 * MIB
"""What it may really use of it (threats G15)."""


def flood(node: RealNode, count: int, said: bytes) -> tuple[list[socket.socket], int]:
    """Connect ``count`` times and say the beginning of something. Gives the connections, and how many were closed at once."""
    held = []
    for _ in range(count):
        one = socket.socket()
        one.settimeout(5)
        try:
            one.connect((node.host, node.port))
            one.sendall(said)
        except OSError:
            one.close()
            continue
        one.setblocking(False)
        held.append(one)
    return held, count - len(held)


def still_open(held: list[socket.socket]) -> int:
    """How many of the connections the node has not closed."""
    left = 0
    for one in held:
        try:
            while one.recv(65536):
                pass
        except BlockingIOError:
            left += 1
        except OSError:
            continue
    return left


class LimitsTests(SynchronousTestCase):
    """Real sockets, real descriptors."""

    def large(self) -> Path:
        top = Path(self.mktemp()).absolute()
        top.mkdir(parents=True)
        small_tree(top, {f"small{number}": "x" for number in range(20)})
        noise_file(top / "large", 5, 24 * MIB)
        return top

    def held(self, node: RealNode, count: int, said: bytes = b"") -> list[socket.socket]:
        held, _ = flood(node, count, said)
        for one in held:
            self.addCleanup(one.close)
        return held

    @shows("A41", "F32", "I8")
    def test_few_descriptors(self) -> None:
        """With 128 descriptors and 200 connections that say nothing, an upload arrives, and the node says what it did about it."""
        cluster = RealCluster(self, 1, down=(0,))
        (node,) = cluster.nodes
        node.wrapper = ["sh", "-c", 'ulimit -n 128 && exec "$@"', "sh"]
        cluster.start(0)
        client = cluster.begin_sync("--append", f"{self.large()}:/apps/v1", "127.0.0.1")
        cluster.until(lambda: node.received() > MIB, "the upload runs")
        held = self.held(node, FLOOD)
        cluster.expect(cluster.finish(client), 0)
        self.assertTrue(node.has("/apps/v1"))
        self.assertLessEqual(still_open(held), 64)
        cluster.until(lambda: not still_open(held), "who said nothing is sent away")
        log = node.log.read_text()
        self.assertIn("64 connections at a time instead of 1000: this process may have 128 files open", log)
        self.assertLess(log.count("was refused"), 3)

    @shows("K8.3", "A41", "I8")
    def test_many_directories(self) -> None:
        """With 256 or 128 descriptors uploads of many directories at once would fail for want of them."""
        cluster = RealCluster(self, 2, down=(0, 1))
        for node, limit in zip(cluster.nodes, (256, 128), strict=True):
            node.wrapper = ["prlimit", f"--nofile={limit}"]
        cluster.start(0, 1)
        top = Path(self.mktemp()).absolute()
        trees = [small_tree(top / f"t{one}", {f"d{number}/f": f"{one} {number}" for number in range(400)}) for one in range(6)]
        clients = [
            cluster.begin_sync("--append", f"{tree}:/apps/{tree.name}", "--require", "all", "127.0.0.1", "127.0.0.2") for tree in trees
        ]
        for client in clients:
            cluster.expect(cluster.finish(client), 0, "2/2 nodes")
        for tree in trees:
            cluster.same(tree, f"/apps/{tree.name}")

    @shows("G15", "I8")
    def test_little_memory(self) -> None:
        """A daemon beside a service on a small server would take its memory, or end for want of it in the middle of an upload."""
        cluster = RealCluster(self, 1, {"apps": APPS, "cfg": CFG}, down=(0,))
        (node,) = cluster.nodes
        node.wrapper = ["prlimit", f"--as={SPACE_BYTES}"]
        cluster.start(0)
        process = Path(f"/proc/{cluster.pid(0)}")
        limits = (process / "limits").read_text()
        self.assertRegex(limits, rf"Max address space +{SPACE_BYTES} +{SPACE_BYTES} ")
        large, many = self.large(), Path(self.mktemp()).absolute()
        noise_file(large / "larger", 6, 96 * MIB)
        small_tree(many, {f"d{number % 50}/f{number}": f"content {number}" for number in range(3000)})
        cluster.expect(cluster.sync("--append", f"{large}:/apps/v1", "--replace", f"{many}:/cfg/main", "127.0.0.1"), 0, "DONE")
        cluster.expect(cluster.sync("--replace", f"{large}:/cfg/main", "127.0.0.1"), 0, "DONE")
        cluster.same(large, "/apps/v1")
        cluster.same(large, "/cfg/main")
        used = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        peak = int(used["VmHWM"].split()[0]) * 1024
        self.assertLess(peak, MEMORY_BYTES)
        self.assertLess(int(used["VmPeak"].split()[0]) * 1024, SPACE_BYTES)

    @shows("A19", "A20", "F16", "I8")
    def test_slow_connections(self) -> None:
        """Connections that are slow, each in another phase, are dropped within 15 seconds; an upload does not notice them."""
        cluster = RealCluster(self, 1)
        (node,) = cluster.nodes
        handshake = (
            b"GET / HTTP/1.1\r\nHost: ciruela\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        phases = {
            "nothing": b"",
            "half a head": b"GET / HTTP/1.1\r\nX-Slow: ",
            "no message": handshake,
            "half a frame": handshake + b"\x82\xff\0\0",
        }
        held = {phase: self.held(node, 50, said) for phase, said in phases.items()}
        for phase, connections in held.items():
            self.assertGreater(still_open(connections), 40, phase)
        cluster.expect(cluster.sync("--append", f"{self.large()}:/apps/v1", "127.0.0.1"), 0)
        began = cluster.until(lambda: node.get("/status/")["process"], "the node answers")["timestamp"]

        def dropped() -> bool:
            for one in held["half a head"]:
                with contextlib.suppress(OSError):
                    one.send(b"x")
            return not any(still_open(connections) for connections in held.values())

        cluster.until(dropped, "all slow connections are dropped", poll_s=0.5)
        self.assertLess(node.get("/status/")["process"]["timestamp"] - began, 17_000)
