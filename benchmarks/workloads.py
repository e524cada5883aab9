"""The trees that the benchmarks send. Made from seeds and from the installed Python; never two times differently in one run."""

from __future__ import annotations

import random
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables import MIB


@dataclass(frozen=True, slots=True)
class Workload:
    """``tree`` is what is sent; ``old`` what all nodes have before. ``size_bytes``: what is new in ``tree``, uncompressed.

    ``packs``: it gets smaller when it is compressed.
    """

    name: str
    title: str
    tree: Path
    size_bytes: int
    packs: bool = True
    old: Path | None = None


def files_of(tree: Path) -> list[Path]:
    """All files, in order."""
    return sorted(path for path in tree.rglob("*") if path.is_file())


def _size(files: list[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def one_file(top: Path, scale: float) -> Workload:
    """One file of random bytes."""
    tree = _fresh(top / "file")
    size = max(1, round(256 * scale))
    rng = random.Random(1)
    with open(tree / "random.bin", "wb") as file:
        for _ in range(size):
            file.write(rng.randbytes(MIB))
    return Workload("file", f"one random file, {size} MiB", tree, size * MIB, packs=False)


def _fresh(top: Path) -> Path:
    tree = top / "tree"
    tree.mkdir(parents=True)
    return tree


def _library() -> Iterator[Path]:
    """Files of the installed packages and of the standard library: programs, texts and data of real applications."""
    paths = sysconfig.get_paths()
    for root in dict.fromkeys((paths["purelib"], paths["stdlib"])):
        for path in files_of(Path(root)):
            if not path.is_symlink() and not {"__pycache__", "site-packages"} & set(path.relative_to(root).parts) and path.suffix != ".a":
                yield path


def application(top: Path, scale: float) -> Workload:
    """An application with what it depends on: this Python and its packages, without some large files where it is over 240 MiB."""
    tree = _fresh(top / "application")
    _copy_library(tree, 240 * MIB * scale)
    files = files_of(tree)
    size = _size(files)
    return Workload("application", f"application tree, {len(files):,} files, {size / MIB:.0f} MiB", tree, size)


def _copy_library(tree: Path, most_bytes: float) -> None:
    left = most_bytes
    sizes = {path: path.stat().st_size for path in _library()}
    for path in sorted(sizes, key=lambda path: sizes[path] > MIB):
        size = sizes[path]
        if size <= left:
            place = tree / path.relative_to(path.anchor)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)
            left -= size


def next_version(top: Path, scale: float) -> Workload:
    """The application with 2 % of its files changed and 1 % new ones; all nodes have the one before."""
    old, tree = top / "version" / "old" / "tree", top / "version" / "tree"
    _copy_library(_fresh(old.parent), 240 * MIB * scale)
    shutil.copytree(old, tree)
    rng = random.Random(2)
    files = [path for path in files_of(tree) if path.stat().st_size]
    changed = rng.sample(files, len(files) // 50)
    for turn, path in enumerate(changed):
        path.write_bytes(_edited(path.read_bytes(), turn, rng))
    added = []
    for turn, path in enumerate(rng.sample(files, len(files) // 100)):
        lines = path.read_bytes().split(b"\n")
        rng.shuffle(lines)  # as compressible as before, and new
        added.append(path.with_name(f"added-{turn}-{path.name}"))
        added[-1].write_bytes(b"# %d\n" % turn + b"\n".join(lines))
    size = _size(changed) + _size(added)
    title = f"its next version: {len(changed)} of {len(files):,} files changed, {len(added)} new, {size / MIB:.1f} MiB"
    return Workload("version", title, tree, size, old=old)


def _edited(data: bytes, turn: int, rng: random.Random) -> bytes:
    """One file is written anew, one changes in the middle, two get a line near their beginning."""
    if turn % 4 == 0:
        return rng.randbytes(len(data) // 2).hex().encode()
    if turn % 4 == 1:
        middle = len(data) // 2
        return data[:middle] + rng.randbytes(16) + data[middle + 16 :]
    first, newline, rest = data.partition(b"\n")
    return first + newline + b"# edited: " + rng.randbytes(20).hex().encode() + b"\n" + rest


def small_files(top: Path, scale: float) -> Workload:
    """Many files of 1 to 8 KiB of text."""
    tree = _fresh(top / "small")
    text = b"".join(path.read_bytes() for path in _library() if path.suffix == ".py" and path.stat().st_size < MIB)[: 32 * MIB]
    rng = random.Random(3)
    count = round(20_000 * scale)
    for number in range(count):
        folder = tree / f"d{number // 250:03}"
        if number % 250 == 0:
            folder.mkdir()
        begin, size = rng.randrange(len(text) - 8192), rng.randrange(1024, 8193)
        (folder / f"f{number:05}.txt").write_bytes((b"%d\n" % number + text[begin : begin + size])[:size])
    size = _size(files_of(tree))
    return Workload("small", f"{count:,} small files, {size / MIB:.0f} MiB", tree, size)


def configuration(top: Path, _scale: float) -> Workload:
    """A small configuration."""
    tree = _fresh(top / "config")
    rewrite(tree, 0)
    return Workload("config", "configuration of 20 files", tree, _size(files_of(tree)))


def rewrite(tree: Path, turn: int) -> None:
    """Give a configuration new values."""
    rng = random.Random(4 + turn)
    for number in range(20):
        (tree / f"{number:02}.conf").write_text("".join(f"option-{line} = {rng.random()}\n" for line in range(60)))


WORKLOADS: dict[str, Callable[[Path, float], Workload]] = {
    "file": one_file,
    "application": application,
    "version": next_version,
    "small": small_files,
    "config": configuration,
}
