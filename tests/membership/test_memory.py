"""Windows, quotas, rosters, stances, watches: what is remembered of others, and for how long."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Address
from ciruela.membership.cluster import (
    Acked,
    BaseHeard,
    Cluster,
    Completed,
    Double,
    Doubtful,
    DownloadHeard,
    Effect,
    ImageHolder,
    MemberHeard,
    NewPeer,
    PacketRefused,
    WatchHeard,
)
from ciruela.membership.members import MEMBER_S, MOST_KEYS, SILENT_S, WINDOW, PacketRefusal, ReplayWindow
from ciruela.membership.packets import Ack, BaseHash, Complete, Deleted, DownloadFact, Header, Hooked, Item, MemberFact, Packet, WatchFact
from ciruela.membership.softstate import (
    IMAGES_PER_PATH,
    MOST_KINDS,
    MOST_WATCHERS,
    PER_OWNER,
    RESULT_S,
    STANCE_S,
    WATCH_S,
    HeardResults,
    HeardWatches,
    SoftState,
)
from ciruela.model.bitfield import FULL
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.vpath import VPath
from tests.proof import shows

ME, A, B, C = (MachineId(bytes((letter,)) * 16) for letter in b"mabc")
AT_ME, AT_A, AT_B, AT_C = (Address(f"10.0.0.{number}", 24783) for number in range(4))
STRANGER = Address("192.0.2.66", 24783)
NAMES = {AT_ME: "me.example", AT_A: "a.example", AT_B: "b.example:24783", AT_C: "c.example"}
PATH = VPath.parse("/app/web/v1")
ONE, TWO = ImageId(b"1" * 32), ImageId(b"2" * 32)
EPOCH = 1000


def member(
    machine: MachineId, address: Address | None = None, stamp: int = 1, keys: tuple[str, ...] = ("app",), age_ms: int = 0
) -> MemberFact:
    """A machine with one part of keys."""
    return MemberFact(machine, None if address is None else str(address), stamp, "", 0, 1, keys, age_ms)


@shows("A31", "F22")
class WindowTests(SynchronousTestCase):
    """Replays are refused, late datagrams are not."""

    def test_against_a_set(self) -> None:
        """A recorded datagram must not count twice; a datagram that was overtaken must count once."""
        rng = random.Random(3)
        window, seen, newest = ReplayWindow(), set(), -1
        for _ in range(6000):
            seq = max(0, newest + rng.choice((1, 1, 1, 2, 40, -3, -500, -WINDOW, -WINDOW + 1, 0, -WINDOW - 1)))
            if rng.random() < 0.01:
                seq = newest + rng.randrange(WINDOW - 2, WINDOW + 3)
            expected = seq not in seen and newest - seq < WINDOW
            self.assertIs(window.fresh(seq), expected, (seq, newest))
            seen.add(seq)
            newest = max(newest, seq)

    def test_far_behind(self) -> None:
        """A forged number of the far future must not make each honest datagram after it an error, or fill the memory."""
        window = ReplayWindow()
        self.assertTrue(window.fresh((1 << 63) - 11))
        self.assertFalse(window.fresh(0))


@shows("A34", "F25")
class QuotaTests(SynchronousTestCase):
    """Bounded memory."""

    def test_an_owner_displaces_only_its_own(self) -> None:
        """A node that floods must not push out what honest nodes said (fault F25)."""
        table: SoftState[str, int] = SoftState(1.0, most=3)

        def touch(owner: str, number: int) -> list[int]:
            """The numbers of ``owner`` afterwards, or of all."""
            table.note(owner, PATH, MachineId(b"%016d" % number), number, 0.0)
            return sorted(table.at(PATH).values())

        touch("honest", 100)
        self.assertEqual([touch("rogue", number) for number in range(5)][-3:], [[0, 1, 2, 100], [1, 2, 3, 100], [2, 3, 4, 100]])
        self.assertEqual(touch("rogue", 2), [2, 3, 4, 100])
        self.assertEqual(touch("rogue", 9), [2, 4, 9, 100])
        self.assertEqual(len(table), 4)

    def test_expired(self) -> None:
        """What was repeated stays, what was not goes, and leaves nothing behind."""
        table: SoftState[str, int] = SoftState(10.0)
        for owner, machine, at_s in (("a", A, 0.0), ("a", B, 1.0), ("b", C, 1.0), ("a", A, 5.0)):
            table.note(owner, PATH, machine, 0, at_s)
        table.expire(11.0)
        self.assertEqual(len(table), 3)
        table.expire(15.0)
        self.assertEqual(list(table.all()), [(PATH, A, 0)])
        table.forget(PATH, A)
        self.assertEqual((len(table), list(table.all()), table._owned, table._paths), (0, [], {}, {}))


class ClusterCase(SynchronousTestCase):
    """A cluster memory and a few who speak to it."""

    def setUp(self) -> None:
        self.now_ms = EPOCH
        self.cluster = Cluster(ME, EPOCH, lambda: self.now_ms, "10.0.0.0:24783")
        self.cluster.configured(NAMES)
        self.seqs: dict[tuple[MachineId, int], int] = {}

    def hear(
        self, machine: MachineId, source: Address, *items: Item, now_s: float = 0.0, epoch: int = EPOCH, seq: int = -1
    ) -> list[Effect]:
        """The effects of one packet, with the next sequence number of its sender."""
        if seq < 0:
            seq = self.seqs[machine, epoch] = self.seqs.get((machine, epoch), -1) + 1
        effects = self.cluster.heard(source, Packet(Header(machine, epoch, seq), items), now_s)
        return [effect for effect in effects if not isinstance(effect, Doubtful)]

    def members(self) -> None:
        """A, B and C speak for themselves; all take ``app``."""
        for machine, address in ((A, AT_A), (B, AT_B), (C, AT_C)):
            self.hear(machine, address, member(machine))


class AdmissionTests(ClusterCase):
    """Who is listened to."""

    @shows("A30", "A32")
    def test_stranger(self) -> None:
        """Anybody could fill the memory otherwise (threats U21)."""
        self.assertEqual(self.hear(A, STRANGER, member(A)), [PacketRefused(PacketRefusal.UNKNOWN_SOURCE)])
        self.assertEqual((self.cluster.hosts("app"), self.cluster.address_of(A)), ({}, None))

    def test_new_peer_once_for_each_start(self) -> None:
        """The first words of a node that restarted must be told from its hundredth."""
        self.assertEqual(self.hear(A, AT_A), [NewPeer(AT_A, A)])
        self.assertEqual(self.hear(A, AT_A), [])
        self.assertEqual(self.hear(A, AT_A, epoch=EPOCH + 1), [NewPeer(AT_A, A)])

    @shows("A31", "F22")
    def test_replays(self) -> None:
        """A recorded datagram, of this start or an earlier one, must change nothing (threats A31)."""
        self.hear(A, AT_A, seq=5, epoch=EPOCH + 1)
        self.assertEqual(self.hear(A, AT_A, member(A), seq=5, epoch=EPOCH + 1), [PacketRefused(PacketRefusal.REPLAYED)])
        self.assertEqual(self.hear(A, AT_A, member(A), seq=9), [PacketRefused(PacketRefusal.REPLAYED)])
        self.assertEqual(self.cluster.hosts("app"), {})
        self.assertEqual(self.hear(A, AT_A, seq=4, epoch=EPOCH + 1), [])

    @shows("A31", "A32", "F22")
    def test_replay_from_another_address(self) -> None:
        """A recorded datagram must not move a machine to another node's address."""
        self.hear(A, AT_A, seq=5)
        self.assertEqual(self.hear(A, AT_B, seq=5), [PacketRefused(PacketRefusal.REPLAYED)])
        self.assertEqual(self.cluster.address_of(A), AT_A)

    def test_two_addresses_of_one_process(self) -> None:
        """A host with two addresses is no alarm; it is reached where it last spoke from."""
        self.hear(A, AT_A, seq=5)
        self.assertEqual(self.hear(A, AT_B, seq=6), [NewPeer(AT_B, A)])
        self.assertEqual(self.cluster.address_of(A), AT_B)

    def test_newer_epoch_takes_an_address(self) -> None:
        """A node that was installed anew at the same address must not be shut out until everybody restarts (threats U24)."""
        self.hear(A, AT_A, member(A))
        self.assertEqual(self.hear(B, AT_A, epoch=EPOCH), [PacketRefused(PacketRefusal.REPLAYED)])
        self.hear(B, AT_A, member(B), epoch=EPOCH + 1)
        self.assertEqual(self.cluster.hosts("app"), {B: "a.example"})
        self.assertIsNone(self.cluster.address_of(A))

    @shows("A33", "F24")
    def test_two_nodes_with_one_id(self) -> None:
        """Cloned machines with one id confuse every answer: the operator must hear of it, and the newer one counts (threats A33)."""
        self.hear(A, AT_A)
        self.assertEqual(self.hear(A, AT_B, epoch=EPOCH + 1), [Double(A, AT_B, AT_A), NewPeer(AT_B, A)])
        self.assertEqual(self.hear(A, AT_A), [Double(A, AT_A, AT_B), PacketRefused(PacketRefusal.SAME_MACHINE)])
        self.assertEqual(self.cluster.address_of(A), AT_B)

    def test_a_move_is_no_alarm(self) -> None:
        """A machine that comes back at another address after a while is not two machines."""
        self.hear(A, AT_A)
        self.assertEqual(self.hear(A, AT_B, epoch=EPOCH + 1, now_s=SILENT_S), [NewPeer(AT_B, A)])
        self.assertEqual(self.cluster.address_of(A), AT_B)

    @shows("A33", "F24")
    def test_own_echo_and_own_id_elsewhere(self) -> None:
        """The own address in peers.txt is harmless; another node with our id is an alarm."""
        self.assertEqual(self.hear(ME, AT_ME), [PacketRefused(PacketRefusal.OWN)])
        known, silent = self.cluster.roster.reachable(0)
        self.assertEqual((known, AT_ME in silent), ([], False))
        self.assertTrue(next(peer for peer in self.cluster.peers() if peer.address == AT_ME).own)
        self.assertEqual(self.hear(ME, AT_B, epoch=EPOCH - 1), [Double(ME, AT_B, AT_B), PacketRefused(PacketRefusal.SAME_MACHINE)])
        self.assertIn(AT_B, self.cluster.roster.reachable(0)[1])
        self.hear(A, AT_ME)
        self.assertIn(AT_ME, self.cluster.roster.reachable(0)[0])

    @shows("A34")
    def test_expiry(self) -> None:
        """A node that left must leave the lists that clients get."""
        self.hear(A, AT_A, member(A))
        self.cluster.expire(MEMBER_S - 1)
        self.assertEqual(self.cluster.hosts("app"), {A: "a.example"})
        self.cluster.expire(MEMBER_S)
        self.assertEqual((self.cluster.hosts("app"), self.cluster.address_of(A)), ({}, None))
        self.assertEqual(self.hear(A, AT_A, now_s=MEMBER_S, epoch=EPOCH - 5), [NewPeer(AT_A, A)])

    def test_no_longer_configured(self) -> None:
        """A node that the operator took out of peers.txt must not be contacted any more."""
        self.members()
        self.cluster.configured({AT_B: "b.example:24783"})
        self.assertEqual(self.cluster.hosts("app"), {B: "b.example:24783"})
        self.assertEqual([self.cluster.address_of(machine) for machine in (A, B, C)], [None, AT_B, None])
        self.assertEqual(self.cluster.roster.reachable(0)[0], [AT_B])
        self.assertEqual(self.hear(A, AT_A), [PacketRefused(PacketRefusal.UNKNOWN_SOURCE)])

    def test_own_address_given_away(self) -> None:
        """An address that was ours, was taken out and comes back is another node's until proved otherwise: it is probed."""
        self.hear(ME, AT_ME)
        self.cluster.configured({AT_A: "a.example"})
        self.cluster.configured(NAMES)
        self.assertIn(AT_ME, self.cluster.roster.reachable(0)[1])


class MemberTests(ClusterCase):
    """Which directories a machine takes."""

    @shows("A37", "F24")
    def test_hosts_by_configured_name(self) -> None:
        """Clients resolve these names: only what the operator wrote may stand there (threats A37)."""
        self.members()
        self.assertEqual(self.cluster.hosts("app"), {A: "a.example", B: "b.example:24783", C: "c.example"})
        self.assertEqual((self.cluster.hosts("other"), self.cluster.taking("other")), ({}, []))
        self.assertEqual(set(self.cluster.taking("app")), {AT_A, AT_B, AT_C})

    def test_hearsay(self) -> None:
        """In a big cluster most nodes are known only through others."""
        self.assertEqual(self.hear(A, AT_A, member(B, AT_B)), [NewPeer(AT_A, A), MemberHeard(B, 0)])
        self.assertEqual(self.hear(A, AT_A, member(B, AT_B)), [])
        self.assertEqual((self.cluster.hosts("app"), self.cluster.address_of(B)), ({B: "b.example:24783"}, AT_B))
        passed_on = self.cluster.roster.item(B, 0, 2.5)
        self.assertEqual(passed_on, MemberFact(B, str(AT_B), 1, "", 0, 1, ("app",), 2500))

    @shows("A32", "A37", "F24")
    def test_hearsay_only_at_configured_addresses(self) -> None:
        """One datagram must not make the cluster contact an address of the sender's choice (threats A32, F24)."""
        self.hear(A, AT_A)
        for address in (str(STRANGER), "169.254.169.254:80", "c.example", ""):
            self.assertEqual(self.hear(A, AT_A, MemberFact(B, address, 1, "", 0, 1, ("app",))), [])
        self.assertEqual(self.hear(A, AT_A, member(B)), [])
        self.assertEqual((self.cluster.hosts("app"), self.cluster.address_of(B)), ({}, None))

    def test_hearsay_against_own_words(self) -> None:
        """What a node says itself stands above what others say of it or of its address."""
        self.members()
        self.assertEqual(self.hear(A, AT_A, member(MachineId(b"x" * 16), AT_B, stamp=99)), [])
        self.hear(A, AT_A, member(B, AT_C, stamp=50, keys=("forged",)))
        self.assertEqual(self.cluster.address_of(B), AT_B)
        self.assertEqual(set(self.cluster.hosts("app")), {A, C})
        self.hear(B, AT_B, member(B, stamp=2))
        self.assertEqual(set(self.cluster.hosts("app")), {A, B, C})

    def test_hearsay_of_us_or_at_our_address(self) -> None:
        """We are never among the other hosts."""
        self.hear(ME, AT_ME)
        self.assertEqual(self.hear(A, AT_A, member(ME, AT_B), member(B, AT_ME)), [NewPeer(AT_A, A)])
        self.assertEqual(self.cluster.hosts("app"), {})

    def test_hearsay_that_turns_out_wrong(self) -> None:
        """Who speaks from an address, or that it is our own, counts more than what was said of it before."""
        self.hear(A, AT_A, member(B, AT_B), member(C, AT_ME))
        self.assertEqual([self.cluster.address_of(machine) for machine in (B, C)], [AT_B, AT_ME])
        self.hear(MachineId(b"x" * 16), AT_B)
        self.assertEqual(self.hear(A, AT_A, member(MachineId(b"y" * 16), AT_B), now_s=1), [])
        self.hear(ME, AT_ME)
        self.assertEqual([self.cluster.address_of(machine) for machine in (B, C)], [None, None])
        self.assertEqual(self.cluster.hosts("app"), {})

    def test_who_speaks_is_not_forgotten(self) -> None:
        """A node that speaks stays in the lists although the datagrams with its directories were lost for minutes."""
        self.hear(A, AT_A, member(A))
        self.hear(A, AT_A, now_s=MEMBER_S - 1)
        self.cluster.expire(MEMBER_S + 1)
        self.assertEqual(self.cluster.hosts("app"), {A: "a.example"})

    @shows("A34", "A37", "F25")
    def test_invented_machines(self) -> None:
        """A rogue peer that invents a million machines fills one place for each configured address (threats A34)."""
        self.hear(A, AT_A, member(A))
        for number in range(100):
            self.hear(A, AT_A, member(MachineId(b"%016d" % number), AT_B, stamp=number + 1, age_ms=100 - number))
        self.assertEqual(self.cluster.hosts("app"), {A: "a.example", MachineId(b"%016d" % 99): "b.example:24783"})
        self.assertEqual(self.hear(A, AT_A, member(C, AT_B, age_ms=50)), [])

    def test_newer_stamp_replaces(self) -> None:
        """A directory that a node takes no more must leave the lists, an old datagram must not bring it back."""
        self.hear(A, AT_A, member(A, stamp=5, keys=("app", "old")))
        self.hear(A, AT_A, member(A, stamp=6, keys=("app", "new")))
        self.hear(A, AT_A, member(A, stamp=5, keys=("app", "old")))
        self.hear(B, AT_B, member(A, AT_A, stamp=4, keys=("old",)))
        self.assertEqual([bool(self.cluster.hosts(key)) for key in ("app", "new", "old")], [True, True, False])

    def test_parts(self) -> None:
        """A node with more directories than fit into a datagram keeps all of them, also while it renews the list."""
        first, second = (MemberFact(A, None, 5, "", part, 2, (f"k{part}",)) for part in (0, 1))
        self.hear(A, AT_A, second)
        self.assertEqual([len(self.cluster.hosts(f"k{part}")) for part in (0, 1)], [0, 1])
        self.hear(A, AT_A, first)
        self.assertEqual([len(self.cluster.hosts(f"k{part}")) for part in (0, 1)], [1, 1])
        self.hear(A, AT_A, MemberFact(A, None, 6, "", 0, 2, ("k2",)))
        self.assertEqual([len(self.cluster.hosts(f"k{part}")) for part in (0, 1, 2)], [1, 1, 1])
        self.hear(A, AT_A, MemberFact(A, None, 6, "", 1, 2, ("k0",)))
        self.assertEqual([len(self.cluster.hosts(f"k{part}")) for part in (0, 1, 2)], [1, 0, 1])
        self.assertEqual(self.hear(A, AT_A, MemberFact(A, None, 6, "", 7, 9, ("k9",))), [])

    def test_age_counts(self) -> None:
        """Nodes that tell each other of a dead one must not keep it alive for ever."""
        self.assertEqual(self.hear(A, AT_A, member(B, AT_B, age_ms=int(MEMBER_S * 1000)))[1:], [])
        self.hear(A, AT_A, member(B, AT_B, age_ms=int(MEMBER_S * 1000) - 2000))
        self.assertIsNotNone(self.cluster.roster.item(B, 0, 1.0))
        self.assertIsNone(self.cluster.roster.item(B, 0, 2.0))
        self.cluster.expire(2.0)
        self.assertEqual(self.cluster.hosts("app"), {})

    def test_takers_are_always_up_to_date(self) -> None:
        """An upload whose answer names a node that has left, or not one that has come, would wait for nobody or miss somebody."""
        rng = random.Random(8)
        machines, addresses = (ME, A, B, C), (AT_ME, AT_A, AT_B, AT_C)
        roster, now_s = self.cluster.roster, 0.0
        epochs = dict.fromkeys(machines, EPOCH)
        for step in range(6000):
            now_s += rng.choice((0.0, 1.0, SILENT_S, MEMBER_S / 2, MEMBER_S) if step % 20 == 0 else (0.0, 0.1))
            match rng.randrange(12):
                case 0:
                    self.cluster.expire(now_s)
                case 1:
                    names = dict(rng.sample(sorted(NAMES.items(), key=str), rng.randrange(2, 5)))
                    self.cluster.configured(NAMES if rng.random() < 0.7 else names)
                case 2:
                    machine = rng.choice(machines[1:])
                    epochs[machine] += 1
                case _:
                    sender = rng.choice(machines)
                    source = addresses[machines.index(sender)] if rng.random() < 0.8 else rng.choice(addresses)
                    keys = rng.choice((("app",), ("app",), ("app", "logs"), ("logs",), ()))
                    about = member(
                        rng.choice(machines), rng.choice((None, *addresses)), rng.randrange(step // 4 + 2), keys, rng.randrange(2000)
                    )
                    self.cluster.heard(source, Packet(Header(sender, epochs[sender], step), (about,)), now_s)
            kept = {key: dict(roster.takers(key)) for key in ("app", "logs")}
            roster._takers.clear()
            self.assertEqual(kept, {key: roster.takers(key) for key in ("app", "logs")}, step)

    def test_takers_that_move_or_fall_silent(self) -> None:
        """The same, for what happens rarely: a node that others place elsewhere, and one of which nobody speaks any more."""
        self.hear(A, AT_A, member(A), member(B, AT_B))
        self.assertEqual(self.cluster.taking("app"), [AT_A, AT_B])
        self.hear(A, AT_A, member(B, AT_C, stamp=2))
        self.assertEqual(self.cluster.taking("app"), [AT_A, AT_C])
        self.hear(A, AT_A, now_s=MEMBER_S - 1)
        self.cluster.expire(MEMBER_S + 1)
        self.assertEqual(self.cluster.taking("app"), [AT_A])

    def test_kept_takers_are_bounded(self) -> None:
        """Whoever asks for one invented directory after the other must not fill the memory."""
        self.members()
        for number in range(3 * MOST_KEYS):
            self.cluster.taking(f"invented-{number}")
        self.assertLessEqual(len(self.cluster.roster._takers), MOST_KEYS)

    def test_reachable_and_silent(self) -> None:
        """Silent addresses are probed, living ones get the news."""
        self.hear(A, AT_A, member(C, AT_C, age_ms=20_000))
        self.assertEqual(self.cluster.roster.reachable(0), ([AT_C, AT_A], [AT_ME, AT_B]))
        self.assertEqual(self.cluster.roster.reachable(SILENT_S - 20), ([AT_C, AT_A], [AT_ME, AT_B, AT_C]))
        self.assertEqual(self.cluster.roster.reachable(SILENT_S)[1], list(NAMES))

    def test_peers_for_the_status_page(self) -> None:
        """An operator sees each configured address, who is there and since when it is silent."""
        self.hear(ME, AT_ME)
        self.hear(A, AT_A, MemberFact(A, None, 1, "host-a", 0, 1, ("b", "a")), now_s=1.0)
        self.cluster.expire(3.0)
        peers = {peer.address: peer for peer in self.cluster.peers()}
        self.assertEqual(list(peers), list(NAMES))
        a = peers[AT_A]
        self.assertEqual((a.name, a.machine, a.hostname, a.silent_s, a.keys, a.own), ("a.example", A, "host-a", 2.0, ("a", "b"), False))
        self.assertEqual((peers[AT_ME].machine, peers[AT_ME].own, peers[AT_B].machine, peers[AT_B].silent_s), (ME, True, None, None))
        self.assertEqual([self.cluster.hostname(machine) for machine in (A, B)], ["host-a", B.hex()])


class StanceTests(ClusterCase):
    """What nodes do with an image."""

    def test_holders(self) -> None:
        """A download asks the nodes that have something, and only at configured addresses."""
        self.hear(A, AT_A, Complete(PATH, ONE, 5))
        self.hear(B, AT_B, DownloadFact(PATH, ONE, 0b101, True, False))
        self.hear(C, AT_C, DownloadFact(PATH, ONE, None, False, True))
        self.assertEqual(
            self.cluster.holders(PATH, ONE),
            [
                ImageHolder(AT_A, A, FULL, True, False, False),
                ImageHolder(AT_B, B, 0b101, True, True, False),
                ImageHolder(AT_C, C, 0, False, False, True),
            ],
        )
        self.assertEqual((self.cluster.holders(PATH, TWO), self.cluster.holders(PATH.base, ONE)), ([], []))
        self.cluster.configured({AT_C: "c"})
        self.assertEqual([holder.machine for holder in self.cluster.holders(PATH, ONE)], [C])

    def test_progress_and_completion(self) -> None:
        """Newest words count; a packet that was overtaken does not turn a finished node into a downloading one."""
        self.hear(A, AT_A, seq=1)
        self.assertEqual(self.hear(A, AT_A, DownloadFact(PATH, ONE, 1, False, False), seq=5), [DownloadHeard(PATH, ONE, A, True)])
        self.assertEqual(self.hear(A, AT_A, DownloadFact(PATH, ONE, 1, False, False), seq=6), [DownloadHeard(PATH, ONE, A, False)])
        self.assertEqual(self.hear(A, AT_A, Complete(PATH, ONE, 5), seq=9), [Completed(PATH, ONE, A, "a.example", AT_A, True)])
        self.assertEqual(self.hear(A, AT_A, Complete(PATH, ONE, 5), seq=10), [Completed(PATH, ONE, A, "a.example", AT_A, False)])
        self.hear(A, AT_A, DownloadFact(PATH, ONE, 3, False, False), seq=8)
        self.assertEqual([holder.mask for holder in self.cluster.holders(PATH, ONE)], [FULL])
        self.assertEqual(self.cluster.completed(PATH), [Completed(PATH, ONE, A, "a.example", AT_A, False)])

    def test_replaced_image(self) -> None:
        """Who has a newer image at a path does not give the older one."""
        self.hear(A, AT_A, Complete(PATH, ONE, 5))
        self.hear(A, AT_A, DownloadFact(PATH, TWO, 0, False, False))
        self.assertEqual(len(self.cluster.holders(PATH, ONE) + self.cluster.holders(PATH, TWO)), 2)
        self.hear(A, AT_A, Complete(PATH, TWO, 6))
        self.assertEqual((self.cluster.holders(PATH, ONE), len(self.cluster.holders(PATH, TWO))), ([], 1))

    def test_deleted(self) -> None:
        """Who gave an image up is no source; a forged word about others does not exist: it counts for the sender alone (threats A36)."""
        self.hear(A, AT_A, Complete(PATH, ONE, 5), Deleted(PATH, ONE, 7))
        self.hear(B, AT_B, Complete(PATH, ONE, 5))
        self.assertEqual(self.cluster.aborted_at(PATH, ONE), {A})
        self.assertEqual([holder.machine for holder in self.cluster.holders(PATH, ONE)], [B])

    @shows("A34", "F25", "I6")
    def test_bounds(self) -> None:
        """10^6 paths from one peer must not fill the memory, nor displace another peer's words (fault F25)."""
        self.hear(B, AT_B, Complete(PATH, ONE, 5))
        for number in range(PER_OWNER + 50):
            self.hear(A, AT_A, Complete(VPath(("app", f"v{number}")), ONE, 5))
        for number in range(IMAGES_PER_PATH + 5):
            self.hear(A, AT_A, Deleted(PATH, ImageId(b"%032d" % number), 5))
        self.assertEqual(len(self.cluster._stances), PER_OWNER + 1)
        self.assertEqual(self.cluster.holders(VPath(("app", "v0")), ONE), [])
        self.assertEqual(len(self.cluster.holders(PATH, ONE)), 1)
        self.assertEqual(sum(bool(self.cluster.aborted_at(PATH, ImageId(b"%032d" % n))) for n in range(20)), IMAGES_PER_PATH)

    def test_expiry(self) -> None:
        """A node that fell silent in mid-download is no source for ever."""
        self.hear(A, AT_A, Complete(PATH, ONE, 5), now_s=1)
        self.cluster.expire(STANCE_S)
        self.assertEqual(len(self.cluster._stances), 1)
        self.cluster.expire(STANCE_S + 2)
        self.assertEqual(len(self.cluster._stances), 0)
        self.assertEqual(self.cluster.completed(PATH), [])

    def test_everything_for_the_status_page(self) -> None:
        """An operator who looks for a stuck upload sees who said what."""
        self.hear(C, AT_C)
        self.hear(A, AT_A, Complete(PATH, ONE, 5), WatchFact(PATH, C, 1))
        self.hear(B, AT_B, Deleted(PATH, TWO, 5))
        self.assertEqual(list(self.cluster.stances()), [(A, Complete(PATH, ONE, 5)), (B, Deleted(PATH, TWO, 5))])
        self.assertEqual(list(self.cluster.watches()), [(PATH, C)])

    def test_plain_effects(self) -> None:
        """Hashes and acknowledgments are passed on as they are."""
        self.hear(A, AT_A)
        self.assertEqual(
            self.hear(A, AT_A, BaseHash(PATH.base, b"h" * 32), Ack(PATH, ONE), Deleted(PATH, ONE, 1)),
            [BaseHeard(PATH.base, b"h" * 32, AT_A), Acked(PATH, ONE, A)],
        )


class WatchTests(ClusterCase):
    """Who waits for what."""

    def setUp(self) -> None:
        super().setUp()
        for machine, address in ((A, AT_A), (B, AT_B), (C, AT_C)):
            self.hear(machine, address)

    def test_newest_stamp_counts(self) -> None:
        """A watch lives as long as its origin renews it, and no datagram from before prolongs it."""
        self.assertEqual(self.hear(A, AT_A, WatchFact(PATH, B, 10)), [WatchHeard(PATH, B)])
        self.assertEqual(self.hear(A, AT_A, WatchFact(PATH, B, 10), now_s=30), [])
        self.assertEqual(self.hear(A, AT_A, WatchFact(PATH, B, 9), now_s=30), [])
        self.cluster.expire(WATCH_S - 0.5)
        self.assertEqual(self.cluster.watchers(PATH), {B})
        self.cluster.expire(WATCH_S)
        self.assertEqual(self.cluster.watchers(PATH), frozenset())
        self.cluster.expire(WATCH_S + 1)
        self.assertEqual(len(self.cluster._watches), 0)

    def test_renewal(self) -> None:
        """A client that waits for ten minutes is not forgotten after one."""
        self.hear(A, AT_A, WatchFact(PATH, B, 10))
        self.assertEqual(self.hear(A, AT_A, WatchFact(PATH, B, 11), now_s=50), [WatchHeard(PATH, B)])
        self.cluster.expire(WATCH_S + 49)
        self.assertEqual(self.cluster.watchers(PATH), {B})

    def test_age_travels(self) -> None:
        """Nodes must not keep a dead watch alive by telling it to each other."""
        self.hear(A, AT_A, WatchFact(PATH, B, 10, 20_000), now_s=5)
        self.cluster.expire(6.0004)
        self.assertEqual(self.cluster.watch_item(PATH, B), WatchFact(PATH, B, 10, 21_001))
        self.assertEqual(self.hear(A, AT_A, WatchFact(PATH, C, 10, int(WATCH_S * 1000)), now_s=7), [])
        self.cluster.expire(5 + WATCH_S - 20)
        self.assertEqual((self.cluster.watchers(PATH), self.cluster.watch_item(PATH, B)), (frozenset(), None))

    def test_own_watch_comes_back(self) -> None:
        """Our own clients are not waiting somewhere else."""
        self.assertEqual(self.hear(A, AT_A, WatchFact(PATH, ME, 10)), [])
        self.cluster.add_watchers(PATH, [ME])
        self.assertEqual(self.cluster.watchers(PATH), frozenset())

    def test_learned_from_a_base_dir(self) -> None:
        """They are told of completions, but not passed on, and give way to any stamp: two nodes must not keep them alive in turns."""
        self.hear(A, AT_A, WatchFact(PATH, B, 10), now_s=1)
        self.cluster.add_watchers(PATH, [B, C])
        self.assertEqual((self.cluster.watchers(PATH), self.cluster.stamped_watchers(PATH)), ({B, C}, {B}))
        self.assertIsNone(self.cluster.watch_item(PATH, C))
        self.cluster.expire(30)
        self.cluster.add_watchers(PATH, [B, C])
        self.cluster.expire(1 + WATCH_S)
        self.assertEqual(self.cluster.watchers(PATH), frozenset())
        self.cluster.add_watchers(PATH, [C])
        self.assertEqual(self.hear(A, AT_A, WatchFact(PATH, C, 0), now_s=62), [WatchHeard(PATH, C)])
        self.assertEqual(self.cluster.stamped_watchers(PATH), {C})

    @shows("A34", "A26", "F25", "I6")
    def test_bounds(self) -> None:
        """10^6 watches from one peer must not displace those that another peer told of."""
        self.hear(B, AT_B, WatchFact(PATH, C, 10))
        for number in range(PER_OWNER + 50):
            self.hear(A, AT_A, WatchFact(VPath(("app", f"v{number}")), C, 10))
        self.assertEqual(len(self.cluster._watches), PER_OWNER + 1)
        self.assertEqual(self.cluster.watchers(PATH), {C})
        self.assertEqual(self.cluster.watchers(VPath(("app", "v0"))), frozenset())
        self.assertEqual(self.cluster.watchers(VPath(("app", f"v{PER_OWNER}"))), {C})

    @shows("S6")
    def test_watchers_of_one_path(self) -> None:
        """However many nodes a cluster has, one path does not fill the memory."""
        watches = HeardWatches()
        for number in range(MOST_WATCHERS + 5):
            watches.heard(WatchFact(PATH, MachineId(b"%016d" % number), 1), AT_A, 0.0)
        self.assertEqual(len(watches.of(PATH, 0.0)), MOST_WATCHERS)
        first = MachineId(b"%016d" % 0)
        self.assertTrue(watches.heard(WatchFact(PATH, first, 2), AT_A, 1.0), "one that is known is renewed")
        self.assertEqual((watches.waits(PATH, first, 60.5), watches.waits(PATH, first, 61.0)), (True, False))

    def test_renewed_by_another(self) -> None:
        """A watch belongs to who told its newest stamp: a flood from who told an older one does not displace it."""
        self.hear(A, AT_A, WatchFact(PATH, C, 10))
        self.hear(B, AT_B, WatchFact(PATH, C, 11))
        for number in range(PER_OWNER):
            self.hear(A, AT_A, WatchFact(VPath(("app", f"v{number}")), C, 10))
        self.assertEqual(self.cluster.watchers(PATH), {C})
        self.assertEqual(self.cluster.watchers(VPath(("app", "v0"))), {C})


class ResultTests(SynchronousTestCase):
    """What is known of hooks of others."""

    def hooked(self, timestamp_ms: int = 5, ok: bool = False, kind: int = 1, vpath: VPath = PATH) -> Hooked:
        return Hooked(vpath, ONE, timestamp_ms, kind, ok, "")

    def test_newest_counts(self) -> None:
        """What was said of an older release would hide how the hook of the new one ended."""
        known = HeardResults()
        self.assertTrue(known.heard(A, AT_A, self.hooked(), 0.0))
        self.assertFalse(known.heard(A, AT_A, self.hooked(), 0.0))
        self.assertTrue(known.heard(A, AT_A, self.hooked(6, True), 0.0))
        self.assertFalse(known.heard(A, AT_A, self.hooked(), 0.0))
        self.assertEqual(known.of(PATH), [(A, self.hooked(6, True))])

    @shows("A34", "F25")
    def test_bounds(self) -> None:
        """One peer would fill the memory, or displace what others said."""
        known = HeardResults()
        known.heard(B, AT_B, self.hooked(), 0.0)
        for number in range(PER_OWNER + 5):
            known.heard(A, AT_A, self.hooked(vpath=VPath(("app", f"v{number}"))), 0.0)
        self.assertEqual((len(known), known.of(VPath(("app", "v0")))), (PER_OWNER + 1, []))
        for kind in range(1, 64):
            known.heard(B, AT_B, self.hooked(kind=kind), 0.0)
        self.assertEqual(len(known.of(PATH)), MOST_KINDS)
        known.expire(RESULT_S + 1)
        self.assertEqual((len(known), known.of(PATH)), (0, []))
