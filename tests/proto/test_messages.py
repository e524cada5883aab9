"""Bounds of single fields, which stand beside the fields."""

from __future__ import annotations

import cbor2
from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.errors import FormatError
from ciruela.proto import codec
from ciruela.proto.forms import MAX_BULK
from tests.proof import shows


class BoundTests(SynchronousTestCase):
    """No message makes more of itself than its field may have."""

    @shows("A15", "A24")
    def test_bad_parts(self) -> None:
        """An answer with parts that are none would end in the middle of a download, or cost a million objects."""
        for bad in (b"data", None, ["text"], [None], {}, [b""], [b"x"] * (MAX_BULK + 1)):
            self.assertRaises(FormatError, codec.decode, cbor2.dumps([2, "GetBlocks", 1, {"parts": bad}]))
        for bad in (5, True, [0], [0, MAX_BULK + 1], [1, 1, 0, 1]):
            self.assertRaises(FormatError, codec.decode, cbor2.dumps([2, "GetBlocks", 1, {"parts": [], "packed": bad}]))
        for bad in (1, None, "yes"):
            asked = {"path": "/a/b", "id": b"\1" * 32, "blocks": [0, 1], "packed": bad}
            self.assertRaises(FormatError, codec.decode, cbor2.dumps([1, "GetBlocks", 1, asked]))
