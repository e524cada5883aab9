"""Hooks of real daemons: processes, web calls, certificates, and a daemon that is killed in between."""

from __future__ import annotations

import datetime
import http.server
import json
import os
import signal
import ssl
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.trial.unittest import SynchronousTestCase

from tests.real.daemons import APPS, CFG, RealCluster
from tests.real.test_spread import fresh
from tests.real.trees import small_tree


def script(case: SynchronousTestCase, text: str) -> Path:
    """A program that only its owner can change."""
    path = fresh(case) / "hook"
    path.parent.chmod(0o755)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


class Listener:
    """A web server on loopback that notes what it is sent, and answers with ``codes``, then with 200."""

    def __init__(self, case: SynchronousTestCase, codes: list[int], certificate: Path | None = None) -> None:
        self.got: list[Mapping[str, Any]] = []
        self.paths: list[str] = []
        listener = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                listener.paths.append(self.path)
                listener.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                code = codes.pop(0) if codes else 200
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        case.addCleanup(thread.join)
        case.addCleanup(server.server_close)
        case.addCleanup(server.shutdown)


def own_certificate(path: Path) -> Path:
    """A certificate for localhost that nobody has signed but its own key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    return path


class HookTests(SynchronousTestCase):
    """What operators have run when a release comes."""

    def test_well_badly_and_too_late(self) -> None:
        """A script would think that a release is in service on servers where it did not start."""
        out = fresh(self)
        look = (
            'cat > "$1/stdin"',
            'env > "$1/env"',
            'pwd > "$1/pwd"',
            'ls "$CIRUELA_DIRECTORY" > "$1/ls"',
            'ls -l /proc/self/fd > "$1/fds"',
        )
        good = script(self, "\n".join(look))
        bad = script(self, "echo starting; echo the port is taken >&2; exit 3")
        slow = script(self, f'sleep 1000 & echo $! > "{out}/child"; echo $$ > "{out}/leader"; wait')
        settings = [
            f"on-commit: [{good}, '{out}']\n",
            f"on-commit: {{command: [{bad}], retries: 1, backoff: 10ms}}\n",
            f"on-commit:\n  command: [{slow}]\n  timeout: 1500ms\n  retries: 0\n",
        ]
        os.environ["CIRUELA_SECRET_OF_THE_DAEMON"] = "secret"
        self.addCleanup(os.environ.pop, "CIRUELA_SECRET_OF_THE_DAEMON")
        cluster = RealCluster(self, 3, [{"apps": APPS + one} for one in settings])
        source = small_tree(fresh(self), {"a": "1", "b/c": "2"})
        done = cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1")
        said = cluster.expect(done, 7, "DONE", "3/3 nodes", "hooks 1 ok, 2 failed", "node2 on-commit exited with 3: the port is taken")
        self.assertIn("node3 on-commit took longer than 1s 500ms", said)
        cluster.same(source, "/apps/v1")
        environment = dict(line.partition("=")[::2] for line in (out / "env").read_text().splitlines())
        self.assertEqual(environment["CIRUELA_DIRECTORY"], str(cluster.nodes[0].path("/apps/v1")))
        self.assertRegex(environment["CIRUELA_KEY"], "^SHA256:")
        self.assertEqual(environment["CIRUELA_IMAGE_ID"], cluster.nodes[0].has("/apps/v1"))
        self.assertEqual({name for name in environment if "SECRET" in name or name.startswith("PYTHON")}, set())
        self.assertEqual(environment["HOME"], "/")
        self.assertEqual(((out / "pwd").read_text(), (out / "stdin").read_text()), ("/\n", ""))
        self.assertEqual((out / "ls").read_text(), "a\nb\n")
        links = [line.split(" -> ")[1] for line in (out / "fds").read_text().splitlines() if " -> " in line]
        self.assertEqual([link for link in links if not link.startswith(("pipe:", f"{out}/fds", "/proc/"))], [], links)
        for name in ("child", "leader"):
            pid = int((out / name).read_text())
            cluster.until(lambda pid=pid: not _runs(pid), "what the slow hook started is killed")
        status = cluster.nodes[1].get("/status/")["hooks"]["/apps/v1"]["on-commit"]
        self.assertEqual((status["state"], status["tries"], status["message"]), ("failed", 2, "exited with 3: the port is taken"))
        self.assertEqual([cluster.nodes[number].metric("hooks", "on-commit_failed") for number in range(3)], [0, 1, 1])

    def test_check(self) -> None:
        """A release that the operator's own check refuses would be live, or be left lying around."""
        out = fresh(self)
        test = 'test -e "$CIRUELA_DIRECTORY/good" || { echo there is no good; exit 1; }'
        check = script(self, f'{test}\nls -A "$CIRUELA_DIRECTORY" > "{out}/$CIRUELA_HOOK"')
        cluster = RealCluster(
            self, 2, {"cfg": CFG + f"check-before-commit: {{command: [{check}], timeout: 30s}}\n"}, expect_errors=["check_failed"]
        )
        bad = small_tree(fresh(self), {"bad": "1"})
        done = cluster.sync("--replace", f"{bad}:/cfg/main", "127.0.0.1")
        cluster.expect(done, 5, "check_failed: exited with 1: there is no good")
        for node in cluster.nodes:
            self.assertEqual(list((node.data / "cfg").iterdir()), [])
        good = small_tree(fresh(self), {"good": "1", "empty": ""})
        cluster.expect(cluster.sync("--replace", f"{good}:/cfg/main", "127.0.0.1"), 0, "DONE", "2/2 nodes")
        self.assertEqual((out / "check-before-commit").read_text(), "empty\ngood\n")
        cluster.same(good, "/cfg/main")

    def test_check_that_changes_what_it_checks(self) -> None:
        """A check that leaves a file behind, or writes into one, would put on a server what nobody has signed."""
        meddle = script(self, 'echo more >> "$CIRUELA_DIRECTORY/a"')
        cluster = RealCluster(self, 1, {"cfg": CFG + f"check-before-commit: [{meddle}]\n"}, expect_errors=["commit_error"])
        source = small_tree(fresh(self), {"a": "1"})
        done = cluster.sync("--replace", f"{source}:/cfg/main", "127.0.0.1")
        cluster.expect(done, 3, "commit_error")
        self.assertEqual(list((cluster.nodes[0].data / "cfg").iterdir()), [])

    def test_killed_daemon(self) -> None:
        """A server that loses power between a release and its hook would go on with the old one for ever."""
        out = fresh(self)
        hook = script(self, f'echo $$ > "{out}/group"; echo "$CIRUELA_OLD_IMAGE_ID" >> "{out}/ran"; test -e "{out}/ready" || sleep 1000')
        cluster = RealCluster(self, 1, {"apps": APPS + f"on-commit: {{command: [{hook}], timeout: 1h}}\n"})
        source = small_tree(fresh(self), {"a": "1"})
        client = cluster.begin_sync("--append", f"{source}:/apps/v1", "127.0.0.1")
        cluster.until(lambda: (out / "ran").exists(), "the hook runs")
        self.assertTrue(cluster.nodes[0].path("/apps/v1").is_dir())
        self.assertIsNone(client.poll(), "the client did not wait for the hook")
        cluster.kill(0)
        os.killpg(int((out / "group").read_text()), signal.SIGKILL)  # as systemd does with what is left of a unit
        (out / "ready").touch()
        cluster.start(0)
        stdout, stderr = client.communicate(timeout=60)
        self.assertEqual(client.returncode, 0, stdout + stderr)
        cluster.until(lambda: cluster.nodes[0].get("/status/")["hooks"]["/apps/v1"]["on-commit"]["state"] == "ok", "the hook has run")
        self.assertEqual((out / "ran").read_text(), "\n\n")
        self.assertEqual([path.name for path in cluster.nodes[0].db.rglob("*.due")], [])

    def test_stopped_daemon(self) -> None:
        """A daemon that is restarted would leave its hooks running, two of a kind soon."""
        out = fresh(self)
        hook = script(self, f'echo $$ >> "{out}/leaders"; sleep 1000 & echo $! >> "{out}/children"; test -e "{out}/ready" || wait')
        cluster = RealCluster(self, 1, {"apps": APPS + f"on-commit: {{command: [{hook}], timeout: 1h}}\n"})
        source = small_tree(fresh(self), {"a": "1"})
        cluster.begin_sync("--append", f"{source}:/apps/v1", "127.0.0.1")
        cluster.until(lambda: (out / "children").exists() and (out / "children").read_text().strip(), "the hook runs")
        cluster.stop(0)
        for name in ("leaders", "children"):
            pid = int((out / name).read_text())
            cluster.until(lambda pid=pid: not _runs(pid), "the hook has ended")
        self.assertEqual(len(list(cluster.nodes[0].db.rglob(".*.due"))), 1)
        (out / "ready").touch()
        cluster.start(0)
        cluster.until(lambda: cluster.nodes[0].get("/status/")["hooks"]["/apps/v1"]["on-commit"]["state"] == "ok", "the hook has run")
        for name in ("leaders", "children"):
            for pid in map(int, (out / name).read_text().split()):
                cluster.until(lambda pid=pid: not _runs(pid), "what the hook has left is gone")

    def test_odd_commands(self) -> None:
        """A hook that writes without end, leaves something behind or is gone would take the memory of the daemon, or never end."""
        out = fresh(self)
        flood = script(self, "yes a line that comes again and again | head -c 30000000; echo; echo the end; exit 1")
        leaves = script(self, f'setsid sleep 1000 & echo $! > "{out}/left"; exit 0')
        gone = script(self, "exit 0")
        settings = [f"on-commit: {{command: [{one}], retries: 0}}\n" for one in (flood, leaves, gone)]
        cluster = RealCluster(self, 3, [{"apps": APPS + one} for one in settings])
        gone.unlink()
        source = small_tree(fresh(self), {"a": "1"})
        done = cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1")
        said = cluster.expect(done, 7, "hooks 1 ok, 2 failed", "node1 on-commit exited with 1: the end")
        self.assertIn("node3 on-commit exited with 126: cannot be started: No such file or directory", said)
        os.kill(int((out / "left").read_text()), signal.SIGKILL)

    def test_webhook(self) -> None:
        """Whoever waits for a release to come would hear nothing, or be sent somewhere else by a redirect."""
        listener = Listener(self, [503])
        redirects = Listener(self, [302])
        settings = [
            f"webhook: {{url: 'http://127.0.0.1:{one.port}/secret?x=1', retries: {retries}, backoff: 10ms}}\n"
            for one, retries in ((listener, 2), (redirects, 0))
        ]
        cluster = RealCluster(self, 2, [{"apps": APPS + one} for one in settings])
        source = small_tree(fresh(self), {"a": "1"})
        done = cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1")
        said = cluster.expect(done, 7, "hooks 1 ok, 1 failed: node2 webhook was answered with 302")
        self.assertNotIn("secret", said)
        self.assertEqual([one["path"] for one in listener.got], ["/apps/v1"] * 2)
        self.assertEqual(listener.paths, ["/secret?x=1"] * 2)
        self.assertEqual(listener.got[0]["hostname"], "node1")
        self.assertEqual(redirects.paths, ["/secret?x=1"])

    def test_certificate(self) -> None:
        """Whoever stands between would learn the secret in the address, and answer that all is well."""
        top = fresh(self)
        listener = Listener(self, [], own_certificate(top / "own.pem"))
        hook = f"webhook: {{url: 'https://localhost:{listener.port}/secret', retries: 0}}\n"
        cluster = RealCluster(self, 1, {"apps": APPS + hook})
        source = small_tree(fresh(self), {"a": "1"})
        done = cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1")
        cluster.expect(done, 7, "node1 webhook the certificate is not trusted")
        self.assertEqual(listener.got, [])

    def test_modes_and_group(self) -> None:
        """The service that is to read a release could not, or everybody could."""
        groups = [one for one in os.getgroups() if one != os.getegid()] or [os.getegid()]
        gid = 12345 if os.geteuid() == 0 else groups[0]
        settings = f"dir-mode: '0750'\nfile-mode: '0640'\ngroup: '{gid}'\n"
        cluster = RealCluster(self, 1, {"apps": APPS + settings})
        source = small_tree(fresh(self), {"a": "1", "b/c": "2", "run": "#!/bin/sh\n"})
        (source / "run").chmod(0o755)
        cluster.expect(cluster.sync("--append", f"{source}:/apps/v1", "127.0.0.1"), 0, "DONE")
        cluster.expect(cluster.sync("--append", f"{source}:/apps/v2", "127.0.0.1"), 0, "DONE")
        for vpath in ("/apps/v1", "/apps/v2"):
            top = cluster.nodes[0].path(vpath)
            found = {path.relative_to(top).as_posix(): path.stat() for path in (top, *top.rglob("*"))}
            self.assertEqual(
                {name: oct(stat.S_IMODE(status.st_mode)) for name, status in found.items()},
                {".": "0o750", "a": "0o640", "b": "0o750", "b/c": "0o640", "run": "0o750"},
            )
            self.assertEqual({status.st_gid for status in found.values()}, {gid})
        self.assertEqual(cluster.nodes[0].path("/apps/v1/a").stat().st_ino, cluster.nodes[0].path("/apps/v2/a").stat().st_ino)


def _runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
