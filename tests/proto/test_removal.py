"""The messages of removals and of replaced images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
from pycddl import Schema
from twisted.trial.unittest import SynchronousTestCase

from ciruela.keys.signed import removal_bytes, signed_bytes
from ciruela.model.errors import FormatError
from ciruela.model.ids import ImageId
from ciruela.model.versions import Version
from ciruela.proto import codec
from ciruela.proto import messages as m
from tests.proof import shows
from tests.proto import samples as s

SCHEMA = Schema((Path(__file__).parent.parent.parent / "docs" / "reference" / "messages.cddl").read_text(encoding="utf-8"))
IMAGE = ImageId(b"\1" * 32)
REMOVE = m.RemoveDir("/a/b", IMAGE, 7, (b"\2" * 64,))
REMOVED = m.RemovedImage(IMAGE, "/a/b", s.machine(1), "node", True)
BASE = m.BaseDirData(
    b"\1" * 32, b"\2" * 32, s.DIRS, removed={"v9": m.RemovedEntry(7, IMAGE, (b"\3" * 64,))}, kept={"v1": (Version(5, IMAGE),)}
)


class MessageTests(SynchronousTestCase):
    """What is written is read, and as it is documented."""

    def test_round_trip(self) -> None:
        """A node would not understand what another one of the same version says of a removal."""
        data = codec.encode_request(3, REMOVE)
        SCHEMA.validate_cbor(data)
        self.assertEqual(codec.decode(data), codec.RequestIn(3, REMOVE))
        for name, answer in (("RemoveDir", m.UploadAck(False, "stale_timestamp", {s.machine(1): "n"})), ("GetBaseDir", BASE)):
            data = codec.encode_response(3, name, answer)
            SCHEMA.validate_cbor(data)
            self.assertEqual(codec.decode(data), codec.ResponseIn(3, name, answer))
        data = codec.encode_notification(REMOVED)
        SCHEMA.validate_cbor(data)
        self.assertEqual(codec.decode(data), codec.NotificationIn(REMOVED))

    def test_nothing_new_without_need(self) -> None:
        """A program of another version would be sent fields that say nothing."""
        plain = replace(BASE, removed={}, kept={})
        self.assertEqual(set(cbor2.loads(codec.encode_response(1, "GetBaseDir", plain))[3]), {"config_hash", "keep_list_hash", "dirs"})

    def test_bad(self) -> None:
        """What a peer sends would come into memory, or into a file, in any form."""
        known = cbor2.loads(codec.encode_response(1, "GetBaseDir", BASE))[3]
        row = known["removed"]["v9"]
        bad: list[dict[str, Any]] = [
            {"removed": {"v9": {**row, "image": b"short"}}},
            {"removed": {"v9": {**row, "timestamp": -1}}},
            {"removed": {"v9": {**row, "signatures": [["ssh-ed25519", b"short"]]}}},
            {"removed": {"v9": {**row, "signatures": row["signatures"] * 1001}}},
            {"removed": {"v9": {"image": IMAGE, "timestamp": 1}}},
            {"removed": {"x" * 256: row}},
            {"kept": {"v1": [[1]]}},
            {"kept": {"v1": [[1, b"short"]]}},
            {"kept": {"v1": [[-1, IMAGE]]}},
            {"kept": {"v1": [[1, IMAGE]] * 1001}},
        ]
        for one in bad:  # such an entry is left out, the others count
            [(name, entries)] = one.items()
            good = {"removed": {"v8": row}, "kept": {"v0": [[1, IMAGE]]}}[name]
            found = codec.decode(cbor2.dumps([2, "GetBaseDir", 1, {**known, name: {**entries, **good}}]))
            assert isinstance(found, codec.ResponseIn)
            self.assertEqual(set(getattr(found.response, name)), set(good), one)
        for one in ({"removed": []}, {"kept": []}):
            with self.assertRaises(FormatError):
                codec.decode(cbor2.dumps([2, "GetBaseDir", 1, {**known, **one}]))

    @shows("A12")
    def test_signed_bytes(self) -> None:
        """The signature of an upload would remove it, or that of a removal would bring it back."""
        self.assertEqual(cbor2.loads(removal_bytes("/a/b", IMAGE, 7)), ["ciruela/remove", "/a/b", IMAGE, 7])
        self.assertEqual(cbor2.loads(signed_bytes("/a/b", IMAGE, 7)), ["/a/b", IMAGE, 7])
        for bad in (-1, 2**64):
            with self.assertRaises(ValueError):
                removal_bytes("/a/b", IMAGE, bad)
