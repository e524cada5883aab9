"""The programs of the reference, ciruela 0.6.12, beside real daemons of ours. ``RUST_CIRUELA`` names the directory that has them.

``docs/explanation/interoperability.rst`` says how they are built.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.real.daemons import RealCluster, RealNode, environment, until

VARIABLE = "RUST_CIRUELA"
"""Not named as the variables that our programs read: they warn of one that they do not know."""


def missing() -> str:
    """Why the programs of the reference cannot be run here, or nothing; for ``mounts.needs``. A wrong variable is an error."""
    place = os.environ.get(VARIABLE, "")
    if not place:
        return f"{VARIABLE} does not name the directory of the reference's programs"
    for name in ("ciruela", "ciruela-server"):
        if shutil.which(name, path=place) is None:
            raise AssertionError(f"{VARIABLE}: there is no program {name} in {place}")
    return ""


def binary(name: str) -> str:
    """A program of the reference."""
    return str(Path(os.environ[VARIABLE], name).resolve())


def start_server(cluster: RealCluster, number: int) -> subprocess.Popen[bytes]:
    """Start the reference's daemon in the place of a node that is down, and wait until it serves. It ends before the cluster does."""
    node = cluster.nodes[number]
    command = [binary("ciruela-server"), "--config-base-dir", str(node.config), *_options(node)]
    environ = environment(cluster.home) | {"CANTAL_PATH": str(node.top / "cantal"), "RUST_LOG": "info"}
    with open(node.log, "ab") as log:
        process = subprocess.Popen(command, cwd=node.top, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    cluster.case.addCleanup(process.wait)
    cluster.case.addCleanup(process.kill)
    until(partial(_answers, node, process), f"the reference's {node.name} serves", node.tail)
    return process


def _options(node: RealNode) -> list[str]:
    return [
        *("--db-dir", str(node.db)),
        *("--host", node.host),
        *("--port", str(node.port)),
        *("--override-machine-id", node.machine),
        *("--override-hostname", node.host),
    ]


def _answers(node: RealNode, process: subprocess.Popen[bytes]) -> Any:
    if process.poll() is not None:
        raise AssertionError(f"the reference's {node.name} ended with {process.returncode}\n{node.tail()}")
    return node.get("/configs/") is not None


def sync_command(cluster: RealCluster, wish: Sequence[object], nodes: Sequence[RealNode]) -> list[str]:
    """The command line of its client, for one cluster of ``nodes``."""
    options = ["-m", "-i", cluster.key, "-t", "110s", "-e", "110s", *wish]
    return [binary("ciruela"), "--port", str(cluster.port), "sync", *map(str, options), "--", *(node.host for node in nodes)]
