"""What a daemon is told, put together from the command line and all files."""

from __future__ import annotations

from dataclasses import replace

from twisted.python.usage import UsageError

from ciruela.daemon.plan import NO_CANTAL, CommandLine, DaemonPlan, in_force, moved, read_plan, restart_needed, summary
from ciruela.daemon.tap import Options
from ciruela.model.config import STANDARD, DirConfig, Fsync
from ciruela.model.errors import ConfigError
from ciruela.net.discovery.spec import CONSUL, SourceKind, SourceSpecs, Spec
from tests.daemon.test_config import MINIMAL, ConfigCase
from tests.proof import shows

NOW_MS = 1_700_000_000_000
EVERYTHING = """\
host: 10.0.0.1
port: 5000
db-dir: /var/lib/c
disk-threads: 3
override-machine-id: abababababababababababababababab
override-hostname: n1.example.org
metadata-threads: 2
log-machine-id: true
aggressive_index_gc: true
max-connections: 7
peers:
  - dns:ciruela.example.org
  - file:more.txt
  - consul:ciruela
peers-interval: 30s
consul: http://10.0.0.9:8500/
consul-token-file: /etc/ciruela/token
"""


class PlanTests(ConfigCase):
    """A daemon that starts does what stands there."""

    def plan(self, own: str = "", **given: object) -> DaemonPlan:
        self.put("ciruela.yaml", own)
        options = {"override-machine-id": "ab" * 16} | {name.replace("_", "-"): value for name, value in given.items()}
        return read_plan(CommandLine(str(self.top), options), NOW_MS)

    def mistakes(self, own: str) -> list[str]:
        error = self.assertRaises(ConfigError, self.plan, own)
        return [line.replace(f"{self.top}/", "") for line in str(error).split("\n")]

    def test_defaults(self) -> None:
        """Without a word about it everything is as with the reference."""
        plan = self.plan()
        self.assertEqual((plan.host, plan.port, plan.db_dir, plan.disk_threads), ("0.0.0.0", 24783, "/var/lib/ciruela", 8))
        self.assertEqual((plan.tuning, plan.peers), (STANDARD, SourceSpecs()))

    def test_everything(self) -> None:
        """Every option has its place in the file."""
        self.put("ciruela.yaml", EVERYTHING)
        plan = read_plan(CommandLine(str(self.top), {}), NOW_MS)
        self.assertEqual((plan.host, plan.port, plan.db_dir, plan.disk_threads), ("10.0.0.1", 5000, "/var/lib/c", 3))
        self.assertEqual((plan.me, plan.hostname, plan.tuning.max_connections), (b"\xab" * 16, "n1.example.org", 7))
        self.assertEqual(
            plan.peers,
            SourceSpecs(
                (
                    Spec(SourceKind.DNS, "dns:ciruela.example.org", "ciruela.example.org"),
                    Spec(SourceKind.FILE, "file:more.txt", f"{self.top}/more.txt"),
                    Spec(SourceKind.CONSUL, "consul:ciruela", "ciruela"),
                ),
                30.0,
                "http://10.0.0.9:8500",
                "/etc/ciruela/token",
            ),
        )
        told = "\n".join(plan.warnings)
        for name in ("metadata-threads", "log-machine-id", "aggressive-index-gc"):
            self.assertIn(f"{name} is not used: ", told)
        self.assertIn("10.0.0.1:5000", summary(plan)[0])
        self.assertEqual(SourceSpecs().consul, CONSUL)

    def test_command_line_wins(self) -> None:
        """Somebody who tries something by hand would have to change the file of the service."""
        plan = self.plan(EVERYTHING, port=9, max_connections=8, db_dir="/x")
        self.assertEqual((plan.port, plan.tuning.max_connections, plan.db_dir, plan.host), (9, 8, "/x", "10.0.0.1"))

    @shows("F60")
    def test_mistakes(self) -> None:
        """All mistakes of all files at once, each with its line, and of a list with the line of its item."""
        self.put("configs/app.yaml", "directory: /srv/app\nappend-only: 1\nnum-levels: 1\n")
        own = "port: 0\nhost: localhost\npeers:\n  - dns:a\n  - nobody\n  - consul:a/b\ncantal: true\nconsul: 10.0.0.1\n"
        found = self.mistakes(own)
        self.assertEqual(
            [line.partition(": ")[0] for line in found], [f"ciruela.yaml:{line}" for line in (1, 2, 5, 7, 8)] + ["configs/app.yaml:2"]
        )
        self.assertIn('"nobody" is not a place that knows peers (write dns:NAME', found[2])
        self.assertIn(NO_CANTAL, found[3])
        self.assertIn("this must be a list of places", self.mistakes("peers: dns:a\n")[0])
        self.assertIn("64 are the most", self.mistakes(f"peers: [{', '.join(f'dns:n{number}' for number in range(65))}]\n")[0])

    @shows("A48")
    def test_db_dir_in_the_file(self) -> None:
        """An upload could overwrite the records, only because the file names their place instead of the command line."""
        self.put("configs/app.yaml", MINIMAL)
        self.assertIn("lies inside the database directory", self.mistakes(f"db-dir: {self.images.parent}\n")[0])

    def test_warnings(self) -> None:
        """A bad line in a list of keys or peers would be found out by an upload that is refused."""
        self.put("configs/app.yaml", MINIMAL + "upload-keys: [ci, gone]\n")
        self.put("keys/ci.key", "ssh-rsa AAAA\n")
        self.put("peers.txt", "n1\nbad name\n")
        told = "\n".join(self.plan().warnings).replace(f"{self.top}/", "")
        self.assertIn("keys/ci.key:1: ", told)
        self.assertIn("peers.txt:2: ", told)
        self.assertEqual(told.count("gone.key"), 1, told)

    def test_token(self) -> None:
        """A token that everybody can read would be found out by somebody else."""
        path = self.put("token", "secret\n")
        own = f"consul-token-file: {path}\n"
        self.assertIn(f"everybody may read {path}", "\n".join(self.plan(own).warnings))
        path.chmod(0o600)
        self.assertNotIn("consul-token-file", "\n".join(self.plan(own).warnings))
        path.unlink()
        self.assertIn(f"{path}: No such file", "\n".join(self.plan(own).warnings))

    def test_restart_needed(self) -> None:
        """What cannot change while it runs is named, and stays as it was."""
        old = self.plan()
        new = replace(old, port=1, hostname="x", tuning=replace(STANDARD, fsync=Fsync.NONE, max_connections=3))
        self.assertEqual(restart_needed(old, new), ["port", "override-hostname", "fsync"])
        force = in_force(old, new)
        self.assertEqual((force.port, force.hostname, force.tuning), (24783, old.hostname, replace(STANDARD, max_connections=3)))
        self.assertEqual(restart_needed(old, old), [])
        app = DirConfig("app", "/srv/app", True, 1)
        self.assertEqual(moved({"app": app}, {"app": replace(app, append_only=False)}), [])
        self.assertEqual(len(moved({"app": app}, {"app": replace(app, directory="/x", num_levels=2)})), 2)


class OptionTests(ConfigCase):
    """Unit files of the reference."""

    def options(self, *words: str) -> Options:
        found = Options()
        found.parseOptions(words)
        return found

    def test_names_of_the_reference(self) -> None:
        """Its options work, or say what to do instead."""
        words = ("--config-base-dir", "/etc/c", "--metadata-threads", "2", "--log-machine-id", "--aggressive-index-gc", "--port", "5")
        given = CommandLine("/etc/c", {"metadata-threads": 2, "log-machine-id": 1, "aggressive-index-gc": 1, "port": 5})
        self.assertEqual(self.options(*words).given(), given)
        self.assertIn(NO_CANTAL, str(self.assertRaises(UsageError, self.options, "--cantal")))
        self.assertRaises(UsageError, self.options, "--config", "/a", "--config-base-dir", "/b")
