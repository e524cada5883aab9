"""What the user sees."""

from __future__ import annotations

import io

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.listener import UploadRow
from ciruela.client.live import Layout, TerminalBlock, fitting, shortened
from ciruela.client.options.common import ProgressStyle
from ciruela.client.progress import (
    Display,
    Throughput,
    bar_part,
    live_parts,
    progress_line,
    promise_lines,
    result_lines,
    safe_line,
    wants_live,
)
from ciruela.client.text import MAX_TEXT, clean, clean_lines, count, folded, interval, size, stamp
from ciruela.client.tracker import RUNNING, UploadOutcome, UploadProgress, Verdict
from ciruela.model.ids import ImageId
from tests.proof import shows

PROPERTY = settings(derandomize=True, deadline=None, database=None, max_examples=100)
EVIL = "\x1b[2J\x07evil\r\n\u202e[red]"


class Terminal(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, tty: bool = True) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


def row(
    outcome: UploadOutcome = UploadOutcome.RUNNING,
    done: int = 61,
    expected: int = 78,
    missing: tuple[str, ...] = (),
    failed: tuple[tuple[str, str], ...] = (),
    accepted: tuple[str, ...] = ("w04", "w19", "w77"),
    cluster: str = "eu",
    path: str = "/apps/shop",
    why: str = "",
    share: float | None = None,
    given_bytes: int | None = None,
    elapsed_s: float = 41.5,
    sent_bytes: int = 417_333_248,
) -> UploadRow:
    verdict = RUNNING if outcome is UploadOutcome.RUNNING else Verdict(outcome, 0, why)
    standing = UploadProgress(done, expected, accepted, missing, failed)
    return UploadRow(
        cluster,
        path,
        ImageId(b"\x11" * 32),
        verdict,
        standing,
        sent_bytes,
        4_402_341_478,
        elapsed_s,
        given=share,
        given_bytes=given_bytes,
    )


class Shown:
    """A run whose rows a test sets."""

    def __init__(self, *rows: UploadRow, nodes: int = 0) -> None:
        self.shown = list(rows)
        self.nodes = nodes

    def rows(self) -> list[UploadRow]:
        return self.shown

    def whole_nodes(self) -> int:
        return self.nodes


class Texts(SynchronousTestCase):
    @shows("A27", "A29")
    @PROPERTY
    @given(st.text(max_size=400))
    def test_clean(self, text: str) -> None:
        """Whatever a server says, the terminal gets printable characters only, and not many."""
        shown = clean(text)
        self.assertTrue(shown.isprintable() or any(char.isspace() for char in shown), shown)
        self.assertNotIn("\x1b", shown)
        self.assertNotIn("\n", shown)
        self.assertLessEqual(len(shown), 10 * MAX_TEXT + 1)

    def test_escapes(self) -> None:
        """What was made harmless can still be recognized."""
        self.assertEqual(clean(EVIL), "\\x1b[2J\\x07evil\\x0d\\x0a\\u202e[red]")
        self.assertEqual(clean("é日本 ok"), "é日本 ok")
        self.assertEqual(clean("a\U000e0001"), "a\\U000e0001")
        self.assertEqual(clean("abcdef", 3), "abc…")
        self.assertEqual(clean_lines("a\x1b\nb", 100), "a\\x1b\nb")

    def test_numbers(self) -> None:
        """Numbers are short and have their unit."""
        self.assertEqual(
            [size(n) for n in (0, 999, 1000, 61 * 1024, 417_333_248, 5 * 1024**4)],
            ["0 B", "999 B", "1.0 KiB", "61.0 KiB", "398 MiB", "5.0 TiB"],
        )
        self.assertEqual([interval(s) for s in (-1, 0, 41.9, 62, 3723)], ["0:00", "0:00", "0:41", "1:02", "1:02:03"])
        self.assertEqual([count(1, "dir"), count(11306, "file"), count(2, "entry", "entries")], ["1 dir", "11,306 files", "2 entries"])
        self.assertEqual(stamp(1_700_000_000_123), "2023-11-14T22:13:20Z")


class Lines(SynchronousTestCase):
    def test_results(self) -> None:
        """One line per upload and cluster says how it ended, on how many nodes, and who is missing or failed and why."""
        found = result_lines(
            [
                row(UploadOutcome.DONE, 78, 78),
                row(UploadOutcome.EARLY, 39, 40, ("a55",), (("a12", "no_space"),), cluster="america", path="/cfg"),
                row(UploadOutcome.REJECTED, 0, 0, cluster="us", why="all nodes refused: signature_mismatch"),
            ]
        )
        self.assertEqual(
            found,
            [
                "eu      /apps/shop  DONE      78/78 nodes  0:41  sent 398 MiB",
                "america /cfg        EARLY     39/40 nodes  0:41  sent 398 MiB  failed: a12 no_space  missing: a55",
                "us      /apps/shop  REJECTED  0/0 nodes  0:41  sent 398 MiB  (all nodes refused: signature_mismatch)",
            ],
        )

    def test_many_missing(self) -> None:
        """A thousand missing nodes do not fill the screen."""
        line = result_lines([row(UploadOutcome.FAILED, missing=tuple(f"n{number}" for number in range(1000)))])[0]
        self.assertIn("n19 and 980 more", line)

    def test_progress_line(self) -> None:
        """Logs get a line that machines can read, with a UTC time."""
        self.assertEqual(
            progress_line(row(), 1_700_000_000_123),
            "2023-11-14T22:13:20Z progress cluster=eu path=/apps/shop done=61 want=78 sent_bytes=417333248",
        )

        self.assertTrue(progress_line(row(share=1 / 3), 0).endswith("sent_bytes=417333248 given=0.33"))

    @shows("W3")
    def test_what_was_reused(self) -> None:
        """Nobody would see that a new version of gigabytes took a second because the servers had nearly all of it."""
        found = result_lines([row(UploadOutcome.DONE, 78, 78, given_bytes=given) for given in (None, 4_402_341_478, 71_303_168)])
        self.assertEqual(
            [line.partition("0:41  ")[2] for line in found], ["sent 398 MiB", "sent 398 MiB", "sent 398 MiB, reused 4.0 GiB of 4.1 GiB"]
        )

    @shows("W3")
    def test_how_long_still(self) -> None:
        """A long upload to three nodes would show none of three, and nothing of how far it is."""
        self.assertEqual(
            [live_parts(row(share=share), 19_084_000)[:3] for share in (0.0, 0.019, 0.25, 0.999)],
            [
                ["0% given", "18.2 MiB/s", "61/78 nodes"],
                ["1% given", "18.2 MiB/s", "61/78 nodes"],
                ["25% given", "2:04 left", "18.2 MiB/s"],
                ["99% given", "0:00 left", "18.2 MiB/s"],
            ],
        )
        self.assertEqual(live_parts(row(share=1.0), 1.0), ["61/78 nodes", "0:41", "all given, the nodes finish it", "sent 398 MiB"])
        self.assertEqual(live_parts(row(), None), ["61/78 nodes", "0:41", "sent 398 MiB", "to w04, w19, w77"])

    @shows("W3")
    def test_bar(self) -> None:
        """The bar would stand at 0 for the whole transfer."""
        self.assertEqual([bar_part(row(done=0, share=share)) for share in (0.0, 0.25, 1.0, None)], [0.0, 0.25, 0.0, 0.0])
        self.assertEqual(bar_part(row(done=39, share=1.0)), 0.5)
        self.assertEqual(bar_part(row(UploadOutcome.EARLY, done=39, share=0.5)), 0.5)
        self.assertEqual(bar_part(row(done=0, expected=0)), 0.0)

    @shows("W3")
    def test_rate(self) -> None:
        """A link that got slow would look fast for a long time, or a short start like a fast one."""
        throughput = Throughput()
        rates = [throughput.rate_bytes_s(row(elapsed_s=at / 4, sent_bytes=at * 250 if at < 40 else 10_000)) for at in range(80)]
        self.assertEqual((rates[3], rates[4], rates[20], rates[39]), (None, 1000.0, 1000.0, 1000.0))
        self.assertTrue(0 < (rates[50] or 0) < 600)
        self.assertEqual(rates[79], 0.0)
        self.assertIsNone(throughput.rate_bytes_s(row(path="/other")))

    def test_promises(self) -> None:
        """Who interrupts learns whether the nodes can go on alone."""
        found = promise_lines([row(), row(done=0), row(done=0, accepted=())])
        self.assertIn("61/78 nodes have it; the others go on", found[0])
        self.assertIn("accepted by w04, w19, w77, but no node", found[1])
        self.assertIn("nothing was changed", found[2])

    @shows("A27", "A29")
    def test_hostile_names(self) -> None:
        """Names and reasons of servers pass no control characters, on any line."""
        evil = row(UploadOutcome.FAILED, missing=(EVIL,), failed=((EVIL, EVIL),), accepted=(EVIL,), cluster=EVIL, path=EVIL, why=EVIL)
        for line in [*result_lines([evil]), *promise_lines([evil]), progress_line(evil, 0)]:
            self.assertNotIn("\x1b", line)
            self.assertNotIn("\n", line)


class Showing(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.out, self.err = Terminal(), Terminal()

    def display(self, live: bool, lines_every_s: float | None = None, verbosity: int = 1) -> Display:
        environ = {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
        block = TerminalBlock(self.err, environ) if live else None
        return Display(self.clock, lambda: 1_700_000_000_123, self.out, self.err, block, lines_every_s, verbosity)

    def test_when_live(self) -> None:
        """The block appears on a terminal that can show it, and where it was asked for; never in a log."""
        tty, log = Terminal(), Terminal(tty=False)
        self.assertTrue(wants_live(ProgressStyle.AUTO, tty, {"TERM": "xterm"}))
        self.assertFalse(wants_live(ProgressStyle.AUTO, log, {"TERM": "xterm"}))
        self.assertFalse(wants_live(ProgressStyle.AUTO, tty, {"TERM": "dumb"}))
        self.assertFalse(wants_live(ProgressStyle.AUTO, tty, {"TERM": "xterm", "NO_COLOR": "1"}))
        self.assertTrue(wants_live(ProgressStyle.TTY, log, {}))
        self.assertFalse(wants_live(ProgressStyle.PLAIN, tty, {"TERM": "xterm"}))
        self.assertFalse(wants_live(ProgressStyle.NONE, tty, {"TERM": "xterm"}))

    def test_block(self) -> None:
        """The block shows counts of nodes, bytes and who is waited for, and is drawn again as time goes by."""
        display = self.display(live=True)
        shown = Shown(row(done=77, missing=("a55",)))
        display.watch(shown)
        self.assertIn("77/78 nodes", self.err.getvalue())
        self.assertIn("sent 398 MiB", self.err.getvalue())
        self.assertIn("waiting: a55", self.err.getvalue())
        self.assertNotIn("safe to disconnect", self.err.getvalue())
        shown.shown = [row(done=0, share=0.25)]
        self.clock.advance(0.25)
        self.assertIn("25% given  2:04 left", self.err.getvalue())
        shown.shown = [row(done=0, share=1.0)]
        self.clock.advance(0.25)
        self.assertIn("0:41  all given, the nodes finish it", self.err.getvalue())
        shown.shown, shown.nodes = [row(UploadOutcome.DONE, 78, 78)], 3
        self.clock.advance(0.25)
        self.assertIn("DONE in 0:41", self.err.getvalue())
        self.assertIn("safe to disconnect: yes - every block is on 3 or more nodes", self.err.getvalue())
        display.finish(shown.rows())
        self.assertEqual(self.out.getvalue(), "eu /apps/shop  DONE      78/78 nodes  0:41  sent 398 MiB\n")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @shows("W3")
    def test_narrow(self) -> None:
        """How far it is and how long it takes were cut off on terminals of 80 and of 120 columns."""
        long = row(done=0, share=0.25, cluster="ciruela.production.example.org", path="/apps/shop-frontend/v2026.11.30-1")
        for width in (30, 40, 60, 80, 120, 200):
            err = Terminal()
            block = TerminalBlock(err, {"TERM": "xterm", "COLUMNS": str(width), "LINES": "24", "NO_COLOR": "1"})
            block.show_rows(Shown(long, row(done=0, share=0.5), nodes=1))
            lines = err.getvalue().splitlines()
            self.assertIn("25% given  2:04 left", lines[0], width)
            self.assertIn("50% given  0:41 left", lines[1], width)
            self.assertTrue(width < 80 or "v2026.11.30-1" in lines[0], lines[0])
            block.hide()

    @shows("W3")
    def test_folded(self) -> None:
        """Lines of a demo would wrap in the middle of a path, and nobody could copy it."""
        display = self.display(live=True)
        display.say(f"Indexed /srv/{'x' * 90}/site-packages: 602 dirs, 6,051 files")
        display.finish([row(UploadOutcome.DONE, missing=tuple(f"node{number}.example.org" for number in range(9)))])
        self.assertIn(f"/srv/{'x' * 90}/site-packages:", self.err.getvalue())
        lines = [*self.err.getvalue().splitlines(), *self.out.getvalue().splitlines()]
        self.assertEqual((len(lines) > 3, [line for line in lines if len(line) > 120]), (True, []))
        self.assertEqual(folded(f"a {'b' * 30} c", 20), f"a\n    {'b' * 30}\n    c")

    @shows("W3")
    def test_what_gives_way(self) -> None:
        """A name that is cut off at its end is that of every version."""
        self.assertEqual([shortened("/apps/shop/v41", width) for width in (14, 8, 1, 0)], ["/apps/shop/v41", "…hop/v41", "…", ""])
        self.assertEqual(shortened("eu.example.org", 8), "eu.exam…")
        parts = ["2/3 nodes", "0:41", "waiting: node3, node4, node5"]
        self.assertEqual(fitting(parts, 60), "2/3 nodes  0:41  waiting: node3, node4, node5")
        self.assertEqual(fitting(parts, 40), "2/3 nodes  0:41  waiting: node3, node4,…")
        self.assertEqual((fitting(parts, 30), fitting(parts, 5)), ("2/3 nodes  0:41", "2/3 …"))
        layout = Layout.of(120, ["eu"], ["/apps"], [["25% given", "2:04 left"]])
        self.assertEqual((layout.cluster, layout.path, layout.bar), (2, 5, 24))

    def test_problems_stay(self) -> None:
        """A problem is printed once, above the block, and no server text reaches the terminal raw."""
        display = self.display(live=True)
        display.watch(Shown(row()))
        display.problem("eu", f"a12 {EVIL}")
        display.hide()
        self.assertIn("! eu a12 \\x1b[2J\\x07evil\\x0d\\x0a\\u202e[red]", self.err.getvalue())
        self.assertNotIn("\x1b[2Jevil", self.err.getvalue())
        self.assertNotIn("\x07", self.err.getvalue())

    def test_hostile_block(self) -> None:
        """The same holds for the block itself."""
        display = self.display(live=True)
        display.watch(Shown(row(missing=(EVIL,), accepted=(EVIL,), cluster=EVIL, path=EVIL)))
        display.hide()
        self.assertNotIn("\x07", self.err.getvalue())
        self.assertNotIn("\x1b[2J", self.err.getvalue())

    def test_plain(self) -> None:
        """In a log there is one line per upload and interval while it runs, no escape sequence, and the safe line once."""
        display = self.display(live=False, lines_every_s=30)
        display.watch(Shown(row(), row(UploadOutcome.DONE, path="/other"), nodes=1))
        self.assertEqual(self.err.getvalue(), "")
        self.clock.advance(30)
        self.clock.advance(30)
        display.hide()
        lines = self.err.getvalue().splitlines()
        self.assertEqual(lines, [progress_line(row(), 1_700_000_000_123), safe_line(1), progress_line(row(), 1_700_000_000_123)])
        self.clock.advance(60)
        self.assertEqual(len(self.err.getvalue().splitlines()), 3)

    def test_long_lines_are_not_cut(self) -> None:
        """A long problem or result is one line in a log, whatever the width of a terminal."""
        display = self.display(live=False)
        display.problem("eu", "x" * 290)
        display.finish([row(UploadOutcome.FAILED, why="y" * 290)])
        self.assertEqual(len(self.err.getvalue().splitlines()), 1)
        self.assertEqual(len(self.out.getvalue().splitlines()), 1)

    def test_quiet(self) -> None:
        """-q leaves problems and results."""
        display = self.display(live=True, lines_every_s=30, verbosity=0)
        display.say("hello")
        display.note("eu", "hello")
        display.show(lambda: "indexing")
        display.watch(Shown(row()))
        self.clock.advance(60)
        self.assertEqual(self.err.getvalue(), "")
        display.problem("", "disk full")
        display.finish([row(UploadOutcome.DONE)])
        self.assertIn("disk full", self.err.getvalue())
        self.assertIn("DONE", self.out.getvalue())

    def test_verbose(self) -> None:
        """What single nodes say is printed only for those who ask."""
        self.display(live=False).note("eu", "hello")
        self.assertEqual(self.err.getvalue(), "")
        self.display(live=False, verbosity=2).note("eu", "hello")
        self.assertIn("eu hello", self.err.getvalue())
