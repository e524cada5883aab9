"""``ciruela demo`` as a user runs it: real processes on loopback addresses."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

import ciruela
from ciruela.client.demo import FreePort, NodeFailed

PROGRAM = "import sys; from ciruela.client.main import main; sys.exit(main())"


class Run(ProcessProtocol):
    """One process: its output, when a word appears in it, and its exit code."""

    def __init__(self, word: bytes = b"") -> None:
        self.out = b""
        self.err = b""
        self.word = word
        self.seen: Deferred[None] = Deferred()
        self.ended: Deferred[int] = Deferred()

    def outReceived(self, data: bytes) -> None:
        self.out += data
        if self.word and self.word in self.out and not self.seen.called:
            self.seen.callback(None)

    def errReceived(self, data: bytes) -> None:
        self.err += data

    def processEnded(self, reason: Failure) -> None:
        code = reason.value.exitCode  # type: ignore[union-attr]
        self.ended.callback(code)
        if not self.seen.called:
            self.seen.errback(AssertionError(f"it ended with {code} before {self.word!r}: {self.err!r}"))
            self.seen.addErrback(lambda failure: failure if self.word else None)


class Demo(TestCase):
    timeout = 180

    def setUp(self) -> None:
        self.top = Path(self.mktemp()).absolute()
        self.source = self.top / "source"
        self.temporary = self.top / "tmp"
        self.temporary.mkdir(parents=True)
        for folder in ("a", "b c", "b c/d"):
            (self.source / folder).mkdir(parents=True)
            for number in range(10):
                (self.source / folder / f"file {number}").write_bytes(os.urandom(1000 * number))
        (self.source / "link").symlink_to("a/file 1")
        (self.source / "empty").mkdir()

    def run_demo(self, run: Run, *words: str) -> object:
        environ = {**os.environ, "TMPDIR": str(self.temporary), "PYTHONPATH": str(Path(ciruela.__file__).parent.parent)}
        arguments = [sys.executable, "-c", PROGRAM, "demo", "--nodes", "2", *words, str(self.source)]
        process = reactor.spawnProcess(run, sys.executable, arguments, env=environ)  # type: ignore[attr-defined]
        self.addCleanup(self.end, run, process)
        return process

    def end(self, run: Run, process: object) -> Deferred[int] | None:
        if run.ended.called:
            return None
        process.signalProcess("TERM")  # type: ignore[attr-defined]
        return run.ended

    async def test_once(self) -> None:
        """The first thing a newcomer tries must work, prove that the copies are right, and leave nothing behind."""
        run = Run()
        self.run_demo(run, "--once")
        code = await run.ended
        self.assertEqual(code, 0, run.err)
        self.assertEqual(run.out.count(b"identical"), 2, run.out)
        self.assertIn(b"DONE      2/2 nodes", run.out)
        self.assertEqual(os.listdir(self.temporary), [])

    async def test_interrupt(self) -> None:
        """Ctrl-C ends the daemons and removes all files; before that, what is proposed as next step is there."""
        run = Run(b"Ctrl-C ends")
        process = self.run_demo(run)
        await run.seen
        self.assertIn(b"ciruela-sync -i ", run.out)
        self.assertIn(b"/status/", run.out)
        process.signalProcess(signal.SIGINT)  # type: ignore[attr-defined]
        self.assertEqual(await run.ended, 0, run.err)
        self.assertEqual(os.listdir(self.temporary), [])


class PortTests(SynchronousTestCase):
    """The ports of the demo's daemons."""

    def test_ports(self) -> None:
        """Two demos that start at the same moment do not take the same port, nor one that is in use."""
        first = FreePort(["127.0.0.1", "127.0.0.2"])
        self.addCleanup(first.release)
        second = FreePort(["127.0.0.1", "127.0.0.2"], first.number)
        self.assertNotEqual(first.number, second.number)
        second.release()
        again = FreePort(["127.0.0.1"], second.number)
        self.assertEqual(again.number, second.number)
        again.release()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.2", 0))
            other = FreePort(["127.0.0.1", "127.0.0.2"], taken.getsockname()[1])
            self.assertNotEqual(other.number, taken.getsockname()[1])
            other.release()

    def test_foreign_address(self) -> None:
        """An address that this machine does not have is told, with what to do."""
        failure = self.assertRaises(NodeFailed, FreePort, ["192.0.2.1"])
        self.assertIn("192.0.2.1 is not an address of this machine", str(failure))
