"""Images that somebody signed away: everywhere, for good, and never by an old word said again."""

from dataclasses import replace

from ciruela.model.vpath import VPath
from ciruela.proto.messages import AppendDir, UploadAck
from tests.measure import UnmeasuredTestCase
from tests.proof import shows
from tests.scenarios.cluster import Client, Cluster, Image, accepted

V1 = "/app/v1"
SITE = Image(1, {"big": 2_000_000, "empty": 0, "small": 10})
OTHER = Image(2, {"other": 100_000})


class RemovalTests(UnmeasuredTestCase):
    """``ciruela remove`` in a cluster."""

    def uploaded(self, count, seed=1):
        """A cluster that has the image everywhere, and the client that brought it."""
        cluster = Cluster(count, seed)
        cluster.run(10.0)
        client = Client(cluster, SITE)
        client.upload(V1, cluster.addresses(1, 2))
        self.wait(cluster, lambda: len(cluster.holders(V1, SITE)) == count)
        client.leave()
        cluster.run(5.0)
        return cluster, client

    def wait(self, cluster, condition, seconds=60.0):
        cluster.run(seconds, until=condition)
        self.assertTrue(condition())

    def remove(self, cluster, *numbers):
        client = Client(cluster, SITE)
        request = client.remove(V1, cluster.addresses(*numbers))
        return client, request

    def refused(self, client):
        return [answer.reject_reason for _, answer in client.answers if isinstance(answer, UploadAck)]

    def test_everywhere(self):
        """What was removed would stay on the nodes that nobody asked, or the client would never hear that it is done."""
        for count, long_after_s in ((3, 400.0), (20, 30.0)):
            cluster, _ = self.uploaded(count)
            client, _ = self.remove(cluster, 1, 2)
            everybody = {(SITE.id, V1, cluster.machine(number)) for number in range(1, count + 1)}
            self.wait(cluster, lambda: client.removed == everybody and not cluster.holders(V1, SITE))  # noqa: B023
            self.assertTrue(accepted(client), client.answers)
            self.wait(cluster, cluster.agree)
            cluster.run(long_after_s)
            self.assertEqual(cluster.holders(V1, SITE), set())
            self.assertTrue(all(VPath.parse(V1) not in disk.images for disk in cluster.disks.values()))

    @shows("K2.2")
    def test_through_an_empty_node(self):
        """The removal of what was there long ago would take away what is there now, through a node that knows of neither."""
        cluster = Cluster(3)
        cluster.run(10.0)
        client = Client(cluster, OTHER)
        client.upload(V1, cluster.addresses(1, 2))
        self.wait(cluster, lambda: len(cluster.holders(V1, OTHER)) == 3)
        client.leave()
        for wait_s in (0.0, 0.5, 2.0):
            cluster.kill(3)
            cluster.start(3, wiped=True)
            cluster.run(wait_s)
            client, _ = self.remove(cluster, 3)
            cluster.run(5.0, until=lambda: client.answers)  # noqa: B023
            self.assertIn(self.refused(client), (["replace_doesnt_match_index"], ["already_uploading_different_version"]))
            client.leave()
            cluster.run(60.0)
            self.assertEqual(cluster.holders(V1, OTHER), {1, 2, 3})

    def test_lost_datagrams(self):
        """A client would wait for ever for a node whose word was lost, or take an old acknowledgment for one of the removal."""
        cluster, before = self.uploaded(8)
        cluster.hub.loss = 0.3
        watching = Client(cluster, SITE)
        watching.upload(V1, cluster.addresses(1))
        cluster.run(20.0)
        client, _ = self.remove(cluster, 1)
        self.wait(cluster, lambda: len({machine for _, path, machine in client.removed if path == V1}) == 8, 120.0)
        self.assertEqual(
            {machine for _, path, machine in watching.removed if path == V1}, {cluster.machine(number) for number in range(1, 9)}
        )
        self.assertEqual(before.removed, set())

    def test_node_that_was_down(self):
        """A node that was down would bring back what was removed meanwhile; so would one that never had it."""
        cluster, _ = self.uploaded(3)
        cluster.kill(3)
        client, _ = self.remove(cluster, 1)
        self.wait(cluster, lambda: not cluster.holders(V1, SITE))
        client.leave()
        cluster.start(4)
        cluster.run(60.0)
        cluster.kill(1)
        cluster.kill(2)
        cluster.start(3)
        self.wait(cluster, lambda: not cluster.holders(V1, SITE))
        self.assertEqual(set(cluster.nodes), {3, 4})
        cluster.start(1)
        cluster.start(2)
        cluster.run(400.0)
        self.assertEqual(cluster.holders(V1, SITE), set())
        self.assertTrue(cluster.agree())

    def test_partition(self):
        """Two halves that removed and kept an image would go on to disagree when they meet again."""
        cluster, _ = self.uploaded(4)
        cluster.hub.partition([cluster.addresses(1, 2), cluster.addresses(3, 4)])
        self.remove(cluster, 1)
        self.wait(cluster, lambda: cluster.holders(V1, SITE) == {3, 4})
        cluster.run(120.0)
        cluster.hub.heal()
        self.wait(cluster, lambda: not cluster.holders(V1, SITE), 400.0)
        self.wait(cluster, cluster.agree)

    def test_newer_upload_wins(self):
        """An upload in one half would be lost to a removal in the other that somebody signed before it."""
        cluster, _ = self.uploaded(4)
        cluster.hub.partition([cluster.addresses(1, 2), cluster.addresses(3, 4)])
        self.remove(cluster, 1)
        cluster.run(60.0)
        client = Client(cluster, OTHER)
        client.upload(V1, cluster.addresses(3), replace=True)
        self.wait(cluster, lambda: cluster.holders(V1, OTHER) == {3, 4})
        cluster.hub.heal()
        self.wait(cluster, lambda: cluster.holders(V1, OTHER) == {1, 2, 3, 4}, 400.0)
        self.wait(cluster, cluster.agree)

    def test_replay(self):
        """Whoever recorded an upload could bring back what was removed; whoever recorded a removal could repeat it at any time."""
        cluster, _ = self.uploaded(3)
        stamp = cluster.nodes[1].ledger.committed(VPath.parse(V1)).signatures[0]
        _, request = self.remove(cluster, 1)
        self.wait(cluster, lambda: not cluster.holders(V1, SITE))
        replayed = Client(cluster, SITE)
        replayed.ask(AppendDir(V1, SITE.id, stamp.timestamp_ms, (stamp.signature,)), cluster.addresses(1, 2, 3))
        cluster.run(5.0)
        self.assertEqual(self.refused(replayed), ["stale_timestamp"] * 3)
        again = Client(cluster, SITE)
        again.upload(V1, cluster.addresses(1))
        self.wait(cluster, lambda: len(cluster.holders(V1, SITE)) == 3)
        late = Client(cluster, SITE)
        late.ask(request, cluster.addresses(1, 2, 3))
        cluster.run(30.0)
        self.assertEqual(self.refused(late), ["stale_timestamp"] * 3)
        self.assertEqual(len(cluster.holders(V1, SITE)), 3)

    def test_signature_of_an_upload(self):
        """Whoever saw the signature of an upload could use it to remove the image, or the other way round."""
        cluster, _ = self.uploaded(2)
        entry = cluster.nodes[1].ledger.committed(VPath.parse(V1)).signatures[0]
        client = Client(cluster, SITE)
        request = client.remove("/app/never", cluster.addresses(1))
        cluster.run(5.0)
        client.ask(type(request)(V1, SITE.id, entry.timestamp_ms, (entry.signature,)), cluster.addresses(1))
        cluster.run(5.0)
        client.ask(AppendDir("/app/never", SITE.id, request.timestamp_ms, request.signatures), cluster.addresses(2))
        cluster.run(5.0)
        self.assertEqual(self.refused(client)[1:], ["signature_mismatch"] * 2)
        self.assertEqual(len(cluster.holders(V1, SITE)), 2)

    def test_other_image(self):
        """Somebody who wants an old image to go would remove the one that replaced it."""
        cluster, _ = self.uploaded(2)
        client = Client(cluster, OTHER)
        client.remove(V1, cluster.addresses(1))
        cluster.run(5.0)
        self.assertEqual(self.refused(client), ["replace_doesnt_match_index"])
        self.assertEqual(len(cluster.holders(V1, SITE)), 2)

    def test_of_an_upload_that_is_on_its_way(self):
        """An upload by mistake would have to arrive before it could be removed."""
        cluster = Cluster(2)
        cluster.run(10.0)
        client = Client(cluster, SITE)
        client.serving = False
        client.upload(V1, cluster.addresses(1))
        cluster.run(5.0)
        self.assertIsNotNone(cluster.nodes[1].ledger.pending(VPath.parse(V1)))
        remover, _ = self.remove(cluster, 1)
        cluster.run(20.0)
        self.assertTrue(accepted(remover), remover.answers)
        self.assertEqual([note.reason for note in client.aborted], ["superseded"])
        self.assertTrue(cluster.agree())
        self.assertEqual([node.ledger.pendings() for node in cluster.nodes.values()], [[], []])

    def test_old_versions(self):
        """A node of an earlier version would keep the others busy, or be sent what it does not understand."""
        cluster = Cluster(3)
        cluster.hub.old = {cluster.address(3)}
        cluster.run(10.0)
        client = Client(cluster, SITE)
        client.upload(V1, cluster.addresses(1, 2))
        self.wait(cluster, lambda: len(cluster.holders(V1, SITE)) == 3)
        client.leave()
        self.remove(cluster, 1)
        self.wait(cluster, lambda: cluster.holders(V1, SITE) == {3})
        cluster.run(60.0)
        self.assertEqual(cluster.holders(V1, SITE), {3})
        watching = Client(cluster, SITE)
        watching.upload(V1, cluster.addresses(3))
        cluster.run(30.0)
        self.assertEqual(watching.removed, set())

    def test_node_without_the_key(self):
        """A node would remove what none of its own keys signed away, on the word of another."""
        cluster, _ = self.uploaded(3)
        node = cluster.nodes[3]
        allowed, node.removals.context = node.removals.context, replace(node.removals.context, authority=_Nobody())
        self.remove(cluster, 1)
        self.wait(cluster, lambda: cluster.holders(V1, SITE) == {3})
        cluster.run(60.0)
        self.assertEqual(cluster.holders(V1, SITE), {3})
        node.removals.context = allowed
        self.wait(cluster, lambda: not cluster.holders(V1, SITE), 400.0)


class _Nobody:
    def verified(self, config, vpath, image, entries, statement):
        from twisted.internet.defer import succeed

        return succeed({})
