"""Memory of each configured address: who was met there last, and what that one takes. It lasts while the address is configured.

What is merely not heard must not shrink a count of servers: so this memory has no time limit, and survives restarts (:meth:`Memory.rows`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from ciruela.model.ids import MachineId, machine_id
from ciruela.seams import Address

MOST_ROWS = 20_000
"""Addresses of the last run that are taken in."""

MOST_KEYS_KEPT = 4096
"""Directories of one peer that are remembered."""

UNUSED_MS = 30 * 24 * 3600 * 1000
"""What was remembered of an address that no list names is dropped when that address was not heard for so long: 30 days."""

_UNKNOWN, _HEARD, _SURE = "?", "=", "!"


@dataclass(frozen=True, slots=True)
class Known:
    """One address. ``machine`` is None when nobody is known there, ``epoch`` 0 when only others told of the machine.

    ``keys``: the directories that it takes, None while it has not told all of them. ``sure``: it told them over a connection, which nobody
    else can forge; from then on datagrams add to them and take none away. ``heard_ms``: wall time of its last sign of life.
    """

    machine: MachineId | None
    epoch: int = 0
    hostname: str = ""
    keys: tuple[str, ...] | None = None
    sure: bool = False
    heard_ms: int = 0


class Memory:
    """What is known of all configured addresses."""

    def __init__(self) -> None:
        self._known: dict[Address, Known] = {}
        self._recalled: dict[str, Known] = {}

    def get(self, address: Address) -> Known | None:
        """What is known of ``address``."""
        return self._known.get(address)

    def configured(self, addresses: Collection[Address]) -> None:
        """These are configured now: forget all others, and take over what the last run knew of new ones."""
        for address in [address for address in self._known if address not in addresses]:
            del self._known[address]
        for address in addresses:
            recalled = self._recalled.pop(str(address), None) if self._recalled else None
            if recalled is not None:
                self._known.setdefault(address, recalled)

    # -- hearing ----------------------------------------------------------------------------------------------------------------------

    def met(self, address: Address, machine: MachineId, epoch: int, heard_ms: int, *, connected: bool) -> None:
        """``machine`` gave a sign of life at ``address``. ``epoch`` is 0 when others told so."""
        old = self._known.get(address)
        if old is None:
            self._known[address] = Known(machine, epoch, heard_ms=heard_ms)
        elif old.machine == machine:
            if epoch and old.epoch and epoch != old.epoch:
                self._carry(machine, old.epoch, epoch)
            self._known[address] = replace(old, epoch=epoch or old.epoch, heard_ms=max(heard_ms, old.heard_ms))
        elif connected or not old.sure:
            self._known[address] = Known(machine, epoch, heard_ms=heard_ms)
        else:
            self._known[address] = replace(old, machine=machine, epoch=epoch, hostname="", heard_ms=heard_ms)

    def _carry(self, machine: MachineId, before: int, epoch: int) -> None:
        """Addresses that were one process before its restart are one after it, until one of them says something else."""
        for address, known in self._known.items():
            if known.machine == machine and known.epoch == before:
                self._known[address] = replace(known, epoch=epoch)

    def told(self, address: Address, hostname: str, keys: Collection[str] | None, *, connected: bool) -> None:
        """The machine at ``address`` has this name and takes ``keys``; None while it has not told all of them."""
        known = self._known[address]
        if keys is None:
            self._known[address] = replace(known, hostname=hostname)
            return
        if known.sure and not connected:
            keys = {*(known.keys or ()), *keys}
        self._known[address] = replace(known, hostname=hostname, keys=tuple(sorted(keys)), sure=known.sure or connected)

    def vacate(self, address: Address) -> None:
        """Nobody knows any more who is at ``address``: it counts as a server that was never met."""
        if address in self._known:
            self._known[address] = Known(None, heard_ms=self._known[address].heard_ms)

    # -- over restarts ----------------------------------------------------------------------------------------------------------------

    def recall(self, rows: Mapping[str, Sequence[str]]) -> None:
        """Take in what the last run knew, by the texts of the addresses. A row that cannot be understood counts as absent."""
        for text, row in list(rows.items())[:MOST_ROWS]:
            known = _read(row)
            if known is not None:
                self._recalled[text] = known

    def rows(self, now_ms: int) -> dict[str, list[str]]:
        """What is known, as texts for :meth:`recall`: machine id, epoch, host name, wall time, a mark, and the directories."""
        kept = {text: known for text, known in self._recalled.items() if now_ms - known.heard_ms < UNUSED_MS}
        return {text: _row(known) for text, known in (kept | {str(address): known for address, known in self._known.items()}).items()}


def _row(known: Known) -> list[str]:
    mark = _UNKNOWN if known.keys is None else _SURE if known.sure else _HEARD
    machine = "" if known.machine is None else known.machine.hex()
    return [machine, str(known.epoch), known.hostname, str(known.heard_ms), mark, *(known.keys or ())[:MOST_KEYS_KEPT]]


def _read(row: Sequence[str]) -> Known | None:
    if len(row) < 5 or len(row) > 5 + MOST_KEYS_KEPT or row[4] not in (_UNKNOWN, _HEARD, _SURE):
        return None
    machine, epoch, hostname, heard_ms, mark = row[:5]
    numbers = all(text.isascii() and text.isdigit() and len(text) < 20 for text in (epoch, heard_ms))
    if len(machine) not in (0, 32) or not hostname.isprintable() or not numbers:
        return None
    try:
        identity = machine_id(bytes.fromhex(machine)) if machine else None
    except ValueError:
        return None
    keys = None if mark == _UNKNOWN else tuple(sorted(set(row[5:])))
    return Known(identity, int(epoch), hostname[:255], keys, mark == _SURE, int(heard_ms))
