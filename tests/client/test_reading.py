"""``ls``, ``status`` and ``doctor`` over pages that are told; and which nodes they ask."""

from __future__ import annotations

import json
import random
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client import doctor as checks
from ciruela.client.contacts import AT_ONCE, RunContext
from ciruela.client.context import AppContext, make_display
from ciruela.client.doctor import Finding, Level, doctor
from ciruela.client.errors import CommandError
from ciruela.client.ls import ls
from ciruela.client.options.reading import DoctorOptions, LsOptions, StatusOptions
from ciruela.client.options.removing import PathTarget
from ciruela.client.options.signing import ClusterNames
from ciruela.client.options.table import parse
from ciruela.client.pathview import claimed_signers, levels_of
from ciruela.client.removing import seen
from ciruela.client.status import status
from ciruela.client.survey import MOST_NODES, ClusterView, NoPage, Survey, SurveyedNode
from ciruela.interfaces import Address
from ciruela.keys.public import PublicKey
from ciruela.keys.signed import signed_bytes
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.model.ids import ImageId
from ciruela.model.versions import SigEntry, State
from ciruela.model.vpath import VPath
from ciruela.proto.messages import BaseDirData, GetBaseDir, Request, Response
from tests.client.test_commands import Output, at_once
from tests.doubles.clock import HeapClock
from tests.proof import shows
from tests.scenarios.cluster import KEY

V1, V2 = "aa" * 32, "bb" * 32
NOW_MS = 1_700_000_000_000


class Node:
    """What one node says. ``peers`` are numbers; ``ours`` False is one of the reference."""

    def __init__(self, number: int, peers: list[int], ours: bool = True) -> None:
        self.number = number
        self.peers = peers
        self.ours = ours
        self.machine = f"{number:032x}"
        self.up = True
        self.uptime_s = 1000.0
        self.skew_ms = 0
        self.heard_s: dict[int, float | None] = {}
        self.udp_s: dict[int, float | None] = {}
        self.unconfigured: set[int] = set()
        self.shared: list[dict[str, Any]] = []
        self.where = number
        self.knows = ["apps"]
        self.epoch_ms = NOW_MS - number
        self.config: dict[str, Any] | None = None
        self.failed_hooks: list[dict[str, str]] = []
        self.disk: dict[str, Any] = {}
        self.hooks: list[dict[str, str]] = []
        self.has: dict[str, str] = {"/apps/v1": V1}
        self.pending: dict[str, dict[str, Any]] = {}
        self.refused: dict[str, dict[str, Any]] = {}
        self.keys = ["SHA256:one"]
        self.base: dict[str, State] | None = {}
        self.broken: set[str] = set()
        self.dir: dict[str, Any] = {
            "key": "apps",
            "append_only": True,
            "num_levels": 1,
            "auto_clean": False,
            "config_hash": "00" * 32,
            "images": 1,
            "usable": True,
            "free_bytes": 900,
            "size_bytes": 1000,
            "reserve_bytes": 30,
        }

    def version(self, path: str, image: str) -> dict[str, Any]:
        stamp = NOW_MS + (1000 if image == V2 else 0)
        return {
            "path": path,
            "image": image,
            "signed_ms": stamp,
            "state": "committed",
            "signatures": [{"signed_ms": stamp, "key": "SHA256:one"}],
        }

    def peer(self, one: int) -> dict[str, Any]:
        found = {
            "machine_id": f"{one:032x}",
            "hostname": f"n{one}",
            "name": f"n{one}",
            "address": f"10.0.{one // 250}.{one % 250}:24783",
            "heard_s": self.heard_s.get(one, 1.0),
            "dirs": self.knows,
            "configured": one not in self.unconfigured,
        }
        if one in self.udp_s:
            found |= {"udp_heard_s": self.udp_s[one], "reached": "tcp"}
        return found

    def page(self, page: str) -> Any:
        if page in self.broken:
            raise RemoteError("its page answers HTTP 500")
        if self.ours:
            match page.split("/")[3:] if page.startswith("/api/v1/") else None:
                case ["status"]:
                    return {
                        "machine_id": self.machine,
                        "hostname": f"n{self.number}",
                        "version": "1",
                        "now_ms": NOW_MS + self.skew_ms,
                        "uptime_s": self.uptime_s,
                        "ready": True,
                        "images": len(self.has),
                        "downloads": 0,
                        "epoch_ms": self.epoch_ms,
                        "config": self.config,
                        "failed_hooks": self.failed_hooks,
                    } | ({"disk": self.disk} if self.disk else {})
                case ["peers"]:
                    return {"peers": [self.peer(one) for one in self.peers], "shared_ids": self.shared}
                case ["dirs"]:
                    return {"dirs": [self.dir]}
                case ["keys"]:
                    return {"dirs": {"apps": self.keys}}
                case ["dirs", "apps"]:
                    return {"base_dirs": [], "versions": [self.version(path, image) for path, image in self.has.items()]}
                case ["images", "apps", name]:
                    path = f"/apps/{name}"
                    committed = self.version(path, self.has[path]) if path in self.has else None
                    found = {"taken": True, "committed": committed, "pending": self.pending.get(path)}
                    return {**found, "refused": self.refused.get(path), "hooks": self.hooks if committed else []}
                case ["images", *_]:
                    return {"taken": False, "committed": None, "pending": None, "refused": None}
        elif page == "/status/":
            return {"machine_id": self.machine, "hostname": f"n{self.number}", "version": "0.6", "process": None}
        elif page == "/peers/":
            return {
                f"{one:032x}": {"id": f"{one:032x}", "addr": f"10.0.0.{one}:24783", "hostname": f"n{one}", "name": ""} for one in self.peers
            }
        elif page == "/configs/":
            return {"apps": {"append_only": True, "num_levels": 1, "auto_clean": False}}
        elif page == "/list-dir/apps":
            stamp = {"timestamp": "2023-11-14T22:13:20Z", "signature": "x"}
            return {path.rpartition("/")[2]: {"image": image, "signatures": [stamp]} for path, image in self.has.items()}
        elif page == "/downloading/":
            return {path: {"image_id": one["image"], "mask": 0, "stalled": False, "source": False} for path, one in self.pending.items()}
        raise NoPage("it has no such page")


class Reader:
    """The pages of all nodes."""

    def __init__(self) -> None:
        self.nodes: dict[Address, Node] = {}
        self.asked: list[tuple[Address, str]] = []
        self.requests: list[tuple[Address, Request]] = []
        self.open = self.most = 0

    def add(self, *nodes: Node) -> None:
        for node in nodes:
            self.nodes[address(node.where)] = node

    def ask(self, where: Address, request: Request, timeout_s: float | None = None) -> Deferred[Response]:
        assert isinstance(request, GetBaseDir)
        self.requests.append((where, request))
        node = self.nodes[where]
        if node.base is None:
            return fail(RemoteError("signatures is not a list of at most 16"))
        return succeed(BaseDirData(bytes(32), bytes(32), node.base))

    def bulk(self, where: Address) -> bool:
        return self.nodes[where].ours

    def stop(self) -> Deferred[None]:
        return succeed(None)

    def get(self, where: Address, page: str, _patience_s: float = 0.0) -> Deferred[Any]:
        self.asked.append((where, page))
        node = self.nodes.get(where)
        if node is None or not node.up:
            return fail(LinkLost(f"connection refused by {where}"))
        try:
            return succeed(json.loads(json.dumps(node.page(page))))
        except RemoteError as error:
            return fail(error)


def address(number: int) -> Address:
    return Address(f"10.0.{number // 250}.{number % 250}", 24783)


class ReadingCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = HeapClock()
        self.reader = Reader()
        self.names: dict[str, list[Address]] = {f"n{number}": [address(number)] for number in range(1, 9)}
        self.out, self.err = Output(), Output()
        self.one, self.two, self.three = (Node(number, [one for one in (1, 2, 3) if one != number]) for number in (1, 2, 3))
        self.reader.add(self.one, self.two, self.three)

    def resolve(self, name: str) -> Deferred[list[Address]]:
        if name not in self.names:
            return fail(LinkLost(f"the name {name} cannot be resolved: unknown"))
        return succeed(self.names[name])

    def survey(self) -> Survey:
        return Survey(self.reader, self.resolve, self.clock, lambda: NOW_MS)  # type: ignore[arg-type]

    def around(self) -> AppContext:
        self.out, self.err = Output(), Output()
        return AppContext(self.clock, lambda: NOW_MS, random.Random(1), {"HOME": "/nowhere"}, self.out, self.err, at_once, at_once)

    def begin(self, line: str) -> Deferred[int]:
        options = parse(line.split())
        match options:
            case LsOptions():
                return Deferred.fromCoroutine(ls(options, self.around(), self.survey(), self.reader))
            case StatusOptions():
                return Deferred.fromCoroutine(status(options, self.around(), self.survey()))
            case DoctorOptions():
                return Deferred.fromCoroutine(doctor(options, self.around(), self.survey()))
        raise AssertionError(options)

    def run_it(self, line: str, code: int, *parts: str) -> str:
        self.assertEqual(self.successResultOf(self.begin(line)), code, self.err.text)
        said = self.out.text + self.err.text
        for part in parts:
            self.assertIn(part, said)
        return said

    def ends(self, line: str, code: int, part: str) -> None:
        error = self.failureResultOf(self.begin(line), CommandError).value
        self.assertEqual(error.code, code)
        self.assertIn(part, str(error))

    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.text.splitlines()]


class SurveyTests(ReadingCase):
    """Every node is asked, once, and nobody else."""

    def find(self, *names: str) -> ClusterView:
        return self.successResultOf(Deferred.fromCoroutine(self.survey().find(ClusterNames(names))))

    def test_all_from_one(self) -> None:
        """One name would show one node of a hundred."""
        found = self.find("n2")
        self.assertEqual([node.name for node in found.nodes], ["n1", "n2", "n3"])
        self.assertEqual(len([one for one in self.reader.asked if one[1] == "/api/v1/status"]), 3)

    def test_one_node_two_addresses(self) -> None:
        """A node with an IPv4 and an IPv6 address would be counted twice, or as half dead."""
        other = Address("::1", 24783)
        self.names["both"] = [other, address(1)]
        self.assertEqual(len(self.find("both").nodes), 3)
        self.reader.nodes[other] = self.one
        self.assertEqual(len(self.find("both").nodes), 3)

    def test_unreachable(self) -> None:
        """A node that is down would be left out, and all would seem well."""
        self.three.up = False
        found = self.find("n1", "n3")
        self.assertEqual([(node.name, node.identity is None, node.dirs) for node in found.nodes][-1], ("n3", True, ("apps",)))
        self.assertIn("n3", found.names)

    def test_nobody(self) -> None:
        """It would wait, or say that all is well with nothing."""
        for node in (self.one, self.two, self.three):
            node.up = False
        self.failureResultOf(Deferred.fromCoroutine(self.survey().find(ClusterNames(("n1",)))), CommandError)
        self.failureResultOf(Deferred.fromCoroutine(self.survey().find(ClusterNames(("none",)))), CommandError)

    @shows("A29")
    def test_where_a_page_leads(self) -> None:
        """A server could make a client call services of its own host and network, or ask for ever."""
        self.one.peers = [1]
        wrong = ["127.0.0.1:22", "169.254.169.254:80", "0.0.0.0:1", "[::1]:22", "224.0.0.1:9"]
        page = self.one.page("/api/v1/peers")
        page["peers"] = [{**page["peers"][0], "machine_id": f"{number:02x}" * 16, "address": one} for number, one in enumerate(wrong)]
        self.one.page = lambda name, before=self.one.page: page if name == "/api/v1/peers" else before(name)  # type: ignore[method-assign]
        self.find("n1")
        self.assertEqual({where for where, _ in self.reader.asked}, {address(1)})

    @shows("A29")
    def test_too_many(self) -> None:
        """A server could make a client ask millions of addresses."""
        self.one.peers = list(range(2, 4000))
        found = self.find("n1")
        self.assertEqual(len(found.nodes), MOST_NODES)
        self.assertLessEqual(len({where for where, _ in self.reader.asked}), MOST_NODES)
        self.assertLess(AT_ONCE, 50)

    def test_reference(self) -> None:
        """Servers of the reference could not be looked at."""
        for node in (self.one, self.two, self.three):
            node.ours = False
        self.assertEqual([node.name for node in self.find("n1").answering], ["n1", "n2", "n3"])

    def test_nonsense(self) -> None:
        """A server of something else would end the command with a traceback."""
        self.two.page = lambda name: ["what?"]  # type: ignore[method-assign]
        found = self.find("n1")
        self.assertEqual([node.name for node in found.answering], ["n1", "n3"])


class LsTests(ReadingCase):
    """What there is, by all nodes."""

    def test_versions(self) -> None:
        """An image would be missing from the list, or seem to be everywhere."""
        self.one.has["/apps/v2"] = V2
        said = self.run_it("ls -v n1:/apps", 0, "/apps/v1", V1, "3/3", "/apps/v2", "1/3, not on n2, n3", "SHA256:one")
        self.assertLess(said.index("/apps/v1"), said.index("/apps/v2"))
        self.run_it("ls --json n1:/apps", 0)
        self.assertEqual([one.get("lacking") for one in self.objects()], [[], ["n2", "n3"], None])

    def test_two_images_at_one_path(self) -> None:
        """A conflict would look like one image."""
        self.two.has["/apps/v1"] = V2
        self.run_it("ls n1:/apps", 0, V1[:12], V2[:12], "2/3", "1/3")

    def test_one_image(self) -> None:
        """Who names an image itself would be told that there is none."""
        self.one.has["/apps/v2"] = V2
        said = self.run_it("ls n1:/apps/v2", 0, V2[:12])
        self.assertNotIn(V1[:12], said)
        self.ends("ls n1:/apps/v3", 5, "neither a directory nor an image")
        self.ends("ls n1:/other", 5, "there are /apps")

    def test_reference(self) -> None:
        """Servers of the reference could not be listed; who signed there is not known."""
        for node in (self.one, self.two, self.three):
            node.ours = False
        self.one.has["/apps/v2"] = V2
        self.one.pending["/apps/v2"] = {"image": V2}
        self.run_it("ls n1:/apps", 0, "/apps/v1", "3/3", "2023-11-14T22:13:20Z", "?", "0/3, 1 on the way")
        self.run_it("ls n1", 0, "/apps", "append-only", "3/3")

    @shows("S1")
    def test_verified(self) -> None:
        """An image that nobody trusted signed would look like one of a colleague: who signed it is otherwise the word of the servers."""
        path = self.mktemp()
        with open(path, "w") as file:
            file.write(PublicKey(bytes(KEY.verify_key)).authorized_line())
        stamp, image = NOW_MS, ImageId(bytes.fromhex(V1))

        def signed(where: str) -> State:
            return State(image, (SigEntry(stamp, KEY.sign(signed_bytes(where, image, stamp)).signature),))

        self.one.has["/apps/v2"] = V1
        self.one.has["/apps/\x1b"] = V1
        self.one.base = {"v1": signed("/apps/v1"), "v2": signed("/apps/v1")}
        self.two.base = None
        said = self.run_it(f"ls -v --trusted-keys {path} n1:/apps", 0, "n2 signatures is not a list")
        proofs = {line.split()[0]: line for line in said.splitlines() if line.startswith("/apps/")}
        fingerprint = PublicKey(bytes(KEY.verify_key)).fingerprint()
        self.assertTrue(proofs["/apps/v1"].endswith(f"  verified by {fingerprint}"), said)
        self.assertTrue(proofs["/apps/v2"].endswith("  unverified"), said)
        self.run_it(f"ls --json --trusted-keys {path} n1:/apps", 0)
        told = {one["path"]: one["verified_by"] for one in self.objects() if one["type"] == "image"}
        self.assertEqual(told, {"/apps/\x1b": None, "/apps/v1": fingerprint, "/apps/v2": None})
        self.reader.requests.clear()
        self.run_it("ls n1:/apps", 0, "unverified")
        self.assertEqual(self.reader.requests, [])

    @shows("K3.6")
    def test_not_told(self) -> None:
        """A directory that no node could list would seem to be empty, or not to be there, with exit code 0."""
        for node in (self.one, self.two):
            node.broken.add("/api/v1/dirs/apps")
        said = self.run_it("ls n1:/apps", 0, "n1 its page answers HTTP 500", "/apps/v1")
        self.assertIn("1/3", said)
        self.three.has.clear()
        self.ends("ls n1:/apps", 3, "what is in /apps is not known: n1, n2 did not say")
        for node in (self.one, self.two, self.three):
            node.broken.update(("/api/v1/dirs/apps", "/api/v1/dirs"))
        self.ends("ls n1:/apps", 3, "n1, n2, n3 did not say")
        self.ends("ls n1", 3, "no node of n1 says which directories it has")
        self.ends("ls n1:/other", 5, "did not say")

    @shows("W1")
    def test_wrong_depth(self) -> None:
        """Who leaves out a component of a path would read about base dirs and levels."""
        asking = self.survey()
        target = PathTarget("n1", VPath.parse("/apps/a/b"))
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(levels_of(target.cluster, target.vpath, asking))), 1)
        self.assertIsNone(self.successResultOf(Deferred.fromCoroutine(levels_of(target.cluster, VPath.parse("/other"), asking))))

        class NoBaseDir:
            bulk = False

            def ask(self, _request: Request) -> Deferred[Any]:
                return fail(RemoteError("/apps/a is no base dir"))

            def close(self) -> None:
                """Nothing to do."""

        world = RunContext(self.clock, random.Random(1), lambda _address, _other: succeed(NoBaseDir()), self.resolve)
        asked = Deferred.fromCoroutine(seen(target, world, asking, make_display(parse(["ls", "n1"]).common, self.around(), None)))
        error = self.failureResultOf(asked, CommandError).value
        self.assertEqual((error.code, "images of /apps are at /apps/NAME" in str(error)), (5, True))

    def test_who_is_said_to_have_signed(self) -> None:
        """Whom to ask about an image that is not verified would not be told."""
        target = PathTarget("n1", VPath.parse("/apps/v1"))
        for image, found in ((V1, ("SHA256:one",)), (V2, ())):
            claimed = Deferred.fromCoroutine(claimed_signers(target.cluster, target.vpath, ImageId(bytes.fromhex(image)), self.survey()))
            self.assertEqual(self.successResultOf(claimed), found)

    @shows("A27")
    def test_escapes(self) -> None:
        """A server could write to the terminal of whoever lists it."""
        self.one.has["/apps/\x1b[2Jx"] = V2
        said = self.run_it("ls n1:/apps", 0)
        self.assertNotIn("\x1b", said)
        self.run_it("ls --json n1:/apps", 0)
        self.assertNotIn("\x1b", self.out.text)


class StatusTests(ReadingCase):
    """How each node stands to an image."""

    def test_each_state(self) -> None:
        """A node that is stuck would look like one that works."""
        four, five = Node(4, []), Node(5, [])
        self.reader.add(four, five)
        self.one.peers = [2, 3, 4, 5, 6]
        self.one.has["/apps/v1"] = V2
        pending = {**self.two.version("/apps/v1", V2), "state": "downloading", "done": 0.437, "stalled": False, "age_s": 65.0}
        self.two.pending["/apps/v1"] = pending
        self.three.pending["/apps/v1"] = {**pending, "stalled": True}
        four.has = {}
        four.refused["/apps/v1"] = {"image": V2, "reason": "signature_mismatch", "rejected": True, "age_s": 5.0}
        said = self.run_it(
            "status n1:/apps/v1", 3, "1/6 nodes", V2, "downloading 43%", "1:05", "stalled 43%", "rejected", "signature_mismatch"
        )
        self.assertIn("other image", said)
        self.assertIn("unreachable", said)
        self.run_it("status --json n1:/apps/v1", 3)
        self.assertEqual(
            [one.get("state") for one in self.objects()],
            ["committed", "downloading", "stalled", "rejected", "other image", "unreachable", None],
        )
        self.run_it("status --require 1 n1:/apps/v1", 0)

    def test_no_such_directory(self) -> None:
        """A typing mistake would be waited for."""
        self.ends("status --wait n1:/other/v1", 5, "no node of n1 takes /other/v1")

    def test_nothing_there(self) -> None:
        """What nobody has would count as done."""
        self.run_it("status n1:/apps/v9", 3, "missing", "no image")

    def test_wait(self) -> None:
        """It would end too early, or not at all."""
        self.one.has["/apps/v2"] = V2
        waiting = self.begin("status --wait n1:/apps/v2 --progress plain --print-progress 2s")
        self.clock.advance(1.0)
        self.clock.advance(1.0)
        self.assertNoResult(waiting)
        self.two.has["/apps/v2"] = V2
        self.three.up = False
        self.clock.advance(1.0)
        self.assertNoResult(waiting)
        self.three.up = True
        self.three.has["/apps/v2"] = V2
        self.clock.advance(20.0)
        self.clock.advance(1.0)
        self.assertEqual(self.successResultOf(waiting), 0)
        self.assertIn("done=1 want=3", self.err.text)

    def test_deadline(self) -> None:
        """A pipeline would hang."""
        waiting = self.begin("status --wait -t 3s n1:/apps/v2")
        for _ in range(4):
            self.clock.advance(1.0)
        self.assertEqual(self.successResultOf(waiting), 3)
        self.assertIn("not on enough nodes after 0:03", self.err.text)

    def test_nodes(self) -> None:
        """A node that is down would not be noticed."""
        self.run_it("status n1", 0, "3/3 nodes are up")
        self.two.up = False
        self.run_it("status n1", 3, "2/3 nodes are up", "unreachable")
        self.run_it("status --json n1", 3)
        self.assertEqual(self.objects()[-1], {"type": "summary", "well": 2, "nodes": 3, "exit_code": 3})

    @shows("K3.1", "K3.5")
    def test_disks(self) -> None:
        """A node that cannot look at its images would be as good as any other."""
        self.two.disk = {"set_aside": [{"path": "/apps/v1", "name": ".ciruela-aside~v1~7"}], "unseen": []}
        self.run_it("status n1", 0, "(1 set aside)", "3/3 nodes are up")
        self.two.disk = {"set_aside": [], "unseen": ["apps"]}
        self.run_it("status n1", 3, "unseen", "(/apps cannot be looked at)", "2/3 nodes are up")
        self.run_it("status --json n1", 3)
        (told,) = [one for one in self.objects() if one.get("host") == "n2"]
        self.assertEqual((told["state"], told["set_aside"], told["unseen"]), ("unseen", 0, ["apps"]))

    def test_reference(self) -> None:
        """Servers of the reference could not be waited for."""
        for node in (self.one, self.two, self.three):
            node.ours = False
        self.run_it("status n1:/apps/v1", 0, "3/3 nodes")
        self.run_it("status n1:/apps/v2", 3, "missing")


class CountingTests(ReadingCase):
    """``status`` counts the servers that ``sync`` expects."""

    @shows("K5.6", "K1.1")
    def test_silent_server(self) -> None:
        """A server that nobody hears, and of which nobody remembers what it takes, would be left out: 2/2."""
        self.three.up = False
        for node in (self.one, self.two):
            node.knows = []
            node.heard_s[3] = 320.0
        self.run_it("status n1:/apps/v1", 3, "2/3 nodes", "unreachable", "not heard for 5:20")
        for node in (self.one, self.two):
            node.knows = ["logs"]
        self.run_it("status n1:/apps/v1", 0, "2/2 nodes")

    @shows("K5.6", "K1.4")
    def test_one_sided(self) -> None:
        """A server that only one of them names, or that only speaks, would be left out."""
        self.one.peers, self.two.peers = [2, 3], [1]
        self.two.unconfigured = {1}
        self.run_it("status n2:/apps/v1", 0, "3/3 nodes")
        self.three.up = False
        self.run_it("status n2:/apps/v1", 3, "2/3 nodes")

    @shows("K1.5", "K5.6")
    def test_shared_id(self) -> None:
        """Two servers with one machine id would be shown as one that has the image."""
        self.three.machine = self.two.machine
        self.run_it("status n1,n2,n3:/apps/v1", 3, "3/3 nodes", "10.0.0.2:24783 and 10.0.0.3:24783 have one machine id")
        self.run_it("status --json n1,n2,n3:/apps/v1", 3)
        self.assertEqual(self.objects()[-1]["shared_ids"][0]["addresses"], ["10.0.0.2:24783", "10.0.0.3:24783"])

    @shows("K5.3")
    def test_hooks(self) -> None:
        """A release whose hook failed everywhere would look well; or a pipeline would go on while hooks run."""
        for node in (self.one, self.two, self.three):
            node.hooks = [{"kind": "on-commit", "state": "ok", "message": ""}]
        said = self.run_it("status n1:/apps/v1", 0, "HOOKS")
        self.assertRegex(said, r"n2 +committed .* ok")
        self.two.hooks = [{"kind": "on-commit", "state": "failed", "message": "exit status 1: no such service"}]
        self.run_it("status n1:/apps/v1", 7, "3/3 nodes", "on-commit exit status 1: no such service")
        self.run_it("status --json n1:/apps/v1", 7)
        self.assertEqual([one["hooks"][0]["state"] for one in self.objects()[:-1]], ["ok", "failed", "ok"])
        self.two.hooks = [{"kind": "on-commit", "state": "pending", "message": ""}]
        self.run_it("status n1:/apps/v1", 0, "pending")
        waiting = self.begin("status --wait n1:/apps/v1")
        self.clock.advance(1.0)
        self.assertNoResult(waiting)
        self.two.hooks = []
        self.clock.advance(1.0)
        self.assertEqual(self.successResultOf(waiting), 0)


class DoctorTests(ReadingCase):
    """What is wrong is named, with what to do; what is well is not."""

    def failing(self, line: str = "doctor n1") -> list[tuple[str, str]]:
        """Topic and text of what failed."""
        self.successResultOf(self.begin(f"{line} --json"))
        return [(one["check"], f"{one['about']} {one['text']}") for one in self.objects() if one.get("level") == "fail"]

    def test_well(self) -> None:
        """It would cry wolf."""
        said = self.run_it("doctor n1", 0, "every node hears every other", "no key of yours was found")
        self.assertNotIn("FAIL", said)
        self.assertEqual(self.failing(), [])

    def test_datagrams(self) -> None:
        """A firewall that drops datagrams would be found by an upload that takes for ever."""
        self.one.heard_s[2] = None
        self.two.heard_s[3] = 500.0
        self.three.peers = [2]
        self.assertEqual(
            self.failing(),
            [
                ("udp", "n1 hears no datagrams of n2"),
                ("udp", "n2 has not heard lately n3"),
                ("udp", "n3 does not know n1"),
            ],
        )
        for node in (self.one, self.two, self.three):
            node.uptime_s = 5.0
        self.assertEqual(self.failing(), [])

    @shows("K1.2", "K1.4")
    def test_tcp_only(self) -> None:
        """Where UDP is closed in one direction all goes on by TCP, slowly, and nobody would know which port to open."""
        self.one.udp_s[2] = None
        self.assertEqual(self.failing(), [("udp", "n1 hears no datagrams of, and reaches by TCP only, n2")])
        self.run_it("doctor n1", 1, "open UDP port 24783 of 10.0.0.1 for what they send: UDP from them to n1 is closed")
        self.one.udp_s.clear()
        self.three.unconfigured = {1}
        self.assertEqual(self.failing(), [("udp", "n3 is spoken to by, and does not have configured, n1")])

    @shows("K1.5")
    def test_shared_id(self) -> None:
        """A cloned disk would be found when one of the two servers lacks a release."""
        self.one.shared = [{"machine_id": self.two.machine, "addresses": ["10.0.0.2:24783", "10.0.0.3:24783"]}]
        about = f"10.0.0.2:24783 and 10.0.0.3:24783 have one machine id, {self.two.machine}"
        self.assertEqual(self.failing(), [("machine-id", about)])
        self.run_it("doctor n1", 1, "-> give each server a machine id of its own")

    @shows("K5.4")
    def test_refused_reload(self) -> None:
        """A node that runs on with a configuration that it could not start with would be found after the next power cut."""
        self.two.config = {"ok": False, "mistakes": 1, "places": ["configs/apps.yaml:3"]}
        self.assertEqual(
            self.failing(), [("reload", "n2 refused its last reload (configs/apps.yaml:3): it will not survive its next restart")]
        )
        self.two.config = {"ok": True, "mistakes": 0, "places": []}
        self.assertEqual(self.failing(), [])

    @shows("K5.3")
    def test_failed_hooks(self) -> None:
        """A service that was not restarted would run the old release, and all would seem well."""
        self.two.failed_hooks = [{"path": "/apps/v1", "image": V1, "kind": "on-commit", "state": "failed", "message": "exit status 1"}]
        self.assertEqual(self.failing(), [("hooks", "n2 1 hook failed: /apps/v1 on-commit exit status 1")])

    @shows("K3.1", "K3.5")
    def test_disks(self) -> None:
        """What somebody has to look through, or a disk that is not mounted, would stand on a page that nobody reads."""
        self.two.disk = {"set_aside": [{"path": "/apps/v1", "name": ".ciruela-aside~v1~7"}], "unseen": [], "debris": 2}
        self.assertEqual(self.failing(), [])
        self.run_it("doctor n1", 0, "set aside what stood without a record: /apps/v1 as .ciruela-aside~v1~7", "then delete it", "2 trees")
        self.two.disk = {"set_aside": [], "unseen": ["apps"], "protect": ["cfg"], "missing": 3, "debris": 0}
        self.assertEqual(
            self.failing(),
            [
                ("disk", "n2 cannot look at /apps: nobody can tell whether its images are there"),
                ("disk", "n2 cannot follow a protected link of /cfg: nothing is cleaned up there"),
            ],
        )

    @shows("W1")
    def test_words(self) -> None:
        """One node would hear every other, and one directory on three nodes would be three."""
        self.run_it("doctor n1", 0, "1 directory on 3 nodes")
        self.one.peers = []
        self.run_it("doctor n1", 0, "there is no other node to hear", "1 directory on 1 node")

    def test_datagrams_of_many(self) -> None:
        """In a large cluster chance would be taken for a fault, or a fault for chance."""
        nodes = [Node(number, [one for one in range(1, 61) if one != number]) for number in range(1, 61)]
        self.reader.add(*nodes)
        nodes[6].heard_s = {9: None, 11: 400.0}
        self.assertEqual(self.failing(), [])
        self.assertIn("hears no datagrams of n9", self.out.text)
        nodes[6].heard_s = dict.fromkeys(range(20, 61))
        self.assertEqual(len(self.failing()), 1)

    def test_connection(self) -> None:
        """A node that is down would be missing from the report."""
        self.two.up = False
        self.assertEqual([topic for topic, _ in self.failing()], ["tcp"])
        self.run_it("doctor n1", 1, "open TCP port 24783")

    def test_names(self) -> None:
        """A name that leads nowhere would be found when the others are down."""
        self.assertEqual([topic for topic, _ in self.failing("doctor n1,nowhere")], ["name"])

    def test_clocks(self) -> None:
        """Uploads would be refused, or the wrong one would win."""
        self.two.skew_ms = 90_000
        self.three.skew_ms = -5_000
        self.assertEqual(self.failing(), [("clock", "n2 its clock is 90.0 s ahead of this host's")])
        self.run_it("doctor n1", 1, "5.0 s behind")
        self.one.skew_ms = self.two.skew_ms = self.three.skew_ms = 70_000
        self.assertEqual([text.partition(",")[0] for _, text in self.failing()], ["this host all nodes agree"])

    def test_configs_and_keys(self) -> None:
        """Nodes that do not agree would keep an upload from ever being whole."""
        self.two.dir["num_levels"] = 2
        self.three.keys = ["SHA256:one", "SHA256:two"]
        self.assertEqual(
            self.failing(),
            [("config", "/apps num-levels differs: 1 on n1, n3; 2 on n2"), ("keys", "/apps n3 takes SHA256:two, and others do not")],
        )
        for node in (self.one, self.two, self.three):
            node.keys = []
        self.assertIn(("keys", "/apps no key may upload there"), self.failing())

    def test_space(self) -> None:
        """A full disk would be found by the upload that it breaks."""
        self.two.dir["free_bytes"] = 30
        self.three.dir.update({"usable": False, "free_bytes": None})
        self.one.dir["free_bytes"] = 100
        self.assertEqual(
            self.failing(),
            [("space", "n2 /apps 30 B free, which is the reserve: no upload fits"), ("space", "n3 /apps its directory cannot be opened")],
        )
        self.run_it("doctor n1", 1, "free beyond the reserve")

    def test_reference(self) -> None:
        """What cannot be told of the reference's servers would be told as a fault."""
        for node in (self.one, self.two, self.three):
            node.ours = False
        self.run_it("doctor n1", 0, "do not tell whom they hear", "do not tell whose keys they take")

    def test_a_page_fails(self) -> None:
        """A node that cannot read its own keys would be left out silently."""
        self.two.page = lambda name, before=self.two.page: {"x": 1} if name == "/api/v1/keys" else before(name)  # type: ignore[method-assign]
        self.successResultOf(self.begin("doctor n1"))
        self.two.page = lambda name, before=self.two.page: [] if name == "/api/v1/dirs" else before(name)  # type: ignore[method-assign]
        self.assertEqual([topic for topic, _ in self.failing()], ["pages"])

    def test_my_keys(self) -> None:
        """A user would learn only from a refused upload that a key is not known."""
        told = checks.NodeConfig(SurveyedNode("n1", address(1), "1", None), (), {"apps": ("SHA256:one",), "cfg": ("SHA256:two",)})
        found = checks.check_keys([told], ["SHA256:one"])
        self.assertEqual(
            [(one.level, one.about) for one in found],
            [(Level.OK, "/apps"), (Level.NOTE, "/cfg")],
            [one for one in found if isinstance(one, Finding)],
        )
