"""From wishes to signed orders: check the sources, index them, sign with every key, one time for all (protocol sections 3.4 and 6.2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from twisted.internet.defer import Deferred

from ciruela.client.options import Mode, Wish
from ciruela.client.sync import Upload
from ciruela.index.tree import Index
from ciruela.keys.signed import signed_bytes
from ciruela.model.errors import CiruelaError
from ciruela.proto.messages import AppendDir, ReplaceDir
from ciruela.seams import NowMs


class LocalProblem(CiruelaError):
    """Something about the user's own files: nothing was sent."""


class Scanned(Protocol):
    """What indexing a directory gives."""

    @property
    def index(self) -> Index:
        """The parsed index."""

    @property
    def data(self) -> bytes:
        """Its bytes."""

    @property
    def warnings(self) -> Sequence[str]:
        """What was left out, and why."""


class Signers(Protocol):
    """All keys of the user."""

    def sign_all(self, signed: bytes) -> Deferred[tuple[bytes, ...]]:
        """One signature of 64 bytes per key."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run needs: the uploads, in the order of the command line, and the scan of each source."""

    uploads: tuple[Upload, ...]
    scans: Mapping[str, Scanned]


def check_sources(wishes: Sequence[Wish]) -> None:
    """Raise LocalProblem unless every source is a directory that can be listed. Tells this before a passphrase is asked for."""
    for wish in wishes:
        try:
            with os.scandir(wish.source):
                pass
        except NotADirectoryError:
            raise LocalProblem(f"{wish.source} is not a directory; only whole directories can be uploaded") from None
        except OSError as error:
            raise LocalProblem(f"{wish.source}: {error.strerror or error}") from None


async def prepare(wishes: Sequence[Wish], scan: Callable[[str], Deferred[Scanned]], signers: Signers, now_ms: NowMs) -> Prepared:
    """Index every source once, one after the other, and sign all wishes for one time.

    Raises what scanning and signing raise.
    """
    scans: dict[str, Scanned] = {}
    for wish in wishes:
        if wish.source not in scans:
            scans[wish.source] = await scan(wish.source)
    timestamp_ms = now_ms()
    uploads = []
    for wish in wishes:
        index = scans[wish.source].index
        path = str(wish.vpath)
        signatures = tuple(await signers.sign_all(signed_bytes(path, index.image, timestamp_ms)))
        request: AppendDir | ReplaceDir
        if wish.mode is Mode.REPLACE:
            request = ReplaceDir(path, index.image, wish.old_image, timestamp_ms, signatures)
        else:
            request = AppendDir(path, index.image, timestamp_ms, signatures)
        uploads.append(Upload(request, wish.mode is Mode.APPEND_WEAK, index.total_bytes))
    return Prepared(tuple(uploads), scans)
