"""``ciruela sync --dry-run`` from end to end: real files and keys, memory links."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed

from ciruela.client.report import Report
from ciruela.interfaces import Connection
from ciruela.keys.public import verify
from ciruela.keys.signed import signed_check_bytes
from ciruela.model.errors import SLOW_DOWN, Busy, RemoteError
from ciruela.model.ids import ImageId
from ciruela.proto.messages import BaseDirData, CheckData, CheckUpload, GetBaseDir, GetPathState, Notification, Request, Response
from tests.client.nodes import FakeNode, machine
from tests.client.test_commands import NOW_MS, OLD, CommandCase
from tests.proof import shows


class CheckNode(FakeNode):
    """A node that answers questions; what else it is asked or told is a mistake. ``there`` is what stands at the path."""

    there: ImageId | None = None
    detail = ""
    mute = False

    def requested(self, link: Connection, request: Request) -> Deferred[Response]:
        self.requests.append(request)
        match request:
            case CheckUpload():
                if self.silent:
                    return Deferred()
                accepted = self.reason is None
                host = f"n{self.number}"
                found = CheckData(accepted, self.reason, self.detail, self.there, None, 1 << 33, machine(self.number), host, self.hosts)
                return succeed(found)
            case GetPathState() if self.mute:
                return fail(Busy(SLOW_DOWN))
            case GetPathState():
                return fail(RemoteError("'GetPathState' is not known here"))  # as an older node
            case GetBaseDir():
                return succeed(BaseDirData(bytes(32), bytes(32), {}))
        raise AssertionError(request)

    def answered(self, link: object, request: object, given: bool) -> None:
        """Nothing follows."""

    def notified(self, link: Connection, notification: Notification) -> None:
        raise AssertionError(notification)


class DryRun(CommandCase):
    def checks(self, node: CheckNode) -> list[CheckUpload]:
        return [request for request in node.requests if isinstance(request, CheckUpload)]

    @shows("I7", "I4")
    def test_story(self) -> None:
        """The directory is indexed, every node is asked, nothing is published, and the end is what would become of it."""
        nodes = [CheckNode(self.hub, number, [1, 2, 3]) for number in (1, 2, 3)]
        nodes[1].there = ImageId(bytes.fromhex(OLD))
        running = self.sync("-n", "--replace", f"{self.source}:/cfg/main:{OLD}", "n1")
        self.pass_()
        self.assertEqual(self.successResultOf(running), 0)
        for node in nodes:
            (request,) = self.checks(node)
            self.assertEqual(
                (request.path, request.replace, request.old_image, request.timestamp_ms),
                ("/cfg/main", True, ImageId(bytes.fromhex(OLD)), NOW_MS),
            )
            (signature,) = request.signatures
            self.assertTrue(verify(self.public, signed_check_bytes("/cfg/main", request.image, NOW_MS), signature))
        lines = self.out.text.splitlines()
        self.assertIn("n1 /cfg/main  WOULD BE DONE  3/3 nodes  id ", lines[0])
        self.assertIn("new: 1 file, 48.8 KiB", lines[0])
        self.assertIn(f"n2  would take it  there: {OLD[:16]}  8.0 GiB free", lines[2])
        self.assertIn("Nothing was uploaded", self.err.text)

    def test_modes(self) -> None:
        """An append would be asked as a replace."""
        node = CheckNode(self.hub, 1)
        running = self.sync(
            "-n", "--append", f"{self.source}:/a/1", "--append-weak", f"{self.source}:/a/2", "--replace", f"{self.source}:/a/3", "n1"
        )
        self.pass_()
        self.assertEqual(self.successResultOf(running), 0)
        self.assertEqual(
            [(one.path, one.replace, one.old_image) for one in self.checks(node)],
            [("/a/1", False, None), ("/a/2", False, None), ("/a/3", True, None)],
        )

    @shows("A22")
    def test_refused(self) -> None:
        """The reason of a node is shown, without what would move the cursor."""
        node = CheckNode(self.hub, 1)
        node.reason, node.detail = "stale_timestamp", "the clock\x1b[2J here"
        running = self.sync("-n", "--append", f"{self.source}:/a/1", "n1")
        self.assertEqual(self.successResultOf(running), 6)
        self.assertIn("WOULD FAIL  0/1 nodes", self.out.text)
        self.assertIn("n1  would refuse  stale_timestamp  the clock", self.out.text)
        self.assertNotIn("\x1b", self.out.text)

    def test_json(self) -> None:
        """A script reads what each node would say, and one last line."""
        self.around = replace(self.around, report=Report(self.out))
        node = CheckNode(self.hub, 1)
        node.reason = "no_config"
        running = self.sync("-n", "--json", "--append", f"{self.source}:/a/1", "n1")
        self.assertEqual(self.successResultOf(running), 5)
        found: list[dict[str, Any]] = [json.loads(line) for line in self.out.text.splitlines()]
        self.assertEqual([one["type"] for one in found], ["index", "node", "summary"])
        self.assertEqual((found[1]["state"], found[1]["free_bytes"]), ("no-config", 1 << 33))
        self.assertEqual((found[2]["outcome"], found[2]["code"], found[2]["uploads"][0]["takers"]), ("dry-run", "rejected", 0))

    def test_silent(self) -> None:
        """A node that does not answer is said to; Ctrl-C ends the wait."""
        node = CheckNode(self.hub, 1)
        node.silent = True
        running = self.sync("-n", "--append", f"{self.source}:/a/1", "n1")
        self.assertNoResult(running)
        self.clock.pump([1.0] * 31)
        self.assertEqual(self.successResultOf(running), 3)
        self.assertIn("n1  cannot be asked  no answer within 30 s", self.out.text)
        running = self.sync("-n", "--append", f"{self.source}:/a/1", "n1")
        running.cancel()
        self.failureResultOf(running, CancelledError)

    @shows("K5.1", "K1.1")
    def test_nothing_to_do_by_what_was_told(self) -> None:
        """A node that did not tell which other servers there are would be taken for the only one."""
        node = CheckNode(self.hub, 1)
        order = ("--append", f"{self.source}:/a/1", "n1")
        self.sync("-n", *order)
        node.there = self.checks(node)[0].image
        node.mute = True
        running = self.sync("-n", "--exit-code", *order)
        for _ in range(200):
            self.pass_()
        self.assertEqual(self.successResultOf(running), 0)
        self.assertNotIn("NOTHING TO DO", self.out.text)
        self.assertIn("did not say which other servers there are", self.out.text)

    def test_nothing_to_do(self) -> None:
        """Only --exit-code makes "nothing to do" an exit code, and then nothing is uploaded."""
        node = CheckNode(self.hub, 1)
        order = ("--append", f"{self.source}:/a/1", "n1")
        self.sync("-n", *order)
        node.there = self.checks(node)[0].image
        for words, code in ((["-n"], 0), (["-n", "--exit-code"], 8), (["--exit-code"], 8)):
            running = self.sync(*words, *order)
            self.pass_()
            self.assertEqual(self.successResultOf(running), code, words)
        self.assertIn("NOTHING TO DO  1/1 nodes", self.out.text)
        self.assertIn("Nothing to do: every node has exactly this already", self.err.text)
