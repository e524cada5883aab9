"""``--json``: lines for programs."""

from __future__ import annotations

import contextlib
import io
import json
import random
import signal
from dataclasses import replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure

from ciruela.client import commands
from ciruela.client.contacts import RunContext
from ciruela.client.listener import HookStanding, UploadRow
from ciruela.client.main import _Life
from ciruela.client.options.sync import SyncOptions
from ciruela.client.options.table import parse_sync
from ciruela.client.orders import LocalProblem
from ciruela.client.report import CODES, Report, code_of, upload_fields
from ciruela.client.tracker import EXIT_PARTIAL, RUNNING, UploadOutcome, UploadProgress, Verdict
from ciruela.interfaces import Address
from ciruela.model.ids import ImageId
from tests.client.nodes import FakeNode, address, machine
from tests.client.test_commands import CommandCase, FakeReactor
from tests.proof import shows

KINDS = {
    "index": {"path", "source", "image", "dirs", "files", "links", "bytes", "excluded", "seconds"},
    "accepted": {"cluster", "path", "host", "address", "machine_id", "nodes_known"},
    "node": {"cluster", "path", "host", "address", "machine_id", "state", "code", "message"},
    "progress": {"cluster", "path", "done", "expected", "sent_bytes", "total_bytes", "given", "seconds"},
    "summary": {"outcome", "exit_code", "code", "uploads"},
    "error": {"code", "exit_code", "message"},
}
"""The fields of each type, as docs/reference/commands.rst has them."""

UPLOAD = {
    *("cluster", "path", "image", "outcome", "exit_code", "code", "message", "done", "expected", "accepted", "missing", "failed"),
    *("absent", "shared_ids", "hooks", "sent_bytes", "total_bytes", "reused_bytes", "seconds"),
}


class Lines(CommandCase):
    def setUp(self) -> None:
        super().setUp()
        self.around = replace(self.around, report=Report(self.out))

    def lines(self) -> list[dict[str, Any]]:
        """All lines so far: each is an object with the documented fields."""
        found = [json.loads(line) for line in self.out.text.splitlines()]
        for one in found:
            self.assertEqual(set(one) - {"type", "uploads"}, KINDS[one["type"]] - {"uploads"}, one)
            for upload in one.get("uploads", []):
                self.assertEqual(set(upload), UPLOAD)
        self.assertNotIn("summary", [one["type"] for one in found[:-1]])
        self.assertNotIn("error", [one["type"] for one in found[:-1]])
        return found

    def begin(self, *words: str) -> Deferred[int]:
        options = parse_sync(["--json", "-i", str(self.top / "key"), *words])
        assert isinstance(options, SyncOptions)

        def resolve(name: str) -> Deferred[list[Address]]:
            return succeed([address(int(name.removeprefix("n")))])

        world = RunContext(self.clock, random.Random(3), lambda where, counterpart: self.hub.link(counterpart, where), resolve)
        running = Deferred.fromCoroutine(commands.sync(options, self.around, world))
        self.pass_()
        return running

    def test_done(self) -> None:
        """A script reads of the directory, of each node, and how it ended."""
        node = FakeNode(self.hub, 1)
        running = self.begin("--print-progress", "1s", "--append", f"{self.source}:/apps/v1", "n1")
        self.clock.advance(1.0)
        node.tell_received("/apps/v1", node.published[0], 1)
        self.clock.pump([0.5] * 4)
        self.assertEqual(self.successResultOf(running), 0)
        found = self.lines()
        self.assertEqual([one["type"] for one in found], ["index", "accepted", "progress", "node", "summary"])
        self.assertEqual((found[3]["state"], found[3]["host"], found[3]["machine_id"]), ("done", "n1", machine(1).hex()))
        self.assertEqual((found[4]["outcome"], found[4]["uploads"][0]["done"]), ("done", 1))
        self.assertIn("/apps/v1  DONE", self.err.text)

    @shows("A22")
    def test_refused(self) -> None:
        """What a server says is data: it neither breaks a line nor moves the cursor of who looks at it."""
        node = FakeNode(self.hub, 1)
        node.reason = 'wor\x1b[2Jse"}\n{"type": "summary"'
        running = self.begin("--append", f"{self.source}:/apps/v1", "n1")
        self.clock.pump([0.5] * 8)
        self.assertEqual(self.successResultOf(running), 5)
        found = self.lines()
        self.assertEqual([one["type"] for one in found], ["index", "node", "summary"])
        self.assertEqual((found[1]["state"], found[2]["code"], found[2]["outcome"]), ("refused", "rejected", "rejected"))
        self.assertNotIn("\x1b", self.out.text)
        self.assertNotIn("\\u001b", self.out.text)

    def test_unreachable(self) -> None:
        """A host that is down is a line, and not only a text for people."""
        running = self.begin("-t", "2s", "--append", f"{self.source}:/apps/v1", "n7")
        self.clock.pump([0.5] * 10)
        self.assertEqual(self.successResultOf(running), 3)
        found = self.lines()
        self.assertEqual({one.get("state") for one in found[1:-1]}, {"unreachable"})
        self.assertEqual(found[-1]["code"], "network")

    def life(self, failure: BaseException, number: int = 0) -> dict[str, Any]:
        """The last line of a run that ended with ``failure``, after signal ``number``."""
        life = _Life(FakeReactor(lambda: None), lambda: None, False, 0, self.around.report)  # type: ignore[arg-type, return-value]
        life._signal = number
        with contextlib.redirect_stderr(io.StringIO()):
            life._failed(Failure(failure))
        self.assertEqual(self.lines()[-1]["exit_code"], life.code)
        return self.lines()[-1]

    def test_ends_with_an_error(self) -> None:
        """A script that waits for the last line would wait for ever, or take the one before for it."""
        running = self.begin("--append", f"{self.source}:/apps/v1", "n7")
        running.cancel()
        self.failureResultOf(running, CancelledError)
        last = self.life(CancelledError(), signal.SIGTERM)
        self.assertEqual((last["type"], last["code"], last["uploads"][0]["outcome"]), ("error", "terminated", "running"))

    def test_local(self) -> None:
        """The same before anything was sent."""
        last = self.life(LocalProblem("dist is not a directory"))
        self.assertEqual((last["code"], last["message"], "uploads" in last), ("local", "dist is not a directory", False))
        assert self.around.report is not None
        self.around.report.error(3, "too late")
        self.assertEqual(len(self.lines()), 1)

    def test_usage(self) -> None:
        """Mistakes that argparse and we find are lines, too; without --json nothing goes to stdout."""
        for words, environ, expected in (
            (["--json", "--append", "a:/k/1"], {}, True),
            (["--append", "a:/k/1"], {"CIRUELA_JSON": "1"}, True),
            (["--json", "--nonsense", "h"], {}, True),
            (["--append", "a:/k/1"], {}, False),
            (["--append", "a:/k/1", "-m", "--", "--json"], {}, False),
        ):
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()), self.assertRaises(SystemExit) as caught:
                parse_sync(words, environ)
            self.assertEqual(caught.exception.code, 2)
            self.assertEqual([json.loads(line)["code"] for line in out.getvalue().splitlines()], ["usage"] * expected)

    def test_worst_outcome(self) -> None:
        """The summary must not say "done" where its exit code says something else."""
        rows = [
            UploadRow("eu", "/a/b", ImageId(bytes(32)), verdict, UploadProgress(0, 0, (), (), ()), 0, 0, 0.0)
            for verdict in (Verdict(UploadOutcome.DONE), Verdict(UploadOutcome.PARTIAL, EXIT_PARTIAL, "why"), RUNNING)
        ]
        assert self.around.report is not None
        self.around.report.summary(EXIT_PARTIAL, rows)
        (line,) = self.lines()
        self.assertEqual((line["outcome"], line["code"]), ("partial", "partial"))
        self.assertEqual([one["code"] for one in line["uploads"]], ["done", "partial", "running"])
        self.assertEqual(set(range(9)) | {129, 130, 143}, set(CODES))
        self.assertEqual(code_of(99), "failed")


class Hooked(CommandCase):
    def test_fields(self) -> None:
        """A script could not tell which server failed to start the release."""
        row = UploadRow(
            "c",
            "/k/v",
            ImageId(bytes(32)),
            RUNNING,
            UploadProgress(2, 3, (), (), ()),
            0,
            0,
            1.0,
            HookStanding(1, ("n2",), (("n3", "on-commit \x1b[2J"),)),
        )
        hooks = upload_fields(row)["hooks"]
        self.assertEqual(hooks, {"ok": 1, "pending": ["n2"], "failed": [{"host": "n3", "message": "on-commit \\x1b[2J"}]})
