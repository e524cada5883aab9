"""Tests of ``ciruela.index.parse``: what is accepted is canonical, everything else is refused with the line (threats A1 to A6)."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.index import names
from ciruela.index.digest import HashKind
from ciruela.index.emit import emit
from ciruela.index.parse import HEADERS, image_id_of, parse, peek_kind
from ciruela.index.tree import Directory, File, Symlink
from ciruela.model.errors import BadIndex
from ciruela.model.ids import ImageId
from tests.index.examples import FEATURES, FEATURES_TREE, KIND, LIBRARY, SMALLEST, body_of, footer_of, sealed, trees
from tests.proof import shows

H = b"93becc6e9882211c3ec3708c95bcd69baab7bb59c7f4bc84ce637b88a534b783"
OTHER = b"d161d71145abeec5ef15abcf0459cec60a27321e2f0ac0ef7ace5254f5944476"


class AcceptTests(SynchronousTestCase):
    """Indexes as they are."""

    def test_worked_examples(self) -> None:
        """Every index of the reference's client looks like these; one that is refused is an upload that fails."""
        for data in (LIBRARY, FEATURES, SMALLEST):
            index = parse(data, footer_of(data))
            self.assertEqual(index.image, footer_of(data))
            self.assertEqual(index.kind, HashKind.BLAKE2B)
            self.assertEqual(emit(index.kind, index.directories), (index.image, data))

    def test_values(self) -> None:
        """Names, modes, sizes and targets become files on the servers exactly as read here."""
        index = parse(FEATURES, footer_of(FEATURES))
        self.assertEqual(index.directories, FEATURES_TREE)
        self.assertEqual(index.total_bytes, 6 + 18 + 40960 + 1 + 1 + 1)
        self.assertEqual(index.block_count, 7)

    def test_image_id(self) -> None:
        """The client learns the id that it signs from here."""
        for data in (LIBRARY, FEATURES, SMALLEST):
            self.assertEqual(image_id_of(data), footer_of(data))
            self.assertEqual(peek_kind(data), HashKind.BLAKE2B)

    def test_kinds(self) -> None:
        """The blocks must be checked with the function that the verified header names."""
        for kind in HashKind:
            data, image = sealed(b"/\n", kind)
            self.assertEqual(parse(data, image).kind, kind)
            self.assertEqual(peek_kind(data), kind)

    def test_collisions_of_case_and_composition(self) -> None:
        """Linux has no trouble with such names, and users have them."""
        body = b"/\n  A f 0\n  a f 0\n  e\\xcc\\x81 f 0\n  \\xc3\\xa9 f 0\n/B\n/b\n"
        data, image = sealed(body)
        self.assertEqual([file.path for file in parse(data, image).files], ["/A", "/a", "/e\u0301", "/\u00e9"])

    def test_odd_names(self) -> None:
        """The format escapes control characters and users have such names; only NUL cannot be in a name."""
        data, image = sealed(b"/\n  \\x01\\x0a\\x7f s \\x0a\\x09\n  ... f 0\n  ..a f 0\n/\\x20\n")
        index = parse(data, image)
        self.assertEqual(index.symlinks, (Symlink("/\x01\n\x7f", "\n\t"),))
        self.assertEqual([directory.path for directory in index.directories], ["/", "/ "])

    def test_targets_may_point_anywhere(self) -> None:
        """Images of whole systems need absolute and climbing links; nobody follows them."""
        for target in ("/etc/passwd", "../../../..", "x" * 4095, "a//b/", "."):
            data, image = sealed(f"/\n  l s {target}\n".encode())
            self.assertEqual(parse(data, image).symlinks[0].target, target)

    def test_same_block_many_times(self) -> None:
        """A file of zeros names one hash again and again."""
        body = b"/\n  zeros f 98304 " + b" ".join([H] * 3) + b"\n"
        data, image = sealed(body)
        self.assertEqual(parse(data, image).files[0].hashes, bytes.fromhex(H.decode()) * 3)

    def test_order_is_by_components(self) -> None:
        """The format document sorts by the bytes of the whole path, the programs by components: ``/a/b`` comes before ``/a-b``."""
        data, image = sealed(b"/\n/a\n/a/b\n/a-b\n")
        self.assertEqual(len(parse(data, image).directories), 4)
        data, image = sealed(b"/\n/a\n/a-b\n/a/b\n")
        self.assertRaises(BadIndex, parse, data, image)

    def test_longest_line_of_one_hash(self) -> None:
        """A name of 255 bytes that are all escaped takes 1,020."""
        name = "ü" * 127 + "\n"
        data, image = sealed(b"/\n  " + b"\\xc3\\xbc" * 127 + b"\\x0a f 5 " + H + b"\n")
        self.assertEqual(parse(data, image).files[0], File("/" + name, False, 5, bytes.fromhex(H.decode())))


@shows("A4")
class HashFirstTests(SynchronousTestCase):
    """Nothing is parsed that is not what was asked for."""

    @shows("F4", "I1")
    def test_flipped_bytes(self) -> None:
        """A peer or a disk that changes one bit must not change what is installed."""
        image = footer_of(FEATURES)
        for at in range(len(FEATURES)):
            for bit in (0x01, 0x20, 0x80):
                data = bytearray(FEATURES)
                data[at] ^= bit
                self.assertRaises(BadIndex, parse, bytes(data), image)

    def test_other_image(self) -> None:
        """A whole and sound index of another image must not be installed under this one's signature (threats A4)."""
        error = self.assertRaises(BadIndex, parse, FEATURES, footer_of(LIBRARY))
        self.assertIn(footer_of(LIBRARY).hex(), str(error))
        self.assertRaises(BadIndex, parse, FEATURES, ImageId(bytes(32)))

    def test_right_footer_wrong_body(self) -> None:
        """The reference never recomputes the footer: any source can give it any tree."""
        forged = SMALLEST.replace(b"/\n", b"/\n/x\n")
        self.assertRaises(BadIndex, parse, forged, footer_of(SMALLEST))
        self.assertRaises(BadIndex, image_id_of, forged)

    def test_header_is_not_hashed(self) -> None:
        """The header is outside of the hash, so a changed one has to be found otherwise: the body is hashed by what it names."""
        for kind in (HashKind.SHA512_256, HashKind.BLAKE3):
            swapped = HEADERS[kind] + SMALLEST[SMALLEST.index(b"\n") + 1 :]
            self.assertRaises(BadIndex, parse, swapped, footer_of(SMALLEST))

    @shows("A5")
    def test_hash_before_size_of_lines(self) -> None:
        """A body that is not the one asked for is refused as such, however wrong its lines are: the parser never saw it."""
        data, image = sealed(b"nonsense\n")
        error = self.assertRaises(BadIndex, parse, data, footer_of(SMALLEST))
        self.assertNotIn("line", str(error))
        self.assertIn("line 2", str(self.assertRaises(BadIndex, parse, data, image)))

    @shows("A6")
    def test_size_limit(self) -> None:
        """An index of gigabytes would take the daemon's memory before it can be refused (threats A6)."""
        parse(FEATURES, footer_of(FEATURES), len(FEATURES))
        for call in (lambda: parse(FEATURES, footer_of(FEATURES), len(FEATURES) - 1), lambda: image_id_of(FEATURES, len(FEATURES) - 1)):
            self.assertIn("allowed", str(self.assertRaises(BadIndex, call)))


@shows("A4")
class FrameTests(SynchronousTestCase):
    """Header and footer."""

    def refused(self, data: bytes) -> None:
        self.assertRaises(BadIndex, parse, data, footer_of(SMALLEST))
        self.assertRaises(BadIndex, image_id_of, data)

    def test_header(self) -> None:
        """What the reference's parser tolerates is a second spelling of the same id; another block size cannot be exchanged."""
        rest = SMALLEST[SMALLEST.index(b"\n") :]
        for header in (
            b"",
            b"DIRSIGNATURE.v1",
            b"DIRSIGNATURE.v1 blake2b/256",
            b"DIRSIGNATURE.v2 blake2b/256 block_size=32768",
            b"dirsignature.v1 blake2b/256 block_size=32768",
            b"DIRSIGNATURE.v1  blake2b/256 block_size=32768",
            b"DIRSIGNATURE.v1\tblake2b/256 block_size=32768",
            b" DIRSIGNATURE.v1 blake2b/256 block_size=32768",
            b"DIRSIGNATURE.v1 blake2b/256 block_size=32768 ",
            b"DIRSIGNATURE.v1 blake2b/256 block_size=32768 more",
            b"DIRSIGNATURE.v1 blake2b/256 block_size=32768\r",
            b"DIRSIGNATURE.v1 blake2b/256 block_size=+32768",
            b"DIRSIGNATURE.v1 blake2b/256 block_size=032768",
            b"DIRSIGNATURE.v1 blake2b/256 block_size=0",
            b"DIRSIGNATURE.v1 blake2b/256 block_size=1",
            b"DIRSIGNATURE.v1 blake2b/256 block_size=65536",
            b"DIRSIGNATURE.v1 blake2b/256 block_size=",
            b"DIRSIGNATURE.v1 blake2b/512 block_size=32768",
            b"DIRSIGNATURE.v1 md5 block_size=32768",
            b"DIRSIGNATURE.v1 BLAKE2B/256 block_size=32768",
        ):
            self.refused(header + rest)
            self.assertRaises(BadIndex, peek_kind, header + rest)

    def test_footer(self) -> None:
        """Bytes that no hash covers could be anything."""
        footer = SMALLEST[-65:-1]
        body = SMALLEST[:-65]
        for end in (
            b"",
            b"\n",
            footer,
            footer + b" \n",
            footer + b"\r\n",
            footer + b"\n\n",
            footer + b"\nx",
            footer + b"\n/x\n",
            footer + b" " + footer + b"\n",
            footer.upper() + b"\n",
            footer[:-1] + b"\n",
            footer + b"0\n",
            b" " + footer + b"\n",
            footer[:-1] + b"g\n",
        ):
            self.refused(body + end)

    def test_footer_on_the_last_line_of_the_body(self) -> None:
        """A footer is a line of its own."""
        digest = KIND.hash(b"/\n/a").hex().encode()
        self.refused(HEADERS[KIND] + b"/\n/a" + digest + b"\n")

    def test_every_truncation(self) -> None:
        """A connection that ends early must not leave half of a tree."""
        for end in range(len(FEATURES)):
            self.refused(FEATURES[:end])

    def test_no_body(self) -> None:
        """Even an empty directory has a line."""
        data, image = sealed(b"")
        self.assertIn("directory /", str(self.assertRaises(BadIndex, parse, data, image)))


class LineTests(SynchronousTestCase):
    """Bodies whose hash is right and whose lines are not: only the parser stands between them and the disk."""

    def refused(self, body: bytes, line: int | None = None, what: str = "") -> None:
        data, image = sealed(body)
        try:
            parse(data, image)
        except BadIndex as raised:
            error = raised
        else:
            self.fail(f"accepted: {body[:300]!r}")
        self.assertIn(what, str(error))
        self.assertLess(len(str(error)), 400)
        if line is not None:
            self.assertTrue(str(error).startswith(f"line {line}: "), str(error))

    @shows("A1", "F1", "I3")
    def test_names_that_leave_the_tree(self) -> None:
        """Any of them accepted, and whoever can upload writes anywhere on the server (threats A1)."""
        for name in (
            b"..",
            b".",
            b"../x",
            b"a/b",
            b"/",
            b"/etc/passwd",
            b"\\x2fetc\\x2fpasswd",
            b"\\x2e\\x2e",
            b"\\x2e",
            b"a\\x00",
            b"\\x00",
        ):
            self.refused(b"/\n  " + name + b" f 0\n", 3)
            self.refused(b"/\n  " + name + b" f 1 " + H + b"\n", 3)
            self.refused(b"/\n  " + name + b" s x\n", 3)
        for path in (
            b"/..",
            b"/.",
            b"/../../etc",
            b"/a/../b",
            b"/./a",
            b"//",
            b"//a",
            b"/a/",
            b"/a//b",
            b"/\\x2e\\x2e",
            b"/a\\x00",
            b"/\\x2fetc",
        ):
            self.refused(b"/\n/a\n" + path + b"\n")
            self.refused(b"/\n" + path + b"\n", 3)

    @shows("A1", "F1")
    def test_names_that_are_not_utf8(self) -> None:
        """They stop reference daemons that this node passes them to."""
        for raw in (b"\\xff", b"\\xc3", b"\\xed\\xa0\\x80", b"\\xc0\\xae\\xc0\\xae"):
            self.refused(b"/\n  " + raw + b" f 0\n", 3, "UTF-8")
            self.refused(b"/\n" + raw.replace(b"\\", b"/\\", 1) + b"\n", 3, "UTF-8")
            self.refused(b"/\n  l s " + raw + b"\n", 3, "UTF-8")

    @shows("A4")
    def test_other_spellings(self) -> None:
        """A second spelling of a name gives a second id to the same tree, and hides from checks on the first."""
        for name in (
            b"\\x41",
            b"a\\x5C",
            b"\\xzz",
            b"\\",
            b"\\x4",
            b"\xc3\xbc",
            b"\xff",
            b"a\x00b",
            b"a\x7f",
            b"a\tb",
            b"a\\\\b",
            b"\\x2Fa",
        ):
            self.refused(b"/\n  " + name + b" f 0\n", 3)
            self.refused(b"/\n/" + name + b"\n", 3)
            self.refused(b"/\n  l s " + name + b"\n", 3)

    @shows("A1", "F1")
    def test_limits_of_names(self) -> None:
        """What the file system refuses late, after hours of download, is refused here."""
        self.refused(b"/\n  " + b"x" * 256 + b" f 0\n", 3)
        self.refused(b"/\n  " + b"x" * 256 + b" f 1 " + H + b"\n", 3)
        self.refused(b"/\n  " + b"x" * 2000 + b" f 0\n", 3)
        self.refused(b"/\n  " + b"\\xc3\\xbc" * 64 + b"x" * 128 + b" f 0\n", 3, "255")
        self.refused(b"/\n/" + b"x" * 256 + b"\n", 3)
        self.refused(b"/\n/" + b"x" * 40000 + b"\n", 3, "too long")
        self.refused(b"/\n  l s " + b"x" * 4096 + b"\n", 3, "4095")
        self.refused(b"/\n  l s " + b"x" * 40000 + b"\n", 3)
        self.refused(b"/\n  l s \n", 3)
        self.refused(b"/\n  l s a\\x00b\n", 3, "NUL")

    @shows("A1", "F1")
    def test_depth(self) -> None:
        """A tree without end would use up file descriptors and stack of whatever walks it."""

        def chain(levels: int) -> bytes:
            return b"/\n" + b"".join(b"/d" * level + b"\n" for level in range(1, levels + 1))

        data, image = sealed(chain(63) + b"  x f 1 " + H + b"\n" + b"/d" * 64 + b"\n")
        parse(data, image)
        self.refused(chain(65), 67, "64")
        self.refused(chain(64) + b"  x f 1 " + H + b"\n", 67, "deep")
        self.refused(chain(64) + b"  x s y\n", 67, "deep")

    @shows("A1", "F1")
    def test_length_of_paths(self) -> None:
        """A path of more than 4,096 bytes cannot be named in a request."""
        steps = [b"/" + b"x" * 255] * 15
        chain = b"/\n" + b"".join(b"".join(steps[:count]) + b"\n" for count in range(1, 16))
        data, image = sealed(chain + b"  " + b"y" * 255 + b" f 1 " + H + b"\n")
        self.assertEqual(len(parse(data, image).files[0].path), 4096)
        more = chain + b"".join(steps) + b"/z\n"
        self.refused(more + b"  " + b"y" * 254 + b" f 1 " + H + b"\n", 19, "too long")
        self.refused(more + b"  " + b"\\xc3\\xbc" * 127 + b" s t\n", 19, "too long")
        data, image = sealed(more + b"  " + b"y" * 253 + b" f 0\n")
        parse(data, image)

    @shows("A2", "A4")
    def test_order_and_doubles(self) -> None:
        """Two entries of one name, and whichever is written last wins: the disk no longer is what was signed (threats A2)."""
        for body in (
            b"/\n  b f 0\n  a f 0\n",
            b"/\n  a f 0\n  a f 0\n",
            b"/\n  a f 0\n  a s x\n",
            b"/\n  a f 1 " + H + b"\n  a f 1 " + H + b"\n",
            b"/\n  b f 1 " + H + b"\n  a f 1 " + H + b"\n",
            b"/\n  \\xc3\\xbc f 0\n  z f 0\n",
        ):
            self.refused(body, 4, "out of order")
        self.refused(b"/\n/b\n/a\n", 4, "out of order")
        self.refused(b"/\n/a\n/a\n", 4, "out of order")
        self.refused(b"/\n/\n", 3, "twice")
        self.refused(b"/\n/a\n/\n", 4, "twice")
        self.refused(b"/\n/a\n/b\n/a/c\n", 5, "parent")
        self.refused(b"/\n/a\n/a/c\n/a/b\n", 5, "out of order")
        self.refused(b"/\n/a/b\n", 3, "parent")
        self.refused(b"/\n/a\n/a/b/c\n", 4, "parent")

    @shows("A2", "F2")
    def test_a_name_for_two_things(self) -> None:
        """A link ``a`` to /etc and then a directory ``a`` with files in it is how archives write outside of their tree (threats A2)."""
        self.refused(b"/\n  a s /etc\n/a\n", 4, "both")
        self.refused(b"/\n  a f 0\n/a\n  x f 0\n", 4, "both")
        self.refused(b"/\n  a f 1 " + H + b"\n  b f 0\n/a\n", 5, "both")
        self.refused(b"/\n/d\n  a s /etc\n/d/a\n", 5, "both")
        self.refused(b"/\n  m s /\n/a\n/a/b\n/m\n", 6, "both")

    def test_no_root(self) -> None:
        """Entries before the first directory stop the reference's daemon; here they would have no place."""
        self.refused(b"/a\n", 2, "not /")
        self.refused(b"  a f 0\n/\n", 2, "not the directory /")
        self.refused(b"  a f 1 " + H + b"\n/\n", 2)

    @shows("A4", "A5")
    def test_numbers(self) -> None:
        """Sizes are believed later, when space is reserved; a wrong one must not even be allocated for (threats A5)."""
        for size in (b"+1", b"01", b"00", b"-1", b"1.0", b"1e3", b"0x1", b"", b"\xd9\xa1", b"1_0"):
            self.refused(b"/\n  a f " + size + b" " + H + b"\n", 3)
            self.refused(b"/\n  a f " + size + b"\n", 3)
        for number in (2**63 - 1, 2**64 - 1, 10**15, 32769, 65536, 10**30):
            self.refused(f"/\n  a f {number} ".encode() + H + b"\n", 3)
            self.refused(f"/\n  a f {number}\n".encode(), 3)
        self.refused(b"/\n  a f " + b"9" * 5000 + b" " + H + b"\n", 3)

    @shows("A5", "F6")
    def test_number_of_hashes(self) -> None:
        """A file with too few hashes would have blocks that nobody checks."""
        self.refused(b"/\n  a f 0 " + H + b"\n", 3, "0 hashes")
        self.refused(b"/\n  a f 1\n", 3, "1 hashes")
        self.refused(b"/\n  a f 1 " + H + b" " + OTHER + b"\n", 3, "1 hashes")
        self.refused(b"/\n  a f 32769 " + H + b"\n", 3, "2 hashes")
        self.refused(b"/\n  a f 32768 " + H + b" " + OTHER + b"\n", 3, "1 hashes")
        self.refused(b"/\n  a f 99999 " + b" ".join([H] * 5) + b"\n", 3, "4 hashes")

    @shows("A4")
    def test_spelling_of_hashes(self) -> None:
        """Hex in capitals is a second spelling; a blank in another place hides a hash of another length."""
        for hashes in (
            H.upper(),
            H[:-1] + b"g",
            H[:-1] + b" ",
            b" " + H[:-1],
            H[:-1],
            H + b"0",
            H[:32] + b" " + H[33:],
            H[:-2] + b"\xc3\xa9",
            H[:-1] + b"\xb2",
        ):
            self.refused(b"/\n  a f 1 " + hashes + b"\n", 3)
            self.refused(b"/\n  a f 40000 " + hashes + b" " + H + b"\n", 3)
            self.refused(b"/\n  a f 40000 " + H + b" " + hashes + b"\n", 3)
        for gap in (b"", b"  ", b"\t", b",", b"0"):
            self.refused(b"/\n  a f 40000 " + H + gap + H + b"\n", 3)
        self.refused(b"/\n  a f 40000 " + H[:-2] + b" " + H[-2:] + H + b"\n", 3)

    def test_spelling_of_many_hashes(self) -> None:
        """Lines of megabytes are read in pieces; at the joints the same rules hold."""
        count = 2050
        head = f"/\n  a x {count * 32768} ".encode()
        good = b" ".join([H, OTHER] * (count // 2))
        data, image = sealed(head + good + b"\n")
        self.assertEqual(parse(data, image).files[0].block_count, count)
        for at in (64, 65 * 1024 - 1, 65 * 1024, 65 * 2048 - 1, len(good) - 1):
            for wrong in (b"A", b"\t", b"g", b"x", b"0", b"\xff"):
                if wrong != b"0" or good[at : at + 1] == b" ":
                    self.refused(head + good[:at] + wrong + good[at + 1 :] + b"\n", 3)
        self.refused(head + good + b" \n", 3)
        self.refused(head + good[:-65] + b"\n", 3)

    @shows("A4")
    def test_blanks(self) -> None:
        """The reference tolerates a blank at the end of a line; then two texts mean one tree."""
        for body in (
            b"/ \n",
            b"/\r\n",
            b"/\n\n",
            b"\n/\n",
            b"/\n  a f 0 \n",
            b"/\n  a f 0\r\n",
            b"/\n  a f 1 " + H + b" \n",
            b"/\n  a f 1 " + H + b"\r\n",
            b"/\n  a f  0\n",
            b"/\n  a  f 0\n",
            b"/\n a f 0\n",
            b"/\n   a f 0\n",
            b"/\n\ta f 0\n",
            b"/\n  a f 1  " + H + b"\n",
            b"/\n  a f 1\t" + H + b"\n",
            b"/\n  l s x \n",
            b"/\n  l s  x\n",
            b"/\n  l s x y\n",
            b"/\n  l s\n",
            b"/\n  \n",
            b"/\n  a\n",
            b"/\n  a f\n",
            b"/\n  a f \n",
            b"/\n \n",
            b"/\n/a \n",
            b"/\n/a b\n",
            b"a\n",
        ):
            self.refused(body)

    @shows("A9")
    def test_types(self) -> None:
        """Devices, set-uid files and the like cannot be asked for (threats A9)."""
        for letter in (b"d", b"F", b"X", b"b", b"c", b"p", b"u", b"h", b"ff", b"fx", b"", b"4755"):
            self.refused(b"/\n  a " + letter + b" 1 " + H + b"\n", 3)
            self.refused(b"/\n  a " + letter + b" x\n", 3)

    def test_footer_in_the_middle(self) -> None:
        """What follows an early footer belongs to no tree."""
        footer = SMALLEST[-65:]
        self.refused(b"/\n" + footer, 3)
        self.refused(b"/\n" + footer + b"/x\n", 3)

    @shows("A5", "F6", "I6")
    def test_memory_is_bounded(self) -> None:
        """A short index can name very many empty files below one long path: megabytes of text would become gigabytes of names."""
        body = b"/\n" + b"".join(b"  %03d f 0\n" % number for number in range(100))
        data, image = sealed(body)
        self.patch(names, "MAX_LISTING_BYTES", 101 * 201)
        parse(data, image)
        self.patch(names, "MAX_LISTING_BYTES", 101 * 201 - 1)
        self.refused(body, 102, "too many")
        directories = b"/\n" + b"".join(b"/%03d\n" % number for number in range(100))
        self.patch(names, "MAX_LISTING_BYTES", 201 + 99 * 205)
        self.refused(directories, 102, "too many")
        spread = b"/\n  a f 0\n  b f 0\n/c\n"
        self.patch(names, "MAX_LISTING_BYTES", 3 * 201 + 200)
        self.refused(spread, 5, "too many")


class MutationTests(SynchronousTestCase):
    """Arbitrary damage below a right hash: either refused as BadIndex, or canonical."""

    def judge(self, body: bytes) -> None:
        data, image = sealed(body)
        try:
            index = parse(data, image)
        except BadIndex:
            return
        self.assertEqual(emit(index.kind, index.directories), (image, data))

    @shows("A4", "F4")
    def test_every_byte(self) -> None:
        """A parser that dies of something else than BadIndex takes the daemon's thread with it."""
        body = body_of(FEATURES)
        for at in range(len(body)):
            for byte in b"\x00\n\r /.\\0afx~\xff":
                self.judge(body[:at] + bytes((byte,)) + body[at + 1 :])

    def test_every_deletion_and_insertion(self) -> None:
        """Shifted lines meet every state of the parser."""
        body = body_of(FEATURES)
        for at in range(len(body)):
            self.judge(body[:at] + body[at + 1 :])
            for byte in b"\n /0":
                self.judge(body[:at] + bytes((byte,)) + body[at:])

    def test_shuffled_lines(self) -> None:
        """Order is part of the image: at most the original comes through."""
        rng = random.Random(7)
        lines = body_of(FEATURES).splitlines(keepends=True)
        for _ in range(300):
            mixed = lines[:]
            rng.shuffle(mixed)
            self.judge(b"".join(mixed))
            self.judge(b"".join(rng.choices(lines, k=rng.randrange(12))))

    @settings(derandomize=True, deadline=None, database=None, max_examples=150)
    @given(trees(), st.data())
    def test_damaged_trees(self, tree: tuple[HashKind, tuple[Directory, ...]], data: st.DataObject) -> None:
        """The same for trees with all sorts of names."""
        body = body_of(emit(*tree)[1])
        at = data.draw(st.integers(0, len(body)))
        length = data.draw(st.integers(0, 4))
        new = data.draw(st.one_of(st.binary(max_size=4), st.sampled_from((b"\n/", b"\n  ", b"\\x", b" f 0\n", b" s .\n", b"/.."))))
        self.judge(body[:at] + new + body[at + length :])

    @shows("A4", "I8")
    @settings(derandomize=True, deadline=None, database=None, max_examples=100)
    @given(st.binary(max_size=200))
    def test_any_bytes(self, data: bytes) -> None:
        """Bytes from the network have no form at all."""
        self.judge(data)
        self.assertRaises(BadIndex, parse, data, ImageId(bytes(32)))
        self.assertRaises(BadIndex, image_id_of, data)
