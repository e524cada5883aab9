"""Where the programs ``ciruela`` and ``ciruela-sync`` begin: loads ``main``, and calls it.

Loading makes hundreds of thousands of objects, and none of them is garbage: the collector would look through them again and again, which
takes a seventh of the processor time of a small upload. So it waits until everything is there, and leaves that alone afterwards.
"""

from __future__ import annotations

import gc
import os
from types import ModuleType

_NVX = "AUTOBAHN_USE_NVX"
"""Autobahn's own switch. It loads its native code in a way that takes a tenth of the start; ``net.frames``, which needs it, has its own.

The daemons that ``ciruela demo`` starts shall not inherit it: it is as it was once everything is loaded.
"""


def _main() -> ModuleType:
    gc.disable()
    wanted = os.environ.get(_NVX)
    os.environ[_NVX] = "0"
    try:
        from ciruela.client import main  # here, because the collector has to be off before
    finally:
        del os.environ[_NVX]
        if wanted is not None:
            os.environ[_NVX] = wanted
        gc.freeze()
        gc.enable()
    return main


def ciruela() -> int:
    """``ciruela``. Gives the exit code; raises SystemExit for mistakes in the command line."""
    code: int = _main().main()
    return code


def ciruela_sync() -> int:
    """``ciruela-sync``: as ``ciruela sync``."""
    code: int = _main().main_sync()
    return code
