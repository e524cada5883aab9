"""The command line."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela._version import __version__
from ciruela.client.options import table
from ciruela.client.options.common import Excluding, ProgressStyle, rate_bytes_s
from ciruela.client.options.edit import EditOptions, PutFileOptions
from ciruela.client.options.local import DemoOptions, IndexOptions
from ciruela.client.options.reading import DiffOptions, GetOptions, StatusOptions, split_target
from ciruela.client.options.signing import ClusterNames, Keys, check_entry_point, split_clusters
from ciruela.client.options.sync import Mode, SyncOptions, Wish, split_wish
from ciruela.client.options.table import parse, parse_sync
from ciruela.client.require import ALL, Requirement
from ciruela.index.digest import HashKind
from ciruela.model.ids import ImageId
from ciruela.model.vpath import VPath
from tests.proof import shows

OLD = "ab" * 32
PROPERTY = settings(derandomize=True, deadline=None, database=None, max_examples=60)


def names(*groups: Sequence[str]) -> tuple[ClusterNames, ...]:
    return tuple(ClusterNames(tuple(group)) for group in groups)


class Parsing(SynchronousTestCase):
    def sync(self, line: str) -> SyncOptions:
        return parse_sync(line.split())

    def refused(self, line: str, whole: bool = False) -> str:
        """What stderr says to a command line that ends with exit code 2."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), self.assertRaises(SystemExit) as caught:
            parse(line.split()) if whole else parse_sync(line.split())
        self.assertEqual(caught.exception.code, 2)
        self.assertEqual(out.getvalue(), "")
        self.assertIn("usage:", err.getvalue())
        return err.getvalue()


class SyncLine(Parsing):
    def test_smallest(self) -> None:
        """A user who gives only what must be given gets the documented defaults."""
        options = self.sync("--append ./a:/apps/v1 host")
        self.assertEqual(options.wishes, (Wish(Mode.APPEND, "./a", VPath(("apps", "v1"))),))
        self.assertEqual(options.clusters, names(["host"]))
        rule = options.rule
        self.assertEqual((rule.early_hosts, rule.early_fraction, rule.early_timeout_s, rule.deadline_s), (3, 0.75, 30.0, 1800.0))
        self.assertEqual((rule.connect_timeout_s, options.initial_connections), (15.0, 3))
        self.assertEqual(options.print_progress_s, 30.0)
        common = options.common
        self.assertEqual((common.port, common.disk_threads, common.hash, common.verbosity), (24783, 4, None, 1))
        self.assertIs(common.progress, ProgressStyle.AUTO)

    def test_everything(self) -> None:
        """Every documented option of sync must be understood, in its short and long form."""
        options = self.sync(
            f"--append a:/k/1 h1 --append-weak b:/k/2 --replace c:/k/3:{OLD} -i f1 --identity f2 -k V1 --key-from-env V2 -e 1s "
            "--early-fraction 0.5 --early-hosts 7 -t 1h --print-progress 2s --port 99 --disk-threads 2 --hash sha512/256 -v "
            "--progress plain --require 80% --limit-rate 1.5Mi --exclude *.o --exclude .git/ --exclude-from list --no-ignore-file --json "
            "-n --exit-code --connect-timeout 7s --initial-connections 16 h2"
        )
        self.assertEqual((options.rule.connect_timeout_s, options.initial_connections), (7.0, 16))
        self.assertEqual([wish.mode for wish in options.wishes], [Mode.APPEND, Mode.APPEND_WEAK, Mode.REPLACE])
        self.assertEqual(options.wishes[2].old_image, ImageId(bytes.fromhex(OLD)))
        self.assertEqual(options.clusters, names(["h1"], ["h2"]))
        self.assertEqual(options.keys, Keys(("f1", "f2"), ("V1", "V2")))
        rule = options.rule
        self.assertEqual((rule.early_hosts, rule.early_fraction, rule.early_timeout_s, rule.deadline_s), (7, 0.5, 1.0, 3600.0))
        self.assertEqual(options.print_progress_s, 2.0)
        self.assertEqual((options.common.port, options.common.disk_threads, options.common.hash), (99, 2, HashKind.SHA512_256))
        self.assertEqual((options.common.verbosity, options.common.progress), (2, ProgressStyle.PLAIN))
        self.assertEqual((str(rule.require), options.limit_bytes_s), ("80%", 1_572_864))
        self.assertEqual(options.excluding, Excluding(("list",), ("*.o", ".git/"), ignore_file=False))
        self.assertEqual((options.json, options.dry_run, options.exit_code), (True, True, True))

    def test_no_cache(self) -> None:
        """Who does not trust the times of his file system says so, before or after the command."""
        for words, cache in ((["index", "DIR"], True), (["index", "--no-cache", "DIR"], False), (["--no-cache", "index", "DIR"], False)):
            options = parse(words)
            assert isinstance(options, IndexOptions)
            self.assertEqual(options.cache, cache)
        self.assertTrue(self.sync("--append .:/a/b host").cache)
        self.assertFalse(self.sync("--no-cache --append .:/a/b host").cache)
        for command in ("verify", "demo"):
            self.assertIn("unrecognized arguments", self.refused(f"{command} --no-cache DIR", whole=True))

    def test_rates(self) -> None:
        """A rate means what its unit says: a mistake by a thousand is a line that is full, or an upload that takes a day."""
        for text, expected in (
            ("1000", 1000),
            ("10k", 10_000),
            ("10K", 10_000),
            ("2M", 2_000_000),
            ("2Mi", 2_097_152),
            ("1.5MB/s", 1_500_000),
        ):
            self.assertEqual(rate_bytes_s(text), expected, text)
        for bad in ("", "M", "-1M", "1e9", "10Mbit", "1.M", "999", "0", "nan", "\u0661M"):
            self.assertRaises(ValueError, rate_bytes_s, bad)

    def test_duration_with_space(self) -> None:
        """Durations are written as the reference's users write them."""
        self.assertEqual(parse_sync(["--append", "a:/k/1", "h", "-t", "1h 30min"]).rule.deadline_s, 5400.0)

    @shows("W1")
    def test_slash_at_the_end(self) -> None:
        """Shells complete directories with a slash, and people read ``'' cannot be a component``."""
        self.assertEqual(str(self.sync("--append a:/k/1/ h").wishes[0].vpath), "/k/1")
        for line in ("edit -f /x -d /k/1/ h", "get h:/k/1/ d", "remove h:/k/1/", "upload -d x h:/k/1/"):
            parse(line.split())
        for line in ("remove h:/k//1", "get h:/k//1 d", "edit -f /x -d /k//1 h", "sync --append a:/k//1 h"):
            self.assertIn("two slashes in a row", self.refused(line, whole=True))

    @shows("W1")
    def test_address_of_a_page(self) -> None:
        """The address of the status page is what people have at hand, and it was told as a bad port."""
        for line in (
            "sync --append a:/k/1 http://h",
            "ls http://h:24783/",
            "get https://h:/k/1 d",
            "remove http://h:/k/1",
            "upload -d x http://h:/k/1",
        ):
            said = self.refused(line, whole=True)
            self.assertIn("leave http", said)
            self.assertIn("(write h", said)

    @shows("W1")
    def test_help_as_it_is_meant(self) -> None:
        """A percent sign of argparse would be copied from the help to the command line, and refused."""
        for parser in [table.ciruela_sync(), *table.ciruela()._subparsers._group_actions[0].choices.values()]:  # type: ignore[union-attr]
            self.assertNotIn("%%", parser.format_help())
            self.assertNotIn("%%", parser.format_usage())
            self.assertEqual([action.dest for action in parser._actions if not action.help], [], parser.prog)

    @shows("W1")
    def test_did_you_mean(self) -> None:
        """Somebody would look for the command in the list of all seventeen."""
        self.assertIn("unknown command 'snyc'; did you mean sync?", self.refused("snyc", whole=True))
        self.assertIn("--requier; did you mean --require?", self.refused("--requier all --append a:/k/1 h"))
        self.assertNotIn("did you mean", self.refused("zzz", whole=True))

    def test_mistakes(self) -> None:
        """A mistake in the command line must be told with the option's name before any key is asked for."""
        for line, word in (
            ("--append a:/k/1", "no ENTRY_POINT"),
            ("host", "nothing to upload"),
            ("", "nothing to upload"),
            ("--append nocolon host", "is not SRC:DEST"),
            ("--append :/k/1 host", "is not SRC:DEST"),
            ("--append a:/k/.. host", "cannot be a component"),
            ("--append a:/ host", "there is no name after the slash (write /KEY/NAME)"),
            (f"--append a:/k/1:{OLD} host", "only --replace takes an OLD_ID"),
            ("--replace a:/k/1:abc host", "64 hexadecimal digits"),
            ("--append a:/k/1 --replace b:/k/1 host", "two directories for one path: /k/1"),
            ("--append a:/k/1 -t 30 host", "a unit is missing"),
            ("--append a:/k/1 -t 0s host", "longer than nothing"),
            ("--append a:/k/1 --early-fraction 1.5 host", "from 0 to 1"),
            ("--append a:/k/1 --early-fraction nan host", "from 0 to 1"),
            ("--append a:/k/1 --early-hosts 0 host", "from 1 to"),
            ("--append a:/k/1 --port 65536 host", "from 1 to 65535"),
            ("--append a:/k/1 --hash md5 host", "blake2b/256"),
            ("--append a:/k/1 --progress fancy host", "auto, tty, plain, none"),
            ("--append a:/k/1 -q -v host", "not allowed with"),
            ("--append a:/k/1 --require most host", "is not all, a number of nodes from 1 on, or a percentage"),
            ("--append a:/k/1 --require 101% host", "is not all"),
            ("--append a:/k/1 --limit-rate fast host", "is not a rate"),
            ("--append a:/k/1 --limit-rate 10 host", "is a unit missing, as in 10M?"),
            ("--append a:/k/1 --limit-rate 10T host", "is not a rate"),
            ("--append a:/k/1 --json=yes host", "ignored explicit argument"),
            ("--append a:/k/1 user@host", "is not a host name"),
            ("--append a:/k/1 [::1", "is not an IPv6 address in brackets"),
            ("--append a:/k/1 -- h1 -- h2", "only with -m"),
            ("--append a:/k/1 -m -- h1 --port 5", "options first"),
        ):
            self.assertIn(word, self.refused(line), line)


class Clusters(Parsing):
    def test_separate_by_default(self) -> None:
        """Without -m every name is a cluster of its own, and a name given twice is not uploaded to twice."""
        self.assertEqual(self.sync("--append a:/k/1 h1 h2 h1").clusters, names(["h1"], ["h2"]))

    def test_multiple(self) -> None:
        """Argparse swallows the first bare --; then two clusters would be taken for one and an upload would go to the wrong servers."""
        for line, expected in (
            ("-m a b", names(["a", "b"])),
            ("-m -- a b -- c d", names(["a", "b"], ["c", "d"])),
            ("-m a b -- c d", names(["a", "b"], ["c", "d"])),
            ("a -m b -- c", names(["a", "b"], ["c"])),
            ("-m -- a -- -- b --", names(["a"], ["b"])),
        ):
            self.assertEqual(self.sync(f"--append x:/k/1 {line}").clusters, expected, line)

    def test_dashes_without_multiple(self) -> None:
        """A single -- is the usual end of the options."""
        self.assertEqual(split_clusters(["a"], ["b"], False), names(["a"], ["b"]))

    def test_label(self) -> None:
        """The name on the screen tells which cluster is meant."""
        self.assertEqual([cluster.label for cluster in names(["a"], ["b", "c", "d"])], ["a", "b+2"])

    def test_entry_points(self) -> None:
        """Addresses with ports and IPv6 are entry points; what cannot be one is told at once."""
        for good in ("host", "Host.Example.ORG", "10.0.0.1:99", "[::1]:99", "::1", "a_b-c."):
            check_entry_point(good)
        for bad in ("", "a b", "a/b", "u@h", "h\x1b[2J", ":99", "a\\b"):
            with self.assertRaises(ValueError):
                check_entry_point(bad)


COMPONENT = st.text(alphabet="abcXYZ019_-:é ", min_size=1, max_size=6).filter(lambda name: not name.startswith("."))
SOURCES = st.text(alphabet="ab./: é", min_size=1, max_size=12)


class Wishes(SynchronousTestCase):
    @PROPERTY
    @given(SOURCES, st.lists(COMPONENT.filter(lambda name: ":" not in name), min_size=1, max_size=3))
    def test_append(self, source: str, parts: list[str]) -> None:
        """Any source, with colons too, goes where the user said."""
        self.assertEqual(split_wish(Mode.APPEND, f"{source}:/{'/'.join(parts)}"), Wish(Mode.APPEND, source, VPath(tuple(parts))))

    @PROPERTY
    @given(SOURCES, st.lists(COMPONENT, min_size=1, max_size=3))
    def test_replace(self, source: str, parts: list[str]) -> None:
        """An OLD_ID is never taken for a part of the path, nor a part of the path for an OLD_ID."""
        path = "/" + "/".join(parts)
        if ":/" in path:
            return
        self.assertEqual(
            split_wish(Mode.REPLACE, f"{source}:{path}:{OLD}"), Wish(Mode.REPLACE, source, VPath(tuple(parts)), ImageId(bytes.fromhex(OLD)))
        )
        self.assertEqual(split_wish(Mode.REPLACE, f"{source}:{path}:"), Wish(Mode.REPLACE, source, VPath(tuple(parts))))

    def test_append_keeps_colon(self) -> None:
        """A version such as shop:1.2 may be a path."""
        self.assertEqual(split_wish(Mode.APPEND, "a:/apps/shop:1.2").vpath, VPath(("apps", "shop:1.2")))


class WholeProgram(Parsing):
    def test_global_options_on_both_sides(self) -> None:
        """The reference takes --port before the command only; people write it on both sides."""
        for line in ("--port 7 sync --append a:/k/1 h", "sync --port 7 --append a:/k/1 h", "--port=7 sync --append a:/k/1 h"):
            options = parse(line.split())
            self.assertIsInstance(options, SyncOptions)
            self.assertEqual(options.common.port, 7, line)

    def test_commands(self) -> None:
        """Every command gets its own options."""
        index = parse(["-q", "index", "--hash", "blake3/256", "dir"])
        assert isinstance(index, IndexOptions)
        self.assertEqual((index.directory, index.common.hash, index.common.verbosity), ("dir", HashKind.BLAKE3, 0))
        demo = parse(["demo", "--once", "--nodes", "5", "dir"])
        assert isinstance(demo, DemoOptions)
        self.assertEqual((demo.directory, demo.once, demo.nodes), ("dir", True, 5))
        plain = parse(["demo"])
        assert isinstance(plain, DemoOptions)
        self.assertEqual((plain.directory, plain.once, plain.nodes), (None, False, 3))

    def test_no_command(self) -> None:
        """A script that misspells the command must not take exit code 0 for success (C32)."""
        self.assertIn("no command given", self.refused("", whole=True))
        self.assertIn("unknown command 'snyc'", self.refused("snyc --append a:/k/1 h", whole=True))
        self.assertIn("no command given", self.refused("--port 5", whole=True))
        self.assertIn("no ENTRY_POINT", self.refused("sync --append a:/k/1", whole=True))

    def test_help_and_version(self) -> None:
        """Help and version go to stdout with exit code 0, and help names every command."""
        for line, words in (
            (["--help"], ("sync", "index", "demo")),
            (["--version"], (__version__,)),
            (["sync", "--version"], (__version__,)),
        ):
            out = io.StringIO()
            with contextlib.redirect_stdout(out), self.assertRaises(SystemExit) as caught:
                parse(line)
            self.assertEqual(caught.exception.code, 0)
            for word in words:
                self.assertIn(word, out.getvalue())


class EditLines(Parsing):
    def test_lines(self) -> None:
        """The file, the cluster or the editor would be another one."""
        found = parse(["edit", "-d", "/cfg/x", "-f", "/a/b.conf", "--editor", "nano", "-e", "5s", "-m", "h1", "h2", "--", "h3"])
        assert isinstance(found, EditOptions)
        self.assertEqual((str(found.what.path), found.what.file, found.editor), ("/cfg/x", "/a/b.conf", "nano"))
        self.assertEqual(found.what.clusters, names(["h1", "h2"], ["h3"]))
        self.assertEqual(found.what.rule.early_timeout_s, 5.0)
        for words, executable in (("", None), ("--executable", True), ("--no-executable", False)):
            put = parse(f"put-file -d /cfg/x -f /a -s local {words} h".split())
            assert isinstance(put, PutFileOptions)
            self.assertEqual((put.source, put.executable), ("local", executable))

    def test_mistakes(self) -> None:
        """A mistake would be found after the editor was closed."""
        for line, words in (
            ("edit -f /a h", "-d/--directory"),
            ("edit -d /cfg/x h", "-f/--file"),
            ("edit -d cfg -f /a h", "does not begin with a slash"),
            ("edit -d /cfg/x -f a h", "does not begin with a slash"),
            ("edit -d /cfg/x -f / h", "name a file in it"),
            ("edit -d /cfg/x -f /a/../b h", "cannot be a name"),
            ("edit -d /cfg/x -f /a", "no ENTRY_POINT"),
            ("edit -d /cfg/x -f /a --hash blake3/256 h", "--hash does not go with"),
            ("put-file -d /cfg/x -f /a h", "-s/--source-file"),
        ):
            self.assertIn(words, self.refused(line, whole=True))


class ReadingLine(Parsing):
    def test_target(self) -> None:
        """A cluster of several names, or an IPv6 address, could not be read from."""
        target = split_target("[::1]:5,host:/apps/v1/")
        self.assertEqual((target.cluster.names, target.vpath), (("[::1]:5", "host"), VPath(("apps", "v1"))))
        self.assertEqual((split_target("host").vpath, split_target("host:/").vpath), (None, None))
        self.assertEqual(str(split_target("a,b:/x")), "a+1:/x")
        for wrong in (":/apps", "a,,b:/x", "a b:/x", "host:/apps/../x", "host:apps", "", ","):
            self.assertRaises(ValueError, split_target, wrong)

    def test_lines(self) -> None:
        """What a user types would mean something else."""
        got = parse(["get", "host:/apps/v1", "dest", "--reuse", "a", "--reuse", "b", "--link", "-t", "5s"])
        assert isinstance(got, GetOptions)
        self.assertEqual((got.destination, got.reuse, got.link, got.replace, got.patience_s), ("dest", ("a", "b"), True, False, 5.0))
        found = parse(["status", "--wait", "--require", "75%", "host:/apps/v1"])
        assert isinstance(found, StatusOptions)
        self.assertEqual(found.require, Requirement(percent=75))
        compared = parse(["diff", "./a:/b", "host:/apps/v1"])
        assert isinstance(compared, DiffOptions)
        self.assertEqual((compared.left, str(compared.right)), ("./a:/b", "host:/apps/v1"))

    def test_enough(self) -> None:
        """A part of a cluster would pass for all of it."""
        self.assertEqual([ALL.met(done, 3) for done in (2, 3)], [False, True])
        self.assertEqual([Requirement(nodes=2).met(done, 3) for done in (1, 2)], [False, True])
        self.assertEqual([Requirement(percent=67).met(done, 3) for done in (2, 3)], [False, True])
        self.assertFalse(ALL.met(0, 0))

    def test_refused(self) -> None:
        """A mistake would be found after something was done."""
        for line, said in (
            ("get host dest", "names no image"),
            ("get host:/apps/v1", "required: DEST"),
            ("get host:/apps/v1 /", "DEST must be the name"),
            ("get host:/apps/v1 d --link", "--link needs --reuse"),
            ("get host:/apps/v1 d --image abc", "64 hexadecimal digits"),
            ("status --require 0 host", "is not all, a number of nodes"),
            ("status --require 101% host", "is not all, a number of nodes"),
            ("status --wait host", "need a path"),
            ("doctor host:/apps", "a path has no place here"),
            ("keygen x/", "FILE must be the name"),
        ):
            self.assertIn(said, self.refused(line, whole=True))
