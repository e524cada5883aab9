"""What is left out of an index."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Sequence

from twisted.trial.unittest import SkipTest

from ciruela.client.options.common import Excluding
from ciruela.client.orders import LocalProblem
from ciruela.client.scanning import MAX_BYTES, excludes_for
from ciruela.disk import walk
from ciruela.disk.excludes import MOST_LINES, Excludes
from ciruela.disk.hashcache import HashCache
from ciruela.disk.scan import Scan, scan
from ciruela.index.parse import parse
from ciruela.model.errors import ConfigError
from tests.disk.test_hashcache import CacheCase
from tests.disk.test_scan import Clock, at_once
from tests.index.examples import KIND
from tests.proof import shows


class ExcludesCase(CacheCase):
    def make(self, *names: str) -> None:
        for name in names:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)

    def found(self, *patterns: str, caches: HashCache | None = None) -> Scan:
        excludes = Excludes([(pattern, "test") for pattern in patterns])
        return self.successResultOf(scan(str(self.root), KIND, at_once, self.progress.append, Clock(), caches, excludes))

    def paths(self, done: Scan) -> list[str]:
        index = parse(done.data, done.image)
        return [entry.path for directory in index.directories for entry in directory.entries]


class PatternTests(ExcludesCase):
    def test_gitignore(self) -> None:
        """Patterns mean what they mean to git, or a user who copies his .gitignore uploads what he meant to keep."""
        self.make("a.py", "a.pyc", "build/x", "src/build/x", "src/deep/er/t.log", "log/keep.log", "log/x.log", "dir/name", "name/x")
        for patterns, expected in (
            (["*.pyc", "*.log"], ["/a.py", "/build/x", "/dir/name", "/name/x", "/src/build/x"]),
            (["/build", "*.log"], ["/a.py", "/a.pyc", "/dir/name", "/name/x", "/src/build/x"]),
            (["build/", "name/", "log", "*.py[c]"], ["/a.py", "/dir/name", "/src/deep/er/t.log"]),
            (["*", "!*/", "!*.log"], ["/log/keep.log", "/log/x.log", "/src/deep/er/t.log"]),
            (["*.log", "!keep.log", "[bsdn]*", "a.*"], ["/log/keep.log"]),
            (["build", "!src/", "*.log", "a*", "name"], []),
            (["src/**", "!src/build", "!src/build/**", "/build", "log", "name", "dir", "a*"], ["/src/build/x"]),
            (["log/", "!log/keep.log", "src/**/t.log", "a.*", "dir", "name", "build"], []),
        ):
            self.assertEqual(self.paths(self.found(*patterns)), expected, patterns)

    def test_same_image(self) -> None:
        """An image is its content: left out is as if it had never been there, and other patterns give another id for other content only."""
        self.make("a", "b/c")
        plain = self.found()
        self.make("x.tmp", "tmp/y")
        left = self.found("*.tmp", "/tmp/")
        self.assertEqual((left.data, left.image, left.files, left.dirs, left.bytes), (plain.data, plain.image, plain.files, 2, plain.bytes))
        self.assertEqual((left.excluded, left.excluded_paths), (2, ("tmp/", "x.tmp")))
        self.assertEqual(plain.excluded, 0)

    def test_not_entered(self) -> None:
        """A directory of millions of files, or one that may not be read, is passed by; so is a name that fits into no index."""
        self.make("a")
        closed = self.root / "closed"
        closed.mkdir()
        real = walk.SafeDir.open_dir

        def open_dir(directory: walk.SafeDir, name: str) -> walk.SafeDir:
            self.assertNotEqual(name, "closed")
            return real(directory, name)

        self.patch(walk.SafeDir, "open_dir", open_dir)
        (self.root / os.fsdecode(b"\xff.bad")).write_text("")
        os.mkfifo(self.root / "pipe.bad")
        done = self.found("closed/", "*.bad")
        self.assertEqual((self.paths(done), done.excluded, done.warnings), (["/a"], 3, ()))

    def test_most_names(self) -> None:
        """A list of what was left out must not fill the memory; the number stays right."""
        self.patch(walk, "MOST_EXCLUDED", 3)
        self.make("a", *(f"{number}.x" for number in range(9)))
        done = self.found("*.x")
        self.assertEqual((done.excluded, done.excluded_paths), (9, ("0.x", "1.x", "2.x")))


class CacheTests(ExcludesCase):
    @shows("F52")
    def test_right_with_other_patterns(self) -> None:
        """What an earlier scan left out, or took in, would be in the next image although the patterns are others."""
        self.make("a", "b.tmp", "d/c", "d/e.tmp", "t/f")
        for patterns in ([], ["*.tmp"], ["*.tmp"], [], ["t/", "*.tmp"], ["t/"], ["/d"], ["c"]):
            cached = self.found(*patterns, caches=self.caches())
            plain = self.found(*patterns)
            self.assertEqual(
                (cached.data, cached.excluded, cached.excluded_paths), (plain.data, plain.excluded, plain.excluded_paths), patterns
            )

    def test_nothing_is_read_again(self) -> None:
        """With patterns each upload would read everything."""
        self.make("a", "b.tmp", "d/c", "d/e.tmp")
        self.found("*.tmp", caches=self.caches())
        self.reads.clear()
        (self.root / "b.tmp").write_text("changed")
        self.found("*.tmp", caches=self.caches())
        self.assertFalse({"a", "c", "b.tmp"} & set(self.reads))


class FileTests(ExcludesCase):
    def lines(self, wanted: Excluding, paths: Sequence[str]) -> list[bool]:
        excludes = excludes_for(str(self.root), wanted)
        return [excludes is not None and excludes.leave_out(path, directory=False) for path in paths]

    def test_order(self) -> None:
        """The command line has the last word, then the files that it names, then the directory's own."""
        (self.root / ".ciruelaignore").write_text("\ufeff# what is made\n\n*.o\n*.a\n")
        more = self.home / "more"
        more.write_text("!x.o\n*.c\n")
        names = ("x.o", "y.o", "z.a", "w.c")
        self.assertEqual(self.lines(Excluding(), names), [True, True, True, False])
        self.assertEqual(self.lines(Excluding((str(more),)), names), [False, True, True, True])
        self.assertEqual(self.lines(Excluding((str(more),), ("!*.c",)), names), [False, True, True, False])
        self.assertEqual(self.lines(Excluding((str(more),), (), ignore_file=False), names), [False, False, False, True])

    def test_nothing(self) -> None:
        """Without patterns nothing is slower than before."""
        self.assertIsNone(excludes_for(str(self.root), Excluding()))
        (self.root / ".ciruelaignore").write_text("# only words\n\n")
        self.assertIsNone(excludes_for(str(self.root), Excluding()))

    @shows("F54")
    def test_mistakes(self) -> None:
        """A list that cannot be read, and is silently empty, puts secrets on every server."""
        own = self.root / ".ciruelaignore"
        for make, word in (
            (lambda: own.write_bytes(b"\xff\xfe"), "is not a text in UTF-8"),
            (lambda: own.write_bytes(b"#" * (MAX_BYTES + 1)), "is larger than 1024 KiB"),
            (lambda: (own.unlink(), own.symlink_to("/etc/passwd")), "cannot be read"),
            (lambda: (own.unlink(), own.mkdir()), "cannot be read"),
        ):
            make()
            with self.assertRaises(LocalProblem) as caught:
                excludes_for(str(self.root), Excluding())
            self.assertIn(word, str(caught.exception))
            self.assertIn(".ciruelaignore", str(caught.exception))
        self.assertIsNone(excludes_for(str(self.root), Excluding(ignore_file=False)))
        named = Excluding(("/no/such/file",), (), ignore_file=False)
        self.assertIn("/no/such/file cannot be read", str(self.assertRaises(LocalProblem, excludes_for, str(self.root), named)))
        bad = self.home / "bad"
        bad.write_text("fine\n!\n")
        with self.assertRaises(ConfigError) as wrong:
            excludes_for(str(self.root), Excluding((str(bad),), (), ignore_file=False))
        self.assertIn(f"{bad}:2: '!' is not a pattern", str(wrong.exception))
        self.assertRaises(ConfigError, Excludes, [("x", "file:1")] * (MOST_LINES + 1))


class GitTests(ExcludesCase):
    def test_as_git(self) -> None:
        """Git itself, where it is installed, leaves out the same of random trees with random patterns."""
        git = shutil.which("git")
        if git is None:
            raise SkipTest("git is not installed")
        rng = random.Random(5)
        parts = ("a", "b", "ab", "c.x", "d.y")
        forms = (
            "{}",
            "/{}",
            "{}/",
            "!{}",
            "!{}/",
            "!/{}",
            "*",
            "!*/",
            "*.x",
            "!*.y",
            "{}/*",
            "/{}/**",
            "**/{}",
            "{}/{}",
            "!{}/{}",
            "a*",
            "?",
        )
        for round_ in range(60):
            shutil.rmtree(self.root)
            self.make(*{"/".join(rng.choice(parts) for _ in range(rng.randint(1, 3))) + f"_{number}" for number in range(8)})
            self.make(*{"/".join(["x", *(rng.choice(parts) for _ in range(rng.randint(1, 2)))]) + "/e" for _ in range(4)})
            patterns = [rng.choice(forms).format(*(rng.choice((*parts, "x", "e")) for _ in range(2))) for _ in range(rng.randint(1, 5))]
            ours = [path for path in self.paths(self.found(*patterns)) if (self.root / path[1:]).is_file()]
            listed = self.home / "patterns"
            listed.write_text("\n".join(patterns) + "\n")
            command = [git, "-c", "core.excludesFile=", "ls-files", "--others", "-z", f"--exclude-from={listed.absolute()}"]
            away = {"GIT_DIR": str(self.home.absolute() / "git"), "GIT_WORK_TREE": str(self.root.absolute()), "HOME": str(self.home)}
            if round_ == 0:
                subprocess.run([git, "init", "-q"], env=os.environ | away, check=True, capture_output=True)
            done = subprocess.run(command, cwd=self.root, env=os.environ | away, check=True, capture_output=True, encoding="utf-8")
            theirs = sorted(f"/{name}" for name in done.stdout.split("\0") if name)
            self.assertEqual(sorted(ours), theirs, patterns)
