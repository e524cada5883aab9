"""``ciruela sync`` from end to end against real nodes in memory: what is asked before anything is sent, and what follows from it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client import commands
from ciruela.client.contacts import RunContext
from ciruela.client.context import AppContext
from ciruela.client.entrance import PATIENCE_S
from ciruela.client.options.sync import SyncOptions
from ciruela.client.options.table import parse_sync
from ciruela.client.report import Report
from ciruela.client.tracker import CompletionRule
from ciruela.index.digest import HashKind
from ciruela.index.parse import parse
from ciruela.interfaces import Address
from ciruela.model.errors import LinkLost
from ciruela.model.versions import State
from ciruela.model.vpath import VPath
from tests.client.test_commands import Output, at_once
from tests.doubles.memnet import OUTSIDE
from tests.proof import shows
from tests.scenarios.cluster import Cluster

PATH = "/logs/v1"
SITE = "/app/site"


class PreflightCase(SynchronousTestCase):
    """Three nodes that know each other, and a client outside with two directories of three files, of which one differs."""

    def setUp(self) -> None:
        self.top = Path(self.mktemp()).absolute()
        self.top.mkdir()
        key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
        form = serialization.PrivateFormat.OpenSSH
        (self.top / "key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
        (self.top / "key").chmod(0o600)
        self.first = self.directory("first", a=b"a" * 50_000, b=b"b", c=b"first")
        self.other = self.directory("other", a=b"a" * 50_000, b=b"b", c=b"other")
        self.cluster = Cluster(3)
        self.cluster.run(5.0)
        self.ahead_ms = 0

    def directory(self, name: str, **files: bytes) -> Path:
        made = self.top / name
        made.mkdir()
        for file, content in files.items():
            (made / file).write_bytes(content)
        return made

    def begin(self, *words: str, known: Iterable[int] = (1, 2, 3)) -> Deferred[int]:
        options = parse_sync(["-i", str(self.top / "key"), *words])
        assert isinstance(options, SyncOptions)
        cluster = self.cluster
        self.out, self.err = Output(), Output()
        around = AppContext(
            reactor=cluster.clock,
            now_ms=lambda: cluster.now_ms() + self.ahead_ms,
            rng=random.Random(2),
            environ={"HOME": str(self.top)},
            stdout=self.out,
            stderr=self.err,
            in_thread=at_once,
            look_up_in_thread=at_once,
        )
        if options.json:
            around = replace(around, report=Report(self.out))

        def resolve(name: str) -> Deferred[list[Address]]:
            number = int(name.removeprefix("n"))
            return succeed([cluster.address(number)]) if number in known else fail(LinkLost(f"the name {name} cannot be resolved"))

        world = RunContext(cluster.clock, random.Random(3), lambda where, other: cluster.hub.link(other, where, OUTSIDE), resolve)  # type: ignore[arg-type]
        self.began_s = cluster.clock.seconds()
        return Deferred.fromCoroutine(commands.sync(options, around, world))

    def sync(self, *words: str, seconds: float = 120.0, known: Iterable[int] = (1, 2, 3)) -> int:
        """Run it to its end. Gives the exit code."""
        running = self.begin(*words, known=known)
        self.cluster.run(seconds, until=lambda: running.called)
        code = self.successResultOf(running)
        assert isinstance(code, int)
        return code

    def published(self, *words: str, path: str = PATH) -> None:
        """Put the first directory on all nodes."""
        mode = "--append" if path == PATH else "--replace"
        self.assertEqual(self.sync(*words, mode, f"{self.first}:{path}", "-m", "n1", "n2", "n3"), 0, self.said())
        self.cluster.run(5.0)
        self.assertEqual(len(self.images(path)), 3)

    def said(self) -> str:
        return self.out.text + self.err.text

    def states(self, path: str = PATH) -> dict[int, State]:
        """What is committed there, by node."""
        found = {number: node.ledger.committed(VPath.parse(path)) for number, node in self.cluster.nodes.items()}
        return {number: state for number, state in found.items() if state is not None}

    def images(self, path: str = PATH) -> dict[int, bytes]:
        return {number: bytes(state.image) for number, state in self.states(path).items()}

    def kind(self, path: str = PATH) -> HashKind:
        """The one kind of hash of what is there."""
        kinds = set()
        for number, state in self.states(path).items():
            data = self.successResultOf(self.cluster.disks[number].read_index_bytes(state.image))
            kinds.add(parse(data, state.image).kind)
        (kind,) = kinds
        return kind

    def pending(self, path: str = PATH) -> list[int]:
        return [number for number, node in self.cluster.nodes.items() if node.ledger.pending(VPath.parse(path)) is not None]

    def empty(self, number: int) -> None:
        """Node ``number`` is replaced by one with an empty disk, which reaches the client and, for now, no other node."""
        self.cluster.kill(number)
        here = self.cluster.address(number)
        others = [self.cluster.address(one) for one in (1, 2, 3) if one != number]
        self.cluster.start(number, wiped=True)
        for other in others:
            self.cluster.hub.silence(here, other)
            self.cluster.hub.silence(other, here)
        self.cluster.run(20.0)


class Conflicts(PreflightCase):
    @shows("K2.1", "K2.3")
    def test_empty_node(self) -> None:
        """Content that was acknowledged would be displaced through a server that does not have it yet."""
        self.published()
        before = self.images()
        self.empty(3)
        self.assertEqual(self.sync("--append", f"{self.other}:{PATH}", "-m", "n1", "n2", "n3"), 6, self.said())
        self.assertIn(f"n1+2 {PATH}  REJECTED", self.out.text)
        self.assertIn("n1, n2 refused: already_exists: other content is there (1 of 3 files differs); nothing was sent", self.out.text)
        self.assertEqual(self.pending(), [])
        self.cluster.run(30.0)
        self.assertEqual(set(self.images().values()), set(before.values()))

    @shows("K2.1")
    def test_weak(self) -> None:
        """A weak append, which takes other content for as good, would put its own beside it."""
        self.published()
        before = self.images()
        self.empty(3)
        self.assertEqual(self.sync("--append-weak", f"{self.other}:{PATH}", "-m", "n1", "n2", "n3"), 0, self.said())
        self.assertEqual(self.pending(), [])
        self.cluster.run(30.0)
        self.assertEqual(set(self.images().values()), set(before.values()))

    @shows("K2.2")
    def test_old_id(self) -> None:
        """A replace of what is not there would win through the one server that is behind."""
        self.published(path=SITE)
        before = self.images(SITE)
        self.empty(3)
        never = "ab" * 32
        self.assertEqual(self.sync("--replace", f"{self.other}:{SITE}:{never}", "-m", "n1", "n2", "n3"), 6, self.said())
        self.assertIn("replace_doesnt_match_index", self.out.text)
        self.assertEqual(self.pending(SITE), [])
        self.cluster.run(30.0)
        self.assertEqual(set(self.images(SITE).values()), set(before.values()))

    @shows("K2.1", "I7")
    def test_dry_run_says_the_same(self) -> None:
        """A dry run would foresee success where the upload is sent to nobody."""
        self.published()
        self.empty(3)
        words = ("--append", f"{self.other}:{PATH}", "-m", "n1", "n2", "n3")
        self.assertEqual(self.sync("-n", *words), 6, self.said())
        self.assertIn("WOULD FAIL  1/3 nodes", self.out.text)
        self.assertIn("(1 of 3 files differs); nothing would be sent", self.out.text)
        self.assertEqual(self.sync("-n", "--json", *words), 6)
        summary = json.loads(self.out.text.splitlines()[-1])
        self.assertEqual((summary["exit_code"], summary["uploads"][0]["code"]), (6, "conflict"))

    def test_told(self) -> None:
        """A script would not learn which server refused, and that nothing was sent."""
        self.published()
        self.assertEqual(self.sync("--json", "--append", f"{self.other}:{PATH}", "-m", "n1", "n2", "n3"), 6)
        lines: list[dict[str, Any]] = [json.loads(line) for line in self.out.text.splitlines()]
        refused = [(one["host"], one["state"], one["code"]) for one in lines if one["type"] == "node"]
        self.assertEqual(sorted(refused), [(f"n{number}", "refused", "already_exists") for number in (1, 2, 3)])
        (upload,) = lines[-1]["uploads"]
        self.assertEqual((upload["outcome"], upload["exit_code"], upload["sent_bytes"]), ("rejected", 6, 0))

    def test_many_paths(self) -> None:
        """Questions would use up what a server lets one connection ask for, and the orders after them would have to wait."""
        words = [word for number in range(60) for word in ("--append", f"{self.first}:/logs/{number}")]
        self.assertEqual(self.sync(*words, "n1"), 0, self.said())
        self.assertEqual(sum(node.counterpart.slowed for node in self.cluster.nodes.values()), 0)
        words = [word for number in range(100) for word in ("--append", f"{self.first}:/logs/{number}")]
        self.assertEqual(self.sync("-n", *words, "n1"), 0, self.said())
        self.assertEqual(self.out.text.count("3/3 nodes"), 100)

    def test_others_go_on(self) -> None:
        """One path that is taken would keep the other paths of the command from being uploaded."""
        self.published()
        code = self.sync("--append", f"{self.other}:{PATH}", "--append", f"{self.other}:/logs/v2", "-m", "n1", "n2", "n3")
        self.assertEqual(code, 6)
        self.assertIn("/logs/v2  DONE", self.out.text)
        self.cluster.run(5.0)
        self.assertEqual(len(self.images("/logs/v2")), 3)


class SameContent(PreflightCase):
    @shows("K6.1")
    def test_other_hash(self) -> None:
        """What was uploaded with another hash, by a client of the reference or during an outage, could never be appended again."""
        self.published("--hash", "blake2b/256")
        before = self.images()
        self.assertEqual(self.kind(), HashKind.BLAKE2B)
        self.assertEqual(self.sync("--append", f"{self.first}:{PATH}", "-m", "n1", "n2", "n3"), 0, self.said())
        self.assertIn("DONE      3/3 nodes", self.out.text)
        self.assertEqual(self.images(), before)
        self.assertEqual(self.sync("-n", "--append", f"{self.first}:{PATH}", "n1"), 0, self.said())
        self.assertIn("NOTHING TO DO  3/3 nodes", self.out.text)
        self.assertEqual(self.sync("--exit-code", "--append", f"{self.first}:{PATH}", "n2"), 8, self.said())
        self.assertEqual(self.sync("--append", f"{self.other}:{PATH}", "n1"), 6, self.said())
        self.assertIn("1 of 3 files differs", self.out.text)

    @shows("K6.1")
    def test_named_hash(self) -> None:
        """A hash that the user names would make a conflict of the same content."""
        self.published()
        self.assertEqual(self.sync("--hash", "sha512/256", "--append", f"{self.first}:{PATH}", "n1"), 0, self.said())
        self.assertEqual(self.kind(), HashKind.BLAKE3)


class Kinds(PreflightCase):
    @shows("K6.1")
    def test_silent_server(self) -> None:
        """A server that is stopped would change the hash, and with it the identity of the same tree."""
        self.published()
        self.cluster.hub.pause(self.cluster.address(1))
        self.begin("--append", f"{self.first}:{PATH}", "-m", "n1", "n2", "n3")
        self.cluster.run(PATIENCE_S + 1.0)
        self.assertNotIn("already_exists", self.said())
        self.assertNotIn("REJECTED", self.said())
        self.begin("--append", f"{self.first}:/logs/v2", "-m", "n1", "n2", "n3")
        self.cluster.run(PATIENCE_S + 5.0)
        self.assertEqual(self.kind("/logs/v2"), HashKind.BLAKE3)

    @shows("K6.2")
    def test_reference_in_the_set(self) -> None:
        """Servers of the reference would be given an index that they cannot read, and ask for it without end."""
        self.cluster.hub.old.add(self.cluster.address(3))
        self.begin("--append", f"{self.first}:{PATH}", "-m", "n1", "n2", "n3")
        self.cluster.run(20.0)
        self.assertEqual(self.kind(), HashKind.BLAKE2B)

    @shows("K6.3")
    def test_each_cluster_its_own(self) -> None:
        """One cluster that cannot be reached, or is the reference's, would change the hash for all others."""
        self.cluster.hub.old.add(self.cluster.address(2))
        self.cluster.hub.partition([[self.cluster.address(1), OUTSIDE], [self.cluster.address(2)], [self.cluster.address(3)]])
        self.begin("--append", f"{self.first}:{PATH}", "n1", "n4", known=(1,))
        self.cluster.run(CompletionRule().connect_timeout_s + 5.0)
        self.assertEqual(self.kind(), HashKind.BLAKE3)
        self.cluster.hub.partition([[self.cluster.address(1), self.cluster.address(2), OUTSIDE], [self.cluster.address(3)]])
        self.begin("--append", f"{self.first}:/logs/v2", "n1", "n2")
        self.cluster.run(5.0)
        self.assertEqual(self.err.text.count("Indexed"), 2)

    @shows("K7.1")
    def test_nobody_answers(self) -> None:
        """A mistyped entry point would be tried for half an hour, after everything was indexed."""
        self.assertEqual(self.sync("--append", f"{self.first}:{PATH}", "n4", known=(), seconds=60.0), 3)
        self.assertIn(f"n4 {PATH}  FAILED", self.out.text)
        self.assertRegex(self.out.text, r"\(no node was reached within 0:1[45]: the name n4 cannot be resolved\)")
        self.assertLessEqual(self.cluster.clock.seconds() - self.began_s, CompletionRule().connect_timeout_s)
        self.assertEqual(self.sync("-n", "--append", f"{self.first}:{PATH}", "n4", known=()), 3)
        self.assertLess(self.cluster.clock.seconds() - self.began_s, 1.0)

    def test_late_server(self) -> None:
        """A server that is being restarted would be taken for one that is gone."""
        self.cluster.kill(1)
        running = self.begin("--append", f"{self.first}:{PATH}", "n1")
        self.cluster.run(3.0)
        self.cluster.start(1)
        self.cluster.run(60.0, until=lambda: running.called)
        self.assertEqual(self.successResultOf(running), 0, self.said())

    def test_one_connection(self) -> None:
        """Each upload would begin with a connection that is thrown away."""
        self.cluster = Cluster(1)
        self.cluster.run(3.0)
        before = self.cluster.hub.counters["links"]
        self.assertEqual(self.sync("--append", f"{self.first}:{PATH}", "n1"), 0)
        self.assertEqual(self.cluster.hub.counters["links"] - before, 1)
        self.cluster.run(1.0)
        self.assertEqual([pair for pair in self.cluster.hub._pairs if pair[0].alive and pair[0].here == OUTSIDE], [])


class Clocks(PreflightCase):
    @shows("K7.7")
    def test_after_a_fast_clock(self) -> None:
        """Nobody could replace for minutes what a host with a fast clock has uploaded."""
        self.ahead_ms = 4 * 60_000
        self.published(path=SITE)
        before = self.states(SITE)[1].version
        self.ahead_ms = 0
        self.assertEqual(self.sync("--replace", f"{self.other}:{SITE}", "-m", "n1", "n2", "n3"), 0, self.said())
        after = self.states(SITE)[1].version
        self.assertNotEqual(after.image, before.image)
        self.assertEqual(after.timestamp_ms, before.timestamp_ms + 1)

    @shows("K7.7")
    def test_too_far(self) -> None:
        """The user of the host with the wrong clock would not learn that it is his."""
        self.published(path=SITE)
        before = self.images(SITE)
        self.ahead_ms = -12 * 60_000
        self.assertEqual(self.sync("--replace", f"{self.other}:{SITE}", "n1"), 6, self.said())
        self.assertIn("stale_timestamp", self.out.text)
        self.assertRegex(self.out.text, r"what n1 has is signed for 1[12]:\d\d ahead of the clock of this host \(.+\), which is behind")
        self.assertEqual(self.images(SITE), before)


class Forecasts(PreflightCase):
    @shows("K5.1")
    def test_no_room(self) -> None:
        """A dry run would promise what cannot fit, with both numbers in its own output."""
        self.cluster.disks[2].free_bytes = 40_000
        words = ("--append", f"{self.first}:{PATH}", "-m", "n1", "n2", "n3")
        self.assertEqual(self.sync("-n", *words), 3, self.said())
        self.assertIn("WOULD FAIL  2/3 nodes", self.out.text)
        self.assertIn("n2  would fail  no_space  needs 48.8 KiB, 39.1 KiB are free", self.out.text)
        self.assertEqual(self.sync("-n", "--json", *words), 3)
        lines: list[dict[str, Any]] = [json.loads(line) for line in self.out.text.splitlines()]
        self.assertEqual([(one["state"], one["code"]) for one in lines if one.get("host") == "n2"], [("fails", "no_space")])
        self.assertEqual(lines[-1]["exit_code"], 3)

    @shows("K5.1")
    def test_room_for_what_is_new(self) -> None:
        """A server that has most of it already would be said to have no room."""
        self.published(path=SITE)
        for disk in self.cluster.disks.values():
            disk.free_bytes = 40_000
        self.assertEqual(self.sync("-n", "--replace", f"{self.other}:/app/next", "n1"), 0, self.said())
        self.assertIn("WOULD BE DONE  3/3 nodes", self.out.text)

    @shows("K5.1")
    def test_room_for_all_of_them(self) -> None:
        """Each of several uploads would fit, and all of them would not."""
        for disk in self.cluster.disks.values():
            disk.free_bytes = 60_000
        fresh = self.directory("fresh", d=b"d" * 50_000)
        self.assertEqual(self.sync("-n", "--append", f"{self.first}:/logs/1", "--append", f"{fresh}:/logs/2", "n1"), 3, self.said())
        self.assertIn("/logs/1  WOULD BE DONE", self.out.text)
        self.assertIn("/logs/2  WOULD FAIL  0/3 nodes", self.out.text)
        self.assertIn("needs 97.7 KiB, 58.6 KiB are free", self.out.text)

    @shows("K3.5")
    def test_removed_by_hand(self) -> None:
        """What an operator removed by hand would be said to be there, and never come back."""
        self.published()
        self.cluster.disks[2].lose(VPath.parse(PATH))
        second = self.cluster.address(2)
        self.cluster.hub.sever((second, other) for other in self.cluster.addresses(1, 3))  # nobody gives it to node 2 again meanwhile
        words = ("--append", f"{self.first}:{PATH}", "n1")
        self.assertEqual(self.sync("-n", "--exit-code", *words), 0, self.said())
        self.assertIn("n2  would take it", self.out.text)
        self.assertNotIn("NOTHING TO DO", self.out.text)
        self.cluster.hub.heal()
        self.assertEqual(self.sync("--exit-code", *words), 0, self.said())
        self.assertIn(VPath.parse(PATH), self.cluster.disks[2].images)

    @shows("K3.5", "I7")
    def test_nothing_to_do_means_everybody(self) -> None:
        """A server that cannot be asked, or a cluster that cannot be reached, would be taken for one that has it."""
        self.published()
        words = ("--exit-code", "--append", f"{self.first}:{PATH}", "-m", "n1", "n2", "n3")
        self.assertEqual(self.sync(*words), 8, self.said())
        self.begin("--exit-code", "--append", f"{self.first}:{PATH}", "n1", "n4")
        self.cluster.run(60.0)
        self.assertNotIn("Nothing to do", self.err.text)
        self.assertIn(f"n4 {PATH}  FAILED", self.out.text)
