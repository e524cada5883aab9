"""A daemon that notes how long each turn of its reactor takes: ``python -m benchmarks.turns FILE ARGUMENTS OF TWISTD``.

A turn is what the reactor's thread does from one poll to the next; the watchdog of a daemon sees only those that make its beat late. Beside
the time that passed stands how much of it is the machine's, which was busy with other programs: the thread was ready and had no processor,
or the daemon as a whole, whose other threads it may have waited for, used none. A poll that comes back later than it should counts as a
turn. FILE is written when the daemon ends.
"""

from __future__ import annotations

import collections
import gc
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ciruela.daemon.service import where_is

LONG_S = 0.1
"""Turns from here on are noted one by one, and looked at while they last."""

LOOK_S = 0.01


class Turns:
    """In the place of the poller of Twisted's reactor. Counts turns, and looks from a thread of its own at what is done in long ones."""

    def __init__(self, poller: Any) -> None:
        self._poller = poller
        self._began_s = self._queued_s = self._used_s = 0.0
        self._thread = threading.get_ident()
        self._schedule = open("/proc/thread-self/schedstat", "rb", buffering=0)  # noqa: SIM115  as long as the process
        self._waits = True
        self.count = 0
        self.long: list[tuple[float, float, str]] = []
        self._seen: collections.Counter[str] = collections.Counter()
        self._seen_of = 0
        self._collecting_s = self._collected_s = 0.0
        gc.callbacks.append(self._collects)
        threading.Thread(target=self._look_on, daemon=True).start()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)

    def poll(self, timeout: float, most: int) -> Any:
        """End a turn, wait, and begin the next one."""
        if self._began_s:
            self.count += 1
            took_s = time.perf_counter() - self._began_s
            if took_s >= LONG_S:
                where = self._seen.most_common(1)[0][0] if self._seen and self._seen_of == self.count - 1 else "?"
                if self._collected_s >= took_s / 4:
                    where = f"{self._collected_s * 1000:.0f} ms of it garbage collection, {where}"
                self.long.append((took_s, self._others(took_s), where))
        self._waits = True
        self._begin()
        began_s = self._began_s
        try:
            return self._poller.poll(timeout, most)
        finally:
            late_s = time.perf_counter() - began_s - max(timeout, 0.0)
            if timeout >= 0 and late_s >= LONG_S:
                self.long.append((late_s, self._others(late_s), "poll"))
            self._begin()
            self._waits = False

    def _begin(self) -> None:
        self._queued_s, self._used_s, self._collected_s = self._queued(), time.process_time(), 0.0
        self._began_s = time.perf_counter()

    def _others(self, took_s: float) -> float:
        """How many of the seconds since :meth:`_begin` other programs had."""
        return max(self._queued() - self._queued_s, took_s - (time.process_time() - self._used_s))

    def _collects(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._collecting_s = time.perf_counter()
        else:
            self._collected_s += time.perf_counter() - self._collecting_s

    def _queued(self) -> float:
        """For how many seconds this thread was ready so far and had no processor."""
        self._schedule.seek(0)
        return int(self._schedule.read().split()[1]) / 1e9

    def _look_on(self) -> None:
        while True:
            time.sleep(LOOK_S)
            if self._waits or time.perf_counter() - self._began_s < LONG_S / 2:
                continue
            if self._seen_of != self.count:
                self._seen, self._seen_of = collections.Counter(), self.count
            self._seen[where_is(sys._current_frames().get(self._thread))] += 1


def main() -> None:
    """Run twistd with a reactor that is measured."""
    into, sys.argv = Path(sys.argv[1]).absolute(), ["twistd", *sys.argv[2:]]
    from twisted.internet import reactor
    from twisted.scripts.twistd import run

    turns = Turns(reactor._poller)  # type: ignore[attr-defined]
    reactor._poller = turns  # type: ignore[attr-defined]
    reactor.addSystemEventTrigger("after", "shutdown", lambda: into.write_text(json.dumps({"turns": turns.count, "long": turns.long})))  # type: ignore[attr-defined]
    run()


if __name__ == "__main__":
    main()
