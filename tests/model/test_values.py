"""Classes of values are as those of ``dataclasses``."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import FrozenInstanceError, field, replace
from typing import Any, ClassVar

from twisted.trial.unittest import SynchronousTestCase

from ciruela.model import values


def samples(dataclass: Any) -> tuple[type[Any], ...]:
    """The same classes, made by one decorator or the other."""

    @dataclass(frozen=True, slots=True)
    class Sample:
        """Everything that a field may be."""

        count: int
        name: str = "none"
        parts: list[int] = field(default_factory=list)
        secret: bytes = field(default=b"", repr=False)
        label: str = field(default="", compare=False)
        made: dict[str, int] = field(init=False, default_factory=dict)
        kind: str = field(init=False, default="kind")
        shared: ClassVar[int] = 7

    @dataclass(frozen=True, slots=True)
    class One:
        """A value that is checked."""

        count: int

        def __post_init__(self) -> None:
            if self.count < 0:
                raise ValueError("negative")

    @dataclass(frozen=True, slots=True)
    class Empty:
        """Nothing."""

    @dataclass(frozen=True, slots=True, eq=False)
    class Same:
        """As itself alone."""

        count: int

    @dataclass(frozen=True, slots=True)
    class Own:
        """With methods of its own."""

        count: int

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return isinstance(other, type(self))

    return Sample, One, Empty, Same, Own


class ValueTests(SynchronousTestCase):
    """The reader of the code sees a dataclass."""

    def test_as_dataclasses(self) -> None:
        """A class that compares, prints or is replaced otherwise than its decorator says would be found by nobody."""
        for ours, theirs in zip(samples(values.dataclass), samples(dataclasses.dataclass), strict=True):
            with self.subTest(ours.__name__):
                given = {"count": 3} if ours.__name__ != "Empty" else {}
                one, other = ours(**given), theirs(**given)
                self.assertEqual(repr(one), repr(other))
                self.assertEqual(one == ours(**given), other == theirs(**given))
                self.assertEqual(ours.__match_args__, theirs.__match_args__)
                self.assertEqual([each.name for each in dataclasses.fields(ours)], [each.name for each in dataclasses.fields(theirs)])
                self.assertEqual(ours.__slots__, theirs.__slots__)
                self.assertEqual(inspect.signature(ours).parameters.keys(), inspect.signature(theirs).parameters.keys())
                self.assertFalse(hasattr(one, "__dict__"))
                for change in (lambda one=one: setattr(one, "count", 4), lambda one=one: delattr(one, "count")):
                    self.assertRaises(FrozenInstanceError, change)
                self.assertRaises(TypeError, ours, 1, 2, 3, 4, 5, 6)
                self.assertFalse(one == other or one == 3)

    def test_fields(self) -> None:
        """Two values would share a list, or differ by what is not to be compared."""
        sample, one, _, same, own = samples(values.dataclass)
        first, second = sample(1), sample(1, label="x")
        self.assertIsNot(first.parts, second.parts)
        self.assertIsNot(first.made, second.made)
        self.assertEqual((first.kind, first.shared, first.name), ("kind", 7, "none"))
        self.assertEqual(first, second)
        self.assertNotEqual(first, sample(1, secret=b"s"))
        self.assertEqual(replace(one(1), count=2), one(2))
        self.assertEqual({one(1): "a"}[one(1)], "a")
        self.assertEqual(len({same(1), same(1)}), 2)
        self.assertRaises(ValueError, one, -1)
        self.assertEqual(hash(own(1)), hash(own(1)))
        match one(5):
            case object(count=count):
                self.assertEqual(count, 5)
