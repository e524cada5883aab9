"""How long until ALL nodes have it: this project beside rsync, BitTorrent swarms and a pipe through all nodes, over links of limited speed.

``sudo python -m benchmarks.cluster --help``. N machines are network namespaces on a bridge; README.rst says how it is measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.children import SYNC, CheckFailed, Children, environment, run
from benchmarks.netns import Host, Network, why_not
from benchmarks.nodes import fingerprint
from benchmarks.systems import SYSTEMS, Ciruela, Rsync, System, in_thread
from benchmarks.tables import MIB, bound_s, keep, list_table, machine, percentile, spread, tell
from benchmarks.workloads import WORKLOADS, Workload, rewrite

LOOK_S = 0.005
PATIENCE_S = 1800.0
BUSY = 0.85
"""With more of the processors in use than this, the time is the processor's rather than the links'."""

LATENCIES = "the same configuration again and again, to an idle cluster"


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: seconds until the last node had it, what the client sent and what all sent. ``busy``: part of the processors in use."""

    all_s: float
    client_bytes: int
    wire_bytes: int
    cpu_s: float
    busy: float


@dataclass(slots=True)
class Cell:
    """One system with one workload and so many nodes."""

    runs: list[Measured] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _busy_s() -> float:
    """Processor time that the whole machine has spent on something, its other users included."""
    fields = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def wait(system: System, hosts: list[Host], began_s: float) -> float:
    """Publish and wait. Seconds since ``began_s`` until all have it. Raises CheckFailed."""
    thread, problems = in_thread(system.publish)
    left = list(hosts)
    while left:
        left = [host for host in left if not system.done(host)]
        passed_s = time.monotonic() - began_s
        if problems and isinstance(problems[0], CheckFailed):
            raise CheckFailed(str(problems[0]))
        if problems:
            raise problems[0]
        if passed_s > PATIENCE_S:
            raise CheckFailed(f"after {PATIENCE_S:.0f} s not on {', '.join(host.name for host in left)}")
        if left:
            time.sleep(LOOK_S)
    passed_s = time.monotonic() - began_s
    thread.join(60)
    return passed_s


def compare(system: System, hosts: list[Host], wanted: str) -> None:
    """Raises CheckFailed when a copy is not what was sent."""
    for host in hosts:
        if fingerprint(system.copy(host), system.modes) != wanted:
            raise CheckFailed(f"the copy on {host.name} is not what was sent")


def measure(kind: type[System], workload: Workload, nodes: int, mbit: float, top: Path) -> Measured:
    """One run, on a network of its own with nothing on the nodes but the version before."""
    with tempfile.TemporaryDirectory(prefix="run-", dir=top) as folder, Network(nodes, Path(folder)) as network, Children() as children:
        system = kind(network, children, workload)
        system.prepare()
        network.limit(mbit)
        time.sleep(0.5)
        sent, cpu_s, busy_s = network.sent_bytes(), sum(host.cpu_s() for host in network.hosts), _busy_s()
        all_s = wait(system, network.nodes, time.monotonic())
        busy = min(1.0, (_busy_s() - busy_s) / all_s / (os.cpu_count() or 1))
        cpu_s = sum(host.cpu_s() for host in network.hosts) - cpu_s
        after = network.sent_bytes()
        compare(system, network.nodes, fingerprint(workload.tree, system.modes))
    return Measured(all_s, after["client"] - sent["client"], sum(after.values()) - sum(sent.values()), cpu_s, busy)


def latencies(kind: type[Ciruela] | type[Rsync], workload: Workload, nodes: int, mbit: float, uploads: int, top: Path) -> list[float]:
    """Seconds of each of so many uploads of a configuration, one after the other, to nodes that are idle in between."""
    found = []
    with tempfile.TemporaryDirectory(prefix="run-", dir=top) as folder, Network(nodes, Path(folder)) as network, Children() as children:
        system = kind(network, children, workload)
        system.prepare()
        network.limit(mbit)
        for turn in range(uploads + 1):
            rewrite(workload.tree, turn)
            system.where = f"turn{turn}"
            if isinstance(system, Rsync):
                system.finished.clear()
            time.sleep(1.0)
            found.append(wait(system, network.nodes, time.monotonic()))
            compare(system, network.nodes, fingerprint(workload.tree))
    return found[1:]


def row(title: str, cell: Cell, bound: float, size: int, nodes: int) -> list[str]:
    """One system in the table of one workload and one number of nodes."""
    if not cell.runs:
        return [title, "; ".join(dict.fromkeys(cell.problems)), "", "", "", "", ""]
    busy = statistics.median(one.busy for one in cell.runs)
    sent = statistics.median(one.client_bytes for one in cell.runs)
    wire = statistics.median(one.wire_bytes for one in cell.runs)
    wrong = f"; {len(cell.problems)} runs failed" if cell.problems else ""
    return [
        title,
        spread([one.all_s for one in cell.runs]) + wrong,
        f"{statistics.median(one.all_s for one in cell.runs) / bound:.2f}",
        f"{sent / MIB:,.2f} ({sent / size:.2f} S)",
        f"{wire / MIB:,.2f} ({wire / size / nodes:.2f} N S)",
        spread([one.cpu_s for one in cell.runs], 1),
        f"{100 * busy:.0f} %{' **busy**' if busy > BUSY else ''}",
    ]


HEAD = ("System", "Seconds until all have it", "Of the bound", "Sent by the client, MiB", "On the wire, MiB", "Processor seconds", "In use")


class Report:
    """What was measured so far, as text."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.start_s = statistics.median(run([*SYNC, "--version"], environment()).wall_s for _ in range(5))
        self.sections: list[str] = []
        self.missing: list[str] = []

    def cluster(self, workload: Workload, nodes: int, mbit: float, cells: dict[str, Cell]) -> None:
        """Add the table of one workload with so many nodes."""
        bound = bound_s(workload.size_bytes, nodes, mbit * 1e6 / 8)
        rows = [row(SYSTEMS[name].title, cell, bound, workload.size_bytes, nodes) for name, cell in cells.items()]
        size = f"S = {workload.size_bytes / MIB:,.2f} MiB, bound {bound:.2f} s"
        head = f"**{workload.title}; {nodes} nodes, links of {mbit:g} Mbit/s**; {size}.\n"
        self.sections.append(f"{head}\n{list_table(HEAD, rows)}")

    def latency(self, nodes: int, mbit: float, found: dict[str, list[float]]) -> None:
        """Add the times of many uploads of a configuration."""
        rows = [
            [name, f"{percentile(values, 50):.3f}", f"{percentile(values, 95):.3f}", f"{max(values):.3f}"] for name, values in found.items()
        ]
        count = min(map(len, found.values()))
        head = (
            f"**{LATENCIES}; {nodes} nodes, links of {mbit:g} Mbit/s**; {count} uploads of each, from the start of the client's program. "
            f"The start of ``ciruela-sync`` alone takes {self.start_s:.2f} s.\n"
        )
        self.sections.append(f"{head}\n{list_table(('System', 'Median, s', '95 of 100, s', 'Longest, s'), rows)}")

    def text(self) -> str:
        """All of it."""
        left_out = "".join(f"Left out: {one}.\n" for one in self.missing)
        return f"{self.how}; {machine()}.\n{left_out}\n" + "\n".join(self.sections)


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description="Time until all nodes have it, over limited links.")
    parser.add_argument("--nodes", default="3,8,16", help="sizes of the cluster (3,8,16)")
    parser.add_argument("--mbit", default="100", help="each link, each way; one figure, or one for each size (100)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each system (3)")
    parser.add_argument("--only", action="append", choices=list(WORKLOADS), help="only this workload; may be repeated")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help=f"which systems ({','.join(SYSTEMS)})")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the large workloads, as a part of the whole (1.0)")
    parser.add_argument("--longest", type=float, default=240.0, help="leave out what must take longer than so many seconds (240)")
    parser.add_argument("--uploads", type=int, default=20, help="uploads for the latency of a configuration, 0 for none (20)")
    parser.add_argument("--quick", action="store_true", help="3 nodes, one run, a sixteenth of the size: to see that it works")
    parser.add_argument("--output", type=Path, help="write the report to this file, too")
    options = parser.parse_args()
    if options.quick:
        options.nodes, options.mbit, options.runs, options.scale, options.uploads = "3", "100", 1, 1 / 16, 3
    if (problem := why_not()) != "":
        parser.error(problem)
    if wrong := set(options.systems.split(",")) - SYSTEMS.keys():
        parser.error(f"there is no system {', '.join(sorted(wrong))}")
    options.sizes = list(map(int, options.nodes.split(",")))
    rates = list(map(float, options.mbit.split(",")))
    options.rates = rates * len(options.sizes) if len(rates) == 1 else rates
    if len(options.rates) != len(options.sizes):
        parser.error("--mbit takes one figure, or as many as --nodes")
    return options


def fits(kind: type[System], workload: Workload, nodes: int, mbit: float, longest_s: float) -> str:
    """Why a system is not measured with a workload; empty when it is."""
    if kind is Rsync and nodes * workload.size_bytes / (mbit * 1e6 / 8) > longest_s:
        return f"the client alone would send for {nodes * workload.size_bytes / (mbit * 1e6 / 8):.0f} s"
    return ""


def one_table(workload: Workload, nodes: int, mbit: float, options: argparse.Namespace, names: list[str], top: Path) -> dict[str, Cell]:
    """All runs of all systems with one workload, in turn."""
    cells = {name: Cell() for name in names if workload.packs or not SYSTEMS[name].packs}
    for turn in range(options.runs):
        for name, cell in cells.items():
            kind = SYSTEMS[name]
            if problem := fits(kind, workload, nodes, mbit, options.longest):
                cell.problems.append(f"not run: {problem}")
                continue
            try:
                cell.runs.append(measure(kind, workload, nodes, mbit, top))
                said = f"{cell.runs[-1].all_s:.2f} s"
            except CheckFailed as failed:
                cell.problems.append(f"failed: {str(failed).splitlines()[0]}")
                said = f"FAILED: {failed}"
                options.failed = True
            tell(f"{workload.name}, {nodes} nodes, run {turn + 1} of {options.runs}: {SYSTEMS[name].title}: {said}")
    return cells


def go(options: argparse.Namespace, top: Path) -> None:
    """Measure everything that was asked for."""
    report = Report(
        f"{options.runs} runs, the systems in turn; median (smallest .. largest); scale {options.scale:g}, data on {options.disk}"
    )
    names = []
    for name in options.systems.split(","):
        missing = SYSTEMS[name].missing()
        if missing:
            report.missing.append(f"{SYSTEMS[name].title} (not installed: {', '.join(missing)})")
            tell(f"left out: {report.missing[-1]}")
        else:
            names.append(name)
    for key in options.only or WORKLOADS:
        workload = WORKLOADS[key](top / "trees", options.scale)
        for nodes, mbit in zip(options.sizes, options.rates, strict=True):
            report.cluster(workload, nodes, mbit, one_table(workload, nodes, mbit, options, names, top))
            if options.output is not None:
                options.output.write_text(report.text())
        if key == "config" and options.uploads:
            for nodes, mbit in zip(options.sizes, options.rates, strict=True):
                kinds = [kind for kind in (Ciruela, Rsync) if not kind.missing()]
                found = {kind.title: latencies(kind, workload, nodes, mbit, options.uploads, top) for kind in kinds}
                tell(f"configuration again and again, {nodes} nodes: {found}")
                report.latency(nodes, mbit, found)
        shutil.rmtree(top / "trees")
    keep(report.text(), options.output)


def main() -> int:
    """Run the benchmark."""
    options = arguments()
    options.failed = False
    ram = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # ext4 slows down when trees come and go: see README.rst
    options.disk = "tmpfs" if ram else "disk"
    try:
        with tempfile.TemporaryDirectory(prefix="ciruela-cluster-", dir=ram) as folder:
            Path(folder).chmod(0o755)
            go(options, Path(folder))
    except CheckFailed as failed:
        tell(str(failed))
        return 1
    except KeyboardInterrupt:
        tell("interrupted; everything is stopped and removed")
        return 130
    return 1 if options.failed else 0


if __name__ == "__main__":
    sys.exit(main())
