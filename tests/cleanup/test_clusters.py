"""Cleanup in whole clusters: nodes that clean by rules of their own, that come back after a week, and that find each other again."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import Deferred, succeed

from ciruela.cleanup.health import QUIET_S
from ciruela.cleanup.service import FIRST_S, LOOK_S, Safeguards
from ciruela.daemon.status import NodeStatus
from ciruela.interfaces import KeepList
from ciruela.model.config import DirConfig
from ciruela.model.vpath import VPath
from ciruela.proto.messages import GetBaseDir
from tests.measure import UnmeasuredTestCase
from tests.proof import shows
from tests.scenarios.cluster import APP, START_MS, Client, Cluster, Image

WEEK_S = 7 * 24 * 3600.0
CYCLE_END_S = FIRST_S[1] + 2 * LOOK_S
"""After this a node has cleaned once."""

KEEP_TWO = replace(APP, auto_clean=True, keep_min_directories=2, keep_recent_ms=60_000)
KEEP_FOUR = replace(KEEP_TWO, keep_min_directories=4)
IMAGES = [Image(40 + number, {"a": 1000 + number}) for number in range(4)]


class Cleaners(Cluster):
    """Nodes that clean up. ``away_s`` is time in which no process ran."""

    def __init__(self, count: int, configs: object) -> None:
        self.away_s = 0.0
        super().__init__(count, configs=configs)

    def now_ms(self) -> int:
        return START_MS + round((self.clock.seconds() + self.away_s) * 1000)

    def read(self, config: DirConfig) -> Deferred[KeepList]:
        return succeed(frozenset())

    def safeguards(self, number: int) -> Safeguards:
        return Safeguards(lambda: self.clock.seconds() + self.away_s, self, lambda: succeed(self.configs(number)), lambda: 0)

    def upload(self, *images: Image) -> None:
        """One version after the other, to the first node, until all that run have it."""
        for number, image in enumerate(images):
            path = f"/app/v{IMAGES.index(image) if image in IMAGES else number}"
            client = Client(self, image)
            client.upload(path, self.addresses(1))
            self.run(30.0, until=lambda path=path, image=image: len(self.holders(path, image)) == len(self.nodes))  # type: ignore[misc]
            client.leave()

    def here(self, number: int) -> list[str]:
        """What is committed at a node."""
        return sorted(vpath.name for vpath, _ in self.nodes[number].ledger.committed_in(VPath.parse("/app")))


class ClusterTests(UnmeasuredTestCase):
    """Three nodes with four versions of one application."""

    @shows("A54", "F49", "F50", "I5", "I9", "I10")
    def test_back_after_a_week(self) -> None:
        """A node that was away would bring back what the others have deleted meanwhile, or delete before it has heard of them."""
        cluster = Cleaners(3, {"app": KEEP_TWO})
        cluster.run(2 * LOOK_S)
        cluster.upload(*IMAGES)
        self.assertEqual([cluster.here(number) for number in (1, 2, 3)], [["v0", "v1", "v2", "v3"]] * 3)
        cluster.kill(3)
        cluster.run(QUIET_S - 60)
        self.assertEqual([cluster.here(number) for number in (1, 2)], [["v0", "v1", "v2", "v3"]] * 2)
        cluster.run(CYCLE_END_S - QUIET_S)
        self.assertEqual([cluster.here(number) for number in (1, 2)], [["v2", "v3"]] * 2)
        cluster.away_s = WEEK_S
        cluster.start(3)
        cluster.run(QUIET_S - 10)
        self.assertEqual([cluster.here(number) for number in (1, 2, 3)], [["v2", "v3"]] * 2 + [["v0", "v1", "v2", "v3"]])
        cluster.run(CYCLE_END_S - QUIET_S + 10)
        self.assertEqual([cluster.here(number) for number in (1, 2, 3)], [["v2", "v3"]] * 3)
        self.assertTrue(cluster.agree())
        page = NodeStatus(cluster.nodes[3], list).status()
        assert isinstance(page, dict) and isinstance(page["cleanup"], dict)
        report = page["cleanup"]["/app"]
        assert isinstance(report, dict)
        self.assertEqual((report["blocked"], report["deleted"], report["failed"]), ([], 2, 0))
        self.assertTrue(str(report["last_cycle"]).startswith("2023-11-2"))

    @shows("I5", "I9")
    def test_rules_differ(self) -> None:
        """Two nodes with different rules would delete and fetch the same images for ever, or ask each other without end."""
        cluster = Cleaners(2, lambda number: {"app": KEEP_TWO if number == 1 else KEEP_FOUR})
        cluster.run(2 * LOOK_S)
        cluster.upload(*IMAGES)
        cluster.run(CYCLE_END_S)
        self.assertEqual([cluster.here(number) for number in (1, 2)], [["v2", "v3"], ["v0", "v1", "v2", "v3"]])
        asked: list[float] = []
        node = cluster.nodes[2].counterpart
        answer = node.requested

        def requested(link, request):  # type: ignore[no-untyped-def]
            if isinstance(request, GetBaseDir):
                asked.append(cluster.clock.seconds())
            return answer(link, request)

        self.patch(node, "requested", requested)
        committed = cluster.nodes[1].downloads.totals.committed
        cluster.run(700.0)
        self.assertLessEqual(len(asked), 3)
        self.assertEqual([cluster.here(number) for number in (1, 2)], [["v2", "v3"], ["v0", "v1", "v2", "v3"]])
        self.assertEqual(cluster.nodes[1].downloads.totals.committed, committed)
        self.assertEqual(cluster.nodes[1].ledger.pendings(), [])

    @shows("A54", "I9")
    def test_alone_among_configured_peers(self) -> None:
        """A node that is cut off from the others since its start would delete, without knowing what they have."""
        cluster = Cleaners(3, {"app": KEEP_TWO})
        cluster.run(2 * LOOK_S)
        cluster.upload(*IMAGES)
        cluster.hub.partition([cluster.addresses(1), cluster.addresses(2, 3)])
        cluster.kill(1)
        cluster.start(1)
        cluster.run(CYCLE_END_S)
        self.assertEqual([cluster.here(number) for number in (1, 2, 3)], [["v0", "v1", "v2", "v3"], ["v2", "v3"], ["v2", "v3"]])
        cleanup = cluster.nodes[1].cleanup
        assert cleanup is not None
        self.assertEqual([one.cause.value for one in cleanup.reports[VPath.parse("/app")].blocked], ["peers"])
