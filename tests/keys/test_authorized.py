"""Key files of a server."""

from twisted.trial.unittest import SynchronousTestCase

from ciruela.keys.authorized import parse_authorized
from ciruela.keys.public import parse_public
from tests.keys.samples import sample
from tests.proof import shows

NOW = "20250630120000"
LINE = sample("plain.pub").strip()
KEY = parse_public(LINE)
OTHER_LINE = sample("appendix-c.pub").strip()
OTHER = parse_public(OTHER_LINE)


class ParseAuthorizedTests(SynchronousTestCase):
    """One bad line never locks out the people whose lines are good, and lets nobody else in."""

    def test_good_file(self) -> None:
        """Comments, empty lines, Windows line ends and a byte order mark are fine."""
        text = f"\ufeff# people\r\n\r\n  {LINE}\r\n\t# more\n{OTHER_LINE}"
        self.assertEqual(parse_authorized(text, "f", NOW), ([KEY, OTHER], []))
        self.assertEqual(parse_authorized("", "f", NOW), ([], []))

    def test_bad_lines_hide_nothing(self) -> None:
        """Each bad line is reported with its number, and the key behind it counts."""
        text = f"garbage\n{LINE}\n{sample('rsa.pub')}\nssh-ed25519 AAAA*\n{OTHER_LINE}\n"
        keys, problems = parse_authorized(text, "keys/a.key", NOW)
        self.assertEqual(keys, [KEY, OTHER])
        self.assertEqual([problem.partition(" ")[0] for problem in problems], ["keys/a.key:1:", "keys/a.key:3:", "keys/a.key:5:"])
        self.assertIn("RSA", problems[1])

    def test_line_numbers_are_those_of_an_editor(self) -> None:
        """Odd separators that no editor counts do not shift the numbers."""
        _, problems = parse_authorized("# a\x0bb\u2028c\ngarbage\n", "f", NOW)
        self.assertEqual([problem.split()[0] for problem in problems], ["f:2:"])

    def test_private_key(self) -> None:
        """A private key in the wrong place is reported once, and what follows it counts."""
        keys, problems = parse_authorized(sample("plain") + OTHER_LINE, "f", NOW)
        self.assertEqual(keys, [OTHER])
        self.assertEqual(len(problems), 1)
        self.assertIn("f:1: this is not a public key", problems[0])

    def one(self, options: str) -> str | None:
        """The complaint about a line with ``options``; None when the key counts."""
        keys, problems = parse_authorized(f"{options} {LINE}", "f", NOW)
        self.assertEqual(len(keys) + len(problems), 1)
        return problems[0] if problems else None

    def test_harmless_options(self) -> None:
        """A line that was copied from authorized_keys works when its options only limit a login."""
        for options in ("restrict", "no-pty,no-X11-forwarding", "RESTRICT,pty", "restrict\t"):
            self.assertIsNone(self.one(options), options)

    @shows("A16")
    def test_options_that_mean_something(self) -> None:
        """A key that somebody limited to a command or a host is not let in without that limit."""
        for options in (
            'command="echo hi"',
            'from="10.0.0.1"',
            "cert-authority",
            "verify-required",
            'restrict,environment="A=b"',
            "unknown",
        ):
            self.assertIn("is not supported", self.one(options) or "", options)

    def test_malformed_options(self) -> None:
        """Options that cannot be read are not skipped over."""
        for options in ("restrict,", ",restrict", 'command="a', 'pty="x"', "restrict;pty", 'expiry-time="20300101Z"x'):
            self.assertIsNotNone(self.one(options), options)

    @shows("A16")
    def test_expiry(self) -> None:
        """A key counts until the time that its line gives, in UTC, and not after."""
        for good in ("20250701Z", "202506301201Z", "20250630120001Z", "20991231Z"):
            self.assertIsNone(self.one(f'expiry-time="{good}",restrict'), good)
        for past in ("20250630Z", "202506301200Z", "20250630120000Z", "19991231Z"):
            self.assertIn("expired", self.one(f'expiry-time="{past}"') or "", past)

    def test_expiry_that_is_unclear(self) -> None:
        """A time that each server would read in its own time zone, or that is none, never lets a key in."""
        for text in (
            "20300101",
            "2030Z",
            "20301301Z",
            "20300132Z",
            "203001012400Z",
            "203001010060Z",
            "2030010101Z",
            "20300101010160Z",
            "",
            "x",
        ):
            self.assertIn("is not a time in UTC", self.one(f'expiry-time="{text}"') or "", text)
        self.assertIn("is not a time", self.one("expiry-time") or "")
