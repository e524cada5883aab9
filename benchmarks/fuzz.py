"""Longer runs of the fuzz targets: by the mutator of the tests, or guided by coverage with atheris.

``python -m benchmarks.fuzz --seconds 600 [TARGET...]``; ``--atheris TARGET`` needs ``pip install atheris``; ``--replay FILE`` tries a
finding.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.fuzz.campaign import Finding, attempt, fuzz, replay
from tests.fuzz.targets import BY_NAME, TARGETS, Target


def _mutate(targets: list[Target], seconds: float, seed: int) -> int:
    for target in targets:
        done, accepted = fuzz(target, seed, sys.maxsize, time.monotonic() + seconds / len(targets))
        print(f"{target.name:18} {done:12,} inputs, {accepted:,} accepted, 0 findings", flush=True)
    return 0


def _guided(target: Target, seconds: float) -> int:
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: pip install atheris (CPython 3.11 to 3.13 on Linux)", file=sys.stderr)
        return 2
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds:.0f}"], lambda data: attempt(target, bytes(data)) and None)
    atheris.Fuzz()
    return 0


def main() -> int:
    """Run; 1 when there was a finding."""
    parser = argparse.ArgumentParser(description="Fuzz the decoders for longer than a push does.")
    parser.add_argument("target", nargs="*", help=f"of: {', '.join(BY_NAME)}; all by default")
    parser.add_argument("--seconds", type=float, default=600.0, help="in all (default: 600)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="another one gives other inputs (default: the time)")
    parser.add_argument("--atheris", metavar="TARGET", choices=sorted(BY_NAME), help="guided by coverage")
    parser.add_argument("--replay", metavar="FILE", type=Path, help="try a finding again")
    options = parser.parse_args()
    unknown = sorted(set(options.target) - BY_NAME.keys())
    if unknown:
        parser.error(f"there is no target {', '.join(unknown)}")
    try:
        if options.replay is not None:
            replay(options.replay)
            print("nothing is wrong with it now")
            return 0
        if options.atheris is not None:
            return _guided(BY_NAME[options.atheris], options.seconds)
        return _mutate([BY_NAME[name] for name in options.target] or list(TARGETS), options.seconds, options.seed)
    except Finding as found:
        print(found, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
