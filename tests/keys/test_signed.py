"""The bytes that are signed, and checking signatures."""

import cbor2
from nacl.signing import SigningKey
from twisted.trial.unittest import SynchronousTestCase

from ciruela.keys.public import PrivateKey, PublicKey, parse_private, verify
from ciruela.keys.signed import signed_bytes, signed_check_bytes
from ciruela.model.ids import parse_image_id
from tests.keys.samples import sample
from tests.proof import shows

IMAGE = parse_image_id("a1ba01ceea5ef43ea1eed20989eafdff9a4b13f7efd2df5947c758d1055936fa")
PATH = "/dir1/a/v1"
TIME_MS = 1700000000123
SIGNED = bytes.fromhex("836a2f646972312f612f76315820a1ba01ceea5ef43ea1eed20989eafdff9a4b13f7efd2df5947c758d1055936fa1b0000018bcfe5687b")
SIGNATURE = bytes.fromhex(
    "9102d3d51160944fe5ee79aecdc805ddf0689af85a1be83ae9660ed137f7939963b3e1a04e1e4e34df60ed9beb04c3f262b5c7c269d45c2b453b6c0cc5e45802"
)


class SignedBytesTests(SynchronousTestCase):
    """Both implementations sign the same bytes, or no upload between them is ever accepted."""

    def test_vector(self) -> None:
        """The protocol's example, byte for byte."""
        self.assertEqual(signed_bytes(PATH, IMAGE, TIME_MS), SIGNED)

    @shows("A11", "F8", "I4")
    def test_each_part_counts(self) -> None:
        """A signature for one path, image or time is none for another."""
        other = parse_image_id("ff" * 32)
        made = {
            SIGNED,
            signed_bytes("/dir1/a/v2", IMAGE, TIME_MS),
            signed_bytes(PATH, other, TIME_MS),
            signed_bytes(PATH, IMAGE, TIME_MS + 1),
        }
        self.assertEqual(len(made), 4)

    def test_shortest_form(self) -> None:
        """Numbers take as few bytes as they can, as the verifier encodes them."""
        for time_ms, tail in {0: "00", 24: "1818", 2**32: "1b0000000100000000", 2**64 - 1: "1b" + "ff" * 8}.items():
            self.assertEqual(signed_bytes("/a/b", IMAGE, time_ms), bytes.fromhex("83642f612f625820") + IMAGE + bytes.fromhex(tail))

    def test_refused(self) -> None:
        """A time or a text that has no encoding is an error of its own kind and not a signature over something else."""
        for path, time_ms in ((PATH, -1), (PATH, 2**64), ("/a/\ud800", 1)):
            self.assertRaises(ValueError, signed_bytes, path, IMAGE, time_ms)


class VerifyTests(SynchronousTestCase):
    """Only the holder of a key can change what a server shows."""

    public = PublicKey(bytes.fromhex("03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8"))

    def test_vector(self) -> None:
        """A signature that the reference made is valid here, and ours is the same."""
        self.assertTrue(verify(self.public, SIGNED, SIGNATURE))
        self.assertEqual(parse_private(sample("appendix-c")).sign(SIGNED), SIGNATURE)
        self.assertEqual(parse_private(sample("appendix-c")).public, self.public)

    @shows("A11", "F8", "I4")
    def test_forgeries(self) -> None:
        """A changed message, a changed signature, another key or another length is refused without an exception."""
        other = PrivateKey(bytes(32)).public
        self.assertFalse(verify(self.public, SIGNED + b"\0", SIGNATURE))
        self.assertFalse(verify(self.public, SIGNED, SIGNATURE[:-1] + b"\x03"))
        self.assertFalse(verify(other, SIGNED, SIGNATURE))
        for length in (0, 63, 65, 128):
            self.assertFalse(verify(self.public, SIGNED, (SIGNATURE * 2)[:length]))

    def test_weak_key(self) -> None:
        """A public key of small order, for which anybody can sign, verifies nothing."""
        self.assertFalse(verify(PublicKey(b"\1" + bytes(31)), SIGNED, b"\1" + bytes(63)))

    def test_signature_with_large_s(self) -> None:
        """A second spelling of a valid signature is not another valid signature."""
        order = 2**252 + 27742317777372353535851937790883648493
        large = int.from_bytes(SIGNATURE[32:], "little") + order
        self.assertFalse(verify(self.public, SIGNED, SIGNATURE[:32] + large.to_bytes(32, "little")))

    def test_plain_ed25519(self) -> None:
        """What any ed25519 library signs is accepted."""
        key = SigningKey(bytes(range(32)))
        self.assertTrue(verify(self.public, b"x", key.sign(b"x").signature))


class CheckTests(SynchronousTestCase):
    """What a dry run signs."""

    def test_vector(self) -> None:
        """Other clients and nodes sign the same bytes."""
        made = signed_check_bytes(PATH, IMAGE, TIME_MS)
        self.assertEqual(made, bytes.fromhex("846d636972 75656c612f636865636b".replace(" ", "")) + SIGNED[1:])
        for time_ms in (-1, 2**64):
            self.assertRaises(ValueError, signed_check_bytes, PATH, IMAGE, time_ms)

    @shows("A11", "I4")
    def test_never_an_upload(self) -> None:
        """Whatever path somebody asks about, what he signs is never what an upload signs: a node could upload in his name."""
        for path in ("", "/a", PATH, "ciruela/check", "/" + "x" * 300):
            asked = signed_check_bytes(path, IMAGE, TIME_MS)
            self.assertEqual((asked[0], signed_bytes(path, IMAGE, TIME_MS)[0]), (0x84, 0x83))
            self.assertEqual(cbor2.loads(asked), ["ciruela/check", path, bytes(IMAGE), TIME_MS])
