"""What cleanup has to know of the rest of the node and of the world, as protocols and values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred

from ciruela.model.dirconfig import DirConfig
from ciruela.model.ids import ImageId
from ciruela.model.vpath import VPath
from ciruela.seams import KeepLists, ProtectedLinks

T = TypeVar("T")


class Surroundings(Protocol):
    """What cleanup asks of the rest of the node."""

    def peers(self) -> Mapping[str, bool]:
        """The other configured nodes by name, each with whether it was heard lately."""

    def clocks_ms(self) -> Sequence[int]:
        """What the clocks of other nodes show now, by their own word."""

    def served(self) -> Collection[VPath]:
        """The paths of which blocks were given since the last call."""

    def wanted(self, base: VPath) -> Collection[VPath]:
        """The paths in ``base`` whose images other nodes are fetching, or this one is mending."""

    def downloads(self) -> int:
        """How many downloads are running."""

    def given_up(self) -> int:
        """How many downloads were given up since the start."""

    def indexes(self) -> Collection[ImageId]:
        """The images whose indexes are in use, besides those in the ledger."""

    def alone(self, vpath: VPath, work: Callable[[], Deferred[T]]) -> Deferred[T]:
        """Run ``work`` while no order for ``vpath`` is being judged."""


@dataclass(frozen=True, slots=True)
class Safeguards:
    """What has to be looked at before anything is deleted.

    ``steady_s`` is a clock that nobody can set, in seconds; the reactor's may follow the wall clock. ``configured`` reads the directory
    configs again and fails with ConfigError when they are bad. ``unresolved``: nodes that are configured without a known address.
    Without ``links`` none are protected.
    """

    steady_s: Callable[[], float]
    keep_lists: KeepLists
    configured: Callable[[], Deferred[Mapping[str, DirConfig]]]
    unresolved: Callable[[], int]
    links: ProtectedLinks | None = None
