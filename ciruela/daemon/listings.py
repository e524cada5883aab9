"""Lists of base dirs for those who ask: a long one is encoded once for all of them, in a thread."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from ciruela.clockwork import in_place
from ciruela.model.vpath import VPath
from ciruela.proto.codec import Prepared, prepare
from ciruela.proto.messages import BaseDirData
from ciruela.seams import InThread
from ciruela.tracking.ledger import Ledger

LONG_ENTRIES = 1000
"""With more entries a list is encoded in a thread, and kept."""

KEPT_LISTS = 4

FRESH_S = 1.0
"""A kept list also says who waits for what, which may have changed after so long though the base dir did not."""


@dataclass(eq=False, slots=True)
class _List:
    """A long list, made at ``made_s`` of ``revision``; until it is encoded those who asked wait."""

    revision: int
    made_s: float
    body: Prepared | None = None
    waiting: list[Deferred[Any]] = field(default_factory=list)


class Listings:
    """The last long lists that were asked for."""

    def __init__(self, ledger: Ledger, clock: IReactorTime, in_thread: InThread = in_place) -> None:
        self._ledger = ledger
        self._clock = clock
        self._in_thread = in_thread
        self._kept: OrderedDict[tuple[VPath, bool], _List] = OrderedDict()

    def answer(self, base: VPath, bulk: bool, make: Callable[[], BaseDirData]) -> Deferred[Any]:
        """Fires with the list of ``base`` that ``make`` gives for those of version 2 (``bulk``), or for others; a long one is encoded."""
        if self._ledger.size(base) <= LONG_ENTRIES:
            return succeed(make())
        key = base, bulk
        kept = self._kept.get(key)
        if kept is None or kept.revision != self._ledger.revision(base) or self._clock.seconds() >= kept.made_s + FRESH_S:
            kept = self._kept[key] = _List(self._ledger.revision(base), self._clock.seconds())
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT_LISTS:
                self._kept.popitem(last=False)
            self._in_thread(prepare, "GetBaseDir", make()).addBoth(self._encoded, kept, key)
        if kept.body is not None:
            return succeed(kept.body)
        kept.waiting.append(waiting := Deferred[Any]())
        return waiting

    def _encoded(self, result: Prepared | Failure, made: _List, key: tuple[VPath, bool]) -> None:
        if isinstance(result, Prepared):
            made.body = result
        elif self._kept.get(key) is made:
            del self._kept[key]
        waiting, made.waiting = made.waiting, []
        for one in waiting:
            one.callback(result)
