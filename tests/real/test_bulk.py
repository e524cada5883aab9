"""Bulk connections of real daemons and clients: opened, broken, flooded, and stopped in the middle."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.net.bench import frame, frames
from tests.proof import shows
from tests.real.daemons import RealCluster, RealNode
from tests.real.trees import noise_file, small_tree

MIB = 1024 * 1024
STOPPED_S = 1.0
"""A daemon that is not overloaded ends in so long, whatever its threads wait for; looked at with some room for the machine."""


def handshake(node: RealNode) -> socket.socket:
    """A connection that asked for a bulk connection, and was let in."""
    one = socket.create_connection((node.host, node.port), timeout=10)
    one.sendall(
        b"GET / HTTP/1.1\r\nHost: ciruela\r\nOrigin: http://ciruela/\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: ciruela.bulk\r\n\r\n"
    )
    head = b""
    while b"\r\n\r\n" not in head:
        more = one.recv(4096)
        assert more, head
        head += more
    assert b" 101 " in head.split(b"\r\n")[0] and b"ciruela.bulk" in head, head
    return one


def ended(one: socket.socket) -> bytes:
    """All that still comes until the other side closes."""
    data = b""
    try:
        while more := one.recv(65536):
            data += more
    except ConnectionResetError:
        pass
    finally:
        one.close()
    return data


class BulkTests(SynchronousTestCase):
    """Three daemons and a file that is worth it."""

    def setUp(self) -> None:
        top = Path(self.mktemp()).absolute()
        top.mkdir(parents=True)
        self.source = small_tree(top, {"small": "small"})
        noise_file(self.source / "large", 7, 96 * MIB)

    def frozen(self, cluster: RealCluster) -> subprocess.Popen[str]:
        """A client that was stopped by SIGSTOP while all nodes have bulk connections, and lack something."""
        client = cluster.begin_sync("-t", "100s", "--append", f"{self.source}:/apps/v1", "127.0.0.1")

        def busy() -> bool:
            return all(node.get("/downloading/") and node.metric("connections", "bulk") > 0 for node in cluster.nodes[:1])

        cluster.until(busy, "blocks travel over a bulk connection", poll_s=0.005)
        client.send_signal(signal.SIGSTOP)
        return client

    @shows("G5")
    def test_used(self) -> None:
        """The fast way would exist, and nobody would take it; or what came over it would be something else."""
        cluster = RealCluster(self, 3)
        client = self.frozen(cluster)
        self.assertGreater(cluster.nodes[0].metric("connections", "bulk"), 0)
        client.send_signal(signal.SIGCONT)
        cluster.expect(cluster.finish(client), 0, "DONE", "3/3 nodes")
        cluster.same(self.source, "/apps/v1", 0, 1, 2)
        cluster.until(lambda: all(node.metric("connections", "bulk") <= 2 for node in cluster.nodes), "the client's are closed")

    @shows("F40")
    def test_stopped_in_the_middle(self) -> None:
        """A thread that waits for bytes would hold up the end of a daemon; what it had would be lost."""
        cluster = RealCluster(self, 3)
        client = self.frozen(cluster)
        began_s = time.monotonic()
        cluster.stop(0, patience_s=10 * STOPPED_S)
        took_s = time.monotonic() - began_s
        cluster.start(0)
        client.send_signal(signal.SIGCONT)
        cluster.expect(cluster.finish(client), 0, "DONE", "3/3 nodes")
        cluster.same(self.source, "/apps/v1", 0, 1, 2)
        self.assertLess(took_s, 5 * STOPPED_S)

    @shows("A58", "F52")
    def test_given_up(self) -> None:
        """A client that is killed in the middle leaves threads that wait for it."""
        cluster = RealCluster(self, 3)
        client = self.frozen(cluster)
        client.kill()
        client.communicate()
        cluster.until(lambda: all(node.metric("connections", "bulk") <= 2 for node in cluster.nodes), "its bulk connections end")
        cluster.expect(cluster.sync("--append", f"{self.source}:/apps/v1", "127.0.0.1"), 0, "DONE", "3/3 nodes")
        cluster.same(self.source, "/apps/v1", 0, 1, 2)

    @shows("A19", "A24", "F16")
    def test_strangers(self) -> None:
        """Somebody without a ticket would get a thread, or keep a connection for ever; what he sends is not looked at."""
        cluster = RealCluster(self, 1)
        (node,) = cluster.nodes
        silent, silent_s = handshake(node), time.monotonic()
        for message in (os.urandom(16), b"", b"x" * 200, b"y" * 70_000):
            one = handshake(node)
            one.sendall(frame(message, masked=True))
            self.assertEqual([opcode for _, opcode, _ in frames(ended(one)) if opcode != 8], [])
        self.assertEqual(node.metric("connections", "bulk"), 0)
        ended(silent)
        self.assertLess(time.monotonic() - silent_s, 30)
        cluster.expect(cluster.sync("--append", f"{self.source}:/apps/v1", "127.0.0.1"), 0, "DONE", "1/1 nodes")
