"""How fast one connection could be: a file by ``sendfile``, received, hashed in blocks and written, with nothing else around it.

``python -m benchmarks.rawcopy --hash blake3 FILE COPY`` prints the seconds and the processor seconds of both sides.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ciruela.index.digest import BLOCK_BYTES, HashKind

CHUNK_BYTES = 256 * 1024
HASHES: dict[str, Callable[[memoryview], object]] = {
    "none": lambda _: None,
    "blake2b": HashKind.BLAKE2B.hash,
    "blake3": HashKind.BLAKE3.hash,
}


def _send(port: int, source: Path) -> None:
    with socket.create_connection(("127.0.0.1", port)) as out, open(source, "rb") as file:
        at, size = 0, source.stat().st_size
        while at < size:
            at += os.sendfile(out.fileno(), file.fileno(), at, 4 * CHUNK_BYTES)


def _receive(connection: socket.socket, copy: Path, digest: Callable[[memoryview], object]) -> None:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with open(copy, "wb", buffering=0) as file:
        filled = 0
        while True:
            got = connection.recv_into(buffer[filled:])
            filled += got
            if filled == CHUNK_BYTES or not got:
                for at in range(0, filled, BLOCK_BYTES):
                    digest(buffer[at : min(filled, at + BLOCK_BYTES)])
                file.write(buffer[:filled])
                filled = 0
            if not got:
                return


def copy(source: Path, target: Path, kind: str) -> tuple[float, float]:
    """Seconds, and processor seconds of both processes."""
    digest = HASHES[kind]
    digest(memoryview(bytes(BLOCK_BYTES)))  # loads what it needs
    with socket.create_server(("127.0.0.1", 0)) as server:
        before_s = time.process_time()
        began_s = time.perf_counter()
        child = os.fork()
        if not child:
            code = 1
            try:
                _send(server.getsockname()[1], source)
                code = 0
            finally:
                os._exit(code)
        connection, _ = server.accept()
        with connection:
            _receive(connection, target, digest)
        seconds = time.perf_counter() - began_s
        _, status, usage = os.wait4(child, 0)
    if status:
        raise OSError(f"the sender of {source} failed")
    return seconds, time.process_time() - before_s + usage.ru_utime + usage.ru_stime


def main() -> int:
    """Copy one file."""
    parser = argparse.ArgumentParser(description="Copy a file through a socket.")
    parser.add_argument("--hash", choices=list(HASHES), default="blake3")
    parser.add_argument("source", type=Path)
    parser.add_argument("copy", type=Path)
    options = parser.parse_args()
    print(*copy(options.source, options.copy, options.hash))
    return 0


if __name__ == "__main__":
    sys.exit(main())
