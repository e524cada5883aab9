"""Sphinx configuration: ``sphinx-build -n -W --keep-going docs OUT`` builds every page, and any warning fails."""

import sys
from pathlib import Path

from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests import evidence

_version: dict[str, str] = {}
exec((Path(__file__).parent.parent / "ciruela" / "_version.py").read_text(encoding="utf-8"), _version)

project = "ciruela"
author = "The ciruela developers"
copyright = "2026, The ciruela developers"
version = release = _version["__version__"]

extensions: list[str] = []
nitpicky = True
exclude_patterns = ["_build"]
primary_domain = None
highlight_language = "none"
smartquotes = False

html_theme = "furo"
html_title = f"ciruela {release}"
html_copy_source = False


class Evidence(Directive):
    """``.. evidence::`` - the table of what the program must withstand, and of the tests that show it."""

    def run(self):
        """The table, made anew of the sources of the tests."""
        self.state_machine.insert_input(StringList(evidence.table(), source=str(evidence.ROWS)), str(evidence.ROWS))
        return []


def setup(app):
    """Called by Sphinx."""
    app.add_directive("evidence", Evidence)
