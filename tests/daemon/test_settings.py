"""``ciruela.yaml``."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.daemon.config import load_config
from ciruela.daemon.plan import FILE, RULES, Own, load_own
from ciruela.index.names import MAX_INDEX_BYTES
from ciruela.model.config import STANDARD, CommitCheck, Fsync, Tuning
from ciruela.model.errors import ConfigError
from tests.proof import shows

EVERYTHING = """\
fsync: per-file
verify-before-commit: full
trust-ctime: false
disk-reserve-bytes: 2Gi
disk_reserve_percent: 5
max-index-bytes: 64Mi
max-connections: 2k
max-connections-per-address: 16
requests-per-second: 50
uploads-per-key: 3
scrub-bytes-per-second: 0
scrub-cycle: 2 weeks
signature-max-age: 1h 30min
page-hosts: [Node1.example.org., ops]
_note: this is for people
"""


class SettingsTests(SynchronousTestCase):
    """A daemon does what its file says, or does not start."""

    def setUp(self) -> None:
        self.top = Path(os.path.abspath(self.mktemp()))
        self.top.mkdir(mode=0o755)

    def load(self, text: str | bytes) -> Tuning:
        path = self.top / FILE
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(0o644)
        return load_own(str(self.top)).tuning

    def mistakes(self, text: str | bytes) -> list[str]:
        error = self.assertRaises(ConfigError, self.load, text)
        return [line.removeprefix(f"{self.top}/") for line in str(error).split("\n")]

    def test_no_file(self) -> None:
        """Without the file, or with nothing in it, everything is as documented."""
        self.assertEqual(load_own(str(self.top)), Own())
        for text in ("", "# nothing\n", "~\n", "_x: 1\n"):
            self.assertEqual(self.load(text), STANDARD, text)
        self.assertEqual(STANDARD.max_index_bytes, MAX_INDEX_BYTES)

    def test_everything(self) -> None:
        """Each setting reaches the field it is named for."""
        self.assertEqual(
            self.load(EVERYTHING),
            Tuning(
                fsync=Fsync.PER_FILE,
                verify_before_commit=CommitCheck.FULL,
                trust_ctime=False,
                disk_reserve_bytes=2 << 30,
                disk_reserve_percent=5,
                max_index_bytes=64 << 20,
                max_connections=2000,
                max_connections_per_address=16,
                requests_per_second=50,
                uploads_per_key=3,
                scrub_bytes_per_second=0,
                scrub_cycle_ms=14 * 86_400_000,
                signature_max_age_ms=5_400_000,
                page_hosts=("node1.example.org", "ops"),
            ),
        )
        self.assertEqual({rule.attribute for rule in RULES.values()}, set(Tuning.__slots__))

    @shows("S13")
    def test_page_hosts(self) -> None:
        """A port, an address or a pattern would be taken, and the pages would stay out of reach without a word."""
        for name in ("n1:80", "*.example.org", "http://n1/", "[::1]", "a b", "-a", ""):
            told = self.mistakes(f'page-hosts: ["{name}"]\n')[0]
            self.assertIn("ciruela.yaml:1: page-hosts", told)
            self.assertIn("node1.example.org", told)

    @shows("F60")
    def test_mistakes(self) -> None:
        """All mistakes at once, each with its line, what was read and what to try."""
        text = "fsync: never\nmax-connections: 0\nscrub-cycle: 5 dayz\nuploads-per-kee: 3\nfsync: none\ndisk-reserve-percent: [3]\n"
        self.assertEqual(self.mistakes(text), ["ciruela.yaml:5: fsync: this key stands in line 1 already (remove one)"])
        self.assertEqual(
            self.mistakes(text.replace("fsync: none\n", "")),
            [
                'ciruela.yaml:1: fsync: "never" is not commit, per-file or none (try commit)',
                'ciruela.yaml:2: max-connections: "0" is not in the range from 1 to 1000000',
                'ciruela.yaml:3: scrub-cycle: "5 dayz" is not a duration (try "5 days")',
                'ciruela.yaml:4: "uploads-per-kee" is not a setting (try "uploads-per-key")',
                "ciruela.yaml:5: disk-reserve-percent: a list or a mapping is not a whole number",
            ],
        )
        self.assertIn('"5s" is not in the range from 1min to', self.mistakes("signature-max-age: 5s\n")[0])
        self.assertIn('(try "fsync: commit")', self.mistakes("- fsync\n")[0])
        self.assertIn("is an alias", self.mistakes("fsync: *x\n")[0])

    @shows("F60", "A48")
    def test_not_a_file(self) -> None:
        """Something that cannot be read, or that others could change, is not taken for "no settings"."""
        (self.top / FILE).symlink_to("nowhere")
        self.assertIn("it cannot be read: No such file", str(self.assertRaises(ConfigError, load_own, str(self.top))))
        (self.top / FILE).unlink()
        self.load("fsync: none\n")
        (self.top / FILE).chmod(0o666)
        self.assertIn(f"{FILE}: everybody may write to it", str(self.assertRaises(ConfigError, load_config, str(self.top))))

    @shows("F60")
    @examples(derandomize=True, deadline=None, database=None, max_examples=60)
    @given(st.sampled_from(sorted(RULES)), st.text(max_size=30))
    def test_any_value(self, name: str, value: str) -> None:
        """Whatever stands there gives settings in range, or an error with file and line."""
        quoted = value.replace("'", "''")
        try:
            found = self.load(f"{name}: '{quoted}'\n".encode("utf-8", "surrogatepass"))
        except ConfigError as error:
            self.assertTrue(str(error).startswith(f"{self.top}/{FILE}:"), str(error))
        else:
            self.assertGreaterEqual(getattr(found, RULES[name].attribute) if name != "fsync" else 0, 0)

    def test_reserve(self) -> None:
        """The smaller of the two: a fixed reserve would fill a small disk, a share would waste a large one."""
        self.assertEqual(STANDARD.reserve_bytes(1 << 40), 1 << 30)
        self.assertEqual(STANDARD.reserve_bytes(1000), 30)
        self.assertEqual(Tuning(disk_reserve_bytes=5).reserve_bytes(1 << 40), 5)
        self.assertEqual(Tuning(disk_reserve_percent=0).reserve_bytes(1 << 40), 0)
