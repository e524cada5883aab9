"""Changes of the configuration of nodes that run, in memory."""

from __future__ import annotations

import os
import random
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from ciruela.daemon.keywatch import FOLLOW_UPS, LOOK_S, KeyWatch, stamps
from ciruela.daemon.plan import DaemonPlan
from ciruela.daemon.reload import LiveConfigs, ReloadReport, Reloads, Sighup
from ciruela.model.config import STANDARD, DirConfig, Fsync
from ciruela.model.errors import ConfigError, DiskError
from ciruela.model.ids import MachineId
from ciruela.model.vpath import VPath
from ciruela.net.discovery.spec import SourceSpecs
from tests.proof import shows
from tests.scenarios.cluster import APP, LOGS, Client, Cluster, Image

NEW = DirConfig("new", "/srv/new", append_only=True, num_levels=1)
IMAGE = Image(3, {"large": 3_000_000, "small": 10})
V1 = VPath.parse("/app/v1")


def plan(**configs: DirConfig) -> DaemonPlan:
    """What the files of node 1 say."""
    return DaemonPlan("/etc/ciruela", "/db", "10.0.0.1", 24783, 8, MachineId(b"1" * 16), "n1", STANDARD, configs, SourceSpecs(), ())


class Keys:
    """Implements ``interfaces.Authority``: the keys are there, gone, or nobody can tell."""

    def __init__(self) -> None:
        self.state = "there"

    def verified(self, config: Any, vpath: Any, image: Any, entries: Any) -> Deferred[Any]:
        if self.state == "unreadable":
            return fail(DiskError("open keys: Input/output error"))
        return succeed(dict.fromkeys(entries, "key") if self.state == "there" else {})


class NodeCase(SynchronousTestCase):
    """Two nodes in memory, of which the first may be told something else."""

    def setUp(self) -> None:
        self.live = LiveConfigs({"app": APP, "logs": LOGS})
        self.cluster = Cluster(2, configs=lambda number: self.live if number == 1 else {"app": APP, "logs": LOGS, "new": NEW})
        self.node = self.cluster.nodes[1]
        self.keys = Keys()
        object.__setattr__(self.node.context, "authority", self.keys)
        self.config_dir = Path(self.mktemp()).absolute()
        (self.config_dir / "keys").mkdir(parents=True)
        (self.config_dir / "master.key").write_text("one")
        self.watch = KeyWatch(self.node, str(self.config_dir), maybeDeferred, self.cluster.clock, random.Random(1))
        self.applied: list[DaemonPlan] = []
        self.says: Any = plan(app=APP, logs=LOGS)
        self.reloads = Reloads(self.says, self.read, self.node, self.live, self.watch, self.applied.append)
        self.cluster.run(5.0)

    def read(self) -> Deferred[DaemonPlan]:
        if isinstance(self.says, Deferred):
            return self.says
        return fail(self.says) if isinstance(self.says, Exception) else succeed(self.says)

    def upload(self, path: str, *numbers: int) -> Client:
        client = Client(self.cluster, IMAGE)
        client.upload(path, self.cluster.addresses(*(numbers or (1, 2))))
        return client

    def half(self, path: str) -> Client:
        """An upload of which node 1 has got a part, and then nothing more."""
        self.cluster.hub.rates = {self.cluster.address(number): 100_000.0 for number in (1, 2)}
        client = self.upload(path, 1)
        self.cluster.run(5.0)
        self.assertEqual([str(one.vpath) for one in self.node.downloads.running()], [path])
        return client


class ReloadTests(NodeCase):
    """All or nothing."""

    def reload(self, says: Any) -> ReloadReport:
        self.says = says
        self.successResultOf(self.reloads.ask())
        assert self.reloads.last is not None
        return self.reloads.last

    def test_added(self) -> None:
        """A new directory takes uploads at once, and others hear of it."""
        self.assertEqual(self.reload(plan(app=APP, logs=LOGS, new=NEW)).mistakes, ())
        self.upload("/new/v1")
        self.cluster.run(30.0)
        self.assertEqual(self.cluster.holders("/new/v1", IMAGE), {1, 2})
        self.assertIn(self.cluster.machine(1), self.cluster.nodes[2].gossip.cluster.hosts("new"))

    @shows("I1")
    def test_removed_and_back(self) -> None:
        """A file that is moved away by mistake would cost all images of its directory."""
        self.upload("/app/v1")
        self.cluster.run(30.0)
        disk = self.cluster.disks[1]
        before = dict(disk.states), dict(disk.images)
        self.reload(plan(logs=LOGS))
        self.assertIsNone(self.node.ledger.committed(V1))
        self.assertEqual((dict(disk.states), dict(disk.images)), before)
        self.cluster.run(60.0)
        self.assertEqual(list(self.node.gossip.local.keys()), ["logs"])
        self.reload(plan(app=APP, logs=LOGS))
        self.assertEqual(self.cluster.holders("/app/v1", IMAGE), {1, 2})
        self.cluster.run(30.0)
        self.assertTrue(self.cluster.agree())

    def test_removed_in_the_middle(self) -> None:
        """An upload that runs would go on into a directory that is not to be written to, or its client wait for ever."""
        client = self.half("/app/v1")
        self.reload(plan(logs=LOGS))
        self.cluster.run(6.0)
        self.assertEqual(self.node.downloads.running(), [])
        self.assertIn("directory_removed", str(client.aborted))
        self.assertIn(V1, self.cluster.disks[1].pendings)
        self.cluster.hub.rates = {}
        self.reload(plan(app=APP, logs=LOGS))
        self.cluster.run(60.0)
        self.assertEqual(self.cluster.holders("/app/v1", IMAGE), {1, 2})

    @shows("F60")
    def test_mistakes(self) -> None:
        """Nothing changes when anything is wrong, and the page names the places without paths of the host."""
        before = dict(self.live)
        lines = '/etc/ciruela/configs/new.yaml:3: num-levels: "x"\n/etc/ciruela/ciruela.yaml:1: wrong\nno place at all'
        report = self.reload(ConfigError(lines))
        self.assertEqual((len(report.mistakes), report.places("/etc/ciruela")), (3, ["configs/new.yaml:3", "ciruela.yaml:1"]))
        moved = replace(APP, directory="/srv/elsewhere")
        self.assertIn("needs a restart", self.reload(plan(app=moved, logs=LOGS, new=NEW)).mistakes[0])
        self.assertIn("num-levels", self.reload(plan(app=replace(APP, num_levels=3), logs=LOGS)).mistakes[0])
        self.patch(self.cluster.disks[1], "load_added", lambda _: fail(DiskError("/new: Input/output error")))
        self.assertEqual(self.reload(plan(app=APP, logs=LOGS, new=NEW)).mistakes, ("/new: Input/output error",))
        self.assertEqual((dict(self.live), self.applied, self.reloads.refused), (before, [], 4))

    def test_limits(self) -> None:
        """New limits count at once; what needs a restart is told, and stays."""
        tuning = replace(STANDARD, uploads_per_key=1, requests_per_second=3, scrub_bytes_per_second=0, fsync=Fsync.NONE)
        report = self.reload(replace(plan(app=APP, logs=LOGS), tuning=tuning, port=5, disk_threads=1))
        self.assertEqual(report.waiting, ("port", "disk-threads", "fsync"))
        (applied,) = self.applied
        self.assertEqual((applied.port, applied.tuning), (24783, replace(tuning, fsync=Fsync.COMMIT)))
        self.assertEqual((self.node.uploads.quotas._uploads_per_key, self.node.counterpart._rate), (1, 3))

    def test_not_ready(self) -> None:
        """A signal that comes during the start must not end in half a node."""
        self.node.ready = False
        self.assertIn("the node is starting", self.reload(plan(logs=LOGS)).mistakes[0])

    def test_twice_at_once(self) -> None:
        """Of two signals the second would be lost, or both readings be taken in at a time."""
        self.says = first = Deferred()
        self.reloads.ask()
        self.reloads.ask()
        self.reloads.ask()
        self.says = plan(logs=LOGS)
        first.callback(plan(app=APP))
        self.assertEqual((self.reloads.done, list(self.live)), (2, ["logs"]))

    def test_stopped_in_the_middle(self) -> None:
        """A daemon that stops must not begin anything anew."""
        self.says = Deferred()
        self.reloads.ask()
        self.reloads.stop()
        self.assertEqual((self.reloads.done, self.reloads.refused, self.applied), (0, 0, []))
        self.successResultOf(self.reloads.ask())

    def test_own_fault(self) -> None:
        """An error that nobody thought of would make the daemon deaf to later signals."""
        self.assertIn("an error of the program", self.reload(ZeroDivisionError("on purpose")).mistakes[0])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.reload(plan(app=APP, logs=LOGS)).mistakes, ())


class KeyWatchTests(NodeCase):
    """A key that is taken away counts no more, whatever it has begun."""

    def change(self) -> None:
        path = self.config_dir / "master.key"
        path.write_text(path.read_text() + "x")

    @shows("A12")
    def test_removed(self) -> None:
        """A thief whose key is taken away would still finish the upload that made somebody notice."""
        self.watch.start()
        self.addCleanup(self.watch.stop)
        client = self.half("/app/v1")
        self.cluster.run((FOLLOW_UPS + 3) * LOOK_S)
        self.assertEqual(len(self.node.downloads.running()), 1)
        self.keys.state = "gone"
        self.change()
        self.cluster.run(3 * LOOK_S)
        self.assertEqual((self.node.downloads.running(), self.watch.aborted), ([], 1))
        self.cluster.run(3 * LOOK_S)  # behind what else is on its way there
        self.assertIn("key_removed", str(client.aborted))
        self.assertEqual((self.node.ledger.pending(V1), self.cluster.disks[1].pendings), (None, {}))

    def test_removed_while_it_was_down(self) -> None:
        """A restart would finish what a key began that is gone."""
        self.half("/app/v1")
        self.keys.state = "gone"
        self.watch.start()
        self.addCleanup(self.watch.stop)
        self.cluster.run(4 * LOOK_S)
        self.assertEqual(self.node.downloads.running(), [])

    def test_committed_stays(self) -> None:
        """Taking a key away would take servers down."""
        self.upload("/app/v1")
        self.cluster.run(30.0)
        self.keys.state = "gone"
        self.successResultOf(self.watch.recheck())
        self.assertEqual(self.cluster.holders("/app/v1", IMAGE), {1, 2})

    @shows("A48")
    def test_cannot_tell(self) -> None:
        """A disk that fails for a moment would cost every upload that runs."""
        self.half("/app/v1")
        self.keys.state = "unreadable"
        self.successResultOf(self.watch.recheck())
        self.assertEqual(len(self.node.downloads.running()), 1)

    def test_being_written(self) -> None:
        """An editor that empties the file before it writes would cost every upload that runs."""
        self.watch.start()
        self.addCleanup(self.watch.stop)
        self.half("/app/v1")
        self.cluster.run((FOLLOW_UPS + 3) * LOOK_S)
        self.keys.state = "gone"
        for _ in range(5):
            self.change()
            self.cluster.run(LOOK_S)
        self.assertEqual(len(self.node.downloads.running()), 1)

    def test_stamps(self) -> None:
        """Every way to change a key is seen; that there are no keys at all is fine."""
        before = stamps(str(self.config_dir))
        (self.config_dir / "keys" / "ci.key").write_text("x")
        added = stamps(str(self.config_dir))
        (self.config_dir / "keys" / "new").write_text("y")
        (self.config_dir / "keys" / "new").rename(self.config_dir / "keys" / "ci.key")
        changed = stamps(str(self.config_dir))
        self.assertEqual(len({str(one) for one in (before, added, changed)}), 3)
        self.assertEqual(stamps(str(self.config_dir / "nowhere")), {})


class HangupTests(SynchronousTestCase):
    """The signal itself."""

    def test_signal(self) -> None:
        """The handler runs in the middle of anything: it may only leave a note. Afterwards the signal is what it was."""
        notes: list[Any] = []

        class Reactor:
            def callFromThread(self, f: Any) -> None:
                notes.append(f)

        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        hangup = Sighup(Reactor(), self.fail)  # type: ignore[arg-type]
        hangup.start()
        os.kill(os.getpid(), signal.SIGHUP)
        self.assertEqual(notes, [self.fail])
        hangup.stop()
        hangup.stop()
        self.assertIs(signal.getsignal(signal.SIGHUP), signal.SIG_IGN)
        other = threading.Thread(target=hangup.start)
        other.start()
        other.join()
        hangup.stop()
        self.assertIs(signal.getsignal(signal.SIGHUP), signal.SIG_IGN)
