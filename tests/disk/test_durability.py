"""What is synced, as the operator wants it, and how much space is left free."""

from __future__ import annotations

from collections import Counter

from ciruela.disk.safedir import SafeDir
from ciruela.disk.store import Store
from ciruela.model.config import Fsync, Tuning
from ciruela.model.errors import DownloadFailed
from ciruela.model.upload import AbortReason
from tests.disk.faulty import Faults
from tests.disk.real import V1, Real
from tests.disk.trees import SMALL, Spec, flat, in_place, index_bytes, on_disk, state_of
from tests.proof import shows

MANY: Spec = {f"/d{number % 10}/f{number}": b"x" for number in range(100)}


class FsyncTests(Real):
    """``fsync`` in ciruela.yaml."""

    def synced(self, fsync: Fsync, spec: Spec) -> Counter[str]:
        """Upload ``spec`` and count what was synced on the way."""
        self.store = Store(str(self.node.db), self.node.configs, in_place, Tuning(fsync=fsync))
        faults = Faults()
        faults.install(self)
        try:
            opened, index = self.filled(V1, spec)
            before = list(faults.calls)
            self.successResultOf(opened.commit(state_of(index)))
        finally:
            faults.remove(self)
        self.assertEqual(on_disk(self.node.image(V1)), flat(spec))
        self.records = before.count("fsync")
        return Counter(call for call in faults.calls[len(before) :] if call in ("fsync", "syncfs"))

    @shows("A44", "F38")
    def test_commit(self) -> None:
        """A large image is made durable with one call, a small one file by file; so is every record."""
        large = self.synced(Fsync.COMMIT, MANY)
        self.assertEqual(large["syncfs"], 1)
        self.assertLess(large["fsync"], 20)
        self.assertGreater(self.records, 3)

    @shows("A44", "F38")
    def test_per_file(self) -> None:
        """With per-file the other programs of the host do not have to wait for all that they have written."""
        found = self.synced(Fsync.PER_FILE, MANY)
        self.assertEqual(found["syncfs"], 0)
        self.assertGreater(found["fsync"], 110)

    def test_small(self) -> None:
        """A small image is the same for both."""
        self.assertEqual(self.synced(Fsync.COMMIT, SMALL)["syncfs"], 0)

    def test_none(self) -> None:
        """With none nothing waits for the disk, neither image nor record; the image is whole all the same."""
        self.assertEqual(self.synced(Fsync.NONE, MANY).total(), 0)
        self.assertEqual(self.records, 0)


class SpaceTests(Real):
    """Reserve and sizes, told in numbers before anything is written."""

    def tuned(self, tuning: Tuning) -> Store:
        return Store(str(self.node.db), self.node.configs, in_place, tuning)

    @shows("A38", "F7")
    def test_reserve(self) -> None:
        """An operator who keeps more free than the disk has gets no image, and the client the numbers."""
        index, _ = index_bytes(SMALL)
        most = Tuning(disk_reserve_bytes=1 << 62, disk_reserve_percent=50)
        size = 1 << 30
        self.patch(SafeDir, "free_bytes", lambda _: (size // 2 - 1, size))
        fault = self.failureResultOf(self.tuned(most).stage(V1, index), DownloadFailed).value
        self.assertEqual(fault.reason, AbortReason.NO_SPACE)
        self.assertEqual(fault.detail, f"needs {index.total_bytes} bytes, 0 bytes free beyond the reserve")
        self.assertEqual(self.node.debris(), [])
        self.successResultOf(self.tuned(Tuning(disk_reserve_percent=0)).stage(V1, index)).close()

    @shows("A6", "F6")
    def test_index(self) -> None:
        """An index beyond max-index-bytes is refused with the numbers; a wrong one is the fault of its source."""
        index, data = index_bytes(MANY)
        store = self.tuned(Tuning(max_index_bytes=len(data) - 1))
        fault = self.failureResultOf(store.write_index(index.image, data), DownloadFailed).value
        self.assertEqual(fault.reason, AbortReason.IMAGE_TOO_LARGE)
        self.assertEqual(fault.detail, f"the index has {len(data)} bytes, at most {len(data) - 1} are taken here")
        self.assertIsNone(self.successResultOf(store.read_index(index.image)))
        other, _ = index_bytes(SMALL)
        self.assertNotIsInstance(self.failureResultOf(store.write_index(other.image, data)).value, DownloadFailed)
        self.successResultOf(self.tuned(Tuning(max_index_bytes=len(data))).write_index(index.image, data))
