"""Damage in whole clusters: found, mended from the others, and never passed on."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ciruela.daemon.status import NodeStatus
from ciruela.index.digest import HashKind
from ciruela.interfaces import Address
from ciruela.model.errors import RemoteError
from ciruela.model.vpath import VPath
from ciruela.proto.messages import BlockData, BlockHint, GetBlock
from tests.proof import shows
from tests.scenarios.cluster import Client, Cluster, Image, accepted

V1 = "/app/v1"
WHERE = VPath.parse(V1)
LARGE = Image(21, {"large": 6_000_000, **{f"f{number}": 40_000 for number in range(30)}})
OTHER = Image(22, {"large": 500_000})


class HealTests(SynchronousTestCase):
    """Three nodes have an image; the disk of the first one goes bad."""

    def setUp(self) -> None:
        self.cluster = Cluster(3)
        self.cluster.run(5.0)
        self.client = Client(self.cluster, LARGE)
        self.client.upload(V1, self.cluster.addresses(1, 2, 3))
        self.cluster.run(60.0, until=lambda: len(self.cluster.holders(V1, LARGE)) == 3)
        self.client.leave()
        self.cluster.run(10.0)
        self.disk = self.cluster.disks[1]
        self.hashes = {number: self.cluster.nodes[number].ledger.base_hash(WHERE.base) for number in (1, 2, 3)}

    def rot(self, every: int) -> int:
        """Every so many blocks of node 1 cannot be read back."""
        self.disk.rotten.update(list(LARGE.blocks)[::every])
        return len(self.disk.rotten)

    def ask(self, block: bytes) -> object:
        """Ask node 1 for a block, as another node does."""
        answers: list[object] = []
        hint = BlockHint(V1, "/", 0)
        self.cluster.hub.link(Client(self.cluster, OTHER), self.cluster.address(1), Address("10.9.9.9", 1)).addCallback(
            lambda link: link.ask(GetBlock(block, hint)).addBoth(answers.append)
        )
        self.cluster.run(5.0, until=lambda: bool(answers))
        return answers[0]

    def scrub(self, number: int = 1):
        return self.cluster.nodes[number].scrub

    def healed(self, seconds: float = 60.0) -> None:
        self.cluster.run(seconds, until=lambda: self.scrub().healed == 1)
        self.assertEqual((self.scrub().healed, self.scrub().ill, self.disk.rotten), (1, {}, set()))
        self.assertEqual(self.disk.staged, {})
        self.assertEqual(self.cluster.nodes[1].ledger.base_hash(WHERE.base), self.hashes[1])

    @shows("A10", "F51")
    def test_found_by_a_request(self) -> None:
        """A bad block is not given away; the asker goes elsewhere, and a moment later this node has it again."""
        self.rot(100)
        bad = next(iter(self.disk.rotten))
        received = self.cluster.nodes[1].downloads.totals.received_bytes
        failure = self.ask(bad)
        self.assertTrue(failure.check(RemoteError))  # type: ignore[attr-defined]
        self.healed()
        self.assertEqual(self.ask(bad), BlockData(LARGE.blocks[bad]))
        fetched = self.cluster.nodes[1].downloads.totals.received_bytes - received
        self.assertGreater(fetched, 0)
        self.assertLess(fetched, 6_000_000 + 20 * 40_000, "whole files that are good were fetched as well")

    @shows("F51")
    def test_found_by_the_scrub(self) -> None:
        """What nobody asks for rots as well: one cycle finds it."""
        self.rot(100)
        self.healed(700.0)

    @shows("F51")
    def test_newcomer(self) -> None:
        """A new node gets the image from the one that is damaged: it must end with the true bytes, and the damaged one must heal."""
        self.rot(7)
        self.cluster.kill(2)
        self.cluster.start(4)
        self.cluster.run(120.0, until=lambda: 4 in self.cluster.holders(V1, LARGE) and not self.disk.rotten)
        self.assertIn(4, self.cluster.holders(V1, LARGE))
        for block, data in self.cluster.disks[4].blocks.items():
            self.assertEqual(HashKind.BLAKE2B.hash(data), block)
        self.assertEqual((self.disk.rotten, self.cluster.nodes[4].downloads.totals.bad_blocks), (set(), 0))

    @shows("A10")
    def test_image_is_gone(self) -> None:
        """A directory that somebody deleted comes back without a restart."""
        self.disk.lose(WHERE)
        self.ask(next(iter(LARGE.blocks)))
        self.cluster.run(60.0, until=lambda: WHERE in self.disk.images)
        self.healed()

    @shows("A10")
    def test_index_is_gone(self) -> None:
        """Without its index an image can be neither checked nor served after the next start."""
        del self.disk.indexes[LARGE.id]
        self.cluster.run(700.0, until=lambda: LARGE.id in self.disk.indexes)
        self.assertEqual(self.disk.indexes[LARGE.id][0], LARGE.data)
        self.cluster.run(5.0)
        self.assertEqual((self.scrub().ill, self.scrub().healed), ({}, 0))

    @shows("A10")
    def test_alone(self) -> None:
        """Nobody has it: the damaged copy stays, serves what is good, and the operator is told; it heals when somebody comes."""
        for number in (2, 3):
            self.cluster.kill(number)
        self.rot(100)
        bad = next(iter(self.disk.rotten))
        good = next(block for block in LARGE.blocks if block not in self.disk.rotten)
        self.ask(bad)
        self.cluster.run(600.0, until=lambda: self.scrub().failed > 0)
        self.assertEqual(self.scrub().failed, 1)
        self.assertIn(WHERE, self.disk.images)
        self.assertEqual(self.disk.states[WHERE].image, LARGE.id)
        self.assertEqual(self.ask(good), BlockData(LARGE.blocks[good]))
        self.assertEqual(self.cluster.nodes[1].ledger.base_hash(WHERE.base), self.hashes[1])
        page = NodeStatus(self.cluster.nodes[1], list).status()
        assert isinstance(page, dict)
        self.assertEqual(page["scrub"]["damaged"][V1]["failed"], True)  # type: ignore[index,call-overload]
        self.assertEqual(self.cluster.nodes[1].ledger.abandoned(), [])
        self.cluster.start(2)
        self.healed(900.0)

    @shows("A10")
    def test_newer_upload(self) -> None:
        """A heal that nobody can help must not keep a new version out, nor undo it later."""
        for number in (2, 3):
            self.cluster.kill(number)
        self.rot(100)
        self.ask(next(iter(self.disk.rotten)))
        self.cluster.run(20.0)
        self.assertTrue(self.scrub().ill[WHERE].mending)
        client = Client(self.cluster, OTHER)
        client.upload(V1, self.cluster.addresses(1), replace=True)
        self.cluster.run(60.0, until=lambda: bool(client.machines(V1)))
        self.assertTrue(accepted(client), client.answers)
        self.assertEqual(self.cluster.holders(V1, OTHER), {1})
        self.cluster.run(30.0)
        self.assertEqual((self.scrub().ill, self.disk.staged), ({}, {}))
        for number in (2, 3):
            self.cluster.start(number)
        self.cluster.run(60.0, until=lambda: len(self.cluster.holders(V1, OTHER)) == 3)
        self.assertEqual(self.cluster.holders(V1, OTHER), {1, 2, 3})

    def test_same_upload(self) -> None:
        """A client that asks for the very image is told that it is there, and neither waits nor ends the heal."""
        for number in (2, 3):
            self.cluster.kill(number)
        self.rot(100)
        self.ask(next(iter(self.disk.rotten)))
        self.cluster.run(5.0)
        client = Client(self.cluster, LARGE)
        client.upload(V1, self.cluster.addresses(1), replace=True)
        self.cluster.run(10.0, until=lambda: bool(client.machines(V1)))
        self.assertTrue(accepted(client), client.answers)
        self.assertIn(self.cluster.machine(1), client.machines(V1))
        self.assertEqual(client.aborted, [])
        ledger = self.cluster.nodes[1].ledger
        self.assertNotEqual(ledger.base_hash(WHERE.base), self.hashes[1], "signed again, it is a newer version")
        self.hashes[1] = ledger.base_hash(WHERE.base)
        self.healed()
        self.assertEqual(self.disk.states[WHERE], ledger.committed(WHERE))
        self.assertGreater(len(client.given), 0, "the client has what is missing, and was not asked")

    @shows("A10")
    def test_another_copy_here(self) -> None:
        """The same image stands at a second path on this node: what is lost at the first one need not come from anywhere else."""
        client = Client(self.cluster, LARGE)
        client.upload("/app/v2", self.cluster.addresses(1))
        self.cluster.run(30.0, until=lambda: 1 in self.cluster.holders("/app/v2", LARGE))
        client.leave()
        for number in (2, 3):
            self.cluster.kill(number)
        self.hashes[1] = self.cluster.nodes[1].ledger.base_hash(WHERE.base)
        self.disk.lose(WHERE)
        self.ask(next(iter(LARGE.blocks)))
        self.healed()

    def test_gone_and_uploaded_again(self) -> None:
        """A new upload of an image whose directory is gone takes the place of its heal, and is not robbed of what it has fetched."""
        for number in (2, 3):
            self.cluster.kill(number)
        self.disk.lose(WHERE)
        self.ask(next(iter(LARGE.blocks)))
        self.cluster.run(5.0)
        self.assertTrue(self.scrub().ill[WHERE].mending)
        client = Client(self.cluster, LARGE)
        client.serving = False
        client.upload(V1, self.cluster.addresses(1), replace=True)
        self.cluster.run(3.0)
        self.assertTrue(accepted(client), client.answers)
        self.assertIn((WHERE, LARGE.id), self.disk.staged)
        client.serving = True
        self.cluster.run(60.0, until=lambda: WHERE in self.disk.images)
        self.cluster.run(10.0)
        self.assertEqual((self.disk.staged, self.scrub().ill, client.aborted), ({}, {}, []))

    def test_stopped_while_an_index_is_fetched(self) -> None:
        """A daemon that ends leaves nothing behind that goes on asking."""
        for number in (2, 3):
            self.cluster.kill(number)
        del self.disk.indexes[LARGE.id]
        self.cluster.run(700.0, until=lambda: WHERE in self.scrub().ill)
        self.cluster.run(2.0)
        self.assertTrue(self.scrub().ill[WHERE].mending)
        self.cluster.kill(1)
        self.assertEqual([call for call in self.cluster.clock.getDelayedCalls() if "IndexFetch" in str(call.func)], [])

    def test_killed_while_it_heals(self) -> None:
        """After a kill the image is what it was, nothing is left over, and it is found again."""
        for number in (2, 3):
            self.cluster.kill(number)
        self.rot(100)
        self.ask(next(iter(self.disk.rotten)))
        self.cluster.run(5.0)
        self.assertTrue(self.disk.staged)
        self.cluster.kill(1)
        for number in (1, 2, 3):
            self.cluster.start(number)
        self.assertEqual((self.disk.staged, self.disk.pendings), ({}, {}))
        self.assertEqual(self.cluster.holders(V1, LARGE), {1, 2, 3})
        self.healed(700.0)
