"""Longer runs of the fuzz targets: by the mutator of the tests, or guided by coverage with atheris.

``python -m benchmarks.fuzz --seconds 600 [TARGET...]``; ``--atheris TARGET`` needs ``pip install atheris``; ``--replay FILE`` tries a
finding.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path


def _mutate(names: list[str], seconds: float, seed: int) -> int:
    from tests.fuzz.campaign import fuzz
    from tests.fuzz.targets import BY_NAME

    unknown = sorted(set(names) - BY_NAME.keys())
    if unknown:
        print(f"there is no target {', '.join(unknown)}; there are {', '.join(BY_NAME)}", file=sys.stderr)
        return 2
    targets = [BY_NAME[name] for name in names or BY_NAME]
    for target in targets:
        done, accepted = fuzz(target, seed, sys.maxsize, time.monotonic() + seconds / len(targets))
        print(f"{target.name:18} {done:12,} inputs, {accepted:,} accepted, 0 findings", flush=True)
    return 0


def _guided(name: str, seconds: float) -> int:
    """Let atheris choose the inputs. It sees the branches of what is imported here, and only of our own code and its readers."""
    try:
        import atheris
    except ImportError:
        print("atheris is not installed: pip install atheris (CPython 3.11 to 3.13 on Linux)", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["ciruela", "autobahn", "yaml"], enable_loader_override=False):
        from tests.fuzz.campaign import attempt
        from tests.fuzz.targets import BY_NAME
    if name not in BY_NAME:
        print(f"there is no target {name}; there are {', '.join(BY_NAME)}", file=sys.stderr)
        return 2
    target = BY_NAME[name]
    folder = Path(tempfile.mkdtemp(prefix="ciruela-fuzz-"))
    for number, seed in enumerate(target.seeds):
        (folder / f"{number}").write_bytes(seed)
    print(f"the inputs that it learns from are kept in {folder}", flush=True)

    def one(data: bytes) -> None:
        attempt(target, data)

    atheris.Setup(
        [
            sys.argv[0],
            str(folder),
            f"-max_total_time={seconds:.0f}",
            f"-max_len={target.longest}",
            "-timeout=10",
            f"-artifact_prefix={folder}/",
        ],
        one,
    )
    atheris.Fuzz()
    return 0


def main() -> int:
    """Run; 1 when there was a finding."""
    parser = argparse.ArgumentParser(description="Fuzz the decoders for longer than a push does.")
    parser.add_argument("target", nargs="*", help="by name, see tests/fuzz/targets.py; all by default")
    parser.add_argument("--seconds", type=float, default=600.0, help="in all (default: 600)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="another one gives other inputs (default: the time)")
    parser.add_argument("--atheris", metavar="TARGET", help="guided by coverage")
    parser.add_argument("--replay", metavar="FILE", type=Path, help="try a finding again")
    options = parser.parse_args()
    if options.atheris is not None:
        return _guided(options.atheris, options.seconds)
    from tests.fuzz.campaign import Finding, replay

    try:
        if options.replay is not None:
            replay(options.replay)
            print("nothing is wrong with it now")
            return 0
        return _mutate(options.target, options.seconds, options.seed)
    except Finding as found:
        print(found, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
