"""Machine ids with which several servers speak, as after the disk of one was cloned (threats A33)."""

from __future__ import annotations

from collections.abc import Collection

from ciruela.model.ids import MachineId
from ciruela.model.servers import SharedId
from ciruela.seams import Address

SHARED_S = 600.0
"""An address that was silent for so long shares its machine id no more: it counts as a server that nobody has met."""


class SharedIds:
    """Which addresses speak with one machine id, in different epochs, and when each was heard last.

    It ends when one of them speaks with another id, is configured no more, or was silent for :data:`SHARED_S`.
    """

    def __init__(self, me: MachineId) -> None:
        self._me = me
        self._heard: dict[MachineId, dict[Address, float]] = {}

    def note(self, machine: MachineId, heard: dict[Address, float]) -> None:
        """``machine`` is the id of the servers at these addresses, and of this node when it is its own; with when each was heard last."""
        self._heard.setdefault(machine, {}).update(heard)

    def spoke(self, address: Address, machine: MachineId, now_s: float) -> None:
        """A server at ``address`` speaks with ``machine`` now."""
        for other, heard in list(self._heard.items()):
            if address not in heard:
                continue
            if other == machine:
                heard[address] = now_s
            else:
                self._drop(other, {address})

    def configured(self, addresses: Collection[Address]) -> None:
        """Only these are configured."""
        for machine, heard in list(self._heard.items()):
            self._drop(machine, {address for address in heard if address not in addresses})

    def expire(self, now_s: float) -> list[Address]:
        """End what is over; the addresses that were silent for too long."""
        gone: list[Address] = []
        for machine, heard in list(self._heard.items()):
            silent = {address for address, at_s in heard.items() if now_s - at_s >= SHARED_S}
            self._drop(machine, silent)
            gone += silent
        return gone

    def _drop(self, machine: MachineId, addresses: Collection[Address]) -> None:
        heard = self._heard[machine]
        for address in addresses:
            del heard[address]
        if len(heard) < (1 if machine == self._me else 2):
            del self._heard[machine]

    def __contains__(self, machine: MachineId) -> bool:
        return machine in self._heard

    def all(self, own: Collection[str]) -> list[SharedId]:
        """Each shared id with its addresses, in order. ``own`` are the texts of the addresses of this node."""
        return [
            SharedId(machine, tuple(sorted({*(own if machine == self._me else ()), *map(str, heard)})))
            for machine, heard in self._heard.items()
        ]
