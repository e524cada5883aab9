"""Nodes of ciruela, on loopback addresses if nothing else is said, with generated keys and configurations."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.children import FOREGROUND, TWISTD, Child, Children, environment, page, until

SEED = bytes(range(32))


def write_key(path: Path, seed: bytes = SEED) -> str:
    """Write the private key that belongs to ``seed``; gives its public line. Never use it for anything but a test."""
    key = Ed25519PrivateKey.from_private_bytes(seed)
    text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    path.write_bytes(text)
    path.chmod(0o600)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{public.decode('ascii')} benchmark"


@dataclass(slots=True)
class Node:
    """One daemon: its directories are below ``top``; ``name`` is its host name in what it tells."""

    number: int
    top: Path
    port: int
    name: str
    child: Child | None = None
    network: str = "127.0.0."

    @property
    def host(self) -> str:
        """Its address."""
        return f"{self.network}{self.number}"

    @property
    def data(self) -> Path:
        """Where its directories are; one subdirectory for each key."""
        return self.top / "data"

    def write(self, public_key: str, peers: Mapping[str, str], configs: Mapping[str, str]) -> None:
        """Make its directories and configuration. ``configs``: key to YAML without ``directory``; ``peers``: machine id to address."""
        for directory in (self.top / "db", self.top / "config" / "configs"):
            directory.mkdir(parents=True, mode=0o755)
        for key, text in configs.items():
            (self.data / key).mkdir(parents=True, mode=0o755)
            (self.top / "config" / "configs" / f"{key}.yaml").write_text(f'directory: "{self.data / key}"\n{text}')
        (self.top / "config" / "master.key").write_text(public_key + "\n")
        (self.top / "config" / "peers.txt").write_text("".join(f"{address}\n" for address in peers.values()))

    def options(self) -> list[str]:
        """Options that our daemon and the reference's share."""
        return [
            *("--db-dir", str(self.top / "db")),
            *("--host", self.host),
            *("--port", str(self.port)),
            *("--override-machine-id", f"{self.number:032x}"),
            *("--override-hostname", self.name),
        ]

    @property
    def turns(self) -> Path:
        """What a daemon that is ``measured`` writes when it ends."""
        return self.top / "turns"

    def command(self, twistd: Sequence[str] = TWISTD) -> list[str]:
        """The command that runs our daemon."""
        return [*twistd, "ciruela", "--config", str(self.top / "config"), *self.options()]

    def start(self, children: Children, *, measured: bool = False) -> None:
        """Start our daemon; ``measured``: with ``benchmarks.turns``."""
        twistd = (sys.executable, "-m", "benchmarks.turns", str(self.turns), *FOREGROUND) if measured else TWISTD
        self.child = children.start(f"ciruela {self.name}", self.command(twistd), self.top / "log", environment())

    def start_reference(self, children: Children, binary: Path, cantal: Path) -> None:
        """Start the reference's daemon on the same directories. ``cantal``: where it may write its metrics."""
        command = [str(binary), "--config-base-dir", str(self.top / "config"), *self.options()]
        environ = {**os.environ, "CANTAL_PATH": str(cantal / f"{self.name}"), "RUST_LOG": "info"}
        self.child = children.start(f"reference {self.name}", command, self.top / "log", environ)

    def ready(self, others: int) -> None:
        """Wait until it answers and knows so many other nodes."""
        until(f"{self.name} does not answer", lambda: page(self.host, self.port, "/configs/") is not None, self.child)
        until(f"{self.name} does not know {others} others", lambda: len(page(self.host, self.port, "/peers/")) >= others, self.child)

    def stop(self) -> None:
        """Stop the daemon."""
        if self.child is not None:
            self.child.stop()


def make_nodes(
    top: Path, port: int, public_key: str, configs: Mapping[str, str], numbers: tuple[int, ...] = (1, 2, 3), numeric: bool = False
) -> list[Node]:
    """Nodes that know each other, written and not started. With ``numeric`` their names are their addresses, which every client finds."""
    nodes = [Node(number, top / f"node{number}", port, f"127.0.0.{number}" if numeric else f"node{number}") for number in numbers]
    for node in nodes:
        node.write(public_key, {f"{other.number:032x}": other.host for other in nodes if other is not node}, configs)
    return nodes


def fingerprint(root: Path, modes: bool = True) -> str:
    """A hash over what ciruela promises to carry over: names, types, content, execute bit of the owner, targets of links.

    Without ``modes`` the execute bit does not count, for programs that do not carry it.
    """
    whole = hashlib.blake2b(digest_size=16)
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted([*files, *(each for each in folders if os.path.islink(os.path.join(folder, each)))]):
            path = os.path.join(folder, name)
            whole.update(os.fsencode(os.path.relpath(path, root)) + b"\0")
            if os.path.islink(path):
                whole.update(b"s" + os.fsencode(os.readlink(path)))
                continue
            with open(path, "rb") as file:
                mode = b"x" if modes and os.fstat(file.fileno()).st_mode & 0o100 else b"f"
                whole.update(mode + hashlib.file_digest(file, hashlib.blake2b).digest())
        whole.update(b"d" + os.fsencode(os.path.relpath(folder, root)) + b"\0")
    return whole.hexdigest()
