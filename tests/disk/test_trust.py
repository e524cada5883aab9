"""Records that say what nobody signed: with a checksum, and of versions that had none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cbor2
from twisted.internet.defer import Deferred

from ciruela.disk import tombstones, trust
from ciruela.disk.store import Store
from ciruela.disk.trust import RecordTrust
from ciruela.interfaces import Held
from ciruela.model.ids import ImageId
from ciruela.model.versions import SigEntry, Tombstone, Version
from ciruela.model.vpath import VPath
from tests.disk.real import V1, V2, Real
from tests.disk.trees import CHANGED, SMALL, in_place, state_of
from tests.proof import shows

NOW_MS = 1_800_000_000_000
SIGNED_MS = 1_700_000_000_123
AHEAD_MS = SIGNED_MS | 1 << 45
"""A flipped bit: the year 3084."""


class TrustCase(Real):
    def setUp(self) -> None:
        super().setUp()
        self.made: set[SigEntry] = set()
        self.now_ms = NOW_MS
        self.asked = 0
        self.states = self.node.db / "signatures" / "app" / "web"

    def loaded(self) -> list[Held]:
        self.store.close()
        self.store = self.node.store = Store(
            str(self.node.db), self.node.configs, in_place, trust=RecordTrust(lambda: self.now_ms, self.signed)
        )
        return list(self.successResultOf(self.store.load()).held)

    def signed(self, _vpath: VPath, _image: ImageId, entries: object) -> frozenset[SigEntry]:
        self.asked += 1
        return frozenset(self.made)

    def bend(self, name: str, at: bytes, by: bytes) -> None:
        path = self.states / name
        data = path.read_bytes()
        self.assertEqual(data.count(at), 1)
        path.write_bytes(data.replace(at, by))

    def unseal(self, name: str) -> dict[str, object]:
        """A record as an earlier version wrote it."""
        path = self.states / name
        fields: dict[str, object] = cbor2.loads(path.read_bytes())
        del fields["ciruela"]
        path.write_bytes(cbor2.dumps(fields))
        return fields


class Sealed(TrustCase):
    @shows("K3.3", "K3.4")
    def test_flipped(self) -> None:
        """A flipped bit would be believed: a time that keeps all newer versions out, an image or a signature that nobody made."""
        index = self.upload(V1, SMALL)
        time, image = SIGNED_MS.to_bytes(8, "big"), bytes(index.image)
        for at, by in ((time, AHEAD_MS.to_bytes(8, "big")), (image, bytes([image[0] ^ 4]) + image[1:]), (b"sha", b"shb")):
            if at == b"sha":
                at = state_of(index).signatures[0].signature
                by = bytes([at[0] ^ 1]) + at[1:]
            self.bend("v1.state", at, by)
            self.assertEqual(self.loaded(), [])
            self.assertTrue((self.states / ".v1.state.backup").exists())
            self.assertTrue(self.node.image(V1).exists())
            self.upload(V1, SMALL)
        self.assertEqual(self.loaded(), [Held(V1, state_of(index), None)])
        self.assertEqual(self.asked, 0)

    @shows("K3.3", "A45")
    def test_tombstones(self) -> None:
        """A flipped bit in the floor would refuse everything for ever; in a tombstone it would delete what is newer."""
        index = self.upload(V1, SMALL)
        with self.subTest("floor"):
            file = self.states / tombstones.NAME
            row = {"v1": Tombstone(Version(5, index.image), 6)}
            file.write_bytes(tombstones.encode(tombstones.Tombstones(SIGNED_MS, row)))
            self.bend(tombstones.NAME, SIGNED_MS.to_bytes(8, "big"), AHEAD_MS.to_bytes(8, "big"))
            self.assertEqual(self.loaded(), [Held(V1, state_of(index), None)])
            self.assertTrue((self.states / f".{tombstones.NAME}.backup").exists())
            self.assertFalse(file.exists())


class Unsealed(TrustCase):
    """What the reference or an earlier version wrote."""

    @shows("K3.3", "A59")
    def test_signed(self) -> None:
        """Changing to this version would forget images, or verify them again at each start for ever."""
        index = self.upload(V1, SMALL)
        self.unseal("v1.state")
        self.made = set(state_of(index).signatures)
        self.assertEqual(self.loaded(), [Held(V1, state_of(index), None)])
        self.assertEqual(self.successResultOf(self.store.prove(10)), [])
        self.assertIn("ciruela", cbor2.loads((self.states / "v1.state").read_bytes()))
        self.assertEqual(self.successResultOf(self.store.prove(10)), ())

    @shows("K3.3")
    def test_ahead_of_the_clock(self) -> None:
        """An image would be held for one of the year 3084; or all would be forgotten by a host whose clock was never set."""
        index = self.upload(V1, SMALL)
        self.unseal("v1.state")
        self.bend("v1.state", SIGNED_MS.to_bytes(8, "big"), AHEAD_MS.to_bytes(8, "big"))
        self.now_ms = 1000
        self.assertEqual([held.vpath for held in self.loaded()], [V1])
        self.now_ms = NOW_MS
        self.assertEqual(self.loaded(), [])
        self.assertTrue((self.states / ".v1.state.backup").exists())
        self.assertIsNotNone(index)

    @shows("K3.4")
    def test_image_without_an_index(self) -> None:
        """An image id with a flipped bit would be committed, shown and told to others."""
        index = self.upload(V1, SMALL)
        self.unseal("v1.state")
        self.bend("v1.state", bytes(index.image), bytes([index.image[0] ^ 1]) + index.image[1:])
        self.assertEqual(self.loaded(), [])

    def test_keys_that_were_taken_out(self) -> None:
        """Who takes a key out of the configuration would lose all that it signed, with the next start."""
        index = self.upload(V1, SMALL)
        self.unseal("v1.state")
        self.assertEqual(self.loaded(), [Held(V1, state_of(index), None)])

    @shows("K3.3")
    def test_very_many(self) -> None:
        """A start with very many old records would take minutes; or one of them would never be looked at."""
        self.patch(trust, "MOST_AT_START", 1)
        first, second = self.upload(V1, SMALL), self.upload(V2, CHANGED)
        for name in ("v1.state", "v2.state"):
            self.unseal(name)
            self.bend(name, SIGNED_MS.to_bytes(8, "big"), AHEAD_MS.to_bytes(8, "big"))
        self.assertEqual([held.vpath for held in self.loaded()], [V2])
        self.assertEqual(self.successResultOf(self.store.prove(10)), [V1, V2])
        self.assertNotEqual(first, second)

    def test_beside_a_commit(self) -> None:
        """A record that is read before a commit and written after it would say again what was there before."""
        self.upload(V1, SMALL)
        self.unseal("v1.state")
        self.loaded()
        jobs: list[Callable[[], object]] = []

        def later(work: Callable[..., object], *args: object) -> Deferred[object]:
            done: Deferred[object] = Deferred()
            jobs.append(lambda: done.callback(work(*args)))
            return done

        self.store._in_thread = later  # type: ignore[assignment,method-assign]
        told: list[str] = []
        busy = self.store._lane(V1).do(told.append, "commit")
        proved = self.store.prove(10)
        self.assertEqual(len(jobs), 1)
        while jobs:
            jobs.pop(0)()
        self.assertEqual((told, self.successResultOf(busy), self.successResultOf(proved)), (["commit"], None, []))

    @shows("K3.3", "A45")
    def test_floor(self) -> None:
        """A floor of the year 3084 in a file without a checksum would refuse everything for ever."""
        index = self.upload(V1, SMALL)
        rows = {"v0": [SIGNED_MS, index.image, SIGNED_MS + 1], "v1": [AHEAD_MS, index.image, SIGNED_MS + 2]}
        (self.states / tombstones.NAME).write_bytes(cbor2.dumps({"floor": AHEAD_MS, "tombstones": rows}))
        self.assertEqual(self.loaded(), [Held(V1, state_of(index), None)])
        found = self.successResultOf(self.store.fold_burials(V1, 0))
        self.assertEqual((found.floor_ms, list(found.tombstones)), (0, ["v0"]))


class Modes(Real):
    @shows("S14")
    def test_modes(self) -> None:
        """Everybody on the host could read who uploads what, and what is in it."""
        self.upload(V1, SMALL)
        found = {path.relative_to(self.node.db): path.stat().st_mode & 0o7777 for path in self.node.db.rglob("*")}
        wrong = [(path, oct(mode)) for path, mode in found.items() if mode != (0o750 if (self.node.db / path).is_dir() else 0o640)]
        self.assertEqual(wrong, [])
        self.assertIn(Path("signatures/app/web/v1.state"), found)
