"""Clusters larger than any machine can hold as processes: the real code of the nodes in one process, under a fake clock.

``python -m benchmarks.scale [--nodes 100,1000,10000]``. A small configuration is uploaded to three nodes of an idle cluster. The processor
and the links cost nothing here: what is left is who tells whom, and when, and how many datagrams and bytes that takes.

Ten thousand nodes that each know ten thousand others are 100 million entries, and to learn them by gossip takes each node minutes. So the
cluster begins as one that has run for long: what everybody believes of everybody is one table that all nodes read, and each node keeps
for itself what it hears after that (:class:`Layered`). ``--cold`` begins with nodes that know nobody, for sizes where that takes no hours.
"""

from __future__ import annotations

import argparse
import gc
import random
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from twisted.logger import globalLogBeginner

from benchmarks.tables import keep, list_table, machine, percentile, spread, tell
from ciruela.membership.broadcast import MEMBER_RENEW_S, FactKind, heat_for, member_parts
from ciruela.membership.members import _MemberRecord
from ciruela.membership.service import BEAT_S
from ciruela.model.vpath import VPath
from tests.doubles.memnet import Hub
from tests.scenarios.cluster import START_MS, Client, Cluster, Image

K = TypeVar("K")
V = TypeVar("V")

PATH = "/app/v1"
IMAGE = {f"{number:02}.conf": 1500 for number in range(20)}
PATIENCE_S = 60.0
SETTLE_S = 0.5
"""So long datagrams are counted at least: what is said again comes later than the image."""

HEARSAY = 300
"""Members of which each node has something to pass on at the start: more than a second's datagrams can carry."""

UDP_BYTES = 28
"""Headers of IPv4 and UDP, which count as gossip here."""


class Layered(MutableMapping[K, V]):
    """A dict of which the beginning is shared and never written."""

    __slots__ = ("_gone", "_own", "_shared")

    def __init__(self, shared: dict[K, V], gone: K) -> None:
        self._shared = shared
        self._own: dict[K, V] = {}
        self._gone = {gone}

    def __getitem__(self, key: K) -> V:
        if key in self._own:
            return self._own[key]
        if key in self._gone:
            raise KeyError(key)
        return self._shared[key]

    def __setitem__(self, key: K, value: V) -> None:
        self._own[key] = value
        self._gone.discard(key)

    def __delitem__(self, key: K) -> None:
        if self._own.pop(key, None) is None and (key in self._gone or key not in self._shared):
            raise KeyError(key)
        if key in self._shared:
            self._gone.add(key)

    def __iter__(self) -> Iterator[K]:
        yield from self._own
        for key in self._shared:
            if key not in self._own and key not in self._gone:
                yield key

    def __len__(self) -> int:
        return sum(1 for _ in self)


class CountingHub(Hub):
    """Counts what each address sends and gets as datagrams."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sent: Counter[Any] = Counter()
        self.heard: Counter[Any] = Counter()
        self.sent_bytes: Counter[Any] = Counter()
        self.heard_bytes: Counter[Any] = Counter()

    def forget(self) -> None:
        """Count from here."""
        for counter in (self.sent, self.heard, self.sent_bytes, self.heard_bytes, self.carried, self.counters):
            counter.clear()

    def both(self) -> Iterator[tuple[Counter[Any], Counter[Any]]]:
        """What was sent and heard: numbers, and bytes."""
        yield self.sent, self.heard
        yield self.sent_bytes, self.heard_bytes

    def datagram(self, source: Any, target: Any, data: bytes) -> None:
        """As :meth:`Hub.datagram`, and counted."""
        self.sent[source] += 1
        self.heard[target] += 1
        self.sent_bytes[source] += len(data) + UDP_BYTES
        self.heard_bytes[target] += len(data) + UDP_BYTES
        super().datagram(source, target, data)


class Large(Cluster):
    """``arrived``: when each node had the image, in seconds of the fake clock."""

    def __init__(self, count: int, seed: int, latency_s: float, warm: bool) -> None:
        self.warm = warm
        self.arrived: dict[int, float] = {}
        self.everybody = {self.address(number): f"n{number}" for number in range(1, count + 1)}
        self.by_text = {str(address): address for address in self.everybody}
        self.takers = {"app": {self.machine(number): self.address(number) for number in range(1, count + 1)}}
        self.known = dict.fromkeys(self.everybody)
        self.born: dict[int, float] = {}
        self.members: dict[Any, Any] = {}
        self.at: dict[Any, Any] = {}
        super().__init__(0, seed, latency_s=latency_s)
        self.hub = CountingHub(self.clock, self.rng, latency_s)
        self._known = self.everybody
        if warm:
            self._believe()
        for number in range(1, count + 1):
            node = self.start(number)
            node.arrived = self._noting(number, node.arrived)  # type: ignore[method-assign]
            if number % 1000 == 0:
                tell(f"  {number} nodes, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")

    def _noting(self, number: int, arrived: Callable[..., None]) -> Callable[..., None]:
        def note(vpath: VPath, state: Any) -> None:
            self.arrived[number] = self.clock.seconds()
            arrived(vpath, state)

        return note

    def _believe(self) -> None:
        """What everybody knows of everybody: each renewed its membership at some time in the last minute."""
        keys = frozenset(self.configs(1))
        for number, address in enumerate(self.everybody, start=1):
            machine_id, born_s = self.machine(number), -self.rng.random() * MEMBER_RENEW_S
            stamp = START_MS + round(born_s * 1000)
            self.born[number] = born_s
            self.members[machine_id] = record = _MemberRecord(address, stamp, born_s, False, 1, f"n{number}", keys)
            record.gathered[0] = tuple(sorted(keys))
            self.at[address] = machine_id

    def start(self, number: int, wiped: bool = False) -> Any:
        """As :meth:`Cluster.start`; with ``warm`` the node believes what all do."""
        if not self.warm:
            return super().start(number, wiped)
        everybody, self._known = self._known, {self.address(number): f"n{number}"}
        node = super().start(number, wiped)
        self._known = everybody
        address, me = self.address(number), self.machine(number)
        gossip, born_s = node.gossip, self.born[number]
        roster, composer = gossip.cluster.roster, gossip._composer
        roster._names, roster._by_text = everybody, self.by_text
        roster._own, roster._takers = {address}, dict(self.takers)
        roster._members, roster._at = Layered(self.members, me), Layered(self.at, address)  # type: ignore[assignment]
        gossip._known, gossip._silent = self.known, {}
        gossip._look_s = self.rng.random() * BEAT_S * (len(everybody) // 1000)
        composer._keys, composer._member_s = tuple(sorted(self.configs(number))), born_s
        composer._stamp = self.members[me].stamp
        composer._parts = member_parts(me, composer._stamp, f"n{number}", composer._keys)
        composer._own[FactKind.MEMBER] = {(me, part.part): part for part in composer._parts}
        rumors = composer._rumors[FactKind.MEMBER]
        for other in self.rng.sample(range(1, len(everybody) + 1), min(HEARSAY, len(everybody))):
            rumors.put((self.machine(other), 0))
        return node


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds of the fake clock; per node: mean and worst. ``told_s``: when the client had heard of all, or stopped waiting for loss.

    ``datagrams`` and their bytes are those that the upload caused: without as many as an idle node sends and hears in that time.
    """

    nodes: int
    all_s: float
    half_s: float
    most_s: float
    told_s: float
    idle_bytes_s: tuple[float, float]
    datagrams: tuple[float, float]
    datagram_bytes: tuple[float, float]
    message_bytes: tuple[float, float]
    cpu_s: float
    memory_mib: float


def _per_node(nodes: int, *counters: Counter[Any], idle: float = 0.0) -> tuple[float, float]:
    total: Counter[Any] = Counter()
    for counter in counters:
        total.update(counter)
    values = list(total.values())
    return sum(values) / nodes - idle, max(values, default=0) - idle


def simulate(nodes: int, seed: int, latency_s: float, idle_s: float, warm: bool, loss: float = 0.0) -> Result:
    """One upload to an idle cluster."""
    began_s = time.process_time()
    cluster = Large(nodes, seed, latency_s, warm)
    hub = cluster.hub
    assert isinstance(hub, CountingHub)
    gc.collect()
    gc.freeze()  # what is there now stays there; searching it again and again would take most of the time
    cluster.run(BEAT_S if warm else 60.0)
    hub.forget()
    hub.loss = loss
    cluster.run(idle_s)
    addresses = list(cluster.everybody)
    idle = [hub.sent_bytes[address] / idle_s for address in addresses]
    tell(f"  {nodes} nodes idle: {statistics.mean(idle) / 1000:.1f} kB/s each, {time.process_time() - began_s:.0f} s of processor so far")
    idle_datagrams, idle_bytes = ((sum(sent.values()) + sum(heard.values())) / nodes / idle_s for sent, heard in hub.both())
    hub.forget()
    image = Image(seed, IMAGE)
    client = Client(cluster, image)
    client.outside = True
    upload_s = cluster.clock.seconds()
    client.upload(PATH, cluster.addresses(1, 2, 3))
    cluster.run(PATIENCE_S, until=lambda: len(cluster.arrived) == nodes)
    if len(cluster.arrived) < nodes:
        raise RuntimeError(f"{nodes} nodes, seed {seed}: after {PATIENCE_S:.0f} s only {len(cluster.arrived)} have it")
    times = [at_s - upload_s for at_s in cluster.arrived.values()]
    cluster.run(0.0 if loss else PATIENCE_S, until=lambda: len(client.received) >= nodes)
    if len(client.machines(PATH)) < nodes and not loss:
        raise RuntimeError(f"{nodes} nodes, seed {seed}: the client heard of {len(client.machines(PATH))} only")
    told_s = cluster.clock.seconds() - upload_s
    message_bytes = _per_node(nodes, Counter({address: hub.carried[address] for address in addresses}))
    cluster.run(max(0.0, SETTLE_S - told_s))
    counted_s = max(SETTLE_S, told_s)
    result = Result(
        nodes,
        max(times),
        percentile(times, 50),
        percentile(times, 99),
        told_s,
        (statistics.mean(idle), max(idle)),
        _per_node(nodes, hub.sent, hub.heard, idle=idle_datagrams * counted_s),
        _per_node(nodes, hub.sent_bytes, hub.heard_bytes, idle=idle_bytes * counted_s),
        message_bytes,
        time.process_time() - began_s,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
    for node in cluster.nodes.values():
        node.stop()
    gc.unfreeze()
    return result


HEAD = (
    "Nodes",
    "Start, datagrams lost",
    "Seconds until all have it",
    "Until half have it",
    "Until 99 of 100 have it",
    "Until the client knows",
    "Idle gossip a node sends, kB/s: mean, most",
    "Datagrams of a node for it, sent and heard: mean, worst",
    "Their kB: mean, worst",
    "kB sent on connections: mean, worst",
    "Processor s, MiB of the simulation",
)


def row(results: list[Result], warm: bool, loss: float) -> list[str]:
    """One size."""
    last = results[-1]

    def pair(values: tuple[float, float], unit: float = 1.0, digits: int = 1) -> str:
        return f"{values[0] / unit:,.{digits}f}, {values[1] / unit:,.{digits}f}"

    return [
        f"{last.nodes:,}",
        f"{'warm' if warm else 'cold'}, {loss:.0%}",
        spread([one.all_s for one in results], 3),
        spread([one.half_s for one in results], 3),
        spread([one.most_s for one in results], 3),
        spread([one.told_s for one in results], 3),
        pair(last.idle_bytes_s, 1000),
        pair(last.datagrams, digits=0),
        pair(last.datagram_bytes, 1000),
        pair(last.message_bytes, 1000),
        f"{last.cpu_s:,.0f}, {last.memory_mib:,.0f}",
    ]


def main() -> int:
    """One row for each size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="Simulate an upload to very large clusters.")
    parser.add_argument("--nodes", default="100,1000,10000", help="numbers of nodes (100,1000,10000)")
    parser.add_argument("--runs", type=int, default=3, help="seeds, for sizes up to 1,000; larger ones get one (3)")
    parser.add_argument("--idle", type=float, default=2.0, help="seconds for which the idle cluster is watched (2)")
    parser.add_argument("--latency-ms", type=float, default=0.5, help="of each datagram and message (0.5)")
    parser.add_argument("--loss", type=float, default=0.0, help="part of the datagrams that are lost (0)")
    parser.add_argument("--cold", action="store_true", help="begin with nodes that know nobody, a minute before the upload")
    parser.add_argument("--quick", action="store_true", help="30 and 100 nodes, one run: to see that it works")
    parser.add_argument("--output", type=Path, help="write the report to this file, too")
    options = parser.parse_args()
    if options.quick:
        options.nodes, options.runs = "30,100", 1
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    gc.set_threshold(100_000, 50, 100)
    rows, results = [], {}
    text = ""
    for nodes in map(int, options.nodes.split(",")):
        results[nodes] = []
        for seed in range(1, (options.runs if nodes <= 1000 else 1) + 1):
            random.seed(seed)
            found = simulate(nodes, seed, options.latency_ms / 1000, options.idle, not options.cold, options.loss)
            results[nodes].append(found)
            tell(f"{nodes} nodes, seed {seed}: {found.all_s:.3f} s until all have it, {found.cpu_s:.0f} s of processor")
        rows.append(row(results[nodes], not options.cold, options.loss))
        first = statistics.median(one.all_s for one in results[next(iter(results))])
        last = statistics.median(one.all_s for one in results[nodes])
        text = (
            f"A configuration of 20 files (30 kB), simulated, {options.latency_ms:g} ms of latency; {machine()}.\n"
            f"A hot fact is said {heat_for(nodes)} times by each of {nodes:,} nodes; "
            f"{nodes:,} nodes take {last / first:.2f} times as long as {next(iter(results)):,}.\n\n{list_table(HEAD, rows)}"
        )
        if options.output is not None:
            options.output.write_text(text)
    keep(text, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
