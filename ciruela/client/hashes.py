"""Which hash to index with: BLAKE3, unless a server of the cluster is the reference's, which knows BLAKE2b only.

A server that confirms ``ciruela.v2`` is one of ours and takes every kind. Who says nothing decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from ciruela.index.digest import HashKind

OURS = HashKind.BLAKE3
EVERYBODYS = HashKind.BLAKE2B


def kind_for(ours: Iterable[bool]) -> HashKind:
    """The best kind that all servers of one cluster understand that answered; ``ours`` tells of each whether it is of ``ciruela.v2``."""
    return OURS if all(ours) else EVERYBODYS
