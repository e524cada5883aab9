"""What hooks are told, what their end means, and when they are tried again."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from ciruela.hooks.service import LONGEST_PAUSE_MS, body, environment, kinds_after, pause_s, rfc3339, why_failed, why_refused
from ciruela.interfaces import Ended
from ciruela.model.config import DirConfig
from ciruela.model.hooks import CommandHook, Due, HookKind, Webhook
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.vpath import VPath

NEW, OLD = ImageId(b"\1" * 32), ImageId(b"\2" * 32)
DUE = Due(VPath(("apps", "v2")), NEW, OLD, 1_700_000_000_123, "SHA256:abc", (HookKind.COMMAND,))


class WordsTests(SynchronousTestCase):
    def test_environment(self) -> None:
        """A hook would not know what has come, or would get variables of the daemon, secrets perhaps."""
        self.assertEqual(
            environment(DUE, HookKind.COMMAND, "/srv/apps/v2"),
            {
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "LANG": "C.UTF-8",
                "HOME": "/",
                "CIRUELA_HOOK": "on-commit",
                "CIRUELA_PATH": "/apps/v2",
                "CIRUELA_IMAGE_ID": "01" * 32,
                "CIRUELA_OLD_IMAGE_ID": "02" * 32,
                "CIRUELA_DIRECTORY": "/srv/apps/v2",
                "CIRUELA_SIGNED_AT": "2023-11-14T22:13:20.123Z",
                "CIRUELA_SIGNED_AT_MS": "1700000000123",
                "CIRUELA_KEY": "SHA256:abc",
            },
        )
        first = Due(DUE.vpath, NEW, None, 5, "", ())
        self.assertEqual(environment(first, HookKind.CHECK, "/x")["CIRUELA_OLD_IMAGE_ID"], "")

    def test_body(self) -> None:
        """Whoever is called could not tell which image came where."""
        told = json.loads(body(DUE, "/srv/apps/v2", MachineId(b"\3" * 16), "n1"))
        self.assertEqual(told["event"], "committed")
        self.assertEqual((told["path"], told["image_id"], told["old_image_id"]), ("/apps/v2", "01" * 32, "02" * 32))
        self.assertEqual((told["machine_id"], told["hostname"], told["signed_at_ms"]), ("03" * 16, "n1", 1_700_000_000_123))

    def test_time_of_no_calendar(self) -> None:
        """A signature of a wrong clock would end the download with an error."""
        self.assertEqual(rfc3339(1 << 63), f"{1 << 63} ms")

    def test_why(self) -> None:
        """The user would read "failed" without a reason, or a reason that moves his cursor."""
        self.assertEqual(why_failed(Ended(0, None, "all is well"), 1000), "")
        self.assertEqual(why_failed(Ended(3, None, "no such\x1b[2J thing"), 1000), "exited with 3: no such\\x1b[2J thing")
        self.assertEqual(why_failed(Ended(None, 11, ""), 1000), "was killed by signal 11")
        self.assertEqual(why_failed(Ended(None, 9, "still here", late=True), 30_000), "took longer than 30s: still here")
        self.assertLessEqual(len(why_failed(Ended(1, None, "x" * 5000), 1).encode()), 200)
        self.assertEqual([why_refused(code) for code in (200, 204)], ["", ""])
        self.assertEqual(why_refused(302), "was answered with 302")

    def test_pauses(self) -> None:
        """A hook would be given up too early, or a service that is down be asked all the time."""
        hook = CommandHook(("/x",), retries=3, backoff_ms=3000)
        self.assertEqual([pause_s(hook, tries) for tries in (1, 2, 3, 4)], [3.0, 6.0, 12.0, None])
        self.assertIsNone(pause_s(CommandHook(("/x",)), 1))
        self.assertEqual(pause_s(Webhook("https://x", retries=1000, backoff_ms=1000), 900), LONGEST_PAUSE_MS / 1000)

    def test_kinds(self) -> None:
        """A hook that is configured would not run."""
        both = DirConfig("a", "/a", False, 1, on_commit=CommandHook(("/x",)), webhook=Webhook("https://x"))
        self.assertEqual(kinds_after(both), (HookKind.COMMAND, HookKind.WEBHOOK))
        self.assertEqual(kinds_after(DirConfig("a", "/a", False, 1, check_before_commit=CommandHook(("/x",)))), ())
