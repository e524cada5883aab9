"""Virtual paths: what may be the name of an image."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.vpath import MAX_COMPONENT_BYTES, MAX_LEVELS, MAX_PATH_BYTES, VPath, check_component
from tests.proof import shows

RESERVED = (".hidden", ".ciruela~0123", ".lock", "web.new", ".new")
IMPOSSIBLE = ("", ".", "..", "a/b", "/", "a\0b", "a\nb", "\x1b[2J", "\x7f", "\x85", "\ud800", "x" * 256, "ü" * 128)


class ComponentTests(SynchronousTestCase):
    """One component."""

    @shows("A17", "A27", "F1", "F3")
    def test_refused(self) -> None:
        """An upload could leave its directory, take the name of a staging directory, or steer the terminal of who reads a log."""
        for name in (*RESERVED, *IMPOSSIBLE):
            with self.assertRaises(ValueError, msg=repr(name)) as caught:
                check_component(name)
            self.assertLess(len(str(caught.exception)), 1200)
            self.assertTrue(str(caught.exception).isprintable())
            self.assertRaises(ValueError, VPath(("key",)).child, name)
            self.assertRaises(ValueError, VPath.parse, f"/key/{name}//x")

    @shows("S14")
    def test_invisible(self) -> None:
        """Two names that look the same would be two images; a name could turn around the text behind it in a log or on a page."""
        for char in ("\u200b", "\u200d", "\u202e", "\u2066", "\ufeff", "\u00ad", "\u2028", "\u2029", "\U000e0041"):
            self.assertRaises(ValueError, check_component, f"v{char}1")
            self.assertRaises(ValueError, VPath.parse, f"/key/{char}")

    def test_allowed(self) -> None:
        """Names that people use would be refused."""
        for name in ("a", "-", "~", "a b", "v1.0", "new", "x.news", "ä", "日本", "x" * MAX_COMPONENT_BYTES, "ü" * 127, "a..b", "a."):
            check_component(name)
            self.assertEqual(VPath(("key",)).child(name).name, name)


class PathTests(SynchronousTestCase):
    """A whole path."""

    @shows("A17", "A35", "F1")
    def test_limits(self) -> None:
        """A path could be too long for a datagram, or be as deep as somebody likes."""
        long = "/key" + "/" + "/".join(["x" * 200] * 5)
        self.assertLessEqual(len(long), MAX_PATH_BYTES)
        fitting = long + "/" + "x" * (MAX_PATH_BYTES - len(long) - 1)
        self.assertEqual(str(VPath.parse(fitting)), fitting)
        self.assertRaises(ValueError, VPath.parse, fitting + "x")
        self.assertRaises(ValueError, VPath.parse, "/key" + ("/" + "ü" * 100) * 6)
        deep = "/key" + "/x" * MAX_LEVELS
        self.assertEqual(VPath.parse(deep).level, MAX_LEVELS)
        self.assertRaises(ValueError, VPath.parse, deep + "/x")

    @shows("A17", "F1")
    def test_forms(self) -> None:
        """One image would have two names, or a relative path would be taken for another one."""
        for text in ("", "/", "key", "key/x", "//key", "/key/", "/key//x", "/key/../x", "/key/./x", "\\key"):
            self.assertRaises(ValueError, VPath.parse, text)
        for text in ("/key", "/key/a/b"):
            self.assertEqual(str(VPath.parse(text)), text)

    def test_parts(self) -> None:
        """Base dirs and images would be mixed up."""
        path = VPath.parse("/key/a/b")
        self.assertEqual((path.key, path.level, path.name, path.entry), ("key", 2, "b", "b"))
        self.assertEqual(path.base, VPath.parse("/key/a"))
        self.assertEqual(path.base.image_at("b"), path)
        top = VPath.parse("/key")
        self.assertEqual((top.base, top.entry, top.level), (top, "", 0))
        self.assertEqual(top.image_at(""), top)
