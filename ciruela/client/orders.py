"""From wishes to signed orders: check the sources, index them, sign with every key, one time for all (protocol sections 3.4 and 6.2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred

from ciruela.client.identities import Identities
from ciruela.client.options.sync import Mode, Wish
from ciruela.client.sync import Upload
from ciruela.disk.scan import Scan
from ciruela.keys.signed import signed_bytes
from ciruela.model.errors import CiruelaError
from ciruela.proto.messages import AppendDir, ReplaceDir
from ciruela.seams import NowMs


class LocalProblem(CiruelaError):
    """Something about the user's own files: nothing was sent."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run needs: the uploads, in the order of the command line, and the scan of each source."""

    uploads: tuple[Upload, ...]
    scans: Mapping[str, Scan]


def check_directory(name: str) -> None:
    """Raise LocalProblem unless ``name`` is a directory that can be listed."""
    try:
        with os.scandir(name):
            pass
    except NotADirectoryError:
        raise LocalProblem(f"{name} is not a directory; only whole directories can be uploaded") from None
    except (OSError, ValueError) as error:
        raise LocalProblem(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def kind_of(name: str) -> int:
    """The mode of what stands at ``name``; links are followed. Raises LocalProblem when nothing does, or nobody may know."""
    try:
        return os.stat(name).st_mode
    except (OSError, ValueError) as error:
        raise LocalProblem(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def check_sources(wishes: Sequence[Wish]) -> None:
    """Raise LocalProblem for the first source that is no directory: better now than after a passphrase was typed."""
    for wish in wishes:
        check_directory(wish.source)


async def prepare(wishes: Sequence[Wish], scan: Callable[[str], Deferred[Scan]], identities: Identities, now_ms: NowMs) -> Prepared:
    """Index every source once, one after the other, and sign all wishes for one time.

    Raises what scanning and signing raise.
    """
    scans: dict[str, Scan] = {}
    for wish in wishes:
        if wish.source not in scans:
            scans[wish.source] = await scan(wish.source)
    timestamp_ms = now_ms()
    uploads = []
    for wish in wishes:
        found = scans[wish.source]
        path = str(wish.vpath)
        signatures = tuple(signature for _, signature in await identities.sign_all(signed_bytes(path, found.image, timestamp_ms)))
        request: AppendDir | ReplaceDir
        if wish.mode is Mode.REPLACE:
            request = ReplaceDir(path, found.image, wish.old_image, timestamp_ms, signatures)
        else:
            request = AppendDir(path, found.image, timestamp_ms, signatures)
        uploads.append(Upload(request, wish.mode is Mode.APPEND_WEAK, found.bytes))
    return Prepared(tuple(uploads), scans)
