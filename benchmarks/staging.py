"""What a node does with its disk for one image, step by step, beside programs that do nearly the same: no network, one process.

``python -m benchmarks.staging [--runs 5] [--only small,version] [--where DIR] [--ext4] [--profile STEP] [--output FILE]``. ``DIR`` is where
the trees stand, ``/dev/shm`` by default; ``--ext4`` makes a fresh ext4 in a file there for every run and mounts it (as root), because an
ext4 on which the same trees come and go becomes slower each time. Ratios within one table count; seconds depend on the machine.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ciruela.disk.store import Store
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.emit import emit
from ciruela.index.parse import parse
from ciruela.index.tree import Directory, File, Index
from ciruela.interfaces import Pending
from ciruela.model.config import DirConfig, Tuning
from ciruela.model.upload import Command
from ciruela.model.versions import SigEntry, State
from ciruela.model.vpath import VPath
from ciruela.runtime import in_place
from tests.real.mounts import Mounts

T = TypeVar("T")
Tree = dict[str, bytes]
"""Contents by path inside the image."""

OLD, NEW = VPath(("app", "old")), VPath(("app", "new"))
BATCH = 32
"""Blocks in one call to write: what some answers of 1 MiB bring."""

READ_BATCH = 128
"""Blocks in one call to read; small files come many to a request."""


def small(rng: random.Random) -> Tree:
    """20,000 files of 1 to 8 KiB in 200 directories."""
    return {f"/d{number % 200:03}/f{number:05}": rng.randbytes(rng.randint(1024, 8192)) for number in range(20_000)}


def application(rng: random.Random) -> Tree:
    """10,906 files in 1,090 directories, sizes as in a tree of packages: half of them below 5 KiB, some of megabytes; about 237 MB."""
    tree = {}
    for number in range(10_906):
        size = min(int(rng.lognormvariate(8.5, 1.7)), 6_000_000)
        tree[f"/lib/p{number // 100:03}/s{number // 10 % 10}/m{number}.py"] = rng.randbytes(size)
    return tree


def following(tree: Tree, rng: random.Random) -> Tree:
    """The next version: 2 % of the files have one byte changed, 1 % are new, 1 % have another name, ten large ones a byte in the middle."""
    found = dict(tree)
    names = list(tree)
    largest = sorted(names, key=lambda name: len(tree[name]))[-10:]
    for name in rng.sample(names, len(names) // 50) + largest:
        content = bytearray(tree[name] or b"x")
        content[len(content) // 2] ^= 1
        found[name] = bytes(content)
    for name in rng.sample(names, len(names) // 100):
        found[f"{name}.new"] = rng.randbytes(len(tree[name]) or 1)
    for name in rng.sample(names, len(names) // 100):
        found[f"{name}.moved"] = found.pop(name)
    return found


def indexed(tree: Tree) -> tuple[Index, bytes]:
    """The index of a tree, with BLAKE3, and its bytes."""
    kind = HashKind.BLAKE3
    directories: dict[tuple[str, ...], list[File]] = {(): []}
    for path, content in tree.items():
        *above, _ = path[1:].split("/")
        for depth in range(len(above)):
            directories.setdefault(tuple(above[: depth + 1]), [])
        hashes = b"".join([kind.hash(content[at : at + BLOCK_BYTES]) for at in range(0, len(content), BLOCK_BYTES)])
        directories[tuple(above)].append(File(path, False, len(content), hashes))
    listed = [
        Directory("/" + "/".join(parts), tuple(sorted(files, key=lambda file: file.path.encode())))
        for parts, files in sorted(directories.items(), key=lambda item: [part.encode() for part in item[0]])
    ]
    image, data = emit(kind, listed)
    return parse(data, image), data


@dataclass
class Row:
    """A step or a program: seconds and processor seconds of each run."""

    files: int
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


class Table:
    """What was measured, in the order in which it came up first. ``profiled`` names a step that is looked into."""

    def __init__(self, profiled: str) -> None:
        self.rows: dict[str, Row] = {}
        self.profiled = profiled

    @contextmanager
    def step(self, name: str, files: int) -> Iterator[None]:
        """Measure what happens inside."""
        row = self.rows.setdefault(name, Row(files))
        profile = cProfile.Profile() if self.profiled == name else None
        began, used = time.perf_counter(), _cpu()
        if profile is not None:
            profile.enable()
        try:
            yield
        finally:
            if profile is not None:
                profile.disable()
            row.seconds.append(time.perf_counter() - began)
            row.cpu.append(_cpu() - used)
        if profile is not None:
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)


def _cpu() -> float:
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _now(waiting: Deferred[T]) -> T:
    """The result: everything runs in place."""
    found: list[Any] = []
    waiting.addBoth(found.append)
    if isinstance(found[0], Failure):
        found[0].raiseException()
    result: T = found[0]
    return result


class Node:
    """A store in a directory of its own."""

    def __init__(self, top: Path, table: Table) -> None:
        (top / "db").mkdir(parents=True)
        (top / "srv").mkdir()
        self.srv = top / "srv"
        self._table = table
        self._store = Store(str(top / "db"), {"app": DirConfig("app", str(self.srv), False, 1)}, in_place, Tuning(disk_reserve_bytes=0))

    def upload(self, vpath: VPath, tree: Tree, index: Index, data: bytes, name: str, sibling: tuple[VPath, Index] | None = None) -> None:
        """One image; the steps are rows that begin with ``name``, nothing is measured without one."""
        table = self._table if name else Table("")
        state = State(index.image, (SigEntry(1, bytes(64)),))
        files = len(tree)
        _now(self._store.write_pending(Pending(vpath, state, Command.APPEND)))
        _now(self._store.write_index(index.image, data))
        with table.step(f"{name}: all steps", files):
            with table.step(f"{name}: stage, keep", files):
                staging = _now(self._store.stage(vpath, index))
                here = set(_now(staging.keep()))
            if sibling is not None:
                with table.step(f"{name}: reuse", files):
                    here |= _now(staging.reuse([sibling])).blocks
            _now(staging.write(()))
            blocks = index.blocks
            missing = [number for number in range(len(blocks)) if number not in here]
            arriving = []
            for number in missing:
                file, block = blocks.by_number(number)
                arriving.append((number, tree[file.path][block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]))
            with table.step(f"{name}: write", files):
                for at in range(0, len(arriving), BATCH):
                    if not all(_now(staging.write(arriving[at : at + BATCH]))):
                        raise AssertionError("a block was refused")
            with table.step(f"{name}: commit", files):
                _now(staging.commit(state))

    def read(self, vpath: VPath, index: Index, name: str) -> None:
        """Give every block of an image away."""
        with self._table.step(name, len(index.files)):
            for at in range(0, index.block_count, READ_BATCH):
                numbers = range(at, min(at + READ_BATCH, index.block_count))
                if None in _now(self._store.read_blocks(vpath, index, numbers, list)):
                    raise AssertionError("a block could not be read")

    def close(self) -> None:
        """Let go of what is open."""
        self._store.close()


def plant(tree: Tree, top: Path) -> None:
    """The tree as files, for the other programs."""
    for path, content in tree.items():
        at = top / path[1:]
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(content)


def shell(table: Table, name: str, files: int, command: str, sync: Path) -> None:
    """Another program, with the file system made durable after it."""
    with table.step(name, files):
        subprocess.run(["/bin/sh", "-ec", f"{command}\nsync -f {sync}"], check=True)


def run_small(table: Table, top: Path, trees: Trees) -> None:
    """An image of small files that comes from elsewhere, and is given away."""
    tree, (index, data) = trees.small, trees.small_index
    node = Node(top / "node", table)
    node.upload(NEW, tree, index, data, "small files")
    node.read(NEW, index, "small files: read")
    node.close()
    source, files = trees.small_source, len(tree)
    (top / "tar").mkdir()
    shell(table, "small files: tar | tar", files, f"tar -C {source} -cf - . | tar -C {top / 'tar'} -xf -", top)
    shell(table, "small files: rsync", files, f"rsync -a {source}/ {top / 'rsync'}/", top)
    shell(table, "small files: tar | cat, which only reads", files, f"tar -C {source} -cf - . | cat >/dev/null", top)


def run_version(table: Table, top: Path, trees: Trees) -> None:
    """The next version of an application beside the one before."""
    (old, old_data), (new, new_data) = trees.old_index, trees.new_index
    node = Node(top / "node", table)
    node.upload(OLD, trees.old, old, old_data, "")
    node.upload(NEW, trees.new, new, new_data, "version", (OLD, old))
    before = node.srv / "old"
    source, files = trees.new_source, len(trees.new)
    shell(table, "version: cp -al of the old one, nothing new", files, f"cp -al {before} {top / 'cp'}", top)
    # Times differ between the two trees by nature: with -c rsync goes by the content, as a node does.
    link = f"--link-dest={before} --no-times"
    shell(table, "version: rsync --link-dest, by size alone", files, f"rsync -rlp --size-only {link} {source}/ {top / 'size'}/", top)
    shell(table, "version: rsync -c --link-dest", files, f"rsync -rlpc {link} {source}/ {top / 'rsync'}/", top)
    node.close()


class Trees:
    """The workloads, and the same as files on tmpfs; what is not needed is not made."""

    def __init__(self, only: set[str], top: Path) -> None:
        rng = random.Random(4)
        if "small" in only:
            self.small = small(rng)
            self.small_index = indexed(self.small)
            self.small_source = top / "small"
            plant(self.small, self.small_source)
        if "version" in only:
            self.old = application(rng)
            self.new = following(self.old, rng)
            self.old_index = indexed(self.old)
            self.new_index = indexed(self.new)
            self.new_source = top / "new"
            plant(self.new, self.new_source)


WORKLOADS: dict[str, Callable[[Table, Path, Trees], None]] = {"small": run_small, "version": run_version}
ANCHORS = {"small": "small files: rsync", "version": "version: rsync -c --link-dest"}


def report(table: Table, where: str, runs: int) -> str:
    """The table as reStructuredText."""
    lines = [
        f"{runs} runs on {where}: median (smallest .. largest).",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - Step or program",
        "     - Seconds",
        "     - Microseconds a file",
        "     - Processor seconds",
        "     - Times rsync",
    ]
    for name, row in table.rows.items():
        anchor = table.rows[ANCHORS["small" if name.startswith("small") else "version"]]
        middle = statistics.median(row.seconds)
        ratio = statistics.median(mine / other for mine, other in zip(row.seconds, anchor.seconds, strict=True))
        lines += [
            f"   * - {name}",
            f"     - {middle:.3f} ({min(row.seconds):.3f} .. {max(row.seconds):.3f})",
            f"     - {middle / row.files * 1e6:.1f}",
            f"     - {statistics.median(row.cpu):.3f}",
            f"     - {ratio:.2f}",
        ]
    return "\n".join([*lines, ""])


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default="small,version")
    parser.add_argument("--where", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--ext4", action="store_true")
    parser.add_argument("--profile", default="", help="name of a step to profile, as in the table")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    only = set(options.only.split(","))
    table = Table(options.profile)
    with tempfile.TemporaryDirectory(dir=options.where, prefix="ciruela-staging-") as folder:
        top = Path(folder)
        trees = Trees(only, top)
        for number in range(options.runs):
            for name in sorted(only):
                mounts = Mounts() if options.ext4 else None
                try:
                    if mounts is None:
                        stands = top / f"{name}-{number}"
                        stands.mkdir()
                    else:
                        stands = mounts.ext4(mounts.make_ext4(top / "image", 1536), "disk", options="commit=5")
                    WORKLOADS[name](table, stands, trees)
                finally:
                    if mounts is None:
                        shutil.rmtree(stands)
                    else:
                        mounts.close()
    text = report(table, "a fresh ext4" if options.ext4 else str(options.where), options.runs)
    sys.stdout.write(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
