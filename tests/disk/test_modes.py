"""Modes and groups of directories: what new images get, and what that does to those that are there."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from pathlib import Path

from ciruela.disk.sidecar import decode_due, decode_modes, encode_due, encode_modes, file_name
from ciruela.interfaces import Findings
from ciruela.model.config import Modes, Reuse
from ciruela.model.errors import FormatError
from ciruela.model.hooks import Due, HookKind
from ciruela.model.ids import ImageId
from ciruela.model.versions import Tombstone
from tests.disk.real import V1, V2, Real
from tests.disk.trees import CHANGED, SMALL, Spec, blocks_of, state_of

PRIVATE = Modes(0o750, 0o640)


def own_groups() -> list[int]:
    """Two groups to which files may be given."""
    return [12345, 12346] if os.geteuid() == 0 else sorted({os.getegid(), *os.getgroups()})[:2]


class ModesCase(Real):
    def give(self, modes: Modes, reuse: Reuse = Reuse.HARDLINK) -> None:
        """From now on new images get these."""
        self.node.configs["app"] = replace(self.node.configs["app"], modes=modes, reuse=reuse)

    def mode(self, vpath, name: str) -> int:
        return stat.S_IMODE((self.node.image(vpath) / name).stat().st_mode)

    def found(self, index, vpath=V1) -> Findings:
        look = self.store.examine(vpath, index)
        findings = self.successResultOf(look.go_on(1 << 40))
        look.close()
        return findings

    def next_version(self, spec: Spec, vpath=V2):
        opened, index = self.filled(vpath, spec)
        opened.close()
        again = self.staged(vpath, index)
        self.successResultOf(again.keep())
        self.successResultOf(again.commit(state_of(index)))
        return index

    def notes(self) -> list[str]:
        return sorted(path.suffix for path in self.node.db.rglob(".*") if path.suffix in (".modes", ".due"))


class ModesTests(ModesCase):
    def test_new_images(self) -> None:
        """A service could not read a release, or everybody could."""
        self.give(PRIVATE)
        index = self.upload(V1, SMALL)
        found = {oct(self.mode(V1, name)) for name in ("", "a", "a/b", "empty", "run.sh", "zero-run")}
        self.assertEqual(found, {"0o750"})
        self.assertEqual({oct(self.mode(V1, name)) for name in ("README", "zero", "a/big.bin")}, {"0o640"})
        self.assertEqual(self.found(index), Findings((), 0, True))

    def test_only_new_images(self) -> None:
        """A change of the config would make the scrub take every older image for damaged, and fetch all of them again."""
        old = self.upload(V1, SMALL)
        self.give(PRIVATE)
        self.upload(V2, CHANGED)
        self.assertEqual(self.found(old), Findings((), 0, True))
        self.assertEqual((self.mode(V1, "README"), self.mode(V2, "README")), (0o644, 0o640))
        self.give(Modes(0o700, 0o400))
        new = self.next_version(CHANGED)
        self.assertEqual(self.found(new, V2), Findings((), 0, True))

    def test_wrong_modes_are_damage(self) -> None:
        """A file that somebody opened to all would stay so."""
        self.give(PRIVATE)
        index = self.upload(V1, SMALL)
        (self.node.image(V1) / "README").chmod(0o644)
        (one,) = self.found(index).damages
        self.assertEqual((one.path, one.what), ("/README", "has mode 0644, not 0640"))

    def test_healed_as_it_was(self) -> None:
        """An image that is mended would get other modes than the program that uses it was set up for."""
        self.give(PRIVATE)
        index = self.upload(V1, SMALL)
        self.give(Modes())
        opened = self.staged(V1, index)
        self.successResultOf(opened.write(blocks_of(SMALL, index)))
        self.successResultOf(opened.restore(state_of(index)))
        self.assertEqual((self.mode(V1, ""), self.mode(V1, "README")), (0o750, 0o640))
        self.assertEqual(self.found(index), Findings((), 0, True))

    def test_shared_files_keep_theirs(self) -> None:
        """A new release would change the modes of files of the running one, which share an inode with it."""
        index = self.upload(V1, SMALL)
        self.give(PRIVATE)
        opened, new = self.filled(V2, {**SMALL, "/more": b"more"})
        self.successResultOf(opened.discard())
        opened = self.staged(V2, new)
        reused = self.successResultOf(opened.reuse([(V1, index)]))
        self.assertGreater(len(reused.blocks), 0, "nothing was copied")
        self.successResultOf(opened.write(blocks_of({**SMALL, "/more": b"more"}, new)))
        self.successResultOf(opened.commit(state_of(new)))
        self.assertEqual((self.mode(V1, "README"), self.mode(V2, "README")), (0o644, 0o640))
        self.assertNotEqual((self.node.image(V1) / "README").stat().st_ino, (self.node.image(V2) / "README").stat().st_ino)

    def test_group(self) -> None:
        """Only the daemon's own group could read a release that is meant for a service; or the old one would change hands."""
        first, *others = own_groups()
        self.give(Modes(0o750, 0o640, first))
        index = self.upload(V1, SMALL)
        top = self.node.image(V1)
        self.assertEqual({path.stat().st_gid for path in (top, *top.rglob("*")) if not path.is_symlink()}, {first})
        self.assertEqual(self.found(index), Findings((), 0, True))
        if not others:
            return
        os.chown(top / "README", -1, others[0])
        (one,) = self.found(index).damages
        self.assertEqual((one.path, one.what), ("/README", f"belongs to group {others[0]}, not {first}"))

    def test_notes_come_and_go(self) -> None:
        """The database directory would fill with notes of images that are gone."""
        self.upload(V1, SMALL)
        self.assertEqual(self.notes(), [])
        self.give(PRIVATE)
        first = self.next_version(SMALL, V2)
        self.assertEqual(self.notes(), [".modes"])
        second = self.next_version(CHANGED, V2)
        self.assertEqual(self.notes(), [".modes"])
        self.assertNotEqual(first.image, second.image)
        self.successResultOf(self.store.remove(V2, Tombstone(state_of(second).version, 5)))
        self.assertEqual(self.notes(), [])

    def test_forgotten_notes(self) -> None:
        """A note that a kill left would be taken for that of an image that comes later."""
        self.give(PRIVATE)
        index = self.upload(V1, SMALL)
        directory = next(self.node.db.rglob("v1.state")).parent
        stray = directory / file_name(V2, index.image, ".modes")
        stray.write_bytes(encode_modes(Modes(0o700, 0o400)))
        self.successResultOf(self.store.load())
        self.assertEqual(self.notes(), [".modes"])
        self.assertFalse(stray.exists())


class DueTests(ModesCase):
    def due(self, image: ImageId, *kinds: HookKind) -> Due:
        return Due(V1, image, None, 1_700_000_000_000, "SHA256:x", kinds or (HookKind.COMMAND, HookKind.WEBHOOK))

    def test_kept_until_dropped(self) -> None:
        """A hook would be lost by a restart, or run at each."""
        index = self.upload(V1, SMALL)
        one = self.due(index.image)
        self.successResultOf(self.store.write_due(one))
        self.assertEqual(self.successResultOf(self.store.load()).due, [one])
        left = self.due(index.image, HookKind.WEBHOOK)
        self.successResultOf(self.store.write_due(left))
        self.assertEqual(self.successResultOf(self.store.load()).due, [left])
        self.successResultOf(self.store.drop_due(V1, index.image))
        self.successResultOf(self.store.drop_due(V1, index.image))
        self.assertEqual(self.successResultOf(self.store.load()).due, [])

    def test_before_the_commit(self) -> None:
        """A kill right after an image was shown would leave its hook unknown."""
        opened, index = self.filled(V1, SMALL)
        self.successResultOf(self.store.write_due(self.due(index.image)))
        self.successResultOf(opened.commit(state_of(index)))
        self.assertEqual([one.image for one in self.successResultOf(self.store.load()).due], [index.image])

    def test_bad_notes(self) -> None:
        """A file that nobody can read would keep the daemon from starting, or run a hook for another path."""
        index = self.upload(V1, SMALL)
        directory = next(self.node.db.rglob("v1.state")).parent
        good = file_name(V1, index.image, ".due")
        whole = encode_due(self.due(index.image))
        late = encode_due(replace(self.due(index.image), signed_ms=1 << 64))
        for data in (b"", b"\xa0", b"x" * 10_000, late, whole[:-1]):
            (directory / good).write_bytes(data)
            self.assertEqual(self.successResultOf(self.store.load()).due, [])
            self.assertFalse((directory / good).exists())
        (directory / file_name(V2, index.image, ".due")).write_bytes(encode_due(self.due(index.image)))
        self.assertEqual(self.successResultOf(self.store.load()).due, [])
        for data in (b"\xa0", encode_modes(Modes(0o4755, 0o644)), encode_modes(Modes(0o755, 0o644, 1 << 33))):
            self.assertRaises(FormatError, decode_modes, data)
        self.assertEqual(decode_modes(encode_modes(Modes(0o750, 0o640, 5))), Modes(0o750, 0o640, 5))
        self.assertEqual(decode_due(encode_due(self.due(index.image))), self.due(index.image))

    def test_prepared(self) -> None:
        """The operator's check would see half of an image: no empty files, no links, other modes."""
        self.give(PRIVATE)
        opened, index = self.filled(V1, SMALL)
        where = Path(self.successResultOf(opened.prepare()))
        self.assertEqual(where, self.staging_path(V1, index))
        self.assertTrue((where / "zero").exists())
        self.assertEqual((where / "a" / "link").readlink().as_posix(), "../README")
        self.assertEqual(stat.S_IMODE((where / "run.sh").stat().st_mode), 0o750)
        (where / "left behind").write_bytes(b"")
        failed = self.failureResultOf(opened.commit(state_of(index)))
        self.assertIn("is not in the index", failed.getErrorMessage())

    def test_where(self) -> None:
        """A hook would be told of a directory that is not there."""
        self.upload(V1, SMALL)
        self.assertEqual(Path(self.store.where(V1)), self.node.image(V1))
