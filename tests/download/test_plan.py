"""Which block next: nothing is lost, nothing is fetched twice without need."""

import random
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from ciruela.download.plan import MOST_AT_ONCE, BlockPlan
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.tree import Directory, File, Index
from ciruela.model.bitfield import FULL
from ciruela.model.ids import ImageId
from tests.measure import UnmeasuredTestCase
from tests.proof import shows


def index(*files):
    """An index of files given as lists of block names; equal names are equal blocks."""
    entries = tuple(
        File(f"/f{number}", False, len(names) * BLOCK_BYTES, b"".join(HashKind.BLAKE2B.hash(str(name).encode()) for name in names))
        for number, names in enumerate(files)
    )
    return Index(ImageId(bytes(32)), HashKind.BLAKE2B, (Directory("/", entries),))


def plan(image, have=(), seed=1):
    return BlockPlan(image, have, random.Random(seed))


def choose(one, asker="a", mask=FULL, preferred=FULL, current=None, now=0.0, late=3.0):
    """One block, from pieces in a random order; None when there is nothing to do."""
    numbers = one.choose(asker, mask, preferred, current, now, late, at_random=True)
    return numbers[0] if numbers else None


def many(one, most_bytes, asker="a", mask=None, preferred=None, current=None, now=0.0, late=inf, *, at_random=False):
    """As many blocks as fit, from pieces in order."""
    full = one.pieces.full
    mask, preferred = (full if one is None else one for one in (mask, preferred))
    return one.choose(asker, mask, preferred, current, now, late, most_bytes, at_random=at_random)


class PlanTests(UnmeasuredTestCase):
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
        self.assertEqual(one.mask, 0)
        part = [choose(one) for _ in range(4)]
        self.assertEqual(part, list(one.pieces.blocks(one.pieces.piece_of(part[0]))))
        completed = [one.arrived(number) for number in part]
        self.assertEqual(completed, [False, False, False, True])
        self.assertEqual(one.mask, 1 << one.pieces.piece_of(part[0]))

    def test_only_claimed_slices(self):
        """A peer is asked only for what it claims."""
        one = plan(index(range(1024)))
        mask = 1 << 7 | 1 << 200
        found = {choose(one, mask=mask) for _ in range(8)}
        self.assertEqual(found, {*one.pieces.blocks(7), *one.pieces.blocks(200)})
        self.assertIsNone(choose(one, mask=mask))

    def test_preferred(self):
        """The client is asked first for what no peer has, then for anything."""
        one = plan(index(range(512)))
        preferred = 1 << 3
        self.assertEqual([one.pieces.piece_of(choose(one, preferred=preferred)) for _ in range(2)], [3, 3])
        self.assertNotEqual(one.pieces.piece_of(choose(one, preferred=preferred)), 3)

    def test_current_slice_first(self):
        """A source finishes the slice it began, so that slices become whole early."""
        one = plan(index(range(1024)))
        self.assertEqual(one.pieces.piece_of(choose(one, current=9)), 9)
        self.assertEqual(one.pieces.piece_of(choose(one, current=9)), 9)

    def test_orders_differ(self):
        """Two nodes begin with different slices and have something to exchange."""
        starts = {choose(plan(index(range(4096)), seed=seed)) for seed in range(10)}
        self.assertGreater(len(starts), 5)

    def test_whole_pieces_in_order(self):
        """A relay would get its pieces in bits, and could pass none of them on."""
        one = plan(index(range(1024)))
        each = 4
        self.assertEqual(many(one, 2 * each * BLOCK_BYTES), list(range(2 * each)))
        self.assertEqual(many(one, (2 * each - 1) * BLOCK_BYTES), list(range(2 * each, 3 * each)), "half of the next one came along")
        self.assertEqual(many(one, 3 * BLOCK_BYTES), [12, 13, 14], "it does not fit as a whole")
        self.assertEqual(many(one, each * BLOCK_BYTES), [15], "what is left of it goes with nothing that does not fit")
        self.assertEqual(many(one, 1), [4 * each])
        self.assertEqual(many(one, each * BLOCK_BYTES, mask=0b11), [])

    def test_in_order_as_wanted(self):
        """What nobody else has would come last, or what was not promised would be asked for."""
        one = plan(index(range(1024)))
        four = 4 * BLOCK_BYTES
        self.assertEqual(many(one, 2 * four, mask=1 << 3 | 1 << 7 | 1 << 9, preferred=1 << 7 | 1 << 9), [*range(28, 32), *range(36, 40)])
        self.assertEqual(many(one, 2 * four, mask=1 << 3 | 1 << 7 | 1 << 9, preferred=1 << 7 | 1 << 9), [*range(12, 16)])
        self.assertEqual(many(one, four, preferred=0), [0, 1, 2, 3])

    @shows("I1")
    def test_late_and_released(self):
        """What came after it was given free for others would be asked for again, or count twice when it comes from them as well."""
        one = plan(index(range(8)))
        numbers = one.claim(one.pieces.full, "a", 0.0)
        self.assertEqual((sorted(numbers), one.missing), (list(range(8)), 8))
        one.release(one.pieces.full)
        self.assertTrue(one.arrived(3))
        self.assertEqual(one.missing, 7)
        self.assertFalse(one.arrived(3), "the second copy")
        self.assertEqual((one.missing, sorted(one.claim(one.pieces.full, "b", 1.0))), (7, [0, 1, 2, 4, 5, 6, 7]))

    def test_at_random(self):
        """Where nobody shares out, two nodes would take the same from their clients."""
        starts = {many(plan(index(range(2048)), seed=seed), 1 << 30, at_random=True)[0] for seed in range(10)}
        self.assertGreater(len(starts), 5)
        one = plan(index(range(1024)))
        self.assertEqual(many(one, 3 * BLOCK_BYTES, current=9, at_random=True), [36, 37, 38])
        self.assertEqual(many(one, 1 << 30, current=9, at_random=True), [39], "one piece at a time")
        self.assertEqual(len(many(one, 1 << 30, current=9, at_random=True)), 4)

    def test_bytes(self):
        """A thousand small files would come one by one, or an answer would be larger than what is allowed."""
        small = File("/a", False, 100, HashKind.BLAKE2B.hash(b"small"))
        files = [small, *(File(f"/b{number:04}", False, 10 + number, HashKind.BLAKE2B.hash(b"%d" % number)) for number in range(600))]
        image = Index(ImageId(bytes(32)), HashKind.BLAKE2B, (Directory("/", tuple(files)),))
        one = plan(image)
        self.assertEqual(one.bytes_of([0, 1, 600]), 100 + 10 + 609)
        everything = one.unasked(one.pieces.full)
        self.assertEqual(everything, image.total_bytes)
        found = many(one, 5000)
        self.assertLessEqual(one.bytes_of(found), 5000)
        self.assertGreater(one.bytes_of(found), 4000)
        self.assertEqual(one.unasked(one.pieces.full), everything - one.bytes_of(found))
        self.assertEqual(one.unasked(1), 0)
        one.failed(0, "a")
        self.assertEqual(one.unasked(1), 100)
        self.assertEqual(one.wanted & 1, 1)

    def test_most_at_once(self):
        """A request that names more blocks than are allowed is refused, and the image never comes."""
        files = tuple(File(f"/b{number:05}", False, 1, HashKind.BLAKE2B.hash(b"%d" % number)) for number in range(7000))
        image = Index(ImageId(bytes(32)), HashKind.BLAKE2B, (Directory("/", files),))
        for at_random in (False, True):
            one = plan(image)
            asked = []
            while numbers := many(one, 1 << 20, at_random=at_random):
                self.assertLessEqual(len(numbers), MOST_AT_ONCE)
                asked += numbers
            self.assertEqual(sorted(asked), list(range(7000)))
        tiny = tuple(File(f"/{number:07}", False, 1, HashKind.BLAKE2B.hash(b"%d" % number)) for number in range(300_000))
        one = plan(Index(ImageId(bytes(32)), HashKind.BLAKE2B, (Directory("/", tiny),)))
        self.assertEqual(len(many(one, 1 << 20, mask=1)), MOST_AT_ONCE)

    def test_late_in_bulk(self):
        """When one block is late, all that its source owes would be asked for twice at once."""
        one = plan(index(range(1024)))
        while many(one, 1 << 20):
            pass
        self.assertEqual(many(one, 1 << 20, asker="b", now=9.0, late=3.0), [0])
        self.assertEqual(many(one, 1 << 20, asker="b", now=9.0), [])

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
        self.assertTrue(one.done)
        one.failed(0, "b")
        self.assertIsNone(choose(one, "a", now=99.0))

    @settings(derandomize=True, deadline=None, database=None, max_examples=60)
    @given(st.lists(st.lists(st.integers(0, 12), max_size=40), max_size=6), st.integers(0, 2**32), st.data())
    def test_always_ends(self, names, seed, data):
        """Whatever arrives, fails and repeats, in the end every block is here and was planned."""
        image = index(*names)
        have = data.draw(st.sets(st.integers(0, image.block_count - 1))) if image.block_count else set()
        one = plan(image, have, seed)
        names = [name for file in names for name in file]
        here = set(have)
        rng = random.Random(seed)
        now, outstanding = 0.0, []
        for _ in range(10_000):
            if one.done:
                break
            now += 1.0
            asker = rng.choice("abc")
            number = choose(one, asker, now=now)
            if number is not None:
                self.assertNotIn(number, here)
                outstanding.append((number, asker))
            if outstanding and rng.random() < 0.7:
                number, asker = outstanding.pop(rng.randrange(len(outstanding)))
                if rng.random() < 0.5:
                    one.failed(number, asker)
                else:
                    one.arrived(number)
                    here |= {at for at, name in enumerate(names) if name == names[number]}
        self.assertTrue(one.done)
        self.assertEqual(one.missing, 0)
        self.assertEqual(here, set(range(image.block_count)))
        self.assertEqual(one.mask, one.pieces.full)
