"""A store over real files, and what the tests of it share."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk import layout
from ciruela.index.tree import Index
from ciruela.interfaces import Pending, Staging
from ciruela.model.errors import DownloadFailed
from ciruela.model.upload import AbortReason, Command
from ciruela.model.vpath import VPath
from tests.disk.trees import Node, Spec, blocks_of, flat, index_bytes, on_disk, plant, state_of

V1 = VPath(("app", "web", "v1"))
V2 = VPath(("app", "web", "v2"))


class Real(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node(Path(self.mktemp()).absolute())
        self.store = self.node.store
        self.outside = self.node.root / "outside"
        plant(self.outside, {"/precious": b"precious", "/v1/README": b"not ours"})

    def tearDown(self) -> None:
        self.store.close()
        self.assertEqual(on_disk(self.outside), flat({"/precious": b"precious", "/v1/README": b"not ours"}))
        self.assertEqual((self.outside / "precious").stat().st_mode & 0o777, 0o600 if self.strict else 0o644)

    strict = False

    def staged(self, vpath: VPath, index: Index) -> Staging:
        opened: Staging = self.successResultOf(self.store.stage(vpath, index))
        return opened

    def filled(self, vpath: VPath, spec: Spec) -> tuple[Staging, Index]:
        index, data = index_bytes(spec)
        self.successResultOf(self.store.write_pending(Pending(vpath, state_of(index), Command.REPLACE)))
        self.successResultOf(self.store.write_index(index.image, data))
        opened = self.staged(vpath, index)
        self.successResultOf(opened.write(blocks_of(spec, index)))
        return opened, index

    def upload(self, vpath: VPath, spec: Spec) -> Index:
        opened, index = self.filled(vpath, spec)
        self.successResultOf(opened.commit(state_of(index)))
        return index

    def refused(self, vpath: VPath, spec: Spec, reason: AbortReason) -> str:
        opened, index = self.filled(vpath, spec)
        failed = self.failureResultOf(opened.commit(state_of(index)), DownloadFailed).value
        self.assertEqual(failed.reason, reason)
        return str(failed)

    def staging_path(self, vpath: VPath, index: Index) -> Path:
        return self.node.image(vpath).parent / layout.place(self.node.configs, vpath).staging(index.image)
