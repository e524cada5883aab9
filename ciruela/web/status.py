"""What the status pages ask of a node. Every method returns fresh values that ``json`` can write."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import Deferred

Json = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


class Status(Protocol):
    """A node, seen from a page. Ids and hashes are lower-case hex, virtual paths text, times milliseconds unless named otherwise."""

    def health(self) -> tuple[bool, Json]:
        """Whether the node has read its disk and serves, and a few words about it."""

    def status(self) -> Json:
        """Who this is, its process and its metrics."""

    def downloading(self) -> Json:
        """What is on its way here, by path."""

    def base_dirs(self) -> Json:
        """The base dirs that hold something, with their hashes."""

    def configs(self) -> Json:
        """The directory configs, by key."""

    def deleted(self) -> Json:
        """Uploads given up lately, as pairs of path and image."""

    def watching(self) -> Json:
        """The paths that clients of this node wait for."""

    def watched(self) -> Json:
        """The paths that anybody waits for: the image that is here, or ``absent``."""

    def peers(self) -> Json:
        """The peers that have spoken, by machine id."""

    def list_dir(self, path: str) -> Json:
        """The images of a base dir with their signatures; empty when there is no such base dir."""

    def cluster(self, topic: str) -> Json | None:
        """What peers said of ``downloading``, ``complete``, ``deleted``, ``watching``, ``dirs`` or ``configs``; None for another topic."""


class Api(Protocol):
    """A node, seen from the pages below ``/api/v1/``."""

    def find(self, parts: tuple[str, ...]) -> Deferred[Json | None]:
        """The page of a path, by its components; None when there is none. Fails with CiruelaError for what cannot be told now."""
