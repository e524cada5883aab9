"""``ciruela edit`` and ``ciruela put-file`` from end to end in memory: real nodes, real files and keys, a clock that is turned by hand."""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client import edit as stories
from ciruela.client import fetch
from ciruela.client.contacts import RunContext
from ciruela.client.context import AppContext
from ciruela.client.editor import HASHED_AT_ONCE, Draft, LocalFile, choose, terminal_given_away
from ciruela.client.fetch import NothingThere, Reading
from ciruela.client.options.edit import EditOptions, PutFileOptions
from ciruela.client.options.table import parse
from ciruela.client.orders import Conflict, LocalProblem
from ciruela.index.digest import BLOCK_BYTES, HashKind
from ciruela.index.parse import parse as parse_index
from ciruela.index.tree import File
from ciruela.interfaces import Address
from ciruela.model.errors import LinkLost, RemoteError
from ciruela.model.ids import BlockHash
from ciruela.model.vpath import VPath
from ciruela.proto.messages import BlocksData, GetBlock, GetBlocks, GetIndex, GetPathState
from tests.client.test_commands import Output, at_once
from tests.doubles.memnet import OUTSIDE
from tests.proof import shows
from tests.scenarios.cluster import Client, Cluster, Image

PATH = "/app/site"
SITE = Image(5, {"app.conf": 40_000, "empty": 0, "large": 6_000_000, "tool": 100})


class EditCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.top = Path(self.mktemp()).absolute()
        self.top.mkdir()
        key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
        form = serialization.PrivateFormat.OpenSSH
        (self.top / "key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
        (self.top / "key").chmod(0o600)
        self.patch(tempfile, "tempdir", str(self.top))
        self.local = self.top / "local"
        self.local.write_bytes(os.urandom(100_000))
        self.out, self.err = Output(), Output()
        relays: list[fetch.Relay] = []
        self.relays = relays

        class Noted(fetch.Relay):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                relays.append(self)

        self.patch(stories, "Relay", Noted)

    def cluster(self, count: int, image: Image = SITE) -> Cluster:
        """A cluster with the site on all nodes."""
        cluster = self.made = Cluster(count)
        cluster.run(5.0)
        client = Client(cluster, image)
        client.upload(PATH, cluster.addresses(*cluster.nodes), replace=True)
        cluster.run(60.0, until=lambda: cluster.holders(PATH, image) == set(cluster.nodes))
        self.assertEqual(cluster.holders(PATH, image), set(cluster.nodes))
        client.leave()
        return cluster

    def begin(self, name: str, *words: str, path: str = PATH, run_editor: Any = None) -> Deferred[int]:
        cluster = self.made
        options = parse([name, "-i", str(self.top / "key"), "-d", path, "-m", *words])
        around = AppContext(
            reactor=cluster.clock,
            now_ms=cluster.now_ms,
            rng=random.Random(2),
            environ={"HOME": str(self.top), "PATH": os.environ["PATH"]},
            stdout=self.out,
            stderr=self.err,
            in_thread=at_once,
            look_up_in_thread=at_once,
        )

        def resolve(host: str) -> Deferred[list[Address]]:
            return succeed([cluster.address(int(host.removeprefix("n")))])

        world = RunContext(cluster.clock, random.Random(3), lambda where, other: cluster.hub.link(other, where, OUTSIDE), resolve)  # type: ignore[arg-type]
        if isinstance(options, EditOptions):
            return Deferred.fromCoroutine(stories.edit(options, around, world, run_editor))
        assert isinstance(options, PutFileOptions)
        return Deferred.fromCoroutine(stories.put_file(options, around, world))

    def ends(self, running: Deferred[Any], seconds: float = 120.0) -> Deferred[Any]:
        self.made.run(seconds, until=lambda: running.called)
        return running

    def put(self, *words: str, **more: Any) -> int:
        code = self.successResultOf(self.ends(self.begin("put-file", "-s", str(self.local), *words, **more)))
        assert isinstance(code, int)
        return code

    def file_at(self, number: int, name: str) -> File:
        """A file of what is committed on a node."""
        state = self.made.nodes[number].ledger.committed(VPath.parse(PATH))
        assert state is not None
        data = self.successResultOf(self.made.disks[number].read_index_bytes(state.image))
        return {file.path: file for file in parse_index(data, state.image).files}[name]

    def everywhere(self, name: str, content: bytes) -> None:
        """Check that all nodes have ``content``, and everything else as it was."""
        hashes = b"".join(HashKind.BLAKE2B.hash(content[at : at + BLOCK_BYTES]) for at in range(0, len(content), BLOCK_BYTES))
        images = set()
        for number in self.made.nodes:
            self.assertEqual(self.file_at(number, name).hashes, hashes)
            state = self.made.nodes[number].ledger.committed(VPath.parse(PATH))
            assert state is not None
            images.add(state.image)
        self.assertEqual(len(images), 1)


class PutFile(EditCase):
    def test_whole_cluster(self) -> None:
        """A small change would cost as much as the whole directory."""
        self.cluster(3)
        self.assertEqual(self.put("-f", "/app.conf", "n1"), 0)
        self.everywhere("/app.conf", self.local.read_bytes())
        self.assertEqual(self.relays[0].passed_bytes, 0)

    def test_one_node(self) -> None:
        """A cluster of one node has nobody else to ask for what was there before."""
        self.cluster(1)
        self.assertEqual(self.put("-f", "/app.conf", "n1"), 0)
        self.everywhere("/app.conf", self.local.read_bytes())

    def test_empty_node(self) -> None:
        """A node that lost its disk would stay behind, or the client would carry the whole directory to it."""
        cluster = self.cluster(3)
        cluster.kill(3)
        cluster.start(3, wiped=True)
        self.assertEqual(self.put("-f", "/app.conf", "n3", "n1", "n2"), 0)
        self.everywhere("/app.conf", self.local.read_bytes())
        self.assertLess(self.relays[0].passed_bytes, SITE.size / 2)

    def strangers(self) -> Cluster:
        """Two nodes, the second of them empty; it learns from the first what is there, and gets nothing of it."""
        cluster = self.cluster(2)
        cluster.kill(2)
        give = cluster.nodes[1].counterpart.requested

        def requested(link: Any, request: Any) -> Any:
            if link.host == cluster.address(2).host and not isinstance(request, GetPathState):
                return fail(RemoteError("nothing is given to strangers"))
            return give(link, request)

        cluster.nodes[1].counterpart.requested = requested  # type: ignore[method-assign]
        cluster.start(2, wiped=True)
        cluster.run(5.0)
        return cluster

    def test_only_the_client_knows_both(self) -> None:
        """A new server that the others cannot reach would never be whole: what it lacks has to pass through the client."""
        self.strangers()
        self.assertEqual(self.put("-f", "/app.conf", "n1", "n2"), 0)
        self.everywhere("/app.conf", self.local.read_bytes())
        self.assertGreater(self.relays[0].passed_bytes, 6_000_000)

    def test_reference(self) -> None:
        """Servers that speak only the first version of the protocol could not be edited."""
        cluster = self.strangers()
        cluster.hub.old = {OUTSIDE}
        self.assertEqual(self.put("-f", "/app.conf", "n1", "n2"), 0)
        self.everywhere("/app.conf", self.local.read_bytes())
        self.assertGreater(self.relays[0].passed_bytes, 6_000_000)

    def test_sizes(self) -> None:
        """A file of a certain size would make an index that nobody takes (C27, C28)."""
        self.cluster(1)
        for size in (0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, 3 * BLOCK_BYTES):
            self.local.write_bytes(os.urandom(size))
            self.assertEqual(self.put("-f", "/app.conf", "n1"), 0)
            self.everywhere("/app.conf", self.local.read_bytes())

    def test_executable(self) -> None:
        """A script would not run any more (C29)."""
        self.cluster(1)
        self.local.chmod(0o755)
        self.put("-f", "/new", "n1")
        self.put("-f", "/tool", "n1")
        self.assertEqual((self.file_at(1, "/new").executable, self.file_at(1, "/tool").executable), (True, False))
        self.put("-f", "/tool", "--executable", "n1")
        self.local.write_bytes(b"less")
        self.local.chmod(0o644)
        self.put("-f", "/tool", "n1")
        self.put("-f", "/new", "--no-executable", "n1")
        self.assertEqual((self.file_at(1, "/new").executable, self.file_at(1, "/tool").executable), (False, True))

    @shows("F54")
    def test_nobody_has_looked(self) -> None:
        """What somebody else uploaded a moment before would be undone: the nodes compare with the image that was read, and refuse."""
        cluster = self.cluster(3)
        other = Image(6, {"app.conf": 10})
        looks: list[str] = []
        look = Reading.look

        async def once(reading: Reading, path: str) -> Any:
            looks.append(path)
            if len(looks) == 1:
                self.seen = await look(reading, path)
            else:
                client = Client(cluster, other)
                client.upload(PATH, cluster.addresses(1, 2, 3), replace=True)
                cluster.clock.callLater(20.0, client.leave)
                waiting: Deferred[None] = Deferred()
                cluster.clock.callLater(10.0, waiting.callback, None)
                await waiting
            return self.seen

        self.patch(Reading, "look", once)
        self.assertEqual(self.put("-f", "/app.conf", "n1"), 6)
        self.assertEqual(len(looks), 2)
        self.assertIn("changed by somebody else", self.err.text)
        self.assertEqual(cluster.holders(PATH, other), {1, 2, 3})

    @shows("K2.2", "F54")
    def test_one_has_moved_on(self) -> None:
        """What somebody else uploaded a moment before would be undone through a server that has not heard of it yet."""
        cluster = self.cluster(2)
        other = Image(6, {"app.conf": 10})
        look_again = stories.EditSession._look_again

        async def moved_on(session: stories.EditSession, change: Any) -> None:
            await look_again(session, change)
            cluster.hub.silence(cluster.address(1), cluster.address(2))
            cluster.hub.silence(cluster.address(2), cluster.address(1))
            client = Client(cluster, other)
            client.outside = True
            client.upload(PATH, cluster.addresses(2), replace=True)
            waiting: Deferred[None] = Deferred()
            cluster.clock.callLater(8.0, waiting.callback, None)
            await waiting
            client.leave()

        self.patch(stories.EditSession, "_look_again", moved_on)
        self.assertEqual(self.put("-f", "/app.conf", "n1", "n2"), 6)
        self.assertIn("n2 refused: replace_doesnt_match_index: what is there is not OLD_ID; nothing was sent", self.out.text)
        self.assertIn("changed by somebody else", self.err.text)
        self.assertEqual((cluster.holders(PATH, SITE), cluster.holders(PATH, other)), ({1}, {2}))

    def test_so_already(self) -> None:
        """Doing the same twice would make a version that nobody needs."""
        cluster = self.cluster(1)
        self.put("-f", "/app.conf", "n1")
        before = cluster.nodes[1].ledger.committed(VPath.parse(PATH))
        self.assertEqual(self.put("-f", "/app.conf", "n1"), 0)
        self.assertIn("is so already", self.err.text)
        self.assertEqual(cluster.nodes[1].ledger.committed(VPath.parse(PATH)), before)

    def test_nobody(self) -> None:
        """A cluster that is down would keep the user waiting."""
        self.cluster(1)
        self.made.kill(1)
        running = self.begin("put-file", "-s", str(self.local), "-f", "/x", "n1")
        self.failureResultOf(self.ends(running), LinkLost)

    def test_changed_while_sent(self) -> None:
        """A file that is being written would be put together from two versions."""
        self.cluster(1)
        self.local.write_bytes(os.urandom(3_000_000))
        running = self.begin("put-file", "-s", str(self.local), "-f", "/app.conf", "n1")
        self.made.run(10.0, until=lambda: bool(self.relays))
        with open(self.local, "r+b") as file:
            file.write(b"x" * 3_000_000)
        self.assertEqual(self.successResultOf(self.ends(running)), 1)
        self.assertIn("changed since it was read", self.out.text)


class Edit(EditCase):
    def editor(self, *steps: Callable[[Path], object], code: int = 0) -> Any:
        """In place of an editor: what it does with the file."""

        def run(reactor: Any, words: Sequence[str], name: str) -> Deferred[int]:
            self.draft = Path(name)
            for step in steps:
                step(self.draft)
            return succeed(code)

        return run

    def kept(self) -> Path:
        path = Path(self.err.text.split("your text is kept in ")[1].splitlines()[0])
        self.assertEqual(path, self.draft)
        return path

    def text_cluster(self, count: int) -> Cluster:
        """A cluster of which ``/app.conf`` is a text."""
        cluster = self.cluster(count)
        self.local.write_text("color: red\n")
        self.assertEqual(self.put("-f", "/app.conf", "n1"), 0)
        return cluster

    def test_edited(self) -> None:
        """What was typed would not arrive, or a copy of it would stay where others can find it."""
        self.text_cluster(3)
        modes: list[int] = []
        run = self.editor(
            lambda draft: modes.extend((draft.parent.stat().st_mode & 0o777, draft.stat().st_mode & 0o777)),
            lambda draft: draft.write_text(draft.read_text() + "size: 5\n"),
        )
        self.assertEqual(
            self.successResultOf(self.ends(self.begin("edit", "-f", "/app.conf", "--editor", "true", "n1", run_editor=run))), 0
        )
        self.everywhere("/app.conf", b"color: red\nsize: 5\n")
        self.assertEqual(modes, [0o700, 0o600])
        self.assertEqual(self.draft.name, "app.conf")
        self.assertFalse(self.draft.parent.exists())

    def test_other_clock(self) -> None:
        """A refusal of the servers would take the text with it."""
        self.text_cluster(1)
        self.patch(self.made, "now_ms", lambda: 1_600_000_000_000)
        run = self.editor(lambda draft: draft.write_text("typed\n"))
        code = self.successResultOf(self.ends(self.begin("edit", "-f", "/app.conf", "--editor", "true", "n1", run_editor=run)))
        self.assertEqual(code, 6)
        self.assertIn("is the clock of this host right?", self.out.text)
        self.assertNotIn("somebody else", self.err.text)
        self.assertEqual(self.kept().read_text(), "typed\n")

    def test_network_gone(self) -> None:
        """A network that went away while the editor was open would take the text with it."""
        self.text_cluster(1)
        run = self.editor(lambda draft: draft.write_text("typed\n"), lambda _: self.made.kill(1))
        running = self.begin("edit", "-f", "/app.conf", "--editor", "true", "n1", run_editor=run)
        self.failureResultOf(self.ends(running), LinkLost)
        self.assertEqual(self.kept().read_text(), "typed\n")

    def test_cancelled(self) -> None:
        """Ctrl-C during the upload would throw the text away."""
        self.text_cluster(1)
        run = self.editor(lambda draft: draft.write_text("typed\n"))
        running = self.begin("edit", "-f", "/app.conf", "--editor", "true", "n1", run_editor=run)
        self.made.run(10.0, until=lambda: bool(self.relays[1:]))
        running.cancel()
        self.failureResultOf(running, CancelledError)
        self.assertEqual(self.kept().read_text(), "typed\n")

    def test_changed_meanwhile(self) -> None:
        """What a colleague changed while the editor was open would be undone, or the text be lost."""
        self.text_cluster(1)
        self.local.write_text("other\n")
        run = self.editor(lambda draft: draft.write_text("typed\n"), lambda _: self.put("-f", "/other", "n1"))
        running = self.begin("edit", "-f", "/app.conf", "--editor", "true", "n1", run_editor=run)
        text = self.failureResultOf(self.ends(running), Conflict).getErrorMessage()
        self.assertIn("changed by somebody else meanwhile", text)
        self.assertEqual(self.kept().read_text(), "typed\n")
        self.everywhere("/app.conf", b"color: red\n")

    def test_not_for_editors(self) -> None:
        """A program would be opened as text, and broken by being saved."""
        self.cluster(1)
        self.patch(stories, "MOST_EDITED_BYTES", 1_000_000)
        for name, words in (("/large", "at most"), ("/app.conf", "is no text")):
            running = self.begin("edit", "-f", name, "--editor", "true", "n1", run_editor=self.editor())
            self.assertIn(words, self.failureResultOf(self.ends(running), NothingThere).getErrorMessage())

    def test_block_lost(self) -> None:
        """Half a file would be edited as if it were whole."""
        self.text_cluster(1)

        async def nothing(*_: Any, **__: Any) -> dict[int, bytes]:
            return {}

        self.patch(Reading, "blocks", nothing)
        running = self.begin("edit", "-f", "/app.conf", "--editor", "true", "n1", run_editor=self.editor())
        self.assertIn("cannot be fetched", self.failureResultOf(self.ends(running), RemoteError).getErrorMessage())


class Relayed(EditCase):
    """What a node may ask of the client."""

    def test_only_what_was_published(self) -> None:
        """A node could read, through the client, what it was not given."""
        self.cluster(1)
        self.put("-f", "/app.conf", "n1")
        (one,) = self.relays
        new = self.made.nodes[1].ledger.committed(VPath.parse(PATH))
        assert new is not None
        block = BlockHash(self.file_at(1, "/app.conf").hashes[:32])

        def refused(request: Any, *published: Any) -> str:
            answer = self.ends(one.answer(request, published, lambda *_: None), 10.0)
            return self.failureResultOf(answer, RemoteError).getErrorMessage()

        for request in (GetIndex(new.image, None), GetBlock(block, None), GetBlocks(PATH, new.image, (0,))):
            self.assertIn("not published", refused(request))
        self.assertIn("not published", refused(GetIndex(SITE.id, None), new.image, SITE.id))
        self.assertIn("does not have that block", refused(GetBlock(BlockHash(bytes(32)), None), new.image))
        for numbers in ((), (1_000_000,), tuple(range(100))):
            self.assertIn("does not have these blocks", refused(GetBlocks(PATH, new.image, numbers), new.image))

    def test_lacks(self) -> None:
        """A block that nobody has would be waited for, or made up."""
        self.cluster(1)
        self.put("-f", "/app.conf", "n1")
        (one,) = self.relays
        new = self.made.nodes[1].ledger.committed(VPath.parse(PATH))
        assert new is not None
        self.made.kill(1)
        answer = self.successResultOf(self.ends(one.answer(GetBlocks(PATH, new.image, (5, 6)), [new.image], lambda *_: None)))
        self.assertEqual(answer, BlocksData((), (5, 6)))
        block = BlockHash(SITE.order[-1])
        self.assertIn(
            "nobody gives it",
            self.failureResultOf(self.ends(one.answer(GetBlock(block, None), [new.image], lambda *_: None)), RemoteError).getErrorMessage(),
        )


class Local(SynchronousTestCase):
    """The user's own file."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def opened(self) -> LocalFile:
        local = LocalFile(str(self.path))
        self.addCleanup(local.close)
        return local

    def test_hashes(self) -> None:
        """A large file would be indexed otherwise than ``ciruela sync`` does it."""
        data = os.urandom(HASHED_AT_ONCE + BLOCK_BYTES + 5)
        self.path.write_bytes(data)
        told: list[int] = []
        found = self.successResultOf(Deferred.fromCoroutine(self.opened().hashes(HashKind.BLAKE3, at_once, told.append)))
        self.assertEqual(found, b"".join(HashKind.BLAKE3.hash(data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES)))
        self.assertEqual(told, [HASHED_AT_ONCE, len(data)])

    @shows("F54")
    def test_changed_while_hashed(self) -> None:
        """A file that grows or shrinks meanwhile would be uploaded as something that it never was."""
        for size in (10, 200):
            self.path.write_bytes(bytes(100))
            local = self.opened()
            self.path.write_bytes(bytes(size))
            running = Deferred.fromCoroutine(local.hashes(HashKind.BLAKE3, at_once, lambda _: None))
            self.assertIn("changed while it was read", self.failureResultOf(running, LocalProblem).getErrorMessage())

    def test_changed_block(self) -> None:
        """A block that is not what was signed would be sent."""
        self.path.write_bytes(bytes(BLOCK_BYTES + 1))
        hashes = b"".join(HashKind.BLAKE3.hash(data) for data in (bytes(BLOCK_BYTES), b"x"))
        found = self.opened().blocks(HashKind.BLAKE3, File("/f", False, BLOCK_BYTES + 1, hashes), [0, 1])
        self.assertEqual(found, {0: bytes(BLOCK_BYTES)})


class Editors(SynchronousTestCase):
    """Which editor it is, and what is its own."""

    def test_choose(self) -> None:
        """Somebody would find himself in an editor that he cannot leave."""
        top = Path(self.mktemp()).absolute()
        top.mkdir()
        for name in ("nano", "vi", "mine"):
            (top / name).write_text("#!/bin/sh\n")
            (top / name).chmod(0o755)
        path = {"PATH": str(top)}
        self.assertEqual(choose(None, path), (str(top / "vi"),))
        self.assertEqual(choose(None, path | {"EDITOR": "nano -w"}), (str(top / "nano"), "-w"))
        self.assertEqual(choose(None, path | {"EDITOR": "vi", "VISUAL": "nano"}), (str(top / "nano"),))
        self.assertEqual(choose(None, path | {"VISUAL": "vi", "CIRUELA_EDITOR": "mine"}), (str(top / "mine"),))
        self.assertEqual(choose("mine 'a b'; x", path | {"EDITOR": "vi"}), (str(top / "mine"), "a b;", "x"))
        for named, words in (("emacs", "is not there"), ("'", "cannot be read"), ("''", "is not there")):
            self.assertIn(words, str(self.assertRaises(LocalProblem, choose, named, path)))
        self.assertIn("there is no editor", str(self.assertRaises(LocalProblem, choose, None, {"PATH": "/nowhere", "EDITOR": " "})))

    def test_terminal(self) -> None:
        """Ctrl-C in the editor would end the upload, or afterwards nothing would."""
        before = signal.getsignal(signal.SIGINT)
        with terminal_given_away():
            self.assertNotEqual(signal.getsignal(signal.SIGINT), signal.SIG_IGN)
            os.kill(os.getpid(), signal.SIGINT)
        self.assertEqual(signal.getsignal(signal.SIGINT), before)

    def test_no_place_for_a_draft(self) -> None:
        """A full or missing temporary directory would end in a traceback, or keep what was made there."""
        self.patch(tempfile, "tempdir", str(Path(self.mktemp()).absolute()))
        self.assertIn("No such file", str(self.assertRaises(LocalProblem, Draft, "x", b"text")))
        os.mkdir(tempfile.gettempdir())
        self.assertIn("choose a place with $TMPDIR", str(self.assertRaises(LocalProblem, Draft, "x" * 300, b"text")))
        self.assertEqual(os.listdir(tempfile.gettempdir()), [])
