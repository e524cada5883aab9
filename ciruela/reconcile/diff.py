"""Which entries of a peer's base dir this node wants. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from ciruela.model.order import Command, Order, Origin, Removal
from ciruela.model.state import Burials, State, Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import RemovedEntry


def wanted(base: VPath, ours: Mapping[str, State], theirs: Mapping[str, State], burials: Burials, frozen: bool = False) -> list[Order]:
    """Orders for the entries that are newer there by the one order of versions, the newest first.

    The same image with a later signature is wanted too: it costs no download and makes the hashes agree. Entries with a bad name or without
    signatures are left out: a peer's list is not trusted to be well made (protocol section 12, S7). So is what was deleted here.
    Where each node keeps its own of two appended images (``frozen``), the older one is an order as well: its refusal tells of the conflict.
    """
    orders = []
    for entry, state in theirs.items():
        mine = ours.get(entry)
        conflict = frozen and mine is not None and mine.image != state.image
        if not state.signatures or (mine is not None and state.version <= mine.version and not conflict):
            continue
        if mine is None and _deleted(entry, state, burials):
            continue
        try:
            vpath = base.image_at(entry)
        except ValueError:
            continue
        command = Command.APPEND if mine is None else Command.REPLACE
        orders.append((state.version, Order(command, vpath, state.image, None, state.signatures, Origin.PEER)))
    orders.sort(key=lambda one: one[0], reverse=True)
    return [order for _, order in orders]


def removals_in(base: VPath, ours: Mapping[str, State], theirs: Mapping[str, RemovedEntry], burials: Burials) -> list[Removal]:
    """What was removed there by signed wishes and concerns what is here, or is not known here. The oldest first."""
    found = []
    for entry, removed in theirs.items():
        version = Version(removed.timestamp_ms, removed.image)
        mine, tombstone = ours.get(entry), burials.tombstones.get(entry)
        if (mine is not None and mine.version > version) or (tombstone is not None and tombstone.version >= version):
            continue
        if mine is None and tombstone is None and version.timestamp_ms <= burials.floor_ms:
            continue
        try:
            vpath = base.image_at(entry)
        except ValueError:
            continue
        found.append(Removal(vpath, removed.image, removed.timestamp_ms, removed.signatures, Origin.PEER, forced=removed.forced))
    return sorted(found, key=lambda one: one.version)


def _deleted(entry: str, state: State, burials: Burials) -> bool:
    tombstone = burials.tombstones.get(entry)
    if tombstone is not None:
        return state.version <= tombstone.version
    return state.version.timestamp_ms <= burials.floor_ms
