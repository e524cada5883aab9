"""Who takes which piece from whom, among nodes that fetch the same image at the same time. A pure function over values.

A piece that has just arrived at one node is wanted by all others at once. If all of them took it from there, that node would send
everything and the others nothing. So each piece has a relay, which every node computes alike: the relay takes the piece from whoever has it
first, all others take it from the relay. There are as many pieces for each relay as make all nodes send the same.
"""

from __future__ import annotations

from bisect import bisect
from itertools import accumulate

STEP = 0.6180339887498949
"""The golden section: its multiples, without what stands before the point, fall evenly into every interval."""


def weights(served: int, others: int) -> tuple[float, float]:
    """For which share of the pieces each of ``served`` nodes, to which a client gives, is the relay, and each of the ``others``.

    With N nodes of which k are served, a relay sends a piece to all but itself and the one it has it from: N - 2, or N - 1 if that is the
    client. Who is served passes 1/k of all pieces on to their relays besides. The shares are those with which everybody sends as much.
    """
    nodes = served + others
    if not served or not others or nodes < 3:
        return 1 / nodes, 1 / nodes
    each = (nodes - 1) / nodes
    other = min(each / (nodes - 2), 1 / others)
    return (1 - others * other) / served, other


def near(count: int, me: bytes, others: tuple[bytes, ...], served: frozenset[bytes]) -> dict[bytes, int]:
    """For each of the machines ``others`` the mask of those of ``count`` pieces that come from there to ``me``.

    ``others`` are all that have, or fetch, the image; ``served`` are those that a client gives to.
    """
    machines = sorted((*others, me))
    clients = sum(1 for machine in machines if machine in served)
    share, other = weights(clients, len(machines) - clients)
    ends = list(accumulate(share if machine in served else other for machine in machines))
    found = [bytearray(count // 8) for _ in machines]
    for number in range(count):
        relay = min(bisect(ends, number * STEP % 1.0), len(machines) - 1)
        found[relay][number >> 3] |= 1 << (number & 7)
    masks = {machine: int.from_bytes(bits, "little") for machine, bits in zip(machines, found, strict=True)}
    mine = masks.pop(me)
    return {machine: mask | mine for machine, mask in masks.items()}
