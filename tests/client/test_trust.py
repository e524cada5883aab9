"""What a client signs of what a server shows: only images that a trusted key signed before for the path. Servers that lie, in memory."""

from __future__ import annotations

import io
import json
import os
import random
from collections.abc import Callable
from typing import Any

from nacl.signing import SigningKey
from twisted.internet.defer import Deferred, fail, succeed
from twisted.trial.unittest import SynchronousTestCase

from ciruela.client import edit as stories
from ciruela.client.contacts import RunContext
from ciruela.client.context import AppContext
from ciruela.client.diff import diff
from ciruela.client.errors import CommandError
from ciruela.client.fetch import Reading
from ciruela.client.get import get
from ciruela.client.options.edit import EditOptions, PutFileOptions
from ciruela.client.options.reading import DiffOptions, GetOptions
from ciruela.client.options.removing import RemoveOptions, RollbackOptions
from ciruela.client.options.signing import Trusting
from ciruela.client.options.table import parse
from ciruela.client.orders import Conflict
from ciruela.client.origin import ReadContext
from ciruela.client.pathview import wrong_depth
from ciruela.client.removing import remove
from ciruela.client.report import Report
from ciruela.client.rollback import rollback
from ciruela.client.trust import TrustedKeys, pinned_file, signing_time_ms, trust_of
from ciruela.interfaces import Address, Connection
from ciruela.keys.public import PublicKey
from ciruela.keys.signed import removal_bytes, signed_bytes, signed_check_bytes
from ciruela.model.errors import BadKey, CiruelaError, LinkLost, RemoteError
from ciruela.model.hooks import AFTER, HookState
from ciruela.model.ids import ImageId, MachineId
from ciruela.model.versions import SigEntry, State, Version
from ciruela.model.vpath import VPath
from ciruela.proto.messages import (
    BaseDirData,
    BlockPart,
    BlocksData,
    CheckData,
    CheckUpload,
    GetBaseDir,
    GetBlocks,
    GetIndexAt,
    GetPathState,
    HookResult,
    IndexAtData,
    PathStateData,
    PublishImage,
    RemovedImage,
    RemoveDir,
    ReplaceDir,
    Request,
    Response,
    UploadAck,
)
from ciruela.uploads.decision import FUTURE_LIMIT_MS
from tests.client.test_commands import Output, at_once
from tests.client.test_edit import EditCase
from tests.client.test_get import HERE, Wire
from tests.doubles.memnet import OUTSIDE
from tests.proof import shows
from tests.scenarios.cluster import KEY, START_MS, Client, Cluster, Image

PATH = "/app/site"
EVIL = Image(66, {"app.conf": 40_000, "trap": 100})
GOOD = Image(5, {"app.conf": 40_000})
STRANGER = SigningKey(b"s" * 32)
TIME = START_MS - 1000

Signing = Callable[[ImageId], tuple[SigEntry, ...]]


def by(key: SigningKey, path: str = PATH, at: int = TIME, told: int | None = None, statement: Any = signed_bytes) -> Signing:
    """What shows a signature of ``key``, made for ``path`` at ``at``, as one of ``told``."""
    return lambda image: (SigEntry(at if told is None else told, key.sign(statement(path, image, at)).signature),)


MINE = by(KEY)
LIES: dict[str, Signing] = {
    "no signature": lambda _: (),
    "no key made it": lambda _: (SigEntry(TIME, b"x" * 64),),
    "a stranger's": by(STRANGER),
    "for another path": by(KEY, "/app/other"),
    "for another image": lambda _: by(KEY)(GOOD.id),
    "for another time": by(KEY, told=TIME + 1),
    "that it be removed": by(KEY, statement=removal_bytes),
    "a question": by(KEY, statement=signed_check_bytes),
}


class Impostor:
    """Answers at the entry point as if it were a node: ``image`` stands at the path, and ``kept`` may be gone back to."""

    def __init__(self, image: Image, signatures: Signing, kept: Image | None = None, kept_signatures: Signing = MINE) -> None:
        self.image = image
        self.dirs = {"site": State(image.id, signatures(image.id))}
        self.kept = {} if kept is None else {"site": (Version(TIME - 5, kept.id),)}
        self.kept_signed = {} if kept is None else {"site": (State(kept.id, kept_signatures(kept.id)),)}
        self.requests: list[Request] = []
        self.ack = UploadAck(True, None)
        self.broken: dict[type[Request], str] = {}
        self.taken = True
        self.links: list[Connection] = []

    def requested(self, link: Connection, request: Request) -> Deferred[Response]:
        self.requests.append(request)
        if type(request) in self.broken:
            return fail(RemoteError(self.broken[type(request)]))
        match request:
            case GetIndexAt():
                return succeed(IndexAtData(self.image.data if self.dirs else None))
            case GetBaseDir():
                return succeed(BaseDirData(bytes(32), bytes(32), self.dirs, kept=self.kept, kept_signed=self.kept_signed))
            case GetPathState():
                return succeed(PathStateData(MachineId(bytes(16)), "n9", 1, self.taken))
            case CheckUpload():
                return succeed(CheckData(True, None, "", None, None, None, MachineId(bytes(16)), "n9"))
            case GetBlocks():
                return succeed(BlocksData(tuple(BlockPart(self.image.blocks[self.image.order[one]]) for one in request.numbers)))
            case ReplaceDir() | RemoveDir():
                self.links.append(link)
                return succeed(self.ack)
        return fail(RemoteError("not known"))

    def answered(self, link: object, request: object, given: bool) -> None:
        """Nothing follows."""

    def notified(self, link: Connection, notification: object) -> None:
        assert isinstance(notification, PublishImage)

    def lost(self, link: Connection) -> None:
        """Nothing to do."""

    @property
    def orders(self) -> list[Request]:
        """What was signed."""
        return [one for one in self.requests if isinstance(one, ReplaceDir | RemoveDir)]


class OracleCase(EditCase):
    """An impostor as node 9, and commands with the key of the cluster."""

    def impostor(self, image: Image, signatures: Signing, *, kept: Image | None = None, kept_signatures: Signing = MINE) -> Impostor:
        if not hasattr(self, "made"):
            self.made = Cluster(1)
            self.made.run(5.0)
        found = Impostor(image, signatures, kept, kept_signatures)
        self.made.hub.node(self.made.address(9), found, lambda data, source: None)
        return found

    def world(self) -> RunContext:
        cluster = self.made

        def resolve(host: str) -> Deferred[list[Address]]:
            return succeed([cluster.address(int(number)) for number in host.removeprefix("n").split("n")])

        return RunContext(cluster.clock, random.Random(3), lambda where, other: cluster.hub.link(other, where, OUTSIDE), resolve)  # type: ignore[arg-type]

    def start(self, line: str) -> Deferred[int]:
        """Run a command line; the word ``KEY`` stands for the key of the cluster, ``LOCAL`` for the file of the user."""
        cluster = self.made
        # Word by word: the random name of a temporary directory can contain "n9", or anything else that a test replaces.
        words = {"KEY": str(self.top / "key"), "LOCAL": str(self.local)}
        options = parse([words.get(word, word) for word in line.split()])
        self.out, self.err = Output(), Output()
        self.told = io.StringIO()
        around = AppContext(
            reactor=cluster.clock,
            now_ms=cluster.now_ms,
            rng=random.Random(2),
            environ={"HOME": str(self.top), "PATH": os.environ["PATH"]},
            stdout=self.out,
            stderr=self.err,
            in_thread=at_once,
            look_up_in_thread=at_once,
            report=Report(self.told) if getattr(options, "json", False) else None,
        )
        world = self.world()
        wire: Any = Wire(cluster.hub.node(HERE, Client(cluster, GOOD), lambda data, source: None)[0])
        reach = ReadContext(wire, world.resolve, cluster.clock, random.Random(3), at_once)
        match options:
            case RemoveOptions():
                return Deferred.fromCoroutine(remove(options, around, world))
            case RollbackOptions():
                return Deferred.fromCoroutine(rollback(options, around, world))
            case PutFileOptions():
                return Deferred.fromCoroutine(stories.put_file(options, around, world))
            case EditOptions():
                return Deferred.fromCoroutine(stories.edit(options, around, world, self.edited))
            case GetOptions():
                return Deferred.fromCoroutine(get(options, around, reach))
            case DiffOptions():
                return Deferred.fromCoroutine(diff(options, around, reach))
        raise AssertionError(options)

    def edited(self, _reactor: Any, _words: Any, name: str) -> Deferred[int]:
        self.editors += 1
        with open(name, "wb") as file:
            file.write(b"changed")
        return succeed(0)

    def setUp(self) -> None:
        super().setUp()
        self.editors = 0

    def code(self, line: str, *, seconds: float = 60.0) -> int:
        code = self.successResultOf(self.ends(self.start(line), seconds))
        assert isinstance(code, int)
        return code

    def refused(self, line: str, code: int, *parts: str) -> str:
        error = self.failureResultOf(self.ends(self.start(line)), CommandError).value
        self.assertEqual(error.code, code, str(error))
        for part in parts:
            self.assertIn(part, str(error))
        return str(error)

    def ends_early(self, line: str, until: Callable[[], object]) -> None:
        """Run until something was sent, and then give up."""
        running = self.start(line)
        self.made.run(60.0, until=lambda: bool(until()) or running.called)
        if running.called:
            self.successResultOf(running)
        running.addErrback(lambda _: None)
        running.cancel()


PUT = f"put-file -i KEY -d {PATH} -f /app.conf -s LOCAL n9"
EDIT = f"edit -i KEY -d {PATH} -f /note --editor true n9"
REMOVE = f"remove -i KEY --yes n9:{PATH}"
BACK = f"rollback -i KEY --yes n9:{PATH}"


@shows("S1")
class OracleTests(OracleCase):
    """An impostor wants a signature for his image."""

    def each(self) -> dict[str, Callable[[Signing], Impostor]]:
        """For each command line the impostor that lies to it."""
        shown = {line: (lambda lie: self.impostor(EVIL, lie)) for line in (PUT, EDIT, REMOVE)}
        back = {
            line: (lambda lie: self.impostor(GOOD, by(KEY), kept=EVIL, kept_signatures=lie)) for line in (BACK, f"{BACK} {EVIL.id.hex()}")
        }
        return {**shown, **back}

    def test_each_lie(self) -> None:
        """Whoever answers at the entry point would have his image signed, and could put it on all servers."""
        for line, lying in self.each().items():
            for name, lie in LIES.items():
                impostor = lying(lie)
                self.refused(line, 5, f"n9 {PATH}: {EVIL.id.hex()} is not verified", "--trusted-keys", "--unverified")
                self.assertEqual(impostor.orders, [], f"{line.split()[0]}: {name}")
        self.assertEqual(self.editors, 0)

    def test_the_truth(self) -> None:
        """Nothing could be changed any more."""
        for line, lying in self.each().items():
            impostor = lying(by(KEY))
            self.ends_early(line, lambda impostor=impostor: impostor.orders)  # type: ignore[misc]
            self.assertEqual(len(impostor.orders), 1, f"{line}: {self.err.text}")
            self.assertIn("verified by SHA256:", self.err.text)

    def test_insisted(self) -> None:
        """What was signed by somebody whose key is lost could never be changed; or it would go on without a word."""
        for line, lying in self.each().items():
            impostor = lying(LIES["no signature"])
            self.ends_early(f"{line} --unverified", lambda impostor=impostor: impostor.orders)  # type: ignore[misc]
            self.assertEqual(len(impostor.orders), 1)
            self.assertIn("NOT VERIFIED", self.err.text)

    def test_whom_one_trusts(self) -> None:
        """Several people could not change each other's releases without giving up every check."""
        public = PublicKey(bytes(STRANGER.verify_key)).authorized_line()
        keys = self.top / "colleagues"
        keys.write_text(f"# colleagues\n{public}\n")
        for line, lying in self.each().items():
            impostor = lying(LIES["a stranger's"])
            self.ends_early(f"{line} --trusted-keys {keys}", lambda impostor=impostor: impostor.orders)  # type: ignore[misc]
            self.assertEqual(len(impostor.orders), 1)
        (self.top / ".config" / "ciruela").mkdir(parents=True)
        pinned = self.top / ".config" / "ciruela" / "trusted_keys"
        pinned.write_text(f"{public}\n")
        impostor = self.impostor(EVIL, LIES["a stranger's"])
        self.ends_early(REMOVE, lambda: impostor.orders)
        self.assertEqual(len(impostor.orders), 1)
        pinned.write_text(f'expiry-time="20200101Z" {public}\n')
        self.refused(REMOVE, 5, "is not verified")
        self.assertIn("expired", self.err.text)

    def test_named_by_the_user(self) -> None:
        """An image that nobody can show any more could not be removed by its id."""
        impostor = self.impostor(EVIL, LIES["no signature"])
        self.ends_early(f"{REMOVE} --image {EVIL.id.hex()}", lambda: impostor.orders)
        self.assertEqual(len(impostor.orders), 1)

    def test_for_later(self) -> None:
        """A signature for next year could be kept, and undo everything when its time has come."""
        later = by(KEY, at=START_MS + 365 * 86_400_000)
        for line, impostor in (
            (REMOVE, self.impostor(EVIL, later)),
            (BACK, self.impostor(EVIL, later, kept=GOOD)),
        ):
            self.made.hub.node(self.made.address(9), impostor, lambda data, source: None)
            self.refused(line, 5, "by the clock of this host")
            self.assertEqual(impostor.orders, [])
        self.assertEqual(signing_time_ms(5, [9]), 10)
        self.assertEqual(signing_time_ms(5, [2, FUTURE_LIMIT_MS + 4]), FUTURE_LIMIT_MS + 5)
        self.assertRaises(CommandError, signing_time_ms, 5, [FUTURE_LIMIT_MS + 5])

    def test_replayed(self) -> None:
        """An image that was really signed once would be taken for the current one although another server has a later one."""
        self.made = cluster = self.cluster(2)
        impostor = self.impostor(EVIL, by(KEY))
        line = PUT.replace("n9", "-m n9 n1 n2")
        self.assertIn("not all nodes have the same image", str(self.failureResultOf(self.ends(self.start(line)), Conflict).value))
        self.assertEqual((impostor.orders, cluster.holders(PATH, EVIL)), ([], set()))

    def test_changed_while_looking(self) -> None:
        """Who is overtaken by a colleague would be told that somebody lies."""
        cluster = self.made = self.cluster(1)
        other = Image(6, {"app.conf": 10})
        signed = Reading.signed

        async def late(reading: Reading, seen: Any) -> tuple[State, list[str]]:
            client = Client(cluster, other)
            client.upload(PATH, cluster.addresses(1), replace=True)
            waiting: Deferred[None] = Deferred()
            cluster.clock.callLater(10.0, waiting.callback, None)
            await waiting
            client.leave()
            return await signed(reading, seen)

        self.patch(Reading, "signed", late)
        line = PUT.replace("n9", "n1")
        self.assertIn("changed by somebody else meanwhile", str(self.failureResultOf(self.ends(self.start(line)), Conflict).value))

    def test_list(self) -> None:
        """The list of what can be gone back to would not tell what is proved, or would not be for programs."""
        self.impostor(GOOD, by(KEY), kept=EVIL, kept_signatures=LIES["no signature"])
        self.assertEqual(self.code(f"rollback -i KEY --list n9:{PATH}"), 0)
        self.assertTrue(self.out.text.endswith("unverified\n"), self.out.text)
        self.assertIn("verified by SHA256:", self.err.text)
        self.impostor(GOOD, by(KEY), kept=EVIL)
        self.assertEqual(self.code(f"rollback -i KEY --list --json n9:{PATH}"), 0)
        kept, summary = map(json.loads, self.told.getvalue().splitlines())
        mine = PublicKey(bytes(KEY.verify_key)).fingerprint()
        self.assertEqual((kept["type"], kept["image"], kept["verified_by"], kept["signed_ms"]), ("kept", EVIL.id.hex(), mine, TIME))
        self.assertEqual((summary["type"], summary["exit_code"]), ("summary", 0))


@shows("S1")
class ToldTests(OracleCase):
    """Commands that sign nothing tell what is proved."""

    def test_get(self) -> None:
        """A copy from an impostor would look like one that a colleague signed."""
        self.impostor(GOOD, by(KEY))
        pub = self.top / "key.pub"
        pub.write_text(PublicKey(bytes(KEY.verify_key)).authorized_line())
        for number, (words, lie, told) in enumerate(
            (("", by(KEY), "unverified"), (f"--trusted-keys {pub}", by(KEY), "verified by SHA256:"))
        ):
            self.impostor(GOOD, lie)
            self.assertEqual(self.code(f"get n9:{PATH} {self.top}/copy{number} --no-cache {words}"), 0)
            self.assertIn(f"  {told}", self.out.text)
        for lie in LIES.values():
            self.impostor(EVIL, lie)
            self.assertEqual(self.code(f"get n9:{PATH} {self.top}/copy --replace --no-cache --trusted-keys {pub}"), 0)
            self.assertIn("  unverified", self.out.text)

    def test_get_without_a_word_on_signatures(self) -> None:
        """A server that does not tell who signed would keep everybody from copying."""
        impostor = self.impostor(GOOD, by(KEY))
        impostor.broken[GetBaseDir] = "not today"
        pub = self.top / "key.pub"
        pub.write_text(PublicKey(bytes(KEY.verify_key)).authorized_line())
        self.assertEqual(self.code(f"get n9:{PATH} {self.top}/copy --no-cache --trusted-keys {pub}"), 0)
        self.assertIn("  unverified", self.out.text)

    def test_diff(self) -> None:
        """A comparison with what an impostor shows would look like one with what was released."""
        pub = self.top / "key.pub"
        pub.write_text(PublicKey(bytes(KEY.verify_key)).authorized_line())
        empty = self.top / "empty"
        empty.mkdir()
        for lie, told in ((by(KEY), PublicKey(bytes(KEY.verify_key)).fingerprint()), (by(STRANGER), None)):
            self.impostor(GOOD, lie)
            self.assertEqual(self.code(f"diff --json --no-cache --trusted-keys {pub} {empty} n9:{PATH}"), 1)
            summary = json.loads(self.out.text.splitlines()[-1])
            self.assertEqual((summary["left_verified_by"], summary["right_verified_by"]), (None, told))
            self.assertIn("unverified" if told is None else f"verified by {told}", self.err.text)


class UnreadableTests(OracleCase):
    """An error is no empty answer."""

    def two(self) -> Impostor:
        """An impostor whose base dir cannot be read, and a node on which nothing is."""
        impostor = self.impostor(GOOD, by(KEY))
        impostor.broken[GetBaseDir] = "signatures is not a list of at most 16"
        return impostor

    @shows("K3.6")
    def test_remove(self) -> None:
        """It would say that nothing is there, and the image would stay."""
        self.two()
        self.refused(f"remove -i KEY --yes n9n1:{PATH}", 3, "did not say")
        self.assertIn("signatures is not a list", self.err.text)
        self.assertNotIn("nothing is there", self.out.text)
        error = self.failureResultOf(self.ends(self.start(REMOVE)), LinkLost).value
        self.assertIn("signatures is not a list", str(error))

    @shows("K3.6")
    def test_rollback(self) -> None:
        """That nothing is there would be a reason to upload, and not to look what is wrong."""
        self.two()
        self.refused(f"rollback -i KEY --yes n9n1:{PATH}", 3, "nothing is there", "did not say")

    @shows("K3.6")
    def test_edit(self) -> None:
        """A directory whose index cannot be read would seem not to be there."""
        impostor = self.impostor(GOOD, by(KEY))
        impostor.broken[GetIndexAt] = "the index cannot be read here"
        line = PUT.replace("n9", "-m n9 n1")
        error = self.failureResultOf(self.ends(self.start(line)), RemoteError).value
        self.assertIn("others did not say: n9: the index cannot be read here", str(error))
        impostor.broken = {GetBaseDir: "signatures is not a list"}
        self.refused(PUT, 5, "no signature for it (n9: signatures is not a list)")

    @shows("K3.6")
    def test_get(self) -> None:
        """A script would take "no such image" for an answer although the only node that has it could not read it."""
        impostor = self.impostor(GOOD, by(KEY))
        impostor.broken[GetIndexAt] = "the index cannot be read here"
        self.refused(f"get n9,n1:{PATH} {self.top}/copy", 3, "others did not say", "cannot be read here")

    @shows("K3.6")
    def test_what_is_lost_on_a_node(self) -> None:
        """A node whose index is gone would answer as if nothing were there."""
        cluster = self.cluster(1)
        cluster.disks[1].indexes.clear()
        line = PUT.replace("n9", "n1")
        error = self.failureResultOf(self.ends(self.start(line)), CiruelaError).value
        self.assertIn("cannot be read here", str(error))

    def test_nothing_is_there(self) -> None:
        """A script that removes what may be gone already would fail."""
        self.impostor(GOOD, by(KEY)).dirs.clear()
        self.assertEqual(self.code(f"remove -i KEY --yes --json n9n1:{PATH}"), 0)
        self.assertEqual(json.loads(self.told.getvalue())["exit_code"], 0)

    @shows("W1")
    def test_wrong_depth(self) -> None:
        """Who leaves out a component would read about base dirs, or that nothing is there."""
        impostor = self.impostor(GOOD, by(KEY))
        impostor.taken = False
        error = self.failureResultOf(self.ends(self.start(REMOVE)), LinkLost).value
        self.assertIn("it takes no image at /app/site", str(error))
        few, many = wrong_depth(VPath.parse("/app"), 1), wrong_depth(VPath.parse("/app/a/b"), 1)
        self.assertIn("too few components: images of /app are at /app/NAME", few)
        self.assertIn("too many components", many)
        self.assertIn("are at /app (num-levels: 0)", wrong_depth(VPath.parse("/app/x"), 0))


class RemovalTests(OracleCase):
    """What comes back from servers when something is to go."""

    @shows("K5.5")
    def test_protected(self) -> None:
        """Nobody would learn which link keeps an image from being removed, or what to do."""
        impostor = self.impostor(GOOD, by(KEY))
        impostor.ack = UploadAck(False, "protected", {}, MachineId(bytes(16)), "n9", "/srv/current leads to it")
        self.assertEqual(self.code(REMOVE), 5)
        self.assertIn("protected: /srv/current leads to it", self.err.text)
        (order,) = impostor.orders
        assert isinstance(order, RemoveDir)
        self.assertFalse(order.force)
        impostor.requests.clear()
        self.assertEqual(self.code(f"{REMOVE} --force --json"), 5)
        (order,) = impostor.orders
        assert isinstance(order, RemoveDir)
        self.assertTrue(order.force)
        lines = [json.loads(line) for line in self.told.getvalue().splitlines()]
        (node,) = [one for one in lines if one["type"] == "node"]
        self.assertEqual((node["state"], node["code"], node["message"]), ("refused", "protected", "/srv/current leads to it"))
        self.assertEqual((lines[-1]["type"], lines[-1]["code"]), ("summary", "rejected"))

    @shows("K5.5")
    def test_no_hooks(self) -> None:
        """A removal would tell of hooks that ran for the upload of yesterday."""
        impostor = self.impostor(GOOD, by(KEY))
        running = self.start(REMOVE)
        self.made.run(30.0, until=lambda: bool(impostor.links))
        (link,) = impostor.links
        where = (GOOD.id, PATH, MachineId(bytes(16)), "n9", False)
        link.tell(HookResult(*where, AFTER[0].value, HookState.OK.value, ""))
        link.tell(RemovedImage(*where))
        self.assertEqual(self.successResultOf(self.ends(running)), 0)
        self.assertNotIn("hooks", self.out.text)


@shows("W1")
class AppendOnlyTests(OracleCase):
    """What can never be changed."""

    def test_before_the_editor(self) -> None:
        """Somebody would type for an hour, and be told then that nothing may be replaced there."""
        cluster = self.made = Cluster(1)
        cluster.run(5.0)
        client = Client(cluster, GOOD)
        client.upload("/logs/site", cluster.addresses(1))
        cluster.run(30.0, until=lambda: cluster.holders("/logs/site", GOOD) == {1})
        client.leave()
        for line in (EDIT, PUT):
            self.refused(line.replace(PATH, "/logs/site").replace("n9", "n1"), 5, "nothing may be replaced there")
        self.assertEqual(self.editors, 0)


class KeysTests(SynchronousTestCase):
    """Where trusted keys come from."""

    def setUp(self) -> None:
        self.path = self.mktemp()
        self.problems: list[str] = []

    def trust(self, *files: str, environ: dict[str, str] | None = None) -> Deferred[TrustedKeys]:
        around: Any = AppContext(None, lambda: START_MS, random.Random(1), environ or {}, Output(), Output(), at_once, at_once)
        own = [PublicKey(bytes(KEY.verify_key))]
        return Deferred.fromCoroutine(trust_of(Trusting(files), own, around, lambda _, text: self.problems.append(text)))

    def test_bad_files(self) -> None:
        """A file that was mistyped would be taken for one in which nobody is trusted; a bad line would hide the others."""
        self.assertIn("cannot be read", str(self.failureResultOf(self.trust("/none"), BadKey).value))
        with open(self.path, "w") as file:
            file.write("# nobody\n")
        self.assertIn("no key in it", str(self.failureResultOf(self.trust(self.path), BadKey).value))
        line = PublicKey(bytes(STRANGER.verify_key)).authorized_line()
        with open(self.path, "w") as file:
            file.write(f"ssh-rsa AAAA\n{line}\n{line}\n")
        self.assertEqual(len(self.successResultOf(self.trust(self.path)).keys), 2)
        self.assertIn(":1: ", self.problems[-1])

    def test_pinned(self) -> None:
        """A key that was pinned would not count."""
        self.assertEqual(pinned_file({"HOME": "/h"}), "/h/.config/ciruela/trusted_keys")
        self.assertEqual(pinned_file({"HOME": "/h", "XDG_CONFIG_HOME": "/c/"}), "/c/ciruela/trusted_keys")
        self.assertIsNone(pinned_file({"HOME": "h"}))
        self.assertEqual(len(self.successResultOf(self.trust(environ={"HOME": "/nowhere"})).keys), 1)
        os.makedirs(f"{self.path}/ciruela/trusted_keys")
        found = self.successResultOf(self.trust(environ={"XDG_CONFIG_HOME": os.path.abspath(self.path)}))
        self.assertEqual((len(found.keys), len(self.problems)), (1, 1))
