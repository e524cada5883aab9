"""``ciruela verify``: the answer to "is this directory that image?"."""

from __future__ import annotations

import io
import os
import random
import select
import threading
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.context import AppContext
from ciruela.client.main import exit_for
from ciruela.client.options.local import VerifyOptions
from ciruela.client.options.table import parse
from ciruela.client.orders import EVERYBODYS, OURS, LocalProblem
from ciruela.client.verify import differences, verify
from ciruela.index.digest import HashKind
from ciruela.index.tree import Index
from ciruela.model.errors import BadIndex
from tests.client.test_commands import Output, at_once
from tests.disk.trees import Spec, index_bytes, plant
from tests.proof import shows

TREE: Spec = {"/a/deep/file": b"deep", "/a/b": b"x" * 100_000, "/run*": b"#!", "/link": "a/b", "/void": None, "/none": b""}


def compared(found: Spec) -> list[tuple[str, str]]:
    return list(differences(index_bytes(TREE)[0], index_bytes(found)[0]))


class Differences(SynchronousTestCase):
    """What differs is told by its name, and only once."""

    def test_same(self) -> None:
        """A good copy would be called bad."""
        self.assertEqual(compared(dict(TREE)), [])

    def test_each_kind(self) -> None:
        """A damage of one kind would go unnoticed, or send its finder to the wrong file."""
        for change, want in (
            ({"/none": b"some"}, [("changed", "/none")]),
            ({"/a/b": b"x" * 99_999 + b"y"}, [("changed", "/a/b")]),
            ({"/a/b": b"x" * 99_999}, [("changed", "/a/b")]),
            ({"/link": "a/c"}, [("changed", "/link")]),
            ({"/link": b"a/b"}, [("changed", "/link")]),
            ({"/more": b""}, [("extra", "/more")]),
            ({"/void": b""}, [("changed", "/void")]),
        ):
            self.assertEqual(compared({**TREE, **change}), want)
        without = dict(TREE)
        del without["/run*"]
        self.assertEqual(compared(without), [("missing", "/run")])
        self.assertEqual(compared({**without, "/run": b"#!"}), [("mode", "/run")])
        self.assertEqual(compared({**without, "/run": b"??"}), [("changed", "/run")])

    def test_whole_directories(self) -> None:
        """A missing directory is one line, not ten thousand; its neighbors with similar names are still looked at."""
        without = {path: content for path, content in TREE.items() if not path.startswith("/a/")}
        self.assertEqual(compared({**without, "/a-b": b""}), [("missing", "/a"), ("extra", "/a-b")])
        self.assertEqual(compared({**TREE, "/z/1": b"", "/z/2": b"", "/z.": b""}), [("extra", "/z"), ("extra", "/z.")])
        self.assertEqual(compared({**without, "/a": b"file"}), [("changed", "/a")])


class Verify(SynchronousTestCase):
    """The command over real directories and index files."""

    def setUp(self) -> None:
        self.top = Path(self.mktemp())
        self.tree = self.top / "tree"
        plant(self.tree, TREE)
        self.out, self.err = Output(), Output()

    def indexed(self, kind: HashKind = HashKind.BLAKE2B) -> tuple[Index, str]:
        index, data = index_bytes(TREE, kind)
        path = self.top / "index.ds1"
        path.write_bytes(data)
        return index, str(path)

    def run_verify(self, *words: str) -> Deferred[int]:
        options = parse(["verify", *words])
        assert isinstance(options, VerifyOptions)
        around = AppContext(
            reactor=Clock(),
            now_ms=lambda: 0,
            rng=random.Random(1),
            environ={"XDG_CACHE_HOME": str(self.top.absolute())},
            stdout=self.out,
            stderr=self.err,
            in_thread=at_once,
            look_up_in_thread=at_once,
        )
        return Deferred.fromCoroutine(verify(options, around))

    def code(self, *words: str) -> int:
        found: int = self.successResultOf(self.run_verify(*words))
        return found

    def test_no_cache(self) -> None:
        """Who verifies wants the bytes on the disk to be read, not what was known of them."""
        index, path = self.indexed()
        self.assertEqual(self.code(str(self.tree), path), 0)
        self.assertEqual(self.code(str(self.tree), index.image.hex()), 0)
        self.assertEqual(sorted(one.name for one in self.top.iterdir()), ["index.ds1", "tree"])

    def test_against_an_index(self) -> None:
        """Exit code 0 and silence for a good copy, whatever the hash of its index is."""
        for kind in HashKind:
            index, path = self.indexed(kind)
            self.assertEqual(self.code(str(self.tree), path), 0)
            self.assertIn(f"is the image {index.image.hex()}", self.err.text)
        self.assertEqual(self.out.text, "")

    @shows("W1")
    def test_through_a_pipe(self) -> None:
        """``verify DIR <(ciruela index DIR)`` was refused: an index had to be written to a disk to be compared with."""
        _, path = self.indexed()
        pipe = str(self.top / "pipe")
        os.mkfifo(pipe)
        writer = threading.Thread(target=lambda: Path(pipe).write_bytes(Path(path).read_bytes()))
        writer.start()
        self.addCleanup(writer.join)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        self.assertTrue(select.select([reader], [], [], 20)[0], "nothing was written")
        self.assertEqual(self.code(str(self.tree), pipe), 0)

    def test_against_a_wrong_tree(self) -> None:
        """One line on stdout for each difference, harmless whatever the names are, and exit code 1."""
        _, path = self.indexed()
        (self.tree / "a" / "b").write_bytes(b"x" * 99_999 + b"y")
        (self.tree / "none").chmod(0o755)
        (self.tree / "link").unlink()
        (self.tree / "\x1b[2J\nequal").write_bytes(b"")
        self.assertEqual(self.code("-q", str(self.tree), path), 1)
        self.assertEqual(self.out.text.splitlines(), ["extra    /\\x1b[2J\\x0aequal", "changed  /a/b", "missing  /link", "mode     /none"])
        self.assertEqual(self.err.text, "")

    def test_against_an_id(self) -> None:
        """The id is enough, and nobody has to know with which hash it was made."""
        for kind in HashKind:
            self.assertEqual(self.code(str(self.tree), index_bytes(TREE, kind)[0].image.hex().upper()), 0)
        self.assertEqual(self.out.text, "")
        (self.tree / "none").write_bytes(b"1")
        self.assertEqual(self.code("-q", str(self.tree), index_bytes(TREE)[0].image.hex()), 1)
        changed = {**TREE, "/none": b"1"}
        want = [f"other    {index_bytes(changed, kind)[0].image.hex()} {kind.value}" for kind in (OURS, EVERYBODYS, HashKind.SHA512_256)]
        self.assertEqual(self.out.text.splitlines(), want)

    def test_without_an_image(self) -> None:
        """The id of the directory, alone on stdout, so that a script can keep it."""
        self.assertEqual(self.code("--hash", "blake3/256", str(self.tree)), 0)
        self.assertEqual(self.out.text, index_bytes(TREE, HashKind.BLAKE3)[0].image.hex() + "\n")

    def test_what_no_image_has(self) -> None:
        """A fifo in the directory is in no index; a copy with one is not the image, though their ids are the same."""
        index, path = self.indexed()
        os.mkfifo(self.tree / "pipe")
        self.assertEqual(self.code(str(self.tree), path), 1)
        self.assertEqual(self.code(str(self.tree), index.image.hex()), 1)
        self.assertIn("pipe: a fifo", self.err.text)

    def test_unreadable(self) -> None:
        """Nothing that cannot be read is ever called the same, and the error names it."""
        _, path = self.indexed()
        os.mkfifo(self.top / "fifo")
        (self.top / "bad.ds1").write_bytes(Path(path).read_bytes()[:-2] + b"0\n")
        for words, name, kind in (
            ((str(self.tree), str(self.top / "absent.ds1")), "absent.ds1", LocalProblem),
            ((str(self.tree), str(self.top)), str(self.top), LocalProblem),
            ((str(self.tree), str(self.top / "fifo")), "fifo", LocalProblem),
            ((str(self.tree), str(self.top / "bad.ds1")), "bad.ds1", BadIndex),
            ((str(self.top / "nowhere"), path), "nowhere", LocalProblem),
            ((str(self.top / "nowhere"),), "nowhere", LocalProblem),
        ):
            failure = self.failureResultOf(self.run_verify(*words), kind)
            code, text = exit_for(failure, False)
            self.assertEqual(code, 1)
            self.assertIn(name, text)
        self.assertEqual(self.out.text, "")


class Line(SynchronousTestCase):
    """The command line of ``verify``."""

    def test_forms(self) -> None:
        """An image id is an id, everything else a file; nothing at all is a mistake."""
        digits = "0A" * 32
        with_id = parse(["verify", "dir", digits])
        assert isinstance(with_id, VerifyOptions)
        self.assertEqual((with_id.directory, with_id.image, with_id.index_file), ("dir", bytes.fromhex(digits), None))
        with_file = parse(["-q", "verify", "dir", digits[1:]])
        assert isinstance(with_file, VerifyOptions)
        self.assertEqual((with_file.image, with_file.index_file, with_file.common.verbosity), (None, digits[1:], 0))
        for words in ([], ["dir", "index", "more"]):
            with self.assertRaises(SystemExit) as caught:
                self.patch(__import__("sys"), "stderr", io.StringIO())
                parse(["verify", *words])
            self.assertEqual(caught.exception.code, 2)
