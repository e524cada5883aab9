"""How much one key, and one directory, may have here at a time (threats 6.12). Counts only; what is pending is asked of the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ciruela.model.dirconfig import DirConfig
from ciruela.model.errors import SLOW_DOWN, Busy
from ciruela.model.order import Order, Origin, Reject, Rejected
from ciruela.model.vpath import VPath
from ciruela.tracking.ledger import Ledger


class Quotas:
    """Looks only at what clients ask for: what peers bring was granted by another node, and the nodes have to agree in the end.

    ``stalled`` tells whether the download for a path has found no source for a while; those do not count, or a client that has gone would
    lock its key out.
    """

    def __init__(self, ledger: Ledger, uploads_per_key: int, stalled: Callable[[VPath], bool]) -> None:
        self._ledger = ledger
        self._uploads_per_key = uploads_per_key
        self._stalled = stalled
        self._makers: dict[VPath, str] = {}
        self.slowed = 0

    def tune(self, uploads_per_key: int) -> None:
        """A key may have so many from now on."""
        self._uploads_per_key = uploads_per_key

    def room(self, order: Order, config: DirConfig) -> Rejected | None:
        """The refusal when ``order`` would make one more path than the directory may have."""
        if order.origin is Origin.PEER or config.max_images is None or self._ledger.knows(order.vpath):
            return None
        count = self._ledger.count(config.key)
        if count < config.max_images:
            return None
        return Rejected(Reject.QUOTA, f"/{config.key} has {count} images, max-images is {config.max_images}")

    def charge(self, order: Order, makers: Iterable[str]) -> None:
        """Note that ``order`` begins, for the first of the keys that signed it and has room. Raises Busy when none has."""
        if order.origin is Origin.PEER:
            self._makers.pop(order.vpath, None)
            return
        counts: dict[str, int] = {}
        for vpath, maker in list(self._makers.items()):
            if self._ledger.pending(vpath) is None:
                del self._makers[vpath]
            elif vpath != order.vpath and not self._stalled(vpath):
                counts[maker] = counts.get(maker, 0) + 1
        for maker in makers:
            if counts.get(maker, 0) < self._uploads_per_key:
                self._makers[order.vpath] = maker
                return
        self.slowed += 1
        raise Busy(f"{SLOW_DOWN}: {self._uploads_per_key} uploads of this key are in progress on this node")
