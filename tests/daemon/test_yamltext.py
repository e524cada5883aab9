"""The YAML that configuration files may use."""

import time

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.daemon.rules import MAX_BYTES, MAX_DEPTH, Items, Mistake, Scalar, Table, Value, read_yaml
from tests.proof import shows


def plain(value: Value) -> object:
    """``value`` as dicts, lists and texts."""
    if isinstance(value, Scalar):
        return value.text
    if isinstance(value, Items):
        return [plain(item) for item in value.values]
    return {key: plain(item) for key, (_, item) in value.entries.items()}


class ReadTests(SynchronousTestCase):
    """What an operator writes is what is read, and nothing is guessed."""

    def test_shapes(self) -> None:
        """Mappings, lists and texts, in block and flow style, with comments."""
        text = b"# c\na: b\nc: [d, 'e f', \"g\\n\"]\nh:\n  - i\n  - j: {k: l}\nm: |\n  n\n  o\n"
        expected = {"a": "b", "c": ["d", "e f", "g\n"], "h": ["i", {"j": {"k": "l"}}], "m": "n\no\n"}
        self.assertEqual(plain(read_yaml(text)), expected)

    def test_no_types(self) -> None:
        """``no`` stays a text, and so do times, numbers and dates."""
        table = plain(read_yaml(b"a: [no, 1:30, 010, 2024-01-01, .nan, true, <<]"))
        self.assertEqual(table, {"a": ["no", "1:30", "010", "2024-01-01", ".nan", "true", "<<"]})

    def test_null(self) -> None:
        """Nothing, a tilde and null are nothing, unless they are quoted."""
        table = read_yaml(b"a:\nb: ~\nc: null\nd: 'null'\ne: ''\nf: x\n")
        self.assertIsInstance(table, Table)
        self.assertEqual([key for key, (_, value) in table.entries.items() if value.is_null], ["a", "b", "c"])

    def test_lines(self) -> None:
        """Messages point to the line of an editor."""
        table = read_yaml(b"\n# c\na: b\nd:\n  - e\n  - f\n")
        self.assertEqual({key: line for key, (line, _) in table.entries.items()}, {"a": 3, "d": 4})
        self.assertEqual([item.line for item in table.entries["d"][1].values], [5, 6])

    def test_empty(self) -> None:
        """An empty file is nothing."""
        for data in (b"", b"# c\n", b"---\n", b"\xef\xbb\xbf"):
            self.assertTrue(read_yaml(data).is_null)

    def refused(self, data: bytes, line: int, said: str) -> None:
        """``data`` is refused at ``line`` with a message that contains ``said``."""
        error = self.assertRaises(Mistake, read_yaml, data)
        self.assertEqual(error.line, line)
        self.assertIn(said, error.reason)

    @shows("A47", "F60")
    def test_refused(self) -> None:
        """Everything by which a small file could mean something large, hidden or surprising."""
        self.refused(b"a: b\nc: *d\n", 2, '"*d" is an alias')
        self.refused(b"a: &b c\n", 1, '"&b" is an anchor')
        self.refused(b"a:\n  &b [c]\n", 2, "anchor")
        self.refused(b"a: !!python/name:os.system x\n", 1, "tag")
        self.refused(b"a: !!str x\n", 1, "tag")
        self.refused(b"a: !x {b: c}\n", 1, "tag")
        self.refused(b"a: b\nc: d\na: e\n", 3, "a: this key stands in line 1 already")
        self.refused(b"_x:\n  b: 1\n  b: 2\n", 3, "stands in line 2")
        self.refused(b"a: b\n---\nc: d\n", 2, "second document")
        self.refused(b"? [a]\n: b\n", 1, "cannot be a key")
        self.refused(b"{a: b}: c\n", 1, "cannot be a key")

    def test_not_yaml(self) -> None:
        """Syntax errors have their line."""
        self.refused(b"a: b\nc\n", 3, "this is not YAML")
        self.refused(b"a: [b\n", 2, "this is not YAML")
        self.refused(b"a: b\n\tc: d\n", 2, "this is not YAML")
        self.refused(b"a: b\nc: @d\n", 2, "this is not YAML")
        self.refused(b"a: b\nc: \x01\n", 2, "control character")
        self.refused(b"a: b\nc: \xff\n", 2, "not UTF-8")

    @shows("A47", "F60")
    def test_limits(self) -> None:
        """Size and depth are limited, and at the limit all is well."""
        read_yaml(b"#" * MAX_BYTES)
        self.refused(b"#" * (MAX_BYTES + 1), 1, "larger than 256 KiB")
        read_yaml(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
        self.refused(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), 1, "deep")
        self.refused(b"- " * 5000, 1, "deep")

    @shows("A47", "F60", "I8")
    def test_bombs_are_quick(self) -> None:
        """A hostile file does not keep a node from starting for longer than a deep breath."""
        begin = time.process_time()
        for data in (b"[" * MAX_BYTES, b"{" * MAX_BYTES, b"? " * 100_000, b"- " * 100_000, b"a: " + b'"' * 200_000):
            self.assertRaises(Mistake, read_yaml, data)
        self.assertLess(time.process_time() - begin, 10)

    @shows("A47", "F60", "I8")
    @settings(derandomize=True, deadline=None, database=None, max_examples=200)
    @given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@`?, \n\t\\0~\x01é", max_size=40))
    def test_anything(self, text: str) -> None:
        """Whatever a file holds, the answer is a value or a message with a line."""
        try:
            read_yaml(text.encode())
        except Mistake as mistake:
            self.assertGreaterEqual(mistake.line, 1)
            self.assertLessEqual(mistake.line, text.count("\n") + 2)
