"""Which key made which signature, for pages: tried once, remembered while the key files say the same (threats A15)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from twisted.internet.defer import Deferred, DeferredLock, fail
from twisted.internet.interfaces import IReactorTime

from ciruela.daemon.authority import Signature
from ciruela.model.dirconfig import DirConfig
from ciruela.model.errors import DiskError

FRESH_S = 5.0
"""The key files of one directory are read for a page at most so often: whoever asks all the time costs no more than that."""

MOST_TRIED = 512
"""Signatures that one page tries: 50 ms of a thread for each key. The next one goes on where it ended."""

MOST_REMEMBERED = 50_000
"""Signatures of one directory of which the maker is remembered: some 10 MiB."""

MOST_WAITING = 64
"""Pages that wait for the keys of one directory; with more of them, the file system hangs."""

Makers = Callable[[Sequence[str], Sequence[Signature]], Deferred[tuple[tuple[str, ...], Mapping[Signature, str]]]]


@dataclass(slots=True)
class _Known:
    """What is known of one directory. ``made``: the fingerprint that made a signature, None where no key of today did."""

    turn: DeferredLock = field(default_factory=DeferredLock)
    read_s: float | None = None
    keys: tuple[str, ...] = ()
    made: dict[Signature, str | None] = field(default_factory=dict)


class Signers:
    """Asks ``makers`` (``KeyFiles.makers``), one question at a time for each directory."""

    def __init__(self, makers: Makers, clock: IReactorTime) -> None:
        self._makers = makers
        self._clock = clock
        self._known: dict[str, _Known] = {}

    def of(self, config: DirConfig, asked: Sequence[Signature]) -> Deferred[tuple[tuple[str, ...], Mapping[Signature, str | None]]]:
        """The fingerprints that may upload to ``config``, and who made each of ``asked``; what is not known yet is left out.

        Fails with DiskError when the keys cannot be read, or when too many wait for that.
        """
        known = self._known.setdefault(config.key, _Known())
        if len(known.turn.waiting) >= MOST_WAITING:
            return fail(DiskError("the key files do not answer"))
        return known.turn.run(lambda: Deferred.fromCoroutine(self._of(known, config, asked)))

    async def _of(
        self, known: _Known, config: DirConfig, asked: Sequence[Signature]
    ) -> tuple[tuple[str, ...], Mapping[Signature, str | None]]:
        for _ in range(2):  # once more when the keys are others than before
            missing = [one for one in asked if one not in known.made][:MOST_TRIED]
            now_s = self._clock.seconds()
            if not missing and known.read_s is not None and now_s - known.read_s < FRESH_S:
                break
            keys, made = await self._makers(config.upload_keys, missing)
            known.read_s = now_s
            changed = keys != known.keys
            if changed:
                known.keys = keys
                known.made.clear()
            known.made.update((one, made.get(one)) for one in missing)
            while len(known.made) > MOST_REMEMBERED:
                del known.made[next(iter(known.made))]
            if not changed:
                break
        return known.keys, {one: known.made[one] for one in asked if one in known.made}
