"""What the interoperability checks send, and the two clients that send it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.children import Finished, environment, run


class Trees:
    """The trees that are sent."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def make(self, name: str, files: dict[str, bytes]) -> Path:
        """A tree with these files, an empty directory, a link and a program."""
        tree = self.top / name
        (tree / "empty").mkdir(parents=True)
        for path, content in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        (tree / "run.sh").write_text("#!/bin/sh\necho hi\n")
        (tree / "run.sh").chmod(0o755)
        (tree / "link").symlink_to("run.sh")
        return tree

    def small(self, name: str, text: str) -> Path:
        """A few files, one of them over two blocks and the same in all trees."""
        same = bytes(range(256)) * 160
        return self.make(name, {"text": text.encode(), "sub dir/üml": b"z", "big.bin": same, "zero": b""})

    def many(self, count: int) -> Path:
        """Thousands of files."""
        rng = random.Random(5)
        return self.make("many", {f"d{n // 100}/f{n}": rng.randbytes(rng.randrange(3000)) for n in range(count)})

    def large(self, mib: int) -> Path:
        """One large file."""
        rng = random.Random(6)
        return self.make("large", {"large.bin": b"".join(rng.randbytes(1024 * 1024) for _ in range(mib))})


class Uploader:
    """One of the two clients, as a command."""

    def __init__(self, name: str, command: Sequence[str], port: int, key: Path) -> None:
        self.name = name
        self._command = command
        self._port = port
        self._key = key

    def sync(
        self, what: str, hosts: Iterable[str], key: Path | None = None, deadline: str = "120s", early: str = "100s", *, old: bool = False
    ) -> Finished:
        """``what`` is an option and its value: ``--append SRC:DEST``. ``old``: with the hash that the reference knows."""
        port = ["--port", str(self._port)]
        options = ["-m", "-i", str(key or self._key), "-t", deadline, "-e", early, *what.split(" ", 1)]
        if old and self._command[-1] != "sync":
            options += ["--hash", "blake2b/256"]
        if self._command[-1] == "sync":
            return run([*self._command[:-1], *port, "sync", *options, "--", *hosts], environment(), timeout_s=200)
        return run([*self._command, *port, *options, *hosts], environment(), timeout_s=200)
