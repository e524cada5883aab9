"""Function calls that an answer of 1 MiB costs a node: ``python -m benchmarks.calls [-v]``; ``-v`` names each, in their order.

A node with a real disk and real threads, behind the protocol of its websocket on a transport in memory. Every function of Python that is
called counts, those of Twisted, Autobahn and the standard library too, in all threads: from the bytes of the request being handed to the
protocol until the last byte of the answer is in the transport. Functions in C do not count; each resumption of a generator does. The second
answer on a connection is counted, and the fewest of some runs given: sometimes the reactor turns once more while a thread works.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThreadPool

from benchmarks.staging import BATCH, indexed
from ciruela.daemon.node import Node
from ciruela.disk.store import Store
from ciruela.index.digest import BLOCK_BYTES
from ciruela.index.tree import Index
from ciruela.interfaces import Pending
from ciruela.model.config import DirConfig
from ciruela.model.upload import Command
from ciruela.model.versions import SigEntry, State
from ciruela.model.vpath import VPath
from ciruela.net.connection import server_links
from ciruela.proto.codec import encode_request
from ciruela.proto.messages import GetBlocks
from tests.doubles.context import node_context
from tests.net.bench import REFERENCE_HANDSHAKE, frame

LARGE, SMALL = VPath(("app", "large")), VPath(("app", "small"))
ANSWER_BYTES = 1024 * 1024
RUNS = 20
OWN = "/ciruela/"


class Counted(StringTransport):
    """A transport that counts what it is given, and tells when that is enough."""

    def __init__(self) -> None:
        super().__init__(peerAddress=IPv4Address("TCP", "10.0.0.2", 1))
        self.wanted = 0
        self.enough: Callable[[], None] = lambda: None

    def write(self, data: bytes) -> None:
        """Twisted: take bytes."""
        if 0 < self.wanted <= len(data):
            self.enough()
        self.wanted -= len(data)


class Calls:
    """The functions that were called since :meth:`begin`. Threads that begin after it was made count as well."""

    def __init__(self) -> None:
        self.seen: list[CodeType] = []
        self.on = False
        threading.setprofile(self._event)
        sys.setprofile(self._event)

    def _event(self, called: FrameType, event: str, _argument: object) -> None:
        if self.on and event == "call":
            self.seen.append(called.f_code)


async def upload(store: Store, vpath: VPath, tree: dict[str, bytes]) -> tuple[Index, State]:
    """Put an image on the disk."""
    index, data = indexed(tree)
    state = State(index.image, (SigEntry(1, bytes(64)),))
    await store.write_pending(Pending(vpath, state, Command.APPEND))
    await store.write_index(index.image, data)
    staging = await store.stage(vpath, index)
    await staging.keep()
    blocks = [tree[file.path][at * BLOCK_BYTES : (at + 1) * BLOCK_BYTES] for file in index.files for at in range(file.block_count)]
    for at in range(0, len(blocks), BATCH):
        await staging.write([(number, blocks[number]) for number in range(at, min(at + BATCH, len(blocks)))])
    await staging.commit(state)
    return index, state


async def count(verbose: bool, top: Path) -> None:
    """Count, and print."""
    calls = Calls()
    clock: Any = reactor
    in_thread = partial(deferToThreadPool, clock, clock.getThreadPool())
    configs = {"app": DirConfig("app", str(top / "app"), append_only=False, num_levels=1)}
    for name in ("app", "db"):
        (top / name).mkdir()
    store = Store(str(top / "db"), configs, in_thread)
    node = Node(node_context(configs=configs, disk=store, clock=clock, in_thread=in_thread))
    rng = random.Random(1)
    trees = {
        LARGE: ({"/large": rng.randbytes(64 * ANSWER_BYTES)}, ANSWER_BYTES // BLOCK_BYTES),
        SMALL: ({f"/f{number:04}": rng.randbytes(8192) for number in range(2048)}, ANSWER_BYTES // 8192),
    }
    for vpath, (tree, blocks) in trees.items():
        index, state = await upload(store, vpath, tree)
        node.ledger.commit(vpath, state)
        link: Any = server_links(node.counterpart, clock, is_peer=lambda _: True).buildProtocol(IPv4Address("TCP", "10.0.0.2", 1))
        transport = Counted()
        link.makeConnection(transport)
        link.dataReceived(REFERENCE_HANDSHAKE)
        fewest: list[CodeType] = []
        for run in range(1, RUNS + 1):
            numbers = tuple(range(run * blocks % index.block_count, run * blocks % index.block_count + blocks))
            message = frame(encode_request(run, GetBlocks(str(vpath), index.image, numbers)), masked=True)
            done: Deferred[None] = Deferred()

            def enough(done: Deferred[None] = done) -> None:
                calls.on = False
                clock.callLater(0, done.callback, None)

            transport.wanted, transport.enough = ANSWER_BYTES, enough
            calls.seen.clear()
            calls.on = True
            link.dataReceived(message)
            await done
            if run > 1 and (not fewest or len(calls.seen) < len(fewest)):
                fewest = list(calls.seen)
        own = sum(OWN in code.co_filename or code.co_filename == "<string>" for code in fewest)
        sys.stdout.write(f"{blocks} blocks of {vpath}: {len(fewest)} calls, {own} of them of functions of ours\n")
        if verbose:
            sys.stdout.write("".join(f"    {code.co_qualname}  {Path(code.co_filename).name}:{code.co_firstlineno}\n" for code in fewest))
        link.close()
        link.connectionLost()
    store.close()


def main() -> None:
    """Read the options, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-v", "--verbose", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        react(lambda _: Deferred.fromCoroutine(count(options.verbose, Path(top))))


if __name__ == "__main__":
    main()
