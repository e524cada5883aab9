"""The keys that may upload."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ciruela.daemon.authority import KEPT_MS, MOST_VERIFIED, KeyFiles
from ciruela.interfaces import Authority
from ciruela.keys.authorized import parse_authorized
from ciruela.keys.public import PrivateKey
from ciruela.keys.signed import signed_bytes, signed_check_bytes
from ciruela.model.config import DirConfig
from ciruela.model.errors import DiskError
from ciruela.model.ids import ImageId
from ciruela.model.versions import SigEntry
from ciruela.model.vpath import VPath
from tests.proof import shows

IMAGE = ImageId(b"\x11" * 32)
VPATH = VPath.parse("/app/v1")
NOW_MS = 1_751_284_800_000  # 2025-06-30 12:00:00 UTC
ANN, BOB, EVE = (PrivateKey(bytes([number]) * 32) for number in (1, 2, 3))


def line(key: PrivateKey) -> str:
    """The line of ``key`` in a key file."""
    return key.public.authorized_line() + "\n"


def entry(key: PrivateKey, time_ms: int = NOW_MS, vpath: VPath = VPATH, image: ImageId = IMAGE) -> SigEntry:
    """A signature by ``key``."""
    return SigEntry(time_ms, key.sign(signed_bytes(str(vpath), image, time_ms)))


class AuthorityTests(SynchronousTestCase):
    """Nothing changes on a server that a key configured there did not sign."""

    def setUp(self) -> None:
        self.top = Path(self.mktemp())
        (self.top / "keys").mkdir(parents=True)
        self.top.chmod(0o755)
        self.threads = 0
        self.now_ms = NOW_MS
        self.authority: Authority = KeyFiles(str(self.top), self.in_thread, lambda: self.now_ms)
        self.problems: list[str] = []
        self.addCleanup(globalLogPublisher.removeObserver, self.note)
        globalLogPublisher.addObserver(self.note)

    def note(self, event: LogEvent) -> None:
        """Remember what is logged about key files."""
        if "problem" in event:
            self.problems.append(event["problem"].removeprefix(f"{self.top}/"))

    def in_thread(self, function: Callable[..., Any], *args: Any) -> Deferred[Any]:
        self.threads += 1
        return maybeDeferred(function, *args)

    def put(self, name: str, text: str) -> Path:
        """Write a key file."""
        path = self.top / name
        path.write_text(text)
        path.chmod(0o644)
        return path

    def verified(self, *entries: SigEntry, keys: tuple[str, ...] = ()) -> tuple[SigEntry, ...]:
        """Those of ``entries`` that count for a directory with ``keys``."""
        config = DirConfig("app", "/x", True, 1, upload_keys=keys)
        made = self.successResultOf(self.authority.verified(config, VPATH, IMAGE, entries))
        self.assertTrue(all(key.startswith("SHA256:") for key in made.values()))
        return tuple(made)

    def test_master(self) -> None:
        """A master key may upload anywhere, other keys may not."""
        self.put("master.key", line(ANN) + line(BOB))
        self.assertEqual(self.verified(entry(ANN)), (entry(ANN),))
        self.assertEqual(self.verified(entry(EVE)), ())
        self.assertEqual(self.verified(), ())
        self.assertEqual(self.threads, 3)

    def test_upload_keys(self) -> None:
        """A key file counts only for directories that name it."""
        self.put("keys/ann.key", line(ANN))
        self.put("keys/bob.key", line(BOB))
        self.assertEqual(self.verified(entry(ANN), entry(BOB), keys=("bob",)), (entry(BOB),))
        self.assertEqual(self.verified(entry(ANN), entry(BOB)), ())
        self.assertEqual(len(self.verified(entry(ANN), entry(BOB), keys=("bob", "ann"))), 2)

    @shows("F8", "I4")
    def test_no_files(self) -> None:
        """Without master.key nothing is logged; without a named key file that is, and the others count."""
        self.put("keys/bob.key", line(BOB))
        self.assertEqual(self.verified(entry(BOB), keys=("master", "bob")), (entry(BOB),))
        self.assertEqual(self.problems, ["keys/master.key: No such file or directory"])

    def test_no_keys_directory(self) -> None:
        """A missing directory of keys does not take the master key its power."""
        self.put("master.key", line(ANN))
        (self.top / "keys").rmdir()
        self.assertEqual(self.verified(entry(ANN), keys=("bob",)), (entry(ANN),))
        self.assertEqual(self.problems, ["keys: there is no such directory"])

    @shows("A11", "F8", "I4")
    def test_other_path_image_time(self) -> None:
        """A recorded signature is worth nothing for another path, image or time."""
        self.put("master.key", line(ANN))
        moved = SigEntry(NOW_MS + 1, entry(ANN).signature)
        others = [entry(ANN, vpath=VPath.parse("/app/v2")), entry(ANN, image=ImageId(bytes(32))), moved]
        self.assertEqual(self.verified(*others), ())

    @shows("A11", "I4")
    def test_other_statement(self) -> None:
        """What was signed to ask is worth nothing to upload, and the other way round."""
        self.put("master.key", line(ANN))
        asked = SigEntry(NOW_MS, ANN.sign(signed_check_bytes(str(VPATH), IMAGE, NOW_MS)))
        config = DirConfig("app", "/x", True, 1)
        self.assertEqual(self.verified(asked), ())
        for found, expected in ((asked, [asked]), (entry(ANN), [])):
            made = self.successResultOf(self.authority.verified(config, VPATH, IMAGE, [found], signed_check_bytes))
            self.assertEqual(list(made), expected)

    @shows("A13", "F10")
    def test_impossible_times(self) -> None:
        """A time that cannot be signed spoils nothing but its own entry."""
        self.put("master.key", line(ANN))
        self.assertEqual(self.verified(SigEntry(-1, bytes(64)), SigEntry(2**64, bytes(64)), entry(ANN)), (entry(ANN),))

    @shows("A15", "F11")
    def test_one_per_key(self) -> None:
        """The newest signature of each key is kept, so a state does not grow with each upload; the order is that of a state."""
        self.put("master.key", line(ANN) + line(BOB) + line(ANN))
        old, new = entry(ANN, NOW_MS - 5), entry(ANN, NOW_MS + 5)
        middle = entry(BOB, NOW_MS)
        self.assertEqual(self.verified(new, middle, old, new), (middle, new))

    @shows("A15", "F11")
    def test_flood(self) -> None:
        """Thousands of signatures cost the work of sixteen; repeated ones count once."""
        self.put("master.key", line(ANN))
        garbage = [SigEntry(number, bytes(64)) for number in range(10_000)]
        self.assertEqual(self.verified(*garbage[: MOST_VERIFIED - 1], entry(ANN)), (entry(ANN),))
        self.assertEqual(self.verified(*garbage[:MOST_VERIFIED], entry(ANN)), ())
        self.assertEqual(self.verified(*garbage[:1] * 10_000, entry(ANN)), (entry(ANN),))

    @shows("A16", "F8")
    def test_read_anew(self) -> None:
        """A key that was removed is refused at the next upload, without a restart."""
        path = self.put("master.key", line(ANN))
        self.assertEqual(len(self.verified(entry(ANN))), 1)
        path.write_text(line(BOB))
        self.assertEqual(self.verified(entry(ANN)), ())

    @shows("S14")
    def test_kept_for_a_second(self) -> None:
        """A flood of signed requests would parse all key files for each of them; a change that keeps the time would stay unseen."""
        self.put("master.key", line(ANN))
        self.assertEqual(len(self.verified(entry(ANN))), 1)
        with mock.patch("ciruela.daemon.authority.parse_authorized", wraps=parse_authorized) as parse:
            for _ in range(100):
                self.assertEqual(len(self.verified(entry(ANN))), 1)
            self.assertEqual(parse.call_count, 0)
            self.now_ms += KEPT_MS
            self.assertEqual(len(self.verified(entry(ANN))), 1)
            self.now_ms -= 3 * KEPT_MS  # the clock was set back
            self.assertEqual(len(self.verified(entry(ANN))), 1)
            self.assertEqual(parse.call_count, 2)

    @shows("S14", "A48")
    def test_made_loose_meanwhile(self) -> None:
        """For a second a key file that others may write to now would count as it was."""
        path = self.put("master.key", line(ANN))
        self.assertEqual(len(self.verified(entry(ANN))), 1)
        path.chmod(0o646)
        self.assertEqual(self.verified(entry(ANN)), ())

    @shows("A16", "F8")
    def test_expiry(self) -> None:
        """A key with a time of expiry ends by itself."""
        self.put("master.key", 'expiry-time="202506301201Z" ' + line(ANN))
        self.assertEqual(len(self.verified(entry(ANN))), 1)
        self.now_ms += 60_000
        self.assertEqual(self.verified(entry(ANN)), ())
        self.assertEqual(self.problems, ["master.key:1: the key expired at 202506301201Z"])

    def test_bad_lines(self) -> None:
        """A bad line is logged with file and number, once while it stays, and hides nothing."""
        path = self.put("keys/ops.key", "garbage\n" + line(ANN))
        for _ in range(3):
            self.assertEqual(len(self.verified(entry(ANN), keys=("ops",))), 1)
        self.assertEqual([problem.partition(" ")[0] for problem in self.problems], ["keys/ops.key:1:"])
        path.write_text(line(ANN))
        self.verified(keys=("ops",))
        path.write_text("garbage\n")
        self.verified(keys=("ops",))
        self.assertEqual(len(self.problems), 2)

    def refused_file(self, said: str) -> None:
        """``keys/ops.key`` gives no key, which is logged with ``said``; the master key still counts."""
        self.put("master.key", line(BOB))
        self.assertEqual(self.verified(entry(ANN), entry(BOB), keys=("ops",)), (entry(BOB),))
        (problem,) = self.problems
        self.assertTrue(problem.startswith("keys/ops.key: "), problem)
        self.assertIn(said, problem)

    @shows("A48")
    def test_symlink(self) -> None:
        """A key file is not followed out of the directory that the administrator guards."""
        real = self.put("elsewhere", line(ANN))
        (self.top / "keys/ops.key").symlink_to(os.path.abspath(real))
        self.refused_file("it is a symlink")

    @shows("A48", "F60")
    def test_writable(self) -> None:
        """A key file that everybody may write to lets nobody in."""
        self.put("keys/ops.key", line(ANN)).chmod(0o646)
        self.refused_file("everybody may write to it")

    def test_pipe(self) -> None:
        """A pipe does not hang the thread."""
        os.mkfifo(self.top / "keys/ops.key", 0o600)
        self.refused_file("not a regular file")

    def test_directory(self) -> None:
        """A directory in the place of a key file is logged."""
        (self.top / "keys/ops.key").mkdir()
        self.refused_file("directory")

    def test_huge(self) -> None:
        """A huge file is not read."""
        self.put("keys/ops.key", line(ANN) + "#" * (256 * 1024))
        self.refused_file("larger than 256 KiB")

    def test_slash_in_name(self) -> None:
        """A name never leads out of the directory of keys."""
        self.put("elsewhere.key", line(ANN))
        self.assertEqual(self.verified(entry(ANN), keys=("../elsewhere",)), ())

    def test_config_dir_may_be_symlink(self) -> None:
        """A configuration directory that is switched by a symlink works."""
        self.put("master.key", line(ANN))
        link = self.top.parent / "link"
        link.symlink_to(os.path.abspath(self.top))
        self.authority = KeyFiles(str(link), self.in_thread, lambda: NOW_MS)
        self.assertEqual(len(self.verified(entry(ANN))), 1)

    def fails(self) -> str:
        """The error for a directory with a key."""
        config = DirConfig("app", "/x", True, 1, upload_keys=("ops",))
        return str(self.failureResultOf(self.authority.verified(config, VPATH, IMAGE, [entry(ANN)]), DiskError).value)

    @shows("F8")
    def test_keys_cannot_be_opened(self) -> None:
        """A directory of keys that is there and cannot be opened is a fault, not a refusal that the user would look for in his key."""
        self.put("master.key", line(ANN))
        (self.top / "keys").rename(self.top / "real")
        (self.top / "keys").symlink_to("real")
        self.assertIn("keys: Not a directory", self.fails())
        (self.top / "keys").unlink()
        self.put("keys", "")
        self.assertIn("keys: Not a directory", self.fails())

    def test_no_config_dir(self) -> None:
        """The same for the configuration directory."""
        self.authority = KeyFiles(str(self.top / "gone"), self.in_thread, lambda: NOW_MS)
        self.assertIn("gone: No such file", self.fails())
