"""``ciruela.ClusterClient`` against whole clusters in memory: one row for each server, whatever becomes of it."""

from __future__ import annotations

import random
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from ciruela import ClusterClient
from ciruela.client.contacts import RunContext
from ciruela.interfaces import Address
from ciruela.model.errors import LinkLost
from ciruela.model.ids import Server, SharedId
from ciruela.proto.messages import BaseDirData, GetBaseDir, GetIndex, GetIndexAt, GetPathState, IndexAtData, Request
from tests.client.test_reading import Node, Reader
from tests.client.test_reading import address as page_address
from tests.doubles.clock import HeapClock
from tests.proof import shows
from tests.scenarios.cluster import APP, LOGS, Client, Cluster, Image

SITE = Image(5, {"a": 100_000, "b": 70_000})
T = TypeVar("T")


class ClusterClients(SynchronousTestCase):
    def setUp(self) -> None:
        self.tried: list[Address] = []
        self.links: list[Any] = []
        self.asked: list[tuple[Address, Request]] = []
        self.unknown: set[str] = set()
        self.begin(Cluster(3))
        self.upload()

    def begin(self, cluster: Cluster) -> None:
        self.cluster = cluster
        cluster.run(3.0)

    def upload(self) -> None:
        Client(self.cluster, SITE).upload("/app/v1", self.cluster.addresses(1))
        self.cluster.run(60.0, lambda: self.cluster.holders("/app/v1", SITE) == {1, 2, 3})
        self.cluster.run(3.0)

    def resolve(self, name: str) -> Deferred[list[Address]]:
        if name in self.unknown:
            return fail(LinkLost(f"the name {name} cannot be resolved"))
        return succeed([self.cluster.address(int(number)) for number in name.removeprefix("n").split("+")])

    def connect(self, where: Address, counterpart: Any) -> Deferred[Any]:
        def opened(link: Any) -> Any:
            self.links.append(link)
            ask = link.ask

            def noted(request: Request) -> Any:
                self.asked.append((where, request))
                return ask(request)

            link.ask = noted
            return link

        self.tried.append(where)
        return self.cluster.hub.link(counterpart, where).addCallback(opened)

    def client(self, *names: str) -> ClusterClient:
        network = RunContext(self.cluster.clock, random.Random(1), self.connect, self.resolve)
        client = ClusterClient(self.cluster.clock, *names, network=network, pages=Reader())
        self.addCleanup(client.close)
        return client

    def wait(self, query: Coroutine[Any, Any, T]) -> T:
        done = Deferred.fromCoroutine(query)
        self.cluster.run(100.0, lambda: done.called)
        return self.successResultOf(done)

    def test_which_image(self) -> None:
        """A program would have to know each server by name, or would miss one, or leave connections behind."""

        async def story() -> list[tuple[str, str, str]]:
            async with self.client("n1") as cluster:
                rows = await cluster.path_states("/app/v1")
                return [(row.name, row.address, row.answer.committed.image.hex()) for row in rows if row.answer and row.answer.committed]

        where = [str(self.cluster.address(number)) for number in (1, 2, 3)]
        self.assertEqual(self.wait(story()), [(f"n{number}", where[number - 1], SITE.id.hex()) for number in (1, 2, 3)])
        self.assertEqual(len(self.links), 3)
        self.assertEqual({request for _, request in self.asked}, {GetPathState("/app/v1", servers=True)})
        self.assertEqual(len(self.asked), 3)
        self.cluster.run(1.0)
        self.assertFalse(any(link.alive for link in self.links))

    def test_again(self) -> None:
        """A program that asks every second would make a connection every second, or be told what was."""
        client = self.client("n1")
        self.assertIsNone(self.wait(client.path_states("/app/v2"))[0].problem or None)
        self.cluster.kill(3)
        rows = self.wait(client.path_states("/app/v1"))
        self.assertEqual([(row.name, row.answer is None) for row in rows], [("n1", False), ("n2", False), ("n3", True)])
        at_first = [link for link in self.links if link.there == self.cluster.address(1)]
        self.assertEqual(len(at_first), 1)

    def test_one_is_down(self) -> None:
        """A server that is down would be left out, and a release be taken for complete."""
        self.cluster.kill(3)
        (row,) = [row for row in self.wait(self.client("n1").path_states("/app/v1")) if row.answer is None]
        self.assertEqual((row.address, row.machine), (str(self.cluster.address(3)), self.cluster.machine(3)))
        self.assertNotEqual(row.problem, "")

    def test_silent_server(self) -> None:
        """One server that hangs would keep a program from hearing of the others."""
        self.cluster.nodes[2].counterpart.requested = lambda _link, _request: Deferred()  # type: ignore[method-assign]
        rows = self.wait(self.client("n1", "n2").path_states("/app/v1"))
        self.assertEqual([(row.name, row.problem) for row in rows], [("n1", ""), ("n2", "no answer within 30 s"), ("n3", "")])

    def test_names_that_lead_nowhere(self) -> None:
        """A name that is misspelt would look like a server with nothing, or hide all the others."""
        self.unknown.add("n7")
        rows = self.wait(self.client("n7", "n2").path_states("/app/v1"))
        self.assertEqual([row.name for row in rows], ["n1", "n2", "n3", "n7"])
        self.assertEqual((rows[3].address, rows[3].problem), ("", "the name n7 cannot be resolved"))
        self.assertEqual([row.problem for row in self.wait(self.client("n7").path_states("/app/v1"))], ["the name n7 cannot be resolved"])

    def test_who_lacks_the_directory(self) -> None:
        """A server that does not take a directory would be waited for, or nobody could find out that it was forgotten."""
        self.begin(Cluster(3, configs=lambda number: {"app": APP, "logs": LOGS} if number < 3 else {"logs": LOGS}))
        client = self.client("n1", "n3")
        rows = self.wait(client.servers("/app/v1"))
        self.assertEqual([(row.name, row.answer) for row in rows], [("n1", True), ("n2", True), ("n3", False)])
        self.assertEqual([row.name for row in self.wait(client.path_states("/app/v1"))], ["n1", "n2"])

    def test_two_addresses(self) -> None:
        """A server with two addresses would count as two."""
        rows = self.wait(self.client("n1+1", "n1", "n2+3").servers("/app/v1"))
        self.assertEqual([row.name for row in rows], ["n1", "n2", "n3"])

    def test_older_servers(self) -> None:
        """A server that knows no such question would be said to have nothing."""
        self.cluster.hub.old.update(self.cluster.addresses(1, 2, 3))
        rows = self.wait(self.client("n1", "n2").path_states("/app/v1"))
        self.assertEqual([row.name for row in rows], ["n1", "n2"])
        self.assertEqual({row.problem for row in rows}, {"it does not tell, as older servers do not"})
        answers = self.wait(self.client("n1").ask(GetBaseDir("/app")))
        self.assertIsInstance(answers[0].answer, BaseDirData)

    def test_shared_machine_id(self) -> None:
        """Two servers that cannot be told apart would count as one, and nobody would know."""
        shared = SharedId(self.cluster.machine(2), ("10.0.0.2:1", "10.0.0.9:1"))
        self.patch(self.cluster.nodes[1].cluster, "shared_ids", lambda: (shared,))
        client = self.client("n1")
        self.assertEqual(client.complaint, "")
        self.wait(client.path_states("/app/v1"))
        self.assertIn("10.0.0.2:1 and 10.0.0.9:1 have one machine id", client.complaint)

    def test_any_question(self) -> None:
        """What has no query of its own could not be asked at all."""
        client = self.client("n1")
        rows = self.wait(client.ask(GetBaseDir("/app")))
        self.assertEqual([row.answer.dirs["v1"].image for row in rows if isinstance(row.answer, BaseDirData)], [SITE.id] * 3)
        refused = self.wait(client.ask(GetIndex(SITE.id, None), "/app/v1"))
        self.assertEqual([type(row.answer).__name__ for row in refused], ["IndexData"] * 3)

    def test_mistakes(self) -> None:
        """A mistake would be sent to every server, or end in an answer that means nothing."""
        with self.assertRaises(ValueError):
            self.client()
        for query in (self.client("n1").path_states("app"), self.client("n1").ask(GetIndex(SITE.id, None))):
            self.failureResultOf(Deferred.fromCoroutine(query), ValueError)
        self.assertEqual(self.links, [])

    @shows("I8")
    def test_old_servers_live(self) -> None:
        """A server of the reference would die of the question."""
        self.cluster.hub.old.update(self.cluster.addresses(1, 2, 3))
        (row,) = self.wait(self.client("n1").ask(GetIndexAt("/app")))
        self.assertEqual(row.problem, "it is a server of the first implementation, which has no images at /app")
        self.assertEqual(self.asked, [])
        (row,) = self.wait(self.client("n1").ask(GetIndexAt("/app/v1")))
        self.assertEqual(row.answer, IndexAtData(SITE.data, {self.cluster.machine(number): f"n{number}" for number in (2, 3)}))

    @shows("A29")
    def test_where_a_server_leads(self) -> None:
        """A server could have a program call the networks of its own host."""
        local = Server("n9", self.cluster.machine(9), ("127.0.0.1:24783",), 0, True)
        before = self.cluster.nodes[1].counterpart.requested

        def requested(link: Any, request: Request) -> Deferred[Any]:
            def added(answer: Any) -> Any:
                return replace(answer, servers=(*answer.servers, local))

            return before(link, request).addCallback(added)

        self.cluster.nodes[1].counterpart.requested = requested  # type: ignore[method-assign]
        rows = self.wait(self.client("n1").path_states("/app/v1"))
        self.assertEqual([row.name for row in rows], ["n1", "n2", "n3", "n9"])
        self.assertIsNone(rows[3].answer)
        self.assertEqual(set(self.tried), set(self.cluster.addresses(1, 2, 3)))

    def test_two_queries_at_once(self) -> None:
        """A second connection to an entry point would take the place of the first, which nobody would close."""
        client = self.client("n1")
        both = [Deferred.fromCoroutine(client.path_states(path)) for path in ("/app/v1", "/app/v2")]
        self.cluster.run(100.0, lambda: all(one.called for one in both))
        found = [[row.answer.committed is not None for row in self.successResultOf(one) if row.answer] for one in both]
        self.assertEqual(found, [[True] * 3, [False] * 3])
        self.assertEqual(len([link for link in self.links if link.there == self.cluster.address(1)]), 1)

    def test_cancelled(self) -> None:
        """A program that has enough could not stop a query, or would leave connections behind."""
        client = self.client("n1")
        waiting = Deferred.fromCoroutine(client.path_states("/app/v1"))
        self.cluster.run(0.006)
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        client.close()
        self.cluster.run(1.0)
        self.assertFalse(any(link.alive for link in self.links))


class Pages(SynchronousTestCase):
    """Pages of all servers."""

    def setUp(self) -> None:
        self.reader = Reader()
        self.nodes = [Node(number, [one for one in (1, 2, 3) if one != number]) for number in (1, 2, 3)]
        self.reader.add(*self.nodes)

    def pages(self, page: str, *names: str) -> list[tuple[str, Any, str]]:
        def resolve(name: str) -> Deferred[list[Address]]:
            return succeed([page_address(int(name[1:]))]) if name[1:].isdigit() else fail(LinkLost(f"nobody knows {name}"))

        clock = HeapClock()
        network = RunContext(clock, random.Random(1), lambda _where, _other: Deferred(), resolve)
        client = ClusterClient(clock, *names, network=network, pages=self.reader)
        rows = self.successResultOf(Deferred.fromCoroutine(client.pages(page)))
        return [(row.name, row.answer, row.problem) for row in rows]

    def test_all(self) -> None:
        """A program would have to find the servers itself, or would miss that one does not answer."""
        self.nodes[1].broken.add("/api/v1/keys")
        self.nodes[2].up = False
        keys = {"dirs": {"apps": ["SHA256:one"]}}
        found = self.pages("/api/v1/keys", "n1", "nobody")
        self.assertEqual(found[0], ("n1", keys, ""))
        self.assertEqual(found[1], ("n2", None, "its page answers HTTP 500"))
        self.assertEqual(found[2][:2], ("n3", None))
        self.assertIn("connection refused", found[2][2])
        self.assertEqual(found[3], ("nobody", None, "nobody knows nobody"))

    def test_no_page(self) -> None:
        """A page with a space or a letter of another script would end in an error of the library's inside."""
        client = ClusterClient(HeapClock(), "n1", network=RunContext(HeapClock(), random.Random(1), Deferred, Deferred), pages=self.reader)
        for page in ("api", "/a b", "/\u00e4", "/a\r\nHost: x"):
            self.failureResultOf(Deferred.fromCoroutine(client.pages(page)), ValueError)

    def test_nobody(self) -> None:
        """A cluster that is down would end a program with an error of the command line."""
        for node in self.nodes:
            node.up = False
        self.assertEqual(
            [(name, answer) for name, answer, _ in self.pages("/api/v1/status", "n1", "nobody")], [("n1", None), ("nobody", None)]
        )
