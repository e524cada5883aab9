"""Write the man pages: ``python docs/man.py DIRECTORY`` makes ``ciruela.1`` and ``ciruela-sync.1`` of the parsers of the command line.

It needs argparse-manpage, which is among the dev requirements.
"""

import os
import sys
import time
from pathlib import Path

from argparse_manpage.manpage import Manpage

from ciruela import __version__
from ciruela.client.options import tree


def page(parser, about):
    """The text of one page. ``SOURCE_DATE_EPOCH`` is its date, so that two builds of one release are the same."""
    day = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    data = {
        "project_name": "ciruela",
        "version": __version__,
        "date": day,
        "manual_title": "User Commands",
        "manual_section": 1,
        "description": about,
    }
    return str(Manpage(parser, format="single-commands-section", _data=data))


def main(directory):
    """Write both pages into ``directory``."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    for parser, about in (
        (tree.ciruela(), "puts a whole directory on every server of a cluster"),
        (tree.ciruela_sync(), "put directories on every server of a cluster"),
    ):
        Path(directory, f"{parser.prog}.1").write_text(page(parser, about), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
