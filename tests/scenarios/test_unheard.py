"""Firewalls that drop datagrams, nodes that are down, lists that name one side only, and forged datagrams: what is counted stays true."""

from __future__ import annotations

from ciruela.interfaces import Address
from ciruela.membership.packets import Ack, Complete, Header, MemberFact, NullKeyring, WatchFact, encode_packets
from ciruela.membership.softstate import MOST_WATCHERS
from ciruela.model.ids import ImageId, MachineId, SharedId
from ciruela.model.vpath import VPath
from ciruela.proto.messages import GetPathState, PathStateData, PushPull
from tests.measure import UnmeasuredTestCase
from tests.proof import shows
from tests.scenarios.cluster import PORT, Client, Cluster, Image

V1 = "/app/v1"
PATH = VPath.parse(V1)
SITE = Image(1, {"big": 2_000_000, "empty": 0, "small": 10})
FAR = 2**63 - 1


class UdpTests(UnmeasuredTestCase):
    """What a firewall drops, connections carry."""

    def spread(self, cluster: Cluster, entry: int, most_s: float) -> Client:
        """An image given to one node is on all of them, and the client is told of all, within ``most_s``."""
        client = Client(cluster, SITE)
        client.upload(V1, cluster.addresses(entry))
        everybody = set(cluster.nodes)
        took = cluster.run(most_s, until=lambda: cluster.holders(V1, SITE) == everybody and len(client.machines(V1)) == len(everybody))
        self.assertEqual(cluster.holders(V1, SITE), everybody, took)
        self.assertEqual(client.machines(V1), {cluster.machine(number) for number in everybody}, took)
        return client

    @shows("K4", "K1.2")
    def test_all_udp_dropped(self) -> None:
        """With UDP closed, the commonest mistake with firewalls, only the node that the client talks to would ever get the image."""
        cluster = Cluster(5, udp=False)
        cluster.run(3.0)
        self.assertEqual({len(node.gossip.cluster.hosts("app")) for node in cluster.nodes.values()}, {4})
        self.spread(cluster, 1, 4.0)

    @shows("K4")
    def test_inbound_closed(self) -> None:
        """A node that hears nothing by UDP would never catch up."""
        cluster = Cluster(5)
        cluster.hub.close_udp(None, cluster.address(3))
        cluster.run(5.0)
        self.spread(cluster, 1, 4.0)

    @shows("K4")
    def test_outbound_closed(self) -> None:
        """A node whose datagrams never leave would have the image, and its word would never come back."""
        cluster = Cluster(5)
        cluster.hub.close_udp(cluster.address(3), None)
        cluster.run(5.0)
        self.spread(cluster, 1, 4.0)

    @shows("K4")
    def test_entry_node_closed(self) -> None:
        """The same for the node that the client talks to, closed after the nodes had met: nobody knows yet that nothing is heard."""
        for direction in ((0, None), (None, 0)):
            cluster = Cluster(5)
            cluster.run(20.0)
            cluster.hub.close_udp(*(cluster.address(1) if one == 0 else None for one in direction))
            self.spread(cluster, 1, 20.0)

    @shows("K1.2", "K4")
    def test_said_once_and_again_after_it_changed(self) -> None:
        """The operator would not learn that a port is closed; or of nothing else."""
        from twisted.logger import globalLogPublisher

        said: list[str] = []

        def observe(event: dict[str, object]) -> None:
            if "by UDP" in str(event.get("log_format")):
                said.append(str(event["log_format"]).format(**event))

        globalLogPublisher.addObserver(observe)  # type: ignore[arg-type]
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        cluster = Cluster(2)
        cluster.hub.close_udp(cluster.address(2), cluster.address(1))
        cluster.run(200.0)
        self.assertEqual(len(said), 2, said)
        self.assertTrue(any("n2 (10.0.0.2:24783) is configured, not heard by UDP for 1" in line for line in said), said)
        self.assertTrue(any("n1 (10.0.0.1:24783) is reached by TCP, and does not hear this node" in line for line in said), said)
        reached = {peer.address: (peer.reached, peer.udp_s) for peer in cluster.nodes[1].gossip.cluster.peers()}
        self.assertEqual(reached[cluster.address(2)], ("tcp", None))
        cluster.hub.open_udp()
        cluster.run(20.0)
        cluster.hub.close_udp(cluster.address(2), cluster.address(1))
        cluster.run(200.0)
        self.assertEqual(len(said), 4, said)

    def test_healthy_cluster_uses_few_connections(self) -> None:
        """Connections from everybody to everybody would cost a large cluster more than its datagrams."""
        cluster = Cluster(20)
        cluster.run(60.0)
        before = {number: node.gossip.exchanges.done for number, node in cluster.nodes.items()}
        cluster.run(60.0)
        rates = [node.gossip.exchanges.done - before[number] for number, node in cluster.nodes.items()]
        self.assertLessEqual(sum(rates) / len(rates), 6.0)

    def test_older_versions_are_left_alone(self) -> None:
        """A node of an earlier version answers that it does not know; asked each few seconds it would fill both logs."""
        cluster = Cluster(3)
        cluster.hub.old = {cluster.address(3)}
        cluster.run(120.0)
        failed = cluster.nodes[1].gossip.exchanges.failed
        self.assertLessEqual(failed, 2)
        self.spread(cluster, 1, 20.0)


class CountTests(UnmeasuredTestCase):
    """The servers that a node counts."""

    def rows(self, cluster: Cluster, number: int, key: str = "app") -> dict[str, tuple[MachineId | None, bool]]:
        return {row.name: (row.machine, row.configured) for row in cluster.nodes[number].gossip.cluster.servers(key)}

    @shows("K1.1")
    def test_dead_node_is_counted_for_ever(self) -> None:
        """A node that was down for more than five minutes would not be expected any more: DONE 3/3 of 4."""
        cluster = Cluster(4)
        cluster.run(10.0)
        cluster.kill(4)
        for seconds in (20.0, 260.0, 40.0, 3600.0):
            cluster.run(seconds)
            self.assertEqual(self.rows(cluster, 1)["n4"], (cluster.machine(4), True))
        self.assertEqual(len(cluster.nodes[1].gossip.cluster.hosts("app")), 2)
        [row] = [row for row in cluster.nodes[1].gossip.cluster.servers("app") if row.name == "n4"]
        self.assertEqual(round((row.heard_ms or 0) / 1000), 3920)

    @shows("K1.1")
    def test_others_restarted(self) -> None:
        """The same five seconds after the others restarted, which know of the dead one only what their configuration says."""
        cluster = Cluster(4)
        cluster.run(10.0)
        for number in (4, 3, 2, 1):
            kept = cluster.nodes[number].gossip.cluster.remembered()
            cluster.kill(number)
        for number in (1, 2, 3):
            cluster.start(number)
        cluster.run(5.0)
        self.assertEqual(self.rows(cluster, 2)["n4"], (None, True))
        cluster.nodes[1].gossip.cluster.recall(kept)
        self.assertEqual(self.rows(cluster, 1), {f"n{number}": (cluster.machine(number), True) for number in (2, 3, 4)})
        self.assertEqual(set(self.rows(cluster, 1, "none of these")), set())
        self.assertEqual(set(self.rows(cluster, 2, "none of these")), {"n4"})

    @shows("K1.4")
    def test_one_sided_lists(self) -> None:
        """A names B and B does not name A: from either side DONE 1/1."""
        cluster = Cluster(2)
        cluster.nodes[2].gossip.configured({cluster.address(2): "n2"})
        cluster.run(10.0)
        self.assertEqual(self.rows(cluster, 1), {"n2": (cluster.machine(2), True)})
        self.assertEqual(self.rows(cluster, 2), {"n1": (cluster.machine(1), False)})
        self.assertEqual(cluster.nodes[2].gossip.cluster.hosts("app"), {})
        self.assertEqual(cluster.nodes[1].gossip.cluster.hosts("app"), {cluster.machine(2): "n2"})

    @shows("K1.4")
    def test_strangers_are_bounded_and_forgotten(self) -> None:
        """Whoever connects from many addresses would fill the memory and every count."""
        cluster = Cluster(1)
        cluster.run(1.0)
        node = cluster.nodes[1]
        for number in range(1000, 1100):
            cluster.run(0.5)
            header = Header(MachineId(number.to_bytes(16, "big")), 1, 0)
            facts = tuple(encode_packets(header, [MemberFact(header.sender, None, 1, f"s{number}", 0, 1, ("app",))]))
            self.assertFalse(node.gossip.pushed(f"192.0.2.{number % 250}", PushPull(number, None, facts)).taken)
        self.assertEqual(len(node.gossip.cluster.servers("app")), 64)
        self.assertEqual(node.gossip.cluster.hosts("app"), {})
        cluster.run(310.0)
        self.assertEqual(node.gossip.cluster.servers("app"), [])

    @shows("K1.5")
    def test_cloned_disk(self) -> None:
        """Two of three servers have one machine id: DONE 2/2 of 3 servers. Said while both live, and after one of them is gone."""
        cluster = _Cloned(3)
        cluster.run(10.0)
        shared = SharedId(cluster.machine(2), (str(cluster.address(2)), str(cluster.address(3))))
        for number in (1, 2, 3):
            self.assertEqual(cluster.nodes[number].gossip.cluster.shared_ids(), [shared], number)
        rows = [row for row in cluster.nodes[1].gossip.cluster.servers("app") if row.machine == cluster.machine(2)]
        self.assertEqual([row.addresses for row in rows], [(str(cluster.address(2)),), (str(cluster.address(3)),)])
        cluster.kill(2)
        cluster.run(60.0)
        self.assertEqual(cluster.nodes[1].gossip.cluster.shared_ids(), [shared])
        cluster.run(700.0)
        self.assertEqual(cluster.nodes[1].gossip.cluster.shared_ids(), [])
        rows = cluster.nodes[1].gossip.cluster.servers("app")
        self.assertEqual(
            {row.addresses[0]: row.machine for row in rows}, {f"10.0.0.2:{PORT}": None, f"10.0.0.3:{PORT}": cluster.machine(2)}
        )

    @shows("K1.5")
    def test_clone_gets_its_own_id(self) -> None:
        """Once the operator has given one of them its own id, nothing may go on complaining."""
        cluster = _Cloned(3)
        cluster.run(10.0)
        cluster.kill(3)
        cluster.cloned = False
        cluster.start(3)
        cluster.run(10.0)
        self.assertEqual([node.gossip.cluster.shared_ids() for node in cluster.nodes.values()], [[], [], []])
        self.assertEqual(self.rows(cluster, 1), {"n2": (cluster.machine(2), True), "n3": (cluster.machine(3), True)})

    @shows("K1.5")
    def test_restart_is_no_clone(self) -> None:
        """A node with two addresses that restarts is one server before and after."""
        cluster = Cluster(2)
        cluster.run(10.0)
        for _ in range(3):
            cluster.kill(2)
            cluster.run(0.5)
            cluster.start(2)
            cluster.run(5.0)
            self.assertEqual(cluster.nodes[1].gossip.cluster.shared_ids(), [])


class _Cloned(Cluster):
    """Nodes 2 and 3 were installed from one disk."""

    cloned = True

    def start(self, number: int, wiped: bool = False):
        self.clock.advance(0.003)
        return super().start(number, wiped)

    def machine(self, number: int) -> MachineId:  # type: ignore[override]
        return MachineId((2 if number == 3 and self.cloned else number).to_bytes(16, "big"))


class ForgedTests(UnmeasuredTestCase):
    """Datagrams that somebody sent who can forge the address of a node."""

    def forge(self, cluster: Cluster, target: int, source: int, header: Header, *items: object) -> None:
        for data in encode_packets(header, items):  # type: ignore[arg-type]
            cluster.nodes[target].gossip.received(NullKeyring().seal(data), cluster.address(source))

    @shows("S4")
    def test_time_of_the_future(self) -> None:
        """One datagram with a time that never comes, and that node would never be heard again."""
        cluster = Cluster(3)
        cluster.run(10.0)
        ahead = cluster.now_ms() + 6 * 60 * 1000
        epoch = cluster.nodes[2].context.epoch
        self.forge(cluster, 1, 2, Header(cluster.machine(2), FAR, 0), Ack(PATH, SITE.id))
        self.forge(cluster, 1, 3, Header(MachineId(b"x" * 16), ahead, 0), Ack(PATH, SITE.id))
        self.forge(cluster, 1, 2, Header(cluster.machine(2), epoch, 90_000), MemberFact(cluster.machine(2), None, FAR, "", 0, 1, ()))
        self.forge(cluster, 1, 2, Header(cluster.machine(2), epoch, 90_001), WatchFact(PATH, cluster.machine(3), FAR))
        counts = cluster.nodes[1].gossip.counts.refused
        self.assertEqual(counts["ahead"], 4)
        self.assertEqual(cluster.nodes[1].gossip.cluster.watchers(PATH), frozenset())
        cluster.run(5.0)
        self.assertEqual(set(cluster.nodes[1].gossip.cluster.hosts("app")), {cluster.machine(2), cluster.machine(3)})

    @shows("S4")
    def test_epoch_of_now(self) -> None:
        """The same with a time of today, which nobody can refuse: the node itself says over a connection which is its own."""
        cluster = Cluster(3)
        cluster.run(60.0)
        self.forge(
            cluster, 1, 2, Header(MachineId(b"x" * 16), cluster.now_ms(), 0), MemberFact(MachineId(b"x" * 16), None, 1, "", 0, 1, ())
        )
        cluster.run(5.0)
        self.assertEqual(set(cluster.nodes[1].gossip.cluster.hosts("app")), {cluster.machine(2), cluster.machine(3)})
        self.assertEqual({row.machine for row in cluster.nodes[1].gossip.cluster.servers("app")}, {cluster.machine(2), cluster.machine(3)})

    @shows("S4", "K1.1")
    def test_dead_node_cannot_be_talked_away(self) -> None:
        """A node that is down takes what it said over a connection, whatever datagrams say in its name."""
        cluster = Cluster(3)
        cluster.run(10.0)
        cluster.kill(3)
        cluster.run(400.0)
        machine = MachineId(b"x" * 16)
        self.forge(cluster, 1, 3, Header(machine, cluster.now_ms(), 0), MemberFact(machine, None, 1, "", 0, 1, ("other",)))
        rows = {row.addresses for row in cluster.nodes[1].gossip.cluster.servers("app")}
        self.assertEqual(rows, {(str(cluster.address(2)),), (str(cluster.address(3)),)})

    @shows("S4")
    def test_clock_that_was_wrong_at_the_start(self) -> None:
        """A node that started with a clock an hour ahead takes part; and goes on doing so once its clock is right and it restarts."""
        cluster = _WrongClock(3)
        cluster.run(10.0)
        everybody = {cluster.machine(number) for number in (2, 3)}
        self.assertEqual(set(cluster.nodes[1].gossip.cluster.hosts("app")), everybody)
        cluster.run(100.0)
        [peer] = [peer for peer in cluster.nodes[1].gossip.cluster.peers() if peer.machine == cluster.machine(3)]
        self.assertEqual(peer.reached, "udp", "once its clock is known, its datagrams count")
        cluster.kill(3)
        cluster.run(5.0)
        cluster.ahead_ms = 0
        cluster.start(3)
        cluster.run(10.0)
        self.assertEqual(set(cluster.nodes[1].gossip.cluster.hosts("app")), everybody)
        [peer] = [peer for peer in cluster.nodes[1].gossip.cluster.peers() if peer.machine == cluster.machine(3)]
        self.assertLess(99.0 if peer.udp_s is None else peer.udp_s, 5.0, "its datagrams are still refused")
        self.assertEqual(cluster.nodes[1].gossip.cluster.shared_ids(), [])

    @shows("S5")
    def test_forged_completion(self) -> None:
        """DONE 3/3, and the node has nothing."""
        cluster = Cluster(3, configs=None)
        cluster.run(10.0)
        client = Client(cluster, SITE)
        client.serving = False
        client.upload(V1, cluster.addresses(1))
        cluster.run(1.0)
        for seq in range(50):
            forged = Header(cluster.machine(2), cluster.nodes[2].context.epoch, 90_000 + seq)
            self.forge(cluster, 1, 2, forged, Complete(PATH, SITE.id, cluster.now_ms()))
            cluster.run(0.1)
        self.assertEqual(client.received, set())
        self.assertGreater(cluster.nodes[1].gossip.confirmations.refuted, 1)
        cluster.run(20.0)
        [peer] = [peer for peer in cluster.nodes[1].gossip.cluster.peers() if peer.machine == cluster.machine(2)]
        self.assertLess(99.0 if peer.udp_s is None else peer.udp_s, 3.0, "datagrams of the node itself are taken for old ones")

    @shows("S6")
    def test_many_watches(self) -> None:
        """A few datagrams with invented machines, and each turn of the node would take seconds."""
        cluster = Cluster(2)
        cluster.run(10.0)
        epoch = cluster.nodes[2].context.epoch
        for number in range(100):
            machines = (MachineId((1000 * number + one + 1000).to_bytes(16, "big")) for one in range(20))
            header = Header(cluster.machine(2), epoch, 90_000 + number)
            self.forge(cluster, 1, 2, header, *(WatchFact(PATH, machine, 1) for machine in machines))
        self.assertEqual(cluster.nodes[1].gossip.cluster.watchers(PATH), frozenset())
        cluster.nodes[1].gossip.cluster.add_watchers(PATH, [MachineId(number.to_bytes(16, "big")) for number in range(2 * MOST_WATCHERS)])
        self.assertEqual(len(cluster.nodes[1].gossip.cluster.watchers(PATH)), MOST_WATCHERS)

    @shows("S6")
    def test_one_look_up_for_each_telling(self) -> None:
        """A thousand watchers of one path, each looked up among all: a million steps in each turn."""
        cluster = Cluster(1)
        gossip = cluster.nodes[1].gossip
        looked: list[VPath] = []
        whole = gossip.cluster.watchers
        self.patch(gossip.cluster, "watchers", lambda vpath: looked.append(vpath) or whole(vpath))
        gossip.cluster.add_watchers(PATH, [MachineId(number.to_bytes(16, "big")) for number in range(1000, 1500)])
        for machine in whole(PATH):
            gossip._tellings.begin(PATH, machine, ImageId(b"i" * 32), 0.0)
        cluster.run(5.0)
        self.assertEqual((len(gossip._tellings), looked), (500, []))

    @shows("S8")
    def test_invented_machines(self) -> None:
        """One address that speaks for one machine after the other would get a place in the memory for each."""
        cluster = Cluster(2)
        cluster.run(10.0)
        cluster.kill(2)
        for number in range(50):
            machine = MachineId((500 + number).to_bytes(16, "big"))
            header = Header(machine, cluster.now_ms() + number, number)
            for batch in range(10):
                paths = (VPath(("app", f"v{batch}-{one}")) for one in range(20))
                self.forge(cluster, 1, 2, Header(machine, header.epoch, batch), *(Complete(vpath, SITE.id, 1) for vpath in paths))
        self.assertLessEqual(len(cluster.nodes[1].gossip.cluster._stances), 4096)
        self.assertEqual(len(cluster.nodes[1].gossip.cluster._stances), 4096)


class _WrongClock(Cluster):
    """Node 3 believes that it is later than it is."""

    ahead_ms = 3600 * 1000

    def start(self, number: int, wiped: bool = False):
        right = self.now_ms
        if number == 3:
            ahead_ms = self.ahead_ms
            self.now_ms = lambda: right() + ahead_ms  # type: ignore[method-assign]
        try:
            return super().start(number, wiped)
        finally:
            self.now_ms = right  # type: ignore[method-assign]


class AnswerTests(UnmeasuredTestCase):
    """What a client is told of the servers."""

    @shows("K1.1", "K1.4")
    def test_path_state(self) -> None:
        """The count of the client is made of what the nodes answer."""
        cluster = Cluster(3)
        cluster.run(10.0)
        cluster.kill(3)
        cluster.run(400.0)
        client = Client(cluster, SITE)
        client.ask(GetPathState(V1, servers=True), cluster.addresses(1))
        cluster.run(5.0)
        [(_, answer)] = client.answers
        assert isinstance(answer, PathStateData)
        self.assertEqual([row.machine for row in answer.servers], [cluster.machine(2), cluster.machine(3)])
        self.assertEqual([row.addresses for row in answer.servers], [(f"10.0.0.{number}:{PORT}",) for number in (2, 3)])
        self.assertIsInstance(answer.servers[0].heard_ms, int)
        self.assertNotIn(Address("10.0.0.1", PORT), answer.servers)
