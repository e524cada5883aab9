"""``ciruela diff``: what is otherwise in one image than in another, whether they are local directories, indexes, or in a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from functools import partial
from stat import S_ISDIR

from twisted.internet.defer import CancelledError

from ciruela.client.context import AppContext, make_display
from ciruela.client.errors import write_json, write_line
from ciruela.client.options.reading import DiffOptions, ReadTarget
from ciruela.client.options.signing import Keys
from ciruela.client.orders import OURS, LocalProblem, kind_of
from ciruela.client.origin import ImageOrigin, ReadContext, real_reach
from ciruela.client.progress import Display
from ciruela.client.scanning import hash_caches, scan_directory
from ciruela.client.text import count, size
from ciruela.client.trust import Proof, TrustedKeys, fingerprint_of, my_trust, shown
from ciruela.client.verify import read_index_file
from ciruela.index.digest import HashKind
from ciruela.index.tree import Directory, File, Index, Symlink
from ciruela.model.errors import CiruelaError
from ciruela.model.ids import HASH_BYTES
from ciruela.model.values import dataclass

SAME, DIFFERENT, TROUBLE = 0, 1, 2
"""Exit codes, as those of diff(1)."""

Entry = Directory | File | Symlink


class Change(Enum):
    """Kind of change of a path, with the sign that stands before it."""

    ADDED = "+"
    REMOVED = "-"
    CHANGED = "~"
    MODE = "m"


@dataclass(frozen=True, slots=True)
class Difference:
    """One path that differs. Sizes are bytes of a file, None for what is none."""

    change: Change
    path: str
    before: Entry | None
    after: Entry | None

    @property
    def sizes(self) -> tuple[int | None, int | None]:
        """Before and after."""
        before, after = (one.size if isinstance(one, File) else None for one in (self.before, self.after))
        return before, after

    def text(self) -> str:
        """For people."""
        before, after = self.sizes
        shown = f"{self.path}/" if isinstance(self.after or self.before, Directory) else self.path
        if self.change is Change.MODE:
            what = "executable now" if isinstance(self.after, File) and self.after.executable else "not executable any more"
        elif self.change is Change.CHANGED and type(self.before) is not type(self.after):
            what = f"{_word(self.before)}, now {_word(self.after)}"
        elif self.change is Change.CHANGED and isinstance(self.before, Symlink) and isinstance(self.after, Symlink):
            what = f"-> {self.before.target}, now -> {self.after.target}"
        elif before is not None and after is not None:
            what = size(after) if before == after else f"{size(before)}, now {size(after)}"
        else:
            one = self.after or self.before
            what = f"-> {one.target}" if isinstance(one, Symlink) else size(one.size) if isinstance(one, File) else ""
        return f"{self.change.value} {shown}  {what}".rstrip()


def _word(entry: Entry | None) -> str:
    return {File: "file", Symlink: "link", Directory: "directory"}[type(entry)] if entry is not None else "nothing"


def lines(left: Index, right: Index) -> Iterator[Difference]:
    """Yields the differences, in order of the paths. Both have one hash kind."""
    before, after = _by_path(left), _by_path(right)
    for path in sorted(before.keys() | after.keys(), key=lambda path: path.split("/")):
        one, other = before.get(path), after.get(path)
        if one is None or other is None:
            yield Difference(Change.ADDED if one is None else Change.REMOVED, path, one, other)
        elif (changed := _changed(one, other)) is not None:
            yield Difference(changed, path, one, other)


def _by_path(index: Index) -> dict[str, Entry]:
    found: dict[str, Entry] = {directory.path: directory for directory in index.directories if directory.path != "/"}
    found.update((entry.path, entry) for entry in index.entries())
    return found


def _changed(one: Entry, other: Entry) -> Change | None:
    match one, other:
        case Directory(), Directory():
            return None
        case File(), File() if (one.size, one.hashes) == (other.size, other.hashes):
            return None if one.executable == other.executable else Change.MODE
        case Symlink(), Symlink() if one.target == other.target:
            return None
    return Change.CHANGED


def new_bytes(left: Index, right: Index) -> int:
    """Bytes of the blocks of ``right`` that ``left`` has nowhere, each counted once: what would have to travel."""
    have = {file.hashes[at : at + HASH_BYTES] for file in left.files for at in range(0, len(file.hashes), HASH_BYTES)}
    total = 0
    for file in right.files:
        for number in range(file.block_count):
            block = bytes(file.block_hash(number))
            if block not in have:
                have.add(block)
                total += file.block_size(number)
    return total


async def diff(options: DiffOptions, around: AppContext, reach: ReadContext | None = None) -> int:
    """As ``ciruela diff``. Gives the exit code, as those of the program diff; every trouble is told here."""
    display = make_display(options.common, around, None)
    using = reach or real_reach(options.common, around)
    try:
        return await _diff(options, around, using, display)
    except CancelledError:
        raise
    except (CiruelaError, OSError) as error:
        display.problem("", str(error))
        return TROUBLE
    finally:
        display.hide()
        await using.nodes.stop()


async def _diff(options: DiffOptions, around: AppContext, reach: ReadContext, display: Display) -> int:
    sides = (options.left, options.right)
    local = {side for side in sides if isinstance(side, str) and S_ISDIR(await around.in_thread(kind_of, side))}
    trust = (
        await my_trust(options.trusting, Keys(), around, display) if any(isinstance(side, ReadTarget) for side in sides) else TrustedKeys()
    )
    read: dict[ReadTarget | str, Index] = {}
    proofs: dict[ReadTarget | str, Proof | None] = {}
    for side in (one for one in sides if one not in local):
        if isinstance(side, str):
            read[side] = await around.in_thread(read_index_file, side)
        else:
            read[side], proofs[side] = await _image(side, trust, reach, display)
    kinds = {index.kind for index in read.values()}
    if len(kinds) > 1:
        raise LocalProblem(
            f"the indexes were made with different hashes ({' and '.join(sorted(kind.value for kind in kinds))}), which cannot be "
            "compared: name the directory of one of them, or get it first"
        )
    kind = next(iter(kinds), options.common.hash or OURS)
    for side in (one for one in sides if one in local):
        if side not in read:
            read[side] = await _scanned(str(side), kind, options.cache, around, display)
    left, right = (read[side] for side in sides)
    display.show(lambda: "Comparing")
    found = await around.in_thread(lambda: list(lines(left, right)))
    travel = await around.in_thread(new_bytes, left, right)
    display.hide()
    for line in found:
        if options.json:
            before, after = line.sizes
            change = line.change.name.lower()
            write_json(around.stdout, {"type": change, "path": line.path, "before_bytes": before, "after_bytes": after})
        else:
            write_line(around.stdout, line.text())
    counts = {change: sum(line.change is change for line in found) for change in Change}
    code = DIFFERENT if found or left.image != right.image else SAME
    if options.json:
        total: dict[str, object] = {change.name.lower(): number for change, number in counts.items()}
        images: dict[str, object] = {"left": left.image.hex(), "right": right.image.hex()}
        for name, side in zip(("left", "right"), sides, strict=True):
            images[f"{name}_verified_by"] = fingerprint_of(proofs.get(side))
        write_json(around.stdout, {"type": "summary", **images, **total, "new_bytes": travel, "exit_code": code})
    elif code == SAME:
        display.say(f"the same image {left.image.hex()}")
    else:
        number = ", ".join(f"{counts[change]:,} {change.name.lower()}" for change in Change if counts[change])
        new = f"{size(travel)} of {count(len(right.files), 'file')} ({size(right.total_bytes)})"
        write_line(around.stdout, f"{number}; {new} are in blocks that the first one does not have")
    return code


async def _image(side: ReadTarget, trust: TrustedKeys, reach: ReadContext, display: Display) -> tuple[Index, Proof | None]:
    """The index of an image in a cluster, and whether somebody who is trusted signed it, which is told."""
    display.show(lambda: f"Asking {side.cluster.label} for the index of {side.vpath}")
    try:
        origin = ImageOrigin(side, reach, display.note)
        index = await origin.index()
        proof = await origin.proof(index.image, trust)
    finally:
        display.hide()
    display.say(f"{side} is the image {index.image.hex()}, {shown(proof)}")
    return index, proof


async def _scanned(name: str, kind: HashKind, cache: bool, around: AppContext, display: Display) -> Index:
    found = await scan_directory(name, kind, display, around.in_thread, hash_caches(cache, around))
    return await around.in_thread(partial(getattr, found, "index"))
