"""Black-box checks against the reference, 0.6.12: its client with our daemons, our client with its daemons, one database for both.

Run it from the checkout: ``python -m benchmarks.interop --reference DIR``; DIR has the programs ``ciruela`` and ``ciruela-server``.
One line for each check; the exit code is 1 when one failed. ``docs/explanation/interoperability.rst`` says how to build the reference.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.children import SYNC, CheckFailed, Children, Finished, free_port, page, run, until
from benchmarks.nodes import Node, fingerprint, make_nodes, write_key
from benchmarks.uploader import Trees, Uploader
from benchmarks.wiretap import BareLink, Session, Wiretap, control_frames

OURS, OTHERS = (1, 2, 3), (11, 12)
SINGLE, BACK, TAP, TAP_2, RECORDED, RECORDED_REFERENCE = 13, 14, 21, 22, 31, 32
PAUSE_S = 20.0
IDLE_S = 30.0
REFUSED = "12s"
"""The reference's client waits until the deadline when everybody refuses and the answers name other nodes."""

CONFIGS = {"app": "append-only: true\nnum-levels: 2\n", "site": "append-only: false\nnum-levels: 1\n"}
PART = "append-only: true\nnum-levels: 1\n"


def expect(good: object, what: str) -> None:
    """Raise CheckFailed unless it is so."""
    if not good:
        raise CheckFailed(what)


class Interop:
    """Everything that a run needs, and its results."""

    def __init__(self, top: Path, reference: Path, children: Children, record: Path | None, only: str) -> None:
        self.top = top
        self.children = children
        self.record = record
        self.only = re.compile(only)
        self.failed = self.passed = 0
        self.server = reference / "ciruela-server"
        self.client = reference / "ciruela"
        self.cantal = top / "cantal"
        self.cantal.mkdir()
        self.key, self.wrong = top / "key", top / "wrong"
        self.public = write_key(self.key)
        write_key(self.wrong, b"w" * 32)
        self.port = free_port([f"127.0.0.{number}" for number in (*OURS, *OTHERS, SINGLE, BACK, TAP, TAP_2, RECORDED, RECORDED_REFERENCE)])
        self.trees = Trees(top / "trees")
        self.theirs = Uploader("reference client", [str(self.client), "sync"], self.port, self.key)
        self.mine = Uploader("our client", SYNC, self.port, self.key)
        self.one, self.two = self.trees.small("one", "one\n"), self.trees.small("two", "two\n")

    # -- results ---------------------------------------------------------------------------------------------------------------------

    def check(self, name: str, body: Callable[[], str | None]) -> None:
        """Run one check and print its line."""
        if not self.only.search(name):
            return
        began_s = time.monotonic()
        try:
            detail = body() or ""
        except CheckFailed as failed:
            detail, mark = " | ".join(str(failed).splitlines()[-12:]), "FAILED"
        except Exception:  # noqa: BLE001  the other checks still count
            detail, mark = " | ".join(traceback.format_exc().splitlines()[-6:]), "FAILED"
        else:
            mark = "ok"
        self.passed += mark == "ok"
        self.failed += mark != "ok"
        print(f"{mark:<6} {name}  {time.monotonic() - began_s:.1f} s  {detail}".rstrip(), flush=True)

    @staticmethod
    def holds(nodes: Sequence[Node], path: str, tree: Path) -> None:
        """All nodes have exactly this tree at ``path``."""
        wanted = fingerprint(tree)
        for node in nodes:
            place = node.data / path
            expect(place.is_dir(), f"{node.host} has no {path}")
            expect(fingerprint(place) == wanted, f"{node.host}: {path} is not what was sent")

    # -- both directions -------------------------------------------------------------------------------------------------------------

    def exchange(self, label: str, uploader: Uploader, nodes: Sequence[Node]) -> None:
        """What every client and every cluster have to agree about."""
        hosts = [node.host for node in nodes]

        def sent(what: str, good: bool = True, key: Path | None = None) -> Finished:
            done = uploader.sync(what, hosts, key, deadline="120s" if good else REFUSED)
            expect((done.code == 0) is good, f"{what}: exit code {done.code}: {done.out[-800:]}")
            return done

        def append() -> None:
            sent(f"--append {self.one}:/app/a/v1")
            self.holds(nodes, "app/a/v1", self.one)

        def again() -> str:
            done = sent(f"--append {self.one}:/app/a/v1")
            self.holds(nodes, "app/a/v1", self.one)
            return f"in {done.wall_s:.1f} s"

        def conflict() -> str:
            done = sent(f"--append {self.two}:/app/a/v1", good=False)
            self.holds(nodes, "app/a/v1", self.one)
            return f"exit code {done.code}"

        def weak() -> None:
            sent(f"--append-weak {self.two}:/app/a/v1")
            self.holds(nodes, "app/a/v1", self.one)
            sent(f"--append-weak {self.two}:/app/a/v2")
            self.holds(nodes, "app/a/v2", self.two)

        def hardlinks() -> None:
            for node in nodes:
                both = [os.stat(node.data / "app/a" / name / "big.bin").st_ino for name in ("v1", "v2")]
                expect(both[0] == both[1], f"{node.host}: big.bin of v2 is not a link to v1's")

        def replace() -> None:
            sent(f"--replace {self.one}:/site/cur")
            self.holds(nodes, "site/cur", self.one)
            time.sleep(0.01)
            sent(f"--replace {self.two}:/site/cur")
            until("the replaced directory on all nodes", lambda: _same(nodes, "site/cur", self.two), None, 20)

        def old_id() -> str:
            now = page(hosts[0], self.port, "/list-dir/site")["cur"]["image"]
            wrong = sent(f"--replace {self.one}:/site/cur:{'0' * 64}", good=False)
            self.holds(nodes, "site/cur", self.two)
            sent(f"--replace {self.one}:/site/cur:{now}")
            until("the replaced directory on all nodes", lambda: _same(nodes, "site/cur", self.one), None, 20)
            return f"exit code with the wrong OLD_ID {wrong.code}"

        def append_only() -> str:
            done = sent(f"--replace {self.two}:/app/a/v1", good=False)
            self.holds(nodes, "app/a/v1", self.one)
            return f"exit code {done.code}"

        def wrong_key() -> str:
            done = sent(f"--append {self.one}:/app/k/v1", good=False, key=self.wrong)
            expect(not any((node.data / "app/k").exists() for node in nodes), "something was created")
            return f"exit code {done.code}"

        def no_config() -> str:
            done = sent(f"--append {self.one}:/nowhere/k/v1", good=False)
            return f"exit code {done.code}"

        def many() -> str:
            tree = self.trees.many(3000) if not (self.trees.top / "many").exists() else self.trees.top / "many"
            done = sent(f"--append {tree}:/app/many/v1")
            self.holds(nodes, "app/many/v1", tree)
            return f"3,000 files in {done.wall_s:.1f} s"

        def large() -> str:
            tree = self.trees.large(100) if not (self.trees.top / "large").exists() else self.trees.top / "large"
            done = sent(f"--append {tree}:/app/large/v1")
            self.holds(nodes, "app/large/v1", tree)
            return f"100 MiB in {done.wall_s:.1f} s"

        for body in (append, again, conflict, weak, hardlinks, replace, old_id, append_only, wrong_key, no_config, many, large):
            self.check(f"{label}: {body.__name__.replace('_', ' ')}", body)

    # -- a: the reference's client, our daemons --------------------------------------------------------------------------------------

    def their_client(self) -> None:
        """(a), and the idle connection of (d)."""
        nodes = make_nodes(self.top / "ours", self.port, self.public, CONFIGS, OURS, numeric=True)
        for node in nodes[1:]:
            (node.data / "part").mkdir()
            (node.top / "config" / "configs" / "part.yaml").write_text(f'directory: "{node.data / "part"}"\n{PART}')
        for node in nodes:
            node.start(self.children)
        for node in nodes:
            node.ready(2)
        label = "reference client, three of our daemons"
        self.exchange(label, self.theirs, nodes)

        def redirect() -> None:
            done = self.theirs.sync(f"--append {self.one}:/part/v1", [nodes[0].host])
            expect(done.code == 0, f"exit code {done.code}: {done.out[-800:]}")
            self.holds(nodes[1:], "part/v1", self.one)

        def upload() -> None:
            def command(tree: Path, *more: str) -> Finished:
                to = [f"{node.host}:/app/u/v1" for node in nodes]
                return run([str(self.client), "upload", "--port", str(self.port), "-i", str(self.key), "-d", str(tree), *more, *to])

            done = command(self.one)
            expect(done.code == 0, f"exit code {done.code}: {done.out[-800:]}")
            self.holds(nodes, "app/u/v1", self.one)
            expect(command(self.two).code != 0, "a conflict was not told")
            expect(command(self.two, "-x").code == 0, "-x did not help")
            self.holds(nodes, "app/u/v1", self.one)

        def idle() -> str:
            return self._idle(self.theirs, nodes, TAP, f"--append {self.one}:/app/idle/v1", "app/idle/v1", IDLE_S)

        self.check(f"{label}: redirect from a node without the directory", redirect)
        self.check(f"{label}: deprecated upload", upload)
        self.check(f"{label}: idle connection of {IDLE_S:.0f} s while a node is stopped", idle)
        for node in nodes:
            node.stop()

    def _idle(self, uploader: Uploader, nodes: Sequence[Node], tap: int, what: str, path: str, pause_s: float) -> str:
        """Upload through a tap while the last node is stopped: the connection to the first has nothing to say for long."""
        assert nodes[-1].child is not None
        process = nodes[-1].child.process
        with Wiretap((f"127.0.0.{tap}", self.port), (nodes[0].host, self.port)) as wiretap:
            process.send_signal(signal.SIGSTOP)
            resume = threading.Timer(pause_s, process.send_signal, (signal.SIGCONT,))
            resume.start()
            try:
                done = uploader.sync(what, [f"127.0.0.{tap}"])
            finally:
                resume.cancel()
                process.send_signal(signal.SIGCONT)
        longest = max(wiretap.sessions, key=Session.lasted_s)
        lasted_s = longest.lasted_s()
        expect(done.code == 0, f"exit code {done.code} after {done.wall_s:.0f} s: {done.out[-800:]}")
        self.holds(nodes, path, self.one)
        expect(done.wall_s >= pause_s, f"it was over after {done.wall_s:.0f} s, before the stopped node could have it")
        expect(lasted_s > pause_s - 5, f"the longest of {len(wiretap.sessions)} connections lasted {lasted_s:.0f} s")
        kinds = control_frames(longest)
        return f"{len(wiretap.sessions)} connection(s), the longest {lasted_s:.0f} s, control frames {kinds}"

    # -- b, d, e: our client, the reference's daemons --------------------------------------------------------------------------------

    def our_client(self) -> None:
        """(b), (d) and (e)."""
        nodes = make_nodes(self.top / "theirs", self.port, self.public, CONFIGS, OTHERS, numeric=True)
        for node in nodes:
            node.start_reference(self.children, self.server, self.cantal)
        for node in nodes:
            node.ready(1)
        label = "our client, two reference daemons"
        self.check("reference daemon: handshake", lambda: self._handshake(nodes[0]))
        self.check("reference daemon: pongs and silence", lambda: self._pongs(nodes[0]))
        self.exchange(label, self.mine, nodes)

        def paused() -> str:
            return self._idle(self.mine, nodes, TAP_2, f"--append {self.one}:/app/idle/v1", "app/idle/v1", PAUSE_S)

        self.check(f"{label}: one of them stopped for {PAUSE_S:.0f} s", paused)
        self.check(f"{label}: still running", lambda: _running(nodes))
        self.check("for comparison: reference client, two reference daemons: refusals", lambda: self._refusals(nodes))
        for node in nodes:
            node.stop()

    def _handshake(self, node: Node) -> str:
        with BareLink(node.host, node.port) as link:
            return " / ".join(link.head)

    def _refusals(self, nodes: Sequence[Node]) -> str:
        told = []
        for name, what, key in (
            ("conflict", f"--append {self.two}:/app/a/v1", self.key),
            ("append only", f"--replace {self.two}:/app/a/v1", self.key),
            ("wrong key", f"--append {self.one}:/app/k/v1", self.wrong),
        ):
            done = self.theirs.sync(what, [node.host for node in nodes], key, deadline=REFUSED)
            expect(done.code, f"{name}: it was not refused")
            told.append(f"{name} after {done.wall_s:.1f} s")
        return ", ".join(told)

    def _pongs(self, node: Node) -> str:
        with BareLink(node.host, node.port) as link:
            link.send(b"\x89\x80\1\2\3\4")
            alone = link.wait(b"\x8a", 2.5)
            link.send(b"\x89\x80\1\2\3\4")
            second = link.wait(b"\x8a", 2.0)
        with BareLink(node.host, node.port) as link:
            silent = link.wait_end(15.0)
        expect(silent is not None, "an idle connection was not closed within 15 s")
        first = "no pong within 2.5 s" if alone is None else f"pong after {alone * 1000:.0f} ms"
        later = "no pong" if second is None else f"a pong after {second * 1000:.0f} ms"
        return f"one ping: {first}; after a second ping: {later}; a silent connection was closed after {silent:.1f} s"

    # -- c: one database -------------------------------------------------------------------------------------------------------------

    def takeover(self) -> None:
        """(c), in both directions."""
        there = make_nodes(self.top / "single", self.port, self.public, CONFIGS, (SINGLE,), numeric=True)
        back = make_nodes(self.top / "back", self.port, self.public, CONFIGS, (BACK,), numeric=True)
        self._takeover("our daemon after the reference's", there, self._start_reference, self._start_ours)
        self._takeover("reference daemon after ours", back, self._start_ours, self._start_reference)

    def _start_ours(self, node: Node) -> None:
        node.start(self.children)
        node.ready(0)

    def _start_reference(self, node: Node) -> None:
        node.start_reference(self.children, self.server, self.cantal)
        node.ready(0)

    def _takeover(self, label: str, nodes: Sequence[Node], first: Callable[[Node], None], second: Callable[[Node], None]) -> None:
        node = nodes[0]
        seen: dict[str, Any] = {}

        def lists() -> dict[str, Any]:
            found = {path: page(node.host, self.port, f"/list-dir/{path}") for path in ("app/a", "site")}
            for base in found.values():
                for entry in base.values():
                    entry.pop("committed", None)  # a key that only our page has
            return found

        def fill() -> None:
            first(node)
            for what in (f"--append {self.one}:/app/a/v1", f"--append {self.two}:/app/a/v2", f"--replace {self.one}:/site/cur"):
                for uploader in (self.mine, self.theirs):
                    done = uploader.sync(what, [node.host], old=True)
                    expect(done.code == 0, f"{uploader.name} {what}: exit code {done.code}: {done.out[-800:]}")
            seen.update(lists())
            expect(len(seen["app/a"]) == 2 and "cur" in seen["site"], f"unexpected /list-dir/: {seen}")
            node.stop()

        def same() -> str:
            second(node)
            until("the same /list-dir/", lambda: lists() == seen, node.child, 15) if lists() != seen else None
            self.holds(nodes, "app/a/v1", self.one)
            self.holds(nodes, "app/a/v2", self.two)
            self.holds(nodes, "site/cur", self.one)
            return f"{sum(len(each['signatures']) for base in seen.values() for each in base.values())} signatures of 3 directories"

        def goes_on() -> None:
            three = self.trees.top / "three"
            if not three.exists():
                self.trees.small("three", "three\n")
            for uploader, name in ((self.theirs, "v3"), (self.mine, "v4")):
                done = uploader.sync(f"--append {three}:/app/a/{name}", [node.host], old=True)
                expect(done.code == 0, f"{uploader.name}: exit code {done.code}: {done.out[-800:]}")
                self.holds(nodes, f"app/a/{name}", three)
                both = [os.stat(node.data / "app/a" / each / "big.bin").st_ino for each in ("v1", name)]
                expect(both[0] == both[1], f"big.bin of {name} is not a link to v1's")
            done = self.mine.sync(f"--replace {self.two}:/site/cur:{seen['site']['cur']['image']}", [node.host], old=True)
            expect(done.code == 0, f"replace: exit code {done.code}: {done.out[-800:]}")
            self.holds(nodes, "site/cur", self.two)

        self.check(f"{label}: uploads to the first daemon", fill)
        self.check(f"{label}: same /list-dir/, same images", same)
        self.check(f"{label}: next uploads, with hard links", goes_on)
        node.stop()

    # -- vectors ---------------------------------------------------------------------------------------------------------------------

    def recordings(self, into: Path) -> None:
        """Record two small sessions."""
        tree = self.trees.top / "recorded"
        tree.mkdir(parents=True)
        (tree / "hello.txt").write_text("hello\n")
        (tree / "run.sh").write_text("#!/bin/sh\necho hi\n")
        (tree / "run.sh").chmod(0o755)

        def session(file: str, uploader: Uploader, number: int, start: Callable[[Node], None], about: str) -> Callable[[], str]:
            def body() -> str:
                nodes = make_nodes(self.top / f"recorded{number}", self.port, self.public, CONFIGS, (number,), numeric=True)
                start(nodes[0])
                with Wiretap((f"127.0.0.{TAP}", self.port), (nodes[0].host, self.port)) as tap:
                    done = uploader.sync(f"--append {tree}:/app/a/v1", [f"127.0.0.{TAP}"])
                    expect(done.code == 0, f"exit code {done.code}: {done.out[-800:]}")
                nodes[0].stop()
                into.mkdir(parents=True, exist_ok=True)
                tap.sessions[0].write(into / file, about)
                return f"{len(tap.sessions[0].events)} pieces"

            return body

        ours = "client of the reference 0.6.12 uploads /app/a/v1 to a daemon of ours; key of 32 bytes 0..31"
        theirs = "client of ours uploads /app/a/v1 to a daemon of the reference 0.6.12; key of 32 bytes 0..31"
        self.check("recording of the reference client", session("reference_client.json", self.theirs, RECORDED, self._start_ours, ours))
        self.check(
            "recording of the reference daemon",
            session("reference_server.json", self.mine, RECORDED_REFERENCE, self._start_reference, theirs),
        )


def _same(nodes: Sequence[Node], path: str, tree: Path) -> bool:
    return all((node.data / path).is_dir() and fingerprint(node.data / path) == fingerprint(tree) for node in nodes)


def _running(nodes: Sequence[Node]) -> str:
    for node in nodes:
        assert node.child is not None
        expect(node.child.process.poll() is None, f"{node.host} ended:\n{node.child.tail()}")
    return ""


def main() -> int:
    """Run the checks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.interop", description="Interoperability with the reference 0.6.12.")
    parser.add_argument("--reference", type=Path, required=True, help="directory with the programs ciruela and ciruela-server")
    parser.add_argument("--record", type=Path, help="record two sessions into this directory, and check nothing else")
    parser.add_argument("--part", action="append", choices=["a", "b", "c"], help="a: their client, b: our client, c: one database")
    parser.add_argument(
        "--only", default="", help="only checks whose name this regular expression finds (later ones may need earlier ones)"
    )
    options = parser.parse_args()
    reference = options.reference.resolve()
    for program in ("ciruela", "ciruela-server"):
        if shutil.which(str(reference / program)) is None:
            parser.error(f"{reference / program} is not a program")
    try:
        with tempfile.TemporaryDirectory(prefix="ciruela-interop-") as folder, Children() as children:
            top = Path(folder)
            top.chmod(0o755)
            interop = Interop(top, reference, children, options.record, options.only)
            if options.record is not None:
                interop.recordings(options.record)
            else:
                parts = {"a": interop.their_client, "b": interop.our_client, "c": interop.takeover}
                for part, body in parts.items():
                    if part in (options.part or parts):
                        body()
    except CheckFailed as failed:
        print(f"FAILED {failed}")
        return 1
    except KeyboardInterrupt:
        print("interrupted; everything is stopped", file=sys.stderr)
        return 130
    print(f"{interop.passed} ok, {interop.failed} failed")
    return 1 if interop.failed else 0


if __name__ == "__main__":
    sys.exit(main())
