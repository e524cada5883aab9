"""The long proofs, for two processors: ``python -m tests.campaigns [NAME...] [--all]``. Without ``--all`` they are as long as at a push.

A campaign is a module with ``run(part, parts, everything=False)``: it does its share of a push, or of everything, and returns one line, or
raises with a message that says how to replay what went wrong. A push takes the same sample each time. A smaller one runs with the tests.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

CAMPAIGNS = {
    "strace": "tests.real.campaign_strace",
    "guards": "tests.guards",
    "simulator": "tests.sim.campaign",
    "sweep": "tests.disk.sweep",
    "fuzz": "tests.fuzz.campaign",
    "powercuts": "tests.disk.powercuts",
    "swarm": "tests.swarm.sweeps",
}
"""Longest shares first, so that the processes end together. The very first one mostly waits."""

LONGER = {"power": "tests.real.campaign_power"}
"""Only when they are named, or everything is wanted: a small sample is enough for a push."""

AT_ONCE = 3
PARTS = 4
"""Shares of a campaign. Small ones, so that the last of them do not run alone."""

FEW_PARTS = {"strace": 2, "guards": 1}
"""Those of which each share has a cluster of its own, or that start processes themselves."""

ALL = "--all"
"""Everything that the campaigns have, not only the sample of a push; of guards not only those of what changed."""

FROM = "--from="
"""The seeds from this number on, which are new ones, instead of those from 0 on."""

SEEDED = {"simulator", "fuzz"}
"""Campaigns that have seeds: their ``run`` takes ``first``, too."""


def _parts(name: str) -> int:
    return FEW_PARTS.get(name, PARTS)


def _one(part: int, name: str, *options: str) -> None:
    """In a process of its own: one share of one campaign."""
    run = importlib.import_module((CAMPAIGNS | LONGER)[name]).run
    first = [int(one.removeprefix(FROM)) for one in options if one.startswith(FROM)]
    print(run(part, _parts(name), everything=ALL in options, **({"first": first[-1]} if first else {})), flush=True)


def _share(name: str, part: int, options: Sequence[str]) -> tuple[bool, str, float]:
    """Whether it went well, what it printed, and how many seconds it took."""
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.campaigns", f"--part={part}", name, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode == 0, done.stdout.rstrip(), time.monotonic() - began


def main(arguments: Sequence[str]) -> int:
    """Run the named campaigns, or those of a push. The number of those that failed."""
    if arguments and arguments[0].startswith("--part="):
        _one(int(arguments[0].removeprefix("--part=")), *arguments[1:])
        return 0
    options = [one for one in arguments if one == ALL or re.fullmatch(rf"{FROM}\d+", one)]
    names = [one for one in arguments if one not in options]
    unknown = [name for name in names if name not in CAMPAIGNS | LONGER]
    if unknown:
        print(f"there is no campaign {', '.join(unknown)}; there are {', '.join(CAMPAIGNS | LONGER)}", file=sys.stderr)
        return 2
    if set(options) - {ALL} and not 0 < len(names) == len(SEEDED & set(names)):
        print(f"only {' and '.join(sorted(SEEDED))} have seeds", file=sys.stderr)
        return 2
    names = names or [*(CAMPAIGNS | LONGER if ALL in options else CAMPAIGNS)]
    failed = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        begun = {name: [pool.submit(_share, name, part, options) for part in range(_parts(name))] for name in names}
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
