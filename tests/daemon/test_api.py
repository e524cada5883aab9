"""The pages below ``/api/v1/``."""

import json
from dataclasses import replace

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.test.requesthelper import DummyRequest

from ciruela.daemon.api import MOST_WAITING, NodeApi
from ciruela.daemon.authority import FRESH_S, MOST_TRIED, Signers
from ciruela.daemon.pathstate import MOST, Refusals
from ciruela.daemon.status import NodeStatus
from ciruela.membership.packets import Header, MemberFact, Packet, encode_packets
from ciruela.model.errors import DiskError
from ciruela.model.hooks import HookKind, HookReport, HookState
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.versions import SigEntry
from ciruela.model.vpath import VPath
from ciruela.proto.messages import PushPull
from ciruela.web.pages import Pages
from tests.doubles.clock import HeapClock
from tests.proof import shows
from tests.scenarios.cluster import APP, START_MS, Client, Cluster, Image

SITE = Image(6, {"a": 300_000})
FINGERPRINT = "SHA256:one"


class Makers:
    """Key files with one key, which made everything."""

    def __init__(self):
        self.asked = []
        self.keys = (FINGERPRINT,)

    def __call__(self, names, signatures):
        self.asked.append(list(signatures))
        return succeed((self.keys, dict.fromkeys(signatures, FINGERPRINT) if self.keys else {}))


class ApiTests(SynchronousTestCase):
    """What the reading commands build on stays as it is documented."""

    def setUp(self):
        self.cluster = Cluster(3)
        self.cluster.run(10.0)
        Client(self.cluster, SITE).upload("/app/v1", self.cluster.addresses(1))
        self.cluster.run(10.0)
        self.makers = Makers()
        self.rooms = []
        node = self.cluster.nodes[1]
        self.api = NodeApi(node, Signers(self.makers, self.cluster.clock), self.room)
        self.pages = Pages(NodeStatus(node, list), self.api)

    def room(self, key):
        self.rooms.append(key)
        return fail(DiskError("/srv/logs: not mounted")) if key == "logs" else succeed((5000, 10_000, 300))

    def get(self, path, code=200):
        request = DummyRequest([])
        request.method, request.path = b"GET", path.encode()
        body = self.pages.render(request)
        body = body if isinstance(body, bytes) else b"".join(request.written)
        self.assertEqual(request.responseCode, code, body)
        return json.loads(body)

    def test_status(self):
        """A client could not tell one node from another, or whether its clock is right."""
        page = self.get("/api/v1/status")
        self.assertEqual((page["api"], page["hostname"], page["ready"], page["images"]), (1, "n1", True, 1))
        self.assertEqual(page["machine_id"], self.cluster.machine(1).hex())
        self.assertGreater(page["now_ms"], START_MS)

    @shows("K5.3", "K5.4")
    def test_what_is_wrong(self):
        """A failed hook, or a configuration with which it would not start again, would be seen in the log alone."""
        page = self.get("/api/v1/status")
        self.assertEqual((page["epoch_ms"], page["config"], page["failed_hooks"]), (START_MS, None, []))
        node = self.cluster.nodes[1]
        vpath, failed = VPath.parse("/app/v1"), HookReport(SITE.id, HookKind.COMMAND, HookState.FAILED, "exit status 1", 1, 5)
        node.hooks.reports[vpath] = {HookKind.COMMAND: failed}
        node.hooks.reports[VPath.parse("/app/v2")] = {HookKind.COMMAND: failed}
        self.api = NodeApi(node, Signers(self.makers, self.cluster.clock), self.room, lambda: {"ok": False})
        self.pages = Pages(NodeStatus(node, list), self.api)
        page = self.get("/api/v1/status")
        hook = {"kind": "on-commit", "message": "exit status 1", "state": "failed"}
        self.assertEqual(page["config"], {"ok": False})
        self.assertEqual(page["failed_hooks"], [{"path": "/app/v1", "image": SITE.id.hex(), **hook}])
        self.assertEqual(self.get("/api/v1/images/app/v1")["hooks"], [hook])
        self.assertEqual(self.get("/api/v1/images/app/v2")["hooks"], [])

    @shows("K1.4", "K1.5", "K4")
    def test_how_peers_are_reached(self):
        """A firewall, a list that lacks a node and a cloned disk would be seen in the log alone."""
        self.cluster.hub.close_udp(self.cluster.address(2), self.cluster.address(1))
        self.cluster.kill(3)
        self.cluster.run(70.0)
        header = Header(MachineId(b"s" * 16), 1, 0)
        facts = tuple(encode_packets(header, [MemberFact(header.sender, None, 1, "stranger", 0, 1, ("app",))]))
        self.cluster.nodes[1].gossip.pushed("192.0.2.7", PushPull(5, None, facts))
        page = self.get("/api/v1/peers")
        self.assertEqual(page["shared_ids"], [])
        rows = {row["name"]: row for row in page["peers"]}
        self.assertEqual({name: (row["reached"], row["configured"]) for name, row in rows.items()}, {
            "n2": ("tcp", True), "n3": (None, True), "stranger": (None, False),
        })  # fmt: skip
        self.assertLess(rows["n2"]["heard_s"], 10)
        self.assertGreater(rows["n2"]["udp_heard_s"], 60)
        self.assertEqual(rows["stranger"]["addresses"], ["192.0.2.7:5"])
        self.cluster.run(400.0)
        row = {row["name"]: row for row in self.get("/api/v1/peers")["peers"]}["n3"]
        self.assertEqual(
            (row["machine_id"], row["hostname"], row["dirs"], row["heard_s"]), (self.cluster.machine(3).hex(), "n3", ["app", "logs"], None)
        )
        self.assertNotIn("problems", self.get("/healthz"))
        node = self.cluster.nodes[1]
        node.gossip.cluster.heard(self.cluster.address(3), Packet(Header(node.context.me, 5, 0), ()), self.cluster.clock.seconds())
        [shared] = self.get("/api/v1/peers")["shared_ids"]
        self.assertEqual(shared, {"machine_id": node.context.me.hex(), "addresses": ["10.0.0.1:24783", "10.0.0.3:24783"]})
        health = self.get("/healthz")
        self.assertEqual(health["status"], "ok")
        self.assertIn("10.0.0.1:24783 and 10.0.0.3:24783", health["problems"][0])

    def test_peers(self):
        """Nobody could tell whose datagrams arrive where."""
        peers = self.get("/api/v1/peers")["peers"]
        self.assertEqual(next((one["name"], one["address"], one["dirs"]) for one in peers), ("n2", "10.0.0.2:24783", ["app", "logs"]))
        self.assertLess(peers[0]["heard_s"], 30)

    def test_dirs(self):
        """Free space would be hidden, looked up for everybody who asks, or tell where a directory is."""
        page = self.get("/api/v1/dirs")
        self.get("/api/v1/dirs/")
        app, logs = page["dirs"]
        self.assertEqual((app["key"], app["free_bytes"], app["reserve_bytes"], app["usable"], app["images"]), ("app", 5000, 300, True, 1))
        self.assertEqual((logs["append_only"], logs["usable"], logs["free_bytes"]), (True, False, None))
        self.assertEqual(self.rooms, ["app", "logs"])
        self.assertNotIn("/srv", json.dumps(page))

    def test_dir(self):
        """A user could not see what there is, and who signed it."""
        page = self.get("/api/v1/dirs/app")
        (version,) = page["versions"]
        self.assertEqual((version["path"], version["image"], version["state"]), ("/app/v1", SITE.id.hex(), "committed"))
        self.assertEqual([one["key"] for one in version["signatures"]], [FINGERPRINT])
        self.assertEqual(self.get("/api/v1/dirs/logs")["versions"], [])

    @shows("F3")
    def test_no_such_page(self):
        """A path that is none would be looked for, or break the page."""
        for path in (
            "/api/v1/",
            "/api/v1/dirs/nothing",
            "/api/v1/dirs/app/v1",
            "/api/v1/dirs/../etc",
            "/api/v1/dirs/%2e%2e",
            "/api/v1/%ff",
        ):
            self.get(path, 404)

    def test_image(self):
        """Nobody could tell how far a node is, or why it does not have an image."""
        page = self.get("/api/v1/images/app/v1")
        self.assertEqual((page["taken"], page["committed"]["image"], page["pending"], page["refused"]), (True, SITE.id.hex(), None, None))
        page = self.get("/api/v1/images/app/v2")
        self.assertEqual((page["taken"], page["committed"]), (True, None))
        self.assertFalse(self.get("/api/v1/images/other/v2")["taken"])
        self.assertFalse(self.get("/api/v1/images/app/a/b")["taken"])

    def test_image_on_its_way(self):
        """Progress would be invisible, or a failed upload without a reason."""
        self.cluster.hub.latency_s = 0.2
        other = Image(7, {"a": 20_000_000})
        client = Client(self.cluster, other)
        client.upload("/app/v2", self.cluster.addresses(1))
        self.cluster.run(30.0, until=lambda: len(client.given) > 60)
        pending = self.get("/api/v1/images/app/v2")["pending"]
        self.assertEqual((pending["image"], pending["phase"], pending["stalled"]), (other.id.hex(), "blocks", False))
        self.assertTrue(0 <= pending["done"] < 1)
        self.assertEqual([one["state"] for one in self.get("/api/v1/dirs/app")["versions"]], ["downloading", "committed"])
        self.cluster.nodes[1].refusals.note(VPath.parse("/app/v2"), other.id, "commit_error", rejected=False)
        refused = self.get("/api/v1/images/app/v2")["refused"]
        self.assertEqual((refused["image"], refused["reason"], refused["rejected"]), (other.id.hex(), "commit_error", False))

    def test_rejected(self):
        """A node that lacks a key would look as if the image were still on its way there."""

        class NoKeys:
            def verified(self, config, vpath, image, entries):
                return succeed({})

        uploads = self.cluster.nodes[1].uploads
        uploads.context = replace(uploads.context, authority=NoKeys())
        other = Image(7, {"a": 50_000})
        Client(self.cluster, other).upload("/app/v2", self.cluster.addresses(2))
        self.cluster.run(30.0, until=lambda: self.cluster.nodes[1].refusals.at(VPath.parse("/app/v2")) is not None)
        refused = self.get("/api/v1/images/app/v2")["refused"]
        self.assertEqual((refused["image"], refused["reason"], refused["rejected"]), (other.id.hex(), "signature_mismatch", True))

    @shows("I6")
    def test_clients_leave_no_trace(self):
        """Anybody who asks for uploads could fill what is remembered, and hide what matters."""
        Client(self.cluster, SITE).upload("/app/../x", self.cluster.addresses(1))
        other = Client(self.cluster, Image(8, {"a": 5}))
        other.upload("/app/v9", self.cluster.addresses(1), stamp=10**15)
        self.cluster.run(5.0)
        self.assertIsNone(self.cluster.nodes[1].refusals.at(VPath.parse("/app/v9")))

    def test_keys(self):
        """Nobody could tell which key is accepted where without trying it."""
        self.assertEqual(self.get("/api/v1/keys")["dirs"], {"app": [FINGERPRINT], "logs": [FINGERPRINT]})

    def test_fault(self):
        """A page that fails would hang, or show a file name to strangers."""

        class Broken:
            def find(self, parts):
                return fail(DiskError("/etc/ciruela/keys is gone") if parts == ("keys",) else ZeroDivisionError("x"))

        self.pages = Pages(NodeStatus(self.cluster.nodes[1], list), Broken())
        self.assertNotIn("/etc", json.dumps(self.get("/api/v1/keys", 503)))
        self.get("/api/v1/status", 503)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_reader_leaves(self):
        """Somebody who goes away before the page is ready would leave an error in the log each time."""
        waiting = Deferred()

        class Slow:
            def find(self, parts):
                return waiting

        request = DummyRequest([])
        request.method, request.path = b"GET", b"/api/v1/status"
        Pages(NodeStatus(self.cluster.nodes[1], list), Slow()).render(request)
        request.processingFailed(DiskError("gone"))
        waiting.callback({})
        self.assertEqual(request.written, [])

    @shows("I6")
    def test_disk_hangs(self):
        """Whoever asks again and again while a disk hangs would fill the memory."""
        self.api._room = lambda key: Deferred()
        asked = [self.api.find(("dirs",)) for _ in range(MOST_WAITING + 2)]
        self.failureResultOf(asked[-1], DiskError)
        self.assertNoResult(asked[-2])


class SignersTests(SynchronousTestCase):
    """Telling who signed what must cost little, however many ask."""

    def setUp(self):
        self.clock = HeapClock()
        self.makers = Makers()
        self.signers = Signers(self.makers, self.clock)
        self.asked = [("/app/v1", ImageId(bytes(32)), SigEntry(number, bytes(64))) for number in range(MOST_TRIED + 10)]

    def of(self, count, config=APP):
        return self.successResultOf(self.signers.of(config, self.asked[:count]))

    @shows("A15")
    def test_once(self):
        """Every look at a page would try all signatures anew."""
        keys, made = self.of(3)
        self.assertEqual((keys, set(made.values())), ((FINGERPRINT,), {FINGERPRINT}))
        self.of(3)
        self.assertEqual([len(one) for one in self.makers.asked], [3])
        self.clock.advance(FRESH_S)
        self.of(3)
        self.assertEqual([len(one) for one in self.makers.asked], [3, 0])

    @shows("A15")
    def test_many(self):
        """A page of thousands of images would keep a thread busy for minutes."""
        self.of(1)
        _, made = self.of(len(self.asked))
        self.assertEqual(len(made), MOST_TRIED + 1)
        self.assertEqual(max(map(len, self.makers.asked)), MOST_TRIED)
        self.assertEqual(len(self.of(len(self.asked))[1]), len(self.asked))

    @shows("I6")
    def test_keys_hang(self):
        """The same for the files of keys."""
        signers = Signers(lambda names, asked: Deferred(), self.clock)
        waiting = [signers.of(APP, ()) for _ in range(MOST_WAITING + 2)]
        self.failureResultOf(waiting[-1], DiskError)
        self.assertNoResult(waiting[-2])

    def test_key_removed(self):
        """A key that was removed would still be shown as one that may upload."""
        self.of(2)
        self.makers.keys = ()
        self.clock.advance(FRESH_S)
        keys, made = self.of(2)
        self.assertEqual(keys, ())
        self.assertEqual(set(made.values()), {None})

    def test_directories_apart(self):
        """The keys of one directory would be shown for another."""
        self.of(1)
        self.makers.keys = ("SHA256:two",)
        self.assertEqual(self.of(0, replace(APP, key="cfg"))[0], ("SHA256:two",))


class RefusalsTests(SynchronousTestCase):
    """Why an image did not come."""

    def test_bounded(self):
        """Peers could fill the memory with refusals."""
        refusals = Refusals(HeapClock())
        for number in range(MOST + 5):
            refusals.note(VPath(("app", f"v{number}")), ImageId(bytes(32)), "no_space", rejected=False)
        self.assertIsNone(refusals.at(VPath(("app", "v4"))))
        last = VPath(("app", f"v{MOST + 4}"))
        self.assertIsNotNone(refusals.at(last))
        refusals.forget(last)
        self.assertIsNone(refusals.at(last))
