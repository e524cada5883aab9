"""Begins and ends the programs ``ciruela`` and ``ciruela-sync``: takes over the standard streams, loads ``main``, and calls it.

Loading makes hundreds of thousands of objects, and none of them is garbage: the collector would look through them again and again, which
takes a seventh of the processor time of a small upload. So it waits until everything is there, and leaves that alone afterwards.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import NoReturn

    from ciruela.client.identities import AskPassphrase

_NVX = "AUTOBAHN_USE_NVX"
"""Autobahn's own switch. It loads its native code in a way that takes a tenth of the start; ``net.frames``, which needs it, has its own.

The daemons that ``ciruela demo`` starts shall not inherit it: it is as it was once everything is loaded.
"""

_TLS = "OpenSSL"
"""Package that makes Twisted load TLS and certificates, an eighth of the start. No command speaks TLS: it counts as not installed."""


def load() -> ModuleType:
    """Load ``main``, and leave the collector to what comes after it."""
    gc.disable()
    wanted = os.environ.get(_NVX)
    os.environ[_NVX] = "0"
    sys.modules.setdefault(_TLS, None)  # type: ignore[arg-type]
    try:
        from ciruela.client import main  # here, because the collector has to be off before
    finally:
        del os.environ[_NVX]
        if wanted is not None:
            os.environ[_NVX] = wanted
        gc.freeze()
        gc.enable()
    return main


def run(program: str, terminal: Callable[[], AskPassphrase | None] | None = None) -> int:
    """Call ``program`` of ``main``. Gives the exit code, also where argparse ends the process, and what stdout makes of it.

    ``terminal`` as in ``client.context``, where this process has not its own.
    """
    from ciruela.disk.streams import Standard  # here, because a warm start needs none of it

    standard = Standard()
    code: int
    try:
        code = getattr(load(), program)(standard=standard, terminal=terminal)
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 0
    return standard.exit_code(code)


def end(code: int) -> NoReturn:
    """End the process. All is written and closed by now; to free hundreds of thousands of objects one by one would take 12 ms more."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _begin(program: str, warm: bool) -> NoReturn:
    """Run ``program`` elsewhere if that is wanted and can be, else here."""
    wanted = os.environ.get("CIRUELA_WARM") if warm else None
    if not wanted:
        end(run(program))
    from ciruela.client import warm as warmth

    told = sys.stderr is not None and any(word in ("-v", "--verbose") for word in sys.argv)
    nobody = False
    try:
        idle_s = warmth.seconds_wanted(wanted)
        os._exit(warmth.elsewhere(program))
    except ValueError as error:
        if sys.stderr is not None:
            sys.stderr.write(f"ciruela: warning: {error}\n")
    except warmth.Unavailable as error:
        nobody = isinstance(error, warmth.NobodyWaits)
        if told:
            sys.stderr.write(f"ciruela: no warm start: {error}\n")
    code = run(program)
    if nobody:
        warmth.begin(idle_s)
    end(code)


def ciruela() -> NoReturn:
    """``ciruela``. Ends the process."""
    _begin("main", warm=sys.argv[1:2] == ["sync"])


def ciruela_sync() -> NoReturn:
    """``ciruela-sync``: as ``ciruela sync``. Ends the process."""
    _begin("main_sync", warm=True)
