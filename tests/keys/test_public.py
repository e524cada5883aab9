"""Public keys."""

from twisted.trial.unittest import SynchronousTestCase

from ciruela.keys.public import PublicKey, blob_type, parse_blob, parse_public, put_string, take_string
from ciruela.model.errors import BadKey
from tests.keys.samples import sample


class PublicKeyTests(SynchronousTestCase):
    """A user recognizes a key by what OpenSSH prints for it."""

    def test_as_ssh_keygen(self) -> None:
        """Fingerprint, line and comment are those of ssh-keygen."""
        key = parse_public(sample("plain.pub"))
        self.assertEqual(sample("plain.fingerprint").split()[1], key.fingerprint())
        self.assertEqual(key.authorized_line(), sample("plain.pub").strip())
        self.assertEqual(key.comment, "plain@example")

    def test_comment_is_not_the_key(self) -> None:
        """One key with two comments does not sign or count twice."""
        key = parse_public(sample("plain.pub"))
        self.assertEqual(key, PublicKey(key.raw, "another"))
        self.assertEqual(len({key, PublicKey(key.raw)}), 1)
        self.assertEqual(PublicKey(key.raw).authorized_line(), sample("plain.pub").rsplit(" ", 1)[0])

    def test_length(self) -> None:
        """A key of another length is an error where it is read, not a crash where it is used."""
        for length in (0, 31, 33):
            self.assertRaises(BadKey, PublicKey, bytes(length))

    def test_comment_cannot_steer_a_terminal(self) -> None:
        """A comment with escape codes is shown with question marks."""
        line = sample("appendix-c.pub").replace("test@example", "a\x1b[2Jb")
        self.assertEqual(parse_public(line).comment, "a?[2Jb")

    def refused(self, line: str, said: str) -> None:
        """``line`` is refused with a message that contains ``said``."""
        self.assertIn(said, str(self.assertRaises(BadKey, parse_public, line)))

    def test_other_keys(self) -> None:
        """A key that cannot sign uploads is named for what it is."""
        self.refused(sample("rsa.pub"), "it is an RSA key")
        self.refused(sample("dsa.pub"), "it is a DSA key")
        self.refused(sample("ecdsa.pub"), "it is an ECDSA key")
        self.refused(sample("plain-cert.pub"), "it is a certificate")
        self.refused("sk-ssh-ed25519@openssh.com AAAA me", "it is a FIDO security key")
        self.refused("ssh-ed448 AAAA me", "it is a key of type ssh-ed448")

    def test_damaged_lines(self) -> None:
        """A line that was copied badly is refused."""
        kind, encoded, _ = sample("plain.pub").split()
        self.refused(f"{kind} {encoded[:-3]}", "base64")
        self.refused(f"{kind} {encoded[:-4]}", "cut off")
        self.refused(f"{kind} {encoded[:20]}*{encoded[21:]}", "base64")
        self.refused(f"{kind} {encoded}AAAA", "behind the key")
        self.refused(kind, "there is no key after")
        self.refused("hello world", '"hello" is not a key type')

    def test_type_inside(self) -> None:
        """The label of a line does not make another key an ed25519 key."""
        self.refused("ssh-ed25519 " + sample("rsa.pub").split()[1], "it is an RSA key")

    def test_blob_of_short_key(self) -> None:
        """A blob with 31 bytes of key is refused."""
        self.assertRaises(BadKey, parse_blob, put_string(b"ssh-ed25519") + put_string(bytes(31)))

    def test_strings(self) -> None:
        """A length that promises more than there is reads nothing."""
        self.assertEqual(take_string(put_string(b"ab") + b"c", 0), (b"ab", 6))
        for data in (b"", b"\0\0\0", b"\0\0\0\2a", b"\xff\xff\xff\xff"):
            self.assertRaises(BadKey, take_string, data, 0)
        self.assertEqual(blob_type(put_string(b"\x1b" * 100)), "?" * 80)
