"""The disk of one simulated host: the real ``Store`` over an in-memory operating system that remembers what was synced."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace

from ciruela.disk.layout import place
from ciruela.disk.safedir import RESERVED
from ciruela.disk.store import Store
from ciruela.interfaces import InThread
from ciruela.model.config import DirConfig
from ciruela.model.ids import ImageId
from ciruela.model.vpath import VPath
from tests.doubles.simos import SimOS
from tests.doubles.simos_inode import PAGE, Inode
from tests.doubles.simos_volume import Volume

ROOMY = (1 << 40) // PAGE


class Shelf:
    """A volume with the db directory and the configured directories of a host."""

    def __init__(self, sim: SimOS, number: int, configs: Mapping[str, DirConfig]) -> None:
        self._sim = sim
        self._number = number
        self._plain = configs
        self._wipes = 0
        self._mount()

    def _mount(self) -> None:
        self.root = f"/n{self._number}-{self._wipes}"
        self._damaged: dict[int, Inode] = {}
        self._sim.mount(self.root)
        self._sim.mkdirs(f"{self.root}/db")
        self.configs = {}
        for key, config in self._plain.items():
            directory = f"{self.root}/srv/{key}"
            self._sim.mkdirs(directory if config.num_levels else f"{self.root}/srv")
            self.configs[key] = replace(config, directory=directory)

    def open(self, in_thread: InThread) -> Store:
        """What a process that starts now works with."""
        return Store(f"{self.root}/db", self.configs, in_thread)

    def kill(self) -> None:
        """The process is gone; the kernel has what it wrote."""
        self._sim.kill(self.root)

    def power_cut(self, rng: random.Random) -> None:
        """The machine is gone; of what was not synced anything may be missing."""
        self._sim.power_cut(rng.randrange, self.root)

    def wipe(self) -> None:
        """A new, empty disk."""
        self._sim.kill(self.root)
        self._wipes += 1
        self._mount()

    def _records(self) -> list[str]:
        """The files in which the daemon remembers something, but for indexes, which name themselves."""
        found = self._sim.inodes(f"{self.root}/db/signatures")
        return [f"{self.root}/db/signatures{at}" for at, inode in found if inode.is_file]

    def lose_record(self, rng: random.Random) -> str:
        """One record is gone. Only while no process runs here. Gives its name, empty when there is none."""
        records = self._records()
        if not records:
            return ""
        gone = rng.choice(records)
        self._sim.drop(gone)
        return gone.removeprefix(f"{self.root}/db/signatures")

    def flip_record(self, rng: random.Random) -> str:
        """One bit of a record turns over. As :meth:`lose_record`."""
        records = [path for path in self._records() if self._sim.content(path)]
        if not records:
            return ""
        bent = rng.choice(records)
        self._sim.bit_flip(bent, rng.randrange(len(self._sim.content(bent))), rng.randrange(8))
        return bent.removeprefix(f"{self.root}/db/signatures")

    def lose_db(self) -> None:
        """Nothing that the daemon remembered is left; the images are. Only while no process runs here."""
        self._sim.drop(f"{self.root}/db")
        self._sim.mkdirs(f"{self.root}/db")

    def snapshot(self) -> Volume:
        """The disk as it is now."""
        return self._sim.volume(self.root).clone()

    def restore(self, before: Volume) -> None:
        """The disk is again as it was. Only while no process runs here."""
        self._sim.put_back(self.root, before)
        self._damaged.clear()

    def fill(self, pages_left: int) -> None:
        """Only so many pages more can be written."""
        volume = self._sim.volume(self.root)
        volume.pages_total = volume.pages_used + pages_left

    def free(self) -> None:
        """There is room again."""
        self._sim.volume(self.root).pages_total = ROOMY

    def tree(self, vpath: VPath) -> tuple[dict[str, bytes], frozenset[str]] | None:
        """What stands at ``vpath``, and which of its files :meth:`damage` has hit; None when nothing stands there."""
        walked = self._sim.inodes(str(place(self.configs, vpath)))
        if not walked:
            return None
        found = {at: inode.target if inode.is_link else b"" if inode.is_dir else bytes(inode.data) for at, inode in walked}
        return found, frozenset(at for at, inode in walked if id(inode) in self._damaged)

    def damage(self, vpath: VPath, rng: random.Random, *, truncate: bool) -> bool:
        """Flip a bit of a file of the image at ``vpath``, or cut the file off. False when there is no such file."""
        where = str(place(self.configs, vpath))
        files = [(at, inode) for at, inode in self._sim.inodes(where) if inode.is_file and inode.size]
        if not files:
            return False
        at, inode = rng.choice(files)
        self._damaged[id(inode)] = inode
        if truncate:
            self._sim.truncate(where + at, rng.randrange(inode.size))
        else:
            self._sim.bit_flip(where + at, rng.randrange(inode.size), rng.randrange(8))
        return True

    def debris(self, pendings: Mapping[VPath, ImageId]) -> Iterator[str]:
        """Reserved names beside images that belong to no upload on its way."""
        wanted = {place(self.configs, vpath).staging(image) for vpath, image in pendings.items()}
        for at, inode in self._sim.inodes(f"{self.root}/srv"):
            name = at.rsplit("/", 1)[1]
            if name.startswith(RESERVED) and name not in wanted:
                yield at if inode.is_dir else f"{at} (no directory)"
