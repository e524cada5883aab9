"""Which entries of a peer's base dir this node wants. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from ciruela.model.order import Command, Order, Origin
from ciruela.model.state import Burials, State
from ciruela.model.vpath import VPath


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


def _deleted(entry: str, state: State, burials: Burials) -> bool:
    tombstone = burials.tombstones.get(entry)
    if tombstone is not None:
        return state.version <= tombstone.version
    return state.version.timestamp_ms <= burials.floor_ms
