"""Dry runs against whole clusters in memory: what is asked changes nothing, and what is signed for it uploads nothing."""

from __future__ import annotations

import random

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.check import Forecast, PreflightSurvey, Says, forecast
from ciruela.client.contacts import RunContext
from ciruela.client.options.signing import ClusterNames
from ciruela.client.orders import UploadCheck
from ciruela.client.preflight import fate_of
from ciruela.client.tracker import EXIT_CONFLICT, EXIT_DONE, EXIT_NETWORK, EXIT_PARTIAL, EXIT_REJECTED, CompletionRule
from ciruela.index.parse import parse
from ciruela.interfaces import Address
from ciruela.keys.signed import signed_bytes, signed_check_bytes
from ciruela.model.errors import LinkLost
from ciruela.model.ids import SharedId
from ciruela.model.vpath import VPath
from ciruela.proto.messages import AppendDir, CheckData, CheckUpload
from ciruela.runtime import in_place
from tests.proof import shows
from tests.scenarios.cluster import APP, KEY, LOGS, Client, Cluster, Image

SITE = Image(5, {"a": 100_000, "b": 70_000})
NEXT = Image(5, {"a": 100_000, "b": 70_000, "c": 50_000})
RULE = CompletionRule()


class Checks(SynchronousTestCase):
    def setUp(self) -> None:
        self.cluster = Cluster(3)
        self.cluster.run(3.0)

    def check(self, image: Image = SITE, path: str = "/app/v1", *, replace: bool = False, old=None, weak: bool = False) -> UploadCheck:
        stamp = self.cluster.now_ms()
        signature = KEY.sign(signed_check_bytes(path, image.id, stamp)).signature
        return UploadCheck(CheckUpload(path, replace, image.id, old, stamp, (signature,)), weak)

    def survey(self, *checks: UploadCheck, names: tuple[str, ...] = ("n1",), known: tuple[int, ...] = (1, 2, 3)) -> PreflightSurvey:
        """Ask as the client does; of ``names`` only ``known`` nodes have an address."""

        def resolve(name: str) -> Deferred[list[Address]]:
            number = int(name.removeprefix("n"))
            return succeed([self.cluster.address(number)]) if number in known else fail(LinkLost(f"the name {name} cannot be resolved"))

        world = RunContext(self.cluster.clock, random.Random(1), lambda where, other: self.cluster.hub.link(other, where), resolve)
        survey = PreflightSurvey(ClusterNames(names), checks, RULE, world)
        done = Deferred.fromCoroutine(survey.ask_all())
        self.cluster.run(100.0, lambda: done.called)
        self.successResultOf(done)
        self.world_ = world
        return survey

    def says(self, survey: PreflightSurvey, number: int = 0) -> dict[str, Says]:
        return {one.host: one.says for one in survey.replies[number]}

    def fate(self, survey: PreflightSurvey, number: int = 0) -> Forecast:
        return forecast(survey.replies[number], RULE)

    def upload(self, image: Image = SITE, path: str = "/app/v1") -> None:
        Client(self.cluster, image).upload(path, self.cluster.addresses(1))
        self.cluster.run(60.0, lambda: self.cluster.holders(path, image) == {1, 2, 3})
        self.cluster.run(3.0)

    @shows("I4", "I7")
    def test_everybody_is_asked_and_nothing_changes(self) -> None:
        """A dry run would leave something behind, or tell of one node where there are three."""
        before = [node.ledger.base_hashes() for node in self.cluster.nodes.values()]
        survey = self.survey(self.check())
        self.assertEqual(self.says(survey), {"n1": Says.TAKES, "n2": Says.TAKES, "n3": Says.TAKES})
        self.assertEqual(self.fate(survey), Forecast(EXIT_DONE, "", 3, 3))
        self.assertFalse(self.fate(survey).nothing)
        self.cluster.run(5.0)
        for node, hashes in zip(self.cluster.nodes.values(), before, strict=True):
            self.assertEqual(node.ledger.base_hashes(), hashes)
            self.assertIsNone(node.ledger.pending(VPath.parse("/app/v1")))
            self.assertEqual(list(node.downloads.running()), [])
            self.assertEqual(set(node.watches.paths()), set())
        for disk in self.cluster.disks.values():
            self.assertEqual((disk.states, disk.pendings, disk.images), ({}, {}, {}))

    def test_what_is_there(self) -> None:
        """The user would not be told that there is nothing to do, what he replaces, or what he would be refused for."""
        self.upload()
        survey = self.survey(
            self.check(),
            self.check(NEXT),
            self.check(NEXT, replace=True),
            self.check(NEXT, replace=True, old=NEXT.id),
            self.check(NEXT, weak=True),
            self.check(NEXT, "/app/v2"),
        )
        found = [self.fate(survey, number).exit_code for number in range(6)]
        self.assertEqual(found, [EXIT_DONE, EXIT_CONFLICT, EXIT_DONE, EXIT_CONFLICT, EXIT_DONE, EXIT_DONE])
        self.assertTrue(self.fate(survey).nothing)
        self.assertFalse(self.fate(survey, 4).nothing)
        self.assertEqual({one.there for one in survey.replies[2]}, {SITE.id})
        self.assertEqual({one.there for one in survey.replies[5]}, {None})
        self.assertEqual({one.free_bytes for one in survey.replies[5]}, {1 << 40})
        fresh = Deferred.fromCoroutine(survey.compare(5, parse(NEXT.data, NEXT.id), in_place))
        self.cluster.run(10.0, lambda: fresh.called)
        new = self.successResultOf(fresh)
        assert new is not None
        self.assertEqual((new.files, new.bytes, new.compared), (1, 50_000, 1))

    def test_who_lacks_the_directory(self) -> None:
        """A node that was forgotten when the directory was configured would show up only after the release."""
        self.cluster = Cluster(3, configs=lambda number: {"app": APP, "logs": LOGS} if number < 3 else {"logs": LOGS})
        self.cluster.run(3.0)
        survey = self.survey(self.check(), names=("n1", "n3"))
        self.assertEqual(self.says(survey), {"n1": Says.TAKES, "n2": Says.TAKES, "n3": Says.NO_CONFIG})
        self.assertEqual(self.fate(survey), Forecast(EXIT_DONE, "", 2, 2))
        nobody = self.survey(self.check(path="/none/v1"), names=("n1", "n2", "n3"))
        self.assertEqual(self.fate(nobody).exit_code, EXIT_REJECTED)

    @shows("K1.1", "K5.6")
    def test_who_is_down(self) -> None:
        """A node that is down, however long already, would be hidden, and with it that the upload does not reach it."""
        self.cluster.kill(3)
        for quiet_s in (0.0, 60.0, 400.0):
            self.cluster.run(quiet_s)
            survey = self.survey(self.check())
            self.assertEqual(self.says(survey), {"n1": Says.TAKES, "n2": Says.TAKES, "n3": Says.UNREACHABLE}, quiet_s)
            self.assertEqual((self.fate(survey).exit_code, self.fate(survey).expected), (EXIT_NETWORK, 3))

    @shows("K5.6")
    def test_who_hangs(self) -> None:
        """A server that takes connections and never answers would count twice, be it named or told of: an upload to it as to one more."""
        self.cluster.nodes[3].counterpart.requested = lambda _link, _request: Deferred()  # type: ignore[method-assign]
        for names in (("n1", "n3"), ("n1",)):
            survey = self.survey(self.check(), self.check(NEXT, "/app/v2"), names=names)
            for replies in survey.replies:
                self.assertEqual([one.says for one in replies], [Says.TAKES, Says.TAKES, Says.UNREACHABLE], names)
            self.assertEqual((self.fate(survey).exit_code, self.fate(survey).expected), (EXIT_NETWORK, 3), names)

    @shows("K5.6")
    def test_names_that_only_the_servers_know(self) -> None:
        """A node would be said to be out of reach because the client cannot resolve the name that another node has for it."""
        survey = self.survey(self.check(), known=(1, 3))
        self.assertEqual(self.says(survey), {"n1": Says.TAKES, "n2": Says.TAKES, "n3": Says.TAKES})

    @shows("K1.2", "K5.6")
    def test_who_is_not_heard(self) -> None:
        """Where no datagram gets through, a dry run would count one server of three."""
        cluster = self.cluster = Cluster(3)
        self.patch(cluster.hub, "datagram", lambda source, target, data: None)
        cluster.run(3.0)
        survey = self.survey(self.check())
        self.assertEqual(self.says(survey), {"n1": Says.TAKES, "n2": Says.TAKES, "n3": Says.TAKES})

    def test_named_twice(self) -> None:
        """A node with two addresses would count as two."""
        survey = self.survey(self.check(), names=("n1", "n1", "n2"))
        self.assertEqual(survey.answered, 3)
        self.assertEqual(len(survey.replies[0]), 3)

    @shows("K1.5", "K5.6")
    def test_shared_machine_id(self) -> None:
        """A dry run would promise success, or that there is nothing to do, where two servers cannot be told apart."""
        self.upload()
        shared = SharedId(self.cluster.machine(2), ("10.0.0.2:1", "10.0.0.9:1"))
        self.patch(self.cluster.nodes[1].cluster, "shared_ids", lambda: (shared,))
        found = fate_of(self.survey(self.check()), 0, RULE)
        self.assertEqual((found.exit_code, found.nothing), (EXIT_PARTIAL, False))
        self.assertIn("10.0.0.2:1 and 10.0.0.9:1 have one machine id", found.why)

    @shows("A29")
    def test_made_up_hosts(self) -> None:
        """A server could have the client call the networks of its own host."""
        heard = self.cluster.nodes[1].cluster
        real = heard.hosts
        self.patch(heard, "hosts", lambda key: {**real(key), self.cluster.machine(9): "n9"})
        local = Address("127.0.0.1", 24783)
        self.patch(self.cluster, "address", lambda number, known=self.cluster.address: local if number == 9 else known(number))
        survey = self.survey(self.check(), known=(1, 2, 3, 9))
        self.assertEqual(set(self.says(survey)), {"n1", "n2", "n3"})

    def test_old_servers(self) -> None:
        """Servers that know no such question would be said to refuse, or be sent what ends the connection."""
        self.cluster.hub.old.update(self.cluster.addresses(1, 2, 3))
        survey = self.survey(self.check(), names=("n1", "n2"))
        self.assertEqual(set(self.says(survey).values()), {Says.CANNOT_TELL})
        fate = self.fate(survey)
        self.assertEqual((fate.exit_code, fate.why), (EXIT_NETWORK, "these servers cannot tell without uploading"))

    @shows("A11", "A12", "I4")
    def test_signatures_do_not_pass_for_each_other(self) -> None:
        """Who was asked could upload in the name of the one who asked, without his wish."""
        links: list[object] = []
        self.cluster.hub.link(Client(self.cluster, SITE), self.cluster.address(1)).addCallback(links.append)
        self.cluster.run(1.0)
        answers: list[object] = []
        stamp = self.cluster.now_ms()
        asking = KEY.sign(signed_check_bytes("/app/v1", SITE.id, stamp)).signature
        uploading = KEY.sign(signed_bytes("/app/v1", SITE.id, stamp)).signature
        links[0].ask(AppendDir("/app/v1", SITE.id, stamp, (asking,))).addBoth(answers.append)  # type: ignore[attr-defined]
        links[0].ask(CheckUpload("/app/v1", False, SITE.id, None, stamp, (uploading,))).addBoth(answers.append)  # type: ignore[attr-defined]
        links[0].ask(CheckUpload("/app//v1", False, SITE.id, None, stamp, (asking,))).addBoth(answers.append)  # type: ignore[attr-defined]
        self.cluster.run(3.0)
        self.assertEqual([answer.reject_reason for answer in answers], ["signature_mismatch", "signature_mismatch", "bad_path"])  # type: ignore[attr-defined]
        assert isinstance(answers[2], CheckData)
        self.assertIn("two slashes in a row", answers[2].detail)

    @shows("A5")
    def test_limit(self) -> None:
        """Questions cost a node as much as uploads do, and must not come faster."""
        answers: list[object] = []
        links: list[object] = []
        self.cluster.hub.link(Client(self.cluster, SITE), self.cluster.address(1)).addCallback(links.append)
        self.cluster.run(1.0)
        request = self.check().request
        for _ in range(400):
            links[0].ask(request).addBoth(answers.append)  # type: ignore[attr-defined]
            if len(answers) % 50 == 0:
                self.cluster.run(0.01)
        self.cluster.run(3.0)
        self.assertGreater(self.cluster.nodes[1].counterpart.slowed, 0)

    def test_disk_that_is_not_there(self) -> None:
        """A node whose disk is not mounted could not even say what it would answer."""
        for disk in self.cluster.disks.values():
            disk.unmounted.add("app")
        survey = self.survey(self.check())
        self.assertEqual({one.free_bytes for one in survey.replies[0]}, {None})
        self.assertEqual(set(self.says(survey).values()), {Says.TAKES})
