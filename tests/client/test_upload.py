"""The old command, as scripts call it."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred, succeed

from ciruela.client.commands import upload
from ciruela.client.contacts import RunContext
from ciruela.client.options.signing import Keys
from ciruela.client.options.sync import Mode, UploadOptions, UploadTarget
from ciruela.client.options.table import parse
from ciruela.interfaces import Address
from ciruela.model.vpath import VPath
from ciruela.proto.messages import AppendDir, ReplaceDir
from tests.client.nodes import FakeNode, address
from tests.client.test_commands import CommandCase
from tests.client.test_options import Parsing
from tests.proof import shows


class Upload(CommandCase):
    def upload(self, *words: str) -> Deferred[int]:
        options = parse(["upload", "-i", str(self.top / "key"), *words])
        assert isinstance(options, UploadOptions)

        def resolve(name: str) -> Deferred[list[Address]]:
            return succeed([address(int(name.removeprefix("n")))])

        world = RunContext(self.clock, self.around.rng, lambda where, counterpart: self.hub.link(counterpart, where), resolve)
        running = Deferred.fromCoroutine(upload(options, self.around, world))
        self.pass_()
        return running

    def test_modes(self) -> None:
        """Scripts would append where they mean to replace, or the other way round."""
        for words, kind, advice in (
            ((), AppendDir, "--append"),
            (("--replace",), ReplaceDir, "--replace"),
            (("-x",), AppendDir, "--append-weak"),
        ):
            node = FakeNode(self.hub, 1)
            running = self.upload("-d", str(self.source), *words, "n1:/apps/v1")
            (request,) = node.requests
            self.assertIsInstance(request, kind)
            assert isinstance(request, AppendDir | ReplaceDir)
            node.tell_received("/apps/v1", request.image, 1)
            self.pass_()
            self.assertEqual(self.successResultOf(running), 0)
            self.assertIn(f"ciruela upload is deprecated; use: ciruela sync {advice} {self.source}:/apps/v1 n1", self.err.text)

    def test_paths_and_hosts(self) -> None:
        """Each host would get what is meant for another one."""
        one, two = FakeNode(self.hub, 1), FakeNode(self.hub, 2)
        self.upload("-d", str(self.source), "n1:/apps/v1", "n1:/apps/v2", "n2:/cfg/x")
        for node, paths in ((one, {"/apps/v1", "/apps/v2"}), (two, {"/cfg/x"})):
            self.assertEqual({request.path for request in node.requests if isinstance(request, AppendDir)}, paths)

    def test_some_failed(self) -> None:
        """A script would go on although a target was refused; -x takes other content for success."""
        for words, code in (((), 1), (("-x",), 0)):
            FakeNode(self.hub, 1).reason = "already_exists"
            self.assertEqual(self.successResultOf(self.upload("-d", str(self.source), *words, "n1:/apps/v1")), code)

    @shows("K2.1")
    def test_refused_by_one(self) -> None:
        """The old command would displace what one of several hosts has, through another one of the same cluster that lacks it."""
        one = FakeNode(self.hub, 1)
        one.asked = "already_exists"
        self.assertEqual(self.successResultOf(self.upload("-d", str(self.source), "n1:/apps/v1")), 1)
        self.assertEqual(one.requests, [])
        self.assertIn("nothing was sent", self.out.text)

    @shows("W1")
    def test_empty(self) -> None:
        """The old command would empty a live directory, and call that done."""
        (self.top / "empty").mkdir()
        node = FakeNode(self.hub, 1)
        self.assertEqual(self.successResultOf(self.upload("-d", str(self.top / "empty"), "--replace", "n1:/cfg/x")), 2)
        self.assertEqual(node.requests, [])
        self.assertIn("ciruela sync --allow-empty", self.err.text)

    def test_fatal(self) -> None:
        """What keeps everything from being sent would look like a refusal."""
        node = FakeNode(self.hub, 1)
        self.assertEqual(self.successResultOf(self.upload("-d", str(self.top / "nothing"), "n1:/apps/v1")), 2)
        self.assertIn("nothing cannot be read", self.err.text)
        self.assertEqual(self.successResultOf(self.upload("-k", "NO_SUCH", "-d", str(self.source), "n1:/apps/v1")), 2)
        self.assertEqual(node.requests, [])

    def test_interrupted(self) -> None:
        """Ctrl-C would not tell what has been promised, or leave a connection."""
        node = FakeNode(self.hub, 1)
        running = self.upload("-d", str(self.source), "n1:/apps/v1")
        running.cancel()
        self.failureResultOf(running, CancelledError)
        self.assertIn("accepted by n1", self.err.text)
        self.pass_()
        self.assertEqual((node.links, self.clock.getDelayedCalls()), ([], []))


class UploadLine(Parsing):
    def test_line(self) -> None:
        """The lines of old scripts would be read otherwise than they were."""
        found = parse(["upload", "-d", "dist", "-i", "key", "h:24000:/apps/v1", "[::1]:5:/a:/b", "h:24000:/apps/v1"])
        assert isinstance(found, UploadOptions)
        self.assertEqual((found.source, found.mode, found.keys.files), ("dist", Mode.APPEND, ("key",)))
        self.assertEqual(found.targets, (UploadTarget("h:24000", VPath(("apps", "v1"))), UploadTarget("[::1]:5", VPath(("a:", "b")))))
        old = parse(["upload", "-i", "key1", "key2", "-d", "dist", "h:/apps/v1", "-k", "VAR1", "VAR2", "g:/apps/v1", "--", "f:/apps/v1"])
        assert isinstance(old, UploadOptions)
        self.assertEqual(old.keys, Keys(("key1", "key2"), ("VAR1", "VAR2")))
        self.assertEqual([target.name for target in old.targets], ["h", "f", "g"])
        for line, words in (
            ("upload -d x", "no HOST:/VPATH"),
            ("upload -d x h:/a/b -i", "-i/--identity"),
            ("upload h:/a/b", "-d/--directory"),
            ("upload -d x /a/b", "is not HOST:/VPATH"),
            ("upload -d x h:/a//b", "two slashes in a row"),
            ("upload -d x h!:/a/b", "not a host name"),
            ("upload -d x --replace -x h:/a/b", "do not go together"),
        ):
            self.assertIn(words, self.refused(line, whole=True))
