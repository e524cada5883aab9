"""All clusters of one command, in parallel: each has a run of its own (``sync``), together they have one end and one exit code."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.python.failure import Failure

from ciruela.client.book import worst
from ciruela.client.progress import Display
from ciruela.client.sync import ClusterRun, Row
from ciruela.model.ids import ImageId, MachineId


class SyncRun:
    """All clusters of one command, in parallel."""

    def __init__(self, clusters: Sequence[ClusterRun]) -> None:
        self._clusters = clusters
        self._homes: dict[MachineId, ClusterRun] = {}
        self._told: set[frozenset[ClusterRun]] = set()

    def start(self) -> Deferred[list[Row]]:
        """Begin. Fires with the final rows; cancel to give up."""
        for cluster in self._clusters:
            cluster.met = self._met
        waiting = gatherResults([cluster.start() for cluster in self._clusters], consumeErrors=True)
        return waiting.addCallbacks(lambda _: self.rows(), self._broken)

    def _met(self, cluster: ClusterRun, machine: MachineId, name: str) -> None:
        """Say so, once, when two entry points lead to one cluster: it gets everything twice."""
        home = self._homes.setdefault(machine, cluster)
        pair = frozenset((home, cluster))
        if home.label != cluster.label and pair not in self._told:
            self._told.add(pair)
            cluster.problem(
                f"leads to the same cluster as {home.label} ({name or machine.hex()} is in both), which gets everything twice; "
                "name the hosts of one cluster with -m"
            )

    def _broken(self, failure: Failure) -> Failure:
        """One cluster failed or was cancelled: end the others, and pass on why."""
        self.stop()
        return failure.value.subFailure if isinstance(failure.value, FirstError) else failure

    def stop(self) -> None:
        """Give up whatever is not finished."""
        for cluster in self._clusters:
            cluster.stop()

    def source_changed(self, image: ImageId, text: str) -> None:
        """Tell every cluster that a directory changed."""
        for cluster in self._clusters:
            cluster.source_changed(image, text)

    def rows(self) -> list[Row]:
        """How every upload to every cluster stands."""
        return [row for cluster in self._clusters for row in cluster.rows()]

    def whole_nodes(self) -> int:
        """On how many nodes of each cluster every running upload is whole, at least; from 1 on, the client is not needed any more."""
        known = [nodes for cluster in self._clusters if (nodes := cluster.whole_nodes()) is not None]
        return min(known, default=0)


async def to_its_end(run: SyncRun, display: Display) -> list[Row]:
    """Run it before the eyes of the user. Gives the final rows, which were shown. When cancelled, the user is told what nodes have."""
    going = run.start()
    display.watch(run)
    try:
        rows = await going
    except CancelledError:
        display.interrupted(run.rows())
        raise
    finally:
        display.hide()
    display.finish(rows)
    return rows


def exit_code(rows: Sequence[Row]) -> int:
    """The exit code of the whole command."""
    return worst(row.verdict.exit_code for row in rows)
