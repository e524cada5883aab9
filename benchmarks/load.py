"""How much a daemon holds: nothing, idle connections, many images, one image of very many files, overload (goals G1, G2, G3, G6, and I8).

Run it from the checkout: ``python -m benchmarks.load [footprint] [idle] [append] [images] [files] [tiny] [overload]``. What is compared was
measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.children import SYNC, CheckFailed, Children, environment, free_port, page, run, until
from benchmarks.nodes import Node, make_nodes, write_key
from benchmarks.pressure import Connects, Forged, IdleWebsockets, Slowloris
from ciruela.disk.store import Store
from ciruela.index.digest import HashKind
from ciruela.index.emit import emit
from ciruela.index.parse import parse
from ciruela.index.tree import Directory, File
from ciruela.interfaces import Pending
from ciruela.keys.signed import signed_bytes
from ciruela.model.config import DirConfig, Fsync, Tuning
from ciruela.model.upload import Command
from ciruela.model.versions import SigEntry, State
from ciruela.model.vpath import VPath

MIB = 1024 * 1024
CONFIG = "append-only: true\nnum-levels: 2\n"
WATCH_S = 60.0


class Bench:
    """A directory, a key, and what was found."""

    def __init__(self, top: Path, children: Children) -> None:
        self.top = top
        self.children = children
        self.key = top / "key"
        self.public = write_key(self.key, os.urandom(32))
        self.lines: list[str] = []
        self._uploads = 0

    def say(self, text: str) -> None:
        """Print a line and keep it."""
        print(text, flush=True)
        self.lines.append(text)

    def nodes(self, name: str, count: int, settings: str = "") -> list[Node]:
        """Nodes that are written and not started."""
        hosts = [f"127.0.0.{number}" for number in range(1, count + 1)]
        nodes = make_nodes(self.top / name, free_port(hosts), self.public, {"bench": CONFIG}, tuple(range(1, count + 1)))
        for node in nodes:
            (node.top / "config" / "ciruela.yaml").write_text(settings)
        return nodes

    def upload(self, nodes: list[Node], tree: Path, base: str = "load") -> float:
        """Seconds that ``ciruela-sync`` takes until all nodes have ``tree`` under a new name in ``base``."""
        self._uploads += 1
        wish = f"{tree}:/bench/{base}/upload{self._uploads}"
        command = [*SYNC, "--port", str(nodes[0].port), "-i", str(self.key), "-e", "3000s", "-t", "3000s", "--append", wish, "-m"]
        done = run([*command, *(node.host for node in nodes[:3])], environment(), timeout_s=3000)
        if done.code:
            raise CheckFailed(f"the upload ended with {done.code}:\n{done.out}")
        return done.wall_s


def tree_of(top: Path, files: int, size: int) -> Path:
    """A tree of random files."""
    tree = top / f"tree-{files}-{size}"
    if not tree.exists():
        for number in range(files):
            path = tree / f"d{number // 1000}" / f"f{number}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(size))
    return tree


def metric(node: Node, group: str, name: str) -> int:
    """A metric of the status page."""
    for label, (_, value) in page(node.host, node.port, "/status/")["metrics"]:
        if (label["group"], label["metric"]) == (group, name):
            return int(value)
    raise CheckFailed(f"{node.name} has no metric {group} {name}")


def rss_mib(node: Node) -> float:
    """Its memory now."""
    return float(page(node.host, node.port, "/status/")["process"]["memory_rss"]) / MIB


def ended(bench: Bench, nodes: list[Node]) -> None:
    """Stop nodes; say whether their reactors ever stood still."""
    stalls = [(metric(node, "reactor", "stalls"), metric(node, "reactor", "longest_stall_ms")) for node in nodes]
    bench.say(f"  reactor stalls over 250 ms: {sum(count for count, _ in stalls)}, longest {max(longest for _, longest in stalls)} ms")
    for node in nodes:
        node.stop()


def footprint(bench: Bench) -> None:
    """What three daemons cost that have nothing to do."""
    bench.say(f"    three idle daemons that know each other, watched for {WATCH_S:.0f} s")
    nodes = bench.nodes("footprint", 3)
    began_s = time.monotonic()
    for node in nodes:
        node.start(bench.children)
    for node in nodes:
        node.ready(2)
    bench.say(f"  start of all three until they know each other {time.monotonic() - began_s:.1f} s")
    time.sleep(10)  # what a start causes is over
    names = ("datagrams_sent", "bytes_sent")
    before = [[metric(node, "gossip", name) for name in names] for node in nodes]
    cpu_s = [node.child.cpu_s() for node in nodes if node.child is not None]
    began_s = time.monotonic()
    time.sleep(WATCH_S)
    passed_s = time.monotonic() - began_s
    cpu = [(node.child.cpu_s() - was) / passed_s * 3600 for node, was in zip(nodes, cpu_s, strict=True) if node.child is not None]
    after = [[metric(node, "gossip", name) for name in names] for node in nodes]
    datagrams, sent = (max(new[at] - old[at] for new, old in zip(after, before, strict=True)) / passed_s for at in (0, 1))
    memory = max(rss_mib(node) for node in nodes)
    bench.say(
        f"  processor {min(cpu):.0f} to {max(cpu):.0f} s in an hour ({max(cpu) / 36:.2f} % of one), {memory:.0f} MiB of memory at most"
    )
    bench.say(f"  {datagrams:.1f} datagrams/s and {sent / 1000:.2f} kB/s sent by each at most")
    ended(bench, nodes)


def idle(bench: Bench) -> None:
    """G1: 1,000 idle websockets beside three uploads at once."""
    bench.say("G1  1,000 idle websockets, uploads of 16 MiB to one node")
    tree = tree_of(bench.top, 16, MIB)
    [node] = bench.nodes("idle", 1, "max-connections: 1100\n")
    node.start(bench.children)
    node.ready(0)
    bench.upload([node], tree)
    quiet, loaded = [], []
    for _ in range(3):
        quiet.append(bench.upload([node], tree))
        with IdleWebsockets(node.host, node.port, 1000) as sockets:
            loaded.append(bench.upload([node], tree))
            memory = rss_mib(node)
        if sockets.count < 1000:
            raise CheckFailed(f"only {sockets.count} of 1,000 websockets were still open")
    ratio = statistics.median(loaded) / statistics.median(quiet)
    bench.say(f"  upload {statistics.median(quiet):.2f} s alone, {statistics.median(loaded):.2f} s beside them: ratio {ratio:.2f}")
    bench.say(f"  memory {memory:.0f} MiB")
    ended(bench, [node])


def _fill(top: Path, count: int, bases: int, seed: bytes) -> None:
    """Put ``count`` signed images into the directories of a node, through the daemon's own store and without syncing each."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from twisted.internet.defer import Deferred, maybeDeferred

    def in_place(f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Deferred[Any]:
        return maybeDeferred(f, *args, **kwargs)

    def done(result: Deferred[Any]) -> Any:
        found: list[Any] = []
        result.addBoth(found.append)
        if not hasattr(found[0], "raiseException"):
            return found[0]
        return found[0].raiseException()

    key = Ed25519PrivateKey.from_private_bytes(seed)
    config = DirConfig("bench", str(top / "data" / "bench"), append_only=True, num_levels=2)
    store = Store(str(top / "db"), {"bench": config}, in_place, Tuning(fsync=Fsync.NONE))
    now_ms = time.time_ns() // 1_000_000
    for number in range(count):
        content = f"image {number}\n".encode()
        file = File("/content", False, len(content), HashKind.BLAKE2B.hash(content))
        image, data = emit(HashKind.BLAKE2B, [Directory("/", (file,))])
        vpath = VPath(("bench", f"base{number % bases}", f"v{number // bases}"))
        state = State(image, (SigEntry(now_ms, key.sign(signed_bytes(str(vpath), image, now_ms))),))
        done(store.write_pending(Pending(vpath, state, Command.APPEND)))
        done(store.write_index(image, data))
        staging = done(store.stage(vpath, parse(data, image)))
        done(staging.write([(0, content)]))
        done(staging.commit(state))
    store.close()


def append(bench: Bench) -> None:
    """What one more directory costs a node, beside none and beside 500 others."""
    bench.say("    appending 20 files of 1,500 bytes, 40 times to each of two nodes in turn")
    tree = tree_of(bench.top, 20, 1500)
    seed = os.urandom(32)
    bench.public = write_key(bench.key, seed)
    nodes = [*bench.nodes("append-few", 1), *bench.nodes("append-many", 1)]
    _fill(nodes[1].top, 500, 1, seed)
    for node in nodes:
        node.start(bench.children)
        node.ready(0)
        bench.upload([node], tree, "base0")
    spent_s = [0.0, 0.0]
    for _ in range(40):
        for at, node in enumerate(nodes):
            assert node.child is not None
            began_s = node.child.cpu_s()
            bench.upload([node], tree, "base0")
            spent_s[at] += node.child.cpu_s() - began_s
    few_ms, many_ms = (one / 40 * 1000 for one in spent_s)
    bench.say(f"  processor of the node for each: {few_ms:.1f} ms beside 1 to 41 directories, {many_ms:.1f} ms beside 501 to 541")
    ended(bench, nodes)


def _agree(nodes: list[Node]) -> bool:
    """Whether all nodes have the same base dirs with the same hashes, and nothing on its way."""
    first, *others = (page(node.host, node.port, "/base-dirs/") for node in nodes)
    return len(first) == 50 and all(other == first for other in others)


def images(bench: Bench) -> None:
    """G2: 10,000 images in 50 base dirs on each of five nodes."""
    bench.say("G2  10,000 images in 50 base dirs, 5 nodes")
    nodes = bench.nodes("images", 5)
    seed = os.urandom(32)
    public = write_key(bench.top / "images-key", seed)
    for node in nodes:
        (node.top / "config" / "master.key").write_text(public + "\n")
    _fill(nodes[0].top, 10_000, 50, seed)
    for node in nodes[1:]:
        for part in ("data", "db"):
            shutil.rmtree(node.top / part)
            shutil.copytree(nodes[0].top / part, node.top / part, symlinks=True)
        shutil.rmtree(node.top / "db" / "signatures" / ".bench.base", ignore_errors=True)
    took = []
    for node in nodes:
        began_s = time.monotonic()
        node.start(bench.children)
        until(f"{node.name} does not serve", lambda node=node: page(node.host, node.port, "/healthz")["status"] == "ok", node.child, 120)  # type: ignore[misc]
        took.append(time.monotonic() - began_s)
    began_s = time.monotonic()
    for node in nodes:
        node.ready(4)
    until("the nodes do not agree", lambda: _agree(nodes), None, 120)
    agreed_s = time.monotonic() - began_s
    sent = [metric(node, "gossip", "bytes_sent") for node in nodes]
    time.sleep(30)
    rate = [(metric(node, "gossip", "bytes_sent") - before) / 30 / 1000 for node, before in zip(nodes, sent, strict=True)]
    memory = max(rss_mib(node) for node in nodes)
    bench.say(f"  start to serving {statistics.median(took):.1f} s (five at once share two cores), all agree {agreed_s:.1f} s later")
    bench.say(f"  {memory:.0f} MiB at most, gossip {max(rate):.1f} kB/s a node at most")
    ended(bench, nodes)


def files(bench: Bench) -> None:
    """G3: one image of 1,000,000 files."""
    bench.say("G3  one image of 1,000,000 files of 100 bytes, 3 nodes")
    tree = bench.top / "million"
    for number in range(1000):
        folder = tree / f"directory-{number:04}"
        folder.mkdir(parents=True)
        for inner in range(1000):
            (folder / f"file-{inner:04}.txt").write_bytes(b"x" * 100)
    nodes = bench.nodes("files", 3)
    for node in nodes:
        node.start(bench.children)
    for node in nodes:
        node.ready(2)
    before = max(rss_mib(node) for node in nodes)
    took_s = bench.upload(nodes, tree)
    peak = max(float(page(node.host, node.port, "/status/")["process"]["memory_rss_peak"]) / MIB for node in nodes)
    bench.say(f"  on all three after {took_s:.0f} s; memory {before:.0f} MiB before, {peak:.0f} MiB at most")
    ended(bench, nodes)


def tiny(bench: Bench) -> None:
    """I8: one image of 200,000 tiny files, no two alike, and how long the turns of the reactors are meanwhile."""
    bench.say("I8  one image of 200,000 files of 6 bytes, 3 nodes")
    tree = bench.top / "tiny tree"
    for number in range(200_000):
        if number % 1000 == 0:
            folder = tree / f"directory-{number // 1000:04}"
            folder.mkdir(parents=True)
        (folder / f"file-{number % 1000:04}.txt").write_bytes(b"%06d" % number)
    nodes = bench.nodes("tiny", 3)
    for node in nodes:
        node.start(bench.children, measured=True)
    for node in nodes:
        node.ready(2)
    began_s = [node.child.cpu_s() for node in nodes if node.child is not None]
    took_s = bench.upload(nodes, tree)
    cpu_s = [node.child.cpu_s() - was for node, was in zip(nodes, began_s, strict=True) if node.child is not None]
    bench.say(f"  on all three after {took_s:.0f} s, {max(cpu_s):.0f} s of processor at most")
    ended(bench, nodes)
    for node in nodes:
        found = json.loads(node.turns.read_text())
        own = sorted(((passed_s - others_s, where) for passed_s, others_s, where in found["long"]), reverse=True)
        most_s = max((passed_s for passed_s, _, _ in found["long"]), default=0.0)
        own_s, where = own[0] if own else (0.0, "")
        bench.say(f"  {node.name}: {found['turns']:,} turns, the longest {most_s * 1000:.0f} ms;")
        bench.say(f"    without what other programs had {own_s * 1000:.0f} ms, {sum(one > 0.25 for one, _ in own)} over 250 ms: {where}")


def overload(bench: Bench) -> None:
    """G6: uploads while the node is pressed from all sides."""
    bench.say("G6  uploads of 100 KiB beside 1,000 dribbling connections, 200 connects/s and 20,000 forged datagrams/s")
    tree = tree_of(bench.top, 20, 5000)
    [node] = bench.nodes("overload", 1, "max-connections: 1100\n")
    node.start(bench.children)
    node.ready(0)
    bench.upload([node], tree)
    quiet = sorted(bench.upload([node], tree) for _ in range(10))
    where = (node.host, node.port)
    with ExitStack() as stack:
        pressures = [stack.enter_context(one) for one in (Slowloris(*where, 1000), Connects(*where, 200), Forged(*where, 20_000))]
        time.sleep(5)
        pressed = sorted(bench.upload([node], tree) for _ in range(10))
    counts = ", ".join(f"{one.count} {type(one).__name__.lower()}" for one in pressures)
    bench.say(f"  alone {statistics.median(quiet):.2f} s (worst {quiet[-1]:.2f})")
    bench.say(f"  pressed {statistics.median(pressed):.2f} s (worst {pressed[-1]:.2f})")
    bench.say(f"  ratio {statistics.median(pressed) / statistics.median(quiet):.2f}, of the worst {pressed[-1] / quiet[-1]:.2f}; {counts}")
    ended(bench, [node])


PARTS = {"footprint": footprint, "idle": idle, "append": append, "images": images, "files": files, "tiny": tiny, "overload": overload}


def main() -> int:
    """Run the named parts, or all."""
    parser = argparse.ArgumentParser(description="How much a daemon holds.")
    parser.add_argument("part", nargs="*", help=f"one or more of: {', '.join(PARTS)}; all of them by default")
    parts = parser.parse_args().part or list(PARTS)
    unknown = sorted(set(parts) - PARTS.keys())
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="ciruela-load-") as folder, Children() as children:
        bench = Bench(Path(folder), children)
        for part in parts:
            PARTS[part](bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
