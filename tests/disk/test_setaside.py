"""What stands at the name of an image without a record: never lost, whatever is killed when."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk import commit
from ciruela.disk.layout import place
from ciruela.disk.removal import DelayedDeletions
from ciruela.disk.safedir import SafeDir
from ciruela.model.vpath import VPath
from tests.disk.faulty import Killed
from tests.disk.powercuts import check_plan
from tests.disk.real import V1, Real
from tests.disk.sweep import KINDS, calls_of, check_point, scenario
from tests.disk.trees import CHANGED, SMALL, flat, index_bytes, on_disk, plant
from tests.proof import shows


class KillTests(SynchronousTestCase):
    """Every call from just before something is shown or hidden, in a commit that sets it aside, and in a removal of what is unrecorded."""

    def kill(self, name: str, moment: str) -> None:
        one = scenario(name)
        calls = calls_of(one)
        for at in range(max(1, calls.index(moment) - 20), min(len(calls), calls.index(moment) + 60)):
            check_point(one, KINDS["kill"], at)
        self.flushLoggedErrors(Killed)

    @shows("K3.1", "A43", "F35", "I9")
    def test_set_aside(self) -> None:
        """A kill would leave the only copy of something as debris, which the next start deletes."""
        self.kill("set aside", "renameat2")
        self.kill("set aside without exchange", "renameat2")

    @shows("K3.2", "A43", "I7")
    def test_removed(self) -> None:
        """A kill would leave a tree that is visible and called removed."""
        self.kill("remove what is not recorded", "rename")

    @shows("K3.1", "A44", "F38")
    def test_power_cuts(self) -> None:
        """The same when the power goes."""
        for name in ("set aside", "set aside without exchange"):
            cuts, _ = check_plan(name, step=3, most=16, sample=6)
            self.assertGreater(cuts, 20)


class AsideTests(Real):
    def test_names(self) -> None:
        """A tree with a very long name could not be set aside, or another one take its place."""
        where = place(self.node.configs, VPath(("app", "web", "ü" * 120)))
        name = commit.name_for(where, 2**64 - 1)
        self.assertLessEqual(len(name.encode()), 255)
        (self.node.srv / name).mkdir(parents=True)
        (self.node.srv / ".ciruela-aside~no-number~x").mkdir()
        with SafeDir.at(str(self.node.srv)) as parent:
            found = commit.found(parent, where, parent.names())
        self.assertEqual([one.where.rpartition("/")[2] for one in found], [name])
        self.assertTrue(found[0].path.startswith("/app/web/ü"))

    @shows("K3.1")
    def test_removed_by_the_operator(self) -> None:
        """What was looked through and deleted would be told for ever."""
        plant(self.node.image(V1), SMALL)
        self.upload(V1, CHANGED)
        (one,) = self.store.set_aside()
        (path,) = self.node.image(V1).parent.glob(".ciruela-aside~v1~*")
        self.assertEqual((one.path, one.where), (str(V1), str(path)))
        self.assertEqual(on_disk(path), flat(SMALL))
        self.successResultOf(self.store.tidy(delete=False))
        self.assertEqual(list(self.store.set_aside()), [one])
        path.rename(self.node.root / "looked through")
        self.successResultOf(self.store.tidy(delete=False))
        self.assertEqual(list(self.store.set_aside()), [])

    @shows("K3.1", "A43", "I9")
    def test_staged_before_it_has_its_name(self) -> None:
        """What was set aside, and could not be named, would be taken for a half-made copy of the new image when that is mended: deleted."""

        def fails(*_: object) -> None:
            raise OSError(28, "No space left on device")

        plant(self.node.image(V1), SMALL)
        patch = self.patch(commit, "take", fails)
        index = self.upload(V1, CHANGED)
        patch.restore()
        self.assertEqual(on_disk(self.staging_path(V1, index)), flat(SMALL))
        opened = self.staged(V1, index)
        self.successResultOf(opened.keep())
        (path,) = self.node.image(V1).parent.glob(".ciruela-aside~v1~*")
        self.assertEqual(on_disk(path), flat(SMALL))
        self.assertEqual([one.where for one in self.store.set_aside()], [str(path)])
        self.assertEqual(on_disk(self.node.image(V1)), flat(CHANGED))
        self.successResultOf(opened.discard())
        self.assertEqual(on_disk(path), flat(SMALL))

    @shows("K3.1", "I9")
    def test_uploaded_before_it_has_its_name(self) -> None:
        """The same where another image comes; what is set aside would not be shown to anybody until the next start."""

        def fails(*_: object) -> None:
            raise OSError(28, "No space left on device")

        plant(self.node.image(V1), SMALL)
        patch = self.patch(commit, "take", fails)
        self.upload(V1, CHANGED)
        patch.restore()
        self.upload(V1, {"/other": b"other"})
        (path,) = self.node.image(V1).parent.glob(".ciruela-aside~v1~*")
        self.assertEqual(on_disk(path), flat(SMALL))
        self.assertEqual([one.where for one in self.store.set_aside()], [str(path)])

    def test_directory_is_gone(self) -> None:
        """One directory that an operator deleted would keep all others from being tidied, until the next start."""
        plant(self.node.image(V1), SMALL)
        self.upload(V1, CHANGED)
        where = place(self.node.configs, V1)
        self.store._litter.left(where, where.staging(index_bytes(SMALL)[0].image))
        self.node.image(V1).parent.rename(self.node.root / "deleted")
        self.assertEqual(self.successResultOf(self.store.tidy(delete=False)), 1)
        self.assertEqual(list(self.store.set_aside()), [])

    def test_litter_that_cannot_be_looked_at(self) -> None:
        """Debris would be forgotten, with all that comes after it, when a disk gives an error once."""
        where = place(self.node.configs, V1)
        self.upload(V1, SMALL)
        self.store._litter.left(where, ".ciruela~1")

        def fails(_: object) -> list[str]:
            raise OSError(5, "Input/output error")

        patch = self.patch(SafeDir, "names", fails)
        self.assertEqual(self.successResultOf(self.store.tidy(delete=True)), 1)
        patch.restore()
        self.assertEqual(self.successResultOf(self.store.tidy(delete=True)), 0)

    @shows("I11")
    def test_litter_in_use(self) -> None:
        """Trying again to delete debris would delete a download that has begun under the same name."""
        index, _ = index_bytes(SMALL)
        opened = self.staged(V1, index)
        where = place(self.node.configs, V1)
        litter: DelayedDeletions = self.store._litter
        litter.left(where, where.staging(index.image))
        self.successResultOf(self.store.tidy(delete=True))
        self.assertTrue(self.staging_path(V1, index).exists())
        opened.close()
        litter.left(where, where.staging(index.image))
        self.successResultOf(self.store.tidy(delete=True))
        self.assertFalse(self.staging_path(V1, index).exists())
