"""A sample of the points of :mod:`tests.disk.sweep`, and damaged records (threats F39)."""

from __future__ import annotations

import errno
import gc
import random

from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk import states
from ciruela.disk.safedir import SafeDir
from ciruela.model.vpath import VPath
from tests.disk.bench import NEW, OLD, ONE, OTHER, V1, V2, V3, Bench, Violation, done, indexed, kill_after, outcome, succeed
from tests.disk.faulty import Killed
from tests.disk.sweep import KINDS, LEAST, LEAST_AT_PUSH, SCENARIOS, calls_of, check_point, points, scenario
from tests.disk.trees import flat
from tests.doubles.simos import SimOS
from tests.proof import shows

SAMPLE = 2


class Killing(SynchronousTestCase):
    """What kills leave behind in the log is no fault."""

    def setUp(self) -> None:
        self.addCleanup(self.forget_kills)

    def forget_kills(self) -> None:
        gc.collect()
        self.flushLoggedErrors(Killed)


class Sweep(Killing):
    """Some points of each scenario and kind, others than those beside them."""

    def sample(self, kinds: set[str], count: int = SAMPLE) -> None:
        for row, one in enumerate(SCENARIOS):
            calls = calls_of(one)
            for column, name in enumerate(sorted(kinds)):
                hits = [at for at, call in enumerate(calls, 1) if KINDS[name].hits(call)]
                for at in random.Random(row * 100 + column).sample(hits, min(count, len(hits))):
                    check_point(one, KINDS[name], at)

    @shows("F35", "F36", "F37", "A43", "I1", "I2", "I11")
    def test_kill(self) -> None:
        """A kill would leave half an image, one without its record, or debris for ever."""
        self.sample({"kill"}, 4)

    @shows("F28", "A38", "I1")
    def test_full(self) -> None:
        """A full disk would leave half an image, or keep the next upload from going through."""
        self.sample({"ENOSPC", "ENOSPC for good"})

    @shows("F29", "A39", "I1", "I2")
    def test_failing(self) -> None:
        """A disk that fails would have what was not written acknowledged."""
        self.sample({"EIO", "EIO for good"})

    def test_refused(self) -> None:
        """A disk that became read-only, a right that is missing, or too many open files would lose an image."""
        self.sample({"EROFS", "EROFS for good", "EACCES", "EMFILE"}, 1)

    @shows("F29", "K3.2")
    def test_removal_not_synced(self) -> None:
        """A removal whose record stands there although it was reported as failed would be remembered, and its tree be visible."""
        one = scenario("remove what is not recorded")
        for at in [at for at, call in enumerate(calls_of(one), 1) if call == "fsync"]:
            for kind in ("EIO", "EIO for good"):
                check_point(one, KINDS[kind], at)

    @shows("G8")
    def test_count(self) -> None:
        """The campaign would leave out what it is there for."""
        found, at_push = points(everything=True), points(everything=False)
        self.assertGreater(len(found), LEAST)
        self.assertGreater(len(at_push), LEAST_AT_PUSH)
        self.assertLess(set(at_push), set(found))
        for each in found, at_push:
            self.assertEqual({kind.name for _, kind, _ in each}, set(KINDS))
        kinds = {KINDS[name].code for name in KINDS}
        self.assertEqual(kinds, {None, errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EMFILE})
        for one in SCENARIOS:
            self.assertEqual([at for each, kind, at in at_push if each is one and kind.name == "kill"], [*range(1, len(calls_of(one)) + 1)])

    def test_no_more_points(self) -> None:
        """The last call of an operation would be left out."""
        one = scenario("write_state")
        self.assertRaises(Violation, check_point, one, KINDS["EIO"], len(calls_of(one)) + 1)

    def test_can_fail(self) -> None:
        """A sweep that finds nothing would say nothing."""
        one = scenario("write_state")
        self.assertIn("pwrite", calls_of(one))
        self.patch(states, "prepare_file", self.half)
        found = 0
        for at in range(1, len(calls_of(one)) - 2):
            try:
                check_point(one, KINDS["kill"], at)
            except Violation as error:
                found += "is bad" in str(error)
        self.assertGreater(found, 0)

    @staticmethod
    def half(directory: SafeDir, name: str, data: bytes) -> str:
        """Write a record in place, as a careless program does."""
        if directory.stat(name) is not None:
            directory.unlink(name)
        with directory.create(name, 0o644) as file:
            file.write_at(data, 0)
        return name


class Linking(SynchronousTestCase):
    """Files of other images that cannot be linked."""

    @shows("F33")
    def test_copied(self) -> None:
        """An upload would fail where a file system has no more links to give, or none at all."""
        for code in (None, errno.EXDEV, errno.EMLINK, errno.EPERM):
            bench = Bench()
            refused = []

            def before(call: str, _mount: str, code: int | None = code, refused: list[str] = refused) -> None:
                if call == "link" and code is not None:
                    refused.append(call)
                    raise OSError(code, "refused")

            with bench.sim.installed():
                succeed(bench, lambda bench: bench.upload(V2, OTHER, 1))
                bench.sim.before = before
                succeed(bench, lambda bench: bench.upload(V1, NEW, 5))
            self.assertEqual(bench.tree(V1), flat(NEW))
            self.assertEqual(len(refused), 0 if code is None else 1)
            self.assertEqual(bench.sim.inodes("/n/srv/web/v1/keep")[0][1].names, 2 if code is None else 1)


class Closing(SynchronousTestCase):
    """Descriptors."""

    def test_error_at_close(self) -> None:
        """An error that close tells would keep other descriptors open for ever, until the daemon cannot open any more."""
        sim = SimOS()
        sim.mkdirs("/a/b")
        sim.install(self)

        def before(call: str, _mount: str) -> None:
            if call == "close":
                raise OSError(errno.EIO, "Input/output error")

        sim.before = before
        with SafeDir.at("/a") as top, top.descend(("b",)) as below:
            self.assertEqual(below.names(), [])
        self.assertEqual(sim.open_descriptors(), 0)


class Damaged(Killing):
    """Each record is damaged in each way, and a daemon starts."""

    def setUp(self) -> None:
        super().setUp()
        self.ready = Bench()
        with self.ready.sim.installed():
            for vpath, spec in ((V1, OLD), (V2, OTHER), (ONE, OLD)):
                succeed(self.ready, lambda bench, vpath=vpath, spec=spec: bench.upload(vpath, spec, 1))
            succeed(self.ready, lambda bench: bench.upload(V3, OTHER, 1))
            succeed(self.ready, lambda bench: bench.remove(V3, OTHER, 1))
            kill_after(self.ready, "renameat2", 1, lambda bench: bench.upload(V1, NEW, 5))
            succeed(self.ready, lambda bench: bench.upload(V3, NEW, 6, upto="write"))
        self.ready.restart()
        self.files = {at: data for at, data in self.ready.records().items() if not at.startswith("/hashes/")}

    def start(self, bench: Bench, at: str, *, bad: bool) -> None:
        """It starts twice, shows what it showed, and what cannot be understood is set aside."""
        before = bench.sim.inodes(f"/n/db{at}")
        data = bytes(before[0][1].data) if before and before[0][1].is_file else None
        with bench.sim.installed():
            for _ in range(2):
                bench.restart()
                loaded = bench.loaded()
                for image in [indexed(spec)[0].image for spec in (OLD, NEW, OTHER)] if at.endswith(".ds1") else ():
                    found = done(bench.store.read_index_bytes(image))
                    self.assertIn(found, (None, *(indexed(spec)[1] for spec in (OLD, NEW, OTHER))))
                self.assertLessEqual({held.vpath for held in loaded.held}, {V1, V2, V3, ONE})
                shown: dict[VPath, dict[str, bytes] | None] = {V1: flat(NEW), V2: flat(OTHER), ONE: flat(OLD)}
                self.assertEqual({vpath: bench.tree(vpath) for vpath in shown}, shown)
            above, _, name = at.rpartition("/")
            if bad:
                kept = bench.sim.inodes(f"/n/db{above}/.{name}.backup")
                self.assertTrue(kept, f"{at} was not set aside")
                if data is not None:
                    self.assertEqual(bytes(kept[0][1].data), data)
            bench.store.close()
            found = outcome(bench, lambda bench: bench.upload(V3, NEW, 9))
            self.assertFalse(isinstance(found, Failure), f"{at}: {found}")

    def test_files(self) -> None:
        """A kind of record would be left out."""
        kinds = {name.rpartition("/")[2].partition(".")[2].replace("app.", "").replace("one.", "") for name in self.files}
        self.assertLessEqual({"state", "new.state", "tombstones", "base", "ds1"}, kinds)

    @shows("F39", "A45")
    def test_truncated(self) -> None:
        """A file that is cut off would stop the start, be believed, or lead to a deletion."""
        for at, data in self.files.items():
            for size in {0, 1, *range(5, len(data), 37), len(data) - 1}:
                bench = self.ready.copy()
                bench.sim.truncate(f"/n/db{at}", size)
                self.start(bench, at, bad=True)

    @shows("F39", "A45")
    def test_flipped(self) -> None:
        """A flipped bit would stop the start, or lead to a deletion."""
        rng = random.Random(3)
        for at, data in self.files.items():
            for offset in rng.sample(range(len(data)), 5):
                bench = self.ready.copy()
                bench.sim.bit_flip(f"/n/db{at}", offset, rng.randrange(8))
                self.start(bench, at, bad=at.endswith(".ds1"))

    @shows("F39")
    def test_directory(self) -> None:
        """A directory in place of a file would stop the start."""
        for at in self.files:
            bench = self.ready.copy()
            self.unlink(bench, at)
            bench.sim.mkdirs(f"/n/db{at}/inside")
            self.start(bench, at, bad=True)

    @shows("F39")
    def test_deleted(self) -> None:
        """A file that is gone would stop the start, or lead to a deletion."""
        for at in self.files:
            bench = self.ready.copy()
            self.unlink(bench, at)
            self.start(bench, at, bad=False)

    @staticmethod
    def unlink(bench: Bench, at: str) -> None:
        bench.sim.unlink(f"/n/db{at}")
