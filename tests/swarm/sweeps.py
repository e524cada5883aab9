"""Sweeps of the policy: sizes, rates, numbers of nodes, delays and faults, each with limits that it has to keep.

A limit is some hundredths above the worst of several seeds when it was written: what makes a cluster wait longer shows here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from benchmarks.swarm.model import Outcome, Setting, Simulation
from ciruela.swarm import neighbors

MIB = 1024 * 1024
FAST = 100e6 / 8


@dataclass(frozen=True, slots=True)
class Sweep:
    """A setting with limits: of the worst node and of the bytes of the client and the busiest node, as ratios; messages a second."""

    setting: Setting
    worst: float
    busiest: float = 1.15
    client: float = 1.03
    messages: float = inf


def _upload(nodes: int, mib: float, mbit: float, latency_s: float = 0.001, jitter_s: float = 0.0, fault: str = "") -> Setting:
    return Setting(nodes, int(mib * MIB), mbit * 1e6 / 8, latency_s=latency_s, jitter_s=jitter_s, fault=fault)


SWEEPS = (
    *(Sweep(_upload(nodes, 64, 100), worst, messages=200) for nodes, worst in ((3, 1.05), (8, 1.09), (16, 1.13), (20, 1.13), (24, 1.13))),
    *(Sweep(_upload(nodes, 64, 100), worst, messages=200) for nodes, worst in ((32, 1.15), (64, 1.17))),
    Sweep(_upload(24, 64, 20), 1.13, messages=100),
    Sweep(_upload(24, 256, 100), 1.06, messages=200),
    Sweep(_upload(24, 256, 1000), 1.14),
    Sweep(_upload(24, 64, 1000), 1.19, busiest=1.18),
    Sweep(_upload(24, 16, 100), 1.18, busiest=1.18),
    Sweep(_upload(24, 16, 2), 1.14),
    Sweep(_upload(24, 6.4, 100), 1.30, busiest=1.30),
    Sweep(_upload(64, 64, 100, latency_s=0.02), 1.27, busiest=1.22),
    Sweep(_upload(64, 64, 100, jitter_s=0.01), 1.20, busiest=1.18),
    *(Sweep(_upload(nodes, 64, 100, fault="die"), 1.20, busiest=1.18) for nodes in (20, 64)),
    *(Sweep(_upload(nodes, 64, 100, fault="slow"), 1.20, busiest=1.8) for nodes in (20, 64)),
    *(Sweep(_upload(nodes, 64, 100, fault="views"), 1.18) for nodes in (20, 64)),
    *(Sweep(_upload(nodes, 64, 100, fault="late"), 1.56, busiest=1.5) for nodes in (20, 64)),
    *(Sweep(_upload(nodes, 64, 100, fault="entry"), 1.20, busiest=1.18, client=1.06) for nodes in (20, 64)),
    *(Sweep(_upload(nodes, 64, 100, fault="client"), 1.17) for nodes in (20, 64)),
    *(Sweep(_upload(nodes, 64, 100, fault="silent"), 1.20, busiest=1.18) for nodes in (20, 64)),
    *(Sweep(_upload(nodes, 64, 100, fault="liar"), 1.20, busiest=1.18) for nodes in (20, 64)),
)

LARGE = (
    Sweep(_upload(256, 64, 100), 1.22, busiest=1.22, messages=200),
    Sweep(_upload(256, 64, 100, fault="die"), 1.25, busiest=1.22),
    Sweep(_upload(1000, 64, 100), 1.25, busiest=1.25, messages=200),
)
"""Only by command: some minutes of one processor."""


def broken(sweep: Sweep, found: Outcome) -> list[str]:
    """Lists the limits that are not kept."""
    pairs = {
        "the worst node": (found.worst, sweep.worst),
        "slow nodes": (found.slow, 11.0),
        "what the client gave": (found.client, sweep.client),
        "what the busiest node gave": (found.busiest, sweep.busiest),
        "messages a second": (found.messages, sweep.messages),
        "connections": (found.connections, neighbors.MOST + 1),
    }
    return [f"{name}: {value:.3f}, allowed {most:.3f}" for name, (value, most) in pairs.items() if value > most]


def run(part: int, parts: int, *, everything: bool = False) -> str:
    """The share ``part``. Raises AssertionError with what was not kept."""
    sweeps = (SWEEPS + LARGE if everything else SWEEPS)[part::parts]
    worst = 0.0
    for sweep in sweeps:
        found = Simulation(sweep.setting).run()
        if bad := broken(sweep, found):
            raise AssertionError(f"{sweep.setting}: {'; '.join(bad)}")
        worst = max(worst, found.worst)
    return f"swarm: {len(sweeps)} uploads, worst node {worst:.2f} of the bound"
