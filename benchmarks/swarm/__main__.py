"""``python -m benchmarks.swarm``: the policy alone, up to thousands of nodes. See ``benchmarks/README.rst``."""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.swarm.model import FAULTS, SERVED, Outcome, Setting, Simulation

MIB = 1024 * 1024


def told(found: Outcome) -> str:
    """Puts an outcome into one line."""
    slow = f", slow links {found.slow:.2f}" if found.slow else ""
    return (
        f"worst {found.worst:.3f} median {found.median:.3f} p99 {found.p99:.3f} of the bound{slow}; "
        f"the client gave {found.client:.3f}, the busiest node {found.busiest:.3f} of the image; {found.connections} connections, "
        f"{found.messages:.0f} messages/s, {found.twice} pieces twice, {found.freed} freed"
    )


def main() -> int:
    """One line for each upload."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.swarm", description="Simulate who gives what to whom, over links of limited speed."
    )
    parser.add_argument("--nodes", default="3,8,16,32,64", help="numbers of nodes (default: 3,8,16,32,64)")
    parser.add_argument("--mib", type=float, default=64, help="size of the image (default: 64)")
    parser.add_argument("--mbit", type=float, default=100.0, help="each link, each way (default: 100)")
    parser.add_argument("--latency-ms", type=float, default=1.0, help="one way (default: 1)")
    parser.add_argument("--jitter-ms", type=float, default=0.0, help="what each message is late besides, on average (default: 0)")
    parser.add_argument("--fault", default="", choices=("", *FAULTS), help="what goes wrong (default: nothing)")
    parser.add_argument("--seeds", type=int, default=1, help="runs (default: 1)")
    options = parser.parse_args()
    sizes = [int(nodes) for nodes in options.nodes.split(",")]
    if options.fault and min(sizes) <= SERVED:
        parser.error(f"faults are for more than {SERVED} nodes: these are the ones that the client serves")
    for nodes in sizes:
        for seed in range(1, options.seeds + 1):
            setting = Setting(
                nodes,
                int(options.mib * MIB),
                options.mbit * 1e6 / 8,
                latency_s=options.latency_ms / 1000,
                jitter_s=options.jitter_ms / 1000,
                fault=options.fault,
                seed=seed,
            )
            began_s = time.process_time()
            found = Simulation(setting).run()
            sys.stdout.write(f"{nodes:5} nodes  {told(found)}; {time.process_time() - began_s:.0f} s of processor\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
