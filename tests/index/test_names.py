"""Tests of ``ciruela.index.names``."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.index.names import MAX_DEPTH, check_component, check_target, components, escape, size_in_utf8, unescape
from tests.proof import shows


class EscapeTests(SynchronousTestCase):
    """The spelling of names."""

    def test_every_byte(self) -> None:
        """A byte that is escaped in another way than the reference's gives other image ids for the same directory."""
        for code in range(128):
            char = chr(code)
            plain = 0x20 < code < 0x7F and char != "\\"
            self.assertEqual(escape(char), char if plain else f"\\x{code:02x}")
            self.assertEqual(unescape(escape(char)), char)

    def test_beyond_ascii(self) -> None:
        """A user's name with an umlaut would come out as something else."""
        self.assertEqual(escape("ü😀"), "\\xc3\\xbc\\xf0\\x9f\\x98\\x80")
        self.assertEqual(unescape("\\xc3\\xbc\\xf0\\x9f\\x98\\x80"), "ü😀")

    @settings(derandomize=True, deadline=None, database=None, max_examples=200)
    @given(st.text(st.characters(codec="utf-8"), max_size=60))
    def test_round_trip(self, text: str) -> None:
        """A name that does not survive would be written to disk under another name."""
        spelled = escape(text)
        self.assertRegex(spelled, r"\A[!-~]*\Z")
        self.assertEqual(unescape(spelled), text)

    @settings(derandomize=True, deadline=None, database=None, max_examples=300)
    @given(st.text(st.sampled_from("abcABC\\x0257cfdF /~\n\x7füé"), max_size=16))
    def test_only_one_spelling(self, spelled: str) -> None:
        """Two spellings of one name make two image ids for one tree, and a re-emitted index that no longer fits its signature."""
        try:
            text = unescape(spelled)
        except ValueError:
            return
        self.assertEqual(escape(text), spelled)

    @shows("A4")
    def test_refused_spellings(self) -> None:
        """Each is tolerated somewhere by the reference and would be a second spelling here."""
        for spelled in ("\\xzz", "\\", "\\x2", "\\x", "\\\\", "\\n", "\\x2f", "\\x41", "\\x5C", "\\xC3\\xBC", "a b", "ü", "a\tb", "a\n"):
            self.assertRaises(ValueError, unescape, spelled)

    @shows("A1", "F1")
    def test_not_utf8(self) -> None:
        """Names that are not UTF-8 stop the reference's daemons when they are sent on."""
        for spelled in ("\\xff", "\\xc3", "\\xed\\xa0\\x80", "\\xc0\\xaf", "\\xf4\\x90\\x80\\x80"):
            error = self.assertRaises(ValueError, unescape, spelled)
            self.assertIn("UTF-8", str(error))

    def test_surrogates_have_no_spelling(self) -> None:
        """A name that is not UTF-8 on disk comes from Python as surrogates; it must not get into an index."""
        self.assertRaises(ValueError, escape, "\udcff")


class LimitTests(SynchronousTestCase):
    """What can be a name, a path, a target."""

    @shows("A1", "F1")
    def test_components(self) -> None:
        """One bad component is enough to write outside of the destination."""
        for name in ("", ".", "..", "a/b", "/", "a\0", "\0", "x" * 256, "ü" * 128, "\udc80"):
            self.assertRaises(ValueError, check_component, name)
        for name in ("...", "..a", " ", "\n", "a\tb", "-", "~", "x" * 255, "ü" * 127, "\x01\x7f\x9f", "con", "a\\b"):
            check_component(name)

    @shows("A3")
    def test_targets(self) -> None:
        """A target that no file system takes would make a download fail after everything was fetched."""
        for target in ("", "a\0", "x" * 4096, "ü" * 2048):
            self.assertRaises(ValueError, check_target, target)
        for target in ("/etc/passwd", "../../..", "x" * 4095, "\n", ".", "a//b"):
            check_target(target)

    @shows("A1", "F1")
    def test_paths(self) -> None:
        """Paths become directories one component at a time; each has to be one, and there has to be an end."""
        self.assertEqual(components("/"), [])
        self.assertEqual(components("/a/b c"), ["a", "b c"])
        self.assertEqual(len(components("/a" * MAX_DEPTH)), MAX_DEPTH)
        self.assertEqual(len(components("/" + "/".join(["x" * 255] * 16))), 16)
        long = "/" + "/".join(["x" * 240] * 17)
        for path in (
            "",
            "a",
            "ab",
            "a/b",
            "//",
            "/a/",
            "/a//b",
            "/..",
            "/a/../b",
            "/.",
            "/a\0",
            "/a" * (MAX_DEPTH + 1),
            long,
            "/" + "x" * 256,
        ):
            self.assertRaises(ValueError, components, path)

    @shows("A1")
    def test_path_size_counts_bytes(self) -> None:
        """A path of 4,096 characters beyond ASCII is longer than any system call takes."""
        path = "/" + "/".join(["ü" * 127] * 17)
        self.assertLess(len(path), 4096)
        self.assertGreater(size_in_utf8(path), 4096)
        self.assertRaises(ValueError, components, path)

    def test_messages_quote_little(self) -> None:
        """A hostile name of megabytes would fill the log."""
        for call, text in (
            (unescape, "\\y" * 5000),
            (check_component, "/" * 5000),
            (check_component, "y" * 5000),
            (components, "/" + "z" * 5000),
        ):
            error = self.assertRaises(ValueError, call, text)
            self.assertLess(len(str(error)), 200)
