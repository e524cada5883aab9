"""Bench G: every path that a running daemon gives to the system, written down by strace; and somebody who moves directories below it."""

from __future__ import annotations

import http.client
import os
import sys
import threading
import time
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import ciruela
from ciruela.disk.syscalls import EXCHANGE, renameat2
from ciruela.index.digest import HashKind
from ciruela.proto import messages as m
from tests.proof import shows
from tests.real.asking import ask
from tests.real.audit import Audit
from tests.real.daemons import APPS, CFG, RealCluster, RealNode
from tests.real.mounts import needs
from tests.real.strace import Call, Tracer, calls, forbidden, whole
from tests.real.trees import Shape, shape, small_tree

DEEP = "append-only: false\nnum-levels: 2\n"
SECRET = "not for everybody\n"
RACE_S = 2.5
"""How long directories change places with symlinks while uploads arrive."""

TRACED = "%file"
"""Every call that takes a path."""

PLACES = (
    "/..",
    "/../outside",
    "/apps/..",
    "/apps/../../../outside",
    "/apps/planted",
    "/apps/./v1",
    "//apps/v1",
    "/apps/v1/..",
    "/etc",
    "etc",
)
INSIDE = ("/secret", "/unlisted", "secret", "/../secret", "/../../../outside/secret", "/link", "/link/secret", "/sub/../unlisted", "")
PAGES = ("/list-dir/..", "/list-dir/apps/../../..", "/list-dir/%2e%2e/%2e%2e/outside", "/list-dir/apps/planted", "/../../outside/secret")


def page(node: RealNode, path: str) -> bytes:
    """What a page shows, whose path is sent as it is."""
    link = http.client.HTTPConnection(node.host, node.port, timeout=20)
    try:
        link.request("GET", path)
        return link.getresponse().read()
    finally:
        link.close()


def exchange(directory: Path, one: str, other: str) -> None:
    """Let two names change places in one step."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        renameat2(fd, one.encode(), fd, other.encode(), EXCHANGE)
    finally:
        os.close(fd)


class PathTests(SynchronousTestCase):
    """Whom the daemon is led to."""

    maxDiff = None

    def source(self, text: str) -> Path:
        """A new small directory."""
        return small_tree(Path(self.mktemp()).absolute(), {"file": text, "sub/other": text * 2})

    def outside(self, cluster: RealCluster) -> tuple[Path, Shape]:
        """A directory that is none of the daemon's business."""
        top = small_tree(cluster.top / "outside", {"secret": SECRET, "v1/secret": SECRET, "v1/file": SECRET, "main/secret": SECRET})
        return top, shape(top)

    def audit(self, node: RealNode) -> Audit:
        """What ``node`` may name."""
        roots = [*(node.data / key for key in ("apps", "cfg", "deep") if (node.data / key).is_dir()), node.db]
        packages = [os.path.realpath(path) for path in (sys.prefix, sys.base_prefix, str(Path(ciruela.__file__).parent.parent))]
        return Audit(roots, node.config, [sys.prefix, *packages])

    def hostile(self, node: RealNode) -> int:
        """Ask for what nobody may have. Gives the number of requests."""
        secret = HashKind.BLAKE3.block(SECRET.encode())
        requests: list[m.Request] = [m.GetIndexAt(place) for place in PLACES]
        requests += [m.GetBaseDir(place) for place in PLACES]
        requests += [m.GetBlock(secret, m.BlockHint(place, "/secret", 0)) for place in PLACES]
        requests += [m.GetBlock(secret, m.BlockHint("/apps/v1", name, 0)) for name in INSIDE]
        for request in requests:
            answer = ask(node, request)
            given = isinstance(answer, m.BlockData | m.BaseDirData) or (isinstance(answer, m.IndexAtData) and answer.data is not None)
            self.assertFalse(given, f"{request} was answered with {answer}")
        for path in PAGES:
            self.assertNotIn(SECRET.strip().encode(), page(node, path), path)
        return len(requests) + len(PAGES)

    def complaints(self, audit: Audit, out: Path, warm_from_s: float) -> list[str]:
        """What must not have been called. Before ``warm_from_s``, the first request, Python may look anywhere for its modules."""
        found = []
        for call in calls(out):
            why = audit.complaint(call, call.at_s > warm_from_s)
            if why and not (why.startswith("outside: ") and call.at_s <= warm_from_s):
                found.append(why)
        return found

    @needs(forbidden)
    @shows("I3", "I13", "F2", "F3", "I8")
    def test_every_path(self) -> None:
        """Whoever plants a symlink, or invents a path, would read or change files of the server that have nothing to do with ciruela."""
        cluster = RealCluster(self, 1, {"apps": APPS, "cfg": CFG}, down=[0], expect_errors=["given up: "])
        (node,) = cluster.nodes
        outside, before = self.outside(cluster)
        for key in ("apps", "cfg"):
            (node.data / key / "planted").symlink_to(outside)
        first, second, third = (self.source(text) for text in ("one", "two", "three"))
        audit = self.audit(node)
        for turn in range(2):  # the second one is the restart
            out = cluster.top / f"calls {turn}"
            node.wrapper = ["strace", "-D", "-f", "-q", "-y", "-ttt", "-s", "4096", "-o", str(out), "-e", f"trace={TRACED}"]
            cluster.start(0)
            warm_from_s = time.time()
            if turn == 0:
                cluster.expect(cluster.sync("--append", f"{first}:/apps/v1", "--replace", f"{third}:/cfg/main", "127.0.0.1"), 0, "DONE")
                cluster.expect(cluster.sync("--replace", f"{second}:/cfg/main", "127.0.0.1"), 0, "DONE")
                node.path("/apps/v1/unlisted").write_text(SECRET)
                node.path("/apps/v1/link").symlink_to(outside)
            cluster.expect(cluster.sync("--replace", f"{third if turn else second}:/cfg/main", "127.0.0.1"), 0, "DONE")
            for order in (("--append", f"{third}:/apps/planted"), ("--replace", f"{third}:/cfg/planted")):
                self.assertIn(
                    cluster.sync("-t", "3s", *order, "127.0.0.1").returncode, (3, 5, 6), "a planted symlink was taken for a directory"
                )
            self.assertGreater(self.hostile(node), 40)
            self.assertEqual(node.get("/healthz")["status"], "ok")
            cluster.stop(0)
            whole(out)
            self.assertEqual(self.complaints(audit, out, warm_from_s), [])
        self.assertGreater(audit.seen, 500, "nothing was written down")
        self.assertEqual(shape(outside), before)
        cluster.same(third, "/cfg/main")
        self.assertTrue(all((node.data / key / "planted").is_symlink() for key in ("apps", "cfg")))

    @needs(forbidden)
    @shows("F2", "I1", "I3", "I8")
    def test_directories_change_places(self) -> None:
        """Another user of the server who is quick enough would have files of others overwritten, or sent to him, by the daemon."""
        faults = ["Not a directory", "Too many levels of symbolic links", "No such file or directory", "given up: "]
        cluster = RealCluster(self, 1, {"deep": DEEP}, expect_errors=faults)
        (node,) = cluster.nodes
        outside, before = self.outside(cluster)
        first, second = self.source("one"), self.source("two")
        cluster.expect(cluster.sync("--replace", f"{first}:/deep/app/v1", "127.0.0.1"), 0, "DONE")
        base = node.data / "deep"
        (base / "evil").symlink_to(outside)
        secret = HashKind.BLAKE3.block(SECRET.encode())
        tracer = Tracer(cluster.pid(0), cluster.top / "calls", TRACED)
        ended = threading.Event()
        turns: list[int] = []
        thread = threading.Thread(target=self.restless, args=(base, ended, turns))
        thread.start()
        try:
            clients = [cluster.begin_sync("-t", "3s", "--replace", f"{second}:/deep/app/v{number}", "127.0.0.1") for number in range(1, 4)]
            end_s = time.monotonic() + RACE_S
            while time.monotonic() < end_s:
                for name in ("/secret", "/file"):
                    answer = ask(node, m.GetBlock(secret, m.BlockHint("/deep/app/v1", name, 0)))
                    self.assertNotIsInstance(answer, m.BlockData)
            codes = [cluster.finish(client).returncode for client in clients]  # refused, no news in time or conflict: each is honest
        finally:
            ended.set()
            thread.join()
            tracer.detach()
        self.assertLessEqual(set(codes), {0, 3, 5, 6})
        self.assertGreater(turns[0], 1000, "nothing changed places")
        self.assertEqual(shape(outside), before)
        self.assertEqual(self.complaints(self.audit(node), cluster.top / "calls", 0.0), [])
        if (base / "app").is_symlink():
            exchange(base, "app", "evil")
        (base / "evil").unlink()
        self.assertEqual(node.get("/healthz")["status"], "ok")
        cluster.expect(cluster.sync("--replace", f"{second}:/deep/app/v1", "--replace", f"{first}:/deep/app/v9", "127.0.0.1"), 0, "DONE")
        cluster.same(second, "/deep/app/v1")
        cluster.same(first, "/deep/app/v9")

    def restless(self, base: Path, ended: threading.Event, turns: list[int]) -> None:
        """Exchange a directory with a symlink until ``ended``; the number of times is added to ``turns``."""
        count = 0
        while not ended.is_set():
            exchange(base, "app", "evil")
            count += 1
            if count % 20 == 0:
                time.sleep(0.001)
        turns.append(count)


class AuditTests(SynchronousTestCase):
    """The audit itself."""

    def judged(self, name: str, args: str, result: str = "0") -> str:
        """What it says of a call once the daemon is warm."""
        return Audit([Path("/base"), Path("/db")], Path("/config"), []).complaint(Call(1, 0.0, name, args, result), warm=True)

    def test_good(self) -> None:
        """Everything would be complained about, and soon nobody would read it."""
        for name, args, result in (
            ("openat", 'AT_FDCWD</tmp>, "/base", O_RDONLY|O_DIRECTORY|O_CLOEXEC', "9</base>"),
            ("openat", '9</base>, "a", O_RDONLY|O_NOFOLLOW|O_CLOEXEC', "10</base/a>"),
            ("unlinkat", '9</base>, "a", 0', "0"),
            ("renameat2", '9</base>, "a", 9</base>, "b", RENAME_EXCHANGE', "0"),
            ("openat", 'AT_FDCWD</tmp>, "/config/master.key", O_RDONLY', "10</config/master.key>"),
        ):
            self.assertEqual(self.judged(name, args, result), "", args)

    def test_bad(self) -> None:
        """A daemon that is led elsewhere would pass."""
        for name, args, result in (
            ("openat", 'AT_FDCWD</tmp>, "/etc/passwd", O_RDONLY|O_CLOEXEC', "9</etc/passwd>"),
            ("openat", 'AT_FDCWD</tmp>, "/base/a", O_RDONLY|O_NOFOLLOW', "9</base/a>"),
            ("openat", '9</base>, "a/b", O_RDONLY|O_NOFOLLOW', "10</base/a/b>"),
            ("openat", '9</base>, "a", O_RDONLY', "10</base/a>"),
            ("openat", '9</base>, "..", O_RDONLY|O_NOFOLLOW', "10</>"),
            ("newfstatat", '9</base>, "a", {st_mode=S_IFREG|0644}, 0', "0"),
            ("unlinkat", '8</outside>, "a", 0', "0"),
            ("renameat2", '9</base>, "a", 8</outside>, "b", 0', "0"),
            ("mkdir", '"/base/a", 0755', "0"),
        ):
            self.assertNotEqual(self.judged(name, args, result), "", args)
        with self.assertRaises(AssertionError):
            self.judged("frobnicate", '"/etc"')
