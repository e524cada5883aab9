"""``ciruela keygen`` with a passphrase, and knowing one's own keys."""

from __future__ import annotations

import random
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.context import AppContext
from ciruela.client.keygen import keygen, write
from ciruela.client.options.local import KeygenOptions
from ciruela.client.options.table import parse
from ciruela.client.orders import LocalProblem
from ciruela.client.trust import my_keys
from ciruela.keys.public import PassphraseNeeded, parse_private, parse_public
from ciruela.model.errors import BadKey
from tests.client.test_commands import Output, at_once


class KeyCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()
        self.out, self.err = Output(), Output()
        self.environ = {"HOME": str(self.home)}
        self.around = AppContext(Clock(), lambda: 0, random.Random(1), self.environ, self.out, self.err, at_once, at_once)
        self.prompts: list[str] = []

    def keygen(self, *words: str, answers: tuple[str, ...] = ()) -> Deferred[int]:
        options = parse(["keygen", *words])
        assert isinstance(options, KeygenOptions)
        left = list(answers)

        def ask(prompt: str) -> str:
            self.prompts.append(prompt)
            return left.pop(0)

        return Deferred.fromCoroutine(keygen(options, self.around, lambda: ask))


class KeygenTests(KeyCase):
    """A key of a person is never on the disk without its passphrase."""

    def test_passphrase(self) -> None:
        """A passphrase would be asked for and not be used."""
        self.assertEqual(self.successResultOf(self.keygen("--comment", "me", answers=("secret", "secret"))), 0)
        key = self.home / ".ciruela" / "id_ed25519"
        self.assertEqual((key.stat().st_mode & 0o777, key.parent.stat().st_mode & 0o777), (0o600, 0o700))
        public = parse_public(key.with_suffix(".pub").read_text())
        self.assertRaises(PassphraseNeeded, parse_private, key.read_text())
        self.assertEqual(parse_private(key.read_text(), b"secret").public, public)
        self.assertEqual((public.comment, self.out.text), ("me", f"{public.authorized_line()}\n"))

    def test_bad_passphrases(self) -> None:
        """A typing mistake would make a key that nobody can open."""
        for answers in (("secret", "secreT"), ("abc",), ("",)):
            self.failureResultOf(self.keygen(answers=answers), BadKey)
        self.assertEqual(list(self.home.iterdir()), [])

    def test_taken(self) -> None:
        """The only key of a user would be overwritten; or he would be asked in vain."""
        (self.home / "key.pub").write_text("x")
        (self.home / "link").symlink_to("nowhere")
        for name in ("key", "link"):
            self.failureResultOf(self.keygen(str(self.home / name), answers=("secret", "secret")), LocalProblem)
        self.assertEqual(self.prompts, [])
        self.assertEqual(sorted(one.name for one in self.home.iterdir()), ["key.pub", "link"])

    def test_appears_meanwhile(self) -> None:
        """While somebody types a passphrase another program may make the same key: it would be lost."""
        for name in ("key", "key.pub"):
            (self.home / name).write_text("theirs")
            self.assertRaises(LocalProblem, write, str(self.home / "key"), b"private", b"public")
            self.assertEqual([(one.name, one.read_text()) for one in self.home.iterdir()], [(name, "theirs")])
            (self.home / name).unlink()

    def test_cannot_be_written(self) -> None:
        """A missing directory would end in a traceback."""
        self.failureResultOf(self.keygen("--no-passphrase", str(self.home / "a" / "b" / "c")), LocalProblem)
        del self.environ["HOME"]
        self.failureResultOf(self.keygen("--no-passphrase"), LocalProblem)


class MyKeysTests(KeyCase):
    """Which keys a user has is told without a passphrase."""

    def mine(self, *files: str, variables: tuple[str, ...] = ()) -> list[str]:
        self.notes: list[str] = []
        note = lambda where, text: self.notes.append(f"{where} {text}")  # noqa: E731
        return self.successResultOf(Deferred.fromCoroutine(my_keys(files, variables, self.around, note)))

    def test_usual_places(self) -> None:
        """A user would have to type his passphrase to be told where his key is accepted."""
        self.assertEqual(self.mine(), [])
        self.successResultOf(self.keygen(answers=("secret", "secret")))
        public = parse_public((self.home / ".ciruela" / "id_ed25519.pub").read_text())
        self.assertEqual(self.mine(), [public.fingerprint()])
        (self.home / ".ssh").mkdir()
        (self.home / ".ssh" / "id_ed25519").write_text("nonsense")
        self.environ["CIRUELA_KEY"] = "x"
        self.assertEqual(self.mine(), [public.fingerprint()])
        self.assertEqual(len(self.notes), 2)

    def test_named(self) -> None:
        """A key that was named and cannot be read would be passed over."""
        self.successResultOf(self.keygen("--no-passphrase", str(self.home / "k")))
        public = parse_public((self.home / "k.pub").read_text())
        self.environ["GOOD"] = (self.home / "k").read_text()
        self.assertEqual(self.mine(str(self.home / "k"), str(self.home / "k.pub"), variables=("GOOD",)), [public.fingerprint()])
        for files, variables in ((["none"], []), ([], ["NONE"]), ([str(self.home)], [])):
            self.failureResultOf(Deferred.fromCoroutine(my_keys(files, variables, self.around, lambda where, text: None)), BadKey)
