"""Small inputs that promise, or truly are, very much: each under a limit of memory and time, in a process of its own (F6, F15).

Run as a program it tries a kind of them, ``indexes``, ``fragments`` or ``frames``, and ends with 0 when each was refused in time.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ciruela.index.digest import BLOCK_BYTES
from ciruela.index.names import MAX_INDEX_BYTES
from ciruela.index.parse import FOOTER_BYTES, HEADERS, image_id_of, parse
from ciruela.model.errors import BadIndex
from ciruela.model.ids import ImageId
from tests.index.examples import KIND, SMALLEST, footer_of, sealed

ADDRESS_SPACE = 512 * 1024 * 1024
MOST_S = 1.0
"""Each bomb is refused within a second (F6)."""

MOST_GROWTH = 32 * 1024 * 1024
"""What refusing it may cost beyond the input itself (F6)."""

TOP = Path(__file__).parents[2]


def small_bombs() -> dict[str, bytes]:
    """Indexes of a few bytes, by what they promise. All have a footer that fits, where there is a body at all."""
    digits = b"0" * 64
    lines = {
        "a size of 2^63": b"/\n  a f 9223372036854775808 " + digits + b"\n",
        "a size of 2^63 - 1": b"/\n  a f 9223372036854775807 " + digits + b"\n",
        "a size of 2^64": b"/\n  a f 18446744073709551616 " + digits + b"\n",
        "a size of a thousand digits": b"/\n  a f " + b"9" * 1000 + b" " + digits + b"\n",
        "10^9 hashes": b"/\n  a f %d " % (10**9 * BLOCK_BYTES) + digits + b"\n",
        "a line of 10 GB": b"/\n  a f %d " % (10 * 10**9 // 65 * BLOCK_BYTES) + digits + b"\n",
        "a size without hashes": b"/\n  a f 1\n",
        "hashes without a size": b"/\n  a f 0 " + digits + b"\n",
        "one hash too many": b"/\n  a f 32768 " + digits + b" " + digits + b"\n",
        "one hash too few": b"/\n  a f 32769 " + digits + b"\n",
        "a negative size": b"/\n  a f -1 " + digits + b"\n",
    }
    found = {name: sealed(body)[0] for name, body in lines.items()}
    for size in (b"0", b"1", b"-1", b"32769", b"65536", b"9223372036854775808", b"032768", b""):
        found[f"block_size={size.decode()}"] = SMALLEST.replace(b"block_size=32768", b"block_size=" + size)
    return found


def large_bombs() -> dict[str, Callable[[], bytes]]:
    """Indexes of many megabytes, made when they are wanted."""

    def body(first: bytes, unit: bytes, size: int) -> bytes:
        lines = b"".join((first, unit * (size // len(unit)), b"\n"))
        return b"".join((HEADERS[KIND], lines, KIND.hash(lines).hex().encode(), b"\n"))

    megabytes = 1024 * 1024
    return {
        "64 MB of one name": lambda: body(b"/\n  ", b"n", 64 * megabytes),
        "64 MB of one path": lambda: body(b"/\n/", b"d/", 64 * megabytes),
        "64 MB of one target": lambda: body(b"/\n  a s ", b"t", 64 * megabytes),
        "64 MB of hashes and one digit": lambda: (
            body(b"/\n  a f %d" % (64 * megabytes // 65 * BLOCK_BYTES), b" " + b"0" * 64, 64 * megabytes)[:-66] + b"0\n"
        ),
        "64 MB of empty lines": lambda: body(b"/\n", b"\n", 64 * megabytes),
        "64 MB without a newline": lambda: b"x" * (64 * megabytes),
        "more than 256 MB": lambda: bytes(MAX_INDEX_BYTES + 1),
    }


def refused(name: str, data: bytes) -> None:
    """``data`` is refused, in time and without more memory than its own. Raises AssertionError."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    expected = footer_of(data) if data[-1:] == b"\n" and len(data) > FOOTER_BYTES else ImageId(bytes(32))
    try:
        image_id_of(data)
        parse(data, expected)
    except BadIndex:
        taken_s = time.process_time() - began
        growth = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        assert taken_s < MOST_S, f"{name}: refused after {taken_s:.2f} s"
        assert growth < MOST_GROWTH, f"{name}: refused with {growth >> 20} MB more"
        return
    raise AssertionError(f"{name}: accepted")


def fragments() -> int:
    """Very many tiny parts of one message, at a link whose other end is asked for an index and may send 101 MiB, and at one that is not."""
    from ciruela.net.limits import LARGE_BYTES, ORDINARY_BYTES
    from tests.fuzz.connections import link_after_handshake, open_link
    from tests.net.bench import frame, frames

    tried, (clock, _) = 0, open_link(True)
    for payload, limit, count in (
        (b"x", ORDINARY_BYTES, ORDINARY_BYTES),
        (b"", ORDINARY_BYTES, ORDINARY_BYTES),
        (b"x", LARGE_BYTES, 300_000),
    ):
        link, tape, heard, log = link_after_handshake(server=True, limit_bytes=limit)
        part = frame(payload, 0, masked=True, first=0)
        piece = part * (65536 // len(part))
        link.dataReceived(frame(b"", 2, masked=True, first=0))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(count // (65536 // len(part)) + 1):
            link.dataReceived(piece)
            while link._next_turn is not None:
                clock.advance(0)
        growth = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        assert growth < 16 * 1024 * 1024, f"{count} parts of {len(payload)} bytes cost {growth >> 20} MB"
        closes = [payload for _, opcode, payload in frames(b"".join(tape.written)) if opcode == 8]
        assert [close[:2] for close in closes] == ([b"\x03\xf1"] if limit == ORDINARY_BYTES else []), closes
        assert (heard.messages, log.faults) == ([], [])
        tried += 1
    return tried


def indexes() -> int:
    """All indexes, small and large."""
    for name, data in small_bombs().items():
        refused(name, data)
    for name, make in large_bombs().items():
        refused(name, make())
    return len(small_bombs()) + len(large_bombs())


def frames() -> int:
    """Packed parts that hold, or say that they hold, a gigabyte, where blocks of a piece are due."""
    from ciruela.model.errors import FormatError
    from ciruela.proto.compression import unpack

    due = 128 * 1024
    bombs = packed_bombs()
    for name, data in bombs.items():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        try:
            unpack(data, due)
        except FormatError:
            taken_s = time.process_time() - began
            growth = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            assert taken_s < MOST_S, f"{name}: refused after {taken_s:.2f} s"
            assert growth < MOST_GROWTH, f"{name}: refused with {growth >> 20} MB more"
        else:
            raise AssertionError(f"{name}: accepted")
    return len(bombs)


def packed_bombs() -> dict[str, bytes]:
    """Frames of zstd that are made by hand: blocks of 128 KiB that are one byte repeated, four bytes each."""
    magic, most = b"\x28\xb5\x2f\xfd", 128 * 1024
    repeat, last = (most << 3 | 2).to_bytes(3, "little") + b"x", (most << 3 | 3).to_bytes(3, "little") + b"x"
    single, wide = b"\xe0", b"\xc0\xa8"  # a size of eight bytes, with the window as large as that, or of 2 GiB
    gigabyte = 8192 * repeat + last
    right, wrong = most.to_bytes(8, "little"), (1 << 30).to_bytes(8, "little")
    return {
        "a gigabyte": magic + single + wrong + gigabyte,
        "a gigabyte that says it is a piece": magic + single + right + gigabyte,
        "a gigabyte in a window of two": magic + wide + right + gigabyte,
        "nothing that says it is a gigabyte": magic + single + wrong + last,
        "nothing that says it is 2^64 - 1": magic + single + b"\xff" * 8 + last,
        "a gigabyte without a size": magic + b"\x00\x58" + gigabyte,
        "a gigabyte behind a piece": magic + single + right + last + magic + single + wrong + gigabyte,
    }


KINDS = {"indexes": indexes, "fragments": fragments, "frames": frames}


def main(kind: str) -> int:
    """Try all of a kind under the limit; say how many."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    print(KINDS[kind]())  # noqa: T201
    return 0


def run_limited(kind: str, timeout_s: float = 240) -> int:
    """Run this module as a program; how many bombs there were. Raises AssertionError with its last words."""
    command = [sys.executable, "-m", "tests.fuzz.bombs", kind]
    environment = dict(os.environ, PYTHONPATH=str(TOP))
    child = subprocess.run(command, cwd=TOP, env=environment, capture_output=True, text=True, timeout=timeout_s)
    assert child.returncode == 0, child.stderr[-2000:]
    return int(child.stdout)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
