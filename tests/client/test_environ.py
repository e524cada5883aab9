"""Options as variables."""

from __future__ import annotations

import argparse
import contextlib
import io

from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.options.common import Excluding, ProgressStyle
from ciruela.client.options.environ import SPECIAL, unknown, variable_of, variables
from ciruela.client.options.local import IndexOptions
from ciruela.client.options.signing import Keys
from ciruela.client.options.sync import Mode, SyncOptions
from ciruela.client.options.table import COMMANDS, parse, parse_sync


class Case(SynchronousTestCase):
    def sync(self, line: str = "--append a:/k/1 host", **variables: str) -> SyncOptions:
        return parse_sync(line.split(), {f"CIRUELA_{name}": text for name, text in variables.items()})

    def refused(self, line: str, **variables: str) -> str:
        """What stderr says to what ends with exit code 2."""
        err = io.StringIO()
        with contextlib.redirect_stderr(err), self.assertRaises(SystemExit) as caught:
            self.sync(line, **variables)
        self.assertEqual(caught.exception.code, 2)
        return err.getvalue()


class Read(Case):
    def test_values(self) -> None:
        """A value of each kind is read as on the command line."""
        options = self.sync(
            PORT="99",
            DEADLINE="1h 30min",
            EARLY_FRACTION="0.5",
            REQUIRE="all",
            LIMIT_RATE="10M",
            PROGRESS="plain",
            IDENTITY="a;b c\n d ",
            EXCLUDE="*.pyc;.git/",
            JSON="yes",
            NO_CACHE="1",
            DRY_RUN="TRUE",
        )
        self.assertEqual((options.common.port, options.common.progress), (99, ProgressStyle.PLAIN))
        self.assertEqual((options.rule.deadline_s, options.rule.early_fraction, str(options.rule.require)), (5400.0, 0.5, "all"))
        self.assertEqual(options.limit_bytes_s, 10_000_000)
        self.assertEqual(options.keys, Keys(("a", "b c", "d"), ()))
        self.assertEqual(options.excluding, Excluding((), ("*.pyc", ".git/"), True))
        self.assertEqual((options.json, options.cache, options.dry_run), (True, False, True))

    def test_command_line_wins(self) -> None:
        """Who types an option means it, whatever the build server has set."""
        options = self.sync(
            "--append a:/k/1 --port 5 -i typed --exclude x -v --require 50% host",
            PORT="99",
            IDENTITY="a;b",
            EXCLUDE="y",
            QUIET="1",
            REQUIRE="all",
            APPEND="b:/k/2",
        )
        self.assertEqual((options.common.port, options.keys.files, options.excluding.patterns), (5, ("typed",), ("x",)))
        self.assertEqual((options.common.verbosity, str(options.rule.require)), (2, "50%"))
        self.assertEqual([str(wish.vpath) for wish in options.wishes], ["/k/1"])

    def test_false_and_empty(self) -> None:
        """A variable that says no, or nothing, changes nothing."""
        options = self.sync(JSON="0", NO_CACHE="false", DRY_RUN="no", QUIET="", PORT="", EXCLUDE="; ;")
        self.assertEqual((options.json, options.cache, options.dry_run), (False, True, False))
        self.assertEqual((options.common.port, options.common.verbosity, options.excluding.patterns), (24783, 1, ()))

    def test_what_must_be_given(self) -> None:
        """All that is needed but the entry points may come from variables, also several directories."""
        options = self.sync("host", APPEND="a:/k/1;b:/k/2", REPLACE="c:/k/3")
        self.assertEqual(
            [(wish.mode, wish.source) for wish in options.wishes], [(Mode.APPEND, "a"), (Mode.APPEND, "b"), (Mode.REPLACE, "c")]
        )

    def test_mistakes(self) -> None:
        """A mistake in a variable must not look like one of the command line."""
        for name, text, word in (
            ("PORT", "x", "is not a whole number"),
            ("DEADLINE", "30", "a unit is missing"),
            ("JSON", "maybe", "is not one of 1, true, yes, 0, false, no"),
            ("REQUIRE", "most", "is not all"),
            ("LIMIT_RATE", "10", "less than 1000 bytes a second"),
            ("APPEND", "nocolon", "is not SRC:DEST"),
        ):
            said = self.refused("host" if name == "APPEND" else "--append a:/k/1 host", **{name: text})
            self.assertIn(f"the environment variable CIRUELA_{name}: ", said)
            self.assertIn(word, said)
        self.assertIn("CIRUELA_VERBOSE: not allowed with CIRUELA_QUIET", self.refused("--append a:/k/1 host", QUIET="1", VERBOSE="1"))

    def test_other_commands(self) -> None:
        """Each command reads its own; what is meant for another is not in its way."""
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            options = parse(["index", "DIR"], {"CIRUELA_EXCLUDE": "x", "CIRUELA_EARLY_HOSTS": "nonsense", "CIRUELA_KEY": "a key"})
        assert isinstance(options, IndexOptions)
        self.assertEqual(options.excluding.patterns, ("x",))
        self.assertEqual(err.getvalue(), "")

    def test_without(self) -> None:
        """Nothing of the environment is read but what is handed in."""
        self.assertEqual(self.sync(), parse_sync(["--append", "a:/k/1", "host"]))


class Names(Case):
    def test_each_option_has_one(self) -> None:
        """An option without a variable, or two with the same one."""
        for command in COMMANDS.values():
            parser = argparse.ArgumentParser()
            command.add(parser)
            known = variables(parser)
            self.assertLessEqual(SPECIAL & set(known), {"CIRUELA_EDITOR"})  # it is that of edit --editor
            for action in parser._actions:
                if any(name.startswith("--") for name in action.option_strings) and action.dest not in ("help", "version"):
                    self.assertIs(known[variable_of(action) or ""], action)

    def test_unknown(self) -> None:
        """A misspelt variable would silently do nothing."""
        self.assertEqual(
            unknown({"CIRUELA_PROT": "1", "CIRUELA_PORT": "1", "CIRUELA_KEY": "k", "HOME": "/"}, {"CIRUELA_PORT"}),
            ["the environment variable CIRUELA_PROT is not known; did you mean CIRUELA_PORT?"],
        )
        self.assertEqual(unknown({"CIRUELA_XYZZY": ""}, {"CIRUELA_PORT"}), ["the environment variable CIRUELA_XYZZY is not known"])
        err = io.StringIO()
        with contextlib.redirect_stderr(err):
            self.sync("--append a:/k/1 -k CIRUELA_DEPLOY host", DEPLOY="a key", REQIRE="all", ONCE="1")
        self.assertEqual(
            err.getvalue(), "ciruela: warning: the environment variable CIRUELA_REQIRE is not known; did you mean CIRUELA_REQUIRE?\n"
        )
