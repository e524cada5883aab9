"""Signatures of clients' orders that were refused: they count for that order alone, in no other form (threats A11).

A signature covers path, image and time, not the command. So whoever saw an append that was refused could send the same bytes as a replace,
or drop the old image that a replace named, and have what its signer never asked for.

Kept in memory: after a restart the other nodes that refused it still remember, and are asked (:mod:`ciruela.uploads.neighbours`). They tell
digests, no signatures.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection, Iterable

from ciruela.model.upload import RejectReason, UploadRequest
from ciruela.model.versions import SigEntry
from ciruela.model.vpath import VPath
from ciruela.proto.messages import MOST_REFUSED, REFUSED_BYTES

FOR_CONTENT = frozenset(
    {RejectReason.ALREADY_EXISTS, RejectReason.ALREADY_UPLOADING, RejectReason.REPLACE_DOESNT_MATCH, RejectReason.CONFLICT}
)
"""Refusals for what is there, after which another form of the order could be granted."""

MOST = 10_000
"""Signatures that are remembered, some 3 MB; the oldest of more are forgotten."""

_HALF = REFUSED_BYTES // 2
"""Half of what is told of one names the signature, half the form."""


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(parts), digest_size=_HALF).digest()


def digests(order: UploadRequest, entries: Iterable[SigEntry]) -> list[bytes]:
    """One digest for each signature of ``order`` in ``entries``: first of the signature, then of the command and the old image with it."""
    form = order.command.value.encode() + (order.old_image or b"")
    return [_digest(one.signature) + _digest(one.signature, form) for one in entries]


class RefusedOrders:
    """The refused orders of clients, each for as long as its signature could be used."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, tuple[VPath, bytes, int]] = OrderedDict()
        self._at: dict[VPath, OrderedDict[bytes, None]] = {}

    def note(self, order: UploadRequest, entries: Iterable[SigEntry], max_age_ms: int) -> None:
        """``order`` was refused; ``entries`` are its signatures, each made by a key that may upload."""
        for entry in entries:
            [digest] = digests(order, [entry])
            name = digest[:_HALF]
            if name not in self._kept:
                self._kept[name] = (order.vpath, digest, entry.timestamp_ms + max_age_ms)
                self._at.setdefault(order.vpath, OrderedDict())[name] = None
        while len(self._kept) > MOST:
            self._drop(next(iter(self._kept)))

    def _drop(self, name: bytes) -> None:
        vpath, _, _ = self._kept.pop(name)
        names = self._at[vpath]
        del names[name]
        if not names:
            del self._at[vpath]

    def at(self, vpath: VPath, now_ms: int) -> tuple[bytes, ...]:
        """The digests of what was refused at ``vpath``, the last ones."""
        names = list(self._at.get(vpath, ()))
        for name in names:
            if self._kept[name][2] < now_ms:
                self._drop(name)
        return tuple(self._kept[name][1] for name in names[-MOST_REFUSED:] if name in self._kept)


def in_other_form(order: UploadRequest, entries: Iterable[SigEntry], refused: Collection[bytes]) -> bool:
    """Tells whether a signature of ``order`` is one of those in ``refused`` (digests), there with another command or old image."""
    before = {digest[:_HALF]: digest for digest in refused}
    return any(before.get(digest[:_HALF], digest) != digest for digest in digests(order, entries))
