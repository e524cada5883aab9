"""``ciruela sync`` against whole clusters in memory of which a part is dead, deaf, unknown or there twice: what it counts."""

from __future__ import annotations

import random
from collections.abc import Sequence

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.contacts import RunContext
from ciruela.client.listener import NodeNews, UploadRow
from ciruela.client.require import ALL
from ciruela.client.servers import address_of
from ciruela.client.source import ImageSource, SharedImage
from ciruela.client.sync import ClusterRun, EntryPoints
from ciruela.client.tracker import EXIT_DONE, EXIT_PARTIAL, CompletionRule, UploadOutcome
from ciruela.client.uploadrun import Upload
from ciruela.index.parse import parse
from ciruela.interfaces import Address
from ciruela.keys.signed import signed_bytes
from ciruela.model.errors import LinkLost
from ciruela.proto.messages import AppendDir
from tests.proof import shows
from tests.scenarios.cluster import KEY, Cluster, Image

SITE = Image(7, {"a": 100_000, "b": 70_000})
PATH = "/app/v1"


class _Tree:
    changed: frozenset[str] = frozenset()

    def blocks(self, numbers):
        return [SITE.blocks.get(SITE.order[number]) for number in numbers]


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.news: list[NodeNews] = []

    def problem(self, cluster: str, text: str) -> None:
        self.problems.append(text)

    def note(self, cluster: str, text: str) -> None:
        """Not looked at."""

    def node(self, news: NodeNews) -> None:
        self.news.append(news)


class CountingCase(SynchronousTestCase):
    def cluster_of(self, count: int) -> Cluster:
        self.cluster = Cluster(count)
        self.cluster.run(5.0)
        return self.cluster

    def resolve(self, name: str) -> Deferred[list[Address]]:
        numeric = address_of(name)
        if numeric is not None:
            return succeed([numeric])
        try:
            return succeed([self.cluster.address(int(name.removeprefix("n")))])
        except ValueError:
            return fail(LinkLost(f"the name {name} cannot be resolved"))

    def sync(self, *names: str, rule: CompletionRule | None = None, seconds: float = 3000.0) -> UploadRow:
        """One upload, to its end."""
        clock, heard = self.cluster.clock, Heard()
        self.heard = heard
        world = RunContext(clock, random.Random(3), lambda where, other: self.cluster.hub.link(other, where), self.resolve)
        offer = SharedImage(parse(SITE.data, SITE.id), SITE.data, _Tree(), "./dist")
        source = ImageSource([offer], lambda f, *args, **kw: succeed(f(*args, **kw)), lambda image, text: None)
        stamp = self.cluster.now_ms()
        order = AppendDir(PATH, SITE.id, stamp, (KEY.sign(signed_bytes(PATH, SITE.id, stamp)).signature,))
        run = ClusterRun(EntryPoints("c", names), [Upload(order, False, 10)], rule or CompletionRule(), world, source, heard)
        going = run.start()
        began = clock.seconds()
        self.cluster.run(seconds, until=lambda: going.called)
        self.took_s = clock.seconds() - began
        self.assertTrue(going.called, run.rows())
        return run.rows()[0]

    def counted(self, row: UploadRow) -> tuple[UploadOutcome, int, int, int]:
        return row.verdict.outcome, row.verdict.exit_code, row.standing.done, row.standing.expected

    def one_sided(self, *pairs: tuple[int, int]) -> None:
        """The first of each pair is not told of the second one."""
        for number, node in self.cluster.nodes.items():
            known = {self.cluster.address(other): f"n{other}" for other in self.cluster.nodes if (number, other) not in pairs}
            node.gossip.configured(known)


class DeadTests(CountingCase):
    @shows("K1.1", "I7")
    def test_dead_for_long(self) -> None:
        """After five minutes the others forget a dead server, and a release that it lacks would count as one that is everywhere."""
        for silent_s in (20.0, 320.0):
            self.cluster_of(4)
            self.cluster.kill(4)
            self.cluster.run(silent_s)
            row = self.sync("n1", rule=CompletionRule(require=ALL))
            self.assertEqual(self.counted(row), (UploadOutcome.PARTIAL, EXIT_PARTIAL, 3, 4), silent_s)
            self.assertEqual(row.standing.missing, ("n4",))

    @shows("K1.1", "I7")
    def test_others_restarted(self) -> None:
        """Nodes that have just restarted have never heard the dead one."""
        self.cluster_of(4)
        self.cluster.kill(4)
        self.cluster.run(320.0)
        for number in (1, 2, 3):
            self.cluster.kill(number)
            self.cluster.start(number)
        self.cluster.run(5.0)
        row = self.sync("n1", "n2", rule=CompletionRule(require=ALL))
        self.assertEqual(self.counted(row), (UploadOutcome.PARTIAL, EXIT_PARTIAL, 3, 4))
        self.assertIn("never heard", row.standing.waited_for[0])

    @shows("K1.1")
    def test_early_names_it(self) -> None:
        """EARLY is a success by its rule; a user would not see that a server lacks the release, nor since when it is silent."""
        self.cluster_of(4)
        self.cluster.kill(4)
        self.cluster.run(120.0)
        row = self.sync("n1")
        self.assertEqual(self.counted(row), (UploadOutcome.EARLY, EXIT_DONE, 3, 4))
        (told,) = row.standing.waited_for
        self.assertRegex(told, r"n4 \(not heard for 2:[0-9]{2}\)")

    @shows("K7.2")
    def test_three_and_one_dead(self) -> None:
        """Half an hour would pass until "failed", although it is known after seconds that two of three servers is all there will be."""
        self.cluster_of(3)
        self.cluster.kill(3)
        self.cluster.run(60.0)
        row = self.sync("n1")
        self.assertEqual(self.counted(row), (UploadOutcome.PARTIAL, EXIT_PARTIAL, 2, 3))
        self.assertLess(self.took_s, 60.0)
        self.assertEqual(row.verdict.why, "2 nodes have it, 3 were needed; 1 other cannot be reached")
        self.assertIn("n3 (not heard for", row.standing.waited_for[0])
        self.assertTrue(any("n3 (not heard for" in text and "3 of 3 nodes are needed" in text for text in self.heard.problems))

    @shows("K7.2")
    def test_comes_back(self) -> None:
        """A server that restarts while it is waited for still counts."""
        self.cluster_of(3)
        self.cluster.kill(3)
        self.cluster.run(60.0)
        self.cluster.clock.callLater(20.0, self.cluster.start, 3)
        self.assertEqual(self.counted(self.sync("n1")), (UploadOutcome.DONE, EXIT_DONE, 3, 3))


class UnheardTests(CountingCase):
    @shows("K1.2", "I7")
    def test_no_datagrams(self) -> None:
        """Where a firewall drops all UDP, one server of three would be counted as all there are."""
        self.cluster_of(0)
        self.cluster.hub.loss = 1.0
        for number in (1, 2, 3):
            self.cluster.start(number)
        self.cluster.run(10.0)
        row = self.sync("n1", rule=CompletionRule(require=ALL))
        self.assertEqual(self.counted(row), (UploadOutcome.DONE, EXIT_DONE, 3, 3))

    @shows("K1.4")
    def test_one_sided(self) -> None:
        """A server that only one of two names would be left out, and the release would be called complete."""
        self.cluster_of(2)
        self.one_sided((2, 1))
        self.cluster.run(400.0)
        row = self.sync("n1", rule=CompletionRule(require=ALL))
        self.assertEqual(self.counted(row), (UploadOutcome.DONE, EXIT_DONE, 2, 2))

    @shows("K1.5", "I7")
    def test_same_machine_id(self) -> None:
        """A cloned disk makes one server of two for all who count by machine ids; one of them would lack every release."""
        self.cluster_of(0)
        self.patch(self.cluster, "machine", lambda number: Cluster.machine(2 if number == 3 else number))
        for number in (1, 2, 3):
            self.cluster.start(number)
            self.cluster.run(1.0)
        self.cluster.run(10.0)
        row = self.sync("n1", "n2", "n3")
        self.assertEqual(self.counted(row), (UploadOutcome.PARTIAL, EXIT_PARTIAL, 2, 3))
        self.assertIn("10.0.0.2:24783 and 10.0.0.3:24783 have one machine id", row.verdict.why)
        self.assertIn("give each server a machine id of its own", row.verdict.why)
        self.assertEqual(sum("have one machine id" in text for text in self.heard.problems), 1)

    def test_without_the_directory(self) -> None:
        """A server that does not take the directory would be waited for although it has said so."""
        names: Sequence[str] = ("n1", "n2", "n3")
        self.cluster = Cluster(3, configs=lambda number: _configs(number))
        self.cluster.run(5.0)
        self.assertEqual(self.counted(self.sync(*names)), (UploadOutcome.DONE, EXIT_DONE, 2, 2))


def _configs(number: int):
    from tests.scenarios.cluster import APP, LOGS

    return {"logs": LOGS} if number == 3 else {"app": APP, "logs": LOGS}
