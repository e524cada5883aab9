"""Clusters of 3, 20 and 100 nodes under loss, partitions, kills and late joiners."""

from dataclasses import replace

from ciruela.download.machine import PlannedStep
from ciruela.model.config import OnConflict
from ciruela.model.vpath import VPath
from tests.doubles.memnet import OUTSIDE
from tests.measure import UnmeasuredTestCase
from tests.proof import shows
from tests.scenarios.cluster import APP, LOGS, Client, Cluster, Image, accepted

V1 = "/app/v1"
LARGE = Image(2, {"large": 20_000_000})
SITE = Image(1, {"big": 2_000_000, "empty": 0, "small": 10, "twin": 10_000})


class UploadTests(UnmeasuredTestCase):
    """A directory given to three nodes is soon on all of them."""

    def upload(self, count, loss=0.0, seconds=60.0, seed=1):
        cluster = Cluster(count, seed)
        cluster.hub.loss = loss
        cluster.run(10.0)
        client = Client(cluster, SITE)
        client.upload(V1, cluster.addresses(1, 2, 3))
        everybody = set(range(1, count + 1))
        cluster.run(seconds, until=lambda: cluster.holders(V1, SITE) == everybody and len(client.machines(V1)) == count)
        self.assertTrue(accepted(client), client.answers)
        self.assertEqual(cluster.holders(V1, SITE), everybody)
        self.assertEqual(client.machines(V1), {cluster.machine(number) for number in everybody})
        self.assertTrue(cluster.agree())
        return cluster, client

    def test_three(self):
        """Three nodes, each told by the client."""
        self.upload(3)

    def given_to_all(self, cluster, image):
        """The client after all nodes have the image, which it gave to three over a link of its own."""
        client = Client(cluster, image)
        client.outside = True
        client.upload(V1, cluster.addresses(1, 2, 3))
        count = len(cluster.nodes)
        cluster.run(60.0, until=lambda: len(cluster.holders(V1, image)) == count)
        self.assertEqual(len(cluster.holders(V1, image)), count)
        return client

    def test_exchange(self):
        """What one node got the others take from it: the client of three nodes does not give everything three times."""
        cluster = Cluster(3, latency_s=0.05)
        cluster.run(5.0)
        client = self.given_to_all(cluster, LARGE)
        self.assertLess(len(client.given), 2 * len(LARGE.blocks))

    def test_shared_out(self):
        """The client would send more, the more nodes there are; or one node would have to give everything to all others."""
        cluster = Cluster(8, latency_s=0.01)
        cluster.run(10.0)
        client = self.given_to_all(cluster, LARGE)
        self.assertLess(len(client.given), 1.3 * len(LARGE.blocks))
        given = [node.blocks.sent_blocks for node in cluster.nodes.values()]
        self.assertLess(max(given), 2.5 * len(LARGE.blocks))

    def test_everybody_gives_as_much(self):
        """On links that are no faster than they are, all would wait for the one node that gives more than the others."""
        image = Image(77, {"large": 32_000_000, "small": 5})
        cluster = Cluster(8)
        cluster.hub.rates = {cluster.address(number): 20_000_000.0 for number in cluster.nodes}
        cluster.run(5.0)
        client = self.given_to_all(cluster, image)
        self.assertLess(len(client.given), 1.2 * len(image.order))
        given = [node.blocks.sent_blocks / len(image.order) for node in cluster.nodes.values()]
        self.assertLess(abs(sum(given) / 8 - 7 / 8), 0.05)
        self.assertLess(max(given), 1.15)
        self.assertGreater(min(given), 0.65)

    @shows("A58", "F52")
    def test_one_of_three_dies(self):
        """What the client promised to a node that dies in the middle would never come."""
        cluster = Cluster(8, latency_s=0.05)
        cluster.run(10.0)
        client = Client(cluster, LARGE)
        client.upload(V1, cluster.addresses(1, 2, 3))
        cluster.run(10.0, until=lambda: len(client.given) > len(LARGE.blocks) // 3)
        self.assertEqual(cluster.holders(V1, LARGE), set())
        cluster.kill(2)
        cluster.run(60.0, until=lambda: len(cluster.holders(V1, LARGE)) == 7)
        self.assertEqual(len(cluster.holders(V1, LARGE)), 7)

    def test_mixed_versions(self):
        """Nodes of the version before, and a client that is, would not get or give anything."""
        for old in ((1, 4), (2, 3, 4), (1, 2, 3)):
            cluster = Cluster(4, latency_s=0.01)
            cluster.hub.old = set(cluster.addresses(*old))
            cluster.run(10.0)
            client = Client(cluster, LARGE)
            client.upload(V1, cluster.addresses(1, 2))
            cluster.run(60.0, until=lambda: len(cluster.holders(V1, LARGE)) == 4)  # noqa: B023
            self.assertEqual(len(cluster.holders(V1, LARGE)), 4)

    def test_second_version(self):
        """Nodes that know no offers of pieces, and a client that knows none, would not get or give anything."""
        for second in ((1, 4), (2, 3, 4), (1, 2, 3), (1, 2, 3, 4)):
            cluster = Cluster(4, latency_s=0.01)
            cluster.hub.second = set(cluster.addresses(*second))
            cluster.run(10.0)
            client = Client(cluster, LARGE)
            client.outside = len(second) == 2
            client.upload(V1, cluster.addresses(1, 2))
            cluster.run(60.0, until=lambda: len(cluster.holders(V1, LARGE)) == 4)  # noqa: B023
            self.assertEqual(len(cluster.holders(V1, LARGE)), 4)
            self.assertLess(len(client.given), 2 * len(LARGE.blocks))

    def test_twenty(self):
        """Twenty nodes; the client gives to three, and is told of all."""
        self.upload(20)

    @shows("G5", "I5")
    def test_hundred(self):
        """A hundred nodes have it within twenty seconds."""
        self.upload(100, seconds=20.0)

    def test_twenty_with_loss(self):
        """Every fifth datagram is lost: it takes longer, nothing else changes."""
        self.upload(20, loss=0.2)

    def test_hundred_with_loss(self):
        """A hundred nodes, every fifth datagram lost."""
        self.upload(100, loss=0.2)

    def test_several_over_one_connection(self):
        """Uploads that share a client's connections all arrive, the small one not after the large ones."""
        cluster = Cluster(3, latency_s=0.02)
        cluster.run(5.0)
        large = [Image(60 + number, {"large": 24_000_000}) for number in range(4)]
        client = Client(cluster, SITE, *large)
        client.outside = True
        cluster.hub.rates = dict.fromkeys((*cluster.addresses(1, 2, 3), OUTSIDE), 50_000_000.0)
        client.upload(V1, cluster.addresses(1, 2, 3))
        began = cluster.clock.seconds()
        cluster.run(60.0, until=lambda: len(cluster.holders(V1, SITE)) == 3)
        small_s = cluster.clock.seconds() - began
        cluster.run(60.0, until=lambda: all(len(cluster.holders(f"{V1}-{number}", image)) == 3 for number, image in enumerate(large)))
        for number, image in enumerate(large):
            self.assertEqual(len(cluster.holders(f"{V1}-{number}", image)), 3)
        self.assertLess(small_s, (cluster.clock.seconds() - began) / 2)

    def test_again(self):
        """A client that asks for what is there already hears of all nodes without giving anything."""
        cluster, client = self.upload(20)
        client.leave()
        cluster.run(10.0)
        second = Client(cluster, SITE)
        second.upload(V1, cluster.addresses(4, 5, 6))
        cluster.run(60.0, until=lambda: len(second.machines(V1)) == 20)
        self.assertEqual(len(second.machines(V1)), 20)
        self.assertEqual(second.given, [])

    def test_repeatable(self):
        """The same seed gives the same run, so that a failure can be looked at again."""
        runs = []
        for _ in range(2):
            cluster, client = self.upload(5, loss=0.2, seed=7)
            runs.append((cluster.clock.seconds(), client.given, [(address, answer) for address, answer in client.answers]))
        self.assertEqual(runs[0], runs[1])


class FaultTests(UnmeasuredTestCase):
    """What happens to the cluster happens to real ones."""

    @shows("A53", "F48", "G5", "I5")
    def test_partition(self):
        """An upload into one half reaches the other when the network heals."""
        cluster = Cluster(20)
        cluster.run(20.0)
        left, right = cluster.addresses(*range(1, 11)), cluster.addresses(*range(11, 21))
        cluster.hub.partition([left, right])
        client = Client(cluster, SITE)
        client.upload(V1, left[:3])
        cluster.run(60.0)
        self.assertEqual(cluster.holders(V1, SITE), set(range(1, 11)))
        cluster.hub.heal()
        took = cluster.run(60.0, until=lambda: len(cluster.holders(V1, SITE)) == 20)
        self.assertEqual(cluster.holders(V1, SITE), set(range(1, 21)))
        self.assertLess(took, 30.0)
        self.assertTrue(cluster.agree())

    @shows("A53", "F48", "I5")
    def test_both_sides_write(self):
        """Replaces on both sides of a partition end as one version everywhere, the newer one."""
        cluster = Cluster(8)
        cluster.run(20.0)
        old, new = Image(11, {"a": 100_000}), Image(12, {"a": 100_000})
        cluster.hub.partition([cluster.addresses(1, 2, 3, 4), cluster.addresses(5, 6, 7, 8)])
        now = cluster.now_ms()
        Client(cluster, old).upload(V1, cluster.addresses(1), stamp=now, replace=True)
        Client(cluster, new).upload(V1, cluster.addresses(5), stamp=now + 1, replace=True)
        cluster.run(30.0)
        self.assertEqual((len(cluster.holders(V1, old)), len(cluster.holders(V1, new))), (4, 4))
        cluster.hub.heal()
        cluster.run(60.0, until=lambda: len(cluster.holders(V1, new)) == 8)
        self.assertEqual(len(cluster.holders(V1, new)), 8)
        cluster.run(5.0)
        self.assertTrue(cluster.agree())

    @shows("A51", "F46")
    def test_append_only_conflict(self):
        """Two appends of one path on two sides: one winner, also where directories are append-only."""
        cluster = Cluster(6)
        cluster.run(20.0)
        one, other = Image(21, {"a": 50_000}), Image(22, {"a": 50_000})
        cluster.hub.partition([cluster.addresses(1, 2, 3), cluster.addresses(4, 5, 6)])
        stamp = cluster.now_ms()
        clients = [Client(cluster, one), Client(cluster, other)]
        for client, target in zip(clients, (1, 4), strict=True):
            client.upload("/logs/x", cluster.addresses(target), stamp=stamp)
        cluster.run(20.0)
        self.assertEqual([len(client.machines("/logs/x")) for client in clients], [3, 3])
        cluster.hub.heal()
        winner = min(one, other, key=lambda image: image.id)
        took_s = cluster.run(60.0, until=lambda: len(cluster.holders("/logs/x", winner)) == 6)
        self.assertEqual(len(cluster.holders("/logs/x", winner)), 6)
        self.assertLess(took_s, 30.0)
        told = {client.image.id: [note.reason.partition(":")[0] for note in client.aborted] for client in clients}
        self.assertEqual(told, {winner.id: [], max(one.id, other.id): ["conflict"]})

    @shows("A51")
    def test_frozen_conflict(self):
        """With freeze nothing is thrown away: each side keeps its image, and both clients hear of it."""
        config = replace(LOGS, on_append_conflict=OnConflict.FREEZE)
        cluster = Cluster(4, configs={"logs": config})
        cluster.run(20.0)
        one, other = Image(21, {"a": 50_000}), Image(22, {"a": 50_000})
        cluster.hub.partition([cluster.addresses(1, 2), cluster.addresses(3, 4)])
        clients = [Client(cluster, one), Client(cluster, other)]
        for client, target in zip(clients, (1, 3), strict=True):
            client.upload("/logs/x", cluster.addresses(target))
        cluster.run(20.0)
        cluster.hub.heal()
        cluster.run(60.0)
        self.assertEqual((cluster.holders("/logs/x", one), cluster.holders("/logs/x", other)), ({1, 2}, {3, 4}))
        for client in clients:
            self.assertEqual({note.reason.partition(":")[0] for note in client.aborted}, {"conflict"})

    @shows("A54", "F49", "I5")
    def test_late_joiner(self):
        """A node that joins empty gets everything from its peers, long after the clients have gone."""
        cluster = Cluster(4)
        cluster.run(10.0)
        images = [Image(30 + number, {"a": 200_000, "b": 5}) for number in range(8)]
        for number, image in enumerate(images):
            client = Client(cluster, image)
            client.upload(f"/app/v{number}", cluster.addresses(1, 2))
            cluster.run(10.0)
            client.leave()
        cluster.run(120.0)
        cluster.start(5)
        cluster.run(60.0, until=lambda: all(5 in cluster.holders(f"/app/v{number}", image) for number, image in enumerate(images)))
        for number, image in enumerate(images):
            self.assertIn(5, cluster.holders(f"/app/v{number}", image))

    @shows("A55", "F53")
    def test_client_leaves(self):
        """When the nodes together have every block they finish without the client."""
        cluster = Cluster(5)
        cluster.run(10.0)
        client = Client(cluster, SITE)
        client.upload(V1, cluster.addresses(1))
        cluster.run(60.0, until=lambda: 1 in cluster.holders(V1, SITE))
        client.leave()
        self.assertLess(len(cluster.holders(V1, SITE)), 5)
        cluster.run(60.0, until=lambda: len(cluster.holders(V1, SITE)) == 5)
        self.assertEqual(len(cluster.holders(V1, SITE)), 5)

    @shows("A56", "F53")
    def test_client_leaves_too_early(self):
        """With blocks missing everywhere the download waits, says that it is stalled, and goes on when the client is back."""
        cluster = Cluster(3, latency_s=0.05)
        cluster.run(10.0)
        client = Client(cluster, LARGE)
        client.upload(V1, cluster.addresses(1, 2, 3))
        cluster.run(20.0, until=lambda: len(client.given) >= 200)
        client.leave()
        cluster.run(60.0)
        self.assertEqual(cluster.holders(V1, LARGE), set())
        self.assertTrue(all(node.downloads.running()[0].step.stalled for node in cluster.nodes.values()))
        again = Client(cluster, LARGE)
        again.upload(V1, cluster.addresses(2))
        cluster.run(60.0, until=lambda: len(cluster.holders(V1, LARGE)) == 3)
        self.assertEqual(len(cluster.holders(V1, LARGE)), 3)
        self.assertLess(len(again.given), len(LARGE.blocks))

    @shows("A57", "F40")
    def test_killed_and_restarted(self):
        """A node that is killed in mid-download goes on from what it had, also when everybody else has finished and gone on."""
        cluster = Cluster(3)
        cluster.run(10.0)
        client = Client(cluster, SITE)
        client.upload(V1, cluster.addresses(1, 2, 3))
        cluster.run(20.0, until=lambda: len(client.given) >= 20)
        cluster.kill(3)
        cluster.run(60.0, until=lambda: cluster.holders(V1, SITE) == {1, 2})
        client.leave()
        cluster.run(30.0)
        cluster.start(3)
        cluster.run(60.0, until=lambda: len(cluster.holders(V1, SITE)) == 3)
        self.assertEqual(len(cluster.holders(V1, SITE)), 3)

    def test_all_restarted(self):
        """A power cut of the whole cluster loses nothing that was committed, and nobody fetches it again."""
        cluster = Cluster(3)
        cluster.run(10.0)
        client = Client(cluster, SITE)
        client.upload(V1, cluster.addresses(1))
        cluster.run(60.0, until=lambda: len(cluster.holders(V1, SITE)) == 3)
        client.leave()
        for number in (1, 2, 3):
            cluster.kill(number)
        for number in (1, 2, 3):
            cluster.start(number)
        cluster.run(10.0)
        self.assertEqual(len(cluster.holders(V1, SITE)), 3)
        self.assertTrue(all(node.downloads.totals.received_bytes == 0 for node in cluster.nodes.values()))

    @shows("A52", "F47", "I5", "I10")
    def test_ten_clients_replace_one_path(self):
        """Whoever comes last in the order of versions wins everywhere, and no node goes back on the way."""
        cluster = Cluster(5, latency_s=0.01)
        cluster.run(10.0)
        images = [Image(100 + number, {"a": 50_000, "b": number}) for number in range(10)]
        seen = {number: [] for number in cluster.nodes}

        def note():
            for number, node in cluster.nodes.items():
                state = node.ledger.committed(VPath.parse(V1))
                if state is not None and (not seen[number] or seen[number][-1] != state.version):
                    seen[number].append(state.version)
            return False

        for turn in range(3):
            stamps = {image.id: cluster.now_ms() + turn // 2 for image in images}
            for number, image in enumerate(images):
                Client(cluster, image).upload(V1, cluster.addresses(1 + (number + turn) % 5), stamp=stamps[image.id], replace=True)
            cluster.run(5.0, until=note)
        cluster.run(60.0, until=note)
        self.assertTrue(cluster.agree())
        for versions in seen.values():
            self.assertEqual(versions, sorted(versions))
        self.assertEqual({versions[-1] for versions in seen.values()}, {max(version for versions in seen.values() for version in versions)})

    @shows("A56", "F53")
    def test_client_killed_at_any_share(self):
        """Whenever the client goes, what arrived of it is used: what is missing everywhere is all that the next one has to give."""
        for tenths in (1, 5, 8):
            cluster = Cluster(3, latency_s=0.002)
            cluster.run(10.0)
            cluster.hub.rates = dict.fromkeys(cluster.addresses(1, 2, 3), 12_500_000.0)
            client = Client(cluster, LARGE)
            client.upload(V1, cluster.addresses(1, 2, 3))
            cluster.run(30.0, until=lambda: self.nowhere(cluster) <= len(LARGE.blocks) * (10 - tenths) // 10)  # noqa: B023
            client.leave()
            cluster.run(60.0)
            self.assertEqual(cluster.holders(V1, LARGE), set())
            nowhere = self.nowhere(cluster)
            again = Client(cluster, LARGE)
            again.upload(V1, cluster.addresses(2))
            cluster.run(60.0, until=lambda: len(cluster.holders(V1, LARGE)) == 3)  # noqa: B023
            self.assertEqual(cluster.holders(V1, LARGE), {1, 2, 3})
            self.assertLessEqual(len(set(again.given)), 1.05 * nowhere + 8)

    def nowhere(self, cluster):
        """How many blocks of LARGE no node has."""
        if cluster.holders(V1, LARGE):
            return 0
        staged = [one.step.image.directory._here for one in self.downloads(cluster) if isinstance(one.step, PlannedStep)]
        return sum(not any(here[number] for here in staged) for number in range(len(LARGE.blocks)))

    @shows("A57", "F41", "G11")
    def test_all_killed_at_half(self):
        """A power cut of the whole cluster in the middle of an upload costs nobody what was on the disks."""
        cluster = Cluster(3, latency_s=0.02)
        cluster.run(10.0)
        client = Client(cluster, LARGE)
        client.upload(V1, cluster.addresses(1, 2, 3))
        half = len(LARGE.blocks) // 2
        cluster.run(
            30.0, until=lambda: sum(isinstance(one.step, PlannedStep) and one.step.missing <= half for one in self.downloads(cluster)) == 3
        )
        missing = [one.step.missing for one in self.downloads(cluster)]
        client.leave()
        for number in (1, 2, 3):
            cluster.kill(number)
        for number in (1, 2, 3):
            cluster.start(number)
        Client(cluster, LARGE).upload(V1, cluster.addresses(1, 2, 3))
        cluster.run(60.0, until=lambda: len(cluster.holders(V1, LARGE)) == 3)
        self.assertEqual(cluster.holders(V1, LARGE), {1, 2, 3})
        for left, number in zip(missing, (1, 2, 3), strict=True):
            self.assertLess(cluster.nodes[number].downloads.totals.received_bytes, (left + 0.05 * len(LARGE.blocks)) * 32768)

    def downloads(self, cluster):
        """What each node is fetching."""
        return [running for node in cluster.nodes.values() for running in node.downloads.running()]

    @shows("A58", "F52")
    def test_silent_client(self):
        """A client that says it has the image and never answers holds up nobody for long."""
        cluster = Cluster(3)
        cluster.run(10.0)
        silent, good = Client(cluster, SITE), Client(cluster, SITE)
        silent.serving = False
        silent.upload(V1, cluster.addresses(1, 2, 3))
        cluster.run(1.0)
        good.upload(V1, cluster.addresses(1))
        cluster.run(150.0, until=lambda: len(cluster.holders(V1, SITE)) == 3)
        self.assertEqual(len(cluster.holders(V1, SITE)), 3)

    @shows("A7", "F5", "I1")
    def test_liar(self):
        """A client that publishes somebody's image and gives wrong bytes cannot change it, nor stop it."""
        cluster = Cluster(3)
        cluster.run(10.0)
        liar, good = Client(cluster, SITE), Client(cluster, SITE)
        liar.image = Image(1, {"big": 2_000_000, "empty": 0, "small": 10, "twin": 10_000})
        liar.image.blocks = dict.fromkeys(liar.image.blocks, b"wrong")
        liar.upload(V1, cluster.addresses(1, 2))
        cluster.run(0.02)
        good.upload(V1, cluster.addresses(1, 2))
        cluster.run(120.0, until=lambda: len(cluster.holders(V1, SITE)) == 3)
        self.assertEqual(len(cluster.holders(V1, SITE)), 3)
        self.assertGreater(sum(node.downloads.totals.bad_blocks for node in cluster.nodes.values()), 0)


class TakingTests(UnmeasuredTestCase):
    """Not every node takes every directory."""

    def test_redirect(self):
        """A node without the directory refuses, and names those that take it."""
        cluster = Cluster(5, configs=lambda number: {"logs": LOGS} if number == 1 else {"app": APP})
        cluster.run(30.0)
        client = Client(cluster, SITE)
        client.upload(V1, cluster.addresses(1))
        cluster.run(2.0)
        [(_, answer)] = client.answers
        self.assertEqual((answer.accepted, answer.reject_reason), (False, "no_config"))
        self.assertEqual(answer.hosts, {cluster.machine(number): f"n{number}" for number in (2, 3, 4, 5)})
        client.upload(V1, cluster.addresses(2, 3))
        cluster.run(60.0, until=lambda: len(cluster.holders(V1, SITE)) == 4)
        self.assertEqual(cluster.holders(V1, SITE), {2, 3, 4, 5})
        self.assertIsNone(cluster.nodes[1].ledger.committed(VPath.parse(V1)))
