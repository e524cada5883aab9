"""Which keys made signatures: all that are valid, where ``Authority.verified`` gives the newest of each key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ciruela.model.dirconfig import DirConfig
from ciruela.model.ids import ImageId
from ciruela.model.state import MOST_SIGNATURES, SigEntry
from ciruela.model.vpath import VPath
from ciruela.seams import Authority


async def makers(
    authority: Authority, config: DirConfig, vpath: VPath, image: ImageId, entries: Iterable[SigEntry]
) -> Mapping[SigEntry, str]:
    """Those of ``entries``, at most :data:`~ciruela.model.state.MOST_SIGNATURES`, that keys of ``config`` made, with their fingerprints.

    Fails with DiskError when the keys cannot be read.
    """
    found: dict[SigEntry, str] = {}
    rest = sorted(set(entries))[-MOST_SIGNATURES:]
    while rest:
        more = await authority.verified(config, vpath, image, rest)
        found.update(more)
        left = [entry for entry in rest if entry not in more]
        if len(left) == len(rest):
            break
        rest = left
    return dict(sorted(found.items()))
