"""A wish is judged by what the cluster has, whatever the node that is asked lacks."""

from ciruela.keys.signed import signed_bytes, signed_check_bytes
from ciruela.model.vpath import VPath
from ciruela.proto.messages import AppendDir, CheckUpload, ReplaceDir, WithdrawUpload
from tests.measure import UnmeasuredTestCase
from tests.proof import shows
from tests.scenarios.cluster import KEY, Client, Cluster, Image

FIRST, OTHER, THIRD = (Image(number, {"content": 60_000}) for number in (31, 32, 33))
SMALL = [Image(100 + number, {"content": 40_000}) for number in range(40)]
X = "/logs/x"


def reasons(client):
    """What each node answered, by its number."""
    return {int(address.host.rpartition(".")[2]): answer.reject_reason for address, answer in client.answers}


class DecisionTests(UnmeasuredTestCase):
    """Acknowledged content stays, whichever node is behind."""

    def put(self, cluster, path, image, targets=(1, 2, 3), **options):
        """Upload and wait until everybody has it."""
        client = Client(cluster, image)
        client.upload(path, cluster.addresses(*targets), **options)
        cluster.run(60.0, until=lambda: cluster.holders(path, image) == set(cluster.nodes) and len(client.answers) == len(targets))
        self.assertEqual(cluster.holders(path, image), set(cluster.nodes))
        client.leave()

    def unchanged(self, cluster, path, image, seconds=60.0):
        """For a minute each node has ``image`` or nothing, and all have it in the end."""
        vpath = VPath.parse(path)
        changed = set()

        def look():
            states = {number: node.ledger.committed(vpath) for number, node in cluster.nodes.items()}
            changed.update(number for number, state in states.items() if state is not None and state.image != image.id)
            return False

        cluster.run(seconds, until=look)
        self.assertEqual(changed, set())
        self.assertEqual(cluster.holders(path, image), set(cluster.nodes))

    def full(self):
        """Three nodes with an append-only path and 40 more images; the third is replaced by an empty one."""
        cluster = Cluster(3)
        cluster.run(10.0)
        self.put(cluster, X, FIRST)
        client = Client(cluster, *SMALL)
        client.upload("/logs/more", cluster.addresses(1, 2, 3))
        cluster.run(60.0, until=lambda: all(len(cluster.holders(f"/logs/more-{at}", one)) == 3 for at, one in enumerate(SMALL[1:])))
        client.leave()
        cluster.kill(3)
        cluster.hub.rates = dict.fromkeys(cluster.addresses(1, 2, 3), 500_000.0)
        return cluster

    @shows("K2.1")
    def test_append_while_a_node_catches_up(self):
        """The empty node would accept other content, which then takes the place of the acknowledged one on all nodes."""
        for wait_s in (0.0, 0.3, 1.0, 3.0, 6.0):
            cluster = self.full()
            cluster.start(3, wiped=True)
            cluster.run(wait_s)
            client = Client(cluster, OTHER)
            client.upload(X, cluster.addresses(1, 2, 3))
            cluster.run(10.0, until=lambda: len(client.answers) == 3)  # noqa: B023
            said = reasons(client)
            self.assertIn(said.pop(3), {"already_exists", "already_uploading_different_version"})
            self.assertEqual(said, dict.fromkeys((1, 2), "already_exists"))
            self.unchanged(cluster, X, FIRST)

    @shows("K2.1")
    def test_question_while_a_node_catches_up(self):
        """The client that asks first would be told that it may upload."""
        cluster = self.full()
        cluster.start(3, wiped=True)
        stamp = cluster.now_ms()
        signature = KEY.sign(signed_check_bytes(X, OTHER.id, stamp)).signature
        client = Client(cluster, OTHER)
        client.ask(CheckUpload(X, False, OTHER.id, None, stamp, (signature,)), cluster.addresses(3))
        cluster.run(10.0, until=lambda: client.answers)
        self.assertEqual(reasons(client), {3: "already_exists"})
        [(_, answer)] = client.answers
        self.assertIn("on another node", answer.detail)

    @shows("K7.7")
    def test_question_tells_times(self):
        """A client whose clock is right could not sign later than what a fast one signed, for it would not know for which time that was."""
        cluster = Cluster(1)
        cluster.run(5.0)
        ahead = cluster.now_ms() + 200_000
        self.put(cluster, "/app/x", FIRST, (1,), stamp=ahead)
        coming = Client(cluster, OTHER)
        coming.serving = False
        coming.upload("/app/x", cluster.addresses(1), stamp=ahead + 1, replace=True)
        cluster.run(1.0)
        stamp = cluster.now_ms()
        signature = KEY.sign(signed_check_bytes("/app/x", THIRD.id, stamp)).signature
        client = Client(cluster, THIRD)
        client.ask(CheckUpload("/app/x", True, THIRD.id, None, stamp, (signature,)), cluster.addresses(1))
        cluster.run(2.0, until=lambda: client.answers)
        [(_, answer)] = client.answers
        self.assertEqual((answer.there, answer.there_ms, answer.coming, answer.coming_ms), (FIRST.id, ahead, OTHER.id, ahead + 1))

    @shows("K2.2")
    def test_replace_of_what_never_was(self):
        """The node that is behind would take it and win everywhere, where the others refuse."""
        for wiped in (True, False):
            cluster = Cluster(3)
            cluster.run(10.0)
            self.put(cluster, "/app/x", FIRST)
            cluster.kill(3)
            self.put(cluster, "/app/x", OTHER, (1, 2), replace=True)
            cluster.start(3, wiped=wiped)
            client = Client(cluster, THIRD)
            client.upload("/app/x", cluster.addresses(1, 2, 3), replace=True, old=SMALL[0].id)
            cluster.run(10.0, until=lambda: len(client.answers) == 3)  # noqa: B023
            self.assertEqual(reasons(client), dict.fromkeys((1, 2, 3), "replace_doesnt_match_index"))
            cluster.run(60.0)
            self.assertEqual(cluster.holders("/app/x", OTHER), {1, 2, 3})

    @shows("K2.2")
    def test_replace_where_nothing_is(self):
        """An old image that is nowhere cannot be replaced; without one the path is taken."""
        cluster = Cluster(2)
        cluster.run(10.0)
        client = Client(cluster, FIRST)
        client.upload("/app/x", cluster.addresses(1, 2), replace=True, old=OTHER.id)
        cluster.run(10.0, until=lambda: len(client.answers) == 2)
        self.assertEqual(reasons(client), dict.fromkeys((1, 2), "replace_doesnt_match_index"))
        self.put(cluster, "/app/x", FIRST, (1, 2), replace=True)

    @shows("K2.3")
    def test_a_record_lost(self):
        """One copy that was removed by hand, with its record, would let other content spread to all."""
        cluster = Cluster(7)
        cluster.run(10.0)
        self.put(cluster, X, FIRST)
        cluster.kill(5)
        cluster.start(5, wiped=True)
        client = Client(cluster, OTHER)
        client.upload(X, cluster.addresses(5, 6, 7))
        cluster.run(10.0, until=lambda: len(client.answers) == 3)
        self.assertEqual(reasons(client), dict.fromkeys((5, 6, 7), "already_exists"))
        self.unchanged(cluster, X, FIRST)

    def test_removal_makes_room(self):
        """What was removed would keep its path as long as one node has not heard of that."""
        cluster = Cluster(3)
        cluster.run(10.0)
        self.put(cluster, X, FIRST)
        cluster.hub.sever([(cluster.address(1), cluster.address(3)), (cluster.address(2), cluster.address(3))])
        Client(cluster, FIRST).remove(X, cluster.addresses(1, 2))
        cluster.run(2.0)
        self.assertEqual(cluster.holders(X, FIRST), {3})
        cluster.hub.heal()
        client = Client(cluster, OTHER)
        client.upload(X, cluster.addresses(1))
        cluster.run(5.0, until=lambda: client.answers)
        self.assertEqual(reasons(client), {1: None})
        cluster.run(60.0, until=lambda: len(cluster.holders(X, OTHER)) == 3)
        self.assertEqual(cluster.holders(X, OTHER), {1, 2, 3})

    @shows("K2.2")
    def test_old_snapshot(self):
        """A node that comes back with the disk of last week would grant what was true then."""
        cluster = Cluster(3)
        cluster.run(10.0)
        self.put(cluster, "/app/x", FIRST)
        cluster.kill(3)
        self.put(cluster, "/app/x", OTHER, (1, 2), replace=True)
        self.put(cluster, X, OTHER, (1, 2))
        cluster.start(3)
        clients = [Client(cluster, THIRD) for _ in range(2)]
        clients[0].upload("/app/x", cluster.addresses(3), replace=True, old=FIRST.id)
        clients[1].upload(X, cluster.addresses(3))
        cluster.run(10.0, until=lambda: all(client.answers for client in clients))
        self.assertEqual([reasons(client) for client in clients], [{3: "replace_doesnt_match_index"}, {3: "already_exists"}])
        cluster.run(60.0)
        self.assertEqual((cluster.holders("/app/x", OTHER), cluster.holders(X, OTHER)), ({1, 2, 3}, {1, 2, 3}))

    @shows("K2.1", "A51")
    def test_partition_with_two_appends(self):
        """The later of two appends would displace the earlier, which was acknowledged; its client must hear that it lost."""
        cluster = Cluster(6)
        cluster.run(20.0)
        cluster.hub.partition([cluster.addresses(1, 2, 3), cluster.addresses(4, 5, 6)])
        cluster.run(40.0)
        first, later = Client(cluster, FIRST), Client(cluster, OTHER)
        first.upload(X, cluster.addresses(1))
        cluster.run(1.0)
        later.upload(X, cluster.addresses(4))
        cluster.run(30.0)
        self.assertEqual((cluster.holders(X, FIRST), cluster.holders(X, OTHER)), ({1, 2, 3}, {4, 5, 6}))
        cluster.hub.heal()
        cluster.run(90.0, until=lambda: len(cluster.holders(X, FIRST)) == 6)
        self.assertEqual(cluster.holders(X, FIRST), {1, 2, 3, 4, 5, 6})
        cluster.run(30.0)
        self.assertTrue(cluster.agree())
        self.assertEqual([note.reason for note in first.aborted], [])
        self.assertEqual({note.reason.partition(":")[0] for note in later.aborted}, {"conflict"})

    @shows("K2.1")
    def test_partition_while_they_load(self):
        """An append that is still on its way gives way as well, and its client is told before it waits for its deadline."""
        cluster = Cluster(4)
        cluster.run(20.0)
        cluster.hub.partition([cluster.addresses(1, 2), cluster.addresses(3, 4)])
        cluster.run(40.0)
        first, later = Client(cluster, FIRST), Client(cluster, Image(77, {"large": 5_000_000}))
        first.upload(X, cluster.addresses(1))
        cluster.run(5.0)
        cluster.hub.rates = {cluster.address(3): 10_000.0}
        later.upload(X, cluster.addresses(3))
        cluster.run(5.0)
        self.assertIsNotNone(cluster.nodes[3].ledger.pending(VPath.parse(X)))
        cluster.hub.heal()
        cluster.run(90.0, until=lambda: len(cluster.holders(X, FIRST)) == 4)
        self.assertEqual(cluster.holders(X, FIRST), {1, 2, 3, 4})
        self.assertEqual({note.reason.partition(":")[0] for note in later.aborted}, {"conflict"})

    @shows("K2.1")
    def test_removed_and_appended_again(self):
        """A node that missed a removal would claim the path for what was removed, against what was uploaded since."""
        cluster = Cluster(3)
        cluster.run(10.0)
        self.put(cluster, X, FIRST)
        cluster.kill(3)
        remover = Client(cluster, FIRST)
        remover.remove(X, cluster.addresses(1))
        cluster.run(20.0, until=lambda: not cluster.holders(X, FIRST))
        self.put(cluster, X, OTHER, (1, 2))
        cluster.start(3)
        cluster.run(60.0, until=lambda: len(cluster.holders(X, OTHER)) == 3 and cluster.agree())
        self.assertEqual(cluster.holders(X, OTHER), {1, 2, 3})
        self.assertTrue(cluster.agree())
        cluster.start(4)
        cluster.run(60.0, until=lambda: len(cluster.holders(X, OTHER)) == 4 and cluster.agree())
        self.assertTrue(cluster.agree())

    def test_dead_peer(self):
        """A peer that has just died would hold up an upload for longer than a second."""
        cluster = Cluster(3)
        cluster.run(10.0)
        cluster.hub.vanish(cluster.address(3), told=False)
        cluster.nodes.pop(3).stop()
        client = Client(cluster, FIRST)
        client.upload(X, cluster.addresses(1))
        took_s = cluster.run(10.0, until=lambda: client.answers)
        self.assertEqual(reasons(client), {1: None})
        self.assertLess(took_s, 1.2)

    def test_leaves_while_it_is_judged(self):
        """What a client that has gone was waiting for would be remembered for ever."""
        cluster = Cluster(2)
        cluster.run(10.0)
        cluster.hub.pause(cluster.address(2))
        client = Client(cluster, FIRST)
        client.upload(X, cluster.addresses(1))
        cluster.run(0.1)
        client.leave()
        cluster.run(5.0)
        self.assertIsNotNone(cluster.nodes[1].ledger.pending(VPath.parse(X)))
        self.assertEqual(list(cluster.nodes[1].watches.paths()), [])
        self.assertEqual(cluster.nodes[1].clients.wishes._askers, {})

    def test_earlier_version(self):
        """Nodes that do not understand the question would keep a path from being taken."""
        cluster = Cluster(3)
        cluster.hub.old = set(cluster.addresses(2, 3))
        cluster.run(10.0)
        client = Client(cluster, FIRST)
        client.upload(X, cluster.addresses(1))
        took_s = cluster.run(10.0, until=lambda: client.answers)
        self.assertEqual(reasons(client), {1: None})
        self.assertLess(took_s, 0.2)


class SignatureTests(UnmeasuredTestCase):
    """A signature counts for the order that it was made for, and states do not grow with each of them."""

    def signed(self, cluster, image, path):
        stamp = cluster.now_ms()
        return stamp, (KEY.sign(signed_bytes(path, image.id, stamp)).signature,)

    def answers(self, cluster, image, request, *targets):
        client = Client(cluster, image)
        client.ask(request, cluster.addresses(*targets))
        cluster.run(10.0, until=lambda: len(client.answers) == len(targets))
        return reasons(client)

    @shows("S2")
    def test_refused_append_as_replace(self):
        """Who saw an append that was refused would send it again as a replace, there or to another node."""
        cluster = Cluster(4)
        cluster.run(10.0)
        client = Client(cluster, FIRST)
        client.upload("/app/x", cluster.addresses(1))
        cluster.run(30.0, until=lambda: len(cluster.holders("/app/x", FIRST)) == 4)
        stamp, signatures = self.signed(cluster, OTHER, "/app/x")
        refused = self.answers(cluster, OTHER, AppendDir("/app/x", OTHER.id, stamp, signatures), 1, 2)
        self.assertEqual(refused, dict.fromkeys((1, 2), "already_exists"))
        for old in (None, FIRST.id):
            replayed = self.answers(cluster, OTHER, ReplaceDir("/app/x", OTHER.id, old, stamp, signatures), 1, 2, 3, 4)
            self.assertEqual(replayed, dict.fromkeys((1, 2, 3, 4), "signature_mismatch"))
        stamp, signatures = self.signed(cluster, OTHER, "/app/x")
        meant = self.answers(cluster, OTHER, ReplaceDir("/app/x", OTHER.id, FIRST.id, stamp, signatures), 1)
        self.assertEqual(meant, {1: None})

    @shows("S2")
    def test_old_image_left_out(self):
        """A replace that was refused for what is there would be granted without the old image that it named."""
        cluster = Cluster(3)
        cluster.run(10.0)
        client = Client(cluster, FIRST)
        client.upload("/app/x", cluster.addresses(1))
        cluster.run(30.0, until=lambda: len(cluster.holders("/app/x", FIRST)) == 3)
        stamp, signatures = self.signed(cluster, OTHER, "/app/x")
        wish = ReplaceDir("/app/x", OTHER.id, THIRD.id, stamp, signatures)
        self.assertEqual(self.answers(cluster, OTHER, wish, 1), {1: "replace_doesnt_match_index"})
        for old in (None, FIRST.id):
            stripped = ReplaceDir("/app/x", OTHER.id, old, stamp, signatures)
            self.assertEqual(self.answers(cluster, OTHER, stripped, 1, 2), dict.fromkeys((1, 2), "signature_mismatch"))
        self.assertEqual(self.answers(cluster, OTHER, wish, 1), {1: "replace_doesnt_match_index"})

    @shows("K3.6")
    def test_uploaded_each_night(self):
        """The same image by the same key, again and again, would break the listing for a node that joins, and be forgotten at a restart."""
        cluster = Cluster(2)
        cluster.run(10.0)
        for _ in range(18):
            client = Client(cluster, FIRST)
            client.upload(X, cluster.addresses(1))
            cluster.run(5.0, until=lambda: client.answers and len(cluster.holders(X, FIRST)) == 2)  # noqa: B023
            client.leave()
        cluster.run(60.0, until=cluster.agree)
        states = {number: node.ledger.committed(VPath.parse(X)) for number, node in cluster.nodes.items()}
        self.assertEqual(len({state.version for state in states.values()}), 1)
        self.assertEqual(len({state.claim() for state in states.values()}), 1)
        self.assertTrue(all(len(state.signatures) == 2 for state in states.values()), states)
        cluster.start(3)
        cluster.run(60.0, until=lambda: 3 in cluster.holders(X, FIRST))
        self.assertEqual(cluster.holders(X, FIRST), {1, 2, 3})
        cluster.run(30.0)
        self.assertTrue(cluster.agree())


class WithdrawTests(UnmeasuredTestCase):
    """A client takes back what a node has begun, when others refuse it; nobody else can."""

    def setUp(self):
        self.cluster = Cluster(2)
        self.cluster.run(10.0)
        self.cluster.hub.rates = dict.fromkeys(self.cluster.addresses(1, 2), 100_000.0)
        self.image = Image(55, {"large": 3_000_000})
        self.client = self.begun()

    def begun(self):
        client = Client(self.cluster, self.image)
        client.upload(X, self.cluster.addresses(1))
        self.cluster.run(5.0, until=lambda: client.answers)
        return client

    def withdraw(self, link, image=None):
        answers = []
        link.ask(WithdrawUpload(X, (image or self.image).id)).addBoth(answers.append)
        self.cluster.run(15.0, until=lambda: answers)
        [answer] = answers
        return answer

    def pending(self, number=1):
        return self.cluster.nodes[number].ledger.pending(VPath.parse(X))

    @shows("K2.1")
    def test_taken_back(self):
        """What was begun on one node would go on after the others had refused it."""
        self.assertIsNotNone(self.pending())
        self.assertTrue(self.withdraw(self.client.links[0]).accepted)
        self.assertIsNone(self.pending())
        self.assertEqual({note.reason for note in self.client.aborted}, {"superseded"})
        again = self.withdraw(self.client.links[0])
        self.assertEqual((again.accepted, again.reject_reason, again.machine), (False, "not_withdrawn", self.cluster.machine(1)))

    @shows("I4")
    def test_not_by_others(self):
        """Anybody could stop the uploads of others; and what two clients want goes on when one of them leaves."""
        stranger = Client(self.cluster, self.image)
        stranger.ask(WithdrawUpload(X, self.image.id), self.cluster.addresses(1))
        self.cluster.run(5.0, until=lambda: stranger.answers)
        self.assertFalse(stranger.answers[0][1].accepted)
        other = self.begun()
        for client in (self.client, other):
            self.assertFalse(self.withdraw(client.links[0]).accepted)
        self.assertIsNotNone(self.pending())
        other.leave()
        self.cluster.run(1.0)
        self.assertTrue(self.withdraw(self.client.links[0]).accepted)

    def test_not_what_is_there(self):
        """An upload that has arrived is no longer its client's to take back."""
        self.cluster.hub.rates = {}
        self.cluster.run(60.0, until=lambda: 1 in self.cluster.holders(X, self.image))
        answer = self.withdraw(self.client.links[0])
        self.assertFalse(answer.accepted)
        self.assertIn("not on its way", answer.detail)
        self.assertIn(1, self.cluster.holders(X, self.image))
