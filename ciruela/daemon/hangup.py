"""SIGHUP: the operator wants the configuration to be read again."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger


class Hangup:
    """Calls ``asked`` on the reactor after each SIGHUP. ``twistd`` itself uses SIGUSR1, for its log, and leaves this one alone."""

    _log = Logger()

    def __init__(self, reactor: IReactorFromThreads, asked: Callable[[], object]) -> None:
        self._reactor = reactor
        self._asked = asked
        self._before: Any = None
        self._set = False

    def start(self) -> None:
        """Begin to listen. Only the main thread can; elsewhere, as in a test, nothing is changed."""
        try:
            self._before = signal.signal(signal.SIGHUP, self._hung_up)
        except ValueError:
            self._log.warn("SIGHUP is not listened to: this is not the main thread of the process")
        else:
            self._set = True

    def stop(self) -> None:
        """From now on the signal means what it meant before."""
        if self._set:
            self._set = False
            signal.signal(signal.SIGHUP, signal.SIG_DFL if self._before is None else self._before)

    def _hung_up(self, _number: int, _frame: object) -> None:
        """Runs between any two instructions of the program: so it does nothing but leave a note."""
        self._reactor.callFromThread(self._asked)
