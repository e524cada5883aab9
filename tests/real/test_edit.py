"""``ciruela edit`` and ``ciruela put-file`` against real daemons: one file changes, everywhere, and nothing else does."""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import signal
import subprocess
import termios
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.daemons import APPS, CFG, RealCluster, environment, program

VPATH = "/cfg/site"


def tree(top: Path) -> Path:
    """A small site: an executable file, an empty directory, a link, a file of several blocks."""
    source = top / "site"
    (source / "bin").mkdir(parents=True)
    (source / "empty" / "inside").mkdir(parents=True)
    (source / "app.conf").write_text("color: red\n")
    (source / "bin" / "run").write_text("#!/bin/sh\n")
    (source / "bin" / "run").chmod(0o755)
    (source / "link").symlink_to("app.conf")
    (source / "large.bin").write_bytes(bytes(range(256)) * 1000)
    (source / "picture").write_bytes(b"\x89PNG\0\0")
    return source


class EditCase(SynchronousTestCase):
    def cluster(self, count: int, *, down: tuple[int, ...] = (), put: bool = True) -> RealCluster:
        """A cluster with the site on all nodes that are not ``down``."""
        cluster = RealCluster(self, count, {"cfg": CFG, "apps": APPS}, down=down)
        self.source = tree(cluster.top)
        self.nodes = [f"127.0.0.{number + 1}" for number in range(count) if number not in down]
        if put:
            cluster.expect(cluster.sync("-m", "--replace", f"{self.source}:{VPATH}", *self.nodes), 0)
        return cluster

    def editor(self, cluster: RealCluster, *lines: str) -> str:
        """A script in place of an editor; ``$1`` is the file."""
        path = cluster.top / "an editor"
        path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
        path.chmod(0o755)
        return f"'{path}'"

    def command(self, cluster: RealCluster, name: str, *args: object, nodes: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on /cfg/site with the key of the cluster."""
        self.temp = cluster.top / "temp"
        self.temp.mkdir(exist_ok=True)
        words = [program("ciruela"), name, "--port", cluster.port, "-i", cluster.key, "-d", VPATH, *args, "-m", *(nodes or self.nodes)]
        return cluster.run(["/usr/bin/env", f"TMPDIR={self.temp}", *map(str, words)])

    def drafts(self) -> set[str]:
        return {path.name for path in self.temp.iterdir()}

    def kept(self, said: str) -> Path:
        """The text that was kept."""
        path = Path(said.split("your text is kept in ")[1].splitlines()[0])
        self.assertIn(self.temp, path.parents)
        return path


class Edit(EditCase):
    def test_edit(self) -> None:
        """What was typed would not be on all servers, or something else of the directory would be gone."""
        cluster = self.cluster(3)
        editor = self.editor(
            cluster, 'test "$(basename "$1")" = app.conf || exit 9', 'stat -c %a "$(dirname "$1")" "$1" >mode', 'echo "size: 5" >>"$1"'
        )
        done = self.command(cluster, "edit", "-f", "/app.conf", "--editor", editor)
        cluster.expect(done, 0, "DONE", "3/3 nodes")
        self.assertEqual((cluster.home / "mode").read_text().split(), ["700", "600"])
        (self.source / "app.conf").write_text("color: red\nsize: 5\n")
        cluster.same(self.source, VPATH)
        self.assertEqual(self.drafts(), set())
        for node in cluster.nodes:
            self.assertLess(node.received(), 2 * 256_100, "the whole image was sent again")

    @shows("F54")
    def test_changed_meanwhile(self) -> None:
        """What a colleague uploaded while the editor was open would be undone, or what was typed would be lost."""
        cluster = self.cluster(3)
        colleague = cluster.top / "colleague"
        colleague.write_text("color: green\n")
        where = ["--port", cluster.port, "-i", cluster.key, "-d", VPATH, "-f", "/other"]
        words = ["put-file", "-q", *where, "-s", colleague, "-m", *self.nodes]
        put = " ".join(map(str, [program("ciruela"), *words]))
        editor = self.editor(cluster, 'echo "size: 5" >>"$1"', f"{put} || exit 9")
        said = cluster.expect(
            self.command(cluster, "edit", "-f", "/app.conf", "--editor", editor), 6, "somebody else", "your text is kept in"
        )
        self.assertEqual(self.kept(said).read_text(), "color: red\nsize: 5\n")
        shutil.copy(colleague, self.source / "other")
        cluster.same(self.source, VPATH)

    def test_one_node(self) -> None:
        """What happens around the editor would lose a text, change something else, or not be told; starting a cluster takes longest."""
        cluster = self.cluster(1)
        self._bad_uses(cluster)
        self._unchanged_and_executable(cluster)
        self._editor_failed(cluster)
        self._append_only(cluster)
        self._variables(cluster)
        self._interrupted(cluster)
        self._terminal(cluster)

    def _bad_uses(self, cluster: RealCluster) -> None:
        """Whoever mistypes would not learn what is wrong."""

        def refused(code: int, *words: str, f: str = "/app.conf", args: tuple[str, ...] = ("--editor", "true")) -> None:
            cluster.expect(self.command(cluster, "edit", "-f", f, *args), code, *words)

        refused(1, "/bin is a directory", f="/bin")
        refused(1, "/link is a symbolic link to app.conf", f="/link")
        refused(1, "/app.conf is a file", f="/app.conf/below")
        refused(1, "/picture is no text", f="/picture")
        refused(1, "no image is there", args=("-d", "/cfg/nothing", "--editor", "true"))
        refused(1, "is not there; name another one with --editor", args=("--editor", "no-such-editor"))
        refused(1, "cannot be read", args=("--editor", "'broken"))
        refused(2, "does not begin with a slash", f="app.conf")
        refused(2, "name a file in it", f="/")
        refused(2, "--hash does not go with", args=("--hash", "blake3/256"))
        done = self.command(cluster, "edit", "-f", "/app.conf", "--editor", "true", nodes=["127.0.0.9"])
        cluster.expect(done, 3, "no node answers", "connection refused")
        bare = [program("ciruela"), "edit", "--port", str(cluster.port)]
        cluster.expect(cluster.run([*bare, "-d", VPATH, "-f", "/a", "127.0.0.1"]), 2, "no key was found")
        cluster.expect(cluster.run([*bare, "-f", "/a", "127.0.0.1"]), 2, "-d/--directory")
        cluster.expect(cluster.run([*bare, "-d", VPATH, "-f", "/a"]), 2, "no ENTRY_POINT")

    def _unchanged_and_executable(self, cluster: RealCluster) -> None:
        """An editor that is left without a change would upload; an edited script would not be executable any more."""
        cluster.expect(self.command(cluster, "edit", "-f", "/app.conf", "--editor", "true"), 0, "unchanged")
        self.assertEqual(self.drafts(), set())
        editor = self.editor(cluster, 'echo "#!/bin/bash" >"$1.new"', 'mv "$1.new" "$1"')
        cluster.expect(self.command(cluster, "edit", "-f", "/bin/run", "--editor", editor), 0, "1/1 nodes")
        (self.source / "bin" / "run").write_text("#!/bin/bash\n")
        cluster.expect(self.command(cluster, "edit", "-f", "/new/dir/file", "--editor", "touch"), 0, "1/1 nodes")
        (self.source / "new" / "dir").mkdir(parents=True)
        (self.source / "new" / "dir" / "file").touch()
        cluster.same(self.source, VPATH)
        cluster.expect(self.command(cluster, "edit", "-f", "/nothing", "--editor", "true"), 0, "unchanged")
        cluster.same(self.source, VPATH)

    def _editor_failed(self, cluster: RealCluster) -> None:
        """An editor that fell over would upload half a text, or throw it away."""
        editor = self.editor(cluster, 'echo half >"$1"', "exit 3")
        said = cluster.expect(
            self.command(cluster, "edit", "-f", "/app.conf", "--editor", editor), 1, "ended with 3", "nothing was uploaded"
        )
        self.assertEqual(self.kept(said).read_text(), "half\n")
        editor = self.editor(cluster, 'echo half >"$1"', "kill -TERM $$")
        said = cluster.expect(self.command(cluster, "edit", "-f", "/app.conf", "--editor", editor), 1, "signal 15")
        self.kept(said)
        before = self.drafts()
        cluster.expect(self.command(cluster, "edit", "-f", "/app.conf", "--editor", "false"), 1, "ended with 1", "nothing was uploaded")
        cluster.expect(self.command(cluster, "edit", "-f", "/app.conf", "--editor", "rm"), 1, "removed the file")
        self.assertEqual(self.drafts(), before)
        cluster.same(self.source, VPATH)

    def _append_only(self, cluster: RealCluster) -> None:
        """A directory that only grows would be changed, or somebody would type for nothing."""
        cluster.expect(cluster.sync("--append", f"{self.source}:/apps/v1", self.nodes[0]), 0)
        editor, before = self.editor(cluster, "touch opened", 'echo x >>"$1"'), self.drafts()
        done = self.command(cluster, "edit", "-d", "/apps/v1", "-f", "/app.conf", "--editor", editor)
        cluster.expect(done, 5, "dir_is_append_only", "nothing was sent")
        self.assertFalse((cluster.home / "opened").exists(), "the editor was opened for nothing")
        self.assertEqual(self.drafts(), before)

    def _variables(self, cluster: RealCluster) -> None:
        """The editor that a user has chosen for everything would not be used."""
        first = self.editor(cluster, "exit 0")
        for chosen in (
            {"CIRUELA_EDITOR": first, "VISUAL": "false"},
            {"VISUAL": first, "EDITOR": "false"},
            {"EDITOR": f"{first} -x", "VISUAL": " "},
        ):
            done = subprocess.run(
                [
                    program("ciruela"),
                    "edit",
                    "--port",
                    str(cluster.port),
                    "-i",
                    str(cluster.key),
                    "-d",
                    VPATH,
                    "-f",
                    "/app.conf",
                    "127.0.0.1",
                ],
                env=environment(cluster.home) | chosen,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                timeout=60,
            )
            cluster.expect(done, 0, "unchanged")

    def _interrupted(self, cluster: RealCluster) -> None:
        """Ctrl-C in the editor would end the program around it; a closed terminal would take what was typed with it."""
        editor = self.editor(
            cluster, 'echo typed >>"$1"', "trap : INT", "kill -INT $PPID", "sleep 0.2", "kill -INT $PPID", 'echo more >>"$1"'
        )
        cluster.expect(self.command(cluster, "edit", "-f", "/app.conf", "--editor", editor), 0, "1/1 nodes")
        with (self.source / "app.conf").open("a") as text:
            text.write("typed\nmore\n")
        cluster.same(self.source, VPATH)
        editor = self.editor(cluster, 'echo lost >>"$1"', "kill -TERM $PPID", "exec sleep 60")
        done = self.command(cluster, "edit", "-f", "/app.conf", "--editor", editor)
        said = cluster.expect(done, 128 + signal.SIGTERM, "your text is kept in")
        self.assertIn("lost", self.kept(said).read_text())

    def _terminal(self, cluster: RealCluster) -> None:
        """The keys that a user types in the editor would go to the program around it, and Ctrl-C would end both."""
        lines = ("f=$1", "test -t 0 && test -t 1 && test -t 2 || exit 9", """trap 'echo interrupted >>"$f"; echo one' INT""", "echo two")
        editor = self.editor(cluster, *lines, "until read line; do :; done", 'echo "$line" >>"$f"')
        words = ["edit", "--port", cluster.port, "-i", cluster.key, "-d", VPATH, "-f", "/app.conf", "--editor", editor, "127.0.0.1"]
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        client = subprocess.Popen(
            [program("ciruela"), *map(str, words)],
            env=environment(cluster.home),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.addCleanup(client.wait)
        self.addCleanup(client.kill)
        os.close(theirs)
        said = b""

        def hear(word: bytes) -> None:
            nonlocal said
            while word not in said:
                said += os.read(ours, 1000)  # fails at the end, which is when the program ends before it says that

        hear(b"two")
        os.write(ours, b"\x03")
        hear(b"one")
        os.write(ours, b"typed\n")
        hear(b"1/1 nodes")
        self.assertEqual(client.wait(), 0, said)
        with (self.source / "app.conf").open("a") as text:
            text.write("interrupted\ntyped\n")
        cluster.same(self.source, VPATH)


class PutFile(EditCase):
    def test_put(self) -> None:
        """A file of several megabytes would not come through, or the mode and the empty directories would be lost."""
        cluster = self.cluster(3)
        local = cluster.top / "local"
        local.write_bytes(os.urandom(5_000_000))
        cluster.expect(self.command(cluster, "put-file", "-f", "/bin/run", "-s", local), 0, "3/3 nodes")
        shutil.copyfile(local, self.source / "bin" / "run")
        cluster.same(self.source, VPATH)
        local.write_bytes(b"x" * 65536)
        local.chmod(0o755)
        cluster.expect(self.command(cluster, "put-file", "-f", "/new/tool", "-s", local), 0, "3/3 nodes")
        (self.source / "new").mkdir()
        shutil.copy(local, self.source / "new" / "tool")
        cluster.same(self.source, VPATH)
        cluster.expect(self.command(cluster, "put-file", "-f", "/new/tool", "-s", local), 0, "is so already")
        cluster.expect(self.command(cluster, "put-file", "--no-executable", "-f", "/new/tool", "-s", local), 0, "3/3 nodes")
        (self.source / "new" / "tool").chmod(0o644)
        local.write_bytes(b"")
        cluster.expect(self.command(cluster, "put-file", "--executable", "-f", "/large.bin", "-s", local), 0, "3/3 nodes")
        (self.source / "large.bin").write_bytes(b"")
        (self.source / "large.bin").chmod(0o755)
        cluster.same(self.source, VPATH)

    def test_node_without_the_image(self) -> None:
        """A server that was down when the directory came would not get it whole with the next small change."""
        cluster = RealCluster(self, 3, [{"cfg": CFG}, {"cfg": CFG}, {"cfg": CFG, "more": CFG}], down=(2,))
        self.source = tree(cluster.top)
        for number in range(40):
            (self.source / f"file{number}").write_bytes(os.urandom(200_000))
        done = cluster.sync("--early-timeout", "1s", "-m", "--replace", f"{self.source}:{VPATH}", "127.0.0.1", "127.0.0.2")
        cluster.expect(done, 4, "PARTIAL", "2/3 nodes")
        cluster.kill(0)
        cluster.kill(1)
        # Alone it cannot reconcile: it comes up empty, and hears of the directory from the client at first.
        cluster.start(2)
        self.assertIsNone(cluster.nodes[2].get("/list-dir/cfg").get("site"))
        cluster.start(0, 1)
        local = cluster.top / "local"
        local.write_text("new\n")
        self.nodes = ["127.0.0.3", "127.0.0.1", "127.0.0.2"]
        cluster.expect(self.command(cluster, "put-file", "-f", "/app.conf", "-s", local), 0, "3/3 nodes")
        shutil.copyfile(local, self.source / "app.conf")
        cluster.same(self.source, VPATH)

    def test_only_the_client_can_reach_both(self) -> None:
        """An empty server that hears of no other cannot know that this image is to be replaced: it refuses, and nothing changes."""
        cluster = RealCluster(self, 2, {"cfg": CFG}, groups=[[0], [1]])
        self.source = tree(cluster.top)
        cluster.expect(cluster.sync("--replace", f"{self.source}:{VPATH}", "127.0.0.1"), 0)
        local = cluster.top / "local"
        local.write_text("new\n")
        self.nodes = ["127.0.0.1", "127.0.0.2"]
        cluster.expect(self.command(cluster, "put-file", "-f", "/app.conf", "-s", local), 6, "REJECTED", "replace_doesnt_match_index")
        cluster.same(self.source, VPATH, 0)
        self.assertFalse(cluster.nodes[1].has(VPATH))

    def test_several_clusters(self) -> None:
        """A file for two clusters would carry the rest of the one directory to the other, or overwrite a text that nobody has seen."""
        cluster = RealCluster(self, 2, {"cfg": CFG}, groups=[[0], [1]])
        one, two = tree(cluster.top / "a"), tree(cluster.top / "b")
        (two / "large.bin").write_bytes(b"other")
        cluster.expect(cluster.sync("--replace", f"{one}:{VPATH}", "127.0.0.1"), 0)
        cluster.expect(cluster.sync("--hash", "blake2b/256", "--replace", f"{two}:{VPATH}", "127.0.0.2"), 0)
        bare = ["--port", str(cluster.port), "-i", str(cluster.key), "-d", VPATH]
        clusters = ["127.0.0.1", "127.0.0.2"]
        editor = self.editor(cluster, 'echo "size: 5" >>"$1"')
        done = cluster.run([program("ciruela"), "edit", *bare, "-f", "/app.conf", "--editor", editor, *clusters])
        cluster.expect(done, 0, "127.0.0.1 /cfg/site  DONE", "127.0.0.2 /cfg/site  DONE")
        for source in (one, two):
            (source / "app.conf").write_text("color: red\nsize: 5\n")
        cluster.same(one, VPATH, 0)
        cluster.same(two, VPATH, 1)
        (one / "large.bin").write_text("one\n")
        (two / "large.bin").write_text("two\n")
        cluster.expect(cluster.sync("--replace", f"{one}:{VPATH}", "127.0.0.1"), 0)
        cluster.expect(cluster.sync("--replace", f"{two}:{VPATH}", "127.0.0.2"), 0)
        done = cluster.run([program("ciruela"), "edit", *bare, "-f", "/large.bin", "--editor", editor, *clusters])
        cluster.expect(done, 6, "is not the same in /cfg/site of 127.0.0.1 and 127.0.0.2")
        done = cluster.run([program("ciruela"), "put-file", *bare, "-f", "/large.bin", "-s", str(one / "app.conf"), *clusters])
        cluster.expect(done, 0, "127.0.0.1 /cfg/site  DONE", "127.0.0.2 /cfg/site  DONE")
        for source in (one, two):
            shutil.copy(source / "app.conf", source / "large.bin")
        cluster.same(one, VPATH, 0)
        cluster.same(two, VPATH, 1)

    def test_bad_uses(self) -> None:
        """Whoever mistypes would not learn what is wrong."""
        cluster = self.cluster(1)
        fifo = cluster.top / "fifo"
        os.mkfifo(fifo)
        for code, local, words in (
            (1, cluster.top / "nothing", "cannot be read: No such file or directory"),
            (1, cluster.top, "is a directory; name a file"),
            (1, fifo, "it is not a regular file"),
        ):
            cluster.expect(self.command(cluster, "put-file", "-f", "/app.conf", "-s", local), code, words)
        local = self.source / "app.conf"
        cluster.expect(self.command(cluster, "put-file", "-f", "/bin", "-s", local), 1, "/bin is a directory")
        cluster.expect(self.command(cluster, "put-file", "-f", "/app.conf"), 2, "-s/--source-file")


class Upload(EditCase):
    def upload(self, cluster: RealCluster, *args: object) -> subprocess.CompletedProcess[str]:
        return cluster.run([program("ciruela"), "upload", "--port", str(cluster.port), "-i", str(cluster.key), *map(str, args)])

    def test_upload(self) -> None:
        """Scripts with the old command would break, or would not learn that some target failed."""
        cluster = self.cluster(3, put=False)
        for path in ("/apps/v1", "/apps/v2"):
            self.assertEqual(self.source.name, "site")
            done = self.upload(cluster, "-d", self.source, f"127.0.0.1:{path}", f"127.0.0.2:{VPATH}")
            cluster.expect(done, 0, "ciruela upload is deprecated; use: ciruela sync --append", f"127.0.0.1 {path}", f"127.0.0.2 {VPATH}")
            cluster.same(self.source, path)
            cluster.same(self.source, VPATH)
        (self.source / "app.conf").write_text("other\n")
        cluster.expect(self.upload(cluster, "-d", self.source, "127.0.0.1:/apps/v1"), 1, "already_exists")
        cluster.expect(self.upload(cluster, "-x", "-d", self.source, "127.0.0.1:/apps/v1"), 0, "--append-weak")
        cluster.expect(self.upload(cluster, "--replace", "-d", self.source, f"127.0.0.1:{VPATH}"), 0, "--replace")
        cluster.same(self.source, VPATH)
        cluster.expect(
            self.upload(cluster, "-d", self.source, "127.0.0.1:/apps/v3", "127.0.0.1:/nokey/v1"), 1, "/apps/v3   DONE", "no_config"
        )

    def test_bad_uses(self) -> None:
        """Whoever mistypes would not learn what is wrong."""
        cluster = self.cluster(1, put=False)
        cluster.expect(self.upload(cluster, "127.0.0.1:/apps/v1"), 2, "-d/--directory")
        cluster.expect(self.upload(cluster, "-d", self.source), 2, "HOST:/VPATH")
        cluster.expect(self.upload(cluster, "-d", self.source, "/apps/v1"), 2, "is not HOST:/VPATH")
        cluster.expect(self.upload(cluster, "-d", self.source, "--replace", "-x", "h:/apps/v1"), 2, "do not go together")
        cluster.expect(self.upload(cluster, "-d", "nothing", "127.0.0.1:/apps/v1"), 2, "nothing cannot be read")
        cluster.expect(self.upload(cluster, "-k", "NO_SUCH", "-d", self.source, "127.0.0.1:/apps/v1"), 2, "NO_SUCH")
