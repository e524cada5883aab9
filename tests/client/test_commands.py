"""The commands from end to end: real files and keys, memory links."""

from __future__ import annotations

import io
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred, succeed
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client import commands
from ciruela.client.contacts import RunContext
from ciruela.client.context import AppContext
from ciruela.client.demo import make_keys
from ciruela.client.main import _Life, exit_for
from ciruela.client.options.local import IndexOptions
from ciruela.client.options.sync import SyncOptions
from ciruela.client.options.table import parse, parse_sync
from ciruela.client.orders import LocalProblem
from ciruela.client.scanning import scan_directory
from ciruela.disk import walk
from ciruela.disk.localtree import LocalTree
from ciruela.disk.scan import Scan
from ciruela.index.digest import HashKind
from ciruela.index.parse import parse as parse_index
from ciruela.interfaces import Address
from ciruela.keys.public import parse_public, verify
from ciruela.keys.signed import signed_bytes
from ciruela.model.errors import BadKey, CiruelaError, ConfigError, DiskError, FormatError, LinkLost, RemoteError
from ciruela.model.ids import ImageId
from ciruela.proto.messages import AppendDir, BlockData, GetBlock, GetIndex, IndexData, ReplaceDir
from tests.client.nodes import FakeNode, address
from tests.doubles.memnet import Hub
from tests.proof import shows

NOW_MS = 1_700_000_000_123
OLD = "ab" * 32


class Output(io.TextIOWrapper):
    """A text stream whose bytes can be read back."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    @property
    def data(self) -> bytes:
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue()

    @property
    def text(self) -> str:
        return self.data.decode()


def at_once(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Deferred[Any]:
    """As ``in_thread``, without a thread."""
    return maybeDeferred(function, *args, **kwargs)


class CommandCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.top = Path(self.mktemp())
        self.source = self.top / "dist"
        (self.source / "sub").mkdir(parents=True)
        (self.source / "sub" / "file").write_bytes(b"hello" * 10_000)
        (self.source / "link").symlink_to("sub/file")
        self.public = parse_public(make_keys(self.top / "key"))
        self.clock = Clock()
        self.hub = Hub(self.clock, random.Random(1))
        self.out, self.err = Output(), Output()
        self.around = AppContext(
            reactor=self.clock,
            now_ms=lambda: NOW_MS,
            rng=random.Random(2),
            environ={"HOME": str(self.top / "nobody")},
            stdout=self.out,
            stderr=self.err,
            in_thread=at_once,
            look_up_in_thread=at_once,
        )

    def sync(self, *words: str, key: bool = True) -> Deferred[int]:
        options = parse_sync([*(("-i", str(self.top / "key")) if key else ()), *words])
        assert isinstance(options, SyncOptions)

        def resolve(name: str) -> Deferred[list[Address]]:
            return succeed([address(int(name.removeprefix("n")))])

        world = RunContext(self.clock, random.Random(3), lambda where, counterpart: self.hub.link(counterpart, where), resolve)
        running = Deferred.fromCoroutine(commands.sync(options, self.around, world))
        self.pass_()
        return running

    def pass_(self) -> None:
        for _ in range(50):
            self.clock.advance(0.01)


class Sync(CommandCase):
    def test_story(self) -> None:
        """A directory is indexed, signed, offered, served from the disk, and the end is one line on stdout with exit code 0."""
        node = FakeNode(self.hub, 1)
        running = self.sync("--append", f"{self.source}:/apps/v1", "n1")
        (request,) = node.requests
        assert isinstance(request, AppendDir)
        self.assertEqual((request.path, request.timestamp_ms), ("/apps/v1", NOW_MS))
        (signature,) = request.signatures
        self.assertTrue(verify(self.public, signed_bytes("/apps/v1", request.image, NOW_MS), signature))
        asked = node.links[0].ask(GetIndex(request.image, None))
        self.pass_()
        answer = self.successResultOf(asked)
        assert isinstance(answer, IndexData)
        index = parse_index(answer.data, request.image)
        asked = node.links[0].ask(GetBlock(index.files[0].block_hash(1), None))
        self.pass_()
        self.assertEqual(self.successResultOf(asked), BlockData((b"hello" * 10_000)[32768:]))
        node.tell_received("/apps/v1", request.image, 1)
        self.pass_()
        self.assertEqual(self.successResultOf(running), 0)
        self.assertIn("n1 /apps/v1  DONE      1/1 nodes", self.out.text)
        self.assertEqual(len(self.out.text.splitlines()), 1)
        for words in ("Signing with SHA256:", "Indexed", "2 dirs, 1 file, 1 link", f"id {request.image.hex()[:12]}\n"):
            self.assertIn(words, self.err.text)

    @shows("K6.2")
    def test_small_image(self) -> None:
        """A small image would be asked for, or be sent to a node that does not know what to do with it."""
        for hub in ("new", "second", "old"):
            with self.subTest(hub):
                self.setUp()
                node = FakeNode(self.hub, 1)
                if hub != "new":
                    getattr(self.hub, hub).add(address(1))
                running = self.sync("--append", f"{self.source}:/apps/v1", "n1")
                (request,) = node.requests
                assert isinstance(request, AppendDir)
                if hub != "new":
                    self.assertIsNone(request.content)
                    continue
                assert request.content is not None
                self.assertEqual(request.content.blocks, b"hello" * 10_000)
                self.assertEqual(parse_index(request.content.index, request.image).total_bytes, 50_000)
                node.tell_received("/apps/v1", request.image, 1)
                self.pass_()
                self.assertEqual(self.successResultOf(running), 0)
                self.assertIn("sent 49.", self.out.text)

    def test_not_small(self) -> None:
        """A larger one would not fit into what a stranger may send, and a rate that the user wants would not be kept to."""
        (self.source / "more").write_bytes(bytes(7_000))
        for more in (("more",), ("sub", "--limit-rate", "1M")):
            node = FakeNode(self.hub, len(more))
            self.sync(*more[1:], "--append", f"{self.source}:/apps/v1", f"n{len(more)}")
            (self.source / "more").unlink(missing_ok=True)
            (request,) = node.requests
            assert isinstance(request, AppendDir)
            self.assertIsNone(request.content)

    def test_indexed_meanwhile(self) -> None:
        """The time in which a server is reached would come before that in which the directory is read."""
        FakeNode(self.hub, 1)
        with patch.object(CommandCase, "pass_"):
            self.sync("--append", f"{self.source}:/apps/v1", "n1")
        self.assertIn("Indexed", self.err.text)
        self.assertEqual(self.clock.seconds(), 0)

    @shows("K6.1")
    def test_reference(self) -> None:
        """A server of the reference would be given a hash that it does not know, or be waited for until all was read for nothing."""
        node = FakeNode(self.hub, 1)
        self.hub.old.add(address(1))
        ended: list[HashKind] = []

        async def scan(name: str, kind: HashKind, *more: Any) -> Scan:
            if kind is HashKind.BLAKE3:
                await Deferred(lambda _: ended.append(kind))
            return await scan_directory(name, kind, *more)

        with patch.object(commands, "scan_directory", scan):
            self.sync("--append", f"{self.source}:/apps/v1", "n1")
        (request,) = node.requests
        assert isinstance(request, AppendDir)
        asked = node.links[0].ask(GetIndex(request.image, None))
        self.pass_()
        answer = self.successResultOf(asked)
        assert isinstance(answer, IndexData)
        self.assertIs(parse_index(answer.data, request.image).kind, HashKind.BLAKE2B)
        self.assertEqual(ended, [HashKind.BLAKE3])

    def test_modes(self) -> None:
        """Append, weak append and replace become the requests they are; a source used twice is read once."""
        node = FakeNode(self.hub, 1)
        src = str(self.source)
        self.sync("--replace", f"{src}:/cfg/x:{OLD}", "--append-weak", f"{src}:/apps/w", "n1")
        first, second = node.requests
        assert isinstance(first, ReplaceDir)
        assert isinstance(second, AppendDir)
        self.assertEqual((first.path, first.old_image, second.path), ("/cfg/x", ImageId(bytes.fromhex(OLD)), "/apps/w"))
        self.assertEqual(first.timestamp_ms, second.timestamp_ms)
        self.assertEqual(self.err.text.count("Indexed"), 1)

    @shows("F54", "I7")
    def test_rejected(self) -> None:
        """A refusal ends with its code, its reason in words, and what it means."""
        FakeNode(self.hub, 1).reason = "signature_mismatch"
        self.assertEqual(self.successResultOf(self.sync("--append", f"{self.source}:/apps/v1", "n1")), 5)
        self.assertIn("REJECTED", self.out.text)
        self.assertIn("none of your keys may upload there", self.out.text)

    @shows("F54", "I7")
    def test_interrupted(self) -> None:
        """Who presses Ctrl-C learns what has been promised, and no connection is left."""
        node = FakeNode(self.hub, 1)
        running = self.sync("--append", f"{self.source}:/apps/v1", "n1")
        running.cancel()
        self.failureResultOf(running, CancelledError)
        self.assertIn("accepted by n1, but no node", self.err.text)
        self.pass_()
        self.assertEqual(node.links, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_lets_go(self) -> None:
        """Nothing of the directories stays open after the run: the demo and others run it inside a longer program."""
        closed: list[LocalTree] = []
        close = LocalTree.close

        def counted(tree: LocalTree) -> None:
            closed.append(tree)
            close(tree)

        self.patch(LocalTree, "close", counted)
        FakeNode(self.hub, 1).reason = "no_config"
        self.assertEqual(self.successResultOf(self.sync("--append", f"{self.source}:/apps/v1", "n1")), 5)
        self.assertEqual(len(closed), 1)

    def test_file_changed(self) -> None:
        """A file that was overwritten after it was indexed ends the upload with exit code 1 and its name."""
        node = FakeNode(self.hub, 1)
        running = self.sync("--append", f"{self.source}:/apps/v1", "n1")
        (request,) = node.requests
        assert isinstance(request, AppendDir)
        asked = node.links[0].ask(GetIndex(request.image, None))
        self.pass_()
        answer = self.successResultOf(asked)
        assert isinstance(answer, IndexData)
        index = parse_index(answer.data, request.image)
        (self.source / "sub" / "file").write_bytes(b"other")
        node.links[0].ask(GetBlock(index.files[0].block_hash(0), None)).addErrback(lambda failure: failure.trap(RemoteError, LinkLost))
        self.pass_()
        self.assertEqual(self.successResultOf(running), 1)
        self.assertIn(f"{self.source}/sub/file", self.out.text)

    def use_cache(self) -> Path:
        """Give the user a place for caches, and let what is in the source have rested. Gives the directory of the caches."""
        home = self.top / "caches"
        home.mkdir()
        self.around = replace(
            self.around,
            environ={**self.around.environ, "XDG_CACHE_HOME": str(home.absolute())},
            now_ms=lambda: int(time.time() * 1000) + 5000,
        )
        return home / "ciruela"

    def test_cache(self) -> None:
        """A second sync of an unchanged directory reads nothing but what the nodes ask for."""
        caches = self.use_cache()
        node = FakeNode(self.hub, 1)
        self.sync("--append", f"{self.source}:/apps/v1", "n1")
        self.assertEqual(len(list(caches.iterdir())), 1)
        reads: list[int] = []
        real = walk.read_small

        def counted(*args: Any) -> Any:
            reads.append(1)
            return real(*args)

        self.patch(walk, "read_small", counted)
        self.sync("--append", f"{self.source}:/apps/v2", "n1")
        self.assertEqual(reads, [])
        first, second = node.requests
        assert isinstance(first, AppendDir)
        assert isinstance(second, AppendDir)
        self.assertEqual(first.image, second.image)
        before = [path.stat().st_mtime_ns for path in caches.iterdir()]
        self.sync("--no-cache", "--append", f"{self.source}:/apps/v3", "n1")
        self.assertEqual(reads, [1])
        self.assertEqual([path.stat().st_mtime_ns for path in caches.iterdir()], before)

    @shows("F54")
    def test_stale_cache(self) -> None:
        """A cache that is wrong in spite of all (a program writes through a memory map, say) costs one failed run, not every run."""
        self.use_cache()
        node = FakeNode(self.hub, 1)
        self.sync("--append", f"{self.source}:/apps/v1", "n1")
        path = self.source / "sub" / "file"
        real = walk.stats
        old = os.stat(path)
        path.write_bytes(b"HELLO" * 10_000)

        def lying(directory: Any, names: Any) -> Any:
            listed = list(names)
            return (old if name == "file" else found for name, found in zip(listed, real(directory, listed), strict=True))

        self.patch(walk, "stats", lying)
        running = self.sync("--append", f"{self.source}:/apps/v2", "n1")
        first, second = node.requests
        assert isinstance(first, AppendDir)
        assert isinstance(second, AppendDir)
        self.assertEqual(first.image, second.image)
        asked = node.links[-1].ask(GetIndex(second.image, None))
        self.pass_()
        answer = self.successResultOf(asked)
        assert isinstance(answer, IndexData)
        block = parse_index(answer.data, second.image).files[0].block_hash(0)
        node.links[-1].ask(GetBlock(block, None)).addErrback(lambda failure: failure.trap(RemoteError, LinkLost))
        self.pass_()
        self.assertEqual(self.successResultOf(running), 1)
        self.assertIn("run the command again", self.out.text)
        self.sync("--append", f"{self.source}:/apps/v3", "n1")
        third = node.requests[-1]
        assert isinstance(third, AppendDir)
        self.assertNotEqual(third.image, first.image)

    def test_local_problems(self) -> None:
        """What is wrong here is told before anybody is contacted, and before a key is looked for."""
        node = FakeNode(self.hub, 1)
        for source, words in ((self.top / "absent", "No such file"), (self.source / "sub" / "file", "is not a directory")):
            failure = self.failureResultOf(self.sync("--append", f"{source}:/apps/v1", "n1", key=False), LocalProblem)
            self.assertIn(words, failure.getErrorMessage())
        self.assertEqual(node.requests, [])

    @shows("W1")
    def test_empty_replace(self) -> None:
        """A build that failed and left an empty directory would empty the live one on every server, and be called done."""
        (self.top / "empty" / "sub").mkdir(parents=True)
        node = FakeNode(self.hub, 1)
        order = ("--replace", f"{self.top / 'empty'}:/cfg/x", "n1")
        for words in ((), ("-n",), ("--exit-code",)):
            failure = self.failureResultOf(self.sync(*words, *order), LocalProblem)
            self.assertIn("/empty has no files and would empty /cfg/x; nothing was sent", failure.getErrorMessage())
            self.assertIn("--allow-empty", failure.getErrorMessage())
        (self.top / "empty" / "x.log").write_text("")
        failure = self.failureResultOf(self.sync("--exclude", "*.log", *order), LocalProblem)
        self.assertIn("has no files (1 left out by patterns)", failure.getErrorMessage())
        self.assertEqual((node.requests, node.checks), ([], []))
        (self.top / "empty" / "x.log").unlink()
        for words in (("--allow-empty", *order), ("--append", f"{self.top / 'empty'}:/apps/v1", "n1")):
            running = self.sync(*words)
            request = node.requests[-1]
            assert isinstance(request, AppendDir | ReplaceDir)
            node.tell_received(request.path, request.image, 1)
            self.pass_()
            self.assertEqual(self.successResultOf(running), 0)

    def test_no_key(self) -> None:
        """Without a key there is nothing to try: servers refuse what nobody signed."""
        failure = self.failureResultOf(self.sync("--append", f"{self.source}:/apps/v1", "n1", key=False), BadKey)
        self.assertIn("ssh-keygen", failure.getErrorMessage())


class Index(CommandCase):
    def test_stdout(self) -> None:
        """Stdout has the bytes of the index and nothing else, so that it can be piped."""
        options = parse(["index", "--hash", "sha512/256", str(self.source)])
        assert isinstance(options, IndexOptions)
        code = self.successResultOf(Deferred.fromCoroutine(commands.index(options, self.around)))
        self.assertEqual(code, 0)
        footer = self.out.data.splitlines()[-1].decode()
        index = parse_index(self.out.data, ImageId(bytes.fromhex(footer)))
        self.assertEqual([file.path for file in index.files], ["/sub/file"])
        self.assertTrue(self.out.data.startswith(b"DIRSIGNATURE.v1 sha512/256"))
        self.assertIn("Indexed", self.err.text)

    def test_warnings(self) -> None:
        """What was left out of the index is told on stderr."""
        os.mkfifo(self.source / "pipe")
        options = parse(["-q", "index", str(self.source)])
        assert isinstance(options, IndexOptions)
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(commands.index(options, self.around))), 0)
        self.assertIn("pipe", self.err.text)
        self.assertNotIn(b"pipe", self.out.data)

    def test_no_cache(self) -> None:
        """``ciruela index`` keeps hashes too, unless it must not."""
        home = self.top / "caches"
        home.mkdir()
        self.around = replace(self.around, environ={"XDG_CACHE_HOME": str(home.absolute())})
        for words, number in ((["--no-cache", "index"], 0), (["index"], 1)):
            options = parse([*words, str(self.source)])
            assert isinstance(options, IndexOptions)
            self.assertEqual(self.successResultOf(Deferred.fromCoroutine(commands.index(options, self.around))), 0)
            self.assertEqual(len(list(home.iterdir())), number)


class FakeReactor:
    """A reactor that runs at once."""

    def __init__(self, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.meanwhile = meanwhile
        self.stopped = 0
        self.waiting: list[Callable[[], object]] = []

    def callWhenRunning(self, call: Callable[[], object]) -> None:
        self.waiting.append(call)

    def callFromThread(self, call: Callable[[], object]) -> None:
        call()

    def run(self) -> None:
        self.waiting.pop()()
        self.meanwhile()

    def stop(self) -> None:
        self.stopped += 1


class Life(SynchronousTestCase):
    def setUp(self) -> None:
        self.set: dict[int, Any] = {}
        self.patch(signal, "signal", lambda number, call: self.set.__setitem__(number, call))
        self.patch(signal, "getsignal", lambda _: signal.SIG_DFL)
        self.err = io.StringIO()
        self.patch(__import__("sys"), "stderr", self.err)

    def run_life(self, command: Callable[[], Any], meanwhile: Callable[[], object] = lambda: None) -> int:
        reactor = FakeReactor(meanwhile)
        code = _Life(reactor, command, False, 0).run()
        self.assertEqual(reactor.stopped, 1)
        return code

    def test_code(self) -> None:
        """The exit code of the program is that of its command."""

        async def command() -> int:
            return 6

        self.assertEqual(self.run_life(command), 6)

    @shows("K8.2")
    def test_abandoned(self) -> None:
        """A command whose output nobody can read would go on for half an hour, or end with an internal error."""

        async def command() -> int:
            await Deferred[None]()
            return 0

        reactor = FakeReactor(lambda: life.abandon())
        life = _Life(reactor, command, False, 0)
        self.assertEqual((life.run(), self.err.getvalue(), reactor.stopped), (1, "", 1))

    @shows("F54")
    def test_signals(self) -> None:
        """Ctrl-C and SIGTERM let the command clean up and end with 130 and 143."""
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            cleaned: list[int] = []

            async def command(cleaned: list[int] = cleaned) -> int:
                try:
                    await Deferred[None]()
                finally:
                    cleaned.append(1)
                return 0

            self.assertEqual(self.run_life(command, lambda number=number: self.set[number](number, None)), code)  # type: ignore[misc]
            self.assertEqual(cleaned, [1])
            self.assertEqual(self.err.getvalue(), "")

    def test_second_signal(self) -> None:
        """Who presses Ctrl-C twice is obeyed at once."""
        ended: list[int] = []
        self.patch(os, "_exit", ended.append)
        gate: Deferred[None] = Deferred()

        async def command() -> int:
            try:
                await Deferred[None]()
            except CancelledError:
                await gate
            return 0

        def twice() -> None:
            self.set[signal.SIGINT](signal.SIGINT, None)
            self.assertEqual(ended, [])
            self.set[signal.SIGINT](signal.SIGINT, None)
            gate.callback(None)

        self.run_life(command, twice)
        self.assertEqual(ended, [130])

    def test_ignored_signals_stay_ignored(self) -> None:
        """A program under nohup goes on when its terminal is closed."""
        self.patch(signal, "getsignal", lambda _: signal.SIG_IGN)

        async def command() -> int:
            return 0

        self.run_life(command)
        self.assertEqual(self.set, {})

    def test_error_line(self) -> None:
        """A fault ends with one line on stderr."""

        async def command() -> int:
            raise BadKey("it is \x1b[31mred")

        self.assertEqual(self.run_life(command), 2)
        self.assertEqual(self.err.getvalue(), "ciruela: it is \\x1b[31mred\n")

    def test_codes(self) -> None:
        """Every fault has its documented exit code, and none shows a traceback."""
        for error, code in (
            (LocalProblem("x"), 1),
            (DiskError("x"), 1),
            (FormatError("x"), 1),
            (BadKey("x"), 2),
            (ConfigError("x"), 2),
            (RemoteError("x"), 3),
            (LinkLost("x"), 3),
            (CiruelaError("x"), 1),
            (OSError(28, "No space left on device"), 1),
            (ZeroDivisionError("x"), 1),
        ):
            found, text = exit_for(Failure(error), False)
            self.assertEqual(found, code, error)
            self.assertNotIn("Traceback", text)
            self.assertEqual(len(text.splitlines()), 1)
        self.assertIn("Traceback", exit_for(Failure(ZeroDivisionError("x")), True)[1])
