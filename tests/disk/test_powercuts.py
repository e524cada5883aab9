"""A few of the power cuts of :mod:`tests.disk.powercuts`, and that they would be noticed if nothing were synced."""

from __future__ import annotations

from tests.disk.bench import Violation
from tests.disk.plans import PLANS, check_start, cuts, ready
from tests.disk.powercuts import check_cut, check_plan, moments
from tests.disk.second_faults import calls_of
from tests.measure import UnmeasuredTestCase
from tests.proof import shows


class PowerCuts(UnmeasuredTestCase):
    """Each kind of operation."""

    def cut(self, name: str, step: int) -> None:
        count, different = check_plan(name, step=step, most=40, sample=4)
        self.assertGreater(count, different)
        self.assertGreater(different, 10)

    @shows("F38", "A44", "I1", "I2")
    def test_append(self) -> None:
        """After a power cut an acknowledged image would be gone, or one would stand there with files that are empty."""
        self.cut("append", 3)

    @shows("F38", "A44", "I1", "I2")
    def test_append_many(self) -> None:
        """The same for an image that one syncfs makes durable."""
        self.cut("append many", 24)

    @shows("F38", "A44", "I1", "I2")
    def test_append_by_copy(self) -> None:
        """What was copied or cloned from another image would not be on the disk when the image is acknowledged."""
        for name, call in (("append by copy", "pwrite"), ("append by clone", "clone_range")):
            content = bytes(ready(name).sim.inodes("/n/srv/web/v2/keep")[0][1].data)
            self.assertIn(call, calls_of(name))
            links = [inode.names for sim, _ in moments(name)[-1:] for at, inode in sim.inodes("/n/srv/web") if inode.data == content]
            self.assertEqual(links, [1, 1])
            self.cut(name, 6)

    @shows("F38", "A44", "I1", "I2")
    def test_replace(self) -> None:
        """After a power cut neither the old nor the new image would stand there, or the one with the record of the other."""
        self.cut("replace", 3)

    @shows("F38", "A44", "I1")
    def test_remove(self) -> None:
        """After a power cut an image that was deleted would come back, or be gone with its record left."""
        self.cut("remove", 1)

    def test_replay(self) -> None:
        """A violation could not be looked into."""
        check_cut("replace", 10, [1, 0, 1])

    @shows("F38")
    def test_disk_that_lies(self) -> None:
        """A sync that is left out would not be noticed here."""
        for name in PLANS:
            disks, acked = moments(name, syncs=False)[-1]
            self.assertTrue(acked)
            found = 0
            for after, _ in cuts(disks, 1, 20, 20):
                try:
                    check_start(PLANS[name], after, True, name, finish=False)
                except Violation:
                    found += 1
            self.assertGreater(found, 5, name)
