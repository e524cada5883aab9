"""What a user is told of hooks, and which exit code his script gets."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ciruela.client import tracker as b
from ciruela.client.listener import NO_HOOKS, HookAccount, HookStanding, UploadRow, hooks_part
from ciruela.client.progress import progress_line, result_line
from ciruela.client.tracker import RUNNING, UploadOutcome, UploadProgress, Verdict
from ciruela.model.ids import ImageId, MachineId
from ciruela.proto.messages import HookResult

IMAGE, OTHER = ImageId(b"\1" * 32), ImageId(b"\2" * 32)
DONE, EARLY = Verdict(UploadOutcome.DONE), Verdict(UploadOutcome.EARLY, 0, "enough")


class AccountTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.account = HookAccount("/app/v1", IMAGE)

    def note(
        self, number: int, state: str, message: str = "", kind: str = "on-commit", image: ImageId = IMAGE, path: str = "/app/v1"
    ) -> bool:
        machine = MachineId(number.to_bytes(16, "big"))
        return self.account.heard(HookResult(image, path, machine, f"n{number}", False, kind, state, message))

    def verdict(self, found: Verdict = DONE, elapsed_s: float = 1.0) -> Verdict:
        return self.account.verdict(found, elapsed_s, 100.0)

    def test_nothing_heard(self) -> None:
        """An upload to servers without hooks would never end, or be told to have had some."""
        self.assertEqual(self.verdict(), DONE)
        self.assertEqual(hooks_part(self.account.standing()), "")

    def test_waits(self) -> None:
        """A script would go on before the servers do."""
        self.assertTrue(self.note(1, "pending"))
        self.assertFalse(self.note(1, "pending"))
        self.assertEqual((self.verdict(), self.verdict(EARLY)), (RUNNING, RUNNING))
        self.assertTrue(self.note(1, "ok"))
        self.assertFalse(self.note(1, "pending"), "it was over already")
        self.assertEqual(self.verdict(), DONE)
        self.assertEqual(hooks_part(self.account.standing()), "hooks 1 ok")

    def test_failed(self) -> None:
        """A script would take a release for good that did not start on a server."""
        self.note(1, "ok")
        self.note(2, "failed", "exited with 1: no port")
        self.assertEqual(self.verdict().exit_code, b.EXIT_HOOK)
        self.assertEqual(self.verdict(EARLY).exit_code, b.EXIT_HOOK)
        self.assertEqual(hooks_part(self.account.standing()), "hooks 1 ok, 1 failed: n2 on-commit exited with 1: no port")
        worse = Verdict(UploadOutcome.FAILED, b.EXIT_NETWORK, "out of time")
        self.assertEqual(self.verdict(worse), worse)
        self.assertTrue(self.note(2, "ok"), "after a restart it went well")
        self.assertEqual(self.verdict().exit_code, 0)

    def test_deadline(self) -> None:
        """A server that went away while its hook ran would keep the client for ever."""
        self.note(1, "pending")
        self.assertEqual(self.verdict(elapsed_s=99.9), RUNNING)
        late = self.verdict(elapsed_s=100.0)
        self.assertEqual((late.outcome, late.exit_code), (UploadOutcome.DONE, b.EXIT_NETWORK))
        self.assertEqual(hooks_part(self.account.standing()), "hooks waiting for n1")

    def test_of_others(self) -> None:
        """What belongs to another upload, or to a later version of the protocol, would hold up this one."""
        for said in ({"image": OTHER}, {"path": "/app/v2"}, {"kind": "on-weekends"}):
            self.assertFalse(self.note(1, "pending", **said))
        self.assertFalse(self.note(1, "perhaps"))
        self.assertEqual(self.verdict(), DONE)

    def test_bounded(self) -> None:
        """A server that makes up machines would fill the memory of the client."""
        for number in range(b.MAX_MACHINES):
            self.note(number, "ok")
        self.assertFalse(self.note(b.MAX_MACHINES, "failed"))

    def test_many_failures(self) -> None:
        """A hook that fails everywhere would fill the screen."""
        for number in range(50):
            self.note(number, "failed", "no")
        self.assertTrue(hooks_part(self.account.standing()).endswith("and 45 more"))

    def test_code_of_several(self) -> None:
        """Of two uploads, the one that did not arrive counts more than a hook that failed."""
        self.assertEqual(b.worst([0, b.EXIT_HOOK]), b.EXIT_HOOK)
        self.assertEqual(b.worst([b.EXIT_NETWORK, b.EXIT_HOOK]), b.EXIT_NETWORK)


class LineTests(SynchronousTestCase):
    """What stands in the lines of an upload."""

    def row(self, hooks: HookStanding) -> UploadRow:
        return UploadRow("eu", "/app/v1", IMAGE, DONE, UploadProgress(2, 2, ("n1", "n2"), (), ()), 10, 20, 3.0, hooks)

    def test_result(self) -> None:
        """A user would not read which server to look at, or a server would move his cursor."""
        failed = HookStanding(1, (), (("n2\x1b[2J", "on-commit exited with 1"),))
        self.assertTrue(result_line(self.row(failed)).endswith("  hooks 1 ok, 1 failed: n2\\x1b[2J on-commit exited with 1"))
        self.assertNotIn("hooks", result_line(self.row(NO_HOOKS)))

    def test_progress(self) -> None:
        """A log would show that all have it, and not why nothing ends."""
        self.assertTrue(progress_line(self.row(HookStanding(0, ("n1", "n2"))), 0).endswith(" hooks_pending=2"))
        self.assertNotIn("hooks", progress_line(self.row(NO_HOOKS), 0))
