"""Taking a key away counts at once, also for what is on its way: uploads that no key allows any more are given up.

A new upload is judged by the key files as they are at that moment (``authority``); this looks after those that were accepted before.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ciruela.daemon.node import Node
from ciruela.daemon.rules import key_files
from ciruela.interfaces import InThread, Pending
from ciruela.model.errors import DiskError
from ciruela.model.upload import AbortReason
from ciruela.runtime import PeriodicTask

LOOK_S = 2.0
"""Interval of looking at the key files. A few calls of ``stat``; watching them by inotify would miss a directory that is replaced."""

FOLLOW_UPS = 5
"""Number of further looks at uploads after a change: one may have been judged by the old keys just before, and begin just after."""

Stamps = Mapping[str, tuple[int, int, int, int]]
"""Fingerprints of files, by path: inode, size, and times of change in ns."""


class KeyWatch:
    """Gives up what is on its way here and was signed by no key that still counts. What is committed stays."""

    _log = Logger()

    def __init__(self, node: Node, config_dir: str, in_thread: InThread, clock: IReactorTime, rng: random.Random) -> None:
        self._node = node
        self._config_dir = config_dir
        self._in_thread = in_thread
        self._beat = PeriodicTask(clock, rng, LOOK_S, self._look, "watching the key files")
        self._seen: Stamps | None = None
        self._settled: Stamps | None = None
        self._left = FOLLOW_UPS
        self.aborted = 0

    def start(self) -> None:
        """Begin; the first look counts as a change, because keys may have gone while no daemon ran."""
        self._beat.start()

    def stop(self) -> None:
        """End."""
        self._beat.stop()

    def _look(self) -> Deferred[None]:
        return self._in_thread(stamps, self._config_dir).addCallback(self._compare)

    def _compare(self, found: Stamps) -> Deferred[None] | None:
        """Two looks must have seen the same: a file that is being written has no keys for a moment."""
        before, self._seen = self._seen, found
        if found != before:
            return None
        if found != self._settled:
            self._settled, self._left = found, FOLLOW_UPS
        if not self._left or not self._node.ready:
            return None
        self._left -= 1
        return self.recheck()

    def recheck(self) -> Deferred[None]:
        """Look at all that is on its way, now."""
        return Deferred.fromCoroutine(self._recheck())

    async def _recheck(self) -> None:
        for pending in self._node.ledger.pendings():
            if not await self._allowed(pending):
                self._give_up(pending)

    async def _allowed(self, pending: Pending) -> bool:
        config = self._node.context.configs.get(pending.vpath.key)
        if config is None:
            return True
        state = pending.state
        try:
            valid = await self._node.context.authority.verified(config, pending.vpath, state.image, state.signatures)
        except DiskError as error:
            self._log.warn("{vpath}: nobody can tell whether its keys still count: {error}", vpath=str(pending.vpath), error=error)
            return True
        return bool(valid)

    def _give_up(self, pending: Pending) -> None:
        """Unless something else is there by now, or it is being shown at this moment: then it has come in time."""
        vpath = pending.vpath
        now = self._node.ledger.pending(vpath)
        if now is None or now.state != pending.state or self._node.downloads.settled(vpath) is not None:
            return
        self._log.warn(
            "{vpath}: {image} is given up: no key that may upload here has signed it any more",
            vpath=str(vpath),
            image=pending.state.image.hex(),
        )
        self.aborted += 1
        self._node.downloads.abort(vpath, AbortReason.KEY_REMOVED)


def stamps(config_dir: str) -> Stamps:
    """Takes the fingerprints of all key files that are there now."""
    found = {}
    for path in key_files(config_dir):
        try:
            status = os.lstat(path)
        except OSError:
            continue
        found[str(path)] = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found
