"""Indexing a directory of the user, and showing that it goes on.

The patterns of what is left out of a directory: ``.ciruelaignore`` in it, files that the user named, the command line; in this order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field

from twisted.internet.defer import Deferred, DeferredLock

from ciruela.client.context import AppContext
from ciruela.client.options.common import NOTHING, Excluding
from ciruela.client.orders import LocalProblem
from ciruela.client.progress import Display
from ciruela.client.text import count, short_id, size
from ciruela.disk.excludes import Excludes
from ciruela.disk.hashcache import HashCache, cache_home
from ciruela.disk.safedir import SafeDir
from ciruela.disk.scan import Scan, ScanProgress, scan
from ciruela.index.digest import HashKind
from ciruela.interfaces import InThread
from ciruela.model.ids import ImageId
from ciruela.model.values import dataclass

IGNORE_FILE = ".ciruelaignore"

MAX_BYTES = 1024 * 1024
"""Longest file of patterns; more is no file that somebody wrote for this."""


def excludes_for(source: str, wanted: Excluding) -> Excludes | None:
    """Reads the patterns of what is left out of the directory ``source``; None for nothing. Blocking: call it in a thread.

    Raises LocalProblem for a file that cannot be read and ConfigError for a line that is no pattern.
    """
    lines: list[tuple[str, str]] = []
    if wanted.ignore_file:
        shown = f"{source.rstrip('/')}/{IGNORE_FILE}"
        lines += _lines(_of_directory(source, shown), shown)
    for name in wanted.files:
        lines += _lines(_named(name), name)
    lines += [(pattern, "--exclude") for pattern in wanted.patterns]
    return (Excludes(lines) or None) if lines else None


def _of_directory(source: str, shown: str) -> bytes:
    """The ignore file of a directory, empty when there is none. It is part of the directory, so a symlink is not followed."""
    try:
        with SafeDir.at(source) as top:
            if top.stat(IGNORE_FILE) is None:
                return b""
            with top.open_read(IGNORE_FILE) as file:
                return file.read_at(MAX_BYTES + 1, 0)
    except OSError as error:
        raise LocalProblem(f"{shown} cannot be read: {error.strerror or error}; mend it, or use --no-ignore-file") from None


def _named(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise LocalProblem(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _lines(data: bytes, name: str) -> list[tuple[str, str]]:
    if len(data) > MAX_BYTES:
        raise LocalProblem(f"{name} is larger than {MAX_BYTES // 1024} KiB, and cannot be a list of patterns")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise LocalProblem(f"{name} is not a text in UTF-8") from None
    return [(line, f"{name}:{number}") for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def scanned_line(name: str, found: Scan, *, whole_id: bool) -> str:
    """Describes what indexing a directory found, in a line."""
    links = f"{count(found.symlinks, 'link')}, " if found.symlinks else ""
    image = found.image.hex() if whole_id else short_id(found.image)
    left_out = f", {found.excluded:,} left out" if found.excluded else ""
    return (
        f"Indexed {name}: {count(found.dirs, 'dir')}, {count(found.files, 'file')}, {links}{size(found.bytes)}"
        f"{left_out} in {found.seconds:.1f} s, id {image}"
    )


def hash_caches(wanted: bool, around: AppContext) -> HashCache | None:
    """The hash caches of the user, if they are wanted and there is a place for them."""
    home = cache_home(around.environ) if wanted else None
    return None if home is None else HashCache(home, lambda: around.now_ms() * 1_000_000)


async def scan_directory(
    name: str,
    kind: HashKind,
    display: Display,
    in_thread: InThread,
    caches: HashCache | None = None,
    excluding: Excluding = NOTHING,
) -> Scan:
    """Index one directory, and show that it goes on. Without ``caches`` every file is read."""
    excludes = await in_thread(excludes_for, name, excluding)
    latest: list[ScanProgress] = []

    def so_far() -> str:
        if not latest:
            return f"Indexing {name}"
        seen = latest[-1]
        numbers = f"{count(seen.dirs, 'dir')}, {count(seen.files, 'file')}, {count(seen.symlinks, 'link')}, {size(seen.bytes)}"
        return f"Indexing {name}: {numbers}"

    def progressed(progress: ScanProgress) -> None:
        latest[:] = [progress]

    display.show(so_far)
    try:
        found = await scan(name, kind, in_thread, progressed, caches=caches, excludes=excludes)
    finally:
        display.hide()
    display.say(scanned_line(name, found, whole_id=display.verbose))
    if found.unkept:
        display.say(f"No image keeps {', '.join(found.unkept)}: servers will have these files without")
    for path in found.excluded_paths:
        display.note("", f"left out {path}")
    for warning in found.warnings:
        display.problem("", warning)
    return found


@dataclass(eq=False, slots=True)
class Scans:
    """The directories of one command, each indexed once for each kind of hash that a cluster needs, one after the other."""

    scan: Callable[[str, HashKind], Deferred[Scan]]
    made: dict[tuple[str, HashKind], Scan] = field(init=False, default_factory=dict)
    _turn: DeferredLock = field(init=False, default_factory=DeferredLock)

    async def of(self, name: str, kind: HashKind) -> Scan:
        """Index ``name``, unless that was done. Raises what scanning raises."""
        await self._turn.acquire()
        try:
            if (name, kind) not in self.made:
                self.made[name, kind] = await self.scan(name, kind)
            return self.made[name, kind]
        finally:
            self._turn.release()

    def with_image(self, image: ImageId) -> Scan:
        """The scan that gave ``image``."""
        return next(found for found in self.made.values() if found.image == image)
