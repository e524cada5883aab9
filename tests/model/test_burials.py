"""What is remembered of deletions."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.ids import ImageId
from ciruela.model.versions import Tombstone, Tombstones, Version
from tests.proof import shows

SETTINGS = settings(derandomize=True, deadline=None, database=None, max_examples=150)


def image(number: int) -> ImageId:
    return ImageId(bytes([number]) * 32)


def tombstone(signed_ms: int, buried_ms: int = 1000, number: int = 0) -> Tombstone:
    return Tombstone(Version(signed_ms, image(number)), buried_ms)


def refuses(burials: Tombstones, entry: str, version: Version) -> bool:
    """Whether ``version`` counts as deleted, at a path at which nothing stands."""
    found = burials.tombstones.get(entry)
    return version <= found.version if found is not None else version.timestamp_ms <= burials.floor_ms


class BurialsTests(SynchronousTestCase):
    """Tombstones and the floor."""

    @shows("I10", "A12")
    def test_the_greater_stays(self) -> None:
        """A path that was deleted twice would take the first of the two again."""
        both = Tombstones().with_one("v1", tombstone(5)).with_one("v1", tombstone(9)).with_one("v1", tombstone(7))
        self.assertEqual(both, Tombstones(0, {"v1": tombstone(9)}))
        same_time = Tombstones().with_one("v1", tombstone(5, number=2)).with_one("v1", tombstone(5, number=1))
        self.assertEqual(same_time.tombstones["v1"].version.image, image(2))
        again = Tombstones().with_one("v1", tombstone(5, 1000)).with_one("v1", tombstone(5, 2000))
        self.assertEqual(again.tombstones["v1"].buried_ms, 2000)
        self.assertEqual(both.without("v2"), both)
        self.assertEqual(both.without("v1"), Tombstones())

    @shows("I6", "I10")
    def test_fold(self) -> None:
        """Deletions would be remembered for ever, or be forgotten too early."""
        burials = Tombstones(3, {"a": tombstone(10, 100), "b": tombstone(20, 200), "c": tombstone(5, 300)})
        self.assertIs(burials.folded(100, 3), burials)
        self.assertEqual(burials.folded(101, 3), Tombstones(10, {"b": tombstone(20, 200), "c": tombstone(5, 300)}))
        self.assertEqual(burials.folded(0, 1), Tombstones(20, {"c": tombstone(5, 300)}))
        self.assertEqual(burials.folded(0, 0), Tombstones(20, {}))
        self.assertEqual(Tombstones(50, {"a": tombstone(10, 100)}).folded(101, 9), Tombstones(50, {}))

    @shows("I6", "I10", "A12", "F50")
    def test_nothing_comes_back_by_folding(self) -> None:
        """A peer that was away for long would bring back what was deleted, once its tombstone was folded."""
        rows = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 50), st.integers(0, 50), st.integers(0, 3)), max_size=12)

        @SETTINGS
        @given(rows, st.integers(0, 60), st.integers(0, 5))
        def check(deleted: list[tuple[str, int, int, int]], before_ms: int, most: int) -> None:
            burials = Tombstones()
            for entry, signed_ms, buried_ms, number in deleted:
                burials = burials.with_one(entry, tombstone(signed_ms, buried_ms, number))
            folded = burials.folded(before_ms, most)
            self.assertLessEqual(len(folded.tombstones), most)
            self.assertGreaterEqual(folded.floor_ms, burials.floor_ms)
            self.assertTrue(all(one.buried_ms >= before_ms for one in folded.tombstones.values()))
            for entry, signed_ms, _, number in deleted:
                self.assertTrue(refuses(folded, entry, Version(signed_ms, image(number))))

        check()
