"""``ciruela-server``: ``twistd ciruela`` in the foreground, under the name and with the options of the reference's daemon.

A unit file that starts ``ciruela-server --config-base-dir DIR ...`` starts this one too.
"""

from __future__ import annotations

import sys

from twisted.scripts import twistd

from ciruela.disk.streams import hold_streams


def main() -> None:
    """Become ``twistd --nodaemon --pidfile= ciruela``, with the options that were given."""
    hold_streams()
    sys.argv[1:] = ["--nodaemon", "--pidfile=", "ciruela", *sys.argv[1:]]
    twistd.run()
