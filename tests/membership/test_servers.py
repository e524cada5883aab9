"""The rows of servers, and the memory that they are made of."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Address
from ciruela.membership.members import MOST_KEYS_KEPT, SILENT_S, UNUSED_MS, KnownAddress, MemberCache
from ciruela.membership.packets import Header, MemberFact, Packet
from ciruela.membership.servers import SHARED_S, ConfiguredPlace, SharedIds, servers
from ciruela.model.ids import MachineId, SharedId
from tests.membership.test_memory import AT_A, AT_B, AT_C, EPOCH, ME, A, B, ClusterCase, member
from tests.proof import shows

V4, OTHER_V4 = Address("10.0.0.1", 1), Address("10.0.0.2", 1)
V6, OTHER_V6 = Address("fd00::1", 1), Address("fd00::2", 1)


@shows("K1.1")
class RowTests(SynchronousTestCase):
    """How addresses become servers: one too few, and a count is met that is not; one too many, and it never is."""

    def addresses(self, *places: ConfiguredPlace, key: str = "app") -> list[tuple[str, ...]]:
        return [row.addresses for row in servers(places, key)]

    def test_one_process_with_two_addresses(self) -> None:
        """A host with two addresses would be waited for twice."""
        places = (ConfiguredPlace(V4, "x", False, A, 5, keys=("app",)), ConfiguredPlace(OTHER_V4, "y", False, A, 5))
        self.assertEqual(self.addresses(*places), [(str(V4), str(OTHER_V4))])
        self.assertEqual(self.addresses(*places, key="other"), [])

    def test_other_epoch_is_another_place(self) -> None:
        """Where a machine was before it moved, somebody is expected whom nobody has met."""
        rows = servers(
            [ConfiguredPlace(V4, "x", False, A, 5, heard_ms=900, keys=("app",)), ConfiguredPlace(OTHER_V4, "y", False, A, 9, heard_ms=1)],
            "app",
        )
        self.assertEqual([(row.machine, row.addresses) for row in rows], [(A, (str(OTHER_V4),)), (None, (str(V4),))])

    def test_hearsay_is_no_epoch(self) -> None:
        """A clone at one address, and the server whose id it has, would be one server for a node that knows both from others."""
        rows = servers(
            [ConfiguredPlace(V4, "x", False, A, 0, heard_ms=100), ConfiguredPlace(OTHER_V4, "y", False, A, 0, heard_ms=600_000)], "app"
        )
        self.assertEqual([(row.machine, row.addresses) for row in rows], [(A, (str(V4),)), (None, (str(OTHER_V4),))])

    def test_shared_id(self) -> None:
        """Two servers with one id would be one row."""
        rows = servers([ConfiguredPlace(V4, "x", False, A, 5, apart=True), ConfiguredPlace(OTHER_V4, "y", False, A, 9, apart=True)], "app")
        self.assertEqual([row.addresses for row in rows], [(str(V4),), (str(OTHER_V4),)])

    def test_unmet_addresses_of_a_name(self) -> None:
        """A name for a whole cluster is as many servers as it has addresses of one family."""
        unmet = [ConfiguredPlace(address, "all", False) for address in (V4, OTHER_V4, V6)]
        self.assertEqual(self.addresses(*unmet), [(str(V4), str(V6)), (str(OTHER_V4),)])
        self.assertEqual(self.addresses(ConfiguredPlace(V4, "x", False), ConfiguredPlace(V6, "y", False)), [(str(V4),), (str(V6),)])

    def test_other_family_of_a_met_server(self) -> None:
        """A server that answers by IPv4 alone would be waited for a second time by IPv6."""
        met = ConfiguredPlace(V4, "n", False, A, 5, keys=("app",))
        self.assertEqual(self.addresses(met, ConfiguredPlace(V6, "n", False)), [(str(V4), str(V6))])
        self.assertEqual(self.addresses(met, ConfiguredPlace(V6, "n", False), key="other"), [])
        self.assertEqual(
            self.addresses(met, ConfiguredPlace(V6, "n", False), ConfiguredPlace(OTHER_V6, "n", False)), [(str(V4),), (str(OTHER_V6),)]
        )
        self.assertEqual(self.addresses(met, ConfiguredPlace(OTHER_V4, "n", False)), [(str(V4),), (str(OTHER_V4),)])
        self.assertEqual(self.addresses(ConfiguredPlace(V4, "me", True), ConfiguredPlace(V6, "me", False)), [], "our own other address")

    def test_unknown_directories(self) -> None:
        """Who has not said what it takes may take it."""
        for keys, expected in ((None, 1), ((), 0), (("app",), 1), (("other",), 0)):
            self.assertEqual(len(self.addresses(ConfiguredPlace(V4, "x", False, A, 5, keys=keys))), expected, keys)


@shows("K1.1")
class KnownTests(SynchronousTestCase):
    """What is remembered of each address."""

    def setUp(self) -> None:
        self.memory = MemberCache()
        self.memory.configured([V4, V6])

    def test_sure_directories_stay(self) -> None:
        """A forged datagram would say that a node takes nothing, and nobody would expect it to have anything."""
        self.memory.met(V4, A, 5, 100, connected=True)
        self.memory.told(V4, "a", ["app"], connected=True)
        self.memory.told(V4, "a", ["other"], connected=False)
        self.memory.met(V4, B, 6, 200, connected=False)
        self.memory.told(V4, "b", [], connected=False)
        self.assertEqual(self.memory.get(V4), KnownAddress(B, 6, "b", ("app", "other"), True, 200))
        self.memory.met(V4, A, 5, 300, connected=True)
        self.memory.told(V4, "a", ["logs"], connected=True)
        self.assertEqual(self.memory.get(V4), KnownAddress(A, 5, "a", ("logs",), True, 300))

    def test_unsure_directories_change(self) -> None:
        """In a large cluster most nodes are known by datagrams alone."""
        self.memory.met(V4, A, 0, 100, connected=False)
        self.memory.told(V4, "a", ["app"], connected=False)
        self.memory.told(V4, "a", None, connected=False)
        self.memory.told(V4, "a", ["logs"], connected=False)
        self.assertEqual(self.memory.get(V4), KnownAddress(A, 0, "a", ("logs",), False, 100))

    def test_restart_with_two_addresses(self) -> None:
        """A host with two addresses would be two servers after each restart, until both have spoken."""
        for address in (V4, V6):
            self.memory.met(address, A, 5, 100, connected=False)
        self.memory.met(V6, A, 9, 200, connected=False)
        self.assertEqual([known.epoch for address in (V4, V6) if (known := self.memory.get(address))], [9, 9])

    def test_over_a_restart(self) -> None:
        """What was known must not depend on how long this node has been running."""
        self.memory.met(V4, A, 5, 100, connected=True)
        self.memory.told(V4, "host a", ["app", "logs"], connected=True)
        self.memory.met(V6, B, 0, 50, connected=False)
        rows = self.memory.rows(1000)
        again = MemberCache()
        again.recall(rows)
        again.configured([V4])
        self.assertEqual(again.get(V4), self.memory.get(V4))
        self.assertEqual(again.rows(1000), rows, "the address that no list names yet was forgotten")
        self.assertEqual(set(again.rows(50 + UNUSED_MS)), {str(V4)})
        again.configured([V4, V6])
        self.assertEqual(again.get(V6), self.memory.get(V6))
        again.configured([])
        self.assertEqual(again.rows(0), {})

    def test_no_longer_configured(self) -> None:
        """A server that the operator has taken out would be expected for ever."""
        self.memory.met(V4, A, 5, 100, connected=True)
        self.memory.configured([V6])
        self.assertIsNone(self.memory.get(V4))

    def test_damaged_rows(self) -> None:
        """A damaged file must cost what it says, never the start."""
        good = [A.hex(), "5", "a", "100", "!", "app"]
        rows = {str(V4): good}
        rng = random.Random(5)
        for number in range(2000):
            row = [text if rng.random() < 0.7 else rng.choice(("", "x", "-1", "9" * 30, "\n", "²", "!", A.hex())) for text in good]
            rows[f"bad{number}"] = row[: rng.randrange(7)]
        rows["long"] = good + ["k"] * MOST_KEYS_KEPT
        again = MemberCache()
        again.recall(rows)
        again.configured([V4])
        self.assertEqual(again.get(V4), KnownAddress(A, 5, "a", ("app",), True, 100))
        for row in again.rows(0).values():
            self.assertLess(int(row[3]), 10**19)


@shows("K1.5")
class SharedTests(ClusterCase):
    """Machine ids with which several servers speak."""

    def test_until_when(self) -> None:
        """An alarm would stay when its cause is gone, or go while it is there."""
        shared = SharedIds(ME)
        for end in ("another id", "not configured", "silent"):
            shared.note(A, {AT_A: 0.0, AT_B: 5.0})
            shared.spoke(AT_A, A, 5.0)
            self.assertEqual(shared.all([]), [SharedId(A, (str(AT_A), str(AT_B)))])
            match end:
                case "another id":
                    shared.spoke(AT_B, B, 6.0)
                case "not configured":
                    shared.configured([AT_A])
                case "silent":
                    shared.spoke(AT_A, A, 500.0)
                    self.assertEqual(shared.expire(SHARED_S + 4.0), [])
                    self.assertEqual(shared.expire(SHARED_S + 5.0), [AT_B])
            self.assertEqual(shared.all([]), [], end)

    def test_own_id(self) -> None:
        """A node whose own id is in use elsewhere is the one whose operator looks at it."""
        self.hear(ME, AT_B, epoch=EPOCH + 1)
        self.assertEqual(self.cluster.shared_ids(), [SharedId(ME, ("10.0.0.0:24783", str(AT_B)))])
        rows = {row.addresses[0]: row.machine for row in self.cluster.servers("app")}
        self.assertIsNone(rows[str(AT_B)])
        self.hear(B, AT_B, epoch=EPOCH + 2)
        self.assertEqual(self.cluster.shared_ids(), [])

    @shows("K1.1")
    def test_own_id_in_memory(self) -> None:
        """A clone remembers its own id at the address of the server that it was copied from, which would never be waited for."""
        self.cluster.roster.memory.met(AT_B, ME, EPOCH, 0, connected=False)
        rows = {row.addresses[0]: row.machine for row in self.cluster.servers("app")}
        self.assertIn(str(AT_B), rows)
        self.assertIsNone(rows[str(AT_B)])

    def test_restart_of_a_host_with_two_addresses(self) -> None:
        """Each restart would look like a cloned disk, and end every sync with an error."""
        for epoch in (EPOCH, EPOCH + 1, EPOCH + 2):
            for address in (AT_A, AT_B, AT_A, AT_B):
                self.hear(A, address, epoch=epoch)
        self.assertEqual(self.cluster.shared_ids(), [])

    def test_replayed(self) -> None:
        """One recorded datagram of before the restart would be taken for a second server."""
        self.hear(A, AT_A, seq=7)
        self.hear(A, AT_B, seq=0, epoch=EPOCH + 1)
        self.hear(A, AT_A, seq=7)
        self.assertEqual(self.cluster.shared_ids(), [])
        self.hear(A, AT_A, seq=8)
        self.assertEqual(self.cluster.shared_ids(), [SharedId(A, (str(AT_A), str(AT_B)))])

    def test_proved_against_forged(self) -> None:
        """A datagram in the name of another address would take a machine away from where it really is."""
        connected = Packet(Header(A, EPOCH, 0), (member(A),))
        self.cluster.heard(AT_A, connected, 0.0, connected=True)
        self.hear(A, AT_B, epoch=EPOCH + 1, seq=0)
        self.hear(A, AT_A, seq=1)
        self.assertEqual(self.cluster.address_of(A), AT_A)
        self.cluster.heard(AT_B, Packet(Header(B, EPOCH - 7, 0), ()), 0.0, connected=True)
        self.assertEqual(self.cluster.shared_ids(), [])


@shows("K1.1", "K4")
class HeardTests(ClusterCase):
    """Signs of life, by datagram and otherwise."""

    def test_either_way(self) -> None:
        """A peer that is reached by connections alone would count as dead; or one that is, as heard by UDP."""
        self.cluster.heard(AT_A, Packet(Header(A, EPOCH, 0), (MemberFact(A, None, 1, "a", 0, 1, ("app",)),)), 10.0, connected=True)
        self.hear(B, AT_B, member(B), now_s=10.0)
        self.cluster.expire(12.0)
        peers = {peer.address: (peer.silent_s, peer.udp_s, peer.reached) for peer in self.cluster.peers()}
        self.assertEqual((peers[AT_A], peers[AT_B], peers[AT_C]), ((2.0, None, "tcp"), (2.0, 2.0, "udp"), (None, None, None)))
        self.assertEqual(set(self.cluster.hosts("app")), {A, B})
        unheard = self.cluster.roster.unheard(12.0)
        self.assertEqual((AT_A in unheard, AT_B in unheard, AT_C in unheard), (True, False, True))
        self.cluster.expire(10.0 + 2 * SILENT_S)
        self.assertEqual([peer.reached for peer in self.cluster.peers()], [None] * 4)

    def test_numbers_of_a_forger(self) -> None:
        """One datagram with a number far ahead, and all that come from the node itself would count as old."""
        self.hear(A, AT_A, seq=5)
        self.hear(A, AT_A, seq=10**6)
        self.assertNotEqual(self.hear(A, AT_A, seq=6), [])
        self.cluster.heard(AT_A, Packet(Header(A, EPOCH, 7), ()), 0.0, connected=True)
        self.assertEqual(self.hear(A, AT_A, seq=8), [])
        self.assertEqual(MachineId(A), self.cluster.roster.machine_at(AT_A))
