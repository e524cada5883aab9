"""The answer to GetPathState: what really stands at one path here, and which other servers may take it.

Also the reasons why an image that was wanted here did not come: the last refusals and failures, in memory, for pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ciruela.interfaces import NodeContext
from ciruela.membership.cluster import Cluster
from ciruela.model.errors import DiskError, RemoteError
from ciruela.model.ids import ImageId, SharedId
from ciruela.model.values import dataclass
from ciruela.model.vpath import VPath
from ciruela.proto.messages import MOST_ADDRESSES, MOST_SERVERS, MOST_SHARED_IDS, GetPathState, PathStateData
from ciruela.runtime import BoundedMap
from ciruela.tracking.ledger import Ledger

MOST = 1000
"""Entries that are kept; a thousand of them are some 300 KiB."""


@dataclass(frozen=True, slots=True)
class RecentRejection:
    """One image that was not taken, or given up: ``word`` as on the wire, when on the clock of the node."""

    image: ImageId
    word: str
    rejected: bool
    at_s: float


class Refusals:
    """The last refusal at each path."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._kept: BoundedMap[VPath, RecentRejection] = BoundedMap(MOST)

    def note(self, vpath: VPath, image: ImageId, word: str, *, rejected: bool) -> None:
        """``image`` does not come to ``vpath``: it was ``rejected``, or a download was given up."""
        self._kept.put(vpath, RecentRejection(image, word, rejected, self._clock.seconds()))

    def forget(self, vpath: VPath) -> None:
        """Something came to ``vpath`` after all."""
        self._kept.pop(vpath, None)

    def at(self, vpath: VPath) -> RecentRejection | None:
        """The last refusal at ``vpath``, if it is remembered."""
        return self._kept.get(vpath)


@dataclass(eq=False)
class PathStates:
    """Answers GetPathState for one node. ``cluster`` knows the other servers that may take a directory (key).

    ``there`` looks at the disk for a committed image; one that is missing is no longer committed then.
    ``refused_orders`` gives the digests of clients' orders that were refused at a path.
    """

    # required parameters
    context: NodeContext
    ledger: Ledger
    refusals: Refusals
    cluster: Cluster
    there: Callable[[VPath], Deferred[bool]]
    refused_orders: Callable[[VPath], tuple[bytes, ...]]
    acquainted: Callable[[], Deferred[None]]

    def answer(self, request: GetPathState) -> Deferred[PathStateData]:
        """Look at the ledger and at the disk, once the servers are known that are asked for.

        Fails with RemoteError for what is no path, or when the disk cannot be looked at.
        """
        waiting = self.acquainted() if request.servers else succeed(None)
        return waiting.addCallback(lambda _: self._look(request))

    def _look(self, request: GetPathState) -> Deferred[PathStateData]:
        try:
            vpath = VPath.parse(request.path)
        except ValueError as error:
            raise RemoteError(f"bad path: {error}") from None
        committed = self.ledger.committed(vpath) if self._taken(vpath) else None
        if committed is None:
            return succeed(self._told(vpath, False, request.servers))
        looked = self.there(vpath).addErrback(_unseen)
        return looked.addCallback(lambda there: self._told(vpath, there, request.servers))

    def _taken(self, vpath: VPath) -> bool:
        config = self.context.configs.get(vpath.key)
        return config is not None and config.num_levels == vpath.level

    def _told(self, vpath: VPath, there: bool, servers: bool) -> PathStateData:
        committed, pending, refusal = self.ledger.committed(vpath), self.ledger.pending(vpath), self.refusals.at(vpath)
        return PathStateData(
            self.context.me,
            self.context.hostname,
            self.context.epoch,
            self._taken(vpath),
            committed.version if committed is not None and there else None,
            pending.state.version if pending is not None else None,
            (refusal.image, refusal.word) if refusal is not None else None,
            tuple(self.cluster.servers(vpath.key))[:MOST_SERVERS] if servers else (),
            tuple(self._shown(self.cluster.shared_ids())) if servers else (),
            self.refused_orders(vpath),
        )

    @staticmethod
    def _shown(shared: Sequence[SharedId]) -> Iterator[SharedId]:
        """As many of them as an answer may hold."""
        for one in shared[:MOST_SHARED_IDS]:
            yield replace(one, addresses=one.addresses[:MOST_ADDRESSES])


def _unseen(failure: Failure) -> bool:
    """The disk cannot be looked at: whoever asks hears why."""
    failure.trap(DiskError)
    raise RemoteError(failure.getErrorMessage())
