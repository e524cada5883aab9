"""The daemon as a process: how it starts, stops and shows itself, and the demo."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import urllib.error
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.daemons import PATIENCE_S, STOP_S, RealCluster, environment, free_port, program
from tests.real.trees import odd_tree, small_tree


class DaemonTests(SynchronousTestCase):
    """What the operator of a server sees."""

    def began(self, cluster: RealCluster, command: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a daemon that must not stay."""
        done = cluster.run(command)
        return subprocess.CompletedProcess(command, done.returncode, done.stdout + done.stderr, "")

    def test_stop(self) -> None:
        """A restart of a server would hang, lose the log's end, or look like a crash."""
        source = small_tree(Path(self.mktemp()).absolute(), {"a": "b"})
        cluster = RealCluster(self, 2)
        cluster.expect(cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1"), 0, "DONE", "2/2 nodes")
        for number in (0, 1):
            self.assertEqual(cluster.stop(number, STOP_S), -signal.SIGTERM)
            self.assertIn("Server Shut Down.", cluster.nodes[number].log.read_text())
        cluster.start(0, 1)
        cluster.same(source, "/apps/v1")

    @shows("A49", "F43", "F60")
    def test_will_not_start(self) -> None:
        """Two daemons would mix their states, or a typing error would show up as a directory that never arrives."""
        cluster = RealCluster(self, 1)
        node = cluster.nodes[0]
        second = self.began(cluster, node.command())
        cluster.expect(second, 4, f"another daemon uses the db directory {node.db}")
        other = cluster.top / "other db"
        other.mkdir()
        cluster.expect(
            self.began(cluster, node.command(db=other)), 1, f"cannot listen on {node.host}:{node.port}", "Address already in use"
        )
        cluster.expect(self.began(cluster, node.command(db=cluster.top / "no db")), 4, "no db", "it must exist")
        config = cluster.top / "config"
        (config / "configs").mkdir(parents=True)
        wrong = config / "configs" / "apps.yaml"
        wrong.write_text(f'directory: "{node.data}/apps"\nappend-only: true\nnum-levels: two\n')
        for path in (config, wrong.parent, wrong):
            path.chmod(0o755)
        cluster.expect(self.began(cluster, node.command(db=other, config=config)), 1, f'{wrong}:3: num-levels: "two" is not a whole number')
        cluster.expect(self.began(cluster, node.command(db=other, config=cluster.top / "none")), 1, "there is no such config directory")
        self.assertEqual(node.get("/healthz")["status"], "ok")

    def test_in_the_background(self) -> None:
        """Without ``-n`` twistd leaves the terminal: mistakes must be told before, and the lock must go along."""
        cluster = RealCluster(self, 1)
        node = cluster.nodes[0]
        pid, log, other = cluster.top / "pid", cluster.top / "log", cluster.top / "other"
        other.mkdir()
        taken = [word for word in node.command(db=other) if word not in ("-n", "--pidfile=")]
        options = [f"--pidfile={pid}", f"--logfile={log}"]
        cluster.expect(self.began(cluster, [taken[0], *options, *taken[1:]]), 1, f"cannot listen on {node.host}:{node.port}")
        cluster.stop(0, STOP_S)
        self.assertEqual(self.began(cluster, [taken[0], *options, *taken[1:]]).returncode, 0)
        try:
            cluster.until(lambda: node.get("/healthz")["status"] == "ok", "the daemon in the background serves")
            cluster.expect(self.began(cluster, node.command(db=other)), 4, "another daemon uses the db directory")
        finally:
            os.kill(int(pid.read_text()), signal.SIGTERM)
        cluster.until(lambda: not pid.exists(), "the daemon in the background ends")

    def test_pages(self) -> None:
        """Monitoring, and people at three in the morning, would not find what the reference documents."""
        source = small_tree(Path(self.mktemp()).absolute(), {"a": "b"})
        cluster = RealCluster(self, 2)
        cluster.expect(cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1"), 0, "DONE", "2/2 nodes")
        one, two = cluster.nodes
        status = one.get("/status/")
        self.assertEqual((status["machine_id"], status["hostname"]), (one.machine, "node1"))
        self.assertLessEqual({"machine_id", "hostname", "version", "process", "threads", "metrics"}, status.keys())
        self.assertGreater(status["process"]["memory_rss"], 10_000_000)
        self.assertEqual(one.metric("disk.committed", "images"), 1)
        self.assertEqual(one.received(), 1)
        self.assertEqual(one.get("/downloading/"), {})
        self.assertEqual(one.get("/peers/")[two.machine]["addr"], f"{two.host}:{two.port}")
        self.assertEqual(one.get("/configs/"), {"apps": {"append_only": True, "num_levels": 1, "auto_clean": False}})
        (entry,) = one.get("/list-dir/apps").values()
        self.assertEqual(entry.keys(), {"image", "signatures", "committed"})
        self.assertTrue(entry["committed"])
        self.assertRegex(entry["signatures"][0]["signature"], "^ssh-ed25519 [A-Za-z0-9+/=]{88}$")
        self.assertEqual(one.get("/base-dirs/")["/apps"]["num_subdirs"], 1)
        self.assertEqual(one.get("/cluster/dirs/"), {"/apps": [two.machine]})
        self.assertEqual(one.get("/healthz")["status"], "ok")
        for page in ("/deleted/", "/watching/", "/watched/", *(f"/cluster/{topic}/" for topic in ("downloading", "complete", "deleted"))):
            one.get(page)
        with self.assertRaises(urllib.error.HTTPError) as caught:
            one.get("/nothing/")
        self.assertEqual(caught.exception.code, 404)
        caught.exception.close()

    @shows("A22", "F14", "I8")
    def test_garbage(self) -> None:
        """A port scanner, or a broken proxy, would take a server out of service."""
        source = small_tree(Path(self.mktemp()).absolute(), {"a": "b"})
        cluster = RealCluster(self, 1)
        node = cluster.nodes[0]
        pieces = (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /status/ HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
            b"GET /status/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET /list-dir/" + b"..%2f" * 50 + b"etc HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /list-dir/%ff%00 HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n" + b"\xff" * 200,
            b"A" * 100_000,
            b"",
        )
        waiting = []
        for piece in pieces:
            connection = socket.create_connection((node.host, node.port), timeout=PATIENCE_S)
            self.addCleanup(connection.close)
            waiting.append(connection)
            try:
                connection.sendall(piece)
            except OSError:
                continue  # the daemon has seen enough before everything was sent
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            for piece in pieces:
                datagrams.sendto(piece[:1400], (node.host, node.port))
        cluster.expect(cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1"), 0, "DONE", "1/1 nodes")
        for connection in waiting:
            self.hung_up(connection)
        self.assertEqual(node.get("/healthz")["status"], "ok")

    def hung_up(self, connection: socket.socket) -> None:
        """Read until the daemon closes."""
        try:
            while connection.recv(65536):
                pass
        except ConnectionError:
            return


class DemoTests(SynchronousTestCase):
    """The first thing that a newcomer runs."""

    def test_once(self) -> None:
        """The first impression would be a failure, or temporary files and processes that stay."""
        top = Path(self.mktemp()).absolute()
        home, temporary = top / "home", top / "temporary"
        home.mkdir(parents=True)
        temporary.mkdir()
        source = top / "source"
        odd_tree(source)
        port = free_port(["127.0.0.1", "127.0.0.2", "127.0.0.3"])
        done = subprocess.run(
            [program("ciruela"), "demo", "--port", str(port), "--once", str(source)],
            env=environment(home) | {"TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=PATIENCE_S,
        )
        said = f"{done.stdout}\n{done.stderr}"
        self.assertEqual(done.returncode, 0, said)
        self.assertIn(f"port {port}", said)
        self.assertIn("3/3 nodes", done.stdout, said)
        self.assertEqual(len(re.findall(r"^node\d .* identical$", done.stdout, re.MULTILINE)), 3, said)
        self.assertEqual(list(temporary.iterdir()), [], said)
        self.assertEqual([line for line in self.command_lines() if str(temporary) in line], [], said)

    def command_lines(self) -> list[str]:
        """The command lines of all processes."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found.append(path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
            except OSError:
                continue  # it ended meanwhile
        return found
