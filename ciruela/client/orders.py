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
from ciruela.keys.signed import signed_bytes, signed_check_bytes
from ciruela.model.errors import CiruelaError
from ciruela.proto.messages import AppendDir, CheckUpload, ReplaceDir
from ciruela.seams import NowMs


class LocalProblem(CiruelaError):
    """Something about the user's own files: nothing was sent."""


class Conflict(CiruelaError):
    """What is there is not what the user saw, or not one thing: nothing was sent."""


@dataclass(frozen=True, slots=True)
class Check:
    """One signed question: what would become of an upload."""

    request: CheckUpload
    weak: bool


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


async def scan_all(wishes: Sequence[Wish], scan: Callable[[str], Deferred[Scan]]) -> dict[str, Scan]:
    """Index every source once, one after the other. Raises what scanning raises."""
    scans: dict[str, Scan] = {}
    for wish in wishes:
        if wish.source not in scans:
            scans[wish.source] = await scan(wish.source)
    return scans


async def sign_checks(wishes: Sequence[Wish], scans: Mapping[str, Scan], identities: Identities, timestamp_ms: int) -> tuple[Check, ...]:
    """The questions of a dry run, signed as such. Raises what signing raises."""
    checks = []
    for wish in wishes:
        image, path = scans[wish.source].image, str(wish.vpath)
        signatures = tuple(one for _, one in await identities.sign_all(signed_check_bytes(path, image, timestamp_ms)))
        replace = wish.mode is Mode.REPLACE
        checks.append(Check(CheckUpload(path, replace, image, wish.old_image, timestamp_ms, signatures), wish.mode is Mode.APPEND_WEAK))
    return tuple(checks)


async def prepare(wishes: Sequence[Wish], scan: Callable[[str], Deferred[Scan]], identities: Identities, now_ms: NowMs) -> Prepared:
    """Index every source once, one after the other, and sign all wishes for one time.

    Raises what scanning and signing raise.
    """
    scans = await scan_all(wishes, scan)
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
