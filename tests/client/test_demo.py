"""The parts of the demo that need no process; ``tests/real`` runs it whole."""

from __future__ import annotations

import os
import shlex
import stat
import sys
from pathlib import Path
from typing import Any

from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client.demo import TERM_S, DemoNode, default_directory, folded, make_keys, next_line, script
from ciruela.client.options.table import parse_sync
from ciruela.interfaces import DEFAULT_PORT
from ciruela.keys.public import parse_private, parse_public
from tests.proof import shows


class FakeTransport:
    """A process that dies of ``deadly`` signals only."""

    pid = 4711

    def __init__(self, protocol: Any, deadly: tuple[int, ...]) -> None:
        self.protocol = protocol
        self.deadly = deadly
        self.signals: list[int] = []

    def signalProcess(self, number: int) -> None:
        self.signals.append(number)
        if not self.deadly:
            raise ProcessExitedAlready
        if number in self.deadly:
            self.protocol.processEnded(Failure(ProcessDone(0)))


class FakeSpawner:
    """A reactor that starts nothing."""

    deadly: tuple[int, ...] = (15,)
    transport: FakeTransport
    arguments: dict[str, Any]

    def spawnProcess(self, protocol: Any, executable: str, args: list[str], **rest: Any) -> FakeTransport:
        self.arguments = {"executable": executable, "args": args, **rest}
        self.transport = FakeTransport(protocol, self.deadly)
        return self.transport


class DemoParts(SynchronousTestCase):
    def setUp(self) -> None:
        self.top = Path(self.mktemp())
        self.top.mkdir()

    def test_next_line(self) -> None:
        """The line that the demo proposes must work when it is pasted, also with spaces and quotes in names."""
        for port in (DEFAULT_PORT, 4711):
            words = shlex.split(next_line("/tmp/a b'c", Path("/tmp/x y/key"), port))
            self.assertEqual(Path(words[0]).name, "ciruela-sync")
            options = parse_sync(words[1:])
            self.assertEqual((options.wishes[0].source, str(options.wishes[0].vpath)), ("/tmp/a b'c", "/demo/v2"))
            self.assertEqual((options.keys.files, options.common.port), (("/tmp/x y/key",), port))

    @shows("W3")
    def test_folded(self) -> None:
        """A line that wraps where the terminal ends is pasted with a break in the middle of a path."""
        command = next_line("/srv/releases/of the shop/" + "x" * 30, Path("/tmp/ciruela-demo-12345678/key"), 4711)
        lines = folded(command)
        self.assertTrue(len(lines) > 1 and max(map(len, lines)) <= 80, lines)
        self.assertTrue(all(line.endswith(" \\") for line in lines[:-1]))
        self.assertEqual(shlex.split("".join(line.removesuffix("\\") for line in lines)), shlex.split(command))
        self.assertEqual(shlex.split("".join(folded("a b"))), ["a", "b"])

    def test_script(self) -> None:
        """What is not on the PATH is proposed with its whole path, or the shell would not find it."""
        ours = self.top / "ciruela-sync"
        ours.touch(mode=0o755)
        self.patch(sys, "executable", str(self.top / "python"))
        self.patch(os, "environ", {"PATH": "/nowhere"})
        self.assertEqual(script(), str(ours))
        self.patch(os, "environ", {"PATH": str(self.top)})
        self.assertEqual(script(), "ciruela-sync")

    def test_default_directory(self) -> None:
        """Without an argument there is a real directory to show."""
        self.assertTrue(Path(default_directory(3)).is_dir())

    def test_keys(self) -> None:
        """The throw-away key can sign, its public half is the one the servers get, and nobody else can read it."""
        line = make_keys(self.top / "key")
        self.assertEqual(parse_private((self.top / "key").read_text()).public, parse_public(line))
        self.assertEqual(stat.S_IMODE((self.top / "key").stat().st_mode), 0o600)

    def start(self, deadly: tuple[int, ...]) -> tuple[DemoNode, FakeSpawner, list[DemoNode]]:
        node = DemoNode(2, self.top, 4711)
        node.write("ssh-ed25519 AAAA demo", [DemoNode(1, self.top, 4711), DemoNode(3, self.top, 4711)])
        spawner = FakeSpawner()
        spawner.deadly = deadly
        told: list[DemoNode] = []
        node.start(spawner, {"PYTHONPATH": "/elsewhere"}, told.append)  # type: ignore[arg-type]
        return node, spawner, told

    def test_command(self) -> None:
        """Each daemon has its own address, directories and identity, and finds the others."""
        node, spawner, _ = self.start((15,))
        args = spawner.arguments["args"]
        for option, value in (
            ("--host", "127.0.0.2"),
            ("--port", "4711"),
            ("--override-machine-id", f"{2:032x}"),
            ("--override-hostname", "node2"),
            ("--config", str(node.top / "config")),
            ("--db-dir", str(node.top / "db")),
        ):
            self.assertEqual(args[args.index(option) + 1], value)
        self.assertTrue(spawner.arguments["env"]["PYTHONPATH"].endswith(":/elsewhere"))
        self.assertEqual((node.top / "config" / "peers.txt").read_text(), "127.0.0.1\n127.0.0.3\n")
        self.assertTrue((node.top / "db").is_dir())

    def test_stop(self) -> None:
        """A daemon is asked to end; who does not is killed after five seconds; the demo waits until it is gone."""
        clock = Clock()
        node, spawner, told = self.start((15,))
        self.assertEqual(node.pid, 4711)
        self.assertIsNone(self.successResultOf(node.stop(clock)))
        self.assertEqual((spawner.transport.signals, node.pid, told), ([15], None, [node]))
        self.assertEqual(clock.getDelayedCalls(), [])

    def test_stubborn(self) -> None:
        """As above, for one that ignores SIGTERM."""
        clock = Clock()
        node, spawner, _ = self.start((9,))
        stopping = node.stop(clock)
        clock.advance(TERM_S - 0.1)
        self.assertNoResult(stopping)
        clock.advance(0.2)
        self.assertIsNone(self.successResultOf(stopping))
        self.assertEqual(spawner.transport.signals, [15, 9])

    def test_already_gone(self) -> None:
        """One that ended by itself is not waited for; its log can be shown."""
        clock = Clock()
        node, spawner, told = self.start(())
        stopping = node.stop(clock)
        spawner.transport.protocol.processEnded(Failure(ProcessDone(0)))
        self.assertIsNone(self.successResultOf(stopping))
        self.assertIsNone(self.successResultOf(node.stop(clock)))
        node.log.write_text("\n".join(f"line {number}" for number in range(100)))
        self.assertTrue(node.tail().startswith("line 85\n"))
        self.assertEqual(told, [node])
        self.assertEqual(clock.getDelayedCalls(), [])
