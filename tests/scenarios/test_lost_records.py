"""Records and directories that one node of a cluster lost: it heals, or says that it does not have what is asked for (K3, K5.5)."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.defer import fail, succeed

from ciruela.cleanup.service import Safeguards
from ciruela.index.parse import parse
from ciruela.interfaces import Pending
from ciruela.keys.signed import removal_bytes, signed_check_bytes
from ciruela.model.errors import DiskError
from ciruela.model.upload import Command
from ciruela.model.versions import SigEntry, State
from ciruela.model.vpath import VPath
from ciruela.proto.messages import CheckData, CheckUpload, GetPathState, PathStateData, RemoveDir, UploadAck
from tests.measure import UnmeasuredTestCase
from tests.proof import shows
from tests.scenarios.cluster import APP, KEY, LOGS, Client, Cluster, Image

V1 = "/app/v1"
PATH = VPath.parse(V1)
SITE = Image(1, {"big": 2_000_000, "small": 10})
OTHER = Image(2, {"other": 100_000})


class _Links:
    """Stands in for the links of a host: what they lead to, or why nobody can tell."""

    def __init__(self):
        self.leads = None
        self.broken = ""

    def follow(self, config):
        return fail(DiskError(self.broken)) if self.broken else succeed(frozenset({("v1",)} if self.leads else ()))

    def leading(self, config, vpath):
        return fail(DiskError(self.broken)) if self.broken else succeed(self.leads if vpath == PATH else None)


class Lossy(Cluster):
    """A cluster whose nodes have protected links."""

    def __init__(self, count):
        self.links = {number: _Links() for number in range(1, count + 1)}
        protected = replace(APP, protect=("/srv/current",))
        super().__init__(count, configs={"app": protected, "logs": LOGS})

    def safeguards(self, number):
        return Safeguards(self.clock.seconds, None, lambda: succeed(self.configs(number)), lambda: 0, self.links[number])


class LossTests(UnmeasuredTestCase):
    """Three nodes have an image, then something is lost on the third one."""

    def setUp(self):
        self.cluster = Lossy(3)
        self.cluster.run(10.0)
        client = Client(self.cluster, SITE)
        client.upload(V1, self.cluster.addresses(1, 2))
        self.wait(lambda: len(self.cluster.holders(V1, SITE)) == 3)
        client.leave()
        self.cluster.run(5.0)
        self.disk = self.cluster.disks[3]

    def wait(self, condition, seconds=90.0):
        self.cluster.run(seconds, until=condition)
        self.assertTrue(condition())

    def ask(self, request, number):
        client = Client(self.cluster, SITE)
        client.ask(request, self.cluster.addresses(number))
        self.cluster.run(15.0, until=lambda: client.answers)
        return client.answers[0][1]

    def removal(self, image=SITE, *, force=False):
        stamp = self.cluster.now_ms()
        return RemoveDir(V1, image.id, stamp, (KEY.sign(removal_bytes(V1, image.id, stamp)).signature,), force)

    def replace(self, image, *numbers):
        client = Client(self.cluster, image)
        client.upload(V1, self.cluster.addresses(*numbers), replace=True)
        self.cluster.run(20.0)
        return client

    @shows("K3.1")
    def test_newer_version_while_the_record_was_damaged(self):
        """A node that lost a record while it was down would never take another version again."""
        for damaged in (True, False):
            self.cluster.kill(3)
            self.disk.lose_record(PATH, damaged=damaged)
            image = Image(10 + damaged, {"new": 50_000})
            client = self.replace(image, 1, 2)
            self.cluster.start(3)
            self.wait(lambda image=image: self.cluster.holders(V1, image) == {1, 2, 3})
            client.leave()
        self.assertEqual([one.path for one in self.disk.set_aside()], [V1, V1])

    @shows("K3.1")
    def test_whole_db_lost(self):
        """A node whose db directory is gone would be stuck on what still stands in its directories."""
        self.cluster.kill(3)
        self.disk.lose_record(PATH)
        self.disk.indexes.clear()
        self.disk.buried.clear()
        self.cluster.start(3)
        self.wait(lambda: self.cluster.holders(V1, SITE) == {1, 2, 3})
        self.assertEqual(list(self.disk.set_aside()), [])

    @shows("K3.2", "I7")
    def test_removal_where_the_record_is_lost(self):
        """``remove --require all`` would end well while the directory is still visible on one node, and again after its restart."""
        node = self.cluster.nodes[3]
        self.disk.lose_record(PATH)
        node.ledger.vanish(PATH, None)
        answer = self.ask(self.removal(), 3)
        self.assertTrue(answer.accepted, answer)
        self.assertNotIn(PATH, self.disk.foreign)
        self.wait(lambda: not self.cluster.holders(V1, SITE))
        self.cluster.kill(3)
        self.cluster.start(3)
        self.cluster.run(60.0)
        self.assertEqual(self.cluster.holders(V1, SITE), set())
        self.assertNotIn(PATH, self.disk.images)

    @shows("K3.2", "I7")
    def test_removal_said_again(self):
        """A tombstone that came before, from an earlier version, would make every later removal a lie."""
        node = self.cluster.nodes[3]
        request = self.removal()
        self.assertTrue(self.ask(request, 1).accepted)
        self.wait(lambda: not self.cluster.holders(V1, SITE))
        self.disk.foreign[PATH] = self.disk.indexes[SITE.id][1]
        self.assertTrue(self.ask(request, 3).accepted)
        self.assertNotIn(PATH, self.disk.foreign)
        self.assertIsNone(node.ledger.committed(PATH))

    @shows("K3.2", "I7")
    def test_removal_where_other_content_is(self):
        """A removal would be called done, or delete what somebody else put there."""
        node = self.cluster.nodes[3]
        self.disk.lose_record(PATH)
        self.disk.foreign[PATH] = None
        node.ledger.vanish(PATH, None)
        self.disk.indexes.clear()
        self.cluster.hub.partition([self.cluster.addresses(1, 2), self.cluster.addresses(3)])
        answer = self.ask(self.removal(), 3)
        self.assertEqual((answer.accepted, answer.reject_reason), (False, "replace_doesnt_match_index"))
        self.assertIn("other content is there", answer.detail)
        self.cluster.hub.heal()
        client = Client(self.cluster, SITE)
        client.ask(self.removal(), self.cluster.addresses(1))
        self.cluster.run(60.0)
        self.assertEqual({machine for _, _, machine in client.removed}, {self.cluster.machine(1), self.cluster.machine(2)})
        self.assertIn(PATH, self.disk.foreign)
        state = self.ask(GetPathState(V1), 3)
        self.assertEqual(state.refused, (SITE.id, "replace_doesnt_match_index"))

    @shows("K3.5", "I7")
    def test_removed_by_hand(self):
        """A node would go on to say that it has an image that somebody deleted, and never fetch it again."""
        self.disk.lose(PATH)
        self.wait(lambda: PATH in self.disk.images and self.cluster.holders(V1, SITE) == {1, 2, 3}, 90.0)
        self.assertEqual(self.cluster.nodes[3].presence.lost, 1)
        self.assertTrue(self.cluster.agree())

    @shows("K3.5", "I7")
    def test_removed_by_hand_and_asked_for(self):
        """``status`` and a dry run would say that all is well in the minute before the node looks."""
        stamp = self.cluster.now_ms()
        check = CheckUpload(V1, False, SITE.id, None, stamp, (KEY.sign(signed_check_bytes(V1, SITE.id, stamp)).signature,))
        self.cluster.hub.partition([self.cluster.addresses(1, 2), self.cluster.addresses(3)])
        self.disk.lose(PATH)
        told = self.ask(check, 3)
        self.assertIsInstance(told, CheckData)
        self.assertEqual((told.there, told.coming), (None, SITE.id))
        state = self.ask(GetPathState(V1), 3)
        self.assertIsInstance(state, PathStateData)
        self.assertIsNone(state.committed)
        self.cluster.hub.heal()
        self.wait(lambda: PATH in self.disk.images and 3 in self.cluster.holders(V1, SITE))

    @shows("K3.3", "I5")
    def test_record_that_is_not_believed(self):
        """A record of an earlier version that turns out to be bent while the node runs would count until its next restart."""
        node = self.cluster.nodes[3]
        self.disk.lose_record(PATH, damaged=True)
        bent = [PATH]
        self.disk.prove = lambda most: succeed([bent.pop()] if bent else [])
        self.wait(lambda: not bent)
        self.assertEqual(self.cluster.holders(V1, SITE), {1, 2})
        self.wait(lambda: self.cluster.holders(V1, SITE) == {1, 2, 3}, 400.0)
        self.assertIn(PATH, self.disk.states)
        self.assertEqual((node.presence.lost, list(self.disk.set_aside())), (0, []))

    @shows("K3.5", "A40")
    def test_disk_that_is_not_mounted(self):
        """Images would be fetched onto the wrong disk when the right one is not mounted, or be forgotten for good."""
        node = self.cluster.nodes[3]
        self.disk.unmounted.add("app")
        self.cluster.run(200.0)
        self.assertEqual(list(node.presence.unseen), ["app"])
        self.assertEqual((node.presence.lost, self.cluster.holders(V1, SITE)), (0, {1, 2, 3}))
        self.disk.unmounted.clear()
        self.cluster.run(130.0)
        self.assertEqual(list(node.presence.unseen), [])
        self.assertEqual((node.presence.lost, self.cluster.holders(V1, SITE)), (0, {1, 2, 3}))

    @shows("K5.5", "I9")
    def test_protected_after_a_removal(self):
        """What an operator put back by hand, and lets a link lead to, would go when the removal from before is said again."""
        removal = self.removal()
        self.assertTrue(self.ask(removal, 1).accepted)
        self.wait(lambda: not self.cluster.holders(V1, SITE))
        disk = self.cluster.disks[1]
        disk.foreign[PATH] = parse(SITE.data, SITE.id)
        self.cluster.links[1].leads = "/srv/current"
        answer = self.ask(removal, 1)
        self.assertEqual((answer.accepted, answer.reject_reason), (False, "protected"))
        self.assertIn(PATH, disk.foreign)
        self.cluster.links[1].leads = None
        self.assertTrue(self.ask(removal, 1).accepted)
        self.assertNotIn(PATH, disk.foreign)

    @shows("K5.5", "I9")
    def test_protected_while_an_index_is_fetched(self):
        """A link that comes to lead to it while other nodes are asked for its index would not keep what stands there."""
        node = self.cluster.nodes[3]
        self.disk.lose_record(PATH)
        node.ledger.vanish(PATH, None)
        self.disk.indexes.clear()

        def repair_index(_vpath, _image):
            self.cluster.links[3].leads = "/srv/current"
            return succeed(parse(SITE.data, SITE.id))

        self.patch(node.downloads, "repair_index", repair_index)
        answer = self.ask(self.removal(), 3)
        self.assertEqual((answer.accepted, answer.reject_reason), (False, "protected"))
        self.assertIn(PATH, self.disk.foreign)
        self.cluster.links[3].leads = None
        self.successResultOf(self.disk.write_index(SITE.id, SITE.data))
        self.assertTrue(self.ask(self.removal(), 3).accepted)
        self.assertNotIn(PATH, self.disk.foreign)

    @shows("I5", "I9")
    def test_removal_over_a_journal_that_stayed(self):
        """An upload whose journal could not be deleted when it was given up would keep its path from every removal until a restart."""
        self.disk.pendings[PATH] = Pending(PATH, State(OTHER.id, (SigEntry(1, bytes(64)),)), Command.APPEND)
        answer = self.ask(self.removal(), 3)
        self.assertIsInstance(answer, UploadAck)
        self.assertTrue(answer.accepted)
        self.assertNotIn(PATH, self.disk.states)

    @shows("K5.5", "I9")
    def test_protected(self):
        """A removal would take the release that the link ``current`` leads to."""
        self.cluster.links[1].leads = self.cluster.links[3].leads = "/srv/current"
        answer = self.ask(self.removal(), 1)
        self.assertEqual((answer.accepted, answer.reject_reason), (False, "protected"))
        self.assertIn("/srv/current", answer.detail)
        self.assertTrue(self.ask(self.removal(), 2).accepted)
        self.cluster.run(60.0)
        self.assertEqual(self.cluster.holders(V1, SITE), {1, 3})
        self.assertEqual(self.ask(GetPathState(V1), 3).refused, (SITE.id, "protected"))
        self.assertTrue(self.ask(self.removal(force=True), 1).accepted)
        self.wait(lambda: not self.cluster.holders(V1, SITE), 400.0)

    @shows("K5.5")
    def test_link_moves_on(self):
        """What was removed elsewhere would stay for ever where a link led to it at that moment."""
        self.cluster.links[3].leads = "/srv/current"
        self.assertTrue(self.ask(self.removal(), 1).accepted)
        self.cluster.run(30.0)
        self.assertEqual(self.cluster.holders(V1, SITE), {3})
        self.cluster.links[3].leads = None
        self.wait(lambda: not self.cluster.holders(V1, SITE), 400.0)

    @shows("W2", "K5.5")
    def test_link_that_does_not_exist(self):
        """A link with a mistake in its name would end cleanup without a word, and protect nothing."""
        node = self.cluster.nodes[1]
        self.cluster.links[1].broken = "the protected link /srv/curent: No such file or directory"
        self.cluster.run(120.0)
        self.assertEqual(list(node.cleanup.doubtful), ["app"])
        answer = self.ask(self.removal(), 1)
        self.assertEqual((answer.accepted, answer.reject_reason), (False, "protected"))
        self.assertIn("/srv/curent", answer.detail)
        self.cluster.links[1].broken = ""
        self.cluster.run(120.0)
        self.assertEqual(list(node.cleanup.doubtful), [])
        self.assertIsInstance(self.ask(self.removal(), 1), UploadAck)
