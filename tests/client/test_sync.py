"""Whole runs of the client against one to five servers, in memory and under one fake clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.clusters import SyncRun, exit_code
from ciruela.client.contacts import RunContext
from ciruela.client.listener import NodeNews, UploadRow
from ciruela.client.options.sync import CONNECTIONS
from ciruela.client.source import ImageSource, SharedImage
from ciruela.client.sync import ClusterRun, EntryPoints
from ciruela.client.tracker import EXIT_CONFLICT, EXIT_LOCAL, EXIT_NETWORK, EXIT_PARTIAL, EXIT_REJECTED, CompletionRule, UploadOutcome
from ciruela.client.uploadrun import ANSWER_TIMEOUT_S, Upload
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.tree import Directory, File, Index
from ciruela.interfaces import Address
from ciruela.model.errors import SLOW_DOWN, Busy, LinkLost, RemoteError
from ciruela.model.ids import Block, BlockHash, ImageId, Server, SharedId
from ciruela.proto.compression import unpack, unpack_index
from ciruela.proto.messages import (
    AppendDir,
    BlockData,
    BlockPart,
    BlocksData,
    GetBaseDir,
    GetBlock,
    GetBlocks,
    GetIndex,
    GetPieces,
    GetShare,
    IndexData,
    ReplaceDir,
    Request,
    Response,
    ShareData,
    UploadAck,
    WithdrawUpload,
)
from tests.client.nodes import FakeNode, address, machine
from tests.doubles.memnet import Hub
from tests.proof import shows

IMAGE = ImageId(b"\x11" * 32)
OTHER = ImageId(b"\x22" * 32)
PATH = "/apps/v1"
BLOCK = b"some bytes"
HASH = HashKind.BLAKE2B.block(BLOCK)
INDEX = Index(IMAGE, HashKind.BLAKE2B, (Directory("/", (File("/x", False, len(BLOCK), HASH),)),))


class FakeTree:
    """Serves one block, until it is ``broken``."""

    def __init__(self) -> None:
        self.broken = False
        self.reads: list[list[int]] = []

    @property
    def changed(self) -> frozenset[str]:
        return frozenset(["/x"]) if self.broken else frozenset()

    def blocks(self, numbers: Sequence[int]) -> list[Block | None]:
        self.reads.append(list(numbers))
        return [None if self.broken else BLOCK for _ in numbers]


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.news: list[NodeNews] = []

    def problem(self, cluster: str, text: str) -> None:
        self.problems.append(f"{cluster}: {text}")

    def note(self, cluster: str, text: str) -> None:
        self.notes.append(f"{cluster}: {text}")

    def node(self, news: NodeNews) -> None:
        self.news.append(news)


def append(path: str = PATH, image: ImageId = IMAGE, weak: bool = False) -> Upload:
    return Upload(AppendDir(path, image, 1_700_000_000_000, (b"\x55" * 64,)), weak, 10)


class SyncCase(SynchronousTestCase):
    uploads: Sequence[Upload] = (append(),)
    rule = CompletionRule()
    connections = CONNECTIONS

    def setUp(self) -> None:
        self.clock = Clock()
        self.hub = Hub(self.clock, random.Random(1))
        self.names = {f"n{number}": [address(number)] for number in range(1, 41)}
        self.tree = FakeTree()
        self.heard = Heard()
        self.nodes: dict[int, FakeNode] = {}
        self.resolved: list[str] = []
        self.connected: list[Address] = []
        self.stuck: set[Address] = set()
        self.slow: dict[str, Deferred[list[Address]]] = {}

    def node(self, number: int, peers: Sequence[int] = ()) -> FakeNode:
        self.nodes[number] = FakeNode(self.hub, number, peers)
        return self.nodes[number]

    def resolve(self, name: str) -> Deferred[list[Address]]:
        self.resolved.append(name)
        if name in self.slow:
            return self.slow[name]
        if name not in self.names:
            return fail(LinkLost(f"the name {name} cannot be resolved"))
        return succeed(self.names[name])

    def begin(self, *clusters: Sequence[str]) -> None:
        """Start a run to ``clusters``, each given by its entry points, and let the first messages pass."""

        def connect(where: Address, counterpart: ClusterRun) -> Deferred[object]:
            self.connected.append(where)
            return Deferred() if where in self.stuck else self.hub.link(counterpart, where)

        world = RunContext(self.clock, random.Random(7), connect, self.resolve)
        runs: list[ClusterRun] = []
        self.run_ = SyncRun(runs)
        tree_offer = SharedImage(INDEX, b"the index", self.tree, "./dist")
        source = ImageSource([tree_offer], lambda f, *args, **kw: succeed(f(*args, **kw)), self.run_.source_changed)
        for names in clusters:
            entry = EntryPoints(names[0], names, self.connections)
            runs.append(ClusterRun(entry, self.uploads, self.rule, world, source, self.heard))
        self.rows: list[UploadRow] | None = None
        self.going = self.run_.start()
        self.going.addCallback(self._over)
        self.pass_(0.1)

    def _over(self, rows: list[UploadRow]) -> None:
        self.rows = rows

    def pass_(self, seconds: float) -> None:
        """Let time go by in small steps."""
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end - 1e-9:
            self.clock.advance(min(0.01, end - self.clock.seconds()))

    def received(self, via: int, number: int, image: ImageId = IMAGE) -> None:
        self.nodes[via].tell_received(PATH, image, number)

    def ended(self, outcome: UploadOutcome, code: int = 0) -> UploadRow:
        assert self.rows is not None, self.run_.rows()
        self.assertEqual([row.verdict.outcome for row in self.rows], [outcome] * len(self.rows))
        self.assertEqual(exit_code(self.rows), code)
        self.assertEqual([node.links for node in self.nodes.values() if node.links], [], "connections are left open")
        self.assertEqual(self.clock.getDelayedCalls(), [], "timers are left")
        return self.rows[0]

    def running(self) -> UploadRow:
        self.assertIsNone(self.rows)
        return self.run_.rows()[0]


class Accepting(SyncCase):
    def test_one(self) -> None:
        """An upload to a cluster of one succeeds as soon as the node has it."""
        node = self.node(1)
        self.begin(["n1"])
        self.assertEqual(self.running().standing.expected, 1)
        self.assertEqual(node.published, [IMAGE])
        self.assertEqual(node.requests, [self.uploads[0].request])
        self.received(1, 1)
        self.pass_(0.1)
        row = self.ended(UploadOutcome.DONE)
        self.assertEqual((row.standing.done, row.standing.expected), (1, 1))

    def test_three_of_five(self) -> None:
        """The client gives its data to three nodes at most, and waits for the news of all five."""
        for number in range(1, 6):
            self.node(number, range(1, 6))
        self.names["all"] = [address(number) for number in range(1, 6)]
        self.begin(["all"])
        asked = [number for number, node in self.nodes.items() if node.requests]
        self.assertEqual(len(asked), CONNECTIONS)
        self.assertEqual(self.running().standing.expected, 5)
        for number in asked:
            self.received(number, number)
        self.pass_(3)
        self.assertEqual(self.running().standing.done, 3)
        self.assertEqual(self.run_.whole_nodes(), 3)
        for number in set(self.nodes) - set(asked):
            self.received(asked[0], number)
        self.pass_(0.1)
        self.ended(UploadOutcome.DONE)
        self.assertEqual(len(self.connected), CONNECTIONS)

    def test_single_entry_point_spreads(self) -> None:
        """One entry point is enough: two more connections go to nodes that it names."""
        for number in range(1, 6):
            self.node(number, range(1, 6))
        self.begin(["n1"])
        self.assertEqual(len([node for node in self.nodes.values() if node.requests]), CONNECTIONS)

    def test_lost_notification(self) -> None:
        """A notification that was lost with its connection comes after the reconnect, when the node says that it has it already."""
        node = self.node(1)
        self.begin(["n1"])
        node.has.append((PATH, IMAGE))
        node.links[0].close()  # type: ignore[attr-defined]
        self.pass_(3)
        self.assertEqual(len(node.requests), 2)
        self.assertEqual(node.published, [IMAGE, IMAGE])
        self.ended(UploadOutcome.DONE)

    def test_pauses_are_forgiven(self) -> None:
        """A node that answers is well again: connections that break now and then do not make the pauses longer and longer."""
        node = self.node(1)
        self.begin(["n1"])
        for number in range(2, 8):
            node.links[0].close()  # type: ignore[attr-defined]
            self.pass_(2.2)
            self.assertEqual(len(node.requests), number)

    def test_slow_name(self) -> None:
        """A fast node does not end the upload while another entry point is being resolved."""
        self.node(1).has.append((PATH, IMAGE))
        self.node(2)
        self.slow["late"] = Deferred()
        self.begin(["n1", "late"])
        self.pass_(3)
        self.assertEqual(self.running().standing.done, 1)
        self.slow["late"].callback([address(2)])
        self.pass_(0.2)
        self.assertEqual(self.running().standing.expected, 2)
        self.received(2, 2)
        self.pass_(0.1)
        self.ended(UploadOutcome.DONE)

    def test_slow_connection(self) -> None:
        """Nor while another one is being connected to; but that is only waited for a second, and for no beat after it."""
        self.node(1).has.append((PATH, IMAGE))
        self.stuck.add(address(2))
        self.begin(["n1", "n2"])
        self.assertEqual(self.running().standing.done, 1)
        self.pass_(0.85)
        self.running()
        self.pass_(0.1)
        self.ended(UploadOutcome.DONE)

    def test_dies_without_an_answer(self) -> None:
        """An answer that can no longer come is not waited for."""
        self.node(1).has.append((PATH, IMAGE))
        self.node(2).silent = True
        self.begin(["n1", "n2"])
        self.pass_(2)
        self.running()
        self.hub.kill(address(2))
        self.pass_(2)
        self.ended(UploadOutcome.DONE)

    def test_reconnects_ever_slower(self) -> None:
        """A node that hangs up on everybody is not hammered: the n-th failure costs n seconds."""
        node = self.node(1)
        node.hangs_up = True
        self.begin(["n1"])
        self.pass_(30)
        self.assertTrue(5 <= len(node.requests) <= 9, len(node.requests))

    @shows("A29", "I7")
    def test_foreign_image_is_not_ours(self) -> None:
        """News of another version at the same path must not end the upload (C26)."""
        self.node(1)
        self.begin(["n1"])
        self.received(1, 1, OTHER)
        self.pass_(2)
        self.running()

    def test_clusters_apart(self) -> None:
        """Two clusters are two results: what one has says nothing of the other."""
        self.node(1)
        self.node(2)
        self.begin(["n1"], ["n2"])
        self.received(1, 1)
        self.pass_(2)
        self.assertIsNone(self.rows)
        self.assertEqual([row.verdict.outcome for row in self.run_.rows()], [UploadOutcome.DONE, UploadOutcome.RUNNING])
        self.assertEqual(self.run_.whole_nodes(), 0)
        self.received(2, 2)
        self.pass_(0.1)
        self.ended(UploadOutcome.DONE)

    def test_cancel(self) -> None:
        """An interrupted run closes its connections and leaves no timer."""
        self.node(1)
        self.begin(["n1"], ["n2"])
        self.going.cancel()
        self.failureResultOf(self.going, CancelledError)
        self.pass_(1)
        self.assertEqual(self.nodes[1].links, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class Rows(SyncCase):
    """Nodes of ours, which tell what servers they know."""

    def setUp(self) -> None:
        super().setUp()
        for number in range(1, 41):
            self.names[str(address(number))] = [address(number)]

    def ours(self, *numbers: int, silent: Sequence[int] = ()) -> None:
        """These nodes are there, and know each other and the ``silent`` ones."""
        for number in numbers:
            self.node(number, numbers).rows = [self.server(other) for other in numbers if other != number]
            self.nodes[number].rows += [self.server(other, 40_000) for other in silent]  # type: ignore[operator]

    def server(self, number: int, heard_ms: int | None = 100, *, configured: bool = True) -> Server:
        return Server(f"n{number}", machine(number), (str(address(number)),), heard_ms, configured)

    @shows("K7.6")
    def test_own_word_after_another(self) -> None:
        """A tiny upload would take a second longer: a node's own word after that of another one would wait for the beat."""
        self.ours(1, 2)
        self.begin(["n1", "n2"])
        self.received(2, 1)
        self.received(1, 2)
        self.received(1, 1)
        self.pass_(0.02)
        self.running()
        before_s = self.clock.seconds()
        self.received(2, 2)
        self.pass_(0.02)
        self.ended(UploadOutcome.DONE)
        self.assertLess(self.clock.seconds() - before_s, 0.05)

    @shows("K1.1")
    def test_too_busy_to_tell(self) -> None:
        """A node that had no time to tell what servers there are would be taken for an older one that knows no such question."""
        self.ours(1, silent=[2])
        self.nodes[1].busy = 2
        self.begin(["n1"])
        self.received(1, 1)
        self.pass_(1.0)
        self.running()
        self.pass_(10.0)
        self.running()
        self.assertEqual(self.nodes[1].busy, 0)
        self.received(1, 2)
        self.pass_(1.0)
        self.ended(UploadOutcome.DONE)

    @shows("K1.1")
    def test_learned_later(self) -> None:
        """A server that a node learns of while the upload runs would not be waited for."""
        self.ours(1)
        self.begin(["n1"])
        self.nodes[1].rows = [self.server(2)]
        self.pass_(5)
        self.assertEqual(self.running().standing.expected, 2)
        self.node(2).rows = [self.server(1)]
        self.received(1, 1)
        self.pass_(5)
        self.received(2, 2)
        self.pass_(0.1)
        self.ended(UploadOutcome.DONE)

    @shows("K1.4")
    def test_who_is_not_configured(self) -> None:
        """A server that speaks to a node without being configured would be left out, or waited for although nothing is there."""
        self.ours(1)
        self.nodes[1].rows = [self.server(2, configured=False), self.server(3, configured=False)]
        self.node(2).rows = []
        self.begin(["n1"])
        self.received(1, 1)
        self.pass_(1)
        self.assertEqual(self.running().standing.expected, 2)
        self.received(2, 2)
        self.pass_(0.1)
        self.ended(UploadOutcome.DONE)

    def test_who_is_met_on_the_way(self) -> None:
        """A server that is named by one that is only probed would be asked at the next beat, and a tiny upload wait for that."""
        self.ours(1)
        for number in (2, 3):
            self.node(number).rows = []
            self.nodes[number - 1].rows = [self.server(number, configured=False)]
            self.nodes[number].taken = False
        self.begin(["n1"])
        self.assertEqual(self.connected, [address(1), address(2), address(3)])
        self.received(1, 1)
        self.pass_(0.02)
        self.ended(UploadOutcome.DONE)

    @shows("K7.2")
    def test_it_is_there_after_all(self) -> None:
        """A server that only its peers cannot hear would be given up, although the client reaches it."""
        self.ours(1, 2, silent=[3])
        self.node(3).rows = []
        self.begin(["n1", "n2"])
        for number in (1, 2):
            self.received(number, number)
        self.pass_(60)
        self.assertEqual(self.running().standing.missing, ("n3",))
        self.hub.kill(address(3))
        self.pass_(15)
        self.assertEqual(self.ended(UploadOutcome.PARTIAL, EXIT_PARTIAL).standing.missing, ("n3",))

    @shows("K1.5", "I7")
    def test_told_of_a_shared_id(self) -> None:
        """A node knows that two of its peers have one machine id, and the user would read "done"."""
        self.ours(1, 2)
        self.nodes[1].shared = (SharedId(machine(2), (str(address(2)), str(address(3)))),)
        self.begin(["n1"])
        self.received(1, 1)
        self.received(2, 2)
        self.pass_(1)
        row = self.ended(UploadOutcome.PARTIAL, EXIT_PARTIAL)
        self.assertEqual((row.standing.done, row.standing.expected), (2, 3))
        self.assertIn(f"{address(2)} and {address(3)} have one machine id", row.verdict.why)

    @shows("A29")
    def test_poisoned_addresses(self) -> None:
        """A server could send the client to this machine's own services or to link-local addresses."""
        self.ours(1)
        places = ("127.0.0.1:22", "169.254.169.254:80", "nonsense", "10.0.0.1")
        self.nodes[1].rows = [Server(f"x{number}", None, (place,), None, number % 2 == 0) for number, place in enumerate(places)]
        self.begin(["n1"])
        self.pass_(40)
        self.assertEqual(set(self.connected), {address(1)})

    @shows("W1")
    def test_two_names_of_one_cluster(self) -> None:
        """Without -m everything would go to the cluster twice, and nobody would say so."""
        self.ours(1, 2)
        self.begin(["n1"], ["n2"])
        (problem,) = self.heard.problems
        self.assertIn("leads to the same cluster as n", problem)
        self.assertIn("-m", problem)

    @shows("W1")
    def test_one_name_for_a_node(self) -> None:
        """A program could not tell that the node that accepted is the one that has it."""
        self.ours(1)
        self.names["alias"] = [address(1)]
        self.begin(["alias"])
        self.received(1, 1)
        self.pass_(0.1)
        self.ended(UploadOutcome.DONE)
        said = [(news.state, news.host, news.address, news.machine) for news in self.heard.news]
        self.assertEqual(said, [(state, "n1", str(address(1)), machine(1)) for state in ("accepted", "done")])


class Few(SyncCase):
    connections = 1

    def test_connections(self) -> None:
        """``--initial-connections 1`` would give the data to more."""
        for number in range(1, 6):
            self.node(number, range(1, 6))
        self.begin(["n1"])
        self.assertEqual(len([node for node in self.nodes.values() if node.requests]), 1)


class Unreached(SyncCase):
    @shows("K7.1")
    def test_nobody(self) -> None:
        """A mistyped name, or a daemon that is not started, would be tried for half an hour; the reason must be in the result."""
        self.begin(["nowhere", "n1"])
        self.pass_(14)
        self.running()
        self.pass_(2)
        row = self.ended(UploadOutcome.FAILED, EXIT_NETWORK)
        self.assertIn("the name nowhere cannot be resolved", row.verdict.why)
        self.assertIn("connection refused by 10.0.0.1:24783", row.verdict.why)

    @shows("K7.1")
    def test_reached_once(self) -> None:
        """A node that restarts after a while would be given up after seconds."""
        self.node(1)
        self.begin(["n1"])
        self.hub.kill(address(1))
        self.pass_(60)
        self.running()


class SharedConnections(SyncCase):
    uploads = (append(), Upload(ReplaceDir("/cfg/x", OTHER, None, 1, (b"\x55" * 64,)), False, 5))

    def test_shared(self) -> None:
        """Two directories to one cluster travel over the same connections, each published."""
        node = self.node(1)
        self.begin(["n1"])
        self.assertEqual(len(self.connected), 1)
        self.assertEqual(node.requests, [upload.request for upload in self.uploads])
        self.assertEqual(node.published, [IMAGE, OTHER])
        node.tell_received("/cfg/x", OTHER, 1)
        self.pass_(0.1)
        self.assertEqual([row.verdict.outcome for row in self.run_.rows()], [UploadOutcome.RUNNING, UploadOutcome.DONE])
        self.received(1, 1)
        self.pass_(0.1)
        self.ended(UploadOutcome.DONE)


class Redirecting(SyncCase):
    def test_redirect(self) -> None:
        """A node without the directory sends the client to those that have it, at once."""
        self.node(1, [2, 3]).reason = "no_config"
        for number in (2, 3):
            self.node(number, [2, 3])
        self.begin(["n1"])
        self.assertEqual(self.running().standing.expected, 2)
        self.assertEqual([len(self.nodes[number].requests) for number in (1, 2, 3)], [1, 1, 1])
        self.assertEqual(self.nodes[1].links, [], "a connection of no use is kept")
        self.received(2, 2)
        self.received(3, 3)
        self.pass_(0.1)
        row = self.ended(UploadOutcome.DONE)
        self.assertEqual(row.standing.failed, ())

    def test_nobody_has_it(self) -> None:
        """When no node takes the directory the answer comes at once."""
        self.node(1, []).reason = "no_config"
        self.begin(["n1"])
        self.ended(UploadOutcome.REJECTED, EXIT_REJECTED)

    def test_unreachable_candidates(self) -> None:
        """Redirects that lead nowhere end as a refusal, not at the deadline."""
        self.node(1, [8, 9]).reason = "no_config"
        del self.names["n9"]
        self.begin(["n1"])
        self.pass_(2)
        self.ended(UploadOutcome.REJECTED, EXIT_REJECTED)

    @shows("A29", "A37", "F24", "F54")
    def test_poisoned_hosts(self) -> None:
        """A server cannot send the client to this machine's own services or to link-local addresses (A29)."""
        self.node(1, [8, 9]).reason = "no_config"
        self.names["n8"] = [Address("127.0.0.1", 22)]
        self.names["n9"] = [Address("169.254.169.254", 80)]
        self.begin(["n1"])
        self.pass_(2)
        self.assertEqual(self.connected, [address(1)])
        self.ended(UploadOutcome.REJECTED, EXIT_REJECTED)


class Refusing(SyncCase):
    @shows("F54", "I7", "W1")
    def test_path_of_which_an_old_server_dies(self) -> None:
        """A server of the first implementation ends when it is asked for an image at ``/www``; its client hears why, and at once."""
        self.uploads = (append("/www"),)
        for number in (1, 2):
            self.node(number)
        self.hub.old.update((address(1), address(2)))
        self.begin(["n1", "n2"])
        self.pass_(1.0)
        self.ended(UploadOutcome.REJECTED, EXIT_REJECTED)
        self.assertEqual([node.requests for node in self.nodes.values()], [[], []])
        self.assertIn("which has no images at /www", " ".join(self.heard.problems))

    def test_wrong_key(self) -> None:
        """When everybody refuses, the client ends at once, although the answers named more hosts (C49). The reason is told once."""
        for number in range(1, 6):
            self.node(number, range(1, 6)).reason = "signature_mismatch"
        self.begin(["n1"])
        self.pass_(1)
        self.ended(UploadOutcome.REJECTED, EXIT_REJECTED)
        (problem,) = self.heard.problems
        self.assertIn("5 nodes (", problem)
        self.assertIn("n2 (10.0.0.2:24783)", problem)
        self.assertTrue(problem.endswith(f" {PATH} signature_mismatch"), problem)

    def test_conflict(self) -> None:
        """Other content is a conflict with its own exit code."""
        self.node(1).reason = "already_exists"
        self.begin(["n1"])
        self.ended(UploadOutcome.REJECTED, EXIT_CONFLICT)

    def test_errors(self) -> None:
        """``Error`` is asked again three times, later each time, and then given up with its text (C33)."""
        node = self.node(1)
        node.error = "disk on fire"
        self.begin(["n1"])
        self.pass_(1.5)
        self.assertIsNone(self.rows)
        self.pass_(8)
        self.assertEqual(len(node.requests), 4)
        row = self.ended(UploadOutcome.REJECTED, EXIT_NETWORK)
        self.assertEqual(row.standing.failed, (("n1", "disk on fire"),))

    def test_busy_node(self) -> None:
        """A node that is busy for minutes gets the upload when it is not any more; what it said is shown."""
        node = self.node(1)
        node.error = f"{SLOW_DOWN}: 8 uploads of this key are in progress on this node"
        self.begin(["n1"])
        self.pass_(60)
        self.assertIsNone(self.rows)
        self.assertIn("8 uploads of this key", " ".join(self.heard.problems))
        self.assertTrue(5 < len(node.requests) < 15, len(node.requests))
        node.error = None
        self.pass_(12)
        self.received(1, 1)
        self.pass_(0.1)
        self.ended(UploadOutcome.DONE)

    def test_error_that_heals(self) -> None:
        """A passing error is not the end."""
        node = self.node(1)
        node.error = "busy"
        self.begin(["n1"])
        node.error = None
        self.pass_(3)
        self.received(1, 1)
        self.pass_(0.1)
        self.ended(UploadOutcome.DONE)

    def test_late_node_with_errors(self) -> None:
        """A node that came up late and asks for patience is reachable: the refusal of another one is not the end."""
        self.node(1).error = "broken"
        self.begin(["n1", "n2"])
        self.pass_(2.5)
        late = self.node(2)
        late.error = "starting"
        self.pass_(6.5)
        self.assertEqual((len(self.nodes[1].requests), 1 < len(late.requests) < 4), (4, True))
        self.assertEqual(self.running().standing.failed, (("n1", "broken"),))
        late.error = None
        self.pass_(4)
        self.assertEqual(self.running().standing.accepted, ("n2",))

    @shows("F54", "I7")
    def test_all_gave_up(self) -> None:
        """When all nodes that accepted give up, the client says so at once, with their reasons (C40)."""
        for number in (1, 2):
            self.node(number, [1, 2])
        self.begin(["n1"])
        self.nodes[1].tell_aborted(PATH, IMAGE, "no_space")
        self.pass_(2)
        self.running()
        self.nodes[2].tell_aborted(PATH, IMAGE, "no_space")
        self.pass_(0.1)
        row = self.ended(UploadOutcome.FAILED, EXIT_NETWORK)
        self.assertEqual(row.standing.failed, (("n1", "no_space"), ("n2", "no_space")))


class WeakUpload(SyncCase):
    uploads = (append(weak=True),)

    def test_single_node(self) -> None:
        """A weak append to the only node, which has other content, ends at once and well (C50)."""
        self.node(1).reason = "already_exists"
        self.begin(["n1"])
        self.ended(UploadOutcome.DONE)


class Slow(SyncCase):
    @shows("A58")
    def test_silent_node(self) -> None:
        """A node that never answers is asked again, and in the end counts as a refusal; it does not hold the run up for ever."""
        node = self.node(1)
        node.silent = True
        self.begin(["n1"])
        self.pass_(4 * ANSWER_TIMEOUT_S + 10)
        self.assertEqual(len(node.requests), 4)
        self.ended(UploadOutcome.REJECTED, EXIT_NETWORK)

    def test_early(self) -> None:
        """With four of five nodes done, the early rule ends the run after its time, and names who is missing."""
        for number in range(1, 6):
            self.node(number, range(1, 6))
        self.begin(["n1", "n2", "n3"])
        for number in (1, 2, 3):
            self.received(number, number)
        self.received(1, 4)
        self.pass_(28)
        self.running()
        self.pass_(3)
        row = self.ended(UploadOutcome.EARLY)
        self.assertEqual((row.standing.done, row.standing.expected, row.standing.missing), (4, 5, ("n5",)))

    @shows("F54", "I7")
    def test_deadline(self) -> None:
        """Nobody home: the client keeps trying, says why, and ends at the deadline."""
        self.rule = CompletionRule(deadline_s=20, connect_timeout_s=60)
        self.begin(["n1", "nowhere"])
        self.pass_(19)
        self.running()
        self.assertEqual(
            sorted(self.heard.problems),
            [
                "n1: n1: connection refused by 10.0.0.1:24783; trying again",
                "n1: nowhere: the name nowhere cannot be resolved; trying again",
            ],
        )
        self.pass_(2)
        self.ended(UploadOutcome.FAILED, EXIT_NETWORK)

    def test_node_comes_up_late(self) -> None:
        """A node that is started after the client still gets the upload."""
        self.begin(["n1"])
        self.pass_(4)
        self.node(1)
        self.pass_(5)
        self.received(1, 1)
        self.pass_(0.1)
        self.ended(UploadOutcome.DONE)

    def test_dead_node_is_replaced(self) -> None:
        """When one of the three dies, another takes its place."""
        for number in range(1, 6):
            self.node(number, range(1, 6))
        self.begin(["n1"])
        first = [number for number, node in self.nodes.items() if node.links]
        self.hub.kill(address(first[0]))
        self.pass_(0.2)
        now = [number for number, node in self.nodes.items() if node.links and number != first[0]]
        self.assertEqual(len(now), CONNECTIONS)


class SameIndexTests(SyncCase):
    """A node that asks for one index again and again."""

    @shows("K6.2")
    def test_the_same_index(self) -> None:
        """A reference daemon that cannot read an index would be sent it thousands of times, and fill its log."""
        node = self.node(1)
        self.begin(["n1"])
        answers: list[object] = []

        def ask() -> None:
            node.links[0].ask(GetIndex(IMAGE, PATH)).addErrback(lambda failure: failure.value).addBoth(again)

        def again(answer: object) -> None:
            answers.append(answer)
            ask()

        ask()
        for _ in range(200):
            self.pass_(0.1)
        good = [answer for answer in answers if isinstance(answer, IndexData)]
        self.assertTrue(3 <= len(good) <= 7, len(good))
        self.assertTrue(len(answers) <= 20, len(answers))
        self.assertTrue(any(isinstance(answer, Busy) for answer in answers))


class Sources(SynchronousTestCase):
    def test_published_only(self) -> None:
        """A node to which one of two directories was published gets nothing of the other."""
        other = b"other bytes"
        other_hash = HashKind.BLAKE2B.block(other)
        second = Index(OTHER, HashKind.BLAKE2B, (Directory("/", (File("/y", False, len(other), other_hash),)),))

        class OtherTree(FakeTree):
            def blocks(self, numbers: Sequence[int]) -> list[Block | None]:
                return [other for _ in numbers]

        offers = [SharedImage(INDEX, b"the index", FakeTree(), "./a"), SharedImage(second, b"index 2", OtherTree(), "./b")]
        sent: list[tuple[ImageId, int]] = []
        source = ImageSource(offers, lambda f, *args, **kw: succeed(f(*args, **kw)), lambda image, text: None)

        def ask(request: Request, *published: ImageId) -> Deferred[Response]:
            return source.answer(request, published, lambda image, size: sent.append((image, size)))

        for request in (GetIndex(OTHER, None), GetBlock(other_hash, None), GetBlocks(PATH, OTHER, (0,))):
            self.failureResultOf(ask(request, IMAGE), RemoteError)
            self.failureResultOf(ask(request), RemoteError)
        self.assertEqual(sent, [])
        self.assertEqual(self.successResultOf(ask(GetBlock(other_hash, None), IMAGE, OTHER)), BlockData(other))
        self.assertEqual(sent, [(OTHER, len(other))])


class TakenBack(SyncCase):
    """An order that one server refuses for what it has, after others accepted it."""

    @shows("K2.1", "K2.3")
    def test_append(self) -> None:
        """Content that a server refused would go to all others, and displace there what it has."""
        for number in (1, 2, 3):
            self.node(number, range(1, 4))
        self.nodes[3].reason = "already_exists"
        self.begin(["n1", "n2"])
        self.pass_(1)
        for number in (1, 2):
            self.assertEqual(self.nodes[number].withdrawn, [WithdrawUpload(PATH, IMAGE)])
        self.assertEqual(self.nodes[3].withdrawn, [])
        row = self.ended(UploadOutcome.REJECTED, EXIT_CONFLICT)
        self.assertIn("n3 (10.0.0.3:24783) refused: already_exists: other content is there", row.verdict.why)
        self.assertEqual(row.standing.accepted, ())
        self.assertEqual([news.state for news in self.heard.news].count("withdrawn"), 2)

    @shows("K2.1")
    def test_answers_that_come_later(self) -> None:
        """A server that accepts after another one has refused would keep the order."""
        self.node(1).reason = "already_exists"
        slow = self.node(2)
        answer: Deferred[Response] = Deferred()
        take = slow.requested
        slow.requested = lambda link, request: answer if isinstance(request, AppendDir) else take(link, request)  # type: ignore[method-assign]
        self.begin(["n1", "n2"])
        self.pass_(2)
        self.assertIsNone(self.rows)
        answer.callback(UploadAck(True, None))
        self.pass_(0.2)
        self.assertEqual(slow.withdrawn, [WithdrawUpload(PATH, IMAGE)])
        self.ended(UploadOutcome.REJECTED, EXIT_CONFLICT)

    @shows("K2.1")
    def test_asked_again_meanwhile(self) -> None:
        """A server that accepted, was lost, and has not answered again would keep the order: taking it back would overtake it."""
        late, refusal = Deferred[Response](), Deferred[Response]()
        answers = {1: [succeed(UploadAck(True, None)), late], 2: [refusal]}
        for number, waiting in answers.items():
            node = self.node(number)

            def requested(link: object, request: Request, node: FakeNode = node, waiting: list[Deferred[Response]] = waiting) -> Any:
                return waiting.pop(0) if isinstance(request, AppendDir) else FakeNode.requested(node, link, request)  # type: ignore[arg-type]

            node.requested = requested  # type: ignore[assignment,method-assign]
        self.begin(["n1", "n2"])
        self.nodes[1].links[0].close()  # type: ignore[attr-defined]
        self.pass_(3)
        self.assertEqual(answers, {1: [], 2: []})
        refusal.callback(UploadAck(False, "already_exists"))
        self.pass_(1)
        self.assertIsNone(self.rows)
        late.callback(UploadAck(True, None))
        self.pass_(0.2)
        self.assertEqual(self.nodes[1].withdrawn, [WithdrawUpload(PATH, IMAGE)])
        self.ended(UploadOutcome.REJECTED, EXIT_CONFLICT)

    def test_nobody_else_is_asked(self) -> None:
        """After the refusal, servers that do not know better would be asked one after the other."""
        self.node(1, range(1, 6)).reason = "already_exists"
        others = [self.node(number, range(1, 6)) for number in range(2, 6)]
        self.begin(["n1"])
        self.pass_(2)
        self.assertEqual([node.requests for node in others], [[]] * 4)
        self.ended(UploadOutcome.REJECTED, EXIT_CONFLICT)

    def test_kept_all_the_same(self) -> None:
        """The user would not learn where his content stays."""
        self.node(1).there = IMAGE
        self.node(2).reason = "already_exists"
        self.begin(["n1", "n2"])
        self.pass_(1)
        self.ended(UploadOutcome.REJECTED, EXIT_CONFLICT)
        self.assertIn(f"n1: n1 (10.0.0.1:24783) {PATH} does not give it up again: it is there", self.heard.problems)

    def test_silent_meanwhile(self) -> None:
        """A server that does not answer would keep the command from its end."""
        one = self.node(1)
        take = one.requested
        one.requested = lambda link, request: Deferred() if isinstance(request, WithdrawUpload) else take(link, request)  # type: ignore[method-assign]
        self.node(2).reason = "already_exists"
        self.begin(["n1", "n2"])
        self.pass_(ANSWER_TIMEOUT_S + 1)
        self.ended(UploadOutcome.REJECTED, EXIT_CONFLICT)
        self.assertIn("does not give it up again: no answer within 30 s", " ".join(self.heard.problems))

    def test_reference(self) -> None:
        """A server of the reference would be sent what ends the connection."""
        self.hub.old.update((address(1), address(2)))
        self.node(1)
        self.node(2).reason = "already_exists"
        self.begin(["n1", "n2"])
        self.pass_(1)
        self.assertEqual(self.nodes[1].withdrawn, [])
        self.assertIsNone(self.rows)


class ReplaceTakenBack(SyncCase):
    @shows("K2.2")
    def test_replace(self) -> None:
        """A replace of one image would win through a server that is behind. Of two replaces the newer one wins without anybody's help."""
        for old, reason, taken_back in ((OTHER, "replace_doesnt_match_index", True), (None, "already_uploading_different_version", False)):
            self.uploads = (Upload(ReplaceDir(PATH, IMAGE, old, 1_700_000_000_000, (b"\x55" * 64,)), False, 10),)
            self.node(1)
            self.node(2).reason = reason
            self.begin(["n1", "n2"])
            self.pass_(1)
            self.assertEqual(bool(self.nodes[1].withdrawn), taken_back, reason)
            self.assertEqual(self.rows is None, not taken_back, reason)


class Serving(SyncCase):
    def ask(self, request: Request) -> Deferred[Response]:
        answer = self.nodes[1].links[0].ask(request)
        self.pass_(0.1)
        return answer

    def test_serves(self) -> None:
        """A node gets the index and the blocks, and what is shown as sent really went out."""
        self.node(1)
        self.begin(["n1"])
        self.assertEqual(self.successResultOf(self.ask(GetIndex(IMAGE, PATH))), IndexData(b"the index"))
        self.assertEqual(self.successResultOf(self.ask(GetBlock(HASH, None))), BlockData(BLOCK))
        self.assertEqual(self.running().sent_bytes, len(b"the index") + len(BLOCK))

    def test_packed_index(self) -> None:
        """An index would travel in its full length to a node that could read it compressed; or compressed to one that cannot."""
        data = b"index " * 1000
        source = ImageSource(
            [SharedImage(INDEX, data, FakeTree(), "./a")], lambda f, *args, **kw: succeed(f(*args, **kw)), lambda image, text: None
        )
        sent: list[int] = []
        for packed in (False, True):
            answer = self.successResultOf(source.answer(GetIndex(IMAGE, PATH, packed), (IMAGE,), lambda image, size: sent.append(size)))
            assert isinstance(answer, IndexData)
            self.assertEqual(answer.packed, packed)
            self.assertEqual(unpack_index(answer.data, len(data)) if packed else answer.data, data)
            self.assertEqual(sent.pop(), len(answer.data))

    @shows("A29", "I13")
    def test_only_what_was_published(self) -> None:
        """A server cannot fetch anything else, nor end the client by asking for it (U18)."""
        self.node(1)
        self.begin(["n1"])
        for request in (GetIndex(OTHER, None), GetBlock(BlockHash(b"\x00" * 32), None), GetBaseDir("/apps")):
            self.failureResultOf(self.ask(request), RemoteError)
        self.assertEqual(self.running().sent_bytes, 0)
        self.assertEqual(self.heard.problems, [])

    def test_serves_many(self) -> None:
        """Blocks would travel one by one; or a node could make the client gather more than an answer may hold."""
        self.node(1)
        self.begin(["n1"])
        self.assertEqual(self.successResultOf(self.ask(GetBlocks(PATH, IMAGE, (0,)))), BlocksData((BlockPart(BLOCK),)))
        self.assertEqual(self.running().sent_bytes, len(BLOCK))
        for numbers in ((), (1,), (0, 1)):
            self.failureResultOf(self.ask(GetBlocks(PATH, IMAGE, numbers)), RemoteError)
        self.failureResultOf(self.ask(GetBlocks(PATH, OTHER, (0,))), RemoteError)
        self.tree.broken = True
        answer = self.nodes[1].links[0].ask(GetBlocks(PATH, IMAGE, (0,)))
        answer.addErrback(lambda failure: failure.trap(RemoteError, LinkLost))
        self.pass_(0.1)
        self.assertIn("./dist/x", self.ended(UploadOutcome.FAILED, EXIT_LOCAL).verdict.why)

    def test_too_much_at_once(self) -> None:
        """The same for blocks that are there."""
        whole = b"x" * BLOCK_BYTES
        hashes = HashKind.BLAKE2B.hash(whole) * 40
        large = Index(IMAGE, HashKind.BLAKE2B, (Directory("/", (File("/x", False, 40 * BLOCK_BYTES, hashes),)),))

        class LargeTree(FakeTree):
            def blocks(self, numbers: Sequence[int]) -> list[Block | None]:
                return [whole for _ in numbers]

        source = ImageSource(
            [SharedImage(large, b"", LargeTree(), "./a")], lambda f, *args, **kw: succeed(f(*args, **kw)), lambda image, text: None
        )
        ask = partial(source.answer, published=(IMAGE,), sent=lambda image, size: None)
        self.failureResultOf(ask(GetBlocks(PATH, IMAGE, tuple(range(33)))), RemoteError)
        self.assertEqual(self.successResultOf(ask(GetBlocks(PATH, IMAGE, tuple(range(32))))), BlocksData((BlockPart(whole),) * 32))

    def test_parts(self) -> None:
        """A part would not be what the other side cuts out; or what changed would take the rest of its answer with it."""
        blocks = [(b"%d" % number).ljust(BLOCK_BYTES) for number in range(600)]
        hashes = [HashKind.BLAKE2B.block(data) for data in blocks]
        large = Index(IMAGE, HashKind.BLAKE2B, (Directory("/", (File("/x", False, len(blocks) * BLOCK_BYTES, b"".join(hashes)),)),))
        gone: set[BlockHash] = set()
        jobs: list[object] = []

        class LargeTree(FakeTree):
            def blocks(self, numbers: Sequence[int]) -> list[Block | None]:
                return [None if hashes[one] in gone else blocks[one] for one in numbers]

        def in_thread(job: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
            jobs.append(job)
            return succeed(job(*args, **kwargs))

        told: list[str] = []
        sent: list[int] = []
        tree = LargeTree()
        source = ImageSource([SharedImage(large, b"", tree, "./a")], in_thread, lambda image, text: told.append(text))

        def ask(numbers: Sequence[int], packed: bool) -> BlocksData:
            request = GetBlocks(PATH, IMAGE, tuple(numbers), packed)
            answer = self.successResultOf(source.answer(request, (IMAGE,), lambda image, size: sent.append(size)))
            assert isinstance(answer, BlocksData)
            return answer

        asked = [0, 1, 2, 3, 300, 301]
        groups = large.pieces.groups(asked)
        self.assertGreater(len(groups), 2)
        whole = tuple(BlockPart(b"".join(blocks[number] for number in group)) for group in groups)
        self.assertEqual(ask(asked, False), BlocksData(whole))
        self.assertEqual((len(jobs), sent), (1, [6 * BLOCK_BYTES]))
        packed = ask(asked, True)
        self.assertEqual([one.packed for one in packed.parts], [True] * len(groups))
        unpacked = [unpack(one.data, len(group) * BLOCK_BYTES) for one, group in zip(packed.parts, groups, strict=True)]
        self.assertEqual(unpacked, [one.data for one in whole])
        self.assertEqual(sent[1], sum(len(one.data) for one in packed.parts))
        gone |= {hashes[1], *(hashes[number] for number in groups[-1])}
        tree.broken = True
        answer = ask(asked, False)
        self.assertEqual(answer.lacks, (1, *groups[-1]))
        kept = [[number for number in group if number != 1] for group in groups[:-1]]
        self.assertEqual(answer.parts, tuple(BlockPart(b"".join(blocks[number] for number in group)) for group in kept if group))
        self.assertEqual(len(told), 1)
        gone |= set(hashes)
        self.assertEqual(ask(asked, True), BlocksData((), tuple(asked)))
        self.assertEqual(len(sent), 3, "nothing was sent")

    def test_shares(self) -> None:
        """Two nodes would take the same from the client; or what a node took that is gone would be given to nobody."""
        self.node(1)
        self.node(2)
        self.begin(["n1", "n2"])
        first, second = self.nodes[1].links[0], self.nodes[2].links[0]
        all_of_it = b"\xff" * 32
        answers = [link.ask(GetShare(IMAGE, all_of_it)) for link in (first, second)]
        self.pass_(0.1)
        shares = [self.successResultOf(answer).pieces for answer in answers]  # type: ignore[union-attr]
        self.assertEqual(sorted(shares), [bytes(32), all_of_it])
        taker, other = (first, second) if any(shares[0]) else (second, first)
        taker.close()
        self.pass_(0.1)
        again = other.ask(GetShare(IMAGE, all_of_it))
        self.pass_(0.1)
        self.assertEqual(self.successResultOf(again), ShareData(all_of_it))
        for refused in (GetShare(OTHER, all_of_it), GetShare(IMAGE, bytes(64)), GetPieces(PATH, IMAGE, all_of_it)):
            answer = other.ask(refused)
            self.pass_(0.1)
            self.failureResultOf(answer, RemoteError)
        self.assertEqual(self.heard.problems, [])

    def test_reads_together(self) -> None:
        """Requests that come together are read in one job, not in one thread hop each."""
        self.node(1)
        self.begin(["n1"])
        answers = [self.nodes[1].links[0].ask(GetBlock(HASH, None)) for _ in range(5)]
        self.pass_(0.1)
        self.assertEqual([self.successResultOf(answer) for answer in answers], [BlockData(BLOCK)] * 5)

    @shows("F54", "I7")
    def test_changed_file(self) -> None:
        """A file that was changed under the upload ends it with exit code 1 and the file's name."""
        self.node(1)
        self.begin(["n1"])
        self.tree.broken = True
        self.ask(GetBlock(HASH, None)).addErrback(lambda failure: failure.trap(RemoteError, LinkLost))
        self.pass_(0.1)
        row = self.ended(UploadOutcome.FAILED, EXIT_LOCAL)
        self.assertIn("./dist/x", row.verdict.why)

    def test_changed_after_a_node_has_it(self) -> None:
        """Once a node has all of it, the others get it from there: the change is told, and the upload goes on."""
        self.node(1, [1, 2])
        self.node(2, [1, 2])
        self.begin(["n1"])
        self.received(1, 1)
        self.pass_(0.1)
        self.tree.broken = True
        self.failureResultOf(self.ask(GetBlock(HASH, None)), RemoteError)
        self.running()
        self.assertIn("./dist/x", self.heard.problems[0])
        self.received(2, 2)
        self.pass_(0.1)
        self.ended(UploadOutcome.DONE)
