"""Parts of answers that have just come in, as they came: other nodes ask for the same blocks a moment later.

What was verified when it was written is passed on without reading, hashing and compressing it again; who gets it verifies it anyway.
"""

from __future__ import annotations

from collections import OrderedDict

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ciruela.model.ids import ImageId
from ciruela.proto.messages import Part

MOST_BYTES = 32 * 1024 * 1024
KEPT_S = 10.0

Key = tuple[ImageId, tuple[int, ...]]


class Passing:
    """The last parts that this node got: MOST_BYTES of them, each for KEPT_S."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._kept: OrderedDict[Key, tuple[float, Part]] = OrderedDict()
        self._expiry: IDelayedCall | None = None
        self.bytes = 0

    def put(self, image: ImageId, numbers: tuple[int, ...], part: Part) -> None:
        """Keep the blocks ``numbers``, of which every one was found good."""
        key = image, numbers
        if key in self._kept:
            return
        self._kept[key] = self._clock.seconds(), part
        self.bytes += len(part.data)
        while self.bytes > MOST_BYTES:
            self._drop()
        if self._expiry is None and self._kept:
            self._expiry = self._clock.callLater(KEPT_S, self._expire)

    def get(self, image: ImageId, numbers: tuple[int, ...], packed: bool) -> Part | None:
        """The part with exactly these blocks, if it is here; ``packed`` tells whether it may be a packed one."""
        kept = self._kept.get((image, numbers))
        return None if kept is None or (kept[1].packed and not packed) else kept[1]

    def stop(self) -> None:
        """Let go of everything."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._kept.clear()
        self.bytes = 0

    def _drop(self) -> None:
        _, (_, part) = self._kept.popitem(last=False)
        self.bytes -= len(part.data)

    def _expire(self) -> None:
        self._expiry = None
        now_s = self._clock.seconds()
        while self._kept:
            since_s = next(iter(self._kept.values()))[0]
            if now_s < since_s + KEPT_S:
                self._expiry = self._clock.callLater(since_s + KEPT_S - now_s, self._expire)
                return
            self._drop()
