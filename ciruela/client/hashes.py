"""Which hash to index with: BLAKE3, unless a server of the cluster is the reference's, which knows BLAKE2b only.

A server that confirms ``ciruela.v2`` is one of ours and takes every kind. Who says nothing decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from ciruela.index.digest import HashKind
from ciruela.seams import Link

OURS = HashKind.BLAKE3
EVERYBODYS = HashKind.BLAKE2B


def kind_for(links: Iterable[Link]) -> HashKind:
    """The best kind that all servers of one cluster understand that answered."""
    return OURS if all(link.bulk for link in links) else EVERYBODYS
