"""The reference documentation of the messages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import cbor2
from pycddl import Schema, ValidationError
from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.bitfield import MASK_BYTES, MOST_CUTS
from ciruela.model.errors import FormatError
from ciruela.proto import codec
from ciruela.proto import messages as m
from ciruela.proto.forms import TEXT as ANY_TEXT
from ciruela.proto.table import EXCHANGES, FORMS, NOTIFICATIONS
from tests.proto import samples as s
from tests.proto.cddl import PLAIN, Reader, told

TEXT = (Path(__file__).parent.parent.parent / "docs" / "reference" / "messages.cddl").read_text(encoding="utf-8")
STATE_FIRST = "state-file = state\n" + TEXT

BAD = [
    [1, "GetBaseDir", 1, {}],
    [1, "GetBaseDir", -1, {"path": "/a"}],
    [1, "GetBaseDir", 1, {"path": "/a"}, 0],
    [1, "GetBaseDir", 1, {"path": "x" * 1025}],
    [1, "GetIndex", 1, {"id": b"short", "hint": None}],
    [1, "GetBlock", 1, {"hash": b"\1" * 32, "hint": ["/a/b", "/c"]}],
    [1, "AppendDir", 1, {"path": "/a/b", "image": b"\1" * 32, "timestamp": 1, "signatures": [["ssh-rsa", b"\1" * 64]]}],
    [1, "AppendDir", 1, {"path": "/a/b", "image": b"\1" * 32, "timestamp": 1.5, "signatures": []}],
    [2, "GetIndex", 1, {"data": None}],
    [2, "AppendDir", 1, {"accepted": True, "reject_reason": None, "hosts": None}],
    [2, "AppendDir", 1, {"accepted": 1, "reject_reason": None, "hosts": {}}],
    [2, "Error", 1, {"text": "no"}],
    [1, "GetBlocks", 1, {"path": "/a/b", "id": b"\1" * 32, "blocks": [-1, 1]}],
    [1, "GetShare", 1, {"id": b"\1" * 32, "missing": b"\1" * 31}],
    [1, "GetShare", 1, {"id": b"\1" * 32, "missing": b""}],
    [1, "GetShare", 1, {"id": b"\1" * 32, "missing": b"\1" * 288}],
    [2, "GetShare", 1, {"pieces": 5}],
    [1, "GetPieces", 1, {"id": b"\1" * 32, "wanted": b"\1" * 32}],
    [1, "GetPieces", 1, {"path": "/a/b", "id": b"\1" * 32, "wanted": b"\1" * 33}],
    [2, "GetPieces", 1, {"pieces": b"\1" * 8}],
    [1, "CheckUpload", 1, {"path": "/a/b", "image": b"\1" * 32, "timestamp": 1, "signatures": []}],
    [1, "CheckUpload", 1, {"path": "/a/b", "image": b"\1" * 32, "timestamp": 1, "signatures": [], "replace": 1}],
    [2, "CheckUpload", 1, {"accepted": True}],
    [2, "CheckUpload", 1, {"accepted": True, "machine_id": b"\1" * 16, "hostname": "n1", "free": -1}],
    [1, "GetBlocks", 1, {"path": "/a/b", "id": b"\1" * 32, "blocks": [1, 1], "packed": 1}],
    [1, "GetIndex", 1, {"id": b"\1" * 32, "packed": "yes"}],
    [2, "GetIndex", 1, {"data": b"frame", "packed": 1}],
    [2, "GetBlocks", 1, {"data": b"data"}],
    [2, "GetBlocks", 1, {"parts": ["text"]}],
    [2, "GetBlocks", 1, {"parts": [], "packed": [-1, 1]}],
    [1, "GetPathState", 1, {"servers": True}],
    [1, "GetPathState", 1, {"path": "/a/b", "servers": 1}],
    [1, "WithdrawUpload", 1, {"path": "/a/b"}],
    [1, "PushPull", 1, {"port": 0, "facts": []}],
    [1, "PushPull", 1, {"port": 5}],
    [2, "PushPull", 1, {"taken": 1, "facts": []}],
    [2, "GetPathState", 1, {"machine_id": b"\1" * 16, "hostname": "n", "epoch": 1}],
    [2, "GetPathState", 1, {"machine_id": b"\1" * 16, "hostname": "n", "epoch": 1, "taken": True, "committed": [1]}],
    [2, "GetPathState", 1, {"machine_id": b"\1" * 16, "hostname": "n", "epoch": 1, "taken": True, "servers": [{}]}],
    [2, "GetPathState", 1, {"machine_id": b"\1" * 16, "hostname": "n", "epoch": 1, "taken": True, "refused_orders": [b"\1" * 31]}],
    [2, "GetPathState", 1, {"machine_id": b"\1" * 16, "hostname": "n", "epoch": 1, "taken": True, "shared_ids": [[b"\1" * 16]]}],
    [2, "AppendDir", 1, {"accepted": True, "machine_id": b"short"}],
    [0, "ReceivedImage", {"id": b"\1" * 32, "path": "/a/b"}],
    [0, "HookResult", {"id": b"\1" * 32, "path": "/a/b", "machine_id": b"\1" * 16, "hostname": "n", "forwarded": True, "kind": "webhook"}],
]


class Documentation(SynchronousTestCase):
    def test_all_messages(self) -> None:
        """Who writes another client from the documentation must be understood."""
        schema = Schema(TEXT)
        vectors = [*s.REQUESTS, *s.RESPONSES, *s.NOTIFICATIONS]
        self.assertEqual(len(vectors), 21)
        for name in vectors:
            schema.validate_cbor(s.VECTORS[name])
        watched = m.BaseDirData(b"\1" * 32, b"\2" * 32, s.DIRS, {"v1": (s.machine(1),)})
        schema.validate_cbor(codec.encode_response(1, "GetBaseDir", watched))
        schema.validate_cbor(codec.encode_request(1, m.GetBlocks("/a/b", s.image(1), (1, 2, 7))))
        schema.validate_cbor(
            codec.encode_response(1, "GetBlocks", m.BlocksData((m.BlockPart(b"data"), m.BlockPart(b"frame", packed=True)), (7,)))
        )
        schema.validate_cbor(codec.encode_request(1, m.GetBlocks("/a/b", s.image(1), (1,), packed=True)))
        schema.validate_cbor(codec.encode_request(1, m.GetIndex(s.image(1), "/a/b", packed=True)))
        schema.validate_cbor(codec.encode_response(1, "GetIndex", m.IndexData(b"frame", packed=True)))
        schema.validate_cbor(codec.encode_request(1, m.CheckUpload("/a/b", True, s.image(1), s.image(2), 5, (b"\x55" * 64,))))
        for there, free_bytes in ((None, None), (s.image(1), 5)):
            answer = m.CheckData(False, "quota_exceeded", "why", there, there, free_bytes, s.machine(1), "n1", {s.machine(2): "n2"})
            schema.validate_cbor(codec.encode_response(1, "CheckUpload", answer))
        schema.validate_cbor(codec.encode_notification(s.HOOK_RESULT))
        for request in s.OWN_REQUESTS:
            schema.validate_cbor(codec.encode_request(1, request))
        for name, response in s.OWN_RESPONSES:
            schema.validate_cbor(codec.encode_response(1, name, response))
        for cuts in range(1, MOST_CUTS + 1):
            mask = b"\1" * MASK_BYTES * cuts
            schema.validate_cbor(codec.encode_request(1, m.GetShare(s.image(1), mask)))
            schema.validate_cbor(codec.encode_response(1, "GetShare", m.ShareData(mask)))
            schema.validate_cbor(codec.encode_request(1, m.GetPieces("/a/b", s.image(1), mask)))
            schema.validate_cbor(codec.encode_response(1, "GetPieces", m.PiecesData(mask)))

    def test_tolerance(self) -> None:
        """What the program tolerates is documented as allowed."""
        schema = Schema(TEXT)
        for message in (
            [1, "GetIndex", 1, {"id": b"\1" * 32, "news": [1, {"a": None}]}],
            [2, "GetIndexAt", 1, {}],
            [2, "AppendDir", 1, {"accepted": True}],
            [2, "GetBlocks", 1, {"parts": []}],
        ):
            data = cbor2.dumps(message)
            schema.validate_cbor(data)
            codec.decode(data)

    def test_refusals_agree(self) -> None:
        """The documentation must not allow what the program refuses."""
        schema = Schema(TEXT)
        for message in BAD:
            data = cbor2.dumps(message)
            self.assertRaises(FormatError, codec.decode, data)
            self.assertRaises(ValidationError, schema.validate_cbor, data)

    def test_state_file(self) -> None:
        """State files are described by the same words."""
        schema = Schema(STATE_FIRST)
        schema.validate_cbor(s.VECTORS["StateFile"])
        self.assertRaises(ValidationError, schema.validate_cbor, b"\xa0")


def message(kind: int, name: str, content: Any) -> Any:
    """The type of a message."""
    parts: list[Any] = [("is", kind), ("is", name), content]
    if kind:
        parts.insert(2, PLAIN["uint"])
    return ("array", tuple((1, 1, None, part) for part in parts))


class Table(SynchronousTestCase):
    """The documentation and the table say the same of each message: names, fields and their order, what may be missing, types, bounds."""

    def setUp(self) -> None:
        self.documented = Reader(TEXT)

    def compare(self, rule: str, expected: dict[str, Any]) -> None:
        found = {kind[1][1][3][1]: kind for kind in self.documented.rule(rule)}
        self.assertEqual(set(found), set(expected))
        for name, kind in expected.items():
            self.assertEqual(found[name], kind, name)

    def test_notifications(self) -> None:
        """Another client would wait for news in a form in which they never come."""
        self.compare("notification", {one.__name__: message(0, one.__name__, told(FORMS[one])) for one in NOTIFICATIONS})

    def test_requests(self) -> None:
        """Another client would ask in a form that is refused."""
        self.compare("request", {one.request.__name__: message(1, one.request.__name__, told(FORMS[one.request])) for one in EXCHANGES})

    def test_responses(self) -> None:
        """Another client would refuse what is answered."""
        expected = {one.request.__name__: message(2, one.request.__name__, told(FORMS[one.answer])) for one in EXCHANGES}
        self.compare("response", {**expected, "Error": message(2, "Error", told(ANY_TEXT))})

    def test_versions(self) -> None:
        """A request that the first implementation does not know would be sent to it, and never be answered."""
        versions = {one.request.__name__: one.version for one in EXCHANGES}
        expected = {(0, told_.__name__): version for told_, version in NOTIFICATIONS.items()}
        expected |= {(kind, name): version for kind in (1, 2) for name, version in versions.items()} | {(2, "Error"): 1}
        lines = re.findall(r'\[(\d), "(\w+)", .*?(?: ; ciruela\.v(\d))?$', TEXT, re.MULTILINE)
        self.assertEqual({(int(kind), name): int(version or 1) for kind, name, version in lines}, expected)

    def test_nothing_else_is_documented(self) -> None:
        """A rule that no message has any more would be implemented by others in vain."""
        self.documented.rule("message")
        self.assertEqual(self.documented.used, {*self.documented.rules, "message"})

    def test_a_difference_is_seen(self) -> None:
        """A reader that takes everything for the same would not notice what drifts."""
        for old, new in (
            ('"epoch": timestamp', '? "epoch": timestamp'),
            ('"epoch": timestamp', '"epoch": text'),
            ("[0*100 [", "[0*101 ["),
            ("; at most 1000", "; at most 999"),
            ('"port": 1..65535, ? "heard": uint / null', '? "heard": uint / null, "port": 1..65535'),
            ('? "heard": uint / null, "facts": [0*40 fact]', '? "heard": uint, "facts": [0*40 fact]'),
            ('? "servers": bool, ', ""),
            ("/ bytes .size 256", ""),
        ):
            self.assertIn(old, TEXT)
            changed = Reader(TEXT.replace(old, new))
            self.assertNotEqual(changed.rule("message"), self.documented.rule("message"), new)

    def test_the_table_has_all(self) -> None:
        """A message in the unions that is missing in the table could neither be sent nor read."""
        self.assertEqual(get_args(m.Request), tuple(one.request for one in EXCHANGES))
        self.assertEqual({*get_args(m.Response)}, {*(one.answer for one in EXCHANGES), m.Error})
        self.assertEqual(get_args(m.Notification), tuple(NOTIFICATIONS))
