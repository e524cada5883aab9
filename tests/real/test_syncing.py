"""What the options of ``ciruela sync`` do, with real daemons: dry runs, requirements, excludes, rates, JSON, variables, exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.daemons import APPS, CFG, RealCluster, environment, make_key, program
from tests.real.trees import small_tree

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


def lines(text: str) -> list[dict[str, Any]]:
    """The objects of JSON Lines; each line must be one."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all(isinstance(one, dict) and "type" in one for one in found)
    return found


class SyncingTests(SynchronousTestCase):
    def source(self, files: dict[str, str]) -> Path:
        return small_tree(Path(self.mktemp()).absolute(), files)

    def run_with(self, cluster: RealCluster, variables: dict[str, str], *args: object) -> subprocess.CompletedProcess[str]:
        """``ciruela-sync`` with these variables and nothing else."""
        return subprocess.run(
            [program("ciruela-sync"), *map(str, args)],
            cwd=cluster.home,
            env=environment(cluster.home) | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )

    @shows("I7")
    def test_dry_run(self) -> None:
        """A dry run would upload something, or tell something else than the upload that follows it."""
        cluster = RealCluster(self, 3, {"apps": APPS, "cfg": CFG})
        source = self.source({"a": "a" * 100_000, "b": "b"})
        order = ("--append", f"{source}:/apps/v1")
        said = cluster.expect(cluster.sync("-n", *order, "-m", *HOSTS), 0, "/apps/v1  WOULD BE DONE  3/3 nodes", "Nothing was uploaded")
        self.assertEqual(said.count("would take it"), 3)
        for node in cluster.nodes:
            self.assertEqual(list((node.data / "apps").iterdir()), [])
            self.assertEqual(node.get("/list-dir/apps"), {})
        cluster.expect(cluster.sync(*order, "127.0.0.1"), 0, "DONE", "3/3 nodes")
        cluster.expect(cluster.sync("-n", *order, "-m", *HOSTS), 0, "NOTHING TO DO  3/3 nodes")
        cluster.expect(cluster.sync("-n", "--exit-code", *order, "-m", *HOSTS), 8, "NOTHING TO DO")
        cluster.expect(cluster.sync("--exit-code", *order, "-m", *HOSTS), 8, "Nothing to do")
        (source / "a").write_text("c" * 100_000)
        other = cluster.expect(cluster.sync("-n", *order, "-m", *HOSTS), 6, "WOULD FAIL  0/3 nodes", "already_exists", "there: ")
        self.assertEqual(other.count("127.0.0.") - other.count("127.0.0.1+2"), 3)
        cluster.expect(cluster.sync("-n", "--append-weak", f"{source}:/apps/v1", "-m", *HOSTS), 0, "WOULD BE DONE", "as good")
        fresh = cluster.expect(cluster.sync("-n", "--append", f"{source}:/apps/v2", "-m", *HOSTS), 0, "new: 1 of 2 files")
        self.assertIn("97.7 KiB of 97.7 KiB", fresh)
        cluster.expect(
            cluster.sync("-n", "--append", f"{source}:/nowhere/v2", "-m", *HOSTS), 5, "WOULD FAIL", "no_config", "no such directory"
        )
        cluster.expect(cluster.sync("-n", "--replace", f"{source}:/apps/v1", "-m", *HOSTS), 5, "dir_is_append_only")
        cluster.expect(cluster.sync("-n", "--append", f"{source}:/apps/x/v1", "-m", *HOSTS), 5, "config_level_mismatch")
        stranger = cluster.top / "stranger"
        make_key(stranger)
        cluster.expect(cluster.sync("-n", "--append", f"{source}:/apps/v2", "-m", *HOSTS, key=stranger), 5, "signature_mismatch")
        cluster.stop(2)
        cluster.expect(cluster.sync("-n", "--append", f"{source}:/apps/v2", "-m", *HOSTS), 3, "2/3 nodes", "cannot be asked", "refused")
        early = ("--early-hosts", "2", "--early-fraction", "0.5")
        cluster.expect(cluster.sync("-n", *early, "--append", f"{source}:/apps/v2", "-m", *HOSTS), 0, "WOULD BE EARLY  2/3 nodes")
        cluster.expect(cluster.sync("-n", *early, "--require", "all", "--append", f"{source}:/apps/v2", "-m", *HOSTS), 4, "--require all")
        for node in cluster.nodes[:2]:
            self.assertEqual([path.name for path in (node.data / "apps").iterdir()], ["v1"])

    def test_requirement(self) -> None:
        """A deployment that must be everywhere would count as one although a server was down."""
        cluster = RealCluster(self, 3, {"apps": APPS})
        source = self.source({"a": "a"})
        early = ("-e", "0s", "--early-hosts", "2", "--early-fraction", "0.5", "-m")
        done = cluster.sync("--require", "all", *early, "--append", f"{source}:/apps/v1", *HOSTS)
        cluster.expect(done, 0, "DONE", "3/3 nodes")
        cluster.stop(2)
        done = cluster.sync("-t", "4s", "--require", "all", *early, "--append", f"{source}:/apps/v2", *HOSTS[:2])
        cluster.expect(done, 4, "PARTIAL", "2/3 nodes", "--require all: 2 nodes have it, 3 were needed")
        done = cluster.sync("-t", "4s", "--require", "50%", *early, "--append", f"{source}:/apps/v3", *HOSTS[:2])
        cluster.expect(done, 0, "EARLY", "2/3 nodes", "--require all waits")
        done = cluster.sync("-t", "4s", "--require", "all", "--append", f"{source}:/apps/v4", "-m", *HOSTS[:2])
        cluster.expect(done, 3, "FAILED", "2/3 nodes", "out of time")

    def test_excludes(self) -> None:
        """What should stay at home would be put on every server."""
        cluster = RealCluster(self, 1, {"apps": APPS})
        source = self.source({"a.py": "a", "a.pyc": "b", ".git/config": "c", "log/x.log": "d", "log/keep.log": "e", "secret": "f"})
        (source / ".ciruelaignore").write_text(".git/\n*.log\n!keep.log\n")
        patterns = cluster.top / "patterns"
        patterns.write_text("# ours\n*.pyc\n")
        order = ("--exclude-from", patterns, "--exclude", "/secret", "--append", f"{source}:/apps/v1", "127.0.0.1")
        said = cluster.expect(cluster.sync("-n", "-v", *order), 0, "4 left out", "left out .git/", "left out log/x.log", "left out secret")
        self.assertNotIn("left out log/keep.log", said)
        cluster.expect(cluster.sync(*order), 0, "DONE", "4 left out")
        there = cluster.nodes[0].path("/apps/v1")
        found = sorted(str(path.relative_to(there)) for path in there.rglob("*") if path.is_file())
        self.assertEqual(found, [".ciruelaignore", "a.py", "log/keep.log"])
        cluster.expect(cluster.sync("--no-ignore-file", "--append", f"{source}:/apps/v2", "127.0.0.1"), 0, "DONE")
        self.assertTrue((cluster.nodes[0].path("/apps/v2") / ".git" / "config").is_file())
        cluster.expect(cluster.sync("--exclude-from", "nope", *order), 1, "nope cannot be read: No such file")
        cluster.expect(cluster.sync("--exclude", "!", *order), 2, "--exclude: '!' is not a pattern")

    def test_json(self) -> None:
        """A script could not tell how it ended, or would choke on a line for people."""
        cluster = RealCluster(self, 3, {"apps": APPS})
        source = self.source({"a": "a" * 1000})
        order = ("--append", f"{source}:/apps/v1", "-m", *HOSTS)
        done = cluster.sync("--json", *order)
        self.assertEqual(done.returncode, 0)
        found = lines(done.stdout)
        self.assertEqual(found[0]["type"], "index")
        self.assertEqual((found[0]["files"], found[0]["bytes"]), (1, 1000))
        kinds = [one["type"] for one in found]
        self.assertIn("accepted", kinds)
        self.assertEqual({one["host"] for one in found if one["type"] == "node"}, {"node1", "node2", "node3"})
        self.assertEqual({one["state"] for one in found if one["type"] == "node"}, {"done"})
        last = found[-1]
        self.assertEqual((last["type"], last["outcome"], last["exit_code"], last["code"]), ("summary", "done", 0, "done"))
        self.assertEqual((last["uploads"][0]["done"], last["uploads"][0]["expected"]), (3, 3))
        self.assertIn("/apps/v1  DONE", done.stderr)
        (source / "a").write_text("other")
        for args, code, kind, word in (
            (order, 6, "summary", "conflict"),
            (("-n", *order), 6, "summary", "conflict"),
            (("--append", f"{source}:/no/v1", "127.0.0.1"), 5, "summary", "rejected"),
            (("--append", f"{source}:/apps/v9", "--append", f"{source}:/apps/v9", "127.0.0.1"), 2, "error", "usage"),
            (("--append", f"{source}/nowhere:/apps/v9", "127.0.0.1"), 1, "error", "local"),
            (("-i", "nope", "--append", f"{source}:/apps/v9", "127.0.0.1"), 2, "error", "usage"),
            (("-t", "2s", "--append", f"{source}:/apps/v9", "127.0.0.9"), 3, "summary", "network"),
        ):
            done = cluster.sync("--json", *args)
            self.assertEqual(done.returncode, code, done.stderr)
            last = lines(done.stdout)[-1]
            self.assertEqual((last["type"], last["code"], last["exit_code"]), (kind, word, code), done.stderr)
        client = cluster.begin_sync("--json", "--append", f"{source}:/apps/v9", "127.0.0.9")
        assert client.stderr is not None
        client.stderr.readline()
        while "trying again" not in client.stderr.readline():
            pass
        client.send_signal(signal.SIGINT)
        done = cluster.finish(client)
        self.assertEqual(done.returncode, 130)
        last = lines(done.stdout)[-1]
        self.assertEqual((last["type"], last["code"], last["exit_code"]), ("error", "interrupted", 130))
        self.assertEqual(last["uploads"][0]["outcome"], "running")

    def test_rate(self) -> None:
        """A limit would not limit, or starve the upload: nodes would give up the client as too slow."""
        cluster = RealCluster(self, 3, {"apps": APPS})
        source = self.source({"a": "a"})
        (source / "big").write_bytes(bytes(range(256)) * 4096 * 2)  # 2 MiB
        (source / "rest").write_bytes(b"".join(number.to_bytes(4, "big") for number in range(131_072)))
        done = cluster.sync("--json", "--limit-rate", "200k", "--append", f"{source}:/apps/v1", "127.0.0.1")
        self.assertEqual(done.returncode, 0, done.stderr)
        (upload,) = lines(done.stdout)[-1]["uploads"]
        self.assertLess(max(0, upload["sent_bytes"] - 1_200_000) / 200_000, upload["seconds"])
        cluster.same(source, "/apps/v1")

    def test_variables(self) -> None:
        """A build server that is configured by variables would silently use defaults."""
        cluster = RealCluster(self, 1, {"apps": APPS})
        source = self.source({"a": "a", "b": "b"})
        variables = {
            "CIRUELA_PORT": str(cluster.port),
            "CIRUELA_IDENTITY": str(cluster.key),
            "CIRUELA_APPEND": f"{source}:/apps/v1",
            "CIRUELA_EXCLUDE": "b;nothing",
            "CIRUELA_JSON": "yes",
            "CIRUELA_DEADLNE": "5s",
        }
        done = self.run_with(cluster, variables, "127.0.0.1")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("CIRUELA_DEADLNE is not known; did you mean CIRUELA_DEADLINE?", done.stderr)
        self.assertEqual(lines(done.stdout)[0]["excluded"], 1)
        done = self.run_with(cluster, variables | {"CIRUELA_JSON": "", "CIRUELA_DEADLINE": "5"}, "127.0.0.1")
        self.assertEqual(done.returncode, 2)
        self.assertIn("the environment variable CIRUELA_DEADLINE: ", done.stderr)


class CommandLineTests(SynchronousTestCase):
    """Programs without any server."""

    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()

    def run_program(self, name: str, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program(name), *args],
            cwd=self.home,
            env=environment(self.home) | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=120,
        )

    @shows("F54")
    def test_bad_uses(self) -> None:
        """A mistake would look like a failure of the servers, or end in a traceback; or something would begin all the same."""
        order = ("--append", ".:/apps/v1", "127.0.0.1")
        for args, variables, word in (
            (("--require", "most", *order), {}, "argument --require: 'most' is not all, a number of nodes from 1 on, or a percentage"),
            (
                ("--limit-rate", "10", *order),
                {},
                "'10' is less than 1000 bytes a second; is a unit missing, as in 10M?",
            ),
            (("--exclude", "!", *order), {}, "no key was found"),
            (("--dry-run", "--append", ".:/apps/v1"), {}, "no ENTRY_POINT"),
            (("--dry-run", "127.0.0.1"), {}, "nothing to upload"),
            (("-n", *order), {}, "no key was found"),
            (order, {"CIRUELA_REQUIRE": "most"}, "the environment variable CIRUELA_REQUIRE: 'most' is not all"),
            (
                order,
                {"CIRUELA_DRY_RUN": "perhaps"},
                "CIRUELA_DRY_RUN: 'perhaps' is not one of 1, true, yes, 0, false, no",
            ),
            (order, {"CIRUELA_KEY": "nonsense", "CIRUELA_KYE": "x"}, "CIRUELA_KYE is not known; did you mean CIRUELA_KEY?"),
        ):
            done = self.run_program("ciruela-sync", *args, **variables)
            self.assertEqual((done.returncode, done.stdout), (2, ""), args)
            self.assertIn(word, done.stderr)
            self.assertNotIn("Traceback", done.stderr)
        done = self.run_program("ciruela", "completion", "powershell")
        self.assertEqual(done.returncode, 2)
        self.assertIn("'powershell' is not one of bash, zsh, tcsh, fish", done.stderr)

    def test_completion(self) -> None:
        """The script for a shell comes out of the installed program, alone on stdout."""
        done = self.run_program("ciruela", "completion", "bash")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("complete -", done.stdout)
        self.assertIn("--limit-rate", done.stdout)

    def test_index(self) -> None:
        """What ``ciruela index`` says is what ``ciruela sync`` uploads, with the same patterns."""
        source = small_tree(self.home / "source", {"a": "", "b.o": "", ".ciruelaignore": "*.o\n"})
        out = self.run_program("ciruela", "index", str(source)).stdout
        self.assertNotIn("b.o", out)
        self.assertIn("b.o", self.run_program("ciruela", "index", "--no-ignore-file", str(source)).stdout)
        done = self.run_program("ciruela", "index", str(source), CIRUELA_EXCLUDE="a;*.o", CIRUELA_NO_IGNORE_FILE="1")
        self.assertEqual(done.stdout.count(" f "), 1)
