"""Write the man pages that the wheel carries: ``python docs/man.py`` makes ``docs/man/*.1`` of the command lines, to be committed.

It needs argparse-manpage, which is among the dev requirements; who builds or installs the wheel does not.
"""

import os
import re
import sys
from pathlib import Path

from ciruela import __version__
from ciruela.client.options import table
from ciruela.daemon.tap import Options

HERE = Path(__file__).parent / "man"


def page(parser, about):
    """The text of one page of a parser. No date: two builds of one release are the same."""
    from argparse_manpage.manpage import Manpage

    data = {
        "project_name": "ciruela",
        "version": __version__,
        "manual_title": "User Commands",
        "manual_section": 1,
        "description": about,
    }
    text = str(Manpage(parser, format="single-commands-section", _data=data))
    return re.sub(r'(?m)^(\.TH \S+ "1") "[^"]*"', r'\1 ""', text)


def escaped(text):
    """Text as roff takes it."""
    return text.replace("\\", "\\\\").replace("-", "\\-")


def daemon_page():
    """The text of the page of the daemon, whose options are Twisted's."""
    lines = [
        f'.TH CIRUELA\\-SERVER "1" "" "ciruela {__version__}" "User Commands"',
        ".SH NAME",
        "ciruela\\-server \\- a node of a ciruela cluster",
        ".SH SYNOPSIS",
        ".B ciruela\\-server",
        "[options]",
        ".SH DESCRIPTION",
        escaped(Options.longdesc),
        "It is twistd \\-\\-nodaemon \\-\\-pidfile= ciruela with these options. SIGHUP has it read its configuration again.",
        ".SH OPTIONS",
    ]
    options = [(name, short, "VALUE", about) for name, short, _, about, *_ in Options.optParameters]
    options += [(name, short, "", about) for name, short, about in Options.optFlags]
    for name, short, value, about in sorted(options):
        names = ", ".join(filter(None, (f"\\-{short}" if short else "", f"\\-\\-{escaped(name)}")))
        lines += [".TP", f"\\fB{names}\\fR {value}".rstrip(), escaped(about)]
    return "\n".join([*lines, ""])


def main(directory=HERE):
    """Write all pages into ``directory``."""
    os.environ["COLUMNS"] = "80"  # argparse folds usage by the width of the terminal
    try:
        pages = {
            "ciruela": page(table.ciruela(), "puts a whole directory on every server of a cluster"),
            "ciruela-sync": page(table.ciruela_sync(), "put directories on every server of a cluster"),
            "ciruela-server": daemon_page(),
        }
    except ImportError as error:
        sys.exit(f"{error.name} is missing: install the dev requirements (pip install '.[dev]')")
    Path(directory).mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        Path(directory, f"{name}.1").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
