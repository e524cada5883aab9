"""What a user is shown before something is removed or gone back to, and why a cleanup spares or drops an image."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client import removing
from ciruela.client.contacts import RunContext
from ciruela.client.crawl import MOST_ANSWERS
from ciruela.client.explain import at_fault, checked, legend, lines, table
from ciruela.client.options.removing import PathTarget, split_target
from ciruela.client.pathview import PathView, look
from ciruela.client.removing import _what
from ciruela.client.rollback import candidates, chosen
from ciruela.client.uploadrun import ANSWER_TIMEOUT_S
from ciruela.interfaces import Address
from ciruela.model.errors import ConfigError, LinkLost, RemoteError
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.versions import SigEntry, State, Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import BaseDirData, GetIndexAt, IndexAtData, Request
from tests.disk.trees import in_place
from tests.proof import shows

PATH = VPath.parse("/app/main")
A, B, C = (ImageId(text * 32) for text in (b"a", b"b", b"c"))


def answer(image: ImageId | None, *kept: tuple[int, ImageId], stamp: int = 9000, pending: tuple[str, ...] = ()) -> BaseDirData:
    dirs = {} if image is None else {"main": State(image, (SigEntry(stamp, bytes(64)),))}
    rows = {"main": tuple(Version(*one) for one in kept)} if kept else {}
    return BaseDirData(bytes(32), bytes(32), dirs, pending=pending, kept=rows)


class SightTests(SynchronousTestCase):
    """What some nodes say, taken together."""

    def sight(self, **answers: BaseDirData) -> PathView:
        return PathView(PATH, dict(answers))

    def test_newest(self) -> None:
        """A node that is behind would make a user remove, or go back from, something else than is there."""
        sight = self.sight(n1=answer(A, stamp=1), n2=answer(B, stamp=2), n3=answer(None))
        assert sight.newest is not None
        self.assertEqual(sight.newest.image, B)
        self.assertEqual((sight.with_image(A), sight.with_image(C)), (["n1"], []))
        shown = _what(PathTarget("host", PATH), B, sight, None)
        self.assertIn(f"Removing /app/main: {B.hex()}, signed 1970-01-01T00:00:00Z, unverified; 2 of the 3 nodes", shown)
        self.assertIn("which none of the nodes that were asked has", _what(PathTarget("host", PATH), C, sight, None))

    def test_what_can_be_gone_back_to(self) -> None:
        """The list would name the current image, name one twice, or begin with an old one."""
        sight = self.sight(n1=answer(B, (5, A), (3, C)), n2=answer(B, (6, A)), n3=answer(C, (9000, B), stamp=1))
        self.assertEqual(list(sight.kept), [A, C])
        self.assertEqual(sight.kept[A], (Version(6, A), ["n2", "n1"]))
        self.assertIn("kept by 2 of 3 nodes that were asked  unverified", candidates(sight, {})[0])
        self.assertEqual(chosen(None, sight), (A, ""))
        self.assertEqual(chosen(C, sight), (C, ""))

    def test_none(self) -> None:
        """Somebody would be asked to agree to what cannot be done."""
        full = {"n1": answer(B, (5, A))}
        for image, sight, why in (
            (None, self.sight(n1=answer(None)), "nothing is there"),
            (None, self.sight(n1=answer(B)), "keeps a replaced image"),
            (B, self.sight(**full), "is there already"),
            (C, self.sight(**full), "none of the nodes that were asked keeps"),
            (None, self.sight(**full, n2=answer(B, (4, C))), "do not agree"),
            (None, self.sight(n1=answer(B, (5, A), pending=("main",))), "an upload is on its way"),
        ):
            found, said = chosen(image, sight)
            self.assertIsNone(found)
            self.assertIn(why, said)
        self.assertEqual(chosen(A, self.sight(**full, n2=answer(B, (4, C)))), (A, ""))

    def test_target(self) -> None:
        """A colon too few would make a path of a host."""
        self.assertEqual(split_target("host:/app/v1"), PathTarget("host", VPath.parse("/app/v1")))
        self.assertEqual(split_target("[::1]:99:/app/v:/1").entry_point, "[::1]:99")
        for bad in ("host", ":/app", "host:app", "host:/", "host:/app/../x", "ho st:/app", "/app/v1"):
            with self.assertRaises(ValueError):
                split_target(bad)


class _Link:
    """A connection to a node of the test."""

    name = "n"

    def __init__(self, node: dict[str, Any]) -> None:
        self.node = node
        self.bulk = not node.get("old")
        self.closed = False
        self.asked: list[Request] = []

    def ask(self, request: Request) -> Deferred[Any]:
        self.asked.append(request)
        if self.node.get("silent"):
            return Deferred()
        if isinstance(request, GetIndexAt):
            return succeed(IndexAtData(None, {MachineId(bytes([at]) * 16): host for at, host in enumerate(self.node["hosts"])}))
        found = self.node["base"]
        return fail(RemoteError("No such config")) if found is None else succeed(found)

    def close(self) -> None:
        self.closed = True


class LookTests(SynchronousTestCase):
    """Which nodes are asked."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.nodes: dict[str, dict[str, Any]] = {}
        self.links: list[_Link] = []
        self.world = RunContext(self.clock, random.Random(1), self.connect, self.resolve)
        self.addCleanup(lambda: self.assertTrue(all(link.closed for link in self.links)))

    def resolve(self, name: str) -> Deferred[list[Address]]:
        if name == "lost":
            return fail(LinkLost("nobody knows it"))
        return succeed([Address(f"10.0.0.{name.removeprefix('n')}", 1)])

    def connect(self, address: Address, _counterpart: object) -> Deferred[Any]:
        node = self.nodes.get(f"n{address.host.rpartition('.')[2]}")
        if node is None:
            return fail(LinkLost(f"{address}: refused"))
        self.links.append(_Link(node))
        return succeed(self.links[-1])

    def look(self, name: str, path: VPath = PATH) -> Deferred[PathView]:
        return Deferred.fromCoroutine(look(name, path, self.world))

    def test_through_an_entry_point_that_has_nothing(self) -> None:
        """A user would have to know which nodes take a directory."""
        self.nodes = {"n1": {"hosts": ["n2", "n3", "n4", "n5", "n6"], "base": None}}
        self.nodes |= {f"n{number}": {"hosts": [], "base": answer(A)} for number in (3, 4, 5, 6)}
        sight = self.successResultOf(self.look("n1"))
        self.assertEqual(len(sight.answers), MOST_ANSWERS)
        self.assertEqual(sight.problems[0], "n1: No such config")

    @shows("K3.6")
    def test_name_that_leads_nowhere(self) -> None:
        """What a server has that others name, and nobody can reach, would be taken for nothing."""
        self.nodes = {"n1": {"hosts": ["lost", "n2"], "base": answer(None)}, "n2": {"hosts": ["lost"], "base": answer(None)}}
        sight = self.successResultOf(self.look("n1"))
        self.assertEqual((sorted(sight.answers), sight.silent), (["n1", "n2"], ["lost"]))
        self.assertEqual(sight.problems, ["lost: nobody knows it"])

    def test_nobody(self) -> None:
        """A cluster that cannot be reached would look like one that has nothing."""
        failed = self.failureResultOf(self.look("n9"), LinkLost)
        self.assertIn("refused", str(failed.value))
        self.nodes = {"n1": {"hosts": [], "base": None}}
        self.assertIn("No such config", str(self.failureResultOf(self.look("n1"), LinkLost).value))

    def test_silent(self) -> None:
        """One node that hangs would keep a command from doing anything for ever."""
        self.nodes = {"n1": {"silent": True}}
        looking = self.look("n1")
        self.assertNoResult(looking)
        self.clock.advance(ANSWER_TIMEOUT_S)
        self.failureResultOf(looking, LinkLost)

    @shows("I8")
    def test_old_servers_live(self) -> None:
        """A server of the reference would die of the question, and what it has not would be said to be unknown."""
        self.nodes = {"n1": {"hosts": [], "base": answer(A), "old": True}}
        failed = self.failureResultOf(self.look("n1", VPath.parse("/www")), LinkLost)
        self.assertEqual(str(failed.value), "n1: it is a server of the first implementation, which has no images at /www")
        self.assertEqual([link.asked for link in self.links], [[]])
        self.assertEqual(list(self.successResultOf(self.look("n1")).answers), ["n1"])


def page(*images: tuple[str, str, bool, str, str | None]) -> dict[str, Any]:
    rows = [
        {"name": name, "image_id": A.hex(), "signed": signed, "keeps": keeps, "why": why, "not_before": when}
        for name, signed, keeps, why, when in images
    ]
    return {"images": rows, "blocked": [], "auto_clean": True}


class AskingTests(SynchronousTestCase):
    """The question before anything is signed."""

    def asked(self, line: str | None, *, sure: bool = False) -> Deferred[bool]:
        """What ``line`` means that a user types; None where there is no terminal."""
        self.patch(removing, "terminal_line", lambda: None if line is None else lambda _prompt: line)
        around: Any = SimpleNamespace(in_thread=in_place)
        return Deferred.fromCoroutine(removing.agreed("Remove it?", sure, around))

    def test_answers(self) -> None:
        """Anything that is typed by mistake would count as a yes."""
        self.assertEqual([self.successResultOf(self.asked(line)) for line in ("y\n", "YES\n", " yes \n")], [True] * 3)
        self.assertEqual([self.successResultOf(self.asked(line)) for line in ("", "\n", "n\n", "yess\n", "y y\n")], [False] * 5)

    def test_nobody_to_ask(self) -> None:
        """A script would hang, or remove something without having said that it is sure."""
        self.assertTrue(self.successResultOf(self.asked(None, sure=True)))
        self.failureResultOf(self.asked(None), ConfigError)


class TableTests(SynchronousTestCase):
    """``ciruela explain-cleanup``."""

    def test_agreeing_and_not(self) -> None:
        """Nobody would see that one node keeps what another one drops."""
        recent = ("v2", "2026-01-02T00:00:00Z", True, "recent")
        pages = {
            "n1": page((*recent, "2026-01-05T00:00:00.123000000Z"), ("v1", "2026-01-01T00:00:00Z", False, "old", "2026-01-03T00:00:00Z")),
            "n2": page((*recent, "2026-01-04T00:00:00Z"), ("v1", "2026-01-01T00:00:00Z", True, "on the keep list", None)),
        }
        found = lines(pages)
        self.assertEqual((found[0].name, found[0].keeps, found[0].nodes), ("v2", True, ("n1", "n2")))
        self.assertEqual({line.nodes for line in found[1:]}, {("n1",), ("n2",)})
        text = table(pages)
        self.assertTrue(text[1].endswith("2026-01-04T00:00:00Z"), text)
        self.assertTrue(any(row.endswith("on n1") and "drops  old" in row for row in text), text)

    @shows("W1")
    def test_words(self) -> None:
        """Who is told "surplus" or "peers" would need the reference to know what it means, and what to set."""
        settings = {"keep_min_directories": 2, "keep_max_directories": 3, "keep_recent_s": 90_000}
        pages = {name: page(("v2", "2026-01-02T00:00:00Z", True, "signed within keep-recent", None)) for name in ("n1", "n2")}
        for one in pages.values():
            one["images"][0]["rule"] = "recent"
            one["settings"] = settings
        self.assertEqual(legend(pages), ["signed within keep-recent: its newest signature is younger than that: keep-recent is 1 day 1 h"])
        pages["n2"]["settings"] = settings | {"keep_recent_s": 172_800}
        self.assertIn("is 1 day 1 h or 2 days", legend(pages)[0])
        for page_of_older in ({}, {"settings": 7}, {"settings": {"keep_recent_s": "x"}}):
            self.assertIn("keep-recent is ?", legend({"n1": pages["n1"] | {"settings": None} | page_of_older})[0])
        self.assertEqual(legend({"n1": page(("v", "", True, "why", None))}), [])

    @shows("W1")
    def test_first_minutes(self) -> None:
        """Right after an update every node would seem to be cut off from the others."""
        (only,) = at_fault(["peers", "starting"])
        self.assertIn("less than ten minutes", only)
        self.assertEqual([one.partition(" ")[0] for one in at_fault(["peers"])], ["peers"])
        self.assertEqual([one.partition(" ")[0] for one in at_fault(["protect", "starting"])], ["protect", "starting"])
        self.assertEqual(at_fault(["\x1b[2J"]), ["\\x1b[2J"])

    def test_from_the_network(self) -> None:
        """A page could move the cursor, or end the program with a traceback."""
        self.assertNotIn("\x1b", "\n".join(table({"n\x1b1": page(("v\x1b[2J", "\x1b", True, "\x1b", "\x1b"))})))
        for bad in (None, [], {}, {"images": [{}], "blocked": []}, {"images": {}, "blocked": []}, json.loads('{"images": []}')):
            with self.assertRaises(RemoteError):
                checked(bad)
