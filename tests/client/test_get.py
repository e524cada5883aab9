"""``ciruela get``: over memory links, to a real directory."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.context import AppContext
from ciruela.client.errors import CommandError
from ciruela.client.get import destination, get
from ciruela.client.options.reading import GetOptions
from ciruela.client.options.table import parse
from ciruela.client.orders import LocalProblem
from ciruela.client.origin import ReadContext
from ciruela.interfaces import Address
from ciruela.model.errors import LinkLost
from ciruela.proto.messages import BlockData, BlockPart, BlocksData, GetBlock, GetBlocks, GetIndex, GetIndexAt, Request, Response
from tests.client.test_commands import Output, at_once
from tests.proof import shows
from tests.scenarios.cluster import APP, Client, Cluster, Image

HERE = Address("10.9.0.1", 1)
SITE = Image(6, {"a": 700_000, "b": 100, "empty": 0})
OTHER = Image(7, {"a": 50_000})


class Wire:
    """The wire of a memory network, with an end; ``spoil`` changes what a node answers, ``asked`` what it was asked."""

    def __init__(self, wire: Any) -> None:
        self._wire = wire
        self.asked: list[tuple[Address, Request]] = []
        self.spoil: Address | None = None

    def ask(self, address: Address, request: Request, timeout_s: float | None = None) -> Deferred[Response]:
        self.asked.append((address, request))
        answer: Deferred[Response] = self._wire.ask(address, request, timeout_s)
        return answer.addCallback(self._spoiled) if address == self.spoil else answer

    def _spoiled(self, answer: Response) -> Response:
        match answer:
            case BlockData(data=data):
                return BlockData(bytes(len(data)))
            case BlocksData(parts=parts):
                return BlocksData(tuple(BlockPart(bytes(len(one.data)), False) for one in parts), answer.lacks)
        return answer

    def alive(self, address: Address) -> None:
        """Nothing is left alone here."""

    def bulk(self, address: Address) -> bool:
        found: bool = self._wire.bulk(address)
        return found

    def stop(self) -> Deferred[None]:
        return succeed(None)


class GetCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.cluster = Cluster(3)
        self.cluster.run(10.0)
        self.upload(SITE)
        self.wire = Wire(self.cluster.hub.node(HERE, Client(self.cluster, SITE), lambda data, source: None)[0])
        self.top = Path(self.mktemp())
        self.top.mkdir()
        self.out, self.err = Output(), Output()

    def upload(self, image: Image, replace: bool = False) -> None:
        Client(self.cluster, image).upload("/app/v1", self.cluster.addresses(1), replace=replace)
        self.cluster.run(30.0, until=lambda: len(self.cluster.holders("/app/v1", image)) == 3)

    def resolve(self, name: str) -> Deferred[list[Address]]:
        if not name[1:].isdigit():
            return fail(LinkLost(f"the name {name} cannot be resolved"))
        return succeed([self.cluster.address(int(name[1:]))])

    def begin(self, *words: str, target: str = "n1:/app/v1") -> Deferred[int]:
        options = parse(["get", target, str(self.top / "copy"), "--no-cache", *words])
        assert isinstance(options, GetOptions)
        clock: Any = self.cluster.clock
        around = AppContext(clock, self.cluster.now_ms, random.Random(2), {}, self.out, self.err, at_once, at_once)
        reach = ReadContext(self.wire, self.resolve, clock, random.Random(3), at_once)
        return Deferred.fromCoroutine(get(options, around, reach))

    def get(self, *words: str, target: str = "n1:/app/v1", seconds: float = 300.0) -> int:
        running = self.begin(*words, target=target)
        self.cluster.run(seconds, until=lambda: running.called)
        return self.successResultOf(running)

    def ends(self, *words: str, target: str = "n1:/app/v1") -> CommandError:
        running = self.begin(*words, target=target)
        self.cluster.run(300.0, until=lambda: running.called)
        error = self.failureResultOf(running, CommandError).value
        assert isinstance(error, CommandError)
        return error

    def check(self, image: Image = SITE) -> None:
        whole = b"".join((self.top / "copy" / name).read_bytes() for name in ("a", "b") if (self.top / "copy" / name).exists())
        self.assertEqual(whole, b"".join(image.blocks[one] for one in image.order))
        self.assertEqual([one.name for one in self.top.iterdir()], ["copy"])


class LevelZeroTests(GetCase):
    """The configured directory may be an image itself."""

    def set_up(self) -> None:
        www = replace(APP, key="www", num_levels=0)
        self.cluster = Cluster(2, configs={"www": www})
        self.cluster.run(10.0)
        Client(self.cluster, SITE).upload("/www", self.cluster.addresses(1))
        self.cluster.run(30.0, until=lambda: len(self.cluster.holders("/www", SITE)) == 2)
        self.wire = Wire(self.cluster.hub.node(HERE, Client(self.cluster, SITE), lambda data, source: None)[0])

    def test_get(self) -> None:
        """Such an image could not be copied."""
        self.set_up()
        self.assertEqual(self.get(target="n1:/www"), 0)
        self.check()

    @shows("I8")
    def test_old_servers_live(self) -> None:
        """A server of the reference would die of the question."""
        self.set_up()
        self.cluster.hub.old.update(self.cluster.addresses(1, 2))
        error = self.ends(target="n1:/www")
        self.assertEqual(error.code, 3)
        self.assertIn("which has no images at /www", str(error))
        self.assertEqual({type(request) for _, request in self.wire.asked}, {GetIndex})


class GetTests(GetCase):
    """A copy is whole and right, or not there."""

    def test_from_several(self) -> None:
        """One node would serve everything although three have it."""
        self.assertEqual(self.get(), 0)
        self.check()
        self.assertIn("received 684 KiB", self.out.text)

    def test_from_old_servers(self) -> None:
        """Servers of the reference would refuse what they do not know."""
        self.cluster.hub.old.update(self.cluster.addresses(1, 2, 3))
        self.assertEqual(self.get(), 0)
        self.check()
        kinds = {type(request) for _, request in self.wire.asked}
        self.assertEqual(kinds, {GetIndexAt, GetBlock})
        self.assertTrue(all(request.hint for _, request in self.wire.asked if isinstance(request, GetBlock)))
        self.assertEqual({address for address, _ in self.wire.asked}, set(self.cluster.addresses(1, 2, 3)))

    def test_from_ours(self) -> None:
        """Block by block a copy takes many times as long."""
        self.get()
        self.assertIn(GetBlocks, {type(request) for _, request in self.wire.asked})

    @shows("A7")
    def test_wrong_bytes(self) -> None:
        """A node that lies would be believed, or would end the copy."""
        self.wire.spoil = self.cluster.address(1)
        self.assertEqual(self.get(), 0)
        self.check()

    def test_entry_point_lacks_it(self) -> None:
        """A user would have to know which node has an image."""
        self.cluster.nodes[1].ledger._committed.clear()
        self.assertEqual(self.get(), 0)
        self.check()

    def test_second_name(self) -> None:
        """One name that leads nowhere would end it although another is good."""
        self.assertEqual(self.get(target="nowhere,n2:/app/v1"), 0)
        self.check()

    def test_goes_on(self) -> None:
        """What an interrupted run got would be fetched again, or be shown half."""
        self.cluster.hub.latency_s = 0.5
        running = self.begin()
        self.cluster.run(60.0, until=lambda: any(one.stat().st_blocks for one in self.top.glob(".ciruela~*/a")))
        running.cancel()
        self.failureResultOf(running, CancelledError)
        self.assertIn("run the same command to go on", self.err.text)
        self.assertFalse((self.top / "copy").exists())
        self.cluster.hub.latency_s = 0.001
        self.assertEqual(self.get(), 0)
        self.assertIn("are here from an earlier run", self.err.text)
        self.check()

    def test_no_image(self) -> None:
        """A typing mistake would end in a timeout, or in code 3, as if the network were at fault."""
        error = self.ends(target="n1:/app/v9")
        self.assertEqual(error.code, 5)
        self.assertIn("there is no image at n1:/app/v9: 3 of 3 nodes", str(error))

    def test_nobody(self) -> None:
        """It would wait for ever for a cluster that is not there."""
        self.assertEqual(self.ends(target="nowhere:/app/v1").code, 3)
        for number in (1, 2, 3):
            self.cluster.kill(number)
        self.assertEqual(self.ends().code, 3)

    def test_nothing_comes(self) -> None:
        """It would wait for an hour when everybody has gone, and not say so."""
        self.cluster.hub.latency_s = 0.5
        running = self.begin("-t", "20s")
        self.cluster.run(60.0, until=lambda: any(one.stat().st_blocks for one in self.top.glob(".ciruela~*/a")))
        for number in (1, 2, 3):
            self.cluster.kill(number)
        self.cluster.run(100.0, until=lambda: running.called)
        error = self.failureResultOf(running, CommandError).value
        self.assertEqual(error.code, 3)
        self.assertIn("run the same command to go on", str(error))

    def test_replaced_meanwhile(self) -> None:
        """It would wait for blocks that nobody has any more."""
        self.cluster.run(60.0)  # what came in lately is given from memory
        self.cluster.hub.latency_s = 0.5
        running = self.begin("-t", "5min")
        self.cluster.run(60.0, until=lambda: any(one.stat().st_blocks for one in self.top.glob(".ciruela~*/a")))
        for number in (1, 2, 3):
            self.cluster.disks[number].rotten.update(SITE.blocks)
        self.cluster.hub.latency_s = 0.001
        self.upload(OTHER, replace=True)
        self.cluster.run(200.0, until=lambda: running.called)
        error = self.failureResultOf(running, CommandError).value
        self.assertEqual(error.code, 6)
        self.assertIn("another image took the place", str(error))

    def test_wanted_image(self) -> None:
        """A script that wants one release would get another."""
        self.assertEqual(self.ends("--image", "ab" * 32).code, 6)
        self.assertEqual(self.get("--image", SITE.id.hex()), 0)
        self.check()

    def test_replace(self) -> None:
        """What stands there would be lost without being asked for, or stay although it was asked for."""
        old = self.top / "copy"
        old.mkdir()
        (old / "a").write_bytes(b"".join(SITE.blocks[one] for one in SITE.order)[:700_000])
        (old / "more").write_text("x")
        running = self.begin()
        self.cluster.run(100.0, until=lambda: running.called)
        self.failureResultOf(running, LocalProblem)
        self.assertEqual((old / "more").read_text(), "x")
        self.assertEqual(self.get("--replace"), 0)
        self.check()
        self.assertIn("reused 684 KiB", self.out.text)

    def test_all_reused(self) -> None:
        """What is all here would still need the network, or take twice the space with --link."""
        old = self.top / "old"
        old.mkdir()
        data = b"".join(SITE.blocks[one] for one in SITE.order)
        (old / "x").write_bytes(data[:700_000])
        (old / "x").chmod(0o644)
        (old / "y").write_bytes(data[700_000:])
        (old / "y").chmod(0o644)
        (old / "z").write_bytes(b"")
        self.assertEqual(self.get("--reuse", str(old)), 0)
        self.assertNotIn(GetBlocks, {type(request) for _, request in self.wire.asked})
        self.assertEqual((self.top / "copy" / "a").stat().st_nlink, 1)
        self.assertEqual((self.top / "copy" / "a").read_bytes(), data[:700_000])

    def test_destination(self) -> None:
        """A name that is no name of a new directory would be taken for one."""
        for bad in ("..", ".", "a/..", "x/.", "\0"):
            self.assertRaises(LocalProblem, destination, bad)
        self.assertEqual((destination("/a").parent, destination("a/b/").parent, destination("x").parent), ("/", "a", "."))
