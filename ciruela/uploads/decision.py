"""The decision tables of protocol section 5.3, with one order of versions (threats 6.5). Pure: values in, a verdict out.

Rows that differ from the reference:

- a replace that is not newer than what is there is ``stale_timestamp``, a signing time over 5 minutes ahead is ``timestamp_in_future``;
- a replace that names an old image where nothing is, is ``replace_doesnt_match_index``;
- an upload that has found no source for a while gives way to a newer one;
- what other nodes have (:class:`Elsewhere`) counts for a client's order as if it were here: a node that lags behind refuses what the others
  would refuse;
- a client's signature must be of the last day, and nothing that was deleted comes back: what is not newer than its tombstone, or comes from
  a peer and is not newer than the floor of its base dir, is ``stale_timestamp``;
- what a peer brings is judged by the order of versions alone: the greater version wins everywhere. In append-only directories the smaller
  claim wins everywhere, which is the image that was appended first: what was there is never displaced by a later append. The verdict says
  that there was a conflict, the later one is refused as ``conflict``. With ``on-append-conflict: freeze`` each node keeps what it has.

What a peer brings may be of any age, down to the floor: a node that was away for a month has to take what was uploaded meanwhile, and what
it has itself, of the month before, must not be lost to the others. It was young when a client's order was granted; a tombstone or the floor
stops what was deleted.

The verdict on a removal: whether an image goes because somebody signed that it should (threats 6.5). Pure.

A removal has a place in the one order of versions like an upload, by the time it was signed for. So a recorded one, said again later, never
removes what was uploaded since, and a recorded upload never brings back what was removed after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

from ciruela.model.config import DirConfig, OnConflict
from ciruela.model.upload import (
    Accepted,
    Command,
    Decision,
    Origin,
    Progress,
    Rejection,
    RejectReason,
    Removal,
    RemovalGranted,
    UploadRequest,
)
from ciruela.model.values import dataclass
from ciruela.model.versions import SigEntry, State, Version
from ciruela.model.vpath import VPath

FUTURE_LIMIT_MS = 5 * 60 * 1000
"""Limit on how far a signature may be ahead of this node's clock (threats A13)."""


SIGNATURE_MAX_AGE_MS = 24 * 3600 * 1000
"""Greatest age of the signature of a client's request: older ones are replays, or the clock of that host is wrong (threats 6.5)."""

MOST_NAMED = 10
"""Directories that a refusal names."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Versions that other nodes have at the path of an upload request: committed there, or on their way and getting on.

    ``refused``: the orders that they refused there (:mod:`ciruela.uploads.rejections`).
    """

    committed: frozenset[Version] = frozenset()
    pending: frozenset[Version] = frozenset()
    refused: frozenset[bytes] = frozenset()

    def since(self, removed: Version | None) -> Elsewhere:
        """Without what a signed removal covers of which the others have not heard yet."""
        if removed is None:
            return self
        return replace(
            self,
            committed=frozenset(one for one in self.committed if one > removed),
            pending=frozenset(one for one in self.pending if one > removed),
        )


NOWHERE = Elsewhere()
"""Nobody was asked, nobody answered, or they have nothing."""


@dataclass(frozen=True, slots=True)
class PathState:
    """State of a path at this node, on which an upload request is judged. ``stalled``: what is pending has found no source for a while.

    ``buried``: the version that was deleted there last; ``removed``: the same, if that was a signed wish. ``floor_ms``: what is signed no
    later than this is not taken from peers at a path of which nothing is known. ``elsewhere`` counts for the orders of clients.
    """

    committed: State | None
    pending: State | None
    stalled: bool
    buried: Version | None = None
    floor_ms: int = 0
    removed: Version | None = None
    elsewhere: Elsewhere = NOWHERE


def no_config(vpath: VPath, keys: Iterable[str]) -> Rejection:
    """The refusal of a path below no directory of ``keys``, which it names, so that a typing error shows."""
    known = sorted(keys)
    named = ", ".join(f"/{key}" for key in islice(known, MOST_NAMED))
    more = f" and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
    return Rejection(RejectReason.NO_CONFIG, f"/{vpath.key} is not configured here, but {named or 'nothing'}{more}")


def wrong_level(vpath: VPath, num_levels: int) -> Rejection:
    """The refusal of a path that is too long or too short for its directory."""
    has = f"{vpath} has {vpath.level or 'no'} component{'' if vpath.level == 1 else 's'} below /{vpath.key}"
    are = "is" if num_levels == 1 else "are"
    way = "many" if vpath.level > num_levels else "few"
    return Rejection(RejectReason.CONFIG_LEVEL_MISMATCH, f"{has}, {num_levels or 'none'} {are} needed: too {way}")


def precheck(order: UploadRequest, config: DirConfig) -> Rejection | None:
    """Refuses what can be refused before any signature is looked at (rows 2 and 3)."""
    if order.vpath.level != config.num_levels:  # guard: A17
        return wrong_level(order.vpath, config.num_levels)
    if order.command is Command.REPLACE and config.append_only and order.origin is Origin.CLIENT:  # guard: I9
        return Rejection(RejectReason.DIR_IS_APPEND_ONLY, f"/{config.key} is append-only: nothing is replaced there, upload to a new path")
    return None


def judge(
    order: UploadRequest,
    config: DirConfig,
    standing: PathState,
    verified: tuple[SigEntry, ...],
    now_ms: int,
    max_age_ms: int = SIGNATURE_MAX_AGE_MS,
) -> Decision:
    """The verdict on an order that passed :func:`precheck`, ``verified`` being those of its signatures that a key here made."""
    if not verified:  # guard: A11 I4 F8
        return Rejection(RejectReason.SIGNATURE_MISMATCH)
    # guard: A13 F10, -> tuple((entry for entry in verified if True))
    timely = tuple(entry for entry in verified if entry.timestamp_ms <= now_ms + FUTURE_LIMIT_MS)
    if not timely:  # guard: A13 F10
        return Rejection(RejectReason.TIMESTAMP_IN_FUTURE, f"signed for {verified[0].timestamp_ms} ms, the clock here says {now_ms} ms")
    signed = State(order.image, tuple(sorted(timely)))
    # Signatures from before a removal are no claim to the path any more.
    wish = signed.since(standing.removed)  # guard: K2.1, -> signed
    standing = replace(standing, elsewhere=standing.elsewhere.since(standing.removed))
    same = _same(order, wish, standing)
    # A peer only adds signatures. A client would be told "done" of an image that is about to lose its path.
    if same is not None and (order.origin is Origin.PEER or not _behind(order, config, standing)):
        return same
    if standing.buried is not None and signed.version <= standing.buried:  # guard: A12 F9 I10
        return Rejection(RejectReason.STALE_TIMESTAMP, f"what was deleted here was signed {_later(standing.buried, signed.version)}")
    if order.origin is Origin.PEER:
        return _by_claim(wish, config, standing) if config.append_only else _by_version(wish, standing)
    if wish.version.timestamp_ms < now_ms - max_age_ms:  # guard: A12 F9 I10
        seen = f"signed for {wish.version.timestamp_ms} ms, the clock here says {now_ms} ms"
        return Rejection(RejectReason.STALE_TIMESTAMP, f"{seen}, at most {max_age_ms // 1000} s may lie between")
    refused = _against_pending(order, wish, standing) or _against_committed(order, wish, config, standing, now_ms)
    return refused or same or Accepted(Progress.NEW, wish)


def _same(order: UploadRequest, wish: State, standing: PathState) -> Accepted | None:
    """The verdict where this node has the very image, or is getting it: its signatures are added."""
    if standing.pending is not None:
        return Accepted(Progress.IN_PROGRESS, standing.pending.merged(wish.signatures)) if standing.pending.image == order.image else None
    if standing.committed is None or standing.committed.image != order.image:
        return None
    return Accepted(Progress.ALREADY_DONE, standing.committed.merged(wish.signatures))


def _first_stays(config: DirConfig) -> bool:
    """Tells whether of two images at a path the first one stays: reconciliation finds out which that is. With freeze both stay."""
    return config.append_only and config.on_append_conflict is not OnConflict.FREEZE


def _behind(order: UploadRequest, config: DirConfig, standing: PathState) -> bool:
    """Tells whether this node has the image of ``order`` and others have something else that may be about to take its place."""
    others = [one for one in standing.elsewhere.committed if one.image != order.image]
    if config.append_only:
        return bool(others) and _first_stays(config)  # guard: K2.1 K2.3, -> False
    here = standing.pending or standing.committed
    return here is not None and max((*standing.elsewhere.committed, here.version)).image != order.image


def _by_version(wish: State, standing: PathState) -> Decision:
    """A peer's order where directories may be replaced: the greater version wins."""
    for state in (standing.pending, standing.committed):
        # guard: A14 A51 A53 I10; A14, -> state is not None and wish.version.timestamp_ms <= state.version.timestamp_ms
        if state is not None and wish.version <= state.version:
            return Rejection(RejectReason.STALE_TIMESTAMP, f"what is here was signed {_later(state.version, wish.version)}")
    return _above_floor(wish, standing) or Accepted(Progress.NEW, wish)


def _by_claim(wish: State, config: DirConfig, standing: PathState) -> Decision:
    """A peer's order in an append-only directory: the smaller claim wins, but not over what no source is left of."""
    known = [state for state in (standing.pending, standing.committed) if state is not None and state.image != wish.image]
    if known and config.on_append_conflict is OnConflict.FREEZE:  # guard: A51 F46
        return Rejection(RejectReason.CONFLICT, "two images were appended to one path, each node keeps its own")
    claim = wish.claim(standing.removed)
    for state in known:
        # guard: A51, -> claim < state.claim(standing.removed)
        # guard: K2.1 I2, -> standing.stalled and state is standing.pending or wish.version > state.version
        if (standing.stalled and state is standing.pending) or claim < state.claim(standing.removed):
            continue
        return Rejection(RejectReason.CONFLICT, f"{state.image.hex()[:12]} was appended first, and stays")
    # guard: K2.1 I10
    if known and standing.buried is None and claim.timestamp_ms <= standing.floor_ms:  # it may be what was removed there
        return Rejection(RejectReason.CONFLICT, "it was signed before what was deleted and forgotten here")
    return _above_floor(wish, standing) or Accepted(Progress.NEW, wish, conflict=bool(known))  # guard: A51 F46, bool(known) -> False


def _above_floor(wish: State, standing: PathState) -> Rejection | None:
    known = standing.pending or standing.committed or standing.buried
    if known is None and wish.version.timestamp_ms <= standing.floor_ms:  # guard: A54 F50 I10
        return Rejection(RejectReason.STALE_TIMESTAMP, "it was signed before what was deleted and forgotten here")
    return None


def _against_pending(order: UploadRequest, wish: State, standing: PathState) -> Rejection | None:
    """Refuses ``order`` where another image is on its way, here or elsewhere: that keeps its path.

    The same image keeps nobody off, nor does what others have committed meanwhile: this node only catches up with them.
    """
    elsewhere, mine = standing.elsewhere, standing.pending
    # guard: A52 F47, -> False; A52 F47 I10, without 2; K2.1, without 4
    gives_way = mine is not None and wish.version > mine.version and (standing.stalled or _catches_up(order, mine, elsewhere))
    here = [] if mine is None or gives_way else [(mine.version, "here")]
    newest = max((*elsewhere.committed, *_versions(standing.committed)), default=None)
    there = [
        (version, "on another node")
        for version in sorted(elsewhere.pending)
        if not (mine is not None and gives_way and version.image == mine.image) and (newest is None or version > newest)
    ]
    for version, where in (*here, *there):
        if version.image == order.image:
            continue
        if order.old_image is not None and order.old_image != version.image:  # guard: A52 F47
            return Rejection(
                RejectReason.REPLACE_DOESNT_MATCH, f"{version.image.hex()[:12]} is on its way there {where}, not the image to be replaced"
            )
        return Rejection(RejectReason.ALREADY_UPLOADING, f"{version.image.hex()[:12]} is on its way there {where}")
    return None


def _catches_up(order: UploadRequest, mine: State, elsewhere: Elsewhere) -> bool:
    replaces = order.command is Command.REPLACE
    return any(one.image == mine.image or (replaces and one > mine.version) for one in elsewhere.committed)


def _against_committed(order: UploadRequest, wish: State, config: DirConfig, standing: PathState, now_ms: int) -> Rejection | None:
    """The newest of what is committed here and elsewhere is what an order meets."""
    here = _versions(standing.committed)
    newest = max((*standing.elsewhere.committed, *here), default=None)  # guard: K2.2, -> max(here, default=None)
    if order.command is Command.APPEND:  # guard: A52
        mine = next((one for one in here if one.image != order.image), None)
        other = mine or max((one for one in standing.elsewhere.committed if one.image != order.image), default=None)
        if other is None or (mine is None and other != newest and not _first_stays(config)):
            return None
        return Rejection(RejectReason.ALREADY_EXISTS, f"{other.image.hex()[:12]} is there{'' if mine else ' on another node'}")
    if newest is None:
        if order.old_image is None:  # guard: K2.2, -> True
            return None
        return Rejection(RejectReason.REPLACE_DOESNT_MATCH, "nothing is there that could be replaced")
    if newest.image == order.image:
        newest = max(here, default=newest)  # others have taken this very order already
        return _stale(wish, newest, now_ms) if newest.image != order.image else None
    if order.old_image is not None and order.old_image != newest.image:  # guard: A52 F47
        where = "" if newest in here else " on another node"
        return Rejection(RejectReason.REPLACE_DOESNT_MATCH, f"{newest.image.hex()[:12]} is there{where}, not the image to be replaced")
    return _stale(wish, newest, now_ms)


def _stale(wish: State, there: Version, now_ms: int) -> Rejection | None:
    """The refusal of what is not newer than what is there; it says whose clock is wrong, as far as the clock here can tell."""
    if wish.version > there:  # guard: A52 F47 I10, -> True
        return None
    ahead_ms = there.timestamp_ms - now_ms
    clock = f"{_apart(ahead_ms)} ahead of the clock here: that signer's is fast" if ahead_ms > 0 else "is the clock of the new signer slow?"
    return Rejection(RejectReason.STALE_TIMESTAMP, f"what is there was signed {_later(there, wish.version)}, {clock}")


def _versions(state: State | None) -> tuple[Version, ...]:
    return () if state is None else (state.version,)


def _later(one: Version, other: Version) -> str:
    apart_ms = one.timestamp_ms - other.timestamp_ms
    return f"{_apart(apart_ms)} later" if apart_ms else "at the same time"


def _apart(span_ms: int) -> str:
    """A span of time for people."""
    if span_ms < 1000:
        return f"{span_ms} ms"
    if span_ms < 120_000:
        return f"{span_ms / 1000:.1f} s"
    return f"{span_ms // 60_000} min" if span_ms < 7_200_000 else f"{span_ms // 3_600_000} h"


RemovalVerdict = RemovalGranted | Rejection


def judge_removal(
    removal: Removal,
    standing: PathState,
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
    if not verified:  # guard: A11 F8
        return Rejection(RejectReason.SIGNATURE_MISMATCH)
    if removal.timestamp_ms > now_ms + FUTURE_LIMIT_MS:  # guard: A13 F9
        return Rejection(RejectReason.TIMESTAMP_IN_FUTURE, f"signed for {removal.timestamp_ms} ms, the clock here says {now_ms} ms")
    known = tuple(state for state in (standing.pending, standing.committed) if state is not None)
    if removal.origin is Origin.CLIENT:
        if removal.timestamp_ms < now_ms - max_age_ms:  # guard: A12 F9
            seen = f"signed for {removal.timestamp_ms} ms, the clock here says {now_ms} ms"
            return Rejection(RejectReason.STALE_TIMESTAMP, f"{seen}, at most {max_age_ms // 1000} s may lie between")
        refused = _other_content(removal, standing)
        if refused is not None:
            return refused
    buried = standing.buried is not None and standing.buried >= removal.version
    if any(state.version > removal.version for state in known):  # guard: A12 F9
        if removal.origin is Origin.PEER and append_only:  # guard: K2.1
            return RemovalGranted(fresh=not buried, outlived=True)
        return Rejection(RejectReason.STALE_TIMESTAMP, f"signed for {removal.timestamp_ms} ms, what is there was signed later")
    # guard: K5.5 I9; K5.5 I9, d not -> d known and not
    if protecting is not None and not removal.forced:  # also where it was removed before, and stands there again without a record
        return Rejection(RejectReason.PROTECTED, protecting)
    if buried and not known:
        return RemovalGranted(fresh=False)
    if not known and removal.origin is Origin.PEER and removal.timestamp_ms <= standing.floor_ms:
        return RemovalGranted(fresh=False)
    return RemovalGranted(fresh=True)


def _other_content(removal: Removal, standing: PathState) -> Rejection | None:
    """The refusal where another image is there. What other nodes have counts as well: the removal will hold for them, too."""

    def other(state: State | None) -> bool:
        return state is not None and state.image != removal.image

    if other(standing.pending):
        return Rejection(RejectReason.ALREADY_UPLOADING, "another image is on its way there")
    if other(standing.committed):
        return Rejection(RejectReason.REPLACE_DOESNT_MATCH, "another image is there")
    here = () if standing.committed is None else (standing.committed.version,)
    newest = max((*standing.elsewhere.committed, *here), default=None)
    if newest is not None and newest.image != removal.image:
        return Rejection(RejectReason.REPLACE_DOESNT_MATCH, f"{newest.image.hex()[:12]} is there on another node")
    coming = max(standing.elsewhere.pending, default=None)
    if coming is not None and coming.image != removal.image and (newest is None or coming > newest):
        return Rejection(RejectReason.ALREADY_UPLOADING, f"{coming.image.hex()[:12]} is on its way there on another node")
    return None
