"""Which block next: nothing is lost, nothing is fetched twice without need."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download.plan import Plan
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.tree import Directory, File, Index
from ciruela.model.ids import ImageId
from ciruela.model.mask import FULL, blocks_of, empty_mask, slice_of
from tests.proof import shows


def index(*files):
    """An index of files given as lists of block names; equal names are equal blocks."""
    entries = tuple(
        File(f"/f{number}", False, len(names) * BLOCK_BYTES, b"".join(HashKind.BLAKE2B.hash(str(name).encode()) for name in names))
        for number, names in enumerate(files)
    )
    return Index(ImageId(bytes(32)), HashKind.BLAKE2B, (Directory("/", entries),))


def plan(image, have=(), seed=1):
    return Plan(image, have, random.Random(seed))


def choose(one, asker="a", mask=FULL, preferred=FULL, current=None, now=0.0, late=3.0):
    return one.choose(asker, mask, preferred, current, now, late)


class PlanTests(SynchronousTestCase):
    """The plan of one download."""

    def test_all_once(self):
        """Every block is handed out exactly once while nobody is late."""
        one = plan(index(range(1000)))
        self.assertEqual(one.missing, 1000)
        found = [choose(one) for _ in range(1000)]
        self.assertEqual(sorted(found), list(range(1000)))
        self.assertIsNone(choose(one))
        self.assertEqual(one.in_flight, 1000)
        for number in found:
            one.arrived(number)
        self.assertTrue(one.done)
        self.assertEqual((one.missing, one.in_flight, one.mask), (0, 0, FULL))

    @shows("A8")
    def test_equal_blocks_fetched_once(self):
        """A thousand copies of one block cost one request (threats A8), and completing it completes all their slices."""
        one = plan(index(["x"] * 600, ["x", "y"]))
        first, second = choose(one), choose(one)
        self.assertEqual({first, second}, {0, 601})
        self.assertIsNone(choose(one))
        self.assertTrue(one.arrived(0))
        self.assertEqual(one.missing, 1)
        self.assertTrue(one.arrived(601))
        self.assertTrue(one.done)

    def test_have(self):
        """What is here is not asked for, also when only one of two copies is."""
        one = plan(index(["a", "b", "a"]), have={0, 1})
        self.assertEqual(one.missing, 1)
        self.assertEqual(choose(one), 2)
        self.assertFalse(one.done)
        self.assertTrue(plan(index(["a"]), have={0}).done)
        self.assertTrue(plan(index()).done)

    def test_mask(self):
        """A slice is claimed only when all of it is here: a peer that asks for it must find it."""
        one = plan(index(range(1024)))
        self.assertEqual(one.mask, empty_mask(1024))
        part = [choose(one) for _ in range(4)]
        self.assertEqual(part, list(blocks_of(slice_of(part[0], 1024), 1024)))
        completed = [one.arrived(number) for number in part]
        self.assertEqual(completed, [False, False, False, True])
        self.assertEqual(one.mask, 1 << slice_of(part[0], 1024))
        self.assertTrue(one.has_slice(slice_of(part[0], 1024)))

    def test_only_claimed_slices(self):
        """A peer is asked only for what it claims."""
        one = plan(index(range(1024)))
        mask = 1 << 7 | 1 << 200
        found = {choose(one, mask=mask) for _ in range(8)}
        self.assertEqual(found, {*blocks_of(7, 1024), *blocks_of(200, 1024)})
        self.assertIsNone(choose(one, mask=mask))

    def test_preferred(self):
        """The client is asked first for what no peer has, then for anything."""
        one = plan(index(range(512)))
        preferred = 1 << 3
        self.assertEqual([slice_of(choose(one, preferred=preferred), 512) for _ in range(2)], [3, 3])
        self.assertNotEqual(slice_of(choose(one, preferred=preferred), 512), 3)

    def test_current_slice_first(self):
        """A source finishes the slice it began, so that slices become whole early."""
        one = plan(index(range(1024)))
        self.assertEqual(slice_of(choose(one, current=9), 1024), 9)
        self.assertEqual(slice_of(choose(one, current=9), 1024), 9)

    def test_orders_differ(self):
        """Two nodes begin with different slices and have something to exchange."""
        starts = {choose(plan(index(range(4096)), seed=seed)) for seed in range(10)}
        self.assertGreater(len(starts), 5)

    def test_failed(self):
        """A block that a source did not give is asked from another."""
        one = plan(index(["a"]))
        self.assertEqual(choose(one, "a"), 0)
        self.assertIsNone(choose(one, "b"))
        one.failed(0, "a")
        self.assertEqual(choose(one, "b"), 0)
        one.failed(0, "a")
        self.assertEqual(one.in_flight, 1)

    @shows("A58", "F52")
    def test_late(self):
        """A silent source holds nothing up: its blocks are asked for elsewhere, from one other at a time."""
        one = plan(index(["a"]))
        choose(one, "a", now=0.0)
        self.assertIsNone(choose(one, "b", now=2.9))
        self.assertIsNone(choose(one, "a", now=3.0))
        self.assertIsNone(choose(one, "b", mask=0, now=3.0))
        self.assertEqual(choose(one, "b", now=3.0), 0)
        self.assertIsNone(choose(one, "c", now=9.0))
        one.failed(0, "a")
        self.assertEqual(one.in_flight, 1)
        self.assertTrue(one.arrived(0))
        self.assertFalse(one.arrived(0))
        one.failed(0, "b")
        self.assertIsNone(choose(one, "a", now=99.0))

    @settings(derandomize=True, deadline=None, database=None, max_examples=60)
    @given(st.lists(st.lists(st.integers(0, 12), max_size=40), max_size=6), st.integers(0, 2**32), st.data())
    def test_always_ends(self, names, seed, data):
        """Whatever arrives, fails and repeats, in the end every block is here and was planned."""
        image = index(*names)
        have = data.draw(st.sets(st.integers(0, image.block_count - 1))) if image.block_count else set()
        one = plan(image, have, seed)
        rng = random.Random(seed)
        now, outstanding = 0.0, []
        for _ in range(10_000):
            if one.done:
                break
            now += 1.0
            asker = rng.choice("abc")
            number = choose(one, asker, now=now)
            if number is not None:
                self.assertFalse(one.has(number))
                outstanding.append((number, asker))
            if outstanding and rng.random() < 0.7:
                number, asker = outstanding.pop(rng.randrange(len(outstanding)))
                if rng.random() < 0.5:
                    one.failed(number, asker)
                else:
                    one.arrived(number)
        self.assertTrue(one.done)
        self.assertEqual(one.missing, 0)
        self.assertTrue(all(one.has(number) for number in range(image.block_count)))
