"""Messages to bytes and back."""

from __future__ import annotations

import hashlib
import random

import cbor2
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ciruela.model.bitfield import MOST_CUTS
from ciruela.model.errors import FormatError
from ciruela.model.ids import ImageId, MachineId, Server
from ciruela.model.versions import SigEntry, State
from ciruela.proto import codec
from ciruela.proto import messages as m
from tests.proof import shows
from tests.proto import samples as s

QUICK = settings(derandomize=True, deadline=None, database=None, max_examples=60)


class Vectors(SynchronousTestCase):
    def test_requests(self) -> None:
        """Bytes that differ from the reference's would not be understood by its daemons, or be signed differently."""
        for name, (number, request) in s.REQUESTS.items():
            self.assertEqual(codec.encode_request(number, request).hex(), s.VECTORS[name].hex(), name)
            self.assertEqual(codec.decode(s.VECTORS[name]), codec.RequestIn(number, request), name)

    def test_responses(self) -> None:
        """An answer that the reference's client cannot read looks to its user as a dead server."""
        for name, (number, asked, response) in s.RESPONSES.items():
            self.assertEqual(codec.encode_response(number, asked, response).hex(), s.VECTORS[name].hex(), name)
            self.assertEqual(codec.decode(s.VECTORS[name]), codec.ResponseIn(number, asked, response), name)

    def test_notifications(self) -> None:
        """Without them a client never learns that its upload is done."""
        for name, notification in s.NOTIFICATIONS.items():
            self.assertEqual(codec.encode_notification(notification).hex(), s.VECTORS[name].hex(), name)
            self.assertEqual(codec.decode(s.VECTORS[name]), codec.NotificationIn(notification), name)

    def test_own(self) -> None:
        """What our own programs tell each other would not be understood."""
        for request in s.OWN_REQUESTS:
            self.assertEqual(codec.decode(codec.encode_request(1, request)), codec.RequestIn(1, request))
        for name, response in s.OWN_RESPONSES:
            self.assertEqual(codec.decode(codec.encode_response(1, name, response)), codec.ResponseIn(1, name, response))

    def test_own_bounds(self) -> None:
        """A peer could fill the memory with what it pushes."""
        for facts in ([5], ["text"], [b"x" * 1401], [b"x"] * 41):
            self.assertRaises(FormatError, codec.decode, cbor2.dumps([1, "PushPull", 1, {"port": 5, "facts": facts}]))
        self.assertRaises(FormatError, codec.decode, cbor2.dumps([2, "PushPull", 1, {"taken": True, "facts": [b"x"] * 701}]))
        state = {"machine_id": b"\1" * 16, "hostname": "n", "epoch": 1, "taken": True}
        codec.decode(cbor2.dumps([2, "GetPathState", 1, state]))
        server = {"name": "n", "addresses": []}
        for bad in (
            {"servers": [server] * 2001},
            {"servers": [{"name": "x" * 256}]},
            {"servers": [server | {"addresses": ["x"] * 17}]},
            {"servers": [server | {"machine_id": b"short"}]},
            {"shared_ids": [[b"\1" * 16, []]] * 101},
            {"committed": [1]},
            {"refused": [b"\1" * 32]},
        ):
            self.assertRaises(FormatError, codec.decode, cbor2.dumps([2, "GetPathState", 1, state | bad]))

    def test_hook_results(self) -> None:
        """A client would never learn how a hook ended."""
        data = codec.encode_notification(s.HOOK_RESULT)
        self.assertEqual(codec.decode(data), codec.NotificationIn(s.HOOK_RESULT))
        known = cbor2.loads(data)[2]
        for bad in ({"state": 1}, {"kind": b"webhook"}, {"message": "x" * 5000}, {"hostname": "x" * 300}, {"forwarded": 1}):
            self.assertRaises(FormatError, codec.decode, cbor2.dumps([0, "HookResult", known | bad]))
        for missing in known:
            rest = {name: value for name, value in known.items() if name != missing}
            self.assertRaises(FormatError, codec.decode, cbor2.dumps([0, "HookResult", rest]))

    def test_state_file(self) -> None:
        """A state that cannot be read makes a whole image invisible after an upgrade."""
        self.assertEqual(codec.encode_state(s.V1), s.VECTORS["StateFile"])
        self.assertEqual(codec.decode_state(s.VECTORS["StateFile"]), s.V1)

    def test_base_dir_hash(self) -> None:
        """Nodes that hash the same list differently reconcile for ever."""
        data = codec.encode_dirs({"v1": s.V1, "v0": s.V0})
        self.assertEqual(data, s.VECTORS["BaseDirHashPreimage"])
        self.assertEqual(
            hashlib.blake2b(data, digest_size=32).hexdigest(), "69fe677de752c7d1eb919ad08c6c68242b11788c01730e3d32ddeb3dd4eff0d4"
        )
        self.assertEqual(codec.encode_dirs({}), s.VECTORS["EmptyBaseDirPreimage"])

    def test_every_vector_is_used(self) -> None:
        """A vector that no test reads protects nobody."""
        others = {"StateFile", "BaseDirHashPreimage", "EmptyBaseDirPreimage"}
        self.assertEqual(set(s.VECTORS), {*s.REQUESTS, *s.RESPONSES, *s.NOTIFICATIONS, *others})

    def test_watches_of_ours(self) -> None:
        """A client that waits at another node hears of the arrival only through ``watches``; ``pending`` tells what nobody can give yet."""
        answer = m.BaseDirData(b"\1" * 32, b"\2" * 32, {}, {"v1": (s.machine(1), s.machine(2))}, ("v1", "v2"))
        data = codec.encode_response(1, "GetBaseDir", answer)
        self.assertEqual(codec.decode(data), codec.ResponseIn(1, "GetBaseDir", answer))
        self.assertEqual(list(cbor2.loads(data)[3]), ["config_hash", "keep_list_hash", "dirs", "watches", "pending"])


class BulkTests(SynchronousTestCase):
    """Many blocks in one answer."""

    def test_round_trip(self) -> None:
        """Blocks would be asked for, and given, under other numbers than those that they have."""
        for numbers in ((), (0,), (0, 1, 2), (5, 7, 8, 9, 1 << 40), tuple(range(0, 2048, 2))):
            for packed in (False, True):
                request = m.GetBlocks("/dir1/a/v1", s.image(1), numbers, packed)
                self.assertEqual(codec.decode(codec.encode_request(9, request)), codec.RequestIn(9, request))
            for parts in (
                (),
                (m.BlockPart(b"z"),),
                (m.BlockPart(b"x" * 300, packed=True), m.BlockPart(b"x" * 70_000), m.BlockPart(b"y", packed=True)),
            ):
                answer = m.BlocksData(parts, numbers)
                self.assertEqual(codec.decode(codec.encode_response(9, "GetBlocks", answer)), codec.ResponseIn(9, "GetBlocks", answer))

    def test_long_bytes_elsewhere(self) -> None:
        """They would be taken for a part, and every part behind it for the one before."""
        good = codec.encode_response(9, "GetBlocks", m.BlocksData((m.BlockPart(b"x" * 5000), m.BlockPart(b"y" * 70_000))))
        self.assertIsInstance(codec.decode(good), codec.ResponseIn)
        for change in (
            {"lacks": b"l" * 5000},
            {"more": b"m" * 5000},
            {"parts": [b"x" * 5000, b""]},
            {"parts": [b""]},
            {"parts": b"x" * 5000},
        ):
            kind, name, number, value = cbor2.loads(good)
            with self.assertRaises(codec.BadMessage):
                codec.decode(cbor2.dumps([kind, name, number, value | change]))

    def test_parts_are_not_copied(self) -> None:
        """A megabyte would be copied for each answer once more."""
        data = bytearray(codec.encode_response(9, "GetBlocks", m.BlocksData((m.BlockPart(b"x" * 5000),))))
        answer = codec.decode(data)
        assert isinstance(answer, codec.ResponseIn) and isinstance(answer.response, m.BlocksData)
        data[-1:] = b"y"
        self.assertEqual(bytes(answer.response.parts[0].data), b"x" * 4999 + b"y")

    def test_shares(self) -> None:
        """A node would take what was promised to another."""
        for mask in (bytes(32), b"\1" * 64, b"\xff" * 256):
            request, answer = m.GetShare(s.image(1), mask), m.ShareData(mask)
            self.assertEqual(codec.decode(codec.encode_request(9, request)), codec.RequestIn(9, request))
            self.assertEqual(codec.decode(codec.encode_response(9, "GetShare", answer)), codec.ResponseIn(9, "GetShare", answer))

    def test_news(self) -> None:
        """A node would wait for other pieces than those that it lacks."""
        for mask in (bytes(32), b"\1" * 64, b"\xff" * 256):
            request, answer = m.GetPieces("/dir1/a/v1", s.image(1), mask), m.PiecesData(mask)
            self.assertEqual(codec.decode(codec.encode_request(9, request)), codec.RequestIn(9, request))
            self.assertEqual(codec.decode(codec.encode_response(9, "GetPieces", answer)), codec.ResponseIn(9, "GetPieces", answer))

    def test_checks(self) -> None:
        """A dry run would tell of another upload than the one that was meant, or of another answer."""
        for replace, old in ((False, None), (True, None), (True, s.image(2))):
            request = m.CheckUpload("/dir1/a/v1", replace, s.image(1), old, 1_700_000_000_000, (b"\x55" * 64,))
            self.assertEqual(codec.decode(codec.encode_request(9, request)), codec.RequestIn(9, request))
        for answer in (
            m.CheckData(True, None, "", None, None, None, s.machine(1), "n1"),
            m.CheckData(False, "already_exists", "why", s.image(1), s.image(2), 1 << 50, s.machine(1), "n1", {s.machine(2): "n2"}),
        ):
            self.assertEqual(codec.decode(codec.encode_response(9, "CheckUpload", answer)), codec.ResponseIn(9, "CheckUpload", answer))

    @shows("A24")
    def test_bad_checks(self) -> None:
        """A node that answers with something else would end the client with a traceback."""
        good = {"accepted": True, "machine_id": b"\1" * 16, "hostname": "n1"}
        codec.decode(cbor2.dumps([2, "CheckUpload", 1, good]))
        for change in (
            {"free": -1},
            {"free": 1 << 64},
            {"there": b"short"},
            {"coming": 5},
            {"detail": b""},
            {"machine_id": b""},
            {"hostname": 1},
        ):
            self.assertRaises(FormatError, codec.decode, cbor2.dumps([2, "CheckUpload", 1, good | change]))
        wish = {"path": "/a/b", "image": b"\1" * 32, "timestamp": 1, "signatures": []}
        self.assertRaises(FormatError, codec.decode, cbor2.dumps([1, "CheckUpload", 1, wish]))
        self.assertRaises(FormatError, codec.decode, cbor2.dumps([1, "CheckUpload", 1, wish | {"replace": 1}]))

    @shows("A24")
    def test_bad_masks(self) -> None:
        """A mask of any size could come, to be looked at bit by bit."""
        for bad in (b"", b"\0" * 31, b"\0" * 33, b"\0" * (32 * MOST_CUTS + 32), 0, None):
            self.assertRaises(FormatError, codec.decode, cbor2.dumps([1, "GetShare", 1, {"id": b"\1" * 32, "missing": bad}]))
            self.assertRaises(FormatError, codec.decode, cbor2.dumps([2, "GetShare", 1, {"pieces": bad}]))
            wanted = {"path": "/a/b", "id": b"\1" * 32, "wanted": bad}
            self.assertRaises(FormatError, codec.decode, cbor2.dumps([1, "GetPieces", 1, wanted]))
            self.assertRaises(FormatError, codec.decode, cbor2.dumps([2, "GetPieces", 1, {"pieces": bad}]))

    def test_bad_numbers(self) -> None:
        """A request of a few bytes would make a node count to two to the power of 64, or read a block a thousand times."""
        bad: tuple[object, ...] = (
            [0],
            [0, 0],
            [0, 1025],
            [0, 1024, 2000, 1],
            [5, 2, 6, 1],
            [5, 1, 4, 1],
            [0, 1 << 63],
            [-1, 1],
            [0.5, 1],
            {},
            5,
        )
        for blocks in bad:
            data = cbor2.dumps([1, "GetBlocks", 1, {"path": "/a/b", "id": b"\1" * 32, "blocks": blocks}])
            self.assertRaises(FormatError, codec.decode, data)
        for lacks in bad:
            data = cbor2.dumps([2, "GetBlocks", 1, {"parts": [], "lacks": lacks}])
            self.assertRaises(FormatError, codec.decode, data)
        self.assertRaises(FormatError, codec.decode, cbor2.dumps([2, "GetBlocks", 1, {"lacks": []}]))


def append(**changes: object) -> bytes:
    params = {"path": "/dir1/a/v1", "image": b"\x11" * 32, "timestamp": s.T, "signatures": [["ssh-ed25519", b"\x55" * 64]]}
    params.update(changes)
    return cbor2.dumps([1, "AppendDir", 1, {key: value for key, value in params.items() if value is not ...}])


def ack(**changes: object) -> bytes:
    params = {"accepted": True, "reject_reason": None, "hosts": {b"\x22" * 16: "node2"}}
    params.update(changes)
    return cbor2.dumps([2, "AppendDir", 1, {key: value for key, value in params.items() if value is not ...}])


class Tolerance(SynchronousTestCase):
    """Section 3.3 row by row: what a message of another version may look like."""

    def accepted(self, data: bytes, value: object) -> None:
        self.assertEqual(codec.decode(data), value)

    def refused(self, data: bytes) -> FormatError:
        return self.assertRaises(FormatError, codec.decode, data)

    def test_unknown_fields(self) -> None:
        """A newer program could not add a field."""
        self.accepted(append(extra={"a": [1, {"b": b"c"}]}), codec.RequestIn(*s.REQUESTS["AppendDir"]))

    def test_missing_optional_fields(self) -> None:
        """The reference leaves nothing out, others do."""
        self.accepted(ack(reject_reason=..., hosts=...), codec.ResponseIn(1, "AppendDir", m.UploadAck(True, None)))
        self.accepted(cbor2.dumps([1, "GetIndex", 1, {"id": b"\1" * 32}]), codec.RequestIn(1, m.GetIndex(s.image(1), None)))
        self.accepted(cbor2.dumps([1, "GetBlock", 1, {"hash": s.BLOCK}]), codec.RequestIn(1, m.GetBlock(s.BLOCK, None)))
        self.accepted(cbor2.dumps([2, "GetIndexAt", 1, {}]), codec.ResponseIn(1, "GetIndexAt", m.IndexAtData(None)))
        replace = {"path": "/a/b", "image": b"\1" * 32, "timestamp": 1, "signatures": []}
        self.accepted(cbor2.dumps([1, "ReplaceDir", 1, replace]), codec.RequestIn(1, m.ReplaceDir("/a/b", s.image(1), None, 1, ())))

    def test_name_of_nobody(self) -> None:
        """A client would count a server under a name that belongs to no machine."""
        nobody, somebody = m.UploadAck(True, None), m.UploadAck(True, None, {}, s.machine(1), "")
        for machine in (..., None):
            self.accepted(ack(hosts={}, hostname="n1", machine_id=machine), codec.ResponseIn(1, "AppendDir", nobody))
        self.refused(ack(hostname=1))
        for said, fields in ((m.UploadAck(True, None, hostname="n1"), []), (somebody, ["machine_id", "hostname"])):
            data = codec.encode_response(1, "AppendDir", said)
            self.assertEqual(list(cbor2.loads(data)[3]), ["accepted", "reject_reason", "hosts", *fields])
        self.accepted(data, codec.ResponseIn(1, "AppendDir", somebody))

    def test_missing_other_fields(self) -> None:
        """Half a wish must not be carried out."""
        for name in ("path", "image", "timestamp", "signatures"):
            self.assertIn(name, str(self.refused(append(**{name: ...}))))
        self.refused(ack(accepted=...))

    def test_order_and_byte_keys(self) -> None:
        """Order and spelling of field names are an encoder's own business."""
        value = {b"hint": None, "id": b"\1" * 32}
        self.accepted(cbor2.dumps([1, "GetIndex", 1, value]), codec.RequestIn(1, m.GetIndex(s.image(1), None)))

    def test_duplicate_fields(self) -> None:
        """Two paths in one wish: signer and server could each read another."""
        self.refused(bytes.fromhex("84016a4765744261736544697201a2") + b"\x64path\x62/a" + b"\x64path\x62/b")
        self.refused(cbor2.dumps([1, "GetBaseDir", 1, {"path": "/a", b"path": "/b"}]))

    def test_null_where_there_must_be_something(self) -> None:
        """Null for data would be written to a disk as an empty file."""
        self.refused(ack(hosts=None))
        self.refused(cbor2.dumps([2, "GetIndex", 1, {"data": None}]))
        self.refused(cbor2.dumps([2, "GetBlock", 1, {"data": None}]))

    def test_vpath_as_bytes(self) -> None:
        """The reference reads it, so some client may send it."""
        self.accepted(append(path=b"/dir1/a/v1"), codec.RequestIn(*s.REQUESTS["AppendDir"]))
        self.refused(append(path=b"/\xff"))
        self.refused(cbor2.dumps([1, "GetBlock", 1, {"hash": s.BLOCK, "hint": ["/a/b", b"/x", 0]}]))

    def test_lengths(self) -> None:
        """Ids of other lengths would be compared, logged and turned into file names."""
        self.refused(append(image=b""))
        self.refused(append(image=b"\1" * 31))
        self.refused(append(signatures=[["ssh-ed25519", b"\1" * 63]]))
        self.refused(ack(hosts={b"\1" * 15: "a"}))
        self.refused(cbor2.dumps([1, "GetBlock", 1, {"hash": b"\1" * 33}]))

    @shows("A23", "A24", "F13")
    def test_types(self) -> None:
        """A true where a number is due, a number where a text is due."""
        self.refused(append(timestamp=True))
        self.refused(append(timestamp=-1))
        self.refused(append(timestamp=1.0))
        self.refused(append(timestamp=2**64))
        self.refused(append(path=7))
        self.refused(append(image="1" * 32))
        self.refused(append(image=[1] * 32))
        self.refused(ack(accepted=1))
        self.refused(ack(hosts={"22" * 16: "a"}))
        self.refused(cbor2.dumps([1, "GetBaseDir", 1, ["/a"]]))
        self.refused(cbor2.dumps([1, "GetBaseDir", 1, {0: "/a"}]))

    @shows("A15")
    def test_signatures(self) -> None:
        """One signature that is not understood spoils the message, as at the reference."""
        self.refused(append(signatures=[["ssh-rsa", b"\1" * 64]]))
        self.refused(append(signatures=[["ssh-ed25519", b"\1" * 64, 0]]))
        wish = codec.decode(append(signatures=[]))
        assert isinstance(wish, codec.RequestIn) and isinstance(wish.request, m.AppendDir)
        self.assertEqual(wish.request.signatures, ())

    @shows("K7.4", "A15")
    def test_more_keys_than_are_looked_at(self) -> None:
        """A client of another version with many keys in its agent could upload nothing: its message would be malformed."""
        offered = [["ssh-ed25519", bytes([number]) * 64] for number in range(17)]
        wish = codec.decode(append(signatures=offered))
        assert isinstance(wish, codec.RequestIn)
        assert isinstance(wish.request, m.AppendDir)
        self.assertEqual(wish.request.signatures, tuple(bytes([number]) * 64 for number in range(16)))

    @shows("A15", "F11")
    def test_long_lists(self) -> None:
        """A server that names a thousand addresses for each of its peers would fill the memory of whoever asks."""
        for most, fits in ((m.MOST_ADDRESSES, True), (m.MOST_ADDRESSES + 1, False)):
            server = Server("n1", None, tuple(f"10.0.0.{number}:24783" for number in range(most)), None)
            data = codec.encode_response(1, "GetPathState", m.PathStateData(MachineId(b"\1" * 16), "n2", 1, True, servers=(server,)))
            if fits:
                self.assertIsInstance(codec.decode(data), codec.ResponseIn)
            else:
                self.refused(data)

    @shows("A23", "A24", "F13")
    def test_limits(self) -> None:
        """Each of these costs memory or time that a stranger could ask for."""
        self.accepted(append(path="/" + "a" * 1023), codec.RequestIn(1, m.AppendDir("/" + "a" * 1023, s.image(0x11), s.T, (s.SIGNATURE,))))
        self.refused(append(path="/" + "a" * 1024))
        self.refused(append(path="/" + "ü" * 512))
        self.refused(append(signatures=[["ssh-ed25519", b"\1" * 64]] * 1001))
        self.refused(append(extra=[0] * 256))
        many = {number.to_bytes(16, "big"): "n" for number in range(1000)}
        self.accepted(ack(hosts=many), codec.ResponseIn(1, "AppendDir", m.UploadAck(True, None, many)))  # type: ignore[arg-type]
        self.refused(ack(hosts={number.to_bytes(16, "big"): "n" for number in range(1001)}))
        self.refused(ack(hosts={b"\1" * 16: "n" * 256}))
        self.refused(cbor2.dumps([1, "GetBlock", 1, {"hash": s.BLOCK, "hint": ["/a/b", "/" + "x" * 4096, 0]}]))
        self.refused(cbor2.dumps([2, "Error", 1, "x" * 4097]))

    def test_a_large_base_dir(self) -> None:
        """A directory with thousands of versions must still be reconciled."""
        dirs = {f"v{number:05}": s.V1 for number in range(5000)}
        answer = m.BaseDirData(b"\1" * 32, b"\2" * 32, dirs)
        self.accepted(codec.encode_response(1, "GetBaseDir", answer), codec.ResponseIn(1, "GetBaseDir", answer))

    def test_other_forms(self) -> None:
        """Trailing bytes, tags, other envelopes."""
        good = s.VECTORS["GetBaseDir"]
        self.refused(good + b"\0")
        self.refused(b"\xd9\xd9\xf7" + good)
        self.refused(cbor2.dumps([1, "GetBaseDir", 1, {"path": "/a"}, 0]))
        self.refused(cbor2.dumps([3, "GetBaseDir", 1, {"path": "/a"}]))
        self.refused(cbor2.dumps([1, "GetBaseDir", -1, {"path": "/a"}]))
        self.refused(cbor2.dumps([0, "PublishImage", 1, {"id": b"\1" * 32}]))
        self.refused(cbor2.dumps([1, "G" * 65, 1, {}]))
        self.refused(cbor2.dumps([2, "GetBlock", 1, {"data": "text"}]))
        self.refused(s.VECTORS["GetBlockResponse"] + b"\0")
        self.refused(s.VECTORS["GetBlockResponse"][:-1])
        self.refused(b"")

    def test_non_shortest_integers(self) -> None:
        """Allowed by the reference, also for ids."""
        self.accepted(
            bytes.fromhex("84016a476574426173654469721b0000000000000007a164") + b"path\x62/a", codec.RequestIn(7, m.GetBaseDir("/a"))
        )

    def test_unknown_names(self) -> None:
        """A newer program may say what we do not know; a request has to be refused, or its sender waits for ever."""
        self.assertEqual(codec.decode(cbor2.dumps([0, "News", {"a": 1.5}])), codec.Ignored("'News' is not known here"))
        self.assertEqual(codec.decode(cbor2.dumps([1, "GetNews", 9, {}])), codec.Ignored("'GetNews' is not known here", 9))
        self.refused(cbor2.dumps([2, "GetNews", 9, {}]))

    def test_who_suffers(self) -> None:
        """A bad answer must fail its request at once, a bad request must be answered."""
        fault = self.refused(cbor2.dumps([2, "GetBlock", 9, {}]))
        assert isinstance(fault, codec.BadMessage)
        self.assertEqual((fault.request_id, fault.response_id), (None, 9))
        fault = self.refused(cbor2.dumps([1, "GetBlock", 9, {}]))
        assert isinstance(fault, codec.BadMessage)
        self.assertEqual((fault.request_id, fault.response_id), (9, None))


class Writing(SynchronousTestCase):
    def test_wrong_kind_of_answer(self) -> None:
        """A slip in our own program would make the other side close the connection."""
        self.assertRaises(TypeError, codec.encode_response, 1, "GetIndex", m.BlockData(b""))

    def test_wrong_kind_of_message(self) -> None:
        """A slip in our own program would be sent as nonsense."""
        self.assertRaises(TypeError, codec.encode_request, 1, m.BlockData(b""))

    def test_data_comes_last(self) -> None:
        """An index of 100 MiB would be copied for everybody who asks for it, or follow where something else is due."""
        for packed in (False, True):
            index = m.IndexData(b"index", packed)
            parts = codec.encode_answer(9, "GetIndex", index)
            self.assertEqual(b"".join(parts), codec.encode_response(9, "GetIndex", index))
            self.assertIs(parts[1], index.data)

    def test_long_error_is_cut(self) -> None:
        """An error text that is too long to be read would say nothing at all."""
        found = codec.decode(codec.encode_response(1, "GetIndex", m.Error("ü" * 4000)))
        assert isinstance(found, codec.ResponseIn) and isinstance(found.response, m.Error)
        self.assertEqual(found.response.text, "ü" * 2048)

    def test_state_order(self) -> None:
        """The order of signatures enters the hash of a base dir."""
        late, early = SigEntry(2, b"\1" * 64), SigEntry(1, b"\2" * 64)
        data = codec.encode_state(State(s.image(1), (late, early, late)))
        self.assertEqual(codec.decode_state(data), State(s.image(1), (early, late)))

    def test_bad_state_files(self) -> None:
        """A damaged file must be a reported fault, never an exception nobody expects."""
        for data in (b"", b"\xa0", b"\0", cbor2.dumps({"image": b"\1" * 32, "signatures": [[1]]}), s.VECTORS["StateFile"] + b"\0"):
            self.assertRaises(FormatError, codec.decode_state, data)

    @QUICK
    @given(st.integers(0, 2**64 - 1), st.sampled_from((0, 1, 23, 24, 255, 256, 65535, 65536, 32768)))
    def test_blocks(self, number: int, size: int) -> None:
        """Blocks travel by a path of their own through the code; it must write what the plain one would."""
        data = codec.encode_response(number, "GetBlock", m.BlockData(b"b" * size))
        self.assertEqual(data, cbor2.dumps([2, "GetBlock", number, {"data": b"b" * size}]))
        self.assertEqual(codec.decode(data), codec.ResponseIn(number, "GetBlock", m.BlockData(b"b" * size)))

    @QUICK
    @given(
        st.integers(0, 2**64 - 1),
        st.text(max_size=100),
        st.binary(min_size=32, max_size=32),
        st.lists(st.binary(min_size=64, max_size=64), max_size=16),
        st.none() | st.binary(min_size=32, max_size=32),
    )
    def test_wishes_come_back(self, number: int, path: str, image: bytes, signatures: list[bytes], old: bytes | None) -> None:
        """Whatever a client may wish has to arrive as it was signed."""
        wish = m.ReplaceDir(path, ImageId(image), None if old is None else ImageId(old), number, tuple(signatures))
        self.assertEqual(codec.decode(codec.encode_request(number, wish)), codec.RequestIn(number, wish))


class Malformed(SynchronousTestCase):
    @shows("F13", "I8")
    def test_mutations(self) -> None:
        """One exception of another kind ends the connection of an innocent, or the daemon's duty that read it."""
        rng = random.Random(11)
        seeds = list(s.VECTORS.values())
        refused = 0
        for _ in range(20_000):
            data = bytearray(rng.choice(seeds))
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(len(data))] = rng.choice((rng.randrange(256), 0x1B, 0x7F, 0x9B, 0xF6, 0xFF, 0x00, 0x40, 0x60, 0xA0))
            if rng.random() < 0.2:
                del data[rng.randrange(len(data)) :]
            try:
                codec.decode(bytes(data))
            except FormatError:
                refused += 1
        self.assertGreater(refused, 5_000)
