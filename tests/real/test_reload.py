"""Real daemons whose configuration changes while they run."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.daemons import APPS, RealCluster, RealNode, make_key
from tests.real.trees import noise_file, small_tree

MIB = 1024 * 1024


class ReloadTests(SynchronousTestCase):
    """SIGHUP: all of it counts, or nothing does, and the operator is told."""

    def write(self, node: RealNode, name: str, text: str) -> None:
        """Write a file of the configuration, in one step."""
        path = node.config / name
        new = path.with_name(f".{path.name}.new")
        new.write_text(text)
        new.chmod(0o644)
        new.rename(path)

    def reloaded(self, cluster: RealCluster, more: Callable[[dict[str, Any]], object] = bool) -> dict[str, Any]:
        """Send SIGHUP and wait until the status page tells of a later reload."""
        (node,) = cluster.nodes
        before = node.metric("config", "reloads") + node.metric("config", "reloads_refused")
        cluster.signal(0, signal.SIGHUP)
        cluster.until(lambda: node.metric("config", "reloads") + node.metric("config", "reloads_refused") > before, "it is read again")
        found: dict[str, Any] = node.get("/status/")["config"]
        return found

    def test_directories(self) -> None:
        """Each new directory would need a restart, and one that is taken away would be deleted, or be forgotten for ever."""
        cluster = RealCluster(self, 1)
        (node,) = cluster.nodes
        source = small_tree(Path(self.mktemp()).absolute(), {"file": "x"})
        cluster.expect(cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1"), 0, "DONE")
        cluster.expect(cluster.sync("--append", f"{source}:/more/v1", "127.0.0.1"), 5, "no_config")
        (node.data / "more").mkdir()
        self.write(node, "configs/more.yaml", f'directory: "{node.data / "more"}"\nappend-only: true\nnum-levels: 1\n')
        found = self.reloaded(cluster)
        self.assertEqual((found["ok"], found["mistakes"], found["restart_needed"]), (True, 0, []))
        cluster.expect(cluster.sync("--append", f"{source}:/more/v1", "127.0.0.1"), 0, "DONE")
        (node.config / "configs" / "apps.yaml").rename(node.config / "apps.yaml.gone")
        self.reloaded(cluster)
        cluster.expect(cluster.sync("--append", f"{source}:/apps/v2", "127.0.0.1"), 5, "no_config")
        self.assertEqual(node.get("/list-dir/apps"), {})
        self.assertTrue(node.path("/apps/v1").is_dir())
        (node.config / "apps.yaml.gone").rename(node.config / "configs" / "apps.yaml")
        self.reloaded(cluster)
        self.assertIsNotNone(node.has("/apps/v1"))
        cluster.expect(cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1"), 0, "DONE", "sent 0 B")

    @shows("F60")
    def test_mistakes(self) -> None:
        """Half of a configuration with a mistake would count, and nobody would hear of the mistake."""
        cluster = RealCluster(self, 1, expect_errors=["not reloaded:", "the configuration is as it was before"])
        (node,) = cluster.nodes
        source = small_tree(Path(self.mktemp()).absolute(), {"file": "x"})
        (node.data / "more").mkdir()
        self.write(node, "configs/more.yaml", f'directory: "{node.data / "more"}"\nappend-only: true\nnum-levels: 1\n')
        self.write(node, "ciruela.yaml", "max-connections: many\npeers: [nobody]\n")
        found = self.reloaded(cluster)
        self.assertEqual((found["ok"], found["places"]), (False, ["ciruela.yaml:1", "ciruela.yaml:2"]))
        self.assertIn('max-connections: "many" is not a whole number', node.log.read_text())
        cluster.expect(cluster.sync("--append", f"{source}:/more/v1", "127.0.0.1"), 5, "no_config")
        cluster.expect(cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1"), 0, "DONE")
        self.write(node, "ciruela.yaml", "max-connections: 77\ndisk-threads: 3\n")
        found = self.reloaded(cluster)
        self.assertEqual((found["ok"], found["restart_needed"]), (True, ["disk-threads"]))
        cluster.expect(cluster.sync("--append", f"{source}:/more/v1", "127.0.0.1"), 0, "DONE")
        self.write(node, "configs/apps.yaml", f'directory: "{node.data / "other"}"\n{APPS}')
        self.assertFalse(self.reloaded(cluster)["ok"])
        self.assertIn("that needs a restart (nothing was applied)", node.log.read_text())

    @shows("A12")
    def test_key_removed(self) -> None:
        """A key that was stolen and taken away could still finish what it began; or what stands there would go with it."""
        cluster = RealCluster(self, 1, expect_errors=["given up: key_removed"])
        (node,) = cluster.nodes
        other = cluster.top / "other"
        line = make_key(other)
        self.write(node, "master.key", (node.config / "master.key").read_text() + line)
        small = small_tree(Path(self.mktemp()).absolute(), {"file": "x"})
        large = Path(self.mktemp()).absolute()
        large.mkdir()
        noise_file(large / "large", 1, 64 * MIB)
        cluster.expect(cluster.sync("--append", f"{small}:/apps/v1", "127.0.0.1", key=other), 0, "DONE")
        client = cluster.begin_sync("-t", "60s", "--append", f"{large}:/apps/v2", "127.0.0.1", key=other)
        cluster.until(lambda: self.staged(node) > MIB, "it runs", poll_s=0.002)
        client.send_signal(signal.SIGSTOP)
        self.assertFalse(node.path("/apps/v2").exists(), "it was too fast")
        text = (node.config / "master.key").read_text().removesuffix(line)
        self.write(node, "master.key", text)
        cluster.until(lambda: not node.get("/downloading/"), "it is given up")
        client.send_signal(signal.SIGCONT)
        done = cluster.finish(client)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("key_removed", f"{done.stdout}{done.stderr}")
        self.assertTrue(node.path("/apps/v1").is_dir())
        self.assertEqual([path.name for path in (node.data / "apps").iterdir()], ["v1"])
        self.assertEqual(node.metric("config", "uploads_aborted_by_keys"), 1)

    def staged(self, node: RealNode) -> int:
        """Bytes below staging directories."""
        return sum(path.stat().st_blocks * 512 for path in (node.data / "apps").glob(".ciruela~*/*"))


class StartTests(SynchronousTestCase):
    """What a daemon is told at its start."""

    def test_check_config(self) -> None:
        """A mistake would only be found out by stopping the daemon that runs."""
        cluster = RealCluster(self, 1)
        (node,) = cluster.nodes
        before = sorted(path.name for path in node.db.iterdir())
        done = cluster.run([*node.command(), "--check-config"])
        said = cluster.expect(done, 0, "OK", "/apps:", f"{node.host}:{node.port}")
        self.assertEqual(done.stdout.splitlines()[0], "OK", said)
        (node.config / "configs" / "bad.yaml").write_text("directory: x\nappend-only: perhaps\n")
        (node.config / "configs" / "bad.yaml").chmod(0o644)
        (node.config / "ciruela.yaml").write_text("prot: 5\n")
        (node.config / "ciruela.yaml").chmod(0o644)
        done = cluster.run([*node.command(), "--check-config"])
        cluster.expect(done, 1, "bad.yaml:2: append-only", "bad.yaml:1: num-levels", 'ciruela.yaml:1: "prot" is not a setting (try "port")')
        self.assertNotIn("OK", done.stdout)
        self.assertEqual(sorted(path.name for path in node.db.iterdir()), before)

    @shows("A59")
    def test_options_of_the_reference(self) -> None:
        """A unit file that worked with the reference would have to be found and changed on every server."""
        cluster = RealCluster(self, 1, down=[0])
        (node,) = cluster.nodes
        node.options = ["--metadata-threads", "2", "--log-machine-id", "--aggressive-index-gc"]
        cluster.start(0)
        self.assertIn("--disk-threads", node.log.read_text())
        words = ["--config-base-dir", str(node.config), "--db-dir", str(node.db), "--host", node.host, "--port", str(node.port)]
        script = "from ciruela.daemon.serve import main; main()"
        cluster.expect(cluster.run([sys.executable, "-c", script, *words, "--check-config"]), 0, "OK", "/apps")
        refused = cluster.run([*node.command(), "--cantal"])
        cluster.expect(refused, 1, "there is no cantal here")

    def test_settings_in_the_file(self) -> None:
        """A setting that only the command line has would have to stand in the unit file."""
        cluster = RealCluster(self, 1, down=[0])
        (node,) = cluster.nodes
        command = node.command()
        taken = command.index("--port")
        (node.config / "ciruela.yaml").write_text(f"port: {node.port}\ndisk-threads: 2\n")
        (node.config / "ciruela.yaml").chmod(0o644)
        self.patch(node, "command", lambda: [*command[:taken], *command[taken + 2 :]])
        cluster.start(0)
        with socket.create_connection((node.host, node.port), timeout=10):
            pass

    @shows("A59", "I3")
    def test_newer_db(self) -> None:
        """After a downgrade the old program would misread, and rewrite, what the new one wrote."""
        cluster = RealCluster(self, 1)
        (node,) = cluster.nodes
        self.assertRegex((node.db / ".version").read_text(), r"\Aformat 1, written by ciruela \S+\n\Z")
        cluster.stop(0)
        (node.db / ".version").write_text("format 2, written by ciruela 99.1\n")
        before = {path: path.read_bytes() for path in node.db.rglob("*") if path.is_file()}
        done = cluster.run(node.command())
        cluster.expect(done, 4, "has format 2, written by ciruela 99.1", "start the newer program")
        self.assertEqual({path: path.read_bytes() for path in node.db.rglob("*") if path.is_file()}, before)
