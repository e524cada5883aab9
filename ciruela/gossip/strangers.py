"""Servers that speak to this node over a connection although no list of peers here names them: shown and counted, never believed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ciruela.gossip.packets import MAX_PARTS, Member, Packet
from ciruela.model.ids import MachineId
from ciruela.model.servers import Server
from ciruela.seams import Address

MOST_STRANGERS = 64
STRANGER_S = 300.0
"""A stranger that did not speak for so long is forgotten."""


@dataclass(frozen=True, slots=True)
class Stranger:
    """One of them, as it told of itself: nobody has proved anything. ``keys`` is None when it did not tell all."""

    machine: MachineId
    hostname: str
    keys: frozenset[str] | None
    at_s: float


class Strangers:
    """The last :data:`MOST_STRANGERS`, by where they say that they listen."""

    def __init__(self) -> None:
        self._at: dict[Address, Stranger] = {}

    def spoke(self, source: Address, packets: Iterable[Packet], now_s: float) -> Stranger | None:
        """Note what came from ``source``. None when it told nothing."""
        packets = list(packets)
        if not packets:
            return None
        machine = packets[-1].header.sender
        own = [item for packet in packets for item in packet.items if isinstance(item, Member) and item.machine == machine]
        parts = {item.part: item.keys for item in own}
        whole = bool(own) and len(parts) == own[-1].parts < MAX_PARTS
        keys = frozenset(key for part in parts.values() for key in part) if whole else None
        found = Stranger(machine, own[-1].hostname if own else "", keys, now_s)
        self._at.pop(source, None)
        while len(self._at) >= MOST_STRANGERS:
            del self._at[next(iter(self._at))]
        self._at[source] = found
        return found

    def expire(self, now_s: float) -> None:
        """Forget who has been silent."""
        self._at = {source: one for source, one in self._at.items() if now_s - one.at_s < STRANGER_S}

    def all(self) -> list[tuple[Address, Stranger]]:
        """Each with its address."""
        return list(self._at.items())

    def rows(self, key: str, now_s: float) -> list[Server]:
        """One row for each that takes ``key``, or did not tell what it takes."""
        return [
            Server(one.hostname or source.host, one.machine, (str(source),), max(0, round((now_s - one.at_s) * 1000)), configured=False)
            for source, one in self._at.items()
            if one.keys is None or key in one.keys
        ]
