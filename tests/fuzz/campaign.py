"""Very many bent inputs for every decoder, within seconds; what is found is kept as a file and tried again for ever.

A quarter of them on each push, all by ``python -m tests.campaigns fuzz --all``, and for longer by ``python -m benchmarks.fuzz``.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz import bombs
from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import BY_NAME, TARGETS, Target

FINDINGS = Path(__file__).parent / "findings"
MOST_S = 0.25
"""So much processor time an input may cost (I8)."""

AT_PUSH = 4
"""A push tries the first of so many parts of the inputs. The findings of all are among the tests."""

BATCH = 100
KEEP_CHANCE = 0.05


class Finding(Exception):
    """A decoder did something that it must not do."""


def mutator(target: Target, seed: object) -> Mutator:
    """The inputs that campaign ``seed`` makes for ``target``."""
    return Mutator(target.seeds, random.Random(f"{target.name} {seed}"), target.cut, target.tokens, target.longest)


def attempt(target: Target, data: bytes, keep_as: bool = True) -> bool:
    """Check one input. Raises Finding, which says how to try it again; then the input is a file in ``findings/``."""
    try:
        return target.check(data)
    except Exception as fault:
        raise Finding(_told(target, data, f"{type(fault).__name__}: {str(fault)[:500]}", keep_as)) from fault


def _told(target: Target, data: bytes, what: str, keep: bool) -> str:
    name = f"{target.name}-{hashlib.sha256(data).hexdigest()[:16]}.bin"
    if keep:
        FINDINGS.mkdir(exist_ok=True)
        (FINDINGS / name).write_bytes(data)
    again = f"it is kept, try it again with: python -m benchmarks.fuzz --replay tests/fuzz/findings/{name}" if keep else name
    return f"{target.name}: {what}; input {data[:80].hex()}{'..' if len(data) > 80 else ''} ({len(data)} bytes; {again})"


def _too_slow(target: Target, batch: Sequence[bytes], keep: bool) -> None:
    """Find out which input of a slow batch is slow each time it is tried; a machine that was busy for a moment is none."""
    for data in batch:
        times = []
        for _ in range(3):
            began = time.process_time()
            target.check(data)
            times.append(time.process_time() - began)
            if times[-1] <= MOST_S:
                break
        else:
            raise Finding(_told(target, data, f"it took {min(times) * 1000:.0f} ms", keep))


def fuzz(target: Target, seed: object, count: int, until_s: float = float("inf"), keep: bool = True) -> tuple[int, int]:
    """Try ``count`` inputs, or until the monotonic clock says ``until_s``. How many it were, and how many were accepted. Raises Finding."""
    source = mutator(target, seed)
    chance = random.Random(f"keep {seed}").random
    done = accepted = 0
    while done < count and time.monotonic() < until_s:
        batch = [source.next() for _ in range(min(BATCH, count - done))]
        began = time.process_time()
        for data in batch:
            if attempt(target, data, keep):
                accepted += 1
                if chance() < KEEP_CHANCE:
                    source.keep(data)
        if time.process_time() - began > MOST_S:
            _too_slow(target, batch, keep)
        done += len(batch)
    return done, accepted


def replay(path: Path) -> None:
    """Try a finding again. Raises Finding."""
    target = BY_NAME[path.name.rpartition("-")[0]]
    data = path.read_bytes()
    attempt(target, data, keep_as=False)
    _too_slow(target, [data], keep=False)


def run(part: int, parts: int, *, everything: bool = False, first: int = 0) -> str:
    """The share ``part`` (from 0) of ``parts`` of the campaign ``first``: of each target as many inputs. Raises Finding."""
    done = 0
    accepted = 0
    for target in TARGETS:
        tried, taken = fuzz(target, f"{first} {part}", -(-target.inputs // (parts if everything else parts * AT_PUSH)))
        done += tried
        accepted += taken
    heavy = sum(bombs.run_limited(kind) for kind in sorted(bombs.KINDS, reverse=True)[part::parts])
    return f"fuzz: {done:,} inputs for {len(TARGETS)} decoders, {accepted:,} accepted, {heavy} bombs under a limit of memory, 0 findings"
