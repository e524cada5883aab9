"""What is recorded about a path: which image, and the signatures that put it there (protocol sections 3.4 and 5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ciruela.model.ids import ImageId

SIGNATURE_BYTES = 64


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
    """An image and its signatures, sorted by time and then bytes."""

    image: ImageId
    signatures: tuple[SigEntry, ...]

    @property
    def version(self) -> Version:
        """Newest signature time (0 without signatures) and image id."""
        newest = max((entry.timestamp_ms for entry in self.signatures), default=0)
        return Version(newest, self.image)

    def merged(self, entries: tuple[SigEntry, ...]) -> State:
        """This state with ``entries`` added, without doubles, in order."""
        return State(self.image, tuple(sorted({*self.signatures, *entries})))
