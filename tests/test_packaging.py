"""What a user gets from ``pip install``: the plugin, the programs, the types, and a README whose commands stay true."""

from __future__ import annotations

import argparse
import ast
import configparser
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.trial.unittest import SynchronousTestCase

import ciruela
from ciruela import __version__
from ciruela.client.options import table
from ciruela.daemon.tap import Options
from tests import campaigns
from tests.disk import powercuts, sweep
from tests.disk.plans import MOST_SUBSETS, SAMPLE
from tests.fuzz import campaign as fuzz
from tests.fuzz.targets import INPUTS
from tests.proof import shows
from tests.real import campaign_strace
from tests.sim import campaign as simulator

TOP = Path(__file__).parent.parent
SETUP = (TOP / "setup.py").read_text(encoding="utf-8")
README = (TOP / "README.rst").read_text(encoding="utf-8")


COMES_WITH_OTHERS = {"_nvx_xormasker", "incremental", "txaio", "zope"}
"""Parts, and own requirements, of Autobahn and Twisted."""


def declared(name: str) -> dict[str, str]:
    """Lowest version of each requirement in one list of setup.py, by its name in lower case, extras left out."""
    text = re.search(rf"{name}\s*=\s*\[\n(.*?)\n\s*\]", SETUP, re.DOTALL)
    assert text is not None
    return {
        found["name"].lower(): found["version"]
        for found in re.finditer(r'^\s*"(?P<name>[A-Za-z0-9_.-]+)(?:\[[a-z,]+\])?>=(?P<version>[0-9.]+)"', text[1], re.MULTILINE)
    }


class PluginTests(SynchronousTestCase):
    """``twistd ciruela`` exists."""

    def test_twistd_finds_the_service(self) -> None:
        """Without it, ``twistd ciruela`` says "Unknown command" and no server can be started."""
        found = [plugin for plugin in getPlugins(IServiceMaker) if plugin.tapname == "ciruela"]
        self.assertEqual([plugin.module for plugin in found], ["ciruela.daemon.tap"])

    def test_no_init_beside_the_plugin(self) -> None:
        """An ``__init__.py`` there would replace Twisted's own package on installation, and break every program that uses Twisted."""
        self.assertEqual(sorted(path.name for path in (TOP / "twisted").rglob("__init__.py")), [])

    def test_plugin_imports_nothing_of_ours(self) -> None:
        """The file is imported whenever twistd lists plugins; one that loads the program makes every twistd slow, or broken."""
        text = (TOP / "twisted" / "plugins" / "ciruela_plugin.py").read_text(encoding="utf-8")
        imports = [line for line in text.splitlines() if re.match(r"(from|import) ", line)]
        self.assertEqual(imports, ["from twisted.application.service import ServiceMaker"])


class LibraryTests(SynchronousTestCase):
    """``import ciruela``."""

    def test_cheap(self) -> None:
        """A program that wants to know the version would load Twisted, and all of the client."""
        program = "import sys, ciruela; before = set(sys.modules); ciruela.ClusterClient; print('twisted' in before, len(before))"
        environ = {"PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run([sys.executable, "-S", "-c", program], cwd=TOP, capture_output=True, text=True, env=environ)
        twisted, loaded = done.stdout.split()
        self.assertEqual(twisted, "False", done.stderr)
        self.assertLess(int(loaded), 100)

    def test_public_names(self) -> None:
        """A name that is promised would not be there, or one that is misspelt would be."""
        for name in ciruela.__all__:
            self.assertIsNotNone(getattr(ciruela, name))
        with self.assertRaises(AttributeError):
            ciruela.ClusterClients  # type: ignore[attr-defined]  # noqa: B018


class ContentTests(SynchronousTestCase):
    """Nothing is left behind when the program is packed."""

    def test_imports_are_declared(self) -> None:
        """A library that only the tests install would be missing on a user's machine."""
        known = packages_distributions()
        wanted = set()
        for path in (TOP / "ciruela").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    wanted |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    wanted.add((node.module or "").partition(".")[0])
        wanted -= sys.stdlib_module_names | {"ciruela"}
        found = {name: {one.lower().replace("_", "-") for one in known.get(name, [])} for name in wanted}
        missing = {name for name, packages in found.items() if not packages & declared("install_requires").keys()}
        self.assertEqual(missing - COMES_WITH_OTHERS, set())

    def test_every_folder_is_a_package(self) -> None:
        """A folder of modules without ``__init__.py`` works in a checkout and is missing after ``pip install .``."""
        folders = {path.parent for path in (TOP / "ciruela").rglob("*.py")}
        self.assertEqual([str(folder) for folder in folders if not (folder / "__init__.py").is_file()], [])

    def test_types_are_shipped(self) -> None:
        """Without ``py.typed`` a user's type checker ignores all annotations of the library."""
        self.assertTrue((TOP / "ciruela" / "py.typed").is_file())
        self.assertIn('"ciruela": ["py.typed"]', SETUP)

    def test_data_files_are_declared(self) -> None:
        """A file that is not Python (a page, a schema) reaches the user only if setup.py names it: none may be forgotten."""
        data = {
            path.name
            for path in (TOP / "ciruela").rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc") and "__pycache__" not in path.parts
        }
        self.assertEqual([name for name in data if f'"{name}"' not in SETUP and f'"*{Path(name).suffix}"' not in SETUP], [])

    def test_every_top_folder_is_in_the_source_distribution(self) -> None:
        """Who builds from the source distribution must be able to run the same tests and build the same documentation."""
        manifest = (TOP / "MANIFEST.in").read_text(encoding="utf-8")
        grafted = set(re.findall(r"^graft (\S+)$", manifest, re.MULTILINE))
        self.assertEqual(grafted, {".ci", "benchmarks", "ciruela", "docs", "newsfragments", "tests", "twisted"})


class ManTests(SynchronousTestCase):
    """The man pages of the wheel; ``docs/man.py`` makes them."""

    @shows("W5")
    def test_they_have_every_option(self) -> None:
        """``man ciruela`` would not know what ``ciruela --help`` does. Run ``python docs/man.py`` and commit what it writes."""
        for name, parser in (("ciruela", table.ciruela()), ("ciruela-sync", table.ciruela_sync())):
            text = (TOP / "docs" / "man" / f"{name}.1").read_text(encoding="utf-8")
            self.assertEqual([word for word in words_of(parser) if word.replace("-", "\\-") not in text], [])
        text = (TOP / "docs" / "man" / "ciruela-server.1").read_text(encoding="utf-8")
        options = [entry[0] for entry in (*Options.optParameters, *Options.optFlags)]
        self.assertEqual([option for option in options if f"\\-\\-{option}".replace("-", "\\-").replace("\\\\", "\\") not in text], [])

    @shows("W5")
    def test_the_wheel_has_them(self) -> None:
        """They would lie in the source alone, where no ``man`` looks."""
        self.assertIn('("share/man/man1", ', SETUP)


def words_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Every command and long option of a parser, those of its commands included."""
    for action in parser._actions:
        yield from (name for name in action.option_strings if name.startswith("--") and name != "--help")
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield name
                yield from words_of(below)


class VersionTests(SynchronousTestCase):
    """Numbers that are written down in two places agree."""

    def test_version_is_a_release_number(self) -> None:
        """An installer refuses to sort or install a version that it cannot read."""
        self.assertRegex(__version__, r"\A\d+\.\d+\.\d+(\.dev\d+|rc\d+)?\Z")

    def test_tox_runs_what_the_classifiers_promise(self) -> None:
        """A Python release that is promised and not tested is the one that breaks."""
        promised = re.findall(r"Python :: 3\.(\d+)", SETUP)
        tox = configparser.ConfigParser(interpolation=None)
        tox.read(TOP / "tox.ini", encoding="utf-8")
        tested = re.findall(r"py3(\d+)", tox["tox"]["env_list"])
        self.assertEqual(tested, promised)
        self.assertIn(f'python_requires=">=3.{promised[0]}"', SETUP)

    def test_every_tox_environment_is_described(self) -> None:
        """``tox list`` is how a newcomer learns what can be run."""
        tox = configparser.ConfigParser(interpolation=None)
        tox.read(TOP / "tox.ini", encoding="utf-8")
        sections = [name for name in tox.sections() if name.startswith("testenv")]
        self.assertEqual([name for name in sections if not tox[name].get("description")], [])

    def test_lowest_versions_are_those_declared(self) -> None:
        """The lowest releases that are tested must be those that setup.py accepts, or a user's older library fails in production."""
        lines = (TOP / ".ci" / "lowest.txt").read_text(encoding="utf-8").splitlines()
        pinned = dict(line.lower().split("==") for line in lines if "==" in line and not line.startswith("#"))
        self.assertEqual(pinned, declared("install_requires"))


class ReadmeTests(SynchronousTestCase):
    """The two commands that a newcomer pastes; ``.ci/run`` runs the second as it stands, and the demo of the first from the wheel."""

    def commands(self) -> list[str]:
        """The lines of the literal blocks that begin with Python."""
        return re.findall(r"^    (python3 .*)$", README, re.MULTILINE)

    def test_first_command_ends_in_the_demo(self) -> None:
        """The first thing a newcomer tries must be the program at work."""
        self.assertRegex(self.commands()[0], r"&& \.venv/bin/ciruela demo\Z")

    def test_second_command_ends_in_the_tests(self) -> None:
        """Plain editable installations hide the plugin from twistd, and plain ``trial`` does not find a checkout's modules."""
        self.assertRegex(self.commands()[1], r"--config-settings editable_mode=compat && \.venv/bin/python -m twisted\.trial -j3 tests\Z")

    def test_links_lead_somewhere(self) -> None:
        """A dead link on the first page."""
        targets = re.findall(r"`[^`]+ <([^>:]+)>`_", README)
        self.assertTrue(targets)
        self.assertEqual([target for target in targets if not (TOP / target).is_file()], [])


class WhatRunsTests(SynchronousTestCase):
    """The table of what CI runs at a push and what by command, in ``docs/contributing.rst``."""

    def setUp(self) -> None:
        text = (TOP / "docs" / "contributing.rst").read_text(encoding="utf-8")
        self.table = text.partition("What runs when\n")[2].partition("\nFigures\n")[0]

    def test_every_campaign(self) -> None:
        """A proof that no push has whole would be run by nobody."""
        named = set(re.findall(r"``python -m tests\.campaigns (\w+)(?: --all)?``", self.table))
        self.assertEqual(named, {*campaigns.CAMPAIGNS, *campaigns.LONGER})

    def test_numbers(self) -> None:
        """A sample would become smaller unseen."""
        for line in (
            f"simulator: {simulator.SEEDS} fixed seeds",
            f"- the first {simulator.AT_PUSH}; those",
            f"{sweep.LEAST:,} points",
            f"- {sweep.LEAST_AT_PUSH:,}: each call is killed",
            f"- up to {powercuts.AT_PUSH_SUBSETS} possibilities all, else {powercuts.AT_PUSH_SAMPLE} of them",
            f"after another fault at every {powercuts.AT_PUSH_STEP}rd call",
            f"up to {MOST_SUBSETS} possibilities all, else {SAMPLE}; after",
            f"up to {INPUTS:,} fixed inputs for each decoder",
            f"- the first of {fuzz.AT_PUSH} parts",
            f"- for {campaign_strace.AT_PUSH_S:.0f} seconds",
            f"--all``: for {campaign_strace.CAMPAIGN_S:.0f} seconds",
        ):
            self.assertIn(line, self.table)


class NewsTests(SynchronousTestCase):
    """News fragments reach the list of changes."""

    def test_names_are_understood(self) -> None:
        """A fragment is left out by towncrier when its kind is unknown, and users never read of the change."""
        config = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["towncrier"]
        kinds = "|".join(kind["directory"] for kind in config["type"])
        names = [path.name for path in (TOP / config["directory"]).iterdir() if path.name != "README.rst"]
        self.assertEqual([name for name in names if not re.fullmatch(rf"(\d+|\+[a-z-]+)\.({kinds})(\.\d+)?\.rst", name)], [])

    def test_fragments_are_sentences(self) -> None:
        """A heading or half a sentence tells a user nothing."""
        for path in sorted((TOP / "newsfragments").glob("*.*.rst")):
            text = path.read_text(encoding="utf-8").strip()
            self.assertTrue(text.endswith(".") and len(text) > 30, f"{path.name} is not a sentence")
