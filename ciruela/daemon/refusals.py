"""Why an image that was wanted here did not come: the last refusals and failures, in memory, for pages."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime

from ciruela.model.ids import ImageId
from ciruela.model.vpath import VPath

MOST = 1000
"""Entries that are kept; a thousand of them are some 300 KiB."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One image that was not taken, or given up: ``word`` as on the wire, when on the clock of the node."""

    image: ImageId
    word: str
    rejected: bool
    at_s: float


class Refusals:
    """The last refusal at each path."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._kept: OrderedDict[VPath, Refusal] = OrderedDict()

    def note(self, vpath: VPath, image: ImageId, word: str, *, rejected: bool) -> None:
        """``image`` does not come to ``vpath``: it was ``rejected``, or a download was given up."""
        self._kept.pop(vpath, None)
        self._kept[vpath] = Refusal(image, word, rejected, self._clock.seconds())
        while len(self._kept) > MOST:
            self._kept.popitem(last=False)

    def forget(self, vpath: VPath) -> None:
        """Something came to ``vpath`` after all."""
        self._kept.pop(vpath, None)

    def at(self, vpath: VPath) -> Refusal | None:
        """The last refusal at ``vpath``, if it is remembered."""
        return self._kept.get(vpath)
