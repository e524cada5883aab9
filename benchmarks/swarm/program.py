"""How near an upload comes to what its links allow: whole clusters in one process, under a fake clock, with the real code of the nodes.

``python -m benchmarks.swarm.program [--nodes 3,8,16] [--mib 64] [--mbit 100] [--runs 3]``. Each address has one link that carries so much
in each direction; messages wait for their turn at the sender's, then at the receiver's. The processor costs nothing here and the disk is
memory, so that what is left is who gives what to whom, and when. The same seed gives the same figures everywhere.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass

from ciruela.index.digest import BLOCK_BYTES
from tests.doubles.memnet import OUTSIDE
from tests.scenarios.cluster import Client, Cluster, Image

PATH = "/app/v1"
PATIENCE_S = 3600.0


@dataclass(frozen=True, slots=True)
class Result:
    """``ratio`` to the bound; what the client, and the node that sent most, sent of the image; what each node sent on average."""

    ratio: float
    client: float
    busiest: float
    average: float


def bound_s(size: int, nodes: int, rate: float) -> float:
    """No program can be faster: the client sends everything once, each node gets everything, and all together send N copies."""
    return max(size / rate, nodes * size / (rate + nodes * rate))


def upload(nodes: int, mib: int, mbit: float, seed: int) -> Result:
    """One upload to a cluster that is idle and complete."""
    cluster = Cluster(nodes, seed=seed, latency_s=0.0005)
    cluster.run(10.0)
    image = Image(seed, {"large": mib * 1024 * 1024})
    client = Client(cluster, image)
    client.outside = True
    rate = mbit * 1e6 / 8
    everybody = cluster.addresses(*range(1, nodes + 1))
    cluster.hub.rates = dict.fromkeys((*everybody, OUTSIDE), rate)
    cluster.hub.carried.clear()
    began_s = cluster.clock.seconds()
    client.upload(PATH, everybody[:3])
    cluster.run(PATIENCE_S, until=lambda: len(cluster.holders(PATH, image)) == nodes)
    if len(cluster.holders(PATH, image)) < nodes:
        raise RuntimeError(f"{nodes} nodes, seed {seed}: not everywhere after {PATIENCE_S:.0f} s")
    size = mib * 1024 * 1024
    sent = [cluster.hub.carried[address] / size for address in everybody]
    ratio = (cluster.clock.seconds() - began_s) / bound_s(size, nodes, rate)
    return Result(ratio, len(client.given) * BLOCK_BYTES / size, max(sent), statistics.mean(sent))


def main() -> int:
    """One line for each number of nodes."""
    parser = argparse.ArgumentParser(description="Simulate uploads over links of limited speed.")
    parser.add_argument("--nodes", default="3,8,16", help="numbers of nodes (default: 3,8,16)")
    parser.add_argument("--mib", type=int, default=64, help="size of the image (default: 64)")
    parser.add_argument("--mbit", type=float, default=100.0, help="each link, each way (default: 100)")
    parser.add_argument("--runs", type=int, default=3, help="seeds (default: 3)")
    options = parser.parse_args()
    for nodes in map(int, options.nodes.split(",")):
        results = [upload(nodes, options.mib, options.mbit, seed) for seed in range(1, options.runs + 1)]
        ratios = sorted(one.ratio for one in results)
        middle = sorted(results, key=lambda one: one.ratio)[len(results) // 2]
        sys.stdout.write(
            f"{nodes:4} nodes  {statistics.median(ratios):.3f} of the bound ({ratios[0]:.3f} .. {ratios[-1]:.3f}), the client gave "
            f"{middle.client:.2f}, a node {middle.average:.2f}, the busiest {middle.busiest:.2f} of the image\n"
        )
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
