"""Hooks in clusters in memory: what runs when, who hears of it, and what a restart goes on with."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from ciruela.download.service import SUPERSEDABLE_S
from ciruela.hooks.service import Outside
from ciruela.interfaces import Ended
from ciruela.model.errors import HookFailed
from ciruela.model.hooks import CommandHook, HookKind, HookState, Webhook
from ciruela.model.vpath import VPath
from tests.scenarios.cluster import APP, Client, Cluster, Image

V1 = "/app/v1"
SITE = Image(1, {"big": 200_000, "small": 10})
OTHER = Image(2, {"big": 100_000})
CHECK = CommandHook(("/bin/check",))
ANNOUNCE = CommandHook(("/bin/announce", "now"), timeout_ms=5000, retries=2, backoff_ms=1000)
CALL = Webhook("https://example.org/secret", retries=1, backoff_ms=1000)
GOOD, BAD = Ended(0, None, ""), Ended(1, None, "it is broken")


class Hand:
    """Runs nothing: notes what was to be run, and answers as told. ``answers`` are used up, then all is well; None: never ends."""

    def __init__(self, cluster: Hooked, number: int) -> None:
        self.cluster, self.number = cluster, number
        self.ran: list[dict[str, str]] = []
        self.called: list[str] = []
        self.cancelled = 0
        self.open: list[Deferred] = []
        self.answers: list[Ended | Exception | None] = []
        self.codes: list[int | Exception] = []

    def run(self, command, environment, timeout_s) -> Deferred:
        self.ran.append({**environment, "": command[0]})
        path = VPath.parse(environment["CIRUELA_PATH"])
        visible = path in self.cluster.disks[self.number].images
        self.ran[-1]["visible"] = str(visible)
        answer = self.answers.pop(0) if self.answers else GOOD
        if answer is None:
            self.open.append(Deferred(self._cancel))
            return self.open[-1]
        return fail(answer) if isinstance(answer, Exception) else succeed(answer)

    def _cancel(self, _) -> None:
        self.cancelled += 1

    def post(self, url, body, timeout_s) -> Deferred:
        self.called.append(url)
        code = self.codes.pop(0) if self.codes else 200
        return fail(code) if isinstance(code, Exception) else succeed(code)

    def programs(self) -> list[str]:
        return [one[""] for one in self.ran]


class Hooked(Cluster):
    def __init__(self, count: int, **hooks) -> None:
        self.hands: dict[int, Hand] = {}
        super().__init__(count, configs={"app": replace(APP, **hooks)})

    def outside(self, number: int) -> Outside:
        hand = self.hands.setdefault(number, Hand(self, number))
        return Outside(hand, hand)


class HookCase(SynchronousTestCase):
    def cluster(self, count: int, **hooks) -> Hooked:
        cluster = Hooked(count, **hooks)
        cluster.run(5.0)
        return cluster

    def upload(self, cluster: Hooked, image: Image, *numbers: int, path: str = V1) -> Client:
        client = Client(cluster, image)
        client.upload(path, cluster.addresses(*numbers), replace=True)
        return client

    def states(self, client: Client, machine: bytes) -> list[tuple[str, str]]:
        return list(dict.fromkeys((one.kind, one.state) for one in client.hooked if one.machine_id == machine))


class CheckTests(HookCase):
    def test_before_it_is_visible(self) -> None:
        """A broken release would be live before anything looked at it."""
        cluster = self.cluster(1, check_before_commit=CHECK)
        self.upload(cluster, SITE, 1)
        cluster.run(10.0)
        (ran,) = cluster.hands[1].ran
        self.assertEqual((ran[""], ran["visible"], ran["CIRUELA_DIRECTORY"]), ("/bin/check", "False", "/srv/app/v1.staging"))
        self.assertEqual((ran["CIRUELA_KEY"], ran["CIRUELA_IMAGE_ID"]), ("the key", SITE.id.hex()))
        self.assertEqual(cluster.holders(V1, SITE), {1})

    def test_no(self) -> None:
        """What the operator's own check refuses would be shown, or nobody would hear why it was not."""
        for answer, word in (
            (BAD, "check_failed: exited with 1: it is broken"),
            (Ended(None, 9, "", late=True), "check_failed: took longer than 30s"),
            (HookFailed("cannot be started: No such file"), "check_failed: cannot be started: No such file"),
        ):
            cluster = self.cluster(1, check_before_commit=CHECK, on_commit=ANNOUNCE)
            cluster.hands[1].answers = [answer]
            client = self.upload(cluster, SITE, 1)
            cluster.run(10.0)
            self.assertEqual([one.reason for one in client.aborted], [word])
            self.assertEqual(cluster.holders(V1, SITE), set())
            self.assertEqual(cluster.hands[1].programs(), ["/bin/check"])
            self.assertEqual((cluster.disks[1].staged, cluster.disks[1].dues, cluster.disks[1].pendings), ({}, {}, {}))

    def test_newer_upload_ends_it(self) -> None:
        """A check that hangs would keep a newer release from coming for as long as it hangs."""
        cluster = self.cluster(1, check_before_commit=CHECK)
        cluster.hands[1].answers = [None]
        self.upload(cluster, SITE, 1)
        cluster.run(5.0)
        self.assertEqual(cluster.nodes[1].downloads.running()[0].step.phase.value, "check")
        cluster.run(SUPERSEDABLE_S)
        self.upload(cluster, OTHER, 1)
        cluster.run(5.0)
        self.assertEqual(cluster.hands[1].cancelled, 1)
        self.assertEqual(cluster.holders(V1, OTHER), {1})


class CommitTests(HookCase):
    def test_everybody_hears(self) -> None:
        """A client would count a server as done whose service did not come up with the new release."""
        cluster = self.cluster(4, on_commit=ANNOUNCE, webhook=CALL)
        cluster.hands[4].answers = [BAD, BAD, BAD]
        client = self.upload(cluster, SITE, 1)
        cluster.run(60.0)
        self.assertEqual(cluster.holders(V1, SITE), {1, 2, 3, 4})
        for number in (1, 2, 3, 4):
            hand = cluster.hands[number]
            self.assertEqual(len(hand.ran), 3 if number == 4 else 1)
            self.assertEqual({one["visible"] for one in hand.ran}, {"True"})
            self.assertEqual(hand.called, [CALL.url])
            said = self.states(client, cluster.machine(number))
            end = "failed" if number == 4 else "ok"
            self.assertIn(("on-commit", end), said)
            self.assertIn(("webhook", "ok"), said)
            self.assertIn(("on-commit", "pending"), said, "the client was not told to wait")
        failed = {one.message for one in client.hooked if one.state == "failed"}
        self.assertEqual(failed, {"exited with 1: it is broken"})
        self.assertEqual([len(cluster.disks[number].dues) for number in (1, 2, 3, 4)], [0, 0, 0, 1])

    def test_loss(self) -> None:
        """On a bad network the end of a hook would be lost, and the client wait for it until its deadline."""
        cluster = self.cluster(3, on_commit=ANNOUNCE)
        cluster.hub.loss = 0.3
        client = self.upload(cluster, SITE, 1)
        cluster.run(120.0)
        for number in (1, 2, 3):
            self.assertIn(("on-commit", "ok"), self.states(client, cluster.machine(number)))

    def test_tried_again(self) -> None:
        """A service that is down for a moment would never hear of the release."""
        cluster = self.cluster(1, on_commit=ANNOUNCE, webhook=CALL)
        cluster.hands[1].answers = [BAD, GOOD]
        cluster.hands[1].codes = [503, 200]
        client = self.upload(cluster, SITE, 1)
        cluster.run(20.0)
        self.assertEqual(len(cluster.hands[1].ran), 2)
        self.assertEqual(len(cluster.hands[1].called), 2)
        self.assertEqual([one.state for one in client.hooked if one.kind == "webhook"][-1], "ok")
        self.assertEqual(cluster.disks[1].dues, {})
        self.assertEqual(cluster.nodes[1].hooks.counts[HookKind.COMMAND].tries, 2)

    def test_after_a_kill(self) -> None:
        """A server that is killed after the new release was shown, or while its hook ran, would never tell anybody of it."""
        cluster = self.cluster(1, on_commit=ANNOUNCE, webhook=CALL)
        cluster.hands[1].answers = [None]
        self.upload(cluster, SITE, 1)
        cluster.run(10.0)
        self.assertEqual((cluster.holders(V1, SITE), cluster.hands[1].called), ({1}, []))
        cluster.kill(1)
        self.assertEqual(cluster.hands[1].cancelled, 1)
        cluster.start(1)
        cluster.run(10.0)
        self.assertEqual(len(cluster.hands[1].ran), 2)
        self.assertEqual(cluster.hands[1].ran[0], cluster.hands[1].ran[1])
        self.assertEqual(cluster.hands[1].called, [CALL.url])
        self.assertEqual(cluster.disks[1].dues, {})
        cluster.kill(1)
        cluster.start(1)
        cluster.run(10.0)
        self.assertEqual(len(cluster.hands[1].ran), 2, "what had run well runs again")

    def test_directory_is_gone_for_a_while(self) -> None:
        """A hook of a directory that is configured no more would run, or be forgotten when the directory comes back."""
        for answer in (BAD, None):  # it waits to be tried again; it runs meanwhile
            cluster = self.cluster(1, on_commit=ANNOUNCE, webhook=CALL)
            node, hand, disk = cluster.nodes[1], cluster.hands[1], cluster.disks[1]
            hand.answers = [answer]
            self.upload(cluster, SITE, 1)
            cluster.run(5.0, until=lambda: hand.ran)  # noqa: B023
            before, called = dict(disk.configs), list(hand.called)
            node.leave("app")
            disk.configs.clear()
            for running in hand.open:
                running.callback(GOOD)
            cluster.run(60.0)
            self.assertEqual((len(hand.ran), hand.called, node.hooks.due), (1, called, 0))
            self.assertNotEqual(disk.dues, {})
            loading = disk.load_added(before)
            disk.configs.update(before)
            node.take_on(self.successResultOf(loading))
            cluster.run(60.0)
            self.assertEqual((len(hand.ran), hand.called, disk.dues), (2, [CALL.url], {}))

    def test_newer_image(self) -> None:
        """A hook would announce a release that is not there any more."""
        cluster = self.cluster(1, on_commit=ANNOUNCE)
        cluster.hands[1].answers = [BAD]
        first = self.upload(cluster, SITE, 1)
        cluster.run(0.9, until=lambda: bool(cluster.hands[1].ran))
        self.upload(cluster, OTHER, 1)
        cluster.run(20.0)
        self.assertEqual(cluster.holders(V1, OTHER), {1})
        ran = [one["CIRUELA_IMAGE_ID"] for one in cluster.hands[1].ran]
        self.assertEqual(ran[-1], OTHER.id.hex())
        self.assertEqual(cluster.hands[1].ran[-1]["CIRUELA_OLD_IMAGE_ID"], SITE.id.hex())
        self.assertNotIn(SITE.id.hex(), ran[ran.index(OTHER.id.hex()) :])
        self.assertEqual(
            [one.message for one in first.hooked if one.state == "failed"][:1], ["another image has taken the place of this one"]
        )
        self.assertEqual(cluster.disks[1].dues, {})
        report = cluster.nodes[1].hooks.reports[VPath.parse(V1)][HookKind.COMMAND]
        self.assertEqual((report.image, report.state), (OTHER.id, HookState.OK))

    def test_newer_image_while_it_runs(self) -> None:
        """What became of the hook of an older release would be taken for that of the new one."""
        cluster = self.cluster(1, on_commit=ANNOUNCE)
        cluster.hands[1].answers = [None, None]
        self.upload(cluster, SITE, 1)
        cluster.run(5.0)
        second = self.upload(cluster, OTHER, 1)
        cluster.run(5.0)
        self.assertEqual((cluster.holders(V1, OTHER), len(cluster.hands[1].ran)), ({1}, 1))
        cluster.hands[1].open[0].callback(GOOD)
        cluster.run(1.0)
        self.assertEqual(len(cluster.hands[1].ran), 2)
        self.assertEqual([one.state for one in second.hooked if one.image == OTHER.id], ["pending"])
        report = cluster.nodes[1].hooks.reports[VPath.parse(V1)][HookKind.COMMAND]
        self.assertEqual((report.image, report.state), (OTHER.id, HookState.PENDING))
        cluster.hands[1].open[1].callback(BAD)
        cluster.run(20.0)
        self.assertEqual([one.state for one in second.hooked if one.image == OTHER.id], ["pending", "ok"])
        self.assertEqual(cluster.disks[1].dues, {})

    def test_lost_and_fetched_again(self) -> None:
        """An image that somebody deleted by hand and that came again would have its hook tried twice at a time, or the node fail."""
        cluster = self.cluster(1, on_commit=ANNOUNCE)
        cluster.hands[1].answers = [BAD]
        self.upload(cluster, SITE, 1)
        cluster.run(0.9, until=lambda: bool(cluster.nodes[1].hooks._waiting))
        cluster.disks[1].lose(VPath.parse(V1))
        self.upload(cluster, SITE, 1)
        cluster.run(20.0)
        self.assertEqual(cluster.disks[1].dues, {})
        self.assertEqual(len(cluster.hands[1].ran), 2)

    def test_one_after_the_other(self) -> None:
        """Two restarts of one service at a time would leave it in any state."""
        cluster = self.cluster(1, on_commit=ANNOUNCE)
        cluster.hands[1].answers = [None]
        self.upload(cluster, SITE, 1)
        self.upload(cluster, OTHER, 1, path="/app/v2")
        cluster.run(10.0)
        self.assertEqual(len(cluster.disks[1].images), 2)
        self.assertEqual(len(cluster.hands[1].ran), 1)

    def test_not_when_it_is_mended(self) -> None:
        """A service would be restarted whenever a disk loses a bit."""
        cluster = self.cluster(2, on_commit=ANNOUNCE)
        self.upload(cluster, SITE, 1)
        cluster.run(20.0)
        healed = cluster.nodes[2].downloads.repair(VPath.parse(V1))
        assert healed is not None
        cluster.run(10.0)
        self.successResultOf(healed)
        self.assertEqual(len(cluster.hands[2].ran), 1)

    def test_no_hooks(self) -> None:
        """A cluster without hooks would write notes for nothing, or clients wait for what never runs."""
        cluster = self.cluster(2)
        client = self.upload(cluster, SITE, 1)
        cluster.run(10.0)
        self.assertEqual((cluster.holders(V1, SITE), client.hooked, cluster.disks[1].dues), ({1, 2}, [], {}))
