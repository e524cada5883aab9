"""Servers of a cluster as one node knows them: the rows of which every count of "all servers" is made."""

from __future__ import annotations

from dataclasses import dataclass

from ciruela.model.ids import MachineId


@dataclass(frozen=True, slots=True)
class Server:
    """One server that may take a directory, as the node that tells of it knows it.

    ``name`` is its host name, else the one that the operator configured. ``machine`` is None while nobody has met it. ``addresses`` are
    texts of ``seams.Address``. ``heard_ms``: milliseconds since the last sign of life, by datagram or by connection, in this run of the
    node or an earlier one; None when there was none. ``configured`` is False for one that speaks to the node although no list of peers
    there names it.
    """

    name: str
    machine: MachineId | None
    addresses: tuple[str, ...]
    heard_ms: int | None
    configured: bool = True


@dataclass(frozen=True, slots=True)
class SharedId:
    """Several servers that speak with one machine id: a disk was cloned. ``addresses`` are at least two, in order."""

    machine: MachineId
    addresses: tuple[str, ...]
