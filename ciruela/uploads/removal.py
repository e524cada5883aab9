"""The verdict on a removal: whether an image goes because somebody signed that it should (threats 6.5). Pure.

A removal has a place in the one order of versions like an upload, by the time it was signed for. So a recorded one, said again later, never
removes what was uploaded since, and a recorded upload never brings back what was removed after it.
"""

from __future__ import annotations

from ciruela.model.order import Origin, Reject, Rejected, Removal, Removed
from ciruela.model.state import SigEntry, State
from ciruela.uploads.verdict import FUTURE_LIMIT_MS, SIGNATURE_MAX_AGE_MS, Standing

RemovalVerdict = Removed | Rejected


def judge_removal(
    removal: Removal,
    standing: Standing,
    verified: tuple[SigEntry, ...],
    now_ms: int,
    max_age_ms: int = SIGNATURE_MAX_AGE_MS,
    append_only: bool = False,
    protecting: str | None = None,
) -> RemovalVerdict:
    """The verdict, ``verified`` being those of its signatures that a key made which may upload there.

    A client names the image that is to go and means no other; a peer tells of a removal that holds for whatever is not newer. In an
    ``append_only`` directory it is remembered also where something newer is: else what a node missed would be taken for the first claim.
    What stands there stays while ``protecting`` says why, unless the removal is forced.
    """
    if not verified:
        return Rejected(Reject.SIGNATURE_MISMATCH)
    if removal.timestamp_ms > now_ms + FUTURE_LIMIT_MS:
        return Rejected(Reject.TIMESTAMP_IN_FUTURE, f"signed for {removal.timestamp_ms} ms, the clock here says {now_ms} ms")
    known = tuple(state for state in (standing.pending, standing.committed) if state is not None)
    if removal.origin is Origin.CLIENT:
        if removal.timestamp_ms < now_ms - max_age_ms:
            seen = f"signed for {removal.timestamp_ms} ms, the clock here says {now_ms} ms"
            return Rejected(Reject.STALE_TIMESTAMP, f"{seen}, at most {max_age_ms // 1000} s may lie between")
        refused = _other_content(removal, standing)
        if refused is not None:
            return refused
    buried = standing.buried is not None and standing.buried >= removal.version
    if any(state.version > removal.version for state in known):
        if removal.origin is Origin.PEER and append_only:
            return Removed(fresh=not buried, outlived=True)
        return Rejected(Reject.STALE_TIMESTAMP, f"signed for {removal.timestamp_ms} ms, what is there was signed later")
    if protecting is not None and not removal.forced:  # also where it was removed before, and stands there again without a record
        return Rejected(Reject.PROTECTED, protecting)
    if buried and not known:
        return Removed(fresh=False)
    if not known and removal.origin is Origin.PEER and removal.timestamp_ms <= standing.floor_ms:
        return Removed(fresh=False)
    return Removed(fresh=True)


def _other_content(removal: Removal, standing: Standing) -> Rejected | None:
    """The refusal where another image is there. What other nodes have counts as well: the removal will hold for them, too."""

    def other(state: State | None) -> bool:
        return state is not None and state.image != removal.image

    if other(standing.pending):
        return Rejected(Reject.ALREADY_UPLOADING, "another image is on its way there")
    if other(standing.committed):
        return Rejected(Reject.REPLACE_DOESNT_MATCH, "another image is there")
    here = () if standing.committed is None else (standing.committed.version,)
    newest = max((*standing.elsewhere.committed, *here), default=None)
    if newest is not None and newest.image != removal.image:
        return Rejected(Reject.REPLACE_DOESNT_MATCH, f"{newest.image.hex()[:12]} is there on another node")
    coming = max(standing.elsewhere.pending, default=None)
    if coming is not None and coming.image != removal.image and (newest is None or coming > newest):
        return Rejected(Reject.ALREADY_UPLOADING, f"{coming.image.hex()[:12]} is on its way there on another node")
    return None
