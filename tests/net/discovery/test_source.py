"""Places that are asked again and again, and what is made of their answers."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.error import ConnectionRefusedError as Refused
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.names.error import DNSNameError, DNSQueryTimeoutError
from twisted.trial.unittest import SynchronousTestCase

from ciruela.disk.peercache import NAME, PeerCache, decode, encode
from ciruela.interfaces import Address
from ciruela.model.errors import LinkLost
from ciruela.net.discovery.consul import Consul
from ciruela.net.discovery.fetch import Page
from ciruela.net.discovery.files import PeersFile
from ciruela.net.discovery.source import ANSWER_S, PeerSource, Repeated
from ciruela.net.discovery.spec import Means, SourceSpecs, parse_spec, sources
from ciruela.net.discovery.srv import host_addresses, srv
from ciruela.net.peers import MetPeers, PeerList, Remembered
from ciruela.net.resolve import resolver
from tests.net.discovery.test_lists import instance
from tests.proof import shows


def address(number: int) -> Address:
    return Address(f"10.0.0.{number}", 24783)


class Place:
    """Somebody who is asked."""

    def __init__(self) -> None:
        self.says: Any = ["10.0.0.1", "10.0.0.2"]
        self.asked = 0

    def __call__(self) -> Deferred[Sequence[str]]:
        self.asked += 1
        if isinstance(self.says, Deferred):
            return self.says
        return fail(self.says) if isinstance(self.says, Exception) else succeed(self.says)


class Memory:
    """Implements ``peers.PeerListCache``."""

    def __init__(self) -> None:
        self.kept: Remembered = {}
        self.writes = 0

    def read(self) -> Deferred[Remembered]:
        return succeed(self.kept)

    def write(self, remembered: Remembered) -> Deferred[None]:
        self.kept = remembered
        self.writes += 1
        return succeed(None)


class DiscoveryCase(SynchronousTestCase):
    """A list of peers over places of the test."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.place = Place()
        self.memory = Memory()
        self.names: dict[str, Any] = {}
        self.changes: list[dict[Address, str]] = []
        self.logged: list[str] = []
        observer: Callable[[Any], None] = lambda event: self.logged.append(event["log_format"].format(**event))  # noqa: E731
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def source(self, place: Place | None = None, text: str = "dns:all") -> Repeated:
        return Repeated(text, text, place or self.place, 60.0, self.clock, random.Random(1))

    def resolve(self, name: str, default_port: int) -> Deferred[list[Address]]:
        known = self.names.get(name)
        if known is not None:
            return fail(known) if isinstance(known, Exception) else succeed(known)
        return resolver(maybeDeferred, lambda host, port: [])(name, default_port)

    def peers(self, *places: PeerSource, met: MetPeers | None = None) -> PeerList:
        found = PeerList(
            places or [self.source()],
            Means(self.clock, self.clock, random.Random(1), maybeDeferred, self.resolve, 24783),
            lambda one: self.changes.append(dict(one)),
            self.memory,
            met,
        )
        self.addCleanup(found.stop)
        return found

    def advance(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.clock.advance(1)


class RepeatedTests(DiscoveryCase):
    """A place that knows the peers."""

    def test_changes(self) -> None:
        """A new server would be unknown to all others until they are restarted."""
        peers = self.peers()
        self.successResultOf(peers.start())
        self.assertEqual(peers.peers, {address(1): "10.0.0.1", address(2): "10.0.0.2"})
        self.place.says = ["10.0.0.3:5", "10.0.0.2"]
        self.advance(80)
        self.assertEqual(peers.peers, {address(2): "10.0.0.2", Address("10.0.0.3", 5): "10.0.0.3:5"})
        self.assertEqual(self.place.asked, 2)
        self.assertEqual(peers.unresolved, 0)

    @shows("A60", "F56")
    def test_failures(self) -> None:
        """An outage of the place would tear the cluster apart, fill the log, or last longer than the outage."""
        peers = self.peers()
        peers.start()
        for says in (LinkLost("no answer"), [], Deferred()):
            self.place.says = says
            self.advance(600)
            self.assertEqual(set(peers.peers), {address(1), address(2)})
            self.assertEqual(peers.unresolved, 1)
        self.assertLess(len(self.logged), 20)
        self.assertIn("the nodes that it named before are kept", self.logged[0])
        self.place.says = ["10.0.0.4"]
        self.advance(400)
        self.assertEqual((set(peers.peers), peers.unresolved), ({address(4)}, 0))

    @shows("A60")
    def test_not_asked_too_often(self) -> None:
        """Nodes that all ask again at once, or all the time, would keep the place from coming back."""
        self.place.says = LinkLost("no answer")
        self.peers().start()
        self.advance(3600)
        self.assertLess(self.place.asked, 24)
        self.assertGreater(self.place.asked, 9)

    @shows("A54", "I9")
    def test_blind(self) -> None:
        """A node that cannot know how many others there are would take those that it knows for all, and clean up."""
        file = Path(self.mktemp())
        file.write_text("10.0.0.7\n10.0.0.8\n10.0.0.9\n")
        self.place.says = LinkLost("no answer")
        peers = self.peers(PeersFile(file, self.clock, random.Random(1), maybeDeferred), self.source())
        peers.start()
        self.assertEqual(len(peers.peers), 3)
        self.assertGreater(peers.unresolved, 3)
        self.place.says = ["10.0.0.1"]
        self.advance(30)
        self.assertEqual((len(peers.peers), peers.unresolved), (4, 0))

    def test_slow_answer(self) -> None:
        """A place that never answers would never be asked again, and keep the node from knowing the others."""
        self.place.says = Deferred()
        started = self.peers().start()
        self.assertNoResult(started)
        self.advance(ANSWER_S + 1)
        self.successResultOf(started)
        self.place.says = ["10.0.0.1"]
        self.advance(20)
        self.assertEqual(set(self.changes[-1]), {address(1)})

    def test_own_fault(self) -> None:
        """An error that nobody thought of would end the questions for good."""
        self.place.says = ZeroDivisionError("on purpose")
        peers = self.peers()
        peers.start()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.place.says = ["10.0.0.1"]
        self.advance(20)
        self.assertEqual(set(peers.peers), {address(1)})

    def test_stop(self) -> None:
        """Nothing is left when a daemon stops, not even a question that is under way."""
        peers = self.peers()
        peers.start()
        self.place.says = Deferred()
        self.advance(80)
        peers.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.flushLoggedErrors(), [])


class _Gossip:
    """``net.peers.MetPeers``."""

    def __init__(self) -> None:
        self.rows: dict[str, list[str]] = {}
        self.recalled: list[object] = []

    def recall(self, rows: object) -> None:
        self.recalled.append(rows)

    def remembered(self) -> dict[str, list[str]]:
        return self.rows


class UnionTests(DiscoveryCase):
    """Several places."""

    def test_union(self) -> None:
        """A place would hide what another one says, or one that goes would take the nodes of others with it."""
        other = Place()
        other.says = ["10.0.0.2", "10.0.0.3"]
        first, second = self.source(), self.source(other, "https://h/p")
        peers = self.peers(first, second)
        peers.start()
        self.assertEqual(set(peers.peers), {address(1), address(2), address(3)})
        self.successResultOf(peers.replace([self.source(other, "https://h/p")]))
        self.assertEqual(set(peers.peers), {address(2), address(3)})
        self.assertEqual(other.asked, 1, "the same place as before goes on with what it knows")
        self.advance(200)
        self.assertEqual(self.place.asked, 1)
        new = Place()
        new.says = ["10.0.0.5"]
        peers.replace([self.source(new, "dns:new")])
        self.assertEqual(set(peers.peers), {address(5)})

    @shows("A60", "F56")
    def test_remembered(self) -> None:
        """A node that starts while a name server is down would stand alone, and its uploads go nowhere."""
        self.names = {"n1": [address(1)]}
        self.place.says = ["n1", "10.0.0.2"]
        first = self.peers()
        first.start()
        first.stop()
        self.names = {"n1": LinkLost("the name n1 cannot be resolved")}
        self.place.says = LinkLost("no answer")
        second = self.peers()
        second.start()
        self.assertEqual(second.peers, {address(1): "n1", address(2): "10.0.0.2"})
        self.assertGreater(second.unresolved, 0)
        self.advance(100)
        second.stop()
        third = self.peers()
        third.start()
        self.assertEqual(second.peers, third.peers)

    @shows("K1.1")
    def test_who_was_met_is_remembered(self) -> None:
        """Who was there before a restart would not be expected after it."""
        self.place.says = ["10.0.0.2"]
        gossip = _Gossip()
        first = self.peers(met=gossip)
        first.start()
        gossip.rows = {"10.0.0.2:24783": ["aa", "5", "host", "100", "!", "app"]}
        self.advance(6)
        self.assertEqual(self.memory.kept["known"], gossip.rows)
        written = self.memory.writes
        gossip.rows = {"10.0.0.2:24783": ["aa", "5", "host", "200", "!", "app"]}
        self.advance(60)
        self.assertEqual(self.memory.writes, written, "each sign of life is a write to the disk")
        self.advance(300)
        self.assertEqual(self.memory.kept["known"], gossip.rows)
        first.stop()
        again = _Gossip()
        self.peers(met=again).start()
        self.assertEqual(again.recalled, [gossip.rows])
        self.memory.kept = {"sources": {}, "addresses": {}}
        older = _Gossip()
        self.peers(met=older).start()
        self.assertEqual(older.recalled, [{}], "the file of an older version")

    def test_not_remembered_for_ever(self) -> None:
        """A server that left long ago would come back with a restart."""
        first = self.peers()
        first.start()
        self.place.says = ["10.0.0.9"]
        self.advance(80)
        first.stop()
        self.place.says = LinkLost("no answer")
        second = self.peers()
        second.start()
        self.assertEqual(set(second.peers), {address(9)})

    def test_cache_file(self) -> None:
        """What is kept can be read again; anything else counts as nothing."""
        db = Path(self.mktemp())
        db.mkdir()
        cache = PeerCache(str(db), maybeDeferred)
        self.assertEqual(self.successResultOf(cache.read()), {})
        lists = {"sources": {"dns:x": ["n1"]}, "addresses": {"n1": ["10.0.0.1:1"]}}
        self.successResultOf(cache.write(lists))
        self.assertEqual(self.successResultOf(cache.read()), lists)
        known = lists | {"known": {"10.0.0.1:1": ["", "0", "", "5", "?"]}}
        self.successResultOf(cache.write(known))
        self.assertEqual(self.successResultOf(cache.read()), known)
        for bad in (1, [], {"a": 1}, {"a": [1]}):
            (db / NAME).write_text(json.dumps(lists | {"known": bad}))
            self.assertEqual(self.successResultOf(cache.read()), lists, "a damaged section costs the lists")
        for data in (b"", b"[]", b'{"sources": {}}', b'{"sources": {"a": 1}, "addresses": {}}', b"[" * 99999, b"\xff"):
            (db / NAME).write_bytes(data)
            self.assertEqual(self.successResultOf(cache.read()), {})
            self.assertRaises(ValueError, decode, data)
        (db / NAME).unlink()
        (db / NAME).mkdir()
        self.assertEqual(self.successResultOf(cache.read()), {})
        self.successResultOf(cache.write(lists))

    @shows("K3.3")
    def test_flipped_bits(self) -> None:
        """A server that is down would be remembered under another address or id, or with other directories, after one bit was lost."""
        lists = {"sources": {"dns:x": ["n1"]}, "addresses": {"n1": ["10.0.0.1:1"]}, "known": {"10.0.0.1:1": ["ab", "0", "n1", "5", "?"]}}
        good = encode(lists)
        self.assertEqual(decode(good), lists)
        for at in range(8 * len(good)):
            bent = bytearray(good)
            bent[at // 8] ^= 1 << at % 8
            with contextlib.suppress(ValueError):
                self.assertEqual(decode(bytes(bent)), lists, bytes(bent))
        older = json.dumps(lists).encode()
        self.assertEqual(decode(older), lists, "the file of an earlier version")
        self.assertEqual(json.loads(good)["known"], lists["known"], "what an earlier version reads")

    def test_bad_memory(self) -> None:
        """Names in the file that are none would end the start."""
        self.memory.kept = {"sources": {"dns:all": ["a b", "10.0.0.6"]}, "addresses": {"n 1": ["10.0.0.1"], "n1": ["x y"], "n2": []}}
        self.place.says = LinkLost("no answer")
        peers = self.peers()
        peers.start()
        self.assertEqual(set(peers.peers), {address(6)})

    def test_build(self) -> None:
        """Each place that can be written is asked; the places of before keep what they know across a reload."""
        specs = tuple(parse_spec(text) for text in ("file:/x", "dns:n", "srv:_c._udp.n", "http://h/p", "https://h/p", "consul:c"))
        means = Means(self.clock, self.clock, random.Random(1), maybeDeferred, self.resolve, 24783)
        first, second = (sources(SourceSpecs(specs), "/etc/ciruela/peers.txt", means) for _ in range(2))
        self.assertEqual([one.text for one in first], ["file:/etc/ciruela/peers.txt", *(spec.text for spec in specs)])
        self.assertEqual([one.identity for one in first], [one.identity for one in second])
        other = sources(SourceSpecs(specs, consul="http://h:1"), "/etc/ciruela/peers.txt", means)
        self.assertNotEqual(first[-1].identity, other[-1].identity)


class KindTests(DiscoveryCase):
    """What is asked, and of whom."""

    def test_dns(self) -> None:
        """Each address of the name counts for itself: one that is silent must not be hidden by another."""
        self.names = {"all:5": [address(1), Address("2001:db8::1", 5)]}
        self.assertEqual(self.successResultOf(host_addresses("all:5", self.resolve, 24783)()), ["10.0.0.1:24783", "[2001:db8::1]:5"])

    def test_srv(self) -> None:
        """SRV records name the port, too."""
        found = self.successResultOf(srv("_c._udp.n", lambda _: succeed([("N1.example.org", 5), (".", 0), ("n2", 24783)]))())
        self.assertEqual(found, ["n1.example.org:5", "n2:24783"])
        for error, reason in ((DNSNameError(), "there is no such name"), (DNSQueryTimeoutError(1), "no name server answers")):
            failed = self.failureResultOf(srv("_c._udp.n", lambda _, error=error: fail(error))(), LinkLost)  # type: ignore[misc]
            self.assertIn(reason, str(failed.value))

    def test_consul(self) -> None:
        """Questions wait for a change, and carry the token as it stands in its file now."""
        token = Path(self.mktemp())
        token.write_text("secret-1\n")
        asked: list[tuple[str, dict[str, str]]] = []
        answers = [Page(json.dumps([instance()]).encode(), "7"), Page(b"[]", "9"), Page(b"oops", "9"), Page(b"[]", "3")]

        def fetch(url: str, headers: Any, wanted: str = "", redirects: int = 0) -> Deferred[Page]:
            self.assertEqual((wanted, redirects), ("X-Consul-Index", 0))
            asked.append((url, dict(headers)))
            return succeed(answers.pop(0)) if answers else fail(LinkLost("no answer"))

        told = Consul("http://127.0.0.1:8500", "ciruela", 24783, fetch, maybeDeferred, str(token))
        self.assertEqual(self.successResultOf(told.ask()), ["10.0.0.9:24783"])
        token.write_text("secret-2\n")
        self.assertEqual(self.successResultOf(told.ask()), [])
        self.failureResultOf(told.ask())
        self.successResultOf(told.ask())
        self.failureResultOf(told.ask(), LinkLost)
        base = "http://127.0.0.1:8500/v1/health/service/ciruela"
        self.assertEqual(
            [url for url, _ in asked], [base, f"{base}?index=7&wait=300s", f"{base}?index=9&wait=300s", base, f"{base}?index=3&wait=300s"]
        )
        self.assertEqual([headers["X-Consul-Token"] for _, headers in asked], ["secret-1", *["secret-2"] * 4])
        token.write_text("")
        self.assertIn("there is no token", str(self.failureResultOf(told.ask()).value))
        token.unlink()
        self.failureResultOf(told.ask(), OSError)

    def test_refused(self) -> None:
        """A fault of the network is told as one, not as an error of the program."""
        self.place.says = Refused()
        self.peers().start()
        self.assertEqual(self.flushLoggedErrors(), [])
