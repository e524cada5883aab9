"""The long proofs of each push, for two processors: ``python -m tests.campaigns [NAME...]``, and ``guards --all``.

A campaign is a module with ``run(part, parts)``: it does its share and returns one line, or raises with a message that says how to replay
what went wrong. A smaller sample of each runs with the tests.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

CAMPAIGNS = {
    "strace": "tests.real.campaign_strace",
    "simulator": "tests.sim.campaign",
    "fuzz": "tests.fuzz.campaign",
    "guards": "tests.guards",
    "sweep": "tests.disk.sweep",
    "powercuts": "tests.disk.powercuts",
}
"""Longest first, so that the processes end together. The very first one mostly waits."""

LONGER = {"power": "tests.real.campaign_power"}
"""Only when they are named: a small sample is enough for a push."""

AT_ONCE = 3
PARTS = 4
"""Shares of a campaign. Small ones, so that the last of them do not run alone."""

FEW_PARTS = {"strace": 2, "guards": 1}
"""Those of which each share has a cluster of its own, or that start processes themselves."""

ALL = "--all"
"""Guards: not only those of what changed."""


def _parts(name: str) -> int:
    return FEW_PARTS.get(name, PARTS)


def _one(part: int, name: str, *options: str) -> None:
    """In a process of its own: one share of one campaign."""
    run = importlib.import_module((CAMPAIGNS | LONGER)[name]).run
    print(run(part, _parts(name), everything=True) if ALL in options else run(part, _parts(name)), flush=True)


def _share(name: str, part: int, options: Sequence[str]) -> tuple[bool, str, float]:
    """Whether it went well, what it printed, and how many seconds it took."""
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.campaigns", f"--part={part}", name, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode == 0, done.stdout.rstrip(), time.monotonic() - began


def main(arguments: Sequence[str]) -> int:
    """Run the named campaigns, or all. The number of those that failed."""
    if arguments and arguments[0].startswith("--part="):
        _one(int(arguments[0].removeprefix("--part=")), *arguments[1:])
        return 0
    arguments, options = (arguments[:1], [ALL]) if list(arguments) == ["guards", ALL] else (arguments, [])
    unknown = [name for name in arguments if name not in CAMPAIGNS | LONGER]
    if unknown:
        print(f"there is no campaign {', '.join(unknown)}; there are {', '.join(CAMPAIGNS | LONGER)}", file=sys.stderr)
        return 2
    failed = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        begun = {name: [pool.submit(_share, name, part, options) for part in range(_parts(name))] for name in arguments or CAMPAIGNS}
        for name, shares in begun.items():
            results = [share.result() for share in shares]
            good = all(well for well, _, _ in results)
            failed += not good
            print(f"{'ok    ' if good else 'FAILED'} {name}, {' and '.join(f'{took_s:.0f} s' for _, _, took_s in results)}")
            for _, output, _ in results:
                print("\n".join(f"       {line}" for line in output.splitlines()), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
