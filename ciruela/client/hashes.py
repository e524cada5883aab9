"""Which hash to index with: BLAKE3, unless a cluster may be the reference's, which knows BLAKE2b only.

A node that confirms ``ciruela.v2`` is one of ours and takes every kind.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime

from ciruela.client.sync import World
from ciruela.index.digest import HashKind
from ciruela.model.errors import CiruelaError, RemoteError
from ciruela.proto.messages import Notification, Request, Response
from ciruela.seams import Link

OURS = HashKind.BLAKE3
EVERYBODYS = HashKind.BLAKE2B

PATIENCE_S = 2.0
"""A cluster that does not answer within so long is taken for one of the reference."""


class Silent:
    """The counterpart of a connection that is only made to see who is there."""

    def requested(self, link: Link, request: Request) -> Deferred[Response]:  # noqa: ARG002
        """Nothing is served here."""
        return fail(RemoteError("this connection is about to be closed"))

    def notified(self, link: Link, notification: Notification) -> None:
        """Nothing that is told here is of use."""

    def lost(self, link: Link) -> None:
        """Nothing depends on it."""


async def hash_for(clusters: Sequence[Sequence[str]], world: World) -> HashKind:
    """The best kind that all clusters, by the names of their entry points, understand."""
    asked = [_within(world.clock, Deferred.fromCoroutine(_is_ours(names, world))) for names in clusters]
    return OURS if all([await one for one in asked]) else EVERYBODYS


def _within(clock: IReactorTime, asked: Deferred[bool]) -> Deferred[bool]:
    return asked.addTimeout(PATIENCE_S, clock).addErrback(lambda _: False)


async def _is_ours(names: Sequence[str], world: World) -> bool:
    """Whether the first entry point that can be reached understands ``ciruela.v2``."""
    for name in names:
        try:
            for address in await world.resolve(name):
                try:
                    link = await world.connect(address, Silent())
                except CiruelaError:
                    continue
                bulk: bool = link.bulk
                link.close()
                return bulk
        except CiruelaError:
            continue
    return False
