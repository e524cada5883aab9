"""The long proofs of each push, on two processes: ``python -m tests.campaigns [NAME...]``.

A campaign is a module with ``run(part, parts)``: it does its share and returns one line, or raises with a message that says how to replay
what went wrong. A smaller sample of each runs with the tests.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Sequence

CAMPAIGNS = {
    "simulator": "tests.sim.campaign",
    "sweep": "tests.disk.sweep",
    "powercuts": "tests.disk.powercuts",
    "fuzz": "tests.fuzz.campaign",
    "guards": "tests.guards",
    "strace": "tests.real.campaign_strace",
}
"""Longest first, so that the two processes end together."""

PARTS = 2


def _one(name: str, part: int) -> None:
    """In a process of its own: one share of one campaign."""
    print(importlib.import_module(CAMPAIGNS[name]).run(part, PARTS), flush=True)


def _share(name: str, part: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.campaigns", f"--part={part}", name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def main(arguments: Sequence[str]) -> int:
    """Run the named campaigns, or all. The number of those that failed."""
    if arguments and arguments[0].startswith("--part="):
        _one(arguments[1], int(arguments[0].removeprefix("--part=")))
        return 0
    unknown = [name for name in arguments if name not in CAMPAIGNS]
    if unknown:
        print(f"there is no campaign {', '.join(unknown)}; there are {', '.join(CAMPAIGNS)}", file=sys.stderr)
        return 2
    failed = 0
    for name in arguments or CAMPAIGNS:
        began = time.monotonic()
        shares = [_share(name, part) for part in range(PARTS)]
        outputs = [share.communicate()[0].rstrip() for share in shares]
        good = all(share.returncode == 0 for share in shares)
        failed += not good
        print(f"{'ok    ' if good else 'FAILED'} {name}, {time.monotonic() - began:.0f} s")
        for output in outputs:
            print("\n".join(f"       {line}" for line in output.splitlines()), flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
