"""Record of a path: which image, and the signatures that put it there (protocol sections 3.4 and 5.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import NamedTuple

from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass

SIGNATURE_BYTES = 64

MOST_SIGNATURES = 16
"""Signatures that are recorded with an image, a kept one or a tombstone: as many as a request may have (threats A15)."""


class Version(NamedTuple):
    """The one order of versions: signing time, then image id (threats 6.5). The greater one wins everywhere."""

    timestamp_ms: int
    image: ImageId


@dataclass(frozen=True, slots=True, order=True)
class SigEntry:
    """One ed25519 signature with the time it was made for, in milliseconds since 1970."""

    timestamp_ms: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class State:
    """An image and its signatures, sorted by time and then bytes.

    ``version``: newest signature time (0 without signatures) and image id; it is compared much more often than a state is made.
    """

    image: ImageId
    signatures: tuple[SigEntry, ...]
    version: Version = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        newest_ms = max([entry.timestamp_ms for entry in self.signatures], default=0)
        object.__setattr__(self, "version", Version(newest_ms, self.image))

    def claim(self, removed: Version | None = None) -> Version:
        """Oldest signature time (0 without signatures) and image id: of two images appended to one path the smaller claim was first.

        Signatures up to ``removed``, the last signed removal there, count only when there are no later ones.
        """
        valid = self.since(removed).signatures or self.signatures
        return Version(min((entry.timestamp_ms for entry in valid), default=0), self.image)

    def since(self, removed: Version | None) -> State:
        """This state without the signatures up to ``removed``."""
        if removed is None:
            return self
        return State(self.image, tuple(one for one in self.signatures if Version(one.timestamp_ms, self.image) > removed))

    def merged(self, entries: tuple[SigEntry, ...]) -> State:
        """This state with ``entries`` added, :func:`bounded`."""
        return State(self.image, bounded((*self.signatures, *entries)))

    def compact(self, makers: Mapping[SigEntry, str], *, claim: bool) -> State:
        """This state with the newest signature of each key, by ``makers``; one without a known maker counts as a key of its own.

        With ``claim`` the oldest signature stays as well.
        """
        newest = {makers[entry]: entry for entry in self.signatures if entry in makers}
        kept = [entry for entry in self.signatures if entry not in makers or newest[makers[entry]] == entry]
        return State(self.image, bounded((*self.signatures[:1], *kept) if claim else kept))


def bounded(entries: Iterable[SigEntry]) -> tuple[SigEntry, ...]:
    """``entries`` in order and without doubles, at most :data:`MOST_SIGNATURES`: the newest ones, and the oldest, which is the claim."""
    ordered = sorted(set(entries))
    if len(ordered) > MOST_SIGNATURES:  # guard: K3.6 I6
        ordered = [ordered[0], *ordered[1 - MOST_SIGNATURES :]]
    return tuple(ordered)


@dataclass(frozen=True, slots=True)
class RetainedVersion:
    """A replaced image that is still there: its version, and its newest signatures where they were recorded (at most 16)."""

    version: Version
    signatures: tuple[SigEntry, ...] = ()

    @classmethod
    def of(cls, state: State) -> RetainedVersion:
        """The row for the image of ``state``, which is about to be replaced."""
        return cls(state.version, state.signatures[-MOST_SIGNATURES:])

    @property
    def image(self) -> ImageId:
        """The id of the image."""
        return self.version.image


@dataclass(frozen=True, slots=True)
class Tombstone:
    """That an image was deleted: nothing up to this ``version`` is taken at its path again. ``buried_ms``: when, wall time.

    With ``signatures`` somebody signed that it be removed, at the time of the version; other nodes may be told. Without it was removed by
    the rules of this node alone. ``forced``: also where a protected link leads to it.
    """

    version: Version
    buried_ms: int
    signatures: tuple[bytes, ...] = ()
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Tombstones:
    """Deletions in one base dir: tombstones by entry name.

    Tombstones get old and are folded into the floor: nothing that was signed at or before ``floor_ms`` is taken from a peer at a path of
    which nothing is known (threats 6.5). So the memory is bounded, and what was deleted stays deleted.

    Images of one base dir are deleted at the same time: of what two deletions left the one with the greater ``serial`` has both.
    """

    floor_ms: int = 0
    tombstones: Mapping[str, Tombstone] = field(default_factory=dict)
    serial: int = field(default=0, compare=False)

    def with_one(self, entry: str, tombstone: Tombstone) -> Tombstones:
        """With one more; the greater version stays where there is one already, and of the same version all signatures."""
        before = self.tombstones.get(entry)
        if before is not None and before.version > tombstone.version:
            return self
        if before is not None and before.version == tombstone.version:
            both = tuple(sorted({*before.signatures, *tombstone.signatures}))
            forced = before.forced or tombstone.forced
            tombstone = Tombstone(tombstone.version, tombstone.buried_ms, both[:MOST_SIGNATURES], forced)
        return Tombstones(self.floor_ms, {**self.tombstones, entry: tombstone})

    def without(self, entry: str) -> Tombstones:
        """Without the one of ``entry``."""
        return Tombstones(self.floor_ms, {name: one for name, one in self.tombstones.items() if name != entry})

    def folded(self, before_ms: int, most: int) -> Tombstones:
        """With the tombstones set before ``before_ms``, and the oldest beyond ``most``, folded into the floor."""
        by_age = sorted(self.tombstones.items(), key=lambda item: item[1].buried_ms)
        old = [item for at, item in enumerate(by_age) if item[1].buried_ms < before_ms or at < len(by_age) - most]
        if not old:
            return self
        floor_ms = max(self.floor_ms, *(tombstone.version.timestamp_ms for _, tombstone in old))  # guard: I10, -> self.floor_ms
        return Tombstones(floor_ms, dict(by_age[len(old) :]))
