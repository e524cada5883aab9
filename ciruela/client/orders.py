"""From wishes to signed orders: check the sources, sign with every key, one time for all (protocol sections 3.4 and 6.2).

The hash to index with is BLAKE3, unless a server of the cluster is the reference's, which knows BLAKE2b only.

A server that confirms ``ciruela.v2`` is one of ours and takes every kind. Who says nothing decides nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import field

from twisted.internet.defer import DeferredLock

from ciruela.client.identities import Identities
from ciruela.client.options.sync import Mode, Wish
from ciruela.client.uploadrun import Upload
from ciruela.disk.scan import Scan
from ciruela.index.digest import HashKind
from ciruela.keys.signed import signed_bytes, signed_check_bytes
from ciruela.model.errors import CiruelaError
from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass
from ciruela.proto.messages import AppendDir, CheckUpload, ReplaceDir

OURS = HashKind.BLAKE3
EVERYBODYS = HashKind.BLAKE2B


def kind_for(ours: Iterable[bool]) -> HashKind:
    """The best kind that all servers of one cluster understand that answered; ``ours`` tells of each whether it is of ``ciruela.v2``."""
    return OURS if all(ours) else EVERYBODYS  # guard: K6.1 K6.2, -> OURS


class LocalProblem(CiruelaError):
    """Something about the user's own files: nothing was sent."""


class Conflict(CiruelaError):
    """Conflict at the path: not the content that the user saw, or not the same everywhere; nothing was sent."""


@dataclass(frozen=True, slots=True)
class UploadCheck:
    """One signed question: what would become of an upload."""

    request: CheckUpload
    weak: bool


@dataclass(frozen=True, slots=True)
class Intent:
    """An image for a path, not signed yet. ``total_bytes`` of all its files."""

    mode: Mode
    path: str
    image: ImageId
    old_image: ImageId | None
    total_bytes: int
    timestamp_ms: int

    @classmethod
    def of(cls, wish: Wish, found: Scan, timestamp_ms: int) -> Intent:
        """Makes the intent of a wish whose source was indexed."""
        return cls(wish.mode, str(wish.vpath), found.image, wish.old_image, found.bytes, timestamp_ms)

    @property
    def weak(self) -> bool:
        """Tells whether other content is as good."""
        return self.mode is Mode.APPEND_WEAK


@dataclass(eq=False, slots=True)
class Signer:
    """Signs what one command asks for, each text once: several clusters get the same orders."""

    identities: Identities
    _made: dict[bytes, tuple[bytes, ...]] = field(init=False, default_factory=dict)
    _turn: DeferredLock = field(init=False, default_factory=DeferredLock)

    async def check(self, intent: Intent) -> UploadCheck:
        """The question of a dry run, signed as such. Raises what signing raises."""
        signatures = await self._sign(signed_check_bytes(intent.path, intent.image, intent.timestamp_ms))
        replace = intent.mode is Mode.REPLACE
        return UploadCheck(CheckUpload(intent.path, replace, intent.image, intent.old_image, intent.timestamp_ms, signatures), intent.weak)

    async def upload(self, intent: Intent) -> Upload:
        """The order. Raises what signing raises."""
        signatures = await self._sign(signed_bytes(intent.path, intent.image, intent.timestamp_ms))
        request: AppendDir | ReplaceDir
        if intent.mode is Mode.REPLACE:
            request = ReplaceDir(intent.path, intent.image, intent.old_image, intent.timestamp_ms, signatures)
        else:
            request = AppendDir(intent.path, intent.image, intent.timestamp_ms, signatures)
        return Upload(request, intent.weak, intent.total_bytes)

    async def _sign(self, text: bytes) -> tuple[bytes, ...]:
        await self._turn.acquire()
        try:
            if text not in self._made:
                self._made[text] = tuple(signature for _, signature in await self.identities.sign_all(text))
            return self._made[text]
        finally:
            self._turn.release()


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


def check_content(wish: Wish, found: Scan, allow_empty: bool) -> None:
    """Raise LocalProblem where a directory without files would take the place of what is there: a build that failed leaves such a one."""
    if wish.mode is Mode.REPLACE and not allow_empty and not found.files and not found.symlinks:  # guard: W1
        left_out = f" ({found.excluded:,} left out by patterns)" if found.excluded else ""
        raise LocalProblem(
            f"{wish.source} has no files{left_out} and would empty {wish.vpath}; nothing was sent "
            "(if that is meant: ciruela sync --allow-empty)"
        )
