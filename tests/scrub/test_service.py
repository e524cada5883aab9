"""What is looked at when, and what follows: over a disk that says what it is told to, and downloads that do nothing by themselves."""

from __future__ import annotations

import random

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Damage, Findings, Pending
from ciruela.model.config import MIB, Tuning
from ciruela.model.errors import DiskError, DownloadFailed
from ciruela.model.ids import ImageId
from ciruela.model.upload import AbortReason, Command
from ciruela.model.versions import SigEntry, State
from ciruela.model.vpath import VPath
from ciruela.scrub.service import FIRST_S, LONGEST_AGAIN_S, MOST_MENDING, MOST_NEW, NEW_S, SUSPECT_BYTES, Scrub
from ciruela.tracking.ledger import Ledger
from tests.doubles.context import node_context
from tests.proof import shows

RATE = 10 * MIB
GOOD = Findings((), 0, True)
BAD = Findings((Damage("/a", "1 of 2 blocks are wrong"),), 1, True)


def vpath(number):
    return VPath.parse(f"/app/v{number}")


def image(number):
    return ImageId(bytes([number % 256, number // 256]) * 16)


class Examination:
    def __init__(self, disk, where):
        self.disk, self.where, self.cost, self.closed = disk, where, 0, False

    def go_on(self, most_bytes):
        if self.where in self.disk.faults:
            return fail(self.disk.faults[self.where])
        size = self.disk.sizes.get(self.where, 1000)
        step = min(most_bytes, size - self.cost)
        self.cost += step
        self.disk.read.append((self.disk.clock.seconds(), self.where, step))
        if self.cost < size:
            return succeed(None)
        self.disk.looked.append(self.where)
        return succeed(self.disk.findings.get(self.where, GOOD))

    def close(self):
        self.closed = True


class Disk:
    """Images with sizes, findings and faults by path; notes what is read."""

    def __init__(self, clock):
        self.clock = clock
        self.sizes, self.findings, self.faults, self.lost_indexes = {}, {}, {}, {}
        self.read, self.looked, self.examinations = [], [], []

    def read_index(self, image_id):
        lost = self.lost_indexes.get(image_id, "index")
        return fail(lost) if isinstance(lost, Exception) else succeed(lost)

    def examine(self, where, index):
        self.examinations.append(Examination(self, where))
        return self.examinations[-1]


class Mender:
    """Downloads whose end is up to the test."""

    def __init__(self):
        self.heals, self.indexes, self.stopped, self.no_source, self.refuse = {}, {}, [], set(), False

    def repair(self, where):
        if self.refuse:
            return None
        assert where not in self.heals, "healed twice at a time"
        return self.heals.setdefault(where, Deferred())

    def repair_index(self, where, image_id):
        return self.indexes.setdefault((where, image_id), Deferred())

    def stalled(self, where):
        return where in self.no_source

    def stop(self, where, reason):
        self.stopped.append((where, reason))
        self.heals.pop(where).errback(DownloadFailed(reason))


class ScrubCase(SynchronousTestCase):
    rate = RATE

    def setUp(self):
        self.clock = Clock()
        self.ledger = Ledger(self.clock)
        self.disk, self.mender = Disk(self.clock), Mender()
        self.scrub = self.make(1)
        self.addCleanup(lambda: self.scrub.stop())

    def make(self, seed, cycle_ms=7 * 86_400_000):
        tuning = Tuning(scrub_bytes_per_second=self.rate, scrub_cycle_ms=cycle_ms)
        context = node_context(
            disk=self.disk,
            clock=self.clock,
            rng=random.Random(seed),
            now_ms=lambda: round(self.clock.seconds() * 1000),
            tuning=tuning,
        )
        return Scrub(context, self.ledger, self.mender)

    def hold(self, *numbers):
        for number in numbers:
            self.ledger.commit(vpath(number), State(image(number), (SigEntry(number + 1, bytes(64)),)))

    def run_for(self, seconds):
        for _ in range(int(seconds)):
            self.clock.advance(1.0)

    def begun(self, *numbers):
        self.hold(*numbers)
        self.scrub.start()
        self.run_for(5)


class CycleTests(ScrubCase):
    """Everything is looked through once in a cycle, in its time."""

    @shows("F51")
    def test_all_in_one_cycle(self):
        """An image that no cycle comes to rots unseen."""
        self.begun(*range(30))
        self.run_for(FIRST_S - 10)
        self.assertEqual(self.disk.read, [], "a node that has just started has other things to do")
        self.run_for(100)
        self.assertEqual(sorted(self.disk.looked), sorted(vpath(number) for number in range(30)))
        self.assertEqual((self.scrub.cycle_total, self.scrub.left, self.scrub.looked), (30, 0, 30))
        self.assertIsNotNone(self.scrub.last_full_ms)
        self.assertTrue(all(one.closed for one in self.disk.examinations))
        self.run_for(3600)
        self.assertEqual(len(self.disk.looked), 30, "the next cycle is in seven days")
        self.clock.advance(7 * 86_400)
        self.run_for(100)
        self.assertEqual(len(self.disk.looked), 60)

    def test_order(self):
        """A node that is restarted every day would look at the same first images for ever."""
        orders = []
        self.hold(*range(30))
        for seed in (1, 2):
            scrub = self.make(seed)
            self.disk.looked.clear()
            scrub.start()
            self.run_for(FIRST_S + 100)
            scrub.stop()
            orders.append(list(self.disk.looked))
        self.assertEqual(sorted(orders[0]), sorted(orders[1]))
        self.assertNotEqual(orders[0], orders[1])

    def test_rate(self):
        """Reading a large image would slow down everybody else on the host."""
        self.disk.sizes[vpath(1)] = 3000 * MIB
        self.begun(1)
        self.run_for(FIRST_S + 400)
        self.assertEqual(self.disk.looked, [vpath(1)])
        began = self.disk.read[0][0]
        for at, _, _ in self.disk.read:
            so_far = sum(step for when, _, step in self.disk.read if when <= at)
            self.assertLessEqual(so_far, (at - began + 5) * RATE)
        self.assertGreaterEqual(self.disk.read[-1][0] - began, 290)

    def test_new_ones(self):
        """The commit does not read from the disk what it wrote: a disk that lost it would be found out after a week."""
        self.scrub.start()
        self.hold(1, 2)
        self.scrub.arrived(vpath(1))
        self.run_for(NEW_S - 2)
        self.assertEqual(self.disk.looked, [], "whoever waits for the image comes first")
        self.run_for(5)
        self.assertEqual((self.disk.looked, self.scrub.left), ([vpath(1)], 0))
        self.run_for(100)
        self.assertEqual(self.disk.looked, [vpath(1)], "once, and others in their cycle")
        self.scrub.arrived(vpath(2))
        self.run_for(30)
        self.scrub.arrived(vpath(2))
        self.run_for(40)
        self.assertEqual(self.disk.looked, [vpath(1)], "it was replaced again meanwhile")
        self.run_for(30)
        self.assertEqual(self.disk.looked, [vpath(1), vpath(2)])

    def test_new_ones_have_a_pace(self):
        """A large upload would be followed by a disk that is busy for minutes; and suspect ones go first."""
        self.disk.sizes[vpath(1)] = 300 * MIB
        self.begun(1, 2)
        self.scrub.arrived(vpath(1))
        self.run_for(NEW_S + 10)
        self.assertEqual(self.scrub.at, vpath(1))
        self.assertEqual(self.scrub.left, 0, "it is none of the cycle")
        self.scrub.suspect(vpath(2), image(2))
        self.run_for(5)
        self.assertEqual(self.disk.looked, [vpath(2)])
        self.run_for(NEW_S + 15)
        self.assertEqual(self.disk.looked, [vpath(2)])
        self.run_for(15)
        self.assertEqual(self.disk.looked, [vpath(2), vpath(1)])

    @shows("I6")
    def test_most_new_ones(self):
        """Uploads to ever new paths would fill the memory."""
        for number in range(MOST_NEW + 5):
            self.scrub.arrived(vpath(number))
        self.assertEqual(len(self.scrub._new), MOST_NEW)

    def test_new_ones_where_it_is_off(self):
        """An operator who has turned the scrub off would have his disks read."""
        self.scrub.tune(Tuning(scrub_bytes_per_second=0))
        self.hold(1)
        self.scrub.start()
        self.scrub.arrived(vpath(1))
        self.run_for(2 * NEW_S)
        self.assertEqual(self.disk.read, [])

    def test_what_comes_and_goes(self):
        """An image that was deleted, or that is being replaced, is no damage."""
        self.begun(1, 2)
        self.run_for(FIRST_S - 10)
        state = self.ledger.committed(vpath(1))
        self.ledger.begin(Pending(vpath(1), State(image(9), state.signatures), Command.REPLACE))
        self.disk.findings[vpath(2)] = Findings((), 1, False)
        self.run_for(100)
        self.assertEqual((self.disk.looked, self.scrub.ill), ([vpath(2)], {}))

    def test_nobody_can_tell(self):
        """A disk that is not mounted would be taken for a thousand damaged images, and all of them fetched again."""
        self.disk.faults[vpath(1)] = DiskError("/srv: is not mounted")
        self.begun(1, 2)
        self.run_for(FIRST_S + 100)
        self.assertEqual((self.disk.looked, self.scrub.ill, self.mender.heals), ([vpath(2)], {}, {}))
        self.assertTrue(all(one.closed for one in self.disk.examinations))

    def test_stop(self):
        """A daemon that ends lets go of its files, and reads nothing more."""
        self.disk.sizes[vpath(1)] = 3000 * MIB
        self.begun(1)
        self.run_for(FIRST_S + 5)
        self.scrub.stop()
        before = len(self.disk.read)
        self.run_for(100)
        self.assertEqual(len(self.disk.read), before)
        self.assertTrue(all(one.closed for one in self.disk.examinations))
        self.assertEqual(self.clock.getDelayedCalls(), [])


class OffTests(ScrubCase):
    """``scrub-bytes-per-second: 0``."""

    rate = 0

    def test_off(self):
        """An operator who turned it off would still find his disk busy; but what a request found bad is looked at all the same."""
        self.begun(1, 2)
        self.run_for(FIRST_S + 1000)
        self.assertEqual(self.disk.looked, [])
        self.scrub.suspect(vpath(1), image(1))
        self.run_for(3)
        self.assertEqual(self.disk.looked, [vpath(1)])


class SuspectTests(ScrubCase):
    """What a request found bad is looked at at once."""

    @shows("A10", "F51")
    def test_at_once(self):
        """A damaged file would be missing from this node for up to a week."""
        self.begun(1, 2)
        self.disk.findings[vpath(2)] = BAD
        self.disk.sizes[vpath(2)] = 2 * SUSPECT_BYTES
        for _ in range(50):
            self.scrub.suspect(vpath(2), image(2))
        self.run_for(5)
        self.assertEqual(self.disk.looked, [vpath(2)])
        self.assertEqual(list(self.mender.heals), [vpath(2)])

    def test_before_all_others(self):
        """With a large image under way, a suspect would wait for hours; the large one is not forgotten."""
        self.disk.sizes[vpath(1)] = 3000 * MIB
        self.begun(1)
        self.run_for(FIRST_S + 5)
        self.hold(2)
        self.scrub.suspect(vpath(2), image(2))
        self.run_for(5)
        self.assertEqual(self.disk.looked, [vpath(2)])
        self.run_for(400)
        self.assertEqual(self.disk.looked, [vpath(2), vpath(1)])

    def test_false_alarm(self):
        """Reads that fail for want of descriptors would keep the disk busy with one image, and fill the log."""
        self.begun(1)
        for _ in range(300):
            self.scrub.suspect(vpath(1), image(1))
            self.run_for(1)
        self.assertEqual(self.disk.looked, [vpath(1)])
        self.run_for(400)
        self.scrub.suspect(vpath(1), image(1))
        self.run_for(3)
        self.assertEqual(len(self.disk.looked), 2 + (self.scrub.cycle_total > 0))

    def test_gone_meanwhile(self):
        """What is not the committed image any more is nobody's concern."""
        self.begun(1)
        self.scrub.suspect(vpath(7), image(7))
        self.run_for(3)
        self.assertEqual((self.disk.looked, self.scrub.ill), ([], {}))


class MendingTests(ScrubCase):
    """Damage is mended, or told."""

    def damaged(self, *numbers):
        for number in numbers:
            self.disk.findings[vpath(number)] = BAD
        self.begun(*numbers)
        for number in numbers:
            self.scrub.suspect(vpath(number), image(number))
        self.run_for(len(numbers) + 3)

    def test_healed(self):
        """Once it is whole it is not damaged any more, and counted once."""
        self.damaged(1)
        self.assertTrue(self.scrub.ill[vpath(1)].mending)
        self.run_for(10)
        self.mender.heals.pop(vpath(1)).callback(None)
        self.run_for(10)
        self.assertEqual((self.scrub.ill, self.mender.heals), ({}, {}))
        self.assertEqual((self.scrub.damaged, self.scrub.healed, self.scrub.failed), (1, 1, 0))

    def test_few_at_a_time(self):
        """With a whole disk gone bad, uploads would wait behind a thousand heals."""
        self.damaged(*range(10))
        self.assertEqual(len(self.scrub.ill), 10)
        self.assertEqual(len(self.mender.heals), MOST_MENDING)
        self.mender.heals.pop(next(iter(self.mender.heals))).callback(None)
        self.run_for(2)
        self.assertEqual((len(self.scrub.ill), len(self.mender.heals)), (9, MOST_MENDING))

    @shows("A10")
    def test_nobody_has_it(self):
        """The operator would never hear that the only copy is damaged; others would wait behind it; and it would not be tried again."""
        self.damaged(1)
        self.mender.no_source.add(vpath(1))
        self.run_for(2)
        self.assertEqual(self.mender.stopped, [(vpath(1), AbortReason.NO_FILE_SOURCE)])
        ill = self.scrub.ill[vpath(1)]
        self.assertEqual((ill.mending, self.scrub.failed), (False, 1))
        self.assertIn("no_file_source", ill.failure)
        self.mender.no_source.clear()
        self.run_for(50)
        self.assertEqual(self.mender.heals, {}, "it is tried again, but not at once")
        waits = []
        for _ in range(4):
            began = self.clock.seconds()
            while not self.mender.heals and self.clock.seconds() - began < 2 * LONGEST_AGAIN_S:
                self.run_for(1)
            waits.append(self.clock.seconds() - began)
            self.mender.heals.pop(vpath(1)).errback(DownloadFailed(AbortReason.NO_FILE_SOURCE))
        self.assertEqual(waits, sorted(waits))
        self.assertGreater(waits[-1], 200)
        while not self.mender.heals:
            self.run_for(1)
        self.mender.heals.pop(vpath(1)).callback(None)
        self.assertEqual((self.scrub.ill, self.scrub.healed), ({}, 1))

    def test_upload_on_its_way(self):
        """Nothing is told to have failed while a new upload may replace it; when it has, the damage is history."""
        self.mender.refuse = True
        self.damaged(1)
        self.run_for(10)
        self.assertEqual((self.scrub.failed, self.scrub.ill[vpath(1)].mending), (0, False))
        self.ledger.commit(vpath(1), State(image(9), (SigEntry(9, bytes(64)),)))
        self.run_for(2)
        self.assertEqual(self.scrub.ill, {})

    def test_seen_again_while_it_is_mended(self):
        """The cycle comes to an image that is being mended: it would be told, and mended, twice."""
        self.damaged(1)
        self.run_for(FIRST_S + 10)
        self.assertEqual((len(self.disk.looked), self.scrub.damaged), (2, 1))
        self.mender.heals.pop(vpath(1)).callback(None)
        self.run_for(5)
        self.assertEqual((self.scrub.ill, self.mender.heals), ({}, {}))

    @shows("A10")
    def test_index(self):
        """An image without its index could be neither served nor checked: the index is fetched, then the image is looked through."""
        for lost in (None, DiskError("index: Input/output error")):
            self.disk.looked.clear()
            self.disk.lost_indexes[image(1)] = lost
            if lost is None:
                self.begun(1)
            self.scrub._cleared.succeeded(vpath(1))
            self.scrub.suspect(vpath(1), image(1))
            self.run_for(3)
            self.assertEqual((list(self.mender.indexes), self.disk.looked), ([(vpath(1), image(1))], []))
            self.disk.lost_indexes.clear()
            self.mender.indexes.pop((vpath(1), image(1))).callback("index")
            self.run_for(3)
            self.assertEqual((self.disk.looked, self.scrub.ill, self.mender.heals), ([vpath(1)], {}, {}))
