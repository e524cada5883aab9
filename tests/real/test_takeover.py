"""A db directory that the reference wrote (protocol sections 1, 3.4 and 5.1), taken over by real daemons as it stands.

Everything is written here by the rules of the protocol, without a line of the program that is tested.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import cbor2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from twisted.trial.unittest import SynchronousTestCase

from tests.proof import shows
from tests.real.daemons import RealCluster, RealNode
from tests.real.trees import noise

BLOCK = 32768
SIGNED_MS = 1_700_000_000_123

Files = Mapping[str, bytes]


def blake(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()


def index_of(files: Files) -> tuple[bytes, bytes]:
    """The image id and the index of a directory with only plain files in it."""
    body = b"/\n"
    for name in sorted(files):
        data = files[name]
        hashes = [blake(data[at : at + BLOCK]).hex() for at in range(0, len(data), BLOCK)]
        body += " ".join(["", "", name, "f", str(len(data)), *hashes])[1:].replace(" ", "  ", 1).encode() + b"\n"
    image = blake(body)
    return image, b"DIRSIGNATURE.v1 blake2b/256 block_size=32768\n" + body + image.hex().encode() + b"\n"


class Writer:
    """Writes what the reference's daemon would have left on one node."""

    def __init__(self, node: RealNode, key: Ed25519PrivateKey) -> None:
        self.node = node
        self.key = key

    def write(self, vpath: str, files: Files, suffix: str = ".state") -> bytes:
        """State and index of an image; its files too when it is committed."""
        image, index = index_of(files)
        signature = self.key.sign(cbor2.dumps([vpath, image, SIGNED_MS]))
        state = cbor2.dumps({"image": image, "signatures": [[SIGNED_MS, ["ssh-ed25519", signature]]]})
        stored = self.node.db / "indexes" / image.hex()[:2] / f"{image.hex()}.ds1"
        stored.parent.mkdir(parents=True, exist_ok=True)
        stored.write_bytes(index)
        record = self.node.db / "signatures" / f"{vpath[1:]}{suffix}"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_bytes(state)
        if suffix == ".state":
            self.files(self.node.path(vpath), files)
        return image

    def files(self, directory: Path, files: Files) -> None:
        directory.mkdir()
        for name, data in files.items():
            (directory / name).write_bytes(data)
            (directory / name).chmod(0o644)


class TakeOverTests(SynchronousTestCase):
    """Moving from the reference to this program must not mean to upload, or even to copy, anything again."""

    def test_the_writer(self) -> None:
        """The example of the protocol (1.5 A has directories; this is its smallest legal index): the fixtures are what they should be."""
        self.assertEqual(index_of({})[0].hex(), "e0020ea89546e44b42c04add7cdd21b99873f8147004710105333daaf5ae49c2")
        self.assertIn(b"\n  a f 2 ", index_of({"a": b"xy"})[1])

    @shows("A59")
    def test_taken_over(self) -> None:
        """What is there is listed, served and not fetched again; what was on its way arrives; what is not understood is left alone."""
        cluster = RealCluster(self, 2, down=[0, 1], expect_errors=["is bad (", "it is kept as"])
        first, second = cluster.nodes
        key = load_ssh_private_key(cluster.key.read_bytes(), None)
        assert isinstance(key, Ed25519PrivateKey)
        old = {"large": noise(1, 5 * BLOCK + 7), "small": b"hello\n"}
        new = {"large": noise(2, 9 * BLOCK), "small": b"hello again\n", "zero": b""}
        one, two = Writer(first, key), Writer(second, key)
        v1 = one.write("/apps/v1", old)
        one.write("/apps/v2", new, ".new.state")
        one.files(first.data / "apps" / ".tmp.v2", {"small": b"half"})
        v2 = two.write("/apps/v2", new)
        states = first.db / "signatures" / "apps"
        (states / "v1.log").write_bytes(b"not a state")
        (states / ".v0.state.backup").write_bytes(b"was bad once")
        (states / "v9.state").write_bytes(b"is bad now")
        kept = {path: path.stat().st_ino for path in first.path("/apps/v1").iterdir()}
        cluster.start(0, 1)
        for node in cluster.nodes:
            cluster.until(
                lambda node=node: [node.has(f"/apps/v{number}") for number in (1, 2)] == [v1.hex(), v2.hex()], "all is everywhere"
            )  # type: ignore[misc]
        self.assertEqual({path: path.stat().st_ino for path in first.path("/apps/v1").iterdir()}, kept)
        self.assertLessEqual(first.received(), sum(map(len, new.values())))
        self.assertLessEqual(second.received(), sum(map(len, old.values())))
        for node in cluster.nodes:
            for vpath, files in (("/apps/v1", old), ("/apps/v2", new)):
                self.assertEqual({path.name: path.read_bytes() for path in node.path(vpath).iterdir()}, files)
        self.assertEqual((first.data / "apps" / ".tmp.v2" / "small").read_bytes(), b"half")
        self.assertEqual((states / "v1.log").read_bytes(), b"not a state")
        self.assertEqual((states / ".v9.state.backup").read_bytes(), b"is bad now")
        self.assertTrue((first.db / ".version").exists())
        cluster.expect(
            cluster.sync("--append", f"{first.path('/apps/v1')}:/apps/v1", "--hash", "blake2b/256", "127.0.0.1"), 0, "DONE", "2/2"
        )
