"""All clusters of one command, in parallel: each has a run of its own (``sync``), together they have one end and one exit code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults, succeed
from twisted.python.failure import Failure

from ciruela.client.listener import UploadRow
from ciruela.client.progress import Display
from ciruela.client.sync import ClusterRun
from ciruela.client.tracker import worst
from ciruela.model.ids import ImageId, MachineId

Met = Callable[[ClusterRun, MachineId, str], None]


class ClusterUploads(Protocol):
    """Some uploads to one cluster, on their way or decided: a :class:`ClusterRun`, :class:`Settled`, or ``preflight.Late``.

    ``met`` is told of each server that turns up, with the run and the server's name.
    """

    met: Met

    def start(self) -> Deferred[None]:
        """Begin. Fires when every upload has a verdict; cancel to give up."""

    def stop(self) -> None:
        """Give up what is under way."""

    def source_changed(self, image: ImageId, text: str) -> None:
        """A directory can no longer be served as it was indexed."""

    def rows(self) -> list[UploadRow]:
        """Gives the state of every upload now."""

    def whole_nodes(self) -> int | None:
        """The smallest number of nodes that have one of the running uploads as a whole; None when nothing runs."""


class Settled:
    """Uploads to one cluster whose end was known before anything was sent, beside the runs of others."""

    def __init__(self, rows: Sequence[UploadRow]) -> None:
        self._rows = list(rows)
        self.met: Met = lambda _run, _machine, _name: None

    def start(self) -> Deferred[None]:
        """Nothing is left to do."""
        return succeed(None)

    def stop(self) -> None:
        """Nothing is under way."""

    def source_changed(self, image: ImageId, text: str) -> None:
        """Nothing is served."""

    def rows(self) -> list[UploadRow]:
        """Gives the final state of every upload."""
        return list(self._rows)

    def whole_nodes(self) -> int | None:
        """Nothing runs."""
        return None


class SyncRun:
    """All clusters of one command, in parallel."""

    def __init__(self, clusters: Sequence[ClusterUploads]) -> None:
        self._clusters = clusters
        self._homes: dict[MachineId, ClusterRun] = {}
        self._told: set[frozenset[ClusterRun]] = set()

    def start(self) -> Deferred[list[UploadRow]]:
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

    def rows(self) -> list[UploadRow]:
        """Gives the state of every upload to every cluster."""
        return [row for cluster in self._clusters for row in cluster.rows()]

    def whole_nodes(self) -> int:
        """On how many nodes of each cluster every running upload is whole, at least; from 1 on, the client is not needed any more."""
        known = [nodes for cluster in self._clusters if (nodes := cluster.whole_nodes()) is not None]
        return min(known, default=0)


async def to_its_end(run: SyncRun, display: Display) -> list[UploadRow]:
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


def exit_code(rows: Sequence[UploadRow]) -> int:
    """The exit code of the whole command."""
    return worst(row.verdict.exit_code for row in rows)
