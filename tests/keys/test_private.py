"""Private key files."""

import base64
import textwrap

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.keys.public import (
    PassphraseNeeded,
    PrivateKey,
    PublicKey,
    UnknownCipher,
    WrongPassphrase,
    parse_private,
    parse_public,
    put_string,
)
from ciruela.model.errors import BadKey
from tests.keys.samples import PASSPHRASE, sample

BEGIN = "-----BEGIN OPENSSH PRIVATE KEY-----"
END = "-----END OPENSSH PRIVATE KEY-----"


def body_of(name: str) -> bytes:
    """The bytes inside a key file."""
    return base64.b64decode("".join(sample(name).split("\n")[1:-2]))


def armored(data: bytes) -> str:
    """A key file around ``data``."""
    return "\n".join([BEGIN, *textwrap.wrap(base64.b64encode(data).decode(), 70), END, ""])


class GoodKeyTests(SynchronousTestCase):
    """Keys that OpenSSH made sign uploads."""

    def test_plain(self) -> None:
        """A key without a passphrase; a passphrase that was given for another key does no harm."""
        for passphrase in (None, PASSPHRASE):
            self.assertEqual(parse_private(sample("plain"), passphrase).public, parse_public(sample("plain.pub")))

    def test_with_passphrase(self) -> None:
        """Both ciphers that ssh-keygen users meet are opened."""
        self.assertEqual(parse_private(sample("locked"), PASSPHRASE).public, parse_public(sample("locked.pub")))
        self.assertEqual(len(parse_private(sample("locked-gcm"), PASSPHRASE).public.raw), 32)

    def test_environment_forms(self) -> None:
        """A key that a CI system squeezed into one line, indented, or gave Windows line ends still works."""
        text = sample("plain")
        expected = parse_private(text)
        for form in (
            text.replace("\n", " "),
            text.replace("\n", "\r\n"),
            text.strip(),
            text.replace("\n", "\n   "),
            "\ufeff" + text,
            "\n" + text,
        ):
            self.assertEqual(parse_private(form), expected)
        self.assertEqual(parse_private(text.replace("\n", "")), expected)

    def test_seed_is_not_shown(self) -> None:
        """A key that ends up in a log message does not give itself away."""
        self.assertNotIn("seed", repr(parse_private(sample("plain"))))


class BadKeyTests(SynchronousTestCase):
    """Each kind of unusable key has a message of its own."""

    def refused(self, text: str, said: str, passphrase: bytes | None = None) -> None:
        """``text`` is refused, not as a matter of a passphrase, with a message that contains ``said``."""
        error = self.assertRaises(BadKey, parse_private, text, passphrase)
        self.assertIn(said, str(error))
        self.assertIs(type(error), BadKey)

    def test_not_a_key(self) -> None:
        """Something else entirely."""
        self.refused("hello", "not a private key at all")
        self.refused("", "it is empty")
        self.refused(" \n", "it is empty")
        self.refused("PuTTY-User-Key-File-3: ssh-ed25519", "PuTTY")

    def test_public_key(self) -> None:
        """The other half of the pair, in its three usual forms."""
        self.refused(sample("plain.pub"), "it is a public key")
        self.refused("-----BEGIN PUBLIC KEY-----\nAAAA\n", "it is a public key")
        self.refused("---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n", "it is a public key")

    def test_pem(self) -> None:
        """Older forms of keys."""
        self.refused(sample("rsa-pem"), "it is an RSA key in PEM form")
        self.refused(sample("rsa-pkcs8"), "it is a key in PEM form")
        self.refused("-----BEGIN EC PRIVATE KEY-----\nAAAA", "it is an ECDSA key in PEM form")

    def test_other_types(self) -> None:
        """OpenSSH keys that are not ed25519; a locked one is recognized without its passphrase."""
        self.refused(sample("rsa"), "it is an RSA key")
        self.refused(sample("rsa-locked"), "it is an RSA key")
        self.refused(sample("ecdsa"), "it is an ECDSA key")
        self.refused(sample("dsa"), "it is a DSA key")

    def test_security_key(self) -> None:
        """A FIDO key, which signs something else than it is given."""
        blob = put_string(b"sk-ssh-ed25519@openssh.com") + put_string(bytes(32)) + put_string(b"ssh:")
        data = b"openssh-key-v1\0" + put_string(b"none") * 2 + put_string(b"") + b"\0\0\0\1" + put_string(blob) + put_string(bytes(64))
        self.refused(armored(data), "it is a FIDO security key")

    def test_unknown_cipher(self) -> None:
        """A cipher that the library does not know comes with the way out."""
        for passphrase in (PASSPHRASE, None):
            error = self.assertRaises(UnknownCipher, parse_private, sample("locked-chacha"), passphrase)
            self.assertIn("ssh-keygen -p", str(error))

    def test_passphrase_needed(self) -> None:
        """Without a passphrase it is known which key wants one, so that an agent can be asked for it."""
        error = self.assertRaises(PassphraseNeeded, parse_private, sample("locked"))
        self.assertEqual(error.public, parse_public(sample("locked.pub")))
        self.assertIn(error.public.fingerprint(), str(error))

    def test_wrong_passphrase(self) -> None:
        """A wrong passphrase is told apart from everything else, for each cipher, so that the user is asked again."""
        for name in ("locked", "locked-gcm"):
            for wrong in (b"sesame", b""):
                self.assertRaises(WrongPassphrase, parse_private, sample(name), wrong)

    def test_cut_off(self) -> None:
        """A key that was not copied whole, with or without passphrase, and wherever it was cut."""
        lines = sample("plain").split("\n")
        self.refused("\n".join(lines[:4]), "END line is missing")
        for name in ("plain", "locked"):
            data = body_of(name)
            for length in range(len(data)):
                self.assertRaises(BadKey, parse_private, armored(data[:length]), PASSPHRASE)
            self.refused(armored(data[: len(data) - 1]), "cut off", PASSPHRASE)
            self.refused(armored(data[:30]), "cut off", PASSPHRASE)

    def test_damaged(self) -> None:
        """A flipped bit anywhere never gives another key than the one that was written."""
        data = body_of("plain")
        expected = parse_private(sample("plain"))
        for position in range(len(data)):
            changed = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
            try:
                key: PrivateKey | None = parse_private(armored(changed))
            except BadKey:
                key = None
            self.assertIn(key, (None, expected), position)
        self.refused(sample("plain").replace("b3Bl", "****"), "base64 cannot be read")
        self.refused(sample("plain").replace("b3Bl", "AAAA"), "does not begin like an OpenSSH key")

    def test_two_keys(self) -> None:
        """A file that claims several keys is not half read."""
        self.refused(armored(body_of("plain").replace(b"\0\0\0\1\0\0\0\x33", b"\0\0\0\2\0\0\0\x33")), "holds 2 keys")

    def test_public_half_of_another_key(self) -> None:
        """The key in clear at the front, which an agent would be asked for, is the key inside."""
        other = PublicKey(bytes(range(32)))
        data = body_of("plain")
        swapped = data.replace(put_string(parse_public(sample("plain.pub")).blob), put_string(other.blob), 1)
        self.assertNotEqual(swapped, data)
        self.refused(armored(swapped), "damaged")

    @settings(derandomize=True, deadline=None, database=None, max_examples=150)
    @given(st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda data: armored(b"openssh-key-v1\0" + data))))
    def test_anything(self, text: str) -> None:
        """Whatever is in a file, the answer is a message."""
        self.assertRaises(BadKey, parse_private, text, b"x")
