"""The decision tables of protocol section 5.3, with one order of versions (threats 6.5). Pure: values in, a verdict out.

Rows that differ from the reference:

- a replace that is not newer than what is there is ``stale_timestamp``, a signing time over 5 minutes ahead is ``timestamp_in_future``;
- an upload that has found no source for a while gives way to a newer one;
- a client's signature must be of the last day, and nothing that was deleted comes back: what is not newer than its tombstone, or comes from
  a peer and is not newer than the floor of its base dir, is ``stale_timestamp``;
- what a peer brings is judged by the order of versions alone, also in append-only directories: of two images that were appended to one path
  on two nodes the greater version wins everywhere, and the verdict says that there was a conflict. With ``on-append-conflict: freeze`` each
  node keeps what it has, and the verdict is ``conflict``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ciruela.model.dirconfig import DirConfig, OnConflict
from ciruela.model.order import Accepted, Command, Order, Origin, Progress, Reject, Rejected, Verdict
from ciruela.model.state import SigEntry, State, Version

FUTURE_LIMIT_MS = 5 * 60 * 1000
"""How far ahead of this node's clock a signature may be (threats A13)."""


SIGNATURE_MAX_AGE_MS = 24 * 3600 * 1000
"""How old the signature of a client's request may be: older ones are replays, or the clock of that host is wrong (threats 6.5)."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the node holds at the path of an order. ``stalled``: what is pending has found no source for a while.

    ``buried``: the version that was deleted there last. ``floor_ms``: what is signed no later than this is not taken from peers at a path
    of which nothing is known.
    """

    committed: State | None
    pending: State | None
    stalled: bool
    buried: Version | None = None
    floor_ms: int = 0


def precheck(order: Order, config: DirConfig | None) -> Rejected | None:
    """What can be refused before any signature is looked at (rows 1 to 3)."""
    if config is None:
        return Rejected(Reject.NO_CONFIG, f"/{order.vpath.key} is not configured here")
    if order.vpath.level != config.num_levels:
        return Rejected(Reject.CONFIG_LEVEL_MISMATCH, f"{order.vpath} has level {order.vpath.level}, num-levels is {config.num_levels}")
    if order.command is Command.REPLACE and config.append_only and order.origin is Origin.CLIENT:
        return Rejected(Reject.DIR_IS_APPEND_ONLY)
    return None


def judge(
    order: Order,
    config: DirConfig,
    standing: Standing,
    verified: tuple[SigEntry, ...],
    now_ms: int,
    max_age_ms: int = SIGNATURE_MAX_AGE_MS,
) -> Verdict:
    """The verdict on an order that passed :func:`precheck`, ``verified`` being those of its signatures that a key here made."""
    if not verified:
        return Rejected(Reject.SIGNATURE_MISMATCH)
    timely = tuple(entry for entry in verified if entry.timestamp_ms <= now_ms + FUTURE_LIMIT_MS)
    if not timely:
        return Rejected(Reject.TIMESTAMP_IN_FUTURE, f"signed for {verified[0].timestamp_ms} ms, the clock here says {now_ms} ms")
    wish = State(order.image, tuple(sorted(timely)))
    if standing.pending is not None and standing.pending.image == order.image:
        return Accepted(Progress.IN_PROGRESS, standing.pending.merged(timely))
    if standing.pending is None and standing.committed is not None and standing.committed.image == order.image:
        return Accepted(Progress.ALREADY_DONE, standing.committed.merged(timely))
    if standing.buried is not None and wish.version <= standing.buried:
        return Rejected(Reject.STALE_TIMESTAMP, f"what was signed for {wish.version.timestamp_ms} ms was deleted here")
    if order.origin is Origin.PEER:
        return _by_version(wish, config, standing)
    if wish.version.timestamp_ms < now_ms - max_age_ms:
        seen = f"signed for {wish.version.timestamp_ms} ms, the clock here says {now_ms} ms"
        return Rejected(Reject.STALE_TIMESTAMP, f"{seen}, at most {max_age_ms // 1000} s may lie between")
    if standing.pending is not None:
        return _against_pending(order, wish, standing.pending, standing)
    if standing.committed is not None:
        return _against_committed(order, wish, standing.committed)
    return Accepted(Progress.NEW, wish)


def _by_version(wish: State, config: DirConfig, standing: Standing) -> Verdict:
    known = standing.pending or standing.committed
    if known is not None and config.append_only and config.on_append_conflict is OnConflict.FREEZE and known.image != wish.image:
        return Rejected(Reject.CONFLICT, "two images were appended to one path, each node keeps its own")
    for state in (standing.pending, standing.committed):
        if state is not None and wish.version <= state.version:
            return Rejected(Reject.STALE_TIMESTAMP)
    if known is None and standing.buried is None and wish.version.timestamp_ms <= standing.floor_ms:
        return Rejected(Reject.STALE_TIMESTAMP, f"signed for {wish.version.timestamp_ms} ms, before what was deleted and forgotten here")
    return Accepted(Progress.NEW, wish, conflict=config.append_only and known is not None)


def _against_pending(order: Order, wish: State, pending: State, standing: Standing) -> Verdict:
    if not (standing.stalled and wish.version > pending.version):
        if order.old_image is not None and order.old_image != pending.image:
            return Rejected(Reject.REPLACE_DOESNT_MATCH)
        return Rejected(Reject.ALREADY_UPLOADING)
    if standing.committed is not None:
        return _against_committed(order, wish, standing.committed)
    return Accepted(Progress.NEW, wish)


def _against_committed(order: Order, wish: State, committed: State) -> Verdict:
    if order.command is Command.APPEND:
        return Rejected(Reject.ALREADY_EXISTS)
    if order.old_image is not None and order.old_image != committed.image:
        return Rejected(Reject.REPLACE_DOESNT_MATCH)
    if wish.version <= committed.version:
        return Rejected(
            Reject.STALE_TIMESTAMP, f"signed for {wish.version.timestamp_ms} ms, there is one of {committed.version.timestamp_ms} ms"
        )
    return Accepted(Progress.NEW, wish)
