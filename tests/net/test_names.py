"""Names to addresses, and the list of peers."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from ciruela.interfaces import Address
from ciruela.model.errors import FormatError, LinkLost
from ciruela.net import resolve as resolve_module
from ciruela.net.discovery.files import PeersFile, parse
from ciruela.net.discovery.spec import Means
from ciruela.net.peers import PeerList
from ciruela.net.resolve import resolver, split_name
from tests.proof import shows

ONE, TWO, THREE = (Address(f"10.0.0.{number}", 24783) for number in (1, 2, 3))


class Split(SynchronousTestCase):
    def test_forms(self) -> None:
        """All the ways people write where a server is."""
        for text, expected in {
            "n1": ("n1", 1),
            "N1.Example.": ("n1.example", 1),
            "n1:5": ("n1", 5),
            "a_b-c.example:65535": ("a_b-c.example", 65535),
            "10.0.0.1": ("10.0.0.1", 1),
            "10.0.0.1:7": ("10.0.0.1", 7),
            "2001:DB8::1": ("2001:db8::1", 1),
            "[2001:db8::1]": ("2001:db8::1", 1),
            "[::1]:9": ("::1", 9),
        }.items():
            self.assertEqual(split_name(text, 1), expected, text)

    def test_mistakes(self) -> None:
        """A mistake has to be named, not looked up for half a minute."""
        for text in (
            "", ".", "a..b", "a b", "-a", "a-", "a" * 64, "a." * 130 + "a", "n1:", "n1:0", "n1:65536", "n1:x", "n1:+5", "1:2:3", "[n1]:5",
            "[::1", "[::1]5", "[::1]:", "[10.0.0.1]", "10.0.0.256", "1.2.3", "http://n1", "ä", "n1:٣",
        ):  # fmt: skip
            self.assertRaises(FormatError, split_name, text, 1)


class Resolving(SynchronousTestCase):
    def test_numbers_need_no_lookup(self) -> None:
        """Addresses work without any DNS."""
        look = resolver(lambda *_: fail(AssertionError("looked up")))
        self.assertEqual(self.successResultOf(look("10.0.0.1:5", 1)), [Address("10.0.0.1", 5)])
        self.assertEqual(self.successResultOf(look("[::1]", 24783)), [Address("::1", 24783)])

    @shows("K1.3")
    def test_one_spelling(self) -> None:
        """A peer named as IPv6 with an IPv4 address inside would be another one than the peer that speaks."""
        look = resolver(maybeDeferred, lambda *_: [])
        for text in ("[::ffff:10.0.0.1]:5", "[0:0:0:0:0:FFFF:0a00:1]:5", "10.0.0.1:5"):
            self.assertEqual(self.successResultOf(look(text, 1)), [Address("10.0.0.1", 5)])
        self.assertEqual(self.successResultOf(look("[2001:DB8:0::1]:5", 1)), [Address("2001:db8::1", 5)])
        with mock.patch.object(
            socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("::ffff:10.0.0.1", 5)), (0, 0, 0, "", ("10.0.0.1", 5))]
        ):
            self.assertEqual(resolve_module._look_up("n", 5), [Address("10.0.0.1", 5)])

    def test_all_addresses(self) -> None:
        """A cluster's name has one address for each server."""
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 5)),
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 5, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 5)),
        ]
        asked: list[Any] = []

        def look_up(*args: Any, **named: Any) -> Any:
            asked.append(args)
            return found

        with mock.patch.object(resolve_module.socket, "getaddrinfo", look_up):
            answer = resolver(maybeDeferred)("Cluster.Example.:5", 1)
        self.assertEqual(self.successResultOf(answer), [Address("10.0.0.1", 5), Address("2001:db8::1", 5)])
        self.assertEqual(asked, [("cluster.example", 5)])

    def test_faults(self) -> None:
        """The user must see which name, and why."""

        def unknown(host: str, port: int) -> list[Address]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        answer = resolver(maybeDeferred, unknown)("nowhere", 1)
        self.assertEqual(
            str(self.failureResultOf(answer, LinkLost).value), "the name nowhere cannot be resolved: Name or service not known"
        )
        self.failureResultOf(resolver(maybeDeferred, lambda host, port: [])("nowhere", 1), LinkLost)
        self.failureResultOf(resolver(maybeDeferred)("no where", 1), FormatError)


class Parsing(SynchronousTestCase):
    @shows("A60")
    def test_lines(self) -> None:
        """The reference's files, and ours with ports."""
        lines, complaints = parse("# us\n\n n1 \nN1.\n10.0.0.2:5\n[::1]:7\nbad name\nn2:x\n", "peers.txt")
        self.assertEqual([(line.number, line.text) for line in lines], [(3, "n1"), (5, "10.0.0.2:5"), (6, "[::1]:7")])
        self.assertEqual([complaint.split(" ")[0] for complaint in complaints], ["peers.txt:7:", "peers.txt:8:"])


class Peers(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.clock = Clock()
        self.names: dict[str, Any] = {"n1": [ONE], "n2": [TWO, THREE]}
        self.asked: list[str] = []
        self.changes: list[dict[Address, str]] = []
        self.logged: list[str] = []
        rng = random.Random(1)
        file = PeersFile(self.path, self.clock, rng, maybeDeferred)
        means = Means(self.clock, self.clock, rng, maybeDeferred, self.resolve, 24783)
        self.peers = PeerList([file], means, lambda peers: self.changes.append(dict(peers)))
        self.addCleanup(self.peers.stop)
        observer: Callable[[Any], None] = lambda event: self.logged.append(event["log_format"].format(**event))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def resolve(self, name: str, default_port: int) -> Deferred[list[Address]]:
        self.assertEqual(default_port, 24783)
        self.asked.append(name)
        known = self.names.get(name)
        return fail(LinkLost(f"the name {name} cannot be resolved")) if known is None else succeed(known)

    def write(self, text: str) -> None:
        before = self.path.stat().st_mtime_ns if self.path.exists() else 0
        self.path.write_text(text, encoding="utf-8")
        os.utime(self.path, ns=(before + 1_000_000_000, before + 1_000_000_000))

    def advance(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.clock.advance(1)

    def test_start(self) -> None:
        """A node without peers never gets or gives anything."""
        self.write("n1\nn2\n")
        self.successResultOf(self.peers.start())
        self.assertEqual(self.peers.peers, {ONE: "n1", TWO: "n2", THREE: "n2"})
        self.assertEqual(self.changes[-1], self.peers.peers)

    @shows("A60")
    def test_no_file(self) -> None:
        """One server alone is a cluster too; the file may come later."""
        self.successResultOf(self.peers.start())
        self.advance(20)
        self.assertEqual(self.peers.peers, {})
        self.assertEqual(len([line for line in self.logged if "stands alone" in line]), 1)
        self.write("n1\n")
        self.advance(6)
        self.assertEqual(self.peers.peers, {ONE: "n1"})

    @shows("A54", "F56", "I9")
    def test_unresolved(self) -> None:
        """A node that knows no address of its peers, or cannot read who they are, would take itself for a cluster of one, and clean up."""
        self.assertEqual(self.peers.unresolved, 1)
        self.write("n1\nn2\n")
        self.names = {"n1": [ONE], "n2": None}
        self.peers.start()
        self.assertEqual(self.peers.unresolved, 1)
        self.names["n2"] = [TWO]
        self.advance(20)
        self.assertEqual(self.peers.unresolved, 0)
        self.path.unlink()
        self.path.mkdir()
        self.advance(6)
        self.assertEqual(self.peers.unresolved, 1)
        self.path.rmdir()
        self.advance(6)
        self.assertEqual(self.peers.unresolved, 0)

    def test_file_changes(self) -> None:
        """A new server must be known without a restart of all the others; the reference needs one."""
        self.write("n1\n")
        self.peers.start()
        self.advance(10)
        self.assertEqual(len(self.changes), 1)
        self.write("n2\nbad name\n")
        self.advance(6)
        self.assertEqual(self.peers.peers, {TWO: "n2", THREE: "n2"})
        self.assertTrue(any(f"{self.path}:2: 'bad name'" in line for line in self.logged), self.logged)
        self.path.unlink()
        self.advance(6)
        self.assertEqual(self.peers.peers, {TWO: "n2", THREE: "n2"})

    @shows("A60", "F56")
    def test_addresses_change(self) -> None:
        """A server that moved would be lost to the others for ever."""
        self.write("n1\n")
        self.peers.start()
        self.names["n1"] = [TWO]
        self.advance(40)
        self.assertEqual((self.asked, self.peers.peers), (["n1"], {ONE: "n1"}))
        self.advance(45)
        self.assertEqual((self.asked, self.peers.peers), (["n1", "n1"], {TWO: "n1"}))
        self.assertEqual(len(self.changes), 2)

    @shows("A60", "F56")
    def test_names_fail(self) -> None:
        """An outage of the DNS must not tear the cluster apart."""
        self.write("n1\nn2\n")
        self.names["n2"] = None
        self.peers.start()
        self.assertEqual(self.peers.peers, {ONE: "n1"})
        self.names = {"n1": None, "n2": [TWO]}
        self.advance(20)
        self.assertEqual(self.peers.peers, {ONE: "n1", TWO: "n2"})
        self.advance(200)
        self.assertEqual(self.peers.peers, {ONE: "n1", TWO: "n2"})
        self.assertEqual(len([line for line in self.logged if "last addresses are kept" in line]), 1)
        self.assertGreater(self.asked.count("n1"), 8)

    def test_answers_that_come_too_late(self) -> None:
        """A line that was taken out must not come back by a slow lookup, nor anything after the end."""
        self.write("n1\n")
        late: Deferred[list[Address]] = Deferred()
        slow = replace(self.peers._means, resolve=lambda name, port: late)
        with mock.patch.dict(self.names, clear=True), mock.patch.object(self.peers, "_means", slow):
            self.peers.start()
            self.write("# nobody\n")
            self.advance(6)
            self.write("n1\n")
            self.advance(6)
            self.peers.stop()
            late.callback([ONE])
        self.assertEqual((self.peers.peers, self.changes), ({}, []))

    def test_lines_that_come_back(self) -> None:
        """What was known of a line ends with the line."""
        self.write("n1\n")
        self.peers.start()
        self.write("# nobody\n")
        self.advance(6)
        self.assertEqual(self.peers.peers, {})
        self.names["n1"] = None
        self.write("n1\n")
        self.advance(6)
        self.assertEqual(self.peers.peers, {})

    def test_stop(self) -> None:
        """Nothing is left when a daemon stops."""
        self.write("n1\n")
        self.peers.start()
        self.advance(7)
        self.peers.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
