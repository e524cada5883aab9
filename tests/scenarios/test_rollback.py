"""Going back to a replaced image, without anybody who has it but the nodes."""

from dataclasses import replace

from ciruela.keys.signed import signed_bytes
from ciruela.model.vpath import VPath
from ciruela.proto.messages import BaseDirData, GetBaseDir, ReplaceDir
from tests.measure import UnmeasuredTestCase
from tests.proof import shows
from tests.scenarios.cluster import APP, KEY, Client, Cluster, Image, accepted

MAIN = "/app/main"
FIRST = Image(1, {"big": 2_000_000, "small": 10})
SECOND = Image(2, {"big": 1_000_000, "other": 10})


class RollbackTests(UnmeasuredTestCase):
    """``keep-replaced: 1``."""

    def replaced(self, keeps):
        """A cluster in which the first image was replaced by the second one, and the nodes ``keeps`` keep it."""
        cluster = Cluster(3, configs=lambda number: {"app": replace(APP, keep_replaced=int(number in keeps))})
        cluster.run(10.0)
        for image in (FIRST, SECOND):
            client = Client(cluster, image)
            client.upload(MAIN, cluster.addresses(1, 2), replace=True)
            cluster.run(60.0, until=lambda image=image: len(cluster.holders(MAIN, image)) == 3)
            self.assertEqual(len(cluster.holders(MAIN, image)), 3)
            client.leave()
        return cluster

    def back(self, cluster):
        """Go back, as the command does: the request alone."""
        stamp = cluster.now_ms()
        client = Client(cluster, FIRST)
        client.serving = False
        signature = KEY.sign(signed_bytes(MAIN, FIRST.id, stamp)).signature
        client.ask(ReplaceDir(MAIN, FIRST.id, SECOND.id, stamp, (signature,)), cluster.addresses(1, 2, 3))
        cluster.run(60.0, until=lambda: len(cluster.holders(MAIN, FIRST)) == 3)
        cluster.run(2.0)
        self.assertTrue(accepted(client), client.answers)
        self.assertEqual(len(cluster.holders(MAIN, FIRST)), 3)
        self.assertEqual(client.given, [])
        self.assertTrue(cluster.agree())

    def test_all_have_it(self):
        """What every node still has would have to be uploaded again, or would travel between the nodes."""
        cluster = self.replaced({1, 2, 3})
        before = [node.blocks.sent_bytes for node in cluster.nodes.values()]
        self.back(cluster)
        self.assertEqual([node.blocks.sent_bytes for node in cluster.nodes.values()], before)
        versions = [node.ledger.kept(VPath.parse(MAIN)) for node in cluster.nodes.values()]
        self.assertEqual([[version.image for version in rows] for rows in versions], [[SECOND.id]] * 3)

    def test_one_has_it(self):
        """A node that joined late, or whose disk is new, would never get what the others went back to."""
        cluster = self.replaced({3})
        self.back(cluster)

    @shows("S1")
    def test_told(self):
        """A user would not be shown what can be gone back to."""
        cluster = self.replaced({2})
        client = Client(cluster, FIRST)
        client.ask(GetBaseDir("/app"), cluster.addresses(1, 2))
        cluster.run(5.0)
        told = dict(client.answers)
        self.assertEqual(told[cluster.address(1)].kept, {})
        answer = told[cluster.address(2)]
        assert isinstance(answer, BaseDirData)
        self.assertEqual([version.image for version in answer.kept["main"]], [FIRST.id])
        (state,) = answer.kept_signed["main"]
        self.assertEqual((state.image, state.version), (FIRST.id, answer.kept["main"][0]))
        for entry in state.signatures:
            KEY.verify_key.verify(signed_bytes(MAIN, FIRST.id, entry.timestamp_ms), entry.signature)

    def test_restart(self):
        """A restart would forget what is kept."""
        cluster = self.replaced({1, 2, 3})
        for number in (1, 2, 3):
            cluster.kill(number)
        for number in (1, 2, 3):
            cluster.start(number)
        cluster.run(30.0)
        self.back(cluster)
