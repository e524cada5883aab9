"""What became of hooks on other nodes, as they said themselves, for clients that begin to wait later."""

from __future__ import annotations

from ciruela.gossip.packets import Hooked
from ciruela.gossip.quota import Quota
from ciruela.model.ids import MachineId
from ciruela.model.vpath import VPath
from ciruela.seams import Address

RESULT_S = 300.0
"""A result that was not repeated for so long is forgotten."""

MOST_KINDS = 8
"""Kinds of hooks that one machine may speak of at one path; today there are two."""


class HeardResults:
    """The results of all machines: ``PER_OWNER`` pairs of path and machine from one address, for machine ids can be invented."""

    def __init__(self) -> None:
        self._paths: dict[VPath, dict[MachineId, dict[int, Hooked]]] = {}
        self._quota: Quota[Address, tuple[MachineId, VPath]] = Quota()

    def __len__(self) -> int:
        return len(self._quota)

    def heard(self, machine: MachineId, source: Address, hooked: Hooked, now_s: float) -> bool:
        """Note a result of ``machine``, which speaks from ``source``.

        True when it is not what was known already; one of an older version changes nothing.
        """
        kinds = self._paths.get(hooked.vpath, {}).get(machine, {})
        known = kinds.get(hooked.kind)
        if (known is None and len(kinds) >= MOST_KINDS) or (known is not None and hooked.timestamp_ms < known.timestamp_ms):
            return False
        gone = self._quota.touch(source, (machine, hooked.vpath), now_s)
        if gone is not None:
            self._forget(*gone)
        self._paths.setdefault(hooked.vpath, {}).setdefault(machine, {})[hooked.kind] = hooked
        return known != hooked

    def _forget(self, machine: MachineId, vpath: VPath) -> None:
        machines = self._paths[vpath]
        del machines[machine]
        if not machines:
            del self._paths[vpath]

    def of(self, vpath: VPath) -> list[tuple[MachineId, Hooked]]:
        """Who said what of hooks at ``vpath``."""
        return [(machine, hooked) for machine, kinds in self._paths.get(vpath, {}).items() for hooked in kinds.values()]

    def expire(self, now_s: float) -> None:
        """Forget what is too old."""
        for _, key in self._quota.expired(now_s - RESULT_S):
            self._forget(*key)
