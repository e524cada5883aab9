"""Indexing a directory of the user, and showing that it goes on."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, DeferredLock

from ciruela.client.ignore import excludes_for
from ciruela.client.options.excluding import NOTHING, Excluding
from ciruela.client.progress import Display
from ciruela.client.surroundings import Surroundings
from ciruela.client.text import count, short_id, size
from ciruela.disk.hashcache import HashCache, cache_home
from ciruela.disk.scan import Scan, ScanProgress, scan
from ciruela.index.digest import HashKind
from ciruela.model.ids import ImageId
from ciruela.seams import InThread


def scanned_line(name: str, found: Scan, *, whole_id: bool) -> str:
    """What indexing a directory found."""
    links = f"{count(found.symlinks, 'link')}, " if found.symlinks else ""
    image = found.image.hex() if whole_id else short_id(found.image)
    left_out = f", {found.excluded:,} left out" if found.excluded else ""
    return (
        f"Indexed {name}: {count(found.dirs, 'dir')}, {count(found.files, 'file')}, {links}{size(found.bytes)}"
        f"{left_out} in {found.seconds:.1f} s, id {image}"
    )


def hash_caches(wanted: bool, around: Surroundings) -> HashCache | None:
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


class Scans:
    """The directories of one command, each indexed once for each kind of hash that a cluster needs, one after the other."""

    def __init__(self, scan: Callable[[str, HashKind], Deferred[Scan]]) -> None:
        self._scan = scan
        self._turn = DeferredLock()
        self.made: dict[tuple[str, HashKind], Scan] = {}

    async def of(self, name: str, kind: HashKind) -> Scan:
        """Index ``name``, unless that was done. Raises what scanning raises."""
        await self._turn.acquire()
        try:
            if (name, kind) not in self.made:
                self.made[name, kind] = await self._scan(name, kind)
            return self.made[name, kind]
        finally:
            self._turn.release()

    def with_image(self, image: ImageId) -> Scan:
        """The scan that gave ``image``."""
        return next(found for found in self.made.values() if found.image == image)
