"""The keys that may upload, looked up in the configuration directory for each question (protocol section 5.2).

Pages are told which key made which signature: tried once, remembered while the key files say the same (threats A15).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field
from datetime import UTC, datetime

from twisted.internet.defer import Deferred, DeferredLock, fail
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from ciruela.daemon.rules import loose, private_group
from ciruela.interfaces import InThread, NowMs
from ciruela.keys.authorized import parse_authorized
from ciruela.keys.public import PublicKey, verify
from ciruela.keys.signed import Statement, signed_bytes
from ciruela.model.config import DirConfig
from ciruela.model.errors import DiskError
from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass
from ciruela.model.versions import SigEntry
from ciruela.model.vpath import VPath

MOST_VERIFIED = 16
"""Signatures of one request that are looked at (threats A15)."""

MAX_FILE_BYTES = 256 * 1024
"""Longest key file: some two thousand keys."""

KEPT_MS = 1000
"""A key file that is the same by its status is read again only after so long: time stamps of some file systems are that coarse."""

Signature = tuple[str, ImageId, SigEntry]
"""One signature, with the virtual path and the image that it was made for."""

_MASTER = "master.key"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class _Parsed:
    """One key file as it was read at ``read_ms``, when its status was ``stamp``."""

    stamp: tuple[int, ...]
    read_ms: int
    keys: tuple[PublicKey, ...]
    problems: tuple[str, ...]


Kept = dict[str, _Parsed]
"""Key files by path. Threads share it: an entry is only ever replaced as a whole."""


@dataclass(frozen=True, slots=True)
class _Read:
    """The keys found, and what is wrong with the files."""

    keys: tuple[PublicKey, ...]
    problems: tuple[str, ...]


class KeyFiles:
    """``interfaces.Authority`` over ``master.key`` and ``keys/NAME.key``.

    ``config_dir`` may be a symlink; ``keys`` and the files may not be one. What is wrong with a file is logged when it is first seen, and
    never hides another line or file.
    """

    _log = Logger()

    def __init__(self, config_dir: str, in_thread: InThread, now_ms: NowMs) -> None:
        self._config_dir = config_dir
        self._in_thread = in_thread
        self._now_ms = now_ms
        self._told: dict[str, frozenset[str]] = {}
        self._kept: Kept = {}

    def verified(
        self, config: DirConfig, vpath: VPath, image: ImageId, entries: Sequence[SigEntry], statement: Statement = signed_bytes
    ) -> Deferred[Mapping[SigEntry, str]]:
        """Those of the first 16 ``entries`` that a key of ``config`` made over ``statement``, and the keys: the newest of each.

        Fails with DiskError when the directory of keys cannot be opened although it is there.
        """
        first = tuple(dict.fromkeys(entries))[:MOST_VERIFIED]  # guard: A15 F11, [:MOST_VERIFIED] ->
        answer = self._in_thread(self._judge, config.upload_keys, str(vpath), image, first, statement)
        return answer.addCallback(self._tell, config.key)

    def _tell(self, answer: tuple[Mapping[SigEntry, str], tuple[str, ...]], key: str) -> Mapping[SigEntry, str]:
        valid, problems = answer
        for problem in problems:
            if problem not in self._told.get(key, ()):
                self._log.warn("Key file: {problem}", problem=problem)
        self._told[key] = frozenset(problems)
        return valid

    def _judge(
        self, names: Sequence[str], path: str, image: ImageId, entries: Sequence[SigEntry], statement: Statement
    ) -> tuple[Mapping[SigEntry, str], tuple[str, ...]]:
        """In a thread: values in, values out."""
        read = _read(self._config_dir, names, self._now_ms(), self._kept)
        waiting = list(read.keys)
        valid: dict[SigEntry, str] = {}
        for entry in sorted(entries, reverse=True):
            try:
                signed = statement(path, image, entry.timestamp_ms)
            except ValueError:  # guard: A13 F10
                continue
            maker = next((key for key in waiting if verify(key, signed, entry.signature)), None)
            if maker is not None:
                waiting.remove(maker)  # guard: A15 F11
                valid[entry] = maker.fingerprint()
        return dict(sorted(valid.items())), read.problems

    def made(self, config: DirConfig | None, vpath: VPath, image: ImageId, entries: Sequence[SigEntry]) -> frozenset[SigEntry]:
        """Those of ``entries`` that a key of ``config`` made; none without a config, or when the keys cannot be read.

        Call it in a thread.
        """
        if config is None:
            return frozenset()
        try:
            keys = _read(self._config_dir, config.upload_keys, self._now_ms(), self._kept).keys
        except DiskError:
            return frozenset()
        made = set()
        for entry in entries:
            with suppress(ValueError):  # a time for which nothing can be signed
                signed = signed_bytes(str(vpath), image, entry.timestamp_ms)
                if any(verify(key, signed, entry.signature) for key in keys):
                    made.add(entry)
        return frozenset(made)

    def makers(self, names: Sequence[str], asked: Sequence[Signature]) -> Deferred[tuple[tuple[str, ...], Mapping[Signature, str]]]:
        """The fingerprints of the keys of ``master.key`` and the files ``names``, and which of them made each signature of ``asked``.

        A signature that none of them made is left out. For pages: nothing is allowed by it. Fails as :meth:`verified`.
        """
        return self._in_thread(self._makers, tuple(names), tuple(asked))

    def _makers(self, names: Sequence[str], asked: Sequence[Signature]) -> tuple[tuple[str, ...], Mapping[Signature, str]]:
        """In a thread: values in, values out."""
        keys = _read(self._config_dir, names, self._now_ms(), self._kept).keys
        made: dict[Signature, str] = {}
        for one in asked:
            path, image, entry = one
            with suppress(ValueError):  # a time for which nothing can be signed
                signed = signed_bytes(path, image, entry.timestamp_ms)
                maker = next((key for key in keys if verify(key, signed, entry.signature)), None)
                if maker is not None:
                    made[one] = maker.fingerprint()
        return tuple(sorted(key.fingerprint() for key in keys)), made


def key_complaints(config_dir: str, configs: Iterable[DirConfig], now_ms: int) -> list[str]:
    """Lists the mistakes in the key files that ``configs`` name, a line each; keys that are good count all the same.

    Files that are not there, and symlinks, are left to ``config.load_config``, which can say where they are named.
    """
    named = {name: os.path.join(config_dir, "keys", f"{name}.key") for config in configs for name in config.upload_keys}
    names = sorted(name for name, file in named.items() if os.path.lexists(file) and not os.path.islink(file))
    try:
        return list(_read(config_dir, names, now_ms, {}).problems)
    except DiskError as error:
        return [str(error)]


def _read(config_dir: str, names: Sequence[str], now_ms: int, kept: Kept) -> _Read:
    now_utc = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y%m%d%H%M%S")
    keys: dict[PublicKey, None] = {}
    problems: list[str] = []

    def take(folder: int, name: str, shown: str, *, optional: bool = False) -> None:
        try:
            parsed = _parsed(folder, name, shown, trusted, now_ms, now_utc, kept.get(shown))
        except OSError as error:
            kept.pop(shown, None)
            if not optional or error.errno != errno.ENOENT:
                problems.append(f"{shown}: {_reason(error)}")
            return
        kept[shown] = parsed
        keys.update(dict.fromkeys(parsed.keys))
        problems.extend(parsed.problems)

    with _opened(config_dir, config_dir, _DIRECTORY, None) as top:
        trusted = frozenset({0, os.geteuid(), os.fstat(top).st_uid})
        take(top, _MASTER, os.path.join(config_dir, _MASTER), optional=True)
        if names:
            where = os.path.join(config_dir, "keys")
            if not os.path.lexists(where):
                problems.append(f"{where}: there is no such directory")
                return _Read(tuple(keys), tuple(problems))
            with _opened("keys", where, _DIRECTORY | os.O_NOFOLLOW, top) as folder:  # guard: A48, _DIRECTORY | os.O_NOFOLLOW -> _DIRECTORY
                for name in names:
                    take(folder, f"{name}.key", os.path.join(where, f"{name}.key"))
    return _Read(tuple(keys), tuple(problems))


@contextmanager
def _opened(name: str, shown: str, flags: int, folder: int | None) -> Iterator[int]:
    """A descriptor of a directory. Raises DiskError when there is none."""
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        raise DiskError(f"open {shown}: {error.strerror}") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _parsed(folder: int, name: str, shown: str, trusted: frozenset[int], now_ms: int, now_utc: str, before: _Parsed | None) -> _Parsed:
    """A key file that nobody but ``trusted`` users could have written; ``before`` if it is still that. Raises OSError."""
    if "/" in name:  # guard: A48
        raise OSError(errno.EINVAL, "the name of a key file has no slash")
    # guard: A48, flags | os.O_NOFOLLOW -> flags
    with open(name, "rb", opener=lambda file, flags: os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):  # guard: A48
            raise OSError(errno.EINVAL, "it is not a regular file")
        reason = loose(status, trusted, private_group)
        if reason is not None:  # guard: A48 F60
            raise OSError(errno.EPERM, reason)
        stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
        if before is not None and before.stamp == stamp and 0 <= now_ms - before.read_ms < KEPT_MS:  # guard: S14, without 2; S14, without 3
            return before
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:  # guard: A48
        raise OSError(errno.EFBIG, f"it is larger than {MAX_FILE_BYTES // 1024} KiB")
    found, wrong = parse_authorized(data.decode("utf-8", "replace"), shown, now_utc)
    return _Parsed(stamp, now_ms, tuple(found), tuple(wrong))


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is a symlink, which is not followed"
    return error.strerror or str(error)


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
class _Signers:
    """Cached signers of one directory. ``made``: the fingerprint that made a signature, None where no key of today did."""

    turn: DeferredLock = field(default_factory=DeferredLock)
    read_s: float | None = None
    keys: tuple[str, ...] = ()
    made: dict[Signature, str | None] = field(default_factory=dict)


class Signers:
    """Asks ``makers`` (``KeyFiles.makers``), one question at a time for each directory."""

    def __init__(self, makers: Makers, clock: IReactorTime) -> None:
        self._makers = makers
        self._clock = clock
        self._known: dict[str, _Signers] = {}

    def of(self, config: DirConfig, asked: Sequence[Signature]) -> Deferred[tuple[tuple[str, ...], Mapping[Signature, str | None]]]:
        """The fingerprints that may upload to ``config``, and who made each of ``asked``; what is not known yet is left out.

        Fails with DiskError when the keys cannot be read, or when too many wait for that.
        """
        known = self._known.setdefault(config.key, _Signers())
        if len(known.turn.waiting) >= MOST_WAITING:
            return fail(DiskError("the key files do not answer"))
        return known.turn.run(lambda: Deferred.fromCoroutine(self._of(known, config, asked)))

    async def _of(
        self, known: _Signers, config: DirConfig, asked: Sequence[Signature]
    ) -> tuple[tuple[str, ...], Mapping[Signature, str | None]]:
        for _ in range(2):  # once more when the keys are others than before
            missing = [one for one in asked if one not in known.made][:MOST_TRIED]  # guard: A15, [:MOST_TRIED] ->
            now_s = self._clock.seconds()
            if not missing and known.read_s is not None and now_s - known.read_s < FRESH_S:  # guard: A15
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
