"""Comparison of two lists of a base dir: the entries of a peer's that this node wants. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ciruela.model.upload import Command, Origin, Removal, UploadRequest
from ciruela.model.versions import State, Tombstones, Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import RemovedEntry


def wanted(
    base: VPath, ours: Mapping[str, State], theirs: Mapping[str, State], burials: Tombstones, append_only: bool = False
) -> list[UploadRequest]:
    """Orders for the entries that are newer there by the one order of versions, the newest first.

    The same image with a later signature is wanted too: it costs no download and makes the hashes agree. Entries with a bad name or without
    signatures are left out: a peer's list is not trusted to be well made (protocol section 12, S7). So is what was deleted here.
    In an ``append_only`` directory an older claim of the same image is wanted as well, and any other image: the smaller claim wins, and it
    is the verdict on the other one that tells of the conflict.
    """
    orders = []
    for entry, state in theirs.items():
        mine, removed = ours.get(entry), removal_in(burials, entry)
        if not state.signatures or (mine is not None and not _newer(state, mine, removed, append_only)):
            continue
        if mine is None and _deleted(entry, state, burials):
            continue
        try:
            vpath = base.image_at(entry)
        except ValueError:
            continue
        command = Command.APPEND if mine is None else Command.REPLACE
        orders.append((state.version, UploadRequest(command, vpath, state.image, None, state.signatures, Origin.PEER)))
    orders.sort(key=lambda one: one[0], reverse=True)
    return [order for _, order in orders]


def removal_in(burials: Tombstones, entry: str) -> Version | None:
    """The version that a signed wish removed last from ``entry``."""
    tombstone = burials.tombstones.get(entry)
    return tombstone.version if tombstone is not None and tombstone.signatures else None


def _newer(state: State, mine: State, removed: Version | None, append_only: bool) -> bool:
    """Tells whether ``state`` is to be judged although this node has ``mine``."""
    if not append_only:
        return state.version > mine.version
    if removed is not None and state.version <= removed:
        return False
    return state.image != mine.image or state.version > mine.version or state.claim(removed) < mine.claim(removed)


def better(one: UploadRequest, other: UploadRequest, removed: Version | None, append_only: bool) -> UploadRequest:
    """Of two peers' orders for one path the one that wins; of one image with the signatures of both."""
    first, second = State(one.image, one.signatures), State(other.image, other.signatures)
    if one.image == other.image:
        return replace(one, signatures=first.merged(second.signatures).signatures)
    if append_only:
        return one if first.claim(removed) < second.claim(removed) else other
    return one if first.version > second.version else other


def removals_in(
    base: VPath, ours: Mapping[str, State], theirs: Mapping[str, RemovedEntry], burials: Tombstones, append_only: bool = False
) -> list[Removal]:
    """Gives the peer's signed removals that concern what is here, or that are not known here. The oldest first.

    In an ``append_only`` directory one that something newer outlived is to be known as well.
    """
    found = []
    for entry, removed in theirs.items():
        version = Version(removed.timestamp_ms, removed.image)
        mine, tombstone = ours.get(entry), burials.tombstones.get(entry)
        outlived = mine is not None and mine.version > version
        if outlived and not append_only:
            continue
        if tombstone is not None and tombstone.version >= version and (mine is None or outlived):
            continue
        if (mine is None or outlived) and tombstone is None and version.timestamp_ms <= burials.floor_ms:
            continue
        try:
            vpath = base.image_at(entry)
        except ValueError:
            continue
        found.append(Removal(vpath, removed.image, removed.timestamp_ms, removed.signatures, Origin.PEER, forced=removed.forced))
    return sorted(found, key=lambda one: one.version)


def _deleted(entry: str, state: State, burials: Tombstones) -> bool:
    tombstone = burials.tombstones.get(entry)
    if tombstone is not None:
        return state.version <= tombstone.version
    return state.version.timestamp_ms <= burials.floor_ms
