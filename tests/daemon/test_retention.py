"""The page that tells why each image stays or goes."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import Deferred

from ciruela.daemon.api import FRESH_S, MOST_WAITING, NodeApi, Retention
from ciruela.daemon.authority import Signers
from ciruela.model.errors import DiskError
from ciruela.model.vpath import VPath
from tests.cleanup.test_clusters import IMAGES, KEEP_TWO, Cleaners
from tests.measure import UnmeasuredTestCase
from tests.scenarios.cluster import LOGS, Client, Image


class PageTests(UnmeasuredTestCase):
    """A node that cleans one directory and not the other."""

    def setUp(self) -> None:
        self.reads = 0
        self.cluster = Cleaners(2, {"app": replace(KEEP_TWO, keep_list_file="/keep"), "logs": LOGS})
        read = self.cluster.read

        def counted(config: object) -> Deferred[object]:
            self.reads += 1
            return read(config)  # type: ignore[arg-type]

        self.cluster.read = counted  # type: ignore[assignment,method-assign]
        self.retention = Retention(self.cluster.nodes[1])
        self.cluster.upload(*IMAGES)

    def page(self, path: str) -> dict[str, object] | None:
        waiting = Deferred.fromCoroutine(self.retention.page(VPath.parse(path)))
        self.cluster.run(1.0)
        found = self.successResultOf(waiting)
        assert found is None or isinstance(found, dict)
        return found  # type: ignore[return-value]

    def test_cleaned(self) -> None:
        """An operator would be told of other rules than those that count."""
        page = self.page("/app")
        assert page is not None
        self.assertEqual((page["auto_clean"], page["blocked"]), (True, ["peers", "starting"]))
        self.cluster.run(120.0)
        page = self.page("/app")
        assert page is not None and isinstance(page["images"], list)
        told = [(one["name"], one["keeps"], one["rule"]) for one in page["images"]]
        self.assertEqual(told, [("v3", True, "minimum"), ("v2", True, "minimum"), ("v1", True, "in_use"), ("v0", True, "in_use")])
        self.assertIsNone(page["images"][0]["not_before"])

    def test_not_cleaned(self) -> None:
        """A directory that nobody cleans would look as if its images were about to go."""
        client = Client(self.cluster, Image(9, {"a": 10}))
        client.upload("/logs/a", self.cluster.addresses(1))
        self.cluster.run(10.0)
        page = self.page("/logs")
        assert page is not None and isinstance(page["images"], list)
        self.assertEqual((page["auto_clean"], page["blocked"], page["next_cycle"]), (False, [], None))
        self.assertEqual([(one["name"], one["keeps"], one["why"]) for one in page["images"]], [("a", True, "auto-clean is off")])

    def test_nothing_there(self) -> None:
        """Any path could be asked for, and something would be kept in memory for each."""
        for path in ("/app/x", "/nothing"):
            self.assertIsNone(self.page(path))

    def test_asked_often(self) -> None:
        """Anybody could keep a node reading its keep list, and its cleanup waiting."""
        before = self.reads
        for _ in range(50):
            Deferred.fromCoroutine(self.retention.page(VPath(("app",)))).addErrback(self.fail)
        self.cluster.run(FRESH_S / 2)
        self.assertEqual(self.reads - before, 1)
        self.cluster.run(FRESH_S)
        self.page("/app")
        self.assertEqual(self.reads - before, 2)

    def test_too_many(self) -> None:
        """A keep list that hangs would gather requests without end."""
        self.cluster.read = lambda _: Deferred()  # type: ignore[assignment,method-assign]
        asked = [Deferred.fromCoroutine(self.retention.page(VPath(("app",)))) for _ in range(MOST_WAITING + 2)]
        self.failureResultOf(asked[-1], DiskError)
        self.assertNoResult(asked[-2])
        for one in asked[:-1]:
            one.addErrback(lambda _: None)
            one.cancel()

    def test_by_its_path(self) -> None:
        """``ciruela explain-cleanup`` would find no page."""
        node = self.cluster.nodes[1]
        api = NodeApi(node, Signers(lambda *_: Deferred(), self.cluster.clock), lambda _: Deferred())
        waiting = api.find(("retention", "app"))
        self.cluster.run(1.0)
        page = self.successResultOf(waiting)
        assert isinstance(page, dict)
        self.assertEqual(page["base_dir"], "/app")
        for parts in (("retention", ".."), ("retention", "nothing"), ("retention",)):
            self.assertIsNone(self.successResultOf(api.find(parts)))
